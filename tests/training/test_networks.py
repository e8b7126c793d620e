"""Networks of other shapes: ResEnc, Primus, classes of other packages; trainers of `nnUNet_extTrainer`."""

import dataclasses
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nnunet_threads import threads_in_place_of_processes
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.model_export import export_pretrained_model
from nnunetv2.model_sharing.model_import import install_model_from_zip_file
from nnunetv2.training.nnUNetTrainer.primus.primus_trainers import nnUNet_Primus_S_Trainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from tiny_dataset import TinyDataset, make_ready_to_train, make_tiny_dataset, small_plans

from nnunet_softseg.errors import UserError
from nnunet_softseg.inference.predict import predict
from nnunet_softseg.network.of_plans import has_deep_supervision, network_of_plans
from nnunet_softseg.training.trainer import nnUNetTrainerSoftSeg

CPU = torch.device("cpu")
SHORT = dataclasses.replace(
    nnUNetTrainerSoftSeg.settings, num_epochs=1, iterations_per_epoch=2, validation_iterations_per_epoch=1
)
EXTERNAL = """
    import dataclasses

    from nnunetv2.training.nnUNetTrainer.primus.primus_trainers import nnUNet_Primus_S_Trainer

    from nnunet_softseg.training.trainer import nnUNetTrainerSoftSeg


    class MyPrimusTrainer(nnUNetTrainerSoftSeg):
        network_of = nnUNet_Primus_S_Trainer
        settings = dataclasses.replace(nnUNetTrainerSoftSeg.settings, initial_lr=3e-4)


    class MyTrainer(nnUNetTrainerSoftSeg):
        settings = dataclasses.replace(nnUNetTrainerSoftSeg.settings, adaptive_exponent=True)
"""
NETWORKS = """
    from torch import nn


    class TwoLayers(nn.Module):
        def __init__(self, input_channels, num_classes, width):
            super().__init__()
            self.first = nn.Conv3d(input_channels, width, 3, padding=1)
            self.last = nn.Conv3d(width, num_classes, 1)

        def forward(self, x):
            return self.last(self.first(x).relu())


    class ListOfOne(TwoLayers):
        def __init__(self, deep_supervision=False, **arguments):
            super().__init__(**arguments)
            self.deep_supervision = deep_supervision

        def forward(self, x):
            return [super().forward(x)] if self.deep_supervision else super().forward(x)
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyDataset]:
    """Of two channels, with a folder of trainers and a package of networks beside it."""
    patch = pytest.MonkeyPatch()
    root = tmp_path_factory.mktemp("networks")
    tiny = make_tiny_dataset(root, shape=(26, 30, 44), reader="NibabelIOWithReorient", channels=2)
    make_ready_to_train(tiny, patch)
    for folder, name, text in (
        ("trainers", "my_trainers", EXTERNAL),
        ("package", "networks_of_a_test", NETWORKS),
    ):
        (root / folder).mkdir()
        (root / folder / f"{name}.py").write_text(textwrap.dedent(text))
    patch.setenv("nnUNet_extTrainer", str(root / "trainers"))
    patch.syspath_prepend(str(root / "package"))
    patch.setattr(nnUNetTrainerSoftSeg, "settings", SHORT)
    yield tiny
    patch.undo()
    sys.modules.pop("networks_of_a_test", None)


def of_class(dataset: TinyDataset, name: str, **arguments: Any) -> dict[str, Any]:
    """Plans that name a network class."""
    plans = small_plans(dataset)
    plans["configurations"]["3d_fullres"]["architecture"] = {
        "network_class_name": name,
        "arch_kwargs": arguments,
        "_kw_requires_import": [],
    }
    return plans


def train(
    dataset: TinyDataset,
    plans: dict[str, Any],
    trainer: str = "nnUNetTrainerSoftSeg",
    *,
    validate: bool = True,
) -> Any:
    """Train two steps, validate or save a checkpoint, and return the trainer."""
    cls = recursive_find_trainer_class_by_name(trainer)
    with threads_in_place_of_processes():
        made = cls(plans, "3d_fullres", "all", dataset.dataset_json, CPU)
        made.num_epochs, made.num_iterations_per_epoch, made.num_val_iterations_per_epoch = 1, 2, 1
        if validate:
            made.run_training()
            made.perform_actual_validation()
            return made
        made.on_train_start()
        made.train_step(next(made.dataloader_train))
        made.save_checkpoint(str(Path(made.output_folder) / "checkpoint_final.pth"))
    return made


def predicted(
    dataset: TinyDataset, trainer: Any, out: Path, cases: Sequence[str] | None = None
) -> dict[str, Any]:
    """Predict all cases or some with the stock predictor, and return softseg.json."""
    cases = cases or dataset.cases
    files = [[str(file) for file in sorted((dataset.raw / "imagesTr").glob(f"{case}_*"))] for case in cases]
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, ("all",))
    out.mkdir()
    predictor.predict_from_files(files, [str(out / case) for case in cases])
    for case in cases:
        soft = nib.load(out / "soft" / f"{case}_0001.nii.gz")
        assert soft.shape == nib.load(dataset.image(case)).shape
        assert 0 <= float(np.asarray(soft.dataobj).min()) <= float(np.asarray(soft.dataobj).max()) <= 1
    report: dict[str, Any] = json.loads((out / "softseg.json").read_text())
    return report


def test_primus_by_nnunets_own_trainer_class_in_an_external_trainer(
    dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = small_plans(dataset)
    plans["configurations"]["3d_fullres"]["batch_size"] = 1
    trainer = train(dataset, plans, "MyPrimusTrainer", validate=False)
    assert type(trainer.network).__name__ == "Primus"
    expected = nnUNet_Primus_S_Trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 2, 1
    )
    found = trainer.network.state_dict()
    assert {*found} - {*expected.state_dict()} == {"reference_plateau"}
    assert not trainer.enable_deep_supervision
    assert float(found["reference_plateau"]) > 0
    monkeypatch.setenv("NNUNET_SOFTSEG_LOCALIZE", "always")
    report = predicted(dataset, trainer, tmp_path / "out", dataset.cases[:1])
    assert report["trainer"] == "MyPrimusTrainer"
    for case in report["cases"].values():
        assert case["localiser"]["not_run"] == "Primus takes no image of another size than the patch"
        assert case["backend"] == "torch float32"


def test_a_class_of_another_package_trains_predicts_and_travels(
    dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = train(dataset, of_class(dataset, "networks_of_a_test.TwoLayers", width=3))
    assert type(trainer.network).__name__ == "TwoLayers"
    assert not trainer.enable_deep_supervision
    monkeypatch.setenv("NNUNET_SOFTSEG_LOCALIZE", "always")
    report = predicted(dataset, trainer, tmp_path / "out")
    for case in report["cases"].values():
        assert case["localiser"]["not_run"].startswith("the plans do not say by which strides")
    archive = tmp_path / "model.zip"
    export_pretrained_model(101, str(archive), ("3d_fullres",), "nnUNetTrainerSoftSeg", folds=("all",))
    ours = predict(dataset.raw / "imagesTr", tmp_path / "from_zip", archive, progress=False)
    assert ours.failed == {}
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "other"))
    install_model_from_zip_file(str(archive))
    model = tmp_path / "other" / dataset.name / Path(trainer.output_folder_base).name
    predict(dataset.raw / "imagesTr", tmp_path / "installed", model, progress=False)
    for case in dataset.cases:
        name = f"soft/{case}_0001.nii.gz"
        maps = [
            np.asarray(nib.load(tmp_path / folder / name).dataobj)
            for folder in ("out", "from_zip", "installed")
        ]
        np.testing.assert_array_equal(maps[1], maps[2])
        assert maps[0].shape == maps[1].shape


def test_an_external_trainer_keeps_its_own_settings(dataset: TinyDataset, tmp_path: Path) -> None:
    trainer = train(dataset, small_plans(dataset), "MyTrainer")
    assert trainer.settings.adaptive_exponent
    assert trainer.enable_deep_supervision
    report = predicted(dataset, trainer, tmp_path / "out")
    assert report["settings"]["adaptive_exponent"]
    assert report["trainer"] == "MyTrainer"


def test_a_network_that_answers_with_a_list_but_has_no_decoder_is_built_without(
    dataset: TinyDataset,
) -> None:
    plans = of_class(dataset, "networks_of_a_test.ListOfOne", width=2)
    trainer = nnUNetTrainerSoftSeg(plans, "3d_fullres", "all", dataset.dataset_json, CPU)
    trainer.initialize()
    assert not trainer.network.deep_supervision
    assert not trainer.enable_deep_supervision
    assert trainer._get_deep_supervision_scales() is None


def test_resenc_keeps_its_deep_supervision(dataset: TinyDataset) -> None:
    plans = small_plans(dataset)
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = (
        "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    )
    arguments = architecture["arch_kwargs"]
    arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")
    trainer = nnUNetTrainerSoftSeg(plans, "3d_fullres", "all", dataset.dataset_json, CPU)
    trainer.initialize()
    assert has_deep_supervision(trainer.network)
    assert len(trainer.network(torch.zeros(1, 2, 24, 16, 16))) == 2
    trainer.set_deep_supervision_enabled(False)
    assert trainer.network(torch.zeros(1, 2, 24, 16, 16)).shape == (1, 1, 24, 16, 16)


def test_a_class_that_is_not_installed_is_named(dataset: TinyDataset) -> None:
    plans = of_class(dataset, "a_package_that_is_missing.networks.Swin")
    trainer = nnUNetTrainerSoftSeg(plans, "3d_fullres", 4, dataset.dataset_json, CPU)
    message = r"network class a_package_that_is_missing.networks.Swin of the plans: .*found none: install the"
    with pytest.raises(UserError, match=message):
        trainer.initialize()
    with pytest.raises(UserError, match=message):
        trainer.on_train_start()
    assert not (Path(trainer.output_folder) / "softseg_training.json").exists()  # told before the preparation


def test_a_class_whose_module_does_not_import_is_named(
    dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_networks.py").write_text("import a_package_that_is_missing")
    monkeypatch.syspath_prepend(str(tmp_path))
    plans = of_class(dataset, "broken_networks.Net")
    trainer = nnUNetTrainerSoftSeg(plans, "3d_fullres", "all", dataset.dataset_json, CPU)
    with pytest.raises(UserError, match=r"broken_networks.Net .*No module named 'a_package_that_is_missing'"):
        network_of_plans(trainer.configuration_manager, 2, 1, deep_supervision=False)
