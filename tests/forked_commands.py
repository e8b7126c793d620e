"""Commands as processes that start at once: a server that has imported all of it forks one for each call.

A new Python would spend most of its time on imports, and most kills would hit these.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
BIDS_APP = "nnunet-softseg-bids"
IMPORTED_WHEN_THEY_RUN = (
    "nnunet_softseg.datasets.conversion",
    "nnunet_softseg.evaluation.cohort.participants",
    "nnunet_softseg.evaluation.compare",
    "nnunet_softseg.evaluation.drift",
    "nnunet_softseg.inference.nnunet_patches",
    "nnunet_softseg.inference.qc_page",
    "nnunet_softseg.labels.contrasts.make_gt",
    "nnunet_softseg.labels.contrasts.qc_page",
    "nnunet_softseg.labels.raters",
    "nnunet_softseg.preprocessing.preparation",
    "nnunetv2.inference.predict_from_raw_data",
)


@dataclass(frozen=True)
class Ended:
    """How a command has ended: exit code, below 0 the signal that ended it, and all that it has printed."""

    code: int
    said: str


class ForkedCommands:
    """The server, from the test's side; several commands may be at work."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "server.log"
        self._logs: dict[int, Path] = {}
        self._number = 0
        path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0", **dict.fromkeys(THREADS, "1")}
        self._errors = self.log.open("ab")
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        self._answer()  # it is ready

    def start(self, words: Sequence[str], environment: dict[str, str]) -> int:
        """Start a command and return its process id."""
        self._number += 1
        log = self.log.with_name(f"{self._number}.log")
        self._ask({"words": list(words), "environment": environment, "log": str(log)})
        pid = int(self._answer())
        self._logs[pid] = log
        return pid

    def wait(self, pid: int) -> Ended:
        """Return how the command has ended."""
        self._ask({"wait": pid})
        code = int(self._answer())
        return Ended(code, self._logs.pop(pid).read_text(encoding="utf-8", errors="replace"))

    def run(self, words: Sequence[str], environment: dict[str, str]) -> Ended:
        """Run a command to its end."""
        return self.wait(self.start(words, environment))

    def kill(self, pid: int) -> Ended:
        """End the command and its workers as the system would for want of memory; return as `wait`."""
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(pid, signal.SIGKILL)
        return self.wait(pid)

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin
        self._server.stdin.close()
        try:
            self._server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._server.kill()
        self._errors.close()

    def _ask(self, request: dict[str, Any]) -> None:
        assert self._server.stdin
        print(json.dumps(request), file=self._server.stdin, flush=True)

    def _answer(self) -> str:
        assert self._server.stdout
        line = self._server.stdout.readline()
        assert line, f"the server of commands is gone: {self.log.read_text(errors='replace')[-2000:]}"
        return line


def _serve() -> None:
    for module in IMPORTED_WHEN_THEY_RUN:
        importlib.import_module(module)
    importlib.import_module("torch").set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
            continue
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            _run(request, write)
        os.close(write)
        os.read(read, 1)  # it is the head of its own group, and can be killed as one
        os.close(read)
        print(pid, file=answers, flush=True)
    os._exit(0)  # all that was imported would take seconds to be taken down


def _run(request: dict[str, Any], ready: int) -> None:
    from nnunet_softseg import cli
    from nnunet_softseg.cli import bids_app

    os.setsid()
    os.write(ready, b".")
    os.close(ready)
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for target, source in ((0, nothing), (1, output), (2, output)):
        os.dup2(source, target)
    os.environ.update(request["environment"])
    program, words = cli.main, request["words"]
    if words[0] == BIDS_APP:
        program, words = bids_app.main, words[1:]
    code = 1
    try:
        code = program(words)
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
