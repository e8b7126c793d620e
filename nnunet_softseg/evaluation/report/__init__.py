"""A comparison as one page that people want to read, with its figures as files.

The way of the data: wording (numbers as text) -> verdict (who wins, and does it hold, in words) -> tables;
appearance (colours, names) -> area, agreement and reliability figures -> gallery (all of them, as files and
in the page); worst cases (pictures) -> writing (the page).
"""

from nnunet_softseg.evaluation.report.writing import write_report

__all__ = ["write_report"]
