"""What the quality page shows: places and areas by geometry, and the page as a browser shows it."""

import base64
import dataclasses
import functools
import io
import itertools
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from nnunet_softseg.io.html import write_page
from nnunet_softseg.labels.contrasts.alignment import Alignment
from nnunet_softseg.labels.contrasts.average import SoftGroundTruth
from nnunet_softseg.labels.contrasts.outlined_picture import (
    SAGITTAL,
    UNITS_PER_PIXEL,
    OutlinedPicture,
    Planes,
    Window,
    grey_levels,
    hard_outline,
    outlined_picture,
    soft_outline,
)
from nnunet_softseg.labels.contrasts.qc_page import FAILURES, RECORDS, qc_page, write_qc_page
from nnunet_softseg.labels.contrasts.qc_plot import Line, height_plot, pair_plot
from nnunet_softseg.labels.contrasts.quality import SubjectQuality, subject_quality
from nnunet_softseg.labels.contrasts.settings import GroundTruthSettings
from nnunet_softseg.labels.contrasts.volume import Volume

ORIENTATIONS = [
    "".join(codes)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for codes in itertools.product(*axes)
]
HOSTILE = "sub-<script>document.title='owned'</script>\"'><img src=x onerror=\"document.title='owned'\">ü"


# Small worlds with a known truth


