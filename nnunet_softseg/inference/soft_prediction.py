"""From a preprocessed case to its soft map: the box, forward in tiles, blend raw, NormReLU, a second look.

The network sees the box in the middle of the case first. Where its map is empty, touches the border of the
box, ends inside the image or looks like no label of the training, the cord may be elsewhere: then the
localiser looks at the whole image, and the network sees the boxes that it places.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from torch.nn.functional import avg_pool3d
from tqdm import tqdm

from nnunet_softseg.datasets.raw_dataset import label_names
from nnunet_softseg.inference import flags
from nnunet_softseg.inference import postprocessing as clean_up
from nnunet_softseg.inference import recentring as localiser
from nnunet_softseg.inference.case_record import CaseRecord
from nnunet_softseg.inference.flags import Flag, Flagged
from nnunet_softseg.inference.network_image import NetworkImage
from nnunet_softseg.inference.options import Localize
from nnunet_softseg.inference.recentring import Grid, Placement, WholeImage
from nnunet_softseg.network.backends import choice
from nnunet_softseg.network.backends.torch_network import UNetInStages
from nnunet_softseg.network.norm_relu import norm_relu, robust_peak
from nnunet_softseg.network.running_scale import running_scale, unwrapped
from nnunet_softseg.preprocessing.center_crop import Box, inside, inside_of_box, network_box
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings

_ODD = (Flag.EMPTY, Flag.BORDER, Flag.BROKEN_OFF, Flag.PIECES, Flag.UNLIKE, Flag.WEAK)
_CORD_MM2 = 80.0  # for a model that does not know the labels of its training
_MOST_REFINEMENTS = 2
_SETTLED = 0.5  # voxels
_DOUBTFUL = (Flag.PIECES, Flag.UNLIKE, Flag.WEAK)


@dataclass(frozen=True)
class BoxPrediction:
    """What the network made of the part of a case that it saw.

    Attributes:
        box: of the case.
        soft_map: (label, *size of the box), in [0, 1].
        raw_plateau: (label,).
        findings: what is odd about it.
    """

    box: Box
    soft_map: torch.Tensor
    raw_plateau: torch.Tensor
    findings: tuple[Flagged, ...]

    @property
    def flags(self) -> set[Flag]:
        """The words of the findings."""
        return {flag for flag, _ in self.findings}

    @property
    def oddity(self) -> tuple[bool, int]:
        """What orders maps of one case: the least odd first."""
        return Flag.EMPTY in self.flags, len(self.findings)


@torch.inference_mode()
def predict_soft_map(predictor: Any, image: torch.Tensor, record: CaseRecord) -> torch.Tensor:
    """Return the soft maps of a preprocessed case.

    Tiles, where there are several, are blended raw; NormReLU is taken over all that the network saw, with a
    floor relative to the raw robust peak that the network learned.

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
    seen = case.seen()
    _note(record, case, seen)
    record.seconds["forward"] = record.seconds.get("forward", 0.0) + time.perf_counter() - started
    if case.is_box:
        record.box = seen.box
        return seen.soft_map
    whole = torch.zeros((len(seen.soft_map), *case.shape))
    within = seen.soft_map[(slice(None), *inside_of_box(seen.box, case.shape))]
    whole[(slice(None), *inside(seen.box, case.shape))] = within
    return whole


