"""Image -> soft map -> files: reading, patch, tiles, recentring, post-processing, export, `predict`.

The modules, in the order of their imports:

  options.py                options of a prediction, as arguments or in the environment
  recentring.py             the patch along a cord off the centre: coarse pass, path, upright slices
  case_record.py            record of a case under way: options, times, boxes, warnings
  flags.py                  flags of a case, so that no doubtful map passes for a good one
  network_image.py          an image read and preprocessed as nnU-Net does, only the box that the network sees
  postprocessing.py         soft maps cleaned, the largest piece on request; the way to another grid
  soft_prediction.py        the box, forward in tiles, blend raw, NormReLU, recentring
  label_manager.py          one channel per label; the label map is soft map > 0.5
  export.py                 soft/*.nii.gz, label map and softseg.json on the image's own grid
  worker_threads.py         threads where nnU-Net would start processes
  nnunet_patches.py         where nnU-Net's own commands call this package; options from the environment
  command/images.py         which image files make which case: a file, a folder, BIDS
  command/model.py          a trained model, checked, loaded
  command/output_folder.py  what is there already, and what made it
  command/command.py        the command: images -> soft maps in one process
"""