def volume(values: np.ndarray, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), orientation="RAS") -> Volume:
    """A volume given in RAS, stored in another orientation."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    image = nib.Nifti1Image(values.astype(np.float32), affine)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(orientation)
    )
    turned = image.as_reoriented(turn)
    return Volume(np.asarray(turned.dataobj, np.float32), turned.affine)


def box(shape, low, high) -> np.ndarray:
    """1 in a box of voxels, its last ones included."""
    values = np.zeros(shape, np.float32)
    values[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = 1
    return values


def still(heights, *, shift=(0.0, 0.0), measured=None, agreement=1.0, doubts=()) -> Alignment:
    n = len(heights)
    return Alignment(
        height_mm=np.asarray(heights, float),
        shift_mm=np.broadcast_to(np.asarray(shift, float), (n, 2)).copy(),
        rotation_deg=np.zeros(n),
        measured=np.ones(n, bool) if measured is None else np.asarray(measured),
        coverage=np.ones(n),
        agreement=agreement,
        doubts=tuple(doubts),
    )


def truth_of(native, alignments, skipped=None, reference="T2w") -> SoftGroundTruth:
    return SoftGroundTruth(reference, native[reference], native, alignments, skipped or {})


def two_boxes() -> tuple[dict[str, Volume], dict[str, Volume], SoftGroundTruth]:
    """T2w 6 x 8 mm at z 0 to 29; T1w 8 x 8 mm, at z 10 to 19 only; both soft labels 7 x 8 mm."""
    shape = (40, 40, 30)
    masks = {
        "T2w": volume(box(shape, (10, 10, 0), (15, 17, 29))),
        "T1w": volume(box(shape, (10, 10, 10), (17, 17, 19))),
    }
    # beyond the common heights the T2w mask is much larger: it must not count
    masks["T2w"].values[3:23, 4:24, 25:] = 1
    native = {name: volume(box(shape, (10, 10, 0), (16, 17, 29))) for name in masks}
    images = {name: volume(np.arange(np.prod(shape)).reshape(shape)) for name in masks}
    heights = np.arange(30)
    alignments = {
        "T2w": still(heights),
        "T1w": still(heights, shift=(3.0, -4.0), agreement=0.9, doubts=["shift of 5.0 mm at z = 12 mm"]),
    }
    return images, masks, truth_of(native, alignments)


@functools.cache
def measured() -> SubjectQuality:
    return subject_quality("sub-01", *two_boxes())


def record(name="sub-01", **changes) -> SubjectQuality:
    return dataclasses.replace(measured(), name=name, **changes)


def without_doubts(subject: SubjectQuality) -> SubjectQuality:
    fine = tuple(dataclasses.replace(contrast, doubts=()) for contrast in subject.contrasts)
    return dataclasses.replace(subject, contrasts=fine)


def write_records(folder: Path, *subjects: SubjectQuality) -> Path:
    (folder / RECORDS).mkdir(parents=True)
    for number, subject in enumerate(subjects):
        (folder / RECORDS / f"{number}.json").write_text(json.dumps(subject.as_dict()), encoding="utf-8")
    return folder


# Reading back what was drawn


def pixels_of(picture: OutlinedPicture) -> np.ndarray:
    content = base64.b64decode(picture.uri.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("L"), float)


def edges_of(path: str) -> set[tuple[str, int, int]]:
    """The unit edges of a path of hard_outline: direction, x, y of the first end in pixels."""
    found = set()
    for x, y, direction, length in re.findall(r"M(\d+) (\d+)([hv])(\d+)", path):
        column, row, count = (int(text) / UNITS_PER_PIXEL for text in (x, y, length))
        for step in range(int(count)):
            moved = (column + step, row) if direction == "h" else (column, row + step)
            found.add((direction, int(moved[0]), int(moved[1])))
    return found


def points_of(path: str) -> np.ndarray:
    """The points of a path of soft_outline, (n, 2) as x and y in pixels."""
    points = []
    for piece in path.split("M")[1:]:
        start, way = piece.split("l")
        numbers = [np.array(re.findall(r"-?\d+", text), int).reshape(-1, 2) for text in (start, way)]
        points.append(np.cumsum(np.concatenate(numbers), axis=0))
    return np.concatenate(points) / UNITS_PER_PIXEL


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 7))
def test_the_outline_of_a_mask_is_every_edge_between_inside_and_outside(seed: int, rows: int, columns: int):
    mask = np.random.default_rng(seed).random((rows, columns)) > 0.5
    expected = set()
    for row, column in np.ndindex(mask.shape):
        if row and mask[row, column] != mask[row - 1, column]:
            expected.add(("h", column, row))
        if column and mask[row, column] != mask[row, column - 1]:
            expected.add(("v", column, row))
    assert edges_of(hard_outline(mask.astype(np.float32))) == expected


def test_a_voxel_of_exactly_a_half_is_outside_of_the_mask() -> None:
    assert hard_outline(np.full((3, 3), 0.5, np.float32)) == ""
    centre = np.where(np.arange(9).reshape(3, 3) == 4, 0.51, 0.5).astype(np.float32)
    assert edges_of(hard_outline(centre)) == {("h", 1, 1), ("h", 1, 2), ("v", 1, 1), ("v", 2, 1)}


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_the_soft_line_lies_where_the_label_has_its_value(level: float) -> None:
    # linear in the distance to a circle, over 20 pixels: the line of a value is a circle, too
    rows, columns = np.indices((61, 71)) + 0.5
    label = np.clip(0.5 - (np.hypot(columns - 35.3, rows - 30.1) - 14.0) / 20, 0, 1)
    points = points_of(soft_outline(label.astype(np.float32), level))
    found = np.hypot(*(points - (35.3, 30.1)).T)
    radius = 14.0 - 20 * (level - 0.5)
    # a distance is not linear between voxels, by 1 / (8 radius); then thinning and rounding
    assert np.abs(found - radius).max() < 1 / (8 * radius) + 0.03 + 0.02
    assert len(points) > 20


def test_no_line_for_an_empty_label() -> None:
    assert soft_outline(np.zeros((5, 5), np.float32), 0.5) == ""
    assert soft_outline(np.array([[0, 1, 0]], np.float32), 0.5) == ""
    assert hard_outline(np.zeros((5, 5), np.float32)) == ""


def test_the_image_is_shown_between_its_percentiles_whatever_lies_outside_of_it() -> None:
    part = np.arange(200, dtype=np.float32).reshape(10, 20)
    grey = grey_levels(part)
    # linear in between: percentiles 1 and 99.5 of 0..199 are 1.99 and 198.005
    assert grey[5, 0] == round(255 * (100 - 1.99) / (198.005 - 1.99))
    assert (grey[0, 0], grey[-1, -1]) == (0, 255)
    around = np.pad(part, 3, constant_values=np.nan)
    assert np.array_equal(grey_levels(around)[3:-3, 3:-3], grey)
    assert not grey_levels(around)[:3].any()
    assert not grey_levels(np.full((3, 3), 7.0, np.float32)).any()
    assert not grey_levels(np.full((3, 3), np.nan, np.float32)).any()


# From a subject to its record


def test_areas_are_compared_over_the_heights_that_all_contrasts_have() -> None:
    quality = subject_quality("sub-01", *two_boxes())
    assert quality.common_mm == (10.0, 19.0)
    by_name = {contrast.name: contrast for contrast in quality.contrasts}
    assert by_name["T2w"].csa_before_mm2 == pytest.approx(48, abs=0.1)
    assert by_name["T1w"].csa_before_mm2 == pytest.approx(64, abs=0.1)
    assert by_name["T2w"].csa_after_mm2 == pytest.approx(56, abs=0.1)
    # two values 16 apart: their standard deviation is 16 / sqrt(2)
    assert quality.csa_std_before_mm2 == pytest.approx(16 / np.sqrt(2), abs=0.1)
    assert quality.csa_std_after_mm2 == pytest.approx(0, abs=0.01)


def test_a_slice_that_lies_in_the_common_heights_in_part_counts_in_part() -> None:
    # T2w: slices of 1 mm, z 0 to 9. dwi: of 6 mm at z 0 and 6, 16 and 36 mm2. Common is 0 to 6: half of each.
    thick = np.zeros((20, 20, 2), np.float32)
    thick[8:12, 8:12, 0] = thick[7:13, 7:13, 1] = 1
    masks = {
        "T2w": volume(box((20, 20, 10), (8, 8, 0), (11, 11, 9))),
        "dwi": volume(thick, spacing=(1, 1, 6)),
    }
    heights = np.arange(10)
    truth = truth_of(masks, {name: still(heights) for name in masks})
    quality = subject_quality("sub-01", {}, masks, truth)
    assert quality.common_mm == (0.0, 6.0)
    assert quality.contrasts[1].csa_before_mm2 == pytest.approx(26, abs=0.1)
    assert quality.contrasts[0].csa_before_mm2 == pytest.approx(16, abs=0.1)


def test_a_contrast_of_one_slice_is_compared_at_its_height() -> None:
    masks = {
        "T2w": volume(box((20, 20, 10), (8, 8, 0), (11, 11, 9))),
        "dwi": volume(box((20, 20, 1), (7, 8, 0), (12, 11, 0)), spacing=(1, 1, 5), origin=(0, 0, 4)),
    }
    truth = truth_of(masks, {name: still(np.arange(10)) for name in masks})
    quality = subject_quality("sub-01", {}, masks, truth)
    assert quality.common_mm == (4.0, 4.0)
    assert [contrast.csa_before_mm2 for contrast in quality.contrasts] == pytest.approx([16, 24], abs=0.01)
    # one axial picture: all heights lie in the same slice
    assert [len(contrast.pictures) for contrast in quality.contrasts] == [2, 2]


def test_the_largest_shift_is_one_that_was_measured() -> None:
    images, masks, truth = two_boxes()
    alignment = truth.contrasts["T1w"]
    alignment.shift_mm[12] = (6.0, 8.0)
    alignment.shift_mm[25] = (60.0, 80.0)
    alignment.measured[20:] = False
    quality = subject_quality("sub-01", images, masks, truth)
    assert quality.contrasts[1].largest_shift_mm == 10.0
    assert quality.contrasts[1].largest_shift_at_mm == 12.0
    special = [one for one in quality.contrasts[1].pictures if one.caption]
    assert [(one.height_mm, one.caption) for one in special] == [(12.0, "largest shift")]


def test_a_contrast_that_took_no_part_is_shown_with_its_reason_and_counts_nowhere() -> None:
    images, masks, truth = two_boxes()
    masks["dwi"] = volume(np.zeros((40, 40, 6)), spacing=(1, 1, 5))
    images["dwi"] = volume(np.random.default_rng(0).random((40, 40, 6)), spacing=(1, 1, 5))
    truth = dataclasses.replace(truth, skipped={"dwi": "its mask is empty"})
    quality = subject_quality("sub-01", images, masks, truth)
    left_out = quality.contrasts[-1]
    assert left_out.left_out == "its mask is empty"
    assert left_out.agreement is left_out.csa_before_mm2 is left_out.largest_shift_mm is None
    assert {one.hard for one in left_out.pictures} == {""}
    assert quality.common_mm == (10.0, 19.0)
    # shown where the reference has its cord, to see what should have been outlined
    window = left_out.pictures[0]
    assert (window.columns, window.rows) == (25, 25)
    assert pixels_of(window).std() > 10


def test_a_single_contrast_has_no_spread_and_no_common_heights_no_areas() -> None:
    images, masks, truth = two_boxes()
    alone = truth_of({"T2w": truth.native["T2w"]}, {"T2w": truth.contrasts["T2w"]})
    quality = subject_quality("sub-01", images, {"T2w": masks["T2w"]}, alone)
    assert quality.csa_std_before_mm2 is None
    assert quality.common_mm == (0.0, 29.0)
    apart = masks | {"T1w": volume(box((40, 40, 5), (10, 10, 0), (17, 17, 4)), origin=(0, 0, 100))}
    quality = subject_quality("sub-01", {}, apart, truth)
    assert quality.common_mm is None
    assert quality.contrasts[0].csa_before_mm2 is None
    assert "No height that all contrasts have" in qc_page([quality], {})


def test_a_record_survives_json() -> None:
    kept = record(notes=("T2w is missing: T1w is the reference",), settings=GroundTruthSettings().as_dict())
    again = SubjectQuality.from_dict(json.loads(json.dumps(kept.as_dict(), allow_nan=False)))
    assert qc_page([again], {}) == qc_page([kept], {})
    assert dataclasses.replace(again, settings={}) == dataclasses.replace(kept, settings={})


# Where things are in the pictures


def marked_subject(orientation: str) -> tuple[dict[str, Volume], dict[str, Volume], SoftGroundTruth]:
    """A cord of 6 x 4 x 30 mm with a bright block to its right and anterior and superior of the middle.

    Voxels of 0.5 x 1 x 2 mm. The cord's centre lies at x = 3, y = -2, z = 15 mm.
    """
    shape, spacing = (80, 40, 20), (0.5, 1.0, 2.0)
    origin = (3 - 0.5 * 39.5, -2 - 19.5, 15 - 2 * 9.5)
    cord = box(shape, (34, 18, 2), (45, 21, 16))
    image = 100 * cord + 1000 * box(shape, (50, 25, 12), (55, 28, 15))
    masks = {"T2w": volume(cord, spacing, origin, orientation)}
    images = {"T2w": volume(image, spacing, origin, orientation)}
    return images, masks, truth_of(dict(masks), {"T2w": still(np.arange(0, 30, 2.0))})


@hypothesis_settings(max_examples=12)
@given(st.sampled_from(ORIENTATIONS))
def test_pictures_lie_as_radiologists_look_at_them_in_any_orientation(orientation: str) -> None:
    quality = subject_quality("sub-01", *marked_subject(orientation))
    upper, *_others, sagittal = quality.contrasts[0].pictures
    assert sagittal.plane == SAGITTAL
    # 25 mm are 50 voxels across and 25 down, around the cord's centre
    assert (upper.columns, upper.rows, upper.width_mm, upper.length_mm) == (50, 25, 25.0, 25.0)
    edges = np.array([(x, y) for direction, x, y in edges_of(upper.hard) if direction == "h"])
    # 12 voxels wide and 4 high in the middle
    assert (edges[:, 0].min(), edges[:, 0].max()) == (19, 30)
    assert sorted(set(edges[:, 1].tolist())) == [edges[:, 1].min(), edges[:, 1].min() + 4]
    assert abs(edges[:, 1].mean() - 12.5) <= 0.5
    # the block: 5 to 10 voxels to the right of the cord's right end and 4 to 7 anterior of its anterior end
    rows, columns = np.nonzero(pixels_of(upper) > 180)
    right_end, anterior_end = edges[:, 0].min(), edges[:, 1].min()
    assert (right_end - columns.max() - 1, right_end - columns.min()) == (4, 10)
    assert (anterior_end - rows.max() - 1, anterior_end - rows.min()) == (3, 7)


def test_the_sagittal_picture_has_superior_on_top_and_anterior_on_the_left() -> None:
    images, masks, truth = marked_subject("PSR")
    # a tail of the cord to anterior at its upper end
    masks = {"T2w": volume(box((80, 40, 20), (34, 18, 2), (45, 21, 16)), (0.5, 1.0, 2.0), (0, 0, 0), "PSR")}
    stored = nib.as_closest_canonical(nib.Nifti1Image(masks["T2w"].values, masks["T2w"].affine))
    values = stored.get_fdata(dtype=np.float32)
    values[34:46, 22:26, 16] = 1
    masks["T2w"] = volume(values, (0.5, 1.0, 2.0), (0, 0, 0), "PSR")
    images = {"T2w": masks["T2w"]}
    truth = truth_of(dict(masks), {"T2w": still(np.arange(4, 34, 2.0))})
    sagittal = subject_quality("sub-01", images, masks, truth).contrasts[0].pictures[-1]
    bright = pixels_of(sagittal) > 128
    filled = np.flatnonzero(bright.any(axis=1))
    assert bright[filled[0]].sum() == 8
    assert bright[filled[1]].sum() == 4
    # the tail lies to the left of the rest
    assert np.flatnonzero(bright[filled[0]])[-1] == np.flatnonzero(bright[filled[1]])[-1]
    # slices are 2 mm high; the picture reaches from 5 mm above the cord's top to below its bottom
    assert sagittal.length_mm == 2 * sagittal.rows
    # the cord's highest slice, index 16, has its middle at 32 mm and its upper edge at 33
    assert sagittal.height_mm - 2 * filled[0] == 33.0


def test_a_window_beyond_the_image_is_black_and_keeps_its_place() -> None:
    plane = np.arange(12, dtype=np.float32).reshape(3, 4) + 100
    part = Window((-1, 2), (3, 4)).cut(plane, np.nan)
    # rows from anterior (index 5) to posterior (2), columns from right (index 1) to left (-1)
    expected = np.full((4, 3), np.nan)
    expected[2] = [107, 103, np.nan]
    expected[3] = [106, 102, np.nan]
    assert np.array_equal(part, expected, equal_nan=True)
    assert np.isnan(Window((50, 50), (2, 2)).cut(plane, np.nan)).all()


# In a browser


def open_page(browser_page, tmp_path: Path, html: str) -> None:
    write_page(tmp_path / "page.html", html)
    browser_page.goto((tmp_path / "page.html").as_uri())


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Five subjects, written in an order that is not that of the page, and one that failed."""
    worse = record("sub-10")
    worst_contrast = dataclasses.replace(worse.contrasts[1], agreement=0.3, doubts=("Dice 0.30, below 0.75",))
    worse = dataclasses.replace(worse, contrasts=(worse.contrasts[0], worst_contrast))
    folder = write_records(
        tmp_path_factory.mktemp("qc") / "derivatives",
        without_doubts(record("sub-11")),
        without_doubts(record("sub-2")),
        without_doubts(record("sub-3", notes=("T2w is missing",))),
        record("sub-4"),
        worse,
    )
    (folder / FAILURES).write_text(json.dumps({"sub-9": "mask of 3 x 3 x 3 voxels: expected 4 x 4 x 4"}))
    return write_qc_page(folder)


