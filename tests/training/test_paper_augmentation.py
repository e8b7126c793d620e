"""The paper's augmentation against geometry, its table and other implementations; the label stays soft.

Each slip of the published code has a test that it would fail: rotation about two axes only, translation by a
tenth of a voxel, noise and scaling undone by the z-score, a flip of all axes at once.
"""

import contextlib
import dataclasses
import gc
import io
import json
import math
import random
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module  # noqa: N813  a module
from scipy.ndimage import affine_transform, gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation
from tiny_dataset import TinyDataset, make_ready_to_train, make_tiny_dataset, small_plans

from nnunet_softseg.errors import UserError
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings
from nnunet_softseg.training.augmentation.paper import (
    BiasField,
    IndependentMirror,
    Movement,
    PaperAugmentation,
    elastic_lattice,
    paper_transforms,
    polynomial,
    pull_back,
    sample,
    sampling_grids,
)
from nnunet_softseg.training.dataloading import soft_transforms
from nnunet_softseg.training.variants import nnUNetTrainerSoftSegPaperAug

STILL = PaperAugmentation(0, 0, 0, 0, 0, (3.5, 5.5), (25, 35))
AFFINE = dataclasses.replace(STILL, p_affine=1, rotation_deg=20, scaling=0.2, translation=0.1)
ELASTIC = dataclasses.replace(STILL, p_elastic=1)
PATCH = (24, 20, 16)
LOADED = (36, 32, 28)


def seeded(seed: int) -> None:
    np.random.seed(seed)
    torch.manual_seed(seed)


def soft_ball(
    shape: tuple[int, ...], centre: tuple[float, ...] | None = None, radius: float = 5.0
) -> torch.Tensor:
    """A ball with a linear edge of two voxels, (1, *shape)."""
    middle = [(size - 1) / 2 for size in shape] if centre is None else centre
    axes = torch.meshgrid(*[torch.arange(size, dtype=torch.float32) for size in shape], indexing="ij")
    distance = torch.sqrt(sum((axis - place) ** 2 for axis, place in zip(axes, middle, strict=True)))
    return torch.clamp((radius - distance) / 2 + 0.5, 0, 1)[None]


def centroid(label: torch.Tensor) -> np.ndarray:
    values = label[0].double().numpy()
    grids = np.meshgrid(*[np.arange(size) - (size - 1) / 2 for size in values.shape], indexing="ij")
    return np.array([(grid * values).sum() for grid in grids]) / values.sum()


def intensity_transforms(**changes: Any) -> dict[str, RandomTransform]:
    framed = paper_transforms(PaperAugmentation(**changes), PATCH, mirror_axes=(0, 1, 2)).transforms
    return {type(one.transform).__name__: one for one in framed if isinstance(one, RandomTransform)}


# The table


def test_the_settings_are_those_of_the_papers_table() -> None:
    assert dataclasses.asdict(PaperAugmentation()) == {
        "p_affine": 0.9,
        "rotation_deg": 20,
        "scaling": 0.2,
        "translation": 0.1,
        "p_elastic": 0.5,
        "elastic_sigma": (3.5, 5.5),
        "elastic_magnitude": (25, 35),
        "p_low_resolution": 0.25,
        "zoom": (0.5, 1),
        "p_gamma": 0.5,
        "gamma": (0.5, 3),
        "p_bias_field": 0.3,
        "bias_field_degree": 3,
        "bias_field_coefficients": (0, 0.5),
        "p_noise": 0.1,
        "noise_sd": (0, 0.1),
        "p_smoothing": 0.1,
        "smoothing_sigma": (0, 2),
        "p_intensity_scaling": 0.15,
        "intensity_factor": (0.75, 2),
        "p_mirror": 0.3,
    }


def test_each_transform_is_applied_as_often_as_its_probability_says() -> None:
    seeded(0)
    expected = {
        "SimulateLowResolutionTransform": 0.25,
        "GammaTransform": 0.5,
        "BiasField": 0.3,
        "GaussianNoiseTransform": 0.1,
        "GaussianBlurTransform": 0.1,
        "MultiplicativeBrightnessTransform": 0.15,
    }
    transforms = intensity_transforms()
    assert list(transforms) == list(expected)  # the order of the table
    for name, probability in expected.items():
        drawn = [transforms[name].get_parameters()["apply_transform"] for _ in range(3000)]
        assert np.mean(drawn) == pytest.approx(probability, abs=0.03), name  # four standard errors at most
    movement = paper_transforms(PaperAugmentation(), PATCH, mirror_axes=()).transforms[0]
    drawn = [movement.get_parameters() for _ in range(700)]
    assert np.mean([one["lattice"] is not None for one in drawn]) == pytest.approx(0.5, abs=0.08)
    assert np.mean([one["matrix"] is None for one in drawn]) == pytest.approx(0.1 * 0.5, abs=0.035)


