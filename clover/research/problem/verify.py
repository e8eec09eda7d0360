"""Verify a configuration: a simulation of what the model predicts, before anything acts on it.

**Why.**  The queueing models are approximations.  The product form takes service as exponential; at one GPU its p95 is
up to 8 % off.  The mean field takes workers as independent; at three GPUs or fewer its shares are up to 5 points off,
and if a few slow workers take little traffic its p95 may be off by half.  The model does not show when.  The
simulator (`clover._native.des`) makes none of these assumptions: Poisson arrivals, first in, first out, to any idle
worker by chance, normal service with each group's variation (held above a fifth of the mean).  What it shares with the
model is the problem: Poisson arrivals at a constant rate, and the service times of the file.

**Precision.** Several independent replications from an empty system, each with a warm-up that is not counted.
Every figure is a mean over replications: a group's share, the share of requests above a limit.  Its half-width is
Student's, at `CONFIDENCE` (99 %), over the replications, which correlation within one cannot fool.  The quantile is
that of all counted requests, and its interval the quantiles at q -+ h, with h the half-width of the share above it (as
in Law's *Simulation Modeling and Analysis*, and sound if the quantile falls between two modes of the latency:
optima like a slow group with just 5 % of the requests).  So tolerances are not chosen but measured.  If an interval
is too wide for a verdict, the number of replications doubles, until the next doubling would exceed `MOST_ROWS`.  Up to
four looks at the data make the real confidence a little less.

**Verdict.**  Two questions, and doubt falls differently:

 - `holds`: the simulated quantile keeps the SLA, which is to say that no more than 1 - q of the requests exceed it.
   The best configurations lie at the SLA, so that doubt must not reject: it holds unless the whole interval of that
   share lies above 1 - q.  That is fair only if the interval is narrow: one that spans 1 - q may be `TOLERANCE` of
   it wide to each side (0.2 points of 5), no more.  In milliseconds that is mostly 1 % of a p95; between two modes of
   the latency, where hardly a request falls, it may be several.
 - `agrees`: the model's quantile is within `QUANTILE_APART` of the simulated one and each share within `SHARE_APART`.
   If they are further apart the search looked at the wrong figures, and few are near the limit: it agrees only
   if the whole interval lies within.

What stays undecided at `MOST_ROWS` is rejected, and says so.  That happens to configurations at their SLA with a load
above some 0.93: their p95 over a million requests still varies by several per cent.

**Warm-up.**  From an empty system under full load all slow workers begin at once, and if their service varies
little they stay in step for dozens of services; their share is then off by a twentieth of a point, enough to move a
p95 that lies between two modes by a quarter.  So the rate first rises evenly, over `_FORGETTING` of the longest
services, and workers begin one after the other.  Then the queue has time to settle: `_FORGETTING` times its relaxation,
rho / (1 - sqrt(rho))^2 requests (Morse 1955, for M/M/1; less variable service is faster), and one longest service.  A
replication counts at least `_STRETCH` times as many requests as it warms up with.

No clock: how long it takes is a matter of rows, some 2 to 6 million a second.  Seeds are fixed, so that the same
question gets the same answer and configurations are compared on the same arrivals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clover._native import des, queueing
from clover.research.problem.file import Counts, Floats, ProblemFile
from clover.research.problem.intervals import half_width, keeps, within

QUANTILE_APART = 0.05
"""Of the simulated quantile: how far the model's may lie from it."""
SHARE_APART = 0.01
"""How far a share of the model may lie from the simulated one."""
MOST_ROWS = 6_000_000
"""Requests simulated for one configuration, warm-ups included."""
REPLICATIONS = 10
"""At first; doubled while the verdict is open."""
_LEAST_ROWS = 40_000
_FORGETTING = 3.0
_STRETCH = 2
_MOST_WORKERS = 1 << 20
"""That the simulator takes."""
_SEED = 3_020_230_911
"""Far from the small seeds of tests and benches, which judge these verdicts by runs of their own."""


