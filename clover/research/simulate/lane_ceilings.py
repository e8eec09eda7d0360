"""How many of a family's rows the workers of one variant can serve at most while few enough are late.

With p95 within the SLO a twentieth of the rows may miss it, whichever lane serves them.  So the share of one variant is
limited by what its lane does alone: at a share y of the rows, of which it makes f(y) late, y f(y) is at most that
twentieth.  `largest_share` asks the model itself (`queueing.latencies_ms`), at every load and share at which its answer
differs, and so finds the share that no plan exceeds.

A lane gains by each worker more than in proportion (few rows wait if many workers serve), less a constant: so
`lane_ceilings` are planes with a base over the numbers of workers, above `largest_share` of *every* lane that the
devices allow.  They are linear in shares and workers, as `slo_bound` needs it, and tight if the SLO limits: BASE's own
p95 as the SLO leaves its variant a load that the utilisation limit does not reflect.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clover.planning.model.queueing import Service, alike, lane_of, latencies_ms
from clover.planning.packing.formulation import MISS, Formulation

LATE = MISS + 1e-6
"""The part of the rows that may be late.  Plans are held to the same plays, so that there is no error to allow for."""
_LANES = 256
"""Lanes of a variant that are asked at most: with more there is no ceiling."""
_PLANES = 8

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LaneCeiling:
    """sum of the shares of the groups `on` <= `base` + sum of `slopes` x workers, which may be below 0.  Arrays
    [groups]."""

    on: NDArray[np.bool_]
    slopes: Floats
    base: float


def lane_ceilings(form: Formulation) -> tuple[LaneCeiling, ...]:
    """Return planes above what each variant's workers serve at most; none for variants with too many different lanes,
    if the SLO never limits, or if rows may wait for batches."""
    ceilings: list[LaneCeiling] = []
    for member, variant in form.lanes:
        own = form.members[member]
        if own.problem.objective.waits:
            continue
        at = [i for i, group in enumerate(form.groups) if (group.member, group.variant) == (member, variant)]
        lanes = _countable(form, [form.profiles.index(form.groups[i].profile) for i in at])
        if lanes is None:
            continue
        counts, alone = lanes
        services = [form.groups[i].service for i in at]
        limit, rate, slo_ms = own.objective.max_utilisation, own.problem.rate, own.objective.slo_ms
        plain = limit * np.array([service.capacity() for service in services]) / rate
        shares = np.array([largest_share(_workers(services, row), rate, slo_ms, limit) for row in counts.tolist()])
        # If no other lane can have a worker, this one has to serve all rows.
        can = ~alone | (shares >= 1.0)
        if can.all() and (shares >= np.minimum(1.0, counts @ plain) - 1e-9).all():
            continue
        for base, slopes in _planes(counts[can], shares[can]):
            on, wide = np.zeros(len(form.groups), np.bool_), np.zeros(len(form.groups))
            on[at], wide[at] = True, slopes
            ceilings.append(LaneCeiling(on, wide, base))
    return tuple(ceilings)


def largest_share(workers: tuple[Service, ...], rate: float, slo_ms: float, limit: float) -> float:
    """Return the largest share of `rate` rows a second that the lane of `workers` can have without making more than
    `LATE` of all rows late, at most at utilisation `limit`.  Found downwards from there, through all loads and shares
    at which the model's answer differs: between two of them the late part is constant."""
    share = min(1.0, limit * sum(worker.capacity() for worker in workers) / rate)
    while share * rate > 1e-6:
        late = float(np.mean(latencies_ms(workers, share * rate, share) > slo_ms))
        if share * late <= LATE:
            return share
        low = alike(share * rate, share)
        if low * late <= LATE:
            return LATE / late
        share = low
    return share


def _workers(services: Sequence[Service], counts: Sequence[int]) -> tuple[Service, ...]:
    groups = tuple((service, count) for service, count in zip(services, counts, strict=True) if count)
    return lane_of(groups).workers


