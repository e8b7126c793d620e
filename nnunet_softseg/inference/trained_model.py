"""A trained model: nnU-Net's folder or an archive of it, run with torch; or one file, run without.

Models of other people are opened without running anything that they hold. A checkpoint is a pickle, which
can name any function of Python to be called: PyTorch's restricted reader takes tensors and plain values, and
with the few names of NumPy's numbers it reads what nnU-Net writes. A checkpoint that it reads calls nothing
else when nnU-Net opens it. Archives are looked at before they are unpacked.

The file, `.softseg`, is a zip of `softseg.json` (what is in it: format, configuration, folds, hashes),
`plans.json` and `dataset.json` as they stand beside the model, and the network of each fold as OpenVINO keeps
it, `fold_0/model.xml` and `fold_0/model.bin`. There is no pickle in it.
"""

import contextlib
import hashlib
import io
import json
import pickle
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from nnunet_softseg import __version__
from nnunet_softseg.datasets.raw_dataset import label_scheme
from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.inference.case_record import PredictionOptions
from nnunet_softseg.io.case_files import DATASET_JSON
from nnunet_softseg.io.nifti import StrPath
from nnunet_softseg.io.results import load_json, replacing, sha256
from nnunet_softseg.settings import PLANS_KEY

CHECKPOINT, PLANS = "checkpoint_final.pth", "plans.json"
_UNLOADABLE = (
    RuntimeError, KeyError, TypeError, EOFError, OSError, pickle.UnpicklingError, AttributeError, ImportError,
    AssertionError,
)  # fmt: skip
_SCALAR: Any = np._core.multiarray.scalar  # type: ignore[attr-defined]
_NUMBERS = [
    _SCALAR,  # nnU-Net's log holds NumPy's numbers
    (_SCALAR, "numpy.core.multiarray.scalar"),  # as NumPy 1 names it
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
]
ENDING = ".softseg"
READY_MODEL = Path(__file__).parents[1] / "ready_model" / f"cord{ENDING}"
"""The model that comes with the package; the README beside it says what it was trained on."""
FORMAT = 1
"""Raised when a file of this package could not be read by an earlier one."""
_MANIFEST = "softseg.json"
_XML, _BIN = "fold_{}/model.xml", "fold_{}/model.bin"
_KEYS = {"configuration": dict, "folds": dict, "precision": str, "mirror_axes": list, "sha256": dict}
_REMEDY = "copy it again, or export it again with nnunet-softseg export"
_MOST_UNPACKED = 2**28  # of text; weights are not packed
_DATE = (1980, 1, 1, 0, 0, 0)  # of every member: the same model gives the same file


@contextlib.contextmanager
def open_any_model(
    model: StrPath | None,
    folds: Sequence[str | int] | None,
    checkpoint: str = CHECKPOINT,
    *,
    trusted: bool = False,
) -> Iterator["Model | FileModel"]:
    """Give a model as `open_model` does, or one that was exported to one file; None: that of the package.

    Raises:
        UserError: likewise; if the file is cut off, changed or of a later format.
    """
    if model is None and not READY_MODEL.is_file():
        raise UserError(
            f"{READY_MODEL}: expected the model that comes with nnunet-softseg, found none: install the "
            "package again, or give a trained model with -m"
        )
    path = READY_MODEL if model is None else Path(model)
    if not _is_model_file(path):
        with open_model(path, folds, checkpoint, trusted=trusted) as found:
            yield found
        return
    if checkpoint != CHECKPOINT:
        raise UserError(
            f"-chk {checkpoint}: expected a folder of a model to choose from, found the file {path}, which "
            "holds one checkpoint: leave -chk out"
        )
    yield open_model_file(path, folds)


def _is_model_file(path: Path) -> bool:
    """Return whether a path is meant as a model in one file, by its name."""
    return path.name.lower().endswith(ENDING) and not path.is_dir()


# A folder


