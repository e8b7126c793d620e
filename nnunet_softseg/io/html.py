"""One HTML file: works offline, on a phone and in print, and escapes whatever a name contains.

Everything that a template shows with {{ ... }} is escaped by Jinja2. Pictures are embedded, nothing is
fetched: the page's own policy forbids it. Templates, style and script lie in templates/.
"""

import base64
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from nnunet_softseg import __version__
from nnunet_softseg.io.results import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100
WINDOW_PERCENTILES = (1.0, 99.5)
"""Of an image, shown as black and white."""
NO_VALUE = "–"  # noqa: RUF001  the dash that tables show
_TEMPLATES = Path(__file__).parent / "templates"


def template(name: str) -> str:
    """Return a file of templates/."""
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def figures(value: float | None, digits: int = 3) -> str:
    """Return a number with so many significant figures, without exponent; a dash for None, NaN and infinity.

    Digits left of the decimal point are never rounded away.
    """
    if value is None or not np.isfinite(value):
        return NO_VALUE
    if value == 0:
        return "0"
    decimals = max(digits - 1 - int(np.floor(np.log10(abs(value)))), 0)
    return f"{value:.{decimals}f}"


def render_page(title: str, body: str, context: Mapping[str, Any], images: str = "data:") -> str:
    """Return a whole page; its title is plain text.

    `body` is Jinja2 source between heading and footer, with the names of `context`. All values are escaped,
    `Markup` apart; the filter `figures(n)` writes numbers; a table of class "sortable" sorts by a click on
    its head; wrap tables in `<div class="wide">`. `images` says where pictures may come from, as in a content
    security policy; the default is the page itself.
    """
    page = f'{{% extends "layout.html" %}}{{% block body %}}{body}{{% endblock %}}'
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["figures"] = figures
    return environment.from_string(page).render(
        **context,
        page_title=title,
        version=__version__,
        style=Markup(template("style.css")),
        script=Markup(template("sort.js")),
        images_from=images,
    )


def write_page(path: Path, html: str) -> None:
    """Write a page, aside first; a UserError says why it cannot be written."""
    # A file name need not be Unicode (surrogates): shown as ?, never a crash.
    write_bytes(path, html.encode("utf-8", errors="replace"))


def figure_as_svg(figure: "Figure", description: str) -> Markup:
    """Return a figure as SVG for a page, described for those who cannot see it; text stays text."""
    import matplotlib as mpl  # who writes no picture need not wait for it

    stream = io.StringIO()
    # Several figures on a page must not share the identifiers of their clip paths.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": description}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    svg = stream.getvalue()
    start = f'<svg role="img" aria-label="{Markup.escape(description)}" '
    return Markup(start + svg[svg.index("<svg ") + len("<svg ") :])


def picture(pixels: npt.NDArray[np.uint8]) -> str:
    """Return pixels, (rows, columns) or (rows, columns, 3), 0-255, as a data URI of WebP."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="webp", quality=85, method=4)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def figure_as_webp(figure: "Figure") -> bytes:
    """Return a figure as WebP: what cannot be drawn is told from what cannot be written."""
    stream = io.BytesIO()
    save_figure(figure, stream)
    return stream.getvalue()


def save_figure(figure: "Figure", file: Path | IO[bytes]) -> None:
    """Write a picture as WebP."""
    with warnings.catch_warnings():
        # A name in a script that the font lacks is shown as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(file, format="webp", dpi=DPI, pil_kwargs={"quality": 80, "method": 4})


def grey_levels(part: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return an image between black and white by its percentiles; NaN and infinity are black."""
    finite = np.isfinite(part)
    if not finite.any():
        return np.zeros(part.shape, np.uint8)
    low, high = np.percentile(part[finite], WINDOW_PERCENTILES)
    scaled = (np.where(finite, part, low) - low) / max(high - low, np.finfo(np.float32).tiny)
    return np.asarray(np.round(255 * np.clip(scaled, 0, 1)), np.uint8)
