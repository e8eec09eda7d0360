"""The bound: never below what is feasible, by either way, whatever ends it; and close where it should be."""

from __future__ import annotations

import importlib.util
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.research.problem import bound as bounding
from clover.research.problem import exact
from clover.research.problem.bound import bound
from clover.research.problem.file import ProblemFile, parse
from clover.research.problem.relaxation import Box, Multipliers, Relaxation, erlang_c
from tests.reference.problems import PARTITIONS, of_plain, plain_problem, random_counts, random_problem

pytestmark = pytest.mark.slow

SAMPLES = sorted((Path(__file__).resolve().parents[5] / "shared" / "problems").glob("*.json"))
WAYS = [False, *([True] if importlib.util.find_spec("scipy") else [])]


def stops_after(looks: int) -> Callable[[], bool]:
    left = iter(range(looks))
    return lambda: next(left, None) is None


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    gpus=st.integers(1, 2),
    model=st.sampled_from(["pf", "mf"]),
    looks=st.integers(0, 25),
    rows=st.sets(st.sampled_from(PARTITIONS), min_size=1),
)
@pytest.mark.parametrize("highs", WAYS)
def test_no_feasible_configuration_is_above(
    highs: bool, seed: int, gpus: int, model: str, looks: int, rows: set[tuple[int, ...]]
) -> None:
    """On GPUs that can be cut in any of the ways of an A100, or in only some of them."""
    problem = of_plain(plain_problem(seed, gpus, model=model) | {"partitions": sorted(rows)})
    if not len(problem.usable):
        return
    best = exact.enumerate_all(problem)
    # A look of the way without a solver is at 256 boxes at once.
    looks = looks if highs else looks // 8
    found = bound(problem, stop=stops_after(looks), highs=highs)
    assert found.value >= best.f
    told = bound(problem, incumbent=best.f, stop=stops_after(looks), highs=highs)
    assert told.value >= best.f


@pytest.mark.parametrize("highs", WAYS)
@pytest.mark.parametrize("model", ["pf", "mf"])
@pytest.mark.parametrize("row", [(0, 0, 0, 0, 1), (0, 0, 1, 1, 0)])
def test_what_just_meets_the_sla_is_not_above(row: tuple[int, ...], model: str, highs: bool) -> None:
    """Of GPUs that are all cut alike a bound is close to the best configuration, and if that has no time to spare, each
    limit holds with equality or nearly: one that forbids a little too much shows.  A faster SLA makes no configuration
    feasible, so that the best one stays the best for as long as it is feasible."""
    for seed in range(20 if highs else 6):
        plain = plain_problem(seed, 3, variants=2, model=model) | {"partitions": [row]}
        best = exact.enumerate_all(of_plain(plain))
        if best.counts is None:
            continue
        shares = exact.shares(of_plain(plain), best.counts[None, :])
        misses, meets = 0.2 * plain["sla_ms"], plain["sla_ms"]
        for _ in range(20):
            problem = of_plain(plain | {"sla_ms": 0.5 * (misses + meets)})
            if exact.tail(problem, shares, problem.sla_s)[0] <= 1.0 - problem.quantile:
                meets = 0.5 * (misses + meets)
            else:
                misses = 0.5 * (misses + meets)
        problem = of_plain(plain | {"sla_ms": meets})
        assert bound(problem, stop=stops_after(20 if highs else 6), highs=highs).value >= best.f


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    gpus=st.sampled_from([1, 2, 3, 10, 100]),
    model=st.sampled_from(["pf", "mf"]),
    data=st.data(),
)
def test_limits_and_duals_hold_for_what_lies_in_the_box(seed: int, gpus: int, model: str, data: st.DataObject) -> None:
    """A random configuration, a random box around it, random multipliers."""
    problem, draw = random_problem(seed, gpus, model=model), random.Random(seed)
    counts = random_counts(problem, draw)
    if model == "pf" and counts.sum() > exact.MOST_WORKERS:
        return
    found = exact.shares(problem, counts[None, :])
    if not found.stable[0]:
        return
    relaxation = Relaxation(problem)
    here = counts[relaxation.groups].astype(float)
    shares, capacity = found.shares[0][relaxation.groups], float((here / relaxation.service).sum())
    used = bounding._workers_used(relaxation, here)
    part = st.floats(0.0, 1.0)
    root = relaxation.root()
    assert root.used[0] <= used <= root.used[1]
    assert root.capacity[0] <= capacity <= root.capacity[1]
    assert root.workers[0] <= here.sum() <= root.workers[1]

    def around(side: tuple[float, float], at: float) -> tuple[float, float]:
        return at - data.draw(part) * (at - side[0]), at + data.draw(part) * (side[1] - at)

    box = Box(around(root.used, used), around(root.capacity, capacity), around(root.workers, float(here.sum())))
    limits = relaxation.limits(box)
    late = float(exact.tail(problem, found, problem.sla_s)[0])
    assert (limits.low * here <= shares + 1e-12).all()
    assert (shares <= limits.high * here + 1e-12).all()
    assert limits.tail_y @ shares <= late + 1e-9
    assert limits.part_y @ shares + limits.part_n @ here <= late + 1e-9
    if late <= 0.05:
        f = problem.offset + float(found.shares[0] @ problem.gains)
        more = st.floats(0.0, 5.0)
        by = Multipliers(
            total=data.draw(st.floats(-3.0, 3.0)),
            tail=data.draw(more),
            part=data.draw(more),
            capacity=(data.draw(more) * 1e-3, data.draw(more) * 1e-3),
            workers=(data.draw(more) * 1e-2, data.draw(more) * 1e-2),
        )
        assert relaxation.dual(box, limits, by) >= f - 1e-12


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000), gpus=st.sampled_from([1, 2, 3, 10]))
def test_requests_that_wait_are_served_by_a_group_at_least_as_often_as_the_tails_limit_says(
    seed: int, gpus: int
) -> None:
    """r_k of the first limit of the tail: busy_k >= r_k y_k, with equality where only the fastest group serves."""
    problem = random_problem(seed, gpus, model="mf")
    counts = random_counts(problem, random.Random(seed))
    relaxation = Relaxation(problem)
    fastest = np.zeros_like(counts)
    fastest[relaxation.groups[relaxation.service.argmin()]] = math.ceil(1.5 * problem.arrival_rate)
    for each, alone in ((counts, False), (fastest, True)):
        found = exact.shares(problem, each[None, :])
        if not found.stable[0]:
            continue
        here = each[relaxation.groups].astype(float)
        used = np.array([bounding._workers_used(relaxation, here)])
        slowed = relaxation.shares_within(used, used)[2][0]
        busy, share = found.busy[0][relaxation.groups], found.shares[0][relaxation.groups]
        assert (slowed * share <= busy + 1e-12).all()
        assert slowed.max() == pytest.approx(1.0)
        if alone:
            assert slowed * share == pytest.approx(busy)