@dataclass(frozen=True)
class SimulationVerdict:
    """One configuration as simulated: seconds, joules a request with the idle ones, percent.

    `quantile_s` is the latency at the problem's quantile, `half_width_s` that of its interval; `f` is the objective of
    the simulated shares.  `misses` says that the simulation shows a missed SLA; if it only fails to show that the
    SLA is kept, neither `holds` nor `misses` is set.  Of what could not be simulated at all, the quantile is infinite
    and `replications` 0.  `why` says what is wrong with a configuration that is not accepted.
    """

    quantile_s: float
    half_width_s: float
    shares: Floats
    energy_j: float
    accuracy: float
    f: float
    model_quantile_s: float
    replications: int
    rows: int
    holds: bool
    misses: bool
    agrees: bool
    why: str

    @property
    def accepted(self) -> bool:
        """Whether it may be acted on."""
        return self.holds and self.agrees


def verify(problem: ProblemFile, counts: Counts, *, most_rows: int = MOST_ROWS) -> SimulationVerdict:
    """Simulate the configuration [groups] with at most `most_rows` requests and judge it.  Whether it tiles the GPUs is
    not checked."""
    rate, service_s = problem.arrival_rate, problem.service_s
    capacity = float((counts / service_s).sum())
    if capacity <= rate:
        return _reject_unplayed(len(counts), math.inf, "overloaded: requests come faster than they are served")
    _, model_shares, _, _, model_s, _ = queueing.evaluate(
        service_s, problem.cv, problem.energy_j, problem.accuracy, counts, rate, problem.model, problem.quantile
    )
    ramp, settle, rows = lengths(problem, counts)
    warm_up = ramp + settle
    if counts.sum() > _MOST_WORKERS or REPLICATIONS * (warm_up + rows) > most_rows:
        why = f"too large, or too near its capacity, to be simulated with {most_rows:,} requests"
        return _reject_unplayed(len(counts), model_s, why)
    latency_s: list[Floats] = []
    shares: list[Floats] = []
    wanted = REPLICATIONS
    while True:
        for number in range(len(shares), wanted):
            played = _replicate(problem, counts, ramp, warm_up, rows, seed=_SEED + number)
            latency_s.append(played.latency_s)
            shares.append(played.shares)
        measured_s, half_width_s = _quantile(latency_s, problem.quantile)
        late, late_half_width = _above(latency_s, problem.sla_s)
        mean, spread = np.mean(shares, axis=0), half_width(shares)
        holds = keeps(1.0 - problem.quantile, late, late_half_width)
        near = within(QUANTILE_APART, model_s / measured_s - 1.0, half_width_s * model_s / measured_s**2)
        alike = [within(SHARE_APART, *of) for of in zip((model_shares - mean).tolist(), spread.tolist(), strict=True)]
        agrees = False if False in (near, *alike) else None if None in (near, *alike) else True
        if None not in (holds, agrees) or 2 * wanted * (warm_up + rows) > most_rows:
            break
        wanted *= 2
    faults = []
    if not holds:
        faults.append(_of_sla(problem, late, late_half_width, shown=holds is not None))
    if not near:
        faults.append(_of_quantile(measured_s, half_width_s, model_s, shown=near is not None))
    if not all(alike):
        at = int(np.argmax(np.abs(model_shares - mean) + spread))
        faults.append(_of_share(problem, at, float(mean[at]), float(spread[at]), float(model_shares[at])))
    energy_j, accuracy = problem.idle_j + float(mean @ problem.energy_j), float(mean @ problem.accuracy)
    return SimulationVerdict(
        quantile_s=measured_s,
        half_width_s=half_width_s,
        shares=mean,
        energy_j=energy_j,
        accuracy=accuracy,
        f=problem.objective(energy_j, accuracy),
        model_quantile_s=model_s,
        replications=wanted,
        rows=wanted * rows,
        holds=holds is True,
        misses=holds is False,
        agrees=agrees is True,
        why=("it keeps the SLA, but " if holds and faults else "") + "; ".join(faults),
    )


