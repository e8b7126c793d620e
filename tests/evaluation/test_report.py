"""The report as a browser shows it: right numbers, careful words, nothing that a name can break."""

import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markupsafe import Markup
from PIL import Image
from prisms import prism, write_all

from nnunet_softseg.evaluation.compare import compare, write_report
from nnunet_softseg.evaluation.comparison import paired_statistics
from nnunet_softseg.evaluation.comparison.leaderboard import PRIMARY, SCORES, Verdict
from nnunet_softseg.evaluation.comparison.result import Comparison, compared
from nnunet_softseg.evaluation.evaluate import Evaluation
from nnunet_softseg.evaluation.maps import LabelMap
from nnunet_softseg.evaluation.measuring import REFERENCE
from nnunet_softseg.evaluation.report.drawing import method_styles
from nnunet_softseg.evaluation.report.figures import (
    draw_bland_altman,
    draw_csa_agreement,
    draw_csa_over_contrasts,
    draw_figures,
)
from nnunet_softseg.evaluation.report.tables import _mean_cells, by_contrast, leaderboard
from nnunet_softseg.evaluation.report.wording import (
    interval,
    mean_and_sd,
    number,
    p_value,
    shared_decimals,
    shortened,
    verdict,
)
from nnunet_softseg.evaluation.report.worst_cases import section_of, worst_cases
from nnunet_softseg.evaluation.tables import CASE_COLUMNS, INSTANCE_COLUMNS, made_by
from nnunet_softseg.metrics.measure_table import MEASURES

HOSTILE = "<script>document.title='owned'</script>\"'$\\frac{1}{2}$ & ü 頭 ]]> --> \x07\n{{ 7 * 7 }}"
CONTRASTS = ("T1w", "T2w", "mt-on")
NAN = math.nan


# A comparison from known numbers


