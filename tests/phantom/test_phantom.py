"""The phantom against geometry: volumes and areas in closed form, what raters and scanners do, files."""

import csv
import gzip
import json
import math
import multiprocessing
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from nnunet_softseg.cli import main
from nnunet_softseg.errors import UserError
from nnunet_softseg.phantom import (
    CONTRAST_NAMES,
    CONTRASTS,
    PhantomSpec,
    cord_fraction,
    phantom,
    simulate,
    straight_cylinder,
)
from nnunet_softseg.phantom.acquisition import (
    check_cords_fit,
    csa_table,
    draw_subject_anatomy,
    make_grid,
    simulate_subject,
)
from nnunet_softseg.phantom.anatomy import locate
from nnunet_softseg.phantom.contrasts import Tissue
from nnunet_softseg.phantom.partial_volume import Grid, voxel_fractions

SMALL = PhantomSpec(seed=3, fov_mm=(46.0, 46.0, 48.0))
TINY = {"fov_mm": (40.0, 40.0, 32.0), "contrasts": ("T1w", "dwi"), "progress": False}
VOXELS_MM = [(1.0, 1.0, 1.0), (0.8, 0.8, 0.8), (0.5, 0.5, 3.0), (0.9, 0.9, 5.0)]


def affine_of(voxel_mm: tuple[float, ...], shape: tuple[int, ...], orientation: str = "RAS") -> np.ndarray:
    """An axis-aligned affine centred on the scanner's origin; `shape` and `voxel_mm` are R-L, A-P, S-I."""
    ras = np.diag([*voxel_mm, 1.0])
    ras[:3, 3] = -(np.array(shape) - 1) / 2 * voxel_mm
    codes = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(orientation)
    )
    return ras @ nib.orientations.inv_ornt_aff(codes, shape)


def shape_around(voxel_mm: tuple[float, ...], extent_mm: tuple[float, ...]) -> tuple[int, int, int]:
    i, j, k = (math.ceil(extent / size) for extent, size in zip(extent_mm, voxel_mm, strict=True))
    return i, j, k


def cos_of(tilt_deg: tuple[float, float]) -> float:
    """The cosine between z and a line that leans by these angles per mm of z."""
    return 1 / math.sqrt(1 + sum(math.tan(math.radians(tilt)) ** 2 for tilt in tilt_deg))


def centroids_mm(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """x, y, z of the centre of mass of each slice of a volume (any orientation), from the bottom up."""
    image = nib.as_closest_canonical(nib.Nifti1Image(volume.astype(np.float64), affine))
    weights = image.get_fdata()
    points = np.stack(np.meshgrid(*map(np.arange, weights.shape), indexing="ij"))
    centres = (weights * points).sum(axis=(1, 2)) / weights.sum(axis=(0, 1))
    return image.affine[:3, :3] @ centres + image.affine[:3, 3:]


@pytest.fixture(scope="module")
def simulated():
    """All contrasts of two subjects."""
    return {
        (number, name): simulate(SMALL, number, name, subject)
        for number in (1, 2)
        for subject in [simulate_subject(SMALL, number)]
        for name in CONTRAST_NAMES
    }


@pytest.fixture(scope="module")
def moved():
    """All contrasts of the second subject, with shifts up to 3 mm."""
    spec = replace(SMALL, shift_mm=3.0)
    subject = simulate_subject(spec, 2)
    return {name: simulate(spec, 2, name, subject) for name in CONTRAST_NAMES}


# The exact share of a voxel


@pytest.mark.parametrize("tilt_deg", [(0, 0), (0, 15), (-15, 0), (20, 20), (0, 30)])
@pytest.mark.parametrize("voxel_mm", VOXELS_MM)
def test_a_cylinders_volume_and_slices_are_the_analytic_ones(voxel_mm, tilt_deg) -> None:
    shape = shape_around(voxel_mm, (54, 54, 36))
    cylinder = straight_cylinder((5.5, 4.0), tilt_deg, (0.31, -0.17, 0.0))
    fraction = cord_fraction(cylinder, shape, affine_of(voxel_mm, shape))
    area = math.pi * 5.5 * 4.0 / cos_of(tilt_deg)
    volume = fraction.sum(dtype=float) * np.prod(voxel_mm)
    assert volume == pytest.approx(area * shape[2] * voxel_mm[2], rel=5e-4)
    # An upright cylinder meets the same parts of voxels in every slice: their errors don't average out.
    np.testing.assert_allclose(fraction.sum(axis=(0, 1)) * voxel_mm[0] * voxel_mm[1], area, rtol=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    radii=st.tuples(st.floats(3, 7), st.floats(3, 7)),
    tilt=st.tuples(st.floats(-20, 20), st.floats(-20, 20)),
    centre=st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.floats(-3, 3)),
    orientation=st.sampled_from(["RAS", "LPS", "PSR", "AIL", "RPI"]),
    voxel_mm=st.sampled_from(VOXELS_MM),
)
def test_volume_holds_for_any_cylinder_in_any_orientation(radii, tilt, centre, orientation, voxel_mm) -> None:
    counts = shape_around(voxel_mm, (40, 40, 20))
    affine = affine_of(voxel_mm, counts, orientation)
    order = [next(i for i, code in enumerate(("RL", "AP", "SI")) if letter in code) for letter in orientation]
    fraction = cord_fraction(straight_cylinder(radii, tilt, centre), tuple(counts[i] for i in order), affine)
    expected = math.pi * radii[0] * radii[1] / cos_of(tilt) * counts[2] * voxel_mm[2]
    assert fraction.sum(dtype=float) * np.prod(voxel_mm) == pytest.approx(expected, rel=2e-3)
    assert fraction.min() >= 0
    assert fraction.max() <= 1


