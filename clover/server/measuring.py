"""Measures families that are served already, and has each one planned once it is measured.

Until then a family is served by its best variant with its plainest backend, which keeps any accuracy floor and refuses
no row by a prediction (`clover.server.unplanned`).  The measurement takes the cores where they are idle.  One that was
killed, or found no memory, is begun again a few times.  A profile that was measured on a busy machine is measured once
more when the machine is calm; the next start plans with that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping

import msgspec

from clover import families, profiling
from clover.backends import child_environment
from clover.config import ServerConfig
from clover.control.wording import CANNOT_BE_PLANNED
from clover.errors import CloverError, ConfigError, ProfileError
from clover.hints import duration, program
from clover.interfaces import Device
from clover.planning.model.problem import accuracies
from clover.planning.model.queueing import TURNS
from clover.profiling.beside import measure_beside
from clover.profiling.joules import busy_share
from clover.profiling.measurement import BUSY, inflated
from clover.profiling.placements import device_cores
from clover.runtime.served import Served
from clover.server.families import ServedFamilies
from clover.server.family_checks import check_floor
from clover.server.ledger import ServerLedger
from clover.server.loading import Loading
from clover.types import FamilyProfile

BEING_MEASURED = "is being measured"
"""`Served.unmeasured` of a family that is to have a profile soon."""
AGAIN_S = (60.0, 300.0, 1800.0)
"""Seconds from a failure to the next measurement: after the first failure, the second, the third."""
CALM_S, LOOK_S = 60.0, 600.0
"""For how many seconds cores have to be idle before a profile is measured again, and how often that is looked for."""

log = logging.getLogger("clover.server")


class Measuring:
    """Measures families one after another, and has each one planned once it has a profile."""

    def __init__(
        self,
        config: ServerConfig,
        served_families: ServedFamilies,
        devices: Mapping[str, Device],
        loading: Loading,
        ledger: ServerLedger | None,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._config = config
        self._families = served_families
        self._devices = devices
        self._loading = loading
        self._ledger = ledger
        self._sleep = sleep
        self._one = asyncio.Lock()

    async def run(self, waiting: Iterable[Served]) -> None:
        """Measure the families of `waiting` that have no profile and have them planned, and measure again those with a
        profile of a busy machine.  A family that fails stays as it is."""
        await asyncio.gather(*(self._attend(served) for served in waiting))

    async def _attend(self, served: Served) -> None:
        if served.profile is None:
            await self._measure(served)
        if served.profile is not None and inflated(served.profile):
            await self._measure_calm(served)

    async def _measure(self, served: Served) -> None:
        """Measure a family and have it planned, again if that fails for a reason that may pass."""
        for wait_s in (*AGAIN_S, None):
            served.unmeasured = BEING_MEASURED
            try:
                async with self._one:
                    profile = await self._profile(served)
                    check_floor(served.name, accuracies(profile), served.config.accuracy_floor)
                    await self._plan(served, profile)
                return
            except Exception as error:
                if not isinstance(error, CloverError):
                    log.exception("measuring %s failed", served.name)
                why = str(error).removeprefix(f"{served.name}: ")
                stays = isinstance(error, ConfigError | ProfileError)
                if stays or wait_s is None:
                    command = f"`{program()} profile {families.reference(served.spec)}`"
                    again = "" if stays else f"; {command} measures it, and the next start plans with that"
                    served.unmeasured = f"{CANNOT_BE_PLANNED}: {why}{again}"
                    log.error("%s %s; it stays served by its best variant", served.name, served.unmeasured)
                    return
            served.unmeasured = f"is measured again {duration(wait_s, rough=True)} after that failed: {why}"
            log.warning("%s %s", served.name, served.unmeasured)
            await self._sleep(wait_s)

    async def _measure_calm(self, served: Served) -> None:
        """Measure a family again once the machine is calm, for the next start."""
        log.info("%s was measured on a busy machine: it is measured again once this machine is calm", served.name)
        try:
            while await busy_share(device_cores(self._devices), watch_s=CALM_S) > BUSY:
                await self._sleep(LOOK_S)
            async with self._one:
                anew = msgspec.structs.replace(self._config, profile="force")
                await measure_beside(served.spec, anew, child_environment())
        except Exception as error:
            log.warning("%s keeps its profile of a busy machine: %s", served.name, error)
        else:
            log.info("%s is measured again: the next start plans with that", served.name)

    async def _profile(self, served: Served) -> FamilyProfile:
        """Return the profile of a family, measured in a process of its own."""
        kept = msgspec.structs.replace(self._config, profile="require")
        await measure_beside(served.spec, self._config, child_environment())
        return await profiling.ensure(served.spec, self._devices, self._families.pool, kept)

    async def _plan(self, served: Served, profile: FamilyProfile) -> None:
        """Have a family planned from now on.  Its old workers serve until the first plan's workers do."""
        async with self._loading.changing:
            served.use(profile, served.drawn)
            try:
                await self._loading.plan(served)
            except BaseException:
                served.unmeasured = BEING_MEASURED
                served.use(None)
                raise
        served.router.recount()
        self._families.account.add_family(served.name, TURNS * profile.turn_j)
        if self._ledger is not None:
            self._ledger.serve(self._families.served)
        log.info("%s is measured, and planned from now on", served.name)
