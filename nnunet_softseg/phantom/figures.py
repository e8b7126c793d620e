"""Pictures of images, soft maps and their differences."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from nnunet_softseg.io.results import replacing

HALF_WIDTH_MM = 14.0
"""Of the square around the cord that is shown."""
Plane = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Panels:
    """One row of the figure: a 3-D image, its truth, and the map of each method, all on one grid."""

    title: str
    image: nib.Nifti1Image
    truth: nib.Nifti1Image
    maps: Mapping[str, nib.Nifti1Image]


def draw_comparison(rows: list[Panels], path: Path) -> None:
    """Draw an axial slice of each row: image, truth, every method's map and its difference to the truth."""
    methods = list(rows[0].maps)
    columns = ["image", "truth", *methods, *(f"{method} - truth" for method in methods)]
    figure = Figure(figsize=(1.9 * len(columns) + 1.2, 1.95 * len(rows) + 0.6), layout="compressed")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    shown: dict[str, Any] = {}
    for line, row in zip(axes, rows, strict=True):
        image, truth, *maps = _same_slice([row.image, row.truth, *row.maps.values()])
        limits = {"vmin": float(np.percentile(image, 1)), "vmax": float(np.percentile(image, 99.5))}
        _show(line[0], image, cmap="gray", **limits)
        for axis, plane in zip(line[1:], [truth, *maps], strict=False):
            shown["soft map"] = _show(axis, plane, cmap="magma", vmin=0, vmax=1)
        for axis, plane in zip(line[2 + len(maps) :], maps, strict=True):
            shown["difference"] = _show(axis, plane - truth, cmap="RdBu_r", vmin=-1, vmax=1)
        line[0].set_ylabel(row.title, fontsize=11)
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title(name, fontsize=11)
    first = 2 + len(methods)
    for label, part in (("soft map", axes[:, 1:first]), ("difference", axes[:, first:])):
        figure.colorbar(shown[label], ax=part, label=label, location="bottom", shrink=0.5, aspect=40)
    with replacing(path) as aside:
        figure.savefig(aside, dpi=130)


def _show(axis: Any, plane: Plane, **options: Any) -> Any:
    axis.set(xticks=[], yticks=[])
    # Nearest neighbour on purpose: to see the voxels and their values.
    return axis.imshow(plane, origin="lower", interpolation="nearest", extent=(0, 1, 0, 1), **options)


def _same_slice(images: list[nib.Nifti1Image]) -> list[Plane]:
    """Return the middle axial slice of all images, as a square around the truth's centre, L on the right."""
    arrays = [nib.as_closest_canonical(image) for image in images]
    truth = arrays[1].get_fdata(dtype=np.float32)
    filled = np.flatnonzero(truth.sum(axis=(0, 1)))
    z = int(filled[len(filled) // 2]) if len(filled) else truth.shape[2] // 2
    weights = truth[:, :, z]
    centre = [round(coordinate) for coordinate in _centre(weights)]
    spacing = arrays[1].header.get_zooms()[:2]
    box = tuple(
        slice(max(middle - int(HALF_WIDTH_MM / step), 0), middle + int(HALF_WIDTH_MM / step) + 1)
        for middle, step in zip(centre, spacing, strict=True)
    )
    # Canonical axes run to R and A; transposed and flipped, the slice lies as radiologists look at it.
    return [array.get_fdata(dtype=np.float32)[(*box, z)].T[:, ::-1] for array in arrays]


def _centre(weights: Plane) -> tuple[float, float]:
    total = float(weights.sum())
    if total == 0:
        return (weights.shape[0] - 1) / 2, (weights.shape[1] - 1) / 2
    rows, columns = np.indices(weights.shape)
    return float((rows * weights).sum() / total), float((columns * weights).sum() / total)
