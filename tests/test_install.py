"""Installed for real into throw-away environments: found by nnU-Net, cleanly removed, harmless when broken.

The environments see the packages of the running one through links, all but ours (and nnU-Net where it is
installed anew), so that nothing is downloaded. Each look-up loads torch anew: there are as few as will do.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY, clean_environment

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="links to the packages need a right on Windows"
)

HOOK_FILES = ["_nnunet_softseg_hook.py", "nnunet_softseg.pth", "nnunet_softseg.start"]
NNUNET_PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "nnunetv2"
version = "2.8.1"
[tool.setuptools.packages.find]
include = ["nnunetv2*"]
"""
OURS = {
    "nnUNetTrainerSoftSeg": "nnunet_softseg.training.trainer",
    "SoftSegDemoPlanner": "nnunet_softseg.preprocessing.planning",
    "SoftSegPreprocessor": "nnunet_softseg.inference.nnunet_patches",
    "SoftLabelManager": "nnunet_softseg.network.of_plans",
}
VANILLA = {
    "nnUNetTrainer": "nnunetv2.training.nnUNetTrainer.nnUNetTrainer",
    "ExperimentPlanner": "nnunetv2.experiment_planning.experiment_planners.default_experiment_planner",
    "DefaultPreprocessor": "nnunetv2.preprocessing.preprocessors.default_preprocessor",
    "LabelManager": "nnunetv2.utilities.label_handling.label_handling",
}
LOOK_UP = """
import json, sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as trainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

def find(name):
    if "Trainer" in name:
        return trainer(name)
    if "Preprocessor" in name:
        return ConfigurationManager({"architecture": {}, "preprocessor_name": name}).preprocessor_class
    plans = PlansManager({"experiment_planner_used": name, "label_manager": name})
    return plans.experiment_planner_class if "Planner" in name else plans.label_manager_class

print(json.dumps({name: find(name).__module__ for name in NAMES}))
"""
IN_A_WORKER = """
import multiprocessing
with multiprocessing.get_context("spawn").Pool(1) as pool:
    assert pool.apply(trainer, ("nnUNetTrainerSoftSeg",)) is trainer("nnUNetTrainerSoftSeg")
"""
EXPECT_THAT_WE_ARE_MISSED = """
try:
    trainer("nnUNetTrainerSoftSeg")
except ModuleNotFoundError as error:
    assert str(error) == "No module named 'nnunet_softseg'"
else:
    raise AssertionError("found without its package")
"""


class Environment:
    """A virtual environment that sees the running one's packages through a folder of links."""

    def __init__(self, folder: Path, packages: Path) -> None:
        venv.create(folder, with_pip=False)
        self.folder = folder
        self.python = folder / "bin" / "python"
        paths = {"base": str(folder), "platbase": str(folder)}
        self.site_packages = Path(sysconfig.get_path("purelib", "venv", vars=paths))
        (self.site_packages / "packages_of_the_running_environment.pth").write_text(f"{packages}\n")

    def pip(self, *arguments: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "pip", "--python", str(self.python), *arguments],
            check=True,
            capture_output=True,
            env=clean_environment({"PIP_DISABLE_PIP_VERSION_CHECK": "1"}),
        )

    def install(self, *what: str) -> None:
        self.pip("install", "--no-deps", "--no-build-isolation", "--no-index", *what)

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.python), "-c", code],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env=clean_environment(),
        )

    def look_up(self, names: dict[str, str], *, then: str = "") -> dict[str, str]:
        """Return the module in which nnU-Net of this environment finds each name."""
        process = self.run(LOOK_UP.replace("NAMES", repr(list(names))) + then)
        assert process.returncode == 0, process.stderr
        found: dict[str, str] = json.loads(process.stdout.splitlines()[-1])
        return found

    def files_of_ours(self) -> list[str]:
        return sorted(
            str(path.relative_to(self.folder))
            for path in self.folder.rglob("*")
            if "softseg" in path.name.lower()
        )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            folder,
            REPOSITORY,
        ],
        check=True,
        env=clean_environment(),
    )
    (path,) = folder.glob("nnunet_softseg-*.whl")
    return path


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to every installed package but ours, nnU-Net included."""
    folder = tmp_path_factory.mktemp("packages")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "softseg" not in path.name.lower() and path.name != "__pycache__" and path.suffix != ".pth":
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def packages_without_nnunet(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages_without_nnunet")
    for path in packages.iterdir():
        if not path.name.startswith("nnunetv2"):
            (folder / path.name).symlink_to(path.resolve())
    return folder


@pytest.fixture(scope="module")
def nnunet_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nnU-Net as a source tree, as it comes from a clone."""
    folder = tmp_path_factory.mktemp("nnUNet")
    spec = importlib.util.find_spec("nnunetv2")
    assert spec is not None
    assert spec.origin is not None
    shutil.copytree(Path(spec.origin).parent, folder / "nnunetv2")
    (folder / "pyproject.toml").write_text(NNUNET_PROJECT)
    return folder


