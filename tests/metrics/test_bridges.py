"""Lesions and tissue bridges against geometry: boxes and ellipsoids in cylinders; mistakes; the command."""

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from cord_lesions import RADIUS_MM, Lesion, Phantom, phantom
from matplotlib.figure import Figure
from PIL import Image

from nnunet_softseg.cli import main
from nnunet_softseg.errors import UserError
from nnunet_softseg.metrics.morphometry import figures
from nnunet_softseg.metrics.morphometry.bridges import bridges
from nnunet_softseg.metrics.morphometry.lesions import (
    LESION_COLUMNS,
    MidsagittalPlane,
    measure_lesions,
    spared_in_plane,
)

GRIDS_MM = [(0.8, 0.8, 0.8), (0.6, 0.6, 3.0), (3.0, 0.6, 0.6)]
BOX = Lesion("box", (0, 1.2, 0.3), (2.2, 1.2, 6.0))
ELLIPSOID = Lesion("ellipsoid", (0, -0.55, -0.4), (3.0, 1.87, 6.0))
SHIFT = (0.21, -0.13, 0.34)


@pytest.mark.parametrize("tilt_deg", [0, 10, 15])
@pytest.mark.parametrize("voxel_mm", GRIDS_MM, ids=str)
@pytest.mark.parametrize("lesion", [BOX, ELLIPSOID], ids=["box", "ellipsoid"])
def test_bridges_are_those_of_geometry(
    lesion: Lesion, voxel_mm: tuple[float, float, float], tilt_deg: float
) -> None:
    """Hard within a voxel; in thick sagittal slices the cord's edge bends within the slice, too."""
    shares = phantom(lesion, voxel_mm=voxel_mm, tilt_deg=tilt_deg, shift_mm=SHIFT)
    bend_mm = RADIUS_MM - np.sqrt(RADIUS_MM**2 - (voxel_mm[0] / 2) ** 2)
    truth = [lesion.dorsal_mm, lesion.ventral_mm]
    is_thick = voxel_mm[0] > 1
    for masks, expected, tolerance_mm in (
        (True, "hard", voxel_mm[1] + bend_mm),
        (False, "hard" if is_thick else "soft", voxel_mm[1] + bend_mm if is_thick else 0.1),
    ):
        (row,) = measure_lesions(*shares.images(masks=masks)).table.to_dict("records")
        assert row["definition"] == expected
        assert [row["dorsal_bridge_mm"], row["ventral_bridge_mm"]] == pytest.approx(truth, abs=tolerance_mm)
        assert row["total_bridge_mm"] == row["dorsal_bridge_mm"] + row["ventral_bridge_mm"]
        assert row["flags"] == ""
    # Sums of exact shares: what is left is the density of the phantom's points, and of the area, which is
    # the mean over a slice that is up to half its thickness h off the lesion's middle, (h / c)^2 / 3.
    assert row["volume_mm3"] == pytest.approx(lesion.volume_mm3, rel=0.02)
    area_mm2, mean = lesion.largest_area_mm2, (voxel_mm[2] / lesion.half_mm[2]) ** 2 / 3
    diameter_mm, ratio = 2 * np.sqrt(area_mm2 / np.pi), area_mm2 / (np.pi * RADIUS_MM**2)
    assert row["equivalent_diameter_mm"] == pytest.approx(diameter_mm, rel=0.01 + mean / 2)
    assert row["axial_damage_ratio"] == pytest.approx(ratio, rel=0.02 + mean)
    assert row["width_mm"] == pytest.approx(2 * lesion.half_mm[1], abs=voxel_mm[1])
    # Each end within a slice; those of a tilted box are oblique to the slices.
    oblique_mm = 2 * lesion.half_mm[1] * np.tan(np.radians(tilt_deg))
    assert row["length_mm"] == pytest.approx(2 * lesion.half_mm[2], abs=2 * voxel_mm[2] + oblique_mm)


@pytest.fixture(scope="module")
def shares() -> Phantom:
    return phantom(BOX, shift_mm=SHIFT)


@pytest.mark.parametrize("codes", ["LPI", "SAR", "AIL"])
def test_the_order_of_the_axes_changes_nothing(shares: Phantom, codes: str) -> None:
    """In an array that is mirrored, the number of voxels above 0.5 is the same."""
    images = shares.images()
    axes = nib.orientations.axcodes2ornt(tuple(codes))
    moved = [
        image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), axes))
        for image in images
    ]
    for hard in (False, True):
        expected = measure_lesions(*images, hard=hard).table
        pd.testing.assert_frame_equal(measure_lesions(*moved, hard=hard).table, expected, rtol=1e-5)


