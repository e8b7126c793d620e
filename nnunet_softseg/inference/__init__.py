"""Image -> soft map -> files: reading, patch, tiles, recentring, post-processing, export, `predict`.

The modules, in the order of their imports:

  recentring.py      the patch along a cord off the centre: coarse pass, path, upright slices
  case_record.py     options of a prediction; record of a case under way: times, boxes, warnings
  calibration.py     monotone maps from soft map to soft label, kept with a model
  postprocessing.py  soft maps cleaned, the largest piece on request, doubtful maps flagged
  network_image.py   an image read and preprocessed as nnU-Net does, only the box that the network sees
  soft_prediction.py the box, forward in tiles, blend raw, NormReLU, recentring
  export.py          the way to the image's own grid; soft/*.nii.gz, label map and softseg.json
  validation.py      maps of a fold's validation against soft labels: summary_soft.json
  after_prediction.py soft maps in ensembles, cross-validation and post-processing
  qc_page.py         qc/index.html, a picture of each case
  summary.py         the end of a prediction: cases by flag with what to do, the page if wanted
  simulation.py      what a perfect network would lose: soft targets through all that follows it
  nnunet_patches.py  where nnU-Net's own commands call this package; options from the environment
  safe_loading.py    checkpoints and archives of other people, opened without running what they hold
  model_file.py      a model in one file, FILE.softseg: written, and opened with its hashes checked
  runtime.py         such a model at work, with OpenVINO, without torch and nnU-Net
  predict.py         the command: a trained model, the cases of a folder -> soft maps in one process
  teachers.py        which fold of which model may label a case: one that has not seen its subject
  pseudo_label.py    the command: images and models that have not seen them -> a raw dataset with soft labels
  calibrate.py       the command: validation maps and soft labels -> calibration of a model
  model_export.py    the command: a trained model -> FILE.softseg
  image_check.py     what `predict` would say of images, before it runs
"""
