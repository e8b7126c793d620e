"""Calls of the commands on small data, and their files as they count: what `tests/robustness` disturbs."""

import contextlib
import csv
import functools
import gzip
import importlib.util
import io
import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
from _pytest.mark import ParameterSet
from forked_commands import BIDS_APP, Ended
from tiny_dataset import TinyDataset, make_tiny_dataset, plan_and_preprocess

from nnunet_softseg import cli
from nnunet_softseg.cli import bids_app as bids_app_command
from nnunet_softseg.phantom import phantom

MODEL = Path(__file__).parent / "data" / "model_of_0.1.0"
TIMES = {"seconds", "Seconds", "mtime_ns"}
"""Keys of JSON whose values are another's every time."""
SECONDS_IN_HTML = re.compile(rb'<td class="number">[0-9.]+</td></tr>')
TEMPORARY = re.compile(r"^\..+@\d+-[0-9a-f]{8}|^\.partial-")


Call = tuple[list[str], dict[str, str]]
"""Words and environment."""


def run_here(words: list[str], environment: dict[str, str]) -> Ended:
    """Run a command in this process."""
    program = cli.main
    if words[0] == BIDS_APP:
        program, words = bids_app_command.main, words[1:]
    said = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        for name, value in environment.items():
            patch.setenv(name, value)
        code = program(words)
    return Ended(code, said.getvalue())


# What they read


@dataclass(frozen=True)
class Inputs:
    """What the commands read, made once, in one folder."""

    root: Path

    @property
    def bids(self) -> Path:
        return self.root / "bids"

    @property
    def labelled(self) -> Path:
        return self.root / "labelled"

    @property
    def dataset(self) -> TinyDataset:
        return TinyDataset(self.root / "nnunet", "Dataset101_Tiny", (), (1,))

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def people(self) -> Path:
        return self.root / "people"

    def areas(self, name: str) -> Path:
        return self.root / f"{name}.csv"


def make_inputs(root: Path) -> Inputs:
    """Make them in a folder that is there."""
    inputs = Inputs(root)
    small = {"fov_mm": (40.0, 40.0, 30.0), "contrasts": ("T2w", "T2star"), "progress": False}
    phantom(inputs.bids, n=2, **small)
    shutil.copytree(inputs.bids, inputs.labelled)
    derivatives = inputs.labelled / "derivatives" / "softseg"
    made = run_here(["make-gt", "-i", str(inputs.labelled), "-o", str(derivatives), "-np", "1"], {})
    assert made.code == 0, made.said
    dataset = make_tiny_dataset(root / "nnunet")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in dataset.environment.items():
            patch.setenv(name, value)
        plan_and_preprocess(dataset)
    shutil.copytree(MODEL, inputs.model)
    for subject in ("sub-01", "sub-02"):
        anat = inputs.people / subject / "anat"
        for folder, name in ((inputs.images, f"{subject}_T2w_0000"), (anat, f"{subject}_T2w")):
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(MODEL / "image.nii.gz", folder / f"{name}.nii.gz")
    _write_areas(inputs.areas("old"), 0.0)
    _write_areas(inputs.areas("new"), 0.3)
    return inputs


def _write_areas(file: Path, shift: float) -> None:
    drawn = np.random.default_rng(3).normal(75, 6, 12)
    rows = [f"sub-{number:02d},2,{area + shift * (number % 3):.4f}" for number, area in enumerate(drawn, 1)]
    file.write_text("\n".join(["subject,level,csa_mm2", *rows]) + "\n")


# Calls

Command = Callable[[Inputs, Path], Call]
"""Gives the call for inputs, and for a folder that takes all that is written."""


def make_gt(inputs: Inputs, out: Path) -> Call:
    return ["make-gt", "-i", str(inputs.bids), "-o", str(out / "gt"), "-np", "1"], {}


def convert(inputs: Inputs, out: Path) -> Call:
    words = ["convert", "-i", str(inputs.labelled), "-d", "901", "--name", "Cord", "-np", "1"]
    return words, {"nnUNet_raw": str(out / "raw")}


def prepare(inputs: Inputs, out: Path) -> Call:
    for kind in ("raw", "preprocessed"):
        if not (out / kind).is_dir():
            shutil.copytree(inputs.dataset.root / kind, out / kind)
    folders = {f"nnUNet_{kind}": str(out / kind) for kind in ("raw", "preprocessed", "results")}
    return ["prepare", "-d", "101", "-c", "3d_fullres", "-np", "1"], folders


def fuse(inputs: Inputs, out: Path) -> Call:
    raters = []
    for rater in ("one", "two"):
        folder = out / "raters" / rater
        if not folder.is_dir():
            shutil.copytree(inputs.dataset.raw / "labelsTr", folder)
        raters.append(str(folder))
    words = ["fuse", "-i", *raters, "-o", str(out / "soft"), "--label-maps", str(out / "maps"), "-np", "1"]
    return words, {}


def _model(inputs: Inputs) -> list[str]:
    words = ["-m", str(inputs.model), "-device", "cpu", "--backend", "torch-float32"]
    return [*words, "--localize", "never", "-np", "1"]


def predict(inputs: Inputs, out: Path) -> Call:
    return ["predict", "-i", str(inputs.images), "-o", str(out / "predicted"), *_model(inputs)], {}


