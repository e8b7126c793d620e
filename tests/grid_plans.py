"""Plans as far as preprocessing reads them, and nnU-Net's own preprocessing by the same plans."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_softseg.settings import PLANS_KEY

INTENSITIES = {"mean": 40.0, "std": 12.0, "percentile_00_5": 10.0, "percentile_99_5": 75.0}


def configuration(
    spacing_mm: Sequence[float],
    *,
    force_separate_z: bool | None = None,
    masked: bool = False,
    scheme: str = "ZScoreNormalization",
    channels: int = 1,
    patch_size: Sequence[int] = (32, 32, 32),
    **changes: Any,
) -> ConfigurationManager:
    """A configuration of the plans, as nnU-Net's planner writes it."""
    keywords = {"order_z": 0, "force_separate_z": force_separate_z}
    return ConfigurationManager(
        {
            "architecture": {},
            "spacing": list(spacing_mm),
            "patch_size": list(patch_size),
            "normalization_schemes": [scheme] * channels,
            "use_mask_for_norm": [masked] * channels,
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **keywords},
            "resampling_fn_seg": "resample_data_or_seg_to_shape",
            "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **keywords},
            **changes,
        }
    )


def plans(
    transpose: Sequence[int] = (0, 1, 2), reader: Any = None, channels: int = 1, **entry: Any
) -> SimpleNamespace:
    """The plans around it; `entry` is ours: si_axis, orientation."""
    return SimpleNamespace(
        transpose_forward=list(transpose),
        transpose_backward=[int(axis) for axis in np.argsort(transpose)],
        foreground_intensity_properties_per_channel={str(index): INTENSITIES for index in range(channels)},
        image_reader_writer_class=reader,
        plans={PLANS_KEY: {"si_axis": None, "orientation": None, **entry}},
    )


def by_nnunet(data: np.ndarray, properties: dict[str, Any], the_plans: Any, manager: Any) -> np.ndarray:
    """The whole case (channel, *space), preprocessed by nnU-Net."""
    case, _, _ = DefaultPreprocessor(verbose=False).run_case_npy(
        data, None, properties, the_plans, manager, {}
    )
    return case


def cut(case: np.ndarray, box: Sequence[tuple[int, int]]) -> np.ndarray:
    """A box of a whole case, 0 where it reaches beyond."""
    margin = max(max(-start, stop - size, 0) for (start, stop), size in zip(box, case.shape[1:], strict=True))
    padded = np.pad(case, [(0, 0), *[(margin, margin)] * 3])
    return padded[(slice(None), *(slice(start + margin, stop + margin) for start, stop in box))]


def vanilla_plans() -> dict[str, Any]:
    """As nnU-Net's planner writes them, for a network of two stages."""
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    block = {
        "n_stages": 2,
        "features_per_stage": [4, 8],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * 2,
        "strides": [[1, 1, 1], [2, 2, 2]],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [24, 16, 12],
        "median_image_size_in_voxels": [24.0, 18.0, 14.0],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": block,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    return {
        "dataset_name": "Dataset901_Tiny",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {"mean": 100.0, "std": 50.0}},
    }
