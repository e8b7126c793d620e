"""The studies of `benchmarks/evidence.py` on a few voxels: who is one person, what is told early."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))
evidence = importlib.import_module("evidence")
evidence_data = importlib.import_module("evidence_data")
study_file = importlib.import_module("study")

SIDE, SLICES = 10, 6


def save(file: Path, voxels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(voxels, np.float32), np.eye(4)), file)


def column(area: int) -> np.ndarray:
    """A structure of so many voxels of 1 mm in each slice."""
    of_slice = np.zeros(SIDE * SIDE)
    of_slice[:area] = 1
    return np.repeat(of_slice.reshape(SIDE, SIDE, 1), SLICES, axis=2)


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["evidence.py", *map(str, words), "-np", "1", "--seeds", "0"])
    evidence.main()


def without_trainings(monkeypatch: pytest.MonkeyPatch, area_of: Callable[[str, int], int]) -> None:
    """Let a study predict columns whose area in mm2 is that of case and label."""

    def predict(study: Any, name: str, seed: int) -> None:
        for dataset_id in study.dataset_ids:
            for image in sorted(study.images(dataset_id).glob("*.nii.gz")):
                case = image.name.removesuffix("_0000.nii.gz")
                for label in (1, 2):
                    target = study.prediction(name, seed) / "soft" / f"{case}_{label:04d}.nii.gz"
                    save(target, column(area_of(case, label)))

    monkeypatch.setattr(evidence, "train_and_predict", predict)
    monkeypatch.setattr(evidence, "plan", lambda *_: None)


@pytest.fixture
def two_scans(tmp_path: Path) -> Path:
    """Grey matter of three people: two with two scans, named in two ways, one with one."""
    data = tmp_path / "gm"
    scans = {"site1a": ("run-1", "run-2"), "02Ses1": ("run-01", "run-02"), "03": ("run-1",)}
    for person, runs in scans.items():
        name = f"sub-{person}_{runs[0]}_T2starw"
        for run in runs:
            save(data / f"sub-{person}" / "anat" / f"sub-{person}_{run}_T2starw.nii.gz", column(20))
        labels = data / "derivatives" / "labels" / f"sub-{person}" / "anat"
        save(labels / f"{name}_seg-manual.nii.gz", column(16))
        save(labels / f"{name}_gmseg-manual.nii.gz", column(4))
    (data / "dataset_description.json").write_text('{"Name": "gm", "BIDSVersion": "1.8.0"}')
    return data


def hippocampi(data: Path, number: int) -> Path:
    for place in ("images", "labels"):
        for index in range(number):
            save(data / place / f"hippocampus_{index:03d}.nii.gz", column(16))
    return data


def nodules(data: Path, number: int) -> Path:
    """Nodules of different sizes, each of another person, marked by all four."""
    cases = [f"sub-{index:04d}n0_CT" for index in range(number)]
    for index, case in enumerate(cases):
        save(data / "images" / f"{case}_0000.nii.gz", 100 * column(40 + index))
        for rater in evidence_data.RATERS:
            save(data / rater / f"{case}.nii.gz", column(30 + index))
    entries = [{"case": case, "raters": 4} for case in cases]
    (data / "cases.json").write_text(json.dumps(entries))
    return data


# Who is one person


@pytest.mark.parametrize(
    ("case", "person"),
    [
        ("sub-0822n0_CT", "0822"),
        ("sub-0822n10_CT", "0822"),
        ("sub-LIDCIDRI0822n0_CT", "LIDCIDRI0822"),
        ("sub-9709Ses2", "9709"),
        ("sub-9709Ses2_run-1_T2starw", "9709"),
        ("sub-ucl01Ses10_T2w", "ucl01"),
        ("sub-site2s02Ses1", "site2s02"),
        ("sub-A00012B_T1w", "A00012B"),
        ("sub-P01a_T2w", "P01a"),
        ("sub-amuAL_T1w", "amuAL"),
        ("sub-man1_T2w", "man1"),  # no nodule 1 of "ma"
        ("sub-01_ses-2_run-1_T2starw", "01"),
        ("sub-narrow03_T1w", "narrow03"),
        ("hippocampus_367", "hippocampus_367"),
    ],
)
def test_the_person_is_the_label_of_bids_without_nodule_and_session(case: str, person: str) -> None:
    assert evidence_data.person_of(case) == person


def test_people_of_the_real_sets_are_as_many_as_their_description_says(larger_real_data: Path) -> None:
    cases_in = {name: evidence.QUESTIONS[name].cases_in for name in ("raters", "gm", "hippocampus")}
    folders = {"raters": "lidc", "gm": "gm", "hippocampus": "hippocampus"}
    people = {
        name: len({evidence_data.person_of(case) for case in cases(larger_real_data / folders[name])})
        for name, cases in cases_in.items()
    }
    assert people == {"raters": 148, "gm": 4, "hippocampus": 120}


# What is refused before anything is written


@pytest.mark.parametrize(
    ("study", "make", "number", "expected"),
    [("hippocampus", hippocampi, 2, 3), ("raters", nodules, 6, 7)],
)
def test_too_few_people_are_refused_at_once(
    study: str,
    make: Callable[[Path, int], Path],
    number: int,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_trainings(monkeypatch, lambda *_: 16)
    data, output = make(tmp_path / "data", number), tmp_path / "output"
    with pytest.raises(SystemExit, match=f"expected {expected} people or more, .* found {number} "):
        call(monkeypatch, study, "-o", output, "--data", data)
    assert not output.exists()


def test_seven_people_are_enough_for_five_folds_each_with_cases() -> None:
    parts = evidence_data.parts_of([f"sub-{index:04d}n0_CT" for index in range(7)])
    assert len(parts.test) == 2
    assert [len(fold) for fold in parts.folds] == [1] * 5


def test_outlines_of_fewer_than_ten_people_are_learned_from_all_but_one(tmp_path: Path) -> None:
    told = evidence_data.told_by_outlines(nodules(tmp_path, 3))
    assert told == dict.fromkeys(["sub-0000n0_CT", "sub-0001n0_CT", "sub-0002n0_CT"], 1.0)  # all marked all


def test_a_subject_without_masks_is_no_person_to_leave_out_and_is_told(
    two_scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(two_scans / "sub-04" / "anat" / "sub-04_run-1_T2starw.nii.gz", column(20))
    assert list(evidence_data.grey_matter(two_scans, tmp_path / "o" / "raw", "x").values()) == [
        "02",
        "03",
        "site1a",
    ]
    assert "sub-04: no image has masks (seg-manual, gmseg-manual): left out" in capsys.readouterr().err
    without_trainings(monkeypatch, lambda *_: 16)

    next((two_scans / "derivatives" / "labels" / "sub-03" / "anat").glob("*_gmseg-*")).unlink()
    with pytest.raises(SystemExit, match=r"expected 3 people or more, .*, found 2 \(02, site1a\)"):
        call(monkeypatch, "gm", "-o", tmp_path / "output", "--data", two_scans)


def test_other_files_of_data_need_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = hippocampi(tmp_path / "data", 3)
    words = ["evidence.py", "hippocampus", "-o", str(tmp_path), "--data", str(data)]
    monkeypatch.setattr(sys, "argv", words)
    study, _ = evidence.parse()
    settings_hash = study_file.freeze(study, [0])  # as before the files were in the protocol
    with_files = study_file.freeze(study, [0], data)
    assert with_files != settings_hash
    (data / ".DS_Store").touch()
    moved = data.rename(tmp_path / "elsewhere")
    assert study_file.freeze(study, [0], moved) == study_file.freeze(study, [0]) == with_files
    hippocampi(moved, 4)
    with pytest.raises(SystemExit, match=r"data: 6 files, .*, now 8 files, .*: take another folder"):
        study_file.freeze(study, [0], moved)


# Datasets


@pytest.mark.parametrize(("number", "first"), [(4, 940), (12, 940), (70, 930)])
def test_each_person_is_left_out_once(
    number: int, first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(_data: Path, dataset_id: int, *_: Any, raw_folder: Path, **__: Any) -> None:
        (raw_folder / f"Dataset{dataset_id}_x" / "softLabelsTs").mkdir(parents=True)
        (raw_folder / f"Dataset{dataset_id}_x" / "softLabelsTs" / "sub-a_T2w_0001.nii.gz").touch()

    monkeypatch.setattr(evidence_data, "convert", convert)
    monkeypatch.setattr(evidence_data, "forget_unannotated", lambda *_: None)
    people = [f"{index:02d}" for index in range(number)]
    sessions = [f"sub-{person}Ses{session}" for person in people for session in (1, 2)]
    monkeypatch.setattr(evidence_data, "subjects_of", lambda _: sessions)
    left_out = evidence_data.grey_matter(tmp_path / "data", tmp_path / "raw", "x")
    assert left_out == dict(zip(range(first, first + number), people, strict=True))
    split = json.loads((tmp_path / f"split-{first}.json").read_text())
    assert split["test"] == ["sub-00Ses1", "sub-00Ses2"]
    assert len(split["validation"] + split["train"]) == 2 * (number - 1)


def test_real_images_are_told_from_phantoms_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phantom, real, shaped = 1, 2, 3
    everything, data = tmp_path / "everything", tmp_path / "data"
    for part, person in (("Tr", "03"), ("Ts", "20")):
        case = f"sub-{person}_T1w"
        save(everything / f"images{part}" / f"{case}_0000.nii.gz", np.full((4, 4, 4), phantom))
        save(everything / f"softLabels{part}" / f"{case}_0001.nii.gz", np.ones((4, 4, 4)))
        save(everything / f"labels{part}" / f"{case}.nii.gz", np.ones((4, 4, 4)))
        save(data / f"sub-{person}" / "anat" / f"{case}.nii.gz", np.full((4, 4, 4), real))
        labels = data / "derivatives" / "labels" / f"sub-{person}" / "anat"
        save(labels / f"{case}_seg-manual.nii.gz", np.ones((4, 4, 4)))
    monkeypatch.setattr(evidence_data, "_all_contrasts", lambda *_: everything)
    drawn = (np.full((4, 4, 4), shaped), np.eye(4), np.ones((4, 4, 4)))
    monkeypatch.setattr(evidence_data, "_shaped_phantom", lambda *_: drawn)
    monkeypatch.setattr(sys, "argv", ["evidence.py", "generalisation", "-o", str(tmp_path / "o"), "--data",
                                      str(data)])  # fmt: skip
    study, _ = evidence.parse()
    groups = evidence_data.one_contrast(study, data, 960, 1)

    folder = study.folder_of(960)
    shown = {
        file.relative_to(folder).as_posix(): float(np.asarray(nib.load(file).dataobj).max())
        for file in folder.glob("images*/*.nii.gz")
        if "narrow" not in file.name and "wide" not in file.name
    }
    assert shown == {
        "imagesTr/sub-03_T1w_0000.nii.gz": phantom,
        "imagesTs/sub-20_T1w_0000.nii.gz": phantom,
        "imagesTs/sub-real03_T1w_0000.nii.gz": real,
        "imagesTs/sub-real20_T1w_0000.nii.gz": real,
    }
    assert {case for case, group in groups.items() if group == "real images"} == {
        "sub-real03_T1w",
        "sub-real20_T1w",
    }
    assert groups["sub-20_T1w"] == "T1w, as learned"
    assert evidence_data.person_of("sub-real03_T1w") == "real03"


def test_real_images_of_a_folder_from_before_keep_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "one_contrast", lambda *_: {"sub-real03_T1w": "real images"})
    monkeypatch.setattr(sys, "argv", ["evidence.py", "generalisation", "-o", str(tmp_path), "--data",
                                      str(tmp_path)])  # fmt: skip
    study, _ = evidence.parse()
    (tmp_path / evidence.GROUPS).write_text('{"sub-unf01_T1w": "real images"}')
    evidence.one_contrast_data(tmp_path, study)
    assert json.loads((tmp_path / evidence.GROUPS).read_text()) == {"sub-unf01_T1w": "real images"}


# Measures


def test_a_missing_second_scan_is_told_and_counts_nowhere(
    two_scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    again = {"sub-site1a_run-2_T2starw": 20, "sub-02Ses1_run-02_T2starw": 18}
    without_trainings(monkeypatch, lambda case, label: again.get(case, 16) if label == 1 else 4)
    output = tmp_path / "output"
    call(monkeypatch, "gm", "-o", output, "--data", two_scans, "--methods", "softseg")
    told = capsys.readouterr().err
    assert "sub-03_run-1_T2starw: no second scan" in told
    assert "sub-03_run-2_T2starw.nii.gz" in told
    assert told.count("no second scan") == 1

    rows = {(row["label"], row["measure"]): row for row in json.loads((output / "evidence.json").read_text())}
    spread = rows[1, "within_subject_sd_mm2"]
    assert spread["n"] == 2
    assert spread["mean"] == pytest.approx((4 / 2**0.5 + 2 / 2**0.5) / 2)  # SD of 16, 20 and of 16, 18
    assert rows[2, "within_subject_sd_mm2"]["mean"] == 0
    assert rows[1, "dice"] == pytest.approx({**rows[1, "dice"], "mean": 1.0, "n": 3})
    assert set(pd.read_csv(output / "cases.csv")["case"].map(evidence_data.person_of)) == {
        "site1a",
        "02",
        "03",
    }


def test_the_measures_of_cases_are_there_if_what_follows_fails(
    two_scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_trainings(monkeypatch, lambda _case, label: 16 if label == 1 else 4)
    monkeypatch.setattr(evidence, "averaged", lambda *_: sys.exit("no further"))
    with pytest.raises(SystemExit, match="no further"):
        call(monkeypatch, "gm", "-o", tmp_path / "o", "--data", two_scans, "--methods", "softseg")
    assert (tmp_path / "o" / "cases.csv").is_file()


@pytest.mark.parametrize(
    ("case", "again"),
    [
        ("sub-9604_run-1_T2starw", "sub-9604_run-2_T2starw"),
        ("sub-9604_run-01_T2starw", "sub-9604_run-02_T2starw"),
        ("sub-9604_run-11_T2starw", ""),
        ("sub-9604_run-2_T2starw", ""),
        ("sub-9604_T2starw", ""),
    ],
)
def test_the_second_scan_of_a_case(case: str, again: str) -> None:
    assert evidence_data.rescan_of(case) == again


def test_a_structure_that_is_lost_is_infinitely_far_and_not_left_out() -> None:
    distances = {"softseg": (1.0, np.nan, 3.0), "vanilla": (1.0, np.inf, 1.0), "empty": (np.nan,) * 3}
    cases = pd.DataFrame(
        [
            {"method": method, "label": 1, "case": f"sub-0{number}_T1w", "asd_mm": distance}
            for method, of_method in distances.items()
            for number, distance in enumerate(of_method)
        ]
    )
    rows = evidence.rows_of(cases, "hippocampus", {"asd_mm": "mm"})
    found = {row["method"]: (row["mean"], row["n"]) for row in rows}
    assert found["softseg"] == (2.0, 2)
    assert found["vanilla"] == (np.inf, 3)
    assert found["softseg - vanilla"] == (1.0, 2)
    of_line = evidence.as_markdown(rows).splitlines()[2].split(" | ")
    assert of_line[3:5] == ["inf, n = 3", "-, n = 0"]
    assert of_line[2].startswith("2 (") and of_line[2].endswith("), n = 2")  # noqa: PT018
    known = [{name: evidence.known_or_none(value) for name, value in row.items()} for row in rows]
    assert {row["method"]: row["mean"] for row in known}["vanilla"] is None
    json.dumps(known, allow_nan=False)

    equal = evidence.as_markdown(evidence.rows_of(cases.assign(asd_mm=1.0), "hippocampus", {"asd_mm": "mm"}))
    assert "n =" not in equal


def test_contrasts_without_soft_all_are_compared_without_its_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["evidence.py", "contrasts", "-o", str(tmp_path), "--methods", "hard_all", "vanilla"]
    monkeypatch.setattr(sys, "argv", words)
    study, _ = evidence.parse()
    cases = pd.DataFrame(
        [
            {"method": method, "case": f"sub-{person}_{contrast}", "csa_mm2": area, "abs_csa_error_mm2": 1.0}
            for method in study.methods
            for person in ("01", "02")
            for contrast, area in (("T1w", 70.0), ("T2w", 72.0))
        ]
    )
    rows = evidence.over_contrasts(study, cases, tmp_path)
    spread = [row["mean"] for row in rows if (row["method"], row["measure"]) == ("vanilla", "std_csa_mm2")]
    assert spread == pytest.approx([2**0.5])


# The other benchmarks


def test_every_benchmark_can_be_imported() -> None:
    code = (
        "import importlib, pathlib, sys;"
        "folder = pathlib.Path(sys.argv[1]); sys.path.insert(0, sys.argv[1]);"
        "[importlib.import_module(file.stem) for file in sorted(folder.glob('*.py'))]"
    )
    command = [sys.executable, "-c", code, str(BENCHMARKS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_error_of_a_ratio_takes_two_batches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["augmentation.py", "--samples", "3"])
    with pytest.raises(SystemExit):
        importlib.import_module("augmentation").main()
    assert "--samples: expected 4 or more, found 3" in capsys.readouterr().err
