"""Every flag is raised by what it is for, and by nothing else."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage import measure

from nnunet_softseg.inference.case_record import (
    CONSTANT,
    CaseRecord,
    Flag,
    Flagged,
    flag_agreement,
    flag_border,
    flag_coverage,
    flag_map,
    flag_orientation,
    flag_response,
    flag_spacing,
)
from nnunet_softseg.preprocessing.model_plans import spacing_range
from nnunet_softseg.preprocessing.output_scale import LabelShape, training_ranges

TRAINING = {
    "cord": {
        "components": 1, "largest_area": 30.0, "area_roughness": 0.01,
        "empty_start": 0, "empty_end": 10, "gap": 0,
    }
}  # fmt: skip


def column(start: int = 0, stop: int = 40) -> np.ndarray:
    """One label: a column of 5 x 5 voxels along the first of 40 x 20 x 20."""
    soft = np.zeros((1, 40, 20, 20), np.float32)
    soft[0, start:stop, 8:13, 8:13] = 1
    return soft


def raised(findings: list[Flagged]) -> list[Flag]:
    return [flag for flag, _ in findings]


def of_map(soft: np.ndarray, training: Any = TRAINING) -> list[Flag]:
    return raised(flag_map(soft, ["cord"], training, 0))


def test_a_map_like_the_training_has_no_flag() -> None:
    assert of_map(column()) == []
    assert (
        of_map(column(5, 25)) == []
    )  # 5 slices of tolerance; labels of the training ended 10 before the end
    assert of_map(column(), {}) == []


@pytest.mark.parametrize(
    ("start", "stop", "told"),
    [
        (6, 40, "6 slices of the network's grid from the image's first"),
        (0, 24, "16 slices of the network's grid from the image's last (in training at most 10)"),
    ],
)
def test_a_map_that_ends_inside_the_image(start: int, stop: int, told: str) -> None:
    ((flag, why),) = flag_map(column(start, stop), ["cord"], TRAINING, 0)
    assert flag is Flag.BROKEN_OFF
    assert told in why


@pytest.mark.parametrize("length", [3, 19, 20, 40])
def test_a_map_shorter_than_half_of_the_shortest_label_of_the_training(length: int) -> None:
    """An image of three slices: the map is whole, and no label of the training was so short."""
    known = training_ranges([LabelShape(1, 30.0, length=40), LabelShape(1, 30.0, length=66)])
    assert known is not None
    findings = flag_map(np.ones((1, length, 5, 6), np.float32), ["cord"], {"cord": known}, 0)
    assert raised(findings) == [Flag.SHORT] * (length < 20)
    if findings:
        told = f"{length} slices of the network's grid (in training 40 to 66)"
        assert findings[0].why == f"cord is too short: {told}"
    earlier = {name: values for name, values in known.items() if name != "length"}
    assert flag_map(np.ones((1, length, 5, 6), np.float32), ["cord"], {"cord": earlier}, 0) == []


def test_missing_slices_make_two_pieces_that_end() -> None:
    soft = column()
    soft[0, 17:20] = 0
    findings = flag_map(soft, ["cord"], TRAINING, 0)
    assert raised(findings) == [Flag.PIECES, Flag.BROKEN_OFF]
    assert "2 separate pieces" in findings[0].why
    assert "3 slices of the network's grid are missing" in findings[1].why


def test_pieces_elsewhere_and_areas_unlike_the_training() -> None:
    soft = column()
    soft[0, 3:6, 2:4, 2:4] = 1
    assert Flag.PIECES in of_map(soft)
    assert of_map(soft, {}) == [Flag.PIECES]
    wide = column()
    wide[0, :, 5:15, 5:15] = 1
    assert of_map(wide) == [Flag.UNLIKE]
    uneven = column()
    uneven[0, ::2, 8:10] = 0
    assert of_map(uneven) == [Flag.UNLIKE]


def test_nothing_above_a_half_is_empty() -> None:
    assert of_map(column() * 0.5) == [Flag.EMPTY]
    both = np.concatenate([column(), column() * 0])
    findings = flag_map(both, ["cord", "lesion"], TRAINING, 0)
    assert raised(findings) == [Flag.EMPTY]
    assert "nothing found of lesion" in findings[0].why


@pytest.mark.parametrize("covered", range(5))
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_fewer_than_three_slices_of_the_image(covered: int, axis: int) -> None:
    soft = np.moveaxis(column(4, 4 + covered), 1, 1 + axis)
    findings = flag_coverage(soft, ["cord"], axis)
    assert raised(findings) == ([Flag.FEW_SLICES] if covered in (1, 2) else [])


def test_an_image_of_one_slice_is_flagged() -> None:
    findings = flag_coverage(np.ones((1, 1, 9, 9)), ["cord"], 0)
    assert "1 slices only, of 1" in findings[0].why


@settings(max_examples=60)
@given(
    arrays(np.float32, (1, 3, 4, 3), elements=st.sampled_from([0.0, 0.5, 0.6])),
    arrays(np.bool_, (3, 4, 3)),
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=3, max_size=3),
)
def test_the_border_is_a_voxel_of_the_largest_piece_beside_one_that_nobody_saw(
    soft: np.ndarray, seen: np.ndarray, goes_on: list[tuple[bool, bool]]
) -> None:
    """Each voxel asked in turn; the pieces are those of scikit-image."""
    pieces = measure.label(soft[0] > 0.5, connectivity=3)
    largest = 1 + int(np.bincount(pieces.ravel(), minlength=2)[1:].argmax())

    def unseen(at: tuple[int, ...]) -> bool:
        for index, size, (before, after) in zip(at, seen.shape, goes_on, strict=True):
            if index < 0:
                return before
            if index >= size:
                return after
        return not seen[at]

    touched = False
    for at in itertools.product(*map(range, seen.shape)):
        steps = [tuple(np.array(at) + move) for move in (*np.eye(3, dtype=int), *-np.eye(3, dtype=int))]
        touched |= bool(seen[at] and pieces[at] == largest and any(map(unseen, steps)))
    assert raised(flag_border(soft, seen, goes_on)) == [Flag.BORDER] * touched


def test_voxels_far_from_those_of_the_training() -> None:
    trained = spacing_range([[3.0, 0.5, 0.5], [1.0, 1.0, 0.8]])
    assert trained == {"smallest": [1.0, 0.5, 0.5], "largest": [3.0, 1.0, 0.8]}
    for spacing, far in (
        ([2.0, 0.7, 0.7], False), ([6.0, 2.0, 1.6], False), ([0.5, 0.25, 0.25], False),
        ([6.1, 0.7, 0.7], True), ([2.0, 0.2, 0.7], True), ([2.0, 0.7, 10.0], True), ([0.1, 0.1, 0.1], True),
    ):  # fmt: skip
        assert raised(flag_spacing(spacing, trained)) == [Flag.SPACING] * far
    assert "voxels of 6.1 x 0.7 x 0.7 mm" in flag_spacing([6.1, 0.7, 0.7], trained)[0].why
    assert flag_spacing([9.0, 9.0, 9.0], None) == []  # a model that does not know
    assert spacing_range([]) is None


def test_orientation_and_weak_response() -> None:
    assert flag_orientation("SAR", "SAR") == flag_orientation(None, "SAR") == []
    assert raised(flag_orientation("IAR", "SAR")) == [Flag.ORIENTATION]
    assert raised(flag_response("cord", 0.49, 1.0, 0.5)) == [Flag.WEAK]
    assert flag_response("cord", 0.5, 1.0, 0.5) == []


def test_what_mirrored_passes_agree_on_less_is_flagged_and_below_the_models_least_emptied() -> None:
    """0.861: a real T2*w cord whose map has a Dice of 0.84; 0.883: a lung nodule; 0.904: a good map."""
    unsure = [flag_agreement("cord", agreement, 0.75) for agreement in (0.861, 0.883)]
    assert [raised(flags) for flags in unsure] == [[Flag.UNSURE]] * 2
    assert not any(flags[0].why.endswith("emptied") for flags in unsure)
    assert flag_agreement("cord", 0.904, 0.75) == []
    assert flag_agreement("cord", 0.749, 0.75)[0].why.endswith("emptied")
    assert not flag_agreement("cord", 0.749, 0.0)[0].why.endswith("emptied")  # a model that empties nothing


def test_a_record_keeps_each_flag_and_sentence_once() -> None:
    record = CaseRecord()
    record.add_flags([CONSTANT])
    record.add_flags([CONSTANT])
    record.add_flags([Flagged(Flag.UNLIKE, "one"), Flagged(Flag.UNLIKE, "two")])
    assert record.flags == ["constant image", "unlike training"]
    assert record.warnings == ["constant image: the soft map is empty", "one", "two"]
