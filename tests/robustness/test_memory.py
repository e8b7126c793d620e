"""One process that predicts again and again: its memory is bounded."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, clean_environment
from small_calls import MODEL

EARLY, LATE = 20, 200
MORE_BYTES = 50e6
SCRIPT = """
import os, sys
from pathlib import Path
from nnunet_softseg import predict

def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

for number in range(1, int(sys.argv[3]) + 1):
    report = predict(sys.argv[1], sys.argv[2], overwrite=True, progress=False)
    assert len(report.predicted) == 1
    if number == int(sys.argv[4]):
        early = resident_bytes()
print(early, resident_bytes())
"""


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory of a process")
def test_memory_of_many_predictions_is_that_of_a_few(tmp_path: Path) -> None:
    arguments = [str(MODEL / "image.nii.gz"), str(tmp_path / "out"), str(LATE), str(EARLY)]
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env=clean_environment({"PYTHONPATH": str(REPOSITORY)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    early, late = map(int, process.stdout.split()[-2:])
    assert late - early < MORE_BYTES
