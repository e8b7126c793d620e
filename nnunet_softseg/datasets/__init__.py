"""NnU-Net raw datasets with soft labels: BIDS, splits, `convert`, `check`.

The modules, in the order of their imports:

  raw_dataset.py              a dataset as nnU-Net knows it: dataset.json, cases, reader
  soft_label.py               the soft label on disk: name, grid, range
  subject_split.py            who trains, validates and tests: a person on one side only
  conversion/layout.py        the name table: which file shows which contrast, where soft labels lie
  conversion/list_file.py     lists of subjects in JSON, YAML, lines, a table
  conversion/exclusion.py     what is left out on request
  conversion/sources.py       which images become cases, with which soft labels
  conversion/split_file.py    a split that somebody has made, from a file
  conversion/split_choice.py  the split of the datasets: drawn, or as a file says
  conversion/inspection.py    a look at every source before anything is written; its hash
  conversion/writing.py       a dataset on disk: copies, soft labels, label maps, dataset.json, splits
  conversion/manifest.py      where every file comes from, and whether a dataset still is that
  conversion/dataset.py       where a dataset goes: id, name, folder; one for each contrast
  conversion/command.py       the command: BIDS with soft labels -> nnUNet_raw
  check.py                    every way in which a dataset can be wrong
"""
