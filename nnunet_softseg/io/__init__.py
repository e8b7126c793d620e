"""Files on disk: NIfTI, geometry, names of cases, atomic writes, records, workers.

The modules, in the order of their imports:

  atomic.py         write aside, then rename: nothing is ever half-written
  workers.py        the same work on many cases, in processes, with progress
  html.py           one HTML file that works offline, on a phone and in print
  geometry.py       affine, spacing, volume of a voxel and orientation of an image
  same_grid.py      whether two images lie on one grid of voxels
  nifti.py          a NIfTI file, opened, checked and read, or one line that says why not
  map_kind.py       what the values of a map can mean: mask, fractions, labels, percent
  bids.py           subject, session and contrast in a BIDS file name; the place of a derivative
  case_files.py     the image files in a place, what their names say, what was passed over
  image_choice.py   the images of a BIDS folder that a user has chosen: --exclude, --contrasts
  case_names.py     what the names of maps say: case and label, subject and contrast, patterns
  case_matching.py  which file belongs to which case and label
  companions.py     the level, disc or other image that belongs to a map
  list_file.py      files of names: JSON, YAML, or one name a line
  record.py         what results were made from, by SHA-256, and whether they are still up to date
"""
