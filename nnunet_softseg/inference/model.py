"""A trained model of ours: nnU-Net's folder or an exported archive, checked before anything is loaded."""

import contextlib
import io
import pickle
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from nnunet_softseg.datasets.raw_dataset import load_json
from nnunet_softseg.errors import UserError
from nnunet_softseg.io.record import sha256
from nnunet_softseg.preprocessing.model_plans import is_soft

CHECKPOINT = "checkpoint_final.pth"
_PLANS = "plans.json"
_UNLOADABLE = (
    RuntimeError, KeyError, TypeError, EOFError, OSError, pickle.UnpicklingError, AttributeError, ImportError,
    AssertionError,
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A model on disk.

    Attributes:
        folder: nnU-Net's, `<trainer>__<plans>__<configuration>`.
        folds: as in the names of their folders: "0", "all".
        checkpoint: file name inside the folds.
        plans: saved beside it, with our entries.
        dataset_json: of its training.
    """

    folder: Path
    folds: tuple[str, ...]
    checkpoint: str
    plans: Mapping[str, Any]
    dataset_json: Mapping[str, Any]

    @property
    def num_channels(self) -> int:
        """How many images make a case."""
        return len(self.dataset_json.get("channel_names") or self.dataset_json["modality"])

    def checkpoint_hashes(self) -> dict[str, str]:
        """Return the SHA-256 of the weights of each fold: by them a result knows its model."""
        return {fold: sha256(self.folder / f"fold_{fold}" / self.checkpoint) for fold in self.folds}


@contextlib.contextmanager
def open_model(path: Path, folds: Sequence[str | int] | None, checkpoint: str) -> Iterator[Model]:
    """Give a model, checked; of an archive, for as long as the block lasts.

    Args:
        path: nnU-Net's folder of a trained model, or what nnUNetv2_export_model_to_zip wrote.
        folds: such as (0, 1) or ("all",); None: all that have the checkpoint.
        checkpoint: file name.

    Raises:
        UserError: if it is no model, not one of ours, or lacks a fold.
    """
    if path.is_file() and path.suffix == ".zip":
        with tempfile.TemporaryDirectory(prefix="nnunet-softseg-") as unpacked:
            yield _model(_unpack(path, Path(unpacked)), folds, checkpoint)
    else:
        yield _model(path, folds, checkpoint)


def _unpack(archive: Path, target: Path) -> Path:
    """Return the folder of the one soft model in an archive of nnU-Net's, unpacked."""
    try:
        with zipfile.ZipFile(archive) as content:
            folders = [PurePosixPath(name).parent for name in content.namelist() if _is_plans(name)]
            if len(folders) != 1:
                raise UserError(
                    f"{archive}: expected one trained model, found {len(folders)}: export one, or unpack it "
                    "and give the folder of one"
                )
            for name in content.namelist():
                if PurePosixPath(name).is_relative_to(folders[0]):
                    content.extract(name, target)
    except (OSError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{archive}: expected an archive of nnUNetv2_export_model_to_zip, found: {error}: copy it again"
        ) from error
    return target / folders[0]


def _is_plans(name: str) -> bool:
    return PurePosixPath(name).name == _PLANS


def _model(folder: Path, folds: Sequence[str | int] | None, checkpoint: str) -> Model:
    if not (folder / _PLANS).is_file():
        inside = sorted(file.parent.relative_to(folder).as_posix() for file in folder.glob(f"**/{_PLANS}"))
        hint = f"; inside it is {', '.join(inside[:3])}" if inside else ""
        found = "no plans.json" if folder.exists() else "nothing"
        raise UserError(
            f"{folder}: expected the folder of a trained model, nnUNet_results/DatasetNNN_Name/"
            f"<trainer>__<plans>__<configuration>, found {found}{hint}: correct -m"
        )
    plans = load_json(folder / _PLANS)
    if not isinstance(plans, Mapping) or not is_soft(plans):
        raise UserError(
            f"{folder}: expected a model of soft labels (nnUNetTrainerSoftSeg), found plans.json without the "
            "entries of nnunet-softseg: predict vanilla models with nnUNetv2_predict"
        )
    dataset_json = load_json(folder / "dataset.json")
    return Model(folder, _folds(folder, folds, checkpoint), checkpoint, plans, dataset_json)


def _folds(folder: Path, wanted: Sequence[str | int] | None, checkpoint: str) -> tuple[str, ...]:
    """Return those asked for; else all numbered ones; else `all`."""
    there = sorted(file.parent.name.removeprefix("fold_") for file in folder.glob(f"fold_*/{checkpoint}"))
    folds = tuple(map(str, wanted or [fold for fold in there if fold != "all"] or there))
    missing = [fold for fold in folds if fold not in there]
    if missing or not folds:
        checkpoints = sorted(file.relative_to(folder).as_posix() for file in folder.glob("fold_*/*.pth"))
        asked = ", ".join(f"fold_{fold}/{checkpoint}" for fold in missing) or f"fold_0/{checkpoint}"
        raise UserError(
            f"{folder}: expected {asked}, found {', '.join(checkpoints) or 'no checkpoint'}: correct -f or "
            "-chk"
        )
    return folds


def load_predictor(model: Model, device: Any) -> Any:
    """Return nnU-Net's predictor with the weights of all folds.

    Args:
        model: checked.
        device: torch.device.

    Raises:
        UserError: if the checkpoint is cut off, does not fit the plans, or its trainer is not installed.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from nnunet_softseg.network import backends

    folds = tuple(fold if fold == "all" else int(fold) for fold in model.folds)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            predictor = nnUNetPredictor(device=device, allow_tqdm=False)
            predictor.initialize_from_trained_model_folder(str(model.folder), folds, model.checkpoint)
    except _UNLOADABLE as error:
        found = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"{model.folder}: expected a checkpoint that fits plans.json and a trainer installed here, found "
            f"{found}: copy the model again, or install what it was trained with"
        ) from error
    if not model.folder.is_relative_to(tempfile.gettempdir()):  # where an archive was unpacked, nothing stays
        setattr(predictor, backends.MODEL_FOLDER, model.folder)
    return predictor