@pytest.fixture(autouse=True, scope="module")
def few_resamples() -> Iterator[None]:
    """The bootstrap is tested elsewhere; here a rough interval does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paired_statistics, "RESAMPLES", 199)
        yield


def make_comparison(
    offsets: Mapping[str, float],
    *,
    subjects: int = 8,
    contrasts: Sequence[str] = CONTRASTS,
    labels: Mapping[int, str] | None = None,
    **changes: Any,
) -> Comparison:
    """Methods whose area is off by their offset, plus what differs between subjects and contrasts.

    Subject s has 70 + s mm2. A method's error is offset * (1 + 0.1 s + 0.2 c), c the number of the contrast.
    """
    labels = dict(labels or {1: "cord"})
    rows = [
        _case(method, offset, subject, place, contrast, label)
        for method, offset in offsets.items()
        for label in labels
        for subject in range(subjects)
        for place, contrast in enumerate(contrasts)
    ]
    cases = pd.DataFrame(rows)[list(CASE_COLUMNS)]
    evaluation = Evaluation(
        methods=tuple(offsets),
        labels=labels,
        cases=cases,
        slices=_slices(cases),
        instances=pd.DataFrame(columns=[*INSTANCE_COLUMNS]),
        reliability=_reliability(offsets, labels),
        missing=pd.DataFrame([], columns=["case", "method", "reason"], dtype=str),
        failed={},
        method_notes={name: f"{len(cases)} maps" for name in offsets},
        warnings=(),
    )
    evaluation = dataclasses.replace(evaluation, **changes)
    parameters = {"correction": "holm", "primary": PRIMARY, "seed": 0, "labels": None}
    return compared(evaluation, Path("references"), made_by("compare", parameters))


def _case(method: str, offset: float, subject: int, place: int, contrast: str, label: int) -> dict[str, Any]:
    area = 70.0 + subject
    error = offset * (1 + 0.1 * subject + 0.2 * place)
    name = f"sub-{subject:02d}"
    who = {
        "method": method,
        "case": f"{name}_{contrast}",
        "subject": name,
        "session": "",
        "contrast": contrast,
    }
    measured = {measure: 0.9 - 0.01 * abs(error) for measure in MEASURES}
    areas = {"csa_mm2": area + error, "reference_csa_mm2": area, "csa_error_mm2": error}
    areas |= {"csa_error_percent": 100 * error / area, "abs_csa_error_mm2": abs(error)}
    areas |= {"abs_csa_error_percent": abs(100 * error / area)}
    hard = {key.replace("csa_", "csa_hard_", 1): value for key, value in areas.items()}
    return {
        **dict.fromkeys(CASE_COLUMNS, ""),
        **who,
        "label": label,
        "kind": "soft",
        **measured,
        "abs_rve_percent": abs(error),
        "abs_hard_rve_percent": abs(error),
        **areas,
        **hard,
        "csa_region": "C2-C3",
        "csa_slices": 3,
        "csa_missed_slices": 0,
        "seconds": 0.5 + abs(offset),
        "resampled": False,
    }


def _slices(cases: pd.DataFrame) -> pd.DataFrame:
    """Three slices per case; the error of the case lies in the middle one."""
    tables = []
    who = ["method", "case", "subject", "session", "contrast", "label"]
    first = cases[cases["method"] == cases["method"].iloc[0]].assign(method=REFERENCE, csa_error_mm2=0.0)
    for index, share in enumerate((0.0, 3.0, 0.0)):
        for table in (cases, first):
            area = table["reference_csa_mm2"] + share * table["csa_error_mm2"]
            slices = table[who].assign(slice=index, z_mm=5.0 * index, level=3, csa_mm2=area)
            tables.append(slices.assign(csa_hard_mm2=area, in_region=True))
    return pd.concat(tables, ignore_index=True).astype({"level": "Int64"})


def _reliability(methods: Mapping[str, float], labels: Mapping[int, str]) -> pd.DataFrame:
    edges = np.linspace(0, 1, 11)
    middles = (edges[:-1] + edges[1:]) / 2
    bins = {"bin_low": edges[:-1], "bin_high": edges[1:], "num_voxels": 1000, "mean_prediction": middles}
    tables = [
        pd.DataFrame({"method": method, "label": label, **bins, "mean_reference": middles**1.2})
        for method in methods
        for label in labels
    ]
    return pd.concat(tables, ignore_index=True)


TWO = {"vanilla": 2.0, "soft": 0.5}


@pytest.fixture(scope="module")
def comparison(few_resamples: None) -> Comparison:
    return make_comparison(TWO)


def words(markup: str) -> str:
    """Text as it is read: without tags if it is Markup, with plain spaces and hyphens."""
    plain = markup.striptags() if isinstance(markup, Markup) else markup
    return plain.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")


# Numbers as text


@pytest.mark.parametrize(
    ("value", "expected"),
    [(NAN, "–"), (math.inf, "∞"), (-math.inf, "−∞"), (-1.5, "−1.50"), (0.0, "0"), (1e-17, "1e−17")],  # noqa: RUF001
)
def test_number(value: float, expected: str) -> None:
    assert number(value) == expected


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.0078125, "p = 0.0078"), (0.0004, "p < 0.001"), (1.0, "p = 1.0"), (NAN, "–")],  # noqa: RUF001
)
def test_p_value(p: float, expected: str) -> None:
    assert words(p_value(p)) == expected


def test_a_row_of_means_has_the_digits_of_its_smallest() -> None:
    decimals = shared_decimals([3.134, 1.768])
    assert [words(mean_and_sd(*numbers, decimals)) for numbers in ((3.134, 1.24), (1.768, 0.4772))] == [
        "3.13 ± 1.24",
        "1.77 ± 0.48",
    ]
    assert mean_and_sd(math.inf, NAN, decimals) == "∞"
    assert mean_and_sd(1.768, NAN, decimals) == "1.77"


def test_what_is_next_to_nothing_does_not_fill_a_row_with_digits() -> None:
    assert shared_decimals([50.0, 1e-9]) == shared_decimals([50.0]) + 2


@given(st.floats(-1e4, 1e4).map(lambda value: round(value, 6)), st.floats(1e-3, 1e3))
@example(0.5, 10.0)  # rounds to the even 0
def test_an_interval_is_right_to_its_last_digit_and_keeps_its_sign(low: float, width: float) -> None:
    text = words(interval(low, low + width, "mm2"))
    ends = text.removesuffix("mm²").split(" to ")
    for end, value in zip(ends, (low, low + width), strict=True):
        decimals = len(end.strip().partition(".")[2])
        assert abs(float(end) - value) <= 0.5001 * 10.0**-decimals
        if abs(value) > 0.02 * max(abs(low), abs(low + width)):
            assert float(end) * value > 0 or value == 0


def test_an_end_beside_zero_is_not_printed_as_zero() -> None:
    assert words(interval(-0.0003, 0.021)) == "-0.0003 to 0.0210"


def test_an_end_of_zero_has_no_sign(comparison: Comparison) -> None:
    """Of a smaller error the ends are turned round."""
    ends = with_outcome(comparison, PRIMARY, ci_low=-0.29, ci_high=0.0)
    assert "95 % CI 0.00 to 0.29 mm²" in words(verdict(ends, 1)[0])


# The verdict


def test_the_verdict_says_what_the_tables_say(comparison: Comparison) -> None:
    # Means over 8 subjects and 3 contrasts: 1 + 0.1 * 3.5 + 0.2 * 1 = 1.55 times the offset.
    first = words(verdict(comparison, 1)[0])
    assert first.startswith(
        "By the primary measure, soft has the smallest absolute CSA error (mean 0.775 mm²), 2.3 mm² less "
        "than vanilla"
    )
    # All 8 subjects on one side, 2 / 2**8, in each of three headlines.
    assert "p = 0.023; Wilcoxon signed-rank test over 8 subjects, corrected for 3 tests)" in first
    assert first.endswith("The difference holds.")
    row = comparison.winners.query("measure == 'abs_csa_error_mm2'").iloc[0]
    # Winner - runner-up is negative, "less" is positive: the ends change places.
    assert f"95 % CI {-row['ci_high']:.1f} to {-row['ci_low']:.1f} mm²" in first


def test_for_an_overlap_more_is_better(comparison: Comparison) -> None:
    dice = next(words(each) for each in verdict(comparison, 1) if "Dice" in each)
    # 0.9 - 0.01 * error.
    assert dice.startswith("soft has the largest Dice (mean 0.892), 0.023 more than vanilla")


def with_outcome(comparison: Comparison, measure: str, **changes: Any) -> Comparison:
    outcomes = tuple(
        dataclasses.replace(each, **changes) if each.measure == measure else each
        for each in comparison.outcomes
    )
    return dataclasses.replace(comparison, outcomes=outcomes)


@pytest.mark.parametrize("reason", [Verdict.NOT_SIGNIFICANT, Verdict.INCLUDES_ZERO])
def test_a_difference_that_does_not_hold_is_told_with_care(comparison: Comparison, reason: Verdict) -> None:
    comparison = with_outcome(
        comparison, "abs_csa_error_mm2", verdict=reason, p_corrected=0.4, ci_low=-3.0, ci_high=1.0
    )
    first = words(verdict(comparison, 1)[0])
    assert "95 % CI -1.0 to 3.0 mm², p = 0.40" in first
    assert "That may be chance: the difference does not hold" in first
    assert "The difference holds" not in first
    assert ("the interval includes 0" in first) == (reason is Verdict.INCLUDES_ZERO)


def test_too_few_subjects_are_said_once_and_no_p_is_shown() -> None:
    sentences = [words(each) for each in verdict(make_comparison(TWO, subjects=2), 1)]
    text = " ".join(sentences)
    assert text.count("Too few subjects") == 1
    assert "a test needs at least 6" in sentences[0]
    assert "p =" not in text
    assert "holds." not in text


def test_a_winner_whom_the_cases_of_both_contradict_is_told_without_an_amount(
    comparison: Comparison,
) -> None:
    first, *_ = verdict(with_outcome(comparison, PRIMARY, verdict=Verdict.CONTRADICTED), 1)
    assert words(first) == (
        "By the primary measure, soft has the smallest absolute CSA error (mean 0.775 mm²). That may be "
        "chance: the difference does not hold (differences of the cases that both have a value in say "
        "otherwise)."
    )
    row = leaderboard(with_outcome(comparison, PRIMARY, verdict=Verdict.CONTRADICTED), 1)[0]
    assert (row["against"], row["uncertainty"]) == (
        "differences of the cases that both have a value in say otherwise",
        "",
    )


def test_methods_may_be_called_as_the_columns_beside_them() -> None:
    lines = make_comparison({"best": 2.0, "difference": 0.5}, subjects=2).as_text().splitlines()
    head = lines.index("cord: mean and standard deviation over subjects") + 1
    assert lines[head].split() == ["best", "difference", "best", "difference"]
    # 1.25 times the offset: subjects 0 and 1, contrasts 0, 1, 2
    row = next(line for line in lines if line.startswith(PRIMARY))
    assert [row.split()[place] for place in (1, 4, 7)] == ["2.5", "0.625", "difference"]


def test_equal_methods_have_no_winner() -> None:
    text = words(verdict(make_comparison({"one": 1.0, "other": -1.0}), 1)[0])
    assert text == "one and other have the same absolute CSA error (mean 1.55 mm²)."


def test_one_method_is_described() -> None:
    text = words(verdict(make_comparison({"only": 1.0}), 1)[0])
    assert text.startswith("only: absolute CSA error, mean 1.55 mm² over 8 subjects (95 % CI ")


def test_an_infinite_mean_is_no_number_in_the_verdict(comparison: Comparison) -> None:
    cases = comparison.cases.assign(abs_csa_error_mm2=math.inf)
    text = " ".join(map(words, verdict(make_comparison(TWO, cases=cases), 1)))
    assert "nan" not in text
    assert "inf " not in text


@pytest.mark.parametrize(
    ("empty", "why"),
    [
        (("prediction",), "a case was left empty"),
        (("reference",), "something was found where the reference is empty"),
        (
            ("prediction", "reference"),
            "a case was left empty and something was found where the reference is empty",
        ),
    ],
)
def test_an_infinite_mean_is_told_with_its_reason(
    empty: Sequence[str], why: str, comparison: Comparison
) -> None:
    none = {"prediction_is_empty": 0.0, "reference_is_empty": 0.0}
    cases = comparison.cases.assign(**none)
    for row, which in enumerate(empty):
        cases.loc[cases["case"] == f"sub-0{row}_T1w", [f"{which}_is_empty", "abs_csa_error_mm2"]] = (
            1,
            math.inf,
        )
    cases.loc[cases["case"] == "sub-05_T1w", [*none]] = 1.0  # right, and no reason
    text = " ".join(map(words, verdict(make_comparison(TWO, cases=cases), 1)))
    assert f"; the mean is infinite, as {why})" in text


# Tables


def test_measures_per_contrast(comparison: Comparison) -> None:
    table = by_contrast(comparison)
    row = table.query("measure == 'abs_csa_error_mm2' and contrast == 'mt-on' and method == 'vanilla'").iloc[
        0
    ]
    errors = [2.0 * (1 + 0.1 * subject + 0.4) for subject in range(8)]
    assert row["num_cases"] == 8
    assert row["mean"] == pytest.approx(np.mean(errors))
    assert row["sd"] == pytest.approx(np.std(errors, ddof=1))
    assert row["median"] == pytest.approx(np.median(errors))


# Appearance


def test_colours_differ_for_every_kind_of_colour_vision() -> None:
    from skimage.color import rgb2lab

    styles = list(method_styles(["a", "b", "c", "d", "e", "f"]).values())[:-1]
    rgb = np.array([[int(style.colour[at : at + 2], 16) / 255 for at in (1, 3, 5)] for style in styles])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    # Machado et al. 2009, severity 1: protanopia, deuteranopia; and no deficiency.
    matrices = [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        np.eye(3),
    ]
    for matrix in matrices:
        seen = np.clip(linear @ np.transpose(matrix), 0, 1)
        srgb = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
        lab = rgb2lab(srgb[None])[0]
        distances = np.linalg.norm(lab[:, None] - lab[None], axis=2)[np.triu_indices(len(lab), 1)]
        assert distances.min() > 10  # 2 to 3 is just noticeable side by side


def test_long_names_are_short_in_figures_and_still_differ() -> None:
    names = [f"{'x' * 40}{middle}{'y' * 40}" for middle in "ab"]
    shorts = [style.short for style in list(method_styles(names).values())[:2]]
    assert len(set(shorts)) == 2
    assert max(map(len, shorts)) < 30


@given(st.text(), st.integers(5, 40))
def test_short_names_can_be_printed(name: str, longest: int) -> None:
    short = shortened(name, longest)
    assert short.isprintable()
    assert len(short) <= longest


# Pictures


def disc(centre: tuple[float, float], radius: float = 4.0) -> np.ndarray:
    """A cord of 5 slices in RAS, 40 x 40 voxels of 1 mm; x to the right, y to anterior."""
    x, y = np.ogrid[:40, :40]
    plane = np.clip(radius + 0.5 - np.hypot(x - centre[0], y - centre[1]), 0, 1)
    return np.repeat(plane[..., None], 5, axis=2).astype(np.float32)


def stored(values: np.ndarray, axes: str = "RAS") -> LabelMap:
    image = nib.Nifti1Image(values, np.eye(4))
    wanted = nib.orientations.axcodes2ornt(axes)
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted))
    return LabelMap(Path("map.nii.gz"), np.asarray(turned.dataobj, dtype=np.float32), turned.affine)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SAL"])
def test_right_is_left_and_anterior_on_top_in_any_orientation(axes: str) -> None:
    # The method has what the reference has, and a blob 15 mm to the right of it and 6 mm towards anterior.
    reference, prediction = disc((18, 18)), np.maximum(disc((18, 18)), disc((33, 24), 3))
    index = 4 if "I" in axes else 0
    prediction[:, :, 1:] = reference[:, :, 1:]
    section, shown = section_of(stored(reference, axes), {"a": stored(prediction, axes)}, None, None)
    assert shown == index  # the slice that differs, in the order of the file
    more = section.differences["a"].astype(int)
    red = (more[..., 0] > more[..., 2]) & (more[..., 1] < 97)  # RdBu at 0.5 and above
    mm = section.side_mm / red.shape[0]
    place = np.mean(np.nonzero(red), axis=1) - np.mean(np.nonzero(section.reference[..., 0] > 128), axis=1)
    assert place * mm == pytest.approx([-6, -15], abs=0.3)  # rows down, columns to the right
    # The area in the picture: pi 3**2 mm2 in voxels of 1 mm2.
    assert red.sum() * mm**2 == pytest.approx(math.pi * 9, rel=0.25)


def test_too_much_is_red_and_too_little_is_blue() -> None:
    section, _ = section_of(stored(disc((20, 20), 5)), {"a": stored(disc((20, 20), 3))}, None, 2)
    pixels = section.differences["a"].astype(int)
    assert (pixels[..., 2] - pixels[..., 0] > 40).any()
    assert not (pixels[..., 0] - pixels[..., 2] > 40).any()


@pytest.mark.parametrize("damage", ["missing", "truncated", "other grid", "no image"])
def test_a_bad_image_costs_its_picture_only(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "image.nii.gz"
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 40, 4 if damage == "other grid" else 5)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), file)
    if damage == "missing":
        file.unlink()
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:5000])
    reference = LabelMap(Path("map.nii.gz"), disc((20, 20)), np.eye(4))
    section, _ = section_of(reference, {"a": reference}, None if damage == "no image" else file, 4)
    assert section.image is None
    assert section.image_trouble
    assert section.strip().shape[1] > 3 * section.reference.shape[1]


def test_voxels_keep_their_shape_where_they_are_not_square() -> None:
    values = disc((20, 20), 6)[:, ::3]
    wide = LabelMap(Path("map.nii.gz"), values, np.diag([1.0, 3.0, 1.0, 1.0]))
    section, _ = section_of(wide, {"a": wide}, None, 2)
    bright = section.reference[..., 0] > 128
    height, width = (np.ptp(np.flatnonzero(bright.any(axis=axis))) for axis in (1, 0))
    assert height / width == pytest.approx(1, abs=0.25)  # a voxel is 3 of 12 mm


# The page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods, all pictures."""
    folder = tmp_path_factory.mktemp("report")
    cases = make_comparison({"vanilla": 2.0, "soft": 0.5, "other": -1.0}).cases
    for name, radius in (("reference", 5.0), ("vanilla", 6.0), ("soft", 5.2), ("other", 4.0)):
        nib.save(nib.Nifti1Image(disc((20, 20), radius), np.eye(4)), folder / f"{name}.nii.gz")
    noise = np.random.default_rng(0).normal(100, 10, (40, 40, 5)).astype(np.float32)
    nib.save(nib.Nifti1Image(noise, np.eye(4)), folder / "image.nii.gz")
    nib.save(nib.Nifti1Image(noise[:-1], np.eye(4)), folder / "small.nii.gz")
    cases["prediction"] = [str(folder / f"{method}.nii.gz") for method in cases["method"]]
    cases["reference"] = str(folder / "reference.nii.gz")
    cases["image"] = [str(folder / f"{'image' if 'T' in name else 'small'}.nii.gz") for name in cases["case"]]
    cases.loc[(cases["case"] == "sub-07_mt-on") & (cases["method"] == "vanilla"), "hd95_mm"] = math.inf
    (folder / "figures").mkdir()
    (folder / "figures" / "csa_error_label7.svg").write_text("of an earlier report", encoding="utf-8")
    (folder / "figures" / "mine.svg").write_text("not ours", encoding="utf-8")
    offsets = {"vanilla": 2.0, "soft": 0.5, "other": -1.0}
    write_report(make_comparison(offsets, cases=cases, warnings=("<b>careful</b>",)), folder)
    return folder


