"""`check --simulate`: the maps of a perfect network, written as predictions are."""

import json
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny_dataset import (
    TinyDataset,
    make_ready_to_train,
    make_tiny_dataset,
    plan_and_preprocess,
    save_nifti,
)

from nnunet_softseg.cli import main
from nnunet_softseg.errors import UserError
from nnunet_softseg.inference.simulation import SimulationReport, simulate
from nnunet_softseg.settings import SoftSegSettings

WINDOW = SoftSegSettings(center_crop=False)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyDataset]:
    """On the grid of the network; of label 2 the raters agree in one case only."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("simulation")
    tiny = make_tiny_dataset(folder, labels=(1, 2), affines=[np.diag([1.0, 1, 1, 1])] * 3)
    for case, height in zip(tiny.cases, (0.3, 0.7, 1), strict=True):
        file = nib.load(tiny.soft_label(case, 2))
        soft = np.float32(height) * np.asarray(file.dataobj)
        save_nifti(tiny.soft_label(case, 2), soft, file.affine)
        labels = np.asarray(nib.load(tiny.label_map(case)).dataobj)
        labels[(labels == 2) & (soft <= 0.5)] = 0
        save_nifti(tiny.label_map(case), labels, file.affine)
    make_ready_to_train(tiny, patch)
    yield tiny
    patch.undo()


def simulated(
    dataset: TinyDataset,
    output: Path,
    settings: SoftSegSettings = WINDOW,
    configuration: str = "3d_fullres",
    plans_identifier: str = "nnUNetPlans",
) -> SimulationReport:
    options = {"trainer": "T", "plans_identifier": plans_identifier, "num_processes": 1, "progress": False}
    return simulate(dataset.name, configuration, output, settings=settings, **options)


def test_a_perfect_network_loses_nothing(dataset: TinyDataset, tmp_path: Path) -> None:
    report = simulated(dataset, tmp_path / "out")
    described = json.loads((tmp_path / "out" / "softseg.json").read_text())
    assert described["labels"]["label2"]["output_scale"] == "fixed"
    assert "reaches 0.30 in sub-01_T1w" in described["labels"]["label2"]["why"]
    for case in dataset.cases:
        assert described["cases"][case]["labels"]["label2"]["output_scale"] == "fixed"
        for label in dataset.labels:
            before, after = (
                np.asarray(nib.load(folder / f"{case}_{label:04d}.nii.gz").dataobj)
                for folder in (dataset.raw / "softLabelsTr", tmp_path / "out" / "soft")
            )
            assert after.sum() == pytest.approx(before.sum(), rel=0.01)
            assert after.max() == pytest.approx(before.max(), abs=0.02)
        np.testing.assert_array_equal(
            np.asarray(nib.load(tmp_path / "out" / f"{case}.nii.gz").dataobj) == 2,
            np.asarray(nib.load(dataset.label_map(case)).dataobj) == 2,
        )
    assert all(loss.components_lost == 0 for losses in report.losses.values() for loss in losses)
    assert "label2: volume" in report.as_text()


def test_of_an_earlier_simulation_nothing_stays(dataset: TinyDataset, tmp_path: Path) -> None:
    """Of a dataset with another case, another label and another format."""
    out = tmp_path / "out"
    simulated(dataset, out)
    files = sorted(file.relative_to(out) for file in out.rglob("*"))
    report = json.loads((out / "softseg.json").read_text())
    report["cases"]["sub-07"] = report["cases"][dataset.cases[0]]
    (out / "softseg.json").write_text(json.dumps(report))
    (out / "simulation.json").write_text(json.dumps({"file_ending": ".mha"}))
    for name in ("sub-07.mha", "soft/sub-07_0001.mha", f"soft/{dataset.cases[0]}_0003.mha"):
        (out / name).write_bytes(b"of before")
    simulated(dataset, out)
    assert sorted(file.relative_to(out) for file in out.rglob("*")) == files
    assert list(json.loads((out / "softseg.json").read_text())["cases"]) == list(dataset.cases)
    assert json.loads((out / "simulation.json").read_text())["dataset"] == dataset.name


def test_in_two_dimensions_slices_lose_nothing_either(
    dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    plan_and_preprocess(dataset, "2d", spacing_mm=(1.0, 1.0, 1.0))
    losses = simulated(dataset, tmp_path, configuration="2d").losses
    assert {len(of_label) for of_label in losses.values()} == {3}
    for loss in (*losses["label1"], *losses["label2"]):
        assert abs(loss.volume_error) <= 0.01
        assert loss.components_lost == 0


def test_what_the_settings_lose_is_told(dataset: TinyDataset, tmp_path: Path) -> None:
    """Per case, the label of 0.3 is stretched; with a core of 0.5, by hand on a fixed scale, it is lost."""
    case = simulated(dataset, tmp_path / "case", SoftSegSettings(center_crop=False, output_scale="case"))
    assert case.losses["label2"][0].volume_error > 0.5
    fixed = SoftSegSettings(center_crop=False, output_scale="fixed", core_threshold=0.5)
    lost = simulated(dataset, tmp_path / "fixed", fixed)
    assert [loss.components_lost for loss in lost.losses["label2"]] == [1, 0, 0]
    assert lost.losses["label2"][0].volume_error == -1
    assert "1 of 3 components lost" in lost.as_text()


def test_absent_labels_and_unknown_voxels_are_no_loss(
    dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Label 2 is nowhere in one case, label 1 cut by slices where labelsTr has the label to ignore."""
    copy = dataset.copied(tmp_path / "nnunet", monkeypatch)
    labels = {**copy.dataset_json["labels"], "ignore": 3}
    for folder in (copy.raw, copy.preprocessed):
        (folder / "dataset.json").write_text(json.dumps({**copy.dataset_json, "labels": labels}))
    first = copy.cases[0]
    for case in copy.cases:
        label_map = nib.load(copy.label_map(case))
        slices = np.arange(label_map.shape[2]) < 12
        ignored = np.where(slices, 3, np.asarray(label_map.dataobj)).astype(np.uint8)
        save_nifti(copy.label_map(case), ignored, label_map.affine)
    save_nifti(copy.soft_label(first, 2), np.zeros(label_map.shape, np.float32), label_map.affine)
    losses = simulated(copy, tmp_path / "out").losses
    (absent,) = (loss for loss in losses["label2"] if loss.case_id == first)
    assert (absent.volume, absent.volume_error, absent.peak_error, absent.components) == (0, 0, 0, 0)
    for case, loss in zip(copy.cases, losses["label1"], strict=True):
        soft = np.asarray(nib.load(copy.soft_label(case, 1)).dataobj)
        assert loss.volume == pytest.approx(soft[..., 12:].sum(), rel=1e-6)
        assert soft[..., :12].sum() > 0.5 * loss.volume
        assert abs(loss.volume_error) <= 0.02  # whole, it would be over 0.3


