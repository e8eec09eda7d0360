"""Metrics of how answers are checked: the guard's tests and measures, audits, and labels that clients send later, all
read from what `Served.guard_report` reports of a model; and new versions of models that are being rolled out, read from
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
        "0: answers are as profiled; 1: drift, cascade thresholds were tightened; 2: drift, the cascade is not used",
        GAUGE,
        _MODEL,
        lambda report: single(STEPS[report["state"]]),
    ),
    MetricSpec(
        "clover_guard_alarms",
        "Alarms: times that a statistical test found answers to differ from the profile",
        COUNTER,
        _MODEL,
        lambda report: single(report["alarms"]),
    ),
    MetricSpec(
        "clover_guard_statistic",
        "How near a test is to an alarm: its statistic divided by its limit; 1 is an alarm",
        GAUGE,
        _TEST,
        _of_tests(lambda test: test["statistic"] / test["limit"]),
    ),
    MetricSpec(
        "clover_guard_rows",
        "Rows that the test has seen since it was started",
        GAUGE,
        _TEST,
        _of_tests(lambda test: float(test["rows"])),
    ),
    MetricSpec(
        "clover_agreement",
        "Fraction of audited rows on which the variant agrees with the auditor: seen, and expected by the profile",
        GAUGE,
        (*_TEST, "part"),
        _agreements,
    ),
    MetricSpec(
        "clover_guard_inputs",
        "Rows by whether their input was new or a repeat; tests leave repeats out",
        COUNTER,
        ("model", "input"),
        lambda report: by_label({"new": report["inputs"], "repeat": report["repeats"]}),
    ),
    MetricSpec(
        "clover_guard_pattern",
        "What clients' inputs look like, 1 for what applies: none (as profiled), drift (of all clients), client (a few "
        "send unusual inputs), repeats (they send the same inputs again and again), probe (most rows of all do)",
        GAUGE,
        ("model", "pattern"),
        lambda report: by_label({kind: float(kind == report["pattern"]["kind"]) for kind in PATTERNS}),
    ),
    MetricSpec(
        "clover_guard_returns",
        "Times that the guard undid a measure by itself, because answers are as profiled again",
        COUNTER,
        _MODEL,
        lambda report: single(report["returns"]),
    ),
)

AUDITS: tuple[MetricSpec[Report], ...] = (
    MetricSpec(
        "clover_audit_share",
        "Fraction of rows that the best variant answers again in the background, as a check, now",
        GAUGE,
        _MODEL,
        lambda audits: single(audits["share"]),
    ),
    MetricSpec(
        "clover_audit_lowest_share",
        "Lowest fraction of rows audited in any full hour",
        GAUGE,
        _MODEL,
        lambda audits: () if audits["lowest_share"] is None else single(audits["lowest_share"]),
    ),
    MetricSpec(
        "clover_audits_owed",
        "Audits still to be made this hour to reach the least fraction",
        GAUGE,
        _MODEL,
        lambda audits: single(audits["owed"]),
    ),
    MetricSpec(
        "clover_audits",
        "Audits by outcome: answered, free (the best variant had answered anyway), or why one was not made (repeat: "
        "the input had been audited before)",
        COUNTER,
        ("model", "outcome"),
        lambda audits: by_label({"answered": audits["answered"], "free": audits["free"], **audits["dropped"]}),
    ),
    MetricSpec(
        "clover_audit_joules",
        "Energy of audits in joules; clover_energy_joules includes it",
        COUNTER,
        ("model", "method"),
        lambda audits: by_label({audits["method"]: audits["energy_j"]}),
    ),
)

FEEDBACK: tuple[MetricSpec[Report], ...] = (
    MetricSpec(
        "clover_feedback_rows",
        "Answered rows for which a client sent the right label later",
        COUNTER,
        ("model", "variant"),
        lambda feedback: by_label({variant: found["rows"] for variant, found in feedback["variants"].items()}),
    ),
    MetricSpec(
        "clover_accuracy_feedback",
        "Accuracy served by the labels that clients sent, percent, with its 95 % interval (part: low, accuracy, high)",
        GAUGE,
        ("model", "part"),
        lambda feedback: by_label(
            {part: feedback["estimate"][part] for part in ("low", "accuracy", "high")} if feedback["estimate"] else {}
        ),
    ),
    MetricSpec(
        "clover_feedback_refused",
        "Feedback requests that were refused: unknown (no answer of that id is remembered), unfit (the labels do not "
        "fit the answer), or limited (one client sent too many)",
        COUNTER,
        ("model", "reason"),
        lambda feedback: by_label(feedback["refused"]),
    ),
    MetricSpec(
        "clover_feedback_largest_share",
        "Fraction of all labelled rows whose labels came from the one client that gave most",
        GAUGE,
        _MODEL,
        lambda feedback: () if feedback["largest_share"] is None else single(feedback["largest_share"]),
    ),
)


def guard(reports: Mapping[str, Report]) -> Iterator[Metric]:
    """Yield the metrics of the checks of answers; `reports` are those of `Served.guard_report`, by model."""
    yield from collect(TESTS, (((name,), report) for name, report in reports.items() if report["watches"]))
    audits = {name: report["audits"] for name, report in reports.items()}
    yield from collect(AUDITS, (((name,), found) for name, found in audits.items() if found["on"]))
    yield from collect(FEEDBACK, (((name,), report["feedback"]) for name, report in reports.items()))


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
