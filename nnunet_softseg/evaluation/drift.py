"""The command `drift`: does a new release of a model measure other areas than the old one? And its page."""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.evaluation.cases import training_cases
from nnunet_softseg.evaluation.comparison.paired_statistics import limits_of_agreement
from nnunet_softseg.evaluation.releases.areas import level_kind, level_word, names_of, release_areas
from nnunet_softseg.evaluation.releases.drift_report import (
    DRIFT_COLUMNS,
    DriftReport,
    Limits,
    read_limits,
    updated_table,
)
from nnunet_softseg.evaluation.report.drawing import as_svg, drawing, new_figure
from nnunet_softseg.evaluation.report.wording import shortened
from nnunet_softseg.evaluation.tables import made_by, write_csv
from nnunet_softseg.io.case_files import Case, folds_trained_on, longest_prefix, parse_numbered_name
from nnunet_softseg.io.formats import is_image, without_ending
from nnunet_softseg.io.html import render_page, template, write_page
from nnunet_softseg.io.results import load_json, load_record, make_folder, remove_files, sha256, write_json
from nnunet_softseg.metrics.morphometry.levels import LevelKind, parse_levels

_LINE = re.compile(r"^([0-9a-f]{64}) [ *](.+)$", re.IGNORECASE)
_NUMBERS = r"(?:(?:v|r|release)[-_]?(\d+(?:\.\d+)*)|(\d+(?:\.\d+)+))"
_VERSION = re.compile(rf"(?:^|[^a-z0-9.]){_NUMBERS}(?![a-z0-9])", re.IGNORECASE)
_COLOUR, _BAD, _GREY = "#0072B2", "#B3261E", "#6b757f"
_HALF_ROW = 0.5
_INCHES_A_ROW = 0.24


def drift(
    old: str | Path,
    new: str | Path,
    output: str | Path,
    *,
    levels: str | Path | None = None,
    level_names: LevelKind | None = None,
    vert: int | str | Iterable[int | str] | None = None,
    label: int | None = None,
    limits: str | Path | None = None,
    manifest: str | Path | None = None,
    update: str | Path | None = None,
    num_processes: int = 2,
    progress: bool = True,
) -> DriftReport:
    """Return, and write, how the areas of two releases differ on the same people, and whether that is drift.

    Writes drift.json, drift.csv and drift.html to the output folder, and `<name of the table>_updated.csv`
    with `update`, in place of that of an earlier call; other files there stay as they are.

    Args:
        old: folder of maps of the old release (of a folder of predictions the soft maps), or a CSV of areas,
            see `releases.areas.release_areas`: columns subject (or file), csa_mm2, perhaps session, contrast,
            level and slice.
        new: the same of the new release.
        output: folder; made if missing.
        levels: levels for maps: an image, or a folder where each map's is found by name.
        level_names: "spinal" (8 is C8) or "vertebral" (8 is T1); None: as the JSON beside tables of `csa`
            says, else vertebral.
        vert: levels to compare, such as (2, 3); all if not given.
        label: the label to measure, if maps have several.
        limits: JSON with names of `releases.drift_report.Limits`.
        manifest: SHA-256 of the files of the frozen set, as `sha256sum` writes them, a line
            `<SHA-256>  <path>` each, or JSON {path: SHA-256}; paths begin at its folder.
        update: CSV of normative areas of the old release, see `releases.drift_report.updated_table`.
        num_processes: maps measured at once.
        progress: show a bar.

    Raises:
        UserError: if the releases differ in cases, contrasts or levels, there is one subject only, the
            manifest does not fit, or a file cannot be used. Nothing is written then.
    """
    first, second = Path(old), Path(new)
    _refuse_unfit(first, levels=levels, vert=vert, label=label)
    chosen = Limits() if limits is None else read_limits(Path(limits))
    kind = level_names or level_kind(first, second)
    wanted = None if vert is None else parse_levels(vert, kind)
    areas = release_areas(
        first,
        second,
        levels=None if levels is None else Path(levels),
        vert=wanted,
        label=label,
        kind=kind,
        num_processes=num_processes,
        progress=progress,
    )
    subjects = {*areas.pairs["subject"], *areas.lost["subject"]}
    report = DriftReport(
        first,
        second,
        areas,
        chosen,
        limits_file=None if limits is None else Path(limits),
        trained_on=_trained_on([first, second], subjects),
        manifest_files=None if manifest is None else _check_manifest(Path(manifest), subjects),
        notes=_order(first, second),
    )
    updated = None if update is None else updated_table(Path(update), report.table, report.pooled, kind)
    given = {"old": old, "new": new, "levels": levels}
    given |= {"limits": limits, "manifest": manifest, "update": update}
    files = [Path(file) for file in given.values() if file is not None and Path(file).is_file()]
    parameters = {
        **{name: None if path is None else str(path) for name, path in given.items()},
        "sha256": {str(file): sha256(file) for file in files},
        "level_names": kind,
        "vert": list(wanted) if wanted else None,
        "label": label,
    }
    folder = Path(output)
    make_folder(folder)
    _forget_updated(folder, files)
    _write(report, folder, parameters)
    if update is not None and updated is not None:
        write_csv(_updated_file(folder, update), updated)
    return report


