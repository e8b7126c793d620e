"""Planners: how nnU-Net is told to plan for soft segmentation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner


class SoftSegDemoPlanner(ExperimentPlanner):  # type: ignore[misc]
    """A network small enough to train on a laptop's CPU in minutes; for trying things out, not for results.

    1 mm isotropic, as the paper; a patch of 64 x 40 x 32 voxels (S-I, A-P, R-L) at most; 8 to 64 features.
    nnU-Net does the rest: `nnUNetv2_plan_and_preprocess -d 900 -c 3d_fullres -pl SoftSegDemoPlanner`.
    """

    PATCH_SIZE = (64, 40, 32)
    FEATURES = (8, 16, 32, 64)
    BATCH_SIZE = 2

    def __init__(  # noqa: PLR0917  nnU-Net's signature
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "nnUNetSoftSegDemoPlans",
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = True,
    ) -> None:
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name,
            tuple(overwrite_target_spacing) if overwrite_target_spacing is not None else (1.0, 1.0, 1.0),
            # With isotropic voxels there is nothing to transpose for, and S-I stays the first axis.
            True,
        )
        self.lowres_creation_threshold = 0.0
        self.UNet_base_num_features = self.FEATURES[0]
        self.UNet_max_features_3d = self.FEATURES[-1]

    def determine_resampling(
        self, *args: Any, **kwargs: Any
    ) -> tuple[Any, dict[str, Any], Any, dict[str, Any]]:
        """Return nnU-Net's functions, with thick slices interpolated like the other axes."""
        image, image_options, segmentation, segmentation_options = super().determine_resampling(
            *args, **kwargs
        )
        return (
            image,
            {**image_options, "force_separate_z": False},
            segmentation,
            {**segmentation_options, "force_separate_z": False},
        )

    def get_plans_for_configuration(
        self,
        spacing: Any,
        median_shape: Any,
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict[Any, Any],
    ) -> dict[str, Any]:
        """Return nnU-Net's plan, with the small patch and network in 3d."""
        plan: dict[str, Any] = super().get_plans_for_configuration(
            spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
        )
        if len(spacing) == len(self.PATCH_SIZE):
            stages = len(self.FEATURES)
            architecture = plan["architecture"]["arch_kwargs"]
            architecture.update(
                n_stages=stages,
                features_per_stage=self.FEATURES,
                kernel_sizes=[[3, 3, 3]] * stages,
                strides=[[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
                n_conv_per_stage=[2] * stages,
                n_conv_per_stage_decoder=[2] * (stages - 1),
            )
            plan["patch_size"] = self._patch_size(median_shape)
            plan["batch_size"] = self.BATCH_SIZE
        return plan

    def _patch_size(self, median_shape: Any) -> list[int]:
        """Return the patch, no larger than the median case needs, in multiples of the network's stride."""
        stride = 2 ** (len(self.FEATURES) - 1)
        needed = [int(np.ceil(length / stride)) * stride for length in median_shape]
        return [min(patch, size) for patch, size in zip(self.PATCH_SIZE, needed, strict=True)]
