"""How raters are fused."""

import math
from dataclasses import dataclass
from typing import Literal

from nnunet_softseg.errors import UserError

METHODS = ("mean", "staple")
_LARGEST_LABEL = 9999


@dataclass(frozen=True)
class FusionSettings:
    """How raters are fused.

    Attributes:
        method: "mean": the (weighted) mean. "staple": STAPLE, of masks only.
        weights: one per rater, in their order, not negative; None: all alike.
        labels: values in label maps to fuse, one soft label each; None: single files hold fractions, and in
            folders the labels of the file names are taken, and label 1 of files whose names carry none.
        margin_mm: STAPLE and Fleiss' kappa look at the voxels that a rater drew and those so near to one.

    Raises:
        UserError: for values out of range.
    """

    method: Literal["mean", "staple"] = "mean"
    weights: tuple[float, ...] | None = None
    labels: tuple[int, ...] | None = None
    margin_mm: float = 5.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"--method: expected {' or '.join(METHODS)}, found {self.method!r}: choose one")
        if self.weights is not None:
            self._check_weights(self.weights)
        if self.labels is not None:
            self._check_labels(self.labels)
        if not (math.isfinite(self.margin_mm) and self.margin_mm > 0):
            raise UserError(
                f"--margin-mm: expected a length above 0 mm, found {self.margin_mm:g}: 5 is usual"
            )

    def _check_weights(self, weights: tuple[float, ...]) -> None:
        found = ", ".join(f"{weight:g}" for weight in weights) or "none"
        if self.method == "staple":
            raise UserError(
                f"--weights: expected none with STAPLE, which estimates how good each rater is, found "
                f"{found}: leave them out, or use --method mean"
            )
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
            raise UserError(
                f"--weights: expected numbers of 0 or more, at least one above 0, found {found}: correct them"
            )

    @staticmethod
    def _check_labels(labels: tuple[int, ...]) -> None:
        unique = len(set(labels)) == len(labels) > 0
        if not unique or not all(0 < label <= _LARGEST_LABEL for label in labels):
            raise UserError(
                f"--labels: expected different values from 1 to {_LARGEST_LABEL}, found "
                f"{', '.join(map(str, labels)) or 'none'}: 0 is the background"
            )
