"""nnU-Net's pools of processes as threads, as processes take seconds to start."""

import contextlib
import io
import multiprocessing.dummy
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

MODULES = (
    "nnunetv2.ensembling.ensemble",
    "nnunetv2.evaluation.evaluate_predictions",
    "nnunetv2.postprocessing.remove_connected_components",
    "nnunetv2.training.nnUNetTrainer.nnUNetTrainer",
)


@contextlib.contextmanager
def threads_in_place_of_processes() -> Iterator[None]:
    """Within this block; what nnU-Net prints is kept to itself."""
    context = SimpleNamespace(get_context=lambda _: multiprocessing.dummy)
    with contextlib.ExitStack() as stack:
        for module in MODULES:
            stack.enter_context(mock.patch(f"{module}.multiprocessing", context))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield
