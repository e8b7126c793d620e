"""Backends that run the network of a trained model on one patch, and the choice among them.

By itself: on a GPU torch; on a CPU OpenVINO where it is installed, torch otherwise. `--backend`, or
NNUNET_SOFTSEG_BACKEND, asks for one: `torch` or `openvino`, with a precision if wanted: `openvino-float32`.
In the hands of torch a network keeps its weights, rearranged to the form that runs fastest.
"""

import ctypes
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy, deepcopy
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch._dynamo import OptimizedModule

from nnunet_softseg.errors import UserError
from nnunet_softseg.network import openvino_network
from nnunet_softseg.network.of_plans import running_scale, unwrapped
from nnunet_softseg.network.openvino_network import (
    CACHE,
    BackendChoice,
    OpenVinoNetwork,
    fastest_precision,
    parse_choice,
    user_cache,
    weights_hash,
)
from nnunet_softseg.network.soft_map import Agreement, OneSizeError, mirrored

MODEL_FOLDER = "nnunet_softseg_model_folder"
"""Attribute of a predictor: the folder of its model, where somebody has noted it."""
_KEPT = "_nnunet_softseg_backend"
_ONE_SIZE = "nnunet_softseg_one_size"  # attribute of a predictor: why its network takes patches alone
_SHAPE_ERRORS = (RuntimeError, ValueError, AssertionError, IndexError, TypeError)
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of mallopt(3) in malloc.h

Array = npt.NDArray[np.float32]


# The choice


class Network(Protocol):
    """A network in the hands of a backend: patch (channel, *space) -> raw output (label, *space) float32."""

    name: str

    def __call__(self, patch: torch.Tensor) -> torch.Tensor:
        """Return the raw output of a patch."""


