"""Changes of contrast: the label stays to the last bit, the arithmetic is that of geometry and of SciPy."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.inversion import InvertImageTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy.ndimage import correlate
from scipy.stats import spearmanr
from tiny_dataset import make_ready_to_train, make_tiny_dataset

from nnunet_softseg.errors import UserError
from nnunet_softseg.settings import PLANS_KEY
from nnunet_softseg.training.augmentation.contrast import (
    ContrastAugmentationSettings,
    FunctionRemap,
    HistogramChange,
    RandomConvolution,
    Redistribution,
    ThickSlices,
    add_contrast_transforms,
    contrast_transforms,
    convolve,
    mix,
    parts,
    redistribute,
    remap,
    restore_statistics,
    thick_slices,
)
from nnunet_softseg.training.augmentation.paper import Movement, PaperAugmentation, paper_transforms
from nnunet_softseg.training.dataloading import soft_transforms
from nnunet_softseg.training.variants import nnUNetTrainerSoftSegContrastAug

SETTINGS = ContrastAugmentationSettings()
ALWAYS = dataclasses.replace(
    SETTINGS,
    **{field.name: 1.0 for field in dataclasses.fields(SETTINGS) if field.name.startswith("p_")},
)
PROBABILITIES = {
    "InvertImageTransform": "p_inversion",
    "RandomConvolution": "p_convolution",
    "FunctionRemap, monotone": "p_monotone",
    "FunctionRemap, non-monotone": "p_non_monotone",
    "HistogramChange": "p_histogram",
    "Redistribution": "p_redistribution",
    "ThickSlices": "p_thick_slices",
}


def named(settings: ContrastAugmentationSettings) -> dict[str, RandomTransform]:
    names = {}
    for random in contrast_transforms(settings):
        name = type(random.transform).__name__
        if name == "FunctionRemap":
            name += ", monotone" if random.transform.monotone else ", non-monotone"
        names[name] = random
    return names


def soft_ball(size: int = 20, radius: float = 5.0) -> torch.Tensor:
    """A ball, (1, size, size, size), whose edge is two voxels wide."""
    axes = torch.meshgrid(*[torch.arange(size) - (size - 1) / 2] * 3, indexing="ij")
    return torch.clamp((radius - torch.sqrt(sum(axis**2 for axis in axes))) / 2 + 0.5, 0, 1)[None]


def noisy_image(label: torch.Tensor, seed: int = 0, channels: int = 1) -> torch.Tensor:
    """A z-scored image, (channels, *space), that is brighter inside of the label."""
    random = torch.Generator().manual_seed(seed)
    image = 2 * label.sum(0) + 0.5 * torch.randn(channels, *label.shape[1:], generator=random)
    return (image - image.mean()) / image.std()


def seed_both(seed: int) -> None:
    np.random.seed(seed)
    torch.manual_seed(seed)


def changed(transform: BasicTransform, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return transform(image=image.clone(), regression_target=label)["image"]


# The label


@pytest.mark.parametrize("name", PROBABILITIES)
def test_the_label_is_the_same_to_the_last_bit_behind_each_transform(name: str) -> None:
    label = torch.cat([soft_ball(), 0.5 * soft_ball(radius=3.0)])
    image = noisy_image(label, channels=2)
    stacked = torch.cat([image, label])  # as it comes from the loader: image and label share their memory
    framed = soft_transforms(named(ALWAYS)[name].transform, num_labels=2, deep_supervision_scales=None)
    for seed in range(5):
        seed_both(seed)
        out = framed(image=stacked.clone(), segmentation=None)
        assert torch.equal(out["segmentation"], label)
        assert out["segmentation"].dtype == torch.float32
        assert out["image"].shape == image.shape
        assert float((out["image"] - image).abs().mean()) > 1e-3  # something was done


def test_all_of_them_in_nnunets_pipeline_leave_a_constant_label_constant() -> None:
    stock = nnUNetTrainer.get_training_transforms((16, 24, 24), (-0.3, 0.3), None, (0, 1, 2), False)
    framed = soft_transforms(add_contrast_transforms(stock, ALWAYS), 1, None)
    image = noisy_image(torch.zeros(1, 16, 24, 24))
    for seed in range(5):
        seed_both(seed)
        out = framed(image=torch.cat([image, torch.full_like(image, 0.37)]), segmentation=None)
        np.testing.assert_allclose(out["segmentation"][0, 6:10, 9:15, 9:15], 0.37, atol=1e-5)
        assert torch.isfinite(out["image"]).all()


# Every transform


@pytest.mark.parametrize("name", [name for name in PROBABILITIES if name != "ThickSlices"])
def test_a_channel_keeps_its_mean_and_deviation(name: str) -> None:
    label = soft_ball()
    image = 1.7 * noisy_image(label, channels=2) + 0.3
    for seed in range(5):
        seed_both(seed)
        out = changed(named(ALWAYS)[name], image, label)
        for before, after in zip(image, out, strict=True):
            assert float(after.mean()) == pytest.approx(float(before.mean()), abs=1e-4)
            assert float(after.std()) == pytest.approx(float(before.std()), rel=1e-4)


@pytest.mark.parametrize("name", PROBABILITIES)
def test_an_image_without_contrast_stays_as_it_is(name: str) -> None:
    label, image = soft_ball(12, 3.0), torch.full((1, 12, 12, 12), 0.7)
    seed_both(0)
    out = changed(named(ALWAYS)[name], image, label)
    np.testing.assert_allclose(out, image, atol=1e-4)


@pytest.mark.parametrize("name", PROBABILITIES)
def test_each_comes_as_often_as_its_setting_says(name: str) -> None:
    never = dataclasses.replace(SETTINGS, **dict.fromkeys(PROBABILITIES.values(), 0.0))
    only = dataclasses.replace(never, **{PROBABILITIES[name]: 0.25})
    label = soft_ball(8, 2.0)
    image = noisy_image(label)
    seed_both(0)
    times = 400
    done = sum(not torch.equal(changed_by(only, image, label), image) for _ in range(times))
    # Four standard deviations of a binomial count.
    assert done / times == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / times) ** 0.5)


def changed_by(
    settings: ContrastAugmentationSettings, image: torch.Tensor, label: torch.Tensor
) -> torch.Tensor:
    data = {"image": image.clone(), "regression_target": label}
    for transform in contrast_transforms(settings):
        data = transform(**data)
    return data["image"]


def test_the_same_seed_gives_the_same_image_and_another_seed_another() -> None:
    label = soft_ball()
    image = noisy_image(label)
    results = []
    for seed in (1, 1, 2):
        seed_both(seed)
        results.append(changed_by(ALWAYS, image, label))
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2], atol=1e-2)


@pytest.mark.parametrize("name", [name for name in PROBABILITIES if name != "InvertImageTransform"])
def test_each_channel_is_changed_in_its_own_way(name: str) -> None:
    label = soft_ball()
    image = noisy_image(label).repeat(2, 1, 1, 1)
    seed_both(3)
    out = changed(named(ALWAYS)[name], image, label)
    assert not torch.allclose(out[0], out[1], atol=1e-2)


def test_two_dimensional_patches_are_taken_too() -> None:
    label = soft_ball()[:, 10]
    seed_both(0)
    out = changed_by(ALWAYS, noisy_image(label), label)
    assert out.shape == label.shape
    assert torch.isfinite(out).all()


# Statistics


@given(
    gain=st.floats(0.01, 100),
    offset=st.floats(-50, 50),
    sign=st.sampled_from([-1, 1]),
    seed=st.integers(0, 99),
)
def test_restoring_undoes_any_change_of_scale(gain: float, offset: float, sign: int, seed: int) -> None:
    image = torch.randn(6, 7, 8, generator=torch.Generator().manual_seed(seed))
    restored = restore_statistics(sign * gain * image + offset, image)
    expected = image if sign > 0 else 2 * image.mean() - image
    # float32: what 50 +- 0.01 has lost is lost
    np.testing.assert_allclose(restored, expected, atol=1e-4 + 3e-5 * abs(offset) / gain)


def test_the_share_leads_from_the_image_to_what_became_of_it() -> None:
    image = torch.randn(10, 10, 10)
    other = torch.randn(10, 10, 10)
    np.testing.assert_allclose(mix(other, image, 0.0), image, atol=1e-5)
    np.testing.assert_allclose(mix(other, image, 1.0), restore_statistics(other, image), atol=1e-5)
    half = restore_statistics(0.5 * image + 0.5 * restore_statistics(other, image), image)
    np.testing.assert_allclose(mix(other, image, 0.5), half, atol=1e-5)


# Functions of the intensity

percent = st.integers(0, 100).map(lambda number: number / 100)
increasing = st.lists(st.floats(0.05, 1), min_size=3, max_size=6).map(lambda steps: np.cumsum(steps) - 1)


@given(knots=increasing, data=st.data())
def test_a_function_goes_through_its_values_and_is_constant_beyond(
    knots: np.ndarray, data: st.DataObject
) -> None:
    values = np.array(data.draw(st.lists(percent, min_size=len(knots), max_size=len(knots))))
    at_knots = remap(torch.tensor(knots), knots, values)
    # Between two entries of its table a function is straight; PCHIP is at most thrice as steep as a secant.
    slope = 3 * np.max(np.abs(np.diff(values)) / np.diff(knots))
    np.testing.assert_allclose(at_knots, values, atol=slope * (knots[-1] - knots[0]) / 511 + 1e-6)
    beyond = remap(torch.tensor([knots[0] - 5, knots[-1] + 5]), knots, values)
    np.testing.assert_allclose(beyond, values[[0, -1]], atol=1e-6)


@given(knots=increasing, slope=st.floats(-3, 3), offset=st.floats(-3, 3))
def test_values_on_a_line_give_that_line(knots: np.ndarray, slope: float, offset: float) -> None:
    x = torch.linspace(float(knots[0]), float(knots[-1]), 101, dtype=torch.float64)
    np.testing.assert_allclose(remap(x, knots, slope * knots + offset), slope * x + offset, atol=1e-6)


@given(knots=increasing, data=st.data())
def test_rising_values_keep_the_order_of_intensities(knots: np.ndarray, data: st.DataObject) -> None:
    rising = st.lists(percent, min_size=len(knots), max_size=len(knots))
    values = np.sort(np.array(data.draw(rising)))
    y = remap(torch.linspace(-2, 6, 2001, dtype=torch.float64), knots, values)
    assert float(y.diff().min()) >= -1e-9
    assert float(y.min()) >= values[0] - 1e-9
    assert float(y.max()) <= values[-1] + 1e-9


@pytest.mark.parametrize("transform", [FunctionRemap(5, (1.0, 1.0)), HistogramChange(5, (1.0, 1.0))])
def test_monotone_changes_keep_the_order_of_voxels(transform: BasicTransform) -> None:
    image = noisy_image(soft_ball())
    for seed in range(5):
        seed_both(seed)
        out = changed(transform, image, soft_ball())
        inside = (image > torch.quantile(image, 0.01)) & (image < torch.quantile(image, 0.99))
        assert spearmanr(image[inside], out[inside]).statistic > 0.999


def test_a_non_monotone_function_sometimes_reverses_the_order() -> None:
    transform = FunctionRemap(5, (1.0, 1.0), monotone=False)
    image = noisy_image(soft_ball())
    orders = []
    for seed in range(20):
        seed_both(seed)
        orders.append(spearmanr(image.ravel(), changed(transform, image, soft_ball()).ravel()).statistic)
    assert min(orders) < -0.3
    assert max(orders) > 0.3


def test_knots_of_the_range_are_even_and_those_of_the_histogram_hold_equally_many_voxels() -> None:
    image = torch.rand(40, 40, 40, generator=torch.Generator().manual_seed(0)) ** 4
    even = FunctionRemap(5, (1, 1)).place_knots(image)
    np.testing.assert_allclose(np.diff(even), np.diff(even)[0])
    knots = HistogramChange(5, (1, 1)).place_knots(image)
    # The quantile of u**4 at a fraction is that fraction**4; the sample and the spread of knots allow 2 %.
    np.testing.assert_allclose(knots, np.linspace(0.005, 0.995, 5) ** 4, atol=0.02)
    assert np.diff(knots).min() > 0


def test_knots_differ_even_where_most_of_an_image_is_one_value() -> None:
    image = torch.zeros(20, 20, 20)
    image[5:8, 5:8, 5:8] = 4.0
    assert np.diff(HistogramChange(6, (1, 1)).place_knots(image)).min() > 0
    assert np.diff(FunctionRemap(6, (1, 1)).place_knots(image)).min() > 0


# Convolution


def kernel_of(size: int, seed: int) -> torch.Tensor:
    return torch.randn(1, 1, *[size] * 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_one_layer_is_the_correlation_of_scipy(size: int) -> None:
    image, kernel = torch.randn(9, 8, 7), kernel_of(size, 0)
    expected = correlate(image.numpy(), kernel[0, 0].numpy(), mode="nearest") + 0.3
    np.testing.assert_allclose(convolve(image, [(kernel, torch.tensor([0.3]))]), expected, atol=1e-4)


def test_between_two_layers_stands_a_leaky_relu() -> None:
    image, first, second = torch.randn(9, 8, 7), kernel_of(3, 1), kernel_of(3, 2)
    hidden = correlate(image.numpy(), first[0, 0].numpy(), mode="nearest") - 0.2
    hidden = np.where(hidden > 0, hidden, 0.1 * hidden)
    expected = correlate(hidden, second[0, 0].numpy(), mode="nearest") + 0.5
    layers = [(first, torch.tensor([-0.2])), (second, torch.tensor([0.5]))]
    np.testing.assert_allclose(convolve(image, layers), expected, atol=1e-4)


def test_drawn_kernels_are_symmetric_so_that_nothing_is_shifted() -> None:
    transform = RandomConvolution(3, 2, (3,), (1.0, 1.0))
    image = soft_ball()
    mirrored = image.flip(1, 2, 3)  # the same ball
    assert torch.equal(image, mirrored)
    for seed in range(5):
        seed_both(seed)
        out = changed(transform, image, image)
        np.testing.assert_allclose(out, out.flip(1, 2, 3), atol=1e-4)
        assert float((out - image).abs().max()) > 0.01


def test_drawn_weights_keep_the_scale_of_what_they_see() -> None:
    np.random.seed(0)
    layers = [RandomConvolution(1, 1, (3,), (1, 1))._draw_layer(2, 200, 3)[0] for _ in range(5)]
    # 2 x 27 inputs of variance 1 add up to 1.
    assert float(torch.stack(layers).var()) == pytest.approx(1 / 54, rel=0.05)


# Thick slices


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_impulse_spreads_over_its_slice_and_towards_the_next_alone(axis: int) -> None:
    shape = [3, 3, 3]
    shape[axis] = 16
    image = torch.zeros(shape)
    place = [1, 1, 1]
    place[axis] = 5
    image[tuple(place)] = 1.0
    out = thick_slices(image, axis, 4.0)
    # Slices of 4 voxels have their centres at 1.5, 5.5, 9.5, 13.5; the second holds a quarter.
    positions = np.arange(16)
    expected = np.interp(positions, [1.5, 5.5, 9.5, 13.5], [0, 0.25, 0, 0])
    line = out.movedim(axis, 0)[:, 1, 1]
    np.testing.assert_allclose(line, expected, atol=1e-6)
    assert float(out.sum()) == pytest.approx(float(line.sum()))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_does_not_change_across_the_slices_stays(axis: int) -> None:
    image = torch.randn(12, 10, 14).mean(axis, keepdim=True).expand(12, 10, 14).clone()
    np.testing.assert_allclose(thick_slices(image, axis, 4.7), image, atol=1e-6)


@pytest.mark.parametrize("thickness", [1.0, 2.0, 3.3, 50.0])
def test_slices_have_the_mean_of_what_they_cover(thickness: float) -> None:
    image = torch.randn(24, 4, 5)
    out = thick_slices(image, 0, thickness)
    if thickness == 1:
        np.testing.assert_allclose(out, image, atol=1e-6)
    if thickness == 50:
        np.testing.assert_allclose(out, image.mean(0, keepdim=True).expand_as(image), atol=1e-6)
    assert float(out.std()) <= float(image.std()) + 1e-6


def test_all_axes_and_the_whole_range_of_thickness_are_drawn() -> None:
    np.random.seed(0)
    transform = ThickSlices((2.0, 6.0))
    drawn = [transform.draw(torch.zeros(8, 8, 8), None) for _ in range(200)]
    assert {parameters["axis"] for parameters in drawn} == {0, 1, 2}
    thicknesses = [parameters["thickness"] for parameters in drawn]
    assert 2 <= min(thicknesses) < 2.2
    assert 5.8 < max(thicknesses) <= 6


# Redistribution


def test_a_half_voxel_is_changed_by_half() -> None:
    """A label in three steps: outside, half, inside; parts without contrast; brightness moved by s each."""
    label = torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]).reshape(1, 5, 1, 1).repeat(1, 1, 4, 4)
    image = 3 * label[0]
    deviation = float(image.std(correction=0))
    out = redistribute(image, label, gains=[1, 1], shifts=[2, -1])[:, 0, 0]
    moved = (out - image[:, 0, 0]) / deviation
    np.testing.assert_allclose(moved, [-1, -1, 0.5, 2, 2], atol=1e-5)


def test_gains_turn_each_part_about_its_own_weighted_mean() -> None:
    label, image = soft_ball(), noisy_image(soft_ball())[0]
    w, x = label[0].double().numpy(), image.double().numpy()
    inside, outside = np.average(x, weights=w), np.average(x, weights=1 - w)
    expected = w * (inside + 0.5 * (x - inside)) + (1 - w) * (outside + 1.4 * (x - outside))
    out = redistribute(image, label, gains=[0.5, 1.4], shifts=[0, 0])
    np.testing.assert_allclose(out, expected, atol=1e-5)


@given(share=st.floats(0, 1), step=st.floats(-1e-3, 1e-3))
def test_the_label_weighs_continuously_and_is_never_thresholded(share: float, step: float) -> None:
    image = noisy_image(soft_ball(8, 2.0))[0]
    label = torch.full((1, 8, 8, 8), 0.3)
    there, near = label.clone(), label.clone()
    there[0, 4, 4, 4] = share
    near[0, 4, 4, 4] = min(max(share + step, 0), 1)
    one, other = (redistribute(image, weights, [0.5, 1.5], [2, -2]) for weights in (there, near))
    # The two parts are at most (gain difference) |x| + (shift difference) deviations apart.
    slope = float(image.abs().max()) + 4 * float(image.std()) + 1
    assert float((one - other).abs().max()) <= slope * abs(step) + 1e-5


def test_nothing_to_redistribute_leaves_the_image_alone() -> None:
    label, image = soft_ball(), noisy_image(soft_ball())
    np.testing.assert_allclose(redistribute(image[0], label, [1, 1], [0, 0]), image[0], atol=1e-6)
    empty = torch.zeros_like(label)
    seed_both(0)
    out = changed(Redistribution((0.5, 1.5), (-2, 2)), image, empty)
    np.testing.assert_allclose(out, image, atol=1e-4)  # one part alone, its mean and deviation restored


def test_several_labels_and_the_rest_share_each_voxel() -> None:
    label = torch.tensor([[0.0, 0.2, 1.0, 0.8], [0.0, 0.3, 0.0, 0.8]]).reshape(2, 4, 1, 1)
    shares = parts(label)[..., 0, 0]
    # Labels that overlap to more than a whole voxel are scaled down to it.
    np.testing.assert_allclose(shares, [[0, 0.2, 1, 0.5], [0, 0.3, 0, 0.5], [1, 0.5, 0, 0]], atol=1e-6)


def test_without_a_soft_label_there_is_a_message() -> None:
    transform = Redistribution((1.0, 1.0), (0.0, 0.0))
    with pytest.raises(RuntimeError, match="no soft label"):
        transform(image=torch.zeros(1, 4, 4, 4))


# The pipeline


def flat(transforms: list[Any]) -> list[Any]:
    """Return the transforms with those that stand together one after the other."""
    inner = [getattr(getattr(one, "transform", None), "transforms", [one]) for one in transforms]
    return [transform for group in inner for transform in group]


def test_half_of_the_patches_keep_their_contrast() -> None:
    always = dataclasses.replace(ALWAYS, p_changed=0.5)
    in_place = SpatialTransform((20, 20, 20), 0, False, p_elastic_deform=0, p_rotation=0, p_scaling=0)
    changed = add_contrast_transforms(ComposeTransforms([in_place]), always)
    image = noisy_image(soft_ball())
    seed_both(0)
    kept = sum(
        torch.equal(changed(image=image.clone(), regression_target=soft_ball())["image"], image)
        for _ in range(200)
    )
    assert 70 < kept < 130  # 100 are expected; beyond these once in 20,000 seeds


@pytest.mark.parametrize("dummy_2d", [False, True])
def test_they_stand_between_space_and_the_scanner(dummy_2d: bool) -> None:
    stock = nnUNetTrainer.get_training_transforms((16, 24, 24), (-0.3, 0.3), None, (0, 1), dummy_2d)
    both = flat(add_contrast_transforms(stock, SETTINGS).transforms)
    kinds = [type(getattr(transform, "transform", transform)) for transform in both]
    last_in_space = kinds.index(Convert2DTo3DTransform if dummy_2d else SpatialTransform)
    first_of_scanner = kinds.index(GaussianBlurTransform)
    ours = [kinds.index(kind) for kind in (RandomConvolution, FunctionRemap, HistogramChange, Redistribution)]
    assert all(last_in_space < place < first_of_scanner for place in ours)
    kept = [transform for transform in both if transform in stock.transforms]
    assert kept == stock.transforms  # all of nnU-Net's are there, in their order
    assert len(both) == len(kept) + len(PROBABILITIES)


def of_the_paper_in_plane() -> ComposeTransforms:
    return paper_transforms(PaperAugmentation(), (6, 24, 24), mirror_axes=(1, 2), in_plane=True)


def nnunet_in_plane() -> ComposeTransforms:
    return nnUNetTrainer.get_training_transforms((6, 24, 24), (-0.3, 0.3), None, (0, 1), True)


@pytest.mark.parametrize("augmentation", [of_the_paper_in_plane, nnunet_in_plane])
def test_nothing_crosses_slices_that_are_thick(augmentation: Callable[[], ComposeTransforms]) -> None:
    """A voxel changed in one slice changes no other slice, but by statistics of the whole image."""
    both = flat(add_contrast_transforms(augmentation(), SETTINGS).transforms)
    across = [
        inner
        for each in both
        if isinstance(inner := getattr(each, "transform", each), (RandomConvolution, ThickSlices))
    ]
    assert len(across) == 2
    image = torch.randn(6, 12, 12)
    other = image.clone()
    other[2, 6, 6] += 1
    for seed in range(20):
        seed_both(seed)
        for transform in across:
            drawn = transform.draw(image, None)
            one, two = (
                convolve(values, drawn["layers"]) if "layers" in drawn else thick_slices(values, **drawn)
                for values in (image, other)
            )
            touched = (one - two).abs().amax((1, 2)) > 1e-6
            assert not touched[[0, 1, 3, 4, 5]].any()
            assert touched[2] or "layers" in drawn  # a leaky ReLU may hide it


def test_they_stand_behind_the_movement_of_the_paper_too() -> None:
    paper = paper_transforms(PaperAugmentation(), (16, 16, 16), mirror_axes=(0, 1, 2))
    both = flat(add_contrast_transforms(paper, SETTINGS).transforms)
    assert isinstance(both[0], Movement)
    assert isinstance(both[1].transform, InvertImageTransform)
    assert [transform for transform in both if transform in paper.transforms] == paper.transforms


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p_inversion": 1.2}, r"p_inversion: expected a probability in \[0, 1\], got 1.2"),
        ({"share": (0.5, 0.2)}, r"share: expected a range \(smallest, largest\), got \(0.5, 0.2\)"),
        ({"share": (0.5, 1.5)}, r"share: expected a range within \[0, 1\]"),
        ({"slice_thickness": (0.5, 2.0)}, "slice_thickness: expected voxels, at least 1"),
        ({"convolution_sizes": (2,)}, "convolution_sizes: expected odd numbers"),
        ({"convolution_sizes": ()}, "convolution_sizes: expected odd numbers"),
        ({"remap_knots": 1}, "remap_knots: expected at least 2, got 1"),
        ({"convolution_layers": 0}, "convolution_layers: expected at least 1"),
    ],
)
def test_settings_without_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SETTINGS, **change)


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nnUNetTrainerSoftSegContrastAug:
    """Of a tiny dataset, its loaders in this process."""
    tiny = make_tiny_dataset(tmp_path, labels=(1,))
    make_ready_to_train(tiny, monkeypatch)
    plans = {**tiny.plans(), "continue_training": False}
    plans["configurations"]["3d_fullres"].update(patch_size=[16, 16, 16], batch_size=2)
    return nnUNetTrainerSoftSegContrastAug(plans, "3d_fullres", "all", tiny.dataset_json, torch.device("cpu"))


def test_the_trainer_uses_them_and_keeps_their_settings_with_the_model(
    trainer: nnUNetTrainerSoftSegContrastAug,
) -> None:
    trainer.on_train_start()
    expected = json.loads(json.dumps(dataclasses.asdict(trainer.contrast_augmentation)))
    for file in ("../plans.json", "softseg_training.json"):
        saved = json.loads((Path(trainer.output_folder) / file).read_text())
        settings = saved[PLANS_KEY] if file.endswith("plans.json") else saved
        assert settings["contrast_augmentation"] == expected
    _, augmentation, _ = trainer.dataloader_train.data_loader.transforms.transforms
    kinds = {type(getattr(transform, "transform", transform)) for transform in flat(augmentation.transforms)}
    assert {RandomConvolution, FunctionRemap, HistogramChange, Redistribution, ThickSlices} <= kinds
    batch = next(trainer.dataloader_train)
    assert torch.isfinite(batch["data"]).all()
    assert 0 <= float(batch["target"][0].min()) <= float(batch["target"][0].max()) <= 1
