"""Augmentation on the device: the same as in the workers, and nothing of it left on the CPU."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy.ndimage import gaussian_filter1d
from tiny_dataset import TinyDataset, make_ready_to_train, make_tiny_dataset
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from nnunet_softseg.errors import UserError
from nnunet_softseg.training.augmentation.contrast import (
    ContrastAugmentationSettings,
    FunctionRemap,
    RandomConvolution,
    Redistribution,
    ThickSlices,
    add_contrast_transforms,
)
from nnunet_softseg.training.augmentation.on_device import augment_batch, for_device
from nnunet_softseg.training.augmentation.paper import PaperAugmentation, paper_transforms
from nnunet_softseg.training.dataloading import SoftTarget, soft_transforms
from nnunet_softseg.training.variants import (
    nnUNetTrainerSoftSegContrastAug,
    nnUNetTrainerSoftSegContrastDeviceAug,
    nnUNetTrainerSoftSegDeviceAug,
)

PATCH, LOADED = (16, 20, 24), (22, 26, 30)
SCALES = [[1, 1, 1], [0.5, 0.5, 0.5]]


def seed_both(seed: int) -> None:
    np.random.seed(seed)
    torch.manual_seed(seed)


def sample(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An image and a soft label, larger than the patch."""
    random = torch.Generator().manual_seed(seed)
    place = torch.stack(torch.meshgrid(*[torch.arange(n) - (n - 1) / 2 for n in LOADED], indexing="ij"))
    label = torch.clamp((6 - place.square().sum(0).sqrt()) / 2 + 0.5, 0, 1)[None]
    return label + 0.3 * torch.randn(1, *LOADED, generator=random), label


def spatial(**changes: object) -> SpatialTransform:
    options = {"p_rotation": 1, "rotation": (-0.5, 0.5), "p_scaling": 1, "scaling": (0.7, 1.4)}
    fixed = {"patch_center_dist_from_border": 0, "random_crop": False, "bg_style_seg_sampling": False}
    return SpatialTransform(PATCH, **{**fixed, **options, **changes})


def nnunet(dummy_2d: bool = False) -> ComposeTransforms:
    return nnUNetTrainer.get_training_transforms(PATCH, (-0.5, 0.5), None, (0, 1, 2), dummy_2d)


def with_contrast() -> ComposeTransforms:
    return add_contrast_transforms(nnunet(), ContrastAugmentationSettings())


def of_the_paper() -> ComposeTransforms:
    return paper_transforms(PaperAugmentation(), PATCH, mirror_axes=(0, 1, 2))


def in_a_worker(augmentation: BasicTransform, image: torch.Tensor, label: torch.Tensor) -> dict[str, object]:
    framed = soft_transforms(augmentation, 1, SCALES)
    return framed(image=torch.cat([image, label]), segmentation=None)


