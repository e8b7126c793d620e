"""Files of results: written aside and renamed, so that none is half-written, and records of their making.

A temporary name holds machine and process: files of dead processes are told from those being written.
A record holds the request (settings, version, SHA-256 of sources), often the SHA-256 of each output. Hash
sources before they are read: one that changes meanwhile makes the record stale, not wrong.
"""

import contextlib
import errno
import functools
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nnunet_softseg import __version__
from nnunet_softseg.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

PICTURES = (".png", ".svg", ".pdf")
"""Types of a figure that is asked for by name."""
ABANDONED_AFTER_S = 24 * 3600.0
"""Age at which a temporary file of another machine counts as abandoned: nothing here takes a day to write."""
_TEMPORARY = re.compile(r"^\..+\.(?P<host>[\w-]+)@(?P<pid>\d+)-[0-9a-f]{8}(\.\w+)*$")
_DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_CHUNK_BYTES = 1 << 20

Value = TypeVar("Value")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, of the same type, that takes its place when the block ends well.

    Raise a UserError if the folder cannot be written, or the disk is full.
    """
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    _clear_once(path.parent)
    aside = _aside(path, suffix)
    try:
        yield aside
        os.replace(aside, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a file, all of it or nothing; a UserError as of `replacing`."""
    with replacing(target) as aside:
        shutil.copyfile(source, aside)


def output_file(path: str | Path | None, endings: Sequence[str]) -> Path | None:
    """Return the path of a file to write, None if none is asked for; raise a UserError for another type."""
    if path and Path(path).suffix.lower() not in endings:
        raise UserError(f"{path}: expected a file name that ends in {' or '.join(endings)}")
    if path and Path(path).is_dir():
        raise UserError(f"{path}: expected a file to write, found a folder")
    return Path(path) if path else None


def table_file(path: str | Path | None, command: str) -> Path | None:
    """Return the path of a CSV to write with `write_table`, None if none is asked for.

    Raises:
        UserError: for another type, or where the JSON beside it is not one of this command's.
    """
    file = output_file(path, (".csv",))
    beside = file.with_suffix(".json") if file else None
    if beside and beside.exists() and not _explains_table_of(command, beside):
        raise UserError(
            f"{path}: expected no {beside.name} beside it, or one of an earlier {command}, found another, "
            "which that of the table would replace: choose another name for the table"
        )
    return file


def make_folder(folder: Path) -> None:
    """Make a folder and its parents where they are missing; raise a UserError if that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {_reason(error, folder.parent)}") from error


def require_writable(folder: Path) -> None:
    """Raise a UserError, as of `replacing`, unless a folder can be written."""
    probe = folder / ".writable"
    with replacing(probe) as aside:
        aside.touch()
    probe.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder that gets the name of `folder` when the block ends well.

    It is made beside `folder`; or in it, if that is there, and its content is moved at the end: a link may
    lead to the folder, a shell stand in it, a disk be mounted there. Parents are made; temporary folders that
    dead processes left are removed.

    Raise a UserError if there is, or meanwhile was made, something in the folder, if it cannot be written, or
    the disk is full.
    """
    make_folder(folder.parent)
    filled = folder.is_dir()
    target = folder / "files" if filled else folder
    for left in target.parent.glob(f".{glob.escape(target.name)}.*"):
        if left.is_dir() and _is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    if _holds_something(folder):
        raise UserError(f"{folder}: expected a new or empty folder, found something in it: choose another")
    aside = _aside(target)
    try:
        aside.mkdir()
        yield aside
        if filled:
            _move_content(aside, folder)
        else:
            os.rename(aside, folder)
    except OSError as error:
        raise UserError(f"cannot write the folder {folder}: {_reason(error, folder.parent)}") from error
    except UserError as error:  # of a file in it, by the name that it would have had
        raise UserError(str(error).replace(str(aside), str(folder))) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _holds_something(folder: Path) -> bool:
    """Return whether there is a file by this name, or a folder with more in it than temporary ones."""
    if not folder.is_dir():
        return os.path.lexists(folder)
    return any(not _TEMPORARY.match(path.name) for path in folder.iterdir())


