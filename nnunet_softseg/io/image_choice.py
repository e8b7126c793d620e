"""The images of a BIDS folder that a user has chosen: --exclude, --contrasts, --distinguish-by.

chosen = select_images(list_bids(bids), exclude=Exclusion(("sub-03", "*acq-ax*")), contrasts=("T2w",))
chosen.images[0].case_id                          # "sub-01_T2w"
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.io.case_files import BidsName, ImageFiles, Reason, parse_bids_name
from nnunet_softseg.io.formats import is_nifti, without_nifti_ending

YAML_ENDINGS = (".yml", ".yaml")
_STRUCTURED = (".json", *YAML_ENDINGS)


# Files of names: JSON, YAML, or one name a line


def load_text(file: Path) -> str:
    """Return the content of a text file in UTF-8; raise a UserError if it is none, or cannot be read."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
        raise UserError(f"{file}: expected a text file, found: {reason}: check the path") from error


def load_structure(file: Path) -> Any:
    """Return the content of a JSON or YAML file; in YAML every value is a string, `01` too.

    Raise a UserError if it cannot be read, or is neither.
    """
    text = load_text(file)
    try:
        if file.suffix.lower() == ".json":
            return json.loads(text)
        import yaml  # only here: a prediction reads none

        try:
            return yaml.load(text, Loader=yaml.BaseLoader)
        except yaml.YAMLError as error:
            raise ValueError(error) from error
    except ValueError as error:
        what = " ".join(str(error).split())
        raise UserError(f"{file}: expected JSON (.json) or YAML, found: {what}: repair it") from error


def all_values(structure: Any) -> list[str]:
    """Return every value of nested lists and mappings as a string; keys are not values."""
    if isinstance(structure, Mapping):
        return all_values(list(structure.values()))
    if isinstance(structure, list):
        return [value for part in structure for value in all_values(part)]
    return [str(structure)] if structure not in (None, "") else []


def read_exclusions(arguments: Iterable[str]) -> tuple[str, ...]:
    """Return the patterns that were asked for, once each.

    The arguments are names or patterns (`*`, `?`, `[]`), or files of them: one a line with `#` comments, or
    all values of a JSON or YAML file. Raise a UserError if a file is missing or unreadable.
    """
    patterns: list[str] = []
    for argument in arguments:
        file = Path(argument)
        if not file.is_file() or is_nifti(file.name):  # the path of an image is a pattern
            if file.suffix.lower() in (".txt", *_STRUCTURED):
                raise UserError(f"{file}: expected a list of what to leave out, found no such file")
            patterns.append(argument)
        elif file.suffix.lower() in _STRUCTURED:
            patterns += all_values(load_structure(file))
        else:
            lines = (line.partition("#")[0].strip() for line in load_text(file).splitlines())
            patterns += filter(None, lines)
    return tuple(dict.fromkeys(pattern.strip() for pattern in patterns))


# The choice


@dataclass
class Exclusion:
    """Patterns (`*`, `?`, `[]`) of images to leave out, and which of them were of use.

    A pattern names a subject (`sub-01`), a session (`sub-01_ses-1`), a case, an image with or without ending,
    or its path in the folder. Case matters.
    """

    patterns: Sequence[str] = ()
    used: set[str] = field(default_factory=set)

    def covers(self, image: Path, root: Path, case_ids: Iterable[str] = ()) -> bool:
        """Say whether an image inside `root` is to be left out, also by its names as a case."""
        path, parsed = image.relative_to(root), parse_bids_name(image.name)
        names = {path.as_posix(), image.name, without_nifti_ending(image.name), path.parts[0], *case_ids}
        names |= {parsed.subject, parsed.person} if parsed else set()
        hits = {pattern for pattern in self.patterns if any(fnmatchcase(name, pattern) for name in names)}
        self.used |= hits
        return bool(hits)

    def warnings(self) -> list[str]:
        """Say which patterns matched nothing: a misspelt one would let through what it was to stop."""
        unused = [pattern for pattern in self.patterns if pattern not in self.used]
        text = (
            f"--exclude matched nothing for {examples(unused)}: expected subjects (sub-01), sessions, cases "
            "(sub-01_T2w), file names, or patterns (sub-site*); nothing is left out for them"
        )
        return [text] if unused else []


@dataclass(frozen=True)
class BidsImage:
    """An image of a BIDS folder and its name taken apart; contrast: as asked for, see `select_images`."""

    path: Path
    name: BidsName
    contrast: str

    @property
    def case_id(self) -> str:
        """`<subject>[_<session>]_<contrast>`."""
        return f"{self.name.person}_{self.contrast}"


@dataclass(frozen=True)
class ChosenImages:
    """The images that are left of a BIDS folder, in the order of the listing, and those left out.

    `contrasts` are those of all images that are not excluded, those not asked for included.
    """

    images: tuple[BidsImage, ...]
    contrasts: frozenset[str]
    passed_over: Mapping[Path, Reason]

    def because(self, reason: Reason) -> list[Path]:
        """Return the files passed over for one reason."""
        return [path for path, why in self.passed_over.items() if why is reason]


def select_images(
    listing: ImageFiles,
    *,
    exclude: Exclusion,
    contrasts: Sequence[str] | None = None,
    distinguish_by: Sequence[str] = (),
    contrast_of: Callable[[BidsName], str | None] = lambda name: name.contrast,
) -> ChosenImages:
    """Return the images of a BIDS folder that a user has chosen.

    The BIDS entities `distinguish_by` make two contrasts of one, `("acq",)`: `acq-sag_T2w`, `acq-ax_T2w`.
    `contrast_of` returns None for a name of no contrast that counts. Raise a UserError if there is no image
    of a contrast that is asked for.
    """
    images, passed_over = [], dict(listing.passed_over)
    for path in listing.files:
        name = parse_bids_name(path.name)
        image = None
        if name and (contrast := contrast_of(name)):
            image = BidsImage(path, name, name.contrast_name(contrast, distinguish_by))
        reason = _reason_against(path, name, image, listing.root, exclude)
        if reason:
            passed_over[path] = reason
        elif image:
            images.append(image)
    there = {image.contrast for image in images}
    wanted = there if contrasts is None else set(contrasts)
    if wanted - there:
        unknown = ", ".join(contrast for contrast in contrasts or () if contrast not in there)
        raise UserError(
            f"{listing.root}: no image of contrast {unknown}: there are {', '.join(sorted(there))}: correct "
            "--contrasts"
        )
    passed_over |= {image.path: Reason.OTHER_CONTRAST for image in images if image.contrast not in wanted}
    chosen = tuple(image for image in images if image.contrast in wanted)
    return ChosenImages(chosen, frozenset(there), passed_over)


def _reason_against(
    path: Path, name: BidsName | None, image: BidsImage | None, root: Path, exclude: Exclusion
) -> Reason | None:
    if exclude.covers(path, root, [image.case_id] if image else []):
        return Reason.EXCLUDED
    if name is None:
        return Reason.MISNAMED
    # A file that was moved to another person's folder would mix two people.
    if path.relative_to(root).parts[:-2] != tuple(filter(None, (name.subject, name.session))):
        return Reason.MISPLACED
    return None if image else Reason.NO_CONTRAST