@pytest.fixture
def page(browser_page: Any, report: Path) -> Any:
    browser_page.goto((report / "report.html").as_uri())
    return browser_page


def test_the_page_is_read_from_the_verdict_down(page: Any) -> None:
    text = words(page.locator("body").inner_text())
    places = [
        text.index(part)
        for part in ("By the primary measure, soft has", "<b>careful</b>", "Leaderboard", "Worst cases")
    ]
    assert places == sorted(places)
    assert page.evaluate("document.querySelector('h1 + style + .verdict') !== null")


def test_the_leaderboard_shows_the_scores(page: Any) -> None:
    cells = page.locator("#table-1 tbody tr").first.locator("td").all_inner_texts()
    # Sample STD over subjects of offset * (1.2 + 0.1 s), s = 0..7: 0.1 * sqrt(6) times the offset.
    assert [words(cell) for cell in cells[1:-1]] == ["3.100 ± 0.490", "0.775 ± 0.122", "1.550 ± 0.245"]
    # three pairs in three headlines need nine subjects
    assert words(cells[-1]).startswith("soft too few subjects 0.78 mm² less than other 95 % CI ")
    infinite = page.locator("#table-1 tr", has_text="HD95").locator("td.number").first
    assert "∞ (median" in infinite.inner_text()
    assert words(page.locator("#table-1 tbody tr").first.locator("td").first.inner_text()).endswith("primary")
    bold = page.locator("#table-1 tbody tr").first.locator("td.best")
    assert bold.count() == 1
    assert bold.inner_text() == cells[2]


