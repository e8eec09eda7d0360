"""How long rows wait: the lanes of a quota-split family, their batches, their p95, their energy.

**The system.**  Rows arrive as a Poisson stream and are dealt to the variants by quota.  Each variant is a *lane*: one
FIFO queue in front of the c workers that serve the variant, which may sit on different profiles.  A worker has two
credits: one for the batch that runs, one for the batch staged behind it.  Whenever it has a free credit, it takes all
that waits, at most its largest batch.  A batch of b rows takes s(b), interpolated linearly between measured batch
sizes.  So a lightly loaded lane serves rows one by one, and a loaded one forms longer batches, until the arrivals of
one service fit one batch.  Batching moves the capacity from c / s(1) up to c b / s(b) at the largest batch.

**Mean batch, energy, utilisation: closed form.**  While a worker serves b rows, r = a s(b) / c more arrive for it at
lane rate a.  The next batch holds 1 row if r is small, r rows if it is large.  In between, the fixed point
b = (1 + r(b)^k)^(1/k) fits the simulation for c workers and quota share f with k = c + 2/f: the more workers and the
more regular the arrivals, the sharper the bend.

Example: one worker (c = 1) that serves all rows (f = 1) takes 10 ms and 10 mJ for one row, 24 ms and 24 mJ for eight.
One by one it serves 1 / 0.010 = 100 rows/s; in batches of eight 8 / 0.024 = 333 rows/s.

    rows/s                        50      150      300
    rows a batch, b              1.0      1.9      6.0
    utilisation, rate / 333      15 %     45 %     90 %

At 150 rows/s a batch of 1.86 rows costs 11.7 mJ, so a row costs 6.3 mJ.

Energy is measured per row at batch sizes, so a batch costs b e(b); interpolated at the expected batch and divided by
it, that is the energy of a row.  Measured batches follow each other.  If a worker has slept in between, its caches are
cold, and a small batch may take twice the CPU time.  So a batch costs up to `rested_j` more after a pause of `REST_S`,
and in proportion after a shorter one; how long its worker's pauses are follows from their mean, as pauses are
exponential.  What a serving worker loses besides (`wake_j`) is counted likewise, and a batch costs turns of the front
end (`turn_j`).  Workers of a mixed lane share its rows in proportion to their capacity.  Utilisation is load over
capacity at the best batch size: the distance to collapse, not the share of time a worker is busy (which batching drives
to 1 long before).

**p95: a short simulation with fixed random numbers.**  Erlang C with exponential waits is right if each worker holds
one row.  It fails here: waits are residual services, bounded by the batch under way and the batch staged behind it, and
the second credit commits a row to a worker before any worker is free.  So the lane itself is played for `ROWS` rows by
the simulator (`clover._native.des`), state-exact (credits, staging, FIFO, batch limits, mixed workers, whose turn it
is), with normal service times of the measured variation.  The seed is fixed and rates are rounded up to steps of 3 %,
so the same question gives the same answer, the second time from memory.  Dealing by quota makes a lane's arrivals more
regular than Poisson: with share f it gets every 1/f-th row, so gaps are Gamma of shape 1/f.  One play costs about a
millisecond, so a search over thousands of configurations asks for p95 only if a plan could win.

**The front end.**  A client sees more than a row's wait and service.  `front_ms` of the profile, measured over HTTP, is
added to every latency of a play, so that limits and predictions are those of clients.

**Known weaknesses.**  Arrivals are single rows: a request of many rows arrives as a burst and waits longer than
predicted.  Poisson arrivals know no bursts beyond chance; head-room comes from the utilisation limit.  Service times
are independent of each other and of what runs on neighbouring cores; if a box is too small to keep the front end
apart, the profile was measured beside it and includes that.  A `max_queue_delay` of the family is taken as 0; what a
plan itself asks rows to wait is played too (`play_batches`).  A p95 of 20,000 correlated rows carries about 1 % of
sampling error up to half load and 4 % at 80 % (more above, where no plan should be).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from clover._native import des

ROWS = 20_000
WARM_UP = 300
_QUANTILES = 400
_REMEMBERED = 64
_RATE_STEP = math.log(1.03)
_SEED = 20230911
REST_S = 2e-3
"""The pause after which `Service.rested_j` was measured."""
WAKE_S = 8e-3
"""The pause from which on a batch costs `Service.wake_j` more: beside other processes, and on a core of a virtual
machine, caches are lost bit by bit.  The same holds of a front end.  Measured on two shared cores (EPYC 9005, November
2026): a request for one row took 310, 450, 760 and 1,000 us of CPU at 400, 200, 100 and 50 requests/s, where batch
after batch took 110."""
TURNS = 2
"""Turns of the front end's event loop that a row takes by itself: one reads it, one sends its answer."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Service:
    """How one worker serves: mean milliseconds and joules a row at each measured batch size (ascending), the
    coefficient of variation of the service time, and what a batch costs more after a pause.  `front_ms`: milliseconds
    that HTTP and the front end add to the latency of a row, whichever worker serves it.

    `wake_j`: joules that a batch costs beyond these if its worker serves, and slept before.  `turn_j`: those of a turn
    of the front end's event loop: a batch takes one for its answers, and one more if its rows waited."""

    batches: tuple[int, ...]
    mean_ms: tuple[float, ...]
    energy_j_per_row: tuple[float, ...]
    cv: float = 0.0
    rested_j: float = 0.0
    front_ms: float = 0.0
    wake_j: float = 0.0
    turn_j: float = 0.0

    def __hash__(self) -> int:
        return self._hash  # services are part of the key of every memo here

    @cached_property
    def _hash(self) -> int:
        numbers = (self.cv, self.rested_j, self.front_ms, self.wake_j, self.turn_j)
        return hash((self.batches, self.mean_ms, self.energy_j_per_row, *numbers))

    @cached_property
    def _capacity(self) -> float:
        return max(b / ms * 1e3 for b, ms in zip(self.batches, self.mean_ms, strict=True))

    @cached_property
    def _totals_j(self) -> tuple[float, ...]:
        return tuple(b * e for b, e in zip(self.batches, self.energy_j_per_row, strict=True))

    @property
    def max_batch(self) -> int:
        """The largest batch the worker takes: the largest that was measured."""
        return self.batches[-1]

    def seconds(self, batch: float) -> float:
        """Return mean service of a batch, interpolated between measured sizes and held to the ends."""
        return _interpolate(self.batches, self.mean_ms, batch) * 1e-3

    def energy_j(self, batch: float) -> float:
        """Return joules of one row in a batch of that (mean) size: the batch's energy interpolated, over its rows.  A
        batch below the smallest measured costs what that one costs, because it takes as long."""
        batch = min(max(batch, 1.0), self.batches[-1])
        return _interpolate(self.batches, self._totals_j, batch) / batch

    def pause_j(self, pause_s: float, *, waited: bool = False) -> float:
        """Return the joules that a batch costs more after a mean pause of `pause_s`, plus those of its turns of the
        front end; its rows `waited` or not."""
        turns_j = (2.0 if waited else 1.0) * self.turn_j
        if pause_s <= 0.0:
            return turns_j
        return turns_j + self.rested_j * cold(pause_s, REST_S) + self.wake_j * cold(pause_s, WAKE_S)

    def resting_j(self, batch: float, rate: float, *, waited: bool = False) -> float:
        """Return joules of one row for the pauses of a worker that serves `rate` rows a second in batches of that
        size, whose rows `waited` or not."""
        pause_s = batch / rate - self.seconds(batch) if rate > 0.0 else math.inf
        return self.pause_j(pause_s, waited=waited) / max(batch, 1.0)

    def least_energy_to(self, batch: float) -> float:
        """Return joules of one row at the most frugal batch of at most `batch` rows.  Between measured sizes the energy
        of a row only rises or only falls, so that the ends decide."""
        measured = (e for b, e in zip(self.batches, self.energy_j_per_row, strict=True) if b <= batch)
        return min(self.energy_j(batch), min(measured, default=math.inf))

    @property
    def least_energy_j(self) -> float:
        """Joules of one row at the most frugal measured batch size."""
        return min(self.energy_j_per_row)

    def capacity(self) -> float:
        """Return rows a second at the best batch size."""
        return self._capacity

    def derate(self, share: float) -> Service:
        """Return the same worker with only `share` of the machine's time."""
        if share >= 1.0:
            return self
        slower = tuple(ms / share for ms in self.mean_ms)
        return replace(self, mean_ms=slower)


