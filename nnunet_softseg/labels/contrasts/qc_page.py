"""The quality page of a cohort, from the records of its subjects: what deserves a look comes first."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup

from nnunet_softseg.io.atomic import make_folder
from nnunet_softseg.io.html import render_page, template, write_page
from nnunet_softseg.labels.contrasts.outlined_picture import SAGITTAL, UNITS_PER_PIXEL, OutlinedPicture
from nnunet_softseg.labels.contrasts.qc_plot import Line, Pair, height_plot, pair_plot, value_range
from nnunet_softseg.labels.contrasts.quality import ContrastQuality, SubjectQuality

RECORDS = Path("qc", "subjects")
FAILURES = Path("qc", "failed.json")
PAGE = Path("qc", "index.html")

COLOURS = 8
"""So many colours has the page's style; more contrasts share them."""
TALLEST_SAGITTAL = 2.0
"""Height of the longest sagittal picture of a subject over the width of its column."""
_PLAIN_NAME = re.compile(r"^[A-Za-z][\w-]*$")
_LEAST_SHIFT_MM = 2.0
_LEAST_AREA_MM2 = 10.0
_PERCENT = 100.0


@dataclass(frozen=True)
class Worst:
    """The contrast of a subject that stands out, and its number."""

    value: float
    contrast: str


@dataclass(frozen=True)
class ShownPicture:
    """A picture with its place in the column.

    Attributes:
        drawn: the picture.
        width_percent: of the column.
        top_percent: room above it, in percent of the column's width, so that heights of contrasts line up.
    """

    drawn: OutlinedPicture
    width_percent: float = 100.0
    top_percent: float = 0.0

    @property
    def box(self) -> str:
        """The picture in the units of its lines, as an SVG viewBox."""
        return f"0 0 {self.drawn.columns * UNITS_PER_PIXEL} {self.drawn.rows * UNITS_PER_PIXEL}"


@dataclass(frozen=True)
class ShownContrast:
    """A contrast with its colour and pictures."""

    quality: ContrastQuality
    colour: str
    axial: Sequence[ShownPicture]
    sagittal: Sequence[ShownPicture]

    @property
    def csa_change_percent(self) -> float | None:
        """How much larger the soft label is than the hard mask."""
        before, after = self.quality.csa_before_mm2, self.quality.csa_after_mm2
        return None if before is None or after is None or before <= 0 else _PERCENT * (after / before - 1)


@dataclass(frozen=True)
class ShownSubject:
    """A subject as the page tells of it.

    Attributes:
        record: what was measured and drawn.
        anchor: id of its section.
        contrasts: with colours.
        plots: SVG.
    """

    record: SubjectQuality
    anchor: str
    contrasts: Sequence[ShownContrast]
    plots: Sequence[Markup] = field(repr=False)

    @property
    def reasons(self) -> list[tuple[str, str]]:
        """Contrast and reason of all that deserves a look."""
        found = []
        for contrast in self.record.contrasts:
            found += [(contrast.name, doubt) for doubt in contrast.doubts]
            if contrast.left_out is not None:
                found.append((contrast.name, f"left out: {contrast.left_out}"))
        return found

    @property
    def rank(self) -> tuple[int, float]:
        """Sorts what deserves a look to the top: doubts by agreement, then contrasts left out, then notes."""
        doubtful = [contrast for contrast in self.record.contrasts if contrast.doubts]
        if doubtful:
            return 0, min(contrast.agreement or 0.0 for contrast in doubtful)
        return (1 if self.reasons else 2 if self.record.notes else 3), 0.0

    @property
    def agreement(self) -> Worst | None:
        """The lowest one."""
        found = [Worst(c.agreement, c.name) for c in self.record.contrasts if c.agreement is not None]
        return min(found, key=lambda worst: worst.value, default=None)

    @property
    def shift(self) -> Worst | None:
        """The largest one, in mm."""
        found = [
            Worst(c.largest_shift_mm, c.name)
            for c in self.record.contrasts
            if c.largest_shift_mm is not None and c.name != self.record.reference
        ]
        return max(found, key=lambda worst: worst.value, default=None)

    @property
    def csa_change(self) -> Worst | None:
        """The largest one, in percent, with its sign."""
        changes = [(c.csa_change_percent, c.quality.name) for c in self.contrasts]
        found = [Worst(change, name) for change, name in changes if change is not None]
        return max(found, key=lambda worst: abs(worst.value), default=None)

    @property
    def csa_before_mm2(self) -> float | None:
        """Mean over contrasts."""
        return _mean(c.csa_before_mm2 for c in self.record.contrasts if c.left_out is None)

    @property
    def csa_after_mm2(self) -> float | None:
        """Mean over contrasts."""
        return _mean(c.csa_after_mm2 for c in self.record.contrasts if c.left_out is None)