PIPELINES = {
    "nnU-Net": nnunet,
    "nnU-Net, dummy 2d": lambda: nnunet(dummy_2d=True),
    "contrast": with_contrast,
    "paper": of_the_paper,
    "rotated, scaled": spatial,
    "rotated": lambda: spatial(p_scaling=0),
    "off the centre": lambda: spatial(random_crop=True, patch_center_dist_from_border=8),
    "cropped": lambda: spatial(p_scaling=0, p_rotation=0),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_from_the_same_random_numbers_comes_the_same_batch(name: str) -> None:
    augmentation = PIPELINES[name]()
    on_device = ComposeTransforms([for_device(augmentation), SoftTarget(SCALES)])
    for seed in range(8):
        image, label = sample(seed)
        seed_both(seed)
        expected = in_a_worker(augmentation, image, label)
        seed_both(seed)
        batch = augment_batch(on_device, image[None], label[None])
        # Sampling places are reckoned in another order, in float32.
        np.testing.assert_allclose(batch["data"][0], expected["image"], atol=2e-4)
        for level, wanted in zip(batch["target"], expected["segmentation"], strict=True):
            np.testing.assert_allclose(level[0], wanted, atol=2e-4)
            assert level.dtype == torch.float32


def test_a_sample_does_not_depend_on_its_batch_mates_and_each_is_changed_in_its_own_way() -> None:
    on_device = ComposeTransforms([for_device(with_contrast()), SoftTarget(None)])
    image, label = sample(0)
    other, other_label = sample(1)
    seed_both(5)
    alone = augment_batch(on_device, image[None], label[None])
    seed_both(5)
    both = augment_batch(on_device, torch.stack([image, other]), torch.stack([label, other_label]))
    assert torch.equal(both["data"][0], alone["data"][0])
    seed_both(5)
    twins = augment_batch(on_device, torch.stack([image, image]), torch.stack([label, label]))
    assert not torch.allclose(twins["data"][0], twins["data"][1], atol=1e-2)


def test_the_batch_of_the_loader_is_left_as_it_was() -> None:
    on_device = ComposeTransforms([for_device(with_contrast()), SoftTarget(None)])
    image, label = sample(0)
    images, labels = image[None].clone(), label[None].clone()
    for seed in range(5):
        seed_both(seed)
        augment_batch(on_device, images, labels)
    assert torch.equal(images[0], image)
    assert torch.equal(labels[0], label)


def test_the_soft_label_stays_soft_and_a_constant_one_constant() -> None:
    on_device = ComposeTransforms([for_device(spatial()), SoftTarget(None)])
    image, label = sample(0)
    seed_both(0)
    constant = augment_batch(on_device, image[None], torch.full_like(label, 0.37)[None])["target"][0]
    np.testing.assert_allclose(constant[0, 6:10, 7:13, 9:15], 0.37, atol=1e-5)
    moved = augment_batch(on_device, image[None], label[None])["target"][0]
    assert 0 <= float(moved.min()) < float(moved.max()) <= 1
    assert len(torch.unique(moved)) > 100


# Without a GPU, PyTorch's device "meta", of shapes without values, tells what was left on the CPU


class OneDevice(TorchDispatchMode):
    """Refuse every operation on tensors of two devices; numbers, and copies between devices, may mix."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        flat = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
        devices = {value.device.type for value in flat if value.ndim}
        assert len(devices) <= 1, f"{func} on {devices}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("transform", "parameters"),
    [
        (
            for_device(spatial()),
            {"affine": np.eye(3), "center_location_in_pixels": [11, 13, 15], "grid": torch.zeros(1)},
        ),
        (
            for_device(GaussianBlurTransform((0.5, 1.0))),
            {"apply_to_channel": torch.tensor([True]), "sigmas": [[0.7, 0.8, 0.9]]},
        ),
        (
            FunctionRemap(3, (0.0, 1.0)),
            {"channels": [{"knots": [0.0, 1.0, 2.0], "values": [0.0, 2.0, 1.0], "share": 0.5}]},
        ),
        (
            RandomConvolution(1, 1, (3,), (0.0, 1.0)),
            {"channels": [{"layers": [(torch.ones(1, 1, 3, 3, 3), torch.ones(1))], "share": 0.5}]},
        ),
        (ThickSlices((2.0, 6.0)), {"channels": [{"axis": 1, "thickness": 3.0}]}),
        (
            Redistribution((0.5, 1.5), (-1.0, 1.0)),
            {
                "channels": [
                    {
                        "soft_label": torch.empty(1, *LOADED, device="meta"),
                        "gains": [1, 2],
                        "shifts": [0, 1],
                    }
                ]
            },
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BasicTransform) else "",
)
def test_no_tensor_is_left_on_the_cpu(transform: BasicTransform, parameters: dict[str, object]) -> None:
    with OneDevice():
        out = transform._apply_to_image(torch.empty(1, *LOADED, device="meta"), **parameters)
    assert out.device.type == "meta"


def test_the_library_leaves_the_kernels_of_its_blur_there() -> None:
    """So that the one above would be told, if it did the same."""
    image = torch.empty(1, *LOADED, device="meta")
    blur = {"apply_to_channel": torch.tensor([True]), "sigmas": [[0.7, 0.8, 0.9]]}
    with OneDevice(), pytest.raises(AssertionError, match="convolution"):
        GaussianBlurTransform((0.5, 1.0))._apply_to_image(image, **blur)


def test_the_blur_is_that_of_scipy() -> None:
    blur = for_device(GaussianBlurTransform((0.5, 1.0)))
    image = torch.randn(1, 20, 21, 22)
    expected = image[0].numpy()
    for axis, sigma in enumerate([0.7, 0.8, 0.9]):
        expected = gaussian_filter1d(expected, sigma, axis, mode="mirror", truncate=4)
    found = blur._apply_to_image(
        image.clone(), apply_to_channel=torch.tensor([True]), sigmas=[[0.7, 0.8, 0.9]]
    )
    # The library's kernels end after about two sigma on each side.
    inner = (slice(4, -4),) * 3
    np.testing.assert_allclose(found[0][inner], expected[inner], atol=0.12)


def test_what_the_device_cannot_do_is_refused() -> None:
    for change in ({"p_elastic_deform": 0.2}, {"mode_image": "nearest"}, {"padding_mode_image": "border"}):
        with pytest.raises(
            ValueError, match="expected linear sampling, zeros beyond the image and no elastic"
        ):
            for_device(spatial(**change))


# The trainer


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyDataset:
    tiny = make_tiny_dataset(tmp_path, labels=(1,))
    make_ready_to_train(tiny, monkeypatch)
    return tiny


@pytest.fixture
def make(dataset: TinyDataset) -> Callable[..., nnUNetTrainerSoftSegDeviceAug]:
    def made(
        cls: type[nnUNetTrainerSoftSegDeviceAug] = nnUNetTrainerSoftSegDeviceAug, **changes: object
    ) -> nnUNetTrainerSoftSegDeviceAug:
        plans = {**dataset.plans(), "continue_training": False}
        configuration = plans["configurations"]["3d_fullres"]
        configuration.update(patch_size=[16, 16, 16], batch_size=2, **changes)
        configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 8]
        return cls(plans, "3d_fullres", "all", dataset.dataset_json, torch.device("cpu"))

    return made


def test_the_trainer_loads_larger_patches_and_augments_them_before_the_network(
    make: Callable[..., nnUNetTrainerSoftSegDeviceAug], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(nnUNetTrainerSoftSegContrastDeviceAug)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    seen: list[dict[str, object]] = []
    train_step = nnUNetTrainer.train_step
    monkeypatch.setattr(
        nnUNetTrainer, "train_step", lambda self, batch: seen.append(batch) or train_step(self, batch)
    )
    before = [parameter.clone() for parameter in trainer.network.parameters()]
    for _ in range(3):
        loaded = next(trainer.dataloader_train)
        assert min(loaded["data"].shape[2:]) >= 16
        assert max(loaded["data"].shape[2:]) > 16
        assert loaded["target"].shape[2:] == loaded["data"].shape[2:]
        assert np.isfinite(trainer.train_step(loaded)["loss"])
    for batch in seen:
        assert batch["data"].shape == (2, 1, 16, 16, 16)
        assert batch["target"][0].shape == (2, 1, 16, 16, 16)
        assert len(torch.unique(batch["target"][0])) > 50
    changed = [not torch.equal(*pair) for pair in zip(before, trainer.network.parameters(), strict=True)]
    assert any(changed)
    assert "contrast_augmentation" in trainer.plans_manager.plans["nnunet_softseg"]
    kinds = str(trainer._on_device)
    assert all(name in kinds for name in ("SpatialOnDevice", "BlurOnDevice", "Redistribution"))


def test_images_normalised_within_a_mask_are_refused(
    make: Callable[..., nnUNetTrainerSoftSegDeviceAug],
) -> None:
    trainer = make(use_mask_for_norm=[True])
    with pytest.raises(
        UserError, match=r"expected images normalised as a whole, .*: train nnUNetTrainerSoftSeg"
    ):
        trainer.on_train_start()


def test_contrast_comes_from_the_one_and_the_device_from_the_other() -> None:
    assert issubclass(nnUNetTrainerSoftSegContrastDeviceAug, nnUNetTrainerSoftSegContrastAug)
    order = nnUNetTrainerSoftSegContrastDeviceAug.__mro__
    assert order.index(nnUNetTrainerSoftSegDeviceAug) < order.index(nnUNetTrainerSoftSegContrastAug)
