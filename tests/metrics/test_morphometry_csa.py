"""The command: files in, tables and a picture out."""

import csv
import gzip
import io
import json
import math
import os
import re
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nnunet_softseg.cli import main
from nnunet_softseg.errors import UserError
from nnunet_softseg.metrics.morphometry import COLUMNS, csa, csa_overview, figures, slice_morphometry
from nnunet_softseg.metrics.morphometry.levels import SUMMARY_COLUMNS

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def write_map(file: Path, factor: float = 1.0, slices: int = 8) -> Path:
    """A cord of 12 mm2 with soft edges of 4 mm2 in each slice."""
    volume = np.zeros((12, 12, slices), np.float32)
    volume[4:8, 4:7] = factor
    volume[4:8, 7] = factor / 2
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, AFFINE), file)
    return file


def write_levels(file: Path, values: list[int]) -> Path:
    """One level per slice."""
    volume = np.broadcast_to(np.array(values, np.uint8), (12, 12, len(values)))
    nib.save(nib.Nifti1Image(volume, AFFINE), file)
    return file


# Tables


def test_a_row_per_slice_with_units_and_an_explanation(tmp_path: Path) -> None:
    soft_map, output = write_map(tmp_path / "m.nii.gz", 0.6), tmp_path / "new" / "csa.csv"
    table = csa(soft_map, output=output)
    with output.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(table) == 8
    assert list(rows[0]) == ["file", *COLUMNS]
    assert {row["file"] for row in rows} == {str(soft_map)}
    assert [int(row["slice"]) for row in rows] == list(range(8))
    assert [float(row["csa_mm2"]) for row in rows] == pytest.approx([0.6 * 14] * 8)
    assert [float(row["csa_hard_mm2"]) for row in rows] == pytest.approx([12] * 8)
    assert [row["level"] for row in rows] == [""] * 8
    about = json.loads(output.with_suffix(".json").read_text())
    assert list(about["Columns"]) == list(rows[0])
    assert all("mm2" in about["Columns"][name] for name in rows[0] if name.endswith("mm2"))
    assert about["GeneratedBy"][0]["Parameters"]["maps"] == [str(soft_map)]
    assert sorted(path.name for path in output.parent.iterdir()) == ["csa.csv", "csa.json"]


@pytest.mark.parametrize("content", ['{"EchoTime": 0.1}', "no JSON", '{"Columns": {}, "GeneratedBy": []}'])
@pytest.mark.parametrize("target", ["output", "summary"])
def test_a_json_of_others_beside_the_table_is_not_replaced(content: str, target: str, tmp_path: Path) -> None:
    beside = tmp_path / "m.json"
    beside.write_text(content)
    unread = tmp_path / "none.nii.gz"  # refused before anything is measured
    with pytest.raises(UserError, match=r"m.csv: expected no m.json beside it, or one of an earlier csa"):
        csa(unread, **{target: tmp_path / "m.csv"})
    assert beside.read_text() == content
    assert not (tmp_path / "m.csv").exists()


def test_a_table_can_be_made_again(tmp_path: Path) -> None:
    soft_map = write_map(tmp_path / "m.nii.gz", 0.6)
    for smoothing_mm in (30, 40):
        csa(soft_map, output=tmp_path / "m.csv", smoothing_mm=smoothing_mm)
    about = json.loads((tmp_path / "m.json").read_text())
    assert about["GeneratedBy"][0]["Parameters"]["smoothing_mm"] == 40


def test_the_function_agrees_with_one_image_in_memory(tmp_path: Path) -> None:
    soft_map = write_map(tmp_path / "m.nii.gz", 0.8)
    expected = slice_morphometry(nib.load(soft_map))
    pd.testing.assert_frame_equal(csa([soft_map]).drop(columns="file"), expected)


