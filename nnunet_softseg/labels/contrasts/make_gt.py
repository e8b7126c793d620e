"""`nnunet-softseg make-gt`: BIDS with a mask per contrast -> soft labels, and a page to look at them."""

import contextlib
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.io.case_files import BIDS_DESCRIPTION
from nnunet_softseg.io.image_choice import read_exclusions
from nnunet_softseg.io.nifti import StrPath
from nnunet_softseg.io.results import load_record, make_folder, only_one, replacing, write_json
from nnunet_softseg.io.workers import try_jobs
from nnunet_softseg.labels.contrasts.qc_page import FAILURES, write_qc_page
from nnunet_softseg.labels.contrasts.settings import HIGHEST, GroundTruthSettings
from nnunet_softseg.labels.contrasts.sources import (
    DEFAULT_MASKS,
    DEFAULT_SUFFIX,
    CohortSources,
    SourceChoice,
    SubjectSources,
    find_sources,
)
from nnunet_softseg.labels.contrasts.subject import (
    NAME,
    PARTIAL,
    RECORD_FOLDER,
    SubjectJob,
    SubjectOutcome,
    failed_subject,
    generated_by,
    make_subject,
)

_LOCK = Path("qc", ".lock")
_COMMAND = "nnunet-softseg make-gt"


@dataclass(frozen=True)
class GroundTruthReport:
    """The results of `make_gt`, of each subject with a mask; warnings: of files and subjects passed over."""

    output: Path
    page: Path
    outcomes: tuple[SubjectOutcome, ...]
    warnings: tuple[str, ...]

    @property
    def failures(self) -> tuple[SubjectOutcome, ...]:
        """The subjects that have no soft label."""
        return tuple(outcome for outcome in self.outcomes if outcome.failure is not None)

    def as_text(self) -> str:
        """Return a summary of the subjects that did not fail, in lines: implausible contrasts first."""
        implausible: list[str] = []
        skipped: dict[str, list[str]] = {}  # reason -> subjects
        notes: dict[str, list[str]] = {}
        for outcome in self.outcomes:
            for contrast in sorted(outcome.quality.contrasts, key=lambda contrast: contrast.name):
                if contrast.warnings:
                    implausible.append(f"{outcome.person} {contrast.name}: {'; '.join(contrast.warnings)}")
            for name, reason in outcome.skipped.items():
                skipped.setdefault(f"{name}: {reason}", []).append(outcome.person)
            for note in outcome.all_notes:
                notes.setdefault(note, []).append(outcome.person)
        sections = {
            "implausible, to look at first": implausible,
            "took no part in the average": [_about(reason, skipped[reason]) for reason in skipped],
            "note": [*(_about(note, notes[note]) for note in notes), *self.warnings],
        }
        lines = []
        for title, entries in sections.items():
            lines += [f"{title}:", *(f"  {entry}" for entry in entries)] if entries else []
        kept, failed = sum(outcome.kept for outcome in self.outcomes), len(self.failures)
        made = len(self.outcomes) - kept - failed
        lines.append(f"{self.output}: {made} made, {kept} kept, {failed} failed")
        return "\n".join([*lines, f"quality control: {self.page}"])


def _about(note: str, people: Sequence[str]) -> str:
    """Return a note with the subjects that it is about."""
    return f"{note} ({people[0] if len(people) == 1 else f'{len(people)} subjects: {examples(people)}'})"


