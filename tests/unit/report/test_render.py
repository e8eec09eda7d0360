"""A report as text, CSV, Parquet and HTML, for people and programs that trust nothing."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
from datetime import UTC
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.charts import sheet
from clover.errors import ConfigError
from clover.report import figures
from clover.report.breakdowns import BY
from clover.report.build import LedgerRows, ReportOptions, report_of
from clover.report.calendar import zone_of
from clover.report.records import Gap, Report, ReportedApplication
from clover.report.render import markup
from clover.report.render.columns import csv_of, parquet_of, safe, table_of
from clover.report.render.page import report_page
from clover.report.render.text import report_text
from clover.report.wording import duration, energy, entries_words, percent
from clover.telemetry.ledger.rows import LineRow, UsageRow
from tests.support.reports import made_report

EVIL = "</script><script>alert(1)</script>\"'&<b>"


@pytest.fixture
def without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "plotly_script", lambda: None)


def evil_report() -> Report:
    device = "gpu\x1b[31m0"
    names = (EVIL, "=HYPERLINK(1)", device, "s", "@tenant", "measured")
    usage = UsageRow(0, 3600, *names, 1, 1, 0, 0, 0, 7, *[1.0] * 9)
    lines = [LineRow(0, 3600, device, "active", "measured", 1.0, 1.0)]
    options = ReportOptions(
        start=0.0, end=3600.0, made=0.0, server=EVIL, application=ReportedApplication(name=EVIL, organisation=EVIL)
    )
    return report_of(LedgerRows(usage=[usage], lines=lines), options)


# --- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("width", [80, 132])
def test_text_fits_the_terminal(by: Any, width: int) -> None:
    for line in report_text(made_report(), by, UTC, width).splitlines():
        assert len(line) <= width or re.search(r"\S{64}", line), line  # a digest is never broken


def test_text_answers_the_four_questions() -> None:
    text = report_text(made_report(), "day", UTC, 80, comparisons=True)
    for word in (
        "Emitted",
        "Saved",
        "How sure",
        "Gaps",
        "market-based",
        "location-based",
        "BASE: the best variant",
        "best fixed mix",
        "PUE 1.5",
    ):
        assert word in text
    assert "Not in it: clients and" in text


def test_the_score_is_one_line_with_its_boundary() -> None:
    text = " ".join(report_text(made_report(), "day", UTC, 80).split())
    assert text.count(" SCI ") == 1
    assert "for 1,000 rows within the server (operation and embodied, ISO/IEC 21031)" in text
    assert "<dt>SCI, within the server</dt>" in report_page(made_report(), UTC)


def test_a_marginal_intensity_is_not_called_location_based() -> None:
    for grids, word in (
        (made_report().grids, "location-based"),
        (tuple(msgspec.structs.replace(item, signal="marginal") for item in made_report().grids), "marginal"),
        ((*made_report().grids, msgspec.structs.replace(made_report().grids[0], signal="marginal")), "partly marginal"),
    ):
        report = msgspec.structs.replace(made_report(), grids=grids)
        assert f"  {word}" in report_text(report, "day", UTC, 132)
        assert f"CO2e, {word}<" in report_page(report, UTC)
        signals = {row["signal"] for row in csv.DictReader(io.StringIO(csv_of(report, "day"), newline=""))}
        assert all(("marginal" in signal) == (word != "location-based") for signal in signals)


def test_factors_say_what_they_are() -> None:
    plain = " ".join(report_text(made_report(), "day", UTC, 80).split())
    assert all(item.about in plain for item in made_report().inputs.factors)


def test_text_steers_no_terminal() -> None:
    for by in BY:
        assert "\x1b" not in report_text(evil_report(), by, UTC, 80)


def test_text_of_nothing() -> None:
    empty = report_of(LedgerRows(), ReportOptions(start=0.0, end=60.0, made=60.0))
    text = report_text(empty, "hour", UTC, 80)
    assert "Nothing is recorded of this period." in text
    assert "1 min without any record" in text


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (energy(0.0), "0 Wh"),
        (energy(3.6e6 * 25.6), "25.6 kWh"),
        (energy(3.6e9), "1 MWh"),
        (energy(1.0), "278 µWh"),
        (percent(0.0), "0 %"),
        (percent(0.0001), "< 0.1 %"),
        (percent(0.99999), "> 99.9 %"),
        (percent(1.0), "100 %"),
        (percent(-0.25), "-25 %"),
        (duration(59.0), "59 s"),
        (duration(3600.0), "1 h"),
        (duration(7 * 86_400.0), "7 days"),
        (duration(2 * 86_400.0 + 7200.0), "2 days 2 h"),
    ],
)
def test_quantities_read_well(found: str, expected: str) -> None:
    assert found == expected


# --- CSV and Parquet ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", BY)
def test_csv_has_every_bucket_with_the_sums(by: Any) -> None:
    report = made_report()
    rows = list(csv.DictReader(io.StringIO(csv_of(report, by), newline="")))
    assert len(rows) == len(report.breakdown(by).buckets)
    assert sum(float(row["location_based_gco2e"]) for row in rows) == pytest.approx(report.operation.grams)
    assert sum(float(row["energy_kwh"]) for row in rows) * 3.6e6 == pytest.approx(report.joules)
    assert {row["boundary"] for row in rows} == {"server"}


def test_csv_runs_no_formula() -> None:
    for by in BY:
        for row in list(csv.reader(io.StringIO(csv_of(evil_report(), by), newline="")))[1:]:
            for cell in row:
                assert not cell.startswith(("=", "+", "@", "\t", "\r"))
                assert not cell.startswith("-") or float(cell) < 0.0
    assert safe("=1+1") == "'=1+1"
    assert safe(" @x") == "' @x"
    assert safe("acme") == "acme"


@given(st.text())
def test_no_text_becomes_a_formula(text: str) -> None:
    assert not safe(text).lstrip().startswith(("=", "+", "-", "@"))
    assert "\n" not in safe(text)
    assert "\t" not in safe(text)


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="the extra analysis (pyarrow) is not installed")
def test_parquet_has_the_same_cells_with_types_and_the_report() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    report = made_report()
    found = pq.read_table(io.BytesIO(parquet_of(report, "hour", msgspec.json.encode(report))))
    heads, rows = table_of(report, "hour")
    assert found.column_names == heads
    assert found.to_pylist() == [dict(zip(heads, row, strict=True)) for row in rows]
    assert found.schema.field("rows").type == pa.int64()
    carried = msgspec.json.decode(found.schema.metadata[b"clover"], type=Report)
    assert carried == report


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"clover-inference\[analysis\]"):
        parquet_of(made_report(), "hour", b"")


# --- HTML -----------------------------------------------------------------------------------------------------------


class Outline(HTMLParser):
    """The elements of a page, with what they load, and whether each is closed."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [f"{name}={value}" for name, value in attrs if name in ("src", "href", "action", "srcset")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.usefixtures("without_plotly")
