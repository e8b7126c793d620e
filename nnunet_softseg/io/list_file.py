"""Files of names, of subjects or images: JSON, YAML, or one name a line."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from nnunet_softseg.errors import UserError

YAML_ENDINGS = (".yml", ".yaml")
_COMMENT = "#"
_STRUCTURED = (".json", *YAML_ENDINGS)


def load_structure(file: Path) -> Any:
    """Return the content of a JSON or YAML file; in YAML every value is a string, `01` too.

    Raises:
        UserError: if it cannot be read, or is neither.
    """
    text = load_text(file)
    try:
        if file.suffix.lower() == ".json":
            return json.loads(text)
        return yaml.load(text, Loader=yaml.BaseLoader)
    except (ValueError, yaml.YAMLError) as error:
        what = " ".join(str(error).split())
        raise UserError(f"{file}: expected JSON (.json) or YAML, found: {what}: repair it") from error


def read_exclusions(arguments: Iterable[str]) -> tuple[str, ...]:
    """Return the patterns that were asked for, once each.

    Args:
        arguments: names or patterns (`*`, `?`, `[]`), or files of them: one a line with `#` comments, or all
            values of a JSON or YAML file.

    Raises:
        UserError: if a file is missing or unreadable.
    """
    patterns: list[str] = []
    for argument in arguments:
        file = Path(argument)
        if file.is_file():
            structured = file.suffix.lower() in _STRUCTURED
            patterns += all_values(load_structure(file)) if structured else _lines(file)
        elif file.suffix.lower() in (".txt", *_STRUCTURED):
            raise UserError(f"{file}: expected a list of what to leave out, found no such file")
        else:
            patterns.append(argument)
    return tuple(dict.fromkeys(pattern.strip() for pattern in patterns))


def all_values(structure: Any) -> list[str]:
    """Return every value of nested lists and mappings as a string; keys are not values."""
    if isinstance(structure, Mapping):
        return [value for part in structure.values() for value in all_values(part)]
    if isinstance(structure, list):
        return [value for part in structure for value in all_values(part)]
    return [str(structure)] if structure not in (None, "") else []


def load_text(file: Path) -> str:
    """Return the content of a text file in UTF-8.

    Raises:
        UserError: if it is not a text file, or cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
        raise UserError(f"{file}: expected a text file, found: {reason}: check the path") from error


def _lines(file: Path) -> list[str]:
    """Return the lines that hold anything, without what follows `#`."""
    lines = (line.partition(_COMMENT)[0].strip() for line in load_text(file).splitlines())
    return [line for line in lines if line]
