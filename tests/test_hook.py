"""The start-up hook on its own: with a stand-in for nnU-Net, and with whatever can be broken broken."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY
from stand_in import Site

ASK = """
import sys, json
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as find
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


OURS = f"{ASK}print(find('f', 'nnUNetTrainerSoftSeg', 'nnunetv2.training'))"
VANILLA = (
    f"{ASK}print(find('f', 'nnUNetTrainer', 'nnunetv2.training'));"
    "print(sorted(name for name in sys.modules if name.startswith('nnunet_softseg')))"
)
VANILLA_ANSWER = "('original', 'f', 'nnUNetTrainer', 'nnunetv2.training')\n[]"


def test_our_name_comes_from_the_registry(site: Site) -> None:
    assert site.printed(OURS) == "<class 'nnunet_softseg.training.trainer.nnUNetTrainerSoftSeg'>"


def test_keyword_arguments_are_understood(site: Site) -> None:
    code = f"{ASK}print(find(folder='f', current_module='nnunetv2.x', class_name='nnUNetTrainerSoftSeg'))"
    assert site.printed(code) == "<class 'nnunet_softseg.training.trainer.nnUNetTrainerSoftSeg'>"


def test_vanilla_name_goes_to_the_original_without_importing_us(site: Site) -> None:
    assert site.printed(VANILLA) == VANILLA_ANSWER


@pytest.mark.parametrize(
    "scanned", ["None", "'trainers'", "'nnunetv2x.a'", "'dynamic_network_architectures'"]
)
def test_our_name_in_other_folders_goes_to_the_original(site: Site, scanned: str) -> None:
    code = f"{ASK}print(find('f', 'nnUNetTrainerSoftSeg', {scanned})[0])"
    assert site.printed(code) == "original"


def test_a_marked_name_that_is_not_ours_goes_to_the_original(site: Site) -> None:
    code = f"{ASK}print(find('f', 'nnUNetTrainerSoftSegByOthers', 'nnunetv2.training')[0])"
    assert site.printed(code) == "original"


def test_all_arguments_reach_the_original(site: Site) -> None:
    site.write(
        "nnunetv2/utilities/find_class_by_name.py",
        "def recursive_find_python_class(*args, **kwargs): return args, kwargs",
    )
    code = f"{ASK}print(find('f', 'A', 'nnunetv2.b', 'base', verbose=True))"
    assert site.printed(code) == "(('f', 'A', 'nnunetv2.b', 'base'), {'verbose': True})"


def test_installing_again_changes_nothing(site: Site) -> None:
    """A virtual environment may read the start-up file twice."""
    code = """
        import importlib, sys
        import _nnunet_softseg_hook as hook
        hook.install()
        sys.modules.pop(hook.__name__)
        importlib.import_module(hook.__name__).install()
        import nnunetv2.utilities.find_class_by_name as module
        hook.install()
        print(sum(type(finder).__module__ == hook.__name__ for finder in sys.meta_path))
        print(hasattr(module.recursive_find_python_class.__wrapped__, "__wrapped__"))
    """
    assert site.printed(code) == "1\nFalse"


def test_the_module_keeps_its_own_loader(site: Site) -> None:
    code = """
        import inspect, nnunetv2.utilities.find_class_by_name as module
        print(type(module.__loader__).__name__, type(module.__spec__.loader).__name__)
        print("recursive_find_python_class" in inspect.getsource(module))
        print(module.recursive_find_python_class.__name__, module.recursive_find_python_class.__doc__)
    """
    expected = "SourceFileLoader SourceFileLoader\nTrue\nrecursive_find_python_class The original."
    assert site.printed(code) == expected


def test_the_function_can_be_pickled(site: Site) -> None:
    """nnU-Net's own could."""
    assert site.printed(f"{ASK}import pickle; print(pickle.loads(pickle.dumps(find)) is find)") == "True"


def test_installing_late_reaches_those_who_hold_the_function_already(site: Site) -> None:
    site.write("nnunetv2/caller.py", ASK.replace("as find", ""))
    code = """
        import nnunetv2.caller as caller, _nnunet_softseg_hook
        _nnunet_softseg_hook.install()
        print(caller.recursive_find_python_class("f", "nnUNetTrainerSoftSeg", "nnunetv2.a").__name__)
    """
    assert site.printed(code, start="") == "nnUNetTrainerSoftSeg"


def test_reloading_the_module_wraps_it_again(site: Site) -> None:
    code = """
        import importlib, nnunetv2.utilities.find_class_by_name as module
        importlib.reload(module)
        print(module.recursive_find_python_class("f", "nnUNetTrainerSoftSeg", "nnunetv2.a").__name__)
    """
    assert site.printed(code) == "nnUNetTrainerSoftSeg"


