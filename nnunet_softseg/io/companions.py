"""The level, disc or other image that belongs to a map, found by its name.

companion_files(list_files(folder), {"sub-01_T2w": ["sub-01_T2w"]}, "level")   # sub-01_T2w_levels.nii.gz
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.io.case_files import ImageFiles
from nnunet_softseg.io.case_matching import by_bids_name, group
from nnunet_softseg.io.case_names import Case, longest_prefix
from nnunet_softseg.io.nifti import without_nifti_ending


def companion_files(
    images: ImageFiles,
    stems: Mapping[str, Sequence[str]],
    kind: str,
    *,
    cases: Sequence[Case] = (),
    not_these: Collection[Path] = (),
) -> dict[str, Path]:
    """Return the level, disc or other image of each case that has one.

    It has a stem of the case as its name, or begins with it and goes on with `_`, and with no longer stem of
    another case. Of several, the one with `kind` in its name counts, then the one with the stem as its name.

    Args:
        images: of a folder with those of many cases; a single file serves all of them.
        stems: case -> names to try, in this order.
        kind: "level", "disc", "image".
        cases: those that may be told by subject, session and contrast in a BIDS name, if no stem fits.
        not_these: files that are no companions, as the maps themselves.

    Raises:
        UserError: if two files could be the one of a case.
    """
    if images.is_one_file:
        return dict.fromkeys(stems, images.root)
    left_out = {file.resolve() for file in not_these}
    listed = [file for file in images.files if file.resolve() not in left_out]
    every_stem = {stem for of_case in stems.values() for stem in of_case}
    owners = ((file, longest_prefix(without_nifti_ending(file.name), every_stem)) for file in listed)
    by_stem = group((file, (owner, None)) for file, owner in owners if owner)
    by_bids = group(by_bids_name(images, cases))
    found = {}
    for case, of_case in stems.items():
        named = [by_stem.get((stem, None), []) for stem in of_case]
        same = [[file for file in files if without_nifti_ending(file.name) in of_case] for files in named]
        of_kind = [[file for file in files if kind in file.name.lower()] for files in named]
        candidates = next(filter(None, (*of_kind, *same, *named, by_bids.get((case, None), []))), [])
        if candidates:
            found[case] = _the_one(candidates, images, case, kind)
    return found


def _the_one(files: Sequence[Path], images: ImageFiles, case: str, kind: str) -> Path:
    if len(files) > 1:
        found = f"{len(files)}: {examples([images.relative(file) for file in files])}"
        raise UserError(
            f"{images.root}: expected one {kind} image of {case}, found {found}: rename all but one, or give "
            f"one {kind} image per map in the same order"
        )
    return files[0]
