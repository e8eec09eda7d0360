"""A server on its event loop: starts, drains and stops its parts (`clover.server.parts`), and has its front end.

Start: bind the port (a port in use must fail before a minute of measuring), wait for the zygote, measure what is
missing, let the controller deploy a first plan; ready.  Stop, also after a start that failed half way: readiness false,
drain delay, answer what was received, stop the controller, let workers finish and exit, stop the pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from typing import Any

import msgspec

from clover import profiling
from clover.config import TenantConfig, TokenConfig
from clover.control.baselines.saved import compared
from clover.control_time import control_task
from clover.errors import ProfileError, StartError
from clover.interfaces import Control, Model, SplitModel
from clover.planning.model.problem import accuracies
from clover.planning.model.queueing import TURNS
from clover.profiling.measurement import inflated
from clover.runtime.served import Served
from clover.server.family_checks import check_floor, without_plan
from clover.server.front_ends import FrontEnds
from clover.server.measuring import BEING_MEASURED, Measuring
from clover.server.page import DashboardPage
from clover.server.parts import Parts
from clover.server.periodic import TICK_S, cancel_task
from clover.server.takeover.succession import Succession
from clover.server.totals import closing_words
from clover.server.unplanned import Unplanned
from clover.telemetry.metrics import Metrics
from clover.telemetry.metrics.guard import rollouts
from clover.telemetry.metrics.server import cluster, control_calls, sandbox
from clover.types import FamilyProfile

log = logging.getLogger("clover.server")


class Engine:
    """The server, assembled; implements `clover.interfaces.ServerView`.

    `http` says whether there is a front end; `succession` takes over from a server that runs.
    """

    def __init__(self, parts: Parts, *, http: bool, succession: Succession | None = None) -> None:
        self.parts = parts
        self.config = parts.config
        self.loop = parts.loop
        self.life = parts.life
        self.tenants = parts.tenants
        self.operators = parts.operators
        self.account = parts.account
        self.machine = parts.machine
        self.devices = parts.machine.devices
        self.chain = parts.chain
        self.grid = parts.grid
        self.served = parts.families.served
        self.controller = parts.controller
        self.ledger = parts.ledger
        self.otel = parts.otel
        self._succession = succession
        self._answered = True
        self._measuring: asyncio.Task[None] | None = None
        self._stack = contextlib.AsyncExitStack()
        self._stack.push_async_callback(parts.machine.leave)  # last of all: workers hold its instances until then
        self._stack.push_async_callback(parts.pool.stop)
        self._stack.callback(parts.families.close)
        self._stack.push_async_callback(parts.chain.close)
        self.page = DashboardPage(parts, self.ready) if http and parts.config.listen.dashboard else None
        self.frontend: FrontEnds | None = None
        if http:
            self.frontend = FrontEnds(self, parts, self.page.mounted if self.page is not None else None)
        self._metrics = self._make_metrics()
        parts.families.on_change(self._forget_endpoints)

    def _make_metrics(self) -> Metrics:
        """Return the metrics, which read the parts at each scrape."""
        parts, controller, ledger = self.parts, self.controller, self.ledger
        return Metrics(
            families=lambda: self.served,
            account=self.account,
            chain=self.chain,
            http=lambda: self.frontend.stats if self.frontend is not None else None,
            decisions=lambda: controller.context.decisions.counts,
            compared=lambda: compared(controller.shadows.by_family, self.account.devices()),
            sci=parts.footprint.report,
            turned=lambda: {name: (own.changes, own.turned) for name, own in controller.context.families.items()},
            parked=lambda: {gpu: time.since_s is not None for gpu, time in controller.context.parked.known.items()},
            ledger=lambda: ledger.status if ledger is not None else None,
            spans=self.otel.counts if self.otel is not None else dict,
            further=[
                lambda: sandbox(self.machine.sandbox()),
                lambda: control_calls(self.operators.audit),
                lambda: rollouts(parts.rollouts.report(), parts.rollouts.counts),
                lambda: cluster(parts.cluster.report()),
                *([self.frontend.metrics] if self.frontend is not None else []),
            ],
        )

    def mount(self) -> FrontEnds:
        """Return the front end, for an application that serves its paths.  A server without a port gets one that never
        listens."""
        if self.frontend is None:
            self.frontend = FrontEnds(self, self.parts, None)
            self.frontend.watch()
        return self.frontend

    # --- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything; return once ready, or raise what went wrong.  `stop` must follow in both cases."""
        loop, stack, parts = asyncio.get_running_loop(), self._stack, self.parts
        for served in self.served.values():
            # Before the first plan is made, so that each family plans with its own share of the machine.
            self.controller.reserve(served.name, served.config.share)
        if short := self.controller.context.device_pool.short():
            raise StartError(short)
        for served in self.served.values():
            served.memory_share = self.controller.context.device_pool.share(served.name)
        frontend = self.frontend  # not an application's, which may be asked from now on (`asgi`)
        await self.chain.open(self.grid.now())
        if self.otel is not None:
            stack.push_async_callback(self.otel.close)  # after the last answer
            self.otel.start()
        if frontend is not None:
            stack.push_async_callback(frontend.close)
            await frontend.start(self._succession.inherited if self._succession is not None else None)
        await parts.pool.start()
        await self.machine.start([served.spec.folder for served in self.served.values()])
        if self.ledger is not None:
            stack.push_async_callback(self.ledger.close)  # after all that counts
            if self._succession is None:
                self.ledger.start()
        stack.push_async_callback(parts.batches.close)
        parts.batches.start()
        await parts.windows.close()  # from here on joules count: those of measuring are control's, and of no family
        for served in self.served.values():
            profile = await self._profile(served)
            if profile is not None:
                check_floor(served.name, accuracies(profile), served.config.accuracy_floor)
            served.use(profile, profiling.paces_of(served.spec, self.config))
        await parts.windows.close()
        for served in self.served.values():
            # Only now, or the front end and control of the minute of measuring would be theirs.
            self.account.add_family(served.name, TURNS * served.profile.turn_j if served.profile is not None else 0.0)
        completions = parts.pool.completions
        completions.start(loop)
        stack.callback(completions.stop)
        stack.push_async_callback(self._stop_fleets)
        stack.push_async_callback(self.controller.stop)
        stack.push_async_callback(parts.rollouts.stop)
        await parts.windows.close()
        for served in self.served.values():
            if served.profile is None:
                unplanned = parts.families.unplanned[served.name] = Unplanned(served, self.controller.context)
                await unplanned.deploy()
            else:
                self.controller.add(served.spec, served.profile, served.fleet, served.config)
        stack.push_async_callback(parts.sleeper.stop)
        await self.controller.start(prepare=parts.sleeper.prepare)
        await self.machine.rest()
        for served in self.served.values():
            served.state = "READY"
        parts.families.follow(self.controller.context)
        parts.rollouts.announce()
        if self.ledger is not None:
            self.ledger.serve(self.served)
        if self._succession is not None:
            await self._succession.complete(parts, self.frontend)
        await parts.windows.close()  # so that the first receipts know already who holds how much idle power
        stack.push_async_callback(self._close_account)  # once nothing else counts, and before workers end
        if self._succession is not None:
            stack.push_async_callback(self._succession.settle)
        parts.periodic.start(stack)
        stack.push_async_callback(parts.waiting.stop)
        parts.batches.changed, parts.batches.reason = parts.waiting.changed, parts.waiting.reason
        parts.waiting.changed()
        if waiting := [served for served in self.served.values() if served.unmeasured or self._doubts(served)]:
            measuring = Measuring(self.config, parts.families, self.devices, parts.loading, self.ledger)
            self._measuring = control_task(measuring.run(waiting), name="clover: measuring")
            stack.push_async_callback(cancel_task, self._measuring)
        if self.frontend is not None:
            self.frontend.watch()
        if self.page is not None:
            self.page.start(stack)

    async def drain(self) -> bool:
        """Fail readiness, wait the drain delay, stop accepting, answer what was received; return whether all was."""
        life, loading = self.life, self.parts.loading
        if not life.draining:
            life.draining = True
            await self.parts.waiting.stop()
            if self.frontend is not None and life.handing is not None:
                await self.frontend.linger(self.config.limits.drain_s, life.handing)
            self._close()
            if self._measuring is not None:
                await cancel_task(self._measuring)
            if self.frontend is not None and life.handing is None:
                await asyncio.sleep(self.config.limits.drain_delay_s)
            for served in self.served.values():  # no worker is brought for anything any more
                served.router.decline_stranded("the server is shutting down")
            loading.stop()
            if self.frontend is not None:
                self._answered = await self.frontend.drain(self.config.limits.drain_s)
            routers = [served.router for served in self.served.values()]  # also of requests of this process
            self._answered = await loading.wait_answered(routers) and self._answered
        return self._answered

    async def stop(self) -> None:
        """Shut down whatever was started."""
        self._close()
        await self._stack.aclose()

    async def _close_account(self) -> None:
        """Count the energy until now, and log what was saved and what was idle.  A source of intensities that does not
        answer does not hold up the stop."""
        try:
            async with asyncio.timeout(TICK_S):
                await self.parts.windows.count()
        except TimeoutError:
            log.warning("the energy of the last second is not counted: the carbon source did not answer")
        devices = self.account.devices()
        idle = self.controller.core_need.report(devices)
        for words in closing_words(self.controller.shadows.by_family.values(), devices, idle):
            log.info("%s", words)

    def _close(self) -> None:
        self.life.draining = True
        for served in self.served.values():
            served.fleet.closing = True

    async def _stop_fleets(self) -> None:
        reason = "the server is shutting down"
        await asyncio.gather(*(self.parts.loading.retire(served, reason) for served in self.served.values()))

    # --- plans ----------------------------------------------------------------------------------------------------

    async def _profile(self, served: Served) -> FamilyProfile | None:
        """Return the profile that a family is planned with, measured if needed; None if it is served without a plan."""
        spec = served.spec
        if planless := without_plan(spec):
            log.info("%s", planless)
            return None
        serve_first = self.config.profile == "auto" and not self.machine.gpus and self._succession is None
        paced = any(device.shape().emulated for device in self.devices.values())
        pinned = served.config.variant if not paced else ""
        if self.config.profile == "auto" and not paced and (pinned or serve_first or self.machine.gpus):
            try:
                stored = msgspec.structs.replace(self.config, profile="require")
                return await profiling.ensure(spec, self.devices, self.parts.pool, stored)
            except ProfileError as error:
                if pinned:
                    # There is no variant to choose: a profile would only make receipts better, at a slow start's price.
                    log.info("%s is pinned to %s and served without a profile: %s", spec.name, pinned, error)
                    return None
                if serve_first:
                    served.unmeasured = BEING_MEASURED
                    words = "%s is measured while it serves; until then %s answers, without a plan"
                    log.info(words, spec.name, served.best)
                    return None
        if not paced:
            await self.machine.empty()  # instances that an earlier run left on a GPU would hinder measuring
        profile = await profiling.ensure(spec, self.devices, self.parts.pool, self.config)
        self.machine.use_context_power()
        return profile

    def _doubts(self, served: Served) -> bool:
        """Return whether a family's profile, which this server may measure again, was measured on a busy machine."""
        free = self.config.profile == "auto" and not self.machine.gpus and not served.config.variant
        profile = served.profile
        return free and profile is not None and profile.base.method == "measured" and bool(inflated(profile))

    # --- settings that change while it serves ---------------------------------------------------------------------

    def use_tenants(self, configs: Iterable[TenantConfig]) -> None:
        """Make these the tenants, from the next request on."""
        self.tenants.use(configs)
        self.parts.families.use_tenants()
        if self.frontend is not None:
            self.frontend.forget_heads()

    def use_tokens(self, token: str, configs: Iterable[TokenConfig]) -> None:
        """Make `token` (`listen.token`) and those of `configs` the valid ones, from the next request on."""
        self.operators.grants.use(token, configs)
        if self.frontend is not None:
            self.frontend.forget_heads()

    def _forget_endpoints(self) -> None:
        """Have the front end look up anew which model each name leads to."""
        if self.frontend is not None:
            self.frontend.forget_endpoints()

    # --- ServerView -----------------------------------------------------------------------------------------------

    def models(self) -> dict[str, Model]:
        """Return every family by name, loaded or not."""
        return self.parts.families.models

    def ready(self) -> bool:
        """Return whether every loaded family has capacity, and the server is not draining: one whose place another
        has taken answers for that one."""
        trials, life = self.parts.rollouts.trials(), self.life
        loaded = [
            served for name, served in self.served.items() if served.state != "UNAVAILABLE" and name not in trials
        ]
        return (not life.draining or life.handing is not None) and bool(loaded) and all(map(self._serves, loaded))

    def _serves(self, served: Served) -> bool:
        """Return whether a family has capacity: while a new version is promoted, that version's."""
        model = self.parts.families.models[served.name]
        return model.ready and (served.state == "READY" or isinstance(model, SplitModel))

    def live(self) -> bool:
        """Return True: the loop runs, or this would not be asked."""
        return True

    def control(self) -> Control:
        """Return what operators see of the server and may have it do."""
        return self.parts.control

    def totals(self) -> dict[str, Any]:
        """Return what the server counted so far: joules and grams by model and device, rows, workers."""
        return self.parts.totals.report()

    def metrics(self) -> bytes:
        """Return Prometheus text."""
        return self._metrics.render()

    def pick(self, name: str | None) -> Served:
        """Return the family of that name, or the only one for None (`RollOuts.pick`)."""
        return self.parts.rollouts.pick(name)

    def state_of(self, name: str) -> tuple[str, str]:
        """Return a family's state and its reason, as the repository extension names them; raises NotFound."""
        served = self.pick(name)
        if served.state == "READY" and not served.ready:
            return "UNAVAILABLE", "no worker is ready"
        return served.state, served.reason

    async def load(self, name: str, config: str) -> None:
        """Start the workers of a family that was unloaded (`Loading.load`); raises NotFound, too, and Conflict while a
        new version of it is being rolled out."""
        self.parts.rollouts.check_free(name)
        await self.parts.loading.load(self.pick(name), config)

    async def unload(self, name: str) -> None:
        """Answer what a family has received, then stop its workers; raises NotFound, and Conflict while a new version
        of it is being rolled out."""
        self.parts.rollouts.check_free(name)
        await self.parts.loading.unload(self.pick(name))
