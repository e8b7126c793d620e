"""Calibration of a model: fitted on its validation maps, kept with it, applied on request."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from test_predict import DATASET_JSON, FOLDER, SHAPE, softseg_json, stock_predict, write_image, write_model
from tiny_dataset import TinyDataset, affine_of, make_tiny_dataset, save_nifti

from nnunet_softseg.cli import main
from nnunet_softseg.errors import UserError
from nnunet_softseg.evaluation.evaluate import evaluate
from nnunet_softseg.inference.calibrate import CalibrationReport, calibrate
from nnunet_softseg.inference.case_record import VARIABLES, CaseRecord
from nnunet_softseg.inference.nnunet_patches import under_way
from nnunet_softseg.inference.predict import predict
from nnunet_softseg.inference.validation import SUMMARY, write_soft_summary
from nnunet_softseg.metrics.calibration import ReliabilityCurve, ValueTable
from nnunet_softseg.settings import PLANS_KEY

NAME = "Dataset901_Tiny"
CASES = ("sub-01_T1w", "sub-02_T1w", "sub-03_T2w", "sub-04_T2w")
FOLDS = {"0": CASES[:2], "1": CASES[2:]}


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLES["no_qc"], "1")
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyDataset, Path]:
    """A dataset, and a model of two folds whose validation maps are the roots of the soft labels."""
    root = tmp_path_factory.mktemp("calibration")
    dataset = make_tiny_dataset(root, CASES, name=NAME, shape=SHAPE)
    model = write_model(root / "results" / NAME / FOLDER, tuple(FOLDS))
    change_entry(model, training_cases={fold: others_of(fold) for fold in FOLDS})
    for fold, cases in FOLDS.items():
        for case in cases:
            write_map(dataset, model, fold, case, np.sqrt)
        validation = model / f"fold_{fold}" / "validation"
        write_soft_summary(validation, dataset.raw / "softLabelsTr", DATASET_JSON)
    return dataset, model


@pytest.fixture
def model(made: tuple[TinyDataset, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the model, with nnU-Net's folders set."""
    dataset, model = made
    for name, folder in dataset.environment.items():
        monkeypatch.setenv(name, folder)
    return Path(shutil.copytree(model, tmp_path / FOLDER))


@pytest.fixture
def dataset(made: tuple[TinyDataset, Path]) -> TinyDataset:
    return made[0]


def others_of(fold: str) -> tuple[str, ...]:
    return tuple(case for other, cases in FOLDS.items() if other != fold for case in cases)


def change_entry(model: Path, **changes: Any) -> None:
    plans = json.loads((model / "plans.json").read_text())
    plans[PLANS_KEY] |= changes
    (model / "plans.json").write_text(json.dumps(plans))


def write_map(dataset: TinyDataset, model: Path, fold: str, case: str, of_label: Any) -> None:
    label = np.asarray(nib.load(dataset.soft_label(case)).dataobj)
    folder = model / f"fold_{fold}" / "validation" / "soft"
    save_nifti(folder / f"{case}_0001.nii.gz", of_label(label).astype(np.float32), affine_of())


def run(model: Path, **options: Any) -> CalibrationReport:
    return calibrate(model, **{"num_processes": 0, "progress": False, **options})


def soft_map(folder: Path, case: str) -> np.ndarray:
    return np.asarray(nib.load(folder / "soft" / f"{case}_0001.nii.gz").dataobj)


