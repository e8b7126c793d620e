"""One thing that is wrong, or odd, in a user's data."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nnunet_softseg.errors import UserError


@dataclass(frozen=True)
class Finding:
    """What is wrong in which file, with the way out.

    Attributes:
        file: where, as `folder/name`.
        what: one clause, what is wrong.
        expected: what should be there.
        found: what is there.
        remedy: what to do.
        severity: "error": training would fail or learn something else than meant. "warning": legal, but look
            at it.
    """

    file: str
    what: str
    expected: str
    found: str
    remedy: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        """Return it in one line."""
        line = f"{self.file}: {self.what}: expected {self.expected}, found {self.found}: {self.remedy}"
        return " ".join(line.split())


def short_name(file: Path) -> str:
    """Return the name of a file with that of its folder, enough to find it in a dataset."""
    return f"{file.parent.name}/{file.name}"


def raise_first_error(findings: Iterable[Finding]) -> None:
    """Raise the first error among the findings, if there is one.

    Raises:
        UserError: with the finding as its message.
    """
    for finding in findings:
        if finding.severity == "error":
            raise UserError(str(finding))


def examples(names: Sequence[str], most: int = 3) -> str:
    """Return the first few of many names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
