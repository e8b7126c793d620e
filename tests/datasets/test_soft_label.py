"""The soft label on disk: names, files, geometry, values. One row for each thing that can be wrong."""

import gzip
import os
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_dataset import affine_of, save_nifti, smooth_noise, soft_blob

from nnunet_softseg.datasets import soft_label
from nnunet_softseg.datasets.raw_dataset import LabelScheme, hard_label_map, label_findings, soft_label_file
from nnunet_softseg.datasets.soft_label import find_reader
from nnunet_softseg.errors import UserError
from nnunet_softseg.io.case_files import parse_numbered_name
from nnunet_softseg.io.formats import NIFTI_READERS
from nnunet_softseg.io.geometry import affine_findings, reader_affines, reader_geometry_findings
from nnunet_softseg.io.nifti import content_findings, file_findings

SHAPE = (9, 10, 11)
HALVES = np.full(SHAPE, 0.37, dtype=np.float32)


def messages(findings: list[Any], severity: str = "error") -> str:
    return "\n".join(str(finding) for finding in findings if finding.severity == severity)


# Names


@given(
    case_id=st.text(st.characters(categories=["L", "N"], include_characters="-_. "), min_size=1),
    label=st.integers(0, 9999),
)
def test_name_gives_back_case_and_label(case_id: str, label: int) -> None:
    name = soft_label_file(Path("softLabelsTr"), case_id, label).name
    assert parse_numbered_name(name) == (case_id, label)


@pytest.mark.parametrize(
    "name", ["sub-01.nii.gz", "sub-01_001.nii.gz", "sub-01_00010.nii.gz", "_0001.nii.gz"]
)
def test_other_names_are_none(name: str) -> None:
    assert parse_numbered_name(name) is None


def test_plain_nifti_stands_in_for_a_compressed_one(tmp_path: Path) -> None:
    save_nifti(tmp_path / "sub-01_0001.nii", HALVES, np.eye(4))
    assert soft_label_file(tmp_path, "sub-01", 1).name == "sub-01_0001.nii"
    assert soft_label.folder_findings(tmp_path, ["sub-01"], [1]) == []


# The folder


def test_complete_folder_with_notes_is_right(tmp_path: Path) -> None:
    for name in ("sub-01_0001.nii.gz", "sub-01_0002.nii.gz", "softseg.json", "README.md", ".DS_Store"):
        (tmp_path / name).touch()
    assert soft_label.folder_findings(tmp_path, ["sub-01"], [1, 2]) == []


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            "sub-99_0001.nii.gz",
            "sub-99_0001.nii.gz: extra file: expected a case of imagesTr, found case sub-99",
        ),
        ("sub-01_0003.nii.gz", r"extra file: expected a label of dataset.json \(1, 2\), found label 3"),
        ("sub-01.nii.gz", "sub-01.nii.gz: extra file: expected only <case>_<label, 4 digits>.nii.gz"),
        ("sub-01_0001.nii", "extra file: expected one file per case and label, found both .nii and .nii.gz"),
    ],
)
def test_extra_file_is_named(tmp_path: Path, extra: str, message: str) -> None:
    for name in ("sub-01_0001.nii.gz", "sub-01_0002.nii.gz", extra):
        (tmp_path / name).touch()
    findings = soft_label.folder_findings(tmp_path, ["sub-01"], [1, 2])
    assert len(findings) == 1
    with pytest.raises(UserError, match=message):
        soft_label.raise_first_error(findings)


def test_every_missing_file_is_named_with_case_and_label(tmp_path: Path) -> None:
    (tmp_path / "sub-01_0001.nii.gz").touch()
    text = messages(soft_label.folder_findings(tmp_path, ["sub-02", "sub-01"], [1, 2]))
    assert "sub-01_0002.nii.gz: soft label of case sub-01, label 2, is missing" in text
    assert "case sub-02, label 1, is missing" in text
    assert "case sub-02, label 2, is missing" in text
    assert text.count("is missing") == 3
    assert "all zeros where the label is absent" in text


