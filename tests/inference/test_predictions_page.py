"""The end of a prediction: cases by flag with what to do, and the page of pictures."""

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import REPOSITORY
from matplotlib.contour import QuadContourSet
from PIL import Image
from tiny_dataset import affine_of

from nnunet_softseg.inference import export
from nnunet_softseg.inference.case_record import WORDS, Flag, flag_lines
from nnunet_softseg.inference.export import summarise
from nnunet_softseg.inference.qc_page import case_figure, read_case

FLAGS = {"a": [Flag.UNLIKE, Flag.EMPTY], "b": [], "c": [Flag.UNLIKE], "d": [Flag.BORDER], "e": []}
BAR = np.zeros((20, 24, 16), np.float32)
BAR[8:12, 9:14, 3:13] = 1
BAR[12, 9:14, 3:13] = 0.25


def entry(flags: list[str], warnings: list[str] | None = None) -> dict[str, Any]:
    labels = {"cord": {"soft_volume_mm3": 1234.5, "removed_percent": 0.0}}
    return {"flags": flags, "warnings": warnings or [f"{flag}: why" for flag in flags], "labels": labels,
            "seconds": {"forward": 1.0}}  # fmt: skip


def save(file: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values.astype(np.float32), affine), file)
    return file


def write_predictions(folder: Path, cases: dict[str, list[str]] = FLAGS) -> dict[str, Path]:
    """softseg.json and a soft map of each case; returns the images."""
    images = {}
    for case in cases:
        affine = affine_of("LPS", (1, 1, 2))
        save(folder / "soft" / f"{case}_0001.nii.gz", BAR, affine)
        images[case] = save(folder / "images" / f"{case}_0000.nii.gz", 100 * BAR + 7, affine)
    entries = {case: entry(flags) for case, flags in cases.items()}
    (folder / "softseg.json").write_text(json.dumps({"cases": entries}))
    return images


def test_cases_are_counted_by_flag_the_most_serious_first_with_what_to_do() -> None:
    entries = {case: entry(flags) for case, flags in FLAGS.items()} | {"f": entry([], ["older model"])}
    assert flag_lines(entries) == [
        "6 cases, 3 flagged:",
        "  1 with nothing found: a: right if the structure is absent, else look at the image",
        "  2 unlike the labels of the training: a, c: look at the map before you measure it",
        "  1 at the border of what the network saw: d: the structure may be cut off: try --localize always, "
        "or crop the image around it",
        "  1 with a warning: f: older model",
    ]
    assert flag_lines({"b": entry([])}) == ["1 case, none flagged"]
    assert flag_lines({}) == []


def test_every_flag_has_words_and_one_of_a_later_version_is_named() -> None:
    assert set(WORDS) == {*Flag}
    assert flag_lines({"a": entry(["of the future"])})[1] == "  1 flagged: of the future: a: see softseg.json"


def test_of_a_single_case_volume_area_and_the_viewers_command_are_told(tmp_path: Path) -> None:
    """Ten slices of 4 x 5 voxels of 1 mm2 and a quarter of a fifth row: 21.25 mm2."""
    images = write_predictions(tmp_path, {"a b": [], "c": []})
    said = summarise(tmp_path, {"a b": images["a b"]}, (1,), draw=False, progress=False).splitlines()
    assert said[0] == "1 case, none flagged"
    assert said[1].startswith("cord: soft volume 1.23 cm3, 21.2 mm2 over the middle third")  # volume: entry()
    command = shlex.split(said[2].partition(": ")[2])
    assert command[:3] == ["fsleyes", str(images["a b"]), str(tmp_path / "soft" / "a b_0001.nii.gz")]
    assert len(summarise(tmp_path, images, (1,), draw=False, progress=False).splitlines()) == 1

    save(tmp_path / "soft" / "c_0001.nii.gz", 0 * BAR, np.eye(4))
    assert "cord: none found" in summarise(tmp_path, {"c": images["c"]}, (1,), draw=False, progress=False)


def test_a_summary_without_pictures_loads_no_matplotlib(
    tmp_path: Path, in_new_python: Callable[..., str]
) -> None:
    write_predictions(tmp_path)
    code = (
        "import sys; from pathlib import Path; from nnunet_softseg.inference.export import summarise; "
        f"print(summarise(Path({str(tmp_path)!r}), {{'a': Path('a')}}, (1,), draw=False, progress=False)); "
        "print('matplotlib' in sys.modules)"
    )
    said = in_new_python(code, env={"PYTHONPATH": str(REPOSITORY)})
    assert said.splitlines()[0::3] == ["1 case, 1 flagged:", "False"]


