"""Jobs of commands, of which one kills its own process; what they need is imported in the worker."""

import os
import signal
from typing import Any

SUBJECT, CASE = "sub-01", "sub-01_T2w"


def make_subject(job: Any) -> Any:
    from nnunet_softseg.labels.contrasts.subject import make_subject

    return make_subject(_or_die(job, job.person == SUBJECT))


def fuse_case(job: Any) -> Any:
    from nnunet_softseg.labels.raters.case import fuse_case

    return fuse_case(_or_die(job, job.case_id == CASE))


def measure_case(job: Any) -> Any:
    from nnunet_softseg.evaluation.measuring import measure_case

    return measure_case(_or_die(job, job.case.case_id == CASE))


def _or_die(job: Any, die: bool) -> Any:
    if die:
        os.kill(os.getpid(), signal.SIGKILL)
    return job
