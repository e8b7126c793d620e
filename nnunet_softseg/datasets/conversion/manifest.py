"""conversion.json: where every file of a dataset comes from, and whether it still is that dataset."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_softseg.datasets.conversion.inspection import Inspection
from nnunet_softseg.datasets.conversion.sources import Case, Sources
from nnunet_softseg.datasets.conversion.writing import case_files
from nnunet_softseg.datasets.subject_split import PARTS, Split
from nnunet_softseg.errors import UserError

MANIFEST = "conversion.json"
_IDENTITY = ("labels", "split", "cases")
_REMEDY = "remove it, or choose another dataset id"


def make_manifest(
    sources: Sources, cases: Sequence[Case], split: Split, inspections: Sequence[Inspection]
) -> dict[str, Any]:
    """Return where every file of one dataset comes from, with its SHA-256, as JSON gives it back.

    Args:
        sources: of all datasets.
        cases: of this one.
        split: of all subjects.
        inspections: of all cases.
    """
    hashes = {file: value for inspection in inspections for file, value in inspection.sha256.items()}
    return {
        "source_folder": str(sources.bids.resolve()),
        "soft_label_folder": str(sources.derivatives.resolve()),
        "labels": dict(sources.labels),
        "split": {part: list(getattr(split, part)) for part in PARTS},
        "cases": {case.case_id: _entry(case, sources, split, hashes) for case in cases},
        "left_out": {reason: list(images) for reason, images in sources.left_out.items()},
    }


def _entry(case: Case, sources: Sources, split: Split, hashes: Mapping[Path, str]) -> dict[str, Any]:
    return {
        "subject": case.subject,
        "contrast": case.contrast,
        "part": split.part_of(case.subject),
        "image": case.image.relative_to(sources.bids).as_posix(),
        "image_sha256": hashes[case.image],
        "soft_labels": {
            label: {"file": file.relative_to(sources.derivatives).as_posix(), "sha256": hashes[file]}
            for label, file in zip(sources.labels, case.soft_labels, strict=True)
        },
    }


def check_same(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise a UserError unless a dataset comes from the same sources with the same split, and is whole.

    Args:
        folder: of the dataset.
        manifest: what it should be; folders may have moved and other images may be left out since.
    """
    try:
        there = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        different = [key for key in _IDENTITY if there[key] != manifest[key]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder} exists and was not made by this command: {_REMEDY}") from None
    if different:
        raise UserError(f"{folder} exists with other content ({', '.join(different)} differ): {_REMEDY}")
    names = ["dataset.json", "splits_final.json"]
    for case_id, case in manifest["cases"].items():
        names += case_files(case_id, case["part"], len(manifest["labels"]))
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{folder} exists, but {name} is missing in it: {_REMEDY}")
