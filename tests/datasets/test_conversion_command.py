"""`convert` as a whole: several labels, a dataset per contrast, given splits, bad sources, scripts."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import REPOSITORY
from test_conversion import TRUTH, hashes, image_of, run, soft_label_of, to_dataset, values

from nnunet_softseg import cli
from nnunet_softseg.datasets.check import check
from nnunet_softseg.datasets.conversion import convert
from nnunet_softseg.errors import UserError
from nnunet_softseg.phantom import phantom

CONTRASTS = ("T1w", "mt-on", "dwi")


@pytest.fixture(scope="module")
def phantom_bids(tmp_path_factory) -> Path:
    """Six subjects of three contrasts, small."""
    folder = tmp_path_factory.mktemp("phantom") / "bids"
    return phantom(folder, n=6, seed=4, fov_mm=(36.0, 36.0, 30.0), contrasts=CONTRASTS, progress=False)


@pytest.fixture
def bids(phantom_bids: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(phantom_bids, tmp_path / "bids"))


@pytest.fixture
def raw(nnunet_folders: dict[str, Path]) -> Path:
    return nnunet_folders["nnUNet_raw"]


def split_of(folder: Path) -> dict[str, list[str]]:
    return json.loads((folder / "conversion.json").read_text())["split"]


def set_values(file: Path, change) -> None:
    stored = nib.load(file)
    nib.Nifti1Image(change(np.asarray(stored.dataobj)).astype(np.float32), stored.affine).to_filename(file)


# Several labels


def add_lesion(bids: Path) -> None:
    """A second label per image: a quarter of the cord, everywhere."""
    for file in (bids / "derivatives" / "truth").rglob("*_label-SC_*_probseg.nii.gz"):
        other = file.with_name(file.name.replace("label-SC", "label-lesion"))
        shutil.copyfile(file, other)
        set_values(other, lambda soft: soft / 4)
        set_values(file, lambda soft: soft * 3 / 4)


LABELS = {"SC": "_label-SC_desc-truth_probseg", "lesion": "_label-lesion_desc-truth_probseg"}


def test_every_label_has_its_file_and_its_value(bids: Path, raw: Path) -> None:
    add_lesion(bids)
    folder = to_dataset(bids, 5, "Two", suffix=None, labels=LABELS)
    description = json.loads((folder / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "SC": 1, "lesion": 2}
    cases = json.loads((folder / "conversion.json").read_text())["cases"]
    for case_id, case in cases.items():
        part = "Ts" if case["part"] == "test" else "Tr"
        for value, name in enumerate(LABELS, 1):
            source = bids / "derivatives" / "truth" / case["soft_labels"][name]["file"]
            written = folder / f"softLabels{part}" / f"{case_id}_{value:04d}.nii.gz"
            np.testing.assert_array_equal(values(written), values(source))
        # three quarters of a voxel full of cord are more than one half; a quarter never is the largest
        sc = values(folder / f"softLabels{part}" / f"{case_id}_0001.nii.gz")
        label_map = values(folder / f"labels{part}" / f"{case_id}.nii.gz")
        np.testing.assert_array_equal(label_map, sc > 0.5)
        assert label_map.any()
    assert check(5, num_processes=1, progress=False).errors == ()


def test_labels_in_another_order_have_other_values(bids: Path, raw: Path) -> None:
    add_lesion(bids)
    for labels in (LABELS, LABELS):
        to_dataset(bids, 5, "Two", suffix=None, labels=labels)
    with pytest.raises(UserError, match=r"exists with other content \(labels differ\)"):
        to_dataset(bids, 5, "Two", suffix=None, labels=dict(reversed(LABELS.items())))


def test_a_label_that_is_the_larger_one_is_the_one_in_the_map(bids: Path, raw: Path) -> None:
    add_lesion(bids)
    folder = to_dataset(bids, 5, "Two", suffix=None, labels=dict(reversed(LABELS.items())))
    label_map = values(next((folder / "labelsTr").iterdir()))
    assert set(np.unique(label_map)) == {0, 2}


def test_a_label_that_would_be_hidden_is_refused_with_the_order_that_is_taken(bids: Path, raw: Path) -> None:
    """Canal, cord and lesion, one in another; in one image there is no lesion."""
    for file in (bids / "derivatives" / "truth").rglob("*_label-SC_*_probseg.nii.gz"):
        for name in ("lesion", "canal"):
            shutil.copyfile(file, file.with_name(file.name.replace("label-SC", f"label-{name}")))
        set_values(file, lambda soft: soft * 0.7)
        lesion = file.with_name(file.name.replace("label-SC", "label-lesion"))
        absent = file.name.startswith("sub-01_T1w")
        set_values(lesion, lambda soft, absent=absent: soft * 0.6 * (not absent))
    ending = "_label-{}_desc-truth_probseg".format
    labels = {name: ending(name) for name in ("SC", "lesion", "canal")}
    right = " ".join(f"--label {name}={ending(name)}" for name in ("canal", "SC", "lesion"))
    told = f"--label SC: expected after canal, .* in all 18 cases.* never show SC: give {right}$"
    with pytest.raises(UserError, match=told):
        to_dataset(bids, 5, "Three", suffix=None, labels=labels)
    assert list(raw.iterdir()) == []
    labels = dict(word.split("=") for word in right.split() if "=" in word)
    folder = to_dataset(bids, 5, "Three", suffix=None, labels=labels)
    shown = {value for file in folder.glob("labelsT?/*") for value in np.unique(values(file))}
    assert shown == {0, 1, 2, 3}


def test_labels_that_overlap_are_told(bids: Path, raw: Path) -> None:
    add_lesion(bids)
    for file in (bids / "derivatives" / "truth").rglob("*_label-SC_*_probseg.nii.gz"):
        set_values(file, lambda soft: np.minimum(soft * 4 / 3, 1))
    report = run(bids, 5, "Two", suffix=None, labels=LABELS)
    (warning,) = report.warnings
    assert warning.startswith("18 of 18 cases: the 2 labels of this case overlap")


@pytest.mark.parametrize("given", ["soft", "-soft"])
def test_a_suffix_with_or_without_its_first_character(given: str, bids: Path, raw: Path) -> None:
    mark = "-" if given.startswith("-") else "_"
    for file in (bids / "derivatives" / "truth").rglob("*" + TRUTH["suffix"] + ".nii.gz"):
        file.rename(file.with_name(file.name.replace(TRUTH["suffix"], f"{mark}soft")))
    call = ["convert", "-i", bids, "-d", 5, "--name", "Cord", "--derivatives", "derivatives/truth"]
    call += ["-np", "1"]
    assert cli.main([*map(str, call), f"--suffix={given}"]) == 0
    assert len(list((raw / "Dataset005_Cord").glob("softLabelsT?/*_0001.nii.gz"))) == 18


def test_files_behind_a_hyphen_are_shown_where_another_suffix_is_asked_for(bids: Path, raw: Path) -> None:
    for file in (bids / "derivatives" / "truth").rglob("*" + TRUTH["suffix"] + ".nii.gz"):
        file.rename(file.with_name(file.name.replace(TRUTH["suffix"], "-soft")))
    with pytest.raises(UserError, match=r"; found .*sub-01_T1w-soft\.nii\.gz"):
        to_dataset(bids, 5, "Cord", suffix="_probseg")


# A dataset per contrast


def test_datasets_per_contrast_hold_the_same_files_on_the_same_sides(phantom_bids: Path, raw: Path) -> None:
    report = run(phantom_bids, 101, "Cord", per_contrast=True)
    assert [folder.name for folder in report.folders] == [
        "Dataset101_Cord",
        "Dataset102_Cord_T1w",
        "Dataset103_Cord_dwi",
        "Dataset104_Cord_mt-on",
    ]
    assert report.written == report.folders
    together = hashes(report.folder)
    nifti = {name for name in together if name.endswith(".nii.gz")}
    apart = set()
    for folder, contrast in zip(report.folders[1:], ("T1w", "dwi", "mt-on"), strict=True):
        of_contrast = {name: value for name, value in hashes(folder).items() if name.endswith(".nii.gz")}
        assert len(of_contrast) == 3 * 6
        assert all(f"_{contrast}" in name and together[name] == value for name, value in of_contrast.items())
        apart |= set(of_contrast)
        assert split_of(folder) == split_of(report.folder)
        for all_fold, fold in zip(*map(folds_of, (report.folder, folder)), strict=True):
            for side in ("train", "val"):
                assert fold[side] == [case for case in all_fold[side] if case.endswith(f"_{contrast}")]
        assert check(folder.name, num_processes=1, progress=False).as_text().endswith("0 errors\n0 warnings")
    assert apart == nifti


def folds_of(folder: Path) -> list[dict[str, list[str]]]:
    return json.loads((folder / "splits_final.json").read_text())


def test_ids_of_choice_for_contrasts_of_choice(phantom_bids: Path, raw: Path) -> None:
    report = run(phantom_bids, 101, "Cord", per_contrast={"mt-on": 250, "T1w": 7})
    assert (
        {folder.name for folder in raw.iterdir()}
        == {
            "Dataset101_Cord",
            "Dataset250_Cord_mt-on",
            "Dataset007_Cord_T1w",
        }
        == {folder.name for folder in report.folders}
    )


def test_the_order_of_contrasts_is_that_of_the_ids(phantom_bids: Path, raw: Path) -> None:
    report = run(phantom_bids, 101, "Cord", per_contrast=True, contrasts=["dwi", "T1w"])
    assert [folder.name for folder in report.folders[1:]] == ["Dataset102_Cord_dwi", "Dataset103_Cord_T1w"]


def test_what_is_missing_is_added_and_what_is_there_is_kept(phantom_bids: Path, raw: Path) -> None:
    run(phantom_bids, 101, "Cord")
    before = {path: path.stat().st_mtime_ns for path in raw.rglob("*")}
    report = run(phantom_bids, 101, "Cord", per_contrast=True)
    assert len(report.written) == 3
    assert before.items() <= {path: path.stat().st_mtime_ns for path in raw.rglob("*")}.items()
    shutil.rmtree(report.folders[2])
    again = run(phantom_bids, 101, "Cord", per_contrast=True)
    assert again.written == (report.folders[2],)
    assert "(was there already, the same)" in again.as_text()


@pytest.mark.parametrize(
    ("per_contrast", "message"),
    [
        (True, "id 103 is taken by Dataset103_Mine"),
        ({"T2w": 200}, "names T2w: expected contrasts of the dataset, T1w, dwi, mt-on"),
        ({"T1w": 200, "dwi": 200}, r"one dataset id twice .101, 200, 200."),
        ({"T1w": 101}, "one dataset id twice"),
        ({"T1w": 1000}, "between 1 and 999, got 1000"),
    ],
)
def test_no_dataset_is_written_if_one_cannot_be(phantom_bids, raw, per_contrast, message) -> None:
    (raw / "Dataset103_Mine").mkdir()
    with pytest.raises(UserError, match=message):
        run(phantom_bids, 101, "Cord", per_contrast=per_contrast)
    assert [path.name for path in raw.iterdir()] == ["Dataset103_Mine"]


def test_an_id_that_nnunet_knows_elsewhere_is_taken(phantom_bids, raw, nnunet_folders, tmp_path) -> None:
    (nnunet_folders["nnUNet_preprocessed"] / "Dataset101_Mine").mkdir()
    with pytest.raises(UserError, match=r"id 101 is taken by Dataset101_Mine in .*nnUNet_preprocessed"):
        run(phantom_bids, 101, "Cord")
    assert run(phantom_bids, 101, "Cord", raw_folder=tmp_path / "another").folder.is_dir()


def test_a_contrast_that_nobody_can_train_on_is_refused(bids: Path, raw: Path) -> None:
    split = bids.parent / "split.json"
    parts = {"train": ["sub-01", "sub-02"], "val": ["sub-03", "sub-04"], "test": ["sub-05", "sub-06"]}
    split.write_text(json.dumps(parts))
    options = {"split_file": split, "per_contrast": True, "exclude": ["sub-01_dwi", "sub-02_dwi"]}
    with pytest.raises(UserError, match="Dataset103_Cord_dwi: expected images for training, found none"):
        run(bids, 101, "Cord", **options)
    assert list(raw.iterdir()) == []
    options["exclude"] = ["sub-01_dwi", "sub-04_dwi"]  # fold 1 validates on these, 4 trains
    report = run(bids, 101, "Cord", **options)
    (warning,) = report.warnings
    assert warning.startswith(
        "Dataset103_Cord_dwi: folds 1, 4 have no images to train on, or none to validate"
    )


# A given split


def test_a_given_split_is_what_is_written(phantom_bids: Path, raw: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.yml"
    split.write_text("train: [sub-06, sub-02]\nval: [sub-04]\ntest: [sub-01, sub-03]\n")
    report = run(phantom_bids, 101, "Cord", split_file=split)
    in_training = {path.name.split("_")[0] for path in (report.folder / "imagesTr").iterdir()}
    in_testing = {path.name.split("_")[0] for path in (report.folder / "imagesTs").iterdir()}
    assert in_training == {"sub-02", "sub-04", "sub-06"}
    assert in_testing == {"sub-01", "sub-03"}
    first = folds_of(report.folder)[0]
    assert first["val"] == ["sub-04_T1w", "sub-04_dwi", "sub-04_mt-on"]
    assert {case.split("_")[0] for case in first["train"]} == {"sub-02", "sub-06"}
    assert "does not name 1 of 6 subjects (sub-05): left out" in report.as_text()
    assert check(101, num_processes=1, progress=False).errors == ()


def test_another_dataset_can_have_the_same_split(phantom_bids: Path, raw: Path) -> None:
    one = run(phantom_bids, 101, "Cord", seed=9).folder
    other = run(phantom_bids, 102, "Fewer", split_file=one / "conversion.json", exclude=["*_dwi"]).folder
    assert split_of(other) == split_of(one)
    assert all("_dwi" not in path.name for path in other.rglob("*"))


# Odd and bad sources


def test_empty_and_hard_labels_are_told_not_changed(bids: Path, raw: Path) -> None:
    set_values(soft_label_of(bids, "sub-02"), np.zeros_like)
    set_values(soft_label_of(bids, "sub-03"), lambda soft: soft > 0.5)
    report = run(bids, 101, "Cord", num_test=0)
    assert len(report.warnings) == 2
    empty, hard = report.warnings
    assert empty.startswith("1 of 18 cases: all zero (anat/sub-02_flip-1_mt-on_MTS_label-SC")
    assert hard.startswith(
        "1 of 18 cases: the soft label holds 0 and 1 only (sub-03_flip-1_mt-on_MTS_label-SC"
    )
    assert not values(report.folder / "softLabelsTr" / "sub-02_mt-on_0001.nii.gz").any()


def test_all_broken_cases_are_counted_before_anything_is_written(bids: Path, raw: Path) -> None:
    set_values(soft_label_of(bids, "sub-02"), lambda soft: soft * 100)
    set_values(soft_label_of(bids, "sub-04"), lambda soft: soft - 0.5)
    image_of(bids, "sub-05").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        run(bids, 101, "Cord", num_processes=2)
    message = str(caught.value)
    assert message.startswith("case sub-02_mt-on is not fit: anat/sub-02_flip-1_mt-on_MTS_label-SC")
    assert "divide it by 100" in message
    assert message.endswith("(so are 2 other cases: sub-04_mt-on, sub-05_mt-on)")
    assert "\n" not in message
    assert list(raw.iterdir()) == []


def test_images_in_four_dimensions_are_refused(bids: Path, raw: Path) -> None:
    stored = nib.load(image_of(bids))
    series = np.repeat(np.asarray(stored.dataobj)[..., None], 3, axis=3)
    nib.Nifti1Image(series, stored.affine).to_filename(image_of(bids))
    with pytest.raises(UserError, match=r"sub-02_flip-1_mt-on_MTS.nii.gz: .* found 4-D.*: take each volume"):
        run(bids, 101, "Cord")
    assert list(raw.iterdir()) == []


def test_links_become_files(bids: Path, raw: Path, tmp_path: Path) -> None:
    """As git-annex has it: every image is a link to a read-only file elsewhere."""
    store = tmp_path / "annex"
    store.mkdir()
    for number, file in enumerate(sorted(bids.rglob("*.nii.gz"))):
        content = store / f"{number}.nii.gz"
        file.rename(content)
        content.chmod(0o444)
        os.symlink(content, file)
    before = hashes(store)
    folder = to_dataset(bids, 101, "Cord")
    for file in folder.rglob("*.nii.gz"):
        assert not file.is_symlink()
        assert file.stat().st_nlink == 1
        assert os.access(file, os.W_OK)
        assert file.stat().st_mode & 0o200
    assert hashes(store) == before


def test_a_target_that_cannot_be_written(phantom_bids: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(UserError, match="cannot make the folder"):
        run(phantom_bids, 101, "Cord", raw_folder=tmp_path / "file" / "raw")
    assert (tmp_path / "file").read_text() == "here"


def test_processes_change_nothing(phantom_bids: Path, tmp_path: Path) -> None:
    one, two = (
        run(phantom_bids, 101, "Cord", raw_folder=tmp_path / str(number), num_processes=number).folder
        for number in (1, 2)
    )
    assert hashes(one) == hashes(two)


def test_a_full_disk_leaves_nothing_behind(phantom_bids: Path, raw: Path, monkeypatch) -> None:
    from nnunet_softseg.datasets.conversion import writing

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.shutil, "copyfile", full)
    with pytest.raises(UserError, match="disk full, found"):
        run(phantom_bids, 101, "Cord")
    assert list(raw.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from nnunet_softseg.datasets.conversion import convert, writing
def write(job, original=writing.write_case):
    original(job)
    if job.case.case_id == "sub-03_T1w":
        os.kill(os.getpid(), signal.SIGKILL)
writing.write_case = write
bids, raw, derivatives, suffix = sys.argv[1:]
convert(bids, 101, "Cord", raw_folder=raw, derivatives=derivatives, suffix=suffix, progress=False)
"""


