"""From a preprocessed case to its soft map: box, forward in tiles, blend raw, NormReLU, recentring.

The network sees the box in the middle of the case first. Where its map is empty, touches the border of the
box, ends inside the image or looks like no label of the training, the structure may be elsewhere: then boxes
along the paths of `recentring.candidates` are tried, and the one with the largest `BoxPrediction.score` is
taken.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from tqdm import tqdm

from nnunet_softseg.inference import recentring
from nnunet_softseg.inference.case_record import (
    MOVED,
    CaseRecord,
    Flag,
    Flagged,
    flag_agreement,
    flag_border,
    flag_map,
    flag_response,
)
from nnunet_softseg.inference.network_image import is_constant
from nnunet_softseg.inference.recentring import Grid, Placement, WholeImage
from nnunet_softseg.network.soft_map import Agreement, OneSizeError, robust_peak, soft_map_of
from nnunet_softseg.preprocessing.center_crop import Box, inside, inside_of_box, network_box
from nnunet_softseg.preprocessing.model_plans import version_warning
from nnunet_softseg.preprocessing.output_scale import known_range, output_scales
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings

_ODD = (Flag.EMPTY, Flag.BORDER, Flag.BROKEN_OFF, Flag.PIECES, Flag.UNLIKE, Flag.WEAK)
_CORD_MM2 = 80.0  # for a model that does not know the labels of its training
_MOST_REFINEMENTS = 2
_SETTLED = 0.5  # voxels
SIGMA = 1 / 8
"""Of the Gaussian that weighs a tile, in patches."""

Image = npt.NDArray[np.float32]
Tile = tuple[Any, ...]
"""Slices of (channel, *space); a number along the first axis, where patches have one axis less."""
Floats = npt.NDArray[np.float64]


class Predictor(Protocol):
    """What runs the network of a model, and what its plans say; with the weights of one fold.

    Attributes:
        plans: of the model, with our entries.
        configuration: of the plans, as nnU-Net's manager gives it.
        names: of the labels, in the order of the raw output.
        running_scale: (label,); 0 where not known.
        tile_step: between neighbouring tiles, in patches.
        weighs_tiles: whether the middle of a tile counts more than its border.
        shows_progress: whether a bar counts the tiles.
        memory_errors: on which sums are collected again, `in_less_memory`.
        one_size: why the network takes patches alone; None: it is not known to.
        name: of what ran the last patch, for softseg.json; empty before the first.
        agreement: of the mirrored passes of all patches since it was set.
    """

    plans: Mapping[str, Any]
    configuration: Any
    names: Sequence[str]
    running_scale: Image
    tile_step: float
    weighs_tiles: bool
    shows_progress: bool
    agreement: Agreement

    @property
    def name(self) -> str:
        """What ran the last patch."""

    @property
    def memory_errors(self) -> tuple[type[Exception], ...]:
        """What is raised where sums have no room."""
        return ()

    @property
    def one_size(self) -> str | None:
        """Why there is one size alone."""
        return None

    def in_less_memory(self) -> "Predictor":
        """Return the same with sums collected where there is more room."""
        return self

    def run(self, patch: Image) -> Any:
        """Return the raw output (label, *space) float32 of a patch (channel, *space), as of `place`."""

    def place(self, array: Image) -> Any:
        """Return an array where sums are collected: as it is, or on the GPU."""
        return array

    def fetch(self, array: Any) -> Image:
        """Return an array of `place` as NumPy's."""
        fetched: Image = array
        return fetched

    def at_any_size(self) -> Callable[[Image], Image]:
        """Return the network as (channel, *space) -> (label, *space) for any multiple of its total stride.

        The function raises a `OneSizeError` if the network takes patches alone.
        """


