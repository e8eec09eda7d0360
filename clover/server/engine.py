"""Everything of a server that lives on its event loop: families, workers, energy, carbon, controller, front end.

Start: bind the port (one that is taken must fail before a minute of measuring), wait for the zygote, measure what is
missing, let the controller deploy a first plan; ready.  Stop in the reverse order, also after a start that failed half
way: readiness false, drain delay, answer what was received, stop the controller, let workers finish and exit, stop the
pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, cast

import msgspec

from clover import carbon, energy, families, profiling
from clover.accounting import Account
from clover.cache import cache_folder
from clover.carbon.grid import Grid
from clover.config import FamilyConfig, ServerConfig, TenantConfig, TokenConfig
from clover.control.baselines.saved import saved_by_all
from clover.control.controller import Controller
from clover.control.report import budget_gauges, capacity_gauges
from clover.control.solver.client import SolverClient
from clover.control.state.ledger_files import LedgerFiles, budgets_folder
from clover.control.watch.slo import slo_gauges
from clover.control_time import control_task
from clover.errors import BadRequest, CloverError, ConfigError, NotFound, ProfileError, StartError
from clover.http.audit import Operators
from clover.http.loop_lag import LagWindows
from clover.interfaces import Control, Model, SplitModel
from clover.planning.model.problem import accuracies
from clover.profiles import ProfileStore
from clover.runtime.served import Served
from clover.runtime.workers.pool import Pool
from clover.server.cluster_follower import ClusterFollower
from clover.server.family_checks import check_floor, check_variants, without_plan
from clover.server.footprint import Footprint
from clover.server.front_ends import FrontEnds
from clover.server.ledger import ServerLedger
from clover.server.ledger_source import LedgerSource
from clover.server.loading import Loading
from clover.server.machine import NEVER_NS, Machine
from clover.server.metrics import metrics_of
from clover.server.otel import build_otel
from clover.server.page import DashboardPage
from clover.server.periodic import TICK_S, cancelled, each_second
from clover.server.rollout_files import RolloutFiles
from clover.server.rollouts import RollOuts
from clover.server.takeover.succession import Succession
from clover.server.totals import closing_words, model_totals
from clover.server.unplanned import Unplanned
from clover.tenants import Tenants
from clover.types import FamilyProfile, FamilySpec

log = logging.getLogger("clover.server")


class Engine:
    """The server, assembled; implements `clover.interfaces.ServerView`.

    `given` are family specs by name that need not be loaded; `http` says whether there is a front end; `succession`
    takes over from a server that runs.
    """

    def __init__(
        self,
        config: ServerConfig,
        given: Mapping[str, FamilySpec],
        pool: Pool,
        *,
        http: bool,
        succession: Succession | None = None,
    ) -> None:
        loop = self.loop = asyncio.get_running_loop()
        self.config, self.draining, self.reloads = config, False, 0
        self.handing: asyncio.Event | None = None  # once another server accepts; set: open connections do not count
        self._succession = succession
        self.served: dict[str, Served] = {}
        self.tenants, self.operators = Tenants(config.tenants), Operators.of(config)
        self._models: dict[str, Model] = {}
        self._unplanned: dict[str, Unplanned] = {}
        self.frontend: FrontEnds | None = None
        self._pool, self._stack = pool, contextlib.AsyncExitStack()
        self.account = Account(pue=config.carbon.pue, core_w=energy.cpu_power(config.energy).core_w)
        cache = cache_folder(config.cache_dir)
        self.machine = Machine(config, succession.boxes(cache) if succession is not None else cache, self.account)
        self.devices = self.machine.devices
        self.footprint = Footprint(config, self.devices, self.account)
        if succession is not None:
            self.machine.stand_beside()
            self.footprint.begin(NEVER_NS)
        self._stack.push_async_callback(self.machine.leave)  # last of all: workers hold its instances until then
        self._stack.push_async_callback(pool.stop)
        self._answered, self._completions = True, pool.completions
        files = RolloutFiles.of(config)
        self._stack.callback(self._free)
        try:
            self.chain, grid_clock = carbon.build(config.carbon)
            self.grid = Grid(self.chain, grid_clock.now)
            self._stack.push_async_callback(self.chain.close)
            for item in config.families:
                self._add(item, families.chosen(given.get(item.family) or files.serve(item), item.only))
        except BaseException:
            self._free()  # there is no engine to stop
            self.machine.close()
            raise
        self.lag, solver = LagWindows(), SolverClient()
        controller = self.controller = Controller(
            config.controller,
            devices=self.devices,
            grid=self.grid,
            solver=solver,
            store=ProfileStore(cache),
            ledger_files=LedgerFiles(budgets_folder(config), beside=succession is not None),
            front_lag=self.lag.typical,
            totals=self.totals,
            alternatives=solver.alternatives,
            fewest_cores=solver.fewest_cores,
        )
        self.loading = Loading(controller, self._unplanned, drain_s=config.limits.drain_s, changed=self._follow_targets)
        self.rollouts = RollOuts(self, files)
        controller.further["roll-out"] = self.rollouts.command
        self.cluster = ClusterFollower(
            controller.context, self.account.totals, lambda device: float(self.account.devices()[device]["idle_w"])
        )
        controller.further["cluster"] = self.cluster.command
        self.ledger: ServerLedger | None = None
        if config.ledger.keep == "on":
            source = LedgerSource(self.account, self.machine, self.served, self.controller, self.operators.audit)
            self.ledger = ServerLedger(config, source, self.account, self.footprint.hardware)
        self.otel = build_otel(config, loop, self.account, self.machine)
        self.page = DashboardPage(self) if http and config.listen.dashboard else None
        if http:
            mounted = self.page.mounted if self.page is not None else None
            tracer = self.otel.tracer if self.otel is not None else None
            self.frontend = FrontEnds(self, config, loop, self.tenants, self.operators, self.lag, mounted, tracer)
        self._metrics = metrics_of(self)

    def _add(self, item: FamilyConfig, spec: FamilySpec) -> None:
        families.check_manifest(spec, required=self.config.require_manifest)
        check_variants(item, spec)
        if (name := item.name or spec.name) in self.served:
            raise ConfigError(f"two families are called {name!r}: give one of them another name")
        served = self.add_served(item, spec)
        # A front end gives a router only tickets of that router, which the types of `Model` cannot express.
        self._models[served.name] = cast("Model", served.router)

    def add_served(self, item: FamilyConfig, spec: FamilySpec) -> Served:
        """Make what serves a family, without workers."""
        served = Served(
            spec,
            item,
            pool=self._pool,
            devices=self.devices,
            account=self.account,
            workers=self.config.workers,
            cache=cache_folder(self.config.cache_dir),
            loop=self.loop,
        )
        self.served[served.name] = served
        for tenant in self.tenants.all():
            served.traffic.of(tenant.name)  # so that metrics show a zero before its first request
        self._completions.add(served.router.reap)
        return served

    async def drop_served(self, served: Served) -> None:
        """Forget a family without workers, once what it used is counted."""
        await self.count()
        if self.ledger is not None:
            self.ledger.forget(served.name)
        self._completions.remove(served.router.reap)
        self.served.pop(served.name, None)
        served.close()

    def _free(self) -> None:
        """Free the shared memory of every family; no worker may be left."""
        for served in self.served.values():
            served.close()

    # --- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything; return once ready, or raise what went wrong.  `stop` must follow in both cases."""
        loop, stack = asyncio.get_running_loop(), self._stack
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
        await self._pool.start()
        await self.machine.start([served.spec.folder for served in self.served.values()])
        if self.ledger is not None:
            stack.push_async_callback(self.ledger.close)  # after all that counts
            if self._succession is None:
                self.ledger.start()
        await self._account()  # from here on joules count: those of measuring are control's, and of no family
        for served in self.served.values():
            profile = await self._profile(served)
            if profile is not None:
                check_floor(served.name, accuracies(profile), served.config.accuracy_floor)
            served.use(profile, profiling.drawn(served.spec, self.config))
        await self._account()
        for served in self.served.values():
            # Only now, or the first answers would share the energy of the minute of measuring.
            self.account.add_family(served.name, time.monotonic_ns())
        self._completions.start(loop)
        stack.callback(self._completions.stop)
        stack.push_async_callback(self._stop_fleets)
        stack.push_async_callback(self.controller.stop)
        stack.push_async_callback(self.rollouts.stop)
        await self._account()
        for served in self.served.values():
            if served.profile is None:
                self._unplanned[served.name] = Unplanned(served, self.controller.context)
                await self._unplanned[served.name].deploy()
            else:
                self.controller.add(served.spec, served.profile, served.fleet, served.config)
        await self.controller.start()
        await self.machine.rest()
        for served in self.served.values():
            served.state = "READY"
        self._follow_targets()
        self.rollouts.announce()
        if self.ledger is not None:
            self.ledger.serve(self.served)
        if self._succession is not None:
            await self._succession.complete(self)
        await self._account()  # so that the first receipts know already who holds how much idle power
        stack.push_async_callback(self._close_account)  # once nothing else counts, and before workers end
        if self._succession is not None:
            stack.push_async_callback(self._succession.settle)
        for turn, what in self._turns():
            task = control_task(each_second(turn, what), name=f"clover: {what}")
            stack.push_async_callback(cancelled, task)
        if self.frontend is not None:
            self.frontend.watch()
        if self.page is not None:
            self.page.start(stack)

    async def drain(self) -> bool:
        """Fail readiness, wait the drain delay, stop accepting, answer what was received; return whether all was."""
        if not self.draining:
            self.draining = True
            if self.frontend is not None and self.handing is not None:
                await self.frontend.linger(self.config.limits.drain_s, self.handing)
            self._close()
            if self.frontend is not None and self.handing is None:
                await asyncio.sleep(self.config.limits.drain_delay_s)
            for served in self.served.values():  # no worker is brought for anything any more
                served.router.decline_stranded("the server is shutting down")
            self.loading.stop()
            if self.frontend is not None:
                self._answered = await self.frontend.drain(self.config.limits.drain_s)
            routers = [served.router for served in self.served.values()]  # also of requests of this process
            self._answered = await self.loading.settled(routers) and self._answered
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
                await self.count()
        except TimeoutError:
            log.warning("the energy of the last second is not counted: the carbon source did not answer")
        devices = self.account.devices()
        idle = self.controller.core_need.report(devices)
        for words in closing_words(self.controller.shadows.of.values(), devices, idle):
            log.info("%s", words)

    def _close(self) -> None:
        self.draining = True
        for served in self.served.values():
            served.fleet.closing = True

    async def _stop_fleets(self) -> None:
        reason = "the server is shutting down"
        await asyncio.gather(*(self.loading.retire(served, reason) for served in self.served.values()))

    # --- plans ----------------------------------------------------------------------------------------------------

    async def _profile(self, served: Served) -> FamilyProfile | None:
        """Return the profile that a family is planned with, measured if needed; None if it is served without a plan."""
        spec = served.spec
        if planless := without_plan(spec):
            log.info("%s", planless)
            return None
        paced = any(device.shape().emulated for device in self.devices.values())
        pinned = served.config.variant if not paced else ""
        if self.config.profile == "auto" and not paced and (pinned or self.machine.gpus):
            try:
                stored = msgspec.structs.replace(self.config, profile="require")
                return await profiling.ensure(spec, self.devices, self._pool, stored)
            except ProfileError as error:
                if pinned:
                    # There is no variant to choose: a profile would only make receipts better, at a slow start's price.
                    log.info("%s is pinned to %s and served without a profile: %s", spec.name, pinned, error)
                    return None
        if not paced:
            await self.machine.empty()  # instances that an earlier run left on a GPU would hinder measuring
        profile = await profiling.ensure(spec, self.devices, self._pool, self.config)
        self.machine.profiled()
        return profile

    def _follow_targets(self) -> None:
        """Copy the targets in force, which operators may change, how they are held, and what was learned of profiles to
        where metrics read them."""
        for name, family in (context := self.controller.context).families.items():
            targets, served = family.targets, self.served[name]
            served.targets = {"slo_ms": targets.slo_ms, "accuracy_floor": targets.accuracy_floor}
            served.slo, served.corrections = slo_gauges(family), family.learned.gauges()
            served.budget = budget_gauges(context, family)
            served.set_capacity(capacity_gauges(context, family), context.config.max_utilisation)

    # --- periodic work --------------------------------------------------------------------------------------------

    async def _account(self) -> None:
        """Close the energy window, priced at the present intensity."""
        reading = await self.grid.priced()
        reference = self.controller.context.reference()
        for served in self.served.values():
            served.router.audits.grid(reading.g_per_kwh, reference.g_per_kwh)
        await self.machine.measure(reading)
        spans = self.account.take()
        self.controller.shadows.window(spans)
        self.footprint.window(time.monotonic_ns(), reading, spans)
        if self.ledger is not None and not self.machine.beside:
            self.ledger.tick(reading)

    def _turns(self) -> tuple[tuple[Callable[[], Awaitable[None]], str], ...]:
        """Return what is done each second, in a task each, so that none waits for another, with its name."""
        return (
            (self.count, "counting the energy"),
            (self._watch_workers, "checking the workers"),
            (self._watch_devices, "checking the devices"),
        )

    async def _watch_workers(self) -> None:
        """Check the workers.  Nothing slow is awaited before the next look, which would take that for a pause of the
        server's (`clover.runtime.workers.deaths`)."""
        for served in self.served.values():
            served.fleet.watch()
        self._follow_targets()
        self.rollouts.look()
        self.cluster.look()

    async def count(self) -> None:
        """Close the energy window; a failure is logged and stops nothing."""
        try:
            await self._account()
        except CloverError as error:
            log.warning("counting the energy failed: %s", error)
        except Exception:
            log.exception("counting the energy failed")

    async def _watch_devices(self) -> None:
        """Check the GPUs; a driver may take its time to answer."""
        await self.machine.watch()
        if self._unplanned and not self.loading.changing.locked():
            async with self.loading.changing:  # no worker is started for a family that is being unloaded
                for name, unplanned in self._unplanned.items():
                    if self.served[name].state == "READY":
                        await unplanned.follow()

    def use_tenants(self, configs: Iterable[TenantConfig]) -> None:
        """Make these the tenants, from the next request on."""
        self.tenants.use(configs)
        for served in self.served.values():
            for tenant in self.tenants.all():
                served.traffic.of(tenant.name)
        if self.frontend is not None:
            self.frontend.forget_heads()

    def use_tokens(self, token: str, configs: Iterable[TokenConfig]) -> None:
        """Make `token` (`listen.token`) and those of `configs` the valid ones, from the next request on."""
        self.operators.grants.use(token, configs)
        if self.frontend is not None:
            self.frontend.forget_heads()

    # --- ServerView -----------------------------------------------------------------------------------------------

    def models(self) -> dict[str, Model]:
        """Return every family by name, loaded or not."""
        return self._models

    @property
    def pool(self) -> Pool:
        """The processes of its workers."""
        return self._pool

    def models_own(self, name: str) -> Model:
        """Return a family's own model, whatever its name leads to now."""
        return cast("Model", self.served[name].router)

    def forget_endpoints(self) -> None:
        """Have the front end look up anew which model each name leads to."""
        if self.frontend is not None:
            self.frontend.forget_endpoints()

    def ready(self) -> bool:
        """Return whether every loaded family has capacity, and the server is not draining: one whose place another
        has taken answers for that one."""
        trials = self.rollouts.trials()
        loaded = [one for name, one in self.served.items() if one.state != "UNAVAILABLE" and name not in trials]
        return (not self.draining or self.handing is not None) and bool(loaded) and all(map(self._serves, loaded))

    def _serves(self, served: Served) -> bool:
        """Return whether a family has capacity: while a new version is promoted, that version's."""
        model = self._models[served.name]
        return model.ready and (served.state == "READY" or isinstance(model, SplitModel))

    def live(self) -> bool:
        """Return True: the loop runs, or this would not be asked."""
        return True

    def control(self) -> Control:
        """Return the controller."""
        return self.controller

    def totals(self) -> dict[str, Any]:
        """Return what the server counted so far: joules and grams by model and device, rows, workers."""
        sci = self.footprint.report()
        models = {
            name: model_totals(served, self.account, sci, tenants=bool(self.tenants))
            for name, served in self.served.items()
        }
        devices = {name: {**line, **self.machine.about(name)} for name, line in self.account.devices().items()}
        return {
            "pue": self.account.pue,
            "saved": saved_by_all(self.controller.shadows.of.values(), devices),
            "sci": sci.as_json(),
            "models": models,
            **({"tenants": self.tenants.as_json()} if self.tenants else {}),
            "devices": devices,
            "core_idle": self.machine.idle_states(),
            "ledger": self.ledger.report() if self.ledger is not None else None,
            "rollouts": self.rollouts.report(),
            "cluster": self.cluster.report(),
            "sandbox": self.machine.sandbox(),
        }

    def metrics(self) -> bytes:
        """Return Prometheus text."""
        return self._metrics.render()

    def pick(self, name: str | None) -> Served:
        """Return the family of that name, or the only one for None; raises NotFound or BadRequest."""
        if name is None:
            own = [served for key, served in self.served.items() if key not in self.rollouts.trials()]
            if len(own) != 1:
                raise BadRequest(f"say which model: {', '.join(served.name for served in own)}")
            return own[0]
        served = self.served.get(name) or self.rollouts.find(name)
        if served is None:
            raise NotFound("Request for unknown model: no model of that name is served")
        return served

    def state_of(self, name: str) -> tuple[str, str]:
        """Return a family's state and its reason, as the repository extension names them; raises NotFound."""
        served = self.pick(name)
        if served.state == "READY" and not served.ready:
            return "UNAVAILABLE", "no worker is ready"
        return served.state, served.reason

    async def load(self, name: str, config: str) -> None:
        """Start the workers of a family that was unloaded (`Loading.load`); raises NotFound, too, and Conflict while a
        new version of it is being rolled out."""
        self.rollouts.check_free(name)
        await self.loading.load(self.pick(name), config)

    async def unload(self, name: str) -> None:
        """Answer what a family has received, then stop its workers; raises NotFound, and Conflict while a new version
        of it is being rolled out."""
        self.rollouts.check_free(name)
        await self.loading.unload(self.pick(name))
