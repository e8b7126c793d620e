"""The shell of the command line: help, exit codes, one-line errors; `run` without start-up files."""

import dataclasses
import importlib
import inspect
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import REPOSITORY, clean_environment, heed_ctrl_c
from stand_in import Site

import nnunet_softseg
from nnunet_softseg import cli, registry
from nnunet_softseg.errors import UserError


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"nnunet-softseg {nnunet_softseg.__version__}\n"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_lists_the_command_and_explains_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["-h"])
    assert re.search(rf"^    {command}\s", capsys.readouterr().out, re.MULTILINE)

    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "-h"])
    shown = capsys.readouterr().out
    assert f"usage: nnunet-softseg {command}" in shown
    assert not re.search(r"default:\s+(None|False|True|\[\]|\(\))", shown)


def fields(command: str) -> list[dataclasses.Field]:
    return list(dataclasses.fields(cli.COMMANDS[command]))


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_shows_the_default_and_unit_of_every_option(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "-h"])
    options = " ".join(capsys.readouterr().out.split())
    for field in fields(command):
        help_text = " ".join(field.metadata["help"].split())
        assert help_text in options
        after = options.partition(help_text)[2]
        if field.default is dataclasses.MISSING and field.metadata["spelling"].startswith("-"):
            assert after.startswith(" (required)")
        elif isinstance(field.default, float):
            unit = {"MM": " mm", "DEG": " degrees"}.get(field.metadata["spelling"].split()[-1], "")
            assert after.startswith(f" (default: {field.default:g}{unit})")
        elif isinstance(field.default, str) or type(field.default) is int:
            assert after.startswith(f" (default: {field.default})")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("", "nnunet-softseg: error: the following arguments are required: COMMAND (see nnunet-softseg -h)"),
        ("no-such-command", "nnunet-softseg: error: argument COMMAND: invalid choice: 'no-such-command'"),
        ("--nonsense", "nnunet-softseg: error: the following arguments are required: COMMAND"),
        (
            "demo -o out --sed 1",
            "nnunet-softseg demo: error: unknown option --sed, did you mean --seed? "
            "(see nnunet-softseg demo -h)",
        ),
        ("demo -o out more", "nnunet-softseg demo: error: unknown option more (see nnunet-softseg demo -h)"),
        ("demo", "nnunet-softseg demo: error: the following arguments are required: -o"),
        ("demo -o out -np two", "nnunet-softseg demo: error: argument -np: invalid int value: 'two'"),
        (
            "csa -i a -o b --smooth x",
            "nnunet-softseg csa: error: argument --smooth: invalid float value: 'x'",
        ),
        ("fuse -i a -o b --method x", "nnunet-softseg fuse: error: argument --method: invalid choice: 'x'"),
        (
            "csa -i a -o b --levels c --discs d",
            "nnunet-softseg csa: error: argument --discs: not allowed with argument --levels",
        ),
        (
            "compare -g a -o b --method c",
            "nnunet-softseg compare: error: argument --method: expected NAME=VALUE, without spaces around =, "
            "found 'c'",
        ),
    ],
)
def test_a_mistake_in_the_options_ends_with_code_2_and_one_line(
    call: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(call.split())
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1


FUNCTIONS = {
    "demo": ("nnunet_softseg.phantom.demo", "demo"),
    "phantom": ("nnunet_softseg.phantom", "phantom"),
    "synthesise": ("nnunet_softseg.phantom.synthesis", "synthesise"),
    "make-gt": ("nnunet_softseg.labels.contrasts.make_gt", "make_gt"),
    "fuse": ("nnunet_softseg.labels.raters", "fuse"),
    "convert": ("nnunet_softseg.datasets.conversion", "convert"),
    "check": ("nnunet_softseg.datasets.check", "check"),
    "prepare": ("nnunet_softseg.preprocessing.preparation", "prepare"),
    "predict": ("nnunet_softseg.inference.predict", "predict"),
    "export": ("nnunet_softseg.inference.model_export", "export"),
    "calibrate": ("nnunet_softseg.inference.calibrate", "calibrate"),
    "pseudo-label": ("nnunet_softseg.inference.pseudo_label", "pseudo_label"),
    "csa": ("nnunet_softseg.metrics.morphometry", "csa"),
    "bridges": ("nnunet_softseg.metrics.morphometry.bridges", "bridges"),
    "evaluate": ("nnunet_softseg.evaluation.evaluate", "evaluate"),
    "compare": ("nnunet_softseg.evaluation.compare", "compare"),
    "drift": ("nnunet_softseg.evaluation.drift", "drift"),
}
REQUIRED = {
    "demo": "-o out",
    "phantom": "-o out",
    "synthesise": "-i maps -o out",
    "make-gt": "-i in -o out",
    "fuse": "-i a b -o out",
    "convert": "-i in -d 101 --name Cord",
    "check": "-d 101",
    "prepare": "-d 101 -c 3d_fullres",
    "predict": "-i in -o out",
    "export": "-m model -o cord.softseg",
    "calibrate": "-m model",
    "pseudo-label": "-i in --models a b --splits file -d 201 --name Student",
    "csa": "-i a b -o out",
    "bridges": "-i a --cord b -o out",
    "evaluate": "-i in -g reference -o out",
    "compare": "-g reference -o out --method a=b --method c=d",
    "drift": "--old a --new b -o out",
}


@pytest.mark.parametrize("command", FUNCTIONS)
def test_the_options_are_the_arguments_of_the_function(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names fit, and a call without options has the function's own defaults."""
    module, name = FUNCTIONS[command]
    signature = inspect.signature(getattr(importlib.import_module(module), name))
    calls = []

    def remember(*args: object, **kwargs: object) -> None:
        calls.append(signature.bind(*args, **kwargs).arguments)
        raise UserError("enough")

    monkeypatch.setattr(f"{module}.{name}", remember)
    assert cli.main([command, *REQUIRED[command].split()]) == 2
    (given,) = calls
    # A command tells how far it is, and works on two cases at once; make-gt and fuse take settings.
    differ = {"num_processes", "progress", "settings", "output", "patterns"}
    # evaluate and compare hand their options on to settings.
    from nnunet_softseg.evaluation.measuring import EvaluationSettings

    parameters = {field.name: field for field in dataclasses.fields(EvaluationSettings)}
    parameters |= inspect.signature(EvaluationSettings.from_arguments).parameters
    parameters |= signature.parameters
    for argument, value in {**given, **given.pop("options", {})}.items():
        default = parameters[argument].default
        if argument not in differ and default is not inspect.Parameter.empty:
            assert value == default, argument


def test_a_default_holds_unless_the_option_is_given() -> None:
    words = ["phantom", "-o", "out", "--fov-mm", "1", "2", "3", "--contrasts", "T1w", "T2w", "--no-cord"]
    given = cli.read_command(words)
    assert given == cli.COMMANDS["phantom"](
        output="out", fov_mm=(1.0, 2.0, 3.0), contrasts=("T1w", "T2w"), cord=False
    )
    assert cli.read_command(words[:3]) == cli.COMMANDS["phantom"](output="out")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", None),
        ("--per-contrast", ()),
        ("--per-contrast T1w=111 T2w=112", (("T1w", 111), ("T2w", 112))),
    ],
)
def test_an_option_with_any_number_of_values(words: str, expected: object) -> None:
    command = cli.read_command(["convert", *REQUIRED["convert"].split(), *words.split()])
    assert command.per_contrast == expected


