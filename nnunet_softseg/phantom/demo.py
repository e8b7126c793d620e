"""The whole way on a CPU in minutes: phantom, dataset, stock nnU-Net commands, soft against vanilla."""

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from scipy.ndimage import center_of_mass, distance_transform_edt
from tqdm import tqdm

from nnunet_softseg import __version__
from nnunet_softseg.datasets.conversion import convert
from nnunet_softseg.errors import UserError
from nnunet_softseg.io.case_files import SOFT_FOLDER
from nnunet_softseg.io.geometry import VoxelGrid
from nnunet_softseg.io.nifti import load_nifti
from nnunet_softseg.io.results import changed_keys, load_record, make_folder, replacing, write_json
from nnunet_softseg.metrics import overlap as metrics
from nnunet_softseg.metrics.slice_frame import slice_areas
from nnunet_softseg.phantom.bids import TRUTH, TRUTH_SUFFIX, phantom

ABOUT = "about seven minutes on 2 CPU cores; when it is interrupted, the same command goes on"
DATASET_ID = 900
DATASET = "Dataset900_Phantom"
PLANS = "nnUNetSoftSegDemoPlans"
TRAINERS = {"softseg": "nnUNetTrainerSoftSegDemo", "vanilla": "nnUNetTrainerDemo"}
SUBJECTS, TEST_SUBJECTS, VALIDATION_SUBJECTS = 12, 2, 1
FOV_MM = (56.0, 60.0, 64.0)
FAR_MM = 10.0
"""Beyond this distance from the cord, all values of a map are background."""
HALF_WIDTH_MM = 14.0
"""Of the square around the cord that the figure shows."""

Plane = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Demo:
    """The folder below which everything is written, the processes of each nnU-Net command, and the seed."""

    output: Path
    num_processes: int
    seed: int = 0

    @property
    def stamps(self) -> Path:
        """The record of the steps that are done."""
        return self.output / "steps_done.json"

    @property
    def made_of(self) -> dict[str, Any]:
        """What decides the results, apart from the machine; each stamp holds it."""
        return {"seed": self.seed, "version": __version__}

    @property
    def raw(self) -> Path:
        """The raw dataset."""
        return self.output / "nnUNet_raw" / DATASET

    def prediction(self, method: str) -> Path:
        """Return the folder of a method's maps."""
        return self.output / "predictions" / method

    def environment(self) -> dict[str, str]:
        """Return this process's environment, with nnU-Net's folders inside the output."""
        names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        folders = {name: str(self.output / name) for name in names}
        workers = {"nnUNet_n_proc_DA": str(self.num_processes), "nnUNet_def_n_proc": str(self.num_processes)}
        # Half of a small network's time on a CPU goes into memory that glibc hands back and takes again.
        heap = {"MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_MMAP_MAX_": "0"}
        return {**os.environ, **folders, **workers, **heap}


def demo(output: Path, *, seed: int = 0, num_processes: int = 2) -> pd.DataFrame:
    """Run the demo, print its table, draw its figure, and return the measures of every test case.

    A second call goes on where the first was interrupted. The table has a row per method and case; it is also
    written as measures.csv, beside comparison.png. A command of nnU-Net's that fails raises a UserError, and
    so does a folder with a demo of another seed or version.
    """
    started = time.perf_counter()
    here = Demo(Path(output).resolve(), num_processes, seed)
    _check_beginning(here)
    make_folder(here.output / "logs")
    print(f"{ABOUT}; results in {here.output}", flush=True)
    steps = _steps(here)
    for number, (name, step) in enumerate(steps.items(), 1):
        _once(here, name, f"[{number}/{len(steps)}] {name}", step)
    rows = [_measure_case(here, method, case) for method in TRAINERS for case in _test_cases(here)]
    table = pd.DataFrame(rows)
    table.to_csv(here.output / "measures.csv", index=False)
    draw_comparison(_images_shown(here), here.output / "comparison.png")
    _print_summary(here, table, time.perf_counter() - started)
    return table