def test_settings_can_be_written_and_do_not_change() -> None:
    made = PaperAugmentation(p_mirror=0.1)
    assert json.loads(json.dumps(dataclasses.asdict(made)))["p_mirror"] == 0.1
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.p_mirror = 0.2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p_gamma": 1.2}, r"p_gamma: expected a probability.*got 1.2"),
        ({"zoom": (1.0, 0.5)}, r"zoom: expected a range.*\(1.0, 0.5\)"),
        ({"scaling": 1.0}, "scaling: expected a fraction"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PaperAugmentation(**changes)


# Movement: image and label


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_object_turns_about_each_axis_by_the_angle(axis: int) -> None:
    """Against scipy's rotation of the object's centre."""
    angles = torch.zeros(3)
    angles[axis] = math.radians(20)
    matrix, offset = pull_back(angles, torch.ones(3), torch.zeros(3))
    place = np.array([6.0, -5.0, 4.0])
    turned = Rotation.from_euler("xyz"[axis], 20, degrees=True).apply(place)
    np.testing.assert_allclose(matrix.numpy() @ turned + offset.numpy(), place, atol=1e-5)


def test_scale_then_rotation_then_shift_as_scipy_has_it() -> None:
    degrees, scales, shift = [11.0, -17.0, 19.0], np.array([1.2, 0.8, 1.1]), np.array([2.4, -1.0, 0.5])
    matrix, offset = pull_back(
        torch.deg2rad(torch.tensor(degrees)), torch.tensor(scales).float(), torch.tensor(shift).float()
    )
    place = np.array([3.0, 4.0, -2.0])
    moved = Rotation.from_euler("xyz", degrees, degrees=True).apply(scales * place) + shift
    np.testing.assert_allclose(matrix.numpy() @ moved + offset.numpy(), place, atol=1e-5)


def test_all_three_axes_turn_by_up_to_twenty_degrees() -> None:
    """The published affine turned about two axes only."""
    seeded(0)
    turns = dataclasses.replace(STILL, p_affine=1, rotation_deg=20)
    rotations = [Movement(PATCH, turns).get_parameters()["matrix"].numpy().T for _ in range(300)]
    euler = np.abs(Rotation.from_matrix(np.stack(rotations)).as_euler("xyz", degrees=True))
    assert (euler <= 20.001).all()
    assert (euler.max(axis=0) > 19).all()
    np.testing.assert_allclose(euler.mean(axis=0), 10, atol=1)


def test_objects_grow_and_shrink_by_up_to_a_fifth_along_each_axis() -> None:
    """The library scales its sampling grid instead: there 0.8 makes objects larger, by a quarter."""
    seeded(0)
    scaling = dataclasses.replace(STILL, p_affine=1, scaling=0.2)
    scales = np.array([1 / np.diag(Movement(PATCH, scaling).get_parameters()["matrix"]) for _ in range(300)])
    assert scales.min() == pytest.approx(0.8, abs=0.01)
    assert scales.max() == pytest.approx(1.2, abs=0.01)
    assert np.abs(np.corrcoef(scales.T)[np.triu_indices(3, 1)]).max() < 0.2  # each axis by itself
    matrix, offset = pull_back(torch.zeros(3), torch.full((3,), 1.2), torch.zeros(3))
    sources = {"image": soft_ball(LOADED)}
    grown = sample(sources, LOADED, matrix=matrix, offset=offset, lattice=None)["image"]
    assert float(grown.sum() / soft_ball(LOADED).sum()) == pytest.approx(1.2**3, rel=0.01)


def test_translation_is_a_tenth_of_the_patch_not_of_a_voxel() -> None:
    seeded(0)
    shifting = Movement(LOADED, dataclasses.replace(STILL, p_affine=1, translation=0.1))
    shifts = []
    for _ in range(150):
        moved = shifting(image=soft_ball(LOADED))["image"]
        shifts.append(centroid(moved))
    largest = np.abs(shifts).max(axis=0)
    np.testing.assert_array_less(largest, 0.1 * np.array(LOADED) + 0.05)
    np.testing.assert_array_less(0.09 * np.array(LOADED), largest)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**31), parity=st.integers(0, 1))
