"""Soft target: the soft label on the grid of the network, its file, and figures of its shape.

A soft label is cropped as nnU-Net does with its image, averaged along axes on which the network's grid is
coarser, interpolated linearly along the others, and stored beside nnU-Net's cases as
`<data_identifier>_soft/<case>.b2nd`, (label, *space), float16, with a record inside.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nnunet_softseg.errors import UserError, short_name
from nnunet_softseg.io.results import write_bytes
from nnunet_softseg.preprocessing.center_crop import Box
from nnunet_softseg.preprocessing.resampling import area_means
from nnunet_softseg.settings import HARD_THRESHOLD

if TYPE_CHECKING:  # loaded where soft targets are stored: a prediction needs their figures alone
    import blosc2

RECORD_KEY = "nnunet_softseg"
"""Of the record, a dictionary, among the variable-length metadata of a soft target."""
KNOWN = 0.5
"""A voxel counts as known if at least this share of what it is interpolated from is."""
DRAWN = 1024
"""So many voxels to centre patches on, of the known ones and of each label."""
_SMOOTH_SLICES = 10.0  # sigma of the areas that the roughness is measured against
_DEPTH = 0.25  # of the interior below the border, in radii of the structure
_RENAMED = {"certainty": "interior_mean"}  # in models and soft targets made before

SoftTarget = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float64]
Range = tuple[float, float]


# Arithmetic


def on_network_grid(
    label: npt.NDArray[np.float32], bbox: Box, shape: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Return a soft label of a whole image, axes after transposition, on the grid of the network.

    The box is that of the non-zero part of the image, the shape that of the preprocessed case. Of unknown
    voxels, NaN, nothing is taken: a voxel of which half or more is known has the mean of what is known.
    """
    cropped = label[tuple(slice(start, stop) for start, stop in bbox)]
    known = ~np.isnan(cropped)
    target: npt.NDArray[np.float32] = np.clip(_resampled(np.where(known, cropped, 0), shape), 0, 1)
    if known.all():
        return target
    share = _resampled(known.astype(np.float32), shape)
    mean: npt.NDArray[np.float32] = np.full_like(target, np.nan)
    np.divide(target, share, out=mean, where=share >= KNOWN)
    return np.clip(mean, 0, 1, out=mean)


def _resampled(label: npt.NDArray[np.float32], shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return the means of the voxels that a coarser grid covers; linear along axes on which it is finer."""
    for axis, (source, size) in enumerate(zip(label.shape, shape, strict=True)):
        if size < source:
            means = area_means(source, int(size), source / size).astype(np.float32)
            label = np.moveaxis(np.tensordot(label, means, axes=(axis, 1)), -1, axis)
    return resample_linear(label, shape)


def resample_linear(array: npt.NDArray[np.float32], shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return an array sampled linearly at the centres of the voxels of another grid over the same extent.

    Sample i lies at (i + 0.5) * old / new - 0.5, clamped at the edges, as nnU-Net resamples images. Along
    thick slices, too, a label is interpolated linearly. Both have three axes.
    """
    if array.shape == tuple(shape):
        return np.ascontiguousarray(array)
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array))[None, None]
    with torch.no_grad():
        resampled = torch.nn.functional.interpolate(
            tensor, size=tuple(int(size) for size in shape), mode="trilinear", align_corners=False
        )
    result: npt.NDArray[np.float32] = resampled[0, 0].numpy()
    return result


def drawn_voxels(target: SoftTarget) -> list[npt.NDArray[np.int32]]:
    """Return voxels (voxel, *space) drawn at random: of those where a label is known, then of each label.

    Training patches are centred on them. The label is where it exceeds half of its largest value in the case:
    one that never exceeds 0.5, as where few raters agree, is found in as many patches as any other.
    """
    random = np.random.default_rng(0)
    drawn = []
    unknown = np.isnan(target)
    labelled = [label > HARD_THRESHOLD * label.max(initial=0) for label in np.where(unknown, 0, target)]
    for where in (~unknown.all(axis=0), *labelled):
        voxels = np.flatnonzero(where)
        if len(voxels) > DRAWN:
            voxels = voxels[random.integers(len(voxels), size=DRAWN)]
        drawn.append(np.stack(np.unravel_index(voxels, where.shape), axis=1).astype(np.int32))
    return drawn


