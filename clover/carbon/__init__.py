"""Carbon intensity of the grid: sources, a chain that survives their failures, and the clock they are read at.

A source is named in the configuration as `name`, `name:argument` or `name:argument?option=value&option=value`; several
separated by commas are a chain of fallbacks.  `SOURCES` maps the name of a local one to the function that builds it,
and `clover.carbon.providers.PROVIDERS` that of a live one; all implement `clover.interfaces.CarbonSource`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from clover import plugins
from clover.carbon.chain import SourceChain
from clover.carbon.grid import GridClock, boot_seconds
from clover.carbon.labels import caveat, describe
from clover.carbon.layouts import MAX_G_PER_KWH, HowKnown, Scope, Signal, format_time, parse_time
from clover.carbon.options import allow, one_of, read_options
from clover.carbon.providers import PROVIDERS, automatic, check_providers
from clover.carbon.providers.http import Bounds
from clover.carbon.synthetic import StaticSource, SyntheticSource
from clover.carbon.trace import TraceOptions, TraceSource
from clover.config import CarbonConfig
from clover.errors import ConfigError
from clover.hints import did_you_mean
from clover.interfaces import CarbonSource

__all__ = [
    "SOURCES",
    "GridClock",
    "SourceChain",
    "build",
    "build_source",
    "caveat",
    "describe",
    "format_time",
]

POLL_S = 5.0
"""Seconds between two polls of a remote source or a file.  Each provider says itself when to come again; five seconds
are soon enough for one that answers at once."""


def build(
    config: CarbonConfig,
    *,
    monotonic: Callable[[], float] = boot_seconds,
    wall: Callable[[], float] = time.time,
    poll_s: float = POLL_S,
) -> tuple[SourceChain, GridClock]:
    """Return the chain and the grid clock that `config` asks for; ConfigError if anything in it cannot be used.  Grid
    time starts at `trace_start`, by default now.  But if the chain begins with a trace that does not cover now, or is
    sped up, the trace is replayed from its first value.  If the trace ended no longer than `max_age_s` ago, it is live
    and only lags: grid time starts at now with its last value, and its next values are awaited.  While grid time is not
    that of the wall, traces label what they give as replayed.  A file that changes on disk is polled every `poll_s`.
    Providers know the time of day only, so a live source in the chain needs grid time to be the time of day."""
    if not config.max_age_s >= 0:
        raise ConfigError(f"carbon.max_age_s cannot be negative, but is {config.max_age_s}")
    if not config.pue >= 1:
        raise ConfigError(f"carbon.pue is total power over computing power and cannot be below 1, not {config.pue}")
    _check_intensity(config.configured_g_per_kwh, "carbon.configured_g_per_kwh")
    check_providers(config)
    sources = [build_source(part, config) for part in config.source.split(",")]
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"carbon.source names {name} twice; a fallback has to be another source")
    now_s = wall()
    start_s = _start(config, sources[0], now_s)
    clock = GridClock(start_s, config.trace_speed, monotonic)
    for source in sources:
        if source.remote and (start_s != now_s or clock.speed != 1.0):
            raise ConfigError(
                f"{source.name} gives the intensity of now, but the carbon data's time starts at "
                f"{format_time(start_s)} and runs {clock.speed:g} times as fast: leave out trace_start and "
                "trace_speed, and lead the chain by no trace that does not cover now"
            )
        if isinstance(source, TraceSource):
            source.replayed = start_s != now_s or clock.speed != 1.0
            source.wall = wall
    chain = SourceChain(
        sources,
        max_age_s=config.max_age_s,
        configured_g_per_kwh=config.configured_g_per_kwh,
        monotonic=monotonic,
        poll_s=poll_s,
    )
    if isinstance(sources[0], TraceSource) and not sources[0].covers(start_s):
        chain.links[0].good = sources[0].last()  # as if it had been read in time
    return chain, clock


def build_source(text: str, config: CarbonConfig | None = None, *, bounds: Bounds | None = None) -> CarbonSource:
    """Return the source that `text` names, such as "trace:day.csv?loop=1" or "auto:DE"; ConfigError if there is none.

    `config` has keys and addresses of providers; `bounds` are the bounds of their answers.
    """
    name, _, rest = text.strip().partition(":")
    name, _, own = name.partition("?")
    argument, _, options = (rest or f"?{own}").partition("?")
    if name == AUTO:
        if options:
            raise ConfigError(f"auto:ZONE takes no options, not {options!r}")
        return build_source(automatic(argument), config, bounds=bounds)
    if name in PROVIDERS:
        return PROVIDERS[name].build(argument, read_options(name, options), config or CarbonConfig(), bounds)
    if name not in SOURCES:
        added: CarbonSource | None = plugins.make("carbon", name, rest)
        if added is not None:
            return added
        known = [*sorted(SOURCES), AUTO, *PROVIDERS, *plugins.names("carbon")]
        raise ConfigError(f"unknown carbon source {name!r}, known: {', '.join(known)}{did_you_mean(name, known)}")
    return SOURCES[name](argument, read_options(name, options))


def _static(argument: str, options: dict[str, str]) -> CarbonSource:
    allow("static", options, ())
    try:
        g_per_kwh = float(argument)
    except ValueError as error:
        raise ConfigError(f"static:G takes gCO2e/kWh as a number, as in static:250, not {argument!r}") from error
    _check_intensity(g_per_kwh, "static:G")
    return StaticSource(g_per_kwh)


def _synthetic(argument: str, options: dict[str, str]) -> CarbonSource:
    allow("synthetic", options, ())
    if argument:
        raise ConfigError(f"synthetic takes no argument, not {argument!r}")
    return SyntheticSource()


def _trace(argument: str, options: dict[str, str]) -> CarbonSource:
    allow("trace", options, ("loop", "zone", "scope", "signal", "method"))
    if not argument:
        raise ConfigError("trace:FILE takes the path of a CSV or JSON file")
    loop = one_of("trace", options, "loop", ("0", "1", "false", "true"), "0")
    method = one_of("trace", options, "method", ("actual", "published", "estimated", "forecast", "synthetic"), None)
    return TraceSource(
        Path(argument),
        TraceOptions(
            loop=loop in ("1", "true"),
            zone=options.get("zone", ""),
            scope=cast("Scope | None", one_of("trace", options, "scope", ("lifecycle", "direct"), None)),
            signal=cast("Signal | None", one_of("trace", options, "signal", ("average", "marginal"), None)),
            known=cast("HowKnown | None", "published" if method == "actual" else method),
        ),
    )


AUTO = "auto"
"""The name of the provider without a key that serves a zone."""

SOURCES: dict[str, Callable[[str, dict[str, str]], CarbonSource]] = {
    "static": _static,
    "synthetic": _synthetic,
    "trace": _trace,
}
"""The local sources that `carbon.source` may name: a function from the argument and the options to the source, raising
ConfigError."""


def _start(config: CarbonConfig, first: CarbonSource, now_s: float) -> float:
    """Return the grid time to start at."""
    trace = first if isinstance(first, TraceSource) else None
    when = config.trace_start
    if not when:
        if trace is None:
            return now_s
        live = trace.spans(now_s) or _lags(trace, now_s, config)
        return now_s if live and config.trace_speed == 1 else trace.start_s
    if when == "first":
        if trace is None:
            raise ConfigError(f"carbon.trace_start = first takes a trace as the first source, not {first.name}")
        return trace.start_s
    try:
        start_s = now_s if when == "now" else parse_time(when)
    except ValueError as error:
        raise ConfigError(
            f"carbon.trace_start takes now, first or an ISO 8601 time, as 2021-03-26T21:00Z, not {when!r}"
        ) from error
    if trace is not None and not (trace.covers(start_s) or (start_s == now_s and _lags(trace, now_s, config))):
        raise ConfigError(f"carbon.trace_start {when} lies outside {trace.name}")
    return start_s


def _lags(trace: TraceSource, now_s: float, config: CarbonConfig) -> bool:
    """Return whether a file ended so recently that its next rows are to be expected."""
    return not trace.loop and trace.end_s <= now_s <= trace.end_s + config.max_age_s


def _check_intensity(g_per_kwh: float, what: str) -> None:
    if not (math.isfinite(g_per_kwh) and 0.0 <= g_per_kwh <= MAX_G_PER_KWH):
        raise ConfigError(f"{what} must lie between 0 and {MAX_G_PER_KWH:.0f} gCO2e/kWh, not {g_per_kwh}")
