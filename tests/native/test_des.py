"""The simulator: the same trace in both twins, the batcher's order of rows, and queues whose answer is known."""

from __future__ import annotations

import heapq
import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import batcher as batcher_twin
from tests.reference import des as twin
from tests.reference import route as route_twin
from tests.support.examples import examples

pytestmark = pytest.mark.slow

FIELDS = ("latency_s", "wait_s", "group", "rows", "batches", "busy_s", "energy_j", "span_s")


@st.composite
def systems(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `simulate` but for arrivals: any mix of groups, lanes, batches, laws."""
    groups, columns, width = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    law = draw(st.sampled_from(["deterministic", "normal", "lognormal", "exponential"]))
    counts = draw(st.lists(st.integers(0, 5), min_size=groups, max_size=groups))
    lanes = draw(st.lists(st.integers(0, width - 1), min_size=groups, max_size=groups))
    served = [sum(c for c, lane in zip(counts, lanes, strict=True) if lane == own) for own in range(max(lanes) + 1)]
    if not any(served):
        counts[0], served[lanes[0]] = 1, 1
    column = st.lists(st.floats(0.0, 0.5), min_size=groups, max_size=groups)
    first_s = draw(st.lists(st.floats(0.5, 3.0), min_size=groups, max_size=groups))
    return {
        "service_s": [[first * (0.6 + 0.4 * b) for b in range(1, columns + 1)] for first in first_s],
        "energy_j": [[first + b for b in range(columns)] for first in first_s],
        "counts": counts,
        "lanes": lanes,
        "shares": [draw(st.floats(0.1, 2.0)) if there else 0.0 for there in served],
        "largest": draw(st.lists(st.integers(1, columns), min_size=groups, max_size=groups)),
        "law": law,
        "cv": draw(column) if law in ("normal", "lognormal") else None,
        "credits": draw(st.integers(1, 3)),
        "in_turn": draw(st.booleans()),
        "delay_s": draw(st.sampled_from([0.0, 0.0, 0.7, 3.0])),
        "together": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**64 - 1)),
    }


@st.composite
def streams(draw: st.DrawFn) -> tuple[str, tuple[Any, ...]]:
    """A way to make arrivals, and its arguments."""
    kind = draw(st.sampled_from(["poisson", "bursty", "trace"]))
    if kind == "poisson":
        return kind, (draw(st.floats(0.2, 8.0)),)
    if kind == "bursty":
        states = draw(st.integers(1, 3))
        rates = [*draw(st.lists(st.floats(0.0, 9.0), min_size=states - 1, max_size=states - 1)), 2.0]
        return kind, (rates, draw(st.lists(st.floats(0.1, 5.0), min_size=states, max_size=states)), draw(st.booleans()))
    gaps = draw(st.lists(st.just(0.0) | st.floats(0.0, 1.0), min_size=120, max_size=120))
    return kind, (np.cumsum(gaps).tolist(),)


@settings(max_examples=examples(150), deadline=None)
@given(systems(), streams(), st.integers(0, 60))
def test_both_tell_the_same(
    compiled: SimpleNamespace, system: dict[str, Any], stream: tuple[str, tuple[Any, ...]], warm_up: int
) -> None:
    kind, how = stream
    one = compiled.des.simulate(arrivals=getattr(compiled.des, kind)(*how), rows=120, warm_up=warm_up, **system)
    other = twin.simulate(arrivals=getattr(twin, kind)(*how), rows=120, warm_up=warm_up, **system)
    for name in FIELDS:
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert one.rows.sum() == 120 - warm_up
    assert (one.latency_s > one.wait_s).all()
    assert (one.wait_s >= 0.0).all()


@settings(max_examples=examples(60), deadline=None)
@given(
    gaps=st.lists(st.integers(0, 30), min_size=1, max_size=80),
    workers=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.integers(5, 60)), min_size=3, max_size=6),
    shares=st.lists(st.floats(0.1, 1.0), min_size=3, max_size=3),
    credits=st.integers(1, 2),
    delay=st.sampled_from([0, 0, 51]),
)
def test_rows_go_where_the_production_batcher_sends_them(
    kernels: SimpleNamespace,
    gaps: list[int],
    workers: list[tuple[int, int, int]],
    shares: list[float],
    credits: int,
    delay: int,
) -> None:
    """Integral times make both exact, and with an odd delay among even times no delay runs out as something else
    happens.  Each worker is a group of its own, so that the group says who served a row."""
    workers = sorted([(0, 2, 20), (1, 3, 30), (2, 1, 10), *workers])
    tables = [[float(2 * fixed + 14 * b) for b in range(1, 5)] for _, _, fixed in workers]
    times = [2 * time for time in itertools.accumulate(gaps)]
    outcome = kernels.des.simulate(
        tables,
        [1] * len(workers),
        kernels.des.trace(times),
        largest=[most for _, most, _ in workers],
        lanes=[lane for lane, _, _ in workers],
        shares=shares,
        credits=credits,
        in_turn=True,
        delay_s=float(delay),
    )
    queue = batcher_twin.Batcher(3, len(workers), len(times), delay)
    quota = route_twin.Quota(3)
    quota.set_shares(shares)
    for index, (lane, most, _) in enumerate(workers):
        queue.attach(index, lane, most, credits)
    held: list[list[list[int]]] = [[] for _ in workers]
    ends: list[tuple[int, int]] = []
    latency, who = [0.0] * len(times), [-1] * len(times)
    out = np.zeros(4, np.uint32)

    def begin(worker: int, now: int) -> None:
        heapq.heappush(ends, (now + int(tables[worker][len(held[worker][0]) - 1]), worker))

    def dispatch(now: int) -> None:
        while (batch := queue.dispatch(now, out)) is not None:
            worker, n = batch
            held[worker].append(out[:n].tolist())
            if len(held[worker]) == 1:
                begin(worker, now)

    row = 0
    while row < len(times) or ends:
        now = ends[0][0] if ends else 10**9
        if row < len(times) and times[row] < now:
            now = times[row]
            queue.push(quota.choose(0b111), row, 10**9, now)
            row += 1
        else:
            worker = heapq.heappop(ends)[1]
            for own in held[worker].pop(0):
                latency[own], who[own] = now - times[own], worker
            queue.credit(worker)
            if held[worker]:
                begin(worker, now)
        dispatch(now)
        while (event := queue.next_event_ns(now)) and event < min([10**9, *(end for end, _ in ends), *times[row:]]):
            now = event  # a delay runs out before anything else happens
            dispatch(now)
    assert outcome.latency_s.tolist() == latency
    assert outcome.group.tolist() == who


# --- queues whose answer is known -------------------------------------------------------------------------------------


def erlang_c(servers: int, load: float) -> float:
    """The chance to wait in M/M/c at `load` erlangs."""
    blocked = 1.0
    for i in range(1, servers + 1):
        blocked = load * blocked / (i + load * blocked)
    return blocked / (1.0 - load / servers * (1.0 - blocked))


@pytest.mark.parametrize(("servers", "rho", "runs"), [(1, 0.5, 1), (1, 0.7, 2), (2, 0.7, 2), (10, 0.8, 4)])
def test_markov_queues(compiled: SimpleNamespace, servers: int, rho: float, runs: int) -> None:
    """M/M/c: chance to wait, mean wait, tail of the wait, and (c = 1) of the whole stay, within 1 %."""
    waits = erlang_c(servers, rho * servers)
    drain = servers * (1.0 - rho)
    told = []
    for seed in range(runs):
        outcome = compiled.des.simulate(
            [1.0],
            [servers],
            compiled.des.poisson(rho * servers),
            rows=3_000_000,
            seed=seed,
            law="exponential",
            warm_up=10_000,
        )
        late = (outcome.wait_s > 1.0 / drain).mean()
        busy = outcome.busy_s[0] / (servers * outcome.span_s)
        told.append((outcome.waited, outcome.mean_wait_s, late, busy, outcome.quantile(0.95)))
    waited, mean_wait_s, late, busy, p95_s = np.mean(told, axis=0)
    assert waited == pytest.approx(waits, rel=0.01)
    assert mean_wait_s == pytest.approx(waits / drain, rel=0.01)
    assert late == pytest.approx(waits * math.exp(-1.0), rel=0.01)
    assert busy == pytest.approx(rho, rel=0.01)
    if servers == 1:
        assert p95_s == pytest.approx(-math.log(0.05) / drain, rel=0.01)


@pytest.mark.parametrize(("law", "cv"), [("deterministic", 0.0), ("normal", 0.2), ("lognormal", 1.0)])
@pytest.mark.parametrize("rho", [0.4, 0.7])
def test_general_service(compiled: SimpleNamespace, law: str, cv: float, rho: float) -> None:
    """M/D/1 and M/G/1: the mean wait of Pollaczek and Khinchine, within 1 %."""
    outcome = compiled.des.simulate(
        [1.0],
        [1],
        compiled.des.poisson(rho),
        rows=4_000_000,
        seed=11,
        law=law,
        cv=None if law == "deterministic" else [cv],
    )
    assert outcome.mean_wait_s == pytest.approx(rho * (1.0 + cv * cv) / (2.0 * (1.0 - rho)), rel=0.01)
    assert outcome.mean_latency_s - outcome.mean_wait_s == pytest.approx(1.0, rel=0.002)


def test_bursts_on_one_server(compiled: SimpleNamespace) -> None:
    """MMPP/M/1, two states: a quasi birth and death process, whose rate matrix is found by iteration."""
    rates, stay_s = np.array([1.4, 0.3]), np.array([5.0, 10.0])
    arriving, switching = np.diag(rates), np.array([[-1 / stay_s[0], 1 / stay_s[0]], [1 / stay_s[1], -1 / stay_s[1]]])
    own = switching - arriving
    growth, inverse = np.zeros((2, 2)), np.linalg.inv(own - np.eye(2))
    for _ in range(10_000):
        growth = -(arriving + growth @ growth) @ inverse
    empty = own + growth  # of the level 0: balance of its two states
    weights = np.linalg.inv(np.eye(2) - growth)
    system = np.vstack([empty.T[:1], weights.sum(axis=1)])
    start = np.linalg.solve(system, [0.0, 1.0])
    inside = float((start @ growth @ weights @ weights).sum())
    arrivals = compiled.des.bursty(rates, stay_s)
    assert arrivals.rate == pytest.approx((1.4 * 5 + 0.3 * 10) / 15)
    outcome = compiled.des.simulate([1.0], [1], arrivals, rows=8_000_000, seed=1, law="exponential")
    assert outcome.mean_latency_s == pytest.approx(inside / arrivals.rate, rel=0.01)  # Little


def test_any_idle_server_is_the_product_form(compiled: SimpleNamespace) -> None:
    """Servers of several speeds, exponential: shares and chance to wait in closed form."""
    service, counts, rate = [1.0, 0.5, 0.25], [2, 1, 1], 4.0
    means = [s for s, n in zip(service, counts, strict=True) for _ in range(n)]
    servers, capacity = len(means), sum(1 / s for s in means)
    loads = [rate * s for s in means]

    def symmetric(values: list[float]) -> list[float]:
        sums = [1.0]
        for value in values:
            sums = [a + value * b for a, b in zip([*sums, 0.0], [0.0, *sums], strict=True)]
        return sums

    def weight(j: int) -> float:
        return math.factorial(servers - j) / math.factorial(servers)

    some = [e * weight(j) for j, e in enumerate(symmetric(loads))]
    full = some[-1] / (1.0 - rate / capacity)
    waits = full / (sum(some[:-1]) + full)
    idle = []
    for k in range(servers):
        without = symmetric(loads[:k] + loads[k + 1 :])
        idle.append(sum(e * weight(j) / (servers - j) for j, e in enumerate(without)))
    shares = [(1 - waits) * own / sum(idle) + waits / s / capacity for own, s in zip(idle, means, strict=True)]
    outcome = compiled.des.simulate(
        service, counts, compiled.des.poisson(rate), rows=4_000_000, seed=2, law="exponential", energy_j=[3.0, 2.0, 1.0]
    )
    assert outcome.waited == pytest.approx(waits, rel=0.01)
    assert outcome.shares == pytest.approx([shares[0] + shares[1], shares[2], shares[3]], rel=0.01)
    assert outcome.energy_j_per_row == pytest.approx(outcome.shares @ [3.0, 2.0, 1.0])


def test_bursts_of_exact_length(compiled: SimpleNamespace) -> None:
    """Bursts of exact length have the mean rate they say."""
    arrivals = compiled.des.bursty([50.0, 10.0, 0.0], [1.0, 3.0, 2.0], exact=True)
    outcome = compiled.des.simulate([1e-9], [1], arrivals, rows=200_000, seed=8)
    assert arrivals.rate == pytest.approx(80 / 6)
    assert outcome.span_s == pytest.approx(200_000 * 6 / 80, rel=0.02)


# --- small things, both twins -----------------------------------------------------------------------------------------


def test_a_trace_by_hand(kernels: SimpleNamespace) -> None:
    """Two servers of one row: the third row waits for the first end, and the warm-up is left out."""
    outcome = kernels.des.simulate(
        [2.0, 5.0], [1, 1], kernels.des.trace([0.0, 0.5, 1.0, 9.0]), energy_j=[1.0, 4.0], in_turn=True, warm_up=1
    )
    assert outcome.latency_s.tolist() == [5.0, 3.0, 5.0]
    assert outcome.wait_s.tolist() == [0.0, 1.0, 0.0]
    assert outcome.group.tolist() == [1, 0, 1]
    assert outcome.rows.tolist() == outcome.batches.tolist() == [1, 2]
    assert outcome.energy_j.tolist() == [1.0, 8.0]
    assert outcome.busy_s.tolist() == [2.0, 10.0]
    assert outcome.span_s == 8.5
    assert outcome.shares.tolist() == [1 / 3, 2 / 3]
    assert outcome.energy_j_per_row == 3.0
    assert outcome.waited == 1 / 3
    assert outcome.mean_wait_s == 1 / 3
    assert outcome.mean_latency_s == 13 / 3
    assert [outcome.quantile(q) for q in (0.01, 0.33, 0.34, 1.0)] == [3.0, 3.0, 5.0, 5.0]
    assert outcome.histogram([1.0, 3.0, 4.0]).tolist() == [0, 1, 0, 2]


def test_rows_of_one_instant_share_a_batch_where_they_come_together(kernels: SimpleNamespace) -> None:
    """Three rows before two idle servers: apart, one each and the third behind; together, one batch."""
    tables, trace = [[10.0, 11.0, 12.0]], kernels.des.trace([0.0, 0.0, 0.0, 1.0])
    apart = kernels.des.simulate(tables, [2], trace, in_turn=True)
    assert apart.latency_s.tolist() == [10.0, 10.0, 21.0, 20.0]
    together = kernels.des.simulate(tables, [2], trace, in_turn=True, together=True)
    assert together.latency_s.tolist() == [12.0, 12.0, 12.0, 10.0]
    assert together.batches.tolist() == [2]


def test_batches_grow_behind_a_busy_server(kernels: SimpleNamespace) -> None:
    """One row runs, one is staged; the rest leaves as batches of what waits, at most three."""
    tables = [[10.0, 11.0, 12.0]]
    outcome = kernels.des.simulate(tables, [1], kernels.des.trace([0.0, 1, 2, 3, 4, 5, 6]), credits=2, in_turn=True)
    assert outcome.latency_s.tolist() == [10, 19, 30, 29, 28, 38, 37]
    assert outcome.batches.tolist() == [4]


def test_a_delay_lets_batches_fill(kernels: SimpleNamespace) -> None:
    """Two rows fill the batch at once; the last one goes alone when its time is up."""
    outcome = kernels.des.simulate([[1.0, 1.5]], [1], kernels.des.trace([0.0, 1.0, 10.0]), delay_s=4.0)
    assert outcome.wait_s.tolist() == [1.0, 0.0, 4.0]
    assert outcome.latency_s.tolist() == [2.5, 1.5, 5.0]


def test_quotas_are_those_of_the_router(kernels: SimpleNamespace) -> None:
    outcome = kernels.des.simulate(
        [1.0, 1.0, 1.0], [3, 0, 1], kernels.des.poisson(1.0), rows=1000, lanes=[0, 1, 2], shares=[3, 0, 1]
    )
    assert outcome.rows.tolist() == [750, 0, 250]


def test_the_same_arrivals_for_every_configuration(kernels: SimpleNamespace) -> None:
    """Arrivals have random numbers of their own: faster servers on the same trace are never slower for anyone."""
    slow, fast = (
        kernels.des.simulate([s], [2], kernels.des.poisson(1.0), rows=500, seed=4, law="normal", cv=[0.1], in_turn=True)
        for s in (1.5, 1.0)
    )
    assert slow.span_s == fast.span_s
    assert (slow.latency_s > fast.latency_s).all()


BAD: list[dict[str, Any]] = [
    {"service_s": []},
    {"service_s": [0.0]},
    {"service_s": [math.nan]},
    {"service_s": [1.0, 2.0]},
    {"counts": [0]},
    {"counts": [-1]},
    {"counts": [1.5]},
    {"counts": [1, 1]},
    {"rows": 0},
    {"rows": 5, "warm_up": 5},
    {"warm_up": -1},
    {"law": "uniform"},
    {"law": "normal"},
    {"cv": [0.1]},
    {"law": "normal", "cv": [-0.1]},
    {"law": "normal", "cv": [0.1, 0.1]},
    {"energy_j": [math.inf]},
    {"energy_j": [[1.0, 2.0]]},
    {"largest": [0]},
    {"largest": [2]},
    {"lanes": [-1]},
    {"lanes": [64]},
    {"lanes": [1]},
    {"lanes": [1], "shares": [0.0, 0.0]},
    {"shares": [1.0, 1.0]},
    {"shares": [-1.0]},
    {"credits": 0},
    {"credits": 9},
    {"delay_s": -1.0},
    {"delay_s": math.inf},
]


@pytest.mark.parametrize("change", BAD, ids=str)
def test_what_makes_no_sense_is_refused(kernels: SimpleNamespace, change: dict[str, Any]) -> None:
    good = {"service_s": [1.0], "counts": [1], "arrivals": kernels.des.poisson(0.5), "rows": 10}
    assert kernels.des.simulate(**good).rows.tolist() == [10]
    with pytest.raises(ValueError):
        kernels.des.simulate(**{**good, **change})


def test_arrivals_that_make_no_sense_are_refused(kernels: SimpleNamespace) -> None:
    for rate in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError):
            kernels.des.poisson(rate)
    nothing: list[float] = []
    for rates, stay_s in (
        (nothing, nothing),
        ([1.0], nothing),
        ([0.0], [1.0]),
        ([-1.0, 2.0], [1.0, 1.0]),
        ([1.0], [0.0]),
        ([1.0], [math.inf]),
    ):
        with pytest.raises(ValueError):
            kernels.des.bursty(rates, stay_s)
    for times in ([], [1.0, 0.5], [-1.0], [math.nan], [math.inf]):
        with pytest.raises(ValueError):
            kernels.des.trace(times)
    with pytest.raises(ValueError):
        kernels.des.simulate([1.0], [1], kernels.des.trace([0.0, 1.0]), rows=3)
    outcome = kernels.des.simulate([1.0], [1], kernels.des.trace([0.0, 1.0]))
    for q in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError):
            outcome.quantile(q)


def test_nothing_of_a_run_is_made_by_hand(compiled: SimpleNamespace) -> None:
    for made in (compiled.des.Arrivals, compiled.des.Outcome):
        with pytest.raises(TypeError):
            made()


def test_seven_thousand_servers(compiled: SimpleNamespace) -> None:
    outcome = compiled.des.simulate(
        [1.0, 2.0], [5000, 2000], compiled.des.poisson(5400.0), rows=300_000, law="exponential", in_turn=True
    )
    assert outcome.rows.sum() == 300_000
    assert outcome.waited < 0.01
