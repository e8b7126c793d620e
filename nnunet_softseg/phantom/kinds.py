"""Phantoms of other kinds than the cord in its neck: raw datasets of nnU-Net's with their truth as files."""

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd
import tifffile
from PIL import Image

from nnunet_softseg import __version__
from nnunet_softseg.datasets.raw_dataset import hard_label_map
from nnunet_softseg.datasets.soft_label import FOLDER
from nnunet_softseg.errors import UserError
from nnunet_softseg.io.case_files import DATASET_JSON
from nnunet_softseg.io.results import make_folder, new_folder, write_json, write_table
from nnunet_softseg.io.workers import map_jobs
from nnunet_softseg.phantom.scene import Scene, draw_discs, draw_lesions, draw_rootlets, draw_spine

KINDS = {"lesions": draw_lesions, "rootlets": draw_rootlets, "spine": draw_spine, "discs": draw_discs}


def phantom_of_kind(
    output: str | os.PathLike[str],
    kind: str,
    n: int = 12,
    seed: int = 0,
    *,
    num_processes: int = 1,
    progress: bool = True,
) -> Path:
    """Return the folder of a phantom, written whole: a raw dataset of nnU-Net's with the truth in `truth/`.

    A case is a function of kind, seed and its number alone.

    Args:
        output: new or empty folder; named DatasetNNN_Name in nnUNet_raw, nnU-Net finds it.
        kind: of `KINDS`.
        n: number of cases.
        seed: of everything random.
        num_processes: cases made at a time.
        progress: show a bar.

    Raises:
        UserError: for an unknown kind, a number out of range, or a folder with something in it.
    """
    folder = Path(output)
    if kind not in KINDS or n < 1 or num_processes < 1 or seed < 0:
        raise UserError(
            f"expected one of {', '.join(KINDS)}, -n and -np from 1, --seed from 0 on, got {kind}, {n}, "
            f"{num_processes}, {seed}"
        )
    with new_folder(folder) as aside:
        for name in ("imagesTr", "labelsTr", FOLDER, "truth"):
            make_folder(aside / name)
        jobs = [(aside, kind, seed, number) for number in range(1, n + 1)]
        options: dict[str, Any] = {"num_processes": num_processes, "progress": progress}
        written = map_jobs(_write_case, jobs, description=f"phantom of {kind}", **options)
        scene = draw(kind, seed, 1)
        columns = {"case": "name of the image", **scene.columns}
        table = pd.DataFrame([row for rows in written for row in rows], columns=[*columns])
        asked = {"kind": kind, "n": n, "seed": seed}
        write_table(table, aside / "truth" / "truth.csv", columns, "phantom", asked)
        description = {
            "name": f"Phantom of {kind}",
            "description": f"Simulated by nnunet-softseg {__version__}, no person was scanned",
            "channel_names": {"0": "simulated"},
            "labels": {"background": 0, **{name: value for value, name in enumerate(scene.shares, 1)}},
            "numTraining": n,
            "file_ending": ".png" if scene.affine is None else ".nii.gz",
        }
        reader = {} if scene.affine is None else {"overwrite_image_reader_writer": "NibabelIOWithReorient"}
        write_json(aside / DATASET_JSON, description | reader)
    return folder


def draw(kind: str, seed: int, number: int) -> Scene:
    """Return one case, the first is 1."""
    place = [*KINDS].index(kind)
    return KINDS[kind](np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, place))))


def _write_case(job: tuple[Path, str, int, int]) -> list[tuple[Any, ...]]:
    """Write image, soft labels, label map and maps of the truth; return the rows of the table."""
    folder, kind, seed, number = job
    scene, case = draw(kind, seed, number), f"sub-{number:02d}"
    shares = [*scene.shares.values()]
    label_map = hard_label_map(shares, [(at, at + 1) for at in range(len(shares))])
    maps = {f"labelsTr/{case}": label_map}
    maps |= {f"truth/{case}_{name}": values for name, values in scene.maps.items()}
    image = np.round(scene.image).astype(np.uint8 if scene.affine is None else np.int16)
    for name, values in {f"imagesTr/{case}_0000": image, **maps}.items():
        _write(folder / name, values, scene.affine)
    for label, share in enumerate(shares, 1):
        _write(folder / FOLDER / f"{case}_{label:04d}", share, scene.affine)
    return [(case, *values) for values in scene.objects]


def _write(stem: Path, values: npt.NDArray[Any], affine: npt.NDArray[np.float64] | None) -> None:
    if affine is not None:
        nib.Nifti1Image(values, affine).to_filename(stem.with_name(f"{stem.name}.nii.gz"))
    elif values.dtype == np.uint8:
        Image.fromarray(values).save(stem.with_name(f"{stem.name}.png"))
    else:
        tifffile.imwrite(stem.with_name(f"{stem.name}.tif"), values, photometric="minisblack")
