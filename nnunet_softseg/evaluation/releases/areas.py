"""The areas of two releases of a model, image by image and level by level, from tables or from maps."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.evaluation.cases import describe_cases
from nnunet_softseg.evaluation.tables import read_table
from nnunet_softseg.io.case_files import Case, case_and_label, derivative_stem, list_files, numbers_are_labels
from nnunet_softseg.io.case_matching import folder_of_maps
from nnunet_softseg.io.formats import without_nifti_ending
from nnunet_softseg.io.geometry import VoxelGrid
from nnunet_softseg.io.nifti import load_nifti
from nnunet_softseg.io.results import load_record
from nnunet_softseg.metrics.morphometry.csa import csa
from nnunet_softseg.metrics.morphometry.levels import NAMES, LevelKind, level_name, parse_levels

IMAGE = ["subject", "session", "contrast"]
KEYS = [*IMAGE, "level"]
AREA = "csa_mm2"
_HARD = "csa_hard_mm2"
NO_LEVEL = 0
"""The level of an area that is of no level: of a whole map."""
_WHOLE = re.compile(r"\d+(\.0*)?")


@dataclass(frozen=True)
class ReleaseAreas:
    """Areas that both releases have.

    `pairs`: `KEYS`, old, new (mm2, above 0). `lost`: `KEYS` of areas of the old release where the new one
    finds nothing. `warnings` are about the rest. `kind` says how levels are named.
    """

    pairs: pd.DataFrame
    lost: pd.DataFrame
    warnings: tuple[str, ...]
    kind: LevelKind = "vertebral"


def level_kind(old: Path, new: Path) -> LevelKind:
    """Return how two tables name levels, by the JSON that `csa` writes beside them; else vertebral.

    Raises:
        UserError: if one has vertebral levels and the other one spinal levels.
    """
    told: dict[Path, str] = {}
    for file in (old, new):
        match load_record(file.with_suffix(".json"), "GeneratedBy") if file.is_file() else None:
            case {"GeneratedBy": [{"Parameters": {"level_names": str(kind)}}, *_]}:
                told[file] = kind
    known = [kind for kind in NAMES if kind in told.values()]
    if len(known) > 1:
        raise UserError(
            f"{new}: expected {told[old]} levels as in {old}, found {told[new]} ones: give both releases the "
            "same --level-names in csa"
        )
    return known[0] if known else "vertebral"


def release_areas(
    old: Path,
    new: Path,
    *,
    levels: Path | None = None,
    vert: Sequence[int] | None = None,
    label: int | None = None,
    kind: LevelKind = "vertebral",
    **workers: Any,
) -> ReleaseAreas:
    """Return the areas of two releases: two folders of maps, or two CSV files.

    `vert` are the levels to take, None: all. For maps `levels` is an image of levels or a folder of them,
    `label` the one to measure, None: the only one; `kind` names the levels; `workers` are
    num_processes and progress of `csa`.

    Areas of several slices are averaged; a slice in which one release alone finds nothing counts as 0 mm2.

    Raises:
        UserError: if the releases differ in cases, contrasts or levels, or a file cannot be used.
    """
    tables = [path.suffix.lower() == ".csv" for path in (old, new)]
    if tables[0] != tables[1]:
        raise UserError(
            f"expected two folders of maps or two CSV files, found {old} and {new}: make a table of the maps "
            "with nnunet-softseg csa"
        )
    warnings: list[str] = []
    if tables[0]:
        both = _of_tables(old, new, vert, kind)
    else:
        slices, warnings = _of_maps(old, new, label, levels=levels, **workers)
        both = _in_levels(slices, levels, vert, old, kind)
    there = both["old"] > 0, both["new"] > 0
    lost, gained, nowhere = there[0] & ~there[1], ~there[0] & there[1], ~there[0] & ~there[1]
    for rows, words in ((gained, "only the new release finds"), (nowhere, "neither release finds")):
        if rows.any():
            warnings.append(
                f"{rows.sum()} areas that {words}: {examples(names_of(both[rows], kind))}; not compared"
            )
    columns = [*KEYS, "old", "new"]
    pairs = both.loc[there[0] & there[1], columns].sort_values(KEYS, ignore_index=True)
    if pairs["subject"].nunique() <= 1:
        raise UserError(
            f"{new}: expected areas of at least 2 subjects in both releases, found "
            f"{examples(sorted(pairs['subject'].unique())) or 'none'}: compare the releases on more people"
        )
    missing = both.loc[lost, KEYS].sort_values(KEYS, ignore_index=True)
    return ReleaseAreas(pairs, missing, tuple(warnings), kind)


def _no_level(
    file: Path, vert: Sequence[int], there: Sequence[Any], where: str, kind: LevelKind
) -> UserError:
    words = [level_word(level, kind) for level in there]
    found = examples([*filter(None, words)], 12) or "no level"
    return UserError(
        f"{file}: expected areas of {level_name(vert, kind)} in {where}, found {found}: choose with --vert"
    )


def names_of(rows: pd.DataFrame, kind: LevelKind = "vertebral") -> list[str]:
    """Return each row in words, such as `sub-01 T2w C3`, of those of `KEYS` that the table has."""
    levels = [level_word(level, kind) for level in rows["level"]]
    columns = [*(rows[name] for name in IMAGE if name in rows), levels]
    return [" ".join(filter(None, words)) for words in zip(*columns, strict=True)]


def level_word(level: Any, kind: LevelKind = "vertebral") -> str:
    """Return the name of a level, "" for `NO_LEVEL` and for none."""
    return "" if pd.isna(level) or level == NO_LEVEL else level_name([int(level)], kind)


# Tables


def _of_tables(old: Path, new: Path, vert: Sequence[int] | None, kind: LevelKind) -> pd.DataFrame:
    rows = _where_filled(_read_rows(old, kind), _read_rows(new, kind))
    first, second = (_means(_missed_as_zero(own, other)) for own, other in (rows, rows[::-1]))
    if vert:
        there = sorted({*first["level"], *second["level"]})
        first, second = (table[table["level"].isin(list(vert))] for table in (first, second))
        if first.empty and second.empty:
            raise _no_level(old, vert, there, "the tables", kind)
    first, second = first.rename(columns={AREA: "old"}), second.rename(columns={AREA: "new"})
    both = first.merge(second, on=KEYS, how="outer", indicator=True)
    for file, other, side in ((new, old, "left_only"), (old, new, "right_only")):
        lacking = both[both["_merge"] == side]
        if len(lacking):
            raise UserError(
                f"{file}: expected the subjects, contrasts and levels of {other}, found {len(lacking)} areas "
                f"missing: {examples(names_of(lacking, kind))}: measure both releases on the same images"
            )
    return both


def _where_filled(old: pd.DataFrame, new: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the slices where either release exceeds 0.5, as for maps; all where a table does not tell.

    Faint slices beyond the cord's ends, which one release alone has, would make its mean smaller.
    """
    both = [old, new]
    if not all(_HARD in rows for rows in both):
        return both
    slices = [pd.MultiIndex.from_frame(rows[[*IMAGE, "slice"]]) for rows in both]
    filled = slices[0][old[_HARD] > 0].union(slices[1][new[_HARD] > 0])
    return [rows[index.isin(filled)] for rows, index in zip(both, slices, strict=True)]


