"""Mutation check: what share of seeded faults do the tests catch?

    python benchmarks/mutation.py -o FOLDER [--seed 1] [-n 20] [--rooms metrics labels ...]

Draws faults (`faults.py`) in each room, puts one at a time into a copy of the repository, and runs the tests
that pass through its line, the fastest first, until one fails. A fault is caught when a test fails or takes
too long. Before, the tests of all rooms are run once with coverage, to know where they pass and how long they
take.

FOLDER keeps what is known: a repeated call judges what is missing, and what survived if tests have changed
since. `table.md` has the shares and the survivors, `verdicts.json` the test that caught each fault.

One process at a time, each forked from one that has imported PyTorch and nnU-Net. Tests marked `soak` or
`e2e` are left out, and what tests run in a Python of their own is not measured. Needs a system that forks.
"""

import argparse
import contextlib
import gc
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import coverage
import pytest
from faults import Fault, faults_in

REPOSITORY = Path(__file__).parents[1]
PACKAGE = "nnunet_softseg"
ROOMS = ("network", "preprocessing", "inference", "metrics", "labels")
KILLS = "robustness"
"""Folder of tests that run commands in processes of their own."""
IMPORTED_BEFORE = (
    *("hypothesis.internal.observability", "pdb", "pytest_timeout"),
    *(
        "matplotlib.pyplot",
        "nibabel",
        "pandas",
        "scipy.stats",
        "SimpleITK",
        "skimage.measure",
        "sklearn.metrics",
    ),
    *("torch", "nnunetv2.inference.predict_from_raw_data", "nnunetv2.run.run_training"),
)
OPTIONS = (
    # Plugins by name, plain asserts, no traces: most of the time of a short test would be pytest's own.
    *("-pno:cacheprovider", "-pno:unraisableexception", "-p_hypothesis_pytestplugin", "-ppytest_timeout"),
    *("-q", "--assert=plain", "--tb=line", "--hypothesis-seed=0", "-otimeout=0", "-mnot soak and not e2e"),
)
COVERAGE = (
    *("-ppytest_cov", f"--cov={PACKAGE}", "--cov-context=test"),
    *("--cov-report=", "--cov-config=/dev/null"),
)
EQUIVALENT = {
    "order of arguments: np.clip(np.asarray(si, dtype=np.int64), first, last) -> "
    "np.clip(first, np.asarray(si, dtype=np.int64), last)": "the larger of two is the larger of the two",
    "order of arguments: np.clip(nearest(source, target, extent) - start, 0, size - 1) -> "
    "np.clip(0, nearest(source, target, extent) - start, size - 1)": "likewise",
    "order of arguments: np.clip(np.floor(centre - reach), 0, shape) -> "
    "np.clip(0, np.floor(centre - reach), shape)": "likewise",
    "order of arguments: zip(shapes[1], numbers, strict=True) -> zip(numbers, shapes[1], strict=True)": (
        "their product is taken"
    ),
}
"""Faults that change nothing that anybody could see, as they are printed but for the line, and why."""


class Tests:
    """What pytest says: seconds of processor time of each test that passed, and the names of all others."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Time a test, its processes included."""
        start = sum(os.times()[:4])
        answer = yield
        if item.nodeid not in self.failed:
            self.seconds[item.nodeid] = sum(os.times()[:4]) - start
        return answer

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what did not pass, what was skipped included."""
        if not report.passed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note files that do not import."""
        if report.failed:
            self.failed.append(report.nodeid)


