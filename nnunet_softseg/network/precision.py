"""The float type in which sums over many voxels are taken."""

import torch


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """Return values in float32, or wider if they are: half precision and integers are converted."""
    narrow = values.dtype in (torch.float16, torch.bfloat16) or not values.is_floating_point()
    return values.float() if narrow else values
