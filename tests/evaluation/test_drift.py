"""Drift between two releases: the values of a real update, laws, verdicts, bad input."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prisms import prism, write, write_all

from nnunet_softseg.cli import main
from nnunet_softseg.errors import UserError
from nnunet_softseg.evaluation.comparison.paired_statistics import deming_line
from nnunet_softseg.evaluation.drift import draw_agreement, drift, version_of
from nnunet_softseg.evaluation.releases.areas import release_areas
from nnunet_softseg.evaluation.releases.drift_report import (
    DriftReport,
    Limits,
    read_limits,
    statistics_table,
)
from nnunet_softseg.io.results import write_table
from nnunet_softseg.metrics.morphometry.csa import csa

COLUMNS = [
    "contrast", "level", "n", "bias_mm2", "bias_low_mm2", "bias_high_mm2", "loa_low_mm2", "loa_high_mm2",
    "mean_ratio", "sd_ratio", "deming_slope", "deming_intercept_mm2",
]  # fmt: skip
CONTRASTS = ("T1w", "T2w", "T2star", "mt-on", "mt-off", "dwi")


def people(
    subjects: int = 12, seed: int = 0, contrasts: Any = CONTRASTS, scatter: float = 0.0
) -> pd.DataFrame:
    """Areas of people at C2 and C3 in each contrast, mm2; scatter: SD of an image about its person."""
    rng = np.random.default_rng(seed)
    rows = []
    for subject in range(subjects):
        person = rng.normal(80, 8)
        for contrast in contrasts:
            for level in (2, 3):
                area = person + 2 * level + rng.normal(0, scatter)
                rows.append((f"sub-{subject:02d}", contrast, level, area))
    return pd.DataFrame(rows, columns=["subject", "contrast", "level", "csa_mm2"])


def written(folder: Path, name: str, table: pd.DataFrame) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    table.to_csv(folder / name, index=False)
    return folder / name


def quiet(old: Path, new: Path, output: Path, **options: Any) -> Any:
    return drift(old, new, output, num_processes=1, progress=False, **options)


def compared(folder: Path, old: pd.DataFrame, new: pd.DataFrame, limits: Limits | None = None) -> DriftReport:
    files = written(folder, "old.csv", old), written(folder, "new.csv", new)
    return DriftReport(*files, release_areas(*files), limits or Limits())


# Values


def test_a_real_update_of_a_normative_database(larger_real_data: Path, tmp_path: Path) -> None:
    folder = larger_real_data / "drift"
    if not folder.is_dir():
        pytest.skip(f"no areas of two releases in {folder}")
    report = quiet(folder / "old.csv", folder / "new.csv", tmp_path)
    table = pd.read_csv(tmp_path / "drift.csv", keep_default_na=False, na_values={"level": [""]})
    assert list(table) == COLUMNS
    assert table["level"].tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert set(table["n"]) == {203}
    ratios = [0.9738, 0.9745, 0.9776, 0.9787, 0.9805, 0.9722, 0.9709]
    np.testing.assert_allclose(table["mean_ratio"], ratios, atol=5e-5)
    biases = [-1.960, -1.976, -1.917, -1.863, -1.556, -1.708, -1.460]
    np.testing.assert_allclose(table["bias_mm2"], biases, atol=5e-4)
    spreads = [0.949, 0.920, 0.881, 0.861, 0.861, 0.909, 0.943]
    np.testing.assert_allclose(table["sd_ratio"], spreads, atol=5e-4)
    assert (table["bias_high_mm2"] < 0).all()
    assert report.drift


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(0.5, 2.0), st.floats(-5, 5))
def test_the_line_is_the_first_principal_axis(seed: int, slope: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    true = rng.normal(80, 8, 25)
    x, y = true + rng.normal(0, 1, 25), slope * true + shift + rng.normal(0, 1, 25)
    found = deming_line(x, y, np.arange(25))
    _, _, axes = np.linalg.svd(np.stack([x - x.mean(), y - y.mean()], axis=1))
    assert found.slope == pytest.approx(axes[0, 1] / axes[0, 0])
    assert found.at(x).mean() == pytest.approx(y.mean())
    assert deming_line(y, x, np.arange(25)).slope == pytest.approx(1 / found.slope)


def test_the_standard_errors_of_the_line_are_those_of_repeated_draws() -> None:
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(200):
        true = rng.normal(80, 8, 40)
        x, y = (each + rng.normal(0, 1, 40) for each in (true, 0.97 * true + 2))
        lines.append(deming_line(x, y, np.arange(40)))
    slopes = np.array([line.slope for line in lines])
    # 200 draws know a standard deviation to 5 %
    assert np.mean([line.slope_se for line in lines]) == pytest.approx(slopes.std(), rel=0.2)
    at_80 = np.array([line.at(np.array(80.0)) for line in lines])
    errors = np.mean([line.se_at(np.array(80.0)) for line in lines])
    assert errors == pytest.approx(at_80.std(), rel=0.2)


def test_the_interval_of_the_slope_holds_the_true_one_as_often_as_it_says() -> None:
    """Of six people, 1000 times: with 1.96 standard errors 0.89 of them would."""
    rng, draws = np.random.default_rng(1), 1000
    person = np.tile([f"sub-{number:02d}" for number in range(6)], draws)
    true = rng.normal(80, 8, person.size)
    pairs = pd.DataFrame({"subject": person, "contrast": "T2w", "level": np.repeat(np.arange(draws), 6)})
    for release in ("old", "new"):
        pairs[release] = true + rng.normal(0, 1, person.size)
    table = statistics_table(pairs)
    held = (table["slope_low"] <= 1) & (table["slope_high"] >= 1)
    assert held.mean() == pytest.approx(0.95, abs=0.02)


# Laws


def test_an_affine_change_is_found_exactly(tmp_path: Path) -> None:
    old = people()
    report = compared(tmp_path, old, old.assign(csa_mm2=0.97 * old["csa_mm2"] + 2))
    np.testing.assert_allclose(report.table["deming_slope"], 0.97, rtol=1e-9)
    np.testing.assert_allclose(report.table["deming_intercept_mm2"], 2, rtol=1e-7)
    np.testing.assert_allclose(report.table["sd_ratio"], 0.97, rtol=1e-9)


def test_limits_of_the_figure_count_a_person_once_not_once_an_image(tmp_path: Path) -> None:
    """Changes of people: 0, 1, 2 mm2, the same in each image.

    SD between people 1, within 0 (Bland & Altman 2007, section 3); of all twelve differences 0.85.
    """
    old = people(3, contrasts=("T1w", "T2w"))
    change = old["subject"].str[-1].astype(float)
    figure = draw_agreement(compared(tmp_path, old, old.assign(csa_mm2=old["csa_mm2"] + change)))
    heights = sorted(float(np.mean(line.get_ydata())) for line in figure.axes[0].lines)
    np.testing.assert_allclose(heights, [1 - 1.96, 1, 1 + 1.96], atol=1e-9)


def test_the_same_areas_are_no_drift(tmp_path: Path) -> None:
    report = compared(tmp_path, people(scatter=1), people(scatter=1))
    assert not report.drift
    for name, value in {"bias_mm2": 0, "mean_ratio": 1, "deming_slope": 1, "sd_ratio": 1}.items():
        assert report.table[name].tolist() == pytest.approx([value] * 12), name
    code = main(["drift", "--old", str(tmp_path / "old.csv"), "--new", str(tmp_path / "new.csv"),
                 "-o", str(tmp_path / "out")])  # fmt: skip
    assert code == 0


def test_rows_that_are_there_twice_or_in_another_order_change_nothing(tmp_path: Path) -> None:
    old, new = people(scatter=1), people(scatter=1, seed=1)
    plain = compared(tmp_path / "plain", old, new).as_dict()
    twice = pd.concat([new, new.iloc[5:9]]).sample(frac=1, random_state=0)
    assert compared(tmp_path / "twice", old.iloc[::-1], twice).as_dict() == plain


def test_the_areas_of_slices_are_averaged_over_a_level(tmp_path: Path) -> None:
    old = people(3)
    up, down = (old.assign(slice=n, csa_mm2=old["csa_mm2"] + off) for n, off in ((0, 3), (1, -3)))
    report = compared(tmp_path, old, pd.concat([up, down]))
    np.testing.assert_allclose(report.pairs["old"], report.pairs["new"])


def test_people_with_more_images_do_not_count_more(tmp_path: Path) -> None:
    """Four of twenty have all contrasts, and they alone changed."""
    old = people(20)
    old = old[(old["subject"] < "sub-04") | (old["contrast"] == "T2w")]
    new = old.assign(csa_mm2=old["csa_mm2"] + 1.5 * (old["subject"] < "sub-04"))
    report = compared(tmp_path, old, new)
    pooled = report.pooled
    np.testing.assert_allclose(pooled["bias_mm2"], 1.5 * 4 / 20)
    heights = sorted(float(np.mean(line.get_ydata())) for line in draw_agreement(report).axes[0].lines)
    assert heights[1] == pytest.approx(1.5 * 4 / 20)
    assert heights[0] + heights[2] == pytest.approx(2 * heights[1])
    np.testing.assert_allclose((pooled["loa_low_mm2"] + pooled["loa_high_mm2"]) / 2, pooled["bias_mm2"])
    assert pooled["bias_mm2"].between(pooled["bias_low_mm2"], pooled["bias_high_mm2"]).all()
    expected = old.groupby(["level", "subject"])["csa_mm2"].mean().groupby("level").mean()
    np.testing.assert_allclose(pooled["mean_old_mm2"], expected)


@pytest.mark.parametrize("loser", ["old", "new"])
def test_a_slice_that_one_release_leaves_empty_is_no_area_in_its_mean(loser: str, tmp_path: Path) -> None:
    """Else half a cord would have the mean area of the whole."""
    whole = pd.concat([people(8).assign(slice=number) for number in range(4)])
    both_empty = whole["slice"] == 0
    tables = {"old": whole, "new": whole}
    tables = {name: table.assign(csa_mm2=table["csa_mm2"].mask(both_empty)) for name, table in tables.items()}
    tables[loser] = whole.assign(csa_mm2=whole["csa_mm2"].mask(whole["slice"] < 2))
    report = compared(tmp_path, tables["old"], tables["new"])
    ratio = 2 / 3 if loser == "new" else 3 / 2
    np.testing.assert_allclose(report.pairs["new"] / report.pairs["old"], ratio)
    assert report.drift


# The verdict


@pytest.mark.parametrize("seed", range(5))
def test_scatter_is_no_drift_and_two_percent_are(seed: int, tmp_path: Path) -> None:
    """The difference of an image between releases has an SD of 1 mm2, about 80 mm2."""
    old = people(seed=seed)
    noise = np.random.default_rng(100 + seed).normal(0, 1, len(old))
    same = compared(tmp_path / "same", old, old.assign(csa_mm2=old["csa_mm2"] + noise))
    assert not same.drift, same.broken
    wider = compared(tmp_path / "wider", old, old.assign(csa_mm2=1.02 * old["csa_mm2"] + noise))
    assert wider.drift


def test_drift_is_exit_code_three_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = people(contrasts=("T2w",))
    files = (
        written(tmp_path, "old.csv", old),
        written(tmp_path, "new.csv", old.assign(csa_mm2=1.03 * old["csa_mm2"])),
    )
    out = tmp_path / "out"
    assert main(["drift", "--old", str(files[0]), "--new", str(files[1]), "-o", str(out)]) == 3
    assert "DRIFT: beyond the limit: bias_percent of T2w C2" in capsys.readouterr().out
    content = json.loads((out / "drift.json").read_text())
    assert content["drift"] is True
    assert content["rows"][0]["beyond"] == ["bias_percent"]
    assert content["rows"][0]["limit_percent"] == 1
    assert content["made_by"]["parameters"]["sha256"]
    page = (out / "drift.html").read_text(encoding="utf-8")
    assert '<strong class="bad">Drift</strong>' in page
    assert not re.findall(r"(?:src|href)=[\"']?https?://", page)


def test_limits_come_from_a_file(tmp_path: Path) -> None:
    old = people()
    new = old.assign(csa_mm2=1.03 * old["csa_mm2"])
    file = tmp_path / "limits.json"
    file.write_text('{"bias_percent": null, "slope": 0.02}')
    limits = read_limits(file)
    assert limits == Limits(bias_percent=None, slope=0.02)
    assert "slope of T2w C2" in compared(tmp_path, old, new, limits).broken
    assert not compared(tmp_path, old, new, Limits(bias_percent=5)).drift
    one = old.assign(csa_mm2=old["csa_mm2"].where(old["contrast"] != "T2w", 1.02 * old["csa_mm2"]))
    assert not compared(tmp_path, old, one).drift  # 2 % in one of six is a third of a percent over all
    assert compared(tmp_path, old, one, Limits(contrast_bias_percent=1.5)).broken == [
        "contrast_bias_percent of T2w C2",
        "contrast_bias_percent of T2w C3",
    ]
    one["csa_mm2"] = old["csa_mm2"].where(old["contrast"] != "T2w", 1.03 * old["csa_mm2"])
    assert "contrast_bias_percent of T2w C2" in compared(tmp_path, old, one).broken
    apart = old.assign(csa_mm2=old["csa_mm2"] + 5 * (old["contrast"] == "dwi"))
    spread = Limits(bias_percent=None, contrast_bias_percent=None, contrast_std_mm2=0.5)
    report = compared(tmp_path, old, apart, spread)
    assert report.broken == [f"contrast_std_mm2 of C{level}" for level in (2, 3)]
    # in mm2, as its limit
    assert "limit_percent" not in report.as_dict()["std_over_contrasts"][0]
    assert not compared(tmp_path, apart, old, spread).drift  # a smaller spread is no fault


def test_an_area_that_the_new_release_does_not_find_is_drift(tmp_path: Path) -> None:
    old = people()
    new = old.copy()
    new.loc[4, "csa_mm2"] = np.nan
    report = compared(tmp_path, old, new)
    assert report.broken == ["1 areas lost (sub-00 T2star C2)"]


# A normative table


def test_a_normative_table_follows_the_line_not_a_factor(tmp_path: Path) -> None:
    old = people(30, scatter=1)
    new = old.assign(csa_mm2=0.9 * old["csa_mm2"] + 6)
    table = pd.DataFrame(
        {"level": [2, 3], "mean_csa_mm2": [80.0, 82.0], "sd_csa_mm2": [8.0, 8.0], "n": [9, 9]}
    )
    files = written(tmp_path, "old.csv", old), written(tmp_path, "new.csv", new)
    quiet(*files, tmp_path / "out", update=written(tmp_path, "normal.csv", table))
    found = pd.read_csv(tmp_path / "out" / "normal_updated.csv")
    np.testing.assert_allclose(found["mean_csa_mm2"], [78, 79.8], rtol=1e-6)
    np.testing.assert_allclose(found["sd_csa_mm2"], 7.2, rtol=1e-6)
    np.testing.assert_allclose(found["mean_csa_se_mm2"], 0, atol=1e-5)  # nothing scatters about this line
    assert found["n"].tolist() == [9, 9]
    np.testing.assert_allclose(found["deming_slope"], 0.9, rtol=1e-6)
    clash = written(tmp_path, "clash.csv", table.assign(mean_csa_se_mm2=1.0))
    with pytest.raises(UserError, match="found one: rename it"):
        quiet(*files, tmp_path / "out", update=clash)
    # an update once more replaces its own errors; what people differ by, and an error of theirs, are scaled
    once = found.assign(sem_mm2=1.0, csa_mm2_mean=80.0, csa_mm2_std=8.0)
    quiet(*files, tmp_path / "out", update=written(tmp_path, "once.csv", once))
    again = pd.read_csv(tmp_path / "out" / "once_updated.csv")
    expected = {"mean_csa_mm2": 0.9 * found["mean_csa_mm2"] + 6, "sd_csa_mm2": 0.9 * 7.2, "sem_mm2": 0.9}
    expected |= {"csa_mm2_mean": 78, "csa_mm2_std": 7.2}
    for name, values in expected.items():
        np.testing.assert_allclose(again[name], values, rtol=1e-6)
    assert [name for name in again if name.endswith("_se_mm2")] == [
        "mean_csa_se_mm2", "sd_csa_se_mm2", "sem_se_mm2", "csa_mean_se_mm2", "csa_std_se_mm2",
        "deming_intercept_se_mm2",
    ]  # fmt: skip
    own = table.assign(csa_se_mm2=1.0)  # of the table: no column of areas has this as its error
    quiet(*files, tmp_path / "out", update=written(tmp_path, "own.csv", own))
    quiet(*files, tmp_path / "out", update=tmp_path / "out" / "own_updated.csv")
    twice = pd.read_csv(tmp_path / "out" / "own_updated_updated.csv")
    np.testing.assert_allclose(twice["csa_se_mm2"], 0.9**2, rtol=1e-6)
    (tmp_path / "out" / "drift.json").write_text('{"made_by": "me"}')
    quiet(*files, tmp_path / "out")  # a file of somebody else
    other = written(tmp_path, "other.csv", table.assign(level=[2, 9]))
    with pytest.raises(UserError, match="expected levels and contrasts that were compared, found 9"):
        quiet(*files, tmp_path / "out", update=other)


def test_normal_values_that_an_earlier_call_updated_go_with_its_page(tmp_path: Path) -> None:
    old = people(30, scatter=1)
    files = (
        written(tmp_path, "old.csv", old),
        written(tmp_path, "new.csv", old.assign(csa_mm2=old["csa_mm2"] + 6)),
    )
    normal = written(tmp_path, "normal.csv", pd.DataFrame({"level": [2], "mean_mm2": [80.0]}))
    output = tmp_path / "out"
    updated = output / "normal_updated.csv"
    quiet(*files, output, update=normal)
    (output / "mine_updated.csv").write_text("mine")
    quiet(*files, output, update=updated)  # what is given is no result of before
    assert updated.is_file()
    quiet(*files, output)
    assert {file.name for file in output.glob("*_updated.csv")} == {"normal_updated.csv", "mine_updated.csv"}
    quiet(*files, output, update=normal)
    quiet(*files, output)
    assert [file.name for file in output.glob("*_updated.csv")] == ["mine_updated.csv"]


def test_the_spread_of_all_contrasts_is_that_of_people(tmp_path: Path) -> None:
    """Contrasts lie 20 mm2 apart, visits 6, in both releases; the new one halves what people differ by.

    The person of one contrast has the mean of none: with it the line would be another.
    """
    own = {f"sub-{number:02d}": 3.0 * number - 9 for number in range(7)}
    images = [
        (subject, visit, contrast, 2, base + shift)
        for subject in own
        for contrast, base in (("T1w", 70.0), ("T2w", 90.0))
        for visit, shift in (("ses-1", -3.0), ("ses-2", 3.0))
        if subject != "sub-06" or contrast == "T1w"
    ]
    frame = pd.DataFrame(images, columns=["subject", "session", "contrast", "level", "base"])
    person = frame["subject"].map(own)
    old, new = (frame.assign(csa_mm2=frame["base"] + share * person) for share in (1, 0.5))
    report = compared(tmp_path, old, new)
    for table in (report.table, report.pooled):
        np.testing.assert_allclose(table[["sd_ratio", "deming_slope"]], 0.5, rtol=1e-9)
    np.testing.assert_allclose(report.pooled["deming_intercept_mm2"], 80 - 0.5 * 80, rtol=1e-9)
    lacking = ["T1w", "T2w", "dwi"]  # each person lacks one: nobody has all
    images = [
        (subject, "ses-1", contrast, 2, base)
        for number, subject in enumerate(own)
        for contrast, base in (("T1w", 70.0), ("T2w", 90.0), ("dwi", 75.0))
        if contrast != lacking[number % 3]
    ]
    some = pd.DataFrame(images, columns=frame.columns)
    person = some["subject"].map(own)
    parts = [some.assign(csa_mm2=some["base"] + share * person) for share in (1, 0.5)]
    pooled = compared(tmp_path / "some", *parts).pooled
    np.testing.assert_allclose(pooled[["sd_ratio", "deming_slope"]], 0.5, rtol=1e-9)
    normal = written(tmp_path, "normal.csv", pd.DataFrame({"level": [2], "sd_mm2": [6.0]}))
    quiet(report.old, report.new, tmp_path / "out", update=normal)
    np.testing.assert_allclose(pd.read_csv(tmp_path / "out" / "normal_updated.csv")["sd_mm2"], 3, rtol=1e-6)
    split = [
        each[(each["subject"] < "sub-03") == (each["contrast"] == "T1w")]
        for each in (old, new)  # nobody has both
    ]
    with pytest.raises(UserError, match="or name the contrast of each row"):
        quiet(*(written(tmp_path, f"{n}.csv", each) for n, each in enumerate(split)), tmp_path / "out",
              update=normal)  # fmt: skip


# Maps


def release(folder: Path, width: float, subjects: int = 3, **changed: float) -> Path:
    for number in range(subjects):
        name = f"sub-{number:02d}_T2w"
        write(folder / f"{name}_0001.nii.gz", prism(changed.get(name, width + 0.1 * number)))
    return folder


def level_image(folder: Path) -> Path:
    values = np.zeros((16, 16, 20))
    values[:, :, 2:10], values[:, :, 10:18] = 3, 2
    return write(folder / "levels.nii.gz", values)


def test_maps_are_measured_in_the_same_slices(tmp_path: Path) -> None:
    old, new = release(tmp_path / "v2" / "soft", 6.2), release(tmp_path / "v10" / "soft", 6.4)
    levels = level_image(tmp_path)
    report = quiet(old.parent, new.parent, tmp_path / "out", levels=levels, vert=(2, 3))
    table = pd.read_csv(tmp_path / "out" / "drift.csv")
    assert table["level"].tolist() == [2, 3]
    assert table["contrast"].tolist() == ["T2w"] * 2
    np.testing.assert_allclose(table["bias_mm2"], 6 * 0.2, atol=1e-4)  # 6 voxels times 0.2
    assert report.drift
    assert not any("mix-up" in warning for warning in report.warnings)
    back = quiet(new.parent, old.parent, tmp_path / "back")
    assert any("--old names version 10, --new 2, an earlier one" in warning for warning in back.warnings)
    assert back.table["level"].isna().all()


def test_faint_ends_of_one_release_are_no_drift_in_maps_and_in_their_tables(tmp_path: Path) -> None:
    """Two slices of 5 % at each end; above 0.5 the releases are alike."""
    faint = prism(6.2, first=0, last=19) * 0.05
    for number in range(8):
        cord = prism(6.2 + 0.1 * number)
        for name, values in (("old", cord), ("new", np.maximum(cord, faint))):
            write(tmp_path / name / f"sub-{number:02d}_T2w.nii.gz", values)
    for name in ("old", "new"):
        csa(tmp_path / name, output=tmp_path / f"{name}.csv", num_processes=1, progress=False)
    for ending in ("", ".csv"):
        report = quiet(*(tmp_path / f"{name}{ending}" for name in ("old", "new")), tmp_path / "out")
        np.testing.assert_allclose(report.pairs["old"], 6 * (6.2 + 0.1 * np.arange(8)), rtol=1e-4)
        np.testing.assert_allclose(report.pairs["new"], report.pairs["old"], rtol=1e-4)
        assert not report.drift


def test_a_label_of_scans_that_are_numbered_is_measured(tmp_path: Path) -> None:
    for folder, width in (("old", 5), ("new", 7)):
        for scan in (3, 7):
            labels = 2 * (prism(width) > 0.5)
            labels[0, 0] = 1
            write(tmp_path / folder / f"scan_{scan:04d}.nii.gz", labels.astype(np.uint8))
    report = quiet(tmp_path / "old", tmp_path / "new", tmp_path / "out", label=2)
    assert report.pairs["subject"].tolist() == ["scan_0003", "scan_0007"]
    np.testing.assert_allclose(report.pairs["new"] / report.pairs["old"], 7 / 5)


def test_spinal_levels_are_called_so(tmp_path: Path) -> None:
    """Level 8 is C8, between C7 and T1."""
    lost = people(4).assign(level=8, csa_mm2=lambda table: table["csa_mm2"].where(table.index > 1))
    files = [tmp_path / "old.csv", tmp_path / "new.csv"]
    written(tmp_path, "old.csv", people(4).assign(level="C8").drop_duplicates(["subject", "contrast"]))
    written(tmp_path, "new.csv", lost.drop_duplicates(["subject", "contrast"]))
    with pytest.raises(UserError, match="level 'C8'"):
        quiet(*files, tmp_path / "out")
    named = quiet(*files, tmp_path / "out", level_names="spinal", vert="C8")
    assert named.broken == ["1 areas lost (sub-00 T1w C8)"]
    assert "C8" in (tmp_path / "out" / "drift.html").read_text(encoding="utf-8")
    write_table(lost.head(1), tmp_path / "beside.csv", {}, "csa", {"level_names": "spinal"})
    shutil.copy(tmp_path / "beside.json", tmp_path / "new.json")
    assert quiet(*files, tmp_path / "out").broken == named.broken
    write_table(lost.head(1), tmp_path / "beside.csv", {}, "csa", {"level_names": "vertebral"})
    shutil.copy(tmp_path / "beside.json", tmp_path / "old.json")
    with pytest.raises(UserError, match=r"new\.csv: expected vertebral levels .*, found spinal"):
        quiet(*files, tmp_path / "out")


def test_an_empty_map_is_lost(tmp_path: Path) -> None:
    old = release(tmp_path / "old", 6.2)
    new = release(tmp_path / "new", 6.2, **{"sub-01_T2w": 0.0})
    write(new / "sub-01_T2w_0001.nii.gz", np.zeros((16, 16, 20)))
    assert quiet(old, new, tmp_path / "out").broken == ["1 areas lost (sub-01 T2w)"]


def test_versions_are_ordered_as_numbers() -> None:
    names = ["v10", "v2", "model_v2.10.zip", "model-2.9", "r1"]
    assert sorted(names, key=lambda name: version_of(Path("/x") / name)) == [
        "r1", "v2", "model-2.9", "model_v2.10.zip", "v10"
    ]  # fmt: skip
    assert version_of(Path("/release_3/sub-01/OUT")) == (3,)


# The frozen set


def test_a_manifest_names_images_and_levels_whatever_their_subjects_are_called(tmp_path: Path) -> None:
    frozen = tmp_path / "frozen"
    write_all(tmp_path / "old", {f"case_{number:03d}": prism(6 + 0.1 * number) for number in range(3)})
    names = [f"case_{number:03d}{end}.nii.gz" for number in range(3) for end in ("_0000", "_levels")]
    frozen.mkdir()
    for name in [*names, "participants.tsv"]:
        (frozen / name).write_bytes(name.encode())
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in frozen.iterdir()}
    manifest = frozen / "SHA256SUMS"
    manifest.write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    old = tmp_path / "old"
    assert quiet(old, old, tmp_path / "out", manifest=manifest).manifest_files == 7
    (old / "case_002.nii.gz").unlink()
    with pytest.raises(UserError, match=r"found 2 left out \(case_002, case_002_levels\) and 0 that"):
        quiet(old, old, tmp_path / "other", manifest=manifest)


def test_a_manifest_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    old = release(tmp_path / "old", 6.2)
    frozen = tmp_path / "frozen"
    frozen.mkdir()
    for number in range(3):
        (frozen / f"sub-{number:02d}_T2w_0000.nii.gz").write_bytes(bytes([number]))
    lines = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(frozen.iterdir())}
    manifest = frozen / "SHA256SUMS"
    manifest.write_text("".join(f"{digest}  {name}\n" for name, digest in lines.items()))
    assert quiet(old, old, tmp_path / "out", manifest=manifest).manifest_files == 3
    as_json = frozen / "manifest.json"
    as_json.write_text(json.dumps(lines))
    assert quiet(old, old, tmp_path / "out", manifest=as_json).manifest_files == 3

    (frozen / "sub-01_T2w_0000.nii.gz").write_bytes(b"changed")
    with pytest.raises(UserError, match=r"found 1 changed: sub-01_T2w_0000\.nii\.gz"):
        quiet(old, old, tmp_path / "none", manifest=manifest)
    assert not (tmp_path / "none").exists()
    (frozen / "sub-01_T2w_0000.nii.gz").unlink()
    with pytest.raises(UserError, match="found 1 missing"):
        quiet(old, old, tmp_path / "none", manifest=manifest)
    manifest.write_text("".join(f"{lines[name]}  {name}\n" for name in [*lines][:1]))
    with pytest.raises(UserError, match=r"2 that it does not list \(sub-01, sub-02\)"):
        quiet(old, old, tmp_path / "none", manifest=manifest)
    manifest.write_text("hello\n")
    with pytest.raises(UserError, match="found line 1: 'hello'"):
        quiet(old, old, tmp_path / "none", manifest=manifest)


def test_subjects_of_the_training_are_named(tmp_path: Path) -> None:
    old, new = release(tmp_path / "old", 6.2), release(tmp_path / "new", 6.2)
    (new / "softseg.json").write_text(json.dumps({"training_cases": {"0": ["sub-01_T1w", "sub-77_T1w"]}}))
    report = quiet(old, new, tmp_path / "out")
    assert report.trained_on == {str(new): ["sub-01"]}
    assert "WAS TRAINED ON 1 of these subjects: sub-01" in report.warnings[0]


# Bad input


def changed(table: pd.DataFrame, row: int, **values: Any) -> pd.DataFrame:
    table = table.astype({"csa_mm2": object})
    for name, value in values.items():
        table.loc[row, name] = value
    return table


BAD: dict[str, tuple[Any, str]] = {
    "another case": (lambda old: old[old["subject"] != "sub-03"], "areas missing: sub-03"),
    "another contrast": (lambda old: old[old["contrast"] != "dwi"], "areas missing: sub-00 dwi C2"),
    "another level": (lambda old: old[old["level"] != 3], "areas missing: .* C3"),
    "more cases": (lambda old: pd.concat([old, old.head(1).assign(subject="sub-99")]), "missing: sub-99"),
    "a contradiction": (lambda old: pd.concat([old, changed(old.head(1), 0, csa_mm2=1)]), "sub-00 T1w C2"),
    "text": (lambda old: changed(old, 3, csa_mm2="big"), "line 5: expected an area in mm2"),
    "a negative area": (lambda old: changed(old, 3, csa_mm2=-1.0), "line 5: expected an area in mm2"),
    "no column": (lambda old: old.drop(columns="csa_mm2"), "add csa_mm2"),
    "no level": (lambda old: changed(old.astype({"level": object}), 0, level="upper"), "level 'upper'"),
    "no subject": (lambda old: changed(old, 0, subject=""), "expected a subject in every row"),
    "nothing": (lambda old: old.head(0), "areas missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_release_that_cannot_be_compared_is_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = BAD[name]
    old = people(4)
    files = written(tmp_path, "old.csv", old), written(tmp_path, "new.csv", change(old))
    assert main(["drift", "--old", str(files[0]), "--new", str(files[1]), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_one_subject_is_refused_and_few_are_a_warning(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected areas of at least 2 subjects"):
        compared(tmp_path, people(1), people(1))
    report = compared(tmp_path, people(3), people(3))
    assert any("3 subjects only" in warning for warning in report.warnings)
    assert not report.drift


def test_folders_that_cannot_be_compared(tmp_path: Path) -> None:
    old, new = release(tmp_path / "old", 6.2), release(tmp_path / "new", 6.2, subjects=2)
    with pytest.raises(UserError, match="found 1 missing: sub-02_T2w"):
        quiet(old, new, tmp_path / "out")
    with pytest.raises(UserError, match="expected two folders of maps or two CSV files"):
        quiet(old, written(tmp_path, "new.csv", people(2)), tmp_path / "out")
    with pytest.raises(UserError, match="--vert: expected --levels with it"):
        quiet(old, old, tmp_path / "out", vert=2)
    with pytest.raises(UserError, match="expected areas of C5"):
        quiet(old, old, tmp_path / "out", levels=level_image(tmp_path), vert=5)
    table = written(tmp_path, "old.csv", people(2))
    with pytest.raises(UserError, match=r"expected areas of C5 in the tables, found C2, C3: choose"):
        quiet(table, table, tmp_path / "out", vert=5)
    with pytest.raises(UserError, match="--levels: expected folders of maps with it"):
        quiet(table, table, tmp_path / "out", levels=level_image(tmp_path))
    with pytest.raises(UserError, match="--label: expected folders of maps with it"):
        quiet(table, table, tmp_path / "out", label=2)
    other = release(tmp_path / "other", 6.2)
    nib.save(nib.Nifti1Image(prism(6.2), np.diag([1, 1, 2, 1])), other / "sub-00_T2w_0001.nii.gz")
    with pytest.raises(UserError, match="expected the grid of"):
        quiet(old, other, tmp_path / "out")
    limits = tmp_path / "limits.json"
    for content, message in (
        ('{"bias": 1}', "found bias: rename"),
        ('{"slope": -1}', "found -1"),
        ("[]", r'expected an object such as {"bias_percent": 1.0}, found \[\]: name the limits'),
    ):
        limits.write_text(content)
        with pytest.raises(UserError, match=message):
            quiet(old, old, tmp_path / "out", limits=limits)
