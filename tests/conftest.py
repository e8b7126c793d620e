"""What several test files share: nnU-Net's folders, the small real data, a Python process of its own."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from forked_commands import ForkedCommands
from hypothesis import settings

if TYPE_CHECKING:  # it imports much, and few tests need it
    from small_calls import Command, Inputs, Undisturbed

# A loaded machine is slow now and then; what an example finds does not depend on its time.
settings.register_profile("quick", deadline=None, max_examples=40)
settings.register_profile("thorough", deadline=None, max_examples=400)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

REPOSITORY = Path(__file__).parents[1]
NNUNET_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that two processes end together."""
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)


@pytest.fixture
def nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Empty nnU-Net folders, named in the environment; nnU-Net reads it anew at each use."""
    folders = {name: tmp_path / name for name in NNUNET_FOLDERS}
    for name, folder in folders.items():
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    return folders


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with `bids/` (two subjects, several contrasts) and `template/`."""
    named = os.environ.get("SOFTSEG_TEST_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not (folder / "bids").is_dir():
        pytest.skip(f"no small real data in {folder}: set SOFTSEG_TEST_DATA to a folder with bids/ in it")
    return folder


@pytest.fixture(scope="session")
def larger_real_data(real_data: Path) -> Path:
    """Folder with `lidc/`, `hippocampus/` and `gm/`."""
    folder = real_data / "real"
    if not folder.is_dir():
        pytest.skip(f"no larger real data in {real_data}: expected a folder real/ in it")
    return folder


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedCommands]:
    """Commands as processes that start at once."""
    if sys.platform != "linux":
        pytest.skip("forks its commands")
    server = ForkedCommands(tmp_path_factory.mktemp("commands"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> "Inputs":
    """What the calls of `small_calls` read."""
    from small_calls import make_inputs

    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def undisturbed(
    inputs: "Inputs", tmp_path_factory: pytest.TempPathFactory
) -> Callable[["Command"], "Undisturbed"]:
    """What a command writes that nobody disturbs; each is run once."""
    from small_calls import undisturbed_calls

    return undisturbed_calls(inputs, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def in_new_python(tmp_path: Path) -> Callable[..., str]:
    """Run code in a Python of its own, outside of the repository, and return what it printed."""

    def run(code: str, *, python: str | Path = sys.executable, env: dict[str, str] | None = None) -> str:
        process = subprocess.run(
            [str(python), "-c", code],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=clean_environment(env),
            check=False,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout.strip()

    return run


def heed_ctrl_c() -> None:
    """Before a command starts: take SIGINT as in a terminal; a shell's background jobs ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def clean_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment without anything that says where our package or nnU-Net's trainers are."""
    hiding = ("NNUNET_SOFTSEG_NO_HOOK", "nnUNet_extTrainer", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if name not in hiding} | (extra or {})


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium: the system's, or the one that Playwright was told to install."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    executable = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    # Nothing that looks for a network; no sandbox, as containers run as root.
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=executable, args=quiet)
        except api.Error as error:
            pytest.skip(f"no Chromium here ({str(error).splitlines()[0]})")
        yield browser
        browser.close()


@pytest.fixture
def browser_page(browser: Any) -> Iterator[Any]:
    """A page of a browser without network; what it logs as errors fails the test."""
    context = browser.new_context(offline=True)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("requestfailed", lambda request: errors.append(f"asked for {request.url[:80]}"))
    yield page
    context.close()
    assert not errors
