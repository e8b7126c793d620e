"""Soft label -> soft target on the grid of the network; the centre crop; planners; plans of a model.

The modules, in the order of their imports:

  center_crop.py        the one box of a case that the network sees
  model_plans.py        the plans saved beside a model; what is not supported
  preprocessed_case.py  what nnU-Net did to a case, and by which plans
  soft_target.py        the soft label on the network's grid: resample, store, stale or not
  resampling.py         part of an image on part of another grid, the same as of the whole
  planning.py           planners
"""
