"""The enumerator: which configurations there are, the queueing model against plain sums and a Markov chain, optima."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.errors import PlanError
from clover.research.problem import exact
from clover.research.problem.file import ProblemFile, parse
from tests.reference.problems import PARTITIONS, of_plain, plain_problem, random_counts, random_problem

pytestmark = pytest.mark.slow

SAMPLES = sorted((Path(__file__).resolve().parents[5] / "shared" / "problems").glob("*.json"))
SMALL = [path for path in SAMPLES if json.loads(path.read_text())["n_gpus"] <= 3]


# --- which configurations there are ---


def test_one_gpu_has_its_partitions() -> None:
    assert sorted(map(tuple, exact.slice_counts(random_problem(1, 1)).tolist())) == sorted(PARTITIONS)


@pytest.mark.parametrize(("variants", "gpus"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)])
def test_configurations_are_all_there_and_each_once(variants: int, gpus: int) -> None:
    plain = plain_problem(5, gpus, variants=variants)
    for group in plain["groups"]:
        group["fits"] = True
    problem = of_plain(plain)
    found = np.concatenate(list(exact.configurations(problem, block=1000)))
    wanted = set()
    for rows in itertools.combinations_with_replacement(PARTITIONS, gpus):
        deals = [
            [deal for deal in itertools.product(range(sum(column) + 1), repeat=variants) if sum(deal) == sum(column)]
            for column in zip(*rows, strict=True)
        ]
        wanted |= {tuple(np.array(parts).T.ravel().tolist()) for parts in itertools.product(*deals)}
    assert set(map(tuple, found.tolist())) == wanted
    assert len(found) == len(wanted) == exact.size(problem)


def test_the_published_number_of_configurations() -> None:
    """Four variants that fit everywhere: 1,282 on one A100, 107,825 on two."""
    for gpus, number in ((1, 1282), (2, 107_825)):
        plain = plain_problem(5, gpus, variants=4)
        for group in plain["groups"]:
            group["fits"] = True
        assert exact.size(of_plain(plain)) == number


def test_too_many_are_refused() -> None:
    with pytest.raises(PlanError, match="too many"):
        exact.slice_counts(random_problem(1, 100), limit=1000)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), gpus=st.integers(1, 3))
def test_tiling_by_search_agrees_with_the_list(seed: int, gpus: int) -> None:
    problem, draw = random_problem(seed, gpus), random.Random(seed)
    counts = random_counts(problem, draw)
    assert exact.tiles(problem, counts)
    counts[draw.choice(np.flatnonzero(counts).tolist())] -= 1
    counts[draw.randrange(len(counts))] += 1
    need = np.bincount(problem.slice_of, weights=counts, minlength=5).astype(int).tolist()
    assert exact.tiles(problem, counts) == (need in exact.slice_counts(problem).tolist())


def test_alike_configurations() -> None:
    problem = random_problem(7, 3)
    found = exact.homogeneous(problem)
    assert len(found) <= 14 * 3
    for counts in found:
        assert exact.tiles(problem, counts)
        assert not counts[~problem.fits].any()
        assert len({problem.groups[at].variant for at in np.flatnonzero(counts)}) == 1
        assert (counts % 3 == 0).all()


# --- the queueing model ---


def plain_product_form(problem: ProblemFile, counts: list[int]) -> tuple[list[float], float]:
    """Shares and P_wait, with polynomials multiplied out one worker at a time."""
    loads = [problem.arrival_rate * float(s) for s in problem.service_s]
    workers = [at for at, n in enumerate(counts) for _ in range(n)]
    c = len(workers)
    rho = problem.arrival_rate / sum(1.0 / float(problem.service_s[at]) for at in workers)

    def polynomial(chosen: list[int]) -> list[float]:
        found = [1.0]
        for at in chosen:
            found = [a + loads[at] * b for a, b in zip([*found, 0.0], [0.0, *found], strict=True)]
        return found

    e = polynomial(workers)
    w = [e[j] * math.factorial(c - j) / math.factorial(c) for j in range(c + 1)]
    z = sum(w[:c]) + w[c] / (1.0 - rho)
    p_wait = w[c] / (1.0 - rho) / z
    weights = []
    for at, n in enumerate(counts):
        if not n:
            weights.append(0.0)
            continue
        rest = list(workers)
        rest.remove(at)
        part = polynomial(rest)
        weights.append(n * sum(part[j] * math.factorial(c - j) / math.factorial(c) / (c - j) for j in range(c)))
    idle = [weight / sum(weights) for weight in weights]
    mu = problem.arrival_rate / rho
    busy = [n / float(s) / mu for n, s in zip(counts, problem.service_s, strict=True)]
    return [(1.0 - p_wait) * i + p_wait * b for i, b in zip(idle, busy, strict=True)], p_wait


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), gpus=st.integers(1, 3))
def test_the_integral_is_the_product_form(seed: int, gpus: int) -> None:
    problem = random_problem(seed, gpus, model="pf")
    counts = random_counts(problem, random.Random(seed))
    found = exact.shares(problem, counts[None, :])
    if not found.stable[0]:
        return
    shares, p_wait = plain_product_form(problem, counts.tolist())
    assert found.shares[0] == pytest.approx(shares, rel=1e-9, abs=1e-13)
    assert found.p_wait[0] == pytest.approx(p_wait, rel=1e-9)


def test_the_product_form_is_exact_for_exponential_service() -> None:
    """Three different workers as a Markov chain: arrivals go to any idle one with equal chances."""
    problem = of_plain(plain_problem(3, 1, model="pf") | {"arrival_rate": 40.0})
    counts = problem.counts({"v0@1g": 1, "v1@2g": 1, "v1@4g": 1})
    rates = [1.0 / float(problem.service_s[at]) for at in np.flatnonzero(counts)]
    rate, mu = problem.arrival_rate, sum(rates)
    assert rate < mu
    states = list(itertools.product((0, 1), repeat=3))
    queue = 400
    size = len(states) + queue
    flow = np.zeros((size, size))
    for at, state in enumerate(states):
        idle = [k for k in range(3) if not state[k]]
        for k in idle:
            flow[at, states.index(tuple(1 if j == k else state[j] for j in range(3)))] += rate / len(idle)
        for k in range(3):
            if state[k]:
                flow[at, states.index(tuple(0 if j == k else state[j] for j in range(3)))] += rates[k]
    full = states.index((1, 1, 1))
    chain = [full, *range(len(states), size)]
    for here, there in itertools.pairwise(chain):
        flow[here, there] += rate
        flow[there, here] += mu
    generator = flow.T - np.diag(flow.sum(axis=1))
    generator[-1] = 1.0
    chance = np.linalg.solve(generator, np.eye(size)[-1])
    waits = chance[chain].sum()
    idle_shares = [
        sum(chance[at] / (3 - sum(state)) for at, state in enumerate(states) if not state[k]) for k in range(3)
    ]
    found = exact.shares(problem, counts[None, :])
    assert found.p_wait[0] == pytest.approx(waits, rel=1e-6)
    shares = [part + waits * r / mu for part, r in zip(idle_shares, rates, strict=True)]
    assert found.shares[0][np.flatnonzero(counts)] == pytest.approx(shares, rel=1e-6)


def test_erlang_c_has_its_known_values() -> None:
    """M/M/1 waits with probability rho; M/M/2 with 2 rho^2 / (1 + rho)."""
    for rho in (0.1, 0.5, 0.9, 0.999):
        found = exact.erlang_c(np.array([1, 2]), np.array([rho, rho]))
        assert found == pytest.approx([rho, 2 * rho**2 / (1 + rho)], rel=1e-12)
    assert exact.erlang_c(np.array([7000]), np.array([0.5]))[0] == pytest.approx(0.0, abs=1e-300)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), gpus=st.integers(1, 30))
def test_the_mean_field_adds_up(seed: int, gpus: int) -> None:
    problem = random_problem(seed, gpus)
    counts = random_counts(problem, random.Random(seed))
    found = exact.shares(problem, counts[None, :])
    if not found.stable[0]:
        return
    shares, n = found.shares[0], counts.astype(float)
    assert shares.sum() == pytest.approx(1.0, abs=1e-12)
    used = np.flatnonzero(n)
    busy = shares[used] * problem.arrival_rate * problem.service_s[used] / n[used]
    x = busy / (1.0 - busy) / problem.service_s[used]
    assert x == pytest.approx(np.full(len(used), x[0]), rel=1e-7)


def test_edges_of_the_tail() -> None:
    """Constant service: a request is late for sure, or only by its wait.  Where service varies next to nothing the
    figures are those of constant service; where it varies, an integral over it."""
    assert exact.late_service(0.02, 0.0, 0.02) == 0.0
    assert exact.late_service(0.02, 0.0, 0.0199) == 1.0
    assert exact.late_after_wait(0.02, 0.0, 0.01, 5.0) == 1.0
    assert exact.late_after_wait(0.02, 0.0, 0.05, 5.0) == pytest.approx(math.exp(-0.15))
    assert exact.late_after_wait(0.02, 1e-7, 0.05, 5.0) == pytest.approx(math.exp(-0.15), rel=1e-6)
    assert exact.late_after_wait(0.02, 0.3, 0.05, 1e-12) == pytest.approx(1.0)
    for mean, cv, t, drain in ((0.02, 0.3, 0.05, 5.0), (0.05, 0.3, 0.03, 400.0), (0.02, 0.25, 0.0202, 3000.0)):
        z = np.linspace(-9.0, 9.0, 200_001)
        service = mean + cv * mean * z
        late = np.where(service > t, 1.0, np.exp(-drain * np.maximum(t - service, 0.0)))
        wanted = float((late * np.exp(-0.5 * z * z)).sum()) * (z[1] - z[0]) / math.sqrt(2.0 * math.pi)
        assert exact.late_after_wait(mean, cv, t, drain) == pytest.approx(wanted, rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), gpus=st.integers(1, 3), model=st.sampled_from(["pf", "mf"]))
def test_an_evaluation_is_whole(seed: int, gpus: int, model: str) -> None:
    problem = random_problem(seed, gpus, model=model)
    counts = random_counts(problem, random.Random(seed))
    found = exact.evaluate(problem, counts)
    if found.why == "overloaded":
        assert not found.feasible
        return
    late = exact.tail(problem, exact.shares(problem, counts[None, :]), found.p95_s)
    if problem.cv[counts > 0].min() > 0.0:
        assert late[0] == pytest.approx(0.05, abs=1e-6)
    assert found.feasible == (found.why == "")
    if abs(found.p95_s - problem.sla_s) > 1e-7:
        assert found.feasible == (found.p95_s <= problem.sla_s)
    chosen, f = exact.best(problem, counts[None, :])
    assert (chosen is not None) == found.feasible
    if found.feasible:
        assert f == pytest.approx(found.f, abs=1e-12)


# --- optima ---


@pytest.mark.parametrize(("seed", "model"), [(11, "pf"), (12, "mf"), (13, "mf"), (14, "pf")])
def test_the_best_of_one_gpu_is_the_best_one_by_one(seed: int, model: str) -> None:
    problem = random_problem(seed, 1, model=model)
    found = exact.enumerate_all(problem)
    everything = np.concatenate(list(exact.configurations(problem)))
    single = [exact.evaluate(problem, counts) for counts in everything]
    best = max((one.f for one in single if one.feasible), default=-math.inf)
    assert found.configurations == len(everything)
    assert found.f == pytest.approx(best, abs=1e-12)
    assert exact.enumerate_all(problem, floor=best + 1e-9).counts is None


def test_a_stopped_enumeration_says_so() -> None:
    assert not exact.enumerate_all(random_problem(11, 2), stop=lambda: True).complete


@pytest.mark.skipif(not SMALL, reason="the solved samples are not here")
@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_samples_have_their_proven_optimum(path: Path) -> None:
    best: dict[str, Any] = json.loads(path.read_text())["best_known"]
    problem = parse(path.read_bytes())
    found = exact.enumerate_all(problem)
    assert found.counts is not None
    assert found.complete
    assert found.f == pytest.approx(best["f"], abs=1e-9)
    assert problem.named(found.counts) == best["config"]
    whole = exact.evaluate(problem, found.counts)
    assert whole.feasible
    assert whole.p95_s * 1e3 == pytest.approx(best["p95_ms"], rel=1e-7)
    assert whole.energy_j == pytest.approx(best["energy_j_per_request"], rel=1e-9)
    assert whole.accuracy == pytest.approx(best["accuracy"], rel=1e-9)


@pytest.mark.parametrize("model", ["pf", "mf"])
def test_what_was_tried_is_skipped(model: str) -> None:
    """One after the other, the best of the rest: ever lower, none twice."""
    problem = random_problem(2, 1, model=model)
    tried: set[tuple[int, ...]] = set()
    last = math.inf
    for _ in range(5):
        found = exact.enumerate_all(problem, skip=tried)
        assert found.counts is not None
        assert found.f <= last
        tried.add(tuple(found.counts.tolist()))
        last = found.f
    assert len(tried) == 5
    assert exact.enumerate_all(problem, floor=last, skip=tried).counts is None
