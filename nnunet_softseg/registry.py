"""The names under which nnU-Net finds our classes, and the modules they live in.

The start-up hook asks here when nnU-Net looks up one of these names; a module is imported only then. And
nnU-Net's own search for a name, made safe beside other threads.
"""

import contextlib
import importlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

from nnunet_softseg.errors import UserError

CLASSES: dict[str, str] = {
    "nnUNetTrainerSoftSeg": "nnunet_softseg.training.trainer",
    "nnUNetTrainerSoftSegRawLoss": "nnunet_softseg.training.variants",
    "nnUNetTrainerSoftSegSlidingWindow": "nnunet_softseg.training.variants",
    "nnUNetTrainerSoftSegHardGT": "nnunet_softseg.training.variants",
    "nnUNetTrainerSoftSegDice": "nnunet_softseg.training.variants",
    "nnUNetTrainerSoftSegPaperAug": "nnunet_softseg.training.variants",
    "nnUNetTrainerSoftSegContrastAug": "nnunet_softseg.training.variants",
    "nnUNetTrainerSoftSegDeviceAug": "nnunet_softseg.training.variants",
    "nnUNetTrainerSoftSegContrastDeviceAug": "nnunet_softseg.training.variants",
    "nnUNetTrainerSoftSegDemo": "nnunet_softseg.training.variants",
    "nnUNetTrainerSoftSegReady": "nnunet_softseg.training.variants",
    "nnUNetTrainerDemo": "nnunet_softseg.training.variants",
    "SoftLabelManager": "nnunet_softseg.network.of_plans",
    "SoftSegPreprocessor": "nnunet_softseg.inference.nnunet_patches",
    "SoftSegPlanner": "nnunet_softseg.preprocessing.planning",
    "SoftSegResEncPlanner": "nnunet_softseg.preprocessing.planning",
    "SoftSegCordPlanner": "nnunet_softseg.preprocessing.planning",
    "SoftSegDemoPlanner": "nnunet_softseg.preprocessing.planning",
    "SoftSegReadyPlanner": "nnunet_softseg.preprocessing.planning",
    "resample_soft_map": "nnunet_softseg.inference.export",
}
_changing_the_import_path = threading.Lock()


def find(name: str) -> Any:
    """Return the class (or resampling function) that nnU-Net knows by this name.

    Raises:
        UserError: the name is not in the registry.
        ImportError: its module does not import, or lacks the name; the real cause is shown.
    """
    if name not in CLASSES:
        raise UserError(f"unknown name {name}: nnunet-softseg offers {', '.join(CLASSES)}")
    module = importlib.import_module(CLASSES[name])
    if not hasattr(module, name):
        raise ImportError(f"{CLASSES[name]} has no {name}: reinstall nnunet-softseg", name=CLASSES[name])
    return getattr(module, name)


@contextlib.contextmanager
def extended_import_path(folder: str) -> Iterator[None]:
    """Let Python find modules in a folder, too, within this block; what nnU-Net's search for a class enters.

    nnU-Net inserts into the list `sys.path` itself and removes from it. A thread that reads the list at that
    moment, to import a package or to ask for its version, misses an entry and finds nothing of that name.
    Here each change makes a new list: who reads the old one reads it to its end.
    """
    folder = os.path.abspath(folder)
    with _changing_the_import_path:
        is_new = folder not in sys.path
        if is_new:
            sys.path = [folder, *sys.path]
    try:
        yield
    finally:
        if is_new:
            with _changing_the_import_path:
                sys.path = [entry for entry in sys.path if entry != folder]