@dataclass(frozen=True)
class LanePlay:
    """The result of simulating a lane: mean joules of a row, mean rows of a batch, and equally likely latencies
    (milliseconds, ascending)."""

    energy_j_per_row: float
    batch: float
    latencies_ms: Floats


@dataclass(frozen=True)
class LaneEstimate:
    """What the model says of one lane.  If utilisation is 1 or more, the lane is unstable and `p95_ms` infinite."""

    rate: float
    utilisation: float
    batch: float
    energy_j_per_row: float
    p95_ms: float


def cold(mean_s: float, full_s: float) -> float:
    """Return the part of what a pause of `full_s` costs that is due to pauses of `mean_s` on average, above zero:
    pauses are exponential, and shorter ones cost in proportion."""
    part = mean_s / full_s
    return part * -math.expm1(-1.0 / part) if math.isfinite(part) else 1.0


def _interpolate(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    if x <= xs[0]:
        return float(ys[0])
    for i in range(1, len(xs)):
        if x <= xs[i]:
            part = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
            return float(ys[i - 1] + part * (ys[i] - ys[i - 1]))
    return float(ys[-1])


@dataclass(frozen=True)
class Lane:
    """The workers of one variant as (service, how many of it), each service once; ValueError without any.  Make them
    with `lane_of`: what is expensive to compute of a lane is then computed once, however many configurations it is part
    of."""

    groups: tuple[tuple[Service, int], ...]
    _least_j: dict[float, float] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError("a lane needs a worker")

    @cached_property
    def count(self) -> int:
        """How many workers there are."""
        return sum(number for _, number in self.groups)

    @property
    def front_ms(self) -> float:
        """Milliseconds that HTTP and the front end add to the latency of a row."""
        return self.groups[0][0].front_ms

    @cached_property
    def capacity(self) -> float:
        """Rows a second that the lane can serve at best."""
        return sum(number * service.capacity() for service, number in self.groups)

    @cached_property
    def parts(self) -> tuple[float, ...]:
        """The share of the lane's rows that the workers of each group take together: in proportion to capacity."""
        return tuple(number * service.capacity() / self.capacity for service, number in self.groups)

    @cached_property
    def workers(self) -> tuple[Service, ...]:
        """The workers one by one, the fastest first."""
        ordered = sorted(self.groups, key=lambda group: group[0].mean_ms)
        return tuple(service for service, number in ordered for _ in range(number))

    def batch(self, rate: float, share: float = 1.0, *, wait_ms: float = 0.0) -> float:
        """Return the expected rows of a batch, weighted by the rows its workers take; rows wait up to `wait_ms` for a
        full one."""
        return sum(part * size for part, _, size in self._batches(rate, share, wait_ms))

    def energy_j(self, rate: float, share: float = 1.0, *, wait_ms: float = 0.0) -> float:
        """Return the expected joules of a row at `rate`; rows wait up to `wait_ms` for a full batch."""
        own = zip(self._batches(rate, share, wait_ms), self.groups, strict=True)
        return sum(
            part * (service.energy_j(size) + service.resting_j(size, rate * part / number, waited=wait_ms > 0.0))
            for (part, service, size), (_, number) in own
        )

    def resting_j(self, rate: float, share: float = 1.0, *, batch: float | None = None, waited: bool = False) -> float:
        """Return the part of `energy_j` that is for the pauses of the workers, in batches of `batch` rows if given
        instead of those that `rate` makes; rows `waited` or not."""
        own = zip(self._batches(rate, share), self.groups, strict=True)
        return sum(
            part * service.resting_j(size if batch is None else batch, rate * part / number, waited=waited)
            for (part, service, size), (_, number) in own
        )

    def least_energy_j(self, rate: float = math.inf) -> float:
        """Return a lower bound of `energy_j` over all rates up to `rate` (batches grow with the rate)."""
        known = self._least_j.get(rate)
        if known is None:
            if math.isinf(rate):
                known = sum(p * service.least_energy_j for p, (service, _) in zip(self.parts, self.groups, strict=True))
            else:
                known = sum(part * service.least_energy_to(size) for part, service, size in self._batches(rate, 1.0))
            if len(self._least_j) >= _REMEMBERED:  # rates are measured, and hardly ever come twice
                self._least_j.clear()
            self._least_j[rate] = known
        return known

    def late(self, limit_ms: float) -> float:
        """Return a share of the lane's rows that takes longer than `limit_ms` in any case.  If the mean service of a
        single row, with the front end's part, takes longer on some workers, at least half of their rows do.  Such a
        worker takes rows in proportion to its capacity if the lane is busy, and its turn if it is not."""
        left_ms = limit_ms - self.front_ms
        slow = [i for i, (service, _) in enumerate(self.groups) if service.mean_ms[0] >= left_ms]
        return 0.5 * sum(min(self.parts[i], self.groups[i][1] / self.count) for i in slow)

    def _batches(self, rate: float, share: float, wait_ms: float = 0.0) -> list[tuple[float, Service, float]]:
        gathered = 1.0 + rate * wait_ms * 1e-3  # while the first row of a batch waits
        return [
            (
                part,
                service,
                min(
                    max(expected_batch(service, rate * part / number, self.count, share), gathered),
                    float(service.max_batch),
                ),
            )
            for part, (service, number) in zip(self.parts, self.groups, strict=True)
        ]


@lru_cache(maxsize=65536)
def lane_of(groups: tuple[tuple[Service, int], ...]) -> Lane:
    """Return the lane of these workers; ValueError if there are none."""
    return Lane(groups)


def _lane(workers: Sequence[Service]) -> Lane:
    return lane_of(tuple(Counter(workers).items()))


def capacity(workers: Sequence[Service]) -> float:
    """Return rows a second that a lane can serve at best."""
    return sum(worker.capacity() for worker in workers)


def utilisation(workers: Sequence[Service], rate: float) -> float:
    """Return load over capacity; infinite for rows without workers."""
    if rate <= 0.0:
        return 0.0
    return rate / capacity(workers) if workers else math.inf


@lru_cache(maxsize=65536)
def expected_batch(worker: Service, rate: float, workers: int = 1, share: float = 1.0) -> float:
    """Return the expected rows of a batch of a worker that receives `rate` rows a second in a lane of `workers`, dealt
    as `share` of a Poisson stream: b = (1 + r^k)^(1/k) with r = rate s(b) and k = workers + 2 / share."""
    power = workers + 2.0 / max(share, 0.05)
    batch = 1.0
    for _ in range(60):
        r = rate * worker.seconds(batch)
        bend = max(1.0, r) * (1.0 + min(r, 1.0 / r) ** power) ** (1.0 / power) if r > 0.0 else 1.0
        following = min(bend, float(worker.max_batch))
        if abs(following - batch) < 1e-3:
            return following
        batch = 0.5 * (batch + following)
    return batch


def energy_j_per_row(workers: Sequence[Service], rate: float, share: float = 1.0) -> float:
    """Return the expected joules of a row of the lane at `rate`; its workers share rows in proportion to their
    capacity."""
    return _lane(workers).energy_j(rate, share)


def estimate(workers: tuple[Service, ...], rate: float, share: float = 1.0) -> LaneEstimate:
    """Estimate a lane of `workers` (at least one) that receives `rate` rows a second, dealt as `share` of a Poisson
    stream."""
    load = utilisation(workers, rate)
    batch = _lane(workers).batch(rate, share)
    energy = energy_j_per_row(workers, rate, share)
    if load >= 1.0:
        return LaneEstimate(rate, load, batch, energy, math.inf)
    return LaneEstimate(rate, load, batch, energy, mixture_p95_ms([(1.0, latencies_ms(workers, rate, share))]))


def latencies_ms(workers: tuple[Service, ...], rate: float, share: float = 1.0) -> Floats:
    """Return equally likely latencies of the lane, ascending.  The lane must be stable."""
    lane = _lane(workers)
    return _played(lane.workers, *_round(lane, rate, share))


def _round(lane: Lane, rate: float, share: float) -> tuple[float, float]:
    """Return the rounded rate and share that are simulated in their place."""
    step = math.ceil(math.log(max(rate, 1e-3)) / _RATE_STEP - 1e-9)
    return min(math.exp(step * _RATE_STEP), 0.999 * lane.capacity), round(min(1.0, max(0.05, share)) * 20) / 20


def alike(rate: float, share: float) -> float:
    """Return the share below `share` down to which `latencies_ms` gives the same answer, while the rate falls from
    `rate` in proportion to the share."""
    step = math.ceil(math.log(max(rate, 1e-3)) / _RATE_STEP - 1e-9)
    by_rate = share * math.exp((step - 1) * _RATE_STEP) / rate
    of_20 = round(min(1.0, max(0.05, share)) * 20)
    return min(max(by_rate, (of_20 - 0.5) / 20 if of_20 > 1 else 0.0), share * (1.0 - 1e-9))


def play_batches(
    lane: Lane, rate: float, share: float = 1.0, *, largest: int = 0, wait_ms: float = 0.0, rows: int = ROWS
) -> LanePlay:
    """Return the lane played for `rows` rows (up to `ROWS`) whose batches hold at most `largest` rows (0: what the
    worker takes) and which wait up to `wait_ms` for them to fill.  Otherwise as `latencies_ms`, from the same
    arrivals."""
    return _batched(lane, *_round(lane, rate, share), largest, wait_ms, rows)


@lru_cache(maxsize=65536)
def late(workers: tuple[Service, ...], rate: float, limit_ms: float) -> float:
    """Return the part of the rows of a lane of `workers` (at least one, not overloaded) that take longer than
    `limit_ms`, from a play of `ROWS` / 2 rows: enough for a table, with about a point of error if 5 % are late."""
    arrivals = _arrivals(1.0)[: ROWS // 2 + WARM_UP] / rate
    return float(np.mean(play(workers, arrivals)[WARM_UP:] * 1e3 + workers[0].front_ms > limit_ms))


def mixture_p95_ms(lanes: Sequence[tuple[float, Floats]]) -> float:
    """Return p95 of rows that fall into lanes with these weights; infinite if a lane with weight is
    unstable."""
    lanes = [(weight, values) for weight, values in lanes if weight > 0.0]
    if not lanes or any(len(values) == 0 for _, values in lanes):
        return math.inf
    values = np.concatenate([values for _, values in lanes])
    weights = np.concatenate([np.full(len(values), weight / len(values)) for weight, values in lanes])
    order = np.argsort(values, kind="stable")
    cumulated = np.cumsum(weights[order])
    index = int(np.searchsorted(cumulated, 0.95 * cumulated[-1]))
    return float(values[order[min(index, len(values) - 1)]])


@lru_cache(maxsize=8192)
def _played(workers: tuple[Service, ...], rate: float, share: float) -> Floats:
    return quantiles(play(workers, _arrivals(share) / rate)[WARM_UP:] * 1e3 + workers[0].front_ms)


@lru_cache(maxsize=8192)
def _batched(lane: Lane, rate: float, share: float, largest: int, wait_ms: float, rows: int) -> LanePlay:
    arrivals_s = _arrivals(share)[: WARM_UP + rows] / rate
    outcome = _simulate(lane.workers, arrivals_s, largest=largest, wait_ms=wait_ms, warm_up=WARM_UP, energy=True)
    batch = float(outcome.rows.sum() / outcome.batches.sum())
    return LanePlay(outcome.energy_j_per_row, batch, quantiles(outcome.latency_s * 1e3 + lane.front_ms))


def quantiles(values: Floats, number: int = _QUANTILES) -> Floats:
    """Return `number` equally likely values, ascending, of the distribution of `values`."""
    values = np.sort(values)
    at = (np.arange(number) + 0.5) / number * (len(values) - 1)
    result: Floats = np.interp(at, np.arange(len(values)), values)
    result.setflags(write=False)
    return result


@lru_cache(maxsize=32)
def _arrivals(share: float) -> Floats:
    """Return the moments at which rows arrive at one a second: the same for every lane with that share, at any rate."""
    gaps = np.random.default_rng(_SEED).gamma(1.0 / share, share, ROWS + WARM_UP)
    return np.cumsum(gaps)


def play(
    workers: Sequence[Service],
    arrivals_s: Floats,
    *,
    seed: int = _SEED,
    together: bool = False,
    wait_ms: float = 0.0,
) -> Floats:
    """Return latencies (seconds) of rows that arrive at `arrivals_s` (ascending) in front of `workers` and wait up to
    `wait_ms` for a full batch; `together`: rows of one instant may share a batch, as rows that one stage of a cascade
    passes on."""
    return _simulate(workers, arrivals_s, seed=seed, together=together, wait_ms=wait_ms).latency_s


def _simulate(
    workers: Sequence[Service],
    arrivals_s: Floats,
    *,
    largest: int = 0,
    wait_ms: float = 0.0,
    warm_up: int = 0,
    energy: bool = False,
    seed: int = _SEED,
    together: bool = False,
) -> des.Outcome:
    groups = Counter(workers)
    columns = max(worker.max_batch for worker in groups)
    return des.simulate(
        [batch_seconds(worker, columns) for worker in groups],
        list(groups.values()),
        des.trace(arrivals_s),
        seed=seed,
        law="normal",
        cv=[worker.cv for worker in groups],
        energy_j=[batch_joules(worker, columns) for worker in groups] if energy else None,
        largest=[min(worker.max_batch, largest or worker.max_batch) for worker in groups],
        credits=2,
        in_turn=True,
        delay_s=wait_ms * 1e-3,
        warm_up=warm_up,
        together=together,
    )


@lru_cache(maxsize=4096)
def batch_seconds(worker: Service, columns: int) -> list[float]:
    """Return mean seconds of a batch of 1..`columns` rows; sizes above the largest batch are never asked for."""
    return [worker.seconds(batch) for batch in range(1, columns + 1)]


@lru_cache(maxsize=4096)
def batch_joules(worker: Service, columns: int) -> list[float]:
    """Return joules of a batch of 1..`columns` rows."""
    return [batch * worker.energy_j(batch) for batch in range(1, columns + 1)]
