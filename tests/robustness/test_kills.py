"""Commands that are killed at any moment, and repeated: the files are those of a call that nobody disturbed.

`make soak` kills sixty times; the usual tests kill each command once. The moments are drawn by a seed, as
parts of the time that the undisturbed call took.
"""

import gzip
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked_commands import BIDS_APP, ForkedCommands
from tiny_dataset import TinyDataset, make_tiny_dataset, plan_and_preprocess

from nnunet_softseg.phantom import phantom

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks its commands")

MODEL = Path(__file__).parents[1] / "data" / "model_of_0.1.0"
PREDICT = [
    "-m",
    str(MODEL),
    "-device",
    "cpu",
    "--backend",
    "torch-float32",
    "--localize",
    "never",
    "-np",
    "1",
]
SOAK_KILLS = 60
TIMES = {"seconds", "Seconds", "mtime_ns"}
"""Keys of JSON whose values are another's every time."""
SECONDS_IN_HTML = re.compile(rb'<td class="number">[0-9.]+</td></tr>')
TEMPORARY = re.compile(r"^\..+@\d+-[0-9a-f]{8}|^\.partial-")


@dataclass(frozen=True)
class Inputs:
    """What the commands read, made once."""

    bids: Path
    labelled: Path
    dataset: TinyDataset
    images: Path
    people: Path
    areas: tuple[Path, Path]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedCommands]:
    server = ForkedCommands(tmp_path_factory.mktemp("commands"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, commands: ForkedCommands) -> Inputs:
    root = tmp_path_factory.mktemp("inputs")
    small = {"fov_mm": (40.0, 40.0, 30.0), "contrasts": ("T2w", "T2star"), "progress": False}
    bids = phantom(root / "bids", n=2, **small)
    labelled = root / "labelled"
    shutil.copytree(bids, labelled)
    commands.start(
        ["make-gt", "-i", str(labelled), "-o", str(labelled / "derivatives/softseg"), "-np", "1"], {}
    )
    assert commands.wait() == 0
    dataset = make_tiny_dataset(root / "nnunet")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in dataset.environment.items():
            patch.setenv(name, value)
        plan_and_preprocess(dataset)
    images, people = root / "images", root / "people"
    for subject in ("sub-01", "sub-02"):
        images.mkdir(exist_ok=True)
        shutil.copyfile(MODEL / "image.nii.gz", images / f"{subject}_T2w_0000.nii.gz")
        (people / subject / "anat").mkdir(parents=True)
        shutil.copyfile(MODEL / "image.nii.gz", people / subject / "anat" / f"{subject}_T2w.nii.gz")
    areas = tuple(write_areas(root / f"{name}.csv", shift) for name, shift in (("old", 0.0), ("new", 0.3)))
    return Inputs(bids, labelled, dataset, images, people, areas)


def write_areas(file: Path, shift: float) -> Path:
    drawn = np.random.default_rng(3).normal(75, 6, 12)
    rows = [f"sub-{number:02d},2,{area + shift * (number % 3):.4f}" for number, area in enumerate(drawn, 1)]
    file.write_text("\n".join(["subject,level,csa_mm2", *rows]) + "\n")
    return file


Call = tuple[list[str], dict[str, str]]


def make_gt(inputs: Inputs, out: Path) -> Call:
    return ["make-gt", "-i", str(inputs.bids), "-o", str(out / "gt"), "-np", "1"], {}


def convert(inputs: Inputs, out: Path) -> Call:
    words = ["convert", "-i", str(inputs.labelled), "-d", "901", "--name", "Cord"]
    return words, {"nnUNet_raw": str(out / "raw")}


def prepare(inputs: Inputs, out: Path) -> Call:
    for kind in ("raw", "preprocessed"):
        if not (out / kind).is_dir():
            shutil.copytree(inputs.dataset.root / kind, out / kind)
    folders = {f"nnUNet_{kind}": str(out / kind) for kind in ("raw", "preprocessed", "results")}
    return ["prepare", "-d", "101", "-c", "3d_fullres", "-np", "1"], folders


def fuse(inputs: Inputs, out: Path) -> Call:
    raters = []
    for rater in ("one", "two"):  # the second has seen one case less
        folder = out / "raters" / rater
        if not folder.is_dir():
            shutil.copytree(inputs.dataset.raw / "labelsTr", folder)
        raters.append(str(folder))
    words = ["fuse", "-i", *raters, "-o", str(out / "soft"), "--label-maps", str(out / "maps"), "-np", "1"]
    return words, {}


def predict(inputs: Inputs, out: Path) -> Call:
    return ["predict", "-i", str(inputs.images), "-o", str(out / "predicted"), *PREDICT], {}


def bids_app(inputs: Inputs, out: Path) -> Call:
    return [BIDS_APP, str(inputs.people), str(out / "derivatives"), "participant", *PREDICT], {}


def compare(inputs: Inputs, out: Path) -> Call:
    raw = inputs.dataset.raw
    words = ["compare", "-g", str(raw / "softLabelsTr"), "--method", f"soft={raw / 'softLabelsTr'}"]
    return [*words, "--method", f"hard={raw / 'labelsTr'}", "-o", str(out / "comparison"), "-np", "1"], {}


def drift(inputs: Inputs, out: Path) -> Call:
    old, new = map(str, inputs.areas)
    return ["drift", "--old", old, "--new", new, "-o", str(out / "drift"), "-np", "1"], {}


COMMANDS: tuple[Callable[[Inputs, Path], Call], ...] = (
    make_gt, convert, prepare, fuse, predict, bids_app, compare, drift,
)  # fmt: skip


# Files as they count


def content(file: Path, root: Path) -> Any:
    """What a file says, without times, and without the place where it lies."""
    data = file.read_bytes()
    if file.name.endswith(".gz"):
        return gzip.decompress(data)
    if file.suffix == ".json":
        return without_times(json.loads(data.decode().replace(str(root), "OUT")))
    # The last column of the page of predictions.
    data = SECONDS_IN_HTML.sub(b"</tr>", data) if file.suffix == ".html" else data
    return data.replace(str(root).encode(), b"OUT")


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def files(root: Path) -> dict[str, Any]:
    found = [file for file in sorted(root.rglob("*")) if file.is_file() and not file.name.endswith(".lock")]
    return {file.relative_to(root).as_posix(): content(file, root) for file in found}


@dataclass(frozen=True)
class Undisturbed:
    """What a call that nobody disturbed has written, how long it took and how it ended."""

    files: dict[str, Any]
    seconds: float
    code: int


@pytest.fixture(scope="module")
def undisturbed(
    inputs: Inputs, commands: ForkedCommands, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Callable[[Inputs, Path], Call]], Undisturbed]:
    known: dict[str, Undisturbed] = {}

    def of(command: Callable[[Inputs, Path], Call]) -> Undisturbed:
        if command.__name__ not in known:
            out = (
                tmp_path_factory.mktemp(command.__name__) / "out"
            )  # as deep as the others, for relative paths
            call = command(inputs, out)
            start = time.monotonic()
            commands.start(*call)
            code = commands.wait()
            known[command.__name__] = Undisturbed(files(out), time.monotonic() - start, code)
        return known[command.__name__]

    return of


