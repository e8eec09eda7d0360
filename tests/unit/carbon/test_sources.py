"""Sources of carbon intensity: three file layouts and their faults, the duck curve, the constant, the grid clock."""

from __future__ import annotations

import asyncio
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.carbon import SOURCES, GridClock, build, build_source
from clover.carbon.layouts import parse_table, parse_time
from clover.carbon.synthetic import StaticSource, SyntheticSource, duck_curve_g_per_kwh
from clover.carbon.trace import TraceSource
from clover.config import CarbonConfig
from clover.control.report import intensity
from clover.errors import CarbonError, ConfigError
from clover.types import Reading

HOUR = 3600.0
TRACES = sorted((Path(__file__).resolve().parents[4] / "shared" / "traces").glob("*.csv"))

TWO_COLUMN = """datetime_utc,carbon_intensity_gco2_per_kwh
2022-01-01T00:00:00Z,100
2022-01-01T01:00:00Z,NaN
2022-01-01T02:00:00Z,
2022-01-01T03:00:00Z,130.5
2022-01-01T05:00:00Z,150
"""
T0 = parse_time("2022-01-01T00:00Z")

ELECTRICITY_MAPS = """Datetime (UTC),Country,Zone Name,Zone Id,Carbon Intensity gCO2eq/kWh (direct),\
Carbon Intensity gCO2eq/kWh (LCA),Low Carbon Percentage,Data Source,Data Estimated
2023-05-01 00:00:00,Germany,Germany,DE,301.5,350.25,40,entsoe.eu,False
2023-05-01 01:00:00,Germany,Germany,DE,290,340,41,entsoe.eu,True
"""

NESO_JSON = {
    "data": [
        {
            "from": "2018-01-20T12:00Z",
            "to": "2018-01-20T12:30Z",
            "intensity": {"forecast": 266, "actual": 263, "index": "moderate"},
        },
        {
            "from": "2018-01-20T12:30Z",
            "to": "2018-01-20T13:00Z",
            "intensity": {"forecast": 270, "actual": None, "index": "moderate"},
        },
    ]
}


def trace(folder: Path, text: str, name: str = "day.csv", options: str = "") -> TraceSource:
    (folder / name).write_text(text, encoding="utf-8")
    source = build_source(f"trace:{folder / name}{options}")
    assert isinstance(source, TraceSource)
    return source


def read(source: TraceSource | SyntheticSource | StaticSource, grid_s: float) -> Reading:
    return asyncio.run(source.read(grid_s))


# --- files --------------------------------------------------------------------------------------------------------


def test_a_two_column_trace_holds_each_value_for_one_step_and_never_fills_a_gap(tmp_path: Path) -> None:
    source = trace(tmp_path, TWO_COLUMN)
    assert (source.layout, source.step_s, source.start_s, source.end_s) == ("two-column", HOUR, T0, T0 + 6 * HOUR)
    assert (source.empty, source.missing, source.gaps) == (2, 1, 3)
    first = read(source, T0 + 1800)
    assert first == Reading(g_per_kwh=100, at_s=T0, provider="trace:day", age_s=1800, step_s=HOUR)
    assert read(source, T0 + 3 * HOUR).g_per_kwh == 130.5
    for gap in (T0 + HOUR, T0 + 2.5 * HOUR, T0 + 4 * HOUR, T0 + 6 * HOUR, T0 - 1):
        with pytest.raises(CarbonError, match="trace:day has no value at 20"):
            read(source, gap)
    with pytest.raises(CarbonError, match="loop=1"):
        read(source, T0 + 7 * HOUR)


