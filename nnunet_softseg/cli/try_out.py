"""Commands to try things out: demo, phantom."""

import argparse

from nnunet_softseg.cli.parsing import Subparsers, add_command


def add_demo(subparsers: Subparsers) -> None:
    """Add the command `demo`."""
    parser = add_command(
        subparsers,
        "demo",
        "the whole way on a CPU in minutes, soft against vanilla",
        "Phantom -> dataset -> stock nnU-Net plan, train, predict -> table and picture. An interrupted demo\n"
        "goes on where it was when the command is repeated.",
    )
    parser.add_argument(
        "-o", dest="output", required=True, default=argparse.SUPPRESS, help="folder, made if missing"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the phantom")
    parser.add_argument("-np", dest="num_processes", type=int, default=2, help="processes of each command")
    parser.set_defaults(run=_run_demo)


def _run_demo(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from nnunet_softseg.phantom.demo import demo

    demo(Path(arguments.output), seed=arguments.seed, num_processes=arguments.num_processes)
    return 0


def add_phantom(subparsers: Subparsers) -> None:
    """Add the command `phantom`."""
    parser = add_command(
        subparsers,
        "phantom",
        "multi-contrast cord phantom with exact partial volume, per-contrast biased masks, levels, true CSA",
        "Writes a BIDS folder: images, derivatives/labels (masks as raters draw them, biased by contrast)\n"
        "and derivatives/truth (share of cord in every voxel, levels, areas). The same arguments give the\n"
        "same files, bit by bit. A call that was interrupted can be repeated; a larger -n adds subjects.",
    )
    parser.add_argument("-o", dest="output", required=True, metavar="BIDS", help="folder to write")
    parser.add_argument("-n", type=int, default=12, help="number of subjects")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument(
        "--fov-mm",
        type=float,
        nargs=3,
        metavar=("RL", "AP", "SI"),
        default=(72.0, 72.0, 96.0),
        help="extent of the images in mm",
    )
    parser.add_argument(
        "--contrasts", nargs="+", metavar="NAME", help="of T1w T2w T2star mt-on mt-off dwi; all if not given"
    )
    parser.add_argument(
        "--shift-mm", type=float, default=0.0, metavar="MM", help="largest in-plane shift against T2w"
    )
    parser.add_argument(
        "--axial-si-mm", type=float, metavar="MM", help="S-I extent of T2star, mt-on, mt-off, dwi, if shorter"
    )
    parser.add_argument(
        "--oblique-deg", type=float, default=0.0, metavar="DEG", help="largest tip of axial slices about R-L"
    )
    parser.add_argument("--no-cord", action="store_true", help="all tissue but cord and canal; empty labels")
    parser.add_argument("-np", dest="num_processes", type=int, default=2, help="subjects made at once")
    parser.set_defaults(run=_run_phantom)


def _run_phantom(arguments: argparse.Namespace) -> int:
    from nnunet_softseg.phantom import CONTRAST_NAMES, phantom

    folder = phantom(
        arguments.output,
        n=arguments.n,
        seed=arguments.seed,
        fov_mm=tuple(arguments.fov_mm),
        contrasts=arguments.contrasts or CONTRAST_NAMES,
        shift_mm=arguments.shift_mm,
        cord=not arguments.no_cord,
        axial_si_mm=arguments.axial_si_mm,
        oblique_deg=arguments.oblique_deg,
        num_processes=arguments.num_processes,
    )
    print(folder)
    return 0
