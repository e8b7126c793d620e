"""The command `compare`: any number of methods against one reference."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.evaluation.comparison.contrast_effects import (
    ANOVA_COLUMNS,
    agreement_table,
    anova_table,
    contrast_agreement_table,
)
from nnunet_softseg.evaluation.comparison.leaderboard import (
    STATISTICS_COLUMNS,
    pair_table,
    score_table,
    subject_table,
    wide_leaderboard,
    winner_table,
)
from nnunet_softseg.evaluation.comparison.paired_statistics import (
    CORRECTIONS,
    FEWEST_SUBJECTS,
    RESAMPLES,
    Correction,
)
from nnunet_softseg.evaluation.comparison.result import Comparison
from nnunet_softseg.evaluation.comparison.scores import SIGNIFICANT
from nnunet_softseg.evaluation.evaluate import write_evaluation
from nnunet_softseg.evaluation.evaluation import Evaluation, EvaluationSettings, measure_methods
from nnunet_softseg.evaluation.measuring import REFERENCE
from nnunet_softseg.evaluation.tables import made_by, records, write_csv
from nnunet_softseg.io.atomic import make_folder, write_json

Methods = Mapping[str, str | Path] | Iterable[tuple[str, str | Path]]


def compare(
    methods: Methods,
    reference: str | Path,
    output: str | Path,
    *,
    correction: Correction = "holm",
    seed: int = 0,
    report: bool = True,
    **options: Any,
) -> Comparison:
    """Return, and write, methods measured against one reference, with statistics and a leaderboard.

    Compared are the cases that all methods have; what some lack is reported. Subjects are the unit of all
    tests. Writes cases.csv, cases.json, slices.csv, reliability.csv, subjects.csv, leaderboard.csv,
    winners.csv, statistics.csv, statistics.json and summary.json to the output folder; other files there stay
    as they are.

    Args:
        methods: name -> folder of predictions, see `evaluate`; as a mapping or as pairs.
        reference: folder of references, see `evaluate`.
        output: folder; made if missing.
        correction: of p values over all pairs of methods: "holm" or "bonferroni".
        seed: of the bootstrap.
        report: write report.html and its figures, too.
        options: of `EvaluationSettings.from_arguments`.

    Raises:
        UserError: if two methods have one name, a file cannot be used, or no case is common.
    """
    folders = _checked(methods)
    if correction not in CORRECTIONS:
        raise UserError(f"--correction: expected {' or '.join(CORRECTIONS)}, found {correction!r}")
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
        "correction": correction,
        "seed": seed,
        "bootstrap_resamples": RESAMPLES,
        **settings.as_dict(),
    }
    comparison = compared(evaluation, Path(reference), made_by("compare", parameters))
    write_comparison(comparison, evaluation, Path(output))
    if report:
        # It is made from a comparison and so stands below it.
        from nnunet_softseg.evaluation.report import write_report

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


def compared(evaluation: Evaluation, reference: Path, origin: Mapping[str, Any]) -> Comparison:
    """Return the statistics of methods that have been measured.

    Args:
        evaluation: of all methods.
        reference: folder.
        origin: of `tables.made_by`, with `correction` and `seed` among its parameters.
    """
    cases, methods = evaluation.cases, evaluation.methods
    correction, seed = origin["parameters"]["correction"], origin["parameters"]["seed"]
    subjects, warnings = subject_table(cases)
    scores = score_table(cases, subjects, methods, seed)
    statistics = pair_table(cases, subjects, methods, correction, seed)
    people = cases["subject"].nunique()
    if people < FEWEST_SUBJECTS:
        warnings.append(
            f"too few subjects for statistics: {people}, a test needs at least {FEWEST_SUBJECTS}; tables "
            "are complete"
        )
    return Comparison(
        methods=methods,
        labels=evaluation.labels,
        reference=reference,
        cases=cases,
        slices=evaluation.slices,
        subjects=subjects,
        scores=scores,
        winners=winner_table(scores, statistics),
        statistics=statistics,
        anova=anova_table(cases, methods),
        agreement=agreement_table(cases, seed),
        contrast_agreement=contrast_agreement_table(cases, methods),
        reliability=evaluation.reliability,
        missing=evaluation.missing,
        method_notes=evaluation.method_notes,
        warnings=(*evaluation.warnings, *warnings),
        made_by=origin,
    )


def write_comparison(comparison: Comparison, evaluation: Evaluation, output: Path) -> None:
    """Write all tables.

    Raises:
        UserError: if that cannot be done.
    """
    write_evaluation(evaluation, output, dict(comparison.made_by))
    write_csv(output / "subjects.csv", comparison.subjects)
    write_csv(output / "leaderboard.csv", wide_leaderboard(comparison.scores, comparison.methods))
    write_csv(output / "winners.csv", comparison.winners)
    write_csv(output / "statistics.csv", comparison.statistics)
    write_json(output / "statistics.json", _statistics(comparison))
    write_json(output / "summary.json", _summary(comparison))


def _statistics(comparison: Comparison) -> dict[str, Any]:
    return {
        "made_by": dict(comparison.made_by),
        "how": {
            "unit": "subject: means over a subject's cases",
            "test": "two-sided Wilcoxon signed-rank test, paired; corrected over all pairs of methods "
            "within a measure, "
            "not over measures",
            "interval": f"95 %, bootstrap over subjects, BCa, {RESAMPLES} resamples",
            "holds": f"corrected p < {SIGNIFICANT} and an interval without 0",
        },
        "columns": {"pairs": STATISTICS_COLUMNS, "anova": ANOVA_COLUMNS},
        "pairs": records(comparison.statistics),
        "anova": records(comparison.anova),
        "agreement": records(comparison.agreement),
        "contrast_agreement": records(comparison.contrast_agreement),
    }


def _summary(comparison: Comparison) -> dict[str, Any]:
    return {
        "made_by": dict(comparison.made_by),
        "num_cases": int(comparison.cases["case"].nunique()),
        "num_subjects": int(comparison.cases["subject"].nunique()),
        "contrasts": sorted(comparison.cases["contrast"].unique()),
        "labels": {str(value): name for value, name in comparison.labels.items()},
        "files": dict(comparison.method_notes),
        "warnings": list(comparison.warnings),
        "missing": records(comparison.missing),
        "winners": records(comparison.winners),
        "scores": records(comparison.scores),
    }
