"""`clover cluster simulate`: a cluster file is played, and what is not known is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from clover.cluster.cli.command import main
from clover.cluster.cluster_file import parse
from clover.cluster.simulate.file import SimulationRequest, scenario_of
from clover.errors import ConfigError
from tests.support.cluster_fixture import FAMILY, frontier

TEXT = """
[cluster]
name = "demo"
folder = "{folder}"
survive = "none"
release_after_s = 600
dwell_s = 600
[[region]]
name = "north"
latency_ms = {{ south = 25 }}
carbon = {{ source = "static:100" }}
[[region]]
name = "south"
latency_ms = {{ north = 25 }}
carbon = {{ source = "auto:PL" }}
[[node]]
name = "north-1"
region = "north"
devices = {{ gpu = 2 }}
awake_w = 100
[[node]]
name = "south-1"
region = "south"
devices = {{ gpu = 2 }}
awake_w = 100
port = 8082
[[family]]
family = "digits"
accuracy_floor = 90
slo_ms = 100
"""
SHORT = ["--hours", "2", "--step-s", "600", "--swing", "0"]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    path = tmp_path / "cluster.toml"
    path.write_text(TEXT.format(folder=tmp_path / "c"))
    (tmp_path / "points.json").write_bytes(msgspec.json.encode([frontier()]))
    return str(path)


def play(file: str, *words: str) -> int:
    return main(["simulate", file, *SHORT, "--points", str(Path(file).with_name("points.json")), *words])


def test_it_says_what_the_controller_saves(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert play(file, "--rate", "100", "--trace", "south=static:400", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "modelled"
    own, alone, awake = (found["runs"][name] for name in ("controller", "each region alone", "all awake"))
    assert own["sent"] == own["answered"] == pytest.approx(200.0 * 7200.0)
    assert own["accuracy"][FAMILY] == pytest.approx(90.0, abs=0.1)
    assert (own["releases"], own["refused"], found["broken_rules"]) == (1, 0.0, [])
    assert own["awake_part"] < 0.8
    for other in (alone, awake):
        assert other["awake_part"] == pytest.approx(1.0)
        assert other["controller_saves"] == pytest.approx(1.0 - own["grams"] / other["grams"])
        assert other["controller_saves"] > 0.3


def test_its_table_fits_and_says_that_all_is_modelled(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert play(file, "--rate", "south/digits=150", "--rate", "0", "--trace", "south=static:400") == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for words in ("demo: 2 h from 2022-01-01T00:00:00Z", "1,080,000 rows", "all figures are modelled", "1 releases"):
        assert words in " ".join(shown.split())


def test_nothing_that_can_be_served_is_no_success(file: str) -> None:
    assert play(file, "--rate", "0", "--trace", "south=static:400", "--hours", "0.2") == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "say what clients send: --rate ROWS"),
        (["--rate", "many"], "--rate takes ROWS or REGION=ROWS, not 'many'"),
        (["--rate", "west=3"], "--rate names 'west': there are the regions north, south"),
        (["--rate", "north/cats=3"], "the families digits"),
        (["--rate", "-3"], "--rate takes rows/s of 0 or more"),
        (["--rate", "3", "--trace", "west=static:1"], "--trace names the region 'west'"),
        (["--rate", "3", "--trace", "south"], "--trace takes REGION=VALUE"),
        (["--rate", "3"], "is a live grid, of which no hours can be played: give --trace south=FILE"),
        (["--rate", "3", "--trace", "south=synthetic", "--start", "noon"], "--start: 'noon' is no ISO 8601 time"),
        (["--rate", "3", "--hours", "0"], "--hours is 0.1 to 8784, not 0"),
        (["--rate", "3", "--points", "nothing.json"], "nothing.json: No such file"),
    ],
)
def test_what_cannot_be_played_says_why(
    file: str, words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert play(file, *words) == 2
    assert why in capsys.readouterr().err


def test_a_trace_gives_its_hours_and_no_others(tmp_path: Path, file: str) -> None:
    rows = "".join(f"2026-03-0{1 + hour // 24}T{hour % 24:02}:00:00Z,{100 + hour}\n" for hour in range(48))
    (tmp_path / "grid.csv").write_text(f"datetime_utc,carbon_intensity_gco2_per_kwh\n{rows}")
    given = parse(Path(file).read_text())
    request = SimulationRequest(
        rates={"": 10.0},
        grids={"south": str(tmp_path / "grid.csv")},
        points=str(tmp_path / "points.json"),
        start="2026-03-01T06:00",
        hours=42.0,
    )
    scenario = scenario_of(given, request)
    north, south = scenario.regions
    assert [south.intensity(scenario.start_s + hour * 3600.0) for hour in (0.0, 1.5, 11.0)] == [106.0, 107.0, 117.0]
    assert north.intensity(scenario.start_s) == 100.0
    assert north.demand(scenario.start_s + 8.0 * 3600.0)[FAMILY] == pytest.approx(14.0), "most at 14:00"
    with pytest.raises(ConfigError, match="has no intensity for all of these hours"):
        scenario_of(given, msgspec.structs.replace(request, hours=42.5))


def test_what_the_controller_learned_is_used_and_what_nobody_knows_is_asked_for(tmp_path: Path, file: str) -> None:
    request = SimulationRequest(rates={"": 10.0}, grids={"south": "synthetic"}, hours=1.0)
    text = Path(file).read_text()
    with pytest.raises(ConfigError, match="what a device 'gpu' can do is not known: give --points FILE"):
        scenario_of(parse(text), request)
    (tmp_path / "saved.json").write_bytes(msgspec.json.encode({"format": 1, "frontiers": [frontier()]}))
    with_file = msgspec.structs.replace(request, points=str(tmp_path / "saved.json"))
    assert scenario_of(parse(text), with_file).terms.frontiers == (frontier(),)
    unknown = parse(text.replace("devices = { gpu = 2 }\n", "", 1))
    with pytest.raises(ConfigError, match="node north-1: its devices are not known"):
        scenario_of(unknown, with_file)
