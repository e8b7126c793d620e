"""Three annotated slices of each volume -> 2-D teacher -> pseudo-labels -> 3-D student, on the phantom."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from disc_dataset import small_disc_plans
from test_formats import quick_training
from tiny_dataset import TinyDataset, plan_and_preprocess, small_plans, use

from nnunet_softseg import pseudo_label
from nnunet_softseg.datasets.check import check
from nnunet_softseg.datasets.conversion import convert
from nnunet_softseg.inference.predict import predict
from nnunet_softseg.phantom import TRUTH, TRUTH_SUFFIX, phantom
from nnunet_softseg.training.variants import nnUNetTrainerSoftSegDemo

CPU = torch.device("cpu")
SLICES, ANNOTATED, AXIS = 53, (13, 26, 39), 1
"""Of the phantom's T2w, whose second axis is S-I."""


@dataclass(frozen=True)
class Loop:
    """The datasets and models of the way, and true and found volume of the test subject in mm3."""

    truth: Mapping[str, np.ndarray]
    student: Path
    volumes_mm3: Mapping[str, float]


def values(file: Path) -> np.ndarray:
    return np.asarray(nib.load(file).dataobj)


def go(root: Path, patch: pytest.MonkeyPatch, *, subjects: int, steps: tuple[int, int]) -> Loop:
    """Make, annotate, teach, label, train again; steps of each teacher and of the student."""
    bids = phantom(root / "bids", subjects, 3, fov_mm=(32.0, 32.0, 40.4), contrasts=("T2w",), progress=False)
    truth = {"derivatives": TRUTH, "suffix": TRUTH_SUFFIX}
    options = {"num_test": 1, "num_validation": 1, "num_processes": 1, "progress": False}
    raw = convert(bids, 101, "Slices", raw_folder=root / "raw", **truth, **options).folder
    cases = sorted(file.name.removesuffix(".nii.gz") for file in (raw / "labelsTr").iterdir())
    whole = {case: values(raw / "softLabelsTr" / f"{case}_0001.nii.gz") for case in cases}
    for case in cases:
        keep_annotated(raw / "softLabelsTr" / f"{case}_0001.nii.gz")
    splits = [{"train": cases[::2], "val": cases[1::2]}, {"train": cases[1::2], "val": cases[::2]}]
    sparse = TinyDataset(root, raw.name, tuple(cases), (1,))
    use(sparse, patch)
    plan_and_preprocess(sparse, "2d")
    (sparse.preprocessed / "splits_final.json").write_text(json.dumps(splits))
    patch.setenv("nnUNet_n_proc_DA", "0")
    plans = small_disc_plans(sparse, "2d", (40, 40))
    for fold in (0, 1):
        torch.manual_seed(fold)
        trainer = nnUNetTrainerSoftSegDemo(plans, "2d", fold, sparse.dataset_json, CPU)
        teacher = quick_training(trainer, steps[0])
    split = sparse.preprocessed / "splits_final.json"
    quiet = {"device": "cpu", "progress": False}
    student = pseudo_label(raw / "imagesTr", 102, "Volumes", models=[teacher], splits=split, **quiet).folder
    dense = TinyDataset(root, student.name, tuple(cases), (1,))
    patch.delenv("nnUNet_n_proc_DA")
    plan_and_preprocess(dense)
    patch.setenv("nnUNet_n_proc_DA", "0")
    plans = small_plans(dense, (48, 32, 32))
    model = quick_training(
        nnUNetTrainerSoftSegDemo(plans, "3d_fullres", 0, dense.dataset_json, CPU), steps[1]
    )
    volumes = {"truth": volume_mm3(next((raw / "softLabelsTs").iterdir()))}
    for name, folder in (("teacher", teacher), ("student", model)):
        out = root / name
        predict(raw / "imagesTs", out, folder, no_qc=True, **quiet)
        volumes[name] = volume_mm3(next((out / "soft").iterdir()))
    return Loop(whole, student, volumes)


def keep_annotated(file: Path) -> None:
    image = nib.load(file)
    assert image.shape[AXIS] == SLICES
    kept = np.full(image.shape, np.nan, np.float32)
    kept[:, ANNOTATED] = np.asarray(image.dataobj)[:, ANNOTATED]
    nib.save(nib.Nifti1Image(kept, image.affine, image.header), file)


def volume_mm3(file: Path) -> float:
    image = nib.load(file)
    return float(np.asarray(image.dataobj, np.float64).sum() * abs(np.linalg.det(image.affine[:3, :3])))


def test_every_command_of_the_way_fits_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps: what the networks learn in these says nothing."""
    loop = go(tmp_path, monkeypatch, subjects=4, steps=(2, 1))
    assert check(102, num_processes=0, progress=False).errors == ()
    record: dict[str, Any] = json.loads((loop.student / "pseudo_labels.json").read_text())["cases"]
    assert [entry["labelled_by"][0]["fold"] for entry in record.values()] == ["1", "0", "1"]
    for case, whole in loop.truth.items():
        label = nib.load(loop.student / "softLabelsTr" / f"{case}_0001.nii.gz")
        assert label.shape == whole.shape
        assert not np.isnan(np.asarray(label.dataobj)).any()


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_student_is_no_worse_than_its_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = go(tmp_path, monkeypatch, subjects=7, steps=(150, 100))
    found = {name: loop.volumes_mm3[name] / loop.volumes_mm3["truth"] - 1 for name in ("teacher", "student")}
    assert abs(found["student"]) <= abs(found["teacher"]) + 0.01, found
    assert abs(found["student"]) < 0.1
    for case, whole in loop.truth.items():
        label = values(loop.student / "softLabelsTr" / f"{case}_0001.nii.gz")
        assert 2 * np.minimum(label, whole).sum() / (label.sum() + whole.sum()) > 0.85
