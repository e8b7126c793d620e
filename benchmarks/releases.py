"""Does `drift` stay silent where only the training was another, and speak where areas are 2 % larger?

    python benchmarks/releases.py -o releases --seeds 0 1 2 3 4

For each seed two releases of one model, of 1000 and of 1200 steps (`--epochs`, and a fifth more), predict the
same 12 phantom subjects in six contrasts. `drift` with its default limits compares them; then the older one
with the newer one's maps dilated until each area is 2 % larger. Each training starts from other weights and
sees other patches: no two releases differ by less. A step that is done is kept.
"""

import argparse
import dataclasses
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from phantom_study import DATASET_ID, NAME, PhantomStudy, levels_of, make_data
from scipy import ndimage
from study import Method, add_arguments, freeze, shared_by, train_and_predict

from nnunet_softseg import drift
from nnunet_softseg.io.results import make_folder

METHODS = {"soft_all": Method()}
DRAWN = (30, 3, 12)
LARGER = 1.02


def main() -> None:
    """Run what is missing, then print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, METHODS)
    asked = parser.parse_args()
    shared = {**shared_by(asked, METHODS), "name": NAME, "dataset_ids": (DATASET_ID,)}
    old = PhantomStudy(**shared | {"output": asked.output.resolve() / "old"})
    new = dataclasses.replace(
        old, output=asked.output.resolve() / "new", epochs=asked.epochs + asked.epochs // 5
    )
    for release in (old, new):
        freeze(release, asked.seeds)
        make_data(release, DRAWN, 0)
    rows = []
    for seed in asked.seeds:
        for release in (old, new):
            train_and_predict(release, "soft_all", seed)
        rows += compared(old, new, seed)
    table = pd.DataFrame(rows)
    table.to_csv(asked.output / "releases.csv", index=False)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.2f}"))


def compared(old: PhantomStudy, new: PhantomStudy, seed: int) -> list[dict[str, object]]:
    """Return what `drift` says of two releases, and of the older one against the newer one dilated."""
    first, second = (release.prediction("soft_all", seed) / "soft" for release in (old, new))
    larger = new.output / "dilated" / f"seed-{seed}"
    dilate(second, larger)
    rows = []
    for what, maps in (("1.2 times the steps", second), ("and 2 % larger", larger)):
        where = new.output / "drift" / f"seed-{seed}" / maps.parent.name
        report = drift(first, maps, where, levels=levels_of(old), num_processes=old.num_processes)
        bias = 100 * report.table["bias_mm2"] / (report.pairs.groupby("contrast")["old"].mean().mean())
        rows.append(
            {
                "seed": seed,
                "new release": what,
                "drift": report.drift,
                "bias over contrasts, %": 100 * (report.pairs["new"] / report.pairs["old"] - 1).mean(),
                "least of a contrast and level, %": bias.min(),
                "largest, %": bias.max(),
                "limits broken": "; ".join(report.broken),
            }
        )
    return rows


def dilate(maps: Path, folder: Path) -> None:
    """Write maps whose every axial section is 2 % larger around its centre of mass, its values kept."""
    make_folder(folder)
    for file in sorted(maps.glob("*.nii.gz")):
        stored = nib.load(file)
        si_axis = next(axis for axis, way in enumerate(nib.aff2axcodes(stored.affine)) if way in "SI")
        sections = np.moveaxis(np.asarray(stored.dataobj, dtype=np.float32), si_axis, 0)
        wider = np.moveaxis(np.stack([larger_section(section) for section in sections]), 0, si_axis)
        nib.save(nib.Nifti1Image(wider, stored.affine), folder / file.name)


def larger_section(section: np.ndarray) -> np.ndarray:
    """Return a section stretched around its centre of mass, so that its sum is 2 % larger."""
    if not section.any():
        return section
    shrink = np.eye(2) / np.sqrt(LARGER)
    centre = np.array(ndimage.center_of_mass(section))
    return ndimage.affine_transform(section, shrink, offset=centre - shrink @ centre, order=1)


if __name__ == "__main__":
    main()