@dataclass(frozen=True)
class Model:
    """A model on disk.

    Attributes:
        folder: nnU-Net's, `<trainer>__<plans>__<configuration>`.
        folds: as in the names of their folders: "0", "all".
        checkpoint: file name in the folders of the folds.
        plans: saved beside it, with our entries.
        dataset_json: of its training.
        trusted: whether its checkpoints may run code when they are opened.
    """

    folder: Path
    folds: tuple[str, ...]
    checkpoint: str
    plans: Mapping[str, Any]
    dataset_json: Mapping[str, Any]
    trusted: bool = False

    @property
    def checkpoints(self) -> dict[str, Path]:
        """The checkpoint of each fold."""
        return {fold: self.folder / f"fold_{fold}" / self.checkpoint for fold in self.folds}

    def trained_on(self, fold: str) -> tuple[str, ...]:
        """Return the cases that a fold was trained on, as kept with the model; none where it keeps none."""
        return tuple(self.plans[PLANS_KEY].get("training_cases", {}).get(fold, ()))

    def made_by(self, options: PredictionOptions) -> dict[str, Any]:
        """Return all that decides the values of a prediction, so that a folder never mixes two of it.

        But for the precision of the network, which softseg.json notes of each case: the third digit.
        """
        return {
            "version": __version__,
            "checkpoints": {fold: sha256(file) for fold, file in self.checkpoints.items()},
            **options.that_decide(self.plans),
        }


@contextlib.contextmanager
def open_model(
    path: Path, folds: Sequence[str | int] | None, checkpoint: str = CHECKPOINT, *, trusted: bool = False
) -> Iterator[Model]:
    """Give a model, checked; of an archive, for as long as the block lasts.

    The path is nnU-Net's folder of a trained model, or what nnUNetv2_export_model_to_zip wrote; see `Model`
    for the others. Folds are such as (0, 1) or ("all",); None: all that have the checkpoint.

    Raises:
        UserError: if it is no model, not one of ours, or lacks a fold.
    """
    if _is_model_file(path):
        raise UserError(
            f"{path}: expected the folder of a trained model, found a file of nnunet-softseg export, which "
            "predicts alone: give the folder that it was exported from"
        )
    with contextlib.ExitStack() as stack:
        if path.is_file() and path.suffix == ".zip":
            unpacked = stack.enter_context(tempfile.TemporaryDirectory(prefix="nnunet-softseg-"))
            path = _unpacked(path, Path(unpacked))
        plans, dataset_json = _read_folder(path)
        chosen = find_folds(path, folds, checkpoint)
        yield Model(path, chosen, checkpoint, plans, dataset_json, trusted)


