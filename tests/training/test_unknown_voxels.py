"""Regions with unknown voxels, from the raw dataset to predictions, on a tiny dataset."""

import json
import multiprocessing.dummy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_dataset import (
    TinyDataset,
    affine_of,
    make_ready_to_train,
    make_tiny_dataset,
    save_nifti,
    small_plans,
    soft_blob,
)

from nnunet_softseg.datasets.check import check
from nnunet_softseg.errors import UserError
from nnunet_softseg.inference.predict import predict
from nnunet_softseg.inference.validation import write_soft_summary
from nnunet_softseg.metrics.calibration import reliability_curve
from nnunet_softseg.preprocessing.image_grid import on_network_grid
from nnunet_softseg.preprocessing.preparation import open_soft_target, prepare, soft_target_folder
from nnunet_softseg.training.trainer import nnUNetTrainerSoftSeg
from nnunet_softseg.training.training_log import SoftSegLogger
from nnunet_softseg.training.variants import nnUNetTrainerSoftSegDemo, nnUNetTrainerSoftSegSlidingWindow

CPU = torch.device("cpu")
SHAPE = (20, 22, 30)
CASES = ("sub-01_T2w", "sub-02_T2w", "sub-03_T2w")
KNOWN = slice(8, 20)
"""The annotated slices, of 0.9 mm, along S-I."""


def fractions() -> dict[int, Any]:
    """Cord and, inside it, grey matter."""
    centre = (9.5, 10.5, 14.5)
    return {1: soft_blob(SHAPE, centre, 6), 2: soft_blob(SHAPE, centre, 3)}


def make_nested(root: Path) -> TinyDataset:
    """nnU-Net's regions and label to ignore: labelsTr holds 1 white, 2 grey matter, 3 where nobody looked."""
    dataset = make_tiny_dataset(root, CASES, shape=SHAPE, reader="NibabelIOWithReorient")
    labels = {"background": 0, "cord": [1, 2], "grey": 2, "ignore": 3}
    content = {**dataset.dataset_json, "labels": labels, "regions_class_order": [1, 2]}
    (dataset.raw / "dataset.json").write_text(json.dumps(content))
    label_map = (fractions()[1] > 0.5).astype(np.uint8) + (fractions()[2] > 0.5)
    label_map[..., : KNOWN.start] = label_map[..., KNOWN.stop :] = 3
    for case in CASES:
        image = nib.load(dataset.image(case)).get_fdata() + 60 * fractions()[2]
        save_nifti(dataset.image(case), image.astype(np.float32), affine_of())
        save_nifti(dataset.label_map(case), label_map, affine_of())
        write_soft_labels(dataset, case, lambda label: label)
    return dataset


def write_soft_labels(dataset: TinyDataset, case: str, change: Callable[[Any], Any]) -> None:
    """Write soft labels, those of unknown slices changed."""
    for label, values in fractions().items():
        values[..., : KNOWN.start] = change(values[..., : KNOWN.start])
        values[..., KNOWN.stop :] = change(values[..., KNOWN.stop :])
        save_nifti(dataset.soft_label(case, label), values, affine_of())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyDataset]:
    patch = pytest.MonkeyPatch()
    tiny = make_nested(tmp_path_factory.mktemp("nested"))
    make_ready_to_train(tiny, patch)
    splits = [{"train": CASES[:2], "val": CASES[2:]}, {"train": CASES[1:], "val": CASES[:1]}]
    (tiny.preprocessed / "splits_final.json").write_text(json.dumps(splits))
    yield tiny
    patch.undo()


class Trainer(nnUNetTrainerSoftSeg):
    settings = nnUNetTrainerSoftSeg.settings.__class__(
        seed=1, num_epochs=1, iterations_per_epoch=2, validation_iterations_per_epoch=1
    )


def made(dataset: TinyDataset, cls: type[nnUNetTrainerSoftSeg] = Trainer, fold: Any = 0) -> Any:
    torch.manual_seed(0)
    trainer = cls(small_plans(dataset), "3d_fullres", fold, dataset.dataset_json, CPU)
    trainer.on_train_start()
    return trainer


def weights_after(dataset: TinyDataset, steps: int) -> dict[str, torch.Tensor]:
    trainer = made(dataset, fold="all")
    for _ in range(steps):
        trainer.train_step(next(trainer.dataloader_train))
    return dict(trainer.network.state_dict())


