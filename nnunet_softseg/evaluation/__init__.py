"""Numbers of many maps: `evaluate`, `compare`, statistics, the report.

The modules, in the order of their imports:

  cases.py                         subject, session and contrast of a case
  maps.py                          a prediction and its reference as arrays on one grid
  columns.py                       what the columns of the tables mean
  measuring.py                     all numbers of one case, every method
  areas.py                         the area of a case: over which slices, how far off
  tables.py                        tables as CSV and JSON
  evaluation.py                    methods on all cases of a reference
  evaluate.py                      the command: one method -> tables
  comparison/scores.py             the measures by which methods are ranked
  comparison/paired_statistics.py  tests, effect sizes and intervals of paired values
  comparison/leaderboard.py        cases -> subjects -> ranks, tests, winners
  comparison/contrast_effects.py   area over contrasts: analysis of variance, agreement
  comparison/result.py             what a comparison found, for a report
  comparison/compare.py            the command: methods -> leaderboard
  report/wording.py                numbers as a person reads them: digits, units, p values
  report/verdict.py                who wins and does it hold, in words
  report/appearance.py             one colour, marker and short name per method
  report/distribution.py           a group of values as violin and points
  report/area_figures.py           area errors, STD of area, area over contrasts
  report/agreement_figures.py      two contrasts with each other, a method with the reference
  report/reliability_figures.py    reliability curve, inference time
  report/gallery.py                all figures of a label: SVG, PNG, and for the page
  report/tables.py                 the tables of the page
  report/slice_picture.py          a slice: image, maps, differences as small pictures
  report/worst_cases.py            where each method is furthest off
  report/writing.py                report.html, all of it put together
"""

from nnunet_softseg.evaluation.evaluate import evaluate
from nnunet_softseg.evaluation.evaluation import Evaluation, EvaluationSettings, measure_methods
from nnunet_softseg.evaluation.maps import read_map
from nnunet_softseg.evaluation.measuring import REFERENCE

__all__ = ["REFERENCE", "Evaluation", "EvaluationSettings", "evaluate", "measure_methods", "read_map"]