def _write(report: DriftReport, folder: Path, parameters: Mapping[str, Any]) -> None:
    write_csv(folder / "drift.csv", report.table[[*DRIFT_COLUMNS]])
    write_json(folder / "drift.json", {"made_by": made_by("drift", parameters), **report.as_dict()})
    write_drift_page(report, folder / "drift.html")


def _updated_file(folder: Path, update: str | Path) -> Path:
    return folder / f"{Path(update).stem}_updated.csv"


def _forget_updated(folder: Path, given: Collection[Path]) -> None:
    """Remove the normal values that an earlier call brought to its new release, unless they are given now."""
    match load_record(folder / "drift.json", "made_by"):
        case {"made_by": {"parameters": {"update": str(update)}}}:
            outdated = _updated_file(folder, update)
            if outdated.resolve() not in {file.resolve() for file in given}:
                remove_files([outdated])


def _refuse_unfit(old: Path, *, levels: Any, vert: Any, label: int | None) -> None:
    """Refuse options that tables, or maps without levels, do not go with."""
    if levels is None and vert is not None and old.is_dir():
        raise UserError("--vert: expected --levels with it, found none: say where the levels are")
    if levels is not None and old.is_file():
        raise UserError("--levels: expected folders of maps with it, found tables: leave it out")
    if label is not None and old.is_file():
        raise UserError(
            "--label: expected folders of maps with it, found tables, of which csa_mm2 is compared: leave it "
            "out, or make the tables with csa --label"
        )


# The frozen set of people


