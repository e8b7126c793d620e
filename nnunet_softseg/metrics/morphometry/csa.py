"""The command `csa`: maps -> a CSV of slices, one of levels, and a picture."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

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
from nnunet_softseg.io.results import PICTURES, make_folder, output_file, table_file, write_table
from nnunet_softseg.io.workers import succeeded, try_jobs
from nnunet_softseg.metrics.morphometry.centreline import SMOOTHING_MM
from nnunet_softseg.metrics.morphometry.levels import (
    SUMMARY_COLUMNS,
    LevelKind,
    label_columns,
    level_name,
    level_summary,
    parse_levels,
)
from nnunet_softseg.metrics.morphometry.named_labels import (
    LabelTerms,
    NamedMaps,
    files_by_label,
    parse_labels,
)
from nnunet_softseg.metrics.morphometry.slice_table import COLUMNS, REACH_MM, slice_morphometry
from nnunet_softseg.metrics.slice_frame import slice_frame

Files = str | Path | Iterable[str | Path]


@dataclass(frozen=True)
class _Job:
    """One case: the file of each label (0: a map as it is), the first one names it; file of its level source.

    `sources` holds one of "levels", "discs" and "rootlets", or nothing.
    """

    maps: dict[int, Path]
    sources: dict[str, Path]

    @property
    def map_file(self) -> Path:
        return next(iter(self.maps.values()))


@dataclass(frozen=True)
class _Options:
    """What holds for all maps."""

    label: int | dict[str, LabelTerms] | None
    smoothing_mm: float
    wanted: tuple[int, ...] | None
    reach_mm: float
    kind: LevelKind


def csa(
    maps: Files,
    *,
    levels: Files | None = None,
    discs: Files | None = None,
    rootlets: Files | None = None,
    reach_mm: float = REACH_MM,
    level_names: LevelKind | None = None,
    vert: int | str | Iterable[int | str] | None = None,
    label: int | str | Iterable[int | str] | None = None,
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
        rootlets: images of the nerve rootlets on the maps' grid instead, in the same ways; each has the
            number of its spinal level.
        reach_mm: how far rootlets may lie from the cord that they belong to.
        level_names: "spinal" (8 is C8) or "vertebral" (8 is T1); None: spinal if there are rootlets.
        vert: levels to keep, such as (2, 3), "2:3" or "C2:C3".
        label: the value to measure in integer label maps; or several with names, "cord=1", "gm=2" and
            combinations of them, "wm=cord-gm", of label maps and of soft maps `<case>_<label, 4 digits>`:
            the first is measured as always, and each adds its areas as columns, csa_mm2_<name>.
        smoothing_mm: length over which the centreline is smooth.
        output: CSV of the slices, with a JSON of the same name that explains its columns; refused where a
            JSON of another making has that name.
        summary: CSV of the levels, likewise: mean and STD per level and of `vert`.
        figure: PNG, SVG or PDF of the areas along S-I, all slices, `vert` in green.
        num_processes: maps measured at once.
        progress: show a bar.

    Returns:
        `file` and the columns of `slice_table.COLUMNS`, and those of named labels, one row per map and slice,
        in the order of the stored arrays; with `vert`, the slices of these levels only.
        `attrs["warnings"]` lists what is odd, `attrs["failed"]` the maps that have no row, and why.

    Raises:
        UserError: if no map can be measured: its file cannot be used, or it has no level asked for.
    """
    targets = _checked_targets(output, summary, figure)
    kind: LevelKind = level_names or ("vertebral" if rootlets is None else "spinal")
    options = _Options(
        parse_labels(label), smoothing_mm, None if vert is None else parse_levels(vert, kind), reach_mm, kind
    )
    given = {"levels": levels, "discs": discs, "rootlets": rootlets}
    sources = {kind: files for kind, files in given.items() if files is not None}
    _check_level_source(options, sources)
    jobs = _jobs(_map_files(maps), options, sources)
    outcomes = try_jobs(
        partial(_measure_file, options=options),
        jobs,
        lambda job: str(job.map_file),
        num_processes=num_processes,
        progress=progress,
        description="csa",
    )
    measured = succeeded(outcomes)
    warnings = [*dict.fromkeys(line for table in measured for line in table.attrs.pop("warnings"))]
    every_slice = pd.concat(measured, ignore_index=True)
    wanted = options.wanted
    table = every_slice[every_slice["level"].isin(wanted)].reset_index(drop=True) if wanted else every_slice
    _write(targets, every_slice, table, options, _parameters(jobs, options))
    table.attrs["level_names"] = kind
    table.attrs["warnings"] = warnings
    table.attrs["failed"] = [str(outcome) for outcome in outcomes if isinstance(outcome, UserError)]
    return table


