"""BIDS to an nnU-Net dataset: what is on disk afterwards, who is where, and what is refused."""

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_softseg.datasets.check import check
from nnunet_softseg.datasets.conversion import ConversionReport, convert
from nnunet_softseg.datasets.conversion.splits import FOLDS, make_folds, split_subjects
from nnunet_softseg.errors import UserError
from nnunet_softseg.phantom import phantom

REPOSITORY = Path(__file__).parents[1]
TRUTH = {"derivatives": "derivatives/truth", "suffix": "_label-SC_desc-truth_probseg"}


def run(*where: object, **options: object) -> ConversionReport:
    """Convert the phantom's truth unless told otherwise."""
    return convert(*where, **{"progress": False, **TRUTH, **options})


def to_dataset(*where: object, **options: object) -> Path:
    return run(*where, **options).folder


@pytest.fixture(scope="module")
def phantom_bids(tmp_path_factory) -> Path:
    """Five subjects of two contrasts, small."""
    folder = tmp_path_factory.mktemp("phantom") / "bids"
    return phantom(folder, n=5, seed=2, fov_mm=(36.0, 36.0, 30.0), contrasts=("mt-on", "dwi"), progress=False)


@pytest.fixture
def bids(phantom_bids: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(phantom_bids, tmp_path / "bids"))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "nnUNet_raw").mkdir()
    return tmp_path / "nnUNet_raw"


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def image_of(bids: Path, subject: str = "sub-02") -> Path:
    return bids / subject / "anat" / f"{subject}_flip-1_mt-on_MTS.nii.gz"


def soft_label_of(bids: Path, subject: str = "sub-02") -> Path:
    name = f"{subject}_flip-1_mt-on_MTS_label-SC_desc-truth_probseg.nii.gz"
    return bids / "derivatives" / "truth" / subject / "anat" / name


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def subject_of(case_id: str) -> str:
    return case_id.split("_")[0]


# The dataset


def test_every_case_is_the_image_its_soft_label_and_what_exceeds_one_half(
    phantom_bids: Path, raw: Path
) -> None:
    folder = to_dataset(phantom_bids, 900, "Phantom", raw_folder=raw)
    assert folder == raw / "Dataset900_Phantom"
    cases = json.loads((folder / "conversion.json").read_text())["cases"]
    assert sorted(cases) == sorted(
        f"sub-0{i}_{contrast}" for i in range(1, 6) for contrast in ("mt-on", "dwi")
    )
    for case_id, case in cases.items():
        part = "Ts" if case["part"] == "test" else "Tr"
        image = folder / f"images{part}" / f"{case_id}_0000.nii.gz"
        soft_label = nib.load(folder / f"softLabels{part}" / f"{case_id}_0001.nii.gz")
        label_map = nib.load(folder / f"labels{part}" / f"{case_id}.nii.gz")
        assert image.read_bytes() == (phantom_bids / case["image"]).read_bytes()
        soft = np.asarray(soft_label.dataobj)
        truth = phantom_bids / "derivatives" / "truth" / case["soft_labels"]["cord"]["file"]
        np.testing.assert_array_equal(soft, values(truth))
        assert soft.dtype == np.float32
        assert ((soft > 0) & (soft < 1)).any()
        np.testing.assert_array_equal(np.asarray(label_map.dataobj), soft > 0.5)
        assert label_map.get_data_dtype() == np.uint8
        for label in (soft_label, label_map):
            np.testing.assert_array_equal(label.affine, nib.load(image).affine)
            assert label.header.get_zooms() == nib.load(image).header.get_zooms()
    on_disk = {path.name for path in folder.rglob("*.nii.gz")}
    assert len(on_disk) == 3 * len(cases)


def test_dataset_json_is_what_nnunet_reads(phantom_bids: Path, raw: Path) -> None:
    folder = to_dataset(phantom_bids, 7, "Phantom", raw_folder=raw)
    description = json.loads((folder / "dataset.json").read_text())
    assert folder.name == "Dataset007_Phantom"
    assert description["channel_names"] == {"0": "MRI"}
    assert description["labels"] == {"background": 0, "cord": 1}
    assert description["file_ending"] == ".nii.gz"
    assert description["overwrite_image_reader_writer"] == "NibabelIOWithReorient"
    assert description["numTraining"] == len(list((folder / "imagesTr").iterdir())) == 8


