"""Diameters across the cord, from second moments in the plane of the slice."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def slice_moments(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Return sum (n,), mean position (n, 2) and covariance (n, 2, 2) of each slice of values, in voxels.

    Values are (slices, i, j), not below 0; mean and covariance are NaN where a slice is empty.
    """
    i, j = (np.arange(size, dtype=np.float64) for size in values.shape[1:])
    along_i, along_j = values.sum(axis=2), values.sum(axis=1)
    mass = along_i.sum(axis=1)
    divisor = np.where(mass > 0, mass, np.nan)
    mean = np.stack([along_i @ i, along_j @ j], axis=1) / divisor[:, None]
    mixed = (values @ j) @ i
    square = np.array([[along_i @ i**2, mixed], [mixed, along_j @ j**2]]).transpose(2, 0, 1)
    covariance = square / divisor[:, None, None] - mean[:, :, None] * mean[:, None, :]
    return mass, mean, covariance


def partial_volume_covariance(steps_mm: Floats, slopes: Floats, spacing_mm: float) -> Floats:
    """Return what averaging over voxels has added to the covariance of each section, (n, 2, 2) in mm2.

    A voxel that holds a share of the structure spreads it over its own width w, which adds w^2 / 12 along
    each of its axes; and over its slice's thickness h, in which a tilted line moves by slope h.

    Columns of `steps_mm` are the steps along the in-plane array axes; slopes, (n, 2), are the centreline's.
    """
    smear: Floats = slopes[:, :, None] * slopes[:, None, :] * spacing_mm**2 / 12
    return steps_mm @ steps_mm.T / 12 + smear


def across_the_line(covariance_mm2: Floats, slopes: Floats) -> Floats:
    """Return the covariance in the plane perpendicular to the line, from that in the slice: (n, 2, 2).

    A slice cuts a tilted cord at an angle; its section is the slice's, seen along the line. The axes in the
    new plane are R-L made perpendicular to the line, and the one perpendicular to both.
    """
    tangent = np.column_stack([slopes, np.ones(len(slopes))])
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    right = np.array([1.0, 0.0, 0.0]) - tangent[:, :1] * tangent
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    seen = np.stack([right, np.cross(tangent, right)], axis=1)[:, :, :2]
    across: Floats = seen @ covariance_mm2 @ seen.transpose(0, 2, 1)
    return across


def equivalent_ellipses(covariance_mm2: Floats) -> dict[str, Floats]:
    """Return columns of the ellipse of each covariance (n, 2, 2); NaN where a section is too small.

    An ellipse of semi-axis a has the variance a^2 / 4.
    """
    usable = np.asarray(np.isfinite(covariance_mm2).all(axis=(1, 2)))
    variance, vectors = np.linalg.eigh(np.where(usable[:, None, None], covariance_mm2, np.eye(2)))
    # Rounding of an exact 0 in a single voxel counts as 0, too.
    usable &= variance[:, 0] > 1e-9  # noqa: PLR2004
    variance = np.where(usable[:, None], variance, np.nan)
    nearer = np.abs(vectors[:, 0, :]).argmax(axis=1)
    rows = np.arange(len(variance))
    right, anterior = vectors[rows, :, nearer].T
    orientation = np.where(usable, np.degrees(np.arctan(anterior / right)), np.nan)
    return {
        "diameter_rl_mm": 4 * np.sqrt(variance[rows, nearer]),
        "diameter_ap_mm": 4 * np.sqrt(variance[rows, 1 - nearer]),
        "eccentricity": np.sqrt(1 - variance[:, 0] / variance[:, 1]),
        "orientation_deg": orientation,
    }