def _replicate(problem: ProblemFile, counts: Counts, ramp: int, warm_up: int, rows: int, *, seed: int) -> des.Outcome:
    """Simulate one replication: `rows` requests after `warm_up` ones, in the first `ramp` of which the rate rises."""
    return des.simulate(
        problem.service_s,
        counts,
        arrivals(problem.arrival_rate, ramp, warm_up + rows, seed),
        rows=warm_up + rows,
        warm_up=warm_up,
        seed=seed,
        law="normal",
        cv=problem.cv,
    )


def lengths(problem: ProblemFile, counts: Counts) -> tuple[int, int, int]:
    """Return requests of one replication: while the rate rises, until the queue has settled, and counted."""
    used = counts > 0
    load = problem.arrival_rate / float((counts / problem.service_s).sum())
    longest = problem.arrival_rate * float((problem.service_s * (1.0 + problem.cv))[used].max())
    ramp = math.ceil(_FORGETTING * longest)
    settle = math.ceil(longest + _FORGETTING * load / (1.0 - math.sqrt(load)) ** 2)
    return ramp, settle, max(_LEAST_ROWS, _STRETCH * (ramp + settle))


def arrivals(rate: float, ramp: int, rows: int, seed: int) -> des.Arrivals:
    """Return Poisson arrivals at a rate that rises evenly while the first `ramp` of so many come, on average, and then
    stays: a stream of rate 1, with its time stretched."""
    due = np.cumsum(np.random.Generator(np.random.PCG64(seed)).standard_exponential(rows))
    full_s = 2.0 * ramp / rate
    return des.trace(np.where(due < ramp, np.sqrt(2.0 * full_s * due / rate), full_s + (due - ramp) / rate))


def _above(latency_s: Sequence[Floats], limit_s: float) -> tuple[float, float]:
    """Return the share of the requests above the limit, and its half-width."""
    shares = [np.count_nonzero(of > limit_s) / len(of) for of in latency_s]
    return float(np.mean(shares)), float(half_width(shares))


def _quantile(latency_s: Sequence[Floats], q: float) -> tuple[float, float]:
    """Return the latency that a share `q` of all requests does not exceed, and the longer side of its interval."""
    pooled = np.concatenate(latency_s)

    def place(share: float) -> int:
        return min(max(math.ceil(share * len(pooled)) - 1, 0), len(pooled) - 1)

    pooled.partition(place(q))
    middle = float(pooled[place(q)])
    _, doubt = _above(latency_s, middle)
    ends = place(q - doubt), place(q + doubt)
    pooled.partition(ends)
    return middle, max(middle - float(pooled[ends[0]]), float(pooled[ends[1]]) - middle)


def _reject_unplayed(groups: int, model_s: float, why: str) -> SimulationVerdict:
    return SimulationVerdict(
        quantile_s=math.inf,
        half_width_s=math.inf,
        shares=np.zeros(groups),
        energy_j=math.inf,
        accuracy=0.0,
        f=-math.inf,
        model_quantile_s=model_s,
        replications=0,
        rows=0,
        holds=False,
        misses=False,
        agrees=False,
        why=why,
    )


def _of_sla(problem: ProblemFile, late: float, half_width: float, shown: bool) -> str:
    doubt = "" if shown else ", too close to decide"
    return (
        f"{late:.2%} (+-{half_width:.2%}) of the simulated requests exceed the SLA of {problem.sla_ms:.4g} ms; "
        f"{100.0 * (1.0 - problem.quantile):.4g}% may{doubt}"
    )


def _of_quantile(quantile_s: float, half_width_s: float, model_s: float, shown: bool) -> str:
    apart = model_s / quantile_s - 1.0
    doubt = "" if shown else ", too close to decide"
    return (
        f"the model's {model_s * 1e3:.4g} ms is {abs(apart):.1%} {'above' if apart > 0.0 else 'below'} the simulated "
        f"{quantile_s * 1e3:.4g} ms (+-{half_width_s * 1e3:.2g}); {QUANTILE_APART:.0%} is allowed{doubt}"
    )


def _of_share(problem: ProblemFile, at: int, share: float, spread: float, model: float) -> str:
    return (
        f"the model's share of {problem.groups[at].name}, {model:.2%}, is not within {SHARE_APART:.0%} of the "
        f"simulated {share:.2%} (+-{spread:.2%})"
    )
