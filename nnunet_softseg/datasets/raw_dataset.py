"""A dataset as nnU-Net knows it: its name, dataset.json, labels, training cases and reader."""

import contextlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nnunet_softseg.errors import Finding, UserError, raise_first_error
from nnunet_softseg.io.nifti import NIFTI_ENDINGS, load_nifti

NIFTI_READERS = ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient")
VANILLA = "train it with nnUNetTrainer"
_KEYS = ("labels", "channel_names", "numTraining", "file_ending")
ONE_ORIENTATION = (
    'set "overwrite_image_reader_writer": "NibabelIOWithReorient" in dataset.json, then run '
    "nnUNetv2_plan_and_preprocess again"
)


@dataclass(frozen=True)
class TrainingCase:
    """The files of one case: an image per channel, and the integer labels that vanilla trainers read."""

    case_id: str
    images: tuple[Path, ...]
    label_map: Path


def dataset_number(name: str) -> str:
    """Return the id in `DatasetNNN_Name`, for the option -d."""
    return name.removeprefix("Dataset").split("_")[0]


def dataset_name(dataset: int | str) -> str:
    """Return the full name, `DatasetNNN_Name`, of a dataset given by it, by its id or by `Name`.

    A UserError if there is none or several.
    """
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    named = _datasets_named(str(dataset))
    if len(named) == 1:
        return named[0]
    try:
        return str(maybe_convert_to_dataset_name(dataset))
    except (RuntimeError, ValueError) as error:
        folders = {name: os.environ.get(name) for name in ("nnUNet_raw", "nnUNet_preprocessed")}
        places = ", ".join(f"{name}={folder or 'not set'}" for name, folder in folders.items())
        raise UserError(
            f"dataset {dataset}: expected one folder DatasetNNN_Name with this id, found none or several "
            f"({places}): check the id, and that these variables are set as for nnU-Net"
        ) from error


def _datasets_named(name: str) -> list[str]:
    roots = [os.environ.get(variable) for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")]
    folders = [
        folder.name for root in roots if root for folder in Path(root).glob("Dataset[0-9][0-9][0-9]_*")
    ]
    return sorted({folder for folder in folders if folder.partition("_")[2] == name})


def nnunet_folder(variable: str, name: str) -> Path:
    """Return the folder of a dataset, there or not, in that of nnU-Net's variable; a UserError if not set."""
    root = os.environ.get(variable)
    if not root:
        raise UserError(
            f"{variable}: expected a folder, found the environment variable not set: set it as for nnU-Net"
        )
    return Path(root) / name


def dataset_json_findings(dataset_json: Any) -> list[Finding]:
    """Return the faults of dataset.json, and the parts that soft training does not support."""
    if not isinstance(dataset_json, Mapping):
        return [dataset_finding("not a JSON object", "{...}", type(dataset_json).__name__, "rewrite it")]
    missing = [key for key in _KEYS if key not in dataset_json]
    if missing:
        remedy = "add them, see nnU-Net's documentation/dataset_format.md"
        found = f"no {', '.join(missing)}"
        return [dataset_finding("keys are missing", f"all of {', '.join(_KEYS)}", found, remedy)]
    return [*label_findings(dataset_json["labels"]), *format_findings(dataset_json)]


def label_findings(labels: Any) -> list[Finding]:
    """Say why soft training cannot use the labels of dataset.json; ignore and regions are not supported."""
    what = "labels that soft training cannot use"
    if not isinstance(labels, Mapping):
        return [dataset_finding(what, '{"background": 0, "name": 1, ...}', repr(labels), "rewrite it")]
    if "ignore" in labels:
        found = f"an ignore label ({labels['ignore']}), not supported yet"
        return [dataset_finding(what, "no ignore label", found, f"remove it, or {VANILLA}")]
    regions = [str(name) for name, value in labels.items() if isinstance(value, list | tuple)]
    if regions:
        found = f"region-based labels ({', '.join(regions)}), not supported yet"
        return [dataset_finding(what, "one integer per label", found, f"give one integer each, or {VANILLA}")]
    values = list(labels.values())
    if not all(isinstance(value, int) for value in values) or labels.get("background") != 0:
        return [dataset_finding(what, '"background": 0 and integers', repr(dict(labels)), "correct them")]
    if sorted(values) != list(range(len(values))) or len(values) == 1:
        expected, found = "consecutive values 0, 1, ..., at least one above 0", repr(sorted(values))
        return [dataset_finding(what, expected, found, "renumber them, in the files too")]
    return []


def format_findings(dataset_json: Mapping[str, Any]) -> list[Finding]:
    """Say whether the images are not NIfTI, or read by a reader that drops their geometry."""
    ending = dataset_json["file_ending"]
    reader = dataset_json.get("overwrite_image_reader_writer", "None")
    remedy = f"convert the images to NIfTI, or {VANILLA}"
    if ending not in NIFTI_ENDINGS:
        return [dataset_finding("images are not NIfTI", " or ".join(NIFTI_ENDINGS), repr(ending), remedy)]
    if reader not in ("None", *NIFTI_READERS):
        return [dataset_finding("not a NIfTI reader", " or ".join(NIFTI_READERS), repr(reader), remedy)]
    return []


def dataset_finding(
    what: str, expected: str, found: str, remedy: str, *, severity: Literal["error", "warning"] = "error"
) -> Finding:
    """Return a finding about dataset.json."""
    return Finding("dataset.json", what, expected, found, remedy, severity)


def foreground_labels(dataset_json: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the label values above background, ascending: the order in which soft labels are stacked.

    A UserError for no foreground, and for ignore or region-based labels, not supported yet.
    """
    raise_first_error(label_findings(dataset_json["labels"]))
    return tuple(sorted(set(dataset_json["labels"].values()) - {0}))


def training_cases(folder: Path, dataset_json: Mapping[str, Any]) -> tuple[TrainingCase, ...]:
    """Return the training cases of a raw dataset, nnUNet_raw/DatasetNNN_Name, by name; files may be missing.

    Their paths are those in "dataset" of dataset.json, or else imagesTr and labelsTr.
    """
    if "dataset" in dataset_json:
        cases = []
        for case_id, entry in sorted(dataset_json["dataset"].items()):
            names = [*entry["images"], entry["label"]]
            *images, label = (folder / os.path.expandvars(name) for name in names)
            cases.append(TrainingCase(case_id, tuple(images), label))
        return tuple(cases)
    ending = dataset_json["file_ending"]
    channels: dict[str, list[Path]] = {}
    for image in sorted((folder / "imagesTr").glob(f"*_[0-9][0-9][0-9][0-9]{ending}")):
        channels.setdefault(image.name[: -len(ending) - len("_0000")], []).append(image)
    return tuple(
        TrainingCase(case_id, tuple(files), folder / "labelsTr" / f"{case_id}{ending}")
        for case_id, files in sorted(channels.items())
    )


def reader_name(dataset_json: Mapping[str, Any], example_image: Path) -> str:
    """Return the name of the reader that nnU-Net's planner will choose for a dataset.

    nnU-Net takes the first that can open the example, the first image; a UserError if none can.
    """
    load_nifti(example_image)  # what its header promises, readers would take memory for
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    # nnU-Net prints a traceback for each reader that it tries in vain.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            chosen = determine_reader_writer_from_dataset_json(
                dict(dataset_json), str(example_image), verbose=False
            )
        except RuntimeError as error:
            raise UserError(
                f"{example_image.parent.name}/{example_image.name}: expected an image that one of nnU-Net's "
                "readers can open, found none that can: write the file again"
            ) from error
    return str(chosen.__name__)
