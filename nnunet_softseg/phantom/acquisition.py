"""From a subject to one image with its truth: position and content of the voxels, a rater's mask."""

import math
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nnunet_softseg.errors import UserError
from nnunet_softseg.phantom.anatomy import Anatomy, Floats, draw_anatomy
from nnunet_softseg.phantom.contrasts import CONTRAST_NAMES, CONTRASTS, Contrast, Tissue, contrast_named
from nnunet_softseg.phantom.neck import Neck, Surroundings, draw_neck, paint_neck
from nnunet_softseg.phantom.partial_volume import Fractions, Grid, MaskBias, to_volume, voxel_fractions

DEFAULT_FOV_MM = (72.0, 72.0, 96.0)
MAX_FOV_MM = 400.0
_JITTER_MM = (1.5, 1.5, 1.0)  # how differently the operator places the contrasts of one subject
# The field of view ends at C1, and a third of it lies above C2/C3 where that is less.
_TOP_MM, _TOP_SHARE = 36.0, 1 / 3
_MASK_AREA_SD, _MASK_WOBBLE_SD_MM = 0.012, 0.06
_ANCHOR = "T2w"  # stays where the scanner's space puts it; shifts are those of the others against it
_SHIFT_PERIOD_MM = 90.0  # slower than breathing artefacts: the shear stays below 5 degrees at 3 mm
_WHITE_LEVEL = 400.0  # of white matter in a stored image, before the subject's gain
_BIAS_FIELD = 0.12  # typical coefficient of the logarithm of the bias field
_COIL = 0.25  # the spine coil lies behind the neck: fall-off of the logarithm towards anterior
# How uneven tissues are: standard deviation relative to their brightness.
_UNEVEN = dict.fromkeys(Tissue, 0.03) | {
    Tissue.MUSCLE: 0.06,
    Tissue.MARROW: 0.08,
    Tissue.FAT: 0.05,
    Tissue.CSF: 0.05,
    Tissue.WHITE: 0.015,
    Tissue.GREY: 0.015,
}
_POINTS = 11  # across a slice's thickness
_NEWTON_STEPS = 4

# The columns of a truth table, for its sidecar.
CSA_COLUMNS = {
    "slice": "index of the slice along the S-I axis of the stored array, from 0",
    "z_mm": "z of the cord's centre in the slice, scanner coordinates, mm",
    "level": "vertebral level of the cord there: 1-7 are C1-C7, 8-19 T1-T12, 20-24 L1-L5; 0 without cord",
    "csa_mm2": "true area of the cord perpendicular to its centreline, mean over the slice's thickness, mm2",
    "axial_area_mm2": "area of the cord in the plane of the slice: voxel sum x pixel area, mm2",
    "tilt_deg": "angle between the anatomical centreline and the normal of the slice, degrees",
    "apparent_tilt_deg": "the same for the centreline that the image shows, shifts included, degrees",
    "shift_rl_mm": "how far the anatomy has moved in this slice along its R-L axis, to the right, mm",
    "shift_ap_mm": "the same along its A-P axis, to anterior, mm",
}


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


def check_cords_fit(spec: PhantomSpec, n: int) -> None:
    """Raise a UserError if the cord of one of n subjects, with two voxels around it, leaves an image."""
    lacking = {}
    for number in range(1, n + 1):
        anatomy = draw_subject_anatomy(spec, number)
        for contrast in map(contrast_named, spec.contrasts):
            grid = make_grid(contrast, spec, _image_rngs(spec, number, contrast)[0])
            missing = _overhang_mm(anatomy, grid)
            if missing > 0:  # on one side; rounding to whole voxels may take half a voxel, then and now
                lacking[number, contrast.name] = 2 * missing + max(contrast.voxel_mm[:2])
    if lacking:
        number, name = max(lacking, key=lambda image: lacking[image])
        fov, longer = " x ".join(f"{extent:g}" for extent in spec.fov_mm), math.ceil(lacking[number, name])
        raise UserError(
            f"the field of view of {fov} mm (R-L x A-P x S-I) is too small for the cord of "
            f"{subject_name(number)} in {name}: make R-L and A-P at least {longer} mm longer"
        )


def _overhang_mm(anatomy: Anatomy, grid: Grid) -> float:
    """Return how far the cord and two voxels reach beyond the image in plane, in mm; negative if it fits."""
    line = centreline_in_slices(anatomy, grid)
    moved = line + grid.moves_mm
    index = np.linalg.inv(grid.affine)[:3] @ np.vstack([moved, np.ones(line.shape[1])])
    radius = float(np.max(anatomy.cord_axes(anatomy.height_mm(line[2]))))
    axes = list(grid.array_axis[:2])
    ends = np.array(grid.shape)[axes, None] - 0.5
    room = np.minimum(index[axes] + 0.5, ends - index[axes]).min(axis=1) - 2
    return float((radius - room * grid.voxel_mm[axes]).max())


