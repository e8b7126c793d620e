"""The command `compare`: any number of methods against one reference; its page of verdict and figures."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.evaluation.cases import inference_seconds
from nnunet_softseg.evaluation.comparison.leaderboard import PRIMARY, SCORES, SECONDS
from nnunet_softseg.evaluation.comparison.paired_statistics import CORRECTIONS, RESAMPLES, Correction
from nnunet_softseg.evaluation.comparison.result import TESTS, Comparison, compared, write_comparison
from nnunet_softseg.evaluation.evaluate import measure_methods
from nnunet_softseg.evaluation.measuring import REFERENCE, EvaluationSettings
from nnunet_softseg.evaluation.report import figures, tables, worst_cases
from nnunet_softseg.evaluation.report.drawing import method_styles
from nnunet_softseg.evaluation.report.wording import counted, listed, shortened, verdict
from nnunet_softseg.evaluation.tables import made_by, write_csv
from nnunet_softseg.io.case_files import REPORT
from nnunet_softseg.io.html import picture, render_page, template, write_page
from nnunet_softseg.io.results import make_folder, remove_files

PAGE = "report.html"
_BY_CONTRAST, _WORST_CASES = "by_contrast.csv", "worst_cases.csv"
_NAMED_IN_TITLE = 3
_WORST_COLUMNS = ("number", "method", "case", "contrast", "slice_index", "other")
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
            `leaderboard.SCORES`. A difference holds only in it and in `leaderboard.HEADLINES`.
        correction: of p values over these measures and all pairs of methods.
        seed: of the bootstrap.
        report: write report.html and its figures, too; those of an earlier call are removed.
        options: of `EvaluationSettings.from_arguments`.

    Raises:
        UserError: if two methods have one name, a file cannot be used, no case is common, or no case has a
            value of the primary measure that was named.
    """
    folders = _checked(methods)
    _check_choices(folders, primary, correction, seed)
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
    _remove_report(Path(output))
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


def _check_choices(folders: Mapping[str, Path], primary: str, correction: str, seed: int) -> None:
    if correction not in CORRECTIONS:
        raise UserError(f"--correction: expected {' or '.join(CORRECTIONS)}, found {correction!r}")
    if seed < 0:
        raise UserError(f"--seed: expected 0 or more, found {seed}")
    if primary not in SCORES:
        raise UserError(f"--primary: expected one of {', '.join(SCORES)}, found {primary!r}")
    if primary == SECONDS and not any(map(inference_seconds, folders.values())):
        raise UserError(
            f"--primary {primary}: expected {REPORT} with the seconds of each case in a folder of "
            f"{examples(list(folders), 6)}, found none: predict with nnunet-softseg, or name another measure"
        )


# The page


def write_report(comparison: Comparison, output: Path) -> Path:
    """Write a comparison of one method or more to a folder, made if missing, and return the page.

    Writes report.html, figures/<name>.svg and .png, figures/worst_<n>.png, by_contrast.csv and
    worst_cases.csv. Figures of an earlier report there are replaced.

    Raises:
        UserError: if a file cannot be written.
    """
    folder = Path(output) / "figures"
    make_folder(folder)
    figures.remove_old_figures(folder)
    styles = method_styles(comparison.methods)
    contrasts = tables.by_contrast(comparison)
    write_csv(Path(output) / _BY_CONTRAST, contrasts)
    sections, worst_rows = [], []
    for label in comparison.labels:
        worst = list(worst_cases.worst_cases(comparison, label))
        suffix = f"_label{label}" if len(comparison.labels) > 1 else ""
        for found in worst:
            strip = worst_cases.save_strip(found, folder / f"worst_{found.number:02d}{suffix}.png")
            worst_rows.append((label, *(getattr(found, name) for name in _WORST_COLUMNS), strip))
        drawn = figures.draw_figures(comparison, label, styles, folder)
        sections.append(_label_section(comparison, label, contrasts) | {"figures": drawn, "worst": worst})
    columns = ["label", "number", "method", "case", "contrast", "slice", "compared_with", "figure"]
    write_csv(Path(output) / _WORST_CASES, pd.DataFrame(worst_rows, columns=columns))
    context = {
        "comparison": comparison,
        "styles": [styles[name] for name in comparison.methods],
        "sections": sections,
        "facts": _facts(comparison),
        "tables": tables.general_tables(comparison),
        "map_bar": picture(worst_cases.colour_bar(worst_cases.MAP_COLOURS)),
        "difference_bar": picture(worst_cases.colour_bar(worst_cases.DIFFERENCE_COLOURS)),
        "style_of_page": Markup(template("report.css")),
        "script_of_page": Markup(template("report.js")),
    }
    page = Path(output) / PAGE
    write_page(page, render_page(_title(comparison), template("report.html"), context))
    return page


def _remove_report(output: Path) -> None:
    """Remove the report of an earlier call, if there was one: it would contradict the new tables."""
    if not (output / TESTS).is_file():
        return
    figures.remove_old_figures(output / "figures")
    remove_files(output / name for name in (PAGE, _BY_CONTRAST, _WORST_CASES))
    with contextlib.suppress(OSError):  # other files in it, or no such folder
        (output / "figures").rmdir()


def _title(comparison: Comparison) -> str:
    names = [shortened(name, 40) for name in comparison.methods]
    if len(names) == 1:
        return f"{names[0]} against the reference"
    return f"Comparison of {listed(names) if len(names) <= _NAMED_IN_TITLE else f'{len(names)} methods'}"


def _facts(comparison: Comparison) -> str:
    """Return the numbers of methods, subjects, images, contrasts and labels, in a line."""
    cases = comparison.cases
    contrasts, labels = len(figures.contrasts_of(cases)), len(comparison.labels)
    parts = [
        counted(len(comparison.methods), "method"),
        counted(cases["subject"].nunique(), "subject"),
        counted(cases["case"].nunique(), "image"),
        counted(contrasts, "contrast") if contrasts else "",
        counted(labels, "label") if labels > 1 else "",
    ]
    return ", ".join(filter(None, parts))


def _label_section(comparison: Comparison, label: int, contrasts: pd.DataFrame) -> dict[str, Any]:
    """Return the part of the page on a label, figures and worst cases apart."""
    regions = comparison.cases.loc[comparison.cases["label"] == label, "csa_region"].dropna().unique()
    return {
        "label": label,
        "name": comparison.labels[label],
        "verdict": verdict(comparison, label),
        "leaderboard": tables.leaderboard(comparison, label),
        "by_contrast": tables.contrast_tables(comparison, label, contrasts),
        "tables": tables.label_tables(comparison, label),
        "pair": figures.contrast_pair(comparison, label),
        "regions": [str(region) for region in regions if region],
    }
