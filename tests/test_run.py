"""What ends a stock command before a class of ours is there, in one line; what is nnU-Net's own stays so."""

import multiprocessing.dummy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import REPOSITORY
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset
from nnunetv2.run.run_training import run_training
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from stand_in import Site
from tiny_dataset import make_tiny_dataset, use

from nnunet_softseg.errors import UserError
from nnunet_softseg.run import explain

LACKING = "from nnunet_softseg.training.variants import nnUNetTrainerSoftSegGone"


def explained(function: Any, *args: Any, **options: Any) -> UserError | None:
    with pytest.raises(Exception) as failed:  # noqa: PT011  any that nnU-Net ends on
        function(*args, **options)
    return explain(failed.value)


def test_a_fold_that_is_no_number() -> None:
    words = ("1", "3d_fullres", "O")
    mistake = explained(run_training, *words, trainer_class_name="nnUNetTrainerSoftSeg")
    assert str(mistake) == "fold: expected all, or a number from 0 on, found 'O': correct it"
    assert explained(run_training, *words, trainer_class_name="nnUNetTrainer") is None


def test_a_trainer_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    mistake = explained(recursive_find_trainer_class_by_name, "nnUNetTrainerSoftSegg")
    assert "expected one of nnUNetTrainerSoftSeg, nnUNetTrainerSoftSegRawLoss," in str(mistake)
    assert str(mistake).endswith("found nnUNetTrainerSoftSegg: correct it")
    assert explained(recursive_find_trainer_class_by_name, "nnUNetTrainerOfOthers") is None


def test_a_dataset_that_nnunet_cannot_plan_is_told_by_what_check_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A case without its second channel: nnU-Net ends on an index; one without a fault stays nnU-Net's."""
    dataset = make_tiny_dataset(tmp_path, channels=2)
    use(dataset, monkeypatch)
    planning = "nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor.multiprocessing"
    monkeypatch.setattr(planning, SimpleNamespace(get_context=lambda _: multiprocessing.dummy))
    with monkeypatch.context() as patch:
        patch.setattr(DatasetFingerprintExtractor, "run", lambda *_, **__: {}[0])
        assert explained(extract_fingerprint_dataset, 101) is None
    dataset.image("sub-01_T1w").with_name("sub-01_T1w_0001.nii.gz").unlink()
    mistake = str(explained(extract_fingerprint_dataset, 101))
    assert mistake.startswith("Dataset101_Tiny: imagesTr/sub-01_T1w_0000.nii.gz: wrong number of channels: ")
    assert "expected 2, as channel_names, found 1" in mistake
    again = "then look again: nnunet-softseg check -d 101 (nnU-Net ended with"
    assert again in mistake


def test_what_nnunet_does_not_read_explains_no_end_of_its_planning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full; that a file lies beside the soft labels, too, is another matter."""
    dataset = make_tiny_dataset(tmp_path)
    use(dataset, monkeypatch)
    (dataset.raw / "softLabelsTr/Thumbs.db").touch()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(DatasetFingerprintExtractor, "run", full)
        assert explained(extract_fingerprint_dataset, 101) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LACKING, "line 1: expected a trainer that can be imported, found ImportError: cannot import name"),
        (LACKING, "import one of nnunet_softseg.training.trainer.nnUNetTrainerSoftSeg, "),
        ("import nnunet_softseg.trainer", "No module named 'nnunet_softseg.trainer': import one of "),
        ("import nnunet_softseg\nx = y", "line 2: expected a trainer that can be imported, found NameError"),
        ("import nnunet_softseg\n\nx = (", "line 3: expected a trainer that can be imported, found Syntax"),
        ("x = y", None),
        ("x = (", None),
    ],
)
def test_an_external_trainer_that_does_not_load(
    text: str, says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without our name in it, it is between nnU-Net and its author."""
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    mistake = explained(recursive_find_trainer_class_by_name, "MyTrainer")
    if says is None:
        assert mistake is None
    else:
        assert str(mistake).startswith(f"{tmp_path / 'mine.py'}, line ")
        assert says in str(mistake)


@pytest.mark.parametrize(
    ("trainer", "stderr"),
    [
        (
            "nnUNetTrainerSoftSeg",
            "nnunet-softseg: error: fold: expected all, or a number from 0 on, found 'O'",
        ),
        ("nnUNetTrainer", "Traceback"),
    ],
)
def test_the_hook_shows_it(trainer: str, stderr: str, tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write("nnunet_softseg/run.py", (REPOSITORY / "nnunet_softseg" / "run.py").read_text())
    code = f"""
    import sys, nnunetv2.utilities.find_class_by_name
    sys.argv += ["-tr", "{trainer}"]
    def run_training(fold, trainer_class_name):
        int(fold)
    run_training("O", "{trainer}")
    """
    process = site.run(code)
    assert process.returncode == 1
    assert process.stderr[: len(stderr)] == stderr
    assert process.stdout == ""
