"""What `/metrics` of a server is read from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clover.control.baselines.saved import compared
from clover.telemetry.metrics import Metrics
from clover.telemetry.metrics.guard import rollouts
from clover.telemetry.metrics.server import cluster, control_calls, sandbox

if TYPE_CHECKING:
    from clover.server.engine import Engine  # circle: types only; the engine makes its own metrics


def metrics_of(engine: Engine) -> Metrics:
    """Return the metrics of an engine, whose parts are read at each scrape."""
    controller = engine.controller
    return Metrics(
        families=lambda: engine.served,
        account=engine.account,
        chain=engine.chain,
        http=lambda: engine.frontend.stats if engine.frontend is not None else None,
        decisions=lambda: controller.context.decisions.counts,
        compared=lambda: compared(controller.shadows.of, engine.account.devices()),
        sci=engine.footprint.report,
        turned=lambda: {name: (own.changes, own.turned) for name, own in controller.context.families.items()},
        parked=lambda: controller.context.parked.known,
        ledger=lambda: engine.ledger.status if engine.ledger is not None else None,
        spans=engine.otel.counts if engine.otel is not None else dict,
        further=[
            lambda: sandbox(engine.machine.sandbox()),
            lambda: control_calls(engine.operators.audit),
            lambda: rollouts(engine.rollouts.report(), engine.rollouts.counts),
            lambda: cluster(engine.cluster.report()),
            *([engine.page.metrics] if engine.page is not None else []),
            *([engine.frontend.metrics] if engine.frontend is not None else []),
        ],
    )