def test_a_mean_that_is_printed_as_another_is_not_bold() -> None:
    means = pd.DataFrame({"mean": [1.30006, 1.3, 1.5], "sd": [0.1, 0.1, 0.1]}, index=["a", "b", "c"])
    looks = [cell.look for cell in _mean_cells(means, ["a", "b", "c"], ["b"])]
    assert not any("best" in look for look in looks)
    means.loc["b", "mean"] = 1.2
    looks = [cell.look for cell in _mean_cells(means, ["a", "b", "c"], ["b"])]
    assert ["best" in look for look in looks] == [False, True, False]
    looks = [cell.look for cell in _mean_cells(means.loc[["b"]], ["a", "b", "c"], ["b"])]
    assert not any("best" in look for look in looks)  # the only one that has a value


def test_the_statistics_can_be_sorted_and_filtered(page: Any) -> None:
    table = page.locator("#statistics-1")
    page.locator("details", has=table).locator("summary").click()
    head = table.locator("th", has_text="a − b")  # noqa: RUF001
    head.locator("button").click()
    column = [words(cell) for cell in table.locator("tbody td:nth-child(6)").all_inner_texts()]
    values = [float(cell.removesuffix(" (median)").replace("∞", "inf")) for cell in column if cell != "–"]  # noqa: RUF001
    assert len(values) > 20
    assert values == sorted(values)
    page.locator("input.filter").fill("dice soft")
    shown = table.locator("tbody tr:visible").all_inner_texts()
    assert shown
    assert all("dice" in row.lower() and "soft" in row.lower() for row in shown)
    assert len(shown) == 7  # Dice and surface Dice in two pairs with soft each, soft Dice in three