def _move_content(source: Path, folder: Path) -> None:
    """Move what is in a folder into an empty one; raise an OSError if that is not empty any more."""
    if _holds_something(folder):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
    for path in sorted(source.iterdir()):
        os.rename(path, folder / path.name)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file all at once, on the disk when this returns: not even a power cut leaves it half-written.

    Raise a UserError if the folder cannot be written, or the disk is full.
    """
    with replacing(path) as aside, aside.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def as_json(content: Any) -> str:
    """Return the text of a JSON file of ours, indented."""
    return json.dumps(content, indent=2) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write JSON, indented, all at once."""
    with replacing(path) as aside:
        aside.write_text(as_json(content), encoding="utf-8")


def write_table(
    table: "pd.DataFrame", path: Path, columns: Mapping[str, str], command: str, parameters: Mapping[str, Any]
) -> None:
    """Write a CSV, and a JSON beside it that says what the columns are and what made them."""
    make_folder(path.parent)
    with replacing(path) as aside:
        # File names need not be valid text on every system.
        table.to_csv(aside, index=False, float_format="%.6g", errors="backslashreplace", lineterminator="\n")
    made_by = {"Name": _maker(command), "Version": __version__, "Parameters": dict(parameters)}
    write_json(path.with_suffix(".json"), {"Columns": dict(columns), "GeneratedBy": [made_by]})


def _maker(command: str) -> str:
    return f"nnunet-softseg {command}"


def _explains_table_of(command: str, file: Path) -> bool:
    record = load_record(file, "Columns", "GeneratedBy")
    try:
        return record is not None and bool(record["GeneratedBy"][0]["Name"] == _maker(command))
    except (KeyError, IndexError, TypeError):
        return False


def remove_abandoned(folder: Path) -> list[Path]:
    """Remove the temporary files that dead processes left in a folder, and return them.

    The folder may be missing; subfolders are not looked at, a file that cannot be removed stays.
    """
    removed = []
    for file in folder.glob(".*") if folder.is_dir() else ():
        with contextlib.suppress(OSError, OverflowError):
            if _is_abandoned(file):
                file.unlink()
                removed.append(file)
    return removed


@functools.cache
def _clear_once(folder: Path) -> None:
    """Remove what dead processes left in a folder before this one writes its first file there."""
    remove_abandoned(folder)


def _aside(path: Path, suffix: str = "") -> Path:
    stem = path.name.removesuffix(suffix)
    return path.with_name(f".{stem}.{_host()}@{os.getpid()}-{uuid.uuid4().hex[:8]}{suffix}")


