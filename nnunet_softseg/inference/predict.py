"""`nnunet-softseg predict`: images -> soft maps in one process, the model loaded once.

The model is checked, the cases of a file or folder are found, the folder of predictions is checked; then each
case is read and preprocessed in one thread, predicted in this one, and exported in another.
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import AsyncResult
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from nnunet_softseg import __version__
from nnunet_softseg.datasets.raw_dataset import channel_names, is_predicted, label_scheme, soft_label_files
from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.inference.case_record import CaseRecord, PredictionOptions, is_of, reported_cases
from nnunet_softseg.inference.trained_model import (
    CHECKPOINT,
    PLANS,
    FileModel,
    Model,
    find_folds,
    load_predictor,
    missing_model,
    open_any_model,
)
from nnunet_softseg.io.case_files import (
    IMAGE_FOLDERS,
    REPORT,
    RUN,
    SOFT_FOLDER,
    is_bids,
    list_bids,
    list_files,
    parse_numbered_name,
)
from nnunet_softseg.io.formats import ANY_FORMAT, NIFTI, NIFTI_ENDINGS, is_nifti, is_picture, without_ending
from nnunet_softseg.io.image_choice import Exclusion, select_images
from nnunet_softseg.io.nifti import StrPath, load_nifti
from nnunet_softseg.io.results import (
    changed_keys,
    load_record,
    make_folder,
    remove_files,
    require_writable,
    write_json,
)
from nnunet_softseg.io.workers import as_user_error, map_ahead, threads_beside

if TYPE_CHECKING:
    from nnunet_softseg.inference.runtime import RuntimeModel


@dataclass
class PredictionReport:
    """Outcome of the cases.

    Attributes:
        output: folder.
        predicted: case ids.
        kept: case ids that an earlier call had predicted.
        failed: why, by case id.
        summary: how many cases have which flag, why, and what to do, those kept included.
        warnings: about the model and the options.
        done: what was done to the cases in `predicted`, as the text says it.
    """

    output: Path
    predicted: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    summary: str = ""
    warnings: list[str] = field(default_factory=list)
    done: str = "predicted"

    def as_text(self) -> str:
        """Return it in a few lines, failed cases one a line."""
        counts = f"{len(self.predicted)} {self.done}, {len(self.kept)} kept, {len(self.failed)} failed"
        failures = (f"failed: {case}: {why}" for case, why in sorted(self.failed.items()))
        return "\n".join(filter(None, (f"{self.output}: {counts}", self.summary, *failures)))


def predict(
    source: StrPath,
    output: StrPath,
    model: StrPath | None = None,
    *,
    folds: Sequence[str | int] | None = None,
    checkpoint: str = CHECKPOINT,
    contrasts: Sequence[str] | None = None,
    only: Collection[str] | None = None,
    device: str = "auto",
    localize: str | None = None,
    largest_piece: bool = False,
    discard_implausible: bool = False,
    calibrate: bool = False,
    no_qc: bool = False,
    backend: str | None = None,
    overwrite: bool = False,
    trust_model: bool = False,
    num_threads: int = 2,
    progress: bool = True,
    on_written: Callable[[str, Mapping[str, Any]], None] | None = None,
) -> PredictionReport:
    """Predict images as stock nnU-Net does, in one process, and return the outcome of each.

    The files are those of nnUNetv2_predict, bit by bit: `<case>.nii.gz`, `soft/<case>_<label>.nii.gz`,
    softseg.json. A case whose files are there is kept, unless its image is newer. An image that cannot be
    predicted stops no other.

    Args:
        source: an image; a folder of images with nnU-Net's names or any; a BIDS folder, of which
            `sub-*/[ses-*/]anat` and `dwi` count. In NIfTI, or in the format of the training.
        output: folder, made if missing; not that of the images.
        model: nnU-Net's folder of a trained model, an archive of nnUNetv2_export_model_to_zip, or a file of
            `export`, which needs neither torch nor nnU-Net; None: the spinal cord model of this package.
        folds: whose soft maps are averaged; None: all that are there.
        checkpoint: file name in the folders of the folds.
        contrasts: of a BIDS folder, those to take; None: all.
        only: ids of the cases to predict; None: all.
        device: "cpu", "cuda", "mps" or "auto": cuda where there is one, else cpu.
        localize: "always", "auto" or "never" look for the cord off the centre. Where this or one of the next
            five is None or False, its environment variable decides (`case_record.VARIABLES`).
        largest_piece: keep only the largest component of each label, its values as they are.
        discard_implausible: empty maps that are flagged as unlike every label of the training, also right
            ones of anatomy that the training did not show.
        calibrate: map the values as `calibrate` has found for this model.
        no_qc: make no `qc/index.html`, a page with a picture of each case, which is made of up to 200 cases.
        backend: runs the network: "auto", "torch", "openvino", or with a precision: "torch-float32".
        overwrite: predict every case again.
        trust_model: open a checkpoint that holds more than weights and numbers, and may run code.
        num_threads: that read and preprocess, and that export; so many cases at most wait on either side.
        progress: show a bar.
        on_written: called for each case whose files are written, with its id and its entry in softseg.json,
            in one of the threads that export.

    Raises:
        UserError: for a mistake that concerns all cases: no image, no model of ours, no calibration where it
            is asked for, an output folder that cannot be written or holds predictions of another model.
    """
    options = PredictionOptions.from_environment(
        os.environ,
        backend=backend,
        localize=localize,
        largest_piece=largest_piece,
        discard_implausible=discard_implausible,
        calibrate=calibrate,
        no_qc=no_qc,
    )
    with open_any_model(model, folds, checkpoint, trusted=trust_model) as found:
        _require_fit(found, options, device)
        channels, numbers = channel_names(found.dataset_json), label_scheme(found.dataset_json).numbers
        ending: str = found.dataset_json["file_ending"]
        cases = find_cases(Path(source), len(channels), contrasts, file_ending=ending)
        cases = tuple(case for case in cases if only is None or case.case_id in only)
        folder = _OutputFolder(Path(output), ending, numbers, found.made_by(options))
        folder.require_fit(cases, Path(source), overwrite=overwrite)
        todo = [*cases] if overwrite else folder.not_done(cases)
        kept = {case.case_id for case in cases} - {case.case_id for case in todo}
        report = PredictionReport(
            folder.path, kept=sorted(kept), warnings=images_passed_over(Path(source), ending)
        )
        if todo:
            from nnunet_softseg.preprocessing.model_plans import version_warning

            report.warnings += filter(None, (version_warning(found.plans), *options.overruled))
            with tqdm(total=len(cases), initial=len(report.kept), disable=not progress, unit="case") as bar:
                run = _Run(report, bar, options, num_threads, device, on_written)
                _predict_cases(found, folder, todo, run)
        from nnunet_softseg.inference.export import summarise  # only here: a mistake is told before it loads

        done = {case.case_id: case.files[0] for case in cases if case.case_id not in report.failed}
        report.summary = summarise(folder.path, done, numbers, draw=not options.no_qc, progress=progress)
        return report


def _require_fit(model: Model | FileModel, options: PredictionOptions, device: str) -> None:
    """Raise a UserError if a model cannot do what is asked for, or what runs it is not here."""
    if isinstance(model, FileModel):
        from nnunet_softseg.inference.runtime import require_runtime

        require_runtime(model, options.backend, device)
    if options.calibrate:
        from nnunet_softseg.inference.export import kept_calibration

        kept_calibration(model.plans, label_scheme(model.dataset_json).names)


def explain_missing_model(error: BaseException) -> UserError | None:
    """Return the mistake behind an error of nnUNetv2_predict that opens a model or a fold that is not there.

    It opens <model>/dataset.json and <model>/fold_<fold>/<checkpoint>, and says nothing more.
    """
    file = Path(str(error.filename)) if isinstance(error, FileNotFoundError) else Path()
    is_checkpoint = file.parent.name.startswith("fold_")
    folder = file.parent.parent if is_checkpoint else file.parent
    if folder.name.count("__") != 2:  # noqa: PLR2004  trainer, plans, configuration
        return None
    if not (folder / PLANS).is_file():
        return missing_model(folder, "name one with -tr, -p and -c, and its dataset with -d")
    if not is_checkpoint:
        return None
    try:
        find_folds(folder, [file.parent.name.removeprefix("fold_")], file.name)
    except UserError as mistake:
        return mistake
    return None


# Cases


@dataclass(frozen=True)
class ImageCase:
    """Images that are predicted together: an id that names the output, and one file per channel."""

    case_id: str
    files: tuple[Path, ...]


def find_cases(
    source: Path,
    num_channels: int,
    contrasts: Sequence[str] | None = None,
    *,
    file_ending: str | None = NIFTI_ENDINGS[0],
) -> tuple[ImageCase, ...]:
    """Return the cases in a file or folder, by name; arguments as for `predict`.

    `<case>_0000` to `<case>_<num_channels - 1>` are one case, as in nnU-Net; for a model of one channel every
    other name is a case of its own. Models of NIfTI images take NIfTI, others the format of their training,
    `file_ending` (None: any); a picture in colours has all channels in one file.

    Raises:
        UserError: if there is no image, a channel is missing, or two cases have the same name.
    """
    images = _images(source, contrasts, file_ending)
    if num_channels > 1 and is_picture(images[0].name):
        num_channels = max(1, num_channels // _colours(images[0]))  # of too many, reading says so
    cases = _one_per_image(images) if num_channels == 1 else _by_channels(images, num_channels)
    seen: dict[str, ImageCase] = {}
    for case in cases:
        other = seen.setdefault(case.case_id, case)
        if other is not case:
            raise UserError(
                f"two images would both be case {case.case_id}: expected one, found "
                f"{examples([str(file) for file in (*other.files, *case.files)])}: rename or remove one"
            )
    return tuple(sorted(cases, key=lambda case: case.case_id))


def _formats(file_ending: str | None) -> Sequence[Callable[[str], bool]]:
    if file_ending is None:
        return ANY_FORMAT
    if is_nifti(file_ending):
        return NIFTI
    ending = file_ending.lower()
    return (lambda name: name.lower().endswith(ending),)


def _colours(file: Path) -> int:
    shape = load_nifti(file).shape
    return shape[-1] if len(shape) > 3 else 1  # noqa: PLR2004  (x, y, 1, colour)


def images_passed_over(source: Path, file_ending: str | None = NIFTI_ENDINGS[0]) -> list[str]:
    """Name the images of a folder that are not taken (`find_cases`); of a BIDS folder, nothing is said."""
    if not source.is_dir() or is_bids(source):
        return []
    return list_files(source, subfolders=False, formats=_formats(file_ending)).warnings()


def _images(source: Path, contrasts: Sequence[str] | None, file_ending: str | None) -> Sequence[Path]:
    if is_bids(source):
        listing = list_bids(source)
        if contrasts is None:
            return listing.files
        chosen = select_images(listing, exclude=Exclusion(), contrasts=contrasts)
        return [image.path for image in chosen.images]
    if contrasts is not None:
        raise UserError(
            f"{source}: expected a BIDS folder to choose contrasts from, found none of sub-*/"
            f"{', sub-*/'.join(IMAGE_FOLDERS)}: leave --contrasts out"
        )
    expected = "NIfTI files (.nii or .nii.gz), or a BIDS folder with sub-*/anat"
    formats = _formats(file_ending)
    if file_ending is not None and not is_nifti(file_ending):
        expected = f"files that end in {file_ending}, as those of the training"
        if source.is_file() and not formats[0](source.name):
            raise UserError(f"{source}: expected a file or a folder with {expected}: convert it")
    return list_files(source, subfolders=False, formats=formats, expected=expected).files


def _one_per_image(images: Sequence[Path]) -> list[ImageCase]:
    """Take every image as a case; `_0000` is nnU-Net's channel unless its case has other channels, too."""
    numbered = {named[0] for image in images if (named := parse_numbered_name(image.name)) and named[1]}
    cases = []
    for image in images:
        named = parse_numbered_name(image.name)
        is_channel = named is not None and named[1] == 0 and named[0] not in numbered
        case_id = named[0] if named and is_channel else without_ending(image.name)
        cases.append(ImageCase(case_id, (image,)))
    return cases


