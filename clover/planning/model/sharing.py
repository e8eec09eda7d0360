"""Placements that are shared in time: processes that hold several variants, one queue of batches each.

**The system.**  A *pool* is a number of processes in front of lanes, one lane a variant.  Each process holds all
variants of its group (`GroupCount.variants`) and runs one batch at a time, of one variant's rows.  Like every worker it
has two credits.  The lane whose first row has waited longest gives the next batch.  A mix deals rows to the lanes by
quota.  The rows of a cascade all come to the first lane; a row that is passed on enters the next lane's queue, of the
same processes, when its batch ends.

**Utilisation** is the time that all rows take in the best batches over the time of all processes: the sum of a_v / C_v,
with a_v the rate of variant v and C_v the rows a second of its lane if the processes did nothing else.  Example: one
process could serve 333 rows/s of `small` or 50 of `large`.  At 100 and 20 rows/s it is loaded to
100 / 333 + 20 / 50 = 70 %.  If the processes of a pool do not all serve the same variants, rows are dealt to kinds of
processes so that the busiest kind is as little loaded as possible (`SharedPool.flows`, by iteration, which never finds
a load that is too low).

**Batches and energy: closed form.**  As in `queueing`, but what arrives for a variant gathers for a round: while a
process serves a batch of it, and a batch of each other variant of which a row has come meanwhile.

**p95: a short simulation** of all lanes at once, with the kernel `clover._native.timeshare` and fixed random numbers.
Rates are rounded up by up to 1 %, as for cascades.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from clover._native import timeshare
from clover.planning.model.queueing import ROWS, WARM_UP, Service, batch_joules, batch_seconds, quantiles
from clover.types import Configuration

Floats = NDArray[np.float64]

_ROUNDS = 40
_SPREADING = 24
_SHARE_STEP = 200
_RATE_STEP = 0.01
_SEED = 20261128
_FULL = 0.999


@dataclass(frozen=True)
class ProcessKind:
    """Equal processes of a pool: how many, and how they serve each lane (None: not)."""

    count: int
    services: tuple[Service | None, ...]


@dataclass(frozen=True)
class SharedPool:
    """Processes that share their time between lanes.  With `shares` rows are dealt to the lanes by these; without, the
    lanes are the stages of a cascade."""

    kinds: tuple[ProcessKind, ...]
    shares: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """How many lanes there are."""
        return len(self.kinds[0].services)

    @cached_property
    def front_ms(self) -> float:
        """Milliseconds that HTTP and the front end add to the latency of a row."""
        return next(service.front_ms for kind in self.kinds for service in kind.services if service is not None)

    @cached_property
    def capacities(self) -> tuple[float, ...]:
        """Rows a second of each lane, if its processes served nothing else."""
        return tuple(
            sum(k.count * own.capacity() for k in self.kinds if (own := k.services[lane]) is not None)
            for lane in range(self.width)
        )

    @cached_property
    def processes(self) -> int:
        """How many processes there are."""
        return sum(kind.count for kind in self.kinds)

    def utilisation(self, rates: Sequence[float]) -> float:
        """Return the load of the busiest processes at these rows a second of each lane; infinite for rows that no
        process serves."""
        if any(rate > 0.0 and full <= 0.0 for rate, full in zip(rates, self.capacities, strict=True)):
            return math.inf
        return max(self._loads(self.flows(rates)), default=0.0)

    def flows(self, rates: Sequence[float]) -> list[list[float]]:
        """Return rows a second by kind and lane: in proportion to capacity, and if kinds serve unlike lanes moved to
        those that are less busy."""
        weights = [
            [0.0 if own is None else kind.count * own.capacity() for own in kind.services] for kind in self.kinds
        ]
        flows = _dealt(rates, weights)
        if all(own is not None for kind in self.kinds for own in kind.services) or len(self.kinds) == 1:
            return flows
        best = flows
        for _ in range(_SPREADING):
            loads = self._loads(flows)
            if max(loads) < max(self._loads(best)):
                best = flows
            weights = [
                [weight / math.sqrt(max(load, 1e-3)) for weight in own]
                for own, load in zip(weights, loads, strict=True)
            ]
            flows = _dealt(rates, weights)
        return best

    def _loads(self, flows: Sequence[Sequence[float]]) -> list[float]:
        return [
            sum(
                rate / own.capacity()
                for rate, own in zip(rates, kind.services, strict=True)
                if own is not None and rate > 0.0
            )
            / kind.count
            for rates, kind in zip(flows, self.kinds, strict=True)
        ]

    def joules(self, rates: Sequence[float], wait_ms: float = 0.0) -> tuple[float, ...]:
        """Return joules above idle of a row of each lane; rows of the first lane wait up to `wait_ms` for a full
        batch.  The pool must be stable."""
        return tuple(own[0] for own in self._served(rates, wait_ms))

    def batches(self, rates: Sequence[float], wait_ms: float = 0.0) -> tuple[float, ...]:
        """Return the expected rows of a batch of each lane."""
        return tuple(own[1] for own in self._served(rates, wait_ms))

    def _served(self, rates: Sequence[float], wait_ms: float) -> list[tuple[float, float]]:
        """Return joules a row and rows a batch of each lane."""
        power = self.processes + 2.0
        totals = [[0.0, 0.0, 0.0] for _ in rates]
        for kind, flows in zip(self.kinds, self.flows([max(rate, 1e-9) for rate in rates]), strict=True):
            own = [rate / kind.count for rate in flows]
            gathered = [1.0 + (rates[0] * wait_ms * 1e-3 if lane == 0 else 0.0) for lane in range(len(own))]
            sizes = _batches(kind.services, own, gathered, power)
            busy, begun = 0.0, 0.0
            for service, rate, size in zip(kind.services, own, sizes, strict=True):
                if service is not None:
                    busy += rate / size * service.seconds(size)
                    begun += rate / size
            pause_s = max(0.0, 1.0 - busy) / max(begun, 1e-12)
            for lane, (total, service, rate, size) in enumerate(zip(totals, kind.services, flows, sizes, strict=True)):
                if service is None:
                    continue
                waited = lane == 0 and wait_ms > 0.0
                total[0] += rate
                total[1] += rate * (service.energy_j(size) + service.pause_j(pause_s, waited=waited) / size)
                total[2] += rate * size
        return [(joules / rate, size / rate) if rate > 0.0 else (0.0, 1.0) for rate, joules, size in totals]

    def latencies_ms(self, rate: float) -> Floats:
        """Return equally likely latencies (ms, ascending) of rows that come at `rate` and are dealt by `shares`.  The
        pool must be stable."""
        shares = tuple(round(share * _SHARE_STEP) / _SHARE_STEP for share in self.shares)
        shares = shares if any(shares) else self.shares
        most = rate * _FULL / max(self.utilisation([rate * share for share in self.shares]), 1e-9)
        step = math.ceil(math.log(max(rate, 1e-3)) / _RATE_STEP - 1e-9)
        return _played(replace(self, shares=shares), min(math.exp(step * _RATE_STEP), most))

    def play(
        self,
        times_s: Floats,
        *,
        seed: int,
        last: NDArray[np.int8] | None = None,
        wait_ms: float = 0.0,
        warm_up: int = 0,
    ) -> timeshare.Outcome:
        """Play rows that arrive at `times_s`: dealt by `shares`, or passed on until the lanes `last`."""
        at = [
            (kind, lane, service)
            for kind, own in enumerate(self.kinds)
            for lane, service in enumerate(own.services)
            if service is not None
        ]
        columns = max(service.max_batch for _, _, service in at)
        return timeshare.play(
            [batch_seconds(service, columns) for _, _, service in at],
            [lane for _, lane, _ in at],
            [kind for kind, _, _ in at],
            [kind.count for kind in self.kinds],
            times_s,
            cv=[service.cv for _, _, service in at],
            energy_j=[batch_joules(service, columns) for _, _, service in at],
            largest=[service.max_batch for _, _, service in at],
            shares=None if last is not None else self.shares,
            last=last,
            wait_s=[wait_ms * 1e-3, *([0.0] * (self.width - 1))] if wait_ms else None,
            warm_up=warm_up,
            seed=seed,
        )


def pool_of(
    services: Mapping[tuple[str, str], Service], configuration: Configuration, lanes: Sequence[str]
) -> SharedPool:
    """Return the workers of `configuration` that serve any of the variants `lanes`, as a pool; `services` of each
    (variant, profile), KeyError if one is not there."""
    kinds = []
    for group in configuration:
        own = tuple(services[name, group.profile] if name in group.variants else None for name in lanes)
        if any(service is not None for service in own):
            kinds.append(ProcessKind(group.count, own))
    return SharedPool(tuple(kinds))


def _dealt(rates: Sequence[float], weights: Sequence[Sequence[float]]) -> list[list[float]]:
    totals = [sum(own[lane] for own in weights) or 1.0 for lane in range(len(rates))]
    return [[rate * weight / total for rate, weight, total in zip(rates, own, totals, strict=True)] for own in weights]


def _batches(
    services: Sequence[Service | None], rates: Sequence[float], gathered: Sequence[float], power: float
) -> list[float]:
    """Return the expected rows of a batch of each lane on a process that gets `rates` rows a second."""
    given = enumerate(zip(services, rates, strict=True))
    served = [(lane, own, rate) for lane, (own, rate) in given if own is not None]
    sizes, rounds_s = [1.0] * len(services), [0.0 if own is None else own.seconds(1.0) for own in services]
    for _ in range(_ROUNDS):
        takes_s = {lane: own.seconds(sizes[lane]) for lane, own, _ in served}
        moved = 0.0
        for lane, own, rate in served:
            round_s = takes_s[lane] + sum(
                min(1.0, other * rounds_s[lane]) * takes_s[at] for at, _, other in served if at != lane
            )
            r = rate * round_s
            bend = max(1.0, r) * (1.0 + min(r, 1.0 / r) ** power) ** (1.0 / power) if r > 0.0 else 1.0
            following = min(max(bend, gathered[lane]), float(own.max_batch))
            moved = max(moved, abs(following - sizes[lane]))
            sizes[lane], rounds_s[lane] = 0.5 * (sizes[lane] + following), 0.5 * (rounds_s[lane] + round_s)
        if moved < 1e-2:
            break
    return sizes


@lru_cache(maxsize=8192)
def _played(pool: SharedPool, rate: float) -> Floats:
    outcome = pool.play(arrivals(ROWS + WARM_UP) / rate, seed=_SEED, warm_up=WARM_UP)
    return quantiles(outcome.latency_s * 1e3 + pool.front_ms)


@lru_cache(maxsize=4)
def arrivals(rows: int) -> Floats:
    """Return the moments at which `rows` rows arrive at one a second by chance: the same ones every time."""
    times: Floats = np.cumsum(np.random.default_rng(_SEED).exponential(1.0, rows))
    return times
