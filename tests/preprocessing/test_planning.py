"""The planners: the paper's configuration, on data of every size and orientation."""

import contextlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from tiny_dataset import affine_of, in_this_process, make_tiny_dataset, save_nifti, use
from torch import nn

from nnunet_softseg.errors import UserError
from nnunet_softseg.preprocessing.planning import (
    SoftSegCordPlanner,
    SoftSegDemoPlanner,
    SoftSegPlanner,
    SoftSegResEncPlanner,
)

NAME = "Dataset101_Planned"
LARGE = (320, 256, 192)
Plan = Callable[..., dict[str, Any]]


@pytest.fixture
def plan(nnunet_folders: dict[str, Path]) -> Plan:
    """Plan a dataset by hearsay: image sizes (z, y, x) in voxels, and files with an orientation."""

    def planned(
        shapes: tuple[tuple[int, ...], ...] = (LARGE, LARGE),
        *,
        spacing: tuple[float, ...] = (1.0, 1.0, 1.0),
        planner: type[SoftSegPlanner] = SoftSegPlanner,
        reader: str = "NibabelIOWithReorient",
        orientations: tuple[str, ...] = ("LAS", "LAS"),
        ending: str = ".nii.gz",
        **options: Any,
    ) -> dict[str, Any]:
        raw, preprocessed = (nnunet_folders[f"nnUNet_{kind}"] / NAME for kind in ("raw", "preprocessed"))
        cases = [f"sub-{index + 1:02d}_T2w" for index in range(len(shapes))]
        for case, orientation in zip(cases, orientations, strict=True):
            for folder, name in (("imagesTr", f"{case}_0000"), ("labelsTr", case)):
                voxels = np.zeros((2, 2, 2), dtype=np.float32)
                save_nifti(raw / folder / f"{name}.nii.gz", voxels, affine_of(orientation))
                if ending != ".nii.gz":
                    (raw / folder / f"{name}.nii.gz").rename(raw / folder / f"{name}{ending}")
        content = {
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, "cord": 1},
            "numTraining": len(cases),
            "file_ending": ending,
            "overwrite_image_reader_writer": reader,
        }
        fingerprint = {
            "spacings": [spacing] * len(shapes),
            "shapes_after_crop": shapes,
            "foreground_intensity_properties_per_channel": {},
            "median_relative_size_after_cropping": 1.0,
        }
        preprocessed.mkdir(exist_ok=True)
        (raw / "dataset.json").write_text(json.dumps(content))
        (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        with contextlib.redirect_stdout(io.StringIO()):
            made = planner(101, **options)
            made.plan_experiment()
        return json.loads((preprocessed / f"{made.plans_identifier}.json").read_text())

    return planned


def network_of(configuration: dict[str, Any]) -> nn.Module:
    architecture = configuration["architecture"]
    with torch.device("meta"):
        return get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            1,
            1,
            allow_init=False,
            deep_supervision=False,
        )


def stride_of(configuration: dict[str, Any]) -> np.ndarray:
    return np.prod(configuration["architecture"]["arch_kwargs"]["strides"], axis=0)


def test_the_papers_configuration(plan: Plan) -> None:
    plans = plan()
    full = plans["configurations"]["3d_fullres"]
    architecture = full["architecture"]["arch_kwargs"]
    assert plans["plans_name"] == "nnUNetSoftSegPlans"
    assert full["spacing"] == [1, 1, 1]
    assert full["patch_size"] == [320, 192, 64]  # S-I, A-P, R-L
    assert full["batch_size"] == 2
    assert full["architecture"]["network_class_name"].endswith("PlainConvUNet")
    assert architecture["features_per_stage"] == [32, 64, 128, 256, 320]
    assert architecture["strides"] == [[1, 1, 1]] + [[2, 2, 2]] * 4
    assert architecture["kernel_sizes"] == [[3, 3, 3]] * 5
    assert architecture["n_conv_per_stage"] == [2] * 5
    assert architecture["n_conv_per_stage_decoder"] == [2] * 4
    assert full["resampling_fn_data_kwargs"]["order"] == 3  # the image by spline
    assert full["resampling_fn_data_kwargs"]["force_separate_z"] is False
    assert full["normalization_schemes"] == ["ZScoreNormalization"]
    assert plans["transpose_forward"] == [0, 1, 2]
    assert set(plans["configurations"]) == {"2d", "3d_fullres"}


def test_the_network_is_the_papers(plan: Plan) -> None:
    network = network_of(plan()["configurations"]["3d_fullres"])
    widths = [
        module.out_channels
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv3d) and name.startswith("encoder") and name.endswith(".conv")
    ]
    assert widths == [32, 32, 64, 64, 128, 128, 256, 256, 320, 320]


