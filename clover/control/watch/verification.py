"""Verifies that a new deployment does what was planned; if not, the last good one is restored.

A new deployment is watched for `verify_s`.  It is bad if its workers keep dying.  It is also bad if its p95 is beyond
the SLO and more than `WORSE` times the predicted one, although no more rows arrive than were planned for.  The observed
p95 covers the last `WINDOW_S` and at first still holds rows from before, so it is judged only after that time.
"""

from __future__ import annotations

from dataclasses import replace

from clover.config import ControllerConfig
from clover.control.plan.executor import Executor
from clover.control.state.arrivals import WINDOW_S
from clover.control.state.family import DeployedPlan, Family, Watch
from clover.control.state.slo.pressure import LEAST_QUEUE
from clover.control.state.triggers import RATE_CHANGE

WORSE = 1.5
LEAST_ROWS = 20.0
"""Rows that were answered since, before a p95 is believed."""
_DEATHS = 2.0


async def verify(family: Family, config: ControllerConfig, executor: Executor, now_s: float) -> bool:
    """Judge the deployment of a family if it is under verification; return whether it was rolled back just now."""
    watch, deployed = family.watch, family.deployed
    if watch is None or deployed is None:
        return False
    seen = family.observed
    why = ""
    watch.missing = watch.missing + 1 if family.missing else 0
    deaths = seen.get("restarts", 0.0) - watch.restarts
    if deaths >= _DEATHS or watch.missing >= 2:
        why = "its workers die"
    elif _works_off_queue(family, watch):
        watch.since_s = now_s
        return False
    elif now_s < watch.since_s + config.verify_s:
        return False
    elif _worse(family, deployed, watch):
        if now_s < watch.since_s + max(config.verify_s, WINDOW_S):
            return False
        missed = seen["p95_ms"] <= watch.late_ms  # also what it replaced missed the SLO, and by more
        if missed or (family.good is not None and not family.good.plan.feasible):
            # What it replaced is known to miss its limits, so going back would not help: watch on.
            _watch_on(family, watch, now_s)
            return False
        predicted = deployed.plan.prediction.p95_ms
        why = f"p95 {seen['p95_ms']:.2f} ms is beyond the SLO and far above the predicted {predicted:.2f} ms"
    if why and family.good is not None and family.good.deployment != deployed.deployment:
        await executor.roll_back(family, why)
        return True
    if why:  # there is nothing to go back to
        _watch_on(family, watch, now_s)
        return False
    family.watch = None
    family.good = deployed
    family.backoffs.pop(deployed.configuration, None)
    return False


def _watch_on(family: Family, watch: Watch, now_s: float) -> None:
    family.watch = replace(watch, since_s=now_s, restarts=family.observed.get("restarts", 0.0), missing=0)


def _works_off_queue(family: Family, watch: Watch) -> bool:
    """Return whether rows that waited before this deployment came are still being worked off: their latency says
    nothing about the deployment.  This ends with the first poll at which the queue did not shrink."""
    queue_rows = family.observed.get("queue_rows", 0.0)
    shrinks = LEAST_QUEUE <= watch.queue_rows > queue_rows
    watch.queue_rows = queue_rows if shrinks else 0.0
    return shrinks


def _worse(family: Family, deployed: DeployedPlan, watch: Watch) -> bool:
    """Return whether the p95 is beyond the SLO and clearly worse than predicted, at no more than the planned load."""
    seen = family.observed
    p95_ms = seen.get("p95_ms")
    if p95_ms is None or seen.get("rows", 0.0) - watch.rows < LEAST_ROWS:
        return False
    expected_load = watch.rate * (1.0 + RATE_CHANGE) + 1.0
    limit_ms = max(family.targets.slo_ms, WORSE * deployed.plan.prediction.p95_ms)
    return p95_ms > limit_ms and seen.get("arrival_rate", 0.0) <= expected_load
