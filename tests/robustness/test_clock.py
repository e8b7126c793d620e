"""A clock that was set back: files newer than now are neither refused nor taken for others."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_calls import (
    WORKFLOW,
    Command,
    Inputs,
    Undisturbed,
    all_but,
    compare,
    differences,
    drift,
    evaluate,
    export,
    files,
    predict,
    predict_ready,
    run_here,
)

TEN_DAYS_S = 10 * 24 * 3600
DATA = (".nii.gz", ".b2nd")


def move_on(root: Path, seconds: int) -> None:
    """Change the times of all files and folders."""
    for path in sorted(root.rglob("*")):
        times = path.stat()
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + seconds * 10**9))


@pytest.fixture
def _sources_of_the_future(inputs: Inputs) -> Iterator[None]:
    move_on(inputs.root, TEN_DAYS_S)
    yield
    move_on(inputs.root, -TEN_DAYS_S)


@pytest.mark.usefixtures("_sources_of_the_future")
@pytest.mark.parametrize("command", [*all_but(compare, evaluate, drift, export, predict_ready), WORKFLOW])
def test_files_newer_than_now_are_like_others(
    command: Command,
    inputs: Inputs,
    undisturbed: Callable[[Command], Undisturbed],
    tmp_path: Path,
) -> None:
    expected = undisturbed(command)
    out = tmp_path / "clock" / "out"
    call = command(inputs, out)
    ended = run_here(*call)
    assert ended.code == 0, ended.said
    assert differences(files(out, inputs), expected.files) == []

    move_on(out, TEN_DAYS_S)
    ended = run_here(*call)
    assert ended.code == 0, ended.said
    assert differences(files(out, inputs), expected.files) == []
    data = [file for file in out.rglob("*") if file.name.endswith(DATA)]
    assert [file.name for file in data if file.stat().st_mtime < time.time()] == []  # none was made again


def test_pictures_of_the_future_are_drawn_again_when_their_maps_are(inputs: Inputs, tmp_path: Path) -> None:
    words, environment = predict(inputs, tmp_path)
    assert run_here(words, environment).code == 0
    move_on(tmp_path, TEN_DAYS_S)
    ended = run_here([*words, "--overwrite"], environment)
    assert ended.code == 0, ended.said
    pictures = list(tmp_path.rglob("*.webp"))
    assert len(pictures) == 2
    assert [file.name for file in pictures if file.stat().st_mtime > time.time()] == []
