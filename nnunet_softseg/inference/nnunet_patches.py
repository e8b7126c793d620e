"""Where nnU-Net's own commands call this package: the preprocessor, and every place where nnU-Net is patched.

nnU-Net offers no hook for three things: what happens between the forward pass and the resampling, what is
written of a prediction, and where its workers run. These patches hand over to the original for every model
that is not ours, so vanilla models in the same process are untouched. Its search for classes by name is made
safe beside other threads, for all models. tests/inference/test_upstream.py fails when nnU-Net changes under
them.

Options of a prediction come from the environment here, as nnU-Net's commands take no others, and from nowhere
else. The forward pass alone sees no properties of its case: which case is under way is noted here, too.
"""

import contextlib
import functools
import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import torch
from batchgenerators.utilities.file_and_folder_operations import load_json, subfiles
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference import export_prediction as nnunet_export
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module  # noqa: N813  a module, no class
from nnunetv2.utilities import find_class_by_name
from nnunetv2.utilities.utils import create_paths_fn, get_identifiers_from_splitted_dataset_folder

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.inference import export, network_image, soft_prediction
from nnunet_softseg.inference.calibration import kept_calibration
from nnunet_softseg.inference.case_record import CaseRecord, PredictionOptions
from nnunet_softseg.inference.summary import summarise
from nnunet_softseg.io.case_files import parse_numbered_name
from nnunet_softseg.preprocessing.model_plans import is_soft, version_warning

_MARK = "_nnunet_softseg"
_changing_the_import_path = threading.Lock()
_threads_wanted: ContextVar[bool] = ContextVar("threads_instead_of_processes", default=False)
_under_way: ContextVar[CaseRecord | None] = ContextVar("case_under_way", default=None)


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


@contextlib.contextmanager
def extended_import_path(folder: str) -> Iterator[None]:
    """Let Python find modules in a folder, too, within this block; what nnU-Net's search for a class enters.

    nnU-Net inserts into the list `sys.path` itself and removes from it. A thread that reads the list at that
    moment, to import a package or to ask for its version, misses an entry and finds nothing of that name.
    Here each change makes a new list: who reads the old one reads it to its end.
    """
    folder = os.path.abspath(folder)
    with _changing_the_import_path:
        is_new = folder not in sys.path
        if is_new:
            sys.path = [folder, *sys.path]
    try:
        yield
    finally:
        if is_new:
            with _changing_the_import_path:
                sys.path = [entry for entry in sys.path if entry != folder]


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

    A case that comes with a segmentation is not one to predict: it goes nnU-Net's own way.
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
        if seg_file is not None:
            arguments = (image_files, seg_file, plans_manager, configuration_manager, dataset_json)
            whole: tuple[Any, Any, dict[str, Any]] = super().run_case(*arguments)
            return whole
        case = network_image.preprocess_files(image_files, plans_manager, configuration_manager)
        return self._begun(*case)

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
        if seg is not None:
            arguments = (data, seg, properties, plans_manager, configuration_manager, dataset_json)
            whole: tuple[Any, Any, dict[str, Any]] = super().run_case_npy(*arguments)
            return whole
        case = network_image.preprocess_array(data, properties, plans_manager, configuration_manager)
        return self._begun(*case)

    @staticmethod
    def _begun(image: Any, properties: dict[str, Any]) -> tuple[Any, None, dict[str, Any]]:
        _under_way.set(CaseRecord.of(properties))
        return image, None, properties


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
    if not is_soft(plans_manager.plans):
        nnunet_export.export_prediction_from_logits(
            predicted_array_or_file, properties_dict, configuration_manager, plans_manager,
            dataset_json_dict_or_file, output_file_truncated, save_probabilities, num_threads_torch,
        )  # fmt: skip
        return
    _with_options(CaseRecord.of(properties_dict))
    dataset_json = dataset_json_dict_or_file
    export.export_prediction(
        predicted_array_or_file,
        properties_dict,
        plans_manager,
        load_json(dataset_json) if isinstance(dataset_json, str) else dataset_json,
        output_file_truncated,
        save_probabilities=save_probabilities,
    )


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

    Returns:
        Of a model of ours the label map (z, y, x) and, with `return_probabilities`, the soft maps
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


def _soft_sliding_window(
    original: Callable[..., Any], predictor: Any, input_image: torch.Tensor
) -> torch.Tensor:
    """Let our networks predict their soft map where nnU-Net blends logits."""
    del original
    record = _with_options(_under_way.get() or CaseRecord())
    if record.options.calibrate and predictor.list_of_parameters:  # of the final validation there are none
        kept_calibration(predictor.plans_manager.plans, predictor.label_manager.scheme.names)
    if warning := version_warning(predictor.plans_manager.plans):
        record.add_warning(warning)
    return soft_prediction.predict_soft_map(predictor, input_image, record)