def _by_channels(images: Sequence[Path], num_channels: int) -> list[ImageCase]:
    expected = [f"{channel:04d}" for channel in range(num_channels)]
    channels: dict[str, dict[int, list[Path]]] = {}
    for image in images:
        named = parse_numbered_name(image.name)
        if named is None:
            raise UserError(
                f"{image}: the model takes {num_channels} channels: expected names that end in "
                f"_{expected[0]} to _{expected[-1]}, found none: rename the images as nnU-Net's"
            )
        channels.setdefault(named[0], {}).setdefault(named[1], []).append(image)
    cases = []
    for case, found in channels.items():
        if sorted(found) != list(range(num_channels)) or any(len(files) > 1 for files in found.values()):
            names = ", ".join(file.name for files in found.values() for file in files)
            raise UserError(
                f"{case}: expected one image for each of the channels {', '.join(expected)}, found {names}: "
                "add or remove images"
            )
        cases.append(ImageCase(case, tuple(found[channel][0] for channel in sorted(found))))
    return cases


# The folder of predictions


@dataclass(frozen=True)
class _OutputFolder:
    """Folder of predictions, the ending of its label maps, labels (each has a soft map), what makes all."""

    path: Path
    file_ending: str
    labels: tuple[int, ...]
    made_by: Mapping[str, Any]

    def not_done(self, cases: Iterable[ImageCase]) -> list[ImageCase]:
        """Return the cases that are not written by what the folder says, from their images as they are.

        A case's label map comes last. One that softseg.json does not tell of is of something else.
        """
        listed = reported_cases(self.path)
        return [
            case
            for case in cases
            if case.case_id not in listed
            or not is_of(listed[case.case_id], case.files)
            or not is_predicted(self._label_map(case.case_id), case.case_id, self.labels, case.files)
        ]

    def clear(self, cases: Iterable[ImageCase]) -> None:
        """Remove the maps of those of the cases that are not done; an earlier call may have left them."""
        from nnunet_softseg.inference.export import forget_cases

        forget_cases(self.path, [case.case_id for case in self.not_done(cases)], self.file_ending)

    def _label_map(self, case_id: str) -> Path:
        return self.path / f"{case_id}{self.file_ending}"

    def require_fit(self, cases: Sequence[ImageCase], source: Path, *, overwrite: bool) -> None:
        """Make the folder, if it can hold these predictions.

        Raises:
            UserError: if it is a file, holds the images, where the next call would predict the predictions,
                cannot be written, or holds a BIDS folder, derivatives, or predictions made by something else
                that may not be overwritten.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"-o {self.path}: expected a folder, found a file: give a folder")
        images = {file.parent.resolve() for case in cases for file in case.files} | {source.resolve()}
        if self.path.resolve() in images:
            raise UserError(
                f"-o {self.path}: expected a folder without the images to predict, found them there: give "
                f"another, such as {self.path / 'softseg'}"
            )
        if is_bids(self.path) and not any((self.path / name).exists() for name in (RUN, REPORT)):
            raise UserError(
                f"-o {self.path}: expected a new folder or one of predictions, found BIDS images or other "
                "derivatives, in folders sub-*: give another folder"
            )
        if not overwrite:
            self._refuse_others(cases)
        make_folder(self.path)
        require_writable(self.path)

    def start(self, cases: Iterable[ImageCase]) -> None:
        """Write what predictions of cases are made by, once the model is open, which may be refused then."""
        if changed_keys(load_record(self.path / RUN) or {}, self.made_by):
            soft_maps = self.path / SOFT_FOLDER  # of any labels: a model of before may have had others
            remove_files(file for case in cases for file in soft_label_files(soft_maps, case.case_id))
            if (self.path / REPORT).is_file():  # before it seems to be of what the folder says now
                write_json(self.path / REPORT, {"cases": {}})
        write_json(self.path / RUN, {"made_by": f"nnunet-softseg {__version__} predict", **self.made_by})

    def _refuse_others(self, cases: Iterable[ImageCase]) -> None:
        before = load_record(self.path / RUN)
        changed = changed_keys(before or {}, self.made_by)
        known = {case.case_id for case in cases} | reported_cases(self.path).keys()
        done = sorted(case_id for case_id in known if self._label_map(case_id).exists())
        if changed and (done or (before and any(self.path.glob(f"*{self.file_ending}")))):
            what = f"{examples(done)} of unknown origin"
            if before:
                what = f"{RUN} that differs in {', '.join(changed)}"
            raise UserError(
                f"{self.path}: expected an empty folder, or predictions of this model to go on with, found "
                f"{what}: give another folder, or --overwrite"
            )


# Prediction, case by case


@dataclass(frozen=True)
class _Run:
    """What all cases of a call share."""

    report: PredictionReport
    bar: Any
    options: PredictionOptions
    num_threads: int
    device: str
    on_written: Callable[[str, Mapping[str, Any]], None] | None

    def failed(self, case: ImageCase, error: Exception) -> None:
        """Note why a case failed."""
        self.report.failed[case.case_id] = str(as_user_error(error))
        self.bar.update()

    def finish(self, case: ImageCase, export: "AsyncResult[None]") -> None:
        """Wait for the export of a case and note its outcome."""
        try:
            export.get()
        except Exception as error:
            self.failed(case, error)
            return
        self.report.predicted.append(case.case_id)
        self.bar.update()


class _NnunetModel:
    """A model in the hands of nnU-Net's predictor; `runtime.RuntimeModel` does the same without nnU-Net."""

    def __init__(self, predictor: Any) -> None:
        from nnunet_softseg.inference.nnunet_patches import same_arithmetic

        self.plans_manager, self.dataset_json = predictor.plans_manager, predictor.dataset_json
        self.initializer = same_arithmetic()
        self._predictor = predictor

    def warm_up(self, options: PredictionOptions) -> None:
        """Do nothing: what runs the network is chosen by its first patch."""

    def prepare(self, files: Sequence[str]) -> tuple[Any, dict[str, Any]]:
        from nnunet_softseg.inference.nnunet_patches import preprocessed_case

        item = preprocessed_case(self._predictor, files, None)
        return item["data"], item["data_properties"]

    def soft_maps(self, image: Any, properties: dict[str, Any], options: PredictionOptions) -> Any:
        from nnunet_softseg.inference.nnunet_patches import under_way

        record = CaseRecord.of(properties)
        record.given_options = options
        with under_way(record):
            return self._predictor.predict_logits_from_preprocessed_data(image).cpu().numpy()