def test_a_kill_leaves_no_dataset_and_the_next_call_cleans_up(phantom_bids: Path, raw: Path) -> None:
    arguments = [sys.executable, "-c", KILLED, phantom_bids, raw, *TRUTH.values()]
    assert subprocess.run(arguments, check=False, cwd=REPOSITORY).returncode == -signal.SIGKILL
    (left,) = raw.iterdir()
    assert left.name.startswith(".Dataset101_Cord.")
    assert len(list((left / "imagesTr").iterdir())) >= 1
    assert to_dataset(phantom_bids, 101, "Cord").name == "Dataset101_Cord"
    assert [path.name for path in raw.iterdir()] == ["Dataset101_Cord"]


# The command and the scripts


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "dataset_conversion" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_for_the_phantom(phantom_bids: Path, raw: Path, capsys) -> None:
    main = script("Dataset900_Phantom").main
    assert main(["-i", str(phantom_bids), "-d", "901", "--test", "2", "--validation", "1", "-np", "1"]) == 0
    assert capsys.readouterr().out == (
        f"{raw}/Dataset901_Phantom\n18 images of 6 subjects: 9 train, 3 validation, 6 test\n"
        "next: nnunet-softseg check -d Dataset901_Phantom\n"
    )
    assert len(list((raw / "Dataset901_Phantom" / "imagesTs").iterdir())) == 6
    assert main(["-i", str(phantom_bids), "--test", "9"]) == 2
    assert "cannot give 9 for testing" in capsys.readouterr().err


