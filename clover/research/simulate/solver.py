"""The solver of a simulation: the policies themselves in this process, and a memory of what they answered.

A server asks a helper process so that its loop never waits; here nothing waits.  The shipped policies are pure
functions of their state, so the same question (in another accounting, or under another seed of the load) is answered
from memory.  Policies that draw at random are seeded by the run; a policy of the user's own is never remembered.

Simulated devices do not say that they may sleep, as a server's GPUs do (`DeviceShape.sleep_w`).  If a simulation lets
them, it says so in the states here, without the rests and the room for gusts that a server keeps.
"""

from __future__ import annotations

from typing import Any

import msgspec

from clover.interfaces import Policy
from clover.policies import build
from clover.policies.plans import plan_fixed, routing_fixed
from clover.research.simulate.peers import PEERS
from clover.types import Configuration, Plan, Routing, State

_DRAWING = ("clover", "clover-artifact", "blover")
"""Policies whose random numbers depend on the seed and the grid time."""
_PURE = ("objective", "base", "base:fitted", "static", "co2opt", "oracle", "oracle:alike", *PEERS.values())
# Fields of a state that are the same for a whole memory, stand in the key by themselves, or are read by none of _PURE.
_ASIDE = {"family", "profile", "devices", "share", "intensity", "grid_s", "p95_ms", "queue_rows", "routing", "seed"}
_ASKED = tuple(name for name in State.__struct_fields__ if name not in _ASIDE)

Memory = dict[tuple[object, ...], Plan]


class LocalSolver:
    """Implements `clover.control.plan.planner.Solver`.  `memory` belongs to one family on one set of devices; a device
    without workers draws `spared_w` less (None: devices never sleep)."""

    def __init__(self, memory: Memory, *, seed: int, spared_w: float | None = None) -> None:
        self._spared_w = spared_w
        self._memory = memory
        self._seed = seed
        self._policies: dict[str, Policy] = {}

    async def propose(self, state: State, policy: str, configuration: Configuration | None = None) -> Plan:
        """Return the plan of `policy`, or of `configuration` if one is given.  Raises what the policy raises."""
        drawing = configuration is None and policy in _DRAWING
        asked = msgspec.structs.replace(state.objective, spared_w=self._spared_w)
        state = msgspec.structs.replace(state, seed=self._seed if drawing else 0, objective=asked)
        key = (
            "" if configuration is not None else policy,
            configuration,
            state.intensity.g_per_kwh,
            state.profile.latency,  # it may be corrected while a run goes on
            (state.seed, state.grid_s) if drawing else None,
            *(_hashable(getattr(state, name)) for name in _ASKED),
        )
        plan = self._memory.get(key)
        if plan is None:
            plan = self._ask(state, policy, configuration)
            if configuration is not None or policy in (*_PURE, *_DRAWING) or policy.startswith("static:"):
                self._memory[key] = plan
        return plan

    def _ask(self, state: State, policy: str, configuration: Configuration | None) -> Plan:
        if configuration is not None:
            return plan_fixed(state, configuration)
        if policy not in self._policies:
            self._policies[policy] = build(policy)
        return self._policies[policy].propose(state)

    async def routing(self, state: State, configuration: Configuration) -> Routing | None:
        """Return how rows go best to these workers; None if no routing of theirs keeps the targets."""
        return routing_fixed(state, configuration)

    async def close(self) -> None:
        """Do nothing: no process was started."""


def _hashable(value: Any) -> Any:
    return tuple(sorted(value.items())) if isinstance(value, dict) else value
