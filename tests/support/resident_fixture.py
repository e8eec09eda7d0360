"""A fleet of two variants that share a worker."""

from __future__ import annotations

from typing import Any

from clover.types import Routing
from tests.support.fleet_fixture import House, at

SMALL, LARGE = at(0), at(0, "large")
HALF = Routing(shares={"small": 1.0, "large": 1.0})
ONLY = {name: Routing(shares={name: 1.0}) for name in ("small", "large")}


async def shared(house: House) -> Any:
    """Return the worker that small and large share, both of which are routed."""
    house.holding = ("small", "large")
    await house.fleet.spawn(SMALL)
    await house.fleet.spawn(LARGE)
    house.fleet.route((SMALL, LARGE), HALF)
    (worker,) = house.started
    return worker


def ask(house: House, rows: int = 1) -> Any:
    ticket = house.router.open(rows)
    house.router.submit(ticket, lambda _: None)
    return ticket


def complete(house: House, worker: Any) -> None:
    links = house.router.state.lanes.links
    rows = {batch.id: len(batch.slots) for link in links for batch in link.batches.values()}
    for number in worker.sent:
        worker.done.append((number, 0, rows[number], house.now_ns, house.now_ns, 0))
    worker.sent.clear()
    house.router.reap()
