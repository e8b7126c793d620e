"""Post-processing of soft maps: background removed, largest component on request, the way to another grid."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from nnunet_softseg.inference import flags
from nnunet_softseg.inference.case_record import PredictionOptions
from nnunet_softseg.inference.flags import Flag, Flagged
from nnunet_softseg.preprocessing.center_crop import Box, inside, inside_of_box
from nnunet_softseg.preprocessing.resampling import Extent, reached_extent, resample_part
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings

Map = npt.NDArray[np.float32]
Array = npt.NDArray[np.floating[Any]] | torch.Tensor
Slices = tuple[slice, ...]


def postprocess(
    soft_maps: Map,
    names: Sequence[str],
    plans: Mapping[str, Any],
    options: PredictionOptions,
    *,
    in_case: Slices = (),
    tilt_factor: npt.NDArray[np.float64] | None = None,
) -> tuple[Map, list[Flagged]]:
    """Return soft maps with the background exactly 0, and the flags of each.

    Only the options take more away than background: the largest component alone is kept, a map unlike the
    training is emptied. Without them no map is emptied by its shape.

    Args:
        soft_maps: (label, *space) on the network's grid, along S-I all of the case.
        names: of the labels.
        plans: of the model, with our entries.
        options: of the prediction.
        in_case: part of the space that lies in the case; all of it if not given.
        tilt_factor: see `label_shape`.

    Returns:
        A new array of the same shape, and flags for softseg.json.
    """
    settings, entry = SoftSegSettings.from_plans(plans), plans[PLANS_KEY]
    training, axis = entry.get("training_shapes", {}), entry.get("si_axis") or 0
    kept, findings = [], []
    for name, soft_map in zip(names, soft_maps, strict=True):
        label = keep_supported(soft_map, settings.core_threshold, settings.support_threshold)
        if options.largest_piece:
            label = largest_piece(label, settings.support_threshold)
        raised = flags.of_map(label[in_case][None], [name], training, axis, tilt_factor)
        if options.discard_implausible and any(flag is Flag.UNLIKE for flag, _ in raised):
            label = np.zeros_like(label)
            raised.append(flags.of_discard(name))
        kept.append(label)
        findings += raised
    return np.stack(kept), findings


def keep_supported(
    soft_map: npt.NDArray[np.float32], core_threshold: float, support_threshold: float
) -> npt.NDArray[np.float32]:
    """Return a copy of the soft map of one label in which voxels without support are 0.

    A residue of 0.005 in 300,000 background voxels weighs more than a cord. It is removed by support, not by
    clipping: components (26 neighbours) of voxels above the support threshold that have a voxel above the
    core threshold keep their values, and so does the ring of voxels around them, whatever its value. So
    partial volume at the boundary stays as it is.
    """
    kept = np.zeros_like(soft_map)
    above = soft_map > support_threshold
    if not above.any():
        return kept
    # Only the box of the voxels above the threshold is worked on: the rest is 0 in any case.
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


def largest_piece(soft_map: Map, support_threshold: float) -> Map:
    """Return a soft map with only its largest component, by the sum of its values, which stay as they are.

    Args:
        soft_map: (*space), from `keep_supported`.
        support_threshold: as there.
    """
    neighbours = np.ones((3,) * soft_map.ndim, dtype=bool)
    pieces, count = ndimage.label(soft_map > support_threshold, structure=neighbours)
    if not count:
        return np.zeros_like(soft_map)
    sums = ndimage.sum_labels(soft_map, pieces, np.arange(1, count + 1))
    kept = ndimage.binary_dilation(pieces == 1 + int(np.argmax(sums)), structure=neighbours)
    return np.where(kept, soft_map, np.float32(0))


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
    """Return the extents of values above 0, on the network's grid inside the case; None: there are none."""
    within = inside(box, network_shape)
    if any(part.stop <= part.start for part in within):
        return None
    inner = soft_maps[(slice(None), *inside_of_box(box, network_shape))]
    found = ndimage.find_objects((inner != 0).any(axis=0).astype(np.uint8))
    if not found:
        return None
    return [(part.start + at.start, part.start + at.stop) for part, at in zip(within, found[0], strict=True)]
