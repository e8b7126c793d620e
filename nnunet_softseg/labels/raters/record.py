"""The task of a case, its result, and the record of both on disk.

The record (`<case>.json`) is written before the files, without their hashes, and again after them. So the
folder tells, even after a kill, whether a file is ours to replace and whether it is up to date.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_softseg import __version__
from nnunet_softseg.io.atomic import write_json
from nnunet_softseg.io.record import (
    changed_outputs,
    json_copy,
    load_record,
    output_hashes,
    relative_name,
    sha256,
)
from nnunet_softseg.labels.raters.agreement import RaterMeasure
from nnunet_softseg.labels.raters.fusion import FusionSettings
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

    @property
    def of_label(self) -> str:
        """The label, as it follows a sentence; empty without one."""
        return "" if self.label is None else f", label {self.label}"


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
    def files(self) -> dict[Path, RaterFile]:
        """The files of all raters and labels, each once."""
        return {file.path: file for task in self.tasks for file in task.files}

    @property
    def reference(self) -> Path:
        """The file that gives grid and header."""
        return self.image or self.tasks[0].files[0].path

    @property
    def targets(self) -> list[Path]:
        """The NIfTI files to write."""
        return [*(task.output for task in self.tasks), *([self.label_map] if self.label_map else [])]

    def request(self) -> dict[str, Any]:
        """Return all that decides the result, sources by their SHA-256, as JSON gives it back.

        Raises:
            UserError: if a source cannot be read.
        """
        request = {
            "version": __version__,
            "method": self.settings.method,
            "margin_mm": self.settings.margin_mm,
            "weights": dict(self.raters) if self.settings.weights else None,
            "raters": list(self.raters),
            "sources": {
                str(task.label): {file.rater: _source(file.path) for file in task.files}
                for task in self.tasks
            },
            "image": _source(self.image) if self.image else None,
        }
        copied: dict[str, Any] = json_copy(request)
        return copied

    def is_ours(self, target: Path) -> bool:
        """Return whether a file that exists was written by an earlier call of this command for this case."""
        record = load_fusion_record(self.record)
        if record is None:
            return False
        return target == self.record or relative_name(target, self.record.parent) in record["outputs"]


def _source(file: Path) -> dict[str, str]:
    return {"file": file.name, "sha256": sha256(file)}


@dataclass(frozen=True)
class FusedCase:
    """Result of a case.

    Attributes:
        case_id: its name.
        measures: per label, how well its raters agree; None for single files that are no label maps.
        warnings: without the name of the case.
        up_to_date: nothing had to be done.
        failure: why there is no soft label; None: there is.
    """

    case_id: str
    measures: Mapping[int | None, list[RaterMeasure]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    up_to_date: bool = False
    failure: str | None = None


def load_fusion_record(file: Path) -> dict[str, Any] | None:
    """Return a record of this command; None if the file is missing, broken or something else."""
    record = load_record(file, "made_by", "outputs")
    if record is None or not isinstance(record["made_by"], dict) or not isinstance(record["outputs"], dict):
        return None
    ours = all(record["made_by"].get(key) == MADE_BY[key] for key in ("name", "command"))
    return record if ours else None


def begin(job: CaseJob, request: Mapping[str, Any]) -> None:
    """Write the record of a case whose files are about to be written."""
    earlier = load_fusion_record(job.record)
    # What an earlier call wrote for other labels stays ours to replace.
    outputs: dict[str, str | None] = dict.fromkeys(earlier["outputs"]) if earlier else {}
    outputs |= dict.fromkeys(relative_name(target, job.record.parent) for target in job.targets)
    write_json(job.record, {**_about(job, request), "outputs": outputs})


def finish(job: CaseJob, request: Mapping[str, Any], fused: FusedCase) -> None:
    """Write the record of a case whose files are on disk."""
    outputs = (load_fusion_record(job.record) or {"outputs": {}})["outputs"]
    outputs |= output_hashes(job.record.parent, job.targets)
    agreement = {
        str(label): [_as_json(one) for one in of_label] for label, of_label in fused.measures.items()
    }
    result = {"agreement": agreement, "warnings": list(fused.warnings)}
    write_json(job.record, {**_about(job, request), "outputs": outputs, **result})


def _about(job: CaseJob, request: Mapping[str, Any]) -> dict[str, Any]:
    # Where the files were, for the reader of the record; they may be elsewhere next time.
    paths = {file.shown: os.path.abspath(file.path) for task in job.tasks for file in task.files}
    paths |= {"image": os.path.abspath(job.image)} if job.image else {}
    return {"made_by": MADE_BY, "case_id": job.case_id, "request": request, "files": paths}


def kept(job: CaseJob, request: Mapping[str, Any]) -> FusedCase | None:
    """Return the case as it is on disk, or None if it is missing, stale, unfinished or changed."""
    record = load_fusion_record(job.record)
    if record is None or record.get("request") != request:
        return None
    if changed_outputs(job.record.parent, record["outputs"], job.targets):
        return None
    try:
        measures = {
            task.label: [_from_json(entry) for entry in record["agreement"][str(task.label)]]
            for task in job.tasks
        }
        return FusedCase(job.case_id, measures, tuple(map(str, record["warnings"])), up_to_date=True)
    except (KeyError, TypeError, ValueError):
        return None


def _as_json(measure: RaterMeasure) -> dict[str, Any]:
    return {**measure._asdict(), "value": measure.value if math.isfinite(measure.value) else None}


def _from_json(entry: Mapping[str, Any]) -> RaterMeasure:
    value = math.nan if entry["value"] is None else float(entry["value"])
    return RaterMeasure(str(entry["name"]), str(entry["rater"]), str(entry["other_rater"]), value)
