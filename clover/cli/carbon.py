"""`python -m clover carbon now|forecast|providers|zones`: what sources of carbon intensity say, as a server would ask.

Keys and addresses come from the environment or the configuration file, as the server's do.  Nothing is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from clover import settings, terminal
from clover.carbon import build_source, format_time
from clover.carbon.chained import Live
from clover.carbon.providers import PROVIDERS, ElectricityMapsSource, automatic_zones, check_providers, usage
from clover.cli import CommandParser
from clover.cli.progress import Progress
from clover.config import CarbonConfig
from clover.errors import CarbonError, CloverError
from clover.hints import duration, program
from clover.interfaces import CarbonSource
from clover.terminal import Column
from clover.types import Reading

HOUR_S = 3600.0
TIMEOUT_S = 20.0
_WIDTH = 80
_ROWS = 8
"""Lines of a plot."""
_MOST_HOURS = 72
_BLOCKS = " ▁▂▃▄▅▆▇█"
_PLAIN_BLOCKS = "    .::##"


@dataclass(frozen=True)
class SourceAnswer:
    """What a source says: a reading (None with an `error`), its readings of the last day, and those to come.  `source`
    is how it was written, `name` what it is called: auto:DE is energy-charts:DE."""

    source: str
    name: str
    reading: Reading | None = None
    past: Sequence[Reading] = ()
    ahead: Sequence[Reading] = ()
    error: str = ""


def main(
    argv: Sequence[str], environ: Mapping[str, str] | None = None, *, wall: Callable[[], float] = time.time
) -> int:
    """Run the command and return its exit code: 0, 2 for what cannot be meant, 3 if a source gives no value."""
    parser = _parser()
    try:
        given = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        words = ["--config", given.config] if given.config else []
        config = settings.load(words, os.environ if environ is None else environ).config.carbon
        check_providers(config)
        return int(given.run(given, config, wall))
    except CarbonError as error:
        print(f"clover carbon: {error}", file=sys.stderr)
        return 3
    except CloverError as error:
        print(f"clover carbon: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> CommandParser:
    shared = CommandParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print JSON")
    shared.add_argument("--config", metavar="FILE", default="", help="configuration file of the server")
    parser = CommandParser(
        prog=f"{program()} carbon",
        description="Show the carbon intensity of grids, as providers give it: of now and of the hours to come.",
    )
    commands = parser.add_subparsers(required=True, metavar="VERB", parser_class=CommandParser)
    now = commands.add_parser("now", parents=[shared], help="show the intensity of now and of the last day")
    now.add_argument("sources", nargs="*", metavar="SOURCE", help="as auto:DE, neso [those of the configuration]")
    now.set_defaults(run=_now)
    ahead = commands.add_parser("forecast", parents=[shared], help="show the intensity of the hours to come")
    ahead.add_argument("sources", nargs="*", metavar="SOURCE", help="as auto:DE, neso [those of the configuration]")
    ahead.add_argument("--hours", type=_hours, default=48, metavar="N", help=f"how many hours, 1 to {_MOST_HOURS} [48]")
    ahead.set_defaults(run=_forecast)
    listed = commands.add_parser(
        "providers",
        parents=[shared],
        help="list the providers: the zones they serve, the keys they need, whether they answer",
    )
    listed.add_argument("--offline", action="store_true", help="do not ask the providers whether they answer")
    listed.set_defaults(run=_providers)
    zones = commands.add_parser(
        "zones", parents=[shared], help="list the zones of auto:ZONE, or those that your key may read"
    )
    zones.add_argument("provider", nargs="?", choices=["electricity-maps"], help="list the zones that its key may read")
    zones.set_defaults(run=_zones)
    return parser


def _hours(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= _MOST_HOURS):
        raise argparse.ArgumentTypeError(f"give 1 to {_MOST_HOURS} hours, not {text}")
    return int(text)


# --- now and forecast -------------------------------------------------------------------------------------------------


def _now(given: Any, config: CarbonConfig, wall: Callable[[], float]) -> int:
    with Progress("carbon", "waiting for the sources"):
        answers = asyncio.run(_ask_all(_sources(given, config), wall(), _ask_now))
    if given.json:
        return _print_json(answers, lambda one: {"reading": one.reading, "last_day": one.past})
    rows = [_row(one) for one in answers if one.reading is not None]
    if rows:
        lines, _ = terminal.plain(_COLUMNS, rows, _width())
        print("\n".join(lines))
    for one in answers:
        hours = _hourly(one.past)
        if len(hours) > 1:
            low, high = min(hours.values()), max(hours.values())
            print(f"\n{one.name}, the last {len(hours)} hours: {low:.0f} to {high:.0f} g/kWh")
            print(sparkline(list(hours.values())))
    return _print_errors(answers)


def _forecast(given: Any, config: CarbonConfig, wall: Callable[[], float]) -> int:
    now_s = wall()
    span_s = given.hours * HOUR_S

    async def ask(name: str, source: CarbonSource, grid_s: float) -> SourceAnswer:
        found = [item for item in await source.forecast(grid_s, span_s) if item.at_s < grid_s + span_s]
        error = "" if found else f"{source.name} gives no forecast"
        return SourceAnswer(name, source.name, ahead=found, error=error)

    with Progress("carbon", "waiting for the sources"):
        answers = asyncio.run(_ask_all(_sources(given, config), now_s, ask))
    if given.json:
        return _print_json(answers, lambda one: {"forecast": one.ahead})
    for one in answers:
        hours = _hourly(one.ahead)
        if not hours:
            continue
        first = one.ahead[0]
        print(f"{one.name}: {first.signal}, scope {first.scope}, g/kWh by hours in UTC\n")
        print("\n".join([*plot(hours, _width()), "", *_table(hours)]))
        print()
    return _print_errors(answers)


def _sources(given: Any, config: CarbonConfig) -> dict[str, CarbonSource]:
    """Return the sources to ask, by how they are written."""
    names = given.sources or [part.strip() for part in config.source.split(",")]
    return {name: build_source(name, config) for name in names}


async def _ask_all(sources: dict[str, CarbonSource], grid_s: float, ask: Any) -> list[SourceAnswer]:
    async def one(name: str, source: CarbonSource) -> SourceAnswer:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                found: SourceAnswer = await ask(name, source, grid_s)
                return found
        except CarbonError as error:
            return SourceAnswer(name, source.name, error=str(error))
        except TimeoutError:
            return SourceAnswer(name, source.name, error=f"{source.name} did not answer within {TIMEOUT_S:g} s")

    return await asyncio.gather(*(one(name, source) for name, source in sources.items()))


async def _ask_now(name: str, source: CarbonSource, grid_s: float) -> SourceAnswer:
    reading = await source.read(grid_s)
    past: Sequence[Reading] = ()
    if isinstance(source, Live):
        try:
            past = await source.history(grid_s - 24 * HOUR_S, grid_s)
        except CarbonError as error:
            print(f"clover carbon: no past of {name}: {error}", file=sys.stderr)
    return SourceAnswer(name, source.name, reading, past)


_COLUMNS = (
    Column("source", right=False),
    Column("zone", right=False, spare=3),
    Column("g/kWh"),
    Column("signal", right=False, spare=1),
    Column("scope", right=False, spare=2),
    Column("known", right=False),
    Column("of (UTC)", right=False, spare=4),
    Column("age"),
)


def _row(answer: SourceAnswer) -> list[str]:
    reading = answer.reading
    assert reading is not None
    return [
        answer.name,
        reading.zone if reading.zone not in answer.name else "",
        f"{reading.g_per_kwh:.0f}",
        reading.signal,
        reading.scope,
        reading.method,
        format_time(reading.at_s)[5:16].replace("T", " "),
        duration(reading.age_s, rough=True),
    ]


def _print_errors(answers: Sequence[SourceAnswer]) -> int:
    failed = [one for one in answers if one.error]
    for one in failed:
        print(f"clover carbon: {one.error}", file=sys.stderr)
    return 3 if failed else 0


def _print_json(answers: Sequence[SourceAnswer], of: Callable[[SourceAnswer], dict[str, Any]]) -> int:
    shown = [
        {"source": one.source, "name": one.name, **({"error": one.error} if one.error else of(one))} for one in answers
    ]
    print(json.dumps(msgspec.to_builtins(shown), indent=1))
    return 3 if any(one.error for one in answers) else 0


# --- providers and zones ----------------------------------------------------------------------------------------------

_PROVIDER_COLUMNS = (
    Column("source", right=False),
    Column("serves", right=False, spare=1),
    Column("signal", right=False, spare=2),
    Column("step", right=False, spare=3),
    Column("here", right=False),
)


def _providers(given: Any, config: CarbonConfig, wall: Callable[[], float]) -> int:
    async def standing(name: str) -> tuple[str, str]:
        provider = PROVIDERS[name]
        try:
            source = provider.build_example(config)
        except CloverError:
            return "no key", f"set {usage(name)}"
        if given.offline:
            return "can be asked", ""
        begun_s = time.monotonic()
        (answer,) = await _ask_all({name: source}, wall(), lambda name, source, at: _read(name, source, at))
        took = f"{time.monotonic() - begun_s:.1f} s"
        return (f"answers ({took})", "") if not answer.error else ("does not answer", answer.error)

    async def all_standings() -> list[tuple[str, str]]:
        return await asyncio.gather(*map(standing, PROVIDERS))

    with Progress("carbon", "asking every provider"):
        found = dict(zip(PROVIDERS, asyncio.run(all_standings()), strict=True))
    if given.json:
        print(json.dumps([
            {"name": name, "source": item.form, "serves": item.serves, "signal": item.signal, "scope": item.scope,
             "step": item.step, "needs": item.needs, "standing": found[name][0], "detail": found[name][1]}
            for name, item in PROVIDERS.items()
        ], indent=1))  # fmt: skip
        return 0
    rows = [[item.form, item.serves, item.signal, item.step, found[name][0]] for name, item in PROVIDERS.items()]
    lines, _ = terminal.plain(_PROVIDER_COLUMNS, rows, _width())
    print("\n".join(lines))
    details = [detail for _, detail in found.values() if detail]
    if details:
        print("\n" + "\n".join(details))
    return 0


async def _read(name: str, source: CarbonSource, grid_s: float) -> SourceAnswer:
    return SourceAnswer(name, source.name, await source.read(grid_s))


def _zones(given: Any, config: CarbonConfig, wall: Callable[[], float]) -> int:
    if given.provider:
        source = PROVIDERS[given.provider].build_example(config)
        assert isinstance(source, ElectricityMapsSource)
        zones = [(zone, item.zone_name, ", ".join(item.access)) for zone, item in asyncio.run(source.zones()).items()]
        about = "zones that the key of Electricity Maps sees"
    else:
        zones = [(zone, name, source) for zone, (name, source) in automatic_zones().items()]
        about = "zones of --carbon auto:ZONE, which needs no key"
    if given.json:
        print(json.dumps([{"zone": zone, "name": name, "source": source} for zone, name, source in zones], indent=1))
        return 0
    columns = (Column("zone", right=False), Column("", right=False, spare=1), Column("source", right=False))
    lines, _ = terminal.plain(columns, zones, _width())
    print("\n".join([f"{len(zones)} {about}", "", *lines]))
    return 0


# --- drawing ----------------------------------------------------------------------------------------------------------


def _width() -> int:
    return min(terminal.line_width(), _WIDTH)


def _hourly(readings: Sequence[Reading]) -> dict[float, float]:
    """Return the mean of each hour (its begin in Unix seconds) that something is known of, in order."""
    found = defaultdict(list)
    for reading in readings:
        found[math.floor(reading.at_s / HOUR_S) * HOUR_S].append(reading.g_per_kwh)
    return {hour: statistics.fmean(found[hour]) for hour in sorted(found)}


def _blocks() -> str:
    try:
        _BLOCKS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return _PLAIN_BLOCKS
    return _BLOCKS


def sparkline(values: Sequence[float]) -> str:
    """Return one character a value, the higher the larger; the lowest is the lowest block."""
    low, high = min(values), max(values)
    blocks = _blocks()
    return "".join(blocks[1 + round((value - low) / (high - low or 1.0) * 7)] for value in values)


def plot(hours: Mapping[float, float], width: int) -> list[str]:
    """Return the lines of a plot of values by the hour from 0 up, one column an hour, as many as `width` holds."""
    shown = list(hours.items())[: max(1, width - 7)]
    top = max(max(value for _, value in shown), 1.0)
    blocks = _blocks()
    lines = []
    for row in reversed(range(_ROWS)):
        cells = (blocks[round(8 * min(max(value / top * _ROWS - row, 0.0), 1.0))] for _, value in shown)
        label = f"{top * (row + 1) / _ROWS:5.0f}" if row % 2 else " " * 5
        lines.append(f"{label} {''.join(cells)}".rstrip())
    marks = [" "] * len(shown)
    for index, (hour, _) in enumerate(shown):
        if hour % (6 * HOUR_S) == 0.0 and index + 5 <= len(marks):
            marks[index : index + 5] = _clock(hour)
    return [*lines, f"{'':6}{''.join(marks).rstrip()}"]


def _clock(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%H:%M")


def _table(hours: Mapping[float, float]) -> list[str]:
    """Return the hours as lines of four, in order down the columns."""
    cells = [f"{datetime.fromtimestamp(hour, UTC):%d %b %H:%M} {value:5.0f}" for hour, value in hours.items()]
    height = math.ceil(len(cells) / 4)
    return ["  ".join(cells[row::height]) for row in range(height)]
