"""Inference of vanilla nnU-Net against ours: same image, same network, same plans, in one run, on the CPU.

    python benchmarks/inference.py --json inference.json

The image is a phantom of 192 x 260 x 320 mm at 1 mm, the network that of Bedard et al. 2025 (32 to 320
features, patch 64 x 192 x 320 voxels). Its weights are random, as they do not change the time, and its bias
is such that the map has about as many voxels as a cord; no localiser looks for one. Or give a trained model
with --model.

Ours is timed as users run it: the stock command for one image in a new process, with an empty cache and with
a filled one, and `nnunet-softseg predict` for a cohort, and for one of images that show more around the box
that the network sees: they should take no longer than it takes to read what is more. Without PyTorch and
nnU-Net, one image in a new process: by the ready model (`cold_seconds`), and by the network exported to one
file (`cold_exported_seconds`). With the narrow patch of SoftSegCordPlanner, in the same widths, a cohort
again (`cohort_narrow_seconds`, of an image). Vanilla is timed in its stages: preprocessing and export once,
one tile; its total is tiles x seconds of a tile, extrapolated, with mirroring (8 passes a tile) and without.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from training_step import plans

from nnunet_softseg.inference.trained_model import READY_MODEL

FEATURES = (32, 64, 128, 256, 320)
PATCH_SIZE = (320, 192, 64)  # S-I, A-P, R-L, as nnU-Net's reader orders them
NARROW_PATCH_SIZE = (320, 96, 48)  # SoftSegCordPlanner's
FOV_MM = (192, 260, 318)  # the phantom adds a millimetre at either end along S-I
WIDER_FOV_MM = (320, 320, 318)
DATASET, CONFIGURATION, TRAINER = "Dataset999_Benchmark", "3d_fullres", "nnUNetTrainerSoftSeg"
MIRRORED_PASSES, CORD_SHARE = 8, 0.006
KIB_PER_GIB = 2**20


def paper_plans(features: Sequence[int], patch_size: Sequence[int]) -> dict[str, Any]:
    """Return vanilla plans with the paper's network and patch."""
    made = plans("paper")
    made["image_reader_writer"] = "NibabelIOWithReorient"
    made["foreground_intensity_properties_per_channel"] = {"0": {}}  # z-scores need none
    configuration = made["configurations"][CONFIGURATION]
    configuration["patch_size"] = list(patch_size)
    configuration["resampling_fn_data_kwargs"] = {
        "is_seg": False,
        "order": 3,
        "order_z": 0,
        "force_separate_z": None,
    }
    stages = len(features)
    configuration["architecture"]["arch_kwargs"].update(
        n_stages=stages,
        features_per_stage=list(features),
        kernel_sizes=[[3, 3, 3]] * stages,
        strides=[[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        n_conv_per_stage=[2] * stages,
        n_conv_per_stage_decoder=[2] * (stages - 1),
    )
    return made


def make_image(folder: Path, fov_mm: Sequence[float]) -> Path:
    """Write a T1w phantom as a case of nnU-Net's."""
    import nibabel as nib

    from nnunet_softseg.phantom.acquisition import PhantomSpec, simulate

    folder.mkdir(parents=True)
    simulated = simulate(PhantomSpec(fov_mm=tuple(map(float, fov_mm)), contrasts=("T1w",)), 1, "T1w")
    file = folder / "sub-01_T1w_0000.nii.gz"
    nib.save(nib.Nifti1Image(simulated.image, simulated.affine), file)
    return file


def make_model(folder: Path, made: Mapping[str, Any], image: Path) -> None:
    """Write a model of ours with random weights, as nnU-Net lays it out."""
    import torch
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_softseg.network.of_plans import running_scale
    from nnunet_softseg.network.soft_map import robust_peak
    from nnunet_softseg.preprocessing.model_plans import soft_plans
    from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings
    from nnunet_softseg.training.trainer import nnUNetTrainerSoftSeg

    entries = soft_plans(made, TRAINER, SoftSegSettings())
    entries[PLANS_KEY].update(si_axis=0, orientation="SAR")
    manager = PlansManager(entries)
    configuration = manager.get_configuration(CONFIGURATION)
    torch.manual_seed(0)
    network = nnUNetTrainerSoftSeg.build_network_architecture(manager, configuration, 1, 1, False).eval()
    patch = central_patch(image, configuration.patch_size)
    with torch.inference_mode():
        raw = network(patch[None])
    with torch.no_grad():
        sample = raw.flatten()[:: max(1, raw.numel() // 2**20)]
        network.decoder.seg_layers[-1].bias -= torch.quantile(sample, 1 - CORD_SHARE)
        running_scale(network).copy_(robust_peak(raw).flatten())
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(entries), encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps(dataset_json()), encoding="utf-8")
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": TRAINER,
        "init_args": {"configuration": CONFIGURATION},
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")


def dataset_json() -> dict[str, Any]:
    """Return the description of a dataset with one channel and one label."""
    return {
        "labels": {"background": 0, "cord": 1},
        "channel_names": {"0": "MRI"},
        "file_ending": ".nii.gz",
        "numTraining": 1,
    }


def central_patch(image: Path, patch_size: Sequence[int]) -> Any:
    """Return the patch around the centre of an image of 1 mm, (channel, *space)."""
    import torch
    from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

    data, _ = NibabelIOWithReorient().read_images([str(image)])
    data = (data - data.mean()) / data.std()
    starts = [(size - patch) // 2 for size, patch in zip(data.shape[1:], patch_size, strict=True)]
    box = [[start, start + patch] for start, patch in zip(starts, patch_size, strict=True)]
    return crop_and_pad_nd(torch.from_numpy(data), box)


def vanilla(folder: Path, made: Mapping[str, Any], image: Path, repeats: int) -> dict[str, Any]:
    """Return the seconds of vanilla nnU-Net's stages on this image; the total is extrapolated from a tile."""
    import numpy as np
    import torch
    from nnunetv2.inference.export_prediction import export_prediction_from_logits
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(dict(made))
    configuration = manager.get_configuration(CONFIGURATION)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    network = nnUNetTrainer.build_network_architecture(manager, configuration, 1, 2, False).eval()
    axes = (0, 1, 2)
    predictor.manual_initialization(
        network, manager, configuration, None, dataset_json(), "nnUNetTrainer", axes
    )
    preprocess, case = timed(
        lambda: DefaultPreprocessor(verbose=False).run_case(
            [str(image)], None, manager, configuration, dataset_json()
        )
    )
    data, _, properties = case
    tiles = predictor._internal_get_sliding_window_slicers(data.shape[1:])
    part = torch.as_tensor(np.ascontiguousarray(data[tiles[0]]))[None]
    with torch.inference_mode():
        network(part)  # the first pass is slower
        tile = statistics.median(timed(lambda: network(part))[0] for _ in range(repeats))
    logits = np.zeros((2, *data.shape[1:]), dtype=np.float32)
    target = str(folder / "vanilla")
    export, _ = timed(
        lambda: export_prediction_from_logits(
            logits,
            properties,
            configuration,
            manager,
            dataset_json(),
            target,
            num_threads_torch=os.cpu_count(),
        )
    )
    forward = len(tiles) * tile
    return {
        "patch_size": list(configuration.patch_size),
        "tiles": len(tiles),
        "seconds_per_tile": round(tile, 3),
        "preprocess": round(preprocess, 2),
        "export": round(export, 2),
        "forward_extrapolated": round(forward, 1),
        "forward_mirrored_extrapolated": round(MIRRORED_PASSES * forward, 1),
        # Preprocessing and export run beside the network in a cohort: they are left out in vanilla's favour.
        "seconds_per_image": {
            "default": round(MIRRORED_PASSES * forward, 1),
            "disable_tta": round(forward, 1),
        },
    }


def timed(work: Any) -> tuple[float, Any]:
    """Return (seconds, result)."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def in_a_new_process(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, float]:
    """Run a command and return its wall and CPU seconds and its peak memory.

    Raises:
        RuntimeError: if it fails, with the end of what it printed.
    """
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(  # its memory is asked of wait4, which subprocess.run hides
            command, env={**os.environ, **environment}, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{command[0]} failed: {output.read().decode(errors='replace')[-3000:]}")
    return {
        "wall_seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_gb": round(usage.ru_maxrss / KIB_PER_GIB, 2),
    }


def cold_start(model: Path, image: Path, output: Path, environment: Mapping[str, str]) -> dict[str, float]:
    """Return what the stock command takes for one image."""
    parts = model.name.split("__")
    named = ["-d", model.parent.name, "-tr", parts[0], "-p", parts[1], "-c", parts[2], "-f", "0"]
    command = [beside_python("nnUNetv2_predict"), "-i", str(image.parent), "-o", str(output), *named]
    return in_a_new_process([*command, "-device", "cpu"], environment)


def cold_file(model: Path | None, image: Path, output: Path, environment: Mapping[str, str]) -> float:
    """Return the seconds of one image in a new process, by a model in one file; None: the ready one."""
    command = [beside_python("nnunet-softseg"), "predict", "-i", str(image), "-o", str(output)]
    named = [] if model is None else ["-m", str(model)]
    return in_a_new_process([*command, *named], environment)["wall_seconds"]


def cohort(
    model: Path, image: Path, folder: Path, environment: Mapping[str, str], size: int
) -> dict[str, Any]:
    """Return what `nnunet-softseg predict` takes for many images, and for one of them in its midst."""
    images, output = folder / "images", folder / "predictions"
    images.mkdir(parents=True)
    for number in range(size):
        shutil.copy(image, images / f"sub-{number + 1:02d}_T1w_0000.nii.gz")
    command = [beside_python("nnunet-softseg"), "predict", "-i", str(images), "-o", str(output)]
    used = in_a_new_process([*command, "-m", str(model), "-device", "cpu"], environment)
    written = sorted(file.stat().st_mtime for file in output.glob("*.nii.gz"))
    cases = json.loads((output / "softseg.json").read_text(encoding="utf-8"))["cases"].values()
    stages = {name: [case["seconds"][name] for case in cases] for name in next(iter(cases))["seconds"]}
    return {
        "images": size,
        **used,
        # From the first result to the last: start-up counts once, whatever the size of the cohort.
        "seconds_per_image": round((written[-1] - written[0]) / (len(written) - 1), 2),
        "stages_median_seconds": {name: statistics.median(values) for name, values in stages.items()},
        "backend": sorted({case["backend"] for case in cases}),
    }


def wider(narrow: Mapping[str, Any], wide: Mapping[str, Any], images: Sequence[Path]) -> dict[str, Any]:
    """Return what a wider field of view costs an image, beside what reading it costs.

    Args:
        narrow: of a cohort of the first image, see `cohort`.
        wide: of a cohort of the second.
        images: both.
    """
    import nibabel as nib

    read = [
        min(timed(lambda file=file: nib.load(file).get_fdata(dtype="float32"))[0] for _ in range(3))
        for file in images
    ]
    stages = [cohort_of["stages_median_seconds"] for cohort_of in (narrow, wide)]
    return {
        "seconds_per_image": wide["seconds_per_image"],
        "longer": round(wide["seconds_per_image"] - narrow["seconds_per_image"], 2),
        "longer_by_stage": {name: round(stages[1][name] - stages[0][name], 2) for name in stages[0]},
        "longer_to_read": round(read[1] - read[0], 2),
        "peak_gb": wide["peak_gb"],
    }


def beside_python(name: str) -> str:
    """Return the path of a command of this environment."""
    return str(Path(sys.executable).parent / name)


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return all figures."""
    made = paper_plans(arguments.features, arguments.patch)
    model = arguments.model
    # The prediction itself: a picture for qc/index.html comes after it (qc_page.py).
    environment = {"XDG_CACHE_HOME": str(folder / "cache"), "NNUNET_SOFTSEG_NO_QC": "1"}
    # To Linux, the peak memory of a new process is at least what the process had that started it.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as aside:
        image = aside.submit(make_image, folder / "images", arguments.fov).result()
        wide_image = aside.submit(make_image, folder / "wide_images", arguments.wider_fov).result()
        if model is None:
            model = folder / DATASET / f"{TRAINER}__nnUNetPlans__{CONFIGURATION}"
            aside.submit(make_model, model, made, image).result()
            environment |= {"NNUNET_SOFTSEG_LOCALIZE": "never"}
    environment |= {
        "nnUNet_results": str(model.parents[1]),
        **{name: str(folder) for name in ("nnUNet_raw", "nnUNet_preprocessed")},
    }
    first = cold_start(model, image, folder / "first", environment)
    second = cold_start(model, image, folder / "second", environment)
    many = cohort(model, image, folder / "cohort", environment, arguments.images)
    wide = cohort(model, wide_image, folder / "wide_cohort", environment, arguments.images)
    exported = folder / "exported.softseg"
    in_a_new_process(
        [beside_python("nnunet-softseg"), "export", "-m", str(model), "-o", str(exported)], environment
    )
    cold_exported = cold_file(exported, image, folder / "cold_exported", environment)
    of_package = {**environment, "NNUNET_SOFTSEG_LOCALIZE": "auto"}
    cold = cold_file(None, image, folder / "cold", of_package) if READY_MODEL.is_file() else None
    narrow = folder / DATASET / f"{TRAINER}__nnUNetNarrowPlans__{CONFIGURATION}"
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as aside:
        narrow_plans = paper_plans(arguments.features, arguments.narrow_patch)
        aside.submit(make_model, narrow, narrow_plans, image).result()
    as_is = {**environment, "NNUNET_SOFTSEG_LOCALIZE": "never"}
    many_narrow = cohort(narrow, image, folder / "narrow_cohort", as_is, arguments.images)
    same = vanilla(folder, made, image, arguments.repeats)
    default, without_tta = (same["seconds_per_image"][mode] for mode in ("default", "disable_tta"))
    return {
        "ratio_cohort": round(default / many["seconds_per_image"], 1),
        "ratio_cohort_disable_tta": round(without_tta / many["seconds_per_image"], 1),
        "seconds_per_image": many["seconds_per_image"],
        "cold_seconds": cold,
        "ratio_cold": cold and round(default / cold, 1),
        "cold_exported_seconds": cold_exported,
        "ratio_cold_exported": round(default / cold_exported, 1),
        "cohort_narrow_seconds": many_narrow["seconds_per_image"],
        "ratio_cohort_narrow": round(default / many_narrow["seconds_per_image"], 1),
        "peak_gb": max(used["peak_gb"] for used in (first, second, many)),
        "cold_start_seconds": {"first": first["wall_seconds"], "cached": second["wall_seconds"]},
        "ours": {
            "stock_command_first": first,
            "stock_command_cached": second,
            "cohort": many,
            "cohort_narrow": many_narrow,
        },
        "wider_field_of_view": wider(many, wide, (image, wide_image)),
        "vanilla": same,
        "vanilla_is_extrapolated": "tiles x seconds of one tile, per fold; default: x 8 mirrored passes",
        "machine": {
            "cpus": os.cpu_count(),
            "processor": platform.processor() or platform.machine(),
            "load_average": [round(load, 1) for load in os.getloadavg()],
            "peak_gb_of_this_script": round(
                resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_PER_GIB, 2
            ),
        },
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--model", type=Path, help="folder of a trained model, in place of random weights")
    parser.add_argument("--images", type=int, default=5, help="of the cohort, 2 or more (default: 5)")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes of vanilla's tile (default: 3)")
    parser.add_argument(
        "--fov", type=int, nargs=3, default=FOV_MM, help="R-L A-P S-I in mm (default: 192 260 318)"
    )
    parser.add_argument(
        "--wider-fov", type=int, nargs=3, default=WIDER_FOV_MM, help="likewise (default: 320 320 318)"
    )
    parser.add_argument("--patch", type=int, nargs=3, default=PATCH_SIZE, help="S-I A-P R-L, in voxels")
    parser.add_argument(
        "--narrow-patch", type=int, nargs=3, default=NARROW_PATCH_SIZE, help="likewise (default: 320 96 48)"
    )
    parser.add_argument("--features", type=int, nargs="+", default=FEATURES, help="of the network's stages")
    arguments = parser.parse_args()
    if arguments.images < 2:  # noqa: PLR2004
        parser.error("--images must be 2 or more: the time between results is what counts")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ.setdefault(name, folder)
        figures = measure(Path(folder), arguments)
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
