"""The command `evaluate`: methods on all cases of a reference; tables; areas and their errors."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import product
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_softseg.errors import UserError, examples, grouped
from nnunet_softseg.evaluation.cases import (
    CaseTable,
    calibration_note,
    describe_cases,
    inference_seconds,
    label_names,
    other_label_names,
    read_case_table,
    scheme_of,
    training_cases,
)
from nnunet_softseg.evaluation.measuring import (
    AREAS,
    REFERENCE,
    CaseJob,
    EvaluationSettings,
    MeasuredCase,
    measure_case,
)
from nnunet_softseg.evaluation.tables import (
    CASE_COLUMNS,
    INSTANCE_COLUMNS,
    RELIABILITY_COLUMNS,
    SLICE_COLUMNS,
    describe,
    in_order,
    json_value,
    made_by,
    records,
    write_csv,
)
from nnunet_softseg.io.case_files import Case, ImageFiles, Reason, folds_trained_on, list_files
from nnunet_softseg.io.case_matching import Found, companion_files, prediction_files, reference_files
from nnunet_softseg.io.formats import ANY_FORMAT
from nnunet_softseg.io.results import make_folder, write_json
from nnunet_softseg.io.workers import succeeded, try_jobs
from nnunet_softseg.metrics.morphometry.levels import level_name

COMMON, OWN = "common heights", "own slices"
SHORTEST_COMMON_MM = 10.0
"""Contrasts of a subject that share less than this are measured over their own slices."""
_ROUNDING_MM = 1e-3
_IMAGE = ["case", "label"]
_MANY_MISSING = 0.5
_SHOWN = ["dice", "soft_dice", "boundary_mae", "abs_rve_percent", "asd_mm"]
_SHOWN += ["csa_mm2", "reference_csa_mm2", "abs_csa_error_mm2"]


@dataclass(frozen=True)
class Evaluation:
    """Measures of all methods on all cases; the columns of the tables are described in `tables`.

    `cases` has a row per method, label and case that all methods have; `slices` per method (and `REFERENCE`),
    label, case and slice; `instances` per method, label, case and object; `reliability` per method, label and
    bin, all cases together; `missing` (case, method, reason) per case and method without it; `failed`: case
    in no table, as a file of it cannot be used -> why. `labels`: value -> name; `method_notes`: method ->
    which files were used; `warnings`: the gravest first; `told`: see `measuring.CaseJob`.
    """

    methods: tuple[str, ...]
    labels: Mapping[int, str]
    cases: pd.DataFrame
    slices: pd.DataFrame
    instances: pd.DataFrame
    reliability: pd.DataFrame
    missing: pd.DataFrame
    failed: Mapping[str, str]
    method_notes: Mapping[str, str]
    warnings: tuple[str, ...]
    told: frozenset[str] = field(default=frozenset(), kw_only=True)

    @property
    def failures(self) -> list[str]:
        """One line for each case that failed."""
        return [f"failed, in no mean: {case_id}: {why}" for case_id, why in self.failed.items()]

    def as_text(self) -> str:
        """Return the files used and means over cases, for a terminal."""
        lines = [f"{method}: {note}" for method, note in self.method_notes.items()]
        measured = self.cases[self.cases["csa_slices"] > 0].groupby("csa_region", sort=False)
        lines += self.failures
        lines += [
            f"areas over {region}: {rows['case'].nunique()} cases, "
            f"{rows['csa_slices'].min()} to {rows['csa_slices'].max()} slices each"
            for region, rows in measured
        ]
        means = self.cases.groupby(["label", "method"], sort=False)[_SHOWN].mean().T
        means.columns = pd.Index([f"{self.labels[label]}, {method}" for label, method in means.columns])
        return "\n".join([*lines, "", means.to_string(float_format=lambda value: f"{value:.4g}")])


def evaluate(
    prediction: str | Path,
    reference: str | Path,
    output: str | Path,
    *,
    name: str = "prediction",
    pattern: str | None = None,
    **options: Any,
) -> Evaluation:
    """Return, and write, all measures of one method.

    Writes cases.csv, slices.csv, instances.csv, reliability.csv, cases.json (with the meaning of every
    column) and summary.json (means, medians, standard deviations over cases) to the output folder; other
    files there stay as they are.

    Args:
        prediction: folder of a prediction: of ours (soft maps in its folder `soft` are taken), of nnU-Net, or
            masks of any other tool; or one file.
        reference: folder with softLabelsTs/labelsTs, or maps of any other name; or one file.
        output: folder; made if missing.
        name: of the method.
        pattern: path of a prediction inside its folder, such as "{case}_seg.nii.gz", if names are not enough.
        options: of `EvaluationSettings.from_arguments`, patterns apart.

    Raises:
        UserError: if a file cannot be used, or nothing is common.
    """
    patterns = {name: pattern} if pattern else {}
    settings = EvaluationSettings.from_arguments(patterns=patterns, **options)
    make_folder(Path(output))
    evaluation = measure_methods({name: Path(prediction)}, Path(reference), settings)
    parameters = {"prediction": str(prediction), "reference": str(reference), **settings.as_dict()}
    origin = made_by("evaluate", parameters)
    write_evaluation(evaluation, Path(output), origin)
    write_json(Path(output) / "summary.json", {"made_by": origin, **_summary(evaluation)})
    return evaluation


def write_evaluation(evaluation: Evaluation, output: Path, origin: dict[str, Any]) -> None:
    """Write the tables of cases, slices, instances and reliability, and cases.json."""
    beside = {"slices": SLICE_COLUMNS, "instances": INSTANCE_COLUMNS, "reliability": RELIABILITY_COLUMNS}
    for name in ("cases", *beside):
        write_csv(output / f"{name}.csv", getattr(evaluation, name))
    described = {
        "made_by": origin,
        "columns": dict(CASE_COLUMNS),
        "columns_of": {f"{name}.csv": dict(columns) for name, columns in beside.items()},
        "cases": records(evaluation.cases),
    }
    write_json(output / "cases.json", described)


def _summary(evaluation: Evaluation) -> dict[str, Any]:
    """Return means, medians and standard deviations per label, warnings and missing cases."""
    numbers = evaluation.cases.select_dtypes("number").columns.drop("label")
    labels: dict[str, dict[str, Any]] = {}
    for label, rows in evaluation.cases.groupby("label"):
        values = {measure: rows[measure].dropna().to_numpy(np.float64) for measure in numbers}
        labels[evaluation.labels[int(label)]] = {
            measure: {name: json_value(value) for name, value in describe(known).items()}
            | {"num_cases": known.size}
            for measure, known in values.items()
            if known.size
        }
    return {
        "num_cases": int(evaluation.cases["case"].nunique()),
        "num_subjects": int(evaluation.cases["subject"].nunique()),
        "files": dict(evaluation.method_notes),
        "warnings": list(evaluation.warnings),
        "missing": records(evaluation.missing),
        "failed": dict(evaluation.failed),
        "labels": labels,
    }


# All methods on all cases


@dataclass(frozen=True)
class _Plan:
    """Who is measured against what; `subjects`: case id -> subject, of all rows of the table of cases."""

    cases: tuple[Case, ...]
    labels: tuple[int, ...]
    references: Mapping[tuple[str, int], Path]
    found: Mapping[str, Found]
    levels: Mapping[str, Path]
    images: Mapping[str, Path]
    notes: Mapping[str, str]
    warnings: list[str]
    subjects: Mapping[str, str]
    told: frozenset[str]

    def missing(self) -> pd.DataFrame:
        lacking = {method: found.missing.items() for method, found in self.found.items()}
        rows = [(case_id, method, reason) for method in lacking for case_id, reason in lacking[method]]
        return pd.DataFrame(rows, columns=["case", "method", "reason"], dtype=str)

    def common(self) -> list[Case]:
        lacking = {case_id for found in self.found.values() for case_id in found.missing}
        return [case for case in self.cases if case.case_id not in lacking]


def measure_methods(methods: Mapping[str, Path], reference: Path, settings: EvaluationSettings) -> Evaluation:
    """Return the measures of all methods on the cases that all of them have.

    `methods` maps names to folders of predictions; the reference decides about cases and labels.

    Raises:
        UserError: if no case is left, or a label has the name of another one; a case of which a file cannot
            be used stops no other.
    """
    plan, scheme = _plan(methods, reference, settings), scheme_of(reference)
    plan.warnings[:0] = other_label_names(methods, scheme, plan.labels)
    jobs = [
        CaseJob(
            case,
            references={label: plan.references[case.case_id, label] for label in plan.labels},
            predictions={
                method: {label: found.paths[case.case_id, label] for label in plan.labels}
                for method, found in plan.found.items()
            },
            settings=settings,
            scheme=scheme,
            levels=plan.levels.get(case.case_id),
            told=plan.told,
        )
        for case in plan.common()
    ]
    outcomes = try_jobs(
        measure_case,
        jobs,
        lambda job: job.case.case_id,
        num_processes=settings.num_processes,
        progress=settings.progress,
        description="measure",
    )
    measured = succeeded(outcomes)
    failed = {
        job.case.case_id: str(outcome)
        for job, outcome in zip(jobs, outcomes, strict=True)
        if isinstance(outcome, UserError)
    }
    slices = _in_order(((result.slices, result.case) for result in measured), methods)
    nowhere = [result.case.case_id for result in measured if not result.has_place]
    slices, region_warnings = mark_region(slices, settings.vert if settings.levels else None, nowhere)
    cases = _cases(measured, case_areas(slices), plan, methods)
    doubts = [doubt for result in measured for doubt in result.doubts]
    if settings.levels and not slices["in_region"].any():
        there = [level_name([level]) for level in sorted(slices["level"].dropna().unique())]
        raise UserError(
            f"{settings.levels}: expected slices of {level_name(settings.vert)} in at least one reference, "
            f"found {examples(there, 12) or 'no level'}: choose other levels with --vert, or leave out "
            "--levels"
        )
    return Evaluation(
        methods=tuple(methods),
        labels=label_names(scheme, plan.labels),
        cases=cases,
        slices=slices[list(SLICE_COLUMNS)],
        instances=_in_order(((each.instances, each.case) for each in measured), methods)[[*INSTANCE_COLUMNS]],
        reliability=_reliability(measured, methods, plan.labels),
        missing=plan.missing(),
        failed=failed,
        method_notes=plan.notes,
        warnings=(*plan.warnings, *region_warnings, *_resampled(cases), *grouped(doubts)),
        told=plan.told,
    )


def _plan(methods: Mapping[str, Path], reference: Path, settings: EvaluationSettings) -> _Plan:
    table = read_case_table(settings.subjects) if settings.subjects else None
    if table and REFERENCE in table.paths:
        labels, listed = settings.labels or (1,), table.paths[REFERENCE]
        references = {(case, n): reference / path for case, path in listed.items() if path for n in labels}
        way = "files named by the table of cases"
    else:
        listed_references = list_files(reference, formats=ANY_FORMAT)
        pattern = settings.reference_pattern
        references, labels, way = reference_files(listed_references, settings.labels, pattern)
    cases, warnings = describe_cases({case_id for case_id, _ in references}, table)
    found, notes = {}, {REFERENCE: f"{len(cases)} cases, label {examples(list(map(str, labels)))}, {way}"}
    for method, folder in methods.items():
        images = list_files(folder, formats=ANY_FORMAT, expected=f"predictions of {method}")
        found[method] = (
            _listed_predictions(images, table.paths[method], cases, labels)
            if table and method in table.paths
            else prediction_files(images, cases, labels, settings.patterns.get(method))
        )
        if not found[method].paths:
            names = examples([images.relative(file) for file in images.files])
            (case_id, why), *_ = found[method].missing.items()
            otherwise = ", or compare the labels that it has with --label" if len(labels) > 1 else ""
            raise UserError(
                f"{images.root}: expected predictions of {method} for cases of {reference} such as "
                f"{case_id}, found {len(images.files)} images ({names}), {why}: check the folder, or say how "
                f"files are named with --pattern{otherwise}"
            )
        notes[method] = "; ".join(filter(None, (_note(images, found[method]), calibration_note(folder))))
        warnings += [*images.warnings(), *_of_no_case(method, images, found[method])]
    plan = _Plan(
        cases,
        labels,
        references,
        found,
        levels=_companions(settings.levels, cases, "level"),
        images=_companions(settings.images, cases, "image"),
        notes=notes,
        warnings=warnings,
        subjects={case.case_id: case.subject for case in table.cases} if table else {},
        told=_told(settings, table),
    )
    _check_common(plan, methods)
    return plan


def _told(settings: EvaluationSettings, table: CaseTable | None) -> frozenset[str]:
    """Return the methods, and `REFERENCE`, of whose files a pattern tells the label."""
    patterns = {REFERENCE: settings.reference_pattern or "", **settings.patterns}
    listed = table.paths if table else {}
    return frozenset(
        whose for whose, pattern in patterns.items() if "{label}" in pattern and whose not in listed
    )


def _listed_predictions(
    images: ImageFiles, listed: Mapping[str, str], cases: Sequence[Case], labels: Sequence[int]
) -> Found:
    paths: dict[tuple[str, int], Path] = {}
    missing = {}
    for case in cases:
        path = listed.get(case.case_id, "")
        if path and (images.root / path).is_file():
            paths |= {(case.case_id, label): images.root / path for label in labels}
        else:
            missing[case.case_id] = f"no file {path}" if path else "no file in the table"
    unused = len(images.files) - len(set(paths.values()))
    return Found(paths, "files named by the table of cases", missing, max(unused, 0))


def _companions(root: Path | None, cases: Sequence[Case], kind: str) -> dict[str, Path]:
    if root is None:
        return {}
    names = {case.case_id: [f"{case.case_id}_0000", case.case_id] for case in cases}
    return companion_files(list_files(root, formats=ANY_FORMAT), names, kind, cases=cases)


def _note(images: ImageFiles, found: Found) -> str:
    there = len({case for case, _ in found.paths})
    of_all = f"{there} of {there + len(found.missing)} cases" if found.missing else f"{there} cases"
    parts = [f"{of_all}, {found.way}"]
    if found.num_unused:
        parts.append(f"{found.num_unused} other images not used")
    others = sum(reason is Reason.NOT_NIFTI for reason in images.passed_over.values())
    if others:
        parts.append(f"{others} files that are no images passed over")
    return "; ".join(parts)


def _of_no_case(method: str, images: ImageFiles, found: Found) -> list[str]:
    names = [images.relative(file) for file in found.of_no_case]
    told = f"{method}: {len(names)} files belong to no case of the reference and are not used: "
    return [told + examples(names)] if names else []


def _check_common(plan: _Plan, methods: Mapping[str, Path]) -> None:
    """Refuse a comparison of nothing, and warn of what some method lacks."""
    common = plan.common()
    if not common:
        raise UserError(
            f"expected at least one case that all of {examples(list(methods), 6)} have, found none of "
            f"{len(plan.cases)}: compare methods on the same images"
        )
    for method, found in plan.found.items():
        if found.missing:
            most = len(found.missing) >= _MANY_MISSING * len(plan.cases)
            warning = (
                f"{'MOST OF THE TEST SET IS MISSING: ' if most else ''}"
                f"{method} lacks {len(found.missing)} of {len(plan.cases)} cases: "
                f"{examples(sorted(found.missing))}; {len(common)} cases are compared"
            )
            plan.warnings.insert(0, warning)
    subjects = {case.subject for case in plan.cases} - {case.subject for case in common}
    if subjects:
        plan.warnings.append(
            f"{len(subjects)} subjects are left out altogether: {examples(sorted(subjects))}"
        )
    plan.warnings[:0] = _trained_on(methods, common, plan.subjects)
    if plan.levels:
        without = [case.case_id for case in common if case.case_id not in plan.levels]
        if without:
            plan.warnings.append(f"{len(without)} cases have no image of levels: {examples(without)}")


def _trained_on(
    methods: Mapping[str, Path], cases: Sequence[Case], subjects: Mapping[str, str]
) -> Iterator[str]:
    """Name the cases whose subjects a method was trained on; `subjects`: by the table of cases."""
    for method, folder in methods.items():
        seen = training_cases(folder)
        found = [case.case_id for case in cases if folds_trained_on(case.subject, seen, subjects)]
        if found:
            yield (
                f"{method} WAS TRAINED ON {len(found)} of these cases, or on others of their subjects: "
                f"{examples(found)}; leave them out"
            )


def _in_order(tables: Iterable[tuple[pd.DataFrame, Case]], methods: Iterable[str]) -> pd.DataFrame:
    """Return the rows of all cases by method in the order given (the reference first), label, case, slice."""
    parts = []
    for table, case in tables:
        who = {"subject": case.subject, "session": case.session, "contrast": case.contrast}
        parts.append(table.assign(case=case.case_id, **who))
    table = pd.concat(parts, ignore_index=True)
    keys = [name for name in ("method", "label", "case", "slice", "instance") if name in table]
    return in_order(table, keys, method=[REFERENCE, *methods])


def _cases(
    measured: Sequence[MeasuredCase], areas: pd.DataFrame, plan: _Plan, methods: Mapping[str, Path]
) -> pd.DataFrame:
    table = _in_order(((pd.DataFrame(result.rows), result.case) for result in measured), methods)
    table = table.merge(areas, on=["method", "case", "label"], how="left", validate="one_to_one")
    seconds = {method: inference_seconds(folder) for method, folder in methods.items()}
    pairs = list(zip(table["method"], table["case"], strict=True))
    table = table.assign(
        abs_rve_percent=table["rve_percent"].abs(),
        abs_hard_rve_percent=table["hard_rve_percent"].abs(),
        seconds=np.array([seconds[method].get(case, np.nan) for method, case in pairs], dtype=np.float64),
        image=[str(plan.images.get(case, "")) for _, case in pairs],
        levels=[str(plan.levels.get(case, "")) for _, case in pairs],
        csa_region=table["csa_region"].fillna(""),
        **table[["csa_slices", "csa_missed_slices"]].fillna(0).astype(int),
    )
    return table[list(CASE_COLUMNS)]


def _resampled(cases: pd.DataFrame) -> list[str]:
    resampled = cases[cases["resampled"]].groupby("method", sort=False)["case"].unique()
    return [
        f"{method}: {len(names)} predictions lay on another grid and were resampled linearly, which blurs "
        f"them: {examples(sorted(names))}"
        for method, names in resampled.items()
    ]


def _reliability(
    measured: Sequence[MeasuredCase], methods: Iterable[str], labels: Sequence[int]
) -> pd.DataFrame:
    tables = []
    for method, label in product(methods, labels):
        curve = reduce(add, (result.reliability[method, label] for result in measured))
        means = (curve.num_voxels, curve.mean_prediction, curve.mean_reference)
        bins = (curve.edges[:-1], curve.edges[1:], *means)
        columns = zip(RELIABILITY_COLUMNS, (method, label, *bins), strict=True)
        tables.append(pd.DataFrame(dict(columns)))
    return pd.concat(tables, ignore_index=True)


# The area of a case: over which slices it is a mean, and how far it is off


def mark_region(
    slices: pd.DataFrame, vert: Sequence[int] | None, nowhere: Collection[str] = ()
) -> tuple[pd.DataFrame, list[str]]:
    """Return the slices of all cases with the columns `in_region` and `csa_region`, and warnings.

    `vert` are the levels, if they are known. Without, areas are means over the heights that all contrasts of
    a subject (in one session) share, in scanner coordinates: areas of different levels say nothing about the
    method. `nowhere` are the cases that do not say where they lie: theirs are over their own slices. Only
    slices in which the reference exceeds 0.5 count.
    """
    reference = slices[slices["method"] == REFERENCE]
    hard = reference["csa_hard_mm2"].notna()
    # Where the reference nowhere exceeds 0.5 in a case: its slices above 0.
    filled = hard | ~hard.groupby([reference[name] for name in _IMAGE]).transform("any")
    if vert is not None:
        region = filled & reference["level"].isin(list(vert)).to_numpy(dtype=bool)
        names: str | pd.Series[str] = level_name(vert)
        of_cases = reference["level"].where(region).groupby(reference["case"])
        found = {case: sorted({*map(int, levels.dropna())}) for case, levels in of_cases}
        without = [case for case, levels in found.items() if not levels]
        part = {case: levels for case, levels in found.items() if levels and {*levels} != {*vert}}
        in_part = [f"{case} ({level_name(levels)})" for case, levels in part.items()]
        warning = f"{len(without)} cases have no slice of {names} and so no area: {examples(without)}"
        warnings = [warning] if without else []
        warning = f"{len(part)} cases have a part of {names} only, and the area of that: {examples(in_part)}"
        warnings += [warning] if part else []
    else:
        region, names, warnings = _common_heights(reference, filled, nowhere)
    marked = reference[[*_IMAGE, "slice"]].assign(in_region=region, csa_region=names)
    return slices.merge(marked, on=[*_IMAGE, "slice"], how="left", validate="many_to_one"), warnings


def _common_heights(
    reference: pd.DataFrame, filled: "pd.Series[bool]", nowhere: Collection[str]
) -> tuple["pd.Series[bool]", "pd.Series[str]", list[str]]:
    heights = reference["z_mm"].where(filled & ~reference["case"].isin(list(nowhere)))
    together = ["subject", "session", "label"]
    ends = heights.groupby([reference[name] for name in (*together, "case")]).agg(["min", "max"])
    shared = ends.groupby(level=together).agg(low=("min", "max"), high=("max", "min"), n=("min", "count"))
    rows = shared.reindex(pd.MultiIndex.from_frame(reference[together])).set_axis(reference.index)
    several = (rows["n"] > 1).to_numpy()
    inside = heights.between(rows["low"] - _ROUNDING_MM, rows["high"] + _ROUNDING_MM).to_numpy()
    use_common = several & (rows["high"] - rows["low"] >= SHORTEST_COMMON_MM).to_numpy()
    # Thick slices may leave a case without a slice in the shared heights.
    some = pd.Series(inside & use_common, index=reference.index).groupby([reference[name] for name in _IMAGE])
    use_common &= some.transform("any").to_numpy()
    region = filled & (inside | ~use_common)
    names = pd.Series(np.where(use_common, COMMON, OWN), index=reference.index)
    apart = sorted(reference.loc[several & ~use_common, "subject"].unique())
    warning = (
        f"{len(apart)} subjects have contrasts that share less than {SHORTEST_COMMON_MM:g} mm, or no slice "
        f"there: their areas are means over different heights: {examples(apart)}; give --levels"
    )
    return region, names, [warning] if apart else []


def case_areas(slices: pd.DataFrame) -> pd.DataFrame:
    """Return method, case, label and the columns csa_* of `tables.CASE_COLUMNS`, from `mark_region`'s slices.

    NaN where the region is empty. A slice that a method leaves empty counts as 0 mm2: passed over, it would
    hide a failure.
    """
    inside, who = slices[slices["in_region"]], ["method", *_IMAGE]
    filled = inside.assign(missed=inside["csa_mm2"].isna(), **inside[[*AREAS]].fillna(0.0))
    numbers = {"csa_slices": ("slice", "size"), "csa_missed_slices": ("missed", "sum")}
    means = filled.groupby(who).agg(**numbers, **{area: (area, "mean") for area in AREAS})
    images = slices.drop_duplicates(who)[[*who, "csa_region"]]
    table = images.merge(means.reset_index(), on=who, how="left")
    table[list(numbers)] = table[list(numbers)].fillna(0).astype(int)
    is_reference = table["method"] == REFERENCE
    reference = table[is_reference].set_index(_IMAGE)[[*AREAS]].add_prefix("reference_")
    table = table[~is_reference].merge(reference.reset_index(), on=_IMAGE, how="left")
    for area in AREAS:
        # An empty reference has no differences.
        expected = table[f"reference_{area}"].where(table[f"reference_{area}"] > 0)
        difference = table[area] - expected
        for unit, error in (("mm2", difference), ("percent", 100 * difference / expected)):
            name = f"{area.removesuffix('_mm2')}_error_{unit}"
            table = table.assign(**{name: error, f"abs_{name}": error.abs()})
    return table
