"""Is the plug-in seen by nnU-Net here? One diagnosis per probe, with the remedy.

Where the state of this process could hide a fault, a new Python is asked. This module imports neither torch
nor nnU-Net, so that it answers when they are broken.
"""

import base64
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nnunet_softseg import registry
from nnunet_softseg.run import HOOK

OLDEST, TOO_NEW = (2, 8, 1), (2, 9)
SUPPORTED = ",".join(mark + ".".join(map(str, version)) for mark, version in ((">=", OLDEST), ("<", TOO_NEW)))
INSTALL_NNUNET = f"run `pip install 'nnunetv2{SUPPORTED}'`"
BROKEN_TORCH = (2, 9)  # excluded in nnU-Net's own requirements
HOOK_FILES = (f"{HOOK}.py", "nnunet_softseg.pth", "nnunet_softseg.start")
SWITCH = "NNUNET_SOFTSEG_NO_HOOK"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
REINSTALL = "run `pip install --force-reinstall --no-deps nnunet-softseg` (from a source tree: `-e .`)"
FRESH_TIMEOUT_S = 300

Level = Literal["OK", "WARN", "FAIL"]


@dataclass(frozen=True)
class Diagnosis:
    """The result of one probe, in one line, and the way out; level: WARN: works in part, FAIL: does not."""

    level: Level
    topic: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        """Return the diagnosis as the command line prints it."""
        line = f"{self.level:<5}{self.topic}: {self.message}"
        return f"{line}\n     -> {self.remedy}" if self.remedy else line


def doctor() -> Iterator[Diagnosis]:
    """Yield the diagnoses about this environment, as they come (about 20 s in all)."""
    seen = [check_nnunet_location(), check_nnunet_version(), check_command_path(), check_hook_runs()]
    yield from seen
    yield check_hook_file()
    yield check_same_names()
    if any(diagnosis.level == "FAIL" for diagnosis in seen):
        yield Diagnosis("WARN", "names", "not looked up, since something above failed", "mend that first")
    else:
        yield from check_inside_nnunet()
    yield check_torch()
    yield check_torchvision()
    yield from check_folders()


def check_nnunet_location() -> Diagnosis:
    """Return whether `import nnunetv2` reaches nnU-Net and not a bare folder of the same name."""
    spec = importlib.util.find_spec("nnunetv2")
    if spec is None:
        return Diagnosis("FAIL", "nnunetv2", "not installed here", INSTALL_NNUNET)
    if spec.origin is None:
        message = f"a folder without __init__.py hides it: {', '.join(spec.submodule_search_locations or [])}"
        return Diagnosis("FAIL", "nnunetv2", message, "delete that folder")
    return Diagnosis("OK", "nnunetv2", f"found in {Path(spec.origin).parent}")


def check_nnunet_version() -> Diagnosis:
    """Return whether the version of nnunetv2 is one that this package is tested with."""
    try:
        version = importlib.metadata.version("nnunetv2")
    except importlib.metadata.PackageNotFoundError:
        return Diagnosis("FAIL", "version", "nnunetv2 has no version here", INSTALL_NNUNET)
    if OLDEST <= _release(version) < TOO_NEW:
        return Diagnosis("OK", "version", f"nnunetv2 {version}")
    return Diagnosis("FAIL", "version", f"nnunetv2 {version}, expected {SUPPORTED}", INSTALL_NNUNET)


def check_command_path() -> Diagnosis:
    """Return whether the shell's `nnUNetv2_train` belongs to the Python that runs this."""
    found, here = shutil.which("nnUNetv2_train"), Path(sys.executable).parent
    if found is None:
        return Diagnosis(
            "WARN", "commands", "no nnUNetv2_train on PATH", f"put {here} on PATH or activate it"
        )
    with Path(found).open("rb") as stream:
        first = stream.readline(1000)
    is_script = first.startswith(b"#!") and b"python" in first
    interpreter = Path(os.fsdecode(first[2:].strip())) if is_script else Path(found)
    if here.resolve() in (Path(found).parent.resolve(), interpreter.parent.resolve()):
        return Diagnosis("OK", "commands", found)
    message = f"nnUNetv2_train on PATH is {found}, of another environment than {here}"
    remedy = f"activate this environment, or call {here}/nnUNetv2_train"
    # A launcher that is no Python script (pyenv's shims, for one) may lead here all the same.
    return Diagnosis("FAIL" if is_script else "WARN", "commands", message, remedy)


