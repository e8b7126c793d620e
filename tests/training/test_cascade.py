"""A cascade: a first stage at low resolution, whose label maps are channels of the second."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blosc2
import nibabel as nib
import numpy as np
import pytest
import torch
from nnunet_threads import threads_in_place_of_processes
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import run_training
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tiny_dataset import TinyDataset, in_this_process, make_ready_to_train, make_tiny_dataset, small_plans

from nnunet_softseg.errors import UserError
from nnunet_softseg.inference.nnunet_patches import preprocessed_case
from nnunet_softseg.inference.predict import predict
from nnunet_softseg.preprocessing.preparation import open_soft_target, soft_target_folder
from nnunet_softseg.settings import SoftSegSettings
from nnunet_softseg.training.trainer import nnUNetTrainerSoftSeg
from nnunet_softseg.training.variants import nnUNetTrainerSoftSegDeviceAug, nnUNetTrainerSoftSegPaperAug

CPU = torch.device("cpu")
FIRST, SECOND = "3d_lowres", "3d_cascade_fullres"
SHORT = SoftSegSettings(
    seed=3, initial_lr=4e-3, num_epochs=1, iterations_per_epoch=60, validation_iterations_per_epoch=1
)


def cascade_plans(dataset: TinyDataset) -> dict[str, Any]:
    plans = small_plans(dataset)
    full = plans["configurations"]["3d_fullres"]
    low = {"data_identifier": "nnUNetPlans_3d_lowres", "spacing": [2.0] * 3, "patch_size": [16, 12, 12]}
    plans["configurations"][FIRST] = {**full, **low, "next_stage": SECOND}
    plans["configurations"][SECOND] = {"inherits_from": "3d_fullres", "previous_stage": FIRST}
    return plans


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyDataset]:
    patch = pytest.MonkeyPatch()
    tiny = make_tiny_dataset(
        tmp_path_factory.mktemp("cascade"), shape=(26, 30, 44), reader="NibabelIOWithReorient"
    )
    make_ready_to_train(tiny, patch)
    plans = {name: value for name, value in cascade_plans(tiny).items() if name != "continue_training"}
    (tiny.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    patch.delenv("nnUNet_n_proc_DA")
    with in_this_process():
        preprocess_dataset(101, configurations=[FIRST], num_processes=[1], show_progress_bar=False)
    patch.setenv("nnUNet_n_proc_DA", "0")
    patch.setattr(nnUNetTrainerSoftSeg, "settings", SHORT)
    yield tiny
    patch.undo()


def make(dataset: TinyDataset, stage: str, cls: type[nnUNetTrainer] = nnUNetTrainerSoftSeg) -> Any:
    plans = {**dataset.plans(), "continue_training": False}
    return cls(plans, stage, "all", dataset.dataset_json, CPU)


def model(dataset: TinyDataset, stage: str, trainer: str = "nnUNetTrainerSoftSeg") -> Path:
    return dataset.root / "results" / dataset.name / f"{trainer}__nnUNetPlans__{stage}"


def train(dataset: TinyDataset, stage: str) -> float:
    """Return the Dice of the final validation."""
    with threads_in_place_of_processes():
        trainer = make(dataset, stage)
        trainer.run_training()
        trainer.perform_actual_validation()
    summary = Path(trainer.output_folder) / "validation" / "summary.json"
    return float(json.loads(summary.read_text())["foreground_mean"]["Dice"])


@pytest.fixture(scope="module")
def trained(dataset: TinyDataset) -> dict[str, float]:
    return {stage: train(dataset, stage) for stage in (FIRST, SECOND)}


@pytest.fixture(scope="module")
def predicted(trained: dict[str, float], dataset: TinyDataset, tmp_path_factory: Any) -> Path:
    """Folders first/ and second/ of predictions of the training images."""
    out = tmp_path_factory.mktemp("predicted")
    run(dataset, FIRST, out / "first")
    run(dataset, SECOND, out / "second", out / "first")
    return out


def predictor(dataset: TinyDataset, stage: str) -> nnUNetPredictor:
    made = nnUNetPredictor(device=CPU, allow_tqdm=False)
    made.initialize_from_trained_model_folder(str(model(dataset, stage)), ("all",))
    return made


def run(
    dataset: TinyDataset, stage: str, out: Path, previous: Path | None = None, *, sequential: bool = False
) -> None:
    with threads_in_place_of_processes():
        made = predictor(dataset, stage)
        out.mkdir(parents=True, exist_ok=True)
        method = made.predict_from_files_sequential if sequential else made.predict_from_files
        folder = None if previous is None else str(previous)
        method(str(dataset.raw / "imagesTr"), str(out), folder_with_segs_from_prev_stage=folder)


def test_a_second_stage_without_its_first_is_refused_with_what_is_there(dataset: TinyDataset) -> None:
    trainer = make(dataset, SECOND)
    folder = Path(trainer.folder_with_segs_from_previous_stage)
    hidden = folder.with_name("hidden")
    if folder.is_dir():  # of the test below, if that ran first
        folder.rename(hidden)
    other = model(dataset, FIRST, "nnUNetTrainer") / "predicted_next_stage" / SECOND
    other.mkdir(parents=True)
    try:
        with pytest.raises(
            UserError, match=r"first stage, 3d_lowres, for 3 cases in .*found none of sub-01_T1w"
        ):
            trainer.on_train_start()
        with pytest.raises(
            UserError, match=r"there are those of nnUNetTrainer, another trainer.*: train all"
        ):
            trainer.on_train_start()
    finally:
        shutil.rmtree(model(dataset, FIRST, "nnUNetTrainer"))
        if hidden.is_dir():
            hidden.rename(folder)


@pytest.mark.soak
def test_the_second_stage_is_not_below_the_first(trained: dict[str, float]) -> None:
    print(f"Dice of the first stage {trained[FIRST]:.4f}, of the second {trained[SECOND]:.4f}")
    assert trained[FIRST] > 0.5
    assert trained[SECOND] >= trained[FIRST]


@pytest.mark.soak
@pytest.mark.parametrize("best", [False, True])
def test_validation_alone_gives_the_same_and_probabilities(
    trained: dict[str, float], dataset: TinyDataset, best: bool
) -> None:
    """`--val --npz`, and `--val_best`, of a training of one epoch: its checkpoint is the best."""
    validation = model(dataset, FIRST) / "fold_all" / "validation"
    with threads_in_place_of_processes():
        run_training(
            "101", FIRST, "all", "nnUNetTrainerSoftSeg", only_run_validation=True, val_with_best=best,
            export_validation_probabilities=True, device=CPU,
        )  # fmt: skip
    summary = json.loads((validation / "summary.json").read_text())
    assert summary["foreground_mean"]["Dice"] == trained[FIRST]
    for case in dataset.cases:
        stored = np.load(validation / f"{case}.npz")["probabilities"]
        assert len(stored) == 2
        np.testing.assert_array_equal(stored[0], 1 - stored[1])
        (validation / f"{case}.npz").unlink()


def share_on_label(trainer: Any) -> float:
    """Return which share of the label's voxels the extra channel of four batches marks."""
    both = label = 0
    for _ in range(4):
        batch = next(trainer.dataloader_val)
        assert batch["data"].shape == (2, 2, 24, 16, 16)
        channel, target = batch["data"][:, 1], batch["target"][0][:, 0] > 0.5
        assert set(torch.unique(channel).tolist()) <= {0, 1}
        both, label = both + int((channel[target] == 1).sum()), label + int(target.sum())
    print(f"share of the label's voxels that the first stage marks: {both / label:.3f}")
    return both / label


