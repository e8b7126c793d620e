"""Command for many people at once: workflow."""

from dataclasses import dataclass, replace

from nnunet_softseg.cli.command import Pairs, Words, option, pair, print_warnings, required
from nnunet_softseg.cli.prediction import PredictingCommand


@dataclass
class Workflow(PredictingCommand):
    """Predict and measure a whole BIDS folder in batches, here or on a cluster, and report on all people.

    Needs Snakemake: pip install "nnunet-softseg[workflow]". Each job does the participants of one batch with
    nnunet-softseg-bids, and loads the model once; with -g a last one measures the maps. In the end
    group_csa.tsv and group.html are gathered. Logs are in OUT/.workflow.

    A repeated call does only what is missing. An image that fails is named, and stops no other; a job that
    ends for want of memory or time is repeated once with twice as much.

    Example:
      nnunet-softseg workflow -i BIDS -o OUT -m MODEL --profile slurm --cores 50 --batch-size 20

    Exit code 0: all there. 2: a mistake, or images or batches that failed.
    """

    goes_on = True
    bids: str = required("-i BIDS", "folder of the images")
    output: str = required("-o OUT", "folder of the derivatives, made if missing")
    profile: str = option(
        "--profile NAME", "local, slurm, or a folder with a profile of Snakemake's", "local"
    )
    cores: int = option("--cores N", "cores to use here; on a cluster, jobs at the same time", 2)
    batch_size: int | None = option(
        "--batch-size N", "participants a job; if not given, 250 here, 20 on a cluster"
    )
    references: str | None = option(
        "-g REF",
        "folder of soft labels or masks to measure the maps against, as evaluate does, into OUT/evaluation",
    )
    threads: int = option("--threads N", "cores of a job", 2)
    mem_mb: int = option("--memory MB", "memory of a job in MB; twice as much when it is repeated", 8000)
    minutes: int = option(
        "--minutes N", "time limit of a job on a cluster; twice as long when it is repeated", 240
    )
    resources: Pairs = option(
        "--resource NAME=VALUE",
        "such as slurm_partition=cpu, slurm_account=NAME",
        (),
        action="append",
        type=pair,
    )
    participants: Words = option("--participant-label LABEL", "participants; all if not given", ())

    def run(self) -> int:
        from nnunet_softseg.evaluation.cohort.workflow import Jobs, run_workflow

        jobs, options = self.split(Jobs)
        jobs = replace(jobs, resources=dict(self.resources))
        words = ["-device", options.pop("device"), "-np", str(self.threads)]
        words += ["--backend", backend] if (backend := options.pop("backend")) else []
        for name in ("trust_model", "no_qc"):
            words += [f"--{name.replace('_', '-')}"] if options.pop(name) else []
        words += ["--localize", self.localize] if self.localize else []
        for name in ("largest_piece", "discard_implausible", "calibrate"):
            words += [f"--{name.replace('_', '-')}"] if options[name] else []
        report = run_workflow(jobs=jobs, words=words, **options)
        print_warnings(report.warnings)
        print(report.as_text())
        return 2 if report.failed or report.failed_batches else 0