def test_infinity_is_sorted_as_the_largest_number(page: Any) -> None:
    table = page.locator("#errors-1")
    page.locator("details", has=table).locator("summary").click()
    button = table.locator("th", has_text="HD95").locator("button")
    cells = table.locator("tbody td:nth-child(9)")
    button.click()
    assert cells.last.inner_text() == "∞"
    button.click()
    assert cells.first.inner_text() == "∞"


def test_every_picture_is_there(page: Any) -> None:
    page.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
    page.wait_for_function("[...document.images].every(image => image.complete)")
    sizes = page.evaluate("[...document.images].map(image => [image.naturalWidth, image.naturalHeight])")
    # 8 // 3 cases of each of 3 methods: image or not, reference, two maps with differences; two bars.
    assert len(sizes) > 2 + 6 * 3
    assert all(width >= 100 and height >= 12 for width, height in sizes)
    assert page.locator("figure.plot svg").count() == 7
    boxes = page.evaluate(
        "[...document.querySelectorAll('figure.plot svg')].map(svg => svg.getBoundingClientRect().height)"
    )
    assert min(boxes) > 150
    assert "the image lies on another grid" in page.locator("#worst-1 ~ figure").all_inner_texts().__str__()


def test_worst_cases_are_those_of_each_method(page: Any) -> None:
    captions = [words(text) for text in page.locator("figure.case figcaption").all_inner_texts()]
    # The last subject and contrast has the largest error: 2 * (1 + 0.7 + 0.4) = 4.2 mm2 of 77 in the mean of
    # three slices, all of it in the middle one.
    assert captions[0].startswith("1. vanilla in sub-07_mt-on: +4.20 mm²; Dice")
    assert "Slice 1 (z = 5.00 mm, C3): 89.6 mm² against 77.0 mm² in the reference" in captions[0]
    assert "Nearest: soft, +1.05 mm²" in captions[0]
    assert [sum(f". {name} in" in text for text in captions) for name in ("vanilla", "soft", "other")] == [
        2,
        2,
        2,
    ]


