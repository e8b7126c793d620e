"""Which files are there, whose they are, and what was passed over."""

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from nnunet_softseg.errors import UserError
from nnunet_softseg.io.case_files import (
    Case,
    Reason,
    case_and_label,
    list_bids,
    list_files,
    numbers_are_labels,
    parse_numbered_name,
    subjects_of,
)
from nnunet_softseg.io.case_matching import companion_files, prediction_files, reference_files
from nnunet_softseg.io.formats import without_nifti_ending
from nnunet_softseg.io.image_choice import Exclusion, select_images
from nnunet_softseg.io.nifti import compressed_or_plain


def touch(root: Path, *names: str) -> Path:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return root


def test_a_folder_tells_what_it_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "b.nii", "a.nii.gz", ".c.nii.gz", "notes.txt", "deeper/d.nii.gz", ".git/e.nii.gz")
    listing = list_files(tmp_path)
    assert [listing.relative(file) for file in listing.files] == ["a.nii.gz", "b.nii", "deeper/d.nii.gz"]
    assert {(path.name, reason) for path, reason in listing.passed_over.items()} == {
        (".c.nii.gz", Reason.HIDDEN),
        ("e.nii.gz", Reason.HIDDEN),
        ("notes.txt", Reason.NOT_NIFTI),
    }
    assert [file.name for file in list_files(tmp_path, subfolders=False).files] == ["a.nii.gz", "b.nii"]
    assert list_files(tmp_path / "b.nii").is_one_file
    with pytest.raises(UserError, match=r"expected a folder, or a file that ends in .nii.gz or .nii"):
        list_files(tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="expected maps, found 0 NIfTI files and 0 others: look elsewhere"):
        list_files(tmp_path / "empty", expected="maps", remedy="look elsewhere")


def test_a_folder_that_the_disk_does_not_give_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, listed = touch(tmp_path / "all", "a.nii.gz", "sub-01/b.nii.gz"), os.scandir

    def broken(place: Any) -> Any:
        if Path(place).name == "sub-01":
            raise OSError(errno.EIO, os.strerror(errno.EIO), place)
        return listed(place)

    monkeypatch.setattr(os, "scandir", broken)
    with pytest.raises(UserError, match=r"cannot be listed: Input/output error"):
        list_files(folder)


def test_linked_folders_count_as_folders_do(tmp_path: Path) -> None:
    """Subsets of a data set are often made of links to folders; each folder counts once, loops end."""
    full = touch(
        tmp_path / "full", "sub-01/anat/sub-01_T2w.nii.gz", "sub-02/ses-1/anat/sub-02_ses-1_T2w.nii.gz"
    )
    subset = touch(tmp_path / "subset", "sub-03/anat/sub-03_T2w.nii.gz", "v1/mask.nii.gz")
    (subset / "sub-01").symlink_to(full / "sub-01")
    (subset / "sub-02").mkdir()
    (subset / "sub-02" / "ses-1").symlink_to(full / "sub-02" / "ses-1")
    (subset / "sub-03" / "round").symlink_to(subset)
    (subset / "latest").symlink_to(subset / "v1")
    (subset / "again").symlink_to(subset / "latest")
    images = [
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-02/ses-1/anat/sub-02_ses-1_T2w.nii.gz",
        "sub-03/anat/sub-03_T2w.nii.gz",
    ]
    listing = list_bids(subset)
    assert [listing.relative(file) for file in listing.files] == images
    listing = list_files(subset)
    assert [listing.relative(file) for file in listing.files] == [*images, "v1/mask.nii.gz"]


