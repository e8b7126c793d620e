"""The end of a prediction: how many cases have which flag, what to do, and a page of pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_softseg.errors import examples
from nnunet_softseg.inference.postprocessing import WARNING, WORDS, seriousness
from nnunet_softseg.io.case_files import REPORT
from nnunet_softseg.io.results import load_record

MOST_CASES = 200
"""Of more cases, no page is made without being asked: a picture takes about a third of a second."""


def summarise(folder: Path, images: Mapping[str, Path], *, draw: bool, progress: bool) -> str:
    """Return in lines how many cases have which flag, why, and what to do; draw the page if asked to.

    Args:
        folder: of the predictions, with softseg.json.
        images: the image of each case of the call, also of those that an earlier call predicted.
        draw: make `qc/index.html`, of all cases in the folder.
        progress: show a bar.
    """
    entries = (load_record(folder / REPORT, "cases") or {"cases": {}})["cases"]
    lines = flag_lines({case: entries[case] for case in images if case in entries})
    if draw and len(entries) > MOST_CASES:
        lines.append(f"no pictures: expected at most {MOST_CASES} cases in a folder, found {len(entries)}")
    elif draw and entries:
        lines.append(_page(folder, entries, images, progress))
    return "\n".join(lines)


def _page(folder: Path, entries: Mapping[str, Any], images: Mapping[str, Path], progress: bool) -> str:
    """Draw the page and return a line that says where it is, or what it needs."""
    try:
        from nnunet_softseg.inference.qc_page import write_qc_page  # only here: it loads matplotlib
    except ModuleNotFoundError as error:
        return f"no pictures: {error.name} is not installed: pip install matplotlib jinja2, or give --no-qc"
    return f"pictures of all, flagged first: {write_qc_page(folder, entries, images, progress=progress)}"


def flag_lines(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each flag that cases (entries of softseg.json) have: how many, which, what to do."""
    by_flag: dict[str, list[str]] = {}
    for case, entry in sorted(entries.items()):
        for flag in entry["flags"] or [WARNING] * bool(entry["warnings"]):
            by_flag.setdefault(flag, []).append(case)
    counted = f"{len(entries)} case{'' if len(entries) == 1 else 's'}"
    if not by_flag:
        return [f"{counted}, none flagged"] if entries else []
    flagged = sum(bool(entry["flags"]) for entry in entries.values())
    lines = [f"{counted}, {flagged} flagged:"]
    for flag in sorted(by_flag, key=seriousness):
        words, remedy = WORDS.get(flag, (f"flagged: {flag}", f"see {REPORT}"))
        lines.append(f"  {len(by_flag[flag])} {words}: {examples(by_flag[flag])}: {remedy}")
    return lines
