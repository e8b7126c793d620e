"""From a subject to one image with its truth: position and content of the voxels, a rater's mask."""

from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
import numpy.typing as npt

from nnunet_softseg.errors import UserError
from nnunet_softseg.phantom.anatomy import Anatomy, Floats, draw_anatomy
from nnunet_softseg.phantom.contrasts import CONTRAST_NAMES, CONTRASTS, Contrast, contrast_named
from nnunet_softseg.phantom.grid import Grid
from nnunet_softseg.phantom.neck import Neck, Surroundings, draw_neck, paint_neck
from nnunet_softseg.phantom.partial_volume import MaskBias, to_volume, voxel_fractions
from nnunet_softseg.phantom.scanner import scan
from nnunet_softseg.phantom.truth import centreline_in_slices, csa_table

DEFAULT_FOV_MM = (72.0, 72.0, 96.0)
MAX_FOV_MM = 400.0
_JITTER_MM = (1.5, 1.5, 1.0)  # how differently the operator places the contrasts of one subject
# The field of view ends at C1, and a third of it lies above C2/C3 where that is less.
_TOP_MM, _TOP_SHARE = 36.0, 1 / 3
_MASK_AREA_SD, _MASK_WOBBLE_SD_MM = 0.012, 0.06
_ANCHOR = "T2w"  # stays where the scanner's space puts it; shifts are those of the others against it
_SHIFT_PERIOD_MM = 90.0  # slower than breathing artefacts: the shear stays below 5 degrees at 3 mm


@dataclass(frozen=True)
class PhantomSpec:
    """All that decides every voxel of a phantom, apart from the subject's number.

    `fov_mm` is R-L, A-P, S-I of every image; `axial_si_mm` makes the S-I extent of the axial contrasts
    shorter. `shift_mm` is how far the anatomy may have moved between T2w and another contrast; `oblique_deg`
    how far axial slices may be tipped.

    Raises:
        UserError: for an unknown contrast or a number out of its range.
    """

    seed: int = 0
    fov_mm: tuple[float, float, float] = DEFAULT_FOV_MM
    contrasts: tuple[str, ...] = CONTRAST_NAMES
    shift_mm: float = 0.0
    cord: bool = True
    axial_si_mm: float | None = None
    oblique_deg: float = 0.0

    def __post_init__(self) -> None:
        for name in self.contrasts:
            contrast_named(name)
        if not self.contrasts or len(set(self.contrasts)) < len(self.contrasts):
            raise UserError(f"contrasts must be named once each, got {list(self.contrasts)}")
        if self.seed < 0:
            raise UserError(f"the seed must be 0 or more, got {self.seed}")
        for name, values, (low, high) in (
            ("fov_mm", self.fov_mm, (30.0, MAX_FOV_MM)),
            ("axial_si_mm", (self.axial_si_mm,), (10.0, self.fov_mm[2])),
            ("shift_mm", (self.shift_mm,), (0.0, 10.0)),
            ("oblique_deg", (self.oblique_deg,), (0.0, 25.0)),
        ):
            for value in values:
                if value is not None and not low <= value <= high:  # false for NaN, too
                    raise UserError(f"{name} must lie between {low:g} and {high:g}, got {value:g}")


@dataclass(frozen=True)
class Subject:
    """One person of a phantom: number (1, 2, ...), anatomy, and the neck around the cord."""

    number: int
    anatomy: Anatomy
    neck: Neck
    gain: float
    surroundings: Surroundings = field(repr=False)


@dataclass(frozen=True)
class Simulated:
    """One image of one subject and all that is known about it; arrays are as stored, on the grid of `affine`.

    `image` int16; `truth` float32, the share of each voxel that is cord; `mask` uint8, as a rater of this
    contrast outlines the cord; `levels` uint8, the vertebral level of the voxels that the canal touches;
    `csa` columns of one value a slice.
    """

    contrast: Contrast
    affine: Floats
    image: npt.NDArray[np.int16]
    truth: npt.NDArray[np.float32]
    mask: npt.NDArray[np.uint8]
    levels: npt.NDArray[np.uint8]
    csa: dict[str, npt.NDArray[np.float64]]
    slice_axis: int


