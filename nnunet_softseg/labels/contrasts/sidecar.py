"""Sidecars of written labels, and their sources as BIDS URIs."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from nnunet_softseg import __version__
from nnunet_softseg.labels.contrasts.alignment import Alignment
from nnunet_softseg.labels.contrasts.average import SoftGroundTruth
from nnunet_softseg.settings import HARD_THRESHOLD

NAME = "nnunet-softseg"
SOFT_SUFFIX = "_label-SC_desc-softseg_probseg"
HARD_SUFFIX = "_label-SC_desc-softseg_seg"
_DIGITS = 4


@dataclass(frozen=True)
class Places:
    """The three folders of a run; paths in them are told as BIDS URIs.

    Attributes:
        bids: of the images.
        masks: inside of `bids` or not.
        output: of the derivatives.
    """

    bids: Path
    masks: Path
    output: Path

    def uri(self, file: Path) -> str:
        """Return `bids:raw:...` for a file of the images' folder, `bids:masks:...` for one of the masks'."""
        for name, folder in (("raw", self.bids), ("masks", self.masks)):
            if file.is_relative_to(folder):
                return f"bids:{name}:{file.relative_to(folder).as_posix()}"
        return file.name

    def links(self) -> dict[str, str]:
        """Return where the names in those URIs lead to, as `DatasetLinks` of dataset_description.json."""
        folders = {"raw": self.bids}
        if not self.masks.is_relative_to(self.bids):
            folders["masks"] = self.masks
        return {name: _relative(folder, self.output) for name, folder in folders.items()}


def _relative(folder: Path, start: Path) -> str:
    try:
        return Path(os.path.relpath(folder, start)).as_posix()
    except ValueError:  # another drive
        return folder.absolute().as_uri()


def generated_by(command: str) -> dict[str, str]:
    """Return what made a file, as an entry of `GeneratedBy`."""
    return {"Name": NAME, "Version": __version__, "Command": command}


@dataclass(frozen=True)
class Origin:
    """What all labels of a subject have in common.

    Attributes:
        sources: BIDS URI -> SHA-256 of the images and masks that took part.
        parameters: of the run.
        command: that makes them again.
    """

    sources: Mapping[str, str]
    parameters: Mapping[str, Any]
    command: str


def soft_sidecar(contrast: str, image: str, truth: SoftGroundTruth, origin: Origin) -> dict[str, Any]:
    """Return the sidecar of a soft label.

    Args:
        contrast: whose grid it is on.
        image: BIDS URI of its image.
        truth: soft labels and alignments of the subject.
        origin: of the subject's labels.
    """
    return {
        "Description": "Share of each voxel that is spinal cord: the mean of masks of several contrasts",
        "Type": "ROI",
        "Label": "SC",
        "Sources": list(origin.sources),
        "SourcesSHA256": dict(origin.sources),
        "SpatialReference": image,
        "Contrast": contrast,
        "Reference": truth.reference,
        "Alignment": _alignment(truth.contrasts[contrast]),
        "Agreement": {name: _rounded(one.agreement) for name, one in truth.contrasts.items()},
        "Doubts": {name: list(one.warnings) for name, one in truth.contrasts.items() if one.warnings},
        "Skipped": dict(truth.skipped),
        "Parameters": dict(origin.parameters),
        "GeneratedBy": [generated_by(origin.command)],
    }


def hard_sidecar(soft_label: str, image: str, origin: Origin) -> dict[str, Any]:
    """Return the sidecar of the mask that a soft label was made into.

    Args:
        soft_label: BIDS URI of it.
        image: BIDS URI of its image.
        origin: of the subject's labels.
    """
    return {
        "Description": f"Voxels of which more than {HARD_THRESHOLD:g} is spinal cord",
        "Type": "ROI",
        "Label": "SC",
        "Sources": [soft_label],
        "SpatialReference": image,
        "Threshold": HARD_THRESHOLD,
        "GeneratedBy": [generated_by(origin.command)],
    }


def _alignment(alignment: Alignment) -> dict[str, Any]:
    """Return an alignment slice by slice of the reference, from inferior to superior."""
    return {
        "HeightMm": _list(alignment.height_mm),
        "ShiftRightMm": _list(alignment.shift_mm[:, 0]),
        "ShiftAnteriorMm": _list(alignment.shift_mm[:, 1]),
        "RotationDeg": _list(alignment.rotation_deg),
        "Measured": [bool(one) for one in alignment.measured],
        "Coverage": _list(alignment.coverage),
    }


def _list(values: npt.NDArray[Any]) -> list[float | None]:
    return [_rounded(value) for value in values]


def _rounded(value: float) -> float | None:
    """Return a number as JSON can hold it: NaN is not in its standard."""
    number = round(float(value), _DIGITS) + 0.0  # no -0.0
    return number if abs(number) < float("inf") else None