def test_contrasts_of_a_subject_stay_together(phantom_bids: Path, raw: Path) -> None:
    folder = to_dataset(phantom_bids, 900, "Phantom", raw_folder=raw, num_test=1, num_validation=2)
    manifest = json.loads((folder / "conversion.json").read_text())
    folds = json.loads((folder / "splits_final.json").read_text())
    training = {path.name.removesuffix(".nii.gz") for path in (folder / "labelsTr").iterdir()}
    testing = {path.name.removesuffix(".nii.gz") for path in (folder / "labelsTs").iterdir()}
    assert len(testing) == 2
    assert {subject_of(case) for case in testing} == set(manifest["split"]["test"])
    assert len(folds) == FOLDS
    for fold in folds:
        assert set(fold["train"]) | set(fold["val"]) == training
        assert not {subject_of(case) for case in fold["train"]} & {subject_of(case) for case in fold["val"]}
        assert len(fold["val"]) == 4
    assert {subject_of(case) for case in folds[0]["val"]} == set(manifest["split"]["validation"])


def test_sources_are_read_only_and_the_manifest_tells_where_they_are(bids: Path, raw: Path) -> None:
    before = hashes(bids)
    folder = to_dataset(bids, 900, "Phantom", raw_folder=raw)
    assert hashes(bids) == before
    manifest = json.loads((folder / "conversion.json").read_text())
    assert manifest["generated_by"]["version"]
    for case in manifest["cases"].values():
        assert before[case["image"]] == case["image_sha256"]
        soft_label = case["soft_labels"]["cord"]
        assert before[f"derivatives/truth/{soft_label['file']}"] == soft_label["sha256"]
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    (folder / "imagesTr").joinpath(next((folder / "imagesTr").iterdir()).name).write_bytes(b"")
    assert hashes(bids) == before  # no hard links either


def test_our_own_check_finds_nothing(phantom_bids: Path, raw: Path, monkeypatch) -> None:
    from nnunet_softseg.datasets.check import check

    monkeypatch.setenv("nnUNet_raw", str(raw))
    monkeypatch.setenv("nnUNet_preprocessed", str(raw.parent / "nnUNet_preprocessed"))
    to_dataset(phantom_bids, 900, "Phantom")
    report = check(900, num_processes=1, progress=False)
    assert report.num_cases == 8
    assert report.errors == report.warnings == ()


def test_an_image_whose_ending_is_in_capitals_is_copied_as_it_is(bids: Path, raw: Path) -> None:
    image = image_of(bids).rename(bids / "sub-02" / "anat" / "sub-02_flip-1_mt-on_MTS.NII.GZ")
    folder = to_dataset(bids, 900, "Phantom", raw_folder=raw, num_test=0)
    assert (folder / "imagesTr" / "sub-02_mt-on_0000.nii.gz").read_bytes() == image.read_bytes()


def test_other_types_and_endings_arrive_as_float_in_the_geometry_of_the_image(bids: Path, raw: Path) -> None:
    plain = bids / "sub-02" / "anat" / "sub-02_flip-1_mt-on_MTS.nii"
    content = gzip.decompress(image_of(bids).read_bytes())
    plain.write_bytes(content)
    image_of(bids).unlink()
    stored = nib.load(soft_label_of(bids))
    expected = np.asarray(stored.dataobj)
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint16)
    header.set_slope_inter(1 / 50000, 0)
    nudged = stored.affine + 4e-4 * np.eye(4)
    nudged[3, 3] = 1
    nib.Nifti1Image(expected, nudged, header).to_filename(soft_label_of(bids))
    folder = to_dataset(bids, 900, "Phantom", raw_folder=raw, num_test=0)
    soft_label = nib.load(folder / "softLabelsTr" / "sub-02_mt-on_0001.nii.gz")
    assert soft_label.get_data_dtype() == np.float32
    np.testing.assert_allclose(np.asarray(soft_label.dataobj), expected, atol=2e-5)
    np.testing.assert_array_equal(soft_label.affine, stored.affine)
    copied = folder / "imagesTr" / "sub-02_mt-on_0000.nii.gz"
    assert gzip.decompress(copied.read_bytes()) == content
    assert copied.read_bytes()[4:8] == b"\0\0\0\0"
    label_map = values(folder / "labelsTr" / "sub-02_mt-on.nii.gz")
    np.testing.assert_array_equal(label_map, np.asarray(soft_label.dataobj) > 0.5)


