"""The command `bridges`: lesion and cord -> a CSV of lesions, and a picture of the midsagittal plane."""

from pathlib import Path

import pandas as pd

from nnunet_softseg.io.nifti import geometry_warnings, load_nifti
from nnunet_softseg.io.results import PICTURES, make_folder, output_file, table_file, write_table
from nnunet_softseg.metrics.morphometry.lesions import LESION_COLUMNS, measure_lesions


def bridges(
    lesion: str | Path,
    cord: str | Path,
    *,
    output: str | Path | None = None,
    figure: str | Path | None = None,
    hard: bool = False,
) -> pd.DataFrame:
    """Return, and write if asked to, size and midsagittal tissue bridges of each lesion of a spinal cord.

    Args:
        lesion: NIfTI file of the lesions, a mask or a soft map.
        cord: of the cord, likewise, on the same grid.
        output: CSV of the lesions, with a JSON of the same name that explains its columns; refused where a
            JSON of another making has that name.
        figure: PNG, SVG or PDF of the midsagittal plane with the bridges.
        hard: count voxels > 0.5 of soft maps, too, as published numbers do.

    Returns:
        The columns of `lesions.LESION_COLUMNS`, one row per lesion, the largest first; no row without a
        lesion. `attrs["warnings"]` lists what is odd.

    Raises:
        UserError: if a file cannot be used, the grids differ, no lesion is in the cord, or the cord ends
            inside one.
    """
    csv, picture = table_file(output, "bridges"), output_file(figure, PICTURES)
    files = Path(lesion), Path(cord)
    measured = measure_lesions(load_nifti(files[0]), load_nifti(files[1]), hard=hard)
    table = measured.table
    table.attrs["warnings"] = [
        *measured.warnings,
        *(str(warning) for file in files for warning in geometry_warnings(file)),
    ]
    if csv:
        parameters = {"lesion": str(lesion), "cord": str(cord), "hard": hard}
        write_table(table, csv, LESION_COLUMNS, "bridges", parameters)
    if picture:
        # Only here: matplotlib takes longer to load than maps to measure.
        from nnunet_softseg.metrics.morphometry.figures import draw_bridges

        make_folder(picture.parent)
        draw_bridges(measured, picture)
    return table


def bridges_overview(table: pd.DataFrame) -> str:
    """Return each lesion of a table of `bridges` in one line."""
    lines = [f"{len(table)} lesion{'s' * (len(table) != 1)}"]
    for row in table.itertuples():
        size = f"{row.volume_mm3:.1f} mm3, {row.length_mm:.1f} mm long, {row.width_mm:.1f} mm wide"
        spared = (
            "no bridges"
            if pd.isna(row.total_bridge_mm)
            else f"bridges: dorsal {row.dorsal_bridge_mm:.2f}, ventral {row.ventral_bridge_mm:.2f}, total "
            f"{row.total_bridge_mm:.2f} mm ({row.definition})"
        )
        lines.append(f"lesion {row.lesion}: {size}; {spared}{f' [{row.flags}]' * bool(row.flags)}")
    return "\n".join(lines)
