"""Soft labels for nnU-Net: train on continuous labels, predict soft maps.

The rooms, in the order of their imports: each imports only from those above it. Within a room, its own
docstring says the order.

  errors.py      the one error that a user can mend, and the one finding about data
  settings.py    every number of a run, kept with the model
  registry.py    the names by which nnU-Net finds our classes
  io/            files on disk: NIfTI, geometry, names of cases, atomic writes, records, workers
  metrics/       numbers of one map: overlap, surface distance, calibration, instances, morphometry
  datasets/      nnU-Net raw datasets with soft labels: BIDS, splits, `convert`, `check`
  labels/        where soft labels come from: masks of several contrasts (`make-gt`), several raters (`fuse`)
  preprocessing/ soft label -> soft target on the grid of the network; centre crop; planners
  network/       raw output, output activation, losses, optimiser, what runs a network (torch, OpenVINO)
  inference/     image -> soft map -> files: patch, tiles, recentring, calibration, `predict`, `pseudo-label`
  training/      soft target -> patch -> loss: dataset, augmentation, trainer, variants, log
  evaluation/    numbers of many maps: `evaluate`, `compare`, `drift`, statistics, the report
  phantom/       images with a known truth, `demo`
  run.py         stock commands where Python reads no start-up files
  doctor.py      is the plug-in seen by nnU-Net here
  cli/           the command `nnunet-softseg`
  __main__.py    python -m nnunet_softseg
  adaptive_wing.py  the loss, by the path that scripts of users have
  norm_relu.py   the output activation, likewise

The front door: `nnunet_softseg.predict` and the other names of `__all__` are loaded when first asked for.
This file itself imports nothing: the start-up hook brings it into nnU-Net's own processes.
"""

__version__ = "0.2.0"

_HOMES = {
    "make_gt": "nnunet_softseg.labels.contrasts.make_gt",
    "fuse": "nnunet_softseg.labels.raters",
    "convert": "nnunet_softseg.datasets.conversion",
    "check": "nnunet_softseg.datasets.check",
    "prepare": "nnunet_softseg.preprocessing.preparation",
    "predict": "nnunet_softseg.inference.predict",
    "export": "nnunet_softseg.inference.model_export",
    "calibrate": "nnunet_softseg.inference.calibrate",
    "pseudo_label": "nnunet_softseg.inference.pseudo_label",
    "csa": "nnunet_softseg.metrics.morphometry.csa",
    "bridges": "nnunet_softseg.metrics.morphometry.bridges",
    "evaluate": "nnunet_softseg.evaluation.evaluate",
    "compare": "nnunet_softseg.evaluation.compare",
    "drift": "nnunet_softseg.evaluation.drift",
    "AdaptiveWingLoss": "nnunet_softseg.network.adaptive_wing",
    "norm_relu": "nnunet_softseg.network.norm_relu",
}
__all__ = list(_HOMES)

TYPE_CHECKING = False  # mypy takes it for True by its name; importing it would load the module typing
if TYPE_CHECKING:
    from nnunet_softseg.datasets.check import check as check
    from nnunet_softseg.datasets.conversion import convert as convert
    from nnunet_softseg.evaluation.compare import compare as compare
    from nnunet_softseg.evaluation.drift import drift as drift
    from nnunet_softseg.evaluation.evaluate import evaluate as evaluate
    from nnunet_softseg.inference.calibrate import calibrate as calibrate
    from nnunet_softseg.inference.model_export import export as export
    from nnunet_softseg.inference.predict import predict as predict
    from nnunet_softseg.inference.pseudo_label import pseudo_label as pseudo_label
    from nnunet_softseg.labels.contrasts.make_gt import make_gt as make_gt
    from nnunet_softseg.labels.raters import fuse as fuse
    from nnunet_softseg.metrics.morphometry.bridges import bridges as bridges
    from nnunet_softseg.metrics.morphometry.csa import csa as csa
    from nnunet_softseg.network.adaptive_wing import AdaptiveWingLoss as AdaptiveWingLoss
    from nnunet_softseg.network.norm_relu import norm_relu as norm_relu
    from nnunet_softseg.preprocessing.preparation import prepare as prepare
else:

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return globals()[name]

    def __dir__():
        return sorted({*globals(), *__all__})
