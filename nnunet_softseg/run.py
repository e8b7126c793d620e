"""Stock nnU-Net commands where Python reads no start-up files (`PYTHONPATH`, `pip --target`, frozen apps).

Importing this module switches the hook on. Spawned workers import the main module of their parent again, and
with it this one: that is why the call stands at module level.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from nnunet_softseg import registry
from nnunet_softseg.errors import UserError

HOOK = "_nnunet_softseg_hook"


def load_hook() -> ModuleType:
    """Return the hook module, installed or of the source tree beside this package; else a UserError."""
    try:
        return importlib.import_module(HOOK)
    except ModuleNotFoundError:
        source = Path(__file__).parents[1] / "hook" / f"{HOOK}.py"
    if not source.is_file():
        remedy = "run `pip install --force-reinstall nnunet-softseg`"
        raise UserError(f"start-up hook {HOOK}.py is missing: {remedy}")
    spec = importlib.util.spec_from_file_location(HOOK, source)
    if spec is None or spec.loader is None:
        raise UserError(f"start-up hook {source} cannot be loaded: reinstall nnunet-softseg")
    module = importlib.util.module_from_spec(spec)
    sys.modules[HOOK] = module
    spec.loader.exec_module(module)
    return module


def stock_commands() -> dict[str, importlib.metadata.EntryPoint]:
    """Return nnU-Net's own console commands by name; raise a UserError if it is not installed."""
    try:
        entry_points = importlib.metadata.distribution("nnunetv2").entry_points
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "nnunetv2 is not installed in this environment: run `pip install nnunet-softseg`"
        ) from None
    return {entry.name: entry for entry in entry_points if entry.group == "console_scripts"}


def run(command: str, arguments: Sequence[str] = ()) -> Any:
    """Return what the stock nnU-Net command returns, run in this process with our classes in reach.

    Args:
        command: such as `nnUNetv2_train`.
        arguments: as on the command line.

    Raises:
        UserError: no such command, or the hook is switched off.
    """
    commands = stock_commands()
    if command not in commands:
        raise UserError(f"unknown nnU-Net command {command}: expected one of {', '.join(sorted(commands))}")
    hook = load_hook()
    if not hook.install():
        raise UserError(f"the hook is switched off: unset the environment variable {hook.SWITCH}")
    sys.argv = [command, *arguments]
    return commands[command].load()()


# What ends a stock command


def explain(error: BaseException) -> UserError | None:
    """Return the mistake behind an error that ends a stock command before a class of ours is there.

    That is a fold that is no number, an unknown trainer, a file of `nnUNet_extTrainer` that asks for this
    package and does not load, or a fault of a dataset that is planned; None: anything else, which is shown as
    it is.
    """
    frames = [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if "importlib" not in frame.f_code.co_filename
    ]
    if not frames:
        return None
    if isinstance(error, UserError):
        return error
    planned = [frame for frame, _ in frames if frame.f_globals.get("__name__") == load_hook().PLANNING]
    if planned and "dataset_id" in planned[-1].f_locals and isinstance(error, Exception):
        return _fault_of_dataset(planned[-1].f_locals["dataset_id"], error)
    return _mistake_in_words(error, *frames[-1])


def _mistake_in_words(error: BaseException, last: FrameType, line: int) -> UserError | None:
    """Return what is wrong with a fold, a trainer's name, or a trainer's file; None: none of these."""
    name = last.f_code.co_name
    if isinstance(error, ValueError) and name == "run_training" and _is_marked(last, "trainer_class_name"):
        fold = last.f_locals.get("fold")
        return UserError(f"fold: expected all, or a number from 0 on, found {fold!r}: correct it")
    if name == "recursive_find_trainer_class_by_name" and _is_marked(last, "trainer_name"):
        return UserError(
            f"-tr: expected one of {', '.join(_trainers())}, or of the folders that nnUNet_extTrainer names, "
            f"found {last.f_locals['trainer_name']}: correct it"
        )
    if isinstance(error, SyntaxError) and name == "_recursive_find_python_class":
        return _broken_trainer(error, error.filename or "", error.lineno or 0)
    return _broken_trainer(error, last.f_code.co_filename, line) if name == "<module>" else None


def _fault_of_dataset(number: int, error: Exception) -> UserError | None:
    """Return what `check` finds in what nnU-Net reads of a dataset that it cannot plan; None: nothing.

    Soft labels and splits are not read for that. The error itself stands behind: a disk may be full, too.
    """
    from nnunet_softseg.datasets.check import check  # with it comes much that other commands do not need
    from nnunet_softseg.datasets.raw_dataset import SPLITS
    from nnunet_softseg.datasets.soft_label import FOLDER
    from nnunet_softseg.io.nifti import telling_line

    print("\nnnU-Net cannot plan this dataset: looking for the reason ...", file=sys.stderr)
    report = check(number)
    errors = [fault for fault in report.errors if not fault.file.startswith((FOLDER, SPLITS))]
    if not errors:
        return None
    more = f" ({len(report.errors)} errors in all)" if len(report.errors) > 1 else ""
    again = f"nnunet-softseg check -d {report.number}"
    ended = f"nnU-Net ended with {type(error).__name__}: {telling_line(error)}"
    return UserError(f"{report.dataset}: {errors[0]}{more}, then look again: {again} ({ended})")


def _is_marked(frame: FrameType, variable: str) -> bool:
    """Return whether the name that a variable holds is like those of this package."""
    return any(mark in str(frame.f_locals.get(variable)) for mark in load_hook().MARKS)


def _trainers() -> list[str]:
    return [name for name in registry.CLASSES if "Trainer" in name]


def _broken_trainer(error: BaseException, file: str, line: int) -> UserError | None:
    """Return what is wrong with a file of `nnUNet_extTrainer`; None for other files, and without our name."""
    folders = filter(None, os.environ.get("nnUNet_extTrainer", "").split(os.pathsep))
    path, ours = Path(file).resolve(), registry.__name__.partition(".")[0]
    if not any(path.is_relative_to(Path(folder).resolve()) for folder in folders):
        return None
    if ours not in path.read_text("utf-8", errors="replace"):
        return None
    remedy = "correct the file, or take it out of the folder that nnUNet_extTrainer names"
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == ours:
        homes = [f"{registry.CLASSES[name]}.{name}" for name in _trainers()]
        remedy = f"import one of {', '.join(homes)}"
    found = " ".join(f"{type(error).__name__}: {error}".split())
    return UserError(f"{file}, line {line}: expected a trainer that can be imported, found {found}: {remedy}")


# `run` and `doctor` say what is wrong; every other command works without the hook.
with contextlib.suppress(Exception):
    load_hook().install()

if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
