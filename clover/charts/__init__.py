"""Charts as figures of plotly: dictionaries in, and HTML that draws them without a network out.

A figure is made without plotly; only a document that shows figures needs plotly's own script, which the extra
`dashboard` installs.  Without it a document keeps its tables and says how to get charts.
"""

from __future__ import annotations

from clover.charts.figures import COLOURS, Figure, Points, bands, bars, line_colours, lines, scatter
from clover.charts.sheet import MISSING, ChartSheet, plotly_script

__all__ = [
    "COLOURS",
    "MISSING",
    "ChartSheet",
    "Figure",
    "Points",
    "bands",
    "bars",
    "line_colours",
    "lines",
    "plotly_script",
    "scatter",
]
