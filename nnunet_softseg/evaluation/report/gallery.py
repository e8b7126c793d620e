"""All figures of one label: as SVG and PNG files, and as SVG for the page."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from markupsafe import Markup
from matplotlib.figure import Figure

from nnunet_softseg import __version__
from nnunet_softseg.evaluation.comparison import Comparison
from nnunet_softseg.evaluation.report.agreement_figures import (
    contrast_pair,
    draw_bland_altman,
    draw_csa_agreement,
)
from nnunet_softseg.evaluation.report.appearance import MethodStyle, drawing, shortened
from nnunet_softseg.evaluation.report.area_figures import (
    draw_csa_error,
    draw_csa_over_contrasts,
    draw_csa_std,
)
from nnunet_softseg.evaluation.report.reliability_figures import draw_inference_time, draw_reliability
from nnunet_softseg.io.atomic import replacing, write_bytes
from nnunet_softseg.io.html import figure_as_svg

Draw = Callable[[Comparison, int, Mapping[str, MethodStyle]], Figure | None]
_DRAW: Mapping[str, Draw] = MappingProxyType(
    {
        "csa_error": draw_csa_error,
        "csa_std": draw_csa_std,
        "csa_over_contrasts": draw_csa_over_contrasts,
        "csa_agreement": draw_csa_agreement,
        "bland_altman": draw_bland_altman,
        "reliability": draw_reliability,
        "inference_time": draw_inference_time,
    }
)
FIGURES = tuple(_DRAW)
_PNG_DPI = 150
_OUR_FILES = re.compile(rf"({'|'.join(FIGURES)}|worst_\d+)(_label\d+)?\.(svg|png)")
_GROUP_NAME = re.compile(r'<g id="[\w.]+_\d+">')
_CAPTIONS = MappingProxyType(
    {
        "csa_error": "Absolute CSA error. Left: means over the images of a subject, the unit of the "
        "statistics; then the images of each contrast.",
        "csa_std": "Standard deviation of a subject's CSA over contrasts; the anatomy is the same in all, so "
        "less is better. Filled: map as given; hollow: map > 0.5. Only subjects with every contrast in every "
        "method.",
        "csa_over_contrasts": "CSA over contrasts, a thin line per subject, the mean bold. Left: map as "
        "given; right: map > 0.5. A method that does not depend on contrast draws level lines. STD: "
        "mean over subjects.",
        "csa_agreement": "CSA of the same subjects in two contrasts, {pair}. Dashed: identity; line: least "
        "squares.",
        "bland_altman": "Method against reference (Bland-Altman), a point per image. Line: bias; dashed: "
        "95 % limits of agreement, images of one subject taken as repeated measurements; bands: their 95 % "
        "intervals.",
        "reliability": "Reliability of the predicted fractions, in and around the object, all images "
        "together. On the dashed line a voxel predicted as 0.3 is 0.3 in the reference. Hard masks have "
        "values at the ends only.",
        "inference_time": "Time per image as noted by the method itself in softseg.json.",
    }
)


@dataclass(frozen=True)
class ShownFigure:
    """A figure in the page.

    Attributes:
        name: its files are figures/<name>.svg and .png.
        svg: to stand in the page.
        caption: what it shows.
    """

    name: str
    svg: Markup
    caption: str


def remove_old_figures(folder: Path) -> None:
    """Remove what an earlier report left: a figure that is drawn no more would be taken for a new one."""
    for file in folder.iterdir():
        if _OUR_FILES.fullmatch(file.name):
            file.unlink(missing_ok=True)


def draw_figures(
    comparison: Comparison,
    label: int,
    styles: Mapping[str, MethodStyle],
    folder: Path,
    *,
    kinds: Iterable[str] = FIGURES,
) -> dict[str, ShownFigure]:
    """Draw the figures that a label has values for, write them to a folder, and return them by kind.

    Args:
        comparison: of methods.
        label: value.
        styles: of `method_styles`.
        folder: for <name>.svg and <name>.png.
        kinds: of `FIGURES`.

    Raises:
        UserError: if a file cannot be written.
    """
    shown = {}
    suffix = f"_label{label}" if len(comparison.labels) > 1 else ""
    for kind in kinds:
        with drawing():
            figure = _DRAW[kind](comparison, label, styles)
            if figure is not None:
                shown[kind] = _save(figure, f"{kind}{suffix}", _caption(kind, comparison, label), folder)
    return shown


def _caption(kind: str, comparison: Comparison, label: int) -> str:
    first, second = (shortened(name) for name in contrast_pair(comparison, label) or ("", ""))
    return _CAPTIONS[kind].format(pair=f"{second} against {first}")


def _save(figure: Figure, name: str, caption: str, folder: Path) -> ShownFigure:
    svg = figure_as_svg(figure, f"{name}: {caption}")
    # Names of groups are the same in every figure, and in a page every name may stand once.
    svg = Markup(_GROUP_NAME.sub("<g>", svg))
    by = f"<!-- Made by nnunet-softseg {__version__} -->"
    write_bytes(folder / f"{name}.svg", f'<?xml version="1.0" encoding="utf-8"?>\n{by}\n{svg}'.encode())
    # Laid out once: twice would take twice as long and look the same.
    figure.set_layout_engine("none")
    with replacing(folder / f"{name}.png") as aside:
        figure.savefig(aside, dpi=_PNG_DPI, metadata={"Software": f"nnunet-softseg {__version__}"})
    return ShownFigure(name, svg, caption)
