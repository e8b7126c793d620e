"""What is known of a case under way: options of the prediction, flags, times, boxes, for softseg.json.

The record travels in the case's properties, which nnU-Net hands from preprocessing to export. A flag is a
word to filter by in softseg.json and a sentence for a person, so that no doubtful map passes for a good one.
The image, the network's response and the soft map raise flags. A flag changes no map; what mirrored passes do
not agree on has been emptied before.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.inference.recentring import Placement, WholeImage
from nnunet_softseg.io.case_files import REPORT
from nnunet_softseg.io.results import load_record
from nnunet_softseg.preprocessing.center_crop import Box
from nnunet_softseg.preprocessing.output_scale import LabelShape, Range, known_range, label_shape
from nnunet_softseg.settings import HARD_THRESHOLD, PLANS_KEY

Map = npt.NDArray[np.float32]
KEY = "nnunet_softseg"
Localize = Literal["always", "auto", "never"]
VARIABLES = {
    "backend": "NNUNET_SOFTSEG_BACKEND",
    "localize": "NNUNET_SOFTSEG_LOCALIZE",
    "largest_piece": "NNUNET_SOFTSEG_LARGEST_PIECE",
    "discard_implausible": "NNUNET_SOFTSEG_DISCARD_IMPLAUSIBLE",
    "calibrate": "NNUNET_SOFTSEG_CALIBRATE",
    "no_qc": "NNUNET_SOFTSEG_NO_QC",
}
"""Environment variable of each option."""
CALIBRATION = "calibration"
"""Of the calibration among our entries of the plans, and of what softseg.json says of it."""
_REMOVED = "NNUNET_SOFTSEG_KEEP_UNLIKELY"
_SWITCHES = {
    "largest_piece": "keep the largest piece of each label",
    "discard_implausible": "empty maps flagged as unlike every label of the training",
    "calibrate": "calibrate maps as the model's calibration says",
    "no_qc": "make no qc/index.html",
}
FEWEST_SLICES = 3
"""A map that covers fewer slices of its image than this is flagged."""
END_TOLERANCE = 5
"""A map may end this many slices of the network's grid farther from the image's end than any label did."""
SPACING_TOLERANCE = 2.0
"""Voxels may be this many times larger than any of the training, or smaller."""
SIZE_MARGIN = 1.25
"""How many times larger than the training's largest slice, or smaller than the smallest, one may be.

Refuted by 1 in 20 healthy adults, of another study than the training's, whose cord lies beyond."""
ROUGHNESS_MARGIN = 3.0
"""How many times as much as in training the areas may change from slice to slice, as maps are rougher than
labels. Refuted by good maps (Dice > 0.9) of real images, 1 in 20 of which is rougher."""
INTERIOR_MARGIN = 0.95
"""How far the interior mean may fall, relative to the training's least. Refuted in the same way."""
SURE_AGREEMENT = 0.9
"""Of mirrored passes. Refuted by good maps (Dice > 0.9) of real images with less; those at hand have 0.91 and
more."""
_PIECES = "separate pieces"
_SHORTEST = 0.5
"""A map that is shorter than this part of the training's shortest label is flagged."""
_MARGINS: dict[str, Range] = {
    "largest_area": (1 / SIZE_MARGIN, SIZE_MARGIN),
    "area_roughness": (-math.inf, ROUGHNESS_MARGIN),  # none is too smooth
    "interior_mean": (INTERIOR_MARGIN, math.inf),  # and none too sure
}


