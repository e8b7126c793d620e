"""`nnunet-softseg pseudo-label`: who labels which case, the dataset that is written, and what is refused."""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_predict import FOLDER, write_image, write_model

from nnunet_softseg import cli, pseudo_label
from nnunet_softseg.datasets.check import check
from nnunet_softseg.datasets.raw_dataset import label_scheme
from nnunet_softseg.errors import UserError
from nnunet_softseg.inference.predict import predict
from nnunet_softseg.inference.pseudo_label import (
    find_teachers,
    folds_of_images,
    ignored_value,
    same_subjects,
    who_labels,
)
from nnunet_softseg.inference.trained_model import CHECKPOINT, open_model
from nnunet_softseg.settings import PLANS_KEY

CASES = ("sub-01_T1w", "sub-01_T2w", "sub-02_T2w", "sub-03_T2w")
SPLITS = [
    {"train": ["sub-02_T2w_slice-1", "sub-02_T2w_slice-2"], "val": ["sub-01_T2w_slice-1"]},
    {"train": ["sub-01_T2w_slice-1"], "val": ["sub-02_T2w_slice-1", "sub-02_T2w_slice-2"]},
]
TRAINED = {str(fold): split["train"] for fold, split in enumerate(SPLITS)}
QUIET = {"progress": False, "device": "cpu"}


def say_trained(model: Path, trained: Mapping[str, Sequence[str]]) -> Path:
    plans = json.loads((model / "plans.json").read_text())
    plans[PLANS_KEY]["training_cases"] = trained
    (model / "plans.json").write_text(json.dumps(plans))
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds, of which each has seen one subject."""
    folder = tmp_path_factory.mktemp("model") / "Dataset901_Tiny" / FOLDER
    return say_trained(write_model(folder, ("0", "1")), TRAINED)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for seed, case in enumerate(CASES):
        write_image(folder / f"{case}.nii.gz", seed)
    return folder


@pytest.fixture(scope="module")
def maps(images: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The soft maps of each fold, from `predict`."""
    found = {}
    for fold in ("0", "1"):
        folder = tmp_path_factory.mktemp("predicted") / fold
        predict(images, folder, model, folds=[fold], no_qc=True, progress=False)
        found[fold] = {case: values(folder / "soft" / f"{case}_0001.nii.gz") for case in CASES}
    return found


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    return write_splits(tmp_path, SPLITS)


def write_splits(folder: Path, content: Any) -> Path:
    file = folder / "splits_final.json"
    file.write_text(json.dumps(content))
    return file


def values(file: Path) -> np.ndarray:
    return np.asarray(nib.load(file).dataobj)


def test_a_case_is_labelled_by_the_folds_that_have_not_seen_its_subject(
    images: Path, model: Path, maps: Any, splits: Path, nnunet_folders: dict[str, Path]
) -> None:
    report = pseudo_label(images, 201, "Student", models=[model], splits=splits, **QUIET)
    dataset = nnunet_folders["nnUNet_raw"] / "Dataset201_Student"
    assert report.folder == dataset
    expected = {
        "sub-01_T1w": maps["0"]["sub-01_T1w"],
        "sub-01_T2w": maps["0"]["sub-01_T2w"],
        "sub-02_T2w": maps["1"]["sub-02_T2w"],
        "sub-03_T2w": (maps["0"]["sub-03_T2w"] + maps["1"]["sub-03_T2w"]) / 2,
    }
    assert not np.array_equal(maps["0"]["sub-01_T2w"], maps["1"]["sub-01_T2w"])
    for case, soft in expected.items():
        image = nib.load(dataset / "imagesTr" / f"{case}_0000.nii.gz")
        assert np.array_equal(image.dataobj, values(images / f"{case}.nii.gz"))
        assert np.allclose(values(dataset / "softLabelsTr" / f"{case}_0001.nii.gz"), soft, atol=1e-7)
        label_map = nib.load(dataset / "labelsTr" / f"{case}.nii.gz")
        assert np.array_equal(label_map.dataobj, soft > 0.5)
        assert np.array_equal(label_map.affine, image.affine)
    record = json.loads((dataset / "pseudo_labels.json").read_text())["cases"]
    folds = {case: [each["fold"] for each in entry["labelled_by"]] for case, entry in record.items()}
    assert folds == dict(zip(CASES, (["0"], ["0"], ["1"], ["0", "1"]), strict=True))
    (by,) = record["sub-02_T2w"]["labelled_by"]
    assert by["model"] == f"Dataset901_Tiny/{FOLDER}"
    assert len(by["sha256"]) == 64
    assert set(by["versions"]) == {"nnunet_softseg", "nnunetv2", "torch"}
    assert json.loads((dataset / "splits_final.json").read_text()) == [
        {"train": ["sub-02_T2w", "sub-03_T2w"], "val": ["sub-01_T1w", "sub-01_T2w"]},
        {"train": ["sub-01_T1w", "sub-01_T2w", "sub-03_T2w"], "val": ["sub-02_T2w"]},
    ]
    assert not check(201, num_processes=1).errors
    assert [path.name for path in dataset.parent.iterdir()] == [dataset.name]
    assert report.as_text().endswith("next: nnunet-softseg check -d Dataset201_Student")


