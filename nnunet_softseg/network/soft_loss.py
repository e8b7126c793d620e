"""Losses on soft targets over all resolutions, with or without NormReLU; the soft Dice loss.

Two ways to train are published: the text of Bedard et al. 2025 puts NormReLU before the loss, their code
regresses the raw output and applies NormReLU after inference only. Both are here, over any loss per voxel.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from nnunet_softseg.network.adaptive_wing import AdaptiveWingLoss
from nnunet_softseg.network.norm_relu import (
    cut_off,
    denominator_for_loss,
    normalised_for_loss,
    update_running_scale,
)

_CACHED = 2**18
"""Values of a part: of fewer, the calls cost more than the steps; of more, memory does."""

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

    @property
    def coarse_scales(self) -> list[list[float]]:
        """Running scale of each label at each coarse level."""
        return [scale.tolist() for scale in self._scales[1:]]

    def start_coarse_scales(self, kept: Sequence[Sequence[float]] | None = None) -> None:
        """Begin those of the coarse levels where a training has left them; None: as that of the network."""
        full, *coarse = self._scales
        for at, scale in enumerate(coarse):
            scale.copy_(full if kept is None else torch.tensor(kept[at]))

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
            if self.normalise:
                raw = normalised_for_loss(raw, target, self.floor_fraction, scale, fixed=self.fixed)
            return of_loss(raw, target, *weights)
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
        # Beyond 1 nothing is gained, or a few voxels would buy what all others lack; but it still costs.
        overlap = prediction.clamp(0, 1) * target
        prediction = prediction.clamp(min=0)
        if weight is not None:
            overlap, prediction, target = overlap * weight, prediction * weight, target * weight
        return -(2 * overlap.sum() + 1) / (prediction.sum() + target.sum() + 1)


# One part of a batch after the other: a loss with a slope in closed form needs no array of a batch's size
# but its gradient, as a part goes through all steps while it lies in the cache of the processor. With many
# labels that is half of the time, and most of the memory. Autograd finds the same by `normalised_for_loss`.


@dataclass(frozen=True)
class Peaks:
    """Largest positive value and robust peak of each sample and label, as `peak` and `robust_peak` find them.

    Attributes:
        largest, robust: (batch, label, 1, ...).
        relative: (batch label, 1), robust / largest.
        fourth: as relative; sum of (values / largest) ** 4.
    """

    largest: torch.Tensor
    robust: torch.Tensor
    relative: torch.Tensor
    fourth: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor) -> "Peaks":
        """Return those of (batch, label, *space), without a gradient."""
        flat = _rows(values.detach())
        largest, fourth, fifth = (flat.new_zeros(len(flat), 1) for _ in range(3))
        tiny = torch.finfo(flat.dtype).tiny
        for rows in _groups(flat):
            group = flat[rows]
            torch.amax(group, 1, keepdim=True, out=largest[rows])
            unit = largest[rows].clamp_(min=0).clamp(min=tiny)
            if _nothing_positive(largest[rows]):  # of most labels, a patch holds nothing
                continue
            for at in _parts(group):
                part = group[:, at].div(unit).clamp_(min=0)
                power = part.square().square_()
                fourth[rows] += power.sum(1, keepdim=True)
                fifth[rows] += power.mul_(part).sum(1, keepdim=True)
        relative = fifth / fourth.clamp_(min=tiny)
        shape = (*values.shape[:2], *[1] * (values.ndim - 2))
        return cls(largest.reshape(shape), (largest * relative).reshape(shape), relative, fourth)

    def add_slope(
        self, slopes: torch.Tensor, factor: torch.Tensor, values: torch.Tensor, rows: slice
    ) -> None:
        """Add that of the robust peak along values, times a factor, to slopes: r^3 (5 r - 4 m) / sum r^4.

        Slopes and values are (row, voxel), the factor (row, 1); `rows` says which (batch label) they are.
        """
        if not factor.any():  # measured against the running scale
            return
        unit = self.largest.reshape(-1, 1)[rows].clamp(min=torch.finfo(values.dtype).tiny)
        factor = factor / self.fourth[rows]
        offset = 4 * factor * self.relative[rows]
        for at in _parts(values):
            relative = values[:, at].div(unit).clamp_(min=0)
            cube = relative.square().mul_(relative)
            slopes[:, at].addcmul_(cube, relative.mul_(5 * factor).sub_(offset))


def loss_in_parts(
    voxel_loss: AdaptiveWingLoss,
    raw: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    normalise: tuple[Peaks, torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return the loss of raw output, a scalar with a gradient.

    Args:
        voxel_loss: its reduction is "mean" or "sum".
        raw: (batch, label, *space).
        target: as raw, in [0, 1].
        weight: as raw; None: 1.
        normalise: peaks of the raw output, the denominator of NormReLU and its slope along the robust peaks,
            both (batch, label, 1, ...); None: no NormReLU.
    """
    total: torch.Tensor = _LossInParts.apply(raw, target, weight, voxel_loss, normalise)  # type: ignore[no-untyped-call]
    if voxel_loss.reduction == "sum":
        return total
    return total / (raw.numel() if weight is None else weight.sum().clamp(min=1))


