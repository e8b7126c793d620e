"""The laws of the soft label: what it must be whatever the masks are, and how near it comes to the truth."""

import itertools
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sliced_masks import DIRECTIONS, ellipses, rectangles, stored

from nnunet_softseg.errors import UserError
from nnunet_softseg.labels.contrasts import average
from nnunet_softseg.labels.contrasts.average import SoftGroundTruth, choose_reference, soft_ground_truth
from nnunet_softseg.labels.contrasts.settings import GroundTruthSettings
from nnunet_softseg.labels.contrasts.volume import Volume, upright
from nnunet_softseg.phantom import PhantomSpec, Simulated, simulate
from nnunet_softseg.phantom.acquisition import simulate_subject

SLICES = 8
SHAPE = (22, 20, SLICES)
STILL = np.tile((7, 8), (SLICES, 1))
CORD = rectangles(SHAPE, STILL)
shifts = arrays(np.int64, (SLICES, 2), elements=st.integers(-4, 4))
directions = pytest.mark.parametrize("directions", DIRECTIONS)


def soft(masks: dict[str, Volume], **how: object) -> SoftGroundTruth:
    return soft_ground_truth(masks, GroundTruthSettings(**how))  # type: ignore[arg-type]


def only(mask: np.ndarray, *slices: int) -> np.ndarray:
    """The mask in these slices, nothing in others."""
    return mask * np.isin(np.arange(mask.shape[2]), slices)


def turned(volume: Volume) -> np.ndarray:
    return upright(volume).values


@directions
@settings(max_examples=15)
@given(pixels=arrays(np.uint8, (9, 8, SLICES), elements=st.integers(0, 1)))
def test_identical_masks_give_the_mask_itself(directions: str, pixels: np.ndarray) -> None:
    mask = np.zeros(SHAPE, np.float32)
    mask[6:15, 5:13] = pixels
    mask[10, 9, 2] = 1
    placed = stored(mask, directions, (0.7, 0.7, 2.0), (-31.7, 12.3, 44.1))
    truth = soft(dict.fromkeys(("T1w", "T2w", "dwi"), placed), max_jump_mm=np.inf)
    for label in truth.native.values():
        np.testing.assert_array_equal(label.values, placed.values)
        np.testing.assert_array_equal(label.affine, placed.affine)


@directions
def test_one_contrast_alone_returns_its_mask_soft_or_hard(directions: str) -> None:
    mask = ellipses((np.arange(22.0), np.arange(20.0)), np.tile((10.2, 9.1), (SLICES, 1)))
    placed = stored(mask, directions, (1.0, 1.0, 5.0))
    truth = soft({"dwi": placed}, trim_mm=8.0, smooth_mm=5.0, rotation=True)
    assert truth.reference == "dwi"
    np.testing.assert_array_equal(truth.native["dwi"].values, placed.values)


@directions
@pytest.mark.parametrize("names", [("T2w",), ("T2w", "dwi")])
def test_slices_of_small_shares_are_no_empty_ones(directions: str, names: tuple[str, ...]) -> None:
    """Where a structure ends within a slice, or is thin, no voxel of it is half full."""
    shares = np.ones(SLICES, np.float32)
    shares[[0, 3, -1]] = 0.4, 0.3, 0.1
    placed = stored(CORD * shares, directions, (1.0, 1.0, 5.0))
    for label in soft(dict.fromkeys(names, placed)).native.values():
        np.testing.assert_array_equal(label.values, placed.values)


@directions
@settings(max_examples=10)
@given(one=shifts, other=shifts)
def test_moved_copies_come_back_as_they_went(directions: str, one: np.ndarray, other: np.ndarray) -> None:
    """Forward and back: the soft label is each contrast's own mask, wherever its slices have moved."""
    masks = {
        name: stored(rectangles(SHAPE, STILL + shift), directions, (0.9, 0.9, 3.0))
        for name, shift in (("T2w", np.zeros(2, int)), ("dwi", one), ("mt-on", other))
    }
    truth = soft(masks, max_jump_mm=np.inf)
    for name, mask in masks.items():
        np.testing.assert_array_equal(truth.native[name].values, mask.values)
    np.testing.assert_allclose(truth.contrasts["dwi"].shift_mm, 0.9 * one, atol=1e-9)
    np.testing.assert_allclose(truth.contrasts["mt-on"].shift_mm, 0.9 * other, atol=1e-9)
    assert truth.contrasts["dwi"].measured.all()


