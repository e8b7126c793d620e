"""Soft nnU-Net against vanilla on real images: one protocol, one command a study.

    python benchmarks/evidence.py raters -o evidence/raters --data LIDC
    python benchmarks/evidence.py hippocampus -o evidence/hippocampus --data HIPPOCAMPUS
    python benchmarks/evidence.py gm -o evidence/gm --data GREY_MATTER
    python benchmarks/evidence.py contrasts -o evidence/contrasts
    python benchmarks/evidence.py generalisation -o evidence/generalisation --data BIDS

Data -> stock plans -> every method is trained on the same plans, cases and number of steps, once per seed ->
the test images are predicted by the stock command, without mirroring -> measures of every case against the
reference -> evidence.json, evidence.md and evidence.png in FOLDER. The subject is the unit: trainings of a
method are averaged first, then the cases of a person. A step that is done is kept: an interrupted study goes
on where it was, and the same command prints the same table again; other files in --data need another FOLDER.
Does a method gain with longer trainings? `--methods ... softseg_half softseg_double` trains it for half and
for twice the steps, too. On a GPU: --device cuda --planner ExperimentPlanner --epochs 200 --iterations 250.

Trainings take 2000 steps (10 epochs of 200) on the planner's grid, unless asked for otherwise; those of
`raters` a grid of 1.5 x 0.7 x 0.7 mm, those of `gm` 1500 steps (6 of 250) and a grid of 3 x 0.5 x 0.5 mm,
about the voxels of their images: on 1 mm small structures do not come back as they were.

`vanilla` is nnU-Net's own trainer as it comes, its label map; `vanilla_softmax` the probabilities of the same
network, taken for a soft map; `softseg` ours.
"""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from evidence_data import (
    RATERS,
    biased_contrasts,
    case_ids,
    grey_matter,
    hippocampus,
    nodules,
    one_contrast,
    parts_of,
    person_of,
    real_masks,
    rescan_of,
    subjects_of,
    told_by_outlines,
)
from evidence_figure import draw
from study import Method, Study, add_arguments, freeze, plan, shared_by, train_and_predict

from nnunet_softseg.errors import UserError
from nnunet_softseg.io.results import make_folder, write_json
from nnunet_softseg.settings import HARD_THRESHOLD

if TYPE_CHECKING:
    import pandas as pd

WHOLE_IMAGE = "nnUNetTrainerSoftSegSlidingWindow"
SOFTMAX = "_softmax"
LENGTHS = {"half": 0.5, "double": 2.0}
"""Of the trainings of further methods, relative to the study's."""
SHOWN = {
    "dice": "",
    "soft_dice": "",
    "boundary_mae": "",
    "abs_rve_percent": "%",
    "rve_percent": "%",
    "brier": "",
    "ece": "",
    "asd_mm": "mm",
}


@dataclass(frozen=True)
class Question:
    """One study: its data, its methods and what it shows beyond the measures of every case.

    Attributes:
        name: of its datasets.
        methods: what is compared.
        make_data: (data, study) -> what it says of the study's datasets, which it writes.
        more: (study, cases, data) -> further rows, from the table of all cases and methods.
        cases_in: data -> the cases it holds, by which people are counted.
        fewest_people: that all parts of the data have one: test, folds, and what is learned from.
        drawn: measures in the figure.
        on_request: methods that are compared if `--methods` names them.
        steps: (epochs, steps of an epoch) of each training.
        spacing_mm: of the network's grid, S-I, A-P, R-L, chosen so that exact labels survive it
            (`nnunet-softseg check --simulate`); none: the planner's.
        nested: each label lies within the one before: vanilla, which knows one label per voxel, has the outer
            structure where it has any of them.
    """

    name: str
    methods: Mapping[str, Method]
    make_data: Callable[[Path, Study], dict[str, Any]]
    more: Callable[[Study, "pd.DataFrame", Path], list[dict[str, Any]]]
    cases_in: Callable[[Path], Iterable[str]]
    fewest_people: int = 3
    steps: tuple[int, int] = (10, 200)
    spacing_mm: tuple[float, ...] = ()
    nested: bool = False
    drawn: Sequence[str] = ("dice", "boundary_mae", "abs_rve_percent", "brier")
    on_request: Mapping[str, Method] = dataclasses.field(default_factory=dict)

    @property
    def all_methods(self) -> dict[str, Method]:
        """Those that are always compared, then those that `--methods` must name: do longer trainings gain?"""
        of_other_length = {
            f"{name}_{word}": dataclasses.replace(method, length=length)
            for name, method in self.methods.items()
            for word, length in LENGTHS.items()
            if method.trained_as is None and not method.elsewhere
        }
        return {**self.methods, **self.on_request, **of_other_length}


