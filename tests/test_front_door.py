"""The front door, `import nnunet_softseg`: its names, what it loads, and the old paths of two of them."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from conftest import REPOSITORY

import nnunet_softseg

PACKAGE = REPOSITORY / "nnunet_softseg"
SOURCE = {"PYTHONPATH": str(REPOSITORY)}
NAMES = {
    "make_gt", "fuse", "convert", "check", "prepare", "predict", "export", "calibrate", "csa", "bridges",
    "evaluate", "pseudo_label", "compare", "drift",
    "AdaptiveWingLoss", "norm_relu",
}  # fmt: skip


def test_the_names() -> None:
    assert set(nnunet_softseg.__all__) == NAMES
    assert set(dir(nnunet_softseg)) > NAMES | {"__version__"}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_name_is_a_documented_function_or_class_of_ours(name: str) -> None:
    value = getattr(nnunet_softseg, name)
    assert inspect.isfunction(value) or inspect.isclass(value)
    assert value.__name__ == name
    assert value.__module__.startswith("nnunet_softseg.")
    assert "Args:" in (inspect.getdoc(value) or "")
    assert getattr(nnunet_softseg, name) is value


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'nnunet_softseg' has no attribute 'predicts'"):
        nnunet_softseg.predicts  # noqa: B018


def test_type_checkers_see_the_names_that_are_loaded() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    imported = {
        alias.asname: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {name: (home, name) for name, home in nnunet_softseg._HOMES.items()}


def test_no_room_hides_a_name() -> None:
    at_root = {path.stem for path in PACKAGE.iterdir()}
    assert at_root & NAMES == {"norm_relu"}  # which is the function itself, see there


def test_importing_the_package_loads_no_other_module(in_new_python) -> None:
    code = """
import sys
before = set(sys.modules)
import nnunet_softseg
print(sorted(set(sys.modules) - before))
"""
    assert in_new_python(code, env=SOURCE) == "['nnunet_softseg']"


def test_a_command_is_loaded_without_torch(in_new_python) -> None:
    code = "import sys, nnunet_softseg; nnunet_softseg.csa; print('torch' in sys.modules)"
    assert in_new_python(code, env=SOURCE) == "False"


def test_the_example_of_the_page_prints_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (REPOSITORY / "docs" / "python-api.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/python-api.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed == re.findall(r"`([^`]+)`", re.search(r"^It prints (.*);", page, re.MULTILINE)[1])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["csa.csv", "csa.json", "disc.nii.gz"]


def test_the_page_documents_every_name() -> None:
    page = (REPOSITORY / "docs" / "python-api.md").read_text(encoding="utf-8")
    documented = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)}
    assert documented >= NAMES


CALLS = {
    "attribute": "nnunet_softseg.norm_relu(raw, floor)",
    "old path": "from nnunet_softseg.norm_relu import norm_relu; norm_relu(raw, floor)",
    "old path, attribute": "import nnunet_softseg.norm_relu; nnunet_softseg.norm_relu.norm_relu(raw, floor)",
    "name of the front door": "from nnunet_softseg import norm_relu; norm_relu(raw, floor)",
    "loss": "nnunet_softseg.AdaptiveWingLoss()",
    "loss, old path": "import nnunet_softseg.adaptive_wing; nnunet_softseg.adaptive_wing.AdaptiveWingLoss()",
}


@pytest.mark.parametrize(
    "order", [list(CALLS), list(CALLS)[::-1]], ids=["front door first", "old paths first"]
)
def test_the_old_paths_of_two_names_work_beside_the_new_ones(order: list[str], in_new_python) -> None:
    lines = [
        "import torch, nnunet_softseg",
        "raw, floor = torch.tensor([[[-1.0, 1.0, 2.0]]]), torch.tensor(4.0)",
        *(CALLS[name] for name in order),
        "from nnunet_softseg.network.norm_relu import norm_relu as home",
        "from nnunet_softseg.network.adaptive_wing import AdaptiveWingLoss as loss",
        "import nnunet_softseg.norm_relu, nnunet_softseg.adaptive_wing, pickle",
        "print(nnunet_softseg.norm_relu is home, nnunet_softseg.norm_relu.norm_relu is home)",
        "print(pickle.loads(pickle.dumps(nnunet_softseg.norm_relu)) is home)",
        "print(nnunet_softseg.adaptive_wing.AdaptiveWingLoss is loss is nnunet_softseg.AdaptiveWingLoss)",
        "print(nnunet_softseg.norm_relu(raw, floor).tolist())",
    ]
    assert in_new_python("\n".join(lines), env=SOURCE).splitlines() == [
        "True True",
        "True",
        "True",
        "[[[0.0, 0.25, 0.5]]]",
    ]