def test_sessions_are_part_of_the_case_but_not_of_the_split(bids: Path, raw: Path) -> None:
    for number in range(1, 6):
        subject = f"sub-0{number}"
        for top in (bids, bids / "derivatives" / "truth"):
            for path in list((top / subject).rglob("*.*")):
                target = (
                    top
                    / subject
                    / "ses-a"
                    / path.parent.name
                    / path.name.replace(subject, f"{subject}_ses-a")
                )
                again = Path(str(target).replace("ses-a", "ses-b"))
                for place in (target, again):
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, place)
                path.unlink()
    folder = to_dataset(bids, 900, "Phantom", raw_folder=raw)
    cases = json.loads((folder / "conversion.json").read_text())["cases"]
    assert len(cases) == 20
    assert {"sub-03_ses-a_dwi", "sub-03_ses-b_mt-on"} <= set(cases)
    assert all(
        len({case["part"] for case in cases.values() if case["subject"] == f"sub-0{i}"}) == 1
        for i in range(1, 6)
    )


def test_images_without_soft_label_and_other_contrasts_are_left_out(bids: Path, raw: Path) -> None:
    soft_label_of(bids).unlink()
    folder = to_dataset(bids, 900, "Phantom", raw_folder=raw, contrasts=["mt-on"], num_test=1)
    manifest = json.loads((folder / "conversion.json").read_text())
    assert sorted(manifest["cases"]) == ["sub-01_mt-on", "sub-03_mt-on", "sub-04_mt-on", "sub-05_mt-on"]
    assert manifest["left_out"]["without a soft label"] == ["sub-02/anat/sub-02_flip-1_mt-on_MTS.nii.gz"]
    assert len(manifest["left_out"]["of another contrast"]) == 5


# A second time


def test_the_same_again_keeps_what_is_there(phantom_bids: Path, raw: Path) -> None:
    folder = to_dataset(phantom_bids, 900, "Phantom", raw_folder=raw)
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    to_dataset(phantom_bids, 900, "Phantom", raw_folder=raw)
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_same_sources_give_the_same_files(phantom_bids: Path, tmp_path: Path) -> None:
    folders = [to_dataset(phantom_bids, 900, "Phantom", raw_folder=tmp_path / name) for name in "ab"]
    assert hashes(folders[0]) == hashes(folders[1])


@pytest.mark.parametrize(
    ("dataset_id", "name", "changes", "message"),
    [
        (900, "Phantom", {"seed": 1}, "exists with other content .split"),
        (900, "Phantom", {"contrasts": ["dwi"]}, "exists with other content"),
        (900, "Other", {}, "id 900 is taken by Dataset900_Phantom"),
    ],
)
def test_another_dataset_is_left_alone(phantom_bids, raw, dataset_id, name, changes, message) -> None:
    folder = to_dataset(phantom_bids, 900, "Phantom", raw_folder=raw)
    before = hashes(folder)
    with pytest.raises(UserError, match=message):
        to_dataset(phantom_bids, dataset_id, name, raw_folder=raw, **changes)
    assert hashes(raw) == {f"Dataset900_Phantom/{name}": value for name, value in before.items()}


def test_a_dataset_with_a_hole_or_a_stranger_is_refused(phantom_bids: Path, raw: Path) -> None:
    folder = to_dataset(phantom_bids, 900, "Phantom", raw_folder=raw, num_test=0)
    (folder / "labelsTr" / "sub-01_dwi.nii.gz").unlink()
    with pytest.raises(UserError, match=r"labelsTr/sub-01_dwi.nii.gz is missing"):
        to_dataset(phantom_bids, 900, "Phantom", raw_folder=raw, num_test=0)
    (raw / "Dataset901_Phantom").mkdir()
    with pytest.raises(UserError, match="was not made by this command"):
        to_dataset(phantom_bids, 901, "Phantom", raw_folder=raw)


def test_a_source_that_changed_is_noticed(bids: Path, raw: Path) -> None:
    to_dataset(bids, 900, "Phantom", raw_folder=raw)
    stored = nib.load(soft_label_of(bids))
    nib.Nifti1Image(np.asarray(stored.dataobj) * 0.9, stored.affine).to_filename(soft_label_of(bids))
    with pytest.raises(UserError, match=r"exists with other content .cases differ"):
        to_dataset(bids, 900, "Phantom", raw_folder=raw)


# Unknown voxels


