"""Several labels in one table: columns by name, sums and differences."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from nnunet_softseg.cli import main
from nnunet_softseg.errors import UserError
from nnunet_softseg.metrics.morphometry import COLUMNS, csa
from nnunet_softseg.metrics.morphometry.named_labels import parse_labels

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def save(file: Path, values: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, AFFINE), file)
    return file


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """Two cases with a cord of 48.5 mm2 that leans by 1 mm in 2, and grey matter of 6 x factor mm2 inside.

    Slice 3 has no grey matter.
    """
    for number, factor in ((1, 1.0), (2, 0.5)):
        cord, grey = np.zeros((2, 16, 24, 8), np.float32)
        for index in range(8):
            cord[4:12, 4 + index : 10 + index, index] = 1
            cord[4, 10 + index, index] = 0.5
            grey[6:9, 6 + index : 8 + index, index] = factor if index != 3 else 0
        save(tmp_path / "out" / "soft" / f"sub-0{number}_T2w_0001.nii.gz", cord)
        save(tmp_path / "out" / "soft" / f"sub-0{number}_T2w_0002.nii.gz", grey)
        save(tmp_path / "out" / f"sub-0{number}_T2w.nii.gz", (cord > 0.5) + (grey > 0.4).astype(np.uint8))
    return tmp_path / "out"


def test_columns_by_name_with_the_tilt_of_the_first(predictions: Path) -> None:
    table = csa(predictions, label=("cord=1", "gm=2", "wm=cord-gm"))
    alone = csa([predictions / "soft" / f"sub-0{number}_T2w_0001.nii.gz" for number in (1, 2)])
    pd.testing.assert_frame_equal(table[["file", *COLUMNS]], alone)
    cosine = 1 / np.hypot(1, 0.5)
    assert table["csa_mm2_cord"].tolist() == pytest.approx([48.5 * cosine] * 16)
    assert (table["csa_mm2_cord"] == table["csa_mm2"]).all()
    assert (table["csa_hard_mm2_cord"] == table["csa_hard_mm2"]).all()
    for rows, factor in ((slice(0, 8), 1.0), (slice(8, 16), 0.5)):
        case = table.iloc[rows].reset_index(drop=True)
        grey = np.array([6.0 * factor] * 8)
        grey[3] = 0
        white = case["area_mm2_wm"].to_numpy()
        assert white == pytest.approx(48.5 - grey)
        assert case["area_mm2_gm"].isna().tolist() == [index == 3 for index in range(8)]
        assert case["csa_mm2_gm"].dropna().tolist() == pytest.approx([6 * factor * cosine] * 7)
    # Above 0.5: half a voxel of cord, of grey matter and of what is left without it is none.
    assert table["csa_hard_mm2_wm"].iloc[[0, 8]].tolist() == pytest.approx([42 * cosine] * 2)
    assert table["csa_hard_mm2_gm"].iloc[8:].isna().all()


def test_what_is_above_a_half_is_so_of_the_combination(tmp_path: Path) -> None:
    """Two labels that share voxels: 0.4 + 0.4 of a voxel is more than half of it, 0.9 - 0.45 is not."""
    one, other = np.zeros((2, 12, 12, 4), np.float32)
    one[2:4, 2:8], other[2:4, 2:8] = 0.4, 0.4
    one[4:8, 2:8], other[4:8, 2:8] = 0.9, 0.45
    one[8, 2:8] = 1
    for number, values in ((1, one), (2, other)):
        save(tmp_path / "soft" / f"sub-01_T2w_{number:04d}.nii.gz", values)
    for first, voxels in (("sum=1+2", 7 * 6), ("rest=1-2", 6)):
        table = csa(tmp_path, label=[first, "one=1"])
        name = first.partition("=")[0]
        assert table["csa_hard_mm2"].tolist() == pytest.approx([voxels] * 4)
        assert table[f"csa_hard_mm2_{name}"].tolist() == pytest.approx([voxels] * 4)


def test_a_label_map_with_nested_labels(predictions: Path) -> None:
    """The cord is labels 1 and 2, as grey matter is drawn over it."""
    table = csa(predictions / "sub-01_T2w.nii.gz", label=["cord=1+2", "gm=2", "wm=cord-gm"])
    assert table[["area_mm2", "area_mm2_gm", "area_mm2_wm"]].iloc[0].tolist() == [48, 6, 42]
    pd.testing.assert_series_equal(
        table["area_mm2_wm"], csa(predictions / "sub-01_T2w.nii.gz", label=1)["area_mm2"], check_names=False
    )


def test_the_command_writes_tables_with_these_columns(predictions: Path, tmp_path: Path) -> None:
    levels = np.broadcast_to(np.array([3, 3, 3, 3, 2, 2, 2, 2], np.uint8), (16, 24, 8))
    save(tmp_path / "levels" / "sub-01_T2w_levels.nii.gz", levels)
    save(tmp_path / "levels" / "sub-02_T2w_levels.nii.gz", levels)
    call = ["csa", "-i", str(predictions), "--levels", str(tmp_path / "levels"), "-np", "1"]
    out = ["-o", str(tmp_path / "a.csv"), "--summary", str(tmp_path / "s.csv")]
    assert main([*call, "--label", "cord=1", "gm=2", *out]) == 0
    added = [f"{area}_{name}" for name in ("cord", "gm") for area in ("csa_mm2", "csa_hard_mm2", "area_mm2")]
    assert pd.read_csv(tmp_path / "a.csv").columns.tolist() == ["file", *COLUMNS, *added]
    assert set(added) < set(json.loads((tmp_path / "a.json").read_text())["Columns"])
    summary = pd.read_csv(tmp_path / "s.csv").set_index(["file", "levels"])
    assert summary["area_mm2_gm"].dropna().tolist() == pytest.approx([6, 6, 6, 3, 3, 3])
    assert json.loads((tmp_path / "a.json").read_text())["GeneratedBy"][0]["Parameters"]["label"] == {
        "cord": {"1": 1},
        "gm": {"2": 1},
    }


def test_what_is_asked_for() -> None:
    assert parse_labels(None) is None
    assert parse_labels(("2",)) == parse_labels(2) == 2
    assert parse_labels(["cord=1+2", "gm=2", "wm=cord-gm"]) == {
        "cord": {1: 1, 2: 1},
        "gm": {2: 1},
        "wm": {1: 1, 2: 0},
    }


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (["gm"], "--label gm: expected one number, or names"),
        ([1, 2], "--label 1: expected one number, or names"),
        (["cord=1", "cord=2"], "--label cord=2: expected one number, or names of their own"),
        (["wm=cord-gm", "cord=1"], "--label wm=cord-gm: expected a number, found cord: define it before"),
        (0, "--label 0: expected values above 0, found 0"),
        (["cord=1", "back=cord-0"], "--label back=cord-0: expected values above 0, found 0"),
        (["cord=1", "lesion=3"], r"expected soft maps of labels 1, 3, found none of 3: predict them"),
    ],
)
def test_mistakes(predictions: Path, label: int | list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        csa(predictions, label=label)


def test_a_label_that_does_not_occur_is_told(predictions: Path) -> None:
    file = predictions / "sub-01_T2w.nii.gz"
    assert csa(file, label=["cord=1+2", "gm=2"]).attrs["warnings"] == []
    table = csa(file, label=["cord=1+2", "lesion=9"])
    assert table["area_mm2_lesion"].isna().all()
    assert table.attrs["warnings"] == [f"{file}: label 9 does not occur: it has no area"]


def test_soft_maps_are_no_label_map(predictions: Path) -> None:
    file = predictions / "soft" / "sub-01_T2w_0001.nii.gz"
    renamed = file.rename(file.with_name("cord.nii.gz"))
    with pytest.raises(UserError, match="expected a label map with label 1"):
        csa(renamed, label=["cord=1"])