@dataclass(frozen=True)
class PredictionOptions:
    """How images are predicted, beyond what the model says: see the arguments of `predict` of these names.

    `overruled` notes the environment variables that say something else than an argument.
    """

    backend: str = "auto"
    localize: Localize = "auto"
    largest_piece: bool = False
    discard_implausible: bool = False
    calibrate: bool = False
    no_qc: bool = False
    overruled: tuple[str, ...] = ()

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str], **arguments: str | bool | None
    ) -> "PredictionOptions":
        """Return the options by arguments; where one is None or False, by environment variables if not empty.

        Raises:
            UserError: for a value that an option does not take, and for a variable that is no longer read.
        """
        if environment.get(_REMOVED):
            raise UserError(
                f"{_REMOVED}: expected it unset, as maps unlike the training are kept now, found "
                f"{environment[_REMOVED]!r}: unset it; {VARIABLES['discard_implausible']}=1 empties them"
            )
        chosen: dict[str, Any] = {}
        overruled = []
        for name, variable in VARIABLES.items():
            argument, word = arguments.get(name) or None, environment.get(variable)
            if argument is None and word:
                if name in _SWITCHES and word not in ("0", "1"):
                    raise UserError(f"{variable}: expected 1 ({_SWITCHES[name]}) or 0, found {word!r}")
                chosen[name] = word == "1" if name in _SWITCHES else word
            elif argument is not None:
                chosen[name] = argument
                if word and word != ("1" if argument is True else argument):
                    flag = f"--{name.replace('_', '-')}{'' if argument is True else f' {argument}'}"
                    overruled.append(f"{flag} overrules {variable}={word}")
        options = cls(**chosen, overruled=tuple(overruled))
        if options.localize not in get_args(Localize):
            raise UserError(
                f"--localize, {VARIABLES['localize']}: expected one of {', '.join(get_args(Localize))}, "
                f"found {options.localize}: correct it"
            )
        return options

    def that_decide(self, plans: Mapping[str, Any]) -> dict[str, Any]:
        """Return those that decide the values of a prediction, with the calibration that is applied."""
        names = ("localize", "largest_piece", "discard_implausible")
        return {
            **{name: getattr(self, name) for name in names},
            CALIBRATION: plans[PLANS_KEY].get(CALIBRATION) if self.calibrate else None,
        }


def bytes_of(images: Iterable[Path]) -> int:
    """Return the size of the files of a case together; those that are gone count nothing."""
    return sum(image.stat().st_size for image in images if image.is_file())


def reported_cases(folder: Path) -> dict[str, Any]:
    """Return the entries of softseg.json in a folder of predictions, by case; none where it has none."""
    record = load_record(folder / REPORT, "cases") or {"cases": {}}
    return cast("dict[str, Any]", record["cases"])


def is_of(entry: Mapping[str, Any], images: Iterable[Path]) -> bool:
    """Return whether an entry of softseg.json is of these images, as far as their size tells.

    Images of other people may have the same name, one folder each: T2w.nii.gz.
    """
    before = entry.get("image_bytes")
    return before is None or before == bytes_of(images)


