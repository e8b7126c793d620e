"""Fusion of one case: raters' files -> soft labels, a label map, and a record of sources, `<case>.json`.

The record is written before the files, without hashes, and again after them: even a kill leaves it right.
"""

import itertools
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_softseg import __version__
from nnunet_softseg.datasets.soft_label import (
    lost_changes,
    overlap_findings,
    write_label_map,
    write_soft_label,
)
from nnunet_softseg.errors import Finding, UserError, examples, printable, raise_first_error, short_name
from nnunet_softseg.io.case_files import parse_numbered_name
from nnunet_softseg.io.geometry import VoxelGrid, grid_findings
from nnunet_softseg.io.nifti import (
    PER_LABEL,
    PER_VOLUME,
    Values,
    file_findings,
    geometry_warnings,
    load_nifti,
)
from nnunet_softseg.io.results import (
    changed_outputs,
    json_copy,
    load_record,
    make_folder,
    output_hashes,
    relative_name,
    sha256,
    write_json,
)
from nnunet_softseg.labels.raters.agreement import Measures, RaterMeasure, agreement
from nnunet_softseg.labels.raters.fusion import FusionSettings, Mask, neighbourhood, staple, weighted_mean
from nnunet_softseg.labels.raters.sources import Content, RaterFile, rater_map, read_content
from nnunet_softseg.settings import HARD_THRESHOLD

MADE_BY = {"name": "nnunet-softseg", "version": __version__, "command": "fuse"}


@dataclass(frozen=True)
class LabelTask:
    """One soft label to make of a file per rater at hand; label: None for single files, no label maps."""

    label: int | None
    files: tuple[RaterFile, ...]
    output: Path

    @property
    def of_label(self) -> str:
        """The label, as it follows a sentence; empty without one."""
        return "" if self.label is None else f", label {self.label}"


@dataclass(frozen=True)
class CaseJob:
    """One case to fuse, a task per label; the image, or else the first rater's file, gives grid and header.

    `raters` is name -> weight, of all raters, whether they have this case or not.
    """

    case_id: str
    tasks: tuple[LabelTask, ...]
    raters: Mapping[str, float]
    settings: FusionSettings
    image: Path | None
    label_map: Path | None
    record: Path

    @property
    def reference(self) -> Path:
        """The file that gives grid and header."""
        return self.image or self.tasks[0].files[0].path

    @property
    def targets(self) -> list[Path]:
        """The NIfTI files to write."""
        return [*(task.output for task in self.tasks), *filter(None, [self.label_map])]

    def request(self) -> dict[str, Any]:
        """Return all that decides the result, sources by their SHA-256, as JSON gives it back."""
        sources = {task.label: {file.rater: _source(file.path) for file in task.files} for task in self.tasks}
        request = {
            "version": __version__,
            "method": self.settings.method,
            "margin_mm": self.settings.margin_mm,
            "weights": dict(self.raters) if self.settings.weights else None,
            "labels": self.settings.labels,  # whether they were asked for decides how a file is read
            "raters": list(self.raters),
            "sources": {str(label): of_label for label, of_label in sources.items()},
            "image": _source(self.image) if self.image else None,
        }
        return dict(json_copy(request))

    def is_ours(self, target: Path) -> bool:
        """Return whether a file that exists was written by an earlier call of this command for this case."""
        record, name = load_fusion_record(self.record), relative_name(target, self.record.parent)
        return record is not None and (target == self.record or name in record["outputs"])


def _source(file: Path) -> dict[str, str]:
    return {"file": file.name, "sha256": sha256(file)}


@dataclass(frozen=True)
class FusedCase:
    """Result of a case: agreement of the raters by label (None: single files), or why there is none."""

    case_id: str
    measures: Measures = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    up_to_date: bool = False
    failure: str | None = None


