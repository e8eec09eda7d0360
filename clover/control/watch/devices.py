"""What happened to the devices since the last poll, and what follows for the families.

Workers on a lost GPU are given up at once, in every mode and also while frozen, and rows go to the others.  If the GPU
is back already they are given up too, because its instances and contexts are gone.

GPUs are then assigned anew (`clover.control.state.device_pool`).  They are also assigned anew if the load of families
that share one has moved far enough.  Each family that is concerned is planned again.
"""

from __future__ import annotations

import logging

from clover.control.plan.executor import Executor
from clover.control.plan.gate import still_possible
from clover.control.state.context import Context

log = logging.getLogger("clover.control")


class DeviceWatch:
    """Polls the devices for all families.  The caller holds the context's lock."""

    def __init__(self, context: Context, executor: Executor) -> None:
        self._context = context
        self._executor = executor
        self._losses = context.device_pool.losses()

    async def poll(self) -> None:
        """Give up workers on lost devices, assign GPUs anew, and leave the changes for the planner in `Family.news`."""
        context, pool, families = self._context, self._context.device_pool, self._context.families
        changes = pool.changes()
        losses = pool.losses()
        lost = pool.lost().union(name for name, times in losses.items() if times != self._losses[name])
        for family in families.values():
            if gone := family.devices & lost:
                await self._executor.give_up(family, gone)
        self._losses = losses
        if not (changes or pool.shared):
            return
        had = {name: {**dict.fromkeys(family.devices), **pool.assigned(name)} for name, family in families.items()}
        shapes = pool.shapes()
        if changes:
            log.warning("devices changed: %s", "; ".join(changes.values()))
            pool.assign(context.occupied())
        elif not pool.divide(context.needs(), context.monotonic()):
            return
        for name, family in families.items():
            before, now = had[name], pool.assigned(name) if pool.exclusive else dict.fromkeys(shapes)
            concerned = sorted({*before, *now})
            news = [changes[device] for device in concerned if device in changes]
            moved = [
                device
                for device in concerned
                if device not in changes
                and (device not in before or device not in now or before[device] not in (None, now[device]))
            ]
            owners = {device: " and ".join(pool.owners(device)) or "no model" for device in moved}
            news += [f"{device} is assigned to {names} now" for device, names in owners.items()]
            if news:
                family.news = "; ".join(dict.fromkeys(filter(None, (family.news, *news))))
            family.good = still_possible(family.good, tuple(shapes.values()))
            if family.good is not None and pool.outside(name, (item.placement for item in family.good.deployment)):
                family.good = None
