"""Commands to set up and to try out: doctor, run, demo, phantom, synthesise."""

import argparse
from dataclasses import dataclass
from typing import Literal

from nnunet_softseg.cli.command import Command, Words, option, required, switch
from nnunet_softseg.errors import UserError


@dataclass
class Doctor(Command):
    """Say whether nnU-Net finds the plug-in here and, if not, what to do.

    Exit code 0: nothing failed. 1: at least one line says FAIL.
    """

    def run(self) -> int:
        from nnunet_softseg.doctor import doctor

        failed = False
        for diagnosis in doctor():
            print(diagnosis, flush=True)
            failed = failed or diagnosis.level == "FAIL"
        return int(failed)


@dataclass
class Run(Command):
    """Run a stock nnU-Net command where Python reads no start-up files.

    Example:
      nnunet-softseg run nnUNetv2_train 101 3d_fullres 0 -tr nnUNetTrainerSoftSeg
    """

    stock_command: str = required("NNUNET_COMMAND", "for example nnUNetv2_train")
    arguments: Words = option("", "its own arguments", (), nargs=argparse.REMAINDER)

    def run(self) -> int:
        from nnunet_softseg.run import run

        result = run(self.stock_command, self.arguments)
        return result if isinstance(result, int) else 0


@dataclass
class Demo(Command):
    """Train and predict on a phantom on a CPU in minutes, and compare with vanilla nnU-Net.

    Phantom -> dataset -> stock nnU-Net plan, train, predict -> table and picture. An interrupted demo goes on
    where it was when the command is repeated; another seed needs another folder.

    Example:
      nnunet-softseg demo -o demo_output
    """

    goes_on = True
    output: str = required("-o DIR", "folder, made if missing")
    seed: int = option("--seed N", "random seed of the phantom", 0)
    num_processes: int = option("-np N", "processes of each command", 2)

    def run(self) -> int:
        from pathlib import Path

        from nnunet_softseg.phantom.demo import demo

        demo(Path(self.output), seed=self.seed, num_processes=self.num_processes)
        return 0


@dataclass
class Phantom(Command):
    """Make a multi-contrast cord phantom with exact partial volume, biased masks, levels and true CSA.

    Writes a BIDS folder: images, derivatives/labels (masks as raters draw them, biased by contrast) and
    derivatives/truth (share of cord in every voxel, levels, areas). The same arguments give the same files,
    bit by bit. A call that was interrupted can be repeated; a larger -n adds subjects.

    Other kinds are raw datasets of nnU-Net's with the share of each label in every voxel (softLabelsTr), and
    truth/truth.csv with what geometry says: lesions in a cord with their tissue bridges (mm), rootlets of
    spinal levels (mm, mm2), a spine of 14 vertebrae and discs (mm3), discs with rings in 2-D (pixels,
    g-ratio). Of the options, -n, --seed and -np are theirs, too.

    Example:
      nnunet-softseg phantom -o BIDS -n 4
      nnunet-softseg phantom --kind lesions -o nnUNet_raw/Dataset301_Lesions
    """

    goes_on = True
    output: str = required("-o BIDS", "folder to write")
    kind: Literal["cord", "lesions", "rootlets", "spine", "discs"] = option(
        "--kind KIND", "what it is of: cord (in its neck), lesions, rootlets, spine or discs", "cord"
    )
    n: int = option("-n N", "number of subjects", 12)
    seed: int = option("--seed N", "random seed", 0)
    fov_mm: tuple[float, float, float] = option(
        "--fov-mm RL AP SI", "extent of the images, 30 to 400 mm each", (72.0, 72.0, 96.0)
    )
    contrasts: Words | None = option(
        "--contrasts NAME", "contrasts to make, of T1w T2w T2star mt-on mt-off dwi; all if not given"
    )
    shift_mm: float = option("--shift-mm MM", "largest in-plane shift against T2w, 0 to 10", 0.0)
    axial_si_mm: float | None = option(
        "--axial-si-mm MM", "S-I extent of T2star, mt-on, mt-off, dwi, if shorter: 10 or more"
    )
    oblique_deg: float = option("--oblique-deg DEG", "largest tip of axial slices about R-L, 0 to 25", 0.0)
    cord: bool = switch("--no-cord", "all tissue but cord and canal; empty labels", True)
    num_processes: int = option("-np N", "subjects made at once", 2)

    def run(self) -> int:
        from nnunet_softseg.phantom import CONTRAST_NAMES, phantom, phantom_of_kind

        options = {name: value for name, value in vars(self).items() if name != "kind"}
        if self.kind == "cord":
            print(phantom(**options | {"contrasts": self.contrasts or CONTRAST_NAMES}))
            return 0
        theirs = ("output", "n", "seed", "num_processes")
        plain = vars(Phantom(output=self.output))
        surplus = [name for name, value in options.items() if name not in theirs and value != plain[name]]
        if surplus:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in surplus).replace(
                "--cord", "--no-cord"
            )
            raise UserError(
                f"{flags}: expected options of --kind {self.kind} (-n, --seed, -np): leave it out"
            )
        print(phantom_of_kind(kind=self.kind, **{name: options[name] for name in theirs}))
        return 0


@dataclass
class Synthesise(Command):
    """Make training images of random contrast from label maps, with exact soft labels.

    Each image has random brightness of every tissue, voxels (isotropic, or slices of up to 16 mm), field of
    view, position, bend and artefacts; the soft label is the share of the structure in each voxel. Writes a
    BIDS folder with derivatives/softseg, as convert takes it. Label maps hold whole numbers, a value per
    tissue; finer ones than the images give better shares. What is 0 is filled from the image of the same name
    (--images), or with random shapes.

    The same arguments give the same files. A call that was interrupted can be repeated; a larger -n adds
    images, as long as label maps and images are those of before.

    Example:
      nnunet-softseg synthesise -i LABEL_MAPS --structure 1 2 -o BIDS -n 200
      nnunet-softseg convert -i BIDS -d 301 --name Synthetic --test 0
    """

    goes_on = True
    label_maps: str | None = option(
        "-i LABEL_MAPS", "folder of label maps (NIfTI), or one; not needed with --pam50 or --phantom"
    )
    output: str = required("-o BIDS", "folder to write")
    n: int = option("-n N", "number of images", 400)
    seed: int = option("--seed N", "random seed", 0)
    structure: tuple[int, ...] = option(
        "--structure VALUE", "values of the label maps that are the structure, together", (1,)
    )
    images: str | None = option("--images DIR", "images named as the label maps, in the same space")
    pam50: str | None = option("--pam50 DIR", "draw from the label maps of the PAM50 template, too")
    phantom: bool = switch("--phantom", "draw from the cord phantom, too")
    without: float = option("--without SHARE", "share of images without the structure, 0 to 1", 0.15)
    num_processes: int = option("-np N", "images drawn at once", 2)

    def run(self) -> int:
        from nnunet_softseg.phantom.synthesis import synthesise

        print(synthesise(**vars(self)))
        return 0
