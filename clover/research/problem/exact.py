"""Every configuration of a few GPUs, evaluated: the optimum, proved, and a yardstick for everything faster.

**Independent on purpose.**  This module shares neither code nor method with the compiled kernels, so that each can
check the other.  Whole blocks of configurations are evaluated at once, as arrays [configurations, groups].

**Product form by an integral.**  With loads L_i = rate S_i of the c workers and e_j their elementary symmetric
polynomials, sum_j e_j (c - j)! is the integral of exp(-u) prod (u + L_i) over u > 0, and the same without one worker k
is that of exp(-u) prod (u + L_i) / (u + L_k).  The integrands are polynomials of degree c at most, so that
Gauss-Laguerre quadrature with c // 2 + 1 nodes is exact; every term is positive and nothing cancels.  The products
are sums of logarithms: one matrix product a block.

**Mean field by Newton.**  sum n_k x / (1 + x S_k) rises in x and is concave, so that Newton's steps from x = rate / c
come from below and never pass the root.

**Order.**  f asks for shares only, and shares are cheap.  So a block is sorted by f, what cannot beat the best found
is dropped, and the tail is evaluated from the top down until a configuration keeps the SLA.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from clover.errors import PlanError
from clover.research.problem.file import Counts, Floats, ProblemFile

BLOCK = 16_384
SLACK = 1e-9
"""What the tail may be above 1 - quantile, for rounding."""
MOST_WORKERS = 200
"""Workers up to which the quadrature's nodes are exact."""
_TAILS = 512
_TILINGS = 200_000


@dataclass(frozen=True)
class Shares:
    """How requests share out in each of some configurations [b]: the shares of those that find a worker idle
    (`idle` [b, groups]) and of those that wait (`busy`), the probability to wait, the rate at which waits end (1/s).
    Only those with `stable` set mean anything."""

    stable: NDArray[np.bool_]
    idle: Floats
    busy: Floats
    shares: Floats
    p_wait: Floats
    drain: Floats


@dataclass(frozen=True)
class Evaluation:
    """One configuration: seconds, joules a request with the idle ones, percent.  `why` says why it is not feasible."""

    feasible: bool
    f: float
    p95_s: float
    energy_j: float
    accuracy: float
    p_wait: float
    shares: Floats
    why: str = ""


@dataclass(frozen=True)
class Enumerated:
    """The best of all configurations: `counts` None if none is feasible."""

    counts: Counts | None
    f: float
    configurations: int
    complete: bool = True


# --- which configurations there are -----------------------------------------------------------------------------------


def slice_counts(problem: ProblemFile, limit: int = _TILINGS) -> Counts:
    """Return all slice counts [m, slices] that N fully partitioned GPUs can have.  Raises PlanError above `limit`."""
    table = problem.usable
    if not len(table):
        raise PlanError("no partition has a fitting variant for each of its slices")
    counted = np.zeros((1, table.shape[1]), dtype=np.int64)
    for _ in range(problem.n_gpus):
        if len(counted) * len(table) > 8 * limit:
            raise PlanError(f"more than {limit} ways to cut the GPUs: too many to go through")
        counted = np.unique((counted[:, None, :] + table[None, :, :]).reshape(-1, table.shape[1]), axis=0)
    if len(counted) > limit:
        raise PlanError(f"more than {limit} ways to cut the GPUs: too many to go through")
    return counted


def size(problem: ProblemFile, limit: int = _TILINGS) -> int:
    """Return how many configurations there are.  Raises PlanError if there are too many to count."""
    hosts = [len(groups) for groups in _hosts(problem)]
    total = 0
    for row in slice_counts(problem, limit).tolist():
        total += math.prod(math.comb(m + v - 1, v - 1) for m, v in zip(row, hosts, strict=True) if m)
    return total


def _hosts(problem: ProblemFile) -> list[Counts]:
    """Return the groups that fit each slice."""
    return [np.flatnonzero((problem.slice_of == s) & problem.fits) for s in range(len(problem.partition_slices))]


