"""Modules of the package that a label passes from disk to the loss, and an image from disk to its soft map.

    python benchmarks/modules_on_the_way.py -o FOLDER [--model MODEL] [--json FILE]

A profile hook notes every file of the package in which a function runs. The label: soft labels of a phantom
dataset are brought to the network's grid, loaded, augmented, and compared with the network's output in one
training step. The image: one file through `nnunet-softseg predict`, with a model after that one step.
"""

import argparse
import inspect
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import nnunet_softseg

PACKAGE = Path(nnunet_softseg.__file__).parent
NOT_ON_THE_WAY = ("errors.py", "settings.py", "registry.py", "run.py", "cli/")
"""The root modules, the look-up of names and the reading of arguments are not steps of the data."""
DATASET = 951
PLANS = "nnUNetSoftSegDemoPlans"
TRAINER = "nnUNetTrainerSoftSegDemo"


def modules_run(call: Callable[[], Any]) -> list[str]:
    """Return the files of the package in which a function ran during a call, those of threads included."""
    seen: set[str] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        del argument
        # The bodies of modules and classes, which run at import, are not optimised.
        if event == "call" and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            seen.add(frame.f_code.co_filename)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    ours = {
        Path(file).relative_to(PACKAGE).as_posix() for file in seen if file.startswith(f"{PACKAGE}{os.sep}")
    }
    return sorted(
        file
        for file in ours
        if not file.startswith(NOT_ON_THE_WAY)
        and Path(file).suffix == ".py"
        and Path(file).name != "__init__.py"
    )


def make_dataset(folder: Path) -> None:
    """Make a phantom dataset of four subjects, planned and preprocessed by nnU-Net's commands."""
    bids = folder / "bids"
    command = [sys.executable, "-m", "nnunet_softseg"]
    run(*command, "phantom", "-o", bids, "-n", "4", "--contrasts", "T2w")
    run(*command, "make-gt", "-i", bids, "-o", bids / "derivatives" / "softseg")
    run(*command, "convert", "-i", bids, "-d", DATASET, "--name", "Way", "--test", "1", "--validation", "1")
    stock = [*command, "run", "nnUNetv2_plan_and_preprocess", "-d", DATASET, "-c", "3d_fullres", "-np", "2"]
    run(*stock, "-pl", "SoftSegDemoPlanner", "-overwrite_plans_name", PLANS)


def run(*words: object) -> None:
    """Run a command to its end."""
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)


def make_trainer() -> Any:
    """Return the trainer of the phantom dataset, on the CPU, as `nnUNetv2_train` makes it."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    return get_trainer_from_args(str(DATASET), "3d_fullres", 0, TRAINER, PLANS, device=torch.device("cpu"))


def train_step(trainer: Any) -> None:
    """Bring the soft labels to the network's grid, load and augment one batch, and take one step."""
    trainer.on_train_start()
    trainer.train_step(next(trainer.dataloader_train))


def main() -> None:
    """Count, print, and write on request."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", dest="folder", type=Path, required=True, help="for the dataset and the model")
    parser.add_argument("--json", type=Path, help="write the lists here")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[name] = str(folder / name)
        (folder / name).mkdir(parents=True, exist_ok=True)
    os.environ["nnUNet_n_proc_DA"] = "0"
    os.environ["nnUNet_compile"] = "f"
    make_dataset(folder)

    trainer = make_trainer()
    label = modules_run(lambda: train_step(trainer))
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))

    from nnunet_softseg.cli import main as softseg

    images = folder / "nnUNet_raw" / f"Dataset{DATASET}_Way" / "imagesTs"
    image = next(iter(sorted(images.iterdir())))
    model = Path(trainer.output_folder).parent
    words = ["predict", "-i", str(image), "-o", str(folder / "predicted"), "-m", str(model), "-f", "0"]
    softseg(words)  # imports, which run functions, too
    softmap = modules_run(lambda: softseg([*words, "--overwrite"]))

    for title, modules in (("label, from disk to loss", label), ("image, from disk to soft map", softmap)):
        print(f"{title}: {len(modules)} modules", *(f"  {module}" for module in modules), sep="\n")
    if arguments.json:
        arguments.json.write_text(json.dumps({"label": label, "image": softmap}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
