"""The one exception for mistakes that a user can mend, and the one finding about a user's data."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal


class UserError(ValueError):
    """A mistake in the data or the call, told in one line: what, where, expected, found, what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def show_without_traceback(
    explain: Callable[[BaseException], UserError | None] = lambda error: None,
) -> None:
    """Let this process end on a `UserError` with its one line, as nnU-Net's own commands catch nothing.

    `explain` returns the mistake of the user behind an error of nnU-Net's; None: there is none, or not known.
    """
    shown_by = sys.excepthook
    if getattr(shown_by, "_nnunet_softseg", False):
        return

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        mistake = error if isinstance(error, UserError) else explain(error)
        if mistake:
            print(f"nnunet-softseg: error: {mistake}", file=sys.stderr)
        else:
            shown_by(kind, error, traceback)

    show._nnunet_softseg = True  # type: ignore[attr-defined]
    sys.excepthook = show


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


def short_name(file: Path | str) -> str:
    """Return the name of a file with that of its folder, enough to find it in a dataset; a str as it is."""
    if isinstance(file, str):
        return file
    return f"{file.parent.name}/{file.name}" if file.parent.name else file.name


def raise_first_error(findings: Iterable[Finding]) -> None:
    """Raise the first error among the findings, if there is one.

    Raises:
        UserError: with the finding as its message.
    """
    for finding in findings:
        if finding.severity == "error":
            raise UserError(str(finding))


def unfit(case: str, error: UserError) -> Finding:
    """Return the finding for a case whose files stopped the work on it."""
    return Finding(case, "cannot be looked at", "files that can be read", str(error), "repair or remove it")


def grouped(findings: Iterable[Finding], num_cases: int | None = None) -> list[str]:
    """Return one line for each kind of finding with a few of its files; of one per case, say of how many."""
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for finding in dict.fromkeys(findings):
        kinds.setdefault((finding.what, finding.remedy), []).append(finding)
    of = f" of {num_cases} cases" if num_cases else " file(s)"
    return [
        f"{len(alike)}{of}: {what} ({examples([each.file for each in alike])}): expected "
        f"{alike[0].expected}, found {alike[0].found}{', ...' * (len(alike) > 1)}: {remedy}"
        for (what, remedy), alike in kinds.items()
    ]


def examples(names: Sequence[str], most: int = 3) -> str:
    """Return the first few of many names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def printable(name: str | Path) -> str:
    """Return a name without what would break a line, a table or the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(name))
