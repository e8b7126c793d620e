"""A cord with lesions of known tissue bridges: boxes and ellipsoids in a tilted cylinder.

Coordinates of the cord: right, anterior, along it, in mm; its centreline is (0, 0, w). It is tilted in the
sagittal plane.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nnunet_softseg.phantom.scene import Floats, Scene, Share, painted, sampled_shares, union, upright_affine

RADIUS_MM = 5.0
COLUMNS = {
    "lesion": "number of the lesion, the largest first; as in truth/<case>_lesions.nii.gz",
    "shape": "box or ellipsoid",
    "tilt_deg": "angle of the cord in the sagittal plane, degrees",
    "volume_mm3": "mm3",
    "length_mm": "along the cord, mm",
    "width_mm": "A-P, mm",
    "equivalent_diameter_mm": "diameter of the circle with the largest area across the cord, mm",
    "axial_damage_ratio": "largest area across the cord / area of the cord",
    "dorsal_bridge_mm": "spared tissue behind the lesion in the midsagittal plane, mm",
    "ventral_bridge_mm": "spared tissue in front of it, mm",
    "total_bridge_mm": "their sum, mm",
}
_STEP_MM = (0.1, 0.08, 0.1)
"""Dense along A-P, where bridges are measured."""


@dataclass(frozen=True)
class Lesion:
    """A box or an ellipsoid in a cord of `RADIUS_MM`: centre and half sizes along right, anterior, cord."""

    shape: str
    centre_mm: tuple[float, float, float]
    half_mm: tuple[float, float, float]

    def holds(self, right: Floats, anterior: Floats, along: Floats) -> npt.NDArray[np.bool_]:
        """Return which points lie in it."""
        first, second, third = (
            (at - centre) / half
            for at, centre, half in zip((right, anterior, along), self.centre_mm, self.half_mm, strict=True)
        )
        if self.shape == "box":
            return np.asarray((np.abs(first) < 1) & (np.abs(second) < 1) & (np.abs(third) < 1))
        return np.asarray(first**2 + second**2 + third**2 < 1)

    @property
    def volume_mm3(self) -> float:
        """Of the whole shape."""
        return float(np.prod(self.half_mm)) * (8 if self.shape == "box" else 4 / 3 * np.pi)

    @property
    def largest_area_mm2(self) -> float:
        """Across the cord."""
        return self.half_mm[0] * self.half_mm[1] * (4 if self.shape == "box" else np.pi)

    @property
    def dorsal_mm(self) -> float:
        """Bridge in the plane right = 0, for a lesion that is centred on it."""
        return RADIUS_MM + self.centre_mm[1] - self.half_mm[1]

    @property
    def ventral_mm(self) -> float:
        """As `dorsal_mm`."""
        return RADIUS_MM - self.centre_mm[1] - self.half_mm[1]


def lesion_shares(
    lesions: Sequence[Lesion],
    shape: Sequence[int],
    affine: Floats,
    tilt_deg: float = 0.0,
    step_mm: Sequence[float] = _STEP_MM,
) -> list[Share]:
    """Return the share of each voxel in the cord, and in each lesion, by points at these steps."""
    cosine, sine = np.cos(np.radians(tilt_deg)), np.sin(np.radians(tilt_deg))

    def holds(right: Floats, anterior: Floats, superior: Floats) -> list[npt.NDArray[np.bool_]]:
        across, along = cosine * anterior - sine * superior, sine * anterior + cosine * superior
        cord = right**2 + across**2 < RADIUS_MM**2
        return [cord, *(cord & each.holds(right, across, along) for each in lesions)]

    return sampled_shares(holds, shape, affine, step_mm)


def draw_lesions(rng: np.random.Generator) -> Scene:
    """Return a cord with one to three lesions on its midline, one above the other; 0.8 mm voxels."""
    number, tilt_deg, z_mm = int(rng.integers(1, 4)), float(rng.uniform(-15, 15)), -18.0
    lesions = []
    for _ in range(number):
        right, anterior, along = map(float, rng.uniform((1.5, 0.8, 2.5), (3.0, 1.8, 4.5)))
        off, gap = float(rng.uniform(-1.2, 1.2)), float(rng.uniform(2.5, 3.5))
        centre, half = (0.0, off, z_mm + gap + along), (right, anterior, along)
        lesions.append(Lesion(str(rng.choice(["box", "ellipsoid"])), centre, half))
        z_mm += gap + 2 * along
    lesions.sort(key=lambda each: -each.volume_mm3)
    shape = (18, 34, 60)
    affine = upright_affine(shape, (0.8,) * 3, rng.uniform(-0.4, 0.4, 3))
    cord, *each = lesion_shares(lesions, shape, affine, tilt_deg)
    shares = {"cord": cord, "lesion": union(each)}
    instances = np.where(np.max(each, axis=0) > 0.5, 1 + np.argmax(each, axis=0), 0)  # noqa: PLR2004
    return Scene(
        painted(shares, (120, 180), rng),
        shares,
        affine,
        [_row(at, lesion, tilt_deg) for at, lesion in enumerate(lesions, 1)],
        {"lesions": instances.astype(np.uint8)},
    )


def _row(number: int, lesion: Lesion, tilt_deg: float) -> dict[str, str | float]:
    values = (
        number,
        lesion.shape,
        tilt_deg,
        lesion.volume_mm3,
        2 * lesion.half_mm[2],
        2 * lesion.half_mm[1],
        2 * np.sqrt(lesion.largest_area_mm2 / np.pi),
        lesion.largest_area_mm2 / (np.pi * RADIUS_MM**2),
        lesion.dorsal_mm,
        lesion.ventral_mm,
        lesion.dorsal_mm + lesion.ventral_mm,
    )
    return dict(zip(COLUMNS, values, strict=True))
