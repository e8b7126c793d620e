"""What is asked of a case, what became of it, and the record of that on disk.

The record (`<case>.json`) is written before the files, without their hashes, and again after them. So what is
there tells, even after a kill, whether a file is ours to replace and whether it is up to date.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_softseg import __version__
from nnunet_softseg.io.atomic import write_json
from nnunet_softseg.io.record import sha256
from nnunet_softseg.labels.raters.agreement import Measure
from nnunet_softseg.labels.raters.settings import FusionSettings
from nnunet_softseg.labels.raters.sources import RaterFile

MADE_BY = {"name": "nnunet-softseg", "version": __version__, "command": "fuse"}


@dataclass(frozen=True)
class LabelTask:
    """One soft label to make.

    Attributes:
        label: its value; None: single files that are no label maps.
        files: one per rater at hand.
        output: NIfTI file to write.
    """

    label: int | None
    files: tuple[RaterFile, ...]
    output: Path


@dataclass(frozen=True)
class CaseJob:
    """One case to fuse.

    Attributes:
        case_id: for tables and messages.
        tasks: one per label.
        raters: name -> weight, of all raters, whether they have this case or not.
        settings: how to fuse.
        image: gives grid and header; None: the first rater's file does.
        label_map: file to write with soft > 0.5; None: not wanted.
        record: JSON file to write.
    """

    case_id: str
    tasks: tuple[LabelTask, ...]
    raters: Mapping[str, float]
    settings: FusionSettings
    image: Path | None
    label_map: Path | None
    record: Path

    @property
    def targets(self) -> list[Path]:
        """The NIfTI files that the case will have."""
        return [*(task.output for task in self.tasks), *([self.label_map] if self.label_map else [])]


@dataclass(frozen=True)
class FusedCase:
    """What became of a case.

    Attributes:
        case_id: its name.
        measures: per label, how well its raters agree; None for single files that are no label maps.
        warnings: without the name of the case.
        up_to_date: nothing had to be done.
        failure: why there is no soft label; None: there is.
    """

    case_id: str
    measures: Mapping[int | None, list[Measure]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    up_to_date: bool = False
    failure: str | None = None


def begin(job: CaseJob, request: Mapping[str, Any]) -> None:
    """Write the record of a case whose files are about to be written."""
    earlier = load_record(job.record)
    # What an earlier call wrote for other labels stays ours to replace.
    outputs: dict[str, str | None] = dict.fromkeys(earlier["outputs"]) if earlier else {}
    outputs |= {_relative(target, job.record): None for target in job.targets}
    write_json(job.record, {**_about(job, request), "outputs": outputs})


def finish(job: CaseJob, request: Mapping[str, Any], fused: FusedCase) -> None:
    """Write the record of a case whose files are on disk."""
    outputs = (load_record(job.record) or {"outputs": {}})["outputs"]
    outputs |= {_relative(target, job.record): sha256(target) for target in job.targets}
    write_json(job.record, {**_about(job, request), "outputs": outputs, **_as_json(fused)})


def _about(job: CaseJob, request: Mapping[str, Any]) -> dict[str, Any]:
    return {"made_by": MADE_BY, "case_id": job.case_id, "request": request, "files": _paths(job)}


def is_ours(job: CaseJob, target: Path) -> bool:
    """Return whether a file that exists was written by an earlier call of this command for this case."""
    record = load_record(job.record)
    return record is not None and (target == job.record or _relative(target, job.record) in record["outputs"])


def load_record(file: Path) -> dict[str, Any] | None:
    """Return a record of this command; None if the file is missing, broken or something else."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        made_by = record["made_by"]
        ours = made_by["command"] == MADE_BY["command"] and made_by["name"] == MADE_BY["name"]
        return record if ours and isinstance(record["outputs"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def kept(job: CaseJob, request: Mapping[str, Any]) -> FusedCase | None:
    """Return the case as it is on disk, or None if it is missing, stale, unfinished or changed."""
    record = load_record(job.record)
    if record is None or record.get("request") != request:
        return None
    for target in job.targets:
        known = record["outputs"].get(_relative(target, job.record))
        if known is None or not target.is_file() or sha256(target) != known:
            return None
    try:
        return _from_json(job, record)
    except (KeyError, TypeError, ValueError):
        return None


def request_of(job: CaseJob) -> dict[str, Any]:
    """Return all that decides the result, sources by their SHA-256, as JSON gives it back.

    Raises:
        UserError: if a source cannot be read.
    """
    request = {
        "version": __version__,
        "method": job.settings.method,
        "margin_mm": job.settings.margin_mm,
        "weights": dict(job.raters) if job.settings.weights else None,
        "raters": list(job.raters),
        "sources": {
            str(task.label): {
                file.rater: {"file": file.path.name, "sha256": sha256(file.path)} for file in task.files
            }
            for task in job.tasks
        },
        "image": {"file": job.image.name, "sha256": sha256(job.image)} if job.image else None,
    }
    as_json: dict[str, Any] = json.loads(json.dumps(request))
    return as_json


def _paths(job: CaseJob) -> dict[str, str]:
    """Return where the files were, for the reader of the record; they may be elsewhere next time."""
    paths = {file.shown: os.path.abspath(file.path) for task in job.tasks for file in task.files}
    return paths | ({"image": os.path.abspath(job.image)} if job.image else {})


def _relative(target: Path, record: Path) -> str:
    try:
        return Path(os.path.relpath(target, record.parent)).as_posix()
    except ValueError:  # another drive
        return target.absolute().as_posix()


def _as_json(fused: FusedCase) -> dict[str, Any]:
    measures = {
        str(label): [{**measure._asdict(), "value": _finite(measure.value)} for measure in of_label]
        for label, of_label in fused.measures.items()
    }
    return {"agreement": measures, "warnings": list(fused.warnings)}


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _from_json(job: CaseJob, record: Mapping[str, Any]) -> FusedCase:
    measures = {
        task.label: [
            Measure(
                str(entry["name"]),
                str(entry["rater"]),
                str(entry["other_rater"]),
                float("nan") if entry["value"] is None else float(entry["value"]),
            )
            for entry in record["agreement"][str(task.label)]
        ]
        for task in job.tasks
    }
    return FusedCase(job.case_id, measures, tuple(map(str, record["warnings"])), up_to_date=True)
