"""What the names of maps say: case, label, subject, contrast; by nnU-Net's rule, BIDS, or a user's pattern.

case_and_label(Path("sub-01_T2w_0001.nii.gz"))    # ("sub-01_T2w", 1)
Case.from_name("sub-01_ses-1_T2w").key            # ("sub-01", "ses-1", "T2w")
pattern_regex("{case}_seg.nii.gz", {}).match("sub-01_seg.nii.gz")["case"]
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunet_softseg.errors import UserError
from nnunet_softseg.io.bids import parse_bids_name
from nnunet_softseg.io.case_files import parse_numbered_name
from nnunet_softseg.io.nifti import without_nifti_ending

_FIELDS = re.compile(r"\{(\w*)\}|(\*)")
_SUBJECT = re.compile(r"^(?P<subject>sub-[A-Za-z0-9]+)(_(?P<session>ses-[A-Za-z0-9]+))?_(?P<rest>.+)$")
_DERIVATIVE = re.compile(r"_(label-|desc-|space-|(seg|mask|probseg|dseg|softseg)(?=[-_]|$)).*$")


@dataclass(frozen=True)
class Case:
    """One image.

    Attributes:
        case_id: its name in nnU-Net, `sub-01_ses-1_T2w`.
        subject: the independent unit of all statistics.
        session: "" if there is none.
        contrast: "" if nothing says which.
    """

    case_id: str
    subject: str
    session: str
    contrast: str

    @classmethod
    def from_name(cls, case_id: str, *, whole_rest: bool = False) -> "Case":
        """Return a case by `<subject>[_<session>]_<contrast>`; without `sub-`, a subject of its own.

        Args:
            case_id: its name.
            whole_rest: the contrast is all behind subject and session, not only what BIDS calls so.
        """
        match = _SUBJECT.match(case_id)
        if match is None:
            return cls(case_id, case_id, "", "")
        bids = None if whole_rest else parse_bids_name(f"{case_id}.nii.gz")
        return cls(
            case_id, match["subject"], match["session"] or "", bids.contrast if bids else match["rest"]
        )

    @property
    def key(self) -> tuple[str, str, str]:
        """Subject, session and contrast: one image of each method is paired by them."""
        return self.subject, self.session, self.contrast


def derivative_stem(stem: str) -> str:
    """Return the name of the image that a derivative is of: without `_label-...`, `_desc-...`, `_seg...`."""
    return _DERIVATIVE.sub("", stem) or stem


def case_and_label(file: Path, known_cases: Collection[str] = ()) -> tuple[str, int | None]:
    """Return what a file's name says: `<case>` or `<case>_<label, 4 digits>`.

    Args:
        file: a map.
        known_cases: `<case>.nii.gz` of one of them is taken as such even if its name ends in four digits.

    Raises:
        UserError: if it is named as the channel of an image.
    """
    stem = without_nifti_ending(file.name)
    numbered = None if stem in known_cases else parse_numbered_name(file.name)
    if numbered and numbered[1] == 0:
        raise UserError(
            f"{file}: expected a map <case>.nii.gz or <case>_<label, 4 digits>.nii.gz, found an image's "
            f"channel (_0000): give softLabelsTs or labelsTs, not imagesTs, or rename it "
            f"to {numbered[0]}.nii.gz"
        )
    return numbered or (stem, None)


def longest_prefix(stem: str, names: Collection[str]) -> str | None:
    """Return the longest name that the stem is, or begins with and goes on from with `_`."""
    parts = stem.split("_")
    shorter = ("_".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((name for name in shorter if name in names), None)


# Patterns


def check_pattern(pattern: str) -> str:
    """Return a pattern that names its case.

    Raises:
        UserError: if it has another field, or neither {case} nor {subject}.
    """
    fields = {match[1] for match in _FIELDS.finditer(pattern) if match[2] is None}
    known = {"case", "subject", "session", "contrast", "label"}
    if fields - known or not fields & {"case", "subject"}:
        raise UserError(
            f"pattern {pattern!r}: expected {{case}} in it, perhaps {{subject}}, {{session}}, {{contrast}}, "
            "{label} and *, such as '{case}_seg.nii.gz'"
        )
    return pattern


def pattern_regex(pattern: str, values: Mapping[str, str]) -> "re.Pattern[str]":
    """Return a pattern as a regular expression; fields without a value become groups."""
    groups = {"label": r"(?P<label>\d+)", "case": r"(?P<case>[^/]+)"}
    parts, end = [], 0
    for match in _FIELDS.finditer(pattern):
        parts.append(re.escape(pattern[end : match.start()]))
        name = match[1]
        if match[2]:
            parts.append("[^/]*")
        else:
            parts.append(re.escape(values[name]) if name in values else groups.get(name, "[^/]+"))
        end = match.end()
    return re.compile("".join([*parts, re.escape(pattern[end:])]) + r"\Z", re.DOTALL)
