"""Post-processing: what options take away, and that nothing else does."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from nnunet_softseg.inference.case_record import Flag, PredictionOptions
from nnunet_softseg.inference.export import largest_piece, postprocess
from nnunet_softseg.preprocessing.output_scale import LabelShape, keep_supported, training_ranges
from nnunet_softseg.settings import PLANS_KEY

DISCARD = PredictionOptions(discard_implausible=True)
TRAINING = training_ranges([LabelShape(1, 30.0, area_roughness=0.01), LabelShape(1, 36.0, empty_start=3)])


def box_map(*boxes: tuple[tuple[int, int], ...], height: float = 1.0) -> np.ndarray:
    soft = np.zeros((40, 30, 30), np.float32)
    for box in boxes:
        soft[tuple(slice(*extent) for extent in box)] = height
    return soft


CORD = ((0, 40), (10, 16), (10, 16))
WIDE = box_map(((0, 40), (5, 25), (5, 25)))  # 400 voxels, of 36 at most


def plans(training: Any = TRAINING) -> dict[str, Any]:
    return {PLANS_KEY: {"settings": {}, "si_axis": 0, "training_shapes": {"cord": training}}}


def processed(
    soft: np.ndarray, options: PredictionOptions = DISCARD, training: Any = TRAINING, **case: Any
) -> tuple[np.ndarray, list[Flag]]:
    (kept,), raised = postprocess(soft[None], ["cord"], plans(training), options, **case)
    return kept, [flag for flag, _ in raised]


@pytest.mark.parametrize(
    ("soft", "raised"),
    [
        (box_map(CORD), []),
        (WIDE, [Flag.UNLIKE]),
        (box_map(((0, 7), (10, 16), (10, 16))), [Flag.BROKEN_OFF]),  # an image may reach beyond
        (box_map(((0, 18), *CORD[1:]), ((22, 40), *CORD[1:])), [Flag.PIECES, Flag.BROKEN_OFF]),
    ],
)
def test_a_map_is_emptied_on_request_if_it_is_unlike_the_training(soft: np.ndarray, raised: list) -> None:
    kept, flags = processed(soft, PredictionOptions())
    np.testing.assert_array_equal(kept, soft)
    assert flags == raised
    kept, flags = processed(soft)
    emptied = Flag.UNLIKE in raised
    np.testing.assert_array_equal(kept, soft * (not emptied))
    assert flags == raised + [Flag.DISCARDED] * emptied


def test_a_tilted_label_is_judged_across_and_the_padding_around_the_case_has_no_part() -> None:
    assert processed(WIDE, tilt_factor=np.full(40, 400 / 36)) == (pytest.approx(WIDE), [])
    in_case = (slice(4, 36), slice(0, 30), slice(0, 30))
    short = box_map(((4, 36), *CORD[1:]))
    assert processed(short)[1] == []  # within the tolerance at the ends
    short[4:10] = 0
    assert processed(short)[1] == [Flag.BROKEN_OFF]  # ten slices, of three and five
    assert processed(short, in_case=in_case)[1] == []  # six


def test_without_figures_of_the_training_nothing_is_emptied() -> None:
    for training in (None, {}, training_ranges([LabelShape(1, 36.0)])):
        kept, flags = processed(WIDE, training=training)
        np.testing.assert_array_equal(kept, WIDE)
        assert flags == []
    (kept,), raised = postprocess(
        WIDE[None], ["cord"], {PLANS_KEY: {"settings": {}, "si_axis": None}}, DISCARD
    )
    np.testing.assert_array_equal(kept, WIDE)
    assert raised == []


def test_of_several_labels_each_is_judged_alone() -> None:
    known = {PLANS_KEY: {**plans()[PLANS_KEY], "training_shapes": {"cord": TRAINING, "canal": TRAINING}}}
    maps, raised = postprocess(np.stack([WIDE, box_map(CORD)]), ["canal", "cord"], known, DISCARD)
    assert not maps[0].any()
    np.testing.assert_array_equal(maps[1], box_map(CORD))
    assert [flag for flag, _ in raised] == [Flag.UNLIKE, Flag.DISCARDED]
    assert raised[0].why.startswith("canal is unlike the labels of the training: largest area 400 (in tra")


@settings(max_examples=40)
@given(st.integers(0, 2**31))
def test_the_largest_piece_keeps_its_values_and_nothing_else_is_left(seed: int) -> None:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(16, 18, 20)), 1.5)
    soft = keep_supported(np.clip(noise / noise.max() * 1.5 - 0.4, 0, 1).astype(np.float32), 0.5, 0.05)
    kept = largest_piece(soft, 0.05)
    there = kept > 0
    np.testing.assert_array_equal(kept[there], soft[there])
    np.testing.assert_array_equal(largest_piece(kept, 0.05), kept)
    # what was taken away is no larger than what was kept, and does not touch it above the threshold
    rest = np.where(there, 0, soft)
    largest_of_rest = largest_piece(rest, 0.05)
    assert largest_of_rest[largest_of_rest > 0.05].sum() <= kept[kept > 0.05].sum()
    assert kept.sum() > 0 or soft.sum() == 0


def test_two_balls_and_their_faint_rims() -> None:
    soft = box_map(CORD)
    soft[:, 9, 10:16] = 0.03  # partial volume below the threshold
    alone = soft.copy()
    soft[5:12, 20:26, 20:26] = 0.9
    kept, flags = processed(soft, PredictionOptions())
    np.testing.assert_array_equal(kept, soft)
    assert Flag.PIECES in flags
    kept, flags = processed(soft, PredictionOptions(largest_piece=True))
    np.testing.assert_array_equal(kept, alone)
    assert flags == []


def test_nothing_stays_nothing() -> None:
    np.testing.assert_array_equal(largest_piece(np.zeros((3, 3, 3), np.float32), 0.05), 0)
    assert processed(np.zeros((4, 5, 6), np.float32))[1] == [Flag.EMPTY]