def test_missing_folder_says_how_to_make_it(tmp_path: Path) -> None:
    text = messages(soft_label.folder_findings(tmp_path / "softLabelsTr", ["sub-01", "sub-02"], [1]))
    assert "no soft labels" in text
    assert "2 x 1 soft labels" in text
    assert "docs/data.md" in text
    assert "labelsTr alone serves vanilla trainers only (nnUNetTrainer)" in text


@pytest.mark.skipif(os.name == "nt", reason="links need privileges on Windows")
def test_broken_link_asks_for_its_content(tmp_path: Path) -> None:
    (tmp_path / "sub-01_0001.nii.gz").symlink_to(tmp_path / "not-fetched")
    assert "git annex get" in messages(soft_label.folder_findings(tmp_path, ["sub-01"], [1]))


# Files


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def flipped_byte(file: Path) -> None:
    """One bit of the stored content: it unpacks to wrong values, and only the checksum knows."""
    content = bytearray(gzip.decompress(file.read_bytes()))
    stored = bytearray(gzip.compress(bytes(content), compresslevel=0))
    stored[-100] ^= 4
    file.write_bytes(bytes(stored))


def not_compressed(file: Path) -> None:
    file.write_bytes(gzip.decompress(file.read_bytes()))


def too_short(file: Path) -> None:
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-400]))


def empty(file: Path) -> None:
    file.write_bytes(b"")


def no_header(file: Path) -> None:
    file.write_bytes(gzip.compress(b"\0" * 400))


def four_dimensional(file: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((*SHAPE, 2), dtype=np.float32), np.eye(4)), file)


def trailing_axis(file: Path) -> None:
    nib.save(nib.Nifti1Image(HALVES[..., None], np.eye(4)), file)


def two_axes(file: Path) -> None:
    save_nifti(file, HALVES[..., 0], np.eye(4))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "file is missing"),
        (truncated, "corrupt or truncated gzip"),
        (flipped_byte, "corrupt or truncated gzip"),
        (not_compressed, "corrupt or truncated gzip"),
        (too_short, "truncated data: expected 4312 bytes by its header, found 3912"),
        (empty, "cannot be opened"),
        (no_header, "cannot be opened"),
        (four_dimensional, r"not a 3-D image: expected shape \(x, y, z\), found 4-D.*one 3-D file per label"),
        (trailing_axis, r"not a 3-D image.*drop the axes of length 1"),
        (two_axes, r"not a 3-D image: expected shape \(x, y, z\)"),
    ],
)
def test_broken_file_is_named(tmp_path: Path, damage: Any, message: str) -> None:
    file = tmp_path / "sub-01_0001.nii.gz"
    save_nifti(file, HALVES, np.eye(4))
    assert file_findings(file) == []
    damage(file)
    reader = find_reader("NibabelIO")
    with pytest.raises(UserError, match=f"sub-01_0001.nii.gz: {message}"):
        soft_label.read_soft_label(file, reader)


def test_truncated_plain_nifti_is_named(tmp_path: Path) -> None:
    file = tmp_path / "sub-01_0001.nii"
    save_nifti(file, HALVES, np.eye(4))
    truncated(file)
    assert "truncated data: expected 4312 bytes by its header, found 4272" in messages(file_findings(file))


def test_what_a_reader_refuses_is_a_user_error(tmp_path: Path) -> None:
    """A shear is legal in NIfTI, but ITK knows orthonormal directions only."""
    file = tmp_path / "sub-01_0001.nii.gz"
    sheared = affine_of("LAS")
    sheared[0, 1] = 0.7
    image = nib.Nifti1Image(HALVES, sheared)
    image.set_qform(None, 0)
    nib.save(image, file)
    soft_label.read_soft_label(file, find_reader("NibabelIO"))
    reader = find_reader("SimpleITKIO")
    with pytest.raises(
        UserError, match=r"sub-01_0001.nii.gz: expected a NIfTI file that SimpleITKIO can read, found: .+"
    ):
        soft_label.read_soft_label(file, reader)