def test_the_labels_are_recovered_and_what_is_said_of_it_is_of_other_folds(model: Path) -> None:
    report = run(model)
    values = np.linspace(0.3, 1, 71)
    np.testing.assert_allclose(report.maps["cord"](values), values**2, atol=0.01)
    assert (report.folds, report.num_cases, report.held_out) == (("0", "1"), 4, "fold")
    written = json.loads((model / "calibration.json").read_text())
    cord = written["labels"]["cord"]
    assert cord["before"]["ece"] > 0.02
    assert cord["after"]["ece"] < 0.002
    assert cord["after"]["brier"] < 0.1 * cord["before"]["brier"]
    kept = json.loads((model / "plans.json").read_text())[PLANS_KEY]["calibration"]
    assert kept["labels"]["cord"] == {"x": cord["x"], "y": cord["y"]}
    assert (kept["folds"], kept["num_cases"]) == (["0", "1"], 4)
    for fold in FOLDS:
        summary = json.loads((model / f"fold_{fold}/validation" / SUMMARY).read_text())
        assert summary["reliability"]["cord"]["ece"] > 0.02
        assert summary["reliability_calibrated"]["cord"]["ece"] < 0.002
        assert set(summary["cases"]) == set(FOLDS[fold])
    assert "cord: calibration error 0." in report.as_text()
    assert report.as_text().endswith(f" -m {model} --calibrate")
    spaced = dataclasses.replace(report, model=Path("my results") / "model")
    assert spaced.as_text().endswith(" -m 'my results/model' --calibrate")
    nothing = ReliabilityCurve.empty()  # of a label without a voxel in any case
    absent = dataclasses.replace(report, before={"cord": nothing}, after={"0": {"cord": nothing}})
    assert "(no better: predict without)" in absent.as_text()
    assert absent.as_text().endswith(f" -m {model}")


@pytest.mark.parametrize("scale", [10, 1 + 5e-7])
def test_maps_that_are_no_fractions_are_named_and_rounding_is_none(
    scale: float, model: Path, dataset: TinyDataset
) -> None:
    write_map(dataset, model, "0", CASES[0], lambda label: scale * np.sqrt(label))
    if scale < 2:
        values = np.linspace(0.3, 1, 71)
        np.testing.assert_allclose(run(model).maps["cord"](values), values**2, atol=0.01)
        return
    with pytest.raises(UserError, match=rf"{CASES[0]}_0001.nii.gz: values outside \[0, 1\]"):
        run(model)


def test_figures_after_calibration_are_of_maps_that_did_not_choose_it(
    model: Path, dataset: TinyDataset
) -> None:
    """A fold of right maps and one of wrong ones: each is mapped by the other, and the figures say so."""
    for case in FOLDS["1"]:
        write_map(dataset, model, "1", case, lambda label: label)
    report = run(model)
    right, wrong = (report.after[fold]["cord"].expected_calibration_error for fold in ("1", "0"))
    before = report.before["cord"].expected_calibration_error
    assert right > before  # squared, though right
    assert wrong > 0.02  # left as it was
    assert "no better: predict without" in report.as_text()
    assert report.as_text().endswith(f" -m {model}")


def test_maps_that_are_calibrated_stay(model: Path, dataset: TinyDataset) -> None:
    for fold, cases in FOLDS.items():
        for case in cases:
            write_map(dataset, model, fold, case, lambda label: label)
    values = np.linspace(0, 1, 101)
    np.testing.assert_allclose(run(model).maps["cord"](values), values, atol=1e-5)


def test_of_one_fold_subjects_are_left_out(model: Path) -> None:
    report = run(model, folds=[1])
    assert (report.folds, report.num_cases, report.held_out) == (("1",), 2, "subject")
    assert report.after_all("cord").expected_calibration_error < 0.01
    shutil.rmtree(model / "fold_1" / "validation")
    assert run(model).folds == ("0",)


def test_a_subject_of_two_folds_is_left_out_of_both(model: Path, dataset: TinyDataset) -> None:
    """No figure of sub-01 comes from a map that images of it chose, though another fold validates on them."""
    for fold, cases in FOLDS.items():
        for case in cases:
            (model / f"fold_{fold}" / "validation" / "soft" / f"{case}_0001.nii.gz").unlink()
    change_entry(model, training_cases={})
    write_map(dataset, model, "0", "sub-01_T1w", np.sqrt)
    write_map(dataset, model, "1", "sub-01_T1w", np.sqrt)
    with pytest.raises(UserError, match=r"two subjects or more, .* found one, sub-01"):
        run(model)
    write_map(dataset, model, "1", "sub-04_T2w", lambda label: label)
    of_fold = run(model).after["0"]["cord"]
    assert of_fold.expected_calibration_error > 0.02  # chosen by sub-04 alone, whose map is right


