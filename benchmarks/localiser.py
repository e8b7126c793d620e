"""Is the cord found where it is not in the middle, and is an image without one told apart?

    python benchmarks/localiser.py -m MODEL -o FOLDER -n 20 --without 100

MODEL is nnU-Net's folder of a model trained on the phantom. Every image is made on its own grid, with the
neck all around it and the exact share of cord in each voxel: nothing is padded, rotated or interpolated. It
goes through preprocessing, network and export as in nnUNetv2_predict. What is done is kept in FOLDER.

With a cord: the same subject, contrast and levels three times: in the middle of a field of view as in
training, in the middle of a larger one, and placed otherwise in one as large as that. The second tells what
comes of the place from what comes of the field of view: an image that shows more is normalised by more.
Found: Dice >= 0.8, and the map covers 95 % of the slices of the cord. The error is that of the area per
slice. A cut is a slice of the cord of which more than half is missing; there must be none without a flag.

Without: zeros, a constant, a neck without canal and cord, noise, the side of a neck, a body of random
ellipsoids. Counted is how often a map comes out, and how often that is flagged.
"""

import argparse
import contextlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage
from tqdm import tqdm

from nnunet_softseg.io.results import make_folder, write_json
from nnunet_softseg.phantom import CONTRAST_NAMES
from nnunet_softseg.phantom.acquisition import PhantomSpec, draw_subject_anatomy, scan
from nnunet_softseg.phantom.anatomy import Anatomy
from nnunet_softseg.phantom.contrasts import contrast_named
from nnunet_softseg.phantom.neck import draw_neck, paint_neck
from nnunet_softseg.phantom.partial_volume import Grid, to_volume, voxel_fractions

FOV_MM = (56.0, 60.0, 64.0)
"""Of the phantom that the model was trained on."""
SI_MM = 84.0
SIDE_MM = 40.0  # R-L, of an image beside the spine
LUMBAR_MM = -230.0  # of the centre of a field of view, in the scanner
MOVED = "found off the centre"
"""Not counted as a flag of a cut: it is raised wherever a map of another box was taken."""
FOUND_DICE, FOUND_SLICES, HALF = 0.8, 0.95, 0.5
WITHOUT = ("zeros", "constant", "slab", "noise", "side", "bodies")
PLACED = ("off the centre", "tilted", "lumbar")
AS_IN_TRAINING, AS_LARGE = ": centred", ": centred, as large"
"""What is added to the kind of an image that shows the cord in its middle."""


@dataclass(frozen=True)
class View:
    """What of a subject an image shows.

    Attributes:
        number: of the subject.
        contrast: its name.
        extent_mm: R-L, A-P, S-I.
        centre_mm: of the image, in the scanner, where the cord is near the axis x = y = 0.
        tilt_deg: of the image about its centre, to R-L and to A-P.
    """

    number: int
    contrast: str
    extent_mm: tuple[float, float, float]
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    tilt_deg: tuple[float, float] = (0.0, 0.0)