@dataclass(frozen=True)
class BoxPrediction:
    """Soft map of one box of a case.

    Attributes:
        box: of the case.
        soft_map: (label, *size of the box), in [0, 1].
        robust_peak: (label,) of the raw output.
        is_empty: whether no label exceeds its core threshold.
        findings: flags of the map and of the response.
        agreement: (label,) of mirrored passes; 1 where there was one.
        placement: of the patch; None: the box in the middle of the case.
        ring_contrast: along the path of the placement.
    """

    box: Box
    soft_map: Image
    robust_peak: Image
    is_empty: bool
    findings: tuple[Flagged, ...]
    agreement: Floats
    placement: Placement | None = None
    ring_contrast: float = 1.0

    @property
    def reasons(self) -> set[Flag]:
        """Flags for which the structure may be elsewhere."""
        return {flag for flag, _ in self.findings}.intersection(_ODD)

    @property
    def score(self) -> float:
        """Rank among the boxes of a case, of which the one with the largest score is taken.

        The ring contrast along the box's path, in [0, 1], minus the number of findings; minus infinity for
        an empty map. The box in the middle has no path and counts with a contrast of 1: it is kept unless
        another has fewer findings.
        """
        if self.is_empty:
            return -np.inf
        return self.ring_contrast - len(self.findings)


def predict_soft_map(predictor: Predictor, image: Image, record: CaseRecord) -> Image:
    """Return the soft maps of a preprocessed case, and complete its record.

    Tiles, where there are several, are blended raw; NormReLU is taken over all that the network saw, with a
    floor relative to the running scale.

    Args:
        predictor: with a network and plans of ours.
        image: (channel, *space) float32, preprocessed: the box in the record, or a whole case.
        record: of the case.

    Returns:
        (label, *space) float32 in [0, 1]: of the box in the record, which may be another one now; or of the
        whole case, 0 where the network did not look.
    """
    started = time.perf_counter()
    if warning := version_warning(predictor.plans):
        record.add_warning(warning)
    case = _Case(predictor, image, record)
    found = case.predicted()
    _note(record, case, found)
    record.seconds["forward"] = record.seconds.get("forward", 0.0) + time.perf_counter() - started
    if case.is_box:
        record.box = found.box
        return found.soft_map
    whole = np.zeros((len(found.soft_map), *case.shape), np.float32)
    within = found.soft_map[(slice(None), *inside_of_box(found.box, case.shape))]
    whole[(slice(None), *inside(found.box, case.shape))] = within
    return whole


