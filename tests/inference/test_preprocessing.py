"""The box that a predictor gets, its record, and every image that cannot be predicted."""

import gzip
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from grid_plans import by_nnunet, configuration, cut, plans
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from tiny_dataset import affine_of, save_nifti

from nnunet_softseg.errors import UserError
from nnunet_softseg.inference import network_image
from nnunet_softseg.inference.case_record import KEY
from nnunet_softseg.inference.nnunet_patches import SoftSegPreprocessor, _begun
from nnunet_softseg.io import nifti

READERS = [NibabelIO, NibabelIOWithReorient, SimpleITKIO, SimpleITKIOWithReorient]
SHAPE = (30, 34, 38)


def noise(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(5).normal(300, 60, shape).astype(np.float32)


def saved(folder: Path, array: np.ndarray | None = None, affine: Any = None) -> Path:
    file = folder / "sub-01_T2w_0000.nii.gz"
    save_nifti(file, noise() if array is None else array, affine_of("RAS") if affine is None else affine)
    return file


def run(file: Path, reader: type = NibabelIOWithReorient, **keywords: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Preprocess a file for a model with S-I on array axis 0 and a patch of 32 x 24 x 16 voxels of 0.8 mm."""
    entry = {"si_axis": 0, "orientation": "SAR", **keywords.pop("entry", {})}
    manager = keywords.pop("manager", configuration((0.8, 0.8, 0.8), patch_size=(32, 24, 16)))
    preprocessor = SoftSegPreprocessor(verbose=False)
    return preprocessor.run_case([str(file)], None, plans(reader=reader, **entry), manager, {})


@pytest.mark.parametrize("reader", READERS)
def test_a_predictor_gets_the_central_box_of_nnunets_preprocessing(tmp_path: Path, reader: type) -> None:
    file = saved(tmp_path)
    box_of_case, segmentation, properties = run(file, reader)
    data, expected_properties = reader().read_images([str(file)])
    whole = by_nnunet(data, expected_properties, plans(), configuration((0.8, 0.8, 0.8)))
    # 0.9, 1.2 and 1.0 mm (z, y, x) to 0.8 mm: 38 * 0.9 / 0.8 = 42.75; 34 * 1.2 / 0.8 = 51; 30 / 0.8 = 37.5
    assert whole.shape == (1, 43, 51, 38)
    box = ((0, 43), (13, 37), (11, 27))  # (51 - 24) // 2, (38 - 16) // 2
    np.testing.assert_allclose(box_of_case, cut(whole, box), rtol=0, atol=5e-5)
    assert segmentation is None
    record = properties.pop(KEY)
    assert record.box == box
    assert record.network_shape == (43, 51, 38)
    assert record.image_files == (str(file),)
    assert record.seconds["preprocess"] > 0
    assert record.resampled_whole is None
    assert set(properties) == set(expected_properties)
    assert _begun[zlib.crc32(box_of_case)] is record


def test_a_case_smaller_than_the_patch_is_padded_with_zeros(tmp_path: Path) -> None:
    box_of_case, _, properties = run(saved(tmp_path, noise((8, 10, 40))))
    # 10 voxels in R-L, 15 in A-P, 45 along S-I
    assert properties[KEY].box == ((0, 45), (-5, 19), (-3, 13))
    assert box_of_case.shape == (1, 45, 24, 16)
    assert not box_of_case[0, :, :5].any()
    assert not box_of_case[0, :, :, 13:].any()
    assert (box_of_case[0, :, 5:20, 3:13] != 0).all()


def test_without_the_crop_the_box_is_the_case(tmp_path: Path) -> None:
    box_of_case, _, properties = run(saved(tmp_path), entry={"si_axis": None})
    assert box_of_case.shape == (1, 43, 51, 38)
    assert properties[KEY].box == ((0, 43), (0, 51), (0, 38))


def test_arrays_go_the_same_way_as_files(tmp_path: Path) -> None:
    file = saved(tmp_path)
    data, properties = NibabelIOWithReorient().read_images([str(file)])
    manager = configuration((0.8, 0.8, 0.8), patch_size=(32, 24, 16))
    array, _, _ = SoftSegPreprocessor(verbose=False).run_case_npy(
        data, None, properties, plans(si_axis=0, orientation="SAR"), manager, {}
    )
    np.testing.assert_array_equal(array, run(file)[0])
    assert properties[KEY].box == ((0, 43), (13, 37), (11, 27))


def test_a_resampling_that_cannot_be_cropped_is_told_in_the_record(tmp_path: Path) -> None:
    manager = configuration(
        (0.9, 1.2, 1.0),
        patch_size=(32, 24, 16),
        resampling_fn_data="no_resampling_hack",
        resampling_fn_data_kwargs={},
    )
    _, _, properties = run(saved(tmp_path), manager=manager)
    assert properties[KEY].resampled_whole == "resampling function no_resampling_hack"


def test_a_case_with_a_segmentation_is_nnunets_own(tmp_path: Path) -> None:
    file = saved(tmp_path)
    save_nifti(tmp_path / "label.nii.gz", (noise() > 300).astype(np.uint8), affine_of("RAS"))
    the_plans, manager = plans(reader=NibabelIOWithReorient, si_axis=0), configuration((0.8, 0.8, 0.8))
    the_plans.get_label_manager = lambda _: type(
        "", (), {"has_regions": False, "foreground_labels": [1], "has_ignore_label": False}
    )
    data, segmentation, properties = SoftSegPreprocessor(verbose=False).run_case(
        [str(file)], str(tmp_path / "label.nii.gz"), the_plans, manager, {}
    )
    assert data.shape == segmentation.shape == (1, 43, 51, 38)
    assert KEY not in properties


# ---------------------------------------------------------------- images that are odd, and right all the same


@pytest.mark.parametrize("reader", READERS)
def test_a_rescale_slope_is_applied(tmp_path: Path, reader: type) -> None:
    """Stored integers of 0 to 4000 that stand for 0.1 to 8.1."""
    file = tmp_path / "sub-01_T2w_0000.nii.gz"
    stored = np.random.default_rng(0).integers(0, 4000, SHAPE).astype(np.int16)
    image = nib.Nifti1Image(stored, affine_of("RAS"))
    image.header.set_slope_inter(0.002, 0.1)
    nib.save(image, file)
    manager = configuration((0.9, 1.2, 1.0), scheme="NoNormalization", patch_size=(32, 24, 16))
    case, _, _ = run(file, reader, manager=manager, entry={"si_axis": None})
    np.testing.assert_allclose(case[0], (stored * 0.002 + 0.1).transpose(2, 1, 0), rtol=1e-5)


@pytest.mark.parametrize("codes", ["LAS", "RPI", "PSR", "AIL", "LSA"])
def test_left_handed_and_oblique_images_come_upright(tmp_path: Path, codes: str) -> None:
    """The same anatomy, stored along other axes, gives the network the same box (and a note if tilted)."""
    upright = saved(tmp_path / "upright", affine=affine_of("RAS", tilt_deg=12))
    expected, _, _ = run(upright)
    source = nib.load(upright)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    turned = tmp_path / "turned_0000.nii.gz"
    nib.save(source.as_reoriented(turn), turned)
    assert nib.aff2axcodes(nib.load(turned).affine) == tuple(codes)
    found, _, _ = run(turned)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("slope", [None, 0.0137])
@pytest.mark.parametrize("codes", ["RAS", "LPI", "PSR"])
def test_an_image_is_read_as_nnunet_reads_it(
    tmp_path: Path, reader: type, dtype: type, slope: float | None, codes: str
) -> None:
    file = tmp_path / "sub-01_T2w_0000.nii.gz"
    stored = np.random.default_rng(0).integers(0, 250, (5, 6, 7)).astype(dtype)
    image = nib.Nifti1Image(stored, affine_of(codes, tilt_deg=7))
    if slope is not None:
        image.header.set_slope_inter(slope, -3.3)
    nib.save(image, file)
    found, properties = network_image.read_image([str(file)], plans(reader=reader), configuration((1, 1, 1)))
    expected, expected_properties = reader().read_images([str(file)])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_equal(properties, expected_properties)


def test_one_slice_is_a_case(tmp_path: Path) -> None:
    one = noise((40, 40, 1))
    case, _, properties = run(saved(tmp_path, one, affine_of("RAS", (1, 1, 4.0))))
    assert case.shape == (1, 5, 24, 16)  # 4 mm of 0.8 mm
    np.testing.assert_allclose(case[0], np.broadcast_to(case[0, :1], case.shape[1:]), atol=1e-5)
    assert properties[KEY].box[0] == (0, 5)


@pytest.mark.parametrize("size_mm", [0.1, 10.0])
def test_tiny_and_huge_voxels_are_brought_to_the_networks_grid(tmp_path: Path, size_mm: float) -> None:
    shape = (40, 40, 40) if size_mm < 1 else (20, 20, 20)
    case, _, properties = run(saved(tmp_path, noise(shape), affine_of("RAS", (size_mm,) * 3)))
    across = round(shape[0] * size_mm / 0.8)
    assert properties[KEY].network_shape == (across,) * 3
    assert case.shape == (1, across, 24, 16)
    assert np.isfinite(case).all()


def test_a_constant_image_is_noted(tmp_path: Path) -> None:
    case, _, properties = run(saved(tmp_path, np.full(SHAPE, 7.0, np.float32)))
    assert not case.any()
    assert properties[KEY].warnings == ["constant image: the soft map is empty"]


# ---------------------------------------------------------------- images that cannot be predicted


def refused(file: Path, reader: type = NibabelIOWithReorient, **keywords: Any) -> str:
    """The one line that a user gets; it names the file."""
    with pytest.raises(UserError) as caught:
        run(file, reader, **keywords)
    line = str(caught.value)
    assert "\n" not in line
    assert file.name in line
    return line


@pytest.mark.parametrize(
    ("reader", "ending"),
    [*((reader, ".nii.gz") for reader in READERS), *((reader, ".nii") for reader in READERS[:2])],
)
@pytest.mark.parametrize("share", [0.6, 0.999])
def test_a_truncated_file(tmp_path: Path, reader: type, ending: str, share: float) -> None:
    whole = saved(tmp_path).read_bytes()
    if ending == ".nii":
        whole = gzip.decompress(whole)
    file = tmp_path / f"cut_0000{ending}"
    file.write_bytes(whole[: int(share * len(whole))])
    what = "truncated data" if ending == ".nii" else "corrupt or truncated gzip"
    assert f"{what}: expected" in refused(file, reader)


def test_a_gzip_stream_in_pieces_is_whole(tmp_path: Path) -> None:
    """As parallel compressors write it: what its end says of its length is that of the last piece."""
    file = saved(tmp_path)
    expected, _, _ = run(file)
    content = gzip.decompress(file.read_bytes())
    file.write_bytes(gzip.compress(content[:1000]) + gzip.compress(content[1000:]))
    assert nifti.inflated_size(file) == len(content) == 352 + 4 * 30 * 34 * 38
    np.testing.assert_array_equal(run(file)[0], expected)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_complete_file_is_not_inflated_twice(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti, "inflated_size", None)
    file = tmp_path / f"sub-01_0000{ending}"
    save_nifti(file, noise(), affine_of("RAS"))
    run(file)


def test_a_damaged_stream(tmp_path: Path) -> None:
    file = saved(tmp_path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(bytes(content))
    assert "corrupt or truncated gzip: expected a whole file" in refused(file)


@pytest.mark.parametrize("content", [b"", b"no image at all", None])
def test_no_image(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "sub-01_0000.nii.gz"
    if content is not None:
        file.write_bytes(content)
    assert "cannot be opened: expected a NIfTI file" in refused(file)


def changed_header(folder: Path, field: str, change: Callable[[Any], Any]) -> Path:
    """An image whose header says something that no library would write."""
    file = saved(folder)
    content = bytearray(gzip.decompress(file.read_bytes()))
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    header[field] = change(header[field].copy())
    content[:348] = header.binaryblock
    file.write_bytes(gzip.compress(bytes(content)))
    return file


def with_pixdim(value: float) -> Callable[[Any], Any]:
    def change(pixdim: Any) -> Any:
        pixdim[2] = value
        return pixdim

    return change


@pytest.mark.parametrize("value", [0.0, -1.0, 2.5, np.nan, np.inf])
def test_voxel_sizes_are_those_of_the_affine(tmp_path: Path, value: float) -> None:
    expected, _, geometry = run(saved(tmp_path))
    image, _, properties = run(changed_header(tmp_path, "pixdim", with_pixdim(value)))
    np.testing.assert_allclose(properties["spacing"], geometry["spacing"], atol=1e-6)
    np.testing.assert_allclose(image, expected, atol=1e-4)
    assert properties[KEY].flags == ["header"]
    (why,) = properties[KEY].warnings
    assert f"has two voxel sizes: expected 1, 1.2, 0.9 mm as its affine, found 1, {value:g}, 0.9 in" in why


def test_voxel_sizes_are_those_of_the_affine_for_a_model_of_slices_too(tmp_path: Path) -> None:
    model = {"manager": configuration((0.8, 0.8), patch_size=(24, 16)), "entry": {"si_axis": None}}
    expected, _, geometry = run(saved(tmp_path), **model)
    image, _, properties = run(changed_header(tmp_path, "pixdim", with_pixdim(2.5)), **model)
    np.testing.assert_allclose(properties["spacing"], geometry["spacing"], atol=1e-6)
    np.testing.assert_allclose(image, expected, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("reader", READERS)
def test_voxel_sizes_that_make_no_sense(tmp_path: Path, value: float, reader: type) -> None:
    """Without an sform, the affine is made of them."""
    file = changed_header(tmp_path, "pixdim", with_pixdim(value))
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[254:256] = bytes(2)
    file.write_bytes(gzip.compress(bytes(content)))
    line = refused(file, reader)
    assert "voxel sizes that make no sense" in line or "maps no volume" in line
    assert np.isnan(value) or np.isinf(value) or f"found 1, {value:g}, 0.9" in line


@pytest.mark.parametrize("reader", [NibabelIOWithReorient, SimpleITKIOWithReorient])
def test_an_image_gives_one_answer_in_whichever_order_it_is_stored(tmp_path: Path, reader: type) -> None:
    affine, found = affine_of("RAS", spacing_mm=(1.0, 1.1, 0.9)), {}
    stored = nib.Nifti1Image(noise(), affine)
    for codes in ("RAS", "LPS", "SAR", "ILP"):
        turn = nib.orientations.ornt_transform(
            nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes)
        )
        image = stored.as_reoriented(turn)
        image.set_sform(image.affine, 1)
        image.set_qform(image.affine, 1)
        image.header["pixdim"][1:4] = 0.5, 0.5, 3
        nib.save(image, tmp_path / f"{codes}_0000.nii.gz")
        network_image, _, properties = run(tmp_path / f"{codes}_0000.nii.gz", reader)
        np.testing.assert_allclose(properties["spacing"], [0.9, 1.1, 1.0], atol=1e-6)
        found[codes] = network_image
    for codes in found:
        np.testing.assert_allclose(found[codes], found["RAS"], atol=1e-4)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_an_affine_that_maps_no_volume(tmp_path: Path, value: float) -> None:
    assert "affine that maps no volume" in refused(
        changed_header(tmp_path, "srow_y", lambda row: np.full_like(row, value))
    )


@pytest.mark.parametrize("reader", READERS)
def test_a_series_and_a_slice(tmp_path: Path, reader: type) -> None:
    series, flat = tmp_path / "series_0000.nii.gz", tmp_path / "flat_0000.nii.gz"
    nib.save(nib.Nifti1Image(np.stack([noise(), noise()], axis=-1), affine_of("RAS")), series)
    nib.save(nib.Nifti1Image(noise((20, 20)), affine_of("RAS")), flat)
    told = refused(series, reader)
    assert "fourth dimension: expected one 3-D image, found shape 30 x 34 x 38 x 2: take each" in told
    assert "expected a 3-D image, found shape 20 x 20" in refused(flat, reader)


@pytest.mark.parametrize("shape", [(30, 34, 1, 1), (30, 34)])
def test_what_an_image_of_other_axes_is_told_to_do_is_taken(tmp_path: Path, shape: tuple[int, ...]) -> None:
    file = tmp_path / "case_0000.nii.gz"
    nib.save(nib.Nifti1Image(noise(shape), affine_of("RAS")), file)
    _, _, remedy = refused(file, READERS[0]).partition("image = ")
    names = {"nibabel": nib, "FILE": file}
    for statement in re.split(r", (?=values =|nibabel\.save)", f"image = {remedy}"):
        exec(statement, names)
    assert nib.load(file).shape == (30, 34, 1)
    run(file, READERS[0])


@pytest.mark.parametrize("reader", READERS[2:])
def test_nan_is_zero_to_simpleitk(tmp_path: Path, reader: type) -> None:
    """In training as here; what is nothing but NaN is noted."""
    _, _, properties = run(saved(tmp_path, np.full(SHAPE, np.nan, np.float32)), reader)
    assert properties[KEY].warnings == ["constant image: the soft map is empty"]


@pytest.mark.parametrize("reader", READERS[:2])
def test_nan(tmp_path: Path, reader: type) -> None:
    assert f"found {30 * 34 * 38} NaN or infinite voxels" in refused(
        saved(tmp_path, np.full(SHAPE, np.nan, np.float32)), reader
    )
    one = noise()
    one[3, 4, 5] = np.inf
    assert "found 1 NaN" in refused(saved(tmp_path, one), reader)


def test_an_image_of_five_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "huge_0000.nii"
    header = nib.Nifti1Header()
    header.set_data_shape((1000, 1000, 1250))
    header.set_data_dtype(np.float32)
    header.set_sform(np.eye(4), 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    with file.open("wb") as opened:
        opened.write(header.binaryblock + bytes(4))
        opened.truncate(352 + 5 * 10**9)  # a hole on the disk, no gigabytes
    assert "is too large: expected at most 536870912 voxels, 2.1 GB as float32, found shape 1000 x 1000" in (
        refused(file)
    )


def test_memory_that_runs_out_is_a_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError("Unable to allocate 1.00 TiB")

    file = saved(tmp_path)
    monkeypatch.setattr(network_image, "read_channels", no_memory)
    assert "does not fit into memory" in refused(file, SimpleITKIO)


def test_colours_and_complex_numbers(tmp_path: Path) -> None:
    file = tmp_path / "sub-01_0000.nii.gz"
    nib.save(nib.Nifti1Image(noise().astype(np.complex64), affine_of("RAS")), file)
    assert "holds no grey values: expected integers or floats, found complex64" in refused(file)


def test_too_few_and_unfit_channels(tmp_path: Path) -> None:
    two = configuration((0.8,) * 3, channels=2, patch_size=(32, 24, 16))
    file = saved(tmp_path)
    assert "number of channels: expected 2, as in training, found 1" in refused(file, manager=two)
    other = tmp_path / "sub-01_T2w_0001.nii.gz"
    save_nifti(other, noise((30, 34, 37)), affine_of("RAS"))
    with pytest.raises(UserError, match=r"T2w_0000.*T2w_0001.*channels on the same grid"):
        network_image.read_image([str(file), str(other)], plans(reader=NibabelIOWithReorient), two)


def test_an_image_whose_slices_follow_another_axis(tmp_path: Path) -> None:
    file = saved(tmp_path, affine=affine_of("PSR"))
    line = refused(file, NibabelIO)
    assert "axes along RSP, but the model was trained with SAR" in line
    assert '"NibabelIOWithReorient" for NIfTI, else "SimpleITKIOWithReorient"' in line
    _, _, properties = run(saved(tmp_path, affine=affine_of("LAS")), NibabelIO)
    assert properties[KEY].warnings == ["orientation SAL differs from training's SAR"]
