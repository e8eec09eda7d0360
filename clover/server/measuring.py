"""Measures families that are served already, and has each one planned once it is measured.

Until then a family is served by its best variant with its plainest backend, which keeps any accuracy floor and refuses
no row by a prediction (`clover.server.unplanned`).  The measurement takes the cores where they are idle.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import msgspec

from clover import profiling
from clover.backends import child_environment
from clover.config import ServerConfig
from clover.control.wording import CANNOT_BE_PLANNED
from clover.errors import CloverError
from clover.interfaces import Device
from clover.planning.model.problem import accuracies
from clover.planning.model.queueing import TURNS
from clover.profiling.beside import measure_beside
from clover.runtime.served import Served
from clover.server.families import ServedFamilies
from clover.server.family_checks import check_floor
from clover.server.ledger import ServerLedger
from clover.server.loading import Loading
from clover.types import FamilyProfile

BEING_MEASURED = "is being measured"
"""`Served.unmeasured` of a family that is to have a profile soon."""

log = logging.getLogger("clover.server")


class Measuring:
    """Measures families one after another, and has each one planned once it has a profile."""

    def __init__(
        self,
        config: ServerConfig,
        families: ServedFamilies,
        devices: Mapping[str, Device],
        loading: Loading,
        ledger: ServerLedger | None,
    ) -> None:
        self._config = config
        self._families = families
        self._devices = devices
        self._loading = loading
        self._ledger = ledger

    async def run(self, waiting: Sequence[Served]) -> None:
        """Measure the families of `waiting` and have them planned.  A family that fails stays as it is."""
        for served in waiting:
            try:
                profile = await self._profile(served)
                check_floor(served.name, accuracies(profile), served.config.accuracy_floor)
                await self._plan(served, profile)
            except Exception as error:
                if not isinstance(error, CloverError):
                    log.exception("measuring %s failed", served.name)
                served.unmeasured = f"{CANNOT_BE_PLANNED}: {error}"
                log.error("%s %s; it stays served by its best variant", served.name, served.unmeasured)

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
