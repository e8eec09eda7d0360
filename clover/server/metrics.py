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
    """Return the metrics of an engine, whose parts are read at each scrape; its front ends add theirs."""
    controller = engine.controller
    found = Metrics(
        families=lambda: engine.served,
        account=engine.account,
        chain=engine.chain,
        http=lambda: engine.frontend.stats if engine.frontend is not None else None,
        decisions=lambda: controller.context.decisions.counts,
        compared=lambda: compared(controller.shadows.of, engine.account.devices()),
        sci=engine.footprint.report,
        turned=lambda: {name: (own.changes, own.turned) for name, own in controller.context.families.items()},
    )
    found.parked = controller.context.parked.known
    found.ledger = lambda: engine.ledger.status if engine.ledger is not None else None
    if engine.otel is not None:
        found.spans = engine.otel.counts
    found.further += [
        lambda: sandbox(engine.machine.sandbox()),
        lambda: control_calls(engine.operators.audit),
        lambda: rollouts(engine.rollouts.report(), engine.rollouts.counts),
        lambda: cluster(engine.cluster.report()),
    ]
    return found
