"""The network run by OpenVINO, an optional part: `pip install nnunet-softseg[cpu]`; names of all backends.

It is converted once, checked against torch, and cached beside the trained model: `<key>/model.xml`,
`model.bin` and `made_by.json`. The key is made of the weights, the layers and all versions that take part; a
folder is there as a whole or not at all. Only the conversion needs torch: what is converted runs without it.
Networks are in evaluation mode, without deep supervision, DDP and torch.compile.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from nnunet_softseg import __version__
from nnunet_softseg.errors import UserError
from nnunet_softseg.io.results import (
    changed_keys,
    changed_outputs,
    load_record,
    new_folder,
    output_hashes,
    write_json,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

VARIABLE = "NNUNET_SOFTSEG_BACKEND"
ENGINES, PRECISIONS = ("openvino", "torch"), ("float32", "bfloat16")
CACHE = "openvino_cache"
_HINTS = {"float32": "f32", "bfloat16": "bf16"}
INSTALL = "pip install 'nnunet-softseg[cpu]'"
_TELEMETRY = ("openvino_telemetry", "openvino_telemetry.backend")
_XML, _BIN, _MADE_BY = "model.xml", "model.bin", "made_by.json"
_TOLERANCE = 1e-3
"""Of the check, relative to the largest output: rounding gives 1e-5, a layer that was lost gives 1."""
_VERSIONS = ("openvino", "torch", "dynamic-network-architectures")
_SPACE = 3
_NOT_COMPUTING = ("Const", "Parameter", "Result")
_KEPT_IN_FLOAT32 = re.compile(r"\.encoder\.(?:stem|stages\.0\.\d+)\.convs\.0\.|\.decoder\.seg_layers\.")
"""Names of nodes of the first convolution and the head."""


def installed() -> bool:
    """Return whether OpenVINO is there."""
    return importlib.util.find_spec("openvino") is not None


class BackendChoice(NamedTuple):
    """Engine and precision that were asked for; None: the best that there is."""

    engine: str | None
    precision: str | None


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
    if engine == "openvino" and not installed():
        raise UserError(
            f"{VARIABLE} is {text!r}, but OpenVINO is not installed: {INSTALL}, or unset the variable"
        )
    return BackendChoice(engine, precision or None)


def reason(error: BaseException) -> str:
    """Return the first line of an error of OpenVINO's or torch's, which says what is wrong."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def has_bfloat16() -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware, as OpenVINO sees it."""
    return "BF16" in openvino_package().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def fastest_precision(num_axes: int, has_bfloat16: bool) -> str:
    """Return bfloat16 where it is fast, and has been measured: for patches of three axes."""
    return "bfloat16" if has_bfloat16 and num_axes == _SPACE else "float32"


def read_half(xml: bytes, weights: bytes) -> Any:
    """Return the `openvino.Model` of a graph and its weights, those in float16 as float32.

    OpenVINO would do the same when it compiles, but let marked nodes run in float16.
    """
    openvino = openvino_package()
    model = openvino.Core().read_model(xml, weights)
    for node in model.get_ops():
        source = node.input_value(0).get_node() if node.get_type_name() == "Convert" else None
        if source is not None and source.get_type_name() == "Constant":
            wide = openvino.opset13.constant(source.data.astype(np.float32))
            node.output(0).replace(wide.output(0))
    return model


