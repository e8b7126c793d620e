"""A stand-in for nnU-Net that imports at once, to break things around it."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

from conftest import REPOSITORY, clean_environment

HOOK = REPOSITORY / "hook" / "_nnunet_softseg_hook.py"
STAND_IN = """
def recursive_find_python_class(folder, class_name, current_module, base_folder=None, verbose=False):
    "The original."
    return ("original", folder, class_name, current_module)
"""


class Site:
    """A folder with a stand-in for nnU-Net, our hook and our package, for a Python without site-packages.

    `-S` keeps Python from reading start-up files. Where one is wanted, the first line of the code plays it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("nnunetv2/__init__.py", "")
        self.write("nnunetv2/utilities/__init__.py", "")
        self.write("nnunetv2/utilities/find_class_by_name.py", STAND_IN)
        for name in ("__init__.py", "errors.py", "registry.py"):
            self.write(
                f"nnunet_softseg/{name}", (REPOSITORY / "nnunet_softseg" / name).read_text(encoding="utf-8")
            )
        self.write("nnunet_softseg/training/__init__.py", "")
        self.write("nnunet_softseg/training/trainer.py", "class nnUNetTrainerSoftSeg: pass\n")
        shutil.copy(HOOK, folder)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def run(
        self,
        code: str,
        *,
        start: str = "import _nnunet_softseg_hook; _nnunet_softseg_hook.install()",
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-S", "-c", f"{start}\n{textwrap.dedent(code)}"],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env=clean_environment({"PYTHONPATH": str(self.folder), **env}),
        )

    def printed(self, code: str, **options: str) -> str:
        process = self.run(code, **options)
        assert process.returncode == 0, process.stderr
        return process.stdout.strip()
