"""Soft labels for nnU-Net: train on continuous labels, predict soft maps.

The way of the data, told by the modules:
raw soft label -> soft target -> patch -> raw output -> soft map -> NIfTI -> numbers -> report.

This file imports nothing: the start-up hook loads it in every Python process.
"""

__version__ = "0.1.0"
