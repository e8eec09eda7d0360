"""The shadows of all families: each gets every energy window as it is closed, and the fixed mixes from the solver."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import msgspec
import numpy as np

from clover.accounting import Span, Spans
from clover.control.baselines.comparison import Overheads
from clover.control.baselines.shadow import Shadow
from clover.control.state.context import Context
from clover.control.state.family import Family
from clover.control.state.request import PlanRequest
from clover.control_time import control_task
from clover.errors import CloverError
from clover.planning.budget.counterfactual import Fixed
from clover.policies import BUDGETED, SPENDING
from clover.types import State

log = logging.getLogger("clover.control")


FindAlternatives = Callable[[State], Awaitable[tuple[Fixed, ...]]]
"""The best fixed mixes for a state (`clover.control.solver.client.SolverClient.alternatives`)."""


class Shadows:
    """The shadows by family.  If a family is unloaded, its shadow stays, and continues when the family is loaded
    again."""

    def __init__(self, context: Context, alternatives: FindAlternatives | None) -> None:
        self._context = context
        self._alternatives = alternatives
        self._known: dict[str, Shadow] = {}
        self._asking: asyncio.Task[None] | None = None

    @property
    def by_family(self) -> Mapping[str, Shadow]:
        """The shadows of families that were under control while energy was counted."""
        return self._known

    def compare(self, spans: Spans) -> None:
        """Compare what was served since the last call with what its shadows would have used."""
        context, grid_s = self._context, self._context.grid.now()
        for name, family in context.families.items():
            shadow = self._known.get(name)
            if shadow is None or shadow.family is not family:
                shadow = self._known[name] = Shadow(family) if shadow is None else shadow.renewed(family)
                self._observe(shadow)
            overheads = Overheads.none()
            for device, line in spans.unowned.items():
                overheads.unowned += self._part(name, device) * np.array(line)
            shadow.compare(spans.families.get(name, Span()), overheads, spans.seconds, grid_s)
        for name in spans.families.keys() & self._known.keys() - context.families.keys():
            # before it was unloaded
            self._known[name].compare(spans.families[name], Overheads.none(), spans.seconds, grid_s)

    def _part(self, family: str, device: str) -> float:
        """Return the family's part of a device's energy that no worker holds: its share, or its part of a GPU; of the
        host of GPUs an equal part."""
        device_pool = self._context.device_pool
        if device not in device_pool.shapes():
            return 1.0 / max(len(self._context.families), 1)
        return device_pool.part(family, device)

    def poll(self) -> None:
        """Follow devices and targets; if alternatives are missing, ask for those of one family."""
        context = self._context
        asking = self._asking is not None and not self._asking.done()
        for name, shadow in self._known.items():
            if context.families.get(name) is not shadow.family:
                continue
            self._observe(shadow)
            rate = None if asking else shadow.wanted(context.monotonic())
            if rate is not None and self._alternatives is not None:
                asking = True
                task = self._ask(shadow, rate, self._alternatives)
                self._asking = control_task(task, name="clover-shadow")

    def _observe(self, shadow: Shadow) -> None:
        context, family = self._context, shadow.family
        budgeted = context.policy_of(family) in BUDGETED
        objective = family.objective(
            family.targets, context.config, accuracy_budget=family.config.accuracy_budget if budgeted else None
        )
        if self._context.policy_of(family) in SPENDING and context.grid.perfect_forecast:
            shadow.perfect_forecast = True
        shadow.observe(context.devices_of(family.name), context.device_pool.share(family.name), objective)

    async def _ask(self, shadow: Shadow, rate: float, find: FindAlternatives) -> None:
        question = shadow.question
        try:
            mixes = await find(await self._state(shadow.family, shadow.floor, rate))
            if shadow.question is question:
                shadow.learn(rate, mixes)
        except CloverError as error:
            log.info("%s: nothing to compare with: %s", shadow.family.name, error)

    async def _state(self, family: Family, floor: float, rate: float) -> State:
        context = self._context
        targets = replace(family.targets, accuracy_floor=min(floor, family.targets.accuracy_floor))
        request = PlanRequest(trigger="alternatives", targets=targets, rate=rate)
        state = family.state(await context.conditions(family), context.config, request)
        # A fixed mix deals rows by chance; what a cascade saves is saved against that.
        return msgspec.structs.replace(state, objective=msgspec.structs.replace(state.objective, cascade=False))

    async def stop(self) -> None:
        """Stop asking the solver."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
