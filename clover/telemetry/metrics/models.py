"""Metrics of the models that are served: traffic, what runs, and rows that ask for an accuracy of their own.

Latency histograms are cut anew from the log-linear ones of the router.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from prometheus_client.core import Metric

from clover.runtime.memory.answer_cache import AnswerCache
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
    def cache(self) -> AnswerCache | None:
        """The figures of the cache of answers; None without one."""
        cached = self.served.cached
        return cached.cache if cached is not None else None

    def by_variant(self, values: Iterable[float]) -> Iterator[Sample]:
        """Yield one sample for each variant; `values` are in the order of the router's lanes."""
        return (((name,), value) for name, value in zip(self.served.traffic.variants, values, strict=True))

    def of_slo(self, name: str) -> list[Sample]:
        """Return the one sample of a figure about the SLO; none if the model is served without a plan, or if it is not
        known yet."""
        slo = self.served.slo
        return single(slo[name]) if name in slo else []


MODELS: tuple[MetricSpec[ModelReading], ...] = (
    MetricSpec(
        "clover_requests",
        "Requests by model and HTTP status code",
        COUNTER,
        ("model", "code"),
        lambda model: (((str(code),), count) for code, count in sorted(model.served.traffic.codes.items())),
    ),
    MetricSpec(
        "clover_overload_requests",
        "Requests refused or given up because more came than could be served in time, by reason: queue or slots (full, "
        "429), late (would miss the deadline, 429), slo (would be answered later than max_wait_slo x the SLO, 429), "
        "dropped (could not be answered in time any more, 504)",
        COUNTER,
        ("model", "why"),
        lambda model: by_label(dict(sorted(model.served.traffic.overload.items()))),
    ),
    MetricSpec(
        "clover_retries",
        "Requests that came back when a Retry-After had asked them to, by outcome: taken or refused again",
        COUNTER,
        ("model", "outcome"),
        lambda model: by_label(dict(sorted(model.served.traffic.retries.items()))),
    ),
    MetricSpec(
        "clover_rows",
        "Rows answered, by the variant that answered",
        COUNTER,
        _VARIANT,
        lambda model: model.by_variant(model.served.traffic.rows),
    ),
    MetricSpec(
        "clover_cache_rows",
        "Rows looked for in the cache of answers, by outcome: hit or miss; absent without a cache",
        COUNTER,
        ("model", "outcome"),
        lambda model: by_label({} if model.cache is None else {"hit": model.cache.hits, "miss": model.cache.misses}),
    ),
    MetricSpec(
        "clover_cache_evicted_rows",
        "Answers that left the cache because there was no room for others (setting cache_answers)",
        COUNTER,
        _MODEL,
        lambda model: single(model.cache.evicted) if model.cache is not None else (),
    ),
    MetricSpec(
        "clover_cache_bytes",
        "Bytes that the answers in the cache take",
        GAUGE,
        _MODEL,
        lambda model: single(model.cache.bytes) if model.cache is not None else (),
    ),
    MetricSpec(
        "clover_cache_lookup_seconds",
        "CPU time of looking for rows in the cache of answers",
        COUNTER,
        _MODEL,
        lambda model: single(model.served.cached.lookup_ns / 1e9) if model.served.cached is not None else (),
    ),
    MetricSpec(
        "clover_queue_rows",
        "Rows waiting for a worker",
        GAUGE,
        _MODEL,
        lambda model: single(model.live.get("queue_rows", 0.0)),
    ),
    MetricSpec(
        "clover_in_flight_rows",
        "Rows that a worker is computing now",
        GAUGE,
        _MODEL,
        lambda model: single(model.live.get("in_flight_rows", 0.0)),
    ),
    MetricSpec(
        "clover_arrival_rows_per_second",
        "Rows that arrive per second, over the last 10 s",
        GAUGE,
        _MODEL,
        lambda model: single(model.live.get("arrival_rate", 0.0)),
    ),
    MetricSpec(
        "clover_capacity_rows_per_second",
        "Rows per second that can be served within max_utilisation (modelled): by the workers that run (of=running), "
        "and at most by this server's devices at the accuracy floor (of=floor); for autoscalers",
        GAUGE,
        ("model", "of"),
        lambda model: by_label(model.served.capacity),
    ),
    MetricSpec(
        "clover_batch_size",
        "Rows in each batch that workers computed",
        HISTOGRAM,
        _MODEL,
        lambda model: single(_sizes(model.served.traffic.batch_sizes)),
    ),
    MetricSpec(
        "clover_request_seconds",
        "Seconds from the arrival of a request to its answer, of answered requests",
        HISTOGRAM,
        _MODEL,
        lambda model: single(_seconds(model.served.traffic.latency)),
    ),
    MetricSpec(
        "clover_queue_seconds",
        "Seconds that a request waited for a worker, of answered requests",
        HISTOGRAM,
        _MODEL,
        lambda model: single(_seconds(model.served.traffic.queue)),
    ),
    MetricSpec(
        "clover_accuracy_served",
        "Accuracy of the rows answered so far, percent, expected from the profile of the variants",
        GAUGE,
        _MODEL,
        # Unknown until a row was answered.
        lambda model: single(model.live["accuracy_served"]) if "accuracy_served" in model.live else (),
    ),
    MetricSpec(
        "clover_route_share",
        "Fraction of rows that is routed to a variant",
        GAUGE,
        _VARIANT,
        lambda model: by_label(model.served.shares),
    ),
    MetricSpec(
        "clover_workers",
        "Workers that are ready",
        GAUGE,
        _MODEL,
        lambda model: single(model.live.get("workers", 0.0)),
    ),
    MetricSpec(
        "clover_workers_missing",
        "Workers that are to receive rows and are not ready: they died, and none was started in their place yet",
        GAUGE,
        _MODEL,
        lambda model: single(model.served.missing),
    ),
    MetricSpec(
        "clover_workers_given_up",
        "Workers given up because their device was lost",
        COUNTER,
        _MODEL,
        lambda model: single(model.served.given_up),
    ),
    MetricSpec(
        "clover_ready",
        "1 if the model takes requests, else 0",
        GAUGE,
        _MODEL,
        lambda model: single(float(model.served.ready)),
    ),
    MetricSpec(
        "clover_target",
        "Targets that plans are held to: slo_ms, accuracy_floor and others",
        GAUGE,
        ("model", "target"),
        lambda model: by_label(model.served.targets),
    ),
    MetricSpec(
        "clover_accuracy_budget_points",
        "Percentage points below the best variant: allowed on average by the accuracy budget, and spent on average "
        "since its horizon began; absent if the policy spends no budget",
        GAUGE,
        ("model", "part"),
        lambda model: by_label(model.served.budget),
    ),
    MetricSpec(
        "clover_profile_correction",
        "What service times (kind time, the mean over batch sizes) and joules a row (kind energy) are multiplied by, "
        "beside the profile, as measured while serving; 1: as profiled",
        GAUGE,
        ("model", "variant", "profile", "kind"),
        lambda model: model.served.corrections.items(),
    ),
    MetricSpec(
        "clover_front_end_seconds",
        "What HTTP and the front end add to a model's p95, in plans and in every p95 that is shown, as measured while "
        "serving, or as profiled before that; 0: not known",
        GAUGE,
        _MODEL,
        lambda model: single(model.served.router.front_ms / 1e3),
    ),
    MetricSpec(
        "clover_slo_held_ratio",
        "Fraction of the 10 s windows of the last hour whose p95 was within the SLO, of those in which rows were asked",
        GAUGE,
        _MODEL,
        # Unknown until a window counts.
        lambda model: model.of_slo("held_ratio"),
    ),
    MetricSpec(
        "clover_slo_windows",
        "Windows of 10 s in which rows were asked, by whether their p95 was within the SLO: held or missed",
        COUNTER,
        ("model", "slo"),
        lambda model: (((name,), value) for name in ("held", "missed") for _, value in model.of_slo(name)),
    ),
    MetricSpec(
        "clover_slo_alarm",
        "1 while the SLO is missed and nothing that the controller may do meets it, else 0",
        GAUGE,
        _MODEL,
        lambda model: model.of_slo("alarm"),
    ),
    MetricSpec(
        "clover_slo_slower",
        "Times as slow as profiled that plans take services to be, because the SLO was missed; 1 if it was not",
        GAUGE,
        _MODEL,
        lambda model: model.of_slo("slower"),
    ),
    MetricSpec(
        "clover_swaps",
        "Times that a worker was replaced by one of another variant in the same place",
        COUNTER,
        _MODEL,
        lambda model: single(model.served.swaps),
    ),
    MetricSpec(
        "clover_repartitions",
        "Times that cores or GPU slices were divided anew among workers",
        COUNTER,
        _MODEL,
        lambda model: single(model.served.repartitions),
    ),
    MetricSpec(
        "clover_worker_restarts",
        "Starts of workers in place of those that ended unexpectedly, hung or were asked to end; failed ones count",
        COUNTER,
        _MODEL,
        lambda model: single(model.served.restarts),
    ),
    MetricSpec(
        "clover_worker_log_dropped_lines",
        "Lines that workers printed and that were left out of the log, because there were too many",
        COUNTER,
        _MODEL,
        lambda model: single(model.served.log_dropped_lines),
    ),
    MetricSpec(
        "clover_worker_log_dropped_bytes",
        "Bytes that workers printed and that were left out of the log, with those cut off long lines",
        COUNTER,
        _MODEL,
        lambda model: single(model.served.log_dropped_bytes),
    ),
    MetricSpec(
        "clover_poison",
        "Requests given up because two workers died while computing them",
        COUNTER,
        _MODEL,
        lambda model: single(model.served.traffic.poisoned),
    ),
    MetricSpec(
        "clover_worker_deaths",
        "Workers that died unexpectedly",
        COUNTER,
        _MODEL,
        lambda model: single(model.served.traffic.lost_workers),
    ),
    MetricSpec(
        "clover_retried_rows",
        "Rows queued again because the worker that had them died",
        COUNTER,
        _MODEL,
        lambda model: single(model.served.traffic.retried_rows),
    ),
    MetricSpec(
        "clover_relieved_rows",
        "Rows answered by standby workers, which run a cheaper variant",
        COUNTER,
        _MODEL,
        lambda model: single(model.served.traffic.relieved_rows),
    ),
    MetricSpec(
        "clover_diverted_rows",
        "Rows that went to another variant, above the accuracy floor, as the planned one would have been too late",
        COUNTER,
        _MODEL,
        lambda model: single(model.served.traffic.diverted_rows),
    ),
    MetricSpec(
        "clover_reliefs",
        "Times that standby workers took over from the planned ones",
        COUNTER,
        _MODEL,
        lambda model: single(model.served.traffic.reliefs),
    ),
    MetricSpec(
        "clover_escalated_rows",
        "Rows that a cascade passed on from this variant to a more accurate one",
        COUNTER,
        _VARIANT,
        lambda model: model.by_variant(model.served.traffic.escalated),
    ),
    MetricSpec(
        "clover_cut_short_rows",
        "Rows that a cascade would have passed on, but that kept their answer, by reason",
        COUNTER,
        ("model", "why"),
        lambda model: by_label(dict(sorted(model.served.traffic.cut_short.items()))),
    ),
)

