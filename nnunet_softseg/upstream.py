"""Every place where nnU-Net itself is patched, and nothing else is.

nnU-Net offers no hook for two things: what happens between the forward pass and the resampling, and what is
written of a prediction. Both patches hand over to the original for every model that is not ours, so vanilla
models in the same process are untouched. tests/test_upstream.py fails when nnU-Net changes under them.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module  # noqa: N813  a module, no class

from nnunet_softseg import case_record, export, inference
from nnunet_softseg.model_plans import is_soft

_MARK = "_nnunet_softseg"


def install() -> None:
    """Patch nnU-Net in this process; a second call changes nothing."""
    _wrap_method("predict_sliding_window_return_logits", _soft_sliding_window)
    _wrap_method("predict_from_data_iterator", _record_keeping_iterator)
    # Both modules hand this function to their worker processes, by its name in their own namespace.
    predict_from_raw_data.export_prediction_from_logits = export.export_prediction
    trainer_module.export_prediction_from_logits = export.export_prediction


def _wrap_method(name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = getattr(nnUNetPredictor, name)
    if not hasattr(original, _MARK):
        wrapped = functools.wraps(original)(wrapper(original))
        setattr(wrapped, _MARK, True)
        setattr(nnUNetPredictor, name, wrapped)


def _soft_sliding_window(original: Callable[..., Any]) -> Callable[..., Any]:
    """Let our networks predict their soft map where nnU-Net blends logits."""

    def predict_sliding_window_return_logits(self: Any, input_image: torch.Tensor) -> torch.Tensor:
        if is_soft(self.plans_manager.plans):
            return inference.predict_soft_map(self, input_image)
        logits: torch.Tensor = original(self, input_image)
        return logits

    return predict_sliding_window_return_logits


def _record_keeping_iterator(original: Callable[..., Any]) -> Callable[..., Any]:
    """Say which case's forward pass comes next: that sees no properties, the iterator does."""

    def predict_from_data_iterator(self: Any, data_iterator: Any, *args: Any, **kwargs: Any) -> Any:
        if is_soft(self.plans_manager.plans):
            data_iterator = _announce(data_iterator)
        return original(self, data_iterator, *args, **kwargs)

    return predict_from_data_iterator


def _announce(data_iterator: Any) -> Iterator[dict[str, Any]]:
    for item in data_iterator:
        case_record.set_under_way(case_record.start(item["data_properties"]))
        yield item
    case_record.set_under_way(None)
    # nnU-Net would end its own loader here, but sees only this generator.
    if hasattr(data_iterator, "_finish"):
        data_iterator._finish()
