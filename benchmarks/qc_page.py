"""What a picture of a prediction costs: `qc/index.html` of images with noise, by size.

    python benchmarks/qc_page.py

Two sizes: a slab of 64 x 256 x 256 voxels and a head of 192 x 260 x 320. Images are int16 as scanners write
them, maps float32 with a straight cord; both are compressed. The page is made three times anew of four images
each, the fastest counts: seconds on the clock, and of all processors together.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from nnunet_softseg.inference.qc_page import write_qc_page
from nnunet_softseg.io.case_files import PICTURES

SIZES = (((64, 256, 256), (1.0, 0.9, 0.9)), ((192, 260, 320), (1.0, 1.0, 1.0)))
IMAGES, TIMES, RADIUS_MM = 4, 3, 5.0


def write_images(folder: Path, shape: Sequence[int], spacing_mm: Sequence[float]) -> dict[str, Path]:
    """Write images and their soft maps as `predict` does; return the images by case."""
    random = np.random.default_rng(0)
    x, y = ((np.arange(size) - size / 2) * step for size, step in zip(shape[:2], spacing_mm[:2], strict=True))
    section = np.clip(RADIUS_MM + 0.5 - np.hypot(x[:, None], y), 0, 1)[..., None]
    soft_map = np.broadcast_to(section, shape).astype(np.float32)
    affine = np.diag([*spacing_mm, 1.0])
    images = {}
    for place in ("images", "soft"):
        (folder / place).mkdir()
    for number in range(1, IMAGES + 1):
        case = f"sub-{number:02d}"
        noise = 30 * random.standard_normal(shape, dtype=np.float32)
        images[case] = folder / "images" / f"{case}.nii.gz"
        nib.save(nib.Nifti1Image((200 + 300 * soft_map + noise).astype(np.int16), affine), images[case])
        nib.save(nib.Nifti1Image(soft_map, affine), folder / "soft" / f"{case}_0001.nii.gz")
    return images


def seconds_of_page(folder: Path, images: dict[str, Path]) -> tuple[float, float]:
    """Return what a page that is made anew takes per image: on the clock, and of all processors."""
    for file in (folder / PICTURES).glob("*"):
        file.unlink()
    labels = {"cord": {"soft_volume_mm3": 0.0}}
    entry = {"flags": [], "warnings": [], "labels": labels, "seconds": {"forward": 0.0}}
    clock, processors = time.perf_counter(), time.process_time()
    write_qc_page(folder, dict.fromkeys(images, entry), images, progress=False)
    return (time.perf_counter() - clock) / IMAGES, (time.process_time() - processors) / IMAGES


def main() -> None:
    """Print a line for each size."""
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")
    for shape, spacing_mm in SIZES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            images = write_images(folder, shape, spacing_mm)
            clock, processors = map(
                min, zip(*(seconds_of_page(folder, images) for _ in range(TIMES)), strict=True)
            )
        size = " x ".join(map(str, shape))
        print(f"{size}: {clock:.2f} s per image, {processors:.2f} s of processor time")


if __name__ == "__main__":
    main()
