"""A model in one file at work: NumPy, SciPy, nibabel and OpenVINO; neither torch nor nnU-Net is imported.

The steps are those of any prediction (network_image, soft_prediction, export); here is what nnU-Net's plans
and its predictor are to them.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_softseg.datasets.raw_dataset import channel_names, label_scheme
from nnunet_softseg.errors import UserError
from nnunet_softseg.inference.case_record import CaseRecord, PredictionOptions
from nnunet_softseg.inference.network_image import preprocess_files, unusual_resampling
from nnunet_softseg.inference.soft_prediction import Predictor, predict_soft_map
from nnunet_softseg.inference.trained_model import FileModel, FoldContent
from nnunet_softseg.io.readers import is_known, simpleitk
from nnunet_softseg.network import openvino_network
from nnunet_softseg.network.openvino_network import CompiledModel, parse_choice
from nnunet_softseg.network.soft_map import Agreement, mirrored
from nnunet_softseg.preprocessing.normalisation import FULL_INSTALLATION, SCHEMES

Image = npt.NDArray[np.float32]
_TILE_STEP = 0.5  # nnU-Net's


def _managers(model: FileModel) -> tuple[Any, Any]:
    """Return what nnU-Net's managers of plans and configuration are to a prediction."""
    plans, configuration = dict(model.plans), model.configuration
    as_they_are = ("patch_size", "spacing", "normalization_schemes", "use_mask_for_norm")
    intensities = "foreground_intensity_properties_per_channel"
    of_plans = SimpleNamespace(
        plans=plans,
        transpose_forward=plans["transpose_forward"],
        transpose_backward=plans["transpose_backward"],
        # A class of the reader's name, which is all that `io.readers` asks of one that it knows.
        image_reader_writer_class=type(plans["image_reader_writer"], (), {}),
        **{intensities: plans.get(intensities, {})},
    )
    return of_plans, SimpleNamespace(
        previous_stage_name=None,
        configuration=configuration,
        network_arch_init_kwargs=configuration["architecture"]["arch_kwargs"],
        **{key: configuration[key] for key in as_they_are},
    )


class RuntimeModel:
    """A model in one file, ready to predict; its threads need no initializer."""

    initializer: Callable[[], None] | None = None

    def __init__(self, model: FileModel) -> None:
        self.plans_manager, self.configuration_manager = _managers(model)
        self.dataset_json = dict(model.dataset_json)
        self.file_model = model
        self.networks = _Networks(model.folds)

    def warm_up(self, options: PredictionOptions) -> None:
        """Compile the network of the first fold for its patches, unless it is."""
        RuntimePredictor(self, next(iter(self.file_model.folds)), options.backend).warm_up(
            len(channel_names(self.dataset_json))
        )

    def prepare(self, files: Sequence[str]) -> tuple[Image, dict[str, Any]]:
        """Return image and properties of a case; see `network_image.preprocess_files`."""
        return preprocess_files(files, self.plans_manager, self.configuration_manager)

    def soft_maps(self, image: Image, properties: dict[str, Any], options: PredictionOptions) -> Image:
        """Return the soft maps (label, *space) of a case from `prepare`, the mean of all folds."""
        record = CaseRecord.of(properties)
        record.given_options = options
        predictors = (RuntimePredictor(self, fold, options.backend) for fold in self.file_model.folds)
        maps = [predict_soft_map(predictor, image, record) for predictor in predictors]
        total: Image = sum(maps[1:], maps[0])
        return total / np.float32(len(maps))


