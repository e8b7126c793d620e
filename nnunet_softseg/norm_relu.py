"""NormReLU: from the network's raw output to a soft map in [0, 1].

Source: Bedard et al. 2025, section 3.4: relu(x) / max(relu(x)), 0 where the maximum is 0. The axis of the maximum is not
printed there; here it is per sample and channel, so that no case depends on its batch mates.
"""

import torch


def peak(raw: torch.Tensor) -> torch.Tensor:
    """Return the largest positive value of each sample and channel, kept as (batch, channel, 1, ...).

    Args:
        raw: (batch, channel, *space), raw network output.
    """
    return raw.flatten(2).amax(dim=2).clamp(min=0).reshape(*raw.shape[:2], *[1] * (raw.ndim - 2))


def norm_relu(raw: torch.Tensor, floor: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Return relu(raw) / max(peak, floor), in [0, 1], per sample and channel.

    Args:
        raw: (batch, channel, *space), raw network output; computed in float32 or wider.
        floor: smallest denominator, a number or broadcastable to (batch, channel). It keeps an image without the
            structure, whose raw output is small, from being blown up to 1. In the unit of `raw`.

    Returns:
        (batch, channel, *space). Zeros where the peak and the floor are 0.
    """
    values = raw.float() if raw.dtype in (torch.float16, torch.bfloat16) else raw
    positive = values.clamp(min=0)
    smallest = torch.as_tensor(floor, dtype=values.dtype, device=values.device)
    if smallest.ndim:
        smallest = smallest.expand(raw.shape[:2]).reshape(*raw.shape[:2], *[1] * (raw.ndim - 2))
    denominator = torch.maximum(peak(values), smallest)
    safe = torch.where(denominator > 0, denominator, torch.ones_like(denominator))
    return positive / safe
