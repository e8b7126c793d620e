"""Soft label -> soft target on the grid of the network; the centre crop; planners; plans of a model.

The modules, in the order of their imports:

  center_crop.py  box of a case that the network sees
  resampling.py   part of an image on part of another grid, the same as of the whole
  image_grid.py   soft labels to the network's grid, soft maps back to the image's, and which way a label goes
  output_scale.py  figures of the training's labels; raw output -> soft map and the clean-up, chosen by them
  normalisation.py  intensities by the schemes that the plans name
  model_plans.py  plans: of preprocessed cases, saved with a model
  preparation.py  soft targets and their files, made where they are missing or stale
  planning.py     planners
"""