def test_the_definition_is_hard_on_request_and_for_masks_beside_maps(shares: Phantom) -> None:
    lesion, cord = shares.images()
    mask, cord_mask = shares.images(masks=True)
    for given, hard in (((lesion, cord), True), ((mask, cord), False), ((lesion, cord_mask), False)):
        assert measure_lesions(*given, hard=hard).table["definition"].tolist() == ["hard"]
    counted = measure_lesions(mask, cord_mask).table[["dorsal_bridge_mm", "ventral_bridge_mm"]]
    pd.testing.assert_frame_equal(
        measure_lesions(lesion, cord, hard=True).table[counted.columns], counted, rtol=1e-3
    )


def test_a_lesion_beside_the_plane_spares_half_the_diameter_on_each_side() -> None:
    beside = phantom(Lesion("box", (3, 0, 0), (0.9, 1, 4)), shift_mm=SHIFT, size_mm=(14, 14, 16))
    measured = measure_lesions(*beside.images())
    (row,) = measured.table.to_dict("records")
    assert row["flags"] == "parasagittal"
    assert row["dorsal_bridge_mm"] == row["ventral_bridge_mm"] == pytest.approx(RADIUS_MM, abs=0.4)
    assert "half the cord's A-P diameter" in measured.warnings[0]


def test_a_short_lesion_that_fills_no_voxel_of_the_plane_is_counted() -> None:
    """The part of a thick slice beside it would count as spared: 1.5 of 3 mm."""
    short = phantom(Lesion("box", (0, 0, 0), (2, 1.8, 0.95)), voxel_mm=(0.6, 0.6, 3), size_mm=(14, 14, 21))
    (row,) = measure_lesions(*short.images()).table.to_dict("records")
    assert row["definition"] == "hard"
    assert row["dorsal_bridge_mm"] == pytest.approx(RADIUS_MM - 1.8, abs=0.6)


def test_the_largest_lesion_is_the_first_and_each_has_its_soft_rim() -> None:
    upper, lower = Lesion("box", (0, 0, 5), (1.5, 1.5, 2)), Lesion("box", (0, 0.6, -4), (2, 2, 3.5))
    two = measure_lesions(*phantom(upper, lower, shift_mm=SHIFT, size_mm=(14, 14, 20)).images())
    assert two.table["lesion"].tolist() == [1, 2]
    assert two.table["volume_mm3"].tolist() == pytest.approx([lower.volume_mm3, upper.volume_mm3], rel=0.02)
    assert two.table["dorsal_bridge_mm"].tolist() == pytest.approx(
        [lower.dorsal_mm, upper.dorsal_mm], abs=0.1
    )
    assert {number: [each.slice for each in both] for number, both in two.bridges.items()}.keys() == {1, 2}


# Bad input


def changed(image: nib.Nifti1Image, values: np.ndarray) -> nib.Nifti1Image:
    return nib.Nifti1Image(values.astype(np.float32), image.affine)


def test_lesions_outside_the_cord(shares: Phantom) -> None:
    lesion, cord = shares.images(masks=True)
    outside = np.zeros(lesion.shape)
    outside[0, 0, 3:5] = 1
    with pytest.raises(UserError, match="expected lesions inside the cord, found 1, all outside"):
        measure_lesions(changed(lesion, outside), cord)
    measured = measure_lesions(changed(lesion, lesion.get_fdata() + outside), cord)
    assert measured.table["flags"].tolist() == ["", "outside"]
    assert measured.table["total_bridge_mm"].notna().tolist() == [True, False]
    assert measured.warnings == (
        "lesion map: lesion 2: not in the cord: no bridges, no damage ratio: a false voxel?",
    )


