"""Which subjects train, validate and test: all images of one person on one side."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nnunet_softseg.errors import UserError

FOLDS = 5
PARTS = ("train", "validation", "test")
_DEFAULT_SHARE = 0.2
_ENOUGH_FOR_TEST = 3


@dataclass(frozen=True)
class Split:
    """Which subjects serve for what, each in one place only."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def part_of(self, subject: str) -> str:
        """Return "train", "validation" or "test"."""
        return next(part for part in PARTS if subject in getattr(self, part))

    def within(self, subjects: Iterable[str]) -> "Split":
        """Return the same split of fewer subjects."""
        kept = set(subjects)
        return Split(*(tuple(name for name in getattr(self, part) if name in kept) for part in PARTS))


@dataclass(frozen=True)
class SubjectLists:
    """A split that was asked for: subjects by part. Without train and validation, the rest is drawn."""

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    @property
    def named(self) -> frozenset[str]:
        """All subjects in it."""
        return frozenset((*self.train, *self.validation, *self.test))

    @property
    def test_only(self) -> bool:
        """Whether it says no more than who is for testing."""
        return not self.train and not self.validation


def split_subjects(
    subjects: Iterable[str],
    *,
    num_test: int | None = None,
    num_validation: int | None = None,
    seed: int = 0,
) -> Split:
    """Return a random split of the subjects; by default 60 / 20 / 20 percent.

    Args:
        subjects: names, in any order, repeated or not.
        num_test: None takes a fifth, at least one of three or more subjects.
        num_validation: None takes a fifth, at least one.
        seed: of the draw; the same seed gives the same split.

    Raises:
        UserError: if not one subject is left to train on, or none to validate on.
    """
    names = sorted(set(subjects))
    fifth = round(_DEFAULT_SHARE * len(names))
    test = max(fifth, int(len(names) >= _ENOUGH_FOR_TEST)) if num_test is None else num_test
    validation = max(fifth, 1) if num_validation is None else num_validation
    _check_numbers(len(names), test, validation)
    drawn = _shuffled(names, seed)
    return _split(drawn[test + validation :], drawn[test : test + validation], drawn[:test])


def split_by_lists(
    subjects: Iterable[str], lists: SubjectLists, *, num_validation: int | None = None, seed: int = 0
) -> Split:
    """Return the split that lists ask for, of the subjects at hand.

    Args:
        subjects: those at hand; one that the lists do not name is in no part, unless they name the test
            subjects only: then those who train and validate are drawn from the others.
        lists: each subject in one part.
        num_validation: of a drawn part; None takes a fifth of all, at least one.
        seed: of the draw.

    Raises:
        UserError: if not one subject is left to train on, or none to validate on.
    """
    names = sorted(set(subjects))
    asked = [[name for name in names if name in getattr(lists, part)] for part in PARTS]
    if lists.test_only:
        test = asked[-1]
        rest = [name for name in names if name not in lists.test]
        validation = max(round(_DEFAULT_SHARE * len(names)), 1) if num_validation is None else num_validation
        _check_numbers(len(names), len(test), validation)
        drawn = _shuffled(rest, seed)
        return _split(drawn[validation:], drawn[:validation], test)
    _check_numbers(sum(map(len, asked)), len(asked[2]), len(asked[1]))
    return _split(*asked)


def _split(*parts: list[str]) -> Split:
    return Split(*(tuple(sorted(part)) for part in parts))


def _shuffled(names: list[str], seed: int) -> list[str]:
    return [names[index] for index in np.random.default_rng(seed).permutation(len(names))]


def _check_numbers(count: int, test: int, validation: int) -> None:
    train = count - test - validation
    if test < 0 or validation < 1 or train < 1:
        raise UserError(
            f"{count} subjects cannot give {test} for testing, {validation} for validation and "
            f"{max(train, 0)} for training: expected at least 0, 1 and 1; choose other numbers"
        )


def make_folds(split: Split) -> list[dict[str, tuple[str, ...]]]:
    """Return the subjects, "train" and "val", of each of nnU-Net's five folds; the first is the split itself.

    The others move a window of as many subjects through all that are not for testing. All five are given
    because nnU-Net makes up a fold that it does not find, image by image, and so trains on the contrasts of
    subjects that it validates on.
    """
    circle = [*split.validation, *split.train]
    size = len(split.validation)
    folds = []
    for fold in range(FOLDS):
        start = round(fold * len(circle) / FOLDS)
        window = {circle[(start + offset) % len(circle)] for offset in range(size)}
        folds.append({"train": tuple(sorted(set(circle) - window)), "val": tuple(sorted(window))})
    return folds