class RuntimePredictor(Predictor):
    """One fold of a model in one file."""

    tile_step = _TILE_STEP
    weighs_tiles = True
    shows_progress = False

    def __init__(self, model: RuntimeModel, fold: str, asked: str) -> None:
        self.plans: Mapping[str, Any] = model.plans_manager.plans
        self.configuration: Any = model.configuration_manager
        self.names: Sequence[str] = label_scheme(model.dataset_json).names
        self.running_scale = np.array(model.file_model.folds[fold].running_scale, np.float32)
        self._axes = model.file_model.mirror_axes
        self.agreement = Agreement()
        self._fold, self._networks = fold, model.networks
        self._fastest = self._networks.fastest_precision(len(self.configuration.patch_size))
        # Who has exported in float32 wants its digits.
        default = "float32" if model.file_model.precision == "float32" else self._fastest
        self._precision = parse_choice(asked).precision or default

    @property
    def name(self) -> str:
        """What runs patches."""
        return f"openvino {self._networks.works_as(self._precision)}"

    def warm_up(self, num_channels: int) -> None:
        """Compile the network for patches."""
        shape = (num_channels, *map(int, self.configuration.patch_size))
        self._networks.of(self._fold, shape, self._precision, is_patch=True)

    def run(self, patch: Image) -> Image:
        """Return the raw output (label, *space) of a patch, averaged over mirrored passes."""
        network = self._networks.of(self._fold, patch.shape, self._precision, is_patch=True)
        return mirrored(network, patch, self._axes, np.flip, self.agreement)

    def at_any_size(self) -> Callable[[Image], Image]:
        """Return the network as (channel, *space) -> (label, *space) for any multiple of its total stride."""

        def run(image: Image) -> Image:
            return self._networks.of(self._fold, image.shape, self._fastest, is_patch=False)(image)

        return run


class _Networks:
    """The networks of all folds, compiled when asked for; one for patches is kept, and one for another size.

    More at a time would take gigabytes, and compiling takes a fraction of a second.
    """

    def __init__(self, folds: Mapping[str, FoldContent]) -> None:
        self._folds = folds
        self._kept: dict[bool, tuple[Any, CompiledModel]] = {}
        self._failed: set[str] = set()

    def fastest_precision(self, num_axes: int) -> str:
        """Return the precision that is fastest here and has not failed."""
        has_bfloat16 = openvino_network.has_bfloat16()
        return self.works_as(openvino_network.fastest_precision(num_axes, has_bfloat16))

    def works_as(self, precision: str) -> str:
        """Return the precision, or float32 if it has failed."""
        return "float32" if precision in self._failed else precision

    def of(self, fold: str, shape: tuple[int, ...], precision: str, *, is_patch: bool) -> CompiledModel:
        """Return the network of a fold for images of a shape (channel, *space)."""
        precision = self.works_as(precision)
        key = (fold, shape, precision)
        kept = self._kept.get(is_patch)
        if kept is not None and kept[0] == key:
            return kept[1]
        del kept
        self._kept.pop(is_patch, None)  # its memory is free before the next one takes its own
        network = self._compiled(self._folds[fold], shape, precision)
        self._kept[is_patch] = ((fold, shape, self.works_as(precision)), network)
        return network

    def _compiled(self, fold: FoldContent, shape: tuple[int, ...], precision: str) -> CompiledModel:
        model = openvino_network.read_half(fold.xml, fold.weights)
        model.reshape([1, *shape])
        threads = os.cpu_count() or 1
        try:
            return CompiledModel(model, precision, threads)
        except (RuntimeError, ValueError) as error:
            if precision == "float32":
                raise
            why = openvino_network.reason(error)
            print(f"nnunet-softseg: openvino {precision} does not work here ({why}): going on with float32")
            self._failed.add(precision)
        return CompiledModel(model, "float32", threads)


def needs_nnunet(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> str | None:
    """Return what in the plans of a model only nnU-Net itself can do; None: nothing."""
    if not is_known(plans["image_reader_writer"]):
        return f"images read by {plans['image_reader_writer']}"
    others = [scheme for scheme in configuration["normalization_schemes"] if scheme not in SCHEMES]
    return f"normalisation by {others[0]}" if others else unusual_resampling(configuration)


def require_runtime(model: FileModel, backend: str, device: str) -> None:
    """Raise a UserError unless what runs a model in one file is here, and is what was asked for."""
    file = model.file
    if needed := needs_nnunet(model.plans, model.configuration):
        raise UserError(
            f"{file}: expected a model that runs without nnU-Net, found {needed}: {FULL_INSTALLATION}"
        )
    if model.plans["image_reader_writer"].startswith("SimpleITK"):
        simpleitk()
    if device not in ("auto", "cpu"):
        raise UserError(
            f"-device {device}: expected cpu, on which {file.name} runs, found {device}: leave it out, or "
            "predict with the model's folder"
        )
    if parse_choice(backend).engine == "torch":
        raise UserError(
            f"--backend {backend}: expected openvino, which runs {file.name}, found {backend}: leave it out, "
            "or predict with the model's folder"
        )
    if not openvino_network.installed():
        raise UserError(
            f"{file}: expected OpenVINO, which runs it, found none: pip install openvino, or predict with "
            "the model's folder"
        )
