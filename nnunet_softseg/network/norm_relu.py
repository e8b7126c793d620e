"""NormReLU: from the network's raw output to a soft map in [0, 1].

Source: Bedard et al. 2025, section 3.4: relu(x) / max(relu(x)), 0 where the maximum is 0. The axis of the
maximum is not printed there; here it is per sample and channel, so that no case depends on its batch mates.

The single largest voxel is a fragile scale: one hot voxel of 1.3 shrinks everything else to 77 %. So
there are two scales: `peak`, as printed, and `soft_map.robust_peak`, a Lehmer mean. The running scale, one
number per label in a buffer of the network, follows the robust peak over training patches that hold the
label: at inference it tells a structure from an image without one, as the loss leaves the scale of the raw
output free.
"""

import torch

from nnunet_softseg.network.soft_map import at_least_float32, robust_peak

LABELLED = 0.5
"""A patch whose target stays below this holds at most the fringe of the structure."""


def peak(raw: torch.Tensor) -> torch.Tensor:
    """Return the largest positive value of each sample and channel of raw output (batch, channel, *space).

    It is kept as (batch, channel, 1, ...).
    """
    return _keep_axes(raw.flatten(2).amax(dim=2).clamp(min=0), raw.ndim)


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
    safe = torch.where(denominator > 0, denominator, 1)
    return (values.clamp(min=0) / safe).clamp(max=1)


def broadcast_floor(floor: torch.Tensor | float, raw: torch.Tensor) -> torch.Tensor:
    """Return a floor per label, or a number, as (batch, channel, 1, ...) or a scalar of the type of `raw`."""
    smallest = torch.as_tensor(floor, dtype=raw.dtype, device=raw.device)
    return _keep_axes(smallest.expand(raw.shape[:2]), raw.ndim) if smallest.ndim else smallest


def _keep_axes(values: torch.Tensor, ndim: int) -> torch.Tensor:
    return values.reshape(*values.shape, *[1] * (ndim - 2))


# In training


def normalised_for_loss(
    raw: torch.Tensor,
    target: torch.Tensor,
    floor_fraction: float,
    scale: torch.Tensor,
    *,
    fixed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the soft map of a patch, as it will be in the whole case, with a gradient on every label.

    It is raw output over `denominator_for_loss`. Where the target is above 0 the raw output is not cut off at
    0: a head that has gone negative everywhere still gets a gradient back. Where it is below 1, nothing is
    cut off at 1.

    Args:
        raw: (batch, label, *space).
        target: as raw.
        floor_fraction: smallest denominator, as a fraction of the running scale.
        scale: (label,) running scale, 0 where not known yet.
        fixed: (label,) whether the output scale is fixed; None: nowhere.
    """
    denominator, _ = denominator_for_loss(
        robust_peak(raw),
        largest=peak(target),
        height=robust_peak(target),
        floor=floor_fraction * scale,
        scale=scale,
        fixed=fixed,
    )
    return target + cut_off(raw / denominator - target, target)


def denominator_for_loss(
    peaks: torch.Tensor,
    *,
    largest: torch.Tensor,
    height: torch.Tensor,
    floor: torch.Tensor,
    scale: torch.Tensor,
    fixed: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the raw output of a patch is divided by, and its slope along the peaks.

    Both are (batch, label, 1, ...). The first has a gradient on peaks, the second is its value.

    At inference the robust peak of the case becomes that of the labels of the training, and here that of the
    target: raw output in proportion to the target gives the target, of a patch that holds only the fringe of
    the structure and of the averages of a coarse level, too. A patch without a label (below 0.5) is measured
    against the running scale instead, so that it learns to stay low. On a fixed scale nothing is divided.

    Args:
        peaks: (batch, label, 1, ...), robust peak of the raw output.
        largest: as peaks; `peak` of the target.
        height: as peaks; `robust_peak` of the target.
        floor: (label,), the smallest peak that counts.
        scale: (label,), running scale.
        fixed: (label,), whether the output scale is fixed; None: nowhere.
    """
    tiny = torch.finfo(peaks.dtype).tiny
    running, smallest = (broadcast_floor(values, peaks).expand_as(largest) for values in (scale, floor))
    height = height.clamp(min=tiny)
    measured = largest > LABELLED
    if fixed is not None:
        alone = _keep_axes(fixed[None], peaks.ndim)
        running, measured = torch.where(alone, 1, running), measured & ~alone
    denominator = torch.where(measured, torch.maximum(peaks, smallest) / height, running)
    slope = (measured & (peaks > smallest)) / height
    return torch.where(denominator > 0, denominator, 1), slope


def cut_off(difference: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return prediction minus target, a prediction cut off at 0 where the target is 0, at 1 where it is 1."""
    # Bounds that are 0 there, and out of reach elsewhere: a tenth of the cost of choosing by masks.
    beyond = torch.finfo(difference.dtype).max
    below = -beyond * target
    return torch.clamp(difference, below, below + beyond)


# The running scale


@torch.no_grad()
def update_running_scale(
    scale: torch.Tensor,
    peaks: torch.Tensor,
    largest: torch.Tensor,
    momentum: float,
    *,
    fixed: torch.Tensor | None = None,
) -> None:
    """Move the running scale towards the robust peaks of a batch, in place, leaving out unlabelled patches.

    Args:
        scale: (label,), 0 where not known yet.
        peaks: (batch, label, 1, ...), `robust_peak` of the raw output.
        largest: as peaks; `peak` of the target.
        momentum: share of the old value.
        fixed: (label,) whether the output scale is fixed: its running scale is 1; None: nowhere.
    """
    labelled = (largest.flatten(1) > LABELLED).to(scale.dtype)
    count = labelled.sum(0)
    of_batch = (peaks.flatten(1) * labelled).sum(0) / count.clamp(min=1)
    moved = torch.where(scale > 0, momentum * scale + (1 - momentum) * of_batch, of_batch)
    scale.copy_(torch.where(count > 0, moved, scale))
    if fixed is not None:
        scale[fixed] = 1
