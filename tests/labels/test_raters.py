"""Several raters -> one soft label: fractions by hand, STAPLE and kappa by the papers, files and refusals."""

import csv
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_dataset import TinyDataset, affine_of, make_tiny_dataset, save_nifti

from nnunet_softseg import cli
from nnunet_softseg.datasets.check import check
from nnunet_softseg.errors import UserError
from nnunet_softseg.labels.raters import FusionReport, FusionSettings, fuse
from nnunet_softseg.labels.raters.agreement import agreement, kappa
from nnunet_softseg.labels.raters.fusion import neighbourhood, staple, weighted_mean
from nnunet_softseg.labels.raters.sources import rater_names

SHAPE = (9, 8, 7)
AFFINE = affine_of("LAS", (0.5, 1.0, 3.0), tilt_deg=12)
VOXEL_MM3 = 1.5

Array = npt.NDArray[Any]


def block(*box: tuple[int, int], shape: Sequence[int] = SHAPE) -> Array:
    """A mask of ones in a box of voxels, [from, to) along each axis."""
    mask = np.zeros(shape, dtype=np.uint8)
    mask[tuple(slice(*side) for side in box)] = 1
    return mask


RATERS = (
    block((2, 6), (2, 6), (1, 5)),
    block((2, 6), (2, 6), (2, 5)),
    block((3, 7), (2, 6), (1, 5)),
)


@pytest.fixture
def masks(tmp_path: Path) -> list[Path]:
    """One file per rater."""
    files = [tmp_path / f"rater{number}.nii.gz" for number in (1, 2, 3)]
    for file, mask in zip(files, RATERS, strict=True):
        save_nifti(file, mask, AFFINE)
    return files


def rater_folders(root: Path, cases: Sequence[str], raters: Sequence[Array] = RATERS) -> list[Path]:
    """A folder per rater; case n is the mask moved by n voxels along the second axis."""
    folders = [root / f"rater{number}" for number in range(1, len(raters) + 1)]
    for folder, mask in zip(folders, raters, strict=True):
        for shift, case_id in enumerate(cases):
            save_nifti(folder / f"{case_id}.nii.gz", np.roll(mask, shift, axis=1), AFFINE)
    return folders


def values(file: Path) -> Array:
    return np.asarray(nib.load(file).dataobj)


