"""A model of ours where this package is not installed: nnU-Net's own error names it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import clean_environment
from grid_plans import vanilla_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_softseg import __version__
from nnunet_softseg.preprocessing.model_plans import NEEDS, named_after_package, soft_plans
from nnunet_softseg.run import load_hook
from nnunet_softseg.settings import SoftSegSettings

PREDICT = """
import sys
sys.modules["nnunet_softseg"] = None  # as if not installed
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
nnUNetPredictor(device=torch.device("cpu")).initialize_from_trained_model_folder(sys.argv[1], ("all",))
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    plans = soft_plans(vanilla_plans(), "nnUNetTrainerSoftSeg", SoftSegSettings())
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    labels = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "cord": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(labels))
    (tmp_path / "fold_all").mkdir()
    checkpoint = {
        "trainer_name": "nnUNetTrainerSoftSeg",
        "init_args": {"configuration": named_after_package("3d_fullres")},
        "network_weights": {},
    }
    torch.save(checkpoint, tmp_path / "fold_all" / "checkpoint_final.pth")
    return tmp_path


def test_the_last_line_names_package_and_version(model: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", PREDICT, str(model)],
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment({"NNUNET_SOFTSEG_NO_HOOK": "1"}),
    )
    assert process.returncode == 1
    assert process.stderr.strip().splitlines()[-1] == (
        f"RuntimeError: Requested configuration 3d_fullres [of nnunet-softseg {__version__}, which is "
        f"missing here: pip install nnunet-softseg=={__version__}] not found in plans. Available "
        "configurations: ['3d_fullres']"
    )


def test_with_the_package_the_configuration_is_found_by_either_name() -> None:
    manager = PlansManager(vanilla_plans())
    by_name = manager.get_configuration(named_after_package("3d_fullres"))
    assert by_name is manager.get_configuration("3d_fullres")
    with pytest.raises(RuntimeError, match="Requested configuration 3d_lowres not found"):
        manager.get_configuration(named_after_package("3d_lowres"))


def test_hook_and_package_agree_on_the_mark() -> None:
    assert load_hook().NEEDS == NEEDS
