"""Tables: order of rows, mean and spread, CSV and JSON."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from nnunet_softseg import __version__
from nnunet_softseg.io.atomic import replacing


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
