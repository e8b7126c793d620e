"""What the documentation promises and a machine can check: links, commands, defaults."""

import dataclasses
import math
import re
import shlex
import subprocess
import sys
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
SURFACE = ("What of nnU-Net works", "Kinds of labels")
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


def test_every_row_of_nnunets_surface_names_a_test_that_exists() -> None:
    text = (REPOSITORY / "docs" / "nnunet_surface.md").read_text(encoding="utf-8")
    tables = [section for section in text.split("\n## ") if section.startswith(SURFACE)]
    assert len(tables) == len(SURFACE)
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for table in tables
        for line in table.splitlines()
        if line.startswith("| ") and not line.startswith(("| **", "| of nnU-Net", "| labels |"))
    ]
    assert len(rows) > 50
    for what, answer, test in rows:
        assert re.search("works|refused: |the same bits|nnU-Net's own error|see \\[", answer), what
        file, _, name = test.strip("`").partition("::")
        source = (REPOSITORY / "tests" / file).read_text(encoding="utf-8")
        assert f"def {name}(" in source, f"{what}: {test}"


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
