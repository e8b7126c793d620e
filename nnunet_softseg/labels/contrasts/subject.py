"""One subject: its files in, its soft labels out, and a record by which a later run knows them.

All files are written aside and moved in place together, the record last. It holds the hashes of the sources
and of what was made, so that a subject without a record, or with one that no longer fits, is made again.
"""

import contextlib
import os
import shutil
import traceback
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nnunet_softseg import __version__
from nnunet_softseg.datasets.soft_label import write_label_map, write_soft_label
from nnunet_softseg.errors import UserError
from nnunet_softseg.io.atomic import make_folder, write_json
from nnunet_softseg.io.case_names import derivative_file
from nnunet_softseg.io.nifti import without_nifti_ending
from nnunet_softseg.io.record import (
    changed_keys,
    changed_outputs,
    json_copy,
    load_record,
    output_hashes,
    sha256,
)
from nnunet_softseg.labels.contrasts.average import SoftGroundTruth, choose_reference, soft_ground_truth
from nnunet_softseg.labels.contrasts.qc_figure import save_figure, subject_figure
from nnunet_softseg.labels.contrasts.quality import Areas, SubjectQuality, areas_of, subject_quality
from nnunet_softseg.labels.contrasts.settings import GroundTruthSettings
from nnunet_softseg.labels.contrasts.sidecar import (
    HARD_SUFFIX,
    SOFT_SUFFIX,
    Origin,
    Places,
    hard_sidecar,
    soft_sidecar,
)
from nnunet_softseg.labels.contrasts.sources import (
    SubjectSources,
    check_there,
    read_image,
    read_mask,
    stated_thickness_mm,
)
from nnunet_softseg.labels.contrasts.volume import Volume

RECORD_FOLDER = Path("qc", "records")
PICTURE_FOLDER = Path("qc", "subjects")
PARTIAL = ".partial-"
_LABEL = 1


@dataclass(frozen=True)
class SubjectJob:
    """One subject to make.

    Attributes:
        sources: its images and masks.
        places: the folders that they are in, and where the labels go.
        settings: of the average.
        soft_masks: whether masks may hold values between 0 and 1.
        strict: whether a subject without the reference fails.
        overwrite: whether it is made again though nothing changed.
        command: for the sidecars.
    """

    sources: SubjectSources
    places: Places
    settings: GroundTruthSettings
    soft_masks: bool
    strict: bool
    overwrite: bool
    command: str

    @property
    def person(self) -> str:
        """Subject, and session if there is one."""
        return self.sources.person

    @property
    def record(self) -> Path:
        """The record by which a later run knows the subject."""
        return record_file(self.places.output, self.person)


