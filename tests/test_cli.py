"""The shell of the command line: help, exit codes, one-line errors; `run` without start-up files."""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, clean_environment
from stand_in import Site

import nnunet_softseg
from nnunet_softseg import cli, registry
from nnunet_softseg.errors import UserError

COMMANDS = next(
    action.choices for action in cli.make_parser()._actions if isinstance(action, argparse._SubParsersAction)
)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"nnunet-softseg {nnunet_softseg.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_the_command_and_explains_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["-h"])
    assert re.search(rf"^    {command}\s", capsys.readouterr().out, re.MULTILINE)

    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "-h"])
    assert f"usage: nnunet-softseg {command}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["no-such-command"]])
def test_unusable_call_ends_with_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert "nnunet-softseg: error: " in capsys.readouterr().err


def test_user_error_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "nnUNetv2_trian", "101"]) == 2

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(
        "nnunet-softseg: error: unknown nnU-Net command nnUNetv2_trian: expected one of "
    )
    assert "nnUNetv2_train\n" in printed.err
    assert printed.err.count("\n") == 1


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug is no mistake of the user: whoever mends it needs to see where it is."""

    def fail(_: object) -> int:
        raise KeyError("a bug")

    monkeypatch.setattr("nnunet_softseg.cli.set_up._run_run", fail)
    with pytest.raises(KeyError, match="a bug"):
        cli.main(["run", "nnUNetv2_train"])


def test_help_loads_nothing_heavy(in_new_python) -> None:
    code = """
import contextlib, sys
from nnunet_softseg.cli import main
with contextlib.suppress(SystemExit):
    main(["-h"])
print(sorted({"torch", "nnunetv2", "numpy", "matplotlib", "SimpleITK"} & set(sys.modules)))
"""
    assert in_new_python(code).splitlines()[-1] == "[]"


def test_python_m(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "nnunet_softseg", "--version"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert process.stdout == f"nnunet-softseg {nnunet_softseg.__version__}\n"


STOCK_COMMAND = """
import multiprocessing
import sys

from nnunetv2.utilities.find_class_by_name import recursive_find_python_class


def main():
    asked = ("folder", sys.argv[1], "nnunetv2.training")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(recursive_find_python_class, asked)
    here = recursive_find_python_class(*asked)
    print(sys.argv, here.__module__, there is here)
"""
CONSOLE_SCRIPT = """
import sys
from nnunet_softseg.cli import main
if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.fixture
def unread_site(tmp_path: Path) -> Site:
    """A stand-in for nnU-Net with one command, in a folder whose start-up files Python does not read."""
    site = Site(tmp_path / "site")
    site.write("nnunetv2/command.py", STOCK_COMMAND)
    site.write("nnunetv2-2.8.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: nnunetv2\nVersion: 2.8.1\n")
    site.write(
        "nnunetv2-2.8.1.dist-info/entry_points.txt",
        "[console_scripts]\nnnUNetv2_ask = nnunetv2.command:main\n",
    )
    package = REPOSITORY / "nnunet_softseg"
    for file in (*(package / "cli").glob("*.py"), package / "run.py", package / "__main__.py"):
        site.write(f"nnunet_softseg/{file.relative_to(package)}", file.read_text())
    site.write("script.py", CONSOLE_SCRIPT)
    return site


def run_unread(site: Site, *start: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-S", *start, "nnUNetv2_ask", "nnUNetTrainerSoftSeg"],
        capture_output=True,
        text=True,
        check=False,
        cwd=site.folder,
        env=clean_environment({"PYTHONPATH": str(site.folder), **env}),
    )


FOUND = "['nnUNetv2_ask', 'nnUNetTrainerSoftSeg'] nnunet_softseg.training.trainer True"


@pytest.mark.parametrize("start", [("script.py", "run"), ("-m", "nnunet_softseg.run")])
def test_run_finds_our_names_where_start_up_files_are_not_read(
    unread_site: Site, start: tuple[str, ...]
) -> None:
    process = run_unread(unread_site, *start)
    assert process.stdout.strip() == FOUND, process.stderr


def test_run_works_from_a_source_tree(unread_site: Site) -> None:
    folder = unread_site.folder
    (folder / "hook").mkdir()
    (folder / "_nnunet_softseg_hook.py").rename(folder / "hook" / "_nnunet_softseg_hook.py")

    process = run_unread(unread_site, "script.py", "run")
    assert process.stdout.strip() == FOUND, process.stderr


def test_run_says_that_the_hook_is_switched_off(unread_site: Site) -> None:
    process = run_unread(unread_site, "script.py", "run", NNUNET_SOFTSEG_NO_HOOK="1")
    assert process.returncode == 2
    assert process.stderr.startswith("nnunet-softseg: error: the hook is switched off: unset ")
    assert process.stderr.endswith(" NNUNET_SOFTSEG_NO_HOOK\n")


def test_run_says_that_the_hook_is_missing(unread_site: Site) -> None:
    (unread_site.folder / "_nnunet_softseg_hook.py").unlink()
    process = run_unread(unread_site, "script.py", "run")
    assert process.returncode == 2
    assert "start-up hook _nnunet_softseg_hook.py is missing: run `pip install" in process.stderr


def test_run_says_that_nnunet_is_missing(unread_site: Site) -> None:
    shutil.rmtree(unread_site.folder / "nnunetv2-2.8.1.dist-info")
    process = run_unread(unread_site, "script.py", "run")
    assert process.returncode == 2
    assert "nnunetv2 is not installed" in process.stderr


def test_run_hands_on_the_exit_code(unread_site: Site) -> None:
    unread_site.write("nnunetv2/command.py", "import sys\ndef main(): sys.exit(7)\n")
    assert run_unread(unread_site, "script.py", "run").returncode == 7


def test_user_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="unknown name"):
        registry.find("none")
    assert issubclass(UserError, ValueError)
