"""Shapes of labels whose figures can be counted, and what a made-up map is told by."""

from dataclasses import replace

import numpy as np
import pytest

from nnunet_softseg.metrics.label_shape import LabelShape, broken_off, differences, label_shape, most_extreme


def column(height: float = 1.0) -> np.ndarray:
    """A square column of 5 x 5 voxels along the first axis, with a rim of a quarter of its height."""
    soft = np.zeros((12, 20, 20), np.float32)
    soft[:, 7:14, 7:14] = height / 4
    soft[:, 8:13, 8:13] = height
    return soft


def test_a_column_by_counting() -> None:
    shape = label_shape(column(), axis=0)
    assert shape == LabelShape(components=1, largest_area=25 + 24 / 4, area_variation=0.0, extent=12)
    along_another = label_shape(column(), axis=1)
    assert along_another is not None
    assert along_another.largest_area == pytest.approx(12 * (5 + 2 / 4))
    # seven slices: five of 66 voxels, two of 12 * 7 / 4 = 21
    areas = np.array([66.0] * 5 + [21.0] * 2)
    assert along_another.area_variation == pytest.approx(areas.std() / areas.mean())


def test_areas_are_those_across_what_leans() -> None:
    """Slices that are larger only as they cut it at a slant are even."""
    soft = column()
    soft[6:, 7:14, 2:7] = soft[6:, 7:14, 7:12]  # from here on the column leans
    lean = np.array([1.0] * 6 + [float(soft[6].sum() / soft[0].sum())] * 6)
    for axis in range(3):
        seen = np.moveaxis(soft, 0, axis)
        shape, as_cut = label_shape(seen, axis, lean), label_shape(seen, axis)
        assert shape is not None and as_cut is not None  # noqa: PT018
        assert shape.largest_area == pytest.approx(25 + 24 / 4)
        assert shape.area_variation == pytest.approx(0, abs=1e-7)
        assert as_cut.largest_area == pytest.approx(lean[-1] * shape.largest_area)


def test_pieces_touch_at_corners_and_are_counted_above_a_half() -> None:
    soft = np.zeros((6, 6, 6), np.float32)
    soft[0, 0, 0] = soft[1, 1, 1] = 0.9  # one piece
    soft[4, 4, 4] = 0.51  # another
    soft[2, 2, 2] = 0.5  # joins nothing: not above a half
    shape = label_shape(soft, axis=0)
    assert shape is not None
    assert shape.components == 2


def test_nothing_above_a_half_has_no_shape() -> None:
    assert label_shape(column(0.5), axis=0) is None
    assert most_extreme([None, None]) is None


def test_the_training_keeps_the_largest_of_each_figure() -> None:
    shapes = [LabelShape(1, 80.0, 0.05), None, LabelShape(2, 60.0, 0.1)]
    shapes = [shape and replace(shape, extent=int(shape.largest_area)) for shape in shapes]
    shapes[0] = shapes[0] and replace(shapes[0], area_roughness=0.02, certainty=0.9)
    largest = {"components": 2, "largest_area": 80.0, "area_variation": 0.1, "area_roughness": 0.02}
    ends = {"empty_start": 0, "empty_end": 0, "gap": 0}
    assert most_extreme(shapes) == {
        **largest,
        **ends,
        "extent": 60,
        "certainty": 0.9,
    }  # the smallest of these


def test_where_a_label_ends_and_what_is_missing_in_it() -> None:
    soft = column()
    soft[:2] = soft[6:9] = soft[11:] = 0
    for axis in range(3):
        shape = label_shape(np.moveaxis(soft, 0, axis), axis)
        assert shape is not None
        assert (shape.empty_start, shape.empty_end, shape.gap, shape.extent) == (2, 1, 3, 9)
    with_one_end = most_extreme([LabelShape(1, 80.0, 0.05, 2, 0, 0), LabelShape(1, 80.0, 0.05, 0, 9, 1)])
    assert with_one_end is not None
    assert (with_one_end["empty_start"], with_one_end["empty_end"], with_one_end["gap"]) == (2, 9, 1)


