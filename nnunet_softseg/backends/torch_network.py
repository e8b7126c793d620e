"""The network as torch runs it fastest: the same weights, rearranged, and where it pays in bfloat16."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from nnunet_softseg.network import unwrapped

_INSTANCE_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d)


class TorchNetwork:
    """A network on the CPU: instance norm by the faster kernel of group norm, arrays let go at once.

    In bfloat16 the last stage of the decoder and the head stay in float32: they decide the height of the
    plateau, and with it the whole map.

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
        stem = getattr(unet.encoder, "stem", None)
        self._encoder = [*unet.encoder.stages]
        if stem is not None:
            self._encoder[0] = nn.Sequential(stem, self._encoder[0])
        self._up, self._decoder = [*unet.decoder.transpconvs], [*unet.decoder.stages]
        self._head = unet.decoder.seg_layers[-1]
        self._inner = torch.float32

    @staticmethod
    def fits(network: nn.Module) -> bool:
        """Return whether a network has the parts of nnU-Net's U-Nets."""
        encoder, decoder = getattr(network, "encoder", None), getattr(network, "decoder", None)
        parts = ("transpconvs", "stages", "seg_layers")
        return hasattr(encoder, "stages") and all(hasattr(decoder, part) for part in parts)

    def in_bfloat16(self) -> None:
        """Put all but the last stage of the decoder and the head into bfloat16."""
        self._inner = torch.bfloat16
        for stage in [*self._encoder, *self._up, *self._decoder[:-1]]:
            stage.to(dtype=torch.bfloat16, memory_format=torch.channels_last_3d)

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the raw output of a batch (batch, channel, *space), at full resolution."""
        features = batch.to(self._inner)
        skips = []
        for stage in self._encoder:
            features = stage(features)
            skips.append(features)
        skips.pop()
        for upsample, stage in zip(self._up, self._decoder, strict=True):
            features = torch.cat((upsample(features), skips.pop()), 1)
            if stage is self._decoder[-1]:
                features = features.float()
            features = stage(features)
        raw: torch.Tensor = self._head(features)
        return raw


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
