"""Cost of the augmentation against nnU-Net's own, on the same patch, in one run.

    python benchmarks/augmentation.py --size demo --samples 200 --json augmentation.json
    python benchmarks/augmentation.py --size paper --samples 40 --labels 14

Two things are timed, with one thread, the candidates taking samples in turn:

- transforms: loaded patch in memory -> augmented patch with its targets for deep supervision;
- loaders: case on disk -> sample of a batch, the loader and the augmentation of a trainer.

The candidates: nnU-Net with its integer label; our trainer with nnU-Net's augmentation, and with the
paper's. Each counts the processor's time, so that what else the machine does falls on nobody. Printed and
written: mean seconds a sample, samples a second and core, the ratio to nnU-Net's, and the peak memory of
each loader in a process of its own.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training_step import dataset_json, peak_gb, plans, segments

PATCHES = {"demo": (64, 40, 32), "paper": (320, 192, 64)}
CASES_MM = {"demo": (96, 96, 96), "paper": (320, 256, 192)}
LEVELS = {"demo": 4, "paper": 5}
CANDIDATES = {
    "nnUNetTrainer": "nnunetv2.training.nnUNetTrainer.nnUNetTrainer",
    "nnUNetTrainerSoftSeg": "nnunet_softseg.training.trainer",
    "nnUNetTrainerSoftSegPaperAug": "nnunet_softseg.training.variants",
}
WARM_UP, HARD_THRESHOLD, NUM_CASES = 3, 0.5, 4
FEWEST_SAMPLES = 4
"""Loaders are timed on half as many batches, and an error takes two."""


def trainer_plans(size: str) -> dict[str, Any]:
    """Return plans of a 3d configuration with the patch of that size; the network is never made."""
    made = plans("demo")
    configuration = made["configurations"]["3d_fullres"]
    levels = LEVELS[size]
    configuration["patch_size"] = list(PATCHES[size])
    configuration["architecture"]["arch_kwargs"].update(
        n_stages=levels, strides=[[1, 1, 1]] + [[2, 2, 2]] * (levels - 1)
    )
    return made


def write_cases(folder: Path, size: str, labels: int) -> None:
    """Write preprocessed cases with soft and integer labels, as nnU-Net and the trainer store them."""
    import numpy as np
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    from nnunet_softseg.preprocessing.preparation import (
        drawn_voxels,
        soft_target_folder,
        write_soft_target,
    )

    soft_target_folder(folder).mkdir(parents=True)
    folder.mkdir(parents=True)
    shape = CASES_MM[size]
    rng = np.random.default_rng(0)
    for index in range(NUM_CASES):
        z, y, x = np.meshgrid(*[np.arange(n, dtype=np.float32) for n in shape], indexing="ij", sparse=True)
        bent = y - shape[1] / 2 - 8 * np.sin(z / shape[0] * 3)
        soft = segments(np.sqrt(bent**2 + (x - shape[2] / 2) ** 2), labels)
        image = (soft.sum(0, keepdims=True) + rng.normal(0, 0.3, (1, *shape))).astype(np.float32)
        image = (image - image.mean()) / image.std()
        hard = label_map(soft)
        located = {number: np.argwhere(hard == number)[::7][:10000] for number in range(1, labels + 1)}
        properties = {"class_locations": located}
        options = {
            f"{kind}{suffix}": value
            for suffix, array in (("", image), ("_seg", hard))
            for kind, value in zip(
                ("blocks", "chunks"),
                comp_blosc2_params(array.shape, PATCHES[size], array.itemsize),
                strict=True,
            )
        }
        case = f"case_{index}"
        nnUNetDatasetBlosc2.save_case(image, hard, properties, str(folder / case), **options)
        target = soft.astype(np.float16)
        record = {"drawn_voxels": [voxels.tobytes() for voxels in drawn_voxels(target)]}
        write_soft_target(soft_target_folder(folder) / f"{case}.b2nd", target, record, PATCHES[size])


def label_map(soft: Any) -> Any:
    """Return the label map (1, *space) of soft labels (label, *space), 0 the background."""
    import numpy as np

    return np.where(soft.max(0) > HARD_THRESHOLD, soft.argmax(0) + 1, 0).astype(np.int8)[None]


def make(name: str, size: str, labels: int) -> Any:
    """Return a trainer that can load batches; its network is not built."""
    import importlib

    import torch

    from nnunet_softseg.settings import PLANS_KEY

    cls = getattr(importlib.import_module(CANDIDATES[name]), name)
    with contextlib.redirect_stdout(io.StringIO()):
        made = cls(trainer_plans(size), "3d_fullres", "all", dataset_json(labels), torch.device("cpu"))
    made._set_batch_size_and_oversample()
    if PLANS_KEY in made.plans_manager.plans:
        made.plans_manager.plans[PLANS_KEY]["si_axis"] = 0
    return made


def transform_of(name: str, size: str, labels: int) -> Callable[[], Any]:
    """Return a function that takes a loaded patch of noise and labels through the transforms of a trainer."""
    import numpy as np
    import torch

    made = make(name, size, labels)
    with contextlib.redirect_stdout(io.StringIO()):
        rotation, in_plane, initial, mirror_axes = (
            made.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
    transforms = made.get_training_transforms(
        made.configuration_manager.patch_size,
        rotation,
        made._get_deep_supervision_scales(),
        mirror_axes,
        in_plane,
        use_mask_for_norm=[False],
        foreground_labels=list(range(1, labels + 1)),
    )
    image = torch.randn(1, *initial)
    _, y, x = np.meshgrid(*[np.arange(n) - n / 2 for n in initial], indexing="ij")
    soft = segments(np.hypot(y, x), labels)
    vanilla = name == "nnUNetTrainer"
    loaded = image if vanilla else torch.cat([image, torch.from_numpy(soft)])
    segmentation = torch.from_numpy(label_map(soft)).to(torch.int16)

    def sample() -> Any:
        with torch.no_grad():
            return transforms(image=loaded.clone(), segmentation=segmentation.clone() if vanilla else None)

    return sample


def loader_of(name: str, size: str, labels: int) -> Callable[[], Any]:
    """Return a function that gives a batch."""
    made = make(name, size, labels)
    with contextlib.redirect_stdout(io.StringIO()):
        training, _ = made.get_dataloaders()
    return lambda: next(training)


def in_turn(candidates: dict[str, Callable[[], Any]], number: int, per_call: int) -> dict[str, Any]:
    """Return the mean processor time a sample of each, and its ratio to nnU-Net's.

    All start every sample from the same state of the random numbers: nnU-Net's transforms then do the same in
    each, and what is rare and slow is in all or in none.
    """
    import numpy as np
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for step in range(number + WARM_UP):
        for name, sample in candidates.items():
            np.random.seed(step)
            torch.manual_seed(step)
            started = time.process_time()
            sample()
            if step >= WARM_UP:
                seconds[name].append((time.process_time() - started) / per_call)
    # Means, as a transform that is rare and slow counts too.
    means = {name: statistics.fmean(values) for name, values in seconds.items()}
    vanilla = means["nnUNetTrainer"]
    # Of the ratio, from the spread of what is left when each sample's time is compared with nnU-Net's of it.
    errors = {}
    for name, values in seconds.items():
        ratio = means[name] / vanilla
        left = [ours - ratio * theirs for ours, theirs in zip(values, seconds["nnUNetTrainer"], strict=True)]
        errors[name] = statistics.stdev(left) / len(left) ** 0.5 / vanilla
    return {
        name: {
            "seconds_per_sample": round(means[name], 4),
            "samples_per_second_and_core": round(1 / means[name], 3),
            "cost_ratio_to_nnunet": round(means[name] / vanilla, 3),
            "standard_error_of_ratio": round(errors[name], 3),
        }
        for name in candidates
    }


def peak_of_loader(name: str, size: str, labels: int, batches: int) -> float:
    """Return the peak memory, in GB, of a process of its own that loads so many batches."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_load, (name, size, labels, batches))


