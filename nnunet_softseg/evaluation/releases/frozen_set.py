"""The frozen set of people: unchanged by its manifest, unseen by the releases; the order of releases."""

import re
from collections.abc import Collection
from pathlib import Path

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.evaluation.cases import training_cases
from nnunet_softseg.io.case_files import Case, folds_trained_on
from nnunet_softseg.io.formats import without_nifti_ending
from nnunet_softseg.io.results import load_json, sha256

_LINE = re.compile(r"^([0-9a-f]{64}) [ *](.+)$", re.IGNORECASE)
_NUMBERS = r"(?:(?:v|r|release)[-_]?(\d+(?:\.\d+)*)|(\d+(?:\.\d+)+))"
_VERSION = re.compile(rf"(?:^|[^a-z0-9.]){_NUMBERS}(?![a-z0-9])", re.IGNORECASE)


def check_manifest(file: Path, subjects: Collection[str]) -> int:
    """Return how many files of the frozen set are as their SHA-256 in a manifest says.

    The manifest is what `sha256sum` writes, a line `<SHA-256>  <path>` for each file, or JSON
    {path: SHA-256}; paths begin at its folder.

    Raises:
        UserError: if it cannot be read, a file is missing or changed, or its subjects are not those compared.
    """
    listed = _read_manifest(file)
    missing = [name for name in listed if not (file.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{file}: expected {len(listed)} files beside it, found {len(missing)} missing: "
            f"{examples(missing)}: restore the frozen set"
        )
    changed = [name for name, known in listed.items() if sha256(file.parent / name) != known.lower()]
    if changed:
        raise UserError(
            f"{file}: expected files with the SHA-256 listed, found {len(changed)} changed: "
            f"{examples(changed)}: restore the frozen set, or freeze a new one for both releases"
        )
    known = {Case.from_name(without_nifti_ending(Path(name).name)).subject for name in listed}
    left_out, strange = sorted(known - {*subjects}), sorted({*subjects} - known)
    if left_out or strange:
        raise UserError(
            f"{file}: expected the {len(known)} subjects of the manifest, found {len(left_out)} left out "
            f"({examples(left_out) or 'none'}) and {len(strange)} that it does not list "
            f"({examples(strange) or 'none'}): compare the releases on the whole frozen set"
        )
    return len(listed)


def _read_manifest(file: Path) -> dict[str, str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{file}: expected a manifest, found: {reason}: check the path") from error
    if text.lstrip().startswith("{"):
        content = load_json(file)
        lines = [f"{digest}  {name}" for name, digest in content.items()]
    else:
        lines = [line for line in text.splitlines() if line.strip()]
    matches = [_LINE.match(line) for line in lines]
    if not lines or None in matches:
        found = f"line {matches.index(None) + 1}: {lines[matches.index(None)][:60]!r}" if lines else "none"
        raise UserError(f"{file}: expected lines <SHA-256>  <path>, found {found}: make it with sha256sum")
    return {match[2]: match[1] for match in matches if match}


def trained_on(releases: Collection[Path], subjects: Collection[str]) -> dict[str, list[str]]:
    """Return release -> subjects that it was trained on, by softseg.json in or above its folder."""
    found = {}
    for release in releases:
        seen = training_cases(release if release.is_dir() else release.parent)
        known = sorted(subject for subject in set(subjects) if folds_trained_on(subject, seen))
        if known:
            found[str(release)] = known
    return found


def version_of(release: Path) -> tuple[int, ...]:
    """Return the version in a release's name, (2, 10) of `model_v2.10`, of its folder's if it has none.

    A number is a version behind v, r or release, or with a dot in it.
    """
    parts = [release.name.removesuffix(".csv"), *release.absolute().parts[:-1][::-1]]
    found = [match for part in parts if (match := _VERSION.search(part))]
    return tuple(map(int, (found[0][1] or found[0][2]).split("."))) if found else ()
