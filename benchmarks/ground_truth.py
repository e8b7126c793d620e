"""Soft ground truth against a known truth, and the time of a subject of full size.

    python benchmarks/ground_truth.py --json ground_truth.json
    python benchmarks/ground_truth.py --full-size

A phantom's masks are biased by contrast and its slices have moved; the truth is exact. Printed for each
variant: mean absolute error in boundary voxels (0 < truth < 1) with its reduction against the hard masks; the
error of the area over C2-C3 by contrast, a mean over subjects, and the largest of any subject; the standard
deviation of that area over the contrasts (where they reach different slices, apart from what the true areas
differ), with how many times smaller it is than that of the hard masks. `plain` is the published way in a few
lines: everything is interpolated onto the reference's grid and back.

With --full-size: seconds and peak memory of `make_gt` on one subject with images of the usual size, from
images and masks on disk to labels and page.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from nnunet_softseg.labels.contrasts.average import soft_ground_truth
from nnunet_softseg.labels.contrasts.make_gt import make_gt
from nnunet_softseg.labels.contrasts.settings import GroundTruthSettings
from nnunet_softseg.labels.contrasts.volume import Volume, as_stored, upright
from nnunet_softseg.phantom import CONTRAST_NAMES, CONTRASTS, PhantomSpec, Simulated, cord_fraction, simulate
from nnunet_softseg.phantom.acquisition import draw_subject_anatomy

REFERENCE = "T2w"
COHORTS = {
    "straight": {},
    "oblique": {"oblique_deg": 15.0},
    "short axial slabs": {"axial_si_mm": 40.0},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no box": {"box": False},
    "smoothed, 3 mm": {"smooth_mm": 3.0},
    "smoothed, 5 mm": {"smooth_mm": 5.0},
    "smoothed, 10 mm": {"smooth_mm": 10.0},
    "rotation": {"rotation": True},
    "rotation, smoothed, 5 mm": {"rotation": True, "smooth_mm": 5.0},
    "trimmed, 5 mm": {"trim_mm": 5.0},
    "reference T1w": {"reference": "T1w"},
    "reference T2star": {"reference": "T2star"},
}
FULL_SIZE = {  # contrast: shape R-L, A-P, S-I and voxel in mm
    "T1w": ((192, 260, 320), (1.0, 1.0, 1.0)),
    "T2w": ((64, 320, 320), (0.8, 0.8, 0.8)),
    "T2star": ((320, 320, 15), (0.5, 0.5, 3.0)),
    "mt-on": ((192, 192, 20), (0.9, 0.9, 5.0)),
    "mt-off": ((192, 192, 20), (0.9, 0.9, 5.0)),
    "dwi": ((192, 192, 20), (0.9, 0.9, 5.0)),
}

Subject = dict[str, Simulated]
Method = Callable[[dict[str, Volume]], dict[str, Volume]]


@dataclass(frozen=True)
class Scores:
    """Of one label of one subject and contrast: boundary error, true area over C2-C3, the label's error."""

    subject: int
    contrast: str
    boundary_mae: float
    true_csa_mm2: float
    csa_error_percent: float


def hard(masks: dict[str, Volume]) -> dict[str, Volume]:
    """Return the masks themselves."""
    return masks


def library(masks: dict[str, Volume], settings: GroundTruthSettings) -> dict[str, Volume]:
    """Return the soft label of each contrast."""
    return soft_ground_truth(masks, settings).native


def plain(masks: dict[str, Volume]) -> dict[str, Volume]:
    """Return the soft labels as published: to the reference's grid and back, point by point."""
    turned = {name: upright(mask) for name, mask in masks.items()}
    reference = turned[REFERENCE]
    index = np.indices(reference.values.shape).reshape(3, -1).astype(float)
    total, coverage, shifts = np.zeros(index.shape[1]), np.zeros(index.shape[1]), {}
    for name, mask in turned.items():
        there = _sample(mask.values, mask, reference.to_world(index)).reshape(reference.values.shape)
        shifts[name] = _shift_per_slice(reference, there)
        points = reference.to_world(index + np.insert(shifts[name], 2, 0, axis=0)[:, index[2].astype(int)])
        total += _sample(mask.values, mask, points)
        coverage += _sample(_slab(mask), mask, points)
    soft = np.divide(total, coverage, out=np.zeros_like(total), where=coverage > 0)
    soft = soft.reshape(reference.values.shape).astype(np.float32)
    labels = {}
    for name, mask in turned.items():
        voxels = np.indices(mask.values.shape).reshape(3, -1).astype(float)
        there = reference.to_index(mask.to_world(voxels))
        numbers = np.arange(reference.values.shape[2])
        there[:2] -= np.stack([np.interp(there[2], numbers, shift) for shift in shifts[name]])
        back = ndimage.map_coordinates(soft, there, order=1).reshape(mask.values.shape)
        labels[name] = as_stored((np.clip(back, 0, 1) * _slab(mask)).astype(np.float32), masks[name])
    return labels


