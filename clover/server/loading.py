"""Starting and stopping the workers of families while the server runs: loading, unloading, another version."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from clover.control.controller import Controller
from clover.errors import BadRequest, CloverError, Unavailable
from clover.families import published
from clover.malformed import MALFORMED
from clover.runtime.router.router import Router
from clover.runtime.served import Served
from clover.server.unplanned import Unplanned
from clover.types import FamilyProfile, FamilySpec

log = logging.getLogger("clover.server")

_STEP_S = 0.005
_IDLE_EXIT_S = 2.0
"""Seconds that workers have to exit in any case: those that are idle need some milliseconds."""


class Loading:
    """Deploys and retires families, one at a time (`changing`).  `changed` is called once a family is deployed."""

    def __init__(
        self,
        controller: Controller,
        unplanned: dict[str, Unplanned],
        *,
        drain_s: float,
        changed: Callable[[], None],
    ) -> None:
        self.changing = asyncio.Lock()
        self._controller = controller
        self._unplanned = unplanned
        self._drain_s = drain_s
        self._until_s = math.inf  # of the loop's clock: when all waiting ends
        self._changed = changed

    async def load(self, served: Served, config: str) -> None:
        """Start the workers of a family that was unloaded or sleeps; do nothing for a loaded one.

        `config` is empty, or the JSON of its configuration, whose "name" must be its own.  Raises BadRequest or
        Unavailable.
        """
        name = served.name
        if config:
            try:
                given: Any = msgspec.json.decode(config)
            except MALFORMED as error:
                raise BadRequest("parameter config is not JSON") from error
            if not isinstance(given, dict) or given.get("name", name) != name:
                raise BadRequest("parameter config is not the configuration of this model")
        async with self.changing:
            if served.state == "READY":
                await served.fleet.wake()
                return
            try:
                await self.deploy(served)
            except CloverError as error:
                served.state, served.reason = "UNAVAILABLE", "its workers did not start"
                log.warning("%s: failed to load: %s", name, error)
                await self._controller.release(name)
                await served.fleet.stop()
                if name in self._unplanned:
                    await self._unplanned[name].clear()
                raise Unavailable("its workers did not start") from error

    async def unload(self, served: Served) -> None:
        """Answer what a family has received, then stop its workers."""
        async with self.changing:
            if served.state == "UNAVAILABLE":
                return
            await self._end(served, "the model is unloaded")
            served.state, served.reason = "UNAVAILABLE", "unloaded"

    async def replace(self, served: Served, spec: FamilySpec, profile: FamilyProfile | None) -> None:
        """Serve another version of a family, with workers of its own, once what was received is answered; what an
        operator has set stays.  Nothing of it is answered meanwhile.  `changing` is held by the caller.  Raises
        CloverError if the workers do not start."""
        await self._end(served, "another version is being loaded")
        served.spec = spec
        served.router.spec = msgspec.structs.replace(spec, name=served.name)
        served.use(profile, served.drawn)
        if (cached := getattr(served.router, "cached", None)) is not None:
            cached.cache.clear()  # answers are never kept across versions
        served.router.feedback.forget()  # nor do late labels speak for another version than the one that answered
        try:
            await self.deploy(served)
        except CloverError:
            await self._controller.release(served.name)
            await served.fleet.stop()
            if served.name in self._unplanned:
                await self._unplanned[served.name].clear()
            raise

    async def _end(self, served: Served, reason: str) -> None:
        """Take nothing new, answer what was received, and stop the workers."""
        served.state = "UNLOADING"
        served.router.closed_reason = reason
        served.router.decline_stranded(reason)
        await self.wait_answered([served.router])  # before its workers stop taking from its queue
        await self._controller.release(served.name)
        await self.retire(served, reason)
        if served.name in self._unplanned:
            await self._unplanned[served.name].clear()

    async def deploy(self, served: Served) -> None:
        """Start the workers of a family that has none."""
        if untrained := published.caution(served.spec):
            log.warning("%s", untrained)
        if served.profile is None:
            await self._unplanned[served.name].deploy()
        else:
            await self._controller.adopt(served.spec, served.profile, served.fleet, served.config)
        served.router.closed_reason = ""
        served.router.decline_stranded("")
        served.state, served.reason = "READY", ""
        self._changed()

    async def plan(self, served: Served) -> None:
        """Have a family that has a profile by now planned; its workers serve until those of the first plan do.
        `changing` is held by the caller.  Raises CloverError, and leaves its workers as they are, if there is no
        plan."""
        if served.state == "READY":
            assert served.profile is not None
            running = self._unplanned[served.name].running
            await self._controller.adopt(served.spec, served.profile, served.fleet, served.config, running)
            served.fleet.renew(running)
            self._changed()
        self._unplanned.pop(served.name).hand_over()

    def stop(self) -> None:
        """Let all that is waited for from now on have `drain_s` together: the server stops."""
        self._until_s = asyncio.get_running_loop().time() + self._drain_s

    async def wait_answered(self, routers: Iterable[Router]) -> bool:
        """Wait until these routers have answered what they took, at most `drain_s`; return whether they did."""
        waiting = list(routers)
        loop = asyncio.get_running_loop()
        end_s = min(loop.time() + self._drain_s, self._until_s)
        while not all(router.idle for router in waiting):
            if loop.time() >= end_s:
                return False
            await asyncio.sleep(_STEP_S)
        return True

    async def retire(self, served: Served, reason: str) -> None:
        """Let the workers of a family finish and exit; fail what still waits after the drain time."""
        served.router.closed_reason = reason
        now_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(max(min(now_s + self._drain_s, self._until_s), now_s + _IDLE_EXIT_S)):
                await served.fleet.stop()
        except TimeoutError:
            log.warning("%s: workers did not finish within the drain time", served.name)
        served.router.fail_waiting(reason)
