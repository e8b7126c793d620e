"""Measures of a case: meaning, unit, best value, and value where a map is empty."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

EmptyIf = Literal["soft", "hard"]

_NAN, _INF = math.nan, math.inf


@dataclass(frozen=True)
class EmptyCases:
    """The value of a measure where a map is empty; None: computed as always.

    A map is empty, by `empty_if`, "soft": without a voxel above 0. "hard": above 0.5. The values are those if
    both are empty, or only one of them.
    """

    empty_if: EmptyIf
    both: float | None
    prediction: float | None
    reference: float | None

    def value(self, *, prediction_empty: bool, reference_empty: bool) -> float | None:
        """Return the value declared for such a case; None: computed as always."""
        if prediction_empty and reference_empty:
            return self.both
        if prediction_empty:
            return self.prediction
        return self.reference if reference_empty else None


COMPUTED = EmptyCases("soft", both=None, prediction=None, reference=None)


@dataclass(frozen=True)
class Measure:
    """One measure of one label; p is the prediction and y the reference.

    Attributes:
        unit: "" for a plain number.
        ideal: the value of a perfect prediction: the nearer to it, the better. None: neither good nor bad.
        title: for tables and axes, without the unit, of those by which methods are ranked.
    """

    meaning: str
    unit: str
    ideal: float | None
    empty: EmptyCases = COMPUTED
    title: str = ""

    @property
    def higher_is_better(self) -> bool:
        """Whether the ideal is the upper end: of all overlaps, and of no error."""
        return self.ideal == 1


# What happens to empty maps, and the one place that decides about them.
# Both empty: there is nothing to agree on, so NaN, as in nnU-Net. A 1 would let the share of cases without a
# lesion decide the mean; the two columns *_is_empty tell how often an empty case was left empty.
# One empty: the worst there is, 0 for an overlap and infinity for a distance. NaN would drop from a mean the
# very cases in which a method failed, and any finite distance would be made up; medians and ranks take an
# infinite one.
# Relative to an empty reference: NaN, with the volumes beside it.
_SOFT_OVERLAP = EmptyCases("soft", both=_NAN, prediction=0.0, reference=0.0)
_HARD_OVERLAP = EmptyCases("hard", both=_NAN, prediction=0.0, reference=0.0)
_DISTANCE = EmptyCases("hard", both=_NAN, prediction=_INF, reference=_INF)
_OVER_IMAGE = EmptyCases("soft", both=0.0, prediction=None, reference=None)
_AT_REFERENCE = EmptyCases("soft", both=_NAN, prediction=None, reference=_NAN)
_SOFT_VOLUME = EmptyCases("soft", both=0.0, prediction=0.0, reference=None)
_HARD_VOLUME = EmptyCases("hard", both=0.0, prediction=0.0, reference=None)
_SOFT_REFERENCE_VOLUME = EmptyCases("soft", both=0.0, prediction=None, reference=0.0)
_HARD_REFERENCE_VOLUME = EmptyCases("hard", both=0.0, prediction=None, reference=0.0)
_SOFT_RELATIVE = EmptyCases("soft", both=_NAN, prediction=None, reference=_NAN)
_HARD_RELATIVE = EmptyCases("hard", both=_NAN, prediction=-100.0, reference=_NAN)
_PREDICTION_FLAG = EmptyCases("hard", both=1.0, prediction=1.0, reference=0.0)
_REFERENCE_FLAG = EmptyCases("hard", both=1.0, prediction=0.0, reference=1.0)
_FOUND = EmptyCases("hard", both=0.0, prediction=0.0, reference=0.0)
_FALSE = EmptyCases("hard", both=0.0, prediction=0.0, reference=None)
_MISSED = EmptyCases("hard", both=0.0, prediction=None, reference=0.0)
_OF_REFERENCE = EmptyCases("hard", both=_NAN, prediction=0.0, reference=_NAN)

MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "dice": Measure("Dice of p > 0.5 and y > 0.5", "", 1.0, _HARD_OVERLAP, "Dice"),
        "soft_dice": Measure("2 sum min(p, y) / (sum p + sum y)", "", 1.0, _SOFT_OVERLAP, "Soft Dice"),
        "mae": Measure("mean |p - y| over the image", "", 0.0, _OVER_IMAGE, "MAE"),
        "rmse": Measure("root mean (p - y)^2 over the image", "", 0.0, _OVER_IMAGE, "RMSE"),
        "boundary_mae": Measure("mean |p - y| where 0 < y < 1", "", 0.0, _AT_REFERENCE, "Boundary MAE"),
        "boundary_rmse": Measure(
            "root mean (p - y)^2 where 0 < y < 1", "", 0.0, _AT_REFERENCE, "Boundary RMSE"
        ),
        "brier": Measure(
            "Brier score: sum (p - y)^2 per voxel near the reference", "", 0.0, _AT_REFERENCE, "Brier score"
        ),
        "ece": Measure(
            "expected calibration error per voxel near the reference",
            "",
            0.0,
            _AT_REFERENCE,
            "Expected calibration error",
        ),
        "volume_mm3": Measure("soft volume, sum of p", "mm3", None, _SOFT_VOLUME),
        "reference_volume_mm3": Measure("soft volume, sum of y", "mm3", None, _SOFT_REFERENCE_VOLUME),
        "rve_percent": Measure(
            "soft volume error, > 0: too large; none if y sums to less than 1", "%", 0.0, _SOFT_RELATIVE
        ),
        "hard_volume_mm3": Measure("volume of p > 0.5", "mm3", None, _HARD_VOLUME),
        "hard_reference_volume_mm3": Measure("volume of y > 0.5", "mm3", None, _HARD_REFERENCE_VOLUME),
        "hard_rve_percent": Measure(
            "error of the volume above 0.5, > 0: too large", "%", 0.0, _HARD_RELATIVE
        ),
        "asd_mm": Measure("symmetric mean surface distance above 0.5", "mm", 0.0, _DISTANCE, "ASD"),
        "hd95_mm": Measure("95th percentile Hausdorff distance above 0.5", "mm", 0.0, _DISTANCE, "HD95"),
        "surface_dice": Measure(
            "share of surface above 0.5 within the tolerance", "", 1.0, _HARD_OVERLAP, "Surface Dice"
        ),
        "prediction_is_empty": Measure("1 if no voxel has p > 0.5, else 0", "", None, _PREDICTION_FLAG),
        "reference_is_empty": Measure("1 if no voxel has y > 0.5, else 0", "", None, _REFERENCE_FLAG),
        "true_positives": Measure("objects of the reference that are matched, IoU > 0.5", "", None, _FOUND),
        "false_positives": Measure("predicted objects without a match", "", None, _FALSE),
        "false_negatives": Measure("objects of the reference without a match", "", None, _MISSED),
        "rq": Measure(
            "recognition quality, lesion-wise F1: TP / (TP + FP/2 + FN/2)",
            "",
            1.0,
            _HARD_OVERLAP,
            "Recognition quality",
        ),
        "sq": Measure(
            "segmentation quality: mean IoU of matched objects, 0 without one",
            "",
            1.0,
            _HARD_OVERLAP,
            "Segmentation quality",
        ),
        "pq": Measure("panoptic quality: rq x sq", "", 1.0, _HARD_OVERLAP, "Panoptic quality"),
        "soft_sq": Measure("sq with IoU of values: sum min(p, y) / sum max(p, y)", "", 1.0, _HARD_OVERLAP),
        "instance_sensitivity": Measure(
            "share of the reference's objects that are matched", "", 1.0, _OF_REFERENCE
        ),
        "instance_precision": Measure(
            "share of the predicted objects that are matched", "", 1.0, _HARD_OVERLAP
        ),
    }
)
