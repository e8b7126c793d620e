"""Affines of images that lie at a slant."""

import nibabel as nib
import numpy as np


def oblique(codes: str) -> np.ndarray:
    """An affine with the given axis codes, rotated by some degrees about all axes."""
    a, b, c = np.deg2rad([7, -9, 5])
    rotation = (
        np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
        @ np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
        @ np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    )
    axes = nib.orientations.axcodes2ornt(tuple(codes))
    permutation = np.zeros((3, 3))
    for column, (row, sign) in enumerate(axes):
        permutation[int(row), column] = sign
    affine = np.eye(4)
    affine[:3, :3] = rotation @ permutation @ np.diag([0.8, 1.1, 3.0])
    affine[:3, 3] = [-10, 20, -30]
    return affine