@pytest.mark.parametrize("heights", [slice(2, 8), slice(20, 26)], ids=["below the cord", "beside it"])
def test_a_false_lesion_outside_the_cord_changes_no_other(heights: slice) -> None:
    """A cord of 8 x 8 voxels that drifts along R-L; the lesion in its middle spares 3 mm on each side."""
    cord, lesion = np.zeros((2, 40, 20, 60), np.float32)
    for z in range(15, 60):
        cord[8 + z // 4 : 16 + z // 4, 6:14, z] = 1
    lesion[23:25, 9:11, 49:52] = 1
    lesion[33:39, :5, heights] = 1
    table = measure_lesions(*(nib.Nifti1Image(each, np.eye(4)) for each in (lesion, cord))).table
    assert table["flags"].tolist() == ["outside", ""]
    assert table.loc[1, ["dorsal_bridge_mm", "ventral_bridge_mm"]].tolist() == [3, 3]


def test_a_cord_that_ends_inside_the_lesion(shares: Phantom) -> None:
    lesion, cord = shares.images()
    short = cord.get_fdata()
    short[:, :, : short.shape[2] // 2] = 0
    with pytest.raises(UserError, match=r"found \d+ slice\(s\) without it: the cord ends inside the lesion"):
        measure_lesions(lesion, changed(cord, short))


def test_grids_that_differ(shares: Phantom) -> None:
    lesion, cord = shares.images()
    with pytest.raises(UserError, match="shape differs from that of the cord"):
        measure_lesions(lesion.slicer[:, :, :-1], cord)
    affine = shares.affine.copy()
    affine[0, 3] += 0.5
    moved = nib.Nifti1Image(shares.lesion, affine)
    with pytest.raises(UserError, match="affine differs from that of the cord"):
        measure_lesions(moved, cord)


def test_no_cord_and_no_lesion(shares: Phantom) -> None:
    lesion, cord = shares.images()
    with pytest.raises(UserError, match="expected a map of the cord, found nothing above 0"):
        measure_lesions(lesion, changed(cord, np.zeros(cord.shape)))
    with pytest.raises(UserError, match="values outside"):
        measure_lesions(changed(lesion, 3.7 * lesion.get_fdata()), cord)
    faint = measure_lesions(changed(lesion, 0.4 * lesion.get_fdata()), cord)
    assert len(faint.table) == 0
    assert faint.warnings == (
        "lesion map: no lesion, nothing above 0.5 (largest value 0.4): the table has no rows",
    )


# The command


def test_the_command_writes_table_explanation_and_figure(shares: Phantom, tmp_path: Path, capsys) -> None:
    lesion, cord = shares.write(tmp_path)
    out = tmp_path / "new"
    call = ["bridges", "-i", str(lesion), "--cord", str(cord), "-o", str(out / "lesions.csv")]
    assert main([*call, "--figure", str(out / "bridges.png")]) == 0
    table = pd.read_csv(out / "lesions.csv", keep_default_na=False)
    assert table.columns.tolist() == list(LESION_COLUMNS)
    assert table["dorsal_bridge_mm"].tolist() == pytest.approx([BOX.dorsal_mm], abs=0.1)
    about = json.loads((out / "lesions.json").read_text())
    assert list(about["Columns"]) == list(LESION_COLUMNS)
    assert about["GeneratedBy"][0]["Name"] == "nnunet-softseg bridges"
    assert sorted(file.name for file in out.iterdir()) == ["bridges.png", "lesions.csv", "lesions.json"]
    printed = capsys.readouterr()
    assert printed.out.startswith("1 lesion\nlesion 1: ")
    assert printed.err == ""
    with Image.open(out / "bridges.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    for color in ((0x1F, 0x5F, 0xA8), (0xC7, 0x52, 0x1A)):  # dorsal, ventral
        assert (np.abs(pixels - color).max(axis=1) < 8).sum() > 100


def test_a_table_of_another_command_keeps_its_explanation(shares: Phantom, tmp_path: Path, capsys) -> None:
    lesion, cord = shares.write(tmp_path)
    assert main(["csa", "-i", str(cord), "-o", str(tmp_path / "cord.csv")]) == 0
    before = (tmp_path / "cord.json").read_text()
    capsys.readouterr()
    assert main(["bridges", "-i", str(lesion), "--cord", str(cord), "-o", str(tmp_path / "cord.csv")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cord.csv: expected no cord.json beside it, or one of an earlier bridges, found another" in line
    assert (tmp_path / "cord.json").read_text() == before


def test_the_figure_shows_the_plane_and_the_bridges_in_mm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cord of 12 mm A-P with a lesion of 3 mm, 4 mm from behind, in voxels of 1 x 1 x 2 mm."""
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "Figure", lambda **options: drawn.append(Figure(**options)) or drawn[-1])
    cord, lesion = np.zeros((11, 20, 9), np.uint8), np.zeros((11, 20, 9), np.uint8)
    cord[1:10, 3:15] = 1
    lesion[3:8, 7:10, 4:6] = 1
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    found = measure_lesions(nib.Nifti1Image(lesion, affine), nib.Nifti1Image(cord, affine))
    figures.draw_bridges(found, tmp_path / "bridges.png")
    (panel,) = drawn[0].axes
    assert panel.get_xlim() == (14 + 6, 3 - 6)  # the middles of the cord's last voxels, anterior on the left
    assert panel.get_ylim() == (8 - 6, 10 + 6)  # those of the lesion's slices
    assert drawn[0].get_size_inches().tolist() == [6.0, pytest.approx(6 * 0.6)]  # 14 mm high, 23 wide
    lines = {line.get_label(): sorted(np.transpose(line.get_data()).tolist()) for line in panel.lines}
    height = found.bridges[1][0].slice * 2
    assert height in (8, 10)
    assert lines["lesion 1, dorsal: 4.00 mm"] == [[2.5, height], [6.5, height]]
    assert lines["lesion 1, ventral: 5.00 mm"] == [[9.5, height], [14.5, height]]
    (image,) = panel.images
    assert image.get_extent() == [-0.5, 19.5, -1, 17]  # the edges of the voxels
    shown = np.asarray(image.get_array())  # (S-I, A-P)
    assert (shown[4, 3], shown[4, 0]) == (1, 0)
    assert 0 < shown[4, 8] < 1  # the lesion is in the cord, darker than what is beside it
    outlines = [each.get_paths()[0].get_extents() for each in panel.collections]
    assert [(box.x0, box.x1) for box in outlines] == [(2.5, 14.5), (6.5, 9.5)]
    assert panel.get_title() == "Midsagittal plane (R-L index 5.00)"


def test_a_figure_without_a_lesion_says_so(
    shares: Phantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "Figure", lambda **options: drawn.append(Figure(**options)) or drawn[-1])
    lesion, cord = shares.images()
    found = measure_lesions(changed(lesion, np.zeros(lesion.shape, np.float32)), cord)
    figures.draw_bridges(found, tmp_path / "bridges.png")
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["no lesion"]


def test_a_voxel_of_exactly_a_half_has_no_edge() -> None:
    cord = np.array([0, 0.5, 1, 1, 1, 0.5, 0], np.float32)[None, :, None].repeat(2, 0)
    lesion = np.array([0, 0, 0, 1, 0.5, 0, 0], np.float32)[None, :, None].repeat(2, 0)
    plane = MidsagittalPlane(0.5)
    spared = spared_in_plane(plane, cord, lesion, soft=False)
    assert (spared.cord_from.item(), spared.cord_to.item()) == (1.5, 4.5)
    assert (spared.dorsal.item(), spared.ventral.item()) == (1.0, 1.0)


def test_an_empty_lesion_is_a_table_without_rows_and_one_line(
    shares: Phantom, tmp_path: Path, capsys
) -> None:
    _, cord = shares.write(tmp_path)
    nib.save(nib.Nifti1Image(np.zeros(shares.cord.shape, np.uint8), shares.affine), tmp_path / "none.nii.gz")
    call = ["bridges", "-i", str(tmp_path / "none.nii.gz"), "--cord", str(cord)]
    assert main([*call, "-o", str(tmp_path / "a.csv"), "--figure", str(tmp_path / "a.svg")]) == 0
    assert (tmp_path / "a.csv").read_text().splitlines() == [",".join(LESION_COLUMNS)]
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert "no lesion, nothing above 0: the table has no rows" in printed.err
    assert (tmp_path / "a.svg").read_text().rstrip().endswith("</svg>")


def test_mistakes_are_told_in_one_line_and_nothing_is_written(
    shares: Phantom, tmp_path: Path, capsys
) -> None:
    lesion, cord = shares.write(tmp_path)
    before = sorted(tmp_path.iterdir())
    for arguments, message in (
        ([str(lesion), "--cord", str(tmp_path / "x.nii.gz"), "-o", str(tmp_path / "a.csv")], "x.nii.gz"),
        ([str(lesion), "--cord", str(cord), "-o", str(tmp_path / "a.txt")], "ends in .csv"),
    ):
        assert main(["bridges", "-i", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
    assert bridges(lesion, cord).attrs["warnings"] == []


def test_the_example_of_the_page_prints_what_the_page_says(tmp_path: Path, monkeypatch, capsys) -> None:
    page = (Path(__file__).parents[2] / "docs" / "bridges.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/bridges.md", "exec"), {})
    printed = re.search(r"^It prints (.*);", page, re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == re.findall(r"`([^`]+)`", printed[1])
    assert (tmp_path / "bridges.png").stat().st_size > 10_000
