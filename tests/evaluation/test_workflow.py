"""`nnunet-softseg workflow`: a cohort in batches by Snakemake, here and on a SLURM of one node."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from slurm_node import slurm_node

from nnunet_softseg.cli import bids_app, main
from nnunet_softseg.errors import UserError
from nnunet_softseg.evaluation.cohort import workflow
from nnunet_softseg.evaluation.cohort.derivatives import Choice, Derivative
from nnunet_softseg.io.case_files import parse_bids_name

WORKFLOW = REPOSITORY / "nnunet_softseg" / "workflow"
MODEL = Path(__file__).parents[1] / "data" / "model_of_0.1.0"
OPTIONS = ["-device", "cpu", "--backend", "torch-float32", "--localize", "never", "--threads", "1"]
needs_snakemake = pytest.mark.skipif(
    importlib.util.find_spec("snakemake") is None, reason="needs `pip install 'nnunet-softseg[workflow]'`"
)
needs_plugin = pytest.mark.skipif(
    importlib.util.find_spec("snakemake_executor_plugin_slurm") is None,
    reason="needs snakemake-executor-plugin-slurm, see nnunet-softseg[workflow]",
)


def make_bids(folder: Path, number: int, cut_off: Sequence[str] = ()) -> Path:
    for subject in (f"sub-{n:02d}" for n in range(1, number + 1)):
        image = folder / subject / "anat" / f"{subject}_T2w.nii.gz"
        image.parent.mkdir(parents=True)
        content = (MODEL / "image.nii.gz").read_bytes()
        image.write_bytes(content[:2000] if subject in cut_off else content)
    return folder


def call(bids: Path, output: Path, *more: str) -> list[str]:
    return ["workflow", "-i", str(bids), "-o", str(output), "-m", str(MODEL), *OPTIONS, *more]


def make_references(folder: Path, number: int) -> Path:
    """The soft maps that this model gives, as kept with it, as references."""
    affine = nib.load(MODEL / "image.nii.gz").affine
    kept = np.load(MODEL / "soft_maps.npz")
    folder.mkdir()
    for subject in range(1, number + 1):
        for label in (1, 2):
            image = nib.Nifti1Image(kept[f"label{label}"].astype(np.float32), affine)
            image.to_filename(folder / f"sub-{subject:02d}_T2w_{label:04d}.nii.gz")
    return folder


def measured(output: Path) -> set[str]:
    """The cases that were measured against references; their maps are those references."""
    cases = pd.read_csv(output / "evaluation" / "cases.csv")
    assert set(cases["label"]) == {1, 2}
    assert cases["soft_dice"].to_numpy() == pytest.approx(1, abs=1e-3)
    return set(cases["case"])


def label_maps(output: Path) -> dict[str, tuple[str, int]]:
    """Content and time of change of every label map."""
    return {
        file.name: (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)
        for file in sorted(output.glob("sub-*/anat/*_dseg.nii.gz"))
    }


@needs_snakemake
def test_a_failed_image_is_named_stops_no_other_and_is_all_that_a_repeated_call_does(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bids, output = make_bids(tmp_path / "my bids", 3, cut_off=["sub-02"]), tmp_path / "the output"
    words = call(bids, output, "--batch-size", "2", "-g", str(make_references(tmp_path / "its labels", 3)))
    assert main(words) == 2
    said = capfd.readouterr().out
    assert "2 participants, 2 images" in said
    assert said.count("failed: sub-02_T2w: ") == 1
    assert "expected a whole file" in said
    before = label_maps(output)
    assert list(before) == ["sub-01_T2w_dseg.nii.gz", "sub-03_T2w_dseg.nii.gz"]
    assert (output / "group_csa.tsv").read_text().count("sub-03_T2w") == 2  # labels
    second = next(output.glob(".workflow/batch-00002-*.json")).stat().st_mtime_ns

    assert measured(output) == {"sub-01_T2w", "sub-03_T2w"}
    assert "sub-02_T2w" in (output / "evaluation" / "summary.json").read_text()  # missing

    shutil.copyfile(MODEL / "image.nii.gz", bids / "sub-02" / "anat" / "sub-02_T2w.nii.gz")
    assert main(words) == 0
    assert measured(output) == {"sub-01_T2w", "sub-02_T2w", "sub-03_T2w"}
    after = label_maps(output)
    assert {name: after[name] for name in before} == before
    assert after["sub-02_T2w_dseg.nii.gz"][0] == before["sub-01_T2w_dseg.nii.gz"][0]  # the same image
    assert (output / "group_csa.tsv").read_text().count("sub-02_T2w") == 2
    again = json.loads(next(output.glob(".workflow/batch-00001-*.json")).read_text())
    assert again == {"written": ["sub-02_T2w"], "kept": ["sub-01_T2w"], "failed": {}}
    assert next(output.glob(".workflow/batch-00002-*.json")).stat().st_mtime_ns == second


def replace_snakemake(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]) -> None:
    """Let a function run the jobs, whatever the profile."""
    monkeypatch.setattr(workflow, "_profile", Path)
    monkeypatch.setattr(workflow, "_snakemake", run)


def test_a_batch_that_dies_is_named_with_its_log_and_the_others_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def second_batch_alone(folder: Path, profile: Path, jobs: workflow.Jobs) -> None:
        configuration = json.loads((folder / "config.json").read_text())
        name, people = list(configuration["batches"].items())[1]
        words = [*configuration["app"][3:], "participant", "--participant-label", *people]
        assert (
            bids_app.main([*words, *configuration["options"], "--report", str(folder / f"{name}.json")]) == 0
        )

    replace_snakemake(monkeypatch, second_batch_alone)
    output = tmp_path / "out"
    assert main(call(make_bids(tmp_path / "bids", 2), output, "--batch-size", "1")) == 2
    said = capsys.readouterr().out
    assert re.search(
        r"^failed: batch-00001-\w+: ended without an outcome: see .*batch-00001-\w+\.log$", said, re.M
    )
    assert "missing: sub-01_T2w: not predicted yet" in said
    assert "batch-00002" not in said
    assert "sub-02_T2w" in (output / "group_csa.tsv").read_text()


def all_jobs(folder: Path, profile: Path, jobs: workflow.Jobs) -> None:
    """Do what Snakemake does with a single batch: what has no outcome."""
    configuration = json.loads((folder / "config.json").read_text())
    ((name, people),) = configuration["batches"].items()
    outcome = folder / f"{name}.json"
    if not outcome.is_file():
        words = [*configuration["app"][3:], "participant", "--participant-label", *people]
        bids_app.main([*words, *configuration["options"], "--report", str(outcome)])
    if configuration["references"] and not Path(configuration["evaluation"]).is_file():
        main([*configuration["evaluate"][3:], "-np", "1"])


def test_other_references_are_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured against one folder is no measure against another."""
    replace_snakemake(monkeypatch, all_jobs)
    bids, output = make_bids(tmp_path / "bids", 1), tmp_path / "out"
    first, second = (make_references(tmp_path / name, 1) for name in ("first", "second"))
    for references in (first, second, second):
        summary = output / "evaluation" / "summary.json"
        before = summary.stat().st_mtime_ns if summary.is_file() else 0
        assert main(call(bids, output, "-g", str(references))) == 0
        said = json.loads(summary.read_text())["made_by"]["parameters"]
        assert said["reference"] == str(references)
    assert summary.stat().st_mtime_ns == before  # the same references: kept

    corrected = second / "sub-01_T2w_0001.nii.gz"
    image = nib.load(corrected)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.float32), image.affine), corrected)
    assert main(call(bids, output, "-g", str(second))) == 0
    cases = pd.read_csv(output / "evaluation" / "cases.csv").set_index("label")
    assert cases.loc[1, "reference_volume_mm3"] == 0
    (second / "sub-02_T2w_0001.nii.gz").write_bytes(corrected.read_bytes())
    (second / "sub-02_T2w_0002.nii.gz").write_bytes(corrected.read_bytes())
    assert main(call(bids, output, "-g", str(second))) == 0
    assert "sub-02_T2w" in summary.read_text()  # which has no map


