"""The image files in a folder or a BIDS tree: those taken, and those passed over, each with its reason."""

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.io.case_names import IMAGE_FOLDERS
from nnunet_softseg.io.nifti import NIFTI_ENDINGS, is_nifti

SOFT_FOLDER = "soft"
"""The folder of soft maps, `<case>_<label>.nii.gz`, in a folder of predictions."""
REPORT = "softseg.json"
"""What predictions say about themselves, in the same folder."""


class Reason(enum.Enum):
    """Why a file was passed over; the words are those of reports."""

    HIDDEN = "hidden"
    NOT_NIFTI = "not NIfTI"
    OTHER_FOLDER = f"not in {' or '.join(IMAGE_FOLDERS)}"
    MISNAMED = "not a BIDS name"
    MISPLACED = "of another subject or session by its folder"
    EXCLUDED = "excluded"
    NO_CONTRAST = "not a contrast of this layout"
    OTHER_CONTRAST = "of another contrast"
    NO_SOFT_LABEL = "without a soft label"


@dataclass(frozen=True)
class ImageFiles:
    """The NIfTI files of a folder (or the one file `root`), sorted; the others, and why not taken."""

    root: Path
    files: tuple[Path, ...]
    passed_over: Mapping[Path, Reason] = field(default_factory=dict)

    @property
    def is_one_file(self) -> bool:
        """Whether a file was given, and no folder."""
        return self.files == (self.root,)

    def relative(self, file: Path) -> str:
        """Return the path of a file inside the folder."""
        return file.name if self.is_one_file else file.relative_to(self.root).as_posix()


def list_files(
    root: Path,
    *,
    subfolders: bool = True,
    expected: str = f"files that end in {' or '.join(NIFTI_ENDINGS)}",
    remedy: str = "check the path",
) -> ImageFiles:
    """Return the NIfTI files in a folder, or the one file; `expected` and `remedy` are parts of the message.

    Raise a UserError if there is nothing of that name, no NIfTI file in it, or it is a file of another kind.
    """
    if root.is_file():
        if not is_nifti(root.name):
            raise UserError(f"{root}: expected a folder, or a file that ends in {' or '.join(NIFTI_ENDINGS)}")
        return ImageFiles(root, (root,))
    if not root.is_dir():
        raise UserError(f"{root}: expected a folder with NIfTI files, found nothing: check the path")
    try:
        found = sorted(root.rglob("*") if subfolders else root.iterdir())
    except OSError as error:
        raise UserError(f"{root}: cannot be listed: {error.strerror or error}") from error
    listing = _sort_out(root, [path for path in found if not path.is_dir()])
    if not listing.files:
        others = [listing.relative(path) for path in listing.passed_over]
        listed = f" ({examples(others)})" if others else ""
        raise UserError(
            f"{root}: expected {expected}, found 0 NIfTI files and {len(others)} others{listed}: {remedy}"
        )
    return listing


def list_bids(bids: Path) -> ImageFiles:
    """Return the images in `sub-*/[ses-*/]anat` and `dwi`; other files of the subjects are passed over.

    Raise a UserError if there is no such folder or no image in it.
    """
    if not bids.is_dir():
        raise UserError(f"{bids}: expected a BIDS folder, found {'a file' if bids.exists() else 'nothing'}")
    found = sorted(path for subject in bids.glob("sub-*") for path in subject.rglob("*"))
    listing = _sort_out(bids, [path for path in found if is_nifti(path.name)], _is_image_folder)
    if not listing.files:
        raise UserError(f"{bids}: expected images like sub-01/anat/sub-01_T2w.nii.gz, found none")
    return listing


def is_bids(folder: Path) -> bool:
    """Return whether a folder has images of subjects in it, `sub-*/[ses-*/]anat` or `dwi`."""
    places = (place for subject in folder.glob("sub-*") for place in (subject, *subject.glob("ses-*")))
    return any((place / name).is_dir() for place in places for name in IMAGE_FOLDERS)


def _is_image_folder(parts: Sequence[str]) -> bool:
    _, *session, folder = parts if len(parts) > 1 else (*parts, "", "")
    return folder in IMAGE_FOLDERS and (not session or (len(session) == 1 and session[0].startswith("ses-")))


def _sort_out(
    root: Path, paths: Iterable[Path], is_wanted: Callable[[Sequence[str]], bool] = lambda _: True
) -> ImageFiles:
    files, passed_over = [], {}
    for path in paths:
        parts = path.relative_to(root).parts
        if any(part.startswith(".") for part in parts):
            passed_over[path] = Reason.HIDDEN
        elif not is_nifti(path.name):
            passed_over[path] = Reason.NOT_NIFTI
        elif not is_wanted(parts[:-1]):
            passed_over[path] = Reason.OTHER_FOLDER
        else:
            files.append(path)
    return ImageFiles(root, tuple(files), passed_over)