def test_of_a_bids_folder_the_images_count_and_the_rest_is_told(tmp_path: Path) -> None:
    taken = ["sub-01/anat/sub-01_T2w.nii.gz", "sub-02/ses-1/dwi/sub-02_ses-1_dwi.nii"]
    passed = ["sub-01/func/sub-01_bold.nii.gz", "sub-01/anat/more/sub-01_T1w.nii.gz", "sub-01/sub-01_T1w.nii"]
    touch(
        tmp_path, *taken, *passed, "derivatives/sub-01/anat/sub-01_T2w.nii.gz", "sub-01/anat/sub-01_T2w.json"
    )
    listing = list_bids(tmp_path)
    assert [listing.relative(file) for file in listing.files] == taken
    assert sorted(file.relative_to(tmp_path).as_posix() for file in listing.passed_over) == sorted(passed)
    assert set(listing.passed_over.values()) == {Reason.OTHER_FOLDER}


def test_a_choice_says_why_each_image_was_left_out(tmp_path: Path) -> None:
    names = ("sub-01_T2w", "sub-01_acq-ax_T2w", "sub-01_T1w", "sub-02_T2w", "image")
    touch(tmp_path, *(f"sub-01/anat/{name}.nii.gz" for name in names))
    exclude = Exclusion(("sub-01_acq-*_T2w", "sub-03"))
    chosen = select_images(list_bids(tmp_path), exclude=exclude, contrasts=("T2w",))
    assert [image.case_id for image in chosen.images] == ["sub-01_T2w"]
    assert chosen.contrasts == {"T2w", "T1w"}
    because = {reason: [file.name for file in chosen.because(reason)] for reason in Reason}
    assert because[Reason.EXCLUDED] == ["sub-01_acq-ax_T2w.nii.gz"]
    assert because[Reason.MISPLACED] == ["sub-02_T2w.nii.gz"]
    assert because[Reason.MISNAMED] == ["image.nii.gz"]
    assert because[Reason.OTHER_CONTRAST] == ["sub-01_T1w.nii.gz"]
    assert "matched nothing for sub-03" in exclude.warnings()[0]
    with pytest.raises(UserError, match="no image of contrast PD: there are T1w, T2w"):
        select_images(list_bids(tmp_path), exclude=Exclusion(), contrasts=("T2w", "PD"))


def test_names_say_case_and_label() -> None:
    assert parse_numbered_name("sub-1_0002.nii") == ("sub-1", 2)
    assert case_and_label(Path("sub-1_0002.nii.gz")) == ("sub-1", 2)
    assert case_and_label(Path("sub-1_0002.nii.gz"), {"sub-1_0002"}) == ("sub-1_0002", None)
    with pytest.raises(UserError, match=r"an image's channel \(_0000\).*rename it to sub-1.nii.gz"):
        case_and_label(Path("sub-1_0000.nii.gz"))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("sub-01_ses-1_T2w", ("sub-01", "ses-1", "T2w")),
        ("sub-01_ses-1", ("sub-01", "ses-1", "")),
        ("SUB-01_ses-20200131", ("sub-01", "ses-20200131", "")),
        ("sub-01_T2w", ("sub-01", "", "T2w")),
        ("SUB-01", ("sub-01", "", "")),
        ("p1_T2w", ("p1_T2w", "", "")),
    ],
)
def test_a_session_without_a_contrast_is_a_session(name: str, key: tuple[str, str, str]) -> None:
    assert Case.from_name(name).key == key
    assert Case.from_name(name, whole_rest=True).key == key
    assert subjects_of([name]) == {name: key[0].casefold()}


def test_endings_and_folders_in_capitals_are_seen(tmp_path: Path) -> None:
    names = ("a.nii.gz", "b.NII.GZ", "c.Nii", "d.Nii.Gz", "e.f g.NII")
    listing = list_files(touch(tmp_path / "maps", *names, "h.nrrd", "i.json"))
    assert [file.name for file in listing.files] == sorted(names)
    assert [without_nifti_ending(name) for name in names] == ["a", "b", "c", "d", "e.f g"]
    assert listing.warnings() == [
        f"{tmp_path / 'maps'}: 1 images of other formats are passed over: h.nrrd: convert them to NIfTI"
    ]
    assert parse_numbered_name("sub-1_0002.NII.GZ") == ("sub-1", 2)
    assert compressed_or_plain(tmp_path / "maps/b.nii.gz") == tmp_path / "maps/b.NII.GZ"
    assert compressed_or_plain(tmp_path / "maps/z.nii.gz") == tmp_path / "maps/z.nii.gz"
    bids = touch(tmp_path / "bids", "sub-01/Anat/sub-01_T2w.NII.GZ", "SUB-02/anat/SUB-02_T2w.nii.gz")
    chosen = select_images(list_bids(bids), exclude=Exclusion())
    assert [image.case_id for image in chosen.images] == ["sub-01_T2w"]
    assert [file.name for file in chosen.because(Reason.MISNAMED)] == ["SUB-02_T2w.nii.gz"]