class _Case:
    """A case on its way through the network.

    Args:
        predictor: nnU-Net's.
        image: (channel, *space) of the box in the record, or of the whole case.
        record: of the case.
    """

    def __init__(self, predictor: Any, image: torch.Tensor, record: CaseRecord) -> None:
        self.predictor = predictor
        self.names = label_names(predictor.dataset_json, predictor.label_manager.foreground_labels)
        self.reference = running_scale(predictor.network).float().cpu()
        self.settings = SoftSegSettings.from_plans(predictor.plans_manager.plans)
        self._entry: Mapping[str, Any] = predictor.plans_manager.plans[PLANS_KEY]
        self._image = image
        self._record = record
        # The next fold of an ensemble comes with the same image again, whatever box this one ends with.
        self._central = record.central_box = record.central_box or record.box
        # A record that was left over from another case says nothing about this image.
        self.is_box = self._central is not None and _size(self._central) == tuple(image.shape[1:])
        shape = record.network_shape if self.is_box else None
        self.shape: tuple[int, ...] = tuple(int(size) for size in shape or image.shape[1:])

    def seen(self) -> BoxPrediction:
        """Return what the network sees of the case in the end.

        The first fold of an ensemble decides where all of them look: maps of several boxes have no mean.
        """
        decided = self.is_box and self._record.is_placed
        placement = self._record.placement if decided else None
        if placement is not None:
            return self._where(self._whole(), placement)
        first = self._in_the_middle()
        if decided or self._si_axis is None:
            return first
        mode = self._record.options.localize
        because = sorted(flag.value for flag in first.flags.intersection(_ODD))
        if self._is_constant or mode == "never" or (mode == "auto" and not because):
            chosen = first
        else:
            chosen, placement = self._recentred(first, mode, because)
        self._record.placement, self._record.is_placed = placement, True
        return chosen

    @property
    def _si_axis(self) -> int | None:
        axis: int | None = self._entry.get("si_axis")
        return axis

    @property
    def _is_constant(self) -> bool:
        """Whether the whole case is."""
        flagged = Flag.CONSTANT in self._record.flags
        return flagged if self.is_box else _is_constant(self._image)

    def _whole(self) -> WholeImage | None:
        """Return the whole case; None where it cannot be read again."""
        if not self.is_box:
            return _ArrayImage(self._image)
        files = self._record.image_files
        predictor = self.predictor
        plans = predictor.plans_manager, predictor.configuration_manager
        return NetworkImage.from_files(files, *plans) if files else None

    def _in_the_middle(self) -> BoxPrediction:
        patch_size = self.predictor.configuration_manager.patch_size
        box = network_box(self.shape, patch_size, self._si_axis)
        image = self._image
        if self.is_box and self._central is not None:
            box = self._central
        else:
            image = _ArrayImage(image).extract(box)
        raw = _blend_tiles(self.predictor, image, self._record)
        if _is_constant(image):
            raw.zero_()  # what a network answers to a constant image says nothing
        return self._judged(box, raw, np.ones(raw.shape[1:], dtype=np.bool_))

    def _recentred(
        self, first: BoxPrediction, mode: Localize, because: list[str]
    ) -> tuple[BoxPrediction, Placement | None]:
        """Return what the network sees where the localiser places it, if that is better, and where."""
        note: dict[str, Any] = {"mode": mode, "because": because, "used": False}
        self._record.localiser = note
        image = self._whole()
        if image is None:
            note["not_run"] = "the image came as an array: there is no file to read all of it from"
            return first, None
        started = time.perf_counter()
        forward = _at_any_size(self.predictor)
        # A cord that leans leaves the box in the middle, or is not known there at all.
        leaning = bool(first.flags & {Flag.BORDER, Flag.EMPTY})
        looks = self._looks(image, localiser.candidates(image, forward, self.reference, self._grid, leaning))
        second, placement = self._closest(image, looks) if looks else (first, None)
        used = bool(looks) and (mode == "always" or _is_better(second, first))
        seconds = round(time.perf_counter() - started, 3)
        note |= {"tried": len(looks), "used": used, "seconds": seconds}
        note |= placement.as_json() if placement else {}
        if used and because:
            self._record.add_flags(flags.of_move())
        return (second, placement) if used else (first, None)

    def _looks(
        self, image: WholeImage, candidates: Iterator[localiser.Candidate]
    ) -> list[tuple[BoxPrediction, localiser.Candidate]]:
        """Return what the network sees at one place after the other, up to the first where nothing is odd."""
        looks = []
        for candidate in candidates:
            seen = self._where(image, candidate.placement)
            looks.append((seen, candidate))
            if not seen.flags.intersection(_ODD):
                break
        return looks

    def _closest(
        self, image: WholeImage, looks: Sequence[tuple[BoxPrediction, localiser.Candidate]]
    ) -> tuple[BoxPrediction, Placement]:
        """Return what the network sees where least is odd; of places that are as odd, the most like a cord.

        Where the cord leans, it is looked at again, set upright by what was found.
        """
        seen, (placement, _) = min(looks, key=lambda look: (look[0].oddity, -look[1].ring_contrast))
        tried = [(seen, placement)]
        for _ in range(_MOST_REFINEMENTS):
            if placement.is_straight:
                break
            closer = localiser.refined(placement, seen.soft_map, self.shape, self._grid)
            moved = np.abs(closer.centres - placement.centres).max()
            # Nothing was found that tells more, or it is found where it was looked for.
            if closer is placement or (moved < _SETTLED and not seen.findings):
                break
            placement = closer
            seen = self._where(image, placement)
            tried.append((seen, placement))
        return min(reversed(tried), key=lambda one: one[0].oddity)

    @property
    def _grid(self) -> Grid:
        configuration = self.predictor.configuration_manager
        axes = len(configuration.patch_size)
        strides = [
            np.broadcast_to(stride, axes) for stride in configuration.network_arch_init_kwargs["strides"]
        ]
        shapes = [shape for shape in self._entry.get("training_shapes", {}).values() if shape]
        in_plane = [length for axis, length in enumerate(configuration.spacing) if axis != self._si_axis]
        area = max((shape["largest_area"] for shape in shapes), default=_CORD_MM2 / np.prod(in_plane))
        return Grid(
            si_axis=self._si_axis or 0,
            spacing_mm=tuple(map(float, configuration.spacing)),
            patch_size=tuple(map(int, configuration.patch_size)),
            total_stride=tuple(int(stride) for stride in np.prod(strides, axis=0)),
            radius=float(np.sqrt(area / np.pi)),
        )

    def _where(self, image: WholeImage | None, placement: Placement) -> BoxPrediction:
        """Return what the network sees where the localiser has placed it."""
        if image is None:
            raise ValueError("the patch is placed in a whole case, found none")
        raw = _blend_tiles(self.predictor, placement.seen(image), self._record)
        return self._judged(placement.box, raw, placement.coverage(), placement)

    def _judged(
        self,
        box: Box,
        raw: torch.Tensor,
        coverage: npt.NDArray[np.bool_],
        placement: Placement | None = None,
    ) -> BoxPrediction:
        """Return the soft map of raw output, and what is odd about it."""
        floor = self.settings.floor_fraction
        soft_map = norm_relu(raw[None], floor * self.reference, robust=True)[0]
        if placement is not None:
            soft_map = placement.put_back(soft_map)
        found = robust_peak(raw[None]).flatten()
        findings = [
            finding
            for values in zip(self.names, found.tolist(), self.reference.tolist(), strict=True)
            for finding in flags.of_response(*values, floor)
        ]
        part = inside_of_box(box, self.shape)
        in_case = soft_map[(slice(None), *part)].numpy()
        goes_on = [(start > 0, stop < size) for (start, stop), size in zip(box, self.shape, strict=True)]
        findings += flags.of_border(in_case, coverage[part], goes_on)
        tilt_factor = placement.tilt_factor if placement else None
        plans = self.predictor.plans_manager.plans
        options = self._record.options
        cleaned, discarded = clean_up.cleaned(in_case, self.names, plans, tilt_factor, options=options)
        findings += discarded
        training = self._entry.get("training_shapes", {})
        findings += flags.of_map(cleaned, self.names, training, self._si_axis or 0, tilt_factor)
        return BoxPrediction(box, soft_map, found, tuple(findings))


