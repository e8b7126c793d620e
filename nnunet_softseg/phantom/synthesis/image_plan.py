"""What is random of a synthetic image: voxels, place, deformation, brightness of tissues, artefacts.

An `ImagePlan` holds all draws; `image_render` makes the same image of it every time.
"""

# ruff: noqa: PLR2004 - the numbers are the ranges that values are drawn from

from dataclasses import dataclass, field

import numpy as np

from nnunet_softseg.phantom.anatomy import Floats
from nnunet_softseg.phantom.synthesis.label_anatomy import CLASSES, LabelAnatomy

Triple = tuple[float, ...]
"""One number each for R-L, A-P, S-I."""
BLOB_TISSUES = 9
"""Brightness of this many tissues fills what no label, image or outline says."""


@dataclass(frozen=True)
class Voxels:
    """Grid of an image, upright: R-L, A-P, S-I. `slab_mm` is what of a voxel is seen: less leaves gaps."""

    shape: tuple[int, ...]
    voxel_mm: Triple
    slab_mm: Triple

    @property
    def affine(self) -> Floats:
        """Index to RAS+ mm of the image, (4, 4), whose origin is its centre."""
        affine = np.diag([*self.voxel_mm, 1.0])
        affine[:3, 3] = -(np.array(self.shape) - 1) / 2 * self.voxel_mm
        return affine


@dataclass(frozen=True)
class Placement:
    """How points of the image lie in the anatomy.

    Attributes:
        centre_mm: point of the anatomy in the middle of the image.
        angles_deg: rotation about R-L, A-P, S-I.
        scale: size of the anatomy in the image, along R-L, A-P, S-I.
        bend_mm: amplitude of a wave along S-I, to the right and anterior; `bend_period_mm`, `bend_phase`.
        elastic_mm: SD of a smooth random displacement, of a grain of `elastic_grain_mm`.
        squeeze: how much thinner the structure is from front to back where it is compressed; 0: nowhere.
        squeeze_at_mm: height in the anatomy; `squeeze_length_mm` along it.
    """

    centre_mm: Triple = (0.0, 0.0, 0.0)
    angles_deg: Triple = (0.0, 0.0, 0.0)
    scale: Triple = (1.0, 1.0, 1.0)
    bend_mm: tuple[float, float] = (0.0, 0.0)
    bend_period_mm: float = 120.0
    bend_phase: float = 0.0
    elastic_mm: float = 0.0
    elastic_grain_mm: float = 30.0
    squeeze: float = 0.0
    squeeze_at_mm: float = 0.0
    squeeze_length_mm: float = 8.0


@dataclass(frozen=True)
class Lesion:
    """An ellipsoid within the structure: another brightness, the same label. Centre and radii in mm."""

    centre_mm: Triple
    radii_mm: Triple
    brightness: float


@dataclass(frozen=True)
class Outline:
    """The surface of the body: an ellipse in the axial plane, with skin and fat, and air around it; in mm."""

    centre_mm: tuple[float, float]
    radii_mm: tuple[float, ...]
    fat_mm: float
    brightness: tuple[float, float, float]
    """Of air, skin, fat."""


@dataclass(frozen=True)
class Palette:
    """Brightness, around [0, 1].

    Attributes:
        mean: of each tissue value.
        uneven: relative SD within each tissue value.
        classes: of the classes of the anatomy's image.
        blobs: of the tissues that fill what is unknown.
        texture_mm: grain of what is uneven, along R-L, A-P, S-I.
    """

    mean: dict[int, float]
    uneven: dict[int, float]
    classes: tuple[float, ...] = ()
    blobs: tuple[float, ...] = (0.5,)
    texture_mm: Triple = (2.0, 2.0, 4.0)


@dataclass(frozen=True)
class Artefacts:
    """What the scanner does; the defaults do nothing.

    Attributes:
        blur: SD of the point spread function in voxels, along the array axes.
        bias: SD of the logarithm of the receiver's field.
        ghost: strength of a ghost; `ghost_axis`, and how far it is shifted, in fractions of the axis.
        slices: relative SD of the brightness from slice to slice; `slice_axis`.
        gamma: exponent of the brightness.
        void_mm: radius of a void by metal, in mm; 0: none. `void_at_mm`: from the middle of the image.
        snr: brightness of 0.5 over the noise's SD; 0: no noise.
        gain: what 1 is stored as.
    """

    blur: Triple = (0.0, 0.0, 0.0)
    bias: float = 0.0
    ghost: float = 0.0
    ghost_axis: int = 1
    ghost_shift: float = 0.5
    slices: float = 0.0
    slice_axis: int = 2
    gamma: float = 1.0
    void_mm: float = 0.0
    void_at_mm: Triple = (0.0, 0.0, 0.0)
    snr: float = 0.0
    gain: float = 1000.0