def subject_name(number: int) -> str:
    """Return the BIDS name of a subject: `sub-01`."""
    return f"sub-{number:02d}"


def _rng(spec: PhantomSpec, number: int, *purpose: int) -> np.random.Generator:
    """Return the random stream of one purpose of one subject: it depends on nothing else."""
    return np.random.default_rng(np.random.SeedSequence(spec.seed, spawn_key=(number, *purpose)))


def simulate_subject(spec: PhantomSpec, number: int) -> Subject:
    """Return the subject of this number, 1 for the first."""
    anatomy = draw_subject_anatomy(spec, number)
    rng = _rng(spec, number, 1)
    neck, gain = draw_neck(rng), float(rng.uniform(0.75, 1.35))
    half = np.array(spec.fov_mm) / 2 + np.array(_JITTER_MM) + spec.shift_mm
    half[1:] += np.sin(np.radians(spec.oblique_deg)) * half[:0:-1]
    return Subject(number, anatomy, neck, gain, paint_neck(anatomy, neck, -half, half, _rng(spec, number, 2)))


def draw_subject_anatomy(spec: PhantomSpec, number: int) -> Anatomy:
    """Return the cord of the subject of this number."""
    z_c2c3 = spec.fov_mm[2] / 2 - min(_TOP_MM, spec.fov_mm[2] * _TOP_SHARE)
    anatomy = draw_anatomy(_rng(spec, number, 0), z_c2c3)
    return anatomy if spec.cord else anatomy.without_cord()


def simulate(spec: PhantomSpec, number: int, contrast: str, subject: Subject | None = None) -> Simulated:
    """Return the image of a subject (1 is the first) in one contrast, with its truth.

    It is a function of the first three arguments alone; the result of `simulate_subject`, if at hand, saves
    time.
    """
    subject, acquired = subject or simulate_subject(spec, number), contrast_named(contrast)
    place, rate, measure = _image_rngs(spec, number, acquired)
    grid = make_grid(acquired, spec, place)
    fractions = voxel_fractions(subject.anatomy, grid, _draw_mask_bias(len(grid.shift_mm), acquired, rate))
    inside = fractions if subject.anatomy.has_cord else None
    image = scan(subject.surroundings, acquired, grid, inside, gain=subject.gain, rng=measure)
    present = float(subject.anatomy.has_cord)
    level = subject.anatomy.level(fractions.height_mm).astype(float)
    truth, mask, levels = (
        to_volume(grid, fractions.voxels, present * values)
        for values in (fractions.cord, fractions.mask, level)
    )
    return Simulated(
        acquired,
        grid.affine,
        image,
        truth,
        (mask > 0.5).astype(np.uint8),  # noqa: PLR2004
        levels.astype(np.uint8),
        csa_table(subject.anatomy, grid, truth),
        grid.slice_axis,
    )


def _image_rngs(spec: PhantomSpec, number: int, contrast: Contrast) -> list[np.random.Generator]:
    """Return the random streams of one image: its place, its rater, its noise."""
    return [_rng(spec, number, 10 + CONTRASTS.index(contrast), purpose) for purpose in range(3)]


def make_grid(contrast: Contrast, spec: PhantomSpec, rng: np.random.Generator) -> Grid:
    """Return the voxels of one image: placed by an operator, in the contrast's orientation, moved."""
    jitter = rng.uniform(-1, 1, 3) * _JITTER_MM
    pitch = np.radians(spec.oblique_deg * rng.uniform(-1, 1)) if contrast.axial else 0.0
    extent = np.array(spec.fov_mm)
    if contrast.axial and spec.axial_si_mm is not None:
        extent[2] = spec.axial_si_mm
    # Wherever the operator has placed it, the image reaches over all of the field of view along S-I.
    counts = np.round(extent / contrast.voxel_mm).astype(int)
    counts[2] = np.ceil((extent[2] + 2 * _JITTER_MM[2]) / contrast.voxel_mm[2] - 1e-6)
    shape, affine = _stored(
        counts, _ras_affine(counts, contrast.voxel_mm, jitter, float(pitch)), contrast.orientation
    )
    still = Grid(shape, affine, np.zeros((counts[2], 2)))
    if spec.shift_mm == 0 or contrast.name == _ANCHOR:
        return still
    return Grid(shape, affine, spec.shift_mm * _draw_shift(still.slice_centres_mm()[2], rng))


