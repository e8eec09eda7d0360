"""A report is the sums of the ledger's rows, and every breakdown sums to it."""

from __future__ import annotations

import json
import math
from datetime import UTC
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.accounting.boundaries import WITHIN
from clover.accounting.devices import LINES
from clover.errors import LedgerError
from clover.report.breakdowns import BY, NO_TENANT, NOBODY, BreakdownRules, breakdowns_of
from clover.report.build import LINE_ABOUT, LedgerRows, ReportOptions, report_of
from clover.report.making import report_from
from clover.report.records import Report
from clover.report.render.page import report_page
from clover.report.render.text import report_text
from clover.report.source import read_rows
from clover.report.wording import headline, saved_words
from clover.telemetry.ledger import LedgerReader
from clover.telemetry.ledger.rows import GridRow, LineRow, RunRow, SavedRow, UsageRow
from tests.support.examples import examples
from tests.support.ledgers import PUE
from tests.support.reports import SCENE, ledger_file, made_report, rows_of

HOUR = 3600


def usage(start: int = 0, **more: Any) -> UsageRow:
    """Return a row of usage, of zeros but for `more`."""
    names = ("model", "variant", "device", "slice", "tenant", "label")
    figures = {field: 0 for field in UsageRow.__struct_fields__ if field not in (*names, "start", "length")}
    texts = dict.fromkeys(names, "") | {"model": "m"}
    return UsageRow(**{"start": start, "length": HOUR, **texts, **figures, **more})


def line(start: int = 0, name: str = "active", joules: float = 1.0, device: str = "gpu0") -> LineRow:
    return LineRow(start, HOUR, device, name, "measured", joules, joules * 0.1)


def grid(start: int = 0, seconds: float = HOUR, known: str = "live", **more: Any) -> GridRow:
    figures = {"joules": 3.6e6, "net_g": 200.0, "grams": 300.0} | more
    return GridRow(start, HOUR, "GB", "neso", "average", "lifecycle", known, seconds, 200.0, 60.0, 300.0, **figures)


def run_row(facts: object = None, configuration: object = None) -> RunRow:
    texts = [json.dumps(item) if item is not None else "" for item in (configuration, facts)]
    return RunRow(1, 0.0, 7200.0, None, "0.9", "box", 1, "c0ffee", texts[0], texts[1])


def report(rows: LedgerRows, end: float = 2 * HOUR, **more: Any) -> Report:
    return report_of(rows, ReportOptions(start=0.0, end=end, made=end, **more))


def test_sums_are_those_of_the_ledger() -> None:
    found = made_report()
    path, truth, _ = ledger_file()
    with LedgerReader(path) as ledger:
        sums = ledger.sums()
    assert sum(item.grams for item in found.lines) == pytest.approx(truth.grams_ng / 1e9, rel=1e-9)
    assert sum(item.joules for item in found.lines) == pytest.approx(sums.joules, rel=1e-9)
    assert found.rows == truth.rows == sums.rows
    assert found.requests == truth.requests
    assert found.period.recorded_s == pytest.approx(truth.seconds)
    counted = sum(row.grams for row in rows_of().lines if row.line in WITHIN["server"])
    assert found.operation.grams == pytest.approx(counted, rel=1e-9)
    assert found.facility_joules == pytest.approx(PUE * found.joules, rel=1e-6)
    assert found.market_g == pytest.approx(found.facility_joules / 3.6e6 * 50.0, rel=1e-9)


@pytest.mark.parametrize("by", BY)
def test_every_breakdown_sums_to_the_whole(by: Any) -> None:
    found = made_report()
    buckets = found.breakdown(by).buckets
    assert sum(item.grams for item in buckets) == pytest.approx(found.operation.grams, rel=1e-9)
    assert sum(item.joules for item in buckets) == pytest.approx(found.joules, rel=1e-9)
    assert sum(item.market_g or 0.0 for item in buckets) == pytest.approx(found.market_g, rel=1e-9)
    assert sum(item.rows for item in buckets) == found.rows
    if by not in ("variant", "device"):
        assert sum(item.requests or 0 for item in buckets) == found.requests


def test_a_models_own_energy_is_what_the_ledger_says_of_it() -> None:
    _, truth, _ = ledger_file()
    for bucket in made_report().breakdown("model").buckets:
        assert bucket.own_j == pytest.approx(truth.by_model_uj[bucket.name] / 1e6, rel=1e-9)