def _countable(form: Formulation, profiles: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.bool_]] | None:
    """Return all numbers of workers [lane, profile] that the devices allow on these profiles, but none at all, and of
    which lanes there is no room for another variant; None if they are too many."""
    reached = {(0,) * len(profiles): 0}  # and how many slices there are at most
    for kind, (_, number) in enumerate(form.kinds):
        ways: dict[tuple[int, ...], int] = {}
        for at, cut in enumerate(form.cuts):
            if cut.kind == kind:
                way = tuple(form.table[at, profiles].tolist())
                ways[way] = max(ways.get(way, 0), int(form.table[at].sum()))
        for _ in range(number):
            further: dict[tuple[int, ...], int] = {}
            for (one, slices), (way, more) in itertools.product(reached.items(), ways.items()):
                both = tuple(map(sum, zip(one, way, strict=True)))
                further[both] = max(further.get(both, 0), slices + more)
            reached = further
            if len(reached) > _LANES:
                return None
    room: dict[tuple[int, ...], int] = {}
    for full, slices in reached.items():
        if math.prod(n + 1 for n in full) > 64 * _LANES:
            return None
        for lane in itertools.product(*(range(n + 1) for n in full)):
            room[lane] = max(room.get(lane, 0), slices - sum(lane))
        if len(room) > _LANES:
            return None
    lanes = sorted(room)[1:]
    return np.array(lanes, np.int64), np.array([room[lane] == 0 for lane in lanes])


def _planes(counts: NDArray[np.int64], shares: Floats) -> Iterator[tuple[float, Floats]]:
    """Yield planes (base, slopes) above all `shares` [lane], few and together low: at these lanes, and where a worker
    more makes a lane that cannot be."""
    known = {tuple(row): share for row, share in zip(counts.tolist(), shares.tolist(), strict=True)}
    slopes = _slopes(known)
    bases = np.maximum((shares[None, :] - slopes @ counts.T).max(axis=1), 0.0)
    steps = np.eye(counts.shape[1], dtype=np.int64)
    beyond = {tuple((row + step).tolist()) for row in counts for step in steps} - known.keys()
    x = np.array([*known, *sorted(beyond)], np.float64)
    above = bases[:, None] + slopes @ x.T - np.array([*known.values(), *[0.0] * len(beyond)])[None, :]  # [plane, lane]
    lowest = np.full(len(x), np.inf)
    for _ in range(min(_PLANES, len(slopes))):
        # For the lane that is left most room the plane that leaves it least; of these what lowers all of them most.
        lane = int(np.argmax(lowest))
        near = np.flatnonzero(above[:, lane] <= above[:, lane].min() + 1e-9)
        plane = int(near[np.argmin(np.minimum(above[near], lowest).sum(axis=1))])
        if not (above[plane] < lowest - 1e-9).any():
            return
        lowest = np.minimum(lowest, above[plane])
        yield float(bases[plane]) + 1e-9, slopes[plane]


def _slopes(shares: dict[tuple[int, ...], float]) -> Floats:
    """Return what a worker more adds at each lane, one fewer takes, and their mean; if one more cannot be, also as
    if it took all away, so that no half of it is hoped for."""
    found = set[tuple[float, ...]]()
    for counts, share in shares.items():
        more, fewer, last = [], [], []
        for at in range(len(counts)):
            up = shares.get((*counts[:at], counts[at] + 1, *counts[at + 1 :]))
            down = shares.get((*counts[:at], counts[at] - 1, *counts[at + 1 :]), 0.0 if sum(counts) == 1 else None)
            rise = None if up is None else max(0.0, up - share)
            fall = None if down is None or counts[at] == 0 else max(0.0, share - down)
            more.append(next((v for v in (rise, fall) if v is not None), 0.0))
            fewer.append(next((v for v in (fall, rise) if v is not None), 0.0))
            last.append(-share if rise is None else rise)
        for slopes in (more, fewer, last, [0.5 * (a + b) for a, b in zip(more, fewer, strict=True)]):
            found.add(tuple(round(value, 9) for value in slopes))
    return np.array(sorted(found))