@dataclass(frozen=True)
class CohortContrast:
    """One contrast over all subjects: medians of what took part in the averages, and how much did not."""

    name: str
    colour: str
    images: int
    doubtful: int
    left_out: int
    agreement: float | None
    shift_mm: float | None
    csa_before_mm2: float | None
    csa_after_mm2: float | None


def write_qc_page(derivatives: Path) -> Path:
    """Return `qc/index.html` of a derivatives folder, written from `qc/subjects/*.json` and `qc/failed.json`.

    A record that cannot be read is listed among the failures: one broken file hides no other subject.

    Args:
        derivatives: the folder that make_gt writes.

    Raises:
        UserError: if the page cannot be written.
    """
    failed = _read_failures(derivatives / FAILURES)
    records, unreadable = _read_records(derivatives / RECORDS)
    html = qc_page(records, {**unreadable, **failed})
    make_folder((derivatives / PAGE).parent)
    write_page(derivatives / PAGE, html)
    return derivatives / PAGE


def qc_page(records: Sequence[SubjectQuality], failed: dict[str, str]) -> str:
    """Return the page.

    Args:
        records: of the subjects, in any order.
        failed: subject -> what went wrong.
    """
    colours = _colours(records)
    subjects = [_shown(record, colours, number) for number, record in enumerate(records)]
    subjects.sort(key=lambda subject: (subject.rank, _natural(subject.record.name)))
    context = {
        "style_of_page": Markup(template("qc.css")),
        "script_of_page": Markup(template("qc.js")),
        "subjects": subjects,
        "failed": sorted(failed.items(), key=lambda item: _natural(item[0])),
        "contrasts": [_cohort_contrast(subjects, name, colour) for name, colour in colours.items()],
        "settings": _settings(records),
        "std_before": _median(subject.record.csa_std_before_mm2 for subject in subjects),
        "std_after": _median(subject.record.csa_std_after_mm2 for subject in subjects),
    }
    return render_page("Quality of the soft ground truth", template("qc.html"), context)


# Reading