def check_hook_runs() -> Diagnosis:
    """Return whether a new Python of this environment starts with the hook in place."""
    if os.environ.get(SWITCH, "") not in ("", "0"):
        return Diagnosis("FAIL", "hook", f"switched off by {SWITCH}", f"unset {SWITCH}")
    code = "import json, sys; print(json.dumps([type(finder).__module__ for finder in sys.meta_path]))"
    answer, trouble = _ask_new_python(code)
    if answer is not None and HOOK in answer:
        return Diagnosis("OK", "hook", "runs when Python starts")
    if importlib.util.find_spec(HOOK) is None:
        return Diagnosis("FAIL", "hook", f"{HOOK}.py is not installed", REINSTALL)
    remedy = "use `nnunet-softseg run nnUNetv2_train ...`, or install into a virtual environment"
    return Diagnosis("FAIL", "hook", trouble or "Python does not read its start-up file here", remedy)


def check_hook_file() -> Diagnosis:
    """Return whether the installed hook files are those of this version (an editable install copies them)."""
    try:
        files = importlib.metadata.files("nnunet-softseg") or []
    except importlib.metadata.PackageNotFoundError:
        return Diagnosis("WARN", "hook files", "nnunet-softseg is on the path but not installed", REINSTALL)
    recorded = {str(file): file for file in files if str(file) in HOOK_FILES}
    source = Path(registry.__file__).parents[1] / "hook"
    for name in HOOK_FILES:
        path = Path(str(recorded[name].locate())).absolute() if name in recorded else None
        if path is None or not path.is_file():
            return Diagnosis("FAIL", "hook files", f"{name} is not installed", REINSTALL)
        by_pip = recorded[name].hash
        expected = by_pip.value if by_pip and by_pip.mode == "sha256" else None
        if source.is_dir():
            expected = _digest(source / name)
        if expected is not None and _digest(path) != expected:
            return Diagnosis("WARN", "hook files", f"{path} differs from what it should be", REINSTALL)
    return Diagnosis("OK", "hook files", "as this version has them")


def check_same_names() -> Diagnosis:
    """Return whether nnU-Net or a folder of `nnUNet_extTrainer` has a name of ours, too (ours is used)."""
    spec = importlib.util.find_spec("nnunetv2")
    external = os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)
    folders = [*((spec and spec.submodule_search_locations) or []), *filter(str.strip, external)]
    definition = re.compile(rf"^\s*(?:class|def)\s+({'|'.join(registry.CLASSES)})\b", re.MULTILINE)
    twins = [
        f"{name} in {path}"
        for folder in folders
        for path in sorted(Path(folder).rglob("*.py"))
        if path.is_file()  # no link to nothing, as editors leave beside a file that is open
        for name in definition.findall(path.read_text(encoding="utf-8", errors="replace"))
    ]
    if twins:
        return Diagnosis("WARN", "same names", f"{'; '.join(twins)}: ours is used", "rename that class")
    return Diagnosis("OK", "same names", "no other class has one of ours")


def check_inside_nnunet() -> Iterator[Diagnosis]:
    """Yield what only a Python with nnU-Net loaded can tell: `check_names` and `check_build_signature`."""
    answer, trouble = _ask_new_python(
        "import json; from nnunet_softseg import doctor;"
        "print(json.dumps([doctor.look_up_all(), doctor.build_parameters()]))"
    )
    if answer is None:
        yield Diagnosis("FAIL", "names", trouble, REINSTALL)
    else:
        yield check_names(answer[0])
        yield check_build_signature(answer[1])


def check_names(faults: dict[str, str]) -> Diagnosis:
    """Return whether nnU-Net's own look-up functions give our classes, from the answer of `look_up_all`."""
    wrong = [f"{name}: {fault}" for name, fault in faults.items() if fault]
    if wrong:
        return Diagnosis("FAIL", "names", "; ".join(wrong), REINSTALL)
    return Diagnosis("OK", "names", f"nnU-Net finds {', '.join(faults)}, here and in workers")


def check_build_signature(parameters: list[str]) -> Diagnosis:
    """Return whether nnU-Net's trainer hands its plans to `build_network_architecture`, as ours expects."""
    if "plans_manager" in parameters:
        return Diagnosis("OK", "nnU-Net's trainer", "has the hooks that ours needs")
    message = f"build_network_architecture takes ({', '.join(parameters)}), expected plans_manager among them"
    remedy = "install a version of nnunetv2 in the supported range"
    return Diagnosis("FAIL", "nnU-Net's trainer", message, remedy)


