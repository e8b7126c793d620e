"""What runs the network: the maps of torch in float32, each fold's own weights, torch where it fails."""

import itertools
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import nn

from nnunet_softseg.errors import UserError
from nnunet_softseg.network import backends, openvino_network
from nnunet_softseg.network.adaptive_wing import AdaptiveWingLoss
from nnunet_softseg.network.backends import TorchNetwork, UNetInStages
from nnunet_softseg.network.norm_relu import norm_relu
from nnunet_softseg.network.of_plans import add_running_scale
from nnunet_softseg.network.openvino_network import BackendChoice, parse_choice

PATCH = (1, 32, 32, 16)
needs_openvino = pytest.mark.skipif(
    not openvino_network.installed(), reason="OpenVINO is not installed: pip install 'nnunet-softseg[cpu]'"
)
needs_bfloat16 = pytest.mark.skipif(not backends.has_bfloat16(), reason="no bfloat16 in this CPU")
ENGINES = ["torch", pytest.param("openvino", marks=needs_openvino)]
PRECISIONS = ["float32", pytest.param("bfloat16", marks=needs_bfloat16)]


def unet(seed: int = 0, kind: type = PlainConvUNet, *, flat: bool = False, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    blocks = {"n_blocks_per_stage": 1} if kind is ResidualEncoderUNet else {"n_conv_per_stage": 2}
    network = kind(
        1,
        3,
        (8, 16, 32),
        nn.Conv2d if flat else nn.Conv3d,
        3,
        (1, 2, 2),
        **blocks,
        num_classes=1,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm2d if flat else nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        **options,
    )
    return add_running_scale(network, 1).eval()


def tube(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A dark image with a bright oblique tube of 25 mm2, and its soft label."""
    generator = torch.Generator().manual_seed(seed)
    z, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in PATCH[1:]), indexing="ij")
    slope, shift = torch.rand(2, generator=generator)
    radius = torch.hypot(y - 12 - 0.25 * slope * z, x - 6 - 3 * shift)
    label = (8**0.5 + 0.5 - radius).clamp(0, 1)
    body = (torch.hypot(y - 16, x - 8) < 15).float()
    return (2 * label + body + 0.3 * torch.randn(PATCH[1:], generator=generator))[None], label[None]


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A network that finds the tube, after seconds: the map of a random one is noise, not a structure."""
    network = unet(seed=1).train()
    optimiser = torch.optim.Adam(network.parameters(), 4e-3)
    loss = AdaptiveWingLoss(reduction="mean")
    for step in range(60):
        image, label = tube(step)
        raw = network(image[None])
        optimiser.zero_grad()
        loss(raw, label[None]).backward()
        optimiser.step()
    return network.eval()


def predictor(
    network: nn.Module, *, mirror: tuple[int, ...] | None = None, folder: Path | None = None
) -> Any:
    made = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=mirror is not None)
    made.network = network
    made.allowed_mirroring_axes = mirror
    made.plans_manager = SimpleNamespace(plans={})
    if folder is not None:
        setattr(made, backends.MODEL_FOLDER, folder)
    return made


@pytest.fixture(scope="module")
def conversions() -> dict[str, Any]:
    """The networks that were converted, by their weights: a conversion takes a second."""
    return {}


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conversions: dict[str, Any]) -> None:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "user"))
    convert = openvino_network._convert

    def convert_once(network: nn.Module, shape: Any) -> Any:
        weights = openvino_network.weights_hash(network)
        if weights not in conversions:
            conversions[weights] = convert(network, shape)
        return conversions[weights].clone()

    monkeypatch.setattr(openvino_network, "_convert", convert_once)