@dataclass(frozen=True)
class SubjectOutcome:
    """The result of a subject: numbers, notes, or why it failed.

    Attributes:
        person: `sub-01` or `sub-01_ses-1`.
        reference: the contrast that was the reference; empty if it failed.
        other_reference: why that is not the contrast asked for; None if it is.
        notes: what else is worth knowing.
        quality: its numbers, contrast by contrast.
        kept: whether it was there already.
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
        quality = SubjectQuality.from_dict(content["quality"])
        return cls(**{**content, "notes": tuple(content["notes"]), "quality": quality})

    @property
    def warnings(self) -> dict[str, tuple[str, ...]]:
        """Contrast -> why it is implausible, of those that are."""
        contrasts = sorted(self.quality.contrasts, key=lambda contrast: contrast.name)
        return {contrast.name: contrast.warnings for contrast in contrasts if contrast.warnings}

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
    """Return where the record of a subject is."""
    return output / RECORD_FOLDER / f"{person}.json"


def picture_file(output: Path, person: str) -> Path:
    """Return where the picture of a subject is."""
    return output / PICTURE_FOLDER / f"{person}.webp"


def try_make_subject(job: SubjectJob) -> SubjectOutcome:
    """Return the result of a subject; one that fails leaves no file, nor does an earlier run of it."""
    try:
        return make_subject(job)
    except UserError as error:
        failure = str(error)
    except Exception as error:
        # Whatever is wrong with one subject, 266 others can be made.
        place = traceback.extract_tb(error.__traceback__)[-1]
        failure = (
            f"unexpected {type(error).__name__} in {Path(place.filename).name}, line {place.lineno}: {error}"
        )
    discard(job.places.output, job.person)
    return SubjectOutcome(job.person, failure=" ".join(failure.split()))


def make_subject(job: SubjectJob) -> SubjectOutcome:
    """Write the soft labels of a subject, or keep those that are there from the same sources and settings.

    Raises:
        UserError: if its files do not allow it.
    """
    if job.sources.problem:
        raise UserError(job.sources.problem)
    request = _request(job)
    kept = None if job.overwrite else _kept(job, request)
    if kept is not None:
        return kept
    masks = {source.contrast: read_mask(source, soft=job.soft_masks) for source in job.sources.images}
    if job.strict:
        _refuse_other_reference(choose_reference(masks, job.settings.reference)[1])
    truth = soft_ground_truth(masks, job.settings)
    areas = areas_of(masks, truth)
    outcome = _outcome(job, masks, truth, areas)
    if job.strict:
        _refuse_other_reference(outcome.other_reference)
    with _aside(job) as folder:
        _write_labels(job, truth, request, folder)
        _draw(job, masks, truth, areas, folder)
        outputs = _move(job, folder)
    record = {"request": request, "outputs": outputs, "outcome": asdict(outcome)}
    make_folder(job.record.parent)
    write_json(job.record, record)
    return outcome


def _refuse_other_reference(reason: str | None) -> None:
    if reason is not None:
        raise UserError(f"{reason}: add its mask, or go on without --strict")


def _outcome(
    job: SubjectJob, masks: Mapping[str, Volume], truth: SoftGroundTruth, areas: Mapping[str, Areas]
) -> SubjectOutcome:
    wanted, other_reference = job.settings.reference, None
    if truth.reference != wanted:
        chosen, reason = choose_reference(masks, wanted)
        left_out = f"{wanted} was left out as implausible: {truth.reference} is the reference"
        other_reference = reason if truth.reference == chosen else left_out
    notes = []
    if len(truth.contrasts) == 1:
        notes.append("one contrast only: nothing to average, its mask is the label")
    quality = subject_quality(truth, areas)
    return SubjectOutcome(job.person, truth.reference, other_reference, tuple(notes), quality)


# Results of an earlier run


def _request(job: SubjectJob) -> dict[str, Any]:
    """Return all that decides the result, as JSON gives it back."""
    files = [file for source in job.sources.images for file in (source.image, source.mask)]
    check_there(files)
    request: dict[str, Any] = {
        "version": __version__,
        "parameters": _parameters(job),
        "contrasts": {
            source.contrast: [job.places.uri(source.image), job.places.uri(source.mask)]
            for source in job.sources.images
        },
        "sha256": {job.places.uri(file): sha256(file) for file in files},
        "slice_thickness_mm": {
            source.contrast: stated_thickness_mm(source.image) for source in job.sources.images
        },
    }
    request = json_copy(request)
    return request


def _parameters(job: SubjectJob) -> dict[str, Any]:
    return {**job.settings.as_dict(), "soft_masks": job.soft_masks}


def _kept(job: SubjectJob, request: dict[str, Any]) -> SubjectOutcome | None:
    """Return the earlier result, or None if that is stale, unfinished or changed."""
    record = load_record(job.record, "request", "outputs", "outcome")
    if record is None:
        return None
    try:
        if changed_keys(record["request"], request) or changed_outputs(job.places.output, record["outputs"]):
            return None
        outcome = replace(SubjectOutcome.from_dict(record["outcome"]), kept=True)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return None if job.strict and outcome.other_reference else outcome


def discard(output: Path, person: str) -> None:
    """Remove whatever there is of a subject, its record first."""
    subject, _, session = person.partition("_")
    folder = output / subject / session if session else output / subject
    files = [record_file(output, person), picture_file(output, person)]
    for suffix in (SOFT_SUFFIX, HARD_SUFFIX):
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
def _aside(job: SubjectJob) -> Any:
    """Give a folder, on the same disk, that is gone when the block ends."""
    folder = job.places.output / f"{PARTIAL}{job.person}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    make_folder(folder)
    try:
        yield folder
    except OSError as error:
        raise UserError(
            f"cannot write to {job.places.output}: {error.strerror or error}: check that the folder is "
            "writable and the disk not full"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_labels(job: SubjectJob, truth: SoftGroundTruth, request: dict[str, Any], folder: Path) -> None:
    hashes = request["sha256"]
    taken = [source for source in job.sources.images if source.contrast in truth.contrasts]
    uris = [job.places.uri(file) for source in taken for file in (source.image, source.mask)]
    origin = Origin({uri: hashes[uri] for uri in uris}, _parameters(job), job.command)
    for source in taken:
        soft, hard = (
            derivative_file(source.image, job.places.bids, folder, suffix)
            for suffix in (SOFT_SUFFIX, HARD_SUFFIX)
        )
        make_folder(soft.parent)
        write_soft_label(soft, truth.native[source.contrast].values, source.image)
        write_label_map(hard, [soft], [_LABEL])
        image = job.places.uri(source.image)
        write_json(_sidecar(soft), soft_sidecar(source.contrast, image, truth, origin))
        soft_uri = f"bids::{soft.relative_to(folder).as_posix()}"
        write_json(_sidecar(hard), hard_sidecar(soft_uri, image, origin))


def _sidecar(file: Path) -> Path:
    return file.with_name(f"{without_nifti_ending(file.name)}.json")


def _draw(
    job: SubjectJob,
    masks: Mapping[str, Volume],
    truth: SoftGroundTruth,
    areas: Mapping[str, Areas],
    folder: Path,
) -> None:
    images = {source.contrast: read_image(source.image) for source in job.sources.images}
    figure = subject_figure(subject_quality(truth, areas), images, masks, truth, areas)
    file = picture_file(folder, job.person)
    make_folder(file.parent)
    save_figure(figure, file)


def _move(job: SubjectJob, folder: Path) -> dict[str, str]:
    """Replace the files of an earlier run by those in `folder`, and return the hash of each."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = output_hashes(folder, files)
    discard(job.places.output, job.person)
    for file, name in zip(files, hashes, strict=True):
        target = job.places.output / name
        make_folder(target.parent)
        os.replace(file, target)
    return hashes
