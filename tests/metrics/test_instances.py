"""Single objects: matched or not, panoptic quality, the table of objects."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from nnunet_softseg.metrics.instances import INSTANCE_COLUMNS, match_instances, numbered_objects


def boxes(*places: tuple[int, int, int], value: float = 1.0) -> np.ndarray:
    """Boxes of 2 x 2 voxels from `start` to `end` along the last axis, in row `row` of the first."""
    values = np.zeros((40, 6, 20))
    for row, start, end in places:
        values[row : row + 2, 2:4, start:end] = value
    return values


# Two are found, one exactly and one half as long again; one is missed; two are made up.
REFERENCE = boxes((2, 2, 8), (8, 2, 6), (14, 2, 8))
PREDICTION = boxes((2, 2, 8), (8, 2, 8), (20, 2, 8), (26, 2, 8))


def test_five_boxes_have_the_values_worked_out_by_hand() -> None:
    found = match_instances(PREDICTION, REFERENCE).measures()
    assert (found["true_positives"], found["false_positives"], found["false_negatives"]) == (2, 2, 1)
    assert found["rq"] == pytest.approx(0.5714285714285714, abs=1e-9)  # 2 / (2 + 1 + 0.5)
    assert found["sq"] == pytest.approx(0.8333333333333333, abs=1e-9)  # of 1 and 4 / 6
    assert found["pq"] == pytest.approx(0.4761904761904762, abs=1e-9)
    assert found["soft_sq"] == pytest.approx(found["sq"])  # masks have no other
    assert found["instance_sensitivity"] == pytest.approx(2 / 3)
    assert found["instance_precision"] == pytest.approx(2 / 4)


def test_a_half_of_overlap_is_no_match() -> None:
    reference = boxes((2, 2, 6))
    assert match_instances(boxes((2, 2, 10)), reference).measures()["true_positives"] == 0  # IoU 4 / 8
    just_above = boxes((2, 2, 9))  # 4 / 7
    assert match_instances(just_above, reference).measures()["sq"] == pytest.approx(4 / 7)


def test_without_a_match_the_qualities_are_zero() -> None:
    found = match_instances(boxes((2, 2, 6)), boxes((8, 2, 6))).measures()
    assert (found["rq"], found["sq"], found["pq"], found["soft_sq"]) == (0, 0, 0, 0)


def test_the_soft_quality_takes_the_values() -> None:
    # all 24 voxels of one hold 0.8 instead of 1: sum min / sum max
    found = match_instances(boxes((2, 2, 8), value=0.8), boxes((2, 2, 8))).measures()
    assert (found["sq"], found["soft_sq"]) == pytest.approx((1, 0.8))


def test_objects_drawn_as_one_agree_with_one_of_them_only() -> None:
    """Of 17 slices drawn as one lesion, 10 are the matched one, 6 another; the other way round is a split."""
    two, one = boxes((2, 2, 12), (2, 13, 19)), boxes((2, 2, 19))
    for prediction, reference in ((one, two), (two, one)):
        found = match_instances(prediction, reference).measures()
        assert found["true_positives"] == 1
        assert (found["sq"], found["soft_sq"]) == pytest.approx((10 / 17, 10 / 17))
        # 0.8 in all that is predicted; what only the other side has stays as it is, 7 or 1 + 6 slices
        soft = match_instances(0.8 * prediction, reference).measures()["soft_sq"]
        missed = 7 * (1.0 if prediction is two else 0.8)
        assert soft == pytest.approx(0.8 * 10 / (10 + missed))


def test_objects_that_touch_at_a_corner_are_one() -> None:
    corner = np.zeros((4, 4, 4))
    corner[1, 1, 1] = corner[2, 2, 2] = 1.0
    assert match_instances(corner, corner).measures()["true_positives"] == 1


def test_the_table_tells_volume_centre_value_and_overlap() -> None:
    affine = np.diag([0.5, 1.0, 2.0, 1.0])
    affine[:3, 3] = 10.0, 20.0, 30.0
    table = match_instances(0.9 * PREDICTION, REFERENCE).table(affine)
    assert list(table) == list(INSTANCE_COLUMNS)
    assert table["outcome"].tolist() == ["true_positive"] * 2 + ["false_negative"] + ["false_positive"] * 2
    longer = table.iloc[1]  # 2 x 2 x 6 voxels of 1 mm3 where the reference has 2 x 2 x 4
    assert (longer["volume_mm3"], longer["reference_volume_mm3"]) == pytest.approx((24, 16))
    assert (longer["x_mm"], longer["y_mm"], longer["z_mm"]) == pytest.approx((14.25, 22.5, 37.0))
    assert (longer["largest_value"], longer["iou"]) == pytest.approx((0.9, 4 / 6))
    missed, made_up = table.iloc[2], table.iloc[3]
    assert np.isnan(missed["volume_mm3"])
    assert (missed["largest_value"], missed["iou"]) == (0, 0)
    assert np.isnan(made_up["reference_volume_mm3"])
    assert made_up["x_mm"] == pytest.approx(10 + 0.5 * 20.5)


few_voxels = hnp.arrays(np.float32, (6, 5, 4), elements=st.floats(0, 1, width=32), fill=st.just(0.0))
# in a row, half of them in objects: what is added to a map joins several
row = hnp.arrays(np.float32, (1, 1, 16), elements=st.floats(0.25, 1, width=32), fill=st.nothing())
joined = st.tuples(row, row).map(lambda maps: (maps[0], np.maximum(*maps)))
pairs_of_maps = st.tuples(few_voxels, few_voxels) | joined | joined.map(lambda maps: maps[::-1])


@settings(max_examples=100)
@given(pairs_of_maps)
def test_counts_and_overlaps_are_those_of_a_search_through_all_pairs(
    maps: tuple[np.ndarray, np.ndarray],
) -> None:
    p, y = maps
    matches = match_instances(p, y)
    (first, n_first), (second, n_second) = (ndimage.label(each > 0.5, np.ones((3, 3, 3))) for each in (p, y))
    hard, soft = [], []
    for a in range(1, n_first + 1):
        for b in range(1, n_second + 1):
            inside, union = ((first == a) & (second == b)).sum(), (first == a) | (second == b)
            if inside / union.sum() > 0.5:
                hard.append(inside / union.sum())
                # on either side, what belongs to another object is not there
                ours, theirs = np.where(np.isin(first, (0, a)), p, 0), np.where(np.isin(second, (0, b)), y, 0)
                both = np.stack([ours, theirs]).astype(np.float64)[:, union]
                soft.append(both.min(axis=0).sum() / both.max(axis=0).sum())
    found = matches.measures()
    assert found["true_positives"] == len(hard)
    assert (found["false_positives"], found["false_negatives"]) == (n_first - len(hard), n_second - len(hard))
    assert found["sq"] == pytest.approx(np.mean(hard) if hard else 0)
    assert found["soft_sq"] == pytest.approx(np.mean(soft) if soft else 0, rel=1e-5)
    assert len(matches.table(np.eye(4))) == n_first + n_second - len(hard)


def test_a_thousand_lesions_take_less_than_five_seconds() -> None:
    reference = np.zeros((200, 200, 100), dtype=np.float32)
    corners = np.stack(np.meshgrid(*(np.arange(5, 195, 19),) * 2, np.arange(3, 93, 9)), -1).reshape(-1, 3)
    for x, y, z in corners:
        reference[x : x + 4, y : y + 4, z : z + 4] = 1.0
    prediction = np.roll(reference, 1, axis=0)  # IoU 3 / 5
    start = time.process_time()
    matches = match_instances(prediction, reference)
    found, table = matches.measures(), matches.table(np.eye(4))
    assert time.process_time() - start < 5
    assert (found["true_positives"], found["false_positives"]) == (1000, 0)
    assert found["pq"] == pytest.approx(0.6)
    assert len(table) == 1000


def balls(
    *centres_mm: tuple[float, float, float], radius_mm: float, spacing_mm: tuple[float, float, float]
) -> np.ndarray:
    """Voxels whose centre lies in one of the balls, on a grid of 40 x 30 x 30 mm."""
    axes = [np.arange(0.5 * step, size, step) for size, step in zip((40, 30, 30), spacing_mm, strict=True)]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    return (np.linalg.norm(places[..., None, :] - np.array(centres_mm), axis=-1) <= radius_mm).any(axis=-1)


@pytest.mark.parametrize("spacing_mm", [(0.5, 0.5, 0.5), (0.5, 0.5, 2.0)])
def test_balls_that_touch_are_split_in_the_plane_between_them(spacing_mm: tuple[float, float, float]) -> None:
    """Two balls of 7 mm, 12 mm apart: each is the ball less a cap of 1 mm height."""
    centres = (13.0, 15.0, 15.0), (25.0, 15.0, 15.0)
    above = balls(*centres, radius_mm=7.0, spacing_mm=spacing_mm)
    assert numbered_objects(above).max() == 1
    numbers = numbered_objects(above, spacing_mm)
    assert numbers.max() == 2
    cap_mm3 = np.pi * 1.0**2 * (3 * 7.0 - 1.0) / 3
    volume_mm3 = 4 / 3 * np.pi * 7.0**3 - cap_mm3
    for number in (1, 2):
        assert (numbers == number).sum() * np.prod(spacing_mm) == pytest.approx(volume_mm3, rel=0.02)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("thickness_mm", [0.1, 1.0, 5.0])
def test_discs_that_touch_are_split_in_an_image_of_a_plane(axis: int, thickness_mm: float) -> None:
    x, y = np.mgrid[:60, :40]
    plane = np.minimum(np.hypot(x - 20, y - 20), np.hypot(x - 40, y - 20)) <= 11
    assert numbered_objects(plane).max() == 1
    expected = numbered_objects(plane, (1.0, 1.0))
    assert expected.max() == 2
    above, spacing_mm = np.expand_dims(plane, axis), tuple(np.insert([1.0, 1.0], axis, thickness_mm))
    np.testing.assert_array_equal(numbered_objects(above, spacing_mm), np.expand_dims(expected, axis))
    found = match_instances(above.astype(float), above.astype(float), split_touching=spacing_mm)
    assert found.measures()["true_positives"] == 2


def test_one_ball_and_a_speck_stay_whole() -> None:
    above = balls((20.0, 15.0, 15.0), radius_mm=9.0, spacing_mm=(1.0, 1.0, 1.0))
    above[0, 0, 0] = True
    assert np.unique(numbered_objects(above, (1.0, 1.0, 1.0))).tolist() == [0, 1, 2]


def test_everything_is_one_object() -> None:
    assert (numbered_objects(np.ones((6, 6, 6), dtype=bool), (1.0, 1.0, 1.0)) == 1).all()


def test_touching_objects_count_when_they_are_split() -> None:
    spacing_mm = (1.0, 1.0, 1.0)
    both = balls((14.0, 15.0, 15.0), (25.0, 15.0, 15.0), radius_mm=7.0, spacing_mm=spacing_mm)
    one = balls((14.0, 15.0, 15.0), radius_mm=7.0, spacing_mm=spacing_mm)
    whole, split = (
        match_instances(one.astype(float), both.astype(float), split_touching=how).measures()
        for how in (None, spacing_mm)
    )
    assert (whole["true_positives"], whole["false_negatives"]) == (1, 0)  # more than half of the two is found
    assert (split["true_positives"], split["false_negatives"]) == (1, 1)