def test_a_reference_that_is_not_fetched_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As git-annex has them, links to nothing; `evaluate` names it."""
    started: list[Path] = []
    replace_snakemake(monkeypatch, lambda folder, *_: started.append(folder))
    references = make_references(tmp_path / "references", 2)
    for label in (1, 2):
        (references / f"sub-03_T2w_{label:04d}.nii.gz").symlink_to("not-fetched.nii.gz")
    words = call(make_bids(tmp_path / "bids", 2), tmp_path / "out", "-g", str(references))
    for _ in range(2):
        main(words)
    assert len(started) == 2


def test_references_of_which_two_fit_a_case_are_told_before_any_job_and_chosen_by_a_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[Path] = []

    def run(folder: Path, profile: Path, jobs: workflow.Jobs) -> None:
        started.append(folder)
        all_jobs(folder, profile, jobs)

    replace_snakemake(monkeypatch, run)
    references = make_references(tmp_path / "references", 1)
    for label in (1, 2):
        name = f"sub-01_T2w_label-{label}_desc-{{}}_probseg.nii.gz"
        file = (references / f"sub-01_T2w_{label:04d}.nii.gz").rename(references / name.format("map"))
        image = nib.load(file)
        empty = nib.Nifti1Image(np.zeros(image.shape, np.float32), image.affine)
        nib.save(empty, references / name.format("empty"))
    output = tmp_path / "out"
    words = call(make_bids(tmp_path / "bids", 1), output, "-g", str(references), "--reference-pattern")
    assert main(words[:-1]) == 2
    error = capsys.readouterr().err
    assert "expected one reference of case sub-01_T2w, found 4" in error
    assert "choose with --reference-pattern" in error
    assert main([*words, "{label}.nii.gz"]) == 2
    assert "expected {case} in it" in capsys.readouterr().err
    assert not started

    assert main([*words, "{case}_label-{label}_desc-map_probseg.nii.gz"]) == 0
    assert measured(output) == {"sub-01_T2w"}
    assert main([*words, "{case}_label-{label}_desc-empty_probseg.nii.gz"]) == 0
    assert (pd.read_csv(output / "evaluation" / "cases.csv")["reference_volume_mm3"] == 0).all()


def test_why_maps_could_not_be_measured_is_told_of_this_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """References of another person alone: `evaluate` finds no map of theirs."""

    def run(folder: Path, profile: Path, jobs: workflow.Jobs) -> None:
        with (folder / "evaluation.log").open("a") as file, redirect_stderr(file):
            all_jobs(folder, profile, jobs)

    replace_snakemake(monkeypatch, run)
    references, output = make_references(tmp_path / "references", 1), tmp_path / "out"
    for file in list(references.iterdir()):
        file.rename(references / file.name.replace("sub-01", "sub-07"))
    words = call(make_bids(tmp_path / "bids", 1), output, "-g", str(references))
    assert main(words) == 2
    log = output / ".workflow" / "evaluation.log"
    said = capsys.readouterr().out
    assert re.search(r"^failed: evaluation: .*expected predictions .* such as sub-07_T2w, .*", said, re.M)
    assert said.rstrip().endswith(f": see {log}")

    monkeypatch.setattr(workflow, "_snakemake", lambda *_: None)
    assert main(words) == 2
    assert "failed: evaluation: not started\n" in capsys.readouterr().out


def test_a_reference_that_cannot_be_read_is_a_failure_that_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_snakemake(monkeypatch, all_jobs)
    references, output = make_references(tmp_path / "references", 2), tmp_path / "out"
    cut_off = references / "sub-02_T2w_0001.nii.gz"
    content = cut_off.read_bytes()
    cut_off.write_bytes(content[:200])
    words = call(make_bids(tmp_path / "bids", 2), output, "-g", str(references))
    summary, before = output / "evaluation" / "summary.json", 0
    for _ in range(2):
        assert main(words) == 2
        assert re.search(r"^failed: evaluation of sub-02_T2w: .*0001\.nii\.gz", capsys.readouterr().out, re.M)
        assert measured(output) == {"sub-01_T2w"}
        before, last = summary.stat().st_mtime_ns, before
        assert before > last
    cut_off.write_bytes(content)
    assert main(words) == 0
    assert measured(output) == {"sub-01_T2w", "sub-02_T2w"}


def test_a_choice_of_people_leaves_all_others_in_the_table_and_out_of_the_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_snakemake(monkeypatch, all_jobs)
    bids, output = make_bids(tmp_path / "bids", 3), tmp_path / "out"
    for person in ("01", "02"):
        assert main(call(bids, output, "--participant-label", person)) == 0
    assert "2 participants, 2 images, 0 flagged, 0 missing" in capsys.readouterr().out
    table = pd.read_csv(output / "group_csa.tsv", sep="\t")
    assert [*table["image"].unique()] == ["sub-01_T2w", "sub-02_T2w"]
    assert "sub-03" not in (output / "group.html").read_text()


def test_what_another_call_has_made_since_is_measured_and_no_longer_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_snakemake(monkeypatch, all_jobs)
    bids, output = make_bids(tmp_path / "bids", 2, cut_off=["sub-02"]), tmp_path / "out"
    words = call(bids, output, "-g", str(make_references(tmp_path / "references", 2)))
    assert main(words) == 2
    assert measured(output) == {"sub-01_T2w"}
    shutil.copyfile(MODEL / "image.nii.gz", bids / "sub-02" / "anat" / "sub-02_T2w.nii.gz")
    alone = ["participant", "--participant-label", "02", "-m", str(MODEL), *OPTIONS[:-2]]
    assert bids_app.main([str(bids), str(output), *alone]) == 0
    capsys.readouterr()
    assert main(words) == 0
    assert "failed: " not in capsys.readouterr().out
    assert measured(output) == {"sub-01_T2w", "sub-02_T2w"}

    before = (output / "evaluation" / "summary.json").stat().st_mtime_ns
    assert bids_app.main([str(bids), str(output), *alone, "--overwrite"]) == 0
    assert main(words) == 0
    assert (output / "evaluation" / "summary.json").stat().st_mtime_ns > before


@needs_snakemake
@pytest.mark.soak
@pytest.mark.skipif(sys.platform == "win32", reason="kills a process group")
def test_a_killed_workflow_goes_on_and_computes_no_image_twice(tmp_path: Path) -> None:
    bids, output = make_bids(tmp_path / "bids", 12), tmp_path / "out"
    words = [sys.executable, "-m", "nnunet_softseg", *call(bids, output, "--batch-size", "6", "--cores", "1")]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(words, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 250
    while len(label_maps(output)) < 7 and time.monotonic() < deadline:
        time.sleep(0.02)  # the second batch has begun
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2)
    before = label_maps(output)
    assert 7 <= len(before) < 12
    assert subprocess.run(words, cwd=REPOSITORY, capture_output=True, check=False).returncode == 0
    after = label_maps(output)
    assert {name: after[name] for name in before} == before
    assert len(after) == 12
    assert len({digest for digest, _ in after.values()}) == 1  # the same image twelve times
    assert not [file for file in output.rglob(".*@*") if file.is_file()]


@needs_snakemake
@needs_plugin
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_same_through_jobs_of_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bids, output = make_bids(tmp_path / "bids", 40, cut_off=["sub-04"]), tmp_path / "out"
    with slurm_node(tmp_path / "slurm") as commands:
        monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
        words = call(
            bids, output, "--batch-size", "10", "--profile", "slurm", "--memory", "1500", "--minutes", "30"
        )
        words += ["-g", str(make_references(tmp_path / "references", 40))]
        assert main(words) == 2
    said = capfd.readouterr()
    assert "has been submitted with SLURM jobid" in said.err
    assert "failed: sub-04_T2w: " in said.out
    done = {f"sub-{n:02d}_T2w" for n in range(1, 41) if n != 4}
    assert set(label_maps(output)) == {f"{name}_dseg.nii.gz" for name in done}
    assert measured(output) == done
    assert (output / "group.html").is_file()


# Mistakes


def found(*names: str) -> Any:
    return lambda name: object() if name in names else None


@pytest.mark.parametrize(
    ("modules", "more", "said"),
    [
        ((), [], "expected Snakemake, found none: "),
        (("snakemake",), ["--profile", "slurm"], "expected snakemake-executor-plugin-slurm, found none"),
        (
            ("snakemake", "snakemake_executor_plugin_slurm"),
            ["--profile", "slurm"],
            "expected the command sbatch, found none",
        ),
        (("snakemake",), ["--profile", "lsf"], "--profile lsf: expected local, slurm, or a folder"),
        *(
            (("snakemake",), [option, number], f"{option} {number}: expected 1 or more")
            for option in ("--batch-size", "--cores", "--threads", "--memory", "--minutes")
            for number in ("0", "-1")
        ),
        (("snakemake",), ["--reference-pattern", "{case}.nii.gz"], "--reference-pattern: expected -g"),
        (("snakemake",), ["--participant-label", "9"], "--participant-label 9: expected some of those"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    modules: tuple[str, ...],
    more: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(workflow.importlib.util, "find_spec", found(*modules))
    monkeypatch.setattr(workflow.shutil, "which", lambda _: None)
    bids = make_bids(tmp_path / "bids", 1)
    assert main(call(bids, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ((3, 10, 14), "found none: it needs Python 3.11 or newer, here is 3.10"),
        ((3, 11, 0), "found none: run `pip install 'nnunet-softseg[workflow]'`"),
    ],
)
def test_where_snakemake_is_not_to_be_had_python_is_named(
    python: tuple[int, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow.importlib.util, "find_spec", found())
    monkeypatch.setattr(workflow, "sys", SimpleNamespace(version_info=python))
    with pytest.raises(UserError, match=re.escape(said)):
        workflow._profile("local")


def test_a_second_workflow_in_the_same_folder_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workflow.importlib.util, "find_spec", found("snakemake"))
    bids, output = make_bids(tmp_path / "bids", 1), tmp_path / "out"
    (output / ".workflow").mkdir(parents=True)
    with FileLock(output / ".workflow" / ".lock"):
        assert main(call(bids, output)) == 2
    assert "another workflow is at work in this folder" in capsys.readouterr().err


def test_a_workflow_of_which_no_job_ran_says_where_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workflow.importlib.util, "find_spec", found("snakemake"))
    monkeypatch.setattr(workflow, "_snakemake", lambda *_: None)
    assert main(call(make_bids(tmp_path / "bids", 1), tmp_path / "out")) == 2
    assert "no image was predicted: see " in capsys.readouterr().err


# Batches


def test_a_batch_with_an_image_that_was_written_again_is_to_run_again(tmp_path: Path) -> None:
    bids = make_bids(tmp_path / "bids", 2)
    batches = {}
    for subject in ("sub-01", "sub-02"):
        place = Path(subject, "anat", f"{subject}_T2w.nii.gz")
        name = parse_bids_name(place.name)
        assert name
        image = Derivative(tmp_path, place, name)
        image.label_map.parent.mkdir(parents=True)
        for file in (image.soft_map("cord"), image.label_map, tmp_path / workflow.FOLDER / f"{subject}.json"):
            file.parent.mkdir(exist_ok=True)
            file.touch()
        batches[subject] = [image]
    os.utime(batches["sub-02"][0].label_map, (0, 0))  # long before its image
    cohort = workflow._Cohort(bids, tmp_path, Choice(), batches)
    cohort.forget_unfinished(["cord"])
    assert [file.name for file in cohort.folder.iterdir()] == ["sub-01.json"]


@given(
    images=st.lists(st.tuples(st.integers(1, 30), st.sampled_from(["T1w", "T2w"])), unique=True, min_size=1),
    size=st.integers(1, 40),
)
def test_batches_hold_every_image_once_and_whole_participants(
    images: list[tuple[int, str]], size: int
) -> None:
    derivatives = []
    for subject, contrast in sorted(images):
        place = Path(f"sub-{subject:02d}/anat/sub-{subject:02d}_{contrast}.nii.gz")
        name = parse_bids_name(place.name)
        assert name
        derivatives.append(Derivative(Path("out"), place, name))
    batches = workflow._batches(derivatives, size)
    people = [{image.name.subject for image in batch} for batch in batches.values()]
    assert sorted(image.case_id for batch in batches.values() for image in batch) == sorted(
        image.case_id for image in derivatives
    )
    assert all(len(group) == size for group in people[:-1])
    assert 1 <= len(people[-1]) <= size
    assert sum(map(len, people)) == len(set.union(*people))
    assert list(workflow._batches(derivatives, size)) == list(batches)
    assert "".join(batches).isascii()


# Trainings


@needs_snakemake
def test_trainings_are_datasets_x_trainers_x_folds_x_seeds_and_only_those_missing(tmp_path: Path) -> None:
    configuration = {
        "results": str(tmp_path / "results"),
        "datasets": ["Dataset101_A", "Dataset102_B"],
        "trainers": ["nnUNetTrainerSoftSeg", "nnUNetTrainer", "nnUNetTrainer_250epochs"],
        "plans": "nnUNetSoftSegPlans",
        "configuration": "3d_fullres",
        "folds": [0, 1, 2],
        "seeds": [0, 1],
    }
    (tmp_path / "train.json").write_text(json.dumps(configuration))
    model = "nnUNetTrainer__nnUNetSoftSegPlans__3d_fullres"
    done = tmp_path / "results" / "seed-1" / "Dataset102_B" / model / "fold_2" / "validation" / "summary.json"
    done.parent.mkdir(parents=True)
    done.write_text("{}")
    words = [
        "--snakefile",
        str(WORKFLOW / "train.smk"),
        "--configfile",
        "train.json",
        "--cores",
        "1",
        "--dry-run",
    ]
    dry = subprocess.run(
        [sys.executable, "-m", "snakemake", *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert re.search(r"^train +35$", dry.stdout + dry.stderr, re.MULTILINE)  # 2 x 3 x 3 x 2 less the one done