@directions
def test_parts_of_voxels_forward_and_back_give_the_mask_away_from_its_boundary(directions: str) -> None:
    pixels = (np.arange(40) * 0.5 - 10, np.arange(36) * 0.5 - 9)
    drift = np.stack([np.linspace(-1.7, 1.3, SLICES), np.linspace(0.4, -2.1, SLICES)], axis=1)
    masks = {
        "T2w": stored(ellipses(pixels, np.zeros((SLICES, 2))), directions, (0.5, 0.5, 3.0)),
        "dwi": stored(ellipses(pixels, drift), directions, (0.5, 0.5, 3.0)),
    }
    truth = soft(masks)
    for name, mask in masks.items():
        # Linear interpolation of a boundary one voxel wide; the parts of a voxel at it are up to 1/4 wrong.
        difference = np.abs(truth.native[name].values - mask.values)
        assert difference.max() < 0.2
        assert difference.mean() < 0.005
        assert truth.native[name].values.sum() == pytest.approx(mask.values.sum(), rel=1e-3)


@directions
def test_a_contrast_that_covers_half_does_not_change_the_other_half(directions: str) -> None:
    larger = rectangles(SHAPE, STILL - 1, (9, 7))
    masks = {"T1w": stored(larger, directions), "T2w": stored(CORD, directions)}
    without = soft(masks)
    half = stored(only(rectangles(SHAPE, STILL, (5, 5)), 0, 1, 2, 3), directions)
    with_half = soft(masks | {"dwi": half})
    for name in masks:
        before, after = turned(without.native[name]), turned(with_half.native[name])
        np.testing.assert_array_equal(after[:, :, 4:], before[:, :, 4:])
        assert (after[:, :, :4] != before[:, :, :4]).any()


def test_the_denominator_is_the_number_of_contrasts_that_cover_the_slice() -> None:
    small = rectangles(SHAPE, STILL + 2, (3, 1))
    masks = {
        "T2w": stored(CORD),
        "T1w": stored(only(small, *range(6))),
        "dwi": stored(only(small, *range(3))),
    }
    truth = soft(masks)
    inside = small[:, :, 0] > 0
    rim = (CORD[:, :, 0] > 0) & ~inside
    for number, rim_value in ((1, 1 / 3), (4, 1 / 2), (7, 1.0)):
        plane = turned(truth.native["T2w"])[:, :, number]
        np.testing.assert_allclose(plane[inside], 1.0)
        np.testing.assert_allclose(plane[rim], rim_value, rtol=1e-6)
    np.testing.assert_array_equal(truth.contrasts["dwi"].coverage, np.arange(SLICES) < 3)
    np.testing.assert_array_equal(truth.contrasts["dwi"].measured, np.arange(SLICES) < 3)
    assert not turned(truth.native["dwi"])[:, :, 3:].any()