def test_levels_choose_slices_and_are_summarised(tmp_path: Path) -> None:
    soft_map = write_map(tmp_path / "m.nii.gz")
    levels = write_levels(tmp_path / "l.nii.gz", [4, 4, 3, 3, 3, 2, 1, 1])
    table = csa(soft_map, levels=levels, vert=["2:3"], output=tmp_path / "a.csv", summary=tmp_path / "s.csv")
    assert table["slice"].tolist() == [2, 3, 4, 5]
    assert pd.read_csv(tmp_path / "a.csv")["level"].tolist() == [3, 3, 3, 2]
    summary = pd.read_csv(tmp_path / "s.csv")
    assert summary.columns.tolist() == list(SUMMARY_COLUMNS)
    assert summary["levels"].tolist() == ["C2", "C3", "C2-C3"]
    assert summary["num_slices"].tolist() == [1, 3, 4]
    assert summary["csa_mm2_mean"].tolist() == pytest.approx([14, 14, 14])
    assert json.loads((tmp_path / "s.json").read_text())["GeneratedBy"][0]["Parameters"]["vert"] == [2, 3]
    csa(soft_map, levels=levels, summary=tmp_path / "all.csv")
    assert pd.read_csv(tmp_path / "all.csv")["levels"].tolist() == ["C1", "C2", "C3", "C4", "all"]


def test_many_maps_in_processes_as_in_one(tmp_path: Path) -> None:
    maps = [write_map(tmp_path / "maps" / f"sub-{n}_T2w_0001.nii.gz", n / 4, n + 4) for n in (1, 2, 3)]
    (tmp_path / "maps" / "softseg.json").write_text("{}")
    (tmp_path / "maps" / ".hidden.nii.gz").write_text("")
    (tmp_path / "maps" / "sub.nii.gz").mkdir()
    levels = tmp_path / "levels"
    levels.mkdir()
    for n in (1, 2, 3):
        write_levels(levels / f"sub-{n}_T2w_levels.nii.gz", [n] * (n + 4))
    alone = csa(tmp_path / "maps", levels=levels)
    assert alone["file"].unique().tolist() == [str(file) for file in maps]
    assert alone.groupby("file")["level"].unique().tolist() == [[1], [2], [3]]
    assert alone.groupby("file")["csa_mm2"].mean().tolist() == pytest.approx([14 / 4, 14 / 2, 14 * 3 / 4])
    pd.testing.assert_frame_equal(csa(maps, levels=levels, num_processes=2), alone)
    one_each = [levels / f"sub-{n}_T2w_levels.nii.gz" for n in (1, 2, 3)]
    pd.testing.assert_frame_equal(csa(maps, levels=one_each), alone)


def test_a_folder_of_predictions_is_measured_by_its_soft_maps(tmp_path: Path, capsys) -> None:
    """And a case named by its contrast finds levels with a BIDS name, beside other derivatives of it."""
    for label in (1, 2):
        write_map(tmp_path / "out" / "soft" / f"sub-01_mt-on_000{label}.nii.gz", label / 4)
    write_map(tmp_path / "out" / "sub-01_mt-on.nii.gz")  # the label map
    truth = tmp_path / "truth" / "sub-01" / "anat"
    write_map(truth / "sub-01_flip-1_mt-on_MTS_label-SC_desc-truth_probseg.nii.gz")
    write_levels(truth / "sub-01_flip-1_mt-on_MTS_desc-levels_dseg.nii.gz", [3] * 8)
    call = ["csa", "-i", str(tmp_path / "out"), "--levels", str(tmp_path / "truth")]
    assert main([*call, "-o", str(tmp_path / "a.csv"), "-np", "1"]) == 0
    table = pd.read_csv(tmp_path / "a.csv")
    assert table.groupby("file")["csa_mm2"].mean().tolist() == pytest.approx([14 / 4, 14 / 2])
    assert set(table["level"]) == {3}
    assert capsys.readouterr().out.startswith(f"2 maps measured, in {tmp_path / 'out' / 'soft'}\n")