class _Case:
    """A case on its way through the network, the arguments as for `predict_soft_map`."""

    def __init__(self, predictor: Predictor, image: Image, record: CaseRecord) -> None:
        self.predictor = predictor
        self.names = predictor.names
        self.scale = predictor.running_scale
        plans = predictor.plans
        self._floor = SoftSegSettings.from_plans(plans).floor_fraction
        self._output_scales = dict(zip(self.names, output_scales(plans, self.names), strict=True))
        entry: Mapping[str, Any] = plans[PLANS_KEY]
        self._si_axis: int | None = entry.get("si_axis")
        self._training: Mapping[str, Any] = entry.get("training_shapes", {})
        self._image = image
        self._record = record
        # The next fold of an ensemble comes with the same image again, whatever box this one ends with.
        self._central = record.central_box = record.central_box or record.box
        # A record that was left over from another case says nothing about this image.
        size = [stop - start for start, stop in self._central or ()]
        self.is_box = size == list(image.shape[1:])
        shape = record.network_shape if self.is_box else None
        self.shape: tuple[int, ...] = tuple(int(size) for size in shape or image.shape[1:])

    def predicted(self) -> BoxPrediction:
        """Return the soft map of the box that is taken.

        The first fold of an ensemble decides on the box for all: maps of several boxes have no mean.
        """
        record = self._record
        decided = self.is_box and record.is_placed
        if decided and record.placement is not None:
            return self._placed(self._whole(), record.placement)
        chosen = first = self._in_the_middle()
        if decided or self._si_axis is None:
            return first
        mode = record.options.localize
        if not self._is_constant and (mode == "always" or (mode == "auto" and first.reasons)):
            chosen = self._recentred(first)
        record.placement, record.is_placed = chosen.placement, True
        return chosen

    @property
    def _is_constant(self) -> bool:
        """Whether the whole case is."""
        return Flag.CONSTANT in self._record.flags if self.is_box else is_constant(self._image)

    def _whole(self) -> WholeImage | None:
        """Return the whole case; None where it cannot be read again."""
        if not self.is_box:
            return WholeImage(self._image)
        return self._record.read_whole() if self._record.read_whole else None

    def _in_the_middle(self) -> BoxPrediction:
        if self.is_box and self._central is not None:
            box, image = self._central, self._image
        else:
            box = network_box(self.shape, self.predictor.configuration.patch_size, self._si_axis)
            image = WholeImage(self._image).extract(box)
        raw, agreement = _blend_tiles(self.predictor, image, self._record)
        if is_constant(image):
            raw = np.zeros_like(raw)  # the response to a constant image says nothing
        return self._judged(box, raw, agreement)

    def _recentred(self, first: BoxPrediction) -> BoxPrediction:
        """Return the box with the largest score: that in the middle, or one along a cord elsewhere."""
        because = sorted(flag.value for flag in first.reasons)
        mode = self._record.options.localize
        note: dict[str, Any] = {"mode": mode, "because": because, "used": False}
        self._record.localiser = note
        image = None
        if (not_run := self._why_not_recentred) is None and (image := self._whole()) is None:
            not_run = "the preprocessed case does not say how to read the whole of it"
        if image is None:
            note["not_run"] = not_run
            return first
        started = time.perf_counter()
        # A tilted cord leaves the box in the middle, or is not known there at all.
        try:
            tried = self._candidates(image, tilted=bool(first.reasons & {Flag.BORDER, Flag.EMPTY}))
        except OneSizeError as error:
            note["not_run"] = str(error)
            return first
        best = self._refined(image, max(tried, key=lambda one: one.score)) if tried else first
        used = bool(tried) and (mode == "always" or best.score > first.score)
        seconds = round(time.perf_counter() - started, 3)
        note |= {"tried": len(tried), "used": used, "seconds": seconds}
        note |= best.placement.as_json() if best.placement else {}
        if used and because:
            self._record.add_flags([MOVED])
        return best if used else first

    @property
    def _why_not_recentred(self) -> str | None:
        """Why the network cannot look for the structure; None where it can."""
        configuration = self.predictor.configuration
        if getattr(configuration, "previous_stage_name", None):
            return "the second stage of a cascade sees where the first has looked"
        if "strides" not in configuration.network_arch_init_kwargs:
            return "the plans do not say by which strides other sizes than the patch are taken"
        return self.predictor.one_size

    def _candidates(self, image: WholeImage, *, tilted: bool) -> list[BoxPrediction]:
        """Return the soft map at one candidate after the other, up to the first without a finding."""
        tried = []
        forward = self.predictor.at_any_size()
        for candidate in recentring.candidates(image, forward, self.scale, self._grid, tilted):
            tried.append(self._placed(image, *candidate))
            if not tried[-1].reasons:
                break
        return tried

    def _refined(self, image: WholeImage, found: BoxPrediction) -> BoxPrediction:
        """Return the best of a tilted cord's maps, each placed along the one before."""
        tried = [found]
        for _ in range(_MOST_REFINEMENTS):
            placement = found.placement
            if placement is None or placement.is_straight:
                break
            finer = recentring.refined(placement, found.soft_map, self.shape, self._grid)
            moved = np.abs(finer.centres - placement.centres).max()
            # An empty map tells nothing of the path; a good one is where it was looked for.
            if finer is placement or (moved < _SETTLED and not found.findings):
                break
            found = self._placed(image, finer, found.ring_contrast)
            tried.append(found)
        return max(reversed(tried), key=lambda one: one.score)

    @property
    def _grid(self) -> Grid:
        configuration = self.predictor.configuration
        axes = len(configuration.patch_size)
        strides = [
            np.broadcast_to(stride, axes) for stride in configuration.network_arch_init_kwargs["strides"]
        ]
        known = [known_range(label, "largest_area")[1] for label in self._training.values() if label]
        in_plane = [length for axis, length in enumerate(configuration.spacing) if axis != self._si_axis]
        area = max(known, default=_CORD_MM2 / np.prod(in_plane))
        return Grid(
            si_axis=self._si_axis or 0,
            spacing_mm=tuple(map(float, configuration.spacing)),
            patch_size=tuple(map(int, configuration.patch_size)),
            total_stride=tuple(int(stride) for stride in np.prod(strides, axis=0)),
            radius=float(np.sqrt(area / np.pi)),
        )

    def _placed(
        self, image: WholeImage | None, placement: Placement, ring_contrast: float = 1.0
    ) -> BoxPrediction:
        """Return the soft map of the patch at a placement."""
        if image is None:
            raise ValueError("the patch is placed in a whole case, found none")
        raw, agreement = _blend_tiles(self.predictor, placement.patch(image), self._record)
        found = self._judged(placement.box, raw, agreement, placement)
        return replace(found, ring_contrast=ring_contrast)

    def _judged(
        self, box: Box, raw: Image, agreement: Floats, placement: Placement | None = None
    ) -> BoxPrediction:
        """Return the soft map of raw output, with its findings; agreement: of each label."""
        scales = self._output_scales
        soft_map = soft_map_of(raw[None], self.scale, [*scales.values()], self._floor)[0]
        cores = {name: scale.core_threshold for name, scale in scales.items()}
        unsure = []
        for of_label, found, (name, scale) in zip(soft_map, agreement.tolist(), scales.items(), strict=True):
            if of_label.max() > scale.core_threshold:  # else it is empty in any case
                unsure += flag_agreement(name, found, scale.least_agreement)
            if found < scale.least_agreement:
                of_label[:] = 0
        coverage = np.ones(raw.shape[1:], dtype=np.bool_)
        tilt_factor = None
        if placement is not None:
            soft_map, coverage = placement.put_back(soft_map), placement.coverage()
            tilt_factor = placement.tilt_factor
        peaks = robust_peak(raw[None]).ravel()
        findings = [
            finding
            for name, found, learned in zip(self.names, peaks.tolist(), self.scale.tolist(), strict=True)
            if not scales[name].is_fixed  # a low map may be meant
            for finding in flag_response(name, found, learned, self._floor)
        ]
        findings += unsure
        part = inside_of_box(box, self.shape)
        in_case = soft_map[(slice(None), *part)]
        goes_on = [(start > 0, stop < size) for (start, stop), size in zip(box, self.shape, strict=True)]
        findings += flag_border(in_case, coverage[part], goes_on)
        of_map = flag_map(in_case, self.names, self._training, self._si_axis or 0, tilt_factor, cores=cores)
        # Pieces that are removed in the end, as was asked for, are no sign of a wrong place.
        removed = {Flag.PIECES} if self._record.options.largest_piece else set()
        findings += [finding for finding in of_map if finding.flag not in removed]
        above = soft_map.reshape(len(soft_map), -1).max(axis=1) > np.array([*cores.values()], np.float32)
        is_empty = not bool(above.any())
        return BoxPrediction(box, soft_map, peaks, is_empty, tuple(findings), agreement, placement)


