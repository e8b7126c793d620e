"""The page on drift: its example runs and prints what it says, its workflow fails on drift."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from PIL import Image
from prisms import prism, write
from test_drift import level_image, release

PAGE = (REPOSITORY / "docs" / "drift.md").read_text(encoding="utf-8")
STAND_INS = {
    "pip": "exit 0\n",
    # The tags of all releases, or a file of the name behind -O.
    "gh": 'if [ "$2" = list ]; then printf "v10\\nv2\\nv9\\n"; else echo "$3" > "${@: -1}"; fi\n',
    "nnunet-softseg": 'if [ "$1" = predict ]; then cp -r "maps_of_$(cat "$5")" "$7"; exit; fi\n'
    f'exec {sys.executable} -m nnunet_softseg "$@" -np 1\n',
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_prints_what_the_page_says_and_draws_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/drift.md", "exec"), {})
    assert capsys.readouterr().out.strip() == re.search(r"^It prints `([^`]+)`", PAGE, re.MULTILINE)[1]
    shown = Image.open(REPOSITORY / "docs" / "images" / "drift.png")
    assert Image.open("drift.png").size == shown.size


@pytest.mark.parametrize(("width", "code"), [(6.5, 3), (6.2, 0)])
def test_the_steps_of_the_workflow_fail_on_drift(width: float, code: int, tmp_path: Path) -> None:
    (workflow,) = blocks("yaml")
    (job,) = yaml.safe_load(workflow)["jobs"].values()
    steps = [step["run"] for step in job["steps"] if "run" in step]
    _lay_out(tmp_path, width)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "NEW": "v10", "PYTHONPATH": str(REPOSITORY)}
    codes = []
    for step in steps:
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", step],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        codes.append(done.returncode)
    assert codes == [0] * (len(steps) - 1) + [code], done.stderr
    assert (tmp_path / "old.zip").read_text().strip() == "v9"
    assert (tmp_path / "drift" / "drift.html").is_file()


def _lay_out(folder: Path, width: float) -> None:
    """A frozen set, the maps of both models, and stand-ins for what the machine lacks."""
    release(folder / "maps_of_v9" / "soft", 6.2)
    release(folder / "maps_of_v10" / "soft", width)
    files = [write(folder / "frozen" / "images" / f"sub-{n:02d}_T2w.nii.gz", prism()) for n in range(3)]
    (folder / "frozen" / "levels").mkdir()
    for file in list(files):
        levels = level_image(folder / "frozen" / "levels")
        files.append(levels.rename(levels.with_name(file.name.replace(".nii", "_levels.nii"))))
    lines = [
        f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.relative_to(folder / 'frozen')}\n" for f in files
    ]
    (folder / "frozen" / "SHA256SUMS").write_text("".join(lines))
    (folder / "bin").mkdir()
    for name, script in STAND_INS.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{script}")
        (folder / "bin" / name).chmod(0o755)