def test_anchors_lead_somewhere_and_names_stand_once(page: Any) -> None:
    targets = page.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.getAttribute('href').slice(1))"
    )
    names = page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
    assert targets
    assert set(targets) <= set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("width", [320, 380, 800])
def test_no_page_is_wider_than_its_screen(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 700})
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_prints(page: Any) -> None:
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 900})  # A4 between its margins
    assert page.locator("nav").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    assert page.evaluate("getComputedStyle(document.body).printColorAdjust") == "exact"
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_figures_are_files_too(report: Path) -> None:
    folder = report / "figures"
    names = {file.name for file in folder.iterdir()}
    kinds = (
        "csa_error",
        "csa_std",
        "csa_over_contrasts",
        "csa_agreement",
        "bland_altman",
        "reliability",
        "inference_time",
    )
    assert {f"{kind}.{ending}" for kind in kinds for ending in ("svg", "png")} <= names
    assert "csa_error_label7.svg" not in names
    assert "mine.svg" in names
    for file in folder.glob("*.png"):
        with Image.open(file) as image:
            assert min(image.size) >= 200
    for kind in kinds:
        text = (folder / f"{kind}.svg").read_text(encoding="utf-8")
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert "Made by nnunet-softseg" in text
    worst = pd.read_csv(report / "worst_cases.csv")
    assert all((folder / name).is_file() for name in worst["figure"])


def test_a_method_has_one_colour_in_all_figures(report: Path) -> None:
    colours = {
        name: style.colour.lower() for name, style in method_styles(["vanilla", "soft", "other"]).items()
    }
    for kind in ("csa_error", "csa_std", "csa_agreement", "bland_altman", "reliability"):
        svg = (report / "figures" / f"{kind}.svg").read_text(encoding="utf-8")
        assert all(colours[name] in svg for name in ("vanilla", "soft", "other")), kind