def test_the_label_moves_as_scipy_moves_it_with_order_one(seed: int, parity: int) -> None:
    """Patch and loaded patch of any sizes; scipy pulls back in indices, not from the centres."""
    seeded(seed)
    loaded = tuple(size + parity for size in LOADED)
    label = torch.rand(1, *loaded)
    movement = Movement(PATCH, AFFINE)
    params = movement.get_parameters()
    moved = movement.apply({"image": label.clone(), "regression_target": label.clone()}, **params)
    np.testing.assert_allclose(moved["regression_target"][0].numpy(), by_scipy(label[0], params), atol=2e-4)
    np.testing.assert_allclose(moved["regression_target"], moved["image"], atol=1e-6)  # in one go


def by_scipy(label: torch.Tensor, params: dict[str, Any]) -> np.ndarray:
    matrix, offset = params["matrix"].double().numpy(), params["offset"].double().numpy()
    centre_in, centre_out = (np.array(label.shape) - 1) / 2, (np.array(PATCH) - 1) / 2
    start = centre_in + offset - matrix @ centre_out
    values = label.double().numpy()
    moved: np.ndarray = affine_transform(
        values, matrix, start, output_shape=PATCH, order=1, mode="grid-constant"
    )
    return moved


@settings(max_examples=15)
@given(seed=st.integers(0, 2**31))
def test_many_labels_move_as_scipy_moves_each_of_them(seed: int) -> None:
    """Some labels are far from most rows of a patch: thin ones in any order, an empty one, one all over."""
    seeded(seed)
    labels = torch.zeros(6, *LOADED)
    for label in labels[:4]:
        row = int(torch.randint(LOADED[0], (1,)))
        label[row : row + 2] = torch.rand(LOADED[1:])
    labels[5] = torch.rand(LOADED)
    params = Movement(PATCH, AFFINE).get_parameters()
    moved = Movement(PATCH, AFFINE).apply({"image": labels[:1], "regression_target": labels}, **params)
    for label, found in zip(labels, moved["regression_target"].numpy(), strict=True):
        np.testing.assert_allclose(found, by_scipy(label, params), atol=2e-4)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**31))
def test_the_sum_follows_the_geometry_and_constants_stay_constant(seed: int) -> None:
    seeded(seed)
    shape = (40, 40, 40)
    turning = Movement(shape, dataclasses.replace(STILL, p_affine=1, rotation_deg=20))
    label = torch.cat([soft_ball(shape, radius=9), torch.full((1, *shape), 0.37)])
    turned = turning(image=torch.zeros(1, *shape), regression_target=label)["regression_target"]
    assert float(turned[0].sum() / label[0].sum()) == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(turned[1, 14:26, 14:26, 14:26], 0.37, atol=1e-6)

    params = Movement(shape, AFFINE).get_parameters()
    scaled = Movement(shape, AFFINE).apply({"image": label[:1].clone()}, **params)["image"]
    volume = 1 / float(torch.linalg.det(params["matrix"]))
    assert float(scaled.sum() / label[0].sum()) == pytest.approx(volume, rel=0.015)


def test_deformation_is_as_strong_and_smooth_as_smoothed_uniform_noise() -> None:
    """Against the definition behind the numbers: noise in [-1, 1] at every voxel, smoothed, magnified."""
    seeded(0)
    shape, sigma, magnitude = (48, 48, 48), 4.5, 30.0
    rng = np.random.default_rng(0)
    expected = np.stack(
        [magnitude * gaussian_filter(rng.uniform(-1, 1, shape), sigma, mode="wrap") for _ in range(6)]
    )
    ours = np.concatenate([displacement_of(shape, sigma, magnitude) for _ in range(2)])
    assert ours.std() == pytest.approx(expected.std(), rel=0.08)
    assert ours.std() == pytest.approx(
        magnitude / math.sqrt(3) / (2 * math.sqrt(math.pi) * sigma) ** 1.5, rel=0.08
    )
    for distance in (3, 6, 9):  # a Gaussian's own correlation is exp(-d^2 / 4 sigma^2)
        for axis in (1, 2, 3):
            correlation = shifted_correlation(ours, distance, axis)
            assert correlation == pytest.approx(math.exp(-(distance**2) / (4 * sigma**2)), abs=0.08)
    # As strong at the border as in the middle, and between two nodes as at one.
    assert ours[:, :6].std() == pytest.approx(ours[:, 20:26].std(), rel=0.25)
    by_plane = np.stack([displacement_of((9, 24, 24), sigma, magnitude) for _ in range(40)]).std(
        axis=(0, 1, 3, 4)
    )
    assert np.ptp(by_plane) < 0.15 * by_plane.mean()


