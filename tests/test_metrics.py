"""Measures against values worked out by hand, and their laws."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nnunet_softseg import metrics

P = np.array([0.0, 0.2, 0.6, 1.0, 0.8], dtype=np.float32)
Y = np.array([0.0, 0.4, 0.4, 1.0, 1.0], dtype=np.float32)
maps = hnp.arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32))


def test_by_hand() -> None:
    # above 0.5: p has 3 voxels, y has 2, both have 2
    assert metrics.dice(P, Y) == pytest.approx(2 * 2 / 5)
    # minima 0, 0.2, 0.4, 1, 0.8 sum to 2.4; p sums to 2.6, y to 2.8
    assert metrics.soft_dice(P, Y) == pytest.approx(2 * 2.4 / 5.4)
    assert metrics.mean_absolute_error(P, Y) == pytest.approx((0.2 + 0.2 + 0.2) / 5)
    assert metrics.mean_absolute_error(P, Y, metrics.boundary(Y)) == pytest.approx(0.2)
    assert metrics.relative_volume_error(P, Y) == pytest.approx(100 * (2.6 - 2.8) / 2.8)
    assert metrics.soft_measures(P, Y, 0.5)["volume_mm3"] == pytest.approx(1.3)


@given(maps)
def test_a_map_agrees_fully_with_itself(soft: np.ndarray) -> None:
    measures = metrics.soft_measures(soft, soft, 1.0)
    assert measures["mae"] == 0
    assert math.isnan(measures["soft_dice"]) if soft.sum() == 0 else measures["soft_dice"] == pytest.approx(1)


@given(maps, maps)
def test_bounds_and_symmetry(a: np.ndarray, b: np.ndarray) -> None:
    forward, back = metrics.soft_dice(a, b), metrics.soft_dice(b, a)
    assert (math.isnan(forward) and math.isnan(back)) or forward == pytest.approx(back)
    assert math.isnan(forward) or 0 <= forward <= 1 + 1e-9


@pytest.mark.parametrize(
    ("prediction", "reference", "dice", "soft_dice", "rve"),
    [
        (np.zeros(4), np.zeros(4), math.nan, math.nan, math.nan),
        (np.ones(4), np.zeros(4), 0.0, 0.0, math.nan),
        (np.zeros(4), np.ones(4), 0.0, 0.0, -100.0),
        (np.full(4, 0.4), np.ones(4), 0.0, 0.8 / 1.4, -60.0),
    ],
)
def test_empty_maps(
    prediction: np.ndarray, reference: np.ndarray, dice: float, soft_dice: float, rve: float
) -> None:
    found = metrics.soft_measures(prediction, reference, 1.0)
    for name, expected in {"dice": dice, "soft_dice": soft_dice, "rve_percent": rve}.items():
        assert found[name] == pytest.approx(expected, nan_ok=True), name


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"):
        metrics.soft_measures(np.zeros(3), np.zeros(4), 1.0)