def test_a_looped_trace_starts_again_and_says_that_it_is_a_guess(tmp_path: Path) -> None:
    source = trace(tmp_path, TWO_COLUMN, options="?loop=1&zone=X&signal=average&scope=lifecycle")
    again = read(source, T0 + 6 * HOUR + 60)
    assert (again.g_per_kwh, again.at_s, again.age_s, again.estimated) == (100, T0 + 6 * HOUR, 60, True)
    assert (again.zone, again.signal, again.scope) == ("X", "average", "lifecycle")
    assert not read(source, T0).estimated
    assert read(source, T0 - 30).g_per_kwh == 150
    ahead = asyncio.run(source.forecast(T0 + 5 * HOUR, 7 * HOUR))
    assert [reading.g_per_kwh for reading in ahead] == [150, 100, 130.5, 150, 100]
    assert [(r.at_s - T0) / HOUR for r in ahead] == [5, 6, 9, 11, 12]


def test_the_forecast_of_a_trace_is_the_rows_to_come_without_its_gaps(tmp_path: Path) -> None:
    source = trace(tmp_path, TWO_COLUMN)
    ahead = asyncio.run(source.forecast(T0 + 60, 100 * HOUR))
    assert [reading.g_per_kwh for reading in ahead] == [100, 130.5, 150]
    assert all(reading.estimated and reading.method == "forecast" and reading.age_s == 0 for reading in ahead)
    assert asyncio.run(source.forecast(T0 + 100 * HOUR, HOUR)) == []
    assert [r.g_per_kwh for r in asyncio.run(source.forecast(T0 - HOUR, HOUR))] == [100]


@pytest.mark.parametrize(
    ("option", "method"),
    [
        ("", "unknown"),
        ("actual", "published"),
        ("published", "published"),
        ("estimated", "estimated"),
        ("forecast", "forecast"),
        ("synthetic", "synthetic"),
    ],
)
def test_what_a_two_column_file_cannot_say_is_unknown_unless_the_configuration_does(
    tmp_path: Path, option: str, method: str
) -> None:
    options = f"?method={option}&signal=average&scope=lifecycle" if option else ""
    reading = read(trace(tmp_path, TWO_COLUMN, options=options), T0)
    assert (reading.method, reading.estimated) == (method, method in ("estimated", "forecast", "synthetic"))
    assert (reading.signal, reading.scope) == (("average", "lifecycle") if option else ("unknown", "unknown"))


def test_a_file_that_says_how_its_values_are_known_is_not_contradicted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\?method= is for files of two columns"):
        trace(tmp_path, ELECTRICITY_MAPS, options="?method=actual")


@pytest.mark.parametrize(
    ("header", "scope"),
    [
        ("Carbon Intensity gCO2eq/kWh (LCA)", "lifecycle"),
        ("Carbon Intensity gCO\N{SUBSCRIPT TWO}eq/kWh (LCA)", "lifecycle"),
        ("Carbon intensity gCO\N{SUBSCRIPT TWO}eq/kWh (Life cycle)", "lifecycle"),
        ("Carbon intensity gCO2eq/kWh (direct)", "direct"),
    ],
)
def test_electricity_maps_columns_are_matched_by_their_scope(tmp_path: Path, header: str, scope: str) -> None:
    text = f"\ufeffDatetime (UTC),Zone id,{header}\n2023-05-01 00:00:00,DE,350\n2023-05-01 00:15:00,DE,340\n"
    source = trace(tmp_path, text)
    reading = read(source, parse_time("2023-05-01T00:15Z"))
    assert (reading.g_per_kwh, reading.zone, reading.signal, reading.scope) == (340, "DE", "average", scope)
    assert (source.layout, source.step_s) == ("electricity-maps", 900)


def test_electricity_maps_gives_lifecycle_unless_asked_and_keeps_its_estimated_flag(tmp_path: Path) -> None:
    at = parse_time("2023-05-01T00:00Z")
    assert read(trace(tmp_path, ELECTRICITY_MAPS), at).g_per_kwh == 350.25
    direct = read(trace(tmp_path, ELECTRICITY_MAPS, options="?scope=direct"), at)
    assert (direct.g_per_kwh, direct.scope, direct.estimated, direct.method) == (301.5, "direct", False, "published")
    later = read(trace(tmp_path, ELECTRICITY_MAPS), at + HOUR)
    assert (later.estimated, later.method) == (True, "estimated")


