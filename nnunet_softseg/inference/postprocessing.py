"""What of a soft map is kept: what belongs to a core, the largest piece on request, nothing made up."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from nnunet_softseg.inference import flags
from nnunet_softseg.inference.flags import Flagged
from nnunet_softseg.inference.options import PredictionOptions
from nnunet_softseg.metrics.label_shape import could_be_labels, differences
from nnunet_softseg.preprocessing.center_crop import Box, inside, inside_of_box
from nnunet_softseg.preprocessing.resampling import Extent, reached_extent, resample_part
from nnunet_softseg.settings import HARD_THRESHOLD, PLANS_KEY, SoftSegSettings

Map = npt.NDArray[np.float32]
Array = npt.NDArray[np.floating[Any]] | torch.Tensor
Slices = tuple[slice, ...]


def cleaned(
    soft_maps: Map,
    names: Sequence[str],
    plans: Mapping[str, Any],
    tilt_factor: npt.NDArray[np.float64] | None = None,
    *,
    options: PredictionOptions,
    at_border: bool = False,
) -> tuple[Map, list[Flagged]]:
    """Return soft maps with the background exactly 0, and what there is to say about it.

    A map no piece of which could be a label of the training, by its coarse shape, is flagged, and made empty
    on request: it is what a network makes up where there is none. So is one that touches the border of what
    the network saw and is in pieces, each of which is unlike the training. (Of 1500 maps of cords of phantoms
    none touches the border, is in pieces and unlike the training, of 63 that were made up 40 do.)

    Args:
        soft_maps: (label, *space) on the network's grid, along S-I all of the case.
        names: of the labels.
        plans: of the model, with our entries.
        tilt_factor: as for `label_shape`.
        options: whether only the largest piece is kept, and whether an implausible map is.
        at_border: whether the border of what the network saw is touched, with the image going on behind it.

    Returns:
        A new array of the same shape, and findings for softseg.json.
    """
    settings, entry = SoftSegSettings.from_plans(plans), plans[PLANS_KEY]
    kept, findings = [], []
    for name, soft_map in zip(names, soft_maps, strict=True):
        label = keep_supported(soft_map, settings.core_threshold, settings.support_threshold)
        if options.largest_piece:
            label = largest_piece(label, settings.support_threshold)
        training = entry.get("training_shapes", {}).get(name)
        axis = entry.get("si_axis") or 0
        something = bool((label > HARD_THRESHOLD).any())
        if something and training and _is_made_up(label, training, axis, tilt_factor, at_border):
            findings += flags.of_unlikely(name, kept=not options.discard_implausible)
            label = np.zeros_like(label) if options.discard_implausible else label
        kept.append(label)
    return np.stack(kept), findings


def _is_made_up(
    label: Map,
    training: Mapping[str, float],
    axis: int,
    tilt_factor: npt.NDArray[np.float64] | None,
    at_border: bool,
) -> bool:
    could_be = could_be_labels(label, training, axis, tilt_factor)
    if (
        not at_border
        or ndimage.label(label > HARD_THRESHOLD, np.ones((3,) * label.ndim))[1] <= training["components"]
    ):
        return not any(True for _ in could_be)
    return all(differences(shape, training) for shape in could_be)


def largest_piece(soft_map: Map, support_threshold: float) -> Map:
    """Return a soft map with only its largest piece, by the sum of its values, which stay as they are.

    Args:
        soft_map: (*space), from `keep_supported`.
        support_threshold: a piece is what is connected (26 neighbours) through voxels above this, and the
            ring around it.
    """
    neighbours = np.ones((3,) * soft_map.ndim, dtype=bool)
    pieces, count = ndimage.label(soft_map > support_threshold, structure=neighbours)
    if not count:
        return np.zeros_like(soft_map)
    sums = ndimage.sum_labels(soft_map, pieces, np.arange(1, count + 1))
    kept = ndimage.binary_dilation(pieces == 1 + int(np.argmax(sums)), structure=neighbours)
    return np.where(kept, soft_map, np.float32(0))


def keep_supported(
    soft_map: npt.NDArray[np.float32], core_threshold: float, support_threshold: float
) -> npt.NDArray[np.float32]:
    """Return the soft map of one label with everything 0 that does not belong to a core.

    A residue of 0.005 in 300,000 background voxels weighs more than a cord. It is removed by support, not by
    clipping: what is connected (26 neighbours) to a voxel above the core threshold through voxels above the
    support threshold keeps its value, and so does the ring of voxels around that, whatever its value. So
    partial volume at the boundary stays as it is.

    Args:
        soft_map: (*space), values in [0, 1].
        core_threshold: a component without a voxel above this is background.
        support_threshold: components are made of voxels above this.

    Returns:
        A new array of the same shape and type.
    """
    kept = np.zeros_like(soft_map)
    above = soft_map > support_threshold
    if not above.any():
        return kept
    # Only the surroundings of what is above the threshold are worked on: the rest is 0 in any case.
    box = tuple(
        slice(max(part.start - 1, 0), part.stop + 1)
        for part in ndimage.find_objects(above.astype(np.uint8))[0]
    )
    neighbours = np.ones((3,) * soft_map.ndim, dtype=bool)
    components, count = ndimage.label(above[box], structure=neighbours)
    has_core = np.zeros(count + 1, dtype=bool)
    has_core[np.unique(components[soft_map[box] > core_threshold])] = True
    has_core[0] = False
    supported = ndimage.binary_dilation(has_core[components], structure=neighbours)
    kept[box] = np.where(supported, soft_map[box], 0)
    return kept


def resample_soft_map(
    data: Array,
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    *,
    core_threshold: float = 0.5,
    support_threshold: float = 0.05,
) -> npt.NDArray[np.float32]:
    """Return soft maps on another grid of the same field of view: linear on all axes, background exactly 0.

    nnU-Net calls this, by its name in the plans, where it would resample logits. It would take the nearest
    slice along a thick-slice axis; a soft map is interpolated there too. Order 1 is the inverse of how soft
    targets come to the network's grid: at the centre of an original voxel it returns what was there.

    Args:
        data: (label, *space) soft maps in [0, 1].
        new_shape: of the space.
        current_spacing: in mm; not needed, both grids cover the same field of view.
        new_spacing: in mm; not needed either.
        core_threshold: see `keep_supported`.
        support_threshold: see `keep_supported`.

    Returns:
        (label, *new_shape) float32 in [0, 1].
    """
    soft_maps = np.asarray(data, dtype=np.float32)
    cleaned = np.stack([keep_supported(label, core_threshold, support_threshold) for label in soft_maps])
    shape = cleaned.shape[1:]
    whole_case = tuple((0, size) for size in shape)
    return placed(*on_image_grid(cleaned, whole_case, shape, new_shape), new_shape)


def on_image_grid(
    soft_maps: Map, box: Box, network_shape: Sequence[int], image_shape: Sequence[int]
) -> tuple[Map, Slices]:
    """Return the soft maps of a box on the image's grid, the part that is not 0, and where that part lies.

    Linear on all axes. The maps are 0 outside of the box; at the border of the case the edge goes on.

    Args:
        soft_maps: (label, *size of the box) in [0, 1].
        box: (start, stop) per axis on the network's grid; may reach beyond the case.
        network_shape: of the whole case on the network's grid.
        image_shape: of the image's grid, which covers the same field of view.

    Returns:
        (label, *part) float32 in [0, 1], and the slices of that part of the image.
    """
    extents = _covered(soft_maps, box, network_shape)
    nothing: Map = np.zeros((len(soft_maps), *(0,) * len(box)), np.float32)
    nowhere = (slice(0, 0),) * len(box)
    if extents is None:
        return nothing, nowhere
    inner = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(extents, box, strict=True))
    # A ring of zeros, where the case goes on: values fall to 0 over one voxel of the network's grid.
    rings = [(int(a > 0), int(b < size)) for (a, b), size in zip(extents, network_shape, strict=True)]
    part = np.pad(soft_maps[(slice(None), *inner)], [(0, 0), *rings])
    starts = [a - before for (a, _), (before, _) in zip(extents, rings, strict=True)]
    sizes = list(zip(network_shape, image_shape, extents, strict=True))
    reached = [reached_extent(network, image, extent) for network, image, extent in sizes]
    if any(start == stop for start, stop in reached):
        return nothing, nowhere
    shapes = network_shape, image_shape
    values = [resample_part(label, starts, *shapes, reached, order=1) for label in part]
    on_image: Map = np.stack(values).clip(0, 1).astype(np.float32)
    return on_image, tuple(slice(*extent) for extent in reached)


def placed(part: Map, slices: Slices, shape: Sequence[int]) -> Map:
    """Return maps (label, *shape) that hold a part at its place, and 0 elsewhere."""
    whole = np.zeros((len(part), *map(int, shape)), dtype=part.dtype)
    whole[(slice(None), *slices)] = part
    return whole


def _covered(soft_maps: Map, box: Box, network_shape: Sequence[int]) -> list[Extent] | None:
    """Return the extents on the network's grid, inside the case, of what is not 0; None: nothing is."""
    within = inside(box, network_shape)
    if any(part.stop <= part.start for part in within):
        return None
    inner = soft_maps[(slice(None), *inside_of_box(box, network_shape))]
    found = ndimage.find_objects((inner != 0).any(axis=0).astype(np.uint8))
    if not found:
        return None
    return [(part.start + at.start, part.start + at.stop) for part, at in zip(within, found[0], strict=True)]
