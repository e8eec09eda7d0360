"""Where a meter stands, for a server that goes on metering where another one stops: no joule is lost or counted twice.

`time.monotonic_ns` is the machine's, so the times of one server hold in another on the same boot.
"""

from __future__ import annotations

from clover.types import Method, Record


class MeterMark(Record, frozen=True, kw_only=True):
    """What a meter had read at `at_ns` (monotonic): the raw `counters` of one that reads some, in microjoules."""

    device: str
    method: Method
    at_ns: int
    counters: tuple[int, ...] = ()


class ClosedMeters(Record, frozen=True, kw_only=True):
    """What a server leaves to its successor in a file: where its `meters` stand, and until when (monotonic) it charged
    embodied carbon."""

    at_ns: int
    meters: tuple[MeterMark, ...]
