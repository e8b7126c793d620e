"""`nnunet-softseg pseudo-label`: images -> soft labels by models that have not seen them -> a raw dataset.

A teacher is one fold of a model; it may label a case if it has seen no image of its subject.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_softseg import __version__
from nnunet_softseg.datasets.conversion.splits import make_folds, split_subjects
from nnunet_softseg.datasets.conversion.writing import Dataset, copy_image, find_raw_folder
from nnunet_softseg.datasets.raw_dataset import (
    SIDES,
    SPLITS,
    LabelScheme,
    NnunetFolders,
    is_split,
    label_scheme,
    soft_label_file,
)
from nnunet_softseg.datasets.soft_label import FOLDER, stored_soft_label, write_label_map, write_soft_label
from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.inference.case_record import Localize, PredictionOptions, flag_lines, told_of_all
from nnunet_softseg.inference.predict import ImageCase, find_cases, predict
from nnunet_softseg.inference.trained_model import CHECKPOINT, Model, open_model
from nnunet_softseg.io.case_files import DATASET_JSON, REPORT, RUN, SOFT_FOLDER, subjects_of
from nnunet_softseg.io.formats import is_nifti
from nnunet_softseg.io.nifti import StrPath
from nnunet_softseg.io.results import load_json, load_record, make_folder, new_folder, sha256, write_json
from nnunet_softseg.io.workers import map_jobs
from nnunet_softseg.settings import PLANS_KEY

RECORD = "pseudo_labels.json"
"""In the dataset: which fold of which model has labelled which case."""
_ENDING = ".nii.gz"
_SAME = ("labels", "channel_names", "regions_class_order", "file_ending")
Fold = Mapping[str, Sequence[str]]
"""Case ids of "train" and "val", as in splits_final.json."""
Subjects = Mapping[str, str]
"""Case id -> subject."""


@dataclass(frozen=True)
class PseudoLabelReport:
    """What `pseudo_label` did: its dataset, whether it was there before, and its pseudo_labels.json."""

    folder: Path
    was_there: bool
    record: Mapping[str, Any]
    of_models: Sequence[str] = ()
    """Warnings about the models and the images."""

    @property
    def warnings(self) -> list[str]:
        """Those about the models and the images, and where nothing could be told of disagreement."""
        alone = [case for case, entry in self.record["cases"].items() if len(entry["labelled_by"]) == 1]
        if not alone or self.record["max_disagreement"] is None:
            return [*self.of_models]
        told = f"{len(alone)} cases have one fold, so all in them counts as known: {examples(alone)}"
        return [*self.of_models, told]

    def as_text(self) -> str:
        """Return the report in lines."""
        cases = self.record["cases"]
        folds = [len(entry["labelled_by"]) for entry in cases.values()]
        lines = [
            f"{self.folder}{' (was there already, the same)' if self.was_there else ''}",
            f"{len(cases)} images of {len({entry['subject'] for entry in cases.values()})} subjects, each "
            f"labelled by {min(folds)} to {max(folds)} folds that have not seen its subject",
            *flag_lines(cases),
        ]
        if (limit := self.record["max_disagreement"]) is not None:
            share = 100 * np.mean([entry["unknown_share"] for entry in cases.values()])
            lines.append(f"{share:.3g} % of the voxels unknown: folds disagree by more than {limit:g} there")
        return "\n".join([*lines, f"next: nnunet-softseg check -d {self.folder.name}"])


def pseudo_label(
    source: StrPath,
    dataset_id: int,
    name: str,
    *,
    models: Sequence[StrPath],
    splits: StrPath,
    raw_folder: StrPath | None = None,
    max_disagreement: float | None = None,
    checkpoint: str = CHECKPOINT,
    contrasts: Sequence[str] | None = None,
    device: str = "auto",
    localize: Localize | None = None,
    largest_piece: bool = False,
    discard_implausible: bool = False,
    calibrate: bool = False,
    backend: str | None = None,
    trust_model: bool = False,
    num_processes: int = 1,
    progress: bool = True,
) -> PseudoLabelReport:
    """Label images by models that have not seen their subjects, as a dataset `nnUNet_raw/DatasetNNN_<name>`.

    A soft label is the mean over the folds that have not trained on its subject. Predictions are kept beside
    the dataset until it is whole, so that an interrupted call goes on; it is written aside and renamed.

    Args:
        source: an image, a folder of images, or a BIDS folder, as `predict` takes them.
        dataset_id: of the new dataset, from 1 to 999.
        name: of the new dataset.
        models: folders of trained models, or `fold_<X>` in one; of a folder all numbered folds count.
        splits: splits_final.json by which they were trained; also gives the folds of the new dataset.
        raw_folder: of all datasets; None: the environment variable nnUNet_raw.
        max_disagreement: voxels are unknown where the soft maps of two folds differ by more, in (0, 1]: NaN
            in the soft labels, the label to ignore in labelsTr. None: all are known.
        checkpoint: file name in the folders of the folds.
        contrasts: of a BIDS folder, those to take; None: all.
        device: as of `predict`, like the six that follow.
        localize: look for the cord off the centre of the image.
        largest_piece: keep only the largest piece of each label.
        discard_implausible: empty a map that is unlike every label of the training.
        calibrate: map the values as the calibration of each model says.
        backend: what runs the network.
        trust_model: open checkpoints that hold more than weights and numbers.
        num_processes: cases read and written at once.
        progress: show bars.

    Raises:
        UserError: if a case has no fold that covers it or would be labelled by one that has seen its subject,
            the models do not fit each other, or an image cannot be predicted. No dataset is written then.
    """
    if max_disagreement is not None and not 0 < max_disagreement <= 1:
        raise UserError(f"--max-disagreement: expected a share above 0, up to 1, found {max_disagreement:g}")
    raw, elsewhere = find_raw_folder(raw_folder, NnunetFolders.from_environment())
    target = Dataset(raw, dataset_id, name, elsewhere)
    with contextlib.ExitStack() as stack:
        given = _folds_of(models, checkpoint, stack, trusted=trust_model)
        cases = find_cases(Path(source), _require_alike(given), contrasts)
        found, warnings = _each_once(given)
        decisive: dict[str, Any] = {
            "localize": localize,
            "largest_piece": largest_piece,
            "discard_implausible": discard_implausible,
            "calibrate": calibrate,
        }
        options = PredictionOptions.from_environment(os.environ, **decisive)
        split = read_splits(Path(splits))
        job = _labelling(target, cases, found, split, options=options, limit=max_disagreement)
        if target.folder.exists():
            record = job.record_there()
            shutil.rmtree(job.work, ignore_errors=True)  # of a call that ended just before
            return PseudoLabelReport(target.folder, True, record, warnings)
        how: dict[str, Any] = {
            **decisive,
            "contrasts": contrasts,
            "device": device,
            "checkpoint": checkpoint,
            "backend": backend,
            "trust_model": trust_model,
            "num_threads": num_processes,
            "progress": progress,
        }
        warnings += _predict_all(job, Path(source), how)
    record = _write(job, num_processes, progress=progress)
    shutil.rmtree(job.work, ignore_errors=True)
    return PseudoLabelReport(target.folder, False, record, [*dict.fromkeys(warnings)])


def _folds_of(
    models: Sequence[StrPath], checkpoint: str, stack: contextlib.ExitStack, *, trusted: bool
) -> list[Model]:
    """Return the folds of models, each as a model of one fold; of `MODEL/fold_0` this one."""
    found = []
    for path in map(Path, models):
        only = [path.name.removeprefix("fold_")] if path.name.startswith("fold_") else None
        folder = path.parent if only else path
        model = stack.enter_context(open_model(folder, only, checkpoint, trusted=trusted))
        found += [dataclasses.replace(model, folds=(fold,)) for fold in model.folds]
    return found


def _each_once(models: Sequence[Model]) -> tuple[list[Model], list[str]]:
    """Return the models, of one fold each, without those of a checkpoint that came before, and warnings."""
    first: dict[Any, Model] = {}
    warnings = []
    for model in models:
        (checkpoint,) = model.checkpoints.values()
        same = first.setdefault((sha256(checkpoint), model.trained_on(model.folds[0])), model)
        if same is not model:
            (other,) = same.checkpoints.values()
            warnings.append(f"{checkpoint} has the weights of {other}, and does not count again")
    return [*first.values()], warnings


def _require_alike(models: Sequence[Model]) -> int:
    """Return the number of channels; a UserError unless all models have one input and one set of labels."""
    inputs: list[dict[str, Any]] = [{key: each.dataset_json.get(key) for key in _SAME} for each in models]
    first = inputs[0]
    for model, other in zip(models, inputs, strict=True):
        if changed := [key for key in _SAME if other[key] != first[key]]:
            raise UserError(
                f"{model.folder}: expected {changed[0]} {first[changed[0]]} as of {models[0].folder.name}, "
                f"found {other[changed[0]]}: give models of the same images and labels"
            )
    if not is_nifti(first["file_ending"]):
        raise UserError(
            f"{models[0].folder}: expected a model of NIfTI images, found {first['file_ending']}: use "
            "nnunet-softseg predict; its folder soft/ can serve as softLabelsTr"
        )
    return len(first["channel_names"])


@dataclass(frozen=True)
class Teacher:
    """One fold of a model, and the fold of the split that it was trained by."""

    model: Model
    split: Fold

    @property
    def name(self) -> str:
        """Return in words which fold of which model it is."""
        return f"fold {self.record['fold']} of {self.record['model']}"

    @cached_property
    def record(self) -> dict[str, Any]:
        """What a pseudo-label says of it."""
        model, entry = self.model, self.model.plans[PLANS_KEY]
        return {
            "model": f"{model.folder.parent.name}/{model.folder.name}",
            "fold": model.folds[0],
            "checkpoint": model.checkpoint,
            "sha256": sha256(model.checkpoints[model.folds[0]]),
            "trainer": entry.get("trainer"),
            "versions": entry.get("versions"),
        }


@dataclass(frozen=True)
class _Labelling:
    """All that decides the pseudo-labels: who labels which case, and how the dataset is made of that."""

    target: Dataset
    cases: Sequence[ImageCase]
    labelled_by: Mapping[str, Sequence[Teacher]]
    entries: Mapping[str, dict[str, Any]]
    splits: Sequence[Mapping[str, Sequence[str]]]
    dataset_json: Mapping[str, Any]
    options: PredictionOptions
    max_disagreement: float | None

    @property
    def work(self) -> Path:
        """The folder of the predictions."""
        return self.target.raw / f".{self.target.folder.name}.predictions"

    def folder_of(self, teacher: Teacher) -> Path:
        """Return where the predictions of a teacher go."""
        return self.work / str(teacher.record["sha256"])

    @property
    def request(self) -> dict[str, Any]:
        """What a later call compares."""
        digest = _digest([*self.made_of, self.splits, self.dataset_json["labels"]])
        return {"version": __version__, "request": digest, "max_disagreement": self.max_disagreement}

    @cached_property
    def made_of(self) -> list[Any]:
        """All that decides the predictions: images, teachers, and options, also those of the environment."""
        return [self.entries, [each.model.made_by(self.options) for each, _ in self.by_teacher()]]

    def by_teacher(self) -> list[tuple[Teacher, list[str]]]:
        """Return each teacher with the cases that it labels."""
        labelled: dict[str, tuple[Teacher, list[str]]] = {}
        for case, teachers in self.labelled_by.items():
            for each in teachers:
                labelled.setdefault(each.record["sha256"], (each, []))[1].append(case)
        return [*labelled.values()]

    def record_there(self) -> dict[str, Any]:
        """Return the record of the dataset that is there; a UserError if it is not of this call."""
        there = load_record(self.target.folder / RECORD, "cases") or {}
        if not self.request.items() <= there.items():
            raise UserError(
                f"{self.target.folder}: expected nothing, or the dataset of this call, found one of other "
                "images, models or options: remove it, or choose another dataset id"
            )
        return there

    def make_work_folder(self) -> None:
        """Make the folder of predictions; those of other images, options or versions are removed."""
        made_of, record = {"made_of": _digest(self.made_of)}, self.work / "made_of.json"
        if self.work.exists() and load_record(record) != made_of:
            shutil.rmtree(self.work)
        make_folder(self.work)
        write_json(record, made_of)


def _labelling(
    target: Dataset,
    cases: Sequence[ImageCase],
    models: Sequence[Model],
    splits: Sequence[Mapping[str, Sequence[str]]],
    *,
    options: PredictionOptions,
    limit: float | None,
) -> _Labelling:
    """Return who labels which case; a UserError as of `who_labels`."""
    names = [case.case_id for case in cases]
    others = [case for fold in splits for side in SIDES for case in fold[side]]
    subjects = same_subjects(
        [*names, *others, *(case for model in models for case in model.trained_on(model.folds[0]))]
    )
    labelled_by = who_labels(names, find_teachers(models, splits, subjects), subjects)
    entries = {
        case.case_id: {
            "subject": subjects[case.case_id],
            "images": {file.name: sha256(file) for file in case.files},
            "labelled_by": [each.record for each in labelled_by[case.case_id]],
        }
        for case in cases
    }
    folds = folds_of_images(names, splits, subjects)
    return _Labelling(target, cases, labelled_by, entries, folds, models[0].dataset_json, options, limit)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _predict_all(job: _Labelling, source: Path, how: Mapping[str, Any]) -> list[str]:
    """Predict what each teacher labels, into a folder of its own; return warnings."""
    job.make_work_folder()
    return [
        warning
        for teacher, labelled in job.by_teacher()
        for warning in _predict(source, teacher, labelled, job.folder_of(teacher), how)
    ]


def _predict(
    source: Path, teacher: Teacher, cases: Sequence[str], folder: Path, how: Mapping[str, Any]
) -> list[str]:
    """Predict the cases that a teacher labels; return warnings, or raise what cannot be predicted."""
    if how["progress"]:
        print(f"{teacher.name}: {len(cases)} images", flush=True)
    model = teacher.model
    report = predict(source, folder, model.folder, folds=model.folds, only=cases, no_qc=True, **how)
    if report.failed:
        told = "; ".join(f"{case}: {why}" for case, why in sorted(report.failed.items()))
        raise UserError(
            f"{len(report.failed)} of {len(cases)} images cannot be predicted (the others are kept for the "
            f"next call): {told}"
        )
    return report.warnings


def _write(job: _Labelling, num_processes: int, *, progress: bool) -> dict[str, Any]:
    """Write the dataset, whole or not at all, and return its record."""
    with new_folder(job.target.folder) as aside:
        for folder in ("imagesTr", "labelsTr", FOLDER):
            make_folder(aside / folder)
        folders = {name: tuple(map(job.folder_of, of)) for name, of in job.labelled_by.items()}
        write = functools.partial(
            _write_case, target=aside, scheme=label_scheme(job.dataset_json), limit=job.max_disagreement
        )
        jobs = [(case, folders[case.case_id]) for case in job.cases]
        options: dict[str, Any] = {"num_processes": num_processes, "progress": progress}
        written = map_jobs(write, jobs, description="Writing cases", **options)
        of_teachers = [job.folder_of(teacher) for teacher, _ in job.by_teacher()]
        said = {folder: load_json(folder / REPORT)["cases"] for folder in of_teachers}
        cases = {
            name: {**entry, **outcome, **told_of_all([said[folder][name] for folder in folders[name]])}
            for (name, entry), outcome in zip(job.entries.items(), written, strict=True)
        }
        run = load_json(of_teachers[0] / RUN)
        predicted_with = {key: value for key, value in run.items() if key != "checkpoints"}
        made_by = {"made_by": f"nnunet-softseg {__version__} pseudo-label", **job.request}
        record = {**made_by, "predicted_with": predicted_with, "cases": cases}
        write_json(aside / DATASET_JSON, _description(job, any(each["unknown_share"] for each in written)))
        write_json(aside / SPLITS, job.splits)
        write_json(aside / RECORD, record)
    return record


def _write_case(
    job: tuple[ImageCase, Sequence[Path]], *, target: Path, scheme: LabelScheme, limit: float | None
) -> dict[str, float]:
    """Write one case, of which the folders hold soft maps; return how far its folds disagree."""
    case, predictions = job
    name, numbers = case.case_id, scheme.numbers
    images = [target / "imagesTr" / f"{name}_{at:04d}{_ENDING}" for at in range(len(case.files))]
    for source, image in zip(case.files, images, strict=True):
        copy_image(source, image)
    maps = np.stack(
        [
            [stored_soft_label(soft_label_file(folder / SOFT_FOLDER, name, number)) for number in numbers]
            for folder in predictions
        ]
    )
    spread = np.ptp(maps, axis=0).max(axis=0)
    unknown = spread > (np.inf if limit is None else limit)
    labels = np.where(unknown, np.float32(np.nan), maps.mean(axis=0))
    files = [target / FOLDER / f"{name}_{number:04d}{_ENDING}" for number in numbers]
    for file, label in zip(files, labels, strict=True):
        write_soft_label(file, label, images[0])
    label_map = target / "labelsTr" / f"{name}{_ENDING}"
    write_label_map(label_map, files, scheme.painted, ignore=ignored_value(scheme))
    return {"largest_disagreement": float(spread.max()), "unknown_share": float(unknown.mean())}


def _description(job: _Labelling, partly_unknown: bool) -> dict[str, Any]:
    """Return dataset.json: images and labels as of the models."""
    of_model = job.dataset_json
    labels = {name: value for name, value in of_model["labels"].items() if name != "ignore"}
    if partly_unknown:
        labels["ignore"] = ignored_value(label_scheme(of_model))
    reader = "overwrite_image_reader_writer"
    return {
        "name": job.target.name,
        "description": f"Images labelled by models that have not seen their subjects, see {RECORD}",
        "converted_by": f"nnunet-softseg {__version__}",
        **{key: of_model[key] for key in ("channel_names", "regions_class_order") if key in of_model},
        "labels": labels,
        "numTraining": len(job.cases),
        "file_ending": _ENDING,
        reader: of_model.get(reader, "NibabelIOWithReorient"),
    }


def ignored_value(scheme: LabelScheme) -> int:
    """Return the label to ignore of the new dataset: the next value above those of the labels.

    Regions may have values that no region is painted with.
    """
    return max(scheme.values) + 1


# Who labels what


def same_subjects(case_ids: Iterable[str]) -> dict[str, str]:
    """Return case id -> subject as `subjects_of`; a name that goes on from another is of its subject, too.

    So are slices named after their volume: scan_03_slice-012 of scan_03.
    """
    subjects = subjects_of(dict.fromkeys(case_ids))
    named = {case_id.casefold(): case_id for case_id in subjects}
    for name, case_id in named.items():
        starts = accumulate(name.split("_"), lambda start, part: f"{start}_{part}")
        first, own = subjects[named[next(start for start in starts if start in named)]], subjects[case_id]
        if first != own:
            subjects = {case: first if subject == own else subject for case, subject in subjects.items()}
    return subjects


def read_splits(file: Path) -> list[Fold]:
    """Return the folds of a splits_final.json; a UserError if it is none."""
    content = load_json(file)
    folds = content if isinstance(content, list) else []
    sides = [fold[side] for fold in folds for side in SIDES] if all(map(is_split, folds)) else []
    if not sides or not all(isinstance(case, str) for side in sides for case in side):
        raise UserError(
            f'{file}: expected a list of {{"train": [cases], "val": [cases]}}, as splits_final.json of '
            "nnUNet_preprocessed, found something else: give the split that the models were trained by"
        )
    return folds


def find_teachers(models: Sequence[Model], splits: Sequence[Fold], subjects: Subjects) -> tuple[Teacher, ...]:
    """Return the models, of one fold each, with the fold of the split that each was trained by.

    That is the one of its number; where the model keeps other cases than this one trains on, the first that
    trains on them. Fold "all" has seen all.

    Raises:
        UserError: if the split has no fold for one.
    """
    teachers = []
    for model in models:
        number = int(model.folds[0]) if model.folds[0].isdecimal() else None
        if number is None:
            everything = [case for fold in splits for side in SIDES for case in fold[side]]
            teachers.append(Teacher(model, {"train": everything, "val": []}))
            continue
        trained = {subjects[case] for case in model.trained_on(model.folds[0])}
        order = [*splits[number : number + 1], *splits]
        fits = [fold for fold in order if trained and trained <= {subjects[case] for case in fold["train"]}]
        if not fits and number >= len(splits):
            raise UserError(
                f"--splits: expected fold {number} of {model.folder.name} in it, found {len(splits)} folds: "
                "give the split that the models were trained by"
            )
        teachers.append(Teacher(model, fits[0] if fits else splits[number]))
    return tuple(teachers)


def who_labels(
    case_ids: Sequence[str], teachers: Sequence[Teacher], subjects: Subjects
) -> dict[str, tuple[Teacher, ...]]:
    """Return case -> the teachers that label it: those whose fold does not train on its subject.

    Raises:
        UserError: if one of these has seen its subject, by what is kept with the model, or a case has none;
            it names all such cases.
    """
    by_split = [{subjects[case] for case in each.split["train"]} for each in teachers]
    by_model = [{subjects[case] for case in each.model.trained_on(each.model.folds[0])} for each in teachers]
    found: dict[str, tuple[Teacher, ...]] = {}
    problems = []
    for case in case_ids:
        places = [at for at, seen in enumerate(by_split) if subjects[case] not in seen]
        told = [
            f"{teachers[at].name} has seen its subject" for at in places if subjects[case] in by_model[at]
        ]
        if told or not places:
            problems.append(f"{case}: {', '.join(told) or 'no fold covers it'}")
        found[case] = tuple(teachers[at] for at in places)
    if problems:
        raise UserError(
            "expected that folds label cases whose subject they have not seen, found otherwise for "
            f"{len(problems)} of {len(found)}: {'; '.join(problems)}: add the missing folds (--models), give "
            "the split of the training (--splits), or leave these images out"
        )
    return found


def folds_of_images(
    case_ids: Sequence[str], splits: Sequence[Fold], subjects: Subjects
) -> list[dict[str, list[str]]]:
    """Return folds of new cases: those of the split, by subject, that train on some and validate on others.

    If it has none of these, five are drawn. Cases of subjects that a fold does not validate on are trained
    on, so subjects that are new in all folds. A UserError if there is one subject only, of which no folds can
    be made.
    """
    names = {subjects[case] for case in case_ids}
    by_split = [names & {subjects[case] for case in fold["val"]} for fold in splits]
    validated = [of_fold for of_fold in by_split if of_fold and of_fold != names]
    if len(names) == 1:
        raise UserError(
            f"expected images of two subjects or more, to train on some and validate on others, found "
            f"{names.pop()} alone: add images"
        )
    if not validated:
        validated = [set(fold["val"]) for fold in make_folds(split_subjects(names, num_test=0))]
    return [
        {
            "train": [case for case in case_ids if subjects[case] not in of_fold],
            "val": [case for case in case_ids if subjects[case] in of_fold],
        }
        for of_fold in validated
    ]
