"""The command `drift`: does a new release of a model measure other areas than the old one?"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunet_softseg.errors import UserError
from nnunet_softseg.evaluation.releases.areas import MapSettings, ReleaseAreas, release_areas
from nnunet_softseg.evaluation.releases.drift_report import DriftReport
from nnunet_softseg.evaluation.releases.frozen_set import check_manifest, trained_on, version_of
from nnunet_softseg.evaluation.releases.limits import Limits, read_limits
from nnunet_softseg.evaluation.releases.normative import updated_table
from nnunet_softseg.evaluation.releases.page import write_drift_page
from nnunet_softseg.evaluation.releases.statistics import DRIFT_COLUMNS
from nnunet_softseg.evaluation.tables import made_by, write_csv
from nnunet_softseg.io.results import make_folder, sha256, write_json
from nnunet_softseg.metrics.morphometry.levels import parse_levels


def drift(
    old: str | Path,
    new: str | Path,
    output: str | Path,
    *,
    levels: str | Path | None = None,
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
    with `update`; other files there stay as they are.

    Args:
        old: folder of maps of the old release (of a folder of predictions the soft maps), or a CSV of areas,
            see `releases.areas.read_areas`.
        new: the same of the new release.
        output: folder; made if missing.
        levels: vertebral levels for maps: an image, or a folder where each map's is found by name.
        vert: levels to compare, such as (2, 3); all if not given.
        label: the label to measure, if maps have several.
        limits: JSON with names of `releases.limits.Limits`.
        manifest: SHA-256 of the files of the frozen set, see `releases.frozen_set.check_manifest`.
        update: CSV of normative areas of the old release, see `releases.normative.updated_table`.
        num_processes: maps measured at once.
        progress: show a bar.

    Raises:
        UserError: if the releases differ in cases, contrasts or levels, there is one subject only, the
            manifest does not fit, or a file cannot be used. Nothing is written then.
    """
    first, second = Path(old), Path(new)
    if levels is None and vert is not None and first.is_dir():
        raise UserError("--vert: expected --levels with it, found none: say where the levels are")
    if levels is not None and first.is_file():
        raise UserError("--levels: expected folders of maps with it, found tables: leave it out")
    chosen = Limits() if limits is None else read_limits(Path(limits))
    settings = MapSettings(
        None if levels is None else Path(levels),
        None if vert is None else parse_levels(vert),
        label,
        num_processes,
        progress,
    )
    areas = release_areas(first, second, settings)
    report = DriftReport(
        first,
        second,
        areas,
        chosen,
        limits_file=None if limits is None else Path(limits),
        trained_on=trained_on([first, second], _subjects(areas)),
        manifest_files=None if manifest is None else check_manifest(Path(manifest), _subjects(areas)),
        notes=_order(first, second),
    )
    updated = None if update is None else updated_table(Path(update), report.table, report.pooled)
    given = {
        "old": old,
        "new": new,
        "levels": levels,
        "limits": limits,
        "manifest": manifest,
        "update": update,
    }
    chosen_levels = list(settings.vert) if settings.vert else None
    parameters = {**_with_hashes(given), "vert": chosen_levels, "label": label}
    _write(report, Path(output), parameters)
    if update is not None and updated is not None:
        write_csv(Path(output) / f"{Path(update).stem}_updated.csv", updated)
    return report


def _with_hashes(given: Mapping[str, str | Path | None]) -> dict[str, Any]:
    """Return the paths given, and the SHA-256 of those that are files, as JSON can hold them."""
    files = [Path(file) for file in given.values() if file is not None and Path(file).is_file()]
    paths = {name: None if value is None else str(value) for name, value in given.items()}
    return {**paths, "sha256": {str(file): sha256(file) for file in files}}


def _write(report: DriftReport, folder: Path, parameters: Mapping[str, Any]) -> None:
    make_folder(folder)
    write_csv(folder / "drift.csv", report.table[[*DRIFT_COLUMNS]])
    write_json(folder / "drift.json", {"made_by": made_by("drift", parameters), **report.as_dict()})
    write_drift_page(report, folder / "drift.html")


def _subjects(areas: ReleaseAreas) -> set[str]:
    return {*areas.pairs["subject"], *areas.lost["subject"]}


def _order(old: Path, new: Path) -> tuple[str, ...]:
    """Say if the names of the releases hold versions in the other order: 10 comes after 2."""
    versions = version_of(old), version_of(new)
    if not all(versions) or versions[0] <= versions[1]:
        return ()
    names = [".".join(map(str, version)) for version in versions]
    return (
        f"--old names version {names[0]}, --new {names[1]}, an earlier one: look for a mix-up of the two",
    )