def _sample(values: np.ndarray, grid: Volume, points: np.ndarray) -> np.ndarray:
    return ndimage.map_coordinates(values, grid.to_index(points), order=1, output=float)


def _slab(mask: Volume) -> np.ndarray:
    covered = (mask.values > 0.5).any(axis=(0, 1)).astype(np.float32)  # noqa: PLR2004
    return np.broadcast_to(covered, mask.values.shape).copy()


def _shift_per_slice(reference: Volume, moving: np.ndarray) -> np.ndarray:
    """Return the distance of the centres of mass in each slice, (2, slices) in voxels of the reference."""
    shift = np.full((2, reference.values.shape[2]), np.nan)
    for number in range(shift.shape[1]):
        one, other = reference.values[..., number] > 0.5, moving[..., number] > 0.5  # noqa: PLR2004
        if one.any() and other.any():
            shift[:, number] = np.subtract(ndimage.center_of_mass(other), ndimage.center_of_mass(one))
    known = np.flatnonzero(np.isfinite(shift[0]))
    return np.stack([np.interp(np.arange(shift.shape[1]), known, row[known]) for row in shift])


def cohort(subjects: int, seed: int, shift_mm: float, **how: Any) -> list[Subject]:
    """Return simulated subjects in all contrasts."""
    spec = PhantomSpec(seed=seed, shift_mm=shift_mm, **how)
    return [
        {name: simulate(spec, number, name) for name in spec.contrasts} for number in range(1, subjects + 1)
    ]


def scores(subjects: list[Subject], method: Method) -> list[Scores]:
    """Return how well a method does on each image."""
    rows = []
    for number, subject in enumerate(subjects, 1):
        masks = {name: Volume(image.mask, image.affine) for name, image in subject.items()}
        for name, label in method(masks).items():
            rows.append(_score(number, subject[name], label.values))
    return rows


def _score(number: int, image: Simulated, label: np.ndarray) -> Scores:
    boundary = (image.truth > 0) & (image.truth < 1)
    in_plane = tuple(axis for axis in range(3) if axis != image.slice_axis)
    truth, found = (values.sum(axis=in_plane, dtype=float) for values in (image.truth, label))
    of_c2_c3 = np.isin(image.csa["level"], (2, 3)) & (truth > 0)
    csa = image.csa["csa_mm2"][of_c2_c3]
    # What the label alone does to the area: the tilt of the cord is taken from the truth.
    error = 100 * float(np.mean(csa * found[of_c2_c3] / truth[of_c2_c3]) / np.mean(csa) - 1)
    mae = float(np.abs(label - image.truth)[boundary].mean())
    return Scores(number, image.contrast.name, mae, float(np.mean(csa)), error)


def summary(rows: list[Scores], of_hard: list[Scores]) -> dict[str, Any]:
    """Return the figures of one variant."""
    mae, hard_mae = (float(np.mean([row.boundary_mae for row in some])) for some in (rows, of_hard))
    errors = {
        name: float(np.mean([row.csa_error_percent for row in rows if row.contrast == name]))
        for name in CONTRAST_NAMES
    }
    return {
        "boundary_mae": round(mae, 4),
        "reduction_percent": round(100 * (1 - mae / hard_mae), 1),
        "csa_error_percent": {name: round(error, 2) for name, error in errors.items()},
        "worst_csa_error_percent": round(max(abs(row.csa_error_percent) for row in rows), 2),
        "csa_std_mm2": round(_std_over_contrasts(rows), 3),
        "times_smaller": round(_std_over_contrasts(of_hard) / _std_over_contrasts(rows), 1),
    }


