"""Who wins by a measure, and does the difference hold, in words and no stronger than the statistics are."""

import math
from collections import Counter
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from nnunet_softseg.evaluation.comparison import SCORES, Comparison
from nnunet_softseg.evaluation.comparison.scores import Score
from nnunet_softseg.evaluation.report.wording import counted, interval, listed, p_value, quantity

HEADLINES = ("abs_csa_error_mm2", "std_csa_mm2", "dice")
"""Measures that the first paragraph speaks of: the paper's questions."""
_TOO_FEW = "too few subjects"
_DENIED = "does not hold: "


@dataclass(frozen=True)
class Outcome:
    """The best method by one measure, against the next best.

    Attributes:
        measure: key of SCORES.
        winner: "" if there is none: a tie, or a single method.
        runner_up: likewise.
        difference: winner - runner-up, over subjects.
        low: lower end of its 95 % interval.
        high: upper end.
        p: corrected.
        num_subjects: that the test rests on.
        num_tests: pairs that p is corrected over.
        of: what the difference is, "mean" or "median".
        holds: whether the data show that it is more than chance.
        words: the statistics' own words on that.
    """

    measure: str
    winner: str = ""
    runner_up: str = ""
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    num_subjects: int = 0
    num_tests: int = 0
    of: str = "mean"
    holds: bool = False
    words: str = ""

    @property
    def score(self) -> Score:
        """Title, unit, direction."""
        return SCORES[self.measure]

    @property
    def too_few(self) -> bool:
        """Whether there are too few subjects for the difference ever to hold."""
        return self.words.startswith(_TOO_FEW)

    @property
    def badge(self) -> str:
        """One or two words for a table."""
        if not self.winner:
            return "equal" if "equal" in self.words else ""
        return "holds" if self.holds else "too few subjects" if self.too_few else "not shown"

    def amount(self) -> str:
        """Return by how much the winner differs, in which direction: "0.50 mm² less"."""
        if not math.isfinite(self.difference) or self.difference == 0:
            return ""
        direction = "less" if self.difference < 0 else "more"
        return f"{quantity(abs(self.difference), self.score.unit, 2)} {direction}"

    def against(self) -> str:
        """Return amount and runner-up: "0.50 mm² less than nnUNet"."""
        median = ", in the median" if self.of == "median" else ""
        return f"{self.amount()} than {self.runner_up}{median}" if self.amount() else ""

    def doubt(self) -> str:
        """Return interval and p value of the amount, or "" where there are none."""
        ends = (self.low, self.high) if self.difference > 0 else (-self.high, -self.low)
        parts = []
        if math.isfinite(self.low) and math.isfinite(self.high):
            parts.append(f"95 % CI {interval(*ends, self.score.unit)}")
        if not (math.isnan(self.p) or self.too_few):
            parts.append(p_value(self.p))
        return ", ".join(parts)


def outcome(comparison: Comparison, label: int, measure: str) -> Outcome:
    """Return who wins by a measure that the leaderboard has."""
    row = _rows(comparison.winners, label, measure).iloc[0]
    if not row["winner"]:
        return Outcome(measure, words=str(row["verdict"]))
    pairs = _rows(comparison.statistics, label, measure)
    both = [row["winner"], row["runner_up"]]
    pair = pairs[pairs["method_a"].isin(both) & pairs["method_b"].isin(both)].iloc[0]
    return Outcome(
        measure,
        winner=str(row["winner"]),
        runner_up=str(row["runner_up"]),
        difference=float(row["difference"]),
        low=float(row["ci_low"]),
        high=float(row["ci_high"]),
        p=float(row["p_corrected"]),
        num_subjects=int(pair["num_subjects"]),
        num_tests=int(pair["num_tests"]),
        of=str(pair["interval_of"]),
        holds=bool(row["holds"]),
        words=str(row["verdict"]),
    )


def outcomes(comparison: Comparison, label: int) -> list[Outcome]:
    """Return who wins by each measure of a label, in the order of the leaderboard."""
    there = comparison.winners.loc[comparison.winners["label"] == label, "measure"]
    return [outcome(comparison, label, str(measure)) for measure in there]


