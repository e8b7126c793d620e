"""Where nnU-Net's own commands call this package: the preprocessor, and every place where nnU-Net is patched.

nnU-Net offers no hook for four things: what happens between the forward pass and the resampling, what is
written of a prediction, where its workers run, and what becomes of soft maps in ensembles, cross-validation
and post-processing (the start-up hook calls these). These patches hand over to the original for every model
that is not ours, so vanilla models in the same process are untouched. Its search for classes by name is made
safe beside other threads, for all models. tests/inference/test_upstream.py fails when nnU-Net changes under
them.

Options of a prediction come from the environment here, as nnU-Net's commands take no others, and from nowhere
else. The forward pass alone sees no properties of its case: which case is under way is noted here, too, or
told by the preprocessed image, bit for bit, where several are prepared before the first is predicted.
"""

import contextlib
import functools
import inspect
import multiprocessing
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json, subfiles
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference import export_prediction as nnunet_export
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module  # noqa: N813  a module, no class
from nnunetv2.utilities import find_class_by_name
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import create_paths_fn, get_identifiers_from_splitted_dataset_folder

from nnunet_softseg.datasets.raw_dataset import is_predicted
from nnunet_softseg.errors import UserError, examples, show_without_traceback
from nnunet_softseg.inference import after_prediction, export, network_image, soft_prediction
from nnunet_softseg.inference.case_record import (
    CALIBRATION,
    VARIABLES,
    CaseRecord,
    PredictionOptions,
    is_of,
    reported_cases,
)
from nnunet_softseg.inference.export import kept_calibration
from nnunet_softseg.inference.trained_model import find_folds, keep_cases_of
from nnunet_softseg.io.case_files import DATASET_JSON, REPORT, RUN, SOFT_FOLDER, parse_numbered_name
from nnunet_softseg.io.results import changed_keys, load_record, remove_files
from nnunet_softseg.io.workers import map_ahead, threads_beside
from nnunet_softseg.network.backends import TorchPredictor
from nnunet_softseg.preprocessing.model_plans import is_soft
from nnunet_softseg.registry import extended_import_path
from nnunet_softseg.settings import PLANS_KEY

_MARK = "_nnunet_softseg"
_CONFIGURATION = "configuration"
"""Among our entries of the plans beside predictions: whose they are."""
_threads_wanted: ContextVar[bool] = ContextVar("threads_instead_of_processes", default=False)
_under_way: ContextVar[CaseRecord | None] = ContextVar("case_under_way", default=None)
_begun: WeakValueDictionary[int, CaseRecord] = WeakValueDictionary()
"""Records by the checksum of the preprocessed image, while the case's properties hold them."""


def install() -> None:
    """Patch nnU-Net in this process; a second call changes nothing."""
    wrappers: dict[str, Callable[..., Any]] = {
        "predict_sliding_window_return_logits": _soft_sliding_window,
        "predict_from_data_iterator": _record_keeping_iterator,
        "_manage_input_and_output_lists": _lists_without_processes,
        "_internal_get_data_iterator_from_lists_of_filenames": _iterator_in_threads,
        "predict_from_files": _summarised,
        "predict_from_files_sequential": _summarised,
    }
    for name, wrapper in wrappers.items():
        original = getattr(nnUNetPredictor, name)
        if not hasattr(original, _MARK):
            setattr(nnUNetPredictor, name, _for_soft_models(original, wrapper))
    predict_from_raw_data.multiprocessing = Multiprocessing()
    # Both modules hand this function to their worker processes, by its name in their own namespace.
    predict_from_raw_data.export_prediction_from_logits = export_prediction
    trainer_module.export_prediction_from_logits = export_prediction
    predict_from_raw_data.convert_predicted_logits_to_segmentation_with_correct_shape = convert_prediction
    find_class_by_name.temporarily_extend_syspath = extended_import_path


