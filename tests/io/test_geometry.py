"""Affine, spacing, volume and orientation of a grid, and what is odd about them."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from nnunet_softseg.io.geometry import VoxelGrid, geometry_findings, grid_findings, turned

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


def test_headers_that_make_no_sense_are_named(tmp_path: Path) -> None:
    file = tmp_path / "image.nii"
    image = nib.Nifti1Image(np.zeros(SHAPE, np.float32), rotated(10))
    image.header.set_xyzt_units("micron")
    nib.save(image, file)
    assert [finding.what for finding in geometry_findings(file, nib.load(file))] == ["is not in mm"]
    content = bytearray(file.read_bytes())
    content[80:84] = np.float32(-0.8).tobytes()  # pixdim[1]
    file.write_bytes(content)
    found = list(geometry_findings(file, nib.load(file)))
    assert [finding.severity for finding in found] == ["error", "warning", "warning"]
    assert "voxel sizes that make no sense: expected positive numbers of mm in pixdim, found -0.8" in str(
        found[0]
    )
    assert "has two voxel sizes" in found[1].what