@pytest.mark.parametrize(("value", "answer"), [("1", "original"), ("0", "ours"), ("", "ours")])
def test_switch(site: Site, value: str, answer: str) -> None:
    code = f"{ASK}print(isinstance(find('f', 'nnUNetTrainerSoftSeg', 'nnunetv2.a'), tuple))"
    assert site.printed(code, NNUNET_SOFTSEG_NO_HOOK=value) == str(answer == "original")


def test_only_loaded_modules_are_imported_at_start(site: Site) -> None:
    """It runs in every Python of the environment: it may cost next to nothing."""
    code = """
        import sys
        before = set(sys.modules)
        import _nnunet_softseg_hook
        _nnunet_softseg_hook.install()
        print(sorted(set(sys.modules) - before))
    """
    # With `site`, as at a real start, where `os` is loaded.
    assert site.printed(code, start="import os") == "['_nnunet_softseg_hook']"


BROKEN_PACKAGES = {
    "registry with a syntax error": ("nnunet_softseg/registry.py", "CLASSES = {"),
    "registry without its table": ("nnunet_softseg/registry.py", ""),
    "package that raises": ("nnunet_softseg/__init__.py", "raise RuntimeError('broken')"),
    "package that ends Python": ("nnunet_softseg/__init__.py", "raise SystemExit(3)"),
    "no package": ("nnunet_softseg", None),
}


@pytest.mark.parametrize("fault", BROKEN_PACKAGES)
def test_broken_package_does_not_hurt_vanilla_names(site: Site, fault: str) -> None:
    _break(site, *BROKEN_PACKAGES[fault])
    assert site.printed(VANILLA) == VANILLA_ANSWER


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("registry with a syntax error", "SyntaxError: "),
        ("package that raises", "RuntimeError: broken"),
        ("no package", "No module named 'nnunet_softseg'"),
    ],
)
def test_broken_package_shows_its_real_error_for_our_names(site: Site, fault: str, cause: str) -> None:
    _break(site, *BROKEN_PACKAGES[fault])
    process = site.run(OURS)
    assert process.returncode == 1
    assert cause in process.stderr


def test_broken_module_of_ours_shows_its_real_error(site: Site) -> None:
    site.write("nnunet_softseg/training/trainer.py", "import a_package_that_is_missing")
    process = site.run(OURS)
    assert "ModuleNotFoundError: No module named 'a_package_that_is_missing'" in process.stderr


def _break(site: Site, name: str, text: str | None) -> None:
    if text is None:
        shutil.rmtree(site.folder / name)
    else:
        site.write(name, text)


NNUNET_OF_ANOTHER_FORM = {
    "function renamed": "def find(*args): return 'new'",
    "function is no function": "recursive_find_python_class = None",
}


@pytest.mark.parametrize("text", NNUNET_OF_ANOTHER_FORM.values(), ids=NNUNET_OF_ANOTHER_FORM.keys())
def test_nnunet_of_another_form_still_imports(site: Site, text: str) -> None:
    site.write("nnunetv2/utilities/find_class_by_name.py", text)
    assert site.printed("import nnunetv2.utilities.find_class_by_name; print('fine')") == "fine"


PLACE = "results/Dataset101_Cord/{}__nnUNetPlans__3d_fullres/dataset.json"
EXPLANATION = (
    "def explain_missing_model(error): return 'there are others' if 'fullres' in str(error) else None"
)


@pytest.mark.parametrize(
    ("model", "there", "stderr"),
    [
        ("nnUNetTrainerSoftSeg", None, "nnunet-softseg: error: there are others\n"),
        (
            "nnUNetTrainer",
            "nnUNetTrainerSoftSeg__nnUNetPlans__2d",
            "nnunet-softseg: error: there are others\n",
        ),
        ("nnUNetTrainer", "nnUNetTrainer__nnUNetPlans__2d", "Traceback"),
    ],
)
def test_a_model_of_ours_that_nnunet_does_not_find_is_told_in_one_line(
    site: Site, model: str, there: str | None, stderr: str
) -> None:
    """nnUNetv2_predict without -p, or -tr: it opens dataset.json in the model's folder before all else."""
    site.write("nnunet_softseg/inference/__init__.py", "")
    site.write("nnunet_softseg/inference/predict.py", EXPLANATION)
    if there:
        site.write(PLACE.replace("{}__nnUNetPlans__3d_fullres", there), "{}")
    process = site.run(f"{ASK}open({PLACE.format(model)!r})")
    assert process.returncode == 1
    assert process.stderr[: len(stderr)] == stderr
    assert process.stdout == ""