def sections(browser_page) -> list[str]:
    return browser_page.evaluate(
        "[...document.querySelectorAll('section.subject:not([hidden])')].map(section => section.id)"
    )


def test_what_deserves_a_look_comes_first_with_its_reason(browser_page, cohort: Path) -> None:
    browser_page.goto(cohort.as_uri())
    assert sections(browser_page) == ["sub-10", "sub-4", "sub-3", "sub-2", "sub-11"]
    reasons = browser_page.locator("#sub-10 .reasons").text_content()
    assert reasons == "T1w: Dice 0.30, below 0.75"
    assert browser_page.locator("#sub-4 .reasons").text_content() == "T1w: shift of 5.0 mm at z = 12 mm"
    assert browser_page.locator("#sub-3 .notes").text_content() == "T2w is missing"
    assert browser_page.locator("#sub-2 .reasons").count() == 0
    summary = browser_page.locator("#summary").inner_text()
    assert "5 subjects, 10 images in 2 contrasts. 2 with doubts or contrasts left out, 1 failed." in summary
    # failures above everything else
    assert "expected 4 x 4 x 4" in browser_page.locator("dl.failed").inner_text()
    places = browser_page.evaluate(
        "['#failed', '#table', '#sub-10'].map(id => document.querySelector(id).offsetTop)"
    )
    assert places == sorted(places)