def test_a_file_of_several_zones_asks_which(tmp_path: Path) -> None:
    text = ELECTRICITY_MAPS + "2023-05-01 00:00:00,France,France,FR,20,45,95,rte,False\n"
    text += "2023-05-01 01:00:00,France,France,FR,21,46,95,rte,False\n"
    with pytest.raises(ConfigError, match=r"several zones \(DE, FR\)"):
        trace(tmp_path, text)
    assert read(trace(tmp_path, text, options="?zone=FR"), parse_time("2023-05-01T00:00Z")).g_per_kwh == 45
    with pytest.raises(ConfigError, match="no row of zone XX"):
        trace(tmp_path, text, options="?zone=XX")


def test_neso_json_takes_the_forecast_where_there_is_no_actual_value(tmp_path: Path) -> None:
    source = trace(tmp_path, json.dumps(NESO_JSON), name="gb.json")
    at = parse_time("2018-01-20T12:00Z")
    actual, forecast = read(source, at), read(source, at + 1800)
    assert (source.layout, source.step_s, source.gaps) == ("neso", 1800, 0)
    assert (actual.g_per_kwh, actual.method, actual.estimated, actual.zone) == (263, "published", False, "GB")
    assert (forecast.g_per_kwh, forecast.method, forecast.estimated) == (270, "forecast", True)
    assert [reading.g_per_kwh for reading in asyncio.run(source.forecast(at, HOUR))] == [266, 270]


@pytest.mark.parametrize(
    ("header", "row", "value", "estimated"),
    [
        ("from,actual", "{},200", 200, False),
        ("from,forecast", "{},210", 210, True),
        ("from,to,actual", "{},{},200", 200, False),
        ("from,to,forecast", "{},{},210", 210, True),
        ("from,to,actual,forecast", "{},{},,210", 210, True),
        ("from,to,intensity.forecast,intensity.actual,index", "{},{},210,200,low", 200, False),
        ("DATETIME,ACTUAL,FORECAST", "{},200,210", 200, False),
    ],
)
def test_neso_csv_variants(tmp_path: Path, header: str, row: str, value: float, estimated: bool) -> None:
    times = ("2021-01-01T00:00Z", "2021-01-01T00:30Z", "2021-01-01T01:00Z")
    text = "\n".join([header, row.format(*times[:2]), row.format(*times[1:])])
    reading = read(trace(tmp_path, text), parse_time(times[0]))
    assert (reading.g_per_kwh, reading.estimated, reading.zone) == (value, estimated, "GB")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "unknown columns"),
        ("a,b\n1,2\n", "unknown columns"),
        ("datetime_utc,carbon_intensity_gco2_per_kwh\n", "holds no value"),
        ("datetime_utc,carbon_intensity_gco2_per_kwh\n2022-01-01,nan\n2022-01-02,\n", "holds no value"),
        ("datetime_utc,carbon_intensity_gco2_per_kwh\n2022-01-01,5\n", "static:G"),
        ("datetime_utc,carbon_intensity_gco2_per_kwh\n2022-01-01T00:00Z\n", "line 2: too few columns"),
        ("datetime_utc,carbon_intensity_gco2_per_kwh\nyesterday,5\n", "line 2: 'yesterday' is no ISO 8601 time, as"),
        ("datetime_utc,carbon_intensity_gco2_per_kwh\n" + "x" * 99 + ",5\n", "line 2: '" + "x" * 40 + "' is no ISO"),
        ("datetime_utc,carbon_intensity_gco2_per_kwh\n2022-01-01,dirty\n", "line 2: 'dirty' is no number of gCO2e/kWh"),
        ('datetime_utc,carbon_intensity_gco2_per_kwh\n2022-01-01,"5,3"\n', "line 2: '5,3' is no .* with a point"),
        ("datetime_utc;carbon_intensity_gco2_per_kwh\n2022-01-01;5,3\n", "separated by semicolons.* by commas"),
        ("datetime_utc\tcarbon_intensity_gco2_per_kwh\n2022-01-01\t5\n", "separated by tabs"),
        ("datetime_utc,carbon_intensity_gco2_per_kwh\n2022-01-01,-3\n", "line 2: .*check the unit"),
        ("datetime_utc,carbon_intensity_gco2_per_kwh\n2022-01-01,inf\n", "line 2: .*check the unit"),
        ("datetime_utc,carbon_intensity_gco2_per_kwh\n2022-01-01,250000\n", "line 2: .*check the unit"),
        ("datetime_utc,carbon_intensity_gco2_per_kwh\n2022-01-01,1\n2022-01-01,2\n", "two values .*UTC"),
        ("datetime_utc,carbon_intensity_gco2_per_kwh\n2022-01-01,1\0\n", "NUL"),
        ('datetime_utc,carbon_intensity_gco2_per_kwh\n2022-01-01,"' + "1" * 200_000, "line .*field"),
        ("from,to,actual\n2022-01-01T01:00Z,2022-01-01T00:30Z,5\n", "line 2: it ends before it starts"),
        ("from,to,index\n2022-01-01T01:00Z,2022-01-01T01:30Z,low\n", "NESO columns expected"),
        ("Datetime (UTC),Carbon Intensity gCO2eq/kWh\n2022-01-01,5\n", "Electricity Maps columns expected"),
        ('{"data": 3}', "not a NESO answer"),
        ('[{"from": 1}]', "not a NESO answer"),
        ("{" * 100_000, "not a NESO answer"),
        ('{"data": []}', "holds no value"),
        ('{"data": [{"from": "x", "to": "y", "intensity": {"actual": 1}}]}', "line 1: "),
    ],
)
def test_a_file_that_is_not_understood_is_refused_with_the_place(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s)carbon trace .*{words}"):
        trace(tmp_path, text)


