"""Files on disk: images, geometry, names of cases, atomic writes, records, workers.

The modules, in the order of their imports:

  results.py        files written aside, then renamed; records of what they were made from
  workers.py        the same work on many cases, in processes, with progress
  html.py           one HTML file that works offline, on a phone and in print
  geometry.py       affine, spacing, volume of a voxel and orientation; two images on one grid
  formats.py        image files by their endings; PNG, TIFF, MHA, NRRD opened as NIfTI, and written
  nifti.py          an image file, opened, checked and read; the meaning of a map's values
  readers.py        images as nnU-Net's readers of NIfTI give them, and its label maps written; without it
  case_files.py     the image files in a place, those passed over, and the meaning of their names
  image_choice.py   the images of a BIDS folder that a user has chosen: --exclude, --contrasts
  case_matching.py  which file belongs to which case and label; levels, discs, images of a map
"""
