"""The network as torch runs it fastest: the same weights, rearranged, and where it pays in bfloat16."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from nnunet_softseg.network import unwrapped

_INSTANCE_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d)


class TorchNetwork:
    """A network on the CPU: instance norm by the faster kernel of group norm, arrays let go at once.

    In bfloat16 the first convolution and the head stay in float32. They cost next to nothing, and intensities
    and weights that are rounded to three digits at the first convolution move whole areas: on patches of two
    trained networks by up to 0.14 mm2 over 18 slices, against 0.03 where all but that one are rounded.

    Args:
        network: one of nnU-Net's U-Nets, in three dimensions if in bfloat16; it is left as it is.
        precision: "float32" or "bfloat16".
    """

    def __init__(self, network: nn.Module, precision: str) -> None:
        self.name = f"torch {precision}"
        self._unet = UNetInStages(_with_group_norm(unwrapped(network)))
        if precision == "bfloat16":
            self._unet.in_bfloat16()

    def __call__(self, patch: torch.Tensor) -> torch.Tensor:
        """Return the raw output (label, *space) float32 of a patch (channel, *space)."""
        return self._unet(patch[None])[0].float()


class CudaNetwork:
    """A network on a GPU: half precision where autocast takes it, channels last as tensor cores have them.

    It is compiled only if nnU-Net was told to (its environment variable nnUNet_compile): compiling takes
    longer than a hundred passes.

    Args:
        network: on its device.
    """

    def __init__(self, network: nn.Module) -> None:
        self.name = "torch cuda autocast"
        self._network = network
        self._device = next(network.parameters()).device
        tensor_cores = torch.cuda.get_device_capability(self._device) >= (7, 0)
        self._format = torch.channels_last_3d if tensor_cores else torch.contiguous_format

    def __call__(self, patch: torch.Tensor) -> torch.Tensor:
        """Return the raw output (label, *space) float32 of a patch (channel, *space), on the GPU."""
        batch = patch[None].to(self._device)
        if batch.ndim == 5:  # noqa: PLR2004  batch, channel and three of space
            batch = batch.contiguous(memory_format=self._format)
        with torch.autocast("cuda"):
            raw: torch.Tensor = self._network(batch)[0].float()
        return raw


class UNetInStages:
    """A U-Net of nnU-Net's, run stage by stage: a skip connection is let go as soon as it is used.

    Args:
        network: plain or residual, for which `fits` holds.
    """

    def __init__(self, network: nn.Module) -> None:
        if not self.fits(network):
            raise ValueError(f"{type(network).__name__} is not one of nnU-Net's U-Nets")
        unet: Any = network
        self._first, first_stage = _first_convolution(unet.encoder)
        self._encoder = [first_stage, *unet.encoder.stages[1:]]
        self._up, self._decoder = [*unet.decoder.transpconvs], [*unet.decoder.stages]
        self._head = unet.decoder.seg_layers[-1]
        self._inner = torch.float32

    @staticmethod
    def fits(network: nn.Module) -> bool:
        """Return whether a network has the parts of nnU-Net's U-Nets."""
        encoder: Any = getattr(network, "encoder", None)
        decoder: Any = getattr(network, "decoder", None)
        parts = ("transpconvs", "stages", "seg_layers")
        if not hasattr(encoder, "stages") or not all(hasattr(decoder, part) for part in parts):
            return False
        return getattr(encoder, "stem", None) is not None or hasattr(encoder.stages[0][-1], "convs")

    def in_bfloat16(self) -> None:
        """Put all but the first convolution and the head into bfloat16."""
        self._inner = torch.bfloat16
        for stage in [*self._encoder, *self._up, *self._decoder]:
            for parent in [*stage.modules()]:
                for name, child in parent.named_children():
                    if isinstance(child, nn.AvgPool3d):
                        setattr(parent, name, _InFloat32(child))
            stage.to(dtype=torch.bfloat16, memory_format=torch.channels_last_3d)

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the raw output of a batch (batch, channel, *space), at full resolution."""
        features = self._first(batch).to(self._inner)
        skips = []
        for stage in self._encoder:
            features = stage(features)
            skips.append(features)
        skips.pop()
        for upsample, stage in zip(self._up, self._decoder, strict=True):
            features = torch.cat((upsample(features), skips.pop()), 1)
            features = stage(features)
        raw: torch.Tensor = self._head(features.float())
        return raw


class _InFloat32(nn.Module):
    """What torch has not in bfloat16 on a CPU: the average pooling of residual encoders."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return what the part makes of the features, in their precision."""
        made: torch.Tensor = self.part(features.float()).to(features.dtype)
        return made


def _first_convolution(encoder: Any) -> tuple[nn.Module, nn.Module]:
    """Return the convolution that sees the image, with its norm, and what of the first stage comes after."""
    first_stage = encoder.stages[0]
    stem = getattr(encoder, "stem", None)
    if stem is not None:
        return stem, first_stage
    convolutions = first_stage[-1].convs
    return nn.Sequential(*first_stage[:-1], convolutions[0]), nn.Sequential(*convolutions[1:])


def _with_group_norm(network: nn.Module) -> nn.Module:
    """Return a copy whose instance norms are group norms of one channel each: the same numbers."""
    copy = deepcopy(network).eval()
    for parent in copy.modules():
        for name, child in parent.named_children():
            if isinstance(child, _INSTANCE_NORMS) and not child.track_running_stats:
                setattr(parent, name, _as_group_norm(child))
    return copy


def _as_group_norm(norm: Any) -> nn.GroupNorm:
    channels = norm.num_features
    group_norm = nn.GroupNorm(channels, channels, eps=norm.eps, affine=norm.affine)
    group_norm.load_state_dict(norm.state_dict())
    return group_norm.to(norm.weight.device if norm.affine else "cpu").eval()
