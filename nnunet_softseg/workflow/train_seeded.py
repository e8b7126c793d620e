"""nnUNetv2_train with a seed: python train_seeded.py SEED ARGUMENTS OF nnUNetv2_train.

Trainers of nnU-Net's own have no seed; they train as they do.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

# At module level: spawned workers import this file again and need the hook, too.
from nnunet_softseg import registry, run


def train(seed: int, words: Sequence[str]) -> None:
    """Train by nnUNetv2_train with these words, `-tr` among them, and the seed in the trainer's settings."""
    name = words[words.index("-tr") + 1] if "-tr" in words else ""
    trainer: Any = registry.find(name) if name in registry.CLASSES else None
    if hasattr(trainer, "settings"):
        trainer.settings = dataclasses.replace(trainer.settings, seed=seed)
    run.run("nnUNetv2_train", words)


if __name__ == "__main__":
    train(int(sys.argv[1]), sys.argv[2:])
