"""One row for each way in which a dataset can be wrong, and none for a dataset that is right."""

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from tiny_dataset import TinyDataset, affine_of, make_tiny_dataset, save_nifti, soft_blob

from nnunet_softseg import cli
from nnunet_softseg.datasets.check import (
    channel_findings,
    check,
    orientation_findings,
    spacing_findings,
)
from nnunet_softseg.datasets.raw_dataset import split_findings
from nnunet_softseg.errors import UserError
from nnunet_softseg.io.case_files import subjects_of

CASE = "sub-02_T2w"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> TinyDataset:
    """One case per subject, two labels: nothing to complain of."""
    cases = ("sub-01_T2w", "sub-02_T2w", "sub-03_T2w")
    return make_tiny_dataset(tmp_path_factory.mktemp("pristine"), cases, labels=(1, 2), shape=(12, 13, 24))


@pytest.fixture
def dataset(pristine: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyDataset:
    return pristine.copied(tmp_path / "nnunet", monkeypatch)


def change_json(tiny: TinyDataset, **changes: Any) -> None:
    content = {**tiny.dataset_json, **changes}
    content = {key: value for key, value in content.items() if value is not None}
    (tiny.raw / "dataset.json").write_text(json.dumps(content))


def change_values(file: Path, function: Callable[[Any], Any]) -> None:
    image = nib.load(file)
    save_nifti(file, np.asarray(function(image.get_fdata())).astype(np.float32), image.affine)


def change_affine(file: Path, change: Any) -> None:
    image = nib.load(file)
    save_nifti(file, np.asarray(image.dataobj), image.affine + change)


def set_header(dataset: TinyDataset, case: str = CASE, **fields: Any) -> None:
    """Give the image, soft labels and label map of a case header fields that nibabel would mend."""
    soft_labels = [dataset.soft_label(case, label) for label in dataset.labels]
    for file in (dataset.image(case), dataset.label_map(case), *soft_labels):
        content = bytearray(gzip.decompress(file.read_bytes()))
        header = np.frombuffer(content, nib.Nifti1Header().structarr.dtype, 1)
        for name, value in fields.items():
            header[name] = value
        file.write_bytes(gzip.compress(bytes(content)))


def scale(dataset: TinyDataset, factor: float, case: str = CASE) -> None:
    soft_labels = [dataset.soft_label(case, label) for label in dataset.labels]
    for file in (dataset.image(case), dataset.label_map(case), *soft_labels):
        image = nib.load(file)
        save_nifti(file, np.asarray(image.dataobj), np.diag([factor] * 3 + [1]) @ image.affine)


def with_one(value: float) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array[1, 2, 3] = value
        return array

    return change


def set_splits(dataset: TinyDataset, splits: Any) -> None:
    dataset.preprocessed.mkdir(parents=True)
    (dataset.preprocessed / "splits_final.json").write_text(
        splits if isinstance(splits, str) else json.dumps(splits)
    )


def set_two_splits(dataset: TinyDataset) -> None:
    first, *others = dataset.cases
    set_splits(dataset, [{"train": others, "val": [first]}])
    (dataset.raw / "splits_final.json").write_text(json.dumps([{"train": [first], "val": others}]))


def set_planned_labels(dataset: TinyDataset) -> None:
    dataset.preprocessed.mkdir(parents=True)
    (dataset.preprocessed / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "cord": 1}}))


