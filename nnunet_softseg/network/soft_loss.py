"""Losses on soft targets over all resolutions, with or without NormReLU; the soft Dice loss.

Two ways to train are published: the text of Bedard et al. 2025 puts NormReLU before the loss, their code
regresses the raw output and applies NormReLU after inference only. Both are here, over any loss per voxel.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from nnunet_softseg.network.adaptive_wing import AdaptiveWingLoss
from nnunet_softseg.network.loss_in_parts import Peaks, loss_in_parts
from nnunet_softseg.network.norm_relu import (
    denominator_for_loss,
    normalised_for_loss,
    update_running_scale,
)
from nnunet_softseg.network.soft_map import robust_peak

VoxelLoss = Callable[..., torch.Tensor]
"""(prediction, target) -> scalar; with unknown voxels (prediction, target, weight)."""


class SoftSegLoss(nn.Module):
    """Loss over one or several resolutions, which also updates the running scale of the raw output.

    Args:
        voxel_loss: (prediction, target) -> scalar; with unknown voxels (prediction, target, weight).
        running_scale: (label,) buffer of the network, updated in place at full resolution; the coarser
            levels keep their own.
        level_weights: per resolution, full first; None: a single output.
        normalise: put NormReLU between raw output and loss; False: regress the raw output.
        floor_fraction: smallest denominator of NormReLU, as a fraction of the running scale.
        momentum: of the running mean.

    Attributes:
        fixed: (label,) whether the output scale of a label is fixed; None: it is per case for all.
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
        self.fixed: torch.Tensor | None = None
        coarse = [torch.zeros_like(running_scale) for _ in self.level_weights[1:]]
        self._scales = [running_scale, *coarse]

    def forward(
        self, output: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor | Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Return the weighted sum over the levels.

        Args:
            output: raw output (batch, label, *space), or one per level.
            target: soft target of the same shape(s), in [0, 1]; with unknown voxels (batch, 2 label, *space),
                see `known_part`.
        """
        outputs = [output] if isinstance(output, torch.Tensor) else list(output)
        targets = [target] if isinstance(target, torch.Tensor) else list(target)
        levels = zip(outputs, targets, self.level_weights, self._scales, strict=True)
        return torch.stack([w * self._level_loss(raw, soft, scale) for raw, soft, w, scale in levels]).sum()

    def _level_loss(self, raw: torch.Tensor, target: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        raw, target, weight = known_part(raw.float(), target)
        peaks, of_target = Peaks.of(raw), Peaks.of(target)
        if torch.is_grad_enabled():
            update_running_scale(scale, peaks.robust, of_target.largest, self.momentum, fixed=self.fixed)
        of_loss = self.voxel_loss
        if type(of_loss) is not AdaptiveWingLoss or of_loss.reduction == "none":
            weights = () if weight is None else (weight,)
            return of_loss(self._soft_map(raw, target, scale) if self.normalise else raw, target, *weights)
        if not self.normalise:
            return loss_in_parts(of_loss, raw, target, weight)
        denominator, slope = denominator_for_loss(
            peaks.robust,
            largest=of_target.largest,
            height=of_target.robust,
            floor=self.floor_fraction * scale,
            scale=scale,
            fixed=self.fixed,
        )
        return loss_in_parts(of_loss, raw, target, weight, (peaks, denominator, slope))

    def _soft_map(self, raw: torch.Tensor, target: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return normalised_for_loss(
            raw, robust_peak(raw), target, self.floor_fraction, scale, fixed=self.fixed
        )


def known_part(
    raw: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return raw output, target and weight of each voxel; where the weight is 0, nothing is known.

    There the raw output is taken for 0, as the target is: neither peak nor loss sees it, and its gradient is
    exactly 0.

    Args:
        raw: (batch, label, *space).
        target: of the same shape, and the weight is None; or (batch, 2 label, *space), labels, then weights.
    """
    if target.shape[1] == raw.shape[1]:
        return raw, target, None
    target, weight = target.chunk(2, dim=1)
    return torch.where(weight > 0, raw, 0), target, weight


class SoftDiceLoss(nn.Module):
    """Negative soft Dice over a batch: -(2 sum(p y) + 1) / (sum p + sum y + 1).

    Source: Bedard et al. 2025, the Dice baseline of their comparison; p is the activated output.
    """

    def forward(
        self, prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss, a scalar in [-1, 0); the weight of each voxel is 1 if not given."""
        prediction = prediction.clamp(min=0)
        overlap = prediction * target
        if weight is not None:
            overlap, prediction, target = overlap * weight, prediction * weight, target * weight
        return -(2 * overlap.sum() + 1) / (prediction.sum() + target.sum() + 1)
