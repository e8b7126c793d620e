"""Soft label -> soft target on the grid of the network; the centre crop; planners; plans of a model.

The modules, in the order of their imports:

  center_crop.py  box of a case that the network sees
  resampling.py   part of an image on part of another grid, the same as of the whole
  fractions.py    fractions of voxels on a finer grid, by the surface that explains them
  soft_target.py  soft label on the grid of the network, its file, figures of its shape
  image_grid.py   soft maps on the image's grid, and which way a label goes there
  output_scale.py  raw output -> soft map and the clean-up, chosen for each label by those of the training
  normalisation.py  intensities by the schemes that the plans name
  model_plans.py  plans: of preprocessed cases, saved with a model
  label_manager.py  nnU-Net's label manager for soft models, which the plans name
  preparation.py  soft targets made where they are missing or stale
  planning.py     planners
"""
