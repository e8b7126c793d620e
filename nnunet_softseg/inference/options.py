"""Options of a prediction: given as arguments, or in the environment of nnU-Net's stock commands."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nnunet_softseg.errors import UserError

Localize = Literal["always", "auto", "never"]
VARIABLES = {
    "backend": "NNUNET_SOFTSEG_BACKEND",
    "localize": "NNUNET_SOFTSEG_LOCALIZE",
    "largest_piece": "NNUNET_SOFTSEG_LARGEST_PIECE",
    "discard_implausible": "NNUNET_SOFTSEG_DISCARD_IMPLAUSIBLE",
}
"""Environment variable of each option."""
_REMOVED = "NNUNET_SOFTSEG_KEEP_UNLIKELY"
_SWITCHES = {
    "largest_piece": "keep the largest piece of each label",
    "discard_implausible": "empty maps flagged as unlike every label of the training",
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
        overruled: environment variables that say something else than an argument, one note each.
    """

    backend: str = "auto"
    localize: Localize = "auto"
    largest_piece: bool = False
    discard_implausible: bool = False
    overruled: tuple[str, ...] = ()

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str], **arguments: str | bool | None
    ) -> "PredictionOptions":
        """Return the options by arguments, and where one is None or False, by environment variables.

        Args:
            environment: variables and their values; an empty value counts as none.
            arguments: options by name.

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
