"""Simple objects with their truth: image, share of each label in every voxel, numbers known from geometry.

A cord with lesions, a cord with rootlets, a row of vertebrae and discs, micrographs of fibres with axons.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Share = npt.NDArray[np.float32]
Holds = Callable[[Floats, Floats, Floats], Sequence[npt.NDArray[np.bool_]]]
"""Points along x, y, z in mm, which broadcast -> whether each lies in each of the shapes."""
_COLUMNS = 64


@dataclass(frozen=True)
class Scene:
    """One case of a phantom.

    Attributes:
        image: (x, y, z), or (row, column) of a picture.
        shares: name of the label -> share of each voxel that it fills, in [0, 1]; nested ones overlap.
        affine: voxel to RAS mm; None: a picture.
        columns: what is known from geometry, with its meaning.
        objects: the values of the columns, of each object.
        maps: name -> integer map that belongs to the truth.
    """

    image: Floats
    shares: Mapping[str, Share]
    affine: Floats | None
    columns: Mapping[str, str]
    objects: Sequence[tuple[Any, ...]]
    maps: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What is known from geometry, a row per object."""
        return [dict(zip(self.columns, values, strict=True)) for values in self.objects]


def upright_affine(
    shape: Sequence[int], voxel_mm: Sequence[float], shift_mm: Sequence[float] | Floats = (0, 0, 0)
) -> Floats:
    """Return the affine of a RAS grid whose centre is off the origin by a shift in mm."""
    affine = np.diag([*voxel_mm, 1.0])
    affine[:3, 3] = np.array(shift_mm) - (np.array(shape) - 1) / 2 * voxel_mm
    return affine


def sampled_shares(
    holds: Holds, shape: Sequence[int], affine: Floats, step_mm: Sequence[float]
) -> list[Share]:
    """Return the share (x, y, z) of each shape in the voxels of an upright grid, by points at these steps."""
    voxel_mm = np.diag(affine)[:3]
    parts = [max(1, round(voxel / step)) for voxel, step in zip(voxel_mm, step_mm, strict=True)]
    x, y, z = (
        affine[axis, 3] + voxel_mm[axis] * ((np.arange(count * part) + 0.5) / part - 0.5)
        for axis, (count, part) in enumerate(zip(shape, parts, strict=True))
    )
    slabs = []
    for points in x.reshape(shape[0], parts[0], 1, 1):
        inside = holds(points, y[:, None], z)
        means = (
            np.broadcast_to(each, (parts[0], y.size, z.size))
            .mean(axis=0)
            .reshape(shape[1], parts[1], shape[2], parts[2])
            .mean(axis=(1, 3))
            for each in inside
        )
        slabs.append(np.stack([*means]))
    return [*np.stack(slabs, axis=1).astype(np.float32)]


def ellipse_share(shape: Sequence[int], centre: Sequence[float], half: Sequence[float]) -> Share:
    """Return the share of each pixel (row, column) in an ellipse, exact along rows, by 64 lines a column.

    Centre and half axes are along rows and columns in pixels; pixel 0 lies between 0 and 1.
    """
    across = (np.arange(shape[1] * _COLUMNS) + 0.5) / _COLUMNS
    reach = half[0] * np.sqrt(np.clip(1 - ((across - centre[1]) / half[1]) ** 2, 0, None))
    edges = np.arange(shape[0])[:, None]
    inside = np.clip(np.minimum(centre[0] + reach, edges + 1) - np.maximum(centre[0] - reach, edges), 0, 1)
    return np.asarray(inside.reshape(shape[0], shape[1], _COLUMNS).mean(axis=2), np.float32)


def union(shares: Sequence[Share]) -> Share:
    """Return the share of each voxel in any of several shapes, which lie beside each other."""
    return np.asarray(np.clip(np.sum(np.stack(shares), axis=0), 0, 1), np.float32)


