"""Cases of a raw dataset held against each other: orientation, voxels, channels, unknown parts, folds."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nnunet_softseg.datasets.raw_dataset import ONE_ORIENTATION, dataset_finding
from nnunet_softseg.datasets.soft_label import FOLDER
from nnunet_softseg.errors import Finding, examples
from nnunet_softseg.io.case_files import subjects_of

SPLITS = "splits_final.json"
_SIDES = ("train", "val")
_FEWEST_TO_SPLIT = 5
"""nnU-Net makes five folds by itself, of which none may be empty."""
UNLIKE_VOXELS = 3.0
"""Voxels are alike up to this ratio along each axis of the body."""
_FEWEST_TO_COMPARE, _FEW_CASES = 3, 0.05
_FEWEST_TO_COMPARE_CHANNELS, _MOST_CHANNELS = 4, 4
_FAR_OFF, _CLEARLY_NEARER = 3.0, 0.5
_LEAST_SPREAD = 0.05


def orientation_findings(orientations: Mapping[str, str | None]) -> list[Finding]:
    """Compare the cases' orientations: one letter of R, L, A, P, S, I per array axis; None: unknown."""
    by_axis: dict[str, list[str]] = defaultdict(list)
    by_letters: dict[str, list[str]] = defaultdict(list)
    for case_id, letters in orientations.items():
        if letters:
            axis = next(axis for axis, letter in enumerate(letters) if letter in "SI")
            by_axis[f"axis {axis}"].append(case_id)
            by_letters[letters].append(case_id)
    if len(by_axis) > 1:
        what, expected = "mixed orientations", "superior-inferior along one array axis in all cases"
        return [dataset_finding(what, expected, _groups(by_axis), ONE_ORIENTATION)]
    if len(by_letters) > 1:
        what, expected = "cases point in different directions", "one orientation"
        remedy = f"the network will see some of them flipped or turned: {ONE_ORIENTATION}"
        return [dataset_finding(what, expected, _groups(by_letters), remedy, severity="warning")]
    return []