def test_a_variants_sums_are_those_of_its_model() -> None:
    found = made_report()
    for model in found.breakdown("model").buckets:
        parts = [item for item in found.breakdown("variant").buckets if item.name.startswith(f"{model.name}/")]
        assert sum(item.grams for item in parts) == pytest.approx(model.grams, rel=1e-9)


NAMES = st.sampled_from(["a", "b", "<c>"])
USAGE = st.builds(
    lambda start, model, variant, device, tenant, rows, joules: usage(
        start * HOUR,
        model=model,
        variant=variant,
        device=device,
        tenant=tenant,
        rows=rows,
        requests=rows,
        active_j=joules[0],
        active_g=joules[0] * 0.1,
        idle_j=joules[1],
        idle_g=joules[1] * 0.1,
        front_end_j=joules[2],
        front_end_g=joules[2] * 0.1,
        control_j=joules[3],
        control_g=joules[3] * 0.1,
        receipts_j=joules[4],
    ),
    st.integers(0, 30),
    NAMES,
    st.sampled_from(["", "small", "large"]),
    st.sampled_from(["", "gpu0", "host"]),
    st.sampled_from(["", "acme"]),
    st.integers(0, 9),
    st.lists(st.floats(0.0, 1e6), min_size=5, max_size=5),
)
LINE = st.builds(
    line,
    st.integers(0, 30).map(lambda hour: hour * HOUR),
    st.sampled_from(LINES),
    st.floats(-10.0, 1e6),
    st.sampled_from(["gpu0", "host"]),
)


def test_every_line_of_the_account_is_said_what_it_is() -> None:
    assert set(LINE_ABOUT) == set(LINES)


@settings(max_examples=examples(60))
@given(st.lists(USAGE, max_size=12), st.lists(LINE, max_size=12))
def test_breakdowns_of_any_rows_sum_to_the_whole(used: list[UsageRow], lines: list[LineRow]) -> None:
    rules = BreakdownRules(WITHIN["server"], lambda start: 1.5, 50.0, ZoneInfo("Europe/Berlin"), {})
    whole = math.fsum(row.joules for row in lines if row.line in WITHIN["server"])
    size = math.fsum(abs(row.joules) for row in lines) + math.fsum(row.joules for row in used)
    for found in breakdowns_of(used, lines, rules):
        assert math.fsum(item.joules for item in found.buckets) == pytest.approx(whole, abs=1e-9 * size + 1e-9)
        assert math.fsum(item.grams for item in found.buckets) == pytest.approx(whole * 0.1, abs=1e-9 * size + 1e-9)
        if found.by != "device":
            assert sum(item.rows for item in found.buckets) == sum(row.rows for row in used)


@settings(max_examples=examples(25))
@given(st.lists(USAGE, max_size=6), st.lists(LINE, max_size=6), st.booleans())
def test_any_report_survives_json(used: list[UsageRow], lines: list[LineRow], gridded: bool) -> None:
    found = report(LedgerRows(usage=used, lines=lines, grid=[grid()] if gridded else []), market_g_per_kwh=10.0)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Report) == found


def test_nobodys_energy_is_called_so() -> None:
    found = report(LedgerRows(lines=[line(name="unowned")], grid=[grid()]))
    for by in ("model", "variant", "tenant"):
        assert [item.name for item in found.breakdown(by).buckets] == [NOBODY]


def test_tenants_share_by_the_energy_of_their_rows_then_receipts_then_rows() -> None:
    def shares(*rows: UsageRow) -> dict[str, float]:
        found = report(LedgerRows(usage=rows, lines=[line(joules=100.0)], grid=[grid()]))
        return {item.name: item.joules for item in found.breakdown("tenant").buckets if item.joules}

    computed = usage(tenant="acme", variant="v", active_j=30.0), usage(variant="v", active_j=10.0, idle_j=40.0)
    assert shares(*computed) == pytest.approx({"acme": 75.0, NO_TENANT: 25.0})
    receipts = usage(tenant="acme", receipts_j=9.0), usage(receipts_j=1.0), usage(variant="v", active_j=40.0)
    assert shares(*receipts) == pytest.approx({"acme": 90.0, NO_TENANT: 10.0})
    counts = usage(tenant="acme", rows=1), usage(rows=3), usage(variant="v", active_j=40.0)
    assert shares(*counts) == pytest.approx({"acme": 25.0, NO_TENANT: 75.0})
    assert shares(usage(variant="v", active_j=40.0)) == pytest.approx({NO_TENANT: 100.0})