def look_up_all() -> dict[str, str]:
    """Return what is wrong with each name of the registry, as nnU-Net finds it; "" where nothing is."""
    import multiprocessing

    faults = {name: _fault_of(name) for name in registry.CLASSES}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for name in [name for name, fault in faults.items() if not fault]:
            # Pickled by reference in the worker and loaded here: the same object only if both found the same.
            if pool.apply(look_up, (name,)) is not look_up(name):
                faults[name] = "another one in a spawned worker"
    return faults


def look_up(name: str) -> Any:
    """Return the class or function that nnU-Net's own function for this kind of name finds."""
    from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    from nnunetv2.utilities.label_handling.label_handling import get_labelmanager_class_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

    if "Trainer" in name:
        return recursive_find_trainer_class_by_name(name)
    if "Planner" in name:
        return PlansManager({"experiment_planner_used": name}).experiment_planner_class
    if "Preprocessor" in name:
        return ConfigurationManager({"architecture": {}, "preprocessor_name": name}).preprocessor_class
    if "LabelManager" in name:
        return get_labelmanager_class_from_plans({"label_manager": name})
    if "resample" in name:
        return recursive_find_resampling_fn_by_name(name)
    kinds = "Trainer, Planner, Preprocessor, LabelManager, resample"
    raise ValueError(f"{name} says not of what kind it is: expected one of {kinds} in it")


def build_parameters() -> list[str]:
    """Return the names of the parameters of nnU-Net's `build_network_architecture`."""
    import inspect

    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    return list(inspect.signature(nnUNetTrainer.build_network_architecture).parameters)


def check_torch() -> Diagnosis:
    """Return the version of torch and the devices it sees."""
    code = (
        "import json, torch; mps = getattr(torch.backends, 'mps', None);"
        "print(json.dumps([torch.__version__, torch.cuda.device_count(), bool(mps and mps.is_available())]))"
    )
    answer, trouble = _ask_new_python(code)
    if answer is None:
        return Diagnosis("FAIL", "torch", trouble, "install torch as https://pytorch.org/get-started tells")
    version, n_gpus, mps = answer
    if _release(version)[:2] == BROKEN_TORCH:
        message = f"{version}, which nnU-Net excludes"
        return Diagnosis("FAIL", "torch", message, "install another version of torch")
    device = f"{n_gpus} CUDA device(s)" if n_gpus else "mps" if mps else "the CPU only: add `-device cpu`"
    return Diagnosis("OK", "torch", f"{version}, sees {device}")


def check_torchvision() -> Diagnosis:
    """Return whether torchvision and timm import; nnU-Net needs them for some of its own trainers only."""
    answer, trouble = _ask_new_python(
        "import json, torchvision, timm; print(json.dumps(torchvision.__version__))"
    )
    if answer is not None:
        return Diagnosis("OK", "torchvision", answer)
    message = (
        f"{trouble}; Primus and nnU-Net's trainers under variants/ do not load, ours and nnUNetTrainer do"
    )
    return Diagnosis("WARN", "torchvision", message, "install the torchvision of the same build as torch")


def check_folders() -> Iterator[Diagnosis]:
    """Yield whether each of nnU-Net's three folders is set and exists."""
    for variable in FOLDERS:
        value = os.environ.get(variable)
        if not value:
            yield Diagnosis("WARN", variable, "not set", f"export {variable}=/path/to/{variable}")
        elif not Path(value).is_dir():
            remedy = f"create it: mkdir -p {shlex.quote(value)}"
            if value.startswith("~"):
                remedy = f"name it in full: export {variable}={shlex.quote(str(Path(value).expanduser()))}"
            yield Diagnosis("WARN", variable, f"{value} is not a folder", remedy)
        else:
            yield Diagnosis("OK", variable, value)


def _fault_of(name: str) -> str:
    try:
        found = look_up(name)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if found is None:
        return "not found"
    return "" if found is registry.find(name) else f"found another one, in {found.__module__}"


def _ask_new_python(code: str) -> tuple[Any, str]:
    """Return what the code prints as JSON in its last line and ""; or None and what went wrong."""
    # Not in the current folder: `python -c` would import from it, nnU-Net's commands would not.
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=FRESH_TIMEOUT_S,
        cwd=Path(sys.executable).parent,
        check=False,
    )
    lines = process.stdout.strip().splitlines()
    if process.returncode == 0 and lines:
        return json.loads(lines[-1]), ""
    complaints = process.stderr.strip().splitlines()
    return None, complaints[-1] if complaints else f"Python ended with code {process.returncode}"


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file as pip records it."""
    return base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).decode().rstrip("=")


def _release(version: str) -> tuple[int, ...]:
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(number) for number in numbers.group().split(".")) if numbers else ()
