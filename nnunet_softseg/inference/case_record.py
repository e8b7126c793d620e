"""Record of a case on its way from image to soft map: options, times, boxes, warnings, for softseg.json.

It travels in the case's properties, which nnU-Net hands from preprocessing to export, across processes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_softseg.inference.options import PredictionOptions
from nnunet_softseg.inference.recentring import Placement
from nnunet_softseg.preprocessing.center_crop import Box

KEY = "nnunet_softseg"


@dataclass
class CaseRecord:
    """What is known of a case under way.

    Attributes:
        given_options: None until somebody has said how to predict it.
        image_files: one per channel; none for a case that came as an array.
        backend: names of what ran the network; several only if one has failed.
        seconds: by stage.
        labels: numbers by label.
        flags: words of `flags.Flag`.
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
        entry: dict[str, Any] = {
            "image": Path(self.image_files[0]).name if self.image_files else None,
            "backend": self.backend,
            "seconds": {stage: round(value, 3) for stage, value in self.seconds.items()},
            "labels": self.labels,
            "flags": self.flags,
            "warnings": self.warnings,
        }
        optional = {
            "localiser": self.localiser,
            "resampled_whole": self.resampled_whole,
            "overruled": list(self.options.overruled),
        }
        return entry | {name: value for name, value in optional.items() if value}