@lru_cache(maxsize=4096)
def _deals(workers: int, groups: int) -> Counts:
    """Return all ways to deal `workers` to `groups` [ways, groups]."""
    if groups == 1:
        return np.array([[workers]], dtype=np.int64)
    parts = []
    for first in range(workers + 1):
        rest = _deals(workers - first, groups - 1)
        parts.append(np.column_stack([np.full(len(rest), first, dtype=np.int64), rest]))
    return np.concatenate(parts)


def configurations(problem: ProblemFile, block: int = BLOCK) -> Iterator[Counts]:
    """Yield all configurations, in blocks [b, groups] of about `block`."""
    hosts = _hosts(problem)
    waiting: list[Counts] = []
    held = 0
    for row in slice_counts(problem).tolist():
        deals = [(hosts[s], _deals(m, len(hosts[s]))) for s, m in enumerate(row) if m]
        sizes = tuple(len(ways) for _, ways in deals)
        total = math.prod(sizes)
        for start in range(0, total, block):
            at = np.unravel_index(np.arange(start, min(start + block, total)), sizes)
            part = np.zeros((len(at[0]), len(problem.groups)), dtype=np.int64)
            for (groups, ways), chosen in zip(deals, at, strict=True):
                part[:, groups] = ways[chosen]
            waiting.append(part)
            held += len(part)
            if held >= block:
                yield np.concatenate(waiting)
                waiting, held = [], 0
    if waiting:
        yield np.concatenate(waiting)


def homogeneous(problem: ProblemFile) -> Counts:
    """Return the configurations [h, groups] with all GPUs cut alike and one variant everywhere."""
    rows = []
    for row in problem.usable:
        for variant in dict.fromkeys(group.variant for group in problem.groups):
            counts = np.zeros(len(problem.groups), dtype=np.int64)
            for at, group in enumerate(problem.groups):
                if group.variant == variant and group.fits:
                    counts[at] = row[problem.slice_of[at]] * problem.n_gpus
            if counts.sum() == row.sum() * problem.n_gpus:
                rows.append(counts)
    return np.array(rows, dtype=np.int64).reshape(-1, len(problem.groups))


