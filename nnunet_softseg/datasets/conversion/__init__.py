"""BIDS with soft labels -> nnUNet_raw: names, a split by subject, files, a manifest.

Contrasts of one subject never fall on both sides of a split. Source files are read and copied, never linked
or changed.
"""

from nnunet_softseg.datasets.conversion.command import ConversionReport, convert

__all__ = ["ConversionReport", "convert"]
