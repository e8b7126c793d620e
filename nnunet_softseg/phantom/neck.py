"""Everything around the canal: vertebrae, discs, muscle, fat, vessels, airway, skin, air, painted plane by plane.

X and Y are mm to the right and anterior of the centreline in the plane, and `h` is the height of the section through a point:
so that bones and discs follow the cord's curve. The canal is solid bone or ligament here: the cord, its CSF and the epidural
space are laid over it with their exact shares of each voxel, or not at all where there is no cord.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nnunet_softseg.phantom.anatomy import Anatomy, Floats
from nnunet_softseg.phantom.contrasts import Tissue

_FINE_STEP_MM, _MAX_POINTS = 0.5, 14_000_000  # larger fields of view are painted more coarsely
_COARSEST_STEP_MM = 0.8
_PAINT_MARGIN_MM = 6.0  # painted beyond the field of view, for blur, shifts and jitter
_TEXTURE_MM = (1.6, 5.0)  # grain of the two fields that make tissue uneven

Plane = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Neck:
    """What differs between the necks of two people, in mm; positions are relative to the centreline at each height."""

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
    """Return X, Y, h of a lymph node's centre and its radii: long ellipsoids, in one slice as large as a cord."""
    side = 1.0 if rng.random() < 0.5 else -1.0  # noqa: PLR2004
    centre = (side * rng.uniform(17, 30), rng.uniform(-20, 22), rng.uniform(-50, 25))
    radii = (rng.uniform(3.0, 5.5), rng.uniform(2.5, 4.5), rng.uniform(5, 16))
    return tuple(float(value) for value in (*centre, *radii))


@dataclass(frozen=True)
class Surroundings:
    """The painted neck: `tissue` (X, Y, Z) holds `Tissue` values, `texture` is uneven with mean 0 and deviation 1.

    Point (i, j, k) lies at origin_mm + step_mm * (i, j, k) in scanner RAS+ mm.
    """

    tissue: Plane
    texture: npt.NDArray[np.float32]
    origin_mm: Floats
    step_mm: float

    def index(self, points_mm: Floats) -> Floats:
        """Return the fractional indices (3, N) of these points."""
        index: Floats = (points_mm - self.origin_mm[:, None]) / self.step_mm
        return index


def paint_neck(
    anatomy: Anatomy, neck: Neck, low_mm: Floats, high_mm: Floats, rng: np.random.Generator
) -> Surroundings:
    """Return the surroundings of the cord between two corners of the scanner's space.

    Args:
        anatomy: of the subject.
        neck: of the subject.
        low_mm: corner of the box, (3,).
        high_mm: the opposite corner.
        rng: for the texture.
    """
    low, high = low_mm - _PAINT_MARGIN_MM, high_mm + _PAINT_MARGIN_MM
    step = float(np.clip(np.cbrt(np.prod(high - low) / _MAX_POINTS), _FINE_STEP_MM, _COARSEST_STEP_MM))
    shape = tuple(int(count) for count in np.ceil((high - low) / step))
    texture = _texture(shape, step, rng)
    tissue = np.empty(shape, np.uint8)
    x, y = (low[axis] + step * np.arange(shape[axis]) for axis in (0, 1))
    for k in range(shape[2]):
        tissue[:, :, k] = _paint_plane(_PlaneOf.at(anatomy, neck, (x, y, low[2] + step * k)), texture[:, :, k])
    return Surroundings(tissue, texture, low, step)


