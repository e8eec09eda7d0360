"""The paper's schemes as policies.  The package says which part is the paper's and which is ours."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from clover._native.random import Random
from clover.errors import PlanError
from clover.planning.model.objective import Objective, PlanningInput
from clover.planning.model.problem import Problem
from clover.planning.search.configurations import SearchResult
from clover.policies.paper.fifo import Fifo, stack
from clover.policies.paper.fleet import At, PaperFleet, fleet_of
from clover.policies.paper.oracle import Best, alike, best_free, best_of, every
from clover.policies.paper.walk import Walk, anneal, punish, punish_as_artifact, wander
from clover.policies.plans import plan_of
from clover.types import Candidate, DeviceShape, GroupCount, Placement, Plan, State

ARTIFACT_LAMBDA = 0.1
_SHOWN = 5
_WORD = (1 << 64) - 1


class CloverPolicy:
    """CLOVER: simulated annealing over the configuration graph of the fleet."""

    name = "clover"

    def propose(self, state: State) -> Plan:
        """Return the best configuration that the search tried; PlanError if the devices run nothing measured."""
        fifo = _fifo(state)
        fleet = fleet_of(fifo.problem, fifo.keys, alike=False)
        start, known = _start(state, fifo.problem, fleet)
        walk = anneal(fifo, fleet, start, _random(state), punish, drawn=False, known=known)
        return _walk_plan(state, fifo, walk, self.name, "simulated annealing over the configuration graph")


class CloverArtifactPolicy:
    """CLOVER as the public artifact runs it, **with its fault**: if the score is negative, breaking the latency
    target is rewarded (`walk.punished_as_artifact`).  To compare with, not to serve with."""

    name = "clover-artifact"

    def propose(self, state: State) -> Plan:
        """Return the best configuration that the search tried; PlanError if the devices run nothing measured."""
        fifo = _fifo(state, ARTIFACT_LAMBDA)
        fleet = fleet_of(fifo.problem, fifo.keys, alike=True)
        start, known = _start(state, fifo.problem, fleet)
        walk = anneal(fifo, fleet, start, _random(state), punish_as_artifact, drawn=True, known=known)
        words = "simulated annealing over the configuration graph of one device, all alike, with the artifact's penalty"
        return _walk_plan(state, fifo, walk, self.name, words)


class BloverPolicy:
    """BLOVER: random search over layouts and variants, each device for itself."""

    name = "blover"

    def propose(self, state: State) -> Plan:
        """Return the best configuration that the search tried; PlanError if the devices run nothing measured."""
        fifo = _fifo(state)
        fleet = fleet_of(fifo.problem, fifo.keys, alike=False)
        start, known = _start(state, fifo.problem, fleet)
        walk = wander(fifo, fleet, start, _random(state), known=known)
        return _walk_plan(state, fifo, walk, self.name, "random search over layouts and variants")


class Co2OptPolicy:
    """CO2OPT: the first-listed variant (the least accurate one) on the smallest slices everywhere."""

    name = "co2opt"

    def propose(self, state: State) -> Plan:
        """Return CO2OPT's plan; PlanError if the variant was not measured throughout any layout of some device."""
        fifo = _fifo(state)
        first = fifo.problem.variants[0]
        counts: dict[str, int] = {}
        for device in state.devices:
            for placement in _smallest(fifo.problem, device, first):
                counts[placement.profile] = counts.get(placement.profile, 0) + 1
        configuration = tuple(
            GroupCount(variant=first, profile=profile, count=number) for profile, number in sorted(counts.items())
        )
        rows = stack([fifo.counts(configuration)])
        chosen = fifo.candidate(rows[0], fifo.closed_forms(rows), 0)
        return _plan(state, fifo, Best([chosen], 1, 1, True), self.name, f"{first} on the smallest slices everywhere")


