"""The same augmentation on batches that lie on the device already, so that few CPU cores feed a fast GPU.

batchgeneratorsv2 makes the sampling grid and the kernels of the Gaussian blur on the CPU, all else where the
image lies. Here both are made on the device; random numbers are drawn as there.
"""

import copy
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform

from nnunet_softseg.training.augmentation.paper import sample


class SpatialOnDevice(SpatialTransform):  # type: ignore[misc]
    """nnU-Net's rotation and scaling; image and soft label are sampled linearly where they lie."""

    def _get_base_grid_clone(self) -> torch.Tensor:
        """Return one point in place of all, as the library's own grid is not used."""
        return torch.zeros((1,) * len(self.patch_size) + (len(self.patch_size),))

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        if params["affine"] is None:
            cropped: torch.Tensor = super()._apply_to_image(img, **params)
            return cropped
        centre = [
            place - length / 2
            for place, length in zip(params["center_location_in_pixels"], img.shape[1:], strict=True)
        ]
        matrix = torch.from_numpy(params["affine"]).float()
        offset = torch.tensor(centre, dtype=torch.float32)
        return sample({"image": img}, self.patch_size, matrix=matrix, offset=offset, lattice=None)["image"]


class BlurOnDevice(GaussianBlurTransform):  # type: ignore[misc]
    """nnU-Net's Gaussian blur, its kernels made where the image lies."""

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        with torch.device(img.device):
            blurred: torch.Tensor = super()._apply_to_image(img, **params)
        return blurred


def for_device(transform: BasicTransform) -> BasicTransform:
    """Return a transform, or a pipeline of them, that computes where the image lies."""
    if isinstance(transform, ComposeTransforms):
        return ComposeTransforms([for_device(each) for each in transform.transforms])
    if isinstance(transform, RandomTransform):
        return RandomTransform(for_device(transform.transform), transform.apply_probability)
    if type(transform) is GaussianBlurTransform:
        return _as(BlurOnDevice, transform, benchmark=False)
    if type(transform) is SpatialTransform:
        sampling = (transform.mode_image, transform.padding_mode_image, transform.align_corners)
        if transform.p_elastic_deform or sampling != ("bilinear", "zeros", False):
            raise ValueError(
                "augmentation on the device: expected linear sampling, zeros beyond the image and no elastic "
                f"deformation by batchgeneratorsv2, got {sampling}, p_elastic_deform "
                f"{transform.p_elastic_deform}: use Movement, or augment in the workers"
            )
        return _as(SpatialOnDevice, transform)
    return transform


def _as(kind: type[BasicTransform], transform: BasicTransform, **changes: Any) -> BasicTransform:
    """Return a transform of a derived class with all that it holds."""
    made = copy.copy(transform)
    made.__class__ = kind
    vars(made).update(changes)
    return made


def augment_batch(
    transform: BasicTransform, images: torch.Tensor, soft_labels: torch.Tensor
) -> dict[str, torch.Tensor | list[torch.Tensor]]:
    """Return an augmented batch as nnU-Net's trainer takes it, where the images lie.

    Each sample is transformed by itself, `SoftTarget` last. Images (sample, channel, *space) and soft labels
    (sample, label, *space) are larger than the patch by all that turns into view.
    """
    with torch.no_grad():
        samples = [
            transform(image=image.clone(), regression_target=label)
            for image, label in zip(images, soft_labels, strict=True)
        ]
    targets = [sample["segmentation"] for sample in samples]
    deep = isinstance(targets[0], list)
    target = [torch.stack(level) for level in zip(*targets, strict=True)] if deep else torch.stack(targets)
    return {"data": torch.stack([sample["image"] for sample in samples]), "target": target}