def quiet(inputs: Sequence[Path], output: Path, *arguments: Any, **keywords: Any) -> FusionReport:
    return fuse(inputs, output, *arguments, progress=False, **keywords)


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def one(report: FusionReport, name: str, rater: str = "", other: str = "", case: int = 0) -> float:
    """The value of a measure that is there once."""
    measures = next(iter(report.cases[case].measures.values()))
    (value,) = [measure.value for measure in measures if measure[:3] == (name, rater, other)]
    return value


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line with which the command refuses."""
    capsys.readouterr()
    assert cli.main(["fuse", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nnunet-softseg: error: ")
    return line


# The mean


def test_the_mean_is_the_fraction_of_raters(masks: list[Path], tmp_path: Path) -> None:
    quiet(masks, tmp_path / "soft.nii.gz")
    soft = values(tmp_path / "soft.nii.gz")
    # By hand: x = 2 lacks rater 3, x = 6 has rater 3 alone, z = 1 lacks rater 2.
    expected = np.zeros(SHAPE)
    expected[3:6, 2:6, 2:5] = 3
    expected[3:6, 2:6, 1] = 2
    expected[2, 2:6, 2:5] = 2
    expected[2, 2:6, 1] = 1
    expected[6, 2:6, 1:5] = 1
    assert soft.dtype == np.float32
    np.testing.assert_array_equal(soft, (expected / 3).astype(np.float32))


def test_the_weighted_mean_by_hand(masks: list[Path], tmp_path: Path) -> None:
    quiet(masks, tmp_path / "soft.nii.gz", FusionSettings(weights=(1, 2, 1)))
    soft = values(tmp_path / "soft.nii.gz")
    assert soft[4, 3, 3] == 1  # all
    assert soft[4, 3, 1] == 0.5  # raters 1 and 3
    assert soft[2, 3, 3] == 0.75  # raters 1 and 2
    assert soft[6, 3, 3] == 0.25  # rater 3
    assert soft[8, 7, 6] == 0


def test_soft_maps_are_averaged_as_they_are(tmp_path: Path) -> None:
    first, second = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    first[4, 4, 4], second[4, 4, 4], second[4, 4, 5] = 0.25, 0.5, 1e-3
    save_nifti(tmp_path / "a.nii.gz", first, AFFINE)
    save_nifti(tmp_path / "b.nii.gz", second, AFFINE)
    report = quiet([tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"], tmp_path / "soft.nii.gz")
    soft = values(tmp_path / "soft.nii.gz")
    assert soft[4, 4, 4] == 0.375
    assert soft[4, 4, 5] == np.float32(np.float64(np.float32(1e-3)) / 2)
    assert np.count_nonzero(soft) == 2
    # 2 x 0.25 / (0.25 + 0.501)
    assert one(report, "soft_dice", "a.nii.gz", "b.nii.gz") == pytest.approx(0.5 / 0.751)
    assert math.isnan(one(report, "dice", "a.nii.gz", "b.nii.gz"))  # nothing above 0.5


MAPS = st.lists(hnp.arrays(np.float32, (3, 4, 2), elements=st.floats(0, 1, width=32)), min_size=2, max_size=5)


@given(MAPS, st.randoms(use_true_random=False), st.data())
def test_laws_of_the_mean(maps: list[Array], random: Any, data: st.DataObject) -> None:
    weights = data.draw(
        st.lists(st.floats(0.01, 100), min_size=len(maps), max_size=len(maps)), label="weights"
    )
    mean = weighted_mean(maps, weights)
    assert mean.dtype == np.float32
    assert mean.min() >= 0
    assert mean.max() <= 1
    step = np.finfo(np.float32).eps  # sums in another order differ by a float32 step at most
    assert (mean >= np.min(maps, axis=0) - step).all()
    assert (mean <= np.max(maps, axis=0) + step).all()
    order = random.sample(range(len(maps)), len(maps))
    shuffled = weighted_mean([maps[place] for place in order], [weights[place] for place in order])
    np.testing.assert_allclose(shuffled, mean, rtol=2e-7, atol=1e-44)
    np.testing.assert_allclose(
        weighted_mean(maps, [7 * weight for weight in weights]), mean, rtol=2e-7, atol=1e-44
    )
    np.testing.assert_array_equal(weighted_mean(maps, [1.0] * len(maps)), weighted_mean(maps))


@given(hnp.arrays(np.uint8, (4, 3, 4, 2), elements=st.integers(0, 1)), st.permutations(range(4)))
def test_the_mean_of_masks_does_not_know_the_order_of_raters(stack: Array, order: list[int]) -> None:
    mean = weighted_mean(list(stack))
    np.testing.assert_array_equal(mean, weighted_mean([stack[place] for place in order]))
    np.testing.assert_array_equal(mean, stack.sum(axis=0) / np.float32(4))


@given(MAPS)
def test_a_weight_of_two_is_a_rater_counted_twice(maps: list[Array]) -> None:
    weights = [2.0] + [1.0] * (len(maps) - 1)
    np.testing.assert_allclose(
        weighted_mean(maps, weights), weighted_mean([maps[0], *maps]), rtol=2e-7, atol=1e-44
    )


def test_a_weight_of_zero_leaves_a_rater_out(masks: list[Path], tmp_path: Path) -> None:
    quiet(masks, tmp_path / "soft.nii.gz", FusionSettings(weights=(1, 0, 1)))
    np.testing.assert_array_equal(
        values(tmp_path / "soft.nii.gz"), (RATERS[0] + RATERS[2]).astype(np.float32) / 2
    )


# STAPLE


def e_step(decisions: Array, p: Array, q: Array) -> Array:
    """The probability of each voxel, given how good the raters are (E-step of Warfield 2004).

    Args:
        decisions: (raters, voxels), 0 or 1; their mean is the prior.
        p: sensitivities.
        q: specificities.
    """
    prior = decisions.mean()
    with np.errstate(divide="ignore"):
        structure = np.where(decisions, np.log(p)[:, None], np.log1p(-p)[:, None]).sum(axis=0)
        background = np.where(decisions, np.log1p(-q)[:, None], np.log(q)[:, None]).sum(axis=0)
    return 1 / (1 + np.exp(background + np.log1p(-prior) - structure - np.log(prior)))


def m_step(decisions: Array, probability: Array) -> tuple[Array, Array]:
    """How good the raters are, given the probability of each voxel (M-step of Warfield 2004)."""
    p = (probability * decisions).sum(axis=1) / probability.sum()
    q = ((1 - probability) * (1 - decisions)).sum(axis=1) / (1 - probability).sum()
    return p, q


def random_raters(
    truth: Array, sensitivity: Sequence[float], specificity: Sequence[float], seed: int
) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [
        np.where(truth, rng.random(truth.shape) < p, rng.random(truth.shape) >= q)
        for p, q in zip(sensitivity, specificity, strict=True)
    ]


SKILLS = ((0.95, 0.80, 0.90, 0.70), (0.90, 0.99, 0.95, 0.97))


def test_staple_finds_the_truth_and_how_good_each_rater_is() -> None:
    truth = block((4, 26), (5, 25), (6, 24), shape=(30, 30, 30)) > 0
    raters = random_raters(truth, *SKILLS, seed=3)
    result = staple(raters, np.ones(truth.shape, dtype=bool))
    # Binomial: sd of a share of 7920 (structure) or 19080 (background) voxels is below 0.006 and 0.003.
    np.testing.assert_allclose(result.sensitivity, SKILLS[0], atol=0.018)
    np.testing.assert_allclose(result.specificity, SKILLS[1], atol=0.009)
    assert result.converged
    wrong = np.mean((result.probability > 0.5) != truth)
    assert wrong < min(np.mean(rater != truth) for rater in raters) / 2


def raters_in_a_region(seed: int, number: int) -> tuple[list[Array], Array]:
    rng = np.random.default_rng(seed)
    truth, region = rng.random((12, 10, 8)) < 0.3, rng.random((12, 10, 8)) < 0.8
    raters = random_raters(truth, rng.uniform(0.7, 0.95, number), rng.uniform(0.8, 0.98, number), seed)
    return [rater & region for rater in raters], region


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.integers(3, 6))
def test_staple_solves_the_papers_equations(seed: int, number: int) -> None:
    raters, region = raters_in_a_region(seed, number)
    result = staple(raters, region)
    decisions = np.stack([rater[region] for rater in raters]).astype(int)
    p, q = np.array(result.sensitivity), np.array(result.specificity)
    probability = e_step(decisions, p, q)
    drawn = decisions.any(axis=0)
    # The filter stops where a step changes p and q little: the two steps agree to about that.
    np.testing.assert_allclose(result.probability[region][drawn], probability[drawn], atol=1e-4)
    np.testing.assert_allclose(m_step(decisions, probability), (p, q), atol=1e-4)
    assert not result.probability[~np.logical_or.reduce(raters)].any()


@pytest.mark.parametrize("seed", range(3))
def test_staple_is_where_the_papers_em_ends(seed: int) -> None:
    raters, region = raters_in_a_region(seed, number=5)
    decisions = np.stack([rater[region] for rater in raters]).astype(int)
    probability = decisions.mean(axis=0)
    for _ in range(300):
        p, q = m_step(decisions, probability)
        probability = e_step(decisions, p, q)
    result = staple(raters, region)
    np.testing.assert_allclose(result.sensitivity, p, atol=1e-5)
    np.testing.assert_allclose(result.specificity, q, atol=1e-5)
    drawn = decisions.any(axis=0)
    np.testing.assert_allclose(result.probability[region][drawn], probability[drawn], atol=1e-4)


def test_staple_does_not_know_the_order_of_raters() -> None:
    truth = block((2, 9), (3, 9), (2, 8), shape=(12, 12, 10)) > 0
    raters = random_raters(truth, *SKILLS, seed=1)
    whole = np.ones(truth.shape, dtype=bool)
    result, turned = staple(raters, whole), staple(raters[::-1], whole)
    np.testing.assert_allclose(turned.probability, result.probability, atol=1e-6)
    np.testing.assert_allclose(turned.sensitivity[::-1], result.sensitivity, atol=1e-6)


@pytest.mark.parametrize("mask", [RATERS[0] > 0, np.zeros(SHAPE, bool), np.ones(SHAPE, bool)])
def test_raters_who_agree_fully_are_their_own_consensus(mask: Array) -> None:
    """The equations are 0/0 here: of an empty or full region the filter makes NaN."""
    result = staple([mask] * 3, np.ones(SHAPE, dtype=bool))
    np.testing.assert_array_equal(result.probability, mask.astype(np.float32))
    assert result.specificity == (1, 1, 1)
    assert result.sensitivity == ((1, 1, 1) if mask.any() else pytest.approx([math.nan] * 3, nan_ok=True))


@given(hnp.arrays(np.bool_, st.tuples(st.integers(2, 5), st.just(3), st.just(2), st.just(2))))
def test_staple_is_a_probability_whatever_was_drawn(stack: Array) -> None:
    """Empty masks, masks that fill the region, raters who contradict each other: no NaN reaches the disk."""
    result = staple(list(stack), np.ones(stack.shape[1:], dtype=bool))
    assert np.isfinite(result.probability).all()
    assert result.probability.min() >= 0
    assert result.probability.max() <= 1
    assert not result.probability[~stack.any(axis=0)].any()


def test_staple_does_not_depend_on_the_field_of_view(masks: list[Path], tmp_path: Path) -> None:
    """Over the whole image, the prior and the specificities would say how much air was scanned."""

    def fused_with(border: int) -> tuple[FusionReport, Array]:
        folder = tmp_path / str(border)
        for file in masks:
            affine = AFFINE.copy()
            affine[:3, 3] -= AFFINE[:3, :3] @ (border, border, border)
            save_nifti(folder / file.name, np.pad(values(file), border), affine)
        files = [folder / file.name for file in masks]
        report = quiet(files, folder / "soft.nii.gz", FusionSettings("staple", margin_mm=2.0))
        inner = (slice(border, -border),) * 3
        return report, values(folder / "soft.nii.gz")[inner]

    # 2 mm are four voxels at most.
    (small, of_small), (large, of_large) = fused_with(4), fused_with(20)
    np.testing.assert_array_equal(of_large, of_small)
    for name, rater in (
        ("sensitivity", "rater1.nii.gz"),
        ("specificity", "rater3.nii.gz"),
        ("fleiss_kappa", ""),
    ):
        assert one(large, name, rater) == pytest.approx(one(small, name, rater), abs=1e-12)


def test_the_neighbourhood_is_what_lies_near_in_mm() -> None:
    spacing_mm = (0.5, 1.0, 3.0)
    first, second = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    first[4, 4, 3] = second[0, 1, 6] = True
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    near = [np.linalg.norm((index - voxel) * spacing_mm, axis=-1) <= 3.2 for voxel in ((4, 4, 3), (0, 1, 6))]
    np.testing.assert_array_equal(neighbourhood([first, second], spacing_mm, 3.2), near[0] | near[1])
    assert not neighbourhood([~first & first], spacing_mm, 3.2).any()


def test_staple_of_soft_maps_is_refused(
    masks: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soft = values(masks[1]).astype(np.float32)
    soft[2, 2, 2] = 0.25
    save_nifti(masks[1], soft, AFFINE)
    line = refusal(capsys, "-i", *masks, "-o", tmp_path / "soft.nii.gz", "--method", "staple")
    assert "rater2.nii.gz: STAPLE takes masks only: expected 0 and 1, found 1 voxels between them" in line
    assert "--method mean" in line
    assert not list(tmp_path.glob("soft*"))


# Agreement

FLEISS_1971 = """
0 0 0 6 0|0 3 0 0 3|0 1 4 0 1|0 0 0 0 6|0 3 0 3 0|2 0 4 0 0|0 0 4 0 2|2 0 3 1 0|2 0 0 4 0|0 0 0 0 6
1 0 0 5 0|1 1 0 4 0|0 3 3 0 0|1 0 0 5 0|0 2 0 3 1|0 0 5 0 1|3 0 0 1 2|5 1 0 0 0|0 2 0 4 0|1 0 2 0 3
0 0 0 0 6|0 1 0 5 0|0 2 0 1 3|2 0 0 4 0|1 0 0 4 1|0 5 0 1 0|4 0 0 0 2|0 2 0 4 0|1 0 5 0 0|0 0 0 0 6
"""
"""Table 1 of Fleiss 1971: 30 patients, 6 psychiatrists each, 5 diagnoses."""


@pytest.mark.parametrize(
    ("diagnosis", "published"), [(0, 0.245), (1, 0.245), (2, 0.520), (3, 0.471), (4, 0.566)]
)
def test_kappa_is_that_of_fleiss_1971(diagnosis: int, published: float) -> None:
    """One diagnosis against all others, as a mask is a structure against all else."""
    table = np.array(
        [row.split() for line in FLEISS_1971.split("\n") if line for row in line.split("|")], dtype=int
    )
    assert table.shape == (30, 5)
    assert (table.sum(axis=1) == 6).all()
    raters = [table[:, diagnosis] > rater for rater in range(6)]
    assert kappa(raters) == pytest.approx(published, abs=5e-4)


def test_kappa_without_a_choice_has_no_value() -> None:
    nothing, all_of_it = np.zeros(8, dtype=bool), np.ones(8, dtype=bool)
    assert math.isnan(kappa([nothing, nothing]))
    assert math.isnan(kappa([all_of_it, all_of_it]))
    assert math.isnan(kappa([nothing[:0], nothing[:0]]))
    # Full disagreement: by Fleiss' formula (0 - 1/2) / (1 - 1/2).
    assert kappa([nothing, all_of_it]) == pytest.approx(-1)


def test_agreement_by_hand(masks: list[Path], tmp_path: Path) -> None:
    report = quiet(masks, tmp_path / "soft.nii.gz")
    names = ("rater1.nii.gz", "rater2.nii.gz", "rater3.nii.gz")
    # 4 x 4 x 4, 4 x 4 x 3 and 4 x 4 x 4 voxels of 1.5 mm3
    volumes = [one(report, "volume_mm3", name) for name in names]
    assert volumes == pytest.approx([64 * 1.5, 48 * 1.5, 64 * 1.5])
    overlaps = {(0, 1): (48, 112), (0, 2): (48, 128), (1, 2): (36, 112)}
    for (first, second), (both, total) in overlaps.items():
        assert one(report, "dice", names[first], names[second]) == pytest.approx(2 * both / total)
    assert one(report, "mean_dice") == pytest.approx(np.mean([2 * b / t for b, t in overlaps.values()]))
    assert one(report, "fused_volume_mm3") == pytest.approx((64 + 48 + 64) / 3 * 1.5)


@given(hnp.arrays(np.float32, (2, 5, 4, 3), elements=st.sampled_from([0, 0.25, 0.75, 1])))
def test_laws_of_agreement(maps: Array) -> None:
    region = np.ones(maps.shape[1:], dtype=bool)
    there = {measure[:3]: measure.value for measure in agreement({"a": maps[0], "b": maps[1]}, 2.0, region)}
    back = {measure[:3]: measure.value for measure in agreement({"b": maps[1], "a": maps[0]}, 2.0, region)}
    assert there["dice", "a", "b"] == pytest.approx(back["dice", "b", "a"], nan_ok=True)
    assert there["fleiss_kappa", "", ""] == pytest.approx(back["fleiss_kappa", "", ""], nan_ok=True)
    same = {measure[:3]: measure.value for measure in agreement({"a": maps[0], "b": maps[0]}, 2.0, region)}
    drawn = maps[0] > 0.5
    assert same["dice", "a", "b"] == pytest.approx(1 if drawn.any() else math.nan, nan_ok=True)
    mixed = drawn.any() and not drawn.all()
    assert same["fleiss_kappa", "", ""] == pytest.approx(1 if mixed else math.nan, nan_ok=True)


# Files


def test_the_soft_label_has_the_header_of_the_image(masks: list[Path], tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros(SHAPE, np.int16), AFFINE)
    image.set_qform(AFFINE, 1)
    image.set_sform(AFFINE, 4)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "image.nii.gz")
    quiet(masks, tmp_path / "soft.nii.gz", images=tmp_path / "image.nii.gz")
    soft = nib.load(tmp_path / "soft.nii.gz")
    np.testing.assert_array_equal(soft.affine, nib.load(tmp_path / "image.nii.gz").affine)
    assert (int(soft.header["qform_code"]), int(soft.header["sform_code"])) == (1, 4)
    assert soft.header.get_xyzt_units() == ("mm", "sec")
    assert soft.get_data_dtype() == np.float32


def test_the_record_says_what_the_soft_label_was_made_from(masks: list[Path], tmp_path: Path) -> None:
    quiet(masks, tmp_path / "soft.nii.gz", FusionSettings(weights=(1, 2, 1)))
    record = json.loads((tmp_path / "soft.json").read_text())
    assert record["made_by"]["name"] == "nnunet-softseg"
    assert record["made_by"]["version"]
    assert record["request"]["method"] == "mean"
    assert record["request"]["weights"] == {"rater1.nii.gz": 1, "rater2.nii.gz": 2, "rater3.nii.gz": 1}
    for file in masks:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert record["request"]["sources"]["None"][file.name] == {"file": file.name, "sha256": digest}
    digest = hashlib.sha256((tmp_path / "soft.nii.gz").read_bytes()).hexdigest()
    assert record["outputs"] == {"soft.nii.gz": digest}


def test_the_terminal_shows_the_agreement(
    masks: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli.main(["fuse", "-i", *map(str, masks), "-o", str(tmp_path / "s.nii.gz"), "--method", "staple"])
        == 0
    )
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    (first,) = [row for row in rows if row[:1] == ["rater1.nii.gz"] and len(row) == 5]
    assert first[1:3] == ["96.0", f"{(2 * 48 / 112 + 2 * 48 / 128) / 2:.4f}"]
    (last,) = [row for row in rows if row[:1] == ["rater3.nii.gz"] and len(row) == 5]
    assert last[2] == f"{(2 * 48 / 128 + 2 * 36 / 112) / 2:.4f}"
    assert ["rater2.nii.gz", "-", "rater3.nii.gz", f"{72 / 112:.4f}"] in rows
    assert ["rater", "volume_mm3", "dice_with_others", "sensitivity", "specificity"] in rows


def test_one_label_of_label_maps(tmp_path: Path) -> None:
    files = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    for file, mask in zip(files, RATERS[:2], strict=True):
        save_nifti(file, (3 * mask + block((0, 1), (0, 8), (0, 7))).astype(np.int16), AFFINE)
    quiet(files, tmp_path / "soft.nii.gz", FusionSettings(labels=(3,)))
    np.testing.assert_array_equal(values(tmp_path / "soft.nii.gz"), (RATERS[0] + RATERS[1]) / np.float32(2))


def test_a_label_that_is_one_step_of_fractions_is_said(tmp_path: Path) -> None:
    """Maps in percent hold a 1 somewhere: as label 1 it is nearly nothing of them."""
    steps = np.arange(SHAPE[0] * SHAPE[1] * SHAPE[2]).reshape(SHAPE) % 101
    folders = rater_folders(tmp_path, ["sub-01"], [steps.astype(np.uint8), steps[::-1].astype(np.uint8)])
    for inputs, output in ((folders, "soft"), ([folder / "sub-01.nii.gz" for folder in folders], "soft.nii")):
        warnings = "\n".join(quiet(inputs, tmp_path / output, FusionSettings(labels=(1,))).warnings)
        assert "rater1/sub-01.nii.gz: label 1 looks like one step of fractions" in warnings
        assert warnings.count("else divide it by 100") == 2


def test_a_rater_who_lacks_the_label_in_a_case_drew_none_once_labels_are_named(tmp_path: Path) -> None:
    """Of a label map with another label alone, `divide it by 2` would make that label the one of all."""
    both = block((1, 4), (1, 4), (1, 4)) + 2 * block((5, 8), (1, 4), (1, 4))
    folders = rater_folders(tmp_path, ["sub-01", "sub-02"], [both, both])
    save_nifti(folders[1] / "sub-02.nii.gz", 2 * (both == 2).astype(np.uint8), AFFINE)
    (failed,) = quiet(folders, tmp_path / "soft").failures
    assert "divide it by 2; or, if 2 is another label, say which to fuse (--labels 1)" in str(failed.failure)
    assert not quiet(folders, tmp_path / "soft", FusionSettings(labels=(1,))).failures
    assert values(tmp_path / "soft" / "sub-02_0001.nii.gz").max() == 0.5
    # Nor does what was made so pass for what is made without: that is refused, whatever is there.
    assert quiet(folders, tmp_path / "soft").failures == (failed,)


def test_a_label_that_one_rater_alone_drew_stays_his(tmp_path: Path) -> None:
    """Label maps may lack a label; the mean is then that of the others' voxels and zeros."""
    rater_folders(tmp_path, ["a"], [RATERS[0], 2 * RATERS[1], RATERS[0] + RATERS[1]])
    folders = [tmp_path / f"rater{number}" for number in (1, 2, 3)]
    quiet(folders, tmp_path / "soft", FusionSettings(labels=(1, 2)))
    both = RATERS[0] + RATERS[1]
    for label, maps in {1: (RATERS[0], 0 * both, both == 1), 2: (0 * both, RATERS[1], both == 2)}.items():
        expected = sum(np.asarray(values, dtype=np.float64) for values in maps) / 3
        assert values(tmp_path / f"soft/a_{label:04d}.nii.gz") == pytest.approx(expected, abs=1e-6)


