"""Subject, session and contrast of a case, by name or table; names of labels, seconds per case."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_softseg.datasets.raw_dataset import LabelScheme
from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.evaluation.tables import read_table
from nnunet_softseg.io.case_files import DATASET_JSON, REPORT, Case
from nnunet_softseg.io.results import read_in_or_above

KEY_COLUMNS = ("case", "subject", "contrast")


@dataclass(frozen=True)
class CaseTable:
    """A TSV that says of each case what its name does not.

    `paths`: column -> case id -> path, of the columns `reference` and those named like a method.
    """

    file: Path
    cases: tuple[Case, ...]
    paths: Mapping[str, Mapping[str, str]]


def read_case_table(file: Path) -> CaseTable:
    """Return a table of cases from a tab-separated file with columns `case`, `subject`, `contrast`.

    Also `session`, `reference` and one per method with paths inside its folder; others are passed over.

    Raises:
        UserError: if it cannot be read, a column is missing, a cell is empty, or a case is there twice.
    """
    table = read_table(file, "a tab-separated table", sep="\t", dtype=str, keep_default_na=False)
    missing = [column for column in KEY_COLUMNS if column not in table]
    if missing:
        raise UserError(
            f"{file}: expected columns {', '.join(KEY_COLUMNS)}, found {examples(list(table.columns), 8)}: "
            f"add {', '.join(missing)}, separated by tabs"
        )
    for column in KEY_COLUMNS[:2]:
        empty = table.index[table[column] == ""]
        if len(empty):
            raise UserError(
                f"{file}: expected a {column} in every row, found none in line {empty[0] + 2}: add it"
            )
    sessions = table["session"] if "session" in table else [""] * len(table)
    entities = (Case.from_name(case_id).entities for case_id in table["case"])
    cases = tuple(map(Case, table["case"], table["subject"], sessions, table["contrast"], entities))
    twice = sorted(table.loc[table["case"].duplicated(), "case"].unique())
    if twice:
        raise UserError(f"{file}: expected each case once, found {examples(twice)} more than once")
    others = [column for column in table if column not in (*KEY_COLUMNS, "session")]
    paths = {str(column): dict(zip(table["case"], table[column], strict=True)) for column in others}
    return CaseTable(file, cases, paths)


def describe_cases(
    case_ids: Iterable[str], table: CaseTable | None = None
) -> tuple[tuple[Case, ...], list[str]]:
    """Return the cases, sorted, and what is odd about them in words.

    Without a table: `<subject>[_<session>]_<contrast>` with `sub-` and `ses-` as in BIDS. Of cases that
    differ in `run` alone, the further ones are sessions. A case whose name says no subject counts as a
    subject of its own. A table must have all cases.

    Raises:
        UserError: if the table lacks a case, or two cases are the same subject, session and contrast.
    """
    wanted = sorted(case_ids)
    cases, warnings = _from_table(wanted, table) if table else _from_names(wanted)
    keys = Counter(case.key for case in cases)
    twice = next((key for key, count in keys.items() if count > 1), None)
    if twice:
        same = [case.case_id for case in cases if case.key == twice]
        raise UserError(
            f"{table.file if table else 'cases'}: expected one case per subject, session and contrast, found "
            f"{examples(same)} for {' '.join(filter(None, twice))}: tell them apart in the column contrast "
            "or session"
        )
    return tuple(cases), warnings


def _from_table(case_ids: Sequence[str], table: CaseTable) -> tuple[list[Case], list[str]]:
    known = {case.case_id: case for case in table.cases}
    missing = [case_id for case_id in case_ids if case_id not in known]
    if missing:
        raise UserError(
            f"{table.file}: expected a row for every reference, found none for {examples(missing)}: add "
            f"{len(missing)} rows, or leave these references out"
        )
    others = sorted(set(known) - set(case_ids))
    warnings = [f"{table.file}: {len(others)} cases have no reference: {examples(others)}"] if others else []
    return [known[case_id] for case_id in case_ids], warnings


def _from_names(case_ids: Sequence[str]) -> tuple[list[Case], list[str]]:
    short = _repeats_as_sessions([Case.from_name(case_id) for case_id in case_ids])
    once = len({case.key for case in short}) == len(short)
    cases = short if once else [Case.from_name(case_id, whole_rest=True) for case_id in case_ids]
    nameless = [case_id for case_id in case_ids if not case_id.startswith("sub-")]
    if not nameless:
        return cases, []
    return cases, [
        f"{len(nameless)} case names say no subject ({examples(nameless)}): each counts as a subject of its "
        "own. If that is not so, p values and intervals come out too small: name cases sub-01_T2w, or give "
        "--subjects TSV"
    ]


def _repeats_as_sessions(cases: Sequence[Case]) -> list[Case]:
    """Return cases with the run of a further scan in the session, where nothing else tells the scans apart.

    The first stays beside the other contrasts: as contrasts, or all in sessions of their own, the runs of one
    person would leave nobody, or not this person, with every contrast.
    """
    seen, sessions = set[Any](), {}
    for case in sorted(cases, key=lambda case: case.case_id):
        alike = (case.key, *sorted({**case.entities, "run": ""}.items()))
        if "run" in case.entities and alike in seen:
            run = f"run-{case.entities['run']}"
            sessions[case.case_id] = f"{case.session}_{run}" if case.session else run
        seen.add(alike)
    return [replace(case, session=sessions.get(case.case_id, case.session)) for case in cases]


def scheme_of(reference: Path) -> LabelScheme:
    """Return the labels of dataset.json in or above the folder of references; without one, none are known."""
    return read_in_or_above(reference, DATASET_JSON, LabelScheme.of) or LabelScheme((), (), (), ())


def label_names(scheme: LabelScheme, labels: Iterable[int]) -> dict[int, str]:
    """Return number -> name, `label 1` of one that the scheme does not know."""
    names = dict(zip(scheme.numbers, scheme.names, strict=True))
    return {label: names.get(label, f"label {label}") for label in labels}


def other_label_names(
    methods: Mapping[str, Path], scheme: LabelScheme, labels: Iterable[int]
) -> Iterator[str]:
    """Warn of methods whose dataset.json has another name for a label of the reference's `scheme`.

    Raises:
        UserError: if the reference has that name for another label: two structures would be compared.
    """
    ours = dict(zip(scheme.numbers, scheme.names, strict=True))
    for method, folder in methods.items():
        theirs = scheme_of(folder)
        named = dict(zip(theirs.numbers, theirs.names, strict=True))
        both = [label for label in labels if label in ours and label in named]
        other = {label: named[label] for label in both if named[label] != ours[label]}
        # A label map is read by the values of regions, which need not be their numbers.
        by_value = not (scheme.has_regions or theirs.has_regions)
        swapped = [label for label, name in other.items() if by_value and name in ours.values()]
        if swapped:
            raise UserError(
                f"{folder}: expected label {swapped[0]} to be {ours[swapped[0]]}, as {DATASET_JSON} of the "
                f"reference says, found {other[swapped[0]]} in that of {method}: give its maps the numbers "
                "of the reference, or correct the file that is wrong"
            )
        if other:
            names = [f"{label} {name}, not {ours[label]}" for label, name in other.items()]
            yield (
                f"{method}: {DATASET_JSON} calls label {examples(names)} as the reference's does; labels are "
                "compared by number"
            )


def training_cases(root: Path) -> dict[str, list[str]]:
    """Return fold -> cases that the model was trained on, from softseg.json as `inference_seconds`."""

    def read(content: Any) -> dict[str, list[str]]:
        return {str(fold): [*map(str, cases)] for fold, cases in content["training_cases"].items()}

    return read_in_or_above(root, REPORT, read) or {}


def calibration_note(root: Path) -> str:
    """Return in words whether a method's maps are calibrated, from softseg.json as `inference_seconds`."""

    def read(content: Any) -> str:
        folds, number = content["calibration"]["folds"], content["calibration"]["num_cases"]
        return f"soft maps calibrated on {number} validation cases of fold {', '.join(map(str, folds))}"

    return read_in_or_above(root, REPORT, read) or ""


def inference_seconds(root: Path) -> dict[str, float]:
    """Return case id -> seconds of all stages, from softseg.json in or above a method's folder, if any."""

    def read(content: Any) -> dict[str, float]:
        return {name: float(sum(case["seconds"].values())) for name, case in content["cases"].items()}

    return read_in_or_above(root, REPORT, read) or {}
