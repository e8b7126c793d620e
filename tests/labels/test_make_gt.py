"""`make-gt` on BIDS folders: which files it takes, what it writes, how it goes on, what it refuses."""

import contextlib
import dataclasses
import gzip
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import clean_environment
from filelock import FileLock

import nnunet_softseg
from nnunet_softseg import cli
from nnunet_softseg.errors import UserError
from nnunet_softseg.labels.contrasts import subject as subject_module
from nnunet_softseg.labels.contrasts.make_gt import GroundTruthReport, make_gt
from nnunet_softseg.labels.contrasts.settings import GroundTruthSettings
from nnunet_softseg.labels.contrasts.sources import (
    CohortSources,
    MaskedImage,
    SourceChoice,
    find_sources,
    read_mask,
)
from nnunet_softseg.phantom import phantom

SHAPE = (18, 16, 8)
SOFT = "_label-SC_desc-softseg_probseg"
HARD = "_label-SC_desc-softseg_seg"
GEOMETRY = (
    *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)
SPINE_GENERIC = (
    "anat/{}_T1w",
    "anat/{}_T2w",
    "anat/{}_T2star",
    "anat/{}_flip-1_mt-on_MTS",
    "anat/{}_flip-2_mt-off_MTS",
    "dwi/{}_rec-average_dwi",
)


# A small BIDS folder


def disc(radius: float = 4.0, centre: tuple[float, float] = (8.5, 7.5)) -> np.ndarray:
    """A straight cord along z, as a mask."""
    x, y, z = np.indices(SHAPE)
    return ((np.hypot(x - centre[0], y - centre[1]) <= radius) & (z >= 1)).astype(np.uint8)


def affine(z_mm: float = 0.0) -> np.ndarray:
    """An oblique, left-handed affine: nothing here may depend on a plain one."""
    angle = np.radians(8)
    rotation = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    ) @ np.diag([-1.0, 1.0, 2.0])
    return nib.affines.from_matvec(rotation, [9, -8, z_mm])


