"""Embodied carbon: what making the hardware emitted, charged to a server by the time that it reserves the hardware.

By ISO/IEC 21031 (the Software Carbon Intensity),

    M = TE x (TiR / EL) x (RR / ToR)

    TE   what making the hardware emitted in all              EL    how long it is expected to be in use
    TiR  how long it was reserved for the software            RR    what is reserved of it: cores, slices of a GPU
                                                              ToR   what there is of it

A reserved core counts whether it works or not: M grows with time, not with load.  M is never part of the grams of
operation.  If the TE of some hardware is unknown, M is unknown too, and never just smaller.

Everything is pure: times are arguments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from clover.accounting.meters import WorkerMeter
from clover.types import Record

EmbodiedMethod = Literal["cited default", "configured", "emulated", "unknown"]
"""How TE is known.  "emulated": nothing was made."""

_YEAR_NS = 365 * 86_400 * 1_000_000_000


class Hardware(Record, frozen=True, kw_only=True):
    """One piece of hardware: TE in kgCO2e with its bounds (None: unknown), and how much of it is reserved.  `device` is
    its name in the account.  Workers hold `slices` slices of it, which are `for_workers` of what is reserved: a core
    that is kept for the front end is not among them."""

    device: str
    product: str
    kg: float | None
    low_kg: float | None = None
    high_kg: float | None = None
    reserved: float
    total: float
    for_workers: float
    slices: int
    known: EmbodiedMethod
    source: str


@dataclass
class EmbodiedGrams:
    """Embodied grams so far, and how many they are at least and at most, by the bounds of TE."""

    grams: float = 0.0
    low_g: float = 0.0
    high_g: float = 0.0

    def add(self, other: EmbodiedGrams, factor: float = 1.0) -> None:
        """Add `factor` x another sum."""
        self.grams += other.grams * factor
        self.low_g += other.low_g * factor
        self.high_g += other.high_g * factor


@dataclass
class EmbodiedLedger:
    """Embodied grams of each piece of hardware by device, and of each model by what its workers held.  Hardware is
    reserved from `since_ns` on, which moves to the end of each window.  What no worker held (cores of the front end,
    slices at rest) is in `devices` and in no model."""

    hardware: Sequence[Hardware]
    life_years: float
    since_ns: int
    devices: dict[str, EmbodiedGrams] = field(default_factory=dict)
    models: dict[str, EmbodiedGrams | None] = field(default_factory=dict)
    """None: the model held hardware whose TE is unknown."""
    parts: dict[tuple[str, str], float] = field(default_factory=dict)
    """The grams of `devices` by (device, model), under the empty name what no worker held.  None ever falls."""

    def charge(self, now_ns: int, workers: Iterable[WorkerMeter]) -> None:
        """Charge the time since the last call; `workers` hold slices now."""
        here = list(workers)
        since_ns, self.since_ns = self.since_ns, max(now_ns, self.since_ns)
        part_of_life = (self.since_ns - since_ns) / (self.life_years * _YEAR_NS)
        for item in self.hardware:
            charged = _charge(item, part_of_life)
            shares = _shares(here, item)
            if charged is not None:
                self.devices.setdefault(item.device, EmbodiedGrams()).add(charged)
                held = [(model, share * item.for_workers / item.reserved) for model, share in shares]
                for model, part in (*held, ("", max(1.0 - sum(part for _, part in held), 0.0))):
                    key = (item.device, model)
                    self.parts[key] = self.parts.get(key, 0.0) + charged.grams * part
            for model, share in shares:
                known = self.models.setdefault(model, EmbodiedGrams())
                if charged is None:
                    self.models[model] = None
                elif known is not None:
                    known.add(charged, share * item.for_workers / item.reserved)

    def unknown(self) -> tuple[Hardware, ...]:
        """Return the hardware whose embodied carbon is unknown."""
        return tuple(item for item in self.hardware if item.kg is None)


def _shares(workers: Sequence[WorkerMeter], item: Hardware) -> list[tuple[str, float]]:
    """Return models with the share of the slices of `item` that one of their workers holds, as idle energy is split."""
    here = [worker for worker in workers if worker.device == item.device]
    crowd = Counter(worker.placement for worker in here)
    held = [(worker.family, worker.slices / crowd[worker.placement]) for worker in here]
    # Placements of an old and a new layout may overlap during a transition.
    total = max(float(item.slices), sum(count for _, count in held))
    return [(model, count / total) for model, count in held]


def _charge(item: Hardware, part_of_life: float) -> EmbodiedGrams | None:
    """Return M of a part of the life of `item`; None if its TE is unknown."""
    if item.kg is None:
        return None
    low_kg = item.kg if item.low_kg is None else item.low_kg
    high_kg = item.kg if item.high_kg is None else item.high_kg
    factor = 1e3 * part_of_life * item.reserved / item.total
    return EmbodiedGrams(item.kg * factor, low_kg * factor, high_kg * factor)