def test_random_numbers_in_unknown_voxels_change_no_bit(
    dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = weights_after(dataset, 2)
    copy = dataset.copied(tmp_path / "nnunet", monkeypatch)
    shutil.rmtree(soft_target_folder(copy.preprocessed / "nnUNetPlans_3d_fullres"))
    rng = np.random.default_rng(0)
    for case in CASES:
        write_soft_labels(copy, case, lambda label: rng.random(label.shape).astype(np.float32))
    found = weights_after(copy, 2)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        assert torch.equal(values, found[name]), name


def test_soft_labels_that_the_label_to_ignore_contradicts_are_named(
    dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = dataset.copied(tmp_path / "nnunet", monkeypatch)
    write_soft_labels(copy, CASES[0], lambda label: np.zeros_like(label))
    write_soft_labels(copy, CASES[1], lambda label: np.full_like(label, np.nan))
    warnings = prepare(101, "3d_fullres", num_processes=0, progress=False).warnings
    named = [text for text in warnings if "where labelsTr has the label to ignore" in text]
    assert [text.split(":")[0] for text in named] == ["softLabelsTr/sub-03_T2w_0001.nii.gz"]


@pytest.mark.parametrize("cls", [Trainer, nnUNetTrainerSoftSegSlidingWindow])
def test_batches_are_known_where_they_were_annotated(dataset: TinyDataset, cls: Any) -> None:
    trainer = made(dataset, cls, "all")
    seen = []
    for _ in range(4):
        batch = next(trainer.dataloader_val)
        full, half = batch["target"]
        assert full.shape == (2, 4, 24, 16, 16)  # labels, then their weights
        assert half.shape == (2, 4, 12, 8, 8)
        values, weight = full.chunk(2, dim=1)
        assert set(torch.unique(weight).tolist()) == {0, 1}
        assert float(values[weight == 0].abs().max()) == 0
        assert bool((weight.sum((1, 2, 3, 4)) > 0).all())  # no patch without known voxels
        seen.append(float(values.max()))
    assert max(seen) > 0.9


def test_a_label_to_ignore_that_no_case_has_changes_no_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a fixed patch, too, where nnU-Net's loader would ask for a table of annotated voxels."""
    tiny = make_tiny_dataset(tmp_path, CASES, shape=SHAPE, reader="NibabelIOWithReorient")
    content = {**tiny.dataset_json, "labels": {"background": 0, "label1": 1, "ignore": 2}}
    (tiny.raw / "dataset.json").write_text(json.dumps(content))
    make_ready_to_train(tiny, monkeypatch)
    trainer = made(tiny, nnUNetTrainerSoftSegSlidingWindow, "all")
    for _ in range(4):
        assert next(trainer.dataloader_train)["target"][0].shape == (2, 1, 24, 16, 16)
    assert trainer.label_manager.ignore_label == 2


@pytest.mark.parametrize("gone", ["imagesTr", "dataset.json"])
def test_what_is_ignored_is_told_by_the_label_maps_alone(
    dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """A cluster need not have the raw images."""
    copy = dataset.copied(tmp_path / "nnunet", monkeypatch)
    before = prepare(101, "3d_fullres", num_processes=0, progress=False)
    (copy.raw / gone).rename(copy.root / "elsewhere")
    assert prepare(101, "3d_fullres", num_processes=0, progress=False).num_prepared == 0
    shutil.rmtree(before.folder)
    again = prepare(101, "3d_fullres", num_processes=0, progress=False)
    assert again.num_prepared == len(CASES)
    assert again.is_partly_unknown
    assert [case.known for case in again.cases] == [case.known for case in before.cases]


def test_what_is_known_keeps_its_value_on_the_way_to_the_network(dataset: TinyDataset) -> None:
    """Slices of 0.9 mm, of 1 mm there: known where half of a voxel is."""
    made(dataset)
    target = open_soft_target(soft_target_folder(dataset.preprocessed / "nnUNetPlans_3d_fullres"), CASES[0])
    known = ~np.isnan(np.asarray(target[:], np.float32))
    assert (known == known[:, :, :1, :1]).all()  # whole slices
    where = np.flatnonzero(known[0, :, 0, 0])
    centres_mm = (where + 0.5) * 27 / target.shape[1]
    assert centres_mm.min() == pytest.approx(8 * 0.9, abs=0.6)
    assert centres_mm.max() == pytest.approx(20 * 0.9, abs=0.6)


def test_a_single_slice_is_spread_over_its_own_thickness() -> None:
    """Of slices four times as thick as the network's, each covers four, though no centre lies on another."""
    label = np.full((5, 2, 2), np.nan, np.float32)
    label[2] = 0.37
    target = on_network_grid(label, (20, 2, 2))
    assert np.flatnonzero(~np.isnan(target[:, 0, 0])).tolist() == [8, 9, 10, 11]
    np.testing.assert_allclose(target[8:12], 0.37, rtol=1e-6)
    same = on_network_grid(label, (5, 2, 2))
    np.testing.assert_array_equal(same, label)


def test_a_fold_without_annotations_is_refused(
    dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = dataset.copied(tmp_path / "nnunet", monkeypatch)
    for case in CASES[:2]:
        for label in (1, 2):
            save_nifti(copy.soft_label(case, label), np.full(SHAPE, np.nan, np.float32), affine_of())
    with pytest.raises(UserError, match=r"fold 0: expected annotated .* found none of cord, grey"):
        made(copy, fold=0)
    made(copy, fold=1)


@pytest.fixture(scope="module")
def trained(dataset: TinyDataset) -> Path:
    """The folder of a model, trained for a moment and validated."""
    threads = SimpleNamespace(get_context=lambda _: multiprocessing.dummy)
    patch = pytest.MonkeyPatch()
    patch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.multiprocessing", threads)
    patch.setattr("nnunetv2.evaluation.evaluate_predictions.multiprocessing", threads)
    patch.setattr(SoftSegLogger, "plot_progress_png", lambda *_: None)  # takes seconds
    trainer = nnUNetTrainerSoftSegDemo(small_plans(dataset), "3d_fullres", 0, dataset.dataset_json, CPU)
    trainer.num_epochs = trainer.num_val_iterations_per_epoch = 1
    trainer.num_iterations_per_epoch = 2
    trainer.run_training()
    trainer.perform_actual_validation()
    patch.undo()
    return Path(trainer.output_folder_base)


def test_the_fold_is_measured_where_it_was_annotated(trained: Path, dataset: TinyDataset) -> None:
    summary = json.loads((trained / "fold_0/validation/summary_soft.json").read_text())
    (case,) = summary["cases"]
    of_cord = fractions()[1][..., KNOWN].sum() * np.prod(nib.load(dataset.image(case)).header.get_zooms())
    assert set(summary["cases"][case]) == {"cord", "grey"}
    assert summary["cases"][case]["cord"]["reference_volume_mm3"] == pytest.approx(of_cord, rel=1e-4)
    known = np.zeros(SHAPE, dtype=bool)
    known[..., KNOWN] = True
    expected = np.where(known, fractions()[1], 0)
    found = nib.load(trained / f"fold_0/validation/soft/{case}_0001.nii.gz").get_fdata()
    error = np.abs(found - expected)[known].mean()
    assert summary["cases"][case]["cord"]["mae"] == pytest.approx(error, abs=1e-4)
    spacing_mm = nib.load(dataset.image(case)).header.get_zooms()
    curve = reliability_curve(expected, expected, spacing_mm, unknown=~known)
    beyond = np.count_nonzero(found[known]) - np.count_nonzero(expected)
    counted = sum(summary["reliability"]["cord"]["num_voxels"])
    assert curve.num_voxels.sum() <= counted <= curve.num_voxels.sum() + max(beyond, 0)


def test_the_summary_leaves_out_what_is_ignored_without_the_images(
    trained: Path, dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = json.loads((trained / "fold_0/validation/summary_soft.json").read_text())["cases"]
    copy = dataset.copied(tmp_path / "nnunet", monkeypatch)
    predictions = copy.root / trained.relative_to(dataset.root) / "fold_0/validation"
    content = copy.dataset_json
    shutil.rmtree(copy.raw / "imagesTr")
    write_soft_summary(predictions, copy.raw / "softLabelsTr", content)
    assert json.loads((predictions / "summary_soft.json").read_text())["cases"] == expected


def test_predictions_have_a_soft_map_for_each_region_and_the_inner_one_on_top(
    trained: Path, dataset: TinyDataset, tmp_path: Path
) -> None:
    report = predict(dataset.image(CASES[0]), tmp_path / "out", trained, device="cpu", progress=False)
    assert not report.failed
    case = report.predicted[0]
    cord, grey = (
        nib.load(tmp_path / f"out/soft/{case}_{number:04d}.nii.gz").get_fdata() for number in (1, 2)
    )
    label_map = nib.load(tmp_path / f"out/{case}.nii.gz").get_fdata()
    np.testing.assert_array_equal(label_map, np.where(grey > 0.5, 2, np.where(cord > 0.5, 1, 0)))


def test_an_edited_dataset_json_is_named(trained: Path, dataset: TinyDataset, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(trained, model)
    for labels, order, message in [
        ({"cord": [1, 2], "grey": 2}, [2, 1], "dataset.json: regions are not nested"),
        ({"cord": 1, "ignore": 3}, None, 'dataset.json: .*"ignore": 2, the highest value'),
        (
            {"cord": 1},
            None,
            "dataset.json: expected the labels of the training, cord, grey, found cord: copy",
        ),
    ]:
        content = {
            **dataset.dataset_json,
            "labels": {"background": 0, **labels},
            "regions_class_order": order,
        }
        (model / "dataset.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            predict(dataset.image(CASES[0]), tmp_path / "out", model, device="cpu", progress=False)


def test_the_dataset_is_right(dataset: TinyDataset) -> None:
    report = check(101, 0, progress=False)
    assert report.errors == ()
    assert any("labels are unknown in parts of 3 cases" in str(warning) for warning in report.warnings)
    assert not any("overlap" in str(warning) for warning in report.warnings)  # grey matter lies in the cord


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
def test_readers_keep_what_is_unknown(reader: str, tmp_path: Path) -> None:
    from nnunet_softseg.datasets.soft_label import find_reader, read_soft_label

    values = fractions()[1]
    values[3, 4, 5:7] = np.nan
    save_nifti(tmp_path / "a_0001.nii.gz", values, affine_of())
    label, _ = read_soft_label(tmp_path / "a_0001.nii.gz", find_reader(reader))
    assert np.argwhere(np.isnan(label)).tolist() == [[5, 4, 3], [6, 4, 3]]
