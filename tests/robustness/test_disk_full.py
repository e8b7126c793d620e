"""A full disk, at any moment: one line that says so, nothing half-written, and the same call ends it all.

The disk is a file system in memory with room for a part of what the command writes.
"""

import errno
import os
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounts import remount, small_disk
from small_calls import (
    WORKFLOW,
    Command,
    Inputs,
    Undisturbed,
    all_but,
    bids_app,
    compare,
    differences,
    export,
    files,
    mistakes,
    predict,
    run_here,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system")

ROOM = 64_000_000
POINTS = 12
OF_THE_CALL = re.compile(
    r"failed\.json|softseg\.json|fuse\.json|agreement\.csv|soft/[\w-]+\.json|index\.html|sub-\d+\.html|/logs/|/\.work/"
)
"""Files that say what the call has done, and those it goes on with: others than of a call that did it all."""


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own, which is never empty, as a size of 0 would be no limit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk, f"size={ROOM}"):
        (disk / "other").write_text("of somebody else")
        out = disk / "out"
        out.mkdir()
        yield out


def pages(folder: Path) -> int:
    size = os.sysconf("SC_PAGESIZE")
    return sum(-(-file.stat().st_size // size) for file in folder.rglob("*") if file.is_file())


def fill_and_repeat(command: Command, inputs: Inputs, expected: Undisturbed, out: Path, part: float) -> None:
    """Run a command with room for a part of its files, then with room for all."""
    call = command(inputs, out)
    there = pages(out.parent)
    written = pages(expected.out) - pages(out)
    remount(out.parent, f"size={(there + int(part * written)) * os.sysconf('SC_PAGESIZE')}")
    ended = run_here(*call)
    assert ended.code == 2, (part, ended.said)
    said = mistakes(ended.said)
    assert said
    for line in said:
        assert re.search(rf"{re.escape(str(out))}/.*: disk full, found .* make room and run the same", line)
        assert not re.search(r"@\d+-[0-9a-f]{8}", line)  # a temporary name
    left = {name: value for name, value in files(out, inputs).items() if not OF_THE_CALL.search(name)}
    assert [name for name, value in left.items() if value != expected.files.get(name)] == [], (part, said)

    remount(out.parent, f"size={ROOM}")
    ended = run_here(*call)
    assert ended.code == 0, (part, ended.said)
    assert differences(files(out, inputs), expected.files) == [], part


@pytest.mark.parametrize("command", all_but(compare, export))
def test_a_command_that_filled_the_disk_ends_as_if_undisturbed_when_it_is_repeated(
    command: Command, inputs: Inputs, undisturbed: Callable[[Command], Undisturbed], out: Path
) -> None:
    part = random.Random(command.__name__).uniform(0, 1)
    fill_and_repeat(command, inputs, undisturbed(command), out, part)


@pytest.mark.parametrize("command", [predict, bids_app])
def test_a_picture_that_finds_no_room_is_missed(
    command: Command,
    inputs: Inputs,
    undisturbed: Callable[[Command], Undisturbed],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All else has room, so that the case would count as done."""
    expected, out = undisturbed(command), tmp_path / "disk" / "out"
    write = Path.write_bytes

    def full(file: Path, content: bytes) -> int:
        if file.suffix == ".webp":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    ended = run_here(*command(inputs, out))
    assert ended.code == 2
    assert all(re.search(r"\.webp: disk full, found .* make room", line) for line in mistakes(ended.said))

    monkeypatch.undo()
    assert run_here(*command(inputs, out)).code == 0
    assert differences(files(out, inputs), expected.files) == []


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", all_but())
def test_the_same_at_many_moments(
    command: Command, inputs: Inputs, undisturbed: Callable[[Command], Undisturbed], out: Path
) -> None:
    for point in range(POINTS):
        fill_and_repeat(command, inputs, undisturbed(command), out, point / POINTS)
        shutil.rmtree(out)
        out.mkdir()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", [0.02, 0.3, 0.8])
@pytest.mark.parametrize("command", [WORKFLOW])
def test_a_workflow_that_filled_the_disk_is_repeated(
    command: Command, part: float, inputs: Inputs, undisturbed: Callable[[Command], Undisturbed], out: Path
) -> None:
    """What its jobs say is in their logs, as far as there was room for them."""
    expected = undisturbed(command)
    remount(out.parent, f"size={int(part * pages(expected.out)) * os.sysconf('SC_PAGESIZE')}")
    call = command(inputs, out)
    ended = run_here(*call)
    assert ended.code == 2, ended.said
    assert len(mistakes(ended.said)) >= 1
    assert "Traceback" not in ended.said

    remount(out.parent, f"size={ROOM}")
    ended = run_here(*call)
    assert ended.code == 0, ended.said
    assert differences(files(out, inputs), expected.files) == []