def test_single_folds_and_several_models_go_together(
    images: Path, model: Path, splits: Path, tmp_path: Path, nnunet_folders: dict[str, Path]
) -> None:
    """The second model knows its only fold as 0; what it was trained on tells which of the split it is."""
    other = write_model(tmp_path / "Dataset902_Tiny" / FOLDER)
    say_trained(other, {"0": SPLITS[1]["train"]})
    report = pseudo_label(images, 201, "A", models=[model / "fold_0", other], splits=splits, **QUIET)
    by = {
        case: [each["model"] for each in entry["labelled_by"]]
        for case, entry in report.record["cases"].items()
    }
    mine, others = (f"Dataset{number}_Tiny/{FOLDER}" for number in (901, 902))
    assert by == dict(zip(CASES, ([mine], [mine], [others], [mine, others]), strict=True))


def test_models_that_have_seen_a_subject_are_refused_case_by_case(
    images: Path, model: Path, splits: Path, tmp_path: Path, nnunet_folders: dict[str, Path]
) -> None:
    seen = say_trained(
        shutil.copytree(model, tmp_path / "Dataset903_Seen" / FOLDER), TRAINED | {"0": ["sub-01_dwi"]}
    )
    with pytest.raises(UserError, match="has seen its subject") as error:
        pseudo_label(
            images,
            201,
            "Student",
            models=[seen / "fold_0"],
            splits=write_splits(tmp_path, SPLITS[:1]),
            **QUIET,
        )
    told = str(error.value)
    assert "sub-01_T1w: fold 0 of Dataset903_Seen" in told
    assert "sub-01_T2w: fold 0 of Dataset903_Seen" in told
    assert "sub-02_T2w: no fold covers it" in told
    assert "sub-03_T2w" not in told
    assert not any(nnunet_folders["nnUNet_raw"].iterdir())


def test_models_without_a_record_go_by_the_number_of_their_fold(model: Path, tmp_path: Path) -> None:
    silent = say_trained(shutil.copytree(model, tmp_path / "Dataset904_Silent" / FOLDER), {})
    subjects = same_subjects([*CASES, *(case for fold in SPLITS for side in fold.values() for case in side)])
    with open_model(silent, None, CHECKPOINT) as found:
        folds = [dataclasses.replace(found, folds=(fold,)) for fold in found.folds]
        labelled = who_labels(CASES, find_teachers(folds, SPLITS, subjects), subjects)
        with pytest.raises(UserError, match="expected fold 1 of nnUNetTrainerSoftSeg"):
            find_teachers(folds, SPLITS[:1], subjects)
    assert [[each.model.folds[0] for each in by] for by in labelled.values()] == [
        ["0"],
        ["0"],
        ["1"],
        ["0", "1"],
    ]