def write_nifti(file: Path, values: np.ndarray, place: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(values, place).to_filename(file)


def image_file(bids: Path, source: str, ending: str = ".nii.gz") -> Path:
    name = Path(source).name
    folders = [part for part in name.split("_")[:2] if part.startswith(("sub-", "ses-"))]
    return Path(bids, *folders, f"{source}{ending}")


def mask_file(bids: Path, source: str) -> Path:
    image = image_file(bids, source, "_seg-manual.nii.gz")
    return bids / "derivatives" / "labels" / image.relative_to(bids)


def label_file(output: Path, source: str, suffix: str = SOFT) -> Path:
    return image_file(output, source, f"{suffix}.nii.gz")


def add(
    bids: Path, source: str, mask: np.ndarray | None = None, *, drawn: bool = True, z_mm: float = 0.0
) -> None:
    """Write an image, `anat/sub-01_T2w`, and its mask."""
    mask = disc() if mask is None else mask
    image = (200 * mask + np.arange(mask.size).reshape(mask.shape) % 50).astype(np.int16)
    write_nifti(image_file(bids, source), image, affine(z_mm))
    if drawn:
        write_nifti(mask_file(bids, source), mask, affine(z_mm))


_WITH_PICTURES = ("test_it_goes_on_after_a_kill", "test_phantom_from_the_command_line", "test_real_data")


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of the time of a small subject; test_qc_page looks at them."""
    if request.node.name not in _WITH_PICTURES:
        leave_out_pictures(monkeypatch)


def leave_out_pictures(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(subject_module, "subject_figure", lambda *_: None)
    patch.setattr(subject_module, "save_figure", lambda _, file: file.write_bytes(b"a picture"))


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """Two subjects with two contrasts, each with the same mask."""
    return write_two(tmp_path / "bids")


def write_two(folder: Path) -> Path:
    for name in ("sub-01", "sub-02"):
        for contrast in ("T1w", "T2w"):
            add(folder, f"anat/{name}_{contrast}")
    return folder


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_two(tmp_path_factory.mktemp("made") / "bids")
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        assert run(folder).failures == ()
    return folder


@pytest.fixture
def made(made_once: Path, tmp_path: Path) -> Path:
    """The same, with soft labels in derivatives/softseg."""
    return Path(shutil.copytree(made_once, tmp_path / "bids"))


def run(bids: Path, output: Path | None = None, *args: Any, **kwargs: Any) -> GroundTruthReport:
    return make_gt(bids, output or bids / "derivatives" / "softseg", *args, progress=False, **kwargs)


def find(bids: Path, **kwargs: Any) -> CohortSources:
    return find_sources(SourceChoice(bids, bids / "derivatives" / "labels", **kwargs))


def offered(cohort: CohortSources) -> dict[str, dict[str, str]]:
    """Person -> contrast -> name of the image."""
    return {
        person.person: {image.contrast: image.image.name.removesuffix(".nii.gz") for image in person.images}
        for person in cohort.subjects
    }


def state(folder: Path) -> dict[str, tuple[str, int]]:
    """Hash and time of every file."""
    return {
        path.relative_to(folder).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def without_output(bids: Path) -> dict[str, tuple[str, int]]:
    """The state of what make-gt may not touch."""
    return {name: one for name, one in state(bids).items() if not name.startswith("derivatives/softseg/")}


def hashes(files: dict[str, tuple[str, int]]) -> dict[str, str]:
    return {name: one[0] for name, one in files.items()}


def labels_state(output: Path, person: str = "sub-") -> dict[str, tuple[str, int]]:
    """The same of what was written of subjects; the page and the lists are written by every run."""
    general = ("qc/index.html", "qc/failed.json", "qc/.lock", "dataset_description.json", ".bidsignore")
    return {name: one for name, one in state(output).items() if name not in general and person in name}


# Which files


def test_spine_generic_offers_six_contrasts(tmp_path: Path) -> None:
    """The magnetisation transfer images with a mask are taken; their sister, and 4-D dwi, have none."""
    for source in SPINE_GENERIC:
        add(tmp_path, source.format("sub-amu01"))
    add(tmp_path, "anat/sub-amu01_flip-1_mt-off_MTS", drawn=False)
    write_nifti(image_file(tmp_path, "dwi/sub-amu01_dwi"), np.zeros((*SHAPE, 3), np.int16), affine())
    (tmp_path / "sub-amu01" / "dwi" / "sub-amu01_dwi.bval").write_text("0 800 800")

    cohort = find(tmp_path)

    assert offered(cohort) == {
        "sub-amu01": {
            "T1w": "sub-amu01_T1w",
            "T2w": "sub-amu01_T2w",
            "T2star": "sub-amu01_T2star",
            "mt-on": "sub-amu01_flip-1_mt-on_MTS",
            "mt-off": "sub-amu01_flip-2_mt-off_MTS",
            "dwi": "sub-amu01_rec-average_dwi",
        }
    }
    left_out = "sub-amu01/anat/sub-amu01_flip-1_mt-off_MTS.nii.gz, sub-amu01/dwi/sub-amu01_dwi.nii.gz"
    assert cohort.warnings == (f"image without a mask, left out: 2 files ({left_out})",)
    report = run(tmp_path)
    assert report.failures == ()
    assert sorted(path.name for path in report.output.rglob("*probseg.nii.gz")) == sorted(
        f"{Path(source.format('sub-amu01')).name}{SOFT}.nii.gz" for source in SPINE_GENERIC
    )


def test_each_session_is_averaged_by_itself(tmp_path: Path) -> None:
    for session, radius in (("1", 4.0), ("2", 5.0)):
        for contrast in ("T1w", "T2w"):
            add(tmp_path, f"anat/sub-01_ses-{session}_{contrast}", disc(radius))

    assert run(tmp_path).failures == ()

    for session, radius in (("1", 4.0), ("2", 5.0)):
        file = label_file(tmp_path / "derivatives" / "softseg", f"anat/sub-01_ses-{session}_T1w")
        assert file.parent.relative_to(tmp_path / "derivatives" / "softseg").parts == (
            "sub-01", f"ses-{session}", "anat",
        )  # fmt: skip
        np.testing.assert_array_equal(nib.load(file).get_fdata(), disc(radius))
    report = run(tmp_path, subjects=["sub-01_ses-2"])
    assert [outcome.person for outcome in report.outcomes] == ["sub-01_ses-2"]


def test_two_masks_of_one_contrast_are_for_the_user_to_choose(tmp_path: Path) -> None:
    add(tmp_path, "anat/sub-01_T1w")
    add(tmp_path, "anat/sub-01_acq-sag_T2w")
    add(tmp_path, "anat/sub-01_acq-ax_T2w")

    (person,) = find(tmp_path).subjects
    assert person.problem is not None
    for part in ("sub-01_acq-ax_T2w.nii.gz", "sub-01_acq-sag_T2w.nii.gz", "--distinguish-by acq"):
        assert part in person.problem

    # Both ways out that the message offers.
    pattern = shlex.split(person.problem.partition("(--exclude ")[2].partition(")")[0])
    assert offered(find(tmp_path, exclude=tuple(pattern))) == {
        "sub-01": {"T1w": "sub-01_T1w", "T2w": "sub-01_acq-ax_T2w"}
    }
    assert offered(find(tmp_path, distinguish_by=("acq",))) == {
        "sub-01": {
            "T1w": "sub-01_T1w",
            "acq-ax_T2w": "sub-01_acq-ax_T2w",
            "acq-sag_T2w": "sub-01_acq-sag_T2w",
        }
    }
    assert "contrast T2w" in str(run(tmp_path).failures[0].failure)
    settings = GroundTruthSettings(reference="acq-sag_T2w")
    report = run(tmp_path, None, settings, distinguish_by=["acq"])
    assert [outcome.reference for outcome in report.outcomes] == ["acq-sag_T2w"]


@pytest.mark.parametrize(
    ("sources", "pattern", "left"),
    [
        (("anat/sub-01_acq-sag_run-1_T2w", "anat/sub-01_run-1_T2w"), "sub-01_run-1_T2w.nii.gz", 0),
        (("anat/sub-01_T2w", "dwi/sub-01_T2w"), "sub-01/dwi/sub-01_T2w.nii.gz", 0),
        (("anat/sub-01_run-1_T2w", "anat/sub-01_acq-ax_T2w"), "'*_run-1_T2w'", 1),
    ],
)
def test_the_exclusion_that_is_advised_leaves_one_of_two_images(
    sources: tuple[str, ...], pattern: str, left: int, tmp_path: Path
) -> None:
    for source in sources:
        add(tmp_path, source)
    (person,) = find(tmp_path).subjects
    assert f"(--exclude {pattern})" in str(person.problem)
    (person,) = find(tmp_path, exclude=tuple(shlex.split(pattern))).subjects
    assert [image.image for image in person.images] == [image_file(tmp_path, sources[left])]


def test_same_contrast_with_one_mask_is_clear(tmp_path: Path) -> None:
    add(tmp_path, "anat/sub-01_run-1_T2w", drawn=False)
    add(tmp_path, "anat/sub-01_run-2_T2w")
    assert offered(find(tmp_path)) == {"sub-01": {"T2w": "sub-01_run-2_T2w"}}


def test_masks_lie_anywhere_in_their_folder(bids: Path, tmp_path: Path) -> None:
    """All in one folder, elsewhere, with another suffix, uncompressed."""
    flat = tmp_path / "drawn"
    flat.mkdir()
    for mask in sorted((bids / "derivatives" / "labels").rglob("*.nii.gz")):
        name = mask.name.replace("_seg-manual.nii.gz", "_label-SC_seg.nii")
        (flat / name).write_bytes(gzip.decompress(mask.read_bytes()))
    shutil.rmtree(bids / "derivatives")

    report = run(bids, None, masks=flat, suffix="_label-SC_seg")

    assert report.failures == ()
    assert len(list(report.output.rglob("*probseg.nii.gz"))) == 4
    sidecar = json.loads(
        label_file(report.output, "anat/sub-01_T2w").with_suffix("").with_suffix(".json").read_text()
    )
    assert "bids:masks:sub-01_T2w_label-SC_seg.nii" in sidecar["Sources"]
    description = json.loads((report.output / "dataset_description.json").read_text())
    assert (report.output / description["DatasetLinks"]["masks"]).resolve() == flat


def test_the_mask_in_the_images_subfolder_wins_over_its_namesakes(bids: Path) -> None:
    mask = mask_file(bids, "anat/sub-01_T2w")
    other = bids / "derivatives" / "labels" / "second_rater" / mask.name
    write_nifti(other, disc(3), affine())
    assert find(bids).subjects[0].images[1].mask == mask
    assert find(bids).warnings == ()

    mask.rename(bids / "derivatives" / "labels" / mask.name)
    problem = find(bids).subjects[0].problem
    assert problem is not None
    assert "sub-01_T2w.nii.gz: expected one mask, found 2" in problem
    assert f"second_rater/{mask.name}" in problem


def test_images_may_be_uncompressed(bids: Path) -> None:
    image = image_file(bids, "anat/sub-01_T2w")
    image.with_suffix("").write_bytes(gzip.decompress(image.read_bytes()))
    (twice, _) = find(bids).subjects
    assert twice.problem is not None
    assert "found 2 (sub-01_T2w.nii, sub-01_T2w.nii.gz): pass over all but one" in twice.problem

    image.unlink()
    report = run(bids, subjects=["01"])
    assert report.failures == ()
    np.testing.assert_array_equal(nib.load(label_file(report.output, "anat/sub-01_T2w")).get_fdata(), disc())


def test_what_is_passed_over_is_named(bids: Path) -> None:
    write_nifti(mask_file(bids, "anat/sub-03_T2w"), disc(), affine())
    shutil.copy(image_file(bids, "anat/sub-01_T2w"), bids / "sub-01" / "anat" / "sub-01_T2w-bad!.nii.gz")
    shutil.copy(image_file(bids, "anat/sub-01_T2w"), bids / "sub-01" / "anat" / "sub-02_PDw.nii.gz")
    add(bids, "anat/sub-04_T2w", drawn=False)

    report = run(bids, exclude=["sub-9*"])

    assert [outcome.person for outcome in report.outcomes] == ["sub-01", "sub-02"]
    assert report.warnings == (
        "not a BIDS name, left out: 2 files (sub-01/anat/sub-01_T2w-bad!.nii.gz, "
        "sub-01/anat/sub-02_PDw.nii.gz)",
        "image without a mask, left out: 1 file (sub-04/anat/sub-04_T2w.nii.gz)",
        "mask without image, left out: 1 file (sub-03/anat/sub-03_T2w_seg-manual.nii.gz)",
        "--exclude matched nothing for sub-9*: expected subjects (sub-01), sessions, cases (sub-01_T2w), "
        "file names, or patterns (sub-site*); nothing is left out for them",
        "no mask, passed over (sub-04)",
    )
    text = report.as_text()
    assert all(warning in text for warning in report.warnings)


@pytest.mark.parametrize(
    "pattern",
    ["sub-01", "sub-01_T1w", "sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T1w.nii.gz", "*_T1w", "*1_T1?"],
)
def test_exclude_by_path_name_or_subject(bids: Path, pattern: str) -> None:
    left = offered(find(bids, exclude=(pattern,)))
    assert "T1w" not in left.get("sub-01", {})
    assert "T2w" in left["sub-02"]
    assert ("T1w" in left["sub-02"]) == (pattern != "*_T1w")
    assert ("sub-01" in left) == (pattern != "sub-01")


def test_exclude_by_a_list_in_a_file(bids: Path, tmp_path: Path) -> None:
    names = tmp_path / "exclude.yml"
    names.write_text("- sub-02  # motion\n")
    assert [outcome.person for outcome in run(bids, exclude=[str(names)]).outcomes] == ["sub-01"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"masks": "derivatives/manual"},
            "derivatives/manual: expected the folder of the masks, found nothing",
        ),
        ({"suffix": "_lesion"}, "expected .*sub-01_T1w_lesion.nii.gz for the first"),
        ({"exclude": ["sub-*"]}, "--exclude leaves none of 4 images"),
        ({"subjects": ["sub-01", "07"]}, "--subjects: sub-07 not in .*there are sub-01, sub-02"),
        ({"num_processes": 0}, "-np: expected 1 process or more, found 0"),
    ],
)
def test_arguments_that_fit_nothing(bids: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(bids, **options)
    assert not (bids / "derivatives" / "softseg").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contrasts": ("T1w", "T3w")}, "no image of contrast T3w: there are T1w, T2w"),
        (
            {"reference": "T3w"},
            "--reference T3w: no image of this contrast in .*: there are T1w, T2w",
        ),
        ({"reference": "T1w", "contrasts": ("T2w",)}, "--reference T1w: expected one of --contrasts T2w"),
    ],
)
def test_unknown_contrast(bids: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(bids, None, GroundTruthSettings(**settings))


def test_strict_without_the_default_reference_is_refused_before_anything_is_touched(bids: Path) -> None:
    run(bids, None, GroundTruthSettings(contrasts=("T1w",)))
    before = labels_state(bids / "derivatives" / "softseg", "sub-01")
    assert before
    expected = "expected one of --contrasts T1w: choose --reference T1w, or --contrasts T1w T2w"
    with pytest.raises(UserError, match=f"--reference T2w: {expected}"):
        run(bids, None, GroundTruthSettings(contrasts=("T1w",)), strict=True)
    assert labels_state(bids / "derivatives" / "softseg", "sub-01") == before
    for remedy in ({"reference": "T1w", "contrasts": ("T1w",)}, {"contrasts": ("T1w", "T2w")}):
        assert not run(bids, None, GroundTruthSettings(**remedy), strict=True).failures
    for subject in ("sub-01", "sub-02"):
        image_file(bids, f"anat/{subject}_T2w").unlink()
    with pytest.raises(
        UserError, match=r"--reference T2w: no image of this contrast in .*: there are T1w: choose"
    ):
        run(bids, strict=True)
    assert labels_state(bids / "derivatives" / "softseg", "sub-01")


def test_no_images_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a BIDS folder, found nothing"):
        run(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "derivatives" / "labels").mkdir(parents=True)
    with pytest.raises(UserError, match=r"expected images like sub-01/anat/sub-01_T2w\.nii\.gz, found none"):
        run(tmp_path)


@pytest.mark.parametrize(
    "output",
    [
        "",
        "sub-01",
        "sub-01/anat",
        "derivatives",
        "derivatives/labels",
        "derivatives/labels/soft",
        "..",
        "new",
    ],
)
def test_output_never_lies_where_the_input_is(bids: Path, output: str) -> None:
    before = state(bids.parent)
    with pytest.raises(
        UserError, match=r"-o: expected a folder (apart from the masks|outside of the images)"
    ):
        run(bids, bids / output)
    assert state(bids.parent) == before


def test_output_through_a_link_is_still_the_input(bids: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bids / "derivatives" / "labels")
    with pytest.raises(UserError, match="-o: expected a folder apart from the masks"):
        run(bids, tmp_path / "link")


def test_output_of_somebody_else_is_left_alone(bids: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    for _ in range(2):
        with pytest.raises(UserError, match="-o: expected an empty folder or one of an earlier make-gt"):
            run(bids, other, overwrite=True)
        (other / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "another tool"}]}')
    with pytest.raises(UserError, match="-o: expected a folder, found the file"):
        run(bids, other / "notes.txt")
    assert {path.name for path in other.iterdir()} == {"notes.txt", "dataset_description.json"}


# What is written


RADII = {"T1w": 3.0, "T2w": 4.0, "T2star": 5.0, "dwi": 5.0}


def test_labels_lie_on_their_images(bids: Path) -> None:
    """Of discs about one axis, the mean in a ring is how many reach it. One image is larger than others."""
    for contrast, radius in RADII.items():
        add(bids, f"anat/sub-01_{contrast}", disc(radius))
    margin = ((3, 0), (0, 0), (0, 0))
    moved = affine() @ nib.affines.from_matvec(np.eye(3), [-3, 0, 0])
    for file in (image_file(bids, "anat/sub-01_T2star"), mask_file(bids, "anat/sub-01_T2star")):
        write_nifti(file, np.pad(np.asarray(nib.load(file).dataobj), margin), moved)
    expected = np.mean([disc(radius) for radius in RADII.values()], axis=0)

    output = run(bids, None, GroundTruthSettings(min_agreement=0.5), subjects=["sub-01"]).output

    for contrast in RADII:
        image = nib.load(image_file(bids, f"anat/sub-01_{contrast}"))
        soft, hard = (
            nib.load(label_file(output, f"anat/sub-01_{contrast}", suffix)) for suffix in (SOFT, HARD)
        )
        values = np.asarray(soft.dataobj)
        assert (soft.get_data_dtype(), hard.get_data_dtype()) == (np.float32, np.uint8)
        np.testing.assert_allclose(
            values, np.pad(expected, margin) if contrast == "T2star" else expected, atol=1e-6
        )
        # Two of four drew the outer ring: exactly half, which is not more than half.
        assert (values == 0.5).sum() == (disc(5).sum() - disc(4).sum())
        np.testing.assert_array_equal(np.asarray(hard.dataobj), values > 0.5)
        for label in (soft, hard):
            for field in GEOMETRY:
                np.testing.assert_array_equal(label.header[field], image.header[field])
            assert nnunet_softseg.__version__ in str(label.header["descrip"])


def test_labels_tell_where_they_come_from(bids: Path) -> None:
    radii = {name: RADII[name] for name in ("T1w", "T2w", "T2star")}
    for contrast, radius in radii.items():
        add(bids, f"anat/sub-01_{contrast}", disc(radius))

    output = run(bids, None, GroundTruthSettings(min_agreement=0.6), subjects=["sub-01"]).output

    description = json.loads((output / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    roots = {"": output, **{name: output / link for name, link in description["DatasetLinks"].items()}}
    step = 2 * np.cos(np.radians(8))
    lowest = affine()[2] @ [(SHAPE[0] - 1) / 2, (SHAPE[1] - 1) / 2, 0, 1]
    for contrast in radii:
        source = f"anat/sub-01_{contrast}"
        about = json.loads(image_file(output, source, f"{SOFT}.json").read_text())
        assert about["Sources"] == list(about["SourcesSHA256"])
        assert len(about["Sources"]) == 6
        for uri, known in about["SourcesSHA256"].items():
            _, name, path = uri.split(":")
            assert hashlib.sha256((roots[name] / path).read_bytes()).hexdigest() == known
        assert about["SpatialReference"] == f"bids:raw:sub-01/anat/sub-01_{contrast}.nii.gz"
        assert about["Reference"] == "T2w"
        assert {len(of_slice) for of_slice in about["Alignment"].values()} == {SHAPE[2]}
        np.testing.assert_allclose(
            about["Alignment"]["HeightMm"], lowest + step * np.arange(SHAPE[2]), atol=1e-3
        )
        assert about["Agreement"].keys() == radii.keys()
        # The label > 0.5 is the middle disc; of two concentric discs, Dice is 2 * smaller / (both).
        areas = {name: disc(radius).sum() for name, radius in radii.items()}
        dice = 2 * min(areas[contrast], areas["T2w"]) / (areas[contrast] + areas["T2w"])
        assert about["Agreement"][contrast] == pytest.approx(dice, abs=1e-4)
        assert about["Parameters"]["min_agreement"] == 0.6
        assert about["GeneratedBy"][0]["Version"] == nnunet_softseg.__version__
        about_hard = json.loads(image_file(output, source, f"{HARD}.json").read_text())
        _, name, path = about_hard["Sources"][0].split(":")
        assert roots[name] / path == label_file(output, source)


def test_shifts_are_told_to_the_right_and_to_anterior(bids: Path) -> None:
    """The first array axis runs to the left: two voxels along it are a shift to the right of -2 mm."""
    add(bids, "anat/sub-01_T1w", disc(centre=(10.5, 8.5)))
    output = run(bids, subjects=["sub-01"]).output
    about = json.loads(image_file(output, "anat/sub-01_T1w", f"{SOFT}.json").read_text())
    np.testing.assert_allclose(about["Alignment"]["ShiftRightMm"], -2, atol=1e-3)
    np.testing.assert_allclose(about["Alignment"]["ShiftAnteriorMm"], 1, atol=1e-3)
    assert about["Alignment"]["Measured"] == [False] + [True] * (SHAPE[2] - 1)


def test_slices_with_gaps_are_as_thick_as_the_sidecar_says(bids: Path) -> None:
    source = MaskedImage("mt-on", image_file(bids, "anat/sub-01_T2w"), mask_file(bids, "anat/sub-01_T2w"))
    assert read_mask(source).thickness_mm is None
    sidecar = source.image.with_name("sub-01_T2w.json")
    sidecar.write_text('{"SliceThickness": 1.5}')
    assert read_mask(source).thickness_mm == 1.5  # the slices of `affine` are 2 mm apart
    sidecar.write_text('{"SliceThickness": 2.0}')
    assert read_mask(source).thickness_mm is None
    sidecar.write_text("not JSON")
    assert read_mask(source).thickness_mm is None


def test_a_sidecar_that_states_another_thickness_makes_the_labels_again(made: Path) -> None:
    before = labels_state(made / "derivatives" / "softseg", "sub-01")
    image_file(made, "anat/sub-01_T2w").with_name("sub-01_T2w.json").write_text('{"SliceThickness": 1.5}')
    run(made)
    after = labels_state(made / "derivatives" / "softseg", "sub-01")
    assert {name: times for name, (_, times) in after.items()} != {
        name: times for name, (_, times) in before.items()
    }


def test_no_input_is_changed(bids: Path) -> None:
    before = state(bids)
    run(bids)
    assert without_output(bids) == before


def test_the_command_in_the_sidecars_gives_the_same_settings(
    bids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = GroundTruthSettings(
        reference="T1w", contrasts=("T2w", "T1w"), trim_mm=1, smooth_mm=2.5, rotation=True, box=False,
        max_shift_mm=7, max_jump_mm=2, min_agreement=0.5, leave_out_implausible=True,
    )  # fmt: skip
    options: dict[str, Any] = {
        "exclude": ("sub-02", "*_PD w"),
        "distinguish_by": ("acq",),
        "soft_masks": True,
        "strict": True,
        "suffix": "-drawn",
        "masks": "derivatives/by hand",
    }
    shutil.move(bids / "derivatives" / "labels", bids / "derivatives" / "by hand")
    for mask in (bids / "derivatives" / "by hand").rglob("*.nii.gz"):
        mask.rename(mask.with_name(mask.name.replace("_seg-manual", "-drawn")))
    output = run(bids, None, settings, **options).output
    about = json.loads(image_file(output, "anat/sub-01_T2w", f"{SOFT}.json").read_text())
    assert {**dataclasses.asdict(settings), "contrasts": ["T2w", "T1w"], "soft_masks": True} == about[
        "Parameters"
    ]

    called: dict[str, Any] = {}

    def remember(*args: Any, **kwargs: Any) -> Any:
        called.update(kwargs, args=args)
        raise UserError("enough")

    monkeypatch.setattr("nnunet_softseg.labels.contrasts.make_gt.make_gt", remember)
    program, *words = shlex.split(about["GeneratedBy"][0]["Command"])
    assert program == "nnunet-softseg"
    assert cli.main(words) == 2
    assert called.pop("args") == ()
    expected = {"bids": "BIDS", "output": "DERIVATIVES", "settings": settings, **options}
    assert {name: called[name] for name in expected} == expected


def test_the_command_lines_defaults_are_those_of_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    called: dict[str, Any] = {}

    def remember(*args: Any, **kwargs: Any) -> Any:
        called.update(kwargs, args=args)
        raise UserError("enough")

    defaults = make_gt.__kwdefaults__
    monkeypatch.setattr("nnunet_softseg.labels.contrasts.make_gt.make_gt", remember)
    assert cli.main(["make-gt", "-i", "a", "-o", "b"]) == 2
    assert called.pop("args") == ()
    assert called.pop("num_processes") == 2
    assert called == {
        "bids": "a",
        "output": "b",
        "settings": GroundTruthSettings(),
        **{name: value for name, value in defaults.items() if name not in ("num_processes", "progress")},
    }


# Subjects that cannot be made


def rewrite(
    change: Callable[[np.ndarray], np.ndarray], place: Callable[[np.ndarray], np.ndarray] | None = None
) -> Any:
    def spoil(file: Path) -> None:
        image = nib.load(file)
        values = change(np.asarray(image.dataobj))
        nib.Nifti1Image(values, place(image.affine) if place else image.affine).to_filename(file)

    return spoil


def same(values: np.ndarray) -> np.ndarray:
    return values


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def break_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("../.git/annex/objects/absent")


def with_nan(values: np.ndarray) -> np.ndarray:
    changed = values.astype(np.float32)
    changed[0, 0, 0] = np.nan
    return changed


PLAIN = "not a binary mask: expected values 0 and 1, found"
SPOILED_MASKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "255": (rewrite(lambda v: v * 255), rf"{PLAIN} whole numbers \(0, 255\): divide it by 255"),
    "2": (rewrite(lambda v: v * 2), rf"{PLAIN} whole numbers \(0, 2\): divide it by 2"),
    "labels": (
        rewrite(lambda v: v * np.arange(8, dtype=np.uint8)),
        rf"{PLAIN} whole numbers \(0, 1, 2, 3, 4, 5 and 2 more\): .*label map",
    ),
    "soft": (
        rewrite(lambda v: v * np.float32(0.3)),
        rf"{PLAIN} \[0, 0\.3\]: threshold it, or .*--soft-masks",
    ),
    "percent": (
        rewrite(lambda v: np.round(v * np.linspace(13, 100, 8)).astype(np.uint8)),
        rf"{PLAIN} whole numbers .*: divide it by 100, then threshold it, or .*; of a label map write",
    ),
    "bytes with a slope": (
        rewrite(lambda v: v * np.linspace(12.5, 255, 8, dtype=np.float32)),
        rf"{PLAIN} \[0, 255\]: divide it by 255, then threshold it, or .*\(--soft-masks\)$",
    ),
    "negative": (
        rewrite(lambda v: -v.astype(np.int8)),
        rf"{PLAIN} \[-1, 0\]: write 1 where the cord is, 0 elsewhere",
    ),
    "nan": (rewrite(with_nan), "NaN or infinite values: expected finite values, found 1 voxels"),
    "shape": (rewrite(lambda v: v[:-1]), r"shape differs .* = \(18, 16, 8\), found \(17, 16, 8\)"),
    "moved": (
        rewrite(same, lambda a: a + 3 * np.outer([1, 0, 0, 0], [0, 0, 0, 1])),
        r"affine differs from that of the image by 3 \(row 0, column 3",
    ),
    "flipped": (rewrite(same, lambda a: a @ np.diag([-1, 1, 1, 1])), "affine differs .* by 2 "),
    "4-D": (rewrite(lambda v: np.stack([v, v], -1)), "not a 3-D image"),
    "4th axis of 1": (rewrite(lambda v: v[..., None]), "not a 3-D image: .*drop the axes of length 1"),
    "truncated": (cut_off, "corrupt or truncated gzip"),
    "not NIfTI": (
        lambda file: file.write_bytes(gzip.compress(b"nothing")) and None,
        "cannot be opened",
    ),
    "link": (break_link, "file is missing: expected a NIfTI file, found a broken link: .*fetch its content"),
}
SPOILED_IMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "4-D": (rewrite(lambda v: np.stack([v, v], -1)), "not a 3-D image: .*draw the mask on .*rec-average"),
    "4th axis of 1": (rewrite(lambda v: v[..., None]), "not a 3-D image: .*drop the axes of length 1"),
    "truncated": (cut_off, "corrupt or truncated gzip"),
    "link": (break_link, "file is missing"),
}


@pytest.mark.parametrize("kind", SPOILED_MASKS)
def test_spoiled_mask_is_refused(bids: Path, kind: str) -> None:
    spoil, message = SPOILED_MASKS[kind]
    image, mask = image_file(bids, "anat/sub-01_T1w"), mask_file(bids, "anat/sub-01_T1w")
    spoil(mask)
    with pytest.raises(UserError, match=f"anat/{mask.name}: .*{message}") as raised:
        read_mask(MaskedImage("T1w", image, mask))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", SPOILED_IMAGES)
def test_spoiled_image_is_refused(bids: Path, kind: str) -> None:
    spoil, message = SPOILED_IMAGES[kind]
    image, mask = image_file(bids, "anat/sub-01_T1w"), mask_file(bids, "anat/sub-01_T1w")
    spoil(image)
    with pytest.raises(UserError, match=f"anat/{image.name}: .*{message}"):
        read_mask(MaskedImage("T1w", image, mask))


def spoil_mask(bids: Path) -> None:
    SPOILED_MASKS["255"][0](mask_file(bids, "anat/sub-01_T1w"))


def lose_image(bids: Path) -> None:
    break_link(image_file(bids, "anat/sub-01_T1w"))


def empty_all_masks(bids: Path) -> None:
    for contrast in ("T1w", "T2w"):
        rewrite(lambda v: v * 0)(mask_file(bids, f"anat/sub-01_{contrast}"))


def draw_twice(bids: Path) -> None:
    add(bids, "anat/sub-01_run-2_T2w")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_mask, "divide it by 255"),
        (lose_image, "file is missing"),
        (empty_all_masks, "no contrast with a usable mask"),
        (draw_twice, "contrast T2w: expected one image with a mask, found 2"),
    ],
)
def test_one_subject_fails_and_no_other(
    made: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], message: str
) -> None:
    """Of what was made of it before, nothing is left."""
    output = made / "derivatives" / "softseg"
    other = labels_state(output, "sub-02")
    spoil(made)
    before = without_output(made)

    assert cli.main(["make-gt", "-i", str(made), "-o", str(output), "-np", "1"]) == 2

    printed = capsys.readouterr()
    failed = json.loads((output / "qc" / "failed.json").read_text())
    assert list(failed) == ["sub-01"]
    assert re.search(message, failed["sub-01"])
    errors = [line for line in printed.err.splitlines() if line.startswith("nnunet-softseg: error: ")]
    assert errors == [f"nnunet-softseg: error: sub-01: {failed['sub-01']}"]
    assert "0 made, 1 kept, 1 failed" in printed.out
    assert not [path for path in output.rglob("*") if "sub-01" in path.name]
    assert labels_state(output, "sub-02") == other
    assert "sub-01" in (output / "qc" / "index.html").read_text()
    assert without_output(made) == before


def test_contrasts_that_do_not_say_where_they_lie_are_averaged_with_a_warning(
    bids: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (image_file(bids, "anat/sub-01_T1w"), mask_file(bids, "anat/sub-01_T1w")):
        image = nib.load(file)
        image.set_sform(None, 0)
        image.set_qform(None, 0)
        nib.save(image, file)
    assert cli.main(["make-gt", "-i", str(bids), "-o", str(bids.parent / "out"), "-np", "1"]) == 0
    said = capsys.readouterr().out
    assert "  T1w: does not say where it lies: expected sform_code or qform_code above 0" in said
    assert "compared with others by its place (sub-01)" in said


def test_a_bug_in_one_subject_does_not_stop_the_others(bids: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = subject_module.save_figure

    def fail(figure: Any, file: Path) -> None:
        if file.stem == "sub-01":
            raise KeyError("a\nbug")
        real(figure, file)

    monkeypatch.setattr(subject_module, "save_figure", fail)
    report = run(bids)
    assert [outcome.person for outcome in report.failures] == ["sub-01"]
    assert str(report.failures[0].failure).startswith("unexpected KeyError in test_make_gt.py, line ")
    assert "\n" not in str(report.failures[0].failure)
    assert label_file(report.output, "anat/sub-02_T2w").is_file()
    assert not [path for path in report.output.rglob("*") if "sub-01" in path.name or "partial" in path.name]


# Subjects that can be made in part


def test_empty_mask_is_skipped_and_said(bids: Path) -> None:
    rewrite(lambda v: v * 0)(mask_file(bids, "anat/sub-01_T1w"))
    report = run(bids)
    assert report.outcomes[0].skipped == {"T1w": "its mask is empty"}
    assert "T1w: its mask is empty (sub-01)" in report.as_text()
    assert not label_file(report.output, "anat/sub-01_T1w").exists()
    np.testing.assert_array_equal(nib.load(label_file(report.output, "anat/sub-01_T2w")).get_fdata(), disc())
    about = json.loads(image_file(report.output, "anat/sub-01_T2w", f"{SOFT}.json").read_text())
    assert about["Skipped"] == {"T1w": "its mask is empty"}
    assert not [uri for uri in about["Sources"] if "T1w" in uri]


def test_contrast_beside_the_reference_is_skipped_and_said(bids: Path) -> None:
    add(bids, "anat/sub-01_T1w", z_mm=100)
    report = run(bids)
    assert "no overlap with T2w along S-I" in report.outcomes[0].skipped["T1w"]
    assert report.outcomes[0].skipped["T1w"] in report.as_text()


def test_one_contrast_is_its_own_label_and_said(bids: Path) -> None:
    report = run(bids, None, GroundTruthSettings(contrasts=("T2w",)))
    assert report.failures == ()
    assert "one contrast only" in report.as_text()
    assert "2 subjects: sub-01, sub-02" in report.as_text()
    np.testing.assert_array_equal(nib.load(label_file(report.output, "anat/sub-01_T2w")).get_fdata(), disc())
    assert not label_file(report.output, "anat/sub-01_T1w").exists()


def test_missing_reference_is_replaced_and_said_or_refused(bids: Path) -> None:
    mask_file(bids, "anat/sub-01_T2w").unlink()
    report = run(bids)
    assert [outcome.reference for outcome in report.outcomes] == ["T1w", "T2w"]
    assert report.outcomes[0].other_reference is not None
    assert report.outcomes[0].other_reference in report.as_text()
    assert report.outcomes[1].other_reference is None

    # Also when all is there already; then nothing of the other reference may stay.
    report = run(bids, strict=True)
    assert [outcome.person for outcome in report.failures] == ["sub-01"]
    assert "T2w cannot be the reference" in str(report.failures[0].failure)
    assert "--strict" in str(report.failures[0].failure)
    assert report.outcomes[1].kept
    assert labels_state(report.output, "sub-01") == {}


def test_soft_masks_are_taken_as_they_are_if_asked(bids: Path) -> None:
    """Twice the same soft mask: their mean is that mask."""
    weights = np.linspace(0.6, 1, SHAPE[2], dtype=np.float32)
    for contrast in ("T1w", "T2w"):
        rewrite(lambda v: v * weights)(mask_file(bids, f"anat/sub-01_{contrast}"))
    assert len(run(bids).failures) == 1
    report = run(bids, soft_masks=True)
    assert report.failures == ()
    np.testing.assert_allclose(
        nib.load(label_file(report.output, "anat/sub-01_T1w")).get_fdata(), disc() * weights, atol=1e-6
    )
    np.testing.assert_array_equal(nib.load(label_file(report.output, "anat/sub-02_T2w")).get_fdata(), disc())


@pytest.mark.parametrize("one", [1.0005, 0.9995])
def test_masks_that_are_taken_are_taken_as_soft_ones_too(one: float, bids: Path) -> None:
    for contrast in ("T1w", "T2w"):
        rewrite(lambda v: v * np.float32(one))(mask_file(bids, f"anat/sub-01_{contrast}"))
    for soft_masks in (False, True):
        report = run(bids, soft_masks=soft_masks)
        assert report.failures == ()
        label = nib.load(label_file(report.output, "anat/sub-01_T1w")).get_fdata()
        np.testing.assert_array_equal(label, disc())


def test_a_mask_stored_with_a_slope_is_binary(bids: Path) -> None:
    """1/255 is not a float32: 255 times it comes back a step beside 1."""
    file = mask_file(bids, "anat/sub-01_T1w")
    image = nib.Nifti1Image(disc() * 255, affine())
    image.header.set_slope_inter(np.float32(1 / 255) * 1.000001, 0)
    image.to_filename(file)
    assert not set(np.unique(nib.load(file).get_fdata())) <= {0.0, 1.0}
    report = run(bids)
    assert report.failures == ()
    np.testing.assert_array_equal(nib.load(label_file(report.output, "anat/sub-01_T1w")).get_fdata(), disc())


def test_an_implausible_stand_in_for_a_missing_reference_is_said(bids: Path) -> None:
    mask_file(bids, "anat/sub-01_T2w").unlink()
    add(bids, "anat/sub-01_T1w", disc(2, (3.5, 7.5)))
    for source in ("anat/sub-01_T2star", "dwi/sub-01_dwi"):
        add(bids, source, disc(2, (14.5, 7.5)))
    report = run(bids, None, GroundTruthSettings(leave_out_implausible=True), subjects=["sub-01"])
    note = report.outcomes[0].other_reference
    assert note is not None
    assert note.startswith("T2w cannot be the reference, it is missing: T1w has the thinnest slices")
    assert note.endswith("; T1w was left out as implausible: T2star is the reference")


def test_implausible_contrasts_come_first_in_the_summary(bids: Path) -> None:
    write_nifti(mask_file(bids, "anat/sub-02_T1w"), disc(1.5), affine())
    add(bids, "anat/sub-02_T2star")
    mask_file(bids, "anat/sub-01_T2w").unlink()
    report = run(bids)
    first, second = report.as_text().splitlines()[:2]
    assert first == "implausible, to look at first:"
    assert second.startswith("  sub-02 T1w: agreement with the average (Dice) is ")
    # A kept subject is no less implausible.
    assert run(bids).as_text().splitlines()[:2] == [first, second]


# A run that goes on


def test_nothing_is_made_twice(made: Path) -> None:
    output = made / "derivatives" / "softseg"
    before = labels_state(output)
    assert len(before) == 2 * (2 * 4 + 2)
    report = run(made)
    assert all(outcome.kept for outcome in report.outcomes)
    assert labels_state(output) == before
    assert "0 made, 2 kept, 0 failed" in report.as_text()

    assert not any(outcome.kept for outcome in run(made, overwrite=True).outcomes)
    after = labels_state(output)
    assert hashes(after) == hashes(before)
    assert all(after[name][1] != before[name][1] for name in before)


def edit_mask(bids: Path, output: Path) -> None:
    write_nifti(mask_file(bids, "anat/sub-01_T1w"), disc(4.4), affine())


def edit_image_keeping_size_and_time(bids: Path, output: Path) -> None:
    file = image_file(bids, "anat/sub-01_T1w")
    times = file.stat()
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[-1] ^= 1
    file.write_bytes(gzip.compress(bytes(content)))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def remove_mask(bids: Path, output: Path) -> None:
    mask_file(bids, "anat/sub-01_T1w").unlink()


def remove_label(bids: Path, output: Path) -> None:
    label_file(output, "anat/sub-01_T1w").unlink()


def spoil_label(bids: Path, output: Path) -> None:
    rewrite(lambda v: v * 0)(label_file(output, "anat/sub-01_T1w", HARD))


def remove_quality(bids: Path, output: Path) -> None:
    (output / "qc" / "subjects" / "sub-01.webp").unlink()


def spoil_record(bids: Path, output: Path) -> None:
    (output / "qc" / "records" / "sub-01.json").write_text('{"outputs": 3}')


def make_by_another_version(bids: Path, output: Path) -> None:
    record = output / "qc" / "records" / "sub-01.json"
    record.write_text(record.read_text().replace(nnunet_softseg.__version__, "0.0.1"))


@pytest.mark.parametrize(
    "change",
    [
        edit_mask, edit_image_keeping_size_and_time, remove_mask, remove_label, spoil_label, remove_quality,
        spoil_record, make_by_another_version,
    ],
)  # fmt: skip
def test_what_changed_is_made_again_and_nothing_else(
    made: Path, tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    output = made / "derivatives" / "softseg"
    before, other = labels_state(output, "sub-01"), labels_state(output, "sub-02")
    change(made, output)

    report = run(made)

    assert [outcome.kept for outcome in report.outcomes] == [False, True]
    assert labels_state(output, "sub-02") == other
    after = hashes(labels_state(output, "sub-01"))
    if change in (edit_mask, edit_image_keeping_size_and_time, remove_mask):
        assert after != hashes(before)
        fresh = run(made, tmp_path / "fresh", subjects=["sub-01"]).output
        assert after == hashes(labels_state(fresh, "sub-01"))
    else:
        assert after == hashes(before)
    assert label_file(output, "anat/sub-01_T1w").exists() == (change is not remove_mask)


def test_a_label_corrected_by_hand_is_named_where_it_is_made_again(made: Path) -> None:
    label = label_file(made / "derivatives" / "softseg", "anat/sub-01_T1w")
    rewrite(lambda v: v[::-1])(label)
    told = f"changed since it was made, now made again: sub-01/anat/{label.name} (sub-01)"
    assert told in run(made).as_text()
    again = run(made)
    assert all(outcome.kept for outcome in again.outcomes)
    assert "made again" not in again.as_text()
    cut_off(label)
    assert "made again" not in run(made).as_text(), "a broken file is nobody's work"


@pytest.mark.parametrize(
    "setting", [{"trim_mm": 1.0}, {"box": False}, {"reference": "T1w"}, {"smooth_mm": 3.0}]
)
def test_another_setting_makes_all_again(made: Path, setting: dict[str, Any]) -> None:
    settings = GroundTruthSettings(**setting)
    assert not any(outcome.kept for outcome in run(made, None, settings, subjects=["sub-01"]).outcomes)


def test_only_failed_subjects_are_tried_again(made: Path) -> None:
    bids, mask = made, mask_file(made, "anat/sub-01_T1w")
    good = mask.read_bytes()
    cut_off(mask)
    output = run(bids).output
    before = labels_state(output, "sub-02")
    # A run without the failed one does not forget it.
    run(bids, subjects=["02"])
    assert list(json.loads((output / "qc" / "failed.json").read_text())) == ["sub-01"]

    mask.write_bytes(good)
    report = run(bids)

    assert [outcome.kept for outcome in report.outcomes] == [False, True]
    assert report.failures == ()
    assert json.loads((output / "qc" / "failed.json").read_text()) == {}
    assert labels_state(output, "sub-02") == before


def test_subjects_of_an_earlier_run_are_named(made: Path) -> None:
    bids, output = made, made / "derivatives" / "softseg"
    report = run(bids, exclude=["sub-01"])
    assert any("earlier run" in warning and "(sub-01)" in warning for warning in report.warnings)
    assert label_file(output, "anat/sub-01_T2w").exists()
    assert run(bids, subjects=["sub-02"]).warnings == ()


def test_two_runs_at_once_are_refused(made: Path) -> None:
    bids, output = made, made / "derivatives" / "softseg"
    with (
        FileLock(output / "qc" / ".lock"),
        pytest.raises(UserError, match="another make-gt is at work there: wait until it is done"),
    ):
        run(bids)


@pytest.mark.soak
def test_it_goes_on_after_a_kill(tmp_path: Path) -> None:
    """SIGKILL to the whole group while some subjects are done: these are kept, the others made, no litter."""
    bids, output, clean = tmp_path / "bids", tmp_path / "out", tmp_path / "clean"
    names = [f"sub-{number:02d}" for number in range(1, 9)]
    for number, name in enumerate(names):
        for contrast in ("T1w", "T2w"):
            add(bids, f"anat/{name}_{contrast}", disc(3 + number / 10))
    words = ["-m", "nnunet_softseg", "make-gt", "-i", str(bids), "-o", str(output), "-np", "2"]
    process = subprocess.Popen(
        [sys.executable, *words],
        env=clean_environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    records = output / "qc" / "records"
    deadline = time.monotonic() + 120
    while not list(records.glob("sub-*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:  # a worker counts as alive until somebody has asked for its end
            os.killpg(process.pid, 0)
            time.sleep(0.005)
    done = {path.stem for path in records.glob("sub-*.json")}
    assert 0 < len(done) < len(names)
    before = {name: labels_state(output, name) for name in done}
    # What a kill at another moment would leave.
    (clean / "qc" / "records").mkdir(parents=True)
    (output / ".partial-sub-08-1-abc" / "sub-08").mkdir(parents=True)
    write_nifti(label_file(output, "anat/sub-08_T1w"), np.zeros(SHAPE, np.float32), affine())

    report = run(bids, output)

    assert {outcome.person for outcome in report.outcomes if outcome.kept} == done
    assert report.failures == ()
    assert {name: labels_state(output, name) for name in done} == before
    hidden = [path for path in output.rglob(".*") if path.name not in (".bidsignore", ".lock")]
    assert hidden == []
    run(bids, clean)
    assert hashes(labels_state(output)) == hashes(labels_state(clean))


# Whole ways


def test_phantom_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Six contrasts, shifted up to 3 mm, biased masks: the soft labels are far closer to the truth."""
    bids = phantom(tmp_path / "phantom", n=2, fov_mm=(44, 44, 30), shift_mm=3, progress=False)
    output = bids / "derivatives" / "softseg"
    assert cli.main(["make-gt", "-i", str(bids), "-o", str(output), "-np", "1"]) == 0
    printed = capsys.readouterr().out
    assert f"{output}: 2 made, 0 kept, 0 failed\nquality control: {output / 'qc' / 'index.html'}\n" in printed

    errors: dict[str, list[float]] = {"soft": [], "mask": []}
    for mask in sorted((bids / "derivatives" / "labels").rglob("*_seg-manual.nii.gz")):
        place, stem = (
            mask.parent.relative_to(bids / "derivatives" / "labels"),
            mask.name[: -len("_seg-manual.nii.gz")],
        )
        truth = nib.load(
            bids / "derivatives" / "truth" / place / f"{stem}_label-SC_desc-truth_probseg.nii.gz"
        )
        soft = nib.load(output / place / f"{stem}{SOFT}.nii.gz")
        np.testing.assert_array_equal(soft.affine, nib.load(bids / place / f"{stem}.nii.gz").affine)
        boundary = (truth.get_fdata() > 0) & (truth.get_fdata() < 1)
        for name, label in (("soft", soft), ("mask", nib.load(mask))):
            errors[name].append(np.abs(label.get_fdata() - truth.get_fdata())[boundary].mean())
    assert len(errors["soft"]) == 12
    assert np.mean(errors["soft"]) < 0.5 * np.mean(errors["mask"])
    page = (output / "qc" / "index.html").read_text()
    assert "sub-01" in page
    assert "sub-02" in page


def test_real_data(real_data: Path, tmp_path: Path) -> None:
    """One subject with the same mask on all contrasts, one without T2w and with oblique thick slices."""
    bids, output = real_data / "bids", tmp_path / "out"
    before = state(bids)

    report = run(bids, output)

    assert report.failures == ()
    by_person = {outcome.person: outcome for outcome in report.outcomes}
    assert by_person["sub-unf01"].other_reference is None
    assert by_person["sub-sct01"].reference == "T1w"
    assert "T2w cannot be the reference, it is missing: T1w" in report.as_text()
    images = sorted(bids.glob("sub-*/anat/*.nii.gz"))
    assert len(images) == 6
    for image in images:
        source = nib.load(image)
        place, stem = image.parent.relative_to(bids), image.name.removesuffix(".nii.gz")
        drawn = nib.load(bids / "derivatives" / "labels" / place / f"{stem}_seg-manual.nii.gz").get_fdata()
        soft, hard = (nib.load(output / place / f"{stem}{suffix}.nii.gz") for suffix in (SOFT, HARD))
        for label in (soft, hard):
            assert label.shape == source.shape
            np.testing.assert_array_equal(label.affine, source.affine)
            for field in GEOMETRY:
                np.testing.assert_array_equal(label.header[field], source.header[field])
        values = np.asarray(soft.dataobj)
        np.testing.assert_array_equal(np.asarray(hard.dataobj), values > 0.5)
        if "unf01" in stem:
            np.testing.assert_array_equal(values, drawn)
        else:
            # Three raters' masks of one cord: the label is theirs but for the rim, and soft only there.
            assert values.sum() == pytest.approx(drawn.sum(), rel=0.06)
            assert ((values > 0) & (values < 1)).sum() > 100
            inner, outer = drawn.astype(bool), drawn.astype(bool)
            for axis in (0, 1):
                inner = inner & np.roll(inner, 1, axis) & np.roll(inner, -1, axis)
                outer = outer | np.roll(outer, 1, axis) | np.roll(outer, -1, axis)
            assert values[inner].mean() > 0.97
            assert values[~outer].sum() < 0.01 * values.sum()
    assert state(bids) == before