def test_a_label_of_vanilla_nnunets_output(tmp_path: Path) -> None:
    labels = np.zeros((9, 9, 6), np.uint8)
    labels[2:5, 2:5], labels[6:8, 6:8] = 1, 2
    nib.save(nib.Nifti1Image(labels, AFFINE), tmp_path / "m.nii.gz")
    assert (csa(tmp_path / "m.nii.gz", label=2)["csa_mm2"] == 4).all()
    with pytest.raises(
        UserError, match=r"m.nii.gz: values outside .* found whole numbers \(0, 1, 2\).*--label"
    ):
        csa(tmp_path / "m.nii.gz")


# Warnings


def test_an_empty_map_gives_rows_and_a_warning(tmp_path: Path, capsys) -> None:
    soft_map = write_map(tmp_path / "m.nii.gz", 0.0)
    assert main(["csa", "-i", str(soft_map), "-o", str(tmp_path / "a.csv")]) == 0
    table = pd.read_csv(tmp_path / "a.csv")
    assert len(table) == 8
    assert table["csa_mm2"].isna().all()
    captured = capsys.readouterr()
    assert "warning: " in captured.err
    assert "m.nii.gz: empty" in captured.err
    assert "nan" in captured.out


def test_a_map_with_some_of_the_levels_is_told(tmp_path: Path) -> None:
    soft_map = write_map(tmp_path / "m.nii.gz")
    levels = write_levels(tmp_path / "l.nii.gz", [3] * 8)
    table = csa(soft_map, levels=levels, vert=(2, 3))
    assert len(table) == 8
    assert len(table.attrs["warnings"]) == 1
    assert re.search(
        r"l.nii.gz: expected slices of C2-C3 in .*m.nii.gz, found C3: the mean is that of a part",
        table.attrs["warnings"][0],
    )


# Bad input


def test_levels_that_are_not_there_are_named_and_nothing_is_written(tmp_path: Path, capsys) -> None:
    soft_map = write_map(tmp_path / "m.nii.gz")
    levels = write_levels(tmp_path / "l.nii.gz", [4, 4, 5, 5, 6, 6, 0, 0])
    arguments = ["csa", "-i", str(soft_map), "--levels", str(levels), "--vert", "2", "3"]
    assert main([*arguments, "-o", str(tmp_path / "out" / "a.csv")]) == 2
    assert "expected slices of C2-C3" in (error := capsys.readouterr().err)
    assert "found C4, C5, C6: choose other levels" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vert": 2}, "C2 is asked for: expected a level image"),
        ({"levels": "l.nii.gz", "discs": "l.nii.gz"}, "found both"),
        ({"levels": ["l.nii.gz", "l.nii.gz"]}, r"one per map \(1\) or a folder, found 2"),
        ({"levels": "none.nii.gz"}, "none.nii.gz: cannot be opened"),
        ({"levels": "l.nii.gz", "vert": "C9"}, "'C9'"),
        ({"output": "a.txt"}, "a.txt: expected a file name that ends in .csv"),
        ({"figure": "a.jpg"}, "ends in .png or .svg or .pdf"),
        ({"output": "a.csv", "summary": "./a.csv"}, "found one name for both"),
        ({"output": "folder.csv"}, "found a folder"),
        ({"maps": []}, "at least one map"),
        ({"maps": ["m.nii.gz", "m.nii.gz"]}, "found m.nii.gz twice"),
        ({"maps": "empty"}, "empty: expected files that end in .* found 0 NIfTI files"),
        ({"maps": "notes.nii.gz"}, "notes.nii.gz: cannot be opened"),
        ({"maps": "missing.nii.gz"}, "missing.nii.gz: cannot be opened"),
        ({"maps": "cut.nii.gz"}, "cut.nii.gz: expected a whole file"),
        ({"maps": "short.nii"}, "short.nii: truncated data"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    write_map(Path("m.nii.gz"))
    write_levels(Path("l.nii.gz"), [2] * 8)
    Path("empty").mkdir()
    Path("folder.csv").mkdir()
    Path("empty/notes.txt").write_text("mine")
    Path("notes.nii.gz").write_text("no image")
    rng = np.random.default_rng(0)
    noise = io.BytesIO(nib.Nifti1Image(rng.random((9, 9, 9), np.float32), AFFINE).to_bytes()).getvalue()
    Path("cut.nii.gz").write_bytes(gzip.compress(noise)[:-900])
    Path("short.nii").write_bytes(noise[:-100])
    with pytest.raises(UserError, match=message) as caught:
        csa(**({"maps": "m.nii.gz"} | arguments))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("a.*"))


