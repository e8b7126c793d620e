"""The soft target: where the label goes, what is recorded of it, and what happens when it goes wrong."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import blosc2
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mounts import remount, small_disk
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy.ndimage import map_coordinates
from tiny_dataset import (
    TinyDataset,
    affine_of,
    make_tiny_dataset,
    plan_and_preprocess,
    save_nifti,
    smooth_noise,
    soft_blob,
)

from nnunet_softseg import cli
from nnunet_softseg.datasets.soft_label import find_reader
from nnunet_softseg.errors import UserError
from nnunet_softseg.io.formats import NIFTI_READERS
from nnunet_softseg.io.results import replacing
from nnunet_softseg.preprocessing import preparation
from nnunet_softseg.preprocessing.image_grid import on_network_grid, resample_linear
from nnunet_softseg.preprocessing.model_plans import PreprocessedDataset, explain_missing_plans
from nnunet_softseg.preprocessing.preparation import (
    all_up_to_date,
    drawn_voxels,
    drawn_voxels_of_record,
    open_soft_target,
    prepare,
    prepare_soft_targets,
    read_record,
    soft_target_folder,
)

CONFIGURATION = "3d_fullres"
FLOAT16_STEP = 2.5e-4
"""Half a step of float16 below 1: the error of storage."""
GRID_MM = (1.5, 1.0, 1.3)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> TinyDataset:
    """Three cases with two labels, planned and preprocessed by nnU-Net."""
    dataset = make_tiny_dataset(tmp_path_factory.mktemp("planned"), labels=(1, 2))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in dataset.environment.items():
            patch.setenv(name, value)
        plan_and_preprocess(dataset, spacing_mm=GRID_MM)
    return dataset


@pytest.fixture
def dataset(planned: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyDataset:
    return planned.copied(tmp_path / "nnunet", monkeypatch)


@pytest.fixture
def folder(dataset: TinyDataset) -> Path:
    return soft_target_folder(dataset.preprocessed / "nnUNetPlans_3d_fullres")


def run(**options: Any) -> preparation.PreparationReport:
    return prepare(101, CONFIGURATION, num_processes=0, progress=False, **options)


def change_plans(dataset: TinyDataset, **changes: Any) -> None:
    plans = dataset.plans()
    plans["configurations"][CONFIGURATION].update(changes)
    (dataset.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))


def change_soft_label(
    dataset: TinyDataset, case: str, function: Callable[[Any], Any], label: int = 1
) -> None:
    file = dataset.soft_label(case, label)
    image = nib.load(file)
    save_nifti(file, np.asarray(function(image.get_fdata()), dtype=np.float32), image.affine)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# The arithmetic


def sampled_by_scipy(array: Any, shape: Sequence[int]) -> Any:
    """Linear interpolation at the centres of the new voxels, clamped at the edges, by scipy."""
    scale = np.asarray(array.shape) / np.asarray(shape)
    index = np.indices(shape).reshape(3, -1)
    coordinates = (index + 0.5) * scale[:, None] - 0.5
    return map_coordinates(array.astype(np.float64), coordinates, order=1, mode="nearest").reshape(shape)


sizes = st.tuples(*[st.integers(1, 14)] * 3)


@settings(max_examples=60, deadline=None)
@given(old=sizes, new=sizes, seed=st.integers(0, 99))
def test_resampling_is_linear_on_nnunets_grid(old: Any, new: Any, seed: int) -> None:
    array = np.random.default_rng(seed).random(old).astype(np.float32)
    resampled = resample_linear(array, new)
    np.testing.assert_allclose(resampled, sampled_by_scipy(array, new), atol=1e-5)
    assert resampled.min() >= array.min() - 1e-6
    assert resampled.max() <= array.max() + 1e-6


@settings(max_examples=30, deadline=None)
@given(old=sizes, new=sizes, value=st.floats(0, 1, width=32))
def test_constant_stays_constant(old: Any, new: Any, value: float) -> None:
    resampled = resample_linear(np.full(old, value, dtype=np.float32), new)
    assert resampled.shape == new
    np.testing.assert_allclose(resampled, value, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    radius=st.floats(7, 9),
    offset=st.tuples(*[st.floats(-0.5, 0.5)] * 3),
    scale=st.tuples(*[st.floats(0.6, 1.6)] * 3),
)
def test_volume_of_a_blob_is_kept(radius: float, offset: Any, scale: Any) -> None:
    """The extent stays, so that the mean value tells the volume.

    To 1 %: nnU-Net's grid samples without smoothing. The edge of a ball is sampled well enough for that where
    its radius is 4 voxels or more of the coarser grid: from 7 voxels on, at the coarsest scale of 0.6.
    """
    shape = (24, 26, 28)
    blob = soft_blob(shape, np.asarray(shape) / 2 - 0.5 + offset, radius)
    resampled = resample_linear(
        blob, tuple(round(size * factor) for size, factor in zip(shape, scale, strict=True))
    )
    assert resampled.mean(dtype=np.float64) == pytest.approx(blob.mean(dtype=np.float64), rel=0.01)


@pytest.mark.parametrize(
    ("shape", "axes"), [((3, 4, 5), (0, 1, 2)), ((3, 16, 40), (0,)), ((24, 4, 40), (1,))]
)
def test_voxels_of_a_coarser_grid_are_means_of_what_they_cover(shape: Any, axes: Any) -> None:
    """Eight voxels of 0 and 1 to one: the mean of any 8 x 8 x 8 is a fraction of 512, not a sample of it."""
    fine = np.random.default_rng(0).integers(0, 2, (24, 32, 40)).astype(np.float32)
    coarse = on_network_grid(fine, shape)
    mean = fine.astype(np.float64)
    for axis in axes:
        mean = mean.reshape(*mean.shape[:axis], -1, 8, *mean.shape[axis + 1 :]).mean(axis=axis + 1)
    if len(axes) == 1:  # the others: 2 to 1, or as they are
        mean = mean.reshape(3, 16, 2, 40).mean(axis=2) if axes == (0,) else mean
    np.testing.assert_allclose(coarse, mean, atol=1e-6)


def test_a_coarser_grid_of_another_ratio_keeps_the_sum() -> None:
    fine = np.random.default_rng(1).random((10, 9, 30)).astype(np.float32)
    coarse = on_network_grid(fine, (8, 7, 11))
    assert coarse.mean(dtype=np.float64) == pytest.approx(fine.mean(dtype=np.float64), abs=1e-7)


@given(st.floats(0.05, 1), st.floats(0.05, 1), st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_patches_are_drawn_on_the_half_of_each_label_however_faint(
    first: float, second: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    target = np.zeros((2, 6, 5, 4), dtype=np.float16)
    target[0, 1:4, 2, 1:3] = first  # one rater of four marked it
    target[0, 4, 2, 1] = 0.4 * first
    target[1, 0, :, 3] = second * rng.uniform(0.6, 1, 5)
    known, *drawn = (np.array(voxels) for voxels in drawn_voxels(target))
    assert len(known) == 6 * 5 * 4  # all of them, as there are fewer than are drawn
    assert {tuple(voxel) for voxel in drawn[0]} == {(z, 2, x) for z in (1, 2, 3) for x in (1, 2)}
    assert {tuple(voxel) for voxel in drawn[1]} == {(0, y, 3) for y in range(5)}


@pytest.mark.parametrize("axes", [2, 3])
def test_drawn_voxels_come_back_from_the_bytes_of_a_record(axes: int) -> None:
    target = np.zeros((3, 7, 300, 2)[: axes + 1], dtype=np.float16)
    target[0, 2:4], target[1, 5, 299] = 0.5, 1  # and nothing of the third
    drawn = drawn_voxels(target)
    found = drawn_voxels_of_record({"drawn_voxels": [voxels.tobytes() for voxels in drawn]}, axes)
    assert [voxels.tolist() for voxels in found] == [voxels.tolist() for voxels in drawn]
    assert drawn[2].tolist()[0][:2] == [5, 299]


def test_thick_slices_are_interpolated_too() -> None:
    """A step of 0 to 1 between thick slices becomes a ramp, which nearest neighbour would not give."""
    array = np.zeros((4, 8, 8), dtype=np.float32)
    array[2:] = 1
    profile = resample_linear(array, (16, 8, 8))[:, 4, 4]
    np.testing.assert_allclose(profile[6:10], [0.125, 0.375, 0.625, 0.875], atol=1e-6)


# The whole way, against nnU-Net's own way of an image


def as_plan(dataset: TinyDataset, transpose_forward: Sequence[int], reader: str) -> PlansManager:
    """Plans by which images are resampled linearly and not normalised: a label may go as an image."""
    plans = dataset.plans()
    plans["transpose_forward"] = list(transpose_forward)
    plans["image_reader_writer"] = reader
    plans["foreground_intensity_properties_per_channel"]["1"] = {}
    plans["configurations"][CONFIGURATION].update(
        spacing=[GRID_MM[axis] for axis in transpose_forward],
        normalization_schemes=["NoNormalization", "NoNormalization"],
        use_mask_for_norm=[False, False],
        resampling_fn_data_kwargs={"is_seg": False, "order": 1, "order_z": 1, "force_separate_z": False},
    )
    return PlansManager(plans)


@pytest.mark.parametrize("reader", NIFTI_READERS)
@pytest.mark.parametrize(
    ("orientation", "tilt_deg", "transpose_forward"),
    [("LAS", 0, (0, 1, 2)), ("RPI", 14, (1, 0, 2)), ("LSA", 0, (2, 1, 0)), ("PIR", 21, (1, 2, 0))],
)
def test_soft_label_goes_where_nnunet_takes_an_image(
    planned: TinyDataset,
    tmp_path: Path,
    reader: str,
    orientation: str,
    tilt_deg: float,
    transpose_forward: Any,
) -> None:
    """A soft label put in as second channel of its image comes out of nnU-Net as our soft target.

    On a grid that is finer along every axis: where it is coarser, nnU-Net samples and a soft label is
    averaged.
    """
    case = "sub-01_T2w"
    affine = affine_of(orientation, (1.6, 1.9, 2.2), tilt_deg)
    dataset = make_tiny_dataset(tmp_path, [case], shape=(20, 23, 17), affines=[affine], zero_border=2)
    save_nifti(dataset.soft_label(case), smooth_noise((20, 23, 17), seed=3), affine)
    plans_manager = as_plan(planned, transpose_forward, reader)
    configuration = plans_manager.get_configuration(CONFIGURATION)
    preprocessor = DefaultPreprocessor(verbose=False)

    image, properties = find_reader(reader).read_images(
        [str(dataset.image(case)), str(dataset.soft_label(case))]
    )
    # Only the image decides what is cropped: beyond its border, the label is hidden from nnU-Net.
    channels = np.stack([image[0], np.where(image[0] != 0, image[1], 0)])
    expected, _, _ = preprocessor.run_case_npy(
        channels, None, properties, plans_manager, configuration, dataset.dataset_json
    )
    folder = dataset.preprocessed / "data"
    folder.mkdir(parents=True)
    one_channel = {**plans_manager.plans, "configurations": {CONFIGURATION: {**configuration.configuration}}}
    one_channel["configurations"][CONFIGURATION].update(
        normalization_schemes=["NoNormalization"], use_mask_for_norm=[False]
    )
    with_image = PlansManager(one_channel)
    preprocessor.run_case_save(
        str(folder / case),
        [str(dataset.image(case))],
        str(dataset.label_map(case)),
        with_image,
        with_image.get_configuration(CONFIGURATION),
        dataset.dataset_json,
    )

    report = prepare_soft_targets(
        PreprocessedDataset.of(
            with_image, CONFIGURATION, dataset.labels, raw_folder=dataset.raw, folder=folder
        ),
        num_processes=0,
        progress=False,
    )
    found = open_soft_target(report.folder, case)
    assert found.dtype == np.float16
    assert found.shape[1:] == expected.shape[1:]
    np.testing.assert_allclose(found[0].astype(np.float64), expected[1], atol=FLOAT16_STEP)
    assert report.cases[0].si_axis == axis_along_z(orientation, reader, transpose_forward)


def axis_along_z(orientation: str, reader: str, transpose_forward: Sequence[int]) -> int:
    seen = "RAS" if reader.endswith("Reorient") else orientation
    of_reader = next(axis for axis, letter in enumerate(seen[::-1]) if letter in "SI")
    return list(transpose_forward).index(of_reader)


def test_fraction_survives_the_whole_way(dataset: TinyDataset) -> None:
    for case in dataset.cases:
        change_soft_label(dataset, case, lambda array: np.full_like(array, 0.37))
    report = run()
    for case in dataset.cases:
        np.testing.assert_allclose(open_soft_target(report.folder, case)[0], 0.37, atol=5e-4)


NO_RESAMPLING = {
    f"resampling_fn_{what}": "no_resampling_hack" if not what.endswith("kwargs") else {}
    for what in ("data", "data_kwargs", "seg", "seg_kwargs")
}


@pytest.mark.parametrize("changes", [{"spacing": [0.9, 1.2, 1.0]}, NO_RESAMPLING])
def test_same_grid_gives_back_the_label(dataset: TinyDataset, changes: Any) -> None:
    """Network grid = image grid: nothing is interpolated, only the axes turn, (x, y, z) to (z, y, x)."""
    change_plans(dataset, **changes)
    preprocess(dataset)
    report = run()
    for case in dataset.cases:
        for channel, label in enumerate(dataset.labels):
            expected = nib.load(dataset.soft_label(case, label)).get_fdata().T
            found = open_soft_target(report.folder, case)[channel]
            np.testing.assert_allclose(found.astype(np.float64), expected, atol=FLOAT16_STEP)


def preprocess(dataset: TinyDataset) -> None:
    plans_manager = PlansManager(dataset.plans())
    configuration = plans_manager.get_configuration(CONFIGURATION)
    folder = dataset.preprocessed / configuration.data_identifier
    shutil.rmtree(folder)
    folder.mkdir()
    for case in dataset.cases:
        DefaultPreprocessor(verbose=False).run_case_save(
            str(folder / case),
            [str(dataset.image(case))],
            str(dataset.label_map(case)),
            plans_manager,
            configuration,
            dataset.dataset_json,
        )


def test_labels_are_stacked_in_ascending_order_and_keep_their_volume(dataset: TinyDataset) -> None:
    report = run()
    assert report.labels == (1, 2)
    for case in dataset.cases:
        target = open_soft_target(report.folder, case)
        for channel, label in enumerate(dataset.labels):
            image = nib.load(dataset.soft_label(case, label))
            # To 3 %: these balls have a radius of 3 voxels, and the grid is coarser than theirs.
            assert target[channel].mean(dtype=np.float64) == pytest.approx(image.get_fdata().mean(), rel=0.03)
            centre = np.argwhere(image.get_fdata() > 0.5).mean(axis=0)[::-1] + 0.5
            found = np.argwhere(target[channel] > 0.5).mean(axis=0) + 0.5
            np.testing.assert_allclose(found / target.shape[1:], centre / image.shape[::-1], atol=0.02)


def test_soft_target_lies_beside_nnunets_cases_and_opens_as_they_do(
    dataset: TinyDataset, folder: Path
) -> None:
    run()
    assert names(folder) == [f"{case}.b2nd" for case in dataset.cases]
    preprocessed = dataset.preprocessed / "nnUNetPlans_3d_fullres"
    assert sorted(nnUNetDatasetBlosc2.get_identifiers(str(preprocessed))) == sorted(dataset.cases)
    image, _, _, _ = nnUNetDatasetBlosc2(str(preprocessed)).load_case(dataset.cases[0])
    mapping = {} if os.name == "nt" else {"mmap_mode": "r"}
    target = blosc2.open(urlpath=str(folder / f"{dataset.cases[0]}.b2nd"), mode="r", **mapping)
    assert target.shape == (2, *image.shape[1:])
    np.testing.assert_array_equal(target[:, 3:5, 4:9, 2:7], target[...][:, 3:5, 4:9, 2:7])


def test_record_tells_sources_grid_and_versions(dataset: TinyDataset, folder: Path) -> None:
    run()
    case = dataset.cases[0]
    record = read_record(open_soft_target(folder, case))
    assert record is not None
    assert record["case"] == case
    assert record["labels"] == [1, 2]
    assert [source["file"] for source in record["sources"]] == [
        dataset.soft_label(case, i).name for i in (1, 2)
    ]
    assert [source["size"] for source in record["sources"]] == [
        dataset.soft_label(case, i).stat().st_size for i in (1, 2)
    ]
    assert set(record["versions"]) == {"nnunet_softseg", "nnunetv2", "torch"}
    assert record["reader"] == "SimpleITKIO"
    assert record["shape_before_crop"] == [30, 26, 24]
    np.testing.assert_allclose(record["spacing_mm"], [0.9, 1.2, 1.0], atol=1e-6)


# What the crop keeps


def test_kept_mass_is_what_lies_in_the_box_around_the_centre(dataset: TinyDataset, folder: Path) -> None:
    """In-plane the patch around the centre; along S-I (axis 0 here) all."""
    change_plans(dataset, patch_size=[8, 6, 6])
    report = run()
    for case in report.cases:
        target = open_soft_target(folder, case.case_id)[...].astype(np.float64)
        rows, columns = (slice((size - 6) // 2, (size - 6) // 2 + 6) for size in target.shape[2:])
        inside = target[:, :, rows, columns].sum(axis=(1, 2, 3)) / target.sum(axis=(1, 2, 3))
        np.testing.assert_allclose(case.kept_mass, inside, atol=1e-9)
        assert case.si_axis == 0
        assert max(case.kept_mass) < 0.95
        assert (
            f"case {case.case_id}: the fixed patch loses {1 - case.kept_mass[0]:.1%} of label 1"
            in case.warnings[0]
        )
        assert "nnUNetTrainerSoftSegSlidingWindow" in case.warnings[0]
    assert len(report.warnings) == 6


def test_kept_mass_follows_the_patch_without_new_soft_targets(dataset: TinyDataset) -> None:
    """Configurations may share preprocessed data, and must not undo each other's work."""
    assert run().warnings == ()
    change_plans(dataset, patch_size=[8, 6, 6])
    report = run()
    assert report.num_prepared == 0
    assert len(report.warnings) == 6
    shutil.rmtree(report.folder)
    assert run().kept_mass_by_case() == report.kept_mass_by_case()