def test_a_fold_of_all_cases_labels_new_subjects_only(
    images: Path, model: Path, splits: Path, tmp_path: Path, nnunet_folders: dict[str, Path]
) -> None:
    everything = write_model(tmp_path / "Dataset905_All" / FOLDER, ("all",))
    with pytest.raises(UserError, match="sub-01_T1w: no fold covers it; ") as error:
        pseudo_label(images, 201, "Student", models=[everything], splits=splits, **QUIET)
    assert "3 of 4" in str(error.value)


def test_voxels_where_folds_disagree_are_unknown(
    images: Path, model: Path, maps: Any, splits: Path, nnunet_folders: dict[str, Path], capsys: Any
) -> None:
    spread = np.abs(maps["0"]["sub-03_T2w"] - maps["1"]["sub-03_T2w"])
    limit = float(np.quantile(spread, 0.9)) + 1e-6
    assert 0 < limit < 1
    words = ["-i", images, "--models", model, "--splits", splits, "-d", 201, "--name", "Student"]
    assert cli.main(["pseudo-label", *map(str, words), "--max-disagreement", f"{limit:.9f}", "-np", "1"]) == 0
    printed = capsys.readouterr()
    assert "3 cases have one fold" in printed.err
    dataset = nnunet_folders["nnUNet_raw"] / "Dataset201_Student"
    unknown = spread > limit
    assert unknown.any()
    assert np.array_equal(np.isnan(values(dataset / "softLabelsTr" / "sub-03_T2w_0001.nii.gz")), unknown)
    assert np.array_equal(values(dataset / "labelsTr" / "sub-03_T2w.nii.gz") == 2, unknown)
    assert not np.isnan(values(dataset / "softLabelsTr" / "sub-01_T2w_0001.nii.gz")).any()
    assert json.loads((dataset / "dataset.json").read_text())["labels"] == {
        "background": 0,
        "cord": 1,
        "ignore": 2,
    }
    assert f"{100 * unknown.mean() / 4:.3g} % of the voxels unknown" in printed.out
    assert not check(201, num_processes=1).errors


def test_a_fold_that_is_named_twice_or_copied_counts_once(
    images: Path, model: Path, maps: Any, splits: Path, tmp_path: Path, nnunet_folders: dict[str, Path]
) -> None:
    copy = shutil.copytree(model, tmp_path / "Dataset907_Copy" / FOLDER)
    report = pseudo_label(
        images, 201, "Student", models=[model, model / "fold_0", copy / "fold_1"], splits=splits, **QUIET
    )
    mean = (maps["0"]["sub-03_T2w"] + maps["1"]["sub-03_T2w"]) / 2
    soft = values(report.folder / "softLabelsTr" / "sub-03_T2w_0001.nii.gz")
    np.testing.assert_allclose(soft, mean, atol=1e-7)
    told = [f"fold_{fold}/{CHECKPOINT}, and does not count again" for fold in (0, 1)]
    assert [warning.endswith(end) for warning, end in zip(report.warnings, told, strict=True)] == [True] * 2
    assert "labelled by 1 to 2 folds" in report.as_text()


def test_unknown_voxels_of_regions_have_a_value_that_no_region_has() -> None:
    """Value 3 is in a region, though none is painted with it."""
    regions = {"background": 0, "cord": [1, 2, 3], "lesion": [2, 3]}
    assert ignored_value(label_scheme({"labels": regions, "regions_class_order": [1, 2]})) == 4
    assert ignored_value(label_scheme({"labels": {"background": 0, "cord": 1}})) == 2


def test_options_of_predict_are_those_of_the_teachers(
    images: Path, model: Path, splits: Path, nnunet_folders: dict[str, Path]
) -> None:
    words = ["-i", images, "--models", model, "--splits", splits, "-d", 201, "--name", "Student", "-np", "1"]
    call = ["pseudo-label", *map(str, words)]
    assert cli.main([*call, "--largest-piece", "--localize", "never", "-device", "cpu"]) == 0
    dataset = nnunet_folders["nnUNet_raw"] / "Dataset201_Student"
    predicted_with = json.loads((dataset / "pseudo_labels.json").read_text())["predicted_with"]
    assert (predicted_with["largest_piece"], predicted_with["localize"]) == (True, "never")


