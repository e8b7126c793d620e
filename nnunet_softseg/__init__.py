"""Soft labels for nnU-Net: train on continuous labels, predict soft maps.

The way of the data, told by the modules; each imports, when it is loaded, only from those above it:

ground
  errors.py                   the one exception for mistakes that a user can mend
  atomic.py                   write aside, then rename: nothing is ever half-written
  finding.py                  one thing that is wrong in the data: file, expected, found, remedy
  nifti.py                    a NIfTI file, opened, or one line that says why not
  workers.py                  the same work on many cases, in processes, with progress
  page.py                     one HTML file that works offline, on a phone and in print
  settings.py                 every number of a run, kept with the model
raw data
  phantom/contrasts.py        six contrasts: voxels, brightness, blur, noise, a rater's bias
  phantom/anatomy.py          the cord as geometry in mm: centreline, sections, levels
  phantom/grid.py             the voxels of one image: where they lie, how slices have moved
  phantom/neck.py             what lies around the canal
  phantom/partial_volume.py   the share of cord in every voxel
  phantom/scanner.py          tissue shares -> image with blur, bias field and noise
  phantom/truth.py            the true area of each slice in mm2
  phantom/acquisition.py      a subject -> one image with all that is known about it
  phantom/bids.py             the phantom as a BIDS folder
  raw_dataset.py              a dataset as nnU-Net knows it: dataset.json, cases, reader
  reader_geometry.py          where an image lies, as nnU-Net's readers keep it
  soft_label.py               the soft label on disk: name, grid, range
  bids.py                     what a BIDS name says, where its images lie
  subject_split.py            who trains, validates and tests: a person on one side only
  conversion.py               BIDS with soft labels -> nnUNet_raw
soft label -> soft target
  center_crop.py              the one box of a case that the network sees
  model_plans.py              the plans saved beside a model; what is not supported
  preprocessed_case.py        what nnU-Net did to a case, and by which plans
  label_shape.py              the shape of a label, coarsely; what is unlike every label of the training
  soft_target.py              the soft label on the network's grid: resample, store, stale or not
  check.py                    every way in which a dataset can be wrong
soft target -> patch
  dataloading.py              a case with its soft target behind the image, for nnU-Net's loader
  augmentation.py             the soft label through nnU-Net's augmentation; targets averaged down
patch -> raw output -> loss
  network.py                  the running plateau, a buffer of nnU-Net's network
  norm_relu.py                raw output -> [0, 1]
  adaptive_wing.py            the loss of a voxel
  soft_loss.py                both ways to train, over all resolutions
raw output -> soft map
  case_record.py              what is noted of a case on its way: times, plateaus, warnings
  preprocessing.py            nnU-Net's preprocessing, with a look at orientation and content
  inference.py                crop, forward in tiles, blend raw, NormReLU
  soft_map.py                 background exactly 0; the way to another grid
  label_manager.py            one channel per label; the label map is soft map > 0.5
soft map -> NIfTI
  export.py                   soft/*.nii.gz, label map and softseg.json on the image's own grid
  upstream.py                 every place where nnU-Net itself is patched
NIfTI -> numbers
  voxel_grid.py               two maps on one grid: whether they fit, the box that holds all there is in them
  surface_distance.py         how far two surfaces lie apart, in mm
  calibration.py              reliability curve, calibration error, Brier score
  measure_table.py            what is measured of a case: unit, best value, value where a map is empty
  metrics.py                  how well one soft map agrees with another
  morphometry.py              area per slice in mm2
  validation.py               summary_soft.json of a fold
  training_log.py             soft measures of each epoch, in progress.png
  figures.py                  image, truth, maps and differences as PNG
wired into nnU-Net
  trainer.py                  the above in the hooks of nnU-Net's trainer
  variants.py                 trainers of a few lines each
  planning.py                 planners
  registry.py                 the names by which nnU-Net finds our classes
commands
  run.py                      stock commands where Python reads no start-up files
  doctor.py                   is the plug-in seen by nnU-Net here
  demo.py                     phantom -> soft against vanilla, in minutes
  cli.py                      argument parsing only
  __main__.py                 python -m nnunet_softseg

This file imports nothing: the start-up hook brings it into nnU-Net's own processes.
"""

__version__ = "0.1.0"
