"""Figures of shapes that can be counted, their ranges over a training, and what lies outside."""

from dataclasses import replace

import numpy as np
import pytest

from nnunet_softseg.inference.case_record import outliers
from nnunet_softseg.preprocessing.output_scale import LabelShape, known_range, label_shape, training_ranges


def column(height: float = 1.0) -> np.ndarray:
    """A square column of 5 x 5 voxels along the first axis, with a rim of a quarter of its height."""
    soft = np.zeros((12, 20, 20), np.float32)
    soft[:, 7:14, 7:14] = height / 4
    soft[:, 8:13, 8:13] = height
    return soft


def shape_of(soft: np.ndarray, axis: int, tilt_factor: np.ndarray | None = None) -> LabelShape:
    shape = label_shape(soft, axis, tilt_factor)
    assert shape is not None
    return shape


def test_a_column_by_counting() -> None:
    assert shape_of(column(), 0) == LabelShape(components=1, largest_area=25 + 24 / 4, length=12)
    along_another = shape_of(column(), 1)
    assert along_another.largest_area == pytest.approx(12 * (5 + 2 / 4))
    assert (along_another.empty_start, along_another.empty_end, along_another.length) == (8, 7, 5)


def test_a_faint_background_has_no_part() -> None:
    """A residue of 0.005 in all voxels of an image outweighs a cord."""
    residue = column()
    residue[residue == 0] = 0.005
    assert shape_of(residue, 0) == shape_of(column(), 0)


def test_areas_are_those_across_a_tilted_structure() -> None:
    """Slices that are larger only as they cut it at a slant are even."""
    soft = column()
    soft[6:, 7:14, 2:7] = soft[6:, 7:14, 7:12]  # from here on the column is tilted
    tilt_factor = np.array([1.0] * 6 + [float(soft[6].sum() / soft[0].sum())] * 6)
    for axis in range(3):
        seen = np.moveaxis(soft, 0, axis)
        shape, as_cut = shape_of(seen, axis, tilt_factor), shape_of(seen, axis)
        assert shape.largest_area == pytest.approx(25 + 24 / 4)
        assert shape.area_roughness == pytest.approx(0, abs=1e-7)
        assert as_cut.largest_area == pytest.approx(tilt_factor[-1] * shape.largest_area)


def test_components_touch_at_corners_and_are_counted_above_a_half() -> None:
    soft = np.zeros((6, 6, 6), np.float32)
    soft[0, 0, 0] = soft[1, 1, 1] = 0.9  # one component
    soft[4, 4, 4] = 0.51  # another
    soft[2, 2, 2] = 0.5  # joins nothing: not above a half
    assert shape_of(soft, 0).components == 2


def test_nothing_above_a_half_has_no_shape() -> None:
    assert label_shape(column(0.5), axis=0) is None
    assert training_ranges([None, None]) is None


def test_the_training_keeps_the_range_of_each_figure() -> None:
    shapes = [
        LabelShape(1, 80.0, empty_end=9, area_roughness=0.02, interior_mean=0.9, length=31),
        None,
        LabelShape(2, 60.0, empty_start=2, gap=1, length=38),
    ]
    assert training_ranges(shapes) == {
        "components": [1, 2], "largest_area": [60.0, 80.0], "empty_start": [0, 2], "empty_end": [0, 9],
        "gap": [0, 1], "area_roughness": [0.0, 0.02], "interior_mean": [0.9, 1.0],
        "length": [31, 38],
    }  # fmt: skip


def test_where_a_label_ends_and_its_gap() -> None:
    soft = column()
    soft[:2] = soft[6:9] = soft[11:] = 0
    for axis in range(3):
        shape = shape_of(np.moveaxis(soft, 0, axis), axis)
        assert (shape.empty_start, shape.empty_end, shape.gap, shape.length) == (2, 1, 3, 9)


