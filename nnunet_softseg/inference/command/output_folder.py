"""The folder of predictions: which cases are done, which model made them, whether one may write there."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_softseg import __version__
from nnunet_softseg.datasets.raw_dataset import foreground_labels, load_json
from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.inference.command.images import ImageCase
from nnunet_softseg.inference.command.model import Model
from nnunet_softseg.io.atomic import make_folder, remove_abandoned, write_json
from nnunet_softseg.io.case_files import SOFT_FOLDER, soft_label_file

RUN = "softseg_predict.json"


@dataclass(frozen=True)
class OutputFolder:
    """Where predictions go.

    Attributes:
        path: of the folder.
        file_ending: of label maps.
        labels: of which there is a soft map each.
    """

    path: Path
    file_ending: str
    labels: tuple[int, ...]

    def truncated(self, case_id: str) -> str:
        """Return the path of a case's files without their endings, as nnU-Net's export takes it."""
        return str(self.path / case_id)

    def is_done(self, case: ImageCase) -> bool:
        """Return whether a case is written; its label map comes last."""
        soft = (soft_label_file(self.path / SOFT_FOLDER, case.case_id, label) for label in self.labels)
        return self._label_map(case).is_file() and all(file.is_file() for file in soft)

    def _label_map(self, case: ImageCase) -> Path:
        return self.path / f"{case.case_id}{self.file_ending}"

    def refuse_inputs(self, cases: Iterable[ImageCase], source: Path) -> None:
        """Keep predictions out of the folder of the images, where the next call would predict them.

        Raises:
            UserError: if they would get there.
        """
        folders = {file.parent.resolve() for case in cases for file in case.files} | {source.resolve()}
        if self.path.resolve() in folders:
            raise UserError(
                f"-o {self.path}: expected a folder without the images to predict, found them there: give "
                f"another, such as {self.path / 'softseg'}"
            )

    def start(self, cases: Sequence[ImageCase], made_by: dict[str, Any], *, overwrite: bool) -> None:
        """Make the folder and write what the predictions in it are made by.

        Args:
            cases: to predict.
            made_by: decides the values of a prediction.
            overwrite: predictions of another model may be replaced.

        Raises:
            UserError: if it cannot be written, or holds predictions made by something else.
        """
        run_file = self.path / RUN
        if not overwrite:
            self._refuse_others(run_file, cases, made_by)
        make_folder(self.path / SOFT_FOLDER)
        for folder in (self.path, self.path / SOFT_FOLDER):
            remove_abandoned(folder)
        write_json(run_file, {"made_by": f"nnunet-softseg {__version__} predict", **made_by})

    def _refuse_others(self, run_file: Path, cases: Sequence[ImageCase], made_by: dict[str, Any]) -> None:
        before = load_json(run_file) if run_file.is_file() else {}
        done = [case.case_id for case in cases if self._label_map(case).exists()]
        changed = [key for key, value in made_by.items() if before.get(key) != value]
        of_others = bool(before) and any(self.path.glob(f"*{self.file_ending}"))
        if (of_others or done) and changed:
            what = (
                f"{RUN} of another {', '.join(changed)}" if before else f"{examples(done)} of unknown origin"
            )
            raise UserError(
                f"{self.path}: expected an empty folder, or predictions of this model to go on with, found "
                f"{what}: give another folder, or --overwrite"
            )


def output_folder(path: Path, model: Model) -> OutputFolder:
    """Return the folder of a model's predictions; nothing is written yet.

    Raises:
        UserError: if it is a file.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"-o {path}: expected a folder, found a file: give a folder")
    labels = foreground_labels(model.dataset_json)
    return OutputFolder(path, model.dataset_json["file_ending"], labels)
