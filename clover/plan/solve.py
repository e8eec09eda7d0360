"""The way to an answer: what all GPUs alike can do, annealing from there, and a proof or a bound.

 1. *Scan*: all GPUs cut alike with one variant everywhere, a few dozen configurations.
 2. *Anneal*: the compiled kernel, with restarts, within a tenth of the time; left out where enumeration is faster.
 3. *Enumerate*, where there are few enough configurations for the time: the answer is then the optimum.
 4. *Bound*, elsewhere: what no configuration exceeds.  Its integer programs meet configurations too; where a gap is
    left, the kernel starts again, from the best of these if there are any.

Every answer is evaluated once more, in full, before it is given.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

import numpy as np

from clover._native import anneal, queueing
from clover.errors import PlanError
from clover.planning import exact
from clover.planning.bound import Bound, bound
from clover.planning.problem_file import Counts, Problem
from clover.types import Record

ANNEAL_PART = 0.1
ANNEAL_MOST_S = 3.0
"""Seconds of annealing before the bound: a part of the time, and no more than this."""
PER_SECOND = 250_000
"""Configurations that one core enumerates a second, cautiously."""
_CLOSED = 1e-9
_ROUNDING = 1e-12
"""By which others' f of the same configuration may differ."""
_RESTARTS = 8
_RESTART_S = 0.3
_STARTS = 3
_TILINGS = 20_000
"""Ways to cut the GPUs up to which configurations are counted."""


class Answer(Record, frozen=True, kw_only=True):
    """The answer as it is written.  `bound` is null where there is none; `gap` is the distance to it, as
    problem files define gaps; `proof` says what the bound rests on."""

    config: dict[str, int]
    f: float
    p95_ms: float
    accuracy: float
    energy_j_per_request: float
    bound: float | None
    solver: str
    evaluations: int
    seconds: float
    gap: float | None
    proof: str
    shares: dict[str, float]


class Infeasible(PlanError):
    """No configuration meets the constraints, or none was found; the message says which."""


def kernel_problem(problem: Problem, module: ModuleType = anneal) -> Any:
    """`problem` as the kernel (or its twin, `module`) takes it."""
    return module.Problem(
        problem.n_gpus,
        problem.arrival_rate,
        problem.service_s,
        problem.cv,
        problem.energy_j,
        problem.accuracy,
        problem.fits,
        problem.slice_of,
        problem.table,
        problem.model,
        problem.sla_s,
        problem.quantile,
        problem.lam,
        problem.carbon_intensity,
        problem.ci_base,
        problem.idle_w_per_gpu,
        problem.base.energy_j_per_request,
        problem.base.accuracy,
    )