def _note(record: CaseRecord, case: _Case, found: BoxPrediction) -> None:
    """Note robust peaks beside the running scale, and how far mirrored passes agree; lists in an ensemble.

    Flags of the soft map itself are noted by the export, which has the mean of all folds.
    """
    values = zip(case.names, found.robust_peak.tolist(), case.scale.tolist(), found.agreement, strict=True)
    for name, peak, scale, agreement in values:
        label = record.labels.setdefault(name, {})
        label.setdefault("raw_plateau", []).append(round(peak, 4))
        label.setdefault("raw_plateau_in_training", []).append(round(scale, 4))
        if agreement < 1:
            label.setdefault("mirror_agreement", []).append(round(float(agreement), 3))
    told = (Flag.WEAK, Flag.BORDER, Flag.UNSURE)
    record.add_flags(finding for finding in found.findings if finding.flag in told)


# Tiles: nnU-Net's sliding window on arrays. Sums are collected in float32, as half precision would cost the
# third digit, and in whatever arrays the network answers with: NumPy's, or torch's on a GPU.


def _blend_tiles(predictor: Predictor, image: Image, record: CaseRecord) -> tuple[Image, Floats]:
    """Return the raw output (label, *space) of an image of any size, and (label,) how far passes agree."""
    patch_size = tuple(predictor.configuration.patch_size)
    whole, within = padded(image, patch_size)
    where = tiles(whole.shape[1:], patch_size, predictor.tile_step)
    window = gaussian(patch_size) if predictor.weighs_tiles and len(where) > 1 else None
    bar = tqdm(where, disable=not predictor.shows_progress or len(where) == 1)
    try:
        raw, agreement = _blended(predictor, whole, bar, window, record)
    except predictor.memory_errors:
        raw, agreement = _blended(predictor.in_less_memory(), whole, bar, window, record)
    return predictor.fetch(raw)[(slice(None), *within[1:])], agreement.of_labels(len(predictor.names))