HOSTILE = [
    "a,b \"q\" 'x'.nii.gz",
    "<script>alert(1)</script>.nii.gz".replace("/", "_"),
    "$x_{1}$ ü 脊.nii.gz",
]


def test_hostile_file_names_survive(tmp_path: Path) -> None:
    maps = [write_map(tmp_path / name) for name in HOSTILE] + [write_map(tmp_path / "two\nlines.nii.gz")]
    csa(maps, output=tmp_path / "a.csv", summary=tmp_path / "s.csv")
    for name in ("a.csv", "s.csv"):
        with (tmp_path / name).open(newline="", encoding="utf-8") as stream:
            assert {row["file"] for row in csv.DictReader(stream)} == {str(file) for file in maps}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the font has no Chinese
        figures.draw_csa(csa(maps), tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size[0] > 1000


@pytest.mark.skipif(os.name == "nt", reason="file names are text there")
def test_a_name_that_is_no_text_survives(tmp_path: Path, capsys) -> None:
    soft_map = write_map(tmp_path / "m.nii.gz").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.nii.gz"))
    files = ["-o", str(tmp_path / "a.csv"), "--figure", str(tmp_path / "a.png")]
    assert main(["csa", "-i", str(soft_map), *files, "-np", "1"]) == 0
    assert "\\udcff.nii.gz: CSA 14.00" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "a.csv")) == 8


# Picture


def test_the_picture_shows_areas_and_levels(tmp_path: Path) -> None:
    soft_map = write_map(tmp_path / "m.nii.gz")
    levels = write_levels(tmp_path / "l.nii.gz", [4, 4, 3, 3, 3, 2, 1, 1])
    csa(soft_map, levels=levels, figure=tmp_path / "plain.png")
    csa(soft_map, levels=levels, vert=(2, 3), figure=tmp_path / "out" / "chosen.png")
    plain, chosen = (
        np.asarray(Image.open(tmp_path / name).convert("RGB")).reshape(-1, 3).astype(int)
        for name in ("plain.png", "out/chosen.png")
    )

    def green(pixels: np.ndarray) -> float:
        return float(np.mean((pixels[:, 1] > pixels[:, 0] + 8) & (pixels[:, 1] > pixels[:, 2] + 8)))

    # Four of eight slices, and the panel is most of the picture.
    assert green(plain) == 0
    assert 0.25 < green(chosen) < 0.5
    assert "nnunet-softseg" in Image.open(tmp_path / "plain.png").text["Software"]


def test_all_slices_are_drawn_from_superior_to_inferior(tmp_path: Path, monkeypatch) -> None:
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (drawn.append(self), path.touch()))
    maps = [write_map(tmp_path / f"$m_{n}$.nii.gz", 1 / n) for n in (1, 2)]
    levels = write_levels(tmp_path / "l.nii.gz", [4, 4, 3, 3, 3, 2, 1, 1])
    csa(maps, levels=levels, vert=3, figure=tmp_path / "a.svg")
    panels = drawn[0].axes
    assert len(panels) == 2
    for panel, n in zip(panels, (1, 2), strict=True):
        left, right = panel.get_xlim()
        assert (left, right) == (15, -1)
        soft = next(line for line in panel.lines if line.get_label() == "soft")
        np.testing.assert_allclose(soft.get_xdata(), np.arange(8) * 2)
        np.testing.assert_allclose(soft.get_ydata(), 14 / n)
        texts = [text.get_text() for text in panel.texts]
        assert texts == ["C4", "C3", "C2", "C1", f"C3: {14 / n:.1f} mm²"]
        assert panel.get_title().endswith(f"$m_{n}$.nii.gz")
        assert panel.title.get_parse_math() is False


