"""A cohort in batches, by Snakemake: here or on a cluster; a repeated call does only what is missing."""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from nnunet_softseg.errors import UserError
from nnunet_softseg.evaluation.cohort.derivatives import Choice, Derivative, chosen_images
from nnunet_softseg.evaluation.cohort.group import GroupReport, report_group
from nnunet_softseg.evaluation.cohort.participants import start_with_model
from nnunet_softseg.io.case_files import check_pattern, list_files
from nnunet_softseg.io.case_matching import reference_files
from nnunet_softseg.io.formats import ANY_FORMAT
from nnunet_softseg.io.nifti import StrPath
from nnunet_softseg.io.results import load_record, make_folder, only_one, write_json

FOLDER = ".workflow"
"""The folder of jobs, in that of the derivatives: what a batch is to do, its log and its outcome."""
_BATCH_SIZES = {"local": 250, "slurm": 20}
PROFILES = tuple(_BATCH_SIZES)
_WORKFLOW = Path(__file__).parents[2] / "workflow"
_APP = "nnunet_softseg.cli.bids_app"
_CONFIGURATION = "config.json"
_REFERENCES = "references.json"
_DIGITS = 8


@dataclass
class WorkflowReport:
    """Outcome of a cohort.

    Attributes:
        group: report of all participants.
        batches: number of batches.
        failed_batches: those without an outcome -> their log.
        failed: images -> why.
        warnings: about the images and the model.
        evaluation: measures against references; None: there are no references.
    """

    group: GroupReport
    batches: int
    failed_batches: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    evaluation: Path | None = None

    def as_text(self) -> str:
        """Return it in a few lines: the group, then batches and images that failed, one a line."""
        measured = self.evaluation is not None and "evaluation" not in self.failed
        lines = [f"measured against references: {self.evaluation}"] if measured else []
        lines += [f"failed: {case}: {why}" for case, why in sorted(self.failed.items())]
        lines += [
            f"failed: {name}: ended without an outcome: see {log}"
            for name, log in self.failed_batches.items()
        ]
        return "\n".join([self.group.as_text(but=self.failed), *lines])