@pytest.mark.parametrize("name", NIFTI_READERS)
@pytest.mark.parametrize(
    "affine", [affine_of("LAS"), affine_of("RPI"), affine_of("PIR"), affine_of("LAS", tilt_deg=17)]
)
def test_read_has_the_axis_order_of_the_image(tmp_path: Path, name: str, affine: Any) -> None:
    """Image and soft label hold the same values, so that the reader must give the same array for both."""
    values = smooth_noise(SHAPE, seed=1)
    save_nifti(tmp_path / "image.nii.gz", values, affine)
    soft_label.write_soft_label(tmp_path / "sub-01_0001.nii.gz", values, tmp_path / "image.nii.gz")
    reader = find_reader(name)
    image, properties = reader.read_images([str(tmp_path / "image.nii.gz")])
    label, seen = soft_label.read_soft_label(tmp_path / "sub-01_0001.nii.gz", reader)
    np.testing.assert_array_equal(label, image[0])
    assert label.dtype == np.float32
    assert reader_geometry_findings(tmp_path / "label", properties, seen) == []


@pytest.mark.parametrize("name", NIFTI_READERS)
@pytest.mark.parametrize("sform_code", [1, 2])
def test_unknown_voxels_lie_where_the_reader_sees_them(tmp_path: Path, name: str, sform_code: int) -> None:
    """Of two transforms that place a file alike but turn it, ITK goes by the one, nibabel by the other."""
    values = smooth_noise(SHAPE, seed=1).astype(np.float32)
    qform = affine_of("LAS")
    sform = qform @ np.diag([-1, 1, 1, 1])
    sform[:3, 3] = (qform @ [SHAPE[0] - 1, 0, 0, 1])[:3]
    for file, stored in [
        ("known", values),
        ("unknown", np.where(np.arange(9)[:, None, None] < 3, np.nan, values)),
    ]:
        image = nib.Nifti1Image(stored.astype(np.float32), None)
        image.set_sform(sform, sform_code)
        image.set_qform(qform, 1)
        nib.save(image, tmp_path / f"{file}_0001.nii.gz")
    reader = find_reader(name)
    known, _ = soft_label.read_soft_label(tmp_path / "known_0001.nii.gz", reader)
    found, _ = soft_label.read_soft_label(tmp_path / "unknown_0001.nii.gz", reader)
    expected = np.isin(known, values[:3])  # each value is there once
    assert expected.sum() == 3 * SHAPE[1] * SHAPE[2]
    np.testing.assert_array_equal(np.isnan(found), expected)


def test_the_1_of_a_png_with_one_bit_is_full(tmp_path: Path) -> None:
    mask = np.arange(30).reshape(5, 6) % 3 == 0
    Image.fromarray(mask).convert("1").save(tmp_path / "sub-01_0001.png")
    label, _ = soft_label.read_soft_label(tmp_path / "sub-01_0001.png", find_reader("NaturalImage2DIO"))
    np.testing.assert_array_equal(label[0], mask)
    label_map = soft_label.read_label_map(tmp_path / "sub-01_0001.png", find_reader("NaturalImage2DIO"))
    np.testing.assert_array_equal(label_map[0], mask)


def test_other_readers_are_refused() -> None:
    with pytest.raises(UserError, match=r"expected a reader out of .*NibabelIOWithReorient.*found Nonsense"):
        find_reader("Nonsense")


# Writing


