"""Splits that somebody has made: formats, overlap, unknown and forgotten subjects."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nnunet_softseg.datasets.conversion.sources import SourceCase, Sources
from nnunet_softseg.datasets.conversion.splits import Split, choose_split, read_split_file, split_subjects
from nnunet_softseg.errors import UserError

LISTS = Split(train=("sub-01", "sub-02"), validation=("sub-03",), test=("sub-04",))


def write(folder: Path, name: str, content: object) -> Path:
    file = folder / name
    if isinstance(content, str):
        file.write_text(content)
    else:
        file.write_text(json.dumps(content) if name.endswith(".json") else yaml.safe_dump(content))
    return file


def sources_of(*subjects: str, contrasts: tuple[str, ...] = ("T1w", "T2w")) -> Sources:
    cases = [
        SourceCase(
            f"{subject}_{contrast}", subject, contrast, Path("bids", subject, f"{contrast}.nii.gz"), ()
        )
        for subject in subjects
        for contrast in contrasts
    ]
    return Sources(Path("bids"), Path("d"), {"cord": "_x"}, tuple(cases), frozenset(subjects), {}, ())


# Formats


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", {"train": ["sub-01", "sub-02"], "val": ["sub-03"], "test": ["sub-04"]}),
        ("a.yaml", {"test": ["sub-04"], "train": ["sub-02", "sub-01"], "validation": ["sub-03"]}),
        ("ivadomed.json", {"train": ["sub-01_T2w.nii.gz", "sub-02_T2w.nii.gz", "sub-01_T1w.nii.gz"],
                           "valid": ["anat/sub-03_T2w.nii.gz"], "test": ["sub-04_T2w"]}),
        # not eight, not one: YAML would read these as numbers
        ("labels.yml", "train: [01, 02]\nval: [03]\ntest: [04]\n"),
        ("conversion.json", {"split": {"train": ["sub-01", "sub-02"], "validation": ["sub-03"],
                                       "test": ["sub-04"]}, "cases": {}}),
        ("participants.tsv", "participant_id\tage\tsplit\nsub-01\t30\ttrain\nsub-02\tn/a\ttrain\n"
                             "sub-03\t\tval\nsub-04\t50\ttest\nsub-05\t50\tn/a\nsub-06\t50\t\n"),
    ],
)  # fmt: skip
def test_every_format_says_the_same(tmp_path: Path, name: str, content: object) -> None:
    assert read_split_file(write(tmp_path, name, content)) == LISTS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", [{"train": [], "val": []}], "expected a split, .*found a list"),
        ("a.json", {"train": ["sub-01"], "dev": []}, "expected train, val and test, found 'dev'"),
        ("a.json", {"train": []}, "found no subject in it"),
        ("a.json", {"train": ["sub 01"]}, "expected subjects like sub-01, found 'sub 01'"),
        ("a.json", "{", "expected JSON"),
        ("a.txt", "sub-01\n", "found another ending"),
        ("a.tsv", "participant_id\tgroup\nsub-01\ttrain\n", "expected columns participant_id and split, "
                                                             "found participant_id, group"),
        ("a.tsv", "participant_id\tsplit\nsub-01\thold\n", "found 'hold'"),
    ],
)  # fmt: skip
def test_what_is_no_split(tmp_path: Path, name: str, content: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_split_file(write(tmp_path, name, content))
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.yml: expected a text file, found: No such file"):
        read_split_file(tmp_path / "nowhere.yml")


@pytest.mark.parametrize(
    "content",
    [
        {"train": ["sub-01", "sub-02"], "val": ["sub-03"], "test": ["sub-02"]},
        {"train": ["sub-02_T1w.nii.gz"], "test": ["sub-02_T2w.nii.gz"]},
        {"train": ["02"], "test": ["sub-02"]},
    ],
)
def test_one_subject_on_both_sides_is_refused(tmp_path: Path, content: object) -> None:
    file = write(tmp_path, "split.json", content)
    with pytest.raises(
        UserError, match=r"split.json: expected each subject in one part, found sub-02 in train"
    ):
        read_split_file(file)


def test_the_number_of_overlapping_subjects_is_told(tmp_path: Path) -> None:
    subjects = [f"sub-{number:02d}" for number in range(38)]
    file = write(tmp_path, "a.json", {"train": [*subjects, "sub-90"], "val": ["sub-91"], "test": subjects})
    with pytest.raises(UserError, match=r"sub-00 in train and test \(38 subjects are in two parts\)"):
        read_split_file(file)


# The subjects at hand


def test_a_file_is_followed_to_the_letter(tmp_path: Path) -> None:
    file = write(tmp_path, "a.yml", {"train": ["sub-04", "sub-02"], "val": ["sub-01"], "test": ["sub-03"]})
    split, sources = choose_split(sources_of("sub-01", "sub-02", "sub-03", "sub-04"), file, seed=5)
    assert split == Split(train=("sub-02", "sub-04"), validation=("sub-01",), test=("sub-03",))
    assert len(sources.cases) == 8
    assert sources.warnings == ()


def test_unknown_subjects_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "a.yml", {"train": ["sub-01", "sub-77"], "val": ["sub-02"], "test": ["sub-78"]})
    with pytest.raises(
        UserError, match=r"a.yml: expected subjects of bids, found 2 that are not there .sub-77"
    ):
        choose_split(sources_of("sub-01", "sub-02"), file)


def test_subjects_without_a_case_are_told_and_forgotten_ones_left_out(tmp_path: Path) -> None:
    file = write(tmp_path, "a.yml", {"train": ["sub-01", "sub-05"], "val": ["sub-02"]})
    there = sources_of("sub-01", "sub-02", "sub-03", "sub-04")
    known = Sources(**{**vars(there), "subjects": there.subjects | {"sub-05"}})
    split, sources = choose_split(known, file)
    assert split == Split(train=("sub-01",), validation=("sub-02",), test=())
    assert {case.subject for case in sources.cases} == {"sub-01", "sub-02"}
    assert sources.left_out["not in the split"] == (
        "sub-03/T1w.nii.gz",
        "sub-03/T2w.nii.gz",
        "sub-04/T1w.nii.gz",
        "sub-04/T2w.nii.gz",
    )
    absent, forgotten = sources.warnings
    assert "1 of 3 subjects have no image in this dataset (sub-05)" in absent
    assert "does not name 2 of 4 subjects (sub-03, sub-04): left out" in forgotten


def test_a_frozen_test_set_leaves_the_rest_to_be_drawn(tmp_path: Path) -> None:
    names = [f"sub-{number:02d}" for number in range(20)]
    file = write(tmp_path, "frozen.yaml", {"test": names[:5]})
    split, sources = choose_split(sources_of(*names), file, seed=3)
    assert split.test == tuple(names[:5])
    assert [len(split.train), len(split.validation)] == [11, 4]  # a fifth of 20 validates
    assert sorted(split.train + split.validation) == names[5:]
    assert sources.warnings == ()
    with pytest.raises(UserError, match="--seed -1: expected 0 or more"):
        choose_split(sources_of(*names), file, seed=-1)
    others = {choose_split(sources_of(*names), file, seed=seed)[0] for seed in range(6)}
    assert len({other.validation for other in others}) > 1
    assert {other.test for other in others} == {split.test}
    more, _ = choose_split(sources_of(*names), file, num_validation=7)
    assert len(more.validation) == 7


@pytest.mark.parametrize(
    ("content", "numbers"),
    [
        ({"train": ["sub-01"], "val": ["sub-02"]}, {"num_test": 1}),
        ({"train": ["sub-01"], "val": ["sub-02"]}, {"num_validation": 1}),
        ({"test": ["sub-02"]}, {"num_test": 1}),
    ],
)
def test_a_file_and_numbers_contradict_each_other(tmp_path: Path, content: object, numbers) -> None:
    file = write(tmp_path, "a.yml", content)
    with pytest.raises(UserError, match="either --split or numbers of subjects, got both"):
        choose_split(sources_of("sub-01", "sub-02"), file, **numbers)


@pytest.mark.parametrize(
    "content",
    [
        {"train": ["sub-01", "sub-02"], "test": ["sub-03"]},
        {"val": ["sub-01", "sub-02"], "test": ["sub-03"]},
        {"test": ["sub-01", "sub-02"]},
    ],
)
def test_somebody_must_train_and_somebody_validate(tmp_path: Path, content: object) -> None:
    file = write(tmp_path, "a.yml", content)
    with pytest.raises(UserError, match="subjects cannot give"):
        choose_split(sources_of("sub-01", "sub-02", "sub-03"), file)


@given(places=st.lists(st.sampled_from(["train", "validation", "test", None]), min_size=4, max_size=30))
def test_nobody_changes_sides_and_nobody_is_invented(places: list[str | None]) -> None:
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for number, place in enumerate(places):
        if place:
            parts[place].append(f"sub-{number:02d}")
    if not (parts["train"] and parts["validation"]):
        return
    lists = Split(**{part: tuple(names) for part, names in parts.items()})
    at_hand = [f"sub-{number:02d}" for number in range(len(places))]
    split = split_subjects(reversed(at_hand), lists)
    assert split == Split(**{part: tuple(sorted(names)) for part, names in parts.items()})
