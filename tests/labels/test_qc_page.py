"""Quality control: areas and places by geometry, the picture of a subject, the page in a browser."""

import dataclasses
import functools
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
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from PIL import Image

from nnunet_softseg.io.html import grey_levels, save_figure
from nnunet_softseg.labels.contrasts.alignment import Alignment
from nnunet_softseg.labels.contrasts.average import SoftGroundTruth
from nnunet_softseg.labels.contrasts.qc_figure import (
    AXIAL_SIDE_MM,
    HARD_COLOUR,
    SOFT_COLOUR,
    subject_figure,
)
from nnunet_softseg.labels.contrasts.qc_page import FAILURES, write_qc_page
from nnunet_softseg.labels.contrasts.quality import SubjectQuality, areas_of, subject_quality
from nnunet_softseg.labels.contrasts.settings import GroundTruthSettings
from nnunet_softseg.labels.contrasts.subject import SubjectOutcome, picture_file, record_file
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


def still(heights, *, shift=(0.0, 0.0), measured=None, agreement=1.0, warnings=()) -> Alignment:
    n = len(heights)
    return Alignment(
        height_mm=np.asarray(heights, float),
        shift_mm=np.broadcast_to(np.asarray(shift, float), (n, 2)).copy(),
        rotation_deg=np.zeros(n),
        measured=np.ones(n, bool) if measured is None else np.asarray(measured),
        coverage=np.ones(n),
        agreement=agreement,
        warnings=tuple(warnings),
    )


def truth_of(native, alignments, skipped=None, reference="T2w") -> SoftGroundTruth:
    return SoftGroundTruth(reference, native, alignments, skipped or {})


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
        "T1w": still(heights, shift=(3.0, -4.0), agreement=0.9, warnings=["shift of 5.0 mm at z = 12 mm"]),
    }
    return images, masks, truth_of(native, alignments)


def measured(masks, truth) -> SubjectQuality:
    return subject_quality(truth, areas_of(masks, truth))


def drawn(images, masks, truth) -> Figure:
    areas = areas_of(masks, truth)
    return subject_figure(subject_quality(truth, areas), images, masks, truth, areas)


@functools.cache
def quality_of_two_boxes() -> SubjectQuality:
    return measured(*two_boxes()[1:])


def outcome(person="sub-01", **changes) -> SubjectOutcome:
    return dataclasses.replace(SubjectOutcome(person, "T2w", quality=quality_of_two_boxes()), **changes)


def without_warnings(subject: SubjectOutcome) -> SubjectOutcome:
    return with_contrasts(subject, warnings=())


def with_contrasts(subject: SubjectOutcome, place: slice = slice(None), **changes) -> SubjectOutcome:
    contrasts = list(subject.quality.contrasts)
    contrasts[place] = [dataclasses.replace(contrast, **changes) for contrast in contrasts[place]]
    return dataclasses.replace(
        subject, quality=dataclasses.replace(subject.quality, contrasts=tuple(contrasts))
    )


def write_records(
    folder: Path, *outcomes: SubjectOutcome, settings: GroundTruthSettings | None = None
) -> Path:
    for subject in outcomes:
        request = {"version": "1.2.3", "parameters": dataclasses.asdict(settings or GroundTruthSettings())}
        record = {"request": request, "outputs": {}, "outcome": dataclasses.asdict(subject)}
        for file in (record_file(folder, subject.person), picture_file(folder, subject.person)):
            file.parent.mkdir(parents=True, exist_ok=True)
        record_file(folder, subject.person).write_text(json.dumps(record, allow_nan=False), encoding="utf-8")
        Image.new("L", (1100, 1300)).save(picture_file(folder, subject.person))
    return folder


# Reading back what was drawn


def panels(figure: Figure, title: str) -> list[Axes]:
    """The pictures and plots below a title, from above: those that show anything."""
    left = next(axes for axes in figure.axes if title in [text.get_text() for text in axes.texts])
    column = [axes for axes in figure.axes if abs(axes.get_position().x0 - left.get_position().x0) < 1e-6]
    return [axes for axes in column if axes.images or axes.findobj(QuadContourSet)]


def plot(figure: Figure, title: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_title() == title)


