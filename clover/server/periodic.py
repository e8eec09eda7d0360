"""What a server does each second: a task for each job, so that none waits for another."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from clover.accounting import Account
from clover.carbon.grid import Grid
from clover.control.controller import Controller
from clover.control_time import control_task
from clover.errors import CloverError
from clover.server.cluster_follower import ClusterFollower
from clover.server.families import ServedFamilies
from clover.server.footprint import Footprint
from clover.server.ledger import ServerLedger
from clover.server.loading import Loading
from clover.server.machine import Machine
from clover.server.rollouts import RollOuts
from clover.server.sleeper import Sleeper

log = logging.getLogger("clover.server")

TICK_S = 1.0


class EnergyWindows:
    """Counts the energy, window after window: joules, what they emitted, and what both are booked on."""

    def __init__(
        self,
        grid: Grid,
        families: ServedFamilies,
        machine: Machine,
        account: Account,
        controller: Controller,
        footprint: Footprint,
        ledger: ServerLedger | None,
    ) -> None:
        self._grid = grid
        self._families = families
        self._machine = machine
        self._account = account
        self._controller = controller
        self._footprint = footprint
        self._ledger = ledger

    async def close(self) -> None:
        """Close the energy window, priced at the present intensity."""
        reading = await self._grid.priced()
        reference = self._controller.context.reference()
        for served in self._families.served.values():
            served.router.audits.grid(reading.g_per_kwh, reference.g_per_kwh)
        await self._machine.measure(reading)
        spans = self._account.collect_spans()
        self._controller.shadows.compare(spans)
        self._footprint.window(time.monotonic_ns(), reading, spans)
        if self._ledger is not None and not self._machine.beside:
            self._ledger.tick(reading)

    async def count(self) -> None:
        """Close the energy window; a failure is logged and stops nothing."""
        try:
            await self.close()
        except CloverError as error:
            log.warning("counting the energy failed: %s", error)
        except Exception:
            log.exception("counting the energy failed")

    async def forget(self, name: str) -> None:
        """Count what a family has used until now, as it is about to go."""
        await self.count()
        if self._ledger is not None:
            self._ledger.forget(name)


class Periodic:
    """What is done each second while a server is ready."""

    def __init__(
        self,
        windows: EnergyWindows,
        families: ServedFamilies,
        machine: Machine,
        controller: Controller,
        loading: Loading,
        rollouts: RollOuts,
        cluster: ClusterFollower,
        sleeper: Sleeper,
    ) -> None:
        self._sleeper = sleeper
        self._windows = windows
        self._families = families
        self._machine = machine
        self._controller = controller
        self._loading = loading
        self._rollouts = rollouts
        self._cluster = cluster

    def start(self, stack: contextlib.AsyncExitStack) -> None:
        """Begin, in the running loop, until `stack` is closed."""
        for turn, what in self.turns():
            task = control_task(each_second(turn, what), name=f"clover: {what}")
            stack.push_async_callback(cancel_task, task)

    def turns(self) -> tuple[tuple[Callable[[], Awaitable[None]], str], ...]:
        """Return what is done each second, with its name."""
        return (
            (self._windows.count, "counting the energy"),
            (self._watch_workers, "checking the workers"),
            (self._watch_devices, "checking the devices"),
            (self._sleeper.poll, "looking for families that may sleep"),
        )

    async def _watch_workers(self) -> None:
        """Check the workers.  Nothing slow is awaited before the next look, which would take that for a pause of the
        server's (`clover.runtime.workers.deaths`)."""
        for served in self._families.served.values():
            served.fleet.watch()
        self._families.follow(self._controller.context)
        self._rollouts.evaluate()
        self._cluster.poll()

    async def _watch_devices(self) -> None:
        """Check the GPUs; a driver may take its time to answer."""
        await self._machine.watch()
        unplanned = self._families.unplanned
        if unplanned and not self._loading.changing.locked():
            async with self._loading.changing:  # no worker is started for a family that is being unloaded
                for name, deployment in unplanned.items():
                    if self._families.served[name].state == "READY":
                        await deployment.follow()


async def each_second(
    turn: Callable[[], Awaitable[None]], what: str, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Call `turn` each second, for ever; a failure is logged as one of `what`, and ends nothing."""
    while True:
        await sleep(TICK_S)
        try:
            await turn()
        except CloverError as error:
            log.warning("%s failed: %s", what, error)
        except Exception:
            log.exception("%s failed", what)


async def cancel_task(task: asyncio.Task[Any]) -> None:
    """Cancel `task` and wait for its end."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
