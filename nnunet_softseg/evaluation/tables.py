"""Tables: columns and their meaning, order of rows, mean and spread, CSV and JSON."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from nnunet_softseg import __version__
from nnunet_softseg.errors import UserError
from nnunet_softseg.io.results import replacing
from nnunet_softseg.metrics.instances import INSTANCE_COLUMNS as _OF_INSTANCE
from nnunet_softseg.metrics.measure_table import MEASURES

_WHO = {
    "method": "as named by the user",
    "case": "name of the case in the folder of references",
    "subject": "the independent unit",
    "session": "empty if there is none",
    "contrast": "empty if not known",
    "label": "value of the label",
}
_AREA = (
    "mean cross-sectional area over csa_region, corrected for tilt, a slice that the prediction leaves empty "
    "counts as 0"
)
_CSA = {
    "csa_mm2": f"{_AREA}, mm2",
    "reference_csa_mm2": "of the reference, same slices, mm2",
    "csa_error_mm2": "csa_mm2 - reference_csa_mm2",
    "csa_error_percent": "csa_error_mm2 in percent of reference_csa_mm2",
    "abs_csa_error_mm2": "|csa_error_mm2|",
    "abs_csa_error_percent": "|csa_error_percent|",
}
CASE_COLUMNS: Mapping[str, str] = {
    **_WHO,
    "kind": "soft if the prediction has values between 0 and 1, else hard",
    **{
        name: f"{measure.meaning}{', ' + measure.unit if measure.unit else ''}"
        for name, measure in MEASURES.items()
    },
    "abs_rve_percent": "|rve_percent|",
    "abs_hard_rve_percent": "|hard_rve_percent|",
    **_CSA,
    **{
        name.replace("csa_", "csa_hard_", 1): f"the same for maps > 0.5: {meaning}"
        for name, meaning in _CSA.items()
    },
    "csa_region": "over which slices areas are means: levels, the heights common to all contrasts of "
    "the subject, or the reference's own slices",
    "csa_slices": "number of slices of the region",
    "csa_missed_slices": "how many of them the prediction leaves empty",
    "seconds": "inference time by softseg.json of the method, s",
    "resampled": "True if brought to the reference's grid",
    "prediction": "file",
    "reference": "file",
    "image": "file",
    "levels": "file",
}
"""In the order of cases.csv."""
SLICE_COLUMNS: Mapping[str, str] = {
    **_WHO,
    "slice": "index along the S-I axis of the stored array, from 0",
    "z_mm": "height of the reference's centre in the slice, scanner coordinates, mm",
    "level": "vertebral level: 1-7 are C1-C7, 8-19 T1-T12, 20-24 L1-L5; empty if unknown",
    "csa_mm2": "cross-sectional area of the map, corrected for tilt, mm2; empty where the map is",
    "csa_hard_mm2": "the same for the map > 0.5, mm2",
    "in_region": "counts for the area of the case",
}
INSTANCE_COLUMNS: Mapping[str, str] = {**_WHO, **_OF_INSTANCE}
RELIABILITY_COLUMNS: Mapping[str, str] = {
    "method": "as named by the user",
    "label": "value of the label",
    "bin_low": "lower edge of the bin of predicted values",
    "bin_high": "its upper edge",
    "num_voxels": "within 3 mm of the reference, and all others predicted above 0; all cases together",
    "mean_prediction": "their mean predicted value; empty if there are none",
    "mean_reference": "their mean reference value: the observed frequency",
}


def read_table(file: Path, expected: str, **how: Any) -> pd.DataFrame:
    """Return a table in UTF-8; `how` is of `pandas.read_csv`.

    Raises:
        UserError: if it is missing or no table; `expected` says what it should be.
    """
    try:
        return pd.read_csv(file, encoding="utf-8-sig", **how)
    except FileNotFoundError as error:
        raise UserError(f"{file}: expected {expected}, found nothing: check the path") from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: expected {expected}, found: {reason}: write it again") from error


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table: UTF-8, LF, numbers with 8 significant figures, empty for NaN.

    Raises:
        UserError: if it cannot be written.
    """
    with replacing(path) as aside:
        # A file name need not be Unicode.
        table.to_csv(aside, index=False, float_format="%.8g", errors="backslashreplace", lineterminator="\n")


def in_order(table: pd.DataFrame, keys: Sequence[str], **orders: Sequence[str]) -> pd.DataFrame:
    """Return the rows sorted by the columns `keys`; those in `orders` by the place of their values there."""
    places = {column: {name: place for place, name in enumerate(names)} for column, names in orders.items()}
    return table.sort_values(
        list(keys),
        key=lambda column: column.map(places[column.name]) if column.name in places else column,
        ignore_index=True,
    )


def describe(values: npt.NDArray[np.float64]) -> dict[str, float]:
    """Return mean, sd (ddof 1, NaN if any value is infinite) and median of the values that are not NaN."""
    known = values[~np.isnan(values)]
    if not known.size:
        return dict.fromkeys(("mean", "sd", "median"), math.nan)
    finite = known.size > 1 and bool(np.isfinite(known).all())
    with np.errstate(invalid="ignore"):  # both infinities
        mean, median = float(known.mean()), float(np.median(known))
    return {"mean": mean, "sd": float(known.std(ddof=1)) if finite else math.nan, "median": median}


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as JSON can hold them: None for NaN, "inf" for infinity."""
    return [{str(name): json_value(value) for name, value in row.items()} for row in table.to_dict("records")]


def json_value(value: Any) -> Any:
    """Return a number of numpy or pandas as JSON knows it; JSON has no NaN and no infinity."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def made_by(command: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the origin that every JSON file names."""
    return {"name": f"nnunet-softseg {command}", "version": __version__, "parameters": dict(parameters)}
