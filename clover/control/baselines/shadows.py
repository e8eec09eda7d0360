"""The shadows of all families: fed with what the account took, told what the controller knows, asked of the solver."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from clover.accounting import Span, Spans
from clover.control.baselines.shadow import Shadow
from clover.control.family import Family
from clover.errors import CloverError
from clover.planning.budget.counterfactual import Fixed
from clover.policies import BUDGETED
from clover.types import State

if TYPE_CHECKING:
    from clover.control.controller import Controller

log = logging.getLogger("clover.control")


FixedMixes = Callable[[State], Awaitable[tuple[Fixed, ...]]]
"""The best fixed mixes of a state (`clover.control.solver.client.SolverClient.fixed_mixes`)."""


class Shadows:
    """By family; that of a family which is unloaded stays, and goes on when it is loaded again."""

    def __init__(self, controller: Controller, fixed_mixes: FixedMixes | None) -> None:
        self._controller = controller
        self._fixed_mixes = fixed_mixes
        self._known: dict[str, Shadow] = {}
        self._asking: asyncio.Task[None] | None = None

    @property
    def of(self) -> Mapping[str, Shadow]:
        """Those of the families that were under control while energy was counted."""
        return self._known

    def window(self, spans: Spans) -> None:
        """Lay what was served since the last call beside its shadows."""
        controller, grid_s = self._controller, self._controller.grid_clock.now()
        for name, family in controller.families.items():
            shadow = self._known.get(name)
            if shadow is None or shadow.family is not family:
                shadow = self._known[name] = Shadow(family) if shadow is None else shadow.renewed(family)
                self._look(shadow)
            held = [(j, g, self._part(name, device)) for device, (j, g) in spans.unowned.items()]
            unowned = sum(j * part for j, _, part in held), sum(g * part for _, g, part in held)
            shadow.window(spans.families.get(name, Span()), unowned, spans.seconds, grid_s)
        for name in spans.families.keys() & self._known.keys() - controller.families.keys():
            self._known[name].window(spans.families[name], (0.0, 0.0), spans.seconds, grid_s)  # before it was unloaded

    def _part(self, family: str, device: str) -> float:
        """Return the part of a device that nobody holds which is the family's."""
        device_pool = self._controller.device_pool
        return device_pool.share(family) if not device_pool.exclusive else float(device_pool.owner(device) == family)

    def look(self) -> None:
        """Follow what the controller knows by now; where fixed mixes are missing, ask for those of one family."""
        controller = self._controller
        asking = self._asking is not None and not self._asking.done()
        for name, shadow in self._known.items():
            if controller.families.get(name) is not shadow.family:
                continue
            self._look(shadow)
            rate = None if asking else shadow.wanted(controller.monotonic())
            if rate is not None and self._fixed_mixes is not None:
                asking = True
                task = self._ask(shadow, rate, self._fixed_mixes)
                self._asking = asyncio.get_running_loop().create_task(task, name="clover-shadow")

    def _look(self, shadow: Shadow) -> None:
        controller, family = self._controller, shadow.family
        budgeted = controller.policy_of(family) in BUDGETED
        objective = family.objective(
            family.targets, controller.config, accuracy_budget=family.config.accuracy_budget if budgeted else None
        )
        shadow.look(controller.devices_of(family), controller.device_pool.share(family.name), objective)

    async def _ask(self, shadow: Shadow, rate: float, fixed_mixes: FixedMixes) -> None:
        question = shadow.question
        try:
            found = await fixed_mixes(self._state(shadow.family, shadow.floor, rate))
            if shadow.question is question:
                shadow.learn(rate, found)
        except CloverError as error:
            log.info("%s: nothing to compare with: %s", shadow.family.name, error)

    def _state(self, family: Family, floor: float, rate: float) -> State:
        controller = self._controller
        targets = replace(family.targets, accuracy_floor=min(floor, family.targets.accuracy_floor))
        assert controller.reading is not None  # a look that asks has read it
        state = family.state(
            reading=controller.reading,
            grid_s=controller.grid_clock.now(),
            devices=controller.devices_of(family),
            share=controller.device_pool.share(family.name),
            config=controller.config,
            targets=targets,
            rate=rate,
            budgeted=controller.policy_of(family) in BUDGETED,
        )
        # A fixed mix deals rows by chance; what a cascade saves is saved against that.
        return msgspec.structs.replace(state, objective=msgspec.structs.replace(state.objective, cascade=False))

    async def stop(self) -> None:
        """Ask nothing any more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