def _check_beginning(here: Demo) -> None:
    """Raise a UserError if a step was done with another seed, or by another version."""
    for stamp in (load_record(here.stamps) or {}).values():
        if changed_keys(stamp, here.made_of):
            there, asked = (
                " of ".join(f"{key} {of.get(key, 'unknown')}" for key in here.made_of)
                for of in (stamp, here.made_of)
            )
            raise UserError(
                f"{here.output} holds a demo of {there}, expected one of {asked}: choose another folder, or "
                "remove this one"
            )


def _steps(here: Demo) -> dict[str, Callable[[], object]]:
    bids, processes = here.output / "bids", here.num_processes
    how: dict[str, Any] = {"num_test": TEST_SUBJECTS, "num_validation": VALIDATION_SUBJECTS}
    how |= {"raw_folder": here.raw.parent, "derivatives": TRUTH, "suffix": TRUTH_SUFFIX}
    plan = f"-d {DATASET_ID} -c 3d_fullres -pl SoftSegDemoPlanner -npfp {processes} -np {processes}".split()
    steps: dict[str, Callable[[], object]] = {
        f"phantom of {SUBJECTS} subjects": partial(
            phantom, bids, SUBJECTS, here.seed, fov_mm=FOV_MM, num_processes=processes
        ),
        "nnU-Net dataset": partial(convert, bids, DATASET_ID, "Phantom", **how),
        "plan and preprocess": partial(_nnunet, here, "plan", "nnUNetv2_plan_and_preprocess", plan),
    }
    for method, trainer in TRAINERS.items():
        steps[f"train {method} ({trainer})"] = partial(_train, here, method)
        steps[f"predict {method}"] = partial(_predict, here, method)
    return steps


def _once(here: Demo, name: str, shown: str, step: Callable[[], object]) -> None:
    done = load_record(here.stamps) or {}
    if name in done:
        print(f"{shown}: done before")
        return
    print(f"{shown} ...", flush=True)
    started = time.perf_counter()
    step()
    done[name] = {"seconds": round(time.perf_counter() - started, 1), **here.made_of}
    write_json(here.stamps, done)
    print(f"{shown}: {done[name]['seconds']:.0f} s", flush=True)


def _train(here: Demo, method: str) -> None:
    words = f"{DATASET_ID} 3d_fullres 0 -tr {TRAINERS[method]} -p {PLANS} -device cpu --c"
    _nnunet(here, f"train_{method}", "nnUNetv2_train", words.split(), tells=r"^.*: (epoch \d+/\d+, .*)$")


def _predict(here: Demo, method: str) -> None:
    arguments = ["-i", str(here.raw / "imagesTs"), "-o", str(here.prediction(method)), "-d", str(DATASET_ID)]
    arguments += ["-c", "3d_fullres", "-f", "0", "-tr", TRAINERS[method], "-p", PLANS, "-device", "cpu"]
    arguments += ["-npp", "1", "-nps", "1", "--continue_prediction", "--disable_progress_bar"]
    _nnunet(here, f"predict_{method}", "nnUNetv2_predict", arguments, tells=r"^Predicting (\S+):")


