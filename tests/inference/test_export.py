"""A soft map comes back on its image's own grid, with values and header, through every NIfTI reader."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from affines import oblique
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient

from nnunet_softseg.inference import export, nnunet_patches
from nnunet_softseg.inference.case_record import KEY, CaseRecord, PredictionOptions
from nnunet_softseg.inference.recentring import Placement
from nnunet_softseg.network.of_plans import SoftLabelManager
from nnunet_softseg.preprocessing.model_plans import soft_plans
from nnunet_softseg.preprocessing.output_scale import label_shape
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings

READERS = [NibabelIO, NibabelIOWithReorient, SimpleITKIO, SimpleITKIOWithReorient]
LABELS = {"background": 0, "cord": 1, "lesion": 2}


def source_image(path: Path, codes: str, shape: tuple[int, int, int] = (4, 5, 6)) -> nib.Nifti1Image:
    values = np.random.default_rng(3).uniform(0, 1, shape).astype(np.float32)
    image = nib.Nifti1Image(values, oblique(codes))
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    nib.save(image, path)
    return nib.load(path)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PSR", "AIL"])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("with_source", [True, False])
def test_what_the_reader_gave_goes_back_to_the_same_voxels(
    tmp_path: Path, codes: str, reader: type, with_source: bool
) -> None:
    file = tmp_path / "image.nii.gz"
    source = source_image(file, codes)
    array, properties = reader().read_images([str(file)])
    soft = export.soft_nifti(array[0], properties, str(file) if with_source else None)
    np.testing.assert_array_equal(np.asarray(soft.dataobj), source.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(soft.affine, source.affine, atol=1e-5)
    assert soft.get_data_dtype() == np.float32
    assert "nnunet-softseg" in soft.header["descrip"].item().decode()
    if with_source:
        for field in ("pixdim", "qform_code", "sform_code", "xyzt_units", "srow_x", "quatern_b"):
            np.testing.assert_array_equal(soft.header[field], source.header[field])


def test_arrays_without_geometry_say_what_is_missing() -> None:
    with pytest.raises(ValueError, match="NibabelIOWithReorient"):
        export.soft_nifti(np.zeros((2, 3, 4), np.float32), {"spacing": [1, 1, 1]}, None)


class Plans:
    """The few things of nnU-Net's plans manager that the export asks for."""

    transpose_forward = transpose_backward = (0, 1, 2)

    def __init__(self, reader: type, name: str = "SoftLabelManager") -> None:
        plans = {"configurations": {"3d_fullres": {}}, "dataset_name": "Dataset900_Phantom"}
        self.plans = soft_plans(plans, "nnUNetTrainerSoftSeg", SoftSegSettings()) | {"label_manager": name}
        self.image_reader_writer_class = reader

    def get_label_manager(self, dataset_json: dict) -> SoftLabelManager:
        return SoftLabelManager(dataset_json["labels"], None)


def case(tmp_path: Path, reader: type) -> tuple[np.ndarray, dict]:
    """Two soft maps on the grid of an image that lost its outer voxels to nnU-Net's non-zero crop."""
    file = tmp_path / "sub-01_T2w_0000.nii.gz"
    source_image(file, "LPS", (10, 12, 14))
    array, properties = reader().read_images([str(file)])
    full = array.shape[1:]
    crop = [[1, full[0] - 1], [2, full[1]], [0, full[2] - 3]]
    soft = np.zeros((2, *[stop - start for start, stop in crop]), np.float32)
    soft[0, 3:8, 3:7, 3:6] = 0.37
    soft[0, 4:7, 4:6, 4:5] = 0.93
    soft[1, 4:6, 8:10, 6:7] = 0.61
    soft[1, 0, 0, 0] = 0.03  # residue
    properties |= {
        "shape_before_cropping": full,
        "bbox_used_for_cropping": crop,
        "shape_after_cropping_and_before_resampling": soft.shape[1:],
        KEY: CaseRecord(image_files=(str(file),), seconds={"forward": 1.25}, warnings=["look here"]),
    }
    return soft, properties