@pytest.mark.parametrize("voxel_mm", VOXELS_MM)
def test_the_canal_and_its_sac_hold_their_volumes(voxel_mm) -> None:
    shape = shape_around(voxel_mm, (40, 36, 40))
    cylinder = straight_cylinder((5.5, 4.0), (0.0, 10.0))
    grid = Grid(shape, affine_of(voxel_mm, shape), np.zeros((shape[2], 2)))
    fractions = voxel_fractions(cylinder, grid)
    half = shape[2] * voxel_mm[2] / 2
    height = np.linspace(-half, half, 4001)
    for share, axes in ((fractions.canal, cylinder.canal_axes), (fractions.thecal, cylinder.thecal_axes)):
        rl, ap = axes(height)
        expected = math.pi * np.mean(rl * ap) * 2 * half / math.cos(math.radians(10))
        # The sac narrows at the discs along its own axis, not along z: 0.2 %.
        assert share.sum() * np.prod(voxel_mm) == pytest.approx(expected, rel=4e-3)
    # Butterflies of 15 % of the section, by the drawing's ellipses (ventral horns alone are 6.3 %).
    assert fractions.grey.sum() / fractions.cord.sum() == pytest.approx(0.15, abs=0.01)


def test_an_oblique_grid_holds_the_same_share() -> None:
    angle = math.radians(25)
    rotation = np.array(
        [[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([0.9, 0.9, 5.0])
    affine[:3, 3] = -affine[:3, :3] @ [22, 22, 3.5]
    fraction = cord_fraction(straight_cylinder((5.5, 4.0)), (45, 45, 8), affine)
    areas = fraction.sum(axis=(0, 1)) * 0.9**2
    np.testing.assert_allclose(areas, math.pi * 5.5 * 4.0 / math.cos(angle), rtol=5e-4)


@pytest.mark.parametrize("voxel_mm", VOXELS_MM)
def test_each_voxel_agrees_with_counting_points(voxel_mm) -> None:
    """An independent way: the share of 40 x 40 x 24 points of a voxel that lie inside a tilted ellipse."""
    radii, tilt = (5.5, 4.0), (5.0, 15.0)
    shape = shape_around(voxel_mm, (18, 16, 5))
    affine = affine_of(voxel_mm, shape)
    fraction = cord_fraction(straight_cylinder(radii, tilt), shape, affine)
    tangent = np.array([math.tan(math.radians(tilt[0])), math.tan(math.radians(tilt[1])), 1.0])
    tangent /= np.linalg.norm(tangent)
    u = np.array([1.0, 0, 0]) - tangent[0] * tangent
    u /= np.linalg.norm(u)
    v = np.cross(tangent, u)
    steps = [((np.arange(count) + 0.5) / count - 0.5) for count in (40, 40, 24)]
    offsets = np.stack(np.meshgrid(*steps, indexing="ij")).reshape(3, -1)
    boundary = np.argwhere((fraction > 0) & (fraction < 1))
    for voxel in boundary[:: max(1, len(boundary) // 60)]:
        points = affine[:3, :3] @ (voxel[:, None] + offsets) + affine[:3, 3:]
        counted = np.mean((u @ points / radii[0]) ** 2 + (v @ points / radii[1]) ** 2 < 1)
        assert fraction[tuple(voxel)] == pytest.approx(counted, abs=0.02)


def test_only_voxels_at_the_boundary_are_partly_cord() -> None:
    shape = (40, 40, 10)
    fraction = cord_fraction(straight_cylinder((6.0, 6.0)), shape, affine_of((1.0, 1.0, 1.0), shape))
    x, y = np.meshgrid(np.arange(40) - 19.5, np.arange(40) - 19.5, indexing="ij")
    nearest = np.hypot(np.maximum(np.abs(x) - 0.5, 0), np.maximum(np.abs(y) - 0.5, 0))
    farthest = np.hypot(np.abs(x) + 0.5, np.abs(y) + 0.5)
    partial = (fraction > 0) & (fraction < 1)
    assert partial.any()
    crossed = ((nearest < 6) & (farthest > 6))[:, :, None]
    # A corner of 2 % of a part's width may be seen as flat, and so as touched or not.
    near = ((nearest < 6.06) & (farthest > 5.94))[:, :, None]
    assert np.all(near | ~partial)
    assert np.mean(partial[np.broadcast_to(crossed, shape)]) > 0.95
    assert np.all(fraction[np.broadcast_to((farthest < 5.94)[:, :, None], shape)] == 1)
    assert np.all(fraction[np.broadcast_to((nearest > 6.06)[:, :, None], shape)] == 0)


@pytest.mark.parametrize("name", ["T1w", "T2star", "mt-on"])
def test_dividing_further_changes_nothing_that_matters(name) -> None:
    anatomy = draw_subject_anatomy(SMALL, 5)
    contrast = next(contrast for contrast in CONTRASTS if contrast.name == name)
    grid = make_grid(contrast, SMALL, np.random.default_rng(0))
    once, finer = (voxel_fractions(anatomy, grid, refine=refine).cord for refine in (1, 2))
    assert once.sum() == pytest.approx(finer.sum(), rel=1e-4)
    assert np.abs(once - finer).max() < 0.025
    partial = (finer > 0) & (finer < 1)
    assert np.sqrt(np.mean((once - finer)[partial] ** 2)) < 0.004


def test_a_point_is_found_in_its_own_section() -> None:
    """From a section to space and back: p = c(z) + u e_u + v e_v."""
    anatomy = draw_subject_anatomy(PhantomSpec(), 7)
    rng = np.random.default_rng(0)
    z, u, v = rng.uniform(-48, 48, 200), rng.uniform(-12, 12, 200), rng.uniform(-9, 9, 200)
    line, slope, _ = anatomy.centreline(z)
    tangent = np.vstack([slope, np.ones(200)])
    tangent /= np.linalg.norm(tangent, axis=0)
    along_u = np.array([[1.0], [0.0], [0.0]]) - tangent[0] * tangent
    along_u /= np.linalg.norm(along_u, axis=0)
    points = np.vstack([line, z]) + u * along_u + v * np.cross(tangent, along_u, axis=0)
    found = locate(anatomy, points)
    np.testing.assert_allclose(found.u, u, atol=1e-4)
    np.testing.assert_allclose(found.v, v, atol=1e-4)
    np.testing.assert_allclose(found.z, z, atol=1e-3)


# Anatomy


def test_subjects_differ_within_what_is_known_of_cords() -> None:
    anatomies = [draw_subject_anatomy(PhantomSpec(), number) for number in range(1, 41)]
    areas, tilts = [], []
    for anatomy in anatomies:
        bounds = anatomy.level_bounds_mm()
        heights = np.linspace(bounds[3], bounds[1], 200)
        areas.append(anatomy.csa_mm2(heights).mean())
        tilts.append(anatomy.tilt_deg(np.linspace(-48, 48, 400)).max())
        rl, ap = anatomy.cord_axes(np.linspace(-80, 30, 300))
        assert np.all(ap < 0.85 * rl)
        np.testing.assert_allclose(math.pi * rl * ap, anatomy.csa_mm2(np.linspace(-80, 30, 300)), rtol=1e-12)
        assert anatomy.csa_mm2(np.array([-45.0]))[0] > 1.05 * areas[-1]  # the cervical enlargement
    assert 65 <= min(areas) < 70
    assert 80 < max(areas) <= 85
    assert 10 < max(tilts) <= 15 + 1e-6
    assert len({anatomy.aspect for anatomy in anatomies}) == 40


def test_levels_follow_the_vertebrae() -> None:
    anatomy = replace(draw_subject_anatomy(PhantomSpec(), 1), level_scale=1.0)
    # 18 mm for C1 and C2, 17 mm for C3 to C7, counted from the disc C2/C3.
    heights = np.array([30.0, 17.9, 0.1, -0.1, -16.9, -17.1, -84.9, -85.1, 500.0, -900.0])
    assert anatomy.level(heights).tolist() == [1, 2, 2, 3, 3, 4, 7, 8, 1, 24]
    assert anatomy.distance_to_disc_mm(np.array([2.0, -3.0, -15.0])).tolist() == [2.0, -3.0, 2.0]


def test_the_levels_image_covers_the_cord_and_agrees_with_the_table(simulated) -> None:
    for item in simulated.values():
        assert np.all(item.levels[item.truth > 0] > 0)
        assert set(np.unique(item.levels)) >= {0, 2, 3, 4}
        levels = np.moveaxis(item.levels, item.slice_axis, 0)
        cord = np.moveaxis(item.truth, item.slice_axis, 0) > 0.99
        for k in range(len(levels)):
            # A slice of a tilted cord may hold two levels, next to each other.
            assert item.csa["level"][k] in levels[k][cord[k]]
            assert np.ptp(levels[k][cord[k]].astype(int)) <= 1


# The true areas


@pytest.mark.parametrize("tilt", [0.0, 15.0, 30.0])
def test_the_table_of_a_cylinder(tilt) -> None:
    shape, voxel_mm = (80, 80, 8), (0.5, 0.5, 3.0)
    grid = Grid(shape, affine_of(voxel_mm, shape), np.zeros((8, 2)))
    cylinder = straight_cylinder((5.0, 4.0), (0.0, tilt))
    table = csa_table(cylinder, grid, cord_fraction(cylinder, shape, grid.affine))
    np.testing.assert_allclose(table["csa_mm2"], math.pi * 20, rtol=1e-9)
    np.testing.assert_allclose(table["tilt_deg"], tilt, atol=1e-9)
    np.testing.assert_allclose(
        table["axial_area_mm2"], math.pi * 20 / math.cos(math.radians(tilt)), rtol=1e-3
    )
    np.testing.assert_allclose(table["z_mm"], np.arange(8) * 3.0 - 10.5)


def test_area_in_the_slice_times_cosine_is_the_area_across_the_cord(simulated) -> None:
    for item in simulated.values():
        across = item.csa["axial_area_mm2"] * np.cos(np.radians(item.csa["tilt_deg"]))
        # The curve of the line adds second-order terms: below 0.5 % for a radius of curvature of 60 mm.
        np.testing.assert_allclose(across, item.csa["csa_mm2"], rtol=5e-3)


def test_contrasts_of_a_subject_agree_in_space(simulated) -> None:
    for number in (1, 2):
        anatomy = draw_subject_anatomy(SMALL, number)
        for name in CONTRAST_NAMES:
            item = simulated[number, name]
            x, y, z = centroids_mm(item.truth, item.affine)
            line = anatomy.centreline(z)[0]
            # The section leans: its centre of mass in a plane lies a little off the line, by curvature.
            np.testing.assert_allclose(x, line[0], atol=0.05)
            np.testing.assert_allclose(y, line[1], atol=0.12)
            # All cover the field of view of 48 mm, wherever the operator put them.
            half = item.contrast.voxel_mm[2] / 2
            assert z.min() - half <= -24
            assert z.max() + half >= 24


def test_orientations_on_disk_differ_as_in_reality(simulated) -> None:
    codes = {name: "".join(nib.aff2axcodes(simulated[1, name].affine)) for name in CONTRAST_NAMES}
    sagittal = {"T1w": "PSR", "T2w": "AIL"}
    assert codes == {**sagittal, "T2star": "RPI", "mt-on": "LAS", "mt-off": "LAS", "dwi": "LAS"}
    for name in CONTRAST_NAMES:
        sizes = nib.affines.voxel_sizes(nib.as_closest_canonical(
            nib.Nifti1Image(simulated[1, name].truth, simulated[1, name].affine)).affine)  # fmt: skip
        assert sizes == pytest.approx(next(c.voxel_mm for c in CONTRASTS if c.name == name))


# Raters


def mean_area_mm2(volume: np.ndarray, item) -> float:
    """The mean area in the slices within 18 mm of the middle."""
    sizes = np.delete(nib.affines.voxel_sizes(item.affine), item.slice_axis)
    areas = np.moveaxis(volume, item.slice_axis, 0).reshape(volume.shape[item.slice_axis], -1).sum(axis=1)
    return float(areas[np.abs(item.csa["z_mm"]) < 18].mean() * np.prod(sizes))


def test_masks_are_biased_by_contrast(simulated) -> None:
    areas = {key: mean_area_mm2(item.mask, item) for key, item in simulated.items()}
    ratios = [areas[number, "T2w"] / areas[number, "T1w"] for number in (1, 2)]
    assert np.mean(ratios) == pytest.approx(1.08, abs=0.015)
    for contrast in CONTRASTS:
        keys = [(number, contrast.name) for number in (1, 2)]
        errors = [areas[key] / mean_area_mm2(simulated[key].truth, simulated[key]) - 1 for key in keys]
        # The thick slices of two subjects hold few voxels at the boundary: 1 % of the area.
        assert np.mean(errors) == pytest.approx(contrast.mask_area_bias, abs=0.015)
    assert abs(np.mean([contrast.mask_area_bias for contrast in CONTRASTS])) < 0.001


def test_masks_vary_from_slice_to_slice(simulated) -> None:
    item = simulated[1, "T2w"]

    def variance(mask: np.ndarray) -> float:
        areas = np.moveaxis(mask, item.slice_axis, 0).sum(axis=(1, 2)) * 0.8**2
        return float(np.var(areas / item.csa["axial_area_mm2"]))

    # Whole voxels alone make areas vary; the rater adds 1.2 % (estimated here from 63 slices).
    assert 0.008 < math.sqrt(variance(item.mask) - variance(item.truth > 0.5)) < 0.02


# Scanner


def test_contrasts_invert_as_in_reality(simulated) -> None:
    anatomy, order = draw_subject_anatomy(SMALL, 1), {}
    for name in CONTRAST_NAMES:
        item = simulated[1, name]
        slices = item.truth.shape[item.slice_axis]
        shares = voxel_fractions(anatomy, Grid(item.truth.shape, item.affine, np.zeros((slices, 2))))
        flat = item.image.reshape(-1)[shares.voxels]
        cord = np.median(flat[shares.cord > 0.98])
        csf = np.median(flat[shares.thecal - shares.cord - shares.roots > 0.98])
        grey = np.median(flat[shares.grey > 0.9])
        white = np.median(flat[shares.cord - shares.grey > 0.98])
        order[name] = (csf > 1.5 * cord, cord > 1.5 * csf, grey > 1.05 * white)
    assert order["T1w"] == (False, True, False)
    assert order["T2w"] == (True, False, True)
    assert order["T2star"][0]
    assert order["T2star"][2]
    assert order["mt-on"][0]
    assert order["mt-off"][1]
    assert order["dwi"] == (False, True, False)


def test_brightness_alone_does_not_find_the_cord(simulated) -> None:
    for (_, name), item in simulated.items():
        low, high = np.percentile(item.image[item.truth == 1], [2, 98])
        alike = np.count_nonzero((item.image >= low) & (item.image <= high) & (item.truth == 0))
        # In DWI only nodes are as bright, as in people.
        least = 0.02 if name == "dwi" else 2.0
        assert alike > least * np.count_nonzero(item.truth > 0.5)


def test_noise_is_rician_and_as_strong_as_said(simulated) -> None:
    for (_, name), item in simulated.items():
        contrast = next(contrast for contrast in CONTRASTS if contrast.name == name)
        assert item.image.dtype == np.int16
        assert 200 < np.percentile(item.image, 99) < 6000
        assert item.image.min() >= 0
        white = item.image[item.truth == 1].astype(float)
        # Tissue itself is uneven, and grey matter differs from white: the spread is that of noise or more.
        assert white.std() > 0.8 * white.mean() / contrast.snr * contrast.brightness[Tissue.WHITE] / max(
            contrast.brightness[Tissue.WHITE], contrast.brightness[Tissue.GREY]
        )


def test_air_lies_outside_of_a_neck() -> None:
    spec = PhantomSpec(fov_mm=(140.0, 140.0, 30.0))
    item = simulate(spec, 1, "T1w")
    image = nib.as_closest_canonical(nib.Nifti1Image(item.image, item.affine)).get_fdata()
    corner, middle = image[:12, :12].mean(), image[60:80, 60:80].mean()
    assert corner < 0.15 * middle


# Shifts


def recorded_mm(item) -> np.ndarray:
    """(2, slices) R-L and A-P, from the bottom up."""
    upwards = np.argsort(item.csa["z_mm"])
    return np.vstack([item.csa["shift_rl_mm"], item.csa["shift_ap_mm"]])[:, upwards]


@pytest.mark.parametrize("name", CONTRAST_NAMES)
def test_shifts_move_anatomy_as_recorded(name, simulated, moved) -> None:
    still, item = simulated[2, name], moved[name]
    np.testing.assert_array_equal(still.affine, item.affine)
    shift = recorded_mm(item)
    longest = np.linalg.norm(shift, axis=0).max()
    assert (longest == 0) if name == "T2w" else (0.6 * 3 <= longest <= 3 + 1e-9)
    found = centroids_mm(item.truth, item.affine) - centroids_mm(still.truth, still.affine)
    np.testing.assert_allclose(found[:2], shift, atol=0.02)
    np.testing.assert_allclose(item.csa["axial_area_mm2"], still.csa["axial_area_mm2"], rtol=2e-3)
    masks = centroids_mm(item.mask, item.affine) - centroids_mm(still.mask, still.affine)
    np.testing.assert_allclose(masks[:2].mean(axis=1), shift.mean(axis=1), atol=0.1)


def test_shifts_move_the_image_too(simulated, moved) -> None:
    """In DWI the cord shines: its centre of brightness in the image moves with the recorded shift."""

    def centres(item) -> np.ndarray:
        light = np.where(item.truth > 0.02, np.maximum(item.image - 150.0, 0), 0)
        return centroids_mm(light, item.affine)

    found = centres(moved["dwi"]) - centres(simulated[2, "dwi"])
    np.testing.assert_allclose(found[:2], recorded_mm(moved["dwi"]), atol=0.25)


def test_shifts_move_the_neck_around_the_cord(simulated, moved) -> None:
    """Moved back by the recorded shift, every slice is like that without shifts; left as it is, it is not."""
    item, still = moved["T2star"], simulated[2, "T2star"]
    away = item.levels + still.levels == 0
    left, back = [], []
    for k, (rl, ap) in enumerate(zip(item.csa["shift_rl_mm"], item.csa["shift_ap_mm"], strict=True)):
        # RPI: both array axes grow against R-L and A-P.
        undone = ndimage.shift(item.image[:, :, k].astype(float), (rl / 0.5, ap / 0.5), order=1)
        inner = (slice(12, -12), slice(12, -12))
        for found, image in ((left, item.image[:, :, k]), (back, undone)):
            differs = np.abs(image - still.image[:, :, k].astype(float))
            found.append(differs[inner][away[:, :, k][inner]].mean())
    assert np.mean(back) < 0.75 * np.mean(left)


@pytest.mark.parametrize("name", ["T1w", "T2star"])
def test_the_tilt_that_the_image_shows_includes_the_shifts(name, moved) -> None:
    item = moved[name]
    x, y, z = centroids_mm(item.truth, item.affine)
    lean = np.degrees(np.arctan(np.hypot(np.gradient(x, z), np.gradient(y, z))))
    upwards = np.argsort(item.csa["z_mm"])
    np.testing.assert_allclose(lean[2:-2], item.csa["apparent_tilt_deg"][upwards][2:-2], atol=0.5)
    assert np.abs(item.csa["apparent_tilt_deg"] - item.csa["tilt_deg"]).max() > 0.5


# Options


def test_without_cord_there_is_a_neck_and_no_truth(simulated) -> None:
    item = simulate(replace(SMALL, cord=False), 1, "T2w")
    with_cord = simulated[1, "T2w"]
    assert not item.truth.any()
    assert not item.mask.any()
    assert not item.levels.any()
    assert not item.csa["csa_mm2"].any()
    assert not item.csa["axial_area_mm2"].any()
    away = with_cord.levels == 0
    # The same neck; the blur carries some of the canal's light out of it.
    differs = np.abs(item.image.astype(float) - with_cord.image)[away]
    assert np.median(differs) == 0
    # CSF is the brightest tissue in T2w: without the canal, nothing within it is as bright.
    canal = with_cord.levels > 0
    assert np.percentile(item.image[canal], 99) < 0.8 * np.percentile(with_cord.image[canal], 95)


def test_axial_contrasts_may_cover_less() -> None:
    spec = replace(SMALL, axial_si_mm=20.0)
    assert np.ptp(simulate(spec, 1, "dwi").csa["z_mm"]) < 25
    assert np.ptp(simulate(spec, 1, "T1w").csa["z_mm"]) > 45


def test_oblique_slices_keep_truth_and_areas(simulated) -> None:
    spec = replace(SMALL, oblique_deg=20.0)
    item = simulate(spec, 1, "T2star")
    pitch = np.degrees(np.arccos(abs(item.affine[2, item.slice_axis]) / 3.0))
    assert 1 < pitch <= 20
    straight = simulated[1, "T2star"]
    middle = slice(3, -3)
    across = item.csa["axial_area_mm2"] * np.cos(np.radians(item.csa["tilt_deg"]))
    np.testing.assert_allclose(across[middle], item.csa["csa_mm2"][middle], rtol=1e-2)
    z, csa = straight.csa["z_mm"], straight.csa["csa_mm2"]
    expected = np.interp(item.csa["z_mm"], np.sort(z), csa[np.argsort(z)])
    np.testing.assert_allclose(item.csa["csa_mm2"][middle], expected[middle], rtol=1e-2)


@pytest.mark.parametrize("shift_mm", [0.0, 10.0])
def test_heights_in_the_table_are_those_of_the_cord_that_the_slices_show(shift_mm: float) -> None:
    """Where the anatomy moves within a tipped slice, it moves along z, too."""
    item = simulate(replace(SMALL, fov_mm=(60.0, 60.0, 48.0), oblique_deg=25.0, shift_mm=shift_mm), 1, "dwi")
    pitch = np.degrees(np.arccos(abs(item.affine[2, item.slice_axis]) / 5.0))
    assert pitch > 5
    z = centroids_mm(item.truth, item.affine)[2]
    np.testing.assert_allclose(np.sort(item.csa["z_mm"]), z, atol=0.05)


# Files


def read_all(folder: Path, pattern: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob(pattern))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def bids(tmp_path_factory) -> Path:
    return phantom(tmp_path_factory.mktemp("phantom") / "bids", n=2, seed=5, **TINY)


def test_files_are_where_bids_wants_them(bids: Path) -> None:
    for subject in ("sub-01", "sub-02"):
        for folder, source in (("anat", f"{subject}_T1w"), ("dwi", f"{subject}_rec-average_dwi")):
            names = [
                bids / subject / folder / source,
                bids / "derivatives/labels" / subject / folder / f"{source}_seg-manual",
                bids / "derivatives/truth" / subject / folder / f"{source}_label-SC_desc-truth_probseg",
                bids / "derivatives/truth" / subject / folder / f"{source}_desc-levels_dseg",
            ]
            image, mask, truth, levels = (nib.load(f"{name}.nii.gz") for name in names)
            assert all(json.loads(Path(f"{name}.json").read_text())["GeneratedBy"] for name in names)
            types = [item.get_data_dtype() for item in (image, mask, truth, levels)]
            assert types == [np.int16, np.uint8, np.float32, np.uint8]
            for item in (mask, truth, levels):
                np.testing.assert_array_equal(item.affine, image.affine)
                assert item.shape == image.shape
            for item in (image, mask, truth, levels):
                assert int(item.header["qform_code"]) == int(item.header["sform_code"]) == 1
                np.testing.assert_allclose(item.header.get_qform(), item.header.get_sform(), atol=1e-5)
    assert not list(bids.rglob(".*"))
    description = json.loads((bids / "dataset_description.json").read_text())
    assert description["GeneratedBy"][0]["Seed"] == 5
    assert "-n 2 --seed 5" in description["GeneratedBy"][0]["Command"]


def test_the_table_on_disk_matches_its_volume(bids: Path) -> None:
    source = bids / "derivatives/truth/sub-01/anat/sub-01_T1w"
    with Path(f"{source}_desc-truth_csa.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    sidecar = json.loads(Path(f"{source}_desc-truth_csa.json").read_text())
    assert set(rows[0]) <= set(sidecar)
    truth = nib.load(f"{source}_label-SC_desc-truth_probseg.nii.gz").get_fdata()
    areas = np.moveaxis(truth, sidecar["SliceAxis"], 0).sum(axis=(1, 2))
    np.testing.assert_allclose([float(row["axial_area_mm2"]) for row in rows], areas, atol=1e-3)
    assert [int(row["slice"]) for row in rows] == list(range(len(areas)))
    with (bids / "participants.tsv").open() as file:
        people = list(csv.DictReader(file, delimiter="\t"))
    assert [person["participant_id"] for person in people] == ["sub-01", "sub-02"]
    assert all(65 <= float(person["csa_c2c3_mm2"]) <= 85 for person in people)


def test_bit_identical_whatever_n_and_the_number_of_processes(bids: Path, tmp_path: Path) -> None:
    grown = phantom(tmp_path / "grown", n=1, seed=5, **TINY)
    alone = read_all(grown, "*sub-01*.*")
    assert alone
    assert alone == {name: content for name, content in read_all(bids, "*sub-01*.*").items() if name in alone}
    phantom(grown, n=3, seed=5, num_processes=2, **TINY)
    there = read_all(grown, "*sub-0[12]*.*")
    assert there == read_all(bids, "*sub-0[12]*.*")
    other = phantom(tmp_path / "other", n=1, seed=6, **TINY)
    assert read_all(other, "*T1w.nii.gz") != read_all(bids, "*sub-01_T1w.nii.gz")
    assert multiprocessing.active_children() == []


def test_compressed_files_carry_no_time(bids: Path) -> None:
    for path in bids.rglob("*.nii.gz"):
        assert path.read_bytes()[4:8] == b"\0\0\0\0"
        assert gzip.decompress(path.read_bytes())[344:347] == b"n+1"


def test_contrasts_do_not_depend_on_each_other(simulated) -> None:
    alone = simulate(replace(SMALL, contrasts=("T2star",)), 1, "T2star")
    together = simulated[1, "T2star"]
    np.testing.assert_array_equal(alone.image, together.image)
    np.testing.assert_array_equal(alone.mask, together.mask)


def test_an_interrupted_call_can_be_repeated(bids: Path, tmp_path: Path, monkeypatch) -> None:
    from nnunet_softseg.phantom import bids as module

    written = []
    real = module.write_subject

    def failing(folder, spec, number):
        if number == 2:
            (folder / ".partial-sub-02" / "raw").mkdir(parents=True)
            raise KeyboardInterrupt
        real(folder, spec, number)

    monkeypatch.setattr(module, "write_subject", failing)
    with pytest.raises(KeyboardInterrupt):
        phantom(tmp_path / "bids", n=2, seed=5, **TINY)
    monkeypatch.setattr(module, "write_subject", lambda *args: (written.append(args[2]), real(*args)))
    phantom(tmp_path / "bids", n=2, seed=5, **TINY)
    assert written == [2]
    assert read_all(tmp_path / "bids", "*") == read_all(bids, "*")


def test_nothing_half_written_when_a_subject_fails(tmp_path: Path, monkeypatch) -> None:
    from nnunet_softseg.phantom import bids as module

    write = module.write_nifti

    def full(path, *image):
        if "levels" in path.name:
            raise OSError(28, "No space left on device")
        write(path, *image)

    monkeypatch.setattr(module, "write_nifti", full)
    with pytest.raises(UserError, match=r"disk full, found .* make room"):
        phantom(tmp_path / "bids", n=1, **TINY)
    assert not list(tmp_path.rglob("*sub-01*"))


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n and num_processes must be 1 or more, got 0"),
        ({"n": 1, "num_processes": 0}, "must be 1 or more"),
        ({"n": 1, "seed": -1}, "seed must be 0 or more"),
        ({"n": 1, "contrasts": ("T1w", "PD")}, "unknown contrast 'PD': choose among T1w, T2w, T2star"),
        ({"n": 1, "contrasts": ("T1w", "T1w")}, "once each"),
        ({"n": 1, "contrasts": ()}, "once each"),
        ({"n": 1, "fov_mm": (10.0, 72.0, 96.0)}, "fov_mm must lie between 30 and 400, got 10"),
        ({"n": 1, "fov_mm": (72.0, math.nan, 96.0)}, "got nan"),
        (
            {"n": 4, "fov_mm": (30.0, 30.0, 60.0), "shift_mm": 10.0},
            "too small for the cord of sub-0.* in .* at least",
        ),
        ({"n": 1, "shift_mm": -1.0}, "shift_mm must lie between 0 and 10"),
        ({"n": 1, "axial_si_mm": 500.0}, "axial_si_mm must lie between"),
        ({"n": 1, "oblique_deg": 45.0}, "oblique_deg must lie between"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_written(tmp_path: Path, arguments, message) -> None:
    with pytest.raises(UserError, match=message):
        phantom(tmp_path / "bids", progress=False, **arguments)
    assert not (tmp_path / "bids").exists()


@settings(max_examples=15)
@given(
    seed=st.integers(0, 50),
    n=st.integers(1, 4),
    rl=st.floats(30, 36),
    ap=st.floats(30, 44),
    si=st.sampled_from([60.0, 200.0]),
    shift_mm=st.sampled_from([0.0, 6.0]),
)
def test_a_field_of_view_that_is_made_as_much_longer_as_told_is_large_enough(
    seed: int, n: int, rl: float, ap: float, si: float, shift_mm: float
) -> None:
    spec = PhantomSpec(seed, (rl, ap, si), shift_mm=shift_mm)
    try:
        check_cords_fit(spec, n)
    except UserError as error:
        told = re.search(r"at least ([1-9]\d*) mm longer", str(error))
        assert told
        check_cords_fit(replace(spec, fov_mm=(rl + int(told[1]), ap + int(told[1]), si)), n)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 2, "seed": 6, **TINY}, "holds another phantom .seed 5 there, 6 asked for"),
        ({"n": 2, "seed": 5, **TINY, "contrasts": ("T2w",)}, "contrasts"),
        ({"n": 1, "seed": 5, **TINY}, "holds 2 subjects, 1 asked for"),
    ],
)
def test_a_folder_with_another_phantom_is_left_alone(bids: Path, arguments, message) -> None:
    before = read_all(bids, "*")
    with pytest.raises(UserError, match=message):
        phantom(bids, **arguments)
    assert read_all(bids, "*") == before


def test_a_subject_that_no_phantom_has_is_told(tmp_path: Path) -> None:
    folder = phantom(tmp_path / "bids", n=1, **TINY)
    (folder / "sub-mine").mkdir()
    with pytest.raises(UserError, match="holds 2 subjects, 1 asked for"):
        phantom(folder, n=1, **TINY)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and holds no phantom"):
        phantom(tmp_path, n=1, **TINY)
    with pytest.raises(UserError, match="is a file"):
        phantom(tmp_path / "notes.txt", n=1, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_command(bids: Path, tmp_path: Path, capsys) -> None:
    small = ["--fov-mm", "40", "40", "32", "--contrasts", "T1w", "dwi", "-np", "1"]
    assert main(["phantom", "-o", str(tmp_path / "bids"), "-n", "1", "--seed", "5", *small]) == 0
    assert read_all(tmp_path / "bids", "*sub-01*.*") == read_all(bids, "*sub-01*.*")
    assert main(["phantom", "-o", str(tmp_path / "no"), "-n", "1", "--no-cord", *small]) == 0
    truth = next((tmp_path / "no").rglob("*T1w_label-SC_desc-truth_probseg.nii.gz"))
    assert not nib.load(truth).get_fdata().any()
    assert main(["phantom", "-o", str(tmp_path / "bad"), "-n", "0"]) == 2
    assert "got 0" in capsys.readouterr().err
