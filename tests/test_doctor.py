"""Each probe of the doctor, with the fault that it is there to find."""

import base64
import hashlib
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY, clean_environment
from stand_in import Site

from nnunet_softseg import doctor, registry

HOOK_FILES = ("_nnunet_softseg_hook.py", "nnunet_softseg.pth", "nnunet_softseg.start")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def first_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test writes hides the real thing, here and in the Pythons that the doctor starts."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_the_operators_of_torchvision_are_declared_before_they_are_described_and_once() -> None:
    """What `make` does in its environment where torchvision is of another build than PyTorch."""
    script = runpy.run_path(str(REPOSITORY / "constraints" / "torchvision_without_operators.py"))
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None:
        pytest.skip("torchvision is not installed")
    source = Path(package.origin).with_name("_meta_registrations.py").read_text(encoding="utf-8")
    changed = script["with_declarations"](source)
    assert script["with_declarations"](changed) == changed
    described = re.findall(r'register_fake\("torchvision::(\w+)"\)', source)
    before = changed[: changed.index("register_fake")]
    assert described
    assert all(f'"{name}"' in before for name in described)
    compile(changed, "_meta_registrations.py", "exec")


def test_all_is_well_here(nnunet_folders: dict[str, Path]) -> None:
    binaries = Path(sys.executable).parent
    process = subprocess.run(
        [str(binaries / "nnunet-softseg"), "doctor"],
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment({"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}),
    )

    assert process.returncode == 0, process.stdout + process.stderr
    levels = {
        line[5:].split(":")[0]: line[:4].strip() for line in process.stdout.splitlines() if line[:1].isalpha()
    }
    # Some environments have a torchvision that does not fit their torch: standard trainers do without.
    assert levels.pop("torchvision") in ("OK", "WARN")
    assert set(levels) > {
        "nnunetv2",
        "version",
        "commands",
        "hook",
        "hook files",
        "names",
        "torch",
        *nnunet_folders,
    }
    assert set(levels.values()) == {"OK"}
    names = next(line for line in process.stdout.splitlines() if ": nnU-Net finds " in line)
    assert all(name in names for name in registry.CLASSES)


def test_switched_off_hook_fails_and_names_are_not_looked_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nnunet_softseg.cli import main

    monkeypatch.setenv("NNUNET_SOFTSEG_NO_HOOK", "1")
    # The probes that take seconds have tests of their own.
    monkeypatch.setattr(doctor, "_ask_new_python", lambda _: (None, "not asked"))

    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert (
        "FAIL hook: switched off by NNUNET_SOFTSEG_NO_HOOK\n     -> unset NNUNET_SOFTSEG_NO_HOOK\n" in printed
    )
    assert "WARN names: not looked up" in printed


def test_bare_folder_that_hides_nnunet(tmp_path: Path) -> None:
    site = Site(tmp_path)
    _add_doctor(site)
    (tmp_path / "nnunetv2" / "__init__.py").unlink()

    printed = site.printed(
        "from nnunet_softseg import doctor; print(doctor.check_nnunet_location())", start=""
    )
    assert printed.startswith(
        f"FAIL nnunetv2: a folder without __init__.py hides it: {tmp_path / 'nnunetv2'}"
    )
    assert "delete that folder" in printed


def test_missing_nnunet(tmp_path: Path) -> None:
    site = Site(tmp_path)
    _add_doctor(site)
    shutil.rmtree(tmp_path / "nnunetv2")

    code = "print(doctor.check_nnunet_location(), doctor.check_nnunet_version())"
    printed = site.printed(code, start="from nnunet_softseg import doctor")
    assert "FAIL nnunetv2: not installed here" in printed
    assert "FAIL version: nnunetv2 has no version here" in printed


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ("2.8.0", "FAIL"),
        ("2.8.1", "OK"),
        ("2.8.10", "OK"),
        ("2.9", "FAIL"),
        ("2.9.0", "FAIL"),
        ("3.0", "FAIL"),
    ],
)
@pytest.mark.usefixtures("first_on_path")
def test_nnunet_version(version: str, level: str, write: Callable[[str, str], Path]) -> None:
    write(
        f"nnunetv2-{version}.dist-info/METADATA",
        f"Metadata-Version: 2.1\nName: nnunetv2\nVersion: {version}\n",
    )

    diagnosis = doctor.check_nnunet_version()
    assert diagnosis.level == level
    assert version in diagnosis.message