def test_the_table_sorts_and_leads_to_the_sections(browser_page, cohort: Path) -> None:
    browser_page.goto(cohort.as_uri())
    names = browser_page.locator("#table tbody td:first-child")
    assert names.all_inner_texts() == ["sub-10", "sub-4", "sub-3", "sub-2", "sub-11"]
    browser_page.locator("#table th", has_text="subject").locator("button").click()
    assert names.all_inner_texts() == ["sub-2", "sub-3", "sub-4", "sub-10", "sub-11"]
    head = browser_page.locator("#table th", has_text="lowest agreement").locator("button")
    head.click()
    assert names.first.inner_text() == "sub-10"
    cells = browser_page.locator("#table tbody tr").first.locator("td").all_inner_texts()
    # 64 -> 56 mm2 is the largest change; means over contrasts (48 + 64) / 2 and 56
    assert cells[3:9] == ["0.300 T1w", "5.0 T1w", "17 T2w", "56.0", "56.0", "11"]
    browser_page.locator("#table a", has_text="sub-3").click()
    assert browser_page.url.endswith("#sub-3")
    top = browser_page.evaluate("document.querySelector('#sub-3').getBoundingClientRect().top")
    assert 0 <= top < 300


def test_doubtful_subjects_and_texts_can_be_searched(browser_page, cohort: Path) -> None:
    browser_page.goto(cohort.as_uri())
    browser_page.locator("#doubtful").check()
    assert sections(browser_page) == ["sub-10", "sub-4"]
    assert browser_page.locator("#table tbody tr:visible").count() == 2
    assert browser_page.locator("#count").inner_text() == "2 shown"
    browser_page.locator("#search").fill("dice t1W")
    assert sections(browser_page) == ["sub-10"]
    browser_page.locator("#doubtful").uncheck()
    browser_page.locator("#search").fill("sub-1")
    assert sections(browser_page) == ["sub-10", "sub-11"]


