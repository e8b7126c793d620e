"""Where anatomies come from: label maps of users, the PAM50 template, the project's own phantom."""

# ruff: noqa: PLR2004 - ranges that phantoms are drawn from, in mm

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from nnunet_softseg.errors import UserError
from nnunet_softseg.io.nifti import classify, load_nifti, read_values
from nnunet_softseg.phantom.anatomy import Anatomy, draw_anatomy
from nnunet_softseg.phantom.contrasts import CONTRASTS, Tissue
from nnunet_softseg.phantom.grid import Grid
from nnunet_softseg.phantom.neck import draw_neck, paint_neck
from nnunet_softseg.phantom.partial_volume import to_volume, voxel_fractions
from nnunet_softseg.phantom.synthesis.label_anatomy import LabelAnatomy, Layer, Volume

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
    images = {name: load_nifti(_map_of(folder, name)) for name in PAM50_MAPS}
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
    return LabelAnatomy(
        "PAM50",
        Volume(tissues, affine),
        _CORD,
        layers,
        Volume(np.asarray(t2w[:, :, :planes], np.float32), of_t2w),
        _BY_TISSUE,
    )


def _map_of(folder: Path, name: str) -> Path:
    file = folder / f"{name}.nii.gz"
    if not file.is_file():
        raise UserError(
            f"{folder}: expected the label maps of PAM50 ({', '.join(PAM50_MAPS)}, .nii.gz), found no "
            f"{file.name}: fetch it, or name their folder"
        )
    return file


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
    of_tissue = {
        Tissue.EPIDURAL: shares.canal,
        Tissue.CSF: shares.thecal,
        Tissue.WHITE: shares.cord,
        Tissue.GREY: shares.grey,
    }
    return tuple(
        Layer(Volume(to_volume(grid, shares.voxels, share), affine), _value(tissue))
        for tissue, share in of_tissue.items()
    )


def label_map_anatomy(label_map: Path, structure: tuple[int, ...], image: Path | None = None) -> LabelAnatomy:
    """Return the anatomy of a user's label map, on any grid; 0 is what is not labelled.

    Args:
        label_map: whole numbers.
        structure: values that are the structure together.
        image: of the same space: classes of its brightness fill what is not labelled.

    Raises:
        UserError: for a file that holds no label map, or no voxel of the structure.
    """
    opened = load_nifti(label_map)
    values = read_values(opened, label_map.name)
    content = classify(values)
    if content.labels is None:
        raise UserError(
            f"{label_map.name}: expected a label map, whole numbers from 0 on, found values from "
            f"{content.low:g} to {content.high:g}: write tissue labels as integers"
        )
    tissues = np.rint(values).astype(np.uint16)
    if not np.isin(structure, content.labels).any():
        found = ", ".join(map(str, content.labels)) or "none"
        raise UserError(
            f"{label_map.name}: expected voxels of the structure, value "
            f"{' or '.join(map(str, structure))}, found labels {found}: name its values with --structure, or "
            "leave the file out"
        )
    there = tuple(value for value in structure if value in content.labels)
    shown = None
    if image is not None:
        seen = load_nifti(image)
        brightness = np.asarray(read_values(seen, image.name), np.float32)
        shown = Volume(brightness - min(0.0, float(brightness.min())), seen.affine)
    return LabelAnatomy(label_map.name, Volume(tissues, opened.affine), there, (), shown)
