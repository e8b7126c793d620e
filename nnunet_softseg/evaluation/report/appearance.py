"""How methods look in every figure: one colour, one marker and one short name each."""

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from nnunet_softseg.evaluation import REFERENCE

# Told apart with every kind of colour vision, on white and in grey print; markers repeat the message.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7B1E4B", "#7F7F2A")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "*")
_REFERENCE_COLOUR = "#4A4A4A"
_LONGEST_NAME = 22
_STYLE: Any = {
    # Names may hold anything: `$` starts no formula.
    "text.parse_math": False,
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a949e",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e7eb",
    "grid.linewidth": 0.7,
    "xtick.color": "#3c4650",
    "ytick.color": "#3c4650",
    "legend.frameon": False,
    "figure.facecolor": "white",
}


@dataclass(frozen=True)
class MethodStyle:
    """How one method is shown.

    Attributes:
        name: as the user wrote it.
        short: what figures say: printable, not long, unlike any other method's.
        colour: "#rrggbb".
        marker: of matplotlib.
    """

    name: str
    short: str
    colour: str
    marker: str


def method_styles(methods: Sequence[str]) -> dict[str, MethodStyle]:
    """Return name -> style of all methods and, last, of the reference."""
    shorts = _unlike_each_other([shortened(name) for name in methods])
    looks = zip(methods, shorts, itertools.cycle(_COLOURS), itertools.cycle(_MARKERS), strict=False)
    styles = {name: MethodStyle(name, short, colour, marker) for name, short, colour, marker in looks}
    return styles | {REFERENCE: MethodStyle(REFERENCE, REFERENCE, _REFERENCE_COLOUR, "o")}


def shortened(name: str, longest: int = _LONGEST_NAME) -> str:
    """Return a name in one line without its middle, if it is long; what cannot be printed becomes "?"."""
    printable = "".join(character if character.isprintable() else "?" for character in name)
    if len(printable) <= longest:
        return printable
    head = (longest - 1) // 2
    return f"{printable[:head]}…{printable[head + 1 - longest :]}"


def _unlike_each_other(names: list[str]) -> list[str]:
    twice = {name for name in names if names.count(name) > 1}
    return [f"{name} #{place + 1}" if name in twice else name for place, name in enumerate(names)]


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that leaves room for its texts, in inches."""
    # A browser's letters may be a little wider than those that matplotlib measures.
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Draw and save figures in here: the report's style, names as plain text."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A name in a script that the font lacks: boxes in the PNG, right in the SVG.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield
