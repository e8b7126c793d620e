"""Folders with blanks, quotes, percent, braces and letters of any alphabet in their names."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from small_calls import (
    WORKFLOW,
    Command,
    Inputs,
    Undisturbed,
    all_but,
    compare,
    differences,
    export,
    files,
    predict,
    predict_ready,
    prepare,
    run_here,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="names that Windows does not have")

NAME = """my "odd" o'ne 100%d {x} $HOME; \\ é 日本 🧠"""


@pytest.fixture(scope="module")
def oddly_named(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """All inputs in such a folder."""
    root = tmp_path_factory.mktemp("names") / NAME / inputs.root.name
    shutil.copytree(inputs.root, root)
    return Inputs(root)


def output(inputs: Inputs, command: Command) -> Path:
    """Return a folder beside the inputs, as deep as that of the undisturbed call."""
    return inputs.root.parent / "outputs" / command.__name__ / "out"


@pytest.mark.parametrize("command", [*all_but(compare, export, predict_ready), WORKFLOW])
def test_files_are_those_of_a_plain_name(
    command: Command, oddly_named: Inputs, undisturbed: Callable[[Command], Undisturbed]
) -> None:
    expected = undisturbed(command).files
    out = output(oddly_named, command)
    ended = run_here(*command(oddly_named, out))
    assert ended.code == 0, ended.said
    found = files(out, oddly_named)
    assert sorted(found) == sorted(expected)
    # On a page, such names are written in other letters.
    assert [name for name in differences(found, expected) if not name.endswith(".html")] == []


def test_check_and_csa(oddly_named: Inputs) -> None:
    _, folders = prepare(oddly_named, output(oddly_named, prepare))
    ended = run_here(["check", "-d", "101", "-np", "1"], folders)
    assert ended.code == 0, ended.said

    words, _ = predict(oddly_named, output(oddly_named, predict))
    assert run_here(words, {}).code == 0  # it is there, or made now
    predicted, table = words[words.index("-o") + 1], oddly_named.root.parent / "areas.csv"
    ended = run_here(["csa", "-i", predicted, "-o", str(table), "-np", "1"], {})
    assert ended.code == 0, ended.said
    assert pd.read_csv(table)["csa_mm2"].max() > 0