class Backend:
    """A predictor's network, run on patches; if the fastest way fails, torch does, and one line says so."""

    def __init__(self, predictor: Any, choice: BackendChoice) -> None:
        self._predictor = predictor
        self._choice = choice
        self._network: Network | None = None

    def __call__(self, patch: torch.Tensor, agreement: Agreement | None = None) -> torch.Tensor:
        """Return the raw output (label, *space) of a patch (channel, *space), averaged over mirrored passes.

        The patch is not changed. How far the passes agree is added to `agreement`.
        """
        axes = self._predictor.allowed_mirroring_axes if self._predictor.use_mirroring else None
        try:
            self._network = self._network or _fastest(self._predictor, self._choice, tuple(patch.shape))
            raw = mirrored(self._network, patch, axes or (), torch.flip, agreement)
        except (UserError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:
            if isinstance(self._network, PlainTorch):
                raise
            self._network = _without_openvino(self._predictor, self._network, error)
            raw = mirrored(self._network, patch, axes or (), torch.flip, agreement)
        return raw

    @property
    def name(self) -> str:
        """What ran the last patch; empty before the first."""
        return self._network.name if self._network else ""


def backend_of(predictor: Any, asked: str) -> Backend:
    """Return the backend asked for (see `parse_choice`), for the weights that the network holds now.

    An ensemble puts the weights of one fold after the other into the same network, so ask again for every
    pass over a case. What was made for the weights at hand is kept with the predictor.
    """
    choice = parse_choice(asked)
    key = (choice, weights_hash(unwrapped(predictor.network)), str(predictor.device), torch.get_num_threads())
    kept = getattr(predictor, _KEPT, None)
    if kept is None or kept[0] != key:
        kept = (key, Backend(predictor, choice))
        setattr(predictor, _KEPT, kept)
    backend: Backend = kept[1]
    return backend


def _fastest(predictor: Any, choice: BackendChoice, patch_shape: Sequence[int]) -> Network:
    network, inner = predictor.network, unwrapped(predictor.network)
    if predictor.device.type == "cuda":
        return CudaNetwork(network)
    if (
        predictor.device.type != "cpu"
        or isinstance(network, OptimizedModule)
        or not (isinstance(inner, nn.Module) and UNetInStages.fits(inner))
    ):
        return PlainTorch(network, predictor.device)
    precision = choice.precision or fastest_precision(len(patch_shape) - 1, has_bfloat16())
    if choice.engine == "openvino" or (choice.engine is None and openvino_network.installed()):
        return OpenVinoNetwork(inner, precision, patch_shape, cache_folders(predictor))
    return TorchNetwork(inner, precision)


def has_bfloat16() -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware: emulated, it is slower than float32."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, probe, bool)()) for probe in probes)


def _without_openvino(predictor: Any, failed: Network | None, error: Exception) -> Network:
    """Return the predictor's own network, and say in one line what failed."""
    name = failed.name if failed else "the faster backend"
    why = openvino_network.reason(error)
    print(f"nnunet-softseg: {name} does not work here ({why}): going on with torch float32")
    return PlainTorch(predictor.network, predictor.device)


def cache_folders(predictor: Any) -> list[Path]:
    """Return where converted networks may be kept: beside the model, if that is known; the user's cache."""
    beside = getattr(predictor, MODEL_FOLDER, None) or _folder_of_results(predictor)
    return [*([Path(beside) / CACHE] if beside else []), user_cache()]


def _folder_of_results(predictor: Any) -> Path | None:
    """Return nnU-Net's folder of a model by the names in its plans, if it is there."""
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    with suppress(Exception):
        plans = predictor.plans_manager
        configuration = next(
            name
            for name in plans.available_configurations
            if plans.get_configuration(name) is predictor.configuration_manager
        )
        names = (plans.dataset_name, predictor.trainer_name, plans.plans_name, configuration)
        folder = Path(get_output_folder(*names))
        return folder if (folder / "plans.json").is_file() else None
    return None


# nnU-Net's predictor


class TorchPredictor:
    """NnU-Net's predictor as `inference.soft_prediction.Predictor` describes one: arrays in and out.

    It is for one pass over a case, with a network of ours and the weights that it holds now, by the backend
    that is asked for (`parse_choice`). `on_cpu`: sums are collected there, also those of a GPU.
    """

    def __init__(self, predictor: Any, asked: str, *, on_cpu: bool = False) -> None:
        self._predictor, self._asked = predictor, asked
        predictor.network = predictor.network.to(predictor.device).eval()
        self.plans: Mapping[str, Any] = predictor.plans_manager.plans
        self.configuration = predictor.configuration_manager
        self.names: Sequence[str] = predictor.label_manager.scheme.names
        self.running_scale = running_scale(predictor.network).float().cpu().numpy()
        self.tile_step: float = predictor.tile_step_size
        self.weighs_tiles: bool = predictor.use_gaussian
        self.shows_progress: bool = predictor.allow_tqdm
        on_device = predictor.perform_everything_on_device and predictor.device.type == "cuda"
        self._collect_on = predictor.device if on_device and not on_cpu else torch.device("cpu")
        self._backend = backend_of(predictor, asked)
        self.agreement = Agreement()

    @property
    def memory_errors(self) -> tuple[type[Exception], ...]:
        """What a GPU raises on which the sums have no room."""
        return (torch.cuda.OutOfMemoryError,) if self._collect_on.type == "cuda" else ()

    def in_less_memory(self) -> "TorchPredictor":
        """Return the same with sums collected on the CPU."""
        return TorchPredictor(self._predictor, self._asked, on_cpu=True)

    @property
    def name(self) -> str:
        """What ran the last patch."""
        return self._backend.name

    @torch.inference_mode()
    def run(self, patch: Array) -> Any:
        """Return the raw output of a patch, averaged over mirrored passes, in an array as of `place`."""
        raw = self._backend(torch.from_numpy(patch), self.agreement).to(self._collect_on)
        return raw.numpy() if self._collect_on.type == "cpu" else raw

    def place(self, array: Array) -> Any:
        """Return an array where sums are collected."""
        return array if self._collect_on.type == "cpu" else torch.tensor(array, device=self._collect_on)

    def fetch(self, array: Any) -> Array:
        """Return an array of `place` on the CPU."""
        fetched: Array = array if isinstance(array, np.ndarray) else array.cpu().numpy()
        return fetched

    @property
    def one_size(self) -> str | None:
        """Why the network takes patches alone; None as long as no other size has failed."""
        known: str | None = getattr(self._predictor, _ONE_SIZE, None)
        return known

    def at_any_size(self) -> Callable[[Array], Array]:
        """Return the network as (channel, *space) -> (label, *space) for arrays of any size.

        What runs patches may be compiled for them alone. The function raises a `OneSizeError` if the network
        takes no other size.
        """
        network, device = self._predictor.network, self._predictor.device
        is_unet = UNetInStages.fits(unwrapped(network))
        if device.type == "cpu" and is_unet:
            num_axes = len(self.configuration.patch_size)
            on_cpu = TorchNetwork(unwrapped(network), fastest_precision(num_axes, has_bfloat16()))
            return lambda image: _without_gradient(on_cpu, image)

        def run(image: Array) -> Array:
            try:
                with torch.autocast("cuda", enabled=device.type == "cuda"):
                    return _without_gradient(lambda patch: network(patch[None].to(device))[0], image)
            except _SHAPE_ERRORS as error:
                if is_unet or isinstance(error, torch.cuda.OutOfMemoryError):
                    raise
                name = type(unwrapped(network)).__name__
                why = f"{name} takes no image of another size than the patch"
                setattr(self._predictor, _ONE_SIZE, why)
                raise OneSizeError(why) from error

        return run


@torch.inference_mode()
def _without_gradient(network: Callable[[torch.Tensor], torch.Tensor], image: Array) -> Array:
    raw: Array = network(torch.from_numpy(image)).float().cpu().numpy()
    return raw


# Torch


def keep_heap() -> bool:
    """Tell glibc to keep freed memory for the next array; return whether it took that.

    Every layer allocates hundreds of megabytes. Given back and mapped anew, each page costs a fault: half of
    the time of a float32 pass.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(set_option(_MMAP_MAX, 0) and set_option(_TRIM_THRESHOLD, 2**31 - 1))


class TorchNetwork:
    """A network on the CPU: instance norm by the faster kernel of group norm, channels last.

    In bfloat16 the first convolution, the head and what the norms multiply and add stay in float32. They cost
    next to nothing, and move whole areas where they are rounded to three digits.

    Args:
        network: one of nnU-Net's U-Nets, in three dimensions if in bfloat16; it is left as it is.
        precision: "float32" or "bfloat16".
    """

    def __init__(self, network: nn.Module, precision: str) -> None:
        self.name = f"torch {precision}"
        keep_heap()
        rearranged: Any = _with_group_norm(network)
        flat = any(isinstance(part, nn.Conv2d) for part in rearranged.modules())
        # As the convolutions work: in another layout each would copy what it reads and what it writes.
        rearranged.to(memory_format=torch.channels_last if flat else torch.channels_last_3d)
        self._unet = UNetInStages(rearranged)
        if precision == "bfloat16":
            self._unet.in_bfloat16()

    def __call__(self, patch: torch.Tensor) -> torch.Tensor:
        """Return the raw output of a patch; see `Network`."""
        return self._unet(patch[None])[0].float()


class PlainTorch:
    """The predictor's own network, on whatever device it is, called as nnU-Net would."""

    name = "torch float32"

    def __init__(self, network: Any, device: torch.device) -> None:
        self._network = network
        self._device = device

    def __call__(self, patch: torch.Tensor) -> torch.Tensor:
        """Return the raw output of a patch; see `Network`."""
        raw: torch.Tensor = self._network(patch[None].to(self._device))[0].float()
        return raw


class CudaNetwork:
    """A network on a GPU: half precision where autocast takes it, channels last as tensor cores have them.

    It is compiled only if nnU-Net was told to (its environment variable nnUNet_compile): compiling takes
    longer than a hundred passes.
    """

    def __init__(self, network: nn.Module) -> None:
        self.name = "torch cuda autocast"
        self._network = network
        self._device = next(network.parameters()).device
        tensor_cores = torch.cuda.get_device_capability(self._device) >= (7, 0)
        self._format = torch.channels_last_3d if tensor_cores else torch.contiguous_format

    def __call__(self, patch: torch.Tensor) -> torch.Tensor:
        """Return the raw output of a patch; see `Network`."""
        batch = patch[None].to(self._device)
        if batch.ndim == 5:  # noqa: PLR2004  batch, channel and three of space
            batch = batch.contiguous(memory_format=self._format)
        with torch.autocast("cuda"):
            raw: torch.Tensor = self._network(batch)[0].float()
        return raw


class UNetInStages:
    """A U-Net of nnU-Net's, plain or residual, run stage by stage: skip connections are let go once used."""

    def __init__(self, network: nn.Module) -> None:
        unet: Any = network
        self._first, first_stage = _first_convolution(unet.encoder)
        self._encoder = [first_stage, *unet.encoder.stages[1:]]
        self._decoder = [
            _DecoderStage(up, stage)
            for up, stage in zip(unet.decoder.transpconvs, unet.decoder.stages, strict=True)
        ]
        self._head = unet.decoder.seg_layers[-1]
        self._inner = torch.float32

    @staticmethod
    def fits(network: nn.Module) -> bool:
        """Return whether a network has the parts of nnU-Net's U-Nets."""
        encoder: Any = getattr(network, "encoder", None)
        decoder: Any = getattr(network, "decoder", None)
        parts = ("transpconvs", "stages", "seg_layers")
        if not hasattr(encoder, "stages") or not all(hasattr(decoder, part) for part in parts):
            return False
        return getattr(encoder, "stem", None) is not None or hasattr(encoder.stages[0][-1], "convs")

    def in_bfloat16(self) -> None:
        """Put all but the first convolution and the head into bfloat16."""
        self._inner = torch.bfloat16
        for stage in [*self._encoder, *(module for step in self._decoder for module in step.modules)]:
            for parent in [*stage.modules()]:
                for name, child in parent.named_children():
                    if isinstance(child, nn.AvgPool3d):
                        setattr(parent, name, _InFloat32(child))
                # Of the one number that a norm has for a channel, rounding would show in the whole map.
                if not isinstance(parent, nn.GroupNorm) and not [*parent.children()]:
                    parent.to(torch.bfloat16)

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the raw output of a batch (batch, channel, *space), at full resolution."""
        features = _in_turn(_parts(self._first), batch).to(self._inner)
        skips = []
        for stage in self._encoder:
            features = _in_turn(_parts(stage), features)
            skips.append(features)
        skips.pop()
        for step in self._decoder:
            features = step(features, skips)
        raw: torch.Tensor = self._head(features.float())
        return raw


class _DecoderStage:
    """From the features below and a skip connection to those of a stage of the decoder.

    In float32 the first convolution is done of either by itself, and the two are added: joined they would be
    there twice. In bfloat16 adding would round once more.
    """

    def __init__(self, upsample: Any, stage: nn.Module) -> None:
        self.modules = (upsample, stage)
        self._upsample = upsample
        self._stage = stage

    def __call__(self, below: torch.Tensor, skips: list[torch.Tensor]) -> torch.Tensor:
        """Return the features of this stage; the last skip connection is taken off the list."""
        upsampled: torch.Tensor = self._upsample(below)
        first, *others = _parts(self._stage)
        if upsampled.dtype != torch.float32 or not isinstance(first, nn.Conv2d | nn.Conv3d):
            return _in_turn([first, *others], torch.cat((upsampled, skips.pop()), 1))
        of_upsampled, of_skip = _split(first, upsampled.shape[1])
        features: torch.Tensor = of_upsampled(upsampled)
        del upsampled
        features += of_skip(skips.pop())
        for part in others:  # not `_in_turn`: this array, too, is to be let go
            features = part(features)
        return features


def _split(convolution: Any, channels: int) -> tuple[nn.Module, nn.Module]:
    """Return two convolutions, of the first channels and of the others, whose sum is the one of all."""
    parts = []
    weights = convolution.weight[:, :channels], convolution.weight[:, channels:]
    for weight, bias in zip(weights, (convolution.bias, None), strict=True):
        part = copy(convolution)
        part._parameters = {"weight": nn.Parameter(weight.contiguous()), "bias": bias}
        part.in_channels = weight.shape[1]
        parts.append(part)
    return parts[0], parts[1]


def _parts(module: nn.Module) -> list[nn.Module]:
    """Return the modules that are called in turn when this one is."""
    inner = getattr(module, "all_modules", getattr(module, "convs", module))
    if not isinstance(inner, nn.Sequential):
        return [module]
    return [part for child in inner for part in _parts(child)]


def _in_turn(parts: Sequence[nn.Module], features: torch.Tensor) -> torch.Tensor:
    """Run modules in turn: each array is let go when the next is there, nested calls would keep it longer."""
    for part in parts:
        features = part(features)
    return features


class _InFloat32(nn.Module):
    """What torch has not in bfloat16 on a CPU: the average pooling of residual encoders."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return what the part makes of the features, in their precision."""
        made: torch.Tensor = self.part(features.float()).to(features.dtype)
        return made


def _first_convolution(encoder: Any) -> tuple[nn.Module, nn.Module]:
    """Return the convolution that sees the image, with its norm, and what of the first stage comes after."""
    first_stage = encoder.stages[0]
    stem = getattr(encoder, "stem", None)
    if stem is not None:
        return stem, first_stage
    convolutions = first_stage[-1].convs
    return nn.Sequential(*first_stage[:-1], convolutions[0]), nn.Sequential(*convolutions[1:])


def _with_group_norm(network: nn.Module) -> nn.Module:
    """Return a copy whose instance norms are group norms of one channel each: the same numbers."""
    copy = deepcopy(network).eval()
    for parent in copy.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.InstanceNorm2d | nn.InstanceNorm3d) and not child.track_running_stats:
                setattr(parent, name, _as_group_norm(child))
    return copy


def _as_group_norm(norm: Any) -> nn.GroupNorm:
    channels = norm.num_features
    group_norm = nn.GroupNorm(channels, channels, eps=norm.eps, affine=norm.affine)
    group_norm.load_state_dict(norm.state_dict())
    return group_norm.to(norm.weight.device if norm.affine else "cpu").eval()
