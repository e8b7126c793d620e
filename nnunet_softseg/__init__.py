"""Soft labels for nnU-Net: train on continuous labels, predict soft maps.

The way of the data, told by the modules; each imports, when it is loaded, only from those above it:

ground
  errors.py                   the one exception for mistakes that a user can mend
  atomic.py                   write aside, then rename: nothing is ever half-written
  finding.py                  one thing that is wrong in the data: file, expected, found, remedy
  nifti.py                    a NIfTI file, opened, or one line that says why not
  file_hash.py                the SHA-256 of a file: by it a result knows its sources
  workers.py                  the same work on many cases: in processes, with progress, or in threads
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
  conversion/layout.py        the name table: which file shows which contrast, where soft labels lie
  conversion/list_file.py     lists of subjects in JSON, YAML, lines, a table
  conversion/exclusion.py     what is left out on request
  conversion/sources.py       which images become cases, with which soft labels
  conversion/split_file.py    a split that somebody has made, from a file
  conversion/split_choice.py  the split of the datasets: drawn, or as a file says
  conversion/inspection.py    a look at every source before anything is written; its hash
  conversion/writing.py       a dataset on disk: copies, soft labels, label maps, dataset.json, splits
  conversion/manifest.py      where every file comes from, and whether a dataset still is that
  conversion/dataset.py       where a dataset goes: id, name, folder; one for each contrast
  conversion/command.py       the command: BIDS with soft labels -> nnUNet_raw
soft label -> soft target
  center_crop.py              the one box of a case that the network sees
  model_plans.py              the plans saved beside a model; what is not supported
  preprocessed_case.py        what nnU-Net did to a case, and by which plans
  label_shape.py              the shape of a label, coarsely; what is unlike every label of the training
  soft_target.py              the soft label on the network's grid: resample, store, stale or not
  check.py                    every way in which a dataset can be wrong
soft target -> patch
  dataloading.py              a case with its soft target behind the image, for nnU-Net's loader
  augmentation/soft_frame.py  the soft label through nnU-Net's augmentation; targets averaged down
  augmentation/movement.py    rotated, scaled, shifted, deformed: image and label in one go, both linear
  augmentation/bias_field.py  the uneven brightness that a coil makes
  augmentation/paper.py       the augmentation of the paper
  augmentation/contrast.py    contrasts that nobody has acquired, for those that were not trained on
  augmentation/on_device.py   the same augmentation on batches on the GPU
patch -> raw output -> loss
  network.py                  the running plateau, a buffer of nnU-Net's network
  precision.py                the float type of sums over many voxels
  norm_relu.py                raw output -> [0, 1]
  adaptive_wing.py            the loss of a voxel
  soft_loss.py                both ways to train, over all resolutions
  optimizer.py                Adam in one kernel, cosine annealing
raw output -> soft map
  case_record.py              what is noted of a case on its way: times, plateaus, warnings
  flags.py                    what is odd about a case, so that no doubtful map passes for a good one
  sub_grid.py                 part of an image on part of another grid, as the whole would be there
  image_reading.py            an image to predict, read, or one line that says why not
  network_image.py            nnU-Net's preprocessing of an image, of any box of it
  preprocessing.py            the box that the network sees, and the case's record begun
  backends/processor.py       what the CPU can do in hardware; memory kept for the next array
  backends/torch_network.py   the network as torch runs it fastest
  backends/converted_model.py  the network as OpenVINO has it, cached beside the model
  backends/openvino_network.py  the network run by OpenVINO
  backends/choice.py          what runs the network here, and what if it fails
  soft_map.py                 background exactly 0; the way to another grid
  clean_up.py                 what of a soft map is kept: its cores, the largest piece on request
  placement.py                where the patch lies along the cord, each slice set upright, and the way back
  localiser.py                where the cord runs, if it is not in the middle: a coarse pass over all of it
  inference.py                the box, forward in tiles, blend raw, NormReLU, a second look
  label_manager.py            one channel per label; the label map is soft map > 0.5
soft map -> NIfTI
  export.py                   soft/*.nii.gz, label map and softseg.json on the image's own grid
  worker_threads.py           threads where nnU-Net would start processes
  upstream.py                 every place where nnU-Net itself is patched
  prediction/images.py        which image files make which case: a file, a folder, BIDS
  prediction/model.py         a trained model, checked, loaded
  prediction/output_folder.py  what is there already, and what made it
  prediction/command.py       the command: images -> soft maps in one process
NIfTI -> numbers
  voxel_grid.py               two maps on one grid: whether they fit, the box that holds all there is in them
  surface_distance.py         how far two surfaces lie apart, in mm
  calibration.py              reliability curve, calibration error, Brier score
  measure_table.py            what is measured of a case: unit, best value, value where a map is empty
  metrics.py                  how well one soft map agrees with another
  morphometry/slice_frame.py  where the axial slices of an image lie, in mm
  morphometry/slice_areas.py  area in the plane of each slice
  morphometry/centreline.py   the line through the slices' centres, smooth over a length in mm
  morphometry/section.py      second moments -> diameters across the centreline
  morphometry/reading.py      the voxels of an image, or one line that says why not
  morphometry/levels.py       which vertebral level a slice belongs to
  morphometry/slice_table.py  a map -> area and shape of every slice
  morphometry/summary.py      slices -> levels; the mean area of C2-C3
  morphometry/csa_figure.py   the area along the cord, levels shaded
  morphometry/csa.py          the command: maps -> CSV and picture
masks of several contrasts -> soft label
  ground_truth/settings.py    what a user may choose about the soft ground truth
  ground_truth/volume.py      a mask and where its voxels lie, as stored and upright
  ground_truth/alignment.py   a shift, and a rotation, for each slice of a contrast
  ground_truth/resampling.py  a mask read anywhere: along the cord, weighted by coverage
  ground_truth/plausibility.py  whether a contrast can lie as it was measured to
  ground_truth/average.py     masks of all contrasts -> one soft label, on every grid
  ground_truth/outlined_picture.py  a plane of an image as a picture, mask and soft label as lines over it
  ground_truth/quality.py     what the quality page shows of one subject: pictures, shifts, areas
  ground_truth/qc_plot.py     small SVG plots for a page of hundreds of subjects
  ground_truth/qc_page.py     qc/index.html: all subjects, what deserves a look first
  ground_truth/sources.py     which images and masks a BIDS folder offers, by subject and session
  ground_truth/masked_images.py  an image and its mask, read: whole, on one grid, 0 and 1
  ground_truth/sidecar.py     what a written label says of itself, its sources as BIDS URIs
  ground_truth/subject.py     one subject: its files in, its soft labels out, kept if nothing changed
  ground_truth/make_gt.py     the command: BIDS -> derivatives, all subjects
methods -> comparison -> report
  evaluation/cases.py         subject, session and contrast of a case
  evaluation/files.py         which file of a folder belongs to which case
  evaluation/maps.py          a prediction and its reference as arrays on one grid
  evaluation/columns.py       what the columns of the tables mean
  evaluation/measuring.py     all numbers of one case, every method
  evaluation/areas.py         the area of a case: over which slices, how far off
  evaluation/tables.py        tables as CSV and JSON
  evaluation/evaluation.py    methods on all cases of a reference
  evaluation/evaluate.py      the command: one method -> tables
  comparison/scores.py        the measures by which methods are ranked
  comparison/paired_statistics.py  tests, effect sizes and intervals of paired values
  comparison/leaderboard.py   cases -> subjects -> ranks, tests, winners
  comparison/contrast_effects.py  area over contrasts: analysis of variance, agreement
  comparison/result.py        what a comparison found, for a report
  comparison/compare.py       the command: methods -> leaderboard
  report/wording.py           numbers as a person reads them: digits, units, p values
  report/verdict.py           who wins and does it hold, in words
  report/appearance.py        one colour, marker and short name per method
  report/distribution.py      a group of values as violin and points
  report/area_figures.py      area errors, STD of area, area over contrasts
  report/agreement_figures.py  two contrasts with each other, a method with the reference
  report/reliability_figures.py  reliability curve, inference time
  report/gallery.py           all figures of a label: SVG, PNG, and for the page
  report/tables.py            the tables of the page
  report/slice_picture.py     a slice: image, maps, differences as small pictures
  report/worst_cases.py       where each method is furthest off
  report/writing.py           report.html, all of it put together
training, watched
  validation.py               summary_soft.json of a fold
  training_log.py             soft measures of each epoch, in progress.png
  figures.py                  image, truth, maps and differences as PNG
raters -> soft label
  raters/settings.py          how raters are fused
  raters/sources.py           which file is whose, what it says about a label
  raters/fusion.py            mean, weighted mean, STAPLE
  raters/agreement.py         Dice of each pair, Fleiss' kappa
  raters/record.py            what is asked of a case, what became of it, on disk
  raters/case.py              one case: raters' files -> soft labels, label map
  raters/report.py            agreement as tables
  raters/command.py           a file or a folder per rater -> soft labels
wired into nnU-Net
  trainer.py                  the above in the hooks of nnU-Net's trainer
  variants.py                 trainers of a few lines each
  planning.py                 planners
  registry.py                 the names by which nnU-Net finds our classes
commands
  run.py                      stock commands where Python reads no start-up files
  doctor.py                   is the plug-in seen by nnU-Net here
  demo.py                     phantom -> soft against vanilla, in minutes
  cli/parsing.py              what the parsers of all commands share
  cli/try_out.py              arguments of demo and phantom
  cli/label_making.py         arguments of make-gt and fuse
  cli/datasets.py             arguments of convert, check and prepare
  cli/prediction.py           arguments of predict
  cli/measures.py             arguments of csa, evaluate and compare
  cli/set_up.py               arguments of doctor and run
  __main__.py                 python -m nnunet_softseg

This file imports nothing: the start-up hook brings it into nnU-Net's own processes.
"""

__version__ = "0.1.0"
