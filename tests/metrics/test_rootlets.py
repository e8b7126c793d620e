"""Spinal levels from rootlets: geometry in mm, names, mistakes."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from nnunet_softseg.cli import main
from nnunet_softseg.errors import UserError
from nnunet_softseg.metrics.morphometry import csa, slice_morphometry
from nnunet_softseg.metrics.morphometry.levels import level_name, parse_levels

# Level -> lowest and highest z of its rootlets, mm. The cord reaches from 0 to 60 mm.
HEIGHTS_MM = {6: (40.0, 50.0), 7: (26.0, 36.0), 8: (10.0, 20.0)}
AREA_MM2 = {6: 64.0, 7: 32.0, 8: 96.0}
"""Of the cord's slices within each level."""


def cord_and_rootlets(
    voxel_mm: float = 1.0, gap_mm: float = 1.0, heights_mm: dict[int, tuple[float, float]] = HEIGHTS_MM
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """A cord 8 mm wide whose depth changes with its levels; rootlets at a gap beside it."""
    shape = [round(size / voxel_mm) for size in (24, 16, 60)]
    x, y, z = (voxel_mm * (np.arange(size) + 0.5) for size in shape)
    depth = np.select(
        [(z > low) & (z < high) for low, high in HEIGHTS_MM.values()],
        [area / 8 for area in AREA_MM2.values()],
        default=8.0,
    )
    cord = ((x > 4) & (x < 12))[:, None, None] & (np.abs(y[:, None] - 8) < depth / 2)
    rootlets = np.zeros(shape, np.uint8)
    beside = (x > 11.9 + gap_mm) & (x < 14.1 + gap_mm)
    for level, (low, high) in heights_mm.items():
        rootlets[np.ix_(beside, np.abs(y - 8) < 2, (z > low) & (z < high))] = level
    affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = voxel_mm / 2
    return nib.Nifti1Image(cord.astype(np.float32), affine), nib.Nifti1Image(rootlets, affine)


@pytest.mark.parametrize("voxel_mm", [0.5, 1.0, 2.0])
def test_levels_reach_from_the_first_to_the_last_rootlet_on_every_grid(voxel_mm: float) -> None:
    cord, rootlets = cord_and_rootlets(voxel_mm)
    table = slice_morphometry(cord, rootlets=rootlets)
    for level, (low, high) in HEIGHTS_MM.items():
        slices = table[table["level"] == level]
        assert slices["z_mm"].min() - voxel_mm / 2 == pytest.approx(low)
        assert slices["z_mm"].max() + voxel_mm / 2 == pytest.approx(high)
        assert slices["area_mm2"].tolist() == pytest.approx([AREA_MM2[level]] * len(slices))
    assert table["level"].isna().sum() == round(30 / voxel_mm)
    assert table.attrs["warnings"] == []


def test_level_1_and_slices_between_rootlets_count() -> None:
    cord, rootlets = cord_and_rootlets(heights_mm={1: (50.0, 58.0), 2: (30.0, 40.0)})
    values = np.asarray(rootlets.dataobj).copy()
    values[:, :, 33:36] = 0  # rootlets enter the cord in filaments
    table = slice_morphometry(cord, rootlets=nib.Nifti1Image(values, rootlets.affine))
    assert table.groupby("level").size().to_dict() == {1: 8, 2: 10}


@pytest.mark.parametrize("height", [0.0, 0.45])
def test_of_a_map_that_is_nowhere_above_a_half_no_level_is_known(height: float, tmp_path: Path) -> None:
    cord, rootlets = cord_and_rootlets()
    faint = nib.Nifti1Image(height * cord.get_fdata(dtype=np.float32), cord.affine)
    nib.save(faint, tmp_path / "cord.nii.gz")
    nib.save(rootlets, tmp_path / "rootlets.nii.gz")
    table = csa(tmp_path / "cord.nii.gz", rootlets=tmp_path / "rootlets.nii.gz", vert="C7")
    assert table["level"].isna().all()
    assert not table.attrs["failed"]
    if height:
        slices = slice_morphometry(faint, rootlets=rootlets)
        assert slices["csa_mm2"].sum() == pytest.approx(height * np.sum(cord.dataobj))
        assert slices.attrs["warnings"] == [f"{slices.attrs['warnings'][0]}"]
        assert "no cord above 0.5: no levels" in slices.attrs["warnings"][0]


def test_the_reach_is_in_mm() -> None:
    """Centres of voxels are 5 and 6 mm from those of the cord's outermost."""
    cord, rootlets = cord_and_rootlets(gap_mm=4.0)
    assert slice_morphometry(cord, rootlets=rootlets, reach_mm=5.0)["level"].notna().sum() == 30
    with pytest.raises(
        UserError, match=r"expected rootlets within 4 mm of the cord, found 240 voxels .* all farther away"
    ):
        slice_morphometry(cord, rootlets=rootlets, reach_mm=4.0)


def test_rootlets_of_a_level_that_the_cord_does_not_reach_are_told() -> None:
    cord, rootlets = cord_and_rootlets()
    values = cord.get_fdata(dtype=np.float32)
    values[:, :, :22] = 0
    table = slice_morphometry(nib.Nifti1Image(values, cord.affine), rootlets=rootlets, reach_mm=2)
    assert sorted(table["level"].dropna().unique()) == [6, 7]
    assert table.attrs["warnings"] == [
        "rootlets: rootlets of C8 are farther than 2 mm from the cord: no such level"
    ]


def test_levels_that_overlap_are_told_and_each_slice_has_one() -> None:
    cord, rootlets = cord_and_rootlets(heights_mm={6: (33.0, 50.0), 7: (26.0, 36.0)})
    table = slice_morphometry(cord, rootlets=rootlets)
    assert table.groupby("level").size().to_dict() == {6: 14, 7: 10}  # 7 was drawn over 6
    cord, rootlets = cord_and_rootlets()
    values = np.asarray(rootlets.dataobj).copy()
    values[13:15, 7, 30:38] = 6  # filaments of C6 beside the many of C7, in 6 slices of C7 and 2 below C6
    table = slice_morphometry(cord, rootlets=nib.Nifti1Image(values, rootlets.affine))
    assert table.groupby("level").size().to_dict() == {6: 14, 7: 10, 8: 10}
    assert table.attrs["warnings"] == [
        "rootlets: C6-C7 overlap in 6 slice(s): each goes to the level with more rootlets in it"
    ]


def test_mistakes() -> None:
    cord, rootlets = cord_and_rootlets(heights_mm={7: (40.0, 50.0), 6: (26.0, 36.0)})
    with pytest.raises(
        UserError, match=r"expected rootlets of C7 below those of C6, found them 14.0 mm above"
    ):
        slice_morphometry(cord, rootlets=rootlets)
    with pytest.raises(UserError, match=r"found none: look for a mix-up"):
        slice_morphometry(cord, rootlets=nib.Nifti1Image(np.zeros(cord.shape, np.uint8), cord.affine))
    with pytest.raises(UserError, match=r"expected the grid of the map, .*nearest neighbour$"):
        slice_morphometry(cord, rootlets=rootlets.slicer[:, :, 1:])
    with pytest.raises(UserError, match="found both or all: give one"):
        slice_morphometry(cord, rootlets=rootlets, levels=rootlets)


def test_names_know_spinal_from_vertebral_levels() -> None:
    assert [level_name([8, 9]), level_name([8, 9], "spinal")] == ["T1-T2", "C8-T1"]
    assert parse_levels("C7:T1", "spinal") == (7, 8, 9)
    assert parse_levels("C7:T1") == (7, 8)
    with pytest.raises(UserError, match="level 'C8'"):
        parse_levels("C8")


def test_the_command_has_a_row_per_level(tmp_path: Path, capsys) -> None:
    for image, name in zip(cord_and_rootlets(), ("cord", "rootlets"), strict=True):
        nib.save(image, tmp_path / f"{name}.nii.gz")
    call = ["csa", "-i", str(tmp_path / "cord.nii.gz"), "--rootlets", str(tmp_path / "rootlets.nii.gz")]
    out = ["-o", str(tmp_path / "a.csv"), "--summary", str(tmp_path / "s.csv"), "-np", "1"]
    assert main([*call, "--reach-mm", "3", "--level-names", "spinal", *out]) == 0
    assert "C6-C8" in capsys.readouterr().out
    summary = pd.read_csv(tmp_path / "s.csv")
    assert summary["level"].tolist() == [6, 7, 8]
    assert summary["levels"].tolist() == ["C6", "C7", "C8"]
    assert summary["area_mm2"].tolist() == pytest.approx([AREA_MM2[level] for level in (6, 7, 8)])
    assert summary["csa_mm2"].tolist() == pytest.approx(summary["csa_mm2_mean"].tolist())
    assert main([*call, "--level-names", "vertebral", *out]) == 0
    assert pd.read_csv(tmp_path / "s.csv")["levels"].tolist() == ["C6", "C7", "T1"]
    assert main([*call, "--vert", "C8", "--figure", str(tmp_path / "a.png"), *out]) == 0
    assert set(pd.read_csv(tmp_path / "a.csv")["level"]) == {8}
    with pytest.raises(UserError, match="--reach-mm 0: expected a length above 0 mm"):
        csa(tmp_path / "cord.nii.gz", rootlets=tmp_path / "rootlets.nii.gz", reach_mm=0)
