"""File systems of a test's own: small ones, and ones that cannot be written."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[None]:
    """Mount a file system in memory, "size=10m" or "ro", at a folder that is there.

    The test is skipped where it may not mount.
    """
    _mount("-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    try:
        yield
    finally:
        _unmount(folder)


def remount(folder: Path, options: str) -> None:
    """Change the options of a file system; a size below what it holds is refused, 0 is no limit."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@contextlib.contextmanager
def read_only(*folders: Path) -> Iterator[None]:
    """Let folders that are there be such that nothing can be written in them, not even by root."""
    with contextlib.ExitStack() as stack:
        for folder in folders:
            _mount("--bind", str(folder), str(folder))
            stack.callback(_unmount, folder)
            remount(folder, "bind,ro")
        yield


def _mount(*words: str) -> None:
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", *words], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs the right to mount a file system")


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)