class _ArrayImage:
    """A whole preprocessed case at hand, as `placement.WholeImage`."""

    def __init__(self, image: torch.Tensor) -> None:
        self._image = image
        self.shape = tuple(image.shape[1:])

    def extract(self, box: Box) -> torch.Tensor:
        part: torch.Tensor = crop_and_pad_nd(self._image, [list(extent) for extent in box])
        return part

    def own_slices(self, box: Box, axis: int) -> npt.NDArray[np.floating[Any]]:
        del axis  # it is on the network's grid already
        return self.extract(box).numpy()

    def slice_positions(self, axis: int) -> npt.NDArray[np.float64]:
        return np.arange(self.shape[axis], dtype=np.float64)

    def interpolated(
        self, own_slices: npt.NDArray[np.floating[Any]], axis: int
    ) -> npt.NDArray[np.floating[Any]]:
        del axis
        return own_slices

    def coarse(self, stride: Sequence[int]) -> torch.Tensor:
        return avg_pool3d(self._image[None], tuple(stride), ceil_mode=True, count_include_pad=False)[0]


def _is_better(second: BoxPrediction, first: BoxPrediction) -> bool:
    """Return whether a second look has found what the first has missed.

    An empty map is given up only for one that looks like a label of the training: where there is no cord,
    there is always something that looks a little like one.
    """
    if Flag.EMPTY in first.flags:
        return not second.flags.intersection((Flag.EMPTY, *_DOUBTFUL))
    return Flag.EMPTY not in second.flags and len(second.findings) < len(first.findings)


def _is_constant(image: torch.Tensor) -> bool:
    return all(float(channel.min()) == float(channel.max()) for channel in image)


def _size(box: Box) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in box)


def _at_any_size(predictor: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the network as (channel, *space) -> (label, *space) for arrays of any size.

    What runs patches may be compiled for them alone.
    """
    network = predictor.network = predictor.network.to(predictor.device).eval()
    if predictor.device.type == "cpu" and UNetInStages.fits(unwrapped(network)):
        patch_shape = (1, *predictor.configuration_manager.patch_size)
        return choice.torch_on_cpu(network, choice.fastest_precision(patch_shape))

    def run(image: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", enabled=predictor.device.type == "cuda"):
            raw: torch.Tensor = network(image[None].to(predictor.device))[0].float().cpu()
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
    backend = choice.of(predictor, record.options.backend)
    for tile in tqdm(slicers, disable=not predictor.allow_tqdm or len(slicers) == 1):
        total[tile] += backend(image[tile]).to(collect_on) * window
        weight[tile[1:]] += window
        record.add_backend(backend.name)
    return total / weight


def _note(record: CaseRecord, case: _Case, seen: BoxPrediction) -> None:
    """Note the robust peak of each label beside the running scale; folds of an ensemble add up in lists.

    What a soft map itself tells is noted when it is written: of the mean of all folds.
    """
    values = zip(case.names, seen.raw_plateau.tolist(), case.reference.tolist(), strict=True)
    for name, found, learned in values:
        label = record.labels.setdefault(name, {})
        label.setdefault("raw_plateau", []).append(round(found, 4))
        label.setdefault("raw_plateau_in_training", []).append(round(learned, 4))
    record.add_flags(finding for finding in seen.findings if finding.flag in (Flag.WEAK, Flag.BORDER))
