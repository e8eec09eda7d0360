"""The grids of a cluster's regions, each by the carbon section of the cluster file.

A trace may be replayed, and faster than real time; then grid hours and wall-clock hours differ.  Forecasts are handed
on in wall-clock time (Unix seconds), as everything else in the cluster.  At 60 times the speed, a value that the trace
has for the next hour is therefore handed on for the next minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from clover import carbon
from clover.carbon import GridClock, SourceChain
from clover.cluster.cluster_records import ClusterFile
from clover.errors import CloverError
from clover.types import Reading


class ConfiguredGrids:
    """Implements `clover.cluster.ports.RegionGrids`.  `began_s`: the Unix second at which replayed traces began, so
    that a controller that is started later is at the same hour as the nodes (None: now)."""

    def __init__(
        self, file: ClusterFile, *, began_s: float | None = None, wall: Callable[[], float] = time.time
    ) -> None:
        self._wall = wall
        self._chains: dict[str, tuple[SourceChain, GridClock, bool]] = {}
        for region in file.region:
            chain, clock = carbon.build(region.carbon)
            replayed = bool(region.carbon.trace_start) or region.carbon.trace_speed != 1.0
            if replayed and began_s is not None:
                start_s = clock.start_s + clock.speed * max(0.0, wall() - began_s)
                clock = GridClock(start_s, clock.speed)
            self._chains[region.name] = (chain, clock, replayed)

    async def open(self) -> None:
        """Ask live providers once; CarbonError if one refuses the request itself."""
        for chain, clock, _ in self._chains.values():
            await chain.open(clock.now())

    async def close(self) -> None:
        """Let go of the providers."""
        for chain, _, _ in self._chains.values():
            await chain.close()

    async def readings(self, at_s: float) -> Mapping[str, Reading]:
        """Return the newest reading of each region; one whose chain fails is left out."""
        readings: dict[str, Reading] = {}

        async def read(name: str) -> None:
            chain, clock, _ = self._chains[name]
            with contextlib.suppress(CloverError):
                readings[name] = await chain.read(clock.now())

        await asyncio.gather(*map(read, self._chains))
        return readings

    async def forecasts(self, at_s: float, horizon_s: float) -> Mapping[str, Sequence[Reading]]:
        """Return each region's forecast from `at_s` (Unix seconds) on; empty if there is none."""
        forecasts: dict[str, Sequence[Reading]] = {}
        for name, (chain, clock, _) in self._chains.items():
            now_s = clock.now()
            ahead: list[Reading] = []
            with contextlib.suppress(CloverError):
                ahead = await chain.forecast(now_s, horizon_s * clock.speed)
            forecasts[name] = [
                msgspec.structs.replace(item, at_s=at_s + (item.at_s - now_s) / clock.speed) for item in ahead
            ]
        return forecasts

    def replayed_at(self, region: str) -> str:
        """Return the time that the region's replayed trace is at now (ISO 8601), for a server that starts now; empty if
        its grid is that of the wall."""
        _, clock, replayed = self._chains[region]
        return datetime.fromtimestamp(clock.now(), UTC).isoformat() if replayed else ""
