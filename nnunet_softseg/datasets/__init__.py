"""NnU-Net raw datasets with soft labels: BIDS, splits, `convert`, `check`.

The modules, in the order of their imports:

  raw_dataset.py              a dataset as nnU-Net knows it: dataset.json, cases, reader
  soft_label.py               the soft label on disk: name, grid, range
  conversion/layout.py        the name table: which file shows which contrast, where soft labels lie
  conversion/list_file.py     lists of subjects in JSON, YAML, lines
  conversion/exclusion.py     what is left out on request
  conversion/sources.py       which images become cases, with which soft labels
  conversion/splits.py        train, validation and test subjects, drawn or from a file; folds
  conversion/inspection.py    faults and hash of every source, before anything is written
  conversion/writing.py       datasets in nnUNet_raw: ids, files, dataset.json, splits, conversion.json
  conversion/command.py       the command: BIDS with soft labels -> nnUNet_raw
  check.py                    every way in which a dataset can be wrong
"""
