"""The shape of a label, coarsely: enough to tell a cord from what a network makes up where there is none.

A network that is shown an image without a cord may answer with pieces here and there, as confident as a cord.
No threshold on values finds that, but it does not look like any label of the training: so the shapes of those
are kept with the model.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nnunet_softseg.settings import HARD_THRESHOLD

AREA_TOLERANCE = 1.25
"""A slice may be this much larger than the largest of the training."""
VARIATION_TOLERANCE, VARIATION_SLACK = 2.0, 0.05
"""The areas may vary this many times as much as in training, and a little more where they hardly varied."""


@dataclass(frozen=True)
class LabelShape:
    """What is kept of the shape of one label in one case, or of the most extreme of many.

    Attributes:
        components: pieces above a half that do not touch, not even at corners.
        largest_area: sum of the label in its fullest slice, in voxels of the network's grid.
        area_variation: standard deviation of the slices' areas over their mean; empty slices not counted.
    """

    components: int
    largest_area: float
    area_variation: float


def label_shape(soft: npt.NDArray[np.floating[Any]], axis: int) -> LabelShape | None:
    """Return the shape of a soft label or map; None if nothing of it exceeds a half.

    Args:
        soft: three axes, values in [0, 1].
        axis: that slices follow one another along.
    """
    core = soft > HARD_THRESHOLD
    if not core.any():
        return None
    around = ndimage.find_objects(core.astype(np.uint8))[0]
    _, components = ndimage.label(core[around], structure=np.ones((3,) * soft.ndim, dtype=bool))
    others = tuple(other for other in range(soft.ndim) if other != axis)
    areas = soft.sum(axis=others, dtype=np.float64)
    areas = areas[areas > 0]
    return LabelShape(int(components), float(areas.max()), float(areas.std() / areas.mean()))


def most_extreme(shapes: Iterable[LabelShape | None]) -> dict[str, float] | None:
    """Return the largest of each figure over the cases of a training, for JSON; None without any label."""
    known = [asdict(shape) for shape in shapes if shape is not None]
    return {name: max(shape[name] for shape in known) for name in known[0]} if known else None


def differences(shape: LabelShape, training: Mapping[str, float]) -> list[str]:
    """Say in what a shape is unlike every label of the training; nothing if it is not.

    Args:
        shape: of a soft map.
        training: from `most_extreme`.
    """
    found = []
    if shape.components > training["components"]:
        found.append(f"{shape.components} separate pieces (in training at most {training['components']:.0f})")
    if shape.largest_area > AREA_TOLERANCE * training["largest_area"]:
        found.append(f"a slice of {shape.largest_area:.0f} voxels (at most {training['largest_area']:.0f})")
    if shape.area_variation > VARIATION_TOLERANCE * training["area_variation"] + VARIATION_SLACK:
        found.append(
            f"areas that vary by {shape.area_variation:.0%} (at most {training['area_variation']:.0%})"
        )
    return found
