"""Measures against values worked out by hand, and their laws."""

import math
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import gaussian_filter

from nnunet_softseg.metrics import overlap as metrics
from nnunet_softseg.metrics.measure_table import MEASURES

P = np.array([0.0, 0.2, 0.6, 1.0, 0.8], dtype=np.float32)
Y = np.array([0.0, 0.4, 0.4, 1.0, 1.0], dtype=np.float32)
maps = hnp.arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32))


def test_by_hand() -> None:
    # above 0.5: p has 3 voxels, y has 2, both have 2
    assert metrics.dice(P, Y) == pytest.approx(2 * 2 / 5)
    # minima 0, 0.2, 0.4, 1, 0.8 sum to 2.4; p sums to 2.6, y to 2.8
    assert metrics.soft_dice(P, Y) == pytest.approx(2 * 2.4 / 5.4)
    assert metrics.mean_absolute_error(P, Y) == pytest.approx((0.2 + 0.2 + 0.2) / 5)
    assert metrics.mean_absolute_error(P, Y, metrics.boundary(Y)) == pytest.approx(0.2)
    assert metrics.relative_volume_error(P, Y) == pytest.approx(100 * (2.6 - 2.8) / 2.8)
    assert metrics.soft_measures(P, Y, 0.5)["volume_mm3"] == pytest.approx(1.3)
    assert metrics.root_mean_square_error(P, Y) == pytest.approx(math.sqrt(3 * 0.04 / 5))
    assert metrics.root_mean_square_error(P, Y, metrics.boundary(Y)) == pytest.approx(0.2)
    assert math.isnan(metrics.root_mean_square_error(P, Y, np.zeros(5, dtype=bool)))


def test_exactly_a_half_is_below_the_threshold() -> None:
    p, y = np.array([0.5, 1.0, 0.0, 0.0]), np.array([1.0, 1.0, 0.5, 0.0])
    assert metrics.dice(p, y) == pytest.approx(2 / 3)
    found = metrics.case_measures(p, y, (1.0,))
    assert (found["dice"], found["hard_volume_mm3"], found["hard_rve_percent"]) == (2 / 3, 1, -50)
    assert metrics.case_measures(0.5 * y, y, (1.0,))["prediction_is_empty"] == 1


@pytest.mark.parametrize("value", [0.0, 0.4])
def test_less_than_one_voxel_in_sum_is_no_reference_for_a_percentage(value: float) -> None:
    faint, whole = np.array([0.0, 0.3, 0.6999]), np.array([0.0, 0.3, 0.7])
    prediction = np.array([value, 0.0, 0.0])
    for name, map_ in (("faint", faint), ("whole", whole)):
        found = metrics.case_measures(prediction, map_, (1.0,))["rve_percent"]
        expected = math.nan if name == "faint" else 100 * (value - 1)
        assert found == pytest.approx(expected, nan_ok=True), name


@given(maps)
def test_a_map_agrees_fully_with_itself(soft: np.ndarray) -> None:
    measures = metrics.soft_measures(soft, soft, 1.0)
    assert measures["mae"] == 0
    assert math.isnan(measures["soft_dice"]) if soft.sum() == 0 else measures["soft_dice"] == pytest.approx(1)


@given(maps, maps)
def test_bounds_and_symmetry(a: np.ndarray, b: np.ndarray) -> None:
    forward, back = metrics.soft_dice(a, b), metrics.soft_dice(b, a)
    assert (math.isnan(forward) and math.isnan(back)) or forward == pytest.approx(back)
    assert math.isnan(forward) or 0 <= forward <= 1 + 1e-9


@pytest.mark.parametrize(
    ("prediction", "reference", "dice", "soft_dice", "rve"),
    [
        (np.zeros(4), np.zeros(4), math.nan, math.nan, math.nan),
        (np.ones(4), np.zeros(4), 0.0, 0.0, math.nan),
        (np.zeros(4), np.ones(4), 0.0, 0.0, -100.0),
        (np.full(4, 0.4), np.ones(4), 0.0, 0.8 / 1.4, -60.0),
    ],
)
def test_empty_maps(
    prediction: np.ndarray, reference: np.ndarray, dice: float, soft_dice: float, rve: float
) -> None:
    found = metrics.soft_measures(prediction, reference, 1.0)
    for name, expected in {"dice": dice, "soft_dice": soft_dice, "rve_percent": rve}.items():
        assert found[name] == pytest.approx(expected, nan_ok=True), name


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"):
        metrics.soft_measures(np.zeros(3), np.zeros(4), 1.0)


def test_a_case_by_hand() -> None:
    prediction, reference = np.zeros((2, 20)), np.zeros((2, 20))
    prediction[0, 1:5] = [0.2, 0.6, 1.0, 0.8]
    reference[0, 1:5] = [0.4, 0.4, 1.0, 1.0]
    # voxels of 2 mm by 3 mm; above 0.5 lie columns 2, 3, 4 of the prediction, 3 and 4 of the reference; the
    # Brier score counts columns 0 to 5 and both rows: 3 mm beyond columns 1 and 4, and one row
    expected = {
        "dice": 4 / 5,
        "soft_dice": 2 * 2.4 / 5.4,
        "mae": 0.6 / 40,
        "rmse": math.sqrt(0.12 / 40),
        "boundary_mae": 0.2,
        "boundary_rmse": 0.2,
        "brier": 0.12 / 12,
        # 0.2 and 0.6 are off by 0.2, so is 0.8; 1.0 and the zeros have bins of their own
        "ece": 0.6 / 12,
        "volume_mm3": 2.6 * 6,
        "reference_volume_mm3": 2.8 * 6,
        "rve_percent": -100 * 0.2 / 2.8,
        "hard_volume_mm3": 18.0,
        "hard_reference_volume_mm3": 12.0,
        "hard_rve_percent": 50.0,
        # one of five surface voxels has another 2 mm away, the others lie on each other
        "asd_mm": 2 / 5,
        "hd95_mm": 2 * 0.9,  # between the second and the third of 0, 0, 2, at 0.95 * 2 = 1.9
        "surface_dice": 4 / 5,
        "prediction_is_empty": 0.0,
        "reference_is_empty": 0.0,
        # one object each, of 3 and 2 voxels
        "true_positives": 1.0,
        "false_positives": 0.0,
        "false_negatives": 0.0,
        "rq": 1.0,
        "sq": 2 / 3,
        "pq": 2 / 3,
        "soft_sq": (0.4 + 1.0 + 0.8) / (0.6 + 1.0 + 1.0),
        "instance_sensitivity": 1.0,
        "instance_precision": 1.0,
    }
    found = metrics.case_measures(prediction, reference, (3.0, 2.0))
    assert list(found) == list(MEASURES)
    assert found == pytest.approx(expected)
    wide = metrics.case_measures(prediction, reference, (3.0, 2.0), surface_dice_tolerance_mm=2.0)
    assert wide["surface_dice"] == 1


NAN, INF = math.nan, math.inf
# Both empty, only the prediction empty, only the reference empty. What is not empty is one voxel of 0.8 and
# one of 0.4 in an image of 100 voxels of 2 mm3.
EMPTY_CASES = {
    "dice": (NAN, 0.0, 0.0),
    "soft_dice": (NAN, 0.0, 0.0),
    "mae": (0.0, 0.012, 0.012),
    "rmse": (0.0, math.sqrt(0.008), math.sqrt(0.008)),
    "boundary_mae": (NAN, 0.6, NAN),
    "boundary_rmse": (NAN, math.sqrt(0.4), NAN),
    # around two voxels side by side, 3 mm: (2 + 3 + 3) * (1 + 3 + 3)
    "brier": (NAN, 0.8 / 56, NAN),
    "ece": (NAN, 1.2 / 56, NAN),
    "volume_mm3": (0.0, 0.0, 2.4),
    "reference_volume_mm3": (0.0, 2.4, 0.0),
    "rve_percent": (NAN, -100.0, NAN),
    "hard_volume_mm3": (0.0, 0.0, 2.0),
    "hard_reference_volume_mm3": (0.0, 2.0, 0.0),
    "hard_rve_percent": (NAN, -100.0, NAN),
    "asd_mm": (NAN, INF, INF),
    "hd95_mm": (NAN, INF, INF),
    "surface_dice": (NAN, 0.0, 0.0),
    "prediction_is_empty": (1.0, 1.0, 0.0),
    "reference_is_empty": (1.0, 0.0, 1.0),
    "true_positives": (0.0, 0.0, 0.0),
    "false_positives": (0.0, 0.0, 1.0),
    "false_negatives": (0.0, 1.0, 0.0),
    "rq": (NAN, 0.0, 0.0),
    "sq": (NAN, 0.0, 0.0),
    "pq": (NAN, 0.0, 0.0),
    "soft_sq": (NAN, 0.0, 0.0),
    "instance_sensitivity": (NAN, 0.0, NAN),
    "instance_precision": (NAN, 0.0, 0.0),
}