class CompiledModel:
    """An `openvino.Model` on the CPU, compiled for patches of the shape that it has.

    Its input is (1, channel, *space), its output (1, label, *space). The precision is "float32" or
    "bfloat16", in which the marked nodes stay in float32; so many threads share a patch.

    Raises:
        ValueError: if the nodes run in other precisions.
    """

    def __init__(self, model: Any, precision: str, num_threads: int) -> None:
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": num_threads,
            "NUM_STREAMS": 1,
            # Reading and writing of other cases goes on beside it.
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled = openvino_package().Core().compile_model(model, "CPU", options)
        if precision == "bfloat16":
            _check_precisions(self._compiled.get_runtime_model())

    def __call__(self, patch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the raw output (label, *space) of a patch (channel, *space)."""
        raw: npt.NDArray[np.float32] = self._compiled(np.ascontiguousarray(patch[None]))[0][0].copy()
        return raw


class OpenVinoNetwork:
    """A network on the CPU, compiled for patches of one shape; arguments as for `converted_model`.

    In bfloat16 the first convolution and the head stay in float32; see `backends.TorchNetwork`.

    Raises:
        ValueError: if the converted network does not compute what torch does, or not in the precisions asked
            for.
    """

    def __init__(
        self, network: "nn.Module", precision: str, patch_shape: Sequence[int], folders: Sequence[Path]
    ) -> None:
        import torch

        self.name = f"openvino {precision}"
        model = converted_model(network, patch_shape, folders)
        self._compiled = CompiledModel(model, precision, torch.get_num_threads())

    def __call__(self, patch: "torch.Tensor") -> "torch.Tensor":
        """Return the raw output (label, *space) float32 of a patch (channel, *space)."""
        import torch

        return torch.from_numpy(self._compiled(patch.to(torch.float32).numpy()))


def _check_precisions(runtime: Any) -> None:
    """Raise a ValueError if the first convolution and head are not in float32: OpenVINO ignored the marks."""
    found = set()
    for node in runtime.get_ops():
        information = node.get_rt_info()
        is_convolution = information["layerType"].astype(str) == "Convolution"
        if is_convolution and _KEPT_IN_FLOAT32.search(information["originalLayersNames"].astype(str)):
            found.add(information["runtimePrecision"].astype(str))
    if found != {"f32"}:
        raise ValueError(f"the first convolution and the head run in {sorted(found)}, expected float32")


def openvino_package() -> Any:
    """Return the package `openvino`, imported without its telemetry.

    As it comes, importing it sends an event with a lasting identity of the user to Google Analytics, unasked;
    where `openvino_telemetry` is missing it goes without.
    """
    hidden = [name for name in _TELEMETRY if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: as if not installed
    try:
        return importlib.import_module("openvino")
    finally:
        for name in hidden:
            del sys.modules[name]


# The converted network, cached


def weights_hash(network: "nn.Module") -> str:
    """Return the SHA-256 of all weights and buffers of a network, with their names and shapes."""
    import torch

    digest = hashlib.sha256()
    for name, values in network.state_dict().items():
        digest.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        digest.update(values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def user_cache() -> Path:
    """Return the cache folder for models whose own folder cannot be written."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "nnunet-softseg" / CACHE


def converted_model(network: "nn.Module", patch_shape: Sequence[int], folders: Sequence[Path]) -> Any:
    """Return the network as an `openvino.Model` for patches of one shape, (channel, *space).

    The folders are those of the cache, of which the first that can be written is used.

    Raises:
        ValueError: if the converted network does not compute what torch does.
    """
    made_by = {
        "weights_sha256": weights_hash(network),
        "layers_sha256": hashlib.sha256(repr(network).encode()).hexdigest(),
        "patch_shape": [int(size) for size in patch_shape],
        "kept_in_float32": _KEPT_IN_FLOAT32.pattern,
        "versions": {
            "nnunet_softseg": __version__,
            **{name: importlib.metadata.version(name) for name in _VERSIONS},
        },
    }
    key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:20]
    places = [folder / key for folder in folders]
    for place in places:
        if (cached := _read(place, made_by)) is not None:
            return cached
    model = _checked(network, patch_shape)
    for place in places:
        with suppress(UserError, OSError):
            if _read(place, made_by) is None:  # another process may have made it meanwhile
                _keep(model, place, made_by)
        if (cached := _read(place, made_by)) is not None:
            return cached
    return openvino_package().Core().read_model(*_contents(model))


def _checked(network: "nn.Module", patch_shape: Sequence[int]) -> Any:
    """Return a network converted for patches of one shape, once it has computed what torch does."""
    small_shape = (patch_shape[0], *_smallest_patch(network, patch_shape[1:]))
    model = _convert(network, small_shape)
    _check(network, model, small_shape)
    model.reshape([1, *patch_shape])
    return model


def _smallest_patch(network: "nn.Module", size: Sequence[int]) -> list[int]:
    """Return the smallest patch that the network normalises at its bottom: two voxels along each axis."""
    unet: Any = network
    steps = [1] * len(size)
    for stride in unet.encoder.strides:
        each = [stride] * len(size) if isinstance(stride, int) else stride
        steps = [step * int(factor) for step, factor in zip(steps, each, strict=True)]
    return [min(int(extent), 2 * step) for extent, step in zip(size, steps, strict=True)]


