"""Intensities and grids as nnU-Net's own preprocessing makes them."""

from typing import Any

import numpy as np
import pytest
from grid_plans import INTENSITIES
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.preprocessing.normalization import default_normalization_schemes as nnunet
from nnunetv2.preprocessing.resampling import default_resampling

from nnunet_softseg.errors import UserError
from nnunet_softseg.preprocessing.normalisation import SCHEMES, normalise
from nnunet_softseg.preprocessing.resampling import ANISOTROPIC, new_shape, thick_axis


class Configuration:
    def __init__(self, scheme: str, masked: bool, channels: int = 2) -> None:
        self.normalization_schemes, self.use_mask_for_norm = [scheme] * channels, [masked] * channels


def noise(seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).gamma(2, 20, (2, 7, 8, 9)).clip(0, 255).astype(np.float32)
    values[:, :2, :3] = 0
    return values


@given(st.sampled_from(sorted(SCHEMES)), st.booleans(), st.integers(0, 2**31))
def test_every_scheme_is_nnunets(scheme: str, masked: bool, seed: int) -> None:
    image = noise(seed)
    mask = image.any(axis=0)
    intensities = {"0": INTENSITIES, "1": {**INTENSITIES, "mean": 31.0}}
    expected = image.copy()
    for channel in range(2):
        made = getattr(nnunet, scheme)(
            use_mask_for_norm=masked, intensityproperties=intensities[str(channel)]
        )
        expected[channel] = made.run(expected[channel], np.where(mask, 0, -1))
    found = normalise(image, mask if masked else None, Configuration(scheme, masked), intensities)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_there_is_no_scheme_of_nnunets_that_is_missing() -> None:
    there = {name for name, each in vars(nnunet).items() if isinstance(each, type) and hasattr(each, "run")}
    assert set(SCHEMES) == there - {"ImageNormalization"}


def test_a_scheme_of_nobody_is_named() -> None:
    with pytest.raises(UserError, match="normalisation OwnNormalization of the plans: expected a class in"):
        normalise(noise(0), None, Configuration("OwnNormalization", False), {})


def test_a_scheme_of_somebody_is_looked_for_in_nnunet(monkeypatch: pytest.MonkeyPatch) -> None:
    class Halved(nnunet.ImageNormalization):
        leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = False

        def run(self, image: np.ndarray, seg: Any = None) -> np.ndarray:
            assert (seg == -1).sum() == 6 * 9
            return image / 2

    from nnunetv2.utilities import find_class_by_name

    monkeypatch.setattr(find_class_by_name, "recursive_find_python_class", lambda *_: Halved)
    image = noise(1)
    mask = np.ones(image.shape[1:], np.bool_)
    mask[:2, :3] = False
    found = normalise(image.copy(), mask, Configuration("Halved", True), {})
    np.testing.assert_array_equal(found, image / 2)


spacings = st.tuples(*[st.sampled_from([0.3, 0.5, 0.8, 1.0, 1.3, 2.2, 5.0])] * 3)


@given(spacings, spacings, st.sampled_from([None, True, False]), st.sampled_from([ANISOTROPIC, 1.5]))
def test_the_axis_of_thick_slices_is_nnunets(
    own: tuple[float, ...], target: tuple[float, ...], force: bool | None, threshold: float
) -> None:
    separate, axis = default_resampling.determine_do_sep_z_and_axis(force, own, target, threshold)
    found = thick_axis(own, target, force=force, threshold=threshold)
    assert found == (axis if separate else None)


@given(st.tuples(*[st.integers(1, 500)] * 3), spacings, spacings)
def test_the_shape_of_the_grid_is_nnunets(
    shape: tuple[int, ...], own: tuple[float, ...], target: tuple[float, ...]
) -> None:
    assert new_shape(shape, own, target) == tuple(default_resampling.compute_new_shape(shape, own, target))