def _is_abandoned(path: Path) -> bool:
    match = _TEMPORARY.match(path.name)
    if match is None:
        return False
    if time.time() - path.stat().st_mtime > ABANDONED_AFTER_S:
        return True
    # On Windows, signal 0 is not a question but Ctrl+C: there only the age tells.
    if match["host"] != _host() or os.name == "nt":
        return False
    try:
        os.kill(int(match["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # alive, somebody else's
        return False
    return False


def _host() -> str:
    return re.sub(r"[^\w-]", "-", socket.gethostname()) or "localhost"


@contextlib.contextmanager
def only_one(lock: Path, busy: str) -> Iterator[None]:
    """Hold a file as lock within the block; a UserError, `busy`, where another process holds it."""
    from filelock import FileLock, Timeout  # only here: it takes longer to load than all of this module

    held = FileLock(lock, timeout=0)
    try:
        held.acquire()
    except Timeout as error:
        raise UserError(busy) from error
    except OSError as error:
        raise write_error(lock, error) from error
    try:
        yield
    finally:
        held.release()


def remove_files(files: Iterable[Path]) -> None:
    """Remove files, of which some may be gone; a UserError if one cannot be removed."""
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(file, error) from error


def write_error(path: Path, error: OSError) -> UserError:
    """Return why a file or folder could not be written, and what to do."""
    return UserError(f"cannot write {path}: {_reason(error, path.parent)}")


def _reason(error: OSError, folder: Path) -> str:
    if error.errno in _DISK_FULL:
        free = "an unknown number of"
        with contextlib.suppress(OSError):
            free = f"{shutil.disk_usage(folder).free / 1e6:.1f}"
        return (
            f"disk full, found {free} MB free (or a quota used up): make room and run the same command again"
        )
    if error.errno == errno.ENOENT and not folder.is_dir():
        return f"there is no folder {folder}: make it"
    return f"{error.strerror or error}; check that the folder is writable and the disk not full"


# Records


def load_json(file: Path) -> Any:
    """Return the content of a JSON file; raise a UserError if it is missing or broken."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{file}: expected a JSON file, found none: see nnU-Net's documentation/dataset_format.md"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: expected JSON, found: {error}: repair or rewrite it") from error


def json_copy(value: Any) -> Any:
    """Return a value as JSON gives it back (tuples as lists, keys as strings), to compare with a record."""
    return json.loads(json.dumps(value))


def read_in_or_above(folder: Path, name: str, read: Callable[[Any], Value]) -> Value | None:
    """Return what `read` takes from a JSON file in or above a folder; None if it can read none."""
    for place in (folder, folder.parent):
        try:
            return read(json.loads((place / name).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            continue
    return None


def load_record(file: Path, *keys: str) -> dict[str, Any] | None:
    """Return the record in a JSON file; None if that is missing, broken, or lacks one of the keys."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and all(key in record for key in keys) else None


def changed_keys(recorded: Mapping[str, Any], request: Mapping[str, Any]) -> list[str]:
    """Return the keys of a request whose values are not those recorded; further records do not count."""
    return [key for key, value in request.items() if key not in recorded or recorded[key] != value]


# Their sources and outputs


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits; raise a UserError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise UserError(
            f"{file}: expected a file that can be read, found: {error.strerror or error}: check its path and "
            "permissions"
        ) from error
    return digest.hexdigest()


def describe_source(file: Path) -> dict[str, Any]:
    """Return name, size, time of change and SHA-256 of a source, for `source_changed`; or raise UserError."""
    digest, status = sha256(file), file.stat()
    return {"file": file.name, "size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": digest}


def source_changed(file: Path, described: Mapping[str, Any]) -> bool:
    """Return whether a source is not as described; where only its time differs, content decides."""
    try:
        status = file.stat()
        if file.name != described["file"] or status.st_size != described["size"]:
            return True
        return bool(status.st_mtime_ns != described["mtime_ns"] and sha256(file) != described["sha256"])
    except (OSError, UserError):
        return True


def relative_name(file: Path, folder: Path) -> str:
    """Return the path of a file as seen from a folder, with slashes; the whole path on another drive."""
    try:
        return Path(os.path.relpath(file, folder)).as_posix()
    except ValueError:
        return file.absolute().as_posix()


def output_hashes(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Return path as seen from the folder -> SHA-256 of files that were written."""
    return {relative_name(file, folder): sha256(file) for file in files}


def changed_outputs(
    folder: Path, recorded: Mapping[str, str | None], files: Iterable[Path] | None = None
) -> list[str]:
    """Return the outputs that are missing, were never finished (None), or are not as they were written.

    `recorded` holds path, as seen from the folder, -> SHA-256; `files` must be there, None: all recorded.
    """
    names = recorded if files is None else [relative_name(file, folder) for file in files]
    return [name for name in names if not _is_as_written(folder / name, recorded.get(name))]


def _is_as_written(file: Path, known: str | None) -> bool:
    try:
        return known is not None and file.is_file() and sha256(file) == known
    except UserError:
        return False
