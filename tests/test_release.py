"""What a release consists of: the same files from the same sources, versions that agree, pinned workflows."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY

from nnunet_softseg import __version__

WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
NOT_SOURCES = (
    ".git",
    ".venv",
    "site",
    "dist",
    "demo_output",
    "__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".hypothesis",
)


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def build(source: Path, target: Path) -> Path:
    pytest.importorskip("hatchling", reason="builds without the network need hatchling")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(target)],
        cwd=source,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
        check=True,
        capture_output=True,
    )
    return target


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(REPOSITORY, tmp_path_factory.mktemp("built"))


def test_wheel_and_sdist_are_the_same_bytes_wherever_and_whenever_they_are_built(
    built: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "another place"
    shutil.copytree(
        REPOSITORY, elsewhere, ignore=shutil.ignore_patterns(*NOT_SOURCES), copy_function=shutil.copyfile
    )
    again = build(elsewhere, tmp_path / "again")
    names = sorted(file.name for file in built.iterdir())
    assert names == [f"nnunet_softseg-{__version__}-py3-none-any.whl", f"nnunet_softseg-{__version__}.tar.gz"]
    for name in names:
        assert (again / name).read_bytes() == (built / name).read_bytes(), name


def test_the_wheel_holds_all_that_the_commands_need_and_no_tests(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        (scripts,) = [wheel.read(name).decode() for name in names if name.endswith("entry_points.txt")]
    package = REPOSITORY / "nnunet_softseg"
    sources = {file.relative_to(REPOSITORY).as_posix() for file in package.rglob("*") if file.is_file()}
    assert {name for name in sources if "__pycache__" not in name} <= names
    assert {f"nnunet_softseg/workflow/{name}" for name in ("Snakefile", "train.smk")} <= names
    assert "nnunet-softseg = " in scripts
    assert "nnunet-softseg-bids = " in scripts
    assert not [name for name in names if name.startswith("tests")]


def test_twine_takes_both_files(built: Path) -> None:
    pytest.importorskip("twine", reason="twine is not installed")
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


# Files beside the package


def test_all_say_the_same_version() -> None:
    citation = load(REPOSITORY / "CITATION.cff")
    boutiques = json.loads((REPOSITORY / "boutiques.json").read_text(encoding="utf-8"))
    assert citation["version"] == boutiques["tool-version"] == __version__


def test_the_citation_names_the_project_and_what_the_readme_cites() -> None:
    citation = load(REPOSITORY / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
    assert [set(author) for author in citation["authors"]] == [{"name"}]  # an entity, no person
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for reference in citation["references"]:
        assert reference.get("doi", reference.get("url", "")) in readme
        assert reference["title"].split(":")[0].lower() in " ".join(readme.split()).lower()


@pytest.mark.parametrize(
    "form", sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_forms_for_issues_have_what_github_asks_for(form: Path) -> None:
    content = load(form)
    assert {"name", "description", "body"} <= set(content)
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    assert fields
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)


CONDA_NAMES = {"acvl_utils": "acvl-utils", "blosc2": "python-blosc2", "matplotlib": "matplotlib-base"}
"""Where conda-forge has another name than PyPI, in small letters."""


def test_the_conda_recipe_has_the_dependencies_commands_and_version_of_the_project() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    recipe = load(REPOSITORY / "recipe" / "recipe.yaml")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert recipe["context"]["version"] == __version__
    named = [re.fullmatch(r"([\w-]+)(.*)", each) for each in project["dependencies"]]
    expected = {(CONDA_NAMES.get(name[1], name[1].lower()), name[2]) for name in named if name}
    python, *run = recipe["requirements"]["run"]
    assert {tuple(f"{each} ".split(" ", 1)) for each in run} == {
        (n, f"{v} " if v else "") for n, v in expected
    }
    assert python == f"python {project['requires-python']}"
    assert python in recipe["requirements"]["host"]
    scripts = [f"{name} = {place}" for name, place in project["scripts"].items()]
    assert recipe["build"]["python"]["entry_points"] == scripts
    assert recipe["about"]["license"] == project["license"]


# Workflows


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_the_hash_of_a_commit_and_rights_are_few(file: Path) -> None:
    text, content = file.read_text(encoding="utf-8"), load(file)
    used = re.findall(r"uses: (.*)$", text, re.MULTILINE)
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", action), action
    assert content["permissions"] in ({}, {"contents": "read"})
    assert "pull_request_target" not in text
    assert "secrets." not in text
    for name, job in content["jobs"].items():
        assert job["timeout-minutes"] <= 120, name


def test_one_action_has_one_hash_everywhere() -> None:
    pins: dict[str, set[str]] = {}
    for file in WORKFLOWS:
        for name, commit in re.findall(r"uses: (\S+)@(\S+)", file.read_text(encoding="utf-8")):
            pins.setdefault(name, set()).add(commit)
    assert {name: len(commits) for name, commits in pins.items()} == dict.fromkeys(pins, 1)


def test_a_release_is_published_only_after_it_was_built_and_by_trust_alone() -> None:
    jobs = load(REPOSITORY / ".github" / "workflows" / "release.yml")["jobs"]
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "with" not in jobs["publish"]["steps"][-1]  # no user, no password
    steps = " ".join(str(step) for step in jobs["build"]["steps"])
    for part in (".ci/run", "diff -r dist again", "twine check", "attest-build-provenance", "attest-sbom"):
        assert part in steps


def test_every_python_and_system_that_is_supported_is_tested() -> None:
    matrix = load(REPOSITORY / ".github" / "workflows" / "ci.yml")["jobs"]["systems"]["strategy"]["matrix"]
    supported = re.search(r'requires-python = ">=(3\.\d+)"', (REPOSITORY / "pyproject.toml").read_text())
    assert supported
    assert matrix["python"][0] == supported[1]
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}