def run(network: nn.Module, patch: torch.Tensor, wish: str, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The raw output by the backend that was asked for, and by no other."""
    backend = backends.backend_of(predictor(network), wish)
    with torch.inference_mode():
        raw = backend(patch)
    assert backend.name == wish.replace("-", " ")
    return raw.clone()


def as_it_is(network: nn.Module, patch: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return network(patch[None])[0].clone()


# The numbers


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", [PlainConvUNet, ResidualEncoderUNet])
def test_float32_is_the_network_itself(engine: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    network = unet(1, kind)
    image, _ = tube(0)
    expected = as_it_is(network, image)
    raw = run(network, image, f"{engine}-float32", monkeypatch)
    torch.testing.assert_close(raw, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_network_of_two_dimensions_is_itself_too(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = unet(1, flat=True), tube(0)[0][:, 3]
    expected = as_it_is(network, image)
    raw = run(network, image, f"{engine}-float32", monkeypatch)
    torch.testing.assert_close(raw, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_what_is_joined_at_a_skip_connection_is_convolved_in_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 no array of both is made: it would be the largest of all."""
    network, (image, _) = unet(1), tube(0)
    expected = as_it_is(network, image)
    monkeypatch.setattr(torch, "cat", lambda *_: pytest.fail("joined"))
    with torch.inference_mode():
        raw = TorchNetwork(network, "float32")(image)
    torch.testing.assert_close(raw, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.soak
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_trained_network_keeps_its_map_and_its_areas(
    engine: str, precision: str, trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (100, 101, 102):
        image, label = tube(seed)
        expected, found = (
            norm_relu(raw[None], robust=True)[0]
            for raw in (
                as_it_is(trained, image),
                run(trained, image, f"{engine}-{precision}", monkeypatch),
            )
        )
        assert float((expected - label).abs().mean()) < 0.02  # it has learned
        assert float((found - expected).abs().max()) <= 0.02
        cord = label > 0  # 1 mm voxels: the sum over a slice is an area in mm2
        areas = [(soft * cord).sum((0, 2, 3)) for soft in (found, expected)]
        assert float((areas[0] - areas[1]).abs().max()) <= 0.1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_bits_again(engine: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image, _ = tube(5)
    first, second = (run(unet(1), image, f"{engine}-{precision}", monkeypatch) for _ in range(2))
    assert torch.equal(first, second)


def test_the_network_of_the_predictor_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    network = unet()
    before = {name: values.clone() for name, values in network.state_dict().items()}
    norms = sum(isinstance(module, nn.InstanceNorm3d) for module in network.modules())
    run(network, tube(0)[0], "torch-bfloat16", monkeypatch)
    assert sum(isinstance(module, nn.InstanceNorm3d) for module in network.modules()) == norms
    assert all(torch.equal(values, before[name]) for name, values in network.state_dict().items())


@pytest.mark.parametrize("kind", [PlainConvUNet, ResidualEncoderUNet])
def test_in_bfloat16_the_first_convolution_and_the_head_stay_in_float32(kind: type) -> None:
    network = unet(2, kind)
    image, _ = tube(0)
    for part in network.modules():
        if isinstance(part, nn.InstanceNorm3d):
            nn.init.normal_(part.weight, 1, 0.1)
            nn.init.normal_(part.bias)
    backend = TorchNetwork(network, "bfloat16")
    stages = backend._unet._encoder, (part for stage in backend._unet._decoder for part in stage.modules)
    parts = {
        "first": [backend._unet._first],
        "inner": [*itertools.chain(*stages)],
        "head": [backend._unet._head],
    }
    seen: dict[str, list[torch.dtype]] = {name: [] for name in parts}
    expected = {}
    for name, modules in parts.items():
        every = [part for each in modules for part in each.modules()]
        convolutions = [part for part in every if isinstance(part, nn.Conv3d | nn.ConvTranspose3d)]
        expected[name] = len(convolutions)
        for part in convolutions:
            part.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0].dtype))
    with torch.inference_mode():
        assert backend(image).dtype == torch.float32
    half, single = torch.bfloat16, torch.float32
    assert seen == {
        "first": [single] * expected["first"],
        "inner": [half] * expected["inner"],
        "head": [single],
    }
    norms = [part for each in parts["inner"] for part in each.modules() if isinstance(part, nn.GroupNorm)]
    assert norms
    whole = network.state_dict().values()
    for norm in norms:  # in float32, and never rounded on the way
        for values in (norm.weight, norm.bias):
            assert any(torch.equal(values, other) for other in whole if other.shape == values.shape)


# Mirroring, folds, tiles


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("axes", [(0,), (0, 2), (0, 1, 2)])
def test_mirroring_is_that_of_nnunet(engine: str, axes: tuple[int, ...]) -> None:
    made = predictor(unet(1), mirror=axes)
    image, _ = tube(1)
    with torch.inference_mode():
        expected = made._internal_maybe_mirror_and_predict(image[None])[0]
        found = backends.backend_of(made, f"{engine}-float32")(image)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("engine", ENGINES)
def test_each_fold_runs_with_its_own_weights(engine: str) -> None:
    folds = [{k: v.clone() for k, v in unet(seed).state_dict().items()} for seed in (1, 2)]
    made = predictor(unet(0))
    image, _ = tube(2)
    for _ in range(2):  # of a second case, too
        for fold in folds:
            made.network.load_state_dict(fold)
            expected = as_it_is(made.network, image)
            with torch.inference_mode():
                found = backends.backend_of(made, f"{engine}-float32")(image)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("part", range(4))
def test_the_hash_sees_every_weight(part: int) -> None:
    network = unet(1)
    before = openvino_network.weights_hash(network)
    assert openvino_network.weights_hash(unet(1)) == before
    tensors = list(network.state_dict().values())
    values = tensors[part * (len(tensors) - 1) // 3].view(-1)  # the first, two between, the running scale
    values[-1] = torch.nextafter(values[-1], torch.tensor(torch.inf))
    assert openvino_network.weights_hash(network) != before


def test_what_was_made_for_the_weights_is_made_once() -> None:
    made = predictor(unet(1))
    first = backends.backend_of(made, "torch-float32")
    assert backends.backend_of(made, "torch-float32") is first
    assert backends.backend_of(made, "torch-bfloat16") is not first


# Choice and failure


def test_what_is_asked_for() -> None:
    assert parse_choice("") == parse_choice(" auto ") == BackendChoice(None, None)
    assert parse_choice("torch") == BackendChoice("torch", None)
    assert parse_choice("Torch-BFloat16") == BackendChoice("torch", "bfloat16")
    for wrong in ("onnx", "torch-int8", "auto-float32", "-float32"):
        with pytest.raises(UserError, match=r"expected one of auto, openvino, torch, openvino-float32"):
            parse_choice(wrong)


def test_openvino_asked_for_but_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_network, "installed", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'nnunet-softseg\[cpu\]'"):
        parse_choice("openvino")


@pytest.mark.parametrize(
    ("there", "bfloat16", "name"),
    [
        (False, False, "torch float32"),
        (False, True, "torch bfloat16"),
        pytest.param(True, False, "openvino float32", marks=needs_openvino),
        pytest.param(True, True, "openvino bfloat16", marks=[needs_openvino, needs_bfloat16]),
    ],
)
def test_by_itself_the_fastest_that_the_machine_has(
    there: bool, bfloat16: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_network, "installed", lambda: there)
    monkeypatch.setattr(backends, "has_bfloat16", lambda: bfloat16)
    backend = backends.backend_of(predictor(unet()), "auto")
    backend(tube(0)[0])
    assert backend.name == name


def test_an_unknown_network_runs_as_it_is() -> None:
    network = nn.Sequential(nn.Conv3d(1, 1, 3, padding=1))
    image, _ = tube(0)
    backend = backends.backend_of(predictor(network), "auto")
    with torch.inference_mode():
        assert torch.equal(backend(image), as_it_is(network, image))
    assert backend.name == "torch float32"
    assert not UNetInStages.fits(network)


@pytest.mark.parametrize("stage", ["__init__", "__call__"])
def test_a_failure_goes_on_with_torch_and_says_so_in_one_line(
    stage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("illegal instruction\nwith a long story")

    class Network:
        name = "openvino bfloat16"

        def __init__(self, *_: Any) -> None:
            pass

    setattr(Network, stage, broken)
    monkeypatch.setattr(backends, "OpenVinoNetwork", Network)
    monkeypatch.setattr(openvino_network, "installed", lambda: True)
    network, (image, _) = unet(3), tube(0)
    made = predictor(network)
    with torch.inference_mode():
        for _ in range(2):
            assert torch.equal(backends.backend_of(made, "auto")(image), as_it_is(network, image))
    assert backends.backend_of(made, "auto").name == "torch float32"
    lines = capsys.readouterr().out.splitlines()[1:]  # the first is nnU-Net's about the device
    assert len(lines) == 1
    assert lines[0].endswith("does not work here (illegal instruction): going on with torch float32")


def test_what_torch_itself_cannot_do_is_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    made = predictor(nn.Sequential(nn.Conv3d(2, 1, 3)))
    capsys.readouterr()
    with pytest.raises(RuntimeError, match="channels"):
        backends.backend_of(made, "auto")(tube(0)[0])
    assert capsys.readouterr().out == ""  # not tried again


def test_what_does_not_fit_into_memory_is_not_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    passes = []

    class Full(nn.Module):
        def forward(self, patch: torch.Tensor) -> torch.Tensor:
            passes.append(patch)
            raise torch.cuda.OutOfMemoryError("of a GPU")

    made = predictor(nn.Sequential(Full(), nn.Conv3d(1, 1, 1)))
    capsys.readouterr()
    with pytest.raises(torch.cuda.OutOfMemoryError):
        backends.backend_of(made, "auto")(tube(0)[0])
    assert (len(passes), capsys.readouterr().out) == (1, "")


@pytest.mark.parametrize(
    ("device", "everything_there", "on_cpu", "fills_a_gpu"),
    [
        ("cuda", True, False, True),
        ("cuda", False, False, False),
        ("cuda", True, True, False),
        ("cpu", True, False, False),
    ],
)
def test_sums_lie_on_the_gpu_if_they_may(
    device: str, everything_there: bool, on_cpu: bool, fills_a_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Module, "to", lambda network, _: network)  # no GPU is needed to choose
    made = predictor(unet())
    made.device, made.perform_everything_on_device = torch.device(device), everything_there
    made.plans_manager, made.configuration_manager = SimpleNamespace(plans={}), None
    made.label_manager = SimpleNamespace(scheme=SimpleNamespace(names=["cord"]))
    found = backends.TorchPredictor(made, "auto", on_cpu=on_cpu)
    assert found.memory_errors == ((torch.cuda.OutOfMemoryError,) if fills_a_gpu else ())
    assert found.in_less_memory().memory_errors == ()


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize(
    ("capability", "layout"), [((6, 1), torch.contiguous_format), ((7, 0), torch.channels_last_3d)]
)
def test_a_gpu_with_tensor_cores_gets_channels_last(
    capability: tuple[int, int], layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    network, seen = unet(1), []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = tube(0)[0].expand(2, *PATCH[1:])  # of one channel, both layouts are the same
    found = backends.CudaNetwork(nn.Sequential(nn.Conv3d(2, 1, 1), network))(image)
    assert found.shape == PATCH
    assert seen[0].is_contiguous(memory_format=layout)


# The cache of OpenVINO


def test_a_model_in_nnunets_results_has_its_cache_beside_it(nnunet_folders: dict[str, Path]) -> None:
    configurations = {"2d": object(), "3d_fullres": object()}
    made = SimpleNamespace(
        plans_manager=SimpleNamespace(
            available_configurations=list(configurations),
            get_configuration=configurations.get,
            dataset_name="Dataset001_Tube",
            plans_name="Plans",
        ),
        trainer_name="Trainer",
        configuration_manager=configurations["3d_fullres"],
    )
    assert backends.cache_folders(made) == [openvino_network.user_cache()]
    model = nnunet_folders["nnUNet_results"] / "Dataset001_Tube" / "Trainer__Plans__3d_fullres"
    model.mkdir(parents=True)
    (model / "plans.json").touch()
    assert backends.cache_folders(made) == [model / "openvino_cache", openvino_network.user_cache()]


def build(network: nn.Module, *folders: Path) -> Any:
    return openvino_network.converted_model(network, PATCH, folders)


def no_conversion(*_: Any) -> None:
    raise AssertionError("converted again")


def output(model: Any, image: torch.Tensor) -> np.ndarray[Any, Any]:
    compiled = (
        openvino_network.openvino_package()
        .Core()
        .compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    )
    return np.array(compiled(image[None].numpy())[0])


@needs_openvino
def test_converted_once_and_kept_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, (image, _) = unet(1), tube(0)
    made = predictor(network, folder=tmp_path / "model")
    (tmp_path / "model").mkdir()
    folder = backends.cache_folders(made)[0]
    assert folder == tmp_path / "model" / "openvino_cache"
    first = output(build(network, folder), image)
    record = json.loads(next(folder.glob("*/made_by.json")).read_text(encoding="utf-8"))
    assert record["weights_sha256"] == openvino_network.weights_hash(network)
    assert set(record["versions"]) == {
        "nnunet_softseg",
        "openvino",
        "torch",
        "dynamic-network-architectures",
    }
    monkeypatch.setattr(openvino_network, "_convert", no_conversion)
    assert np.array_equal(output(build(network, folder), image), first)
    with pytest.raises(AssertionError, match="converted again"):
        build(unet(2), folder)  # other weights
    slopes = [module for module in network.modules() if isinstance(module, nn.LeakyReLU)]
    assert slopes
    for module in slopes:
        module.negative_slope = 0.3
    with pytest.raises(AssertionError, match="converted again"):
        build(network, folder)  # the same weights in other layers


@needs_openvino
@pytest.mark.parametrize("name", ["model.xml", "model.bin", "made_by.json"])
def test_a_damaged_cache_is_made_anew(name: str, tmp_path: Path) -> None:
    network, (image, _) = unet(1), tube(0)
    first = output(build(network, tmp_path), image)
    file = next(tmp_path.glob(f"*/{name}"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.unlink()
    file.write_bytes(content)
    assert np.array_equal(output(build(network, tmp_path), image), first)
    assert file.read_bytes() != content
    assert len(list(tmp_path.iterdir())) == 1


@needs_openvino
def test_where_the_model_folder_cannot_be_written_the_cache_is_the_users_or_none(tmp_path: Path) -> None:
    network, (image, _) = unet(1), tube(0)
    (tmp_path / "file").touch()
    nowhere = tmp_path / "file" / "openvino_cache"
    in_memory = output(build(network, nowhere), image)
    assert np.array_equal(output(build(network, nowhere, openvino_network.user_cache()), image), in_memory)
    assert len(list(openvino_network.user_cache().glob("*/model.bin"))) == 1


@needs_openvino
def test_what_another_version_left_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(unet(1), tmp_path)
    build(unet(2), tmp_path)
    monkeypatch.setattr(openvino_network, "__version__", "99.0")
    build(unet(1), tmp_path)
    records = [json.loads(file.read_text(encoding="utf-8")) for file in tmp_path.glob("*/made_by.json")]
    assert sorted(record["versions"]["nnunet_softseg"] == "99.0" for record in records) == [False, True]


@needs_openvino
def test_a_wrong_conversion_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = openvino_network._convert
    monkeypatch.setattr(openvino_network, "_convert", lambda _, shape: convert(unet(2), shape))
    with pytest.raises(ValueError, match="differs from torch"):
        build(unet(1), tmp_path)
    assert list(tmp_path.iterdir()) == []


@needs_openvino
@needs_bfloat16
def test_marks_that_openvino_does_not_heed_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_network, "_mark_float32", lambda _: None)
    with pytest.raises(ValueError, match=r"the head run in \['bf16'\], expected float32"):
        openvino_network.OpenVinoNetwork(unet(1), "bfloat16", PATCH, [tmp_path])


@needs_openvino
def test_a_converted_network_keeps_its_weights_when_those_of_the_next_fold_come() -> None:
    network, (image, _) = unet(7), tube(0)
    expected = as_it_is(network, image).numpy()
    model = openvino_network._convert(network, PATCH)
    network.load_state_dict(unet(8).state_dict())
    np.testing.assert_allclose(output(model, image)[0], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("there_before", [False, True])
def test_openvino_is_imported_as_if_its_telemetry_were_not_there(
    there_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    telemetry = ("openvino_telemetry", "openvino_telemetry.backend")
    for name in telemetry:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        if not there_before:
            monkeypatch.delitem(sys.modules, name)
    before = {name: sys.modules.get(name) for name in telemetry}
    seen: list[Any] = []

    def import_module(name: str) -> str:
        seen.extend(sys.modules.get(hidden, "may be imported") for hidden in telemetry)
        return name

    monkeypatch.setattr(openvino_network.importlib, "import_module", import_module)
    assert openvino_network.openvino_package() == "openvino"
    assert seen == [before[name] for name in telemetry]  # None: as if it were not installed
    assert all((name in sys.modules) == there_before for name in telemetry)


@pytest.mark.soak
@needs_openvino
def test_openvino_tells_nobody(tmp_path: Path, in_new_python: Any) -> None:
    """Imported as it comes, it makes an identity in the user's folder and sends events under it."""
    code = (
        "import sys; from nnunet_softseg.network.openvino_network import openvino_package as load;"
        "from nnunet_softseg.network import openvino_network as c;"
        # In `export` this is the first that imports it.
        "import torch; c._convert(torch.nn.Conv3d(1, 1, 3), (1, 8, 8, 8));"
        "assert load() is load(); load().Core();"
        "print([name for name in sys.modules if 'telemetry' in name and 'openvino_t' in name])"
    )
    home = tmp_path / "home"
    home.mkdir()
    assert in_new_python(code, env={"HOME": str(home), "USERPROFILE": str(home)}) == "[]"
    assert list(home.iterdir()) == []


# The processor


def test_bfloat16_as_the_system_says() -> None:
    information = Path("/proc/cpuinfo")
    if not information.is_file():
        pytest.skip("no /proc/cpuinfo to compare with")
    flags = information.read_text(encoding="utf-8").split()
    assert backends.has_bfloat16() == ("avx512_bf16" in flags or "amx_bf16" in flags)


@pytest.mark.parametrize(("library", "kept"), [("glibc", True), ("", False)])
def test_the_heap_is_kept_by_the_options_of_glibc(
    library: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: list[tuple[int, int]] = []
    glibc = SimpleNamespace(mallopt=lambda *option: options.append(option) or 1)
    monkeypatch.setattr(backends.ctypes, "CDLL", lambda _: glibc)
    monkeypatch.setattr(backends.platform, "libc_ver", lambda: (library, "2.36"))
    assert backends.keep_heap() == kept
    # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h: nothing is mapped by itself, nothing is given back
    assert options == ([(-4, 0), (-1, 2**31 - 1)] if kept else [])


@pytest.mark.soak
def test_a_kept_heap_computes_the_same(in_new_python: Any) -> None:
    code = (
        "import torch; from nnunet_softseg.network.backends import keep_heap;"
        "torch.manual_seed(0);"
        "x = torch.randn(1 << 22); a = float(x.cumsum(0)[-1]); kept = keep_heap();"
        "print(kept, a == float(x.cumsum(0)[-1]))"
    )
    assert in_new_python(code).split()[1] == "True"