def test_every_measure_has_its_row_for_empty_maps() -> None:
    assert list(EMPTY_CASES) == list(MEASURES)


@pytest.mark.parametrize("name", EMPTY_CASES)
def test_a_row_for_empty_maps(name: str) -> None:
    nothing, something = np.zeros((1, 10, 10)), np.zeros((1, 10, 10))
    something[0, 4, 4:6] = 0.8, 0.4
    maps = [(nothing, nothing), (nothing, something), (something, nothing)]
    found = [metrics.case_measures(*pair, (2.0, 1.0, 1.0))[name] for pair in maps]
    assert found == pytest.approx(list(EMPTY_CASES[name]), nan_ok=True)


def test_a_map_that_stays_below_a_half_is_empty_for_hard_measures_only() -> None:
    faint, full = np.full((3, 3), 0.4), np.ones((3, 3))
    found = metrics.case_measures(faint, full, (1.0, 1.0))
    assert found["soft_dice"] == pytest.approx(0.8 / 1.4)
    assert found["rve_percent"] == pytest.approx(-60)
    assert (found["dice"], found["hard_rve_percent"], found["asd_mm"]) == (0, -100, INF)
    assert (found["prediction_is_empty"], found["reference_is_empty"]) == (1, 0)
    missed = metrics.case_measures(0 * faint, faint, (1.0, 1.0))
    assert missed["brier"] == pytest.approx(0.16)
    assert missed["ece"] == pytest.approx(0.4)
    both = metrics.case_measures(faint, faint, (1.0, 1.0))
    assert (both["soft_dice"], both["brier"], both["boundary_mae"]) == (1, 0, 0)
    assert all(math.isnan(both[name]) for name in ("dice", "asd_mm", "hd95_mm", "surface_dice"))


def blob(seed: int, steepness: float, threshold: float) -> np.ndarray:
    """A smooth object with soft edges, in part of the image or in all of it."""
    field = gaussian_filter(np.random.default_rng(seed).random((7, 6, 5)), 1.5)
    field = (field - field.min()) / np.ptp(field)
    return np.clip((field - threshold) * steepness + 0.5, 0, 1).astype(np.float32)


# what is false elsewhere counts in the first two; the others are numbers of objects
WITHOUT_A_BOUND = {"brier", "ece", "true_positives", "false_positives", "false_negatives"}
# a few values in an image mostly empty: what lies outside of the box around them has a share; or an object
maps_3d = hnp.arrays(
    np.float32, (7, 6, 5), elements=st.floats(0, 1, width=32, allow_subnormal=False), fill=st.just(0.0)
) | st.builds(blob, st.integers(0, 2**32 - 1), st.floats(1, 20), st.floats(0.2, 0.8))
lengths = st.sampled_from([0.5, 0.8, 1.0, 3.0, 5.0])
spacings = st.tuples(lengths, lengths, lengths)


@given(maps_3d, maps_3d, spacings)
def test_the_box_around_all_values_changes_nothing(
    p: np.ndarray, y: np.ndarray, spacing_mm: tuple[float, ...]
) -> None:
    found = metrics.case_measures(p, y, spacing_mm)
    whole = metrics.soft_measures(p, y, math.prod(spacing_mm))
    assert {name: found[name] for name in whole} == pytest.approx(whole, nan_ok=True)
    assert found["rmse"] == pytest.approx(metrics.root_mean_square_error(p, y))
    band = metrics.boundary(y)
    assert found["boundary_rmse"] == pytest.approx(metrics.root_mean_square_error(p, y, band), nan_ok=True)
    hard = metrics.relative_volume_error((p > 0.5).astype(float), (y > 0.5).astype(float))
    assert found["hard_rve_percent"] == pytest.approx(hard, nan_ok=True)


