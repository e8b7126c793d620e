"""The true area of the cord in each slice of an image, from the geometry."""

import numpy as np
import numpy.typing as npt

from nnunet_softseg.phantom.anatomy import Anatomy, Floats
from nnunet_softseg.phantom.grid import Grid

_POINTS = 11  # across a slice's thickness
_NEWTON_STEPS = 4

# The columns of a truth table, for its sidecar.
CSA_COLUMNS = {
    "slice": "index of the slice along the S-I axis of the stored array, from 0",
    "z_mm": "z of the cord's centre in the slice, scanner coordinates, mm",
    "level": "vertebral level at that point: 1-7 are C1-C7, 8-19 T1-T12, 20-24 L1-L5; 0 without cord",
    "csa_mm2": "true area of the cord perpendicular to its centreline, mean over the slice's thickness, mm2",
    "axial_area_mm2": "area of the cord in the plane of the slice: voxel sum x pixel area, mm2",
    "tilt_deg": "angle between the anatomical centreline and the normal of the slice, degrees",
    "apparent_tilt_deg": "the same for the centreline that the image shows, shifts included, degrees",
    "shift_rl_mm": "how far the anatomy has moved in this slice along its R-L axis, to the right, mm",
    "shift_ap_mm": "the same along its A-P axis, to anterior, mm",
}


def csa_table(anatomy: Anatomy, grid: Grid, truth: npt.NDArray[np.float32]) -> dict[str, Floats]:
    """Return the columns of `CSA_COLUMNS`, (slices,) each; without a cord, areas and levels are 0."""
    slices = grid.shape[grid.slice_axis]
    thickness = grid.voxel_mm[grid.slice_axis]
    offsets = (np.arange(_POINTS) + 0.5) / _POINTS - 0.5
    crossings = [centreline_in_slices(anatomy, grid, offset * thickness)[2] for offset in offsets]
    areas = [anatomy.csa_mm2(anatomy.height_mm(z)) for z in crossings]
    z = centreline_in_slices(anatomy, grid)[2]
    pixel_mm2 = float(np.prod(np.delete(grid.voxel_mm, grid.slice_axis)))
    in_plane = tuple(axis for axis in range(3) if axis != grid.slice_axis)
    tilt, apparent_tilt = _tilts_deg(anatomy, grid, z)
    present = float(anatomy.has_cord)
    return {
        "slice": np.arange(slices, dtype=float),
        "z_mm": z,
        "level": present * anatomy.level(anatomy.height_mm(z)),
        "csa_mm2": present * np.mean(areas, axis=0),
        "axial_area_mm2": truth.sum(axis=in_plane, dtype=float) * pixel_mm2,
        "tilt_deg": tilt,
        "apparent_tilt_deg": apparent_tilt,
        "shift_rl_mm": grid.shift_mm[:, 0],
        "shift_ap_mm": grid.shift_mm[:, 1],
    }


def centreline_in_slices(anatomy: Anatomy, grid: Grid, offset_mm: float = 0.0) -> Floats:
    """Return the crossings of the unmoved centreline with each slice's plane, (3, slices) in mm.

    The plane lies `offset_mm` superior to the middle of the slice.
    """
    normal = grid.unit_axes[:, 2]
    plane = normal @ grid.slice_centres_mm() + offset_mm
    z = plane / normal[2]
    for _ in range(_NEWTON_STEPS):
        position, slope, _bend = anatomy.centreline(z)
        z = z - (normal[:2] @ position + normal[2] * z - plane) / (normal[:2] @ slope + normal[2])
    return np.vstack([anatomy.centreline(z)[0], z])


def _tilts_deg(anatomy: Anatomy, grid: Grid, z: Floats) -> tuple[Floats, Floats]:
    """Return the angles between centreline and slice normal: of the anatomy, and as moved slices show it."""
    tangent = grid.unit_axes.T @ np.vstack([anatomy.centreline(z)[1], np.ones_like(z)])
    lean = tangent[:2] / tangent[2]
    along = np.arange(z.size) * grid.voxel_mm[grid.slice_axis] * np.sign(grid.affine[2, grid.slice_axis])
    shear = np.gradient(grid.shift_mm, along, axis=0).T if z.size > 1 else np.zeros_like(lean)
    return np.degrees(np.arctan(np.hypot(*lean))), np.degrees(np.arctan(np.hypot(*(lean + shear))))
