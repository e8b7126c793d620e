"""Everything around the canal: bone, discs, muscle, fat, vessels, airway, skin, painted plane by plane.

X and Y are mm to the right and anterior of the centreline in the plane; `h`, the height of the section
through a point, lets bones and discs follow the cord's curve. The canal is solid bone or ligament here: cord,
CSF and epidural space are laid over it with their exact shares of each voxel.
"""

# ruff: noqa: PLR2004 - the numbers are the drawing: positions and sizes in mm, or relative to a radius of 1

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nnunet_softseg.phantom.anatomy import C1, C2, C7, Anatomy, Floats
from nnunet_softseg.phantom.contrasts import Tissue

_FINE_STEP_MM, _MAX_POINTS = 0.6, 14_000_000  # larger fields of view are painted more coarsely
_COARSEST_STEP_MM = 0.8
_PAINT_MARGIN_MM = np.array([1.5, 1.5, 4.0])  # beyond the images, so that blur has tissue at their ends
_TEXTURE_MM = (1.6, 1.6, 5.0)  # grain of what makes tissue uneven: fibres run along S-I
_BEND_MM = (9.0, 9.0, 14.0)  # grain of what bends muscles and the outline

Plane = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Neck:
    """What differs between the necks of two people, in mm, relative to the centreline at each height."""

    outline: tuple[float, float]
    fat: float
    body: tuple[float, float]
    disc_half: float
    spinous_length: float
    spinous_drop: float
    septum: float
    airway: tuple[float, float]
    vessel_shift: float
    nodes: tuple[tuple[float, ...], ...]


def draw_neck(rng: np.random.Generator) -> Neck:
    """Return the neck of a random subject."""
    nodes = tuple(_draw_node(rng) for _ in range(6))
    return Neck(
        outline=(float(rng.uniform(53, 60)), float(rng.uniform(54, 60))),
        fat=float(rng.uniform(3.5, 8.0)),
        body=(float(rng.uniform(9.0, 10.5)), float(rng.uniform(7.3, 8.8))),
        disc_half=float(rng.uniform(2.0, 2.8)),
        spinous_length=float(rng.uniform(13, 18)),
        spinous_drop=float(rng.uniform(0.25, 0.5)),
        septum=float(rng.uniform(7.5, 10.5)),
        airway=(float(rng.uniform(7.5, 10.0)), float(rng.uniform(4.0, 6.5))),
        vessel_shift=float(rng.uniform(-2.0, 2.0)),
        nodes=nodes,
    )


def _draw_node(rng: np.random.Generator) -> tuple[float, ...]:
    """Return X, Y, h of a lymph node's centre and its radii: long, in one slice as large as a cord."""
    side = 1.0 if rng.random() < 0.5 else -1.0
    centre = (side * rng.uniform(17, 30), rng.uniform(-20, 22), rng.uniform(-50, 25))
    radii = (rng.uniform(3.0, 5.5), rng.uniform(2.5, 4.5), rng.uniform(5, 16))
    return tuple(float(value) for value in (*centre, *radii))


@dataclass(frozen=True)
class Surroundings:
    """The painted neck: `tissue` (X, Y, Z) holds `Tissue` values, `texture` a random field of deviation 1.

    Point (i, j, k) lies at origin_mm + step_mm * (i, j, k) in scanner RAS+ mm.
    """

    tissue: Plane
    texture: npt.NDArray[np.float32]
    origin_mm: Floats
    step_mm: float

    def index(self, points_mm: Floats) -> Floats:
        """Return the fractional indices (3, N) of these points."""
        return (points_mm - self.origin_mm[:, None]) / self.step_mm


def paint_neck(
    anatomy: Anatomy, neck: Neck, low_mm: Floats, high_mm: Floats, rng: np.random.Generator
) -> Surroundings:
    """Return the surroundings of a subject's cord between two corners (3,) of the scanner's space."""
    low, high = low_mm - _PAINT_MARGIN_MM, high_mm + _PAINT_MARGIN_MM
    step = float(np.clip(np.cbrt(np.prod(high - low) / _MAX_POINTS), _FINE_STEP_MM, _COARSEST_STEP_MM))
    shape = tuple(int(count) for count in np.ceil((high - low) / step))
    texture, bend = (_smooth_field(shape, np.array(grain) / step, rng) for grain in (_TEXTURE_MM, _BEND_MM))
    tissue = np.empty(shape, np.uint8)
    x, y = (low[axis] + step * np.arange(shape[axis]) for axis in (0, 1))
    for k in range(shape[2]):
        tissue[:, :, k] = _paint_plane(_PlaneOf.at(anatomy, neck, (x, y, low[2] + step * k)), bend[:, :, k])
    return Surroundings(tissue, texture, low, step)


