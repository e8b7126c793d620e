"""The network run by OpenVINO, an optional part: `pip install nnunet-softseg[cpu]`."""

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnunet_softseg.backends.converted_model import converted_model, openvino_package
from nnunet_softseg.network import unwrapped

_HINTS = {"float32": "f32", "bfloat16": "bf16"}
_KEPT = re.compile(r"\.decoder\.(?:stages\.(\d+)|seg_layers)\.")


def installed() -> bool:
    """Return whether OpenVINO is there."""
    return importlib.util.find_spec("openvino") is not None


class OpenVinoNetwork:
    """A network on the CPU, compiled for patches of one shape.

    In bfloat16 the last stage of the decoder and the head stay in float32.

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
    """See that the convolutions of the last stage and the head are those in float32.

    Raises:
        ValueError: if they are not: a version of OpenVINO that does not know the marks.
    """
    found: dict[bool, set[str]] = {}
    convolutions = []
    for node in runtime.get_ops():
        information = node.get_rt_info()
        if information["layerType"].astype(str) == "Convolution":
            names = information["originalLayersNames"].astype(str)
            if match := _KEPT.search(names):
                convolutions.append((match[1], information["runtimePrecision"].astype(str)))
    last = max(int(stage) for stage, _ in convolutions if stage is not None)
    for stage, precision in convolutions:
        found.setdefault(stage is None or int(stage) == last, set()).add(precision)
    if found.get(True) != {"f32"}:
        raise ValueError(f"the last stage runs in {sorted(found.get(True, ()))}, expected float32")
