"""Masks made slice by slice, stored in the orientations that matter: what tests of the ground truth share."""

import numpy as np

from nnunet_softseg.labels.contrasts.volume import Floats, Volume

# Directions in which the axes of the array grow, as columns; the last is tipped and turned.
_TIP, _TURN = np.radians(12.0), np.radians(7.0)
DIRECTIONS: dict[str, Floats] = {
    "RAS": np.eye(3),
    "LPS": np.diag([-1.0, -1.0, 1.0]),
    "PIR": np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], float),
    "oblique": np.array([[1, 0, 0], [0, np.cos(_TIP), -np.sin(_TIP)], [0, np.sin(_TIP), np.cos(_TIP)]])
    @ np.array([[np.cos(_TURN), -np.sin(_TURN), 0], [np.sin(_TURN), np.cos(_TURN), 0], [0, 0, 1]]),
}


def stored(
    upright: np.ndarray,
    directions: str = "RAS",
    voxel_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    first_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Volume:
    """Return upright values, axes R-L, A-P, S-I, as a file of this orientation holds them.

    The first voxel of the upright array lies at `first_mm` along the (oblique) axes, in mm.
    """
    columns = DIRECTIONS[directions]
    axes = [int(np.abs(columns[:, axis]).argmax()) for axis in range(3)]
    signs = np.array([np.sign(columns[axes[axis], axis]) for axis in range(3)])
    values = np.transpose(upright, axes)[tuple(slice(None, None, int(sign)) for sign in signs)]
    affine = np.eye(4)
    affine[:3, :3] = columns * np.array(voxel_mm)[axes]
    unsigned = columns * signs
    origin = np.array(first_mm, float)[axes] + np.where(
        signs < 0, (np.array(values.shape) - 1) * np.array(voxel_mm)[axes], 0.0
    )
    affine[:3, 3] = unsigned @ origin
    return Volume(np.ascontiguousarray(values, np.float32), affine)


def rectangles(
    shape: tuple[int, int, int], corners: np.ndarray, size: tuple[int, int] = (7, 5)
) -> np.ndarray:
    """Return a mask with a rectangle in each slice, whose first voxel is at `corners` (slices, 2)."""
    mask = np.zeros(shape, np.float32)
    for number, (right, anterior) in enumerate(np.asarray(corners, int)):
        mask[right : right + size[0], anterior : anterior + size[1], number] = 1
    return mask


def ellipses(
    grid_mm: tuple[np.ndarray, np.ndarray],
    centres_mm: np.ndarray,
    radii_mm: tuple[float, float] = (6.0, 4.0),
    angle: float = 0.0,
) -> np.ndarray:
    """Return the share of each pixel in an ellipse in each slice, from 16 x 16 points a pixel.

    Args:
        grid_mm: pixel centres along R-L and A-P.
        centres_mm: (slices, 2).
        radii_mm: semi-axes.
        angle: from R-L towards A-P, radians.
    """
    fine = [
        (line[:, None] + (line[1] - line[0]) * ((np.arange(16) + 0.5) / 16 - 0.5)).ravel() for line in grid_mm
    ]
    planes = []
    for centre in centres_mm:
        right, anterior = fine[0][:, None] - centre[0], fine[1][None] - centre[1]
        along = (right * np.cos(angle) + anterior * np.sin(angle)) / radii_mm[0]
        across = (anterior * np.cos(angle) - right * np.sin(angle)) / radii_mm[1]
        inside = (along**2 + across**2 < 1).astype(np.float32)
        planes.append(inside.reshape(grid_mm[0].size, 16, grid_mm[1].size, 16).mean(axis=(1, 3)))
    return np.stack(planes, axis=2)
