"""The datasets of `evidence.py`: grey matter of the cord, nodules of four raters, hippocampus, phantoms.

Whatever people a folder holds, a third of them is for testing, drawn by a fixed seed; of the grey matter,
each person, and so each site, is left out once. A dataset that is there is kept.
"""

import random
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from localiser import View, show
from shapes import KINDS, SI_MM, ShapedAnatomy
from study import Study

from nnunet_softseg.datasets.conversion import convert
from nnunet_softseg.io.formats import without_nifti_ending
from nnunet_softseg.io.results import make_folder, new_folder, write_json
from nnunet_softseg.labels.raters import fuse
from nnunet_softseg.phantom.acquisition import PhantomSpec
from nnunet_softseg.settings import HARD_THRESHOLD

RATERS = ("rater1", "rater2", "rater3", "rater4")
CORD_LABELS = {"cord": "seg-manual", "grey_matter": "gmseg-manual"}
HIPPOCAMPUS_LABELS = ("anterior", "posterior")
DRAW = 2025
FOLDS = 5
GREY_MATTER_ID, ID_LIMIT = 940, 1000
"""Of the dataset of the first person left out, unless there are too many for three digits."""
MASK = "_seg-manual.nii.gz"
PHANTOMS = 18
PHANTOM_MM = (56.0, 60.0, 64.0)
SEEN = "T1w"
"""The contrast that a network learns from which is tested on all."""
SHAPED = {"narrowed discs": "3 discs narrowed by 40 %", "tumour": "tumour: 3.5 x over 60 %"}
"""Kinds of `shapes.py`, by the group of their cases."""
SHAPED_SEED = 11


def person_of(case: str) -> str:
    """Return the person that a case shows: its label in BIDS, less the endings that two of the sets have.

    sub-0822n0_CT is nodule 0 of person 0822, sub-9709Ses2_T2starw session 2 of person 9709. A case whose name
    is not BIDS is a person of its own.
    """
    found = re.match(r"sub-([A-Za-z0-9]+?)(?:n\d+(?=_CT)|Ses\d+)?(?:_|$)", case)
    return found.group(1) if found else case


def rescan_of(case: str) -> str:
    """Return the name of the second scan without moving in between: run-2 of run-1, else nothing."""
    again, found = re.subn(r"_run-(0*)1(?=_)", r"_run-\g<1>2", case)
    return again if found else ""


@dataclass(frozen=True)
class Parts:
    """Cases for testing, the others, and the validation cases of each fold of the others."""

    test: Sequence[str]
    others: Sequence[str]
    folds: Sequence[Sequence[str]]

    @property
    def splits(self) -> list[dict[str, list[str]]]:
        """As nnU-Net's splits_final.json."""
        return [
            {"train": [case for case in self.others if case not in fold], "val": list(fold)}
            for fold in self.folds
        ]