def test_where_no_label_is_known_the_label_map_has_the_label_to_ignore(bids: Path, raw: Path) -> None:
    """Of the others, `dataset.json` names it only in datasets that have such a case."""
    rewrite(soft_label_of(bids), with_unknown_slices)
    report = run(bids, 900, "Phantom", raw_folder=raw, per_contrast=True, num_test=0)
    labels = {
        folder.name: json.loads((folder / "dataset.json").read_text())["labels"] for folder in report.folders
    }
    cord, ignore = {"background": 0, "cord": 1}, {"background": 0, "cord": 1, "ignore": 2}
    assert labels == {
        "Dataset900_Phantom": ignore,
        "Dataset901_Phantom_dwi": cord,
        "Dataset902_Phantom_mt-on": ignore,
    }
    for folder in (report.folders[0], report.folders[2]):
        soft = values(folder / "softLabelsTr" / "sub-02_mt-on_0001.nii.gz")
        np.testing.assert_array_equal(soft, values(soft_label_of(bids)))
        label_map = values(folder / "labelsTr" / "sub-02_mt-on.nii.gz")
        np.testing.assert_array_equal(label_map, np.where(np.isnan(soft), 2, soft > 0.5))
    assert "vanilla trainers leave out voxels in which no label is known" in report.as_text()


def test_where_one_label_is_known_it_is_painted(bids: Path, raw: Path, monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(raw))
    for path in bids.rglob("*desc-truth_probseg.nii.gz"):
        shutil.copyfile(path, path.with_name(path.name.replace("truth", "lesion")))
    rewrite(soft_label_of(bids), with_unknown_slices)
    lesion = soft_label_of(bids).with_name(soft_label_of(bids).name.replace("truth", "lesion"))
    rewrite(lesion, with_lesion_unknown_in_two_slices)
    labels = {"cord": TRUTH["suffix"], "lesion": TRUTH["suffix"].replace("truth", "lesion")}
    options = {"suffix": None, "labels": labels, "num_test": 0, "raw_folder": raw}
    folder = to_dataset(bids, 900, "Phantom", **options)
    assert json.loads((folder / "dataset.json").read_text())["labels"]["ignore"] == 3
    label_map = values(folder / "labelsTr" / "sub-02_mt-on.nii.gz")
    assert (label_map[..., :2] == 3).all()  # unknown in both
    assert (label_map[..., 2:4] == 0).all()  # the lesion is known to be absent
    assert check(900, 0, progress=False).errors == ()


def with_unknown_slices(volume, affine):
    volume[..., :4] = np.nan
    return volume, affine


def with_lesion_unknown_in_two_slices(volume, affine):
    volume[:] = 0
    volume[..., :2] = np.nan
    return volume, affine


# Bad input


def rewrite(path: Path, change) -> None:
    stored = nib.load(path)
    volume, affine = change(np.asarray(stored.dataobj).copy(), stored.affine.copy())
    nib.Nifti1Image(volume, affine).to_filename(path)


def with_value(value):
    def change(volume, affine):
        volume[2, 2, 2] = value
        return volume, affine

    return change


def moved(volume, affine):
    affine[1, 3] += 0.01
    return volume, affine


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_value(np.inf), "NaN or infinite"),
        (with_value(1.3), r"values outside \[0, 1\]"),
        (with_value(-0.2), r"values outside \[0, 1\]"),
        (moved, "affine differs"),
        (lambda volume, affine: (volume[:-1], affine), "shape differs"),
        (lambda volume, affine: (volume[..., None].repeat(2, axis=3), affine), "not a 3-D image"),
    ],
)
def test_a_bad_soft_label_is_named_and_nothing_is_left(bids: Path, raw: Path, change, message) -> None:
    rewrite(soft_label_of(bids), change)
    with pytest.raises(UserError, match=rf"sub-02_flip-1_mt-on_MTS_label-SC.*{message}"):
        to_dataset(bids, 900, "Phantom", raw_folder=raw)
    assert list(raw.iterdir()) == []


def test_corrupt_files_are_named(bids: Path, raw: Path) -> None:
    image_of(bids).write_bytes(image_of(bids).read_bytes()[:-500])
    with pytest.raises(UserError, match=r"sub-02_flip-1_mt-on_MTS.nii.gz: corrupt or truncated"):
        to_dataset(bids, 900, "Phantom", raw_folder=raw)
    assert list(raw.iterdir()) == []