def test_written_label_has_the_header_geometry_of_its_image(tmp_path: Path) -> None:
    affine = affine_of("LPI", tilt_deg=23)
    image = nib.Nifti1Image(np.arange(990, dtype=np.int16).reshape(SHAPE), affine)
    image.header["cal_max"] = 600
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, 2)
    image.set_qform(affine, 1)
    nib.save(image, tmp_path / "image.nii.gz")
    soft_label.write_soft_label(tmp_path / "sub-01_0001.nii.gz", HALVES, tmp_path / "image.nii.gz")

    written, reference = nib.load(tmp_path / "sub-01_0001.nii.gz"), nib.load(tmp_path / "image.nii.gz")
    for key in (
        "pixdim",
        "qform_code",
        "sform_code",
        "srow_x",
        "srow_y",
        "srow_z",
        "quatern_b",
        "qoffset_z",
        "xyzt_units",
    ):
        np.testing.assert_array_equal(written.header[key], reference.header[key])
    assert written.get_data_dtype() == np.float32
    np.testing.assert_array_equal(written.get_fdata(dtype=np.float32), np.float32(0.37))
    assert b"nnunet-softseg" in written.header["descrip"].item()
    # ITK reads the geometry its own way.
    names = ("sub-01_0001.nii.gz", "image.nii.gz")
    label, other = (SimpleITK.ReadImage(str(tmp_path / name)) for name in names)
    assert label.GetOrigin() == other.GetOrigin()
    assert label.GetDirection() == other.GetDirection()
    assert label.GetSpacing() == other.GetSpacing()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (HALVES[1:], r"shape differs.*\(9, 10, 11\).*found \(8, 10, 11\)"),
        (HALVES * 100, r"values outside \[0, 1\]"),
        (np.where(HALVES > 1, 0, np.inf), "NaN"),
    ],
)
def test_wrong_label_is_not_written(tmp_path: Path, values: Any, message: str) -> None:
    save_nifti(tmp_path / "image.nii.gz", HALVES, np.eye(4))
    with pytest.raises(UserError, match=message):
        soft_label.write_soft_label(tmp_path / "sub-01_0001.nii.gz", values, tmp_path / "image.nii.gz")
    assert [file.name for file in tmp_path.iterdir()] == ["image.nii.gz"]


# Geometry


@pytest.mark.parametrize(
    ("shift", "is_right"), [(0.0, True), (0.9e-3, True), (1.1e-3, False), (np.nan, False)]
)
def test_affine_may_differ_by_a_thousandth(shift: float, is_right: bool) -> None:
    affine = affine_of("LAS")
    moved = affine.copy()
    moved[1, 3] += shift
    findings = affine_findings(Path("softLabelsTr/sub-01_0001.nii.gz"), affine, moved)
    assert (findings == []) is is_right
    if not is_right:
        assert "(row 1, column 3" in str(findings[0])
        assert "copy the header of the image" in str(findings[0])


@pytest.mark.parametrize("orientation", ["LAS", "RPI", "ASL"])
def test_affine_kept_by_either_library_is_that_of_the_file(tmp_path: Path, orientation: str) -> None:
    affine = affine_of(orientation, tilt_deg=11)
    save_nifti(tmp_path / "image.nii.gz", HALVES, affine)
    for name in ("NibabelIO", "SimpleITKIO"):
        _, properties = find_reader(name).read_images([str(tmp_path / "image.nii.gz")])
        found = reader_affines(properties)["original"]
        np.testing.assert_allclose(found, affine, atol=1e-5)  # headers hold float32


@pytest.mark.parametrize("name", NIFTI_READERS)
def test_flipped_header_is_seen_by_every_reader(tmp_path: Path, name: str) -> None:
    save_nifti(tmp_path / "image.nii.gz", HALVES, affine_of("LAS"))
    save_nifti(tmp_path / "sub-01_0001.nii.gz", HALVES, affine_of("RAS"))
    reader = find_reader(name)
    _, image = reader.read_images([str(tmp_path / "image.nii.gz")])
    _, label = soft_label.read_soft_label(tmp_path / "sub-01_0001.nii.gz", reader)
    findings = reader_geometry_findings(tmp_path / "sub-01_0001.nii.gz", image, label)
    assert "affine differs from that of the image by" in str(findings[0])


# Values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.where(HALVES > 1, 0, np.nan), "NaN or infinite values: expected finite values, found 990 voxels"),
        (np.where(np.indices(SHAPE).sum(0) == 0, np.inf, 0.5), "found 1 voxels that are not"),
        (soft_blob(SHAPE, (4, 5, 5), 3) * 100, r"outside \[0, 1\].*found \[0, 100\]: divide it by 100$"),
        (soft_blob(SHAPE, (4, 5, 5), 3) * 63.5, r"divide it by 100 if it is in percent, by 255 if"),
        (soft_blob(SHAPE, (4, 5, 5), 3) * 255, r"found \[0, 255\]: divide it by 255$"),
        (soft_blob(SHAPE, (4, 5, 5), 3) * 1000, r"divide it by 1000, if that means a whole voxel"),
        (soft_blob(SHAPE, (4, 5, 5), 3) * 1.04, r"clip it to \[0, 1\]"),
        (soft_blob(SHAPE, (4, 5, 5), 3) - 0.03, r"found \[-0.03, 0.97\]: clip it"),
        (soft_blob(SHAPE, (4, 5, 5), 3) * 900 - 400, "does not look like a fraction"),
        (np.indices(SHAPE)[0] % 4, "integer label map: write one file per label"),
    ],
)
def test_wrong_values_are_named_with_the_way_out(values: Any, message: str) -> None:
    findings = content_findings(Path("softLabelsTr/sub-01_T2w_0001.nii.gz"), values)
    with pytest.raises(UserError, match=message) as caught:
        soft_label.raise_first_error(findings)
    assert str(caught.value).startswith("softLabelsTr/sub-01_T2w_0001.nii.gz: ")
    assert "\n" not in str(caught.value)