def test_folds_without_a_subject_in_common_are_left_out_whole(model: Path) -> None:
    """Then no subject is fitted by itself: with hundreds of them that would take minutes."""
    fits = []
    original = ValueTable.isotonic_map
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ValueTable, "isotonic_map", lambda self: fits.append(self) or original(self))
        run(model)
    assert len(fits) == len(FOLDS) + 1  # and that of all, which is kept


def test_subjects_of_whom_a_fold_has_seen_other_images_are_named(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_entry(model, training_cases={"0": ["sub-01_T2w", "sub-03_T2w"], "1": ["sub-01_T1w"]})
    assert main(["calibrate", "-m", str(model), "-np", "0"]) == 0
    told = capsys.readouterr().err
    assert "fold 0 validates on 1 subjects of whom other images were in its training, sub-01:" in told
    assert "fold 1" not in told


def test_predictions_are_calibrated_on_request_in_both_ways(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = run(model).maps["cord"]
    image = write_image(tmp_path / "images" / "sub-09_T2w_0000.nii.gz")
    case = "sub-09_T2w"
    predict(image, tmp_path / "plain", model, folds=[0], progress=False)
    predict(image, tmp_path / "calibrated", model, folds=[0], calibrate=True, progress=False)
    plain, found = (soft_map(tmp_path / name, case) for name in ("plain", "calibrated"))
    assert ((plain > 0.3) & (plain < 0.9)).any()
    np.testing.assert_array_equal(found, calibration(plain))
    assert (found[plain == 0] == 0).all()
    label_map = np.asarray(nib.load(tmp_path / "calibrated" / f"{case}.nii.gz").dataobj)
    np.testing.assert_array_equal(label_map, found > 0.5)
    reports = [softseg_json(tmp_path / name) for name in ("plain", "calibrated")]
    assert reports[0]["calibration"] is None
    assert reports[1]["calibration"]["folds"] == ["0", "1"]
    volumes = [report["cases"][case]["labels"]["cord"]["soft_volume_mm3"] for report in reports]
    assert volumes[1] / volumes[0] == pytest.approx(found.sum() / plain.sum(), rel=1e-4)

    monkeypatch.setenv(VARIABLES["calibrate"], "1")
    stock = stock_predict(model, tmp_path / "images", tmp_path / "stock")
    np.testing.assert_array_equal(soft_map(stock, case), found)
    assert softseg_json(stock)["calibration"] == reports[1]["calibration"]


def test_calibrated_and_other_maps_are_not_mixed_in_a_folder(model: Path, tmp_path: Path) -> None:
    run(model)
    image, out = write_image(tmp_path / "images" / "a.nii.gz"), tmp_path / "out"
    options = {"folds": [0], "calibrate": True, "localize": "never", "progress": False}
    predict(image, out, model, **options)
    assert predict(image, out, model, **options).kept == ["a"]
    with pytest.raises(UserError, match="that differs in calibration"):
        predict(image, out, model, **{**options, "calibrate": False})
    run(model, folds=[0])
    with pytest.raises(UserError, match="that differs in calibration"):
        predict(image, out, model, **options)


def test_evaluations_say_that_maps_are_calibrated(model: Path, dataset: TinyDataset, tmp_path: Path) -> None:
    run(model)
    images, labels = tmp_path / "images", dataset.raw / "softLabelsTr"
    for case in CASES[:2]:
        images.mkdir(exist_ok=True)
        shutil.copy(dataset.image(case), images)
    predict(images, tmp_path / "out", model, folds=[0], calibrate=True, localize="never", progress=False)
    (tmp_path / "labels").mkdir()
    for case in CASES[:2]:
        shutil.copy(labels / f"{case}_0001.nii.gz", tmp_path / "labels")
    found = evaluate(tmp_path / "out", tmp_path / "labels", tmp_path / "e", num_processes=0, progress=False)
    assert found.method_notes["prediction"].endswith(
        "soft maps calibrated on 4 validation cases of fold 0, 1"
    )


def test_the_final_validation_is_never_calibrated(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its predictor has no parameters of folds, its plans no calibration; a user's without one is told."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    monkeypatch.setenv(VARIABLES["calibrate"], "1")
    image = torch.zeros((1, *SHAPE[::-1]))
    with under_way(CaseRecord()), pytest.raises(UserError, match=r"calibration in the model's plans.json"):
        predictor.predict_sliding_window_return_logits(image)
    predictor.list_of_parameters = None
    with under_way(CaseRecord()):
        assert predictor.predict_sliding_window_return_logits(image).shape == (1, *SHAPE[::-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 0, "version": "0.0.9"}, "of format 1, found 0, made by nnunet-softseg 0.0.9"),
        ({"labels": {"disc": {"x": [0, 1], "y": [0, 1]}}}, "model's labels, cord, found one of disc"),
        ({"labels": {"cord": {"x": [0, 1], "y": [0, 2]}}}, "as it was written, found: expected knots"),
        ({"labels": {"cord": {"x": [0, 1]}}}, "as it was written, found: 'y'"),
    ],
)
def test_a_calibration_that_does_not_fit_is_told(
    model: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    run(model)
    kept = json.loads((model / "plans.json").read_text())[PLANS_KEY]["calibration"]
    change_entry(model, calibration={**kept, **change})
    image = write_image(tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match=message):
        predict(image, tmp_path / "out", model, calibrate=True, progress=False)
    assert not (tmp_path / "out").exists()


def test_without_a_calibration_or_maps_the_next_command_is_named(
    model: Path, dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    call = ["predict", "-i", str(write_image(tmp_path / "a.nii.gz")), "-o", str(tmp_path / "out")]
    assert main([*call, "-m", str(model), "--calibrate"]) == 2
    assert "run nnunet-softseg calibrate -m MODEL" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"found a file: unpack a \.zip; calibrate what"):
        run(tmp_path / "a.nii.gz")
    change_entry(model, training_cases={"0": [CASES[0]]})
    with pytest.raises(
        UserError, match=r"fold 0: expected .* not trained on, found sub-01_T1w in its"
    ) as told:
        run(model)
    assert "validate again, nnUNetv2_train 901 3d_fullres 0 -tr " in str(told.value)
    change_entry(model, training_cases={})
    (model / "fold_0" / "validation" / "soft" / f"{CASES[0]}_0001.nii.gz").unlink()
    with pytest.raises(UserError, match=r"two subjects or more, .* found one, sub-02: take more folds"):
        run(model, folds=["0"])
    broken = model / "fold_1" / "validation" / "soft" / f"{CASES[2]}_0001.nii.gz"
    save_nifti(broken, np.zeros((3, 4, 5), np.float32), affine_of())
    with pytest.raises(UserError, match=f"{CASES[2]}_0001.nii.gz: shape differs"):
        run(model)
    shutil.rmtree(model / "fold_0" / "validation")
    shutil.rmtree(model / "fold_1" / "validation")
    command = "run nnUNetv2_train 901 3d_fullres 0 -tr nnUNetTrainerSoftSeg -p nnUNetPlans --val"
    with pytest.raises(UserError, match=command):
        run(model)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    with pytest.raises(UserError, match="say where they are with -g"):
        run(model)
    with pytest.raises(UserError, match=command):
        run(model, reference=dataset.raw / "softLabelsTr")


def test_the_command(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "-m", str(model), "-f", "0", "1", "-np", "0"]) == 0
    printed = capsys.readouterr().out
    assert "4 validation cases of fold 0, 1" in printed
    assert printed.endswith(f"next: nnunet-softseg predict -i IMAGES -o OUT -m {model} --calibrate\n")
