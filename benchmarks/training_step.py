"""Time of a training step against vanilla nnU-Net's, on the same plans, batch and network, in one run.

    python benchmarks/training_step.py --json step.json
    python benchmarks/training_step.py --labels 14

All trainers take the same batch in turn, so that whatever else the machine does falls on each. Printed and
written: median seconds of a step and processor time of its loss (forward and backward), each with the ratio
to vanilla's; the peak memory of each trainer in a process of its own; and what of the machine matters.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FEATURES = {"demo": (8, 16, 32, 64), "paper": (32, 64, 128, 256, 320, 320)}
WARM_UP, HARD_THRESHOLD, RADIUS = 3, 0.5, 6.0
PATCHES = {"demo": (64, 40, 32), "paper": (128, 96, 64)}
TRAINERS = {
    "nnUNetTrainer": "nnunetv2.training.nnUNetTrainer.nnUNetTrainer",
    "nnUNetTrainerSoftSeg": "nnunet_softseg.training.trainer",
    "nnUNetTrainerSoftSegRawLoss": "nnunet_softseg.training.variants",
}


def plans(size: str) -> dict[str, Any]:
    """Return the plans of one 3d configuration, as nnU-Net writes them."""
    features = FEATURES[size]
    stages = len(features)
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "benchmark",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(PATCHES[size]),
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": False,
        **{
            f"resampling_fn_{kind}": "resample_data_or_seg_to_shape"
            for kind in ("data", "seg", "probabilities")
        },
        **{f"resampling_fn_{kind}_kwargs": resampling for kind in ("data", "seg", "probabilities")},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": features,
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[3, 3, 3]] * stages,
                "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
                "n_conv_per_stage": [2] * stages,
                "n_conv_per_stage_decoder": [2] * (stages - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": "Dataset999_Benchmark",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "NibabelIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "configurations": {"3d_fullres": configuration},
        "continue_training": False,
    }


def dataset_json(labels: int) -> dict[str, Any]:
    """Return the description of a dataset of one channel and so many labels."""
    numbers = {f"label_{number}": number for number in range(1, labels + 1)}
    return {
        "labels": {"background": 0, **numbers},
        "channel_names": {"0": "MRI"},
        "file_ending": ".nii.gz",
    }


def segments(distance: Any, labels: int) -> Any:
    """Return soft labels (label, *space): a tube cut along the first axis into as many pieces.

    The distance (*space) is that from its middle line, in voxels.
    """
    import numpy as np

    tube = np.clip((RADIUS - distance) / 2 + 0.5, 0, 1).astype(np.float32)
    soft = np.zeros((labels, *tube.shape), dtype=np.float32)
    for piece, rows in enumerate(np.array_split(np.arange(len(tube)), labels)):
        soft[piece, rows] = tube[rows]
    return soft


def make(name: str, size: str, labels: int, device: str) -> Any:
    """Return an initialised trainer without data; only its step is run."""
    import importlib

    import torch

    trainer = getattr(importlib.import_module(TRAINERS[name]), name)
    with contextlib.redirect_stdout(io.StringIO()):
        made = trainer(plans(size), "3d_fullres", 0, dataset_json(labels), torch.device(device))
        Path(made.preprocessed_dataset_folder).mkdir(parents=True, exist_ok=True)
        (Path(made.preprocessed_dataset_folder) / "case.b2nd").touch()  # tells nnU-Net the storage format
        made.initialize()
    made.network.train()
    return made


def batches(made: Any, size: str, labels: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the same batch with an integer and with a soft target at every level."""
    import numpy as np
    import torch
    from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform

    from nnunet_softseg.training.dataloading import average_down

    torch.manual_seed(0)
    data = torch.randn(2, 1, *PATCHES[size])
    _, y, x = np.meshgrid(*[np.arange(n) - n / 2 for n in PATCHES[size]], indexing="ij")
    label = torch.from_numpy(segments(np.hypot(y, x), labels))
    largest, number = label.max(0)
    label_map = torch.where(largest > HARD_THRESHOLD, number + 1, 0)[None].to(torch.int16)
    scales = made._get_deep_supervision_scales()
    soft = [torch.stack([level, level]) for level in average_down(label, scales)]
    hard = DownsampleSegForDSTransform(scales)(segmentation=label_map)["segmentation"]
    return {"data": data, "target": [torch.stack([level, level]) for level in hard]}, {
        "data": data,
        "target": soft,
    }


def step_of(name: str, size: str, labels: int, device: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return functions that take a whole training step, and that take the loss and its gradient alone."""
    made = make(name, size, labels, device)
    hard, soft = batches(made, size, labels)
    batch = hard if name == "nnUNetTrainer" else soft
    return lambda: made.train_step(batch), loss_of(made, batch)


def loss_of(made: Any, batch: dict[str, Any]) -> Callable[[], Any]:
    """Return a function that takes the loss of a fixed output of the network, and its gradient."""
    import torch

    with torch.no_grad():
        outputs = [level.clone() for level in made.network(batch["data"].to(made.device))]
    targets = [level.to(made.device) for level in batch["target"]]

    def loss() -> None:
        made.loss([level.detach().requires_grad_() for level in outputs], targets).backward()

    return loss


def in_turn(
    functions: dict[str, Callable[[], Any]], number: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Return the median time of each function and its ratio to vanilla's; each number of times, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for step in range(number + WARM_UP):
        for name, function in functions.items():
            started = clock()
            function()
            if step >= WARM_UP:
                seconds[name].append(clock() - started)
    vanilla = seconds["nnUNetTrainer"]
    # Steps are paired in time: the median of ratios is steadier than the ratio of medians.
    return {
        name: {
            "median_seconds": round(statistics.median(values), 4),
            "ratio_to_vanilla": round(
                statistics.median(ours / theirs for ours, theirs in zip(values, vanilla, strict=True)), 4
            ),
        }
        for name, values in seconds.items()
    }


def peak_of_step(name: str, size: str, labels: int) -> float:
    """Return the peak memory of a process of its own that takes steps on the CPU, in GB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_steps, (name, size, labels))


def _steps(name: str, size: str, labels: int) -> float:
    step, _ = step_of(name, size, labels, "cpu")
    for _ in range(3):
        step()
    return peak_gb()


def peak_gb() -> float:
    """Return the peak memory of this process; what getrusage tells on Linux is at least its parent's."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return round(int(line.split()[1]) / 2**20, 3)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)


def measure(size: str, steps: int, labels: int, device: str) -> dict[str, Any]:
    """Return the figures of every trainer; nnU-Net's folders must be set."""
    import torch

    steps_of, losses = {}, {}
    for name in TRAINERS:
        steps_of[name], losses[name] = step_of(name, size, labels, device)

    def waiting(function: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: (function(), torch.cuda.synchronize()) if device == "cuda" else function()

    clock = time.perf_counter if device == "cuda" else time.process_time
    return {
        "size": size,
        "labels": labels,
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "step": in_turn({name: waiting(each) for name, each in steps_of.items()}, steps, time.perf_counter),
        "loss": in_turn({name: waiting(each) for name, each in losses.items()}, steps, clock),
        "peak_gb": {name: peak_of_step(name, size, labels) for name in TRAINERS},
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", choices=list(FEATURES), default="demo", help="network and patch (default: demo)"
    )
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each trainer (default: 30)")
    parser.add_argument("--labels", type=int, default=1, help="number of labels (default: 1)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="default: cpu")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[name] = folder
        figures = measure(arguments.size, arguments.steps, arguments.labels, arguments.device)
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