def _smooth_field(shape: tuple[int, ...], grain: Floats, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return a smooth random field of standard deviation 1; `grain` is its coarseness in points."""
    counts = [int(count / size) + 2 for count, size in zip(shape, grain, strict=True)]
    field = rng.standard_normal(counts).astype(np.float32)
    for axis, count in enumerate(shape):
        field = _linear_along(field, axis, np.arange(count) / grain[axis])
    return field / max(float(field.std()), 1e-6)


def _linear_along(volume: npt.NDArray[np.float32], axis: int, at: Floats) -> npt.NDArray[np.float32]:
    """Return the volume interpolated linearly along one axis at these indices."""
    below = at.astype(int)
    weight = (at - below).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    lower, upper = volume.take(below, axis), volume.take(below + 1, axis)
    return np.asarray(lower + weight * (upper - lower))


@dataclass(frozen=True)
class _PlaneOf:
    """One axial plane of a neck: coordinates (see the module), canal and anatomy of the subject."""

    neck: Neck
    x: Floats
    y: Floats
    h: Floats
    canal: tuple[float, float]
    anatomy: Anatomy

    @classmethod
    def at(cls, anatomy: Anatomy, neck: Neck, axes: tuple[Floats, Floats, float]) -> "_PlaneOf":
        z = np.array([axes[2]])
        (cx, cy), (sx, sy), _ = (pair[:, 0] for pair in anatomy.centreline(z))
        x, y = (axes[0] - cx)[:, None], (axes[1] - cy)[None, :]
        h = anatomy.height_mm(z)[0] + (sx * x + sy * y) / (1 + sx**2 + sy**2)
        rl, ap = anatomy.canal_axes(anatomy.height_mm(z))
        x, y, h = (coordinate.astype(np.float32) for coordinate in (x, y, h))  # half the time, and 1e-5 mm
        return cls(neck, x, y, h, (float(rl[0]), float(ap[0])), anatomy)

    def to_end(self, h: Floats, first: int = C2) -> Floats:
        """Return the signed distance of heights to the nearest lower end of a level below `first`, in mm."""
        return _look_up(lambda heights: self.anatomy.distance_to_disc_mm(heights, first), h)

    def level(self, h: Floats) -> Floats:
        """Return the level at heights."""
        return _look_up(lambda heights: self.anatomy.level(heights).astype(float), h)

    @property
    def front(self) -> float:
        """Y of the canal's anterior wall."""
        return self.canal[1] - 0.8

    @property
    def back(self) -> float:
        """Y of the canal's posterior wall."""
        return -self.canal[1] - 0.8

    @property
    def wall(self) -> float:
        """Y of the vertebral bodies' anterior wall."""
        return self.front + 2 * self.neck.body[1]

    def ellipse(self, centre: tuple[float, float], radii: tuple[float, float]) -> Floats:
        """Return 1 on an ellipse, less inside, growing linearly with the distance from its centre."""
        x, y = (self.x - centre[0]) / radii[0], (self.y - centre[1]) / radii[1]
        return np.asarray(np.sqrt(x**2 + y**2))


def _look_up(function: Callable[[Floats], Floats], h: Floats) -> Floats:
    """Return a function of the height from a table in steps of 0.1 mm."""
    low = float(h.min())
    table = function(np.arange(low, float(h.max()) + 0.2, 0.1))
    return table[((h - low) * 10).astype(np.intp)]


def _paint_plane(plane: _PlaneOf, bend: npt.NDArray[np.float32]) -> Plane:
    tissue = np.full((plane.x.size, plane.y.size), Tissue.MUSCLE, np.uint8)
    _muscle_layers(plane, bend, tissue)
    _front_of_neck(plane, bend, tissue)
    _airway(plane, tissue)
    for paint in (_vessels, _lateral_bone, _arch, _body, _nodes):
        paint(plane, tissue)
    _outline(plane, bend, tissue)
    return tissue


def _muscle_layers(plane: _PlaneOf, bend: npt.NDArray[np.float32], tissue: Plane) -> None:
    """Layers of muscle behind the spine with fat between them, and the ligament of the midline."""
    bent = np.hypot(0.85 * plane.x, plane.y + 4) + 1.8 * bend
    layer, inside = np.divmod(bent / plane.neck.septum, 1.0)
    behind = (plane.y < plane.front) & (bent > 16)
    tissue[(inside < 0.06 + 0.04 * bend) & behind] = Tissue.FAT
    angle = np.arctan2(plane.x, -plane.y - 4) + 0.09 * bend + 0.37 * layer
    tissue[(bent * np.mod(angle / 0.85, 1.0) < 0.21 * (1 + bend)) & behind] = Tissue.FAT
    tissue[(np.abs(plane.x + 0.5 * bend) < 0.9) & (plane.y < plane.back - 8)] = Tissue.LIGAMENT


def _front_of_neck(plane: _PlaneOf, bend: npt.NDArray[np.float32], tissue: Plane) -> None:
    """Loose fat in front of and beside the spine, with the long, strap and sternomastoid muscles in it."""
    wall, x = plane.wall, np.abs(plane.x)
    tissue[(plane.y > wall + 4 + 0.15 * x + bend)] = Tissue.FAT
    tissue[(plane.y > plane.front + 3 + bend) & (x > 22)] = Tissue.FAT
    for side in (-1, 1):
        for centre, radii in (
            ((side * 34, wall - 6), (10, 13)),
            ((side * 27, wall + 14), (11, 7)),
            ((side * 12, wall + 20), (8, 4)),
            ((side * 6.5, wall + 1.5), (5.0, 2.6)),
            ((side * 19, plane.front + 8), (6.0, 5.0)),
        ):
            tissue[plane.ellipse(centre, radii) + 0.05 * bend < 1] = Tissue.MUSCLE
        gland = plane.ellipse((side * (13 + plane.neck.vessel_shift), wall + 12), (4.5, 6.5))
        tissue[gland + 0.08 * bend < 1] = Tissue.GLAND


def _airway(plane: _PlaneOf, tissue: Plane) -> None:
    """Pharynx with its mucosa, below C5 trachea and oesophagus."""
    wall, shift = plane.wall, plane.neck.vessel_shift
    below = 1 / (1 + np.exp((float(plane.h.mean()) + 55.0) / 3.0))  # 0: pharynx, 1: trachea
    radii = ((1 - below) * np.array(plane.neck.airway) + below * 8.0).tolist()
    centre = (0.5 * shift, wall + 6.0 + radii[1] + 8.0 * below)
    airway = plane.ellipse(centre, (radii[0], radii[1]))
    tissue[airway < 1.35] = Tissue.MUCOSA
    tissue[(airway < 1.35) & (airway > 1.22)] = Tissue.LIGAMENT
    tissue[airway < 1] = Tissue.AIR
    oesophagus = plane.ellipse((2.0 + shift, wall + 2.0 + 6.0 * below), (6.0 * below + 0.1, 3.2))
    tissue[oesophagus < 1] = Tissue.MUSCLE
    tissue[oesophagus < 0.45] = Tissue.MUCOSA


def _vessels(plane: _PlaneOf, tissue: Plane) -> None:
    """The carotid arteries and the jugular veins, the right one wider."""
    wall, shift = plane.wall, plane.neck.vessel_shift
    for side in (-1, 1):
        tissue[plane.ellipse((side * (21 + shift), wall + 5), (3.4, 3.4)) < 1] = Tissue.ARTERY
        tissue[plane.ellipse((side * (27.5 + shift), wall + 2), (4.6 + 0.8 * side, 3.8)) < 1] = Tissue.VEIN


def _lateral_bone(plane: _PlaneOf, tissue: Plane) -> None:
    """Articular pillars and joints, transverse processes with their arteries, foramina at the discs."""
    width = plane.canal[0]
    joint = np.abs(plane.to_end(plane.h + 0.7 * (plane.y + 3) + 1.0)) < 0.8
    foramen = np.abs(plane.to_end(plane.h)) < 4.5
    for side in (-1, 1):
        pillar = plane.ellipse((side * (width + 6.0), -4.0), (6.2, 6.6))
        _bone(tissue, pillar, 0.85)
        tissue[(pillar < 1) & joint] = Tissue.ANNULUS
        process = plane.ellipse((side * (width + 4.0), plane.front - 1.5), (5.2, 3.6))
        _bone(tissue, np.where(foramen, 9.0, process), 0.72)
        tissue[(process < 1.1) & foramen] = Tissue.FAT
        nerve = plane.ellipse((side * (width + 4.5), plane.front - 5.5), (4.5, 1.5))
        tissue[(nerve < 1) & foramen] = Tissue.NODE
        artery = plane.ellipse((side * (width + 4.2), plane.front - 0.5), (2.3, 2.1))
        tissue[artery < 1.25] = Tissue.VEIN
        tissue[artery < 1] = Tissue.ARTERY


def _arch(plane: _PlaneOf, tissue: Plane) -> None:
    """Laminae and yellow ligament around the canal, which stays filled, and the spinous processes."""
    width, depth = plane.canal
    ring = plane.ellipse((0.0, -1.2), (width + 4.6, depth + 4.4))
    lamina = np.abs(plane.to_end(plane.h + 8.0 + 0.25 * (plane.back - plane.y), C1)) < 4.8
    lamina &= plane.y < 2
    tissue[(ring < 1) & (plane.y < plane.front)] = Tissue.LIGAMENT
    _bone(tissue, np.where(lamina, ring, 9.0), 0.90)
    reach = plane.back - 2.5 - plane.y
    # Processes lean down: this is 9 mm above the height at which a point's process leaves its lamina.
    origin = plane.h + 9.0 + plane.neck.spinous_drop * reach
    level = plane.level(origin - 5.0)
    long = plane.neck.spinous_length * np.where((level == C2) | (level >= C7), 1.35, 1.0)
    half = 3.4 - 0.05 * reach + 1.2 * (reach > 0.75 * long)
    across = np.maximum(np.abs(plane.x) / half, np.abs(plane.to_end(origin, C1)) / 4.4)
    spinous = np.maximum(across, np.abs(reach - long / 2) / (long / 2))
    _bone(tissue, np.where((level > C1) & (reach > 0), spinous, 9.0), 0.76)


def _body(plane: _PlaneOf, tissue: Plane) -> None:
    """Vertebral bodies and discs with their ligaments; the dens and the arch of the atlas above C2."""
    half_rl, half_ap = plane.neck.body
    to_disc = np.abs(plane.to_end(plane.h))
    waist = 1 - 0.08 * np.clip(to_disc / 8.0, 0, 1)
    centre = plane.front + half_ap + 0.6
    u, v = np.abs(plane.x) / (half_rl * waist), np.abs(plane.y - centre) / (half_ap * waist)
    squircle = (u**3 + v**3) ** (1 / 3)
    below_atlas = plane.level(plane.h) > C1
    tissue[(squircle < 1.14) & below_atlas] = Tissue.LIGAMENT
    disc = to_disc < plane.neck.disc_half * (1 - 0.25 * v)
    end_plate = to_disc < plane.neck.disc_half + 0.8
    _bone(tissue, np.where(below_atlas & ~disc, squircle, 9.0), 0.91)
    tissue[(squircle < 1) & below_atlas & end_plate & ~disc] = Tissue.BONE
    in_disc = (squircle < 1.04) & below_atlas & disc
    tissue[in_disc] = Tissue.ANNULUS
    tissue[in_disc & (squircle < 0.68) & (to_disc < 0.75 * plane.neck.disc_half)] = Tissue.NUCLEUS
    tissue[(plane.ellipse((0, plane.front + 4.0), (9.5, 5.0)) < 1) & ~below_atlas] = Tissue.LIGAMENT
    _bone(tissue, np.where(below_atlas, 9.0, plane.ellipse((0, plane.front + 5.8), (5.2, 5.0))), 0.83)
    _bone(tissue, np.where(below_atlas, 9.0, plane.ellipse((0, plane.front + 13.8), (9.0, 2.8))), 0.68)


def _nodes(plane: _PlaneOf, tissue: Plane) -> None:
    """Lymph nodes in muscle and fat: in a slice as bright, as round and as large as a cord, with a rim."""
    soft = (tissue == Tissue.MUSCLE) | (tissue == Tissue.FAT)
    for x, y, h, *radii in plane.neck.nodes:
        along = (plane.h - h) / radii[2]
        node = np.sqrt(plane.ellipse((x, y), (radii[0], radii[1])) ** 2 + along**2)
        tissue[(node < 1.22) & soft] = Tissue.VEIN
        tissue[(node < 1) & soft] = Tissue.NODE


def _outline(plane: _PlaneOf, bend: npt.NDArray[np.float32], tissue: Plane) -> None:
    """Fat under the skin, thicker behind, the skin, and air around the neck."""
    radii = plane.neck.outline
    edge = (plane.ellipse((0, 2.0), radii) - 1) * np.mean(radii)  # mm beyond the outline
    fat = plane.neck.fat * (1.3 + 0.5 * np.tanh(-plane.y / 25)) + 0.7 * bend
    tissue[(edge > -fat) & (tissue != Tissue.AIR)] = Tissue.FAT
    tissue[edge > -1.6] = Tissue.SKIN
    tissue[edge > 0] = Tissue.AIR


def _bone(tissue: Plane, shape: Floats, marrow: float) -> None:
    """Paint bone where `shape` < 1, and marrow inside where it is below `marrow`."""
    tissue[shape < 1] = Tissue.BONE
    tissue[shape < marrow] = Tissue.MARROW
