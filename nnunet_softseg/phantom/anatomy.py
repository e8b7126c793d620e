"""The cord of one subject as geometry: a curved centreline, elliptic sections, vertebral levels; in mm.

Coordinates are scanner RAS+ mm: x to the right, y anterior, z superior. `height_mm` is z above the disc
C2/C3, so that levels and sections don't depend on the field of view. A section is perpendicular to the
centreline, with coordinates u (R-L) and v (A-P) around it.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# From the top of C1 downwards, length of a level along z in mm (mid-disc to mid-disc; C1 and C2 as the cord
# sees them). Rounded adult values.
LEVEL_LENGTHS_MM = (18.0, 18.0, 17.0, 17.0, 17.0, 17.0, 17.0) + (19.0, 20.0, 21.0) * 4 + (28.0,) * 5
LEVELS_ABOVE_C2_C3 = 2
C1, C2, C3, C7 = 1, 2, 3, 7

MAX_TILT_DEG = 15.0
# From the point's own z as the start: at 15 degrees and 15 mm off the centreline, z is then right to 1e-3 mm,
# and u and v, whose error is of second order in that of z, to 1e-5 mm.
_NEWTON_STEPS = 2


@dataclass(frozen=True)
class Wave:
    """amplitude * sin(2 pi height / period + phase), in mm."""

    amplitude_mm: float
    period_mm: float
    phase: float

    def jet(self, height_mm: Floats) -> Floats:
        """Return the wave and its first two derivatives at each height: (3, N) in mm, mm/mm, 1/mm."""
        omega = 2 * math.pi / self.period_mm
        angle = omega * height_mm + self.phase
        sine = np.sin(angle)
        return self.amplitude_mm * np.stack([sine, omega * np.cos(angle), -(omega**2) * sine])


@dataclass(frozen=True)
class Anatomy:
    """The cord and canal of one subject.

    `centre_mm` is the point of the undisturbed centreline (no waves) at the disc C2/C3, in scanner mm. The
    cord's section is an ellipse of area `csa_c2c3_mm2` in the mean over C2-C3 and A-P/R-L diameter ratio
    `aspect`, both following the cervical enlargement by `enlargement` (0: the same everywhere). The thecal
    sac and the bony canal are larger ellipses.
    """

    centre_mm: tuple[float, float, float]
    slope: tuple[float, float] = (0.0, 0.0)
    waves_rl: tuple[Wave, ...] = ()
    waves_ap: tuple[Wave, ...] = ()
    csa_c2c3_mm2: float = 75.0
    aspect: float = 0.74
    enlargement: float = 0.0
    level_scale: float = 1.0
    csf_gap_mm: tuple[float, float] = (4.0, 2.3)
    epidural_gap_mm: tuple[float, float] = (1.2, 0.9)
    has_cord: bool = True

    def height_mm(self, z_mm: Floats) -> Floats:
        """Return z measured from the disc C2/C3, in mm."""
        return z_mm - self.centre_mm[2]

    def centreline(self, z_mm: Floats) -> Floats:
        """Return the centreline at each z: (3, 2, N), x and y in mm, their first and second derivatives."""
        height = self.height_mm(z_mm)
        line = np.zeros((3, 2, height.size))
        for axis, waves in enumerate((self.waves_rl, self.waves_ap)):
            line[0, axis] = self.centre_mm[axis] + self.slope[axis] * height
            line[1, axis] = self.slope[axis]
            for wave in waves:
                line[:, axis] += wave.jet(height)
        return line

    def tilt_deg(self, z_mm: Floats) -> Floats:
        """Return the angle between the centreline and z, in degrees."""
        return np.asarray(np.degrees(np.arctan(np.hypot(*self.centreline(z_mm)[1]))))

    def cord_axes(self, height_mm: Floats) -> tuple[Floats, Floats]:
        """Return the semi-axes (R-L, A-P) of the cord's section at each height, in mm."""
        aspect = self.aspect - 0.10 * self.enlargement * _enlargement(height_mm)
        rl = np.sqrt(self.csa_mm2(height_mm) / (np.pi * aspect))
        return rl, rl * aspect

    def csa_mm2(self, height_mm: Floats) -> Floats:
        """Return the area of the section perpendicular to the centreline at each height, in mm2."""
        return self.csa_c2c3_mm2 * self._profile(height_mm) / self._profile_mean_c2c3

    def _profile(self, height: Floats) -> Floats:
        thoracic = 1 / (1 + np.exp((height + 85.0) / 8.0))
        medulla = 1 / (1 + np.exp((38.0 - height) / 5.0))
        return 1 + self.enlargement * (0.16 * _enlargement(height) - 0.20 * thoracic + 0.25 * medulla)

    @property
    def _profile_mean_c2c3(self) -> float:
        bounds = self.level_bounds_mm()
        return float(self._profile(np.linspace(bounds[C3], bounds[C2 - 1], 401)).mean())

    def thecal_axes(self, height_mm: Floats) -> tuple[Floats, Floats]:
        """Return the semi-axes (R-L, A-P) of the thecal sac, filled with CSF around the cord, in mm."""
        rl, ap = self.cord_axes(height_mm)
        bulge = 0.35 * np.exp(-((self.distance_to_disc_mm(height_mm) / 3.5) ** 2))
        return rl + self.csf_gap_mm[0], ap + self.csf_gap_mm[1] - bulge

    def canal_axes(self, height_mm: Floats) -> tuple[Floats, Floats]:
        """Return the semi-axes (R-L, A-P) of the bony canal: thecal sac and epidural space, in mm."""
        rl, ap = self.thecal_axes(height_mm)
        return rl + self.epidural_gap_mm[0], ap + self.epidural_gap_mm[1]

    def level_bounds_mm(self) -> Floats:
        """Return the heights that bound the levels, downwards: C1 lies between [0] and [1]; C2/C3 is at 0."""
        lengths = np.cumsum((0.0, *LEVEL_LENGTHS_MM))
        return np.asarray((lengths[LEVELS_ABOVE_C2_C3] - lengths) * self.level_scale)

    def level(self, height_mm: Floats) -> npt.NDArray[np.uint8]:
        """Return the level at each height: 1-7 are C1-C7, 8-19 T1-T12, 20-24 L1-L5; the ends are open."""
        inner = self.level_bounds_mm()[1:-1]
        return (1 + np.searchsorted(-inner, -height_mm, side="right")).astype(np.uint8)

    def distance_to_disc_mm(self, height_mm: Floats, first: int = C2) -> Floats:
        """Return the signed distance of each height to the nearest end of a level, upwards positive, in mm.

        `first` is the highest level whose lower end counts; C2 is the first with a disc.
        """
        ends = self.level_bounds_mm()[first:]
        middles = (ends[1:] + ends[:-1]) / 2
        return height_mm - ends[np.searchsorted(-middles, -height_mm)]

    def without_cord(self) -> "Anatomy":
        """Return the same subject with neither cord nor canal."""
        return replace(self, has_cord=False)


