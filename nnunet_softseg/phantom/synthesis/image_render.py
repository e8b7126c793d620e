"""From an anatomy and a plan to an image and its exact soft label, both averaged over the same points."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nnunet_softseg.phantom.anatomy import Floats
from nnunet_softseg.phantom.synthesis.image_plan import (
    Artefacts,
    ImagePlan,
    Outline,
    Placement,
    Triple,
    Voxels,
)
from nnunet_softseg.phantom.synthesis.label_anatomy import UNLABELLED, LabelAnatomy, Layer, Values

_POINT_MM, _MOST_POINTS = 0.6, 2_500_000
"""Points lie this close, or, in large fields of view, farther apart."""
_UNEVEN = 0.08  # relative SD of brightness where nothing is labelled
_TEMPLATE_REST = 1e-3  # of an image's largest value: padding of a template
# How far inside of its box a template ends: on average, at least, and the grain of it.
_EDGE_MM, _LEAST_EDGE_MM, _EDGE_GRAIN_MM = 4.5, 1.5, 12.0
_SKIN_MM = 2.0
_SQUEEZE_REACH_MM = 12.0
_LESION_EDGE = 4.0  # how steep the rim of a lesion is, relative to its radius


@dataclass(frozen=True)
class Drawn:
    """A synthetic image, int16, and the share of each voxel that is the structure, float32 in [0, 1]."""

    image: npt.NDArray[np.int16]
    share: Values
    affine: Floats


def render(anatomy: LabelAnatomy, plan: ImagePlan) -> Drawn:
    """Return the image of an anatomy that a plan describes; the same bytes every time."""
    fields, noise = (np.random.default_rng([plan.seed, purpose]) for purpose in range(2))
    points = _Points.of(plan.voxels)
    scene = _Scene(anatomy, plan, points, _to_anatomy(anatomy, plan.placement, points, fields), fields)
    brightness, share = scene.paint()
    image = _scan(points.averaged(brightness), plan.voxels, plan.artefacts, noise)
    image = np.clip(np.rint(image * plan.artefacts.gain), 0, np.iinfo(np.int16).max)
    return Drawn(image.astype(np.int16), np.clip(points.averaged(share), 0, 1), plan.voxels.affine)


@dataclass(frozen=True)
class _Points:
    """Points within the voxels: coordinates along each axis in mm, and how many a voxel has."""

    voxels: Voxels
    parts: tuple[int, ...]
    axes: tuple[Values, ...]

    @classmethod
    def of(cls, voxels: Voxels) -> "_Points":
        seen = np.prod(voxels.shape) * np.prod(voxels.slab_mm)
        step = max(_POINT_MM, float(np.cbrt(seen / _MOST_POINTS)))
        parts = [max(1, int(np.ceil(slab / step - 0.2))) for slab in voxels.slab_mm]
        axes = []
        for count, part, size, slab in zip(voxels.shape, parts, voxels.voxel_mm, voxels.slab_mm, strict=True):
            within = ((np.arange(part) + 0.5) / part - 0.5) * slab
            centres = (np.arange(count) - (count - 1) / 2) * size
            axes.append((centres[:, None] + within).ravel().astype(np.float32))
        return cls(voxels, tuple(parts), tuple(axes))

    def averaged(self, values: Values) -> Values:
        """Return the mean of values at the points, over those of each voxel."""
        (a, b, c), (i, j, k) = self.voxels.shape, self.parts
        return np.asarray(values.reshape(a, i, b, j, c, k).mean(axis=(1, 3, 5), dtype=np.float32))

    def field(self, grain_mm: Triple, rng: np.random.Generator) -> Values:
        """Return a smooth random field of SD 1 at the points, of a grain along each axis in mm."""
        matrices = []
        for places, grain in zip(self.axes, grain_mm, strict=True):
            at = (places - places[0]) / grain
            knots = np.arange(-1, int(at[-1]) + 3)
            matrices.append(_cubic(at[:, None] - knots).astype(np.float32))
        values = rng.standard_normal([matrix.shape[1] for matrix in matrices]).astype(np.float32)
        for axis, matrix in enumerate(matrices):
            values = np.moveaxis(np.tensordot(matrix, values, (1, axis)), 0, axis)
        return np.ascontiguousarray(values / max(float(values[::3, ::3, ::3].std()), 1e-6))


def _cubic(distance: npt.NDArray[np.floating]) -> Floats:
    """Return the cubic B-spline at these distances from its middle."""
    d = np.abs(distance)
    return np.asarray(np.where(d < 1, 2 / 3 - d**2 + d**3 / 2, np.clip(2 - d, 0, None) ** 3 / 6))


def _to_anatomy(anatomy: LabelAnatomy, place: Placement, points: _Points, rng: np.random.Generator) -> Values:
    """Return where the points lie in the anatomy, (3, N) in mm."""
    grid = np.stack(np.meshgrid(*points.axes, indexing="ij")).reshape(3, -1)
    at = (_rotation(place.angles_deg) / np.array(place.scale)).astype(np.float32) @ grid
    wave = np.sin(2 * np.pi * grid[2] / place.bend_period_mm + place.bend_phase) - np.sin(place.bend_phase)
    for axis in (0, 1):
        at[axis] += np.float32(place.bend_mm[axis]) * wave
    if place.elastic_mm > 0:
        for axis in range(3):
            at[axis] += place.elastic_mm * points.field((place.elastic_grain_mm,) * 3, rng).ravel()
    at += np.array(place.centre_mm, np.float32)[:, None]
    if place.squeeze > 0:
        middle = anatomy.centre_at(at[2])[:, 1].astype(np.float32)
        off = at[1] - middle
        near = np.exp(-(((at[2] - place.squeeze_at_mm) / place.squeeze_length_mm) ** 2))
        at[1] += off * place.squeeze * near * np.exp(-((off / _SQUEEZE_REACH_MM) ** 2))
    return np.asarray(at, np.float32)


def _rotation(angles_deg: Triple) -> Floats:
    """Return the rotation about R-L, then A-P, then S-I."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(angles_deg)):
        turn = np.eye(3)
        i, j = [other for other in range(3) if other != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


@dataclass(frozen=True)
class _Scene:
    """What is at each point: `at` (3, N), where it lies in the anatomy, in mm."""

    anatomy: LabelAnatomy
    plan: ImagePlan
    points: _Points
    at: Values
    rng: np.random.Generator

    def paint(self) -> tuple[Values, Values]:
        """Return brightness and share of the structure at each point, (N,)."""
        plan, palette = self.plan, self.plan.palette
        texture = self.points.field(palette.texture_mm, self.rng).ravel()
        blobs = self._blobs()
        brightness, share = blobs * (1 + _UNEVEN * texture), np.zeros(self.at.shape[1], np.float32)
        if plan.removed != "anatomy":
            self._lay_tissues(brightness, texture, share)
        if plan.outline is not None:
            _outline(brightness, self.at, plan.outline, texture)
        if plan.removed != "anatomy" and self.anatomy.layers:
            self._lay_layers(brightness, texture, share, blobs)
        for lesion in plan.lesions if plan.removed == "nothing" else ():
            off = (self.at - np.array(lesion.centre_mm)[:, None]) / np.array(lesion.radii_mm)[:, None]
            inside = np.clip(0.5 + _LESION_EDGE * (1 - np.sqrt((off**2).sum(axis=0))), 0, 1) * share
            brightness += inside.astype(np.float32) * (np.float32(lesion.brightness) - brightness)
        return brightness, share

    def _blobs(self) -> Values:
        """Return brightness of random tissues, each where its own smooth field is the largest."""
        best = self.points.field(self.plan.blob_mm, self.rng)
        brightness = np.full(best.shape, self.plan.palette.blobs[0], np.float32)
        for value in self.plan.palette.blobs[1:]:
            other = self.points.field(self.plan.blob_mm, self.rng)
            brightness[other > best] = value
            np.maximum(best, other, out=best)
        return brightness.ravel()

    def _lay_tissues(self, brightness: Values, texture: Values, share: Values) -> None:
        """Paint the classes of the anatomy's image, then its tissues, over the blobs."""
        anatomy, palette = self.anatomy, self.plan.palette
        tissue = anatomy.tissues.sample(self.at, linear=False).astype(np.int64)
        inside = np.isin(tissue, () if anatomy.layers else anatomy.structure)
        shown = self.plan.removed == "nothing"
        if anatomy.image is not None and self.plan.use_image:
            seen = anatomy.image.sample(self.at)
            classes = anatomy.brightness_classes
            known = seen > _TEMPLATE_REST * float(classes[-1])
            # An irregular end: a straight one would show where the template ends.
            irregular = self.points.field((_EDGE_GRAIN_MM,) * 3, self.rng).ravel()
            ends = np.maximum(_LEAST_EDGE_MM, _EDGE_MM * (1 + irregular))
            known &= (anatomy.depth_in_image_mm(self.at) > ends) & (shown | ~inside)
            of_class = np.interp(seen[known], classes, palette.classes[: len(classes)])
            brightness[known] = of_class * (1 + 0.5 * _UNEVEN * texture[known])
        mean, uneven = np.zeros((2, int(tissue.max(initial=0)) + 1), np.float32)
        for value in anatomy.values:
            if value < mean.size:
                mean[value], uneven[value] = palette.mean[value], palette.uneven[value]
        known = (tissue != UNLABELLED) & (shown | ~inside)
        share[:] = inside & shown
        brightness[known] = (mean[tissue] * (1 + uneven[tissue] * texture))[known]

    def _lay_layers(self, brightness: Values, texture: Values, share: Values, blobs: Values) -> None:
        """Lay nested shares over what is there, each within the one before it."""
        near = np.flatnonzero(self._is_near())
        if not near.size:
            return
        at, grain, palette = self.at[:, near], texture[near], self.plan.palette
        below: Values = brightness[near]
        mixed = below.copy()
        for layer in self._layers():
            part = layer.share.sample(at)
            light = palette.mean[layer.tissue] * (1 + palette.uneven[layer.tissue] * grain)
            if self.plan.removed == "structure":
                light = blobs[near]
            mixed += part * (light - below)
            below = np.asarray(light, np.float32)
            if layer.tissue in self.anatomy.structure[:1] and self.plan.removed == "nothing":
                share[near] = part
        brightness[near] = mixed

    def _layers(self) -> tuple[Layer, ...]:
        """Return the layers that the image shows; of one without the structure, those around it."""
        layers, removed = self.anatomy.layers, self.plan.removed
        if removed == "nothing":
            return layers
        if removed == "structure":
            return layers[:1]
        at = [layer.tissue for layer in layers].index(self.anatomy.structure[0])
        return layers[: max(1, at)]

    def _is_near(self) -> npt.NDArray[np.bool_]:
        """Return which points may lie in a layer."""
        heights = np.arange(float(self.at[2].min()), float(self.at[2].max()) + 1.0, 0.5)
        centres = self.anatomy.centre_at(heights)
        x, y = (np.interp(self.at[2], heights, centres[:, axis]) for axis in (0, 1))
        return np.asarray((self.at[0] - x) ** 2 + (self.at[1] - y) ** 2 < self.anatomy.reach_mm**2)


def _outline(brightness: Values, at: Values, outline: Outline, texture: Values) -> None:
    """Paint fat, skin and air where the body ends."""
    radius = np.hypot(*((at[axis] - outline.centre_mm[axis]) / outline.radii_mm[axis] for axis in (0, 1)))
    beyond = (radius - 1) * np.mean(outline.radii_mm) + 0.8 * texture
    air, skin, fat = outline.brightness
    brightness[beyond > -outline.fat_mm - _SKIN_MM] = fat
    brightness[beyond > -_SKIN_MM] = skin
    brightness[beyond > 0] = air


# The scanner


def _scan(image: Values, voxels: Voxels, faults: Artefacts, rng: np.random.Generator) -> Values:
    """Return the image with void, bias, blur, ghost, brightness by slice, gamma and noise."""
    image = image * _metal(voxels, faults)
    image *= np.exp(faults.bias * _receiver(image.shape, rng))
    if any(faults.blur):
        image = ndimage.gaussian_filter(image, faults.blur, mode="nearest", truncate=3.0)
    image = np.clip(image, 0, None)
    if faults.gamma != 1.0:
        top = max(float(np.quantile(image, 0.99)), 1e-6)
        image = top * (image / top) ** faults.gamma
    if faults.ghost > 0:
        shift = round(faults.ghost_shift * image.shape[faults.ghost_axis])
        image = image + faults.ghost * np.roll(image, shift, faults.ghost_axis)
    if faults.slices > 0:
        shape = [-1 if axis == faults.slice_axis else 1 for axis in range(3)]
        factors = np.exp(faults.slices * rng.standard_normal(image.shape[faults.slice_axis]))
        image = image * factors.reshape(shape)
    if faults.snr > 0:
        real, imaginary = 0.5 / faults.snr * rng.standard_normal((2, *image.shape))
        image = np.hypot(image + real, imaginary)
    return np.asarray(image, np.float32)


def _receiver(shape: tuple[int, ...], rng: np.random.Generator) -> Values:
    """Return a smooth field of SD 1, a polynomial of degree 2 along the axes."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    x, y, z = axes
    terms = (x, y, z, x * y, y * z, x * z, x**2, y**2, z**2)
    field = np.zeros(shape, np.float32)
    for draw, term in zip(rng.standard_normal(9), terms, strict=True):
        field += np.float32(draw) * term
    return np.asarray((field - field.mean()) / max(float(field.std()), 1e-6), np.float32)


def _metal(voxels: Voxels, faults: Artefacts) -> Values | float:
    """Return a factor: 0 in a void by metal, more than 1 at its rim, where the signal has piled up."""
    if faults.void_mm <= 0:
        return 1.0
    off = [
        ((np.arange(n) - (n - 1) / 2) * size - at).astype(np.float32)
        for n, size, at in zip(voxels.shape, voxels.voxel_mm, faults.void_at_mm, strict=True)
    ]
    x, y, z = np.meshgrid(*off, indexing="ij", sparse=True)
    radius = np.sqrt(x**2 + (0.8 * y) ** 2 + (0.7 * z) ** 2) / faults.void_mm
    void = 1 / (1 + np.exp(-(radius - 1) * 8))
    return np.asarray(void * (1 + 0.8 * np.exp(-(((radius - 1.25) / 0.15) ** 2))), np.float32)
