"""Affine, spacing, volume and orientation of a grid, and what is odd about them."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_softseg.io.geometry import (
    VoxelGrid,
    distances_mm,
    geometry_findings,
    grid_findings,
    margin_voxels,
    reader_spacing_mm,
    turned,
    voxel_volume,
)

SHAPE = (4, 5, 6)


def rotated(degrees: float) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    angle = np.radians(degrees)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return affine @ np.diag([0.5, 0.8, 3.0, 1.0])


def test_the_volume_of_a_voxel_is_that_of_its_parallelepiped() -> None:
    straight = VoxelGrid(SHAPE, rotated(20))
    sheared = VoxelGrid(SHAPE, np.array([[1.0, 1.0, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]))
    assert straight.spacing_mm == pytest.approx((0.5, 0.8, 3.0))
    assert straight.voxel_mm3 == pytest.approx(1.2)
    assert straight.shear_deg == pytest.approx(0, abs=1e-6)
    assert sheared.voxel_mm3 == pytest.approx(2)  # and not the product of its sizes, 2.83
    assert sheared.shear_deg == pytest.approx(45)


def test_a_grid_is_told_in_words() -> None:
    grid = VoxelGrid(SHAPE, np.array([[-1.0, 0, 0, 7], [0, 0, 2, 0], [0, -3, 0, 1], [0, 0, 0, 1]]))
    assert str(grid) == "4 x 5 x 6 voxels of 1 x 3 x 2 mm, LIA, first voxel at (7, 0, 1)"
    assert "affine [[0.4698, -0.2736" in str(VoxelGrid(SHAPE, rotated(20)))


def test_turning_moves_no_voxel() -> None:
    values = np.random.default_rng(0).random(SHAPE)
    affine = np.array([[0, 0, -2.0, 3], [1.0, 0, 0, 0], [0, 3, 0, 1], [0, 0, 0, 1]])
    there, like = turned(values, affine, np.eye(4))
    assert nib.aff2axcodes(like) == ("R", "A", "S")
    back, same = turned(there, like, affine)
    np.testing.assert_array_equal(back, values)
    np.testing.assert_allclose(same, affine)
    index = np.argwhere(there == values[1, 2, 3])[0]
    np.testing.assert_allclose(
        nib.affines.apply_affine(like, index), nib.affines.apply_affine(affine, [1, 2, 3])
    )


def test_grids_are_one_within_a_micrometre() -> None:
    grid, moved = VoxelGrid(SHAPE, np.eye(4)), np.eye(4)
    moved[0, 3] = 9e-4
    assert grid.is_same(VoxelGrid(SHAPE, moved))
    assert grid_findings("label", grid, VoxelGrid(SHAPE, moved)) == []
    moved[0, 3] = 2e-3
    assert not grid.is_same(VoxelGrid(SHAPE, moved))
    (finding,) = grid_findings("label", grid, VoxelGrid(SHAPE, moved), of="rater r1")
    assert "affine differs from that of rater r1 by 0.002" in str(finding)
    (finding,) = grid_findings("label", grid, VoxelGrid((4, 5, 7), moved))
    assert "shape differs from that of the image: expected (x, y, z) = (4, 5, 6)" in str(finding)


def saved(file: Path, image: nib.Nifti1Image, **fields: object) -> Path:
    """The image with header fields as they are given here: nibabel mends some as it writes."""
    nib.save(image, file)
    content = bytearray(file.read_bytes())
    header = np.frombuffer(content, nib.Nifti1Header().structarr.dtype, 1)
    for name, value in fields.items():
        header[name] = value
    file.write_bytes(content)
    return file


def found_in(file: Path) -> list[tuple[str, str]]:
    return [(finding.severity, finding.what) for finding in geometry_findings(file, nib.load(file))]


def test_headers_that_make_no_sense_are_named(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros(SHAPE, np.float32), rotated(10))
    image.header.set_xyzt_units("micron")
    file = saved(tmp_path / "image.nii", image)
    assert found_in(file) == [("warning", "is not in mm")]
    pixdim = [1, -0.8, 0.8, 3, 1, 1, 1, 1]
    saved(file, image, pixdim=pixdim)
    assert found_in(file) == [("warning", "has two voxel sizes"), ("warning", "is not in mm")]
    finding = next(geometry_findings(file, nib.load(file)))
    assert "expected 0.5, 0.8, 3 mm as its affine, found -0.8, 0.8, 3 in pixdim" in str(finding)
    # Without an sform, the affine is made of pixdim, whatever that holds.
    saved(file, image, pixdim=pixdim, sform_code=0, qform_code=1)
    assert found_in(file) == [("error", "has voxel sizes that make no sense"), ("warning", "is not in mm")]
    saved(file, image, xyzt_units=77)  # no unit has this code
    assert found_in(file) == [("warning", "is not in mm")]


def test_a_file_that_does_not_say_where_it_lies_is_named(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros(SHAPE, np.float32), rotated(0))
    file = saved(tmp_path / "image.nii", image, sform_code=0, qform_code=0)
    assert found_in(file) == [("warning", "does not say where it lies")]
    saved(file, image, sform_code=0, qform_code=1)
    assert found_in(file) == []


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_broken_sform_is_repaired_as_the_message_says(value: float, tmp_path: Path) -> None:
    affine = rotated(10)
    image = nib.Nifti1Image(np.zeros(SHAPE, np.float32), affine)
    image.set_qform(affine, 1)
    rows = dict.fromkeys(("srow_x", "srow_y", "srow_z"), [value] * 4)
    file = saved(tmp_path / "image.nii", image, **rows)
    assert found_in(file) == [("error", "has an affine that maps no volume")]
    finding = next(geometry_findings(file, nib.load(file)))
    assert finding.remedy == (
        "repair its sform, the qform is valid: image = nibabel.load(FILE, mmap=False), "
        "image.set_sform(image.get_qform()), nibabel.save(image, FILE)"
    )
    broken = nib.load(file, mmap=False)  # else what is saved would be read from the file that it replaces
    broken.set_sform(broken.get_qform())
    nib.save(broken, file)
    assert found_in(file) == []
    np.testing.assert_allclose(nib.load(file).affine, affine, atol=1e-6)
    saved(file, image, srow_z=[0, 0, 3, 1e30])  # where no voxel is apart from the next
    assert found_in(file) == [("error", "has an affine that maps no volume")]
    saved(file, image, **rows, qform_code=0)
    assert next(geometry_findings(file, nib.load(file))).remedy == "repair qform and sform in its header"


def test_two_voxel_sizes_become_one_as_the_message_says(tmp_path: Path) -> None:
    affine = np.array([[-1.0, 0.2, 0, 7], [0, 0, 2, 0], [0, -3, 0, 1], [0, 0, 0, 1]])  # sheared, too
    values = np.random.default_rng(0).integers(0, 99, SHAPE).astype(np.int16)
    file = saved(tmp_path / "image.nii", nib.Nifti1Image(values, affine), pixdim=[1, 0.5, 0.5, 3, 1, 1, 1, 1])
    finding = next(geometry_findings(file, nib.load(file)))
    assert "image.set_qform(image.affine), nibabel.save(image, FILE)" in finding.remedy
    image = nib.load(file, mmap=False)
    image.set_qform(image.affine)
    nib.save(image, file)
    assert found_in(file) == [("warning", "has sheared axes")]
    np.testing.assert_allclose(nib.load(file).affine, affine, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(nib.load(file).dataobj), values)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_distances_are_those_between_the_points_of_the_affine(seed: int) -> None:
    random = np.random.default_rng(seed)
    steps = np.diag(random.uniform(0.5, 3, 3)) + np.triu(random.uniform(-1, 1, (3, 3)), 1) * random.integers(
        2
    )
    mask, at = random.random((2, *SHAPE)) < 0.1
    mask[1, 2, 3] = True
    to, origins = np.argwhere(mask) @ steps.T, np.argwhere(at) @ steps.T
    expected = np.linalg.norm(origins[:, None] - to[None], axis=2).min(axis=1, initial=np.inf)
    np.testing.assert_allclose(distances_mm(mask, steps, at), expected, atol=1e-9)
    assert voxel_volume(steps) == pytest.approx(steps[0, 0] * steps[1, 1] * steps[2, 2])
    near = margin_voxels(2.0, steps)
    moves = np.stack(np.meshgrid(*[np.arange(-8, 9)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    reached = np.abs(moves[np.linalg.norm(moves @ steps.T, axis=1) <= 2.0]).max(axis=0)
    assert (reached <= near).all()


@pytest.mark.parametrize("reorients", [False, True])
def test_readers_are_told_the_spacing_of_the_affine(reorients: bool) -> None:
    affine = np.array([[0, 0, -3.0, 0], [1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])  # axes A-P, S-I, R-L
    by_affine = [2.0, 1.0, 3.0] if reorients else [3.0, 2.0, 1.0]  # (k, j, i)
    assert reader_spacing_mm([0.5, 0.5, 3.0], affine, reorients=reorients) == by_affine
    stated = [size + 1e-5 for size in by_affine]  # as nnU-Net reads it, bit by bit
    assert reader_spacing_mm(stated, affine, reorients=reorients) == stated
