"""The page as a browser shows it: escaped, offline, sorted by a click, on a phone, in print."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from nnunet_softseg.io.html import (
    NO_VALUE,
    figure_as_svg,
    figures,
    picture,
    render_page,
    write_page,
)

HOSTILE = "<script>document.title='owned'</script>\"'><img src=x onerror=\"document.title='owned'\"> ü.nii.gz"
TABLE = """
<div class="wide"><table class="sortable">
<thead><tr><th>case</th><th class="number">CSA [mm²]</th></tr></thead>
<tbody>{% for name, value in rows %}
<tr><td>{{ name }}</td><td class="number">{{ value | figures(3) }}</td></tr>
{% endfor %}</tbody>
</table></div>
"""


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (1234.5, 3, "1234"),
        (0.012345, 3, "0.0123"),
        (9.996, 3, "10.00"),
        (-2.5, 2, "-2.5"),
        (0, 3, "0"),
    ],
)
def test_figures(value: float, digits: int, expected: str) -> None:
    assert figures(value, digits) == expected


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_a_dash(value: float | None) -> None:
    assert figures(value) == NO_VALUE


@given(st.floats(-1e6, 1e6).filter(lambda value: abs(value) > 1e-6), st.integers(1, 6))
def test_figures_are_right_to_half_a_unit_of_the_last(value: float, digits: int) -> None:
    unit = 10.0 ** min(math.floor(math.log10(abs(value))) - digits + 1, 0)
    assert abs(float(figures(value, digits)) - value) <= 0.5 * unit * (1 + 1e-6)


def open_page(browser_page, tmp_path: Path, html: str) -> None:
    write_page(tmp_path / "page.html", html)
    browser_page.goto((tmp_path / "page.html").as_uri())


def column(browser_page, index: int) -> list[str]:
    return browser_page.locator(f"tbody td:nth-child({index})").all_inner_texts()


def test_a_click_sorts_numbers_as_numbers_and_puts_what_has_none_last(browser_page, tmp_path: Path) -> None:
    rows = [("sub-10", 9.5), ("sub-9", math.nan), ("sub-2", 80.0), ("sub-1", -1.0)]
    open_page(browser_page, tmp_path, render_page("Table", TABLE, {"rows": rows}))
    head = browser_page.locator("th", has_text="CSA")
    head.locator("button").click()
    assert column(browser_page, 2) == ["-1.00", "9.50", "80.0", NO_VALUE]
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").press("Enter")
    assert column(browser_page, 2) == ["80.0", "9.50", "-1.00", NO_VALUE]
    browser_page.locator("th button").first.click()
    assert column(browser_page, 1) == ["sub-1", "sub-2", "sub-9", "sub-10"]


def test_hostile_names_are_text(browser_page, tmp_path: Path) -> None:
    open_page(browser_page, tmp_path, render_page(HOSTILE, TABLE, {"rows": [(HOSTILE, 1.0)]}))
    assert browser_page.title() == HOSTILE
    assert column(browser_page, 1) == [HOSTILE]
    assert browser_page.locator("img").count() == 0


def test_a_name_that_is_no_unicode_is_written(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", render_page("a \udcff", "", {}))
    assert "<title>a ?</title>" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_wide_table_scrolls_by_itself_on_a_phone(browser_page, tmp_path: Path) -> None:
    rows = [("x" * 30 + " " + "y" * 300, 1.0)]
    wide = TABLE.replace("<td>", '<td style="white-space: nowrap">')
    open_page(browser_page, tmp_path, render_page("Wide", wide, {"rows": rows}))
    browser_page.set_viewport_size({"width": 380, "height": 700})
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= 380
    assert browser_page.evaluate("document.querySelector('.wide').scrollWidth") > 1000


def test_figures_and_pictures_are_inside_the_file(browser_page, tmp_path: Path) -> None:
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, 1], [1, 0])
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[..., 0] = 255
    body = '{{ svg }}<img id="red" src="{{ red }}" alt="">'
    shown = {"svg": figure_as_svg(figure, 'falls "<b>"'), "red": picture(pixels)}
    open_page(browser_page, tmp_path, render_page("Figures", body, shown))
    assert browser_page.locator("svg").get_attribute("aria-label") == 'falls "<b>"'
    assert browser_page.evaluate("document.querySelector('#red').naturalWidth") == 30
    colour = browser_page.evaluate(
        """() => {
          const context = document.createElement('canvas').getContext('2d');
          context.drawImage(document.querySelector('#red'), 0, 0);
          return [...context.getImageData(15, 10, 1, 1).data];
        }"""
    )
    assert colour[0] > 240
    assert max(colour[1:3]) < 15


def test_nothing_can_be_fetched(browser, tmp_path: Path) -> None:
    html = render_page("Fetch", '<img id="out" src="http://127.0.0.1:9/x.png">', {})
    write_page(tmp_path / "page.html", html)
    page = browser.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto((tmp_path / "page.html").as_uri())
    page.close()
    assert any("Content Security Policy" in text for text in refused)


def test_a_table_wider_than_a_phone_shows_that_it_goes_on(browser_page, tmp_path: Path) -> None:
    """A shadow at the right edge, which is gone at the end of the table."""
    body = '<div class="wide"><table><tr><td style="min-width: 700px; height: 60px"></td></tr></table></div>'
    browser_page.set_viewport_size({"width": 360, "height": 400})
    open_page(browser_page, tmp_path, render_page("t", body, {}))
    table = browser_page.locator("div.wide")

    def darkest(columns: slice) -> int:
        pixels = np.asarray(Image.open(io.BytesIO(table.screenshot())).convert("L"))
        return int(pixels[20:40, columns].min())

    assert darkest(slice(-3, None)) < 230
    assert darkest(slice(0, 3)) > 250
    table.evaluate("element => { element.scrollLeft = 700 }")
    assert darkest(slice(-3, None)) > 250
    assert darkest(slice(0, 3)) < 230