def test_a_grid_too_coarse_for_a_label_is_advised_against_and_the_advice_mends_it(
    dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels of about 10 and 4 voxels across, in images of 1 mm, learned at 2.5 mm, by raters' plateaus."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    copy = dataset.copied(tmp_path / "nnunet", monkeypatch)
    plan_and_preprocess(copy, spacing_mm=(2.5, 2.5, 2.5))
    linear = SoftSegSettings(center_crop=False, to_image_grid="linear")
    coarse = simulated(copy, tmp_path / "coarse", linear)
    assert all(loss.misplaced > 0.1 for loss in coarse.losses["label2"])
    assert any("-overwrite_target_spacing 1 1 1 " in line for line in coarse.advice)
    assert coarse.advice[-1] in coarse.as_text()
    plan_and_preprocess(copy, spacing_mm=(1.0, 1.0, 1.0))
    mended = simulated(copy, tmp_path / "mended", linear)
    assert mended.advice == []
    assert all(loss.misplaced < 0.01 for loss in mended.losses["label2"])


def test_the_command(dataset: TinyDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", "-d", "101", "-np", "1", "--simulate", str(tmp_path / "out")]
    assert main([*words, "-tr", "nnUNetTrainerSoftSegSlidingWindow"]) == 0
    printed = capsys.readouterr().out
    assert "0 of 3 components lost" in printed
    assert main([*words, "-tr", "nnUNetTrainerDemo"]) == 2
    with pytest.raises(UserError, match="nnUNetv2_plan_and_preprocess -d 101"):
        simulated(dataset, tmp_path / "unplanned", plans_identifier="others")


def test_what_was_lost_before_the_network_is_told_each_time(
    dataset: TinyDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A block of label 1 where the image is zero, and one elsewhere."""
    copy = dataset.copied(tmp_path / "nnunet", monkeypatch)
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    case = copy.cases[0]
    image, soft = (nib.load(file) for file in (copy.image(case), copy.soft_label(case, 1)))
    values, label = (np.asarray(file.dataobj).copy() for file in (image, soft))
    values[:6], label[:] = 0, 0
    label[2:4, 8:12, 8:12] = 0.4  # 32 voxels cropped away
    label[10:16, 8:12, 8:12] = 0.4  # 96 that are left
    save_nifti(copy.image(case), values, image.affine)
    save_nifti(copy.soft_label(case, 1), label, soft.affine)
    label_map = np.asarray(nib.load(copy.label_map(case)).dataobj)
    save_nifti(copy.label_map(case), np.where(label_map == 1, 0, label_map).astype(np.uint8), image.affine)
    plan_and_preprocess(copy, spacing_mm=(1.0, 1.0, 1.0))
    out = tmp_path / "out"
    words = ["check", "-d", "101", "-np", "1", "--simulate", str(out)]
    for _ in ("made", "kept"):
        assert main([*words, "-tr", "nnUNetTrainerSoftSegSlidingWindow"]) == 0
        line = f"case {case}: 25.0% of label 1 lies beyond the part of the image that is not zero"
        assert f"warning: {line}" in capsys.readouterr().err
        (stored,) = json.loads((out / "simulation.json").read_text())["warnings"]
        assert stored.startswith(line)


def test_a_folder_with_other_files_is_left_alone(dataset: TinyDataset, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="empty folder"):
        simulated(dataset, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
