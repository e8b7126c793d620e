"""`nnunet-softseg export`: a trained model -> one file that predicts without torch and nnU-Net."""

import importlib.metadata
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from nnunet_softseg.datasets.raw_dataset import channel_names
from nnunet_softseg.errors import UserError
from nnunet_softseg.inference.runtime import needs_nnunet
from nnunet_softseg.inference.trained_model import (
    CHECKPOINT,
    ENDING,
    FORMAT,
    FileModel,
    FoldContent,
    Model,
    load_predictor,
    open_model,
    write_model_file,
)
from nnunet_softseg.io.nifti import StrPath
from nnunet_softseg.io.results import make_folder, output_file, sha256
from nnunet_softseg.network import openvino_network
from nnunet_softseg.network.openvino_network import INSTALL, graph_and_weights
from nnunet_softseg.preprocessing.model_plans import EXPORTED, versions
from nnunet_softseg.settings import PLANS_KEY

Precision = Literal["float16", "float32"]


@dataclass(frozen=True)
class ExportReport:
    """What was written: the file, its size in bytes, the folds in it."""

    file: Path
    num_bytes: int
    folds: tuple[str, ...]

    def as_text(self) -> str:
        """Return it in a line."""
        folds = f"fold{'s' * (len(self.folds) > 1)} {', '.join(self.folds)}"
        return f"{self.file}: {self.num_bytes / 1e6:.1f} MB, {folds}: nnunet-softseg predict -m {self.file}"


def export(
    model: StrPath,
    output: StrPath,
    *,
    folds: Sequence[str | int] | None = None,
    checkpoint: str = CHECKPOINT,
    precision: Precision = "float16",
    trust_model: bool = False,
) -> ExportReport:
    """Write a trained model as one file, which `predict` runs with NumPy, SciPy, nibabel and OpenVINO.

    Args:
        model: nnU-Net's folder of a trained model, or an archive of nnUNetv2_export_model_to_zip.
        output: FILE.softseg; replaced if it is there, and never half-written.
        folds: whose networks it holds; None: all that are there.
        checkpoint: file name in the folders of the folds.
        precision: of the weights: in float16 the file is half as large, and soft maps of trained networks
            differ by less than 0.02.
        trust_model: see `predict`.

    Raises:
        UserError: if there is no model of ours, its network is none of nnU-Net's U-Nets, OpenVINO is missing,
            or the file cannot be written.
    """
    if not openvino_network.installed():
        raise UserError(f"export: expected OpenVINO, which converts the network, found none: {INSTALL}")
    file = output_file(Path(output), (ENDING,))
    if file is None or precision not in get_args(Precision):
        raise UserError(
            f"export: expected a file that ends in {ENDING}, and precision float16 or float32, found "
            f"{output!r}, {precision!r}: correct -o or --precision"
        )
    with open_model(Path(model), folds, checkpoint, trusted=trust_model) as found:
        in_one_file = _in_one_file(found, file, precision)
    make_folder(file.parent)
    write_model_file(in_one_file, _versions())
    return ExportReport(file, file.stat().st_size, tuple(in_one_file.folds))


def _in_one_file(model: Model, file: Path, precision: Precision) -> FileModel:
    predictor = load_predictor(model)
    _require_convertible(model, predictor)
    plans = deepcopy(dict(predictor.plans_manager.plans))
    plans[PLANS_KEY][EXPORTED] = {"format": FORMAT, "precision": precision, "versions": _versions()}
    axes = predictor.allowed_mirroring_axes if predictor.use_mirroring else None
    return FileModel(
        file,
        plans=plans,
        dataset_json=predictor.dataset_json,
        configuration=predictor.configuration_manager.configuration,
        precision=precision,
        mirror_axes=tuple(axes or ()),
        folds={
            fold: _fold(model, fold, predictor, weights, precision)
            for fold, weights in zip(model.folds, predictor.list_of_parameters, strict=True)
        },
    )


def _versions() -> dict[str, str]:
    return {**versions(), "openvino": importlib.metadata.version("openvino")}


def _require_convertible(model: Model, predictor: Any) -> None:
    """Raise a UserError for a model that cannot be run without torch and nnU-Net."""
    from nnunet_softseg.network.backends import UNetInStages
    from nnunet_softseg.network.of_plans import unwrapped

    network = unwrapped(predictor.network)
    if not UNetInStages.fits(network):
        raise UserError(
            f"{model.folder}: expected one of nnU-Net's U-Nets, found {type(network).__name__}, which is not "
            "converted: predict with the folder"
        )
    configuration = predictor.configuration_manager.configuration
    if needed := needs_nnunet(predictor.plans_manager.plans, configuration):
        raise UserError(
            f"{model.folder}: expected a model that runs without nnU-Net, found {needed}: predict with the "
            "folder"
        )


def _fold(model: Model, fold: str, predictor: Any, weights: Any, precision: Precision) -> FoldContent:
    """Return the network of a fold, converted and compared with torch."""
    from nnunet_softseg.network.of_plans import running_scale, unwrapped

    network = unwrapped(predictor.network)
    network.load_state_dict(weights)
    network.eval()
    channels = channel_names(predictor.dataset_json)
    patch_shape = (len(channels), *predictor.configuration_manager.patch_size)
    try:
        contents = graph_and_weights(network, patch_shape, half=precision == "float16")
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"{model.folder}, fold {fold}: expected a network that OpenVINO converts, found: "
            f"{openvino_network.reason(error)}: predict with the folder"
        ) from error
    return FoldContent(
        *contents,
        running_scale=tuple(running_scale(network).double().tolist()),
        checkpoint_sha256=sha256(model.checkpoints[fold]),
    )