# Read for each variant of a model, from what asked for its accuracy.
DEMAND: tuple[MetricSpec[Asked], ...] = (
    MetricSpec(
        "clover_demanded_rows",
        "Rows that asked for a clover_min_accuracy, by the least accurate variant that reaches it",
        COUNTER,
        _VARIANT,
        lambda asked: single(asked.rows),
    ),
    MetricSpec(
        "clover_demanded_rows_per_second",
        "Rows per second that asked for a clover_min_accuracy, over the last 10 s",
        GAUGE,
        _VARIANT,
        lambda asked: single(asked.rows_per_s),
    ),
    MetricSpec(
        "clover_demanded_waiting_rows",
        "Rows with a clover_min_accuracy that wait until a worker of that accuracy is started",
        GAUGE,
        _VARIANT,
        lambda asked: single(asked.waiting),
    ),
    MetricSpec(
        "clover_demanded_refused_rows",
        "Rows with a clover_min_accuracy that were refused because no worker of that accuracy was started in time",
        COUNTER,
        _VARIANT,
        lambda asked: single(asked.refused),
    ),
)


def models(served: Mapping[str, Served]) -> Iterator[Metric]:
    """Yield the metrics of traffic and workers of the models `served`, by the name they are served under."""
    return collect(MODELS, (((name,), ModelReading(model, model.observe())) for name, model in served.items()))


def demand(served: Mapping[str, Served]) -> Iterator[Metric]:
    """Yield the metrics of rows that ask for an accuracy of their own."""
    return collect(
        DEMAND,
        (
            ((name, variant), asked)
            for name, model in served.items()
            for variant, asked in model.accuracy_demand().items()
        ),
    )


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
