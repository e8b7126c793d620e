"""From a preprocessed case to its soft map: the crop, the tiles, the floor, the flags."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_softseg.inference import recentring as localiser
from nnunet_softseg.inference import soft_prediction as inference
from nnunet_softseg.inference.case_record import (
    CaseRecord,
    Flag,
    Flagged,
    Localize,
    PredictionOptions,
    flag_map,
)
from nnunet_softseg.inference.recentring import WholeImage, place
from nnunet_softseg.network.backends import TorchPredictor
from nnunet_softseg.network.of_plans import SoftLabelManager, add_running_scale, running_scale
from nnunet_softseg.preprocessing.model_plans import soft_plans
from nnunet_softseg.preprocessing.output_scale import OutputScale, keep_output_scales
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings


class Identity(torch.nn.Module):
    """A network whose raw output is its input, and which counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.inputs.append(x.clone())
        return x


def predictor(
    patch: tuple[int, int, int], si_axis: int | None, learned_scale: float = 0.0, **options: Any
) -> Any:
    made = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, **options)
    plans = soft_plans({"configurations": {}, "dataset_name": "D"}, "T", SoftSegSettings())
    plans[PLANS_KEY]["si_axis"] = si_axis
    made.plans_manager = SimpleNamespace(plans=plans)
    made.configuration_manager = SimpleNamespace(
        patch_size=list(patch),
        spacing=[1.0, 1.0, 1.0],
        network_arch_init_kwargs={"strides": [[1, 1, 1], [2, 2, 2], 2]},
    )
    made.dataset_json = {"labels": {"background": 0, "cord": 1}}
    made.label_manager = SoftLabelManager(made.dataset_json["labels"], None)
    made.network = add_running_scale(Identity(), 1)
    running_scale(made.network).fill_(learned_scale)
    return made


def height(values: torch.Tensor) -> float:
    """The robust peak, written out."""
    x = values.double().clamp(min=0)
    return float((x**5).sum() / (x**4).sum())


def begin(localize: Localize = "never") -> CaseRecord:
    """Noise looks like no cord: recentring is for the tests that ask for it."""
    return CaseRecord(given_options=PredictionOptions(localize=localize))


def predict_soft_map(made: Any, image: torch.Tensor, record: CaseRecord | None = None) -> torch.Tensor:
    arrays = TorchPredictor(made, "auto")
    return torch.from_numpy(inference.predict_soft_map(arrays, image.numpy(), record or begin()))


def case_of(made: Any, image: torch.Tensor, record: CaseRecord) -> inference._Case:
    return inference._Case(TorchPredictor(made, "auto"), image.numpy(), record)


