"""The adaptive wing loss of a voxel."""

import math
from typing import Any, Literal

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from nnunet_softseg.network.soft_map import at_least_float32

Reduction = Literal["none", "mean", "sum"]
_LEAST_ALPHA = 2
"""The exponent is alpha - target; at 1 or less the slope at no error is infinite."""
_SMALLEST = 1e-12
"""An error up to twice this, far below rounding, counts as none."""
_LOGARITHM_OF_NOTHING = -2000.0
"""To the base 2; its powers are 0 in every type."""


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
        labels = at_least_float32(target).clamp(0, 1)
        loss: torch.Tensor = _Wing.apply(at_least_float32(prediction), labels, self)  # type: ignore[no-untyped-call]
        if weight is not None:
            loss = loss * weight
        if self.reduction == "none":
            return loss
        if self.reduction == "sum":
            return loss.sum()
        return loss.mean() if weight is None else loss.sum() / weight.sum().clamp(min=1)

    def with_slope(
        self, difference: torch.Tensor, target: torch.Tensor | float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of each voxel, and its slope along the prediction, both without a gradient.

        Args:
            difference: prediction minus target, any shape, float32 or wider; overwritten.
            target: in [0, 1], the same shape, or one number for all voxels.
        """
        exponent = self.alpha - target if self.adaptive else self.alpha  # a number costs less than an array
        error = difference.abs()
        # Logarithms of 0 cost ten times those of other numbers. Without an error the power is 0, and so are
        # loss and slope.
        curved = error.clamp(_SMALLEST, self.theta)
        logarithm = curved.log2() if self.epsilon == 1 else curved.div(self.epsilon).log2_()
        torch.threshold_(logarithm, math.log2(2 * _SMALLEST / self.epsilon), _LOGARITHM_OF_NOTHING)
        # A third of the cost of a power; to the base 2, a quarter less than to that of e.
        power = logarithm.mul_(exponent).exp2_()
        slope = torch.addcmul(curved, curved, power)
        # From theta on, power and slope stay what they are there: the line goes on from the curve.
        torch.div(power, slope, out=slope).mul_(exponent).mul_(self.omega)
        loss = power.log1p_().mul_(self.omega).addcmul_(error.sub_(curved), slope)
        slope.mul_(difference.sign_())
        return loss, slope


class _Wing(torch.autograd.Function):
    """The formula and its slope in one go: left to autograd, the slope costs more than the formula."""

    @staticmethod
    def forward(
        ctx: Any, prediction: torch.Tensor, target: torch.Tensor, form: AdaptiveWingLoss
    ) -> torch.Tensor:
        loss, slope = form.with_slope(prediction - target, target)
        ctx.save_for_backward(slope)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None, None
