"""Methods against one reference: who is nearer, and does the difference hold.

The way of the data: scores (what is ranked) -> paired statistics (tests and intervals of plain arrays) ->
leaderboard (subjects, ranks, winners) -> contrast effects (areas over contrasts, agreement) -> result (all
that a report needs) -> compare (the command).
"""

from nnunet_softseg.evaluation.comparison.compare import compare
from nnunet_softseg.evaluation.comparison.result import Comparison
from nnunet_softseg.evaluation.comparison.scores import SCORES

__all__ = ["SCORES", "Comparison", "compare"]