class OraclePolicy:
    """ORACLE.  `alike`: all devices of a kind alike, as in the artifact; otherwise each is free, which is ours."""

    def __init__(self, *, alike: bool = False) -> None:
        self._alike = alike
        self.name = "oracle:alike" if alike else "oracle"

    def propose(self, state: State) -> Plan:
        """Return the best plan at this load and intensity; PlanError if the devices run nothing measured, or, alike,
        if several kinds of them have too many configurations."""
        fifo = _fifo(state)
        kinds = fleet_of(fifo.problem, fifo.keys, alike=True)
        if self._alike:
            best, words = best_of(fifo, alike(kinds)), "all devices of a kind alike, as in the artifact"
        elif (rows := every(fifo)) is not None:
            best, words = best_of(fifo, rows), "devices free (ours), all configurations weighed"
        else:
            fleet = fleet_of(fifo.problem, fifo.keys, alike=False)
            best = best_free(fifo, kinds, fleet, fleet.running(state))
            words = "devices free (ours), uphill from the best alike and not proven best"
        return _plan(state, fifo, best, self.name, f"the best f with load and intensity known, {words}")


def _fifo(state: State, lam: float | None = None) -> Fifo:
    """Return the problem under the paper's objective, whatever form is configured.  `lam`: L if none is
    configured."""
    given = PlanningInput.from_state(state)
    objective = replace(given.objective, form="paper")
    if lam is not None and state.objective.lam is None:
        objective = replace(objective, lam=lam)
    return Fifo(given.problem, objective)


def _start(state: State, problem: Problem, fleet: PaperFleet) -> tuple[At, bool]:
    """Return where a search begins, and whether that is what runs: else BASE, as in the paper."""
    running = fleet.running(state)
    return (fleet.base(problem), False) if running is None else (running, True)


def _random(state: State) -> Random:
    """Return a random stream that differs by grid time, so that the hours of a day do not all draw the same."""
    return Random(state.seed & _WORD, int(state.grid_s) & _WORD)


def _smallest(problem: Problem, device: DeviceShape, variant: str) -> tuple[Placement, ...]:
    """Return the layout of most placements that the variant runs on throughout; nothing if the device has no
    layout."""
    layouts = [layout for layout in device.layouts if layout]
    fitting = [layout for layout in layouts if all((variant, item.profile) in problem.services for item in layout)]
    if layouts and not fitting:
        raise PlanError(f"{variant} was not measured on every profile of any layout of {device.device}")
    return min(fitting, key=lambda layout: (-len(layout), sum(item.slices for item in layout)), default=())


def _walk_plan(state: State, fifo: Fifo, walk: Walk, policy: str, words: str) -> Plan:
    candidates = walk.rank()
    best = Best(candidates, walk.times, walk.times, True)
    return _plan(state, fifo, best, policy, f"{words}, on a model instead of live traffic")


def _plan(state: State, fifo: Fifo, best: Best, policy: str, words: str) -> Plan:
    """Return the plan of the first candidate.  What is below the accuracy floor, which the paper does not know, is
    marked, and the bound leaves the floor out as well."""
    candidates = tuple(_mark_infeasible(item, fifo.objective) for item in best.candidates[:_SHOWN])
    result = SearchResult(candidates[0], candidates, best.evaluated, best.total, best.complete)
    how = fifo.model(fifo.counts(candidates[0].configuration))
    note = f"{words}; shares as FIFO to any idle worker has them ({how})"
    free = replace(fifo.objective, planned_floor=0.0)
    return plan_of(state, fifo.problem, fifo.objective, result, policy=policy, note=note, bounded=free)


def _mark_infeasible(candidate: Candidate, objective: Objective) -> Candidate:
    if not candidate.feasible or candidate.prediction.accuracy >= objective.accuracy_floor - 1e-9:
        return candidate
    why = f"accuracy {candidate.prediction.accuracy:.2f} % is below the floor of {objective.accuracy_floor:.2f} %"
    return msgspec.structs.replace(candidate, feasible=False, why=why)
