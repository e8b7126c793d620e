"""Soft target -> patch -> loss: dataset, augmentation, trainer, variants, log.

The modules, in the order of their imports:

  dataloading.py              a case with its soft target behind the image, for nnU-Net's loader
  augmentation/soft_frame.py  the soft label through nnU-Net's augmentation; targets averaged down
  augmentation/movement.py    rotated, scaled, shifted, deformed: image and label in one go, both linear
  augmentation/bias_field.py  the uneven brightness that a coil makes
  augmentation/paper.py       the augmentation of the paper
  augmentation/contrast.py    contrasts that nobody has acquired, for those that were not trained on
  augmentation/on_device.py   the same augmentation on batches on the GPU
  validation.py               summary_soft.json of a fold
  training_log.py             soft measures of each epoch, in progress.png
  trainer.py                  the above in the hooks of nnU-Net's trainer
  variants.py                 trainers of a few lines each
"""