def _blended(
    predictor: Predictor, image: Image, where: Iterable[Tile], window: Image | None, record: CaseRecord
) -> tuple[Any, Agreement]:
    """Return the raw output (label, *space), in an array of the network's, and how far passes agree.

    The image is (channel, *space) and no smaller than the patch, `where` its tiles; the window weighs the
    voxels of a tile, all alike if there is none.
    """
    predictor.agreement = Agreement()
    total = predictor.place(np.zeros((len(predictor.names), *image.shape[1:]), np.float32))
    weight = predictor.place(np.zeros(image.shape[1:], np.float32))
    importance = 1.0 if window is None else predictor.place(window)
    for tile in where:
        total[tile] += predictor.run(image[tile]) * importance
        weight[tile[1:]] += importance
        record.add_backend(predictor.name)
    return total / weight, predictor.agreement


def padded(image: Image, patch_size: Sequence[int]) -> tuple[Image, tuple[slice, ...]]:
    """Return an image (channel, *space) as large as the patch at least, zeros around it, and where it lies.

    The last axes are those of the patch.
    """
    smallest = [*image.shape[: image.ndim - len(patch_size)], *patch_size]
    missing = [max(0, int(least) - size) for least, size in zip(smallest, image.shape, strict=True)]
    pads = [(amount // 2, amount - amount // 2) for amount in missing]
    where = tuple(slice(start, start + size) for (start, _), size in zip(pads, image.shape, strict=True))
    return np.pad(image, pads) if any(missing) else image, where


def tiles(shape: Sequence[int], patch_size: Sequence[int], step: float) -> list[Tile]:
    """Return the tiles of a space, no smaller than the patch; neighbours are at most `step` patches apart.

    Patches with one axis less than the space lie in each of its slices.
    """
    flat = len(shape) - len(patch_size)
    along: list[Iterable[Any]] = [range(int(size)) for size in shape[:flat]]
    along += [
        [slice(start, start + int(patch)) for start in recentring.window_starts(int(size), int(patch), step)]
        for size, patch in zip(shape[flat:], patch_size, strict=True)
    ]
    return [(slice(None), *place) for place in itertools.product(*along)]


@functools.lru_cache(maxsize=2)
def gaussian(patch_size: tuple[int, ...]) -> Image:
    """Return the weight of each voxel of a tile, 1 in its middle, nowhere 0."""
    peak = np.zeros(patch_size)
    peak[tuple(size // 2 for size in patch_size)] = 1
    smooth = ndimage.gaussian_filter(peak, [size * SIGMA for size in patch_size], mode="constant")
    weight: Image = (smooth / smooth.max()).astype(np.float32)
    weight[weight == 0] = weight[weight > 0].min()
    weight.flags.writeable = False  # the next call gets the same one
    return weight