def test_gaps_are_counted_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trace(tmp_path, TWO_COLUMN)
    trace(tmp_path, "datetime_utc,carbon_intensity_gco2_per_kwh\n2022-01-01,1\n2022-01-02,\n2022-01-03,2\n")
    assert "3 gaps (2 empty rows, 1 missing); there" in caplog.records[0].getMessage()
    assert "1 gap (1 empty row, 0 missing); there" in caplog.records[1].getMessage()


def test_a_scope_the_file_lacks_is_refused(tmp_path: Path) -> None:
    text = "Datetime (UTC),Carbon intensity gCO2eq/kWh (direct)\n2022-01-01T00:00Z,5\n2022-01-01T01:00Z,5\n"
    with pytest.raises(ConfigError, match=r"no lifecycle intensity; use \?scope=direct"):
        trace(tmp_path, text, options="?scope=lifecycle")


def test_missing_folders_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        build_source(f"trace:{tmp_path / 'none.csv'}")
    with pytest.raises(ConfigError, match="there is no such file"):
        build_source(f"trace:{tmp_path}")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        build_source(f"trace:{tmp_path / 'binary'}")
    (tmp_path / "huge").touch()
    with (tmp_path / "huge").open("r+b") as file:
        file.truncate(65 << 20)
    with pytest.raises(ConfigError, match="larger than 64 MB"):
        build_source(f"trace:{tmp_path / 'huge'}")


@pytest.mark.slow
@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    for prefix in (b"", b"datetime_utc,carbon_intensity_gco2_per_kwh\n", b"from,to,actual\n", b'{"data":['):
        try:
            table = parse_table(prefix + data)
        except ConfigError:
            continue
        assert all(row.g is None or 0 <= row.g <= 5000 for row in table.rows)


VALUES = st.one_of(st.none(), st.floats(0, 5000, allow_nan=False))


