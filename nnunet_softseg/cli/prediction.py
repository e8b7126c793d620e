"""Command that predicts: predict."""

import argparse
import sys

from nnunet_softseg.cli.parsing import Subparsers, add_command


def add_predict(subparsers: Subparsers) -> None:
    """Add the command `predict`."""
    parser = add_command(
        subparsers,
        "predict",
        "images -> soft maps in one process, without nnU-Net's folders and file names",
        "Writes what nnUNetv2_predict writes, bit by bit:\n"
        "  OUT/<case>.nii.gz                       soft map > 0.5\n"
        "  OUT/soft/<case>_<label, 4 digits>.nii.gz  float32 in [0, 1]\n"
        "  OUT/softseg.json                        times and warnings\n"
        "A case is named as its image without .nii.gz and without nnU-Net's channel number _0000.\n\n"
        "A call that was cut off can be repeated: what is written is kept. An image that cannot be\n"
        "predicted stops no other; it is named at the end.\n\n"
        "Example: nnunet-softseg predict -i sub-01_T2w.nii.gz -o OUT -m MODEL\n"
        "Exit code 0: all predicted. 2: a mistake, or images that failed.",
    )
    add = parser.add_argument
    add(
        "-i",
        dest="source",
        metavar="FILE|DIR|BIDS",
        help="an image (.nii, .nii.gz); a folder of images; a BIDS folder, of which sub-*/[ses-*/]anat and "
        "dwi count",
        required=True,
        default=argparse.SUPPRESS,
    )
    add(
        "-o",
        dest="output",
        metavar="OUT",
        help="folder, made if missing; not that of the images",
        required=True,
        default=argparse.SUPPRESS,
    )
    add(
        "-m",
        dest="model",
        metavar="MODEL",
        help="folder of a trained model, nnUNet_results/DatasetNNN_Name/<trainer>__<plans>__<configuration>, "
        "or a .zip of nnUNetv2_export_model_to_zip",
        required=True,
        default=argparse.SUPPRESS,
    )
    add(
        "-f",
        dest="folds",
        nargs="+",
        metavar="FOLD",
        help="folds whose soft maps are averaged; all if not given",
    )
    add(
        "-chk", dest="checkpoint", metavar="FILE", default="checkpoint_final.pth", help="in the fold's folder"
    )
    add("--contrasts", nargs="+", metavar="NAME", help="of a BIDS folder, those to take; all if not given")
    add("-device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="auto: cuda if there is one")
    add(
        "--localize",
        choices=("always", "auto", "never"),
        help="look for the cord off the centre of the image; if not given, as NNUNET_SOFTSEG_LOCALIZE says, "
        "else auto: where the centre shows none, or one that is cut",
    )
    add(
        "--largest-piece",
        action="store_true",
        help="keep only the largest piece of each label; its values stay as they are",
    )
    add(
        "--discard-implausible",
        action="store_true",
        help="empty maps that look like no label of the training, rather than flag them",
    )
    add("--backend", metavar="NAME", help=_BACKEND_HELP)
    add("--overwrite", action="store_true", help="predict every case again")
    add(
        "-np",
        dest="num_threads",
        type=int,
        default=2,
        help="threads that read, and that write, beside the network; so many cases at most wait on each side",
    )
    parser.set_defaults(run=_run_predict)


_BACKEND_HELP = (
    "what runs the network: auto, torch, openvino, or one of them with its precision (torch-float32, "
    "openvino-bfloat16); if not given, as NNUNET_SOFTSEG_BACKEND says, else what is fastest here"
)


def _run_predict(arguments: argparse.Namespace) -> int:
    from nnunet_softseg.inference.command import predict

    report = predict(
        arguments.source,
        arguments.output,
        arguments.model,
        folds=arguments.folds,
        checkpoint=arguments.checkpoint,
        contrasts=arguments.contrasts,
        device=arguments.device,
        localize=arguments.localize,
        largest_piece=arguments.largest_piece,
        discard_implausible=arguments.discard_implausible,
        backend=arguments.backend,
        overwrite=arguments.overwrite,
        num_threads=arguments.num_threads,
    )
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(report.as_text())
    return 2 if report.failed else 0
