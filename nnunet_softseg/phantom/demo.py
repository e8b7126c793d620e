"""The whole way on a CPU in minutes: phantom, dataset, stock nnU-Net commands, soft against vanilla."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy.ndimage import distance_transform_edt
from tqdm import tqdm

from nnunet_softseg import __version__
from nnunet_softseg.datasets.conversion import convert
from nnunet_softseg.errors import UserError
from nnunet_softseg.io.case_files import SOFT_FOLDER
from nnunet_softseg.io.geometry import VoxelGrid
from nnunet_softseg.io.nifti import load_nifti
from nnunet_softseg.io.results import make_folder, write_json
from nnunet_softseg.metrics import overlap as metrics
from nnunet_softseg.metrics.morphometry import slice_areas
from nnunet_softseg.phantom import figures
from nnunet_softseg.phantom.bids import TRUTH, TRUTH_SUFFIX, phantom

DATASET_ID = 900
DATASET = "Dataset900_Phantom"
PLANS = "nnUNetSoftSegDemoPlans"
TRAINERS = {"softseg": "nnUNetTrainerSoftSegDemo", "vanilla": "nnUNetTrainerDemo"}
SUBJECTS, TEST_SUBJECTS, VALIDATION_SUBJECTS = 12, 2, 1
FOV_MM = (56.0, 60.0, 64.0)
FAR_MM = 10.0
"""Beyond this distance from the cord, what a map holds is background."""


@dataclass(frozen=True)
class Demo:
    """The folder below which everything is written, and the processes of each nnU-Net command."""

    output: Path
    num_processes: int

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

    A second call goes on where the first was interrupted; finished steps are not repeated.

    The table has a row per method and case; it is also written as measures.csv, beside comparison.png.

    Raises:
        UserError: if the folder cannot be written, or a command of nnU-Net's fails.
    """
    started = time.perf_counter()
    here = Demo(Path(output).resolve(), num_processes)
    make_folder(here.output / "logs")
    for name, step in _steps(here, seed):
        _once(here, name, step)
    table = _measure(here)
    table.to_csv(here.output / "measures.csv", index=False)
    figures.draw_comparison(_panels(here), here.output / "comparison.png")
    _print_summary(here, table, time.perf_counter() - started)
    return table


def _steps(here: Demo, seed: int) -> list[tuple[str, Callable[[], object]]]:
    bids = here.output / "bids"
    make = partial(phantom, bids, SUBJECTS, seed, fov_mm=FOV_MM, num_processes=here.num_processes)
    steps: list[tuple[str, Callable[[], object]]] = [
        (f"phantom of {SUBJECTS} subjects", make),
        ("nnU-Net dataset", partial(_convert, here, bids)),
        ("plan and preprocess", partial(_plan, here)),
    ]
    for method, trainer in TRAINERS.items():
        steps.append((f"train {method} ({trainer})", partial(_train, here, method)))
        steps.append((f"predict {method}", partial(_predict, here, method)))
    return steps


def _once(here: Demo, name: str, step: Callable[[], object]) -> None:
    stamps = here.output / "steps_done.json"
    done = json.loads(stamps.read_text(encoding="utf-8")) if stamps.is_file() else {}
    if name in done:
        print(f"{name}: done before")
        return
    print(f"{name} ...", flush=True)
    started = time.perf_counter()
    step()
    done[name] = {"seconds": round(time.perf_counter() - started, 1), "version": __version__}
    write_json(stamps, done)
    print(f"{name}: {done[name]['seconds']:.0f} s", flush=True)


def _convert(here: Demo, bids: Path) -> None:
    if here.raw.exists():
        return
    convert(
        bids,
        DATASET_ID,
        "Phantom",
        raw_folder=here.raw.parent,
        derivatives=TRUTH,
        suffix=TRUTH_SUFFIX,
        num_test=TEST_SUBJECTS,
        num_validation=VALIDATION_SUBJECTS,
    )


def _plan(here: Demo) -> None:
    words = f"-d {DATASET_ID} -c 3d_fullres -pl SoftSegDemoPlanner -npfp {here.num_processes}"
    _nnunet(here, "plan", "nnUNetv2_plan_and_preprocess", f"{words} -np {here.num_processes}".split())


