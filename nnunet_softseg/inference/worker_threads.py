"""Threads of this process in place of nnU-Net's worker processes, when one of our models predicts.

A spawned process imports torch and nnU-Net again: seconds of computing time and half a gigabyte each, more
than a case needs. What the workers do (inflate, interpolate, deflate) runs beside the network in threads,
too.
"""

import contextlib
import multiprocessing
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from multiprocessing.pool import ThreadPool
from typing import Any

import torch
from batchgenerators.utilities.file_and_folder_operations import subfiles
from nnunetv2.configuration import default_num_processes
from nnunetv2.utilities.utils import create_paths_fn, get_identifiers_from_splitted_dataset_folder

from nnunet_softseg.inference.network_image import preprocess_files
from nnunet_softseg.io.workers import map_ahead

_instead_of_processes: ContextVar[bool] = ContextVar("threads_instead_of_processes", default=False)


def images_of_folder(folder: str, file_ending: str) -> list[list[str]]:
    """Return the files of each case in a folder, one per channel, as nnU-Net lists them.

    Args:
        folder: with files named `<case>_<channel, 4 digits><file_ending>`.
        file_ending: of the dataset.
    """
    names = subfiles(folder, suffix=file_ending, join=False, sort=True)
    cases = get_identifiers_from_splitted_dataset_folder(folder, file_ending)
    return [create_paths_fn(folder, names, file_ending, case) for case in cases]


def preprocessed_cases(
    predictor: Any,
    image_files: Sequence[Sequence[str]],
    truncated_output_files: Sequence[str] | None,
    num_threads: int,
) -> Iterator[dict[str, Any]]:
    """Yield cases to predict, in order, as nnU-Net's own iterator does; some are prepared ahead.

    Args:
        predictor: nnU-Net's, initialised.
        image_files: of each case, one file per channel.
        truncated_output_files: one per case; None: results are returned, not written.
        num_threads: that read and preprocess; so many cases at most lie ready.
    """
    outputs: Sequence[str | None] = truncated_output_files or [None] * len(image_files)

    def prepare(job: tuple[Sequence[str], str | None]) -> dict[str, Any]:
        return preprocessed_case(predictor, *job)

    jobs = list(zip(image_files, outputs, strict=True))
    for prepared in map_ahead(prepare, jobs, num_threads=num_threads, initializer=same_arithmetic()):
        yield prepared.result()


def preprocessed_case(
    predictor: Any, image_files: Sequence[str], truncated_output_file: str | None
) -> dict[str, Any]:
    """Return a case as nnU-Net's predictor takes it: data (channel, *space), data_properties, ofile."""
    data, properties = preprocess_files(image_files, predictor.plans_manager, predictor.configuration_manager)
    tensor = torch.as_tensor(data).to(dtype=torch.float32, memory_format=torch.contiguous_format)
    return {"data": tensor, "data_properties": properties, "ofile": truncated_output_file}


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


@contextlib.contextmanager
def instead_of_processes() -> Iterator[None]:
    """Let `Multiprocessing` give threads within this block."""
    token = _instead_of_processes.set(True)
    try:
        yield
    finally:
        _instead_of_processes.reset(token)


class Multiprocessing:
    """Python's `multiprocessing`, except that pools are of threads within `instead_of_processes`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(multiprocessing, name)

    def get_context(self, method: str | None = None) -> Any:
        """Return the context of that name, or one whose pools are of threads."""
        return _ThreadContext() if _instead_of_processes.get() else multiprocessing.get_context(method)


class _ThreadContext:
    def Pool(self, processes: int) -> ThreadPool:  # noqa: N802  the name in Python's contexts
        return thread_pool(processes)