class _Search:
    """The best found so far, and what it took."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem, self.seed = problem, seed
        self.kernel = kernel_problem(problem)
        self.counts: Counts | None = None
        self.f = -math.inf
        self.solver = ""
        self.evaluations = 0

    def take(self, counts: Counts, solver: str) -> None:
        """Keep a configuration if it is feasible and better."""
        self.evaluations += 1
        feasible, f = self.kernel.score(counts)
        if feasible and f > self.f:
            self.counts, self.f, self.solver = counts, f, solver

    def scan(self) -> None:
        """All GPUs cut alike, one variant."""
        for counts in exact.homogeneous(self.problem):
            self.take(counts, "homogeneous scan")

    def anneal(self, seconds: float, start: Counts | None = None) -> None:
        """The kernel, for so long."""
        if seconds <= 0.0:
            return
        restarts = max(1, min(_RESTARTS, round(seconds / _RESTART_S)))
        found = anneal.solve(self.kernel, self.seed, seconds, start=start, restarts=restarts)
        self.seed += 1
        self.evaluations += found.evaluations
        if found.feasible:
            self.take(found.counts, "annealing")


def solve(
    problem: Problem,
    *,
    seed: int = 0,
    time_limit_s: float = 20.0,
    highs: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> Answer:
    """The best configuration found, with a bound.  Raises Infeasible with the reason where there is none."""
    began = clock()
    _impossible(problem)
    search = _Search(problem, seed)
    search.scan()
    annealing_s = min(ANNEAL_PART * time_limit_s, ANNEAL_MOST_S)
    size = _size(problem)
    if size > PER_SECOND * annealing_s:
        search.anneal(annealing_s)

    def left() -> float:
        return began + time_limit_s - clock()

    proved = _enumerate(search, left(), clock) if size <= PER_SECOND * left() else None
    if proved is None:
        proved = _bound(search, left, highs)
    if search.counts is None:
        raise Infeasible(
            f"no configuration keeps the SLA of {problem.sla_ms:g} ms (proved by {proved.method})"
            if proved.value == -math.inf
            else f"no feasible configuration was found in {clock() - began:.1f} s, and none was proved impossible: "
            "give it more time, or relax sla_ms or arrival_rate"
        )
    return _answer(search, proved, clock() - began)


def _answer(search: _Search, proved: Bound, seconds: float) -> Answer:
    problem, counts = search.problem, search.counts
    assert counts is not None
    model: Literal["pf", "mf"] = problem.model
    _, shares, dynamic_j, accuracy, p95_s, _ = queueing.evaluate(
        problem.service_s,
        problem.cv,
        problem.energy_j,
        problem.accuracy,
        counts,
        problem.arrival_rate,
        model,
        problem.quantile,
    )
    value = max(proved.value, search.f) + _ROUNDING
    return Answer(
        config=problem.named(counts),
        f=search.f,
        p95_ms=p95_s * 1e3,
        accuracy=accuracy,
        energy_j_per_request=dynamic_j + problem.idle_j,
        bound=value,
        solver=search.solver,
        evaluations=search.evaluations,
        seconds=seconds,
        gap=(value - search.f) / problem.scale(search.f),
        proof=proved.method,
        shares={g.name: float(s) for g, s, n in zip(problem.groups, shares, counts, strict=True) if n},
    )


def forced(
    problem: Problem, *, seed: int, cpu_s: float = 0.0, evaluations: int = 0, restarts: int = 1
) -> tuple[Counts, float]:
    """The annealer alone: its configuration and f (minus infinity where it found nothing feasible).

    It gets `cpu_s` seconds of CPU time, so that it is not measured to find less where others keep the machine busy.
    """
    kernel = kernel_problem(problem)
    found = anneal.solve(kernel, seed, cpu_s, evaluations=evaluations, restarts=restarts, cpu_time=True)
    return found.counts, found.f if found.feasible else -math.inf


def _impossible(problem: Problem) -> None:
    """Raise Infeasible where a look is enough to say so."""
    if not len(problem.usable):
        raise Infeasible("no partition has, for each of its slices, a variant that fits")
    fastest = np.zeros(len(problem.partition_slices))
    np.maximum.at(fastest, problem.slice_of[problem.fits], 1.0 / problem.service_s[problem.fits])
    most = problem.n_gpus * float((problem.usable @ fastest).max())
    if most <= problem.arrival_rate:
        raise Infeasible(
            f"overloaded: {problem.n_gpus} GPUs serve at most {most:.6g} requests/s, "
            f"and {problem.arrival_rate:.6g} come"
        )


def _size(problem: Problem) -> float:
    """How many configurations there are; infinity where there are too many to tell."""
    try:
        return exact.size(problem, _TILINGS)
    except PlanError:
        return math.inf


def _enumerate(search: _Search, seconds: float, clock: Callable[[], float]) -> Bound | None:
    """The optimum, by going through all configurations; None where the time did not suffice."""
    end = clock() + seconds
    found = exact.enumerate_all(search.problem, lambda: clock() > end, search.f + _CLOSED)
    search.evaluations += found.configurations
    if found.counts is not None:
        search.take(found.counts, "enumeration")
    if not found.complete:
        return None
    return Bound(search.f, f"enumeration of all {found.configurations} configurations", 0)


def _bound(search: _Search, left: Callable[[], float], highs: bool) -> Bound:
    found = bound(search.problem, incumbent=search.f, stop=lambda: left() <= 0.0, highs=highs)
    for counts in found.starts[-_STARTS:]:
        search.take(counts, "integer program")
    if found.value - search.f > _CLOSED:
        search.anneal(min(left(), ANNEAL_MOST_S), found.starts[-1] if found.starts else search.counts)
    return found