def test_an_empty_ledger_gives_an_empty_report() -> None:
    found = report(LedgerRows())
    assert (found.rows, found.joules, found.operation.grams, found.sci, found.embodied) == (0, 0.0, 0.0, None, None)
    assert [gap.seconds for gap in found.gaps] == [2 * HOUR]
    assert found.period.recorded == 0.0
    assert all(not item.buckets for item in found.breakdowns)


def test_one_minute_is_enough() -> None:
    rows = LedgerRows(
        usage=[msgspec.structs.replace(usage(60, rows=1, active_j=3.6e6), length=60)],
        lines=[LineRow(60, 60, "gpu0", "active", "measured", 3.6e6, 300.0)],
        grid=[
            GridRow(60, 60, "GB", "neso", "average", "lifecycle", "live", 60.0, 200.0, 1.0, 1.0, 3.6e6, 200.0, 300.0)
        ],
    )
    found = report(rows, end=180.0)
    assert found.pue == pytest.approx(1.5)
    assert found.breakdown("hour").buckets[0].g_per_kwh == pytest.approx(200.0)
    assert [(gap.start, gap.seconds) for gap in found.gaps] == [(0.0, 60.0), (120.0, 60.0)]


def test_embodied_carbon_follows_the_standard() -> None:
    hardware = {
        "device": "host", "product": "p", "kg": 1200.0, "low_kg": 600.0, "high_kg": None, "reserved": 8, "total": 16,
        "for_workers": 4.0, "slices": 4, "known": "cited default", "source": "s",
    }  # fmt: skip
    facts = {"pue": 1.2, "life_years": 4.0, "hardware": [hardware]}
    rows = LedgerRows(usage=[usage(rows=10)], lines=[line()], grid=[grid(), grid(HOUR)], runs=[run_row(facts)])
    found = report(rows)
    expected = 1200e3 * (2 * HOUR / (4 * 365 * 86_400)) * (8 / 16)
    assert found.embodied is not None
    assert found.sci is not None
    assert found.embodied.grams == pytest.approx(expected)
    assert (found.embodied.low_g, found.embodied.high_g) == pytest.approx((expected / 2, expected))
    assert found.sci.grams == pytest.approx((expected + found.operation.grams) / 10)


@pytest.mark.parametrize("facts", [None, {}, {"hardware": [], "life_years": 4.0}, {"life_years": 4.0}, "nonsense"])
def test_embodied_carbon_is_unknown_without_the_facts(facts: object) -> None:
    found = report(LedgerRows(usage=[usage(rows=1)], lines=[line()], grid=[grid()], runs=[run_row(facts)]))
    assert (found.embodied, found.sci, found.total) == (None, None, None)


def test_hardware_of_unknown_carbon_makes_all_of_it_unknown() -> None:
    known = {
        "device": "host", "product": "p", "kg": 1.0, "low_kg": None, "high_kg": None, "reserved": 1, "total": 1,
        "known": "configured", "source": "s",
    }  # fmt: skip
    facts = {"life_years": 4.0, "hardware": [known, {**known, "device": "gpu0", "kg": None}]}
    found = report(LedgerRows(lines=[line()], grid=[grid()], runs=[run_row(facts)]))
    assert found.embodied is None
    assert len(found.hardware) == 2


def test_without_a_pue_there_is_no_market_based_figure() -> None:
    found = report(LedgerRows(lines=[line()]), market_g_per_kwh=50.0)
    assert (found.pue, found.market_g) == (None, None)
    configured = report(
        LedgerRows(lines=[line()], runs=[run_row(None, {"carbon": {"pue": 1.4}})]), market_g_per_kwh=50.0
    )
    assert configured.pue == pytest.approx(1.4)


def test_intervals_are_those_of_the_meters() -> None:
    facts = {"devices": {"gpu0": {"method": "measured", "uncertainty_low": -0.1, "uncertainty_high": 0.2}}}
    rows = LedgerRows(lines=[line(joules=10.0), line(joules=10.0, device="host")], runs=[run_row(facts)])
    assert report(rows).operation.low_g == pytest.approx(0.9 + 0.95)
    assert report(rows).operation.high_g == pytest.approx(1.2 + 1.05)


