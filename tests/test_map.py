"""The maps of the modules, in the package docstring and in docs/how-it-works.md, against the files."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "nnunet_softseg"
ENTRY = re.compile(r"^  ((?:\w+/)*\w+\.py)  +\S", re.MULTILINE)


def docstring() -> str:
    return (
        ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")), clean=False) or ""
    )


def how_it_works() -> str:
    return (REPOSITORY / "docs" / "how-it-works.md").read_text(encoding="utf-8")


def modules() -> set[str]:
    files = {file.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob("*.py")}
    return {file for file in files if Path(file).name != "__init__.py"}


def imports_at_loading(module: str) -> set[str]:
    """The modules of ours that a module imports at its top level, as the map writes them."""
    names: set[str] = set()
    for node in ast.parse((PACKAGE / module).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE.name:
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    paths = {name.removeprefix(f"{PACKAGE.name}.").replace(".", "/") + ".py" for name in names}
    return paths & modules()


@pytest.mark.parametrize("text", [docstring, how_it_works])
def test_the_map_names_every_module_once_and_nothing_else(text: object) -> None:
    listed = ENTRY.findall(text())  # type: ignore[operator]
    assert sorted(listed) == sorted(modules())


def test_both_maps_tell_the_same_order() -> None:
    assert ENTRY.findall(docstring()) == ENTRY.findall(how_it_works())


def test_imports_go_with_the_flow_and_never_back() -> None:
    order = ENTRY.findall(docstring())
    back = [
        f"{module} imports {imported}"
        for place, module in enumerate(order)
        for imported in imports_at_loading(module)
        if imported not in order[:place]
    ]
    assert back == []


def test_the_package_itself_imports_nothing() -> None:
    body = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(body) if isinstance(node, ast.Import | ast.ImportFrom)]
