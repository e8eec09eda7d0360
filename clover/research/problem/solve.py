"""Solve a problem file: what all GPUs alike can do, annealing from there, and a proof or a bound.

 1. *Scan*: all GPUs cut alike with one variant everywhere, a few dozen configurations.
 2. *Anneal*: the compiled kernel, with restarts, within a tenth of the time; left out if enumeration is faster.
 3. *Enumerate*, if there are few enough configurations for the time: the answer is then the optimum.
 4. *Bound*, elsewhere: what no configuration exceeds.  Its integer programs meet configurations too; if a gap is
    left, the kernel starts again, from the best of these if there are any.
 5. *Verify*: the answer is played by the simulator (`clover.research.problem.verify`).  Under `strict` one that is
    rejected gives way to the next best that is accepted.

**The next best.**  If the simulation missed the SLA, the model is taken to be off by the same factor nearby: the
search is asked for a model quantile as much lower.  If only model and simulation disagree, for anything else that
the model calls feasible.  Enumeration skips what was tried; the kernel cannot skip, and has its SLA set below the
quantile of what was rejected.  Once something is accepted, what was met on the way and is better by the model is
verified too, and the best accepted is kept.  If the first few are all rejected the model may be off for all of
their kind; then it is the turn of what the search met elsewhere, such as all GPUs alike.  The bound stays the model's:
it is above all.

Every answer is evaluated once more, in full, before it is given.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Literal

import msgspec
import numpy as np

from clover._native import anneal, queueing
from clover.errors import PlanError
from clover.research.problem import exact
from clover.research.problem.bound import Bound, bound
from clover.research.problem.file import Counts, ProblemFile
from clover.research.problem.verify import SimulationVerdict, verify
from clover.types import Record

Verification = Literal["report", "strict", "off"]
"""What is done with a simulation of the answer: report it, replace a rejected answer too, or do not simulate."""

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
VERIFY_PART = 0.1
VERIFY_MOST_S = 1.5
"""Seconds kept back from the search for the verification: a part of the time, and no more than this."""
STRICT_PART = 0.4
"""The part that `strict` keeps back, which may have to verify many."""
_ATTEMPTS = 12
"""Configurations that `strict` verifies at most."""
_NEAR = 4
"""Neighbours of the best that it verifies before it looks elsewhere."""
_TIGHTER = 0.002
"""By which an SLA for the next best lies below what the last one calls for."""
_AGAIN_S = 0.5
"""Seconds of annealing for each."""
_UNPLAYED = 0.9
"""What it is tightened to, of the model's quantile, if the last one was too near its capacity to be simulated."""


class Solution(Record, frozen=True, kw_only=True):
    """The answer as it is written.  `bound` is null if there is none; `gap` is the distance to it, as
    problem files define gaps; `proof` says what the bound rests on.

    f, p95, energy, accuracy and shares are the model's.  `verified` says whether the simulation accepted the answer
    (null: it was not asked).  The `verified_` figures are the simulation's, null if it could not run.  `rejected`
    counts the configurations that it did not accept, the answer included; the best of them has f = `rejected_f`.  `why`
    says what was wrong with the answer, or else with the best configuration that it replaces."""

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
    verified: bool | None
    verified_p95_ms: float | None
    verified_p95_half_width_ms: float | None
    verified_f: float | None
    verified_requests: int
    rejected: int
    rejected_f: float | None
    why: str


class Infeasible(PlanError):
    """No configuration meets the constraints, or none was found; the message says which."""


def kernel_problem(problem: ProblemFile, module: ModuleType = anneal) -> Any:
    """Return `problem` as the kernel (or its twin, `module`) takes it."""
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


@dataclass(frozen=True)
class _Choice:
    """A configuration, and what the simulation says of it and of those it stands in for."""

    counts: Counts
    f: float
    solver: str
    found: SimulationVerdict | None = None
    rejected: int = 0
    rejected_f: float | None = None
    why: str = ""


class _Search:
    """The best found so far, and what it took."""

    def __init__(self, problem: ProblemFile, seed: int) -> None:
        self.problem, self.seed = problem, seed
        self.kernel = kernel_problem(problem)
        self.counts: Counts | None = None
        self.f = -math.inf
        self.solver = ""
        self.evaluations = 0
        self.met: dict[tuple[int, ...], tuple[float, str]] = {}
        """What was feasible, with f and what found it: few, as only the best of each attempt is taken."""

    def take(self, counts: Counts, solver: str) -> None:
        """Keep a configuration if it is feasible and better."""
        self.evaluations += 1
        feasible, f = self.kernel.score(counts)
        if feasible:
            self.met.setdefault(key(counts), (f, solver))
        if feasible and f > self.f:
            self.counts, self.f, self.solver = counts, f, solver

    def scan(self) -> None:
        """Evaluate all GPUs cut alike with one variant, for each cut and variant."""
        for counts in exact.homogeneous(self.problem):
            self.take(counts, "homogeneous scan")

    def anneal(self, seconds: float, start: Counts | None = None) -> None:
        """Run the kernel for `seconds`, from `start` if it is given."""
        if seconds <= 0.0:
            return
        restarts = max(1, min(_RESTARTS, round(seconds / _RESTART_S)))
        solution = anneal.solve(self.kernel, self.seed, seconds, start=start, restarts=restarts)
        self.seed += 1
        self.evaluations += solution.evaluations
        if solution.feasible:
            self.take(solution.counts, "annealing")