def test_lines_can_be_hidden_and_a_picture_enlarged(browser_page, cohort: Path) -> None:
    browser_page.goto(cohort.as_uri() + "#sub-10")
    hard, soft = (browser_page.locator(f"#sub-10 .view {css}").first for css in (".h", ".s"))
    assert hard.is_visible()
    browser_page.locator("[data-class=no-hard]").uncheck()
    assert not hard.is_visible()
    assert soft.is_visible()
    view = browser_page.locator("#sub-10 .view").first
    small = view.bounding_box()
    view.click()
    large = browser_page.locator("dialog .view").bounding_box()
    assert large["width"] > 2.5 * small["width"]
    assert large["width"] / large["height"] == pytest.approx(small["width"] / small["height"], rel=0.02)
    browser_page.keyboard.press("Escape")
    assert not browser_page.locator("dialog").is_visible()


def test_hostile_names_are_text(browser_page, tmp_path: Path) -> None:
    images, masks, truth = two_boxes()
    contrast = HOSTILE.replace("sub-", "T1w")
    for content in (images, masks, truth.native, truth.contrasts):
        content[contrast] = content.pop("T1w")
    doubtful = dataclasses.replace(truth.contrasts[contrast], doubts=(HOSTILE,))
    truth.contrasts[contrast] = doubtful
    hostile = subject_quality(HOSTILE, images, masks, truth, notes=[HOSTILE])
    folder = write_records(tmp_path / "d", hostile)
    (folder / FAILURES).write_text(json.dumps({HOSTILE: HOSTILE}))
    browser_page.goto(write_qc_page(folder).as_uri())
    assert browser_page.title() == "Quality of the soft ground truth"
    assert browser_page.locator("section.subject h2").inner_text().startswith(HOSTILE)
    assert browser_page.locator(".card h3").nth(1).inner_text() == contrast
    assert browser_page.locator(".reasons li").inner_text() == f"{contrast}: {HOSTILE}"
    assert browser_page.locator("dl.failed dt").inner_text() == HOSTILE
    assert browser_page.locator("script").count() == 2
    assert browser_page.locator("img:not([src^='data:image/webp;'])").count() == 0
    link = browser_page.locator("#table a").get_attribute("href")
    assert browser_page.locator(f"section{link}").count() == 1
    browser_page.set_viewport_size({"width": 380, "height": 700})
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= 380