def _check_manifest(file: Path, subjects: Collection[str]) -> int:
    """Return how many files of the frozen set are as a manifest says; refuse changes and other subjects."""
    listed = _read_manifest(file)
    missing = [name for name in listed if not (file.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{file}: expected {len(listed)} files beside it, found {len(missing)} missing: "
            f"{examples(missing)}: restore the frozen set"
        )
    changed = [name for name, known in listed.items() if sha256(file.parent / name) != known.lower()]
    if changed:
        raise UserError(
            f"{file}: expected files with the SHA-256 listed, found {len(changed)} changed: "
            f"{examples(changed)}: restore the frozen set, or freeze a new one for both releases"
        )
    images = (Path(name).name for name in listed if is_image(name))
    known = {_subject_of(name, subjects) for name in images}
    left_out, strange = sorted(known - {*subjects}), sorted({*subjects} - known)
    if left_out or strange:
        raise UserError(
            f"{file}: expected the {len(known)} subjects of the manifest, found {len(left_out)} left out "
            f"({examples(left_out) or 'none'}) and {len(strange)} that it does not list "
            f"({examples(strange) or 'none'}): compare the releases on the whole frozen set"
        )
    return len(listed)


def _subject_of(name: str, subjects: Collection[str]) -> str:
    """Return whose an image or a level image is, by its name, which may go on from that of a case."""
    numbered, stem = parse_numbered_name(name), without_ending(name)
    subject = Case.from_name(stem).subject
    if subject in subjects:
        return subject
    return longest_prefix(stem, subjects) or (Case.from_name(numbered[0]).subject if numbered else subject)


def _read_manifest(file: Path) -> dict[str, str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{file}: expected a manifest, found: {reason}: check the path") from error
    if text.lstrip().startswith("{"):
        content = load_json(file)
        lines = [f"{digest}  {name}" for name, digest in content.items()]
    else:
        lines = [line for line in text.splitlines() if line.strip()]
    matches = [_LINE.match(line) for line in lines]
    if not lines or None in matches:
        found = f"line {matches.index(None) + 1}: {lines[matches.index(None)][:60]!r}" if lines else "none"
        raise UserError(f"{file}: expected lines <SHA-256>  <path>, found {found}: make it with sha256sum")
    return {match[2]: match[1] for match in matches if match}


def _trained_on(releases: Collection[Path], subjects: Collection[str]) -> dict[str, list[str]]:
    """Return release -> subjects that it was trained on, by softseg.json in or above its folder."""
    found = {}
    for release in releases:
        seen = training_cases(release if release.is_dir() else release.parent)
        known = sorted(subject for subject in set(subjects) if folds_trained_on(subject, seen))
        if known:
            found[str(release)] = known
    return found


def version_of(release: Path) -> tuple[int, ...]:
    """Return the version in a release's name, (2, 10) of `model_v2.10`, of its folder's if it has none.

    A number is a version behind v, r or release, or with a dot in it.
    """
    parts = [release.name.removesuffix(".csv"), *release.absolute().parts[:-1][::-1]]
    found = [match for part in parts if (match := _VERSION.search(part))]
    return tuple(map(int, (found[0][1] or found[0][2]).split("."))) if found else ()


def _order(old: Path, new: Path) -> tuple[str, ...]:
    """Say if the names of the releases hold versions in the other order: 10 comes after 2."""
    versions = version_of(old), version_of(new)
    if not all(versions) or versions[0] <= versions[1]:
        return ()
    names = [".".join(map(str, version)) for version in versions]
    return (
        f"--old names version {names[0]}, --new {names[1]}, an earlier one: look for a mix-up of the two",
    )


# The page: verdict, bias, people that changed most, limits


def write_drift_page(report: DriftReport, file: Path) -> None:
    """Write the page: one file, nothing from elsewhere, printable."""
    rows, kind = report.judged, report.areas.kind
    context = {
        "drift": report.drift,
        "verdict": report.verdict,
        "old": report.old,
        "new": report.new,
        "subjects": report.pairs["subject"].nunique(),
        "areas": len(report.pairs),
        "warnings": report.warnings,
        "lost": names_of(report.areas.lost, kind),
        "rows": _named(rows, kind),
        "worst": _named(report.worst.assign(name=names_of(report.worst, kind)), kind),
        "spread": _named(report.spread, kind),
        "limits": report.limits,
        "limits_file": report.limits_file,
        "limits_shown": [*dataclasses.asdict(report.limits).items()],
        "bias_figure": as_svg(draw_bias(report), "bias of the new release by contrast and level"),
        "agreement_figure": as_svg(draw_agreement(report), "differences against means of both releases"),
    }
    write_page(file, render_page("Drift between two releases", template("drift.html"), context))


def _named(table: pd.DataFrame, kind: LevelKind) -> list[dict[str, Any]]:
    """Return rows for the page: levels by name, rounding errors as 0."""
    numbers = table.select_dtypes("float").apply(lambda column: column.round(9))
    names = [level_word(level, kind) for level in table["level"]]
    rows: list[dict[str, Any]] = table.assign(level_name=names, **numbers).to_dict("records")
    return rows


@drawing()
def draw_bias(report: DriftReport) -> Figure:
    """Draw the bias of each contrast and level with its interval, in percent of the old mean area."""
    rows = report.judged.iloc[::-1]
    labels = [
        " ".join(filter(None, (shortened(str(contrast)), level_word(level, report.areas.kind)))) or "all"
        for contrast, level in zip(rows["contrast"], rows["level"], strict=True)
    ]
    places = np.arange(len(rows))
    figure = new_figure(6.5, 1.1 + _INCHES_A_ROW * len(rows))
    axis = figure.subplots()
    axis.axvline(0, color=_GREY, lw=0.8)
    for side in (-1, 1):
        limits = side * rows["limit_percent"]
        axis.vlines(limits, places - _HALF_ROW, places + _HALF_ROW, colors=_GREY, lw=1, ls="--")
    colours = [_BAD if broken else _COLOUR for broken in rows["beyond"]]
    axis.hlines(places, rows["bias_percent_low"], rows["bias_percent_high"], colors=colours)
    axis.scatter(rows["bias_percent"], places, c=colours, s=22, zorder=3)
    axis.set(xlabel="new − old, % of the old area", ylim=(-0.7, len(rows) - 0.3))  # noqa: RUF001
    axis.set_yticks(places, labels)
    return figure


@drawing()
def draw_agreement(report: DriftReport) -> Figure:
    """Draw differences against means of both releases, with the bias and limits of agreement of all."""
    old, new = report.pairs["old"], report.pairs["new"]
    difference = new - old
    agreement = limits_of_agreement(difference, report.pairs["subject"])
    figure = new_figure(6.5, 3.2)
    axis = figure.subplots()
    axis.scatter((old + new) / 2, difference, s=9, color=_COLOUR, alpha=0.5, lw=0)
    axis.axhline(agreement.bias, color=_GREY, lw=1)
    for end in (agreement.low, agreement.high):
        axis.axhline(end, color=_GREY, lw=1, ls="--")
    axis.set(xlabel="mean of both, mm²", ylabel="new − old, mm²")  # noqa: RUF001
    return figure
