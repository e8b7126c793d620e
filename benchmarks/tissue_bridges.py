"""Error of tissue bridges against geometry: boxes and ellipsoids at random places in a tilted cylinder.

    python benchmarks/tissue_bridges.py --repeats 2

Prints, for each grid and definition, root mean square and largest error of the dorsal and ventral
bridges, in mm.
"""

import argparse
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from nnunet_softseg.metrics.morphometry.lesions import measure_lesions

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from cord_lesions import Lesion, phantom

GRIDS_MM = ((0.8, 0.8, 0.8), (0.6, 0.6, 3.0), (3.0, 0.6, 0.6))
TILTS_DEG = (0.0, 10.0, 15.0)


def random_lesion(shape: str, random: np.random.Generator) -> Lesion:
    """Return a lesion in the cord, centred on the midsagittal plane."""
    centre_mm = (0.0, random.uniform(-0.8, 0.8), random.uniform(-1, 1))
    return Lesion(shape, centre_mm, (2.2 if shape == "box" else 3.0, random.uniform(1.2, 2.2), 6.0))


def errors(repeats: int, seed: int) -> pd.DataFrame:
    """Return a row per bridge: grid, definition, error in mm."""
    random, rows = np.random.default_rng(seed), []
    for shape, voxel_mm, tilt_deg, _ in product(("box", "ellipsoid"), GRIDS_MM, TILTS_DEG, range(repeats)):
        shift_mm = random.uniform(-0.5, 0.5, 3) * voxel_mm
        lesion = random_lesion(shape, random)
        shares = phantom(lesion, voxel_mm=voxel_mm, tilt_deg=tilt_deg, shift_mm=shift_mm)
        for maps in ("masks", "soft maps"):
            row = measure_lesions(*shares.images(masks=maps == "masks")).table.iloc[0]
            for side, truth_mm in (("dorsal", lesion.dorsal_mm), ("ventral", lesion.ventral_mm)):
                error_mm = row[f"{side}_bridge_mm"] - truth_mm
                rows.append((voxel_mm, maps, row["definition"], shape, error_mm))
    return pd.DataFrame(rows, columns=["voxel_mm", "maps", "definition", "shape", "error_mm"])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=int, default=2, help="lesions per shape, grid and tilt (default: 2)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the places (default: 0)")
    options = parser.parse_args()
    grouped = errors(options.repeats, options.seed).groupby(["voxel_mm", "maps", "definition"])["error_mm"]
    table = grouped.agg(
        lesions=lambda error: len(error) // 2,
        rmse_mm=lambda error: np.sqrt((error**2).mean()),
        largest_mm=lambda error: error.abs().max(),
    )
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
