"""Command that predicts: predict."""

from dataclasses import dataclass
from typing import Literal

from nnunet_softseg.cli.command import Command, Words, option, print_warnings, required, switch


@dataclass
class Predict(Command):
    """Predict soft maps of images in one process, without nnU-Net's folders and file names.

    Writes the files that nnUNetv2_predict writes, bit by bit:
      OUT/<case>.nii.gz                         soft map > 0.5
      OUT/soft/<case>_<label, 4 digits>.nii.gz  float32 in [0, 1]
      OUT/softseg.json                          times and warnings
    A case is named as its image without .nii.gz and without nnU-Net's channel number _0000.

    A call that was cut off can be repeated: what is written is kept. An image that cannot be predicted stops
    no other; it is named at the end.

    Example:
      nnunet-softseg predict -i sub-01_T2w.nii.gz -o OUT -m MODEL

    Exit code 0: all predicted. 2: a mistake, or images that failed.
    """

    source: str = required(
        "-i FILE|DIR|BIDS",
        "an image (.nii, .nii.gz); a folder of images; a BIDS folder, of which sub-*/[ses-*/]anat and "
        "dwi count",
    )
    output: str = required("-o OUT", "folder, made if missing; not that of the images")
    model: str = required(
        "-m MODEL",
        "folder of a trained model, nnUNet_results/DatasetNNN_Name/<trainer>__<plans>__<configuration>, "
        "or a .zip of nnUNetv2_export_model_to_zip",
    )
    folds: Words | None = option("-f FOLD", "folds whose soft maps are averaged; all if not given")
    checkpoint: str = option("-chk FILE", "checkpoint in the fold's folder", "checkpoint_final.pth")
    contrasts: Words | None = option(
        "--contrasts NAME", "contrasts to take of a BIDS folder; all if not given"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = option(
        "-device", "device of the network; auto: cuda if there is one", "auto"
    )
    localize: Literal["always", "auto", "never"] | None = option(
        "--localize",
        "look for the cord off the centre of the image; if not given, as NNUNET_SOFTSEG_LOCALIZE says, "
        "else auto: where the centre shows none, or one that is cut",
    )
    largest_piece: bool = switch(
        "--largest-piece", "keep only the largest piece of each label; its values stay as they are"
    )
    discard_implausible: bool = switch(
        "--discard-implausible", "empty a map that is flagged as unlike every label of the training"
    )
    backend: str | None = option(
        "--backend NAME",
        "what runs the network: auto (the fastest here), torch, openvino, or with precision (torch-float32, "
        "openvino-bfloat16); if not given, as NNUNET_SOFTSEG_BACKEND says, else auto",
    )
    overwrite: bool = switch("--overwrite", "predict every case again")
    num_threads: int = option(
        "-np N",
        "threads that read, and that write, beside the network; at most N cases wait on each side",
        2,
    )

    def run(self) -> int:
        from nnunet_softseg.inference.predict import predict

        report = predict(**vars(self))
        print_warnings(report.warnings)
        print(report.as_text())
        return 2 if report.failed else 0