def lines(axes: Axes, colour: str, level: float = 0.5) -> np.ndarray:
    """The points of the contours of one colour and value, (n, 2) in mm; empty for none."""
    found = [np.empty((0, 2))]
    for contours in axes.findobj(QuadContourSet):
        paths = contours.get_paths()
        for path, value, edge in zip(paths, contours.levels, contours.get_edgecolors(), strict=True):
            if value == level and np.allclose(edge, to_rgba(colour)):
                found.append(path.vertices)
    return np.concatenate(found)


def grey(axes: Axes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of the voxels across and up in mm, (n,), and their grey levels."""
    (image,) = axes.images
    values = np.asarray(image.get_array(), float)
    x0, x1, y0, y1 = image.get_extent()
    rows, columns = np.indices(values.shape)
    across = x0 + (columns + 0.5) * (x1 - x0) / values.shape[1]
    return across.ravel(), (y0 + (rows + 0.5) * (y1 - y0) / values.shape[0]).ravel(), values.ravel()


def one_slice(values: np.ndarray, soft: np.ndarray | None = None, spacing=(1.0, 1.0)) -> Axes:
    """The axial picture of a mask (R-L, A-P) that goes on along S-I, 0 mm at its first voxel."""
    soft = values if soft is None else soft
    stacked = [
        np.repeat(plane[:, :, None], 4, axis=2) for plane in (values, values if soft is None else soft)
    ]
    mask, label = (volume(stack.astype(np.float32), (*spacing, 1.0)) for stack in stacked)
    figure = drawn({}, {"T2w": mask}, truth_of({"T2w": label}, {"T2w": still(np.arange(4))}))
    return panels(figure, "T2w (reference)")[0]


def test_the_outline_of_a_mask_follows_the_edges_of_its_voxels() -> None:
    mask = np.zeros((20, 20))
    mask[8:12, 9:11] = 1
    mask[12, 9] = 1
    outline = lines(one_slice(mask, spacing=(0.5, 2.0)), HARD_COLOUR)
    # voxels 8 to 12 across are 3.75 to 6.25 mm, 9 to 10 up are 17 to 21 mm
    assert np.allclose([outline.min(axis=0), outline.max(axis=0)], [(3.75, 17), (6.25, 21)], atol=1e-6)
    on_edge = np.isclose(np.abs(outline[:, 0] / 0.5 % 1 - 0.5), 0, atol=1e-6) | np.isclose(
        np.abs(outline[:, 1] / 2 % 1 - 0.5), 0, atol=1e-6
    )
    assert on_edge.all()


def test_a_voxel_of_exactly_a_half_is_outside_of_the_mask() -> None:
    mask = np.full((20, 20), 0.5)
    mask[10, 10] = 0.51
    outline = lines(one_slice(mask), HARD_COLOUR)
    assert np.allclose([outline.min(axis=0), outline.max(axis=0)], [(9.5, 9.5), (10.5, 10.5)], atol=1e-6)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_the_soft_line_lies_where_the_label_has_its_value(level: float) -> None:
    # linear in the distance to a circle, over 10 mm: the line of a value is a circle, too
    across, up = np.indices((61, 71))
    label = np.clip(0.5 - (np.hypot(across - 30.3, up - 35.1) - 6.0) / 10, 0, 1)
    points = lines(one_slice(label > 0.5, label), SOFT_COLOUR, level)
    found = np.hypot(*(points - (30.3, 35.1)).T)
    radius = 6.0 - 10 * (level - 0.5)
    # a distance is not linear between voxels, by 1 / (8 radius)
    assert np.abs(found - radius).max() < 1 / (8 * radius)
    assert len(points) > 15


def test_no_line_for_an_empty_label() -> None:
    mask = np.zeros((20, 20))
    mask[8:12, 8:12] = 1
    assert len(lines(one_slice(mask, np.zeros((20, 20))), SOFT_COLOUR)) == 0


def test_the_image_is_shown_between_its_percentiles_whatever_is_not_finite() -> None:
    part = np.arange(200, dtype=np.float32).reshape(10, 20)
    levels = grey_levels(part)
    # linear in between: percentiles 1 and 99.5 of 0..199 are 1.99 and 198.005
    assert levels[5, 0] == round(255 * (100 - 1.99) / (198.005 - 1.99))
    assert (levels[0, 0], levels[-1, -1]) == (0, 255)
    around = np.pad(part, 3, constant_values=np.nan)
    assert np.array_equal(grey_levels(around)[3:-3, 3:-3], levels)
    assert not grey_levels(around)[:3].any()
    assert not grey_levels(np.full((3, 3), 7.0, np.float32)).any()
    assert not grey_levels(np.full((3, 3), np.nan, np.float32)).any()


# From a subject to its record


def test_areas_are_compared_over_the_heights_that_all_contrasts_have() -> None:
    quality = quality_of_two_boxes()
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
    quality = measured(masks, truth)
    assert quality.common_mm == (0.0, 6.0)
    assert quality.contrasts[1].csa_before_mm2 == pytest.approx(26, abs=0.1)
    assert quality.contrasts[0].csa_before_mm2 == pytest.approx(16, abs=0.1)


def test_a_contrast_of_one_slice_is_compared_at_its_height() -> None:
    masks = {
        "T2w": volume(box((20, 20, 10), (8, 8, 0), (11, 11, 9))),
        "dwi": volume(box((20, 20, 1), (7, 8, 0), (12, 11, 0)), spacing=(1, 1, 5), origin=(0, 0, 4)),
    }
    truth = truth_of(masks, {name: still(np.arange(10)) for name in masks})
    quality = measured(masks, truth)
    assert quality.common_mm == (4.0, 4.0)
    assert [contrast.csa_before_mm2 for contrast in quality.contrasts] == pytest.approx([16, 24], abs=0.01)
    # one axial picture: all heights lie in the same slice of dwi; and no line along a single row
    figure = drawn({}, masks, truth)
    assert len(lines(panels(figure, "dwi")[0], HARD_COLOUR)) > 0
    assert len(panels(figure, "dwi")) == 2


def test_the_largest_shift_is_one_that_was_measured() -> None:
    images, masks, truth = two_boxes()
    alignment = truth.contrasts["T1w"]
    alignment.shift_mm[12] = (6.0, 8.0)
    alignment.shift_mm[25] = (60.0, 80.0)
    alignment.measured[20:] = False
    quality = measured(masks, truth)
    assert quality.contrasts[1].largest_shift_mm == 10.0
    assert quality.contrasts[1].largest_shift_at_mm == 12.0
    captions = [text.get_text() for axes in drawn(images, masks, truth).axes for text in axes.texts]
    assert [caption for caption in captions if "largest" in caption] == ["z 12.0 mm, largest shift"]


def test_a_contrast_that_took_no_part_is_shown_with_its_reason_and_counts_nowhere() -> None:
    images, masks, truth = two_boxes()
    masks["dwi"] = volume(np.zeros((40, 40, 6)), spacing=(1, 1, 5))
    images["dwi"] = volume(np.random.default_rng(0).random((40, 40, 6)), spacing=(1, 1, 5))
    truth = dataclasses.replace(truth, skipped={"dwi": "its mask is empty"})
    quality = measured(masks, truth)
    left_out = quality.contrasts[-1]
    assert left_out.left_out == "its mask is empty"
    assert left_out.agreement is left_out.csa_before_mm2 is left_out.largest_shift_mm is None
    assert quality.common_mm == (10.0, 19.0)
    # shown where the reference has its cord, to see what should have been outlined
    upper = panels(drawn(images, masks, truth), "dwi")[0]
    assert upper.get_xlim() == (12.5 + AXIAL_SIDE_MM / 2, 12.5 - AXIAL_SIDE_MM / 2)
    assert grey(upper)[2].std() > 10
    assert len(lines(upper, HARD_COLOUR)) == len(lines(upper, SOFT_COLOUR)) == 0


def test_a_single_contrast_has_no_spread_and_no_common_heights_no_areas(tmp_path: Path) -> None:
    _images, masks, truth = two_boxes()
    alone = truth_of({"T2w": truth.native["T2w"]}, {"T2w": truth.contrasts["T2w"]})
    quality = measured({"T2w": masks["T2w"]}, alone)
    assert quality.csa_std_before_mm2 is None
    assert quality.common_mm == (0.0, 29.0)
    apart = masks | {"T1w": volume(box((40, 40, 5), (10, 10, 0), (17, 17, 4)), origin=(0, 0, 100))}
    quality = measured(apart, truth)
    assert quality.common_mm is None
    assert quality.contrasts[0].csa_before_mm2 is None
    page = write_qc_page(write_records(tmp_path, outcome(quality=quality))).read_text(encoding="utf-8")
    assert "No height that all contrasts have" in page


def test_a_record_survives_json() -> None:
    kept = outcome(notes=("T2w is missing: T1w is the reference",))
    content = json.loads(json.dumps(dataclasses.asdict(kept), allow_nan=False))
    assert SubjectOutcome.from_dict(content) == kept


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
    figure = drawn(*marked_subject(orientation))
    upper = panels(figure, "T2w (reference)")[0]
    right, left = upper.get_xlim()
    posterior, anterior = upper.get_ylim()
    assert (right - left, anterior - posterior) == pytest.approx((AXIAL_SIDE_MM, AXIAL_SIDE_MM))
    # right of the patient on the left; upright, voxels lie at index times spacing: 34 to 45, 18 to 21
    outline = lines(upper, HARD_COLOUR)
    assert np.allclose([outline.min(axis=0), outline.max(axis=0)], [(16.75, 17.5), (22.75, 21.5)], atol=1e-6)
    # the cord in the middle
    assert ((right + left) / 2, (anterior + posterior) / 2) == pytest.approx((19.75, 19.5))
    # the block: voxels 50 to 55 to the right, 25 to 28 to anterior
    across, up, values = grey(upper)
    bright = values > 180
    assert (across[bright].min(), across[bright].max()) == pytest.approx((25.0, 27.5))
    assert (up[bright].min(), up[bright].max()) == pytest.approx((25.0, 28.0))


@pytest.mark.parametrize("orientation", ["RAS", "PSR", "LPI"])
def test_the_sagittal_picture_has_superior_on_top_and_anterior_on_the_left(orientation: str) -> None:
    # a tail of the cord to anterior at its upper end
    values = box((80, 40, 20), (34, 18, 2), (45, 21, 16))
    values[34:46, 22:26, 16] = 1
    masks = {"T2w": volume(values, (0.5, 1.0, 2.0), (0, 0, 0), orientation)}
    truth = truth_of(dict(masks), {"T2w": still(np.arange(4, 34, 2.0))})
    sagittal = panels(drawn(masks, masks, truth), "T2w (reference)")[-1]
    anterior, posterior = sagittal.get_xlim()
    assert anterior > posterior  # the axis grows to the left
    across, z, values = grey(sagittal)
    bright = values > 128
    # the tail: 8 voxels from 18 to 25 in the highest slice, index 16, with its middle at 32 mm; else 18 to 21
    assert sorted(across[bright & np.isclose(z, 32)]) == pytest.approx([18, 19, 20, 21, 22, 23, 24, 25])
    assert sorted(across[bright & np.isclose(z, 30)]) == pytest.approx([18, 19, 20, 21])
    assert (z[bright].min(), z[bright].max()) == pytest.approx((4, 32))
    # 5 mm beyond the cord at both ends
    assert sagittal.get_ylim() == pytest.approx((-1, 37))
    assert np.allclose(lines(sagittal, HARD_COLOUR).max(axis=0), (25.5, 33), atol=1e-6)


def test_a_picture_beyond_the_image_is_black_and_keeps_its_place() -> None:
    masks = {"T2w": volume(box((8, 30, 4), (0, 10, 0), (3, 15, 3)))}
    images = {"T2w": volume(np.arange(8 * 30 * 4).reshape(8, 30, 4) + 100)}
    upper = panels(
        drawn(images, masks, truth_of(dict(masks), {"T2w": still(np.arange(4))})), "T2w (reference)"
    )[0]
    assert upper.get_xlim() == pytest.approx((14, -11))
    assert upper.get_facecolor() == to_rgba("k")
    across, _up, values = grey(upper)
    assert (across.min(), across.max()) == pytest.approx((0, 7))
    assert values[across < 1].max() < values[across > 6].max()


# Plots along the cord


def test_shifts_are_dotted_where_they_were_not_measured() -> None:
    images, masks, truth = two_boxes()
    truth.contrasts["T1w"].measured[:10] = truth.contrasts["T1w"].measured[20:] = False
    for title, value in (("shift to the right, mm", 3), ("shift to anterior, mm", -4)):
        drawn_lines = plot(drawn(images, masks, truth), title).get_lines()
        (firm,) = (line for line in drawn_lines if line.get_linestyle() == "-" and value in line.get_xdata())
        (dotted,) = (
            line for line in drawn_lines if line.get_linestyle() == ":" and value in line.get_xdata()
        )
        assert np.flatnonzero(np.isfinite(firm.get_xdata())).tolist() == list(range(10, 20))
        assert np.array_equal(dotted.get_ydata(), np.arange(30))
        assert (dotted.get_xdata() == value).all()


def test_areas_are_drawn_at_their_heights_and_means_before_and_after() -> None:
    figure = drawn(*two_boxes())
    before, after = (plot(figure, f"area of {what}, mm²") for what in ("hard masks", "soft labels"))
    found = {tuple(line.get_ydata()): line.get_xdata() for line in before.get_lines()}
    assert found[tuple(range(10, 20))] == pytest.approx(np.full(10, 64), abs=0.1)
    assert found[tuple(range(30))][:25] == pytest.approx(np.full(25, 48), abs=0.5)
    assert all(line.get_xdata() == pytest.approx(np.full(30, 56), abs=0.1) for line in after.get_lines())
    assert before.get_xlim() == after.get_xlim()
    means = plot(figure, "mean area: ○ hard ● soft").get_lines()
    assert [tuple(line.get_xdata()) for line in means if len(line.get_xdata()) == 2] == [
        pytest.approx((48, 56), abs=0.1),
        pytest.approx((64, 56), abs=0.1),
    ]


# In a browser


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Five subjects, written in an order that is not that of the page, and one that failed."""
    worse = with_contrasts(outcome("sub-10"), slice(1, 2), agreement=0.3, warnings=("Dice 0.30, below 0.75",))
    folder = write_records(
        tmp_path_factory.mktemp("qc") / "derivatives",
        without_warnings(outcome("sub-11")),
        without_warnings(outcome("sub-2")),
        without_warnings(outcome("sub-3", notes=("T2w is missing",))),
        outcome("sub-4"),
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
    assert "5 subjects, 10 images in 2 contrasts. 2 with warnings or contrasts left out, 1 failed." in summary
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


def test_implausible_subjects_and_texts_can_be_searched(browser_page, cohort: Path) -> None:
    browser_page.goto(cohort.as_uri())
    browser_page.locator("#implausible").check()
    assert sections(browser_page) == ["sub-10", "sub-4"]
    assert browser_page.locator("#table tbody tr:visible").count() == 2
    assert browser_page.locator("#count").inner_text() == "2 shown"
    browser_page.locator("#search").fill("dice t1W")
    assert sections(browser_page) == ["sub-10"]
    browser_page.locator("#implausible").uncheck()
    browser_page.locator("#search").fill("sub-1")
    assert sections(browser_page) == ["sub-10", "sub-11"]


def test_hostile_names_are_text(browser_page, tmp_path: Path) -> None:
    contrast = HOSTILE.replace("sub-", "T1w")
    hostile = with_contrasts(outcome(notes=(HOSTILE,)), slice(1, 2), name=contrast, warnings=(HOSTILE,))
    folder = write_records(tmp_path / "d", hostile)
    (folder / FAILURES).write_text(json.dumps({HOSTILE: HOSTILE}))
    browser_page.goto(write_qc_page(folder).as_uri())
    assert browser_page.title() == "Quality of the soft ground truth"
    assert browser_page.locator(".reasons li").inner_text() == f"{contrast}: {HOSTILE}"
    assert browser_page.locator(".notes li").inner_text() == HOSTILE
    assert browser_page.locator("dl.failed dt").inner_text() == HOSTILE
    assert browser_page.locator("script").count() == 2
    assert browser_page.locator("img").count() == 1
    browser_page.set_viewport_size({"width": 380, "height": 700})
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= 380


def test_hostile_names_can_be_drawn(tmp_path: Path) -> None:
    images, masks, truth = two_boxes()
    contrast = HOSTILE.replace("sub-", "$T1w_{")
    for content in (images, masks, truth.native, truth.contrasts):
        content[contrast] = content.pop("T1w")
    save_figure(drawn(images, masks, truth), tmp_path / "a.webp")
    with Image.open(tmp_path / "a.webp") as picture:
        assert picture.size[0] == 900


def test_every_picture_is_there(browser_page, cohort: Path) -> None:
    browser_page.goto(cohort.as_uri())
    browser_page.evaluate("for (const image of document.images) image.loading = 'eager'")
    browser_page.wait_for_function(
        "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
    )
    assert browser_page.evaluate("document.images.length") == 5


@pytest.mark.parametrize("width", [340, 800, 1280])
def test_no_page_scrolls_sideways(browser_page, cohort: Path, width: int) -> None:
    browser_page.set_viewport_size({"width": width, "height": 800})
    browser_page.goto(cohort.as_uri())
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= width
    picture = browser_page.locator("section.subject img").first.bounding_box()
    assert picture["width"] > 0.9 * min(width, 1200) - 20
    assert picture["height"] / picture["width"] == pytest.approx(1300 / 1100, rel=0.02)


def test_print_shows_everything_but_the_tools(browser_page, cohort: Path) -> None:
    browser_page.goto(cohort.as_uri())
    browser_page.emulate_media(media="print")
    assert not browser_page.locator(".tools").is_visible()
    assert browser_page.locator("section.subject img").last.is_visible()
    overflow = browser_page.evaluate("getComputedStyle(document.querySelector('.scroll')).maxHeight")
    assert overflow == "none"
    pdf = browser_page.pdf(format="A4")
    # a page for the summary and one at least for each subject
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 6


# The page as a whole


def test_a_record_that_cannot_be_read_hides_no_other_subject(tmp_path: Path) -> None:
    folder = write_records(tmp_path / "d", outcome("sub-01"))
    records = record_file(folder, "sub-01").parent
    (records / "sub-02.json").write_text('{"outcome": "sub-02"')
    (records / "sub-03.json").write_text('{"outcome": {"person": "sub-03"}}')
    (records / "sub-04.json").write_text('"sub-04"')
    (records / ".sub-05.host@1-aaaaaaaa.json").write_text("{")
    html = write_qc_page(folder).read_text(encoding="utf-8")
    for name in ("sub-02", "sub-03", "sub-04"):
        assert f"qc/records/{name}.json cannot be read" in html
    assert "sub-05" not in html
    assert 'id="sub-01"' in html


def test_the_page_leads_to_the_pictures_beside_it(tmp_path: Path) -> None:
    folder = write_records(tmp_path / "d", outcome("sub-01"), outcome("sub-02"))
    picture_file(folder, "sub-02").unlink()
    html = write_qc_page(folder).read_text(encoding="utf-8")
    assert re.findall(r'<img src="([^"]*)" width="(\d+)" height="(\d+)"', html) == [
        ("subjects/sub-01.webp", "1100", "1300")
    ]
    assert html.count("picture is missing: run make-gt again") == 1
    # from its own folder and by nothing else
    assert "img-src &#39;self&#39; file:;" in html
    assert "http" not in re.sub(r'http-equiv="', "", html)


def test_a_broken_list_of_failures_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "qc").mkdir()
    (tmp_path / FAILURES).write_text("[")
    html = write_qc_page(tmp_path).read_text(encoding="utf-8")
    assert "qc/failed.json" in html
    assert "cannot be read" in html


def test_without_a_subject_there_is_a_page_that_says_so(browser_page, tmp_path: Path) -> None:
    browser_page.goto(write_qc_page(tmp_path / "new").as_uri())
    assert "0 subjects, 0 images in 0 contrasts" in browser_page.locator("#summary").inner_text()


def test_settings_are_told_and_differing_ones_counted(tmp_path: Path) -> None:
    common = GroundTruthSettings(trim_mm=8.0, rotation=True)
    write_records(tmp_path, outcome("sub-1"), outcome("sub-2"), settings=common)
    html = write_qc_page(tmp_path).read_text(encoding="utf-8")
    assert "(2 subjects)" not in html
    write_records(tmp_path, outcome("sub-0"))
    html = write_qc_page(tmp_path).read_text(encoding="utf-8")
    assert re.search(r"nnunet-softseg 1.2.3.*?trim 8 mm, smooth 0 mm, rotation yes.*?no \(2 subjects\)", html)
    assert re.search(r"trim 0 mm, smooth 0 mm, rotation no.*?implausible no \(1 subject\)", html)


def test_a_subject_of_six_contrasts_stays_small(tmp_path: Path) -> None:
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
    save_figure(drawn(images, masks, truth), tmp_path / "a.webp")
    assert (tmp_path / "a.webp").stat().st_size < 350_000
    # the page itself grows by a few kB only
    folder = write_records(tmp_path, outcome("sub-1", quality=measured(masks, truth)))
    one = write_qc_page(folder).stat().st_size
    write_records(tmp_path, outcome("sub-2", quality=measured(masks, truth)))
    assert write_qc_page(folder).stat().st_size - one < 5_000