def _check_level_source(options: _Options, sources: Mapping[str, Files]) -> None:
    if len(sources) > 1:
        found = "both" if len(sources) == 2 else "all"  # noqa: PLR2004
        raise UserError(f"csa: expected --levels, --discs or --rootlets, found {found}: give one")
    if options.wanted and not sources:
        raise UserError(
            f"csa: level {level_name(options.wanted, options.kind)} is asked for: expected a level image "
            "(--levels), points at the discs (--discs) or --rootlets, found none"
        )
    if not 0 < options.reach_mm < np.inf:
        raise UserError(
            f"--reach-mm {options.reach_mm:g}: expected a length above 0 mm: the default is {REACH_MM:g}"
        )


def _jobs(files: Sequence[Path], options: _Options, sources: Mapping[str, Files]) -> list[_Job]:
    named = options.label if isinstance(options.label, dict) else None
    cases = [{0: file} for file in files] if named is None else files_by_label(files, named)
    firsts = [next(iter(of_case.values())) for of_case in cases]
    found = {kind: _companions(given, firsts, kind.removesuffix("s")) for kind, given in sources.items()}
    return [
        _Job(of_case, {kind: companions[place] for kind, companions in found.items()})
        for place, of_case in enumerate(cases)
    ]


def _parameters(jobs: Sequence[_Job], options: _Options) -> dict[str, Any]:
    """Return what a table was made with, for the JSON beside it."""
    label = options.label
    sources = {
        kind: sorted({str(job.sources[kind]) for job in jobs if kind in job.sources})
        for kind in ("levels", "discs", "rootlets")
    }
    return {
        "maps": [*dict.fromkeys(str(file) for job in jobs for file in job.maps.values())],
        **sources,
        "reach_mm": options.reach_mm if sources["rootlets"] else None,
        "level_names": options.kind,
        "vert": list(options.wanted) if options.wanted else None,
        "label": {name: dict(terms) for name, terms in label.items()} if isinstance(label, dict) else label,
        "smoothing_mm": options.smoothing_mm,
    }


def csa_overview(table: pd.DataFrame) -> str:
    """Return in words the mean and STD of the area of each map, over the slices of a table of `csa`."""
    files, kind = table["file"].unique(), table.attrs.get("level_names", "vertebral")
    folders = examples(sorted({str(Path(file).parent) for file in files}))
    lines = [f"{len(files)} maps measured, in {folders}"]
    for file, slices in table.groupby("file", sort=False):
        soft, hard = slices["csa_mm2"].dropna(), slices["csa_hard_mm2"].dropna()
        spread = f", STD {soft.std(ddof=1):.2f}" if len(soft) > 1 else ""
        area = f"CSA {soft.mean():.2f} mm2{spread} over " if len(soft) else "no area: "
        lines.append(f"{file}: {area}{_slices_in_words(slices, kind)}; map > 0.5: {hard.mean():.2f} mm2")
    # A file name may hold bytes that are no text; a terminal refuses them.
    return "\n".join(lines).encode(errors="backslashreplace").decode()


def _slices_in_words(slices: pd.DataFrame, kind: LevelKind) -> str:
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
        words += f", of which {len(in_levels)} in {level_name(levels, kind)}"
    elif levels:
        words += f", {level_name(levels, kind)}"
    empty = len(slices) - len(there)
    return words + (f", {empty} empty" if empty and len(in_levels) == len(there) else "")


