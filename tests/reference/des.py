"""Twin of `clover._native.des`: the same events, an object a server, a list a queue, all arrivals drawn beforehand."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.reference.random import Random
from tests.reference.route import Quota

LAWS = ("deterministic", "normal", "lognormal", "exponential")


@dataclass(frozen=True)
class Arrivals:
    rate: float
    rates: tuple[float, ...] = ()
    stay_s: tuple[float, ...] = ()
    exact: bool = False
    times_s: tuple[float, ...] = ()

    def draw(self, count: int, random: Random) -> list[float]:
        """Return the first `count` arrivals."""
        if self.times_s:
            return list(self.times_s[:count])
        if self.rates:
            return self._bursts(count, random)
        now, times = 0.0, []
        for _ in range(count):
            now += random.exponential() / self.rate
            times.append(now)
        return times

    def _bursts(self, count: int, random: Random) -> list[float]:
        at = 0.0
        for stay_s in self.stay_s:
            at += stay_s
        at *= random.uniform()
        state = 0
        while at > self.stay_s[state] and state + 1 < len(self.stay_s):
            at -= self.stay_s[state]
            state += 1
        left_s = max(self.stay_s[state] - at, 0.0) if self.exact else self.stay_s[state] * random.exponential()
        now, times = 0.0, []
        for _ in range(count):
            due = random.exponential()
            while self.rates[state] == 0 or due > self.rates[state] * left_s:
                due -= self.rates[state] * left_s
                now += left_s
                state = (state + 1) % len(self.rates)
                left_s = self.stay_s[state] * (1.0 if self.exact else random.exponential())
            now += due / self.rates[state]
            left_s -= due / self.rates[state]
            times.append(now)
        return times


def poisson(rate: float) -> Arrivals:
    if not 0 < rate < math.inf:
        raise ValueError("rate")
    return Arrivals(rate)


def bursty(rates: Sequence[float], stay_s: Sequence[float], exact: bool = False) -> Arrivals:
    if not (np.ndim(rates) == 1 and len(rates) == len(stay_s) and any(rates)):
        raise ValueError("rates")
    if not all(0 <= rate < math.inf for rate in rates) or not all(0 < stay < math.inf for stay in stay_s):
        raise ValueError("rates or stays")
    mean = math.fsum(rate * stay for rate, stay in zip(rates, stay_s, strict=True)) / math.fsum(stay_s)
    return Arrivals(mean, rates=tuple(rates), stay_s=tuple(stay_s), exact=exact)


def trace(times_s: Sequence[float]) -> Arrivals:
    times = [float(time) for time in times_s]
    if not times or not all(0 <= time < math.inf for time in times) or times != sorted(times):
        raise ValueError("times")
    return Arrivals(len(times) / times[-1] if times[-1] else math.inf, times_s=tuple(times))


@dataclass(eq=False)
class Server:
    group: int
    lane: int
    own: int  # its number within the lane
    staged: list[list[int]] = field(default_factory=list)
    busy: bool = False

    @property
    def out(self) -> int:
        return self.busy + len(self.staged)


@dataclass
class Outcome:
    latency_s: Any
    wait_s: Any
    group: Any
    rows: Any
    batches: Any
    busy_s: Any
    energy_j: Any
    span_s: float

    @property
    def shares(self) -> Any:
        return self.rows / len(self.latency_s)

    @property
    def energy_j_per_row(self) -> float:
        return float(self.energy_j.sum()) / len(self.latency_s)

    @property
    def mean_latency_s(self) -> float:
        return float(self.latency_s.mean())

    @property
    def mean_wait_s(self) -> float:
        return float(self.wait_s.mean())

    @property
    def waited(self) -> float:
        return float((self.wait_s > 0).mean())

    def quantile(self, q: float) -> float:
        if not 0 < q <= 1:
            raise ValueError("q")
        return float(sorted(self.latency_s)[max(0, math.ceil(q * len(self.latency_s)) - 1)])

    def histogram(self, bounds_s: Sequence[float]) -> Any:
        edges = [-math.inf, *bounds_s, math.inf]
        return np.array([sum(a < x <= b for x in self.latency_s) for a, b in itertools.pairwise(edges)])


def simulate(
    service_s: Any,
    counts: Any,
    arrivals: Arrivals,
    *,
    rows: int = 0,
    seed: int = 0,
    law: str = "deterministic",
    cv: Any = None,
    energy_j: Any = None,
    largest: Any = None,
    lanes: Any = None,
    shares: Any = None,
    credits: int = 1,
    in_turn: bool = False,
    delay_s: float = 0.0,
    warm_up: int = 0,
    together: bool = False,
) -> Outcome:
    table = [list(map(float, np.atleast_1d(row))) for row in service_s]
    groups = len(table)
    joules = [[0.0] * len(row) for row in table] if energy_j is None else [list(np.atleast_1d(row)) for row in energy_j]
    most = [len(row) for row in table] if largest is None else list(largest)
    lane_of = [0] * groups if lanes is None else list(lanes)
    spread = [0.0] * groups if cv is None else list(map(float, cv))
    rows = rows or len(arrivals.times_s)
    check(table, counts, joules, most, lane_of, spread)
    if law not in LAWS or (cv is None) == (law in LAWS[1:3]) or not 1 <= credits <= 8 or not 0 <= delay_s < math.inf:
        raise ValueError("law, cv, credits or delay_s")
    if not 0 <= warm_up < rows or (arrivals.times_s and rows > len(arrivals.times_s)):
        raise ValueError("rows")
    if law == "lognormal":
        spread = [math.sqrt(math.log1p(own * own)) for own in spread]
    quota = Quota(max(lane_of) + 1)
    if shares is not None:
        quota.set_shares(shares)
    members: list[list[Server]] = [[] for _ in range(max(lane_of) + 1)]
    for group, lane in enumerate(lane_of):
        members[lane] += [Server(group, lane, len(members[lane]) + i) for i in range(counts[group])]
    for lane, share in enumerate([1.0] * len(members) if shares is None else shares):
        if not members[lane] and (share or (lane == 0 and not any(shares))):
            raise ValueError("a lane without servers")
    every = [server for lane in members for server in lane]
    number = {id(server): index for index, server in enumerate(every)}
    # By lane and batches held: the servers, in an order that comes of filling a gap with the last one.
    pools = [[list(lane), *([] for _ in range(credits - 1))] for lane in members]
    queues: list[list[int]] = [[] for _ in members]
    cursors = [0] * len(members)
    serving, choosing = Random(seed, 1), Random(seed, 2)
    came = arrivals.draw(rows, Random(seed, 0))
    latency_s, wait_s, who = np.zeros(rows), np.zeros(rows), np.zeros(rows, np.int32)
    served, batches = np.zeros(groups, np.int64), np.zeros(groups, np.int64)
    busy_s, spent_j = np.zeros(groups), np.zeros(groups)
    running: list[tuple[float, int]] = []

    def factor(group: int) -> float:
        if law == "exponential":
            return serving.exponential()
        if spread[group] == 0.0:
            return 1.0
        noise = spread[group] * serving.normal()
        return math.exp(noise - 0.5 * spread[group] * spread[group]) if law == "lognormal" else max(1.0 + noise, 0.2)

    def move(server: Server, change: Any) -> None:
        """Change the batches that a server holds, and its pool with them."""
        pool = pools[server.lane]
        if server.out < credits:
            at, last = pool[server.out].index(server), pool[server.out].pop()
            if last is not server:
                pool[server.out][at] = last
        change()
        if server.out < credits:
            pool[server.out].append(server)

    def begin(server: Server, batch: list[int], now: float) -> None:
        group = server.group
        seconds = table[group][len(batch) - 1] * factor(group)
        for row in batch:
            latency_s[row], wait_s[row], who[row] = now + seconds - came[row], now - came[row], group
        measured = sum(row >= warm_up for row in batch)
        served[group] += measured
        batches[group] += measured > 0
        busy_s[group] += seconds * measured / len(batch)
        spent_j[group] += joules[group][len(batch) - 1] * measured / len(batch)
        heapq.heappush(running, (now + seconds, number[id(server)]))

    def take(server: Server, batch: list[int], now: float) -> None:
        if server.busy:
            server.staged.append(batch)
        else:
            server.busy = True
            begin(server, batch, now)

    def choose(lane: int) -> Server:
        fewest = next(pool for pool in pools[lane] if pool)
        if not in_turn:
            return fewest[choosing.below(len(fewest)) if len(fewest) > 1 else 0]
        size = len(members[lane])
        server = min(fewest, key=lambda server: (server.own - cursors[lane]) % size)
        cursors[lane] = (server.own + 1) % size
        return server

    def able(lane: int) -> list[Server]:
        return [server for pool in pools[lane] for server in pool]

    def ripe(lane: int, now: float) -> bool:
        if came[queues[lane][0]] + delay_s <= now:
            return True
        return len(queues[lane]) >= min(most[server.group] for server in able(lane))

    def dispatch(lane: int, now: float) -> None:
        while queues[lane] and able(lane) and (delay_s == 0 or ripe(lane, now)):
            server = choose(lane)
            batch = queues[lane][: most[server.group]]
            del queues[lane][: most[server.group]]
            move(server, lambda server=server, batch=batch: take(server, batch, now))

    def finish(server: Server, now: float) -> None:
        server.busy = bool(server.staged)
        if server.staged:
            begin(server, server.staged.pop(0), now)

    row = 0
    while True:
        ends = running[0][0] if running else math.inf
        comes = came[row] if row < rows else math.inf
        waiting = [lane for lane in range(len(members)) if delay_s > 0 and queues[lane] and able(lane)]
        soonest, lane = min(((came[queues[lane][0]] + delay_s, lane) for lane in waiting), default=(math.inf, 0))
        if soonest < ends and soonest < comes:
            dispatch(lane, soonest)
        elif comes < ends:
            lane = quota.choose(2 ** len(members) - 1)
            queues[lane].append(row)
            row += 1
            if not together:
                dispatch(lane, comes)
            elif row == rows or came[row] > comes:
                for lane in range(len(members)):
                    dispatch(lane, comes)
        elif running:
            server = every[heapq.heappop(running)[1]]
            move(server, lambda server=server, ends=ends: finish(server, ends))
            dispatch(server.lane, ends)
        else:
            break
    return Outcome(
        latency_s[warm_up:],
        wait_s[warm_up:],
        who[warm_up:],
        served,
        batches,
        busy_s,
        spent_j,
        came[rows - 1] - came[warm_up],
    )


def check(table: Any, counts: Any, joules: Any, most: Any, lane_of: Any, spread: Any) -> None:
    columns = len(table[0]) if table else 0
    if not columns or any(len(row) != columns for row in [*table, *joules]):
        raise ValueError("tables")
    if any(len(values) != len(table) for values in (counts, joules, most, lane_of, spread)):
        raise ValueError("one number for each group")
    if not all(0 < value < math.inf for row in table for value in row):
        raise ValueError("service_s")
    if not all(math.isfinite(value) for row in joules for value in row):
        raise ValueError("energy_j")
    if any(count < 0 or count != int(count) for count in counts) or not sum(counts):
        raise ValueError("counts")
    if not all(1 <= value <= columns for value in most) or not all(0 <= lane < 64 for lane in lane_of):
        raise ValueError("largest or lanes")
    if not all(0 <= value < math.inf for value in spread):
        raise ValueError("cv")