def main() -> None:
    """Run what is missing, then print and write the table."""
    study, asked = parse()
    question = QUESTIONS[asked.study]
    check_people(question, asked.data)
    settings_hash = freeze(study, asked.seeds, asked.data)
    study = dataclasses.replace(study, **question.make_data(asked.data, study))
    for dataset_id in sorted({one for name in study.methods for one in study.datasets_of(name)}):
        plan(study, dataset_id)
    for seed in asked.seeds:
        for name in study.methods:
            train_and_predict(study, name, seed)
    by_seed = measured(study, asked.seeds, question.nested)
    by_seed.to_csv(study.output / "cases.csv", index=False)
    cases = averaged(by_seed)
    rows = [*rows_of(cases, asked.study), *by_chance(by_seed, asked.study)]
    rows += question.more(study, cases, asked.data)
    known = [{name: known_or_none(value) for name, value in entry.items()} for entry in rows]
    write_json(study.output / "evidence.json", known)
    text = f"{as_markdown(rows)}\nprotocol.json: SHA-256 {settings_hash}\n"
    (study.output / "evidence.md").write_text(text, encoding="utf-8")
    draw(known, question.drawn, study.output / "evidence.png")
    print(text)


def parse() -> tuple[Study, argparse.Namespace]:
    """Return the study that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=list(QUESTIONS), help="what is asked")
    every = {name: method for question in QUESTIONS.values() for name, method in question.all_methods.items()}
    add_arguments(parser, every, default="the study's")
    text = "folder of the study's images and labels; `contrasts` makes its own"
    parser.add_argument("--data", type=lambda name: Path(name).resolve(), help=text)
    text = "environment in which segforge is installed, for the method of that name"
    parser.add_argument("--segforge", type=lambda name: Path(name).resolve(), help=text)
    asked = parser.parse_args()
    question = QUESTIONS[asked.study]
    asked.methods = asked.methods or list(question.methods)
    asked.spacing_mm = asked.spacing_mm or question.spacing_mm
    asked.epochs, asked.iterations = asked.epochs or question.steps[0], asked.iterations or question.steps[1]
    known = question.all_methods
    unknown = [name for name in asked.methods if name not in known]
    if unknown:
        parser.error(f"{asked.study}: expected methods of {', '.join(known)}, found {unknown[0]}")
    if asked.data is None and question.make_data is not contrast_data:
        parser.error(f"{asked.study}: expected --data, the folder of its images and labels, found none")
    if asked.data is not None and not asked.data.is_dir():
        parser.error(f"--data: expected a folder, found none at {asked.data}")
    if asked.segforge is None and any(known[name].elsewhere for name in asked.methods):
        parser.error("method segforge: expected --segforge, the environment in which it is, found none")
    shared = {**shared_by(asked, known), "segforge": asked.segforge}
    study = Study(**shared, name=question.name, dataset_ids=(), mirroring=False)
    return study, asked


def check_people(question: Question, data: Path) -> None:
    """End the study before anything is written if its data are of too few people."""
    people = sorted({person_of(case) for case in question.cases_in(data)})
    if len(people) < question.fewest_people:
        sys.exit(
            f"{data}: expected {question.fewest_people} people or more, to test on, to validate on and to "
            f"learn from, found {len(people)} ({', '.join(people) or 'none'}): add some"
        )


def known_or_none(value: Any) -> Any:
    """Return a figure as JSON knows it: none if it is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def nodule_data(data: Path, study: Study) -> dict[str, Any]:
    """Write the dataset of the lung nodules."""
    folder = study.raw / f"Dataset920_{study.name}"
    raters = [data / name for name in RATERS]
    nodules(raters, data / "images", folder, study.output / "fused", parts_of(raters_of(data)))
    return {"dataset_ids": (920,)}


def raters_of(data: Path) -> dict[str, int]:
    """Return nodule -> how many radiologists marked it."""
    file = data / "cases.json"
    if not file.is_file():
        sys.exit(f"{file}: expected the nodules and how many radiologists marked each, found no file")
    entries = json.loads(file.read_text("utf-8"))
    return {entry["case"]: entry["raters"] for entry in entries}


