"""Workers that share their time between variants: their load, their batches and joules, and p95 beside long plays."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import pytest

from clover.planning.cascade.evaluation import play_latencies_ms, play_once
from clover.planning.model.problem import may_share, problem_of, variants_of
from clover.planning.model.queueing import Service, capacity, energy_j_per_row, latencies_ms
from clover.planning.model.sharing import ProcessKind, SharedPool, pool_of
from clover.types import Assignment, GroupCount, MemoryMeasurement, configuration_of
from tests.support.profiles_fixture import placement, profile, state

BATCHES = (1, 2, 4, 8)
APART = 0.10


def service(ms: float, *, cv: float = 0.1, fixed: float = 0.5, factor: float = 1.0) -> Service:
    """One row takes `ms`, each further one the part 1 - `fixed` of it."""
    mean_ms = tuple(factor * ms * (fixed + (1.0 - fixed) * batch) for batch in BATCHES)
    return Service(
        BATCHES, mean_ms, tuple(took / batch / 100.0 for took, batch in zip(mean_ms, BATCHES, strict=True)), cv
    )


@dataclass(frozen=True)
class Drawn:
    """A random pool at a random load; `reach` of a cascade, or () of a mix."""

    pool: SharedPool
    rate: float
    reach: tuple[float, ...]

    @property
    def rates(self) -> list[float]:
        return [self.rate * part for part in self.reach or self.pool.shares]

    @property
    def planned_ms(self) -> float:
        if self.reach:
            return float(np.quantile(play_latencies_ms(self.pool, self.rate, self.reach), 0.95))
        return float(np.quantile(self.pool.latencies_ms(self.rate), 0.95))


def drawn(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    width = int(rng.integers(2, 4))
    ms = np.sort(rng.uniform(0.5, 20.0, width)).tolist()
    fixed = rng.uniform(0.1, 0.9, width).tolist()
    kinds = tuple(
        ProcessKind(
            int(rng.integers(1, 4)),
            tuple(
                service(own, cv=float(rng.uniform(0.0, 0.2)), fixed=part, factor=factor)
                for own, part in zip(ms, fixed, strict=True)
            ),
        )
        for factor in rng.uniform(0.7, 1.4, int(rng.integers(1, 3))).tolist()
    )
    chained = bool(rng.random() < 0.5)
    reach = tuple(np.cumprod([1.0, *rng.uniform(0.05, 0.8, width - 1)]).tolist()) if chained else ()
    shares = () if chained else tuple(rng.dirichlet(np.ones(width)).tolist())
    pool = SharedPool(kinds, shares)
    return Drawn(pool, float(rng.uniform(0.1, 0.85)) / pool.utilisation(reach or shares), reach)


def long_p95_ms(own: Drawn) -> float:
    """Two plays that are not the plan's."""
    plays = [
        play_once(own.pool, own.rate, own.reach, rows=16_000, warm_up=1_000, seed=9_000 + number) for number in range(2)
    ]
    return float(np.mean([values[np.searchsorted(cumulated, 0.95)] for values, cumulated in plays]))


@pytest.mark.slow
def test_p95_of_a_hundred_random_ones_is_near_long_plays() -> None:
    apart = {}
    for seed in range(100):
        own = drawn(seed)
        error = own.planned_ms / long_p95_ms(own) - 1.0
        if abs(error) > APART:
            apart[seed] = error
    assert len(apart) <= 5, apart


@pytest.mark.slow
def test_joules_and_batches_are_near_those_played() -> None:
    joules, batches = [], []
    for seed in range(40):
        own = drawn(seed)
        rng = np.random.default_rng(seed)
        rows = 10_000
        last = None
        if own.reach:
            going = np.ones(rows, bool)
            last = np.zeros(rows, np.int8)
            for at in range(1, own.pool.width):
                going &= rng.random(rows) < own.reach[at] / own.reach[at - 1]
                last += going
        played = own.pool.play(np.cumsum(rng.exponential(1.0 / own.rate, rows)), seed=seed, last=last, warm_up=500)
        told = sum(part * j for part, j in zip(own.reach or own.pool.shares, own.pool.joules(own.rates), strict=True))
        joules.append(told / (played.energy_j.sum() / (rows - 500)) - 1.0)
        expected = (
            sum(rate / size for rate, size in zip(own.rates, own.pool.batches(own.rates), strict=True)) / own.rate
        )
        batches.append(expected / (played.batches.sum() / (rows - 500)) - 1.0)
    assert abs(np.mean(joules)) < 0.04
    assert np.quantile(np.abs(joules), 0.9) < 0.12
    assert np.quantile(np.abs(batches), 0.9) < 0.25


