"""The end of a prediction: flags and what to do, the numbers of a single image, and a page of pictures."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_softseg.datasets.raw_dataset import soft_label_file
from nnunet_softseg.errors import examples
from nnunet_softseg.inference.postprocessing import WARNING, WORDS, seriousness
from nnunet_softseg.io.case_files import REPORT, SOFT_FOLDER
from nnunet_softseg.io.formats import is_nifti
from nnunet_softseg.io.nifti import load_nifti
from nnunet_softseg.io.results import load_record
from nnunet_softseg.metrics.slice_frame import slice_areas

MOST_CASES = 200
"""Of more cases, no page is made without being asked: a picture takes about a third of a second."""
_AS_SOFT_MAP = ("-cm", "red-yellow", "-dr", "0", "1")


def summarise(
    folder: Path, images: Mapping[str, Path], numbers: Sequence[int], *, draw: bool, progress: bool
) -> str:
    """Return in lines how many cases have which flag, why, and what to do; draw the page if asked to.

    Of a single case it says volume and area of each label, too, and how to look at them.

    Args:
        folder: of the predictions, with softseg.json.
        images: the image of each case of the call, also of those that an earlier call predicted.
        numbers: of the soft maps.
        draw: make `qc/index.html`, of all cases in the folder.
        progress: show a bar.
    """
    entries = (load_record(folder / REPORT, "cases") or {"cases": {}})["cases"]
    lines = flag_lines({case: entries[case] for case in images if case in entries})
    if len(images) == len(entries.keys() & images) == 1:
        ((case, image),) = images.items()
        labels = entries[case]["labels"]
        files = [soft_label_file(folder / SOFT_FOLDER, case, number) for number in numbers]
        if is_nifti(image.name):
            lines += result_lines(image, dict(zip(labels, files, strict=True)), labels)
    if draw and len(entries) > MOST_CASES:
        lines.append(f"no pictures: expected at most {MOST_CASES} cases in a folder, found {len(entries)}")
    elif draw and entries:
        lines.append(_page(folder, entries, images, progress))
    return "\n".join(lines)


def result_lines(image: Path, maps: Mapping[str, Path], labels: Mapping[str, Any]) -> list[str]:
    """Return soft volume and mean area of each label, by its name, and a viewer's command.

    Args:
        image: that was predicted.
        maps: file of the soft map.
        labels: entry of softseg.json, with the soft volume in mm3.
    """
    lines = []
    for name, file in maps.items():
        area = _area_in_the_middle(file)
        volume = f"soft volume {labels[name]['soft_volume_mm3'] / 1000:.2f} cm3"
        where = "over the middle third of its slices, not corrected for tilt"
        lines.append(f"{name}: none found" if area is None else f"{name}: {volume}, {area:.1f} mm2 {where}")
    view = [word for file in maps.values() for word in (str(file), *_AS_SOFT_MAP)]
    return [*lines, f"to look at it: {shlex.join(['fsleyes', str(image), *view])}"]


def _area_in_the_middle(soft_map: Path) -> float | None:
    """Return the mean area in mm2 over the middle third of the slices that hold something; None: none do."""
    area = slice_areas(load_nifti(soft_map)).area_mm2
    filled = np.flatnonzero(np.isfinite(area))
    if not len(filled):
        return None
    margin = len(filled) // 3
    return float(area[filled[margin : len(filled) - margin]].mean())


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