def test_inputs_are_left_as_they_are(tmp_path: Path) -> None:
    folders = rater_folders(tmp_path, ["sub-01", "sub-02"])
    before = [files_of(folder) for folder in folders]
    quiet(folders, tmp_path / "soft", FusionSettings("staple"))
    assert [files_of(folder) for folder in folders] == before


# Folders


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyDataset:
    """A raw dataset of two labels with images and dataset.json, but without labels."""
    cases = ("sub-01_T2w", "sub-02_T2w", "sub-03_T2w")
    tiny = make_tiny_dataset(tmp_path / "nnunet", cases, labels=(1, 2), shape=(12, 13, 24))
    for name, folder in tiny.environment.items():
        monkeypatch.setenv(name, folder)
    return tiny


def three_raters_of(tiny: TinyDataset, root: Path) -> list[Path]:
    """Label maps of three raters, soft label > 0.2, > 0.5, > 0.8; the dataset's own labels are removed."""
    folders = [root / f"rater{number}" for number in (1, 2, 3)]
    for folder, threshold in zip(folders, (0.2, 0.5, 0.8), strict=True):
        for case in tiny.cases:
            soft = [nib.load(tiny.soft_label(case, label)) for label in tiny.labels]
            label_map = np.zeros(soft[0].shape, dtype=np.uint8)
            for label, image in zip(tiny.labels, soft, strict=True):
                label_map[np.asarray(image.dataobj) > threshold] = label
            save_nifti(folder / f"{case}.nii.gz", label_map, soft[0].affine)
    shutil.rmtree(tiny.raw / "softLabelsTr")
    shutil.rmtree(tiny.raw / "labelsTr")
    return folders