# What names may hold, and what may be missing


def test_hostile_names_are_text_everywhere(browser_page: Any, tmp_path: Path) -> None:
    methods = {f"a {HOSTILE}": 1.0, f"b {HOSTILE}": 2.0}
    contrasts, labels = (f"x {HOSTILE}", f"y {HOSTILE}"), {1: f"label {HOSTILE}", 2: "without values"}
    options: dict[str, Any] = {"subjects": 2, "contrasts": contrasts, "labels": labels}
    cases = make_comparison(methods, **options).cases
    cases.loc[cases["label"] == 2, measures_of(cases)] = NAN
    reliability = _reliability(methods, labels)
    reliability.loc[reliability["label"] == 2, "num_voxels"] = 0
    comparison = make_comparison(
        methods, **options, cases=cases, reliability=reliability, warnings=(HOSTILE,)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no complaint of a font or a formula reaches the user
        write_report(comparison, tmp_path)
    browser_page.goto((tmp_path / "report.html").as_uri())
    assert "owned" not in browser_page.title().replace("document.title='owned'", "")
    shown = browser_page.evaluate("document.body.textContent")
    assert HOSTILE in shown
    assert "{{ 7 * 7 }}" in shown
    assert browser_page.locator("script").count() == 2
    assert browser_page.locator("#label-1 figure.plot").count() == 7
    assert browser_page.locator("#label-2 figure.plot").count() == 0
    assert "without values: Nothing could be measured." in browser_page.locator("#verdict").inner_text()
    assert len(list((tmp_path / "figures").glob("*_label1.svg"))) == 7
    for file in (tmp_path / "figures").glob("*.svg"):
        root = ElementTree.parse(file).getroot()
        assert not root.findall(".//{*}script")
        assert any("<script>" in text or "<sc" in text for text in root.itertext()), file.name
    browser_page.set_viewport_size({"width": 380, "height": 700})
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= 380


def measures_of(cases: pd.DataFrame) -> list[str]:
    return [name for name in cases if cases[name].dtype == float and name != "label"]


def drawn(kind: str, comparison: Comparison, folder: Path) -> str:
    """The SVG of one figure."""
    draw_figures(comparison, 1, method_styles(comparison.methods), folder, kinds=[kind])
    return (folder / f"{kind}.svg").read_text(encoding="utf-8")


def test_a_dollar_is_no_formula(tmp_path: Path) -> None:
    svg = drawn("csa_std", make_comparison({"$x^2$": 1.0}, subjects=1), tmp_path)
    assert "$x^2$" in list(ElementTree.fromstring(svg).itertext())


def test_one_method_one_subject_no_contrast_no_area(browser_page: Any, tmp_path: Path) -> None:
    cases = make_comparison({"only": 1.0}, subjects=1, contrasts=("",)).cases
    cases[measures_of(cases)] = NAN
    reliability = _reliability({"only": 1.0}, {1: "cord"}).assign(num_voxels=0, mean_prediction=NAN)
    empty = make_comparison({"only": 1.0}, subjects=1, contrasts=("",), cases=cases, reliability=reliability)
    browser_page.goto(write_report(empty, tmp_path).as_uri())
    text = browser_page.locator("body").inner_text()
    assert "No area could be measured" in text
    assert "One method only: no pairs to test" in text
    assert "Fewer than two contrasts" in text
    assert "too few subjects" in text.lower()
    assert not list((tmp_path / "figures").glob("*.svg"))


def test_cases_that_could_not_be_measured_are_named_with_their_reason(tmp_path: Path) -> None:
    reason = "pred/sub-09_T2w.nii.gz: expected the grid of the reference"
    for name, failed in (("all", {}), ("one", {"sub-09_T2w": reason})):
        page = write_report(make_comparison({"only": 1.0}, subjects=1, failed=failed), tmp_path / name)
        text = page.read_text(encoding="utf-8")
        assert ("No method lacks a case." in text) == (not failed)
        assert all(text.count(part) == bool(failed) for part in (f">{reason}<", ">sub-09_T2w<"))
        assert ("1 case could not be measured" in text) == bool(failed)


def test_each_of_many_methods_has_a_worst_case(comparison: Comparison) -> None:
    of_one = comparison.cases[comparison.cases["method"] == "soft"]
    methods = tuple(f"method {number}" for number in range(10))
    cases = [of_one.assign(method=name, abs_csa_error_mm2=float(n)) for n, name in enumerate(methods)]
    many = dataclasses.replace(comparison, methods=methods, cases=pd.concat(cases, ignore_index=True))
    found = [each.method for each in worst_cases(many, 1)]
    assert found == [*methods[::-1]]  # the largest error first


def test_a_map_that_is_gone_costs_its_picture_only(tmp_path: Path) -> None:
    comparison = make_comparison({"only": 1.0}, subjects=1)
    cases = comparison.cases.assign(
        prediction=str(tmp_path / "gone.nii.gz"), reference=str(tmp_path / "gone.nii.gz")
    )
    found = list(worst_cases(dataclasses.replace(comparison, cases=cases), 1))
    assert len(found) == 3
    assert all(case.section is None and "gone.nii.gz" in case.trouble for case in found)


def test_pictures_of_a_label_that_a_pattern_tells(tmp_path: Path) -> None:
    """Fractions named `a_lab-2`: nothing in the name itself says that they are of label 2."""
    for name in ("r", "p"):
        write_all(tmp_path / name, {"a_lab-1": prism(5), "a_lab-2": prism(6)})
    pattern = "{case}_lab-{label}.nii.gz"
    how = {"patterns": {"p": pattern}, "reference_pattern": pattern, "num_processes": 1, "progress": False}
    methods = {"p": tmp_path / "p"}
    comparison = compare(methods, tmp_path / "r", tmp_path / "out", report=False, **how)
    (found,) = worst_cases(comparison, 2)
    assert (found.trouble, found.section is None) == ("", False)


@pytest.mark.parametrize("folder", ["softLabelsTs", "labelsTs"])
def test_what_is_unknown_is_blank_in_the_pictures(tmp_path: Path, folder: str) -> None:
    """Above the middle nothing is known; the method has a wide disc there, and one voxel too few below."""
    reference = (disc((20, 20), 5) > 0.5).astype(np.float32)
    prediction = reference.copy()
    prediction[20, 20, 0] = 0
    prediction[:, :, 3:] = 1
    unknown = np.arange(reference.shape[2]) >= 3
    label_map = np.where(unknown, 2, reference).astype(np.uint8)
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "cord": 1, "ignore": 2}}')
    files = {
        "labelsTs/sub-01": label_map,
        "softLabelsTs/sub-01_0001": reference,
        "pred/sub-01_0001": prediction,
    }
    for name, values in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / f"{name}.nii.gz")
    stem = "sub-01_0001" if folder == "softLabelsTs" else "sub-01"
    comparison = make_comparison({"only": 1.0}, subjects=1, contrasts=("T1w",))
    cases = comparison.cases.assign(
        case="sub-01",
        reference=str(tmp_path / folder / f"{stem}.nii.gz"),
        prediction=str(tmp_path / "pred/sub-01_0001.nii.gz"),
    )
    shown = dataclasses.replace(comparison, cases=cases, reference=tmp_path / folder)
    section = next(worst_cases(shown, 1)).section
    assert section is not None
    off = section.differences["only"].astype(int)
    assert (off[..., 2] - off[..., 0] > 40).any()  # the slice of the one voxel, which is blue
    assert not (off[..., 0] - off[..., 2] > 40).any()


