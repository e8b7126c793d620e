"""A small dataset of noise with soft blobs, and nnU-Net's own planning and preprocessing in this process."""

import contextlib
import io
import json
import multiprocessing.dummy
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import gaussian_filter

NAME = "Dataset101_Tiny"
SHAPE = (24, 26, 30)
SPACING_MM = (1.0, 1.2, 0.9)


@dataclass(frozen=True)
class TinyDataset:
    """Where the dataset lies.

    Attributes:
        root: the three folders of nnU-Net lie in it.
        name: of the dataset.
        cases: their names.
        labels: foreground values.
    """

    root: Path
    name: str
    cases: tuple[str, ...]
    labels: tuple[int, ...]

    @property
    def raw(self) -> Path:
        return self.root / "raw" / self.name

    @property
    def preprocessed(self) -> Path:
        return self.root / "preprocessed" / self.name

    @property
    def environment(self) -> dict[str, str]:
        return {f"nnUNet_{kind}": str(self.root / kind) for kind in ("raw", "preprocessed", "results")}

    @property
    def dataset_json(self) -> dict[str, Any]:
        return json.loads((self.raw / "dataset.json").read_text())

    def image(self, case: str) -> Path:
        return self.raw / "imagesTr" / f"{case}_0000.nii.gz"

    def label_map(self, case: str) -> Path:
        return self.raw / "labelsTr" / f"{case}.nii.gz"

    def soft_label(self, case: str, label: int = 1) -> Path:
        return self.raw / "softLabelsTr" / f"{case}_{label:04d}.nii.gz"

    def copied(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> "TinyDataset":
        """A copy that a test may spoil, with nnU-Net's folders set to it."""
        shutil.copytree(self.root, root)
        copy = replace(self, root=root)
        for name, folder in copy.environment.items():
            monkeypatch.setenv(name, folder)
        return copy

    def plans(self, name: str = "nnUNetPlans") -> dict[str, Any]:
        return json.loads((self.preprocessed / f"{name}.json").read_text())


def soft_blob(
    shape: Sequence[int], centre: Sequence[float], radius: float, edge: float = 1.5
) -> npt.NDArray[np.float32]:
    """Return a ball that falls linearly from 1 to 0 over `edge` voxels around its radius."""
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"))
    distance = np.sqrt(((grid - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(axis=0))
    return np.clip((radius - distance) / edge + 0.5, 0, 1).astype(np.float32)


def affine_of(orientation: str = "LAS", spacing_mm: Sequence[float] = SPACING_MM, tilt_deg: float = 0) -> Any:
    """Return a (4, 4) voxel-to-RAS affine; the tilt is around R-L."""
    permutation = nib.orientations.axcodes2ornt(orientation)
    direction = np.zeros((3, 3))
    for axis, (world, sign) in enumerate(permutation):
        direction[int(world), axis] = sign
    angle = np.deg2rad(tilt_deg)
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ direction * np.asarray(spacing_mm)
    affine[:3, 3] = (-12.5, 7.25, 31.0)
    return affine


def save_nifti(file: Path, array: npt.NDArray[Any], affine: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nib.save(image, file)


def make_tiny_dataset(
    root: Path,
    cases: Sequence[str] = ("sub-01_T1w", "sub-01_T2w", "sub-02_T2w"),
    *,
    labels: Sequence[int] = (1,),
    name: str = NAME,
    shape: Sequence[int] = SHAPE,
    affines: Sequence[Any] | None = None,
    reader: str | None = None,
    zero_border: int = 0,
    channels: int = 1,
) -> TinyDataset:
    """Write a raw dataset: one noisy image per case, brighter in its soft blobs; no plans yet.

    Args:
        root: an empty folder.
        cases: their names.
        labels: foreground values; one blob each, side by side.
        name: of the dataset.
        shape: of the images, (x, y, z) of the file.
        affines: one per case; default: LAS with `SPACING_MM`.
        reader: for "overwrite_image_reader_writer".
        zero_border: voxels of exact zero around the image, which nnU-Net crops away.
        channels: of each image; those after the first are brighter, with noise of their own.
    """
    dataset = TinyDataset(root, name, tuple(cases), tuple(labels))
    rng = np.random.default_rng(0)
    for index, case in enumerate(cases):
        affine = affine_of() if affines is None else affines[index]
        blobs = _blobs(shape, len(labels), offset=0.3 * index)
        image = 100 * sum(blobs) + rng.normal(50, 5, shape)
        if zero_border:
            inner = tuple(slice(zero_border, size - zero_border) for size in shape)
            cropped = np.zeros_like(image)
            cropped[inner] = image[inner]
            image = cropped
        save_nifti(dataset.image(case), image.astype(np.float32), affine)
        for channel in range(1, channels):
            other = image + rng.normal(50 * channel, 5, shape)
            file = dataset.image(case).with_name(f"{case}_{channel:04d}.nii.gz")
            save_nifti(file, other.astype(np.float32), affine)
        save_nifti(dataset.label_map(case), label_map_of(blobs, labels), affine)
        for label, blob in zip(labels, blobs, strict=True):
            save_nifti(dataset.soft_label(case, label), blob, affine)
    content = {
        "channel_names": {str(channel): "MRI" for channel in range(channels)},
        "labels": {"background": 0, **{f"label{label}": label for label in labels}},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    if reader:
        content["overwrite_image_reader_writer"] = reader
    (dataset.raw / "dataset.json").write_text(json.dumps(content))
    return dataset


def _blobs(shape: Sequence[int], number: int, offset: float) -> list[npt.NDArray[np.float32]]:
    centre = np.asarray(shape) / 2 - 0.5
    blobs = []
    for index in range(number):
        along = np.array([0, 0, 7.0 * (index - (number - 1) / 2) + offset])
        blobs.append(soft_blob(shape, centre + along, radius=4 if number == 1 else 3))
    return blobs


def label_map_of(blobs: Sequence[npt.NDArray[np.float32]], labels: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return soft > 0.5; the blobs here never overlap above 0.5."""
    label_map = np.zeros(blobs[0].shape, dtype=np.uint8)
    for label, blob in zip(labels, blobs, strict=True):
        label_map[blob > 0.5] = label
    return label_map


def smooth_noise(shape: Sequence[int], seed: int, sigma: float = 1.0) -> npt.NDArray[np.float32]:
    """Return random values in [0, 1], about as smooth as a label."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=tuple(shape)), sigma)
    return ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    """Let nnU-Net's process pools be threads, as processes take seconds to start, and keep it quiet."""
    threads = SimpleNamespace(get_context=lambda _: multiprocessing.dummy)
    with (
        mock.patch(
            "nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor.multiprocessing", threads
        ),
        mock.patch("nnunetv2.preprocessing.preprocessors.default_preprocessor.multiprocessing", threads),
        mock.patch("nnunetv2.utilities.utils.Pool", multiprocessing.dummy.Pool),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield


def plan_and_preprocess(
    dataset: TinyDataset, configuration: str = "3d_fullres", *, spacing_mm: Sequence[float] | None = None
) -> None:
    """Run nnU-Net's fingerprint extraction, planning and preprocessing.

    Its folders must be set in the environment (`TinyDataset.environment`).

    Args:
        dataset: raw.
        configuration: to be preprocessed.
        spacing_mm: of the network's grid (z, y, x); default: nnU-Net's choice.
    """
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
        DatasetFingerprintExtractor,
    )
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiment_dataset,
        preprocess_dataset,
    )

    class QuickExtractor(DatasetFingerprintExtractor):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            # Of nnU-Net's hundred million foreground voxels, drawn with replacement, the percentiles alone
            # take ten seconds.
            self.num_foreground_voxels_for_intensitystats = 1e4

    number = int(dataset.name[len("Dataset") :][:3])
    with in_this_process():
        extract_fingerprint_dataset(
            number, QuickExtractor, num_processes=1, verbose=False, show_progress_bar=False
        )
        plan_experiment_dataset(number, overwrite_target_spacing=spacing_mm)
        preprocess_dataset(number, configurations=[configuration], num_processes=[1], show_progress_bar=False)


def use(dataset: TinyDataset, patch: pytest.MonkeyPatch) -> None:
    """Let nnU-Net's folders be those of the dataset."""
    for name, folder in dataset.environment.items():
        patch.setenv(name, folder)
        Path(folder).mkdir(exist_ok=True)


def make_ready_to_train(dataset: TinyDataset, patch: pytest.MonkeyPatch) -> None:
    """Use the dataset, planned and preprocessed at 1 mm; loaders will work in this process."""
    use(dataset, patch)
    patch.delenv("nnUNet_n_proc_DA", raising=False)  # the planning takes no 0 of an earlier call
    plan_and_preprocess(dataset, spacing_mm=(1.0, 1.0, 1.0))
    patch.setenv("nnUNet_n_proc_DA", "0")


def small_plans(
    dataset: TinyDataset, patch_size: tuple[int, ...] = (24, 16, 16), features: tuple[int, ...] = (4, 8, 8)
) -> dict[str, Any]:
    """Return nnU-Net's plans with a small patch and network."""
    plans = dataset.plans()
    configuration = plans["configurations"]["3d_fullres"]
    configuration.update(patch_size=list(patch_size), batch_size=2)
    configuration["architecture"]["arch_kwargs"].update(
        n_stages=3,
        features_per_stage=list(features),
        kernel_sizes=[[3, 3, 3]] * 3,
        strides=[[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        n_conv_per_stage=[1] * 3,
        n_conv_per_stage_decoder=[1] * 2,
    )
    return {**plans, "continue_training": False}
