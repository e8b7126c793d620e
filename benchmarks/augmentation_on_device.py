"""Samples per second of the augmentation: on the device, and in 1, 2, 4, ... worker processes.

    python benchmarks/augmentation_on_device.py --device cuda --workers 2 4 8

Each worker and the device take noise of the size that nnU-Net loads for the patch, in turn. CPU seconds per
sample stand beside it: they hardly depend on what else the machine does.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

LABELS, WARM_UP = 1, 2
LARGEST_ANGLE_RAD = 0.5236


def pipelines(patch: list[int]) -> dict[str, Callable[[], "BasicTransform"]]:
    """Return name -> what makes the augmentation of a sample."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_softseg.training.augmentation.contrast import (
        ContrastAugmentationSettings,
        add_contrast_transforms,
    )
    from nnunet_softseg.training.augmentation.paper import PaperAugmentation, paper_transforms

    angles = (-LARGEST_ANGLE_RAD, LARGEST_ANGLE_RAD)
    stock = nnUNetTrainer.get_training_transforms
    mirror_axes = (0, 1, 2)
    return {
        "nnU-Net": lambda: stock(patch, angles, None, mirror_axes, False),
        "nnU-Net and contrast": lambda: add_contrast_transforms(
            stock(patch, angles, None, mirror_axes, False), ContrastAugmentationSettings()
        ),
        "paper": lambda: paper_transforms(PaperAugmentation(), patch, mirror_axes=mirror_axes),
    }


def loaded_size(patch: list[int]) -> list[int]:
    """Return how large a patch nnU-Net loads, so that none of it is padding after a rotation."""
    from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size

    angles = [(-LARGEST_ANGLE_RAD, LARGEST_ANGLE_RAD)] * 3
    return [int(length) for length in get_patch_size(patch, *angles, (0.85, 1.25))]


def in_worker(name: str, patch: list[int], samples: int) -> tuple[float, float]:
    """Return wall and CPU seconds that a process with one thread takes for so many samples."""
    from nnunet_softseg.training.dataloading import soft_transforms

    torch.set_num_threads(1)
    framed = soft_transforms(pipelines(patch)[name](), LABELS, None)
    stacked = torch.rand(1 + LABELS, *loaded_size(patch))

    def one() -> None:
        framed(image=stacked.clone(), segmentation=None)

    return timed(one, samples)


def on_device(name: str, patch: list[int], samples: int, device: str) -> tuple[float, float]:
    """Return wall and CPU seconds that the device takes for so many samples, two a batch."""
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

    from nnunet_softseg.training.augmentation.on_device import augment_batch, for_device
    from nnunet_softseg.training.dataloading import SoftTarget

    transform = ComposeTransforms([for_device(pipelines(patch)[name]()), SoftTarget(None)])
    batch = torch.rand(2, 1 + LABELS, *loaded_size(patch), pin_memory=device == "cuda")

    def one() -> None:
        there = batch.to(device, non_blocking=True)
        augment_batch(transform, there[:, :-LABELS], there[:, -LABELS:])
        if device == "cuda":
            torch.cuda.synchronize()

    return timed(one, samples // 2)


def timed(one: Callable[[], None], times: int) -> tuple[float, float]:
    """Return wall and CPU seconds of so many calls, the first few not counted."""
    for _ in range(WARM_UP):
        one()
    started, used = time.perf_counter(), time.process_time()
    for _ in range(times):
        one()
    return time.perf_counter() - started, time.process_time() - used


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--patch", type=int, nargs=3, default=[320, 192, 64], help="voxels (default: 320 192 64)")
    add("--samples", type=int, default=20, help="of each measurement (default: 20)")
    add("--workers", type=int, nargs="+", default=[1, 2], help="processes (default: 1 2)")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    asked = parser.parse_args()
    device = torch.cuda.get_device_name() if asked.device == "cuda" else asked.device
    print(f"patch {asked.patch}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {device}")
    print("| augmentation | where | samples/s | CPU seconds per sample |\n|---|---|---|---|")
    for name in pipelines(asked.patch):
        for number in asked.workers:
            with multiprocessing.get_context("spawn").Pool(number) as pool:
                jobs = [(name, asked.patch, asked.samples)] * number
                results = pool.starmap(in_worker, jobs, chunksize=1)
            wall, used = max(wall for wall, _ in results), sum(used for _, used in results)
            show(name, f"{number} workers", asked.samples * number, wall, used)
        show(
            name,
            asked.device,
            asked.samples // 2 * 2,
            *on_device(name, asked.patch, asked.samples, asked.device),
        )


def show(name: str, where: str, samples: int, wall: float, used: float) -> None:
    """Print a row."""
    print(f"| {name} | {where} | {samples / wall:.2f} | {used / samples:.3f} |", flush=True)


if __name__ == "__main__":
    main()