def test_every_picture_is_there(browser_page, cohort: Path) -> None:
    browser_page.goto(cohort.as_uri())
    browser_page.evaluate("for (const image of document.images) image.loading = 'eager'")
    browser_page.wait_for_function(
        "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
    )
    # per subject: three axial ones and a sagittal one of two contrasts, and the largest shift of T1w
    assert browser_page.evaluate("document.images.length") == 5 * (2 * 4 + 1)
    assert browser_page.locator("section.subject").first.locator("svg.plot").count() == 5


@pytest.mark.parametrize("width", [340, 800, 1280])
def test_no_page_scrolls_sideways(browser_page, cohort: Path, width: int) -> None:
    browser_page.set_viewport_size({"width": width, "height": 800})
    browser_page.goto(cohort.as_uri())
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= width
    card, view = (browser_page.locator(css).first.bounding_box() for css in (".card", ".card .view"))
    assert view["width"] > 100
    assert view["x"] >= card["x"]
    assert view["x"] + view["width"] <= card["x"] + card["width"]


def test_print_shows_everything_but_the_tools(browser_page, cohort: Path) -> None:
    browser_page.goto(cohort.as_uri())
    browser_page.emulate_media(media="print")
    assert not browser_page.locator(".tools").is_visible()
    assert browser_page.locator("section.subject .card").last.is_visible()
    overflow = browser_page.evaluate("getComputedStyle(document.querySelector('.scroll')).maxHeight")
    assert overflow == "none"
    pdf = browser_page.pdf(format="A4")
    # a page for the summary and one at least for each subject, each with pictures
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 6
    assert len(re.findall(rb"/Subtype\s*/Image", pdf)) >= 8


