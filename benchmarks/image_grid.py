"""What do exact fractions of the phantom's cord lose on the network's grid, on the way there and back?

    python benchmarks/image_grid.py -n 2 --seed 77

Each contrast's exact share of cord goes to 1 mm, sampled as nnU-Net resamples images or averaged as soft
targets are, and back to the image's voxels, linearly or as fractions. No network: what is lost here, no
network can give back. "partial" is the number of voxels between 0 and 1, relative to the truth's.
"""

import argparse
import time

import numpy as np
import numpy.typing as npt
import pandas as pd
from nibabel.orientations import apply_orientation, io_orientation

from nnunet_softseg.metrics.overlap import boundary, soft_measures
from nnunet_softseg.phantom.acquisition import PhantomSpec, draw_subject_anatomy, make_grid
from nnunet_softseg.phantom.contrasts import CONTRASTS, Contrast
from nnunet_softseg.phantom.partial_volume import to_volume, voxel_fractions
from nnunet_softseg.preprocessing.image_grid import (
    Way,
    on_image_grid,
    on_network_grid,
    placed,
    resample_linear,
)
from nnunet_softseg.settings import HARD_THRESHOLD

NETWORK_MM = 1.0
WAYS: tuple[Way, ...] = ("linear", "fractions")
Map = npt.NDArray[np.float32]


def exact(contrast: Contrast, spec: PhantomSpec, number: int) -> Map:
    """Return the exact share of cord in each voxel of one image, (z, y, x)."""
    stream = np.random.default_rng([spec.seed, number, CONTRASTS.index(contrast)])
    grid = make_grid(contrast, spec, stream)
    shares = voxel_fractions(draw_subject_anatomy(spec, number), grid)
    volume = to_volume(grid, shares.voxels, shares.cord)
    return np.ascontiguousarray(apply_orientation(volume, io_orientation(grid.affine)).transpose(2, 1, 0))


def there(label: Map, shape: tuple[int, ...]) -> dict[str, Map]:
    """Return a label on the network's grid, by the two ways there."""
    return {"sampled": resample_linear(label, shape), "averaged": on_network_grid(label, shape)}


def rows(contrast: Contrast, label: Map) -> list[dict[str, object]]:
    """Return the measures of one label by every way there and back, and of its threshold."""
    sizes = zip(label.shape, contrast.voxel_mm[::-1], strict=True)
    shape = tuple(round(size * mm / NETWORK_MM) for size, mm in sizes)
    found: list[dict[str, object]] = []
    for way_there, target in there(label, shape).items():
        for way in WAYS:
            started = time.process_time()
            whole = tuple((0, size) for size in shape)
            back = placed(*on_image_grid(target[None], whole, shape, label.shape, [way]), label.shape)[0]
            seconds = time.process_time() - started
            measures = soft_measures(back, label, 1.0)
            hard = soft_measures((back > HARD_THRESHOLD).astype(np.float32), label, 1.0)
            found.append(
                {
                    "contrast": contrast.name,
                    "there": way_there,
                    "back": way,
                    "boundary MAE": measures["boundary_mae"],
                    "volume, %": measures["rve_percent"],
                    "peak": float(back.max()),
                    "soft Dice": measures["soft_dice"],
                    "soft Dice of > 0.5": hard["soft_dice"],
                    "partial": float(boundary(back).sum() / boundary(label).sum()),
                    "s": seconds,
                }
            )
    return found


def main() -> None:
    """Print the means over subjects, a row per contrast and way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=2, help="subjects")
    parser.add_argument("--seed", type=int, default=77, help="of the phantom")
    arguments = parser.parse_args()
    spec = PhantomSpec(seed=arguments.seed)
    table = pd.DataFrame(
        row
        for number in range(1, arguments.n + 1)
        for contrast in CONTRASTS
        for row in rows(contrast, exact(contrast, spec, number))
    )
    means = table.groupby(["contrast", "there", "back"], sort=False).mean()
    print(means.round(4).to_string())


if __name__ == "__main__":
    main()
