"""Which backend was asked for, by its name; torch is not imported here."""

from typing import NamedTuple

from nnunet_softseg.errors import UserError
from nnunet_softseg.network import openvino_network
from nnunet_softseg.network.openvino_network import INSTALL

VARIABLE = "NNUNET_SOFTSEG_BACKEND"
ENGINES, PRECISIONS = ("openvino", "torch"), ("float32", "bfloat16")


class BackendChoice(NamedTuple):
    """Engine and precision that were asked for; None: the best that there is."""

    engine: str | None
    precision: str | None


def parse_choice(text: str) -> BackendChoice:
    """Return engine and precision by their names: `openvino-bfloat16`, `torch`, `auto`.

    Raises:
        UserError: for any other text, and for OpenVINO where it is not installed.
    """
    engine, _, precision = text.strip().lower().partition("-")
    if engine in ("", "auto") and not precision:
        return BackendChoice(None, None)
    if engine not in ENGINES or precision not in ("", *PRECISIONS):
        expected = ", ".join(["auto", *ENGINES, *(f"{e}-{p}" for e in ENGINES for p in PRECISIONS)])
        raise UserError(f"{VARIABLE} is {text!r}, expected one of {expected}")
    if engine == "openvino" and not openvino_network.installed():
        raise UserError(
            f"{VARIABLE} is {text!r}, but OpenVINO is not installed: {INSTALL}, or unset the variable"
        )
    return BackendChoice(engine, precision or None)
