"""The trainer on a tiny dataset: what its batches, loss, checkpoints and refusals are."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blosc2
import nibabel as nib
import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tiny_dataset import (
    TinyDataset,
    affine_of,
    in_this_process,
    make_ready_to_train,
    make_tiny_dataset,
    plan_and_preprocess,
    small_plans,
    use,
)

from nnunet_softseg.errors import UserError
from nnunet_softseg.inference.case_record import reported_cases
from nnunet_softseg.inference.export import report_case
from nnunet_softseg.network.of_plans import running_scale
from nnunet_softseg.preprocessing.output_scale import OutputScale
from nnunet_softseg.preprocessing.preparation import soft_target_folder
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings
from nnunet_softseg.training import trainer as trainer_module
from nnunet_softseg.training.trainer import CosineSchedule, adam, nnUNetTrainerSoftSeg
from nnunet_softseg.training.training_log import COARSE_SCALES, SoftSegLogger
from nnunet_softseg.training.variants import nnUNetTrainerSoftSegRawLoss, nnUNetTrainerSoftSegSlidingWindow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyDataset]:
    """Two labels, images longer along S-I than the patch; nnU-Net's folders stay set for the module."""
    patch = pytest.MonkeyPatch()
    tiny = make_tiny_dataset(
        tmp_path_factory.mktemp("trainer"), labels=(1, 2), shape=(26, 30, 44), reader="NibabelIOWithReorient"
    )
    make_ready_to_train(tiny, patch)
    yield tiny
    patch.undo()


def make(
    dataset: TinyDataset, cls: type[nnUNetTrainerSoftSeg] = nnUNetTrainerSoftSeg, **changes: Any
) -> nnUNetTrainerSoftSeg:
    plans = small_plans(dataset)
    plans.update(changes)
    made = cls(plans, "3d_fullres", "all", dataset.dataset_json, CPU)
    made.num_iterations_per_epoch = made.num_val_iterations_per_epoch = 2
    made.num_epochs = 2
    return made


@pytest.fixture
def started(dataset: TinyDataset) -> nnUNetTrainerSoftSeg:
    made = make(dataset)
    made.on_train_start()
    return made


