"""Methods against one reference: pairs, ranks, what holds, what is missing, and the files."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prisms import SHAPE, case_ids, prism, references, write_all
from scipy import stats

from nnunet_softseg.cli import main
from nnunet_softseg.cli.prediction import Compare
from nnunet_softseg.errors import UserError
from nnunet_softseg.evaluation.compare import compare
from nnunet_softseg.evaluation.comparison import leaderboard
from nnunet_softseg.evaluation.comparison.leaderboard import (
    HEADLINES,
    PER_SUBJECT,
    PRIMARY,
    SCORE_COLUMNS,
    SCORES,
    STATISTICS_COLUMNS,
    Verdict,
    subject_table,
)
from nnunet_softseg.evaluation.comparison.result import (
    AGREEMENT_COLUMNS,
    ANOVA_COLUMNS,
    PAIR_COLUMNS,
    Comparison,
    compared,
)
from nnunet_softseg.evaluation.evaluate import Evaluation
from nnunet_softseg.evaluation.measuring import AREAS, REFERENCE
from nnunet_softseg.evaluation.report.wording import verdict
from nnunet_softseg.evaluation.tables import CASE_COLUMNS, RELIABILITY_COLUMNS, SLICE_COLUMNS

TABLES = (
    "cases.csv",
    "slices.csv",
    "instances.csv",
    "reliability.csv",
    "subjects.csv",
    "leaderboard.csv",
    "winners.csv",
    "statistics.csv",
    "cases.json",
    "statistics.json",
    "summary.json",
)
CONTRASTS = ("T1w", "T2w", "T2star")
NAN = float("nan")
EIGHT = tuple(f"{number:02d}" for number in range(1, 9))


def run(methods: Any, reference: Path, output: Path, **options: Any) -> Comparison:
    return compare(
        methods, reference, output, **({"num_processes": 1, "progress": False, "report": False} | options)
    )


def width_of(method: str, subject: int, contrast: int) -> float:
    """Prisms of 6 x this; the reference has 6.5. `near` is wide by little and alike in all contrasts."""
    if method == "near":
        return 6.5 + 0.02 * (subject + 1)
    if method == "far":
        return 6.5 + 0.3 + 0.04 * subject + 0.2 * contrast
    return 6.5 - 0.1 * (1 if (subject + contrast) % 2 else -1)


def written_methods(folder: Path, names: Sequence[str] = ("near", "far", "odd")) -> dict[str, Path]:
    subjects = [f"{number:02d}" for number in range(1, 9)]
    return {
        name: write_all(
            folder / name,
            {
                f"sub-{subject}_{contrast}": prism(width_of(name, row, column))
                for row, subject in enumerate(subjects)
                for column, contrast in enumerate(CONTRASTS)
            },
        )
        for name in names
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prisms")
    references(folder / "softLabelsTs", case_ids(EIGHT, CONTRASTS))
    written_methods(folder)
    return folder


@pytest.fixture(scope="module")
def comparison(written: Path) -> Comparison:
    methods = {name: written / name for name in ("near", "far", "odd")}
    return run(methods, written / "softLabelsTs", written / "out")


def one(table: pd.DataFrame, **chosen: Any) -> Any:
    for column, value in chosen.items():
        table = table[table[column] == value]
    assert len(table) == 1, chosen
    return table.iloc[0]


# Numbers known from the geometry


def test_areas_and_errors_are_those_of_the_prisms(comparison: Comparison) -> None:
    row = one(comparison.cases, method="far", case="sub-03_T2star")
    assert row["csa_mm2"] == pytest.approx(6 * (6.5 + 0.3 + 0.08 + 0.4), rel=1e-5)
    assert row["abs_csa_error_mm2"] == pytest.approx(6 * 0.78, rel=1e-4)
    assert row["csa_region"] == "common heights"
    assert comparison.areas("far", label=1).loc[("sub-03", ""), "T2star"] == row["csa_mm2"]
    assert comparison.areas(REFERENCE, label=1).to_numpy() == pytest.approx(np.full((8, 3), 39.0))


def test_std_over_contrasts_is_that_of_the_widths(comparison: Comparison) -> None:
    # widths 0, 0.2 and 0.4 apart, x 6 mm: standard deviation (ddof 1) 1.2
    for subject in ("sub-01", "sub-08"):
        row = one(comparison.subjects, method="far", subject=subject)
        assert row["std_csa_mm2"] == pytest.approx(1.2, rel=1e-4)
        assert one(comparison.subjects, method="near", subject=subject)["std_csa_mm2"] == pytest.approx(
            0, abs=1e-4
        )
    assert one(comparison.subjects, method=REFERENCE, subject="sub-01")["std_csa_mm2"] == pytest.approx(
        0, abs=1e-4
    )


def test_the_leaderboard_ranks_by_subject_means(comparison: Comparison) -> None:
    measure = "abs_csa_error_mm2"
    ranks = comparison.scores[comparison.scores["measure"] == measure].set_index("method")
    near = 6 * 0.02 * np.arange(1, 9)
    far = 6 * (0.3 + 0.04 * np.arange(8) + 0.2)
    assert ranks["mean"].to_dict() == pytest.approx(
        {"near": near.mean(), "far": far.mean(), "odd": 0.6}, rel=1e-3
    )
    assert ranks.loc["near", "sd"] == pytest.approx(near.std(ddof=1), rel=1e-3)
    assert ranks["rank"].to_dict() == {"near": 1, "odd": 2, "far": 3}
    assert ranks["num_cases"].tolist() == [24, 24, 24]
    assert ranks.loc["near", "ci_low"] < near.mean() < ranks.loc["near", "ci_high"]


def test_the_test_is_of_subject_means_and_corrected_over_the_pairs(comparison: Comparison) -> None:
    row = one(comparison.statistics, measure="abs_csa_error_mm2", method_a="near", method_b="far")
    difference = 6 * (0.02 * np.arange(1, 9) - 0.5 - 0.04 * np.arange(8))
    assert row["mean_difference"] == pytest.approx(difference.mean(), rel=1e-3)
    assert row["p_subjects"] == 2 / 2**8  # eight of eight
    assert row["num_tests"] == 9  # three pairs in three headlines
    assert row["p_subjects_corrected"] == pytest.approx(9 * 2 / 2**8)
    assert (row["rank_biserial"], row["better"], row["holds"]) == (-1, "near", False)
    assert row["p_cases"] < 1e-4  # 24 images, as if independent
    winner = one(comparison.winners, measure="abs_csa_error_mm2")
    assert (winner["winner"], winner["runner_up"]) == ("near", "odd")


def test_a_small_difference_does_not_hold(comparison: Comparison) -> None:
    # near against odd: 0.12 to 0.96 against 0.6
    row = one(comparison.statistics, measure="abs_csa_error_mm2", method_a="near", method_b="odd")
    expected = stats.wilcoxon(0.12 * np.arange(1, 9) - 0.6001).pvalue
    assert row["p_subjects"] == pytest.approx(expected, abs=0.2)
    winner = one(comparison.winners, measure="abs_csa_error_mm2")
    assert not winner["holds"]
    assert winner["verdict"] == "too few subjects: 8, p < 0.05 in 9 tests needs at least 9"


def test_area_depends_on_contrast_in_one_method_and_not_in_the_other(comparison: Comparison) -> None:
    far = one(comparison.anova, method="far", measure="csa_mm2")
    assert (far["num_subjects"], far["num_contrasts"]) == (8, 3)
    assert (
        far["p_corrected"] < 1e-6 or far["note"]
    )  # the same shift in all subjects: no variance is left to test
    odd = one(comparison.anova, method="odd", measure="csa_mm2")
    values = comparison.areas("odd", label=1).to_numpy()
    assert odd["f"] == pytest.approx(f_by_hand(values))


def f_by_hand(values: Any) -> float:
    """F of a repeated-measures analysis of variance from its sums of squares."""
    n, k = values.shape
    grand = values.mean()
    contrast = n * ((values.mean(axis=0) - grand) ** 2).sum()
    subject = k * ((values.mean(axis=1) - grand) ** 2).sum()
    error = ((values - grand) ** 2).sum() - contrast - subject
    return float((contrast / (k - 1)) / (error / ((k - 1) * (n - 1))))


def test_agreement_tells_the_bias(comparison: Comparison) -> None:
    row = one(comparison.agreement, method="near", measure="csa_mm2", contrast="T1w")
    errors = 0.12 * np.arange(1, 9)
    assert row["bias"] == pytest.approx(errors.mean(), rel=1e-3)
    assert row["loa_high"] == pytest.approx(errors.mean() + 1.96 * errors.std(ddof=1), rel=1e-3)
    everything = one(comparison.agreement, method="near", measure="csa_mm2", contrast="")
    assert (everything["num_subjects"], everything["num_cases"]) == (8, 24)
    # the same error in all contrasts: no more is known than from one
    assert everything["sd"] == pytest.approx(row["sd"], rel=1e-3)
    pair = one(
        comparison.contrast_agreement, method="far", measure="csa_mm2", contrast_x="T1w", contrast_y="T2w"
    )
    assert (pair["bias"], pair["slope"], pair["r"]) == pytest.approx((1.2, 1, 1), rel=1e-3)


def test_tables_have_the_columns_that_are_promised(comparison: Comparison, written: Path) -> None:
    promised = {
        "cases": CASE_COLUMNS,
        "slices": SLICE_COLUMNS,
        "reliability": RELIABILITY_COLUMNS,
        "statistics": STATISTICS_COLUMNS,
    }
    promised_of_tables = {
        "scores": SCORE_COLUMNS,
        "anova": ANOVA_COLUMNS,
        "agreement": AGREEMENT_COLUMNS,
        "contrast_agreement": PAIR_COLUMNS,
    }
    for name, columns in promised.items():
        assert list(getattr(comparison, name)) == list(columns)
        assert list(pd.read_csv(written / "out" / f"{name}.csv")) == list(columns)
    for name, columns in promised_of_tables.items():
        assert list(getattr(comparison, name)) == list(columns)
        assert isinstance(getattr(comparison, name).index, pd.RangeIndex)
    documented = f"{Evaluation.__doc__} {Comparison.winners.__doc__} {subject_table.__doc__}"
    for name in ("winners", "missing", "subjects"):
        table = getattr(comparison, name)
        assert isinstance(table.index, pd.RangeIndex)
        for column in table.columns:
            assert column in documented or column in SCORES, (name, column)


def test_files_say_what_made_them_and_how(comparison: Comparison, written: Path) -> None:
    assert {file.name for file in (written / "out").iterdir()} >= set(TABLES)
    statistics = json.loads((written / "out" / "statistics.json").read_text())
    assert statistics["made_by"]["name"] == "nnunet-softseg compare"
    assert statistics["made_by"]["parameters"]["seed"] == 0
    assert "Wilcoxon" in statistics["how"]["test"]
    assert len(statistics["pairs"]) == len(comparison.statistics)
    board = pd.read_csv(written / "out" / "leaderboard.csv")
    assert board["method"].tolist() == ["near", "far", "odd"]
    assert board["abs_csa_error_mm2_rank"].tolist() == [1, 3, 2]


# Order does not matter


def comparable(comparison: Comparison, table: str, keys: list[str]) -> pd.DataFrame:
    return getattr(comparison, table).sort_values(keys, ignore_index=True)


def test_the_order_of_methods_changes_nothing(comparison: Comparison, written: Path, tmp_path: Path) -> None:
    methods = {name: written / name for name in ("odd", "far", "near")}
    other = run(methods, written / "softLabelsTs", tmp_path)
    for table, keys in (
        ("cases", ["method", "case"]),
        ("subjects", ["method", "subject"]),
        ("scores", ["measure", "method"]),
        ("winners", ["measure"]),
        ("anova", ["method", "measure"]),
        ("agreement", ["method", "measure", "contrast"]),
    ):
        pd.testing.assert_frame_equal(comparable(comparison, table, keys), comparable(other, table, keys))
    for row in comparison.statistics.itertuples():
        pair = other.statistics[other.statistics["measure"] == row.measure]
        same = pair[(pair["method_a"] == row.method_b) & (pair["method_b"] == row.method_a)].iloc[0]
        assert same["mean_difference"] == -row.mean_difference
        assert (same["ci_low"], same["ci_high"]) == pytest.approx((-row.ci_high, -row.ci_low), nan_ok=True)
        assert same["p_subjects_corrected"] == row.p_subjects_corrected
        assert (same["better"], same["holds"]) == (row.better, row.holds)


ORIGIN: Mapping[str, Any] = {"parameters": {"correction": "holm", "primary": PRIMARY, "seed": 0}}


def with_cases(comparison: Comparison, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Comparison:
    """The same comparison from changed cases."""
    changed = change(comparison.cases.copy())
    evaluation = Evaluation(
        comparison.methods,
        comparison.labels,
        changed,
        comparison.slices,
        comparison.instances,
        comparison.reliability,
        comparison.missing,
        {},
        comparison.method_notes,
        (),
    )
    return compared(evaluation, comparison.reference, ORIGIN)


@settings(max_examples=3)
@given(seed=st.integers(0, 1000))
def test_the_order_of_files_changes_nothing(comparison: Comparison, seed: int) -> None:
    def shuffled(cases: pd.DataFrame) -> pd.DataFrame:
        # whole methods stay in their order, cases within them do not
        parts = [rows.sample(frac=1, random_state=seed) for _, rows in cases.groupby("method", sort=False)]
        return pd.concat(parts, ignore_index=True)

    other = with_cases(comparison, shuffled)
    for table in ("subjects", "scores", "winners", "statistics", "anova"):
        pd.testing.assert_frame_equal(getattr(other, table), getattr(comparison, table))
    keys = ["method", "measure", "contrast"]
    expected = comparable(comparison, "agreement", keys)
    pd.testing.assert_frame_equal(comparable(other, "agreement", keys), expected)


# Values that are missing or infinite


def test_a_failed_case_ranks_last_and_counts_by_its_rank(comparison: Comparison) -> None:
    def failed(cases: pd.DataFrame) -> pd.DataFrame:
        cases["asd_mm"] = np.where(cases["method"] == "near", 0.1, 0.2)
        cases.loc[(cases["method"] == "near") & (cases["case"] == "sub-01_T1w"), "asd_mm"] = np.inf
        return cases

    other = with_cases(comparison, failed)
    ranks = other.scores[other.scores["measure"] == "asd_mm"].set_index("method")
    assert ranks["rank"].to_dict() == {"far": 1, "odd": 1, "near": 3}
    assert ranks.loc["near", "mean"] == np.inf
    assert np.isnan(ranks.loc["near", "ci_low"])
    pair = one(other.statistics, measure="asd_mm", method_a="near", method_b="far")
    assert (pair["interval_of"], pair["mean_difference"], pair["median_difference"]) == (
        "median",
        np.inf,
        pytest.approx(-0.1),
    )
    # seven of eight subjects are better; the failed one has the highest of 8 ranks
    assert pair["rank_biserial"] == pytest.approx((8 - 28) / 36)
    assert one(other.statistics, measure="asd_mm", method_a="far", method_b="odd")["better"] == ""
    assert one(other.winners, measure="asd_mm")["winner"] == ""


def test_both_failed_is_no_difference(comparison: Comparison) -> None:
    def failed(cases: pd.DataFrame) -> pd.DataFrame:
        cases["hd95_mm"] = np.where(cases["method"] == "near", 1.0, 2.0)
        cases.loc[cases["case"] == "sub-01_T1w", "hd95_mm"] = np.inf
        return cases

    pair = one(with_cases(comparison, failed).statistics, measure="hd95_mm", method_a="near", method_b="far")
    assert (pair["num_subjects"], pair["num_cases"]) == (8, 24)
    # seven subjects differ by 1 in all of three contrasts, one in two of three
    assert pair["mean_difference"] == pytest.approx(-(7 + 2 / 3) / 8)


def test_a_value_that_one_method_lacks_is_left_out_of_its_pairs_only(comparison: Comparison) -> None:
    def without(cases: pd.DataFrame) -> pd.DataFrame:
        cases.loc[(cases["method"] == "odd") & (cases["subject"] == "sub-01"), "dice"] = np.nan
        return cases

    statistics = with_cases(comparison, without).statistics
    pairs = statistics[statistics["measure"] == "dice"].set_index(["method_a", "method_b"])["num_subjects"]
    assert pairs.to_dict() == {("near", "far"): 8, ("near", "odd"): 7, ("far", "odd"): 7}


def test_std_needs_every_contrast_in_every_method(comparison: Comparison) -> None:
    def without(cases: pd.DataFrame) -> pd.DataFrame:
        cases.loc[(cases["method"] == "odd") & (cases["case"] == "sub-01_T1w"), "csa_mm2"] = np.nan
        return cases

    other = with_cases(comparison, without)
    deviations = other.subjects.set_index(["method", "subject"])["std_csa_mm2"]
    assert deviations[:, "sub-01"].isna().all()
    assert deviations[:, "sub-02"].notna().all()
    assert one(other.anova, method="near", measure="csa_mm2")["num_subjects"] == 7
    assert any("1 of 8 subjects are left out" in warning for warning in other.warnings)


def test_pairs_of_contrasts_are_those_that_some_person_has(comparison: Comparison) -> None:
    def of_their_own(cases: pd.DataFrame) -> pd.DataFrame:
        return cases.assign(
            contrast=cases["contrast"].where(cases["contrast"] != "T1w", cases["subject"].str[-2:])
        )

    table = with_cases(comparison, of_their_own).contrast_agreement
    pairs = {*zip(table["contrast_x"], table["contrast_y"], strict=True)}
    # eight contrasts of one person each have no pair among themselves
    assert pairs == {("T2star", "T2w")} | {(own, other) for own in EIGHT for other in ("T2star", "T2w")}
    assert (table["num_subjects"] > 0).all()


# Who is missing


def test_common_cases_are_compared_and_the_others_reported(written: Path, tmp_path: Path) -> None:
    part = write_all(tmp_path / "part", {name: prism(7) for name in case_ids(EIGHT[:3], CONTRASTS)})
    result = run({"far": written / "far", "part": part}, written / "softLabelsTs", tmp_path / "out")
    assert sorted(result.cases["case"].unique()) == sorted(case_ids(EIGHT[:3], CONTRASTS))
    assert result.cases.groupby("method").size().to_dict() == {"far": 9, "part": 9}
    assert len(result.missing) == 15
    assert set(result.missing["method"]) == {"part"}
    assert result.warnings[0].startswith("MOST OF THE TEST SET IS MISSING: part lacks 15 of 24 cases")
    assert any("5 subjects are left out altogether: sub-04" in warning for warning in result.warnings)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["warnings"] == list(result.warnings)


def test_nothing_in_common_is_refused(written: Path, tmp_path: Path) -> None:
    first = write_all(tmp_path / "first", {"sub-01_T1w": prism()})
    second = write_all(tmp_path / "second", {"sub-02_T1w": prism()})
    with pytest.raises(UserError, match="all of first, second have, found none of 24"):
        run({"first": first, "second": second}, written / "softLabelsTs", tmp_path / "out")


def test_a_method_without_one_of_the_labels_is_told_which(tmp_path: Path) -> None:
    maps = {f"sub-0{subject}_T2w_000{label}": prism(7) for subject in (1, 2) for label in (1, 2)}
    reference = write_all(tmp_path / "softLabelsTs", maps)
    first = {name: values for name, values in maps.items() if name.endswith("1")}
    message = "sub-01_T2w, found 2 images .*, no file with label 2 of this case .* it has with --label$"
    with pytest.raises(UserError, match=message):
        run({"part": write_all(tmp_path / "part", first)}, reference, tmp_path / "out")


def test_one_subject_gets_its_tables_and_no_verdict(tmp_path: Path) -> None:
    reference = references(tmp_path / "ref", case_ids(["01"], CONTRASTS))
    methods = {
        name: write_all(tmp_path / name, {case: prism(width) for case in case_ids(["01"], CONTRASTS)})
        for name, width in (("a", 7), ("b", 8))
    }
    result = run(methods, reference, tmp_path / "out")
    winner = one(result.winners, measure="abs_csa_error_mm2")
    assert (winner["winner"], winner["holds"]) == ("a", False)
    assert winner["verdict"] == "too few subjects: 1, a test needs at least 6"
    assert [warning[:35] for warning in result.warnings] == ["too few subjects for statistics: 1,"]
    assert one(result.anova, method="a", measure="csa_mm2")["note"].startswith("too few subjects")
    assert one(result.subjects, method="a", subject="sub-01")["std_csa_mm2"] == pytest.approx(0, abs=1e-4)
    for name in TABLES:
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_the_same_method_twice_is_a_tie(written: Path, tmp_path: Path) -> None:
    result = run({"a": written / "far", "b": written / "far"}, written / "softLabelsTs", tmp_path)
    assert (result.statistics["p_subjects"] == 1).all()
    assert not result.statistics["holds"].any()
    assert (result.winners["winner"] == "").all()
    assert set(result.winners["verdict"]) == {"a and b are equal"}


def test_the_rounding_of_sums_is_no_difference(comparison: Comparison) -> None:
    """The same maps, turned or shifted by whole voxels, are summed in another order."""

    def rounded_otherwise(cases: pd.DataFrame) -> pd.DataFrame:
        measures = cases.select_dtypes("float").columns
        near = cases.loc[cases["method"] == "near", measures].to_numpy()
        cases.loc[cases["method"] == "far", measures] = near + 6e-14
        return cases

    other = with_cases(comparison, rounded_otherwise)
    pairs = other.statistics[
        (other.statistics["method_a"] == "near") & (other.statistics["method_b"] == "far")
    ]
    assert len(pairs) > 10
    assert (pairs["p_subjects"] == 1).all()
    assert (pairs["better"] == "").all()
    ranks = other.scores.pivot(index=["label", "measure"], columns="method", values="rank")
    assert (ranks["near"] == ranks["far"]).all()
    assert other.cases.loc[other.cases["method"] == "far", "dice"].iloc[0] % 1e-9 > 0  # as measured


def test_differences_that_cancel_within_a_person_are_none(comparison: Comparison) -> None:
    """-0.1, -0.2 and +0.3 in three contrasts have a mean of 0, which floats miss by 9e-18."""

    def cancelling(cases: pd.DataFrame) -> pd.DataFrame:
        off = cases["contrast"].map(dict(zip(CONTRASTS, (-0.1, -0.2, 0.3), strict=True)))
        cases["abs_csa_error_mm2"] = np.where(cases["method"] == "near", 1.0 + off, 1.0)
        return cases

    pair = one(
        with_cases(comparison, cancelling).statistics,
        measure="abs_csa_error_mm2",
        method_a="near",
        method_b="far",
    )
    assert (pair["p_subjects"], pair["rank_biserial"], pair["better"], pair["holds"]) == (1, 0, "", False)
    assert (pair["ci_low"], pair["ci_high"]) == (0, 0)


def test_the_same_values_of_other_people_are_a_tie(comparison: Comparison) -> None:
    """Means over people are sums, too, and differ by 5e-17 in another order."""
    values, order = np.array([1 / 3, 2 / 3, 0.1, 0.7, 0.2, 0.6, 0.9, 0.3]), [5, 4, 6, 3, 7, 2, 1, 0]
    assert values.mean() != values[order].mean()

    def of_others(cases: pd.DataFrame) -> pd.DataFrame:
        people = cases["subject"].str.removeprefix("sub-").astype(int).to_numpy() - 1
        cases["dice"] = np.where(cases["method"] == "near", values[people], values[order][people])
        return cases

    other = with_cases(comparison, of_others)
    ranks = other.scores[other.scores["measure"] == "dice"].set_index("method")["rank"]
    assert ranks.to_dict() == {"near": 1, "far": 1, "odd": 1}
    pair = one(other.statistics, measure="dice", method_a="near", method_b="far")
    assert (pair["better"], pair["mean_difference"]) == ("", 0)
    assert one(other.winners, measure="dice")["verdict"] == "far and near are equal"


def test_too_many_pairs_for_so_few_subjects_are_said(tmp_path: Path) -> None:
    cases = case_ids(EIGHT[:6], ["T1w"])
    reference = references(tmp_path / "ref", cases)
    methods = {
        name: write_all(tmp_path / name, {case: prism(width) for case in cases})
        for name, width in (("a", 6.6), ("b", 7), ("c", 8))
    }
    result = run(methods, reference, tmp_path / "out")
    row = one(result.statistics, measure="abs_csa_error_mm2", method_a="a", method_b="c")
    assert row["p_subjects"] == 2 / 2**6
    assert not row["holds"]
    # three pairs by area and by Dice; of one contrast there is no spread
    assert row["note"] == "too few subjects: 6, p < 0.05 in 6 tests needs at least 8"


def test_single_methods_and_no_contrasts_still_give_tables(tmp_path: Path) -> None:
    names = [f"case_{number}" for number in range(3)]
    reference = references(tmp_path / "ref", names)
    method = write_all(tmp_path / "a", dict.fromkeys(names, prism(7)))
    result = run({"a": method}, reference, tmp_path / "out")
    assert any("each counts as a subject of its own" in warning for warning in result.warnings)
    assert result.cases["contrast"].unique().tolist() == [""]
    assert result.statistics.empty
    assert result.contrast_agreement.empty
    assert one(result.winners, measure="dice")["verdict"] == "no other method to compare with"
    assert one(result.anova, method="a", measure="csa_mm2")["note"] == "fewer than two contrasts"


def test_an_empty_method_loses(written: Path, tmp_path: Path) -> None:
    nothing = write_all(tmp_path / "nothing", dict.fromkeys(case_ids(EIGHT, CONTRASTS), np.zeros(SHAPE)))
    result = run({"nothing": nothing, "far": written / "far"}, written / "softLabelsTs", tmp_path / "out")
    decided = result.winners.set_index("measure")
    for measure in ("dice", "abs_csa_error_mm2", "asd_mm", "boundary_mae"):
        assert decided.loc[measure, "winner"] == "far", measure
    assert decided.loc["dice", "holds"]
    # its area is 0 in all contrasts: as steady as can be, and wrong
    assert decided.loc["std_csa_mm2", "winner"] == "nothing"


# Which differences hold


def tables(
    first: Mapping[str, npt.ArrayLike], second: Mapping[str, npt.ArrayLike], primary: str = PRIMARY
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Scores, statistics and outcomes of methods a and b, from a value per measure and subject."""
    size = len(np.atleast_1d(next(iter(first.values()))))
    measured = dict.fromkeys(SCORES, NAN) | dict.fromkeys(AREAS, NAN)
    who = {"label": 1, "session": "", "contrast": "T1w", "num_cases": 1}
    subjects = pd.concat(
        [
            pd.DataFrame({**measured, **values, **who, "method": name}, index=range(size))
            .rename_axis("number")
            .reset_index()
            .assign(subject=lambda table: "sub-" + table["number"].astype(str))
            for name, values in (("a", first), ("b", second))
        ],
        ignore_index=True,
    )
    cases = subjects.drop(columns=list(PER_SUBJECT)).assign(case=subjects["subject"])
    scores = leaderboard.score_table(cases, subjects, ["a", "b"], 0)
    how: dict[str, Any] = {"correction": "holm", "seed": 0, "primary": primary}
    pairs = leaderboard.pair_table(cases, subjects, ["a", "b"], **how)
    found = leaderboard.outcomes(scores, pairs, primary)
    return scores, pairs, {each.measure: each for each in found}


