"""Where soft labels come from: masks of several contrasts (`make-gt`), several raters (`fuse`).

The modules, in the order of their imports:

  contrasts/settings.py          settings of the soft ground truth
  contrasts/volume.py            a mask and where its voxels lie, as stored and upright
  contrasts/alignment.py         a shift, and a rotation, for each slice of a contrast
  contrasts/average.py           masks of all contrasts, read along the cord -> one soft label, on every grid
  contrasts/quality.py           agreement, shifts and areas of one subject
  contrasts/qc_figure.py         picture of one subject: slices with outlines, shifts, areas along the cord
  contrasts/sources.py           images of a BIDS folder and their masks: found, checked and read
  contrasts/subject.py           one subject: its files in, its soft labels out, kept if nothing changed
  contrasts/qc_page.py           qc/index.html: all subjects, what deserves a look first
  contrasts/make_gt.py           the command: BIDS -> derivatives, all subjects
  raters/sources.py              files of each rater, case and label; their content
  raters/fusion.py               settings; mean, weighted mean, STAPLE
  raters/agreement.py            Dice of each pair, Fleiss' kappa; as tables
  raters/case.py                 one case: raters' files -> soft labels, label map, record
  raters/command.py              a file or a folder per rater -> soft labels
"""
