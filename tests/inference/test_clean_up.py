"""What of a soft map is kept, and when nothing is."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from nnunet_softseg.errors import UserError
from nnunet_softseg.inference import postprocessing as clean_up
from nnunet_softseg.inference.flags import Flag
from nnunet_softseg.inference.postprocessing import cleaned, keep_supported, largest_piece
from nnunet_softseg.metrics.label_shape import could_be_labels, label_shape, most_extreme
from nnunet_softseg.settings import PLANS_KEY


def box_map(*boxes: tuple[tuple[int, int], ...], height: float = 1.0) -> np.ndarray:
    soft = np.zeros((40, 30, 30), np.float32)
    for box in boxes:
        soft[tuple(slice(*extent) for extent in box)] = height
    return soft


CORD = ((0, 40), (10, 16), (10, 16))
TRAINING = most_extreme([label_shape(box_map(CORD), 0), label_shape(box_map(((10, 40), *CORD[1:])), 0)])
assert TRAINING is not None
assert TRAINING["extent"] == 30


def resembles(*arguments: Any) -> bool:
    return any(True for _ in could_be_labels(*arguments))


def plans(training: Any = TRAINING) -> dict[str, Any]:
    return {PLANS_KEY: {"settings": {}, "si_axis": 0, "training_shapes": {"cord": training}}}


@pytest.mark.parametrize(
    ("boxes", "could_be"),
    [
        ([CORD], True),
        ([((0, 15), (10, 16), (10, 16))], True),  # half of the shortest, 30 slices
        ([((0, 14), (10, 16), (10, 16))], False),
        ([((0, 14), (10, 16), (10, 16)), ((20, 34), (10, 16), (10, 16))], False),  # pieces do not add up
        ([((0, 14), (2, 6), (2, 6)), CORD], True),
        ([CORD, ((12, 22), (5, 25), (5, 25))], True),  # a tumour over ten slices: most are a cord's
        ([((0, 40), (5, 25), (5, 25))], False),  # all of it wide: 400 voxels, of 36
        ([((0, 40), (10, 18), (10, 19))], True),  # twice as wide, and no more
        ([((0, 40), (10, 19), (10, 19))], False),
        # Wide, narrow, wide, ...: no slice is odd, but a cord is not like this over all of its length.
        ([((z, z + 2), (10, 16), (10, 16 if z % 4 else 19)) for z in range(0, 40, 2)], False),
        ([CORD, *(((z, z + 2), (10, 16), (10, 19)) for z in range(0, 18, 4))], True),  # a quarter of it
        # A sixth wider every other slice: no slice is odd, but a cord is smoother than that.
        ([((z, z + 1), (10, 16), (10, 16 if z % 2 else 17)) for z in range(40)], False),
        ([((0, 20), (10, 16), (10, 16)), ((20, 40), (10, 16), (10, 17))], True),  # once is an enlargement
    ],
)
def test_a_map_that_could_be_no_label_is_emptied(boxes: list[Any], could_be: bool) -> None:
    soft = box_map(*boxes)
    assert TRAINING is not None
    for axis in range(3):
        assert resembles(np.moveaxis(soft, 0, axis), TRAINING, axis) is could_be
    (kept,), findings = cleaned(soft[None], ["cord"], plans())
    np.testing.assert_array_equal(kept, soft if could_be else 0)
    assert [flag for flag, _ in findings] == [Flag.DISCARDED] * (not could_be)


@pytest.mark.parametrize(("inside", "could_be"), [(0.91, True), (0.89, False)])
def test_a_map_that_is_not_certain_inside_is_no_label(inside: float, could_be: bool) -> None:
    """As wide and as smooth as a cord, but nowhere sure of it; the sure piece beside it is one."""
    assert TRAINING is not None
    soft = box_map(CORD, height=inside)
    soft[:, [10, 15], 10:16] = soft[:, 10:16, [10, 15]] = 1.0  # the border may be what it likes
    assert resembles(soft, TRAINING, 0) is could_be
    without = {name: value for name, value in TRAINING.items() if name != "certainty"}
    assert resembles(soft, without, 0)  # a model that knows nothing of it
    soft[:, 20:26, 20:26] = 1.0
    assert resembles(soft, TRAINING, 0)


@pytest.mark.parametrize(
    ("slices", "width", "inside", "could_be"),
    [
        (22, 6, 1.0, True),
        (22, 8, 1.0, False),  # 48 voxels, of 36: a third too many, of a whole cord nothing odd
        (23, 8, 1.0, True),
        (22, 6, 0.94, False),
        (23, 6, 0.94, True),
    ],
)
def test_what_is_seen_in_part_must_be_like_the_labels_of_the_training(
    slices: int, width: int, inside: float, could_be: bool
) -> None:
    """Three quarters of the shortest label, 30 slices, and less."""
    assert TRAINING is not None
    soft = box_map(((0, slices), (10, 16), (10, 10 + width)))
    soft[:, 11:15, 11 : 9 + width] *= inside
    assert resembles(soft, TRAINING, 0) is could_be


def test_a_map_at_the_border_in_pieces_and_unlike_the_training_is_emptied() -> None:
    """Each of the three may be seen of a cord, all of them together are not; a cord among pieces stays."""
    wide = ((0, 40), (10, 18), (10, 16))  # 48 voxels, of 36: unlike the training, but it could be a label
    piece = ((0, 4), (22, 26), (22, 26))
    for boxes, at_border, is_kept in (
        ([wide, piece], False, True),
        ([wide], True, True),
        ([CORD, piece], True, True),
        ([wide, piece], True, False),
    ):
        soft = box_map(*boxes)[None]
        kept, findings = cleaned(soft, ["cord"], plans(), at_border=at_border)
        np.testing.assert_array_equal(kept, soft if is_kept else 0)
        assert [flag for flag, _ in findings] == [Flag.DISCARDED] * (not is_kept)
        assert cleaned(soft, ["cord"], plans(None), at_border=at_border)[0].any()  # nothing is known of it


def test_a_label_that_leans_is_judged_across() -> None:
    """400 voxels of 36 are no label, unless they are cut at a slant; in each piece its own slices count."""
    assert TRAINING is not None
    soft = box_map(((0, 40), (5, 25), (5, 25)))
    assert resembles(soft, TRAINING, 0, np.full(40, 400 / 36))
    assert not resembles(soft, TRAINING, 0, np.full(40, 400 / 73))  # across, twice as wide and more
    pieces = box_map(((0, 4), (2, 6), (2, 6)), ((10, 40), (5, 25), (5, 25)))
    lean = np.concatenate([np.ones(10), np.full(30, 400 / 36)])
    assert resembles(pieces, TRAINING, 0, lean)
    assert not resembles(pieces, TRAINING, 0, np.concatenate([np.full(10, 400 / 36), np.ones(30)]))
    assert not cleaned(soft[None], ["cord"], plans())[0].any()
    assert cleaned(soft[None], ["cord"], plans(), np.full(40, 400 / 36))[0].any()


def test_an_image_shorter_than_any_of_the_training_can_show_a_cord() -> None:
    assert TRAINING is not None
    assert resembles(box_map(CORD)[:3], TRAINING, 0)
    assert not resembles(box_map(CORD)[:3] * 0.5, TRAINING, 0)  # but not without a voxel above a half


def test_a_label_of_which_nothing_is_known_is_kept() -> None:
    soft = box_map(((0, 2), (0, 30), (0, 30)))
    for entry in (plans(None), {PLANS_KEY: {"settings": {}, "si_axis": None}}):
        (kept,), findings = cleaned(soft[None], ["cord"], entry)
        np.testing.assert_array_equal(kept, soft)
        assert findings == []


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


def test_two_balls_and_their_faint_rims(monkeypatch: pytest.MonkeyPatch) -> None:
    soft = box_map(CORD)
    soft[:, 9, 10:16] = 0.03  # partial volume below the threshold
    alone = soft.copy()
    soft[5:12, 20:26, 20:26] = 0.9
    (kept,), _ = cleaned(soft[None], ["cord"], plans())
    np.testing.assert_array_equal(kept, soft)
    monkeypatch.setenv(clean_up.LARGEST, "1")
    (kept,), _ = cleaned(soft[None], ["cord"], plans())
    np.testing.assert_array_equal(kept, alone)
    monkeypatch.setenv(clean_up.LARGEST, "yes")
    with pytest.raises(UserError, match=r"NNUNET_SOFTSEG_LARGEST_PIECE: expected 1 .* or 0, found 'yes'"):
        cleaned(soft[None], ["cord"], plans())


def test_an_unlikely_map_is_kept_and_flagged_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    soft = box_map(((0, 40), (5, 25), (5, 25)))
    monkeypatch.setenv(clean_up.KEEP_UNLIKELY, "1")
    (kept,), ((flag, why),) = cleaned(soft[None], ["cord"], plans())
    np.testing.assert_array_equal(kept, soft)
    assert flag is Flag.UNLIKE
    assert "cord looks like no label of the training: its soft map was kept" in why
    assert cleaned(box_map(CORD)[None], ["cord"], plans())[1] == []  # nothing to keep, nothing to flag
    monkeypatch.setenv(clean_up.KEEP_UNLIKELY, "maybe")
    with pytest.raises(UserError, match=r"NNUNET_SOFTSEG_KEEP_UNLIKELY: expected 1 .* or 0, found 'maybe'"):
        cleaned(soft[None], ["cord"], plans())


def test_nothing_stays_nothing() -> None:
    np.testing.assert_array_equal(largest_piece(np.zeros((3, 3, 3), np.float32), 0.05), 0)