def displacement_of(shape: tuple[int, ...], sigma: float, magnitude: float) -> np.ndarray:
    """Return (3, *shape) in voxels, read off the grids that nothing but deformation went into."""
    lattice = elastic_lattice(shape, sigma, magnitude)
    still = {"matrix": torch.eye(3), "offset": torch.zeros(3), "device": "cpu"}
    moved, unmoved = (
        torch.cat([grid for _, grid in sampling_grids(shape, shape, lattice=one, **still)]).numpy()
        for one in (lattice, None)
    )
    return np.moveaxis((moved - unmoved)[..., ::-1] * np.array(shape) / 2, -1, 0)


def shifted_correlation(field: np.ndarray, distance: int, axis: int) -> float:
    first = np.take(field, range(field.shape[axis] - distance), axis)
    second = np.take(field, range(distance, field.shape[axis]), axis)
    return float((first * second).mean() / (field**2).mean())


def test_deformation_and_affine_together_as_map_coordinates_has_them() -> None:
    seeded(4)
    both = Movement(PATCH, dataclasses.replace(AFFINE, p_elastic=1))
    params = both.get_parameters()
    label = torch.rand(1, *LOADED)
    moved = both.apply({"image": label.clone()}, **params)["image"][0].numpy()
    weights = [weight.double().numpy() for weight in params["lattice"].weights]
    displacement = np.einsum("nabc,za,yb,xc->nzyx", params["lattice"].nodes.double().numpy(), *weights)
    voxels = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in PATCH], indexing="ij"))
    places = np.tensordot(params["matrix"].double().numpy(), voxels + displacement, axes=1)
    places += params["offset"].double().numpy().reshape(3, 1, 1, 1)
    places += ((np.array(LOADED) - 1) / 2).reshape(3, 1, 1, 1)
    expected = map_coordinates(label[0].double().numpy(), places, order=1, mode="grid-constant")
    np.testing.assert_allclose(moved, expected, atol=5e-4)


def test_deformation_never_folds_and_keeps_the_label() -> None:
    seeded(1)
    shape = (40, 40, 40)
    label = torch.cat([soft_ball(shape, radius=9), torch.full((1, *shape), 0.37)])
    for _ in range(5):
        field = displacement_of(shape, 3.5, 35.0)  # the strongest there is
        gradient = np.stack([np.stack(np.gradient(component)) for component in field])
        jacobian = np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1)) + np.eye(3))
        assert jacobian.min() > 0
        moved = Movement(shape, ELASTIC)(image=torch.zeros(1, *shape), regression_target=label)[
            "regression_target"
        ]
        assert float(moved[0].sum() / label[0].sum()) == pytest.approx(1, abs=0.06)
        np.testing.assert_allclose(moved[1, 5:-5, 5:-5, 5:-5], 0.37, atol=1e-6)
        assert 0 <= float(moved.min()) <= float(moved.max()) <= 1


def test_what_does_not_move_is_the_middle_bit_by_bit() -> None:
    image, label = torch.rand(2, *LOADED), torch.rand(1, *LOADED)
    out = Movement(PATCH, STILL)(image=image.clone(), regression_target=label.clone())
    middle = tuple(slice((a - b) // 2, (a - b) // 2 + b) for a, b in zip(LOADED, PATCH, strict=True))
    assert torch.equal(out["image"], image[(slice(None), *middle)])
    assert torch.equal(out["regression_target"], label[(slice(None), *middle)])


def test_a_segmentation_keeps_its_values_and_is_minus_one_where_there_is_no_image() -> None:
    seeded(2)
    segmentation = torch.zeros(1, *PATCH, dtype=torch.int16)
    segmentation[:, :10] = -1
    out = Movement(PATCH, AFFINE)(image=torch.ones(1, *PATCH), segmentation=segmentation)
    assert out["segmentation"].dtype == torch.int16
    assert set(out["segmentation"].unique().tolist()) == {-1, 0}
    assert (out["segmentation"][out["image"] == 0] == -1).all()


def test_thick_slices_stay_slices() -> None:
    """The first axis of a flat patch is left alone: slice k of the result comes from slice k."""
    seeded(0)
    shape = (4, 40, 40)
    label = torch.arange(1.0, 5).reshape(1, 4, 1, 1).expand(1, *shape).clone() / 8
    everything = dataclasses.replace(AFFINE, p_elastic=1)
    for _ in range(10):
        moved = Movement(shape, everything, in_plane=True)(image=label.clone())["image"]
        np.testing.assert_allclose(moved[0, :, 15:25, 15:25], label[0, :, 15:25, 15:25], atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 24, 20), (24, 20), (8, 8, 8), (16, 4, 4), (1, 16, 16)])
