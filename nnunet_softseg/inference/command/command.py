"""`nnunet-softseg predict`: images -> soft maps in one process, the model loaded once."""

import contextlib
import os
import sys
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import AsyncResult
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_softseg import __version__
from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.inference.command.images import ImageCase, find_cases
from nnunet_softseg.inference.command.model import CHECKPOINT, Model, load_predictor, open_model
from nnunet_softseg.inference.command.output_folder import OutputFolder, output_folder
from nnunet_softseg.inference.options import PredictionOptions
from nnunet_softseg.io.atomic import write_json
from nnunet_softseg.io.workers import map_ahead
from nnunet_softseg.preprocessing.model_plans import version_warning

StrPath = str | os.PathLike[str]


@dataclass
class PredictionReport:
    """What became of the cases.

    Attributes:
        output: folder.
        predicted: case ids.
        kept: case ids that an earlier call had predicted.
        failed: why, by case id.
        flagged: warnings of softseg.json, by case id, of those predicted.
        warnings: about the model and the options.
    """

    output: Path
    predicted: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    flagged: dict[str, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def as_text(self) -> str:
        """Return it in a few lines, failed cases one a line."""
        counts = f"{len(self.predicted)} predicted, {len(self.kept)} kept, {len(self.failed)} failed"
        lines = [f"{self.output}: {counts}"]
        if self.flagged:
            lines.append(f"flagged in softseg.json, look at them: {examples(sorted(self.flagged))}")
        return "\n".join([*lines, *(f"failed: {case}: {why}" for case, why in sorted(self.failed.items()))])


def predict(
    source: StrPath,
    output: StrPath,
    model: StrPath,
    *,
    folds: Sequence[str | int] | None = None,
    checkpoint: str = CHECKPOINT,
    contrasts: Sequence[str] | None = None,
    device: str = "auto",
    localize: str | None = None,
    largest_piece: bool = False,
    discard_implausible: bool = False,
    backend: str | None = None,
    overwrite: bool = False,
    num_threads: int = 2,
    progress: bool = True,
) -> PredictionReport:
    """Predict images as stock nnU-Net does, in one process, and return what became of them.

    The files are those of nnUNetv2_predict, bit by bit: `<case>.nii.gz`, `soft/<case>_<label>.nii.gz`,
    softseg.json. A case whose files are there is kept. An image that cannot be predicted stops no other.

    Args:
        source: an image; a folder of images with nnU-Net's names or any; a BIDS folder.
        output: folder, made if missing; not that of the images.
        model: nnU-Net's folder of a trained model, or an archive of nnUNetv2_export_model_to_zip.
        folds: whose soft maps are averaged; None: all that are there.
        checkpoint: file name in the folders of the folds.
        contrasts: of a BIDS folder, those to take; None: all.
        device: "cpu", "cuda", "mps" or "auto": cuda where there is one, else cpu.
        localize: "always", "auto" or "never" look for the cord off the centre; None: as the environment
            variable NNUNET_SOFTSEG_LOCALIZE says.
        largest_piece: keep only the largest piece of each label, its values as they are; False: as the
            environment variable NNUNET_SOFTSEG_LARGEST_PIECE says.
        discard_implausible: empty maps that look like no label of the training, rather than flag them;
            False: as the environment variable NNUNET_SOFTSEG_DISCARD_IMPLAUSIBLE says.
        backend: what runs the network; None: as the environment variable NNUNET_SOFTSEG_BACKEND says.
        overwrite: predict every case again.
        num_threads: that read and preprocess, and that export; so many cases at most wait on either side.
        progress: show a bar.

    Raises:
        UserError: for a mistake that concerns all cases: no image, no model of ours, an output folder that
            cannot be written or holds predictions of another model.
    """
    options = PredictionOptions.from_environment(
        os.environ,
        backend=backend,
        localize=localize,
        largest_piece=largest_piece,
        discard_implausible=discard_implausible,
    )
    with open_model(Path(model), folds, checkpoint) as found:
        cases = find_cases(Path(source), found.num_channels, contrasts)
        folder = output_folder(Path(output), found)
        folder.refuse_inputs(cases, Path(source))
        folder.start(cases, _made_by(found, options), overwrite=overwrite)
        todo = [case for case in cases if overwrite or not folder.is_done(case)]
        kept = {case.case_id for case in cases} - {case.case_id for case in todo}
        report = PredictionReport(folder.path, kept=sorted(kept))
        if todo:
            warning = version_warning(found.plans)
            report.warnings += [warning] if warning else []
            report.warnings += options.overruled
            with tqdm(total=len(cases), initial=len(report.kept), disable=not progress, unit="case") as bar:
                _predict_cases(found, folder, todo, _Run(report, bar, options, num_threads, device))
        return report


def _made_by(model: Model, options: PredictionOptions) -> dict[str, Any]:
    """Return what decides the values of a prediction, so that a folder never mixes two of it."""
    return {
        "version": __version__,
        "checkpoints": model.checkpoint_hashes(),
        "localize": options.localize,
        "largest_piece": options.largest_piece,
        "discard_implausible": options.discard_implausible,
    }


@dataclass(frozen=True)
class _Run:
    report: PredictionReport
    bar: Any
    options: PredictionOptions
    num_threads: int
    device: str

    def failed(self, case: ImageCase, error: Exception) -> None:
        """Note why a case failed; what is no mistake of the user is shown with its traceback, too."""
        if not isinstance(error, UserError):
            traceback.print_exception(error, file=sys.stderr)
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        self.report.failed[case.case_id] = what
        self.bar.update()

    def done(self, case: ImageCase, properties: dict[str, Any]) -> None:
        from nnunet_softseg.inference.case_record import CaseRecord

        self.report.predicted.append(case.case_id)
        if warnings := CaseRecord.of(properties).warnings:
            self.report.flagged[case.case_id] = list(warnings)
        self.bar.update()


def _predict_cases(model: Model, folder: OutputFolder, cases: Sequence[ImageCase], run: _Run) -> None:
    """Read and preprocess in threads, forward here, export in threads; few cases wait in between."""
    from nnunet_softseg.network.backends import choice

    with _nnunets_threads(run.device) as device:
        choice.wish_of(run.options.backend)  # what is wrong with it is said now, not once for every case
        predictor = load_predictor(model, device)
        write_json(folder.path / "dataset.json", predictor.dataset_json)
        write_json(folder.path / "plans.json", predictor.plans_manager.plans)
        _pipeline(predictor, folder, cases, run)


def _pipeline(predictor: Any, folder: OutputFolder, cases: Sequence[ImageCase], run: _Run) -> None:
    from nnunet_softseg.inference.worker_threads import preprocessed_case, same_arithmetic, thread_pool

    def prepare(case: ImageCase) -> dict[str, Any]:
        return preprocessed_case(predictor, list(map(str, case.files)), folder.truncated(case.case_id))

    exports: deque[tuple[ImageCase, dict[str, Any], AsyncResult[None]]] = deque()
    ahead = map_ahead(prepare, cases, num_threads=run.num_threads, initializer=same_arithmetic())
    pool = thread_pool(run.num_threads)
    try:
        for case, prepared in zip(cases, ahead, strict=True):
            try:
                item = prepared.result()
                properties = item["data_properties"]
                soft_maps = _soft_maps(predictor, item, run.options)
                written = (predictor, soft_maps, properties, item["ofile"])
                export = pool.apply_async(_export, written)
            except Exception as error:
                run.failed(case, error)
                continue
            exports.append((case, properties, export))
            while exports and (len(exports) > run.num_threads or exports[0][-1].ready()):
                _finish(*exports.popleft(), run)
        while exports:
            _finish(*exports.popleft(), run)
    finally:  # what has been predicted is written, also where the user has had enough
        pool.close()
        pool.join()


def _soft_maps(predictor: Any, item: Mapping[str, Any], options: PredictionOptions) -> Any:
    from nnunet_softseg.inference.case_record import CaseRecord
    from nnunet_softseg.inference.nnunet_patches import under_way

    record = CaseRecord.of(item["data_properties"])
    record.given_options = options
    with under_way(record):
        return predictor.predict_logits_from_preprocessed_data(item["data"]).cpu().numpy()


def _export(predictor: Any, soft_maps: Any, properties: dict[str, Any], truncated_file: str) -> None:
    from nnunet_softseg.inference.export import export_prediction

    export_prediction(soft_maps, properties, predictor.plans_manager, predictor.dataset_json, truncated_file)


def _finish(case: ImageCase, properties: dict[str, Any], export: "AsyncResult[None]", run: _Run) -> None:
    try:
        export.get()
    except Exception as error:
        run.failed(case, error)
    else:
        run.done(case, properties)


@contextlib.contextmanager
def _nnunets_threads(name: str) -> Iterator[Any]:
    """Give the torch device; within the block torch has as many threads as in nnUNetv2_predict.

    Raises:
        UserError: if there is no such device.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(name, False):
        there = ", ".join(device for device, there in available.items() if there)
        raise UserError(f"-device {name}: expected one of those here ({there}): correct -device")
    before = torch.get_num_threads()
    torch.set_num_threads((os.cpu_count() or 1) if name == "cpu" else 1)
    try:
        yield torch.device(name)
    finally:
        torch.set_num_threads(before)