def test_the_script_for_spine_generic_on_old_names(bids: Path, raw: Path, capsys) -> None:
    """The phantom under the names that data-multi-subject had once, its own soft labels included."""
    soft = bids / "derivatives" / "labels_softseg"
    (bids / "derivatives" / "truth").rename(soft)
    for file in sorted(bids.rglob("*.nii.gz")):
        name = file.name.replace("flip-1_mt-on_MTS", "acq-MTon_MTS")
        file.rename(file.with_name(name.replace("_label-SC_desc-truth_probseg", "_softseg")))
    for subject in bids.glob("sub-*"):
        series = nib.Nifti1Image(np.zeros((3, 3, 3, 4), np.float32), np.eye(4))
        series.to_filename(subject / "dwi" / f"{subject.name}_dwi.nii.gz")
        shutil.copyfile(
            subject / "anat" / f"{subject.name}_acq-MTon_MTS.nii.gz",
            subject / "anat" / f"{subject.name}_acq-MToff_MTS.nii.gz",
        )
    arguments = ["-i", str(bids), "--per-contrast", "-np", "1"]
    assert script("Dataset101_SpineGeneric").main(arguments) == 0
    assert "left out, not a contrast of this layout: 12 (" in capsys.readouterr().out
    assert sorted(path.name for path in raw.iterdir()) == [
        "Dataset101_SpineGeneric",
        "Dataset102_SpineGeneric_T1w",
        "Dataset103_SpineGeneric_mt-on",
        "Dataset104_SpineGeneric_dwi",
    ]
    cases = json.loads((raw / "Dataset101_SpineGeneric" / "conversion.json").read_text())["cases"]
    assert sorted(cases)[:3] == ["sub-01_T1w", "sub-01_dwi", "sub-01_mt-on"]
    assert len(cases) == 18
    assert cases["sub-01_dwi"]["image"] == "sub-01/dwi/sub-01_rec-average_dwi.nii.gz"