SEVEN = [f"scan_{number:04d}" for number in range(1, 8)]


@pytest.mark.parametrize(
    ("folder", "stems", "are_labels"),
    [
        ("labelsTs", SEVEN, False),  # nnU-Net's: one map per case
        ("softLabelsTs", SEVEN, True),
        ("soft", SEVEN, True),
        ("maps", SEVEN, None),  # seven patients, or one with seven labels?
        ("maps", ["scan_0000", *SEVEN], False),
        ("maps", ["siteA_2019", "siteA_2020"], False),
        ("maps", ["siteA_2019", "siteB_2019"], None),
        ("maps", ["scan_0002", "scan_0003"], False),
        ("soft", ["a_0001", "a_0002", "b_0001", "b_0002"], True),
        ("maps", ["a_0001"], True),
        ("labelsTs", ["a_0001", "b_0001"], False),
        ("maps", ["sub-01_T2w_0001", "sub-01_T2w_0002"], True),
        ("labelsTs", ["sub-01_T2w_0001", "sub-01_T2w_0002"], True),
        ("maps", ["scan_0001_0001", "scan_0002_0001"], True),
    ],
)
def test_four_digits_are_a_label_only_if_the_place_says_so(
    tmp_path: Path, folder: str, stems: list[str], are_labels: bool | None
) -> None:
    files = list_files(touch(tmp_path / folder, *(f"{stem}.nii.gz" for stem in stems))).files
    assert numbers_are_labels(files) is are_labels


@pytest.mark.parametrize(
    ("places", "are_labels"),
    [
        ({"a_0001": 0, "a_0002": 0, "b_0001": 5, "b_0002": 5}, True),
        ({"a_0001": 0, "a_0002": 0, "b_0001": 5}, True),
        ({"a_0001": 0, "a_0002": 3, "b_0001": 5, "b_0002": 5}, False),  # two patients of a site
        ({"a_0001": 0, "a_0002": 3, "a_0003": 4}, False),
        ({"a_0001": 0, "a_0002": 0, "b_0001": 0, "b_0002": 0}, None),  # resampled to one grid, or phantoms
        ({"a_0001": 0, "a_0002": 0}, None),
    ],
)
def test_where_names_do_not_tell_labels_from_patients_the_grids_may(
    tmp_path: Path, places: dict[str, float], are_labels: bool | None
) -> None:
    """Labels of one patient lie on one grid; two patients hardly ever lie in one place of the scanner."""
    for stem, place in places.items():
        affine = np.diag([1.0, 1, 2, 1])
        affine[2, 3] = place
        nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), affine), tmp_path / f"{stem}.nii.gz")
    touch(tmp_path, "a_0001_notes.txt")
    assert numbers_are_labels(list_files(tmp_path).files) is are_labels


def test_it_is_said_how_names_were_read_and_how_to_say_otherwise(tmp_path: Path) -> None:
    labels = list_files(touch(tmp_path / "soft", "a_0001.nii.gz", "b_0001.nii.gz"))
    cases = list_files(touch(tmp_path / "labelsTs", "a_0001.nii.gz", "b_0001.nii.gz"))
    for images, other in ((labels, cases), (cases, labels)):
        found = reference_files(images)
        pattern = re.findall("'([^']+)'", found.way)[0]
        assert set(reference_files(images, pattern=pattern).paths) == set(reference_files(other).paths)


