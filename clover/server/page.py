"""What the dashboard gets from the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from clover._native.histogram import Histogram
from clover.dashboard import Feed, FeedSources

if TYPE_CHECKING:
    from clover.server.engine import Engine  # circle: types only; the engine makes its own feed


def feed_of(engine: Engine) -> Feed:
    """Return the dashboard's feed of an engine whose controller is made."""
    context = engine.controller.context

    def latency() -> Mapping[str, Histogram]:
        return {name: served.traffic.latency for name, served in engine.served.items()}

    return Feed(
        FeedSources(
            state=engine.controller.state,
            decisions=context.decisions.records,
            latency=latency,
            ready=engine.ready,
            draining=lambda: engine.draining,
            grid=engine.grid,
            chain=engine.chain,
            intensity_change=lambda: context.config.intensity_change,
        )
    )
