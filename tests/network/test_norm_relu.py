"""NormReLU by its laws."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nnunet_softseg.network.norm_relu import norm_relu, peak, update_running_scale
from nnunet_softseg.network.soft_map import robust_peak

raw_outputs = hnp.arrays(
    np.float64, (3, 2, 4, 3, 2), elements=st.floats(-5, 5, allow_subnormal=False).map(lambda v: round(v, 6))
)


@given(raw_outputs, st.floats(0, 2), st.booleans())
def test_stays_in_the_unit_interval(raw: np.ndarray, floor: float, robust: bool) -> None:
    result = norm_relu(torch.from_numpy(raw), floor, robust=robust)
    assert float(result.min()) >= 0
    assert float(result.max()) <= 1


@given(raw_outputs)
def test_the_printed_formula_without_a_floor(raw: np.ndarray) -> None:
    result = norm_relu(torch.from_numpy(raw)).numpy()
    for sample in range(3):
        for channel in range(2):
            positive = np.maximum(raw[sample, channel], 0)
            expected = positive / positive.max() if positive.max() > 0 else positive
            np.testing.assert_allclose(result[sample, channel], expected, rtol=1e-12)


@given(raw_outputs, st.floats(0.1, 10), st.booleans())
def test_free_of_scale_above_the_floor(raw: np.ndarray, scale: float, robust: bool) -> None:
    values = torch.from_numpy(raw)
    found, expected = norm_relu(scale * values, robust=robust), norm_relu(values, robust=robust)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@given(raw_outputs, st.floats(0, 2), st.booleans())
def test_blind_to_batch_mates_and_other_channels(raw: np.ndarray, floor: float, robust: bool) -> None:
    values = torch.from_numpy(raw)
    together = norm_relu(values, floor, robust=robust)
    for sample in range(3):
        for channel in range(2):
            alone = norm_relu(values[sample : sample + 1, channel : channel + 1], floor, robust=robust)
            # sums may be added in another order in a larger batch
            torch.testing.assert_close(alone[0, 0], together[sample, channel], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("robust", [True, False])
def test_zeros_and_negatives_give_zeros_not_nan(robust: bool) -> None:
    for raw in (torch.zeros(1, 1, 4, 4), -torch.ones(1, 1, 4, 4)):
        values = raw.clone().requires_grad_()
        result = norm_relu(values, robust=robust)
        assert torch.equal(result, torch.zeros(1, 1, 4, 4))
        result.sum().backward()
        assert torch.isfinite(values.grad).all()


def disc(radius: float = 6.0, edge: float = 0.0) -> torch.Tensor:
    """A disc on a fine grid; with an edge it falls linearly to 0 over that width."""
    y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    inside = (radius - torch.hypot(y, x)) / edge + 0.5 if edge else (torch.hypot(y, x) < radius).float()
    return inside.clamp(0, 1)[None, None]


def test_robust_peak_of_a_constant_structure_is_its_height() -> None:
    assert float(robust_peak(3.7 * disc())) == pytest.approx(3.7, rel=1e-6)


def test_one_hot_voxel_hardly_moves_the_robust_peak() -> None:
    """113 voxels of 1 and one of 1.3: the largest voxel would shrink the area to 112 / 1.3 + 1 = 87."""
    raw = disc()
    assert int(raw.sum()) == 112
    raw[0, 0, 31, 31] = 1.3
    # by hand: (111 + 1.3 ** 5) / (111 + 1.3 ** 4)
    assert float(robust_peak(raw)) == pytest.approx((111 + 1.3**5) / (111 + 1.3**4), rel=1e-6)
    assert float(norm_relu(raw, robust=True).sum()) == pytest.approx(112, rel=0.01)
    assert float(norm_relu(raw).sum()) == pytest.approx(111 / 1.3 + 1, rel=1e-5)


def test_a_residue_in_the_background_hardly_moves_the_robust_peak() -> None:
    raw = disc()
    with_residue = torch.where(raw > 0, raw, torch.tensor(0.05))
    assert float(with_residue.sum()) > 2 * float(raw.sum())
    assert float(robust_peak(with_residue)) == pytest.approx(1, abs=0.001)


def test_partial_volume_lowers_the_plateau_a_little() -> None:
    # a linear edge of 3 around radius 6: integrals of x^5 and x^4 over the ring, by hand, give 0.979
    heights = np.linspace(0, 1, 200_001)
    ring = 2 * np.pi * (7.5 - 3 * heights) * 3
    core = np.pi * 4.5**2
    fifth = core + np.trapezoid(heights**5 * ring, heights)
    fourth = core + np.trapezoid(heights**4 * ring, heights)
    assert float(robust_peak(disc(edge=3.0))) == pytest.approx(fifth / fourth, abs=0.005)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_robust_peak_neither_overflows_nor_vanishes(scale: float) -> None:
    assert float(robust_peak(scale * disc())) == pytest.approx(scale, rel=1e-5)


def test_the_gradient_of_the_robust_peak_is_its_slope() -> None:
    """Against finite differences; the largest voxel, whose height the others are compared with, included."""
    values = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    raw = torch.from_numpy(values).requires_grad_()
    assert torch.autograd.gradcheck(robust_peak, raw)
    assert torch.autograd.gradcheck(lambda raw: norm_relu(raw, 0.1, robust=True), raw)


def test_the_floor_keeps_a_weak_image_weak() -> None:
    raw = torch.zeros(1, 2, 3)
    raw[0, :, 1] = torch.tensor([0.02, 1.3])
    result = norm_relu(raw, torch.tensor([0.5, 0.5]))
    assert float(result[0, 0, 1]) == pytest.approx(0.04)  # 0.02 / 0.5: without the floor it would be 1
    assert float(result[0, 1, 1]) == 1


def test_half_precision_is_divided_in_float32() -> None:
    raw = torch.tensor([[[3.0, 7.0]]], dtype=torch.float16)
    assert norm_relu(raw).dtype == torch.float32
    assert float(norm_relu(raw)[0, 0, 0]) == pytest.approx(3 / 7, abs=1e-7)


def test_peak_per_sample_and_channel() -> None:
    raw = torch.tensor([[[[1.0, -2.0]], [[-1.0, -3.0]]], [[[0.5, 4.0]], [[2.0, 0.0]]]])
    assert peak(raw).flatten().tolist() == [1.0, 0.0, 4.0, 2.0]


def test_the_gradient_reaches_the_input() -> None:
    raw = torch.tensor([[[0.5, 2.0, -1.0]]], requires_grad=True)
    norm_relu(raw)[0, 0, 0].backward()
    # d(a/b)/da = 1/b and d(a/b)/db = -a/b^2 with a = 0.5, b = 2
    torch.testing.assert_close(raw.grad, torch.tensor([[[0.5, -0.125, 0.0]]]))


def test_the_running_scale_moves_by_its_share_towards_the_labelled_patches() -> None:
    peaks = torch.tensor([[4.0, 8.0, 5.0, 9.0], [6.0, 0.0, 7.0, 9.0]])[..., None]
    target = torch.tensor([[1.0, 1.0, 0.1, 1.0], [1.0, 0.5, 0.5, 1.0]])[..., None]
    scale = torch.tensor([0.0, 2.0, 3.0, 5.0])
    update_running_scale(scale, peaks, target, 0.75, fixed=torch.tensor([False, False, False, True]))
    # Not known before: the batch's mean. The one labelled patch: 3/4 of 2 and 1/4 of 8. None: as it was.
    assert scale.tolist() == [5.0, 3.5, 3.0, 1.0]
