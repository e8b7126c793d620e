"""The law of the output stage: soft labels in place of the raw output come out as they went in.

For each kind of label: volume within 1 % per case and label (one voxel where it has fewer than 20), peak
within 0.02, no component lost. The labels are fractions of voxels, from geometry, or means of raters.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from nnunet_softseg.inference.case_record import PredictionOptions
from nnunet_softseg.inference.export import postprocess
from nnunet_softseg.network.soft_map import robust_peak, soft_map_of
from nnunet_softseg.preprocessing.image_grid import on_image_grid, on_network_grid, whole_box
from nnunet_softseg.preprocessing.output_scale import (
    OutputScale,
    choose_output_scale,
    keep_output_scales,
    label_peaks,
    output_scales,
)
from nnunet_softseg.preprocessing.resampling import new_shape
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings

DEFAULT = SoftSegSettings()
Cases = dict[str, np.ndarray]
"""Case -> soft labels (label, *space)."""


def learned(cases: Cases, made_with: SoftSegSettings = DEFAULT) -> tuple[list[str], dict[str, Any]]:
    """Names of the labels and plans of a model that was trained on them."""
    names = [f"label{at}" for at in range(len(next(iter(cases.values()))))]
    plans: dict[str, Any] = {PLANS_KEY: {"settings": {}, "si_axis": None}, "configurations": {}}
    peaks = {
        name: {case: label_peaks(labels[at].astype(np.float16)) for case, labels in cases.items()}
        for at, name in enumerate(names)
    }
    keep_output_scales(plans, {name: choose_output_scale(peaks[name], made_with) for name in names})
    return names, plans


def written(labels: np.ndarray, names: Sequence[str], plans: dict[str, Any]) -> np.ndarray:
    """What the output stage makes of soft labels, as of the raw output of a perfect network."""
    scales = output_scales(plans, names)
    running = torch.tensor([1.0 if scale.is_fixed else scale.height for scale in scales])
    soft = soft_map_of(torch.from_numpy(labels.astype(np.float32))[None], running, scales, 0.5)[0]
    return postprocess(soft.numpy(), names, plans, PredictionOptions())[0]


def obey(cases: Cases) -> list[str]:
    """Hold the law for every case and label; the output scale of each label."""
    names, plans = learned(cases)
    for case, labels in cases.items():
        for before, after in zip(labels, written(labels, names, plans), strict=True):
            volume, off = before.sum(dtype=np.float64), abs(float(after.sum(dtype=np.float64) - before.sum()))
            assert off <= max(0.01 * volume, volume < 20), (case, volume, off)
            assert abs(float(after.max() - before.max())) <= 0.02, case
            components, count = ndimage.label(before > 0, np.ones((3,) * before.ndim))
            every = np.arange(1, count + 1)
            meant = ndimage.maximum(before, components, every) > 0.02
            assert (ndimage.maximum(after, components, every) > 0)[meant].all(), case
    return [scale.output_scale for scale in output_scales(plans, names)]


# Labels from geometry: voxels of a fine grid, counted


def fractions(inside: Callable[..., np.ndarray], shape: Sequence[int], fine: int = 4) -> np.ndarray:
    """The share of each voxel that lies inside, by `fine` samples along every axis."""
    axes = [(np.arange(size * fine) + 0.5) / fine for size in shape]
    found = inside(*np.meshgrid(*axes, indexing="ij", sparse=True)).astype(np.float32)
    split = [part for size in shape for part in (size, fine)]
    return found.reshape(split).mean(axis=tuple(range(1, 2 * len(shape), 2)))


def ball(centre: Sequence[float], radius: float, voxel_mm: Sequence[float] = (1, 1, 1)) -> Callable[..., Any]:
    return lambda *at: (
        sum(((x - c) * mm) ** 2 for x, c, mm in zip(at, centre, voxel_mm, strict=False)) <= radius**2
    )


def tube(row: float, column: float, radius: float) -> Callable[..., Any]:
    return lambda z, y, x: ((y - row - 0.05 * z) ** 2 + (x - column) ** 2 <= radius**2) & (z > -1)


def raters(marked: int, centre: Sequence[float], radius: float, shift: float) -> np.ndarray:
    """The mean of four: so many have drawn a ball, each a little elsewhere."""
    drawn = [fractions(ball(np.add(centre, shift * at), radius), (9, 16, 16)) > 0.5 for at in range(marked)]
    return np.sum(drawn, axis=0, dtype=np.float32)[None] / 4


place = st.floats(7.2, 8.8)
few = settings(max_examples=6, deadline=None)


@given(st.lists(st.tuples(place, place, st.floats(3, 6)), min_size=2, max_size=3))
@few
def test_partial_volume_of_one_structure(cords: list[tuple[float, float, float]]) -> None:
    obey({f"case {at}": fractions(tube(*cord), (12, 16, 16))[None] for at, cord in enumerate(cords)})


def test_cords_of_about_one_size_keep_the_scale_per_case() -> None:
    cords = {f"{radius}": fractions(tube(10, 10, radius), (12, 20, 20))[None] for radius in (5.5, 6, 6.5)}
    assert obey(cords) == ["case"]


@given(st.floats(3, 5), st.floats(0, 0.5))
@few
def test_raters_who_disagree_on_presence(radius: float, shift: float) -> None:
    nodules = {f"{marked} of 4": raters(marked, (4, 8, 8), radius, shift) for marked in (1, 2, 3, 4)}
    assert obey(nodules) == ["fixed"]


@given(place, place, st.floats(4, 6), st.floats(1.2, 3))
@few
def test_nested(row: float, column: float, outer: float, inner: float) -> None:
    cord = fractions(tube(row, column, outer), (8, 16, 16))
    obey({name: np.stack([cord, fractions(tube(row, column, inner * by), (8, 16, 16))])
          for name, by in (("a", 1), ("b", 1.1))})  # fmt: skip


@given(st.lists(st.tuples(st.floats(2, 5), st.floats(3, 12), st.floats(3, 12)), min_size=1, max_size=3))
@few
def test_spheres_of_2_mm_in_thick_slices(centres: list[tuple[float, float, float]]) -> None:
    """In voxels of 5 x 0.9 x 0.9 mm no voxel is half full."""
    lesions = [fractions(ball(centre, 1, (5, 0.9, 0.9)), (7, 15, 15), 8) for centre in centres]
    assert max(lesion.max() for lesion in lesions) < 0.5
    obey({"many": np.max(lesions, axis=0)[None], "one": lesions[0][None]})


@given(place, place)
@few
def test_tubes_of_1_mm(row: float, column: float) -> None:
    obey({"rootlet": fractions(tube(row, column, 0.5), (8, 16, 16), 8)[None]})


def test_fourteen_labels_that_exclude_each_other() -> None:
    def level(at: int, radius: float) -> np.ndarray:
        within = tube(6, 6, radius)
        inside = lambda z, y, x: within(z, y, x) & (z > 2.3 * at + 0.4) & (z <= 2.3 * (at + 1) + 0.4)  # noqa: E731
        return fractions(inside, (34, 14, 14))

    obey({f"{radius}": np.stack([level(at, radius) for at in range(14)]) for radius in (3.5, 4.1)})


@given(place, place, st.floats(2, 6), st.floats(0.4, 0.8))
@few
def test_discs_with_a_ring_in_two_dimensions(row: float, column: float, radius: float, share: float) -> None:
    """A slice, as nnU-Net holds images of two dimensions: (1, y, x)."""
    axon, fibre = (fractions(ball((row, column), r), (16, 16), 8)[None] for r in (share * radius, radius))
    obey({"image": np.stack([axon, fibre])})


# Real labels


def voxels(file: Path) -> np.ndarray:
    return np.asarray(nib.load(file).dataobj)


def nodule(lidc: Path, case: str) -> np.ndarray:
    """The mean of four radiologists."""
    drawn = [voxels(lidc / f"rater{at}" / f"{case}.nii.gz") > 0 for at in (1, 2, 3, 4)]
    return np.mean(drawn, axis=0, dtype=np.float32)


def test_nodules_marked_by_one_to_four_radiologists(larger_real_data: Path) -> None:
    """LIDC-IDRI: median volume error per number of raters within 1 %."""
    lidc = larger_real_data / "lidc"
    listed = json.loads((lidc / "cases.json").read_text())[::7]
    cases = {row["case"]: nodule(lidc, row["case"])[None] for row in listed}
    assert obey(cases) == ["fixed"]
    names, plans = learned(cases)
    for number in (1, 2, 3, 4):
        of_number = [cases[row["case"]] for row in listed if row["raters"] == number]
        errors = [written(label, names, plans).sum() / label.sum() - 1 for label in of_number]
        assert abs(np.median(errors)) <= 0.01


@pytest.mark.parametrize("spacing_mm", [(1.5, 0.7, 0.7), (1, 1, 1)])
def test_nodules_keep_their_volume_through_another_grid(
    larger_real_data: Path, spacing_mm: Sequence[float]
) -> None:
    """Each, not in the median, by the way that they choose: slices of 0.6 to 3 mm, a few voxels."""
    lidc = larger_real_data / "lidc"
    for row in json.loads((lidc / "cases.json").read_text())[::5]:
        label = nodule(lidc, row["case"]).T
        image = nib.load(lidc / "rater1" / f"{row['case']}.nii.gz")
        grid = new_shape(label.shape, image.header.get_zooms()[::-1], spacing_mm)
        target = on_network_grid(label, grid)
        part, _ = on_image_grid(target[None], whole_box(grid), grid, label.shape, ["inverse"])
        off, volume = abs(float(part.sum(dtype=np.float64)) - label.sum()), label.sum()
        assert off <= max(0.01 * volume, volume < 20), (row["case"], volume, off)


def test_hippocampus_averaged_down(larger_real_data: Path) -> None:
    cases = {}
    for file in sorted((larger_real_data / "hippocampus" / "labels").glob("*.nii.gz"))[::10]:
        values = voxels(file)
        even = values[tuple(slice(size // 2 * 2) for size in values.shape)]
        halves = [part for size in even.shape for part in (size // 2, 2)]
        cases[file.name] = np.stack(
            [(even == at).reshape(halves).mean((1, 3, 5), dtype=np.float32) for at in (1, 2)]
        )
    obey(cases)


def test_grey_matter_in_cord(larger_real_data: Path) -> None:
    folder = larger_real_data / "gm" / "derivatives" / "labels"
    cases = {}
    for cord in sorted(folder.rglob("*_seg-manual.nii.gz")):
        grey = cord.with_name(cord.name.replace("_seg-manual", "_gmseg-manual"))
        both = np.stack([voxels(cord), voxels(grey)]).astype(np.float32)
        row, column = (
            slice(at.start - 4, at.stop + 4) for at in ndimage.find_objects(np.uint8(both[0] > 0))[0][:2]
        )
        both = both[:, row, column]
        cases[cord.name] = ndimage.uniform_filter(both, (0, 2, 2, 0))[:, ::2, ::2]
    obey(cases)


# What is chosen, and why


def balls(*heights: float) -> Cases:
    return {
        f"case{at}": height * fractions(ball((6, 6, 6), 4), (12, 12, 12))[None]
        for at, height in enumerate(heights)
    }


def chosen(cases: Cases, made_with: SoftSegSettings = DEFAULT) -> OutputScale:
    names, plans = learned(cases, made_with)
    return output_scales(plans, names)[0]


def test_a_label_low_in_one_case_is_fixed_and_the_reason_names_it() -> None:
    found = chosen(balls(1.0, 0.3, 1.0))
    assert found.output_scale == "fixed"
    assert found.why == "reaches 0.30 in case1, 1.00 in case0; weakest component 0.30 in case1"
    assert 0.14 < found.core_threshold < 0.16  # half of the weakest component
    assert chosen(balls(1.0, 1.0)).output_scale == "case"
    assert chosen(balls(1.0, 1.0)).core_threshold == 0.5


def test_without_a_fixed_patch_one_scale_serves_all_cases_unless_the_settings_say_otherwise() -> None:
    peaks = {case: label_peaks(labels[0]) for case, labels in balls(1.0, 1.0).items()}
    found = choose_output_scale(peaks, DEFAULT, fixed_patch=False)
    assert (found.output_scale, found.why) == ("fixed", "no fixed patch")
    forced = SoftSegSettings(output_scale="case")
    assert choose_output_scale(peaks, forced, fixed_patch=False).output_scale == "case"


def test_the_settings_overrule() -> None:
    forced = SoftSegSettings(output_scale="case", core_threshold=0.4, support_threshold=0.03)
    found = chosen(balls(1.0, 0.3), forced)
    assert (found.output_scale, found.core_threshold, found.support_threshold) == ("case", 0.4, 0.03)
    assert found.why.startswith("by the settings")


def test_without_any_label_and_before_this_version_the_scale_is_per_case() -> None:
    assert chosen({"empty": np.zeros((1, 4, 5, 6), np.float32)}).output_scale == "case"
    earlier = {PLANS_KEY: {"settings": {"core_threshold": 0.45, "support_threshold": 0.05}}}
    assert output_scales(earlier, ["cord"]) == [OutputScale("case", 1.0, 0.45, 0.05)]


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("faint", [0, 0.2])
def test_a_few_annotated_slices_leave_the_clean_up_that_of_the_whole_label(first: int, faint: float) -> None:
    """A slice may hold no more than the tip of a ball. A faint ball beside it is known as a whole."""
    shape = (24, 24, 18)
    label = fractions(ball((12.2, 15, 9), 7), shape) + faint * fractions(ball((12.2, 2.5, 9), 1.5), shape)
    sliced = label.copy()
    sliced[np.arange(24) % 4 != first, 6:] = np.nan
    whole, known = (choose_output_scale({"case": label_peaks(each)}, DEFAULT) for each in (label, sliced))
    assert whole.core_threshold == pytest.approx(0.1 if faint else 0.5)
    assert known.core_threshold == pytest.approx(whole.core_threshold)
    assert known.support_threshold == whole.support_threshold == 0.05


def test_the_robust_peak_is_that_of_the_network() -> None:
    label = fractions(ball((5, 5, 5), 3.3), (10, 10, 10))
    found = label_peaks(label)
    assert found is not None
    assert found.robust_peak == pytest.approx(
        float(robust_peak(torch.from_numpy(label)[None, None])), rel=1e-5
    )
