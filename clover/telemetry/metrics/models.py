"""Metrics of the models that are served: traffic, what runs, and rows that ask for an accuracy of their own.

Latency histograms are cut anew from the log-linear ones of the router.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from prometheus_client.core import Metric

from clover.runtime.memory.answer_cache import AnswerCache
from clover.runtime.router.traffic import TenantTotals, Traffic
from clover.runtime.served import Served
from clover.telemetry.metrics.table import (
    COUNTER,
    GAUGE,
    HISTOGRAM,
    MetricSpec,
    Sample,
    by_label,
    collect,
    single,
)
from clover.types import Asked

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the buckets of latency histograms."""

_MODEL = ("model",)
_VARIANT = ("model", "variant")


@dataclass(frozen=True)
class ModelReading:
    """One model at the time of a scrape; `live` is what its router observes now."""

    served: Served
    live: Mapping[str, float]

    @property
    def traffic(self) -> Traffic:
        """The counters of its router."""
        return self.served.traffic

    @cached_property
    def tenants(self) -> Mapping[str, TenantTotals]:
        """What each tenant sent, and under the empty name what no tenant did."""
        return self.traffic.by_tenant()

    @property
    def cache(self) -> AnswerCache | None:
        """The figures of the cache of answers; None without one."""
        cached = self.served.router.cached
        return cached.cache if cached is not None else None

    def accuracies(self) -> dict[str, float]:
        """Return accuracies in percent by what they are of, as far as they are known."""
        known = {"served": self.live.get("accuracy_served"), "floor": self.served.targets.get("accuracy_floor")}
        if labelled := self.served.router.feedback.estimate():
            known |= {"labels": labelled["accuracy"], "labels_low": labelled["low"], "labels_high": labelled["high"]}
        return {name: value for name, value in known.items() if value is not None}

    def of_slo(self, name: str) -> list[Sample]:
        """Return the one sample of a figure about the SLO; none if the model is served without a plan, or if it is not
        known yet."""
        slo = self.served.slo
        return single(slo[name]) if name in slo else []