def parts_of(cases: Iterable[str]) -> Parts:
    """Return the parts; all cases of a person are in one. A fold has an eighth of those not tested on."""
    of_person = defaultdict(list)
    for case in sorted(cases):
        of_person[person_of(case)].append(case)
    people = sorted(of_person)
    random.Random(DRAW).shuffle(people)
    third = len(people) // 3
    size = max(third // 4, 1)

    def cases_of(first: int, last: int | None) -> list[str]:
        return sorted(case for person in people[first:last] for case in of_person[person])

    starts = [third + fold * size for fold in range(FOLDS)]
    return Parts(cases_of(0, third), cases_of(third, None), [cases_of(at, at + size) for at in starts])


def write_dataset(
    folder: Path,
    labels: Sequence[str],
    channel: str,
    write_case: Callable[[str, Path, str], None],
    parts: Parts,
) -> None:
    """Write an nnU-Net dataset whose cases a function writes one by one.

    Args:
        folder: of the dataset.
        labels: names in the order of their values.
        channel: name of the image's channel.
        write_case: (case, folder of the dataset, "Tr" or "Ts") -> None.
        parts: which case is for what.
    """
    if folder.is_dir():
        return
    with new_folder(folder) as aside:
        for part, cases in (("Ts", parts.test), ("Tr", parts.others)):
            for case in cases:
                write_case(case, aside, part)
        description = {
            "channel_names": {"0": channel},
            "labels": {"background": 0, **{name: value for value, name in enumerate(labels, 1)}},
            "numTraining": len(parts.others),
            "file_ending": ".nii.gz",
            "overwrite_image_reader_writer": "NibabelIOWithReorient",
        }
        write_json(aside / "dataset.json", description)
        write_json(aside / "splits_final.json", parts.splits)


def nodules(raters: Sequence[Path], images: Path, folder: Path, scratch: Path, parts: Parts) -> None:
    """Write the dataset of lung nodules: the soft label is the mean of the radiologists."""
    if not folder.is_dir():
        fuse(raters, scratch / "soft", label_maps=scratch / "hard", num_processes=2, progress=False)

    def write_case(case: str, target: Path, part: str) -> None:
        place(images / f"{case}_0000.nii.gz", target / f"images{part}")
        place(scratch / "soft" / f"{case}_0001.nii.gz", target / f"softLabels{part}")
        place(scratch / "hard" / f"{case}.nii.gz", target / f"labels{part}")

    write_dataset(folder, ["nodule"], "CT", write_case, parts)


def told_by_outlines(data: Path) -> dict[str, float]:
    """Return case -> the share of radiologists who marked a nodule, as its outline and density tell it.

    A random forest learns the share from size and density of the voxels that any of the four marked; a tenth
    of the people, or one, is left out at a time. A network has to find the outline first.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import GroupKFold, cross_val_predict

    cases = case_ids(data / RATERS[0])
    figures, shares = [], []
    for case in cases:
        image = nib.load(data / "images" / f"{case}_0000.nii.gz")
        masks = [np.asarray(nib.load(data / rater / f"{case}.nii.gz").dataobj) > 0 for rater in RATERS]
        density = np.asarray(image.dataobj, dtype=np.float64)
        figures.append(_figures_of_nodule(density, np.any(masks, axis=0), image.header.get_zooms()))
        shares.append(np.mean([mask.any() for mask in masks]))
    forest = RandomForestRegressor(500, min_samples_leaf=4, random_state=0)
    people = [person_of(case) for case in cases]
    folds = GroupKFold(min(10, len(set(people))))
    told = cross_val_predict(forest, np.array(figures), shares, groups=people, cv=folds)
    return dict(zip(cases, told.tolist(), strict=True))


def _figures_of_nodule(
    density: npt.NDArray[np.float64], marked: npt.NDArray[np.bool_], spacing_mm: Sequence[float]
) -> list[float]:
    """Return size (volume, largest area, length), density (mean, upper end, spread) and steps at the edge."""
    from scipy import ndimage

    areas = marked.sum(axis=(0, 1)) * float(spacing_mm[0] * spacing_mm[1])
    size = [np.log(areas.sum() * spacing_mm[2]), np.log(areas.max()), (areas > 0).sum() * spacing_mm[2]]
    inside = density[marked]
    around = density[ndimage.binary_dilation(marked, iterations=2) & ~marked]
    edge = marked & ~ndimage.binary_erosion(marked)
    slope = ndimage.gaussian_gradient_magnitude(density, 1)[edge].mean()
    levels = [inside.mean(), np.percentile(inside, 90), inside.std()]
    return [float(figure) for figure in (*size, *levels, inside.mean() - around.mean(), slope)]


def place(file: Path, folder: Path) -> None:
    """Copy a file into a folder, made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, folder / file.name)


def hippocampus(data: Path, folder: Path) -> None:
    """Write the dataset of hippocampi in voxels of twice the size; a soft label is the share of fine ones."""

    def write_case(case: str, target: Path, part: str) -> None:
        image = nib.load(data / "images" / f"{case}.nii.gz")
        labels = np.asarray(nib.load(data / "labels" / f"{case}.nii.gz").dataobj)
        affine = coarser(image.affine)
        save(target / f"images{part}" / f"{case}_0000.nii.gz", halve(image.get_fdata()), affine)
        fractions = [halve(labels == value) for value in range(1, len(HIPPOCAMPUS_LABELS) + 1)]
        for value, fraction in enumerate(fractions, 1):
            save(target / f"softLabels{part}" / f"{case}_{value:04d}.nii.gz", fraction, affine)
        painted = sum(
            value * (fraction > HARD_THRESHOLD).astype(np.uint8)
            for value, fraction in enumerate(fractions, 1)
        )
        save(target / f"labels{part}" / f"{case}.nii.gz", painted, affine)

    parts = parts_of(case_ids(data / "images"))
    write_dataset(folder, HIPPOCAMPUS_LABELS, "MRI", write_case, parts)