def drawn_voxels_for_record(target: SoftTarget) -> list[bytes]:
    """Return `drawn_voxels` as a record holds them: parsing so many numbers takes longer than a patch."""
    return [voxels.astype("<i4").tobytes() for voxels in drawn_voxels(target)]


def drawn_voxels_of_record(record: Mapping[str, Any], axes: int) -> list[npt.NDArray[np.int64]]:
    """Return `drawn_voxels` of a record, also of one that holds lists of numbers, as they did before."""
    return [
        np.reshape(np.frombuffer(voxels, "<i4") if isinstance(voxels, bytes) else voxels, (-1, axes)).astype(
            np.int64
        )
        for voxels in record["drawn_voxels"]
    ]


# Files


def soft_target_folder(preprocessed_folder: Path) -> Path:
    """Return the folder of soft targets that belongs to nnU-Net's folder of preprocessed cases."""
    return preprocessed_folder.with_name(f"{preprocessed_folder.name}_soft")


def open_soft_target(folder: Path, case: str) -> "blosc2.NDArray":
    """Return a soft target (label, *space), float16, read where sliced; UserError: missing or broken."""
    file = folder / f"{case}.b2nd"
    array = open_or_none(file)
    if array is None:
        found = "a broken one" if file.is_file() else "none"
        raise UserError(
            f"{short_name(file)}: expected a soft target, found {found}: run nnunet-softseg prepare "
            "(trainers do it by themselves when they start)"
        )
    return array


def read_record(array: "blosc2.NDArray") -> dict[str, Any] | None:
    """Return the record of a soft target: sources, grid, versions, crop; None: it has none."""
    try:
        record: dict[str, Any] = array.schunk.vlmeta[RECORD_KEY]
    except Exception:  # a broken file fails in as many ways as there are layers in the format
        return None
    return record


def write_soft_target(
    file: Path, target: SoftTarget, record: Mapping[str, Any], patch_size: Sequence[int]
) -> None:
    """Write a soft target with its record, in chunks as nnU-Net's for that patch."""
    import blosc2
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

    blocks, chunks = comp_blosc2_params(target.shape, patch_size, target.itemsize)
    shuffle = [blosc2.Filter.SHUFFLE]
    cparams = {"codec": blosc2.Codec.LZ4HC, "clevel": 5, "filters": shuffle, "nthreads": 1}
    array = blosc2.asarray(target, chunks=chunks, blocks=blocks, cparams=cparams)
    array.schunk.vlmeta[RECORD_KEY] = dict(record)
    # On a full disk, Blosc2 itself leaves half a file. Its frame in memory is, byte for byte, the file that
    # it would write.
    write_bytes(file, array.to_cframe())


def open_or_none(file: Path) -> "blosc2.NDArray | None":
    """Return an array that is read from disk where it is sliced; None if its file is missing or broken."""
    import blosc2

    # As nnU-Net does it: memory-mapped, except on Windows, where a mapped file cannot be replaced.
    mapping = {} if os.name == "nt" else {"mmap_mode": "r"}
    if not file.is_file():
        return None
    try:
        array = blosc2.open(urlpath=str(file), mode="r", dparams={"nthreads": 1}, **mapping)
        _ = array.dtype  # parsed only when asked for
    except Exception:  # a broken file fails in as many ways as there are layers in the format
        return None
    return array


# Shape