def test_every_shape_of_patch_goes_through(shape: tuple[int, ...]) -> None:
    certain = PaperAugmentation(
        **{f.name: 1.0 for f in dataclasses.fields(PaperAugmentation) if f.name.startswith("p_")}
    )
    for in_plane in (False, True):
        seeded(0)
        run = framed(
            paper_transforms(certain, shape, mirror_axes=tuple(range(len(shape))), in_plane=in_plane)
        )
        out = run(image=torch.cat([torch.randn(1, *shape), torch.full((1, *shape), 0.5)]))
        assert torch.isfinite(out["image"]).all()
        assert out["segmentation"].shape == (1, *shape)
        assert 0 <= float(out["segmentation"].min()) <= float(out["segmentation"].max()) <= 0.5 + 1e-6


def test_what_is_loaded_reaches_around_what_turns_into_view() -> None:
    patch = [320, 192, 64]
    loaded = PaperAugmentation().initial_patch_size(patch)
    assert all(large >= small / 0.8 - 1 for large, small in zip(loaded, patch, strict=True))
    assert loaded[2] >= 320 * math.sin(math.radians(20))  # the length of S-I, tilted into R-L
    assert PaperAugmentation().initial_patch_size([3, 32, 32], in_plane=True)[0] == 3
    assert len(PaperAugmentation().initial_patch_size([32, 24])) == 2


# Mirroring


def test_each_axis_is_mirrored_by_itself() -> None:
    """The published flip turned all axes at once: then pairs would be as frequent as single axes."""
    seeded(0)
    mirror = IndependentMirror((0, 1, 2), 0.3)
    axes = [mirror.get_parameters()["axes"] for _ in range(4000)]
    drawn = np.array([[axis in chosen for axis in range(3)] for chosen in axes])
    np.testing.assert_allclose(drawn.mean(axis=0), 0.3, atol=0.03)
    for first, second in [(0, 1), (0, 2), (1, 2)]:
        assert (drawn[:, first] & drawn[:, second]).mean() == pytest.approx(0.09, abs=0.02)


def test_a_mirrored_label_is_the_same_label() -> None:
    seeded(0)
    label = torch.rand(1, 6, 5, 4)
    everywhere = IndependentMirror((0, 1, 2), 1.0)(image=label.clone(), regression_target=label.clone())
    np.testing.assert_array_equal(everywhere["regression_target"], label.numpy()[:, ::-1, ::-1, ::-1])
    np.testing.assert_array_equal(everywhere["image"], everywhere["regression_target"])
    only_second = IndependentMirror((1,), 1.0)(image=label.clone(), regression_target=label.clone())
    np.testing.assert_array_equal(only_second["regression_target"], label.numpy()[:, :, ::-1])


# Intensity


@pytest.mark.parametrize("name", list(intensity_transforms()))
def test_intensity_transforms_leave_the_label_alone_and_change_the_image(name: str) -> None:
    seeded(0)
    transform = intensity_transforms()[name].transform
    image, label = torch.randn(2, *PATCH), torch.rand(1, *PATCH)
    before = label.clone()
    out = transform(image=image.clone(), regression_target=label)
    assert out["regression_target"] is label
    assert torch.equal(label, before)
    assert not torch.equal(out["image"], image)
    assert torch.isfinite(out["image"]).all()


def test_noise_has_a_standard_deviation_of_up_to_a_tenth() -> None:
    """After the z-score, where it stays; its standard deviation, not its variance."""
    seeded(0)
    noise = intensity_transforms()["GaussianNoiseTransform"].transform
    sds = [float(noise(image=torch.zeros(1, 12, 12, 12))["image"].std()) for _ in range(400)]
    assert max(sds) == pytest.approx(0.1, abs=0.006)
    assert np.mean(sds) == pytest.approx(0.05, abs=0.006)


def test_scaling_is_not_undone() -> None:
    seeded(0)
    scaling = intensity_transforms()["MultiplicativeBrightnessTransform"].transform
    image = torch.randn(1, *PATCH)
    ratios = [float((scaling(image=image.clone())["image"] / image).median()) for _ in range(400)]
    assert min(ratios) == pytest.approx(0.75, abs=0.02)
    assert max(ratios) == pytest.approx(2, abs=0.02)