def halve(voxels: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Return means of 2 x 2 x 2 voxels; an odd last slice is left out."""
    even = tuple(length // 2 * 2 for length in voxels.shape)
    kept = np.asarray(voxels[tuple(slice(length) for length in even)], dtype=np.float64)
    shape = [size for length in even for size in (length // 2, 2)]
    return kept.reshape(shape).mean(axis=(1, 3, 5)).astype(np.float32)


def coarser(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the affine of voxels that each hold 2 x 2 x 2 of the given ones."""
    return np.asarray(
        affine @ np.array([[2, 0, 0, 0.5], [0, 2, 0, 0.5], [0, 0, 2, 0.5], [0, 0, 0, 1]], dtype=np.float64)
    )


def save(file: Path, voxels: npt.NDArray[np.generic], affine: npt.NDArray[np.float64]) -> None:
    """Write a NIfTI file, its folder made if missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), file)


def grey_matter(data: Path, raw: Path, name: str) -> dict[int, str]:
    """Write a dataset for each person left out, of cord and grey matter; return dataset -> person.

    The second scan of the person left out is there to be predicted, too, without a label.
    """
    subjects = subjects_of(data)
    people = sorted({person_of(subject) for subject in subjects})
    for folder in sorted(data.glob("sub-*")):
        if folder.name not in subjects:
            masks = ", ".join(CORD_LABELS.values())
            print(f"{folder.name}: no image has masks ({masks}): left out", file=sys.stderr)
    first_id = min(GREY_MATTER_ID, ID_LIMIT - len(people))
    left_out = dict(enumerate(people, first_id))
    for dataset_id, person in left_out.items():
        test = [subject for subject in subjects if person_of(subject) == person]
        others = [subject for subject in subjects if subject not in test]
        split_file = raw.parent / f"split-{dataset_id}.json"
        make_folder(split_file.parent)
        write_json(split_file, {"train": others[1:], "validation": others[:1], "test": test})
        convert(
            data,
            dataset_id,
            name,
            raw_folder=raw,
            derivatives="derivatives/labels",
            labels=CORD_LABELS,
            distinguish_by=("run",),
            split_file=split_file,
            progress=False,
        )
        folder = next(raw.glob(f"Dataset{dataset_id}_*"))
        for file in sorted((folder / "softLabelsTs").glob("*_0001.nii.gz")):
            case = file.name.removesuffix("_0001.nii.gz")
            forget_unannotated(file.parent, case)
            copy_rescan(data, case, folder / "imagesTs")
    return left_out


def subjects_of(data: Path) -> list[str]:
    """Return the subjects of a BIDS folder of whom an image has masks of cord and grey matter."""

    def has_masks(image: Path) -> bool:
        folder = data / "derivatives" / "labels" / image.parent.relative_to(data)
        name = without_nifti_ending(image.name)
        return all((folder / f"{name}_{ending}.nii.gz").is_file() for ending in CORD_LABELS.values())

    return sorted({file.parents[1].name for file in data.glob("sub-*/anat/*.nii.gz") if has_masks(file)})


def copy_rescan(data: Path, case: str, folder: Path) -> None:
    """Copy the second scan of a case into a folder; tell if it has none."""
    again = rescan_of(case)
    scan = data / case.partition("_")[0] / "anat" / f"{again}.nii.gz"
    if again and scan.is_file():
        shutil.copyfile(scan, folder / f"{again}_0000.nii.gz")
        return
    expected = str(scan) if again else "run-1 and run-2 in the names of images"
    print(f"{case}: no second scan (expected {expected}): it has no within-subject SD", file=sys.stderr)


def forget_unannotated(folder: Path, case: str) -> None:
    """Make all labels of a test case unknown (NaN) in slices across S-I in which none is annotated.

    Where a rater has outlined 14 of 20 slices, the others show a cord, too.
    """
    labels = [nib.load(file) for file in sorted(folder.glob(f"{case}_*.nii.gz"))]
    values = np.stack([label.get_fdata(dtype=np.float32) for label in labels])
    si_axis = nib.io_orientation(labels[0].affine)[:, 0].tolist().index(2)
    slices = np.moveaxis(values, 1 + si_axis, 0)  # a view
    slices[~(slices > 0).any(axis=(1, 2, 3))] = np.nan
    for label, known in zip(labels, values, strict=True):
        nib.save(nib.Nifti1Image(known, label.affine, label.header), label.get_filename())


def phantoms_in_halves(study: Study, seed: int, num_processes: int) -> tuple[Path, Path]:
    """Return the BIDS folder of a phantom, and its split: half to train with."""
    from nnunet_softseg.phantom import phantom

    bids = phantom(
        study.output / "bids", n=2 * PHANTOMS, seed=seed, fov_mm=PHANTOM_MM, num_processes=num_processes
    )
    subjects = sorted(path.name for path in bids.glob("sub-*"))
    split_file = study.output / "split.json"
    parts = {"test": subjects[PHANTOMS:], "validation": subjects[:2], "train": subjects[2:PHANTOMS]}
    write_json(split_file, parts)
    return bids, split_file


@dataclass(frozen=True)
class BiasedContrasts:
    """Ids of the datasets of one phantom: the same images and parts, other labels.

    `soft`: the mean of the masks of all contrasts, each biased as a rater's is; `own_masks`: each contrast
    has its own; `per_contrast`: the soft labels, a dataset of each contrast; `truth`: the share of cord.
    """

    soft: int
    own_masks: int
    per_contrast: tuple[int, ...]
    truth: int


def biased_contrasts(study: Study, first_id: int, num_processes: int) -> BiasedContrasts:
    """Write the datasets of a phantom of 18 subjects to train with and 18 others to test on."""
    from nnunet_softseg.labels.contrasts.make_gt import make_gt
    from nnunet_softseg.phantom import CONTRAST_NAMES, TRUTH, TRUTH_SUFFIX

    num = len(CONTRAST_NAMES)
    ids = BiasedContrasts(
        first_id, first_id + num + 1, tuple(range(first_id + 1, first_id + num + 1)), first_id + num + 2
    )
    bids, split_file = phantoms_in_halves(study, DRAW, num_processes)
    soft = bids / "derivatives" / "softseg"
    make_gt(bids, soft, num_processes=num_processes, progress=False)
    contrast_ids = dict(zip(CONTRAST_NAMES, ids.per_contrast, strict=True))
    for dataset_id, name, derivatives, suffix, per_contrast in (
        (ids.soft, "Soft", soft, None, contrast_ids),
        (ids.own_masks, "OwnMasks", bids / "derivatives" / "labels", "_seg-manual", False),
        (ids.truth, "Truth", TRUTH, TRUTH_SUFFIX, False),
    ):
        convert(
            bids,
            dataset_id,
            name,
            raw_folder=study.raw,
            derivatives=derivatives,
            suffix=suffix,
            split_file=split_file,
            per_contrast=per_contrast,
            num_processes=num_processes,
            progress=False,
        )
    return ids


def one_contrast(study: Study, data: Path, dataset_id: int, num_processes: int) -> dict[str, str]:
    """Write a dataset that learns from one contrast of healthy phantoms, tested on many kinds of images.

    Returns:
        case -> its group: the contrast seen, the others, cords of unusual shape, real images (of `data`, in
        BIDS, with manual masks).
    """
    real = real_masks(data)
    everything = _all_contrasts(study, dataset_id + 1, num_processes)
    shaped = {f"sub-{word}{number:02d}_{SEEN}": group
              for group, word in zip(SHAPED, ("narrow", "wide"), strict=True)
              for number in range(1, PHANTOMS // 2 + 1)}  # fmt: skip

    def write_case(case: str, target: Path, part: str) -> None:
        if case in shaped:
            image, affine, truth = _shaped_phantom(case, KINDS[SHAPED[shaped[case]]])
            write_images(target, part, case, (image, truth), affine)
        elif case in real:
            mask = nib.load(real[case])
            folder = data / real[case].parent.relative_to(data / "derivatives/labels")
            image = nib.load(folder / real[case].name.replace(MASK, ".nii.gz"))
            write_images(target, part, case, (image.get_fdata(), mask.get_fdata()), mask.affine)
        else:
            for folder, name in (
                ("images", f"{case}_0000"),
                ("softLabels", f"{case}_0001"),
                ("labels", case),
            ):
                place(everything / f"{folder}{part}" / f"{name}.nii.gz", target / f"{folder}{part}")

    phantoms = {part: case_ids(everything / f"labels{part}") for part in ("Tr", "Ts")}
    learned = [case for case in phantoms["Tr"] if case.endswith(f"_{SEEN}")]
    parts = Parts([*phantoms["Ts"], *shaped, *real], learned, [learned[:2]])
    write_dataset(study.raw / f"Dataset{dataset_id:03d}_{study.name}", ["cord"], "MRI", write_case, parts)
    seen = {
        case: f"{SEEN}, as learned" if case.endswith(f"_{SEEN}") else "other contrasts"
        for case in phantoms["Ts"]
    }
    return seen | shaped | dict.fromkeys(real, "real images")


def real_masks(data: Path) -> dict[str, Path]:
    """Return case -> its mask. The case of sub-03 is named sub-real03: a phantom may be sub-03, too."""
    masks = sorted((data / "derivatives" / "labels").glob(f"sub-*/anat/sub-*{MASK}"))
    if not masks:
        sys.exit(f"{data}: expected derivatives/labels/sub-*/anat/sub-*{MASK}, found none")
    return {f"sub-real{mask.name.removeprefix('sub-').removesuffix(MASK)}": mask for mask in masks}


def _all_contrasts(study: Study, dataset_id: int, num_processes: int) -> Path:
    """Return the dataset of all contrasts of healthy phantoms, half of the subjects to train with."""
    from nnunet_softseg.phantom import TRUTH, TRUTH_SUFFIX

    bids, split_file = phantoms_in_halves(study, DRAW + 1, num_processes)
    convert(
        bids, dataset_id, "AllContrasts", raw_folder=study.raw, derivatives=TRUTH, suffix=TRUTH_SUFFIX,
        split_file=split_file, num_processes=num_processes, progress=False,
    )  # fmt: skip
    return study.folder_of(dataset_id)


def _shaped_phantom(
    case: str, factor: Callable[..., np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return image, affine and share of cord of a subject whose cord is narrowed or widened."""
    number = int(re.findall(r"\d+", case)[0])
    extent_mm = (*PHANTOM_MM[:2], SI_MM)
    return show(
        View(number, SEEN, extent_mm),
        PhantomSpec(SHAPED_SEED, extent_mm),
        shaped=lambda anatomy: ShapedAnatomy(**vars(anatomy), factor=factor),
    )


def write_images(
    target: Path,
    part: str,
    case: str,
    image_and_label: tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]],
    affine: npt.NDArray[np.float64],
) -> None:
    """Write the image of a case, its soft label and its label map."""
    image, label = image_and_label
    save(target / f"images{part}" / f"{case}_0000.nii.gz", np.asarray(image, np.float32), affine)
    save(target / f"softLabels{part}" / f"{case}_0001.nii.gz", np.asarray(label, np.float32), affine)
    save(target / f"labels{part}" / f"{case}.nii.gz", (label > HARD_THRESHOLD).astype(np.uint8), affine)


def case_ids(folder: Path) -> list[str]:
    """Return the cases of a folder by the names of its files; a folder without any ends the study."""
    cases = [without_nifti_ending(file.name) for file in sorted(folder.glob("*.nii.gz"))]
    if not cases:
        sys.exit(f"{folder}: expected files that end in .nii.gz, found none: check --data")
    return cases
