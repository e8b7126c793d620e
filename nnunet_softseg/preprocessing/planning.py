"""Planners: nnU-Net's own, with another grid, patch and network, and thick slices interpolated."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.experiment_planning.experiment_planners.resencUNet_planner import ResEncUNetPlanner
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_softseg.datasets.raw_dataset import one_orientation
from nnunet_softseg.errors import UserError, show_without_traceback
from nnunet_softseg.io.formats import is_picture
from nnunet_softseg.io.geometry import VoxelGrid
from nnunet_softseg.io.nifti import load_nifti

PATCH_MM = {"SI": 320.0, "AP": 192.0, "RL": 64.0}
"""Bedard et al. 2025, section 3.3: 64 x 192 x 320 voxels of 1 mm in R-L, A-P, S-I."""
SMALLEST_MM = {"SI": 64.0, "AP": 64.0, "RL": 32.0}
"""A patch shorter than this along an axis, for want of GPU memory, would miss the cord's surroundings."""
_BODY_AXES = ("SI", "AP", "RL")
"""Array axes of a reader that reorients; also the order in which a patch is shortened."""
_AXES_OF_3D = 3

show_without_traceback()


class SoftSegPlanner(ExperimentPlanner):  # type: ignore[misc]
    """The configuration of Bedard et al. 2025, sections 3.3 and 3.4: 1 mm isotropic, one large patch.

    A plain U-Net with 32, 64, 128, 256 and 320 features, two convolutions a stage, two cases a batch. The
    patch is 64 x 192 x 320 mm in R-L, A-P, S-I: shorter where the median case is, in multiples of the stride.
    Where GPU memory is too small for it, S-I is shortened first, as it is seen in tiles, then A-P, then R-L.

    `nnUNetv2_plan_and_preprocess -d 101 -c 3d_fullres -pl SoftSegPlanner` writes `nnUNetSoftSegPlans`.
    """

    patch_mm: ClassVar[Mapping[str, float]] = PATCH_MM
    features: ClassVar[tuple[int, ...]] = (32, 64, 128, 256, 320)
    batch_size: ClassVar[int] = 2
    patch_2d: ClassVar[int | None] = None
    """Pixels along the longest side of the patch of a 2d configuration; None: nnU-Net's patch and network."""
    batch_size_2d: ClassVar[int] = 8
    default_plans_name: ClassVar[str] = "nnUNetSoftSegPlans"
    default_gpu_memory_gb: ClassVar[float] = 16.0

    def __init__(  # noqa: PLR0917  nnU-Net's signature
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float | None = None,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = True,
    ) -> None:
        super().__init__(
            dataset_name_or_id,
            self.default_gpu_memory_gb if gpu_memory_target_in_gb is None else gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name or self.default_plans_name,
            tuple(overwrite_target_spacing) if overwrite_target_spacing is not None else (1.0, 1.0, 1.0),
            True,  # with isotropic voxels there is nothing to transpose for
        )
        is_flat = all(shape[0] == 1 for shape in self.dataset_fingerprint["shapes_after_crop"])
        if is_flat and overwrite_target_spacing is None:
            self.overwrite_target_spacing = None  # images of one slice: their own median, as in nnU-Net
        self.lowres_creation_threshold = 0.0
        self.UNet_base_num_features = self.features[0]
        self.UNet_max_features_3d = self.features[-1]

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Return the name of the preprocessed data: by the plans, whose grid may have been overwritten."""
        return f"{self.plans_identifier}_{configuration_name}"

    def determine_resampling(
        self, *args: Any, **kwargs: Any
    ) -> tuple[Any, dict[str, Any], Any, dict[str, Any]]:
        """Return nnU-Net's functions, with thick slices interpolated like the other axes."""
        image, options, label, label_options = super().determine_resampling(*args, **kwargs)
        ours = {"force_separate_z": False}
        return image, {**options, **ours}, label, {**label_options, **ours}

    def get_plans_for_configuration(
        self,
        spacing: Any,
        median_shape: Any,
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict[Any, Any],
    ) -> dict[str, Any]:
        """Return nnU-Net's plan, in 3d with our patch and network."""
        plan: dict[str, Any] = super().get_plans_for_configuration(
            spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
        )
        if len(spacing) == _AXES_OF_3D:
            plan["batch_size"] = self.batch_size
            self._fit_patch_and_network(plan, spacing, median_shape)
        elif self.patch_2d is not None:
            wanted = [min(self.patch_2d, int(length)) for length in np.ceil(median_shape)]
            plan["patch_size"], _ = self._set_network(plan, spacing, wanted)
            plan["batch_size"] = self.batch_size_2d
        return plan

    def _fit_patch_and_network(self, plan: dict[str, Any], spacing: Any, median_shape: Any) -> None:
        """Give the plan the largest patch that cases need and the memory target holds, and its network."""
        axes = self.body_axes()
        wanted = [
            min(round(self.patch_mm[axis] / size), int(length))
            for axis, size, length in zip(axes, spacing, np.ceil(median_shape), strict=True)
        ]
        smallest = [round(SMALLEST_MM[axis] / size) for axis, size in zip(axes, spacing, strict=True)]
        shortened_first = [axes.index(axis) for axis in _BODY_AXES]
        while True:
            patch_size, divisors = self._set_network(plan, spacing, wanted)
            if self._gigabytes(plan, patch_size) <= self.UNet_vram_target_GB:
                break
            for axis in shortened_first:
                if patch_size[axis] - divisors[axis] >= smallest[axis]:
                    wanted = [*patch_size]
                    wanted[axis] -= divisors[axis]
                    break
            else:
                least = math.ceil(10 * self._gigabytes(plan, patch_size)) / 10
                raise UserError(
                    f"-gpu_memory_target {self.UNet_vram_target_GB:g}: too small for {type(self).__name__}, "
                    f"expected {least} or more, for the smallest patch, "
                    f"{' x '.join(map(str, patch_size))} voxels: raise it, or use nnU-Net's own planner"
                )
        plan["patch_size"] = patch_size

    def _set_network(
        self, plan: dict[str, Any], spacing: Any, wanted: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Give the plan the network for a patch; return the patch in multiples of its strides, and these."""
        levels = len(self.features)
        _, strides, kernels, _, _ = get_pool_and_conv_props(
            spacing, wanted, self.UNet_featuremap_min_edge_length, levels - 1
        )
        # On an anisotropic grid the axes are pooled one after the other, which would take more levels.
        strides, kernels = strides[:levels], kernels[:levels]
        divisors = np.prod(strides, axis=0)
        patch_size = np.ceil(np.asarray(wanted) / divisors) * divisors
        stages = len(strides)
        architecture = plan["architecture"]["arch_kwargs"]
        encoder = "n_blocks_per_stage" if "n_blocks_per_stage" in architecture else "n_conv_per_stage"
        architecture |= {
            "n_stages": stages,
            "features_per_stage": self.features[:stages],
            "kernel_sizes": kernels,
            "strides": strides,
            encoder: self.UNet_blocks_per_stage_encoder[:stages],
            "n_conv_per_stage_decoder": self.UNet_blocks_per_stage_decoder[: stages - 1],
        }
        return [int(length) for length in patch_size], [int(divisor) for divisor in divisors]

    def _gigabytes(self, plan: Mapping[str, Any], patch_size: Sequence[int]) -> float:
        """Return nnU-Net's estimate of the GPU memory that training takes, with two cases a batch."""
        inputs, outputs = (len(self.dataset_json[name]) for name in ("channel_names", "labels"))
        keys = ("network_class_name", "arch_kwargs", "_kw_requires_import")
        architecture = [plan["architecture"][key] for key in keys]
        estimate = self.static_estimate_VRAM_usage(tuple(patch_size), inputs, outputs, *architecture)
        return float(estimate / self.UNet_reference_val_3d * self.UNet_reference_val_corresp_GB)

    @staticmethod
    def static_estimate_VRAM_usage(  # noqa: N802, PLR0917  nnU-Net's signature
        patch_size: tuple[int, ...],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: dict[str, Any],
        arch_kwargs_req_import: tuple[str, ...],
    ) -> int:
        """Return the size of all feature maps, as nnU-Net does, whose own fails if nnUNet_n_proc_DA is 0."""
        with torch.device("meta"):  # weights take no memory and no time; only their number matters here
            architecture = (arch_class_name, arch_kwargs, arch_kwargs_req_import)
            channels = (input_channels, output_channels)
            network = get_network_from_plans(*architecture, *channels, allow_init=False)
        return int(network.compute_conv_feature_map_size(patch_size))

    def body_axes(self) -> tuple[str, ...]:
        """Return "SI", "AP" or "RL" of each array axis; raise a UserError if cases differ or do not tell."""
        reader: str = self.determine_reader_writer().__name__
        if "Reorient" in reader:
            return _BODY_AXES
        if is_picture(self.dataset_json["file_ending"]):
            raise UserError(
                f"{self.dataset_name}: {type(self).__name__} must know which axis is S-I, expected NIfTI, "
                f"MHA or NRRD, found {self.dataset_json['file_ending']}, of which {reader} gives no "
                "orientation: plan without -pl, with nnU-Net's own planner, or convert the images"
            )
        by_case = {name: _body_axes_of(Path(case["images"][0])) for name, case in self.dataset.items()}
        first, axes = next(iter(by_case.items()))
        other = next((name for name, found in by_case.items() if found != axes), None)
        if other is not None:
            raise UserError(
                f"{self.dataset_name}: mixed orientations, expected array axes that run the same way in all "
                f"cases, found {', '.join(axes)} in {first} and {', '.join(by_case[other])} in {other}: "
                f"{one_orientation(self.dataset_json['file_ending'])}"
            )
        return axes


def _body_axes_of(image: Path) -> tuple[str, ...]:
    """Return the body axes of an image as a reader that does not reorient gives it: (k, j, i) of the file."""
    letters = VoxelGrid.of(load_nifti(image)).orientation[::-1]
    return tuple(next(axis for axis in PATCH_MM if letter in axis) for letter in letters)


class SoftSegResEncPlanner(SoftSegPlanner, ResEncUNetPlanner):  # type: ignore[misc]
    """The same grid and patch for nnU-Net's residual encoder: 1, 3, 4, 6, 6 blocks a stage."""

    default_plans_name = "nnUNetSoftSegResEncPlans"


class SoftSegCordPlanner(SoftSegPlanner):
    """The paper's network for the spinal cord, with a patch of 48 x 96 mm in R-L and A-P: 0.375 of the work.

    A cord is 12 mm wide. One that does not run in the middle of its image is looked for at prediction.
    """

    patch_mm = {"SI": 320.0, "AP": 96.0, "RL": 48.0}  # noqa: RUF012  as in the class above
    default_plans_name = "nnUNetSoftSegCordPlans"


class SoftSegDemoPlanner(SoftSegPlanner):
    """A network small enough to train on a laptop's CPU in minutes; for trying things out, not for results.

    1 mm isotropic, as the paper; a patch of 64 x 40 x 32 mm (S-I, A-P, R-L) at most; 8 to 64 features. In 2d
    64 x 64 pixels of the images' own size, and batches of 8.
    """

    patch_2d = 64
    patch_mm = {"SI": 64.0, "AP": 40.0, "RL": 32.0}  # noqa: RUF012  as in the class above
    features = (8, 16, 32, 64)
    default_plans_name = "nnUNetSoftSegDemoPlans"
    default_gpu_memory_gb = 8.0


class SoftSegReadyPlanner(SoftSegPlanner):
    """The network of the ready model, small enough to train on a CPU in hours: 16 to 128 features.

    1 mm isotropic, as the paper; a patch of 48 mm along each axis at most.
    """

    patch_mm = {"SI": 48.0, "AP": 48.0, "RL": 48.0}  # noqa: RUF012  as in the class above
    features = (16, 32, 64, 128)
    default_plans_name = "nnUNetSoftSegReadyPlans"
    default_gpu_memory_gb = 8.0
