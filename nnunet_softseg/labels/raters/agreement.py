"""Agreement of the raters of one image: Dice of each pair, Fleiss' kappa of all."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nnunet_softseg.io.geometry import bounding_box
from nnunet_softseg.labels.raters.fusion import Map, Mask
from nnunet_softseg.metrics.overlap import dice, soft_dice
from nnunet_softseg.settings import HARD_THRESHOLD


class RaterMeasure(NamedTuple):
    """One number of a rater, a pair, or all (no rater); NaN where there is none, as for two empty masks."""

    name: str
    rater: str = ""
    other_rater: str = ""
    value: float = math.nan


def agreement(maps: Mapping[str, Map], voxel_volume_mm3: float, region: Mask) -> list[RaterMeasure]:
    """Return the volume of each rater, Dice of each pair (> 0.5), their mean, and Fleiss' kappa.

    With soft maps among them, the soft Dice of each pair, too; of two masks it is the same as Dice. Maps are
    rater -> values in [0, 1], all of one shape; kappa is taken over the region, see `fusion.neighbourhood`.
    """
    drawn = [(values > HARD_THRESHOLD)[region] for values in maps.values()]
    box = bounding_box(np.logical_or.reduce([values > 0 for values in maps.values()]))
    maps = {rater: values[box] for rater, values in maps.items()}
    volumes = {rater: float(values.sum(dtype=np.float64)) for rater, values in maps.items()}
    measures = [RaterMeasure("volume_mm3", rater, "", volumes[rater] * voxel_volume_mm3) for rater in maps]
    pairs = list(itertools.combinations(maps, 2))
    overlaps = [dice(maps[first], maps[second]) for first, second in pairs]
    measures += [RaterMeasure("dice", *pair, value) for pair, value in zip(pairs, overlaps, strict=True)]
    if any(((values > 0) & (values < 1)).any() for values in maps.values()):
        soft = [soft_dice(maps[first], maps[second]) for first, second in pairs]
        measures += [RaterMeasure("soft_dice", *pair, value) for pair, value in zip(pairs, soft, strict=True)]
    if pairs:
        known = [value for value in overlaps if not math.isnan(value)]
        mean = sum(known) / len(known) if known else math.nan
        measures += [RaterMeasure("mean_dice", value=mean), RaterMeasure("fleiss_kappa", value=kappa(drawn))]
    return measures


def kappa(masks: Sequence[npt.NDArray[np.bool_]]) -> float:
    """Return Fleiss' kappa of several masks, one row of voxels per rater; NaN if all voxels are of one kind.

    Source:
        Fleiss, Psychological Bulletin 76(5), 1971, by statsmodels.
    """
    from statsmodels.stats.inter_rater import fleiss_kappa  # takes a second to import

    foreground: npt.NDArray[np.int64] = np.stack(masks).sum(axis=0, dtype=np.int64)
    if not foreground.any() or (foreground == len(masks)).all():
        return math.nan
    return float(fleiss_kappa(np.stack([len(masks) - foreground, foreground], axis=1), method="fleiss"))