def _texture(shape: tuple[int, ...], step: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return a smooth random field with mean 0 and standard deviation about 1."""
    field = np.zeros(shape, np.float32)
    for grain in _TEXTURE_MM:
        coarse = rng.standard_normal([int(np.ceil(count * step / grain)) + 3 for count in shape]).astype(np.float32)
        zoomed = coarse
        for axis, count in enumerate(shape):
            zoomed = _linear_along(zoomed, axis, np.arange(count) * step / grain)
        field += zoomed
    return field


def _linear_along(volume: npt.NDArray[np.float32], axis: int, at: Floats) -> npt.NDArray[np.float32]:
    """Return the volume interpolated linearly along one axis at these indices."""
    below = at.astype(int)
    weight = (at - below).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    lower, upper = volume.take(below, axis), volume.take(below + 1, axis)
    return lower + weight * (upper - lower)


@dataclass(frozen=True)
class _PlaneOf:
    """One axial plane of a neck: coordinates (see the module) and what the subject is like at this height."""

    neck: Neck
    x: Floats
    y: Floats
    h: Floats
    level: npt.NDArray[np.uint8]
    to_disc: Floats
    canal: tuple[float, float]

    @classmethod
    def at(cls, anatomy: Anatomy, neck: Neck, axes: tuple[Floats, Floats, float]) -> "_PlaneOf":
        z = np.array([axes[2]])
        (cx, cy), (sx, sy), _ = (pair[:, 0] for pair in anatomy.centreline(z))
        x, y = (axes[0] - cx)[:, None], (axes[1] - cy)[None, :]
        h = anatomy.height_mm(z)[0] + (sx * x + sy * y) / (1 + sx**2 + sy**2)
        rl, ap = anatomy.canal_axes(anatomy.height_mm(z))
        return cls(neck, x, y, h, *_by_height(anatomy, h), (float(rl[0]), float(ap[0])))

    @property
    def front(self) -> float:
        """Y of the canal's anterior wall."""
        return self.canal[1] - 0.8

    @property
    def back(self) -> float:
        """Y of the canal's posterior wall."""
        return -self.canal[1] - 0.8

    def ellipse(self, centre: tuple[float, float], radii: tuple[float, float]) -> Floats:
        """Return 1 on an ellipse, less inside, growing linearly with the distance from its centre."""
        radius: Floats = np.sqrt(((self.x - centre[0]) / radii[0]) ** 2 + ((self.y - centre[1]) / radii[1]) ** 2)
        return radius


def _by_height(anatomy: Anatomy, h: Floats) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Return level and signed distance to the next disc at each height, from a table in steps of 0.1 mm."""
    low = float(h.min())
    table = np.arange(low, float(h.max()) + 0.2, 0.1)
    index = ((h - low) * 10).astype(np.intp)
    return anatomy.level(table)[index], anatomy.distance_to_disc_mm(table)[index]


def _paint_plane(plane: _PlaneOf, texture: npt.NDArray[np.float32]) -> Plane:
    tissue = np.full((plane.x.size, plane.y.size), Tissue.MUSCLE, np.uint8)
    for paint in (_soft_tissue, _vessels_and_airway, _lateral_bone, _arch, _body, _nodes, _outline):
        paint(plane, texture, tissue)
    return tissue


def _soft_tissue(plane: _PlaneOf, texture: npt.NDArray[np.float32], tissue: Plane) -> None:
    """Layers of muscle with fat between them behind; strap muscles in loose fat in front."""
    bent = np.hypot(0.85 * plane.x, plane.y + 4) + 1.3 * texture
    layer = np.mod(bent / plane.neck.septum, 1.0)
    behind = plane.y < plane.front
    tissue[(layer < 0.10) & behind & (bent > 16)] = Tissue.FAT
    tissue[(np.abs(plane.x) < 0.8) & (plane.y < plane.back - 8)] = Tissue.LIGAMENT
    wall = plane.front + 2 * plane.neck.body[1]
    tissue[(plane.y > wall + 4 + 0.15 * np.abs(plane.x)) & (texture > -1.0)] = Tissue.FAT
    tissue[(plane.y > plane.front + 4) & (np.abs(plane.x) > 21) & (texture > -0.6)] = Tissue.FAT
    for side in (-1, 1):
        tissue[plane.ellipse((side * 34, wall - 4), (8, 11)) < 1] = Tissue.MUSCLE
        tissue[plane.ellipse((side * 6.5, wall + 2.0), (5.0, 2.6)) < 1] = Tissue.MUSCLE
        tissue[plane.ellipse((side * 19, plane.front + 8.0), (6.0, 5.0)) < 1] = Tissue.MUSCLE


def _vessels_and_airway(plane: _PlaneOf, texture: npt.NDArray[np.float32], tissue: Plane) -> None:
    wall, shift = plane.front + 2 * plane.neck.body[1], plane.neck.vessel_shift
    width, depth = plane.neck.airway
    is_trachea = bool(plane.h.mean() < -52)  # noqa: PLR2004 - below C5 the pharynx ends: trachea, oesophagus behind it
    radii = (8.0, 8.5) if is_trachea else (width, depth)
    centre = (0.5 * shift, wall + (21.0 if is_trachea else 8.5 + depth / 2))
    airway = plane.ellipse(centre, radii)
    tissue[airway < 1.35] = Tissue.MUCOSA
    tissue[(airway < 1.35) & (airway > 1.22)] = Tissue.LIGAMENT
    tissue[airway < 1] = Tissue.AIR
    oesophagus = plane.ellipse((2.0 + shift, wall + 8.0), (6.0, 3.2))
    if is_trachea:
        tissue[oesophagus < 1] = Tissue.MUSCLE
        tissue[oesophagus < 0.45] = Tissue.MUCOSA
    for side in (-1, 1):
        tissue[plane.ellipse((side * (21 + shift), wall + 5), (3.4, 3.4)) < 1] = Tissue.ARTERY
        tissue[plane.ellipse((side * (27.5 + shift), wall + 2), (5.0 - side, 3.8)) < 1] = Tissue.VEIN


def _lateral_bone(plane: _PlaneOf, texture: npt.NDArray[np.float32], tissue: Plane) -> None:
    """Articular pillars with their joints, transverse processes with the vertebral arteries, foramina at the discs."""
    width = plane.canal[0]
    joint = np.abs(plane.to_disc + 0.7 * (plane.y + 3) + 1.0) < 0.8
    foramen = np.abs(plane.to_disc) < 4.5
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


def _arch(plane: _PlaneOf, texture: npt.NDArray[np.float32], tissue: Plane) -> None:
    """Laminae and yellow ligament around the canal, which stays filled, and the spinous processes."""
    width, depth = plane.canal
    ring = plane.ellipse((0.0, -1.2), (width + 4.6, depth + 4.4))
    lamina = (np.abs(plane.to_disc + 6.0 + 0.25 * (plane.y - plane.back)) < 5.0) & (plane.y < 2)
    tissue[(ring < 1) & (plane.y < plane.front)] = Tissue.LIGAMENT
    _bone(tissue, np.where(lamina, ring, 9.0), 0.90)
    tissue[(plane.ellipse((0.0, -0.8), (width, depth)) < 1) & ~lamina] = Tissue.MUSCLE
    long = plane.neck.spinous_length * (1.0 + 0.35 * ((plane.level == 2) | (plane.level >= 7)))
    reach = plane.back - 2.5 - plane.y
    middle = plane.to_disc + 8.0 + plane.neck.spinous_drop * reach
    half = 3.4 - 0.05 * reach + 1.2 * (reach > 0.75 * long)
    across = np.maximum(np.abs(plane.x) / half, np.abs(middle) / 4.4)
    spinous = np.maximum(across, np.abs(reach - long / 2) / (long / 2))
    _bone(tissue, np.where((plane.level > 1) & (reach > 0), spinous, 9.0), 0.76)


def _body(plane: _PlaneOf, texture: npt.NDArray[np.float32], tissue: Plane) -> None:
    """Vertebral bodies and discs with their ligaments; the dens and the arch of the atlas above C2."""
    half_rl, half_ap = plane.neck.body
    waist = 1 - 0.08 * np.clip(np.abs(plane.to_disc) / 8.0, 0, 1)
    centre = plane.front + half_ap + 0.6
    u, v = np.abs(plane.x) / (half_rl * waist), np.abs(plane.y - centre) / (half_ap * waist)
    squircle = (u**3 + v**3) ** (1 / 3)
    below_atlas = plane.level > 1
    tissue[(squircle < 1.14) & below_atlas] = Tissue.LIGAMENT
    disc = np.abs(plane.to_disc) < plane.neck.disc_half * (1 - 0.25 * v)
    end_plate = np.abs(plane.to_disc) < plane.neck.disc_half + 0.8
    _bone(tissue, np.where(below_atlas & ~disc, squircle, 9.0), 0.91)
    tissue[(squircle < 1) & below_atlas & end_plate & ~disc] = Tissue.BONE
    in_disc = (squircle < 1.04) & below_atlas & disc
    tissue[in_disc] = Tissue.ANNULUS
    tissue[in_disc & (squircle < 0.68) & (np.abs(plane.to_disc) < 0.75 * plane.neck.disc_half)] = Tissue.NUCLEUS
    tissue[(plane.ellipse((0, plane.front + 4.0), (9.5, 5.0)) < 1) & ~below_atlas] = Tissue.LIGAMENT
    _bone(tissue, np.where(below_atlas, 9.0, plane.ellipse((0, plane.front + 5.8), (5.2, 5.0))), 0.83)
    _bone(tissue, np.where(below_atlas, 9.0, plane.ellipse((0, plane.front + 13.8), (9.0, 2.8))), 0.68)


def _nodes(plane: _PlaneOf, texture: npt.NDArray[np.float32], tissue: Plane) -> None:
    """Lymph nodes in muscle and fat: as bright as a cord, round in a slice, with a thin rim of fat as dark or bright as CSF."""
    soft = (tissue == Tissue.MUSCLE) | (tissue == Tissue.FAT)
    for x, y, h, *radii in plane.neck.nodes:
        along = (plane.h - h) / radii[2]
        node = np.sqrt(plane.ellipse((x, y), (radii[0], radii[1])) ** 2 + along**2)
        tissue[(node < 1.22) & soft] = Tissue.VEIN
        tissue[(node < 1) & soft] = Tissue.NODE


def _outline(plane: _PlaneOf, texture: npt.NDArray[np.float32], tissue: Plane) -> None:
    """Fat under the skin, thicker behind, the skin, and air around the neck."""
    radii = plane.neck.outline
    edge = (plane.ellipse((0, 2.0), radii) - 1) * np.mean(radii)  # mm beyond the outline
    fat = plane.neck.fat * (1.3 + 0.5 * np.tanh(-plane.y / 25)) + 0.8 * texture
    tissue[(edge > -fat) & (tissue != Tissue.AIR)] = Tissue.FAT
    tissue[edge > -1.6] = Tissue.SKIN
    tissue[edge > 0] = Tissue.AIR


def _bone(tissue: Plane, shape: Floats, marrow: float) -> None:
    """Paint bone where `shape` < 1, and marrow inside where it is below `marrow`."""
    tissue[shape < 1] = Tissue.BONE
    tissue[shape < marrow] = Tissue.MARROW

