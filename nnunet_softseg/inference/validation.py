"""Soft maps of the final validation of a fold against the soft labels of its cases: summary_soft.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from nnunet_softseg.datasets.raw_dataset import LabelScheme, label_maps, soft_label_file
from nnunet_softseg.datasets.soft_label import stored_soft_label, value_findings
from nnunet_softseg.errors import raise_first_error
from nnunet_softseg.io.case_files import SOFT_FOLDER, parse_numbered_name
from nnunet_softseg.io.geometry import VoxelGrid, shape_findings
from nnunet_softseg.io.nifti import content_findings, load_nifti, stored_values
from nnunet_softseg.io.results import write_json
from nnunet_softseg.metrics.calibration import Mask, ReliabilityCurve, reliability_curve
from nnunet_softseg.metrics.overlap import soft_measures
from nnunet_softseg.preprocessing.model_plans import versions

VALIDATION = "validation"
"""In the folder of a fold."""
SUMMARY = "summary_soft.json"
"""Soft measures of the final validation of a fold, beside nnU-Net's summary.json."""
_DIGITS = 6

Map = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ValidatedMap:
    """A soft map and the soft label of the same case; the label map tells what to ignore, if anything."""

    case_id: str
    label: str
    soft_map: Path
    soft_label: Path
    label_map: Path | None = None
    ignore: int | None = None

    @property
    def grid(self) -> VoxelGrid:
        """The voxels of both."""
        return VoxelGrid.of(load_nifti(self.soft_map))

    def values(self) -> tuple[Map, Map, Mask]:
        """Return soft map and soft label (x, y, z), in [0, 1], 0 where nothing is known, and where that is.

        Raises:
            UserError: if one does not hold fractions, or their shapes differ.
        """
        predicted, expected = stored_soft_label(self.soft_map), stored_soft_label(self.soft_label)
        raise_first_error(shape_findings(self.soft_map, expected.shape, predicted.shape, of="its soft label"))
        raise_first_error(content_findings(self.soft_map, predicted))
        raise_first_error(value_findings(self.soft_label, expected))
        unknown = np.isnan(expected)
        if self.label_map is not None:
            unknown |= stored_values(self.label_map) == self.ignore
        predicted[unknown] = expected[unknown] = 0
        # A map with a slope brings 1 back as a little more.
        return np.clip(predicted, 0, 1), np.clip(expected, 0, 1), unknown


def validation_folder(model: Path, fold: str | int) -> Path:
    """Return where the final validation of a fold lies in the folder of its model."""
    return model / f"fold_{fold}" / VALIDATION


def validated_maps(
    predictions: Path, soft_labels: Path, dataset_json: Mapping[str, Any]
) -> list[ValidatedMap]:
    """Return the soft maps of a folder of predictions that have a soft label, by case and label."""
    scheme = LabelScheme.of(dataset_json)
    names = dict(zip(scheme.numbers, scheme.names, strict=True))
    found = []
    for file in sorted((predictions / SOFT_FOLDER).glob("*")):
        name = parse_numbered_name(file.name)  # none of other files
        reference = soft_label_file(soft_labels, *name) if name else None
        if name and name[1] in names and reference and reference.is_file():
            found.append((*name, file, reference))
    ignore = scheme.ignore
    of_cases = {} if ignore is None else label_maps(soft_labels.parent, dataset_json, {of[0] for of in found})
    return [
        ValidatedMap(case_id, names[number], file, reference, of_cases.get(case_id), ignore)
        for case_id, number, file, reference in found
    ]


def write_soft_summary(predictions: Path, soft_labels: Path, dataset_json: Mapping[str, Any]) -> None:
    """Write the measures of `overlap.soft_measures` of the soft maps of a folder, and their reliability.

    Measures are given per case and label, and as means over cases (without NaN). Unknown voxels do not count:
    NaN in the soft label, or the label to ignore in labelsTr beside the folder of soft labels.
    """
    cases: dict[str, dict[str, Any]] = {}
    curves: dict[str, list[ReliabilityCurve]] = {name: [] for name in LabelScheme.of(dataset_json).names}
    for pair in validated_maps(predictions, soft_labels, dataset_json):
        (predicted, expected, unknown), grid = pair.values(), pair.grid
        measures = soft_measures(predicted, expected, grid.voxel_mm3, unknown=unknown)
        cases.setdefault(pair.case_id, {})[pair.label] = measures
        curves[pair.label].append(reliability_curve(predicted, expected, grid.spacing_mm, unknown=unknown))
    summary = {
        "versions": versions(),
        "units": {"volume_mm3": "mm3", "rve_percent": "percent, positive is over-segmentation"},
        "mean": {
            # NaN, of a label that is empty in a case, is left out.
            name: pd.DataFrame([case[name] for case in cases.values() if name in case]).mean().to_dict()
            for name in curves
        },
        "reliability": {name: reliability_record(of_cases) for name, of_cases in curves.items()},
        "cases": cases,
    }
    write_json(predictions / SUMMARY, summary)


def reliability_record(curves: Sequence[ReliabilityCurve]) -> dict[str, Any]:
    """Return ECE, Brier score and the curve of cases together, as JSON holds them; None: no voxel."""
    curve = reduce(add, curves, ReliabilityCurve.empty())
    return {
        "ece": _numbers([curve.expected_calibration_error])[0],
        "brier": _numbers([curve.brier_score])[0],
        "num_voxels": curve.num_voxels.tolist(),
        "mean_prediction": _numbers(curve.mean_prediction),
        "mean_reference": _numbers(curve.mean_reference),
    }


def _numbers(values: Sequence[float] | npt.NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), _DIGITS) for value in values]
