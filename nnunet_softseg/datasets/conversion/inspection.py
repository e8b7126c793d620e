"""A look at every source before anything is written: what is wrong in it, and its hash."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_softseg.datasets.conversion.sources import Case
from nnunet_softseg.datasets.soft_label import overlap_findings
from nnunet_softseg.errors import Finding, UserError, examples
from nnunet_softseg.io.map_kind import content_findings
from nnunet_softseg.io.nifti import file_findings, load_nifti, stored_values
from nnunet_softseg.io.record import sha256
from nnunet_softseg.io.same_grid import affine_findings, shape_findings
from nnunet_softseg.io.workers import map_jobs


@dataclass(frozen=True)
class Inspection:
    """What a case holds.

    Attributes:
        case_id: of the case.
        findings: errors and warnings.
        sha256: by file; empty if there is an error.
        masks: soft labels that hold 0 and 1 only.
    """

    case_id: str
    findings: tuple[Finding, ...]
    sha256: dict[Path, str]
    masks: tuple[Path, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that forbid the conversion."""
        return tuple(finding for finding in self.findings if finding.severity == "error")


def inspect_cases(cases: Sequence[Case], *, num_processes: int, progress: bool) -> list[Inspection]:
    """Return what every case holds, in the order of the cases.

    Raises:
        UserError: if any case is not fit; it names the first fault and the number of the others.
    """
    inspections = map_jobs(
        inspect, cases, num_processes=num_processes, progress=progress, description="Looking at cases"
    )
    broken = [inspection for inspection in inspections if inspection.errors]
    if broken:
        others = [inspection.case_id for inspection in broken[1:]]
        more = f" (so are {len(others)} other cases: {examples(others)})" if others else ""
        raise UserError(f"case {broken[0].case_id} is not fit: {broken[0].errors[0]}{more}")
    return inspections


def inspect(case: Case) -> Inspection:
    """Return what one case holds; what is wrong in it is a finding."""
    findings = [*file_findings(case.image), *(f for file in case.soft_labels for f in file_findings(file))]
    if findings:
        return Inspection(case.case_id, tuple(findings), {}, ())
    image, soft_labels, masks = load_nifti(case.image), [], []
    for file in case.soft_labels:
        label = load_nifti(file)
        geometry = shape_findings(file, image.shape, label.shape)
        findings += geometry or affine_findings(file, image.affine, label.affine)
        soft_labels.append(stored_values(file))
        findings += content_findings(file, soft_labels[-1])
        if _is_mask(soft_labels[-1]):
            masks.append(file)
    if any(finding.severity == "error" for finding in findings):
        return Inspection(case.case_id, tuple(findings), {}, ())
    findings += overlap_findings(case.soft_labels, soft_labels)
    hashes = {file: sha256(file) for file in (case.image, *case.soft_labels)}
    return Inspection(case.case_id, tuple(findings), hashes, tuple(masks))


def _is_mask(soft_label: npt.NDArray[Any]) -> bool:
    return bool(np.isin(soft_label, (0, 1)).all()) and bool(soft_label.any())


def inspection_warnings(inspections: Sequence[Inspection]) -> list[str]:
    """Return one line for each kind of oddity, with the files that it was seen in."""
    grouped: dict[tuple[str, str], list[str]] = defaultdict(list)
    for inspection in inspections:
        for finding in inspection.findings:
            grouped[finding.what, finding.remedy].append(finding.file)
    lines = [
        f"{len(files)} of {len(inspections)} cases: {what} ({examples(files)}): {remedy}"
        for (what, remedy), files in grouped.items()
    ]
    masks = [file.name for inspection in inspections for file in inspection.masks]
    if masks:
        number = sum(bool(inspection.masks) for inspection in inspections)
        lines.append(
            f"{number} of {len(inspections)} cases: the soft label holds 0 and 1 only ({examples(masks)}): "
            "this is a mask; make soft labels (nnunet-softseg make-gt, fuse) or choose another --suffix, "
            "unless it is meant"
        )
    return lines