def test_all_zero_is_legal_but_said() -> None:
    findings = content_findings(Path("softLabelsTr/sub-01_0001.nii.gz"), np.zeros(SHAPE))
    assert messages(findings) == ""
    assert "all zero" in messages(findings, "warning")


@given(st.floats(0, 1, width=32))
def test_every_fraction_is_right(value: float) -> None:
    values = HALVES.copy()
    values[0, 0, 0] = value
    assert content_findings(Path("sub-01_0001.nii.gz"), values) == []


@pytest.mark.parametrize(("value", "is_right"), [(1 + 5e-6, True), (1 + 1e-4, False), (-1e-4, False)])
def test_range_allows_for_rounding_only(value: float, is_right: bool) -> None:
    values = np.where(np.indices(SHAPE).sum(0) == 0, value, 0.37)
    assert (content_findings(Path("sub-01_0001.nii.gz"), values) == []) is is_right


def test_fractions_stored_as_integers_with_a_slope_are_right(tmp_path: Path) -> None:
    image = nib.Nifti1Image((255 * soft_blob(SHAPE, (4, 5, 5), 3)).astype(np.uint8), np.eye(4))
    image.header.set_slope_inter(np.float32(1 / 255), 0)
    nib.save(image, tmp_path / "sub-01_0001.nii.gz")
    for name in NIFTI_READERS:
        label, _ = soft_label.read_soft_label(tmp_path / "sub-01_0001.nii.gz", find_reader(name))
        assert label.max() == pytest.approx(1, abs=1e-5)
        assert content_findings(tmp_path / "sub-01_0001.nii.gz", label) == []


def test_overlapping_labels_are_a_warning() -> None:
    files = [Path("sub-01_0001.nii.gz"), Path("sub-01_0002.nii.gz")]
    full = np.full(SHAPE, 0.63, dtype=np.float32)
    assert soft_label.overlap_findings(files, [HALVES, full]) == []
    over = full.copy()
    over[1, 2, 3] = 0.7
    findings = soft_label.overlap_findings(files, [HALVES, over])
    assert "up to 1.07, above 1 in 1 voxels" in messages(findings, "warning")


# The integer label map

ONE = LabelScheme.of({"labels": {"background": 0, "cord": 1}})
NESTED = {"background": 0, "cord": 1, "grey": 2}


def test_hard_label_map_by_table() -> None:
    first = np.array([0.5, 0.51, 0.6, 0.3, 0.0, 0.7])
    second = np.array([0.5, 0.2, 0.8, 0.3, 0.51, 0.7])
    painted = [(0, 1), (1, 3)]
    assert hard_label_map([first, second], painted).tolist() == [0, 1, 3, 0, 3, 3]
    assert hard_label_map([first, second], painted[::-1]).tolist() == [0, 1, 1, 0, 3, 1]
    assert hard_label_map([np.array([np.nan, 0.7])], [(0, 1)]).tolist() == [0, 1]


def test_hard_label_map_is_that_of_predictions() -> None:
    """A predicted folder can serve as soft labels only if both sides threshold alike."""
    from nnunet_softseg.network.of_plans import SoftLabelManager

    soft = np.random.default_rng(0).random((3, *SHAPE)).astype(np.float32)
    manager = SoftLabelManager({"background": 0, "a": 1, "b": 2, "c": 3}, None)
    expected = manager.convert_probabilities_to_segmentation(soft)
    np.testing.assert_array_equal(hard_label_map(list(soft), manager.scheme.painted), expected)


