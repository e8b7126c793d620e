"""The command `csa`: maps -> a CSV of slices, one of levels, and a picture."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_softseg import __version__
from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.io.case_files import (
    Case,
    case_and_label,
    derivative_stem,
    list_files,
    numbers_are_labels,
)
from nnunet_softseg.io.case_matching import companion_files, folder_of_maps
from nnunet_softseg.io.formats import ANY_FORMAT, is_picture, without_ending
from nnunet_softseg.io.nifti import geometry_warnings, load_nifti
from nnunet_softseg.io.results import make_folder, replacing, write_json
from nnunet_softseg.io.workers import succeeded, try_jobs
from nnunet_softseg.metrics.morphometry.centreline import SMOOTHING_MM
from nnunet_softseg.metrics.morphometry.levels import SUMMARY_COLUMNS, level_name, level_summary, parse_levels
from nnunet_softseg.metrics.morphometry.slice_table import COLUMNS, slice_morphometry

PICTURES = (".png", ".svg", ".pdf")
Files = str | Path | Iterable[str | Path]


@dataclass(frozen=True)
class _Job:
    map_file: Path
    levels: Path | None
    discs: Path | None


def csa(
    maps: Files,
    *,
    levels: Files | None = None,
    discs: Files | None = None,
    vert: int | str | Iterable[int | str] | None = None,
    label: int | None = None,
    smoothing_mm: float = SMOOTHING_MM,
    output: str | Path | None = None,
    summary: str | Path | None = None,
    figure: str | Path | None = None,
    num_processes: int = 1,
    progress: bool = False,
) -> pd.DataFrame:
    """Return, and write if asked to, the area and shape of each slice of soft maps.

    Args:
        maps: NIfTI files, or a folder with them (not its subfolders; other files are passed over); of a
            folder of predictions the soft maps in its folder soft/.
        levels: vertebral levels: an image for all maps, one per map in the same order, or a folder where
            each map's is found by name (`companions_in`).
        discs: points at the discs instead, in the same ways; 3 is C2/C3.
        vert: levels to keep, such as (2, 3), "2:3" or "C2:C3".
        label: the value to measure in integer label maps.
        smoothing_mm: length over which the centreline is smooth.
        output: CSV of the slices, with a JSON of the same name that explains its columns.
        summary: CSV of the levels, likewise: mean and STD per level and of `vert`.
        figure: PNG, SVG or PDF of the areas along S-I, all slices, `vert` in green.
        num_processes: maps measured at once.
        progress: show a bar.

    Returns:
        `file` and the columns of `slice_table.COLUMNS`, one row per map and slice, in the order of the
        stored arrays; with `vert`, the slices of these levels only. `attrs["warnings"]` lists what is odd,
        `attrs["failed"]` the maps that have no row, and why.

    Raises:
        UserError: if no map can be measured: its file cannot be used, or it has no level asked for.
    """
    targets = _Targets.checked(output, summary, figure)
    wanted = None if vert is None else parse_levels(vert)
    if levels is not None and discs is not None:
        raise UserError("csa: expected --levels or --discs, found both: give one")
    if wanted and levels is None and discs is None:
        raise UserError(
            f"csa: level {level_name(wanted)} is asked for: expected a level image (--levels) or points at "
            "the discs (--discs), found neither"
        )
    files = _map_files(maps)
    of_levels, of_discs = _companions(levels, files, "level"), _companions(discs, files, "disc")
    jobs = [_Job(*paths) for paths in zip(files, of_levels, of_discs, strict=True)]
    outcomes = try_jobs(
        partial(_measure_file, label=label, smoothing_mm=smoothing_mm, wanted=wanted),
        jobs,
        lambda job: str(job.map_file),
        num_processes=num_processes,
        progress=progress,
        description="csa",
    )
    measured = succeeded(outcomes)
    warnings = [*dict.fromkeys(line for table in measured for line in table.attrs.pop("warnings"))]
    every_slice = pd.concat(measured, ignore_index=True)
    table = every_slice[every_slice["level"].isin(wanted)].reset_index(drop=True) if wanted else every_slice
    parameters = {
        "maps": [str(file) for file in files],
        "levels": sorted({str(job.levels) for job in jobs if job.levels}),
        "discs": sorted({str(job.discs) for job in jobs if job.discs}),
        "vert": list(wanted) if wanted else None,
        "label": label,
        "smoothing_mm": smoothing_mm,
    }
    targets.write(every_slice, table, wanted, parameters)
    table.attrs["warnings"] = warnings
    table.attrs["failed"] = [str(outcome) for outcome in outcomes if isinstance(outcome, UserError)]
    return table


def csa_overview(table: pd.DataFrame) -> str:
    """Return in words the mean and STD of the area of each map, over the slices of a table of `csa`."""
    files = table["file"].unique()
    folders = examples(sorted({str(Path(file).parent) for file in files}))
    lines = [f"{len(files)} maps measured, in {folders}"]
    for file, slices in table.groupby("file", sort=False):
        soft, hard = slices["csa_mm2"].dropna(), slices["csa_hard_mm2"].dropna()
        spread = f", STD {soft.std(ddof=1):.2f}" if len(soft) > 1 else ""
        area = f"CSA {soft.mean():.2f} mm2{spread} over " if len(soft) else "no area: "
        lines.append(f"{file}: {area}{_slices_in_words(slices)}; map > 0.5: {hard.mean():.2f} mm2")
    # A file name may hold bytes that are no text; a terminal refuses them.
    return "\n".join(lines).encode(errors="backslashreplace").decode()


def _slices_in_words(slices: pd.DataFrame) -> str:
    """Return how many slices of one map were measured, which, of what levels, and how many were empty."""
    there = slices.loc[slices["csa_mm2"].notna(), ["slice", "level"]]
    in_levels, levels = (
        there["level"].dropna(),
        sorted(int(level) for level in slices["level"].dropna().unique()),
    )
    words = f"{len(there)} slice{'s' * (len(there) != 1)}"
    if len(there):
        words += f" ({'-'.join(map(str, dict.fromkeys((there['slice'].min(), there['slice'].max()))))})"
    if levels and len(in_levels) < len(there):
        words += f", of which {len(in_levels)} in {level_name(levels)}"
    elif levels:
        words += f", {level_name(levels)}"
    empty = len(slices) - len(there)
    return words + (f", {empty} empty" if empty and len(in_levels) == len(there) else "")


def _measure_file(
    job: _Job, *, label: int | None, smoothing_mm: float, wanted: Sequence[int] | None
) -> pd.DataFrame:
    table = slice_morphometry(
        load_nifti(job.map_file),
        levels=load_nifti(job.levels) if job.levels else None,
        discs=load_nifti(job.discs) if job.discs else None,
        label=label,
        smoothing_mm=smoothing_mm,
    )
    for file in filter(None, (job.map_file, job.levels, job.discs)):
        table.attrs["warnings"] += map(str, geometry_warnings(file))
    if wanted:
        _check_levels(table, job, wanted)
    table.insert(0, "file", str(job.map_file))
    return table


def _check_levels(table: pd.DataFrame, job: _Job, wanted: Sequence[int]) -> None:
    there = sorted(int(level) for level in table["level"].dropna().unique())
    missing = [level for level in wanted if level not in there]
    if not missing or (job.discs and table["csa_mm2"].isna().all()):
        return
    names = ", ".join(level_name([level]) for level in there) or "no level"
    found = (
        f"{job.levels or job.discs}: expected slices of {level_name(wanted)} in {job.map_file}, found {names}"
    )
    if len(missing) == len(wanted):
        remedy = "choose other levels with --vert"
        if job.discs:
            remedy += "; a level needs the disc above and the one below it"
        raise UserError(f"{found}: {remedy}")
    table.attrs["warnings"].append(f"{found}: the mean is that of a part")


# Which files


def _paths(given: Files) -> list[Path]:
    return [Path(file) for file in ([given] if isinstance(given, str | Path) else given)]


def _map_files(maps: Files) -> list[Path]:
    files: list[Path] = []
    for item in _paths(maps):
        if item.is_dir():
            files += list_files(folder_of_maps(item), subfolders=False, formats=ANY_FORMAT).files
        else:
            files.append(item)
    pictures = [str(file) for file in files if is_picture(file.name)]
    if pictures:
        raise UserError(
            f"csa: expected maps that say where S-I is, found {examples(pictures)}: the "
            "sum of a picture's values is its area in pixels (soft_volume_mm3 in softseg.json)"
        )
    if not files:
        raise UserError("csa: expected at least one map, found none: give NIfTI files or a folder with them")
    twice = sorted({str(file) for file in files if files.count(file) > 1})
    if twice:
        raise UserError(f"csa: expected each map once, found {twice[0]} twice: leave one out")
    return files


def _companions(given: Files | None, maps: Sequence[Path], kind: str) -> list[Path | None]:
    if given is None:
        return [None] * len(maps)
    paths = _paths(given)
    if len(paths) == 1 and paths[0].is_dir():
        return [*companions_in(paths[0], maps, kind)]
    if len(paths) == 1:
        return [paths[0]] * len(maps)
    if len(paths) != len(maps):
        raise UserError(
            f"csa: expected one {kind} image for all maps, one per map ({len(maps)}) or a folder, found "
            f"{len(paths)}"
        )
    return list(paths)


def companions_in(folder: Path, maps: Sequence[Path], kind: str) -> list[Path]:
    """Return the level or disc image of each map, from a folder with its subfolders.

    The map's name is tried as it is, without the label of a soft map (`_0001`), and without what a derivative
    adds (`_label-...`, `_desc-...`, `_seg...`), then its subject, session and contrast (`sub-01_mt-on` is
    `sub-01_flip-1_mt-on_MTS`); see `companion_files`. Maps in the folder do not count.

    Raises:
        UserError: if a map has none, or more than one.
    """
    images = list_files(folder, expected=f"{kind} images")
    stems: dict[str, list[str]] = {}
    cases = []
    by_label = numbers_are_labels(maps) is not False
    for file in maps:
        stem, (case_id, _) = without_ending(file.name), case_and_label(file, numbered_by_label=by_label)
        stems[str(file)] = list(dict.fromkeys((stem, case_id, derivative_stem(stem))))
        cases.append(replace(Case.from_name(derivative_stem(case_id)), case_id=str(file)))
    found = companion_files(images, stems, kind, cases=cases, not_these=maps)
    for name, tried in stems.items():
        if name not in found:
            names = " or ".join(f"{stem}[_...].nii.gz" for stem in tried)
            raise UserError(
                f"{name}: {kind} image not found in {folder}: expected one file named {names}, found none "
                f"among {len(images.files)} images: rename it, or give one {kind} image per map in the same "
                "order"
            )
    return [found[str(file)] for file in maps]


# What is written


@dataclass(frozen=True)
class _Targets:
    """The files to write, each None if not asked for."""

    output: Path | None
    summary: Path | None
    figure: Path | None

    @classmethod
    def checked(
        cls, output: str | Path | None, summary: str | Path | None, figure: str | Path | None
    ) -> "_Targets":
        """Refuse names of another type before anything is measured."""
        wanted: list[Path | None] = []
        for path, endings in ((output, (".csv",)), (summary, (".csv",)), (figure, PICTURES)):
            if path and Path(path).suffix.lower() not in endings:
                raise UserError(f"{path}: expected a file name that ends in {' or '.join(endings)}")
            if path and Path(path).is_dir():
                raise UserError(f"{path}: expected a file to write, found a folder")
            wanted.append(Path(path) if path else None)
        if output and summary and Path(output).resolve() == Path(summary).resolve():
            raise UserError(f"{output}: expected two files for slices and levels, found one name for both")
        return cls(*wanted)

    def write(
        self,
        every_slice: pd.DataFrame,
        chosen: pd.DataFrame,
        vert: Sequence[int] | None,
        parameters: Mapping[str, Any],
    ) -> None:
        """Write what is asked for."""
        if self.output:
            _write_table(chosen, self.output, {"file": "the map", **COLUMNS}, parameters)
        if self.summary:
            _write_table(level_summary(every_slice, vert), self.summary, SUMMARY_COLUMNS, parameters)
        if self.figure:
            # Only here: matplotlib takes longer to load than a map to measure; every worker imports this.
            from nnunet_softseg.metrics.morphometry.csa_figure import draw_csa

            make_folder(self.figure.parent)
            draw_csa(every_slice, self.figure, vert)


def _write_table(
    table: pd.DataFrame, path: Path, columns: Mapping[str, str], parameters: Mapping[str, Any]
) -> None:
    """Write a CSV, and a JSON beside it that says what the columns are and what made them."""
    make_folder(path.parent)
    with replacing(path) as aside:
        # File names need not be valid text on every system.
        table.to_csv(aside, index=False, float_format="%.6g", errors="backslashreplace", lineterminator="\n")
    made_by = {"Name": "nnunet-softseg csa", "Version": __version__, "Parameters": dict(parameters)}
    write_json(path.with_suffix(".json"), {"Columns": dict(columns), "GeneratedBy": [made_by]})
