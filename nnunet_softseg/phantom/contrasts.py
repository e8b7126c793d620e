"""The six contrasts: voxel size, orientation on disk, brightness of each tissue, blur, noise, and how raters outline the cord."""

from dataclasses import dataclass
from enum import IntEnum

from nnunet_softseg.errors import UserError


class Tissue(IntEnum):
    """What a point of the neck consists of."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    LIGAMENT = 4
    MARROW = 5
    BONE = 6
    NUCLEUS = 7
    ANNULUS = 8
    ARTERY = 9
    VEIN = 10
    NODE = 11
    MUCOSA = 12
    EPIDURAL = 13
    CSF = 14
    WHITE = 15
    GREY = 16


@dataclass(frozen=True)
class Contrast:
    """How one contrast is acquired.

    `voxel_mm` is R-L, A-P, S-I. `orientation` holds the directions in which the array axes grow. `brightness` has one value per
    `Tissue`, fat in T1w = 1. `psf` is the sigma of the point spread function in voxels (in plane only for `axial` ones).
    `snr` is that of white matter. `mask_area_bias` is the relative error of a rater's cord area: 0.04 outlines it 4 % too large.
    """

    name: str
    folder: str
    source_suffix: str
    voxel_mm: tuple[float, float, float]
    orientation: str
    axial: bool
    psf: float
    snr: float
    mask_area_bias: float
    brightness: tuple[float, ...]

    def source_name(self, subject: str) -> str:
        """Return the BIDS name of the image without its ending: `sub-01_T2w`."""
        return f"{subject}_{self.source_suffix}"


# Order of the brightness: air, skin, fat, muscle, ligament, marrow, bone, nucleus, annulus, artery, vein, node, mucosa,
# epidural, CSF, white, grey. Nodes are as bright as the cord in every contrast, and so is muscle in T1w: brightness alone does
# not find the cord. The area biases put T2w 8.0 % above T1w, (1 + 0.0368) / (1 - 0.04); their mean is close to 0.
CONTRASTS = (
    Contrast(
        "T1w", "anat", "T1w", (1.0, 1.0, 1.0), "PSR", False, 0.40, 26.0, -0.040,
        (0.01, 0.45, 1.00, 0.44, 0.16, 0.62, 0.07, 0.36, 0.24, 0.30, 0.34, 0.52, 0.40, 0.50, 0.15, 0.54, 0.46),
    ),
    Contrast(
        "T2w", "anat", "T2w", (0.8, 0.8, 0.8), "AIL", False, 0.45, 24.0, 0.0368,
        (0.01, 0.30, 0.72, 0.22, 0.10, 0.46, 0.05, 0.62, 0.16, 0.05, 0.26, 0.40, 0.55, 0.46, 1.00, 0.37, 0.45),
    ),
    Contrast(
        "T2star", "anat", "T2star", (0.5, 0.5, 3.0), "RPI", True, 0.55, 20.0, 0.020,
        (0.01, 0.40, 0.58, 0.42, 0.22, 0.24, 0.04, 0.60, 0.34, 0.82, 0.66, 0.53, 0.60, 0.42, 0.92, 0.50, 0.68),
    ),
    Contrast(
        "mt-on", "anat", "flip-1_mt-on_MTS", (0.9, 0.9, 5.0), "LAS", True, 0.50, 22.0, -0.010,
        (0.01, 0.34, 0.66, 0.26, 0.12, 0.30, 0.04, 0.48, 0.26, 0.66, 0.52, 0.34, 0.46, 0.34, 0.74, 0.33, 0.41),
    ),
    Contrast(
        "mt-off", "anat", "flip-2_mt-off_MTS", (0.9, 0.9, 5.0), "LAS", True, 0.50, 24.0, -0.025,
        (0.01, 0.48, 0.98, 0.50, 0.22, 0.48, 0.05, 0.44, 0.32, 0.96, 0.60, 0.60, 0.50, 0.44, 0.28, 0.62, 0.55),
    ),
    Contrast(
        "dwi", "dwi", "rec-average_dwi", (0.9, 0.9, 5.0), "LAS", True, 0.65, 18.0, 0.015,
        (0.01, 0.08, 0.07, 0.20, 0.06, 0.10, 0.03, 0.22, 0.08, 0.05, 0.12, 0.82, 0.30, 0.12, 0.16, 0.84, 0.76),
    ),
)  # fmt: skip


def contrast_named(name: str) -> Contrast:
    """Return the contrast of this name.

    Raises:
        UserError: if there is none; it lists those that exist.
    """
    for contrast in CONTRASTS:
        if contrast.name == name:
            return contrast
    raise UserError(f"unknown contrast {name!r}: choose among {', '.join(contrast.name for contrast in CONTRASTS)}")
