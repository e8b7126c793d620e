"""The six contrasts: voxels, orientation on disk, brightness of tissues, blur, noise, the raters' bias."""

from dataclasses import dataclass
from enum import IntEnum

from nnunet_softseg.errors import UserError


class Tissue(IntEnum):
    """The tissue at a point of the neck."""

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
    GLAND = 17


@dataclass(frozen=True)
class Contrast:
    """How one contrast is acquired.

    `voxel_mm` is R-L, A-P, S-I. `orientation` holds the directions in which the array axes grow. `brightness`
    has one value per `Tissue`. `psf` is the sigma of the point spread function in voxels (in plane only for
    `axial` ones). `snr` is that of white matter. `mask_area_bias` is the relative error of a rater's cord
    area: 0.04 outlines it 4 % too large.
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


# Columns: T1w, T2w, T2star, mt-on, mt-off, dwi; fat in T1w is 1. Nodes are as bright as the cord in every
# contrast, and muscle nearly so in T1w: brightness alone does not find the cord.
_BRIGHTNESS = {
    Tissue.AIR:      (0.01, 0.01, 0.01, 0.01, 0.01, 0.01),
    Tissue.SKIN:     (0.45, 0.30, 0.40, 0.34, 0.48, 0.08),
    Tissue.FAT:      (1.00, 0.72, 0.58, 0.66, 0.98, 0.07),
    Tissue.MUSCLE:   (0.44, 0.22, 0.42, 0.26, 0.50, 0.20),
    Tissue.LIGAMENT: (0.16, 0.10, 0.22, 0.12, 0.22, 0.06),
    Tissue.MARROW:   (0.62, 0.46, 0.24, 0.30, 0.48, 0.10),
    Tissue.BONE:     (0.07, 0.05, 0.04, 0.04, 0.05, 0.03),
    Tissue.NUCLEUS:  (0.36, 0.62, 0.60, 0.48, 0.44, 0.22),
    Tissue.ANNULUS:  (0.24, 0.16, 0.34, 0.26, 0.32, 0.08),
    Tissue.ARTERY:   (0.30, 0.05, 0.82, 0.66, 0.96, 0.05),
    Tissue.VEIN:     (0.34, 0.26, 0.66, 0.52, 0.60, 0.12),
    Tissue.NODE:     (0.52, 0.40, 0.53, 0.34, 0.60, 0.82),
    Tissue.MUCOSA:   (0.40, 0.55, 0.60, 0.46, 0.50, 0.30),
    Tissue.EPIDURAL: (0.50, 0.46, 0.42, 0.34, 0.44, 0.12),
    Tissue.CSF:      (0.15, 1.00, 0.92, 0.74, 0.28, 0.16),
    Tissue.WHITE:    (0.54, 0.37, 0.50, 0.33, 0.62, 0.84),
    Tissue.GREY:     (0.46, 0.45, 0.68, 0.41, 0.55, 0.76),
    Tissue.GLAND:    (0.58, 0.42, 0.55, 0.38, 0.70, 0.35),
}  # fmt: skip


_COLUMNS = tuple(zip(*(_BRIGHTNESS[tissue] for tissue in Tissue), strict=True))
# The raters' biases put T2w 8.0 % above T1w, (1 + 0.0368) / (1 - 0.04); the mean of all six is
# close to 0.
CONTRASTS = (
    Contrast(
        "T1w", "anat", "T1w", (1.0, 1.0, 1.0), "PSR", False,
        psf=0.4, snr=26.0, mask_area_bias=-0.04, brightness=_COLUMNS[0],
    ),
    Contrast(
        "T2w", "anat", "T2w", (0.8, 0.8, 0.8), "AIL", False,
        psf=0.45, snr=24.0, mask_area_bias=0.0368, brightness=_COLUMNS[1],
    ),
    Contrast(
        "T2star", "anat", "T2star", (0.5, 0.5, 3.0), "RPI", True,
        psf=0.55, snr=20.0, mask_area_bias=0.02, brightness=_COLUMNS[2],
    ),
    Contrast(
        "mt-on", "anat", "flip-1_mt-on_MTS", (0.9, 0.9, 5.0), "LAS", True,
        psf=0.5, snr=22.0, mask_area_bias=-0.01, brightness=_COLUMNS[3],
    ),
    Contrast(
        "mt-off", "anat", "flip-2_mt-off_MTS", (0.9, 0.9, 5.0), "LAS", True,
        psf=0.5, snr=24.0, mask_area_bias=-0.025, brightness=_COLUMNS[4],
    ),
    Contrast(
        "dwi", "dwi", "rec-average_dwi", (0.9, 0.9, 5.0), "LAS", True,
        psf=0.65, snr=18.0, mask_area_bias=0.015, brightness=_COLUMNS[5],
    ),
)  # fmt: skip
CONTRAST_NAMES = tuple(contrast.name for contrast in CONTRASTS)


def contrast_named(name: str) -> Contrast:
    """Return the contrast of this name; raise a UserError that lists those that exist if there is none."""
    if name in CONTRAST_NAMES:
        return CONTRASTS[CONTRAST_NAMES.index(name)]
    raise UserError(f"unknown contrast {name!r}: choose among {', '.join(CONTRAST_NAMES)}")
