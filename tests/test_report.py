"""The report as a browser shows it: right numbers, careful words, nothing that a name can break."""

import dataclasses
import math
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nnunet_softseg.comparison import SCORES, Comparison
from nnunet_softseg.comparison.compare import compared
from nnunet_softseg.evaluation import REFERENCE, Evaluation
from nnunet_softseg.evaluation.columns import CASE_COLUMNS
from nnunet_softseg.evaluation.maps import LabelMap
from nnunet_softseg.evaluation.tables import made_by
from nnunet_softseg.measure_table import MEASURES
from nnunet_softseg.report import write_report
from nnunet_softseg.report.appearance import method_styles, shortened
from nnunet_softseg.report.slice_picture import section_of
from nnunet_softseg.report.tables import by_contrast
from nnunet_softseg.report.verdict import verdict
from nnunet_softseg.report.wording import interval, mean_and_sd, number, p_value, shared_decimals

HOSTILE = "<script>document.title='owned'</script>\"'$\\frac{1}{2}$ & ü 頭 ]]> --> \x07\n{{ 7 * 7 }}"
CONTRASTS = ("T1w", "T2w", "mt-on")
NAN = math.nan


# A comparison from known numbers


def make_comparison(
    offsets: Mapping[str, float],
    *,
    subjects: int = 8,
    contrasts: Sequence[str] = CONTRASTS,
    labels: Mapping[int, str] | None = None,
    **changes: Any,
) -> Comparison:
    """Methods whose area is off by their offset, plus what differs between subjects and contrasts.

    Subject s has 70 + s mm2. A method's error is offset * (1 + 0.1 s + 0.2 c), c the number of the contrast.
    """
    labels = dict(labels or {1: "cord"})
    rows = [
        _case(method, offset, subject, place, contrast, label)
        for method, offset in offsets.items()
        for label in labels
        for subject in range(subjects)
        for place, contrast in enumerate(contrasts)
    ]
    cases = pd.DataFrame(rows)[list(CASE_COLUMNS)]
    evaluation = Evaluation(
        methods=tuple(offsets),
        labels=labels,
        cases=cases,
        slices=_slices(cases),
        reliability=_reliability(offsets, labels),
        missing=pd.DataFrame([], columns=["case", "method", "reason"], dtype=str),
        method_notes={name: f"{len(cases)} maps" for name in offsets},
        warnings=(),
    )
    evaluation = dataclasses.replace(evaluation, **changes)
    parameters = {"correction": "holm", "seed": 0, "labels": None}
    return compared(evaluation, Path("references"), made_by("compare", parameters))


def _case(method: str, offset: float, subject: int, place: int, contrast: str, label: int) -> dict[str, Any]:
    area = 70.0 + subject
    error = offset * (1 + 0.1 * subject + 0.2 * place)
    name = f"sub-{subject:02d}"
    who = {"method": method, "case": f"{name}_{contrast}", "subject": name, "session": "", "contrast": contrast}
    measured = {measure: 0.9 - 0.01 * abs(error) for measure in MEASURES}
    areas = {"csa_mm2": area + error, "reference_csa_mm2": area, "csa_error_mm2": error}
    areas |= {"csa_error_percent": 100 * error / area, "abs_csa_error_mm2": abs(error)}
    areas |= {"abs_csa_error_percent": abs(100 * error / area)}
    hard = {key.replace("csa_", "csa_hard_", 1): value for key, value in areas.items()}
    return {
        **dict.fromkeys(CASE_COLUMNS, ""),
        **who,
        "label": label,
        "kind": "soft",
        **measured,
        "abs_rve_percent": abs(error),
        "abs_hard_rve_percent": abs(error),
        **areas,
        **hard,
        "csa_region": "C2-C3",
        "csa_slices": 3,
        "csa_missed_slices": 0,
        "seconds": 0.5 + abs(offset),
        "resampled": False,
    }


def _slices(cases: pd.DataFrame) -> pd.DataFrame:
    """Three slices per case; the error of the case lies in the middle one."""
    tables = []
    who = ["method", "case", "subject", "session", "contrast", "label"]
    first = cases[cases["method"] == cases["method"].iloc[0]].assign(method=REFERENCE, csa_error_mm2=0.0)
    for index, share in enumerate((0.0, 3.0, 0.0)):
        for table in (cases, first):
            area = table["reference_csa_mm2"] + share * table["csa_error_mm2"]
            slices = table[who].assign(slice=index, z_mm=5.0 * index, level=3, csa_mm2=area)
            tables.append(slices.assign(csa_hard_mm2=area, in_region=True))
    return pd.concat(tables, ignore_index=True).astype({"level": "Int64"})


def _reliability(methods: Mapping[str, float], labels: Mapping[int, str]) -> pd.DataFrame:
    edges = np.linspace(0, 1, 11)
    middles = (edges[:-1] + edges[1:]) / 2
    bins = {"bin_low": edges[:-1], "bin_high": edges[1:], "num_voxels": 1000, "mean_prediction": middles}
    tables = [
        pd.DataFrame({"method": method, "label": label, **bins, "mean_reference": middles**1.2})
        for method in methods
        for label in labels
    ]
    return pd.concat(tables, ignore_index=True)
