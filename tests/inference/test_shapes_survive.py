"""Exact soft maps of cords of any shape come back from the post-processing: flagged, never emptied."""

from functools import cache

import numpy as np
import pytest

from nnunet_softseg.inference.case_record import Flag, PredictionOptions
from nnunet_softseg.inference.export import postprocess
from nnunet_softseg.preprocessing.output_scale import label_shape, training_ranges
from nnunet_softseg.settings import PLANS_KEY

SLICES, SIZE, PARTS = 200, 40, 6
ALONG = np.arange(SLICES)  # in mm, as all lengths


def narrowed(discs: int, by: float) -> np.ndarray:
    """Area per slice of a cord that is narrowed at discs over about 10 mm each."""
    at = np.linspace(30, SLICES - 30, discs)
    return 75.0 * (1 - by * np.exp(-(((ALONG[:, None] - at) / 5) ** 2)).max(axis=1))


def widened(times: float, share: float) -> np.ndarray:
    """Area of a cord with a tumour in the middle; its ends taper off over 10 mm."""
    ends = np.clip((share * SLICES / 2 - np.abs(ALONG - SLICES / 2)) / 10 + 0.5, 0, 1)
    return 75.0 * (1 + (times - 1) * ends)


def interrupted(gaps: int) -> np.ndarray:
    areas = np.full(SLICES, 75.0)
    for at in np.linspace(30, SLICES - 30, gaps).astype(int):
        areas[at : at + 5] = 0
    return areas


def cord(areas: np.ndarray, ramp_mm: float = 0.0) -> np.ndarray:
    """Soft map of a cord along the first axis, 1 mm voxels: the share of each, its border blurred or not."""
    fine = (np.arange(SIZE * PARTS) + 0.5) / PARTS
    middles = SIZE / 2 + 3 * np.stack([np.sin(ALONG / 40), np.cos(ALONG / 60)], axis=1)
    soft = np.empty((SLICES, SIZE, SIZE), np.float32)
    for z, (y, x) in enumerate(middles):
        away = np.hypot(fine[:, None] - y, fine - x) - np.sqrt(areas[z] / np.pi)
        inside = away < 0 if ramp_mm == 0 else np.clip(0.5 - away / ramp_mm, 0, 1)
        soft[z] = inside.reshape(SIZE, PARTS, SIZE, PARTS).mean(axis=(1, 3)) * (areas[z] > 0)
    return soft


@cache
def plans() -> dict:
    """Of a model trained on healthy cords, each through all of its image, with an enlargement or two."""
    healthy = [
        cord(area * (1 + 0.16 * np.exp(-(((ALONG - at) / 24) ** 2))))
        for area, at in ((65.0, 40), (75.0, 90), (85.0, 150))
    ]
    training = training_ranges(label_shape(soft, 0) for soft in healthy)
    assert training is not None
    assert training["empty_start"] == training["empty_end"] == [0, 0]
    return {PLANS_KEY: {"settings": {}, "si_axis": 0, "training_shapes": {"cord": training}}}


KINDS: dict[str, tuple[np.ndarray, list[Flag]]] = {
    "healthy": (narrowed(1, 0.0), []),
    "three discs narrowed by 40 %": (narrowed(3, 0.4), [Flag.UNLIKE]),
    "five discs narrowed by 25 %": (narrowed(5, 0.25), [Flag.UNLIKE]),
    "five discs narrowed by 50 %": (narrowed(5, 0.5), [Flag.UNLIKE]),
    "conus": (75.0 * np.clip((150 - ALONG) / 60, 0, 1), [Flag.UNLIKE, Flag.BROKEN_OFF]),
    "tumour": (widened(3.5, 0.6), [Flag.UNLIKE]),
    "thinning": (np.linspace(85.0, 25.0, SLICES), []),
    "32 slices of 200": (75.0 * ((ALONG >= 90) & (ALONG < 122)), [Flag.BROKEN_OFF, Flag.SHORT]),
    "five gaps": (interrupted(5), [Flag.PIECES, Flag.BROKEN_OFF]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_map_comes_back_unchanged(kind: str) -> None:
    """And what is flagged is flagged for the figures that are meant."""
    areas, flags = KINDS[kind]
    soft = cord(areas)[None]
    kept, raised = postprocess(soft, ["cord"], plans(), PredictionOptions())
    np.testing.assert_array_equal(kept, soft)
    assert list(dict.fromkeys(flag for flag, _ in raised)) == flags


@pytest.mark.parametrize("kind", KINDS)
def test_a_blurred_map_keeps_all_within_reach_of_the_threshold(kind: str) -> None:
    """A border of 3 mm, as of several raters: beyond 0.05 a ring of one voxel is kept, nothing is emptied."""
    soft = cord(KINDS[kind][0], ramp_mm=3.0)[None]
    kept, _ = postprocess(soft, ["cord"], plans(), PredictionOptions())
    assert kept.sum() == pytest.approx(soft.sum(), rel=0.001)
    np.testing.assert_array_equal(kept[soft > 0.5], soft[soft > 0.5])


def test_on_request_only_what_is_unlike_the_training_is_emptied() -> None:
    options = PredictionOptions(discard_implausible=True)
    for areas, flags in KINDS.values():
        kept, raised = postprocess(cord(areas)[None], ["cord"], plans(), options)
        assert kept.any() == (Flag.UNLIKE not in flags)
        assert (Flag.DISCARDED in {flag for flag, _ in raised}) == (Flag.UNLIKE in flags)
