"""Ensembles, cross-validation and post-processing by nnU-Net's own functions, with soft maps."""

import inspect
import itertools
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from affines import oblique
from conftest import clean_environment
from grid_plans import vanilla_plans
from nnunet_threads import threads_in_place_of_processes
from nnunetv2.ensembling import ensemble
from nnunetv2.evaluation import accumulate_cv_results, find_best_configuration
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.postprocessing import remove_connected_components
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy.ndimage import gaussian_filter

from nnunet_softseg.datasets.raw_dataset import in_nnunets_layout
from nnunet_softseg.datasets.soft_label import stored_soft_label
from nnunet_softseg.errors import UserError
from nnunet_softseg.inference import after_prediction, nnunet_patches
from nnunet_softseg.inference.case_record import KEY, CaseRecord, in_one_piece
from nnunet_softseg.inference.export import export_prediction
from nnunet_softseg.io.nifti import load_nifti
from nnunet_softseg.preprocessing.model_plans import soft_plans
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings

DATASET, SOFT, VANILLA = "Dataset901_Tiny", "nnUNetTrainerSoftSeg", "nnUNetTrainer"
CASES = ("sub-01_T2w", "sub-02_T2w")
SHAPE = (10, 12, 14)
LABELS = {"background": 0, "cord": 1, "lesion": 2}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """In place of nnU-Net's processes, which take seconds to start."""
    with threads_in_place_of_processes():
        yield


def dataset_json(labels: dict[str, Any]) -> dict[str, Any]:
    return {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"}


def smooth(seed: int, number: int) -> np.ndarray:
    """(number, *space) in [0, 1], the middle of some blobs near 1."""
    noise = np.random.default_rng(seed).normal(size=(number, *SHAPE[::-1]))
    blurred = np.stack([gaussian_filter(channel, 1.5) for channel in noise])
    return np.clip(0.5 + 2.2 * blurred, 0, 1).astype(np.float32)


class Member:
    """A folder of predictions of one model: soft maps, or probabilities of a vanilla network."""

    def __init__(self, folder: Path, *, soft: bool, labels: dict[str, Any] = LABELS, seed: int = 0) -> None:
        self.folder, self.seed, self.soft = folder, seed, soft
        self.labels = labels
        folder.mkdir(parents=True)
        plans = vanilla_plans()
        if soft:
            plans = soft_plans(plans, SOFT, SoftSegSettings())
            names = [name for name in labels if name not in ("background", "ignore")]
            scale = {"output_scale": "case", "why": "", "height": 1.0}
            thresholds = {"core_threshold": 0.5, "support_threshold": 0.05}
            plans[PLANS_KEY].update(si_axis=0, orientation="SAR")
            plans[PLANS_KEY]["output_scales"] = {name: {**scale, **thresholds} for name in names}
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(dataset_json(labels)))
        self.plans = PlansManager(plans)

    def predict(self, image: Path, into: Path | None = None) -> None:
        """Write a prediction of an image, by the export of nnU-Net or ours."""
        case = image.name.removesuffix("_0000.nii.gz")
        target = (into or self.folder) / case
        target.parent.mkdir(parents=True, exist_ok=True)
        array, properties = NibabelIOWithReorient().read_images([str(image)])
        space = array.shape[1:]
        properties |= {
            "shape_before_cropping": space,
            "bbox_used_for_cropping": [[0, size] for size in space],
            "shape_after_cropping_and_before_resampling": space,
        }
        seed = self.seed + CASES.index(case)
        manager, described = self.plans, dataset_json(self.labels)
        heads = manager.get_label_manager(described).num_segmentation_heads
        if self.soft:
            maps = smooth(seed, heads)
            properties[KEY] = CaseRecord(image_files=(str(image),))
            export_prediction(maps, properties, manager, described, str(target), save_probabilities=True)
        else:
            logits = 8 * smooth(100 + seed, heads)
            export_prediction_from_logits(
                logits, properties, manager.get_configuration("3d_fullres"), manager, described, str(target),
                save_probabilities=True,
            )  # fmt: skip

    def probabilities(self, case: str = CASES[0]) -> np.ndarray:
        return np.load(self.folder / f"{case}.npz")["probabilities"]


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    files = []
    for case in CASES:
        file = tmp_path / f"{case}_0000.nii.gz"
        noise = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
        image = nib.Nifti1Image(noise, oblique("LPS"))
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, file)
        files.append(file)
    return files


