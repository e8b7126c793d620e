"""Numbers as a person reads them: no more digits than mean something, units, infinity, p values."""

import math
from collections.abc import Iterable

from nnunet_softseg.io.html import NO_VALUE, figures

INFINITE = "∞"
NO_BREAK = "\N{NO-BREAK SPACE}"
MINUS = "−"  # noqa: RUF001
SMALLEST_P = 0.001
_MOST_MORE_DECIMALS = 2
_INTERVAL_DIGITS = 2
_NEXT_TO_NOTHING = 1e-6
_UNITS = {"mm2": "mm²", "mm3": "mm³"}


def unit_text(unit: str) -> str:
    """Return a unit as it is printed: mm² for mm2."""
    return _UNITS.get(unit, unit)


def number(value: float, digits: int = 3) -> str:
    """Return a number with so many significant figures.

    Returns:
        A dash for NaN, ∞ for infinity, and an exponent for next to nothing.
    """
    if math.isinf(value):
        return INFINITE if value > 0 else MINUS + INFINITE
    tiny = 0 < abs(value) < _NEXT_TO_NOTHING
    return (f"{value:.1g}" if tiny else figures(value, digits)).replace("-", MINUS)


def quantity(value: float, unit: str, digits: int = 3) -> str:
    """Return a number with its unit: 0.92 mm², 0.963."""
    return f"{number(value, digits)}{NO_BREAK}{unit_text(unit)}".rstrip()


def mean_and_sd(mean: float, sd: float, decimals: int) -> str:
    """Return both with so many decimals: 1.77 ± 0.48; the mean alone if there is no standard deviation."""
    if not math.isfinite(mean):
        return number(mean)
    text = (
        f"{mean:.{decimals}f} ±{NO_BREAK}{sd:.{decimals}f}" if math.isfinite(sd) else f"{mean:.{decimals}f}"
    )
    return text.replace("-", MINUS)


def shared_decimals(values: Iterable[float], digits: int = 3) -> int:
    """Return the decimals that give the smallest of some numbers its significant figures.

    Numbers in a row are easier to compare with the same decimals; one that is next to nothing beside the
    others does not fill the row with digits.
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
    sizes = sorted((abs(low), abs(high)))
    if sizes[1] < _NEXT_TO_NOTHING:
        return f"{number(low)} to {quantity(high, unit)}"
    decimals = shared_decimals([sizes[1]], _INTERVAL_DIGITS)
    if 0 < sizes[0] < 0.5 * 10.0**-decimals:  # an end just beside 0 must not be printed as 0
        decimals = min(shared_decimals([sizes[0]], 1), decimals + _MOST_MORE_DECIMALS)
    return f"{low:.{decimals}f} to {high:.{decimals}f}{NO_BREAK}{unit_text(unit)}".rstrip().replace(
        "-", MINUS
    )


def p_value(p: float) -> str:
    """Return "p = 0.031", "p < 0.001", or a dash."""
    if math.isnan(p):
        return NO_VALUE
    sign = "" if p < SMALLEST_P else f"={NO_BREAK}"
    return f"p{NO_BREAK}{sign}{plain_p(p)}"


def plain_p(p: float) -> str:
    """Return a p value for a column of them: 0.031, < 0.001."""
    if math.isnan(p):
        return NO_VALUE
    return f"<{NO_BREAK}{SMALLEST_P}" if p < SMALLEST_P else figures(p, 2)


def counted(count: int, one: str, several: str = "") -> str:
    """Return "1 subject", "2 subjects"."""
    return f"{count} {one if count == 1 else several or f'{one}s'}"


def listed(names: list[str], conjunction: str = "and") -> str:
    """Return "a", "a and b", "a, b and c"."""
    if len(names) < 2:  # noqa: PLR2004
        return "".join(names)
    return f"{', '.join(names[:-1])} {conjunction} {names[-1]}"
