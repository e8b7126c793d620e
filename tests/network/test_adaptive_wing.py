"""The loss against the formula's published values, and the laws that a sound implementation obeys."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnunet_softseg.network.adaptive_wing import AdaptiveWingLoss

# target, prediction, loss: from the formula of Wang et al. 2019 with omega 8, epsilon 1, theta 0.5, alpha 2.1
TABLE = [
    (0.0, 0.1, 0.063295),
    (0.0, 0.3, 0.614141),
    (0.0, 0.5, 1.677277),
    (0.0, 1.0, 4.854826),
    (0.5, 0.0, 2.280692),
    (0.5, 0.3, 0.587090),
    (1.0, 0.8, 1.257862),
    (1.0, 0.0, 5.862504),
    (1.0, 1.5, 3.063119),
]
unit = st.floats(0, 1)


def per_voxel(target: float, prediction: float, **options: Any) -> float:
    loss = AdaptiveWingLoss(reduction="none", **options)
    return float(
        loss(torch.tensor([prediction], dtype=torch.float64), torch.tensor([target], dtype=torch.float64))
    )


def scalar_formula(y: float, x: float, omega: float, epsilon: float, theta: float, alpha: float) -> float:
    """The paper's two branches in plain Python, with the constants A and C as printed there."""
    d, p = abs(y - x), alpha - y
    if d < theta:
        return omega * math.log(1 + (d / epsilon) ** p)
    ratio = theta / epsilon
    a = omega / (1 + ratio**p) * p * ratio ** (p - 1) / epsilon
    c = theta * a - omega * math.log(1 + ratio**p)
    return a * d - c


@pytest.mark.parametrize(("target", "prediction", "expected"), TABLE)
def test_published_values(target: float, prediction: float, expected: float) -> None:
    assert per_voxel(target, prediction) == pytest.approx(expected, abs=1e-5)


@given(
    unit,
    st.floats(-3, 3),
    st.floats(0.5, 20),
    st.floats(0.3, 3),
    st.floats(0.1, 2),
    st.floats(2.01, 4),
)
def test_equals_the_two_printed_branches(
    y: float, x: float, omega: float, epsilon: float, theta: float, alpha: float
) -> None:
    expected = scalar_formula(y, x, omega, epsilon, theta, alpha)
    found = per_voxel(y, x, omega=omega, epsilon=epsilon, theta=theta, alpha=alpha)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(unit)
def test_no_error_no_loss(y: float) -> None:
    assert per_voxel(y, y) == 0


@given(unit, st.floats(0.001, 2))
def test_symmetric_around_the_target(y: float, error: float) -> None:
    assert per_voxel(y, y - error) == pytest.approx(per_voxel(y, y + error), rel=1e-6)


@given(unit)
def test_value_and_slope_are_continuous_at_theta(y: float) -> None:
    step = 1e-6
    values = [per_voxel(y, y + 0.5 + offset) for offset in (-2 * step, -step, 0.0, step, 2 * step)]
    below, above = (values[1] - values[0]) / step, (values[4] - values[3]) / step
    assert values[3] - values[1] == pytest.approx(2 * step * below, rel=1e-3)
    assert above == pytest.approx(below, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("target", [0.0, 0.37, 0.5, 1.0])
def test_gradients_are_finite_up_to_an_error_of_ten_thousand(dtype: torch.dtype, target: float) -> None:
    errors = torch.tensor([0.0, 1e-4, 0.01, 0.499, 0.5, 0.501, 1.0, 30.0, 1e3, 1e4])
    prediction = torch.cat([target + errors, target - errors]).to(dtype).requires_grad_()
    AdaptiveWingLoss(reduction="sum")(prediction, torch.full_like(prediction, target)).backward()
    assert torch.isfinite(prediction.grad).all()
    # the line's slope A; at a target of 0 the paper's constants give 6.355098
    if target == 0.0:
        assert float(prediction.grad[9]) == pytest.approx(6.355098, rel=8e-3)


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_gradient_is_the_slope_of_the_loss(adaptive: bool) -> None:
    """Against finite differences, on both sides of theta and of the target."""
    target = torch.linspace(0, 1, 9, dtype=torch.float64).repeat_interleave(8)
    errors = torch.tensor([-3.0, -0.55, -0.4, -0.01, 0.02, 0.3, 0.52, 2.0], dtype=torch.float64).repeat(9)
    prediction = (target + errors).requires_grad_()
    for reduction in ("none", "mean", "sum"):
        loss = AdaptiveWingLoss(omega=3.0, epsilon=0.7, reduction=reduction, adaptive=adaptive)
        assert torch.autograd.gradcheck(lambda p, loss=loss: loss(p, target), prediction)


def test_half_precision_is_reduced_in_float32() -> None:
    prediction, target = torch.ones(100_000, dtype=torch.float16), torch.zeros(100_000, dtype=torch.float16)
    total = AdaptiveWingLoss(reduction="sum")(prediction, target)
    assert total.dtype == torch.float32
    assert float(total) == pytest.approx(485_482.6, rel=1e-5)  # beyond what float16 can hold


def test_reductions_agree() -> None:
    prediction, target = torch.rand(3, 2, 5, 6, 7), torch.rand(3, 2, 5, 6, 7)
    each = AdaptiveWingLoss(reduction="none")(prediction, target)
    assert each.shape == prediction.shape
    assert float(AdaptiveWingLoss(reduction="sum")(prediction, target)) == pytest.approx(
        float(each.double().sum()), rel=1e-5
    )
    assert float(AdaptiveWingLoss(reduction="mean")(prediction, target)) == pytest.approx(
        float(each.double().mean()), rel=1e-5
    )


def test_targets_outside_the_unit_interval_are_clamped() -> None:
    assert per_voxel(1.3, 1.0) == 0
    assert per_voxel(-0.2, 0.0) == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"omega": 0.0}, "omega"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"theta": 0.0}, "theta"),
        ({"alpha": 2.0}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"reduction": "average"}, "reduction"),
    ],
)
def test_parameters_out_of_range_are_named(options: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AdaptiveWingLoss(**options)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(2, 1\) and \(2, 2\)"):
        AdaptiveWingLoss()(torch.zeros(2, 1), torch.zeros(2, 2))


@given(unit, st.floats(-3, 3))
def test_a_constant_exponent_is_that_of_a_target_of_zero(target: float, prediction: float) -> None:
    """As Bedard et al. 2025 print it: the same curve around every target."""
    error = abs(target - prediction)
    expected = scalar_formula(0.0, error, 8.0, 1.0, 0.5, 2.1)
    assert per_voxel(target, prediction, adaptive=False) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(st.floats(0.2, 0.8), st.floats(0.1, 0.2))
def test_an_uncertain_boundary_is_drawn_outwards_by_the_adaptive_exponent_only(
    mean: float, spread: float
) -> None:
    """A voxel that is mean + spread as often as mean - spread: symmetry keeps it at its mean."""
    predictions = torch.linspace(0, 1, 2001, dtype=torch.float64)

    def best(adaptive: bool) -> float:
        loss = AdaptiveWingLoss(reduction="none", adaptive=adaptive)
        low, high = (torch.full_like(predictions, mean + side) for side in (-spread, spread))
        return float(predictions[(loss(predictions, low) + loss(predictions, high)).argmin()])

    assert best(adaptive=False) == pytest.approx(mean, abs=1e-3)
    assert best(adaptive=True) > mean + 0.01