@pytest.mark.parametrize("highs", WAYS)
def test_a_lone_group_that_just_meets_the_sla_almost_without_waits_is_not_above(highs: bool) -> None:
    """Then the first limit of the tail holds with equality, by either way."""
    plain = plain_problem(3, 1, variants=1) | {"partitions": [PARTITIONS[0]], "arrival_rate": 1e-3}
    plain["sla_ms"] = 1.05 * plain["groups"][-1]["service_ms"]
    late = float(Relaxation(of_plain(plain)).direct.max())
    assert 0.01 < late < 0.5
    problem = of_plain(plain | {"quantile": 1.0 - late * (1.0 + 1e-3)})
    best = exact.enumerate_all(problem)
    assert best.counts is not None
    assert bound(problem, stop=stops_after(20), highs=highs).value >= best.f


@settings(max_examples=100, deadline=None)
@given(workers=st.integers(1, 3000), rho=st.floats(0.01, 0.999))
def test_the_chance_to_wait_falls_with_workers_and_rises_with_load(workers: int, rho: float) -> None:
    here = erlang_c(workers, rho)
    assert 0.0 <= here <= 1.0
    if here < 1e-290:
        return
    assert erlang_c(workers + 1, rho) <= here * (1.0 + 1e-9)
    assert erlang_c(workers, min(1.0, rho * 1.01)) >= here * (1.0 - 1e-9)
    if workers < 200:
        assert here == pytest.approx(float(exact.erlang_c(np.array([workers]), np.array([rho]))[0]), rel=1e-9)


@pytest.mark.parametrize("highs", WAYS)
def test_what_cannot_be_is_proved(highs: bool) -> None:
    plain = plain_problem(3, 2)
    fastest = min(group["service_ms"] for group in plain["groups"])
    assert bound(of_plain(plain | {"sla_ms": 0.5 * fastest}), highs=highs).value == -math.inf
    assert bound(of_plain(plain | {"arrival_rate": 14.1e3 / fastest}), highs=highs).value == -math.inf


@pytest.mark.skipif(not SAMPLES, reason="the solved samples are not here")
@pytest.mark.parametrize("highs", WAYS)
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_samples_are_bounded(path: Path, highs: bool) -> None:
    known = json.loads(path.read_text())["best_known"]["f"]
    problem = parse(path.read_bytes())
    found = bound(problem, incumbent=known, stop=stops_after(60 if highs else 5), highs=highs)
    assert found.value >= known
    assert (found.value - known) / problem.scale(known) < 0.6


def _alone(seed: int) -> ProblemFile:
    """One partition, one variant that fits: nothing to choose."""
    plain = plain_problem(seed, 2)
    plain["partitions"] = [[0, 0, 2, 0, 0]]
    for group in plain["groups"]:
        group["fits"] = group["variant"] == "v1"
    return of_plain(plain | {"arrival_rate": 1.0, "sla_ms": 1e4})


@pytest.mark.parametrize("highs", WAYS)
def test_where_there_is_no_choice_the_bound_is_the_answer(highs: bool) -> None:
    problem = _alone(3)
    f = exact.enumerate_all(problem).f
    assert bound(problem, highs=highs).value == pytest.approx(f, abs=1e-6)
