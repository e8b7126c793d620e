"""Every name of the registry, through nnU-Net's own look-up functions, here and in a spawned worker."""

import ast
import importlib
import multiprocessing
import pickle
import re
import sys
from pathlib import Path

import _nnunet_softseg_hook as hook
import nnunetv2
import pytest
from conftest import REPOSITORY
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_softseg import registry
from nnunet_softseg.errors import UserError

PACKAGE_TO_MODULE = {
    "pillow": "pil",
    "PyYAML": "yaml",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
}
TRAINERS = [name for name in registry.CLASSES if name.startswith("nnUNetTrainer")]


def find_as_nnunet_does(name: str) -> object:
    """Ask as training, planning and prediction ask."""
    if name in TRAINERS:
        return recursive_find_trainer_class_by_name(name)
    if name.endswith("Planner"):
        return PlansManager({"experiment_planner_used": name}).experiment_planner_class
    if name.endswith("LabelManager"):
        return PlansManager({"label_manager": name}).label_manager_class
    if name.endswith("Preprocessor"):
        return ConfigurationManager({"architecture": {}, "preprocessor_name": name}).preprocessor_class
    return recursive_find_resampling_fn_by_name(name)


@pytest.fixture(scope="module")
def worker():
    """A spawned process, as nnU-Net's preprocessing and export workers are."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


@pytest.mark.parametrize("name", registry.CLASSES)
def test_nnunet_finds_the_name_here(name: str) -> None:
    found = find_as_nnunet_does(name)

    assert found.__name__ == name
    assert found is getattr(importlib.import_module(registry.CLASSES[name]), name)


@pytest.mark.parametrize("name", registry.CLASSES)
def test_nnunet_finds_the_same_in_a_spawned_worker(name: str, worker) -> None:
    # What comes back was pickled by reference: it is the same object only if the worker found the same one.
    assert worker.apply(find_as_nnunet_does, (name,)) is find_as_nnunet_does(name)


@pytest.mark.parametrize("name", registry.CLASSES)
def test_it_is_of_the_kind_that_nnunet_expects(name: str) -> None:
    bases = {
        "Trainer": nnUNetTrainer,
        "Planner": ExperimentPlanner,
        "Preprocessor": DefaultPreprocessor,
        "LabelManager": LabelManager,
    }
    found = registry.find(name)
    expected = [base for kind, base in bases.items() if kind in name]

    if expected:
        assert issubclass(found, expected[0])
    else:
        assert callable(found)
        assert not isinstance(found, type)


@pytest.mark.parametrize("name", registry.CLASSES)
def test_it_can_be_pickled(name: str) -> None:
    assert pickle.loads(pickle.dumps(registry.find(name))) is registry.find(name)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown name nnUNetTrainerSoftSagg.*nnUNetTrainerSoftSeg,"):
        registry.find("nnUNetTrainerSoftSagg")


def test_a_name_that_its_module_lacks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.CLASSES, "SoftSegNothing", "nnunet_softseg.errors")

    with pytest.raises(ImportError, match=r"nnunet_softseg\.errors has no SoftSegNothing"):
        registry.find("SoftSegNothing")


@pytest.mark.parametrize("name", registry.CLASSES)
def test_every_name_carries_a_mark_of_the_hook(name: str) -> None:
    assert any(mark in name for mark in hook.MARKS)


def test_no_name_of_nnunet_carries_a_mark_of_the_hook() -> None:
    names = {
        node.name
        for path in Path(nnunetv2.__path__[0]).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    assert len(names) > 500  # the folder was really read

    assert not {name for name in names if any(mark in name for mark in hook.MARKS)}


@pytest.mark.parametrize("name", TRAINERS)
def test_external_trainer_folder_gives_the_installed_class(name: str) -> None:
    folder = str(REPOSITORY / "trainers")

    # As nnU-Net asks for `nnUNet_extTrainer`: without a package to scan, so the hook stays out of it.
    found = recursive_find_python_class(
        folder, name, None, base_folder=folder, cleanup_imports_from_base_folder=True
    )

    assert found is registry.find(name)


def test_external_trainer_folder_holds_every_trainer_and_nothing_else() -> None:
    assert sorted(path.stem for path in (REPOSITORY / "trainers").glob("*.py")) == sorted(TRAINERS)


def test_every_package_imported_is_declared() -> None:
    """A package that nnU-Net happens to bring today may go tomorrow."""
    pyproject = (REPOSITORY / "pyproject.toml").read_text()
    required = pyproject.split("dependencies = [")[1].split("]")[0]
    on_request = pyproject.split("\ncpu = [")[1].split("]")[0]  # test_backends.py runs without it, too
    declared = {
        PACKAGE_TO_MODULE.get(name, name.lower())
        for name in re.findall(r'"([A-Za-z0-9_-]+)', required + on_request)
    }
    imported = {
        name.split(".")[0].lower()
        for path in (REPOSITORY / "nnunet_softseg").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in _imported_by(node)
    }
    # torch comes with nnunetv2, in the user's own build; _typeshed exists for mypy alone
    ours_and_torch = {"nnunet_softseg", "torch", "_typeshed"}

    standard = {name.lower() for name in sys.stdlib_module_names}
    assert imported - standard - ours_and_torch <= declared


def _imported_by(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [node.module or ""]
    return []
