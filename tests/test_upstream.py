"""Contracts with nnU-Net: what our patches and overrides rely on. A failure here means it has changed."""

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nnunetv2.inference import export_prediction as nnunet_export
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module  # noqa: N813  a module, no class
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_softseg import case_record, export, upstream
from nnunet_softseg.trainer import nnUNetTrainerSoftSeg

stock = trainer_module.nnUNetTrainer


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_trainer_overrides_methods_that_exist_with_their_parameters() -> None:
    assert parameters(stock.__init__) == parameters(nnUNetTrainerSoftSeg.__init__)
    assert parameters(stock.build_network_architecture) == parameters(
        nnUNetTrainerSoftSeg.build_network_architecture
    )
    for name in (
        "on_train_start", "get_tr_and_val_datasets", "_build_loss", "configure_optimizers", "validation_step",
        "on_validation_epoch_end", "on_epoch_end", "perform_actual_validation",
        "configure_rotation_dummyDA_mirroring_and_inital_patch_size",
    ):  # fmt: skip
        assert parameters(getattr(stock, name)) == parameters(getattr(nnUNetTrainerSoftSeg, name)), name
    assert parameters(stock.get_training_transforms)[:5] == [
        "patch_size", "rotation_for_DA", "deep_supervision_scales", "mirror_axes", "do_dummy_2d_data_aug",
    ]  # fmt: skip


def test_the_loader_asks_the_dataset_as_we_answer() -> None:
    source = inspect.getsource(nnUNetDataLoader.generate_train_batch)
    assert "self._data.load_case(i)" in source
    assert "properties['class_locations']" in source
    assert "self.transforms(**{'image': data_cropped, 'segmentation': seg_cropped})" in source
    assert "dtype=s.dtype" in source  # targets keep their type in the batch


def test_the_predictor_calls_what_is_patched_by_the_names_that_are_patched() -> None:
    source = inspect.getsource(predict_from_raw_data)
    assert "self.predict_sliding_window_return_logits(data)" in source
    assert source.count("export_prediction_from_logits(") >= 2
    assert "(prediction, properties, self.configuration_manager, self.plans_manager," in source
    assert "predictor.predict_sliding_window_return_logits(data)" in inspect.getsource(
        stock.perform_actual_validation
    )
    assert "export_prediction_from_logits, (" in inspect.getsource(stock.perform_actual_validation)
    assert parameters(nnunet_export.export_prediction_from_logits) == parameters(export.export_prediction)
    assert parameters(nnUNetPredictor._internal_get_sliding_window_slicers) == ["self", "image_size"]
    assert parameters(nnUNetPredictor._internal_maybe_mirror_and_predict) == ["self", "x"]


def test_the_label_manager_and_preprocessor_have_the_methods_that_we_override() -> None:
    overridden = (
        "apply_inference_nonlin",
        "convert_probabilities_to_segmentation",
        "convert_logits_to_segmentation",
        "revert_cropping_on_probabilities",
        "num_segmentation_heads",
    )
    for name in overridden:
        assert hasattr(LabelManager, name), name
    assert parameters(DefaultPreprocessor.run_case) == [
        "self", "image_files", "seg_file", "plans_manager", "configuration_manager", "dataset_json",
    ]  # fmt: skip
    assert parameters(DefaultPreprocessor.run_case_npy)[1:4] == ["data", "seg", "properties"]


def test_patches_stand_and_a_second_install_changes_nothing() -> None:
    before = nnUNetPredictor.predict_sliding_window_return_logits
    upstream.install()
    assert nnUNetPredictor.predict_sliding_window_return_logits is before
    assert predict_from_raw_data.export_prediction_from_logits is export.export_prediction
    assert trainer_module.export_prediction_from_logits is export.export_prediction
    assert (
        nnunet_export.export_prediction_from_logits is not export.export_prediction
    )  # the original stays reachable


class Doubling(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, 2 * x], 1)


@pytest.mark.parametrize("use_mirroring", [True, False])
def test_a_vanilla_model_is_blended_by_nnunet(use_mirroring: bool) -> None:
    """The original method and the patched one give the same bits for a model that is not ours."""
    predictor = nnUNetPredictor(use_mirroring=use_mirroring, device=torch.device("cpu"), allow_tqdm=False)
    predictor.plans_manager = SimpleNamespace(plans={"label_manager": "LabelManager"})
    predictor.configuration_manager = SimpleNamespace(patch_size=[8, 8, 8])
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=2)
    predictor.network, predictor.allowed_mirroring_axes = Doubling(), (0, 1, 2)
    image = torch.rand(1, 12, 9, 8)
    patched = predictor.predict_sliding_window_return_logits(image)
    original = nnUNetPredictor.predict_sliding_window_return_logits.__wrapped__(predictor, image)
    assert patched.dtype == torch.float16
    assert torch.equal(patched, original)


def test_the_case_under_way_is_the_one_that_the_iterator_gave() -> None:
    seen = []

    def original(self: Any, data_iterator: Any, *args: Any) -> list[int]:
        for item in data_iterator:
            case_record.under_way()["seconds"]["forward"] = item["data"]
            seen.append(item["data_properties"])
        return [len(args)]

    soft = SimpleNamespace(
        plans_manager=SimpleNamespace(plans={"label_manager": "SoftLabelManager", "nnunet_softseg": {}})
    )
    items = [{"data": number, "data_properties": {"spacing": [1, 1, 1]}} for number in range(3)]
    assert upstream._record_keeping_iterator(original)(soft, iter(items), True, 2) == [2]
    assert case_record.under_way()["seconds"] == {}  # nobody's any more
    assert [properties[case_record.KEY]["seconds"]["forward"] for properties in seen] == [0, 1, 2]