def hippocampus_data(data: Path, study: Study) -> dict[str, Any]:
    """Write the dataset of the hippocampi."""
    hippocampus(data, study.raw / f"Dataset930_{study.name}")
    return {"dataset_ids": (930,)}


def grey_matter_data(data: Path, study: Study) -> dict[str, Any]:
    """Write a dataset for each person left out."""
    return {"dataset_ids": tuple(grey_matter(data, study.raw, study.name))}


def contrast_data(_data: Path | None, study: Study) -> dict[str, Any]:
    """Write the datasets of the phantom: soft labels of biased masks, the masks themselves, and the truth."""
    contrasts = biased_contrasts(study, 950, study.num_processes)
    return {
        "dataset_ids": (contrasts.soft,),
        "datasets": {"own masks": (contrasts.own_masks,), "a contrast each": contrasts.per_contrast},
        "reference_ids": (contrasts.truth,),
    }


def one_contrast_data(data: Path, study: Study) -> dict[str, Any]:
    """Write the dataset of one contrast of healthy phantoms, and which test case is of which group."""
    groups, file = one_contrast(study, data, 960, study.num_processes), study.output / GROUPS
    if not file.is_file():  # cases of a folder that is there keep their names
        write_json(file, groups)
    return {"dataset_ids": (960,)}


GROUPS = "groups.json"


# Measures


def measured(study: Study, seeds: Sequence[int], nested: bool) -> "pd.DataFrame":
    """Return the measures of every case, method, label and training."""
    by_seed = {}
    for seed in seeds:
        folders = by_seed[seed] = {}
        for name, method in study.methods.items():
            folders[name] = maps_folder(study, name, seed)
            if method.probabilities:
                folders[f"{name}{SOFTMAX}"] = maps_folder(study, f"{name}{SOFTMAX}", seed)
                write_vanilla(study.prediction(name, seed), folders[name], nested, softmax=False)
                write_vanilla(study.prediction(name, seed), folders[f"{name}{SOFTMAX}"], nested, softmax=True)
    return measured_folders(study, by_seed)


def measured_folders(study: Study, by_seed: Mapping[int, Mapping[str, Path]]) -> "pd.DataFrame":
    """Return the measures of every case, method, label and training, of training -> method -> its maps."""
    import pandas as pd

    from nnunet_softseg.evaluation.evaluate import measure_methods
    from nnunet_softseg.evaluation.measuring import EvaluationSettings

    settings = EvaluationSettings.from_arguments(num_processes=study.num_processes)
    measures = [measure_methods(folders, references(study), settings) for folders in by_seed.values()]
    for each in measures:
        if each.failed or len(each.missing):
            # Those that are left would be a smaller study, by another sample, without a word.
            sys.exit("\n".join(["expected a map of each test case by each method, found:", *each.failures,
                                *each.warnings]))  # fmt: skip
    tables = [each.cases for each in measures]
    return pd.concat(tables, keys=list(by_seed), names=["seed", "row"]).reset_index("seed")


def averaged(by_seed: "pd.DataFrame") -> "pd.DataFrame":
    """Return the measures of every case, method and label, the trainings of a method averaged."""
    keys = ["method", "label", "case", "contrast"]
    figures = by_seed.select_dtypes("number").columns.difference([*keys, "seed"])
    return by_seed.groupby(keys, sort=False, dropna=False)[list(figures)].mean().reset_index()


def by_chance(by_seed: "pd.DataFrame", study: str) -> list[dict[str, Any]]:
    """Return the differences of two trainings of one method, other seeds: how large chance makes them."""
    first, *others = by_seed["seed"].unique()
    if not others:
        return []
    rows = []
    for (method, label), of_method in by_seed.groupby(["method", "label"], sort=False):
        one, other = (of_method[of_method["seed"] == seed] for seed in (first, others[0]))
        for measure in SHOWN.items():
            difference = by_person(one, measure[0]) - by_person(other, measure[0])
            name = f"{method}, seed {first} - seed {others[0]}"
            rows.append(row(study, name, label, measure, difference))
    return rows