def promising() -> bytes:
    """A header of 30000 x 30000 x 30000 voxels of 4 bytes, and not one of them."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape((30000, 30000, 30000))
    header["vox_offset"], header["magic"], header["sform_code"] = 352, b"n+1", 1
    header["srow_x"][0] = header["srow_y"][1] = header["srow_z"][2] = 1
    return header.binaryblock + bytes(4)


def soft(dataset: TinyDataset, label: int = 1) -> Path:
    return dataset.soft_label(CASE, label)


SHIFT = np.zeros((4, 4))
SHIFT[2, 3] = 0.02

ROWS = ("srow_x", "srow_y", "srow_z")


def erase_overlap(dataset: TinyDataset) -> None:
    """Label 2 lies in label 1, and labelsTr has neither where both are."""
    whole = nib.load(soft(dataset)).get_fdata()
    change_values(soft(dataset, 2), lambda a: 0.8 * whole)
    change_values(dataset.label_map(CASE), lambda a: np.where(0.8 * whole > 0.5, 0, whole > 0.5))


ERRORS: list[tuple[str, Callable[[TinyDataset], Any], str]] = [
    (
        "pixdim and affine",
        lambda d: set_header(d, pixdim=[1, 0.5, 0.5, 3, 1, 1, 1, 1]),
        "imagesTr/sub-02_T2w_0000.nii.gz: has two voxel sizes: expected 1, 1.2, 0.9 mm as its affine, "
        "found 0.5, 0.5, 3 in pixdim: .*set_qform",
    ),
    (
        "pixdim 0",
        lambda d: set_header(d, pixdim=[1, 0, 1.2, 0.9, 1, 1, 1, 1]),
        "sub-02_T2w_0000.nii.gz: has two voxel sizes: .*found 0, 1.2, 0.9 in pixdim",
    ),
    (
        "sform zero",
        lambda d: set_header(d, **dict.fromkeys(ROWS, 0)),
        "imagesTr/sub-02_T2w_0000.nii.gz: has an affine that maps no volume: .*repair its sform, the qform",
    ),
    (
        "sform NaN, another reader",
        lambda d: (
            change_json(d, overwrite_image_reader_writer="NibabelIO"),
            set_header(d, **dict.fromkeys(ROWS, np.nan)),
        ),
        "imagesTr/sub-02_T2w_0000.nii.gz: has an affine that maps no volume: .*repair its sform, the qform",
    ),
    (
        "a header that promises too much",
        lambda d: d.image(CASE).write_bytes(gzip.compress(promising())),
        "imagesTr/sub-02_T2w_0000.nii.gz: truncated data: expected 108000000000352 bytes by its header",
    ),
    (
        "no dataset.json",
        lambda d: (d.raw / "dataset.json").unlink(),
        r"dataset.json: unreadable: .*found none",
    ),
    ("broken dataset.json", lambda d: (d.raw / "dataset.json").write_text("{"), "dataset.json: unreadable"),
    (
        "not an object",
        lambda d: (d.raw / "dataset.json").write_text("[1]"),
        "not a JSON object: .*found list",
    ),
    ("no labels", lambda d: change_json(d, labels=None), "keys are missing: .*found no labels"),
    ("no background", lambda d: change_json(d, labels={"cord": 1}), 'expected "background": 0 and integers'),
    ("background alone", lambda d: change_json(d, labels={"background": 0}), "at least one above 0"),
    (
        "gap in labels",
        lambda d: change_json(d, labels={"background": 0, "cord": 2}),
        "expected consecutive values",
    ),
    (
        "ignore label",
        lambda d: change_json(d, labels={"background": 0, "cord": 1, "grey": 2, "ignore": 4}),
        r'expected "ignore": 3, the highest value, found 4: renumber it',
    ),
    (
        "regions",
        lambda d: change_json(d, labels={"background": 0, "cord": [1, 2], "grey": 2}),
        "regions_class_order does not fit the labels: expected 2 values out of 1, 2.*found None",
    ),
    (
        "regions in the order of regions",
        lambda d: change_json(d, regions_class_order=[[1, 2], [2]]),
        r"regions_class_order does not fit the labels: expected 2 values out of 1, 2.*found \[\[1, 2\], ",
    ),
    (
        "names and numbers of channels mixed up",
        lambda d: change_json(d, channel_names={"MRI": 0}),
        r'channel_names that nnU-Net misreads: expected {"0": "T1w", .*found {\'MRI\': 0}',
    ),
    (
        "a list of channels",
        lambda d: change_json(d, channel_names=["MRI"]),
        r"channel_names that nnU-Net misreads: .*found \['MRI'\]",
    ),
    (
        "channels in another order than their numbers",
        lambda d: change_json(d, channel_names={"1": "CT", "0": "MRI"}),
        "channel_names that nnU-Net misreads: .*in this order",
    ),
    (
        "a list of cases",
        lambda d: change_json(d, dataset=[{"image": "a.nii.gz", "label": "b.nii.gz"}]),
        "cases that nnU-Net cannot read: .*correct the key dataset",
    ),
    (
        "one image of a case, not a list",
        lambda d: change_json(d, dataset={CASE: {"image": "a.nii.gz", "label": "b.nii.gz"}}),
        f"cases that nnU-Net cannot read: .*found {CASE}: ",
    ),
    (
        "neither reading of overlapping labels",
        erase_overlap,
        "sub-02_T2w.nii.gz: label map disagrees with .*of labels that overlap, the later value",
    ),
    (
        "NaN in all cases",
        lambda d: [change_values(d.soft_label(case, 2), lambda a: a * np.nan) for case in d.cases],
        "nothing is annotated: .*found none of label2 in any case",
    ),
    (
        "other format",
        lambda d: change_json(d, file_ending=".jpg"),
        "images of another format: .*found '.jpg'.*nnUNetTrainer",
    ),
    (
        "other reader",
        lambda d: change_json(d, overwrite_image_reader_writer="Tiff3DIO"),
        "not a reader of .nii.gz images: .*NibabelIOWithReorient, found 'Tiff3DIO'",
    ),
    (
        "no images",
        lambda d: shutil.rmtree(d.raw / "imagesTr"),
        "imagesTr: no training images: expected <case>_0000.nii.gz",
    ),
    (
        "no soft labels",
        lambda d: shutil.rmtree(d.raw / "softLabelsTr"),
        "no soft labels: .*labelsTr alone serves vanilla",
    ),
    (
        "missing soft label",
        lambda d: soft(d, 2).unlink(),
        "sub-02_T2w_0002.nii.gz: soft label of case sub-02_T2w, label 2",
    ),
    ("extra case", lambda d: soft(d).with_name("sub-9_0001.nii.gz").touch(), "sub-9_0001.nii.gz: extra file"),
    (
        "wrong shape",
        lambda d: change_values(soft(d), lambda a: a[:-1]),
        r"sub-02_T2w_0001.*shape differs.*\(11, 13, 24\)",
    ),
    (
        "affine",
        lambda d: change_affine(soft(d), SHIFT),
        r"affine differs from that of the image by 0.02 \(row 2, column 3",
    ),
    ("inf", lambda d: change_values(soft(d), with_one(np.inf)), "sub-02_T2w_0001.*NaN or infinite values"),
    ("percent", lambda d: change_values(soft(d), lambda a: 100 * a), r"outside \[0, 1\]: .*divide it by 100"),
    ("bytes", lambda d: change_values(soft(d), lambda a: 255 * a), r"outside \[0, 1\]: .*divide it by 255"),
    (
        "negative",
        lambda d: change_values(soft(d), with_one(-0.1)),
        r"outside \[0, 1\]: .*found \[-0.1, 1\]: clip it",
    ),
    (
        "4-D",
        lambda d: change_values(soft(d), lambda a: np.stack([a, a], -1)),
        "sub-02_T2w_0001.*not a 3-D image",
    ),
    (
        "4-D image",
        lambda d: change_values(d.image(CASE), lambda a: np.stack([a, a], -1)),
        "sub-02_T2w_0000.*not a 3-D image.*: take each volume, or their mean",
    ),
    (
        "corrupt gzip",
        lambda d: soft(d).write_bytes(soft(d).read_bytes()[:200]),
        "sub-02_T2w_0001.nii.gz: corrupt or truncated gzip",
    ),
    (
        "no header",
        lambda d: soft(d).write_bytes(gzip.compress(bytes(400))),
        "sub-02_T2w_0001.*cannot be opened",
    ),
    (
        "no label map",
        lambda d: d.label_map(CASE).unlink(),
        "labelsTr/sub-02_T2w.nii.gz: label map is missing",
    ),
    (
        "label map disagrees",
        lambda d: change_values(d.label_map(CASE), with_one(1)),
        r"labelsTr/sub-02_T2w.nii.gz: label map disagrees.*1 voxels that differ, first at .* = \(1, 2, 3\)",
    ),
    (
        "label map has others",
        lambda d: change_values(d.label_map(CASE), with_one(7)),
        r"not in dataset.json: .*found \(7\)",
    ),
    (
        "label map shape",
        lambda d: change_values(d.label_map(CASE), lambda a: a[1:]),
        "labelsTr/sub-02_T2w.*shape differs",
    ),
    ("broken image", lambda d: d.image(CASE).write_bytes(b"\x1f\x8b123"), "sub-02_T2w_0000.nii.gz: corrupt"),
    (
        "broken first image",
        lambda d: d.image(d.cases[0]).write_bytes(b""),
        "sub-01_T2w_0000.nii.gz: cannot be opened",
    ),
    (
        "NaN in image",
        lambda d: change_values(d.image(CASE), with_one(np.nan)),
        "sub-02_T2w_0000.*NaN or infinite intensities",
    ),
    (
        "too few channels",
        lambda d: change_json(d, channel_names={"0": "T1w", "1": "T2w"}),
        "wrong number of channels: expected 2, as channel_names, found 1",
    ),
    (
        "unknown case in splits",
        lambda d: set_splits(d, [{"train": ["sub-07_T2w"], "val": ["sub-01_T2w"]}]),
        "fold 0 names unknown cases: .*found sub-07_T2w",
    ),
    (
        "fold without validation",
        lambda d: set_splits(d, [{"train": list(d.cases), "val": []}]),
        "fold 0 has no validation case: expected at least one",
    ),
    (
        "fold without training",
        lambda d: set_splits(d, [{"train": [], "val": list(d.cases)}]),
        "fold 0 has no training case: expected at least one",
    ),
    (
        "image without channel",
        lambda d: shutil.copy(d.image(CASE), d.image(CASE).with_name("sub-9_T2w.nii.gz")),
        r"imagesTr/sub-9_T2w.nii.gz: no channel in its name: .*: rename it to sub-9_T2w_0000.nii.gz",
    ),
    (
        "folder in capitals",
        lambda d: (d.raw / "labelsTr").rename(d.raw / "labelsTR"),
        "Dataset101_Tiny/labelsTR: folder by another name: .*: rename it to labelsTr",
    ),
    ("no label maps", lambda d: shutil.rmtree(d.raw / "labelsTr"), "labelsTr: no label maps"),
    (
        "soft label without number",
        lambda d: soft(d, 2).rename(d.raw / f"softLabelsTr/{CASE}.nii.gz"),
        r"softLabelsTr/sub-02_T2w.nii.gz: extra file.*: rename it to sub-02_T2w_0001.nii.gz, if it holds",
    ),
    (
        "bytes that peak low",
        lambda d: change_values(soft(d), lambda a: np.round(89 * a)),
        r"outside \[0, 1\]: .*divide it by 255 if 255 means a whole voxel, by 100 if it is in percent",
    ),
    (
        "sum of raters",
        lambda d: change_values(soft(d), lambda a: np.round(3 * a)),
        r"outside \[0, 1\]: .*one file per label.*if it is the sum of 3 raters' masks, divide it by 3",
    ),
    (
        "broken splits",
        lambda d: set_splits(d, "[{"),
        "broken JSON in nnUNet_preprocessed: .*splits_final.json",
    ),
    (
        "splits of another form",
        lambda d: set_splits(d, [["sub-01_T2w"]]),
        "splits_final.json: fold 0 is no split: expected a list of ",
    ),
    (
        "a split that is no list",
        lambda d: set_splits(d, {"train": [*d.cases[1:]], "val": [d.cases[0]]}),
        "splits_final.json: fold 0 is no split: expected a list of ",
    ),
    (
        "a split of other names",
        lambda d: set_splits(d, [{"train": [*d.cases[1:]], "validation": [d.cases[0]]}]),
        "splits_final.json: fold 0 is no split: .*found {'train'",
    ),
    (
        "broken splits of the raw dataset",
        lambda d: (d.raw / "splits_final.json").write_text("[{"),
        "broken JSON in nnUNet_raw: .*splits_final.json",
    ),
    (
        "a channel that no model has",
        lambda d: d.image(CASE).rename(d.raw / f"imagesTr/{CASE}_0003.nii.gz"),
        "channels are not numbered from 0 on: expected _0000, found _0003: add what is missing, or rename",
    ),
]


def ignore_all_of_a_slice(dataset: TinyDataset) -> None:
    change_json(dataset, labels={"background": 0, "label1": 1, "label2": 2, "ignore": 3})
    change_values(dataset.label_map(CASE), lambda a: np.where(np.arange(24) == 8, 3, a))


WARNINGS: list[tuple[str, Callable[[TinyDataset], Any], str]] = [
    (
        "NaN",
        lambda d: change_values(soft(d), lambda a: np.where(np.arange(24) < 6, np.nan, a)),
        r"labels are unknown in parts of 1 cases: .*found 12.5% of them unknown in sub-02_T2w",
    ),
    (
        "ignored",
        ignore_all_of_a_slice,
        "(?s)sub-02_T2w_0001.nii.gz: soft label where labelsTr has the label to ignore.*found 4.2% of them",
    ),
    (
        "number",
        lambda d: change_json(d, numTraining=7),
        "wrong number of cases: expected numTraining = 3.*found 7",
    ),
    (
        "label map affine",
        lambda d: change_affine(d.label_map(CASE), SHIFT),
        "labelsTr/sub-02_T2w.nii.gz: affine differs",
    ),
    (
        "overlap",
        lambda d: change_values(soft(d, 2), lambda a: np.maximum(a, 0.2)),
        "labels of this case overlap: .*up to 1.2,",
    ),
    (
        "subject on both sides",
        lambda d: set_splits(d, [{"train": ["sub-01_T2w", "sub-02_T2w"], "val": ["sub-01_T2w"]}]),
        "fold 0 validates on subjects that it trains on: .*found sub-01: write one grouped by subject",
    ),
    (
        "case in no fold",
        lambda d: set_splits(d, [{"train": [d.cases[0]], "val": [d.cases[1]]}]),
        "splits_final.json: 1 cases are in no fold: .*found sub-03_T2w",
    ),
    ("two splits", set_two_splits, "two files that differ, of which training reads"),
    (
        "ending in capitals",
        lambda d: shutil.copy(d.image(CASE), d.raw / "imagesTr/sub-9_T2w_0000.NII.GZ"),
        r"sub-9_T2w_0000.NII.GZ: nnU-Net leaves this image out.*: rename it to sub-9_T2w_0000.nii.gz",
    ),
    (
        "other ending",
        lambda d: shutil.copy(d.image(CASE), d.raw / "imagesTr/sub-9_T2w_0000.nii"),
        r"sub-9_T2w_0000.nii: nnU-Net leaves this image out.*: write it again as sub-9_T2w_0000.nii.gz",
    ),
    (
        "another format",
        lambda d: shutil.copy(d.image(CASE), d.raw / "imagesTr/sub-9_T2w_0000.mha"),
        r"sub-9_T2w_0000.mha: nnU-Net leaves this image out.*: write it again as sub-9_T2w_0000.nii.gz",
    ),
    (
        "label map of no case",
        lambda d: shutil.copy(d.label_map(CASE), d.raw / "labelsTr/sub-9_T2w.nii.gz"),
        "labelsTr: 1 label maps of no case: .*found labelsTr/sub-9_T2w.nii.gz",
    ),
    ("other labels", lambda d: set_planned_labels(d), "labels have changed since planning"),
]


def empty_label(dataset: TinyDataset) -> None:
    change_values(soft(dataset, 2), np.zeros_like)
    change_values(dataset.label_map(CASE), lambda a: np.where(a == 2, 0, a))


def only_masks(dataset: TinyDataset) -> None:
    for case in dataset.cases:
        for label in dataset.labels:
            change_values(dataset.soft_label(case, label), lambda a: a > 0.5)


def in_micrometres(dataset: TinyDataset) -> None:
    for file in (dataset.image(CASE), dataset.label_map(CASE), soft(dataset, 1), soft(dataset, 2)):
        image = nib.load(file)
        changed = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
        changed.header.set_xyzt_units("micron")
        nib.save(changed, file)


WARNINGS += [
    ("other unit", in_micrometres, "imagesTr/sub-02_T2w_0000.nii.gz: is not in mm: expected mm"),
    (
        "cm for mm",
        lambda d: scale(d, 10),
        "imagesTr/sub-02_T2w_0000.nii.gz: voxels unlike those of the others: expected within 3 times "
        "1 x 1.2 x 0.9 mm along R, A, S, found 10 x 12 x 9 mm",
    ),
    (
        "no form code",
        lambda d: set_header(d, sform_code=0, qform_code=0),
        "imagesTr/sub-02_T2w_0000.nii.gz: does not say where it lies: .*found both 0",
    ),
    (
        "nearly one size",
        lambda d: set_header(d, pixdim=[1, 1.004, 1.2, 0.9, 1, 1, 1, 1]),
        "imagesTr/sub-02_T2w_0000.nii.gz: has two voxel sizes: .*found 1.004, 1.2, 0.9 in pixdim",
    ),
    ("all zero", empty_label, "softLabelsTr/sub-02_T2w_0002.nii.gz: all zero"),
    ("masks", only_masks, "softLabelsTr: every soft label is a mask"),
]


def test_right_dataset_is_right(dataset: TinyDataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "-d", "101", "-np", "2", "-o", str(dataset.root / "report.json")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Dataset101_Tiny: 3 cases looked at\n0 errors\n0 warnings\nnext: ")
    report = json.loads((dataset.root / "report.json").read_text())
    assert report["errors"] == report["warnings"] == []
    assert report["made_by"]["nnunet_softseg"]
    assert report["num_cases"] == 3


@pytest.mark.parametrize(("damage", "message"), [row[1:] for row in ERRORS], ids=[row[0] for row in ERRORS])
def test_error_is_found(
    dataset: TinyDataset, damage: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(dataset)
    report = check("Dataset101_Tiny", 0, progress=False)
    text = "\n".join(map(str, report.errors))
    assert re.search(message, text), text
    assert cli.main(["check", "-d", "101", "-np", "0"]) == 2
    assert text.splitlines()[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"), [row[1:] for row in WARNINGS], ids=[row[0] for row in WARNINGS]
)
def test_warning_is_given(dataset: TinyDataset, change: Any, message: str) -> None:
    change(dataset)
    report = check(101, 0, progress=False)
    assert report.errors == ()
    text = "\n".join(map(str, report.warnings))
    assert re.search(message, text), text


def test_two_protocols_are_no_outliers() -> None:
    fine, thick, centimetres = (0.8, 0.8, 0.8), (0.5, 0.5, 5.0), (8.0, 8.0, 8.0)
    spacings = {f"{index}": (fine, fine, thick)[index % 3] for index in range(30)}
    assert spacing_findings(spacings) == []
    (finding,) = spacing_findings({**spacings, "odd": centimetres, "broken": None})
    assert finding.file == "odd"
    assert spacing_findings({"a": fine, "b": centimetres}) == []  # which of them is odd?


def test_all_problems_of_all_cases_are_collected(dataset: TinyDataset) -> None:
    """Each is named once, in one line, whichever process found it."""
    first, second, third = dataset.cases
    change_values(dataset.soft_label(first, 1), with_one(np.inf))
    change_affine(dataset.soft_label(first, 1), SHIFT)
    dataset.soft_label(first, 2).unlink()
    change_values(dataset.soft_label(second, 2), lambda a: 255 * a)
    dataset.image(third).write_bytes(b"")
    report = check(101, 2, progress=False)
    where = sorted((finding.file, finding.what.split(" by ")[0]) for finding in report.errors)
    assert where == [
        ("imagesTr/sub-03_T2w_0000.nii.gz", "cannot be opened"),
        ("softLabelsTr/sub-01_T2w_0001.nii.gz", "NaN or infinite values"),
        ("softLabelsTr/sub-01_T2w_0001.nii.gz", "affine differs from that of the image"),
        ("softLabelsTr/sub-01_T2w_0002.nii.gz", "soft label of case sub-01_T2w, label 2, is missing"),
        ("softLabelsTr/sub-02_T2w_0002.nii.gz", "values outside [0, 1]"),
    ]
    assert not any("\n" in str(finding) for finding in report.errors)
    assert report.num_cases == 3


@pytest.mark.parametrize(("reader", "is_error"), [("SimpleITKIO", True), ("NibabelIO", False)])
def test_geometry_is_that_which_the_reader_sees(dataset: TinyDataset, reader: str, is_error: bool) -> None:
    """Of a sheared sform, ITK takes the qform and nibabel does not: only one sees this label off."""
    change_json(dataset, overwrite_image_reader_writer=reader)
    for file in (dataset.image(CASE), dataset.label_map(CASE), soft(dataset, 1), soft(dataset, 2)):
        image = nib.load(file)
        sform, qform = image.affine.copy(), image.affine.copy()
        sform[0, 1] += 0.01
        qform[2, 3] += 5.0 if file == soft(dataset, 1) else 0.0
        sheared = nib.Nifti1Image(np.asarray(image.dataobj), None)
        sheared.set_sform(sform, 1)
        sheared.set_qform(qform, 1)
        nib.save(sheared, file)
    errors = [str(error) for error in check(101, 0, progress=False).errors]
    assert len(errors) == is_error
    if is_error:
        assert (
            "sub-02_T2w_0001.nii.gz: affine differs from that of the image by 5 (row 2, column 3" in errors[0]
        )
        assert "of the reader)" in errors[0]


def test_unknown_dataset_is_a_user_error(dataset: TinyDataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "-d", "999"]) == 2
    assert "dataset 999: expected one folder DatasetNNN_Name" in capsys.readouterr().err


def test_folders_that_are_not_set_are_a_user_error(
    dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(
        UserError, match="nnUNet_raw: expected a folder, found the environment variable not set"
    ):
        check("Dataset101_Tiny")


def test_images_listed_in_dataset_json_are_found(dataset: TinyDataset) -> None:
    """nnU-Net allows files anywhere, named in dataset.json by way of environment variables."""
    (dataset.raw / "imagesTr").rename(dataset.root / "elsewhere")
    entries = {
        case: {"images": [f"$nnUNet_raw/../elsewhere/{case}_0000.nii.gz"], "label": f"labelsTr/{case}.nii.gz"}
        for case in dataset.cases
    }
    change_json(dataset, dataset=entries)
    report = check(101, 0, progress=False)
    assert (report.num_cases, report.errors, report.warnings) == (3, (), ())


# Orientation


@pytest.mark.parametrize(
    ("reader", "orientations", "expected"),
    [
        ("SimpleITKIO", ("LAS", "LSA"), "error"),
        ("NibabelIO", ("LAS", "SLA"), "error"),
        ("NibabelIOWithReorient", ("LAS", "LSA"), None),
        ("SimpleITKIOWithReorient", ("LAS", "ASR"), None),
        ("SimpleITKIO", ("LAS", "RAS"), "warning"),
        ("NibabelIOWithReorient", ("LPI", "RAS"), None),
        ("SimpleITKIO", ("LAS", "LAS"), None),
    ],
)
def test_orientations_as_the_reader_gives_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reader: str,
    orientations: tuple[str, ...],
    expected: str | None,
) -> None:
    affines = [affine_of(orientation, (1, 1, 1)) for orientation in orientations]
    cases = ("sub-01_T2w", "sub-02_T2w")
    dataset = make_tiny_dataset(tmp_path, cases, shape=(14, 14, 14), affines=affines, reader=reader)
    for name, value in dataset.environment.items():
        monkeypatch.setenv(name, value)
    report = check(101, 0, progress=False)
    assert len(report.errors) == (expected == "error")
    assert len(report.warnings) == (expected == "warning")
    for finding in (*report.errors, *report.warnings):
        assert "sub-01_T2w" in str(finding)
        assert "sub-02_T2w" in str(finding)
        assert '"overwrite_image_reader_writer": "NibabelIOWithReorient" in dataset.json' in str(finding)


def test_mixed_orientations_name_a_few_cases_of_each() -> None:
    orientations: dict[str, str | None] = {f"sub-{number:02d}": "SAR" for number in range(9)}
    orientations |= {"sub-20": "ASR", "sub-21": None}
    finding = str(orientation_findings(orientations, ".nii.gz")[0])
    assert "axis 0 in sub-00, sub-01, sub-02 and 6 more; axis 1 in sub-20:" in finding


# Cases held against each other


def two_channels(dataset: TinyDataset, shift: Any = 0) -> None:
    """A second channel, a copy of the first; that of `CASE` is moved."""
    change_json(dataset, channel_names={"0": "T2w", "1": "T1w"})
    for case in dataset.cases:
        second = dataset.raw / f"imagesTr/{case}_0001.nii.gz"
        shutil.copy(dataset.image(case), second)
        if case == CASE:
            change_affine(second, shift)


def test_channels_lie_on_one_grid(dataset: TinyDataset, capsys: pytest.CaptureFixture[str]) -> None:
    shift = np.zeros((4, 4))
    shift[0, 3] = 5
    two_channels(dataset, shift)
    (error,) = check(101, 0, progress=False).errors
    assert "imagesTr/sub-02_T2w_0001.nii.gz: affine differs from that of channel" in str(error)
    assert "by 5 (row 0, column 3" in str(error)
    assert "WARNING" not in capsys.readouterr().out  # nnU-Net's own, which nobody reads
    change_values(dataset.raw / f"imagesTr/{CASE}_0001.nii.gz", lambda a: a[1:])
    (error,) = check(101, 0, progress=False).errors
    assert "shape differs from that of channel" in str(error)


def test_channels_on_one_grid_are_right(dataset: TinyDataset) -> None:
    two_channels(dataset)
    report = check(101, 0, progress=False)
    assert (report.errors, report.warnings) == ((), ())


def test_ids_that_end_in_four_digits_need_a_channel_too(dataset: TinyDataset) -> None:
    for number, case in enumerate(dataset.cases, start=1):
        dataset.image(case).rename(dataset.raw / f"imagesTr/scan_{number:04d}.nii.gz")
        dataset.label_map(case).rename(dataset.raw / f"labelsTr/scan_{number:04d}.nii.gz")
    text = "\n".join(map(str, check(101, 0, progress=False).errors))
    assert "if each is a case, add its channel: rename scan_0001.nii.gz to scan_0001_0000.nii.gz" in text


def test_channels_in_another_order_are_flagged() -> None:
    """Two kinds of intensities, as far apart as T1w and T2w around the cord; case 3 has them swapped."""
    random = np.random.default_rng(0)
    kinds = np.array([[-1.5, -0.5, 0, 0.5, 2, 1.8], [-1, -0.8, -0.2, 1, 1.5, -0.9]])
    cases = {f"sub-{number}": kinds + 0.1 * random.standard_normal(kinds.shape) for number in range(8)}
    assert channel_findings({name: rows.tolist() for name, rows in cases.items()}, ["T2w", "T1w"]) == []
    cases["sub-3"] = cases["sub-3"][::-1]
    (finding,) = channel_findings({name: rows.tolist() for name, rows in cases.items()}, ["T2w", "T1w"])
    assert (finding.file, finding.severity) == ("sub-3", "warning")
    assert finding.found == "channel 0 like T1w, channel 1 like T2w"
    copies = {name: [[0.0, 1.0], [0.0, 1.0]] for name in cases}  # one image twice: no order to tell
    assert channel_findings(copies, ["T2w", "T1w"]) == []


# Splits


@pytest.mark.parametrize(
    ("cases", "subjects"),
    [
        (["SUB-01_T1w", "sub-01_T2w"], ["sub-01", "sub-01"]),
        (["pat3_T1", "pat3_T2", "pat4_T1"], ["pat3", "pat3", "pat4"]),
        (["study_p3_T1", "study_p3_T2", "study_p4_T1"], ["study_p3", "study_p3", "study_p4"]),
        (["p3_1", "p3_2", "p4_1", "p5_1"], ["p3", "p3", "p4", "p5"]),  # visits
        (["p3_20200131", "p3_20210228", "p4_20200301"], ["p3", "p3", "p4"]),
        (["p3_20200131_T2w", "p3_20210228_T1w", "p4_20200301_T2w"], ["p3", "p3", "p4"]),
        (["a1_p3_20200131", "a1_p3_20210228", "a2_p3_20200301"], ["a1_p3", "a1_p3", "a2_p3"]),
        (["case_20200101", "case_20210505"], ["case_20200101", "case_20210505"]),
        (["case1_20200101", "case1_20210505"], ["case1_20200101", "case1_20210505"]),
        (["siteA_20200101", "siteB_20210505"], ["sitea_20200101", "siteb_20210505"]),
        (
            ["site1_20200101", "site2_20210505", "site2_20210532"],
            ["site1_20200101", "site2_20210505", "site2_20210532"],
        ),
        (["case_001", "case_002"], ["case_001", "case_002"]),
        (["siteA_001", "siteA_002", "siteB_001"], ["sitea_001", "sitea_002", "siteb_001"]),
        (["pat1", "pat2"], ["pat1", "pat2"]),
    ],
)
def test_names_tell_subjects_by_what_recurs(cases: list[str], subjects: list[str]) -> None:
    assert subjects_of(cases) == dict(zip(cases, subjects, strict=True))


def test_one_person_on_both_sides_is_found_whatever_the_names() -> None:
    for train, val, who in (
        (["SUB-01_T1w", "sub-02_T1w"], ["sub-01_T2w"], "sub-01"),
        (["pat3_T1", "pat4_T1", "pat4_T2"], ["pat3_T2"], "pat3"),
    ):
        (finding,) = split_findings([{"train": train, "val": val}], [*train, *val])
        assert "validates on subjects that it trains on" in finding.what
        assert finding.found == who


def test_planned_split_by_case_is_warned_of_only_where_subjects_repeat() -> None:
    assert split_findings(None, ["sub-01_T1w", "sub-02_T1w", "liver_001", "liver_002"]) == []
    finding = split_findings(None, ["sub-01_T1w", "sub-01_T2w", "sub-02_T1w"])[0]
    assert "several cases of sub-01" in str(finding)


def test_grouped_split_is_right() -> None:
    cases = ["sub-01_T1w", "sub-01_T2w", "sub-02_T1w", "sub-012_T1w"]
    splits = [{"train": cases[:2], "val": cases[2:]}, {"train": cases[2:], "val": cases[:2]}]
    assert split_findings(splits, cases) == []


# What a soft blob is


def test_pristine_label_map_is_soft_above_half(dataset: TinyDataset) -> None:
    """The fixture itself: partial volume is there, and the label map belongs to it."""
    label = nib.load(dataset.soft_label(CASE, 1)).get_fdata()
    assert np.count_nonzero((label > 0) & (label < 1)) > 0
    label_map = nib.load(dataset.label_map(CASE)).get_fdata()
    np.testing.assert_array_equal(label_map == 1, label > 0.5)
    assert soft_blob((9, 9, 9), (4, 4, 4), 3)[4, 4, 4] == 1


def test_files_that_the_dataset_lists_may_lie_anywhere(dataset: TinyDataset) -> None:
    elsewhere = dataset.raw.parent / "elsewhere"
    for name in ("imagesTr", "labelsTr"):
        shutil.move(dataset.raw / name, elsewhere / name)
    listed = {
        case: {
            "images": [f"../elsewhere/imagesTr/{case}_0000.nii.gz"],
            "label": f"../elsewhere/labelsTr/{case}.nii.gz",
        }
        for case in dataset.cases
    }
    change_json(dataset, dataset=listed)
    report = check(101, 0, progress=False)
    assert report.errors == ()
    assert report.warnings == ()
    shutil.move(elsewhere / "labelsTr", elsewhere / "gone")
    report = check(101, 0, progress=False)
    assert [(finding.file, finding.what) for finding in report.errors] == [
        ("elsewhere/labelsTr", "no label maps")
    ]
