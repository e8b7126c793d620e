"""Which file belongs to which case, subject, contrast and label."""

import re
from pathlib import Path

from nnunet_softseg.io.nifti import NIFTI_ENDINGS

_NAME = re.compile(r"^(?P<case>.+)_(?P<label>\d{4})(\.nii|\.nii\.gz)$")


def soft_label_file(folder: Path, case_id: str, label: int) -> Path:
    """Return the file of one soft label; `.nii.gz` unless only a `.nii` is there.

    Args:
        folder: softLabelsTr, or the `soft` folder of a prediction.
        case_id: as in imagesTr, without the channel.
        label: its value in dataset.json.
    """
    compressed, plain = (folder / f"{case_id}_{label:04d}{ending}" for ending in NIFTI_ENDINGS)
    return plain if plain.exists() and not compressed.exists() else compressed


def parse_soft_label_name(name: str) -> tuple[str, int] | None:
    """Return (case_id, label) of a file name, or None if it is not the name of a soft label."""
    match = _NAME.match(name)
    return (match["case"], int(match["label"])) if match else None