def _std_over_contrasts(rows: list[Scores]) -> float:
    deviations = []
    for subject in sorted({row.subject for row in rows}):
        own = [row for row in rows if row.subject == subject]
        true = float(np.mean([row.true_csa_mm2 for row in own]))
        deviations.append(true * np.std([row.csa_error_percent / 100 for row in own], ddof=1))
    return float(np.mean(deviations))


def measure(subjects: int, seed: int, shift_mm: float) -> dict[str, dict[str, Any]]:
    """Return the figures of every variant on every cohort, and print them on the way."""
    methods: dict[str, Method] = {"plain": plain}
    methods |= {name: partial(library, settings=GroundTruthSettings(**how)) for name, how in VARIANTS.items()}
    figures: dict[str, dict[str, Any]] = {}
    for name, how in COHORTS.items():
        people = cohort(subjects, seed, shift_mm, **how)
        of_hard = scores(people, hard)
        figures[name] = {"hard masks": summary(of_hard, of_hard)}
        print(f"\n{name} ({subjects} subjects, shifts up to {shift_mm:g} mm)")
        print(f"{'':26}{'MAE':>7}{'less':>7}  {'CSA error %':^28}{'worst':>7}{'STD mm2':>9}{'smaller':>9}")
        print_row("hard masks", figures[name]["hard masks"])
        for variant, method in methods.items():
            figures[name][variant] = summary(scores(people, method), of_hard)
            print_row(variant, figures[name][variant])
    return figures


def print_row(name: str, row: dict[str, Any]) -> None:
    """Print one variant."""
    errors = row["csa_error_percent"].values()
    print(
        f"{name:26}{row['boundary_mae']:7.4f}{row['reduction_percent']:6.1f}%  "
        f"{min(errors):+6.2f} to {max(errors):+6.2f} (by contrast)"
        f"{row['worst_csa_error_percent']:7.2f}{row['csa_std_mm2']:9.3f}{row['times_smaller']:8.1f}x",
        flush=True,
    )


def full_size() -> dict[str, Any]:
    """Return time and peak memory of `make_gt` on one subject: images and masks in, labels and page out."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        bids = Path(folder) / "bids"
        write_full_size(bids)
        started = time.perf_counter()
        make_gt(bids, Path(folder) / "softseg", progress=False)
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": round(seconds, 2),
        "peak_gb": round(peak / 2**20, 2),
        "peak_before_gb": round(before / 2**20, 2),
    }


def write_full_size(bids: Path) -> None:
    """Write noise around a bright cord, and its masks, as BIDS, on grids of the usual size."""
    anatomy = draw_subject_anatomy(PhantomSpec(fov_mm=(64.0, 64.0, 320.0)), 1)
    noise = np.random.default_rng(0)
    for contrast in CONTRASTS:
        shape, voxel_mm = FULL_SIZE[contrast.name]
        affine = np.diag([*voxel_mm, 1.0])
        affine[:3, 3] = -np.array(voxel_mm) * (np.array(shape) - 1) / 2
        affine[2, 3] += 60.0 * (shape[2] * voxel_mm[2] < 200)  # noqa: PLR2004 - slabs lie at the neck
        mask = (cord_fraction(anatomy, shape, affine) > 0.5).astype(np.uint8)  # noqa: PLR2004
        image = (noise.normal(200, 30, shape) + 300.0 * mask).astype(np.int16)
        name = f"sub-01/{contrast.folder}/{contrast.source_name('sub-01')}"
        for file, voxels in (
            (bids / name, image),
            (bids / "derivatives/labels" / f"{name}_seg-manual", mask),
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            codes = [nib.orientations.axcodes2ornt(code) for code in ("RAS", contrast.orientation)]
            stored = nib.Nifti1Image(voxels, affine).as_reoriented(nib.orientations.ornt_transform(*codes))
            nib.save(stored, file.with_name(f"{file.name}.nii.gz"))


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", "--subjects", type=int, default=4, help="of each cohort (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the phantom (default: 0)")
    parser.add_argument("--shift-mm", type=float, default=3.0, help="largest shift of a slice (default: 3)")
    parser.add_argument("--full-size", action="store_true", help="time of one subject of full size instead")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    if arguments.full_size:
        figures = full_size()
        print(json.dumps(figures, indent=2))
    else:
        figures = measure(arguments.subjects, arguments.seed, arguments.shift_mm)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
