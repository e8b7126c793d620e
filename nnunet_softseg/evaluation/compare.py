"""The command `compare`: any number of methods against one reference."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.evaluation.comparison.paired_statistics import CORRECTIONS, RESAMPLES, Correction
from nnunet_softseg.evaluation.comparison.result import Comparison, compared, write_comparison
from nnunet_softseg.evaluation.comparison.scores import PRIMARY, SCORES
from nnunet_softseg.evaluation.evaluation import measure_methods
from nnunet_softseg.evaluation.measuring import REFERENCE, EvaluationSettings
from nnunet_softseg.evaluation.report.writing import write_report
from nnunet_softseg.evaluation.tables import made_by
from nnunet_softseg.io.results import make_folder

Methods = Mapping[str, str | Path] | Iterable[tuple[str, str | Path]]


def compare(
    methods: Methods,
    reference: str | Path,
    output: str | Path,
    *,
    primary: str = PRIMARY,
    correction: Correction = "holm",
    seed: int = 0,
    report: bool = True,
    **options: Any,
) -> Comparison:
    """Return, and write, methods measured against one reference, with statistics and a leaderboard.

    Compared are the cases that all methods have; what some lack is reported. Subjects are the unit of all
    tests. Writes cases.csv, cases.json, slices.csv, instances.csv, reliability.csv, subjects.csv,
    leaderboard.csv, winners.csv, statistics.csv, statistics.json and summary.json to the output folder; other
    files there stay as they are.

    Args:
        methods: name -> folder of predictions, see `evaluate`; as a mapping or as pairs.
        reference: folder of references, see `evaluate`.
        output: folder; made if missing.
        primary: measure, chosen before the data are seen, that answers which method is better; a key of
            `scores.SCORES`. A difference holds only in it and in `scores.HEADLINES`.
        correction: of p values over these measures and all pairs of methods.
        seed: of the bootstrap.
        report: write report.html and its figures, too.
        options: of `EvaluationSettings.from_arguments`.

    Raises:
        UserError: if two methods have one name, a file cannot be used, or no case is common.
    """
    folders = _checked(methods)
    if correction not in CORRECTIONS:
        raise UserError(f"--correction: expected {' or '.join(CORRECTIONS)}, found {correction!r}")
    if primary not in SCORES:
        raise UserError(f"--primary: expected one of {', '.join(SCORES)}, found {primary!r}")
    settings = EvaluationSettings.from_arguments(**options)
    unknown = sorted(set(settings.patterns) - set(folders))
    if unknown:
        raise UserError(
            f"--pattern: expected names of methods ({examples(list(folders), 6)}), found {unknown[0]}"
        )
    make_folder(Path(output))
    evaluation = measure_methods(folders, Path(reference), settings)
    parameters = {
        "methods": {name: str(folder) for name, folder in folders.items()},
        "reference": str(reference),
        "primary": primary,
        "correction": correction,
        "seed": seed,
        "bootstrap_resamples": RESAMPLES,
        **settings.as_dict(),
    }
    comparison = compared(evaluation, Path(reference), made_by("compare", parameters))
    write_comparison(comparison, Path(output))
    if report:
        write_report(comparison, Path(output))
    return comparison


def _checked(methods: Methods) -> dict[str, Path]:
    pairs = list(methods.items()) if isinstance(methods, Mapping) else list(methods)
    if not pairs:
        raise UserError("compare: expected at least one --method NAME=DIR, found none")
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise UserError(
            f"--method: expected each name once, found {twice[0]} more than once: give each its own name"
        )
    for name, _ in pairs:
        if not name.strip() or name == REFERENCE:
            raise UserError(
                f"--method: expected a name other than {REFERENCE!r}, found {name!r}: choose another"
            )
    return {name: Path(folder) for name, folder in pairs}
