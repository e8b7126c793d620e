"""Files on disk: NIfTI, geometry, names of cases, atomic writes, records, workers.

The modules, in the order of their imports:

  atomic.py           write aside, then rename: nothing is ever half-written
  finding.py          one thing that is wrong in the data: file, expected, found, remedy
  nifti.py            a NIfTI file, opened, or one line that says why not
  file_hash.py        the SHA-256 of a file: by it a result knows its sources
  workers.py          the same work on many cases: in processes, with progress, or in threads
  html.py             one HTML file that works offline, on a phone and in print
  reader_geometry.py  where an image lies, as nnU-Net's readers keep it
  voxel_grid.py       two maps on one grid: whether they fit, the box that holds all there is in them
"""