def key(counts: Counts) -> tuple[int, ...]:
    """Return a configuration as something to look up."""
    return tuple(counts.tolist())


def solve(
    problem: ProblemFile,
    *,
    seed: int = 0,
    time_limit_s: float = 20.0,
    highs: bool = True,
    verification: Verification = "report",
    clock: Callable[[], float] = time.monotonic,
) -> Solution:
    """Return the best configuration found, with a bound, and what the simulation says of it; under `strict` the best
    that the simulation accepts.  Raises Infeasible with the reason if there is none."""
    began = clock()
    _impossible(problem)
    search = _Search(problem, seed)
    search.scan()
    annealing_s = min(ANNEAL_PART * time_limit_s, ANNEAL_MOST_S)
    size = _size(problem)
    if size > PER_SECOND * annealing_s:
        search.anneal(annealing_s)
    kept_s = {
        "off": 0.0,
        "report": min(VERIFY_PART * time_limit_s, VERIFY_MOST_S),
        "strict": STRICT_PART * time_limit_s,
    }[verification]

    def left() -> float:
        return began + time_limit_s - kept_s - clock()

    whole = size <= PER_SECOND * left()
    proved = _enumerate(search, left(), clock) if whole else None
    if proved is None:
        proved = _bound(search, left, highs)
    if search.counts is None:
        raise Infeasible(
            f"no configuration keeps the SLA of {problem.sla_ms:g} ms (proved by {proved.method})"
            if proved.value == -math.inf
            else f"no feasible configuration was found in {clock() - began:.1f} s, and none was proved impossible: "
            "give it more time, or relax sla_ms or arrival_rate"
        )
    choice = _Choice(search.counts, search.f, search.solver)
    if verification != "off":
        verdict = verify(problem, search.counts)
        if verdict.accepted:
            choice = replace(choice, found=verdict)
        elif verification == "report":
            choice = replace(choice, found=verdict, rejected=1, rejected_f=search.f, why=verdict.why)
        else:
            choice = _stand_in(search, verdict, whole, lambda: began + time_limit_s - clock())
    return _answer(search, choice, proved, clock() - began)


def _answer(search: _Search, choice: _Choice, proved: Bound, seconds: float) -> Solution:
    problem, counts, found = search.problem, choice.counts, choice.found
    played = found if found is not None and found.replications else None
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
    return Solution(
        config=problem.named(counts),
        f=choice.f,
        p95_ms=p95_s * 1e3,
        accuracy=accuracy,
        energy_j_per_request=dynamic_j + problem.idle_j,
        bound=value,
        solver=choice.solver,
        evaluations=search.evaluations,
        seconds=seconds,
        gap=(value - choice.f) / problem.scale(search.f),
        proof=proved.method,
        shares={g.name: float(s) for g, s, n in zip(problem.groups, shares, counts, strict=True) if n},
        verified=None if found is None else found.accepted,
        verified_p95_ms=played.quantile_s * 1e3 if played else None,
        verified_p95_half_width_ms=played.half_width_s * 1e3 if played else None,
        verified_f=played.f if played else None,
        verified_requests=played.rows if played else 0,
        rejected=choice.rejected,
        rejected_f=choice.rejected_f,
        why=choice.why,
    )


# --- the next best ----------------------------------------------------------------------------------------------------


