"""NumPy's arrays and torch's give the same soft map, and the same mean of mirrored passes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_softseg.network.soft_map import Agreement, at_least_float32, mirrored, robust_peak, soft_map_of
from nnunet_softseg.preprocessing.output_scale import OutputScale


@pytest.mark.parametrize("axes", [(), (0,), (1, 2), (0, 1, 2)])
def test_mirrored_passes_are_averaged_in_numpy_as_in_torch(axes: tuple[int, ...]) -> None:
    patch = np.random.default_rng(0).random((1, 4, 5, 6), dtype=np.float32)
    ramp = np.arange(120, dtype=np.float32).reshape(1, 4, 5, 6)
    found = mirrored(lambda x: x * ramp, patch, axes, np.flip)
    expected = mirrored(lambda x: x * torch.from_numpy(ramp), torch.from_numpy(patch), axes, torch.flip)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)
    # Each voxel is multiplied by the mean of the ramp over all of its mirror images.
    mean = ramp.copy()
    for axis in axes:
        mean = (mean + np.flip(mean, 1 + axis)) / 2
    np.testing.assert_allclose(found, patch * mean, rtol=1e-5)


def test_two_mirrored_passes_agree_by_the_soft_dice_of_what_is_above_0() -> None:
    """Here a pass multiplies by a ramp: 2 sum(min(a, b)) / sum(a + b), of each label, over both patches."""
    rng = np.random.default_rng(0)
    patches, ramp = rng.random((2, 1, 4, 5, 6), dtype=np.float32), rng.random((2, 4, 5, 6), dtype=np.float32)
    agreement, of_torch, common, both = Agreement(), Agreement(), np.zeros(2), np.zeros(2)
    for patch in patches:
        mirrored(lambda x: x * ramp, patch, (2,), np.flip, agreement)
        mirrored(lambda x: x * torch.from_numpy(ramp), torch.from_numpy(patch), (2,), torch.flip, of_torch)
        first, second = patch * ramp, patch * ramp[..., ::-1]
        common += np.minimum(first, second).sum(axis=(1, 2, 3))
        both += (first + second).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(agreement.of_labels(2), 2 * common / both, rtol=1e-5)
    np.testing.assert_allclose(of_torch.of_labels(2), agreement.of_labels(2), rtol=1e-5)


def test_passes_agree_wholly_where_there_is_one_or_nothing_is_found() -> None:
    patch, one, nothing = np.ones((1, 2, 2, 2), np.float32), Agreement(), Agreement()
    mirrored(lambda x: x, patch, (), np.flip, one)
    mirrored(lambda x: -x, patch, (0,), np.flip, nothing)
    assert one.of_labels(1).tolist() == nothing.of_labels(1).tolist() == [1.0]


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.floats(1e-3, 1e3), st.lists(st.booleans(), min_size=1, max_size=3))
def test_soft_maps_in_numpy_are_those_in_torch_and_as_written_out(
    seed: int, scale: float, fixed: list[bool]
) -> None:
    labels = len(fixed)
    raw = np.random.default_rng(seed).normal(0, scale, (2, labels, 6, 7, 8)).astype(np.float32)
    raw[1] = -1  # nothing in it
    running = np.linspace(0, scale, labels, dtype=np.float32)
    scales = [OutputScale("fixed" if is_fixed else "case", 0.9) for is_fixed in fixed]
    found = soft_map_of(raw.copy(), running, scales, 0.5)
    by_torch = soft_map_of(torch.from_numpy(raw), torch.from_numpy(running), scales, 0.5)
    np.testing.assert_allclose(found, by_torch.numpy(), rtol=0, atol=1e-6)
    positive = raw.astype(np.float64).clip(min=0)
    for label, is_fixed in enumerate(fixed):
        x = positive[0, label]
        peak = (x**5).sum() / (x**4).sum()
        np.testing.assert_allclose(robust_peak(raw)[0, label].item(), peak, rtol=1e-5)
        unit = 1.0 if is_fixed else max(peak, 0.5 * running[label]) / 0.9
        np.testing.assert_allclose(found[0, label], (x / unit).clip(max=1), rtol=0, atol=1e-5)
    assert not found[1].any()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("float16", "float32"), ("int16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_narrow_numbers_are_widened_in_both_kinds_of_arrays(kind: str, expected: str) -> None:
    values = np.ones((1, 1, 2), kind)
    assert at_least_float32(values).dtype == np.dtype(expected)
    assert at_least_float32(torch.from_numpy(values)).dtype == getattr(torch, expected)