def test_an_option_that_is_repeated() -> None:
    command = cli.read_command(["compare", *REQUIRED["compare"].split(), "--pattern", "a={case}=x"])
    assert command.methods == (("a", "b"), ("c", "d"))
    assert command.patterns == (("a", "{case}=x"),)


def test_options_after_a_stock_command_are_its_own() -> None:
    command = cli.read_command(
        ["run", "nnUNetv2_train", "101", "3d_fullres", "0", "-tr", "nnUNetTrainerSoftSeg", "-h", "-np", "2"]
    )
    assert command == cli.COMMANDS["run"](
        stock_command="nnUNetv2_train",
        arguments=("101", "3d_fullres", "0", "-tr", "nnUNetTrainerSoftSeg", "-h", "-np", "2"),
    )


def test_user_error_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "nnUNetv2_trian", "101"]) == 2

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(
        "nnunet-softseg: error: unknown nnU-Net command nnUNetv2_trian: expected one of "
    )
    assert "nnUNetv2_train\n" in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="no process groups as of a terminal on Windows")
def test_ctrl_c_is_one_line_and_code_130_and_the_same_command_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nnunet_softseg", "phantom", "-o", str(tmp_path / "bids"), "-n", "2"]
    command += ["--contrasts", "T2w", "--fov-mm", "32", "40", "30", "-np", "1"]
    env = clean_environment({"PYTHONPATH": str(REPOSITORY)})
    process = subprocess.Popen(
        command, env=env, start_new_session=True, preexec_fn=heed_ctrl_c, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "bids" / "sub-01").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate(timeout=20)
    assert process.returncode == 130
    assert printed.splitlines()[-1] == "nnunet-softseg: interrupted; the same command goes on"
    assert "Traceback" not in printed
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "bids" / "sub-01").rglob("*.nii.gz")}
    assert cli.main(command[3:]) == 0
    assert len(list((tmp_path / "bids").glob("sub-*"))) == 2
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_check_and_make_gt_end_with_the_next_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nnunet_softseg.datasets.check import CheckReport

    report = CheckReport("Dataset101_Cord", 3, (), ())
    monkeypatch.setattr("nnunet_softseg.datasets.check.check", lambda *_, **__: report)
    assert cli.main(["check", "-d", "101"]) == 0
    assert capsys.readouterr().out.endswith("next: nnUNetv2_plan_and_preprocess -d 101 -c 3d_fullres\n")

    made = SimpleNamespace(as_text=lambda: "made", failures=(), outcomes=("sub-01",))
    monkeypatch.setattr("nnunet_softseg.labels.contrasts.make_gt.make_gt", lambda *_, **__: made)
    assert cli.main(["make-gt", "-i", "my data", "-o", "out"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("next, once you have looked at it: nnunet-softseg convert -i 'my data' ")
    convert = cli.read_command(shlex.split(line.partition("nnunet-softseg ")[2]))
    assert (convert.bids, convert.derivatives) == ("my data", "out")


@pytest.mark.parametrize(
    ("call", "line"),
    [
        ("predict -i in -o out -m model", "interrupted; the same command goes on"),
        ("predict -i in -o out -m model --overwrite", "interrupted"),
        ("csa -i a -o b", "interrupted"),
    ],
)
def test_what_goes_on_after_ctrl_c(
    call: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.COMMANDS[call.split()[0]], "run", interrupted)
    assert cli.main(call.split()) == 130
    assert capsys.readouterr().err == f"nnunet-softseg: {line}\n"


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug is no mistake of the user: whoever mends it needs to see where it is."""

    def fail(_: object) -> int:
        raise KeyError("a bug")

    monkeypatch.setattr("nnunet_softseg.cli.set_up.Run.run", fail)
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
