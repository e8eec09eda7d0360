"""What a configuration does under a routing at a rate, by the production queueing model (`planning.model.queueing`).

Every variant is a lane that gets its share of the rows, with the model's batches, joules and latencies; a cascade is a
row of lanes, each asked as often as the profile says.  Workers that share their time between variants are a pool
(`planning.model.sharing`).  What was computed is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clover.planning.cascade.evaluation import energy_j, play_latencies_ms, wait_of
from clover.planning.model.problem import accuracies, is_shared, services_of
from clover.planning.model.queueing import Lane, Service, lane_of, latencies_ms, mixture_p95_ms, play_batches
from clover.planning.model.sharing import SharedPool, pool_of
from clover.types import ChainPoint, Configuration, FamilyProfile, Routing

Floats = NDArray[np.float64]

_FULL = 0.999  # of a lane's capacity, above which the model has no p95


@dataclass(frozen=True)
class Flow:
    """What a routing does at a rate: rows/s served, accuracy (percent), watts above idle, the part of the rows later
    than the SLO, spare capacity in rows/s, and p95 (ms) with the weighted latencies that it is taken from."""

    served: float
    accuracy: float
    active_w: float
    late: float
    spare: float
    p95_ms: float
    parts: tuple[tuple[float, Floats], ...]
    work: tuple[LaneWork, ...] = ()


@dataclass(frozen=True)
class LaneWork:
    """What the workers of one (variant, profile of the slice) do in a second: rows in batches of `batch`, each of which
    takes `batch_s`; `joules` above idle, and those that the profile believes in."""

    variant: str
    profile: str
    rows: float
    batch: int
    batch_s: float
    joules: float
    expected_j: float


class FleetModel:
    """The queueing model of one family on its devices; what was computed is kept.  `profile` is how workers really
    serve, `believed` what the controller takes for it.  Watts are the workers', and those of the turns of the front end
    that batches take, at `turn_j` joules each."""

    def __init__(
        self, profile: FamilyProfile, slo_ms: float, believed: FamilyProfile | None = None, *, turn_j: float = 0.0
    ) -> None:
        services = services_of(profile)
        self._services = {key: replace(own, turn_j=turn_j) for key, own in services.items()} if turn_j else services
        self._believed = services_of(believed or profile)
        self._accuracy = accuracies(profile)
        self._slo_ms = slo_ms
        self._points = points_of(profile)
        self._known: dict[tuple[object, ...], Flow] = {}

    def flow(self, configuration: Configuration, routing: Routing, rate: float) -> Flow:
        """Return what `configuration` does with `rate` rows a second under `routing`."""
        knobs = tuple(
            (v, routing.shares[v], routing.largest.get(v, 0), routing.wait_ms.get(v, 0.0)) for v in routing.shares
        )
        key = (configuration, knobs, routing.chain, routing.thresholds, rate)
        if key not in self._known:
            self._known[key] = self._flow(configuration, routing, rate)
        return self._known[key]

    def _flow(self, configuration: Configuration, routing: Routing, rate: float) -> Flow:
        groups: dict[str, list[tuple[Service, int]]] = {}
        for group in configuration:
            for variant in group.variants:
                own = groups.setdefault(variant, [])
                own.append((self._services[variant, group.profile], group.count))
        if routing.chain and groups.keys() >= set(routing.chain):
            return self._chained_flow(configuration, groups, routing, rate)
        if is_shared(configuration):
            return self._shared_flow(configuration, routing, rate)
        total = sum(share for variant, share in routing.shares.items() if variant in groups) or 1.0
        served = right = watts = late = spare = 0.0
        parts = []
        work: list[LaneWork] = []
        for variant, members in groups.items():
            lane = lane_of(tuple(members))
            share = routing.shares.get(variant, 0.0) / total  # plans round shares: no row may be lost by that
            coming = rate * share
            done = min(coming, _FULL * lane.capacity)
            spare += lane.capacity - done
            if done <= 0.0:
                continue
            energy_j, batch, latencies = _lane(
                lane, done, share, routing.largest.get(variant, 0), routing.wait_ms.get(variant, 0.0)
            )
            work += self._work(configuration, variant, done, batch, energy_j)
            overloaded = coming > done
            served += done
            right += done * self._accuracy[variant]
            watts += done * energy_j
            late += done * (1.0 if overloaded else float(np.mean(latencies > self._slo_ms)))
            parts.append((done, latencies))
        return Flow(
            served=served,
            accuracy=right / served if served > 0.0 else 0.0,
            active_w=watts,
            late=late / served if served > 0.0 else 0.0,
            spare=spare,
            p95_ms=mixture_p95_ms([(rows / served, values) for rows, values in parts]) if parts else 0.0,
            parts=tuple(parts),
            work=tuple(work),
        )

    def _shared_flow(self, configuration: Configuration, routing: Routing, rate: float) -> Flow:
        """Return what a mix does on workers of which some share their time."""
        variants = sorted({variant for group in configuration for variant in group.variants})
        shares = {variant: share for variant in variants if (share := routing.shares.get(variant, 0.0)) > 0.0}
        total = sum(shares.values())
        if total <= 0.0 or rate <= 0.0:
            return Flow(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, ())
        parts = tuple(share / total for share in shares.values())
        pool = replace(pool_of(self._services, configuration, tuple(shares)), shares=parts)
        most = rate / pool.utilisation([rate * part for part in parts])
        done = min(rate, _FULL * most)
        rates = [done * part for part in parts]
        joules, latencies = pool.joules(rates), pool.latencies_ms(done)
        work = [
            item
            for variant, rows, size, own in zip(shares, rates, pool.batches(rates), joules, strict=True)
            for item in self._work(configuration, variant, rows, size, own)
        ]
        return Flow(
            served=done,
            accuracy=sum(part * self._accuracy[variant] for variant, part in zip(shares, parts, strict=True)),
            active_w=sum(rows * own for rows, own in zip(rates, joules, strict=True)),
            late=1.0 if done < rate else float(np.mean(latencies > self._slo_ms)),
            spare=most - done,
            p95_ms=mixture_p95_ms([(1.0, latencies)]),
            parts=((done, latencies),),
            work=tuple(work),
        )

    def _work(
        self, configuration: Configuration, variant: str, rate: float, batch: float, energy_j: float
    ) -> list[LaneWork]:
        """Return what the workers of `variant` do with `rate` rows a second at `energy_j` a row, in proportion to what
        they can serve."""
        groups = [group for group in configuration if variant in group.variants]
        services = [self._services[variant, group.profile] for group in groups]
        rows = max(1, round(batch))
        whole = sum(service.capacity() * group.count for service, group in zip(services, groups, strict=True))
        plain_j = [service.energy_j(rows) for service in services]
        parts = [service.capacity() * group.count / whole for service, group in zip(services, groups, strict=True)]
        scale = energy_j / max(sum(part * joules for part, joules in zip(parts, plain_j, strict=True)), 1e-12)
        return [
            LaneWork(
                variant=variant,
                profile=group.profile,
                rows=rate * part,
                batch=rows,
                batch_s=service.seconds(rows),
                joules=rate * part * joules * scale,
                expected_j=rate * part * self._believed[variant, group.profile].energy_j(rows) * scale,
            )
            for group, service, part, joules in zip(groups, services, parts, plain_j, strict=True)
        ]

    def _chained_flow(
        self,
        configuration: Configuration,
        groups: Mapping[str, list[tuple[Service, int]]],
        routing: Routing,
        rate: float,
    ) -> Flow:
        """Return what a cascade does: all rows come to the first stage, and to the next ones as often as the profile
        says."""
        point = self._points[routing.chain, routing.thresholds]
        stages = [lane_of(tuple(groups[variant])) for variant in point.chain]
        pool = pool_of(self._services, configuration, point.chain) if is_shared(configuration) else None
        if pool is None:
            most = min(lane.capacity / part for lane, part in zip(stages, point.reach, strict=True) if part > 0.0)
        else:
            most = 1.0 / pool.utilisation(point.reach)
        done = min(rate, _FULL * most)
        wait_ms = wait_of(point.chain, routing)
        latencies = play_latencies_ms(pool or tuple(lane.workers for lane in stages), done, point.reach, wait_ms)
        watts = done * energy_j(pool or stages, done, point.reach, wait_ms)
        asked = [done * part for part in point.reach]
        alone, sizes = _alone(pool, stages, asked)
        scale = watts / max(sum(rows * joules for rows, joules in zip(asked, alone, strict=True)), 1e-12)
        work = [
            item
            for variant, size, rows, joules in zip(point.chain, sizes, asked, alone, strict=True)
            for item in self._work(configuration, variant, rows, size, joules * scale)
        ]
        return Flow(
            served=done,
            accuracy=point.accuracy,
            active_w=watts,
            late=1.0 if done < rate else float(np.mean(latencies > self._slo_ms)),
            spare=most - done,
            p95_ms=float(np.quantile(latencies, 0.95)),
            parts=((done, latencies),),
            work=tuple(work),
        )


def points_of(profile: FamilyProfile) -> dict[tuple[tuple[str, ...], tuple[float, ...]], ChainPoint]:
    """Return the cascades of a profile, by chain and thresholds."""
    points = profile.cascade.points if profile.cascade is not None else ()
    return {(point.chain, point.thresholds): point for point in points}


def _alone(
    pool: SharedPool | None, stages: Sequence[Lane], asked: Sequence[float]
) -> tuple[Sequence[float], Sequence[float]]:
    """Return joules a row and rows a batch of each stage of a cascade whose rows do not wait."""
    if pool is not None:
        return pool.joules(asked), pool.batches(asked)
    return [own.energy_j(rows) for own, rows in zip(stages, asked, strict=True)], [
        own.batch(rows) for own, rows in zip(stages, asked, strict=True)
    ]


def _lane(lane: Lane, rate: float, share: float, largest: int, wait_ms: float) -> tuple[float, float, Floats]:
    """Return joules a row, rows a batch and latencies (ms) of a lane."""
    if largest or wait_ms:
        played = play_batches(lane, rate, share, largest=largest, wait_ms=wait_ms)
        resting_j = lane.resting_j(rate, share, batch=played.batch, waited=wait_ms > 0.0)
        return played.energy_j_per_row + resting_j, played.batch, played.latencies_ms
    return lane.energy_j(rate, share), lane.batch(rate, share), latencies_ms(lane.workers, rate, share)
