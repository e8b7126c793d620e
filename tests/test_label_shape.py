"""Shapes of labels whose figures can be counted, and what a made-up map is told by."""

import numpy as np
import pytest

from nnunet_softseg.label_shape import LabelShape, differences, label_shape, most_extreme


def column(height: float = 1.0) -> np.ndarray:
    """A square column of 5 x 5 voxels along the first axis, with a rim of a quarter of its height."""
    soft = np.zeros((12, 20, 20), np.float32)
    soft[:, 7:14, 7:14] = height / 4
    soft[:, 8:13, 8:13] = height
    return soft


def test_a_column_by_counting() -> None:
    shape = label_shape(column(), axis=0)
    assert shape == LabelShape(components=1, largest_area=25 + 24 / 4, area_variation=0.0)
    along_another = label_shape(column(), axis=1)
    assert along_another is not None
    assert along_another.largest_area == pytest.approx(12 * (5 + 2 / 4))
    # seven slices: five of 66 voxels, two of 12 * 7 / 4 = 21
    areas = np.array([66.0] * 5 + [21.0] * 2)
    assert along_another.area_variation == pytest.approx(areas.std() / areas.mean())


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
    assert most_extreme(shapes) == {"components": 2, "largest_area": 80.0, "area_variation": 0.1}


TRAINING = {"components": 1, "largest_area": 80.0, "area_variation": 0.05}


@pytest.mark.parametrize(
    ("shape", "told_by"),
    [
        (LabelShape(1, 80.0, 0.05), []),
        (LabelShape(1, 99.0, 0.14), []),  # a large cord with an enlargement
        (LabelShape(3, 80.0, 0.05), ["3 separate pieces"]),
        (LabelShape(1, 101.0, 0.05), ["a slice of 101 voxels"]),
        (LabelShape(1, 80.0, 0.16), ["vary by 16%"]),
        (LabelShape(7, 230.0, 0.7), ["7 separate", "a slice of 230", "vary by 70%"]),
    ],
)
def test_what_is_unlike_the_training_is_said(shape: LabelShape, told_by: list[str]) -> None:
    found = differences(shape, TRAINING)
    assert len(found) == len(told_by)
    for sentence, words in zip(found, told_by, strict=True):
        assert words in sentence