@dataclass(frozen=True)
class Jobs:
    """How the work is cut and where it runs.

    Attributes:
        profile: "local", "slurm" or a folder with a profile of Snakemake's.
        cores: of this machine; on a cluster, jobs at the same time.
        batch_size: participants a job; None: 250 here, where a job that dies loses nothing but its start, and
            20 on a cluster.
        threads: cores of a job.
        mem_mb: memory of a job in MB; twice as much when it is repeated.
        minutes: time of a job, likewise.
        resources: further ones, name -> value, such as slurm_account.
    """

    profile: str = "local"
    cores: int = 2
    batch_size: int | None = None
    threads: int = 2
    mem_mb: int = 8000
    minutes: int = 240
    resources: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Raise a UserError if a number is below 1: of 0 cores, Snakemake waits for ever."""
        numbers = {"--cores": self.cores, "--batch-size": self.batch_size, "--threads": self.threads}
        for option, value in {**numbers, "--memory": self.mem_mb, "--minutes": self.minutes}.items():
            if value is not None and value < 1:
                raise UserError(f"{option} {value}: expected 1 or more: correct it")


def run_workflow(
    bids: StrPath,
    output: StrPath,
    model: StrPath | None = None,
    jobs: Jobs | None = None,
    *,
    participants: Sequence[str] = (),
    contrasts: Sequence[str] | None = None,
    references: StrPath | None = None,
    reference_pattern: str | None = None,
    folds: Sequence[str] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    words: Iterable[str] = (),
    **decisive: Any,
) -> WorkflowReport:
    """Predict and measure a cohort in batches, and return the report of all.

    `jobs`: None, in this machine. `references`: folder of soft labels or masks to measure the maps against;
    None: they are not measured. `reference_pattern`: how they are named, as for `evaluate`. `words`: further
    options of the level participant, as on its command line.
    `decisive`: options of `predict` that decide the values. For all others see `analyse_participants`.

    Raises:
        UserError: if Snakemake or the plugin of a cluster is not installed, the profile is unknown, a number
            of the jobs is below 1, another workflow is at work in this folder, or for a mistake that concerns
            all images.
    """
    jobs = jobs or Jobs()
    jobs.check()
    if reference_pattern and references is None:
        raise UserError("--reference-pattern: expected -g with it, found none: say where the references are")
    profile = _profile(jobs.profile)
    choice = Choice(participants, (), contrasts)
    images, warnings = chosen_images(Path(bids), Path(output), choice)
    options = {"folds": folds, "checkpoint": checkpoint, **decisive}
    scheme = start_with_model(Path(output), Path(bids), model, options)
    size = jobs.batch_size
    if size is None:
        size = _BATCH_SIZES.get(jobs.profile, _BATCH_SIZES["slurm"])
    known = None if references is None else _References(Path(references).absolute(), reference_pattern)
    if known:
        known.state()  # before hours of work
    cohort = _Cohort(Path(bids), Path(output), choice, _batches(images, size), known)
    of_model = [] if model is None else ["-m", str(Path(model).absolute())]
    of_model += ["-chk", checkpoint, *(["-f", *folds] if folds else [])]
    make_folder(cohort.folder)
    busy = f"{output}: another workflow is at work in this folder: wait for it, or end it"
    with only_one(cohort.folder / ".lock", busy):
        cohort.forget_unfinished(scheme.names)
        write_json(cohort.folder / _CONFIGURATION, cohort.configuration([*of_model, *words], jobs))
        _snakemake(cohort.folder, profile, jobs)
        report = cohort.report()
    report.warnings += warnings
    return report


def _size_and_time(file: Path) -> list[int]:
    """Return size and time (ns) of a file; zeros for a link to a file that has not been fetched."""
    return [file.stat().st_size, file.stat().st_mtime_ns] if file.is_file() else [0, 0]


@dataclass(frozen=True)
class _References:
    """What maps are measured against: a folder, and the pattern of its files (None: names tell)."""

    folder: Path
    pattern: str | None = None

    def state(self) -> dict[str, Any]:
        """Return what decides about the measures; raise a UserError if `evaluate` would refuse the files."""
        pattern = check_pattern(self.pattern, ["case"]) if self.pattern else None
        paths = reference_files(list_files(self.folder, formats=ANY_FORMAT), None, pattern).paths
        return {"pattern": pattern, "files": {str(file): _size_and_time(file) for file in paths.values()}}

    def options(self) -> list[str]:
        """Return them as options of `evaluate`."""
        pattern = [f"--reference-pattern={self.pattern}"] if self.pattern else []
        return ["-g", str(self.folder), *pattern]


@dataclass(frozen=True)
class _Cohort:
    """Images of a choice of people, in batches by name."""

    bids: Path
    root: Path
    choice: Choice
    batches: Mapping[str, Sequence[Derivative]]
    references: _References | None = None

    @property
    def folder(self) -> Path:
        return self.root / FOLDER

    @property
    def evaluation(self) -> Path:
        """Written last by `evaluate`."""
        return self.root.absolute() / "evaluation" / "summary.json"

    @property
    def evaluation_log(self) -> Path:
        return self.folder / "evaluation.log"

    def forget_unfinished(self, labels: Sequence[str]) -> None:
        """Remove the outcome of batches that lack an image, so that they run again, and what follows them.

        Those in which an image failed run again, too: another call may have made it since.
        """
        for name, images in self.batches.items():
            outcome = self.folder / f"{name}.json"
            failed = (load_record(outcome, "failed") or {}).get("failed")
            if failed or not all(image.is_up_to_date(self.bids, labels) for image in images):
                outcome.unlink(missing_ok=True)
                self.evaluation.unlink(missing_ok=True)
        if self.references is not None:
            self._forget_outdated_measures(self.references.state())

    def _forget_outdated_measures(self, now: Mapping[str, Any]) -> None:
        """Remove measures that lack a case, are of other references, or older than a map; note these."""
        if self.evaluation.is_file():
            measured = self.evaluation.stat().st_mtime_ns
            is_older = any(_size_and_time(file)[1] > measured for file in list_files(self.root).files)
            if is_older or self._not_measured() or load_record(self.folder / _REFERENCES) != now:
                self.evaluation.unlink()
        if not self.evaluation.is_file():
            self.evaluation_log.unlink(missing_ok=True)  # what follows is of this call
        write_json(self.folder / _REFERENCES, now)

    def configuration(self, options: Sequence[str], jobs: Jobs) -> dict[str, Any]:
        """Return what the Snakefile reads; options: of the level participant, without contrasts."""
        contrasts = ["--contrasts", *self.choice.contrasts] if self.choice.contrasts else []
        evaluate = [sys.executable, "-m", "nnunet_softseg", "evaluate", "-i", str(self.root.absolute())]
        evaluate += ["-o", str(self.evaluation.parent)]
        return {
            "app": [sys.executable, "-m", _APP, str(self.bids.absolute()), str(self.root.absolute())],
            "batches": {
                name: sorted({image.name.subject for image in images})
                for name, images in self.batches.items()
            },
            "options": [*options, *contrasts],
            "references": str(self.references.folder) if self.references else "",
            "evaluation": str(self.evaluation),
            "evaluate": [*evaluate, *self.references.options()] if self.references else [],
            "threads": jobs.threads,
            "mem_mb": jobs.mem_mb,
            "minutes": jobs.minutes,
        }

    def report(self) -> WorkflowReport:
        """Gather the report of the group, and return it with the outcome of all batches."""
        if not any(image.is_done for images in self.batches.values() for image in images):
            first = next(iter(self.batches))
            raise UserError(f"{self.root}: no image was predicted: see {self.folder / first}.log")
        wanted = {image.case_id for images in self.batches.values() for image in images}
        group = report_group(self.bids, self.root, wanted=wanted)
        report = WorkflowReport(group, len(self.batches))
        for name in self.batches:
            outcome = load_record(self.folder / f"{name}.json", "failed")
            if outcome is None:
                report.failed_batches[name] = self.folder / f"{name}.log"
            else:
                report.failed |= outcome["failed"]
        if self.references is not None:
            report.evaluation = self.evaluation
            if not self.evaluation.is_file():
                report.failed["evaluation"] = self._why_not_measured()
            report.failed |= {f"evaluation of {case}": why for case, why in self._not_measured().items()}
        return report

    def _not_measured(self) -> Mapping[str, str]:
        """Return the cases that `evaluate` could not measure -> why."""
        record = load_record(self.evaluation, "failed") or {"failed": {}}
        return cast("Mapping[str, str]", record["failed"])

    def _why_not_measured(self) -> str:
        log = self.evaluation_log
        if not log.is_file():
            return "not started"
        lines = log.read_text("utf-8", errors="replace").splitlines()
        errors = [line for line in lines if "error" in line.lower()]  # a killed job leaves its progress alone
        return f"{errors[-1].removeprefix('nnunet-softseg: error: ')}: see {log}" if errors else f"see {log}"


def _profile(name: str) -> Path:
    """Return the folder of a profile; raise a UserError if it or what it needs is not there."""
    if importlib.util.find_spec("snakemake") is None:
        here = sys.version_info
        remedy = "run `pip install 'nnunet-softseg[workflow]'`"
        if here < (3, 11):  # the extra is empty there
            remedy = f"it needs Python 3.11 or newer, here is {here[0]}.{here[1]}: install this package there"
        raise UserError(f"workflow: expected Snakemake, found none: {remedy}")
    if name not in PROFILES:
        if not any(
            (Path(name) / file).is_file() for file in ("config.yaml", "config.v9+.yaml", "config.v8+.yaml")
        ):
            raise UserError(
                f"--profile {name}: expected {', '.join(PROFILES)}, or a folder with a config.yaml of "
                "Snakemake's, found none: correct it"
            )
        return Path(name).absolute()
    if name == "slurm":
        if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
            raise UserError(
                "--profile slurm: expected snakemake-executor-plugin-slurm, found none: run "
                "`pip install 'nnunet-softseg[workflow]'`"
            )
        if shutil.which("sbatch") is None:
            raise UserError(
                "--profile slurm: expected the command sbatch, found none: start this where jobs are "
                "submitted, or use --profile local"
            )
    return _WORKFLOW / "profiles" / name


def _batches(images: Sequence[Derivative], size: int) -> dict[str, list[Derivative]]:
    """Return name -> images of batches of so many participants, the same names for the same images."""
    subjects = sorted({image.name.subject for image in images})
    parts = [subjects[start : start + size] for start in range(0, len(subjects), size)]
    batches: dict[str, list[Derivative]] = {}
    for number, part in enumerate(parts, 1):
        members = set(part)
        of_part = [image for image in images if image.name.subject in members]
        content = " ".join(image.case_id for image in of_part)
        digest = hashlib.sha256(content.encode()).hexdigest()[:_DIGITS]
        batches[f"batch-{number:05d}-{digest}"] = of_part
    return batches


def _snakemake(folder: Path, profile: Path, jobs: Jobs) -> None:
    """Run the jobs; which of them have failed is told by what is missing afterwards."""
    here = profile.name == "local"
    words = [sys.executable, "-m", "snakemake", "--snakefile", str(_WORKFLOW / "Snakefile")]
    words += ["--directory", str(folder), "--configfile", str(folder / _CONFIGURATION)]
    words += ["--profile", str(profile), "--cores" if here else "--jobs", str(jobs.cores)]
    # Outcomes, not times of change or code, say what is to be done.
    words += ["--keep-going", "--rerun-incomplete", "--nolock", "--rerun-triggers", "input"]
    words += ["--quiet", "rules"]
    if jobs.resources:
        words += ["--default-resources", *(f"{name}={value}" for name, value in jobs.resources.items())]
    subprocess.run(words, check=False)