@dataclass(frozen=True)
class LabelShape:
    """Figures of one label in one case.

    Attributes:
        components: of voxels above a half, 26 neighbours.
        largest_area: sum of the label in its fullest slice, in voxels of the network's grid.
        empty_start, empty_end: slices before the first and after the last with a voxel above a half.
        gap: slices of the longest run without such a voxel between the two.
        area_roughness: standard deviation of the areas' differences from areas smoothed over ten slices, over
            their mean.
        interior_mean: mean of the values a quarter of a radius and more from the border of the voxels above a
            half, in-plane; 1 where none lies so deep.
        length: slices from the first to the last with a voxel above a half; 0: not known.
    """

    components: int
    largest_area: float
    empty_start: int = 0
    empty_end: int = 0
    gap: int = 0
    area_roughness: float = 0.0
    interior_mean: float = 1.0
    length: int = 0

    @classmethod
    def from_record(cls, stored: Mapping[str, Any]) -> "LabelShape":
        """Return the figures from JSON, also that of an earlier version with other figures and names."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in _renamed(stored).items() if name in known})


def label_shape(
    soft: npt.NDArray[np.floating[Any]], axis: int, tilt_factor: Floats | None = None
) -> LabelShape | None:
    """Return the shape of a soft label or map; None if nothing of it exceeds a half, or a part is unknown.

    Areas are sums over the voxels above a half and those that touch them: a faint background has no part.
    They are divided by the tilt factor, per slice: its area over that of a section across the structure.
    """
    found = ndimage.find_objects((soft > HARD_THRESHOLD).astype(np.uint8))
    if not found or np.isnan(soft).any():  # where an annotation ends says nothing about the structure
        return None
    # With the voxels that touch it, no more: the rest has no part.
    around = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in found[0])
    part, core = soft[around], soft[around] > HARD_THRESHOLD
    neighbours = np.ones((3,) * soft.ndim, dtype=bool)
    others = tuple(other for other in range(soft.ndim) if other != axis)
    areas = np.where(ndimage.binary_dilation(core, neighbours), part, 0).sum(axis=others, dtype=np.float64)
    if tilt_factor is not None:
        areas /= tilt_factor[around[axis]]
    filled = np.flatnonzero(core.any(axis=others))
    areas = areas[areas > 0]
    smooth = ndimage.gaussian_filter1d(areas, _SMOOTH_SLICES)
    start = around[axis].start + int(filled[0])
    stop = around[axis].start + int(filled[-1]) + 1
    return LabelShape(
        components=int(ndimage.label(core, neighbours)[1]),
        largest_area=float(areas.max()),
        empty_start=start,
        empty_end=soft.shape[axis] - stop,
        gap=int(np.diff(filled).max(initial=1) - 1),
        area_roughness=float((areas - smooth).std() / areas.mean()),
        interior_mean=_interior_mean(part, core, axis, float(np.median(areas))),
        length=stop - start,
    )


def _interior_mean(
    soft: npt.NDArray[np.floating[Any]], core: npt.NDArray[np.bool_], axis: int, area: float
) -> float:
    in_plane = np.ones([1 if other == axis else 3 for other in range(soft.ndim)], dtype=bool)
    depth = max(1, round(_DEPTH * math.sqrt(area / math.pi)))
    inside = ndimage.binary_erosion(core, in_plane, iterations=depth)
    return float(soft[inside].mean(dtype=np.float64)) if inside.any() else 1.0


def training_ranges(shapes: Iterable[LabelShape | None]) -> dict[str, list[float]] | None:
    """Return the smallest and largest of each figure over a training, for JSON; None without any label."""
    known = [asdict(shape) for shape in shapes if shape is not None]
    if not known:
        return None
    columns = {name: [shape[name] for shape in known] for name in known[0]}
    return {name: [min(values), max(values)] for name, values in columns.items()}


def known_range(training: Mapping[str, Any], figure: str) -> Range:
    """Return the smallest and largest of a figure in training; 0 and infinity where a model knows neither.

    A model of an earlier version kept one number of each: the largest, of the interior mean the smallest.
    """
    stored = _renamed(training).get(figure, (0.0, math.inf))
    if isinstance(stored, int | float):
        return (stored, 1.0) if figure == "interior_mean" else (0.0, stored)
    return float(stored[0]), float(stored[1])


def _renamed(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {_RENAMED.get(name, name): value for name, value in stored.items()}
