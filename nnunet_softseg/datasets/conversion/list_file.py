"""Files in which people keep lists of subjects: JSON, YAML, one name a line, a table."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nnunet_softseg.errors import UserError

YAML_ENDINGS = (".yml", ".yaml")
COMMENT = "#"


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


def load_lines(file: Path) -> list[str]:
    """Return the lines that hold anything, without what follows `#`.

    Raises:
        UserError: if it is not a text file, or cannot be read.
    """
    lines = (line.partition(COMMENT)[0].strip() for line in load_text(file).splitlines())
    return [line for line in lines if line]


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
