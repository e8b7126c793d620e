"""The label stays soft through every transform that nnU-Net's augmentation is made of."""

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_softseg.training.dataloading import average_down, soft_transforms, widen_zoom

SCALES = [[1, 1, 1], [0.5, 0.5, 0.5], [0.25, 0.5, 0.25]]


def ball(size: int = 32, radius: float = 8.0) -> torch.Tensor:
    """A ball with a linear edge of two voxels."""
    axes = torch.meshgrid(*[torch.arange(size) - (size - 1) / 2] * 3, indexing="ij")
    return torch.clamp((radius - torch.sqrt(sum(axis**2 for axis in axes))) / 2 + 0.5, 0, 1)[None]


def run(transform: BasicTransform, label: torch.Tensor, **options: object) -> dict[str, torch.Tensor]:
    image = torch.randn(1, *label.shape[1:])
    num_labels = label.shape[0] // (1 + bool(options.get("weighted")))
    framed = soft_transforms(transform, num_labels, options.pop("scales", None), **options)
    stacked = torch.cat([image, label])
    return framed(image=stacked, segmentation=torch.zeros_like(image, dtype=torch.int16))


def spatial(**options: object) -> SpatialTransform:
    defaults = {
        "patch_center_dist_from_border": 0,
        "random_crop": False,
        "border_mode_seg": "constant",
        "padding_value_seg": -1,
    }
    return SpatialTransform(patch_size=(32, 32, 32), **{**defaults, **options})


def test_nothing_to_do_gives_the_label_back_bit_by_bit() -> None:
    label = torch.cat([0.37 * torch.ones(1, 8, 8, 8), torch.rand(1, 8, 8, 8)])
    out = run(ComposeTransforms([]), label)
    assert torch.equal(out["segmentation"], label)
    assert out["image"].shape == (1, 8, 8, 8)
    assert out["segmentation"].dtype == torch.float32


@pytest.mark.parametrize("seed", range(5))
def test_rotation_keeps_constant_labels_constant_and_sums(seed: int) -> None:
    np.random.seed(seed)
    rotate = spatial(p_rotation=1, rotation=(-np.pi / 6, np.pi / 6))
    out = run(rotate, torch.cat([torch.full((1, 32, 32, 32), 0.37), ball()]))["segmentation"]
    np.testing.assert_allclose(
        out[0, 10:22, 10:22, 10:22], 0.37, atol=1e-6
    )  # away from the corners that turn in
    assert float(out[1].sum() / ball().sum()) == pytest.approx(1, abs=0.01)
    assert float(((out[1] > 0.05) & (out[1] < 0.95)).float().mean()) > 0.02  # still a soft edge


def test_scaling_scales_the_sum_by_the_cube() -> None:
    np.random.seed(0)
    out = run(spatial(p_scaling=1, scaling=(1.2, 1.2), p_synchronize_scaling_across_axes=1), ball())[
        "segmentation"
    ]
    # batchgeneratorsv2 scales the sampling grid: 1.2 makes objects smaller
    assert float(out.sum() / ball().sum()) == pytest.approx(1.2**-3, rel=0.01)


@pytest.mark.parametrize(("largest_zoom", "largest", "seen"), [(None, 1 / 0.7, 1.3), (2.0, 2.0, 1.75)])
def test_zoom_shows_structures_at_up_to_so_many_times_their_length(
    largest_zoom: float | None, largest: float, seen: float
) -> None:
    np.random.seed(0)
    stock = nnUNetTrainer.get_training_transforms((32, 32, 32), (0, 0), None, (), False)
    if largest_zoom is not None:
        widen_zoom(stock, largest_zoom)
    zoom = next(each for each in stock.transforms if isinstance(each, SpatialTransform))
    zoom.p_scaling = 1
    small = ball(radius=6)
    sums = [float(run(zoom, small)["segmentation"].sum() / small.sum()) for _ in range(60)]
    lengths = np.cbrt(sums)
    assert seen < lengths.max() < largest * 1.01
    assert 1 / 1.4 * 0.99 < lengths.min() < 0.8  # smaller as nnU-Net shows them


def test_an_augmentation_without_a_zoom_is_no_place_for_a_larger_one() -> None:
    with pytest.raises(RuntimeError, match="SpatialTransform"):
        widen_zoom(ComposeTransforms([]), 2.0)


def test_mirroring_moves_image_and_label_together() -> None:
    torch.manual_seed(0)
    label = torch.rand(1, 6, 5, 4)
    image = label.clone()
    for _ in range(10):
        out = soft_transforms(MirrorTransform((0, 1, 2)), 1, None)(
            image=torch.cat([image, label]), segmentation=None
        )
        assert torch.equal(out["image"], out["segmentation"])


def test_intensity_transforms_leave_the_label_alone() -> None:
    label = ball()
    gamma = GammaTransform(
        gamma=(0.7, 1.5), p_invert_image=0, synchronize_channels=False, p_per_channel=1, p_retain_stats=1
    )
    assert torch.equal(run(gamma, label)["segmentation"], label)