UP = np.arange(1.0, 11)  # ten subjects


def test_few_complete_subjects_beside_many_are_counted_and_may_be_enough() -> None:
    """Six of ten have an STD over contrasts; as the last of three tests, its p is raised by 1."""
    few = np.where(UP <= 6, UP, NAN)
    b = {"abs_csa_error_mm2": UP, "std_csa_mm2": few, "dice": UP}
    scores, pairs, found = tables(dict.fromkeys(b, 0 * UP) | {"std_csa_mm2": 0 * few}, b)
    row = pairs.set_index("measure").loc["std_csa_mm2"]
    assert (row["num_subjects"], row["num_cases"]) == (6, 6)
    assert (row["p_subjects_corrected"], row["holds"], row["note"]) == (2 / 2**6, True, "")
    assert found["std_csa_mm2"].holds
    assert scores.set_index("measure").loc["std_csa_mm2", "num_cases"].tolist() == [6, 6]


def test_headlines_are_corrected_together_and_the_rest_is_exploratory() -> None:
    nine = np.where(UP == 1, -UP, UP)  # the smallest of ten against: W = 1, p = 2 (1 + 1) / 2^10
    b = {"abs_csa_error_mm2": UP, "std_csa_mm2": nine, "dice": UP * np.tile([-1, 1], 5), "asd_mm": UP}
    _, pairs, found = tables(dict.fromkeys(b, 0 * UP), b)
    row = pairs.set_index("measure")
    assert row["role"].to_dict() == {
        "abs_csa_error_mm2": "primary", "std_csa_mm2": "headline", "dice": "headline", "asd_mm": "exploratory"
    }  # fmt: skip
    assert row["num_tests"].to_dict() == {**dict.fromkeys(HEADLINES, 3), "asd_mm": 1}
    # Holm by hand: three, two and one times the smallest, the next and the largest p
    assert row.loc["abs_csa_error_mm2", "p_subjects_corrected"] == pytest.approx(3 * 2 / 2**10)
    assert row.loc["std_csa_mm2", "p_subjects_corrected"] == pytest.approx(2 * 4 / 2**10)
    assert row.loc["dice", "p_subjects_corrected"] == row.loc["dice", "p_subjects"]
    assert row.loc["asd_mm", "p_subjects"] == row.loc["asd_mm", "p_subjects_corrected"] == 2 / 2**10
    assert [name for name in row.index if row.loc[name, "holds"]] == ["abs_csa_error_mm2", "std_csa_mm2"]
    assert found["asd_mm"].in_words() == "exploratory"
    assert found["dice"].verdict is Verdict.NOT_SIGNIFICANT


