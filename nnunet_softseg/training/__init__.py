"""Soft target -> patch -> loss: dataset, augmentation, trainer, variants, log.

The modules, in the order of their imports:

  dataloading.py             soft target from disk to batch, through nnU-Net's loader and augmentation
  augmentation/paper.py      augmentation of Bedard et al. 2025: movement of image and label, intensities
  augmentation/contrast.py   random changes of contrast, for contrasts that were not trained on
  augmentation/on_device.py  the same augmentation on batches on the GPU
  training_log.py            soft measures of each epoch; time to go
  trainer.py                 soft labels in the hooks of nnU-Net's trainer
  variants.py                trainers of a few lines each
"""
