"""Stock nnU-Net commands where Python reads no start-up files (`PYTHONPATH`, `pip --target`, frozen apps).

Importing this module switches the hook on. Spawned workers import the main module of their parent again, and
with it this one: that is why the call stands at module level.
"""

import contextlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

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


# `run` and `doctor` say what is wrong; every other command works without the hook.
with contextlib.suppress(Exception):
    load_hook().install()

if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
