"""Micrographs of discs with rings: fibres with their axons, of known g-ratio; shares of pixels are exact."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_softseg.phantom.scene import Scene, Share, ellipse_share, painted, union

SIDE = 128
COLUMNS = {
    "fibre": "number of the fibre; as in truth/<case>_fibres.png",
    "row": "of the centre, pixels from the upper edge of the picture",
    "column": "pixels from its left edge",
    "fibre_radius": "pixels",
    "axon_radius": "pixels",
    "g_ratio": "axon radius / fibre radius",
}
_PER_SIDE = 3


@dataclass(frozen=True)
class Disc:
    """A fibre around a point (row, column), and its axon; in pixels."""

    row: float
    column: float
    fibre: float
    axon: float


def disc_shares(shape: Sequence[int], discs: Sequence[Disc]) -> tuple[Share, Share]:
    """Return the share of each pixel in a fibre, with all that is in it, and in an axon."""
    centres = [(disc.row, disc.column) for disc in discs]
    fibre, axon = (
        union([ellipse_share(shape, at, (each, each)) for at, each in zip(centres, radii, strict=True)])
        for radii in ([disc.fibre for disc in discs], [disc.axon for disc in discs])
    )
    return fibre, axon


def draw_discs(rng: np.random.Generator) -> Scene:
    """Return a picture of 128 x 128 pixels with nine fibres, axon radii from 1.5 pixels on."""
    cell = SIDE / _PER_SIDE
    discs = []
    for at in range(_PER_SIDE**2):
        radius = float(rng.uniform(4, 17))
        row, column = (cell * (0.5 + each) + rng.uniform(-3, 3) for each in divmod(at, _PER_SIDE))
        discs.append(Disc(float(row), float(column), radius, radius * float(rng.uniform(0.5, 0.8))))
    fibre, axon = disc_shares((SIDE, SIDE), discs)
    shares = {"fibre": fibre, "axon": axon}
    numbers = np.zeros((SIDE, SIDE), np.uint8)
    for at, disc in enumerate(discs, 1):
        numbers[disc_shares(numbers.shape, [disc])[0] > 0.5] = at  # noqa: PLR2004
    rows = [
        dict(
            zip(
                COLUMNS,
                (at, each.row, each.column, each.fibre, each.axon, each.axon / each.fibre),
                strict=True,
            )
        )
        for at, each in enumerate(discs, 1)
    ]
    return Scene(painted(shares, (180, 100), rng).clip(0, 255), shares, None, rows, {"fibres": numbers})