def fuse_case(job: CaseJob) -> FusedCase:
    """Write the soft labels of a case, its label map if wanted, and its record.

    Files of an earlier call, from the same sources and settings, are kept. A UserError for files that don't
    fit; nothing is written then.
    """
    # Before the sources are read: one that is changed meanwhile makes the record stale, not wrong.
    request = job.request()
    kept = _kept(job, request)
    if kept is not None:
        return kept
    before = load_fusion_record(job.record)
    soft_labels, fused = _fuse_labels(job)
    for folder in {target.parent for target in [*job.targets, job.record]}:
        make_folder(folder)
    names = [relative_name(target, job.record.parent) for target in job.targets]
    earlier = _outputs_of(job)
    lost = lost_changes(job.record.parent, {name: earlier[name] for name in names if name in earlier})
    _write(job, request, _outputs_of(job) | dict.fromkeys(names))
    outputs = [task.output for task in job.tasks]
    for output, soft_label in zip(outputs, soft_labels, strict=True):
        write_soft_label(output, soft_label, job.reference)
    if job.label_map:
        values = enumerate(task.label or 1 for task in job.tasks)
        write_label_map(job.label_map, outputs, sorted(values, key=lambda painted: painted[1]))
    finish(job, request, fused)
    if before and before.get("request") != request:  # else what is there still is of these raters
        _retire(job)
    return replace(fused, warnings=(*fused.warnings, *lost))  # not in the record: it is of this call


def discard(job: CaseJob) -> None:
    """Remove what earlier calls made of a case that cannot be fused any more, unless it was changed since."""
    names = {relative_name(target, job.record.parent) for target in job.targets}
    _remove_as_made(job, {name: known for name, known in _outputs_of(job).items() if name in names})
    _retire(job)
    record = load_fusion_record(job.record)
    if record is None:
        return
    there = {name: known for name, known in record["outputs"].items() if (job.record.parent / name).is_file()}
    if there:  # of other labels: the record tells whose they are
        write_json(job.record, {**record, "outputs": there})
    else:
        job.record.unlink()


def _retire(job: CaseJob) -> None:
    """Remove what earlier calls made of a case and this one does not, and take it from the record.

    What was changed since is no longer that, and stays; so do soft labels of others than were asked for, as a
    call may be for some labels, and the one of a single file.
    """
    if any(task.label is None for task in job.tasks):
        return
    others = job.settings.labels is None
    targets = {target.resolve() for target in job.targets}
    retired = {
        name: known
        for name, known in _outputs_of(job).items()
        if (job.record.parent / name).resolve() not in targets
        and (others or "/" in name or parse_numbered_name(name) is None)
    }
    _remove_as_made(job, retired)
    record = load_fusion_record(job.record)
    if record and retired:
        left = {name: known for name, known in record["outputs"].items() if name not in retired}
        write_json(job.record, {**record, "outputs": left})


def _remove_as_made(job: CaseJob, outputs: Mapping[str, str | None]) -> None:
    for name, known in outputs.items():
        file = job.record.parent / name
        if file.is_file() and known in (None, sha256(file)):
            file.unlink()


def _fuse_labels(job: CaseJob) -> tuple[list[Values], FusedCase]:
    """Return the soft label of each task, and the agreement and warnings of the case."""
    raise_first_error(file_findings(job.reference, several=PER_VOLUME if job.image else PER_LABEL))
    grid = VoxelGrid.of(load_nifti(job.reference))
    of = short_name(job.image) if job.image else job.tasks[0].files[0].shown
    contents = {}
    for path, file in {file.path: file for task in job.tasks for file in task.files}.items():
        contents[path] = read_content(file)
        raise_first_error(grid_findings(file.shown, grid, VoxelGrid.of(load_nifti(path)), of))
    soft_labels, measures = [], {}
    warnings = [*map(str, geometry_warnings(job.reference)), *_file_warnings(job, contents)]
    for task in job.tasks:
        soft_label, measures[task.label], more = _fuse_label(job, task, contents, grid)
        soft_labels.append(soft_label)
        warnings += more
    if overlap_findings([task.output for task in job.tasks], soft_labels):
        by_staple = job.settings.method == "staple"
        remedy = " (each label has its own STAPLE; those of --method mean do not)" if by_staple else ""
        warnings.append(f"the labels overlap, their sum exceeds 1 in some voxels{remedy}")
    return soft_labels, FusedCase(job.case_id, measures, tuple(warnings))


