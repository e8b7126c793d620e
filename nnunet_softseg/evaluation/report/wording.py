"""Numbers and verdicts as a person reads them: digits, units, p values; who wins, and does it hold."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from nnunet_softseg.errors import printable
from nnunet_softseg.evaluation.comparison.leaderboard import SCORES, Outcome, Verdict, subjects_lacking
from nnunet_softseg.evaluation.comparison.result import Comparison
from nnunet_softseg.io.html import NO_VALUE, figures
from nnunet_softseg.metrics.measure_table import Measure

NO_BREAK = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
_SMALLEST_P = 0.001
_MOST_MORE_DECIMALS = 2
_INTERVAL_DIGITS = 2
_NEXT_TO_NOTHING = 1e-6
_LONGEST_NAME = 22
_UNITS = {"mm2": "mm²", "mm3": "mm³"}
_BADGES: dict[Verdict, str] = {
    each: each.value for each in (Verdict.HOLDS, Verdict.EXPLORATORY, Verdict.EQUAL, Verdict.TOO_FEW)
}
_BADGES[Verdict.ALONE] = ""


def unit_text(unit: str) -> str:
    """Return a unit as it is printed: mm² for mm2."""
    return _UNITS.get(unit, unit)


def number(value: float, digits: int = 3) -> str:
    """Return so many significant figures; a dash for NaN, ∞, and an exponent for next to nothing."""
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    tiny = 0 < abs(value) < _NEXT_TO_NOTHING
    return (f"{value:.1g}" if tiny else figures(value, digits)).replace("-", MINUS)


def quantity(value: float, unit: str, digits: int = 3) -> str:
    """Return a number with its unit: 0.92 mm², 0.963."""
    return f"{number(value, digits)}{NO_BREAK}{unit_text(unit)}".rstrip()


def mean_and_sd(mean: float, sd: float, decimals: int) -> str:
    """Return both with so many decimals: 1.77 ± 0.48; the mean alone if there is no standard deviation."""
    if not math.isfinite(mean):
        return number(mean)
    spread = f" ±{NO_BREAK}{sd:.{decimals}f}" if math.isfinite(sd) else ""
    return f"{mean:.{decimals}f}{spread}".replace("-", MINUS)


def shared_decimals(values: Iterable[float], digits: int = 3) -> int:
    """Return the decimals that give the smallest of some numbers its significant figures, within limits.

    One that is next to nothing beside the others does not fill the row with digits.
    """
    sizes = [abs(value) for value in values if math.isfinite(value) and value != 0]
    if not sizes:
        return digits - 1
    wanted, least = (digits - 1 - math.floor(math.log10(size)) for size in (min(sizes), max(sizes)))
    return max(min(wanted, least + _MOST_MORE_DECIMALS), 0)


def interval(low: float, high: float, unit: str = "") -> str:
    """Return both ends of an interval to the same digits: 0.31 to 0.70 mm²; a dash if it has none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return NO_VALUE
    smaller, larger = sorted((abs(low), abs(high)))
    if larger < _NEXT_TO_NOTHING:
        return f"{number(low)} to {quantity(high, unit)}"
    decimals = shared_decimals([larger], _INTERVAL_DIGITS)
    if 0 < smaller <= 0.5 * 10.0**-decimals:  # an end just beside 0 must not be printed as 0
        decimals = min(shared_decimals([smaller], 1), decimals + _MOST_MORE_DECIMALS)
    # + 0.0: an end of exactly 0 that was turned round is -0.0
    text = f"{low + 0.0:.{decimals}f} to {high + 0.0:.{decimals}f}{NO_BREAK}{unit_text(unit)}"
    return text.rstrip().replace("-", MINUS)


def p_value(p: float) -> str:
    """Return "p = 0.031", "p < 0.001", or a dash."""
    if math.isnan(p):
        return NO_VALUE
    sign = "" if p < _SMALLEST_P else f"={NO_BREAK}"
    return f"p{NO_BREAK}{sign}{plain_p(p)}"


def plain_p(p: float) -> str:
    """Return a p value for a column of them: 0.031, < 0.001."""
    return f"<{NO_BREAK}{_SMALLEST_P}" if p < _SMALLEST_P else figures(p, 2)


