"""Models of other people: nothing that they hold is run, nothing is written beside the target."""

import contextlib
import os
import pickle
import stat
import zipfile
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_softseg.errors import UserError
from nnunet_softseg.inference.trained_model import require_no_code, unpack

MODEL = PurePosixPath("Dataset001_Cord/nnUNetTrainerSoftSeg__nnUNetPlans__3d_fullres")


class Runs:
    """What an attacker would put among the weights."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


def test_what_nnunet_writes_is_opened(tmp_path: Path) -> None:
    """The kinds of values in its checkpoints: tensors, text, NumPy's numbers of the log."""
    checkpoint = {
        "network_weights": OrderedDict(weight=torch.ones(3)),
        "grad_scaler_state": None,
        "logging": {"ema_fg_dice": [np.float64(0.5), np.float32(0.5)], "lrs": [1e-3], "n": [np.int64(3)]},
        "init_args": {"configuration": "3d_fullres", "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainerSoftSeg",
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, tmp_path / "checkpoint_final.pth")
    require_no_code(tmp_path / "checkpoint_final.pth")


@pytest.mark.parametrize("kind", ["zip", "of PyTorch before 1.6", "plain pickle"])
def test_code_is_refused_and_not_run(tmp_path: Path, kind: str) -> None:
    checkpoint, witness = tmp_path / "checkpoint_final.pth", tmp_path / "witness"
    content = {"network_weights": {}, "trainer_name": Runs(witness)}
    if kind == "plain pickle":
        checkpoint.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, checkpoint, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(UserError, match="expected a checkpoint of weights and numbers") as refused:
        require_no_code(checkpoint)
    assert ("posix.mkdir" in str(refused.value) or "nt.mkdir" in str(refused.value)) == (kind == "zip")
    assert not witness.exists()
    with contextlib.suppress(RuntimeError):
        torch.load(checkpoint, weights_only=False)  # it would have
    assert witness.is_dir()


def test_a_checkpoint_that_is_cut_off(tmp_path: Path) -> None:
    torch.save({"network_weights": torch.ones(3000)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-500])
    with pytest.raises(UserError, match=r"cut\.pth: .*cut off"):
        require_no_code(tmp_path / "cut.pth")


@pytest.mark.parametrize("name", ["../outside.json", "/tmp/outside.json", "..\\outside.json"])
def test_a_name_that_leads_out_of_the_target_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr(str(MODEL / "plans.json"), "{}")
        archive.writestr(name, "{}")
    with pytest.raises(UserError, match="a path that leads out of it"):
        unpack(tmp_path / "model.zip", MODEL, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.zip"]


def test_a_link_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo(str(MODEL / "fold_0"))
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(UserError, match=r"found a link: .*fold_0"):
        unpack(tmp_path / "model.zip", MODEL, tmp_path)


def test_more_than_the_disk_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "model.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(str(MODEL / "plans.json"), " " * 2**20)
    usage = type("Usage", (), {"free": 2**19})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"expected 0\.0 GiB of room"):
        unpack(tmp_path / "model.zip", MODEL, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.zip"]
