"""Whether the best method is better than the next best by more than chance: numbers, and their words."""

import math
from dataclasses import dataclass
from enum import Enum

from nnunet_softseg.evaluation.comparison.paired_statistics import (
    FEWEST_SUBJECTS,
    SIGNIFICANT,
    Statistic,
    subjects_needed,
)


class Verdict(Enum):
    """Whether a difference is more than chance, and if not, why."""

    HOLDS = "holds"
    EXPLORATORY = "exploratory"
    EQUAL = "equal"
    ALONE = "no other method to compare with"
    TOO_FEW = "too few subjects"
    CONTRADICTED = "the cases that both have a value in say otherwise"
    INCLUDES_ZERO = "the interval includes 0"
    NOT_SIGNIFICANT = "the corrected p is too large"


@dataclass(frozen=True)
class Outcome:
    """The best method by one measure of a label, against the next best.

    Attributes:
        best: the methods that share the first rank, in the order given.
        winner: "" if there is none, as `runner_up`: a tie, or a single method.
        difference: winner - runner-up, of subject means; with its 95 % interval.
        p_corrected: over `num_tests`, see `leaderboard.pair_table`.
        role: of the measure, see `scores.role_of`.
        interval_of: "mean", or "median" where a value is infinite.
    """

    label: int
    measure: str
    verdict: Verdict
    best: tuple[str, ...]
    winner: str = ""
    runner_up: str = ""
    difference: float = math.nan
    ci_low: float = math.nan
    ci_high: float = math.nan
    p_corrected: float = math.nan
    num_subjects: int = 0
    num_tests: int = 0
    interval_of: Statistic = "mean"
    role: str = "exploratory"

    @property
    def holds(self) -> bool:
        """Whether the data show that the difference is more than chance."""
        return self.verdict is Verdict.HOLDS

    def in_words(self) -> str:
        """Return the verdict as tables and the terminal show it."""
        if self.verdict is Verdict.EQUAL:
            first, second = sorted(self.best)[:2]
            return f"{first} and {second} are equal"
        if self.verdict is Verdict.TOO_FEW:
            return too_few_subjects(self.num_subjects, self.num_tests)
        if self.verdict is Verdict.NOT_SIGNIFICANT:
            return f"does not hold: p = {self.p_corrected:.2g}"
        denied = self.verdict in {Verdict.CONTRADICTED, Verdict.INCLUDES_ZERO}
        return f"does not hold: {self.verdict.value}" if denied else self.verdict.value


def too_few_subjects(num_subjects: int, num_tests: int) -> str:
    """Return why a test of so few subjects cannot be significant, "" if it can."""
    lacking = subjects_lacking(num_subjects, num_tests)
    return f"{Verdict.TOO_FEW.value}: {lacking}" if lacking else ""


def subjects_lacking(num_subjects: int, num_tests: int) -> str:
    """Return how many subjects there are and how many a test needs, "" if there are enough."""
    if num_subjects < FEWEST_SUBJECTS:
        return f"{num_subjects}, a test needs at least {FEWEST_SUBJECTS}"
    needed = subjects_needed(num_tests)
    wanted = f"p < {SIGNIFICANT} in {num_tests} tests needs at least {needed}"
    return f"{num_subjects}, {wanted}" if num_subjects < needed else ""
