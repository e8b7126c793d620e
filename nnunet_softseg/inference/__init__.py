"""Image -> soft map -> files: reading, patch, tiles, recentring, post-processing, export, `predict`.

The modules, in the order of their imports:

  case_record.py            what is noted of a case on its way: times, robust peaks, warnings
  flags.py                  what is odd about a case, so that no doubtful map passes for a good one
  image_reading.py          an image to predict, read, or one line that says why not
  network_image.py          nnU-Net's preprocessing of an image, of any box of it
  network_input.py          the box that the network sees, and the case's record begun
  postprocessing.py         soft maps cleaned, the largest piece on request; the way to another grid
  recentring.py             the patch along a cord off the centre: coarse pass, path, upright slices
  soft_prediction.py        the box, forward in tiles, blend raw, NormReLU, a second look
  label_manager.py          one channel per label; the label map is soft map > 0.5
  export.py                 soft/*.nii.gz, label map and softseg.json on the image's own grid
  worker_threads.py         threads where nnU-Net would start processes
  nnunet_patches.py         every place where nnU-Net itself is patched
  command/images.py         which image files make which case: a file, a folder, BIDS
  command/model.py          a trained model, checked, loaded
  command/output_folder.py  what is there already, and what made it
  command/command.py        the command: images -> soft maps in one process
"""
