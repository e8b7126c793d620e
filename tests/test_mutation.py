"""The mutation check on a repository of one function: which faults it seeds, and which tests catch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
AREA = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import numpy as np

def area_mm2(count: int, voxel_mm2: float = 2) -> float:
    "Area of 1 or more voxels."
    if count < 0:
        raise ValueError(f"expected 0 or more voxels, found {count - 1}")
    print("counted", 1 + 1)
    return count * voxel_mm2
"""
TESTS = """
from nnunet_softseg.metrics.area import area_mm2

def test_area():
    assert area_mm2(3, 2) == 6
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    room = root / "nnunet_softseg" / "metrics"
    (root / "tests" / "metrics").mkdir(parents=True)
    room.mkdir(parents=True)
    (room.parent / "__init__.py").touch()
    (room / "area.py").write_text(AREA)
    (root / "tests" / "metrics" / "test_area.py").write_text(TESTS)
    (root / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["soak", "e2e"]\n')
    return root


def in_benchmarks(code: str) -> str:
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); {code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(repository: Path, output: Path) -> dict[str, bool]:
    """Each fault of the one function, by its change: did a test catch it?"""
    words = ["-o", str(output), "-n", "99", "--rooms", "metrics", "--repository", str(repository)]
    in_benchmarks(
        f"import mutation; mutation.IMPORTED_BEFORE = mutation.IMPORTED_BEFORE[:3]; mutation.main({words})"
    )
    verdicts = json.loads((output / "verdicts.json").read_text())
    return {verdict["fault"].partition(": ")[2]: bool(verdict["test"]) for verdict in verdicts.values()}


def test_every_fault_is_seeded_once_words_and_types_are_left_alone_and_tests_tell_them(
    repository: Path, tmp_path: Path
) -> None:
    found = check(repository, tmp_path / "output")
    assert found == {
        "constant: 2 -> 3": False,  # the test gives both arguments
        "condition negated: count < 0 -> not count < 0": True,
        "comparison: count < 0 -> count <= 0": False,  # no test of an empty mask
        "constant: 0 -> 1": False,
        "statement deleted: raise ValueError(f'expected 0 or more voxels, found {count - 1}') -> pass": False,
        "result is None: count * voxel_mm2 -> None": True,
        "arithmetic: count * voxel_mm2 -> count / voxel_mm2": True,
    }
    table = (tmp_path / "output" / "table.md").read_text()
    assert "| metrics | 7 | 3 | 43% |" in table
    assert "- `nnunet_softseg/metrics/area.py:8: comparison: count < 0 -> count <= 0`" in table

    stronger = TESTS.replace("== 6", "== 6\n    assert area_mm2(1) == 2\n    assert area_mm2(0) == 0")
    (repository / "tests" / "metrics" / "test_area.py").write_text(stronger)
    again = check(repository, tmp_path / "output")
    assert {fault for fault in again if again[fault] != found[fault]} == {
        "constant: 2 -> 3",
        "comparison: count < 0 -> count <= 0",
        "constant: 0 -> 1",
    }
    assert (repository / "nnunet_softseg" / "metrics" / "area.py").read_text() == AREA


def test_a_text_without_a_fault_is_caught_by_no_test(repository: Path, tmp_path: Path) -> None:
    code = (
        "import mutation; from pathlib import Path;"
        f"copy = mutation.Copy(Path({str(repository)!r}), Path({str(tmp_path)!r}));"
        "passages = mutation.Passages(copy);"
        "fault = mutation.Fault('nnunet_softseg/metrics/area.py', 11, 11, 0, 0, 'none', '', '');"
        "print([mutation.Verdicts(copy, passages, 9).find(fault)])"
    )
    assert in_benchmarks(code).splitlines()[-1] == "['']"