def test_a_contrast_has_a_label_where_it_has_a_mask_also_where_the_reference_has_none() -> None:
    masks = {"T2w": stored(only(CORD, 2, 3, 4)), "T1w": stored(only(CORD, 1, 2, 3, 4, 5))}
    truth = soft(masks)
    np.testing.assert_array_equal(truth.native["T2w"].values, masks["T2w"].values)
    np.testing.assert_array_equal(truth.native["T1w"].values, masks["T1w"].values)
    np.testing.assert_array_equal(truth.contrasts["T2w"].coverage, [0, 0, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(truth.contrasts["T1w"].coverage, [0, 1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(truth.contrasts["T1w"].measured, [0, 0, 1, 1, 1, 0, 0, 0])


def test_coverage_fades_over_one_slice_of_the_contrast() -> None:
    """From the last slice with a mask to the next one, the weight falls linearly; so does what it adds."""
    thick = stored(rectangles((22, 20, 2), STILL[:2], (9, 7)), "RAS", (1, 1, 4), (-1, -1, 2))
    fine = stored(rectangles((22, 20, 12), np.tile((7, 8), (12, 1))), "RAS", (1, 1, 1))
    truth = soft({"T2w": fine, "dwi": thick})
    weight = truth.contrasts["dwi"].coverage  # middles at 2 and 6 mm
    np.testing.assert_allclose(weight, [0.5, 0.75, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0])
    rim = turned(truth.native["T2w"])[6, 10]
    np.testing.assert_allclose(rim, weight / (1 + weight), atol=1e-6)


@settings(max_examples=10)
@given(order=st.permutations(["T1w", "T2w", "dwi", "mt-on"]), shift=shifts)
def test_the_order_of_contrasts_does_not_matter(order: list[str], shift: np.ndarray) -> None:
    masks = {
        "T1w": stored(rectangles(SHAPE, STILL + shift, (6, 6))),
        "T2w": stored(CORD, "LPS", (0.8, 0.8, 1.1)),
        "dwi": stored(rectangles((22, 20, 3), STILL[:3], (5, 5)), "PIR", (0.9, 0.9, 3.0)),
        "mt-on": stored(rectangles(SHAPE, STILL - shift, (7, 4)), "oblique"),
    }
    one, other = soft(masks), soft({name: masks[name] for name in order})
    for name in one.native:
        np.testing.assert_array_equal(one.native[name].values, other.native[name].values)
    assert list(one.contrasts) == list(other.contrasts)


@settings(max_examples=40)
@given(data=st.data())
def test_whatever_the_masks_labels_lie_in_0_to_1_on_the_grids_of_the_masks(data: st.DataObject) -> None:
    masks = {}
    for name in ("T1w", "T2w", "dwi"):
        shape = tuple(data.draw(st.integers(1, 7)) for _ in range(3))
        values = data.draw(arrays(np.float32, shape, elements=st.sampled_from((0.0, 0.3, 0.7, 1.0))))
        voxel_mm = tuple(data.draw(st.sampled_from((0.5, 1.0, 5.0))) for _ in range(3))
        first_mm = tuple(data.draw(st.floats(-6, 6)) for _ in range(3))
        masks[name] = stored(values, data.draw(st.sampled_from(list(DIRECTIONS))), voxel_mm, first_mm)
    how = {
        "rotation": data.draw(st.booleans()),
        "box": data.draw(st.booleans()),
        "smooth_mm": data.draw(st.sampled_from((0.0, 4.0))),
        "trim_mm": data.draw(st.sampled_from((0.0, 2.0))),
        "leave_out_implausible": data.draw(st.booleans()),
    }
    kept = {name: mask.values.copy() for name, mask in masks.items()}
    if all(mask.values.max() <= 0.5 for mask in masks.values()):
        with pytest.raises(UserError, match="no contrast with a usable mask"):
            soft(masks, **how)
        return
    truth = soft(masks, **how)
    assert sorted([*truth.native, *truth.skipped]) == sorted(masks)
    for name, label in truth.native.items():
        mask = masks[name]
        assert label.values.dtype == np.float32
        assert label.values.shape == mask.values.shape
        np.testing.assert_array_equal(label.affine, mask.affine)
        assert np.isfinite(label.values).all()
        assert label.values.min() >= 0
        assert label.values.max() <= 1
    for alignment in truth.contrasts.values():
        for row in (alignment.shift_mm, alignment.rotation_deg, alignment.coverage, alignment.height_mm):
            assert len(row) == turned(masks[truth.reference]).shape[2]
            assert np.isfinite(row).all()
        assert 0 <= alignment.agreement <= 1 or np.isnan(alignment.agreement)  # nothing above 0.5 is left
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask.values, kept[name])


@settings(max_examples=25)
@given(
    strays=st.lists(
        st.tuples(st.integers(0, 21), st.integers(0, 19), st.integers(0, SLICES - 1)), max_size=4
    ),
    shift=shifts,
    rotation=st.booleans(),
)
def test_nothing_is_lost_by_looking_only_around_the_cord(
    strays: list[tuple[int, int, int]], shift: np.ndarray, rotation: bool
) -> None:
    mask = rectangles(SHAPE, STILL + shift)
    for stray in strays:
        mask[stray] = 1
    masks = {
        "T2w": stored(only(CORD, 2, 3, 4, 5)),
        "dwi": stored(mask, "oblique", (1.1, 0.9, 1.3), (1.0, 2.0, -1.0)),
        "T1w": stored(rectangles(SHAPE, STILL - shift), "LPS", (0.9, 1.0, 1.2)),
        "mt-on": stored(rectangles((22, 20, 3), STILL[:3]), "LPS", (0.9, 1.0, 4.0)),
        "sag": stored(rectangles((8, 20, SLICES), STILL // (3, 1), (3, 5)), "PIR", (3.3, 1.0, 1.0)),
    }
    near = soft(masks, rotation=rotation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(average, "_windows_mm", lambda aligned, *, box: dict.fromkeys(aligned.contrasts, 1e4))
        everywhere = soft(masks, rotation=rotation)
    for name in masks:
        np.testing.assert_array_equal(near.native[name].values, everywhere.native[name].values)


def test_contrasts_that_drift_apart_beyond_the_reference_are_still_seen() -> None:
    apart = np.stack([np.arange(SLICES), np.zeros(SLICES, int)], axis=1) * (np.arange(SLICES) > 1)[:, None]
    shape = (32, 20, SLICES)
    places = np.tile((13, 8), (SLICES, 1))
    one, other = (rectangles(shape, places + sign * apart) for sign in (1, -1))
    reference = only(rectangles(shape, places), 0, 1)
    truth = soft({"T2w": stored(reference), "T1w": stored(one), "dwi": stored(other)})
    np.testing.assert_array_equal(truth.native["T1w"].values[:, :, 2:], ((one + other) / 2)[:, :, 2:])


def test_orientation_on_disk_changes_nothing() -> None:
    rng = np.random.default_rng(5)
    shapes = {"T1w": rng.integers(-2, 3, (SLICES, 2)), "T2w": np.zeros((SLICES, 2), int)}
    results = []
    for one, other in itertools.product(("RAS", "LPS", "PIR"), repeat=2):
        masks = {
            "T1w": stored(rectangles(SHAPE, STILL + shapes["T1w"], (6, 6)), one, (1, 1, 1.5), (0.3, 0.2, -1)),
            "T2w": stored(rectangles(SHAPE, STILL + shapes["T2w"]), other, (0.8, 0.8, 1.0)),
        }
        truth = soft(masks)
        results.append((turned(truth.native["T1w"]), turned(truth.native["T2w"])))
    for result in results[1:]:
        for label, first in zip(result, results[0], strict=True):
            np.testing.assert_allclose(label, first, atol=1e-5)


def test_a_thick_slice_is_the_mean_over_its_thickness() -> None:
    """In the five thin slices of a thick one the cord is 1, 3, 5, 7, 9 voxels wide."""
    thin = np.zeros((19, 19, 15), np.float32)
    for number in range(15):
        half = number % 5
        thin[9 - half : 10 + half, 7:12, number] = 1
    thick = np.zeros((19, 19, 3), np.float32)
    thick[7:12, 7:12] = 1
    masks = {
        "T2w": stored(thin, "LPS", (1, 1, 1), (0, 0, -2)),
        "dwi": stored(thick, "LPS", (1, 1, 5), (0, 0, 0)),
    }
    of_thin = 2 * turned(soft(masks).native["dwi"])[:, 9, 1] - thick[:, 9, 1]
    share = np.mean([thin[:, 9, number] for number in range(5, 10)], axis=0)
    np.testing.assert_allclose(of_thin, share, atol=0.1)  # neighbours seep in by half a thin slice
    point = 2 * turned(soft(masks, box=False).native["dwi"])[:, 9, 1] - thick[:, 9, 1]
    np.testing.assert_allclose(point, thin[:, 9, 7], atol=1e-5)
    with_gap = {**masks, "dwi": Volume(masks["dwi"].values, masks["dwi"].affine, thickness_mm=1.0)}
    np.testing.assert_allclose(2 * turned(soft(with_gap).native["dwi"])[:, 9, 1] - thick[:, 9, 1], point)


@pytest.mark.parametrize("voxel_mm", [(3.0, 0.5, 0.5), (0.5, 3.0, 0.5), (2.0, 2.0, 0.5)])
@directions
def test_a_voxel_that_is_large_in_plane_is_the_mean_over_it(
    directions: str, voxel_mm: tuple[float, float, float]
) -> None:
    """Sagittal and coronal slices, thick across the cord: the share of an ellipse in each voxel."""

    def upright_cord(voxel_mm: tuple[float, float, float]) -> Volume:
        pixels = [size * (np.arange(np.ceil(24 / size)) + 0.5) - 12 for size in voxel_mm[:2]]
        share = ellipses((pixels[0], pixels[1]), np.zeros((SLICES, 2)), (5.0, 3.5))
        return stored(share, directions, voxel_mm, (pixels[0][0], pixels[1][0], 0.0))

    fine = upright_cord((0.5, 0.5, 0.5))
    large = upright_cord(voxel_mm)
    label = soft({"T2w": large, **{f"fine{number}": fine for number in range(5)}}).native["T2w"].values
    assert np.abs(label - large.values).max() < 0.03
    pixel_mm2 = voxel_mm[0] * voxel_mm[1]
    assert label.sum() / SLICES * pixel_mm2 == pytest.approx(np.pi * 5 * 3.5, rel=0.01)


def leaning(z: np.ndarray) -> Volume:
    """A cord that leans by 31 degrees to anterior, in slices at these heights."""
    pixels = (np.arange(28) * 0.5 - 7, np.arange(80) * 0.5 - 20)
    values = ellipses(pixels, z[:, None] * np.array([0.0, 0.6]), (3.0, 2.5))
    return stored(values, "RAS", (0.5, 0.5, float(z[1] - z[0])), (-7.0, -20.0, float(z[0])))


def test_between_thick_slices_and_beyond_them_a_leaning_cord_stays_one_cord() -> None:
    """In slices 5 mm apart, read straight up, it would fall in halves that lie 3 mm apart."""
    masks = {"T2w": leaning(np.arange(-15, 15.1, 0.5)), "dwi": leaning(np.arange(-10, 10.1, 5.0))}
    truth = soft(masks)
    weight = truth.contrasts["dwi"].coverage
    assert ((weight > 0.5) & (weight < 1)).sum() == 8  # beyond the last slices, up to half a slice
    assert np.abs(truth.native["T2w"].values - masks["T2w"].values).max() < 0.15


def test_where_the_reference_ends_the_cord_is_that_of_the_others() -> None:
    masks = {
        "T2w": leaning(np.arange(-15, -4.9, 0.5)),
        "T1w": leaning(np.arange(-15, 15.1, 0.5)),
        "dwi": leaning(np.arange(-10, 5.1, 5.0)),
    }
    truth = soft(masks)
    assert np.abs(truth.native["T1w"].values - masks["T1w"].values).max() < 0.15


def test_trimming_leaves_out_the_ends_of_all_but_the_reference() -> None:
    larger = rectangles(SHAPE, STILL - 1, (9, 7))
    masks = {"T2w": stored(CORD, voxel_mm=(1, 1, 2)), "T1w": stored(larger, voxel_mm=(1, 1, 2))}
    truth = soft(masks, trim_mm=4.0)  # two slices of 2 mm at either end
    middle = (np.arange(SLICES) >= 2) & (np.arange(SLICES) < 6)
    np.testing.assert_array_equal(truth.contrasts["T1w"].coverage, middle)
    np.testing.assert_array_equal(truth.contrasts["T2w"].coverage, 1)
    np.testing.assert_array_equal(turned(truth.native["T2w"])[6, 10], np.where(middle, 0.5, 0.0))
    np.testing.assert_array_equal(turned(truth.native["T1w"])[6, 10], np.where(middle, 0.5, 0.0))


def test_slices_that_are_trimmed_do_not_count_for_the_agreement() -> None:
    """T1w shows the same cord as T2w, and 20 slices more at either end, of which 12 are trimmed."""
    tall = rectangles((22, 20, 60), np.tile((7, 8), (60, 1)))
    masks = {"T2w": stored(only(tall, *range(20, 40))), "T1w": stored(tall)}
    truth = soft(masks, trim_mm=12.0, leave_out_implausible=True)
    assert truth.skipped == {}
    assert truth.contrasts["T1w"].agreement == 1
    np.testing.assert_array_equal(truth.native["T1w"].values, only(tall, *range(12, 48)))
    wide = rectangles((22, 20, 60), np.tile((7, 6), (60, 1)), (7, 9))
    truth = soft({**masks, "T1w": stored(wide)}, trim_mm=12.0)
    # In 20 of its 36 slices 28 of T1w's 63 voxels are not in T2w: 0.5 there, which is not above 0.5.
    found, shared = 36 * 63, 20 * 35 + 16 * 63
    assert truth.contrasts["T1w"].agreement == pytest.approx(2 * shared / (found + shared))


def test_what_is_trimmed_away_altogether_is_skipped() -> None:
    masks = {"T2w": stored(CORD), "T1w": stored(CORD)}
    truth = soft(masks, trim_mm=4.5)
    assert truth.skipped == {"T1w": "nothing is left of it after trimming 4.5 mm at both ends"}
    assert list(truth.native) == ["T2w"]


def test_what_the_image_of_the_reference_does_not_reach_is_not_lost() -> None:
    """T1w goes on above T2w: there its soft label is that of T1w and of dwi, which lies as it did below."""
    tall = rectangles((22, 20, 16), np.tile((7, 8), (16, 1)))
    moved = rectangles((22, 20, 16), np.tile((9, 7), (16, 1)))
    truth = soft({"T2w": stored(CORD), "T1w": stored(tall), "dwi": stored(moved, "LPS")})
    np.testing.assert_array_equal(turned(truth.native["T1w"]), tall)
    np.testing.assert_array_equal(turned(truth.native["dwi"]), moved)


def test_empty_and_far_contrasts_are_skipped_with_a_reason() -> None:
    masks = {
        "T2w": stored(CORD),
        "T1w": stored(np.zeros(SHAPE, np.float32)),
        "dwi": stored(CORD, first_mm=(0, 0, 100)),
        "mt-on": stored(0.4 * CORD),
        "mt-off": stored(CORD),
    }
    truth = soft(masks, contrasts=("T1w", "T2w", "dwi", "mt-on"))
    assert truth.skipped == {
        "T1w": "its mask is empty",
        "dwi": "no overlap with T2w along S-I: its mask lies between z = 100 and 107 mm, "
        "that of T2w between z = 0 and 7 mm",
        "mt-on": "no value of its mask exceeds 0.5",
        "mt-off": "not among the contrasts that were asked for",
    }
    np.testing.assert_array_equal(truth.native["T2w"].values, CORD)


def test_nothing_left_is_an_error_with_the_reasons() -> None:
    masks = {"T2w": stored(np.zeros(SHAPE, np.float32)), "T1w": stored(CORD)}
    with pytest.raises(UserError, match=r"T1w: not among the contrasts .* T2w: its mask is empty"):
        soft(masks, contrasts=("T2w",))
    with pytest.raises(UserError, match="no masks at all"):
        soft({})


@pytest.mark.parametrize(("value", "found"), [(2.0, "0 to 2"), (-0.5, "-0.5 to 1"), (np.nan, "nan to nan")])
def test_values_that_are_no_mask_are_refused(value: float, found: str) -> None:
    values = CORD.copy()
    values[0, 0, 0] = value
    with pytest.raises(UserError, match=rf"mask of T1w: expected values in \[0, 1\], found {found}"):
        soft({"T1w": stored(values), "T2w": stored(CORD)})


def test_the_reference_is_the_one_wanted_or_the_finest_along_the_cord() -> None:
    masks = {
        "dwi": stored(CORD, voxel_mm=(0.4, 0.4, 5)),
        "T1w": stored(only(CORD, 0, 1, 2), voxel_mm=(1, 1, 1)),
        "MP2RAGE": stored(CORD, voxel_mm=(1, 1, 1)),
        "T2w": stored(np.zeros(SHAPE, np.float32)),
    }
    assert choose_reference(masks, "dwi") == ("dwi", None)
    name, reason = choose_reference(masks, "T2w")
    assert name == "MP2RAGE"
    assert reason == "T2w cannot be the reference, its mask is empty: MP2RAGE has the thinnest slices (1 mm)"
    assert "it is missing" in (choose_reference(masks, "T2star")[1] or "")
    assert soft(masks).reference == "MP2RAGE"
    with pytest.raises(UserError, match=r"no mask holds anything \(masks of: T2w\)"):
        choose_reference({"T2w": masks["T2w"]}, "T2w")


def implausible_masks() -> dict[str, Volume]:
    jump = STILL + np.array([[4, 0] if number == 5 else [0, 0] for number in range(SLICES)])
    masks = {name: stored(CORD) for name in ("T1w", "T2w", "dwi")}
    masks["far"] = stored(CORD, first_mm=(9, -8, 0))
    masks["jumping"] = stored(rectangles(SHAPE, jump))
    masks["tiny"] = stored(rectangles(SHAPE, STILL + 2, (3, 1)))
    return masks


def test_the_implausible_is_named_with_numbers() -> None:
    truth = soft(implausible_masks())
    doubts = {name: alignment.warnings for name, alignment in truth.contrasts.items() if alignment.warnings}
    assert doubts == {
        "far": ("shift of 12.0 mm at z = 0 mm, more than 10 mm",),
        "jumping": ("shift changes by 4.0 mm between slices at z = 4 and 5 mm, more than 3 mm",),
        "tiny": ("agreement with the average (Dice) is 0.16, less than 0.75",),
    }
    assert truth.contrasts["T1w"].agreement == pytest.approx(1.0)
    assert truth.skipped == {}


def test_the_implausible_can_be_left_out() -> None:
    truth = soft(implausible_masks(), leave_out_implausible=True)
    assert list(truth.native) == ["T1w", "T2w", "dwi"]
    assert truth.skipped["far"] == "left out: shift of 12.0 mm at z = 0 mm, more than 10 mm"
    assert sorted(truth.skipped) == ["far", "jumping", "tiny"]
    np.testing.assert_array_equal(truth.native[truth.reference].values, CORD)


def test_a_reference_that_most_contradict_is_the_one_that_is_doubted() -> None:
    masks = {name: stored(CORD) for name in ("T1w", "dwi", "mt-on")}
    masks["T2w"] = stored(CORD, first_mm=(15, 0, 0))
    truth = soft(masks)
    assert truth.contrasts["T2w"].warnings == ("3 of 3 contrasts lie implausibly against it, against T1w 1",)
    without = soft(masks, leave_out_implausible=True)
    assert without.reference == "T1w"
    assert sorted(without.native) == ["T1w", "dwi", "mt-on"]
    assert without.skipped["T2w"].startswith("left out: 3 of 3 contrasts")


def tube(degrees: float | np.ndarray) -> Volume:
    """A tube of 4 mm radius that leans to anterior, by angle per slice: ellipses, longer by 1 / cosine."""
    lean = np.radians(np.broadcast_to(degrees, 40))
    line = np.cumsum(np.tan(lean))
    pixels = np.arange(12.0) - 5.5, np.arange(44.0) - 21.5
    planes = [
        ellipses(pixels, np.array([[0, y]]), (4.0, 4.0 / np.cos(angle)))
        for y, angle in zip(line - line.mean(), lean, strict=True)
    ]
    return stored(np.concatenate(planes, axis=2))


@pytest.mark.parametrize(
    ("of_reference", "of_contrast", "doubt"),
    [
        (0, 20, "leans by 20 degrees against the reference's: shifts change its area there by +6 %"),
        (20, 0, "leans by 20 degrees against the reference's: shifts change its area there by -6 %"),
        (15, 25, "leans by 10 degrees against the reference's: shifts change its area there by +7 %"),
        (0, 13, ""),  # 1 / cosine is 1.026
        (-12, 12, ""),  # the sections of both are as long
    ],
)
def test_a_neck_that_nodded_is_doubted_by_what_its_area_changes(
    of_reference: float, of_contrast: float, doubt: str
) -> None:
    masks = {"T2w": tube(of_reference), "T1w": tube(of_contrast)}
    truth = soft(masks)
    told = truth.contrasts["T1w"].warnings
    assert [doubt] * bool(doubt) == [line.split("cord ")[1].split(", more")[0] for line in told]
    assert truth.contrasts["T2w"].warnings == ()
    # areas across the cord are those in the slices times the cosine: half of the change stays
    ratio = np.cos(np.radians(of_reference)) / np.cos(np.radians(of_contrast))
    found = truth.native["T2w"].values[:, :, 10:30].sum() / masks["T2w"].values[:, :, 10:30].sum()
    assert found == pytest.approx((1 + ratio) / 2, abs=0.003)


@pytest.mark.parametrize("bent", ["T1w", "T2w"])
def test_a_neck_that_bends_is_doubted_though_all_in_all_it_does_not_lean(bent: str) -> None:
    """From -30 to 30 degrees, 1 / cosine is 1.05 in the mean, and the angle 15 degrees."""
    masks = {name: tube(np.linspace(-30, 30, 40) if name == bent else 0) for name in ("T2w", "T1w")}
    (told,) = (line for line in soft(masks).contrasts["T1w"].warnings if "leans" in line)
    degrees, percent = map(int, re.findall(r"by ([+-]?\d+)", told))
    assert degrees == pytest.approx(15, abs=1)
    assert abs(percent) == pytest.approx(5, abs=1)
    assert (percent > 0) is (bent == "T1w")


@directions
@pytest.mark.parametrize(("axis", "name"), [(0, "R-L"), (1, "A-P")])
def test_a_mask_that_its_image_cuts_off_at_a_side_is_doubted(axis: int, name: str, directions: str) -> None:
    """A cord 14 mm wide, in six slices 3 mm from its centre to the end of the image, in two farther."""
    line, centres = np.arange(30.0) - 14.5, np.zeros((SLICES, 2))
    centres[:2, axis] = -6
    whole = ellipses((line, line), centres, (7.0, 7.0)) > 0.5
    cut = whole.take(range(18), axis)
    masks = {"T2w": stored(cut, directions), "T1w": stored(whole, directions)}
    truth = soft(masks)
    told = f"its mask reaches the edge of its image along {name} in 6 slices: what lies beyond counts as"
    assert [line[: len(told)] for line in truth.contrasts["T2w"].warnings] == [told]
    assert truth.contrasts["T1w"].warnings == ()
    without = soft(masks, reference="T1w", leave_out_implausible=True)
    assert list(without.native) == ["T1w"]
    assert told in without.skipped["T2w"]
    np.testing.assert_array_equal(without.native["T1w"].values, masks["T1w"].values)
    assert soft({"T2w": masks["T2w"]}).contrasts["T2w"].warnings == (), "alone it is its own label"


def test_rotation_turns_back_what_was_turned() -> None:
    pixels = (np.arange(48) * 0.5 - 12, np.arange(48) * 0.5 - 12)
    still = np.zeros((4, 2))
    masks = {
        "T2w": stored(ellipses(pixels, still, (7.0, 4.0)), "RAS", (0.5, 0.5, 3.0)),
        "dwi": stored(ellipses(pixels, still + 1, (7.0, 4.0), np.radians(25)), "RAS", (0.5, 0.5, 3.0)),
    }
    with_rotation, without = soft(masks, rotation=True), soft(masks)
    np.testing.assert_allclose(with_rotation.contrasts["dwi"].rotation_deg, 25, atol=0.5)
    np.testing.assert_array_equal(without.contrasts["dwi"].rotation_deg, 0)
    for name, mask in masks.items():
        assert np.abs(with_rotation.native[name].values - mask.values).max() < 0.2
        assert np.abs(without.native[name].values - mask.values).max() == pytest.approx(0.5, abs=0.02)


PHANTOM = PhantomSpec(seed=4, fov_mm=(40.0, 44.0, 56.0), shift_mm=3.0)


@pytest.mark.parametrize("oblique_deg", [0.0, 15.0])
def test_the_soft_label_is_near_the_truth(oblique_deg: float) -> None:
    """The floors: half of the boundary error, area within 1.2 %, spread over contrasts an eighth."""
    spec = PhantomSpec(**{**vars(PHANTOM), "oblique_deg": oblique_deg})
    subject = simulate_subject(spec, 1)
    images = {name: simulate(spec, 1, name, subject) for name in spec.contrasts}
    masks = {name: Volume(image.mask.astype(np.float32), image.affine) for name, image in images.items()}
    truth = soft(masks)
    assert not any(alignment.warnings for alignment in truth.contrasts.values())
    labels = {name: label.values for name, label in truth.native.items()}
    hard = {name: mask.values for name, mask in masks.items()}
    assert boundary_error(labels, images) < 0.5 * boundary_error(hard, images)
    errors, hard_errors = (
        np.array([area_error(maps[name], images[name]) for name in images]) for maps in (labels, hard)
    )
    assert np.abs(errors).max() < 0.012
    assert np.std(errors, ddof=1) < np.std(hard_errors, ddof=1) / 8


def boundary_error(maps: dict[str, np.ndarray], images: dict[str, Simulated]) -> float:
    errors = []
    for name, image in images.items():
        boundary = (image.truth > 0) & (image.truth < 1)
        errors.append(np.abs(maps[name] - image.truth)[boundary].mean())
    return float(np.mean(errors))


def area_error(values: np.ndarray, image: Simulated) -> float:
    """Of the area over C2 and C3, relative; empty slices of the truth don't exist there."""
    in_plane = tuple(axis for axis in range(3) if axis != image.slice_axis)
    of_c2_c3 = np.isin(image.csa["level"], (2, 3))
    found, true = (some.sum(axis=in_plane, dtype=float)[of_c2_c3] for some in (values, image.truth))
    return float(found.sum() / true.sum() - 1)


def real_masks(real_data: Path, subject: str) -> dict[str, Volume]:
    folder = real_data / "bids" / "derivatives" / "labels" / subject / "anat"
    masks = {}
    for file in sorted(folder.glob("*_seg-manual.nii.gz")):
        image = nib.load(file)
        name = file.name.removeprefix(f"{subject}_").removesuffix("_seg-manual.nii.gz")
        masks[name] = Volume(np.asarray(image.dataobj, np.float32), image.affine)
    return masks


def test_real_identical_masks_come_back_as_they_are(real_data: Path) -> None:
    masks = real_masks(real_data, "sub-unf01")
    truth = soft(masks)
    assert sorted(truth.native) == ["T1w", "T2star", "T2w"]
    for name, mask in masks.items():
        np.testing.assert_array_equal(truth.native[name].values, mask.values)


def test_real_oblique_thick_slices_and_a_fine_image_agree(real_data: Path) -> None:
    masks = real_masks(real_data, "sub-sct01")
    truth = soft(masks)
    assert truth.reference == "T1w"
    assert truth.skipped == {}
    for name, mask in masks.items():
        label = truth.native[name].values
        assert truth.contrasts[name].agreement > 0.95
        assert truth.contrasts[name].warnings == ()
        assert label.sum() == pytest.approx(mask.values.sum(), rel=0.06)
        partial = (label > 0.02) & (label < 0.98)
        assert partial.sum() > 0.2 * mask.values.sum()