def maps_folder(study: Study, method: str, seed: int) -> Path:
    """Return the folder with a file `<case>_<label>` for each map of a method."""
    known = study.methods.get(method)
    is_ours = known is not None and not known.probabilities
    return (
        study.prediction(method, seed) / "soft" if is_ours else study.output / "vanilla" / str(seed) / method
    )


def references(study: Study) -> Path:
    """Return a folder with the soft labels of all test cases, whatever dataset they are of."""
    folder = study.output / "references"
    make_folder(folder)
    dataset_ids = study.reference_ids or study.dataset_ids
    for dataset_id in dataset_ids:
        for file in (study.folder_of(dataset_id) / "softLabelsTs").iterdir():
            target = folder / file.name
            if not target.is_file():
                target.write_bytes(file.read_bytes())
    first = study.folder_of(dataset_ids[0]) / "dataset.json"
    (folder / "dataset.json").write_bytes(first.read_bytes())
    return folder


def write_vanilla(source: Path, folder: Path, nested: bool, *, softmax: bool) -> None:
    """Write a file per label of a vanilla network: its mask, or its probabilities taken for a soft map.

    nnU-Net's .npz holds (class, z, y, x) for (x, y, z) of the label map, as its reader turns images.
    """
    make_folder(folder)
    for file in sorted(source.glob("*.npz")):
        label_map = nib.load(file.with_suffix(".nii.gz"))
        classes = np.load(file)["probabilities"]
        painted = np.asarray(label_map.dataobj)
        for label in range(1, len(classes)):
            target = folder / f"{file.stem}_{label:04d}.nii.gz"
            if target.is_file():
                continue
            last = len(classes) if nested else label + 1
            if softmax:
                voxels = to_stored_axes(classes[label:last].sum(axis=0), label_map)
            else:
                voxels = ((painted >= label) & (painted < last)).astype(np.float32)
            nib.save(nib.Nifti1Image(np.ascontiguousarray(voxels), label_map.affine), target)


def to_stored_axes(voxels: np.ndarray, stored: nib.Nifti1Image) -> np.ndarray:
    """Return voxels (z, y, x) in RAS, as nnU-Net's reader orders them, in the axes of a stored image."""
    from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

    ras = np.asarray(voxels, dtype=np.float32).transpose(2, 1, 0)
    back = ornt_transform(axcodes2ornt("RAS"), io_orientation(stored.affine))
    turned = np.asarray(apply_orientation(ras, back))
    if turned.shape != stored.shape:
        raise ValueError(f"probabilities of {turned.shape} voxels, label map of {stored.shape}")
    return turned


def rows_of(cases: "pd.DataFrame", study: str, measures: Mapping[str, str] = SHOWN) -> list[dict[str, Any]]:
    """Return a row per method, label and measure: mean over people, with its 95 % interval.

    Then those of the differences between the first method and each other.
    """
    rows = []
    for (method, label), of_method in cases.groupby(["method", "label"], sort=False):
        for measure in measures.items():
            rows.append(row(study, str(method), label, measure, by_person(of_method, measure[0])))
    for label, of_label in cases.groupby("label", sort=False):
        ours, *others = of_label["method"].unique()
        for method in others:
            for measure in measures.items():
                one, other = (
                    by_person(of_label[of_label["method"] == name], measure[0]) for name in (ours, method)
                )
                rows.append(row(study, f"{ours} - {method}", label, measure, one - other))
    return rows


def by_person(cases: "pd.DataFrame", measure: str) -> "pd.Series":
    """Return a measure of each person; infinite (a structure that was not found) if any of its cases is."""
    known = cases.dropna(subset=[measure])
    return known.groupby(known["case"].map(person_of))[measure].mean()