@pytest.mark.parametrize("reader", READERS)
def test_export_writes_soft_maps_label_map_and_report(tmp_path: Path, reader: type) -> None:
    soft, properties = case(tmp_path, reader)
    target = tmp_path / "out" / "sub-01_T2w"
    target.parent.mkdir()
    export.export_prediction(
        soft,
        properties,
        Plans(reader),
        {"labels": LABELS, "file_ending": ".nii.gz"},
        str(target),
        save_probabilities=True,
    )
    source = nib.load(tmp_path / "sub-01_T2w_0000.nii.gz")
    cord = nib.load(tmp_path / "out" / "soft" / "sub-01_T2w_0001.nii.gz")
    lesion = nib.load(tmp_path / "out" / "soft" / "sub-01_T2w_0002.nii.gz")
    label_map = nib.load(tmp_path / "out" / "sub-01_T2w.nii.gz")
    for image in (cord, lesion, label_map):
        assert image.shape == source.shape
        np.testing.assert_allclose(image.affine, source.affine, atol=1e-5)
    values = cord.get_fdata(dtype=np.float32)
    assert sorted(set(np.unique(values).round(6))) == [0.0, 0.37, 0.93]
    assert values.sum() == pytest.approx(54 * 0.37 + 6 * 0.93, rel=1e-6)
    assert lesion.get_fdata(dtype=np.float32).sum() == pytest.approx(4 * 0.61, rel=1e-6)  # residue gone
    expected = np.where(lesion.get_fdata() > 0.5, 2, np.where(values > 0.5, 1, 0))
    np.testing.assert_array_equal(np.asarray(label_map.dataobj), expected)
    # the same voxels as nnU-Net's own reader sees them
    back, _ = reader().read_images([str(tmp_path / "out" / "soft" / "sub-01_T2w_0001.nii.gz")])
    np.testing.assert_allclose(back[0, 1:-1, 2:, :-3], soft[0], atol=1e-6)
    probabilities = np.load(tmp_path / "out" / "sub-01_T2w.npz")["probabilities"]
    np.testing.assert_array_equal(probabilities[1], back[0])  # behind the background
    report = json.loads((tmp_path / "out" / "softseg.json").read_text())
    entry = report["cases"]["sub-01_T2w"]
    assert report["threshold"] == 0.5
    assert report["trainer"] == "nnUNetTrainerSoftSeg"
    assert entry["warnings"] == ["look here", "lesion is found in 2 slices only, of 14"]
    assert entry["seconds"]["forward"] == 1.25
    assert entry["labels"]["lesion"]["removed_percent"] == pytest.approx(
        100 * 0.03 / (0.03 + 4 * 0.61), abs=2e-3
    )
    assert entry["labels"]["cord"]["removed_percent"] == 0
    voxel = float(np.prod(source.header.get_zooms()))
    assert entry["labels"]["cord"]["soft_volume_mm3"] == pytest.approx(values.sum() * voxel, rel=1e-4)
    left = {file.name for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert left == {
        "sub-01_T2w.nii.gz", "sub-01_T2w.npz", "sub-01_T2w.pkl", "softseg.json", ".softseg.json.lock",
        "sub-01_T2w_0001.nii.gz", "sub-01_T2w_0002.nii.gz",
    }  # fmt: skip


def test_the_volume_is_that_of_the_affine(tmp_path: Path) -> None:
    """Sheared axes are longer than their voxels are thick, and pixdim may say anything."""
    soft, properties = case(tmp_path, NibabelIO)
    file = tmp_path / "sub-01_T2w_0000.nii.gz"
    image = nib.load(file)
    sheared = image.affine.copy()
    sheared[:3, 1] += 0.4 * sheared[:3, 0] * np.linalg.norm(sheared[:3, 1]) / np.linalg.norm(sheared[:3, 0])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), sheared), file)
    properties["spacing"] = [9.0, 9.0, 9.0]
    target = tmp_path / "out" / "sub-01_T2w"
    target.parent.mkdir()
    dataset_json = {"labels": LABELS, "file_ending": ".nii.gz"}
    export.export_prediction(soft, properties, Plans(NibabelIO), dataset_json, str(target))
    entry = json.loads((tmp_path / "out" / "softseg.json").read_text())["cases"]["sub-01_T2w"]
    voxel_mm3 = float(np.prod(image.header.get_zooms()))  # before it was sheared
    cord = nib.load(tmp_path / "out" / "soft" / "sub-01_T2w_0001.nii.gz")
    np.testing.assert_allclose(cord.affine, sheared, atol=1e-6)
    assert entry["labels"]["cord"]["soft_volume_mm3"] == pytest.approx(
        (54 * 0.37 + 6 * 0.93) * voxel_mm3, rel=1e-4
    )


NETWORK_SHAPE, BOX = (25, 40, 30), ((0, 25), (9, 33), (-2, 14))