def members(tmp_path: Path, images: list[Path], **kinds: bool) -> dict[str, Member]:
    """Predictions of models by name; whether each is soft."""
    made = {}
    for seed, (name, soft) in enumerate(kinds.items()):
        made[name] = Member(tmp_path / name, soft=soft, seed=10 * seed)
        for image in images:
            made[name].predict(image)
    return made


def read(folder: Path, name: str) -> np.ndarray:
    """(z, y, x) in the axis order of nnU-Net's reader."""
    return NibabelIOWithReorient().read_images([str(folder / name)])[0][0]


def soft_maps(folder: Path, case: str = CASES[0]) -> np.ndarray:
    return np.stack([read(folder / "soft", f"{case}_{label:04d}.nii.gz") for label in (1, 2)])


def painted(mean: np.ndarray) -> np.ndarray:
    """Of one voxel after the other: the later label above a half, else the most probable class."""
    label_map = np.zeros(mean.shape[1:], int)
    for at in itertools.product(*map(range, mean.shape[1:])):
        voxel = mean[(slice(None), *at)]
        above = [label for label in (1, 2) if voxel[label] > 0.5]
        label_map[at] = above[-1] if above else int(voxel.argmax())
    return label_map


def test_probabilities_have_the_background_first_as_nnunet_stores_them(
    tmp_path: Path, images: list[Path]
) -> None:
    member = members(tmp_path, images, one=True)["one"]
    stored, soft = member.probabilities(), soft_maps(member.folder)
    assert stored.shape == (3, *SHAPE[::-1])
    np.testing.assert_array_equal(stored[1:], soft)
    np.testing.assert_array_equal(stored[0], 1 - soft.max(axis=0))
    # nnU-Net's own class map of them is the label map, but where both labels exceed a half.
    label_map = read(member.folder, f"{CASES[0]}.nii.gz")
    one_at_most = (soft > 0.5).sum(axis=0) < 2
    np.testing.assert_array_equal(stored.argmax(axis=0)[one_at_most], label_map[one_at_most])
    assert one_at_most.mean() > 0.5


def test_regions_have_no_background_in_nnunet_either(tmp_path: Path, images: list[Path]) -> None:
    regions = {"background": 0, "whole": [1, 2], "core": 2}
    described = {**dataset_json(regions), "regions_class_order": [1, 2]}
    manager = Member(tmp_path / "r", soft=True, labels=regions).plans.get_label_manager(described)
    soft = smooth(0, 2)
    assert in_nnunets_layout(soft, manager.scheme) is soft


@pytest.mark.parametrize("order", [("soft", "vanilla"), ("vanilla", "soft")])
def test_soft_and_vanilla_are_averaged_as_by_hand_in_either_order(
    tmp_path: Path, images: list[Path], order: tuple[str, str]
) -> None:
    made = members(tmp_path, images, soft=True, vanilla=False)
    mean = (made["soft"].probabilities() + made["vanilla"].probabilities()) / 2
    folders = [str(made[name].folder) for name in order]
    ensemble.ensemble_folders(folders, str(tmp_path / "out"), save_merged_probabilities=True, num_processes=1)
    stored = np.load(tmp_path / "out" / f"{CASES[0]}.npz")["probabilities"]
    np.testing.assert_allclose(stored, mean, atol=1e-6)
    expected = painted(mean)
    assert {0, 1, 2} == set(np.unique(expected))
    np.testing.assert_array_equal(read(tmp_path / "out", f"{CASES[0]}.nii.gz"), expected)
    assert not np.array_equal(expected, made["vanilla"].probabilities().argmax(axis=0))
    np.testing.assert_allclose(soft_maps(tmp_path / "out"), mean[1:], atol=1e-6)


