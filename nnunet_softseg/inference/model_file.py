"""A trained model in one file, `.softseg`, that is run without torch and nnU-Net.

It is a zip of `softseg.json` (what is in it: format, configuration, folds, hashes), `plans.json` and
`dataset.json` as they stand beside the model, and the network of each fold as OpenVINO keeps it,
`fold_0/model.xml` and `fold_0/model.bin`. Nothing in it is run by being opened: there is no pickle.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_softseg import __version__
from nnunet_softseg.datasets.raw_dataset import label_scheme
from nnunet_softseg.errors import UserError
from nnunet_softseg.inference.calibration import options_that_decide
from nnunet_softseg.inference.case_record import PredictionOptions
from nnunet_softseg.io.case_files import DATASET_JSON
from nnunet_softseg.io.results import replacing
from nnunet_softseg.settings import PLANS_KEY

ENDING = ".softseg"
READY_MODEL = Path(__file__).parents[1] / "ready_model" / f"cord{ENDING}"
"""The model that comes with the package; the README beside it says what it was trained on."""
FORMAT = 1
"""Raised when a file of this package could not be read by an earlier one."""
MANIFEST, PLANS = "softseg.json", "plans.json"
_XML, _BIN = "fold_{}/model.xml", "fold_{}/model.bin"
_KEYS = {"configuration": dict, "folds": dict, "precision": str, "mirror_axes": list, "sha256": dict}
_REMEDY = "copy it again, or export it again with nnunet-softseg export"
_MOST_UNPACKED = 2**28  # of text; weights are not packed
_DATE = (1980, 1, 1, 0, 0, 0)  # of every member: the same model gives the same file


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
class ModelContent:
    """What a file of a model is made of.

    Attributes:
        plans: with our entries.
        dataset_json: of the training.
        configuration: of the plans, with all that it inherits.
        precision: of the weights, "float16" or "float32".
        mirror_axes: of the space, mirrored passes over which are averaged; none: one pass.
        folds: by name: "0", "all".
        versions: of the packages that made it.
    """

    plans: Mapping[str, Any]
    dataset_json: Mapping[str, Any]
    configuration: Mapping[str, Any]
    precision: str
    mirror_axes: tuple[int, ...]
    folds: Mapping[str, FoldContent]
    versions: Mapping[str, str]


def write_model_file(file: Path, content: ModelContent) -> None:
    """Write a model, all of it or nothing; raise a UserError if that cannot be done."""
    members = {PLANS: _json(content.plans), DATASET_JSON: _json(content.dataset_json)}
    for fold, network in content.folds.items():
        members |= {_XML.format(fold): network.xml, _BIN.format(fold): network.weights}
    manifest = {
        "format": FORMAT,
        "made_by": f"nnunet-softseg {__version__} export",
        "versions": content.versions,
        "configuration": content.configuration,
        "precision": content.precision,
        "mirror_axes": content.mirror_axes,
        "folds": {
            fold: {"running_scale": network.running_scale, "checkpoint_sha256": network.checkpoint_sha256}
            for fold, network in content.folds.items()
        },
        "sha256": {name: hashlib.sha256(member).hexdigest() for name, member in members.items()},
    }
    with replacing(file) as aside, zipfile.ZipFile(aside, "x") as archive:
        for name, member in {MANIFEST: _json(manifest), **members}.items():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr = 0o644 << 16
            # Weights hardly become smaller, and would take longer to read.
            kind = zipfile.ZIP_STORED if name.endswith(".bin") else zipfile.ZIP_DEFLATED
            archive.writestr(entry, member, kind)


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def ready_model() -> Path:
    """Return the file of the model that comes with the package; a UserError where it does not."""
    if not READY_MODEL.is_file():
        raise UserError(
            f"{READY_MODEL}: expected the model that comes with nnunet-softseg, found none: install the "
            "package again, or give a trained model with -m"
        )
    return READY_MODEL


def is_model_file(path: Path) -> bool:
    """Return whether a path is meant as a model in one file, by its name."""
    return path.name.lower().endswith(ENDING) and not path.is_dir()


@dataclass(frozen=True)
class FileModel:
    """A model in one file, checked.

    Attributes:
        file: its path.
        folds: that are used.
        content: of these.
        labels: numbers of the soft maps.
    """

    file: Path
    folds: tuple[str, ...]
    content: ModelContent
    labels: tuple[int, ...]

    @property
    def plans(self) -> Mapping[str, Any]:
        """Of the model."""
        return self.content.plans

    @property
    def dataset_json(self) -> Mapping[str, Any]:
        """Of its training."""
        return self.content.dataset_json

    def made_by(self, options: PredictionOptions) -> dict[str, Any]:
        """Return all that decides the values of a prediction, so that a folder never mixes two of it."""
        return {
            "version": __version__,
            "checkpoints": {fold: self.content.folds[fold].checkpoint_sha256 for fold in self.folds},
            "precision": self.content.precision,
            **options_that_decide(options, self.plans),
        }


def open_model_file(file: Path, folds: Sequence[str | int] | None) -> FileModel:
    """Return a model in one file, with the folds asked for; None: all of it.

    Raises:
        UserError: if it is missing, cut off, changed since it was written, of a later format, or lacks one.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            manifest = _manifest(file, _read(file, archive, MANIFEST))
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
        raise UserError(f"{file}: expected a format number in {MANIFEST}, found none: {_REMEDY}") from error
    if number > FORMAT:
        raise UserError(
            f"{file}: expected a file of format {FORMAT} at most, found {number}, made by "
            f"{manifest.get('made_by', 'a later version')} (here {__version__}): "
            "pip install -U nnunet-softseg"
        )
    if missing:
        raise UserError(f"{file}: expected {', '.join(missing)} in its {MANIFEST}, found none: {_REMEDY}")
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
    if seen := entry.get("training_cases"):
        entry["training_cases"] = {fold: cases for fold, cases in seen.items() if fold in folds}
    networks = {
        fold: FoldContent(
            members[_XML.format(fold)],
            members[_BIN.format(fold)],
            tuple(manifest["folds"][fold]["running_scale"]),
            manifest["folds"][fold]["checkpoint_sha256"],
        )
        for fold in folds
    }
    content = ModelContent(
        plans=plans,
        dataset_json=dataset_json,
        configuration=manifest["configuration"],
        precision=manifest["precision"],
        mirror_axes=tuple(manifest["mirror_axes"]),
        folds=networks,
        versions=manifest.get("versions", {}),
    )
    return FileModel(file, folds, content, label_scheme(dataset_json).numbers)
