"""Orders to nodes, which may take longer than a look: a machine that starts, one that drains, one that hangs.

The controller gives an order and waits a moment for it.  An order that takes longer goes on by itself, and a later look
records how it ended.  So a node that does not answer delays nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

from clover.cluster.controller.records import StepKind
from clover.cluster.planning.records import NodeTarget
from clover.errors import CloverError

log = logging.getLogger("clover.cluster")

PROMPT_S = 1.0
"""Seconds that a look waits for orders that it gave."""
_AT_ONCE = 64

FAILURES = (CloverError, OSError, TimeoutError)


@dataclass(frozen=True)
class NodeOrder:
    """One order to a node; `epoch`, `target`: what it gives the node to follow, if it does."""

    kind: StepKind
    node: str
    epoch: int = 0
    target: NodeTarget | None = None


@dataclass(frozen=True)
class OrderEnd:
    """How an order ended: what failed, empty if nothing did."""

    order: NodeOrder
    failed: str


class NodeOrders:
    """The orders that are under way.  `patience_s`: how long one may take at most."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._limit = asyncio.Semaphore(_AT_ONCE)
        self._running: dict[tuple[StepKind, str], tuple[NodeOrder, asyncio.Task[str]]] = {}

    def running(self, kind: StepKind, node: str) -> bool:
        """Return whether such an order to a node is under way."""
        return (kind, node) in self._running

    async def give(self, orders: Sequence[tuple[NodeOrder, Awaitable[None]]]) -> None:
        """Give orders, and wait a moment for them."""
        tasks = set()
        for order, call in orders:
            task = asyncio.ensure_future(attempt(call, self._patience_s, self._limit))
            self._running[order.kind, order.node] = (order, task)
            tasks.add(task)
        if tasks:
            await asyncio.wait(tasks, timeout=PROMPT_S)

    def take_ended(self) -> list[OrderEnd]:
        """Return the orders that ended since the last call, and forget them."""
        done = [key for key, (_, task) in self._running.items() if task.done()]
        ended = []
        for key in done:
            order, task = self._running.pop(key)
            error = None if task.cancelled() else task.exception()
            if task.cancelled() or error is not None:
                ended.append(OrderEnd(order, f"{type(error).__name__}: {error}" if error else "it was given up"))
            else:
                ended.append(OrderEnd(order, task.result()))
        return ended

    async def close(self) -> None:
        """Give up what is under way."""
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._running.clear()


async def attempt(call: Awaitable[None], patience_s: float, limit: asyncio.Semaphore) -> str:
    """Wait for a call, `patience_s` at most from when its turn comes; return what failed, empty if nothing did."""
    try:
        async with limit, asyncio.timeout(patience_s):
            await call
    except FAILURES as error:
        return str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
    except Exception as error:  # whatever is wrong with one node, the others are to be looked at
        log.exception("a call to a node or the ingress failed")
        return f"{type(error).__name__}: {error}"
    return ""
