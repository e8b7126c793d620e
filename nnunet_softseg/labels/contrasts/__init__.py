"""Soft ground truth: hard masks of one subject in several contrasts -> one soft label, on every grid.

The way of the data: settings, volumes -> alignment (a shift for each slice) -> average.
"""
