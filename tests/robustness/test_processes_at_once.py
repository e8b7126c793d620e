"""Several processes at the same data: every file is that of one process alone, or the later are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
from forked_commands import ForkedCommands
from small_calls import (
    COMMANDS,
    Command,
    Inputs,
    Undisturbed,
    bids_app,
    differences,
    files,
    mistakes,
    predict,
    undisturbed_calls,
)

ROUNDS = 3


@pytest.fixture(scope="module")
def undisturbed(
    inputs: Inputs, commands: ForkedCommands, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Command], Undisturbed]:
    return undisturbed_calls(inputs, tmp_path_factory.mktemp("undisturbed"), commands.run)


def run_at_once(
    command: Command, number: int, inputs: Inputs, commands: ForkedCommands, out: Path
) -> list[str]:
    """Run the same call several times at once, and return what the refused ones said."""
    call = command(inputs, out)
    at_work = [commands.start(*call) for _ in range(number)]
    refusals = []
    for ended in map(commands.wait, at_work):
        assert ended.code in (0, 2), ended.said
        if ended.code == 2:
            assert len(mistakes(ended.said)) == 1, ended.said
            assert "Traceback" not in ended.said
            refusals += mistakes(ended.said)
    assert len(refusals) < number
    return refusals


def test_two_predict_into_the_same_folder(
    inputs: Inputs, commands: ForkedCommands, undisturbed: Callable[[Command], Undisturbed], tmp_path: Path
) -> None:
    out = tmp_path / "shared" / "out"
    assert run_at_once(predict, 2, inputs, commands, out) == []
    assert differences(files(out, inputs), undisturbed(predict).files) == []


def test_two_participants_into_the_same_derivatives(
    inputs: Inputs, commands: ForkedCommands, undisturbed: Callable[[Command], Undisturbed], tmp_path: Path
) -> None:
    out = tmp_path / "shared" / "out"
    words, environment = bids_app(inputs, out)
    at_work = [
        commands.start([*words, "--participant-label", label], environment) for label in ("sub-01", "sub-02")
    ]
    for ended in map(commands.wait, at_work):
        assert ended.code == 0, ended.said
    assert differences(files(out, inputs), undisturbed(bids_app).files) == []


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_command_again_and_again(
    command: Command,
    number: int,
    inputs: Inputs,
    commands: ForkedCommands,
    undisturbed: Callable[[Command], Undisturbed],
    tmp_path: Path,
) -> None:
    expected = undisturbed(command)
    for attempt in range(ROUNDS):
        out = tmp_path / f"shared_{attempt}" / "out"
        said = run_at_once(command, number, inputs, commands, out)
        assert differences(files(out, inputs), expected.files) == [], said
