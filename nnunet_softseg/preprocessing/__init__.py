"""Soft label -> soft target on the grid of the network; the centre crop; planners; plans of a model.

The modules, in the order of their imports:

  center_crop.py  box of a case that the network sees
  model_plans.py  plans saved with a model, and the label manager that they name
  soft_target.py  soft label on the grid of the network: arithmetic
  preparation.py  soft targets made where they are missing or stale, and stored
  resampling.py   part of an image on part of another grid, the same as of the whole
  planning.py     planners
"""