def test_who_leads_by_other_people_is_contradicted_by_those_of_both() -> None:
    """Method b is better wherever both have a value, and has the worse mean by people whom a lacks."""
    of_both = UP <= 4
    a = {name: np.where(of_both, 0.5, NAN) for name in ("dice", "soft_dice")}
    b = {name: np.where(of_both, 0.6, 0.1) for name in a}
    scores, pairs, found = tables(a, b)
    assert pairs["better"].tolist() == ["b", "b"]
    for name in a:
        assert scores[scores["measure"] == name].set_index("method")["rank"].to_dict() == {"a": 1, "b": 2}
        assert (found[name].winner, found[name].verdict) == ("a", Verdict.CONTRADICTED)
    _, pairs, found = tables({"dice": a["dice"]}, {"dice": np.where(of_both, 0.5, 0.1)})
    assert pairs["better"].tolist() == [""]
    assert found["dice"].in_words().startswith("too few subjects: 4")


def test_the_user_may_name_another_primary_measure() -> None:
    b = {"abs_csa_error_mm2": UP, "dice": UP, "asd_mm": UP}
    _, pairs, found = tables(dict.fromkeys(b, 0 * UP), b, primary="asd_mm")
    row = pairs.set_index("measure")
    assert row["role"].tolist() == ["headline", "headline", "primary"]
    assert row["num_tests"].tolist() == [3, 3, 3]
    assert found["asd_mm"].holds
    assert found["asd_mm"].role == "primary"


