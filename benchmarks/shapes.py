"""Do cords of unusual shape come back from a model, and from the post-processing alone?

    python benchmarks/shapes.py -m MODEL -o FOLDER -n 2

MODEL is nnU-Net's folder of a model trained on the phantom. Each image is a phantom subject whose cord is
narrowed, widened, thinned, ended or interrupted; the phantom's own share of cord in each voxel is the truth.
"Exact" is what the post-processing makes of the truth: it must be the truth. "Network" is a whole prediction.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from localiser import FOV_MM, Predictions, View, measured, show
from tqdm import tqdm

from nnunet_softseg.io.results import make_folder
from nnunet_softseg.phantom.acquisition import PhantomSpec
from nnunet_softseg.phantom.anatomy import Anatomy, Floats

Factor = Callable[[Floats], Floats]
CONTRAST = "T1w"  # of 1 mm, as the network's grid
SI_MM = 110.0
NARROW_MM, TAPER_MM, GAP_MM = 5.0, 8.0, 4.0
_NOTHING = 1e-6


@dataclass(frozen=True)
class ShapedAnatomy(Anatomy):
    """A subject whose areas are multiplied by a factor of the height, from 0 to 1 in the image."""

    factor: Factor = np.ones_like

    def csa_mm2(self, height_mm: Floats) -> Floats:
        """Return the area of the section perpendicular to the centreline at each height, in mm2."""
        share = (height_mm + self.centre_mm[2]) / SI_MM + 0.5
        return super().csa_mm2(height_mm) * np.maximum(self.factor(share), _NOTHING)


def narrowed(discs: int, by: float) -> Factor:
    """Return the factor of a cord narrowed at discs."""
    at = np.linspace(0.15, 0.85, discs)
    width = NARROW_MM / SI_MM
    return lambda share: 1 - by * np.exp(-(((share[..., None] - at) / width) ** 2)).max(axis=-1)


def between(start: float, stop: float, inside: float, outside: float) -> Factor:
    """Return the factor of a cord that is another from one share of the length to another."""
    taper = SI_MM / TAPER_MM

    def factor(share: Floats) -> Floats:
        ends = np.minimum(share - start, stop - share) * taper + 0.5
        return outside + (inside - outside) * np.clip(ends, 0, 1)

    return factor


def interrupted(gaps: int) -> Factor:
    """Return the factor of a cord with gaps."""
    at = np.linspace(0.15, 0.85, gaps)
    return lambda share: (np.abs(share[..., None] - at).min(axis=-1) > GAP_MM / 2 / SI_MM).astype(float)


KINDS: dict[str, Factor] = {
    "healthy": np.ones_like,
    "3 discs narrowed by 40 %": narrowed(3, 0.4),
    "5 discs narrowed by 25 %": narrowed(5, 0.25),
    "5 discs narrowed by 50 %": narrowed(5, 0.5),
    "conus: area falls to 0": lambda share: np.clip((share - 0.2) / 0.3, 0, 1),
    "tumour: 3.5 x over 60 %": between(0.2, 0.8, 3.5, 1.0),
    "thinning to 30 %": lambda share: 0.3 + 0.7 * np.clip(share, 0, 1),
    "32 slices": between(0.5 - 16 / SI_MM, 0.5 + 16 / SI_MM, 1.0, 0.0),
    "five gaps": interrupted(5),
}


def exact(truth: np.ndarray, affine: np.ndarray, plans: dict[str, Any]) -> tuple[np.ndarray, list[str]]:
    """Return the truth after the post-processing, and the flags that it raises."""
    from nnunet_softseg.inference.case_record import PredictionOptions
    from nnunet_softseg.inference.export import postprocess
    from nnunet_softseg.settings import PLANS_KEY

    along = int(np.abs(affine[2, :3]).argmax())
    si_axis = plans[PLANS_KEY]["si_axis"] or 0
    on_grid = np.moveaxis(truth, along, si_axis).astype(np.float32)
    names = list(plans[PLANS_KEY]["training_shapes"])[:1]
    (kept,), raised = postprocess(on_grid[None], names, plans, PredictionOptions())
    return np.moveaxis(kept, si_axis, along), list(dict.fromkeys(flag.value for flag, _ in raised))


def rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row per image and map: the exact and the network's."""
    predict = Predictions(arguments.model, arguments.output)
    found = []
    spec = PhantomSpec(arguments.seed, (*FOV_MM[:2], SI_MM))
    jobs = [(kind, number) for kind in KINDS for number in range(1, arguments.n + 1)]
    for kind, number in tqdm(jobs, unit="image"):
        image, affine, truth = show(
            View(number, CONTRAST, (*FOV_MM[:2], SI_MM)),
            spec,
            shaped=lambda anatomy, kind=kind: ShapedAnatomy(**vars(anatomy), factor=KINDS[kind]),
        )
        name = f"{list(KINDS).index(kind)}_{number}"
        network, entry = predict(name, image, affine)
        maps = {"exact": exact(truth, affine, predict.plans), "network": (network, entry["flags"])}
        for made_by, (values, flags) in maps.items():
            row = {"kind": kind, "map": made_by, "flags": flags, "empty": not values.any()}
            found.append(row | measured(values, truth, affine))
    return found


def table(found: pd.DataFrame) -> str:
    """Return Dice, error of the volume and flags per kind, as Markdown."""
    header = ("cord", "map", "n", "Dice, median (worst)", "error of the volume", "empty", "flags")
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for (kind, made_by), of_kind in found.groupby(["kind", "map"], sort=False):
        error = 100 * (of_kind.volume_ratio - 1)
        flags = of_kind["flags"].explode().dropna().value_counts()
        cells = [
            *(kind, made_by, str(len(of_kind)), f"{of_kind.dice.median():.3f} ({of_kind.dice.min():.3f})"),
            f"{error.median():+.1f} % ({error.iloc[int(error.abs().argmax())]:+.1f} %)",
            str(of_kind["empty"].sum()),
            ", ".join(f"{flag} ({count})" for flag, count in flags.items()),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Predict all images, then print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", dest="model", type=Path, required=True)
    parser.add_argument("-o", dest="output", type=Path, required=True)
    parser.add_argument("-n", type=int, default=2, help="subjects per kind (default 2)")
    parser.add_argument("--seed", type=int, default=5, help="of the subjects; not that of the training")
    arguments = parser.parse_args()
    make_folder(arguments.output)
    text = table(pd.DataFrame(rows(arguments)))
    (arguments.output / "shapes.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
