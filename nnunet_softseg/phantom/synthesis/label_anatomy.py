"""Anatomies to synthesise images from, of label maps of users, the PAM50 template, the project's own phantom.

Tissues on a fine grid, and the exact share of the structure.

Everything is in mm of one space, RAS+: volumes of an anatomy may lie on different grids in it.
"""

# ruff: noqa: PLR2004 - ranges that phantoms are drawn from, in mm

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.cluster.vq import kmeans

from nnunet_softseg.errors import UserError
from nnunet_softseg.io.nifti import classify, load_nifti, read_values
from nnunet_softseg.phantom.anatomy import Anatomy, Floats, draw_anatomy
from nnunet_softseg.phantom.contrasts import CONTRASTS, Tissue
from nnunet_softseg.phantom.neck import draw_neck, paint_neck
from nnunet_softseg.phantom.partial_volume import Grid, to_volume, voxel_fractions

Values = npt.NDArray[np.float32]

UNLABELLED = 0
CLASSES = 8
"""Of the brightness of a template or an image where no label says what is there, at most."""
_SAMPLED = 40_000


@dataclass(frozen=True)
class Volume:
    """Values (X, Y, Z) at the points of a grid; `affine`, (4, 4), takes an index to RAS+ mm."""

    values: npt.NDArray[Any]
    affine: Floats

    def sample(self, points_mm: Values, *, linear: bool = True) -> Values:
        """Return the values at points (3, N) in mm, 0 outside of the grid; linear or nearest."""
        matrix = np.linalg.inv(self.affine)[:3].astype(np.float32)
        index = matrix[:, :3] @ points_mm
        index += matrix[:, 3:]
        low = np.clip(np.floor(index.min(axis=1)).astype(int), 0, np.array(self.values.shape) - 1)
        high = np.clip(np.ceil(index.max(axis=1)).astype(int) + 1, low + 1, self.values.shape)
        # Only the box that is looked at, with a rim of zeros where it ends with the grid.
        box = self.values[tuple(slice(*ends) for ends in zip(low, high, strict=True))]
        box = np.pad(box, 1)
        if linear and box.dtype != np.float32:
            box = box.astype(np.float32)
        index += (1 - low[:, None]).astype(np.float32)
        return np.asarray(
            ndimage.map_coordinates(box, index, order=int(linear), mode="constant", output=np.float32)
        )


