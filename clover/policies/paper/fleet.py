"""The configuration graph: which deals of variants to slices a device allows, and which of them are neighbours.

A *deal* is the configuration of one device: a layout with a variant on each of its slices.  Only its counts
{(variant, profile): number} matter.  Those counts are the paper's graph (variants on one side, slice types on the
other, the counts as weights of the edges), and the distance of two graphs is the sum of the differences of their
weights.  An A100 and four variants have 1,282 deals.

A *unit* is what moves together: one device if devices are free, all devices of a kind if they are all alike.  The
graph of the fleet is the sum of its units' deals, each times the devices in the unit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from clover._native.random import Random
from clover.errors import PlanError
from clover.planning.model.problem import Problem, fitting, whole
from clover.planning.packing.candidates import Profiles, configurations_of, multisets_of
from clover.policies.paper.fifo import Counts, Floats, Keys
from clover.types import Assignment, DeviceShape, State

FULL = 20_000
"""Configurations of one device, or of devices all alike, up to which they are listed."""
Fits = tuple[tuple[str, tuple[str, ...]], ...]
At = tuple[int, ...]
"""Where a search stands: the number of each unit's deal."""


@dataclass(frozen=True, eq=False)
class Deals:
    """All deals of a kind of device, a row of counts each.  `raw`: its layouts as, for each slice, the columns that a
    worker there may count in; `chance`: how likely a deal is if a layout is drawn at random and then a variant for
    each of its slices."""

    counts: Counts
    number: dict[bytes, int]
    raw: tuple[tuple[tuple[int, ...], ...], ...]
    chance: Floats

    def distances(self, centre: int) -> Counts:
        """Return how far each deal is from one of them."""
        away: Counts = np.abs(self.counts - self.counts[centre]).sum(axis=1)
        return away


@dataclass(frozen=True)
class Unit:
    """Devices that are configured alike, with their deals."""

    devices: tuple[DeviceShape, ...]
    deals: Deals

    @property
    def times(self) -> int:
        """How many devices it has."""
        return len(self.devices)


@dataclass(frozen=True)
class PaperFleet:
    """The devices of a problem as units that move by themselves."""

    units: tuple[Unit, ...]
    keys: Keys

    def counts(self, at: At) -> Counts:
        """Return the configuration of the fleet, as a row."""
        total = np.zeros(len(self.keys), dtype=np.int64)
        for unit, deal in zip(self.units, at, strict=True):
            total += unit.times * unit.deals.counts[deal]
        return total

    def draw_raw(self, rng: Random) -> tuple[tuple[int, ...], Counts]:
        """Return a point of the raw space: each unit draws a layout, and then a variant for each of its slices."""
        code: list[int] = []
        total = np.zeros(len(self.keys), dtype=np.int64)
        for unit in self.units:
            code.append(rng.below(len(unit.deals.raw)))
            for columns in unit.deals.raw[code[-1]]:
                code.append(columns[rng.below(len(columns))])
                total[code[-1]] += unit.times
        return tuple(code), total

    def running(self, state: State) -> At | None:
        """Return where the fleet stands now; None if what runs is not one deal a unit."""
        by_device: dict[str, list[Assignment]] = {}
        for item in state.running:
            by_device.setdefault(item.placement.device, []).append(item)
        deals = []
        for unit in self.units:
            rows = {self._row(by_device.get(device.device, ())) for device in unit.devices}
            deal = unit.deals.number.get(rows.pop()) if len(rows) == 1 else None
            if deal is None:
                return None
            deals.append(deal)
        return tuple(deals)

    def base(self, problem: Problem) -> At:
        """Return BASE: the best variant on whole devices; if it was not measured there, the first deal."""
        deals = []
        for unit in self.units:
            row = np.zeros(len(self.keys), dtype=np.int64)
            for placement in whole(unit.devices[0]):
                key = (problem.best, placement.profile)
                if key in self.keys:
                    row[self.keys.index(key)] += 1
            deals.append(unit.deals.number.get(row.tobytes(), 0))
        return tuple(deals)

    def _row(self, items: Sequence[Assignment]) -> bytes:
        row = np.zeros(len(self.keys), dtype=np.int64)
        for item in items:
            key = (item.variant, item.placement.profile)
            if key not in self.keys:
                return b""
            row[self.keys.index(key)] += 1
        return row.tobytes()


def fleet_of(problem: Problem, keys: Keys, *, alike: bool) -> PaperFleet:
    """Return the devices of `problem`, free or all of a kind alike.  Devices without layouts (lost, or full of what
    others own) take no part; PlanError if a device runs nothing that was measured, or has too many deals to list."""
    fits = tuple(sorted(fitting(problem).items()))
    kinds: dict[tuple[Profiles, ...], list[DeviceShape]] = {}
    for device in problem.devices:
        multisets = multisets_of(device)
        if multisets:
            kinds.setdefault(multisets, []).append(device)
    units: list[Unit] = []
    for multisets, devices in kinds.items():
        deals = _deals(multisets, raw_layouts(devices[0], dict(fits)), fits, keys)
        if not len(deals.counts):
            raise PlanError(f"no layout of {devices[0].device} can run {problem.family}: profile it for this device")
        units.extend([Unit(tuple(devices), deals)] if alike else [Unit((device,), deals) for device in devices])
    return PaperFleet(tuple(units), keys)


