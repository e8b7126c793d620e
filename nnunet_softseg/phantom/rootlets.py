"""A cord with rootlets per spinal level: an upright elliptic cord, as thick in each level as that says."""

import numpy as np
import numpy.typing as npt

from nnunet_softseg.phantom.scene import Floats, Scene, painted, sampled_shares, union, upright_affine

FIRST_LEVEL, NUM_LEVELS = 5, 4
COLUMNS = {
    "level": "spinal level: 5 to 7 are C5 to C7, 8 is C8",
    "bottom_mm": "z at which its rootlets begin, scanner mm",
    "top_mm": "z at which they end, scanner mm",
    "csa_mm2": "area of the cord between, mm2",
}
_RADIUS_MM, _REACH_MM, _FILAMENTS = 0.6, 4.0, 4
_DIRECTIONS = ((0.8, -0.6), (-0.8, -0.6), (0.9, 0.436), (-0.9, 0.436))
"""Right and anterior: dorsal and ventral rootlets of both sides."""
_STEP_MM = (0.13, 0.13, 0.13)


def draw_rootlets(rng: np.random.Generator) -> Scene:
    """Return a cord with the rootlets of C5 to C8, of filaments 1.2 mm thick; 0.8 mm voxels."""
    shape = (34, 28, 78)
    affine = upright_affine(shape, (0.8,) * 3, rng.uniform(-0.4, 0.4, 3))
    half_rl, half_ap = rng.uniform((5.5, 3.6), (6.5, 4.2))
    tops = 26 - 13 * np.arange(NUM_LEVELS) + rng.uniform(-1, 1, NUM_LEVELS)
    bottoms = tops - rng.uniform(7, 9, NUM_LEVELS)
    scales = rng.uniform(0.95, 1.15, NUM_LEVELS)

    def holds(right: Floats, anterior: Floats, z: Floats) -> list[npt.NDArray[np.bool_]]:
        scale = np.ones_like(z)
        for bottom, top, factor in zip(bottoms, tops, scales, strict=True):
            scale = np.where((z > bottom) & (z < top), factor, scale)
        radius = np.sqrt((right / half_rl) ** 2 + (anterior / half_ap) ** 2) / scale
        cord = radius < 1
        levels = []
        for bottom, top in zip(bottoms, tops, strict=True):
            heights = np.linspace(bottom + _RADIUS_MM, top - _RADIUS_MM, _FILAMENTS)
            off_mm = np.abs(z[:, None] - heights).min(axis=1)
            found = np.zeros(cord.shape, bool)
            for to_right, to_anterior in _DIRECTIONS:
                along = to_right * right + to_anterior * anterior
                beside = to_anterior * right - to_right * anterior
                found = found | (
                    (beside**2 + off_mm**2 < _RADIUS_MM**2) & (along > 0) & (along < half_rl + _REACH_MM)
                )
            levels.append(found & ~cord)
        return [cord, *levels]

    cord, *of_levels = sampled_shares(holds, shape, affine, _STEP_MM)
    shares = {"cord": cord, "rootlets": union(of_levels)}
    numbers = np.where(np.max(of_levels, axis=0) > 0, FIRST_LEVEL + np.argmax(of_levels, axis=0), 0)
    rows = [
        dict(zip(COLUMNS, (FIRST_LEVEL + at, *ends, np.pi * half_rl * half_ap * scale**2), strict=True))
        for at, (*ends, scale) in enumerate(zip(bottoms, tops, scales, strict=True))
    ]
    return Scene(
        painted(shares, (120, 90), rng), shares, affine, rows, {"rootlets": numbers.astype(np.uint8)}
    )