MODELS: tuple[MetricSpec[ModelReading], ...] = (
    MetricSpec(
        "clover_requests",
        "Requests by model, HTTP status (code) and tenant (empty where no tenant sent them).",
        COUNTER,
        ("model", "code", "tenant"),
        lambda model: (
            ((str(code), tenant), count)
            for tenant, totals in model.tenants.items()
            for code, count in sorted(totals.requests.items())
        ),
    ),
    MetricSpec(
        "clover_overload_requests",
        "Requests refused or given up because more came than could be served in time, by model and why: queue or "
        "slots (full, 429), late (would miss its deadline, 429), slo (would be answered later than max_wait_slo "
        "times the SLO, 429) or dropped (waited until its deadline, 504).",
        COUNTER,
        ("model", "why"),
        lambda model: by_label(dict(sorted(model.traffic.overload.items()))),
    ),
    MetricSpec(
        "clover_retries",
        "Requests that came back when a Retry-After had asked them to, by model and outcome: taken, or refused again.",
        COUNTER,
        ("model", "outcome"),
        lambda model: by_label(dict(sorted(model.traffic.retries.items()))),
    ),
    MetricSpec(
        "clover_rows",
        "Rows answered, by model, the variant that answered, and tenant (empty where no tenant sent them).",
        COUNTER,
        ("model", "variant", "tenant"),
        lambda model: (
            ((variant, tenant), rows)
            for tenant, totals in model.tenants.items()
            for variant, rows in totals.rows.items()
        ),
    ),
    MetricSpec(
        "clover_cache_rows",
        "Rows looked for in the cache of answers, by model and outcome: hit or miss; absent without a cache.",
        COUNTER,
        ("model", "outcome"),
        lambda model: by_label({} if model.cache is None else {"hit": model.cache.hits, "miss": model.cache.misses}),
    ),
    MetricSpec(
        "clover_cache_evicted_rows",
        "Answers that left the cache because it was full (setting cache_answers), by model.",
        COUNTER,
        _MODEL,
        lambda model: single(model.cache.evicted) if model.cache is not None else (),
    ),
    MetricSpec(
        "clover_cache_bytes",
        "Memory that the cached answers of a model take, in bytes.",
        GAUGE,
        _MODEL,
        lambda model: single(model.cache.bytes) if model.cache is not None else (),
    ),
    MetricSpec(
        "clover_pending_rows",
        "Rows taken and not answered yet, by model and state: queued (waiting for a worker) or computing.",
        GAUGE,
        ("model", "state"),
        lambda model: by_label(
            {"queued": model.live.get("queue_rows", 0.0), "computing": model.live.get("in_flight_rows", 0.0)}
        ),
    ),
    MetricSpec(
        "clover_arrival_rows_per_second",
        "Rows that arrive per second, over the last 10 s, by model.",
        GAUGE,
        _MODEL,
        lambda model: single(model.live.get("arrival_rate", 0.0)),
    ),
    MetricSpec(
        "clover_capacity_rows_per_second",
        "Rows per second that can be served within max_utilisation (modelled), by model and of: running (by the "
        "workers that run) or floor (by this server's devices at the accuracy floor, for autoscalers).",
        GAUGE,
        ("model", "of"),
        lambda model: by_label(model.served.capacity),
    ),
    MetricSpec(
        "clover_batch_size",
        "Rows in each batch that workers computed, by model.",
        HISTOGRAM,
        _MODEL,
        lambda model: single(_sizes(model.traffic.batch_sizes)),
    ),
    MetricSpec(
        "clover_request_seconds",
        "Time from the arrival of a request to its answer, in seconds, of answered requests, by model.",
        HISTOGRAM,
        _MODEL,
        lambda model: single(_seconds(model.traffic.latency)),
    ),
    MetricSpec(
        "clover_queue_seconds",
        "Time that a request waited for a worker, in seconds, of answered requests, by model.",
        HISTOGRAM,
        _MODEL,
        lambda model: single(_seconds(model.traffic.queue)),
    ),
    MetricSpec(
        "clover_accuracy_percent",
        "Accuracy in percent, by model and of: served (expected of the rows answered so far), floor (the least "
        "that plans keep), labels (by labels that clients sent), labels_low and labels_high (its 95 % interval).",
        GAUGE,
        ("model", "of"),
        lambda model: by_label(model.accuracies()),
    ),
    MetricSpec(
        "clover_route_share",
        "Fraction of rows that is routed to a variant, by model and variant.",
        GAUGE,
        _VARIANT,
        lambda model: by_label(model.served.fleet.shares),
    ),
    MetricSpec(
        "clover_workers",
        "Workers by model and state: ready, or missing (it is to take rows, died, and none was started in its "
        "place yet).",
        GAUGE,
        ("model", "state"),
        lambda model: by_label({"ready": model.live.get("workers", 0.0), "missing": model.served.fleet.missing}),
    ),
    MetricSpec(
        "clover_ready",
        "1 if the model takes requests, else 0.",
        GAUGE,
        _MODEL,
        lambda model: single(float(model.served.ready)),
    ),
    MetricSpec(
        "clover_asleep",
        "1 while a model has no workers because nobody asked it (unload_after_s), else 0.",
        GAUGE,
        _MODEL,
        lambda model: single(float(model.served.asleep)),
    ),
    MetricSpec(
        "clover_wake_seconds",
        "Time from a request to a sleeping model until its first worker, in seconds, the last time; absent before.",
        GAUGE,
        _MODEL,
        lambda model: single(model.served.wake_s) if model.served.wake_s is not None else (),
    ),
    MetricSpec(
        "clover_slo_seconds",
        "Target for the p95 of the latency of a model, in seconds; absent if it is served without a plan.",
        GAUGE,
        _MODEL,
        lambda model: single(model.served.targets["slo_ms"] / 1e3) if "slo_ms" in model.served.targets else (),
    ),
    MetricSpec(
        "clover_accuracy_budget_points",
        "Accuracy below that of the best variant, in percentage points, by model and part: allowed on average by "
        "the accuracy budget, and spent on average since its horizon began; absent without a budget.",
        GAUGE,
        ("model", "part"),
        lambda model: by_label(model.served.budget),
    ),
    MetricSpec(
        "clover_profile_correction",
        "Factor between what is measured while serving and the profile, by model, variant, profile (the slice) and "
        "kind: time (service times) or energy (joules a row); 1 is as profiled.",
        GAUGE,
        ("model", "variant", "profile", "kind"),
        lambda model: model.served.corrections.items(),
    ),
    MetricSpec(
        "clover_slo_held_ratio",
        "Fraction of the last hour's 10 s windows with requests whose p95 was within the SLO, by model.",
        GAUGE,
        _MODEL,
        # Unknown until a window counts.
        lambda model: model.of_slo("held_ratio"),
    ),
    MetricSpec(
        "clover_slo_windows",
        "Windows of 10 s with requests, by model and slo: held (its p95 was within the SLO) or missed.",
        COUNTER,
        ("model", "slo"),
        lambda model: (((name,), value) for name in ("held", "missed") for _, value in model.of_slo(name)),
    ),
    MetricSpec(
        "clover_slo_alarm",
        "1 while a model misses its SLO and nothing that the controller may do meets it, else 0.",
        GAUGE,
        _MODEL,
        lambda model: model.of_slo("alarm"),
    ),
    MetricSpec(
        "clover_worker_events",
        "What befell workers, by model and event: died (unexpectedly), restarted (one was started in the place of "
        "another, failed starts included) or given_up (its device was lost).",
        COUNTER,
        ("model", "event"),
        lambda model: by_label(
            {
                "died": model.traffic.lost_workers,
                "restarted": model.served.fleet.restarts,
                "given_up": model.served.fleet.given_up,
            }
        ),
    ),
    MetricSpec(
        "clover_poison_requests",
        "Requests given up because two workers died while computing them, by model.",
        COUNTER,
        _MODEL,
        lambda model: single(model.traffic.poisoned),
    ),
    MetricSpec(
        "clover_rerouted_rows",
        "Rows that did not go the planned way, by model and why: relief (a standby worker of a cheaper variant "
        "answered), late (another variant above the accuracy floor took them, as the planned one would have been "
        "late) or died (queued again, as their worker died).",
        COUNTER,
        ("model", "why"),
        lambda model: by_label(
            {
                "relief": model.traffic.relieved_rows,
                "late": model.traffic.diverted_rows,
                "died": model.traffic.retried_rows,
            }
        ),
    ),
    MetricSpec(
        "clover_escalated_rows",
        "Rows that a cascade passed on to a more accurate variant, by model and the variant that passed them on.",
        COUNTER,
        _VARIANT,
        lambda model: zip(((name,) for name in model.traffic.variants), model.traffic.escalated, strict=True),
    ),
    MetricSpec(
        "clover_cut_short_rows",
        "Rows that a cascade should have passed on and that kept their answer, by model and why.",
        COUNTER,
        ("model", "why"),
        lambda model: by_label(dict(sorted(model.traffic.cut_short.items()))),
    ),
)