@pytest.mark.parametrize(
    ("shape", "told_by"),
    [
        (LabelShape(1, 80.0, 0.05, 7, 12, 1), []),  # five slices of tolerance at the ends, none inside
        (LabelShape(1, 80.0, 0.05, 8, 12, 1), ["8 slices from the image's first (in training at most 2)"]),
        (LabelShape(1, 80.0, 0.05, 7, 13, 2), ["13 slices from the image's last", "2 slices are missing"]),
    ],
)
def test_a_label_that_ends_where_none_of_the_training_did(shape: LabelShape, told_by: list[str]) -> None:
    found = broken_off(shape, {**TRAINING, "empty_start": 2, "empty_end": 7, "gap": 1})
    assert len(found) == len(told_by)
    for sentence, words in zip(found, told_by, strict=True):
        assert words in sentence


def test_roughness_is_what_changes_from_slice_to_slice() -> None:
    """Of a smooth enlargement next to nothing; of areas that jump by a tenth to and fro, a tenth."""
    along = np.arange(80)
    smooth, jumping = 1 + 0.1 * np.sin(along / 40), 1 + 0.1 * (-1.0) ** along
    for areas, roughness in ((smooth, 0), (jumping, 0.1), (smooth * jumping, 0.1)):
        soft = np.broadcast_to(0.8 * areas[:, None, None] / areas.max(), (80, 5, 5))
        shape = label_shape(soft, 0)
        assert shape is not None
        assert shape.area_roughness == pytest.approx(roughness, abs=0.01)
        assert shape.area_variation == pytest.approx(areas.std() / areas.mean())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_certainty_is_the_mean_of_what_lies_deep_inside(axis: int) -> None:
    """A quarter of the radius below the border: what is there says nothing, and what is deeper does."""
    y, x = np.meshgrid(np.arange(60) - 29.5, np.arange(60) - 29.5, indexing="ij")
    away = np.hypot(y, x)

    def certainty(radius: float, unsure_from: float) -> float:
        plane = np.where(away <= radius, np.where(away > unsure_from, 0.7, 1.0), 0.0)
        shape = label_shape(np.moveaxis(np.tile(plane, (7, 1, 1)), 0, axis), axis)
        assert shape is not None
        return shape.certainty

    for radius in (4.0, 8.0, 16.0):
        quarter = 0.25 * radius
        assert certainty(radius, radius - quarter) == 1.0
        assert 0.7 < certainty(radius, radius - 2.5 * quarter) < 1.0
        assert certainty(radius, 0) == pytest.approx(0.7)
    thin = np.zeros((9, 9, 9))
    thin[:, 4, 4] = 0.6  # a voxel wide: nothing lies inside
    shape = label_shape(thin, 0)
    assert shape is not None
    assert shape.certainty == 1.0


TRAINING = {
    "components": 1, "largest_area": 80.0, "area_variation": 0.05, "area_roughness": 0.01, "certainty": 0.8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "told_by"),
    [
        (LabelShape(1, 80.0, 0.05), []),
        (LabelShape(1, 99.0, 0.14), []),  # a large cord with an enlargement
        (LabelShape(3, 80.0, 0.05), []),  # pieces have a flag of their own
        (LabelShape(1, 101.0, 0.05), ["a slice of 101 voxels"]),
        (LabelShape(1, 80.0, 0.16), ["vary by 16%"]),
        (LabelShape(7, 230.0, 0.7), ["a slice of 230", "vary by 70%"]),
        (LabelShape(1, 80.0, 0.05, area_roughness=0.039), []),  # three times that of the training, and 0.01
        (LabelShape(1, 80.0, 0.05, area_roughness=0.041), ["differ by 4.1% from slice to slice"]),
        (LabelShape(1, 80.0, 0.05, certainty=0.77), []),  # 0.955 of the training's 0.8 is 0.764
        (LabelShape(1, 80.0, 0.05, certainty=0.76), ["an inside of 0.76 (at least 0.80)"]),
        # Half of the way to each of three limits is too much: 90 of 80 to 100, 0.025 of 0.01 to 0.04, ...
        (
            LabelShape(1, 90.0, 0.05, area_roughness=0.025, certainty=0.782),
            ["all together, largest area 90, area variation 0.05, area roughness 0.025"],
        ),
        (LabelShape(1, 80.0, 0.10, area_roughness=0.025, certainty=0.782), ["all together"]),
        (LabelShape(1, 90.0, 0.10, area_roughness=0.020, certainty=0.782), []),  # the size counts once
        (LabelShape(1, 80.0, 0.05, area_roughness=0.025, certainty=0.782), []),
    ],
)
def test_what_is_unlike_the_training_is_said(shape: LabelShape, told_by: list[str]) -> None:
    found = differences(shape, TRAINING)
    assert len(found) == len(told_by)
    for sentence, words in zip(found, told_by, strict=True):
        assert words in sentence