def _read_records(folder: Path) -> tuple[list[SubjectQuality], dict[str, str]]:
    records, unreadable = [], {}
    for file in sorted(folder.glob("*.json")):
        if file.name.startswith("."):
            continue  # what an interrupted job was writing
        try:
            records.append(SubjectQuality.from_dict(json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            unreadable[file.stem] = (
                f"qc/subjects/{file.name} cannot be read ({type(error).__name__}: {error}): "
                "delete it and run make-gt again"
            )
    return records, unreadable


def _read_failures(file: Path) -> dict[str, str]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {str(subject): str(message) for subject, message in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        return {"qc/failed.json": f"cannot be read ({error}): run make-gt again"}


# From records to what is shown


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts sub-2 before sub-10."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _colours(records: Iterable[SubjectQuality]) -> dict[str, str]:
    """Return a CSS class for each contrast of the cohort, in the order in which they come."""
    names = dict.fromkeys(contrast.name for record in records for contrast in record.contrasts)
    return {name: f"c{number % COLOURS}" for number, name in enumerate(names)}


def _shown(record: SubjectQuality, colours: dict[str, str], number: int) -> ShownSubject:
    scale = _sagittal_scale(record)
    contrasts = [
        ShownContrast(
            contrast,
            colours[contrast.name],
            [ShownPicture(drawn) for drawn in contrast.pictures if drawn.plane != SAGITTAL],
            [_placed(drawn, *scale) for drawn in contrast.pictures if drawn.plane == SAGITTAL],
        )
        for contrast in record.contrasts
    ]
    anchor = record.name if _PLAIN_NAME.match(record.name) else f"subject-{number}"
    return ShownSubject(record, anchor, contrasts, _plots(record, colours))


def _sagittal_scale(record: SubjectQuality) -> tuple[float, float]:
    """Return the mm that are as wide as the column, and the scanner z of the highest sagittal picture."""
    drawn = [one for contrast in record.contrasts for one in contrast.pictures if one.plane == SAGITTAL]
    top = max((one.height_mm for one in drawn), default=0.0)
    bottom = min((one.height_mm - one.length_mm for one in drawn), default=0.0)
    widest = max((one.width_mm for one in drawn), default=1.0)
    return max(widest, (top - bottom) / TALLEST_SAGITTAL), top


def _placed(drawn: OutlinedPicture, column_mm: float, top_mm: float) -> ShownPicture:
    share = _PERCENT / column_mm
    return ShownPicture(drawn, round(share * drawn.width_mm, 3), round(share * (top_mm - drawn.height_mm), 3))


def _plots(record: SubjectQuality, colours: dict[str, str]) -> list[Markup]:
    taking_part = [contrast for contrast in record.contrasts if contrast.left_out is None]
    areas = [curve for c in taking_part for curve in (c.area_before, c.area_after)]
    heights = value_range((z for curve in areas for z in curve.height_mm), least=10.0)
    mm2 = value_range((area for curve in areas for area in curve.value), least=_LEAST_AREA_MM2)
    shifts = [(c, colours[c.name]) for c in taking_part]
    moved = value_range(_shown_shifts(taking_part, heights), least=_LEAST_SHIFT_MM, around=0.0)
    pairs = [Pair(colours[c.name], c.name, c.csa_before_mm2, c.csa_after_mm2) for c in record.contrasts]
    means = [mean for pair in pairs for mean in (pair.before, pair.after) if mean is not None]
    return [
        height_plot(
            [Line(css, c.shift_rl.value, c.shift_rl.height_mm, c.measured) for c, css in shifts],
            "shift to the right, mm",
            moved,
            heights,
        ),
        height_plot(
            [Line(css, c.shift_ap.value, c.shift_ap.height_mm, c.measured) for c, css in shifts],
            "shift to anterior, mm",
            moved,
            heights,
        ),
        height_plot(
            [Line(css, c.area_before.value, c.area_before.height_mm) for c, css in shifts],
            "area before: hard masks, mm²",
            mm2,
            heights,
        ),
        height_plot(
            [Line(css, c.area_after.value, c.area_after.height_mm) for c, css in shifts],
            "area after: soft labels, mm²",
            mm2,
            heights,
        ),
        pair_plot(pairs, "mean area, mm²", value_range(means, least=_LEAST_AREA_MM2)),
    ]


def _shown_shifts(contrasts: Iterable[ContrastQuality], heights_mm: tuple[float, float]) -> Iterator[float]:
    for contrast in contrasts:
        for curve in (contrast.shift_rl, contrast.shift_ap):
            for z, value in zip(curve.height_mm, curve.value, strict=True):
                if heights_mm[0] <= z <= heights_mm[1]:
                    yield value


def _cohort_contrast(subjects: Iterable[ShownSubject], name: str, colour: str) -> CohortContrast:
    found = [c for subject in subjects for c in subject.record.contrasts if c.name == name]
    return CohortContrast(
        name=name,
        colour=colour,
        images=len(found),
        doubtful=sum(bool(c.doubts) for c in found),
        left_out=sum(c.left_out is not None for c in found),
        agreement=_median(c.agreement for c in found),
        shift_mm=_median(c.largest_shift_mm for c in found),
        csa_before_mm2=_median(c.csa_before_mm2 for c in found),
        csa_after_mm2=_median(c.csa_after_mm2 for c in found),
    )


def _settings(records: Iterable[SubjectQuality]) -> list[tuple[str, int]]:
    """Return each variant of version and settings in words, and how many subjects were made with it."""
    counted: dict[str, int] = {}
    for record in records:
        parts = [_in_words(name, value) for name, value in record.settings.items()]
        words = ", ".join([f"nnunet-softseg {record.version}", *parts])
        counted[words] = counted.get(words, 0) + 1
    return sorted(counted.items(), key=lambda item: -item[1])


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


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(median(known)) if known else None