def make_gt(
    bids: StrPath,
    output: StrPath,
    settings: GroundTruthSettings | None = None,
    *,
    masks: StrPath = DEFAULT_MASKS,
    suffix: str = DEFAULT_SUFFIX,
    soft_masks: bool = False,
    exclude: Sequence[str] = (),
    distinguish_by: Sequence[str] = (),
    subjects: Sequence[str] | None = None,
    strict: bool = False,
    overwrite: bool = False,
    num_processes: int = 1,
    progress: bool = True,
) -> GroundTruthReport:
    """Write the soft labels of each subject and a quality control page; return a report.

    A subject that was made earlier from the same files, settings and version is kept; one that cannot be made
    is reported (`GroundTruthReport.failures`, `qc/failed.json`), tried again by the next call, and stops no
    other.

    Args:
        bids: images in `sub-*/[ses-*/]anat` and `dwi`.
        output: folder of the derivatives; outside of `bids`, or in its `derivatives`.
        settings: of the average; None takes the defaults.
        masks: folder of the masks, in `bids` or anywhere.
        suffix: what follows the image's name in that of its mask.
        soft_masks: whether masks may hold values between 0 and 1.
        exclude: patterns of images to pass over, or files of them.
        distinguish_by: BIDS entities that make two contrasts of one, `("acq",)`: `acq-sag_T2w`, `acq-ax_T2w`.
        subjects: those to make, `sub-01`, `01` or `sub-01_ses-1`; None for all.
        strict: whether a subject without the reference fails; False takes its best other contrast.
        overwrite: whether all are made again.
        num_processes: subjects at a time.
        progress: whether a bar is shown.

    Raises:
        UserError: for arguments that don't fit, or a folder without images or masks; nothing is written then.
    """
    settings = settings or GroundTruthSettings()
    images, drawn, written = _folders(Path(bids), Path(masks), Path(output))
    choice = SourceChoice(
        images, drawn, suffix, settings.contrasts, read_exclusions(exclude), tuple(distinguish_by)
    )
    # The default was perhaps not chosen: without it, each subject takes its best other contrast.
    needed = strict or settings.reference != GroundTruthSettings.reference
    _check_settings(settings, num_processes, needs_reference=needed)
    cohort = find_sources(choice)
    if needed and settings.reference not in cohort.contrasts:
        raise UserError(
            f"--reference {settings.reference}: no image of this contrast in {images}: there are "
            f"{', '.join(sorted(cohort.contrasts))}: choose one of them"
        )
    people = _chosen(cohort, subjects, images)
    options = {"soft_masks": soft_masks, "strict": strict}
    command = _command(settings, choice, options)
    jobs = [
        SubjectJob(person, choice, written, settings, overwrite=overwrite, command=command, **options)
        for person in people
        if person.has_mask
    ]
    if not jobs:
        names = examples([person.person for person in people])
        raise UserError(f"{images}: none of the subjects asked for has a mask: {names}")
    _check_output(written)
    with _alone(written):
        _write_description(choice, written, command)
        at_work = {"num_processes": num_processes, "progress": progress, "description": "make-gt"}
        results = try_jobs(make_subject, jobs, lambda job: "", **at_work)  # a report names the subjects
        outcomes = [
            failed_subject(job, result) if isinstance(result, UserError) else result
            for job, result in zip(jobs, results, strict=True)
        ]
        _write_failures(written, outcomes, cohort)
        page = write_qc_page(written)
    warnings = _warnings(written, cohort, people, everyone=subjects is None)
    return GroundTruthReport(written, page, tuple(outcomes), tuple(warnings))


# Arguments


def _folders(bids: Path, masks: Path, output: Path) -> tuple[Path, Path, Path]:
    """Return the three folders as absolute paths, none of them where it could harm another."""
    inside = bids / masks  # an absolute path stays as it is
    masks = inside if inside.exists() or not masks.exists() else masks
    bids_path, masks_path, output_path = (Path(os.path.abspath(folder)) for folder in (bids, masks, output))
    raw, drawn, written = (folder.resolve() for folder in (bids_path, masks_path, output_path))
    if output.exists() and not output.is_dir():
        raise UserError(f"-o: expected a folder, found the file {output}: choose another name")
    if written.is_relative_to(drawn) or drawn.is_relative_to(written):
        raise UserError(
            f"-o: expected a folder apart from the masks, found {output} and {masks_path}, one in the "
            "other: choose another, such as BIDS/derivatives/softseg"
        )
    at = written.relative_to(raw).parts if written.is_relative_to(raw) else None
    if raw.is_relative_to(written) or (at is not None and (len(at) < 2 or at[0] != "derivatives")):  # noqa: PLR2004
        raise UserError(
            f"-o: expected a folder outside of the images, or in BIDS/derivatives, found {output}: choose "
            "another, such as BIDS/derivatives/softseg"
        )
    return bids_path, masks_path, output_path


def _check_settings(settings: GroundTruthSettings, num_processes: int, *, needs_reference: bool) -> None:
    if num_processes < 1:
        raise UserError(f"-np: expected 1 process or more, found {num_processes}")
    allowed, reference = settings.contrasts, settings.reference
    if needs_reference and allowed is not None and reference not in allowed:
        names = " ".join(allowed)
        raise UserError(
            f"--reference {reference}: expected one of --contrasts {names}: choose --reference {allowed[0]}, "
            f"or --contrasts {names} {reference}"
        )


def _chosen(cohort: CohortSources, wanted: Sequence[str] | None, bids: Path) -> list[SubjectSources]:
    if wanted is None:
        return list(cohort.subjects)
    names = [name if name.startswith("sub-") else f"sub-{name}" for name in wanted]
    known = {person.person: {person.person, person.person.partition("_")[0]} for person in cohort.subjects}
    if unknown := [name for name in names if not any(name in of_person for of_person in known.values())]:
        there = examples([person.person for person in cohort.subjects])
        raise UserError(f"--subjects: {', '.join(unknown)} not in {bids}: there are {there}")
    return [person for person in cohort.subjects if known[person.person] & set(names)]


