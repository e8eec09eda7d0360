"""What runs the rows of batch jobs in a server: made from its families, its grid and its store of jobs."""

from __future__ import annotations

from clover.accounting import Account
from clover.carbon.grid import Grid
from clover.config import ServerConfig
from clover.http.waiting import RowRequests
from clover.runtime.router.waiting import SpareTime
from clover.server.families import ServedFamilies
from clover.tenants import Tenants
from clover.waiting.runner import BatchRunner, LiveLoad, planner
from clover.waiting.store import BatchStore


def build_runner(
    config: ServerConfig, store: BatchStore, families: ServedFamilies, account: Account, grid: Grid, tenants: Tenants
) -> BatchRunner:
    """Return what runs the rows of `store`; it does nothing before its `changed` is called."""

    def spare(name: str) -> SpareTime | None:
        model = families.models.get(name)
        # While a new version is rolled out, the name leads to two.
        found = [served for served in families.served.values() if served.router is model and served.state == "READY"]
        return found[0].spare_time() if found else None

    def live() -> tuple[float, int, int]:
        served = list(families.served.values())
        busy_s = sum(account.busy_ns(device) for device in families.devices) / 1e9
        waiting_s = sum(item.spare.busy_s for item in served if item.spare is not None)
        workers = sum(len(item.router.state.lanes.processes) for item in served)
        return busy_s - waiting_s, workers, sum(sum(item.traffic.codes.values()) for item in served)

    def past(hour: int) -> float | None:
        return grid.history.mean(hour)

    speed = config.carbon.trace_speed
    starter = RowRequests(spare, config.limits, tenants)
    load = LiveLoad(live, grid.now)
    return BatchRunner(store, starter, spare, load, planner(grid), now=grid.now, past=past, speed=speed)