@pytest.fixture
def our_source(tmp_path: Path) -> Path:
    """A copy of our source tree, to be broken."""
    folder = tmp_path / "source"
    for name in ("nnunet_softseg", "hook"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    return folder


def test_wheel_holds_the_package_and_the_hook_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    at_the_root = sorted(name for name in names if "/" not in name)

    assert at_the_root == HOOK_FILES
    assert {name.split("/")[0] for name in names if "/" in name} == {
        "nnunet_softseg",
        next(name.split("/")[0] for name in names if ".dist-info/" in name),
    }
    modules = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "nnunet_softseg").rglob("*.py")}
    assert modules <= set(names)


def test_wheel_is_found_and_uninstalls_cleanly(wheel: Path, packages: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv", packages)
    environment.install(str(wheel))
    assert all((environment.site_packages / name).is_file() for name in HOOK_FILES)

    assert environment.look_up(OURS | VANILLA) == OURS | VANILLA

    environment.pip("uninstall", "-y", "nnunet-softseg")
    assert environment.files_of_ours() == []
    assert environment.look_up(VANILLA) == VANILLA


@pytest.mark.soak
def test_broken_package_does_not_hurt_vanilla(wheel: Path, packages: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv", packages)
    environment.install(str(wheel))
    package = environment.site_packages / "nnunet_softseg"

    (package / "registry.py").write_text("CLASSES = {\n")
    assert environment.look_up(VANILLA) == VANILLA

    shutil.rmtree(package)
    assert environment.look_up(VANILLA, then=EXPECT_THAT_WE_ARE_MISSED) == VANILLA


def test_start_up_file_without_its_module_lets_python_start(
    wheel: Path, packages: Path, tmp_path: Path
) -> None:
    environment = Environment(tmp_path / "venv", packages)
    environment.install(str(wheel))
    for fault in ("def install(:", "def install(): raise RuntimeError", None):
        module = environment.site_packages / HOOK_FILES[0]
        module.unlink() if fault is None else module.write_text(fault)
        process = environment.run("import nnunetv2.utilities.find_class_by_name; print('started')")
        assert process.stdout == "started\n"


@pytest.mark.soak
def test_editable_install_is_found_and_follows_the_source(
    our_source: Path, packages: Path, tmp_path: Path
) -> None:
    environment = Environment(tmp_path / "venv", packages)
    environment.install("-e", str(our_source))
    assert all((environment.site_packages / name).is_file() for name in HOOK_FILES)
    assert environment.look_up(OURS) == OURS

    registry = our_source / "nnunet_softseg" / "registry.py"
    registry.write_text(registry.read_text() + '\nCLASSES["SoftSegNew"] = "nnunet_softseg.new"\n')
    (our_source / "nnunet_softseg" / "new.py").write_text("class SoftSegNew: pass\n")
    code = "from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as find;"
    process = environment.run(f"{code} print(find('', 'SoftSegNew', 'nnunetv2.any').__module__)")
    assert process.stdout == "nnunet_softseg.new\n", process.stderr

    environment.pip("uninstall", "-y", "nnunet-softseg")
    assert environment.files_of_ours() == []


@pytest.mark.soak
@pytest.mark.parametrize("ours", ["editable", "regular"])
def test_editable_nnunet(
    ours: str,
    wheel: Path,
    our_source: Path,
    nnunet_source: Path,
    packages_without_nnunet: Path,
    tmp_path: Path,
) -> None:
    environment = Environment(tmp_path / "venv", packages_without_nnunet)
    environment.install("-e", str(nnunet_source))
    environment.install(*(["-e", str(our_source)] if ours == "editable" else [str(wheel)]))
    where = environment.run("import nnunetv2; print(nnunetv2.__path__[0])").stdout.strip()
    assert where == str(nnunet_source / "nnunetv2")

    then = IN_A_WORKER if ours == "editable" else ""
    assert environment.look_up(OURS | VANILLA, then=then) == OURS | VANILLA

    environment.pip("uninstall", "-y", "nnunet-softseg")
    assert environment.files_of_ours() == []
    process = environment.run("import nnunetv2.utilities.find_class_by_name as f; print(f.__file__)")
    assert process.stdout.startswith(str(nnunet_source))