def test_more_maps_than_panels_are_counted(tmp_path: Path, monkeypatch) -> None:
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(figures, "MOST_PANELS", 3)
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (drawn.append(self), path.touch()))
    table = csa(write_map(tmp_path / "m.nii.gz"))
    many = pd.concat([table.assign(file=f"map {n}") for n in range(5)])
    figures.draw_csa(many, tmp_path / "a.svg")
    shown = [panel.get_title() for panel in drawn[0].axes if panel.get_visible()]
    assert shown == ["map 0", "map 1", "map 2"]
    assert drawn[0].get_suptitle() == "The first 3 of 5 maps"


def bar(path: Path, slices: slice) -> Path:
    """A bar of 6 x 6 mm2 in some of 24 slices of 3 mm."""
    mask = np.zeros((20, 20, 24), np.uint8)
    mask[7:13, 7:13, slices] = 1
    nib.save(nib.Nifti1Image(mask, np.diag([1, 1, 3, 1])), path)
    return path


def test_it_is_said_which_slices_were_measured(tmp_path: Path) -> None:
    table = csa([bar(tmp_path / "three.nii.gz", slice(10, 13)), bar(tmp_path / "one.nii.gz", slice(10, 11))])
    three, one = csa_overview(table).splitlines()[1:]
    assert three.endswith("three.nii.gz: CSA 36.00 mm2, STD 0.00 over 3 slices (10-12); map > 0.5: 36.00 mm2")
    assert one.endswith("one.nii.gz: CSA 36.00 mm2 over 1 slice (10); map > 0.5: 36.00 mm2")
    (warning,) = table.attrs["warnings"]
    assert "one.nii.gz: a single slice: no tilt is known" in warning


def test_discs_with_a_gap_say_which_levels_are_unknown(tmp_path: Path) -> None:
    soft_map, points = bar(tmp_path / "m.nii.gz", slice(None)), np.zeros((20, 20, 24), np.uint8)
    for disc, height in ((3, 20), (4, 16), (6, 8), (7, 4)):
        points[10, 16, height] = disc
    nib.save(nib.Nifti1Image(points, np.diag([1, 1, 3, 1])), tmp_path / "d.nii.gz")
    table = csa(soft_map, discs=tmp_path / "d.nii.gz")
    assert "disc 5 is missing between others: C4-C5 cannot be told" in table.attrs["warnings"][0]
    # C3 from disc 3 down to disc 4, 12 mm, and C6: four slices each, the lower disc's own not among them.
    assert "over 24 slices (0-23), of which 8 in C3+C6" in csa_overview(table)
    part = csa(soft_map, discs=tmp_path / "d.nii.gz", vert=(3, 4))
    assert any("the mean is that of a part" in warning for warning in part.attrs["warnings"])
    with pytest.raises(UserError, match=r"expected slices of C4-C5 in .*, found C3, C6"):
        csa(soft_map, discs=tmp_path / "d.nii.gz", vert=(4, 5))


# The command line


def test_the_command(tmp_path: Path, capsys) -> None:
    soft_map = write_map(tmp_path / "m.nii.gz")
    levels = write_levels(tmp_path / "l.nii.gz", [4, 4, 3, 3, 3, 2, 1, 1])
    files = {name: tmp_path / name for name in ("a.csv", "s.csv", "a.png")}
    code = main(
        ["csa", "-i", str(soft_map), "--levels", str(levels), "--vert", "2", "3", "-o", str(files["a.csv"]),
         "--summary", str(files["s.csv"]), "--figure", str(files["a.png"]), "--smooth", "20", "-np", "1"]
    )  # fmt: skip
    assert code == 0
    assert all(file.is_file() for file in files.values())
    printed = capsys.readouterr().out
    assert re.search(
        r"CSA 14.00 mm2, STD 0.00 over 4 slices \(2-\d\), C2-C3.*; map > 0.5: 12.00 mm2", printed
    )
    parameters = json.loads((tmp_path / "a.json").read_text())["GeneratedBy"][0]["Parameters"]
    assert parameters["smoothing_mm"] == 20


