"""Commands that are killed at any moment, and repeated: the files are those of a call that nobody disturbed.

`make soak` kills sixty times; the usual tests kill each command once. The moments are drawn by a seed, as
parts of the time that the undisturbed call took.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from forked_commands import ForkedCommands
from small_calls import (
    COMMANDS,
    TEMPORARY,
    Command,
    Inputs,
    Undisturbed,
    all_but,
    differences,
    files,
    predict_ready,
    undisturbed_calls,
)

SOAK_KILLS = 60


@pytest.fixture(scope="module")
def undisturbed(
    inputs: Inputs, commands: ForkedCommands, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Command], Undisturbed]:
    """As the others that are run by this server: their times are the measure of when to kill."""
    return undisturbed_calls(inputs, tmp_path_factory.mktemp("undisturbed"), commands.run)


def kill_and_repeat(
    command: Command,
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
    was_killed = commands.kill(pid).code == -signal.SIGKILL
    ended = commands.run(*call)
    assert ended.code == 0, ended.said
    assert [file for file in out.rglob("*") if TEMPORARY.match(file.name)] == []
    assert differences(files(out, inputs), expected.files) == [], (part, ended.said)
    return was_killed


@pytest.mark.parametrize("command", all_but(predict_ready))
def test_a_killed_command_ends_as_if_undisturbed_when_it_is_repeated(
    command: Command,
    inputs: Inputs,
    commands: ForkedCommands,
    undisturbed: Callable[[Command], Undisturbed],
    tmp_path: Path,
) -> None:
    expected = undisturbed(command)
    assert expected.files
    part = random.Random(command.__name__).uniform(0.2, 0.9)
    kill_and_repeat(command, inputs, commands, expected, tmp_path / "killed" / "out", part)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_sixty_kills_at_random_moments(
    inputs: Inputs,
    commands: ForkedCommands,
    undisturbed: Callable[[Command], Undisturbed],
    tmp_path: Path,
) -> None:
    drawn = random.Random(int(os.environ.get("SOFTSEG_KILL_SEED", "0")))
    killed = 0
    for number in range(3 * SOAK_KILLS):  # some calls end before they are killed
        command = COMMANDS[number % len(COMMANDS)]
        out = tmp_path / f"{number}_{command.__name__}" / "out"
        killed += kill_and_repeat(command, inputs, commands, undisturbed(command), out, drawn.uniform(0, 1))
        shutil.rmtree(out.parent)
        if killed == SOAK_KILLS:
            break
    assert killed == SOAK_KILLS
