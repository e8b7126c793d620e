"""The command `evaluate`: one method against its reference."""

from pathlib import Path
from typing import Any

import numpy as np

from nnunet_softseg.evaluation.evaluation import Evaluation, measure_methods
from nnunet_softseg.evaluation.measuring import EvaluationSettings
from nnunet_softseg.evaluation.tables import (
    CASE_COLUMNS,
    INSTANCE_COLUMNS,
    RELIABILITY_COLUMNS,
    SLICE_COLUMNS,
    describe,
    json_value,
    made_by,
    records,
    write_csv,
)
from nnunet_softseg.io.results import make_folder, write_json


def evaluate(
    prediction: str | Path,
    reference: str | Path,
    output: str | Path,
    *,
    name: str = "prediction",
    pattern: str | None = None,
    **options: Any,
) -> Evaluation:
    """Return, and write, all measures of one method.

    Writes cases.csv, slices.csv, instances.csv, reliability.csv, cases.json (with the meaning of every
    column) and summary.json (means, medians, standard deviations over cases) to the output folder; other
    files there stay as they are.

    Args:
        prediction: folder of a prediction: of ours (soft maps in its folder `soft` are taken), of nnU-Net, or
            masks of any other tool; or one file.
        reference: folder with softLabelsTs/labelsTs, or maps of any other name; or one file.
        output: folder; made if missing.
        name: of the method.
        pattern: path of a prediction inside its folder, such as "{case}_seg.nii.gz", if names are not enough.
        options: of `EvaluationSettings.from_arguments`, patterns apart.

    Raises:
        UserError: if a file cannot be used, or nothing is common.
    """
    patterns = {name: pattern} if pattern else {}
    settings = EvaluationSettings.from_arguments(patterns=patterns, **options)
    make_folder(Path(output))
    evaluation = measure_methods({name: Path(prediction)}, Path(reference), settings)
    parameters = {"prediction": str(prediction), "reference": str(reference), **settings.as_dict()}
    origin = made_by("evaluate", parameters)
    write_evaluation(evaluation, Path(output), origin)
    write_json(Path(output) / "summary.json", {"made_by": origin, **_summary(evaluation)})
    return evaluation


def write_evaluation(evaluation: Evaluation, output: Path, origin: dict[str, Any]) -> None:
    """Write the tables of cases, slices, instances and reliability, and cases.json."""
    beside = {"slices": SLICE_COLUMNS, "instances": INSTANCE_COLUMNS, "reliability": RELIABILITY_COLUMNS}
    for name in ("cases", *beside):
        write_csv(output / f"{name}.csv", getattr(evaluation, name))
    described = {
        "made_by": origin,
        "columns": dict(CASE_COLUMNS),
        "columns_of": {f"{name}.csv": dict(columns) for name, columns in beside.items()},
        "cases": records(evaluation.cases),
    }
    write_json(output / "cases.json", described)


def _summary(evaluation: Evaluation) -> dict[str, Any]:
    """Return means, medians and standard deviations per label, warnings and missing cases."""
    numbers = evaluation.cases.select_dtypes("number").columns.drop("label")
    labels: dict[str, dict[str, Any]] = {}
    for label, rows in evaluation.cases.groupby("label"):
        values = {measure: rows[measure].dropna().to_numpy(np.float64) for measure in numbers}
        labels[evaluation.labels[int(label)]] = {
            measure: {name: json_value(value) for name, value in describe(known).items()}
            | {"num_cases": known.size}
            for measure, known in values.items()
            if known.size
        }
    return {
        "num_cases": int(evaluation.cases["case"].nunique()),
        "num_subjects": int(evaluation.cases["subject"].nunique()),
        "files": dict(evaluation.method_notes),
        "warnings": list(evaluation.warnings),
        "missing": records(evaluation.missing),
        "failed": dict(evaluation.failed),
        "labels": labels,
    }