# The image: tissues mixed in each voxel, blur, coil sensitivity, Rician noise


def scan(
    surroundings: Surroundings,
    contrast: Contrast,
    grid: Grid,
    fractions: Fractions | None,
    *,
    gain: float,
    rng: np.random.Generator,
) -> npt.NDArray[np.int16]:
    """Return the image on the grid; the fractions are laid over the neck, None leaves it solid.

    `gain` is that of the receiver; `rng` draws the bias field and the noise.
    """
    image = _sample_neck(surroundings, contrast, grid)
    if fractions is not None:
        _lay_over(image, surroundings, contrast, grid, fractions)
    sigma = [0.0 if contrast.axial and axis == grid.slice_axis else contrast.psf for axis in range(3)]
    image = ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3.0)
    level = gain * _WHITE_LEVEL / contrast.brightness[Tissue.WHITE]
    image *= np.float32(level) * _bias_field(grid, rng)
    noise = np.float32(gain * _WHITE_LEVEL / contrast.snr)
    real = image + noise * rng.standard_normal(image.shape, np.float32)
    imaginary = noise * rng.standard_normal(image.shape, np.float32)
    magnitude = np.clip(np.rint(np.hypot(real, imaginary)), 0, np.iinfo(np.int16).max)
    return np.asarray(magnitude, dtype=np.int16)


def _sample_neck(surroundings: Surroundings, contrast: Contrast, grid: Grid) -> npt.NDArray[np.float32]:
    """Return the neck's brightness in each voxel: blurred by a voxel's variance, then read at its centre."""
    brightness = np.array(contrast.brightness, np.float32)[surroundings.tissue]
    uneven = np.array([_UNEVEN[tissue] for tissue in Tissue], np.float32)[surroundings.tissue]
    brightness *= 1 + uneven * surroundings.texture
    sigma = np.array(contrast.voxel_mm) / np.sqrt(12) / surroundings.step_mm
    brightness = ndimage.gaussian_filter(brightness, sigma, mode="nearest", truncate=3.0)
    image = np.empty(grid.shape, np.float32)
    slices = np.moveaxis(image, grid.slice_axis, 0)
    in_plane = np.indices(slices.shape[1:]).reshape(2, -1)
    for k, plane in enumerate(slices):
        index = np.insert(in_plane, grid.slice_axis, k, axis=0)
        points = surroundings.index(grid.anatomy_mm(index))
        plane[:] = ndimage.map_coordinates(brightness, points, order=1, mode="nearest").reshape(plane.shape)
    return image


def _lay_over(
    image: npt.NDArray[np.float32],
    surroundings: Surroundings,
    contrast: Contrast,
    grid: Grid,
    shares: Fractions,
) -> None:
    """Replace what lies in the canal, by the share that each tissue has of a voxel."""
    index = np.array(np.unravel_index(shares.voxels, grid.shape))
    points = surroundings.index(grid.anatomy_mm(index))
    texture = ndimage.map_coordinates(surroundings.texture, points, order=1, mode="nearest")

    def lit(tissue: Tissue) -> npt.NDArray[np.float64]:
        light: npt.NDArray[np.float64] = texture * (_UNEVEN[tissue] * contrast.brightness[tissue])
        return light + contrast.brightness[tissue]

    flat = image.reshape(-1)
    flat[shares.voxels] = (
        (1 - shares.canal) * flat[shares.voxels]
        + (shares.canal - shares.thecal) * lit(Tissue.EPIDURAL)
        + (shares.thecal - shares.cord - shares.roots) * lit(Tissue.CSF)
        + (shares.cord - shares.grey + shares.roots) * lit(Tissue.WHITE)
        + shares.grey * lit(Tissue.GREY)
    )


def _bias_field(grid: Grid, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return a smooth positive field around 1: exp of a polynomial of degree 2 with the coil's fall-off."""
    axes = np.meshgrid(
        *(np.linspace(-1, 1, count, dtype=np.float32) for count in grid.shape), indexing="ij", sparse=True
    )
    rl, ap, si = (axes[axis] for axis in grid.array_axis)
    anterior = ap * np.sign(grid.affine[1, grid.array_axis[1]])
    draws = rng.normal(0, _BIAS_FIELD, 9)
    terms = (rl, ap, si, rl * ap, ap * si, rl * si, rl**2 - 1 / 3, ap**2 - 1 / 3, si**2 - 1 / 3)
    logarithm = sum(float(draw) * term for draw, term in zip(draws, terms, strict=True)) - _COIL * anterior
    return np.asarray(np.exp(logarithm), dtype=np.float32)


# The true area of the cord in each slice, from the geometry


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
        "z_mm": z + grid.moves_mm[2],
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
