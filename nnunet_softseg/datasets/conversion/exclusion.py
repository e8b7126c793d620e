"""What is left out of a dataset on request: subjects, sessions, images; by name or pattern."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from nnunet_softseg.datasets.conversion.list_file import YAML_ENDINGS, all_values, load_lines, load_structure
from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.io.bids import parse_bids_name
from nnunet_softseg.io.nifti import without_nifti_ending

_STRUCTURED = (".json", *YAML_ENDINGS)
_LIST_ENDINGS = (".txt", *_STRUCTURED)


def read_exclusions(arguments: Iterable[str]) -> tuple[str, ...]:
    """Return the patterns that were asked for, once each.

    Args:
        arguments: names or patterns (`*`, `?`, `[]`), or files of them: one a line with `#` comments, or all
            values of a JSON or YAML file.

    Raises:
        UserError: if a file is missing or unreadable.
    """
    patterns: list[str] = []
    for argument in arguments:
        file = Path(argument)
        if file.is_file():
            structured = file.suffix.lower() in _STRUCTURED
            patterns += all_values(load_structure(file)) if structured else load_lines(file)
        elif file.suffix.lower() in _LIST_ENDINGS:
            raise UserError(f"{file}: expected a list of what to leave out, found no such file")
        else:
            patterns.append(argument)
    return tuple(dict.fromkeys(pattern.strip() for pattern in patterns))


@dataclass
class Exclusion:
    """Patterns, and which of them were of use.

    A pattern names a subject (`sub-01`), a session (`sub-01_ses-1`), a case, an image with or without ending,
    or its path in the BIDS folder. Case matters.
    """

    patterns: Sequence[str]
    used: set[str] = field(default_factory=set)

    def covers(self, image: Path, bids: Path, case_ids: Iterable[str]) -> bool:
        """Say whether an image is to be left out.

        Args:
            image: inside `bids`.
            bids: root of the images.
            case_ids: what the image is called as a case; none if its name is not BIDS.
        """
        names = {*_names(image, bids), *case_ids}
        hits = {pattern for pattern in self.patterns if any(fnmatchcase(name, pattern) for name in names)}
        self.used |= hits
        return bool(hits)

    def warnings(self) -> list[str]:
        """Say which patterns matched nothing: a misspelt one would let through what it was to stop."""
        unused = [pattern for pattern in self.patterns if pattern not in self.used]
        if not unused:
            return []
        return [
            f"--exclude matched nothing for {examples(unused)}: expected subjects (sub-01), sessions, cases "
            "(sub-01_T2w), file names, or patterns (sub-site*); nothing is left out for them"
        ]


def _names(image: Path, bids: Path) -> set[str]:
    path = image.relative_to(bids)
    names = {path.as_posix(), image.name, without_nifti_ending(image.name), path.parts[0]}
    parsed = parse_bids_name(image.name)
    return names | ({parsed.person} if parsed else set())