@given(maps_3d, maps_3d, spacings)
def test_values_in_their_range_and_symmetry(
    p: np.ndarray, y: np.ndarray, spacing_mm: tuple[float, ...]
) -> None:
    forward, back = metrics.case_measures(p, y, spacing_mm), metrics.case_measures(y, p, spacing_mm)
    for name in ("dice", "soft_dice", "mae", "rmse", "asd_mm", "hd95_mm", "surface_dice", "rq", "sq", "pq"):
        assert forward[name] == pytest.approx(back[name], nan_ok=True), name
    assert forward["volume_mm3"] == pytest.approx(back["reference_volume_mm3"])
    assert forward["hard_volume_mm3"] == pytest.approx(back["hard_reference_volume_mm3"])
    for name, value in forward.items():
        if MEASURES[name].unit in {"", "mm", "mm3"}:
            assert math.isnan(value) or value >= 0, name
        if not MEASURES[name].unit and name not in WITHOUT_A_BOUND:
            assert math.isnan(value) or value <= 1 + 1e-9, name
        if MEASURES[name].unit == "%":
            assert math.isnan(value) or value >= -100 - 1e-9, name
    assert forward["mae"] <= forward["rmse"] + 1e-9


@given(maps_3d, spacings)
def test_a_perfect_prediction_has_the_ideal_values(soft: np.ndarray, spacing_mm: tuple[float, ...]) -> None:
    assume((soft > 0.5).any())
    found = metrics.case_measures(soft, soft, spacing_mm)
    for name, measure in MEASURES.items():
        no_band = name.startswith("boundary") and not metrics.boundary(soft).any()
        no_size = name == "rve_percent" and soft.sum() < 1  # of less than a voxel no percentage is given
        if measure.ideal is not None and not no_band and not no_size:
            assert found[name] == pytest.approx(measure.ideal, abs=1e-12), name


NEVER_IMPROVED = ("dice", "soft_dice", "mae", "rmse", "boundary_mae", "boundary_rmse", "brier")


def is_better(name: str, after: float, before: float) -> bool:
    gain = (after - before) * (1 if MEASURES[name].higher_is_better else -1)
    return gain > 1e-9  # what sums round


@settings(max_examples=40)
@given(maps_3d, maps_3d, spacings, st.data())
def test_a_false_voxel_never_improves_a_measure(
    p: np.ndarray, y: np.ndarray, spacing_mm: tuple[float, ...], data: st.DataObject
) -> None:
    """Anywhere, and whatever the rest of the map is like."""
    outside = np.argwhere(y == 0)
    assume(len(outside))
    where = tuple(data.draw(st.sampled_from(outside.tolist())))
    worse = p.copy()
    worse[where] = data.draw(st.floats(float(p[where]), 1, width=32))
    before, after = metrics.case_measures(p, y, spacing_mm), metrics.case_measures(worse, y, spacing_mm)
    for name in NEVER_IMPROVED:
        assert not is_better(name, after[name], before[name]), name


@given(maps_3d, maps_3d, spacings, st.floats(0, 1, width=32, exclude_min=True))
def test_a_false_voxel_far_away_never_improves_calibration_and_surfaces(
    p: np.ndarray, y: np.ndarray, spacing_mm: tuple[float, ...], value: float
) -> None:
    """Beyond the margin of the reference, and farther from it than the two surfaces are from each other."""
    p, y = np.pad(p, ((0, 14),) * 3), np.pad(y, ((0, 14),) * 3)
    worse = p.copy()
    worse[-1, -1, -1] = value
    before, after = metrics.case_measures(p, y, spacing_mm), metrics.case_measures(worse, y, spacing_mm)
    surfaces = ["asd_mm", "hd95_mm", "surface_dice"] if (p > 0.5).any() else []  # else it is the first voxel
    for name in ("ece", *surfaces):
        assert not is_better(name, after[name], before[name]), name
    if (y > 0).any():
        assert after["ece"] > before["ece"] or value < 1e-6
        assert after["brier"] > before["brier"] or value < 1e-3
    # volumes: where the map is not too small already
    if before["rve_percent"] >= 0:
        assert after["rve_percent"] >= before["rve_percent"]