def test_savings_are_summed_and_may_be_losses() -> None:
    def saved(start: int, own: float, other: float) -> SavedRow:
        return SavedRow(
            start, HOUR, "m", "server", "base", "modelled", 100, own, own, other, other, 9000.0, 9300.0, 1.0
        )

    elsewhere = SavedRow(0, HOUR, "m", "workers", "base", "modelled", 10, 9.0, 9.0, 9.0, 9.0, 0.0, 0.0, 0.0)
    rows = LedgerRows(saved=[saved(0, 10.0, 8.0), saved(HOUR, 10.0, 9.0), elsewhere])
    (found,) = report(rows).saved
    assert found.saved.grams == pytest.approx(-3.0)
    assert (found.saved.low_g, found.saved.high_g) == pytest.approx((-5.0, -1.0))
    assert found.part == pytest.approx(-3.0 / 17.0)
    assert found.given_up_points == pytest.approx(3.0)
    assert saved_words(found) == "emitted 3 g (17.6 %) MORE than BASE, 3.00 points of accuracy given up"


def test_comparisons_that_are_not_known_are_left_out() -> None:
    row = SavedRow(0, HOUR, "m", "server", "other", "modelled", 500, 9.0, 9.0, 10.0, 10.0, 46e3, 46e3, 0.1)
    known = msgspec.structs.replace(row, against="base")
    assert [item.against for item in report(LedgerRows(lines=[line()], saved=[row, known])).saved] == ["base"]


def test_a_load_that_is_too_little_to_save_on_is_said_first_and_compared_on_request() -> None:
    def saved(against: str, other: float) -> SavedRow:
        return SavedRow(0, HOUR, "m", "server", against, "modelled", 500, 9.0, 9.0, other, other, 46e3, 46e3, 0.1)

    idle = [line(joules=1.0), line(joules=9.0, name="idle")]
    found = report(LedgerRows(lines=idle, saved=[saved("base", 9.5), saved("fixed", 9.1)]))
    head, *others = headline(found, UTC)
    assert head == ("Load", "too little load to save on: idle is 90 % of the energy.")
    assert "report --comparisons" in dict(others)["Saved"]
    plain, asked = (report_text(found, "day", UTC, 100, comparisons=asked) for asked in (False, True))
    assert plain.index("too little load") < plain.index("Emitted")
    assert "best fixed mix" not in plain
    assert "best fixed mix" in asked
    page = report_page(found, UTC)
    assert page.index("too little load") < page.index("Emitted")
    assert "<details><summary>Comparisons</summary>" in page
    assert "best fixed mix" in page
    busy = report(LedgerRows(lines=[*idle, line(joules=20.0)], saved=[saved("base", 9.5)]))
    assert [name for name, _ in headline(busy, UTC)] == ["Emitted", "Where", "Saved", "How sure", "Gaps"]


def test_what_waiting_avoided_has_a_line_of_its_own_however_little_the_load() -> None:
    def saved(against: str, other: float) -> SavedRow:
        return SavedRow(0, HOUR, "m", "server", against, "modelled", 500, 9.0, 9.0, other, other, 46e3, 46e3, 0.1)

    rows = [saved("base", 9.5), saved("at once", 12.0)]
    for idle_j, named in ((90.0, "Not said of such a load"), (1.0, "against BASE")):
        used = [line(joules=10.0), line(joules=idle_j, name="idle")]
        found = report(LedgerRows(lines=used, saved=rows))
        head = dict(headline(found, UTC))
        assert head["Waiting"] == "3 g (25 %) against starting at once, by 500 rows of batch jobs, which emitted 9 g."
        assert named in head["Saved"]
        assert "at once" not in head["Saved"]
        assert "starting at once" in report_page(found, UTC)
    alone = dict(headline(report(LedgerRows(lines=[line()], saved=rows[1:])), UTC))
    assert alone["Saved"].startswith("Nothing can be compared")


@pytest.mark.parametrize(("rows", "words"), [(1, "1 row was answered"), (1200, "1,200 rows were answered")])
def test_rows_are_counted_in_words(rows: int, words: str) -> None:
    found = msgspec.structs.replace(report(LedgerRows(lines=[line()])), rows=rows)
    assert words in dict(headline(found, UTC))["Emitted"]


def test_a_few_rows_make_no_percentage() -> None:
    saved = SavedRow(0, HOUR, "m", "server", "base", "modelled", 99, 9.0, 9.0, 8.0, 8.0, 8900.0, 9200.0, 1.0)
    found = report(LedgerRows(lines=[line()], saved=[saved]))
    (item,) = found.saved
    assert (item.part, item.saved.grams) == (None, pytest.approx(-1.0))
    assert saved_words(item) == "against BASE it is too early to say (99 of the 100 rows that a percentage takes)"
    assert "too early to say" in dict(headline(found, UTC))["Saved"]
    assert "too early to say" in report_page(found, UTC)


