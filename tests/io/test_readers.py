"""Images and label maps by our readers are those by nnU-Net's own."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from affines import oblique
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient

from nnunet_softseg.io.formats import NIFTI_READERS
from nnunet_softseg.io.readers import is_known, read_channels, write_label_map

OF_NNUNET = (NibabelIO, NibabelIOWithReorient, SimpleITKIO, SimpleITKIOWithReorient)


def test_the_readers_of_nifti_are_known_and_others_are_not() -> None:
    assert {reader.__name__ for reader in OF_NNUNET} == set(NIFTI_READERS)
    assert all(map(is_known, NIFTI_READERS))
    assert not is_known("NaturalImage2DIO")


def saved(file: Path, seed: int, codes: str, kind: str) -> Path:
    """A volume whose stored numbers are scaled where they are integers."""
    values = np.random.default_rng(seed).normal(100, 30, (9, 11, 7))
    image = nib.Nifti1Image(values.astype(kind), oblique(codes))
    if kind == "int16":
        image.header.set_slope_inter(0.5, 3)
    nib.save(image, file)
    return file


@pytest.mark.parametrize("reader", OF_NNUNET)
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "AIL"])
@pytest.mark.parametrize("kind", ["float32", "int16", "uint8"])
def test_channels_are_those_of_nnunets_reader_and_label_maps_go_back_as_by_it(
    tmp_path: Path, reader: type, codes: str, kind: str
) -> None:
    files = [saved(tmp_path / f"a_{channel:04d}.nii.gz", channel, codes, kind) for channel in range(2)]
    expected, known = reader().read_images([str(file) for file in files])
    found, properties = read_channels(files, reader.__name__)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    assert properties.keys() == known.keys()
    np.testing.assert_array_equal(properties["spacing"], known["spacing"])
    (key,) = properties.keys() - {"spacing"}
    assert properties[key].keys() == known[key].keys()
    for name, value in known[key].items():
        np.testing.assert_array_equal(properties[key][name], value)
    label_map = (found[0] > 100).astype(np.uint8) * 3
    reader().write_seg(label_map, str(tmp_path / "theirs.nii.gz"), known)
    write_label_map(label_map, tmp_path / "ours.nii.gz", properties)
    theirs, ours = (
        gzip.decompress((tmp_path / f"{name}.nii.gz").read_bytes()) for name in ("theirs", "ours")
    )
    assert ours == theirs


@pytest.mark.parametrize("reader", ["NibabelIO", "SimpleITKIO"])
def test_channels_on_other_grids_are_refused_and_other_places_told(
    tmp_path: Path, reader: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / f"a_{channel:04d}.nii.gz" for channel in range(3)]
    for file, shape, shift in zip(files, ((4, 5, 6), (4, 5, 7), (4, 5, 6)), (0, 0, 9), strict=True):
        affine = np.eye(4)
        affine[0, 3] = shift
        nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), affine), file)
    with pytest.raises(ValueError, match="channels of shapes"):
        read_channels(files[:2], reader)
    assert capsys.readouterr().out == ""
    read_channels([files[0], files[2]], reader)
    assert "a_0000.nii.gz, a_0002.nii.gz: the headers put them at different places" in capsys.readouterr().out
