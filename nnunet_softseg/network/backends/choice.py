"""Choice of the backend that runs the network of a predictor here, and of another when it fails.

By itself: on a GPU torch; on a CPU OpenVINO where it is installed, torch otherwise. `--backend`, or
NNUNET_SOFTSEG_BACKEND, asks for one: `torch` or `openvino`, with a precision if wanted: `openvino-float32`.
"""

import itertools
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch._dynamo import OptimizedModule

from nnunet_softseg.errors import UserError
from nnunet_softseg.network.backends import openvino_network
from nnunet_softseg.network.backends.openvino_network import FOLDER, OpenVinoNetwork, user_cache, weights_hash
from nnunet_softseg.network.backends.torch_network import CudaNetwork, PlainTorch, TorchNetwork, UNetInStages
from nnunet_softseg.network.running_scale import unwrapped

VARIABLE = "NNUNET_SOFTSEG_BACKEND"
MODEL_FOLDER = "nnunet_softseg_model_folder"
"""Attribute of a predictor: the folder of its model, where somebody has noted it."""
ENGINES, PRECISIONS = ("openvino", "torch"), ("float32", "bfloat16")
_KEPT = "_nnunet_softseg_backend"
_CHANNEL_AND_SPACE = 4


class Network(Protocol):
    """A network in the hands of a backend: patch (channel, *space) -> raw output (label, *space) float32."""

    name: str

    def __call__(self, patch: torch.Tensor) -> torch.Tensor:
        """Return the raw output of a patch."""


class BackendChoice(NamedTuple):
    """Engine and precision that were asked for; None: the best that there is."""

    engine: str | None
    precision: str | None


class Backend:
    """A predictor's network, run on patches; if the fastest way fails, torch does, and one line says so.

    Args:
        predictor: nnU-Net's, with a network of ours, on its device.
        choice: what was asked for.
    """

    def __init__(self, predictor: Any, choice: BackendChoice) -> None:
        self._predictor = predictor
        self._choice = choice
        self._network: Network | None = None

    def __call__(self, patch: torch.Tensor) -> torch.Tensor:
        """Return the raw output (label, *space) of a patch (channel, *space), averaged over mirrored passes.

        The patch is not changed.
        """
        axes = self._predictor.allowed_mirroring_axes if self._predictor.use_mirroring else None
        try:
            self._network = self._network or _fastest(self._predictor, self._choice, tuple(patch.shape))
            raw = _mirrored(self._network, patch, axes or ())
        except (UserError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:
            if isinstance(self._network, PlainTorch):
                raise
            self._network = _without_openvino(self._predictor, self._network, error)
            raw = _mirrored(self._network, patch, axes or ())
        return raw

    @property
    def name(self) -> str:
        """What ran the last patch; empty before the first."""
        return self._network.name if self._network else ""


def of(predictor: Any, asked: str) -> Backend:
    """Return what runs the predictor's network, with the weights that it holds now.

    An ensemble puts the weights of one fold after the other into the same network, so ask again for every
    pass over a case. What was made for the weights at hand is kept with the predictor.

    Args:
        predictor: nnU-Net's, its network on its device and in evaluation mode.
        asked: as for `parse_choice`.

    Raises:
        UserError: as `parse_choice`.
    """
    choice = parse_choice(asked)
    key = (choice, weights_hash(predictor.network), str(predictor.device), torch.get_num_threads())
    kept = getattr(predictor, _KEPT, None)
    if kept is None or kept[0] != key:
        kept = (key, Backend(predictor, choice))
        setattr(predictor, _KEPT, kept)
    backend: Backend = kept[1]
    return backend


def parse_choice(text: str) -> BackendChoice:
    """Return engine and precision by their names: `openvino-bfloat16`, `torch`, `auto`.

    Raises:
        UserError: for any other text, and for OpenVINO where it is not installed.
    """
    engine, _, precision = text.strip().lower().partition("-")
    if engine in ("", "auto") and not precision:
        return BackendChoice(None, None)
    if engine not in ENGINES or precision not in ("", *PRECISIONS):
        expected = ", ".join(["auto", *ENGINES, *(f"{e}-{p}" for e in ENGINES for p in PRECISIONS)])
        raise UserError(f"{VARIABLE} is {text!r}, expected one of {expected}")
    if engine == "openvino" and not openvino_network.installed():
        raise UserError(
            f"{VARIABLE} is {text!r}, but OpenVINO is not installed: pip install 'nnunet-softseg[cpu]', or "
            "unset the variable"
        )
    return BackendChoice(engine, precision or None)


def _fastest(predictor: Any, choice: BackendChoice, patch_shape: Sequence[int]) -> Network:
    network = predictor.network
    if predictor.device.type == "cuda":
        return CudaNetwork(network)
    known = isinstance(unwrapped(network), torch.nn.Module) and UNetInStages.fits(unwrapped(network))
    if predictor.device.type != "cpu" or isinstance(network, OptimizedModule) or not known:
        return PlainTorch(network, predictor.device)
    precision = choice.precision or fastest_precision(patch_shape)
    if choice.engine == "openvino" or (choice.engine is None and openvino_network.installed()):
        return OpenVinoNetwork(network, precision, patch_shape, cache_folders(predictor))
    return TorchNetwork(network, precision)


def has_bfloat16() -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware: emulated, it is slower than float32."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, probe, bool)()) for probe in probes)


def fastest_precision(patch_shape: Sequence[int]) -> str:
    """Return bfloat16 where it is fast, and has been measured: for a patch (channel, *three of space)."""
    return "bfloat16" if has_bfloat16() and len(patch_shape) == _CHANNEL_AND_SPACE else "float32"


def _without_openvino(predictor: Any, failed: Network | None, error: Exception) -> Network:
    """Return the predictor's own network, and say in one line what failed."""
    name = failed.name if failed else "the faster backend"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    print(f"nnunet-softseg: {name} does not work here ({reason}): going on with torch float32")
    return PlainTorch(predictor.network, predictor.device)


def cache_folders(predictor: Any) -> list[Path]:
    """Return where converted networks of a predictor's model may be kept, the first choice first.

    Beside the model, where its folder is known or is the one of nnU-Net's results; else in the user's cache.
    """
    beside = getattr(predictor, MODEL_FOLDER, None) or _folder_of_results(predictor)
    return [*([Path(beside) / FOLDER] if beside else []), user_cache()]


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


def _mirrored(network: Network, patch: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """Return the mean over all combinations of mirrored spatial axes; none: one pass."""
    chosen = [flip for n in range(len(axes) + 1) for flip in itertools.combinations(axes, n)]
    total = network(patch)
    for flip in chosen[1:]:
        dims = [1 + axis for axis in flip]
        total = total + torch.flip(network(torch.flip(patch, dims)), dims)
    return total / len(chosen)