def test_gamma_of_a_z_scored_image() -> None:
    """Scaled to [0, 1], to the power of gamma; then mean and standard deviation as they were."""
    seeded(0)
    gamma = intensity_transforms()["GammaTransform"].transform
    image = torch.randn(1, *PATCH)
    image = (image - image.mean()) / image.std()
    exponents = []
    for _ in range(200):
        params = gamma.get_parameters(image=image)
        exponents.append(float(params["gamma"]))
        out = gamma._apply_to_image(image.clone(), **params)
        x = image.double().numpy()
        power = ((x - x.min()) / np.ptp(x)) ** exponents[-1]
        np.testing.assert_allclose(out, (power - power.mean()) / power.std(ddof=1), atol=1e-3)
    assert min(exponents) == pytest.approx(0.5, abs=0.05)
    assert max(exponents) == pytest.approx(3, abs=0.05)
    assert np.mean(exponents) == pytest.approx(1.75, abs=0.15)


def test_the_polynomial_has_every_term_up_to_the_third_degree() -> None:
    """Against NumPy's, x^i y^j z^k with i + j + k <= 3: 20 terms."""
    seeded(0)
    coefficients = BiasField(3, (0.0, 0.5)).get_parameters(image=torch.zeros(1, *PATCH))["coefficients"]
    used = {(i, j, k) for i in range(4) for j in range(4) for k in range(4) if i + j + k <= 3}
    assert {tuple(index) for index in torch.nonzero(coefficients).tolist()} == used
    assert len(used) == 20
    assert 0 <= float(coefficients.min()) <= float(coefficients.max()) <= 0.5
    grid = np.meshgrid(*[np.linspace(-1, 1, size) for size in PATCH], indexing="ij")
    expected = np.polynomial.polynomial.polyval3d(*grid, coefficients.double().numpy())
    np.testing.assert_allclose(polynomial(coefficients, PATCH), expected, atol=1e-5)


def test_the_bias_field_multiplies_and_keeps_the_z_score() -> None:
    seeded(0)
    image = torch.randn(2, *PATCH)
    bias = BiasField(3, (0.0, 0.5))
    params = bias.get_parameters(image=image)
    out = bias._apply_to_image(image.clone(), **params)
    grid = np.meshgrid(*[np.linspace(-1, 1, size) for size in PATCH], indexing="ij")
    field = np.exp(np.polynomial.polynomial.polyval3d(*grid, params["coefficients"].double().numpy()))
    for before, after in zip(image.double().numpy(), out.double().numpy(), strict=True):
        uneven = (before - before.min()) * field
        scaled = (uneven - uneven.mean()) / uneven.std(ddof=1) * before.std(ddof=1) + before.mean()
        np.testing.assert_allclose(after, scaled, atol=2e-3)


def test_a_bias_field_on_an_even_image_shows_nothing() -> None:
    """Nothing above the smallest intensity: nothing to multiply, and no division by a spread of zero."""
    seeded(0)
    np.testing.assert_array_equal(BiasField(3, (0.0, 0.5))(image=torch.full((1, *PATCH), 1.5))["image"], 1.5)


def test_low_resolution_is_at_worst_half() -> None:
    """A checkerboard of single voxels survives a zoom near 1 and is gone at one half; means stay."""
    seeded(0)
    low = intensity_transforms()["SimulateLowResolutionTransform"].transform
    zooms = [low.get_parameters(image=torch.zeros(1, *PATCH))["scales"] for _ in range(300)]
    assert all(float(zoom.max() - zoom.min()) == 0 for zoom in zooms)  # all axes alike
    assert min(float(zoom.min()) for zoom in zooms) == pytest.approx(0.5, abs=0.02)
    assert max(float(zoom.max()) for zoom in zooms) == pytest.approx(1, abs=0.02)


def test_smoothing_is_a_gaussian_of_up_to_two_voxels() -> None:
    seeded(0)
    blur = intensity_transforms()["GaussianBlurTransform"].transform
    image = torch.randn(1, 30, 30, 30)
    drawn = []
    for _ in range(60):
        params = blur.get_parameters(image=image)
        (sigmas,) = params["sigmas"]
        drawn.extend(sigmas)
        out = blur._apply_to_image(image.clone(), **params)
        if min(sigmas) > 0.7:  # below, a kernel of three voxels stands for the Gaussian
            expected = gaussian_filter(image[0].double().numpy(), sigmas, mode="mirror", truncate=3)
            assert np.abs(out[0].numpy() - expected).max() < 0.1 * expected.std()
    assert max(drawn) == pytest.approx(2, abs=0.1)
    assert np.mean(drawn) == pytest.approx(1, abs=0.15)


# All together


def framed(augmentation: BasicTransform, **options: Any) -> BasicTransform:
    return soft_transforms(augmentation, 1, None, **options)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31))
