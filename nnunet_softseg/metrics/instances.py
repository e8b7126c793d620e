"""Single objects in two soft maps: which are found, how well each fits, and panoptic quality.

An object is a connected component above 0.5 (26 neighbours, in a plane 8), or, where touching objects are
split, what a watershed makes of one. Two match if their intersection over union (IoU) exceeds 0.5 strictly,
so that no object can match two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import ndimage

from nnunet_softseg.io.geometry import bounding_box, has_neighbours
from nnunet_softseg.settings import HARD_THRESHOLD

Map = npt.NDArray[np.floating[Any]]
Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

INSTANCE_COLUMNS = {
    "instance": "number of the object in its case, from 1: those of the reference, then the false ones",
    "outcome": "true_positive, false_positive or false_negative",
    "volume_mm3": "of the predicted object, its voxels > 0.5, mm3; empty if it is missed",
    "reference_volume_mm3": "of the reference's, mm3; empty if there is none",
    "x_mm": "centre of the reference's object (of a false one the predicted), scanner coordinates, R-L, mm",
    "y_mm": "the same, A-P",
    "z_mm": "the same, S-I",
    "largest_value": "largest predicted value within that object",
    "iou": "intersection over union with the object that it matches, or overlaps most; 0 if none",
}
_MATCH = 0.5


@dataclass(frozen=True)
class _Objects:
    """The components of one map: number of each voxel, and by number their sizes (0 at 0) and centres.

    `sizes` (n + 1,) in voxels; `centres` (n + 1, 3) in voxels of the whole image; `largest` (n + 1,) the
    largest predicted value within.
    """

    of_voxel: Numbers
    sizes: Numbers
    centres: Floats
    largest: Floats

    @property
    def count(self) -> int:
        return len(self.sizes) - 1


@dataclass(frozen=True)
class InstanceMatches:
    """The objects of a prediction held against those of its reference.

    `ious` of every pair that overlaps: IoU, soft IoU, number in the prediction, number in the reference.
    """

    predicted: _Objects
    expected: _Objects
    ious: pd.DataFrame

    @property
    def matched(self) -> pd.DataFrame:
        """The pairs with an IoU above 0.5."""
        return self.ious[self.ious["iou"] > _MATCH]

    def measures(self) -> dict[str, float]:
        """Return counts and qualities; SQ and soft SQ are 0 without a match, a share of nothing is NaN.

        RQ = TP / (TP + FP/2 + FN/2), SQ = mean IoU of the matched, PQ = RQ SQ.

        Source: Kirillov et al. 2019, Panoptic Segmentation, Eq. 1.
        """
        matched = self.matched
        found, predicted, expected = len(matched), self.predicted.count, self.expected.count
        quality = {name: float(matched[name].mean()) if found else 0.0 for name in ("iou", "soft_iou")}
        rq = 2 * found / (predicted + expected) if predicted + expected else np.nan
        return {
            "true_positives": float(found),
            "false_positives": float(predicted - found),
            "false_negatives": float(expected - found),
            "rq": rq,
            "sq": quality["iou"],
            "pq": rq * quality["iou"],
            "soft_sq": quality["soft_iou"],
            "instance_sensitivity": found / expected if expected else np.nan,
            "instance_precision": found / predicted if predicted else np.nan,
        }

    def table(self, affine: Floats) -> pd.DataFrame:
        """Return `INSTANCE_COLUMNS`, a row per object of the reference, then per false one.

        `affine` (4, 4) leads from voxels to scanner coordinates in mm.
        """
        voxel_mm3 = abs(float(np.linalg.det(affine[:3, :3])))
        partner = dict(zip(self.matched["expected"], self.matched["predicted"], strict=True))
        false = sorted({*range(1, self.predicted.count + 1)} - {*partner.values()})
        best = {side: self.ious.groupby(side)["iou"].max() for side in ("expected", "predicted")}
        rows = []
        for number in range(1, self.expected.count + 1):
            twin = partner.get(number)
            volume = self.predicted.sizes[twin] * voxel_mm3 if twin else np.nan
            outcome = "true_positive" if twin else "false_negative"
            own = self.expected.sizes[number] * voxel_mm3
            rows.append((outcome, volume, own, *_row(self.expected, number, best["expected"], affine)))
        for number in false:
            volume = self.predicted.sizes[number] * voxel_mm3
            row = _row(self.predicted, number, best["predicted"], affine)
            rows.append(("false_positive", volume, np.nan, *row))
        names = [*INSTANCE_COLUMNS][1:]
        table = pd.DataFrame(rows, columns=names).astype(dict.fromkeys(names[1:], np.float64))
        return table.rename_axis("instance").reset_index().assign(instance=lambda rows: rows["instance"] + 1)


def _row(objects: _Objects, number: int, best: "pd.Series[float]", affine: Floats) -> tuple[float, ...]:
    centre = affine[:3, :3] @ objects.centres[number] + affine[:3, 3]
    return (*map(float, centre), float(objects.largest[number]), float(best.get(number, 0.0)))


def match_instances(
    prediction: Map, reference: Map, *, split_touching: Sequence[float] | None = None
) -> InstanceMatches:
    """Return the objects of two soft maps on one grid, and how they overlap.

    Args:
        prediction: (x, y, z) in [0, 1].
        reference: as prediction.
        split_touching: size of a voxel per axis, mm, where touching objects are split; None: they are one.
    """
    # with a margin: an object of one slice in a volume is no image of a plane
    box = bounding_box((prediction > HARD_THRESHOLD) | (reference > HARD_THRESHOLD), (1,) * prediction.ndim)
    start = np.array([axis.start for axis in box], dtype=np.float64)
    maps = tuple(np.asarray(whole[box], dtype=np.float64) for whole in (prediction, reference))
    where = np.nonzero((maps[0] > HARD_THRESHOLD) | (maps[1] > HARD_THRESHOLD))
    places = np.stack(where, axis=1) + start
    values = tuple(whole[where] for whole in maps)
    numbers = [numbered_objects(whole > HARD_THRESHOLD, split_touching)[where] for whole in maps]
    predicted, expected = (_objects(each.astype(np.int64), places, values[0]) for each in numbers)
    return InstanceMatches(predicted, expected, _overlaps(predicted, expected, *values))


def numbered_objects(
    above: npt.NDArray[np.bool_], split_touching: Sequence[float] | None = None
) -> npt.NDArray[np.int32]:
    """Return the number of the object of each voxel, 0 outside of all.

    Split are components whose distance to their surface has several maxima: it must fall by more than a voxel
    on the way from one to the next. Each voxel belongs to the maximum that a watershed leads it to.

    Args:
        above: (x, y, z) voxels of all objects.
        split_touching: as `match_instances` has it.
    """
    around = np.ones((3,) * above.ndim)
    if split_touching is None or not above.any():
        return np.asarray(ndimage.label(above, around)[0], dtype=np.int32)
    from skimage.morphology import h_maxima  # only here: it takes longer to load than a map to read
    from skimage.segmentation import watershed

    # A ring of background: else an object that is cut off by the border would be deepest there. Not across an
    # image of a plane: there, nothing would be deeper than a voxel.
    ring = [int(there) for there in has_neighbours(above.shape)]
    padded = np.pad(above, [(wide, wide) for wide in ring])
    depth_mm = ndimage.distance_transform_edt(padded, sampling=split_touching)
    depth_mm = depth_mm[tuple(slice(wide, wide + size) for wide, size in zip(ring, above.shape, strict=True))]
    longest_mm = max(length for length, there in zip(split_touching, ring, strict=True) if there)
    maxima = h_maxima(depth_mm, longest_mm) > 0
    # A component that is nowhere as deep as that has no such maximum: it is one object.
    components, count = ndimage.label(above, around)
    without = np.setdiff1d(np.arange(1, count + 1), components[maxima])
    markers, _ = ndimage.label(maxima | np.isin(components, without), around)
    return np.asarray(watershed(-depth_mm, markers, connectivity=around, mask=above), dtype=np.int32)


def _objects(of_voxel: Numbers, places: Floats, predicted: Floats) -> _Objects:
    count = int(of_voxel.max(initial=0))
    sizes = np.bincount(of_voxel, minlength=count + 1)
    sums = [np.bincount(of_voxel, axis, minlength=count + 1) for axis in places.T]
    centres = np.stack(sums, axis=1) / np.maximum(sizes, 1)[:, None]
    largest = np.zeros(count + 1)
    np.maximum.at(largest, of_voxel, predicted)
    sizes[0] = 0
    return _Objects(of_voxel, sizes, centres, largest)


def _overlaps(predicted: _Objects, expected: _Objects, prediction: Floats, reference: Floats) -> pd.DataFrame:
    """Return the IoU of every pair that overlaps, of voxels > 0.5 and of values: sum min / sum max.

    Both over the union of the pair. A voxel that belongs to another object counts there as 0, as it does for
    the IoU of voxels: else objects that merge or split would agree with what they have swallowed.
    """
    both = (predicted.of_voxel > 0) & (expected.of_voxel > 0)
    voxels = pd.DataFrame({"predicted": predicted.of_voxel[both], "expected": expected.of_voxel[both]})
    low, high = np.minimum(prediction, reference), np.maximum(prediction, reference)
    voxels = voxels.assign(shared=1, low=low[both])
    pairs = voxels.groupby(["predicted", "expected"], as_index=False).sum()
    i, j = pairs["predicted"].to_numpy(), pairs["expected"].to_numpy()
    union = predicted.sizes[i] + expected.sizes[j] - pairs["shared"]
    alone = np.where(both, 0.0, low)
    soft_shared = _sums(predicted, alone)[i] + _sums(expected, alone)[j] + pairs["low"]
    # Where two objects meet, each side counts what it holds; of this pair that is p + y = min + max.
    ours, theirs = np.where(both, prediction, high), np.where(both, reference, high)
    soft_union = _sums(predicted, ours)[i] + _sums(expected, theirs)[j] - pairs["low"]
    return pairs.assign(iou=pairs["shared"] / union, soft_iou=soft_shared / soft_union)


def _sums(objects: _Objects, values: Floats) -> Floats:
    sums: Floats = np.bincount(objects.of_voxel, values, minlength=objects.count + 1).astype(np.float64)
    return sums