def test_without_crop_all_is_kept(dataset: TinyDataset) -> None:
    change_plans(dataset, patch_size=[8, 6, 6])
    report = run(crop=False)
    assert {case.kept_mass for case in report.cases} == {(1.0, 1.0)}
    assert {case.si_axis for case in report.cases} == {None}
    assert report.warnings == ()


def test_empty_label_is_legal_but_said(dataset: TinyDataset) -> None:
    case = dataset.cases[1]
    change_soft_label(dataset, case, np.zeros_like, label=2)
    report = run()
    assert report.kept_mass_by_case()[case] == [1.0, None]
    assert len(report.warnings) == 1
    assert f"{case}_0002.nii.gz: all zero" in report.warnings[0]
    assert run().warnings == report.warnings  # said again when up to date


def test_label_beyond_the_image_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net crops an image to what is not zero, and a label out there is gone before any training."""
    dataset = make_tiny_dataset(tmp_path, ["sub-01_T2w"], zero_border=4)
    case = dataset.cases[0]
    change_soft_label(dataset, case, lambda array: np.where(np.indices(array.shape)[0] < 8, 0.5, 0))
    for name, value in dataset.environment.items():
        monkeypatch.setenv(name, value)
    plan_and_preprocess(dataset)
    report = run()
    inside = (4 * 18 * 22) / (8 * 26 * 30)
    assert f"case {case}: {1 - inside:.1%} of label 1 lies beyond the part of the image" in report.warnings[0]


def test_mixed_orientations_are_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    affines = [affine_of("LAS"), affine_of("LSA")]
    dataset = make_tiny_dataset(tmp_path, ["sub-01_T2w", "sub-02_T2w"], affines=affines)
    for name, value in dataset.environment.items():
        monkeypatch.setenv(name, value)
    plan_and_preprocess(dataset)
    with pytest.raises(
        UserError,
        match=r"mixed orientations.*axis . in sub-01_T2w; axis . in sub-02_T2w.*NibabelIOWithReorient",
    ):
        run()
    assert len(run(crop=False).cases) == 2


def test_shapes_run_along_the_cord_though_prepared_without_the_crop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_tiny_dataset(tmp_path, ["sub-01_T2w"])
    for name, value in dataset.environment.items():
        monkeypatch.setenv(name, value)
    plan_and_preprocess(dataset)
    run(crop=False)
    (found,) = run().cases
    assert found.si_axis == 1  # nnU-Net puts the longest voxels, here along A-P, first
    assert not found.prepared
    shutil.rmtree(soft_target_folder(dataset.preprocessed / "nnUNetPlans_3d_fullres"))
    assert run().cases[0].shapes == found.shapes


# Up to date or stale


def times(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_second_run_finds_nothing_to_do(dataset: TinyDataset, folder: Path) -> None:
    assert run().num_prepared == 3
    before = times(folder)
    assert run().num_prepared == 0
    assert times(folder) == before


def touch(dataset: TinyDataset, case: str) -> None:
    os.utime(dataset.soft_label(case), (1, 1))


def change_one_voxel(dataset: TinyDataset, case: str) -> None:
    file = dataset.soft_label(case)
    image = nib.load(file)
    array = image.get_fdata(dtype=np.float32)
    array[2, 3, 4] = 0.25
    save_nifti(file, array, image.affine)


def change_without_size(dataset: TinyDataset, case: str) -> None:
    """Other content, same number of bytes: only time and hash tell."""
    file = dataset.soft_label(case)
    content = bytearray(file.read_bytes())
    content[4] ^= 1  # the time inside the gzip header, which nothing reads
    file.write_bytes(bytes(content))
    os.utime(file, (1, 1))


def break_target(dataset: TinyDataset, case: str) -> None:
    file = dataset.preprocessed / "nnUNetPlans_3d_fullres_soft" / f"{case}.b2nd"
    file.write_bytes(file.read_bytes()[:-7])


def garble_target(dataset: TinyDataset, case: str) -> None:
    """Its type, as Blosc2 writes it, is no type any more."""
    file = dataset.preprocessed / "nnUNetPlans_3d_fullres_soft" / f"{case}.b2nd"
    content = file.read_bytes()
    assert b"<f2" in content
    file.write_bytes(content.replace(b"<f2", b"<n2"))


def remove_target(dataset: TinyDataset, case: str) -> None:
    (dataset.preprocessed / "nnUNetPlans_3d_fullres_soft" / f"{case}.b2nd").unlink()


def foreign_target(dataset: TinyDataset, case: str) -> None:
    file = dataset.preprocessed / "nnUNetPlans_3d_fullres_soft" / f"{case}.b2nd"
    shape = open_soft_target(file.parent, case).shape
    file.unlink()
    blosc2.asarray(np.zeros(shape, dtype=np.float16), urlpath=str(file))


def other_case(dataset: TinyDataset, case: str) -> None:
    """Another case of the same shape under its name."""
    folder = dataset.preprocessed / "nnUNetPlans_3d_fullres_soft"
    shutil.copy(folder / f"{dataset.cases[2]}.b2nd", folder / f"{case}.b2nd")


@pytest.mark.parametrize(
    ("change", "num_prepared"),
    [
        (touch, 0),
        (change_one_voxel, 1),
        (change_without_size, 1),
        (break_target, 1),
        (garble_target, 1),
        (remove_target, 1),
        (foreign_target, 1),
        (other_case, 1),
    ],
)
def test_only_what_is_stale_is_made_again(dataset: TinyDataset, change: Any, num_prepared: int) -> None:
    run()
    change(dataset, dataset.cases[0])
    assert arguments_up_to_date(dataset) is (num_prepared == 0)
    report = run()
    assert [case.case_id for case in report.cases if case.prepared] == list(dataset.cases[:num_prepared])
    assert arguments_up_to_date(dataset)
    expected = open_soft_target(report.folder, dataset.cases[0])[...]
    shutil.rmtree(report.folder)
    run()
    np.testing.assert_array_equal(open_soft_target(report.folder, dataset.cases[0])[...], expected)


def arguments_up_to_date(dataset: TinyDataset) -> bool:
    folder = dataset.preprocessed / "nnUNetPlans_3d_fullres"
    plans_manager = PlansManager(dataset.plans())
    return all_up_to_date(
        PreprocessedDataset.of(
            plans_manager, CONFIGURATION, dataset.labels, raw_folder=dataset.raw, folder=folder
        )
    )


def test_soft_target_of_another_format_is_stale(
    dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    monkeypatch.setattr(preparation, "FORMAT", preparation.FORMAT + 1)
    assert run().num_prepared == 3


def test_soft_targets_of_other_preprocessing_are_stale(dataset: TinyDataset) -> None:
    run()
    change_plans(dataset, spacing=[1.1, 1.1, 1.1])
    preprocess(dataset)
    report = run()
    assert report.num_prepared == 3
    assert open_soft_target(report.folder, dataset.cases[0]).shape == (2, 25, 28, 22)  # mm: 27 x 31.2 x 24


def test_preprocessed_data_alone_will_do(dataset: TinyDataset) -> None:
    """On a cluster that got nnUNet_preprocessed only, as vanilla nnU-Net can train there."""
    run()
    shutil.rmtree(dataset.raw)
    report = run()
    assert report.num_prepared == 0
    assert "no soft labels here, so that soft targets are taken as they are" in report.warnings[0]


# Mistakes


def no_soft_labels(dataset: TinyDataset) -> None:
    shutil.rmtree(dataset.raw / "softLabelsTr")


def drop(name: str) -> Callable[[TinyDataset], None]:
    def change(dataset: TinyDataset) -> None:
        (dataset.preprocessed / "nnUNetPlans_3d_fullres" / name).unlink()

    return change


def cut(name: str) -> Callable[[TinyDataset], None]:
    def change(dataset: TinyDataset) -> None:
        file = dataset.preprocessed / "nnUNetPlans_3d_fullres" / name
        file.write_bytes(file.read_bytes()[:50])

    return change


def on_label(function: Callable[[Any], Any]) -> Callable[[TinyDataset], None]:
    return lambda dataset: change_soft_label(dataset, dataset.cases[0], function)


def moved(dataset: TinyDataset) -> None:
    file = dataset.soft_label(dataset.cases[0])
    image = nib.load(file)
    shift = np.zeros((4, 4))
    shift[0, 3] = 0.5
    save_nifti(file, image.get_fdata(dtype=np.float32), image.affine + shift)


def four_dimensional(dataset: TinyDataset) -> None:
    on_label(lambda array: np.stack([array, array], axis=-1))(dataset)


def truncated(dataset: TinyDataset) -> None:
    file = dataset.soft_label(dataset.cases[0])
    file.write_bytes(file.read_bytes()[:-30])


def other_reader(dataset: TinyDataset) -> None:
    plans = dataset.plans()
    plans["image_reader_writer"] = "NibabelIOWithReorient"
    (dataset.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))


def labels_in_json(labels: Any) -> Callable[[TinyDataset], None]:
    def change(dataset: TinyDataset) -> None:
        content = {**dataset.dataset_json, "labels": labels}
        (dataset.preprocessed / "dataset.json").write_text(json.dumps(content))

    return change


PREPROCESS = "run nnUNetv2_preprocess -d 101 -c 3d_fullres -plans_name nnUNetPlans"
MISTAKES: list[tuple[Any, str]] = [
    (
        lambda d: (d.preprocessed / "nnUNetPlans.json").unlink(),
        "expected plans, found none; there are .*run nnUNetv2_plan_and_prep",
    ),
    (
        lambda d: shutil.rmtree(d.preprocessed / "nnUNetPlans_3d_fullres"),
        f"expected preprocessed cases, found none: {PREPROCESS}",
    ),
    (drop("sub-01_T1w.pkl"), rf"sub-01_T1w: expected a preprocessed case \(.b2nd and .pkl\).*{PREPROCESS}"),
    (cut("sub-01_T1w.pkl"), f"sub-01_T1w: expected a preprocessed case.*{PREPROCESS}"),
    (cut("sub-01_T1w.b2nd"), f"sub-01_T1w: expected a preprocessed case.*{PREPROCESS}"),
    (
        lambda d: change_plans(d, spacing=[2.1, 2.1, 2.1]),
        rf"sub-01_T1w: expected shape \(13, 15, 11\) by nnUNetPlans, found \(18, 31, 18\): .*{PREPROCESS}",
    ),
    (other_reader, "read by NibabelIOWithReorient, found one read by SimpleITKIO: .*other plans"),
    (no_soft_labels, "softLabelsTr: no soft labels: .*labelsTr alone serves vanilla trainers only"),
    (lambda d: d.soft_label("sub-01_T2w", 2).unlink(), "soft label of case sub-01_T2w, label 2, is missing"),
    (
        on_label(lambda a: a[:, :, 1:]),
        r"sub-01_T1w_0001.nii.gz: shape differs.*\(z, y, x\) = \(30, 26, 24\), found \(29, 26, 24\)",
    ),
    (moved, "sub-01_T1w_0001.nii.gz: affine differs from that of the image by 0.5"),
    (on_label(lambda a: np.where(a > 0.9, np.inf, a)), "sub-01_T1w_0001.nii.gz: NaN or infinite values"),
    (on_label(lambda a: a * 100), r"sub-01_T1w_0001.nii.gz: values outside \[0, 1\].*divide it by 100"),
    (on_label(lambda a: a * 255), r"sub-01_T1w_0001.nii.gz: values outside \[0, 1\].*divide it by 255"),
    (four_dimensional, "sub-01_T1w_0001.nii.gz: not a 3-D image"),
    (truncated, "sub-01_T1w_0001.nii.gz: corrupt or truncated gzip"),
    (
        labels_in_json({"background": 0, "cord": [1, 2], "grey": 2}),
        "regions_class_order does not fit the labels: expected 2 values",
    ),
]


@pytest.mark.parametrize(("damage", "message"), MISTAKES)
def test_mistake_is_a_user_error_and_leaves_nothing_half_written(
    dataset: TinyDataset, folder: Path, damage: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(dataset)
    with pytest.raises(UserError, match=message):
        run()
    assert all(file.suffix == ".b2nd" and not file.name.startswith(".") for file in folder.glob("*"))
    assert not (folder / "sub-01_T1w.b2nd").exists()
    assert cli.main(["prepare", "-d", "101", "-c", CONFIGURATION, "-np", "0"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("nnunet-softseg: error: ")


def test_all_broken_cases_are_named_and_the_others_kept(dataset: TinyDataset, folder: Path) -> None:
    first, second, third = dataset.cases
    change_soft_label(dataset, first, lambda array: array * 100)
    change_soft_label(dataset, third, lambda array: array[1:], label=2)
    with pytest.raises(UserError, match=f"2 of 3 cases cannot be used: .*{first}_0001.*; .*{third}_0002"):
        run()
    assert names(folder) == [f"{second}.b2nd"]


def test_unknown_configuration_names_those_there_are(
    dataset: TinyDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["prepare", "-d", "101", "-c", "3d_fulres"]) == 2
    assert "expected a configuration out of 2d, 3d_fullres, found 3d_fulres" in capsys.readouterr().err


def test_missing_plans_are_told_with_those_there_by_our_command_and_by_nnunets(tmp_path: Path) -> None:
    """nnUNetv2_train opens nnUNet_preprocessed/DatasetNNN_Name/<plans>.json and says nothing more."""
    folder = tmp_path / "Dataset101_Cord"
    folder.mkdir()
    for name in ("dataset", "dataset_fingerprint", "splits_final", "nnUNetSoftSegPlans"):
        (folder / f"{name}.json").write_text("{}")
    with pytest.raises(FileNotFoundError) as missing:
        (folder / "nnUNetPlans.json").open()
    assert str(explain_missing_plans(missing.value)) == (
        f"{folder / 'nnUNetPlans.json'}: expected plans, found none; there are nnUNetSoftSegPlans: name one "
        "with -p, as in -p nnUNetSoftSegPlans, or run nnUNetv2_plan_and_preprocess -d 101"
    )
    for other in (FileNotFoundError(2, "no", str(folder / "dataset.json")), KeyError("x"), OSError(5, "no")):
        assert explain_missing_plans(other) is None


def test_missing_soft_target_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"sub-01.b2nd: expected a soft target, found none: run nnunet-softseg prepare"
    ):
        open_soft_target(tmp_path, "sub-01")


def test_case_that_is_not_preprocessed_is_a_warning(dataset: TinyDataset) -> None:
    for name in ("sub-02_T2w.pkl", "sub-02_T2w.b2nd", "sub-02_T2w_seg.b2nd"):
        drop(name)(dataset)
    report = run()
    assert "1 cases have soft labels but are not preprocessed (sub-02_T2w)" in report.warnings[0]
    assert PREPROCESS in report.warnings[0]


def test_2d_configuration(dataset: TinyDataset) -> None:
    """nnU-Net leaves the distance of slices as it is there; the soft label must follow. No crop."""
    plan_and_preprocess(dataset, "2d")
    report = prepare(101, "2d", num_processes=0, progress=False)
    assert report.patches.startswith("anywhere, as nnU-Net draws them: the configuration is 2d")
    assert {kept for found in report.cases for kept in found.kept_mass} == {1.0}
    case = dataset.cases[0]
    image = nnUNetDatasetBlosc2(str(dataset.preprocessed / "nnUNetPlans_2d")).load_case(case)[0]
    assert open_soft_target(report.folder, case).shape == (2, *image.shape[1:])


# Several processes, and none


def test_command_prepares_in_processes_and_says_how_much(
    dataset: TinyDataset, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    alone = {case: open_soft_target(folder, case)[...] for case in dataset.cases}
    shutil.rmtree(folder)
    assert cli.main(["prepare", "-d", "101", "-c", CONFIGURATION, "-np", "2"]) == 0
    output = capsys.readouterr()
    assert "3 soft targets prepared, 0 up to date" in output.out
    assert "Preparing soft targets" in output.err
    for case, expected in alone.items():
        np.testing.assert_array_equal(open_soft_target(folder, case)[...], expected)


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from nnunet_softseg.preprocessing.preparation import prepare
if sys.argv[1] == "die":
    os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
Path(sys.argv[2], f"ready-{os.getpid()}").touch()
while len(list(Path(sys.argv[2]).glob("ready-*"))) < int(sys.argv[3]):
    time.sleep(0.001)
report = prepare(101, "3d_fullres", num_processes=0, progress=False)
assert len(report.cases) == 3
"""


