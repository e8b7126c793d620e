"""A model in one file: maps of the full path without torch and nnU-Net, and every file that is refused."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, clean_environment
from grid_plans import vanilla_plans
from tiny_dataset import affine_of, save_nifti, soft_blob

from nnunet_softseg.cli import main
from nnunet_softseg.errors import UserError
from nnunet_softseg.inference import model_export, trained_model
from nnunet_softseg.inference.export import keep_calibration
from nnunet_softseg.inference.model_export import export
from nnunet_softseg.inference.predict import predict
from nnunet_softseg.inference.trained_model import open_model
from nnunet_softseg.metrics.calibration import IsotonicMap
from nnunet_softseg.network import openvino_network
from nnunet_softseg.preprocessing.model_plans import soft_plans
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings

pytestmark = pytest.mark.skipif(not openvino_network.installed(), reason="OpenVINO is not installed")

TRAINED = REPOSITORY / "tests" / "data" / "model_of_0.1.0"
TRAINER = "nnUNetTrainerSoftSeg"
SHAPE = (14, 18, 24)
BARRED = (
    "torch", "nnunetv2", "batchgenerators", "batchgeneratorsv2", "acvl_utils",
    "dynamic_network_architectures", "pandas", "skimage", "sklearn", "statsmodels", "SimpleITK",
    "blosc2", "tifffile", "yaml",
)  # fmt: skip
WITHOUT = f"""
import sys
barred = {BARRED!r}
class Barred:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in barred:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Barred())
from nnunet_softseg.cli import main
code = main(sys.argv[1:])
assert not set(barred) & set(sys.modules)
sys.exit(code)
"""


def without_torch(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a Python that has what the extra `runtime` brings, and nothing else."""
    environment = clean_environment({"PYTHONPATH": str(REPOSITORY)})
    command = [sys.executable, "-c", WITHOUT, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model of two labels in both precisions."""
    folder = tmp_path_factory.mktemp("trained")
    files = {precision: folder / f"{precision}.softseg" for precision in ("float16", "float32")}
    for precision, file in files.items():
        export(TRAINED, file, precision=precision)
    return files


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 0.02), ("float32", 1e-4)])
def test_without_torch_and_nnunet_the_maps_are_those_of_the_full_path(
    trained: dict[str, Path], tmp_path: Path, precision: str, tolerance: float
) -> None:
    """The maps are those that version 0.1.0 wrote with torch in float32."""
    done = without_torch(
        "predict",
        "-i",
        TRAINED / "image.nii.gz",
        "-o",
        tmp_path,
        "-m",
        trained[precision],
        "--localize",
        "never",
    )
    assert done.returncode == 0, done.stderr
    expected = np.load(TRAINED / "soft_maps.npz")
    soft = [nib.load(tmp_path / "soft" / f"image_{label:04d}.nii.gz") for label in (1, 2)]
    for image, name in zip(soft, ("label1", "label2"), strict=True):
        assert image.get_data_dtype() == np.float32
        np.testing.assert_allclose(np.asarray(image.dataobj), expected[name], rtol=0, atol=tolerance)
    label_map = np.asarray(nib.load(tmp_path / "image.nii.gz").dataobj)
    one, two = (np.asarray(image.dataobj) > 0.5 for image in soft)
    np.testing.assert_array_equal(label_map, np.where(two, 2, one))
    entry = json.loads((tmp_path / "softseg.json").read_text())
    assert set(entry["versions"]) == {"nnunet_softseg", "openvino"}
    is_fast = precision == "float16" and openvino_network.has_bfloat16()
    assert entry["cases"]["image"]["backend"] == f"openvino {'bfloat16' if is_fast else 'float32'}"
    assert (tmp_path / "qc" / "index.html").is_file()


def flatten(configuration: dict[str, Any]) -> None:
    """Make it one of slices, as nnU-Net's 2d."""
    configuration |= {"patch_size": [16, 12], "spacing": [1.0, 1.0]}
    configuration["architecture"]["arch_kwargs"] |= {
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "kernel_sizes": [[3, 3]] * 2,
        "strides": [[1, 1], [2, 2]],
    }


def write_model(
    folder: Path,
    folds: Sequence[str],
    *,
    channels: int = 1,
    reader: str | None = None,
    flat: bool = False,
    **entry: Any,
) -> Path:
    """A model of ours with random weights, one seed per fold."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_softseg.training.trainer import nnUNetTrainerSoftSeg

    plans = soft_plans(vanilla_plans(), TRAINER, SoftSegSettings())
    si_axis = None if flat else 0
    plans[PLANS_KEY].update(
        si_axis=si_axis, orientation="SAR", training_cases={fold: [fold] for fold in folds}, **entry
    )
    plans["image_reader_writer"] = reader or plans["image_reader_writer"]
    plans["foreground_intensity_properties_per_channel"] = {str(i): {} for i in range(channels)}
    configuration = plans["configurations"]["3d_fullres"]
    if flat:
        flatten(configuration)
    configuration["normalization_schemes"] *= channels
    configuration["use_mask_for_norm"] *= channels
    manager = PlansManager(plans)
    for seed, fold in enumerate(folds):
        torch.manual_seed(seed)
        network = nnUNetTrainerSoftSeg.build_network_architecture(
            manager, manager.get_configuration("3d_fullres"), channels, 1, False
        )
        checkpoint = {
            "network_weights": network.state_dict(),
            "trainer_name": TRAINER,
            "init_args": {"configuration": "3d_fullres"},
            "inference_allowed_mirroring_axes": None,
        }
        (folder / f"fold_{fold}").mkdir(parents=True)
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    dataset_json = {
        "channel_names": {str(channel): f"MRI{channel}" for channel in range(channels)},
        "labels": {"background": 0, "cord": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    return folder


def write_images(folder: Path, *, channels: int = 1) -> Path:
    """Two cases with a bright blob beside the middle, LAS, voxels of another size than the network's."""
    folder.mkdir()
    for case in range(2):
        for channel in range(channels):
            image = np.random.default_rng(10 * case + channel).normal(100, 10, SHAPE)
            image += (200 - 80 * channel) * soft_blob(SHAPE, [7 + case, 13, 12], 4)
            file = folder / f"sub-0{case + 1}_{channel:04d}.nii.gz"
            save_nifti(file, image.astype(np.float32), affine_of("LAS", (1.1, 0.9, 1.0)))
    return folder


def maps(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.rglob("[!.]*.nii.gz"))
    return {str(file.relative_to(folder)): np.asarray(nib.load(file).dataobj) for file in files}


def assert_as_the_full_path(model: Path, images: Path, folder: Path, **options: Any) -> None:
    file = folder / "model.softseg"
    export(model, file, precision="float32")
    given = {"progress": False, "no_qc": True, "device": "cpu", **options}
    predict(images, folder / "full", model, backend="openvino-float32", **given)
    predict(images, folder / "light", file, backend="openvino-float32", **given)
    full, light = maps(folder / "full"), maps(folder / "light")
    assert full.keys() == light.keys()
    assert any(values.any() for values in full.values())
    for name, values in full.items():
        np.testing.assert_allclose(light[name], values, rtol=0, atol=1e-4, err_msg=name)
    reports = [json.loads((folder / way / "softseg.json").read_text())["cases"] for way in ("full", "light")]
    for case, entry in reports[0].items():
        other = reports[1][case]
        assert (entry["flags"], entry["warnings"]) == (other["flags"], other["warnings"])
        where = [one.get("localiser", {}).get("box") for one in (entry, other)]
        assert where[0] == where[1]


@pytest.mark.parametrize("localize", ["never", "always"])
def test_folds_are_averaged_and_the_patch_is_placed_as_in_the_full_path(
    tmp_path: Path, localize: str
) -> None:
    model = write_model(tmp_path / "model", ("0", "1"))
    assert_as_the_full_path(model, write_images(tmp_path / "images"), tmp_path, localize=localize)


def test_channels_read_by_simpleitk_are_those_of_the_full_path(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    model = write_model(tmp_path / "model", ("all",), channels=2, reader="SimpleITKIO")
    images = write_images(tmp_path / "images", channels=2)
    assert_as_the_full_path(model, images, tmp_path, localize="never", largest_piece=True)


def test_a_model_of_slices_and_calibrated_maps_are_those_of_the_full_path(tmp_path: Path) -> None:
    plans: dict[str, Any] = {PLANS_KEY: {}}
    keep_calibration(plans, {"cord": IsotonicMap((0.0, 0.5, 1.0), (0.0, 0.2, 1.0))}, ("0",), 5)
    model = write_model(tmp_path / "model", ("0",), flat=True, **plans[PLANS_KEY])
    assert_as_the_full_path(model, write_images(tmp_path / "images"), tmp_path, calibrate=True)


def test_a_model_whose_images_need_another_package_says_which(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", ("0",), reader="SimpleITKIO")
    export(model, tmp_path / "model.softseg")
    images = write_images(tmp_path / "images")
    done = without_torch("predict", "-i", images, "-o", tmp_path / "o", "-m", tmp_path / "model.softseg")
    assert done.returncode == 2
    assert "pip install SimpleITK" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"image_reader_writer": "NaturalImage2DIO"}, "images read by NaturalImage2DIO"),
        ({"normalization_schemes": ["OwnScheme"]}, "normalisation by OwnScheme"),
        ({"resampling_fn_data": "no_resampling_data_or_seg_to_shape"}, "resampling function no_resampling"),
    ],
)
def test_a_model_that_only_nnunet_can_run_is_not_exported(
    tmp_path: Path, changes: dict[str, Any], found: str
) -> None:
    model = write_model(tmp_path / "model", ("0",))
    plans = json.loads((model / "plans.json").read_text())
    for key, value in changes.items():
        (plans if key in plans else plans["configurations"]["3d_fullres"])[key] = value
    (model / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(UserError, match=f"expected a model that runs without nnU-Net, found {found}"):
        export(model, tmp_path / "model.softseg")


def test_a_folder_of_a_model_needs_the_rest_and_a_line_says_so(tmp_path: Path) -> None:
    done = without_torch("predict", "-i", TRAINED / "image.nii.gz", "-o", tmp_path, "-m", TRAINED)
    assert done.returncode == 2
    assert "expected the package torch, which this needs, found none" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_fold_can_be_chosen_and_its_training_cases_go_with_it(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", ("0", "1"))
    file = tmp_path / "model.softseg"
    assert export(model, file).folds == ("0", "1")
    images = write_images(tmp_path / "images")
    predict(images, tmp_path / "o", file, folds=[1], progress=False, no_qc=True, localize="never")
    assert json.loads((tmp_path / "o" / "softseg.json").read_text())["training_cases"] == {"1": ["1"]}
    with pytest.raises(UserError, match=r"expected fold 3, found 0, 1: correct -f"):
        predict(images, tmp_path / "p", file, folds=[3], progress=False)
    with pytest.raises(UserError, match=r"predictions of this model to go on with"):
        predict(images, tmp_path / "o", file, folds=[0], progress=False)


# The file


def test_the_file_holds_no_pickle_and_is_the_same_each_time(trained: dict[str, Path], tmp_path: Path) -> None:
    again = tmp_path / "again.softseg"
    report = export(TRAINED, again)
    assert report.num_bytes == again.stat().st_size
    assert again.read_bytes() == trained["float16"].read_bytes()
    with zipfile.ZipFile(again) as archive:
        names = archive.namelist()
        weights = archive.getinfo("fold_all/model.bin").file_size
    assert names == [
        "softseg.json", "plans.json", "dataset.json", "fold_all/model.xml", "fold_all/model.bin",
    ]  # fmt: skip
    with zipfile.ZipFile(trained["float32"]) as archive:
        assert weights < 0.6 * archive.getinfo("fold_all/model.bin").file_size
    assert os.listdir(tmp_path) == ["again.softseg"]  # nothing else was left behind


def test_a_file_that_cannot_be_written_whole_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.softseg"
    file.write_bytes(b"the one before")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(UserError, match="disk full"):
        export(TRAINED, file)
    assert file.read_bytes() == b"the one before"
    assert os.listdir(tmp_path) == ["model.softseg"]


def changed(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """Write the members of a file anew after a change, as somebody else might."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target


def of_a_later_format(members: dict[str, bytes]) -> None:
    manifest = json.loads(members["softseg.json"]) | {"format": 2, "made_by": "nnunet-softseg 9.0 export"}
    members["softseg.json"] = json.dumps(manifest).encode()


def with_other_weights(members: dict[str, bytes]) -> None:
    weights = bytearray(members["fold_all/model.bin"])
    weights[100] ^= 1
    members["fold_all/model.bin"] = bytes(weights)


def without_weights(members: dict[str, bytes]) -> None:
    del members["fold_all/model.bin"]


def without_manifest(members: dict[str, bytes]) -> None:
    del members["softseg.json"]


def with_other_plans(members: dict[str, bytes]) -> None:
    manifest = json.loads(members["softseg.json"])
    members["plans.json"] = b"{}"
    manifest["sha256"]["plans.json"] = hashlib.sha256(b"{}").hexdigest()
    members["softseg.json"] = json.dumps(manifest).encode()


def with_a_bomb(members: dict[str, bytes]) -> None:
    members["plans.json"] = bytes(2 * 2**20)


def with_words_for_numbers(members: dict[str, bytes]) -> None:
    members["softseg.json"] = b'["format", 1]'


def with_half_a_manifest(members: dict[str, bytes]) -> None:
    members["softseg.json"] = b'{"format": 1}'


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (of_a_later_format, "format 1 at most, found 2, made by nnunet-softseg 9.0 export (here"),
        (with_other_weights, "expected fold_all/model.bin as it was written, SHA-256"),
        (without_weights, "found no fold_all/model.bin in it"),
        (without_manifest, "found no softseg.json in it"),
        (with_half_a_manifest, "expected configuration, folds, precision, mirror_axes, sha256 in its"),
        (with_other_plans, "expected what nnunet-softseg export writes, found KeyError"),
        (with_a_bomb, "expected at most 1 MiB of text in plans.json, found 2 MiB: it is not unpacked"),
        (with_words_for_numbers, "expected a format number in softseg.json, found none"),
        ("cut off", "expected a whole file of nnunet-softseg export"),
        ("empty", "expected a whole file of nnunet-softseg export"),
        ("missing", "expected a model in one file, found nothing: correct -m"),
    ],
)
def test_a_file_that_is_not_whole_or_not_ours_is_refused_in_a_line(
    trained: dict[str, Path],
    tmp_path: Path,
    change: Any,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trained_model, "_MOST_UNPACKED", 2**20)
    file = tmp_path / "model.softseg"
    if callable(change):
        changed(trained["float16"], file, change)
    elif change == "cut off":
        whole = trained["float16"].read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
    elif change == "empty":
        file.write_bytes(b"")
    words = ["predict", "-i", str(TRAINED / "image.nii.gz"), "-o", str(tmp_path / "out"), "-m", str(file)]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-device", "cuda"], "-device cuda: expected cpu"),
        (["--backend", "torch"], "--backend torch: expected openvino"),
        (["-chk", "checkpoint_best.pth"], "-chk checkpoint_best.pth: expected a folder of a model"),
        (["--calibrate"], "--calibrate: expected a calibration"),
    ],
)
def test_options_of_the_full_path_alone_are_refused_in_a_line(
    trained: dict[str, Path], tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image, file = str(TRAINED / "image.nii.gz"), str(trained["float16"])
    assert main(["predict", "-i", image, "-o", str(tmp_path / "out"), "-m", file, *words]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_without_openvino_it_is_said_what_to_install(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_network, "installed", lambda: False)
    with pytest.raises(UserError, match="expected OpenVINO, which runs it, found none: pip install"):
        predict(TRAINED / "image.nii.gz", tmp_path, trained["float16"], progress=False)
    with pytest.raises(UserError, match=r"export: expected OpenVINO, .*: pip install 'nnunet-softseg"):
        export(TRAINED, tmp_path / "model.softseg")


def test_what_needs_a_folder_says_so(trained: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a file of nnunet-softseg export, which predicts alone"):
        export(trained["float16"], tmp_path / "again.softseg")
    with (
        pytest.raises(UserError, match="give the folder that it was exported from"),
        open_model(trained["float16"], None, "checkpoint_final.pth"),
    ):
        pass
    with pytest.raises(UserError, match=r"expected a file name that ends in \.softseg"):
        export(TRAINED, tmp_path / "model.zip")


def test_a_network_that_is_no_unet_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunet_softseg.network.backends import UNetInStages

    monkeypatch.setattr(UNetInStages, "fits", staticmethod(lambda _: False))
    with pytest.raises(UserError, match="expected one of nnU-Net's U-Nets, found PlainConvUNet"):
        export(TRAINED, tmp_path / "model.softseg")


def test_a_conversion_that_fails_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise ValueError("the converted network differs from torch by 3")

    monkeypatch.setattr(model_export, "graph_and_weights", wrong)
    with pytest.raises(UserError, match=r"fold all: expected a network .*: the converted network differs"):
        export(TRAINED, tmp_path / "model.softseg")


def test_images_are_checked_for_a_model_in_one_file(trained: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(TRAINED / "image.nii.gz", tmp_path / "image.nii.gz")
    assert main(["check", "-i", str(tmp_path), "-m", str(trained["float16"])]) == 0


# The model that comes with the package


def test_without_a_model_that_of_the_package_predicts(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained_model, "READY_MODEL", trained["float32"])
    words = ["predict", "-i", str(TRAINED / "image.nii.gz"), "-o", str(tmp_path), "--localize", "never"]
    assert main([*words, "--no-qc", "--backend", "openvino-float32"]) == 0
    expected = np.load(TRAINED / "soft_maps.npz")  # that version 0.1.0 wrote with torch
    for label, name in enumerate(("label1", "label2"), 1):
        soft = nib.load(tmp_path / "soft" / f"image_{label:04d}.nii.gz").get_fdata()
        np.testing.assert_allclose(soft, expected[name], rtol=0, atol=1e-4)


def test_a_package_without_its_model_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trained_model, "READY_MODEL", tmp_path / "cord.softseg")
    assert main(["predict", "-i", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cord.softseg: expected the model that comes with nnunet-softseg, found none" in line
    assert line.endswith("give a trained model with -m")
    assert not (tmp_path / "out").exists()