def tiles(problem: ProblemFile, counts: Counts) -> bool:
    """Return whether the slices that `counts` [groups] uses can be cut from the N GPUs, by search: first the GPUs that
    can be cut in only one way, then the others, remembering what was tried."""
    need = np.zeros(len(problem.partition_slices), dtype=np.int64)
    np.add.at(need, problem.slice_of, counts)
    rows = [tuple(int(v) for v in row) for row in problem.usable]
    tried: set[tuple[int, int, tuple[int, ...]]] = set()

    def search(at: int, gpus: int, left: tuple[int, ...]) -> bool:
        if at == len(rows):
            return gpus == 0 and not any(left)
        if (at, gpus, left) in tried:
            return False
        tried.add((at, gpus, left))
        row = rows[at]
        most = min([gpus, *(have // wanted for have, wanted in zip(left, row, strict=True) if wanted)])
        return any(
            search(at + 1, gpus - k, tuple(have - k * wanted for have, wanted in zip(left, row, strict=True)))
            for k in range(most, -1, -1)
        )

    return search(0, problem.n_gpus, tuple(int(v) for v in need))


# --- the queueing model -----------------------------------------------------------------------------------------------


def shares(problem: ProblemFile, counts: Counts) -> Shares:
    """Return how requests share out in each of the configurations [b, groups]."""
    rate, service = problem.arrival_rate, problem.service_s
    n = counts.astype(np.float64)
    capacity = n @ (1.0 / service)
    stable = capacity > rate
    capacity = np.where(stable, capacity, 2.0 * rate)  # what is overloaded gets figures, and no meaning
    busy = n / service / capacity[:, None]
    drain = 2.0 * (capacity - rate) / (1.0 + busy @ problem.cv**2)
    if problem.model == "mf":
        idle, p_wait = mean_field(rate, service, n, stable), erlang_c(counts.sum(axis=1), rate / capacity)
        return Shares(stable, idle, busy, idle, p_wait, drain)
    idle, p_wait = _product_form(rate * service, counts, rate / capacity)
    return Shares(stable, idle, busy, (1.0 - p_wait)[:, None] * idle + p_wait[:, None] * busy, p_wait, drain)


def mean_field(rate: float, service: Floats, n: Floats, stable: NDArray[np.bool_]) -> Floats:
    x = rate / n.sum(axis=1)
    left = np.flatnonzero(stable)
    for _ in range(200):
        part = 1.0 / (1.0 + x[left, None] * service)
        passed = n[left] * part
        missing = rate - x[left] * passed.sum(axis=1)
        step = missing / (passed * part).sum(axis=1)
        x[left] += step
        left = left[step > 1e-15 * x[left]]
        if not len(left):
            break
    taken = n * (x[:, None] / (1.0 + x[:, None] * service))
    return np.asarray(taken / taken.sum(axis=1)[:, None])


def erlang_c(workers: Counts, rho: Floats) -> Floats:
    load = rho * workers
    inverse = np.ones(len(workers))
    for j in range(1, int(workers.max(initial=0)) + 1):
        with np.errstate(over="ignore"):  # an infinite 1/B is a probability of 0
            inverse = np.where(j <= workers, 1.0 + j / load * inverse, inverse)
    return np.asarray(1.0 / (1.0 + (1.0 - rho) * (inverse - 1.0)))


@lru_cache(maxsize=256)
def _nodes(workers: int) -> tuple[Floats, Floats]:
    if workers > MOST_WORKERS:
        raise PlanError(f"the product form is evaluated exactly for at most {MOST_WORKERS} workers, not {workers}")
    nodes, weights = np.polynomial.laguerre.laggauss(workers // 2 + 1)
    return nodes, np.log(np.maximum(weights, 1e-300))


def _product_form(loads: Floats, counts: Counts, rho: Floats) -> tuple[Floats, Floats]:
    nodes, weights = _nodes(int(counts.sum(axis=1).max(initial=1)))
    n = counts.astype(np.float64)
    logs = n @ np.log(nodes[None, :] + loads[:, None]) + weights  # [b, nodes]
    top = logs.max(axis=1)
    values = np.exp(logs - top[:, None])
    taken = n * (values @ (1.0 / (nodes[:, None] + loads[None, :])))
    full = np.exp(n @ np.log(loads) - top)  # all workers busy: e_c
    waits = full / (1.0 - rho)
    return np.asarray(taken / taken.sum(axis=1)[:, None]), np.asarray(waits / (values.sum(axis=1) - full + waits))


def _erfcx(u: float) -> float:
    """Return exp(u^2) erfc(u) for u >= 0."""
    if u < 20.0:
        return math.exp(u * u) * math.erfc(u)
    term = total = 1.0
    for i in range(1, 9):
        term *= -(2 * i - 1) / (2.0 * u * u)
        total += term
    return total / (u * math.sqrt(math.pi))


def late_service(mean: float, cv: float, t: float) -> float:
    """Return p(service > t)."""
    if cv == 0.0:
        return 1.0 if t < mean else 0.0
    return 0.5 * math.erfc((t - mean) / (cv * mean) / math.sqrt(2.0))


def late_after_wait(mean: float, cv: float, t: float, drain: float) -> float:
    """Return p(wait + service > t), the wait exponential with that rate."""
    if cv == 0.0:
        return 1.0 if t < mean else math.exp(-drain * (t - mean))
    s = cv * mean
    z = (t - mean) / s
    w = z - drain * s
    if w >= 0.0:
        part = math.exp(0.5 * (drain * s) ** 2 - drain * (t - mean)) * 0.5 * math.erfc(-w / math.sqrt(2.0))
    else:
        part = math.exp(-0.5 * z * z) * 0.5 * _erfcx(-w / math.sqrt(2.0))
    return 0.5 * math.erfc(z / math.sqrt(2.0)) + part


def tail(problem: ProblemFile, found: Shares, t: float) -> Floats:
    """Return p(latency > t seconds) in each configuration of `found`."""
    direct = np.array([late_service(m, v, t) for m, v in zip(problem.service_s, problem.cv, strict=True)])
    waited = np.zeros_like(found.busy)
    for row, at in zip(*np.nonzero(found.busy), strict=True):
        waited[row, at] = late_after_wait(
            float(problem.service_s[at]), float(problem.cv[at]), t, float(found.drain[row])
        )
    return np.asarray((1.0 - found.p_wait) * (found.idle @ direct) + found.p_wait * (found.busy * waited).sum(axis=1))


def _rows(found: Shares, rows: NDArray[np.intp]) -> Shares:
    return Shares(*(getattr(found, name)[rows] for name in Shares.__dataclass_fields__))


def evaluate(problem: ProblemFile, counts: Counts) -> Evaluation:
    """Evaluate one configuration [groups], with all that makes it feasible or not."""
    nothing = np.zeros(len(problem.groups))
    why = ""
    if (counts < 0).any() or not tiles(problem, counts):
        why = "its slices do not tile the GPUs"
    elif counts[~problem.fits].any():
        why = "a variant does not fit its slice"
    if counts.sum() == 0 or (counts < 0).any():
        return Evaluation(False, -math.inf, math.inf, math.inf, 0.0, 1.0, nothing, why)
    evaluated = shares(problem, counts[None, :])
    if not evaluated.stable[0]:
        return Evaluation(False, -math.inf, math.inf, math.inf, 0.0, 1.0, nothing, why or "overloaded")
    share = evaluated.shares[0]
    energy_j, accuracy = problem.idle_j + float(share @ problem.energy_j), float(share @ problem.accuracy)
    if not why and tail(problem, evaluated, problem.sla_s)[0] > 1.0 - problem.quantile + SLACK:
        why = "it misses the SLA"
    return Evaluation(
        feasible=not why,
        f=problem.objective(energy_j, accuracy),
        p95_s=_quantile(problem, evaluated),
        energy_j=energy_j,
        accuracy=accuracy,
        p_wait=float(evaluated.p_wait[0]),
        shares=share,
        why=why,
    )


def _quantile(problem: ProblemFile, found: Shares) -> float:
    low, high = 0.0, float(problem.service_s.max())
    while tail(problem, found, high)[0] > 1.0 - problem.quantile:
        low, high = high, 2.0 * high
    while (middle := 0.5 * (low + high)) not in (low, high) and high - low > 1e-13 * high:
        if tail(problem, found, middle)[0] > 1.0 - problem.quantile:
            low = middle
        else:
            high = middle
    return high


# --- the search -------------------------------------------------------------------------------------------------------


def best(
    problem: ProblemFile, counts: Counts, floor: float = -math.inf, skip: Set[tuple[int, ...]] = frozenset()
) -> tuple[Counts | None, float]:
    """Return the best feasible one of the configurations [b, groups] that are not to be skipped, if it is better than
    `floor`, and its f."""
    if not len(counts):
        return None, floor
    answers = shares(problem, counts)
    f = np.where(answers.stable, problem.offset + answers.shares @ problem.gains, -math.inf)
    order = np.argsort(-f, kind="stable")
    order = order[: np.count_nonzero(f > floor)]
    step = 16
    while len(order):
        rows, order, step = order[:step], order[step:], min(4 * step, _TAILS)
        good = tail(problem, _rows(answers, rows), problem.sla_s) <= 1.0 - problem.quantile + SLACK
        for chosen in rows[good].tolist():
            if not skip or tuple(counts[chosen].tolist()) not in skip:
                return counts[chosen], float(f[chosen])
    return None, floor


def enumerate_all(
    problem: ProblemFile,
    stop: Callable[[], bool] = lambda: False,
    floor: float = -math.inf,
    skip: Set[tuple[int, ...]] = frozenset(),
) -> Enumerated:
    """Return the best of all configurations that are not to be skipped, if it is better than f = `floor`; incomplete
    if `stop` ended it."""
    chosen, f, seen = None, floor, 0
    for block in configurations(problem):
        if stop():
            return Enumerated(chosen, f, seen, complete=False)
        better, f = best(problem, block, f, skip)
        chosen = chosen if better is None else better
        seen += len(block)
    return Enumerated(chosen, f, seen)
