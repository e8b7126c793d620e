"""The values of a map tell what it can be; one message says the way out."""

from typing import Any

import numpy as np
import pytest

from nnunet_softseg.io.nifti import MapKind, classify, content_findings, mask_of_label

SOFT = np.linspace(0, 1, 11)


@pytest.mark.parametrize(
    ("values", "kind", "labels"),
    [
        (np.zeros(3), MapKind.EMPTY, ()),
        (np.array([0, 1], np.uint8), MapKind.MASK, (1,)),
        (np.array([-4e-6, 1 + 4e-6]), MapKind.MASK, (1,)),
        (np.array([True, False]), MapKind.MASK, (1,)),
        (SOFT, MapKind.SOFT, None),
        (np.array([0, 1, 3.0000001]), MapKind.LABELS, (1, 3)),
        (np.array([0, 24, 50, 100]), MapKind.PERCENT, (24, 50, 100)),
        (SOFT * 98.7, MapKind.PERCENT, None),
        (np.array([0, 255], np.uint8), MapKind.BYTES, (255,)),
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
        (np.array([0, 1, 3]), "found whole numbers (0, 1, 3): choose a label of it with --label"),
        (
            np.array([0, 255]),
            "found whole numbers (0, 255): divide it by 255, or choose a label of it with --label",
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