def test_a_machine_is_unknown_where_a_model_stands_in() -> None:
    modelled = LineRow(0, HOUR, "host", "foreign", "modelled", 5.0, 1.0)
    by_name = {item.boundary: item for item in report(LedgerRows(lines=[line(), modelled])).boundaries}
    assert by_name["machine"].grams is None
    measured = {item.boundary: item for item in report(LedgerRows(lines=[line(), line(name="foreign")])).boundaries}
    assert measured["machine"].grams == pytest.approx(0.2)


def test_hours_of_a_zone_with_a_half_hour_are_read_by_the_minute() -> None:
    with LedgerReader(ledger_file()[0]) as ledger:
        end = SCENE.end_s
        fine = read_rows(ledger, end - 3600, end, ZoneInfo("Asia/Kolkata"))
        coarse = read_rows(ledger, end - 3600, end, UTC)
    assert {row.length for row in fine.lines} == {60}
    assert {row.length for row in coarse.lines} == {3600}
    assert sum(row.joules for row in fine.lines) == pytest.approx(sum(row.joules for row in coarse.lines), rel=1e-9)


def test_a_period_without_entries_says_what_there_is() -> None:
    day = SCENE.end_s + 30 * 86_400.0
    with (
        LedgerReader(ledger_file()[0]) as ledger,
        pytest.raises(LedgerError, match=r"^the ledger has nothing from 2026-10-24 00:00 UTC to .*: it has 2026-09-22"),
    ):
        report_from(ledger, ReportOptions(start=day, end=day + 60.0, made=day))


def test_seconds_that_are_missing_within_an_entry_are_said() -> None:
    found = report(LedgerRows(lines=[line(), line(HOUR)], grid=[grid(seconds=3000.0), grid(HOUR)]))
    assert found.missing_s == pytest.approx(600.0)
    assert dict(headline(found, UTC))["Gaps"].startswith(
        "No time without any record. 10 min is missing within entries, in which the server started or ended."
    )
    assert report(LedgerRows()).missing_s == 0.0


def test_what_is_in_no_comparison_is_named() -> None:
    saved = SavedRow(0, HOUR, "m", "server", "base", "modelled", 500, 1.0, 0.05, 2.0, 0.1, 4e4, 4e4, 0.01)
    lines = [line(joules=1.5), line(joules=0.5, name="unowned")]
    words = dict(headline(report(LedgerRows(lines=lines, saved=[saved])), UTC))["Saved"]
    assert "25 % of the electricity's grams; the rest was used before the first row that could be compared" in words
    assert "idle" not in words


def test_idle_power_that_no_worker_holds_is_compared() -> None:
    assert min(item.part_of_emitted for item in made_report().saved) == pytest.approx(1.0, abs=1e-3)


def test_a_bucket_says_how_long_was_recorded() -> None:
    found = report(
        LedgerRows(
            usage=[usage(0, rows=5), usage(HOUR, rows=5)],
            lines=[line(0), line(HOUR)],
            grid=[grid(0, 1200.0), grid(0, 600.0, known="bridged"), grid(HOUR)],
        )
    )
    assert [bucket.seconds for bucket in found.breakdown("hour").buckets] == [1800.0, 3600.0]
    assert [bucket.seconds for bucket in found.breakdown("day").buckets] == [found.period.recorded_s] == [5400.0]
    assert {bucket.seconds for bucket in found.breakdown("model").buckets} == {0.0}
    unpriced = report(LedgerRows(lines=[line(0)]))
    assert [bucket.seconds for bucket in unpriced.breakdown("hour").buckets] == [unpriced.period.recorded_s]


def test_a_number_from_the_configuration_is_a_factor() -> None:
    last_resort = GridRow(
        0, HOUR, "", "configured", "unknown", "unknown", "configured", 1800.0, 400.0, 0.0, 0.0, 1.0, 1.0, 1.5
    )
    stated = GridRow(0, HOUR, "", "static", "unknown", "unknown", "configured", 900.0, 50.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    found = report(LedgerRows(lines=[line()], grid=[last_resort, stated, grid(0, 900.0)]))
    factors = {item.source: item.value for item in found.inputs.factors if item.name.startswith("configured intensity")}
    assert factors == {
        "setting carbon.configured_g_per_kwh, 400 unless set": 400.0,
        "setting carbon.source, static:G": 50.0,
    }
    about = next(item.about for item in found.intensity_known if item.name == "configured")
    assert about == "a number from the configuration (carbon.configured_g_per_kwh, 400 unless set, or static:G)"
    live = report(LedgerRows(lines=[line()], grid=[grid()]))
    assert not any(item.name.startswith("configured intensity") for item in live.inputs.factors)
