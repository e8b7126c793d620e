"""The network that the plans name, one of nnU-Net's or a class of any package that is installed.

To each belongs a buffer, the running scale of its raw output; see `norm_relu`.
"""

import inspect
import pydoc
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_softseg.errors import UserError

BUFFER = "reference_plateau"
"""The name in checkpoints, also of those that earlier versions wrote."""
_SWITCH = "deep_supervision"
_OF_NNUNET = "dynamic_network_architectures."


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


def require_network_class(configuration: Any) -> None:
    """Raise a UserError if the class that a configuration names is not installed, or cannot be imported."""
    _takes_switch(configuration.network_arch_class_name)


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
