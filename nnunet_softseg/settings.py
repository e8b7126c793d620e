"""Every number that a run of this project can be asked about, in one place, kept with the model."""

import dataclasses
import math
from collections.abc import Mapping
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
        for name, kind in get_type_hints(type(self)).items():
            known = get_args(kind) if get_origin(kind) is Literal else ()
            if known and getattr(self, name) not in known:
                expected = " or ".join(f'"{word}"' for word in known)
                raise UserError(f"setting {name}: expected {expected}, got {getattr(self, name)!r}")
        if self.seed is not None and self.seed < 0:
            raise UserError(f"setting seed: expected 0 or more, or None, got {self.seed}")
        if self.largest_zoom is not None and not 1 <= self.largest_zoom < math.inf:
            raise UserError(
                f"setting largest_zoom: expected a factor from 1 on, or None, got {self.largest_zoom}"
            )

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