def _with_options(record: CaseRecord) -> CaseRecord:
    """Return a record, with the options of the environment where nobody has given any."""
    record.given_options = record.given_options or PredictionOptions.from_environment(os.environ)
    return record


@contextlib.contextmanager
def _within(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    """Give a variable of this thread a value within this block."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def under_way(record: CaseRecord) -> contextlib.AbstractContextManager[None]:
    """Say whose forward pass comes next in this thread, within a block."""
    return _within(_under_way, record)


class SoftSegPreprocessor(DefaultPreprocessor):  # type: ignore[misc]
    """nnU-Net's preprocessor for the box of a case that the network sees; a record of the case is begun.

    A case that comes with a segmentation is not one to predict, and goes nnU-Net's own way, but in the second
    stage of a cascade, where that is the label map of the first.
    """

    def run_case(
        self,
        image_files: Sequence[str],
        seg_file: str | None,
        plans_manager: Any,
        configuration_manager: Any,
        dataset_json: dict[str, Any] | str,
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Return (image, segmentation, properties) of files; see `network_image.preprocess_files`."""
        if seg_file is not None and not _is_second_stage(configuration_manager):
            whole: tuple[Any, Any, dict[str, Any]] = super().run_case(
                image_files, seg_file, plans_manager, configuration_manager, dataset_json
            )
            return whole
        case = _preprocessed(image_files, seg_file, plans_manager, configuration_manager)
        _keep_record(case[0], case[2])
        return case

    def run_case_npy(  # noqa: PLR0917  nnU-Net's signature
        self,
        data: Any,
        seg: Any,
        properties: dict[str, Any],
        plans_manager: Any,
        configuration_manager: Any,
        dataset_json: dict[str, Any] | str,
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Return (image, segmentation, properties) of arrays; see `network_image.preprocess_array`."""
        of_model = (plans_manager, configuration_manager)
        is_second = _is_second_stage(configuration_manager)
        if seg is not None and not is_second:
            arguments = (data, seg, properties, *of_model, dataset_json)
            whole: tuple[Any, Any, dict[str, Any]] = super().run_case_npy(*arguments)
            return whole
        if is_second:
            _require_first_stage(seg, configuration_manager)
        image, properties = network_image.preprocess_array(data, properties, *of_model)
        label_map = network_image.on_network_box(seg[0], properties, *of_model) if is_second else None
        _keep_record(image, properties)
        return image, label_map, properties


def _keep_record(image: npt.NDArray[np.float32], properties: dict[str, Any]) -> None:
    """Let the record of a case be found by its preprocessed image, (channel, *space)."""
    _begun[_checksum(image)] = CaseRecord.of(properties)


def _checksum(image: npt.NDArray[np.float32]) -> int:
    return zlib.crc32(np.ascontiguousarray(image).data)


def _preprocessed(
    image_files: Sequence[str], first_stage_file: str | None, plans_manager: Any, configuration_manager: Any
) -> tuple[Any, Any, dict[str, Any]]:
    """Return (image, label map, properties) of a case; a label map in the second stage of a cascade alone."""
    of_model = (plans_manager, configuration_manager)
    if not _is_second_stage(configuration_manager):
        image, properties = network_image.preprocess_files(image_files, *of_model)
        return image, None, properties
    _require_first_stage(first_stage_file, configuration_manager)
    image, properties = network_image.preprocess_files(image_files, *of_model)
    label_map, _ = plans_manager.image_reader_writer_class().read_seg(str(first_stage_file))
    with network_image.error_prefix([str(first_stage_file)]):
        return image, network_image.on_network_box(label_map[0], properties, *of_model), properties


def _require_first_stage(label_map: Any, configuration_manager: Any) -> None:
    """Raise a UserError if there is no label map for the second stage of a cascade."""
    if label_map is None:
        stage = configuration_manager.previous_stage_name
        raise UserError(
            f"the model is the second stage of a cascade: expected a label map of its first stage, {stage}, "
            f"found none: predict with {stage} first"
        )


def _is_second_stage(configuration_manager: Any) -> bool:
    return configuration_manager.previous_stage_name is not None


def export_prediction(  # noqa: PLR0917  nnU-Net's signature
    predicted_array_or_file: Any,
    properties_dict: dict[str, Any],
    configuration_manager: Any,
    plans_manager: Any,
    dataset_json_dict_or_file: dict[str, Any] | str,
    output_file_truncated: str,
    save_probabilities: bool = False,
    num_threads_torch: int = default_num_processes,
) -> None:
    """Write what was predicted of a case, in place of nnU-Net's `export_prediction_from_logits`."""
    dataset_json = dataset_json_dict_or_file
    if not is_soft(plans_manager.plans):
        nnunet_export.export_prediction_from_logits(
            predicted_array_or_file, properties_dict, configuration_manager, plans_manager, dataset_json,
            output_file_truncated, save_probabilities, num_threads_torch,
        )  # fmt: skip
        return
    _with_options(CaseRecord.of(properties_dict))
    dataset_json = load_json(dataset_json) if isinstance(dataset_json, str) else dataset_json
    arguments = (predicted_array_or_file, properties_dict, plans_manager, dataset_json, output_file_truncated)
    export.export_prediction(*arguments, save_probabilities=save_probabilities)


def convert_prediction(  # noqa: PLR0917  nnU-Net's signature
    predicted_logits: Any,
    plans_manager: Any,
    configuration_manager: Any,
    label_manager: Any,
    properties_dict: dict[str, Any],
    return_probabilities: bool = False,
    num_threads_torch: int = default_num_processes,
) -> Any:
    """Return what was predicted of a case on the image's grid, where nnU-Net writes no files.

    Of a model of ours it is the label map (z, y, x) and, with `return_probabilities`, the soft maps
    (label, z, y, x); of any other what nnU-Net makes of it.
    """
    if not is_soft(plans_manager.plans):
        return nnunet_export.convert_predicted_logits_to_segmentation_with_correct_shape(
            predicted_logits, plans_manager, configuration_manager, label_manager, properties_dict,
            return_probabilities, num_threads_torch,
        )  # fmt: skip
    _with_options(CaseRecord.of(properties_dict))
    converted = export.convert_prediction(predicted_logits, properties_dict, plans_manager, label_manager)
    return converted if return_probabilities else converted[0]


def _for_soft_models(original: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of nnU-Net's predictor: for models of ours `wrapper(original, predictor, ...)`."""

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_soft(self.plans_manager.plans):
            return wrapper(original, self, *args, **kwargs)
        return original(self, *args, **kwargs)

    setattr(method, _MARK, True)
    return method


def describe_opened(original: Callable[..., Any], predictor: Any, *args: Any, **kwargs: Any) -> None:
    """Let the plans of a predictor tell what is open: the configuration, the training cases of its folds.

    The start-up hook calls this behind nnU-Net's `initialize_from_trained_model_folder`, the original.
    """
    given = arguments_of(original, predictor, *args, **kwargs)
    folder, folds = Path(given["model_training_output_dir"]).absolute(), given["use_folds"]
    if folds is None:
        chosen = find_folds(folder, None, given["checkpoint_name"])
    else:  # nnU-Net has opened them, and takes "00" for 0
        several = [folds] if isinstance(folds, str) else folds
        chosen = tuple(fold if fold == "all" else str(int(fold)) for fold in several)
    plans, configuration = predictor.plans_manager.plans, folder.name.rpartition("__")[2]
    keep_cases_of(plans[PLANS_KEY], chosen)
    if configuration in plans["configurations"]:  # else the folder was renamed
        plans[PLANS_KEY][_CONFIGURATION] = configuration


def _soft_sliding_window(
    original: Callable[..., Any], predictor: Any, input_image: torch.Tensor
) -> torch.Tensor:
    """Let our networks predict their soft map where nnU-Net blends logits."""
    del original
    image = input_image.float().cpu().numpy()
    # The second stage of a cascade sees the labels of the first behind its image.
    channels = len(predictor.configuration_manager.normalization_schemes)
    record = _with_options(_under_way.get() or _begun.get(_checksum(image[:channels])) or CaseRecord())
    if record.options.calibrate and predictor.list_of_parameters:  # of the final validation there are none
        kept_calibration(predictor.plans_manager.plans, predictor.label_manager.scheme.names)
    arrays = TorchPredictor(predictor, record.options.backend)
    soft_maps = soft_prediction.predict_soft_map(arrays, image, record)
    return torch.from_numpy(soft_maps)


def _record_keeping_iterator(
    original: Callable[..., Any], predictor: Any, data_iterator: Any, *args: Any, **kwargs: Any
) -> Any:
    """Say which case's forward pass comes next, as only the iterator knows; let the export run in threads."""
    with _within(_threads_wanted, True), _within(_under_way, None):
        return original(predictor, _announce(data_iterator), *args, **kwargs)


def _lists_without_processes(original: Callable[..., Any], predictor: Any, *args: Any, **kwargs: Any) -> Any:
    """List the images of a folder here: nnU-Net forks twelve processes for that.

    To go on with an interrupted prediction is to predict the cases of which any file is missing, not the
    label map alone, or that is older than an image, or of another of its name; the others must be by the
    model and the options of this call. A folder that is written into is no longer what `predict` has made.
    """
    given = arguments_of(original, predictor, *args, **kwargs)
    images = given["list_of_lists_or_source_folder"]
    if isinstance(images, str):
        given["list_of_lists_or_source_folder"] = images_of_folder(
            images, predictor.dataset_json["file_ending"]
        )
    require_equal_channels(given["list_of_lists_or_source_folder"])
    goes_on, given["overwrite"] = not given["overwrite"], True
    lists = original(**given)
    if goes_on and lists[1] is not None:
        reported = functools.cache(reported_cases)
        done = [
            is_of(reported(Path(target).parent).get(Path(target).name, {}), map(Path, files))
            and _is_done(predictor, Path(target), files, given["save_probabilities"])
            for files, target in zip(*lists[:2], strict=True)
        ]
        _require_same_model(
            predictor, [Path(to) for to, is_done in zip(lists[1], done, strict=True) if is_done]
        )
        lists = tuple([one for one, is_done in zip(each, done, strict=True) if not is_done] for each in lists)
        print(f"{sum(done)} cases are there, with all their files; {len(lists[0])} are predicted now")
    missing = [Path(file).name for file in lists[2] if file is not None and not Path(file).is_file()]
    if missing:
        raise UserError(
            f"-prev_stage_predictions {given['folder_with_segs_from_prev_stage']}: expected a label map of "
            f"the first stage for each of {len(lists[2])} cases, found no {examples(missing)}: predict these "
            f"with {predictor.configuration_manager.previous_stage_name} first"
        )
    remove_files({Path(target).parent / RUN for target in lists[1] or ()})
    return lists


def _require_same_model(predictor: Any, targets: Sequence[Path]) -> None:
    """Raise a UserError if predictions to be kept are by another model, or other options, than now."""
    options = PredictionOptions.from_environment(os.environ)
    names = predictor.label_manager.scheme.names
    made_by = export.made_by(predictor.plans_manager.plans, names, options)
    for folder in dict.fromkeys(target.parent for target in targets):
        there = load_record(folder / REPORT)
        if there and (changed := changed_keys(there, made_by)):
            variables = {**VARIABLES, CALIBRATION: VARIABLES["calibrate"]}
            of_options = [variables[name] for name in changed if name in variables]
            as_before = f"set {', '.join(of_options)} as before, " if len(of_options) == len(changed) else ""
            raise UserError(
                f"{folder}: expected predictions by this model and these options to go on with, found "
                f"{REPORT} that differs in {', '.join(changed)}: {as_before}give another folder, or leave "
                "out --continue_prediction, which predicts all again"
            )


def _is_done(predictor: Any, target: Path, images: Sequence[str], save_probabilities: bool) -> bool:
    """Return whether all files of a case are there; the target is its label map without the ending."""
    label_map = target.with_name(target.name + predictor.dataset_json["file_ending"])
    has_probabilities = target.with_name(target.name + ".npz").is_file() or not save_probabilities
    numbers = predictor.label_manager.scheme.numbers
    return has_probabilities and is_predicted(label_map, target.name, numbers, map(Path, images))


def arguments_of(original: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return the arguments of a call of nnU-Net's by their names, with its defaults."""
    bound = inspect.signature(original).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _iterator_in_threads(  # noqa: PLR0917  nnU-Net's signature
    original: Callable[..., Any],
    predictor: Any,
    input_list_of_lists: Sequence[Sequence[str]],
    seg_from_prev_stage_files: Sequence[str | None] | None,
    output_filenames_truncated: Sequence[str] | None,
    num_processes: int,
) -> Any:
    """Yield cases to predict, preprocessed in threads where nnU-Net spawns processes; few lie ready."""
    del original
    nothing: Sequence[None] = [None] * len(input_list_of_lists)
    others = (output_filenames_truncated or nothing, seg_from_prev_stage_files or nothing)
    jobs = list(zip(input_list_of_lists, *others, strict=True))

    def prepare(job: tuple[Sequence[str], str | None, str | None]) -> dict[str, Any]:
        return preprocessed_case(predictor, *job)

    ahead = map_ahead(prepare, jobs, num_threads=num_processes, initializer=same_arithmetic())
    return (prepared.result() for prepared in ahead)


def _summarised(original: Callable[..., Any], predictor: Any, *args: Any, **kwargs: Any) -> Any:
    """Predict, then say which cases have which flag, and show all on a page, as `nnunet-softseg predict`."""
    given = arguments_of(original, predictor, *args, **kwargs)
    images = given["list_of_lists_or_source_folder"]
    outputs = given["output_folder_or_list_of_truncated_output_files"]
    require_previous_stage(predictor, given["folder_with_segs_from_prev_stage"])
    predicted = original(predictor, *args, **kwargs)
    ending = predictor.dataset_json["file_ending"]
    if isinstance(images, str):
        images = images_of_folder(images, ending)
    if isinstance(outputs, str):
        channel = len(f"_0000{ending}")
        outputs = [str(Path(outputs, Path(files[0]).name[:-channel])) for files in images]
    if outputs:
        options = PredictionOptions.from_environment(os.environ)
        written = {Path(file).name: Path(files[0]) for files, file in zip(images, outputs, strict=True)}
        folder, numbers = Path(outputs[0]).parent, predictor.label_manager.scheme.numbers
        draw, progress = not options.no_qc, predictor.allow_tqdm
        print(export.summarise(folder, written, numbers, draw=draw, progress=progress))
    return predicted


def require_previous_stage(predictor: Any, folder: str | None) -> None:
    """Raise a UserError unless predictions of the first stage are given just where the model is a second.

    They must be those of the first stage, by the same trainer, where the folder says whose they are.
    """
    stage = predictor.configuration_manager.previous_stage_name
    if stage is None:
        if folder is not None:
            raise UserError(
                f"-prev_stage_predictions {folder}: expected none, as the model is not the second stage of a "
                "cascade, found a folder: leave it out"
            )
        return
    if folder is None:
        raise UserError(
            f"the model is the second stage of a cascade: expected predictions of its first stage, {stage}, "
            f"found none: predict with {stage}, then again with -prev_stage_predictions FOLDER"
        )
    plans = Path(folder) / "plans.json"
    if plans.is_file():
        entries = [
            of_model.get(PLANS_KEY, {}) for of_model in (predictor.plans_manager.plans, load_json(str(plans)))
        ]
        trainers = [entry.get("trainer", "a trainer of nnU-Net's own") for entry in entries]
        if trainers[0] != trainers[1]:
            raise UserError(
                f"-prev_stage_predictions {folder}: expected predictions of {stage} by {trainers[0]}, found "
                f"those of {trainers[1]}: the second stage knows the first of its own trainer only"
            )
        if (found := entries[1].get(_CONFIGURATION, stage)) != stage:  # earlier versions have noted none
            raise UserError(
                f"-prev_stage_predictions {folder}: expected predictions of {stage}, found those of {found}: "
                f"predict with {stage}"
            )


def _announce(data_iterator: Any) -> Iterator[dict[str, Any]]:
    for item in data_iterator:
        _under_way.set(_with_options(CaseRecord.of(item["data_properties"])))
        yield item
    # nnU-Net would end its own loader here, but sees only this generator.
    if hasattr(data_iterator, "_finish"):
        data_iterator._finish()


# Threads of this process in place of nnU-Net's worker processes. A spawned process imports torch and nnU-Net
# again: seconds of computing time and half a gigabyte each, more than a case needs. Reading, interpolating
# and compressing run beside the network in threads, too.


def images_of_folder(folder: str, file_ending: str) -> list[list[str]]:
    """Return the files of each case in a folder, one per channel, as nnU-Net lists them.

    Raises:
        UserError: if an image has no channel number, of which nnU-Net's list dies.
    """
    names = subfiles(folder, suffix=file_ending, join=False, sort=True)
    nameless = [name for name in names if parse_numbered_name(name) is None]
    if nameless:
        stem = nameless[0].removesuffix(file_ending)
        raise UserError(
            f"{folder}: expected names <case>_<channel, 4 digits>{file_ending}, found {len(nameless)} "
            f"without a channel: {examples(nameless)}: rename them ({stem}_0000{file_ending}), or use "
            "nnunet-softseg predict, which takes any name"
        )
    cases = get_identifiers_from_splitted_dataset_folder(folder, file_ending)
    return [create_paths_fn(folder, names, file_ending, case) for case in cases]


def require_equal_channels(cases: Sequence[Sequence[str]]) -> None:
    """Raise a UserError if a case lacks a channel that others have."""
    most = max(map(len, cases), default=0)
    for files in cases:
        if len(files) != most:
            found = ", ".join(Path(file).name for file in files)
            raise UserError(
                f"{Path(files[0]).parent}: expected {most} channels of each case, found {found} alone of "
                "one: add the missing ones, or remove the case"
            )


def preprocessed_case(
    predictor: Any,
    image_files: Sequence[str],
    truncated_output_file: str | None,
    previous_stage_file: str | None = None,
) -> dict[str, Any]:
    """Return a case as nnU-Net's predictor takes it: data (channel, *space), data_properties, ofile.

    In the second stage of a cascade a channel per label follows the image, 1 where the first stage found it.
    """
    of_model = (predictor.plans_manager, predictor.configuration_manager)
    data, label_map, properties = _preprocessed(image_files, previous_stage_file, *of_model)
    if label_map is not None:
        labels = predictor.label_manager.foreground_labels
        data = np.vstack([data, convert_labelmap_to_one_hot(label_map[0], labels, data.dtype)])
    tensor = torch.as_tensor(data).to(dtype=torch.float32, memory_format=torch.contiguous_format)
    return {"data": tensor, "data_properties": properties, "ofile": truncated_output_file}


def same_arithmetic() -> Any:
    """Return what gives a new thread the number of torch threads that nnU-Net's forward pass has.

    A sum depends in its last bits on how many threads share it; without this, on when the thread was started.
    """
    number = min(default_num_processes, torch.get_num_threads())

    def initialise() -> None:
        torch.get_num_threads()  # at its first call torch gives a thread the number of the process
        torch.set_num_threads(number)

    return initialise


class Multiprocessing:
    """Python's `multiprocessing`, except that pools are of threads while a model of ours predicts."""

    def __getattr__(self, name: str) -> Any:
        return getattr(multiprocessing, name)

    def get_context(self, method: str | None = None) -> Any:
        """Return the context of that name, or one whose pools are of threads."""
        return _ThreadContext() if _threads_wanted.get() else multiprocessing.get_context(method)


class _ThreadContext:
    def Pool(self, processes: int) -> ThreadPool:  # noqa: N802  the name in Python's contexts
        return threads_beside(processes, same_arithmetic())


# After prediction. The start-up hook calls these in place of nnU-Net's functions of the same names, where a
# folder among their arguments holds soft maps or a model of ours; in its worker processes, too.


def merge_files(original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Write the mean of a case's members; see `after_prediction.merge`."""
    given = arguments_of(original, *args, **kwargs)
    after_prediction.merge(
        [Path(file) for file in given["list_of_files"]],
        Path(given["output_filename_truncated"]),
        ending=given["output_file_ending"],
        writer=given["image_reader_writer"],
        label_manager=given["label_manager"],
        save_probabilities=given["save_probabilities"],
    )


def ensemble_folders(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Let nnU-Net make the ensemble of folders of predictions, if they have the same labels."""
    show_without_traceback()
    folders = [Path(folder) for folder in arguments_of(original, *args, **kwargs)["list_of_input_folders"]]
    after_prediction.require_same_labels(folders)
    after_prediction.require_probabilities(folders)
    return original(*args, **kwargs)


def ensemble_crossvalidations(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Let nnU-Net make the ensemble of the cross-validations of models, if they have the same labels."""
    show_without_traceback()
    models = arguments_of(original, *args, **kwargs)["list_of_trained_model_folders"]
    after_prediction.require_same_labels([Path(model) for model in models])
    return original(*args, **kwargs)


def accumulate_cv_results(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Let nnU-Net gather the validation of all folds, and gather the soft maps."""
    returned = original(*args, **kwargs)
    given = arguments_of(original, *args, **kwargs)
    model, merged = Path(given["trained_model_folder"]), Path(given["merged_output_folder"])
    after_prediction.gather_folds(model, merged, given["folds"])
    return returned


def determine_postprocessing(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Let nnU-Net choose the post-processing of a folder of predictions, and apply it to soft maps, too."""
    returned = original(*args, **kwargs)
    given = arguments_of(original, *args, **kwargs)
    folder = Path(given["folder_predictions"])
    _follow_postprocessing(folder, folder / "postprocessed", given)
    return returned


def apply_postprocessing_to_folder(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Let nnU-Net apply a post-processing to label maps, and apply it to soft maps, too."""
    show_without_traceback()
    given = arguments_of(original, *args, **kwargs)
    source, output = Path(given["input_folder"]), Path(given["output_folder"])
    if (source / SOFT_FOLDER).is_dir() and source.resolve() == output.resolve():
        raise UserError(
            f"-o {output}: expected another folder than -i, as soft maps are compared with the label maps of "
            "before, found the same: give another"
        )
    returned = original(*args, **kwargs)
    _follow_postprocessing(source, output, given)
    return returned


def _follow_postprocessing(source: Path, output: Path, given: dict[str, Any]) -> None:
    dataset_json = given["dataset_json_file_or_dict"] or str(source / DATASET_JSON)
    plans = given["plans_file_or_dict"] or str(source / "plans.json")
    if isinstance(dataset_json, str):
        dataset_json = load_json(dataset_json)
    reader = PlansManager(plans).image_reader_writer_class()
    after_prediction.follow_postprocessing(source, output, dataset_json, reader)
