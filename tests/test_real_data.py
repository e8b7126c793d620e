"""Real images, oblique ones among them: from file through nnU-Net's readers and back, voxel by voxel."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient

from nnunet_softseg.datasets.raw_dataset import hard_label_map
from nnunet_softseg.datasets.soft_label import read_soft_label, write_soft_label
from nnunet_softseg.inference.export import soft_nifti
from nnunet_softseg.io.geometry import array_orientation

READERS = [NibabelIO, NibabelIOWithReorient, SimpleITKIO, SimpleITKIOWithReorient]


def images(real_data: Path) -> list[Path]:
    found = sorted((real_data / "bids").glob("sub-*/anat/*.nii.gz"))
    assert len(found) == 6
    return found


def mask_of(image: Path) -> Path:
    name = image.name.replace(".nii.gz", "_seg-manual.nii.gz")
    return image.parents[2] / "derivatives" / "labels" / image.parents[1].name / "anat" / name


@pytest.mark.parametrize("reader", READERS)
def test_a_soft_map_lies_on_its_image(real_data: Path, reader: type) -> None:
    for file in images(real_data):
        source = nib.load(file)
        array, properties = reader().read_images([str(file)])
        soft = soft_nifti(array[0], properties, str(file))
        np.testing.assert_allclose(np.asarray(soft.dataobj), source.get_fdata(), rtol=1e-6)
        np.testing.assert_array_equal(soft.affine, source.affine)
        for field in ("pixdim", "qform_code", "sform_code", "srow_x", "quatern_b", "xyzt_units"):
            np.testing.assert_array_equal(soft.header[field], source.header[field])


def test_all_images_can_be_brought_to_one_orientation(real_data: Path) -> None:
    found = set()
    for file in images(real_data):
        _, properties = NibabelIOWithReorient().read_images([str(file)])
        found.add(array_orientation(properties, (0, 1, 2)))
    assert found == {"SAR"}


def test_masks_become_soft_labels_and_come_back(real_data: Path, tmp_path: Path) -> None:
    """A weighted mask, written on an image's grid and read by each reader, keeps its values and its sum."""
    for file in images(real_data):
        mask = nib.load(mask_of(file)).get_fdata(dtype=np.float32).clip(0, 1)
        soft_label = tmp_path / f"{file.name[:-7]}_0001.nii.gz"
        write_soft_label(soft_label, 0.37 * mask, file)
        for reader in READERS:
            read, _ = read_soft_label(soft_label, reader())
            assert read.sum(dtype=np.float64) == pytest.approx(0.37 * mask.sum(dtype=np.float64), rel=1e-6)
            assert not hard_label_map([read], [(0, 1)]).any()  # nothing exceeds a half
