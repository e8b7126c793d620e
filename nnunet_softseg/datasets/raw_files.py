"""Files of a raw dataset that belong to no case, and folders by another name."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_softseg.datasets.raw_dataset import TrainingCase
from nnunet_softseg.datasets.soft_label import FOLDER
from nnunet_softseg.errors import Finding, examples, short_name
from nnunet_softseg.io.case_files import parse_numbered_name
from nnunet_softseg.io.formats import is_nifti, without_ending

IMAGES, LABEL_MAPS = "imagesTr", "labelsTr"


def place_findings(folder: Path) -> list[Finding]:
    """Say which folders of a raw dataset have another name than nnU-Net's (labelsTR); no label maps."""
    findings = []
    for name in (IMAGES, LABEL_MAPS, FOLDER):
        alike = [
            path.name for path in folder.iterdir() if path.name.lower() == name.lower() and path.is_dir()
        ]
        if alike and name not in alike:
            where, remedy = f"{folder.name}/{alike[0]}", f"rename it to {name}"
            findings.append(Finding(where, "folder by another name", name, alike[0], remedy))
        elif not alike and name == LABEL_MAPS:
            expected, remedy = "labelsTr/<case>, soft label > 0.5", "write them"
            findings.append(
                Finding(f"{folder.name}/{name}", "no label maps", expected, "no such folder", remedy)
            )
    return findings


def unused_findings(
    folder: Path, dataset_json: Mapping[str, Any], cases: Sequence[TrainingCase]
) -> list[Finding]:
    """Name the images that nnU-Net cannot take by their names, and the label maps of no case.

    Where dataset.json lists the files, nothing else is looked for.
    """
    if "dataset" in dataset_json:
        return []
    ending: str = dataset_json["file_ending"]
    used = {file for case in cases for file in (*case.images, case.label_map)}
    images = [file for file in _image_files(folder / IMAGES, ending) if file not in used]
    findings = [_image_finding(file, ending) for file in images]
    maps = [short_name(file) for file in _image_files(folder / LABEL_MAPS, ending) if file not in used]
    if maps:
        what, expected = f"{len(maps)} label maps of no case", f"<case>{ending} of a case of {IMAGES}"
        remedy = "add or rename their images, or remove them"
        findings.append(Finding(LABEL_MAPS, what, expected, examples(maps), remedy, "warning"))
    return findings


def _image_files(folder: Path, ending: str) -> list[Path]:
    """Return the files with the ending of the dataset, in capitals or not, and those in NIfTI."""
    files: Iterable[Path] = folder.iterdir() if folder.is_dir() else ()
    shown = (file for file in files if not file.name.startswith("."))
    return sorted(file for file in shown if is_nifti(file.name) or file.name.lower().endswith(ending))


def _image_finding(file: Path, ending: str) -> Finding:
    """Return why an image is of no case: no channel number, which nnU-Net dies of, or another ending."""
    stem = without_ending(file.name)
    has_channel = parse_numbered_name(file.name) is not None
    name = stem if has_channel else f"{stem}_0000"
    if not file.name.endswith(ending):
        found = file.name[len(stem) :]
        how = (
            f"rename it to {name}{ending}" if found.lower() == ending else f"write it again as {name}{ending}"
        )
        what = "nnU-Net leaves this image out, as file_ending of dataset.json is another"
        return Finding(short_name(file), what, ending, found, how, "warning")
    expected = f"<case>_<channel, 4 digits>{ending}"
    return Finding(
        short_name(file), "no channel in its name", expected, file.name, f"rename it to {name}{ending}"
    )