@pytest.mark.parametrize(
    ("orientation", "patch"),
    [("LAS", [320, 192, 64]), ("RPI", [320, 192, 64]), ("PSR", [64, 320, 192]), ("SLA", [192, 64, 320])],
)
def test_the_patch_follows_the_body_where_the_reader_keeps_the_file_s_axes(
    plan: Plan, orientation: str, patch: list[int]
) -> None:
    """The array of a file whose axes run i, j, k is indexed k, j, i."""
    for reader in ("NibabelIO", "SimpleITKIO"):
        plans = plan(((320, 320, 320),) * 2, reader=reader, orientations=(orientation,) * 2)
        assert plans["configurations"]["3d_fullres"]["patch_size"] == patch
    reoriented = plan(((320, 320, 320),) * 2, orientations=(orientation,) * 2)
    assert reoriented["configurations"]["3d_fullres"]["patch_size"] == [320, 192, 64]


def test_a_mirrored_axis_is_the_same_axis_and_a_swapped_one_is_refused(plan: Plan) -> None:
    plan(reader="NibabelIO", orientations=("LAS", "RPI"))
    with pytest.raises(
        UserError,
        match=r"mixed orientations.*SI, AP, RL in sub-01_T2w and RL, SI, AP in sub-02.*NibabelIOWithReorient",
    ):
        plan(reader="NibabelIO", orientations=("LAS", "PSR"))


def test_files_that_tell_no_orientation_are_refused(plan: Plan) -> None:
    with pytest.raises(UserError, match=r"which axis is S-I, expected NIfTI, MHA or NRRD, found .tif"):
        plan(reader="Tiff3DIO", ending=".tif")


@pytest.mark.soak
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)
@given(shape=st.tuples(*[st.integers(2, 400)] * 3))
def test_smaller_data_get_a_smaller_patch_of_whole_strides(plan: Plan, shape: tuple[int, int, int]) -> None:
    full = plan((shape, shape))["configurations"]["3d_fullres"]
    stride = stride_of(full)
    for length, size, step, largest in zip(shape, full["patch_size"], stride, (320, 192, 64), strict=True):
        assert size % step == 0
        assert min(length, largest) <= size < min(length, largest) + step  # all of the case, no more
        assert size // step >= 4 or step == 1  # the lowest level is no thinner than nnU-Net's
    assert full["batch_size"] == 2


def test_three_thick_slices(plan: Plan) -> None:
    """Three slices of 5 mm are 15 voxels on the grid of 1 mm: a patch of 16, halved twice only."""
    full = plan(((3, 256, 192),) * 2, spacing=(5.0, 1.0, 1.0))["configurations"]["3d_fullres"]
    assert full["patch_size"] == [16, 192, 64]
    assert stride_of(full).tolist() == [4, 16, 16]


def test_another_grid_keeps_the_patch_in_mm(plan: Plan) -> None:
    plans = plan(
        ((640, 512, 384),) * 2,
        spacing=(0.5, 0.5, 0.5),
        overwrite_target_spacing=(2.0, 1.0, 1.0),
        plans_name="nnUNetSoftSegThick",
    )
    full = plans["configurations"]["3d_fullres"]
    assert full["patch_size"] == [160, 192, 64]
    # Data on another grid must not land in the folder of those of 1 mm.
    assert full["data_identifier"] == "nnUNetSoftSegThick_3d_fullres"


@pytest.mark.parametrize("planner", [SoftSegPlanner, SoftSegResEncPlanner])
@pytest.mark.parametrize("gigabytes", [2, 8, 40])
def test_the_memory_target_shortens_si_first_and_never_lengthens(
    plan: Plan, planner: type[SoftSegPlanner], gigabytes: float
) -> None:
    full = plan(planner=planner, gpu_memory_target_in_gb=gigabytes)["configurations"]["3d_fullres"]
    si, ap, rl = full["patch_size"]
    reference = {SoftSegPlanner: 560e6, SoftSegResEncPlanner: 680e6}[planner]  # nnU-Net's, for 8 GB
    features = network_of(full).compute_conv_feature_map_size((si, ap, rl))
    assert features / reference * 8 <= gigabytes * 1.01  # nnU-Net counts another output channel
    assert full["batch_size"] == 2
    if gigabytes == 40:
        assert (si, ap, rl) == (320, 192, 64)
    elif gigabytes == 8:
        assert (ap, rl) == (192, 64)
        assert network_of(full).compute_conv_feature_map_size((si + 16, ap, rl)) / reference * 8 > gigabytes
    else:
        assert (si, rl) == (64, 64)
        assert ap < 192


def test_a_target_that_holds_no_useful_patch_is_refused(plan: Plan) -> None:
    told = r"-gpu_memory_target 0.1: too small for SoftSegPlanner, expected (0\.\d) or more"
    with pytest.raises(UserError, match=told) as refused:
        plan(gpu_memory_target_in_gb=0.1)
    expected = re.search(told, str(refused.value))
    assert expected
    plan(gpu_memory_target_in_gb=float(expected[1]))  # the remedy


