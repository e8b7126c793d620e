"""A row of vertebrae and discs, 14 labels, each one instance: elliptic slabs that touch; shares are exact."""

import numpy as np

from nnunet_softseg.phantom.scene import Scene, Share, ellipse_share, painted, upright_affine

VERTEBRAE = ("C3", "C4", "C5", "C6", "C7", "T1", "T2")
NAMES = tuple(
    name
    for upper, lower in zip(VERTEBRAE, (*VERTEBRAE[1:], "T3"), strict=True)
    for name in (f"vertebra_{upper}", f"disc_{upper}_{lower}")
)
COLUMNS = {
    "label": "value in labelsTr, and number of the soft label; from top to bottom",
    "name": "of the label",
    "volume_mm3": "mm3",
    "right_mm": "centre, scanner mm",
    "anterior_mm": "centre, scanner mm",
    "superior_mm": "centre, scanner mm",
}
_BODY_MM, _DISC_MM = (11.0, 13.0), (3.5, 5.5)
"""Smallest and largest height."""


def draw_spine(rng: np.random.Generator) -> Scene:
    """Return seven vertebrae, each with the disc below it; voxels of 1 x 0.8 x 0.8 mm."""
    shape, voxel_mm = (32, 34, 170), np.array((1.0, 0.8, 0.8))
    affine = upright_affine(shape, tuple(voxel_mm), rng.uniform(-0.4, 0.4, 3))
    heights = rng.uniform(*np.array([_BODY_MM, _DISC_MM] * len(VERTEBRAE)).T)
    edges = heights.sum() / 2 - np.concatenate([[0], np.cumsum(heights)])
    body = rng.uniform((9.0, 7.0), (11.0, 8.5))
    shares: dict[str, Share] = {}
    rows = []
    for at, name in enumerate(NAMES):
        half = body * (0.93 if at % 2 else 1.0)
        centre = (float(rng.uniform(-0.5, 0.5)), float(rng.uniform(-1, 1)), (edges[at] + edges[at + 1]) / 2)
        in_voxels = (np.array(centre) - affine[:3, 3]) / voxel_mm + 0.5
        plane = ellipse_share(shape[:2], in_voxels[:2], half / voxel_mm[:2])
        z = affine[2, 3] + voxel_mm[2] * np.arange(shape[2])
        above, below = (
            np.minimum(edges[at], z + voxel_mm[2] / 2),
            np.maximum(edges[at + 1], z - voxel_mm[2] / 2),
        )
        shares[name] = (plane[:, :, None] * np.clip(above - below, 0, None) / voxel_mm[2]).astype(np.float32)
        volume = np.pi * half[0] * half[1] * heights[at]
        rows.append(dict(zip(COLUMNS, (at + 1, name, volume, *centre), strict=True)))
    brightness = [90 + 60 * (at % 2) for at in range(len(NAMES))]
    return Scene(painted(shares, brightness, rng), shares, affine, rows)