@pytest.mark.parametrize("cls", [nnUNetTrainerSoftSeg, nnUNetTrainerSoftSegPaperAug])
def test_the_extra_channel_of_a_batch_lies_on_the_label(
    dataset: TinyDataset, cls: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a first stage that marks what nnU-Net's label map does."""
    trainer = make(dataset, SECOND, cls)
    monkeypatch.setattr(trainer, "folder_with_segs_from_previous_stage", str(tmp_path))
    for case in dataset.cases:
        stored = blosc2.open(str(dataset.preprocessed / "nnUNetPlans_3d_fullres" / f"{case}_seg.b2nd"))
        nnUNetDatasetBlosc2.save_seg(np.maximum(stored[0], 0), str(tmp_path / case))
    with threads_in_place_of_processes():
        trainer.on_train_start()
    assert share_on_label(trainer) > 0.9
    batch = next(trainer.dataloader_train)
    assert batch["data"].shape == (2, 2, 24, 16, 16)
    assert set(torch.unique(batch["data"][:, 1]).tolist()) <= {0, 1}
    assert len(torch.unique(batch["target"][0])) > 20  # the soft label stays soft


@pytest.mark.soak
def test_the_extra_channel_of_a_trained_first_stage_lies_on_the_label(
    trained: dict[str, float], dataset: TinyDataset
) -> None:
    trainer = make(dataset, SECOND)
    with threads_in_place_of_processes():
        trainer.on_train_start()
    assert share_on_label(trainer) > 0.6


@pytest.mark.soak
def test_the_extra_channel_of_an_image_lies_on_the_label(predicted: Path, dataset: TinyDataset) -> None:
    made, case = predictor(dataset, SECOND), dataset.cases[0]
    label_map = str(predicted / "first" / f"{case}.nii.gz")
    item = preprocessed_case(made, [str(dataset.image(case))], None, label_map)
    image, channel = item["data"].numpy()
    folder = soft_target_folder(dataset.preprocessed / "nnUNetPlans_3d_fullres")
    target = np.asarray(open_soft_target(folder, case)[:])[0]
    y, x = ((size - 16) // 2 for size in target.shape[1:])
    label = target[:, y : y + 16, x : x + 16] > 0.5
    assert image.shape == channel.shape == label.shape
    assert set(np.unique(channel)) == {0, 1}
    overlap = 2 * (channel[label] == 1).sum() / (label.sum() + channel.sum())
    assert overlap > 0.7


@pytest.mark.soak
def test_files_one_after_the_other_and_arrays_give_the_same(
    predicted: Path, dataset: TinyDataset, tmp_path: Path
) -> None:
    run(dataset, SECOND, tmp_path / "sequential", predicted / "first", sequential=True)
    case = dataset.cases[0]
    soft = [
        np.asarray(nib.load(folder / "soft" / f"{case}_0001.nii.gz").dataobj)
        for folder in (predicted / "second", tmp_path / "sequential")
    ]
    np.testing.assert_array_equal(*soft)
    assert soft[0].max() > 0.9
    made = predictor(dataset, SECOND)
    reader = made.plans_manager.image_reader_writer_class()
    image, properties = reader.read_images([str(dataset.image(case))])
    previous, _ = reader.read_seg(str(predicted / "first" / f"{case}.nii.gz"))
    _, of_array = made.predict_single_npy_array(image, dict(properties), previous, None, True)
    expected, _ = reader.read_images([str(predicted / "second" / "soft" / f"{case}_0001.nii.gz")])
    np.testing.assert_allclose(of_array, expected, atol=1e-6)
    with pytest.raises(
        UserError, match=r"second stage of a cascade: expected a label map of its first stage"
    ):
        made.predict_single_npy_array(image, dict(properties))
    report = json.loads((predicted / "second" / "softseg.json").read_text())["cases"][case]
    assert report["image"] == f"{case}_0000.nii.gz"


@pytest.mark.soak
def test_a_cascade_is_not_recentred_and_says_why(
    predicted: Path, dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNUNET_SOFTSEG_LOCALIZE", "always")
    run(dataset, SECOND, tmp_path, predicted / "first")
    for case in json.loads((tmp_path / "softseg.json").read_text())["cases"].values():
        assert case["localiser"]["not_run"] == "the second stage of a cascade sees where the first has looked"


@pytest.mark.soak
def test_predictions_of_the_first_stage_that_do_not_fit_are_refused(
    predicted: Path, dataset: TinyDataset, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    shutil.copytree(predicted / "first", first)
    with pytest.raises(UserError, match=r"expected predictions of its first stage, 3d_lowres, found none"):
        run(dataset, SECOND, tmp_path / "out")
    with pytest.raises(UserError, match=r"-prev_stage_predictions .*expected none.*leave it out"):
        run(dataset, FIRST, tmp_path / "out", first)
    with pytest.raises(UserError, match=r"of 3d_lowres, found those of 3d_cascade_fullres: predict with"):
        run(dataset, SECOND, tmp_path / "out", predicted / "second")
    (first / f"{dataset.cases[1]}.nii.gz").unlink()
    with pytest.raises(UserError, match=rf"for each of 3 cases, found no {dataset.cases[1]}.nii.gz"):
        run(dataset, SECOND, tmp_path / "out", first)
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4)), first / f"{dataset.cases[1]}.nii.gz")
    with pytest.raises(UserError, match=r"on the grid of the image, .* voxels, found 5 x 4 x 3"):
        run(dataset, SECOND, tmp_path / "out", first)
    (first / "plans.json").write_text(json.dumps(dataset.plans()))
    with pytest.raises(
        UserError, match=r"by nnUNetTrainerSoftSeg, found those of a trainer of nnU-Net's own"
    ):
        run(dataset, SECOND, tmp_path / "out", first)
    with pytest.raises(UserError, match=r"second stage of a cascade: predict 3d_lowres, then this one"):
        predict(dataset.raw / "imagesTr", tmp_path / "ours", model(dataset, SECOND), progress=False)


def test_augmentation_on_the_device_is_refused(dataset: TinyDataset) -> None:
    trainer = make(dataset, SECOND, nnUNetTrainerSoftSegDeviceAug)
    with pytest.raises(UserError, match=r"without a previous stage.*found 3d_cascade_fullres"):
        trainer.get_training_transforms((24, 16, 16), (0, 0), None, (0,), False)
