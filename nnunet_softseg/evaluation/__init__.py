"""Numbers of many maps: `evaluate`, `compare`, `drift`, statistics, the report.

The modules, in the order of their imports:

  tables.py                        tables: columns and their meaning, order of rows, reading, CSV and JSON
  cases.py                         subject, session and contrast of a case
  maps.py                          a prediction and its reference as arrays on one grid
  measuring.py                     settings; all numbers of one case, every method
  evaluate.py                      the command: methods on all cases of a reference -> tables; slices of areas
  comparison/paired_statistics.py  tests, effect sizes, intervals and lines of paired values
  comparison/leaderboard.py        measures; cases -> subjects -> ranks, tests; whether the best holds
  comparison/result.py             all tables of a comparison; area over contrasts, agreement
  report/wording.py                numbers and verdicts as a person reads them
  report/drawing.py                method styles; groups of values as violins and points
  report/figures.py                the figures of a label as SVG and PNG
  report/tables.py                 the tables of the page
  report/worst_cases.py            the cases in which each method is furthest off, as pictures
  compare.py                       the command: methods -> leaderboard, report.html
  releases/areas.py                areas of two releases of a model, from tables or maps
  releases/drift_report.py         statistics held against limits; a normative table updated
  drift.py                         the command: two releases of a model -> drift or none; drift.html
  cohort/derivatives.py            derivatives of a BIDS folder: names, and the model that made them
  cohort/participants.py           images of participants -> soft maps, areas, a page of pictures each
  cohort/group.py                  all participants: one table, one page, what is missing
  cohort/workflow.py               the command: a cohort in batches, by Snakemake
"""
