"""The same work on many cases: in this process, or in spawned ones; a case that fails stops no other."""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.pool import ThreadPool
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from nnunet_softseg.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
_GIVES_WAY = 10
"""Niceness of threads beside a network: a tenth of its share of a core that both want."""
_KILLED = (
    "expected its process to end by itself, found it killed, with no other at work, too, most likely for "
    "want of memory: free some and run the same command again"
)
_NOT_STARTED = (
    "expected processes to start, found none that did: use one (-np 1); a script of your own calls this "
    "below `if __name__ == '__main__':`"
)


def map_jobs(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    num_processes: int,
    progress: bool,
    description: str,
    initializer: Callable[[], None] | None = None,
    if_killed: Callable[[Job], Result] | None = None,
) -> list[Result]:
    """Return the function's result of each job, in the order of the jobs.

    The function is that of a module, so that it can be sent to another process; what it raises stops all
    jobs, but those of `try_jobs`. `num_processes` 0 or 1: work in this one. `initializer` is called once in
    every new process.

    Where a process is killed from outside, usually for want of memory, the jobs that were at work are done
    again, one at a time. `if_killed` gives the result of one that is killed then, too; None: a UserError.
    """
    num_processes = min(num_processes, len(jobs))
    with tqdm(total=len(jobs), desc=description, disable=not progress, unit="case") as bar:
        if num_processes <= 1:
            results = []
            for job in jobs:
                results.append(function(job))
                bar.update()
            return results
        workers = _Workers(function, jobs, initializer, bar)
        return workers.all_results(num_processes, if_killed or partial(_all_stop, description))


def _all_stop(description: str, job: Any) -> Any:
    raise UserError(f"{description}: {_KILLED}")


@dataclass(frozen=True)
class _Workers:
    """Processes that work off some of the jobs, which are known by their place.

    Spawned like nnU-Net's: a fork of a process that runs torch threads can hang.
    """

    function: Callable[[Any], Any]
    jobs: Sequence[Any]
    initializer: Callable[[], None] | None
    bar: Any
    context: BaseContext = field(default_factory=lambda: get_context("spawn"))

    def all_results(self, num_processes: int, if_killed: Callable[[Any], Any]) -> list[Any]:
        """Return the result of each job; those at work when a process is killed are done again, alone."""
        found: dict[int, Any] = {}
        left: Sequence[int] = range(len(self.jobs))
        while left:
            found |= self._results(left, min(num_processes, len(left)))
            unfinished = [index for index in left if index not in found]
            at_work, left = unfinished[:num_processes], unfinished[num_processes:]  # taken in their order
            for index in at_work:
                found |= self._results([index], 1)
                if index not in found:
                    found[index] = if_killed(self.jobs[index])
                    self.bar.update()
        return [found[index] for index in range(len(self.jobs))]

    def _results(self, indices: Sequence[int], num_processes: int) -> dict[int, Any]:
        """Return place -> result of the jobs that were done before a process was killed, or of all.

        Raise a UserError if no process has started.
        """
        started = self.context.Event()
        pool = ProcessPoolExecutor(
            num_processes, self.context, initializer=_start, initargs=(self.initializer, started)
        )
        found: dict[int, Any] = {}
        futures: dict[Future[Any], int] = {}
        try:
            with _deaf_to_ctrl_c(), contextlib.suppress(BrokenProcessPool):
                for index in indices:
                    futures[pool.submit(self.function, self.jobs[index])] = index
            for future in as_completed(futures):
                with contextlib.suppress(BrokenProcessPool):
                    found[futures[future]] = future.result()
                    self.bar.update()
        except KeyboardInterrupt:
            for worker in active_children():
                worker.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        if not found and not started.is_set():
            raise UserError(_NOT_STARTED)
        return found


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
    pool = ThreadPoolExecutor(num_threads, initializer=partial(_beside, initializer))
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


def threads_beside(num_threads: int, initializer: Callable[[], None] | None = None) -> ThreadPool:
    """Return threads that work beside the caller and give way to it; `initializer` is called in each."""
    return ThreadPool(max(1, num_threads), initializer=partial(_beside, initializer))


def _beside(initializer: Callable[[], None] | None) -> None:
    """Start a thread that gives way: a layer of a network is done when the last of its threads is.

    Without it, a forward pass waits at every layer for a core that reads or writes another case.
    """
    if sys.platform == "linux":  # elsewhere niceness is that of the whole process
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _GIVES_WAY)
    if initializer is not None:
        initializer()


def try_jobs(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    name: Callable[[Job], str],
    **options: Any,
) -> list[Result | UserError]:
    """Return as `map_jobs` the result of each job, or why it has none; a failure stops no other job.

    `name` of a job stands in front of an error that nobody foresaw, and of that of a job whose process is
    killed; options are those of `map_jobs`.
    """
    named = [(name(job), job) for job in jobs]
    return map_jobs(partial(_attempt, function), named, if_killed=_killed, **options)


def _killed(named: tuple[str, Any]) -> UserError:
    return UserError(f"{named[0]}: {_KILLED}".removeprefix(": "))


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


def _start(initializer: Callable[[], None] | None, started: Event) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it could not be blocked
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer is not None:
        initializer()
    started.set()


def _end_with_parent() -> None:
    """End this process when the one that started it is killed: it would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
