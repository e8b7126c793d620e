"""The network and the label manager that the plans name, both with one output per foreground label.

The network is one of nnU-Net's, or a class of any package that is installed. To each belongs a buffer, the
running scale of its raw output; see `norm_relu`.
"""

import inspect
import pydoc
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_softseg.datasets.raw_dataset import LabelScheme, hard_label_map, label_scheme
from nnunet_softseg.errors import UserError

BUFFER = "reference_plateau"
"""The name in checkpoints, also of those that earlier versions wrote."""
_SWITCH = "deep_supervision"
_OF_NNUNET = "dynamic_network_architectures."

Array = np.ndarray[Any, Any] | torch.Tensor


class NetworkOfPlans:
    """Hooks of nnU-Net's trainer: which network is trained."""

    network_of: ClassVar[Any] = None
    """A trainer of nnU-Net's whose network is trained; None: the network that the plans name."""
    configuration_manager: Any

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Return nnU-Net's network with one output per foreground label and its running scale."""
        channels = (num_input_channels, num_output_channels)
        if cls.network_of is None:
            network = network_of_plans(
                configuration_manager, *channels, deep_supervision=enable_deep_supervision
            )
        else:
            network = cls.network_of.build_network_architecture(
                plans_manager, configuration_manager, *channels, enable_deep_supervision
            )
        return add_running_scale(network, num_output_channels)

    def require_network_class(self) -> None:
        """Raise a UserError if the class that the plans name is not installed, or cannot be imported."""
        if self.network_of is None:
            _takes_switch(self.configuration_manager.network_arch_class_name)


def network_of_plans(
    configuration: Any, input_channels: int, output_channels: int, *, deep_supervision: bool
) -> nn.Module:
    """Return the network of a configuration, with raw output at every resolution if it can have that.

    The configuration is nnU-Net's manager; see `has_deep_supervision` for the switch.

    Raises:
        UserError: if the class is not installed, or does not take the arguments of the plans.
    """
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    name = configuration.network_arch_class_name
    takes_switch = _takes_switch(name)

    def build(on: bool) -> nn.Module:
        network: nn.Module = get_network_from_plans(
            name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            input_channels,
            output_channels,
            allow_init=True,
            deep_supervision=on if takes_switch else None,
        )
        return network

    network = build(deep_supervision)
    if deep_supervision and takes_switch and not has_deep_supervision(network):
        return build(False)
    return network


def _takes_switch(name: str) -> bool:
    """Return whether a class takes the argument deep_supervision, which nnU-Net gives to every network."""
    try:
        found: Any = pydoc.locate(name)
    except pydoc.ErrorDuringImport as error:
        raise UserError(
            f"network class {name} of the plans: expected one that can be imported, found "
            f"{' '.join(str(error).split())}: mend its package"
        ) from error
    if found is None:
        if name.startswith(_OF_NNUNET):  # nnU-Net looks for it where it may have moved to
            return True
        raise UserError(
            f"network class {name} of the plans: expected a class that is installed here, found none: "
            f"install the package {name.partition('.')[0]}, or correct network_class_name in the plans"
        )
    parameters = inspect.signature(found).parameters.values()
    return any(each.name == _SWITCH or each.kind is each.VAR_KEYWORD for each in parameters)


def has_deep_supervision(network: nn.Module) -> bool:
    """Return whether a network has raw output at several resolutions, with the switch that nnU-Net turns."""
    return hasattr(getattr(unwrapped(network), "decoder", None), _SWITCH)


# The running scale


def add_running_scale(network: nn.Module, num_labels: int) -> nn.Module:
    """Give the network the buffer of the running scale, 0 for each label, and return the network.

    The buffer lives with the segmentation layers: nnU-Net's fine-tuning skips those, so that weights of a
    vanilla network, which has no such buffer, can be loaded.
    """
    _owner(network).register_buffer(BUFFER, torch.zeros(num_labels))
    return network


def running_scale(network: nn.Module) -> torch.Tensor:
    """Return the (label,) running scale of a network of ours, however it is wrapped; 0 where not known."""
    scale: torch.Tensor = getattr(_owner(unwrapped(network)), BUFFER)
    return scale


def unwrapped(network: Any) -> nn.Module:
    """Return the network behind DDP and torch.compile."""
    from torch._dynamo import (
        OptimizedModule,  # slow to import, and who only wants the activation need not wait
    )

    if isinstance(network, DistributedDataParallel):
        network = network.module
    if isinstance(network, OptimizedModule):
        network = network._orig_mod
    module: nn.Module = network
    return module


def _owner(network: nn.Module) -> nn.Module:
    layers = getattr(getattr(network, "decoder", None), "seg_layers", None)
    return layers if isinstance(layers, nn.Module) else network


# The labels


class SoftLabelManager(LabelManager):  # type: ignore[misc]
    """Labels of a soft model: one output per foreground label or region, no channel of the background.

    nnU-Net's "logits" are soft maps here: NormReLU has been applied before resampling. `scheme` names the
    labels in the order of the channels, and how their map is painted.
    """

    def __init__(self, label_dict: Any, regions_class_order: Any, *options: Any, **more: Any) -> None:
        labels = {"labels": label_dict, "regions_class_order": regions_class_order}
        self.scheme: LabelScheme = label_scheme(labels)
        super().__init__(label_dict, regions_class_order, *options, **more)

    @property
    def num_segmentation_heads(self) -> int:
        """One channel per foreground label or region; the background has none."""
        return len(self.scheme.names)

    @property
    def has_ignore_label(self) -> bool:
        """False: nnU-Net's loader, which asks, would draw patches by a table that nnU-Net's cases have.

        Unknown voxels come with the soft target, and the patches that must see known ones have a table of
        their own; `ignore_label` is the value of the label map, as ever.
        """
        return False

    def apply_inference_nonlin(self, logits: Array) -> torch.Tensor:
        """Return the soft maps as they are, as a float32 tensor."""
        return torch.as_tensor(logits).float()

    def convert_probabilities_to_segmentation(self, predicted_probabilities: Array) -> Array:
        """Return the integer label map of soft maps, by `hard_label_map`.

        They are (label, *space), or in nnU-Net's layout, whose background says nothing more.
        """
        if not self.scheme.has_regions and len(predicted_probabilities) == self.num_segmentation_heads + 1:
            predicted_probabilities = predicted_probabilities[1:]
        if predicted_probabilities.shape[0] != self.num_segmentation_heads:
            raise ValueError(
                f"expected {self.num_segmentation_heads} soft maps, one per foreground label "
                f"{self.scheme.names}, got {predicted_probabilities.shape[0]} channels"
            )
        if isinstance(predicted_probabilities, torch.Tensor):
            soft_maps = predicted_probabilities.cpu().numpy()
            return torch.from_numpy(hard_label_map(soft_maps, self.scheme.painted))
        return hard_label_map(predicted_probabilities, self.scheme.painted)

    def revert_cropping_on_probabilities(
        self, predicted_probabilities: Array, bbox: list[list[int]], original_shape: Sequence[int]
    ) -> Array:
        """Return the soft maps (label, *space) of a crop on the whole grid, 0 outside of the crop."""
        zeros: Any = torch.zeros if isinstance(predicted_probabilities, torch.Tensor) else np.zeros
        full = zeros((len(predicted_probabilities), *original_shape), dtype=predicted_probabilities.dtype)
        reverted: Array = insert_crop_into_image(full, predicted_probabilities, bbox)
        return reverted