def test_checkpoints_that_hold_code_are_opened_on_request(
    images: Path, model: Path, splits: Path, tmp_path: Path, nnunet_folders: dict[str, Path], capsys: Any
) -> None:
    """The remedy that is named works in each command that opens a model."""
    other = shutil.copytree(model, tmp_path / "Dataset908_Code" / FOLDER)
    for file in other.glob(f"fold_*/{CHECKPOINT}"):
        content = torch.load(file, weights_only=False)
        torch.save(content | {"made_on": PurePosixPath("somewhere")}, file)
    words = ["--models", other, "--splits", splits, "-d", 201, "--name", "Student", "-device", "cpu"]
    for command in (["pseudo-label", *map(str, words)], ["check", "-m", str(other)]):
        call = [*command, "-i", str(images), "-np", "1"]
        assert cli.main(call) == 2
        assert "--trust-model" in capsys.readouterr().err
        assert cli.main([*call, "--trust-model"]) == 0


def test_an_interrupted_call_goes_on_and_a_finished_one_is_kept(
    images: Path, model: Path, splits: Path, tmp_path: Path, nnunet_folders: dict[str, Path], monkeypatch: Any
) -> None:
    raw, mine = nnunet_folders["nnUNet_raw"], shutil.copytree(images, tmp_path / "images")
    broken = mine / f"{CASES[2]}.nii.gz"
    whole = broken.read_bytes()
    call = {"models": [model], "splits": splits, **QUIET}
    broken.write_bytes(whole[:400])
    with pytest.raises(UserError, match=r"1 of 2 images cannot be predicted .*sub-02_T2w: "):
        pseudo_label(mine, 201, "Student", **call)
    (work,) = raw.iterdir()  # hidden, no dataset
    assert work.name == ".Dataset201_Student.predictions"
    first = {file: file.stat().st_mtime_ns for file in work.rglob("*_0001.nii.gz")}
    assert len(first) == 4
    with pytest.raises(UserError, match="cannot be predicted"):
        pseudo_label(mine, 201, "Student", **call)
    assert {file: file.stat().st_mtime_ns for file in work.rglob("*_0001.nii.gz")} == first
    monkeypatch.setenv("NNUNET_SOFTSEG_LARGEST_PIECE", "1")  # what is there was predicted without
    with pytest.raises(UserError, match="cannot be predicted"):
        pseudo_label(mine, 201, "Student", **call)
    again = {file: file.stat().st_mtime_ns for file in work.rglob("*_0001.nii.gz")}
    assert again.keys() == first.keys()
    assert not again.items() & first.items()
    broken.write_bytes(whole)
    report = pseudo_label(mine, 201, "Student", **call)
    assert not report.was_there
    assert report.record["predicted_with"]["largest_piece"]
    work.mkdir()  # as of a call that ends before it is removed
    assert pseudo_label(mine, 201, "Student", **call).was_there
    assert [file.name for file in raw.iterdir()] == ["Dataset201_Student"]
    monkeypatch.delenv("NNUNET_SOFTSEG_LARGEST_PIECE")
    with pytest.raises(UserError, match="found one of other images, models or options"):
        pseudo_label(mine, 201, "Student", **call)
    with pytest.raises(UserError, match="Dataset201_Student: expected nothing, or the dataset of this call"):
        pseudo_label(mine, 201, "Student", max_disagreement=0.5, **call)