def test_false_voxels_count_by_their_squares() -> None:
    """0, 5 and 30 isolated ones."""
    y = np.zeros((60, 60))
    y[5:10, 5:10] = 1  # 11 x 11 voxels within 3 mm
    p = 0.9 * y
    scattered = [(row, column) for row in range(16, 60, 8) for column in range(16, 60, 8)]
    found = []
    for count in (0, 5, 30):
        for where in scattered[:count]:
            p[where] = 0.7
        found.append(metrics.case_measures(p, y, (1.0, 1.0))["brier"])
    assert found == pytest.approx([(25 * 0.01 + count * 0.49) / 121 for count in (0, 5, 30)])


@given(maps_3d, maps_3d, spacings, st.permutations(range(3)), st.integers(0, 3), st.floats(0.2, 5))
def test_turned_padded_and_scaled(
    p: np.ndarray,
    y: np.ndarray,
    spacing_mm: tuple[float, ...],
    order: list[int],
    padding: int,
    scale: float,
) -> None:
    p, y = np.pad(p, 7), np.pad(y, 7)  # with room for what counts around the object
    found = metrics.case_measures(p, y, spacing_mm)

    turned = tuple(spacing_mm[axis] for axis in order)
    assert metrics.case_measures(p.transpose(order), y.transpose(order), turned) == pytest.approx(
        found, nan_ok=True, rel=1e-9, abs=1e-9
    )

    larger, wider = (
        np.pad(p, padding),
        metrics.case_measures(np.pad(p, padding), np.pad(y, padding), spacing_mm),
    )
    share = p.size / larger.size  # the means over the image, and they alone, know of its size
    expected = found | {"mae": found["mae"] * share, "rmse": found["rmse"] * math.sqrt(share)}
    assert wider == pytest.approx(expected, nan_ok=True, rel=1e-9, abs=1e-9)

    scaled = metrics.case_measures(
        p, y, tuple(scale * length for length in spacing_mm), surface_dice_tolerance_mm=scale
    )
    power = {"mm": 1, "mm3": 3}
    for name in set(found) - {"brier", "ece"}:  # their margin is in mm
        factor = scale ** power.get(MEASURES[name].unit, 0)
        assert scaled[name] == pytest.approx(factor * found[name], nan_ok=True), name


def test_an_axis_of_one_voxel_changes_no_measure_of_a_picture() -> None:
    x, y = np.mgrid[:40, :40] - 20
    maps = [np.clip(radius + 0.5 - np.hypot(x, y), 0, 1) for radius in (12, 9)]
    flat = metrics.case_measures(*maps, (1.0, 1.0))
    assert flat["asd_mm"] == pytest.approx(3, abs=0.3)
    deep = metrics.case_measures(*(each[..., None] for each in maps), (1.0, 1.0, 1.0))
    assert deep == pytest.approx(flat)


def test_an_object_of_one_slice_in_a_volume_has_surface_on_both_sides() -> None:
    disc = np.zeros((20, 20, 3))
    disc[4:16, 4:16, 1] = 1
    smaller = np.zeros_like(disc)
    smaller[6:14, 6:14, 1] = 1
    whole = metrics.surface_distances(smaller > 0.5, disc > 0.5, (1.0, 1.0, 1.0))
    assert len(whole.to_reference_mm) == 64
    assert metrics.case_measures(smaller, disc, (1.0, 1.0, 1.0))["asd_mm"] == pytest.approx(whole.asd_mm())


