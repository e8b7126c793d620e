"""NormReLU: from the network's raw output to a soft map in [0, 1].

Source: Bedard et al. 2025, section 3.4: relu(x) / max(relu(x)), 0 where the maximum is 0. The axis of the
maximum is not printed there; here it is per sample and channel, so that no case depends on its batch mates.

The single largest voxel is a fragile yardstick: one hot voxel of 1.3 shrinks everything else to 77 %. So
there are two: `peak`, as printed, and `plateau`, the height on which most of the structure stands.
"""

import torch


def peak(raw: torch.Tensor) -> torch.Tensor:
    """Return the largest positive value of each sample and channel, kept as (batch, channel, 1, ...).

    Args:
        raw: (batch, channel, *space), raw network output.
    """
    return _keep_axes(raw.flatten(2).amax(dim=2).clamp(min=0), raw.ndim)


def plateau(raw: torch.Tensor) -> torch.Tensor:
    """Return the height of the plateau of each sample and channel, kept as (batch, channel, 1, ...).

    It is sum(x ** 5) / sum(x ** 4) over x = relu(raw): a mean in which high values count most. On a structure
    of constant height it is that height; partial volume at the boundary lowers it by a percent or two; a
    residue in the background hardly moves it, and a hot voxel of 1.3 in a disc of 113 by 0.8 %, not by 30 %.
    Unlike the maximum it passes its gradient to all of the structure.

    Args:
        raw: (batch, channel, *space), raw network output.
    """
    positive = raw.float().clamp(min=0)
    # Powers of values relative to the peak neither overflow nor vanish, whatever the scale of the network.
    scale = peak(positive).detach().clamp(min=torch.finfo(torch.float32).tiny)
    relative = (positive / scale).flatten(2)
    weight = relative.square().square()  # a fifth of the cost of ** 4
    mean = (weight * relative).sum(2) / weight.sum(2).clamp(min=torch.finfo(torch.float32).tiny)
    return scale * _keep_axes(mean, raw.ndim)


def norm_relu(raw: torch.Tensor, floor: torch.Tensor | float = 0.0, *, robust: bool = False) -> torch.Tensor:
    """Return relu(raw) / max(yardstick, floor), in [0, 1], per sample and channel.

    Args:
        raw: (batch, channel, *space), raw network output; computed in float32 or wider.
        floor: smallest denominator, a number or broadcastable to (batch, channel). It keeps an image without
            the structure, whose raw output is small, from being blown up to 1. In the unit of `raw`.
        robust: the yardstick is `plateau`, and what stands above it is 1; else it is `peak`, as the paper
            prints it.

    Returns:
        (batch, channel, *space). Zeros where the yardstick and the floor are 0.
    """
    values = raw.float() if raw.dtype in (torch.float16, torch.bfloat16) else raw
    yardstick = plateau(values).to(values.dtype) if robust else peak(values)
    denominator = torch.maximum(yardstick, broadcast_floor(floor, values))
    safe = torch.where(denominator > 0, denominator, torch.ones_like(denominator))
    return (values.clamp(min=0) / safe).clamp(max=1)


def broadcast_floor(floor: torch.Tensor | float, raw: torch.Tensor) -> torch.Tensor:
    """Return a floor per label, or a number, as (batch, channel, 1, ...) or a scalar of the type of `raw`."""
    smallest = torch.as_tensor(floor, dtype=raw.dtype, device=raw.device)
    return _keep_axes(smallest.expand(raw.shape[:2]), raw.ndim) if smallest.ndim else smallest


def _keep_axes(values: torch.Tensor, ndim: int) -> torch.Tensor:
    return values.reshape(*values.shape, *[1] * (ndim - 2))
