"""Subject, session and contrast in a BIDS file name, and the place of a derivative."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunet_softseg.errors import UserError
from nnunet_softseg.io.nifti import without_nifti_ending

IMAGE_FOLDERS = ("anat", "dwi")
_MTS_BY_ACQUISITION = {"MTon": "mt-on", "MToff": "mt-off", "T1w": "mt-off"}
"""Names from before BIDS had `mt`; spine-generic's acq-T1w_MTS is flip-2_mt-off_MTS now."""
_NAME = re.compile(
    r"^(?P<subject>sub-[A-Za-z0-9]+)(_(?P<session>ses-[A-Za-z0-9]+))?"
    r"(?P<entities>(_[a-z]+-[A-Za-z0-9]+)*)_(?P<suffix>[A-Za-z0-9]+)(\.nii\.gz|\.nii)$"
)


@dataclass(frozen=True)
class BidsName:
    """A file name taken apart, `sub-01_ses-1_acq-sag_T2w.nii.gz`.

    Attributes:
        subject: with its key, `sub-01`.
        session: `ses-1`, or None.
        entities: the others by key, `{"acq": "sag"}`.
        suffix: `T2w`.
    """

    subject: str
    session: str | None
    entities: Mapping[str, str]
    suffix: str

    @property
    def contrast(self) -> str:
        """The suffix; of the family MTS, whose contrasts share it, `mt-on` or `mt-off`."""
        if self.suffix == "MTS" and "mt" in self.entities:
            return f"mt-{self.entities['mt']}"
        if self.suffix == "MTS":
            return _MTS_BY_ACQUISITION.get(self.entities.get("acq", ""), self.suffix)
        return self.suffix

    def told_apart(self, contrast: str, keys: Iterable[str]) -> str:
        """Return the name of a contrast behind those of the entities that this file has: `acq-sag_T2w`."""
        return "_".join([*(f"{key}-{self.entities[key]}" for key in keys if key in self.entities), contrast])

    @property
    def person(self) -> str:
        """Subject and session, `sub-01_ses-1`: what was scanned in one go."""
        return "_".join(part for part in (self.subject, self.session) if part)


def parse_bids_name(name: str) -> BidsName | None:
    """Return what the name of a NIfTI file says, or None if it is not BIDS."""
    match = _NAME.match(name)
    if match is None:
        return None
    entities = dict(entity.split("-") for entity in match["entities"].split("_") if entity)
    return BidsName(match["subject"], match["session"], entities, match["suffix"])


def bids_name_of(image: Path, bids: Path) -> BidsName:
    """Return what an image's name says.

    Args:
        image: inside `bids`.
        bids: for the message.

    Raises:
        UserError: if the name is not BIDS.
    """
    name = parse_bids_name(image.name)
    if name is None:
        raise UserError(
            f"{image.relative_to(bids)}: expected a BIDS name like sub-01_T2w.nii.gz: rename it, or move it "
            f"out of {'/'.join(IMAGE_FOLDERS)}"
        )
    return name


def derivative_file(image: Path, bids: Path, derivative: Path, suffix: str) -> Path:
    """Return where a derivative of an image lies: the same subfolders, `<source name><suffix>.nii.gz`.

    Args:
        image: inside `bids`.
        bids: root of the images.
        derivative: root of the derivatives.
        suffix: such as `_seg-manual`.
    """
    return derivative / image.parent.relative_to(bids) / f"{without_nifti_ending(image.name)}{suffix}.nii.gz"