@pytest.mark.parametrize("measure", SCORES)
def test_the_better_end_of_every_measure(measure: str) -> None:
    """More is better for overlaps, less for errors, distances and times."""
    more_is_better = measure in {"dice", "soft_dice", "surface_dice", "pq", "rq", "sq"}
    scores, pairs, found = tables({measure: UP}, {measure: UP + 1})
    best = "b" if more_is_better else "a"
    assert scores.set_index("method")["rank"].to_dict() == {best: 1, "ab".replace(best, ""): 2}
    assert pairs["better"].tolist() == [best]
    assert found[measure].winner == best


def test_a_primary_measure_without_a_value_is_no_answer_by_another(written: Path, tmp_path: Path) -> None:
    one_contrast = references(tmp_path / "ref", case_ids(EIGHT, CONTRASTS[:1]))
    methods = {name: written / name for name in ("near", "far")}
    with pytest.raises(UserError, match=r"--primary std_csa_mm2: .*over contrasts.*name one of abs_csa_err"):
        run(methods, one_contrast, tmp_path / "out", primary="std_csa_mm2")
    assert not (tmp_path / "out" / "leaderboard.csv").exists()
    maps = {f"sub-{number}_T1w_0002": 0 * prism() for number in EIGHT}  # nothing in both: no such distance
    for folder in ("ref", "near", "far"):
        write_all(tmp_path / "both" / folder, maps)
        write_all(tmp_path / "both" / folder, {f"sub-{number}_T1w_0001": prism(6.5) for number in EIGHT})
    methods = {name: tmp_path / "both" / name for name in methods}
    result = run(methods, tmp_path / "both" / "ref", tmp_path / "out", primary="abs_csa_error_mm2")
    told = "the primary measure, abs_csa_error_mm2, has no value of label 2: it answers nothing there"
    assert result.warnings[0] == told
    assert verdict(result, 2)[0] == "The primary measure, absolute CSA error, has no value."
    assert "primary measure" not in str(verdict(result, 1)[0])


