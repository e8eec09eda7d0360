"""How few cores would serve the present load, and which part of the energy is idle: reported, whatever is configured.

The solver's process works it out (`clover.planning.search.best`).  It is asked for one family at a time, every `ASK_S`
seconds at most, and only if the family's load has moved by more than `STEP`, or its targets or its corrected profile
changed.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from clover.accounting.boundaries import LIGHT_PART, TOO_LITTLE
from clover.accounting.labels import DeviceLines, join_labels, methods_of
from clover.control.state.context import Context
from clover.control.state.family import Family
from clover.control.state.request import PlanRequest, Targets
from clover.control_time import control_task
from clover.errors import CloverError
from clover.planning.model.cores import row_of_cores, sleeping_row
from clover.types import DeviceShape, State

log = logging.getLogger("clover.control")

ASK_S = 60.0
STEP = 0.1

FewestCores = Callable[[State], Awaitable[int | None]]
"""The fewest cores for a state (`clover.control.solver.client.SolverClient.fewest_cores`)."""


@dataclass(frozen=True)
class KnownNeed:
    """What the solver said of a family at `rate` rows a second: `cores`, or None if all of them are too few.
    `learned`: the corrections of its profile that the answer was made with."""

    rate: float
    targets: Targets
    learned: int
    cores: int | None


class CoreNeed:
    """How few cores would serve the families that share a row of cores."""

    def __init__(self, context: Context, fewest_cores: FewestCores | None) -> None:
        self._context = context
        self._fewest_cores = fewest_cores
        self._known: dict[str, KnownNeed] = {}
        self._asked_s = -math.inf
        self._asking: asyncio.Task[None] | None = None

    def poll(self) -> None:
        """Ask for one family whose load or targets have moved."""
        now_s = self._context.monotonic()
        busy = self._asking is not None and not self._asking.done()
        if self._fewest_cores is None or busy or now_s < self._asked_s + ASK_S or self.row() is None:
            return
        for family in self._context.families.values():
            rate, known = family.rate(self._context.config), self._known.get(family.name)
            asked = (family.targets, family.learned.changed)
            if known is None or (known.targets, known.learned) != asked or abs(rate - known.rate) > STEP * known.rate:
                self._asked_s = now_s
                asking = self._ask(family, rate, self._fewest_cores)
                self._asking = control_task(asking, name="clover-core-need")
                return

    async def _ask(self, family: Family, rate: float, fewest_cores: FewestCores) -> None:
        targets, learned = family.targets, family.learned.changed
        try:
            conditions = await self._context.conditions(family)
            state = family.state(conditions, self._context.config, PlanRequest(trigger="core need", rate=rate))
            self._known[family.name] = KnownNeed(rate, targets, learned, await fewest_cores(state))
        except CloverError as error:
            log.info("%s: how few cores would do is unknown: %s", family.name, error)

    def row(self) -> DeviceShape | None:
        """Return the row of cores that the families share; None if there is none."""
        return row_of_cores(tuple(self._context.device_pool.shapes().values()))

    @property
    def cores(self) -> int | None:
        """The fewest cores that would do for all families, each at the load it was last asked for; None if that is
        unknown, or if all cores are too few.  Families take their shares of the time of the same cores."""
        found = [self._known[name].cores if name in self._known else None for name in self._context.families]
        needs = [cores for cores in found if cores is not None]
        return max(needs) if needs and len(needs) == len(found) else None

    async def stop(self) -> None:
        """Stop asking the solver."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    def report(self, devices: Mapping[str, DeviceLines]) -> dict[str, Any] | None:
        """Return the idle part of the energy that `devices` used so far, whomever it is billed to, how many cores have
        workers, how few would do, and whether the load is too little to save on (`light`).  None before any energy was
        counted."""
        measured_j = sum(float(line["measured_j"]) for line in devices.values())
        idle_j = sum(float(line["rest_j"]) + float(line["carried_j"]) for line in devices.values())
        if measured_j <= 0.0:
            return None
        part = min(max(idle_j / measured_j, 0.0), 1.0)
        method = join_labels(methods_of(devices.values()))
        whole = "machine" if "measured" in method else "server"  # a model knows of nothing else that runs here
        words = f"idle is {100.0 * part:.3g} % of this {whole}'s energy so far ({method})"
        row, needed = self.row(), self.cores
        if row is None:
            return {"part": part, "idle_j": idle_j, "method": method, "light": False, "words": words}
        used = {
            core
            for family in self._context.families.values()
            for item in family.desired
            for core in range(item.placement.start, item.placement.start + item.placement.size)
        }
        fewer = needed is not None and needed < row.slices
        light = fewer and part >= LIGHT_PART
        if light:
            cores = "one core" if needed == 1 else f"{needed} of {row.slices} cores"
            words = f"{TOO_LITTLE}: {words}, {cores} would do"
        elif fewer:
            words += f"; at this load {needed} of {row.slices} cores would do"
        if sleeping_row((row,)) is not None and 0 < len(used) < row.slices:
            words += f"; {row.slices - len(used)} of {row.slices} cores have no worker"
        waits_s = self._waits_s(row)
        if waits_s:
            words += f"; --cores auto watches the load for {waits_s:.0f} s more before cores lose their workers"
        return {
            "part": part,
            "idle_j": idle_j,
            "method": method,
            "cores": row.slices,
            "cores_with_workers": len(used),
            "cores_would_do": needed,
            "core_sleep_w": row.core_sleep_w,
            "decides_in_s": waits_s,
            "light": light,
            "words": words,
        }

    def _waits_s(self, row: DeviceShape) -> float:
        """Return for how many seconds all families still keep the workers of the cores that they have; 0 if a family
        does not."""
        now_s = self._context.monotonic()
        until_s = [family.sleep.again_s((row,), now_s) for family in self._context.families.values()]
        return max(0.0, min((now_s if until is None else until for until in until_s), default=now_s) - now_s)