class Copy:
    """The copy of the repository that faults are put into, and the tests that are run in it."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self.folder, self.root = folder, folder / "copy"
        self.log = folder / "log.txt"
        self._answer = folder / "answer.json"
        unneeded = shutil.ignore_patterns(".*", "*_output", "site", "dist", "build", "__pycache__")
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(repository, self.root, ignore=unneeded)

    def run(self, tests: Sequence[str], most_s: float, *options: str) -> dict[str, Any]:
        """Run tests in a forked process; what they said, `failed` being ["time"] when they took too long."""
        self._answer.unlink(missing_ok=True)
        code = in_fork(lambda: self._pytest([*tests, *OPTIONS, *options]), most_s, self.log)
        if code is None:
            return {"seconds": {}, "failed": ["time"], "code": code}
        said = self._answer.read_text() if self._answer.exists() else '{"seconds": {}, "failed": []}'
        return {**json.loads(said), "code": code}

    def _pytest(self, arguments: list[str]) -> int:
        os.chdir(self.root)
        os.environ |= {"PYTHONPATH": str(self.root), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        sys.path.insert(0, str(self.root))
        said = Tests()
        code = int(pytest.main(arguments, plugins=[said]))
        self._answer.write_text(json.dumps(vars(said)))
        return code

    @contextlib.contextmanager
    def having(self, fault: Fault) -> Iterator[None]:
        """The copy with a fault in it; without it again afterwards."""
        file = self.root / fault.file
        source = file.read_bytes()
        self._write(file, fault.apply(source))
        try:
            yield
        finally:
            self._write(file, source)

    @staticmethod
    def _write(file: Path, source: bytes) -> None:
        # Python takes compiled code for that of a file of the same size and second.
        for compiled in file.parent.glob(f"__pycache__/{file.stem}.*.pyc"):
            compiled.unlink()
        file.write_bytes(source)


def in_fork(work: Callable[[], int], most_s: float, log: Path) -> int | None:
    """Exit code of work in a fork; None where it takes more processor time, or 20 times that by the clock."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 70
        try:
            os.setpgid(0, 0)
            resource.setrlimit(resource.RLIMIT_CPU, (int(most_s) + 1, int(most_s) + 5))
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(output, stream)
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    end = time.monotonic() + 20 * most_s
    status = None
    while status is None and time.monotonic() < end:
        time.sleep(0.02)
        done, raw = os.waitpid(child, os.WNOHANG)
        status = os.waitstatus_to_exitcode(raw) if done else None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if status is None:
        os.waitpid(child, 0)
    return None if status in (None, -signal.SIGXCPU, -signal.SIGKILL) else status


def hash_of(files: Sequence[Path]) -> str:
    """Of the contents of files."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


class Passages:
    """Which tests pass through which lines, by file of tests, kept in `passages.json`."""

    def __init__(self, copy: Copy) -> None:
        self._copy, self._file = copy, copy.folder / "passages.json"
        self.known: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else {}
        package = hash_of(sorted((copy.root / PACKAGE).rglob("*.py")))
        tests = [file for file in sorted(copy.root.glob("tests/*/test_*.py")) if file.parent.name != KILLS]
        for file in tests:
            name, state = file.relative_to(copy.root).as_posix(), f"{package} {hash_of([file])}"
            if self.known.get(name, {}).get("state") != state:
                self.known[name] = {"state": state, **self._measured(name)}
                self._file.write_text(json.dumps(self.known))
                print(f"{name}: {len(self.known[name]['seconds'])} tests", flush=True)
        names = {file.relative_to(copy.root).as_posix() for file in tests}
        self.known = {name: found for name, found in self.known.items() if name in names}
        self.state = hash_of(tests)

    def _measured(self, name: str) -> dict[str, Any]:
        data = self._copy.folder / "coverage"
        os.environ["COVERAGE_FILE"] = str(data)
        seconds = self._copy.run([name], 1200, *COVERAGE)["seconds"]
        found, lines = coverage.CoverageData(str(data)), {}
        found.read()
        rooms = tuple(f"{PACKAGE}/{room}/" for room in ROOMS)
        for path in found.measured_files():
            file = Path(path).relative_to(self._copy.root).as_posix()
            if file.startswith(rooms):
                lines[file] = {
                    str(line): sorted({context.rpartition("|")[0] for context in contexts} & set(seconds))
                    for line, contexts in found.contexts_by_lineno(path).items()
                }
        return {"seconds": seconds, "lines": lines}

    def of(self, fault: Fault, most_s: float) -> dict[str, float]:
        """Tests through a fault's lines and their seconds, the fastest first, up to a sum of seconds.

        Where none passes (lines run at import, or by workers), those through any line of the file.
        """
        lines = {str(line) for line in range(fault.line, fault.last_line + 1)}
        chosen = self._through(fault.file, lines) or self._through(fault.file, None)
        kept, total = {}, 0.0
        for test, seconds in sorted(chosen.items(), key=lambda item: (item[1], item[0])):
            total += seconds
            if kept and total > most_s:
                break
            kept[test] = seconds
        return kept

    def _through(self, file: str, wanted: set[str] | None) -> dict[str, float]:
        return {
            test: found["seconds"][test]
            for found in self.known.values()
            for line, tests in found["lines"].get(file, {}).items()
            if wanted is None or line in wanted
            for test in tests
        }


def drawn(repository: Path, room: str, number: int, seed: int) -> list[Fault]:
    """A random sample of a room's faults."""
    files = [file.relative_to(repository) for file in sorted((repository / PACKAGE / room).rglob("*.py"))]
    found = [
        fault for file in files for fault in faults_in(file.as_posix(), (repository / file).read_bytes())
    ]
    return random.Random(f"{seed} {room}").sample(found, min(number, len(found)))