def test_a_pool_of_one_lane_is_a_lane() -> None:
    workers = (service(4.0),) * 3
    pool = SharedPool((ProcessKind(3, (service(4.0),)),), shares=(1.0,))
    rate = 0.7 * capacity(workers)
    assert pool.utilisation([rate]) == pytest.approx(0.7)
    assert pool.joules([rate])[0] == pytest.approx(energy_j_per_row(workers, rate), rel=0.01)
    told, lane = np.quantile(pool.latencies_ms(rate), 0.95), np.quantile(latencies_ms(workers, rate), 0.95)
    assert told == pytest.approx(lane, rel=0.05)


def test_load_is_the_time_that_all_rows_take() -> None:
    small, large = service(1.0), service(8.0)
    pool = SharedPool((ProcessKind(2, (small, large)),))
    rates = [0.3 * 2 * small.capacity(), 0.5 * 2 * large.capacity()]
    assert pool.utilisation(rates) == pytest.approx(0.8)
    assert pool.utilisation([0.0, rates[1]]) == pytest.approx(0.5)


def test_unlike_workers_share_the_rows_so_that_none_is_overloaded() -> None:
    small, large = service(1.0), service(8.0)
    # One worker for both variants, one for the small one alone: small rows leave the first one room for large ones.
    pool = SharedPool((ProcessKind(1, (small, large)), ProcessKind(1, (small, None))))
    rates = [0.8 * small.capacity(), 0.8 * large.capacity()]
    assert 0.8 <= pool.utilisation(rates) < 0.9
    assert SharedPool((ProcessKind(1, (small, None)),)).utilisation([1.0, 1.0]) == math.inf
    flows = pool.flows(rates)
    assert [sum(own) for own in zip(*flows, strict=True)] == pytest.approx(rates)


def test_a_chain_on_shared_workers_is_played_with_its_stages_in_one_queue() -> None:
    pool = SharedPool((ProcessKind(1, (Service((1,), (1.0,), (0.01,)), Service((1,), (10.0,), (0.2,)))),))
    found = play_latencies_ms(pool, 0.5, (1.0, 0.2))
    assert (found > 10.0).mean() == pytest.approx(0.2, abs=0.01)  # at no load: 1 ms, and 10 more for a fifth
    assert np.quantile(play_latencies_ms(pool, 150.0, (1.0, 0.2)), 0.95) > np.quantile(found, 0.95)


def test_only_rows_of_the_first_stage_wait_for_a_full_batch() -> None:
    pool = SharedPool((ProcessKind(1, (service(1.0, cv=0.0), service(10.0, cv=0.0))),))
    waited = play_latencies_ms(pool, 0.5, (1.0, 0.2), 5.0)
    assert np.quantile(waited, 0.5) == pytest.approx(7.0, abs=0.1)  # and a tick of the timer
    assert np.quantile(waited, 0.9) == pytest.approx(17.0, abs=0.1)


def test_only_what_fits_together_may_share() -> None:
    measured = msgspec.structs.replace(
        profile(),
        memory=tuple(
            MemoryMeasurement(variant=name, profile="1c", backend="eager", weights_bytes=size, peak_bytes=10)
            for name, size in (("small", 100), ("medium", 200), ("large", 400))
        ),
        context_bytes={"1c": 50},
    )
    given = msgspec.structs.replace(state(measured=measured), resident=2, resident_bytes={"1c": 600})
    problem = problem_of(given)
    assert may_share(problem, ("large", "small"), "1c")  # 400 + 100 + 2 x 10 + 50
    assert not may_share(problem, ("large", "medium"), "1c")
    assert not may_share(problem, ("large", "medium", "small"), "2c")  # two are held at most
    assert may_share(problem, ("large", "medium"), "2c")  # not known: as many as may be resident
    assert not may_share(problem_of(msgspec.structs.replace(given, resident=1)), ("large", "small"), "1c")
    apart = problem_of(msgspec.structs.replace(given, apart=(("1c", "large", "small"),)))
    assert not may_share(apart, ("small", "large"), "1c")
    assert may_share(apart, ("small", "medium"), "1c")
    assert may_share(apart, ("large", "small"), "2c")
    assert not may_share(problem, ("large", "other"), "1c")


def test_a_placement_with_several_assignments_is_shared() -> None:
    def runs(variant: str, start: int, size: int = 1) -> Assignment:
        return Assignment(placement=placement(start, size), family="toy", variant=variant, backend="eager")

    both = configuration_of((runs("small", 0), runs("large", 0), runs("large", 1), runs("small", 1)))
    assert both == (GroupCount(variant="large", profile="1c", count=2, beside=("small",)),)
    assert both[0].words == "2 x large/small@1c"
    mixed = configuration_of((runs("small", 0), runs("large", 0), runs("large", 1)))
    assert [(group.variants, group.count) for group in mixed] == [(("large",), 1), (("large", "small"), 1)]
    problem = problem_of(state())
    assert variants_of(mixed) == {"large", "small"}
    pool = pool_of(problem.services, mixed, ("small", "large"))
    assert [kind.services[0] is None for kind in pool.kinds] == [True, False]
    assert replace(pool, shares=(0.5, 0.5)).utilisation([1.0, 1.0]) > 0.0
