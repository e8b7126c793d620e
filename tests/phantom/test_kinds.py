"""Phantoms of lesions, rootlets, a spine and discs: files, shares against closed forms, mistakes."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_softseg.cli import main
from nnunet_softseg.datasets.check import check
from nnunet_softseg.datasets.soft_label import stored_soft_label
from nnunet_softseg.metrics.morphometry import slice_morphometry
from nnunet_softseg.metrics.morphometry.lesions import measure_lesions
from nnunet_softseg.phantom.kinds import KINDS, draw
from nnunet_softseg.phantom.scene import Scene, ellipse_share

NUMBER = {kind: 301 + at for at, kind in enumerate(KINDS)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    raw = tmp_path_factory.mktemp("raw")
    found = {kind: raw / f"Dataset{NUMBER[kind]}_{kind.title()}" for kind in KINDS}
    for kind, folder in found.items():
        words = ["phantom", "--kind", kind, "-o", str(folder), "-n", "2", "--seed", "5", "-np", "1"]
        assert main(words) == 0
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_dataset_without_a_fault_and_the_files_are_those_of_python(
    kind: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders[kind]
    monkeypatch.setenv("nnUNet_raw", str(folder.parent))
    assert check(NUMBER[kind], num_processes=0, progress=False).errors == ()
    scene = draw(kind, 5, 2)
    ending = ".tif" if scene.affine is None else ".nii.gz"
    for label, share in enumerate(scene.shares.values(), 1):
        stored = stored_soft_label(folder / "softLabelsTr" / f"sub-02_{label:04d}{ending}")
        assert np.array_equal(np.squeeze(stored), share if scene.affine is not None else share.T)
        assert 0 <= share.min() < share.max() <= 1
    table = pd.read_csv(folder / "truth" / "truth.csv")
    assert sorted(table["case"].unique()) == ["sub-01", "sub-02"]
    explained = json.loads((folder / "truth" / "truth.json").read_text())["Columns"]
    assert [*explained] == [*table.columns]
    assert len(table[table["case"] == "sub-02"]) == len(scene.rows)
    assert not np.array_equal(draw(kind, 6, 2).image, scene.image)


def images_of(scene: Scene, *names: str) -> list[nib.Nifti1Image]:
    return [nib.Nifti1Image(scene.shares[name], scene.affine) for name in names]


@pytest.mark.parametrize("seed", [0, 1])
def test_bridges_and_volumes_of_lesions(seed: int) -> None:
    """As in test_bridges.py; here the truth is that of the table."""
    scene = draw("lesions", seed, 1)
    table = measure_lesions(*images_of(scene, "lesion", "cord")).table
    assert len(table) == len(scene.rows)
    for found, true in zip(table.to_dict("records"), scene.rows, strict=True):
        assert found["volume_mm3"] == pytest.approx(true["volume_mm3"], rel=0.03)
        for name in ("dorsal_bridge_mm", "ventral_bridge_mm"):
            assert found[name] == pytest.approx(true[name], abs=0.15)
        there = scene.maps["lesions"] == true["lesion"]
        assert scene.shares["lesion"][there].min() > 0.5


def test_areas_by_spinal_level() -> None:
    scene = draw("rootlets", 0, 1)
    rootlets = nib.Nifti1Image(scene.maps["rootlets"], scene.affine)
    table = slice_morphometry(*images_of(scene, "cord"), rootlets=rootlets)
    for row in scene.rows:
        slices = table[table["level"] == row["level"]]
        assert slices["z_mm"].min() - 0.4 == pytest.approx(row["bottom_mm"], abs=0.8)
        assert slices["z_mm"].max() + 0.4 == pytest.approx(row["top_mm"], abs=0.8)
        assert slices["area_mm2"].iloc[1:-1].mean() == pytest.approx(row["csa_mm2"], rel=0.005)


def test_volumes_and_centres_of_a_spine() -> None:
    scene = draw("spine", 3, 1)
    assert len(scene.shares) == len(scene.rows) == 14
    assert np.sum([*scene.shares.values()], axis=0).max() < 1 + 1e-5
    voxel_mm3 = abs(np.linalg.det(scene.affine[:3, :3]))
    for row in scene.rows:
        share = scene.shares[row["name"]].astype(np.float64)
        assert share.sum() * voxel_mm3 == pytest.approx(row["volume_mm3"], rel=1e-3)
        centre = [np.average(index, weights=share) for index in np.indices(share.shape)]
        found = scene.affine[:3, :3] @ centre + scene.affine[:3, 3]
        # A voxel that is filled in part counts at its centre: off by voxel^2 / (8 height) at most.
        assert found.tolist() == pytest.approx(
            [row[f"{to}_mm"] for to in ("right", "anterior", "superior")], abs=0.8**2 / (8 * 3.5)
        )
    heights = [row["superior_mm"] for row in scene.rows]
    assert heights == sorted(heights, reverse=True)


def test_g_ratios_of_discs_are_those_of_the_areas() -> None:
    """Below 0.001 from 3 pixels on, from exact shares; the picture has each fibre by its number."""
    scene = draw("discs", 0, 1)
    for row in scene.rows:
        own = scene.maps["fibres"] == row["fibre"]
        assert scene.shares["fibre"][own].min() > 0.5
        near = np.hypot(*(np.indices(own.shape) + 0.5 - np.array([row["row"], row["column"]])[:, None, None]))
        around = near < row["fibre_radius"] + 1.5
        areas = [scene.shares[name][around].sum(dtype=np.float64) for name in ("axon", "fibre")]
        if row["axon_radius"] >= 3:
            assert np.sqrt(areas[0] / areas[1]) == pytest.approx(row["g_ratio"], abs=0.001)


@settings(max_examples=40)
@given(st.floats(5, 9), st.floats(5, 9), st.floats(1, 4), st.floats(1, 4))
def test_the_share_of_an_ellipse_sums_to_its_area(
    row: float, column: float, first: float, second: float
) -> None:
    share = ellipse_share((14, 14), (row, column), (first, second))
    assert share.sum(dtype=np.float64) == pytest.approx(np.pi * first * second, rel=2e-3)
    turned = ellipse_share((14, 14), (column, row), (second, first)).T
    assert np.abs(share - turned).max() < 0.01


def test_the_folder_that_a_shell_stands_in_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["phantom", "--kind", "discs", "-o", ".", "-n", "1", "-np", "1"]) == 0
    made = ["dataset.json", "imagesTr", "labelsTr", "softLabelsTr", "truth"]
    assert sorted(path.name for path in tmp_path.iterdir()) == made


def test_mistakes_are_one_line_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for words, expected in (
        (["-o", str(tmp_path / "full")], "expected a new or empty folder, found something in it"),
        (["-o", str(tmp_path / "new"), "-n", "0"], "-n and -np from 1"),
        (
            ["-o", str(tmp_path / "new"), "-np", "0"],
            "-n and -np from 1, --seed from 0 on, got discs, 12, 0, 0",
        ),
        (
            ["-o", str(tmp_path / "new"), "--no-cord", "--fov-mm", "50", "50", "50"],
            "--fov-mm, --no-cord: expected options of --kind discs",
        ),
    ):
        assert main(["phantom", "--kind", "discs", *words]) == 2
        told = capsys.readouterr().err
        assert expected in told
        assert told.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
