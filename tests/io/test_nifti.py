"""A NIfTI file is opened, or the user is told in one line which file is wrong."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from nnunet_softseg.errors import UserError, short_name
from nnunet_softseg.io.nifti import file_findings, load_nifti, read_values

AFFINE = np.diag([0.5, 1.0, 3.0, 1.0])
VALUES = np.linspace(0, 1, 60, dtype=np.float32).reshape(5, 4, 3)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_values_and_affine_come_back(
    kind: type[nib.Nifti1Image] | type[nib.Nifti2Image], ending: str, tmp_path: Path
) -> None:
    kind(VALUES, AFFINE).to_filename(tmp_path / f"map{ending}")
    opened = load_nifti(tmp_path / f"map{ending}")
    np.testing.assert_array_equal(opened.get_fdata(dtype=np.float32), VALUES)
    np.testing.assert_array_equal(opened.affine, AFFINE)


def nothing(file: Path) -> None:
    assert not file.exists()


def text(file: Path) -> None:
    file.write_text("not an image")


def empty(file: Path) -> None:
    file.touch()


def cut_header(file: Path) -> None:
    nib.Nifti1Image(VALUES, AFFINE).to_filename(file.with_name("whole.nii"))
    file.write_bytes(file.with_name("whole.nii").read_bytes()[:200])


def other_format(file: Path) -> None:
    nib.MGHImage(VALUES, AFFINE).to_filename(file.with_name("map.mgh"))
    file.write_bytes(file.with_name("map.mgh").read_bytes())


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("make", [nothing, text, empty, cut_header, other_format])
def test_what_is_no_nifti_is_a_user_error(make: Callable[[Path], None], ending: str, tmp_path: Path) -> None:
    file = tmp_path / "labels" / f"sub-01{ending}"
    file.parent.mkdir()
    make(file)
    with pytest.raises(
        UserError, match=f"^labels/sub-01{ending}: cannot be opened: expected a NIfTI file"
    ) as told:
        load_nifti(file)
    assert "\n" not in str(told.value)
    assert str(told.value).endswith("check the path") == (make is nothing)


def test_a_link_to_nowhere_is_told_as_one(tmp_path: Path) -> None:
    """git-annex leaves such links where the content was not fetched."""
    file = tmp_path / "sub-01.nii.gz"
    file.symlink_to(tmp_path / "absent")
    with pytest.raises(UserError, match=r"cannot be opened: .*, found a broken link: .*git annex get"):
        load_nifti(file)


def test_another_image_format_is_a_user_error(tmp_path: Path) -> None:
    nib.MGHImage(VALUES, AFFINE).to_filename(tmp_path / "sub-01.mgh")
    with pytest.raises(UserError, match="found MGHImage"):
        load_nifti(tmp_path / "sub-01.mgh")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_header_that_promises_more_than_its_file_can_hold_is_refused(ending: str, tmp_path: Path) -> None:
    """377 bytes that ask for 108 TB: no voxel is asked for."""
    header = nib.Nifti1Image(VALUES, AFFINE).header
    header.set_data_shape((30000, 30000, 30000))
    header["vox_offset"] = 352
    content = header.binaryblock + bytes(4)
    file = tmp_path / f"sub-01{ending}"
    file.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
    with pytest.raises(UserError, match="truncated data: expected 108000000000352 bytes by its header"):
        load_nifti(file)


def test_zeros_are_compressed_as_much_as_gzip_can(tmp_path: Path) -> None:
    """The bound of what a file can hold refuses none that holds it."""
    nib.openers.Opener.default_compresslevel, before = 9, nib.openers.Opener.default_compresslevel
    try:
        nib.Nifti1Image(np.zeros((200, 200, 100), np.float32), AFFINE).to_filename(tmp_path / "zeros.nii.gz")
    finally:
        nib.openers.Opener.default_compresslevel = before
    assert load_nifti(tmp_path / "zeros.nii.gz").shape == (200, 200, 100)


def test_a_file_in_the_working_folder_is_named_without_a_root() -> None:
    assert short_name(Path("bad.nii.gz")) == "bad.nii.gz"
    assert short_name(Path("imagesTr", "bad.nii.gz")) == "imagesTr/bad.nii.gz"
    assert short_name(Path("/data/imagesTr/bad.nii.gz")) == "imagesTr/bad.nii.gz"


@pytest.mark.parametrize("ending", [".Nii", ".nIi", ".Nii.gz", ".NII.Gz", ".nii.GZ"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_endings_in_any_case(kind: type, ending: str, tmp_path: Path) -> None:
    """Of `.Nii` nibabel looks for `.nii`."""
    written = tmp_path / f"written{ending.lower()}"
    nib.save(kind(VALUES, AFFINE), written)
    image = load_nifti(written.rename(tmp_path / f"image{ending}"))
    assert type(image) is kind
    np.testing.assert_array_equal(image.get_fdata(), VALUES)


def test_a_wrong_checksum_is_told_though_all_voxels_are_there(tmp_path: Path) -> None:
    file = tmp_path / "image.nii.gz"
    values = np.random.default_rng(0).random((40, 40, 20), np.float32)
    nib.save(nib.Nifti1Image(values, AFFINE), file)
    np.testing.assert_array_equal(read_values(load_nifti(file), "image"), values)
    content = bytearray(file.read_bytes())
    content[-8] ^= 1  # of the checksum
    file.write_bytes(content)
    np.testing.assert_array_equal(nib.load(file).get_fdata(), values)
    with pytest.raises(UserError, match="expected a whole file, found: CRC check failed"):
        read_values(load_nifti(file), "image")


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize("shape", [(5, 4, 3, 1), (5, 4, 1, 1), (5, 4, 1, 1, 1), (1, 4, 1, 1), (5, 4)])
def test_axes_become_three_as_the_message_says(shape: tuple[int, ...], dtype: type, tmp_path: Path) -> None:
    file = tmp_path / "image.nii"
    values = np.random.default_rng(0).integers(0, 9, shape).astype(dtype)
    nib.save(nib.Nifti1Image(values, AFFINE), file)
    (finding,) = file_findings(file)
    with pytest.raises(UserError, match="expected three axes"):
        read_values(load_nifti(file), "image")
    names = {"nibabel": nib, "FILE": file}
    *_, statements = finding.remedy.partition(": ")
    for statement in re.split(r", (?=values =|nibabel\.save)", statements):
        exec(statement, names)
    assert file_findings(file) == []
    np.testing.assert_array_equal(read_values(load_nifti(file), "image"), values.reshape((*shape, 1)[:3]))
    np.testing.assert_array_equal(load_nifti(file).affine, AFFINE)