def _read_folder(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return plans and dataset.json of a model; a UserError if it is none, or not one of ours."""
    if not (folder / PLANS).is_file():
        raise missing_model(folder, "correct -m")
    from nnunet_softseg.preprocessing.model_plans import is_soft

    plans = load_json(folder / PLANS)
    if not isinstance(plans, Mapping) or not is_soft(plans):
        raise UserError(
            f"{folder}: expected a model of soft labels (nnUNetTrainerSoftSeg), found plans.json without the "
            "entries of nnunet-softseg: predict vanilla models with nnUNetv2_predict"
        )
    dataset_json = load_json(folder / DATASET_JSON)
    names, trained = label_scheme(dataset_json).names, plans[PLANS_KEY].get("training_shapes")
    if trained and len(trained) != len(names):
        raise UserError(
            f"{folder.name}/dataset.json: expected the labels of the training, {', '.join(trained)}, found "
            f"{', '.join(names)}: copy the model again"
        )
    return plans, dataset_json


def missing_model(folder: Path, remedy: str) -> UserError:
    """Return the error that a folder is no trained model, with those inside it, or else beside it."""
    models = {
        where: sorted(file.parent.relative_to(root).as_posix() for file in root.glob(f"{pattern}/{PLANS}"))
        for where, root, pattern in (("inside", folder, "**"), ("beside", folder.parent, "*__*__*"))
    }
    there = (f"; {where} it is {examples(names)}" for where, names in models.items() if names)
    found = "no plans.json" if folder.exists() else "nothing"
    return UserError(
        f"{folder}: expected the folder of a trained model, nnUNet_results/DatasetNNN_Name/"
        f"<trainer>__<plans>__<configuration>, found {found}{next(there, '')}: {remedy}"
    )


def find_folds(folder: Path, wanted: Sequence[str | int] | None, checkpoint: str) -> tuple[str, ...]:
    """Return those asked for; else all numbered ones; else `all`. What is named otherwise is no fold."""
    names = (file.parent.name.removeprefix("fold_") for file in folder.glob(f"fold_*/{checkpoint}"))
    there = sorted(name for name in names if name == "all" or name.isdecimal())
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


def load_predictor(model: Model, device: str = "cpu") -> Any:
    """Return nnU-Net's predictor on a device of torch, with the weights of all folds.

    Raises:
        UserError: if the checkpoint is cut off, holds code and is not trusted, does not fit the plans, or its
            trainer is not installed.
    """
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from nnunet_softseg.network import backends

    if not model.trusted:
        for file in model.checkpoints.values():
            require_no_code(file)
    folds = tuple(fold if fold == "all" else int(fold) for fold in model.folds)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            predictor = nnUNetPredictor(device=torch.device(device), allow_tqdm=False)
            predictor.initialize_from_trained_model_folder(str(model.folder), folds, model.checkpoint)
    except _UNLOADABLE as error:
        found = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"{model.folder}: expected a checkpoint that fits plans.json and a trainer installed here, found "
            f"{found}: copy the model again, or install what it was trained with"
        ) from error
    if stage := predictor.configuration_manager.previous_stage_name:
        raise UserError(
            f"{model.folder}: expected a model that needs the image alone, found the second stage of a "
            f"cascade: predict {stage}, then this one, with nnUNetv2_predict -prev_stage_predictions"
        )
    # Again, for a start-up hook of an earlier version, which does not.
    keep_cases_of(predictor.plans_manager.plans[PLANS_KEY], model.folds)
    if not model.folder.is_relative_to(tempfile.gettempdir()):  # where an archive was unpacked, nothing stays
        setattr(predictor, backends.MODEL_FOLDER, model.folder)
    return predictor


def require_no_code(checkpoint: Path) -> None:
    """Raise a UserError unless a checkpoint holds tensors and plain values alone.

    Tensors are mapped, not read: it takes a fraction of a second, whatever the network's size.
    """
    import torch

    found = "a file that is cut off, or of another kind"
    if zipfile.is_zipfile(checkpoint):
        try:
            with torch.serialization.safe_globals(_NUMBERS):
                torch.load(checkpoint, map_location="meta", weights_only=True, mmap=True)
        except Exception as error:  # whatever a pickle made by someone else provokes
            found = _what_it_runs(checkpoint) or f"{type(error).__name__} in it"
        else:
            return
    raise UserError(
        f"{checkpoint}: expected a checkpoint of weights and numbers, found {found}: copy the "
        "model again, or, if you trust where it comes from, give --trust-model"
    )


def _what_it_runs(checkpoint: Path) -> str:
    import torch

    known = {f"{kind.__module__}.{kind.__qualname__}" for kind in _NUMBERS if not isinstance(kind, tuple)}
    try:
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint)) - known
    except Exception:  # no pickle at all
        return ""
    return f"one that runs {', '.join(sorted(names)[:3])}" if names else ""


def _unpacked(archive: Path, target: Path) -> Path:
    """Return the folder of the one soft model in an archive of nnU-Net's, unpacked."""
    try:
        with zipfile.ZipFile(archive) as content:
            names = [PurePosixPath(name) for name in content.namelist()]
        folders = [name.parent for name in names if name.name == PLANS]
        if len(folders) != 1:
            raise UserError(
                f"{archive}: expected one trained model, found {len(folders)}: export one, or unpack it "
                "and give the folder of one"
            )
        return unpack(archive, folders[0], target)
    except (OSError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{archive}: expected an archive of nnUNetv2_export_model_to_zip, found: {error}: copy it again"
        ) from error


def unpack(archive: Path, folder: PurePosixPath, target: Path) -> Path:
    """Unpack a folder of an archive of nnU-Net's, and return where it lies.

    Raises:
        UserError: if a name leads out of the target or is a link, or the disk has no room for all.
    """
    with zipfile.ZipFile(archive) as content:
        entries = {PurePosixPath(entry.filename): entry for entry in content.infolist()}
        inside = [entry for name, entry in entries.items() if name.is_relative_to(folder)]
        for name, entry in entries.items():
            is_link = stat.S_ISLNK(entry.external_attr >> 16)
            if is_link or name.is_absolute() or ".." in name.parts or "\\" in entry.filename:
                kind = "a link" if is_link else "a path that leads out of it"
                raise UserError(
                    f"{archive}: expected an archive of nnUNetv2_export_model_to_zip, found {kind}: "
                    f"{entry.filename}: it is not unpacked; ask for the model again"
                )
        size, room = sum(entry.file_size for entry in inside), shutil.disk_usage(target).free
        if size > room:
            raise UserError(
                f"{archive}: expected {size / 2**30:.1f} GiB of room in {target.parent} to unpack it, found "
                f"{room / 2**30:.1f} GiB: free some, set TMPDIR, or ask for the model again"
            )
        content.extractall(target, inside)
    return target / folder


# One file


@dataclass(frozen=True)
class FoldContent:
    """The network of one fold.

    Attributes:
        xml: graph, as OpenVINO writes it.
        weights: of the graph.
        running_scale: (label,) of the raw output in training; 0 where not known.
        checkpoint_sha256: of the checkpoint that it was exported from.
    """

    xml: bytes
    weights: bytes
    running_scale: tuple[float, ...]
    checkpoint_sha256: str


@dataclass(frozen=True)
class FileModel:
    """A model in one file, with the folds that are used.

    Attributes:
        file: its path.
        plans: with our entries.
        dataset_json: of the training.
        configuration: of the plans, with all that it inherits.
        precision: of the weights, "float16" or "float32".
        mirror_axes: of the space, mirrored passes over which are averaged; none: one pass.
        folds: by name: "0", "all".
    """

    file: Path
    plans: Mapping[str, Any]
    dataset_json: Mapping[str, Any]
    configuration: Mapping[str, Any]
    precision: str
    mirror_axes: tuple[int, ...]
    folds: Mapping[str, FoldContent]

    def made_by(self, options: PredictionOptions) -> dict[str, Any]:
        """Return all that decides the values of a prediction, so that a folder never mixes two of it."""
        return {
            "version": __version__,
            "checkpoints": {fold: network.checkpoint_sha256 for fold, network in self.folds.items()},
            "precision": self.precision,
            **options.that_decide(self.plans),
        }


def write_model_file(model: FileModel, versions: Mapping[str, str]) -> None:
    """Write a model to its file, all of it or nothing; a UserError says why it cannot be done.

    The versions are those of the packages that made it.
    """
    members = {PLANS: _json(model.plans), DATASET_JSON: _json(model.dataset_json)}
    for fold, network in model.folds.items():
        members |= {_XML.format(fold): network.xml, _BIN.format(fold): network.weights}
    manifest = {
        "format": FORMAT,
        "made_by": f"nnunet-softseg {__version__} export",
        "versions": versions,
        "configuration": model.configuration,
        "precision": model.precision,
        "mirror_axes": model.mirror_axes,
        "folds": {
            fold: {"running_scale": network.running_scale, "checkpoint_sha256": network.checkpoint_sha256}
            for fold, network in model.folds.items()
        },
        "sha256": {name: hashlib.sha256(member).hexdigest() for name, member in members.items()},
    }
    with replacing(model.file) as aside, zipfile.ZipFile(aside, "x") as archive:
        for name, member in {_MANIFEST: _json(manifest), **members}.items():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr = 0o644 << 16
            # Weights hardly become smaller, and would take longer to read.
            kind = zipfile.ZIP_STORED if name.endswith(".bin") else zipfile.ZIP_DEFLATED
            archive.writestr(entry, member, kind)


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def open_model_file(file: Path, folds: Sequence[str | int] | None) -> FileModel:
    """Return a model in one file, with the folds asked for; None: all of it.

    Raises:
        UserError: if it is missing, cut off, changed since it was written, of a later format, or lacks one.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            manifest = _manifest(file, _read(file, archive, _MANIFEST))
            chosen = _chosen(file, manifest, folds)
            networks = (name.format(fold) for fold in chosen for name in (_XML, _BIN))
            members = {name: _read(file, archive, name) for name in (PLANS, DATASET_JSON, *networks)}
    except FileNotFoundError as error:
        raise UserError(f"{file}: expected a model in one file, found nothing: correct -m") from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{file}: expected a whole file of nnunet-softseg export, found: {error}: {_REMEDY}"
        ) from error
    for name, member in members.items():
        found, known = hashlib.sha256(member).hexdigest(), manifest["sha256"].get(name)
        if found != known:
            raise UserError(
                f"{file}: expected {name} as it was written, SHA-256 {known}, found {found}: {_REMEDY}"
            )
    try:
        return _opened(file, manifest, members, chosen)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{file}: expected what nnunet-softseg export writes, found {type(error).__name__} {error}: "
            f"{_REMEDY}"
        ) from error


def _read(file: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a member; raise a UserError if it is missing, or would unpack to more than any model needs."""
    try:
        entry = archive.getinfo(name)
    except KeyError as error:
        raise UserError(
            f"{file}: expected a file of nnunet-softseg export, found no {name} in it: correct -m, or "
            f"{_REMEDY}"
        ) from error
    if entry.file_size > max(entry.compress_size, _MOST_UNPACKED):
        raise UserError(
            f"{file}: expected at most {_MOST_UNPACKED / 2**20:.0f} MiB of text in {name}, found "
            f"{entry.file_size / 2**20:.0f} MiB: it is not unpacked; ask for the model again"
        )
    return archive.read(entry)


def _manifest(file: Path, member: bytes) -> dict[str, Any]:
    try:
        manifest = dict(json.loads(member))
        number = int(manifest["format"])
        missing = [key for key in _KEYS if not isinstance(manifest.get(key), _KEYS[key])]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: expected a format number in {_MANIFEST}, found none: {_REMEDY}") from error
    if number > FORMAT:
        raise UserError(
            f"{file}: expected a file of format {FORMAT} at most, found {number}, made by "
            f"{manifest.get('made_by', 'a later version')} (here {__version__}): "
            "pip install -U nnunet-softseg"
        )
    if missing:
        raise UserError(f"{file}: expected {', '.join(missing)} in its {_MANIFEST}, found none: {_REMEDY}")
    return manifest


def _chosen(file: Path, manifest: Mapping[str, Any], folds: Sequence[str | int] | None) -> tuple[str, ...]:
    chosen = tuple(map(str, folds or manifest["folds"]))
    missing = [fold for fold in chosen if fold not in manifest["folds"]]
    if missing:
        raise UserError(
            f"{file}: expected fold {', '.join(missing)}, found {', '.join(manifest['folds'])}: correct -f, "
            "or export the model again with these folds"
        )
    return chosen


def _opened(
    file: Path, manifest: Mapping[str, Any], members: Mapping[str, bytes], folds: tuple[str, ...]
) -> FileModel:
    plans, dataset_json = (json.loads(members[name]) for name in (PLANS, DATASET_JSON))
    entry = plans[PLANS_KEY]
    if file == READY_MODEL:  # of an earlier version by its making, of this one by its tests
        entry["versions"] = {**entry.get("versions", {}), "nnunet_softseg": __version__}
        entry["training_cases"] = {}  # drawn images of nobody, whose names may be those of a user's people
    keep_cases_of(entry, folds)
    label_scheme(dataset_json)  # raises where there are no labels
    return FileModel(
        file,
        plans=plans,
        dataset_json=dataset_json,
        configuration=manifest["configuration"],
        precision=manifest["precision"],
        mirror_axes=tuple(manifest["mirror_axes"]),
        folds={
            fold: FoldContent(
                members[_XML.format(fold)],
                members[_BIN.format(fold)],
                tuple(manifest["folds"][fold]["running_scale"]),
                manifest["folds"][fold]["checkpoint_sha256"],
            )
            for fold in folds
        },
    )


def keep_cases_of(entry: dict[str, Any], folds: Sequence[str]) -> None:
    """Keep of the training cases in our entries of plans those of the folds that are used."""
    if seen := entry.get("training_cases"):
        entry["training_cases"] = {fold: cases for fold, cases in seen.items() if fold in folds}
