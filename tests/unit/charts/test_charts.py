"""Figures are plain, finite JSON; a sheet draws them without a network, and says so where it cannot."""

from __future__ import annotations

import math

import orjson
import pytest

from clover import charts
from clover.charts import sheet


def test_lines_hold_each_value_to_the_next_x_and_the_last_to_the_end() -> None:
    figure = charts.lines("t", {"a": [(0, 1.0), (1, 1.0), (2, 1.0), (3, 4.0)]}, end=5, limit=("SLO", 2.0))
    (trace,) = figure["data"]
    assert trace["line"]["shape"] == "hv"
    assert (trace["x"], trace["y"]) == ([0, 3, 5], [1.0, 4.0, 4.0]), "a repeated value is no point of its own"
    assert figure["layout"]["shapes"][0]["y0"] == 2.0
    assert figure["layout"]["annotations"][0]["text"] == "SLO"
    assert figure["layout"]["showlegend"] is False, "one line needs no legend"


def test_what_is_not_finite_is_left_out() -> None:
    figure = charts.lines("t", {"a": [(0, math.inf), (1, 2.0), (2, math.nan)]}, limit=("x", math.inf))
    assert figure["data"][0]["y"] == [None, 2.0, None]
    assert "shapes" not in figure["layout"]
    assert b"null" in orjson.dumps(figure)


def test_bands_keep_every_x_and_drop_empty_series() -> None:
    series = {"a": [(0, 50.0), (1, 50.0)], "b": [(0, 50.0), (1, 50.0)], "none": [(0, 0.0), (1, 0.0)]}
    figure = charts.bands("t", series, end=2, high=100.0)
    assert [trace["name"] for trace in figure["data"]] == ["a", "b"]
    assert all(trace["x"] == [0, 1, 2] for trace in figure["data"])
    assert figure["layout"]["yaxis"]["range"] == [0.0, 100.0]


def test_bars_stack_negative_values_too_and_a_scatter_joins_what_nothing_beats() -> None:
    assert charts.bars("t", {"a": [("x", -1.0)], "b": [("x", 2.0)]})["layout"]["barmode"] == "relative"
    points = {"good": (1.0, 5.0), "worse": (2.0, 4.0), "more": (3.0, 6.0)}
    joined = charts.scatter("t", "loss", points, {})["data"][0]
    assert (joined["x"], joined["y"]) == ([1.0, 3.0], [5.0, 6.0])


def test_a_sheet_holds_figures_that_cannot_end_their_element() -> None:
    made = charts.ChartSheet()
    place = made.add(charts.lines("</script><b>", {"a": [(0, 1.0)]}))
    assert 'aria-label="&lt;/script&gt;&lt;b&gt;"' in place
    assert "</script><b>" not in made.scripts()


def test_a_sheet_without_figures_carries_no_script() -> None:
    assert charts.ChartSheet().scripts() == ""


def test_a_sheet_without_plotly_has_no_places_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "plotly_script", lambda: None)
    made = charts.ChartSheet()
    assert made.add(charts.lines("t", {"a": [(0, 1.0)]})) == ""
    assert "clover-inference[dashboard]" in made.scripts()
