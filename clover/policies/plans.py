"""What the shipped policies share: laying out a candidate on devices, and making a plan of it with bound and reason."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import msgspec

from clover.errors import PlanError
from clover.planning.budget.steering import Steering, steer_on
from clover.planning.budget.target import budget_target
from clover.planning.model.cores import cores_of, holding, sleeping_row
from clover.planning.model.objective import Objective, PlanningInput, held_to
from clover.planning.model.problem import Problem, direct, may_share, measured, of_the_others
from clover.planning.packing.evaluation import UNBOUNDED_MS, evaluate
from clover.planning.packing.formulation import Formulation, PackingMember
from clover.planning.packing.plan_bound import plan_bound
from clover.planning.packing.waits import tune_waits
from clover.planning.search.best import awake_in, in_use_first, power_bound, sleep_states, with_idle_energy
from clover.planning.search.chains import on_configuration
from clover.planning.search.configurations import SearchResult, choose
from clover.planning.transition.layout import Capacity, lay_out_shared, slices
from clover.planning.transition.memory import MemoryNeeds, Room, SliceMemory, Swap
from clover.planning.transition.steps import plan_transition
from clover.types import (
    Assignment,
    Candidate,
    Configuration,
    DeviceShape,
    Permitted,
    Plan,
    Routing,
    State,
    configuration_of,
    words_of,
)

_WAYS = 8
"""Choices of the devices that stay awake that are tried."""
NOTHING_TO_SAVE = "no routing saves a thousandth of the machine's idle power"
_LOWERED = 4
"""Steps in which an accuracy that a configuration cannot reach is lowered to the floor."""


def running_configuration(state: State) -> Configuration | None:
    """Return the configuration that runs; None if nothing does."""
    return configuration_of(state.running) if state.running else None


def lay_out_candidate(
    state: State, problem: Problem, configuration: Configuration, awake: int = 0
) -> tuple[Assignment, ...]:
    """Return the deployment that realises `configuration` and keeps most of what runs, on all devices or on `awake` of
    them; PlanError if there is none.  In a row of cores that may sleep, it takes the first cores.

    If devices may be without workers, devices that are awake stay awake as far as possible.  If they cannot make the
    change without falling below the arrival rate, sleeping devices wake for it, and the others sleep afterwards.
    """

    def laid(devices: Sequence[DeviceShape]) -> tuple[Assignment, ...]:
        return _laid(problem, state.running, configuration, devices)

    if not awake or sleeping_row(state.devices) is not None:
        return laid(holding(state.devices, configuration))
    devices = in_use_first(state.devices, state.running)
    here = {item.placement.device for item in state.running}
    used, fresh = devices[: len(here)], devices[len(here) :]
    first = laid(devices[:awake])
    if not state.running:
        return first
    for stay in range(min(awake, len(used)), max(0, awake - len(fresh)) - 1, -1):
        for stays in itertools.islice(itertools.combinations(used, stay), _WAYS):
            laid_out = laid((*stays, *fresh[: awake - stay]))
            if _holds(state, problem, laid_out):
                return laid_out
    return first


def _holds(state: State, problem: Problem, target: Sequence[Assignment]) -> bool:
    """Return whether the workers that run can be changed to `target` without falling below the arrival rate."""
    memory = SliceMemory(needs=MemoryNeeds(state.profile), room=lambda place: Room(state.memory.get(place.profile, 0)))
    return plan_transition(
        state.running,
        target,
        state.devices,
        capacity=_capacity(problem),
        floor=state.arrival_rate if state.running else 0.0,
        beside=Swap(memory, state.running, target).beside,
    ).holds


def _laid(
    problem: Problem, running: Sequence[Assignment], configuration: Configuration, devices: Sequence[DeviceShape]
) -> tuple[Assignment, ...]:
    """Return the deployment of `configuration` on all of `devices` that keeps most of `running`."""
    return lay_out_shared(
        configuration,
        family=problem.family,
        backend=problem.backend,
        own=problem.own,
        devices=devices,
        running=running,
        capacity=_capacity(problem),
    )


def _capacity(problem: Problem) -> Capacity:
    """Return the function that gives the rows a second of a worker; its compute slices if it was not measured."""

    def rows_per_s(item: Assignment) -> float:
        service = problem.services.get((item.variant, item.placement.profile))
        return service.capacity() if service is not None else slices(item)

    return rows_per_s


def least_awake(state: State, problem: Problem, configuration: Configuration) -> int:
    """Return the fewest devices (or cores of a row) that hold `configuration` if some may be without workers; else 0,
    for all of them."""
    if problem.spared_w is None:
        return 0
    if sleeping_row(state.devices) is not None:
        return cores_of(configuration)
    for number in range(1, len(state.devices)):
        with suppress(PlanError):
            lay_out_candidate(state, problem, configuration, number)
            return number
    return len(state.devices)


def plan_of(
    state: State,
    problem: Problem,
    objective: Objective,
    found: SearchResult,
    *,
    policy: str,
    note: str = "",
    bounded: Objective | None = None,
    limit: float | None = None,
) -> Plan:
    """Return the plan that realises `found.best`.

    Its bound is `limit` if that is given, else that of `bounded`, for policies that do not keep all limits of the
    objective, else that of `objective`.  `note` is added to the reason."""
    best = found.best
    deployment = lay_out_candidate(state, problem, best.configuration, best.awake)
    if not best.awake:  # idle power was not weighed, so all devices are used
        best = with_idle_energy(best, problem, objective, awake_in(problem, deployment))
    if limit is None:
        limit = bound_of(problem, bounded or objective)
    says = math.isfinite(limit) and best.feasible and best.score <= limit + 1e-9  # beyond capacity a bound says nothing
    return Plan(
        family=state.family,
        policy=policy,
        configuration=best.configuration,
        deployment=deployment,
        routing=_routing(problem, objective, best),
        prediction=best.prediction,
        score=best.score,
        reason=_reason(state, objective, best, found, note),
        feasible=best.feasible,
        bound=limit if says else None,
        gap=max(0.0, limit - best.score) / objective.scale if says else None,
        candidates=found.candidates,
        evaluated=found.evaluated,
    )


def _routing(problem: Problem, objective: Objective, best: Candidate) -> Routing:
    """Return the routing of `best`, whose shares are of all rows, with those of the rows that ask for no accuracy."""
    if not problem.demand or best.routing.chain:
        return best.routing
    asked = direct(problem, best.configuration, objective.max_utilisation)
    return msgspec.structs.replace(best.routing, shares=of_the_others(problem, best.routing.shares, asked))


def bound_of(problem: Problem, objective: Objective) -> float:
    """Return a score that no plan can exceed.  It is infinite for problems with cascades, which the bound does not
    cover, and means nothing if the devices cannot serve the rate."""
    if problem.points:
        return math.inf
    if sleeping_row(problem.devices) is not None:
        return power_bound(problem, objective)
    sleep, awake_w = sleep_states(problem.spared_w)
    form = Formulation([PackingMember(problem, objective)], problem.devices, sleep=sleep, awake_w=awake_w, slow=True)
    return plan_bound(form, waits=problem.gathers)


def kept_counter(problem: Problem, running: Sequence[Assignment]) -> Callable[[Configuration], int] | None:
    """Return the function that counts the workers of `running` that a configuration could keep.

    None if nothing runs, or if devices may be without workers, so that a configuration alone does not say."""
    if not running or problem.spared_w is not None:
        return None
    workers = set(running)

    def kept(configuration: Configuration) -> int:
        return len(workers.intersection(_laid(problem, running, configuration, problem.devices)))

    return kept


def with_waits(problem: Problem, objective: Objective, found: SearchResult) -> SearchResult:
    """Return `found` with waits and largest batches for its best candidate, if these are allowed and pay.

    A cascade, and every candidate that was weighed against it, has its waits already."""
    if not problem.objective.waits or found.best.routing.chain:
        return found
    best = tune_waits(problem, objective, found.best)
    if found.best.awake:
        best = with_idle_energy(best, problem, objective, found.best.awake)
    return replace(found, best=best)


def plan_fixed(state: State, configuration: Configuration, *, policy: str = "fixed") -> Plan:
    """Return the plan that runs exactly `configuration`, with its best routing; PlanError if it cannot run here.

    With an accuracy budget, the routing aims at what the budget asks of this moment."""
    given = PlanningInput.from_state(state)
    problem, objective = given.problem, given.objective
    for group in configuration:
        for variant in group.variants:
            if (variant, group.profile) not in problem.services:
                raise PlanError(f"{variant} was not measured on {group.profile}")
        if group.beside and not may_share(problem, group.variants, group.profile):
            raise PlanError(f"a worker on {group.profile} cannot hold {', '.join(group.variants)} together here")
    if state.objective.accuracy_budget is not None:
        if state.ahead and problem.points:
            steered = steer_on(given, configuration, least_awake(state, problem, configuration))
            if steered is not None:
                return steered_plan(given, steered, policy=policy, note="the configuration was given")
        objective, candidate = _nearest(problem, objective, configuration, budget_target(given).accuracy)
    else:
        candidate = _best_on(problem, objective, configuration)
    candidate = with_idle_energy(candidate, problem, objective, least_awake(state, problem, configuration))
    result = with_waits(problem, objective, result_of(candidate))
    return plan_of(state, problem, objective, result, policy=policy, note="the configuration was given")


def routing_fixed(state: State, configuration: Configuration) -> Routing | None:
    """Return the best routing of exactly these workers, which need not fill the devices; None if no routing of theirs
    keeps the targets."""
    given = PlanningInput.from_state(state)
    if not measured(given.problem, configuration):
        return None
    best = _best_on(given.problem, given.objective, configuration)
    candidate = with_waits(given.problem, given.objective, result_of(best)).best
    return candidate.routing if candidate.feasible else None


def _best_on(problem: Problem, objective: Objective, configuration: Configuration) -> Candidate:
    """Return the best routing of `configuration`, a mix or a chain."""
    chains = on_configuration(problem, objective, configuration)
    mix = evaluate(problem, objective, configuration)
    mix = tune_waits(problem, objective, mix) if problem.objective.waits and chains else mix
    return choose([mix, *chains], objective)[0]


def _nearest(
    problem: Problem, objective: Objective, configuration: Configuration, accuracy: float
) -> tuple[Objective, Candidate]:
    """Return the best routing at `accuracy` percent and the objective that asks for it.

    What a budget asks of a moment may be more than these workers can reach within the limits; the moments to come then
    have to make it good.  So the accuracy asked for is lowered towards the floor in `_LOWERED` steps until a routing is
    feasible."""
    for step in range(_LOWERED + 1):
        lowered = accuracy + (objective.planned_floor - accuracy) * step / _LOWERED
        aimed = held_to(objective, lowered)
        candidate = _best_on(problem, aimed, configuration)
        if candidate.feasible or lowered <= objective.planned_floor:
            break
    return aimed, candidate


def steered_plan(given: PlanningInput, found: Steering, *, policy: str, note: str) -> Plan:
    """Return the plan of a steered moment, with every routing that its configuration permits."""
    rests = f"no accuracy is given up, as {NOTHING_TO_SAVE}" if found.nothing_to_save else ""
    note = "; ".join(filter(None, (rests, found.why, f"{len(found.permitted)} routings permitted here", note)))
    best = SearchResult(found.best, found.permitted[:10], found.weighed, 1, complete=False)
    aims = held_to(given.objective, 0.0)
    plan = plan_of(given.state, given.problem, aims, best, policy=policy, note=note)
    return msgspec.structs.replace(
        plan,
        nothing_to_save=found.nothing_to_save,
        permitted=tuple(
            Permitted(chain=item.routing.chain, thresholds=item.routing.thresholds, prediction=item.prediction)
            for item in found.permitted
        ),
    )


def result_of(candidate: Candidate) -> SearchResult:
    """Return `candidate` as a search result without alternatives."""
    return SearchResult(candidate, (candidate,), 1, 1, True)


def chain_words(routing: Routing) -> str:
    """Return a cascade in words: "small < 0.705 > large"; empty without one."""
    passed_on = [f"{name} < {at:.3f}" for name, at in zip(routing.chain, routing.thresholds, strict=False)]
    return " > ".join([*passed_on, routing.chain[-1]]) if routing.chain else ""


def _units(state: State) -> str:
    row = sleeping_row(state.devices)
    return f"{len(state.devices)} devices" if row is None else f"{row.slices} cores"


def _reason(state: State, objective: Objective, best: Candidate, found: SearchResult, note: str) -> str:
    shares = ", ".join(f"{variant} {share:.0%}" for variant, share in sorted(best.routing.shares.items()))
    if best.routing.chain:
        shares = f"cascade {chain_words(best.routing)}: {shares}"
    expected = best.prediction
    p95 = "unbounded" if expected.p95_ms >= UNBOUNDED_MS else f"{expected.p95_ms:.2f} ms"
    lam = f", lambda {objective.lam:.4f}" if objective.form == "paper" else ""
    floor = objective.cascade_floor if len(best.routing.chain) > 1 else objective.planned_floor
    text = (
        f"{words_of(best.configuration)} ({shares}) at {state.intensity.g_per_kwh:.0f} g/kWh "
        f"and {state.arrival_rate:.1f} rows/s{lam}: p95 {p95} of {objective.slo_ms:.2f} ms, "
        f"accuracy {expected.accuracy:.2f} % of at least {floor:.2f} %, "
        f"{expected.energy_j_per_row:.4g} J a row"
    )
    if best.awake:
        text += f" and {expected.idle_j_per_row:.4g} J (what sleep would save) on {best.awake} of {_units(state)}"
    if not best.feasible:
        text += f"; no feasible plan, this is the least bad: {best.why}"
    elif found.total > 1:
        if best.configuration == running_configuration(state) and best.score < found.candidates[0].score:
            text += "; kept: the gain of the best other is below the margin"
        else:
            many = f"{found.total}" if found.complete else f"{found.evaluated} simulated, {found.total} weighed"
            text += f"; best of {many}"
    return f"{text}; {note}" if note else text