@contextlib.contextmanager
def _ready(model: Model | FileModel, run: _Run) -> Iterator["_NnunetModel | RuntimeModel"]:
    """Give a model ready to predict, for as long as the block lasts; a mistake in an option is told now."""
    if isinstance(model, FileModel):
        from nnunet_softseg.inference.runtime import RuntimeModel

        yield RuntimeModel(model)
        return
    from nnunet_softseg.network.openvino_network import parse_choice

    with _nnunets_threads(run.device) as device:
        parse_choice(run.options.backend)
        yield _NnunetModel(load_predictor(model, device))


def _predict_cases(
    model: Model | FileModel, folder: _OutputFolder, cases: Sequence[ImageCase], run: _Run
) -> None:
    with _ready(model, run) as ready:
        folder.start(cases)
        write_json(folder.path / "dataset.json", ready.dataset_json)
        write_json(folder.path / PLANS, ready.plans_manager.plans)
        _pipeline(ready, folder, cases, run)
        folder.clear(case for case in cases if case.case_id in run.report.failed)


def _pipeline(
    model: "_NnunetModel | RuntimeModel", folder: _OutputFolder, cases: Sequence[ImageCase], run: _Run
) -> None:
    """Read and preprocess in threads, forward here, export in threads; few cases wait in between."""
    from nnunet_softseg.inference.export import export_prediction

    def prepare(case: ImageCase) -> tuple[Any, dict[str, Any]]:
        return model.prepare([*map(str, case.files)])

    def export(case: ImageCase, soft_maps: Any, properties: dict[str, Any]) -> None:
        target = str(folder.path / case.case_id)
        export_prediction(soft_maps, properties, model.plans_manager, model.dataset_json, target)
        if run.on_written is not None:
            run.on_written(case.case_id, CaseRecord.of(properties).as_json())

    exports: deque[tuple[ImageCase, AsyncResult[None]]] = deque()
    ahead = map_ahead(prepare, cases, num_threads=run.num_threads, initializer=model.initializer)
    pool = threads_beside(run.num_threads, model.initializer)
    try:
        for case, prepared in zip(cases, ahead, strict=True):
            try:
                model.warm_up(run.options)
                image, properties = prepared.result()
                soft_maps = model.soft_maps(image, properties, run.options)
                exports.append((case, pool.apply_async(export, (case, soft_maps, properties))))
            except Exception as error:
                run.failed(case, error)
                continue
            while exports and (len(exports) > run.num_threads or exports[0][-1].ready()):
                run.finish(*exports.popleft())
        while exports:
            run.finish(*exports.popleft())
    finally:  # what has been predicted is written, also where the user has had enough
        pool.close()
        pool.join()


@contextlib.contextmanager
def _nnunets_threads(name: str) -> Iterator[str]:
    """Give the name of the device, which is there; in the block torch has the threads of nnUNetv2_predict."""
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
        yield name
    finally:
        torch.set_num_threads(before)