def row(study: str, method: str, label: Any, measure: tuple[str, str], values: "pd.Series") -> dict[str, Any]:
    """Return one row of evidence.json. A mean that is infinite, or NaN of nobody, has no interval."""
    from nnunet_softseg.evaluation.comparison.paired_statistics import (
        FEWEST_SUBJECTS,
        confidence_interval,
        student_t,
    )

    known = values.dropna()
    few = 1 < len(known) < FEWEST_SUBJECTS  # the t interval holds, and is as wide as it must be
    finite = np.isfinite(known).all()
    low, high = student_t(known.to_numpy(dtype=float)) if few and finite else confidence_interval(known)
    what = {"study": study, "method": method, "label": int(label), "measure": measure[0], "unit": measure[1]}
    return {**what, "mean": float(known.mean()), "low": float(low), "high": float(high), "n": len(known)}


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table: a line per label and measure, a column per method.

    The number of people stands in a line whose methods have different ones.
    """
    methods = list(dict.fromkeys(entry["method"] for entry in rows))
    lines = [f"| label | measure | {' | '.join(methods)} |", "|---" * (len(methods) + 2) + "|"]
    entries: dict[tuple[int, str], dict[str, Mapping[str, Any]]] = {}
    for entry in rows:
        unit = f", {entry['unit']}" if entry["unit"] else ""
        entries.setdefault((entry["label"], entry["measure"] + unit), {})[entry["method"]] = entry
    for (label, measure), of_method in entries.items():
        differ = len({entry["n"] for entry in of_method.values()}) > 1
        cells = [cell(of_method[name], differ) if name in of_method else "" for name in methods]
        lines.append(f"| {label} | {measure} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(entry: Mapping[str, Any], with_n: bool) -> str:
    """Return mean and interval for a table, and the number of people if asked for."""
    n = f", n = {entry['n']}" if with_n else ""
    if math.isnan(entry["mean"]):
        return f"-{n}"
    interval = "" if math.isnan(entry["low"]) else f" ({entry['low']:.3g}, {entry['high']:.3g})"
    return f"{entry['mean']:.4g}{interval}{n}"


def maps_of(study: Study, method: str, case: str, label: int = 1) -> list[nib.Nifti1Image]:
    """Return a method's map of a case by each training."""
    folders = [maps_folder(study, method, seed) for seed in study.seeds]
    return [nib.load(folder / f"{case}_{label:04d}.nii.gz") for folder in folders]


def by_raters(study: Study, cases: "pd.DataFrame", data: Path) -> list[dict[str, Any]]:
    """Return measures against each radiologist, and peak and volume by the number who marked a nodule."""
    import pandas as pd

    pairs = list(zip(cases["method"], cases["case"], strict=True))
    figures = pd.DataFrame(
        [against_raters(maps_of(study, method, case), case, data) for method, case in pairs]
    )
    table = cases[["method", "case"]].reset_index(drop=True).join(figures)
    rows = [
        row("raters", str(method), 1, (measure, unit), by_person(of_method, measure))
        for method, of_method in table.groupby("method", sort=False)
        for measure, unit in AGAINST_RATERS.items()
    ]
    rows += medians(table, data)
    of_folds = [
        {"method": name, "case": case, **against_raters(images, case, data)}
        for name, method in study.methods.items()
        if method.folds == FIVE and method.calibrated
        for case, images in validated_nodules(study, name).items()
    ]
    if of_folds:
        rows += medians(pd.DataFrame(of_folds), data, " in validation")
    return [*rows, *medians(of_outlines(data), data)]


def of_outlines(data: Path) -> "pd.DataFrame":
    """Return peak and error of the volume of a map that says of each nodule what its outline tells."""
    import pandas as pd

    raters = raters_of(data)
    told = told_by_outlines(data)
    found = [(case, share, 100 * (share * len(RATERS) / raters[case] - 1)) for case, share in told.items()]
    return pd.DataFrame(found, columns=["case", "peak", "rve_percent"]).assign(method="outline_given")


def medians(table: "pd.DataFrame", data: Path, where: str = "") -> list[dict[str, Any]]:
    """Return peak and error of the volume, medians over the nodules that so many radiologists marked."""
    raters = table["case"].map(raters_of(data))
    table = table.assign(abs_rve_percent=table["rve_percent"].abs())
    rows = []
    for (method, number), group in table.groupby(["method", raters], sort=True):
        for measure, unit in (("peak", ""), ("rve_percent", "%"), ("abs_rve_percent", "%")):
            values = group.set_index("case")[measure]
            what = (f"median {measure}, marked by {number}{where}", unit)
            entry = row("raters", str(method), 1, what, values)
            rows.append({**entry, "mean": float(values.median()), "low": math.nan, "high": math.nan})
    return rows


def validated_nodules(study: Study, method: str) -> dict[str, list[nib.Nifti1Image]]:
    """Return case -> its map by each training whose network has not seen it: not one by which it learned."""
    found: dict[str, list[nib.Nifti1Image]] = {}
    for seed in study.seeds:
        for fold in study.methods[method].folds:
            of_fold = study.checkpoint(method, study.dataset_ids[0], seed, fold).parent / "validation"
            for file in sorted((of_fold / "soft").glob("*_0001.nii.gz")):
                found.setdefault(file.name.removesuffix("_0001.nii.gz"), []).append(nib.load(file))
    return found


