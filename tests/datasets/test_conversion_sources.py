"""Which images become cases: names old and new, what is excluded, where soft labels are looked for."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_softseg.datasets.conversion.sources import BIDS, SPINE_GENERIC, Selection, Sources, find_sources
from nnunet_softseg.errors import UserError
from nnunet_softseg.io.case_files import parse_bids_name
from nnunet_softseg.io.image_choice import Exclusion, read_exclusions

MADE_HERE = "derivatives/softseg/{}_label-SC_desc-softseg_probseg.nii.gz"


def touch(bids: Path, *names: str) -> None:
    """Empty files: nothing of this looks into them."""
    for name in names:
        (bids / name).parent.mkdir(parents=True, exist_ok=True)
        (bids / name).touch()


def with_labels(bids: Path, *images: str, place: str = MADE_HERE) -> None:
    for image in images:
        touch(bids, f"{image}.nii.gz", place.format(image))


def case_ids(sources: Sources) -> list[str]:
    return [case.case_id for case in sources.cases]


# The name table


@pytest.mark.parametrize(
    ("name", "contrast"),
    [
        # as the dataset is today
        ("sub-unf01_T1w", "T1w"),
        ("sub-unf01_T2w", "T2w"),
        ("sub-unf01_T2star", "T2star"),
        ("sub-unf01_flip-1_mt-on_MTS", "mt-on"),
        ("sub-unf01_flip-2_mt-off_MTS", "mt-off"),
        ("sub-unf01_rec-average_dwi", "dwi"),
        # as it was in between, and once
        ("sub-unf01_space-other_T1w", "T1w"),
        ("sub-unf01_flip-1_mt-on_space-other_MTS", "mt-on"),
        ("sub-unf01_flip-2_mt-off_space-other_MTS", "mt-off"),
        ("sub-unf01_mt-on_MTS", "mt-on"),
        ("sub-unf01_acq-MTon_MTS", "mt-on"),
        ("sub-unf01_acq-T1w_MTS", "mt-off"),
        # none of the six
        ("sub-unf01_flip-1_mt-off_MTS", None),
        ("sub-unf01_acq-MToff_MTS", None),
        ("sub-unf01_dwi", None),
        ("sub-unf01_acq-b0_dwi", None),
        ("sub-unf01_acq-sag_T2w", None),
        ("sub-unf01_MTS", None),
    ],
)
def test_spine_generic_names_old_and_new(name: str, contrast: str | None) -> None:
    parsed = parse_bids_name(f"{name}.nii.gz")
    assert parsed is not None
    assert SPINE_GENERIC.contrast_of(parsed) == contrast


def test_any_name_is_a_contrast_without_a_table() -> None:
    for name, contrast in (
        ("sub-01_ses-2_acq-sag_T2w", "T2w"),
        ("sub-01_UNIT1", "UNIT1"),
        ("sub-01_acq-T1w_MTS", "mt-off"),
        ("sub-01_acq-other_MTS", "MTS"),
    ):
        parsed = parse_bids_name(f"{name}.nii.gz")
        assert parsed is not None
        assert BIDS.contrast_of(parsed) == contrast


NEW = ("T1w", "T2w", "T2star", "flip-1_mt-on_MTS", "flip-2_mt-off_MTS")
OLD = ("T1w", "T2w", "T2star", "acq-MTon_MTS", "acq-T1w_MTS")


@pytest.mark.parametrize(
    ("names", "ending"), [(NEW, "_label-SC_softseg"), (OLD, "_softseg")], ids=["new", "old"]
)
def test_the_tree_of_spine_generic(tmp_path: Path, names: tuple[str, ...], ending: str) -> None:
    place = "derivatives/labels_softseg/{}" + ending + ".nii.gz"
    for subject in ("sub-amu01", "sub-unf01"):
        with_labels(tmp_path, *(f"{subject}/anat/{subject}_{name}" for name in names), place=place)
        with_labels(tmp_path, f"{subject}/dwi/{subject}_rec-average_dwi", place=place)
        other = ("anat/{}_flip-1_mt-off_MTS", "anat/{}_acq-MToff_MTS", "dwi/{}_dwi", "dwi/{}_acq-b0_dwi")
        touch(tmp_path, *(f"{subject}/{name.format(subject)}.nii.gz" for name in other))
    sources = find_sources(tmp_path, Selection(SPINE_GENERIC))
    contrasts = ("T1w", "T2star", "T2w", "dwi", "mt-off", "mt-on")
    assert case_ids(sources) == [f"{sub}_{one}" for sub in ("sub-amu01", "sub-unf01") for one in contrasts]
    assert dict(sources.labels) == {"cord": ending}
    assert {name.split("_", 1)[1] for name in sources.left_out["not a contrast of this layout"]} == {
        "flip-1_mt-off_MTS.nii.gz",
        "acq-MToff_MTS.nii.gz",
        "dwi.nii.gz",
        "acq-b0_dwi.nii.gz",
    }
    assert SPINE_GENERIC.in_order(contrasts) == ["T1w", "T2w", "T2star", "mt-on", "mt-off", "dwi"]


def test_soft_labels_made_here_come_before_those_of_the_dataset(tmp_path: Path) -> None:
    published = "derivatives/labels_softseg/{}_label-SC_softseg.nii.gz"
    with_labels(tmp_path, "sub-01/anat/sub-01_T1w", "sub-02/anat/sub-02_T1w", place=published)
    with_labels(tmp_path, "sub-01/anat/sub-01_T1w")
    sources = find_sources(tmp_path, Selection(SPINE_GENERIC))
    assert sources.derivatives == tmp_path / "derivatives" / "softseg"
    assert case_ids(sources) == ["sub-01_T1w"]  # the two kinds are not mixed
    assert sources.left_out["without a soft label"] == ("sub-02/anat/sub-02_T1w.nii.gz",)
    chosen = Selection(SPINE_GENERIC, derivatives="derivatives/labels_softseg")
    assert case_ids(find_sources(tmp_path, chosen)) == ["sub-01_T1w", "sub-02_T1w"]


# Where soft labels lie


@pytest.mark.parametrize("given_as", ["absolute", "from here", "within"])
def test_derivatives_lie_anywhere(tmp_path: Path, monkeypatch, given_as: str) -> None:
    bids, outside = tmp_path / "bids", tmp_path / "soft"
    folder = bids / "soft" if given_as == "within" else outside
    touch(bids, "sub-01/anat/sub-01_T2w.nii.gz")
    touch(folder, "sub-01/anat/sub-01_T2w_x.nii")
    monkeypatch.chdir(tmp_path)
    derivatives = str(outside) if given_as == "absolute" else "soft"
    sources = find_sources(bids, Selection(BIDS, derivatives=derivatives, labels={"cord": "_x"}))
    (case,) = sources.cases
    assert case.soft_labels[0].samefile(folder / "sub-01" / "anat" / "sub-01_T2w_x.nii")


def test_an_image_that_lacks_one_of_several_labels_is_left_out(tmp_path: Path) -> None:
    both = {"cord": "_c", "lesion": "_l"}
    touch(tmp_path, *(f"sub-0{n}/anat/sub-0{n}_T2w.nii.gz" for n in (1, 2)))
    touch(tmp_path, *(f"d/sub-0{n}/anat/sub-0{n}_T2w_c.nii.gz" for n in (1, 2)))
    touch(tmp_path, "d/sub-02/anat/sub-02_T2w_l.nii.gz")
    sources = find_sources(tmp_path, Selection(BIDS, derivatives="d", labels=both))
    assert case_ids(sources) == ["sub-02_T2w"]
    assert [file.name for file in sources.cases[0].soft_labels] == [
        "sub-02_T2w_c.nii.gz",
        "sub-02_T2w_l.nii.gz",
    ]
    assert sources.left_out == {"without a soft label": ("sub-01/anat/sub-01_T2w.nii.gz",)}


@pytest.mark.parametrize(
    "broken", ["sub-01/anat/sub-01_T2w.nii.gz", MADE_HERE.format("sub-01/anat/sub-01_T2w")]
)
def test_files_that_were_not_fetched_are_no_images_without_label(tmp_path: Path, broken: str) -> None:
    """git-annex leaves links to nowhere: to go on without those images would be silent."""
    with_labels(tmp_path, "sub-01/anat/sub-01_T2w", "sub-02/anat/sub-02_T2w")
    (tmp_path / broken).unlink()
    os.symlink("../../.git/annex/objects/x", tmp_path / broken)
    with pytest.raises(UserError, match=r"sub-01_T2w.*: expected files, found links to nowhere: .*git annex"):
        find_sources(tmp_path, Selection(BIDS))
    kept = find_sources(tmp_path, Selection(BIDS, exclude=("sub-01",)))
    assert case_ids(kept) == ["sub-02_T2w"]


# Case ids


def test_two_images_of_a_contrast_can_be_told_apart(tmp_path: Path) -> None:
    with_labels(
        tmp_path, "sub-01/anat/sub-01_acq-sag_T2w", "sub-01/anat/sub-01_acq-ax_T2w", "sub-01/anat/sub-01_T1w"
    )
    with pytest.raises(UserError, match=r"2 images get the case id sub-01_T2w .*acq-ax.*--distinguish-by"):
        find_sources(tmp_path, Selection(BIDS))
    sources = find_sources(tmp_path, Selection(BIDS, distinguish_by=("acq", "run")))
    assert case_ids(sources) == ["sub-01_T1w", "sub-01_acq-ax_T2w", "sub-01_acq-sag_T2w"]
    assert [case.contrast for case in sources.cases] == ["T1w", "acq-ax_T2w", "acq-sag_T2w"]
    rest = find_sources(tmp_path, Selection(BIDS, exclude=("*acq-ax*",)))
    assert case_ids(rest) == ["sub-01_T1w", "sub-01_T2w"]


def test_runs_of_a_contrast_are_told_apart_as_the_message_says(tmp_path: Path) -> None:
    with_labels(tmp_path, "sub-01/anat/sub-01_run-1_T2w", "sub-01/anat/sub-01_run-2_T2w")
    with pytest.raises(UserError, match=r"\(--distinguish-by run\)") as refused:
        find_sources(tmp_path, Selection(BIDS))
    keys = str(refused.value).partition("--distinguish-by ")[2].rstrip(")").split()
    sources = find_sources(tmp_path, Selection(BIDS, distinguish_by=tuple(keys)))
    assert case_ids(sources) == ["sub-01_run-1_T2w", "sub-01_run-2_T2w"]


@pytest.mark.parametrize("image", ["sub-02/sub-02_T2w.nii.gz", "sub-02/anat/sub-02_T2w.mha"])
def test_a_soft_label_whose_image_is_not_found_is_named(tmp_path: Path, image: str) -> None:
    with_labels(tmp_path, "sub-01/anat/sub-01_T2w", "sub-03/anat/sub-03_T1w")
    touch(tmp_path, image, MADE_HERE.format("sub-02/anat/sub-02_T2w"))
    sources = find_sources(tmp_path, Selection(BIDS, contrasts=("T2w",)))
    assert case_ids(sources) == ["sub-01_T2w"]
    (warning,) = sources.warnings
    assert warning.startswith("1 soft labels without an image in NIfTI at its place, left out: sub-02/anat/")


@pytest.mark.parametrize("folder", ["sub-02", "sub-02/ses-1", "sub-02/fmap"])
def test_an_image_with_a_soft_label_in_no_folder_of_images_is_named(tmp_path: Path, folder: str) -> None:
    with_labels(tmp_path, "sub-01/anat/sub-01_T2w", f"{folder}/sub-02_T2w")
    touch(tmp_path, "sub-01/fmap/sub-01_epi.nii.gz", MADE_HERE.format(f"{folder}/sub-02_T1w"))
    sources = find_sources(tmp_path, Selection(BIDS))
    assert case_ids(sources) == ["sub-01_T2w"]
    assert sources.left_out == {"not in anat or dwi": (f"{folder}/sub-02_T2w.nii.gz",)}
    (warning,) = sources.warnings
    assert warning.startswith(
        f"1 soft labels without an image in NIfTI at its place, left out: {folder}/sub-02_T1w"
    )
    excluded = find_sources(tmp_path, Selection(BIDS, exclude=("sub-02_T2w",)))
    assert (excluded.left_out, len(excluded.warnings)) == ({}, 1)


def test_case_ids_that_differ_in_case_only_are_one_file_on_some_disks(tmp_path: Path) -> None:
    with_labels(tmp_path, "sub-01/anat/sub-01_T2w", "sub-01/anat/sub-01_T2W")
    with pytest.raises(UserError, match="2 images get the case id"):
        find_sources(tmp_path, Selection(BIDS))


def test_an_image_in_the_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    with_labels(tmp_path, "sub-01/anat/sub-02_T2w", "sub-01/anat/sub-01_T2w")
    with pytest.raises(UserError, match="an image of sub-01 by its folder, found one of sub-02 by its name"):
        find_sources(tmp_path, Selection(BIDS))
    assert case_ids(find_sources(tmp_path, Selection(BIDS, exclude=("sub-02_T2w",)))) == ["sub-01_T2w"]


def test_a_name_that_is_not_bids_can_be_excluded(tmp_path: Path) -> None:
    with_labels(tmp_path, "sub-01/anat/sub-01_T2w")
    touch(tmp_path, "sub-01/anat/copy of T2w.nii.gz")
    with pytest.raises(UserError, match=r"sub-01/anat/copy of T2w.nii.gz: expected a BIDS name"):
        find_sources(tmp_path, Selection(BIDS))
    sources = find_sources(tmp_path, Selection(BIDS, exclude=("copy of*",)))
    assert case_ids(sources) == ["sub-01_T2w"]


# Exclusion


IMAGES = [
    f"sub-{site}{number}/ses-{session}/anat/sub-{site}{number}_ses-{session}_{contrast}"
    for site in ("amu", "unf")
    for number in (1, 2)
    for session in ("a", "b")
    for contrast in ("T1w", "T2w")
]


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("sub-amu1", lambda name: "sub-amu1/" in name),
        ("sub-amu1_ses-b", lambda name: "sub-amu1_ses-b" in name),
        ("sub-amu1_ses-b_T2w", lambda name: name.endswith("sub-amu1_ses-b_T2w")),
        ("sub-amu1_ses-b_T2w.nii.gz", lambda name: name.endswith("sub-amu1_ses-b_T2w")),
        ("sub-unf*", lambda name: "sub-unf" in name),
        ("*_T1w", lambda name: name.endswith("_T1w")),
        ("sub-unf2/ses-a/*", lambda name: "sub-unf2/ses-a" in name),
    ],
)
def test_what_a_pattern_covers(tmp_path: Path, pattern: str, meant) -> None:
    with_labels(tmp_path, *IMAGES)
    sources = find_sources(tmp_path, Selection(BIDS, exclude=(pattern,)))
    expected = {f"{name}.nii.gz" for name in IMAGES if meant(name)}
    assert set(sources.left_out["excluded"]) == expected
    assert {case.image.relative_to(tmp_path).as_posix() for case in sources.cases} == {
        f"{name}.nii.gz" for name in IMAGES
    } - expected
    assert sources.warnings == ()


@pytest.mark.parametrize("pattern", ["sub-amu", "amu1", "sub-Amu1", "T1w", "sub-amu1_T1w"])
def test_a_pattern_that_covers_nothing_is_told(tmp_path: Path, pattern: str) -> None:
    with_labels(tmp_path, *IMAGES)
    sources = find_sources(tmp_path, Selection(BIDS, exclude=(pattern, "sub-unf1")))
    (warning,) = sources.warnings
    assert warning.startswith(f"--exclude matched nothing for {pattern}: expected subjects (sub-01)")


@given(kept=st.sets(st.sampled_from(IMAGES), min_size=1))
def test_to_exclude_and_to_keep_are_complements(kept: set[str]) -> None:
    bids = Path("bids")
    exclusion = Exclusion([Path(name).name for name in IMAGES if name not in kept])
    left = {name for name in IMAGES if not exclusion.covers(bids / f"{name}.nii.gz", bids, [])}
    assert left == kept
    assert exclusion.warnings() == []


def test_lists_of_what_to_leave_out(tmp_path: Path) -> None:
    lines, nested, plain = tmp_path / "a.txt", tmp_path / "exclude.yml", tmp_path / "c.json"
    lines.write_text("# motion\nsub-01   # the whole subject\n\n  sub-02_T2w.nii.gz\n")
    nested.write_text("csa_t1:\n- sub-03  # Motion artifact\n- 04\nmtr:\n- sub-03\nfa:\n")
    plain.write_text(json.dumps({"a": ["sub-05", {"b": "sub-06"}]}))
    image = tmp_path / "sub-08_T2w.nii.gz"
    image.touch()  # an image is left out by its path, not read as a list
    asked = [str(lines), str(nested), str(plain), "sub-07", str(image)]
    expected = ("sub-01", "sub-02_T2w.nii.gz", "sub-03", "04", "sub-05", "sub-06", "sub-07", str(image))
    assert read_exclusions(asked) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yml", b"a: [1", "expected JSON .* or YAML, found: "),
        ("a.json", b"{", "expected JSON .* or YAML, found: "),
        ("a.txt", b"\xff\xfe\x00s", "expected a text file, found: not text in UTF-8"),
    ],
)
def test_broken_lists_are_named_in_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_exclusions([str(tmp_path / name)])
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
