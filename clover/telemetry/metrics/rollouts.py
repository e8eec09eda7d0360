"""Metrics of new versions of models that are being rolled out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import Metric

from clover.telemetry.metrics.table import COUNTER, GAUGE, MetricSpec, Sample, collect

Report = Mapping[str, Any]
"""A roll-out as the state shows it."""


def _by_version(report: Report, key: str) -> Iterator[Sample]:
    """Yield a count of the new version and one of the stable one."""
    found = report.get(key)
    if found and report["phase"] in _PHASES:
        yield (report["version"],), found["new"]
        yield (report["stable"],), found["stable"]


_PHASES = ("trial", "promoting", "rolling back")

ROLLOUTS: tuple[MetricSpec[Report], ...] = (
    MetricSpec(
        "clover_rollout_percent",
        "Percent of the requests that a new version of the model answers while it is tried; 0 without a roll-out",
        GAUGE,
        ("model", "version"),
        lambda report: [((report["version"],), report["percent"] if report["phase"] == "trial" else 0.0)],
    ),
    MetricSpec(
        "clover_rollout_requests",
        "Requests of clients that each version was to answer since the roll-out began",
        GAUGE,
        ("model", "version"),
        lambda report: _by_version(report, "requests"),
    ),
    MetricSpec(
        "clover_rollout_failed_requests",
        "Of these, those that the version refused or failed; clients have the stable version's answer instead",
        GAUGE,
        ("model", "version"),
        lambda report: _by_version(report, "failed"),
    ),
    MetricSpec(
        "clover_rollout_evidence",
        "Evidence of each test that the new version is worse, or fine, as a part of what decides",
        GAUGE,
        ("model", "version", "test", "that"),
        lambda report: (
            ((report["version"], name, that), test[that])
            for name, test in (report.get("tests") or {}).items()
            for that in ("worse", "fine")
            if report["phase"] in _PHASES
        ),
    ),
)

OUTCOMES: tuple[MetricSpec[Mapping[str, int]], ...] = (
    MetricSpec(
        "clover_rollouts",
        "Roll-outs of new versions that ended, by outcome: promoted, rolled back or failed",
        COUNTER,
        ("outcome",),
        lambda counts: (((outcome,), count) for outcome, count in counts.items()),
    ),
)


def rollouts(reports: Mapping[str, Report], counts: Mapping[str, int]) -> Iterator[Metric]:
    """Yield the metrics of roll-outs, from their reports by model and the number of each outcome."""
    yield from collect(ROLLOUTS, [((name,), report) for name, report in reports.items()])
    yield from collect(OUTCOMES, [((), counts)])