@dataclass
class CaseRecord:
    """What is known of a case under way.

    Attributes:
        given_options: None until somebody has said how to predict it.
        image_files: one per channel; none for a case that came as an array.
        read_whole: gives the whole case, to look for the structure elsewhere; None: that cannot be done.
        backend: names of what ran the network; several only if one has failed.
        seconds: by stage.
        labels: numbers by label.
        flags: words of `Flag`.
        warnings: sentences.
        network_shape: (*space) of the whole case on the network's grid.
        box: of the case that the soft map covers, on that grid.
        central_box: that the preprocessed image covers.
        is_placed: whether it is decided where the network looks.
        placement: where, if not in the central box.
        localiser: what the localiser did.
        resampled_whole: why the whole image was resampled.
    """

    given_options: PredictionOptions | None = None
    image_files: tuple[str, ...] = ()
    read_whole: Callable[[], WholeImage] | None = None
    backend: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    labels: dict[str, dict[str, Any]] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    network_shape: tuple[int, ...] | None = None
    box: Box | None = None
    central_box: Box | None = None
    is_placed: bool = False
    placement: Placement | None = None
    localiser: dict[str, Any] | None = None
    resampled_whole: str | None = None

    @classmethod
    def of(cls, properties: dict[str, Any]) -> "CaseRecord":
        """Return the record in the properties of a case, put there if there is none."""
        record: CaseRecord = properties.setdefault(KEY, cls())
        return record

    @property
    def options(self) -> PredictionOptions:
        """How the case is predicted."""
        return self.given_options or PredictionOptions()

    def add_warning(self, warning: str) -> None:
        """Note a warning once."""
        if warning not in self.warnings:
            self.warnings.append(warning)

    def add_flags(self, findings: Iterable[tuple[str, str]]) -> None:
        """Note flags, each a word and a sentence, once."""
        for word, sentence in findings:
            if word not in self.flags:
                self.flags.append(str(word))
            self.add_warning(sentence)

    def add_backend(self, name: str) -> None:
        """Note what ran the network."""
        names = self.backend.split(", ") if self.backend else []
        if name not in names:
            self.backend = ", ".join([*names, name])

    def as_json(self) -> dict[str, Any]:
        """Return the case's entry in softseg.json."""
        entry = {
            "image": Path(self.image_files[0]).name if self.image_files else None,
            "image_bytes": bytes_of(map(Path, self.image_files)) if self.image_files else None,
            "backend": self.backend,
            "seconds": {stage: round(value, 3) for stage, value in self.seconds.items()},
            "labels": self.labels,
            "flags": self.flags,
            "warnings": self.warnings,
            "localiser": self.localiser,
            "resampled_whole": self.resampled_whole,
            "overruled": list(self.options.overruled),
        }
        optional = ("localiser", "resampled_whole", "overruled")
        return {name: value for name, value in entry.items() if value or name not in optional}


# Flags


class Flag(str, Enum):
    """The words of softseg.json."""

    __str__ = str.__str__  # Python 3.10 has no StrEnum

    SEEN = "seen in training"
    CONSTANT = "constant image"
    ORIENTATION = "orientation"
    HEADER = "header"
    SPACING = "spacing"
    WEAK = "weak response"
    UNSURE = "mirror image differs"
    MOVED = "found off the centre"
    DISCARDED = "discarded"
    EMPTY = "empty"
    BORDER = "touches the border"
    BROKEN_OFF = "ends inside the image"
    PIECES = "several pieces"
    UNLIKE = "unlike training"
    SHORT = "short"
    FEW_SLICES = "few slices"


WORDS: Mapping[str, tuple[str, str]] = {
    Flag.CONSTANT: ("with one value in all voxels", "repair the image"),
    Flag.EMPTY: ("with nothing found", "right if the structure is absent, else look at the image"),
    Flag.DISCARDED: ("emptied, as --discard-implausible asks", "look at the image"),
    Flag.WEAK: ("with a weak response", "there may be none in the image: look at it"),
    Flag.UNSURE: ("unlike what is found in the mirror image", "there may be none in the image: look at it"),
    Flag.UNLIKE: ("unlike the labels of the training", "look at the map before you measure it"),
    Flag.PIECES: ("in more pieces than in training", "--largest-piece keeps one of them"),
    Flag.BROKEN_OFF: ("ending inside the image, or with a gap", "right if the structure ends there"),
    Flag.BORDER: (
        "at the border of what the network saw",
        "the structure may be cut off: try --localize always, or crop the image around it",
    ),
    Flag.FEW_SLICES: ("in one or two slices", "look at it"),
    Flag.SHORT: (
        "shorter than half of the shortest label of the training",
        "right if the image shows no more of the structure, else it was lost on the way",
    ),
    Flag.MOVED: ("found off the centre", "look whether it is the right structure"),
    Flag.SEEN: ("of subjects of the training", "no test of the model: leave them out of one"),
    Flag.ORIENTATION: ("with axes turned another way than in training", "reorient the image"),
    Flag.HEADER: ("with a doubtful header", "repair the image's header: its warning says how"),
    Flag.SPACING: ("with voxels far from the sizes of the training", "trust it less, or resample the image"),
}
"""What is said of the cases with a flag, and what to do; the most serious first."""


