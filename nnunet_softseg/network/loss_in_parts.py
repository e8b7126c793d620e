"""Loss over NormReLU and its gradient, one part of a batch after the other.

A loss with a slope in closed form needs no array of the size of a batch but its gradient: a part goes through
all steps while it lies in the cache of the processor. With many labels that is most of the time, and of the
memory. It is what autograd finds through `normalised_for_loss`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from nnunet_softseg.network.adaptive_wing import AdaptiveWingLoss
from nnunet_softseg.network.norm_relu import cut_off

_CACHED = 2**18
"""Values of a part: of fewer, the calls cost more than the steps; of more, memory does."""


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
        tiny = torch.finfo(flat.dtype).tiny
        largest = flat.amax(1, keepdim=True).clamp_(min=0)
        unit = largest.clamp(min=tiny)
        fourth, fifth = torch.zeros_like(largest), torch.zeros_like(largest)
        for row, at in _parts(flat):
            if _nothing_positive(flat[row, at]):  # of most labels, a patch holds nothing or little
                continue
            part = flat[row, at].clamp(min=0).div_(unit[row])
            power = part.square().square_()
            fourth[row] += power.sum(1, keepdim=True)
            fifth[row] += power.mul_(part).sum(1, keepdim=True)
        relative = fifth / fourth.clamp_(min=tiny)
        shape = (*values.shape[:2], *[1] * (values.ndim - 2))
        return cls(largest.reshape(shape), (largest * relative).reshape(shape), relative, fourth)

    def slope(self, values: torch.Tensor, row: slice) -> torch.Tensor:
        """Return that of the robust peak along a part of a row's values: r^3 (5 r - 4 m) / sum r^4."""
        unit = self.largest.reshape(-1, 1)[row].clamp(min=torch.finfo(values.dtype).tiny)
        relative = values.clamp(min=0).div_(unit)
        slope = (relative * 5).sub_(4 * self.relative[row]).div_(self.fourth[row])
        return slope.mul_(relative).mul_(relative).mul_(relative)


def loss_in_parts(
    voxel_loss: AdaptiveWingLoss,
    raw: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    normalise: tuple[Peaks, Callable[[torch.Tensor], torch.Tensor]] | None = None,
) -> torch.Tensor:
    """Return the loss of raw output, a scalar with a gradient.

    Args:
        voxel_loss: its reduction is "mean" or "sum".
        raw: (batch, label, *space).
        target: as raw, in [0, 1].
        weight: as raw; None: 1.
        normalise: peaks of the raw output, and the function from robust peaks to denominators, both
            (batch, label, 1, ...); None: no NormReLU.
    """
    total: torch.Tensor = _LossInParts.apply(raw, target, weight, voxel_loss, normalise)  # type: ignore[no-untyped-call]
    if voxel_loss.reduction == "sum":
        return total
    return total / (raw.numel() if weight is None else weight.sum().clamp(min=1))


class _LossInParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, raw: torch.Tensor, *of_loss: Any) -> torch.Tensor:
        target, weight, voxel_loss, normalise = of_loss
        flat, weights = _rows(raw), None if weight is None else _rows(weight)
        if normalise is None:
            total, gradient, _ = _sums(voxel_loss, flat, _rows(target), weights, None)
        else:
            denominator, along_peak = _with_slope(*normalise)
            total, gradient, along_denominator = _sums(voxel_loss, flat, _rows(target), weights, denominator)
            along_peak *= along_denominator
            for row, at in _parts(flat):
                if not along_peak[row].any():  # measured against the running scale
                    continue
                gradient[row, at] += normalise[0].slope(flat[row, at], row).mul_(along_peak[row])
        ctx.save_for_backward(gradient.reshape(raw.shape))
        return total

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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the summed loss, its slope along raw output, and that along the denominator of each row."""
    slopes = torch.empty_like(raw)
    along_denominator = raw.new_zeros(len(raw), 1)
    losses = []
    for row, at in _parts(raw):
        values, soft = raw[row, at], target[row, at]
        ratio = values if denominator is None else values / denominator[row]
        loss, slope = voxel_loss.with_slope(ratio if denominator is None else cut_off(ratio, soft), soft)
        if weight is not None:
            loss, slope = loss * weight[row, at], slope * weight[row, at]
        losses.append(loss.sum())
        if denominator is not None:
            # Where the ratio is cut off, the prediction is the target, and the slope is 0.
            slope = slope / denominator[row]
            along_denominator[row] -= (slope * ratio).sum(1, keepdim=True)
        slopes[row, at] = slope
    return torch.stack(losses).sum(), slopes, along_denominator


def _with_slope(
    peaks: Peaks, denominator_of: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the denominator of each row and its slope along the robust peak, both (batch label, 1)."""
    with torch.enable_grad():
        robust = peaks.robust.detach().requires_grad_()
        denominator = denominator_of(robust)
        (slope,) = torch.autograd.grad(denominator.sum(), robust)
    return denominator.detach().reshape(-1, 1), slope.reshape(-1, 1)


def _rows(values: torch.Tensor) -> torch.Tensor:
    """Return (batch, label, *space) as (batch label, voxel)."""
    return values.flatten(0, 1).flatten(1)


def _parts(flat: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield parts of (row, voxel) that fit into the cache of a processor; on a GPU one part."""
    rows, length = flat.shape
    together, step = max(1, _CACHED // length), min(length, _CACHED)
    if flat.device.type != "cpu":
        together, step = rows, length
    for row in range(0, rows, together):
        for start in range(0, length, step):
            yield slice(row, row + together), slice(start, start + step)


def _nothing_positive(part: torch.Tensor) -> bool:
    """Return whether no value is above 0; on a GPU the answer would cost more than the work."""
    return part.device.type == "cpu" and not float(part.amax()) > 0