def test_soft_maps_of_soft_models_are_averaged_with_header_and_report(
    tmp_path: Path, images: list[Path]
) -> None:
    made = members(tmp_path, images, first=True, second=True)
    mean = (soft_maps(made["first"].folder) + soft_maps(made["second"].folder)) / 2
    folders = [str(one.folder) for one in made.values()]
    ensemble.ensemble_folders(folders, str(tmp_path / "out"), num_processes=1)
    np.testing.assert_allclose(soft_maps(tmp_path / "out"), mean, atol=1e-6)
    label_map = read(tmp_path / "out", f"{CASES[0]}.nii.gz")
    np.testing.assert_array_equal(label_map, np.where(mean[1] > 0.5, 2, mean[0] > 0.5))
    written = nib.load(tmp_path / "out" / "soft" / f"{CASES[0]}_0001.nii.gz")
    source = nib.load(images[0])
    for field in ("pixdim", "xyzt_units", "srow_x", "srow_y", "srow_z", "sform_code", "qform_code"):
        np.testing.assert_allclose(written.header[field], source.header[field], atol=1e-5)
    report = json.loads((tmp_path / "out" / "softseg.json").read_text())
    assert report["ensemble_of"] == folders
    volume = float(np.asarray(written.dataobj).sum()) * abs(np.linalg.det(source.affine[:3, :3]))
    told = report["cases"][CASES[0]]["labels"]["cord"]["soft_volume_mm3"]
    assert told == pytest.approx(volume, rel=1e-3)
    assert set(report["cases"]) == set(CASES)


def test_what_is_flagged_in_a_member_is_flagged_in_the_ensemble(tmp_path: Path, images: list[Path]) -> None:
    made = members(tmp_path, images, first=True, second=True, vanilla=False)
    told = {"first": ("header", "two voxel sizes"), "second": ("empty", "nothing found of cord")}
    for name, (flag, why) in told.items():
        report = json.loads((made[name].folder / "softseg.json").read_text())
        report["cases"][CASES[0]] |= {"flags": ["spacing", flag], "warnings": [why]}
        (made[name].folder / "softseg.json").write_text(json.dumps(report))
    ensemble.ensemble_folders([str(one.folder) for one in made.values()], str(tmp_path / "out"), False, 1)
    case = json.loads((tmp_path / "out" / "softseg.json").read_text())["cases"][CASES[0]]
    assert case["flags"] == ["spacing", "header", "empty"]
    assert case["warnings"] == ["two voxel sizes", "nothing found of cord"]


def test_an_ensemble_of_vanilla_models_is_nnunets_alone(tmp_path: Path, images: list[Path]) -> None:
    made = members(tmp_path, images, first=False, second=False)
    ensemble.ensemble_folders([str(one.folder) for one in made.values()], str(tmp_path / "out"), False, 1)
    mean = (made["first"].probabilities() + made["second"].probabilities()) / 2
    np.testing.assert_array_equal(read(tmp_path / "out", f"{CASES[0]}.nii.gz"), mean.argmax(axis=0))
    assert not (tmp_path / "out" / "soft").exists()


def test_models_of_different_labels_are_refused(tmp_path: Path, images: list[Path]) -> None:
    members(tmp_path, images[:1], first=True)
    other = Member(tmp_path / "other", soft=True, labels={"background": 0, "nerve": 1})
    other.predict(images[0])
    folders = [str(tmp_path / "first"), str(other.folder)]
    with pytest.raises(
        UserError, match=r"of the same labels, .*\"cord\": 1.*found .*\"nerve\": 1.*leave one"
    ):
        ensemble.ensemble_folders(folders, str(tmp_path / "out"), False, 1)
    with pytest.raises(UserError, match="of the same labels"):
        ensemble.ensemble_crossvalidations(folders, str(tmp_path / "out"), (0,), 1)
    assert not (tmp_path / "out").exists()


def test_members_without_probabilities_or_of_other_images_are_refused(
    tmp_path: Path, images: list[Path]
) -> None:
    made = members(tmp_path, images[:1], first=True, second=True)
    folders = [str(one.folder) for one in made.values()]
    file = made["second"].folder / f"{CASES[0]}.npz"
    np.savez_compressed(file, probabilities=made["second"].probabilities()[1:])  # without the background
    with pytest.raises(UserError, match=r"shape \(3, 14, 12, 10\), found \(2, 14, 12, 10\): predict"):
        ensemble.ensemble_folders(folders, str(tmp_path / "out"), False, 1)
    file.unlink()
    with pytest.raises(UserError, match=r"second: expected probabilities, .*--save_probabilities"):
        ensemble.ensemble_folders(folders, str(tmp_path / "out"), False, 1)


