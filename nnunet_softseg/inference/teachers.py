"""Which fold of which model may label a case: one that has seen no image of its subject."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from nnunet_softseg.datasets.conversion.splits import make_folds, split_subjects
from nnunet_softseg.errors import UserError
from nnunet_softseg.inference.trained_model import Model
from nnunet_softseg.io.case_files import subjects_of
from nnunet_softseg.io.results import load_json, sha256
from nnunet_softseg.settings import PLANS_KEY

SIDES = ("train", "val")
Fold = Mapping[str, Sequence[str]]
"""Case ids of "train" and "val", as in splits_final.json."""
Subjects = Mapping[str, str]
"""Case id -> subject."""


def same_subjects(case_ids: Iterable[str]) -> dict[str, str]:
    """Return case id -> subject as `subjects_of`; a name that goes on from another is of its subject, too.

    So are slices named after their volume: scan_03_slice-012 of scan_03.
    """
    subjects = subjects_of(dict.fromkeys(case_ids))
    named = {case_id.casefold(): case_id for case_id in subjects}
    for name, case_id in named.items():
        starts = accumulate(name.split("_"), lambda start, part: f"{start}_{part}")
        first, own = subjects[named[next(start for start in starts if start in named)]], subjects[case_id]
        if first != own:
            subjects = {case: first if subject == own else subject for case, subject in subjects.items()}
    return subjects


@dataclass(frozen=True)
class Teacher:
    """One fold of a model, and the fold of the split that it was trained by."""

    model: Model
    split: Fold

    @property
    def name(self) -> str:
        """Return in words which fold of which model it is."""
        return f"fold {self.record['fold']} of {self.record['model']}"

    @cached_property
    def record(self) -> dict[str, Any]:
        """What a pseudo-label says of it."""
        model, entry = self.model, self.model.plans[PLANS_KEY]
        checkpoint = model.folder / f"fold_{model.folds[0]}" / model.checkpoint
        return {
            "model": f"{model.folder.parent.name}/{model.folder.name}",
            "fold": model.folds[0],
            "checkpoint": model.checkpoint,
            "sha256": sha256(checkpoint),
            "trainer": entry.get("trainer"),
            "versions": entry.get("versions"),
        }


def kept_cases(model: Model) -> tuple[str, ...]:
    """Return the cases that the one fold of a model was trained on, as kept with it."""
    return tuple(model.plans[PLANS_KEY].get("training_cases", {}).get(model.folds[0], ()))


def read_splits(file: Path) -> list[Fold]:
    """Return the folds of a splits_final.json; a UserError if it is none."""
    content = load_json(file)
    folds = content if isinstance(content, list) else []
    if not folds or not all(_is_fold(fold) for fold in folds):
        raise UserError(
            f'{file}: expected a list of {{"train": [cases], "val": [cases]}}, as splits_final.json of '
            "nnUNet_preprocessed, found something else: give the split that the models were trained by"
        )
    return folds


def _is_fold(fold: Any) -> bool:
    sides = [fold.get(side) for side in SIDES] if isinstance(fold, Mapping) else [None]
    return all(isinstance(side, list) and all(isinstance(case, str) for case in side) for side in sides)


def find_teachers(models: Sequence[Model], splits: Sequence[Fold], subjects: Subjects) -> tuple[Teacher, ...]:
    """Return the models, of one fold each, with the fold of the split that each was trained by.

    That is the one of its number; where the model keeps other cases than this one trains on, the first that
    trains on them. Fold "all" has seen all.

    Raises:
        UserError: if the split has no fold for one.
    """
    teachers = []
    for model in models:
        number = int(model.folds[0]) if model.folds[0].isdecimal() else None
        if number is None:
            everything = [case for fold in splits for side in SIDES for case in fold[side]]
            teachers.append(Teacher(model, {"train": everything, "val": []}))
            continue
        trained = {subjects[case] for case in kept_cases(model)}
        order = [*splits[number : number + 1], *splits]
        fits = [fold for fold in order if trained and trained <= {subjects[case] for case in fold["train"]}]
        if not fits and number >= len(splits):
            raise UserError(
                f"--splits: expected fold {number} of {model.folder.name} in it, found {len(splits)} folds: "
                "give the split that the models were trained by"
            )
        teachers.append(Teacher(model, fits[0] if fits else splits[number]))
    return tuple(teachers)


def who_labels(
    case_ids: Sequence[str], teachers: Sequence[Teacher], subjects: Subjects
) -> dict[str, tuple[Teacher, ...]]:
    """Return case -> the teachers that label it: those whose fold does not train on its subject.

    Raises:
        UserError: if one of these has seen its subject, by what is kept with the model, or a case has none;
            it names all such cases.
    """
    by_split = [{subjects[case] for case in each.split["train"]} for each in teachers]
    by_model = [{subjects[case] for case in kept_cases(each.model)} for each in teachers]
    found: dict[str, tuple[Teacher, ...]] = {}
    problems = []
    for case in case_ids:
        places = [at for at, seen in enumerate(by_split) if subjects[case] not in seen]
        told = [
            f"{teachers[at].name} has seen its subject" for at in places if subjects[case] in by_model[at]
        ]
        if told or not places:
            problems.append(f"{case}: {', '.join(told) or 'no fold covers it'}")
        found[case] = tuple(teachers[at] for at in places)
    if problems:
        raise UserError(
            "expected that folds label cases whose subject they have not seen, found otherwise for "
            f"{len(problems)} of {len(found)}: {'; '.join(problems)}: add the missing folds (--models), give "
            "the split of the training (--splits), or leave these images out"
        )
    return found


def folds_of_images(
    case_ids: Sequence[str], splits: Sequence[Fold], subjects: Subjects
) -> list[dict[str, list[str]]]:
    """Return folds of new cases: those of the split, by subject, or five if it validates on none of them.

    Cases of subjects that a fold does not validate on are trained on, so subjects that are new in all folds.
    A UserError if there is one subject only, of which no folds can be made.
    """
    names = {subjects[case] for case in case_ids}
    validated = [names & {subjects[case] for case in fold["val"]} for fold in splits]
    if len(names) == 1:
        raise UserError(
            f"expected images of two subjects or more, to train on some and validate on others, found "
            f"{names.pop()} alone: add images"
        )
    if not any(validated):
        validated = [set(fold["val"]) for fold in make_folds(split_subjects(names, num_test=0))]
    return [
        {
            "train": [case for case in case_ids if subjects[case] not in of_fold],
            "val": [case for case in case_ids if subjects[case] in of_fold],
        }
        for of_fold in validated
    ]
