"""Where a meter stands, for a server that goes on metering where another one stops: no joule is lost or counted twice.

`time.monotonic_ns` is of the machine, so the times of one server hold in another on the same boot.
"""

from __future__ import annotations

from typing import Protocol

from clover.types import EnergySample, Method, Record


class MeterMark(Record, frozen=True, kw_only=True):
    """What a meter had read at `at_ns` (monotonic): the raw `counters` of one that reads some, in microjoules."""

    device: str
    method: Method
    at_ns: int
    counters: tuple[int, ...] = ()


class MarkedMeter(Protocol):
    """A meter that can be handed over."""

    def mark(self) -> MeterMark:
        """Return where its last sample stands."""

    def hand_over(self) -> None:
        """Leave what the other server meters to that: from the last sample on."""

    def take_over(self, mark: MeterMark) -> EnergySample:
        """Begin where another server's meter stood, and return a sample of that moment; ValueError if it cannot."""