def _measure_file(job: _Job, *, options: _Options) -> pd.DataFrame:
    named = options.label if isinstance(options.label, dict) else {}
    maps = NamedMaps(job.maps, named) if named else None
    image = maps.image(next(iter(named)), job.map_file) if maps else load_nifti(job.map_file)
    sources = {kind: load_nifti(file) for kind, file in job.sources.items()}
    table = slice_morphometry(
        image,
        **sources,
        reach_mm=options.reach_mm,
        label=options.label if isinstance(options.label, int) else None,
        smoothing_mm=options.smoothing_mm,
    )
    if maps:
        maps.add_areas(table, slice_frame(image.affine))
        table.attrs["warnings"] += maps.warnings
    opened = {job.map_file: None if maps else image}
    opened |= {job.sources[kind]: source for kind, source in sources.items()}
    for file in dict.fromkeys((*job.maps.values(), *opened)):
        table.attrs["warnings"] += map(str, geometry_warnings(file, opened.get(file)))
    if options.wanted:
        _check_levels(table, job, options.wanted, options.kind)
    table.insert(0, "file", str(job.map_file))
    return table


def _check_levels(table: pd.DataFrame, job: _Job, wanted: Sequence[int], kind: LevelKind) -> None:
    there = sorted(int(level) for level in table["level"].dropna().unique())
    missing = [level for level in wanted if level not in there]
    is_empty = not (table["csa_hard_mm2"] > 0).any()  # where levels are found by the cord, it has none
    if not missing or (is_empty and {"discs", "rootlets"} & {*job.sources}):
        return
    names = ", ".join(level_name([level], kind) for level in there) or "no level"
    source = next(iter(job.sources.values()))
    found = f"{source}: expected slices of {level_name(wanted, kind)} in {job.map_file}, found {names}"
    if len(missing) == len(wanted):
        remedy = "choose other levels with --vert"
        if "discs" in job.sources:
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


def _companions(given: Files, maps: Sequence[Path], kind: str) -> list[Path]:
    paths = _paths(given)
    if len(paths) == 1 and paths[0].is_dir():
        return companions_in(paths[0], maps, kind)
    if len(paths) == 1:
        return [paths[0]] * len(maps)
    if len(paths) != len(maps):
        raise UserError(
            f"csa: expected one {kind} image for all maps, one per map ({len(maps)}) or a folder, found "
            f"{len(paths)}"
        )
    return paths


def companions_in(folder: Path, maps: Sequence[Path], kind: str) -> list[Path]:
    """Return the level or disc image of each map, from a folder with its subfolders.

    The map's name is tried as it is, without the label of a soft map (`_0001`), and without what a derivative
    adds (`_label-...`, `_desc-...`, `_seg...`), then its subject, session and contrast (`sub-01_mt-on` is
    `sub-01_flip-1_mt-on_MTS`); see `companion_files`. Maps and segmentations in the folder do not
    count.

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
                f"{name}: {kind} image not found in {folder}: expected one file named {names} (with {kind} "
                f"in it if it ends in _seg or _mask), found none among {len(images.files)} images: rename it "
                f"or give one {kind} image per map in the same order"
            )
    return [found[str(file)] for file in maps]


# What is written


def _checked_targets(
    output: str | Path | None, summary: str | Path | None, figure: str | Path | None
) -> list[Path | None]:
    """Return the files to write, None if not asked for; refuse what will not do before any measuring."""
    targets = [table_file(output, "csa"), table_file(summary, "csa"), output_file(figure, PICTURES)]
    if output and summary and Path(output).resolve() == Path(summary).resolve():
        raise UserError(f"{output}: expected two files for slices and levels, found one name for both")
    return targets


def _write(
    targets: Iterable[Path | None],
    every_slice: pd.DataFrame,
    chosen: pd.DataFrame,
    options: _Options,
    parameters: Mapping[str, Any],
) -> None:
    output, summary, figure = targets
    of_labels = {column: _explained(column) for column in label_columns(chosen)}
    if output:
        write_table(chosen, output, {"file": "the map", **COLUMNS, **of_labels}, "csa", parameters)
    if summary:
        with_all = not parameters["rootlets"]
        levels = level_summary(every_slice, options.wanted, options.kind, with_all=with_all)
        write_table(levels, summary, {**SUMMARY_COLUMNS, **of_labels}, "csa", parameters)
    if figure:
        # Only here: matplotlib takes longer to load than a map to measure; every worker imports this.
        from nnunet_softseg.metrics.morphometry.figures import draw_csa

        make_folder(figure.parent)
        draw_csa(every_slice, figure, options.wanted, options.kind)


def _explained(column: str) -> str:
    """Return the meaning of a column of one label, as csa_mm2_gm."""
    area, _, name = column.partition("mm2_")
    return f"{area}mm2 of {name}, with the tilt of the first label, mm2; empty where a slice has none of it"
