"""The same work on many cases: in this process, or in spawned ones."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import wait
from typing import TypeVar

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
    jobs. `num_processes` 0 or 1: work in this one. `initializer` is called once in every new process.
    Raise a UserError if a process is killed from outside, usually for want of memory.
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
