"""All participants of a folder of derivatives: one table of areas, one page, and what is missing."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from nnunet_softseg.errors import UserError
from nnunet_softseg.evaluation.cohort.derivatives import (
    NAME,
    Choice,
    Derivative,
    chosen_images,
    finished,
    made_by_of,
    write_column_meanings,
    write_table_tsv,
)
from nnunet_softseg.evaluation.report.drawing import as_svg, drawing, new_figure, spread
from nnunet_softseg.io.case_files import BIDS_DESCRIPTION
from nnunet_softseg.io.html import render_page, template, write_page
from nnunet_softseg.io.nifti import StrPath
from nnunet_softseg.io.results import load_record

TABLE, PAGE = "group_csa.tsv", "group.html"
COLUMNS = {
    "participant_id": "subject",
    "session_id": "session; n/a if there is none",
    "image": "name of the image",
    "contrast": "of the image, by its name",
    "label": "name of the label",
    "slices": "number of slices with csa_mm2: the map is above 0 somewhere",
    "csa_mm2": "cross-sectional area of the soft map, corrected for tilt, mean over slices, mm2",
    "csa_std_mm2": "standard deviation of csa_mm2 over slices, mm2",
    "csa_hard_mm2": "the same for the map > 0.5, mean over the slices where it exceeds 0.5, mm2",
    "soft_volume_mm3": "sum of the map's values times the volume of a voxel, mm3",
    "flags": "what says that the map may be wrong; n/a: nothing",
}
_COLOUR = "#0072B2"


@dataclass
class GroupReport:
    """The table of a group.

    Attributes:
        output: folder of the derivatives.
        table: `COLUMNS`, a row per image and label.
        missing: images without derivatives -> why.
        flagged: images with a flag -> flags.
        warnings: about the images.
    """

    output: Path
    table: pd.DataFrame
    missing: dict[str, str] = field(default_factory=dict)
    flagged: dict[str, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def as_text(self, but: Collection[str] = ()) -> str:
        """Return it in a few lines, missing images one a line, `but` some that are told elsewhere."""
        people, images = self.table["participant_id"].nunique(), self.table["image"].nunique()
        missing = [f"missing: {case}: {why}" for case, why in self.missing.items() if case not in but]
        found = f"{people} participants, {images} images, {len(self.flagged)} flagged, {len(missing)} missing"
        return "\n".join([f"{self.output}: {found}: {TABLE}, {PAGE}", *missing])


def report_group(
    bids: StrPath,
    output: StrPath,
    *,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    contrasts: Sequence[str] | None = None,
    wanted: Collection[str] | None = None,
) -> GroupReport:
    """Write `group_csa.tsv` and `group.html` over all derivatives that are there.

    `bids` says which images have none; for participants, sessions and contrasts see `Choice`. `wanted`: names
    of images, without ending, of which it is told that they are missing; None: all.

    Raises:
        UserError: if one of the folders is not what it should be, or no derivative is there.
    """
    root, choice = Path(output), Choice(participants, sessions, contrasts)
    images, warnings = chosen_images(Path(bids), root, choice)
    if made_by_of(root) is None:
        raise UserError(
            f"{root}: expected derivatives of {NAME}, found no {BIDS_DESCRIPTION} of it: run the level "
            "participant first"
        )
    done = finished(root, choice)
    if not done:
        raise UserError(
            f"{root}: expected derivatives of at least one image, found none: see {root / 'logs'}"
        )
    missing = {image.case_id: image for image in images if wanted is None or image.case_id in wanted}
    for image, _ in done:
        missing.pop(image.case_id, None)
    report = GroupReport(
        root,
        pd.DataFrame([row for image, record in done for row in _rows(image, record)], columns=[*COLUMNS]),
        {name: _why(image) for name, image in missing.items()},
        {image.case_id: record["Flags"] for image, record in done if record["Flags"]},
        warnings,
    )
    write_table_tsv(report.table, root / TABLE)
    write_column_meanings((root / TABLE).with_suffix(".json"), COLUMNS)
    write_page(root / PAGE, _page(report))
    return report


def _rows(image: Derivative, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    of_image = {
        "participant_id": image.name.subject,
        "session_id": image.name.session,
        "image": image.case_id,
        "contrast": image.name.contrast,
        "flags": ", ".join(record["Flags"]) or None,
    }
    return [{**of_image, "label": label, **numbers} for label, numbers in record["Labels"].items()]


def _why(image: Derivative) -> str:
    log = load_record(image.log, "Failed")
    return str(log["Failed"]) if log else "not predicted yet"


def _page(report: GroupReport) -> str:
    table = report.table
    labels = [*dict.fromkeys(table["label"])]
    context = {
        "participants": table["participant_id"].nunique(),
        "num_images": table["image"].nunique(),
        "with_page": {page.stem for page in report.output.glob("sub-*.html")},
        "missing": report.missing,
        "flagged": report.flagged,
        "rows": table.astype(object).where(table.notna(), None).to_dict("records"),
        "figures_of_labels": {
            label: as_svg(
                _draw(table[table["label"] == label]), f"mean areas of {label} by contrast, a point per image"
            )
            for label in labels
        },
    }
    return render_page("All participants", template("group.html"), context)


@drawing()
def _draw(of_label: pd.DataFrame) -> Figure:
    """Draw the mean area of every image over its contrast; those that are flagged are hollow."""
    contrasts = sorted(of_label["contrast"].unique())
    figure = new_figure(max(3.0, 1.2 + 0.9 * len(contrasts)), 3.0)
    axis = figure.subplots()
    for place, contrast in enumerate(contrasts):
        rows = of_label[of_label["contrast"] == contrast]
        faces = ["none" if flags else _COLOUR for flags in rows["flags"].notna()]
        areas = pd.to_numeric(rows["csa_mm2"])
        axis.scatter(
            place + 0.5 * spread(len(rows)), areas, s=14, c=faces, edgecolors=_COLOUR, linewidths=0.8
        )
    axis.margins(y=0.3)  # of the areas' own range, so that none lies at the upper edge
    axis.set_xticks(range(len(contrasts)), contrasts)
    axis.set(xlim=(-0.6, len(contrasts) - 0.4), ylabel="mean area, mm²")
    axis.set_ylim(bottom=0)
    return figure
