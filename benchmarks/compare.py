"""Time and memory of `nnunet-softseg compare` on many large volumes.

    python benchmarks/compare.py --json compare.json

Makes curved cords with soft edges (a reference, and per method a copy that is wider or narrower by a little)
as gzipped float32, as predictions are, and compares them. Each distinct volume is made once and written under
many names: reading is what takes the time, and it does not know. Printed and written: seconds, processor
seconds, peak memory of all processes, what of the machine matters.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

SHAPE = (64, 192, 320)
CONTRASTS = ("T1w", "T2w", "T2star", "mt-on", "mt-off", "dwi")
DISTINCT = 12
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def cord(radius_mm: float, seed: int) -> npt.NDArray[np.float32]:
    """Return a cord of 1 mm voxels, bent in A-P, whose edge falls from 1 to 0 over two voxels."""
    phase = np.random.default_rng(seed).uniform(0, np.pi)
    x, y, z = np.meshgrid(*(np.arange(size, dtype=np.float32) for size in SHAPE), indexing="ij", sparse=True)
    middle = SHAPE[1] / 2 + 12 * np.sin(z / SHAPE[2] * np.pi + phase)
    distance = np.sqrt((x - SHAPE[0] / 2) ** 2 + (y - middle) ** 2)
    volume: npt.NDArray[np.float32] = np.clip((radius_mm - distance) / 2 + 0.5, 0, 1)
    volume[:, :, :10] = 0
    volume[:, :, -10:] = 0
    return volume.astype(np.float32)


def write_many(folder: Path, cases: list[str], suffix: str, wider_mm: float) -> Path:
    """Write a map per case, of `DISTINCT` different ones."""
    folder.mkdir(parents=True)
    for place, case in enumerate(cases):
        file = folder / f"{case}{suffix}.nii.gz"
        if place < DISTINCT:
            volume = cord(4.5 + 0.05 * place + wider_mm * (1 + 0.3 * (place % 3)), place)
            nib.Nifti1Image(volume, AFFINE).to_filename(file)
        else:
            shutil.copyfile(folder / f"{cases[place % DISTINCT]}{suffix}.nii.gz", file)
    return folder


def run(num_cases: int, num_methods: int, num_processes: int, folder: Path) -> dict[str, Any]:
    """Return what was measured."""
    from nnunet_softseg.evaluation.compare import compare

    cases = [
        f"sub-{place // len(CONTRASTS):03d}_{CONTRASTS[place % len(CONTRASTS)]}" for place in range(num_cases)
    ]
    reference = write_many(folder / "softLabelsTs", cases, "_0001", 0)
    methods = {
        f"method{number}": write_many(
            folder / f"method{number}" / "soft", cases, "_0001", 0.1 * (number + 1)
        ).parent
        for number in range(num_methods)
    }
    started, before = time.perf_counter(), _processor_seconds()
    comparison = compare(methods, reference, folder / "out", num_processes=num_processes, report=False)
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(_processor_seconds() - before, 1),
        "peak_gb": round(_peak_gb(num_processes), 2),
        "cases": num_cases,
        "methods": num_methods,
        "shape": SHAPE,
        "processes": num_processes,
        "processors": os.cpu_count(),
        "rows": len(comparison.cases),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _processor_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _peak_gb(num_processes: int) -> float:
    """Return an upper bound: the peak of this process, and as many times the largest worker as there are."""
    own, worker = (
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return (own + num_processes * worker) / 2**20


def main() -> None:
    """Parse the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--methods", type=int, default=2)
    parser.add_argument("-np", dest="num_processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(arguments.cases, arguments.methods, arguments.num_processes, Path(folder))
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