Image = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Voxels, affine, share of cord."""


def show(
    view: View, spec: PhantomSpec, *, cord: bool = True, shaped: Callable[[Anatomy], Anatomy] | None = None
) -> Image:
    """Return the image of a view, its affine, and the share of cord in each voxel.

    Args:
        view: of a subject.
        spec: of the phantom.
        cord: whether there is one.
        shaped: changes the subject's cord.
    """
    contrast = contrast_named(view.contrast)
    rng = np.random.default_rng(np.random.SeedSequence(spec.seed, spawn_key=(view.number, 99)))
    anatomy, neck = draw_subject_anatomy(spec, view.number), draw_neck(rng)
    anatomy = shaped(anatomy) if shaped else anatomy
    counts = np.round(np.array(view.extent_mm) / contrast.voxel_mm).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = _rotation(*view.tilt_deg) * contrast.voxel_mm
    affine[:3, 3] = view.centre_mm - affine[:3, :3] @ ((counts - 1) / 2)
    shape = (int(counts[0]), int(counts[1]), int(counts[2]))
    grid = Grid(shape, affine, np.zeros((shape[2], 2)))
    corners = np.array(np.meshgrid(*((0, count) for count in shape))).reshape(3, -1)
    reached = affine[:3, :3] @ corners + affine[:3, 3:]
    surroundings = paint_neck(anatomy, neck, reached.min(axis=1), reached.max(axis=1), rng)
    fractions = voxel_fractions(anatomy, grid)
    image = scan(surroundings, contrast, grid, fractions if cord else None, gain=1.0, rng=rng)
    truth = to_volume(grid, fractions.voxels, fractions.cord * float(cord))
    stored = [nib.Nifti1Image(values, affine) for values in (image, truth)]
    oriented = nib.orientations.axcodes2ornt(contrast.orientation)
    turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(affine), oriented)
    image, truth = (nifti.as_reoriented(turn) for nifti in stored)
    return np.asarray(image.dataobj), image.affine, np.asarray(truth.dataobj)


def _rotation(to_rl_deg: float, to_ap_deg: float) -> np.ndarray:
    rl, ap = np.radians([to_rl_deg, to_ap_deg])
    about_y = np.array([[np.cos(rl), 0, np.sin(rl)], [0, 1, 0], [-np.sin(rl), 0, np.cos(rl)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(ap), -np.sin(ap)], [0, np.sin(ap), np.cos(ap)]])
    return about_y @ about_x


def views(placed: str, number: int, seed: int) -> dict[str, View]:
    """Return kind of image -> view of one piece of cord: in the middle of it twice, and placed otherwise."""
    middle, elsewhere = _views(placed, number, seed)
    as_large = replace(middle, extent_mm=elsewhere.extent_mm)
    return {placed + AS_IN_TRAINING: middle, placed + AS_LARGE: as_large, placed: elsewhere}


def _views(placed: str, number: int, seed: int) -> tuple[View, View]:
    """Return the cord in the middle of an image as in training, and placed otherwise."""
    rng = np.random.default_rng([seed, number, PLACED.index(placed)])
    contrast = CONTRAST_NAMES[number % len(CONTRAST_NAMES)]
    direction = rng.uniform(0, 2 * np.pi)
    if placed == "off the centre":
        distance = rng.uniform(20, 60)
        off = (distance * np.cos(direction), distance * np.sin(direction), 0.0)
        middle = View(number, contrast, (*FOV_MM[:2], SI_MM))
        return middle, View(number, contrast, (176, 176, SI_MM), off)
    if placed == "tilted":
        # What is compared is the volume of one and the same piece of cord, as long as its slices reach.
        tilt = (30.0, 0.0) if number % 2 else (0.0, 30.0 * (-1) ** (number // 2))
        return View(number, contrast, (*FOV_MM[:2], SI_MM)), View(
            number, contrast, (128, 128, SI_MM), (0, 0, 0), tilt
        )
    off = (rng.uniform(-20, 20), rng.uniform(40, 60), LUMBAR_MM)
    middle = View(number, contrast, (*FOV_MM[:2], SI_MM), (0, 0, LUMBAR_MM))
    return middle, View(number, contrast, (200, 220, SI_MM), off)


def views_without_cord(number: int, contrast: str, aside_mm: float) -> dict[str, View]:
    """Return kind of image -> view of a neck that is painted without cord, or beside it."""
    return {
        "slab": View(number, contrast, FOV_MM),
        "side": View(number, contrast, (SIDE_MM, *FOV_MM[1:]), (aside_mm, 0.0, 0.0)),
    }


def without_cord(kind: str, number: int, seed: int) -> Image:
    """Return an image in which there is no cord."""
    rng = np.random.default_rng([seed, number, WITHOUT.index(kind)])
    contrast = CONTRAST_NAMES[number % len(CONTRAST_NAMES)]
    shape = (56, 60, 64)
    empty = np.zeros(shape, np.float32)
    views_of_necks = views_without_cord(number, contrast, 42.0 * (-1) ** number)
    if kind in views_of_necks:
        return show(views_of_necks[kind], PhantomSpec(seed, FOV_MM), cord=False)
    image = {
        "zeros": lambda: empty,
        "constant": lambda: empty + rng.uniform(1, 1000),
        "noise": lambda: ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0, 2)) * 100 + 500,
        "bodies": lambda: _bodies(shape, rng),
    }[kind]()
    return image.astype(np.float32), np.diag([1.0, 1.0, 1.0, 1.0]), empty


def _bodies(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return a body with organs: ellipsoids of random size, place, direction and brightness, with texture."""
    points = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    body = np.full(shape, rng.uniform(0, 300))
    for _ in range(int(rng.integers(8, 25))):
        direction = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        radii = rng.uniform(3, 20, 3)
        away = ((points - rng.uniform(0, shape)) @ direction) / radii
        body[(away**2).sum(-1) < 1] = rng.uniform(0, 1000)
    texture = 1 + 0.05 * ndimage.gaussian_filter(rng.normal(size=shape), 1.5) / 0.1
    return ndimage.gaussian_filter(body * texture, 0.5) + rng.normal(0, 20, shape)