def test_the_default_primary_measure_of_the_command_is_that_of_the_function() -> None:
    assert Compare.__dataclass_fields__["primary"].default == PRIMARY == "abs_csa_error_mm2"


# A table of cases


def test_a_table_may_name_everything(tmp_path: Path) -> None:
    write_all(tmp_path / "ref", {"r1": prism(6.5), "r2": prism(6.5)})
    write_all(tmp_path / "a", {"x": prism(7), "y": prism(8)})
    write_all(tmp_path / "b", {"r1_seg": prism(7), "r2_seg": prism(7)})
    table = tmp_path / "cases.tsv"
    table.write_text(
        "case\tsubject\tcontrast\treference\ta\nr1\tanna\tT1w\tr1.nii.gz\ty.nii.gz\nr2\tanna\tT2w\tr2.nii.gz\tx.nii.gz\n"
    )
    result = run(
        {"a": tmp_path / "a", "b": tmp_path / "b"}, tmp_path / "ref", tmp_path / "out", subjects=table
    )
    assert one(result.cases, method="a", contrast="T1w")["csa_mm2"] == pytest.approx(48)
    assert one(result.cases, method="a", contrast="T2w")["csa_mm2"] == pytest.approx(42)
    assert one(result.subjects, method="a", subject="anna")["std_csa_mm2"] == pytest.approx(6 / np.sqrt(2))