def _ras_affine(
    counts: npt.NDArray[np.int_], voxel_mm: tuple[float, ...], centre_mm: Floats, pitch: float
) -> Floats:
    """Return the affine of a RAS grid around a centre, tipped about the R-L axis by `pitch` radians."""
    rotation = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    affine = np.eye(4)
    affine[:3, :3] = rotation * voxel_mm
    affine[:3, 3] = centre_mm - affine[:3, :3] @ ((counts - 1) / 2)
    return affine


def _stored(
    counts: npt.NDArray[np.int_], ras: Floats, orientation: str
) -> tuple[tuple[int, int, int], Floats]:
    """Return shape and affine of the same voxels with the array axes in this orientation."""
    codes = (nib.orientations.axcodes2ornt(code) for code in ("RAS", orientation))
    transform = nib.orientations.ornt_transform(*codes)
    i, j, k = (int(counts[axis]) for axis in np.argsort(transform[:, 0]))
    return (i, j, k), ras @ nib.orientations.inv_ornt_aff(transform, tuple(counts))


def _draw_shift(z_mm: Floats, rng: np.random.Generator) -> Floats:
    """Return a smooth displacement, (slices, 2) for R-L and A-P; the longest is between 0.6 and 1."""
    angle, longest = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.0)
    phases = rng.uniform(0, 2 * np.pi, 2)
    waves = np.sin(2 * np.pi * z_mm[:, None] / _SHIFT_PERIOD_MM + phases)
    shift = 0.75 * np.array([np.cos(angle), np.sin(angle)]) + 0.35 * waves
    return np.asarray(shift * longest / np.linalg.norm(shift, axis=1).max())


def _draw_mask_bias(slices: int, contrast: Contrast, rng: np.random.Generator) -> MaskBias:
    """Return a rater's error: the bias of the contrast, and in each slice a little of area and shape."""
    area = contrast.mask_area_bias + rng.normal(0, _MASK_AREA_SD, slices)
    return MaskBias(area, rng.normal(0, _MASK_WOBBLE_SD_MM, (slices, 2)))


def check_cord_fits(spec: PhantomSpec, number: int) -> None:
    """Raise a UserError if the cord of this subject, with two voxels around it, leaves an image."""
    anatomy = draw_subject_anatomy(spec, number)
    for contrast in map(contrast_named, spec.contrasts):
        grid = make_grid(contrast, spec, _image_rngs(spec, number, contrast)[0])
        missing = _overhang_mm(anatomy, grid)
        if missing > 0:
            fov, longer = " x ".join(f"{extent:g}" for extent in spec.fov_mm), f"{2 * missing:.0f}"
            raise UserError(
                f"the field of view of {fov} mm (R-L x A-P x S-I) is too small for the cord of "
                f"{subject_name(number)} in {contrast.name}: make R-L and A-P at least {longer} mm longer"
            )


def _overhang_mm(anatomy: Anatomy, grid: Grid) -> float:
    """Return how far the cord and two voxels reach beyond the image in plane, in mm; negative if it fits."""
    line = centreline_in_slices(anatomy, grid)
    moved = line + grid.unit_axes[:, :2] @ grid.shift_mm.T
    index = np.linalg.inv(grid.affine)[:3] @ np.vstack([moved, np.ones(line.shape[1])])
    radius = float(np.max(anatomy.cord_axes(anatomy.height_mm(line[2]))))
    axes = list(grid.array_axis[:2])
    ends = np.array(grid.shape)[axes, None] - 0.5
    room = np.minimum(index[axes] + 0.5, ends - index[axes]).min(axis=1) - 2
    return float((radius - room * grid.voxel_mm[axes]).max())