def test_roughness_is_the_change_from_slice_to_slice() -> None:
    """Of a smooth enlargement next to nothing; of areas that jump by a tenth to and fro, a tenth."""
    along = np.arange(80)
    smooth, jumping = 1 + 0.1 * np.sin(along / 40), 1 + 0.1 * (-1.0) ** along
    for areas, roughness in ((smooth, 0), (jumping, 0.1), (smooth * jumping, 0.1)):
        soft = np.broadcast_to(0.8 * areas[:, None, None] / areas.max(), (80, 5, 5))
        assert shape_of(soft, 0).area_roughness == pytest.approx(roughness, abs=0.01)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_interior_mean_is_that_of_the_deep_voxels(axis: int) -> None:
    """A quarter of the radius below the border and deeper; what is nearer has no part."""
    y, x = np.meshgrid(np.arange(60) - 29.5, np.arange(60) - 29.5, indexing="ij")
    away = np.hypot(y, x)

    def interior_mean(radius: float, unsure_from: float) -> float:
        plane = np.where(away <= radius, np.where(away > unsure_from, 0.7, 1.0), 0.0)
        return shape_of(np.moveaxis(np.tile(plane, (7, 1, 1)), 0, axis), axis).interior_mean

    for radius in (4.0, 8.0, 16.0):
        quarter = 0.25 * radius
        assert interior_mean(radius, radius - quarter) == 1.0
        assert 0.7 < interior_mean(radius, radius - 2.5 * quarter) < 1.0
        assert interior_mean(radius, 0) == pytest.approx(0.7)
    thin = np.zeros((9, 9, 9))
    thin[:, 4, 4] = 0.6  # a voxel wide: nothing lies inside
    assert shape_of(thin, 0).interior_mean == 1.0


TRAINING = {
    "components": [1, 1], "largest_area": [60.0, 80.0], "area_roughness": [0.004, 0.01],
    "interior_mean": [0.8, 1.0],
}  # fmt: skip
OLD_TRAINING = {
    "components": 1, "largest_area": 80.0, "area_variation": 0.05, "area_roughness": 0.01, "certainty": 0.8,
    "extent": 66,
}  # fmt: skip
CORD = LabelShape(1, 80.0, area_roughness=0.01, interior_mean=0.9)
EACH = (
    ({"largest_area": 99.0}, ""),
    ({"components": 3, "gap": 9, "empty_start": 50}, ""),  # flags of their own
    ({"largest_area": 101.0}, "largest area 101 (in training {0} to 80)"),
    ({"area_roughness": 0.0}, ""),
    ({"area_roughness": 0.029}, ""),
    ({"area_roughness": 0.031}, "area roughness 0.031 (in training {1} to 0.01)"),
    ({"interior_mean": 0.77}, ""),
    ({"interior_mean": 0.75}, "interior mean 0.75 (in training 0.8 to 1)"),
)


@pytest.mark.parametrize(("figures", "told"), EACH)
def test_outliers_are_named_with_value_and_range(figures: dict[str, float], told: str) -> None:
    """Also by a model of an earlier version, which kept one end of each range."""
    shape = replace(CORD, **figures)
    assert outliers(shape, TRAINING) == [told.format(60, 0.004)] * bool(told)
    assert outliers(shape, OLD_TRAINING) == [told.format(0, 0)] * bool(told)


def test_a_label_that_is_too_small_is_an_outlier_where_the_smallest_is_known() -> None:
    small = replace(CORD, largest_area=47.0)
    assert outliers(small, TRAINING) == ["largest area 47 (in training 60 to 80)"]
    assert outliers(small, OLD_TRAINING) == []


def test_a_range_without_width_and_an_unknown_figure_set_no_limit() -> None:
    far = LabelShape(9, 900.0, 30, 30, 9, 0.9, 0.51)
    assert len(outliers(far, TRAINING)) == 3
    assert outliers(far, {}) == []
    alike = training_ranges([CORD, CORD])
    assert alike is not None
    assert outliers(far, alike) == []
    assert len(outliers(far, {**TRAINING, "largest_area": [80.0, 80.0]})) == 2


def test_figures_that_each_come_near_their_limits_are_an_outlier_together() -> None:
    """Three quarters of the way from 80 to 100 and half of that from 0.01 to 0.03: 1.25."""
    near = replace(CORD, largest_area=95.0, area_roughness=0.02)
    assert outliers(near, TRAINING) == [
        "largest area 95 (in training 60 to 80)",
        "area roughness 0.02 (in training 0.004 to 0.01)",
    ]
    assert outliers(replace(near, area_roughness=0.0149), TRAINING) == []  # 0.995
    # A fifth of the way from 60 to 48, and nine tenths from 0.8 to 0.76: the farther one first.
    small = replace(CORD, largest_area=57.6, interior_mean=0.764)
    assert [told.split()[0] for told in outliers(small, TRAINING)] == ["interior", "largest"]


def test_models_of_earlier_versions_are_read() -> None:
    assert known_range(OLD_TRAINING, "interior_mean") == (0.8, 1.0)
    assert known_range(OLD_TRAINING, "largest_area") == (0.0, 80.0)
