"""The values of a map tell what it can be; one message says the way out."""

import re
from typing import Any

import numpy as np
import pytest

from nnunet_softseg.io.nifti import (
    MapKind,
    as_fractions,
    classify,
    content_findings,
    label_findings,
    mask_of_label,
)

SOFT = np.linspace(0, 1, 11)


@pytest.mark.parametrize(
    ("values", "kind", "labels"),
    [
        (np.zeros(3), MapKind.EMPTY, ()),
        (np.array([0, 0.001], np.float32), MapKind.SOFT, None),  # 0.001 in float32 is larger
        (np.array([0, 1], np.uint8), MapKind.MASK, (1,)),
        (np.array([-4e-6, 1 + 4e-6]), MapKind.MASK, (1,)),
        (np.array([True, False]), MapKind.MASK, (1,)),
        (SOFT, MapKind.SOFT, None),
        (np.array([0, 1, 3.0000001]), MapKind.LABELS, (1, 3)),
        (np.array([0, 24, 50, 100]), MapKind.PERCENT, (24, 50, 100)),
        (SOFT * 98.7, MapKind.PERCENT, None),
        (np.array([0, 255], np.uint8), MapKind.OTHER_MASK, (255,)),
        (np.array([0, 2]), MapKind.OTHER_MASK, (2,)),
        (np.array([0, 0.9993]), MapKind.MASK, (1,)),  # stored with a slope
        (np.array([0, 1.0004, 2.9996]), MapKind.LABELS, (1, 3)),
        (np.array([0, 2, 3, 41, 42]), MapKind.LABELS, (2, 3, 41, 42)),
        (np.array([0, 10, 41, 194, 255]), MapKind.BYTES, (10, 41, 194, 255)),
        (np.array([0, 4, 14, 54, 89]), MapKind.SCALED, (4, 14, 54, 89)),
        (SOFT * 63.5, MapKind.SCALED, None),
        (SOFT * 1e-3, MapKind.SOFT, None),
        (SOFT * 1.2 - 0.1, MapKind.OVERSHOOT, None),
        (SOFT * 701.3, MapKind.OTHER, None),
        (SOFT - 3, MapKind.OTHER, None),
        (np.arange(2000), MapKind.OTHER, None),  # an image, not a label map
    ],
)
def test_values_tell_the_kind(values: Any, kind: MapKind, labels: tuple[int, ...] | None) -> None:
    content = classify(values)
    assert (content.kind, content.labels) == (kind, labels)
    assert content.is_fraction is (kind in (MapKind.EMPTY, MapKind.MASK, MapKind.SOFT))


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        (
            np.array([0, 1, 3]),
            "found whole numbers (0, 1, 3): choose a label of it with --label; or, if it is the sum of 3 "
            "raters' masks, divide it by 3 (by the number of raters)",
        ),
        (
            np.array([0, 255]),
            "found whole numbers (0, 255): divide it by 255, or choose it with --label",
        ),
        (SOFT * 99.7, "found [0, 99.7]: divide it by 100"),
        (SOFT * 1.2, "found [0, 1.2]: clip it to [0, 1]; resample labels linearly, splines overshoot"),
    ],
)
def test_the_way_out_is_said_once_for_all_commands(values: Any, remedy: str) -> None:
    (finding,) = content_findings("a/map", values, "--label")
    assert str(finding) == f"a/map: values outside [0, 1]: expected [0, 1], {remedy}"


def test_a_label_stored_with_a_slope_is_found() -> None:
    assert mask_of_label(np.array([0, 2.9999998, 2]), 3).tolist() == [0, 1, 0]


def disc(radius: float) -> np.ndarray[Any, Any]:
    """Return the share of each of 20 x 20 pixels that a disc covers, by 5 x 5 points in each."""
    at = (np.arange(100) + 0.5) / 5 - 10
    return (np.hypot(at[:, None], at) < radius).reshape(20, 5, 20, 5).mean(axis=(1, 3))


@pytest.mark.parametrize("peak", [1.0, 0.6, 0.35])
@pytest.mark.parametrize("scale", [100, 255])
def test_who_divides_as_told_gets_the_fractions_back(scale: int, peak: float) -> None:
    soft = peak * disc(6)
    stored = np.round(scale * soft).astype(np.uint8)
    for values in (stored, stored.astype(np.float32)):
        for choose in ("", "--label"):
            told = classify(values).remedy(choose)
            numbers = [int(number) for number in re.findall(r"by (\d+)", told)]
            assert scale in numbers, told
            assert len(numbers) == 1 or {"255 means a whole voxel", "100 if it is in percent"} & {
                *re.findall(r"255 means a whole voxel|100 if it is in percent", told)
            }
            assert ("--label" in told) is (choose != "" and len(numbers) == 2), told
    assert np.abs(stored / scale - soft).max() <= 0.5 / scale


@pytest.mark.parametrize("value", [2, 100, 255])
def test_a_mask_of_another_value_is_a_mask_either_way(value: int) -> None:
    mask = disc(6) > 0.5
    stored = value * mask.astype(np.uint8)
    assert classify(stored).remedy("--label") == f"divide it by {value}, or choose it with --label"
    assert (mask_of_label(stored, value) == mask).all()
    assert (stored / value == mask).all()


def test_a_sum_of_raters_and_a_label_map_look_alike_and_both_ways_are_told() -> None:
    masks = [disc(radius) > 0.5 for radius in (3, 5, 6)]
    (finding,) = content_findings("a/sum", np.sum(masks, axis=0))
    assert "one file per label" in finding.remedy
    assert "divide it by 3" in finding.remedy
    assert "divide" not in classify(np.array([0, 2, 3, 4])).remedy()  # a count of raters has a 1 somewhere


def test_few_steps_of_a_small_blob_are_no_labels_and_regions_are() -> None:
    """By their neighbours: a blurred ball of bytes has fewer than 40 values, some of them in rows."""
    at = np.indices((12, 12, 12)) - 5.3
    ball = np.round(89 * np.clip(4.2 - np.sqrt((at**2).sum(axis=0)), 0, 1)).astype(np.uint8)
    assert 10 < len(np.unique(ball)) < 60
    assert classify(ball).is_scaled
    regions = np.zeros((24, 12, 12), np.uint8)
    for place, label in enumerate((3, 17, 30, 44, 52, 89)):
        regions[4 * place : 4 * place + 3, 2:9, 3:9] = label
    levels = np.zeros((12, 12, 12), np.uint8)
    levels[3:8, 3:8] = np.arange(12)  # one slice each
    points = np.zeros((12, 12, 12), np.uint8)
    points[5, 5, ::2] = (3, 4, 5, 6, 7, 50)
    for values in (levels, points, regions):
        assert classify(values).kind is MapKind.LABELS
    assert "divide it by 255" in classify(np.array([0, 85, 170])).remedy()  # thirds, or two labels


def test_a_mask_stored_with_a_slope_is_exact() -> None:
    stored = np.array([0.0002, 0.9996, 1.0004])
    assert as_fractions(stored, classify(stored)).tolist() == [0, 1, 1]


def test_a_label_is_not_taken_from_fractions_without_a_word() -> None:
    steps = classify(np.array([0, 10, 41, 194, 255]))
    assert [finding.severity for finding in label_findings("a/b", steps, 255)] == ["warning"]
    assert [finding.severity for finding in label_findings("a/b", steps, 1)] == ["error"]
    assert label_findings("a/b", classify(np.array([0, 1, 2, 255])), 3) == []  # absent from a label map
    (finding,) = label_findings("a/b", classify(SOFT), 1)
    assert finding.remedy == "leave out --label"
