"""Methods measured against a reference, case by case.

The way of the data: cases (who was imaged how) -> files (which file is whose) -> maps (two arrays on one
grid) -> measuring (all numbers of one case) -> areas (over which slices) -> evaluation (all cases, tables) ->
evaluate (the command).
"""

from nnunet_softseg.evaluation.evaluate import evaluate
from nnunet_softseg.evaluation.evaluation import Evaluation, EvaluationSettings, measure_methods
from nnunet_softseg.evaluation.maps import read_map
from nnunet_softseg.evaluation.measuring import REFERENCE

__all__ = ["REFERENCE", "Evaluation", "EvaluationSettings", "evaluate", "measure_methods", "read_map"]