def _groups(cases_by_group: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{group} in {examples(cases)}" for group, cases in sorted(cases_by_group.items()))


def spacing_findings(spacings: Mapping[str, tuple[float, ...] | None]) -> list[Finding]:
    """Say which images have voxels that hardly any other has: mm along R-L, A-P and S-I; None: unknown."""
    known = {name: spacing for name, spacing in spacings.items() if spacing}
    if len(known) < _FEWEST_TO_COMPARE:
        return []
    sizes = np.log(np.array(list(known.values())))
    alike = (np.abs(sizes[:, None] - sizes[None]).max(axis=2) <= np.log(UNLIKE_VOXELS)).sum(axis=1)
    expected = f"within {UNLIKE_VOXELS:g} times {_listed(np.exp(np.median(sizes, axis=0)))} mm along R, A, S"
    remedy = "look whether its header is in mm; nothing, if such images are meant to be there"
    return [
        Finding(name, "voxels unlike those of the others", expected, f"{_listed(own)} mm", remedy, "warning")
        for (name, own), number in zip(known.items(), alike, strict=True)
        if number <= max(1, _FEW_CASES * len(known))
    ]


def _listed(sizes: Iterable[float]) -> str:
    return " x ".join(f"{size:.3g}" for size in sizes)


def channel_findings(
    appearances: Mapping[str, Sequence[Sequence[float]]], names: Sequence[str]
) -> list[Finding]:
    """Name the cases whose channels look like the others' in another order: a flag, as statistics err.

    `appearances` are numbers per case and channel (see `case_checks.CaseResult`), `names` those of channels.
    """
    cases = {
        case: np.array(rows) for case, rows in appearances.items() if len(rows) == len(names) and all(rows)
    }
    shapes = {rows.shape for rows in cases.values()}
    if len(cases) < _FEWEST_TO_COMPARE_CHANNELS or len(shapes) > 1 or not 1 < len(names) <= _MOST_CHANNELS:
        return []
    findings = []
    for case_id, rows in cases.items():
        others = np.stack([other for name, other in cases.items() if name != case_id])
        usual = np.median(others, axis=0)
        spread = np.maximum(np.median(np.abs(others - usual), axis=0), _LEAST_SPREAD)
        far = np.sqrt(
            (((rows[:, None] - usual) / spread) ** 2).mean(axis=2)
        )  # channel of the case, of others
        orders = itertools.permutations(range(len(names)))
        best = min(orders, key=lambda order: float(far[range(len(names)), order].mean()))
        as_named, as_best = far.diagonal().mean(), far[range(len(names)), best].mean()
        if as_named > _FAR_OFF and as_best < _CLEARLY_NEARER * as_named:
            found = ", ".join(
                f"channel {at} like {names[like]}" for at, like in enumerate(best) if at != like
            )
            expected, remedy = (
                f"{', '.join(names)} as in the others",
                "look at them, and rename the files if so",
            )
            what = "channels look like those of other cases in another order"
            findings.append(Finding(case_id, what, expected, found, remedy, "warning"))
    return findings


def split_findings(splits: Any, case_ids: Sequence[str], file: str = SPLITS) -> list[Finding]:
    """Say whether a subject is on both sides of a split, a side is empty, and cases are unknown or left out.

    splits_final.json holds {"train": cases, "val": cases} per fold; None: nnU-Net splits by case. Subjects
    are those that `subjects_of` tells by the cases' names.
    """
    subjects = subjects_of(case_ids)
    if splits is None:
        repeated = sorted(name for name, number in Counter(subjects.values()).items() if number > 1)
        if not repeated:
            return []
        what, expected = "nnU-Net will put one subject on both sides of its splits", "a split by subject"
        found = f"none yet, and several cases of {examples(repeated)}"
        return [Finding(file, what, expected, found, "write one grouped by subject", "warning")]
    findings = []
    for fold in range(len(splits)):
        findings += fold_findings(fold, splits, subjects, file)
    used = {case_id for split in splits for side in _SIDES for case_id in split[side]}
    if left_out := sorted(set(case_ids) - used):
        what, expected = f"{len(left_out)} cases are in no fold", "every case of imagesTr"
        remedy = "add them, or write the file anew"
        findings.append(Finding(file, what, expected, examples(left_out), remedy, "warning"))
    return findings


def fold_findings(fold: int, splits: Any, subjects: Mapping[str, str], file: str = SPLITS) -> list[Finding]:
    """Return the faults of one fold; `subjects`: case -> subject.

    Without a file (None) nnU-Net makes five folds; for a fold beyond those of the file it draws a split.
    """
    if splits is None:
        what, expected = "nnU-Net cannot split so few cases", f"at least {_FEWEST_TO_SPLIT} cases"
        few = Finding(file, what, expected, str(len(subjects)), 'train fold "all", or write a split')
        return [few] if len(subjects) < _FEWEST_TO_SPLIT else []
    are_folds = isinstance(splits, list)
    if are_folds and fold >= len(splits):
        return []
    split = splits[fold] if are_folds and fold >= 0 else None
    if not isinstance(split, Mapping) or not all(isinstance(split.get(side), list) for side in _SIDES):
        what, expected = f"fold {fold} is no split", 'a list of {"train": [cases], "val": [cases]}'
        found = f"{split if are_folds else splits!r}"[:60]
        return [Finding(file, what, expected, found, "correct the fold, or write the file anew")]
    findings = []
    for side, whose in zip(_SIDES, ("training", "validation"), strict=True):
        if not split[side]:
            what, expected = f"fold {fold} has no {whose} case", "at least one: nnU-Net cannot start without"
            findings.append(Finding(file, what, expected, "none", "add some, or remove the fold"))
    unknown = sorted({*split["train"], *split["val"]} - set(subjects))
    if unknown:
        what, expected = f"fold {fold} names unknown cases", "cases of imagesTr"
        findings.append(Finding(file, what, expected, examples(unknown), "correct or remove the file"))
    train, val = ({subjects.get(case_id, case_id) for case_id in split[side]} for side in _SIDES)
    if both := sorted(train & val):
        what, expected = f"fold {fold} validates on subjects that it trains on", "each on one side"
        remedy = "write one grouped by subject"
        findings.append(Finding(file, what, expected, examples(both), remedy, "warning"))
    return findings


def unknown_findings(names: Sequence[str], known: Mapping[str, Sequence[float]]) -> list[Finding]:
    """Say where labels are unknown, and which are unknown everywhere.

    Args:
        names: of the labels.
        known: case -> share of voxels in which each label is known.
    """
    partly = [case_id for case_id, shares in known.items() if min(shares, default=1.0) < 1]
    if not partly:
        return []
    of_label = zip(names, zip(*known.values(), strict=True), strict=True)
    never = [name for name, shares in of_label if not any(shares)]
    if never:
        expected, found = "some known voxels of each label", f"none of {', '.join(never)} in any case"
        remedy = "write values for what was annotated (NaN, and the label to ignore, mean unknown)"
        return [Finding(FOLDER, "nothing is annotated", expected, found, remedy)]
    found = f"{1 - np.mean([known[case_id] for case_id in partly]):.1%} of them unknown in {examples(partly)}"
    remedy = "nothing, if nobody looked there; write 0 where the label is absent (0/0 gives NaN, too)"
    what = f"labels are unknown in parts of {len(partly)} cases"
    return [Finding(FOLDER, what, "voxels that were annotated", found, remedy, "warning")]