def test_a_failed_case_does_not_flatten_the_others(tmp_path: Path) -> None:
    comparison = make_comparison({"only": 1.0}, subjects=30)
    cases = comparison.cases.copy()
    cases.loc[0, ["abs_csa_error_mm2", "csa_error_mm2"]] = 500.0, -500.0
    failed = dataclasses.replace(comparison, cases=cases)
    assert "▲ 1 value above, up to 500" in drawn("csa_error", failed, tmp_path)
    assert "1 outside, up to −500" in drawn("bland_altman", failed, tmp_path)  # noqa: RUF001


@pytest.mark.parametrize(
    "draw", [draw_csa_over_contrasts, draw_csa_agreement, draw_bland_altman], ids=lambda draw: draw.__name__
)
def test_every_area_lies_inside_its_axes(draw: Any) -> None:
    """One of 40 people has a structure of four times the area of the others'."""
    comparison = make_comparison(TWO, subjects=40)
    large = comparison.cases["subject"] == "sub-39"
    cases = comparison.cases.copy()
    for area in ("csa", "csa_hard"):
        cases.loc[large, f"reference_{area}_mm2"] = 400.0
        cases.loc[large, f"{area}_mm2"] = 400.0 + cases.loc[large, f"{area}_error_mm2"]
    shown = make_comparison(TWO, subjects=40, cases=cases)
    figure = draw(shown, 1, method_styles(shown.methods))
    seen = [line.get_xydata() for axis in figure.axes for line in axis.lines]
    assert max(points.max() for points in seen) >= 400
    for axis in figure.axes:
        low, high = zip(axis.get_xlim(), axis.get_ylim(), strict=True)
        data = [line.get_xydata() for line in axis.lines if line.get_transform() == axis.transData]
        assert all(((points >= low) & (points <= high)).all() for points in data)


def test_scores_have_words_for_all_measures(report: Path) -> None:
    html = (report / "report.html").read_text(encoding="utf-8")
    assert all(score.title in html for score in SCORES.values())
