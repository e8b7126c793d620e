"""Areas of shapes whose area is known."""

import nibabel as nib
import numpy as np
import pytest

from nnunet_softseg.morphometry import slice_areas


def cylinder(
    spacing: tuple[float, float, float], codes: str = "RAS", radius_mm: float = 4.0
) -> nib.Nifti1Image:
    """A straight cylinder along S-I with finely supersampled voxel fractions."""
    shape = [int(np.ceil(size / step)) for size, step in zip((24, 22, 20), spacing, strict=True)]
    fine = 10
    x = (np.arange(shape[0] * fine) + 0.5) * spacing[0] / fine - 12.1
    y = (np.arange(shape[1] * fine) + 0.5) * spacing[1] / fine - 11.3
    inside = (x[:, None] ** 2 + y[None] ** 2 < radius_mm**2).astype(np.float32)
    plane = inside.reshape(shape[0], fine, shape[1], fine).mean(axis=(1, 3))
    volume = np.repeat(plane[:, :, None], shape[2], axis=2)
    volume[:, :, -1] = 0
    image = nib.Nifti1Image(volume, np.diag([*spacing, 1.0]))
    return image.as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
        )
    )


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.5, 3.0), (0.9, 0.9, 5.0)])
@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "PSR", "IRP"])
def test_cylinder_in_any_orientation(spacing: tuple[float, float, float], codes: str) -> None:
    areas = slice_areas(cylinder(spacing, codes))
    assert np.isnan(areas.area_mm2[-1])  # the empty slice is the superior one, whichever way the file runs
    np.testing.assert_allclose(areas.area_mm2[:-1], np.pi * 16, rtol=0.005)
    np.testing.assert_allclose(np.diff(areas.height_mm), spacing[2])


def test_area_is_linear_in_the_map() -> None:
    image = cylinder((1.0, 1.0, 1.0))
    weaker = nib.Nifti1Image(0.6 * image.get_fdata(dtype=np.float32), image.affine)
    np.testing.assert_allclose(
        slice_areas(weaker).area_mm2[:-1], 0.6 * slice_areas(image).area_mm2[:-1], rtol=1e-6
    )


def test_mean_between_heights_passes_empty_slices_over() -> None:
    areas = slice_areas(cylinder((1.0, 1.0, 1.0)))
    assert areas.mean_between(15, 25) == pytest.approx(np.pi * 16, rel=0.005)
    assert np.isnan(areas.mean_between(18.5, 25))
    assert np.isnan(areas.mean_between(100, 200))


def test_four_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="three axes, got 4"):
        slice_areas(nib.Nifti1Image(np.zeros((2, 2, 2, 2), np.float32), np.eye(4)))