def verdict(comparison: Comparison, label: int) -> list[Markup]:
    """Return the sentences that a reader needs first; empty if nothing could be measured."""
    found = outcomes(comparison, label)
    headlines = [each for each in found if each.measure in HEADLINES] or found[:1]
    sentences = [_sentence(comparison, label, each, first=each is headlines[0]) for each in headlines]
    few = next((place for place, each in enumerate(headlines) if each.too_few), None)
    if few is not None:
        sentences[few] += " " + _too_few(headlines[few])
    if any(each.winner for each in found):
        sentences.append(_count(found))
    return sentences


def _sentence(comparison: Comparison, label: int, found: Outcome, *, first: bool) -> Markup:
    scores = _rows(comparison.scores, label, found.measure).sort_values("rank")
    best = scores.iloc[0]
    value = _value(best, found.score)
    title = _title(found.score)
    if not found.winner:
        equal = [str(name) for name in scores.loc[scores["rank"] == 1, "method"]]
        return _undecided(equal, title, value, best)
    end = "largest" if found.score.higher_is_better else "smallest"
    text = Markup("<strong>{}</strong> has the {} {} ({})").format(found.winner, end, title, value)
    if found.amount():
        median = ", in the median of subjects" if found.of == "median" else ""
        text += Markup(", {} than <strong>{}</strong>{}").format(found.amount(), found.runner_up, median)
    if found.doubt():
        text += Markup(" ({}{})").format(found.doubt(), _test(found) if first and not found.too_few else "")
    return text + Markup(".{}").format("" if found.too_few else f" {_does_it_hold(found)}")


def _undecided(methods: list[str], title: str, value: str, best: "pd.Series[float]") -> Markup:
    names = Markup(listed([str(Markup("<strong>{}</strong>").format(name)) for name in methods]))
    if len(methods) == 1:
        over = counted(int(best["num_subjects"]), "subject")
        return Markup("{}: {}, {} over {}{}.").format(names, title, value, over, _interval_of(best))
    return Markup("{} have the same {} ({}).").format(names, title, value)


def _interval_of(best: "pd.Series[float]") -> str:
    known = math.isfinite(best["ci_low"]) and math.isfinite(best["ci_high"])
    return f" (95 % CI {interval(best['ci_low'], best['ci_high'])})" if known else ""


def _value(best: "pd.Series[float]", score: Score) -> str:
    if math.isinf(best["mean"]):
        return (
            f"median {quantity(best['median'], score.unit)}; the mean is infinite, as a case was left empty"
        )
    return f"mean {quantity(best['mean'], score.unit)}"


def _title(score: Score) -> str:
    """Return the title inside a sentence: abbreviations keep their capitals."""
    first = score.title.split()[0]
    return (
        score.title if first.isupper() or score.title == "Dice" else score.title[0].lower() + score.title[1:]
    )


def _test(found: Outcome) -> str:
    test = f"; Wilcoxon signed-rank test over {counted(found.num_subjects, 'subject')}"
    return test + (f", corrected for {found.num_tests} pairs of methods" if found.num_tests > 1 else "")


def _too_few(found: Outcome) -> Markup:
    """Return a warning, said once: what follows rests on the same few subjects."""
    reason = found.words.removeprefix(_TOO_FEW).lstrip(": ")
    return Markup("<strong>Too few subjects</strong> to tell whether that is more than chance: {}.").format(
        reason
    )


def _does_it_hold(found: Outcome) -> str:
    if found.holds:
        return "The difference holds."
    reason = found.words.removeprefix(_DENIED)
    known = reason.startswith("p = ")
    return "That may be chance: the difference does not hold" + (f" ({reason})." if not known else ".")


def _count(found: list[Outcome]) -> Markup:
    """Return how often which method is best; holding differences apart from those that may be chance."""
    best = Counter(each.winner for each in found if each.winner)
    holding = Counter(each.winner for each in found if each.holds)
    parts = [
        Markup("<strong>{}</strong> is best in {}{}").format(name, count, _of_which(holding[name], count))
        for name, count in best.most_common()
    ]
    return Markup("Of {}, {}.").format(counted(len(found), "measure"), Markup("; ").join(parts))


def _of_which(holding: int, count: int) -> str:
    which = "none" if not holding else "all" if holding == count else str(holding)
    where = f"holds in {which} of them" if count > 1 else "holds" if holding else "does not hold"
    return f" (the difference to the next best {where})"


def _rows(table: pd.DataFrame, label: int, measure: str) -> pd.DataFrame:
    return table[(table["label"] == label) & (table["measure"] == measure)]