def colour_places(page, selector: str, near: tuple[int, int, int]) -> np.ndarray:
    """Pixels of an element's screenshot that have about this colour, (n, 2) as x and y in its unit square."""
    shot = np.asarray(Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB"), int)
    rows, columns = np.nonzero(np.abs(shot - near).sum(axis=2) < 60)
    return np.stack([(columns + 0.5) / shot.shape[1], (rows + 0.5) / shot.shape[0]], axis=1)


def test_lines_are_drawn_at_their_place_in_mm(browser_page, tmp_path: Path) -> None:
    # 40 x 40 mm in voxels of 0.5 x 2 mm, places from the upper left corner.
    # Soft: a disc of radius 12 mm around (18, 22) mm. Hard: 10 to 26 from the left, 16 to 28 mm from above.
    across, down = np.meshgrid((np.arange(80) + 0.5) * 0.5, (np.arange(20) + 0.5) * 2, indexing="ij")
    soft = np.clip(0.5 - (np.hypot(across - 18, down - 22) - 12) / 8, 0, 1)
    hard = (across > 10) & (across < 26) & (down > 16) & (down < 28)
    upright = [plane[::-1, ::-1].astype(np.float32) for plane in (np.zeros_like(soft), hard, soft)]
    drawn = outlined_picture(
        Planes(*upright), Window((0, 0), (80, 20)), (0.5, 2.0), plane="axial", height_mm=0.0
    )
    contrast = dataclasses.replace(without_doubts(record()).contrasts[0], pictures=(drawn,))
    # with its own lines alone: the faint ones have the same colour
    contrast = dataclasses.replace(contrast, pictures=(dataclasses.replace(drawn, faint=""),))
    open_page(browser_page, tmp_path, qc_page([record(contrasts=(contrast,))], {}))
    browser_page.locator(".card .view").click()
    view = "dialog .view"
    size = browser_page.locator(view).bounding_box()
    assert size["width"] == pytest.approx(size["height"], rel=0.01)  # 40 x 40 mm is a square
    browser_page.evaluate("document.querySelectorAll('dialog .view span').forEach(span => span.remove())")
    points = 40 * colour_places(browser_page, view, (0, 224, 255))
    radius = np.hypot(points[:, 0] - 18, points[:, 1] - 22)
    # not linear between voxels 2 mm apart: 2^2 / (8 x 12) = 0.04 mm; half a line 2 of 600 pixels wide: 0.07
    assert np.abs(radius - 12).max() < 0.2
    angles = np.degrees(np.arctan2(points[:, 1] - 22, points[:, 0] - 18))
    assert np.histogram(angles, bins=12, range=(-180, 180))[0].min() > 5
    edges = 40 * colour_places(browser_page, view, (255, 176, 0))
    assert np.allclose([edges.min(axis=0), edges.max(axis=0)], [(10, 16), (26, 28)], atol=0.15)


# The page as a whole


def test_a_record_that_cannot_be_read_hides_no_other_subject(tmp_path: Path) -> None:
    folder = write_records(tmp_path / "d", record("sub-01"))
    (folder / RECORDS / "sub-02.json").write_text('{"name": "sub-02"')
    (folder / RECORDS / "sub-03.json").write_text('{"name": "sub-03"}')
    (folder / RECORDS / "sub-04.json").write_text('"sub-04"')
    (folder / RECORDS / ".sub-05.host@1-aaaaaaaa.json").write_text("{")
    html = write_qc_page(folder).read_text(encoding="utf-8")
    for name in ("sub-02", "sub-03", "sub-04"):
        assert f"qc/subjects/{name}.json cannot be read" in html
    assert "sub-05" not in html
    assert 'id="sub-01"' in html


def test_a_broken_list_of_failures_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "qc").mkdir()
    (tmp_path / FAILURES).write_text("[")
    html = write_qc_page(tmp_path).read_text(encoding="utf-8")
    assert "qc/failed.json" in html
    assert "cannot be read" in html