def seriousness(flag: str) -> int:
    """Return the place of a flag in `WORDS`, by which lists are sorted; one of a later version comes last."""
    return list(WORDS).index(flag) if flag in WORDS else len(WORDS)


def flag_lines(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each flag that cases (entries of softseg.json) have: how many, which, what to do.

    Of those without a flag, a line for each warning.
    """
    by_line: dict[tuple[int, str, str], list[str]] = {}
    for case, entry in sorted(entries.items()):
        words = {flag: WORDS.get(flag, (f"flagged: {flag}", f"see {REPORT}")) for flag in entry["flags"]}
        of_case = [(seriousness(flag), *told) for flag, told in words.items()]
        of_case = of_case or [(len(WORDS), "with a warning", warning) for warning in entry["warnings"]]
        for line in of_case:
            by_line.setdefault(line, []).append(case)
    counted = f"{len(entries)} case{'' if len(entries) == 1 else 's'}"
    if not by_line:
        return [f"{counted}, none flagged"] if entries else []
    flagged = sum(bool(entry["flags"]) for entry in entries.values())
    return [
        f"{counted}, {flagged} flagged:",
        *(
            f"  {len(cases)} {words}: {examples(cases)}: {remedy}"
            for (_, words, remedy), cases in sorted(by_line.items())
        ),
    ]


def in_one_piece(entry: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return an entry of softseg.json without what it says of several pieces of the labels of these names."""
    told = [
        warning
        for warning in entry.get("warnings", ())
        if not (_PIECES in warning and any(warning.startswith(f"{name} is in ") for name in names))
    ]
    others = any(_PIECES in warning for warning in told)
    flags = [flag for flag in entry.get("flags", ()) if flag != Flag.PIECES or others]
    return {**entry, "flags": flags, "warnings": told}


def told_of_all(entries: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return flags and warnings of a case in the predictions of several models (entries), each once."""
    entries = list(entries)
    return {
        kind: [*dict.fromkeys(word for entry in entries for word in entry[kind])]
        for kind in ("flags", "warnings")
    }


class Flagged(NamedTuple):
    """A flag and why it was raised."""

    flag: Flag
    why: str


CONSTANT = Flagged(Flag.CONSTANT, "constant image: the soft map is empty")
MOVED = Flagged(Flag.MOVED, "the middle of the image did not show it: the soft map is from elsewhere")


def flag_orientation(orientation: str | None, trained: str | None) -> list[Flagged]:
    """Flag axes that point another way than in training; None: not known."""
    if None in (orientation, trained) or orientation == trained:
        return []
    return [Flagged(Flag.ORIENTATION, f"orientation {orientation} differs from training's {trained}")]


def flag_spacing(spacing_mm: Sequence[float], trained: Mapping[str, Sequence[float]] | None) -> list[Flagged]:
    """Flag voxels that are far larger or smaller than any of the training; see `model_plans.spacing_range`.

    Axes are in the order of the reader.
    """
    if trained is None or len(spacing_mm) != len(trained["smallest"]):
        return []
    ranges = zip(spacing_mm, trained["smallest"], trained["largest"], strict=True)
    if all(low / SPACING_TOLERANCE <= length <= high * SPACING_TOLERANCE for length, low, high in ranges):
        return []
    found, low, high = (
        " x ".join(f"{length:.2g}" for length in lengths)
        for lengths in (spacing_mm, trained["smallest"], trained["largest"])
    )
    return [Flagged(Flag.SPACING, f"voxels of {found} mm are far from training's, {low} to {high} mm")]


def flag_response(name: str, found: float, learned: float, floor_fraction: float) -> list[Flagged]:
    """Flag a robust peak of the raw output below a fraction of the running scale of the training."""
    if found >= floor_fraction * learned:
        return []
    stands = f"the network's raw output stands at {found:.3g}, in training at {learned:.3g}"
    return [Flagged(Flag.WEAK, f"weak response for {name}: {stands}; there may be none in this image")]


def flag_agreement(name: str, agreement: float, least: float) -> list[Flagged]:
    """Flag a label that mirrored passes do not agree on: below `least`, there is nothing of it."""
    if agreement >= max(least, SURE_AGREEMENT):
        return []
    found = f"{name}: what is found in the image and in its mirror image agrees by {agreement:.2f} only"
    known = f"1 if they are alike, {SURE_AGREEMENT} and more where there is one"
    end = ": emptied" if agreement < least else ""
    return [Flagged(Flag.UNSURE, f"{found} ({known}){end}")]


def flag_border(
    soft_maps: npt.NDArray[np.floating[Any]],
    coverage: npt.NDArray[np.bool_],
    goes_on: Sequence[tuple[bool, bool]],
) -> list[Flagged]:
    """Flag a soft map whose largest piece reaches the border of the coverage, behind which the image goes on.

    A smaller piece beside it says nothing of where the structure ends. The maps are (label, *space), of a
    part of the case; the coverage (*space) of the voxels that the network saw; `goes_on` says per axis
    whether the image goes on before the first index and after the last.
    """
    unseen = np.pad(~coverage, 1)
    for axis, faces in enumerate(goes_on):
        for face, beyond in zip((0, -1), faces, strict=True):
            np.moveaxis(unseen, axis, 0)[face] = beyond
    beside = np.zeros_like(coverage)
    inner = (slice(1, -1),) * coverage.ndim
    for axis in range(coverage.ndim):
        for shifted in (slice(None, -2), slice(2, None)):
            beside |= unseen[(*inner[:axis], shifted, *inner[axis + 1 :])]
    at_border = beside & coverage
    reaching = [soft_map for soft_map in soft_maps if (soft_map[at_border] > HARD_THRESHOLD).any()]
    if not any(largest_component(soft_map, HARD_THRESHOLD)[at_border].any() for soft_map in reaching):
        return []
    why = "the soft map touches the border of what the network saw: the structure may be cut off, look at it"
    return [Flagged(Flag.BORDER, why)]


def flag_map(
    soft_maps: Map,
    names: Sequence[str],
    training: Mapping[str, Any],
    si_axis: int,
    tilt_factor: npt.NDArray[np.float64] | None = None,
    *,
    cores: Mapping[str, float] = MappingProxyType({}),
) -> list[Flagged]:
    """Flag maps that are empty, end inside the image, are in pieces or unlike every label of the training.

    Args:
        soft_maps: (label, *space) on the network's grid, along S-I all of the case.
        names: of the labels.
        training: "training_shapes" of the model's plans, per label from `training_ranges`.
        si_axis: axis of the space along S-I.
        tilt_factor: see `label_shape`.
        cores: threshold of each label that a map exceeds if there is anything; 0.5 if not given.
    """
    findings = []
    for name, soft_map in zip(names, soft_maps, strict=True):
        if not (soft_map > cores.get(name, HARD_THRESHOLD)).any():
            findings.append(Flagged(Flag.EMPTY, f"nothing found of {name}: its soft map is empty"))
            continue
        shape, known = label_shape(soft_map, si_axis, tilt_factor), training.get(name)
        if shape is None:  # uncertain everywhere: no figure of it is known
            continue
        most = known_range(known, "components")[1] if known else 1
        if shape.components > most:
            pieces = f"{name} is in {shape.components} {_PIECES} (in training at most {most:.0f})"
            findings.append(Flagged(Flag.PIECES, pieces))
        if known:
            unlike = f"{name} is unlike the labels of the training: "
            findings += [Flagged(Flag.UNLIKE, unlike + outlier) for outlier in outliers(shape, known)]
            findings += [Flagged(Flag.BROKEN_OFF, f"{name}: {end}") for end in _ends(shape, known)]
            low, high = known_range(known, "length")
            if shape.length < _SHORTEST * low:
                slices = f"{shape.length} slices of the network's grid (in training {low:.0f} to {high:.0f})"
                findings.append(Flagged(Flag.SHORT, f"{name} is too short: {slices}"))
    return findings


def outliers(shape: LabelShape, training: Mapping[str, Any]) -> list[str]:
    """Return the figures by which a shape is unlike every label of the training, the farthest first.

    Outlier score: each figure has gone part of the way from its range in training (0) to its limit (1, see
    `_MARGINS`), and the parts are added up. Above 1, the figures that carry it there are named: one beyond
    its limit, or several that each come near theirs.
    """
    ranges = {figure: known_range(training, figure) for figure in _MARGINS}
    parts = {name: _part_of_the_way(getattr(shape, name), ranges[name], _MARGINS[name]) for name in ranges}
    told, score = [], 0.0
    for figure in sorted(parts, key=lambda one: -parts[one]):
        if score <= 1 or parts[figure] > 1:
            told.append(figure)
        score += parts[figure]
    if score <= 1:
        return []
    return [
        f"{figure.replace('_', ' ')} {getattr(shape, figure):.3g} (in training {{:.3g}} to {{:.3g}})".format(
            *ranges[figure]
        )
        for figure in told
    ]


def _part_of_the_way(value: float, in_training: Range, margin: Range) -> float:
    """Return how far a figure is from its range in training, in shares of the way to its limit."""
    (least, most), (below, above) = in_training, margin
    if value > most > least:
        return (value - most) / ((above - 1) * most)
    if value < least < most:
        return (least - value) / ((1 - below) * least)
    return 0.0  # a range without width is no limit


def _ends(shape: LabelShape, training: Mapping[str, Any]) -> Iterator[str]:
    """Yield where a map ends or stops inside the image, farther from its end than any label of the training.

    That is to look at, and no sign of an implausible map: an image may reach beyond the structure.
    """
    for figure, where in (("empty_start", "first"), ("empty_end", "last")):
        missing, most = getattr(shape, figure), known_range(training, figure)[1]
        if missing > most + END_TOLERANCE:
            yield (
                f"it ends {missing} slices of the network's grid from the image's {where} "
                f"(in training at most {most:.0f})"
            )
    most = known_range(training, "gap")[1]
    if shape.gap > most:
        yield f"{shape.gap} slices of the network's grid are missing in it (in training at most {most:.0f})"


def flag_coverage(on_image: Map, names: Sequence[str], si_axis: int) -> list[Flagged]:
    """Flag maps (label, *space) that cover few slices of the image, on its own grid."""
    findings = []
    for name, soft_map in zip(names, on_image, strict=True):
        others = tuple(axis for axis in range(soft_map.ndim) if axis != si_axis)
        covered = int((soft_map.max(axis=others) > HARD_THRESHOLD).sum()) if soft_map.size else 0
        if 0 < covered < FEWEST_SLICES:
            why = f"{name} is found in {covered} slices only, of {soft_map.shape[si_axis]}"
            findings.append(Flagged(Flag.FEW_SLICES, why))
    return findings


def largest_component(soft_map: Map, threshold: float) -> npt.NDArray[np.bool_]:
    """Return the component (26 neighbours) of voxels above a threshold whose sum is the largest."""
    pieces, count = ndimage.label(soft_map > threshold, structure=np.ones((3,) * soft_map.ndim, dtype=bool))
    if not count:
        return np.zeros(soft_map.shape, dtype=bool)
    sums = ndimage.sum_labels(soft_map, pieces, np.arange(1, count + 1))
    return np.asarray(pieces == 1 + int(np.argmax(sums)))