def _enlargement(height_mm: Floats) -> Floats:
    """Return the weight of the cervical enlargement, 1 at its peak at C5-C6."""
    return np.exp(-(((height_mm + 45.0) / 24.0) ** 2))


@dataclass(frozen=True)
class SectionPoints:
    """Points in the section that they lie in: `u`, `v` in mm, `z` of its centre, `tangent` of unit length."""

    u: Floats
    v: Floats
    z: Floats
    tangent: tuple[Floats, Floats, Floats]

    @property
    def direction_u(self) -> tuple[Floats, Floats, Floats]:
        """The unit vector of u: x, made perpendicular to the tangent."""
        tx, ty, tz = self.tangent
        norm = np.sqrt(1 - tx**2)
        return norm, -tx * ty / norm, -tx * tz / norm

    @property
    def direction_v(self) -> tuple[Floats, Floats, Floats]:
        """The unit vector of v: tangent x direction_u, anterior."""
        tx, ty, tz = self.tangent
        norm = np.sqrt(1 - tx**2)
        return np.zeros_like(norm), tz / norm, -ty / norm


def locate(anatomy: Anatomy, points_mm: Floats) -> SectionPoints:
    """Return each point p in its section, perpendicular to the centreline c(z) at (p - c(z)) . c'(z) = 0.

    That is solved for z by Newton's method.
    """
    x, y, z_point = points_mm
    z = z_point.copy()
    for _ in range(_NEWTON_STEPS):
        (cx, cy), (sx, sy), (bx, by) = anatomy.centreline(z)
        residual = (x - cx) * sx + (y - cy) * sy + (z_point - z)
        slope = (x - cx) * bx + (y - cy) * by - (1 + sx**2 + sy**2)
        z -= residual / slope
    (cx, cy), (sx, sy), _ = anatomy.centreline(z)
    tz = 1 / np.sqrt(1 + sx**2 + sy**2)
    tx, ty = sx * tz, sy * tz
    root = np.sqrt(1 - tx**2)
    v = (tz * (y - cy) - ty * (z_point - z)) / root
    return SectionPoints((x - cx) / root, v, z, (tx, ty, tz))