@pytest.mark.parametrize("lacking", ["first", "second"])
def test_members_of_other_cases_are_refused(tmp_path: Path, images: list[Path], lacking: str) -> None:
    made = members(tmp_path, images, first=True, second=False)
    (made[lacking].folder / f"{CASES[1]}.npz").unlink()
    told = f"/{lacking}: expected probabilities of the same cases as .*, found none of {CASES[1]}: predict"
    with pytest.raises(UserError, match=told):
        ensemble.ensemble_folders([str(one.folder) for one in made.values()], str(tmp_path / "out"), False, 1)


# Cross-validation and post-processing


@pytest.fixture
def trained(
    tmp_path: Path, images: list[Path], nnunet_folders: dict[str, Path]
) -> tuple[dict[str, Member], Path]:
    """A soft and a vanilla model, one fold for each case, with truth that is that of the soft one, nearly."""
    results = nnunet_folders["nnUNet_results"] / DATASET
    preprocessed = nnunet_folders["nnUNet_preprocessed"] / DATASET
    raw = nnunet_folders["nnUNet_raw"] / DATASET / "labelsTr"
    truths = preprocessed / "gt_segmentations"
    for folder in (results, truths, raw):
        folder.mkdir(parents=True)
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(vanilla_plans()))
    made = {}
    for name, soft in ((SOFT, True), (VANILLA, False)):
        made[name] = Member(results / f"{name}__nnUNetPlans__3d_fullres", soft=soft)
        for fold, image in enumerate(images):
            made[name].predict(image, made[name].folder / f"fold_{fold}" / "validation")
    for fold, case in enumerate(CASES):
        map_file = made[SOFT].folder / f"fold_{fold}" / "validation" / f"{case}.nii.gz"
        label_map, properties = NibabelIOWithReorient().read_seg(str(map_file))
        truth = label_map[0].copy()
        truth[:, :, : SHAPE[0] // 2] = 0  # half of what the soft model finds is wrong, more of the other
        for folder in (truths, raw):
            NibabelIOWithReorient().write_seg(truth, str(folder / f"{case}.nii.gz"), properties)
    return made, truths


def dice(prediction: np.ndarray, truth: np.ndarray, label: int) -> float:
    found, expected = prediction == label, truth == label
    return 2 * (found & expected).sum() / (found.sum() + expected.sum())


def test_find_best_configuration_ranks_by_label_maps_and_keeps_soft_maps(
    trained: tuple[dict[str, Member], Path],
) -> None:
    made, truths = trained
    models = [
        {"plans": "nnUNetPlans", "configuration": "3d_fullres", "trainer": name} for name in (VANILLA, SOFT)
    ]
    found = find_best_configuration.find_best_configuration(901, models, True, 1, True, (0, 1))
    results = found["all_results"]
    means = {name: [] for name in (VANILLA, SOFT, "ensemble")}
    probabilities = {}
    for fold, case in enumerate(CASES):
        truth = read(truths, f"{case}.nii.gz")
        for name in (VANILLA, SOFT):
            folder = made[name].folder / f"fold_{fold}" / "validation"
            means[name].append([dice(read(folder, f"{case}.nii.gz"), truth, label) for label in (1, 2)])
            probabilities[name] = np.load(folder / f"{case}.npz")["probabilities"]
        mean = (probabilities[VANILLA] + probabilities[SOFT]) / 2
        means["ensemble"].append([dice(painted(mean), truth, label) for label in (1, 2)])
    for name, values in means.items():
        key = next(key for key in results if key.startswith(f"{name}__"))
        assert results[key] == pytest.approx(np.mean(values), abs=1e-9)
    best = max(results, key=results.__getitem__)
    assert best.startswith(SOFT)
    merged = made[SOFT].folder / "crossval_results_folds_0_1"
    assert len(list((merged / "soft").glob("*.nii.gz"))) == 4
    report = json.loads((merged / "softseg.json").read_text())
    assert set(report["cases"]) == set(CASES)
    assert report["training_cases"] == {}
    ensembles = next((made[SOFT].folder.parent / "ensembles").iterdir())
    np.testing.assert_allclose(soft_maps(ensembles, CASES[1]), mean[1:], atol=1e-6)
    # The best one is post-processed; what its label map lost, its soft map lost, too.
    for case in CASES:
        label_map, soft = (
            read(merged / "postprocessed", f"{case}.nii.gz"),
            soft_maps(merged / "postprocessed", case),
        )
        np.testing.assert_array_equal(label_map == 2, (soft[1] > 0.5) & (label_map > 0))


def test_a_piece_that_is_removed_is_gone_from_the_soft_map_with_its_fringe(
    tmp_path: Path, images: list[Path]
) -> None:
    member = Member(tmp_path / "in", soft=True, labels={"background": 0, "cord": 1})
    member.predict(images[0])
    soft = np.zeros(SHAPE, np.float32)
    soft[2:5, 2:6, 2:9] = 0.9
    soft[5, 2:6, 2:9] = 0.3  # fringe of the large piece
    soft[8, 9, 11] = 0.8
    soft[8, 9, 12] = 0.2  # fringe of the small one
    soft[9, 0, 0] = 0.4  # by itself: no piece of the label map
    for name, values in (("soft/sub-01_T2w_0001", soft), ("sub-01_T2w", (soft > 0.5).astype(np.uint8))):
        file = member.folder / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(values, nib.load(file).affine, nib.load(file).header), file)
    report = json.loads((member.folder / "softseg.json").read_text())
    pieces = "{} is in 2 separate pieces (in training at most 1)"
    kept = {"flags": ["spacing"], "warnings": ["voxels of 9 mm"]}
    flagged = {"flags": ["spacing", "several pieces"], "warnings": [*kept["warnings"], pieces.format("cord")]}
    report["cases"]["sub-01_T2w"] |= flagged
    (member.folder / "softseg.json").write_text(json.dumps(report))
    functions = [remove_connected_components.remove_all_but_largest_component_from_segmentation]
    out = tmp_path / "out"
    remove_connected_components.apply_postprocessing_to_folder(
        str(member.folder), str(out), functions, [{"labels_or_regions": [1]}], num_processes=1
    )
    expected = soft.copy()
    expected[8, 9, 11:13] = 0
    written = np.asarray(nib.load(out / "soft" / "sub-01_T2w_0001.nii.gz").dataobj)
    np.testing.assert_allclose(written, expected, atol=1e-7)
    np.testing.assert_array_equal(np.asarray(nib.load(out / "sub-01_T2w.nii.gz").dataobj), expected > 0.5)
    case = json.loads((out / "softseg.json").read_text())["cases"]["sub-01_T2w"]
    voxel = abs(np.linalg.det(nib.load(images[0]).affine[:3, :3]))
    assert case["labels"]["cord"]["soft_volume_mm3"] == pytest.approx(expected.sum() * voxel, rel=1e-3)
    assert {told: case[told] for told in kept} == kept

    # Where nothing is removed, where it is still in pieces, or another label is, too, the flag stays.
    def all_but_a_voxel(label_map: np.ndarray, labels: Any) -> np.ndarray:
        of_all = np.flatnonzero(label_map == labels[0])
        return np.where(np.arange(label_map.size).reshape(label_map.shape) == of_all[20], 0, label_map)

    remove_connected_components.apply_postprocessing_to_folder(
        str(member.folder), str(tmp_path / "two"), [all_but_a_voxel], [{"labels": [1]}], num_processes=1
    )
    two = json.loads((tmp_path / "two" / "softseg.json").read_text())["cases"]["sub-01_T2w"]
    assert read(tmp_path / "two", "sub-01_T2w.nii.gz").sum() == (soft > 0.5).sum() - 1
    assert {told: two[told] for told in flagged} == flagged
    of_another = pieces.format("lesion")
    both = {**flagged, "warnings": [*flagged["warnings"], of_another]}
    assert in_one_piece(both, ["cord"]) == {**flagged, "warnings": [*kept["warnings"], of_another]}
    remove_connected_components.apply_postprocessing_to_folder(
        str(member.folder), str(tmp_path / "same"), [], [], num_processes=1
    )
    same = json.loads((tmp_path / "same" / "softseg.json").read_text())["cases"]["sub-01_T2w"]
    assert {told: same[told] for told in flagged} == flagged