def test_two_images_of_one_case_are_refused(bids: Path, raw: Path) -> None:
    for path in (image_of(bids), soft_label_of(bids)):
        shutil.copyfile(path, path.with_name(path.name.replace("flip-1", "flip-3")))
    with pytest.raises(UserError, match=r"2 images get the case id sub-02_mt-on .*flip-1.*flip-3"):
        to_dataset(bids, 900, "Phantom", raw_folder=raw)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"contrasts": ["T9w"]}, "no image of contrast T9w: there are dwi, mt-on"),
        (
            {"suffix": "_nowhere"},
            "none of 10 images has its soft label, expected .*_nowhere.nii.gz for the first; found .*"
            "desc-truth_probseg.nii.gz.*nnunet-softseg make-gt -i",
        ),
        (
            {"derivatives": "derivatives/elsewhere"},
            "expected .*elsewhere/sub-01/anat/.*found .*derivatives/truth/sub-01/anat/sub-01_flip-1_mt-on_"
            "MTS_label-SC_desc-truth_probseg.nii.gz, .*derivatives/labels",
        ),
        ({"layout": "bidz"}, "unknown layout bidz: expected one of bids, spine-generic"),
        ({"suffix": "_a", "labels": {"cord": "_b"}}, "expected --label or --suffix, got both"),
        ({"suffix": None, "labels": {"background": "_b"}}, "label 'background': expected a name"),
        ({"suffix": None, "labels": {"a b": "_b"}}, "label 'a b': expected a name"),
        ({"suffix": None, "labels": {"a": "_b", "c": "b.nii.gz"}}, "two labels have one suffix"),
        ({"exclude": ["sub-*"]}, r"none left \(10 excluded\)"),
        ({"exclude": ["missing.yml"]}, "missing.yml: expected a list of what to leave out, found no such"),
        (
            {"num_test": 4, "num_validation": 1},
            "5 subjects cannot give 4 for testing, 1 for validation and 0",
        ),
        ({"num_validation": 0}, "cannot give 1 for testing, 0 for validation"),
        ({"dataset_id": 0}, "between 1 and 999, got 0"),
        ({"dataset_id": 1000}, "between 1 and 999, got 1000"),
        ({"name": "a b/c"}, "letters, digits, - and _"),
    ],
)
def test_bad_arguments(phantom_bids: Path, raw: Path, arguments, message) -> None:
    arguments = {"dataset_id": 900, "name": "Phantom", **arguments}
    with pytest.raises(UserError, match=message):
        to_dataset(phantom_bids, raw_folder=raw, **arguments)
    assert list(raw.iterdir()) == []


def test_names_that_are_not_bids_and_empty_folders(bids: Path, tmp_path: Path, raw: Path) -> None:
    with pytest.raises(UserError, match="expected a BIDS folder, found nothing"):
        to_dataset(tmp_path / "nowhere", 900, "Phantom", raw_folder=raw)
    image_of(bids).rename(image_of(bids).with_name("sub-02 copy.nii.gz"))
    with pytest.raises(UserError, match=r"sub-02 copy.nii.gz: expected a BIDS name"):
        to_dataset(bids, 900, "Phantom", raw_folder=raw)


def test_the_environment_says_where_datasets_lie(phantom_bids: Path, raw: Path, monkeypatch) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(UserError, match="nnUNet_raw is not set"):
        to_dataset(phantom_bids, 900, "Phantom")
    monkeypatch.setenv("nnUNet_raw", str(raw / "new"))
    assert to_dataset(phantom_bids, 900, "Phantom").parent == raw / "new"


# The split


@given(
    count=st.integers(2, 60),
    test=st.none() | st.integers(0, 20),
    validation=st.none() | st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_every_subject_is_in_one_place_and_folds_never_leak(count, test, validation, seed) -> None:
    names = [f"sub-{number:02d}" for number in range(count)]
    asked = [max(round(count / 5), count > 2) if test is None else test]
    asked.append(max(round(count / 5), 1) if validation is None else validation)
    if sum(asked) >= count:
        with pytest.raises(UserError, match=f"{count} subjects cannot give"):
            split_subjects(names * 3, num_test=test, num_validation=validation, seed=seed)
        return
    split = split_subjects(names * 3, num_test=test, num_validation=validation, seed=seed)
    assert [len(split.test), len(split.validation)] == asked
    assert sorted(split.train + split.validation + split.test) == names
    assert split == split_subjects(reversed(names), num_test=test, num_validation=validation, seed=seed)
    folds = make_folds(split)
    assert folds[0] == {"train": split.train, "val": split.validation}
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == sorted(split.train + split.validation)
        assert len(fold["val"]) == len(split.validation)


def test_the_default_split_is_60_20_20() -> None:
    split = split_subjects([f"sub-{number}" for number in range(100, 200)])
    assert [len(part) for part in (split.train, split.validation, split.test)] == [60, 20, 20]
    assert split_subjects(["a", "b"]).test == ()
    validated = {name for fold in make_folds(split) for name in fold["val"]}
    assert validated == set(split.train + split.validation)  # five windows of 20 of 80 reach everybody
