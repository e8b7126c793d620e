"""What is noted of a case on its way from image to soft map: times, robust peaks, warnings, for softseg.json.

The record travels in the case's properties, which nnU-Net hands from the preprocessing to the export, across
processes. The forward pass alone sees no properties: it asks here which case is under way in its process.
"""

from contextvars import ContextVar
from typing import Any

KEY = "nnunet_softseg"
_under_way: ContextVar[dict[str, Any] | None] = ContextVar("case_under_way", default=None)


def start(properties: dict[str, Any]) -> dict[str, Any]:
    """Put an empty record into the properties of a case, or return the one that is there."""
    record: dict[str, Any] = properties.setdefault(KEY, {})
    empty: dict[str, Any] = {
        "image": None,
        "backend": None,
        "seconds": {},
        "labels": {},
        "warnings": [],
        "flags": [],
    }
    for key, value in empty.items():
        record.setdefault(key, value)
    return record


def set_under_way(record: dict[str, Any] | None) -> None:
    """Say whose forward pass comes next in this process; None: nobody's."""
    _under_way.set(record)


def under_way() -> dict[str, Any]:
    """Return the record of the case under way; one that nobody will read if there is none."""
    record = _under_way.get()
    return record if record is not None else start({})


def add_warning(record: dict[str, Any], warning: str) -> None:
    """Note a warning once."""
    if warning not in record["warnings"]:
        record["warnings"].append(warning)


def add_backend(record: dict[str, Any], name: str) -> None:
    """Note what ran the network; several only if one has failed on the way."""
    names = record["backend"].split(", ") if record["backend"] else []
    record["backend"] = ", ".join([*names, *([] if name in names else [name])])
