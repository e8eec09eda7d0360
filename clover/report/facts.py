"""What a run recorded of its machine: PUE, hardware and its embodied carbon, how far meters may be off."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from clover.accounting.labels import METER_ERROR, MODELLED_ERROR
from clover.malformed import MALFORMED
from clover.report.records import EmbodiedFigures, GramsRange
from clover.telemetry.ledger.rows import GridRow, LineRow, RunRow

YEAR_S = 365 * 86_400.0


class HardwareFact(msgspec.Struct, frozen=True):
    """Hardware that a run reserved (`clover.accounting.embodied.Hardware`)."""

    device: str
    product: str
    kg: float | None
    low_kg: float | None
    high_kg: float | None
    reserved: float
    total: float
    known: str
    source: str


class DeviceFact(msgspec.Struct, frozen=True):
    """How the energy of a device is known, and by which parts it may be off (None: not said)."""

    method: str = ""
    uncertainty_low: float | None = None
    uncertainty_high: float | None = None


_UNSAID = DeviceFact()


class RunFacts(msgspec.Struct, frozen=True):
    """What a run recorded of its machine.  Any part may be missing in a ledger of another version."""

    pue: float | None = None
    life_years: float | None = None
    hardware: tuple[HardwareFact, ...] | None = None
    devices: Mapping[str, DeviceFact] = {}


def facts_of(run: RunRow) -> RunFacts:
    """Return the facts of a run; empty ones if they cannot be read."""
    try:
        return msgspec.json.decode(run.facts, type=RunFacts)
    except MALFORMED:
        return RunFacts()


def configuration_of(run: RunRow) -> Mapping[str, Any]:
    """Return the configuration of a run as sections; empty if it cannot be read."""
    try:
        configuration = msgspec.json.decode(run.configuration)
    except MALFORMED:
        return {}
    return configuration if isinstance(configuration, dict) else {}


class RunTimes:
    """Which run a span belongs to: the last one that had started when the span ended."""

    def __init__(self, runs: Sequence[RunRow]) -> None:
        self._runs = sorted(runs, key=lambda run: run.started)
        self._starts = [run.started for run in self._runs]
        self._facts = [facts_of(run) for run in self._runs]

    def facts_at(self, start: int, length: int) -> RunFacts | None:
        """Return the facts of the run that a span belongs to; None if no run is known."""
        if not self._runs:
            return None
        return self._facts[max(bisect_right(self._starts, start + length) - 1, 0)]


def energy_range(lines: Iterable[LineRow], times: RunTimes) -> GramsRange:
    """Return the grams of `lines` with their interval: by what the meter of each device says itself of how far it may
    be off, else by what is usual of its kind.  Errors are added, as if all were off the same way."""
    grams = low = high = 0.0
    for row in lines:
        facts = times.facts_at(row.start, row.length)
        usual = METER_ERROR.get(row.label, MODELLED_ERROR)
        device = facts.devices.get(row.device, _UNSAID) if facts is not None else _UNSAID
        down = -usual if device.uncertainty_low is None else device.uncertainty_low
        up = usual if device.uncertainty_high is None else device.uncertainty_high
        grams += row.grams
        low += row.grams * (1.0 + min(down, up))
        high += row.grams * (1.0 + max(down, up))
    return GramsRange(grams=grams, low_g=min(low, high), high_g=max(low, high))


def embodied_of(grid: Iterable[GridRow], times: RunTimes) -> tuple[EmbodiedFigures, ...] | None:
    """Return the embodied carbon of the hardware that was reserved, over the seconds recorded in `grid`; None if a run
    did not note its hardware.

    M = TE x (TiR / EL) x (RR / ToR), as `clover.accounting.embodied` has it.
    """
    seconds: dict[int, float] = defaultdict(float)
    known: dict[int, RunFacts] = {}
    for row in grid:
        facts = times.facts_at(row.start, row.length)
        if facts is None or facts.hardware is None or not facts.life_years:
            return None
        seconds[id(facts)] += row.seconds
        known[id(facts)] = facts
    held: dict[tuple[HardwareFact, float], float] = defaultdict(float)
    for name, facts in known.items():
        for item in facts.hardware or ():
            held[item, facts.life_years or 0.0] += seconds[name]
    return tuple(_charge(item, years, duration_s) for (item, years), duration_s in held.items())


def _charge(item: HardwareFact, life_years: float, seconds: float) -> EmbodiedFigures:
    factor = 1e3 * seconds / (life_years * YEAR_S) * item.reserved / item.total
    found = None
    if item.kg is not None:
        low_kg = item.kg if item.low_kg is None else item.low_kg
        high_kg = item.kg if item.high_kg is None else item.high_kg
        found = GramsRange(grams=item.kg * factor, low_g=low_kg * factor, high_g=high_kg * factor)
    return EmbodiedFigures(
        device=item.device,
        product=item.product,
        kg=item.kg,
        reserved=item.reserved,
        total=item.total,
        seconds=seconds,
        life_years=life_years,
        known=item.known,
        source=item.source,
        range=found,
    )


def embodied_sum(hardware: Sequence[EmbodiedFigures] | None) -> GramsRange | None:
    """Return the embodied carbon of all hardware; None if that of any is unknown, or no hardware is known."""
    ranges = [item.range for item in hardware or ()]
    known = [item for item in ranges if item is not None]
    if hardware is None or len(known) < len(ranges) or not ranges:
        return None
    return GramsRange(
        grams=sum(item.grams for item in known),
        low_g=sum(item.low_g for item in known),
        high_g=sum(item.high_g for item in known),
    )
