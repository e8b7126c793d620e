"""One image as a scanner would make it: tissues mixed in each voxel, blur, coil sensitivity, Rician noise."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nnunet_softseg.phantom.contrasts import Contrast, Tissue
from nnunet_softseg.phantom.grid import Grid
from nnunet_softseg.phantom.neck import Surroundings
from nnunet_softseg.phantom.partial_volume import Fractions

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

Volume = npt.NDArray[np.float32]


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
        _lay_over(image, surroundings, contrast, (grid, fractions))
    sigma = [0.0 if contrast.axial and axis == grid.slice_axis else contrast.psf for axis in range(3)]
    image = ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3.0)
    level = gain * _WHITE_LEVEL / contrast.brightness[Tissue.WHITE]
    image *= np.float32(level) * _bias_field(grid, rng)
    noise = np.float32(gain * _WHITE_LEVEL / contrast.snr)
    real = image + noise * rng.standard_normal(image.shape, np.float32)
    imaginary = noise * rng.standard_normal(image.shape, np.float32)
    magnitude = np.clip(np.rint(np.hypot(real, imaginary)), 0, np.iinfo(np.int16).max)
    return np.asarray(magnitude, dtype=np.int16)


def _sample_neck(surroundings: Surroundings, contrast: Contrast, grid: Grid) -> Volume:
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
        points = surroundings.index(grid.anatomy_mm(index.astype(float), index[grid.slice_axis]))
        plane[:] = ndimage.map_coordinates(brightness, points, order=1, mode="nearest").reshape(plane.shape)
    return image


def _lay_over(
    image: Volume, surroundings: Surroundings, contrast: Contrast, inside: tuple[Grid, Fractions]
) -> None:
    """Replace what lies in the canal, by the share that each tissue has of a voxel."""
    grid, shares = inside
    index = np.array(np.unravel_index(shares.voxels, grid.shape))
    points = surroundings.index(grid.anatomy_mm(index.astype(float), index[grid.slice_axis]))
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


def _bias_field(grid: Grid, rng: np.random.Generator) -> Volume:
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