def test_unknown_voxels_count_nowhere() -> None:
    """Of a cylinder, three slices of 31 are known: it measures what the whole does."""
    x, y = np.mgrid[:40, :40] - 20
    plane = np.hypot(x, y)[..., None]
    whole = [np.repeat(np.clip(radius + 0.5 - plane, 0, 1), 31, axis=2) for radius in (12, 9)]
    unknown = np.ones(whole[0].shape, dtype=bool)
    unknown[:, :, 5::10] = False
    maps = [np.where(unknown, 0, each) for each in whole]
    expected = metrics.case_measures(*(each[:, :, :1] for each in whole), (1.0, 1.0, 1.0))
    found = metrics.case_measures(*maps, (1.0, 1.0, 1.0), unknown=unknown)
    for name in ("mae", "rmse", "brier", "ece", "asd_mm", "surface_dice", "dice"):
        assert found[name] == pytest.approx(expected[name]), name
    assert metrics.soft_measures(*maps, 1.0, unknown=unknown)["mae"] == pytest.approx(expected["mae"])


def test_without_a_known_surface_there_is_no_distance() -> None:
    mask = np.zeros((5, 5, 5))
    mask[2, 2, 2] = 1
    found = metrics.case_measures(mask, mask, (1.0, 1.0, 1.0), unknown=mask == 0)
    assert (found["dice"], found["mae"], found["brier"]) == (1, 0, 0)
    assert all(math.isnan(found[name]) for name in ("asd_mm", "hd95_mm", "surface_dice"))
    nothing = np.zeros((5, 5, 5))
    assert metrics.case_measures(nothing, nothing, (1.0, 1.0, 1.0), unknown=nothing == 0)["mae"] == 0


def test_units_are_in_the_names() -> None:
    endings = {"mm": "_mm", "mm3": "_mm3", "%": "_percent"}
    for name, measure in MEASURES.items():
        assert measure.unit == next((unit for unit, end in endings.items() if name.endswith(end)), ""), name


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16])
def test_masks_of_any_type_are_maps(dtype: type) -> None:
    p, y = (np.random.default_rng(seed).random((5, 6, 7)) > 0.6 for seed in (0, 1))
    spacing_mm = (0.5, 0.5, 3.0)
    expected = metrics.case_measures(p.astype(np.float64), y.astype(np.float64), spacing_mm)
    assert metrics.case_measures(p.astype(dtype), y.astype(dtype), spacing_mm) == pytest.approx(
        expected, nan_ok=True
    )


def test_bad_arguments_of_a_case() -> None:
    a, b = np.ones((2, 2)), np.ones((2, 3))
    with pytest.raises(ValueError, match="one grid"):
        metrics.case_measures(a, b, (1.0, 1.0))
    with pytest.raises(ValueError, match=r"per axis \(2\)"):
        metrics.case_measures(a, a, (1.0,))
    with pytest.raises(ValueError, match="without a voxel"):
        metrics.case_measures(np.zeros((0, 2)), np.zeros((0, 2)), (1.0, 1.0))
    for pair in ((a, a), (a, 0 * a)):  # also where no surface is measured
        with pytest.raises(ValueError, match="0 mm or more"):
            metrics.case_measures(*pair, (1.0, 1.0), surface_dice_tolerance_mm=-1)


@pytest.mark.parametrize("residue", [0.0, 1e-3])
def test_cost_of_a_full_size_image(residue: float) -> None:
    """600 of them must take 5 minutes on two cores in 4 GB: one second and 2 GB each, with the reading."""
    x, y, z = np.meshgrid(*map(np.arange, (64, 192, 320)), indexing="ij", sparse=True)
    distance = np.sqrt((x - 32 - 2 * np.sin(z / 30)) ** 2 + (y - 96 - 8 * np.sin(z / 60)) ** 2)
    reference = np.clip(6.5 - distance, 0, 1).astype(np.float32)
    prediction = np.maximum(np.clip(6.2 - distance, 0, 1), residue).astype(np.float32)
    start = (
        time.process_time()
    )  # a machine that is busy with other things does not slow the processor's clock
    found = metrics.case_measures(prediction, reference, (1.0, 1.0, 1.0))
    seconds = time.process_time() - start
    tracemalloc.start()
    metrics.case_measures(prediction, reference, (1.0, 1.0, 1.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["hard_reference_volume_mm3"] == pytest.approx(math.pi * 36 * 320, rel=0.02)
    assert found["dice"] > 0.9
    assert seconds < 1
    assert peak < 1e9