def painted(shares: Mapping[str, Share], brightness: Sequence[float], rng: np.random.Generator) -> Floats:
    """Return an image of 40, changed by each label in turn towards its brightness, with noise of SD 5."""
    values = np.full(next(iter(shares.values())).shape, 40.0)
    for share, bright in zip(shares.values(), brightness, strict=True):
        values += share * (bright - values)
    return np.asarray(values + rng.normal(0, 5, values.shape))


# Lesions with known tissue bridges in a cylinder that is tilted in the sagittal plane. Coordinates of the
# cord: right, anterior, along it, in mm; its centreline is (0, 0, w).

RADIUS_MM = 5.0
_OF_LESIONS = {
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
_LESION_STEP_MM = (0.1, 0.08, 0.1)
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
    step_mm: Sequence[float] = _LESION_STEP_MM,
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
    objects = [(at, lesion.shape, tilt_deg, *_sizes(lesion)) for at, lesion in enumerate(lesions, 1)]
    maps, image = {"lesions": instances.astype(np.uint8)}, painted(shares, (120, 180), rng)
    return Scene(image, shares, affine, _OF_LESIONS, objects, maps)


def _sizes(lesion: Lesion) -> tuple[float, ...]:
    """Return the numbers of `_OF_LESIONS`, from the volume on."""
    _, width, length = (2 * half for half in lesion.half_mm)
    area, bridges = lesion.largest_area_mm2, (lesion.dorsal_mm, lesion.ventral_mm)
    damage = area / (np.pi * RADIUS_MM**2)
    return lesion.volume_mm3, length, width, 2 * np.sqrt(area / np.pi), damage, *bridges, sum(bridges)


# Rootlets per spinal level: an upright elliptic cord, as thick in each level as that says

FIRST_LEVEL, NUM_LEVELS = 5, 4
_OF_ROOTLETS = {
    "level": "spinal level: 5 to 7 are C5 to C7, 8 is C8",
    "bottom_mm": "z at which its rootlets begin, scanner mm",
    "top_mm": "z at which they end, scanner mm",
    "csa_mm2": "area of the cord between, mm2",
}
_ROOTLET_MM, _ROOTLET_REACH_MM, _FILAMENTS = 0.6, 4.0, 4
_DIRECTIONS = ((0.8, -0.6), (-0.8, -0.6), (0.9, 0.436), (-0.9, 0.436))
"""Right and anterior: dorsal and ventral rootlets of both sides."""
_ROOTLET_STEP_MM = (0.13, 0.13, 0.13)


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
            heights = np.linspace(bottom + _ROOTLET_MM, top - _ROOTLET_MM, _FILAMENTS)
            off_mm = np.abs(z[:, None] - heights).min(axis=1)
            found = np.zeros(cord.shape, bool)
            for to_right, to_anterior in _DIRECTIONS:
                along = to_right * right + to_anterior * anterior
                beside = to_anterior * right - to_right * anterior
                inside = (beside**2 + off_mm**2 < _ROOTLET_MM**2) & (along > 0)
                found = found | (inside & (along < half_rl + _ROOTLET_REACH_MM))
            levels.append(found & ~cord)
        return [cord, *levels]

    cord, *of_levels = sampled_shares(holds, shape, affine, _ROOTLET_STEP_MM)
    shares = {"cord": cord, "rootlets": union(of_levels)}
    numbers = np.where(np.max(of_levels, axis=0) > 0, FIRST_LEVEL + np.argmax(of_levels, axis=0), 0)
    objects = [
        (FIRST_LEVEL + at, *ends, np.pi * half_rl * half_ap * scale**2)
        for at, (*ends, scale) in enumerate(zip(bottoms, tops, scales, strict=True))
    ]
    maps, image = {"rootlets": numbers.astype(np.uint8)}, painted(shares, (120, 90), rng)
    return Scene(image, shares, affine, _OF_ROOTLETS, objects, maps)


# Vertebrae and discs, 14 labels, each one instance: elliptic slabs that touch

_VERTEBRAE = ("C3", "C4", "C5", "C6", "C7", "T1", "T2")
_SPINE = tuple(
    name
    for upper, lower in zip(_VERTEBRAE, (*_VERTEBRAE[1:], "T3"), strict=True)
    for name in (f"vertebra_{upper}", f"disc_{upper}_{lower}")
)
_OF_SPINES = {
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
    heights = rng.uniform(*np.array([_BODY_MM, _DISC_MM] * len(_VERTEBRAE)).T)
    edges = heights.sum() / 2 - np.concatenate([[0], np.cumsum(heights)])
    body = rng.uniform((9.0, 7.0), (11.0, 8.5))
    shares: dict[str, Share] = {}
    objects = []
    for at, name in enumerate(_SPINE):
        half = body * (0.93 if at % 2 else 1.0)
        centre = (float(rng.uniform(-0.5, 0.5)), float(rng.uniform(-1, 1)), (edges[at] + edges[at + 1]) / 2)
        in_voxels = (np.array(centre) - affine[:3, 3]) / voxel_mm + 0.5
        plane = ellipse_share(shape[:2], in_voxels[:2], half / voxel_mm[:2])
        z = affine[2, 3] + voxel_mm[2] * np.arange(shape[2])
        above = np.minimum(edges[at], z + voxel_mm[2] / 2)
        below = np.maximum(edges[at + 1], z - voxel_mm[2] / 2)
        shares[name] = (plane[:, :, None] * np.clip(above - below, 0, None) / voxel_mm[2]).astype(np.float32)
        objects.append((at + 1, name, np.pi * half[0] * half[1] * heights[at], *centre))
    brightness = [90 + 60 * (at % 2) for at in range(len(_SPINE))]
    return Scene(painted(shares, brightness, rng), shares, affine, _OF_SPINES, objects)


# Micrographs of discs with rings: fibres with their axons, of known g-ratio

_PICTURE_SIDE = 128
_OF_DISCS = {
    "fibre": "number of the fibre; as in truth/<case>_fibres.png",
    "row": "of the centre, pixels from the upper edge of the picture",
    "column": "pixels from its left edge",
    "fibre_radius": "pixels",
    "axon_radius": "pixels",
    "g_ratio": "axon radius / fibre radius",
}
_PER_SIDE = 3


@dataclass(frozen=True)
class Disc:
    """A fibre around a point (row, column), and its axon; in pixels."""

    row: float
    column: float
    fibre: float
    axon: float


def disc_shares(shape: Sequence[int], discs: Sequence[Disc]) -> tuple[Share, Share]:
    """Return the share of each pixel in a fibre, with all that is in it, and in an axon."""
    centres = [(disc.row, disc.column) for disc in discs]
    fibre, axon = (
        union([ellipse_share(shape, at, (each, each)) for at, each in zip(centres, radii, strict=True)])
        for radii in ([disc.fibre for disc in discs], [disc.axon for disc in discs])
    )
    return fibre, axon


def draw_discs(rng: np.random.Generator) -> Scene:
    """Return a picture of 128 x 128 pixels with nine fibres, axon radii from 1.5 pixels on."""
    cell = _PICTURE_SIDE / _PER_SIDE
    discs = []
    for at in range(_PER_SIDE**2):
        radius = float(rng.uniform(4, 17))
        row, column = (cell * (0.5 + each) + rng.uniform(-3, 3) for each in divmod(at, _PER_SIDE))
        discs.append(Disc(float(row), float(column), radius, radius * float(rng.uniform(0.5, 0.8))))
    fibre, axon = disc_shares((_PICTURE_SIDE, _PICTURE_SIDE), discs)
    shares = {"fibre": fibre, "axon": axon}
    numbers, objects = np.zeros(fibre.shape, np.uint8), []
    for at, disc in enumerate(discs, 1):
        own = ellipse_share(fibre.shape, (disc.row, disc.column), (disc.fibre, disc.fibre))
        numbers[own > 0.5] = at  # noqa: PLR2004
        objects.append((at, disc.row, disc.column, disc.fibre, disc.axon, disc.axon / disc.fibre))
    image = painted(shares, (180, 100), rng).clip(0, 255)
    return Scene(image, shares, None, _OF_DISCS, objects, {"fibres": numbers})
