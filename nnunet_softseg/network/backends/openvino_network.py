"""The network run by OpenVINO, an optional part: `pip install nnunet-softseg[cpu]`."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnunet_softseg.network.backends.converted_model import KEPT_IN_FLOAT32, converted_model, openvino_package
from nnunet_softseg.network.running_scale import unwrapped

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


def installed() -> bool:
    """Return whether OpenVINO is there."""
    return importlib.util.find_spec("openvino") is not None


class OpenVinoNetwork:
    """A network on the CPU, compiled for patches of one shape.

    In bfloat16 the first convolution and the head stay in float32; see `torch_network.TorchNetwork`.

    Args:
        network: of a model of ours, in evaluation mode; one of nnU-Net's U-Nets.
        precision: "float32" or "bfloat16".
        patch_shape: (channel, *space).
        folders: for the converted network, see `converted_model`.

    Raises:
        ValueError: if the converted network does not compute what torch does, or not in the precisions asked
            for.
    """

    def __init__(
        self, network: nn.Module, precision: str, patch_shape: Sequence[int], folders: Sequence[Path]
    ) -> None:
        self.name = f"openvino {precision}"
        model = converted_model(network, patch_shape, _smallest(network, patch_shape[1:]), folders)
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            # Reading and writing of other cases goes on beside it.
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled = openvino_package().Core().compile_model(model, "CPU", options)
        if precision == "bfloat16":
            _check_precisions(self._compiled.get_runtime_model())

    def __call__(self, patch: torch.Tensor) -> torch.Tensor:
        """Return the raw output (label, *space) float32 of a patch (channel, *space)."""
        batch = patch[None].to(torch.float32).contiguous().numpy()
        return torch.from_numpy(self._compiled(batch)[0].copy())[0]


def _smallest(network: nn.Module, size: Sequence[int]) -> list[int]:
    """Return the smallest patch that the network normalises at its bottom: two voxels along each axis."""
    unet: Any = unwrapped(network)
    steps = [1] * len(size)
    for stride in unet.encoder.strides:
        each = [stride] * len(size) if isinstance(stride, int) else stride
        steps = [step * int(factor) for step, factor in zip(steps, each, strict=True)]
    return [min(int(extent), 2 * step) for extent, step in zip(size, steps, strict=True)]


def _check_precisions(runtime: Any) -> None:
    """See that the first convolution and the head are in float32.

    Raises:
        ValueError: if they are not: a version of OpenVINO that does not know the marks.
    """
    found = set()
    for node in runtime.get_ops():
        information = node.get_rt_info()
        if information["layerType"].astype(str) == "Convolution":
            names = information["originalLayersNames"].astype(str)
            if KEPT_IN_FLOAT32.search(names):
                found.add(information["runtimePrecision"].astype(str))
    if found != {"f32"}:
        raise ValueError(f"the first convolution and the head run in {sorted(found)}, expected float32")
