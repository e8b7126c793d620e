"""Running scale of the raw output: a buffer of the network, one number per label.

It follows the robust peak of the raw output over training patches that hold the label. At inference it tells
a structure from an image without one: with NormReLU in the loss, the scale of the raw output is free.
"""

from typing import Any

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_softseg.network.norm_relu import peak

BUFFER = "reference_plateau"
"""The name in checkpoints, also of those that earlier versions wrote."""
LABELLED = 0.5
"""A patch whose target stays below this holds at most the fringe of the structure."""


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


@torch.no_grad()
def update_running_scale(
    scale: torch.Tensor, peaks: torch.Tensor, target: torch.Tensor, momentum: float
) -> None:
    """Move the running scale towards the robust peaks of a batch, in place, leaving out unlabelled patches.

    Args:
        scale: (label,), 0 where not known yet.
        peaks: (batch, label, 1, ...), `robust_peak` of the raw output.
        target: (batch, label, *space).
        momentum: share of the old value.
    """
    labelled = (peak(target).flatten(1) > LABELLED).to(scale.dtype)
    count = labelled.sum(0)
    of_batch = (peaks.flatten(1) * labelled).sum(0) / count.clamp(min=1)
    moved = torch.where(scale > 0, momentum * scale + (1 - momentum) * of_batch, of_batch)
    scale.copy_(torch.where(count > 0, moved, scale))


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
