"""The families of a server: what serves each, and which model each name leads to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import cast

from clover import families
from clover.accounting import Account
from clover.cache import cache_folder
from clover.config import FamilyConfig, ServerConfig
from clover.control.report import budget_gauges, capacity_gauges
from clover.control.state.context import Context
from clover.control.watch.slo import slo_gauges
from clover.errors import ConfigError
from clover.interfaces import Device, Model
from clover.runtime.served import Served
from clover.runtime.workers.pool import Pool
from clover.server.family_checks import check_variants
from clover.server.unplanned import Unplanned
from clover.tenants import Tenants
from clover.types import FamilySpec


class ServedFamilies:
    """What serves each family (`served`), the model that each name leads to (`models`), and the deployments of families
    that are served without a plan (`unplanned`), all by name.

    A version that is being tried is a family of its own here (`clover.server.rollouts`).
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        pool: Pool,
        devices: Mapping[str, Device],
        account: Account,
        tenants: Tenants,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.served: dict[str, Served] = {}
        self.models: dict[str, Model] = {}
        self.unplanned: dict[str, Unplanned] = {}
        self.pool = pool
        self.devices = devices
        self.account = account
        self._config = config
        self._tenants = tenants
        self._loop = loop
        self._listeners: list[Callable[[], None]] = []

    def serve(self, item: FamilyConfig, spec: FamilySpec) -> None:
        """Make what serves a configured family, and let its name lead there; raises ConfigError."""
        families.check_manifest(spec, required=self._config.require_manifest)
        check_variants(item, spec)
        if (name := item.name or spec.name) in self.served:
            raise ConfigError(f"two families are called {name!r}: give one of them another name")
        self.add(item, spec)
        self.models[name] = self.own_model(name)

    def add(self, item: FamilyConfig, spec: FamilySpec) -> Served:
        """Make what serves a family, without workers; no name leads there yet."""
        served = Served(
            spec,
            item,
            pool=self.pool,
            devices=self.devices,
            account=self.account,
            workers=self._config.workers,
            cache=cache_folder(self._config.cache_dir),
            loop=self._loop,
        )
        self.served[served.name] = served
        self._count_tenants(served)
        self.pool.completions.add(served.router.reap)
        return served

    def drop(self, served: Served) -> None:
        """Forget a family without workers."""
        self.pool.completions.remove(served.router.reap)
        self.served.pop(served.name, None)
        served.close()

    def close(self) -> None:
        """Free the shared memory of every family; no worker may be left."""
        for served in self.served.values():
            served.close()

    def use_tenants(self) -> None:
        """Count what the tenants send, as they are now."""
        for served in self.served.values():
            self._count_tenants(served)

    def _count_tenants(self, served: Served) -> None:
        for tenant in self._tenants.all():
            served.traffic.for_tenant(tenant.name)  # so that metrics show a zero before its first request

    # --- names --------------------------------------------------------------------------------------------------------

    def own_model(self, name: str) -> Model:
        """Return a family's own model, whatever its name leads to now."""
        # A front end gives a router only tickets of that router, which the types of `Model` cannot express.
        return cast("Model", self.served[name].router)

    def lead(self, names: Mapping[str, Model], *, nowhere: Iterable[str] = ()) -> None:
        """Let `names` lead to these models from now on, and the names in `nowhere` to none."""
        self.models.update(names)
        for name in nowhere:
            self.models.pop(name, None)
        for listener in self._listeners:
            listener()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` each time that names lead to other models."""
        self._listeners.append(listener)

    # --- what the controller decides ----------------------------------------------------------------------------------

    def follow(self, context: Context) -> None:
        """Copy the targets in force, which operators may change, how they are held, and what was learned of profiles to
        where metrics read them."""
        for name, family in context.families.items():
            targets, served = family.targets, self.served[name]
            served.targets = {"slo_ms": targets.slo_ms, "accuracy_floor": targets.accuracy_floor}
            served.slo, served.corrections = slo_gauges(family), family.learned.gauges()
            served.budget = budget_gauges(context, family)
            served.set_capacity(capacity_gauges(context, family), context.config.max_utilisation)