@given(st.integers(4, 40), st.integers(4, 40), st.integers(4, 40), st.sampled_from([0, 1, 2, None]))
@settings(max_examples=40)
def test_the_map_is_the_crop_divided_by_its_robust_peak_and_zero_outside(
    a: int, b: int, c: int, si_axis: int | None
) -> None:
    image = torch.rand(1, a, b, c) + 0.1
    made = predictor((8, 12, 16), si_axis)
    soft = predict_soft_map(made, image)
    seen = torch.zeros(a, b, c, dtype=torch.bool)
    box = [slice(max((n - p) // 2, 0), (n - p) // 2 + p) for n, p in zip((a, b, c), (8, 12, 16), strict=True)]
    for axis in range(3):
        if si_axis is None or axis == si_axis:
            box[axis] = slice(None)
    seen[tuple(box)] = True
    assert float(soft[0][~seen].sum()) == 0
    inside = image[0][tuple(box)]
    expected = (inside / height(inside)).clamp(max=1)
    torch.testing.assert_close(soft[0][tuple(box)], expected, atol=3e-6, rtol=0)


def test_one_pass_where_the_case_fits_and_tiles_along_si_only() -> None:
    made = predictor((16, 8, 8), 0)
    predict_soft_map(made, torch.rand(1, 16, 30, 30))
    assert len(made.network.inputs) == 1  # no mirroring, no tiles in-plane
    made = predictor((16, 8, 8), 0)
    predict_soft_map(made, torch.rand(1, 40, 30, 30))
    assert len(made.network.inputs) == 4  # starts 0, 8, 16, 24 at half steps
    assert {tuple(x.shape) for x in made.network.inputs} == {(1, 1, 16, 8, 8)}


def test_blending_is_in_float32() -> None:
    """nnU-Net's half precision would be off by 5e-4 of the value, and far more at the edge of a lone tile."""
    image = torch.full((1, 40, 8, 8), 0.37)
    image[:, 17:] = 0.21
    soft = predict_soft_map(predictor((16, 8, 8), 0, learned_scale=2.0), image)
    torch.testing.assert_close(soft, image, atol=1e-6, rtol=0)  # the floor, half of 2, is the denominator


class FirstBelowThenAbove(torch.nn.Module):
    """Raw output -1 for the first tile, 1 for the second."""

    sign = -1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raw = torch.full_like(x, self.sign)
        self.sign = 1.0
        return raw


def test_tiles_are_blended_raw_under_a_gaussian_of_an_eighth_of_the_patch() -> None:
    """Of two tiles of 16 slices, 8 apart, the weights are those of Gaussians with sigma 2 about 8 and 16.

    So the blend of -1 and 1 is tanh((16 z - 192) / 16), and NormReLU comes after it: cut off at 0 before,
    slices below 12 would keep a share of the second tile.
    """
    made = predictor((16, 8, 8), 0, learned_scale=2.0)
    made.network = add_running_scale(FirstBelowThenAbove(), 1)
    running_scale(made.network).fill_(2.0)  # the floor, half of it, is the denominator
    soft = predict_soft_map(made, torch.rand(1, 24, 8, 8))[0]
    expected = np.tanh(np.arange(24) - 12.0).clip(min=0)
    np.testing.assert_allclose(soft[:, 4, 4], expected, atol=1e-3)
    np.testing.assert_allclose(soft[:, 0, 7], expected, atol=1e-3)


def test_of_equal_scores_the_middle_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(predictor((16, 8, 8), 0), torch.rand(1, 16, 8, 8), begin("auto"))
    soft_map = np.ones((1, 2, 2, 2), np.float32)
    middle, other, better = (
        inference.BoxPrediction((), soft_map, np.ones(1, np.float32), False, (), np.ones(1), None, contrast)
        for contrast in (1.0, 1.0, 1.5)
    )
    monkeypatch.setattr(case, "_candidates", lambda *_, **__: [other])
    monkeypatch.setattr(case, "_refined", lambda _, found: found)
    assert case._recentred(middle) is middle
    assert case._record.localiser["used"] is False
    monkeypatch.setattr(case, "_candidates", lambda *_, **__: [other, better])
    assert case._recentred(middle) is better


def test_a_weak_image_stays_weak_and_a_constant_one_is_empty() -> None:
    weak = 0.02 * torch.rand(1, 16, 8, 8)
    soft = predict_soft_map(predictor((16, 8, 8), 0, learned_scale=1.0), weak)
    torch.testing.assert_close(soft, weak / 0.5, atol=1e-6, rtol=0)  # the floor is half of the learned peak
    assert float(predict_soft_map(predictor((16, 8, 8), 0), torch.ones(1, 16, 8, 8)).sum()) == 0
    # and the next image is judged by itself
    assert float(predict_soft_map(predictor((16, 8, 8), 0), torch.rand(1, 16, 8, 8)).max()) == 1


class KnowsOneSide(torch.nn.Module):
    """Raw output is the input on the left, and a part of it on the right."""

    def __init__(self, part: float) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raw = x.clone()
        raw[..., x.shape[-1] // 2 :] *= self.part
        return raw


@pytest.mark.parametrize(
    ("part", "agreement", "flagged", "emptied"),
    [(0.9, "0.95", False, False), (0.7, "0.82", True, False), (0.5, "0.67", True, True)],
)
def test_what_the_mirror_image_does_not_show_is_flagged_or_not_there(
    part: float, agreement: str, flagged: bool, emptied: bool
) -> None:
    """Either side of a block is 1 in one pass and `part` in the other: they agree by 2 part / (1 + part)."""
    made = predictor((16, 8, 8), 0)
    made.network = add_running_scale(KnowsOneSide(part), 1)
    made.allowed_mirroring_axes = (2,)
    keep_output_scales(made.plans_manager.plans, {"cord": OutputScale(least_agreement=0.75)})
    image = torch.zeros(1, 16, 8, 8)
    image[0, :, 2:6, 2:6] = 1
    record = begin()
    soft = predict_soft_map(made, image, record)
    torch.testing.assert_close(soft, torch.zeros_like(image) if emptied else image, rtol=0, atol=1e-6)
    assert record.labels["cord"]["mirror_agreement"] == [pytest.approx(float(agreement), abs=0.005)]
    assert (Flag.UNSURE in record.flags) == flagged
    told = [warning for warning in record.warnings if f"agrees by {agreement} only" in warning]
    assert len(told) == flagged
    assert all(warning.endswith(": emptied") == emptied for warning in told)


def test_touching_the_border_of_the_crop_is_flagged_only_where_the_image_goes_on() -> None:
    image = torch.zeros(1, 16, 20, 8)
    image[0, :, 6:10, 3:5] = 1  # the crop of 8 starts at 6 along the second axis
    record = begin()
    predict_soft_map(predictor((16, 8, 8), 0), image, record)
    assert len(record.warnings) == 1
    assert "touches the border" in record.warnings[0]
    record = begin()
    predict_soft_map(predictor((16, 20, 8), 0), image, record)
    assert record.warnings == []
    along_si = torch.zeros(1, 16, 20, 8)
    along_si[0, :, 9:11, 3:5] = 1  # reaches both ends of the image along S-I, as a cord does
    record = begin()
    predict_soft_map(predictor((16, 8, 8), 0), along_si, record)
    assert record.warnings == []


def test_a_weak_response_is_flagged() -> None:
    image = torch.rand(1, 16, 8, 8)
    for learned, weak in ((1.0, False), (3.0, True)):
        record = begin()
        predict_soft_map(predictor((16, 8, 8), 0, learned_scale=learned), image, record)
        assert any("weak response for cord" in warning for warning in record.warnings) is weak


def test_the_record_tells_robust_peaks_and_seconds_of_every_fold() -> None:
    made = predictor((16, 8, 8), 0, learned_scale=0.8)
    image = torch.zeros(1, 16, 8, 8)
    image[0, 3:7] = 1.25
    record = begin()
    predict_soft_map(made, image, record)
    predict_soft_map(made, image, record)
    assert record.labels == {"cord": {"raw_plateau": [1.25, 1.25], "raw_plateau_in_training": [0.8, 0.8]}}
    assert record.seconds["forward"] > 0


@pytest.mark.parametrize("use_mirroring", [True, False])
def test_mirroring_is_averaged_if_someone_asks_for_it(use_mirroring: bool) -> None:
    made = predictor((16, 8, 8), 0, use_mirroring=use_mirroring)
    made.allowed_mirroring_axes = (0,)
    image = torch.rand(1, 16, 8, 8)
    soft = predict_soft_map(made, image)
    assert len(made.network.inputs) == (2 if use_mirroring else 1)
    torch.testing.assert_close(soft[0], (image[0] / height(image)).clamp(max=1), atol=1e-6, rtol=0)


# Recentring


TRAINING = {
    "cord": {
        "components": 1, "largest_area": 30.0, "area_variation": 0.02,
        "empty_start": 0, "empty_end": 0, "gap": 0, "extent": 40,
    }
}  # fmt: skip
PATCH = (32, 20, 16)


def tube(shape: tuple[int, int, int], start: tuple[float, float], slope: tuple[float, float]) -> torch.Tensor:
    """A cord of area 28, (1, *shape), along the first axis; its edge is one voxel wide."""
    along, y, x = torch.meshgrid(*(torch.arange(float(size)) for size in shape), indexing="ij")
    away = torch.hypot(y - start[0] - slope[0] * along, x - start[1] - slope[1] * along)
    return (3.5 - away).clamp(0, 1)[None]


def trained() -> Any:
    made = predictor(PATCH, 0, learned_scale=1.0)
    made.plans_manager.plans[PLANS_KEY]["training_shapes"] = TRAINING
    return made


def whole_case(
    image: torch.Tensor, mode: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[torch.Tensor, Any, Any]:
    """Return soft map, record and network of a preprocessed case that is at hand as a whole."""
    made, record = trained(), begin(mode)
    return predict_soft_map(made, image, record), record, made.network


@pytest.mark.parametrize("mode", ["auto", "always", "never"])
@pytest.mark.parametrize(
    ("start", "slope"),
    [
        ((12, 60), (0, 0)),
        ((30, 8), (0, 0)),
        ((15, 20), (0.57, 0)),
        ((60, 60), (-0.4, -0.4)),
        ((37.5, 36), (0, 0)),
    ],
)
def test_a_cord_that_is_not_in_the_middle_is_found_whole(
    start: tuple[float, float], slope: tuple[float, float], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tube((90, 76, 74), start, slope)
    soft, record, network = whole_case(image, mode, monkeypatch)
    in_the_middle = start == (37.5, 36)
    if mode == "never" and not in_the_middle:
        assert float(soft.sum()) < 0.7 * float(image.sum())
        assert record.localiser is None
        return
    # raw is what the network sees, so the map is the tube, at the height of its robust peak
    expected = (image / height(image)).clamp(max=1)
    if slope == (0, 0):
        torch.testing.assert_close(soft, expected, atol=2e-6, rtol=0)
    else:  # interpolated, there and back; what a spline undershoots at a sharp edge is no cord
        torch.testing.assert_close(soft.sum((2, 3)), expected.sum((2, 3)), rtol=0.05, atol=0)
        assert float(soft.sum()) == pytest.approx(float(expected.sum()), rel=0.015)
        assert float((soft - expected).abs().max()) < 0.35
    assert record.flags == ([] if in_the_middle else ["found off the centre"])
    if mode == "auto" and in_the_middle:
        assert record.localiser is None
        assert {tuple(x.shape[2:]) for x in network.inputs} == {PATCH}  # and no pass over all of the image
    elif mode != "never":
        assert record.localiser["used"]
        assert record.localiser["straight"] is (slope == (0, 0))


def test_why_it_looked_again_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    _, record, _ = whole_case(tube((90, 76, 74), (12, 60), (0, 0)), "auto", monkeypatch)
    assert record.localiser["because"] == ["empty", "weak response"]
    _, record, _ = whole_case(tube((90, 76, 74), (15, 36), (0.57, 0)), "auto", monkeypatch)
    assert {"ends inside the image", "touches the border"} <= set(record.localiser["because"])


@pytest.mark.parametrize("mode", ["auto", "always"])
def test_a_piece_off_the_centre_is_found_and_flagged(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too short for a cord of the training: that is for a person to judge, the map is kept."""
    piece = tube((90, 76, 74), (15, 15), (0, 0))
    piece[:, :40] = 0
    piece[:, 58:] = 0
    soft, record, _ = whole_case(piece, mode, monkeypatch)
    torch.testing.assert_close(soft, (piece / height(piece)).clamp(max=1), atol=2e-6, rtol=0)
    assert record.localiser["used"]
    assert record.flags == ["found off the centre"]  # that it ends inside the image is flagged in the export


def test_the_score_orders_boxes_by_findings_then_ring_contrast_and_empty_maps_last() -> None:
    flagged = (Flagged(Flag.WEAK, "why"),)

    def box(value: float, findings: Any = (), contrast: float = 1.0) -> inference.BoxPrediction:
        soft_map = np.full((1, 2, 2, 2), value, np.float32)
        return inference.BoxPrediction(
            (), soft_map, np.ones(1, np.float32), value <= 0.5, findings, np.ones(1), None, contrast
        )

    best_first = [
        box(0.6), box(0.6, (), 0.7), box(0.6, (), 0.2), box(1.0, flagged), box(1.0, flagged, 0.9),
        box(1.0, 2 * flagged), box(0.5),
    ]  # fmt: skip
    scores = [one.score for one in best_first]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == len(scores)
    assert box(0.5).score == box(0.0, flagged, 0.3).score  # equally empty


def test_where_nothing_looks_like_a_cord_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """One coarse pass tells: a spot in two slices of ninety."""
    image = tube((90, 76, 74), (15, 15), (0, 0))
    image[:, 42:] = 0
    image[:, :40] = 0
    for mode in ("auto", "always"):
        soft, record, network = whole_case(image, mode, monkeypatch)
        assert float(soft.sum()) == 0
        assert record.localiser["tried"] == 0
        assert not record.localiser["used"]
        sizes = [tuple(seen.shape[2:]) for seen in network.inputs]
        assert sizes.count((48, 76, 76)) == 1  # half of the slices, to the next multiple of the stride
        assert set(sizes) == {PATCH, (48, 76, 76)}


def test_a_constant_image_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    soft, record, network = whole_case(torch.ones(1, 40, 40, 40), "always", monkeypatch)
    assert float(soft.sum()) == 0
    assert record.localiser is None
    assert {tuple(x.shape[2:]) for x in network.inputs} == {PATCH}


class InFile:
    """A case as `NetworkImage` reads it, in place of a file."""

    def __init__(self, image: torch.Tensor) -> None:
        self.shape, self.reads, self._image = tuple(image.shape[1:]), 0, WholeImage(image.numpy())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._image, name)

    def read(self) -> "InFile":
        self.reads += 1
        return self


def box_of_a_case(image: torch.Tensor, read_whole: Any) -> tuple[torch.Tensor, CaseRecord]:
    """Return the middle of an image as the preprocessing would give it, and its record, under way."""
    shape = tuple(image.shape[1:])
    box = inference.network_box(shape, PATCH, 0)
    record = begin("auto")
    record.box, record.network_shape, record.read_whole = box, shape, read_whole
    return torch.from_numpy(WholeImage(image.numpy()).extract(box)), record


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_the_box_moves_in_the_record_and_every_fold_follows_the_first(
    slope: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tube((90, 76, 74), (12, 60), (slope, 0))
    file = InFile(image)
    middle, record = box_of_a_case(image, file.read)
    made = trained()
    first = predict_soft_map(made, middle, record)
    box = record.box
    assert box[0] == (0, 90)
    assert tuple(first.shape[1:]) == tuple(stop - start for start, stop in box)
    expected = (image / height(image)).clamp(max=1)
    back = torch.zeros_like(image)
    back[(slice(None), *(slice(*extent) for extent in box))] = first
    torch.testing.assert_close(back.sum((2, 3)), expected.sum((2, 3)), rtol=0.05 if slope else 1e-5, atol=0)
    # the second fold sees a silent network in the middle, too, and would place its boxes elsewhere
    made.network.inputs.clear()
    monkeypatch.setattr(localiser, "candidates", lambda *_: pytest.fail("only the first fold decides"))
    second = predict_soft_map(made, middle, record)
    torch.testing.assert_close(second, first, atol=0, rtol=0)
    assert record.box == box
    assert file.reads == 2
    assert len(record.labels["cord"]["raw_plateau"]) == 2


def test_a_second_fold_stays_in_the_middle_where_the_first_did(monkeypatch: pytest.MonkeyPatch) -> None:
    image = tube((90, 76, 74), (37.5, 36), (0, 0))
    middle, record = box_of_a_case(image, InFile(image).read)
    box = record.box
    made = trained()
    predict_soft_map(made, middle, record)
    running_scale(made.network).fill_(9.0)  # the second fold finds the response weak
    predict_soft_map(made, middle, record)
    assert record.box == box
    assert record.localiser is None
    assert record.flags == ["weak response"]


def test_a_case_that_cannot_be_read_again_stays_in_the_middle() -> None:
    middle, record = box_of_a_case(tube((90, 76, 74), (12, 60), (0, 0)), None)
    box = record.box
    assert float(predict_soft_map(trained(), middle, record).sum()) == 0
    assert record.box == box
    assert "read the whole" in record.localiser["not_run"]


def test_a_record_of_another_case_says_nothing_about_this_image(monkeypatch: pytest.MonkeyPatch) -> None:
    _, record = box_of_a_case(tube((90, 76, 74), (12, 60), (0, 0)), None)
    image = tube((50, 40, 42), (19.5, 20), (0, 0))
    assert tuple(predict_soft_map(trained(), image, record).shape) == tuple(image.shape)


@pytest.mark.parametrize("looks_closer", [True, False])
def test_a_wrong_path_is_mended_or_its_cut_is_flagged(
    looks_closer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that leaves the tube half-way: what was found in the other half says where it goes on."""
    image = tube((64, 76, 74), (20, 30), (0, 0))
    made, record = trained(), begin("always")
    grid = case_of(made, image, record)._grid
    off = np.tile([20.0, 30.0], (64, 1))
    off[32:, 0] += np.arange(32) * 0.6
    wrong = place(off, (64, 76, 74), grid)
    monkeypatch.setattr(localiser, "candidates", lambda *_: iter([localiser.Candidate(wrong, 0.5)]))
    if not looks_closer:
        monkeypatch.setattr(inference, "_MOST_REFINEMENTS", 0)
    soft = predict_soft_map(made, image, record)
    if looks_closer:
        assert record.flags == ["found off the centre"]
        torch.testing.assert_close(soft, (image / height(image)).clamp(max=1), atol=2e-6, rtol=0)
    else:
        assert "touches the border" in record.flags


@pytest.mark.parametrize("ring_contrast", [0.3, 0.7])
def test_of_places_that_are_as_odd_the_one_most_like_a_cord_is_mended(
    ring_contrast: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two paths, each of which leaves its tube half-way; the tubes are equal but for the ring contrast."""
    image = torch.maximum(tube((64, 76, 74), (20, 16), (0, 0)), tube((64, 76, 74), (20, 56), (0, 0)))
    made, record = trained(), begin("always")
    grid = case_of(made, image, record)._grid
    odd = []
    for column in (16.0, 56.0):
        off = np.tile([20.0, column], (64, 1))
        off[32:, 0] += np.arange(32) * 0.6
        odd.append(place(off, (64, 76, 74), grid))
    ranked = [localiser.Candidate(*one) for one in zip(odd, (0.5, ring_contrast), strict=True)]
    monkeypatch.setattr(localiser, "candidates", lambda *_: iter(ranked))
    soft = predict_soft_map(made, image, record)[0]
    found, other = (
        (soft[:, :, 40:], soft[:, :, :40]) if ring_contrast > 0.5 else (soft[:, :, :40], soft[:, :, 40:])
    )
    assert float(other.sum()) == 0
    expected = (image[0] / height(image)).clamp(max=1).sum() / 2
    assert float(found.sum()) == pytest.approx(float(expected), rel=1e-3)


def test_areas_are_judged_across_a_tilted_cord(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its axial sections are larger than any label of the training, as it is tilted: no finding."""
    image = tube((90, 76, 74), (15, 20), (0.57, 0))
    lean = 1 / np.cos(np.arctan(0.57))  # 1.15
    largest = float(image.sum((2, 3)).max()) / 1.25 / np.sqrt(lean)  # 7 % too large, or 7 % to spare
    monkeypatch.setitem(TRAINING["cord"], "largest_area", largest)
    soft, record, _ = whole_case(image, "auto", monkeypatch)
    assert record.flags == ["found off the centre"]
    assert "unlike training" in {
        finding.flag.value for finding in flag_map(soft.numpy(), ["cord"], TRAINING, 0)
    }


@pytest.mark.parametrize(
    ("training", "area_voxels"),
    [
        ({}, 80 / (0.8 * 0.5)),  # a cord of 80 mm2
        (
            {"cord": {"largest_area": [150.0, 300.0]}, "lesion": {"largest_area": [4.0, 40.0]}, "none": {}},
            300.0,
        ),
    ],
)
def test_the_localiser_looks_for_the_largest_label_of_the_training(
    training: dict[str, Any], area_voxels: float
) -> None:
    made = predictor((16, 8, 12), 0)
    made.configuration_manager.spacing = [2.0, 0.8, 0.5]
    made.plans_manager.plans[PLANS_KEY]["training_shapes"] = training
    grid = case_of(made, torch.zeros(1, 16, 8, 12), begin())._grid
    assert grid.radius == pytest.approx(np.sqrt(area_voxels / np.pi))
    assert (grid.si_axis, grid.spacing_mm, grid.patch_size) == (0, (2.0, 0.8, 0.5), (16, 8, 12))
    assert grid.total_stride == (4, 4, 4)  # 1 x 2 x 2 along each axis
