"""The model that comes with the package: its file, its card, its maps of images that it has not seen."""

import hashlib
import re
import shutil
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from nnunet_softseg import __version__
from nnunet_softseg.cli import main
from nnunet_softseg.inference.trained_model import READY_MODEL, open_model_file
from nnunet_softseg.io.case_files import REPORT
from nnunet_softseg.io.results import load_json
from nnunet_softseg.metrics.overlap import dice
from nnunet_softseg.network import openvino_network
from nnunet_softseg.phantom.acquisition import PhantomSpec, simulate
from nnunet_softseg.preprocessing.model_plans import version_warning

CARD = READY_MODEL.with_name("README.md")
MOST_BYTES, MOST_PARAMETERS = 12_000_000, 6_000_000
runs = pytest.mark.skipif(not openvino_network.installed(), reason="OpenVINO is not installed")


def predicted(image: Path, output: Path) -> np.ndarray:
    assert main(["predict", "-i", str(image), "-o", str(output), "--no-qc"]) == 0
    name = image.name.removesuffix(".nii.gz").removesuffix("_0000")
    return np.asarray(nib.load(output / "soft" / f"{name}_0001.nii.gz").dataobj)


def test_the_card_names_the_file_by_its_hash_and_the_file_is_small_and_holds_no_pickle() -> None:
    content = READY_MODEL.read_bytes()
    assert len(content) <= MOST_BYTES
    assert re.findall(r"SHA-256 `([0-9a-f]{64})`", CARD.read_text(encoding="utf-8")) == [
        hashlib.sha256(content).hexdigest()
    ]
    with zipfile.ZipFile(READY_MODEL) as archive:
        assert {Path(name).suffix for name in archive.namelist()} == {".json", ".xml", ".bin"}
    folds = open_model_file(READY_MODEL, None).folds
    assert sum(len(fold.weights) for fold in folds.values()) / 2 <= MOST_PARAMETERS  # float16


@runs
@pytest.mark.parametrize("contrast", ["T1w", "T2w", "T2star"])
def test_a_phantom_in_another_contrast_has_its_cord(tmp_path: Path, contrast: str) -> None:
    """The truth is the exact fraction of every voxel."""
    drawn = simulate(PhantomSpec(contrasts=(contrast,), seed=4711), 1, contrast)
    image = tmp_path / "sub-01.nii.gz"
    nib.save(nib.Nifti1Image(drawn.image, drawn.affine), image)
    soft = predicted(image, tmp_path / "out")
    assert dice(soft, drawn.truth) > 0.9
    assert soft.sum() == pytest.approx(drawn.truth.sum(), rel=0.1)


@runs
def test_an_image_without_a_cord_has_an_empty_map_or_a_flag(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(300, 100, (60, 64, 64)).astype(np.float32)
    image = tmp_path / "noise.nii.gz"
    nib.save(nib.Nifti1Image(noise, np.eye(4)), image)
    soft = predicted(image, tmp_path / "out")
    flags = load_json(tmp_path / "out" / REPORT)["cases"]["noise"]["flags"]
    assert flags
    assert not soft.any() or "empty" not in flags


@runs
@pytest.mark.parametrize("case", ["sub-unf01_T2w", "sub-sct01_T1w"])
def test_real_images_have_their_cord(tmp_path: Path, real_data: Path, case: str) -> None:
    """Manual masks of a healthy cord; the model has seen no image of a person."""
    subject = case.partition("_")[0]
    folder = real_data / "bids"
    mask = folder / "derivatives" / "labels" / subject / "anat" / f"{case}_seg-manual.nii.gz"
    soft = predicted(folder / subject / "anat" / f"{case}.nii.gz", tmp_path)
    assert dice(soft, np.asarray(nib.load(mask).dataobj)) > 0.8


@runs
@pytest.mark.parametrize("image", ["lidc/images/sub-0144n1_CT", "lidc/images/sub-0047n0_CT"])
def test_a_vessel_or_nodule_as_wide_as_a_cord_is_none(
    tmp_path: Path, larger_real_data: Path, image: str
) -> None:
    """The network answers as it does to a cord, but to the mirror image otherwise, far beyond rounding."""
    file = larger_real_data / f"{image}_0000.nii.gz"
    assert not predicted(file, tmp_path / "out").any()
    (case,) = load_json(tmp_path / "out" / REPORT)["cases"].values()
    assert {"mirror image differs", "empty"} <= {*case["flags"]}


def test_the_model_of_the_package_is_of_this_version_and_any_other_file_of_the_one_that_made_it(
    tmp_path: Path,
) -> None:
    """Nobody who calls `predict` without -m is warned of a version; who brings a file is."""
    plans = open_model_file(READY_MODEL, None).plans
    assert version_warning(plans) is None
    assert plans["nnunet_softseg"]["training_cases"] == {}  # names of drawn images are those of nobody
    copy = shutil.copy(READY_MODEL, tmp_path / "cord.softseg")
    assert version_warning(open_model_file(copy, None).plans) == (
        f"the model was trained with nnunet_softseg 0.1.0 (here {__version__})"
    )