@pytest.mark.parametrize(("labels", "are_labels"), [((1,), False), ((1, 2), False), ((1, 2, 3), None)])
def test_a_label_that_the_dataset_does_not_have_is_part_of_a_case_id(
    tmp_path: Path, labels: tuple[int, ...], are_labels: bool | None
) -> None:
    values = {"background": 0} | {f"label {value}": value for value in labels}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": values}))
    files = list_files(touch(tmp_path / "maps", *(f"scan_{number:04d}.nii.gz" for number in (1, 2, 3)))).files
    assert numbers_are_labels(files) is are_labels


def test_who_is_asked_and_answers_gets_what_was_meant(tmp_path: Path) -> None:
    images = list_files(touch(tmp_path / "maps", *(f"{stem}.nii.gz" for stem in SEVEN)))
    with pytest.raises(UserError, match=r"found 7 files such as scan_0001.nii.gz") as asked:
        reference_files(images)
    each, one = re.findall("'([^']+)'", str(asked.value))
    assert set(reference_files(images, pattern=each)[0]) == {(stem, 1) for stem in SEVEN}
    assert set(reference_files(images, pattern=one)[0]) == {("scan", number) for number in range(1, 8)}


def test_another_case_with_four_digits_is_no_companion(tmp_path: Path) -> None:
    touch(tmp_path, "scan_0003_levels.nii.gz", "scan_0001_levels.nii.gz", "sub-1_0000_levels.nii.gz")
    stems = {"scan": ["scan"], "scan_0001": ["scan_0001", "scan"], "sub-1": ["sub-1"]}
    found = companion_files(list_files(tmp_path), stems, "level")
    assert {case: file.name for case, file in found.items()} == {
        "scan_0001": "scan_0001_levels.nii.gz",
        "sub-1": "sub-1_0000_levels.nii.gz",
    }


def test_predictions_of_no_case_are_named(tmp_path: Path) -> None:
    folder = touch(tmp_path, "scan_0001.nii.gz", "soft/scan_0001_0001.nii.gz", "scan_0009.nii.gz", "x.nii")
    found = prediction_files(list_files(folder), [Case.from_name("scan_0001")], (1,))
    assert found.paths == {("scan_0001", 1): folder / "soft/scan_0001_0001.nii.gz"}
    assert [file.name for file in found.of_no_case] == ["scan_0009.nii.gz", "x.nii"]


def test_soft_maps_come_before_label_maps(tmp_path: Path) -> None:
    references = list_files(touch(tmp_path / "r", "sub-1_T2w_0001.nii.gz", "sub-2_T2w_0001.nii.gz"))
    paths, labels, _ = reference_files(references)
    cases = [Case.from_name(case_id) for case_id, _ in paths]
    method = touch(tmp_path / "m", "sub-1_T2w.nii.gz", "sub-2_T2w.nii.gz", "soft/sub-1_T2w_0001.nii.gz")
    found = prediction_files(list_files(method), cases, labels)
    assert found.paths == {("sub-1_T2w", 1): method / "soft/sub-1_T2w_0001.nii.gz"}
    assert found.missing == {"sub-2_T2w": "no file of this case (soft maps soft/<case>_<label>.nii.gz)"}
    assert found.num_unused == 2


def test_a_companion_goes_to_the_longest_name_of_all_cases(tmp_path: Path) -> None:
    touch(tmp_path, "sub-1_levels.nii.gz", "sub-1_T2w_levels.nii.gz", "sub-1_T2w_seg.nii.gz")
    stems = {"sub-1": ["sub-1"], "sub-1_T2w": ["sub-1_T2w"], "sub-2": ["sub-2"]}
    found = companion_files(list_files(tmp_path), stems, "level")
    assert {case: file.name for case, file in found.items()} == {
        "sub-1": "sub-1_levels.nii.gz",
        "sub-1_T2w": "sub-1_T2w_levels.nii.gz",
    }
