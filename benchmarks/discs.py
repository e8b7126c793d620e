"""The g-ratio of discs in two dimensions, axon in fibre, after a training of minutes on a CPU.

    python benchmarks/discs.py -o discs_output --seed 1

Micrographs in PNG with four fibres each, of known radii, all drawn from the seed. nnU-Net's commands plan
with SoftSegDemoPlanner, train nnUNetTrainerSoftSegDemo on the configuration 2d, and predict images that were
not trained on. The g-ratio of an image is sqrt(area of axons / area of fibres), the areas sums of soft maps,
or of label maps.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunet_softseg.datasets.raw_dataset import soft_label_file
from nnunet_softseg.datasets.soft_label import stored_soft_label
from nnunet_softseg.io.nifti import stored_values

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from disc_dataset import AXON, FIBRE, Disc, DiscDataset, make_disc_dataset

TRAINING, TEST, SIDE = 32, 24, 96
MODEL = (
    "-d",
    "301",
    "-c",
    "2d",
    "-f",
    "0",
    "-p",
    "nnUNetSoftSegDemoPlans",
    "-tr",
    "nnUNetTrainerSoftSegDemo",
)


def main() -> None:
    """Make the images, train, predict, and print the errors of g."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1, help="of the images (default: 1)")
    arguments = parser.parse_args()
    output: Path = arguments.output
    random = np.random.default_rng(arguments.seed)
    cases = {f"img{at:02d}": fibres(random) for at in range(TRAINING)}
    tested = {f"img{at:02d}": fibres(random) for at in range(TRAINING, TRAINING + TEST)}
    dataset = make_disc_dataset(output / "nnunet", ".png", cases, (1, SIDE, SIDE), noise=8.0)
    unseen = make_disc_dataset(output / "unseen", ".png", tested, (1, SIDE, SIDE), noise=8.0)
    started = time.perf_counter()
    plan = ("-d", "301", "-c", "2d", "-pl", "SoftSegDemoPlanner", "-npfp", "1", "-np", "1")
    run(dataset, "nnUNetv2_plan_and_preprocess", *plan)
    run(dataset, "nnUNetv2_train", "301", "2d", "0", *MODEL[6:], "-device", "cpu")
    predicted = output / "predicted"
    images = ("-i", str(unseen.raw / "imagesTr"), "-o", str(predicted), "-device", "cpu")
    run(dataset, "nnUNetv2_predict", *images, *MODEL)
    print(f"{time.perf_counter() - started:.0f} s for {TRAINING} images of {SIDE} x {SIDE} pixels")
    for name, areas in (("soft maps", soft_areas), ("label maps", hard_areas)):
        found = np.array([g_ratio(areas(predicted, case)) for case in tested])
        truth = np.array([[unseen.truth[case][label].sum() for label in (AXON, FIBRE)] for case in tested])
        errors = found - np.sqrt(truth[:, 0] / truth[:, 1])
        size = np.abs(errors)
        print(
            f"g by {name}: mean error {errors.mean():+.4f}, of its size {size.mean():.4f}, "
            f"largest {size.max():.4f}"
        )
        of_areas = np.array([areas(predicted, case) for case in tested]) / truth - 1
        for label, off in zip(("axons", "fibres"), 100 * of_areas.T, strict=True):
            print(
                f"  areas of {label}: {off.mean():+.1f} % in the mean, {off.min():+.1f} to {off.max():+.1f} %"
            )


def fibres(random: np.random.Generator) -> list[Disc]:
    """Return four fibres, one in each quarter of an image, with g-ratios from 0.55 to 0.8."""
    discs = []
    for row, column in ((1, 1), (1, 3), (3, 1), (3, 3)):
        fibre = random.uniform(7, 18)
        y, x = (at * SIDE / 4 + random.uniform(-4, 4) for at in (row, column))
        discs.append(Disc(y, x, fibre, fibre * random.uniform(0.55, 0.8)))
    return discs


def run(dataset: DiscDataset, *command: str) -> None:
    """Run a stock command on the folders of a dataset, quietly; one that fails ends this program."""
    one_core = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **dataset.environment, **one_core}
    program = Path(sys.executable).with_name(command[0])
    subprocess.run([str(program), *command[1:]], env=environment, check=True, stdout=subprocess.DEVNULL)


def soft_areas(folder: Path, case: str) -> list[float]:
    """Return the areas of axons and fibres, in pixels, as sums of soft maps."""
    files = (soft_label_file(folder / "soft", case, label) for label in (AXON, FIBRE))
    return [float(stored_soft_label(file).sum(dtype=np.float64)) for file in files]


def hard_areas(folder: Path, case: str) -> list[float]:
    """Return the numbers of pixels of axons and fibres in a label map."""
    label_map = stored_values(folder / f"{case}.png")
    return [float((label_map == AXON).sum()), float((label_map > 0).sum())]


def g_ratio(areas: Sequence[float]) -> float:
    """Return the ratio of diameters by the areas of axons and of fibres."""
    return float(np.sqrt(areas[0] / areas[1]))


if __name__ == "__main__":
    main()