def _missed_as_zero(rows: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Return slices with 0 mm2 where a release finds nothing and the other one does, as for maps.

    Passed over, they would hide that it loses a part of the cord.
    """
    if "slice" not in rows or "slice" not in other:
        return rows
    own, found = (
        pd.MultiIndex.from_frame(each[[*IMAGE, "slice"]]) for each in (rows, other[other[AREA] > 0])
    )
    return rows.assign(**{AREA: rows[AREA].mask(rows[AREA].isna() & own.isin(found), 0.0)})


def _means(rows: pd.DataFrame) -> pd.DataFrame:
    """Return `KEYS` and `AREA`, a row each, slices averaged."""
    return rows.groupby(KEYS, as_index=False)[AREA].mean().astype({"level": int})


def _read_rows(file: Path, kind: LevelKind) -> pd.DataFrame:
    """Return `KEYS`, slice where known, and `AREA` in mm2, a row each, from a CSV of areas or of slices.

    Columns: subject (or, as `csa` writes it, file), perhaps session, contrast, level (a number, or C3) and
    slice, and csa_mm2, of slices perhaps csa_hard_mm2, which are returned, too; NaN where one is empty. A row
    that is there twice counts once.

    Raises:
        UserError: if it cannot be read, a column is missing, a value is no area, or two rows contradict.
    """
    table = read_table(file, "a CSV file", dtype=str, keep_default_na=False)
    if "subject" not in table and "file" in table:
        stems = [derivative_stem(without_nifti_ending(Path(name).name)) for name in table["file"]]
        cases = [Case.from_name(re.sub(r"_\d{4}$", "", stem)) for stem in stems]
        table = table.assign(**{name: [getattr(case, name) for case in cases] for name in IMAGE})
    missing = [name for name in ("subject", AREA) if name not in table]
    if missing:
        raise UserError(
            f"{file}: expected columns subject, level and {AREA}, perhaps contrast, found "
            f"{examples(list(table.columns), 8)}: add {', '.join(missing)}"
        )
    table = table.assign(**{name: "" for name in ("session", "contrast", "level") if name not in table})
    areas = [AREA, _HARD] if {"slice", _HARD} <= {*table} else [AREA]
    table = table.assign(
        **{name: _areas(file, table[name]) for name in areas},
        level=[level_number(file, text, kind) for text in table["level"]],
    )
    if (table["level"] != NO_LEVEL).any():  # slices between the levels
        table = table[table["level"] != NO_LEVEL]
    nameless = table.index[table["subject"] == ""]
    if len(nameless):
        raise UserError(
            f"{file}, line {nameless[0] + 2}: expected a subject in every row, found none: add it"
        )
    row = [*KEYS, "slice"] if "slice" in table else KEYS
    table = table[[*row, *areas]].drop_duplicates()
    twice = table[table.duplicated(row)]
    if len(twice):
        raise UserError(
            f"{file}: expected one area for {names_of(twice, kind)[0]}, found several that differ "
            f"({len(twice)} rows too many): keep one, or tell slices apart in a column slice"
        )
    return table


def _areas(file: Path, texts: "pd.Series[str]") -> "pd.Series[float]":
    """Return areas as numbers; NaN where a field is empty."""
    areas = pd.to_numeric(texts.where(texts != ""), errors="coerce").astype(np.float64)
    wrong = texts.index[(texts != "") & ~((areas >= 0) & np.isfinite(areas))]
    if len(wrong):
        raise UserError(
            f"{file}, line {wrong[0] + 2}: expected an area in mm2, 0 or more, found {texts[wrong[0]]!r}: "
            "correct it, or leave it empty where there is none"
        )
    return areas


def level_number(file: Path, text: str, kind: LevelKind) -> int:
    """Return the level that a field of a table names; `NO_LEVEL` if it is empty."""
    if not text.strip():
        return NO_LEVEL
    try:
        whole = _WHOLE.fullmatch(text.strip())
        levels = parse_levels(str(int(float(text))) if whole else text.strip(), kind)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    if len(levels) > 1:
        raise UserError(f"{file}: expected one level per row, found {text!r}: give each level its own row")
    return levels[0]


# Maps


def _of_maps(old: Path, new: Path, label: int | None, **how: Any) -> tuple[pd.DataFrame, list[str]]:
    """Return `IMAGE`, and level, csa_mm2 and csa_hard_mm2 of both releases, of every slice; and warnings."""
    files = [_maps_of(root, label) for root in (old, new)]
    _check_same(old, new, *files)
    cases, warnings = describe_cases(files[0])
    slices = [_slices(of_release, label, **how) for of_release in files]
    for each in slices:
        warnings += [line for line in each.attrs["warnings"] if line not in warnings]
    both = slices[0].merge(slices[1], on=["case", "slice"], suffixes=("_old", "_new"), validate="one_to_one")
    names = {case.case_id: case for case in cases}
    told = {name: [getattr(names[case], name) for case in both["case"]] for name in IMAGE}
    return both.assign(**told), warnings


def _maps_of(root: Path, label: int | None) -> dict[str, Path]:
    """Return case -> map of the label in a folder."""
    place = folder_of_maps(root) if root.is_dir() else root
    files = list_files(place, subfolders=False, expected="maps of a release").files
    by_label = numbers_are_labels(files) is not False
    told = {file: case_and_label(file, numbered_by_label=by_label) for file in files}
    labels = sorted({number for _, number in told.values() if number})
    if label is None and len(labels) > 1:
        raise UserError(
            f"{root}: expected maps of one label, found labels {examples([*map(str, labels)], 8)}: choose "
            "one with --label"
        )
    wanted = (None, label or (labels[0] if labels else 1))
    found = {derivative_stem(case): file for file, (case, number) in told.items() if number in wanted}
    if not found:
        raise UserError(f"{root}: expected maps of label {label}, found labels {labels}: choose with --label")
    return found


def _check_same(old: Path, new: Path, first: Mapping[str, Path], second: Mapping[str, Path]) -> None:
    for root, other, lacking in ((new, old, {*first} - {*second}), (old, new, {*second} - {*first})):
        if lacking:
            raise UserError(
                f"{root}: expected the cases of {other}, found {len(lacking)} missing: "
                f"{examples(sorted(lacking))}: predict the same images with both releases"
            )
    for case, file in first.items():
        grids = [_grid(path) for path in (file, second[case])]
        if not grids[0].is_same(grids[1]):
            raise UserError(
                f"{second[case]}: expected the grid of {file}, {grids[0]}, found {grids[1]}: predict the "
                "same images with both releases"
            )


def _grid(file: Path) -> VoxelGrid:
    image = load_nifti(file)
    return VoxelGrid(image.shape[:3], np.asarray(image.affine, dtype=np.float64))


def _slices(files: Mapping[str, Path], label: int | None, **how: Any) -> pd.DataFrame:
    """Return case, slice, level, csa_mm2 and csa_hard_mm2 of every slice of a release."""
    numbered = any(case_and_label(file, files)[1] is not None for file in files.values())
    table = csa(list(files.values()), label=None if numbered else label, **how)
    failed = table.attrs["failed"]
    if failed:
        raise UserError(failed[0] + (f" (and {len(failed) - 1} more maps)" if len(failed) > 1 else ""))
    names = {str(file): case for case, file in files.items()}
    chosen = table[["slice", "level", AREA, _HARD]].assign(case=table["file"].map(names))
    chosen.attrs["warnings"] = table.attrs["warnings"]
    return chosen


def _in_levels(
    slices: pd.DataFrame, levels: Path | None, vert: Sequence[int] | None, root: Path, kind: LevelKind
) -> pd.DataFrame:
    """Return `KEYS`, old and new: means over the slices where either release exceeds 0.5, nothing is 0 mm2.

    Both releases are measured in the same slices: the level of one is that of the old map.
    """
    filled = slices[[f"{_HARD}_old", f"{_HARD}_new"]].notna().any(axis=1)
    level = slices["level_old"].fillna(slices["level_new"]) if levels else pd.Series(NO_LEVEL, slices.index)
    areas = {"old": slices[f"{AREA}_old"].fillna(0.0), "new": slices[f"{AREA}_new"].fillna(0.0)}
    rows = slices[IMAGE].assign(level=level, **areas)[filled & level.notna()].astype({"level": int})
    if levels and vert:
        there = sorted(rows["level"].unique())
        rows = rows[rows["level"].isin(list(vert))]
        if rows.empty:
            raise _no_level(levels, vert, there, f"the maps of {root}", kind)
    return rows.groupby(KEYS, as_index=False)[["old", "new"]].mean()