def cord_in_a_box(tmp_path: Path, transpose: tuple[int, ...]) -> tuple[np.ndarray, dict]:
    """A tilted cord in a box that sticks out of the case on one side, and the properties of its image."""
    file = tmp_path / "sub-01_T2w_0000.nii.gz"
    # array axes (z, y, x) = (20, 50, 37); with the transpose (50, 20, 37), and so on
    source_image(file, "LPS", (37, 50, 20))
    _, properties = NibabelIOWithReorient().read_images([str(file)])
    shape = [(20, 50, 37)[axis] for axis in transpose]
    crop = [[0, shape[0]], [2, shape[1] - 1], [0, shape[2] - 3]]
    z, y, x = np.mgrid[tuple(slice(start, stop) for start, stop in BOX)]
    distance = np.hypot(y - 20 - 0.1 * z, x - 6 - 0.05 * z)
    soft = np.clip((4.2 - distance) / 1.5 + 0.5, 0, 1)[None].astype(np.float32)
    soft[..., :2] = 0  # outside of the case
    properties |= {
        "shape_before_cropping": tuple(shape),
        "bbox_used_for_cropping": crop,
        "shape_after_cropping_and_before_resampling": tuple(stop - start for start, stop in crop),
        KEY: CaseRecord(image_files=(str(file),), network_shape=NETWORK_SHAPE, box=BOX),
    }
    return soft, properties


def whole_case(soft: np.ndarray) -> np.ndarray:
    whole = np.zeros((1, *NETWORK_SHAPE), np.float32)
    whole[:, :, 9:33, :14] = soft[..., 2:]
    return whole


