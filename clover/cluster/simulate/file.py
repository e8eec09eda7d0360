"""A scenario of the simulation from a cluster file: its nodes, terms and grids, and the load that the command names.

What devices can do comes from a file, or from what the cluster's controller has learned and saved.  A region's grid is
that of its carbon section, unless the command names another.  A live source cannot be played: it has no future hours.
"""

from __future__ import annotations

import asyncio
import bisect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from clover.carbon import build_source
from clover.carbon.layouts import parse_time
from clover.carbon.trace import TraceSource
from clover.cluster.cluster_records import ClusterFile, RegionSection
from clover.cluster.controller.actor import folder_of, terms_of
from clover.cluster.controller.records import ClusterTerms, SavedCluster
from clover.cluster.planning.records import ClusterNode, DeviceFrontier
from clover.cluster.simulate.scenario import START_S, ClusterScenario
from clover.cluster.simulate.world import SimulatedRegion
from clover.errors import CarbonError, ConfigError
from clover.interfaces import CarbonSource
from clover.malformed import MALFORMED
from clover.types import Record

_GRID_S = 300.0
"""Seconds between two intensities of a grid."""
_HOUR_S = 3600.0
_BUSIEST_H = 14.0
_MOST_STEPS = 1_000_000


class SimulationRequest(Record, frozen=True, kw_only=True):
    """What is to be played on a cluster file.

    `rates`: mean rows/s that clients send, by region, or REGION/FAMILY, or "" for all; of those that name the same rows
    the most exact counts.  `swing`: the part by which they go up and down within a day, most at 14:00 of grid time.
    `grids`: by region, a source instead of that of the file.  `start`: the grid time to begin at (ISO 8601; by default
    where all traces have begun).  `points`: a file of operating points."""

    rates: dict[str, float]
    swing: float = 0.4
    grids: dict[str, str] = {}
    start: str = ""
    hours: float = 24.0
    step_s: float = 60.0
    points: str = ""
    seed: int = 0


def scenario_of(file: ClusterFile, asked: SimulationRequest) -> ClusterScenario:
    """Return the scenario.  ConfigError if something that it needs is not known, or asked for what is not there."""
    _check(file, asked)
    saved = _read_saved(file)
    frontiers = _points(asked.points) if asked.points else saved.frontiers if saved is not None else ()
    terms = _terms(file, asked, saved, frontiers)
    sources = {region.name: _source(region, asked.grids.get(region.name, "")) for region in file.region}
    start_s = _start(asked, sources.values())
    regions = [
        SimulatedRegion(
            region.name,
            _intensity(region.name, sources[region.name], start_s, asked.hours * _HOUR_S),
            _demand(file, region.name, asked),
        )
        for region in file.region
    ]
    return ClusterScenario(terms, regions, asked.hours * _HOUR_S, step_s=asked.step_s, start_s=start_s, seed=asked.seed)


def _check(file: ClusterFile, asked: SimulationRequest) -> None:
    regions, families = {own.name for own in file.region}, {own.family for own in file.family}
    for name in asked.grids.keys() - regions:
        raise ConfigError(f"--trace names the region {name!r}, which there is not: there are {_words(regions)}")
    if not asked.rates:
        raise ConfigError("say what clients send: --rate ROWS for every region, or --rate REGION=ROWS")
    for name, rate in asked.rates.items():
        region, slash, family = name.partition("/")
        if (name and region not in regions) or (slash and family not in families):
            raise ConfigError(
                f"--rate names {name!r}: there are the regions {_words(regions)} and the families {_words(families)}"
            )
        if not 0.0 <= rate < 1e9:
            raise ConfigError(f"--rate takes rows/s of 0 or more, not {rate:g}")
    for what, value, low, high in (
        ("--swing", asked.swing, 0.0, 1.0),
        ("--hours", asked.hours, 0.1, 24.0 * 366),
        ("--step-s", asked.step_s, 1.0, _HOUR_S),
    ):
        if not low <= value <= high:
            raise ConfigError(f"{what} is {low:g} to {high:g}, not {value:g}")
    if asked.hours * _HOUR_S / asked.step_s > _MOST_STEPS:
        raise ConfigError(f"these are more than {_MOST_STEPS} steps: fewer --hours, or a longer --step-s")