class _LossInParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, raw: torch.Tensor, *of_loss: Any) -> torch.Tensor:
        target, weight, voxel_loss, normalise = of_loss
        flat, targets = _rows(raw), _rows(target)
        weights = None if weight is None else _rows(weight)
        denominator = along_peak = None
        if normalise is not None:
            peaks, denominator, along_peak = normalise[0], *(_rows(each) for each in normalise[1:])
        gradient = torch.empty_like(flat)
        losses = []
        for rows in _groups(flat):
            factors = [None if each is None else each[rows] for each in (weights, denominator)]
            loss, along_denominator = _sums(
                voxel_loss, flat[rows], targets[rows], *factors, slopes=gradient[rows]
            )
            losses.append(loss)
            if along_peak is not None:
                factor = along_peak[rows] * along_denominator
                peaks.add_slope(gradient[rows], factor, flat[rows], rows)
        ctx.save_for_backward(gradient.reshape(raw.shape))
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (saved,) = ctx.saved_tensors
        return saved * gradient, None, None, None, None


def _sums(
    voxel_loss: AdaptiveWingLoss,
    raw: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    denominator: torch.Tensor | None,
    *,
    slopes: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed loss and its slope along the denominator of each row; write that along raw output."""
    along_denominator = raw.new_zeros(len(raw), 1)
    total = raw.new_zeros(())
    for at in _parts(raw):
        values, soft = raw[:, at], target[:, at]
        beside = _nothing_positive(soft)
        if beside and denominator is not None and _nothing_positive(values):  # all of it is cut off
            slopes[:, at] = 0
            continue
        ratio = values if denominator is None else values / denominator
        difference = ratio - soft
        if denominator is not None:
            difference = difference.clamp_(min=0) if beside else cut_off(difference, soft)
        loss, slope = voxel_loss.with_slope(difference, 0 if beside else soft)
        if weight is not None:
            loss, slope = loss.mul_(weight[:, at]), slope.mul_(weight[:, at])
        total += loss.sum()
        if denominator is None:
            slopes[:, at] = slope
        else:
            # Where the ratio is cut off, the prediction is the target, and the slope is 0.
            torch.div(slope, denominator, out=slopes[:, at])
            along_denominator -= ratio.mul_(slopes[:, at]).sum(1, keepdim=True)
    return total, along_denominator


def _rows(values: torch.Tensor) -> torch.Tensor:
    """Return (batch, label, *space) as (batch label, voxel)."""
    return values.flatten(0, 1).flatten(1)


def _groups(flat: torch.Tensor) -> Iterator[slice]:
    """Yield rows of (row, voxel) that fit into the cache of a processor together, or one; on a GPU all."""
    rows, length = flat.shape
    together = max(1, _CACHED // length) if flat.device.type == "cpu" else rows
    for row in range(0, rows, together):
        yield slice(row, row + together)


def _parts(group: torch.Tensor) -> Iterator[slice]:
    """Yield voxels of such rows that fit into the cache; on a GPU all."""
    length = group.shape[1]
    step = min(length, _CACHED) if group.device.type == "cpu" else length
    for start in range(0, length, step):
        yield slice(start, start + step)


def _nothing_positive(part: torch.Tensor) -> bool:
    """Return whether all values are 0 or below; on a GPU the answer would cost more than the work."""
    return part.device.type == "cpu" and float(part.amax()) <= 0  # not so where one is NaN
