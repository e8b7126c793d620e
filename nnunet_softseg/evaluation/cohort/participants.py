"""Participants of a BIDS folder -> derivatives: soft maps, label maps, areas, a page of pictures each.

The model is loaded once for all images of a call. They are predicted in a folder aside; beside the network,
each is measured and put in place file by file as soon as it is written, the label map last. What an earlier
call put in place, or left aside, is kept as `predict` keeps it: unless the image is newer.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import AsyncResult
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nibabel as nib
import pandas as pd
from markupsafe import Markup

from nnunet_softseg import __version__
from nnunet_softseg.datasets.raw_dataset import LabelScheme, is_predicted, label_scheme, soft_label_file
from nnunet_softseg.errors import UserError
from nnunet_softseg.evaluation.cohort.derivatives import (
    AREA_COLUMNS,
    WORK,
    Choice,
    Derivative,
    chosen_images,
    failures,
    finished,
    label_words,
    start,
    write_table_tsv,
)
from nnunet_softseg.inference.case_record import PredictionOptions, flag_lines, reported_cases
from nnunet_softseg.inference.predict import PredictionReport, predict
from nnunet_softseg.inference.trained_model import open_any_model
from nnunet_softseg.io.case_files import SOFT_FOLDER
from nnunet_softseg.io.formats import NIFTI_ENDINGS, is_nifti
from nnunet_softseg.io.html import render_page, template, write_page
from nnunet_softseg.io.nifti import StrPath
from nnunet_softseg.io.results import copy_file, make_folder, only_one, replacing, write_json
from nnunet_softseg.io.workers import threads_beside, try_jobs
from nnunet_softseg.metrics.morphometry.csa import csa
from nnunet_softseg.metrics.morphometry.slice_table import COLUMNS

_DECISIVE = ("localize", "largest_piece", "discard_implausible", "calibrate")


def analyse_participants(
    bids: StrPath,
    output: StrPath,
    model: StrPath | None = None,
    *,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    contrasts: Sequence[str] | None = None,
    folds: Sequence[str | int] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    no_qc: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> PredictionReport:
    """Write the derivatives of participants; an image that fails stops no other.

    Those that are there are kept, unless their image is newer, as `predict` keeps its maps. Several calls may
    work in the same output folder at the same time.

    Args:
        bids: folder of the images, `sub-*/[ses-*/]anat` and `dwi`.
        output: folder of the derivatives, made if missing.
        model: as for `predict`: folder, archive or file of a trained model; None: that of the package.
        participants: labels with or without `sub-`; empty: all.
        sessions: labels with or without `ses-`; empty: all.
        contrasts: those to take; None: all.
        folds: whose soft maps are averaged; None: all that are there.
        checkpoint: file name in the folders of the folds.
        no_qc: draw no pictures, and make no page of each participant; where it is False, its environment
            variable decides, as for `predict`.
        overwrite: write those that are there again; derivatives of another model are refused all the same.
        progress: show a bar.
        options: further arguments of `predict`: device, localize, largest_piece, discard_implausible,
            calibrate, backend, trust_model, num_threads. Images are measured and drawn meanwhile.

    Raises:
        UserError: for a mistake that concerns all images: no BIDS folder, no such participant, no model, a
            folder with derivatives of another model, or another process at work on the same participants.
    """
    bids, root = Path(bids), Path(output)
    images, warnings = chosen_images(bids, root, Choice(participants, sessions, contrasts))
    options |= {"folds": folds, "checkpoint": checkpoint, "overwrite": overwrite}
    scheme = start_with_model(root, bids, model, options)
    draws = not PredictionOptions.from_environment(os.environ, no_qc=no_qc).no_qc
    report = PredictionReport(root, warnings=warnings, done="images written")
    work = root / WORK / _name_of_work(images)
    call = _Call(bids, work, scheme, report, draws, progress)
    todo = images if overwrite else call.not_done(images)
    report.kept = sorted({image.case_id for image in images} - {image.case_id for image in todo})
    make_folder(work.parent)
    busy = f"{root}: another process is at work on the same participants: wait for it, or end it"
    with only_one(work.parent / f".{work.name}.lock", busy):
        if not overwrite:
            call.publish_predicted(todo)  # by a call that was killed
            todo = call.not_done(todo)
        if todo:
            call.predict(todo, model, contrasts or sorted({image.name.contrast for image in todo}), options)
        call.note_failures(images)
        if call.draws:
            _write_pages(root, bids, images, always=bool(report.predicted or report.failed))
        shutil.rmtree(work, ignore_errors=True)
    return report


def start_with_model(
    root: Path, bids: Path, model: StrPath | None, options: Mapping[str, Any]
) -> LabelScheme:
    """Return the labels of a model, which the folder of derivatives is started with; see `start`.

    Of the options of `predict`, those count that decide the values: folds, checkpoint, localize, ...

    Raises:
        UserError: if it is no model of NIfTI images, or not calibrated where that is asked for, or the folder
            holds derivatives of another one.
    """
    decisive = {name: options.get(name) for name in _DECISIVE}
    with open_any_model(model, options.get("folds"), options["checkpoint"]) as opened:
        if not is_nifti(opened.dataset_json["file_ending"]):
            raise UserError(
                f"{model}: expected a model of NIfTI images, as BIDS has, found one of "
                f"{opened.dataset_json['file_ending']}: predict with nnunet-softseg predict"
            )
        chosen = PredictionOptions.from_environment(os.environ, **decisive)
        made_by, scheme = opened.made_by(chosen), label_scheme(opened.dataset_json)
        if chosen.calibrate:  # told before the folder says that its maps are calibrated
            from nnunet_softseg.inference.export import kept_calibration

            kept_calibration(opened.plans, scheme.names)
    start(root, bids, made_by, {scheme.names[index]: value for index, value in scheme.painted})
    return scheme


def _name_of_work(images: Iterable[Derivative]) -> str:
    """Return the same name for the same images: a call that is repeated finds what it had predicted."""
    people = sorted({image.name.person for image in images})
    if len(people) == 1:
        return people[0]
    return f"batch-{hashlib.sha256(' '.join(people).encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class _Call:
    """What the steps of a call share."""

    bids: Path
    work: Path
    scheme: LabelScheme
    report: PredictionReport
    draws: bool
    progress: bool

    def predict(
        self,
        images: Sequence[Derivative],
        model: StrPath | None,
        contrasts: Sequence[str],
        options: Mapping[str, Any],
    ) -> None:
        """Predict images into the folder aside, and measure, draw and put in place those that are written."""
        by_id = {image.case_id: image for image in images}
        with threads_beside(1) as pool:  # one: drawing is not safe in several
            written: list[AsyncResult[None]] = []
            predicted = predict(
                self.bids,
                self.work,
                model,
                contrasts=contrasts,
                only=by_id.keys(),
                no_qc=True,
                progress=self.progress,
                on_written=lambda case, entry: written.append(
                    pool.apply_async(self._put_in_place, ([(by_id[case], entry)],))
                ),
                **options,
            )
            for outcome in written:
                outcome.get()
        self.report.failed |= predicted.failed
        self.report.warnings += predicted.warnings
        self.report.summary = self._summary(images)

    def _summary(self, images: Sequence[Derivative]) -> str:
        """Return that of `predict`, in which the soft maps of a single image lie where they stay."""
        from nnunet_softseg.inference.export import result_lines  # loaded by `predict`

        entries = reported_cases(self.work)
        lines = flag_lines({image.case_id: entries[image.case_id] for image in images
                            if image.case_id in entries})  # fmt: skip
        if len(images) == 1 and images[0].case_id in self.report.predicted:
            (image,), words = images, label_words(self.scheme.names)
            maps = {name: image.soft_map(words[name]) for name in self.scheme.names}
            lines += result_lines(self.bids / image.place, maps, entries[image.case_id]["labels"])
        return "\n".join(lines)

    def not_done(self, images: Iterable[Derivative]) -> list[Derivative]:
        """Return the images whose derivatives are missing, or older than the image."""
        return [image for image in images if not image.is_up_to_date(self.bids, self.scheme.names)]

    def publish_predicted(self, images: Sequence[Derivative]) -> None:
        """Measure, draw and put in place those of the images that lie predicted in the folder aside."""
        entries = reported_cases(self.work)
        ready = [
            (image, entries[image.case_id])
            for image in images
            if image.case_id in entries
            and is_predicted(
                _label_map(self.work, image), image.case_id, self.scheme.numbers, [self.bids / image.place]
            )
        ]
        self._put_in_place(ready, progress=self.progress and bool(ready))

    def _put_in_place(
        self, predicted: Sequence[tuple[Derivative, Mapping[str, Any]]], *, progress: bool = False
    ) -> None:
        outcomes = try_jobs(
            partial(_publish, bids=self.bids, work=self.work, scheme=self.scheme, draws=self.draws),
            predicted,
            lambda job: job[0].case_id,
            num_processes=1,
            progress=progress,
            description="measured",
        )
        for (image, _), outcome in zip(predicted, outcomes, strict=True):
            if isinstance(outcome, UserError):
                self.report.failed[image.case_id] = str(outcome)
            else:
                self.report.predicted.append(image.case_id)

    def note_failures(self, images: Iterable[Derivative]) -> None:
        """Write down why an image failed, for the report of the group, and forget what was mended.

        What was made of an image before it was changed does not stay.
        """
        for image in images:
            if why := self.report.failed.get(image.case_id):
                for outdated in self.not_done([image]):
                    outdated.remove(self.scheme.names)
                make_folder(image.log.parent)
                told = {"Failed": why, "Image": image.place.as_posix(), "Version": __version__}
                write_json(image.log, told)
            else:
                image.log.unlink(missing_ok=True)


def _label_map(work: Path, image: Derivative) -> Path:
    return work / f"{image.case_id}{NIFTI_ENDINGS[0]}"


def _publish(
    job: tuple[Derivative, Mapping[str, Any]], *, bids: Path, work: Path, scheme: LabelScheme, draws: bool
) -> None:
    """Write all derivatives of one image, the label map last."""
    image, entry = job
    words = label_words(scheme.names)
    numbered = zip(scheme.names, scheme.numbers, strict=True)
    soft = {name: soft_label_file(work / SOFT_FOLDER, image.case_id, number) for name, number in numbered}
    make_folder(image.label_map.parent)
    image.remove(scheme.names)  # of an earlier call, which may have drawn or measured what this one does not
    areas, trouble = _areas(soft)
    if areas is not None:
        write_table_tsv(areas, image.areas)
    for name, file in soft.items():
        copy_file(file, image.soft_map(words[name]))
    if draws:
        trouble += _draw(image, bids, soft)
    write_json(
        image.sidecar,
        {
            "Sources": [f"bids:raw:{image.place.as_posix()}"],
            "Flags": entry["flags"],
            "Warnings": [*entry["warnings"], *trouble],
            "Backend": entry["backend"],
            "Seconds": entry["seconds"],
            "Labels": _numbers(entry["labels"], areas),
        },
    )
    copy_file(_label_map(work, image), image.label_map)


def _areas(soft: Mapping[str, Path]) -> tuple[pd.DataFrame | None, list[str]]:
    """Return the areas of all labels, a row per label and slice, and why there are none."""
    try:
        table = csa([*soft.values()])
    except UserError as error:
        return None, [f"areas: {error}"]
    of_file = {str(file): name for name, file in soft.items()}
    table.insert(0, "label", table.pop("file").map(of_file))
    return table[[*AREA_COLUMNS]], [f"areas: {failure}" for failure in table.attrs["failed"]]


def _draw(image: Derivative, bids: Path, soft: Mapping[str, Path]) -> list[str]:
    """Draw the picture of an image and return why there is none."""
    from nnunet_softseg.inference.qc_page import case_figure, read_case  # loads matplotlib
    from nnunet_softseg.io.html import figure_as_webp

    try:
        drawn = figure_as_webp(case_figure(read_case(bids / image.place, soft)))
    except (UserError, OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
        return [f"no picture: {' '.join(str(error).split())}"]
    make_folder(image.picture.parent)
    with replacing(image.picture) as aside:
        aside.write_bytes(drawn)
    return []


def _numbers(
    labels: Mapping[str, Mapping[str, Any]], areas: pd.DataFrame | None
) -> dict[str, dict[str, Any]]:
    """Return the numbers of each label: soft volume, means of areas; None: no value.

    Each mean is over the slices that have the area: of csa_mm2 also faint ones, which csa_hard_mm2 lacks.
    """
    numbers: dict[str, dict[str, Any]] = {}
    for name, values in labels.items():
        slices = pd.DataFrame(columns=[*COLUMNS]) if areas is None else areas[areas["label"] == name]
        soft, hard = (pd.to_numeric(slices[area]).dropna() for area in ("csa_mm2", "csa_hard_mm2"))
        means = {"csa_mm2": soft.mean(), "csa_std_mm2": soft.std(ddof=1), "csa_hard_mm2": hard.mean()}
        numbers[name] = {
            "soft_volume_mm3": values.get("soft_volume_mm3"),
            "slices": len(soft),
            **{key: None if pd.isna(value) else round(float(value), 4) for key, value in means.items()},
        }
    return numbers


# The page of a participant


def _write_pages(root: Path, bids: Path, images: Iterable[Derivative], *, always: bool) -> None:
    """Write `<subject>.html` of the participants, with all images of theirs that are done or failed."""
    for subject in sorted({image.name.subject for image in images}):
        page = root / f"{subject}.html"
        if always or not page.is_file():
            write_page(page, _page(root, bids, subject))


def _page(root: Path, bids: Path, subject: str) -> str:
    images = [
        {
            "name": image.case_id,
            "entry": entry,
            "picture": quote(image.picture.relative_to(root).as_posix()) if image.picture.is_file() else None,
        }
        for image, entry in finished(root, Choice(participants=(subject,)))
    ]
    context = {
        "style_of_page": Markup(template("qc.css")),
        "images": images,
        "failed": failures(root, bids, subject),
    }
    return render_page(subject, template("participant.html"), context, images="'self' file:")
