"""Soft labels for nnU-Net: train on continuous labels, predict soft maps.

The rooms, in the order of their imports: each imports only from those above it. Within a room, its own
docstring says the order.

  errors.py      the one error that a user can mend, and the one finding about data
  settings.py    every number of a run, kept with the model
  io/            files on disk: NIfTI, geometry, names of cases, atomic writes, records, workers
  metrics/       numbers of one map: overlap, surface distance, calibration, morphometry
  datasets/      nnU-Net raw datasets with soft labels: BIDS, splits, `convert`, `check`
  labels/        where soft labels come from: masks of several contrasts (`make-gt`), several raters (`fuse`)
  preprocessing/ soft label -> soft target on the grid of the network; centre crop; planners
  network/       raw output, output activation, losses, optimiser, what runs a network (torch, OpenVINO)
  inference/     image -> soft map -> files: patch, tiles, recentring, post-processing, `predict`
  training/      soft target -> patch -> loss: dataset, augmentation, trainer, variants, log
  evaluation/    numbers of many maps: `evaluate`, `compare`, statistics, the report
  phantom/       images with a known truth, `demo`
  registry.py    the names by which nnU-Net finds our classes
  run.py         stock commands where Python reads no start-up files
  doctor.py      is the plug-in seen by nnU-Net here
  cli/           the command `nnunet-softseg`
  __main__.py    python -m nnunet_softseg

This file imports nothing when it is loaded: the start-up hook brings it into nnU-Net's own processes.
"""

__version__ = "0.1.0"
