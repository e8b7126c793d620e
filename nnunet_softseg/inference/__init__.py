"""Image -> soft map -> files: reading, patch, tiles, recentring, post-processing, export, `predict`.

The modules, in the order of their imports:

  recentring.py      the patch along a cord off the centre: coarse pass, path, upright slices
  case_record.py     options of a prediction; a case under way: times, boxes, flags of doubtful maps
  qc_page.py         qc/index.html, a picture of each case
  trained_model.py   a folder, an archive or one file, opened without running what it holds, with its hashes
  network_image.py   an image read and preprocessed as nnU-Net does, only the box that the network sees
  soft_prediction.py the box, forward in tiles, blend raw, NormReLU, recentring
  export.py          soft maps cleaned, on the image's own grid, calibrated; files; what is said
  validation.py      maps of a fold's validation against soft labels: summary_soft.json
  after_prediction.py soft maps in ensembles, cross-validation and post-processing
  simulation.py      what a perfect network would lose: soft targets through all that follows it
  nnunet_patches.py  where nnU-Net's own commands call this package; options from the environment
  runtime.py         a model in one file at work, with OpenVINO, without torch and nnU-Net
  predict.py         the command: a trained model, the cases of a folder -> soft maps in one process
  pseudo_label.py    the command: images and models that have not seen them -> a raw dataset with soft labels
  calibrate.py       the command: validation maps and soft labels -> calibration of a model
  model_export.py    the command: a trained model -> FILE.softseg
  image_check.py     what `predict` would say of images, before it runs
"""