class Verdicts:
    """The test that catches each fault, or an empty text; kept in `verdicts.json`."""

    def __init__(self, copy: Copy, passages: Passages, most_s: float) -> None:
        self._copy, self._passages, self._most_s = copy, passages, most_s
        self._file = copy.folder / "verdicts.json"
        self._known = json.loads(self._file.read_text()) if self._file.exists() else {}

    def of(self, fault: Fault) -> str:
        """What is known of a fault, or found now; what survived is tried again when tests have changed."""
        key = f"{hash_of([self._copy.root / fault.file])} {fault.start} {fault}"
        known = self._known.get(key, {"test": "", "state": ""})
        if not known["test"] and known["state"] != self._passages.state:
            known = {"fault": str(fault), "test": self.find(fault), "state": self._passages.state}
            self._known[key] = known
            self._file.write_text(json.dumps(self._known, indent=1))
            print(f"{'caught' if known['test'] else 'SURVIVED'}: {fault}", flush=True)
        return known["test"]

    def find(self, fault: Fault) -> str:
        """Run the tests through a fault's lines."""
        tests = self._passages.of(fault, self._most_s)
        if not tests:
            return ""
        with self._copy.having(fault):
            said = self._copy.run(list(tests), 3 * sum(tests.values()) + 20, "-x")
        return (said["failed"] or [f"exit code {said['code']}"])[0] if said["code"] != 0 else ""


def table(verdicts: dict[str, list[tuple[Fault, str]]], seed: int) -> str:
    """Shares by room, then the survivors, in Markdown."""
    rows = ["| room | faults | caught | share |", "|---|---|---|---|"]
    survivors = []
    for room, judged in verdicts.items():
        counted = [(fault, test) for fault, test in judged if fault.change not in EQUIVALENT]
        caught = sum(bool(test) for _, test in counted)
        rows.append(f"| {room} | {len(counted)} | {caught} | {caught / max(len(counted), 1):.0%} |")
        survivors += [f"- `{fault}`" for fault, test in counted if not test]
    return "\n".join([f"Seed {seed}", "", *rows, "", "Survivors:", "", *survivors, ""])


def main(words: Sequence[str] | None = None) -> None:
    """Draw, judge, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write, and to go on in")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-n", type=int, default=20, help="faults per room")
    parser.add_argument("--rooms", nargs="+", default=ROOMS, metavar="ROOM")
    parser.add_argument("--most", type=float, default=40, help="seconds of tests per fault")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    for name in IMPORTED_BEFORE:
        importlib.import_module(name)
    gc.freeze()  # what is imported is no garbage of a test
    copy = Copy(asked.repository, asked.output.resolve())
    verdicts = Verdicts(copy, Passages(copy), asked.most)
    samples = {room: drawn(copy.root, room, asked.n, asked.seed) for room in asked.rooms}
    text = table(
        {room: [(fault, verdicts.of(fault)) for fault in faults] for room, faults in samples.items()},
        asked.seed,
    )
    (asked.output / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
