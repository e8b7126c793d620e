"""Tiles and their weights are nnU-Net's."""

import numpy as np
import pytest
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.inference import sliding_window_prediction as nnunet
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_softseg.inference.soft_prediction import gaussian, padded, tiles

sizes = st.tuples(*[st.integers(1, 30)] * 3)
patches = st.tuples(*[st.integers(5, 24)] * 3)


class Plans:
    def __init__(self, patch_size: tuple[int, ...]) -> None:
        self.patch_size = patch_size


@given(sizes, patches, st.sampled_from([0.5, 0.3, 1.0]), st.booleans())
def test_tiles_lie_where_nnunet_puts_them(
    more: tuple[int, ...], patch: tuple[int, ...], step: float, flat: bool
) -> None:
    patch = patch[1:] if flat else patch
    least = (1, *patch) if flat else patch
    shape = tuple(size + extra - 1 for size, extra in zip(least, more, strict=True))
    by_nnunet = nnUNetPredictor(tile_step_size=step, device=torch.device("cpu"), allow_tqdm=False)
    by_nnunet.configuration_manager = Plans(patch)
    assert tiles(shape, patch, step) == by_nnunet._internal_get_sliding_window_slicers(shape)


@pytest.mark.parametrize("patch", [(16, 8, 8), (5, 7, 64), (9, 12), (320, 2, 3)])
def test_the_weight_of_a_tile_is_nnunets(patch: tuple[int, ...]) -> None:
    expected = nnunet.compute_gaussian(
        patch, sigma_scale=1 / 8, dtype=torch.float32, device=torch.device("cpu")
    )
    np.testing.assert_allclose(gaussian(patch), expected.numpy(), rtol=1e-6, atol=0)
    assert gaussian(patch).min() > 0


@given(sizes, patches, st.booleans())
def test_small_images_are_padded_as_by_nnunet(
    shape: tuple[int, ...], patch: tuple[int, ...], flat: bool
) -> None:
    patch = patch[1:] if flat else patch
    image = np.random.default_rng(0).random((2, *shape), dtype=np.float32)
    expected, back = pad_nd_image(image, patch, "constant", {"constant_values": 0}, True, None)
    found, within = padded(image, patch)
    np.testing.assert_array_equal(found, expected)
    assert within == tuple(slice(int(one.start), int(one.stop)) for one in back)
    np.testing.assert_array_equal(found[within], image)