class Predictions:
    """Predicts arrays as nnUNetv2_predict would, in this process."""

    def __init__(self, model: Path, folder: Path) -> None:
        import torch

        from nnunet_softseg.inference.trained_model import CHECKPOINT, load_predictor, open_model

        with open_model(model, None, CHECKPOINT) as found, contextlib.redirect_stdout(io.StringIO()):
            self._predictor = load_predictor(found, torch.device("cpu"))
        self._folder = folder

    @property
    def plans(self) -> dict[str, Any]:
        """Of the model."""
        plans: dict[str, Any] = self._predictor.plans_manager.plans
        return plans

    def __call__(self, name: str, image: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the soft map on the image's grid, and the case's entry in softseg.json."""
        import torch

        from nnunet_softseg.inference import export
        from nnunet_softseg.inference.case_record import CaseRecord
        from nnunet_softseg.inference.nnunet_patches import under_way

        predictor = self._predictor
        managers = predictor.plans_manager, predictor.configuration_manager
        file = self._folder / "images" / f"{name}_0000.nii.gz"
        make_folder(file.parent)
        nib.save(nib.Nifti1Image(image, affine), file)
        target = self._folder / "maps" / name
        make_folder(target.parent)
        with contextlib.redirect_stdout(io.StringIO()):
            preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
            data, _, properties = preprocessor.run_case([str(file)], None, *managers, predictor.dataset_json)
            with under_way(CaseRecord.of(properties)):
                soft = predictor.predict_logits_from_preprocessed_data(torch.as_tensor(data)).numpy()
            export.export_prediction(soft, properties, managers[0], predictor.dataset_json, str(target))
        file.unlink()
        entry = json.loads((target.parent / "softseg.json").read_text())["cases"][name]
        found = nib.load(target.parent / "soft" / f"{name}_0001.nii.gz")
        return found.get_fdata(dtype=np.float32), entry


def measured(found: np.ndarray, truth: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    """Return how a map agrees with the truth: Dice, slices covered, slices cut, volume and area errors."""
    axis = int(np.abs(affine[2, :3] / np.linalg.norm(affine[:3, :3], axis=0)).argmax())
    others = tuple(other for other in range(3) if other != axis)
    true_areas, areas = truth.sum(axis=others, dtype=float), found.sum(axis=others, dtype=float)
    # The first and last slices hold the cord only in part where the image is oblique to it.
    whole = true_areas > HALF * np.median(true_areas[true_areas > 0])
    overlap = np.minimum(found, truth).sum(axis=others, dtype=float)
    hard = 2 * ((found > HALF) & (truth > HALF)).sum() / max(((found > HALF).sum() + (truth > HALF).sum()), 1)
    return {
        "dice": float(hard),
        "covered": float((areas[whole] > HALF * true_areas[whole]).mean()),
        "cut_slices": int((overlap[whole] < HALF * true_areas[whole]).sum()),
        "volume_ratio": float(areas.sum() / true_areas.sum()),
        "area_ratio": float(np.median(areas[whole] / true_areas[whole])),
    }


def run(arguments: argparse.Namespace) -> pd.DataFrame:
    """Return a row per image; those in the folder's rows.json are not made again."""
    rows_file = arguments.output / "rows.json"
    rows = json.loads(rows_file.read_text()) if rows_file.is_file() else []
    done = {row["name"] for row in rows}
    predict = Predictions(arguments.model, arguments.output)
    jobs = [job for job in _jobs(arguments) if job[0] not in done]
    for name, kind, make in tqdm(jobs, unit="image"):
        image, affine, truth = make()
        started = time.perf_counter()
        found, entry = predict(name, image, affine)
        row = {"name": name, "kind": kind, "seconds": time.perf_counter() - started, "flags": entry["flags"]}
        row |= {"above_half": int((found > HALF).sum()), "localiser": entry.get("localiser")}
        row["load"] = os.getloadavg()[0]
        if truth.any():
            row |= measured(found, truth, affine)
        rows.append(row)
        write_json(rows_file, rows)
    wanted = {job[0] for job in _jobs(arguments)}
    return pd.DataFrame([row for row in rows if row["name"] in wanted])


def _jobs(arguments: argparse.Namespace) -> Iterator[tuple[str, str, Any]]:
    for number in range(1, arguments.n + 1):
        for placed in arguments.placed:
            spec = PhantomSpec(arguments.seed, FOV_MM)
            for kind, view in views(placed, number, arguments.seed).items():
                name = re.sub("[:,]", "", f"{kind}_{number}").replace(" ", "-")
                yield name, kind, lambda view=view, spec=spec: show(view, spec)
    for number in range(1, arguments.without + 1):
        for kind in arguments.kinds:
            yield f"{kind}_{number}", kind, lambda kind=kind, n=number: without_cord(kind, n, arguments.seed)


def table(rows: pd.DataFrame) -> str:
    """Return what is measured, as Markdown."""
    lines = [
        "| cord | n | found | area against the middle of an image as large, median (worst) "
        "| of one as in training | error of the area, median: middle, as large, moved "
        "| Dice: middle, as large, moved | cut | cut, not flagged | localiser used | s |",
        "|---" * 11 + "|",
    ]
    lines += [_row_of(placed, rows) for placed in PLACED if (rows.kind == placed).any()]
    lines += [
        "",
        "| no cord | n | a map comes out | of these flagged | empty and flagged |",
        "|---" * 5 + "|",
    ]
    for kind in WITHOUT:
        of_kind = rows[rows.kind == kind]
        if of_kind.empty:
            continue
        out, flagged = of_kind.above_half > 0, of_kind["flags"].str.len() > 0
        lines.append(
            f"| {kind} | {len(of_kind)} | {out.sum()} | {(out & flagged).sum()} | {(~out & flagged).sum()} |"
        )
    return "\n".join(lines) + "\n"


def _row_of(placed: str, rows: pd.DataFrame) -> str:
    """Return what is measured of cords that are placed in one way."""
    numbered = rows.assign(number=rows.name.str.rsplit("_").str[-1]).set_index("number")
    kinds = {"middle": placed + AS_IN_TRAINING, "large": placed + AS_LARGE, "moved": placed}
    by_kind = {key: numbered[numbered.kind == kind] for key, kind in kinds.items()}
    moved = by_kind["moved"]
    found = (moved.dice >= FOUND_DICE) & (moved.covered >= FOUND_SLICES)
    cells = [placed, str(len(moved)), f"{100 * found.mean():.0f} %"]
    for key in ("large", "middle"):
        change = (100 * (moved.area_ratio / by_kind[key].area_ratio - 1)).dropna()
        cells.append(f"{change.median():+.1f} % ({change.iloc[int(change.abs().argmax())]:+.1f} %)")
    errors = [100 * (of_kind.area_ratio - 1).abs().median() for of_kind in by_kind.values()]
    cells.append(", ".join(f"{error:.1f} %" for error in errors))
    cells.append(", ".join(f"{100 * of_kind.dice.median():.1f}" for of_kind in by_kind.values()))
    cut = moved.cut_slices > 0
    silent = cut & ~moved["flags"].map(lambda raised: bool(set(raised) - {MOVED}))
    used = moved.localiser.map(lambda entry: bool(entry and entry["used"]))
    cells += [str(cut.sum()), str(silent.sum())]
    cells += [f"{100 * used.mean():.0f} %", f"{moved.seconds.median():.1f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run what is missing, then print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", dest="model", type=Path, required=True)
    parser.add_argument("-o", dest="output", type=Path, required=True)
    parser.add_argument("-n", type=int, default=20, help="subjects per way of placing the cord (default 20)")
    parser.add_argument("--without", type=int, default=100, help="images per kind without cord (default 100)")
    parser.add_argument("--placed", nargs="*", choices=PLACED, default=list(PLACED))
    parser.add_argument("--kinds", nargs="*", choices=WITHOUT, default=list(WITHOUT))
    parser.add_argument("--seed", type=int, default=7, help="of the subjects; not that of the training")
    arguments = parser.parse_args()
    make_folder(arguments.output)
    rows = run(arguments)
    text = table(rows)
    (arguments.output / "localiser.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
