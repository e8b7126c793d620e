"""From a preprocessed case to its soft map: box, forward in tiles, blend raw, NormReLU, recentring.

The network sees the box in the middle of the case first. Where its map is empty, touches the border of the
box, ends inside the image or looks like no label of the training, the structure may be elsewhere: then boxes
along the paths of `recentring.candidates` are tried, and the one with the largest `BoxPrediction.score` is
taken.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from tqdm import tqdm

from nnunet_softseg.inference import recentring
from nnunet_softseg.inference.case_record import CaseRecord
from nnunet_softseg.inference.postprocessing import MOVED, Flag, Flagged, flag_border, flag_map, flag_response
from nnunet_softseg.inference.recentring import Grid, Placement, WholeImage
from nnunet_softseg.network import backends
from nnunet_softseg.network.backends import TorchNetwork, UNetInStages
from nnunet_softseg.network.norm_relu import robust_peak, running_scale, soft_map_of, unwrapped
from nnunet_softseg.preprocessing.center_crop import Box, inside, inside_of_box, network_box
from nnunet_softseg.preprocessing.output_scale import output_scales
from nnunet_softseg.preprocessing.soft_target import known_range
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings

_ODD = (Flag.EMPTY, Flag.BORDER, Flag.BROKEN_OFF, Flag.PIECES, Flag.UNLIKE, Flag.WEAK)
_CORD_MM2 = 80.0  # for a model that does not know the labels of its training
_MOST_REFINEMENTS = 2
_SETTLED = 0.5  # voxels
_ONE_SIZE = "nnunet_softseg_one_size"  # attribute of a predictor: why its network takes patches alone
_SHAPE_ERRORS = (RuntimeError, ValueError, AssertionError, IndexError, TypeError)


class _OneSizeError(Exception):
    """The network takes no image of another size than the patch, such as Primus, which counts its tokens."""


@dataclass(frozen=True)
class BoxPrediction:
    """Soft map of one box of a case.

    Attributes:
        box: of the case.
        soft_map: (label, *size of the box), in [0, 1].
        robust_peak: (label,) of the raw output.
        is_empty: whether no label exceeds its core threshold.
        findings: flags of the map and of the response.
        placement: of the patch; None: the box in the middle of the case.
        ring_contrast: along the path of the placement.
    """

    box: Box
    soft_map: torch.Tensor
    robust_peak: torch.Tensor
    is_empty: bool
    findings: tuple[Flagged, ...]
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


@torch.inference_mode()
def predict_soft_map(predictor: Any, image: torch.Tensor, record: CaseRecord) -> torch.Tensor:
    """Return the soft maps of a preprocessed case.

    Tiles, where there are several, are blended raw; NormReLU is taken over all that the network saw, with a
    floor relative to the running scale.

    Args:
        predictor: nnU-Net's, with a network and plans of ours.
        image: (channel, *space), preprocessed: the box in the record, or a whole case.
        record: of the case; it is completed.

    Returns:
        (label, *space) float32 in [0, 1], on the CPU: of the box in the record, which may be another one now;
        or of the whole case, 0 where the network did not look.
    """
    started = time.perf_counter()
    case = _Case(predictor, image, record)
    found = case.predicted()
    _note(record, case, found)
    record.seconds["forward"] = record.seconds.get("forward", 0.0) + time.perf_counter() - started
    if case.is_box:
        record.box = found.box
        return found.soft_map
    whole = torch.zeros((len(found.soft_map), *case.shape))
    within = found.soft_map[(slice(None), *inside_of_box(found.box, case.shape))]
    whole[(slice(None), *inside(found.box, case.shape))] = within
    return whole


class _Case:
    """A case on its way through the network, the arguments as for `predict_soft_map`."""

    def __init__(self, predictor: Any, image: torch.Tensor, record: CaseRecord) -> None:
        self.predictor = predictor
        self.names = predictor.label_manager.scheme.names
        self.scale = running_scale(predictor.network).float().cpu()
        plans: Mapping[str, Any] = predictor.plans_manager.plans
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
        return Flag.CONSTANT in self._record.flags if self.is_box else _is_constant(self._image)

    def _whole(self) -> WholeImage | None:
        """Return the whole case; None where it cannot be read again."""
        if not self.is_box:
            return WholeImage(self._image)
        return self._record.read_whole() if self._record.read_whole else None

    def _in_the_middle(self) -> BoxPrediction:
        if self.is_box and self._central is not None:
            box, image = self._central, self._image
        else:
            box = network_box(self.shape, self.predictor.configuration_manager.patch_size, self._si_axis)
            image = WholeImage(self._image).extract(box)
        raw = _blend_tiles(self.predictor, image, self._record)
        if _is_constant(image):
            raw.zero_()  # the response to a constant image says nothing
        return self._judged(box, raw)

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
        except _OneSizeError as error:
            note["not_run"] = str(error)
            setattr(self.predictor, _ONE_SIZE, str(error))
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
        configuration = self.predictor.configuration_manager
        if getattr(configuration, "previous_stage_name", None):
            return "the second stage of a cascade sees where the first has looked"
        if "strides" not in configuration.network_arch_init_kwargs:
            return "the plans do not say by which strides other sizes than the patch are taken"
        known: str | None = getattr(self.predictor, _ONE_SIZE, None)
        return known

    def _candidates(self, image: WholeImage, *, tilted: bool) -> list[BoxPrediction]:
        """Return the soft map at one candidate after the other, up to the first without a finding."""
        tried = []
        forward = _at_any_size(self.predictor)
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
        configuration = self.predictor.configuration_manager
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
        raw = _blend_tiles(self.predictor, placement.patch(image), self._record)
        found = self._judged(placement.box, raw, placement)
        return replace(found, ring_contrast=ring_contrast)

    def _judged(self, box: Box, raw: torch.Tensor, placement: Placement | None = None) -> BoxPrediction:
        """Return the soft map of raw output, with its findings."""
        scales = self._output_scales
        soft_map = soft_map_of(raw[None], self.scale, [*scales.values()], self._floor)[0]
        coverage = np.ones(raw.shape[1:], dtype=np.bool_)
        tilt_factor = None
        if placement is not None:
            soft_map, coverage = placement.put_back(soft_map), placement.coverage()
            tilt_factor = placement.tilt_factor
        peaks = robust_peak(raw[None]).flatten()
        findings = [
            finding
            for name, found, learned in zip(self.names, peaks.tolist(), self.scale.tolist(), strict=True)
            if not scales[name].is_fixed  # a low map may be meant
            for finding in flag_response(name, found, learned, self._floor)
        ]
        part = inside_of_box(box, self.shape)
        in_case = soft_map[(slice(None), *part)].numpy()
        goes_on = [(start > 0, stop < size) for (start, stop), size in zip(box, self.shape, strict=True)]
        findings += flag_border(in_case, coverage[part], goes_on)
        cores = {name: scale.core_threshold for name, scale in scales.items()}
        of_map = flag_map(in_case, self.names, self._training, self._si_axis or 0, tilt_factor, cores=cores)
        # Pieces that are removed in the end, as was asked for, are no sign of a wrong place.
        removed = {Flag.PIECES} if self._record.options.largest_piece else set()
        findings += [finding for finding in of_map if finding.flag not in removed]
        above = soft_map.flatten(1).amax(1) > torch.tensor([*cores.values()])
        return BoxPrediction(box, soft_map, peaks, not bool(above.any()), tuple(findings), placement)


def _is_constant(image: torch.Tensor) -> bool:
    return all(float(channel.min()) == float(channel.max()) for channel in image)


def _at_any_size(predictor: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the network as (channel, *space) -> (label, *space) for arrays of any size.

    What runs patches may be compiled for them alone.
    """
    network = predictor.network = predictor.network.to(predictor.device).eval()
    is_unet = UNetInStages.fits(unwrapped(network))
    if predictor.device.type == "cpu" and is_unet:
        patch_shape = (1, *predictor.configuration_manager.patch_size)
        return TorchNetwork(network, backends.fastest_precision(patch_shape))

    def run(image: torch.Tensor) -> torch.Tensor:
        try:
            with torch.autocast("cuda", enabled=predictor.device.type == "cuda"):
                raw: torch.Tensor = network(image[None].to(predictor.device))[0].float().cpu()
        except _SHAPE_ERRORS as error:
            if is_unet or isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            name = type(unwrapped(network)).__name__
            raise _OneSizeError(f"{name} takes no image of another size than the patch") from error
        return raw

    return run


def _blend_tiles(predictor: Any, image: torch.Tensor, record: CaseRecord) -> torch.Tensor:
    """Return the raw output (label, *space), float32 on the CPU, of an image of any size."""
    patch_size = tuple(predictor.configuration_manager.patch_size)
    predictor.network = predictor.network.to(predictor.device).eval()
    padded, back = pad_nd_image(image, patch_size, "constant", {"value": 0}, True, None)
    slicers = predictor._internal_get_sliding_window_slicers(padded.shape[1:])
    on_device = predictor.perform_everything_on_device and predictor.device.type == "cuda"
    try:
        collect_on = predictor.device if on_device else torch.device("cpu")
        raw = _blend(predictor, record, padded, slicers, collect_on)
    except torch.cuda.OutOfMemoryError:
        if not on_device:
            raise
        raw = _blend(predictor, record, padded, slicers, torch.device("cpu"))
    return raw[(slice(None), *back[1:])].cpu()


def _blend(
    predictor: Any,
    record: CaseRecord,
    image: torch.Tensor,
    slicers: Sequence[tuple[Any, ...]],
    collect_on: torch.device,
) -> torch.Tensor:
    """Blend the tiles under nnU-Net's Gaussian, in float32: half precision would cost the third digit."""
    patch_size = tuple(predictor.configuration_manager.patch_size)
    heads = predictor.label_manager.num_segmentation_heads
    total = torch.zeros((heads, *image.shape[1:]), dtype=torch.float32, device=collect_on)
    weight = torch.zeros(image.shape[1:], dtype=torch.float32, device=collect_on)
    window: torch.Tensor | float = 1.0
    if predictor.use_gaussian and len(slicers) > 1:
        window = compute_gaussian(patch_size, sigma_scale=1.0 / 8, dtype=torch.float32, device=collect_on)
    backend = backends.backend_of(predictor, record.options.backend)
    for tile in tqdm(slicers, disable=not predictor.allow_tqdm or len(slicers) == 1):
        total[tile] += backend(image[tile]).to(collect_on) * window
        weight[tile[1:]] += window
        record.add_backend(backend.name)
    return total / weight


def _note(record: CaseRecord, case: _Case, found: BoxPrediction) -> None:
    """Note the robust peak of each label beside the running scale; folds of an ensemble add up in lists.

    Flags of the soft map itself are noted by the export, which has the mean of all folds.
    """
    values = zip(case.names, found.robust_peak.tolist(), case.scale.tolist(), strict=True)
    for name, peak, scale in values:
        label = record.labels.setdefault(name, {})
        label.setdefault("raw_plateau", []).append(round(peak, 4))
        label.setdefault("raw_plateau_in_training", []).append(round(scale, 4))
    record.add_flags(finding for finding in found.findings if finding.flag in (Flag.WEAK, Flag.BORDER))