def _load(name: str, size: str, labels: int, batches: int) -> float:
    import torch

    torch.set_num_threads(1)
    load = loader_of(name, size, labels)
    for _ in range(batches):
        load()
    return peak_gb()


def measure(size: str, samples: int, labels: int) -> dict[str, Any]:
    """Return all figures of a size; nnU-Net's folders must be set."""
    import torch

    torch.set_num_threads(1)
    folder = Path(os.environ["nnUNet_preprocessed"]) / "Dataset999_Benchmark" / "benchmark"
    write_cases(folder, size, labels)
    load = os.getloadavg()[0]
    return {
        "size": size,
        "labels": labels,
        "patch": PATCHES[size],
        "samples": samples,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "load": round(load, 1),
        "transforms": in_turn({name: transform_of(name, size, labels) for name in CANDIDATES}, samples, 1),
        "loaders": in_turn({name: loader_of(name, size, labels) for name in CANDIDATES}, samples // 2, 2),
        "peak_gb_of_loader": {name: peak_of_loader(name, size, labels, 10) for name in CANDIDATES},
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(PATCHES), default="demo", help="patch (default: demo)")
    parser.add_argument("--samples", type=int, default=100, help="timed samples of each (default: 100)")
    parser.add_argument("--labels", type=int, default=1, help="number of labels (default: 1)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    if arguments.samples < FEWEST_SAMPLES:
        parser.error(f"--samples: expected {FEWEST_SAMPLES} or more, found {arguments.samples}")
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[name] = folder
        os.environ["nnUNet_n_proc_DA"] = "0"
        dataset = Path(folder) / "Dataset999_Benchmark"
        dataset.mkdir()
        (dataset / "dataset.json").write_text("{}", encoding="utf-8")
        figures = measure(arguments.size, arguments.samples, arguments.labels)
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
