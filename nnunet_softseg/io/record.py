"""Whether results are up to date, by a record of what they were made from.

A record is a JSON object (or metadata of an array) with the request: all that decides the values of a result,
as settings, version and SHA-256 of sources; often with `outputs`, path -> SHA-256 of each file written.
Hash the sources before they are read: one that changes meanwhile makes the record stale, not wrong.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunet_softseg.errors import UserError

_CHUNK_BYTES = 1 << 20


# Records


def json_copy(value: Any) -> Any:
    """Return a value as JSON gives it back (tuples as lists, keys as strings), to compare with a record."""
    return json.loads(json.dumps(value))


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


# Files


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits.

    Raises:
        UserError: if it cannot be read.
    """
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
    digest = sha256(file)
    status = file.stat()
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

    Args:
        folder: from which the recorded paths are seen.
        recorded: path -> SHA-256.
        files: those that must be there; None: all that are recorded.
    """
    names = recorded if files is None else [relative_name(file, folder) for file in files]
    return [name for name in names if not _is_as_written(folder / name, recorded.get(name))]


def _is_as_written(file: Path, known: str | None) -> bool:
    try:
        return known is not None and file.is_file() and sha256(file) == known
    except UserError:
        return False
