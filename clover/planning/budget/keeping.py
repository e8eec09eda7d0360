"""The plan of changing nothing: the workers that run and the routing in force, predicted in a new state.

A plan is only worth taking if it beats this.  A planner that compares plans with each other alone may leave workers
that keep the SLO for others that do not: the plan that it prefers cannot be reached, its alternatives miss the SLO, and
nothing says that staying would have been fine.  So every plan carries what keeping is predicted to do (`Plan.keeping`),
and `worth_taking` decides between the two:

 1. a feasible plan beats what is not feasible, and the other way round;
 2. of two that are not feasible the less bad one wins, in the order of the search (`rank`);
 3. of two feasible ones the better score wins, if the policy scores single moments (`by_score`).  A budget over a
    horizon does not: a moment that looks worse may pay back what another one spent.
"""

from __future__ import annotations

import msgspec

from clover.planning.budget.target import target_of
from clover.planning.cascade.routed import predicted, shortfall
from clover.planning.model.demand import direct
from clover.planning.model.objective import Objective, held_to
from clover.planning.model.planning_input import PlanningInput
from clover.planning.model.sharing import measured
from clover.planning.packing.evaluation import rank
from clover.planning.search.power_states import awake_in, with_idle_energy
from clover.types import Assignment, Candidate, Plan, State, configuration_of

_SAME_SCORE = 1e-6


def keeping(given: PlanningInput) -> Candidate | None:
    """Return what the workers that run do at the state's rate and intensity if the routing in force stays.

    None if nothing runs, or if the profile does not know what runs (a worker or thresholds of an older profile).
    """
    state, problem = given.state, given.problem
    if not state.running or state.routing is None:
        return None
    routing = state.routing
    if routing.wait_ms and not state.objective.waits:  # no row may wait now, so that is not what keeping would do
        routing = msgspec.structs.replace(routing, wait_ms={})
    objective = momentary(state, given.objective)
    configuration = configuration_of(state.running)
    if not measured(problem, configuration):
        return None
    prediction = predicted(problem, configuration, routing)
    if prediction is None:
        return None
    why = direct(problem, configuration, objective.max_utilisation).why
    why = why or shortfall(objective, prediction, chained=len(routing.chain) > 1)
    candidate = Candidate(
        configuration=configuration,
        routing=routing,
        prediction=prediction,
        score=objective.score(prediction.accuracy, prediction.energy_j_per_row),
        feasible=not why,
        why=why,
    )
    return with_idle_energy(candidate, problem, objective, awake_in(problem, state.running))


def momentary(state: State, objective: Objective) -> Objective:
    """Return the objective that a single moment of `state` is judged by: held to the accuracy budget's target if the
    budget is not spread over a forecast, else to the floor."""
    by_floor = state.objective.accuracy_budget is None or state.ahead
    return objective if by_floor else held_to(objective, target_of(state))


def worth_taking(plan: Plan, kept: Candidate, objective: Objective, *, by_score: bool) -> bool:
    """Return whether `plan` is predicted to be no worse than `kept`, feasibility first."""
    if plan.feasible != kept.feasible:
        return plan.feasible
    if not plan.feasible:
        return rank(candidate_of(plan), objective) <= rank(kept, objective)
    return not by_score or plan.score >= kept.score - _SAME_SCORE * objective.scale


def candidate_of(plan: Plan) -> Candidate:
    """Return `plan` as one of the candidates that it was chosen from."""
    return Candidate(
        configuration=plan.configuration,
        routing=plan.routing,
        prediction=plan.prediction,
        score=plan.score,
        feasible=plan.feasible,
    )


def kept_plan(plan: Plan, kept: Candidate, running: tuple[Assignment, ...]) -> Plan:
    """Return the plan of changing nothing in place of `plan`: workers, routing and predictions are those of what
    runs."""
    short = "" if kept.feasible else f", although {kept.why}"
    return msgspec.structs.replace(
        plan,
        configuration=kept.configuration,
        deployment=running,
        routing=kept.routing,
        prediction=kept.prediction,
        score=kept.score,
        feasible=kept.feasible,
        bound=None,
        gap=None,
        permitted=(),
        worse_than_keeping=False,
        reason=f"what runs is kept{short}: the plan is predicted to be worse ({plan.reason})",
    )