def kill_and_repeat(
    command: Callable[[Inputs, Path], Call],
    inputs: Inputs,
    commands: ForkedCommands,
    expected: Undisturbed,
    out: Path,
    part: float,
) -> bool:
    """Kill a call after a part of its time, repeat it, and compare; return whether the kill came in time."""
    call = command(inputs, out)
    pid = commands.start(*call)
    time.sleep(part * expected.seconds)
    was_killed = commands.kill(pid) == -signal.SIGKILL
    commands.start(*call)
    code = commands.wait()
    said = commands.log.read_text(errors="replace")[-1500:]
    assert code == expected.code, said
    found = files(out)
    assert [name for name in found if TEMPORARY.match(Path(name).name)] == []
    assert sorted(found) == sorted(expected.files), said
    assert [name for name, value in found.items() if value != expected.files[name]] == [], part
    return was_killed


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_a_killed_command_ends_as_if_undisturbed_when_it_is_repeated(
    command: Callable[[Inputs, Path], Call],
    inputs: Inputs,
    commands: ForkedCommands,
    undisturbed: Callable[[Callable[[Inputs, Path], Call]], Undisturbed],
    tmp_path: Path,
) -> None:
    expected = undisturbed(command)
    assert expected.code == 0
    assert expected.files
    part = random.Random(command.__name__).uniform(0.2, 0.9)
    kill_and_repeat(command, inputs, commands, expected, tmp_path / "killed", part)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_sixty_kills_at_random_moments(
    inputs: Inputs,
    commands: ForkedCommands,
    undisturbed: Callable[[Callable[[Inputs, Path], Call]], Undisturbed],
    tmp_path: Path,
) -> None:
    drawn = random.Random(int(os.environ.get("SOFTSEG_KILL_SEED", "0")))
    killed = 0
    for number in range(3 * SOAK_KILLS):  # some calls end before they are killed
        command = COMMANDS[number % len(COMMANDS)]
        out = tmp_path / f"{number}_{command.__name__}"
        killed += kill_and_repeat(command, inputs, commands, undisturbed(command), out, drawn.uniform(0, 1))
        shutil.rmtree(out)
        if killed == SOAK_KILLS:
            break
    assert killed == SOAK_KILLS
