"""What the documentation promises and a machine can check: links, commands, defaults."""

import ast
import dataclasses
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnunet_softseg.cli import read_command
from nnunet_softseg.cli.bids_app import read_bids_app
from nnunet_softseg.metrics.measure_table import MEASURES
from nnunet_softseg.registry import CLASSES
from nnunet_softseg.settings import SoftSegSettings

REPOSITORY = Path(__file__).parents[1]
ROOT_PAGES = [REPOSITORY / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")]
PAGES = [*ROOT_PAGES, *sorted((REPOSITORY / "docs").glob("*.md"))]
NAMED_TEST = re.compile(r"`([\w/]+\.py(?:::[^`]*)?)`")
LINK = re.compile(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
COMMAND = re.compile(r"^nnunet-softseg (.+)$", re.MULTILINE)
BIDS_APP = re.compile(r"^nnunet-softseg-bids (.+)$", re.MULTILINE)
OUR_NAME = re.compile(r"(?:-tr |-pl |`)((?:nnUNetTrainer|SoftSeg)\w*(?:Demo|SoftSeg\w*|Planner))\b")


def anchors(page: Path) -> set[str]:
    titles = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_with_these_flags(page: Path) -> None:
    for command in COMMAND.findall(page.read_text(encoding="utf-8")):
        read_command(shlex.split(command, comments=True))
    for call in BIDS_APP.findall(page.read_text(encoding="utf-8")):
        read_bids_app(shlex.split(call, comments=True))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_trainers_and_planners_exist_by_these_names(page: Path) -> None:
    examples = {"nnUNetTrainerSoftSegHardGT", "nnUNetTrainerSoftSegLong"}  # of docs/development.md
    named = set(OUR_NAME.findall(page.read_text(encoding="utf-8"))) - examples
    assert named - {"SoftSegSettings"} <= set(CLASSES)


def test_the_table_of_settings_holds_every_field_with_its_default() -> None:
    text = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    table = text.partition("## Settings")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", table, re.MULTILINE))
    assert rows == {field.name: str(field.default) for field in dataclasses.fields(SoftSegSettings)}


def test_the_table_of_measures_is_the_declared_one() -> None:
    def shown(value: float | None) -> str:
        if value is None:
            return "computed"
        return "none" if math.isnan(value) else "∞" if math.isinf(value) else f"{value:g}"

    text = (REPOSITORY / "docs" / "measures.md").read_text(encoding="utf-8").replace("\\|", "¦")
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines() if "|" in row]
    table = {row[0].strip("`"): row[1:] for row in rows if row[0].strip("`") in MEASURES}
    expected = {
        name: [
            measure.meaning.replace("|", "¦"),
            measure.unit,
            "" if measure.ideal is None else f"{measure.ideal:g}",
            *(
                shown(value)
                for value in (measure.empty.both, measure.empty.prediction, measure.empty.reference)
            ),
        ]
        for name, measure in MEASURES.items()
    }
    assert table == expected


def rows_of_nnunets_surface() -> list[list[str]]:
    lines = (REPOSITORY / "docs" / "nnunet_surface.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if "|" in line]
    return [row for row in rows if row[-1] not in ("", "test") and not row[-1].startswith("---")]


def test_every_row_of_nnunets_surface_has_an_answer_and_names_tests() -> None:
    rows = rows_of_nnunets_surface()
    assert len(rows) > 75
    for row in rows:
        answer = row[-2]
        assert re.search("works|refused: |the same bits|nnU-Net's own error|see \\[", answer), row
        assert NAMED_TEST.sub("", row[-1]).strip(", ") == "", row
        for name in NAMED_TEST.findall(row[-1]):
            file, _, test = name.partition("::")
            source = (REPOSITORY / "tests" / file).read_text(encoding="utf-8")
            assert f"def {test.partition('[')[0]}(" in source, name


@pytest.mark.soak
def test_pytest_finds_each_test_that_nnunets_surface_names() -> None:
    names = {name for row in rows_of_nnunets_surface() for name in NAMED_TEST.findall(row[-1])}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:xdist", "-m", ""]
    files = sorted({f"tests/{name.partition('::')[0]}" for name in names})
    done = subprocess.run([*command, *files], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    found = {line.removeprefix("tests/") for line in done.stdout.splitlines() if "::" in line}
    found |= {line.partition("[")[0] for line in found}
    assert names <= found, names - found


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site needs `pip install nnunet-softseg[docs]`")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    pages = [*tmp_path.glob("*.html")]
    assert {page.stem for page in pages} >= {page.stem for page in (REPOSITORY / "docs").glob("*.md")}
    for page in pages:
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?([^\"' >]+)", html)
        assert loaded
        assert [address for address in loaded if re.match(r"(https?:)?//", address)] == []


# The page of findings


def assigned(scope: ast.AST, name: str) -> Iterator[ast.expr]:
    for node in ast.walk(scope):
        for target in node.targets if isinstance(node, ast.Assign) else ():
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            yield from (value for each, value in pairs if isinstance(each, ast.Name) and each.id == name)


def words_of(node: ast.expr, scopes: tuple[ast.AST, ...]) -> Iterator[str]:
    """The texts that an expression is made of; a name is looked up in the function, then in the module."""
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.JoinedStr):
        yield from (text for value in node.values for text in words_of(value, scopes))
    elif isinstance(node, ast.IfExp):
        yield from (text for value in (node.body, node.orelse) for text in words_of(value, scopes))
    elif isinstance(node, ast.Name):
        values = next(filter(None, (list(assigned(scope, node.id)) for scope in scopes)), [])
        yield from (text for value in values for text in words_of(value, scopes))


def findings_in_code() -> set[str]:
    """Of all that findings say is wrong, each piece of two words or more."""
    found = set()
    for file in (REPOSITORY / "nnunet_softseg").rglob("*.py"):
        source = file.read_text(encoding="utf-8")
        module = ast.parse(source if "Finding(" in source else "")
        for function in (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)):
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "Finding":
                    found |= {text.strip(" :,(") for text in words_of(call.args[1], (function, module))}
    return {text for text in found if " " in text}


def test_every_finding_is_on_the_pages_of_findings() -> None:
    pages = [REPOSITORY / "docs" / name for name in ("checks.md", "data.md")]
    told = " ".join(" ".join(page.read_text(encoding="utf-8").split()).lower() for page in pages)
    findings = findings_in_code()
    assert len(findings) > 60
    assert {"has two voxel sizes", "corrupt or truncated gzip", "label maps of no case"} <= findings
    assert not {text for text in findings if text.lower() not in told}