def test_the_page_shows_all_cases_flagged_first_and_a_repeated_call_draws_nothing_again(
    tmp_path: Path, browser_page: Any
) -> None:
    images = write_predictions(tmp_path)
    said = summarise(tmp_path, {"c": images["c"]}, (1,), draw=True, progress=False)
    page = tmp_path / "qc" / "index.html"
    assert said.splitlines()[0] == "1 case, 1 flagged:"  # of this call
    assert said.splitlines()[-1] == f"pictures of all, flagged first: {page}"
    first = (tmp_path / "qc" / "c.webp").stat().st_mtime_ns
    summarise(tmp_path, images, (1,), draw=True, progress=False)
    assert (tmp_path / "qc" / "c.webp").stat().st_mtime_ns == first
    os.utime(tmp_path / "soft" / "c_0001.nii.gz")  # predicted again
    summarise(tmp_path, images, (1,), draw=True, progress=False)
    assert (tmp_path / "qc" / "c.webp").stat().st_mtime_ns > first

    browser_page.set_viewport_size({"width": 360, "height": 700})
    browser_page.goto(page.as_uri())
    assert browser_page.locator("section h2").all_inner_texts()[0].startswith("a")
    names = [text.split()[0] for text in browser_page.locator("section h2").all_inner_texts()]
    assert names == ["a", "c", "d", "b", "e"]
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= 360
    assert browser_page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    browser_page.check("#implausible")
    assert browser_page.locator("section:visible").count() == 3


def test_no_page_where_none_is_wanted_and_of_many_cases(tmp_path: Path, monkeypatch) -> None:
    images = write_predictions(tmp_path)
    summarise(tmp_path, images, (1,), draw=False, progress=False)
    monkeypatch.setattr(export, "MOST_CASES", 4)
    said = summarise(tmp_path, images, (1,), draw=True, progress=False)
    assert said.splitlines()[-1] == "no pictures: expected at most 4 cases in a folder, found 5"
    assert not (tmp_path / "qc").exists()


def test_a_picture_that_cannot_be_made_is_told_on_the_page_and_stops_no_other(tmp_path: Path) -> None:
    images = write_predictions(tmp_path, {"a": [], "b": []})
    (tmp_path / "soft" / "a_0001.nii.gz").write_bytes(b"broken")
    summarise(tmp_path, images, (1,), draw=True, progress=False)
    page = (tmp_path / "qc" / "index.html").read_text()
    assert "No flag catches a smooth, plausible map that is too small or too large" in page
    assert page.count("No picture: ") == 1
    assert Image.open(tmp_path / "qc" / "b.webp").size[0] > 300


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAR", "PIL"])
def test_planes_and_areas_are_the_same_however_the_file_is_stored(tmp_path: Path, orientation: str) -> None:
    """A bar of 4 x 5 voxels of 1 mm2, and a quarter of a fifth row: 21.25 mm2 in each of ten slices."""
    affine = affine_of("RAS", (1, 1, 2))
    plain = nib.Nifti1Image(BAR, affine)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(orientation)
    )
    stored = plain.as_reoriented(turn)
    file = save(tmp_path / "a.nii.gz", np.asarray(stored.dataobj), stored.affine)
    figure = case_figure(read_case(None, {"cord": file}))
    sagittal, _, areas, axial, _ = figure.axes
    (line,) = areas.lines
    expected = np.where((np.arange(16) >= 3) & (np.arange(16) < 13), 21.25, 0)
    assert np.allclose(line.get_xdata(), expected)
    assert np.allclose(line.get_ydata(), 2 * np.arange(16) + 1)
    assert areas.get_ylim() == sagittal.get_ylim() == (0, 32)
    contours = [child for child in axial.get_children() if isinstance(child, QuadContourSet)]
    half = contours[0].allsegs[1][0]  # the contour at 0.5, in mm from the corner: voxel 8 begins at 8
    assert np.allclose(half.min(axis=0), (8, 9), atol=0.01)
    assert np.allclose(half.max(axis=0), (12.17, 14), atol=0.01)  # where the line from 1 to 0.25 meets 0.5
    assert axial.get_xlim()[0] > axial.get_xlim()[1]  # the patient's right is on the left


def test_one_slice_and_an_empty_map_have_a_picture(tmp_path: Path) -> None:
    flat = save(tmp_path / "flat.nii.gz", BAR[:, :, 5:6], np.eye(4))
    empty = save(tmp_path / "empty.nii.gz", 0 * BAR, np.eye(4))
    assert len(case_figure(read_case(flat, {"fibre": flat, "axon": flat})).axes) == 2
    assert len(case_figure(read_case(empty, {"cord": empty})).axes) == 5
