"""Who trains, validates and tests in the datasets: drawn, or as a file says."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from nnunet_softseg.datasets.conversion.sources import Sources
from nnunet_softseg.datasets.conversion.split_file import read_split_file
from nnunet_softseg.datasets.subject_split import Split, split_by_lists, split_subjects
from nnunet_softseg.errors import UserError, examples

NOT_IN_SPLIT = "not in the split"


@dataclass(frozen=True)
class SplitChoice:
    """What a user wants of the split.

    Attributes:
        file: that says who is where; None draws.
        num_test: subjects to draw; None takes a fifth.
        num_validation: subjects to draw; None takes a fifth.
        seed: of the draw.
    """

    file: Path | None = None
    num_test: int | None = None
    num_validation: int | None = None
    seed: int = 0


def choose_split(sources: Sources, choice: SplitChoice) -> tuple[Split, Sources]:
    """Return the split, and the sources without the subjects that are in no part of it.

    Raises:
        UserError: if the file names unknown subjects, or one in two parts, or if no subject is left to train
            or to validate on.
    """
    subjects = sorted({case.subject for case in sources.cases})
    if choice.file is None:
        numbers = {"num_test": choice.num_test, "num_validation": choice.num_validation}
        return split_subjects(subjects, **numbers, seed=choice.seed), sources
    lists = read_split_file(choice.file)
    if choice.num_test is not None or (choice.num_validation is not None and not lists.test_only):
        raise UserError(
            f"expected either --split or numbers of subjects, got both: {choice.file} says who is where"
        )
    unknown = sorted(lists.named - sources.subjects)
    if unknown:
        raise UserError(
            f"{choice.file}: expected subjects of {sources.bids}, found {len(unknown)} that are not there "
            f"({examples(unknown)}): correct or remove them"
        )
    split = split_by_lists(subjects, lists, num_validation=choice.num_validation, seed=choice.seed)
    return split, _only_in(split, sources, choice.file, lists.named)


def _only_in(split: Split, sources: Sources, file: Path, named: frozenset[str]) -> Sources:
    """Return the cases of the subjects in the split, with a warning where it and the cases differ."""
    there = {case.subject for case in sources.cases}
    chosen = {*split.train, *split.validation, *split.test}
    absent, surplus = sorted(named - there), sorted(there - chosen)
    warnings, left_out = list(sources.warnings), dict(sources.left_out)
    if absent:
        warnings.append(
            f"{file}: {len(absent)} of {len(named)} subjects have no image in this dataset "
            f"({examples(absent)})"
        )
    if surplus:
        warnings.append(
            f"{file} does not name {len(surplus)} of {len(there)} subjects ({examples(surplus)}): left out"
        )
        left_out[NOT_IN_SPLIT] = tuple(
            case.image.relative_to(sources.bids).as_posix()
            for case in sources.cases
            if case.subject in surplus
        )
    cases = tuple(case for case in sources.cases if case.subject in chosen)
    return dataclasses.replace(sources, cases=cases, left_out=left_out, warnings=tuple(warnings))