def test_postprocessing_in_place_is_refused(tmp_path: Path, images: list[Path]) -> None:
    """The label maps of before are gone then, and with them what was removed."""
    member = Member(tmp_path / "in", soft=True)
    member.predict(images[0])
    before = {file: file.read_bytes() for file in member.folder.rglob("*") if file.is_file()}
    (tmp_path / "link").symlink_to(member.folder)
    functions = [remove_connected_components.remove_all_but_largest_component_from_segmentation]
    for output in (member.folder, tmp_path / "link"):
        with pytest.raises(UserError, match=r"-o .*: expected another folder than -i, .* found the same"):
            remove_connected_components.apply_postprocessing_to_folder(
                str(member.folder), str(output), functions, [{"labels_or_regions": [1]}], num_processes=1
            )
    assert {file: file.read_bytes() for file in member.folder.rglob("*") if file.is_file()} == before


def of_other_format(ending: str) -> tuple[Any, dict[str, Any], tuple[int, ...]]:
    """nnU-Net's reader, what it tells of a case's geometry, and a shape (z, y, x)."""
    if ending == ".png":
        return NaturalImage2DIO(), {"spacing": (999, 1, 1)}, (1, 12, 14)
    if ending == ".tif":
        return Tiff3DIO(), {"spacing": [2.0, 0.5, 0.5]}, (4, 12, 14)
    geometry = {
        "spacing": (0.5, 0.5, 2.0),
        "origin": (5.0, 0.0, 0.0),
        "direction": np.eye(3).ravel().tolist(),
    }
    return SimpleITKIO(), {"sitk_stuff": geometry, "spacing": [2.0, 0.5, 0.5]}, (4, 12, 14)