def predict_ready(inputs: Inputs, out: Path) -> Call:
    """With the model of the package, without torch and nnU-Net."""
    return ["predict", "-i", str(inputs.images), "-o", str(out / "ready"), "-np", "1"], {}


def bids_app(inputs: Inputs, out: Path) -> Call:
    return [BIDS_APP, str(inputs.people), str(out / "derivatives"), "participant", *_model(inputs)], {}


def export(inputs: Inputs, out: Path) -> Call:
    return ["export", "-m", str(inputs.model), "-o", str(out / "model.softseg")], {}


def evaluate(inputs: Inputs, out: Path) -> Call:
    raw = inputs.dataset.raw
    words = ["evaluate", "-i", str(raw / "labelsTr"), "-g", str(raw / "softLabelsTr"), "-np", "1"]
    return [*words, "-o", str(out / "evaluation")], {}


def compare(inputs: Inputs, out: Path) -> Call:
    raw = inputs.dataset.raw
    words = ["compare", "-g", str(raw / "softLabelsTr"), "--method", f"soft={raw / 'softLabelsTr'}"]
    return [*words, "--method", f"hard={raw / 'labelsTr'}", "-o", str(out / "comparison"), "-np", "1"], {}


def drift(inputs: Inputs, out: Path) -> Call:
    tables = ["--old", str(inputs.areas("old")), "--new", str(inputs.areas("new"))]
    return ["drift", *tables, "-o", str(out / "drift"), "-np", "1"], {}


def workflow(inputs: Inputs, out: Path) -> Call:
    """In two batches, by Snakemake; none of the commands below, as each job takes seconds to start."""
    words = ["workflow", "-i", str(inputs.people), "-o", str(out / "cohort"), "--batch-size", "1"]
    return [*words, "--cores", "1", "--threads", "1"], {}


COMMANDS: tuple[Command, ...] = (
    make_gt, convert, prepare, fuse, predict, predict_ready, bids_app, export, evaluate, compare, drift,
)  # fmt: skip


def all_but(*long: Command) -> list[ParameterSet]:
    """Return all commands as parameters of a test, some of them for `make soak` alone."""
    return [
        pytest.param(command, id=command.__name__, marks=[pytest.mark.soak] if command in long else [])
        for command in COMMANDS
    ]


WORKFLOW = pytest.param(
    workflow,
    id="workflow",
    marks=[
        pytest.mark.soak,
        pytest.mark.skipif(
            importlib.util.find_spec("snakemake") is None,
            reason="needs `pip install 'nnunet-softseg[workflow]'`",
        ),
    ],
)


# Files as they count


Places = Mapping[str, str]
"""Paths -> what stands for them."""


def content(file: Path, places: Places) -> Any:
    """What a file says, without times, and without the places where it and its sources lie."""
    if file.suffix == ".b2nd":
        array = blosc2.open(str(file), mode="r")
        return array[...].tobytes(), without_times(array.schunk.vlmeta.getall(), places)
    data = file.read_bytes()
    if file.suffix == ".gz":
        return gzip.decompress(data)
    if file.suffix == ".json":
        return without_times(json.loads(data), places)
    if file.suffix == ".csv":
        return [[renamed(cell, places) for cell in row] for row in csv.reader(data.decode().splitlines())]
    # The last column of the page of predictions.
    data = SECONDS_IN_HTML.sub(b"</tr>", data) if file.suffix == ".html" else data
    for place, word in places.items():
        data = data.replace(place.encode(), word.encode())
    return data


def without_times(value: Any, places: Places) -> Any:
    if isinstance(value, dict):
        return {
            renamed(key, places): without_times(part, places)
            for key, part in value.items()
            if key not in TIMES
        }
    if isinstance(value, list):
        return [without_times(part, places) for part in value]
    return renamed(value, places) if isinstance(value, str) else value


def renamed(text: str, places: Places) -> str:
    for place, word in places.items():
        text = text.replace(place, word)
    return text


def files(out: Path, inputs: Inputs) -> dict[str, Any]:
    """Return name -> content of all files but locks, and what a workflow keeps for itself."""
    places = {str(out): "OUT", str(inputs.root): "IN"}
    return {
        file.relative_to(out).as_posix(): content(file, places)
        for file in sorted(out.rglob("*"))
        if file.is_file() and not file.name.endswith(".lock") and ".workflow" not in file.parts
    }


@dataclass(frozen=True)
class Undisturbed:
    """What a call has written that nobody disturbed, and how long it took."""

    out: Path
    files: dict[str, Any]
    seconds: float


def undisturbed_calls(
    inputs: Inputs, folder: Path, run: Callable[..., Ended] = run_here
) -> Callable[[Command], Undisturbed]:
    """Return what gives the undisturbed call of a command, which is run once, below a folder."""

    @functools.cache
    def undisturbed(command: Command) -> Undisturbed:
        out = folder / command.__name__ / "out"
        call = command(inputs, out)
        start = time.monotonic()
        ended = run(*call)
        seconds = time.monotonic() - start
        assert ended.code == 0, ended.said
        return Undisturbed(out, files(out, inputs), seconds)

    return undisturbed


def mistakes(said: str) -> list[str]:
    """Return the lines that say what went wrong."""
    return re.findall(r"^(?:nnunet-softseg(?:-bids)?: error|failed): .*$", said, re.MULTILINE)


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Return the names of files that are missing, too many, or say something else."""
    names = sorted({*found, *expected})
    return [name for name in names if found.get(name) != expected.get(name)]