def _record_keeping_iterator(
    original: Callable[..., Any], predictor: Any, data_iterator: Any, *args: Any, **kwargs: Any
) -> Any:
    """Say which case's forward pass comes next, as only the iterator knows; let the export run in threads."""
    with _within(_threads_wanted, True):
        return original(predictor, _announce(data_iterator), *args, **kwargs)


def _lists_without_processes(
    original: Callable[..., Any],
    predictor: Any,
    list_of_lists_or_source_folder: str | list[list[str]],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """List the images of a folder here: nnU-Net forks twelve processes for that."""
    images = list_of_lists_or_source_folder
    if isinstance(images, str):
        images = images_of_folder(images, predictor.dataset_json["file_ending"])
    return original(predictor, images, *args, **kwargs)


def _iterator_in_threads(  # noqa: PLR0917  nnU-Net's signature
    original: Callable[..., Any],
    predictor: Any,
    input_list_of_lists: Sequence[Sequence[str]],
    seg_from_prev_stage_files: Sequence[str | None] | None,
    output_filenames_truncated: Sequence[str] | None,
    num_processes: int,
) -> Any:
    """Let our preprocessing run in threads where nnU-Net spawns processes."""
    files = (input_list_of_lists, output_filenames_truncated)
    if any(seg_from_prev_stage_files or ()):
        return original(predictor, files[0], seg_from_prev_stage_files, files[1], num_processes)
    return preprocessed_cases(predictor, *files, num_processes)


def _summarised(
    original: Callable[..., Any],
    predictor: Any,
    list_of_lists_or_source_folder: str | list[list[str]],
    output_folder_or_list_of_truncated_output_files: str | list[str] | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Predict, then say which cases have which flag, and show all on a page, as `nnunet-softseg predict`."""
    images, outputs = list_of_lists_or_source_folder, output_folder_or_list_of_truncated_output_files
    predicted = original(predictor, images, outputs, *args, **kwargs)
    ending = predictor.dataset_json["file_ending"]
    if isinstance(images, str):
        images = images_of_folder(images, ending)
    if isinstance(outputs, str):
        channel = len(f"_0000{ending}")
        outputs = [str(Path(outputs, Path(files[0]).name[:-channel])) for files in images]
    if outputs:
        options = PredictionOptions.from_environment(os.environ)
        written = {Path(file).name: Path(files[0]) for files, file in zip(images, outputs, strict=True)}
        folder, progress = Path(outputs[0]).parent, predictor.allow_tqdm
        print(summarise(folder, written, draw=not options.no_qc, progress=progress))
    return predicted


def _announce(data_iterator: Any) -> Iterator[dict[str, Any]]:
    for item in data_iterator:
        _under_way.set(_with_options(CaseRecord.of(item["data_properties"])))
        yield item
    _under_way.set(None)
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


def preprocessed_cases(
    predictor: Any,
    image_files: Sequence[Sequence[str]],
    truncated_output_files: Sequence[str] | None,
    num_threads: int,
) -> Iterator[dict[str, Any]]:
    """Yield cases to predict, in order, as nnU-Net's own iterator does; at most `num_threads` lie ready.

    Args:
        predictor: nnU-Net's, initialised.
        image_files: of each case, one file per channel.
        truncated_output_files: one per case; None: results are returned, not written.
        num_threads: that read and preprocess.
    """
    outputs: Sequence[str | None] = truncated_output_files or [None] * len(image_files)

    def prepare(job: tuple[Sequence[str], str | None]) -> dict[str, Any]:
        return preprocessed_case(predictor, *job)

    jobs = list(zip(image_files, outputs, strict=True))
    for prepared in map_ahead(prepare, jobs, num_threads=num_threads):
        yield prepared.result()


def preprocessed_case(
    predictor: Any, image_files: Sequence[str], truncated_output_file: str | None
) -> dict[str, Any]:
    """Return a case as nnU-Net's predictor takes it: data (channel, *space), data_properties, ofile."""
    data, properties = network_image.preprocess_files(
        image_files, predictor.plans_manager, predictor.configuration_manager
    )
    tensor = torch.as_tensor(data).to(dtype=torch.float32, memory_format=torch.contiguous_format)
    return {"data": tensor, "data_properties": properties, "ofile": truncated_output_file}


def map_ahead(
    function: Callable[[Any], Any], jobs: Sequence[Any], *, num_threads: int
) -> Iterator[Future[Any]]:
    """Yield the future of each job, in order; threads work them off ahead of the caller.

    At most `num_threads` results wait for the caller beside the one it has. The function must not hold
    Python's lock all the time, or nothing is gained.
    """
    num_threads = max(1, num_threads)
    pool = ThreadPoolExecutor(num_threads, initializer=same_arithmetic())
    waiting: deque[Future[Any]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(function, job))
            if len(waiting) > num_threads:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:  # where the caller stops early, too
        pool.shutdown(wait=False, cancel_futures=bool(waiting))


def thread_pool(num_threads: int) -> ThreadPool:
    """Return threads for the export; their sums are those of any other thread here."""
    return ThreadPool(max(1, num_threads), initializer=same_arithmetic())


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
        return thread_pool(processes)
