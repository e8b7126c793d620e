"""Quality control page of a cohort, from the records of its subjects: what deserves a look comes first."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

from markupsafe import Markup
from PIL import Image, UnidentifiedImageError

from nnunet_softseg.io.html import render_page, template, write_page
from nnunet_softseg.io.results import make_folder
from nnunet_softseg.labels.contrasts.quality import ContrastQuality, SubjectQuality, known
from nnunet_softseg.labels.contrasts.subject import RECORD_FOLDER, SubjectOutcome, picture_file

FAILURES = Path("qc", "failed.json")

_Extreme = tuple[float | None, str]  # a number, and the contrast that has it


@dataclass(frozen=True)
class _Subject:
    """A subject as the page shows it."""

    outcome: SubjectOutcome
    made_with: str  # version and settings, in words
    picture: str | None  # address, relative to the page
    size: tuple[int, int]  # of the picture, columns and rows

    @property
    def quality(self) -> SubjectQuality:
        return self.outcome.quality

    @property
    def reasons(self) -> list[tuple[str, str]]:
        """Contrast and reason of all that deserves a look."""
        return [(contrast.name, reason) for contrast in self.quality.contrasts for reason in contrast.reasons]

    @property
    def rank(self) -> tuple[int, float]:
        """Sorts what deserves a look to the top: warnings by agreement, contrasts left out, notes."""
        implausible = [contrast for contrast in self.quality.contrasts if contrast.warnings]
        if implausible:
            return 0, min(contrast.agreement or 0.0 for contrast in implausible)
        return (1 if self.reasons else 2 if self.outcome.all_notes else 3), 0.0

    @property
    def extremes(self) -> list[_Extreme]:
        """Lowest agreement, largest shift in mm, largest change of the area in percent."""
        contrasts = self.quality.contrasts
        moved = [one for one in contrasts if one.name != self.outcome.reference]
        return [
            _first(((one.agreement, one.name) for one in contrasts), lambda value: value),
            _first(((one.largest_shift_mm, one.name) for one in moved), lambda value: -value),
            _first(((one.csa_change_percent, one.name) for one in contrasts), lambda value: -abs(value)),
        ]

    def mean_csa_mm2(self, when: str) -> float | None:
        """Return the mean over contrasts, "before" or "after"."""
        contrasts = [contrast for contrast in self.quality.contrasts if contrast.left_out is None]
        areas = known(getattr(contrast, f"csa_{when}_mm2") for contrast in contrasts)
        return sum(areas) / len(areas) if areas else None


def _first(found: Iterable[_Extreme], order: Callable[[float], float]) -> _Extreme:
    ranked = [(order(value), value, name) for value, name in found if value is not None]
    return min(ranked, key=lambda one: one[0])[1:] if ranked else (None, "")


def write_qc_page(derivatives: Path) -> Path:
    """Return `qc/index.html` of a derivatives folder, made from the records and `qc/failed.json`.

    A record that cannot be read is listed among the failures: one broken file hides no other subject. The
    pictures stay beside the page, so that it opens at once with hundreds of subjects.

    Raises:
        UserError: if the page cannot be written.
    """
    subjects, unreadable = _read_records(derivatives)
    failed = {**unreadable, **_read_failures(derivatives / FAILURES)}
    subjects.sort(key=lambda subject: (subject.rank, _natural(subject.outcome.person)))
    contrasts: dict[str, list[ContrastQuality]] = {}
    for subject in subjects:
        for contrast in subject.quality.contrasts:
            contrasts.setdefault(contrast.name, []).append(contrast)
    context = {
        "style_of_page": Markup(template("qc.css")),
        "script_of_page": Markup(template("qc.js")),
        "subjects": subjects,
        "failed": sorted(failed.items(), key=lambda item: _natural(item[0])),
        "contrasts": contrasts,
        "made_with": Counter(subject.made_with for subject in subjects).most_common(),
        "std_before": _median(subject.quality.csa_std_before_mm2 for subject in subjects),
        "std_after": _median(subject.quality.csa_std_after_mm2 for subject in subjects),
        "median": _median,
    }
    page = derivatives / "qc" / "index.html"
    make_folder(page.parent)
    title, body = "Quality of the soft ground truth", template("qc.html")
    write_page(page, render_page(title, body, context, images="'self' file:"))
    return page


# Reading


def _read_records(derivatives: Path) -> tuple[list[_Subject], dict[str, str]]:
    subjects, unreadable = [], {}
    for file in sorted((derivatives / RECORD_FOLDER).glob("*.json")):
        if file.name.startswith("."):
            continue  # what an interrupted job was writing
        try:
            subjects.append(_subject(derivatives, json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            unreadable[file.stem] = (
                f"{(RECORD_FOLDER / file.name).as_posix()} cannot be read ({type(error).__name__}: {error}): "
                "delete it and run make-gt again"
            )
    return subjects, unreadable


def _subject(derivatives: Path, record: Mapping[str, Any]) -> _Subject:
    outcome = SubjectOutcome.from_dict(record["outcome"])
    parts = [_in_words(name, value) for name, value in record["request"]["parameters"].items()]
    made_with = ", ".join([f"nnunet-softseg {record['request']['version']}", *parts])
    file = picture_file(derivatives, outcome.person)
    try:
        with Image.open(file) as picture:
            size = picture.size
    except (OSError, UnidentifiedImageError):
        return _Subject(outcome, made_with, None, (0, 0))
    return _Subject(outcome, made_with, quote(f"{file.parent.name}/{file.name}"), size)


def _read_failures(file: Path) -> dict[str, str]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {str(subject): str(message) for subject, message in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        return {"qc/failed.json": f"cannot be read ({error}): run make-gt again"}


# Words and numbers


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts sub-2 before sub-10."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _in_words(name: str, value: Any) -> str:
    """Return a setting as one says it: `trim_mm`, 8.0 -> `trim 8 mm`."""
    unit = " mm" if name.endswith("_mm") else ""
    label = name.removesuffix("_mm").replace("_", " ")
    if isinstance(value, bool):
        return f"{label} {'yes' if value else 'no'}"
    if isinstance(value, list | tuple):
        return f"{label} {' '.join(map(str, value))}"
    if isinstance(value, int | float):
        return f"{label} {value:g}{unit}"
    return f"{label} {'all' if value is None else value}"


def _median(values: Iterable[float | None]) -> float | None:
    numbers = known(values)
    return float(median(numbers)) if numbers else None