def _nnunet(here: Demo, log: str, command: str, arguments: Sequence[str], tells: str = "") -> None:
    """Run a stock command, its output in a log file; show the group of the last line that matches `tells`."""
    executable = shutil.which(command, path=str(Path(sys.executable).parent)) or shutil.which(command)
    if executable is None:
        raise UserError(
            f"{command} is not installed beside {sys.executable}: expected nnU-Net there; run "
            "nnunet-softseg doctor"
        )
    print(f"  $ {command} {' '.join(arguments)}", flush=True)
    log_file = here.output / "logs" / f"{log}.txt"
    with (
        log_file.open("w", encoding="utf-8") as stream,
        tqdm(bar_format="  {desc} [{elapsed}]", desc=log, leave=False) as status,
        Popen(
            [executable, *arguments], env=here.environment(), stdout=PIPE, stderr=STDOUT, text=True
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                stream.write(line)
                if tells and (match := re.match(tells, line)):
                    status.set_description_str(f"{log}: {match[1]}")
        except KeyboardInterrupt:
            process.terminate()  # where Ctrl-C has reached this process alone
            raise
    if process.returncode != 0:
        last = log_file.read_text(encoding="utf-8").strip().splitlines()[-1:] or ["no output"]
        code = process.returncode
        raise UserError(f"{command} failed (exit code {code}): {last[0].strip()}; see {log_file}")


def _test_cases(here: Demo) -> list[str]:
    return sorted(file.name.removesuffix("_0000.nii.gz") for file in (here.raw / "imagesTs").glob("*.nii.gz"))


def _measure_case(here: Demo, method: str, case: str) -> dict[str, str | float]:
    truth, predicted = load_nifti(_truth(here, case)), load_nifti(_map(here, method, case))
    expected, found = truth.get_fdata(dtype=np.float32), predicted.get_fdata(dtype=np.float32)
    grid = VoxelGrid.of(truth)
    measures = metrics.soft_measures(found, expected, grid.voxel_mm3)
    csa, true_csa = _mean_csa(predicted), _mean_csa(truth)
    far = distance_transform_edt(expected == 0, sampling=grid.spacing_mm) > FAR_MM
    subject, contrast = case.split("_", 1)
    return {
        "method": method,
        "case": case,
        "subject": subject,
        "contrast": contrast,
        "dice": measures["dice"],
        "boundary_mae": measures["boundary_mae"],
        "csa_mm2": csa,
        "true_csa_mm2": true_csa,
        "csa_error_percent": 100 * (csa / true_csa - 1),
        "background_mm3": float(found[far].sum(dtype=np.float64)) * grid.voxel_mm3,
    }


def _mean_csa(image: nib.Nifti1Image) -> float:
    """Return the mean area within the middle of the field of view, which all contrasts cover."""
    areas = slice_areas(image)
    middle, half = float(areas.height_mm.mean()), FOV_MM[2] / 2 - 8
    return areas.mean_between(middle - half, middle + half)


def _truth(here: Demo, case: str) -> Path:
    return here.raw / "softLabelsTs" / f"{case}_0001.nii.gz"


def _map(here: Demo, method: str, case: str) -> Path:
    soft = here.prediction(method) / SOFT_FOLDER / f"{case}_0001.nii.gz"
    return soft if soft.is_file() else here.prediction(method) / f"{case}.nii.gz"


def _images_shown(here: Demo) -> dict[str, list[nib.Nifti1Image]]:
    """Return, for each contrast of the first test subject, its image, its truth and each method's map."""
    cases = _test_cases(here)
    return {
        case.split("_", 1)[1]: [
            load_nifti(here.raw / "imagesTs" / f"{case}_0000.nii.gz"),
            load_nifti(_truth(here, case)),
            *(load_nifti(_map(here, method, case)) for method in TRAINERS),
        ]
        for case in cases
        if case.split("_")[0] == cases[0].split("_")[0]
    }


def draw_comparison(rows: Mapping[str, list[nib.Nifti1Image]], path: Path) -> None:
    """Draw an axial slice of each row: image, truth, every method's map and its difference to the truth."""
    columns = ["image", "truth", *TRAINERS, *(f"{method} - truth" for method in TRAINERS)]
    figure = Figure(figsize=(1.9 * len(columns) + 1.2, 1.95 * len(rows) + 0.6), layout="compressed")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    shown: dict[str, Any] = {}
    for line, (contrast, images) in zip(axes, rows.items(), strict=True):
        image, truth, *maps = _same_slice(images)
        limits = {"vmin": float(np.percentile(image, 1)), "vmax": float(np.percentile(image, 99.5))}
        _show(line[0], image, cmap="gray", **limits)
        for axis, plane in zip(line[1:], [truth, *maps], strict=False):
            shown["soft map"] = _show(axis, plane, cmap="magma", vmin=0, vmax=1)
        for axis, plane in zip(line[2 + len(maps) :], maps, strict=True):
            shown["difference"] = _show(axis, plane - truth, cmap="RdBu_r", vmin=-1, vmax=1)
        line[0].set_ylabel(contrast, fontsize=11)
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title(name, fontsize=11)
    first = 2 + len(TRAINERS)
    for label, part in (("soft map", axes[:, 1:first]), ("difference", axes[:, first:])):
        figure.colorbar(shown[label], ax=part, label=label, location="bottom", shrink=0.5, aspect=40)
    with replacing(path) as aside:
        figure.savefig(aside, dpi=130)


def _show(axis: Any, plane: Plane, **options: Any) -> Any:
    axis.set(xticks=[], yticks=[])
    # Nearest neighbour on purpose: to see the voxels and their values.
    return axis.imshow(plane, origin="lower", interpolation="nearest", extent=(0, 1, 0, 1), **options)


def _same_slice(images: list[nib.Nifti1Image]) -> list[Plane]:
    """Return the middle axial slice of all images, as a square around the truth's centre, L on the right."""
    arrays = [nib.as_closest_canonical(image) for image in images]
    truth = arrays[1].get_fdata(dtype=np.float32)
    filled = np.flatnonzero(truth.sum(axis=(0, 1)))
    z = int(filled[len(filled) // 2]) if len(filled) else truth.shape[2] // 2
    weights = truth[:, :, z] if len(filled) else np.ones(truth.shape[:2])
    centre = [round(coordinate) for coordinate in center_of_mass(weights)]
    spacing = arrays[1].header.get_zooms()[:2]
    box = tuple(
        slice(max(middle - int(HALF_WIDTH_MM / step), 0), middle + int(HALF_WIDTH_MM / step) + 1)
        for middle, step in zip(centre, spacing, strict=True)
    )
    # Canonical axes run to R and A; transposed and flipped, the slice lies as radiologists look at it.
    return [array.get_fdata(dtype=np.float32)[(*box, z)].T[:, ::-1] for array in arrays]


def _summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per method: means over contrasts of means over subjects, and the STD over contrasts."""
    absolute = table.assign(csa_error_percent=table.csa_error_percent.abs())
    means = absolute.groupby(["method", "contrast"]).mean(numeric_only=True).groupby("method").mean()
    deviation = table.groupby(["method", "subject"])["csa_mm2"].std(ddof=1).groupby("method").mean()
    return means.assign(std_csa_mm2=deviation)


def _print_summary(here: Demo, table: pd.DataFrame, seconds: float) -> None:
    names = {
        "dice": "Dice",
        "boundary_mae": "boundary MAE",
        "csa_error_percent": "|CSA error| [%]",
        "std_csa_mm2": "STD CSA over contrasts [mm2]",
        "background_mm3": "background [mm3]",
    }
    summary = _summary(table)[list(names)].rename(columns=names).reindex(list(TRAINERS))
    subjects, contrasts = table.subject.nunique(), table.contrast.nunique()
    print(
        f"\n{subjects} unseen subjects x {contrasts} contrasts, against the exact cord fraction of every "
        "voxel:\n"
    )
    print(summary.to_string(float_format=lambda value: f"{value:.3f}"))
    print(
        f"\nbackground: summed map farther than {FAR_MM:.0f} mm from the cord. A network this small, trained "
        "for minutes, shows that things work, not how good they get.\n"
        f"Picture: {here.output / 'comparison.png'}\n"
        f"Table:   {here.output / 'measures.csv'}\n"
        f"Soft maps: {here.prediction('softseg') / SOFT_FOLDER}\n"
        f"Page:    {here.prediction('softseg') / 'qc' / 'index.html'}\n"
        f"{seconds:.0f} s\n\n"
        "Next, areas at the vertebrae C2 and C3:\n"
        f"  nnunet-softseg csa -i {here.prediction('softseg')} --levels {here.output / 'bids' / TRUTH} "
        f"--vert 2 3 -o {here.output / 'csa.csv'}\n"
        "and with masks of your own, in BIDS:\n"
        "  nnunet-softseg make-gt -i BIDS -o BIDS/derivatives/softseg"
    )