@dataclass(frozen=True)
class ImagePlan:
    """All that decides an image of an anatomy.

    Attributes:
        removed: nothing; "structure": it holds what lies around it, or blobs; "anatomy": blobs everywhere.
            The label is then empty.
        use_image: the classes of the anatomy's image, rather than blobs alone, fill what is unlabelled.
        blob_mm: grain of the blobs.
        seed: of all random fields.
    """

    voxels: Voxels
    palette: Palette
    placement: Placement = field(default_factory=Placement)
    artefacts: Artefacts = field(default_factory=Artefacts)
    lesions: tuple[Lesion, ...] = ()
    outline: Outline | None = None
    removed: str = "nothing"
    use_image: bool = True
    blob_mm: Triple = (12.0, 12.0, 12.0)
    seed: int = 0


def draw_plan(anatomy: LabelAnatomy, rng: np.random.Generator, *, without: float = 0.15) -> ImagePlan:
    """Return the plan of a random image of an anatomy; `without`: share of images without the structure."""
    voxels = draw_voxels(rng)
    placement = draw_placement(anatomy, rng)
    palette = draw_palette(anatomy, rng)
    removed = "nothing"
    if rng.random() < without:
        removed = str(rng.choice(["structure", "filled", "anatomy"]))
    return ImagePlan(
        voxels,
        palette,
        placement,
        draw_artefacts(voxels, rng),
        _draw_lesions(anatomy, placement, palette, rng) if rng.random() < 0.25 else (),
        _draw_outline(anatomy, placement, rng) if rng.random() < 0.45 else None,
        removed,
        bool(rng.random() < 0.75),
        tuple(map(float, np.exp(rng.uniform(np.log(5), np.log(22))) * rng.uniform(0.7, 1.6, 3))),
        int(rng.integers(2**31)),
    )


# Voxels


def draw_voxels(rng: np.random.Generator) -> Voxels:
    """Return a random grid: isotropic, or slices across S-I, R-L or A-P, with or without gaps."""
    kind = rng.choice(["isotropic", "axial", "sagittal", "coronal"], p=[0.35, 0.42, 0.18, 0.05])
    size = np.full(3, rng.uniform(0.75, 1.1))
    slab = size.copy()
    if kind != "isotropic":
        axis = {"axial": 2, "sagittal": 0, "coronal": 1}[str(kind)]
        size[:] = np.exp(rng.uniform(np.log(0.4), np.log(1.0)))
        longest = 8.0 if kind == "axial" else 5.0
        size[axis] = rng.uniform(1.0, longest) if rng.random() < 0.92 else rng.uniform(8.0, 16.0)
        slab = size.copy()
        if rng.random() < 0.4 or size[axis] > 8:
            slab[axis] = max(0.8, min(8.0, size[axis] * rng.uniform(0.5, 0.95)))
    field_mm = np.array([rng.uniform(44, 104), rng.uniform(44, 104), rng.uniform(48, 120)])
    if kind == "axial" and rng.random() < 0.5:
        field_mm[2] = max(rng.uniform(24, 60), 4 * size[2])
    shape = np.maximum(np.round(field_mm / size), 4).astype(int)
    return Voxels(tuple(map(int, shape)), tuple(map(float, size)), tuple(map(float, slab)))


# Place and shape


def draw_placement(anatomy: LabelAnatomy, rng: np.random.Generator) -> Placement:
    """Return a random part of the anatomy, turned, bent, compressed, mostly near the middle of the image."""
    line = anatomy.centreline
    low, high = line[0, 2], line[-1, 2]
    # Two in three in the upper quarter of a long structure: of cords, mostly necks are imaged.
    if high - low > 250 and rng.random() < 0.65:
        low = high - 170
    margin = min(15.0, (high - low) / 4)
    z = float(rng.uniform(low + margin, high - margin))
    x, y, _ = anatomy.centre_at(np.array([z]))[0]
    off = rng.normal(0, 5, 2) if rng.random() < 0.75 else rng.uniform(-28, 28, 2)
    squeeze = float(rng.uniform(0.2, 1.2)) if rng.random() < 0.2 else 0.0
    return Placement(
        centre_mm=(float(x + off[0]), float(y + off[1]), z),
        angles_deg=tuple(map(float, rng.normal(0, 1, 3) * (9, 5, 6))),
        scale=tuple(map(float, np.exp(rng.normal(0, 0.06)) * np.exp(rng.normal(0, 0.06, 3)))),
        bend_mm=(float(rng.normal(0, 1.2)), float(rng.normal(0, 3.5))),
        bend_period_mm=float(rng.uniform(80, 180)),
        bend_phase=float(rng.uniform(0, 2 * np.pi)),
        elastic_mm=float(rng.uniform(0, 1.2)),
        elastic_grain_mm=float(rng.uniform(18, 40)),
        squeeze=squeeze,
        squeeze_at_mm=z + float(rng.uniform(-30, 30)),
        squeeze_length_mm=float(rng.uniform(4, 14)),
    )


