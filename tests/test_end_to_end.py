"""Stock nnU-Net commands, as subprocesses, on a tiny phantom: plan, train, kill, resume, predict."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import blosc2
import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import clean_environment

from nnunet_softseg.datasets.conversion import convert
from nnunet_softseg.phantom import phantom

# The first test waits for two trainings, which share the machine with whatever else runs there.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]
SOFT, VANILLA, PLANS = "nnUNetTrainerSoftSegDemo", "nnUNetTrainer", "nnUNetSoftSegDemoPlans"
DATASET = "Dataset900_Phantom"
FOV_MM, CONTRASTS = (40.0, 40.0, 32.0), ("T1w", "T2w")
BIN = Path(sys.executable).parent
EPOCHS = 4
SHORT_TRAINING = f"""
import dataclasses
from nnunetv2.run.run_training import run_training_entry
from nnunet_softseg.training.variants import nnUNetTrainerSoftSegDemo as trainer
trainer.settings = dataclasses.replace(
    trainer.settings, num_epochs={EPOCHS}, iterations_per_epoch=35, save_every=1
)
run_training_entry()
"""
"""What `nnUNetv2_train` runs, with fewer steps than the demo has: they take half of the time of all tests."""


class Workplace:
    """nnU-Net's three folders and its commands."""

    def __init__(self, root: Path) -> None:
        self.root = root
        folders = {name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        # Threads that wait asleep: other tests run beside.
        self.environment = clean_environment(
            {**folders, "nnUNet_n_proc_DA": "2", "nnUNet_def_n_proc": "2", "OMP_WAIT_POLICY": "passive"}
        )
        self.raw = root / "nnUNet_raw" / DATASET
        self.images = self.raw / "imagesTs"

    def model(self, trainer: str) -> Path:
        return self.root / "nnUNet_results" / DATASET / f"{trainer}__{PLANS}__3d_fullres"

    def run(self, command: str, *arguments: str, **extra: str) -> str:
        return self.call(str(BIN / command), *arguments, **extra)

    def call(self, *command: str, **extra: str) -> str:
        process = subprocess.run(
            command,
            env={**self.environment, **extra},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
        return process.stdout

    def predict(self, output: str, *arguments: str, trainer: str = SOFT, **extra: str) -> Path:
        out = self.root / output
        self.run(
            "nnUNetv2_predict", "-i", str(self.images), "-o", str(out), "-d", "900", "-c", "3d_fullres",
            "-f", "0", "-tr", trainer, "-p", PLANS, "-device", "cpu", "--disable_progress_bar",
            *arguments, **extra,
        )  # fmt: skip
        return out


def kill_group(process: "subprocess.Popen[str]") -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A dataset, planned, trained with a kill half-way and a resume."""
    place = Workplace(tmp_path_factory.mktemp("e2e"))
    bids = place.root / "bids"
    phantom(
        bids,
        n=4,
        seed=1,
        fov_mm=FOV_MM,
        contrasts=CONTRASTS,
        num_processes=2,
        progress=False,
    )
    truth = {"derivatives": "derivatives/truth", "suffix": "_label-SC_desc-truth_probseg"}
    convert(bids, 900, "Phantom", raw_folder=place.raw.parent, num_test=1, num_validation=1, **truth)
    place.run(
        "nnUNetv2_plan_and_preprocess",
        "-d",
        "900",
        "-c",
        "3d_fullres",
        "-pl",
        "SoftSegDemoPlanner",
        "-npfp",
        "2",
        "-np",
        "2",
    )
    command = [
        sys.executable, "-c", SHORT_TRAINING, "900", "3d_fullres", "0", "-tr", SOFT, "-p", PLANS,
        "-device", "cpu",
    ]  # fmt: skip
    log = (place.root / "train.txt").open("w")
    process = subprocess.Popen(
        command, env=place.environment, stdout=log, stderr=log, text=True, start_new_session=True
    )
    checkpoint = place.model(SOFT) / "fold_0" / "checkpoint_latest.pth"
    deadline = time.monotonic() + 600
    while not checkpoint.is_file():
        assert process.poll() is None, (place.root / "train.txt").read_text()[-3000:]
        assert time.monotonic() < deadline, "no checkpoint after 600 s"
        time.sleep(0.2)
    time.sleep(1)
    kill_group(process)
    place.resumed = place.call(*command, "--c")  # type: ignore[attr-defined]
    return place


def contents(folder: Path) -> dict[str, np.ndarray]:
    return {
        str(file.relative_to(folder)): np.asarray(nib.load(file).dataobj)
        for file in sorted(folder.rglob("*.nii.gz"))
    }


def assert_same(one: Path, other: Path, atol: float = 0.0) -> None:
    first, second = contents(one), contents(other)
    assert list(first) == list(second)
    assert first
    for name, values in first.items():
        np.testing.assert_allclose(values, second[name], atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def predicted(place: Workplace) -> Path:
    return place.predict("out", "-npp", "1", "-nps", "1")


def test_vanilla_plans_are_untouched(place: Workplace) -> None:
    plans = json.loads((place.root / "nnUNet_preprocessed" / DATASET / f"{PLANS}.json").read_text())
    assert plans["label_manager"] == "LabelManager"
    assert plans["configurations"]["3d_fullres"]["preprocessor_name"] == "DefaultPreprocessor"
    folders = {
        folder.name for folder in (place.root / "nnUNet_preprocessed" / DATASET).iterdir() if folder.is_dir()
    }
    assert folders == {f"{PLANS}_3d_fullres", f"{PLANS}_3d_fullres_soft", "gt_segmentations"}


def test_soft_targets_keep_the_volume_of_the_phantom(place: Workplace) -> None:
    """Sum x voxel volume, from the file to the network's grid, within 1 %."""
    folder = place.root / "nnUNet_preprocessed" / DATASET / f"{PLANS}_3d_fullres_soft"
    files = sorted((place.raw / "softLabelsTr").glob("*.nii.gz"))
    assert len(files) == 6
    for file in files:
        label = nib.load(file)
        raw = float(np.prod(label.header.get_zooms())) * float(
            np.asarray(label.dataobj).sum(dtype=np.float64)
        )
        target = np.asarray(blosc2.open(str(folder / f"{file.name[:-12]}.b2nd"))[:], dtype=np.float64)
        # both grids cover the same field of view: its volume over the number of voxels
        extent = float(np.prod(label.header.get_zooms())) * label.shape[0] * label.shape[1] * label.shape[2]
        assert target.sum() * extent / target[0].size == pytest.approx(raw, rel=0.01)


def test_training_resumed_where_it_was_killed(place: Workplace) -> None:
    resumed: str = place.resumed  # type: ignore[attr-defined]
    epochs = [
        int(line.rsplit("Epoch ", 1)[1])
        for line in resumed.splitlines()
        if line.rstrip()[:-1].endswith("Epoch ")
    ]
    assert epochs[0] >= 1
    assert epochs == list(range(epochs[0], EPOCHS))
    assert "Soft Dice" in resumed
    assert not list((place.root / "nnUNet_preprocessed").rglob(".*"))  # nothing left of the killed run


def test_validation_is_measured_hard_and_soft(place: Workplace) -> None:
    validation = place.model(SOFT) / "fold_0" / "validation"
    hard = json.loads((validation / "summary.json").read_text())
    soft = json.loads((validation / "summary_soft.json").read_text())
    # both find the same Dice: nnU-Net on the label map, we on the soft map above 0.5
    assert soft["mean"]["cord"]["dice"] == pytest.approx(hard["foreground_mean"]["Dice"], abs=1e-6)
    assert set(soft["cases"]) == {Path(case["prediction_file"]).name[:-7] for case in hard["metric_per_case"]}
    assert soft["mean"]["cord"]["soft_dice"] > 0.6


def test_soft_maps_lie_on_their_images_and_are_soft(place: Workplace, predicted: Path) -> None:
    report = json.loads((predicted / "softseg.json").read_text())
    images = sorted(place.images.glob("*.nii.gz"))
    assert len(images) == 2
    for image in images:
        case = image.name.removesuffix("_0000.nii.gz")
        source, soft = nib.load(image), nib.load(predicted / "soft" / f"{case}_0001.nii.gz")
        values = np.asarray(soft.dataobj)
        assert soft.get_data_dtype() == np.float32
        assert soft.shape == source.shape
        for field in ("srow_x", "srow_y", "srow_z", "pixdim", "qform_code", "sform_code", "xyzt_units"):
            np.testing.assert_array_equal(soft.header[field], source.header[field])
        assert values.min() == 0
        assert 0.9 <= values.max() <= 1
        assert len(np.unique(values[(values > 0) & (values < 0.5)])) > 100  # also below a half
        np.testing.assert_array_equal(
            np.asarray(nib.load(predicted / f"{case}.nii.gz").dataobj), values > 0.5
        )
        truth = np.asarray(nib.load(place.raw / "softLabelsTs" / f"{case}_0001.nii.gz").dataobj)
        overlap = 2 * ((values > 0.5) & (truth > 0.5)).sum() / ((values > 0.5).sum() + (truth > 0.5).sum())
        assert overlap > 0.7
        seconds = report["cases"][case]["seconds"]
        assert set(seconds) == {"preprocess", "forward", "export"}
        assert report["cases"][case]["image"] == image.name
    assert report["trainer"] == SOFT


@pytest.mark.soak
def test_sequential_parts_and_model_folder_give_the_same_files(place: Workplace, predicted: Path) -> None:
    assert_same(predicted, place.predict("sequential", "-npp", "0", "-nps", "0"))
    for part in ("0", "1", "2"):  # of two images: the last part has none
        place.predict("parts", "-npp", "1", "-nps", "1", "-num_parts", "3", "-part_id", part)
    assert_same(predicted, place.root / "parts")
    both = json.loads((place.root / "parts" / "softseg.json").read_text())["cases"]
    assert len(both) == 2
    place.run(
        "nnUNetv2_predict_from_modelfolder", "-i", str(place.images), "-o", str(place.root / "folder"),
        "-m", str(place.model(SOFT)), "-f", "0", "-device", "cpu", "-npp", "2", "-nps", "2",
        "--save_probabilities",
    )  # fmt: skip
    assert_same(predicted, place.root / "folder")
    for archive in (place.root / "folder").glob("*.npz"):
        from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

        soft, _ = NibabelIOWithReorient().read_images(
            [str(predicted / "soft" / f"{archive.stem}_0001.nii.gz")]
        )
        np.testing.assert_array_equal(np.load(archive)["probabilities"], [1 - soft[0], soft[0]])


def test_the_predict_command_gives_the_same_files(place: Workplace, predicted: Path) -> None:
    out = place.root / "command"
    place.run(
        "nnunet-softseg", "predict", "-i", str(place.images), "-o", str(out), "-m", str(place.model(SOFT)),
        "-f", "0", "-device", "cpu",
    )  # fmt: skip
    assert_same(predicted, out)


def test_an_interrupted_prediction_is_continued(place: Workplace, predicted: Path) -> None:
    again = place.root / "continued"
    shutil.copytree(predicted, again)
    first, second = sorted(again.glob("*.nii.gz"))
    second.unlink()
    (again / "soft" / second.name.replace(".nii.gz", "_0001.nii.gz")).unlink()
    stamp = first.stat().st_mtime_ns
    place.predict("continued", "-npp", "1", "-nps", "1", "--continue_prediction")
    assert_same(predicted, again)
    assert first.stat().st_mtime_ns == stamp


@pytest.fixture
def predictor(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> Any:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, place.environment[name])
    return nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)


def test_python_api_and_several_folds(
    place: Workplace, predicted: Path, predictor: Any, tmp_path: Path
) -> None:
    """Two copies of one fold are an ensemble whose mean is the single model; arrays give what files give."""
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

    twice = place.root / "twice"
    shutil.copytree(place.model(SOFT), twice)
    shutil.copytree(twice / "fold_0", twice / "fold_1")
    predictor.initialize_from_trained_model_folder(str(twice), (0, 1))
    out = tmp_path / "out"
    out.mkdir()
    predictor.predict_from_files_sequential(str(place.images), str(out))
    assert_same(predicted, out, atol=1e-6)
    report = json.loads((out / "softseg.json").read_text())
    assert all(len(case["labels"]["cord"]["raw_plateau"]) == 2 for case in report["cases"].values())
    image = sorted(place.images.glob("*.nii.gz"))[0]
    array, properties = NibabelIOWithReorient().read_images([str(image)])
    label_map, soft = predictor.predict_single_npy_array(array, properties, save_or_return_probabilities=True)
    expected, _ = NibabelIOWithReorient().read_images(
        [str(predicted / "soft" / image.name.replace("_0000", "_0001"))]
    )
    np.testing.assert_allclose(soft, expected, atol=1e-6)
    np.testing.assert_array_equal(label_map, (expected[0] > 0.5).astype(np.uint8))


def test_images_without_a_cord(place: Workplace, predictor: Any, tmp_path: Path) -> None:
    """Zeros and a constant give an empty map; a neck whose cord is missing an empty map or a warning."""
    images = tmp_path / "images"
    images.mkdir()
    source = nib.load(sorted(place.images.glob("*.nii.gz"))[0])
    for name, value in {"zeros": 0, "constant": 300}.items():
        nib.save(
            nib.Nifti1Image(np.full(source.shape, value, np.float32), source.affine),
            images / f"{name}_0000.nii.gz",
        )
    necks = tmp_path / "necks"
    phantom(
        necks, n=2, seed=5, fov_mm=FOV_MM, contrasts=CONTRASTS, cord=False, num_processes=1, progress=False
    )
    for neck in necks.glob("sub-*/*/*.nii.gz"):
        shutil.copy(neck, images / neck.name.replace(".nii.gz", "_0000.nii.gz"))
    predictor.initialize_from_trained_model_folder(str(place.model(SOFT)), (0,))
    (tmp_path / "out").mkdir()
    predictor.predict_from_files_sequential(str(images), str(tmp_path / "out"))
    report = json.loads((tmp_path / "out" / "softseg.json").read_text())
    for name in ("zeros", "constant"):
        assert not np.asarray(nib.load(tmp_path / "out" / "soft" / f"{name}_0001.nii.gz").dataobj).any()
        assert any("constant image" in warning for warning in report["cases"][name]["warnings"])
    without = [case for name, case in report["cases"].items() if name.startswith("sub-")]
    assert len(without) == 2 * len(CONTRASTS)
    # The training is short and not seeded: what it makes up may once in a while look like a cord.
    assert sum(bool(case["warnings"]) for case in without) >= 2 * len(CONTRASTS) - 1


def test_a_cord_is_not_called_missing(predicted: Path) -> None:
    for case in json.loads((predicted / "softseg.json").read_text())["cases"].values():
        told = " ".join(case["warnings"])
        assert not any(words in told for words in ("nothing found", "weak response", "constant image"))


def test_a_vanilla_model_predicts_as_without_us(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit, with the plug-in active and with it off, from an untrained vanilla network."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, place.environment[name])
    preprocessed = place.root / "nnUNet_preprocessed" / DATASET
    plans = json.loads((preprocessed / f"{PLANS}.json").read_text())
    dataset_json = json.loads((preprocessed / "dataset.json").read_text())
    vanilla = nnUNetTrainer(
        {**plans, "continue_training": False}, "3d_fullres", 0, dataset_json, torch.device("cpu")
    )
    vanilla.initialize()
    vanilla.inference_allowed_mirroring_axes = None
    vanilla.save_checkpoint(str(place.model(VANILLA) / "fold_0" / "checkpoint_final.pth"))
    (place.model(VANILLA) / "plans.json").write_text(json.dumps(plans))
    (place.model(VANILLA) / "dataset.json").write_text(json.dumps(dataset_json))
    how = ("-npp", "0", "-nps", "0", "--save_probabilities")  # workers would take longer than the network
    on = place.predict("vanilla_on", *how, trainer=VANILLA)
    off = place.predict("vanilla_off", *how, trainer=VANILLA, NNUNET_SOFTSEG_NO_HOOK="1")
    assert_same(on, off)
    assert {file.name for file in on.iterdir()} == {file.name for file in off.iterdir()}
    assert not (on / "soft").exists()
    for archive in on.glob("*.npz"):
        np.testing.assert_array_equal(
            np.load(archive)["probabilities"], np.load(off / archive.name)["probabilities"]
        )


def test_missing_soft_labels_stop_the_stock_command_with_one_line(place: Workplace) -> None:
    """A user's mistake: the message, no traceback, and no training started."""
    missing = sorted((place.raw / "softLabelsTr").glob("*.nii.gz"))[0]
    aside = missing.with_suffix(".aside")
    missing.rename(aside)
    try:
        process = subprocess.run(
            [BIN / "nnUNetv2_train", "900", "3d_fullres", "1", "-tr", SOFT, "-p", PLANS, "-device", "cpu"],
            env=place.environment, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
    finally:
        aside.rename(missing)
    assert process.returncode != 0
    assert "Traceback" not in process.stderr
    assert missing.name in process.stderr
    assert "nnunet-softseg: error:" in process.stderr