def _fuse_label(
    job: CaseJob, task: LabelTask, contents: Mapping[Path, Content], grid: VoxelGrid
) -> tuple[Values, list[RaterMeasure], list[str]]:
    """Return the soft label, the agreement of its raters, and warnings."""
    wanted = job.settings.labels
    read = {file.rater: rater_map(file, contents[file.path], task.label, wanted) for file in task.files}
    maps = {rater: values for rater, (values, _) in read.items()}
    warnings = [doubt for _, doubts in read.values() for doubt in doubts]
    by_staple = job.settings.method == "staple"
    for file in task.files if by_staple else ():
        number = int(np.count_nonzero((maps[file.rater] > 0) & (maps[file.rater] < 1)))
        if number:
            found = f"{number} voxels between them"
            remedy = "use --method mean: a threshold would throw their partial volume away"
            raise UserError(str(Finding(file.shown, "STAPLE takes masks only", "0 and 1", found, remedy)))
    masks = {rater: values > HARD_THRESHOLD for rater, values in maps.items()}
    region = neighbourhood(list(masks.values()), grid.steps_mm, job.settings.margin_mm)
    measures = agreement(maps, grid.voxel_mm3, region)
    warnings += _map_warnings(job, task, maps)
    if by_staple and len(maps) > 1:
        soft_label, of_raters, more = _staple(job, task, masks, region)
        measures, warnings = [*measures, *of_raters], [*warnings, *more]
    else:
        soft_label = weighted_mean(list(maps.values()), _weights_at_hand(job, task))
    volume_mm3 = float(soft_label.sum(dtype=np.float64)) * grid.voxel_mm3
    return soft_label, [*measures, RaterMeasure("fused_volume_mm3", value=volume_mm3)], warnings


def _staple(
    job: CaseJob, task: LabelTask, masks: Mapping[str, Mask], region: Mask
) -> tuple[Values, list[RaterMeasure], list[str]]:
    try:
        result = staple(list(masks.values()), region)
    except UserError as error:
        raise UserError(f"{printable(job.case_id)}{task.of_label}: {error}") from error
    skills = {"sensitivity": result.sensitivity, "specificity": result.specificity}
    measures = [
        RaterMeasure(name, rater, value=value)
        for name, values in skills.items()
        for rater, value in zip(masks, values, strict=True)
    ]
    warnings = [
        f"STAPLE finds {rater} worse than chance{task.of_label}: look at the masks, or use --method mean"
        for rater, sensitivity, specificity in zip(masks, *skills.values(), strict=True)
        if masks[rater].any() and sensitivity + specificity < 1
    ]
    if not result.converged:
        warnings.append(f"STAPLE did not converge{task.of_label}: do not trust it, use --method mean")
    return result.probability, measures, warnings


def _weights_at_hand(job: CaseJob, task: LabelTask) -> list[float]:
    weights = [job.raters[file.rater] for file in task.files]
    if not any(weights):
        raters = ", ".join(file.rater for file in task.files)
        raise UserError(
            f"{printable(job.case_id)}{task.of_label}: expected a rater with a weight above 0, found only "
            f"{raters}: give them a weight, or leave the case out"
        )
    return weights


def _file_warnings(job: CaseJob, contents: Mapping[Path, Content]) -> list[str]:
    """Name the labels of label maps beside those that are fused, if nobody has chosen these."""
    fused = {task.label for task in job.tasks}
    others = {label for content in contents.values() for label in content.meaning.labels or ()} - fused
    if job.settings.labels is not None or None in fused or not others:
        return []
    return [f"labels that are not fused: {examples([str(label) for label in sorted(others)])} (see --labels)"]


