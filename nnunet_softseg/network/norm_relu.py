"""NormReLU: from the network's raw output to a soft map in [0, 1].

Source: Bedard et al. 2025, section 3.4: relu(x) / max(relu(x)), 0 where the maximum is 0. The axis of the
maximum is not printed there; here it is per sample and channel, so that no case depends on its batch mates.

The single largest voxel is a fragile scale: one hot voxel of 1.3 shrinks everything else to 77 %. So
there are two scales: `peak`, as printed, and `robust_peak`, a Lehmer mean.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """Return values in float32, or wider if they are: half precision and integers are converted."""
    narrow = values.dtype in (torch.float16, torch.bfloat16) or not values.is_floating_point()
    return values.float() if narrow else values


def peak(raw: torch.Tensor) -> torch.Tensor:
    """Return the largest positive value of each sample and channel, kept as (batch, channel, 1, ...).

    Args:
        raw: (batch, channel, *space), raw network output.
    """
    return _keep_axes(raw.flatten(2).amax(dim=2).clamp(min=0), raw.ndim)


def robust_peak(raw: torch.Tensor) -> torch.Tensor:
    """Return the Lehmer mean of order 5 of each sample and channel, kept as (batch, channel, 1, ...).

    It is sum(x ** 5) / sum(x ** 4) over x = relu(raw): a mean in which high values count most. On a structure
    of constant height it is that height; partial volume at the boundary lowers it by a percent or two; a
    residue in the background hardly moves it, and a hot voxel of 1.3 in a disc of 113 by 0.8 %, not by 30 %.
    Unlike the maximum it passes its gradient to all of the structure.

    Args:
        raw: (batch, channel, *space), raw network output.
    """
    peaks: torch.Tensor = _RobustPeak.apply(at_least_float32(raw))  # type: ignore[no-untyped-call]
    return peaks


class _RobustPeak(torch.autograd.Function):
    """Value and slope in closed form: left to autograd, the slope costs several times the value.

    With r = x / max x and the robust peak m max x, the slope is r^3 (5 r - 4 m) / sum r^4.
    """

    @staticmethod
    def forward(ctx: Any, raw: torch.Tensor) -> torch.Tensor:
        positive = raw.flatten(2).clamp(min=0)
        tiny = torch.finfo(raw.dtype).tiny
        # Powers of values relative to the peak neither overflow nor vanish, whatever the network's scale.
        scale = positive.amax(dim=2, keepdim=True).clamp_(min=tiny)
        relative = positive.div_(scale)
        weight = relative.square().square_()  # a fifth of the cost of ** 4
        total = weight.sum(2, keepdim=True).clamp_(min=tiny)
        mean = (weight * relative).sum(2, keepdim=True) / total
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(relative, mean, total)
            ctx.shape = raw.shape
        return _keep_axes((scale * mean)[..., 0], raw.ndim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        relative, mean, total = ctx.saved_tensors
        cubed = relative.square().mul_(relative)
        slope: torch.Tensor = (relative * 5).sub_(4 * mean).mul_(cubed).mul_(gradient.flatten(2) / total)
        return slope.reshape(ctx.shape)


def norm_relu(raw: torch.Tensor, floor: torch.Tensor | float = 0.0, *, robust: bool = False) -> torch.Tensor:
    """Return relu(raw) / max(scale, floor), in [0, 1], per sample and channel.

    Args:
        raw: (batch, channel, *space), raw network output; computed in float32 or wider.
        floor: smallest denominator, a number or broadcastable to (batch, channel). It keeps an image without
            the structure, whose raw output is small, from being blown up to 1. In the unit of `raw`.
        robust: the scale is `robust_peak`, and values above it become 1; else it is `peak`, as the paper
            prints it.

    Returns:
        (batch, channel, *space). Zeros where the scale and the floor are 0.
    """
    values = at_least_float32(raw)
    scale = robust_peak(values) if robust else peak(values)
    denominator = torch.maximum(scale, broadcast_floor(floor, values))
    safe = torch.where(denominator > 0, denominator, torch.ones_like(denominator))
    return (values.clamp(min=0) / safe).clamp(max=1)


def broadcast_floor(floor: torch.Tensor | float, raw: torch.Tensor) -> torch.Tensor:
    """Return a floor per label, or a number, as (batch, channel, 1, ...) or a scalar of the type of `raw`."""
    smallest = torch.as_tensor(floor, dtype=raw.dtype, device=raw.device)
    return _keep_axes(smallest.expand(raw.shape[:2]), raw.ndim) if smallest.ndim else smallest


def _keep_axes(values: torch.Tensor, ndim: int) -> torch.Tensor:
    return values.reshape(*values.shape, *[1] * (ndim - 2))
