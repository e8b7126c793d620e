"""A model that version 0.1.0 trained predicts the soft maps that version 0.1.0 predicted.

`data/model_of_0.1.0` holds the model (two labels, 600 steps of nnUNetTrainerSoftSegDemo on noise with two
soft balls; without the state of the optimiser), an image, and the soft maps that `nnunet-softseg predict
--backend torch-float32 --localize never` wrote for it: bfloat16, which some processors take by default,
differs in the third digit.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_softseg.cli import main
from nnunet_softseg.inference.case_record import KEY
from nnunet_softseg.inference.nnunet_patches import SoftSegPreprocessor, convert_prediction
from nnunet_softseg.network.of_plans import BUFFER
from nnunet_softseg.settings import PLANS_KEY

FOLDER = Path(__file__).parents[1] / "data" / "model_of_0.1.0"


def test_a_model_of_the_first_version_predicts_the_same_soft_maps(tmp_path: Path) -> None:
    words = ["predict", "-i", str(FOLDER / "image.nii.gz"), "-o", str(tmp_path), "-m", str(FOLDER)]
    assert main([*words, "-device", "cpu", "--backend", "torch-float32", "--localize", "never"]) == 0
    expected = np.load(FOLDER / "soft_maps.npz")
    for label, name in ((1, "label1"), (2, "label2")):
        soft_map = np.asarray(nib.load(tmp_path / "soft" / f"image_{label:04d}.nii.gz").dataobj)
        assert expected[name].sum() > 100
        np.testing.assert_allclose(soft_map, expected[name], rtol=0, atol=1e-6)
    case = json.loads((tmp_path / "softseg.json").read_text())["cases"]["image"]
    # The robust peak of this case, and the running scale out of the checkpoint.
    assert case["labels"]["label1"]["raw_plateau"] == pytest.approx([6.2366], abs=2e-4)
    assert case["labels"]["label1"]["raw_plateau_in_training"] == [6.3125]


@pytest.mark.parametrize("voxels", [(4, 3, 8), (4, 3, 4)])
def test_a_crop_of_a_few_voxels_is_looked_over_as_a_whole_too(
    voxels: tuple[int, ...], tmp_path: Path
) -> None:
    image = nib.load(FOLDER / "image.nii.gz")
    crop = image.slicer[tuple(slice(10, 10 + size) for size in voxels)]
    nib.save(crop, tmp_path / "crop.nii.gz")
    words = ["predict", "-i", str(tmp_path / "crop.nii.gz"), "-o", str(tmp_path / "out"), "-m", str(FOLDER)]
    assert main([*words, "-device", "cpu", "--backend", "torch-float32", "--localize", "always"]) == 0
    assert json.loads((tmp_path / "out" / "softseg.json").read_text())["cases"]["crop"]["localiser"]
    assert nib.load(tmp_path / "out" / "soft" / "crop_0001.nii.gz").shape == voxels


def test_images_prepared_together_are_predicted_as_each_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who calls nnU-Net's predictor from Python may prepare all images before the first is predicted."""
    monkeypatch.setenv("NNUNET_SOFTSEG_BACKEND", "torch-float32")
    monkeypatch.setenv("NNUNET_SOFTSEG_LOCALIZE", "always")
    stored = nib.load(FOLDER / "image.nii.gz")
    values = np.tile(np.asarray(stored.dataobj), (2, 2, 1))
    turned = np.roll(values, (9, -12), axis=(0, 1))
    shorter = values[:, :, 6:]
    for number, array in enumerate((values, turned, shorter)):
        nib.save(nib.Nifti1Image(array, stored.affine), tmp_path / f"case{number}_0000.nii.gz")
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(FOLDER), ("all",), "checkpoint_final.pth")
    manager, configuration = predictor.plans_manager, predictor.configuration_manager

    def prepared(number: int) -> Any:
        files = [str(tmp_path / f"case{number}_0000.nii.gz")]
        return SoftSegPreprocessor(verbose=False).run_case(
            files, None, manager, configuration, predictor.dataset_json
        )

    def predicted(case: Any) -> np.ndarray:
        raw = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(case[0]))
        properties = case[2]
        maps = convert_prediction(
            raw, manager, configuration, predictor.label_manager, properties, return_probabilities=True
        )[1]
        assert properties[KEY].localiser is not None
        return np.asarray(maps)

    alone = [predicted(prepared(number)) for number in range(3)]
    together = [prepared(number) for number in range(3)]
    for expected, case in zip(alone, together, strict=True):
        np.testing.assert_array_equal(predicted(case), expected)


STOCK = """
import sys
from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder
sys.argv = ["nnUNetv2_predict_from_modelfolder", *{words}]
predict_entry_point_modelfolder()
"""


TRAINED_ON = {"0": ["sub-01_T2w"], "1": ["sub-02_T2w"]}


@pytest.fixture
def two_folds(tmp_path: Path) -> Path:
    """The model as two folds, each trained on what the other validates on."""
    for fold in TRAINED_ON:
        shutil.copytree(FOLDER / "fold_all", tmp_path / "model" / f"fold_{fold}")
    shutil.copy(FOLDER / "dataset.json", tmp_path / "model")
    plans = json.loads((FOLDER / "plans.json").read_text())
    plans[PLANS_KEY]["training_cases"] = TRAINED_ON
    (tmp_path / "model" / "plans.json").write_text(json.dumps(plans))
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("folds", "kept"),
    [
        ((1,), ["1"]),
        (None, ["0", "1"]),
        ("0", ["0"]),
        (("01",), ["1"]),  # nnU-Net takes int() of it
        (iter((0, 1)), ["0", "1"]),
    ],
)
def test_a_predictor_keeps_the_training_cases_of_its_folds(
    folds: Any, kept: list[str], two_folds: Path
) -> None:
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(two_folds), folds)
    entry = predictor.plans_manager.plans[PLANS_KEY]
    assert entry["training_cases"] == {fold: TRAINED_ON[fold] for fold in kept}
    assert "configuration" not in entry  # the folder has no name of nnU-Net's


def test_a_model_without_our_entries_is_opened_as_nnunet_does(two_folds: Path) -> None:
    plans = json.loads((two_folds / "plans.json").read_text())
    del plans[PLANS_KEY]
    (two_folds / "plans.json").write_text(json.dumps(plans))
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(two_folds), (0,))
    assert len(predictor.list_of_parameters) == 1


def test_both_commands_tell_the_training_cases_of_the_folds_that_predict(
    two_folds: Path, tmp_path: Path, in_new_python: Callable[..., str]
) -> None:
    """In a Python of its own: the stock command asks for the first class of ours while it opens the folds."""
    images, case = tmp_path / "images", "sub-02_T2w"
    images.mkdir()
    shutil.copy(FOLDER / "image.nii.gz", images / f"{case}_0000.nii.gz")
    call = ["-i", str(images), "-m", str(two_folds), "-device", "cpu", "-f", "0"]
    assert main(["predict", "-o", str(tmp_path / "ours"), *call]) == 0
    hook = os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "hook")))
    stock = ["-o", str(tmp_path / "stock"), *call, "-npp", "1", "-nps", "1"]
    in_new_python(STOCK.format(words=stock), env={"PYTHONPATH": hook})
    for name in ("ours", "stock"):
        report = json.loads((tmp_path / name / "softseg.json").read_text())
        assert report["training_cases"] == {"0": TRAINED_ON["0"]}, name
        assert "seen in training" not in report["cases"][case]["flags"], name


def test_the_buffer_keeps_its_name_in_checkpoints() -> None:
    assert BUFFER == "reference_plateau"