def start(dataset: TinyDataset, what: str, tmp_path: Path, number: int) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, **dataset.environment, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", SCRIPT, what, str(tmp_path), str(number)]
    return subprocess.Popen(arguments, env=environment)


def test_two_processes_may_prepare_at_once(dataset: TinyDataset, folder: Path, tmp_path: Path) -> None:
    processes = [start(dataset, "prepare", tmp_path, 2) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert names(folder) == [f"{case}.b2nd" for case in dataset.cases]
    assert run().num_prepared == 0


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL on Windows")
def test_killed_half_way_leaves_nothing_that_counts(
    dataset: TinyDataset, folder: Path, tmp_path: Path
) -> None:
    """Killed after writing, before renaming: the leftover is no soft target, and goes with the next run."""
    assert start(dataset, "die", tmp_path, 1).wait(timeout=120) == -9
    leftover = names(folder)
    assert len(leftover) == 1
    assert leftover[0].startswith(".sub-01_T1w.")
    with pytest.raises(UserError, match="expected a soft target, found none"):
        open_soft_target(folder, "sub-01_T1w")
    assert run().num_prepared == 3
    assert names(folder) == [f"{case}.b2nd" for case in dataset.cases]


def test_temporary_file_of_a_living_process_is_left_alone(dataset: TinyDataset, folder: Path) -> None:
    folder.mkdir()
    with replacing(folder / "sub-01_T1w.b2nd") as aside:
        aside.write_bytes(b"half")
        run()
        assert aside.read_bytes() == b"half"
        aside.write_bytes((folder / "sub-01_T1w.b2nd").read_bytes())
    assert run().num_prepared == 0


# The disk


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (
            errno.ENOSPC,
            "cannot write .*sub-01_T1w.b2nd: disk full, found .* MB free.*make room and run the same command",
        ),
        (errno.EACCES, "cannot write .*sub-01_T1w.b2nd: .*check that the folder is writable"),
    ],
)
def test_write_that_fails_is_a_user_error(
    dataset: TinyDataset, folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=message):
        run()
    assert names(folder) == []


