"""Metrics of what watches over answers: the guard's ladder, what it saw, the audits, and late labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

STEPS = {"ok": 0.0, "tightened": 1.0, "aside": 2.0}


class GuardedSource(Protocol):
    """A family whose answers may be watched (`clover.runtime.router.router.Router.guard_report`)."""

    def guard_report(self) -> Mapping[str, Any]: ...


def guarded(families: Mapping[str, GuardedSource]) -> Iterator[Metric]:
    """Yield every metric of the guards of `families`, read now."""
    found = {name: family.guard_report() for name, family in families.items()}
    yield from _tests({name: told for name, told in found.items() if told["watches"]})
    yield from _audits({name: told["audits"] for name, told in found.items() if told["audits"]["on"]})
    yield from _feedback({name: told["feedback"] for name, told in found.items()})


def _tests(found: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    kinds = ("model", "variant", "kind")
    state = GaugeMetricFamily(
        "clover_guard_state",
        "0: answers are as profiled; 1: drift, cascade thresholds were tightened; 2: drift, the cascade is not used",
        labels=("model",),
    )
    alarms = CounterMetricFamily(
        "clover_guard_alarms",
        "Alarms: times that a statistical test found answers to differ from the profile",
        labels=("model",),
    )
    statistic = GaugeMetricFamily(
        "clover_guard_statistic",
        "How near a test is to an alarm: its statistic divided by its limit; 1 is an alarm",
        labels=kinds,
    )
    rows = GaugeMetricFamily("clover_guard_rows", "Rows that the test has seen since it was started", labels=kinds)
    inputs = CounterMetricFamily(
        "clover_guard_inputs",
        "Rows by whether their input was new or a repeat; tests leave repeats out",
        labels=("model", "input"),
    )
    returns = CounterMetricFamily(
        "clover_guard_returns",
        "Times that the guard undid a measure by itself, because answers are as profiled again",
        labels=("model",),
    )
    agreement = GaugeMetricFamily(
        "clover_agreement",
        "Fraction of audited rows on which the variant agrees with the auditor: seen, and expected by the profile",
        labels=(*kinds, "part"),
    )
    for name, told in found.items():
        state.add_metric((name,), STEPS[told["state"]])
        alarms.add_metric((name,), told["alarms"])
        inputs.add_metric((name, "new"), told["inputs"])
        inputs.add_metric((name, "repeat"), told["repeats"])
        returns.add_metric((name,), told["returns"])
        for variant, tests in told["variants"].items():
            for kind, test in tests.items():
                key = (name, variant, kind)
                statistic.add_metric(key, test["statistic"] / test["limit"])
                rows.add_metric(key, test["rows"])
                for part in ("agreement", "expected"):
                    if part in test:
                        agreement.add_metric((*key, "seen" if part == "agreement" else part), test[part])
    yield from (state, alarms, statistic, rows, agreement, inputs, returns)


def _audits(found: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    share = GaugeMetricFamily(
        "clover_audit_share",
        "Fraction of rows that the best variant answers again in the background, as a check, now",
        labels=("model",),
    )
    lowest = GaugeMetricFamily(
        "clover_audit_lowest_share", "Lowest fraction of rows audited in any full hour", labels=("model",)
    )
    owed = GaugeMetricFamily(
        "clover_audits_owed", "Audits still to be made this hour to reach the least fraction", labels=("model",)
    )
    audits = CounterMetricFamily(
        "clover_audits",
        "Audits by outcome: answered, free (the best variant had answered anyway), or why one was not made (repeat: "
        "the input had been audited before)",
        labels=("model", "outcome"),
    )
    joules = CounterMetricFamily(
        "clover_audit_joules",
        "Energy of audits in joules; clover_energy_joules includes it",
        labels=("model", "method"),
    )
    for name, told in found.items():
        share.add_metric((name,), told["share"])
        owed.add_metric((name,), told["owed"])
        if told["lowest_share"] is not None:
            lowest.add_metric((name,), told["lowest_share"])
        for outcome, count in {"answered": told["answered"], "free": told["free"], **told["dropped"]}.items():
            audits.add_metric((name, outcome), count)
        joules.add_metric((name, told["method"]), told["energy_j"])
    yield from (share, lowest, owed, audits, joules)


def _feedback(found: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    rows = CounterMetricFamily(
        "clover_feedback_rows",
        "Answered rows for which a client sent the right label later",
        labels=("model", "variant"),
    )
    accuracy = GaugeMetricFamily(
        "clover_accuracy_feedback",
        "Accuracy served by the labels that clients sent, percent, with its 95 % interval (part: low, accuracy, high)",
        labels=("model", "part"),
    )
    refused = CounterMetricFamily(
        "clover_feedback_refused",
        "Feedback requests that were refused: unknown (no answer of that id is remembered), unfit (the labels do not "
        "fit the answer), or limited (one client sent too many)",
        labels=("model", "reason"),
    )
    share = GaugeMetricFamily(
        "clover_feedback_largest_share",
        "Fraction of all labelled rows whose labels came from the one client that gave most",
        labels=("model",),
    )
    for name, told in found.items():
        for reason, count in told["refused"].items():
            refused.add_metric((name, reason), count)
        if told["largest_share"] is not None:
            share.add_metric((name,), told["largest_share"])
        for variant, by_labels in told["variants"].items():
            rows.add_metric((name, variant), by_labels["rows"])
        if told["estimate"] is not None:
            for part in ("low", "accuracy", "high"):
                accuracy.add_metric((name, part), told["estimate"][part])
    yield from (rows, accuracy, refused, share)
