"""Datasets of discs, a fibre with its axon inside, in every image format; fractions of pixels are exact."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK
import tifffile
from skimage.io import imsave
from tiny_dataset import TinyDataset, affine_of, save_nifti

from nnunet_softseg.phantom.scene import Disc, disc_shares

Plane = npt.NDArray[np.float32]
FIBRE, AXON = 1, 2
SPACING_ZYX = (2.0, 0.5, 0.4)
DIRECTION = (0.0, -1.0, 0.0, 0.8, 0.0, -0.6, 0.6, 0.0, 0.8)
"""Of 3-D MHA and NRRD images: oblique, and in another order of axes than the body's."""


def fractions(shape: Sequence[int], discs: Sequence[Disc]) -> dict[int, Plane]:
    """Return the share of each pixel in a fibre, with all that is in it, and in an axon."""
    return dict(zip((FIBRE, AXON), disc_shares(shape, discs), strict=True))


def write_png(file: Path, values: npt.NDArray[Any]) -> None:
    """Write fractions as 16 bits, integers as they are."""
    stored = np.round(values * 65535).astype(np.uint16) if values.dtype.kind == "f" else values
    imsave(file, stored[0] if stored.ndim == 3 else stored, check_contrast=False)


def write_tiff(file: Path, values: npt.NDArray[Any]) -> None:
    tifffile.imwrite(file, values[0] if len(values) == 1 else values, photometric="minisblack")


def write_itk(file: Path, values: npt.NDArray[Any]) -> None:
    flat = len(values) == 1
    image = SimpleITK.GetImageFromArray(values[0] if flat else values)
    image.SetSpacing(SPACING_ZYX[::-1][: 2 if flat else 3])
    if not flat:
        image.SetOrigin((-10.0, 20.0, 5.0))
        image.SetDirection(DIRECTION)
    SimpleITK.WriteImage(image, str(file))


def write_nifti(file: Path, values: npt.NDArray[Any]) -> None:
    save_nifti(file, values.T, affine_of("LAS", SPACING_ZYX[::-1]))


WRITERS: dict[str, Callable[[Path, npt.NDArray[Any]], None]] = {
    ".png": write_png,
    ".tif": write_tiff,
    ".mha": write_itk,
    ".nrrd": write_itk,
    ".nii.gz": write_nifti,
}


@dataclass(frozen=True)
class DiscDataset(TinyDataset):
    """A dataset of fibres and axons: endings of its images and soft labels, and the fractions by case."""

    ending: str
    soft_ending: str
    truth: dict[str, dict[int, npt.NDArray[np.float32]]]

    def image(self, case: str) -> Path:
        return self.raw / "imagesTr" / f"{case}_0000{self.ending}"

    def label_map(self, case: str) -> Path:
        return self.raw / "labelsTr" / f"{case}{self.ending}"

    def soft_label(self, case: str, label: int = 1) -> Path:
        return self.raw / "softLabelsTr" / f"{case}_{label:04d}{self.soft_ending}"


def make_disc_dataset(
    root: Path,
    ending: str,
    cases: dict[str, Sequence[Disc]],
    shape: tuple[int, int, int] = (1, 40, 44),
    *,
    soft_ending: str | None = None,
    noise: float = 4.0,
    with_spacing: bool = True,
) -> DiscDataset:
    """Write a raw dataset: myelin bright, axon less so; discs run through all slices.

    Args:
        root: an empty folder.
        ending: of images and label maps.
        cases: discs of each.
        shape: (z, y, x).
        soft_ending: of soft labels; default: that of the images.
        noise: standard deviation; axon and background are 40 apart.
        with_spacing: write the file in which TIFF of three axes have their spacing.
    """
    dataset = DiscDataset(
        root, "Dataset301_Discs", tuple(cases), (FIBRE, AXON), ending, soft_ending or ending,
        {case: {label: np.repeat(plane[None], shape[0], axis=0)
                for label, plane in fractions(shape[1:], discs).items()} for case, discs in cases.items()},
    )  # fmt: skip
    for folder in ("imagesTr", "labelsTr", "softLabelsTr"):
        (dataset.raw / folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    for case, truth in dataset.truth.items():
        image = 40 + 140 * truth[FIBRE] - 80 * truth[AXON] + random.normal(0, noise, shape)
        is_png = ending == ".png"
        stored = np.round(image).clip(0, 255).astype(np.uint8) if is_png else image.astype(np.float32)
        WRITERS[ending](dataset.image(case), stored)
        label_map = np.where(truth[AXON] > 0.5, AXON, np.where(truth[FIBRE] > 0.5, FIBRE, 0)).astype(np.uint8)
        WRITERS[ending](dataset.label_map(case), label_map)
        if ending == ".tif" and shape[0] > 1 and with_spacing:
            for folder in ("imagesTr", "labelsTr"):
                (dataset.raw / folder / f"{case}.json").write_text(json.dumps({"spacing": SPACING_ZYX}))
        for label, values in truth.items():
            WRITERS[dataset.soft_ending](dataset.soft_label(case, label), values)
    content = {
        "channel_names": {"0": "microscopy"},
        "labels": {"background": 0, "fibre": FIBRE, "axon": AXON},
        "numTraining": len(cases),
        "file_ending": ending,
    }
    (dataset.raw / "dataset.json").write_text(json.dumps(content))
    split = {"train": list(cases)[1:], "val": list(cases)[:1]}
    (dataset.raw / "splits_final.json").write_text(json.dumps([split]))
    return dataset


def some_discs(number: int, seed: int = 0) -> dict[str, Sequence[Disc]]:
    """Return cases with one fibre each, of g-ratios from 0.5 to 0.8, well inside of 40 x 44 pixels."""
    random = np.random.default_rng(seed)
    cases: dict[str, Sequence[Disc]] = {}
    for at in range(number):
        fibre = random.uniform(9, 13)
        place = random.uniform(18, 22), random.uniform(20, 24)
        cases[f"img{at}"] = [Disc(*place, fibre, fibre * random.uniform(0.5, 0.8))]
    return cases


def small_disc_plans(dataset: DiscDataset, configuration: str, patch: Sequence[int]) -> dict[str, Any]:
    """Return nnU-Net's plans with a small patch and network of three stages."""
    plans = dataset.plans()
    entry = plans["configurations"][configuration]
    entry.update(patch_size=list(patch), batch_size=2)
    ones, twos = [1] * len(patch), [2] * len(patch)
    if len(patch) == 3 and patch[0] < 8:
        twos[0] = 1
    entry["architecture"]["arch_kwargs"].update(
        n_stages=3, features_per_stage=[4, 8, 8], kernel_sizes=[[3] * len(patch)] * 3,
        strides=[ones, twos, twos], n_conv_per_stage=[1] * 3, n_conv_per_stage_decoder=[1] * 2,
    )  # fmt: skip
    return {**plans, "continue_training": False}