# Read for each variant of a model, from what asked for its accuracy.
DEMAND: tuple[MetricSpec[Asked], ...] = (
    MetricSpec(
        "clover_demanded_rows",
        "Rows that asked for a clover_min_accuracy, by model and the least accurate variant that reaches it.",
        COUNTER,
        _VARIANT,
        lambda asked: single(asked.rows),
    ),
    MetricSpec(
        "clover_demanded_refused_rows",
        "Those of clover_demanded_rows_total that were refused because no worker of that accuracy came in time.",
        COUNTER,
        _VARIANT,
        lambda asked: single(asked.refused),
    ),
)


def models(served: Mapping[str, Served]) -> Iterator[Metric]:
    """Yield the metrics of traffic and workers of the models `served`, by the name they are served under."""
    return collect(MODELS, (((name,), ModelReading(model, model.fleet.observe())) for name, model in served.items()))


def demand(served: Mapping[str, Served]) -> Iterator[Metric]:
    """Yield the metrics of rows that ask for an accuracy of their own."""
    asked = ((name, model.fleet.accuracy_demand()) for name, model in served.items())
    return collect(DEMAND, (((name, variant), rows) for name, by_name in asked for variant, rows in by_name.items()))


class _Nanoseconds(Protocol):
    """A histogram of nanoseconds."""

    @property
    def count(self) -> int: ...
    @property
    def sum(self) -> int: ...
    def buckets(self, bounds: Iterable[float]) -> list[int]: ...


def _seconds(histogram: _Nanoseconds) -> tuple[list[tuple[str, float]], float]:
    """Return cumulative buckets and the sum, in seconds."""
    counts = histogram.buckets([bound * 1e9 for bound in SECONDS])
    buckets = [(repr(bound), float(count)) for bound, count in zip(SECONDS, counts, strict=True)]
    return [*buckets, ("+Inf", float(histogram.count))], histogram.sum / 1e9


def _sizes(batches: Mapping[int, tuple[int, Any]]) -> tuple[list[tuple[str, float]], float]:
    """Return cumulative buckets at the powers of two up to the largest batch, and the sum of rows.

    `batches` has (number of batches, ...) by rows in a batch.
    """
    largest = max(batches, default=1)
    bounds = [1 << power for power in range((largest - 1).bit_length() + 1)]
    buckets = [(str(b), float(sum(n for size, (n, _) in batches.items() if size <= b))) for b in bounds]
    total = float(sum(count for count, _ in batches.values()))
    return [*buckets, ("+Inf", total)], float(sum(size * count for size, (count, _) in batches.items()))