@pytest.mark.parametrize(
    ("ending", "soft_ending", "voxel_mm3"),
    [(".png", ".tif", 1), (".tif", ".tif", 0.5), (".mha", ".mha", 0.5)],
)
def test_other_formats_keep_their_endings_and_spacing(
    tmp_path: Path, ending: str, soft_ending: str, voxel_mm3: float
) -> None:
    reader, properties, shape = of_other_format(ending)
    described = {**dataset_json(LABELS), "file_ending": ending}
    manager = Member(tmp_path / "m", soft=True).plans.get_label_manager(described)
    large, small = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    large[0, 2:6, 2:6], small[0, 10, 10:12], small[0, 10, 12] = 0.8, 0.8, 0.25
    lesion = np.zeros(shape, np.float32)
    lesion[0, 8, 1] = 1
    for name, cord in (("first", large + small), ("second", large)):
        folder = tmp_path / name
        folder.mkdir()
        probabilities = np.stack([1 - np.maximum(cord, lesion), cord, lesion])
        np.savez_compressed(folder / "a.npz", probabilities=probabilities)
        (folder / "a.pkl").write_bytes(pickle.dumps(properties))
        (folder / "softseg.json").write_text("{}")
    files = [tmp_path / name / "a.npz" for name in ("first", "second")]
    merged, done = tmp_path / "merged", tmp_path / "done"
    for folder in (merged, done):
        folder.mkdir()
    after_prediction.merge(
        files, merged / "a", ending=ending, writer=reader, label_manager=manager, save_probabilities=False
    )
    stored = {label: stored_soft_label(merged / "soft" / f"a_000{label}{soft_ending}").T for label in (1, 2)}
    np.testing.assert_allclose(stored[1], large + small / 2, atol=1e-6)
    np.testing.assert_array_equal(stored[2], lesion)
    label_map = reader.read_seg(str(merged / f"a{ending}"))[0][0]
    np.testing.assert_array_equal(label_map, np.where(lesion > 0, 2, large > 0.5))

    reader.write_seg(np.where(label_map == 1, 0, label_map), str(done / f"a{ending}"), properties)
    after_prediction.follow_postprocessing(merged, done, described, reader)
    left = {label: load_nifti(done / "soft" / f"a_000{label}{soft_ending}") for label in (1, 2)}
    np.testing.assert_allclose(left[1].get_fdata().T, small / 2, atol=1e-6)  # a piece of its own
    np.testing.assert_array_equal(left[2].get_fdata().T, lesion)
    before = load_nifti(merged / "soft" / f"a_0001{soft_ending}")
    for image in left.values():
        np.testing.assert_allclose(image.affine, before.affine, atol=1e-6)
        assert np.prod(image.header.get_zooms()) == pytest.approx(voxel_mm3)
    told = json.loads((done / "softseg.json").read_text())["cases"]["a"]["labels"]["cord"]["soft_volume_mm3"]
    assert told == pytest.approx(small.sum() / 2 * voxel_mm3, abs=1e-3)


