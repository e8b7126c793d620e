"""From raw output and soft target to the loss: on the raw output, or with NormReLU in between.

Two ways to train are published: the text of Bedard et al. 2025 puts NormReLU before the loss, their code
regresses the raw output and applies NormReLU after inference only. Both are here, over any loss per voxel.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import max_pool2d, max_pool3d

from nnunet_softseg.network.norm_relu import broadcast_floor, peak, plateau

VoxelLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
NEAR_LABEL = 0.2
LABELLED = 0.5
"""A patch whose target stays below this holds at most the fringe of the structure."""


class SoftSegLoss(nn.Module):
    """A loss over one or several resolutions, which also keeps the running plateau of the raw output.

    Args:
        voxel_loss: (prediction, target) -> scalar.
        reference_plateau: (label,) buffer of the network, updated in place: the running mean of the raw
            output's plateau over patches with a label, at full resolution. 0 means not known yet.
        level_weights: per resolution, full first; None: a single output.
        normalise: put NormReLU between raw output and loss; False: regress the raw output.
        floor_fraction: smallest denominator of NormReLU, as a fraction of the running plateau.
        momentum: of the running mean.
    """

    def __init__(
        self,
        voxel_loss: VoxelLoss,
        reference_plateau: torch.Tensor,
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
        coarse = [torch.zeros_like(reference_plateau) for _ in self.level_weights[1:]]
        self._references = [reference_plateau, *coarse]

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
        losses = [
            weight * self._level_loss(raw, soft, reference)
            for raw, soft, weight, reference in zip(
                outputs, targets, self.level_weights, self._references, strict=True
            )
        ]
        return torch.stack(losses).sum()

    def _level_loss(self, raw: torch.Tensor, target: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        raw = raw.float()
        # Of raw output that is regressed as it is, the plateau is only followed, without a gradient.
        heights = plateau(raw if self.normalise else raw.detach())
        if torch.is_grad_enabled():
            follow_plateau(reference, heights, target, self.momentum)
        if not self.normalise:
            return self.voxel_loss(raw, target)
        normalised = normalised_for_loss(raw, heights, target, self.floor_fraction, reference)
        return self.voxel_loss(normalised, target)


@torch.no_grad()
def follow_plateau(
    reference: torch.Tensor, heights: torch.Tensor, target: torch.Tensor, momentum: float
) -> None:
    """Move the running plateau towards that of this batch, in place; samples without a label say nothing.

    Args:
        reference: (label,), 0 where not known yet.
        heights: (batch, label, 1, ...), `plateau` of the raw output.
        target: (batch, label, *space).
        momentum: share of the old value.
    """
    labelled = (peak(target).flatten(1) > LABELLED).to(reference.dtype)
    count = labelled.sum(0)
    batch_plateau = (heights.flatten(1) * labelled).sum(0) / count.clamp(min=1)
    moved = torch.where(reference > 0, momentum * reference + (1 - momentum) * batch_plateau, batch_plateau)
    reference.copy_(torch.where(count > 0, moved, reference))


def normalised_for_loss(
    raw: torch.Tensor,
    heights: torch.Tensor,
    target: torch.Tensor,
    floor_fraction: float,
    reference: torch.Tensor,
) -> torch.Tensor:
    """Return NormReLU of a patch, as it will be in the whole case, with a gradient wherever there is a label.

    At inference the plateau of the case becomes 1, and so it does here where the target reaches 1. A patch
    may hold only the fringe of the structure, and a coarse level only averages: there the plateau becomes the
    largest target. A patch without a label (below 0.5) is measured against the running plateau instead, so
    that it learns to stay low. Where the target is above 0 the raw output is not cut off at 0: a head that
    has gone negative everywhere still gets a gradient back. Where it is below 1, nothing is cut off at 1.

    Args:
        raw: (batch, label, *space).
        heights: (batch, label, 1, ...), `plateau` of it.
        target: as raw.
        floor_fraction: of the running plateau, smallest denominator.
        reference: (label,) running plateau, 0 where not known yet.
    """
    height = peak(target)
    running = broadcast_floor(reference, raw).expand_as(height)
    labelled = torch.maximum(heights, floor_fraction * running) / height.clamp(min=LABELLED)
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


class WeightedLoss(nn.Module):
    """A loss per voxel, weighted by `boundary_weights`.

    Args:
        voxel_loss: (prediction, target) -> loss of their shape.
        extra_weight: of voxels at or near the label.
        reduction: "mean" or "sum".
    """

    def __init__(self, voxel_loss: VoxelLoss, extra_weight: float, reduction: str) -> None:
        super().__init__()
        self.voxel_loss = voxel_loss
        self.extra_weight = extra_weight
        self.reduction = reduction

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the reduced loss, a scalar."""
        loss = self.voxel_loss(prediction, target) * boundary_weights(target, self.extra_weight)
        return loss.sum() if self.reduction == "sum" else loss.mean()


def boundary_weights(target: torch.Tensor, extra_weight: float) -> torch.Tensor:
    """Return 1 + extra weight where the target, dilated by one voxel, reaches 0.2; 1 elsewhere.

    Source: Wang, Bo, Fuxin 2019, section 4.3 (grey dilation, threshold 0.2).

    Args:
        target: (batch, label, *space), in [0, 1], with two or three axes of space.
        extra_weight: W of the paper.
    """
    dilate = {4: max_pool2d, 5: max_pool3d}[target.ndim]
    near = dilate(target, kernel_size=3, stride=1, padding=1) >= NEAR_LABEL
    return 1 + extra_weight * near.to(target.dtype)


class SoftDiceLoss(nn.Module):
    """Negative soft Dice over a batch: -(2 sum(p y) + 1) / (sum p + sum y + 1).

    Source: Bedard et al. 2025, the Dice baseline of their comparison; p is the activated output.
    """

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar in [-1, 0)."""
        prediction = prediction.clamp(min=0)
        return -(2 * (prediction * target).sum() + 1) / (prediction.sum() + target.sum() + 1)