def test_the_label_stays_soft_through_all_of_it(seed: int) -> None:
    seeded(seed)
    transform = framed(paper_transforms(PaperAugmentation(), PATCH, mirror_axes=(0, 1, 2)))
    label = soft_ball(LOADED, centre=(17.3, 15.1, 13.7), radius=5)  # hardly two voxels are alike
    out = transform(image=torch.cat([torch.randn(1, *LOADED), label]))
    target = out["segmentation"]
    assert target.dtype == torch.float32
    assert 0 <= float(target.min()) <= float(target.max()) <= 1
    assert len(torch.unique(target)) > 50
    # Within the reach of the three scales and a little deformation.
    assert 0.8**3 * 0.9 < float(target.sum() / label.sum()) < 1.2**3 * 1.1
    assert torch.isfinite(out["image"]).all()


def test_image_and_label_move_together() -> None:
    """An image that is its own label stays so where intensities are left alone."""
    still = {
        f"p_{name}": 0.0
        for name in ("low_resolution", "gamma", "bias_field", "noise", "smoothing", "intensity_scaling")
    }
    transform = framed(paper_transforms(PaperAugmentation(**still), PATCH, mirror_axes=(0, 1, 2)))
    for seed in range(20):
        seeded(seed)
        label = soft_ball(LOADED, centre=(20.0, 13.0, 16.0), radius=6)
        out = transform(image=torch.cat([label, label]))
        np.testing.assert_allclose(out["image"], out["segmentation"], atol=1e-6)


def test_the_same_seed_gives_the_same_patch() -> None:
    transform = framed(paper_transforms(PaperAugmentation(), PATCH, mirror_axes=(0, 1, 2)))
    stack = torch.randn(2, *LOADED)
    results = []
    for seed in (7, 7, 8):
        seeded(seed)
        results.append(transform(image=stack.clone()))
    assert torch.equal(results[0]["image"], results[1]["image"])
    assert torch.equal(results[0]["segmentation"], results[1]["segmentation"])
    assert not torch.equal(results[0]["image"], results[2]["image"])


def test_a_patch_without_any_label_goes_through() -> None:
    seeded(0)
    out = framed(paper_transforms(PaperAugmentation(), PATCH, mirror_axes=(0, 1, 2)))(
        image=torch.cat([torch.randn(1, *LOADED), torch.zeros(1, *LOADED)])
    )
    assert float(out["segmentation"].abs().max()) == 0


def test_masked_normalisation_keeps_its_outside_at_zero() -> None:
    seeded(3)
    certain = PaperAugmentation(p_affine=1, p_noise=1)
    transform = framed(
        paper_transforms(certain, PATCH, mirror_axes=(0, 1, 2), masked_channels=[0]), keep_segmentation=True
    )
    segmentation = torch.zeros(1, *LOADED, dtype=torch.int16)
    segmentation[:, :18] = -1
    image = torch.where(segmentation < 0, 0, torch.randn(1, *LOADED))
    seen = transform(image=torch.cat([image, torch.full((1, *LOADED), 0.37)]), segmentation=segmentation)
    share = float((seen["image"] == 0).float().mean())
    assert 0.3 < share < 0.7


# In the trainer


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyDataset]:
    patch = pytest.MonkeyPatch()
    tiny = make_tiny_dataset(
        tmp_path_factory.mktemp("paper"), shape=(18, 20, 26), reader="NibabelIOWithReorient"
    )
    make_ready_to_train(tiny, patch)
    yield tiny
    patch.undo()


def trainer(dataset: TinyDataset, **changes: Any) -> nnUNetTrainerSoftSegPaperAug:
    class Changed(nnUNetTrainerSoftSegPaperAug):
        settings = dataclasses.replace(nnUNetTrainerSoftSegPaperAug.settings, **changes)

    with contextlib.redirect_stdout(io.StringIO()):
        return Changed(
            small_plans(dataset, (16, 16, 16), (4, 4, 4)),
            "3d_fullres",
            "all",
            dataset.dataset_json,
            torch.device("cpu"),
        )


def first_batches(dataset: TinyDataset, number: int = 3, **changes: Any) -> list[dict[str, Any]]:
    made = trainer(dataset, **changes)
    with contextlib.redirect_stdout(io.StringIO()):
        made.on_train_start()
    batches = [next(made.dataloader_train) for _ in range(number)]
    for loader in (made.dataloader_train, made.dataloader_val):
        if hasattr(loader, "_finish"):
            loader._finish()
    return batches


def same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> bool:
    return all(
        torch.equal(one["data"], other["data"]) and torch.equal(one["target"][0], other["target"][0])
        for one, other in zip(first, second, strict=True)
    )


