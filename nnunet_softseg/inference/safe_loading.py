"""Models of other people, opened without running anything that they hold.

A checkpoint is a pickle, which can name any function of Python to be called. PyTorch's restricted reader
takes tensors and plain values alone; with the few names of NumPy's numbers it reads what nnU-Net writes. A
checkpoint that it reads calls nothing else when nnU-Net opens it. Archives are looked at before they are
unpacked.
"""

import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from nnunet_softseg.errors import UserError

_scalar: Any = np._core.multiarray.scalar  # type: ignore[attr-defined]
_NUMBERS = [
    _scalar,  # nnU-Net's log holds NumPy's numbers
    (_scalar, "numpy.core.multiarray.scalar"),  # as NumPy 1 names it
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
]
_TRUST = "copy the model again, or, if you trust where it comes from, give --trust-model"


def require_no_code(checkpoint: Path) -> None:
    """Raise a UserError unless a checkpoint holds tensors and plain values alone.

    Tensors are mapped, not read: it takes a fraction of a second, whatever the network's size.
    """
    found = "a file that is cut off, or of another kind"
    if zipfile.is_zipfile(checkpoint):
        try:
            with torch.serialization.safe_globals(_NUMBERS):
                torch.load(checkpoint, map_location="meta", weights_only=True, mmap=True)
        except Exception as error:  # whatever a pickle made by someone else provokes
            found = _what_it_runs(checkpoint) or f"{type(error).__name__} in it"
        else:
            return
    raise UserError(f"{checkpoint}: expected a checkpoint of weights and numbers, found {found}: {_TRUST}")


def _what_it_runs(checkpoint: Path) -> str:
    known = {f"{kind.__module__}.{kind.__qualname__}" for kind in _NUMBERS if not isinstance(kind, tuple)}
    try:
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint)) - known
    except Exception:  # no pickle at all
        return ""
    return f"one that runs {', '.join(sorted(names)[:3])}" if names else ""


def unpack(archive: Path, folder: PurePosixPath, target: Path) -> Path:
    """Unpack a folder of an archive of nnU-Net's, and return where it lies.

    Raises:
        UserError: if a name leads out of the target or is a link, or the disk has no room for all.
    """
    with zipfile.ZipFile(archive) as content:
        entries = {PurePosixPath(entry.filename): entry for entry in content.infolist()}
        inside = [entry for name, entry in entries.items() if name.is_relative_to(folder)]
        for name, entry in entries.items():
            is_link = stat.S_ISLNK(entry.external_attr >> 16)
            if is_link or name.is_absolute() or ".." in name.parts or "\\" in entry.filename:
                kind = "a link" if is_link else "a path that leads out of it"
                raise UserError(
                    f"{archive}: expected an archive of nnUNetv2_export_model_to_zip, found {kind}: "
                    f"{entry.filename}: it is not unpacked; ask for the model again"
                )
        size, room = sum(entry.file_size for entry in inside), shutil.disk_usage(target).free
        if size > room:
            raise UserError(
                f"{archive}: expected {size / 2**30:.1f} GiB of room in {target.parent} to unpack it, found "
                f"{room / 2**30:.1f} GiB: free some, set TMPDIR, or ask for the model again"
            )
        content.extractall(target, inside)
    return target / folder
