"""A SLURM of one node on this machine, from the packages of the distribution unpacked into a folder."""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "libhwloc15", "libmunge2")
COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "srun", "sacct")
CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
PluginDir={libraries}/slurm-wlm
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def slurm_node(folder: Path) -> Iterator[Path]:
    """Give a folder of SLURM's commands while its daemons run; skip the test where they cannot."""
    folder.mkdir()
    root = _unpacked(folder)
    libraries = next(root.glob("usr/lib/*-linux-gnu"))
    host = socket.gethostname().split(".")[0]
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(host=host, folder=folder, libraries=libraries, ports=_free_ports())
    )
    # SLURM_* does not outlive Snakemake's plugin: each command sets it anew.
    commands = folder / "commands"
    for made in (commands, folder / "state", folder / "spool"):
        made.mkdir()
    environment = f"export SLURM_CONF={configuration} LD_LIBRARY_PATH={libraries}:{libraries}/slurm-wlm\n"
    for name, program in [(name, root / "usr/bin" / name) for name in COMMANDS] + [
        (name, root / "usr/sbin" / f"{name}-wlm") for name in ("slurmctld", "slurmd")
    ]:
        (commands / name).write_text(f'#!/bin/sh\n{environment}exec {program} "$@"\n')
        (commands / name).chmod(0o755)
    stepd = str(root / "usr/sbin/slurmstepd-wlm")
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for words in (["slurmctld", "-D"], ["slurmd", "-D", "-d", stepd]):
            with (folder / f"{words[0]}.log").open("wb") as log:
                words[0] = str(commands / words[0])
                daemons.append(subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True))
        _wait_for_idle(commands, folder)
        yield commands
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=30)


def _unpacked(folder: Path) -> Path:
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        pytest.skip("SLURM's packages are those of Debian")
    fetched = subprocess.run(
        ["apt-get", "download", *PACKAGES],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    if fetched.returncode:
        pytest.skip(f"SLURM's packages cannot be fetched: {fetched.stderr.strip().splitlines()[-1]}")
    root = folder / "root"
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
    return root


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        for each in (one, two):
            each.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


def _wait_for_idle(commands: Path, folder: Path) -> None:
    for _ in range(60):
        state = subprocess.run(
            [str(commands / "sinfo"), "-h", "-o", "%t"], capture_output=True, text=True, check=False
        )
        if state.stdout.strip() == "idle":
            return
        time.sleep(1)
    logs = " ".join(log.read_text()[-300:] for log in folder.glob("slurm*d.log"))
    pytest.skip(f"SLURM does not start here: {' '.join(logs.split())}")