def _homogeneous(points: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.vstack([points, np.ones((1, points.shape[1]), points.dtype)])


@dataclass(frozen=True)
class Layer:
    """A tissue that fills a share of each voxel, within the share of the layer before it."""

    share: Volume
    tissue: int


@dataclass(frozen=True)
class LabelAnatomy:
    """What one or many images are drawn from.

    Attributes:
        name: for messages and file names.
        tissues: values of tissues, `UNLABELLED` where nothing is known.
        layers: nested shares in [0, 1], the outermost first, laid over `tissues`.
        structure: values of `tissues` that are the structure, or, if there are layers, the tissue of the one
            whose share is the structure's.
        image: its brightness says what is there where nothing is labelled; 0: unknown.
        contrasts: brightness by tissue value, of contrasts as they are acquired; without any, brightness is
            random.
    """

    name: str
    tissues: Volume
    structure: tuple[int, ...]
    layers: tuple[Layer, ...] = ()
    image: Volume | None = None
    contrasts: Sequence[Mapping[int, float]] = field(default=(), repr=False)

    @cached_property
    def values(self) -> tuple[int, ...]:
        """All tissue values that occur, `UNLABELLED` aside."""
        there = np.flatnonzero(np.bincount(self.tissues.values.ravel()))
        return tuple(sorted({*map(int, there), *(layer.tissue for layer in self.layers)} - {UNLABELLED}))

    @cached_property
    def structure_share(self) -> Volume:
        """The share of the structure in each point of a grid."""
        for layer in self.layers:
            if layer.tissue in self.structure:
                return layer.share
        inside = np.isin(self.tissues.values, self.structure)
        return Volume(inside.astype(np.uint8), self.tissues.affine)

    @cached_property
    def centreline(self) -> Floats:
        """The centres of the structure's sections, (sections, 3) in mm, from the lowest up.

        Sections are planes of the array axis that is closest to S-I.
        """
        share = self.structure_share
        axis = int(np.abs(share.affine[2, :3]).argmax())
        planes = np.moveaxis(share.values, axis, 0)
        filled = [k for k in range(len(planes)) if planes[k].any()]
        centres = []
        for k in filled:
            a, b = ndimage.center_of_mass(planes[k])
            centres.append(np.insert([a, b], axis, k))
        line = (share.affine[:3] @ _homogeneous(np.array(centres).reshape(-1, 3).T)).T
        return np.asarray(line[np.argsort(line[:, 2])])

    @cached_property
    def reach_mm(self) -> float:
        """How far the outermost layer reaches from the centreline, in mm; infinite without layers."""
        if not self.layers:
            return float("inf")
        outer = self.layers[0].share
        index = np.argwhere(outer.values > 0)[::7]
        mm = (outer.affine[:3] @ _homogeneous(index.T)).T
        return float(np.quantile(np.hypot(*(mm - self.centre_at(mm[:, 2]))[:, :2].T), 0.9999)) + 2.0

    def centre_at(self, z_mm: npt.NDArray[Any]) -> Floats:
        """Return the point of the centreline, (N, 3) in mm, at heights; beyond its ends, that of the end."""
        line = self.centreline
        x, y = (np.interp(z_mm, line[:, 2], line[:, axis]) for axis in (0, 1))
        return np.stack([x, y, np.asarray(z_mm, float)], axis=1)

    @cached_property
    def _image_box_mm(self) -> Floats:
        """Lowest and highest R-L and A-P, (2, 2) in mm, of what the image shows."""
        if self.image is None:
            raise ValueError(f"{self.name}: expected an image beside the tissues, found none")
        shown = self.image.values > 0
        within = [np.flatnonzero(shown.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
        corners = np.array([*product(*((index[0], index[-1]) for index in within))], float).T
        mm = self.image.affine[:2] @ _homogeneous(corners)
        return np.stack([mm.min(axis=1), mm.max(axis=1)], axis=1)

    def depth_in_image_mm(self, points_mm: Values) -> Values:
        """Return how far points (3, N) lie inside of what the image shows along R-L and A-P, in mm."""
        (left, right), (back, front) = self._image_box_mm.astype(np.float32)
        x, y, _ = points_mm
        across = np.minimum(x - left, right - x)
        return np.asarray(np.minimum(across, np.minimum(y - back, front - y)))

    @cached_property
    def brightness_classes(self) -> Floats:
        """Centres of classes of the image's brightness by k-means, rising; empty without image.

        There are `CLASSES`, or as many as the image has values.
        """
        if self.image is None:
            return np.zeros(0)
        known = self.image.values[self.image.values > 0].astype(float)
        chosen = known[:: max(1, known.size // _SAMPLED)]
        spread = float(chosen.std()) or 1.0
        centres, _ = kmeans(chosen / spread, min(CLASSES, np.unique(chosen).size), seed=0)
        return np.sort(centres) * spread


# Sources

_BY_TISSUE: tuple[Mapping[int, float], ...] = tuple(
    {int(tissue) + 1: contrast.brightness[tissue] for tissue in Tissue} for contrast in CONTRASTS
)
"""Brightness of the phantom's contrasts by tissue value; 0 is unlabelled here, so all are one higher."""
PAM50_MAPS = ("PAM50_cord", "PAM50_csf", "PAM50_gm", "PAM50_spine", "PAM50_small_t2")
_PHANTOM_FIELD_MM = (96.0, 96.0, 120.0)
_FINE_MM = 0.5


def _value(tissue: Tissue) -> int:
    return int(tissue) + 1


_CORD = (_value(Tissue.WHITE),)


def pam50_anatomy(folder: Path) -> LabelAnatomy:
    """Return the PAM50 template of De Leener et al. 2018: cord, CSF, grey matter, bone, and its T2w."""
    images = {name: load_nifti(file) for name, file in pam50_files(folder).items()}
    cord, csf, grey, bone, t2w = (read_values(image, name) for name, image in images.items())
    affine = images["PAM50_cord"].affine
    # The T2w is in a space of its own; its first voxel is that of the label maps.
    of_t2w = images["PAM50_small_t2"].affine.copy()
    of_t2w[:3, 3] = affine[:3, 3]
    planes = int(cord.shape[2] * affine[2, 2] / of_t2w[2, 2])
    cord = (cord > 0.5).astype(np.uint8)
    layers = (
        Layer(Volume(((csf > 0.5) | (cord > 0)).astype(np.uint8), affine), _value(Tissue.CSF)),
        Layer(Volume(cord, affine), _value(Tissue.WHITE)),
        Layer(Volume((np.clip(grey, 0, 1) * cord).astype(np.float32), affine), _value(Tissue.GREY)),
    )
    tissues = np.where(bone > 0.5, _value(Tissue.MARROW), 0).astype(np.uint8)
    image = Volume(np.asarray(t2w[:, :, :planes], np.float32), of_t2w)
    return LabelAnatomy("PAM50", Volume(tissues, affine), _CORD, layers, image, _BY_TISSUE)


def pam50_files(folder: Path) -> dict[str, Path]:
    """Return the file of each map of the template; raise a UserError if one is missing."""
    files = {name: folder / f"{name}.nii.gz" for name in PAM50_MAPS}
    for file in files.values():
        if not file.is_file():
            raise UserError(
                f"{folder}: expected the label maps of PAM50 ({', '.join(PAM50_MAPS)}, .nii.gz), found no "
                f"{file.name}: fetch it, or name their folder"
            )
    return files


def phantom_anatomy(rng: np.random.Generator, name: str = "phantom") -> LabelAnatomy:
    """Return a random neck of the phantom: also thin, wide and flat cords, narrow canals, lower levels."""
    upper = float(rng.uniform(-10, 45)) if rng.random() < 0.7 else float(rng.uniform(45, 330))
    drawn = draw_anatomy(rng, upper)
    anatomy = replace(
        drawn,
        csa_c2c3_mm2=float(rng.uniform(38, 98)),
        aspect=float(rng.uniform(0.52, 0.86)),
        csf_gap_mm=(float(rng.uniform(1.2, 5.0)), float(rng.uniform(0.7, 3.2))),
        epidural_gap_mm=(float(rng.uniform(0.6, 2.4)), float(rng.uniform(0.5, 1.8))),
    )
    half = np.array(_PHANTOM_FIELD_MM) / 2
    surroundings = paint_neck(anatomy, draw_neck(rng), -half, half, rng)
    tissues = Volume(
        surroundings.tissue + np.uint8(1), _upright(surroundings.origin_mm, surroundings.step_mm)
    )
    return LabelAnatomy(name, tissues, _CORD, canal_layers(anatomy, half), None, _BY_TISSUE)


def _upright(origin_mm: np.ndarray, step_mm: float) -> np.ndarray:
    affine = np.diag([step_mm, step_mm, step_mm, 1.0])
    affine[:3, 3] = origin_mm
    return affine


def canal_layers(anatomy: Anatomy, half_mm: np.ndarray) -> tuple[Layer, ...]:
    """Return canal, thecal sac, cord and grey matter of a phantom on a fine grid around the canal."""
    line = anatomy.centreline(np.linspace(-half_mm[2], half_mm[2], 200))[0]
    low = np.array([*(line.min(axis=1) - 17), -half_mm[2]])
    high = np.array([*(line.max(axis=1) + 17), half_mm[2]])
    shape = tuple(int(n) for n in np.ceil((high - low) / _FINE_MM))
    affine = _upright(low, _FINE_MM)
    grid = Grid((shape[0], shape[1], shape[2]), affine, np.zeros((shape[2], 2)))
    shares = voxel_fractions(anatomy, grid)
    tissues = (Tissue.EPIDURAL, Tissue.CSF, Tissue.WHITE, Tissue.GREY)
    filled = (shares.canal, shares.thecal, shares.cord, shares.grey)
    return tuple(
        Layer(Volume(to_volume(grid, shares.voxels, share), affine), _value(tissue))
        for tissue, share in zip(tissues, filled, strict=True)
    )


def label_map_anatomy(label_map: Path, structure: tuple[int, ...], image: Path | None = None) -> LabelAnatomy:
    """Return the anatomy of a user's label map, on any grid; 0 is what is not labelled.

    Args:
        label_map: whole numbers.
        structure: values that are the structure together.
        image: of the same space: classes of its brightness fill what is not labelled.

    Raises:
        UserError: for a file that holds no label map, or no voxel of the structure, or an image of one value.
    """
    opened = load_nifti(label_map)
    values = read_values(opened, label_map.name)
    content = classify(values)
    if content.labels is None:
        raise UserError(
            f"{label_map.name}: expected a label map, whole numbers from 0 on, found values from "
            f"{content.low:g} to {content.high:g}: write tissue labels as integers"
        )
    if not np.isin(structure, content.labels).any():
        found = ", ".join(map(str, content.labels)) or "none"
        raise UserError(
            f"{label_map.name}: expected voxels of the structure, value "
            f"{' or '.join(map(str, structure))}, found labels {found}: name its values with --structure, or "
            "leave the file out"
        )
    # Numbered anew: values of atlases may be too large for arrays with a place for each.
    number = {value: place for place, value in enumerate(content.labels, 1)}
    tissues = np.searchsorted([UNLABELLED, *content.labels], np.rint(values)).astype(np.uint16)
    there = tuple(number[value] for value in structure if value in number)
    shown = None if image is None else _brightness(image, label_map)
    return LabelAnatomy(label_map.name, Volume(tissues, opened.affine), there, (), shown)


def _brightness(image: Path, label_map: Path) -> Volume:
    """Return the brightness of a label map's image, the same however it is stored; 0: unknown."""
    opened = load_nifti(image)
    values = np.asarray(read_values(opened, image.name), np.float32)
    low = float(values.min())
    if low == float(values.max()):
        raise UserError(
            f"{image}: expected the image of {label_map.name}, found {low:g} in every voxel: put its image "
            "there, or leave --images out"
        )
    upright = nib.as_closest_canonical(nib.Nifti1Image(values - min(0.0, low), opened.affine))
    return Volume(np.asanyarray(upright.dataobj), upright.affine)
