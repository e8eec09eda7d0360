"""Metrics of how answers are checked: the guard's tests and measures, audits, and labels that clients send later, all
read from what `Router.guard_report` reports of a model; and new versions of models that are being rolled out, read from
a roll-out as the state shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client.core import Metric

from clover.runtime.guard.pattern import PATTERNS
from clover.telemetry.metrics.table import COUNTER, GAUGE, MetricSpec, Sample, by_label, collect, single

Report = Mapping[str, Any]

STEPS = {"ok": 0.0, "tightened": 1.0, "aside": 2.0}
"""States of the guard as `clover_guard_state` shows them."""

_MODEL = ("model",)
_TEST = ("model", "variant", "kind")


def _of_tests(read: Callable[[Report], float]) -> Callable[[Report], Iterator[Sample]]:
    """Return how to read one figure of every test of a model."""
    return lambda report: (
        ((variant, kind), read(test)) for variant, tests in report["variants"].items() for kind, test in tests.items()
    )


def _agreements(report: Report) -> Iterator[Sample]:
    """Yield agreement with the auditor, of the tests that compare it."""
    for variant, tests in report["variants"].items():
        for kind, test in tests.items():
            for key, part in (("agreement", "seen"), ("expected", "expected")):
                if key in test:
                    yield (variant, kind, part), test[key]


TESTS: tuple[MetricSpec[Report], ...] = (
    MetricSpec(
        "clover_guard_state",
        "State of a model's guard: 0 (answers are as profiled), 1 (they drift, and cascade thresholds were "
        "tightened) or 2 (they drift, and no cascade is used).",
        GAUGE,
        _MODEL,
        lambda report: single(STEPS[report["state"]]),
    ),
    MetricSpec(
        "clover_guard_alarms",
        "Times that a statistical test found answers to differ from the profile, by model.",
        COUNTER,
        _MODEL,
        lambda report: single(report["alarms"]),
    ),
    MetricSpec(
        "clover_guard_statistic",
        "Statistic of a test as a fraction of its limit, by model, variant and kind of test; 1 is an alarm.",
        GAUGE,
        _TEST,
        _of_tests(lambda test: test["statistic"] / test["limit"]),
    ),
    MetricSpec(
        "clover_agreement",
        "Fraction of audited rows on which a variant agrees with the best one, by model, variant, kind of test and "
        "part: seen, or expected by the profile.",
        GAUGE,
        (*_TEST, "part"),
        _agreements,
    ),
    MetricSpec(
        "clover_guard_pattern",
        "1 for what the inputs of a model look like, by pattern: none (as profiled), drift (of all clients), "
        "client (a few send unusual ones), repeats (they send the same again and again) or probe (most rows of all "
        "do).",
        GAUGE,
        ("model", "pattern"),
        lambda report: by_label({kind: float(kind == report["pattern"]["kind"]) for kind in PATTERNS}),
    ),
)

AUDITS: tuple[MetricSpec[Report], ...] = (
    MetricSpec(
        "clover_audits",
        "Audits (rows that the best variant answers again in the background) by model and outcome: answered, free "
        "(it had answered anyway), or why none was made.",
        COUNTER,
        ("model", "outcome"),
        lambda audits: by_label({"answered": audits["answered"], "free": audits["free"], **audits["dropped"]}),
    ),
)

FEEDBACK: tuple[MetricSpec[Report], ...] = (
    MetricSpec(
        "clover_feedback_rows",
        "Answered rows for which a client sent the right label later, by model and the variant that answered.",
        COUNTER,
        ("model", "variant"),
        lambda feedback: by_label({variant: seen["rows"] for variant, seen in feedback["variants"].items()}),
    ),
    MetricSpec(
        "clover_feedback_refused",
        "Refused calls that sent labels, by model and reason: unknown (no answer of that id is remembered), unfit "
        "(the labels do not fit the answer) or limited (one client sent too many).",
        COUNTER,
        ("model", "reason"),
        lambda feedback: by_label(feedback["refused"]),
    ),
)


def guard(reports: Mapping[str, Report]) -> Iterator[Metric]:
    """Yield the metrics of the checks of answers; `reports` are those of `Router.guard_report`, by model."""
    yield from collect(TESTS, (((name,), report) for name, report in reports.items() if report["watches"]))
    yield from collect(
        AUDITS, (((name,), report["audits"]) for name, report in reports.items() if report["audits"]["on"])
    )
    yield from collect(FEEDBACK, (((name,), report["feedback"]) for name, report in reports.items()))


def _requests_by_version(report: Report) -> Iterator[Sample]:
    """Yield what the new version and the stable one were given, by outcome."""
    if report["phase"] in _PHASES and (requests := report.get("requests")):
        failed = report.get("failed") or {"new": 0, "stable": 0}
        for version, which in ((report["version"], "new"), (report["stable"], "stable")):
            yield (version, "answered"), requests[which] - failed[which]
            yield (version, "failed"), failed[which]


_PHASES = ("trial", "promoting", "rolling back")

ROLLOUTS: tuple[MetricSpec[Report], ...] = (
    MetricSpec(
        "clover_rollout_percent",
        "Percent of the requests that a new version answers while it is tried, by model and version; 0 without a "
        "roll-out.",
        GAUGE,
        ("model", "version"),
        lambda report: [((report["version"],), report["percent"] if report["phase"] == "trial" else 0.0)],
    ),
    MetricSpec(
        "clover_rollout_requests",
        "Requests that each version was given since the roll-out began, by model, version and outcome: failed (the "
        "stable version answered them instead), or answered.",
        GAUGE,
        ("model", "version", "outcome"),
        _requests_by_version,
    ),
    MetricSpec(
        "clover_rollout_evidence",
        "Evidence that a new version is worse, or fine, as a fraction of what decides, by model, version, test and "
        "that (worse or fine).",
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
        "Roll-outs of new versions that ended, by outcome: promoted, rolled back or failed.",
        COUNTER,
        ("outcome",),
        by_label,
    ),
)


def rollouts(reports: Mapping[str, Report], counts: Mapping[str, int]) -> Iterator[Metric]:
    """Yield the metrics of roll-outs, from their reports by model and the number of each outcome."""
    yield from collect(ROLLOUTS, [((name,), report) for name, report in reports.items()])
    yield from collect(OUTCOMES, [((), counts)])