def _terms(
    file: ClusterFile, asked: SimulationRequest, saved: SavedCluster | None, frontiers: Sequence[DeviceFrontier]
) -> ClusterTerms:
    """Return the terms with all nodes awake at first, as after a first `up`."""
    seen: dict[str, ClusterNode] = {}
    if saved is not None:
        seen = {name: frontier.reported for name, frontier in saved.members.items() if frontier.reported is not None}
    terms, nodes = terms_of(file), []
    kinds = {frontier.kind for frontier in frontiers}
    for node in terms.nodes:
        devices = node.devices or (seen[node.name].devices if node.name in seen else {})
        if not devices:
            raise ConfigError(
                f"node {node.name}: its devices are not known: add devices = {{ KIND = COUNT }} to its [[node]]"
            )
        for kind in devices.keys() - kinds:
            raise ConfigError(
                f"node {node.name}: what a device {kind!r} can do is not known: give --points FILE, or run "
                f"`cluster up` once, whose controller learns it (known: {_words(kinds) or 'none'})"
            )
        nodes.append(msgspec.structs.replace(node, devices=devices, state="ready"))
    families = {frontier.family for frontier in frontiers}
    for family in file.family:
        if family.family not in families:
            raise ConfigError(
                f"there are no operating points of the family {family.family}: {_words(families)} have some"
            )
    return msgspec.structs.replace(terms, nodes=tuple(nodes), frontiers=tuple(frontiers), look_s=asked.step_s)


def _read_saved(file: ClusterFile) -> SavedCluster | None:
    """Return what the cluster's controller saved last; None if there is nothing that can be read."""
    given = file.cluster.store.removeprefix("file:")
    try:
        content = (Path(given) if given else folder_of(file) / "state.json").read_bytes()
        return msgspec.json.decode(content, type=SavedCluster)
    except (OSError, *MALFORMED):
        return None


class _Points(msgspec.Struct):
    frontiers: tuple[DeviceFrontier, ...]


def _points(path: str) -> tuple[DeviceFrontier, ...]:
    """Return the operating points of a file: a list of them, or what a controller saved."""
    try:
        text = Path(path).read_bytes()
        if text.lstrip().startswith(b"["):
            return msgspec.json.decode(text, type=tuple[DeviceFrontier, ...])
        return msgspec.json.decode(text, type=_Points).frontiers
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except MALFORMED as error:
        raise ConfigError(f"{path} has no operating points: {error}") from error


# --- grids and loads --------------------------------------------------------------------------------------------------


def _source(region: RegionSection, given: str) -> CarbonSource:
    text = given or region.carbon.source.partition(",")[0]
    text = f"trace:{text}" if given and ":" not in given and Path(given).suffix else text
    source = build_source(text, region.carbon)
    if source.remote:
        raise ConfigError(
            f"region {region.name}: {source.name} is a live grid, of which no hours can be played: give "
            f"--trace {region.name}=FILE, or {region.name}=static:G, or {region.name}=synthetic"
        )
    return source


def _start(asked: SimulationRequest, sources: Iterable[CarbonSource]) -> float:
    if asked.start:
        try:
            return parse_time(asked.start)
        except ValueError as error:
            raise ConfigError(f"--start: {error}") from error
    begun = [own.start_s for own in sources if isinstance(own, TraceSource)]
    return max(begun, default=START_S)


def _intensity(region: str, source: CarbonSource, start_s: float, seconds: float) -> Callable[[float], float]:
    """Return the intensity at a grid time; an hour without one has that of the hour before."""
    times: list[float] = []
    values: list[float] = []

    async def read() -> None:
        # One forecast beyond the end: the controller looks ahead.
        for step in range(math.ceil((seconds + 2.0 * _HOUR_S) / _GRID_S)):
            at_s = start_s + step * _GRID_S
            try:
                reading = await source.read(at_s)
            except CarbonError as error:
                if not values or at_s < start_s + seconds <= at_s + _GRID_S:
                    raise ConfigError(
                        f"region {region}: {source.name} has no intensity for all of these hours ({error}): other "
                        "--start or --hours, or ?loop=1 at the end of the trace's name"
                    ) from error
                continue
            times.append(at_s)
            values.append(reading.g_per_kwh)

    asyncio.run(read())
    return lambda at_s: values[max(0, bisect.bisect_right(times, at_s) - 1)]


def _demand(file: ClusterFile, region: str, asked: SimulationRequest) -> Callable[[float], Mapping[str, float]]:
    rates = {}
    for own in file.family:
        names = (f"{region}/{own.family}", region, "")
        rates[own.family] = next((asked.rates[name] for name in names if name in asked.rates), 0.0)

    def demand(at_s: float) -> Mapping[str, float]:
        hour = at_s / _HOUR_S % 24.0
        part = 1.0 + asked.swing * math.cos(2.0 * math.pi * (hour - _BUSIEST_H) / 24.0)
        return {family: rate * part for family, rate in rates.items()}

    return demand


def _words(names: set[str]) -> str:
    return ", ".join(sorted(names))