def test_the_script_for_probseg_derivatives(bids: Path, raw: Path) -> None:
    add_lesion(bids)
    shutil.move(bids / "derivatives" / "truth", bids.parent / "elsewhere")
    arguments = ["-i", str(bids), "--derivatives", str(bids.parent / "elsewhere"), "-np", "1"]
    arguments += [f"--label={name}={suffix}" for name, suffix in LABELS.items()]
    assert script("Dataset102_BIDSProbseg").main(arguments) == 0
    folder = raw / "Dataset102_BIDSProbseg"
    assert json.loads((folder / "dataset.json").read_text())["labels"]["lesion"] == 2
    manifest = json.loads((folder / "conversion.json").read_text())
    assert manifest["soft_label_folder"] == str(bids.parent / "elsewhere")
    assert manifest["labels"] == LABELS


TRUTH_OPTIONS = [f"--{name}={value}" for name, value in TRUTH.items()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "a=_b", "--label", "a=_c"], "--label names a twice"),
        (
            [*TRUTH_OPTIONS, "--split", "nowhere.json"],
            "nowhere.json: expected a text file, found: No such file",
        ),
        (["--exclude", "nowhere.txt"], "nowhere.txt: expected a list of what to leave out"),
        ([], "none of 18 images has its soft label"),
    ],
)
def test_mistakes_end_with_code_2_and_one_line(phantom_bids, raw, capsys, arguments, message) -> None:
    command = ["convert", "-i", str(phantom_bids), "-d", "101", "--name", "Cord", *arguments]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("nnunet-softseg: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert list(raw.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "cord"], "argument --label: expected NAME=VALUE, without spaces around =, found 'cord'"),
        (["--label", "a=_b", "a=_c"], "unknown option a=_c"),
        (["--per-contrast", "T1w=x"], "argument --per-contrast: T1w: expected a dataset id, found 'x'"),
    ],
)
def test_unreadable_options_end_with_code_2_and_one_line(capsys, arguments, message) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["convert", "-i", "BIDS", "-d", "101", "--name", "Cord", *arguments])
    assert capsys.readouterr().err == (
        f"nnunet-softseg convert: error: {message} (see nnunet-softseg convert -h)\n"
    )


