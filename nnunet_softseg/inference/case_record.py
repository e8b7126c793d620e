"""Options of a prediction, and the record of a case under way: times, boxes, warnings, for softseg.json.

The record travels in the case's properties, which nnU-Net hands from preprocessing to export.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from nnunet_softseg.errors import UserError
from nnunet_softseg.preprocessing.center_crop import Box

if TYPE_CHECKING:  # its import loads torch, for which nobody should wait who has made a mistake
    from nnunet_softseg.inference.recentring import Placement, WholeImage

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
_REMOVED = "NNUNET_SOFTSEG_KEEP_UNLIKELY"
_SWITCHES = {
    "largest_piece": "keep the largest piece of each label",
    "discard_implausible": "empty maps flagged as unlike every label of the training",
    "calibrate": "calibrate maps as the model's calibration says",
    "no_qc": "make no qc/index.html",
}


@dataclass(frozen=True)
class PredictionOptions:
    """How images are predicted, beyond what the model says.

    Attributes:
        backend: runs the network: auto, torch, openvino, or one of them with a precision (torch-float32).
        localize: "always" or "never" look for the structure off the centre; "auto": where the centre of the
            image shows none, or one that is cut.
        largest_piece: keep only the largest component of each label, its values as they are.
        discard_implausible: empty a map that is flagged as unlike every label of the training.
        calibrate: map the values of soft maps as the calibration kept with the model says.
        no_qc: make no page of pictures, qc/index.html.
        overruled: environment variables that say something else than an argument, one note each.
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
                chosen[name] = _switch(name, word) if name in _SWITCHES else word
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


def _switch(name: str, word: str) -> bool:
    if word not in ("0", "1"):
        raise UserError(f"{VARIABLES[name]}: expected 1 ({_SWITCHES[name]}) or 0, found {word!r}")
    return word == "1"


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
        flags: words of `postprocessing.Flag`.
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
    read_whole: "Callable[[], WholeImage] | None" = None
    backend: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    labels: dict[str, dict[str, Any]] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    network_shape: tuple[int, ...] | None = None
    box: Box | None = None
    central_box: Box | None = None
    is_placed: bool = False
    placement: "Placement | None" = None
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