def test_residual_encoder_with_the_same_patch(plan: Plan) -> None:
    plans = plan(planner=SoftSegResEncPlanner)
    full = plans["configurations"]["3d_fullres"]
    architecture = full["architecture"]["arch_kwargs"]
    assert plans["plans_name"] == "nnUNetSoftSegResEncPlans"
    assert full["patch_size"] == [320, 192, 64]
    assert full["data_identifier"] == "nnUNetSoftSegResEncPlans_3d_fullres"
    assert full["architecture"]["network_class_name"].endswith("ResidualEncoderUNet")
    assert architecture["n_blocks_per_stage"] == [1, 3, 4, 6, 6]  # nnU-Net's presets
    assert architecture["n_conv_per_stage_decoder"] == [1] * 4
    assert "n_conv_per_stage" not in architecture
    encoder = network_of(full).encoder
    assert [len(stage.blocks) for stage in encoder.stages] == [1, 3, 4, 6, 6]
    assert [stage.output_channels for stage in encoder.stages] == [32, 64, 128, 256, 320]


def test_a_narrow_patch_for_cords_with_the_papers_widths(plan: Plan) -> None:
    plans = plan(planner=SoftSegCordPlanner)
    full = plans["configurations"]["3d_fullres"]
    assert plans["plans_name"] == "nnUNetSoftSegCordPlans"
    assert full["patch_size"] == [320, 96, 48]
    assert full["architecture"]["arch_kwargs"]["features_per_stage"] == [32, 64, 128, 256, 320]
    assert stride_of(full).tolist() == [16, 16, 8]  # nnU-Net pools no axis below 4 voxels


def test_the_demo_s_configuration(plan: Plan) -> None:
    plans = plan(planner=SoftSegDemoPlanner)
    full = plans["configurations"]["3d_fullres"]
    assert plans["plans_name"] == "nnUNetSoftSegDemoPlans"
    assert full["patch_size"] == [64, 40, 32]
    assert full["architecture"]["arch_kwargs"]["features_per_stage"] == [8, 16, 32, 64]
    assert stride_of(full).tolist() == [8, 8, 8]


def test_two_dimensions_are_nnunets_own(plan: Plan) -> None:
    flat = plan()["configurations"]["2d"]
    assert flat["spacing"] == [1, 1]  # in the axial plane
    assert len(flat["patch_size"]) == 2
    assert flat["architecture"]["arch_kwargs"]["features_per_stage"][0] == 32


@pytest.mark.parametrize("planner", [SoftSegPlanner, SoftSegDemoPlanner])
def test_pictures_keep_their_own_grid(plan: Plan, planner: type[SoftSegPlanner]) -> None:
    """Their slices are 999 apart, as nnU-Net says: at 1 mm there would be 999 of them."""
    plans = plan(((1, 96, 100), (1, 96, 90)), spacing=(999.0, 0.5, 0.5), planner=planner)
    (flat,) = plans["configurations"].values()
    assert flat["spacing"] == [0.5, 0.5]
    if planner is SoftSegDemoPlanner:
        assert flat["patch_size"] == [64, 64]
        assert flat["architecture"]["arch_kwargs"]["features_per_stage"] == [8, 16, 32, 64]


def test_no_workers_at_all_do_not_stop_the_planner(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    assert plan()["configurations"]["3d_fullres"]["patch_size"] == [320, 192, 64]


def test_thick_slices_are_planned_preprocessed_and_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three slices of 5 mm, smaller than the patch: to the first step, with the paper's augmentation."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        plan_experiment_dataset,
        preprocess_dataset,
    )

    from nnunet_softseg.training.variants import nnUNetTrainerSoftSegPaperAug

    tiny = make_tiny_dataset(
        tmp_path,
        ("sub-01_T2w", "sub-02_T2w"),
        shape=(20, 22, 3),
        affines=[affine_of("LAS", (1.0, 1.0, 5.0))] * 2,
        reader="NibabelIOWithReorient",
    )
    use(tiny, monkeypatch)
    tiny.preprocessed.mkdir()
    fingerprint = {
        "spacings": [(5.0, 1.0, 1.0)] * 2,
        "shapes_after_crop": [(3, 22, 20)] * 2,
        "foreground_intensity_properties_per_channel": {"0": {}},
        "median_relative_size_after_cropping": 1.0,
    }
    (tiny.preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    with in_this_process():
        plan_experiment_dataset(101, SoftSegPlanner)
        preprocess_dataset(
            101,
            "nnUNetSoftSegPlans",
            configurations=["3d_fullres"],
            num_processes=[1],
            show_progress_bar=False,
        )
    plans = tiny.plans("nnUNetSoftSegPlans")
    assert plans["configurations"]["3d_fullres"]["patch_size"] == [16, 24, 20]
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    made = nnUNetTrainerSoftSegPaperAug(
        {**plans, "continue_training": False}, "3d_fullres", "all", tiny.dataset_json, torch.device("cpu")
    )
    made.on_train_start()
    batch = next(made.dataloader_train)
    assert batch["data"].shape == (2, 1, 16, 24, 20)
    assert torch.isfinite(batch["data"]).all()
    assert np.isfinite(made.train_step(batch)["loss"])
