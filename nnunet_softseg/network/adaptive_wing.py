"""The adaptive wing loss of a voxel."""

from typing import Any, Literal

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from nnunet_softseg.network.norm_relu import at_least_float32

Reduction = Literal["none", "mean", "sum"]
_LEAST_ALPHA = 2
"""The exponent is alpha - target; at 1 or less the slope at no error is infinite."""


class AdaptiveWingLoss(nn.Module):
    """Adaptive wing loss: sharp near the target, blunt far from it, gentle on the background.

    With d = |target - prediction|, p = alpha - target, per voxel:

        d <  theta:  omega * ln(1 + (d / epsilon) ** p)
        d >= theta:  A * d - C

    with A and C such that value and slope are continuous at theta.

    Source: Wang, Bo, Fuxin 2019, "Adaptive Wing Loss for Robust Face Alignment via Heatmap Regression",
    section 4.2, eq. 5. The exponent is alpha - target, as there; Bedard et al. 2025 print alpha alone, their
    code uses alpha - target too. Both are here. The adaptive exponent makes small errors dear on the
    structure and cheap beside it: where a voxel's label is uncertain, the minimum lies above its mean.

    Args:
        omega: height of the curved part.
        epsilon: width of the curved part; no unit, as the label.
        theta: error at which the loss becomes a line; no unit.
        alpha: exponent at a target of 0; must be above 2, so that the slope at no error is finite for a
            target of 1.
        reduction: "none" keeps the shape, "mean" and "sum" give a scalar in float32 or wider.
        adaptive: the exponent p is alpha - target; False: alpha, for every target.

    Raises:
        ValueError: if a parameter lies outside its range.
    """

    def __init__(
        self,
        omega: float = 8.0,
        epsilon: float = 1.0,
        theta: float = 0.5,
        alpha: float = 2.1,
        reduction: Reduction = "mean",
        *,
        adaptive: bool = True,
    ) -> None:
        super().__init__()
        for name, value in {"omega": omega, "epsilon": epsilon, "theta": theta}.items():
            if not value > 0:
                raise ValueError(f"{name} of the adaptive wing loss must be above 0, got {value}")
        if not alpha > _LEAST_ALPHA:
            raise ValueError(
                f"alpha of the adaptive wing loss must be above {_LEAST_ALPHA} (the exponent is alpha - "
                f"target and has to stay above 1 for a finite slope), got {alpha}"
            )
        if reduction not in ("none", "mean", "sum"):
            raise ValueError(f'reduction must be "none", "mean" or "sum", got {reduction!r}')
        self.omega, self.epsilon, self.theta, self.alpha = omega, epsilon, theta, alpha
        self.reduction: Reduction = reduction
        self.adaptive = adaptive

    def forward(
        self, prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss, with a gradient for the prediction only.

        Args:
            prediction: any shape, any float type; computed in float32 or wider.
            target: the same shape; clamped to [0, 1].
            weight: of each voxel, the same shape; None: 1. The mean is that of voxels by their weight.

        Raises:
            ValueError: if the shapes differ.
        """
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction and target must have the same shape, got {tuple(prediction.shape)} "
                f"and {tuple(target.shape)}"
            )
        loss = self._per_voxel(at_least_float32(prediction), at_least_float32(target).clamp(0, 1))
        if weight is not None:
            loss = loss * weight
        if self.reduction == "none":
            return loss
        if self.reduction == "sum":
            return loss.sum()
        return loss.mean() if weight is None else loss.sum() / weight.sum().clamp(min=1)

    def _per_voxel(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        exponent = self.alpha - target if self.adaptive else self.alpha  # a number costs less than an array
        form = (self.omega, self.epsilon, self.theta)
        loss: torch.Tensor = _Wing.apply(prediction - target, exponent, form)  # type: ignore[no-untyped-call]
        return loss


class _Wing(torch.autograd.Function):
    """The formula and its slope in one go: left to autograd, the slope costs more than the formula."""

    @staticmethod
    def forward(
        ctx: Any,
        difference: torch.Tensor,
        exponent: torch.Tensor | float,
        omega_epsilon_theta: tuple[float, float, float],
    ) -> torch.Tensor:
        omega, epsilon, theta = omega_epsilon_theta
        error = difference.abs()
        ratio = error.clamp(max=theta).div_(epsilon)
        power = ratio**exponent
        # At theta the line meets the curve: there the curved part is already the constant part of the line.
        loss = torch.log1p(power).mul_(omega)
        loss += _slope(theta / epsilon, (theta / epsilon) ** exponent, exponent, omega, epsilon) * (
            error - theta
        ).clamp_(min=0)
        if ctx.needs_input_grad[0]:
            # Without an error the slope is 0, as the exponent is above 1, and not 0 / 0.
            ratio.clamp_(min=torch.finfo(ratio.dtype).tiny)
            slope = _slope(ratio, power, exponent, omega, epsilon)
            ctx.save_for_backward(slope.copysign_(difference))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None, None


def _slope(ratio: Any, power: Any, exponent: Any, omega: float, epsilon: float) -> Any:
    """Return the slope at error / epsilon = ratio, with power = ratio ** exponent; numbers or arrays."""
    return power / (ratio * (1 + power)) * (exponent * omega / epsilon)