def test_batches_hold_the_soft_label_of_the_fixed_patch(
    started: nnUNetTrainerSoftSeg, dataset: TinyDataset
) -> None:
    """A validation batch, not augmented, is a piece of the stored target, bit by bit, in the box's place."""
    batch = next(started.dataloader_val)
    assert batch["data"].shape == (2, 1, 24, 16, 16)
    full, half = batch["target"]
    assert full.dtype == torch.float32
    assert full.shape == (2, 2, 24, 16, 16)
    assert half.shape == (2, 2, 12, 8, 8)
    torch.testing.assert_close(half, torch.nn.functional.avg_pool3d(full, 2))
    folder = soft_target_folder(dataset.preprocessed / "nnUNetPlans_3d_fullres")
    for sample, case in enumerate(batch["keys"]):
        stored = np.asarray(blosc2.open(str(folder / f"{case}.b2nd"))[:], dtype=np.float32)
        y, x = ((size - 16) // 2 for size in stored.shape[2:])
        candidates = [stored[:, z : z + 24, y : y + 16, x : x + 16] for z in range(stored.shape[1] - 23)]
        assert any(np.array_equal(candidate, full[sample].numpy()) for candidate in candidates)
    values = full[(full > 0) & (full < 1)]
    assert len(torch.unique(values)) > 50  # continuous, not a handful of levels


def test_training_batches_stay_soft_through_augmentation(started: nnUNetTrainerSoftSeg) -> None:
    for _ in range(4):
        target = next(started.dataloader_train)["target"][0]
        assert float(target.min()) >= 0
        assert float(target.max()) <= 1
        assert len(torch.unique(target)) > 50


@pytest.mark.parametrize(
    ("trainer", "largest"), [(nnUNetTrainerSoftSeg, 2.0), (nnUNetTrainerSoftSegSlidingWindow, 1 / 0.7)]
)
def test_a_fixed_patch_comes_with_a_wider_zoom(
    dataset: TinyDataset, trainer: type[nnUNetTrainerSoftSeg], largest: float
) -> None:
    made = make(dataset, trainer)
    made.on_train_start()
    framed = made.get_training_transforms((24, 16, 16), (0, 0), None, (), False)
    zoom = next(each for each in framed.transforms[1].transforms if isinstance(each, SpatialTransform))
    assert zoom.scaling == (pytest.approx(1 / largest), 1.4)


def test_what_is_saved_with_the_model_names_our_parts_and_the_original_plans_do_not(
    started: nnUNetTrainerSoftSeg, dataset: TinyDataset
) -> None:
    saved = Path(started.output_folder_base) / "plans.json"
    plans = json.loads(saved.read_text())
    assert plans["label_manager"] == "SoftLabelManager"
    assert plans["configurations"]["3d_fullres"]["preprocessor_name"] == "SoftSegPreprocessor"
    assert plans[PLANS_KEY]["si_axis"] == 0
    assert plans[PLANS_KEY]["orientation"] == "SAR"
    assert plans[PLANS_KEY]["settings"]["num_epochs"] == 200
    assert set(plans[PLANS_KEY]["training_shapes"]) == {"label1", "label2"}
    assert plans[PLANS_KEY]["training_shapes"]["label1"]["components"] == [1, 1]  # one ball per image
    # Blurred balls, on images of the network's own grid.
    assert plans[PLANS_KEY]["to_image_grid"] == {"label1": "linear", "label2": "linear"}
    assert dataset.plans()["label_manager"] == "LabelManager"
    record = json.loads((Path(started.output_folder) / "softseg_training.json").read_text())
    assert set(record["kept_label_mass"]) == set(dataset.cases)


def test_the_training_cases_of_each_fold_are_kept_with_the_plans(
    dataset: TinyDataset, tmp_path: Path
) -> None:
    made = make(dataset)
    made.output_folder_base = str(tmp_path)
    (tmp_path / "plans.json").write_text(json.dumps({PLANS_KEY: {"training_cases": {"0": ["sub-07_T2w"]}}}))
    training, _ = made.do_split()
    kept = made.plans_manager.plans[PLANS_KEY]["training_cases"]
    assert kept == {"0": ["sub-07_T2w"], "all": sorted(training)}
    assert len(training) > 1


def test_folds_that_start_together_keep_the_cases_of_both(dataset: TinyDataset, tmp_path: Path) -> None:
    """Another fold has written its own while this one prepared."""
    made = make(dataset)
    made.output_folder_base, made.output_folder = str(tmp_path), str(tmp_path / "fold_all")
    made.initialize()
    prepare = made._prepare_soft_targets

    def prepare_beside_another() -> Any:
        others = {PLANS_KEY: {"training_cases": {"0": ["sub-07_T2w"]}}}
        (tmp_path / "plans.json").write_text(json.dumps(others))
        return prepare()

    made._prepare_soft_targets = prepare_beside_another  # type: ignore[method-assign]
    made.on_train_start()
    written = json.loads((tmp_path / "plans.json").read_text())[PLANS_KEY]["training_cases"]
    assert written == {"0": ["sub-07_T2w"], "all": sorted(made.do_split()[0])}


def test_folds_that_make_their_networks_at_the_same_time_keep_the_cases_of_all(
    dataset: TinyDataset, tmp_path: Path
) -> None:
    """Another writes its record and the plans after this one has read them, before it writes its own."""
    made = make(dataset)
    made.output_folder_base, made.output_folder = str(tmp_path), str(tmp_path / "fold_all")
    made.initialize()
    load = made.get_dataloaders

    def load_beside_another() -> Any:
        others = {"training_cases": {"0": ["sub-07_T2w"], "all": ["sub-08_T2w"]}}
        (tmp_path / "plans.json").write_text(json.dumps({PLANS_KEY: others}))
        (tmp_path / "fold_0").mkdir()
        (tmp_path / "fold_0/softseg_training.json").write_text(json.dumps(others))
        return load()

    made.get_dataloaders = load_beside_another  # type: ignore[method-assign]
    made.on_train_start()
    written = json.loads((tmp_path / "plans.json").read_text())
    assert written[PLANS_KEY]["training_cases"] == {"0": ["sub-07_T2w"], "all": sorted(made.do_split()[0])}
    assert written["configurations"] == made.plans_manager.plans["configurations"]


def test_plans_that_another_fold_is_writing_are_read_again(
    dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, text = make(dataset), json.dumps({PLANS_KEY: {"output_scales": {"label1": {}}}})
    made.output_folder_base = str(tmp_path)
    (tmp_path / "plans.json").write_text(text[:20])
    monkeypatch.setattr("time.sleep", lambda _: (tmp_path / "plans.json").write_text(text))
    assert made._kept_entry() == {"output_scales": {"label1": {}}}
    (tmp_path / "plans.json").write_text(text[:20])
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(UserError, match=r"plans\.json: expected JSON"):
        made._kept_entry()


def test_training_that_goes_on_begins_coarse_levels_with_the_scale_of_the_checkpoint(
    dataset: TinyDataset,
) -> None:
    made = make(dataset)
    made.initialize()
    running_scale(made.network).fill_(5)  # as a checkpoint does
    made.on_train_start()
    _, *coarse = made.loss._scales
    assert [each.tolist() for each in coarse] == [[5, 5]] * len(coarse)
    assert coarse


SCALE = {"output_scale": "case", "height": 0.97, "core_threshold": 0.5, "support_threshold": 0.05}


def before(made: nnUNetTrainerSoftSeg, folder: Path, **scale: Any) -> None:
    """Let another fold of the model be there, trained on this output scale."""
    made.output_folder_base, made.output_folder = str(folder), str(folder / "fold_all")
    kept = {name: {**SCALE, **scale} for name in ("label1", "label2")}
    (folder / "plans.json").write_text(json.dumps({PLANS_KEY: {"output_scales": kept}}))
    (folder / "fold_3").mkdir()
    (folder / "fold_3" / "checkpoint_final.pth").touch()


def test_folds_of_one_model_have_one_output_scale(dataset: TinyDataset, tmp_path: Path) -> None:
    made = make(dataset)
    made.on_train_start()
    height = made._output_scales[0].height
    for number, scale in enumerate(
        ({"output_scale": "fixed", "height": height}, {"height": height - 0.05}, {"height": height - 0.01})
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        other = make(dataset)
        before(other, folder, **scale)
        if number == 2:
            other.on_train_start()
            continue
        with pytest.raises(UserError, match=r"scale of label1 that fold_3 was trained on \((case|fixed)"):
            other.on_train_start()
        (folder / "fold_3" / "checkpoint_final.pth").unlink()
        other.on_train_start()  # the remedy


def test_settings_overrule_the_thresholds_of_a_training_that_goes_on_but_not_its_scale(
    dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for validates in (False, True):
        folder = tmp_path / str(validates)
        folder.mkdir()
        monkeypatch.setattr(nnUNetTrainerSoftSeg, "settings", SoftSegSettings(core_threshold=0.2))
        made = make(dataset)
        before(made, folder)
        made.current_epoch, made.local_rank = 1, int(validates)
        monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda *_: None)
        start = made.perform_actual_validation if validates else made.on_train_start
        start()
        found = [(scale.core_threshold, scale.support_threshold) for scale in made._output_scales]
        assert found == [(0.2, 0.05)] * 2
    monkeypatch.setattr(nnUNetTrainerSoftSeg, "settings", SoftSegSettings(output_scale="fixed"))
    made = make(dataset)
    before(made, tmp_path)
    made.current_epoch = 1
    with pytest.raises(UserError, match='setting output_scale: expected "auto" or "case", that of label1'):
        made.on_train_start()


def test_validation_alone_takes_what_the_training_has_kept(
    dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nnUNetv2_train --val`: maps come the same way, on the same scale, flagged by the same shapes."""
    kept = {
        "to_image_grid": {"label1": "fractions", "label2": "inverse"},
        "output_scales": {"label1": dataclasses.asdict(OutputScale("fixed", 0.5))},
        "training_shapes": {"label1": {"components": [1, 4]}},
    }
    made, seen = make(dataset), {}
    made.output_folder_base, made.local_rank = str(tmp_path), 1  # without a summary, which reads maps
    (tmp_path / "plans.json").write_text(json.dumps({PLANS_KEY: kept}))
    stock = "perform_actual_validation"
    monkeypatch.setattr(
        nnUNetTrainer, stock, lambda self, _: seen.update(self.plans_manager.plans[PLANS_KEY])
    )
    made.perform_actual_validation()
    assert {key: seen[key] for key in kept} == kept


def test_validation_alone_of_a_model_of_before_has_the_thresholds_of_then(
    dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has kept no output scales; its label map of the next stage is made with those of the function."""
    made = make(dataset)
    made.output_folder_base, made.local_rank = str(tmp_path), 1
    (tmp_path / "plans.json").write_text(json.dumps({PLANS_KEY: {}}))
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda *_: None)
    made.perform_actual_validation()
    assert "output_scales" not in made.plans_manager.plans[PLANS_KEY]
    configurations = made.plans_manager.plans["configurations"].values()
    kwargs = [each.get("resampling_fn_probabilities_kwargs", {}) for each in configurations]
    assert not any("core_threshold" in each for each in kwargs)


def test_in_its_validation_a_fold_has_seen_what_it_was_trained_on_and_nothing_else(
    dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cases are those that the other folds were trained on, and would all be flagged."""
    made, seen = make(dataset), {}
    made.output_folder_base, made.local_rank = str(tmp_path), 1  # without a summary, which reads maps
    others = {"0": ["sub-07_T2w"]}
    (tmp_path / "plans.json").write_text(json.dumps({PLANS_KEY: {"training_cases": others}}))
    monkeypatch.setattr(
        nnUNetTrainer,
        "perform_actual_validation",
        lambda self, _: seen.update(self.plans_manager.plans[PLANS_KEY]["training_cases"]),
    )
    made.perform_actual_validation()
    training, _ = made.do_split()
    assert seen == {"all": sorted(training)}
    assert made.plans_manager.plans[PLANS_KEY]["training_cases"] == {**others, **seen}


def test_maps_of_cases_that_a_fold_no_longer_validates_on_go(
    dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left by a training by another split, they would count in its means, and as its maps in all folds'."""
    made = make(dataset)
    made.output_folder_base = made.output_folder = str(tmp_path)
    validation, own = tmp_path / "validation", dataset.cases[0]
    (validation / "soft").mkdir(parents=True)
    left = [validation / "sub-77_T2w.nii.gz", validation / "soft" / "sub-77_T2w_0001.nii.gz"]
    kept = [validation / f"{own}.nii.gz", validation / "soft" / f"{own}_0002.nii.gz"]
    for file in (*left, *kept):
        file.touch()
    report_case(validation / "sub-77_T2w", {"trainer": "T"}, {})
    report_case(validation / own, {"trainer": "T"}, {})
    seen: list[Path] = []
    monkeypatch.setattr(
        nnUNetTrainer,
        "perform_actual_validation",
        lambda self, _: seen.extend(file for file in validation.rglob("*.nii.gz")),
    )
    monkeypatch.setattr(trainer_module, "write_soft_summary", lambda *_: None)
    made.perform_actual_validation()
    assert sorted(seen) == sorted(kept)
    assert list(reported_cases(validation)) == [own]


CASES = ["sub-01_T1w", "sub-01_T2w", "sub-02_T2w"]


@pytest.mark.parametrize(
    ("fold", "splits", "match"),
    [
        (1, [{"train": CASES, "val": CASES}, {"train": CASES, "val": []}], "fold 1 has no validation case"),
        (0, [{"train": [], "val": CASES}], "fold 0 has no training case"),
        (0, [{"train": ["sub-99_T2w"], "val": CASES}], "fold 0 names unknown cases: .*found sub-99_T2w"),
        (0, [{"train": CASES}], "fold 0 is no split"),
        (0, [{"train": [1, 2], "val": [3]}], "fold 0 is no split"),
        (0, [{"train": [CASES], "val": CASES}], "fold 0 is no split"),
        (0, {"train": CASES, "val": CASES}, "fold 0 is no split"),
        (-1, [{"train": CASES, "val": CASES}], "fold -1 is no split"),
        (0, None, "nnU-Net cannot split so few cases: expected at least 5 cases, found 3: train fold"),
    ],
)
def test_folds_that_cannot_be_trained_on_are_refused_before_anything_is_prepared(
    dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch, fold: int, splits: Any, match: str
) -> None:
    monkeypatch.setattr(trainer_module, "prepare_soft_targets", lambda *_, **__: pytest.fail("prepared"))
    made = make(dataset)
    made.fold = fold
    file = dataset.preprocessed / "splits_final.json"
    if splits is not None:
        file.write_text(json.dumps(splits))
    try:
        with pytest.raises(UserError, match=f"splits_final.json: {match}"):
            made.on_train_start()
    finally:
        file.unlink(missing_ok=True)


def test_for_a_fold_beyond_those_of_the_file_nnunet_draws_a_split(dataset: TinyDataset) -> None:
    file = dataset.preprocessed / "splits_final.json"
    file.write_text(json.dumps([{"train": CASES[:1], "val": CASES[1:]}]))
    made = make(dataset)
    made.fold = 7
    training, validation = made.do_split()
    file.unlink()
    assert (len(training), sorted([*training, *validation])) == (2, CASES)


def test_one_epoch_learns_validates_and_resumes(dataset: TinyDataset) -> None:
    first = make(dataset)
    first.run_training()
    assert first.logger.get_value("soft_dice", None)[0] != first.logger.get_value("soft_dice", None)[1]
    assert float(running_scale(first.network).min()) > 0
    path = str(Path(first.output_folder) / "checkpoint_final.pth")
    again = make(dataset)
    again.load_checkpoint(path)
    torch.testing.assert_close(running_scale(again.network), running_scale(first.network))
    assert again.current_epoch == 2
    coarse = first.loss.coarse_scales
    assert coarse
    assert again.logger.get_value(COARSE_SCALES, None)[-1] == coarse
    assert again.logger.get_value("soft_dice", None) == first.logger.get_value("soft_dice", None)
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name
    # the loss keeps writing to the buffer of the network that was loaded
    assert again.loss._scales[0] is running_scale(again.network)


def test_a_model_of_two_labels_predicts_a_soft_map_of_each(dataset: TinyDataset, tmp_path: Path) -> None:
    """Through nnU-Net's predictor, from the folder that the training wrote, with fold "all"."""
    made = make(dataset)
    made.run_training()
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(made.output_folder_base, ("all",))
    assert type(predictor.network).__name__ == "PlainConvUNet"
    assert predictor.label_manager.num_segmentation_heads == 2
    images = [[str(dataset.image(case))] for case in dataset.cases]
    predictor.predict_from_files_sequential(images, [str(tmp_path / case) for case in dataset.cases])
    report = json.loads((tmp_path / "softseg.json").read_text())
    for case in dataset.cases:
        label_map = np.asarray(nib.load(tmp_path / f"{case}.nii.gz").dataobj)
        soft = [
            np.asarray(nib.load(tmp_path / "soft" / f"{case}_{label:04d}.nii.gz").dataobj) for label in (1, 2)
        ]
        expected = np.where(soft[1] > 0.5, 2, soft[0] > 0.5)  # the later value on top
        np.testing.assert_array_equal(label_map, expected)
        assert set(report["cases"][case]["labels"]) == {"label1", "label2"}


def test_the_two_ways_to_train_differ_only_in_the_loss(dataset: TinyDataset) -> None:
    normalised, raw = make(dataset), make(dataset, nnUNetTrainerSoftSegRawLoss)
    normalised.initialize()
    raw.initialize()
    # labels of constant height, whose robust peak is that height
    target = [(torch.rand(2, 2, 24, 16, 16) > 0.5).float(), (torch.rand(2, 2, 12, 8, 8) > 0.5).float()]
    doubled = [2 * level for level in target]
    assert float(normalised.loss(doubled, target)) < 1e-6  # free of scale
    assert float(raw.loss(doubled, target)) > 0.5
    assert float(raw.loss(target, target)) == 0


def test_a_vanilla_checkpoint_serves_for_fine_tuning(dataset: TinyDataset, tmp_path: Path) -> None:
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    vanilla = nnUNetTrainer(small_plans(dataset), "3d_fullres", "all", dataset.dataset_json, CPU)
    vanilla.initialize()
    vanilla.save_checkpoint(str(tmp_path / "vanilla.pth"))
    ours = make(dataset)
    ours.initialize()
    load_pretrained_weights(ours.network, str(tmp_path / "vanilla.pth"))
    source, loaded = vanilla.network.state_dict(), ours.network.state_dict()
    for name in source:
        assert ".seg_layers." in name or torch.equal(source[name], loaded[name]), name


def test_a_checkpoint_of_ours_serves_for_fine_tuning_of_a_vanilla_network(
    dataset: TinyDataset, tmp_path: Path
) -> None:
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    ours = make(dataset)
    ours.initialize()
    ours.save_checkpoint(str(tmp_path / "ours.pth"))
    vanilla = nnUNetTrainer(small_plans(dataset), "3d_fullres", "all", dataset.dataset_json, CPU)
    vanilla.initialize()
    load_pretrained_weights(vanilla.network, str(tmp_path / "ours.pth"))
    source, loaded = ours.network.state_dict(), vanilla.network.state_dict()
    for name in loaded:
        assert ".seg_layers." in name or torch.equal(source[name], loaded[name]), name
    # Nothing in it needs this package to be read.
    assert b"nnunet_softseg." not in (tmp_path / "ours.pth").read_bytes()


def test_plans_of_another_dataset_serve(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
    from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import (
        move_plans_between_datasets,
    )

    other = make_tiny_dataset(
        dataset.root, labels=(1, 2), name="Dataset102_Moved", shape=(22, 24, 28),
        reader="NibabelIOWithReorient",
    )  # fmt: skip
    monkeypatch.delenv("nnUNet_n_proc_DA")
    plan_and_preprocess(other, spacing_mm=(2.0, 2.0, 2.0))
    move_plans_between_datasets(101, 102, "nnUNetPlans", "nnUNetMovedPlans")
    with in_this_process():
        preprocess_dataset(
            102, "nnUNetMovedPlans", ["3d_fullres"], num_processes=[1], show_progress_bar=False
        )
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    plans = {**small_plans(dataset), **{"dataset_name": other.name, "plans_name": "nnUNetMovedPlans"}}
    moved = plans["configurations"]["3d_fullres"]
    moved["data_identifier"] = other.plans("nnUNetMovedPlans")["configurations"]["3d_fullres"][
        "data_identifier"
    ]
    made = nnUNetTrainerSoftSeg(plans, "3d_fullres", "all", other.dataset_json, CPU)
    made.on_train_start()
    assert moved["spacing"] == dataset.plans()["configurations"]["3d_fullres"]["spacing"]
    batch = next(made.dataloader_val)
    assert batch["target"][0].shape == (2, 2, 24, 16, 16)
    assert soft_target_folder(other.preprocessed / "nnUNetMovedPlans_3d_fullres").is_dir()


def test_sliding_window_draws_patches_as_nnunet_does(dataset: TinyDataset) -> None:
    made = make(dataset, nnUNetTrainerSoftSegSlidingWindow)
    made.on_train_start()
    assert made.si_axis is None
    assert made.oversample_foreground_percent == pytest.approx(0.33)
    case, _, _, properties = made.get_tr_and_val_datasets()[0].load_case(dataset.cases[0])
    assert set(properties["class_locations"]) == {1, 2}  # the rest anywhere, as nnU-Net's key -1 is no label
    for label, rows in properties["class_locations"].items():
        soft = case[:, :, :, :][label]  # behind the one channel of the image
        assert (soft[tuple(rows[:, 1:].T)] > 0.5 * soft.max()).all()
        assert len(rows) > 0


def test_a_broken_fingerprint_is_refused(dataset: TinyDataset) -> None:
    made = make(dataset)
    broken = dataset.preprocessed / "dataset_fingerprint.json"
    before = broken.read_bytes()
    broken.write_text("{")
    try:
        with pytest.raises(UserError, match=r"dataset_fingerprint.json: expected JSON, found"):
            made.on_train_start()
    finally:
        broken.write_bytes(before)


def test_a_silent_network_stops_the_run_with_an_explanation(dataset: TinyDataset) -> None:
    made = make(dataset)
    made.initialize()
    sums = {"target_sum": np.array([100.0, 50.0]), "overlap_sum": np.array([40.0, 0.0])}
    for _ in range(made.settings.collapse_patience - 1):
        made._watch_for_collapse(sums)
    made._watch_for_collapse(
        {**sums, "overlap_sum": np.array([40.0, 1.0])}
    )  # a sign of life starts the count anew
    for _ in range(made.settings.collapse_patience - 1):
        made._watch_for_collapse(sums)
    with pytest.raises(
        UserError, match=r"10 epochs the network has put out nothing.*smaller learning rate \(now 0.001\)"
    ):
        made._watch_for_collapse(sums)


def test_labels_that_are_silent_in_turn_do_not_stop_the_run(dataset: TinyDataset) -> None:
    made = make(dataset)
    made.initialize()
    seen = np.array([100.0, 50.0])
    for epoch in range(3 * made.settings.collapse_patience):
        made._watch_for_collapse({"target_sum": seen, "overlap_sum": np.array([epoch % 2, 1 - epoch % 2])})
    name = made.label_manager.scheme.names[1]
    made._watch_for_collapse({"target_sum": seen, "overlap_sum": np.array([1.0, 1.0])})
    silent = {"target_sum": seen, "overlap_sum": np.array([1.0, 0.0])}
    for _ in range(made.settings.collapse_patience - 1):
        made._watch_for_collapse(silent)
        made._watch_for_collapse({**silent, "target_sum": seen * [1, 0]})  # does not show it: says nothing
    with pytest.raises(UserError, match=f"nothing where {name} is"):
        made._watch_for_collapse(silent)


def test_the_seed_is_that_of_the_weights_before_training_starts_too(
    dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fine-tuning makes the network, of which it loads all but the last layers, before it."""
    monkeypatch.setattr(nnUNetTrainerSoftSeg, "settings", SoftSegSettings(seed=3))
    weights = []
    for _ in range(2):
        torch.rand(7)
        made = make(dataset)
        made.initialize()
        weights.append({name: value.clone() for name, value in made.network.state_dict().items()})
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_the_environment_seeds_a_training_of_any_subclass(
    dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer of `nnUNet_extTrainer` is a subclass with settings of its own; the plans keep the seed."""

    class nnUNetTrainerOwn(nnUNetTrainerSoftSeg):  # noqa: N801
        settings = SoftSegSettings(seed=3, num_epochs=7)

    plans = small_plans(dataset)
    for word, seed in {"11": 11, "0": 0, "": 3}.items():
        monkeypatch.setenv("NNUNET_SOFTSEG_SEED", word)
        made = nnUNetTrainerOwn(plans, "3d_fullres", 0, dataset.dataset_json, CPU)
        assert (made.settings.seed, made.num_epochs) == (seed, 7)
        assert made.plans_manager.plans["nnunet_softseg"]["settings"]["seed"] == seed
    assert nnUNetTrainerOwn.settings.seed == 3
    monkeypatch.setenv("NNUNET_SOFTSEG_SEED", "-1")
    with pytest.raises(UserError, match="NNUNET_SOFTSEG_SEED: expected a whole number from 0 on, found '-1'"):
        nnUNetTrainerOwn(plans, "3d_fullres", 0, dataset.dataset_json, CPU)


def test_the_best_checkpoint_is_found_after_epochs_without_a_dice(
    dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, saved = make(dataset), list[tuple[int, str]]()
    made.loss = SimpleNamespace(coarse_scales=[])
    monkeypatch.setattr(SoftSegLogger, "plot_progress_png", lambda *_: None)
    monkeypatch.setattr(
        made, "save_checkpoint", lambda file: saved.append((made.current_epoch, Path(file).name))
    )
    for epoch, dice in enumerate([math.nan, 0.4, math.nan, 0.6, 0.1]):
        made.on_epoch_start()
        for name in ("train_losses", "val_losses"):
            made.logger.log(name, 1.0, epoch)
        for name in ("dice_per_class_or_region", *SoftSegLogger.MEASURES):
            made.logger.log(name, [dice, dice], epoch)
        made.logger.log("mean_fg_dice", dice, epoch)
        made.on_epoch_end()
    assert saved == [(epoch, "checkpoint_best.pth") for epoch in (0, 1, 3)]


def test_a_training_that_is_killed_while_it_saves_keeps_the_checkpoint_of_before(
    dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, file = make(dataset), tmp_path / "checkpoint_latest.pth"
    made.initialize()
    made.save_checkpoint(str(file))
    before, save = file.read_bytes(), torch.save

    def killed(checkpoint: Any, to: Any) -> None:
        save({**checkpoint, "network_weights": {}}, to)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            made.save_checkpoint(str(file))
    assert file.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [file.name]
    made.current_epoch = 1
    made.save_checkpoint(str(file))
    again = make(dataset)
    again.load_checkpoint(str(file))
    assert again.current_epoch == 2
    made.disable_checkpointing = True
    made.save_checkpoint(str(tmp_path / "none.pth"))
    assert not (tmp_path / "none.pth").exists()


def test_adam_is_fused_and_takes_adams_steps() -> None:
    """Kingma, Ba 2015, algorithm 1, with L2 regularisation, in plain arithmetic."""
    weights = np.array([0.5, -1.0, 2.0])
    parameter = torch.nn.Parameter(torch.from_numpy(weights.copy()))
    optimizer = adam([parameter], 0.1, 0.01)
    assert optimizer.defaults["fused"]
    first, second = np.zeros(3), np.zeros(3)
    for step in range(1, 6):
        optimizer.zero_grad()
        (parameter**3).sum().backward()
        optimizer.step()
        slope = 3 * weights**2 + 0.01 * weights
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        height = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        weights = weights - 0.1 * first / (1 - 0.9**step) / height
        np.testing.assert_allclose(parameter.detach().numpy(), weights, rtol=1e-6)


def test_where_torch_cannot_fuse_adam_it_takes_steps_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = torch.optim.Adam

    def without_kernel(*args: Any, **options: Any) -> torch.optim.Adam:
        if options.pop("fused", False):
            raise RuntimeError("fused is not supported on this device")
        return stock(*args, **options)

    monkeypatch.setattr(torch.optim, "Adam", without_kernel)
    optimizer = adam([torch.nn.Parameter(torch.zeros(1))], 0.1, 0.01)
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.1, 0.01)
    assert not optimizer.defaults["fused"]


def test_cosine_schedule() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter], 1e-3)
    schedule = CosineSchedule(optimizer, 1e-3, 200)
    for epoch, expected in [(0, 1e-3), (100, 5e-4), (50, 1e-3 * (2 + math.sqrt(2)) / 4), (200, 0.0)]:
        schedule.step(epoch)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"background": 0, "a": 1, "ignore": 3}}, "ignore.*: 2, the highest value, found 3"),
        (
            {"labels": {"background": 0, "a": [1, 2], "b": 2}, "regions_class_order": [2, 1]},
            "regions are not nested: .*value 2 painted on it, which is wrong for b: list nested regions",
        ),
    ],
)
def test_labels_that_do_not_fit_together_are_refused(
    dataset: TinyDataset, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        nnUNetTrainerSoftSeg(small_plans(dataset), "3d_fullres", 0, {**dataset.dataset_json, **change}, CPU)


def test_mixed_orientations_are_refused_with_the_way_out(
    dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = make_tiny_dataset(
        tmp_path,
        ("sub-01_T1w", "sub-02_T1w"),
        shape=(26, 26, 26),
        affines=(affine_of("LAS"), affine_of("PSR")),
        reader="NibabelIO",
    )
    monkeypatch.delenv("nnUNet_n_proc_DA")
    use(mixed, monkeypatch)
    plan_and_preprocess(mixed, spacing_mm=(1.0, 1.0, 1.0))
    with pytest.raises(UserError, match=r"mixed orientations.*NibabelIOWithReorient"):
        make(mixed).on_train_start()


def test_rank_zero_prepares_and_the_others_wait_for_its_files(
    dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under DDP: no barrier that could time out while a large dataset is prepared, one when it is."""
    calls: list[str] = []
    answers = iter([False, False, True])

    def prepared(*_: object, **__: object) -> SimpleNamespace:
        calls.append("prepare")
        return SimpleNamespace(warnings=())

    monkeypatch.setattr(trainer_module, "prepare_soft_targets", prepared)
    monkeypatch.setattr(trainer_module, "all_up_to_date", lambda _: calls.append("ask") or next(answers))
    monkeypatch.setattr(trainer_module.time, "sleep", lambda _: calls.append("sleep"))
    monkeypatch.setattr(trainer_module.dist, "barrier", lambda: calls.append("barrier"))
    made = make(dataset)
    made.is_ddp, made.local_rank = True, 1
    made._prepare_soft_targets()
    assert calls == ["ask", "sleep", "ask", "sleep", "ask", "prepare", "barrier"]
    calls.clear()
    made.local_rank = 0
    made._prepare_soft_targets()
    assert calls == ["prepare", "barrier"]


def test_settings_of_the_loss_and_the_optimiser_are_followed(
    dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = torch.zeros(1, 1, 4, 4, 4)
    target[..., 1, 1, 1] = 1
    prediction = torch.full_like(target, 0.5)
    total = make(dataset).voxel_loss()(prediction, target)

    changed = dataclasses.replace(
        nnUNetTrainerSoftSeg.settings, loss_reduction="mean", optimizer="sgd", adaptive_exponent=True
    )
    monkeypatch.setattr(nnUNetTrainerSoftSeg, "settings", changed)
    trainer = make(dataset)
    trainer.initialize()
    other = trainer.voxel_loss()(prediction, target)

    curve = 8 * math.log(1 + 0.5**2.1)
    at_one = 8 * math.log(1 + 0.5**1.1)
    assert float(total) == pytest.approx(64 * curve, rel=1e-5)
    assert float(other) == pytest.approx((63 * curve + at_one) / 64, rel=1e-5)
    assert isinstance(trainer.optimizer, torch.optim.SGD)
    assert isinstance(trainer.lr_scheduler, PolyLRScheduler)
