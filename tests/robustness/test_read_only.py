"""Folders that cannot be written: one line where it must be, no matter where it need not."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY
from mounts import read_only, remount, small_disk
from small_calls import (
    Command,
    Inputs,
    Undisturbed,
    all_but,
    bids_app,
    compare,
    differences,
    evaluate,
    export,
    files,
    make_gt,
    mistakes,
    run_here,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system")


@pytest.mark.parametrize("command", all_but(compare))
def test_an_output_that_cannot_be_written_is_one_line(
    command: Command, inputs: Inputs, tmp_path: Path
) -> None:
    out = tmp_path / "disk" / "out"
    out.mkdir(parents=True)
    with small_disk(out, "size=64m"):
        call = command(inputs, out)
        remount(out, "ro")
        ended = run_here(*call)
    assert ended.code == 2, ended.said
    for line in mistakes(ended.said) or [ended.said]:
        assert re.search(
            rf"error: .*{re.escape(str(out))}.*Read-only file system.*check that the folder is", line
        )


@pytest.mark.parametrize("command", all_but(compare, make_gt, export, evaluate, bids_app))
def test_inputs_and_a_model_that_cannot_be_written_are_no_matter(
    command: Command, inputs: Inputs, undisturbed: Callable[[Command], Undisturbed], tmp_path: Path
) -> None:
    expected = undisturbed(command)
    out = tmp_path / "other" / "out"
    call = command(inputs, out)
    with read_only(inputs.root):
        ended = run_here(*call)
    assert ended.code == 0, ended.said
    assert differences(files(out, inputs), expected.files) == []


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare, of util-linux")
def test_a_package_that_cannot_be_written_predicts(inputs: Inputs, tmp_path: Path) -> None:
    """With the model in it, and without a home to keep anything in; no other process sees the mounts."""
    package, home = REPOSITORY / "nnunet_softseg", tmp_path / "home"
    home.mkdir()
    image = inputs.images / "sub-01_T2w_0000.nii.gz"
    lock = 'mount --bind "$place" "$place" && mount -o remount,bind,ro "$place" || exit 77'
    script = f'for place in "$1" "$2"; do {lock}; done; shift 2; exec "$@"'
    words = [sys.executable, "-m", "nnunet_softseg", "predict", "-i", str(image), "-o", str(tmp_path / "out")]
    process = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(package), str(home), *words],
        cwd=REPOSITORY,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode in (1, 77) and "nnunet-softseg" not in process.stderr:
        pytest.skip("needs the right to mount a file system")
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "out" / "sub-01_T2w.nii.gz").is_file()