AGAINST_RATERS = {"threshold_dice": "", "ece_per_rater": "", "volume_crps_mm3": "mm3"}


def against_raters(images: Sequence[nib.Nifti1Image], case: str, data: Path) -> dict[str, float]:
    """Return a nodule's measures against its four radiologists, its peak and the error of its volume.

    All are averaged over the trainings, of which `images` has a map each.
    """
    from nnunet_softseg.metrics.several_raters import (
        calibration_error_per_rater,
        threshold_dice,
        volume_crps,
    )

    masks = [
        np.asarray(nib.load(data / rater / f"{case}.nii.gz").dataobj, dtype=np.float32) for rater in RATERS
    ]
    share = np.mean(masks, axis=0)
    found = []
    for image in images:
        voxels = np.asarray(image.dataobj, dtype=np.float32)
        spacing_mm = [float(length) for length in image.header.get_zooms()]
        voxel_mm3 = float(np.prod(spacing_mm))
        volumes = [float(mask.sum()) * voxel_mm3 for mask in masks]
        volume = float(voxels.sum(dtype=np.float64)) * voxel_mm3
        found.append(
            (
                threshold_dice(voxels, share),
                calibration_error_per_rater(voxels, masks, spacing_mm),
                volume_crps(volume, volumes),
                float(voxels.max()),
                100 * (volume / float(np.mean(volumes)) - 1),
            )
        )
    names = [*AGAINST_RATERS, "peak", "rve_percent"]
    return dict(zip(names, np.nanmean(found, axis=0).tolist(), strict=True))


def repeatability(study: Study, cases: "pd.DataFrame", data: Path) -> list[dict[str, Any]]:
    """Return how much an area differs between two scans without moving in between: no truth is needed.

    The slices that are annotated in the first scan are cut into three ranges along the cord. The area of a
    range is the mean of its slices' sums; the within-subject standard deviation of a session is
    sqrt(mean of (difference of both scans)^2 / 2) over its ranges, unknown without a second scan, and where
    both maps are empty: to find nothing twice is no repeatability. Sessions of a person are averaged; how
    much the area over all annotated slices differs between them is told, too, of those who have several.
    """
    import pandas as pd

    figures, by_hand = [], {}
    for (method, label, case), _ in cases.groupby(["method", "label", "case"], sort=False):
        reference = nib.load(study.output / "references" / f"{case}_{int(label):04d}.nii.gz")
        of_slices = np.nan_to_num(areas(reference))
        annotated = np.flatnonzero(of_slices)
        by_hand[label, case] = ("manual", label, case, float(of_slices[annotated].mean()))
        scans = [case, rescan_of(case)] if has_rescan(study, case) else [case]
        trainings = (maps_of(study, str(method), scan, int(label)) for scan in scans)
        for runs in zip(*trainings, strict=True):
            of_runs = [areas(run)[annotated] for run in runs]
            figures.append((method, label, case, *spread_of(of_runs), float(of_runs[0].mean())))
    names = ["within_subject_sd_mm2", "within_subject_cv_percent"]
    table = pd.DataFrame(figures, columns=["method", "label", "case", *names, "area_mm2"])
    table = table.groupby(["method", "label", "case"], sort=False)[[*names, "area_mm2"]].mean().reset_index()
    rows = rows_of(table, "gm", dict(zip(names, ("mm2", "%"), strict=True)))
    manual = pd.DataFrame(list(by_hand.values()), columns=["method", "label", "case", "area_mm2"])
    return [*rows, *between_sessions(pd.concat([table, manual]))]


def has_rescan(study: Study, case: str) -> bool:
    """Return whether the second scan of a test case is among the images."""
    name = f"{rescan_of(case)}_0000.nii.gz"
    return any((study.images(dataset_id) / name).is_file() for dataset_id in study.dataset_ids)