def counted(count: int, noun: str) -> str:
    """Return "1 subject", "2 subjects"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Return "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def shortened(name: str, longest: int = _LONGEST_NAME) -> str:
    """Return a name in one line without its middle, if it is long; unprintable characters become "?"."""
    line = printable(name)
    if len(line) <= longest:
        return line
    head = (longest - 1) // 2
    return f"{line[:head]}…{line[head + 1 - longest :]}"


def badge(found: Outcome) -> str:
    """Return one or two words for a table."""
    return _BADGES.get(found.verdict, "not shown")


def against(found: Outcome) -> str:
    """Return how the winner differs from the runner-up, "0.50 mm² less than nnUNet", or why none is told."""
    if found.verdict is Verdict.CONTRADICTED:
        return str(found.verdict.value)
    amount = _amount(found)
    median = ", in the median" if found.interval_of == "median" else ""
    return f"{amount} than {found.runner_up}{median}" if amount else ""


def uncertainty(found: Outcome) -> str:
    """Return interval and p value of the difference, or "" where there are none."""
    if found.verdict is Verdict.CONTRADICTED:
        return ""
    low, high = (found.ci_low, found.ci_high) if found.difference > 0 else (-found.ci_high, -found.ci_low)
    parts = []
    if math.isfinite(low) and math.isfinite(high):
        parts.append(f"95 % CI {interval(low, high, SCORES[found.measure].unit)}")
    if not (math.isnan(found.p_corrected) or found.verdict is Verdict.TOO_FEW):
        parts.append(p_value(found.p_corrected))
    return ", ".join(parts)


def _amount(found: Outcome) -> str:
    """Return by how much the winner differs, in which direction: "0.50 mm² less".

    "" for one that the cases of both contradict: their difference goes the other way.
    """
    contradicted = found.verdict is Verdict.CONTRADICTED
    if contradicted or not math.isfinite(found.difference) or found.difference == 0:
        return ""
    direction = "less" if found.difference < 0 else "more"
    return f"{quantity(abs(found.difference), SCORES[found.measure].unit, 2)} {direction}"


def verdict(comparison: Comparison, label: int) -> list[Markup]:
    """Return the sentences that a reader needs first, of the primary measure ahead; empty without values."""
    found = [each for each in comparison.outcomes if each.label == label]
    headlines = [each for each in found if each.role != "exploratory"] or found[:1]
    headlines.sort(key=lambda each: each.role != "primary")
    sentences = [_sentence(comparison, each, first=each is headlines[0]) for each in headlines]
    few = next((place for place, each in enumerate(headlines) if each.verdict is Verdict.TOO_FEW), None)
    if few is not None:
        sentences[few] += Markup(
            " <strong>Too few subjects</strong> to tell whether that is more than chance: {}."
        ).format(subjects_lacking(headlines[few].num_subjects, headlines[few].num_tests))
    rest = [each for each in found if each.role == "exploratory" and each not in headlines]
    if any(each.winner for each in rest):
        sentences.append(_count(rest))
    if found and all(each.role != "primary" for each in found):
        title = _title(SCORES[comparison.parameters["primary"]])
        sentences.insert(0, Markup("The primary measure, {}, has no value.").format(title))
    return sentences


def _sentence(comparison: Comparison, found: Outcome, *, first: bool) -> Markup:
    scores = comparison.scores
    scores = scores[(scores["label"] == found.label) & (scores["measure"] == found.measure)]
    measure, best = SCORES[found.measure], scores.sort_values("rank").iloc[0]
    value, title = _value(comparison, best, measure), _title(measure)
    if not found.winner:
        return _undecided(found, title, value, best)
    end = "largest" if measure.higher_is_better else "smallest"
    by = "By the primary measure, " if found.role == "primary" else ""
    text = Markup("{}<strong>{}</strong> has the {} {} ({})").format(by, found.winner, end, title, value)
    if _amount(found):
        median = ", in the median of subjects" if found.interval_of == "median" else ""
        text += Markup(", {} than <strong>{}</strong>{}").format(_amount(found), found.runner_up, median)
    too_few = found.verdict is Verdict.TOO_FEW
    if uncertainty(found):
        test = f"; Wilcoxon signed-rank test over {counted(found.num_subjects, 'subject')}"
        pairs = f", corrected for {found.num_tests} tests" if found.num_tests > 1 else ""
        text += Markup(" ({}{})").format(uncertainty(found), test + pairs if first and not too_few else "")
    return text + Markup(".{}").format("" if too_few else f" {_more_than_chance(found)}")


def _undecided(found: Outcome, title: str, value: str, best: "pd.Series[float]") -> Markup:
    names = Markup(listed([Markup("<strong>{}</strong>").format(name) for name in found.best]))
    if found.verdict is Verdict.EQUAL:
        return Markup("{} have the same {} ({}).").format(names, title, value)
    ends = interval(best["ci_low"], best["ci_high"])
    over = counted(int(best["num_subjects"]), "subject") + (f" (95 % CI {ends})" if ends != NO_VALUE else "")
    return Markup("{}: {}, {} over {}.").format(names, title, value, over)


def _value(comparison: Comparison, best: "pd.Series[Any]", measure: Measure) -> str:
    if not math.isinf(best["mean"]):
        return f"mean {quantity(best['mean'], measure.unit)}"
    cases = comparison.cases
    cases = cases[(cases["method"] == best["method"]) & (cases["label"] == best["label"])]
    missing, absent = cases["prediction_is_empty"] == 1, cases["reference_is_empty"] == 1
    reasons = {
        "a case was left empty": (missing & ~absent).any(),
        "something was found where the reference is empty": (absent & ~missing).any(),
    }
    why = " and ".join(reason for reason, holds in reasons.items() if holds)
    median = quantity(best["median"], measure.unit)
    return f"median {median}; the mean is infinite{f', as {why}' * bool(why)}"


def _title(measure: Measure) -> str:
    """Return the title inside a sentence: abbreviations keep their capitals."""
    title = measure.title
    keeps = title == "Dice" or title.split()[0].isupper()
    return title if keeps else title[0].lower() + title[1:]


def _more_than_chance(found: Outcome) -> str:
    if found.holds:
        return "The difference holds."
    reason = "" if found.verdict is Verdict.NOT_SIGNIFICANT else f" ({found.verdict.value})"
    return f"That may be chance: the difference does not hold{reason}."


def _count(found: list[Outcome]) -> Markup:
    """Return how often which method is best by the exploratory measures."""
    best = Counter(each.winner for each in found if each.winner)
    parts = [
        Markup("<strong>{}</strong> is best in {}").format(name, count) for name, count in best.most_common()
    ]
    others = counted(len(found), "other measure")
    return Markup("Exploratory, some by chance: of {}, {}.").format(others, Markup("; ").join(parts))