def test_nested_masks_are_painted_by_the_later_value_or_the_order() -> None:
    """Grey matter inside the cord: both 1 there, which no rule of the largest can tell apart."""
    cord, grey = np.array([0.0, 1, 1, 1]), np.array([0.0, 0, 1, 0.4])
    for content, expected in [
        ({"labels": NESTED}, [0, 1, 2, 1]),
        ({"labels": {"background": 0, "grey": 2, "cord": 1}}, [0, 1, 2, 1]),
        ({"labels": NESTED, "regions_class_order": [2, 1]}, [0, 1, 1, 1]),
        ({"labels": {**NESTED, "cord": [1, 2]}, "regions_class_order": [1, 2]}, [0, 1, 2, 1]),
    ]:
        scheme = LabelScheme.of(content)
        assert scheme.names == ("cord", "grey")
        assert hard_label_map([cord, grey], scheme.painted).tolist() == expected


def test_painted_regions_are_those_of_nnunet() -> None:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    soft = np.random.default_rng(0).random((3, *SHAPE)).astype(np.float32)
    scheme = LabelScheme.of({"labels": labels, "regions_class_order": [1, 2, 3]})
    expected = LabelManager(labels, [1, 2, 3]).convert_probabilities_to_segmentation(soft)
    np.testing.assert_array_equal(hard_label_map(soft, scheme.painted), expected)
    assert (scheme.numbers, scheme.ignore) == ((1, 2, 3), 4)
    assert scheme.regions == ((1, 2, 3), (2, 3), (3,))


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        ({"a": [1, 2], "b": [2, 3]}, [1, 3], "not nested: expected a voxel of value 2 .*wrong for a"),
        ({"grey": 2, "cord": [1, 2]}, [2, 1], "not nested: .*found value 1 painted on it, .*wrong for grey"),
        ({"cord": [1, 2], "grey": 2}, [1], r"expected 2 values out of 1, 2, one for each label, found \[1\]"),
        ({"cord": 1, "grey": 2}, [1, 1], "does not fit the labels"),
        ({"cord": [1, "2"]}, [1], '"background": 0 and integers, or lists of them'),
        ({"cord": [1, 3]}, [1], "expected consecutive values"),
        ({"cord": 1, "ignore": [2]}, None, 'expected "ignore": 2, the highest value'),
        ({"merged": [1, 2], "other": 3}, [1, 3], None),  # what nnU-Net allows: two values that are one region
        ({"cord": 1, "grey": 2, "ignore": 3}, [2, 1], None),
    ],
)
def test_labels_that_do_not_fit_together_are_named(labels: Any, order: Any, message: str | None) -> None:
    content = {"labels": {"background": 0, **labels}, "regions_class_order": order}
    text = messages(label_findings(content))
    assert re.search(message, text) if message else not text, text


def test_both_readings_of_overlapping_labels_are_accepted_and_no_other() -> None:
    """A lesion of 0.6 in a cord of 1: the lesion is painted over it, or, with a warning, not."""
    cord, lesion = np.ones((1, 1, 4), np.float32), np.array([[[0.0, 0.6, 0.6, 0.3]]], np.float32)
    scheme, file = LabelScheme.of({"labels": NESTED}), Path("labelsTr/sub-01.nii.gz")

    def findings(values: list[int], of: LabelScheme = scheme) -> list[Any]:
        return soft_label.label_map_findings(file, np.array([[values]]), [cord, lesion], of)

    assert findings([1, 2, 2, 1]) == []
    (largest,) = findings([1, 1, 1, 1])
    assert largest.severity == "warning"
    assert "2 voxels that differ, first at (x, y, z) = (0, 0, 1)" in str(largest)
    (mixed,) = findings([1, 1, 2, 1])
    assert mixed.severity == "error"
    assert "1 voxels that differ, first at (x, y, z) = (0, 0, 1)" in str(mixed)
    (wrong,) = findings([1, 1, 0, 1])
    assert wrong.severity == "error"
    assert "1 voxels that differ, first at (x, y, z) = (0, 0, 2)" in str(wrong)
    assert findings([1, 2, 2, 2])[0].severity == "error"  # 0.3 is no lesion
    ordered = LabelScheme.of({"labels": {**NESTED, "cord": [1, 2]}, "regions_class_order": [1, 2]})
    assert findings([1, 2, 2, 1], ordered) == []
    assert findings([1, 1, 2, 1], ordered)[0].severity == "error"