def test_between_two_pieces_the_nearer_one_decides() -> None:
    soft = np.full((1, 1, 9), 0.2, np.float32)
    soft[0, 0, [0, 1, 2, 8]] = 0.9
    removed = np.zeros(soft.shape, bool)
    removed[0, 0, 8] = True
    left = after_prediction.without_pieces(soft, removed, (1.0, 1.0, 1.0))
    np.testing.assert_allclose(left[0, 0], [0.9, 0.9, 0.9, 0.2, 0.2, 0.2, 0, 0, 0])


def stock(command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    program = str(Path(sys.executable).parent / command)
    environment = clean_environment()
    return subprocess.run([program, *arguments], env=environment, check=False, capture_output=True, text=True)


@pytest.mark.soak
def test_the_stock_commands_do_the_same_in_their_worker_processes(tmp_path: Path, images: list[Path]) -> None:
    made = members(tmp_path, images, vanilla=False, soft=True)
    folders = [str(one.folder) for one in made.values()]
    ensemble.ensemble_folders(folders, str(tmp_path / "here"), num_processes=1)
    functions = [remove_connected_components.remove_all_but_largest_component_from_segmentation]
    pickled = tmp_path / "postprocessing.pkl"
    arguments = [{"labels_or_regions": [1]}, {"labels_or_regions": [2]}]
    pickled.write_bytes(pickle.dumps((functions * 2, arguments)))
    for command in (
        ("nnUNetv2_ensemble", "-i", *folders, "-o", str(tmp_path / "out"), "-np", "2"),
        (
            "nnUNetv2_apply_postprocessing", "-i", str(tmp_path / "out"), "-o", str(tmp_path / "pp"),
            "-pp_pkl_file", str(pickled), "-np", "2", "-plans_json", str(made["soft"].folder / "plans.json"),
        ),
    ):  # fmt: skip
        run = stock(*command)
        assert run.returncode == 0, run.stderr[-2000:]
    removed = 0
    for case in CASES:
        np.testing.assert_array_equal(soft_maps(tmp_path / "out", case), soft_maps(tmp_path / "here", case))
        label_map, soft = read(tmp_path / "pp", f"{case}.nii.gz"), soft_maps(tmp_path / "pp", case)
        before = read(tmp_path / "out", f"{case}.nii.gz")
        for label in (1, 2):
            gone = (before == label) & (label_map == 0)
            removed += int(gone.sum())
            assert not soft[label - 1][gone].any()
    assert removed
    # A member of other labels is one line of the stock command.
    described = json.loads((made["vanilla"].folder / "dataset.json").read_text())
    described["labels"] = {"background": 0, "nerve": 1}
    (made["vanilla"].folder / "dataset.json").write_text(json.dumps(described))
    run = stock("nnUNetv2_ensemble", "-i", *folders, "-o", str(tmp_path / "other"))
    assert run.returncode == 1
    assert run.stderr.strip().startswith("nnunet-softseg: error: an ensemble of ")
    assert len(run.stderr.strip().splitlines()) == 1


# Contracts


def test_nnunets_functions_have_the_arguments_that_are_read() -> None:
    read_of = {
        ensemble.merge_files: {
            "list_of_files", "output_filename_truncated", "output_file_ending", "image_reader_writer",
            "label_manager", "save_probabilities",
        },
        ensemble.ensemble_folders: {"list_of_input_folders"},
        ensemble.ensemble_crossvalidations: {"list_of_trained_model_folders"},
        accumulate_cv_results.accumulate_cv_results: {
            "trained_model_folder", "merged_output_folder", "folds"
        },
        remove_connected_components.determine_postprocessing: {
            "folder_predictions", "plans_file_or_dict", "dataset_json_file_or_dict",
        },
        remove_connected_components.apply_postprocessing_to_folder: {
            "input_folder", "output_folder", "plans_file_or_dict", "dataset_json_file_or_dict",
        },
    }  # fmt: skip
    for function, names in read_of.items():
        assert names <= set(inspect.signature(function).parameters)
        assert callable(getattr(nnunet_patches, function.__name__))
        assert hasattr(function, "nnunet_softseg_original")
        assert pickle.loads(pickle.dumps(function)) is function  # workers find the same by its name
    for function in (ensemble.ensemble_folders, ensemble.ensemble_crossvalidations):
        assert "merge_files," in inspect.getsource(function.nnunet_softseg_original)
    assert find_best_configuration.ensemble_crossvalidations is ensemble.ensemble_crossvalidations
    assert (
        find_best_configuration.determine_postprocessing
        is remove_connected_components.determine_postprocessing
    )