# The command


def command(written: Path, output: Path, *options: str) -> list[str]:
    return ["compare", "-g", str(written / "softLabelsTs"), "-o", str(output), "-np", "1", *options]


def test_command(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = ["--method", f"a <b>={written / 'near'}", "--method", f"it's={written / 'far'}"]
    assert (
        main(command(written, tmp_path / "out", *methods, "--correction", "bonferroni", "--no-report")) == 0
    )
    printed = capsys.readouterr().out
    assert "a <b>" in printed
    assert "holds" in printed
    assert pd.read_csv(tmp_path / "out" / "leaderboard.csv")["method"].tolist() == ["a <b>", "it's"]


def test_tables_alone_leave_no_report_of_before(written: Path, tmp_path: Path) -> None:
    """Only what the command wrote goes, and of a folder without a comparison nothing."""
    mine = [tmp_path / name for name in ("report.html", "notes.txt", "figures/mine.svg")]
    (tmp_path / "figures").mkdir()
    for file in mine:
        file.write_text("mine")
    run({"near": written / "near"}, written / "softLabelsTs", tmp_path)
    assert all(file.read_text() == "mine" for file in mine)
    tables = {file.name for file in tmp_path.iterdir()}
    run({"near": written / "near"}, written / "softLabelsTs", tmp_path, report=True)
    assert len(list((tmp_path / "figures").iterdir())) > 1
    run({"far": written / "far"}, written / "softLabelsTs", tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == tables - {"report.html"}
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["mine.svg"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "a={w}/near", "--method", "a={w}/far"], "each name once, found a more than once"),
        (["--method", "reference={w}/near"], "a name other than 'reference'"),
        (["--method", " ={w}/near"], "a name other than"),
        (["--method", "a={w}/nowhere"], "found nothing"),
        (["--method", "a={w}/near", "--pattern", "b={{case}}.nii.gz"], r"names of methods \(a\), found b"),
        (["--method", "a={w}/near", "--vert", "2"], "--levels"),
        (["--method", "a={w}/near", "--primary", "csa_mm2"], "--primary: expected one of abs_csa_error_mm2"),
        (["--method", "a={w}/near", "--seed", "-1"], "--seed: expected 0 or more, found -1"),
        (["--method", "a={w}/near", "--primary", "seconds"], "softseg.json.*of a, found none"),
    ],
)
def test_mistakes_end_in_one_line(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    filled = [option.format(w=written) for option in options]
    assert main(command(written, tmp_path / "out", *filled)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("nnunet-softseg: error: ")
    with pytest.raises(ValueError, match=message):
        raise ValueError(error)


def test_a_method_without_a_name_is_refused(written: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(command(written, tmp_path, "--method", str(written / "near")))


def test_an_unknown_correction_is_refused(written: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holm or bonferroni"):
        run({"a": written / "near"}, written / "softLabelsTs", tmp_path, correction="none")