def spread_of(of_runs: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return within-subject SD, in mm2 and in percent of the mean; of_runs: area of each slice in mm2."""
    if len(of_runs) == 1:
        return math.nan, math.nan
    ranges = [[part.mean() for part in np.array_split(area, RANGES)] for area in of_runs]
    spread, mean = float(np.sqrt(np.square(np.subtract(*ranges)).mean() / 2)), float(np.mean(ranges))
    return (spread, 100 * spread / mean) if mean > 0 else (math.nan, math.nan)


def between_sessions(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """Return the standard deviation of a person's area over sessions, the slices of each where they are."""
    rows = []
    for (method, label), of_method in table.groupby(["method", "label"], sort=False):
        by_session = of_method.groupby(of_method["case"].map(person_of))["area_mm2"]
        for measure, values in (
            (("between_sessions_sd_mm2", "mm2"), by_session.std()),  # NaN of one session
            (("between_sessions_cv_percent", "%"), 100 * by_session.std() / by_session.mean()),
        ):
            rows.append(row("gm", str(method), label, measure, values))
    return rows


RANGES = 3


def areas(image: nib.Nifti1Image) -> np.ndarray:
    """Return the area of each slice across S-I in mm2: the sum over its voxels, from below to above."""
    upright = nib.as_closest_canonical(image)
    pixel_mm2 = float(np.prod(upright.header.get_zooms()[:2]))
    return np.asarray(np.asarray(upright.dataobj).sum(axis=(0, 1), dtype=np.float64) * pixel_mm2)


def over_contrasts(study: Study, cases: "pd.DataFrame", data: Path) -> list[dict[str, Any]]:
    """Return spread and error of a subject's area over contrasts, their tests, and the errors of voxels.

    The spread is that of the areas by all trainings averaged, the error that of each training, averaged.
    """
    subjects = cases.assign(subject=cases["case"].map(person_of)).groupby(["method", "subject"], sort=False)
    table = subjects.agg(std_csa_mm2=("csa_mm2", "std"), abs_csa_error_mm2=("abs_csa_error_mm2", "mean"))
    rows = rows_of(
        table.reset_index().assign(label=1, case=lambda frame: "sub-" + frame["subject"]), "contrasts", AREAS
    )
    if "soft_all" not in study.methods:
        return rows
    return [*rows, *tested(table, "soft_all"), *against_own_mask(study, "soft_all")]


def against_own_mask(study: Study, method: str) -> list[dict[str, Any]]:
    """Return, for each contrast, the measures of a method's soft maps and of their own voxels above 0.5."""
    by_seed = {}
    for seed in study.seeds:
        masks = study.output / "masks" / str(seed) / method
        make_folder(masks)
        for file in sorted(maps_folder(study, method, seed).glob("*.nii.gz")):
            image = nib.load(file)
            above = (np.asarray(image.dataobj) > HARD_THRESHOLD).astype(np.float32)
            nib.save(nib.Nifti1Image(above, image.affine), masks / file.name)
        by_seed[seed] = {method: maps_folder(study, method, seed), f"{method}_mask": masks}
    cases = averaged(measured_folders(study, by_seed))
    return rows_by(cases["contrast"], cases, "contrasts", OF_VOXELS)


OF_VOXELS = {"soft_dice": "", "ece": "", "boundary_mae": "", "rve_percent": "%"}
AREAS = {"std_csa_mm2": "mm2", "abs_csa_error_mm2": "mm2"}


def tested(table: "pd.DataFrame", ours: str) -> list[dict[str, Any]]:
    """Return ratio and p (Wilcoxon signed rank, corrected over all by Holm) of ours against each method."""
    from nnunet_softseg.evaluation.comparison.paired_statistics import corrected, signed_rank_test

    others = [name for name in dict.fromkeys(table.index.get_level_values("method")) if name != ours]
    pairs = [(name, measure) for name in others for measure in AREAS]
    p_values = [
        signed_rank_test((table.loc[ours, measure] - table.loc[name, measure]).dropna()).p
        for name, measure in pairs
    ]
    rows = []
    for (name, measure), p in zip(pairs, corrected(p_values), strict=True):
        ratio = table.loc[ours, measure].mean() / table.loc[name, measure].mean()
        what = {"study": "contrasts", "method": f"{ours} / {name}", "label": 1, "unit": ""}
        rest = {"low": math.nan, "high": math.nan, "n": len(table.loc[name])}
        for kind, value in ((f"ratio of {measure}", ratio), (f"p (Holm) of {measure}", p)):
            rows.append({**what, "measure": kind, "mean": float(value), **rest})
    return rows


def by_group(study: Study, cases: "pd.DataFrame", data: Path) -> list[dict[str, Any]]:
    """Return the rows of each group of test cases: the contrast learned, others, shapes, real images."""
    groups = cases["case"].map(json.loads((study.output / GROUPS).read_text("utf-8")))
    return rows_by(groups, cases, "generalisation", OF_GROUP)


def rows_by(
    groups: "pd.Series", cases: "pd.DataFrame", study: str, measures: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return the rows of each group of cases, named behind the measure; groups: that of each case."""
    return [
        {**entry, "measure": f"{entry['measure']}, {group}"}
        for group, of_group in cases.groupby(groups, sort=False)
        for entry in rows_of(of_group, study, measures)
    ]


OF_GROUP = {"dice": "", "soft_dice": "", "boundary_mae": "", "abs_csa_error_percent": "%"}


def nothing_more(study: Study, cases: "pd.DataFrame", data: Path) -> list[dict[str, Any]]:
    """Return no further rows."""
    return []


ON_REQUEST = {
    "vanilla_adam": Method("nnUNetTrainerAdam1en3", probabilities=True),
    "vanilla_smoothed": Method("nnUNetTrainer", probabilities=True, label_smoothing=0.1),
    "hard_all": Method("nnUNetTrainerSoftSegHardGT", settings={"center_crop": False}),
    "softseg_dice": Method("nnUNetTrainerSoftSegDice", settings={"center_crop": False}),
}
FIVE = ("0", "1", "2", "3", "4")
VANILLA = Method("nnUNetTrainer", probabilities=True)
QUESTIONS = {
    "raters": Question(
        "Nodules",
        {
            "softseg": Method(WHOLE_IMAGE),
            "softseg_folds": Method(WHOLE_IMAGE, folds=FIVE, trained_as="softseg"),
            "softseg_calibrated": Method(WHOLE_IMAGE, folds=FIVE, trained_as="softseg", calibrated=True),
            "softseg_case": Method(WHOLE_IMAGE, settings={"output_scale": "case"}),
            "vanilla": VANILLA,
        },
        nodule_data,
        by_raters,
        raters_of,
        fewest_people=7,  # two are tested on, and each of five folds has one
        spacing_mm=(1.5, 0.7, 0.7),  # about that of the images
        on_request=ON_REQUEST,
    ),
    "hippocampus": Question(
        "Hippocampus",
        {"softseg": Method(WHOLE_IMAGE), "vanilla": VANILLA},
        hippocampus_data,
        nothing_more,
        lambda data: case_ids(data / "images"),
        on_request={
            **ON_REQUEST,
            "softseg_calibrated": Method(WHOLE_IMAGE, trained_as="softseg", calibrated=True),
            "segforge": Method("nnUNetDistanceTrainer", elsewhere=True),
        },
    ),
    "gm": Question(
        "GreyMatter",
        {"softseg": Method(WHOLE_IMAGE), "vanilla": VANILLA},  # one person's cord is 25 mm off the centre
        grey_matter_data,
        repeatability,
        subjects_of,
        steps=(6, 250),
        spacing_mm=(3.0, 0.5, 0.5),  # about that of the images
        nested=True,
        drawn=("dice", "abs_rve_percent", "within_subject_sd_mm2"),
        on_request=ON_REQUEST,
    ),
    "contrasts": Question(
        "Contrasts",
        {
            "soft_all": Method(),
            "hard_all": Method(data="own masks"),
            "vanilla": Method("nnUNetTrainer", probabilities=True, data="own masks"),
        },
        contrast_data,
        over_contrasts,
        lambda _: (),
        fewest_people=0,
        drawn=("dice", "boundary_mae", "std_csa_mm2", "abs_csa_error_mm2"),
        on_request={"soft_per_contrast": Method(data="a contrast each")},
    ),
    "generalisation": Question(
        "OneContrast",
        {
            "softseg": Method(),
            "softseg_contrast_augmentation": Method("nnUNetTrainerSoftSegContrastAug"),
            "vanilla": VANILLA,
        },
        one_contrast_data,
        by_group,
        real_masks,
        fewest_people=1,
        drawn=("dice", "abs_csa_error_percent"),
        on_request={**ON_REQUEST, "softseg_nnunet_zoom": Method(settings={"largest_zoom": None})},
    ),
}


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