@pytest.mark.parametrize(
    ("first_line", "level"),
    [
        (f"#!{sys.executable}", "OK"),
        ("#!/opt/other/bin/python3.11", "FAIL"),
        ("#!/usr/bin/env bash", "WARN"),
    ],
)
def test_command_on_path(
    first_line: str, level: str, write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = write("bin/nnUNetv2_train", f"{first_line}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent))

    diagnosis = doctor.check_command_path()
    assert diagnosis.level == level
    assert str(script) in diagnosis.message


def test_no_command_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    diagnosis = doctor.check_command_path()
    assert (diagnosis.level, diagnosis.message) == ("WARN", "no nnUNetv2_train on PATH")
    assert str(Path(sys.executable).parent) in diagnosis.remedy


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("def install(): pass", "does not read its start-up file"),
        ("syntax error", "does not read its start-up file"),
    ],
)
@pytest.mark.usefixtures("first_on_path")
def test_hook_that_does_not_run(hook: str, message: str, write: Callable[[str, str], Path]) -> None:
    write("_nnunet_softseg_hook.py", hook)

    diagnosis = doctor.check_hook_runs()
    assert diagnosis.level == "FAIL"
    assert message in diagnosis.message
    assert "nnunet-softseg run" in diagnosis.remedy


def test_installed_hook_is_that_of_the_source_tree() -> None:
    assert doctor.check_hook_file().level == "OK"


@pytest.mark.parametrize("name", HOOK_FILES)
@pytest.mark.usefixtures("first_on_path")
def test_installed_hook_file_differs_from_the_source(name: str, write: Callable[[str, str], Path]) -> None:
    _write_installed_hook(write)
    assert doctor.check_hook_file().level == "OK"

    path = write(name, "# of an older version\n")
    diagnosis = doctor.check_hook_file()
    assert (diagnosis.level, diagnosis.message) == ("WARN", f"{path} differs from what it should be")

    path.unlink()
    diagnosis = doctor.check_hook_file()
    assert (diagnosis.level, diagnosis.message) == ("FAIL", f"{name} is not installed")


def test_installed_hook_differs_from_what_pip_recorded(tmp_path: Path) -> None:
    """Without a source tree beside the package, pip's own record of the file decides."""
    site = Site(tmp_path)
    _add_doctor(site)
    _write_installed_hook(site.write)
    code = "from nnunet_softseg import doctor; print(doctor.check_hook_file())"
    assert site.printed(code, start="").startswith("OK ")

    site.write("nnunet_softseg.pth", "# of an older version\n")
    assert site.printed(code, start="").startswith(
        f"WARN hook files: {tmp_path / 'nnunet_softseg.pth'} differs"
    )


def test_package_that_is_not_installed(tmp_path: Path) -> None:
    site = Site(tmp_path)
    _add_doctor(site)
    code = "from nnunet_softseg import doctor; print(doctor.check_hook_file())"
    assert site.printed(code, start="").startswith(
        "WARN hook files: nnunet-softseg is on the path but not installed"
    )


def test_same_name_in_an_external_trainer_folder(
    write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = write("ext/mine.py", "class nnUNetTrainerSoftSeg(object):\n    pass\n")
    write("ext/other.py", "class nnUNetTrainerSoftSegMine: pass\n# class nnUNetTrainerSoftSeg\n")
    monkeypatch.setenv("nnUNet_extTrainer", f"{REPOSITORY / 'trainers'}{os.pathsep}{twin.parent}")

    (twin.parent / ".#mine.py").symlink_to("nobody@nowhere.1")  # as an editor has while mine.py is open

    diagnosis = doctor.check_same_names()
    assert (diagnosis.level, diagnosis.message) == ("WARN", f"nnUNetTrainerSoftSeg in {twin}: ours is used")


def test_own_external_trainer_folder_is_no_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(REPOSITORY / "trainers"))
    assert doctor.check_same_names().level == "OK"


@pytest.mark.usefixtures("first_on_path")
def test_broken_class_of_ours_is_named_with_its_cause(
    write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("broken_planning.py", "raise RuntimeError('no plan')\n")
    monkeypatch.setattr(registry, "CLASSES", {"SoftSegDemoPlanner": "broken_planning"})

    diagnosis = doctor.check_names(doctor.look_up_all())
    assert diagnosis.level == "FAIL"
    assert diagnosis.message == "SoftSegDemoPlanner: RuntimeError: no plan"


def test_name_of_another_class(monkeypatch: pytest.MonkeyPatch) -> None:
    class nnUNetTrainerSoftSeg:  # noqa: N801
        pass

    monkeypatch.setattr(doctor, "look_up", lambda _: nnUNetTrainerSoftSeg)
    assert doctor._fault_of("SoftLabelManager") == f"found another one, in {__name__}"
    monkeypatch.setattr(doctor, "look_up", lambda _: None)
    assert doctor._fault_of("SoftLabelManager") == "not found"


def test_class_that_a_worker_does_not_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "CLASSES", {"SoftLabelManager": registry.CLASSES["SoftLabelManager"]})
    # Read when a Python starts: this one has the hook, its worker has not.
    monkeypatch.setenv("NNUNET_SOFTSEG_NO_HOOK", "1")

    assert doctor.look_up_all() == {"SoftLabelManager": "another one in a spawned worker"}