def test_a_page_is_well_formed_and_loads_nothing() -> None:
    page = report_page(made_report(), UTC)
    outline = Outline(page)
    assert outline.open == []
    assert outline.loads == []
    assert "default-src 'none'" in page
    assert sheet.MISSING.split(":")[0] in page.replace("&quot;", '"')
    for anchor in ("saved", "time", "uses", "shares", "sums", "sure", "gaps", "quality", "boundary", "inputs", "words"):
        assert f'<section id="{anchor}">' in page


@pytest.mark.usefixtures("without_plotly")
def test_a_page_escapes_everything() -> None:
    page = report_page(evil_report(), UTC)
    assert "alert(1)</script>" not in page
    outline = Outline(page)
    assert outline.open == []
    assert outline.handlers == []
    # The data, and what opens folds for print; nothing else runs.
    assert outline.tags.count("script") == 2
    assert markup.data_of(page) is not None
    assert json.loads(markup.data_of(page) or "")["application"]["name"] == EVIL


@pytest.mark.usefixtures("without_plotly")
def test_a_page_of_nothing() -> None:
    page = report_page(report_of(LedgerRows(), ReportOptions(start=0.0, end=60.0, made=60.0)), UTC)
    assert "Nothing is recorded of this period." in page
    assert Outline(page).open == []


@pytest.mark.skipif(sheet.plotly_script() is None, reason="the extra dashboard (plotly) is not installed")
def test_charts_are_drawn_by_what_the_page_carries() -> None:
    page = report_page(made_report(), UTC)
    assert 4e6 < len(page) < 7e6
    assert page.count('class="chart"') == 5
    assert Outline(re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)).loads == []


def test_figures_are_plain_data_and_break_at_gaps() -> None:
    report = made_report()
    figure = figures.emissions(report, UTC)
    assert json.loads(json.dumps(figure)) == figure
    hours = report.breakdown("hour").buckets
    gaps = sum(1 for one, two in pairwise(hours) if (two.start or 0) - (one.start or 0) > 3600)
    assert gaps > 0
    assert figure["data"][0]["y"].count(None) == gaps


def test_names_in_figures_are_no_markup() -> None:
    text = json.dumps(figures.shares(evil_report(), "model"))
    assert "<script" not in text
    assert "<b>" not in text


def test_cautions_are_loud() -> None:
    lines = [LineRow(0, 3600, "gpu0", "active", "emulated", 1.0, 1.0)]
    page = report_page(report_of(LedgerRows(lines=lines), ReportOptions(start=0.0, end=3600.0, made=0.0)), UTC)
    assert '<p class="caution">EMULATED hardware drew no power' in page


@pytest.mark.usefixtures("without_plotly")
def test_the_card_of_gaps_says_of_what_there_is_none() -> None:
    gaps = (Gap(what="intensity", start=0.0, seconds=1440.0, reason="the configured number stood in"),)
    page = report_page(msgspec.structs.replace(made_report(), gaps=gaps), UTC)
    card = page[page.index("<h2>Gaps</h2>") :]
    assert "none in the record" in card[: card.index("24 min without a live intensity")]


@pytest.mark.usefixtures("without_plotly")
@pytest.mark.parametrize(
    ("coarsest_s", "zone", "by_hour", "by_day"),
    [
        (60, "Asia/Kolkata", "", ""),
        (3600, "Europe/Berlin", "", ""),
        (3600, "Asia/Kolkata", "hours of UTC", "hours of UTC"),
        (86_400, "UTC", "days of UTC", ""),
        (86_400, "Europe/Berlin", "days of UTC", "days of UTC"),
    ],
)
def test_entries_that_are_no_hours_are_not_called_hours(coarsest_s: int, zone: str, by_hour: str, by_day: str) -> None:
    report = made_report()
    report = msgspec.structs.replace(report, period=msgspec.structs.replace(report.period, coarsest_s=coarsest_s))
    where, page = zone_of(zone), report_page(report, zone_of(zone))
    assert ("hourly matching" in page) == (not by_hour)
    for by, words in (("hour", by_hour), ("day", by_day)):
        sentence = entries_words(report, by, where)  # type: ignore[arg-type]
        assert words in sentence
        assert bool(sentence) == bool(words)
        assert sentence in page
        assert sentence in " ".join(report_text(report, by, where, 80).split())  # type: ignore[arg-type]
    assert entries_words(report, "model", where) == ""
