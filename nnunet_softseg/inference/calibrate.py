"""`nnunet-softseg calibrate`: soft maps of the validation folds -> a calibration kept with the model.

What is said of it is cross-checked: each fold, or of one fold each subject, is mapped by what the others say.
"""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Literal

from nnunet_softseg import __version__
from nnunet_softseg.datasets import soft_label
from nnunet_softseg.datasets.raw_dataset import NnunetFolders, dataset_number, label_scheme
from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.inference.export import keep_calibration
from nnunet_softseg.inference.trained_model import PLANS, Model, open_model
from nnunet_softseg.inference.validation import (
    SUMMARY,
    VALIDATION,
    ValidatedMap,
    reliability_record,
    validated_maps,
    validation_folder,
)
from nnunet_softseg.io.case_files import subjects_of
from nnunet_softseg.io.nifti import StrPath
from nnunet_softseg.io.results import load_json, load_record, write_json
from nnunet_softseg.io.workers import succeeded, try_jobs
from nnunet_softseg.metrics.calibration import IsotonicMap, ReliabilityCurve, ValueTable
from nnunet_softseg.settings import PLANS_KEY

RECORD = "calibration.json"
_CALIBRATED = "reliability_calibrated"


@dataclass(frozen=True)
class CalibrationReport:
    """What `calibrate` found.

    Attributes:
        model: folder.
        folds: whose validation maps were taken.
        num_cases: in them.
        held_out: what was left out in turn for the figures after calibration.
        maps: by name of the label.
        before: reliability of each label as predicted.
        after: fold -> of its maps, calibrated by the cases of other folds or subjects.
        warnings: of subjects that a fold was trained on by other images of them.
    """

    model: Path
    folds: tuple[str, ...]
    num_cases: int
    held_out: Literal["fold", "subject"]
    maps: Mapping[str, IsotonicMap]
    before: Mapping[str, ReliabilityCurve]
    after: Mapping[str, Mapping[str, ReliabilityCurve]]
    warnings: Sequence[str] = ()

    def after_all(self, name: str) -> ReliabilityCurve:
        """Return the reliability of a label after calibration, all folds together."""
        return reduce(add, (of_fold[name] for of_fold in self.after.values()))

    def as_text(self) -> str:
        """Return a line for each label, and the next command: calibrated if any label is better for it."""
        option = ""
        lines = [
            f"{self.model / RECORD}: {self.num_cases} validation cases of fold {', '.join(self.folds)}; "
            f"figures after calibration are of cases whose {self.held_out} was left out of the fit"
        ]
        for name, before in self.before.items():
            after = self.after_all(name)
            errors = [curve.expected_calibration_error for curve in (before, after)]
            scores = [curve.brier_score for curve in (before, after)]
            line = (
                "{}: calibration error {:.4f} before, {:.4f} after; Brier score {:.4f} before, {:.4f} after"
            )
            is_better = scores[1] < scores[0]  # NaN without a voxel of the label in any case
            option = " --calibrate" if is_better else option
            doubt = "" if is_better else " (no better: predict without)"
            lines.append(line.format(name, *errors, *scores) + doubt)
        model = shlex.quote(str(self.model))
        return "\n".join([*lines, f"next: nnunet-softseg predict -i IMAGES -o OUT -m {model}{option}"])


def calibrate(
    model: StrPath,
    *,
    folds: Sequence[str | int] | None = None,
    reference: StrPath | None = None,
    num_processes: int = 2,
    progress: bool = True,
) -> CalibrationReport:
    """Fit, per label, the monotone map from soft map to soft label on validation maps; keep it with a model.

    Writes `calibration.json` and the entry of the same content in the model's plans.json, by which `predict`
    calibrates on request; summary_soft.json of each fold gets the reliability of its maps after calibration.

    Args:
        model: nnU-Net's folder of a trained model.
        folds: whose final validation is taken; None: all numbered folds that have one.
        reference: folder of the soft labels; None: softLabelsTr of the dataset in nnUNet_raw.
        num_processes: maps read at once.
        progress: show a bar.

    Raises:
        UserError: if it is no model of ours, a fold has no validation maps or validates on its own training
            cases, or there is one subject only.
    """
    if Path(model).is_file():
        remedy = "unpack a .zip; calibrate what a .softseg file was exported from, and export it again"
        raise UserError(f"-m {model}: expected the folder of a trained model, found a file: {remedy}")
    with open_model(Path(model), folds) as found:
        soft_labels = _soft_labels(found, reference)
        maps = {
            fold: validated_maps(validation_folder(found.folder, fold), soft_labels, found.dataset_json)
            for fold in found.folds
        }
        if folds is None:
            maps = {fold: of_fold for fold, of_fold in maps.items() if of_fold} or maps
        for fold, of_fold in maps.items():
            _require_validation(found, fold, of_fold, soft_labels)
        warnings = [told for fold, of_fold in maps.items() for told in _seen_otherwise(found, fold, of_fold)]
        report = replace(_cross_checked(found, maps, num_processes, progress), warnings=warnings)
    _write(report, reference=str(soft_labels))
    return report


def _soft_labels(model: Model, reference: StrPath | None) -> Path:
    if reference is None:
        raw = NnunetFolders.from_environment().of_dataset("raw", model.plans["dataset_name"])
        reference = raw / soft_label.FOLDER
    folder = Path(reference)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: expected the soft labels of the training, found no such folder: check nnUNet_raw, or "
            "say where they are with -g"
        )
    return folder


