"""NormReLU by its laws."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nnunet_softseg.norm_relu import norm_relu, peak

raw_outputs = hnp.arrays(
    np.float64, (3, 2, 4, 3, 2), elements=st.floats(-5, 5, allow_subnormal=False).map(lambda v: round(v, 6))
)


@given(raw_outputs, st.floats(0, 2))
def test_stays_in_the_unit_interval(raw: np.ndarray, floor: float) -> None:
    result = norm_relu(torch.from_numpy(raw), floor)
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


@given(raw_outputs, st.floats(0.1, 10))
def test_free_of_scale_above_the_floor(raw: np.ndarray, scale: float) -> None:
    values = torch.from_numpy(raw)
    torch.testing.assert_close(norm_relu(scale * values), norm_relu(values), rtol=1e-9, atol=1e-12)


@given(raw_outputs, st.floats(0, 2))
def test_blind_to_batch_mates_and_other_channels(raw: np.ndarray, floor: float) -> None:
    values = torch.from_numpy(raw)
    together = norm_relu(values, floor)
    for sample in range(3):
        for channel in range(2):
            alone = norm_relu(values[sample : sample + 1, channel : channel + 1], floor)
            assert torch.equal(alone[0, 0], together[sample, channel])


def test_zeros_and_negatives_give_zeros_not_nan() -> None:
    assert torch.equal(norm_relu(torch.zeros(1, 1, 4, 4)), torch.zeros(1, 1, 4, 4))
    assert torch.equal(norm_relu(-torch.ones(1, 1, 4, 4)), torch.zeros(1, 1, 4, 4))


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