def _draw_lesions(
    anatomy: LabelAnatomy, placement: Placement, palette: Palette, rng: np.random.Generator
) -> tuple[Lesion, ...]:
    lesions = []
    around = np.mean([palette.mean[value] for value in anatomy.structure])
    bright = float(np.clip(around + rng.choice([-1, 1]) * rng.uniform(0.1, 0.5), 0.02, 1.1))
    for _ in range(int(rng.integers(1, 4))):
        z = placement.centre_mm[2] + rng.uniform(-40, 40)
        x, y, _ = anatomy.centre_at(np.array([z]))[0]
        centre = (float(x + rng.normal(0, 2)), float(y + rng.normal(0, 1.5)), float(z))
        radii = tuple(map(float, [rng.uniform(1, 4.5), rng.uniform(1, 4), rng.uniform(2, 12)]))
        lesions.append(Lesion(centre, radii, bright))
    return tuple(lesions)


def _draw_outline(anatomy: LabelAnatomy, placement: Placement, rng: np.random.Generator) -> Outline:
    x, y, _ = anatomy.centre_at(np.array([placement.centre_mm[2]]))[0]
    radii = rng.uniform(45, 75), rng.uniform(40, 70)
    # The structure lies in the back half of a neck.
    centre = (float(x + rng.normal(0, 4)), float(y + rng.uniform(-0.1, 0.45) * radii[1]))
    brightness = (0.01, float(rng.uniform(0.1, 0.7)), float(rng.uniform(0.1, 1.1)))
    return Outline(centre, tuple(map(float, radii)), float(rng.uniform(2, 14)), brightness)


# Brightness


def draw_palette(anatomy: LabelAnatomy, rng: np.random.Generator) -> Palette:
    """Return random brightness: near that of an acquired contrast where there are some, or anything."""
    values = anatomy.values
    mean = {value: float(rng.uniform(0.03, 1.0)) for value in values}
    if anatomy.contrasts and rng.random() < 0.45:
        known = anatomy.contrasts[int(rng.integers(len(anatomy.contrasts)))]
        jitter = rng.uniform(0.1, 0.35)
        for value in values:
            if value in known:
                mean[value] = float(known[value] * np.exp(rng.normal(0, jitter)))
    _tell_structure_apart(anatomy, mean, rng)
    uneven = {value: float(rng.uniform(0.0, 0.12)) for value in values}
    for value in anatomy.structure:
        uneven[value] *= 0.6
    classes, blobs = (rng.uniform(0.02, 1.0, n) for n in (CLASSES, BLOB_TISSUES))
    if rng.random() < 0.4:  # rising or falling with the template's brightness, as in its own contrast
        classes = np.sort(classes)[:: int(rng.choice([-1, 1]))]
    texture = tuple(map(float, rng.uniform(1.2, 4.0, 3)))
    return Palette(mean, uneven, tuple(map(float, classes)), tuple(map(float, blobs)), texture)


def _tell_structure_apart(anatomy: LabelAnatomy, mean: dict[int, float], rng: np.random.Generator) -> None:
    """Give the tissues of the structure a like brightness, and the layer around it another."""
    tissues = [layer.tissue for layer in anatomy.layers] or anatomy.structure
    at = tissues.index(anatomy.structure[0])
    first, *others = tissues[at:]  # a layer holds those after it
    mean[first] = float(np.clip(mean[first], 0.12, 0.95))
    for value in others:
        mean[value] = mean[first] * float(np.exp(rng.normal(0, 0.12)))
    around = tissues[at - 1]
    if at and abs(mean[around] - mean[first]) < 0.16 and rng.random() < 0.92:
        step = float(rng.uniform(0.16, 0.7))
        brighter = mean[first] + step
        mean[around] = brighter if mean[first] < 0.2 or rng.random() < 0.5 else max(0.02, mean[first] - step)


# The scanner


def draw_artefacts(voxels: Voxels, rng: np.random.Generator) -> Artefacts:
    """Return random faults of the acquisition: most images are good, few have a strong ghost or a void."""
    thick = int(np.argmax(voxels.voxel_mm))
    blur = np.full(3, rng.uniform(0.25, 0.75))
    if voxels.voxel_mm[thick] > 1.5 * min(voxels.voxel_mm):
        blur[thick] = 0.0
        blur[[axis for axis in range(3) if axis != thick]] *= rng.uniform(1.0, 1.7)
    in_plane = [axis for axis in range(3) if axis != thick]
    return Artefacts(
        blur=tuple(map(float, blur)),
        bias=float(rng.uniform(0.0, 0.3)),
        ghost=float(rng.uniform(0.02, 0.2)) if rng.random() < 0.25 else 0.0,
        ghost_axis=int(rng.choice(in_plane)),
        ghost_shift=float(rng.choice([0.5, rng.uniform(0.1, 0.5)])),
        slices=float(rng.uniform(0, 0.08)) if rng.random() < 0.4 else 0.0,
        slice_axis=thick,
        gamma=float(np.exp(rng.normal(0, 0.25))),
        void_mm=float(rng.uniform(4, 14)) if rng.random() < 0.06 else 0.0,
        void_at_mm=tuple(map(float, rng.uniform(-30, 30, 3))),
        snr=float(np.exp(rng.uniform(np.log(6), np.log(60)))),
        gain=float(np.exp(rng.uniform(np.log(100), np.log(4000)))),
    )
