"""The name table: which file shows which contrast, and where its soft label is looked for."""

from collections.abc import Sequence
from dataclasses import dataclass

from nnunet_softseg.errors import UserError
from nnunet_softseg.io.bids import BidsName

MADE_HERE = "derivatives/softseg"
MADE_HERE_SUFFIX = "_label-SC_desc-softseg_probseg"
"""Where `make-gt -o BIDS/derivatives/softseg` writes, and what it appends to an image's name."""
_SAME_CONTRAST_ON_ANOTHER_GRID = "space"


@dataclass(frozen=True)
class NamePattern:
    """The files of one contrast.

    Attributes:
        contrast: as in case ids.
        suffix: the end of the BIDS name.
        entities: those that the name has, as written, `("flip-1", "mt-on")`; it has no others but `space`.
    """

    contrast: str
    suffix: str
    entities: frozenset[str] = frozenset()

    def fits(self, name: BidsName) -> bool:
        """Say whether a file of this name shows the contrast."""
        entities = {
            f"{key}-{value}" for key, value in name.entities.items() if key != _SAME_CONTRAST_ON_ANOTHER_GRID
        }
        return name.suffix == self.suffix and entities == self.entities


@dataclass(frozen=True)
class SoftLabelPlace:
    """Where soft labels lie: a folder of derivatives in the BIDS folder, and the end of their names."""

    folder: str
    suffix: str


@dataclass(frozen=True)
class Layout:
    """How a dataset is laid out.

    Attributes:
        name: for `--layout`.
        places: of soft labels, in the order in which they are tried.
        patterns: all contrasts; empty: every image counts, its contrast is what BIDS says.
    """

    name: str
    places: tuple[SoftLabelPlace, ...]
    patterns: tuple[NamePattern, ...] = ()

    def contrast_of(self, name: BidsName) -> str | None:
        """Return the contrast of a file, or None if it shows none of this layout."""
        if not self.patterns:
            return name.contrast
        return next((pattern.contrast for pattern in self.patterns if pattern.fits(name)), None)

    def in_order(self, contrasts: Sequence[str]) -> list[str]:
        """Return contrasts in the order of the table; without a table, by name."""
        table = list(dict.fromkeys(pattern.contrast for pattern in self.patterns))
        return sorted(set(contrasts), key=lambda name: (table.index(name) if name in table else -1, name))


def _mts(contrast: str, *entities: str) -> NamePattern:
    return NamePattern(contrast, "MTS", frozenset(entities))


BIDS = Layout("bids", (SoftLabelPlace(MADE_HERE, MADE_HERE_SUFFIX),))

# spine-generic/data-multi-subject: the six contrasts of the paper. The third of the MTS family
# (flip-1_mt-off, once acq-MToff) is none of them, nor is the diffusion series (dwi, acq-b0_dwi): its mean is
# rec-average_dwi.
SPINE_GENERIC = Layout(
    "spine-generic",
    (
        SoftLabelPlace(MADE_HERE, MADE_HERE_SUFFIX),
        SoftLabelPlace("derivatives/labels_softseg", "_label-SC_softseg"),
        SoftLabelPlace("derivatives/labels_softseg", "_softseg"),  # until 2024
    ),
    (
        NamePattern("T1w", "T1w"),
        NamePattern("T2w", "T2w"),
        NamePattern("T2star", "T2star"),
        NamePattern("T2star", "T2starw"),  # as BIDS 1.8 spells it
        _mts("mt-on", "flip-1", "mt-on"),
        _mts("mt-on", "mt-on"),
        _mts("mt-on", "acq-MTon"),  # until 2023
        _mts("mt-off", "flip-2", "mt-off"),  # GRE-T1w
        _mts("mt-off", "acq-T1w"),  # until 2023
        NamePattern("dwi", "dwi", frozenset({"rec-average"})),
    ),
)

LAYOUTS = (BIDS, SPINE_GENERIC)


def find_layout(name: str) -> Layout:
    """Return the layout of this name.

    Raises:
        UserError: if there is none.
    """
    for layout in LAYOUTS:
        if layout.name == name:
            return layout
    raise UserError(f"unknown layout {name}: expected one of {', '.join(layout.name for layout in LAYOUTS)}")
