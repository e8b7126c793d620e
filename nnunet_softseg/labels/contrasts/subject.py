"""One subject: its files in, its soft labels with sidecars out, and a record by which a later run knows them.

All files are written aside and moved in place together, the record last. It holds the hashes of the sources
and outputs: a subject without a record, or with one that no longer fits, is made again.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy.typing as npt

from nnunet_softseg import __version__
from nnunet_softseg.datasets.conversion.sources import MADE_HERE
from nnunet_softseg.datasets.soft_label import lost_changes, write_label_map, write_soft_label
from nnunet_softseg.errors import UserError, raise_first_error
from nnunet_softseg.io.case_files import derivative_file
from nnunet_softseg.io.html import save_figure
from nnunet_softseg.io.nifti import file_findings, geometry_warnings
from nnunet_softseg.io.results import (
    changed_keys,
    changed_outputs,
    json_copy,
    load_record,
    make_folder,
    output_hashes,
    sha256,
    write_error,
    write_json,
)
from nnunet_softseg.labels.contrasts.average import SoftGroundTruth, choose_reference, soft_ground_truth
from nnunet_softseg.labels.contrasts.qc_figure import subject_figure
from nnunet_softseg.labels.contrasts.quality import (
    ContrastQuality,
    SubjectQuality,
    areas_of,
    rounded,
    subject_quality,
)
from nnunet_softseg.labels.contrasts.settings import GroundTruthSettings
from nnunet_softseg.labels.contrasts.sources import (
    SourceChoice,
    SubjectSources,
    read_image,
    read_mask,
    sidecar_of,
    stated_thickness_mm,
)
from nnunet_softseg.settings import HARD_THRESHOLD

NAME = "nnunet-softseg"
RECORD_FOLDER = Path("qc", "records")
PARTIAL = ".partial-"
_SOFT_SUFFIX = MADE_HERE[1]
_HARD_SUFFIX = "_label-SC_desc-softseg_seg"
_DIGITS = 4


def generated_by(command: str) -> dict[str, str]:
    """Return what made a file, as an entry of `GeneratedBy`."""
    return {"Name": NAME, "Version": __version__, "Command": command}


@dataclass(frozen=True)
class SubjectJob:
    """One subject to make: its sources, the folders, the options of `make_gt`, the command for sidecars."""

    sources: SubjectSources
    choice: SourceChoice
    output: Path
    settings: GroundTruthSettings
    soft_masks: bool
    strict: bool
    overwrite: bool
    command: str

    @property
    def person(self) -> str:
        """Subject, and session if there is one."""
        return self.sources.person


@dataclass(frozen=True)
class SubjectOutcome:
    """The result of a subject: numbers, notes, or why it failed.

    Attributes:
        reference: the contrast that was the reference; empty if it failed.
        other_reference: why that is not the contrast asked for; None if it is.
        kept: whether the labels were made by an earlier run.
        failure: why there are no labels; None: there are.
    """

    person: str
    reference: str = ""
    other_reference: str | None = None
    notes: tuple[str, ...] = ()
    quality: SubjectQuality = field(default_factory=SubjectQuality)
    kept: bool = False
    failure: str | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "SubjectOutcome":
        """Return it from `dataclasses.asdict`, also after JSON has made lists of tuples.

        Raises:
            KeyError, TypeError, ValueError: if it is something else.
        """
        quality = content["quality"]
        contrasts = tuple(
            ContrastQuality(**{**contrast, "warnings": tuple(contrast["warnings"])})
            for contrast in quality["contrasts"]
        )
        common = quality["common_mm"] and tuple(map(float, quality["common_mm"]))
        of_subject = SubjectQuality(**{**quality, "contrasts": contrasts, "common_mm": common})
        return cls(**{**content, "notes": tuple(content["notes"]), "quality": of_subject})

    @property
    def skipped(self) -> dict[str, str]:
        """Contrast -> why it took no part."""
        contrasts = self.quality.contrasts
        return {one.name: one.left_out for one in contrasts if one.left_out is not None}

    @property
    def all_notes(self) -> list[str]:
        """Notes, another reference than asked for included."""
        return [*([self.other_reference] if self.other_reference else []), *self.notes]


def record_file(output: Path, person: str) -> Path:
    """Return the record by which a later run knows a subject."""
    return output / RECORD_FOLDER / f"{person}.json"


def picture_file(output: Path, person: str) -> Path:
    """Return the picture of a subject."""
    return output / "qc" / "subjects" / f"{person}.webp"


def failed_subject(job: SubjectJob, error: UserError) -> SubjectOutcome:
    """Return the result of a subject that failed; no file of it stays, nor those of an earlier run."""
    _discard(job.output, job.person)
    return SubjectOutcome(job.person, failure=" ".join(str(error).split()))


def make_subject(job: SubjectJob) -> SubjectOutcome:
    """Write the soft labels of a subject, or keep those made from the same sources and settings."""
    if job.sources.problem:
        raise UserError(job.sources.problem)
    request = _request(job)
    kept = None if job.overwrite else _kept(job, request)
    if kept is not None:
        return kept
    masks = {source.contrast: read_mask(source, soft=job.soft_masks) for source in job.sources.images}
    wanted = job.settings.reference
    if job.strict:
        _refuse_other_reference(choose_reference(masks, wanted)[1])
    truth = soft_ground_truth(masks, job.settings)
    first_choice, other_reference = choose_reference(masks, wanted)
    if truth.reference not in (wanted, first_choice):
        left_out = f"{first_choice} was left out as implausible: {truth.reference} is the reference"
        other_reference = f"{other_reference}; {left_out}" if other_reference else left_out
    if job.strict:
        _refuse_other_reference(other_reference)
    alone = "one contrast only: nothing to average, its mask is the label"
    notes = [alone] if len(truth.contrasts) == 1 else []
    for source in job.sources.images:
        notes += [str(replace(doubt, file=source.contrast)) for doubt in geometry_warnings(source.image)]
    lost = lost_changes(job.output, _earlier_outputs(job))
    areas = areas_of(masks, truth)
    quality = subject_quality(truth, areas)
    outcome = SubjectOutcome(job.person, truth.reference, other_reference, tuple(notes), quality)
    with _aside(job) as folder:
        _write_labels(job, truth, request, folder)
        images = {source.contrast: read_image(source.image) for source in job.sources.images}
        picture = picture_file(folder, job.person)
        make_folder(picture.parent)
        save_figure(subject_figure(quality, images, masks, truth, areas), picture)
        outputs = _move(job, folder)
    record = record_file(job.output, job.person)
    make_folder(record.parent)
    write_json(record, {"request": request, "outputs": outputs, "outcome": asdict(outcome)})
    return replace(outcome, notes=(*notes, *lost))  # not in the record: it is of this run


def _refuse_other_reference(reason: str | None) -> None:
    if reason is not None:
        raise UserError(f"{reason}: add its mask, or go on without --strict")


# Results of an earlier run


def _request(job: SubjectJob) -> dict[str, Any]:
    """Return all that decides the result, as JSON gives it back."""
    images, uri = job.sources.images, job.choice.uri
    files = [file for source in images for file in (source.image, source.mask)]
    for file in files:
        if not file.is_file():  # a link to content that was not fetched, too
            raise_first_error(file_findings(file))
    content = {
        "version": __version__,
        "parameters": {**asdict(job.settings), "soft_masks": job.soft_masks},
        "contrasts": {source.contrast: [uri(source.image), uri(source.mask)] for source in images},
        "sha256": {uri(file): sha256(file) for file in files},
        "slice_thickness_mm": {source.contrast: stated_thickness_mm(source.image) for source in images},
    }
    request: dict[str, Any] = json_copy(content)
    return request


def _kept(job: SubjectJob, request: dict[str, Any]) -> SubjectOutcome | None:
    """Return the earlier result, or None if that is stale, unfinished or changed."""
    record = load_record(record_file(job.output, job.person), "request", "outputs", "outcome")
    if record is None:
        return None
    try:
        if changed_keys(record["request"], request) or changed_outputs(job.output, record["outputs"]):
            return None
        outcome = replace(SubjectOutcome.from_dict(record["outcome"]), kept=True)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return None if job.strict and outcome.other_reference else outcome


def _earlier_outputs(job: SubjectJob) -> dict[str, str]:
    outputs = (load_record(record_file(job.output, job.person), "outputs") or {"outputs": {}})["outputs"]
    return outputs if isinstance(outputs, dict) else {}


def _discard(output: Path, person: str) -> None:
    """Remove all files of a subject, its record first."""
    subject, _, session = person.partition("_")
    folder = output / subject / session if session else output / subject
    files = [record_file(output, person), picture_file(output, person)]
    for suffix in (_SOFT_SUFFIX, _HARD_SUFFIX):
        for ending in (".nii.gz", ".json"):
            files += folder.glob(f"*/{person}_*{suffix}{ending}")
    for file in files:
        with contextlib.suppress(OSError):
            file.unlink()
    for empty in [*folder.glob("*"), folder, folder.parent if session else folder]:
        with contextlib.suppress(OSError):
            empty.rmdir()


# Writing


@contextlib.contextmanager
def _aside(job: SubjectJob) -> Iterator[Path]:
    """Give a folder, on the same disk, that is gone when the block ends."""
    output, prefix = job.output, f"{PARTIAL}{job.person}-"
    try:
        with TemporaryDirectory(prefix=prefix, dir=output, ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        raise write_error(output, error) from error


def _move(job: SubjectJob, folder: Path) -> dict[str, str]:
    """Replace the files of an earlier run by those in `folder`, and return the hash of each."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = output_hashes(folder, files)
    _discard(job.output, job.person)
    for file, name in zip(files, hashes, strict=True):
        target = job.output / name
        make_folder(target.parent)
        os.replace(file, target)
    return hashes


def _write_labels(job: SubjectJob, truth: SoftGroundTruth, request: dict[str, Any], folder: Path) -> None:
    for source in job.sources.images:
        if source.contrast not in truth.contrasts:
            continue
        soft, hard = (
            derivative_file(source.image, job.choice.bids, folder, suffix)
            for suffix in (_SOFT_SUFFIX, _HARD_SUFFIX)
        )
        make_folder(soft.parent)
        write_soft_label(soft, truth.native[source.contrast].values, source.image)
        write_label_map(hard, [soft], [(0, 1)])
        write_json(sidecar_of(soft), _soft_sidecar(source.contrast, truth, request, job.command))
        hard_sidecar = {
            "Description": f"Voxels of which more than {HARD_THRESHOLD:g} is spinal cord",
            "Type": "ROI",
            "Label": "SC",
            "Sources": [f"bids::{soft.relative_to(folder).as_posix()}"],
            "SpatialReference": request["contrasts"][source.contrast][0],
            "Threshold": HARD_THRESHOLD,
            "GeneratedBy": [generated_by(job.command)],
        }
        write_json(sidecar_of(hard), hard_sidecar)


def _soft_sidecar(
    contrast: str, truth: SoftGroundTruth, request: dict[str, Any], command: str
) -> dict[str, Any]:
    """Return the sidecar of the soft label of a contrast; its alignment in slices of the reference."""
    uris, alignment = request["contrasts"], truth.contrasts[contrast]
    sources = list(dict.fromkeys(uri for name in uris if name in truth.contrasts for uri in uris[name]))
    return {
        "Description": "Share of each voxel that is spinal cord: the mean of masks of several contrasts",
        "Type": "ROI",
        "Label": "SC",
        "Sources": sources,
        "SourcesSHA256": {uri: request["sha256"][uri] for uri in sources},
        "SpatialReference": uris[contrast][0],
        "Contrast": contrast,
        "Reference": truth.reference,
        "Alignment": {
            "HeightMm": _list(alignment.height_mm),
            "ShiftRightMm": _list(alignment.shift_mm[:, 0]),
            "ShiftAnteriorMm": _list(alignment.shift_mm[:, 1]),
            "RotationDeg": _list(alignment.rotation_deg),
            "Measured": alignment.measured.tolist(),
            "Coverage": _list(alignment.coverage),
        },
        "Agreement": {name: rounded(one.agreement, _DIGITS) for name, one in truth.contrasts.items()},
        "Doubts": {name: list(one.warnings) for name, one in truth.contrasts.items() if one.warnings},
        "Skipped": truth.skipped,
        "Parameters": request["parameters"],
        "GeneratedBy": [generated_by(command)],
    }


def _list(values: npt.NDArray[Any]) -> list[float | None]:
    return [rounded(value, _DIGITS) for value in values]