def _require_validation(model: Model, fold: str, maps: Sequence[ValidatedMap], soft_labels: Path) -> None:
    """Raise a UserError for a fold without maps, and for one that was trained on what it validates on."""
    if not maps:
        raise UserError(
            f"{model.folder.name}/fold_{fold}/{VALIDATION}: expected soft maps of cases with soft labels in "
            f"{soft_labels}, found none: run nnUNetv2_train {_training_of(model, fold)} --val"
        )
    seen = {each.case_id for each in maps}.intersection(model.trained_on(fold))
    if fold == "all" or seen:
        remedy = f"validate again, nnUNetv2_train {_training_of(model, fold)} --val"
        raise UserError(
            f"fold {fold}: expected validation cases that it was not trained on, found "
            f"{examples(sorted(seen)) or 'all cases'} in its training: "
            f"{'calibrate on numbered folds (-f 0)' if fold == 'all' else remedy}"
        )


def _training_of(model: Model, fold: str) -> str:
    """Return the words after nnUNetv2_train that name the training of a fold."""
    plans, configuration = model.plans, model.folder.name.rpartition("__")[2]
    return (
        f"{dataset_number(plans['dataset_name'])} {configuration} {fold} -tr {plans[PLANS_KEY]['trainer']} "
        f"-p {plans['plans_name']}"
    )


def _seen_otherwise(model: Model, fold: str, maps: Sequence[ValidatedMap]) -> list[str]:
    """Return the warning that a fold was trained on other images of subjects that it validates on."""
    trained = model.trained_on(fold)
    subjects = subjects_of(dict.fromkeys([*trained, *(each.case_id for each in maps)]))
    seen = {subjects[each.case_id] for each in maps} & {subjects[case] for case in trained}
    if not seen:
        return []
    return [
        f"fold {fold} validates on {len(seen)} subjects of whom other images were in its training, "
        f"{examples(sorted(seen))}: its maps of them, and the calibration, are better than those of new "
        "subjects; split by subject (nnunet-softseg convert does)"
    ]


def _cross_checked(
    model: Model, maps: Mapping[str, Sequence[ValidatedMap]], num_processes: int, progress: bool
) -> CalibrationReport:
    pairs = [(fold, each) for fold, of_fold in maps.items() for each in of_fold]
    subjects = subjects_of(dict.fromkeys(each.case_id for _, each in pairs))
    images = [(fold, subjects[each.case_id]) for fold, each in pairs]
    num_folds = Counter(who for _, who in set(images))
    # Subjects of one fold of several go together: a fit for each of hundreds would take minutes.
    groups = [(fold, who if len(maps) == 1 or num_folds[who] > 1 else "") for fold, who in images]
    files = [each for _, each in pairs]
    if len(num_folds) == 1:
        raise UserError(
            f"{model.folder.name}: expected validation maps of two subjects or more, to cross-check the "
            f"calibration, found one, {subjects[files[0].case_id]}: take more folds (-f), train another, or "
            "split so that the fold validates on two"
        )
    tables = dict.fromkeys(label_scheme(model.dataset_json).names, ValueTable.empty())
    by_group = {group: dict(tables) for group in dict.fromkeys(groups)}
    for group, each, table in zip(groups, files, _tables(files, num_processes, progress), strict=True):
        tables[each.label] += table
        by_group[group][each.label] += table
    after = {fold: dict.fromkeys(tables, ReliabilityCurve.empty()) for fold in maps}
    for (fold, subject), held_out in by_group.items():
        others = [
            of_group
            for (of_fold, of_subject), of_group in by_group.items()
            if (of_fold != fold or len(maps) == 1) and (of_subject != subject or not subject)
        ]
        for name, table in held_out.items():
            chosen_by = reduce(add, (of_group[name] for of_group in others), ValueTable.empty())
            after[fold][name] += table.curve(chosen_by.isotonic_map())
    return CalibrationReport(
        model=model.folder,
        folds=tuple(maps),
        num_cases=len({each.case_id for each in files}),
        held_out="fold" if len(maps) > 1 else "subject",
        maps={name: table.isotonic_map() for name, table in tables.items()},
        before={name: table.curve() for name, table in tables.items()},
        after=after,
    )


def _tables(maps: Sequence[ValidatedMap], num_processes: int, progress: bool) -> list[ValueTable]:
    options: dict[str, Any] = {"num_processes": num_processes, "progress": progress}
    outcomes = try_jobs(_table, maps, lambda each: each.case_id, description="Reading maps", **options)
    for outcome in outcomes:
        if isinstance(outcome, UserError):
            raise outcome
    return succeeded(outcomes)


def _table(each: ValidatedMap) -> ValueTable:
    predicted, expected, unknown = each.values()
    return ValueTable.of(predicted, expected, each.grid.spacing_mm, unknown=unknown)


def _write(report: CalibrationReport, reference: str) -> None:
    """Write calibration.json, what summary_soft.json says of it, and the entry in plans.json."""
    plans = load_json(report.model / PLANS)
    keep_calibration(plans, report.maps, report.folds, report.num_cases)
    record: dict[str, Any] = {
        "made_by": f"nnunet-softseg {__version__} calibrate",
        "folds": list(report.folds),
        "num_cases": report.num_cases,
        "soft_labels": reference,
        "held_out_for_after": report.held_out,
        "labels": {
            name: {
                **asdict(report.maps[name]),
                "before": reliability_record([report.before[name]]),
                "after": reliability_record([report.after_all(name)]),
            }
            for name in report.maps
        },
    }
    write_json(report.model / RECORD, record)
    for fold, of_fold in report.after.items():
        summary = validation_folder(report.model, fold) / SUMMARY
        if (before := load_record(summary)) is not None:
            calibrated = {name: reliability_record([curve]) for name, curve in of_fold.items()}
            write_json(summary, {**before, _CALIBRATED: calibrated})
    write_json(report.model / PLANS, plans)