def test_without_a_subject_there_is_a_page_that_says_so(browser_page, tmp_path: Path) -> None:
    browser_page.goto(write_qc_page(tmp_path / "new").as_uri())
    assert "0 subjects, 0 images in 0 contrasts" in browser_page.locator("#summary").inner_text()


def test_settings_are_told_and_differing_ones_counted() -> None:
    common = GroundTruthSettings(trim_mm=8.0, rotation=True).as_dict()
    other = GroundTruthSettings().as_dict()
    records = [record(f"sub-{n}", settings=common if n else other) for n in range(3)]
    html = qc_page(records, {})
    assert re.search(r"trim 8 mm, smooth 0 mm, rotation yes.*?implausible no \(2 subjects\)", html)
    assert re.search(r"trim 0 mm, smooth 0 mm, rotation no.*?implausible no \(1 subject\)", html)
    assert "(3 subjects)" not in qc_page(records[1:], {})


def test_a_subject_of_six_contrasts_stays_small() -> None:
    # noise compresses worst; a cord that moves and changes from slice to slice has the longest lines
    rng = np.random.default_rng(0)
    x, y, z = np.indices((40, 36, 120))
    centre = 20 + np.clip(np.cumsum(rng.normal(0, 0.3, 120)), -5, 5)[z]
    cord = np.clip(6 + rng.normal(0, 0.3, 120)[z] - np.hypot((x - centre) / 1.4, y - 18), 0, 1)
    names = [f"contrast{number}" for number in range(6)]
    masks = {name: volume(cord > 0.5) for name in names}
    images = {name: volume(rng.random(cord.shape)) for name in names}
    alignments = {name: still(np.arange(120)) for name in names}
    for alignment in alignments.values():
        alignment.shift_mm[:] = np.cumsum(rng.normal(0, 0.2, (120, 2)), axis=0)
    truth = truth_of({name: volume(cord) for name in names}, alignments, reference=names[0])
    quality = subject_quality("sub-01", images, masks, truth)
    one, two = (len(qc_page([quality] * count, {}).encode()) for count in (1, 2))
    assert two - one < 150_000


# Plots


def test_lines_of_a_plot_are_dashed_where_they_are_not_firm() -> None:
    firm = [False, True, True, False]
    plot = str(height_plot([Line("c0", [0, 1, 0, 2], [0, 10, 20, 30], firm)], "shift, mm", (0, 2), (0, 30)))
    solid = re.findall(r'class="line c0" d="M([^"]*)"', plot)
    dashed = re.findall(r'class="line c0 dashed" d="M([^"]*)"', plot)
    assert (len(solid), len(dashed)) == (1, 2)
    points = np.array(solid[0].split(), float).reshape(-1, 2)
    across, up = points[[0, -1]].T
    assert len(np.unique(points, axis=0)) == 2
    # value 0 and 2 at the left and right end of the frame (38, 242), heights 0 and 30 at 220 and 22
    assert np.allclose(across, [140, 38], atol=0.1)
    assert np.allclose(up, [220 - 66, 220 - 132], atol=0.1)


def test_a_plot_keeps_what_can_be_seen_of_a_line() -> None:
    height = np.arange(200)
    value = np.sin(height / 20) + 3 * (height == 130)  # slow, and one slice that jumps
    plot = str(height_plot([Line("c0", value, height)], "shift", (value.min(), value.max()), (0, 199)))
    drawn = np.array(re.findall(r'line c0" d="M([^"]*)"', plot)[0].split(), float).reshape(-1, 2)
    # where each point belongs: the frame reaches from 38 to 242 across and from 220 up to 22
    wanted = np.column_stack([38 + 204 * (value - value.min()) / np.ptp(value), 220 - 198 * height / 199])
    start, way = drawn[:-1, None], np.diff(drawn, axis=0)[:, None]
    along = np.clip(((wanted - start) * way).sum(axis=2) / np.maximum((way**2).sum(axis=2), 1e-9), 0, 1)
    away = np.linalg.norm(wanted - start - along[..., None] * way, axis=2).min(axis=0)
    assert away.max() < 0.4
    assert len(drawn) < 80


def test_a_plot_without_data_is_an_empty_frame() -> None:
    assert "line" not in str(height_plot([Line("c0", [], [])], "shift, mm", (0, 1), (0, 1)))
    assert "circle" not in str(pair_plot([], "area", (0, 1)))
    assert "&lt;b&gt;" in str(pair_plot([], "<b>", (0, 1)))