def graph_and_weights(network: "nn.Module", patch_shape: Sequence[int], *, half: bool) -> tuple[bytes, bytes]:
    """Return a network, converted as by `converted_model`, as the contents of `model.xml` and `model.bin`.

    They can be reshaped to other patches. `half`: with weights in float16, in half of the space.
    """
    model = _checked(network, patch_shape)
    # OpenVINO numbers these names through the process: the same network is to give the same file.
    model.set_friendly_name("network")
    for output in model.get_results():
        output.set_friendly_name("raw_output")
    return _contents(model, half=half)


def _contents(model: Any, *, half: bool = False) -> tuple[bytes, bytes]:
    """Return what `model.xml` and `model.bin` of a model hold, with the marks that only a file can have."""
    with tempfile.TemporaryDirectory(prefix="nnunet-softseg-") as aside:
        _save(model, Path(aside), half=half)
        return (Path(aside) / _XML).read_bytes(), (Path(aside) / _BIN).read_bytes()


def _convert(network: "nn.Module", shape: Sequence[int]) -> Any:
    """Convert by OpenVINO's reader of torch networks; `openvino.convert_model` would tell Intel about it."""
    import torch

    openvino_package()  # before any of its parts, which would import it with its telemetry
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of tracing
        # With shared memory, the next fold's weights would be written into this one's.
        traced = TorchScriptPythonDecoder(network, example_input=torch.zeros(1, *shape), shared_memory=False)
    reader = FrontEndManager().load_by_framework("pytorch")
    model = reader.convert(reader.load(traced))
    model.reshape([1, *shape])
    return model


def _check(network: "nn.Module", model: Any, shape: Sequence[int]) -> None:
    """Compare with torch on a patch so small that it costs nothing."""
    import torch

    patch = np.random.default_rng(0).standard_normal((1, *shape), dtype=np.float32)
    compiled = openvino_package().Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.inference_mode():
        expected = network(torch.from_numpy(patch)).numpy()
    off = float(np.abs(compiled(patch)[0] - expected).max())
    if not off <= _TOLERANCE * float(np.abs(expected).max()):
        raise ValueError(f"the converted network differs from torch by {off:.2g}")


def _keep(model: Any, folder: Path, made_by: dict[str, Any]) -> None:
    """Write a model to its folder of the cache, over one that cannot be read; remove other versions."""
    shutil.rmtree(folder, ignore_errors=True)
    with new_folder(folder) as aside:
        _save(model, aside)
        hashes = output_hashes(aside, (aside / _XML, aside / _BIN))
        write_json(aside / _MADE_BY, {**made_by, "sha256": hashes})
    same = {name: made_by[name] for name in ("weights_sha256", "patch_shape")}
    for other in folder.parent.glob(f"*/{_MADE_BY}"):
        found = load_record(other, *same)
        if found and not changed_keys(found, same) and other.parent != folder:
            shutil.rmtree(other.parent, ignore_errors=True)


def _save(model: Any, folder: Path, *, half: bool = False) -> None:
    openvino_package().save_model(model, folder / _XML, compress_to_fp16=half)
    _mark_float32(folder / _XML)


def _mark_float32(file: Path) -> None:
    """Mark the nodes of the first convolution and the head: an attribute that only the file can be given."""
    tree = ElementTree.parse(file)
    layers = [layer for layer in tree.iter("layer") if layer.get("type") not in _NOT_COMPUTING]
    marked = [layer for layer in layers if _KEPT_IN_FLOAT32.search(layer.get("name", ""))]
    if not marked:
        raise ValueError("the converted network has no names by which to choose precisions")
    for layer in marked:
        information = layer.find("rt_info")
        if information is None:
            information = ElementTree.SubElement(layer, "rt_info")
        ElementTree.SubElement(information, "attribute", {"name": "precise", "version": "0"})
    tree.write(file, encoding="utf-8", xml_declaration=True)


def _read(folder: Path, made_by: dict[str, Any]) -> Any:
    """Return the cached model; None if there is none, or not as it was written."""
    record = load_record(folder / _MADE_BY, "sha256")
    if (
        record is None
        or changed_keys(record, made_by)
        or changed_outputs(folder, dict.fromkeys((_XML, _BIN)) | record["sha256"])
    ):
        return None
    try:
        return openvino_package().Core().read_model(folder / _XML)
    except RuntimeError:
        return None