def test_all_of_nnunets_augmentation_keeps_the_label_soft() -> None:
    """Every transform of the stock pipeline, dummy-2d mode included, many times over."""
    label = 0.37 * torch.ones(1, 16, 32, 32)
    for dummy_2d in (False, True):
        np.random.seed(1)
        torch.manual_seed(1)
        stock = nnUNetTrainer.get_training_transforms(
            (16, 32, 32),
            (-0.5, 0.5),
            None,
            (0, 1, 2),
            dummy_2d,
            use_mask_for_norm=[False],
            foreground_labels=[1],
        )
        for _ in range(25):
            out = run(stock, label.clone(), scales=SCALES)["segmentation"]
            centre = out[0][0, 6:10, 12:20, 12:20]
            np.testing.assert_allclose(centre, 0.37, atol=1e-5)
            assert [tuple(level.shape) for level in out] == [(1, 16, 32, 32), (1, 8, 16, 16), (1, 4, 16, 8)]
            assert all(level.dtype == torch.float32 for level in out)


def test_masked_normalisation_still_sees_the_segmentation() -> None:
    stock = nnUNetTrainer.get_training_transforms(
        (8, 8, 8), (0, 0), None, (), False, use_mask_for_norm=[True], foreground_labels=[1]
    )
    image, label = torch.ones(1, 8, 8, 8), torch.full((1, 8, 8, 8), 0.37)
    segmentation = torch.zeros(1, 8, 8, 8, dtype=torch.int16)
    segmentation[:, :4] = -1
    np.random.seed(3)
    torch.manual_seed(3)
    out = soft_transforms(stock, 1, None, keep_segmentation=True)(
        image=torch.cat([image, label]), segmentation=segmentation
    )
    assert float(out["image"][:, :4].abs().max()) == 0
    assert torch.equal(out["segmentation"], label)


def test_deep_supervision_averages_down() -> None:
    label = torch.rand(2, 4, 8, 4)
    levels = average_down(label, SCALES)
    assert torch.equal(levels[0], label)
    by_hand = label.reshape(2, 2, 2, 4, 2, 2, 2).mean(dim=(2, 4, 6))
    torch.testing.assert_close(levels[1], by_hand)
    assert levels[2].shape == (2, 1, 4, 1)
    for level in levels:
        torch.testing.assert_close(level.mean(dim=(1, 2, 3)), label.mean(dim=(1, 2, 3)))


def test_a_coarse_level_is_the_mean_of_voxels_also_after_one_that_is_not() -> None:
    """12 voxels averaged down to 8 overlap, and so do not serve for 4; those of 6 serve for 3."""
    label = torch.rand(2, 12, 12)
    for sizes in ((8, 4), (6, 3), (12, 4, 2)):
        levels = average_down(label, [[size / 12] * 2 for size in sizes])
        for level, size in zip(levels, sizes, strict=True):
            if 12 % size == 0:
                block = 12 // size
                by_hand = label.reshape(2, size, block, size, block).mean(dim=(2, 4))
                torch.testing.assert_close(level, by_hand)


def test_hard_training_thresholds_before_averaging() -> None:
    label = torch.tensor([0.5, 0.51, 0.2, 1.0]).reshape(1, 1, 1, 4).expand(1, 2, 2, 4)
    full, half = run(ComposeTransforms([]), label, scales=[[1, 1, 1], [0.5, 0.5, 0.5]], hard_threshold=0.5)[
        "segmentation"
    ]
    assert full[0, 0, 0].tolist() == [0, 1, 0, 1]
    assert half[0, 0, 0].tolist() == [0.5, 0.5]


def test_a_transform_that_drops_the_label_is_caught() -> None:
    class Forgetful(BasicTransform):
        def _apply_to_image(self, img: torch.Tensor, **params: object) -> torch.Tensor:
            return img

    with pytest.raises(RuntimeError, match="_apply_to_regr_target"):
        run(Forgetful(), ball())


# Unknown voxels


def test_coarse_targets_are_means_of_what_is_known() -> None:
    label, known = torch.rand(2, 8, 8, 8), (torch.rand(2, 8, 8, 8) < 0.6).float()
    framed = soft_transforms(ComposeTransforms([]), 2, [[1, 1, 1], [0.5, 0.5, 0.5]], weighted=True)
    stacked = torch.cat([torch.randn(1, 8, 8, 8), label * known, known])
    full, half = framed(image=stacked)["segmentation"]
    assert torch.equal(full, torch.cat([label * known, known]))
    for block, x, y, z in [(0, 1, 2, 3), (1, 0, 0, 3)]:
        part = (block, *(slice(2 * at, 2 * at + 2) for at in (x, y, z)))
        number = float(known[part].sum())
        assert float(half[2 + block, x, y, z]) == pytest.approx(number / 8)
        mean = float((label * known)[part].sum()) / number if number else 0
        assert float(half[block, x, y, z]) == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_single_annotated_slice_survives_rotation(seed: int) -> None:
    """Its label is 0.37 all over: so is that of all voxels that stay known, and many do."""
    np.random.seed(seed)
    known = torch.zeros(1, 32, 32, 32)
    known[:, 15] = 1
    rotate = spatial(p_rotation=1, rotation=(-np.pi / 6, np.pi / 6))
    value, weight = run(rotate, torch.cat([0.37 * known, known]), weighted=True)["segmentation"]
    torch.testing.assert_close(value, 0.37 * weight)
    assert set(torch.unique(weight).tolist()) == {0, 1}
    assert float(weight.sum()) > 0.5 * 32 * 32