def _command(settings: GroundTruthSettings, choice: SourceChoice, options: Mapping[str, bool]) -> str:
    """Return the command that makes the same from the same folders, without paths of this machine."""
    inside = choice.masks.is_relative_to(choice.bids)
    masks = shlex.quote(choice.masks.relative_to(choice.bids).as_posix()) if inside else "MASKS"
    words = [f"{_COMMAND} -i BIDS -o DERIVATIVES --reference {settings.reference}"]
    words += [f"--contrasts {' '.join(settings.contrasts)}"] if settings.contrasts else []
    words += [f"--masks {masks}"] if masks != DEFAULT_MASKS else []
    words += [f"--suffix={shlex.quote(choice.suffix)}"] if choice.suffix != DEFAULT_SUFFIX else []
    words += [f"--exclude {shlex.join(choice.exclude)}"] if choice.exclude else []
    words += [f"--distinguish-by {' '.join(choice.distinguish_by)}"] if choice.distinguish_by else []
    for name in HIGHEST:
        value = getattr(settings, name)
        words += [f"{_flag(name)} {value:g}"] if value != getattr(GroundTruthSettings, name) else []
    flags = {
        "rotation": settings.rotation,
        "no_box": not settings.box,
        "leave_out_implausible": settings.leave_out_implausible,
        **options,
    }
    return " ".join([*words, *(_flag(name) for name, on in flags.items() if on)])


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


# The folder


def _check_output(output: Path) -> None:
    """Raise a UserError if the folder holds something that this command did not write."""
    entries = output.iterdir() if output.exists() else ()
    if all(path.name.startswith(".") or path.name == "qc" for path in entries):
        return  # with qc alone, a run was killed at its very start
    description = load_record(output / BIDS_DESCRIPTION, "GeneratedBy") or {}
    try:
        made_by = description["GeneratedBy"][0]
        ours = made_by["Name"] == NAME and made_by["Command"].startswith(_COMMAND)
    except (KeyError, TypeError, IndexError, AttributeError):
        ours = False
    if not ours:
        raise UserError(
            f"-o: expected an empty folder or one of an earlier make-gt, found other files in {output}: "
            "choose another"
        )


@contextlib.contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Lock the folder, and clear away half-written files of a killed run, or of killed workers."""
    make_folder(output / RECORD_FOLDER)
    with only_one(output / _LOCK, f"{output}: another make-gt is at work there: wait until it is done"):
        _clear(output)
        yield
        _clear(output)


def _clear(output: Path) -> None:
    for partial in output.glob(f"{PARTIAL}*"):
        shutil.rmtree(partial, ignore_errors=True)


def _write_description(choice: SourceChoice, output: Path, command: str) -> None:
    raw = load_record(choice.bids / BIDS_DESCRIPTION, "Name")
    name = str(raw["Name"]) if raw else choice.bids.resolve().name
    links = {"raw": _relative(choice.bids, output)}
    if not choice.masks.is_relative_to(choice.bids):
        links["masks"] = _relative(choice.masks, output)
    description = {
        "Name": f"Soft spinal cord labels of {name}",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [generated_by(command)],
        "SourceDatasets": [{"URL": url} for url in links.values()],
        "DatasetLinks": links,
    }
    write_json(output / BIDS_DESCRIPTION, description)
    with replacing(output / ".bidsignore") as aside:
        aside.write_text("qc/\n", encoding="utf-8")


def _relative(folder: Path, start: Path) -> str:
    try:
        return Path(os.path.relpath(folder, start)).as_posix()
    except ValueError:  # another drive
        return folder.absolute().as_uri()


def _write_failures(output: Path, outcomes: Sequence[SubjectOutcome], cohort: CohortSources) -> None:
    """Write why subjects failed; those not tried this time keep their earlier entry."""
    tried = {outcome.person for outcome in outcomes}
    others = {person.person for person in cohort.subjects if person.has_mask} - tried
    earlier = load_record(output / FAILURES) or {}
    failures = {person: earlier[person] for person in others if person in earlier}
    failures |= {outcome.person: outcome.failure for outcome in outcomes if outcome.failure is not None}
    write_json(output / FAILURES, dict(sorted(failures.items())))


def _warnings(
    output: Path, cohort: CohortSources, people: Sequence[SubjectSources], *, everyone: bool
) -> list[str]:
    warnings = list(cohort.warnings)
    if without := [person.person for person in people if not person.has_mask]:
        warnings.append(_about("no mask, passed over", without))
    recorded = {path.stem for path in (output / RECORD_FOLDER).glob("sub-*.json")}
    old = sorted(recorded - {person.person for person in people if person.has_mask})
    if everyone and old:
        remedy = "remove them if they should not be there"
        note = f"made by an earlier run, without masks now, still in {output}: {remedy}"
        warnings.append(_about(note, old))
    return warnings
