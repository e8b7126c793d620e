"""NnU-Net raw datasets with soft labels: BIDS, splits, `convert`, `check`.

The modules, in the order of their imports:

  raw_dataset.py              a dataset as nnU-Net knows it: dataset.json, labels, files, reader, splits
  soft_label.py               the soft label on disk: read, written, its range
  conversion/sources.py       layouts; images of a BIDS folder that become cases: found, faults and hashes
  conversion/splits.py        train, validation and test subjects, drawn or from a file; folds
  conversion/writing.py       datasets in nnUNet_raw: ids, files, dataset.json, splits, conversion.json
  conversion/command.py       the command: BIDS with soft labels -> nnUNet_raw
  case_checks.py              one case: faults of its files, and what is compared of it
  check.py                    every way in which a dataset can be wrong, cases held against each other
"""
