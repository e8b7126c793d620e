"""Many cases, one process or several: the same results in the same order, and the end when one fails."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY, clean_environment, heed_ctrl_c

from nnunet_softseg.errors import UserError
from nnunet_softseg.io.workers import map_jobs, succeeded, try_jobs


def square_late(number: int) -> int:
    time.sleep(0.02 * (3 - number % 4))  # the first are done last
    return number**2


def fail_at_two(number: int) -> int:
    if number == 2:
        raise UserError("case 2 is broken")
    return number


def die_at_two(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("num_processes", [0, 1, 2])
def test_results_come_in_the_order_of_the_jobs(num_processes: int) -> None:
    results = map_jobs(
        square_late, range(6), num_processes=num_processes, progress=False, description="squares"
    )
    assert results == [0, 1, 4, 9, 16, 25]


@pytest.mark.parametrize("num_processes", [0, 2])
def test_what_a_job_raises_ends_all(num_processes: int) -> None:
    with pytest.raises(UserError, match="case 2 is broken"):
        map_jobs(fail_at_two, range(6), num_processes=num_processes, progress=False, description="cases")


def fail_in_two_ways(number: int) -> int:
    if number == 3:
        raise KeyError("nobody foresaw\nthis")
    return fail_at_two(number)


@pytest.mark.parametrize("num_processes", [0, 2])
def test_a_job_that_fails_stops_no_other(num_processes: int) -> None:
    options = {"num_processes": num_processes, "progress": False, "description": "cases"}
    outcomes = try_jobs(fail_in_two_ways, range(5), lambda number: f"case {number}", **options)
    assert [outcomes[index] for index in (0, 1, 4)] == succeeded(outcomes) == [0, 1, 4]
    assert str(outcomes[2]) == "case 2 is broken"
    assert str(outcomes[3]).startswith("case 3: unexpected KeyError in test_workers.py, line ")
    assert "\n" not in str(outcomes[3])
    with pytest.raises(UserError, match=r"case 2 is broken \(and 1 more of this kind\)"):
        succeeded(outcomes[2:4])


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL on Windows")
def test_a_killed_process_fails_its_job_and_no_other() -> None:
    options = {"num_processes": 2, "progress": False, "description": "cases"}
    outcomes = try_jobs(die_at_two, range(5), lambda number: f"case {number}", **options)
    assert re.match(r"case 2: expected its process to end by itself, found it killed", str(outcomes.pop(2)))
    assert outcomes == [0, 1, 3, 4]
    with pytest.raises(UserError, match=r"cases: expected its process .* for want of memory: free some"):
        map_jobs(die_at_two, [2, 3], **options)


def die_the_first_time(job: tuple[int, Path]) -> int:
    number, mark = job
    if number == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL on Windows")
def test_a_job_that_needs_the_memory_of_others_is_done_alone(tmp_path: Path) -> None:
    jobs = [(number, tmp_path / "killed once") for number in range(4)]
    found = map_jobs(die_the_first_time, jobs, num_processes=2, progress=False, description="cases")
    assert found == [0, 1, 2, 3]


def never_starts() -> None:
    os._exit(1)


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL on Windows")
def test_processes_that_never_start_are_told_once() -> None:
    with pytest.raises(UserError, match=r"expected processes to start, found none that did: use one"):
        map_jobs(
            square_late, range(9), num_processes=2, progress=False, description="x", initializer=never_starts
        )


LONG_RUN = """
import os, sys, time
from pathlib import Path
from nnunet_softseg.io.workers import map_jobs

def work(number):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(60)

if __name__ == "__main__":
    map_jobs(work, range(4), num_processes=2, progress=False, description="long")
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks Linux which processes there are")
def test_no_worker_outlives_a_kill_of_the_process_that_started_it(tmp_path: Path) -> None:
    script, started = tmp_path / "long_run.py", tmp_path / "started"
    script.write_text(LONG_RUN)
    started.mkdir()
    process = subprocess.Popen([sys.executable, str(script), str(started)], env=clean_environment())
    wait_until(lambda: len(list(started.iterdir())) == 2)
    workers = [Path("/proc", path.name) for path in started.iterdir()]
    assert all(worker.is_dir() for worker in workers)

    process.kill()
    process.wait()

    wait_until(lambda: not any(is_running(worker) for worker in workers))


@pytest.mark.skipif(os.name == "nt", reason="no process groups as of a terminal on Windows")
@pytest.mark.parametrize("at_work", [False, True])
def test_ctrl_c_ends_all_at_once_and_the_workers_say_nothing(tmp_path: Path, at_work: bool) -> None:
    script, started = tmp_path / "long_run.py", tmp_path / "started"
    script.write_text(LONG_RUN.replace("    map_jobs(", "    Path(sys.argv[1], 'main').touch(); map_jobs("))
    started.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(script), str(started)],
        env=clean_environment({"PYTHONPATH": str(REPOSITORY)}),
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: len(list(started.iterdir())) == (3 if at_work else 1))
    time.sleep(0 if at_work else 0.15)  # while the workers' Python starts
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate(timeout=20)
    assert process.returncode in (1, -signal.SIGINT)
    assert printed.count("Traceback") == 1, printed
    assert printed.splitlines()[-1] == "KeyboardInterrupt"


def is_running(process: Path) -> bool:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_no_jobs_need_no_process() -> None:
    assert map_jobs(square_late, [], num_processes=4, progress=False, description="nothing") == []