def draw_anatomy(rng: np.random.Generator, z_c2c3_mm: float) -> Anatomy:
    """Return the cord of a random subject: curve, area, aspect, enlargement, length of levels, canal.

    The steepest tilt over the whole spine is between 6 and 15 degrees; the disc C2/C3 lies at z_c2c3_mm in
    the scanner, up to +-2 mm.
    """
    jitter = rng.uniform(-2.0, 2.0, 3)
    anatomy = Anatomy(
        centre_mm=(float(jitter[0]), float(jitter[1]), z_c2c3_mm + float(jitter[2])),
        waves_rl=(_draw_wave(rng, (0.3, 0.8), (90, 160)),),
        waves_ap=(_draw_wave(rng, (2.0, 3.2), (95, 130)), _draw_wave(rng, (0.2, 0.4), (50, 65))),
        csa_c2c3_mm2=float(rng.uniform(65.0, 85.0)),
        aspect=float(rng.uniform(0.70, 0.78)),
        enlargement=float(rng.uniform(0.7, 1.2)),
        level_scale=float(rng.uniform(0.94, 1.06)),
        csf_gap_mm=(float(rng.uniform(3.2, 4.6)), float(rng.uniform(1.8, 2.7))),
    )
    return _with_steepest_tilt(anatomy, float(rng.uniform(6.0, MAX_TILT_DEG)))


def _draw_wave(rng: np.random.Generator, amplitude: tuple[float, float], period: tuple[float, float]) -> Wave:
    return Wave(*(float(rng.uniform(*limits)) for limits in (amplitude, period, (0, 2 * math.pi))))


def _with_steepest_tilt(anatomy: Anatomy, tilt_deg: float) -> Anatomy:
    """Return the subject with its waves scaled so that the steepest tilt is this one."""
    z = anatomy.centre_mm[2] + np.arange(-400.0, 80.0, 0.5)
    factor = math.tan(math.radians(tilt_deg)) / float(np.hypot(*anatomy.centreline(z)[1]).max())

    def scale(waves: tuple[Wave, ...]) -> tuple[Wave, ...]:
        return tuple(replace(wave, amplitude_mm=wave.amplitude_mm * factor) for wave in waves)

    return replace(anatomy, waves_rl=scale(anatomy.waves_rl), waves_ap=scale(anatomy.waves_ap))


def straight_cylinder(
    radii_mm: tuple[float, float],
    tilt_deg: tuple[float, float] = (0.0, 0.0),
    centre_mm: tuple[float, float, float] = (0, 0, 0),
) -> Anatomy:
    """Return a straight cord of constant elliptic section, for tests: its volume is known in closed form.

    Semi-axes are (R-L, A-P); the centreline leans to the right and to anterior by the angles of `tilt_deg`,
    and has `centre_mm` at the disc C2/C3.
    """
    slope = (math.tan(math.radians(tilt_deg[0])), math.tan(math.radians(tilt_deg[1])))
    area = math.pi * radii_mm[0] * radii_mm[1]
    return Anatomy(centre_mm, slope, csa_c2c3_mm2=area, aspect=radii_mm[1] / radii_mm[0])
