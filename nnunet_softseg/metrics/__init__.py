"""Numbers of one map: overlap, surface distance, calibration, morphometry.

The modules, in the order of their imports:

  label_shape.py              outlier score of a map: figures of its shape against the ranges of the training
  surface_distance.py         how far two surfaces lie apart, in mm
  calibration.py              reliability curve, calibration error, Brier score
  measure_table.py            what is measured of a case: unit, best value, value where a map is empty
  overlap.py                  how well one soft map agrees with another
  morphometry/slice_frame.py  where the axial slices of an image lie, in mm
  morphometry/slice_areas.py  area in the plane of each slice
  morphometry/centreline.py   the line through the slices' centres, smooth over a length in mm
  morphometry/section.py      second moments -> diameters across the centreline
  morphometry/levels.py       which vertebral level a slice belongs to
  morphometry/slice_table.py  a map -> area and shape of every slice
  morphometry/summary.py      slices -> levels; the mean area of C2-C3
  morphometry/csa_figure.py   the area along the cord, levels shaded
  morphometry/csa.py          the command: maps -> CSV and picture
"""
