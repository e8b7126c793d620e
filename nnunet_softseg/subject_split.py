"""Which subjects train, validate and test: all images of one person on one side."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nnunet_softseg.errors import UserError

FOLDS = 5
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
        return next(part for part in ("train", "validation", "test") if subject in getattr(self, part))


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
    train = len(names) - test - validation
    if test < 0 or validation < 1 or train < 1:
        raise UserError(
            f"{len(names)} subjects cannot give {test} for testing, {validation} for validation and "
            f"{max(train, 0)} for training: expected at least 0, 1 and 1; choose other numbers"
        )
    drawn = [names[index] for index in np.random.default_rng(seed).permutation(len(names))]
    parts = drawn[test + validation :], drawn[test : test + validation], drawn[:test]
    return Split(*(tuple(sorted(part)) for part in parts))


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