def test_mistakes_in_the_call_are_one_line_and_write_nothing(
    images: Path, model: Path, splits: Path, tmp_path: Path, nnunet_folders: dict[str, Path], capsys: Any
) -> None:
    other = shutil.copytree(model, tmp_path / "Dataset906_Other" / FOLDER)
    content = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps(content | {"labels": {"background": 0, "lesion": 1}}))
    lists = tmp_path / "lists.json"
    lists.write_text(json.dumps({"train": ["sub-01"]}))
    for change, expected in (
        ({"--max-disagreement": ["1.5"]}, "expected a share above 0, up to 1, found 1.5"),
        ({"--splits": [lists]}, "expected a list of"),
        ({"--models": [model, other]}, "expected labels {'background': 0, 'cord': 1}"),
        ({"--models": [tmp_path]}, "expected the folder of a trained model"),
        ({"-i": [images / f"{CASES[3]}.nii.gz"]}, "expected images of two subjects or more"),
        ({"-d": [1000]}, "must lie between 1 and 999"),
    ):
        words = {
            "-i": [images],
            "--models": [model],
            "--splits": [splits],
            "-d": [201],
            "--name": ["A"],
        } | change
        call = [str(word) for flag, given in words.items() for word in (flag, *given)]
        assert cli.main(["pseudo-label", *call]) == 2
        told = capsys.readouterr().err
        assert expected in told
        assert told.count("\n") == 1
    assert not any(nnunet_folders["nnUNet_raw"].iterdir())


def test_slices_are_of_the_subject_of_their_volume() -> None:
    found = same_subjects(["scan_03", "scan_03_0012", "Scan_03_sl7", "scan_04_a", "scan_031"])
    assert found["scan_03"] == found["scan_03_0012"] == found["Scan_03_sl7"]
    assert len(set(found.values())) == 3


names = st.lists(st.sampled_from("ab01"), min_size=1, max_size=3).map("_".join)


@settings(max_examples=50)
@given(st.lists(names, min_size=1, max_size=8, unique=True), st.randoms())
def test_subjects_do_not_depend_on_the_order_of_cases(case_ids: list[str], random: Any) -> None:
    def groups(order: list[str]) -> set[frozenset[str]]:
        subjects = same_subjects(order)
        return {frozenset(case for case in order if subjects[case] == each) for each in subjects.values()}

    shuffled = random.sample(case_ids, len(case_ids))
    assert groups(case_ids) == groups(shuffled)
    for group in groups(case_ids):
        others = [case for case in case_ids if case not in group]
        assert not any(f"{other}_".startswith(f"{case}_") for case in group for other in others)


def test_new_subjects_alone_get_folds_of_their_own() -> None:
    cases = [f"sub-{number:02d}_{contrast}" for number in range(5) for contrast in ("T1w", "T2w")]
    subjects = same_subjects([*cases, "sub-99_T2w"])
    folds = folds_of_images(cases, [{"train": ["sub-99_T2w"], "val": []}], subjects)
    assert len(folds) == 5
    assert sorted(case for fold in folds for case in fold["val"]) == cases
    for fold in folds:
        assert {subjects[case] for case in fold["train"]}.isdisjoint(subjects[case] for case in fold["val"])
        assert sorted([*fold["train"], *fold["val"]]) == cases


def test_folds_of_images_can_all_be_trained() -> None:
    """Images of the subjects that one fold validates on, alone or with a new one."""
    splits = [
        {"train": ["sub-03", "sub-04"], "val": ["sub-01", "sub-02"]},
        {"train": ["sub-01", "sub-02"], "val": ["sub-03", "sub-04"]},
    ]
    for cases, number in ((["sub-01", "sub-02"], 5), (["sub-01", "sub-02", "sub-09"], 1)):
        subjects = same_subjects([*cases, "sub-03", "sub-04"])
        folds = folds_of_images(cases, splits, subjects)
        assert len(folds) == number
        for fold in folds:
            assert fold["train"]
            assert fold["val"]
            assert sorted([*fold["train"], *fold["val"]]) == cases
    assert folds == [{"train": ["sub-09"], "val": ["sub-01", "sub-02"]}]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNUNET_SOFTSEG_BACKEND", "torch")
        yield
