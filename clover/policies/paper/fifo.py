"""What the paper's router would do with a configuration, and what the same shares do in ours.

**Shares.**  The paper hands every request to any idle worker, first come first served.  So the traffic of a variant is
not chosen: it follows from the configuration, and `Fifo` computes it.  If workers keep up with the load one row at a
time, it is the queueing model of `clover._native.queueing`: the product form "pf" for at most `FEW` workers, the mean
field "mf" above.  (pf was within a point at every size checked, but is slow for many workers; mf is off by up to five
points for few.)  If workers only keep up in batches, all of them are always busy, so each takes rows at its own speed.
The batch is then the least that carries the load, the same for all (they take from one queue), interpolated between
measured sizes.  Both agree where the one ends and the other begins.

**Prediction.**  Our router deals these shares by quota and batches each variant in a lane of its own.  So energy,
accuracy, utilisation and p95 are those of the quota lanes (`planning.packing.evaluation.predict`), not those of the
paper's queue.  Energies are active joules, as everywhere in planning; the paper includes idle power, which is the same
for all its plans.

**Two lengths of play.**  p95 comes from playing lanes.  A plan is judged by the planner's own play.  A search scores
its many configurations by plays of `ROWS` rows, ten times cheaper and off by some percent.  (The artifact scores them
by 1,000 requests of live traffic.)

Closed forms are arrays with one row a configuration, because an oracle weighs thousands of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover._native import queueing as native
from clover.planning.model.objective import Objective
from clover.planning.model.problem import Problem
from clover.planning.model.queueing import Service, expected_batch, mixture_p95_ms, play, quantiles
from clover.planning.packing.evaluation import UNBOUNDED_MS, lanes_of, predict
from clover.types import Candidate, Configuration, GroupCount, Prediction, Routing

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

FEW = 21
"""Up to so many workers (three A100s of 1g slices) shares are those of the product form."""
ROWS = 2_000
_WARM_UP = 200
_QUANTILES = 200
_HANDFUL = 16
_SEED = 20231112
_STABLE = 0.999  # of a lane's capacity, as in planning.search
_LATE = 0.05
_RATE_STEP = math.log(1.03)


@dataclass(frozen=True)
class ClosedForms:
    """The closed forms of some configurations, one row each.  `shares` are those of `Fifo.variants`; `late` marks
    configurations whose p95 misses the SLO in any case."""

    shares: Floats
    accuracy: Floats
    energy_j: Floats
    utilisation: Floats
    score: Floats
    late: NDArray[np.bool_]


@dataclass(frozen=True)
class _Tables:
    """The services as arrays, a row for each (variant, profile)."""

    variant: Counts  # index of the variant
    seconds: Floats  # of one row
    cv: Floats
    capacity: Floats
    rates: Floats  # rows a second at each of the measured batch sizes
    by_batch_s: Floats  # of a batch of 0, 1, 2, ... rows
    by_batch_j: Floats
    least_batch: Floats
    most_batch: Floats
    member: Floats  # [group, variant] 1 if the group is of the variant


Keys = tuple[tuple[str, str], ...]


@lru_cache(maxsize=16)
def _tables(keys: Keys, services: tuple[Service, ...], variants: tuple[str, ...]) -> _Tables:
    sizes = sorted({1, *(batch for service in services for batch in service.batches)})
    most = max(sizes)
    rates = [[(held := min(b, s.max_batch)) / s.seconds(held) for b in sizes] for s in services]
    variant = np.array([variants.index(name) for name, _ in keys], dtype=np.int64)
    return _Tables(
        variant=variant,
        seconds=np.array([s.seconds(1) for s in services]),
        cv=np.array([s.cv for s in services]),
        capacity=np.array([s.capacity() for s in services]),
        rates=np.array(rates),
        # Measured sizes are whole numbers, so that a table by whole rows interpolates exactly as the service does.
        by_batch_s=np.array([[s.seconds(b) for b in range(most + 2)] for s in services]),
        by_batch_j=np.array([[s.energy_j(b) * b for b in range(most + 2)] for s in services]),
        least_batch=np.array([float(s.batches[0]) for s in services]),
        most_batch=np.array([float(s.max_batch) for s in services]),
        member=np.eye(len(variants))[variant],
    )


class Fifo:
    """A problem under the paper's router: shares, closed forms and p95 of any configuration.

    Configurations are rows of counts, one column for each of `keys`.
    """

    def __init__(self, problem: Problem, objective: Objective) -> None:
        self.problem = problem
        self.objective = objective
        self.keys: Keys = tuple(sorted(problem.services))
        self.variants = problem.variants
        self._services = tuple(problem.services[key] for key in self.keys)
        self._front_ms = self._services[0].front_ms
        self._tables = _tables(self.keys, self._services, problem.variants)
        self._accuracy = np.array([problem.accuracy[variant] for variant in problem.variants])

    def counts(self, configuration: Configuration) -> Counts:
        """Return `configuration` as a row; ValueError if some of it was not measured."""
        row = np.zeros(len(self.keys), dtype=np.int64)
        for group in configuration:
            row[self.keys.index((group.variant, group.profile))] += group.count
        return row

    def configuration(self, counts: Counts) -> Configuration:
        """Return a row as a configuration."""
        return tuple(
            GroupCount(variant=variant, profile=profile, count=number)
            for (variant, profile), number in zip(self.keys, counts.tolist(), strict=True)
            if number
        )

    def model(self, counts: Counts) -> str:
        """Return how the shares of a row were found, in words."""
        if self.problem.rate >= float(counts @ self._tables.rates[:, 0]):
            return "every worker always busy"
        return "pf" if counts.sum() <= FEW else "mf"

    # --- closed forms -------------------------------------------------------------------------------------------------

    def closed_forms(self, counts: Counts, *, rough: bool = False) -> ClosedForms:
        """Return the closed forms of rows of counts.  `rough`: with the mean field for few workers too, which is
        quicker."""
        tables, rate = self._tables, self.problem.rate
        shares = self._group_shares(counts, 0 if rough else FEW) @ tables.member
        capacity = (counts * tables.capacity) @ tables.member
        workers = counts @ tables.member
        with np.errstate(invalid="ignore", divide="ignore"):
            loads = np.where(capacity > 0.0, rate * shares / capacity, 0.0)
        # One entry for each group of each configuration that has workers.
        rows, groups = np.nonzero(counts)
        variant = tables.variant[groups]
        number = counts[rows, groups]
        share, lane = shares[rows, variant], workers[rows, variant]
        part = number * tables.capacity[groups] / capacity[rows, variant]
        batch = self._batches(groups, rate * share * part / number, lane, share)
        energy = self._energy_j(groups, batch)
        slow = tables.seconds[groups] * 1e3 + self._front_ms >= self.objective.slo_ms
        late = 0.5 * share * np.minimum(part, number / lane) * slow
        size = len(counts)
        energy_j: Floats = np.bincount(rows, share * part * energy, size).astype(np.float64)
        accuracy = shares @ self._accuracy
        return ClosedForms(
            shares=shares,
            accuracy=accuracy,
            energy_j=energy_j,
            utilisation=loads.max(axis=1),
            score=self._score(accuracy, energy_j),
            late=np.bincount(rows, late, size) > _LATE,
        )

    def service_ms(self, counts: Counts) -> Floats:
        """Return mean service of a single row, for rows of counts (rough)."""
        mean: Floats = self._group_shares(counts, 0) @ (self._tables.seconds * 1e3)
        return mean

    def _score(self, accuracy: Any, energy_j: Any) -> Any:
        return self.objective.score(accuracy, energy_j)  # arithmetic alone: arrays pass through

    def _group_shares(self, counts: Counts, product: int) -> Floats:
        tables, rate = self._tables, self.problem.rate
        shares = np.zeros(counts.shape)
        single = counts @ tables.rates[:, 0] > rate
        few = single & (counts.sum(axis=1) <= product)
        for row in np.nonzero(few)[0]:
            own = np.nonzero(counts[row])[0]
            nothing = np.zeros(len(own))
            stable, found, *_ = native.evaluate(
                tables.seconds[own], tables.cv[own], nothing, nothing, counts[row, own], rate, "pf", 0.95
            )
            assert stable  # the rows of `single` keep up
            shares[row, own] = found
        many = np.nonzero(single & ~few)[0]
        if len(many):
            shares[many] = self._mean_field(counts[many].astype(np.float64))
        busy = np.nonzero(~single)[0]
        if len(busy):
            shares[busy] = self._always_busy(counts[busy])
        return shares

    def _mean_field(self, counts: Floats) -> Floats:
        """Return a worker is busy x S / (1 + x S) of the time, with x the attempt rate at which all rows are served.
        What is served is concave in x, so that Newton's steps from below never overshoot."""
        seconds, rate = self._tables.seconds, self.problem.rate
        x = rate / counts.sum(axis=1)
        for _ in range(100):
            free = 1.0 / (1.0 + x[:, None] * seconds)
            served = x * np.einsum("ij,ij->i", counts, free)
            step = (rate - served) / np.einsum("ij,ij,ij->i", counts, free, free)
            x = x + step
            if np.all(np.abs(step) <= 1e-13 * x):
                break
        taken = counts * x[:, None] / (1.0 + x[:, None] * seconds)
        normal: Floats = taken / taken.sum(axis=1, keepdims=True)
        return normal

    def _always_busy(self, counts: Counts) -> Floats:
        tables, rate = self._tables, self.problem.rate
        total = counts @ tables.rates
        enough = total >= rate
        at = enough.argmax(axis=1)  # the first size that carries the load; 0 if none does
        before = np.maximum(at - 1, 0)
        row = np.arange(len(counts))
        low, high = total[row, before], total[row, at]
        part = np.where(high > low, (rate - low) / np.where(high > low, high - low, 1.0), 1.0)
        speed = (
            tables.rates[:, before].T
            + np.clip(part, 0.0, 1.0)[:, None] * (tables.rates[:, at] - tables.rates[:, before]).T
        )
        speed = np.where(np.any(enough, axis=1, keepdims=True), speed, tables.capacity)
        taken = counts * speed
        normal: Floats = taken / taken.sum(axis=1, keepdims=True)
        return normal

    def _batches(self, groups: Counts, rate: Floats, workers: Floats, share: Floats) -> Floats:
        """Return `planning.model.queueing.expected_batch` of many lanes at once."""
        if len(groups) <= _HANDFUL:  # one by one is quicker
            entries = zip(groups.tolist(), rate.tolist(), workers.tolist(), share.tolist(), strict=True)
            return np.array([expected_batch(self._services[group], *entry) for group, *entry in entries])
        most = self._tables.most_batch[groups]
        power = workers + 2.0 / np.maximum(share, 0.05)
        batch = np.ones(len(groups))
        left = np.arange(len(groups))
        for _ in range(60):
            r = np.maximum(rate[left] * self._at(self._tables.by_batch_s, groups[left], batch[left]), 1e-300)
            bend = np.maximum(1.0, r) * (1.0 + np.minimum(r, 1.0 / r) ** power[left]) ** (1.0 / power[left])
            following = np.minimum(bend, most[left])
            done = np.abs(following - batch[left]) < 1e-3
            batch[left] = np.where(done, following, 0.5 * (batch[left] + following))
            left = left[~done]
            if not len(left):
                break
        return batch

    def _energy_j(self, groups: Counts, batch: Floats) -> Floats:
        held = np.clip(batch, self._tables.least_batch[groups], self._tables.most_batch[groups])
        energy: Floats = self._at(self._tables.by_batch_j, groups, held) / held
        return energy

    @staticmethod
    def _at(table: Floats, groups: Counts, batch: Floats) -> Floats:
        low = batch.astype(np.int64)
        first = table[groups, low]
        between: Floats = first + (batch - low) * (table[groups, low + 1] - first)
        return between

    # --- p95 ----------------------------------------------------------------------------------------------------------

    def glance_p95_ms(self, counts: Counts, shares: Floats) -> float:
        """Return p95 of one configuration by short plays; `UNBOUNDED_MS` if a lane cannot keep up."""
        lanes = lanes_of(self.problem, self.configuration(counts))
        parts = []
        for variant, lane in zip(lanes.variants, lanes.lanes, strict=True):
            share = float(shares[self.variants.index(variant)])
            if self.problem.rate * share >= _STABLE * lane.capacity:
                return UNBOUNDED_MS
            step = math.ceil(math.log(max(self.problem.rate * share, 1e-3)) / _RATE_STEP - 1e-9)
            rate = min(math.exp(step * _RATE_STEP), _STABLE * lane.capacity)
            parts.append((share, _glance(lane.workers, rate, round(max(0.05, share) * 20) / 20)))
        return min(UNBOUNDED_MS, mixture_p95_ms(parts))

    def candidate(self, counts: Counts, forms: ClosedForms, row: int, p95_ms: float | None = None) -> Candidate:
        """Return row `row` of `forms` as a candidate, with the p95 of the planner's own play or the given one."""
        configuration = self.configuration(counts)
        if p95_ms is None:
            lanes = lanes_of(self.problem, configuration)
            mix = tuple(float(forms.shares[row, self.variants.index(variant)]) for variant in lanes.variants)
            expected = predict(self.problem, lanes, mix)
        else:
            expected = Prediction(
                p95_ms=p95_ms,
                accuracy=float(forms.accuracy[row]),
                energy_j_per_row=float(forms.energy_j[row]),
                utilisation=float(forms.utilisation[row]),
            )
        used = sorted(
            (variant, round(share, 6))
            for variant, share in zip(self.variants, forms.shares[row].tolist(), strict=True)
            if share > 0.0
        )
        why = self.short(expected)
        return Candidate(
            configuration=configuration,
            routing=Routing(shares=dict(used)),
            prediction=expected,
            score=self.objective.score(expected.accuracy, expected.energy_j_per_row),
            feasible=not why,
            why=why,
        )

    def short(self, expected: Prediction) -> str:
        """Return why a configuration does not hold the latency target; empty if it does.  The accuracy floor is not
        asked for."""
        if expected.utilisation > self.objective.max_utilisation + 1e-9:
            return (
                f"utilisation {expected.utilisation:.2f} exceeds {self.objective.max_utilisation:.2f} "
                f"at {self.problem.rate:.1f} rows/s"
            )
        if expected.p95_ms > self.objective.slo_ms:
            return f"p95 {expected.p95_ms:.2f} ms exceeds the SLO of {self.objective.slo_ms:.2f} ms"
        return ""


@lru_cache(maxsize=16384)
def _glance(workers: tuple[Service, ...], rate: float, share: float) -> Floats:
    return quantiles(play(workers, _arrivals(share) / rate)[_WARM_UP:] * 1e3 + workers[0].front_ms, _QUANTILES)


@lru_cache(maxsize=32)
def _arrivals(share: float) -> Floats:
    """Return the moments at which rows arrive at one a second, every 1 / share-th of a Poisson stream."""
    gaps = np.random.default_rng(_SEED).gamma(1.0 / share, share, ROWS + _WARM_UP)
    return np.cumsum(gaps)


def stack(rows: Sequence[Counts]) -> Counts:
    """Return rows of counts as one array."""
    return np.array(rows, dtype=np.int64)
