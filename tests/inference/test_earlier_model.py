"""A model that version 0.1.0 trained predicts the soft maps that version 0.1.0 predicted.

`data/model_of_0.1.0` holds the model (two labels, 600 steps of nnUNetTrainerSoftSegDemo on noise with two
soft balls; without the state of the optimiser), an image, and the soft maps that `nnunet-softseg predict
--backend torch-float32 --localize never` wrote for it: bfloat16, which some processors take by default,
differs in the third digit.
"""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from nnunet_softseg.cli import main
from nnunet_softseg.network.of_plans import BUFFER

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


def test_the_buffer_keeps_its_name_in_checkpoints() -> None:
    assert BUFFER == "reference_plateau"