def test_real_full_disk_leaves_only_what_is_whole(dataset: TinyDataset, folder: Path) -> None:
    """Room for two of three soft targets, all three of the same size."""
    for case in dataset.cases:
        for label in dataset.labels:
            change_soft_label(dataset, case, lambda array: smooth_noise(array.shape, 1), label)
    run()
    needed = (folder / "sub-01_T1w.b2nd").stat().st_size
    shutil.rmtree(folder)
    folder.mkdir()
    with small_disk(folder, f"size={2 * needed + needed // 2}"):
        with pytest.raises(UserError, match="disk full"):
            run()
        assert names(folder) == ["sub-01_T1w.b2nd", "sub-01_T2w.b2nd"]
        for case in dataset.cases[:2]:
            assert np.isfinite(open_soft_target(folder, case)[...]).all()
        remount(folder, "size=10m")
        assert run().num_prepared == 1


def test_folder_that_cannot_be_written_is_a_user_error(dataset: TinyDataset, folder: Path) -> None:
    folder.mkdir()
    with (
        small_disk(folder, "ro"),
        pytest.raises(UserError, match=r"cannot write .*[Rr]ead-only.*check that the folder is writable"),
    ):
        run()


def test_file_in_the_way_of_the_folder_is_a_user_error(dataset: TinyDataset, folder: Path) -> None:
    folder.write_text("in the way")
    with pytest.raises(UserError, match=r"cannot make the folder .*nnUNetPlans_3d_fullres_soft"):
        run()