def _map_warnings(job: CaseJob, task: LabelTask, maps: Mapping[str, Values]) -> list[str]:
    of_label, warnings = task.of_label, []
    if len(maps) == 1:
        warnings.append(f"only one rater{of_label}: the soft label is that file, and no agreement is known")
    if len(maps) == 2 and job.settings.method == "staple":  # noqa: PLR2004
        remedy = "--method mean may serve better"
        warnings.append(f"STAPLE of two raters cannot tell who is right{of_label}: {remedy}")
    drawn = [rater for rater, values in maps.items() if values.any()]
    if not drawn:
        return [*warnings, f"nobody drew anything{of_label}"]
    warnings += [f"{rater} drew nothing{of_label}, others did" for rater in maps if rater not in drawn]
    return warnings + [
        f"{first} and {second} are identical{of_label}: two raters, or one file copied?"
        for first, second in itertools.combinations(drawn, 2)
        if np.array_equal(maps[first], maps[second])
    ]


def load_fusion_record(file: Path) -> dict[str, Any] | None:
    """Return a record of this command; None if the file is missing, broken or something else."""
    record = load_record(file, "made_by", "outputs")
    if record is None or not (isinstance(record["made_by"], dict) and isinstance(record["outputs"], dict)):
        return None
    ours = all(record["made_by"].get(key) == MADE_BY[key] for key in ("name", "command"))
    return record if ours else None


def _outputs_of(job: CaseJob) -> dict[str, str | None]:
    """Return path -> SHA-256 of the files that earlier calls have written for a case; None: not finished."""
    return dict((load_fusion_record(job.record) or {"outputs": {}})["outputs"])


def finish(job: CaseJob, request: Mapping[str, Any], fused: FusedCase) -> None:
    """Write the record of a case whose files are on disk."""
    by_label = {str(label): list(map(_as_json, measures)) for label, measures in fused.measures.items()}
    outputs = _outputs_of(job) | output_hashes(job.record.parent, job.targets)
    _write(job, request, outputs, agreement=by_label, warnings=list(fused.warnings))


def _write(job: CaseJob, request: Mapping[str, Any], outputs: Mapping[str, Any], **result: Any) -> None:
    # Where the files were, for the reader of the record; they may be elsewhere next time.
    paths = {file.shown: os.path.abspath(file.path) for task in job.tasks for file in task.files}
    paths |= {"image": os.path.abspath(job.image)} if job.image else {}
    about = {"made_by": MADE_BY, "case_id": job.case_id, "request": request, "files": paths}
    write_json(job.record, {**about, "outputs": outputs, **result})


def _kept(job: CaseJob, request: Mapping[str, Any]) -> FusedCase | None:
    """Return the case as it is on disk, or None if it is missing, stale, unfinished or changed."""
    record = load_fusion_record(job.record)
    if record is None or record.get("request") != request:
        return None
    if changed_outputs(job.record.parent, record["outputs"], job.targets):
        return None
    try:
        recorded = {task.label: record["agreement"][str(task.label)] for task in job.tasks}
        measures = {label: list(map(_from_json, entries)) for label, entries in recorded.items()}
        return FusedCase(job.case_id, measures, tuple(map(str, record["warnings"])), up_to_date=True)
    except (KeyError, TypeError, ValueError):
        return None


def _as_json(measure: RaterMeasure) -> dict[str, Any]:
    return {**measure._asdict(), "value": measure.value if math.isfinite(measure.value) else None}


def _from_json(entry: Mapping[str, Any]) -> RaterMeasure:
    value = math.nan if entry["value"] is None else float(entry["value"])
    return RaterMeasure(**{**entry, "value": value})