@given(st.lists(VALUES, min_size=2, max_size=40), st.sampled_from([300, 900, 1800, 3600]), st.data())
def test_every_value_is_read_back_in_its_own_step_and_gaps_stay_gaps(
    tmp_path_factory: pytest.TempPathFactory, values: list[float | None], step_s: int, data: st.DataObject
) -> None:
    lines = [
        f"{datetime.fromtimestamp(T0 + n * step_s, UTC).isoformat()},{'' if value is None else repr(value)}"
        for n, value in enumerate(values)
    ]
    shuffled = data.draw(st.permutations(lines))
    folder = tmp_path_factory.mktemp("trace")
    text = "\n".join(["datetime_utc,carbon_intensity_gco2_per_kwh", *shuffled])
    if all(value is None for value in values):
        with pytest.raises(ConfigError, match="holds no value"):
            trace(folder, text)
        return
    source = trace(folder, text)
    assert (source.step_s, source.empty, source.missing) == (step_s, values.count(None), 0)
    n = data.draw(st.integers(0, len(values) - 1))
    grid_s = T0 + n * step_s + data.draw(st.integers(0, step_s - 1))
    value = values[n]
    if value is None:
        with pytest.raises(CarbonError):
            read(source, grid_s)
    else:
        assert read(source, grid_s).g_per_kwh == value
    ahead = asyncio.run(source.forecast(T0, len(values) * step_s))
    assert [reading.g_per_kwh for reading in ahead] == [value for value in values if value is not None]


@pytest.mark.slow
@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_the_experiments_traces_load(path: Path) -> None:
    source = TraceSource(path)
    assert source.step_s == HOUR
    assert 0 < read(source, source.start_s).g_per_kwh < 1000
    assert (source.end_s - source.start_s) / HOUR >= 49


# --- formula, constant, clock -------------------------------------------------------------------------------------


def test_the_duck_curve_has_its_shape_and_stays_in_its_range() -> None:
    monday = parse_time("2024-04-15T00:00Z")
    day = [duck_curve_g_per_kwh(monday + hour * HOUR) for hour in range(24)]
    noon, evening, morning, night = day[13], day[20], day[7], day[3]
    assert noon == min(day)
    assert evening == max(day)
    assert noon < night < morning < evening
    assert duck_curve_g_per_kwh(monday + 5 * 86400) < duck_curve_g_per_kwh(monday + 4 * 86400)
    assert duck_curve_g_per_kwh(parse_time("2024-01-15T20:00Z")) > duck_curve_g_per_kwh(parse_time("2024-07-15T20:00Z"))
    year = [duck_curve_g_per_kwh(monday + n * 1800) for n in range(2 * 24 * 366)]
    assert 120 <= min(year) < 135
    assert 400 < max(year) <= 420


@given(st.floats(-1e11, 1e11))
def test_the_duck_curve_is_finite_and_repeatable_at_any_time(grid_s: float) -> None:
    assert 115 < duck_curve_g_per_kwh(grid_s) < 425
    assert duck_curve_g_per_kwh(grid_s) == duck_curve_g_per_kwh(grid_s)
    reading = read(SyntheticSource(), grid_s)
    assert 0 <= reading.age_s <= 300
    assert (reading.method, reading.signal, reading.provider) == ("synthetic", "average", "synthetic")


def test_synthetic_and_static_forecast_what_they_will_read() -> None:
    source = SyntheticSource()
    ahead = asyncio.run(source.forecast(T0 + 10, 3 * HOUR))
    assert len(ahead) == 37
    assert all(reading.g_per_kwh == read(source, reading.at_s).g_per_kwh for reading in ahead)
    constant = build_source("static:250")
    assert isinstance(constant, StaticSource)
    assert read(constant, T0) == Reading(g_per_kwh=250, at_s=T0, provider="static", method="configured")
    assert {reading.g_per_kwh for reading in asyncio.run(constant.forecast(T0, HOUR))} == {250}