@pytest.mark.usefixtures("first_on_path")
def test_nnunet_that_does_not_import(write: Callable[[str, str], Path]) -> None:
    write("nnunetv2/__init__.py", "raise ImportError('libgomp.so.1 is missing')\n")
    (diagnosis,) = doctor.check_inside_nnunet()
    assert diagnosis.level == "FAIL"
    assert "libgomp.so.1 is missing" in diagnosis.message


def test_signature_of_nnunets_trainer() -> None:
    assert doctor.check_build_signature(doctor.build_parameters()).level == "OK"

    diagnosis = doctor.check_build_signature(["architecture", "deep_supervision"])
    assert diagnosis.level == "FAIL"
    assert "takes (architecture, deep_supervision), expected plans_manager" in diagnosis.message


@pytest.mark.parametrize(
    ("version", "n_gpus", "level", "seen"),
    [
        ("2.13.0+cpu", 0, "OK", "the CPU only: add `-device cpu`"),
        ("2.13.0", 2, "OK", "2 CUDA device(s)"),
        ("2.9.1+cu128", 1, "FAIL", "which nnU-Net excludes"),
    ],
)
@pytest.mark.usefixtures("first_on_path")
def test_torch(version: str, n_gpus: int, level: str, seen: str, write: Callable[[str, str], Path]) -> None:
    write(
        "torch.py",
        f"__version__ = {version!r}\nclass backends: pass\n"
        f"class cuda:\n    @staticmethod\n    def device_count(): return {n_gpus}\n",
    )
    diagnosis = doctor.check_torch()
    assert diagnosis.level == level
    assert version in diagnosis.message
    assert seen in diagnosis.message


@pytest.mark.usefixtures("first_on_path")
def test_broken_torch(write: Callable[[str, str], Path]) -> None:
    write("torch.py", "raise OSError('libcudart.so.12: cannot open shared object file')\n")
    diagnosis = doctor.check_torch()
    assert diagnosis.level == "FAIL"
    assert diagnosis.message == "OSError: libcudart.so.12: cannot open shared object file"


@pytest.mark.usefixtures("first_on_path")
def test_torchvision(write: Callable[[str, str], Path]) -> None:
    write("timm.py", "")
    write("torchvision.py", "__version__ = '0.28.0'\n")
    assert doctor.check_torchvision() == doctor.Diagnosis("OK", "torchvision", "0.28.0")

    write("torchvision.py", "raise RuntimeError('operator torchvision::nms does not exist')\n")
    diagnosis = doctor.check_torchvision()
    assert diagnosis.level == "WARN"
    assert diagnosis.message.startswith("RuntimeError: operator torchvision::nms does not exist; Primus and ")


def test_folders(nnunet_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [diagnosis.level for diagnosis in doctor.check_folders()] == ["OK", "OK", "OK"]

    monkeypatch.delenv("nnUNet_raw")
    nnunet_folders["nnUNet_results"].rmdir()
    raw, _, results = doctor.check_folders()
    assert (raw.level, raw.message) == ("WARN", "not set")
    assert (results.level, results.message) == ("WARN", f"{nnunet_folders['nnUNet_results']} is not a folder")
    assert results.remedy == f"create it: mkdir -p {nnunet_folders['nnUNet_results']}"

    monkeypatch.setenv("nnUNet_raw", "~/raw")  # from quotes, which keep ~ as it is
    monkeypatch.setenv("nnUNet_results", "/data/with space")
    raw, _, results = doctor.check_folders()
    assert raw.remedy == f"name it in full: export nnUNet_raw={Path.home() / 'raw'}"
    assert results.remedy == "create it: mkdir -p '/data/with space'"


def _add_doctor(site: Site) -> None:
    for name in ("doctor.py", "run.py"):
        site.write(
            f"nnunet_softseg/{name}", (REPOSITORY / "nnunet_softseg" / name).read_text(encoding="utf-8")
        )


def _write_installed_hook(write: Callable[[str, str], object]) -> None:
    """Write the hook files and the record of them that pip would write."""
    lines = []
    for name in HOOK_FILES:
        text = (REPOSITORY / "hook" / name).read_text(encoding="utf-8")
        write(name, text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(text)}\n")
    write("nnunet_softseg-0.1.0.dist-info/RECORD", "".join(lines))
    write(
        "nnunet_softseg-0.1.0.dist-info/METADATA",
        "Metadata-Version: 2.1\nName: nnunet-softseg\nVersion: 0.1.0\n",
    )