def _train(here: Demo, method: str) -> None:
    words = f"{DATASET_ID} 3d_fullres 0 -tr {TRAINERS[method]} -p {PLANS} -device cpu --c"
    _nnunet(here, f"train_{method}", "nnUNetv2_train", words.split(), count=r"^.*: Epoch (\d+)")


def _predict(here: Demo, method: str) -> None:
    arguments = ["-i", str(here.raw / "imagesTs"), "-o", str(here.prediction(method)), "-d", str(DATASET_ID)]
    arguments += ["-c", "3d_fullres", "-f", "0", "-tr", TRAINERS[method], "-p", PLANS, "-device", "cpu"]
    arguments += ["-npp", "1", "-nps", "1", "--continue_prediction", "--disable_progress_bar"]
    _nnunet(here, f"predict_{method}", "nnUNetv2_predict", arguments, count=r"^Predicting (\S+):")


def _nnunet(here: Demo, log: str, command: str, arguments: Sequence[str], count: str = r"$^") -> None:
    """Run a stock command, its output in a log file, a bar that counts the lines that match."""
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
        tqdm(unit="", desc=f"  {log}", leave=False) as bar,
        subprocess.Popen(
            [executable, *arguments],
            env=here.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        for line in process.stdout or ():
            stream.write(line)
            if re.match(count, line):
                bar.update()
    if process.returncode != 0:
        last = log_file.read_text(encoding="utf-8").strip().splitlines()[-1:] or ["no output"]
        code = process.returncode
        raise UserError(f"{command} failed (exit code {code}): {last[0].strip()}; see {log_file}")


def _measure(here: Demo) -> pd.DataFrame:
    """Return the measures of every test case, a row per method and case."""
    rows = []
    for method in TRAINERS:
        for case in _test_cases(here):
            subject, contrast = case.split("_", 1)
            names = {"method": method, "case": case, "subject": subject, "contrast": contrast}
            rows.append(names | _measure_case(here, method, case))
    return pd.DataFrame(rows)


def _test_cases(here: Demo) -> list[str]:
    return sorted(file.name.removesuffix("_0000.nii.gz") for file in (here.raw / "imagesTs").glob("*.nii.gz"))


def _measure_case(here: Demo, method: str, case: str) -> dict[str, float]:
    truth, predicted = load_nifti(_truth(here, case)), load_nifti(_map(here, method, case))
    expected, found = truth.get_fdata(dtype=np.float32), predicted.get_fdata(dtype=np.float32)
    grid = VoxelGrid.of(truth)
    measures = metrics.soft_measures(found, expected, grid.voxel_mm3)
    csa, true_csa = (_mean_csa(image) for image in (predicted, truth))
    far = distance_transform_edt(expected == 0, sampling=grid.spacing_mm) > FAR_MM
    return {
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


def _panels(here: Demo) -> list[figures.Panels]:
    """Return a row of the figure for every contrast of the first test subject."""
    cases = _test_cases(here)
    chosen = [case for case in cases if case.split("_")[0] == cases[0].split("_")[0]]
    return [
        figures.Panels(
            title=case.split("_", 1)[1],
            image=load_nifti(here.raw / "imagesTs" / f"{case}_0000.nii.gz"),
            truth=load_nifti(_truth(here, case)),
            maps={method: load_nifti(_map(here, method, case)) for method in TRAINERS},
        )
        for case in chosen
    ]


def _summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per method: means over contrasts of means over subjects, and the STD over contrasts."""
    absolute = table.assign(csa_error_percent=table.csa_error_percent.abs())
    measures = ["dice", "boundary_mae", "csa_error_percent", "background_mm3"]
    summary = absolute.groupby(["method", "contrast"])[measures].mean().groupby("method").mean()
    deviation = table.groupby(["method", "subject"])["csa_mm2"].std(ddof=1).groupby("method").mean()
    return summary.assign(std_csa_mm2=deviation)


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
        f"{seconds:.0f} s"
    )