def test_raters_folders_become_a_dataset_that_check_accepts(dataset: TinyDataset, tmp_path: Path) -> None:
    folders, raw = three_raters_of(dataset, tmp_path), dataset.raw
    arguments = ["-i", *folders, "-o", raw / "softLabelsTr", "--images", raw / "imagesTr"]
    arguments += ["--label-maps", raw / "labelsTr", "--labels", 1, 2, "-np", 2]
    assert cli.main(["fuse", *map(str, arguments)]) == 0
    report = check(dataset.name, 1, progress=False)
    assert report.errors == ()
    assert report.num_cases == 3
    assert [finding.what for finding in report.warnings] == []
    for case in dataset.cases:
        maps = [values(folder / f"{case}.nii.gz") for folder in folders]
        for label in (1, 2):
            count = sum((label_map == label).astype(int) for label_map in maps)
            np.testing.assert_array_equal(
                values(dataset.soft_label(case, label)), (count / 3).astype(np.float32)
            )
        # The majority of three is the second, > 0.5.
        np.testing.assert_array_equal(values(dataset.label_map(case)), maps[1])


def test_agreement_of_folders_is_a_tidy_table(tmp_path: Path) -> None:
    report = quiet(rater_folders(tmp_path, ["sub-01", "sub-02"]), tmp_path / "soft")
    with (tmp_path / "soft" / "agreement.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["case_id", "label", "measure", "rater", "other_rater", "value"]
    dice = {
        (row["case_id"], row["rater"], row["other_rater"]): float(row["value"])
        for row in rows
        if row["measure"] == "dice"
    }
    assert dice == {
        (case_id, f"rater{first}", f"rater{second}"): pytest.approx(2 * both / total)
        for case_id in ("sub-01", "sub-02")
        for first, second, both, total in ((1, 2, 48, 112), (1, 3, 48, 128), (2, 3, 36, 112))
    }
    assert {row["label"] for row in rows} == {"1"}
    assert "means over 2 cases" in report.as_text()
    record = json.loads((tmp_path / "soft" / "fuse.json").read_text())
    assert record["cases"] == ["sub-01", "sub-02"]
    assert record["raters"] == {f"rater{number}": str(tmp_path / f"rater{number}") for number in (1, 2, 3)}


def test_a_rater_who_lacks_a_case_is_named_and_the_others_are_fused(tmp_path: Path) -> None:
    folders = rater_folders(tmp_path, ["sub-01", "sub-02"])
    (folders[1] / "sub-02.nii.gz").unlink()
    report = quiet(folders, tmp_path / "soft")
    assert "rater2 has no file: 1 case (sub-02)" in report.warnings
    expected = np.roll(RATERS[0] + RATERS[2], 1, axis=1).astype(np.float32) / 2
    np.testing.assert_array_equal(values(tmp_path / "soft" / "sub-02_0001.nii.gz"), expected)


def test_of_a_case_that_cannot_be_fused_any_more_nothing_of_before_stays(tmp_path: Path) -> None:
    folders, output = rater_folders(tmp_path, ["sub-01", "sub-02"]), tmp_path / "soft"
    quiet(folders, output, label_maps=tmp_path / "labels")
    before = files_of(output)
    for case, left in (("sub-01", ["sub-02"]), ("sub-02", [])):
        mask = nib.load(folders[1] / f"{case}.nii.gz")
        moved = mask.affine.copy()
        moved[0, 3] += 5
        nib.save(nib.Nifti1Image(np.asarray(mask.dataobj), moved), folders[1] / f"{case}.nii.gz")
        report = quiet(folders, output, label_maps=tmp_path / "labels")
        assert case in {failed.case_id for failed in report.failures}
        assert [name for name in files_of(output) if "sub" in name] == [
            name for name in before if any(kept in name for kept in left)
        ]
        assert [file.name for file in (tmp_path / "labels").iterdir()] == [f"{kept}.nii.gz" for kept in left]
        assert json.loads((output / "fuse.json").read_text())["cases"] == left


def labelled_raters(root: Path, cases: Sequence[str]) -> list[Path]:
    """A folder per rater with label maps of labels 1 and 2, which lie apart."""
    return rater_folders(root, cases, [mask + 2 * block((0, 2), (0, 2), (0, 2)) for mask in RATERS])


def test_what_a_call_no_longer_makes_of_a_case_goes(tmp_path: Path) -> None:
    """A label that no rater has any more, and label maps that would not be made of the new soft labels."""
    folders, output = [tmp_path / f"rater{number}" for number in (1, 2, 3)], tmp_path / "soft"
    for folder, mask in zip(folders, RATERS, strict=True):
        for case_id in ("sub-01", "sub-02"):
            save_nifti(folder / f"{case_id}_0001.nii.gz", mask, AFFINE)
            save_nifti(folder / f"{case_id}_0002.nii.gz", block((0, 2), (0, 2), (0, 2)), AFFINE)
    quiet(folders, output, label_maps=tmp_path / "labels")
    made = files_of(tmp_path / "labels")
    assert not any(case.up_to_date is False for case in quiet(folders, output).cases)
    assert files_of(tmp_path / "labels") == made  # they still are of these soft labels
    other = tmp_path / "labels" / "sub-02.nii.gz"
    other.write_bytes(b"painted over")
    (output / "mine_0002.nii.gz").write_bytes(b"not of fuse")
    for file in tmp_path.glob("rater?/*_0002.nii.gz"):
        file.unlink()
    quiet(folders, output)
    left = {"sub-01.json", "sub-01_0001.nii.gz", "sub-02.json", "sub-02_0001.nii.gz"}
    assert files_of(output).keys() == {*left, "mine_0002.nii.gz", "agreement.csv", "fuse.json"}
    assert files_of(tmp_path / "labels").keys() == {"sub-02.nii.gz"}  # no longer what fuse had written
    record = json.loads((output / "sub-01.json").read_text())
    assert record["outputs"].keys() == {"sub-01_0001.nii.gz"}


def test_labels_may_be_fused_one_after_the_other(tmp_path: Path) -> None:
    folders, output = labelled_raters(tmp_path, ["sub-01", "scan_0002"]), tmp_path / "soft"
    for label in (1, 2):
        quiet(folders, output, FusionSettings(labels=(label,)))
    together = tmp_path / "together"
    quiet(folders, together, FusionSettings(labels=(1, 2)))
    for file in together.glob("*.nii.gz"):
        np.testing.assert_array_equal(values(output / file.name), values(file))
    assert len(list(output.glob("*.nii.gz"))) == 4


def test_label_maps_elsewhere_stay_as_long_as_they_are_of_the_same_raters(tmp_path: Path) -> None:
    folders, output = rater_folders(tmp_path, ["sub-01"]), tmp_path / "soft"
    for name in ("one", "two"):
        quiet(folders, output, label_maps=tmp_path / name)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert files_of(tmp_path / "one")


def test_a_case_that_no_rater_has_any_more_is_named(tmp_path: Path) -> None:
    folders, output = rater_folders(tmp_path, ["sub-01", "sub-02"]), tmp_path / "soft"
    assert not quiet(folders, output).warnings
    for folder in folders:
        (folder / "sub-01.nii.gz").unlink()
    (warning,) = quiet(folders, output).warnings
    assert warning == (
        f"made by an earlier call, not by this one, still in {output}: remove them if they should not be "
        "there: 1 case (sub-01)"
    )
    assert (output / "sub-01_0001.nii.gz").is_file()


def test_of_a_case_that_fails_labels_that_were_not_asked_for_stay_ours(tmp_path: Path) -> None:
    folders, output = labelled_raters(tmp_path, ["sub-01", "sub-02"]), tmp_path / "soft"
    quiet(folders, output, FusionSettings(labels=(1, 2)))
    mask = (folders[1] / "sub-02.nii.gz").read_bytes()
    (folders[1] / "sub-02.nii.gz").write_bytes(mask[:60])
    assert quiet(folders, output, FusionSettings(labels=(1,))).failures
    assert {file.name for file in output.glob("sub-02*")} == {"sub-02.json", "sub-02_0002.nii.gz"}
    (folders[1] / "sub-02.nii.gz").write_bytes(mask)
    assert not quiet(folders, output, FusionSettings(labels=(1, 2))).failures


def test_weights_stay_with_their_raters_where_one_is_missing(tmp_path: Path) -> None:
    folders = rater_folders(tmp_path, ["sub-01", "sub-02"])
    (folders[0] / "sub-02.nii.gz").unlink()
    quiet(folders, tmp_path / "soft", FusionSettings(weights=(5, 1, 3)))
    expected = np.roll((RATERS[1] + 3.0 * RATERS[2]) / 4, 1, axis=1).astype(np.float32)
    np.testing.assert_array_equal(values(tmp_path / "soft" / "sub-02_0001.nii.gz"), expected)


def test_strict_refuses_a_missing_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = rater_folders(tmp_path, ["sub-01", "sub-02"])
    (folders[1] / "sub-02.nii.gz").unlink()
    line = refusal(capsys, "-i", *folders, "-o", tmp_path / "soft", "--strict")
    assert "rater2 has no file: 1 case (sub-02)" in line
    assert not (tmp_path / "soft").exists()


def test_soft_maps_named_by_label_and_masks_go_together(tmp_path: Path) -> None:
    soft = np.zeros(SHAPE, np.float32)
    soft[3, 3, 3] = 0.25
    for label in (1, 2):
        save_nifti(tmp_path / "predicted" / f"sub-01_{label:04d}.nii.gz", soft * label, AFFINE)
        save_nifti(tmp_path / "drawn" / f"sub-01_{label:04d}.nii.gz", block((3, 4), (3, 5), (3, 4)), AFFINE)
    quiet([tmp_path / "predicted", tmp_path / "drawn"], tmp_path / "soft")
    for label in (1, 2):
        fused = values(tmp_path / "soft" / f"sub-01_{label:04d}.nii.gz")
        assert fused[3, 3, 3] == (0.25 * label + 1) / 2
        assert fused[3, 4, 3] == 0.5
        assert np.count_nonzero(fused) == 2


def test_case_ids_that_end_in_four_digits_are_known_by_their_images(tmp_path: Path) -> None:
    folders = rater_folders(tmp_path, ["scan_0001", "scan_0002"])
    for case_id in ("scan_0001", "scan_0002"):
        for channel in range(2):
            image = tmp_path / "imagesTr" / f"{case_id}_{channel:04d}.nii.gz"
            save_nifti(image, np.zeros(SHAPE, np.float32), AFFINE)
    quiet(folders, tmp_path / "soft", images=tmp_path / "imagesTr")
    record = json.loads((tmp_path / "soft" / "scan_0001.json").read_text())
    assert record["request"]["image"]["file"] == "scan_0001_0000.nii.gz"
    assert sorted(path.name for path in (tmp_path / "soft").glob("*.nii.gz")) == [
        "scan_0001_0001.nii.gz",
        "scan_0002_0001.nii.gz",
    ]


def test_patients_numbered_with_four_digits_are_cases(tmp_path: Path) -> None:
    cases = ["scan_0000", "scan_0001", "scan_0002"]
    folders = rater_folders(tmp_path, cases)
    quiet(folders, tmp_path / "soft")
    assert {f"{case}_0001.nii.gz" for case in cases} <= {file.name for file in (tmp_path / "soft").iterdir()}
    for folder in folders:
        (folder / "scan_0000.nii.gz").unlink()
    with pytest.raises(UserError, match=r"scan_0001.nii.gz, scan_0002.nii.gz.*: give --images"):
        quiet(folders, tmp_path / "asked")


def test_cases_without_image_are_left_out_and_named(tmp_path: Path) -> None:
    folders = rater_folders(tmp_path, ["sub-01", "sub-02"])
    for case_id in ("sub-02", "sub-03"):
        save_nifti(tmp_path / "imagesTr" / f"{case_id}_0000.nii.gz", np.zeros(SHAPE, np.float32), AFFINE)
    report = quiet(folders, tmp_path / "soft", images=tmp_path / "imagesTr")
    assert [case.case_id for case in report.cases] == ["sub-02"]
    assert "no image, left out: 1 case (sub-01)" in report.warnings
    assert "no rater, left out: 1 case (sub-03)" in report.warnings


def test_one_broken_case_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = rater_folders(tmp_path, ["sub-01", "sub-02", "sub-03"])
    broken = folders[2] / "sub-02.nii.gz"
    broken.write_bytes(broken.read_bytes()[:60])
    assert cli.main(["fuse", "-i", *map(str, folders), "-o", str(tmp_path / "soft"), "-np", "1"]) == 2
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert "rater3/sub-02.nii.gz: corrupt or truncated gzip" in errors[0]
    assert "2 fused, 0 up to date, 1 failed" in printed.out
    written = {path.name for path in (tmp_path / "soft").iterdir()}
    assert {"sub-01_0001.nii.gz", "sub-03_0001.nii.gz"} <= written
    assert not {name for name in written if "sub-02" in name}
    assert list(json.loads((tmp_path / "soft" / "fuse.json").read_text())["failures"]) == ["sub-02"]


# Again


def test_what_is_up_to_date_is_kept_and_what_is_not_is_made_again(tmp_path: Path) -> None:
    folders, soft = rater_folders(tmp_path, ["sub-01", "sub-02", "sub-03"]), tmp_path / "soft"
    first = quiet(folders, soft)
    assert [case.up_to_date for case in first.cases] == [False] * 3
    old = {file: file.stat().st_mtime_ns for file in soft.glob("*.nii.gz")}
    changed = folders[0] / "sub-02.nii.gz"
    save_nifti(changed, block((0, 1), (0, 1), (0, 1)), AFFINE)
    (soft / "sub-03_0001.nii.gz").write_bytes(b"cut off")
    again = quiet(folders, soft)
    assert [case.up_to_date for case in again.cases] == [True, False, False]
    assert (soft / "sub-01_0001.nii.gz").stat().st_mtime_ns == old[soft / "sub-01_0001.nii.gz"]
    assert values(soft / "sub-02_0001.nii.gz")[0, 0, 0] == np.float32(1 / 3)
    assert again.cases[0] == first.cases[0].__class__(
        "sub-01", first.cases[0].measures, first.cases[0].warnings, up_to_date=True
    )
    other = quiet(folders, soft, FusionSettings(weights=(1, 1, 2)))
    assert [case.up_to_date for case in other.cases] == [False] * 3


def test_a_label_corrected_by_hand_is_named_where_it_is_made_again(masks: list[Path], tmp_path: Path) -> None:
    folders, soft, maps = rater_folders(tmp_path, ["sub-01", "sub-02"]), tmp_path / "soft", tmp_path / "maps"
    quiet(folders, soft, label_maps=maps)
    for file in (soft / "sub-01_0001.nii.gz", maps / "sub-02.nii.gz"):
        save_nifti(file, values(file)[::-1], AFFINE)
    again = quiet(folders, soft, label_maps=maps)
    told = "changed since it was made, now made again"
    assert [line for line in again.warnings if told in line] == [
        f"{told}: sub-01_0001.nii.gz: 1 case (sub-01)",
        f"{told}: ../maps/sub-02.nii.gz: 1 case (sub-02)",
    ]
    kept = quiet(folders, soft, label_maps=maps)
    assert all(case.up_to_date for case in kept.cases)
    assert not [line for line in kept.warnings if told in line]
    for expected in ([], [f"{told}: soft.nii.gz"]):
        assert [line for line in quiet(masks, tmp_path / "soft.nii.gz").warnings if told in line] == expected
        save_nifti(tmp_path / "soft.nii.gz", RATERS[0].astype(np.float32), AFFINE)


def test_a_case_that_fails_keeps_what_was_changed_since(tmp_path: Path) -> None:
    folders, soft = rater_folders(tmp_path, ["sub-01", "sub-02"]), tmp_path / "soft"
    quiet(folders, soft)
    corrected = soft / "sub-01_0001.nii.gz"
    save_nifti(corrected, RATERS[1].astype(np.float32), AFFINE)
    before = corrected.read_bytes()
    for case_id in ("sub-01", "sub-02"):
        (folders[0] / f"{case_id}.nii.gz").write_bytes(b"broken")
    assert len(quiet(folders, soft).failures) == 2
    assert corrected.read_bytes() == before
    assert not list(soft.glob("sub-02*"))
    rater_folders(tmp_path, ["sub-01", "sub-02"])
    report = quiet(folders, soft)
    assert not report.failures
    assert "now made again: sub-01_0001.nii.gz: 1 case (sub-01)" in report.as_text()


def test_a_killed_call_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between a soft label and its record: the file is known as ours, and made again."""
    folders, soft = rater_folders(tmp_path, ["sub-01", "sub-02"]), tmp_path / "soft"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nnunet_softseg.labels.raters.case.finish", killed)
        with pytest.raises(KeyboardInterrupt):
            quiet(folders, soft)
    assert (soft / "sub-01_0001.nii.gz").exists()
    report = quiet(folders, soft)
    assert [case.up_to_date for case in report.cases] == [False, False]
    assert not report.failures


def test_files_of_others_are_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders, soft = rater_folders(tmp_path, ["sub-01"]), tmp_path / "soft"
    save_nifti(soft / "sub-01_0001.nii.gz", RATERS[0].astype(np.float32), AFFINE)
    before = files_of(soft)
    assert "sub-01_0001.nii.gz: expected no file" in refusal(capsys, "-i", *folders, "-o", soft)
    assert files_of(soft) == before
    assert not quiet(folders, soft, overwrite=True).failures
    assert not quiet(folders, soft, FusionSettings("staple")).failures


@pytest.mark.parametrize(
    "content",
    [
        '{"Sources": ["bids::sub-01"]}',
        '{"made_by": {"name": "nnunet-softseg", "command": "other"}, "outputs": {"soft.nii.gz": null}}',
        "[]",
        "no JSON",
    ],
)
def test_a_sidecar_of_others_is_not_replaced(content: str, masks: list[Path], tmp_path: Path) -> None:
    (tmp_path / "soft.json").write_text(content)
    with pytest.raises(UserError, match=r"soft.json: expected no file, or one of an earlier call"):
        quiet(masks, tmp_path / "soft.nii.gz")
    assert (tmp_path / "soft.json").read_text() == content
    assert not (tmp_path / "soft.nii.gz").exists()


def test_a_table_of_others_is_not_replaced(tmp_path: Path) -> None:
    folders, soft = rater_folders(tmp_path, ["sub-01"]), tmp_path / "soft"
    soft.mkdir()
    (soft / "agreement.csv").write_text("mine")
    with pytest.raises(UserError, match=r"agreement.csv: expected no file, or one of an earlier call"):
        quiet(folders, soft)
    assert files_of(soft).keys() == {"agreement.csv"}


def test_label_maps_of_others_are_not_replaced(tmp_path: Path) -> None:
    folders, soft, maps = rater_folders(tmp_path, ["sub-01"]), tmp_path / "soft", tmp_path / "labelsTr"
    save_nifti(maps / "sub-01.nii.gz", RATERS[0], AFFINE)
    with pytest.raises(UserError, match=r"sub-01.nii.gz: expected no file, or one of an earlier call"):
        quiet(folders, soft, label_maps=maps)
    assert not soft.exists()
    quiet(folders, soft, label_maps=maps, overwrite=True)
    quiet(folders, soft, FusionSettings("staple"))
    quiet(folders, soft, label_maps=maps)  # still ours
    fused = values(soft / "sub-01_0001.nii.gz")
    np.testing.assert_array_equal(values(maps / "sub-01.nii.gz"), fused > 0.5)


# Oddities worth a word


def test_what_is_odd_is_said(tmp_path: Path) -> None:
    folders = rater_folders(tmp_path, ["sub-01", "sub-02"], (*RATERS[:2], RATERS[0]))
    save_nifti(folders[1] / "sub-01.nii.gz", np.zeros(SHAPE, np.uint8), AFFINE)
    (folders[1] / "sub-02.nii.gz").unlink()
    (folders[2] / "sub-02.nii.gz").unlink()
    save_nifti(folders[0] / "sub-02.nii.gz", 2 * RATERS[0] + block((0, 1), (0, 1), (0, 1)), AFFINE)
    text = quiet(folders, tmp_path / "soft", FusionSettings("staple")).as_text()
    assert "rater2 drew nothing, label 1, others did: 1 case (sub-01)" in text
    assert (
        "rater1 and rater3 are identical, label 1: two raters, or one file copied?: 1 case (sub-01)" in text
    )
    assert "only one rater, label 1: the soft label is that file" in text
    assert "labels that are not fused: 2 (see --labels): 1 case (sub-02)" in text


def test_staple_of_two_raters_comes_with_a_warning(masks: list[Path], tmp_path: Path) -> None:
    report = quiet(masks[:2], tmp_path / "soft.nii.gz", FusionSettings("staple"))
    assert any("STAPLE of two raters cannot tell who is right" in warning for warning in report.warnings)


def test_a_rater_who_contradicts_the_others_is_named(masks: list[Path], tmp_path: Path) -> None:
    """Somebody painted the background: in the same surroundings, all that the others left free."""
    near = neighbourhood([RATERS[0] > 0], (0.5, 1.0, 3.0), 3.0)
    save_nifti(masks[2], (near & (RATERS[0] == 0)).astype(np.uint8), AFFINE)
    report = quiet(masks, tmp_path / "soft.nii.gz", FusionSettings("staple"))
    named = [warning for warning in report.warnings if "worse than chance" in warning]
    assert named == ["STAPLE finds rater3.nii.gz worse than chance: look at the masks, or use --method mean"]


def test_nobody_drew_anything(masks: list[Path], tmp_path: Path) -> None:
    for file in masks:
        save_nifti(file, np.zeros(SHAPE, np.uint8), AFFINE)
    for method in ("mean", "staple"):
        report = quiet(masks, tmp_path / f"{method}.nii.gz", FusionSettings(method))
        assert not values(tmp_path / f"{method}.nii.gz").any()
        assert "nobody drew anything" in report.warnings
        assert "mean pairwise Dice (> 0.5) -, Fleiss' kappa -" in report.as_text()


# Refusals


def move_affine(masks: list[Path]) -> None:
    affine = AFFINE.copy()
    affine[1, 3] += 0.5
    save_nifti(masks[1], RATERS[1], affine)


def soft_disc(scale: float) -> Array:
    return scale * np.choose(RATERS[0] * (1 + np.arange(SHAPE[2]) % 3), [0, 0.2, 0.6, 1]).astype(np.float32)


BAD_FILES: dict[str, tuple[Callable[[list[Path]], object], list[str]]] = {
    "shape": (
        lambda masks: save_nifti(masks[1], RATERS[1][..., 1:], AFFINE),
        ["rater2.nii.gz: shape differs from that of", "rater1.nii.gz", "(9, 8, 7), found (9, 8, 6)"],
    ),
    "affine": (move_affine, ["rater2.nii.gz: affine differs from that of", "rater1.nii.gz by 0.5 (row 1"]),
    "NaN": (
        lambda masks: save_nifti(masks[2], np.where(RATERS[2], np.nan, 0).astype(np.float32), AFFINE),
        ["rater3.nii.gz: NaN or infinite values", "64 voxels"],
    ),
    "0-255": (
        lambda masks: save_nifti(masks[0], 255 * RATERS[0], AFFINE),
        ["rater1.nii.gz: values outside [0, 1]", "found whole numbers (0, 255)", "divide it by 255"],
    ),
    "label map": (
        lambda masks: save_nifti(masks[0], RATERS[0] + RATERS[1], AFFINE),
        [
            "rater1.nii.gz: values outside [0, 1]",
            "numbers (0, 1, 2)",
            "choose a label of it with --label",
        ],
    ),
    "negative": (
        lambda masks: save_nifti(masks[0], -0.2 * RATERS[0].astype(np.float32), AFFINE),
        ["rater1.nii.gz: values outside [0, 1]", "found [-0.2, "],
    ),
    "4-D": (
        lambda masks: save_nifti(masks[1], np.stack([RATERS[1]] * 2, axis=-1), AFFINE),
        ["rater2.nii.gz: not a 3-D image", "(9, 8, 7, 2)"],
    ),
    "missing": (lambda masks: masks[1].unlink(), ["rater2.nii.gz: expected a file or folder, found nothing"]),
    "no image": (
        lambda masks: masks[1].write_bytes(b"not an image"),
        ["rater2.nii.gz: corrupt or truncated gzip"],
    ),
    "not numbers": (
        lambda masks: nib.save(
            nib.Nifti1Image(np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]), AFFINE), masks[1]
        ),
        ["rater2.nii.gz: voxels are not real numbers"],
    ),
    "same file": (lambda masks: (masks[2].unlink(), os.link(masks[0], masks[2])), ["is given twice"]),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_bad_files_are_refused_in_one_line(
    what: str, masks: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, expected = BAD_FILES[what]
    spoil(masks)
    output = tmp_path / "out" / "soft.nii.gz"
    line = refusal(capsys, "-i", *masks, "-o", output)
    for part in expected:
        assert part in line
    assert not output.parent.exists()


def test_a_picture_beside_an_image_is_not_the_image(tmp_path: Path) -> None:
    folders, images = rater_folders(tmp_path, ["sub-01"]), tmp_path / "images"
    save_nifti(images / "sub-01_0000.nii.gz", RATERS[0], AFFINE)
    (images / "sub-01_0000.png").write_bytes(b"a preview")
    assert not quiet(folders, tmp_path / "soft", images=images).failures


def test_an_image_of_several_volumes_is_no_file_of_labels(masks: list[Path], tmp_path: Path) -> None:
    save_nifti(tmp_path / "image.nii.gz", np.stack([RATERS[1]] * 2, axis=-1), AFFINE)
    with pytest.raises(UserError, match=r"image.nii.gz: not a 3-D image: .*take each volume, or their mean"):
        quiet(masks, tmp_path / "soft.nii.gz", images=tmp_path / "image.nii.gz")


BAD_ARGUMENTS: dict[str, tuple[list[str], str]] = {
    "one rater": (["-i", "rater1.nii.gz"], "-i: expected at least two raters, found a list of 1"),
    "too few weights": (["--weights", "1", "2"], "--weights: expected 3 numbers, one per rater, found 2"),
    "negative weight": (["--weights", "1", "2", "-1"], "--weights: expected numbers of 0 or more"),
    "all weights 0": (["--weights", "0", "0", "0"], "at least one above 0, found 0, 0, 0"),
    "infinite weight": (["--weights", "1", "inf", "1"], "--weights: expected numbers of 0 or more"),
    "NaN weight": (["--weights", "1", "nan", "1"], "--weights: expected numbers of 0 or more"),
    "weights and STAPLE": (
        ["--weights", "1", "1", "1", "--method", "staple"],
        "--weights: expected none with STAPLE",
    ),
    "background": (["--label", "0"], "--labels: expected different values from 1 to 9999, found 0"),
    "two labels, one file": (["--labels", "1", "2"], "--labels: expected one label, as -o is one file"),
    "margin": (["--margin-mm", "0"], "--margin-mm: expected a length above 0 mm, found 0"),
    "no ending": (["-o", "soft"], "-o: expected a file that ends in .nii.gz or .nii"),
    "onto an input": (["-o", "rater2.nii.gz"], "-o: expected a new file, found the input"),
    "files and folders": (["-i", "rater1.nii.gz", "."], "-i: expected files only, or folders only"),
    "same path": (["-i", "rater1.nii.gz", "./rater1.nii.gz"], "is given twice"),
    "label maps of files": (["--label-maps", "labelsTr"], "--label-maps: expected folders as input"),
    "images of files": (["--images", "."], "--images: expected a file, as -i are files, found a folder"),
    "no image": (["--images", "none.nii.gz"], "--images: expected a file, as -i are files, found none"),
}


@pytest.mark.parametrize("what", BAD_ARGUMENTS)
def test_bad_arguments_are_refused_in_one_line(
    what: str,
    masks: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = files_of(tmp_path)
    arguments, expected = BAD_ARGUMENTS[what]
    usual = ["-i", *(file.name for file in masks), "-o", "soft.nii.gz"]
    assert expected in refusal(capsys, *usual, *arguments)
    assert files_of(tmp_path) == before


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "nothing in common": (
        lambda root: (root / "rater2/sub-01.nii.gz").rename(root / "rater2/sub-1.nii.gz"),
        [],
        "no case in two folders, label 1: expected the same case ids in all folders, found: rater1 has "
        "sub-01; rater2 has sub-1",
    ),
    "empty folder": (
        lambda root: (root / "rater2/sub-01.nii.gz").rename(root / "rater2/sub-01.mha"),
        [],
        "rater2: expected <case>.nii.gz or <case>_<label, 4 digits>.nii.gz, found 0 NIfTI files and 1 others "
        "(sub-01.mha)",
    ),
    "image names": (
        lambda root: (root / "rater2/sub-01.nii.gz").rename(root / "rater2/sub-01_0000.nii.gz"),
        [],
        "rater2/sub-01_0000.nii.gz: expected a map <case>.nii.gz",
    ),
    "ambiguous": (
        lambda root: shutil.copy(root / "rater2/sub-01.nii.gz", root / "rater2/sub-01_0001.nii.gz"),
        [],
        "rater2/sub-01_0001.nii.gz: expected one file per rater, case and label, found sub-01.nii.gz, too",
    ),
    "0-255": (
        lambda root: save_nifti(root / "rater1/sub-01.nii.gz", 255 * RATERS[0], AFFINE),
        [],
        "rater1/sub-01.nii.gz: label 1 is not in it: expected values 0 and 1, found whole numbers (0, 255): "
        "divide it by 255",
    ),
    "a value of one rater": (
        lambda root: save_nifti(root / "rater1/sub-01.nii.gz", 2 * RATERS[0], AFFINE),
        [],
        "rater1/sub-01.nii.gz: label 1 is not in it: expected values 0 and 1, found whole numbers (0, 2): "
        "divide it by 2",
    ),
    "percent": (
        lambda root: save_nifti(root / "rater1/sub-01.nii.gz", soft_disc(100), AFFINE),
        [],
        "rater1/sub-01.nii.gz: values outside [0, 1]: expected [0, 1], found whole numbers (0, 20, 60, 100): "
        "divide it by 100",
    ),
    "fractions of several labels": (
        lambda root: save_nifti(root / "rater2/sub-01.nii.gz", soft_disc(1), AFFINE),
        ["--labels", "1", "2"],
        "rater2/sub-01.nii.gz: holds fractions, of which label is not known: expected a label map of whole "
        "numbers, found [0, 1]: write one file per label, <case>_<label, 4 digits>.nii.gz",
    ),
    "grid": (
        lambda root: save_nifti(root / "rater2/sub-01.nii.gz", RATERS[1][1:], AFFINE),
        [],
        "rater2/sub-01.nii.gz: shape differs from that of rater1/sub-01.nii.gz: expected (x, y, z) = "
        "(9, 8, 7), found (8, 8, 7)",
    ),
    "into an input": (lambda _: None, ["-o", "rater1"], "-o: expected a folder outside of all inputs"),
    "inside an input": (lambda _: None, ["-o", "rater1/soft"], "-o: expected a folder outside of all inputs"),
    "label maps into an input": (
        lambda _: None,
        ["--label-maps", "rater2"],
        "--label-maps: expected a folder outside of all inputs",
    ),
    "label maps onto soft labels": (
        lambda _: None,
        ["--label-maps", "soft"],
        "--label-maps: expected another folder than -o",
    ),
    "output is a file": (
        lambda root: (root / "soft").touch(),
        [],
        "-o: expected a folder, as -i are folders",
    ),
    "no images": (
        lambda _: None,
        ["--images", "none"],
        "--images: expected a folder, as -i are folders, found none",
    ),
    "empty images": (
        lambda root: (root / "images").mkdir(),
        ["--images", "images"],
        "images: expected <case>_0000.nii.gz, found 0 NIfTI files and 0 others: give imagesTr",
    ),
    "images without channels": (
        lambda root: save_nifti(root / "images/sub-01.nii.gz", RATERS[0], AFFINE),
        ["--images", "images"],
        "--images: expected <case>_0000.nii.gz in images, found none",
    ),
    "two images of a case": (
        lambda root: [
            save_nifti(root / f"images/sub-01_0000.{e}", RATERS[0], AFFINE) for e in ("nii", "nii.gz")
        ],
        ["--images", "images"],
        "--images: expected one file per case and channel, found sub-01_0000.nii and sub-01_0000.nii.gz in",
    ),
    "other images": (
        lambda root: save_nifti(root / "images/case-7_0000.nii.gz", RATERS[0], AFFINE),
        ["--images", "images"],
        "no case has both an image and a rater: expected the same case ids, found raters' sub-01 and "
        "images' case-7",
    ),
    "image on another grid": (
        lambda root: save_nifti(root / "images/sub-01_0000.nii.gz", RATERS[0][1:], AFFINE),
        ["--images", "images"],
        "rater1/sub-01.nii.gz: shape differs from that of images/sub-01_0000.nii.gz: expected (x, y, z) = "
        "(8, 8, 7)",
    ),
    "same folder": (lambda _: None, ["-i", "rater1", "rater2", "rater1/../rater1"], "is given twice"),
    "all weight on the absent": (
        lambda root: (
            save_nifti(root / "rater3/sub-02.nii.gz", RATERS[0], AFFINE),
            save_nifti(root / "rater1/sub-01.nii.gz", RATERS[0], AFFINE),
        ),
        ["-i", "rater1", "rater2", "rater3", "--weights", "0", "0", "1"],
        "sub-01, label 1: expected a rater with a weight above 0, found only rater1, rater2",
    ),
    "a case named as our record": (
        lambda root: [
            (root / f"rater{n}/sub-01.nii.gz").rename(root / f"rater{n}/fuse.nii.gz") for n in (1, 2)
        ],
        [],
        "case fuse: expected another name",
    ),
}


@pytest.mark.parametrize("what", BAD_FOLDERS)
def test_bad_folders_are_refused_in_one_line(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rater_folders(tmp_path, ["sub-01"], RATERS[:2])
    spoil, arguments, expected = BAD_FOLDERS[what]
    spoil(tmp_path)
    before = files_of(tmp_path)
    usual = ["fuse", "-i", "rater1", "rater2", "-o", "soft", "-np", "1"]
    assert cli.main([*usual, *arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert expected in errors[0]
    if what != "all weight on the absent":  # there, another case is fine
        assert len(errors) == 1
        assert files_of(tmp_path) == before


def test_hostile_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case_ids = ["-i [x] *", "ä\nb\x1b[31m", "a,b\"c'", "%s {0}"]
    folders = rater_folders(tmp_path / "da\nta", case_ids)
    assert cli.main(["fuse", "-i", *map(str, folders), "-o", str(tmp_path / "soft"), "-np", "1"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    with (tmp_path / "soft" / "agreement.csv").open(newline="", encoding="utf-8") as stream:
        assert {row["case_id"] for row in csv.DictReader(stream)} == set(case_ids)
    for case_id in case_ids:
        assert (tmp_path / "soft" / f"{case_id}_0001.nii.gz").is_file()
    save_nifti(folders[0] / f"{case_ids[1]}.nii.gz", RATERS[0][1:], AFFINE)
    line = refusal(
        capsys, "-i", *(folder / f"{case_ids[1]}.nii.gz" for folder in folders), "-o", tmp_path / "s.nii.gz"
    )
    assert "\x1b" not in line


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_names_that_are_not_unicode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = rater_folders(tmp_path, ["sub-01"])
    name = os.fsdecode(b"sub-\xff.nii.gz")
    for folder in folders:
        shutil.copy(folder / "sub-01.nii.gz", folder / name)
    assert cli.main(["fuse", "-i", *map(str, folders), "-o", str(tmp_path / "soft"), "-np", "1"]) == 0
    assert "2 fused" in capsys.readouterr().out
    assert (tmp_path / "soft" / os.fsdecode(b"sub-\xff_0001.nii.gz")).is_file()


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a/r1.nii.gz", "a/r2.nii.gz"], ["r1.nii.gz", "r2.nii.gz"]),
        (["r1/labels/x.nii", "r2/labels/x.nii"], ["r1", "r2"]),
        (["r1/x.nii", "r2/x.nii", "r2/y.nii"], ["r1/x.nii", "r2/x.nii", "r2/y.nii"]),
    ],
)
def test_raters_are_named_by_what_tells_them_apart(paths: list[str], expected: list[str]) -> None:
    assert rater_names([Path(path) for path in paths]) == expected


def test_real_masks(real_data: Path, tmp_path: Path) -> None:
    """Two contrasts' masks of one person that share a grid serve as two raters."""
    folder = real_data / "bids" / "derivatives" / "labels" / "sub-sct01" / "anat"
    files = sorted(folder.glob("*MTS_seg-manual.nii.gz"))
    quiet(files, tmp_path / "soft.nii.gz")
    first, second = (nib.load(file) for file in files)
    both = np.asarray(first.dataobj).astype(float) + np.asarray(second.dataobj)
    soft = nib.load(tmp_path / "soft.nii.gz")
    np.testing.assert_array_equal(np.asarray(soft.dataobj), (both / 2).astype(np.float32))
    np.testing.assert_array_equal(soft.affine, first.affine)
