"""The command `carbon`: tables, plots and JSON of what providers say, and words for what they do not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clover.cli.carbon import main, plot, sparkline
from tests.support.carbon_server import KEY, Answer, CarbonServer, grid_g

NOW_S = 1_790_001_000.0


@pytest.fixture(scope="module")
def replay() -> Iterator[CarbonServer]:
    with CarbonServer(lambda: NOW_S) as server:
        yield server


@pytest.fixture
def server(replay: CarbonServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[CarbonServer]:
    monkeypatch.setenv("COLUMNS", "80")
    yield replay
    replay.fault = None
    replay.requests.clear()


def environ(server: CarbonServer, **more: str) -> dict[str, str]:
    return {"CLOVER_CARBON_PROVIDER": msgspec.json.encode(server.providers()).decode()} | more


def run(server: CarbonServer, *words: str, **more: str) -> int:
    return main(words, environ(server, **more), wall=lambda: NOW_S)


def test_now_is_a_table_and_the_last_day(server: CarbonServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(server, "now", "auto:GB", "watttime:CAISO_NORTH", "static:250") == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    head, first, second, third = text.splitlines()[:4]
    assert head.split()[:3] == ["source", "zone", "g/kWh"]
    assert first.split()[:5] == ["neso", "GB", f"{grid_g(NOW_S // 1800 * 1800):.0f}", "average", "unknown"]
    assert second.split()[0] == "watttime:CAISO_NORTH"
    assert "marginal" in second
    assert third.split()[0] == "static"
    assert "neso, the last 25 hours: " in text


def test_without_a_source_those_of_the_configuration_are_asked(
    server: CarbonServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "clover.toml"
    config.write_text("[carbon]\nsource = 'energinet:DK1, static:300'\n", encoding="utf-8")
    assert run(server, "now", "--json", "--config", str(config)) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["source"], one["name"]) for one in found] == [
        ("energinet:DK1", "energinet:DK1"),
        ("static:300", "static"),
    ]
    assert found[0]["reading"]["g_per_kwh"] == grid_g(NOW_S)
    assert found[0]["reading"]["zone"] == "DK1"
    assert len(found[0]["last_day"]) > 280
    assert run(server, "now", "--json", CLOVER_CARBON="static:1") == 0
    assert json.loads(capsys.readouterr().out)[0]["reading"]["method"] == "configured"


def test_forecast_is_a_plot_and_a_table(server: CarbonServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(server, "forecast", "auto:DE", "--hours", "24") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "energy-charts:DE: average, scope lifecycle, g/kWh by hours in UTC"
    assert max(map(len, lines)) <= 80
    assert sum("█" in line for line in lines) == 8
    assert "21 Sep 14:00" in "\n".join(lines)
    assert run(server, "forecast", "auto:DE", "--json", "--hours", "2") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert all(NOW_S - 900 < item["at_s"] < NOW_S + 7200 for item in found["forecast"])
    assert run(server, "forecast", "rte") == 3
    assert capsys.readouterr().err == "clover carbon: rte gives no forecast\n"


def test_what_fails_is_said_beside_what_does_not(server: CarbonServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.fault = lambda request: Answer(b'{"message":"gone"}', 404) if request.path == "/intensity" else None
    assert run(server, "now", "neso", "static:300") == 3
    shown = capsys.readouterr()
    assert "static" in shown.out
    assert "answers 404 Status: gone" in shown.err
    assert run(server, "now", "neso", "--json") == 3
    assert "answers 404" in json.loads(capsys.readouterr().out)[0]["error"]


def test_providers_say_which_need_a_key_and_which_answer(
    server: CarbonServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fault = lambda request: Answer(b"", 500) if request.path.startswith("/dataset") else None
    tables = msgspec.json.encode(server.providers(electricity_maps="")).decode()
    assert run(server, "providers", CLOVER_CARBON_PROVIDER=tables) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines()[:8])) <= 80
    rows = {line.split()[0]: line for line in text.splitlines()[1:8]}
    assert "answers (" in rows["neso,"]
    assert "does not answer" in rows["energinet:AREA"]
    assert "no key" in rows["electricity-maps:ZONE"]
    assert """set CLOVER_CARBON_PROVIDER='[{"name":"electricity-maps","key":"file:PATH"}]'\n""" in text
    asked = len(server.requests)
    assert run(server, "providers", "--offline", "--json") == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert {one["standing"] for one in found.values()} == {"can be asked"}
    assert len(server.requests) == asked
    assert found["watttime"]["signal"] == "marginal"


def test_zones(server: CarbonServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(server, "zones", "--json") == 0
    found = {one["zone"]: one["source"] for one in json.loads(capsys.readouterr().out)}
    assert (found["GB-13"], found["DK1"], found["FR"], found["DE"]) == (
        "neso:13",
        "energinet:DK1",
        "rte",
        "energy-charts:DE",
    )
    assert run(server, "zones", "electricity-maps") == 0
    text = capsys.readouterr().out
    assert "Germany" in text
    assert "carbon-intensity/latest" in text
    assert KEY not in text


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["now", "auto:US"], 2, "no provider without a key serves that zone"),
        (["now", "nesso"], 2, "did you mean neso"),
        (["forecast", "neso", "--hours", "100"], 2, "give 1 to 72 hours"),
        (["later"], 2, "later"),
        ([], 2, "required"),
        (["now", "neso", "--config", "nowhere.toml"], 2, "cannot read nowhere.toml"),
    ],
)
def test_what_cannot_be_meant(
    server: CarbonServer, capsys: pytest.CaptureFixture[str], words: list[str], code: int, text: str
) -> None:
    assert run(server, *words) == code
    assert text in capsys.readouterr().err


def test_plots_fit_and_end_in_ascii_where_they_must(monkeypatch: pytest.MonkeyPatch) -> None:
    hours = {3600.0 * n: 10.0 * n for n in range(100)}
    assert max(map(len, plot(hours, 40))) <= 40
    assert sparkline([0.0, 1.0, 2.0]) == "▁▅█"
    assert sparkline([5.0, 5.0]) == "▁▁"
    assert plot({0.0: 0.0}, 80)

    class Ascii:
        encoding = "ascii"

    monkeypatch.setattr("sys.stdout", Ascii())
    drawn: Any = [*plot(hours, 40), sparkline([0.0, 1.0])]
    assert all(line.isascii() for line in drawn)