@pytest.mark.parametrize("text", ["raise RuntimeError('broken')", "def explain_missing_model(error): None"])
def test_an_error_that_is_not_explained_is_shown_as_it_is(site: Site, text: str) -> None:
    site.write("nnunet_softseg/inference/__init__.py", "")
    site.write("nnunet_softseg/inference/predict.py", text)
    process = site.run(f"{ASK}open({PLACE.format('nnUNetTrainerSoftSeg')!r})")
    assert "FileNotFoundError: [Errno 2] No such file or directory: 'results/" in process.stderr
    assert "broken" not in process.stderr


def test_commands_after_prediction_are_nnunets_own_for_folders_without_soft_maps(site: Site) -> None:
    """Nor does a broken package hurt them; where a folder holds soft maps, its error is shown."""
    site.write("nnunetv2/ensembling/__init__.py", "")
    site.write("nnunetv2/ensembling/ensemble.py", "def ensemble_folders(folders): return 'original'")
    site.write("vanilla/plans.json", '{"label_manager": "LabelManager"}')
    site.write("model/plans.json", '{"label_manager": "SoftLabelManager"}')
    site.write("soft/softseg.json", "{}")
    _break(site, *BROKEN_PACKAGES["package that raises"])
    ask = "from nnunetv2.ensembling.ensemble import ensemble_folders as ensemble\n"
    code = f"{ask}import sys; print(ensemble(['vanilla', 'missing']), 'nnunet_softseg' in sys.modules)"
    assert site.printed(code) == "original False"
    for folder in ("soft", "model"):
        assert "RuntimeError: broken" in site.run(f"{ask}ensemble(['vanilla', '{folder}'])").stderr
    assert site.printed(f"{ask}print(ensemble(['soft']))", NNUNET_SOFTSEG_NO_HOOK="1") == "original"


def test_a_vanilla_model_is_opened_without_importing_us(site: Site) -> None:
    """Of one of ours, a broken package shows its error."""
    site.write("nnunetv2/inference/__init__.py", "")
    site.write(
        "nnunetv2/inference/predict_from_raw_data.py",
        """
class nnUNetPredictor:
    def initialize_from_trained_model_folder(self, label_manager):
        plans = {"label_manager": label_manager, "nnunet_softseg": {}}
        self.plans_manager = type("PlansManager", (), {"plans": plans})
""",
    )
    _break(site, *BROKEN_PACKAGES["package that raises"])
    ask = "from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor\n"
    code = f"{ask}import sys; nnUNetPredictor().initialize_from_trained_model_folder"
    printed = "print('nnunet_softseg' in sys.modules)"
    assert site.printed(f"{code}('LabelManager'); {printed}") == "False"
    assert "RuntimeError: broken" in site.run(f"{code}('SoftLabelManager')").stderr


def test_error_of_nnunet_is_passed_on(site: Site) -> None:
    site.write("nnunetv2/utilities/find_class_by_name.py", "raise ValueError('of nnU-Net')")
    assert "ValueError: of nnU-Net" in site.run(ASK).stderr


def test_missing_nnunet_is_told_by_python_itself(site: Site) -> None:
    (site.folder / "nnunetv2/utilities/find_class_by_name.py").unlink()
    assert "No module named 'nnunetv2.utilities.find_class_by_name'" in site.run(ASK).stderr


def test_odd_finders_of_others_do_no_harm(site: Site) -> None:
    start = """
import sys
class Raising:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("nnunetv2.utilities.find"):
            self.asked = getattr(self, "asked", 0) + 1
            if self.asked == 1: raise ValueError("odd")
class Old:
    def find_module(self, name, path=None): return None
sys.meta_path[:0] = [Raising(), Old()]
import _nnunet_softseg_hook; _nnunet_softseg_hook.install()
"""
    # The hook gives up, and Python finds the module by itself.
    assert site.printed(f"{ASK}print(find('f', 'A', 'nnunetv2.b')[0])", start=start) == "original"


def test_it_runs_at_the_start_of_this_environment(in_new_python: Callable[..., str]) -> None:
    code = "import sys; print(sum(type(f).__module__ == '_nnunet_softseg_hook' for f in sys.meta_path))"
    assert in_new_python(code) == "1"


def test_it_stays_on_in_isolated_mode(tmp_path: Path) -> None:
    code = "import sys; print(any(type(f).__module__ == '_nnunet_softseg_hook' for f in sys.meta_path))"
    process = subprocess.run(
        [sys.executable, "-I", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=dict(os.environ),
        check=True,
    )
    assert process.stdout.strip() == "True"


def test_start_up_files_name_the_same_function() -> None:
    """`.pth` is read by Python up to 3.17, `.start` from 3.15 on."""
    pth = (REPOSITORY / "hook/nnunet_softseg.pth").read_text().strip()
    start = (REPOSITORY / "hook/nnunet_softseg.start").read_text().strip()
    assert pth == "import _nnunet_softseg_hook; _nnunet_softseg_hook.install()"
    assert start == "_nnunet_softseg_hook:install"
