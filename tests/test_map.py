"""The map against the files: rooms in the docstring of the package, modules in the docstring of each room."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "nnunet_softseg"
ENTRY = re.compile(r"^  ((?:\w+/)*\w+(?:\.py|/)) +\S", re.MULTILINE)
MOST_ROOT_MODULES = 8


def entries(init: Path) -> list[str]:
    """What the docstring of a package lists, in its order."""
    tree = ast.parse(init.read_text(encoding="utf-8"))
    return ENTRY.findall(ast.get_docstring(tree, clean=False) or "")


def rooms() -> list[str]:
    return [entry for entry in entries(PACKAGE / "__init__.py") if entry.endswith("/")]


def modules_of(folder: Path) -> set[str]:
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*.py")}
    return {file for file in files if Path(file).name != "__init__.py"}


def order() -> list[str]:
    """All modules, as the maps order them; the `__init__.py` of a package comes after its last module.

    That of the whole package, the front door, is the last: it names functions of many rooms, and no room
    imports from it.
    """
    found: list[str] = []
    for entry in entries(PACKAGE / "__init__.py"):
        if not entry.endswith("/"):
            found.append(entry)
            continue
        found += [f"{entry}{module}" for module in entries(PACKAGE / entry / "__init__.py")]
        found.append(f"{entry}__init__.py")
    for init in sorted(PACKAGE.glob("*/*/__init__.py")):
        package = init.parent.relative_to(PACKAGE).as_posix() + "/"
        last = max(place for place, module in enumerate(found) if module.startswith(package))
        found.insert(last + 1, f"{package}__init__.py")
    return [*found, "__init__.py"]


def imports(module: str) -> set[str]:
    """The files of ours that a module imports anywhere in it, inside functions, too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: imports are absolute"
            parent = node.module or ""
            names = {alias.name for alias in node.names} - (
                {"__version__"} if parent == PACKAGE.name else set()
            )
            found |= {file_of(f"{parent}.{name}") or file_of(parent) for name in names}
        elif isinstance(node, ast.Import):
            found |= {file_of(alias.name) for alias in node.names}
    return found - {"", module}


def file_of(name: str) -> str:
    """The file of a module or package of ours, by its dotted name; empty for anything else."""
    first, _, rest = name.partition(".")
    if first != PACKAGE.name:
        return ""
    path = rest.replace(".", "/")
    files = (f"{path}.py", f"{path}/__init__.py".lstrip("/"))
    return next((file for file in files if (PACKAGE / file).is_file()), "")


def test_the_package_names_every_room_and_root_module_once() -> None:
    there = {f"{folder.parent.name}/" for folder in PACKAGE.glob("*/__init__.py")}
    there |= {file.name for file in PACKAGE.glob("*.py") if file.name != "__init__.py"}
    assert sorted(entries(PACKAGE / "__init__.py")) == sorted(there)


@pytest.mark.parametrize("room", rooms())
def test_a_room_names_each_of_its_modules_once_and_nothing_else(room: str) -> None:
    assert sorted(entries(PACKAGE / room / "__init__.py")) == sorted(modules_of(PACKAGE / room))


def test_the_root_stays_small() -> None:
    assert (
        len([entry for entry in entries(PACKAGE / "__init__.py") if entry.endswith(".py")])
        <= MOST_ROOT_MODULES
    )


def test_imports_go_one_way_those_inside_functions_too() -> None:
    ordered = order()
    back = [
        f"{module} imports {imported}"
        for place, module in enumerate(ordered)
        for imported in sorted(imports(module))
        if imported not in ordered[:place]
    ]
    assert back == []


def function_lengths() -> list[tuple[int, str]]:
    """Lines of every function without its docstring, and its name."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                text = node.body[0] if ast.get_docstring(node) is not None else None
                docstring = 0 if text is None else (text.end_lineno or 0) - text.lineno + 1
                length = (node.end_lineno or 0) - node.lineno + 1 - docstring
                found.append((length, f"{file.relative_to(PACKAGE).as_posix()}: {node.name}"))
    return sorted(found)


def test_functions_stay_short() -> None:
    lengths = function_lengths()
    assert lengths[int(0.9 * len(lengths))][0] <= 20, "nine in ten functions have at most 20 lines"
    assert [function for function in lengths if function[0] > 60] == []
