"""Hours of grid time in which a budget is spent, on the rig of the controller."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable

from tests.support.control_fixture import Rig

HOUR = 3600.0


def on_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test on an event loop of its own."""

    @functools.wraps(test)
    def run(*args: object, **kwargs: object) -> None:
        async def main() -> None:
            await test(*args, **kwargs)

        asyncio.run(main())

    return run


async def served(made: Rig, hours: float, rows: float, accuracy: float) -> None:
    """Let time pass in which rows were answered with that accuracy."""
    figures = made.fleet.figures
    before = figures["rows"] * figures.get("accuracy_served", 0.0)
    figures["rows"] += rows
    figures["accuracy_served"] = (before + rows * accuracy) / figures["rows"]
    await made.look(hours * HOUR)