def test_the_default_smoothing_of_the_command_is_that_of_the_function() -> None:
    from nnunet_softseg.cli import read_command
    from nnunet_softseg.metrics.morphometry.centreline import SMOOTHING_MM

    assert read_command(["csa", "-i", "m", "-o", "a.csv"]).smoothing_mm == SMOOTHING_MM


# Real images


def test_real_masks_have_the_areas_that_counting_gives(real_data: Path, tmp_path: Path) -> None:
    masks = sorted((real_data / "bids" / "derivatives" / "labels").rglob("*_seg-manual.nii.gz"))
    table = csa(masks, output=tmp_path / "a.csv", figure=tmp_path / "a.png")
    assert len(masks) == 6
    for mask in masks:
        image = nib.load(mask)
        rows = table[table["file"] == str(mask)]
        pixel = np.prod(np.delete(nib.affines.voxel_sizes(image.affine), 2))
        counted = np.count_nonzero(np.asarray(image.dataobj) > 0.5, axis=(0, 1)) * pixel
        np.testing.assert_allclose(rows["area_mm2"], counted, rtol=1e-5)
        np.testing.assert_allclose(rows["csa_mm2"], counted * np.cos(np.radians(rows["tilt_deg"])), rtol=1e-5)
        # A person's cord in the neck; across it, R-L exceeds A-P.
        assert 60 < rows["csa_mm2"].mean() < 90
        assert rows["tilt_deg"].max() < 30
        assert (rows["diameter_rl_mm"] > rows["diameter_ap_mm"]).mean() > 0.9


def test_real_levels_of_a_template(real_data: Path) -> None:
    template = real_data / "template"
    cord, levels = (template / f"sub-sct01_mt_PAM50_{name}.nii.gz" for name in ("cord", "levels"))
    table = csa(cord, levels=levels, vert="C4:C5")
    assert table["level"].tolist() == [5, 4]
    pixel = np.prod(nib.affines.voxel_sizes(nib.load(cord).affine)[:2])
    counted = nib.load(cord).get_fdata().sum(axis=(0, 1))[table["slice"]] * pixel
    np.testing.assert_allclose(table["csa_mm2"], counted, rtol=1e-3)  # nearly along the normal
    with pytest.raises(UserError, match=r"expected slices of C2-C3 .* found C4, C5"):
        csa(cord, levels=levels, vert=(2, 3))
    parts = csa([template / f"sub-sct01_mt_PAM50_{name}.nii.gz" for name in ("gm", "wm")])
    # Probabilistic grey and white matter add up to the cord, drawn as binary.
    assert parts["csa_mm2"].sum() == pytest.approx(table["csa_mm2"].sum(), rel=0.03)
    assert math.isnan(parts["csa_mm2"][0])


def test_a_map_that_cannot_be_used_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = tmp_path / "maps", tmp_path / "csa.csv"
    write_map(folder / "a.nii.gz")
    (folder / "b.nii.gz").write_bytes(b"no image")
    write_map(folder / "c.nii.gz", 0.5)
    assert main(["csa", "-i", str(folder), "-o", str(output), "-np", "1"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("nnunet-softseg: error: maps/b.nii.gz: cannot be opened: expected a NIfTI file")
    areas = pd.read_csv(output).groupby("file")["csa_mm2"].mean()
    assert areas.to_dict() == pytest.approx({str(folder / "a.nii.gz"): 14, str(folder / "c.nii.gz"): 7})


def test_doubts_about_the_geometry_are_told(tmp_path: Path) -> None:
    soft_map = write_map(tmp_path / "m.nii.gz")
    image = nib.load(soft_map)
    image.header["pixdim"][1:4] = 0.5, 0.5, 3  # the affine has 1 x 1 x 2 mm
    nib.save(image, soft_map)
    table = csa(soft_map)
    assert table["csa_mm2"].tolist() == pytest.approx([14] * 8)
    assert [line.split(": ")[1] for line in table.attrs["warnings"]] == ["has two voxel sizes"]
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, soft_map)
    (warning,) = csa(soft_map).attrs["warnings"]
    assert "m.nii.gz: does not say where it lies: expected sform_code or qform_code above 0" in warning
