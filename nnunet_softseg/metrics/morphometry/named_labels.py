"""Several labels in one table: names for labels, and for sums and differences of them (wm=cord-gm)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd

from nnunet_softseg.errors import UserError, examples, raise_first_error
from nnunet_softseg.io.case_files import numbers_are_labels, parse_numbered_name
from nnunet_softseg.io.geometry import VoxelGrid, grid_findings
from nnunet_softseg.io.nifti import classify, load_nifti, map_or_label, read_values
from nnunet_softseg.metrics.slice_frame import SliceFrame
from nnunet_softseg.settings import HARD_THRESHOLD

LabelTerms = Mapping[int, int]
"""Label number -> how often it counts: {1: 1, 2: -1} is label 1 without label 2."""
_DEFINITION = re.compile(r"^([A-Za-z]\w*)=(\w+(?:[+-]\w+)*)$")
_TERM = re.compile(r"([+-]?)(\w+)")


def parse_labels(label: int | str | Iterable[int | str] | None) -> int | dict[str, LabelTerms] | None:
    """Return a single label number, or name -> terms of `cord=1 gm=2 wm=cord-gm`; None for none.

    Raises:
        UserError: if a definition cannot be read, uses a name that no earlier one defines, or the background.
    """
    words = [] if label is None else [label] if isinstance(label, int | str) else list(label)
    if not words:
        return None
    if len(words) == 1 and str(words[0]).isdigit():
        return _number(str(words[0]), str(words[0]))
    defined: dict[str, LabelTerms] = {}
    for word in words:
        match = _DEFINITION.match(str(word))
        if match is None or match[1] in defined:
            raise UserError(
                f"--label {word}: expected one number, or names of their own such as cord=1 gm=2 wm=cord-gm, "
                f"found {' '.join(map(str, words))}"
            )
        defined[match[1]] = _resolve(match[2], defined, str(word))
    return defined


def _resolve(formula: str, defined: Mapping[str, LabelTerms], word: str) -> LabelTerms:
    terms: dict[int, int] = {}
    for sign, name in _TERM.findall(formula):
        if not name.isdigit() and name not in defined:
            known = f"numbers and {', '.join(defined)}" if defined else "a number"
            raise UserError(f"--label {word}: expected {known}, found {name}: define it before it is used")
        for number, count in (defined[name] if name in defined else {_number(name, word): 1}).items():
            terms[number] = terms.get(number, 0) + (-count if sign == "-" else count)
    return terms


def _number(text: str, word: str) -> int:
    number = int(text)
    if number < 1:
        raise UserError(
            f"--label {word}: expected values above 0, found {text}: name a label, 0 is the background"
        )
    return number


def files_by_label(files: Sequence[Path], named: Mapping[str, LabelTerms]) -> list[dict[int, Path]]:
    """Return label -> file of each case: soft maps `<case>_<label, 4 digits>`, or one label map for all.

    Raises:
        UserError: if a case lacks a label.
    """
    numbers = sorted({number for terms in named.values() for number in terms})
    numbered = {file: parse_numbered_name(file.name) for file in files}
    if not all(numbered.values()) or numbers_are_labels(files) is False:
        return [dict.fromkeys(numbers, file) for file in files]
    cases: dict[tuple[Path, str], dict[int, Path]] = {}
    for file, parsed in numbered.items():
        if parsed:
            cases.setdefault((file.parent, parsed[0]), {})[parsed[1]] = file
    for (folder, case), of_case in cases.items():
        missing = [number for number in numbers if number not in of_case]
        if missing:
            raise UserError(
                f"{folder / case}: expected soft maps of labels {', '.join(map(str, numbers))}, found none "
                f"of {examples([str(number) for number in missing])}: predict them, or leave "
                "them out of --label"
            )
    return [{number: of_case[number] for number in numbers} for of_case in cases.values()]


class NamedMaps:
    """The maps of one case, (x, y, z) by label number, and what their named combinations hold.

    `warnings` name the labels that do not occur.
    """

    def __init__(self, files: Mapping[int, Path], named: Mapping[str, LabelTerms]) -> None:
        self.named = named
        self.affine = load_nifti(next(iter(files.values()))).affine
        self._maps: dict[int, npt.NDArray[np.float32]] = {}
        grid: VoxelGrid | None = None
        is_label_map = len({*files.values()}) < len(files)
        for number, file in files.items():
            image = load_nifti(file)
            grid = grid or VoxelGrid.of(image)
            raise_first_error(grid_findings(file, grid, VoxelGrid.of(image), of="the first label"))
            values = read_values(image, str(file))
            content = classify(values)
            is_soft_map = not is_label_map and content.is_fraction and parse_numbered_name(file.name)
            self._maps[number], _ = map_or_label(file, values, content, None if is_soft_map else number)
        self.warnings = [
            f"{file}: label {number} does not occur: it has no area"
            for number, file in files.items()
            if not self._maps[number].any()
        ]

    def image(self, name: str, file: Path) -> nib.Nifti1Image:
        """Return one combination as an image, which messages call by the file."""
        image = nib.Nifti1Image(self._combined(name), self.affine)
        image.set_filename(str(file))
        return image

    def add_areas(self, table: pd.DataFrame, frame: SliceFrame) -> None:
        """Add the columns csa_mm2_<name>, csa_hard_mm2_<name> and area_mm2_<name>, as those of the table.

        The tilt is that of the table's structure, the first label. NaN where a label has nothing in a slice.
        """
        cosine = np.cos(np.radians(table["tilt_deg"].fillna(0.0)))
        for name in self.named:
            combined = self._combined(name)
            soft, hard = (
                values.sum(axis=frame.in_plane, dtype=np.float64)
                for values in (combined, combined > HARD_THRESHOLD)
            )
            area = np.where(soft > 0, soft, np.nan) * frame.pixel_mm2
            table[f"csa_mm2_{name}"] = area * cosine
            table[f"csa_hard_mm2_{name}"] = np.where(hard > 0, hard, np.nan) * frame.pixel_mm2 * cosine
            table[f"area_mm2_{name}"] = area

    def _combined(self, name: str) -> npt.NDArray[np.float32]:
        total = sum(
            count * self._maps[number].astype(np.float32) for number, count in self.named[name].items()
        )
        return np.clip(np.asarray(total, dtype=np.float32), 0, 1)
