"""The same work on many cases: in this process, or in spawned ones; a case that fails stops no other."""

import contextlib
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from nnunet_softseg.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


def map_jobs(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    num_processes: int,
    progress: bool,
    description: str,
    initializer: Callable[[], None] | None = None,
) -> list[Result]:
    """Return the function's result of each job, in the order of the jobs.

    The function is that of a module, so that it can be sent to another process; what it raises stops all
    jobs, but those of `try_jobs`. `num_processes` 0 or 1: work in this one. `initializer` is called once in
    every new process. Raise a UserError if a process is killed from outside, usually for want of memory.
    """
    num_processes = min(num_processes, len(jobs))
    with tqdm(total=len(jobs), desc=description, disable=not progress, unit="case") as bar:
        if num_processes <= 1:
            results = []
            for job in jobs:
                results.append(function(job))
                bar.update()
            return results
        # Spawned like nnU-Net's: a fork of a process that runs torch threads can hang.
        pool = ProcessPoolExecutor(
            num_processes, mp_context=get_context("spawn"), initializer=_start, initargs=(initializer,)
        )
        try:
            with _deaf_to_ctrl_c():
                futures = [pool.submit(function, job) for job in jobs]
            for future in as_completed(futures):
                future.result()
                bar.update()
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise UserError(
                f"{description}: a worker process was killed: expected {num_processes} processes to finish, "
                "found one dead, most likely for want of memory: use fewer processes (-np), what is done is "
                "kept"
            ) from error
        except KeyboardInterrupt:
            for worker in active_children():
                worker.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach, not even while they start: this one ends them.

    Each would print a traceback of its own. One that comes meanwhile is delivered to this process afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def map_ahead(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    *,
    num_threads: int,
    initializer: Callable[[], None] | None = None,
) -> Iterator[Future[Any]]:
    """Yield the future of each job, in order; threads work them off ahead of the caller.

    At most `num_threads` results wait for the caller beside the one it has. The function must not hold
    Python's lock all the time, or nothing is gained. `initializer` is called once in every thread.
    """
    num_threads = max(1, num_threads)
    pool = ThreadPoolExecutor(num_threads, initializer=initializer)
    waiting: deque[Future[Any]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(function, job))
            if len(waiting) > num_threads:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:  # where the caller stops early, too
        pool.shutdown(wait=False, cancel_futures=bool(waiting))


def try_jobs(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    name: Callable[[Job], str],
    **options: Any,
) -> list[Result | UserError]:
    """Return as `map_jobs` the result of each job, or why it has none; a failure stops no other job.

    `name` of a job stands in front of an error that nobody foresaw; options are those of `map_jobs`.
    """
    return map_jobs(partial(_attempt, function), [(name(job), job) for job in jobs], **options)


def _attempt(function: Callable[[Job], Result], named: tuple[str, Job]) -> Result | UserError:
    name, job = named
    try:
        return function(job)
    except Exception as error:
        return as_user_error(error, name)


def succeeded(outcomes: Sequence[Result | UserError]) -> list[Result]:
    """Return the results of jobs that have one.

    Raises:
        UserError: if there is none: that of the first job.
    """
    errors = [outcome for outcome in outcomes if isinstance(outcome, UserError)]
    if errors and len(errors) == len(outcomes):
        more = f" (and {len(errors) - 1} more of this kind)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0]}{more}")
    return [outcome for outcome in outcomes if not isinstance(outcome, UserError)]


def as_user_error(error: Exception, name: str = "") -> UserError:
    """Return what stopped the work on a case in one line, a `UserError` as it is."""
    if isinstance(error, UserError):
        return error
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}, line {place.lineno}"
    said = f"unexpected {type(error).__name__} in {where}: {error}: look at its files, or report this"
    return UserError(" ".join(f"{name}: {said}".removeprefix(": ").split()))


def _start(initializer: Callable[[], None] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it could not be blocked
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer is not None:
        initializer()


def _end_with_parent() -> None:
    """End this process when the one that started it is killed: it would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