def _stand_in(search: _Search, first: SimulationVerdict, whole: bool, left: Callable[[], float]) -> _Choice:
    """Return the best accepted configuration in place of the best one, which was rejected.  `whole`: there are few
    enough to go through all.  Raises Infeasible if none was accepted."""
    problem = search.problem
    assert search.counts is not None
    tried, rejected = {key(search.counts)}, 1
    limit_s = _tighten(problem, problem.sla_s, first, whole)
    best: _Choice | None = None
    while len(tried) < _ATTEMPTS and left() > 0.0:
        if best is not None:
            near = _enumerate_best(search, problem, tried, left, best.f) if whole else _best_met(search, tried, best.f)
        else:
            near = _best_met(search, tried) if len(tried) > _NEAR else None
            near = near or _below(search, limit_s, tried, whole, left)
        if near is None:
            break
        tried.add(key(near.counts))
        verdict = verify(problem, near.counts)
        if verdict.accepted:
            best = replace(near, found=verdict)
            continue
        rejected += 1
        if best is None:
            limit_s = _tighten(problem, limit_s, verdict, whole)
    if best is None:
        raise Infeasible(
            f"the simulation accepted none of the {rejected} best configurations that the model calls feasible; "
            f"of the first: {first.why}"
        )
    return replace(best, rejected=rejected, rejected_f=search.f, why=first.why)


def _tighten(problem: ProblemFile, limit_s: float, found: SimulationVerdict, whole: bool) -> float:
    """Return the SLA for the model, after this rejection."""
    model_s = found.model_quantile_s
    if not found.replications:
        return min(limit_s, _UNPLAYED * model_s)
    if not found.holds:
        reach_s = found.quantile_s + found.half_width_s
        return min(limit_s, model_s * min(1.0, problem.sla_s / reach_s) * (1.0 - _TIGHTER))
    return limit_s if whole else min(limit_s, model_s * (1.0 - _TIGHTER))


def _below(
    search: _Search, limit_s: float, tried: Set[tuple[int, ...]], whole: bool, left: Callable[[], float]
) -> _Choice | None:
    """Return the best untried configuration whose model quantile is at most so long."""
    tight = msgspec.structs.replace(search.problem, sla_ms=limit_s * 1e3)
    if whole:
        return _enumerate_best(search, tight, tried, left)
    again = _Search(tight, search.seed)
    again.scan()
    again.anneal(min(left(), _AGAIN_S), search.counts)
    search.seed = again.seed
    search.evaluations += again.evaluations
    search.met |= again.met
    return _best_met(again, tried)


def _enumerate_best(
    search: _Search,
    problem: ProblemFile,
    tried: Set[tuple[int, ...]],
    left: Callable[[], float],
    floor: float = -math.inf,
) -> _Choice | None:
    found = exact.enumerate_all(problem, lambda: left() <= 0.0, floor, tried)
    search.evaluations += found.configurations
    return None if found.counts is None else _Choice(found.counts, search.kernel.score(found.counts)[1], "enumeration")


def _best_met(search: _Search, tried: Set[tuple[int, ...]], floor: float = -math.inf) -> _Choice | None:
    """Return the best untried configuration met on the way, if it is better than f = `floor`."""
    f, solver, counts = max(
        ((f, solver, counts) for counts, (f, solver) in search.met.items() if counts not in tried and f > floor),
        default=(floor, "", ()),
    )
    return _Choice(np.array(counts, dtype=np.int64), f, solver) if counts else None


def forced(
    problem: ProblemFile, *, seed: int, cpu_s: float = 0.0, evaluations: int = 0, restarts: int = 1
) -> tuple[Counts, float]:
    """Return the annealer alone: its configuration and f (minus infinity if it found nothing feasible).

    It gets `cpu_s` seconds of CPU time, so that it is not measured to find less if others keep the machine busy.
    """
    kernel = kernel_problem(problem)
    solution = anneal.solve(kernel, seed, cpu_s, evaluations=evaluations, restarts=restarts, cpu_time=True)
    return solution.counts, solution.f if solution.feasible else -math.inf


def _impossible(problem: ProblemFile) -> None:
    """Raise Infeasible if a look is enough to say so."""
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


def _size(problem: ProblemFile) -> float:
    """Return how many configurations there are; infinity if there are too many to count."""
    try:
        return exact.size(problem, _TILINGS)
    except PlanError:
        return math.inf


def _enumerate(search: _Search, seconds: float, clock: Callable[[], float]) -> Bound | None:
    """Return the optimum, by going through all configurations; None if the time did not suffice."""
    end = clock() + seconds
    result = exact.enumerate_all(search.problem, lambda: clock() > end, search.f + _CLOSED)
    search.evaluations += result.configurations
    if result.counts is not None:
        search.take(result.counts, "enumeration")
    if not result.complete:
        return None
    return Bound(search.f, f"enumeration of all {result.configurations} configurations", 0)


def _bound(search: _Search, left: Callable[[], float], highs: bool) -> Bound:
    result = bound(search.problem, incumbent=search.f, stop=lambda: left() <= 0.0, highs=highs)
    for counts in result.starts[-_STARTS:]:
        search.take(counts, "integer program")
    if result.value - search.f > _CLOSED:
        search.anneal(min(left(), ANNEAL_MOST_S), result.starts[-1] if result.starts else search.counts)
    return result
