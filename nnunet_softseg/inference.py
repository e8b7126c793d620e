"""From a preprocessed case to its soft map: crop, forward in tiles, blend, NormReLU."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from tqdm import tqdm

from nnunet_softseg import case_record
from nnunet_softseg.center_crop import Box, inside, network_box
from nnunet_softseg.network import reference_plateau
from nnunet_softseg.norm_relu import norm_relu, plateau
from nnunet_softseg.settings import HARD_THRESHOLD, PLANS_KEY, SoftSegSettings


@torch.inference_mode()
def predict_soft_map(predictor: Any, image: torch.Tensor) -> torch.Tensor:
    """Return the soft maps of a preprocessed case.

    The network sees the box of `center_crop.network_box`; outside of it the map is 0. Tiles, where there are
    several, are blended raw; NormReLU is taken over the whole box, with a floor relative to the raw plateau
    that the network learned.

    Args:
        predictor: nnU-Net's, with a network and plans of ours.
        image: (channel, *space), preprocessed.

    Returns:
        (label, *space) float32 in [0, 1], on the CPU.
    """
    started = time.perf_counter()
    record = case_record.under_way()
    plans = predictor.plans_manager.plans
    settings = SoftSegSettings.from_plans(plans)
    shape = tuple(image.shape[1:])
    box = network_box(shape, predictor.configuration_manager.patch_size, plans[PLANS_KEY].get("si_axis"))
    raw = _blend_tiles(predictor, crop_and_pad_nd(image, [list(extent) for extent in box]))
    if all(float(channel.min()) == float(channel.max()) for channel in image):
        raw.zero_()  # a constant image: what a network answers to it says nothing
    reference = reference_plateau(predictor.network).float().cpu()
    soft_crop = norm_relu(raw[None], settings.floor_fraction * reference, robust=True)[0]
    soft_map = torch.zeros((raw.shape[0], *shape), dtype=torch.float32)
    soft_map[(slice(None), *inside(box, shape))] = soft_crop[(slice(None), *_valid(box, shape))]
    _note(record, predictor, raw, reference)
    _flag_border(record, predictor, soft_map, box)
    seconds = record["seconds"]
    seconds["forward"] = seconds.get("forward", 0.0) + time.perf_counter() - started
    return soft_map


def _valid(box: Box, shape: Sequence[int]) -> tuple[slice, ...]:
    """Return the part of the box that lies inside the case, in the box's own coordinates."""
    return tuple(
        slice(max(-start, 0), max(-start, 0) + min(stop, size) - max(start, 0))
        for (start, stop), size in zip(box, shape, strict=True)
    )


def _blend_tiles(predictor: Any, image: torch.Tensor) -> torch.Tensor:
    """Return the raw output (label, *space), float32 on the CPU, of an image of any size."""
    patch_size = tuple(predictor.configuration_manager.patch_size)
    predictor.network = predictor.network.to(predictor.device).eval()
    padded, back = pad_nd_image(image, patch_size, "constant", {"value": 0}, True, None)
    slicers = predictor._internal_get_sliding_window_slicers(padded.shape[1:])
    on_device = predictor.perform_everything_on_device and predictor.device.type == "cuda"
    try:
        raw = _blend(predictor, padded, slicers, predictor.device if on_device else torch.device("cpu"))
    except torch.cuda.OutOfMemoryError:
        if not on_device:
            raise
        raw = _blend(predictor, padded, slicers, torch.device("cpu"))
    return raw[(slice(None), *back[1:])].cpu()


def _blend(
    predictor: Any, image: torch.Tensor, slicers: Sequence[tuple[Any, ...]], collect_on: torch.device
) -> torch.Tensor:
    """Blend the tiles under nnU-Net's Gaussian, in float32: half precision would cost the third digit."""
    patch_size = tuple(predictor.configuration_manager.patch_size)
    heads = predictor.label_manager.num_segmentation_heads
    total = torch.zeros((heads, *image.shape[1:]), dtype=torch.float32, device=collect_on)
    weight = torch.zeros(image.shape[1:], dtype=torch.float32, device=collect_on)
    window: torch.Tensor | float = 1.0
    if predictor.use_gaussian and len(slicers) > 1:
        window = compute_gaussian(patch_size, sigma_scale=1.0 / 8, dtype=torch.float32, device=collect_on)
    for tile in tqdm(slicers, disable=not predictor.allow_tqdm or len(slicers) == 1):
        with torch.autocast("cuda", enabled=predictor.device.type == "cuda"):
            part = image[tile][None].to(predictor.device)
            raw = predictor._internal_maybe_mirror_and_predict(part)[0]
        total[tile] += raw.float().to(collect_on) * window
        weight[tile[1:]] += window
    return total / weight


def _note(record: dict[str, Any], predictor: Any, raw: torch.Tensor, reference: torch.Tensor) -> None:
    """Note the raw plateau of each label beside the one of training; folds of an ensemble add up in lists."""
    names = label_names(predictor.dataset_json, predictor.label_manager.foreground_labels)
    floor = SoftSegSettings.from_plans(predictor.plans_manager.plans).floor_fraction
    for name, found, learned in zip(names, plateau(raw[None]).flatten(), reference, strict=True):
        label = record["labels"].setdefault(name, {"raw_plateau": [], "raw_plateau_in_training": []})
        label["raw_plateau"].append(round(float(found), 4))
        label["raw_plateau_in_training"].append(round(float(learned), 4))
        if float(found) < floor * float(learned):
            case_record.add_warning(
                record,
                f"weak response for {name}: the network's raw output stands at {float(found):.3g}, in "
                f"training at {float(learned):.3g}; there may be none in this image",
            )


def _flag_border(record: dict[str, Any], predictor: Any, soft_map: torch.Tensor, box: Box) -> None:
    """Flag a soft map that reaches a face of the crop behind which the image goes on: it may be cut off."""
    for axis, ((start, stop), size) in enumerate(zip(box, soft_map.shape[1:], strict=True)):
        for face, image_goes_on in ((start, start > 0), (stop - 1, stop < size)):
            if image_goes_on and bool((soft_map.select(1 + axis, face) > HARD_THRESHOLD).any()):
                case_record.add_warning(
                    record,
                    "the soft map touches the border of the fixed patch: the structure may be cut off, "
                    "look at it",
                )


def label_names(dataset_json: dict[str, Any], foreground_labels: Sequence[int]) -> list[str]:
    """Return the names of the foreground labels, in the order of the channels."""
    by_value = {
        int(value): name
        for name, value in dataset_json["labels"].items()
        if not isinstance(value, list | tuple)
    }
    return [by_value[int(value)] for value in foreground_labels]