def written(
    soft: np.ndarray, properties: dict, plans: "Plans", folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir()
    json_ = {"labels": {"background": 0, "cord": 1}, "file_ending": ".nii.gz"}
    export.export_prediction(soft, properties, plans, json_, str(folder / "sub-01_T2w"))
    files = folder / "soft" / "sub-01_T2w_0001.nii.gz", folder / "sub-01_T2w.nii.gz"
    soft_map, label_map = (nib.load(file) for file in files)
    np.testing.assert_array_equal(soft_map.affine, nib.load(properties[KEY].image_files[0]).affine)
    return np.asarray(soft_map.dataobj), np.asarray(label_map.dataobj)


@pytest.mark.parametrize("way", ["linear", "fractions"])
@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_the_map_of_a_box_is_put_where_that_of_the_whole_case_would_be(
    tmp_path: Path, transpose: tuple[int, ...], way: str
) -> None:
    soft, properties = cord_in_a_box(tmp_path, transpose)
    plans = Plans(NibabelIOWithReorient)
    plans.plans[PLANS_KEY]["to_image_grid"] = {"cord": way}
    plans.transpose_forward, plans.transpose_backward = transpose, tuple(np.argsort(transpose))
    boxed = written(soft, properties, plans, tmp_path / "box")
    properties[KEY] = CaseRecord(image_files=properties[KEY].image_files)
    whole = written(whole_case(soft), properties, plans, tmp_path / "whole")
    np.testing.assert_allclose(boxed[0], whole[0], atol=1e-6)
    np.testing.assert_array_equal(boxed[1], whole[1])
    # The field of view is the same on both grids; so is the share of it that is cord.
    after = np.prod(properties["shape_after_cropping_and_before_resampling"])
    expected = soft.sum(dtype=np.float64) / np.prod(NETWORK_SHAPE) * after
    assert boxed[0].sum(dtype=np.float64) == pytest.approx(expected, rel=0.01)
    assert boxed[1].sum() == (boxed[0] > 0.5).sum() > 100
    assert json.loads((tmp_path / "box" / "softseg.json").read_text())["to_image_grid"] == {"cord": way}


def test_fractions_are_sharper_than_linear_interpolation(tmp_path: Path) -> None:
    soft, properties = cord_in_a_box(tmp_path, (1, 0, 2))
    plans, partial = Plans(NibabelIOWithReorient), {}
    plans.transpose_forward, plans.transpose_backward = (1, 0, 2), (1, 0, 2)
    for way in ("linear", "fractions"):
        plans.plans[PLANS_KEY]["to_image_grid"] = {"cord": way}
        soft_map, _ = written(soft, properties, plans, tmp_path / way)
        partial[way] = int(((soft_map > 0) & (soft_map < 1)).sum())
    assert partial["fractions"] < 0.8 * partial["linear"]


def test_a_case_of_a_subject_of_the_training_is_flagged(tmp_path: Path) -> None:
    soft, properties = case(tmp_path, NibabelIO)
    plans = Plans(NibabelIO)
    seen = {"0": ["sub-02_T2w"], "1": ["sub-01_T1w", "sub-02_T2w"]}
    plans.plans[PLANS_KEY]["training_cases"] = seen
    dataset_json = {"labels": LABELS, "file_ending": ".nii.gz"}
    export.export_prediction(soft, properties, plans, dataset_json, str(tmp_path / "sub-01_T2w"))
    report = json.loads((tmp_path / "softseg.json").read_text())
    assert report["training_cases"] == seen
    entry = report["cases"]["sub-01_T2w"]
    assert "seen in training" in entry["flags"]
    assert any("sub-01 is a subject of the training of fold 1:" in warning for warning in entry["warnings"])


def test_entries_of_other_cases_stay_as_they_are_and_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order of their names, whatever these and the entries hold; thousands of them are not parsed."""
    made_by = {"trainer": "é", "labels": {"cord": {"cases": {"one": 1}}}, "training_cases": {"0": ["a", "b"]}}
    entries: dict[str, dict[str, object]] = {}
    with monkeypatch.context() as patch:
        patch.setattr(json, "loads", lambda *_: pytest.fail("parsed"))
        for number, name in enumerate(["b", "a", "ä", 'c"d', "b"]):
            entries[name] = {"image": '\n    "x": {', "labels": {"cord": {"volume": number}}, "flags": []}
            export.report_case(tmp_path / name, made_by, entries[name])
    written = (tmp_path / "softseg.json").read_text()
    assert json.loads(written) == {**made_by, "cases": entries}
    assert written == json.dumps(json.loads(written), indent=2) + "\n"
    (tmp_path / "softseg.json").write_text(json.dumps({**made_by, "cases": entries}))  # in one line
    export.report_case(tmp_path / "e", made_by, entries["b"])
    assert json.loads((tmp_path / "softseg.json").read_text())["cases"] == {**entries, "e": entries["b"]}
    export.report_case(tmp_path / "f", {**made_by, "trainer": "another"}, entries["b"])
    assert list(json.loads((tmp_path / "softseg.json").read_text())["cases"]) == ["f"]


def test_axes_go_back_the_way_they_came() -> None:
    """A cyclic transposition, whose inverse is another one."""
    plans = Plans(NibabelIO)
    plans.transpose_forward, plans.transpose_backward = (1, 2, 0), (2, 0, 1)
    in_reader = np.zeros((1, 8, 9, 10), np.float32)
    in_reader[0, 2:4, 3:7, 4:9] = 0.8
    in_reader[0, 2, 3, 4] = 0.6
    network = in_reader.transpose(0, 2, 3, 1)
    properties = {
        "shape_before_cropping": network.shape[1:],
        "bbox_used_for_cropping": [[0, size] for size in network.shape[1:]],
        "shape_after_cropping_and_before_resampling": network.shape[1:],
    }
    manager = SoftLabelManager({"background": 0, "cord": 1}, None)
    label_map, soft_maps = export.convert_prediction(network, properties, plans, manager)
    np.testing.assert_array_equal(soft_maps, in_reader)
    np.testing.assert_array_equal(label_map, in_reader[0] > 0.5)


def test_a_map_that_is_not_of_the_box_is_refused(tmp_path: Path) -> None:
    soft, properties = cord_in_a_box(tmp_path, (0, 1, 2))
    with pytest.raises(ValueError, match=r"shape \(25, 40, 30\), but the box of the case has \(25, 24, 16\)"):
        written(whole_case(soft), properties, Plans(NibabelIOWithReorient), tmp_path / "out")


def test_without_files_nnunet_gets_the_same_maps(tmp_path: Path) -> None:
    soft, properties = cord_in_a_box(tmp_path, (0, 1, 2))
    soft[0, 3, 1, 5] = 0.04  # residue
    plans = Plans(NibabelIOWithReorient)
    manager = plans.get_label_manager({"labels": {"background": 0, "cord": 1}})
    label_map, soft_map = nnunet_patches.convert_prediction(soft, plans, None, manager, properties, True)
    only_label_map = nnunet_patches.convert_prediction(soft, plans, None, manager, properties)
    in_file, labels_in_file = written(soft, properties, plans, tmp_path / "out")
    np.testing.assert_array_equal(label_map, only_label_map)
    np.testing.assert_array_equal(export.soft_nifti(soft_map[0], properties, None).dataobj, in_file)
    assert label_map.sum() == labels_in_file.sum() == (in_file > 0.5).sum()


def cord_larger_than_trained(tmp_path: Path, times: float) -> tuple[np.ndarray, dict, "Plans"]:
    """That cord, its properties, and plans of a model whose largest slice was so many times smaller."""
    soft, properties = cord_in_a_box(tmp_path, (0, 1, 2))
    plans = Plans(NibabelIOWithReorient)
    shape = label_shape(soft[0], 0)
    assert shape is not None
    known = {**dataclasses.asdict(shape), "largest_area": shape.largest_area / times}
    plans.plans[PLANS_KEY] |= {"si_axis": 0, "training_shapes": {"cord": known}}
    return soft, properties, plans


@pytest.mark.parametrize("discard", [False, True])
def test_a_tilted_cord_is_judged_across(discard: bool, tmp_path: Path) -> None:
    """Its axial areas are 2.4 times the largest of the training: unlike it, unless tilted by 60 degrees."""
    soft, properties, plans = cord_larger_than_trained(tmp_path, 2.4)
    properties[KEY].given_options = PredictionOptions(discard_implausible=discard)
    upright, tilted = (
        Placement(np.zeros((25, 2)), np.tile(np.diag([longer, 1.0]), (25, 1, 1)), (24, 16), 0)
        for longer in (1.0, 2.0)
    )
    manager = plans.get_label_manager({"labels": {"background": 0, "cord": 1}})
    flagged = ["unlike training", *["discarded"] * discard]
    for name, placement, flags in (
        ("straight", None, flagged), ("upright", upright, flagged), ("tilted", tilted, []),
    ):  # fmt: skip
        properties[KEY].placement, properties[KEY].flags = placement, []
        in_file, _ = written(soft, properties, plans, tmp_path / name)
        label_map, _ = export.convert_prediction(soft, properties, plans, manager)
        assert in_file.any() == label_map.any() == (not (discard and flags))
        entry = json.loads((tmp_path / name / "softseg.json").read_text())["cases"]["sub-01_T2w"]
        assert entry["flags"] == flags


def test_a_map_in_pieces_at_the_border_and_unlike_the_training_is_kept_and_flagged(tmp_path: Path) -> None:
    """Slices half as large again as those of the training, and a spot aside."""
    soft, properties, plans = cord_larger_than_trained(tmp_path, 1.5)
    assert soft[0, 3, :3, 3:6].max() == 0
    soft[0, 3, 1, 4] = 0.9
    properties[KEY].given_options = PredictionOptions()
    properties[KEY].flags = ["touches the border"]
    in_file, labels_in_file = written(soft, properties, plans, tmp_path / "out")
    assert labels_in_file.sum() == (in_file > 0.5).sum() > 100
    entry = json.loads((tmp_path / "out" / "softseg.json").read_text())["cases"]["sub-01_T2w"]
    assert entry["flags"] == ["touches the border", "several pieces", "unlike training"]
    assert entry["labels"]["cord"]["removed_percent"] == 0


def test_a_vanilla_model_goes_to_nnunets_own_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "convert_predicted_logits_to_segmentation_with_correct_shape"
    monkeypatch.setattr(nnunet_patches.nnunet_export, name, lambda *args: args)
    vanilla = SimpleNamespace(plans={"label_manager": "LabelManager"})
    arguments = ("logits", vanilla, "configuration", "labels", {"a": 1}, True, 3)
    assert nnunet_patches.convert_prediction(*arguments) == arguments


def test_a_failed_export_leaves_no_label_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its presence would tell --continue_prediction that the case is done."""
    soft, properties = case(tmp_path, NibabelIO)
    target = tmp_path / "out" / "sub-01_T2w"
    target.parent.mkdir()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full_disk)
    with pytest.raises(ValueError, match="disk full"):
        export.export_prediction(
            soft,
            properties,
            Plans(NibabelIO),
            {"labels": LABELS, "file_ending": ".nii.gz"},
            str(target),
        )
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()]


def test_a_vanilla_model_goes_to_nnunets_own_export(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    name = "export_prediction_from_logits"
    monkeypatch.setattr(nnunet_patches.nnunet_export, name, lambda *args: calls.append(args))
    vanilla = SimpleNamespace(plans={"label_manager": "LabelManager"})
    nnunet_patches.export_prediction("logits", {"a": 1}, "configuration", vanilla, {}, "out/case", True, 5)
    assert calls == [("logits", {"a": 1}, "configuration", vanilla, {}, "out/case", True, 5)]