@pytest.mark.parametrize("severity", ["error", "warning", None])
def test_of_masks_in_one_another_either_is_on_top_and_not_each_in_a_half(severity: str | None) -> None:
    """Both are 1 in the lesion: neither is the larger."""
    cord, lesion = np.ones((1, 1, 4), np.float32), np.array([[[0.0, 1, 1, 1]]], np.float32)
    values = {"error": [1, 2, 1, 1], "warning": [1, 1, 1, 1], None: [1, 2, 2, 2]}[severity]
    found = soft_label.label_map_findings(
        Path("m.nii.gz"), np.array([[values]]), [cord, lesion], LabelScheme.of({"labels": NESTED})
    )
    assert [finding.severity for finding in found] == ([severity] if severity else [])


@pytest.mark.parametrize(("dtype", "slope"), [(np.uint8, 1 / 255), (np.int16, 1 / 32767), (np.uint8, 1.0)])
def test_integers_leave_open_what_they_round_to_a_half(
    dtype: type[np.integer[Any]], slope: float, tmp_path: Path
) -> None:
    """A half lies midway between two levels, from which the next are one and a half steps away."""
    file = tmp_path / "sub-01_0001.nii.gz"
    half = (round(1 / slope) - 1) // 2
    levels = np.array([0, half - 1, half, half + 1, half + 2]) if half else np.array([0, 1, 0, 1, 1])
    image = nib.Nifti1Image(levels[None, None].astype(dtype), np.eye(4))
    image.header.set_slope_inter(slope, 0)
    nib.save(image, file)
    stored = soft_label.stored_soft_label(file)
    np.testing.assert_allclose(stored[0, 0], levels * slope, atol=1e-7)
    sure = soft_label.surely_above_or_not(file, stored)
    expected = [False, False, half > 0, half > 0, False]
    np.testing.assert_array_equal(np.isnan(sure)[0, 0], expected)
    np.testing.assert_array_equal(sure[~np.isnan(sure)], stored[~np.isnan(sure)])


def test_unknown_voxels_are_not_compared() -> None:
    scheme = LabelScheme.of({"labels": {**NESTED, "ignore": 3}})
    cord = np.array([[[1.0, 1, np.nan, 1]]], np.float32)
    label_map = np.array([[[1, 3, 0, 2]]])
    (wrong,) = soft_label.label_map_findings(Path("m.nii.gz"), label_map, [cord, 0 * cord], scheme)
    assert "1 voxels that differ, first at (x, y, z) = (0, 0, 3)" in str(wrong)


def test_disagreeing_voxels_are_counted_and_placed() -> None:
    blob = soft_blob(SHAPE, (4, 5, 5), 3)
    label_map = (blob > 0.5).astype(np.float32)
    file = Path("labelsTr/sub-01.nii.gz")
    assert soft_label.label_map_findings(file, label_map, [blob], ONE) == []
    label_map[0, 1, 2] = label_map[8, 9, 10] = 1
    text = messages(soft_label.label_map_findings(file, label_map, [blob], ONE))
    assert "2 voxels that differ, first at (x, y, z) = (0, 1, 2), (8, 9, 10)" in text
    assert "write the label map again as soft label > 0.5" in text


@pytest.mark.parametrize(("value", "found"), [(2, r"\(2\)"), (0.5, r"\(0.5\)"), (255, r"\(255\)")])
def test_values_that_are_no_label_are_named(value: float, found: str) -> None:
    blob = soft_blob(SHAPE, (4, 5, 5), 3)
    label_map = np.where(blob > 0.5, value, 0)
    findings = soft_label.label_map_findings(Path("labelsTr/sub-01.nii.gz"), label_map, [blob], ONE)
    with pytest.raises(UserError, match=f"values that are not in dataset.json: expected 0, 1, found {found}"):
        soft_label.raise_first_error(findings)
