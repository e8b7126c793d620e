"""Every number that a run of this project can be asked about, in one place, kept with the model."""

import dataclasses
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nnunet_softseg.errors import UserError

PLANS_KEY = "nnunet_softseg"
"""Where the settings stand in the plans that a trainer saves beside its model."""
HARD_THRESHOLD = 0.5
"""A label map is soft map > this, everywhere; not a setting, as label maps of users are compared with it."""
SEED_VARIABLE = "NNUNET_SOFTSEG_SEED"
"""Environment variable that sets a training's seed, as nnU-Net's command takes no other argument for it."""
CROP_LOSS_WARNING = 0.01
"""A case is named if the fixed patch, or nnU-Net's own crop, loses more than this fraction of a label."""


@dataclasses.dataclass(frozen=True)
class SoftSegSettings:
    """How a soft segmentation model is trained and how its raw output becomes a soft map.

    Attributes:
        center_crop: the network sees the patch around the centre in R-L and A-P; False: patches wherever
            nnU-Net puts them.
        adaptive_exponent: of the adaptive wing loss: alpha - target, as its authors and the published code;
            False: alpha alone, as Bedard et al. 2025 print it.
        loss_reduction: "sum" or "mean" over voxels and batch; of the sum, clipping leaves the direction only.
        augmentation: "nnunet", its own, or "paper", of Bedard et al. 2025.
        largest_zoom: with a fixed patch, nnU-Net's augmentation shows structures at up to so many times their
            length. None: at its own 1.43, as without one.
        seed: of weights, patches and augmentation; the first batches are the same where there is one worker
            (nnUNet_n_proc_DA of 0 or 1). None: a new one each time.
        optimizer: "adam" with cosine annealing to 0, or "sgd", nnU-Net's own with its schedule.
        initial_lr: learning rate at the first step.
        weight_decay: of the optimiser.
        num_epochs: of so many iterations each.
        iterations_per_epoch: training batches.
        validation_iterations_per_epoch: batches of the online validation.
        save_every: epochs between checkpoints to resume from.
        reference_momentum: of the running mean of the raw output's robust peak over patches with a label.
        floor_fraction: smallest denominator of NormReLU, as a fraction of that running mean.
        output_scale: "case": the peak of each map is that of the labels; "fixed": one scale for all cases;
            "auto": fixed without a fixed patch, else chosen for each label by the labels of the training.
        core_threshold: a component of the soft map must exceed this somewhere, or it is background. None:
            chosen for each label by the labels of the training; 0.5 where each of their components reaches 1.
        support_threshold: what is connected to a core through values above this keeps its value; the rest is
            background. None: chosen likewise, at most 0.05.
        to_image_grid: how soft maps come from the network's grid to the image's: "linear"; "fractions" of
            voxels, on a finer image, of labels whose softness is partial volume; "inverse" of the
            interpolation, on a coarser image, of small structures; "fractions and inverse"; "auto": as the
            training labels come back.
        collapse_patience: epochs of empty output on labelled patches after which training stops.
    """

    center_crop: bool = True
    adaptive_exponent: bool = False
    loss_reduction: Literal["mean", "sum"] = "sum"
    augmentation: Literal["nnunet", "paper"] = "nnunet"
    largest_zoom: float | None = 2.0
    seed: int | None = None
    optimizer: Literal["adam", "sgd"] = "adam"
    initial_lr: float = 1e-3
    weight_decay: float = 0.0
    num_epochs: int = 200
    iterations_per_epoch: int = 250
    validation_iterations_per_epoch: int = 50
    save_every: int = 50
    reference_momentum: float = 0.99
    floor_fraction: float = 0.5
    output_scale: Literal["auto", "case", "fixed"] = "auto"
    core_threshold: float | None = None
    support_threshold: float | None = None
    to_image_grid: Literal["auto", "linear", "fractions", "inverse", "fractions and inverse"] = "auto"
    collapse_patience: int = 10

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(SoftSegSettings).items():  # a subclass checks its own
            value = getattr(self, name)
            if not _fits(name, kind, value):
                raise UserError(f"setting {name}: expected {_expected(name, kind)}, got {value!r}")

    def with_environment(self, environment: Mapping[str, str]) -> "SoftSegSettings":
        """Return the settings, with the seed that NNUNET_SOFTSEG_SEED gives, where it is set."""
        word = environment.get(SEED_VARIABLE, "")
        if not word:
            return self
        if not (word.isascii() and word.isdigit()):
            raise UserError(
                f"{SEED_VARIABLE}: expected a whole number from 0 on, found {word!r}: correct it, or unset it"
            )
        return dataclasses.replace(self, seed=int(word))

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_plans(cls, plans: Mapping[str, Any]) -> "SoftSegSettings":
        """Return the settings that a model was trained with, without keys that only later versions know."""
        stored = plans.get(PLANS_KEY, {}).get("settings", {})
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in stored.items() if name in known})


_RANGES: dict[str, tuple[float, float]] = {
    "largest_zoom": (1, math.inf),
    "seed": (0, math.inf),
    "initial_lr": (0, math.inf),
    "weight_decay": (0, math.inf),
    "num_epochs": (1, math.inf),
    "iterations_per_epoch": (1, math.inf),
    "validation_iterations_per_epoch": (1, math.inf),
    "save_every": (1, math.inf),
    "reference_momentum": (0, 1),
    "floor_fraction": (0, math.inf),
    "core_threshold": (0, 1),
    "support_threshold": (0, 1),
    "collapse_patience": (1, math.inf),
}
"""Of a setting that is a number: the least, and what it must stay below."""


def _choices(kind: Any) -> tuple[Any, ...]:
    """Return the values of a setting that is no number."""
    if kind is bool:
        return True, False
    return get_args(kind) if get_origin(kind) is Literal else ()


def _fits(name: str, kind: Any, value: Any) -> bool:
    if choices := _choices(kind):
        return any(type(value) is type(one) and value == one for one in choices)
    number, *none = get_args(kind) or (kind,)
    if value is None:
        return bool(none)
    lowest, below = _RANGES[name]
    is_number = isinstance(value, Integral if number is int else Real) and not isinstance(value, bool)
    return bool(is_number and lowest <= value < below)


def _expected(name: str, kind: Any) -> str:
    if choices := _choices(kind):
        return " or ".join(f'"{one}"' if isinstance(one, str) else str(one) for one in choices)
    number, *none = get_args(kind) or (kind,)
    lowest, below = _RANGES[name]
    within = f"from {lowest:g} on" if below == math.inf else f"from {lowest:g} to less than {below:g}"
    return f"a {'whole ' if number is int else ''}number {within}{', or None' if none else ''}"
