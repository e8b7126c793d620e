"""Loss between raw output and soft target, over all resolutions, with or without NormReLU in between.

Two ways to train are published: the text of Bedard et al. 2025 puts NormReLU before the loss, their code
regresses the raw output and applies NormReLU after inference only. Both are here, over any loss per voxel.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from nnunet_softseg.network.norm_relu import broadcast_floor, peak, robust_peak
from nnunet_softseg.network.running_scale import LABELLED, update_running_scale

VoxelLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class SoftSegLoss(nn.Module):
    """Loss over one or several resolutions, which also updates the running scale of the raw output.

    Args:
        voxel_loss: (prediction, target) -> scalar.
        running_scale: (label,) buffer of the network, updated in place at full resolution; the coarser
            levels keep their own.
        level_weights: per resolution, full first; None: a single output.
        normalise: put NormReLU between raw output and loss; False: regress the raw output.
        floor_fraction: smallest denominator of NormReLU, as a fraction of the running scale.
        momentum: of the running mean.
    """

    def __init__(
        self,
        voxel_loss: VoxelLoss,
        running_scale: torch.Tensor,
        *,
        level_weights: Sequence[float] | None,
        normalise: bool,
        floor_fraction: float,
        momentum: float,
    ) -> None:
        super().__init__()
        self.voxel_loss = voxel_loss
        self.level_weights = [1.0] if level_weights is None else list(level_weights)
        self.normalise = normalise
        self.floor_fraction = floor_fraction
        self.momentum = momentum
        coarse = [torch.zeros_like(running_scale) for _ in self.level_weights[1:]]
        self._scales = [running_scale, *coarse]

    def forward(
        self, output: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor | Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Return the weighted sum over the levels.

        Args:
            output: raw output (batch, label, *space), or one per level.
            target: soft target of the same shape(s), in [0, 1].
        """
        outputs = [output] if isinstance(output, torch.Tensor) else list(output)
        targets = [target] if isinstance(target, torch.Tensor) else list(target)
        levels = zip(outputs, targets, self.level_weights, self._scales, strict=True)
        return torch.stack([w * self._level_loss(raw, soft, scale) for raw, soft, w, scale in levels]).sum()

    def _level_loss(self, raw: torch.Tensor, target: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        raw = raw.float()
        # Raw output that is regressed as it is gets no gradient from its robust peak.
        peaks = robust_peak(raw if self.normalise else raw.detach())
        if torch.is_grad_enabled():
            update_running_scale(scale, peaks, target, self.momentum)
        if not self.normalise:
            return self.voxel_loss(raw, target)
        return self.voxel_loss(normalised_for_loss(raw, peaks, target, self.floor_fraction, scale), target)


def normalised_for_loss(
    raw: torch.Tensor,
    peaks: torch.Tensor,
    target: torch.Tensor,
    floor_fraction: float,
    scale: torch.Tensor,
) -> torch.Tensor:
    """Return NormReLU of a patch, as it will be in the whole case, with a gradient wherever there is a label.

    At inference the robust peak of the case becomes 1, and so it does here where the target reaches 1. A
    patch may hold only the fringe of the structure, and a coarse level only averages: there the robust peak
    becomes the largest target. A patch without a label (below 0.5) is measured against the running scale
    instead, so that it learns to stay low. Where the target is above 0 the raw output is not cut off at 0: a
    head that has gone negative everywhere still gets a gradient back. Where it is below 1, nothing is cut off
    at 1.

    Args:
        raw: (batch, label, *space).
        peaks: (batch, label, 1, ...), `robust_peak` of it.
        target: as raw.
        floor_fraction: smallest denominator, as a fraction of the running scale.
        scale: (label,) running scale, 0 where not known yet.
    """
    height = peak(target)
    running = broadcast_floor(scale, raw).expand_as(height)
    labelled = torch.maximum(peaks, floor_fraction * running) / height.clamp(min=LABELLED)
    denominator = torch.where(height > LABELLED, labelled, running)
    denominator = torch.where(denominator > 0, denominator, torch.ones_like(denominator))
    normalised: torch.Tensor = _Normalised.apply(raw, denominator, target)  # type: ignore[no-untyped-call]
    return normalised


class _Normalised(torch.autograd.Function):
    """raw / denominator, cut off at 0 where the target is 0, and at 1 where it is 1.

    The slopes are those that autograd finds, which reads and writes the arrays twice as often.
    """

    @staticmethod
    def forward(ctx: Any, raw: torch.Tensor, denominator: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        ratio = raw / denominator
        normalised = torch.where(target > 0, ratio, ratio.clamp(min=0))
        normalised = torch.where(target < 1, normalised, normalised.clamp(max=1))
        ctx.save_for_backward(normalised, normalised == ratio, denominator)
        return normalised

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        normalised, not_cut, denominator = ctx.saved_tensors
        of_raw = (gradient * not_cut).div_(denominator)
        axes = tuple(range(2, of_raw.ndim))
        of_denominator = (of_raw * normalised).sum(axes, keepdim=True).neg_()
        return of_raw, of_denominator, None


class SoftDiceLoss(nn.Module):
    """Negative soft Dice over a batch: -(2 sum(p y) + 1) / (sum p + sum y + 1).

    Source: Bedard et al. 2025, the Dice baseline of their comparison; p is the activated output.
    """

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar in [-1, 0)."""
        prediction = prediction.clamp(min=0)
        return -(2 * (prediction * target).sum() + 1) / (prediction.sum() + target.sum() + 1)
