"""A worker that is killed, as the kernel does when memory runs out, fails its case and not the run.

The killing is done by `dying_jobs`; with the real jobs, the repeated call ends as an undisturbed one.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import dying_jobs
import pytest
from small_calls import (
    Call,
    Command,
    Inputs,
    Undisturbed,
    differences,
    evaluate,
    files,
    fuse,
    make_gt,
    mistakes,
    run_here,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL on Windows")
JOBS: dict[Command, tuple[str, str]] = {
    fuse: ("nnunet_softseg.labels.raters.command", "fuse_case"),
    make_gt: ("nnunet_softseg.labels.contrasts.make_gt", "make_subject"),
    evaluate: ("nnunet_softseg.evaluation.evaluate", "measure_case"),
}


def in_two_processes(call: Call) -> Call:
    words, environment = call
    return [
        "2" if before == "-np" else word for before, word in zip(["", *words], words, strict=False)
    ], environment


@pytest.mark.parametrize(
    ("command", "died"),
    [
        (fuse, dying_jobs.CASE),
        pytest.param(make_gt, dying_jobs.SUBJECT, marks=pytest.mark.soak),
        pytest.param(evaluate, dying_jobs.CASE, marks=pytest.mark.soak),
    ],
    ids=["fuse", "make_gt", "evaluate"],
)
def test_the_other_cases_are_done(
    command: Command,
    died: str,
    inputs: Inputs,
    undisturbed: Callable[[Command], Undisturbed],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, out = undisturbed(command).files, tmp_path / "killed" / "out"
    call = command(inputs, out)
    module, name = JOBS[command]
    monkeypatch.setattr(importlib.import_module(module), name, getattr(dying_jobs, name))
    ended = run_here(*in_two_processes(call))
    assert ended.code == 2, ended.said
    said = f"{died}: expected its process to end by itself, found it killed"
    assert said in ended.said
    assert "run the same command again" in ended.said
    others = [file for file in expected if file.endswith(".nii.gz") and died not in file]
    found = files(out, inputs)
    assert (
        differences({file: found.get(file) for file in others}, {file: expected[file] for file in others})
        == []
    )
    assert not [file for file in found if "/." in file and file.split("/")[-1] not in {".bidsignore"}]

    monkeypatch.undo()
    ended = run_here(*call)
    assert ended.code == 0, ended.said
    assert mistakes(ended.said) == []
    assert differences(files(out, inputs), expected) == []
