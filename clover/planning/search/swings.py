"""How far the shares of a mix may swing around the plan's (`planning.model.swings`), by the model that plans are made
with: at either end of a move no lane is loaded above the utilisation limit, and p95 is within the SLO.  Accuracy is not
asked about: over the two blocks of a move it is that of the plan.

Not of cascades: rows that a stage passes on by chance tell its variants apart without it, and other thresholds would
change answers.
"""

from __future__ import annotations

import msgspec

from clover.planning.cascade.routed import predicted
from clover.planning.model.planning_input import PlanningInput
from clover.planning.model.sharing import is_shared, measured
from clover.planning.model.swings import Move, moved, moves
from clover.planning.packing.evaluation import lanes_of
from clover.types import configuration_of

MOST = 0.5
"""The part of a variant's rows that a move gives or takes at most."""
LEAST = 0.1
"""Moves of which no variant would have a larger part tell too little to be made."""
_PARTS = (1.0, 0.75, 0.5, 0.25)


def swings(given: PlanningInput) -> tuple[Move, ...]:
    """Return the moves of a round around the routing in force, for the workers that run; none if it is a cascade, or
    if there is no room for any."""
    state, problem, routing = given.state, given.problem, given.state.routing
    configuration = configuration_of(state.running)
    if routing is None or routing.chain or not measured(problem, configuration):
        return ()
    shares = {variant: share for variant, share in routing.shares.items() if share > 0.0}
    room = {variant: MOST * share for variant, share in shares.items()}
    if not is_shared(configuration):  # else how far one lane may go depends on the others
        lanes = lanes_of(problem, configuration)
        for variant, capacity in zip(lanes.variants, lanes.capacities, strict=True):
            most = given.objective.max_utilisation * capacity / problem.rate
            room[variant] = min(room.get(variant, 0.0), most - shares.get(variant, 0.0))
    found = []
    for move in moves({variant: most for variant, most in room.items() if most > LEAST * shares.get(variant, 0.0)}):
        for part in _PARTS:
            scaled = {variant: part * share for variant, share in move.items()}
            if max(abs(more) / shares[variant] for variant, more in scaled.items()) < LEAST:
                break
            if all(_fits(given, moved(routing.shares, scaled, sign)) for sign in (1.0, -1.0)):
                found.append(scaled)
                break
    return tuple(found)


def _fits(given: PlanningInput, shares: dict[str, float]) -> bool:
    """Return whether the workers that run serve their rows in time with these shares, none above the utilisation
    limit."""
    state, objective = given.state, given.objective
    assert state.routing is not None
    routing = msgspec.structs.replace(state.routing, shares=shares)
    found = predicted(given.problem, configuration_of(state.running), routing)
    if found is None:
        return False
    return found.utilisation <= objective.max_utilisation + 1e-6 and found.p95_ms <= objective.slo_ms
