"""Time of a training step against vanilla nnU-Net's, on the same plans, batch and network, in one run.

    python benchmarks/training_step.py --json step.json

All trainers take the same random batch in turn, so that whatever else the machine does falls on each. Printed
and written: median seconds of each, the ratio to vanilla's, peak memory, and what of the machine matters.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

FEATURES = {"demo": (8, 16, 32, 64), "paper": (32, 64, 128, 256, 320, 320)}
WARM_UP, LABELLED_SHARE, HARD_THRESHOLD = 3, 0.1, 0.5
PATCHES = {"demo": (64, 40, 32), "paper": (128, 96, 64)}


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


def make(trainer: type, size: str, device: str) -> Any:
    """Return an initialised trainer without data; only its step is run."""
    import torch

    dataset_json = {
        "labels": {"background": 0, "cord": 1},
        "channel_names": {"0": "MRI"},
        "file_ending": ".nii.gz",
    }
    with contextlib.redirect_stdout(io.StringIO()):
        made = trainer(plans(size), "3d_fullres", 0, dataset_json, torch.device(device))
        Path(made.preprocessed_dataset_folder).mkdir(parents=True, exist_ok=True)
        (Path(made.preprocessed_dataset_folder) / "case.b2nd").touch()  # tells nnU-Net the storage format
        made.initialize()
    made.network.train()
    return made


def batches(made: Any, size: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the same batch with an integer and with a soft target at every level."""
    import torch

    torch.manual_seed(0)
    data = torch.randn(2, 1, *PATCHES[size])
    soft, hard = [], []
    for scale in made._get_deep_supervision_scales():
        shape = [round(length * factor) for length, factor in zip(PATCHES[size], scale, strict=True)]
        level = torch.rand(2, 1, *shape) * (torch.rand(2, 1, *shape) < LABELLED_SHARE)
        soft.append(level)
        hard.append((level > HARD_THRESHOLD).to(torch.int16))
    return {"data": data, "target": hard}, {"data": data, "target": soft}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", choices=list(FEATURES), default="demo", help="network and patch (default: demo)"
    )
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each trainer (default: 30)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="default: cpu")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[name] = folder
        figures = measure(arguments.size, arguments.steps, arguments.device)
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(size: str, steps: int, device: str) -> dict[str, Any]:
    """Return median seconds per step of every trainer, and the ratio to vanilla's."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_softseg.training.trainer import nnUNetTrainerSoftSeg
    from nnunet_softseg.training.variants import nnUNetTrainerSoftSegRawLoss

    trainers = {
        cls.__name__: make(cls, size, device)
        for cls in (nnUNetTrainer, nnUNetTrainerSoftSeg, nnUNetTrainerSoftSegRawLoss)
    }
    hard, soft = batches(next(iter(trainers.values())), size)
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for step in range(steps + WARM_UP):
        for name, trainer in trainers.items():
            batch = hard if name == "nnUNetTrainer" else soft
            started = time.perf_counter()
            trainer.train_step(batch)
            if device == "cuda":
                torch.cuda.synchronize()
            if step >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    vanilla = seconds["nnUNetTrainer"]
    return {
        "size": size,
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "median_seconds": {name: round(statistics.median(values), 4) for name, values in seconds.items()},
        # Steps are paired in time: the median of ratios is steadier than the ratio of medians.
        "ratio_to_vanilla": {
            name: round(
                statistics.median(ours / theirs for ours, theirs in zip(values, vanilla, strict=True)), 4
            )
            for name, values in seconds.items()
        },
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


if __name__ == "__main__":
    main()