def raw_layouts(device: DeviceShape, fits: dict[str, tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """Return the profiles of each of the device's layouts (the paper's partition codes) that something runs on
    throughout."""
    named = [tuple(placement.profile for placement in layout) for layout in device.layouts if layout]
    return tuple(profiles for profiles in named if all(fits.get(profile) for profile in profiles))


@lru_cache(maxsize=16)
def _deals(multisets: tuple[Profiles, ...], raw: tuple[tuple[str, ...], ...], fits: Fits, keys: Keys) -> Deals:
    fitted = dict(fits)
    configurations = configurations_of(((multisets, 1),), fitted, limit=FULL)
    counts = np.zeros((len(configurations), len(keys)), dtype=np.int64)
    layouts = Counter(tuple(sorted(Counter(profiles).items())) for profiles in raw)
    chance = np.zeros(len(configurations))
    for row, configuration in enumerate(configurations):
        held: Counter[str] = Counter()
        ways = 1.0
        for group in configuration:
            counts[row, keys.index((group.variant, group.profile))] = group.count
            held[group.profile] += group.count
            ways *= math.comb(held[group.profile], group.count) / len(fitted[group.profile]) ** group.count
        chance[row] = ways * layouts[tuple(sorted(held.items()))] / len(raw)
    counts.setflags(write=False)
    columns = {profile: tuple(keys.index((v, profile)) for v in variants) for profile, variants in fits}
    slots = tuple(tuple(columns[profile] for profile in profiles) for profiles in raw)
    return Deals(counts, {row.tobytes(): number for number, row in enumerate(counts)}, slots, chance)


# --- moves ------------------------------------------------------------------------------------------------------------

RADIUS = 4
"""Neighbours are at most so far apart."""
TRIES = 400
"""So many draws that are no new neighbour end a search."""


def neighbour(fleet: PaperFleet, centre: At, rng: Random) -> At:
    """Return a random neighbour if devices are free: another deal of one device, and if that is near enough that
    two devices may change, every other time another deal of a second one.  `centre` itself if there is none."""
    first = rng.below(len(fleet.units))
    moved, left = _move(fleet, centre, first, RADIUS, rng)
    if left < 2 or len(fleet.units) < 2 or rng.below(2):
        return moved
    second = (first + 1 + rng.below(len(fleet.units) - 1)) % len(fleet.units)
    return _move(fleet, moved, second, left, rng)[0]


def draw_neighbour(fleet: PaperFleet, centre: At, seen: Collection[At], rng: Random) -> tuple[At | None, bool]:
    """Return what comes of drawing a layout and a variant for each slice until an unseen neighbour comes up, and
    whether one did within `TRIES`; else an unseen deal, near or not, and None if all were seen.

    The artifact does draw.  Here the same chances are dealt with at once: those of each unseen deal, and that of no
    neighbour in so many tries.  Of several kinds of devices one moves at a time (the artifact knows one kind).
    """
    unit = rng.below(len(fleet.units))
    deals = fleet.units[unit].deals

    def moved(deal: int) -> At:
        return (*centre[:unit], deal, *centre[unit + 1 :])

    new = np.ones(len(deals.chance), dtype=np.bool_)
    new[[at[unit] for at in seen if moved(at[unit]) == at]] = False
    near = new & (deals.distances(centre[unit]) <= RADIUS)
    total, inside = float(deals.chance[new].sum()), float(deals.chance[near].sum())
    if total <= 0.0:
        return None, False
    missed = (1.0 - min(1.0, inside / total)) ** TRIES
    met = inside > 0.0 and rng.uniform() > missed
    allowed = np.nonzero(near if met else new)[0]
    edges = np.cumsum(deals.chance[allowed])
    at = int(np.searchsorted(edges, rng.uniform() * edges[-1]))
    return moved(int(allowed[min(at, len(allowed) - 1)])), met


def _move(fleet: PaperFleet, at: At, unit: int, radius: int, rng: Random) -> tuple[At, int]:
    """Return `at` with another deal of one unit within `radius`, and how much of the radius is left."""
    away = fleet.units[unit].deals.distances(at[unit])
    inside = np.nonzero((away <= radius) & (away > 0))[0]
    if not len(inside):
        return at, radius
    deal = int(inside[rng.below(len(inside))])
    return (*at[:unit], deal, *at[unit + 1 :]), radius - int(away[deal])