def test_the_grid_clock_follows_its_own_start_and_speed() -> None:
    at = [10.0]
    clock = GridClock(1000.0, 360.0, lambda: at[0])
    assert clock.now() == 1000.0
    at[0] += 2.0
    assert clock.now() == 1720.0
    assert abs(GridClock().now() - datetime.now(UTC).timestamp()) < 5
    for speed in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="trace_speed"):
            GridClock(speed=speed)
    with pytest.raises(ConfigError, match="finite"):
        GridClock(math.nan)


# --- configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "unknown carbon source '', known: static, synthetic, trace"),
        ("sintetic", "did you mean synthetic"),
        ("uk_neso", "known: static, synthetic, trace"),
        ("static", "static:G takes"),
        ("static:dirty", "static:G takes"),
        ("static:-1", "between 0 and 5000"),
        ("static:nan", "between 0 and 5000"),
        ("static:250?zone=DE", "unknown option 'zone', it takes none"),
        ("synthetic:7", "no argument"),
        ("synthetic?seed=1", "unknown option 'seed'"),
        ("trace:", "takes the path"),
        ("trace:x?lop=1", "did you mean loop"),
        ("trace:x?loop=maybe", "loop is one of"),
        ("trace:x?loop", "options are written"),
        ("trace:x?loop=1&loop=0", "options are written"),
        ("trace:x?scope=all", "scope is one of lifecycle, direct"),
        ("trace:x?method=measured", "method is one of actual, published, estimated, forecast, synthetic"),
        ("synthetic,,static:1", "unknown carbon source ''"),
        ("static:1,static:2", "names static twice"),
    ],
)
def test_sources_that_do_not_exist_are_refused_with_help(source: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(CarbonConfig(source=source))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pue": 0.9}, "carbon.pue"),
        ({"max_age_s": -1.0}, "carbon.max_age_s"),
        ({"configured_g_per_kwh": math.inf}, "carbon.configured_g_per_kwh"),
        ({"trace_start": "noon"}, "ISO 8601"),
        ({"trace_start": "first"}, "first takes a trace as the first source, not synthetic"),
        ({"trace_speed": 0.0}, "trace_speed"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float | str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(CarbonConfig(**settings))  # type: ignore[arg-type]


def test_grid_time_starts_at_the_first_value_of_a_trace_or_where_it_is_told(tmp_path: Path) -> None:
    text = TWO_COLUMN.replace(",100", ",")
    first = trace(tmp_path, text)
    assert first.start_s == T0 + 3 * HOUR
    spec = f"trace:{tmp_path / 'day.csv'},static:300"
    chain, clock = build(CarbonConfig(source=spec, trace_speed=100), monotonic=lambda: 5.0)
    assert chain.name == "trace:day,static"
    assert clock.now() == T0 + 3 * HOUR
    _, clock = build(CarbonConfig(source=spec, trace_start="2022-01-01T04:30:00"), monotonic=lambda: 5.0)
    assert clock.now() == T0 + 4.5 * HOUR
    with pytest.raises(ConfigError, match="lies outside trace:day"):
        build(CarbonConfig(source=spec, trace_start="2023-01-01T00:00Z"))
    build(CarbonConfig(source=f"trace:{tmp_path / 'day.csv'}?loop=1", trace_start="2023-01-01T00:00Z"))
    _, clock = build(CarbonConfig(source=f"synthetic,trace:{tmp_path / 'day.csv'}"))
    assert abs(clock.now() - datetime.now(UTC).timestamp()) < 5


def test_the_registry_is_where_providers_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "mine", lambda argument, options: StaticSource(float(argument) + len(options)))
    source = build_source("mine:7?a=1&b=2")
    assert isinstance(source, StaticSource)
    assert source.g_per_kwh == 9


# --- replay -------------------------------------------------------------------------------------------------------


def started(folder: Path, *, wall_s: float, options: str = "", **settings: Any) -> tuple[float, Reading]:
    """Grid time at the start, and the reading there, of a trace that spans T0 to T0 + 6 h."""
    trace(folder, TWO_COLUMN)
    config = CarbonConfig(source=f"trace:{folder / 'day.csv'}{options}", **settings)
    chain, clock = build(config, monotonic=lambda: 5.0, wall=lambda: wall_s)
    return clock.now(), asyncio.run(chain.read(clock.now()))


@pytest.mark.parametrize("options", ["", "?loop=1"])
def test_a_trace_that_covers_now_is_read_at_now(tmp_path: Path, options: str) -> None:
    grid_s, reading = started(tmp_path, wall_s=T0 + 3.5 * HOUR, options=options)
    assert grid_s == T0 + 3.5 * HOUR
    assert (reading.g_per_kwh, reading.replayed, reading.state, reading.at_s) == (130.5, False, "fresh", T0 + 3 * HOUR)


@pytest.mark.parametrize(
    ("wall_s", "settings", "grid_s"),
    [
        (T0 - 1, {}, T0),  # it does not cover now
        (T0 + 8 * HOUR + 1, {}, T0),
        (T0 + 6.5 * HOUR + 1, {"max_age_s": HOUR / 2}, T0),  # it ended too long ago to be live
        (T0 + 6.5 * HOUR, {"options": "?loop=1"}, T0),
        (T0 + 6.5 * HOUR, {"trace_speed": 360.0}, T0),
        (T0 + 3 * HOUR, {"trace_speed": 360.0}, T0),  # sped up
        (T0 + 3 * HOUR, {"trace_speed": 360.0, "trace_start": "now"}, T0 + 3 * HOUR),
        (T0 + 3 * HOUR, {"trace_start": "first"}, T0),
        (T0 + 3 * HOUR, {"trace_start": "2022-01-01T05:00Z"}, T0 + 5 * HOUR),
        (T0 + 60 * HOUR, {"options": "?loop=1", "trace_start": "now"}, T0 + 60 * HOUR),  # ten times through
        (T0 + 60 * HOUR, {"options": "?loop=1"}, T0),
    ],
)
def test_what_is_used_at_another_time_than_it_is_of_says_that_it_is_replayed(
    tmp_path: Path, wall_s: float, settings: dict[str, Any], grid_s: float
) -> None:
    found_s, reading = started(tmp_path, wall_s=wall_s, **settings)
    assert found_s == grid_s
    assert (reading.replayed, reading.state, reading.method) == (True, "fresh", "unknown")


@pytest.mark.parametrize("settings", [{}, {"trace_start": "now"}])
def test_a_live_trace_that_lags_starts_at_now_with_its_last_value(tmp_path: Path, settings: dict[str, str]) -> None:
    grid_s, reading = started(tmp_path, wall_s=T0 + 6 * HOUR + 600.0, **settings)
    assert grid_s == T0 + 6 * HOUR + 600.0
    assert (reading.g_per_kwh, reading.state, reading.replayed) == (150.0, "stale", False)
    assert (reading.at_s, reading.age_s, reading.step_s) == (T0 + 5 * HOUR, HOUR + 600.0, HOUR)
    grid_s, reading = started(tmp_path, wall_s=T0 + 7.5 * HOUR, **settings)
    assert (grid_s, reading.state) == (T0 + 7.5 * HOUR, "configured"), "the value itself is older than max_age_s"


def test_a_trace_that_does_not_cover_now_cannot_start_now(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trace_start now lies outside trace:day"):
        started(tmp_path, wall_s=T0 - 1, trace_start="now")


def test_a_replay_says_in_the_state_what_time_it_is_of(tmp_path: Path) -> None:
    _, reading = started(tmp_path, wall_s=T0 - 1)
    when = "replayed, of 2022-01-01T00:00:00Z"
    assert intensity(reading)["label"] == f"method, signal and scope unknown, {when}, fresh"
    old = msgspec.structs.replace(reading, state="stale", age_s=7200.0)
    assert intensity(old)["label"] == f"method, signal and scope unknown, {when}, stale, 7200 s old"
