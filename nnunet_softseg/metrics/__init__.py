"""Numbers of one map: overlap, surface distance, calibration, instances, morphometry.

The modules, in the order of their imports:

  calibration.py              reliability curve, calibration error, Brier score; isotonic map
  instances.py                single objects: matched or not, panoptic quality
  measure_table.py            measures of a case: unit, best value, value where a map is empty
  overlap.py                  agreement of two soft maps, of voxels and of surfaces
  several_raters.py           a soft map against raters who disagree, their masks and volumes
  slice_frame.py              frame of the axial slices of an image, in mm; area in the plane of each
  morphometry/centreline.py   line through the slices' centres, smooth over a length in mm
  morphometry/levels.py       vertebral or spinal level of each slice; means over levels, as of C2-C3
  morphometry/named_labels.py several labels in one table: cord=1 gm=2 wm=cord-gm
  morphometry/slice_table.py  a map -> area, diameters and shape of every slice
  morphometry/lesions.py      lesion and cord -> size and tissue bridges of each lesion, midsagittal plane
  morphometry/figures.py      area along the cord; midsagittal plane with the bridges
  morphometry/csa.py          the command: maps -> CSV and picture
  morphometry/bridges.py      the command: lesion and cord -> CSV and picture
"""