def test_the_augmentation_is_written_beside_the_model(dataset: TinyDataset) -> None:
    made = trainer(dataset)
    made.on_train_start()
    record = json.loads((Path(made.output_folder) / "softseg_training.json").read_text())
    plans = json.loads((Path(made.output_folder_base) / "plans.json").read_text())
    for written in (record, plans[PLANS_KEY]):
        assert written["settings"]["augmentation"] == "paper"
        assert written["paper_augmentation"]["elastic_sigma"] == [3.5, 5.5]
        assert PaperAugmentation(**written["paper_augmentation"]).p_mirror == 0.3
    assert made.dataloader_train.data_loader.patch_size == made.paper_augmentation.initial_patch_size(
        [16] * 3
    )


def test_batches_are_soft_and_nnunets_own_say_nothing_of_the_paper(dataset: TinyDataset) -> None:
    for batch in first_batches(dataset):
        full, half = batch["target"]
        assert full.dtype == torch.float32
        assert 0 <= float(full.min()) <= float(full.max()) <= 1
        torch.testing.assert_close(half, torch.nn.functional.avg_pool3d(full, 2))
        assert torch.isfinite(batch["data"]).all()
    stock = trainer(dataset, augmentation="nnunet")
    stock.on_train_start()
    assert "paper_augmentation" not in stock.plans_manager.plans[PLANS_KEY]


def test_an_unknown_augmentation_is_refused() -> None:
    with pytest.raises(UserError, match=r'expected "nnunet" or "paper", got \'paperr\''):
        SoftSegSettings(augmentation="paperr")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "setting",
    [
        {"largest_zoom": 0.5},
        {"largest_zoom": np.nan},
        {"largest_zoom": "2"},
        {"to_image_grid": "cubic"},
        {"optimizer": "adamw"},
        {"collapse_patience": 0},
        {"core_threshold": 1.0},
        {"support_threshold": -0.1},
        {"num_epochs": 0},
        {"save_every": 2.5},
        {"iterations_per_epoch": None},
        {"floor_fraction": "0.5"},
        {"reference_momentum": 1},
        {"initial_lr": -1e-3},
        {"seed": -1},
        {"seed": True},
        {"center_crop": "False"},
        {"center_crop": 1},
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"setting {next(iter(setting))}: expected"):
        SoftSegSettings(**setting)


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("augmentation", ["paper", "nnunet"])
def test_the_same_seed_and_one_worker_give_the_same_first_batches(
    dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch, workers: str, augmentation: str
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    options = {"augmentation": augmentation, "number": 2}
    first = first_batches(dataset, seed=5, **options)
    assert same(first, first_batches(dataset, seed=5, **options))
    assert not same(first, first_batches(dataset, seed=6, **options))


def test_a_resumed_training_does_not_draw_its_first_patches_again(dataset: TinyDataset) -> None:
    drawn = []
    for epoch in (0, 1, 1):
        made = trainer(dataset, seed=5)
        made.current_epoch = epoch
        made._set_seed()
        drawn.append((float(torch.rand(1)), np.random.uniform(), random.random()))
    assert drawn[0] != drawn[1] == drawn[2]


def test_more_workers_than_cores_each_with_its_own_random_numbers(
    dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nnU-Net's would share PyTorch's: each worker starts from a copy of its parent's state."""
    seen: list[dict[str, Any]] = []
    original = trainer_module.NonDetMultiThreadedAugmenter

    def spy(**options: Any) -> Any:
        seen.append(options)
        return original(**options)

    monkeypatch.setattr(trainer_module, "NonDetMultiThreadedAugmenter", spy)
    monkeypatch.setenv("nnUNet_n_proc_DA", "3")
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    batches = first_batches(dataset, number=4)
    assert trainer_module.NonDetMultiThreadedAugmenter is spy  # put back
    assert [len(options["seeds"]) for options in seen] == [3, 1]
    assert len({seed for options in seen for seed in options["seeds"]}) == 4
    assert len({float(batch["data"].sum()) for batch in batches}) == 4


def test_nothing_is_left_that_a_forked_worker_would_free(
    dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An OpenVINO network that only a cycle holds hangs or aborts the process that frees it after a fork."""

    class Held:
        itself: "Held"

    freed = []

    def fork(_trainer: Any) -> tuple[None, None]:
        freed.append(lost() is None)
        return None, None

    made, held = trainer(dataset), Held()
    held.itself = held
    lost = weakref.ref(held)
    monkeypatch.setattr(trainer_module.nnUNetTrainer, "get_dataloaders", fork)
    gc.disable()
    try:
        del held
        made.get_dataloaders()
    finally:
        gc.enable()
    assert freed == [True]
