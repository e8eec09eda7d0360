"""Has shares of rows swing around those of plans where one meter does not tell variants apart
(`clover.control.share_swings`).

The solver's process says how far they may.  Routing is all that changes: the deployment in force, its routing and what
is predicted of it stay those of the plan.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable

from msgspec import structs

from clover.control.context import Context
from clover.control.family import Family
from clover.control.recording import PlanResult, record
from clover.control.request import PlanRequest
from clover.control.share_swings import BLOCK_S, BLOCK_WINDOWS, FoundMoves, Runs, SwingSight, Turn
from clover.control_time import control_task
from clover.errors import CloverError
from clover.planning.model.metered import MixedVariant
from clover.planning.model.problem import LEAST_RATE
from clover.planning.model.swings import Move, moved
from clover.runtime.guard.guard import OK
from clover.types import State

log = logging.getLogger("clover.control")

FindSwings = Callable[[State], Awaitable[tuple[Move, ...]]]
"""The moves for a state (`clover.control.solver.client.SolverClient.swings`)."""

_ROUTES = ("applied", "routed", "rolled back", "failed", "fault")
"""Actions after which rows may go other ways than before."""


class Swinger:
    """Swings the shares of the families of `context`; not at all unless the server says who finds the moves
    (`find`)."""

    def __init__(self, context: Context) -> None:
        self.find: FindSwings | None = None
        self._context = context
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._found: dict[str, tuple[Runs, FoundMoves]] = {}
        self._decided: dict[str, tuple[int, int]] = {}
        """By family, the last decision that was seen: its id, and how often it was made."""

    def look(self, family: Family) -> None:
        """Move the shares of `family` on, or back, if it is time."""
        if self.find is None:
            family.swings.why = "nothing here finds how far shares may swing"
            return
        context, deployed, swings = self._context, family.deployed, family.swings
        now_s = context.monotonic()
        runs = (deployed.deployment, deployed.routing) if deployed is not None else None
        for_runs, found = self._found.pop(family.name, (None, None))
        seen = SwingSight(
            now_s=now_s,
            runs=runs,
            variants=_serving(family),
            block_s=max(BLOCK_S, BLOCK_WINDOWS * family.learned.window_s),
            rate=_rate(family),
            learned=family.learned.changed,
            barred=self._barred(family),
            pauses=self._pauses(family),
            found=found if for_runs == runs else None,
        )
        turn = swings.look(seen)
        if turn is not None and deployed is not None:
            self._route(family, turn)
        family.learned.swings = swings.on
        if swings.news and not swings.on:
            family.learned.settle()
        if swings.news and deployed is not None:
            result = PlanResult(action="routed", detail=swings.news, plan=deployed.plan, answers_demand=False)
            record(context, family, PlanRequest(trigger=swings.why), now_s, result)
        self._decided[family.name] = self._last(family)
        if swings.wants and runs is not None and family.name not in self._asking:
            asking = self._ask(family, runs, self.find)
            self._asking[family.name] = control_task(asking, name="clover-swings")

    def _route(self, family: Family, turn: Turn) -> None:
        """Move rows by `turn`; what is late before that is no evidence against the plan."""
        deployed, (move, sign) = family.deployed, turn
        assert deployed is not None
        shares = moved(deployed.routing.shares, move, sign)
        family.fleet.route(deployed.deployment, structs.replace(deployed.routing, shares=shares))
        family.slo.pressure.shares_moved(self._context.monotonic())

    async def _ask(self, family: Family, runs: Runs, find: FindSwings) -> None:
        """Ask for the moves, or why they are not known."""
        rate, learned = _rate(family), family.learned.changed
        moves: tuple[Move, ...] = ()
        failed = ""
        try:
            conditions = await self._context.conditions(family)
            # Without the margin of a plan's rate, which is for chance: a miss of the SLO ends the swings.
            request = PlanRequest(trigger="swings", rate=rate)
            demand = family.demand.wanted(self._context.monotonic())
            moves = await find(family.state(conditions, self._context.config, request, demand=demand))
        except CloverError as error:
            failed = str(error)
            log.info("%s: how far shares may swing is not known: %s", family.name, failed)
        except Exception as error:
            failed = f"{type(error).__name__}, see the log"
            log.exception("%s: how far shares may swing is not known", family.name)
        finally:
            if self._asking.get(family.name) is asyncio.current_task():
                del self._asking[family.name]
        self._found[family.name] = runs, FoundMoves(moves, rate, learned, failed)

    def forget(self, name: str) -> None:
        """Forget a family that is not controlled any more; one of its name that comes later is another."""
        if (asking := self._asking.pop(name, None)) is not None:
            asking.cancel()
        self._found.pop(name, None)
        self._decided.pop(name, None)

    def _barred(self, family: Family) -> str:
        """Return why shares may not swing, in words; empty if they may."""
        context, deployed, slo = self._context, family.deployed, family.slo
        if not context.config.swing_shares:
            return "swing_shares is off"
        if context.mode_of(family) != "active":
            return f"mode {context.mode_of(family)} changes nothing"
        if context.frozen_of(family):
            return "the model is frozen"
        if deployed is None:
            return "nothing runs"
        if deployed.routing.chain:
            return "in a cascade, the rows that are passed on tell its variants apart"
        if family.alarm_level != OK:
            return "its answers drift from the profile"
        if slo.late or not math.isnan(slo.missed_s) or slo.pressure.factor > 1.0:
            return "the SLO is missed, or was lately"
        if not deployed.plan.feasible:
            return "no plan meets the targets"
        return "standby workers take rows" if family.observed.get("relief", 0.0) else ""

    def _pauses(self, family: Family) -> str:
        """Return why shares may not swing just now, in words; empty if they may."""
        if family.trial:
            return "a new version is being tried"
        if family.applier.progress is not None or family.missing or self._context.must_move(family):
            return "workers change"
        if family.watch is not None:
            return "a new deployment is being watched"
        last = self._context.decisions.last(family.name)
        moved_on = self._last(family) != self._decided.get(family.name, self._last(family))
        return "rows were routed anew" if moved_on and last is not None and last.action in _ROUTES else ""

    def _last(self, family: Family) -> tuple[int, int]:
        last = self._context.decisions.last(family.name)
        return (last.id, last.count) if last is not None else (0, 0)

    async def stop(self) -> None:
        """Stop asking the solver."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _rate(family: Family) -> float:
    """Return the rows a second that arrive."""
    return max(family.arrivals.counted(), LEAST_RATE)


def _serving(family: Family) -> dict[str, MixedVariant]:
    """Return what is known of the variants that share a meter and have rows by plan."""
    shares = family.deployed.routing.shares if family.deployed is not None else {}
    return {variant: one for variant, one in family.learned.mixed.items() if shares.get(variant, 0.0) > 0.0}