def test_properties_of_nnunet_are_as_expected(dataset: TinyDataset) -> None:
    """What is read of nnU-Net's properties; fails loudly when upstream renames it."""
    content = (dataset.preprocessed / "nnUNetPlans_3d_fullres" / "sub-01_T1w.pkl").read_bytes()
    properties = pickle.loads(content)
    assert {"shape_before_cropping", "bbox_used_for_cropping", "spacing", "sitk_stuff"} <= set(properties)
    assert [tuple(map(int, side)) for side in properties["bbox_used_for_cropping"]] == [
        (0, 30),
        (0, 26),
        (0, 24),
    ]


def test_a_case_that_was_preprocessed_by_a_wrong_pixdim_is_refused(dataset: TinyDataset) -> None:
    """nnU-Net's readers take pixdim, whatever the affine says; the soft label must not follow."""
    manager = PlansManager(dataset.plans())
    where = {"raw_folder": dataset.raw, "folder": dataset.preprocessed / "nnUNetPlans_3d_fullres"}
    found = PreprocessedDataset.of(manager, CONFIGURATION, dataset.labels, **where, crop=True)
    job = preparation._jobs(found)[0]
    preparation._make_soft_target(job)
    nearly = replace(job.case, spacing_mm=tuple(1.005 * size for size in job.case.spacing_mm))
    preparation._make_soft_target(replace(job, case=nearly))
    wrong = replace(job.case, spacing_mm=(3.0, 0.5, 0.5))
    with pytest.raises(UserError, match=r"expected voxels of 0\.9 x 1\.2 x 1 mm .* found it preproc"):
        preparation._make_soft_target(replace(job, case=wrong))
