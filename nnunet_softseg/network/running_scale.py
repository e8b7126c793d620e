"""What our networks carry besides nnU-Net's: the running plateau of their raw output."""

from typing import Any

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

BUFFER = "reference_plateau"


def add_reference_plateau(network: nn.Module, num_labels: int) -> nn.Module:
    """Give the network a buffer for the running plateau of each label's raw output and return it.

    The buffer lives with the segmentation layers: nnU-Net's fine-tuning skips those, so that weights of a
    vanilla network, which has no such buffer, can be loaded.
    """
    _owner(network).register_buffer(BUFFER, torch.zeros(num_labels))
    return network


def reference_plateau(network: nn.Module) -> torch.Tensor:
    """Return the (label,) running plateau of a network of ours, however it is wrapped; 0 where not known."""
    plateau: torch.Tensor = getattr(_owner(unwrapped(network)), BUFFER)
    return plateau


def unwrapped(network: Any) -> nn.Module:
    """Return the network behind DDP and torch.compile."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    if isinstance(network, OptimizedModule):
        network = network._orig_mod
    module: nn.Module = network
    return module


def _owner(network: nn.Module) -> nn.Module:
    layers = getattr(getattr(network, "decoder", None), "seg_layers", None)
    return layers if isinstance(layers, nn.Module) else network
