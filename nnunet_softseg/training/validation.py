"""Soft measures of the final validation of a fold: summary_soft.json beside nnU-Net's summary.json."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_softseg.datasets.soft_label import soft_label_file
from nnunet_softseg.io.atomic import write_json
from nnunet_softseg.io.case_files import SOFT_FOLDER
from nnunet_softseg.io.case_names import parse_numbered_name
from nnunet_softseg.io.geometry import VoxelGrid
from nnunet_softseg.io.nifti import load_nifti
from nnunet_softseg.metrics.overlap import soft_measures
from nnunet_softseg.preprocessing.model_plans import versions

SUMMARY = "summary_soft.json"


def write_soft_summary(
    prediction_folder: Path, soft_label_folder: Path, dataset_json: dict[str, Any]
) -> dict[str, Any]:
    """Compare the soft maps of a folder with the soft labels they should equal, write and return the summary.

    Args:
        prediction_folder: with `soft/<case>_<label>.nii.gz`.
        soft_label_folder: softLabelsTr, with files of the same names.
        dataset_json: of the dataset; its labels name the measures.

    Returns:
        Per case and label the measures of `metrics.soft_measures`, and their mean over cases (without NaN).
    """
    names = {int(value): name for name, value in dataset_json["labels"].items() if name != "background"}
    cases: dict[str, dict[str, Any]] = {}
    for file in sorted((prediction_folder / SOFT_FOLDER).glob("*.nii.gz")):
        name = parse_numbered_name(file.name)
        reference = soft_label_file(soft_label_folder, *name) if name else None
        if name is None or reference is None or not reference.is_file():
            continue
        case, label = name
        predicted, expected = load_nifti(file), load_nifti(reference)
        cases.setdefault(case, {})[names[label]] = soft_measures(
            predicted.get_fdata(dtype=np.float32),
            expected.get_fdata(dtype=np.float32),
            VoxelGrid.of(predicted).voxel_mm3,
        )
    summary = {
        "versions": versions(),
        "units": {"volume_mm3": "mm3", "rve_percent": "percent, positive is over-segmentation"},
        "mean": {
            # NaN, of a label that is empty in a case, is left out.
            name: pd.DataFrame([case[name] for case in cases.values() if name in case]).mean().to_dict()
            for name in names.values()
        },
        "cases": cases,
    }
    write_json(prediction_folder / SUMMARY, summary)
    return summary