# Real images


def test_real_images(real_data: Path, raw: Path) -> None:
    """Oblique and thick slices, two subjects; masks serve as labels, which is told."""
    before = hashes(real_data / "bids")
    report = convert(
        real_data / "bids", 1, "Real", derivatives="derivatives/labels", suffix="seg-manual", progress=False
    )
    assert hashes(real_data / "bids") == before
    cases = json.loads((report.folder / "conversion.json").read_text())["cases"]
    assert sorted(cases) == [
        "sub-sct01_T1w",
        "sub-sct01_mt-off",
        "sub-sct01_mt-on",
        "sub-unf01_T1w",
        "sub-unf01_T2star",
        "sub-unf01_T2w",
    ]
    (warning,) = report.warnings
    assert warning.startswith("6 of 6 cases: the soft label holds 0 and 1 only")
    for case_id, case in cases.items():
        mask = nib.load(real_data / "bids" / "derivatives" / "labels" / case["soft_labels"]["cord"]["file"])
        soft = nib.load(report.folder / "softLabelsTr" / f"{case_id}_0001.nii.gz")
        np.testing.assert_array_equal(np.asarray(soft.dataobj), np.asarray(mask.dataobj))
        np.testing.assert_allclose(soft.affine, mask.affine, atol=1e-3)
    assert check(1, num_processes=1, progress=False).errors == ()
