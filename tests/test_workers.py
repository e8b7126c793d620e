"""Many cases, one process or several: the same results in the same order, and the end when one fails."""

import os
import signal
import time

import pytest

from nnunet_softseg.errors import UserError
from nnunet_softseg.workers import map_jobs


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


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL on Windows")
def test_killed_process_is_a_user_error() -> None:
    with pytest.raises(
        UserError, match=r"cases: a worker process was killed: .*want of memory: use fewer processes"
    ):
        map_jobs(die_at_two, range(6), num_processes=2, progress=False, description="cases")


def test_no_jobs_need_no_process() -> None:
    assert map_jobs(square_late, [], num_processes=4, progress=False, description="nothing") == []
