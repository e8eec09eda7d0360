"""HTML with charts that needs no network: places for figures, and at the end one script that draws them."""

from __future__ import annotations

import importlib.util
from functools import cache
from html import escape
from pathlib import Path

import orjson

from clover.charts.figures import Figure

MISSING = 'Charts need the extra "dashboard": pip install "clover-inference[dashboard]".'

_DRAW = """
const figures = JSON.parse(document.getElementById("clover-figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
function draw() {
  const style = getComputedStyle(document.body);
  const grid = dark.matches ? "#33383d" : "#e6e8ea";
  const axis = {gridcolor: grid, linecolor: grid, zerolinecolor: grid, automargin: true};
  figures.forEach((figure, index) => {
    const layout = {paper_bgcolor: "transparent", plot_bgcolor: "transparent", ...figure.layout,
      font: {family: style.fontFamily, size: 11, color: style.color},
      xaxis: {...axis, ...figure.layout.xaxis}, yaxis: {...axis, ...figure.layout.yaxis}};
    Plotly.react("clover-chart-" + index, figure.data, layout, {displayModeBar: false, responsive: true});
  });
}
dark.addEventListener("change", draw);
// A chart in a closed fold has no width until that opens.
document.querySelectorAll("details").forEach((fold) => fold.addEventListener("toggle", () =>
  fold.querySelectorAll(".chart").forEach((chart) => Plotly.Plots.resize(chart))));
draw();
"""


def plotly_script() -> Path | None:
    """Return the path of plotly's own script, for browsers; None without the extra `dashboard`.

    The package is found, not imported: nothing here needs it but that file."""
    found = importlib.util.find_spec("plotly")
    folders = (found.submodule_search_locations or ()) if found is not None else ()
    paths = (Path(folder) / "package_data" / "plotly.min.js" for folder in folders)
    return next((path for path in paths if path.is_file()), None)


@cache
def _source(path: Path) -> str:
    return path.read_text(encoding="utf-8").replace("</script", "<\\/script")


class ChartSheet:
    """The figures of one HTML document.

    `add` returns the place of a figure, as HTML; `scripts` what draws them all, for the end of the body: plotly's own
    script (5 MB) and the figures.  Without the extra there are no places, and `scripts` says how to get charts."""

    def __init__(self, *, drawn: bool = True) -> None:
        """Begin a document; not `drawn`: as without the extra."""
        self._plotly = plotly_script() if drawn else None
        self._figures: list[Figure] = []

    def add(self, figure: Figure) -> str:
        """Take a figure in; return the element that it will be drawn in, which keeps its height free."""
        if self._plotly is None:
            return ""
        number = len(self._figures)
        self._figures.append(figure)
        title, height = figure["layout"]["title"]["text"], figure["layout"]["height"]
        return (
            f'<div class="chart" id="clover-chart-{number}" role="img" aria-label="{escape(title)}"'
            f' style="height:{height}px"></div>'
        )

    def scripts(self) -> str:
        """Return the scripts that draw the figures; a line of text if plotly is not installed; nothing without
        figures."""
        if self._plotly is None:
            return f'<p class="note">{escape(MISSING)}</p>'
        if not self._figures:
            return ""
        # A "<" in a text of a figure must not end the element that holds it.
        data = orjson.dumps(self._figures, option=orjson.OPT_SERIALIZE_NUMPY).decode().replace("<", "\\u003c")
        return (
            f"<script>{_source(self._plotly)}</script>"
            f'<script type="application/json" id="clover-figures">{data}</script><script>{_DRAW}</script>'
        )
