"""Prometheus metrics: one registry of our own, filled on scrape from counters that are kept anyway.

Nothing on the hot path touches prometheus_client.  The sources are handed in as objects that fit the protocols below,
so this module stands below the runtime it reports on.  Histograms are re-cut from the log-linear ones of the router.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from clover import __version__
from clover.telemetry.demand import demanded
from clover.telemetry.guard import guarded
from clover.types import Asked, Reading

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds of the latency histograms."""


class Buckets(Protocol):
    """A histogram of nanoseconds."""

    @property
    def count(self) -> int: ...
    @property
    def sum(self) -> int: ...
    def buckets(self, bounds: Iterable[float]) -> list[int]: ...


class TrafficLike(Protocol):
    """The counters of one family."""

    variants: tuple[str, ...]
    rows: list[int]
    latency: Any
    queue: Any
    batch_sizes: dict[int, tuple[int, int]]
    poisoned: int
    lost_workers: int
    retried_rows: int
    relieved_rows: int
    reliefs: int
    escalated: list[int]
    cut_short: dict[str, int]

    @property
    def codes(self) -> dict[int, int]: ...


class FamilySource(Protocol):
    """One family as the metrics see it."""

    @property
    def traffic(self) -> TrafficLike: ...
    @property
    def ready(self) -> bool: ...
    @property
    def restarts(self) -> int: ...
    @property
    def log_dropped_lines(self) -> int: ...
    @property
    def log_dropped_bytes(self) -> int: ...
    @property
    def swaps(self) -> int: ...
    @property
    def repartitions(self) -> int: ...
    @property
    def shares(self) -> Mapping[str, float]: ...
    @property
    def targets(self) -> Mapping[str, float]: ...
    def observe(self) -> Mapping[str, float]: ...
    def guarded(self) -> Mapping[str, Any]: ...
    def demanded(self) -> Mapping[str, Asked]: ...


class ShareLike(Protocol):
    """Joules and grams of one (family, variant, method) or (device, placement, method)."""

    active_j: float
    idle_j: float
    active_g: float
    idle_g: float


class AccountLike(Protocol):
    """Energy and carbon attributed so far."""

    @property
    def shares(self) -> Mapping[Any, ShareLike]: ...
    @property
    def placements(self) -> Mapping[Any, ShareLike]: ...
    def devices(self) -> Mapping[str, Mapping[str, float | str]]: ...
    def cpu_seconds(self) -> float: ...  # of all workers, in batches


class ComparedLike(Protocol):
    """What a model emitted (joules and grams, idle included) beside what a shadow of it would have: BASE, the best
    fixed mix at the target (`static`) or at the accuracy served (`matched`).  `points`: accuracy given up by it."""

    @property
    def model(self) -> str: ...
    @property
    def against(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def served_j(self) -> float: ...
    @property
    def shadow_j(self) -> float: ...
    @property
    def served_g(self) -> float: ...
    @property
    def shadow_g(self) -> float: ...
    @property
    def points(self) -> float: ...


class ChainLike(Protocol):
    """The carbon chain."""

    @property
    def last(self) -> Reading | None: ...
    @property
    def counts(self) -> Mapping[str, int]: ...
    @property
    def failures(self) -> Mapping[str, int]: ...


class HttpLike(Protocol):
    """The front end's counters."""

    open_connections: int
    accepted_connections: int
    refused_connections: int
    malformed: int
    deadlines_missed: int
    received_bytes: int
    sent_bytes: int

    @property
    def requests(self) -> dict[int, int]: ...


class Metrics:
    """Collects on `render`.  `families` gives the sources by model name now; `http`, `decisions` (counts of controller
    decisions by action), `compared` and `turned` (changes of configuration and of thresholds, by model) are
    optional."""

    def __init__(
        self,
        *,
        families: Callable[[], Mapping[str, FamilySource]],
        account: AccountLike,
        chain: ChainLike,
        http: Callable[[], HttpLike | None] = lambda: None,
        decisions: Callable[[], Mapping[str, int]] = dict,
        compared: Callable[[], Iterable[ComparedLike]] = tuple,
        turned: Callable[[], Mapping[str, tuple[int, int]]] = dict,
    ) -> None:
        self._families = families
        self._account = account
        self._chain = chain
        self._http = http
        self._decisions = decisions
        self._compared = compared
        self._turned = turned
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def render(self) -> bytes:
        """The Prometheus text format, version 0.0.4."""
        return generate_latest(self.registry)

    def describe(self) -> list[Metric]:
        """Nothing: names are known on collection, and the registry holds this collector alone."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric, read now."""
        yield InfoMetricFamily(
            "clover_build",
            "Version of the server",
            value={"version": __version__, "python": platform.python_version()},
        )
        yield from self._traffic(self._families())
        yield from guarded(self._families())
        yield from demanded(self._families())
        yield from self._energy()
        yield from self._counterfactuals()
        yield from self._carbon()
        decisions = (((action,), count) for action, count in self._decisions().items())
        yield _counter("clover_decisions", "Controller decisions", ("action",), decisions)
        turned = self._turned()
        about = "Deployments changed to, the first included"
        yield _counter("clover_reconfigurations", about, ("model",), (((n,), both[0]) for n, both in turned.items()))
        about = "Times that other thresholds were turned to on the same workers"
        yield _counter("clover_thresholds_moved", about, ("model",), (((n,), both[1]) for n, both in turned.items()))
        http = self._http()
        if http is not None:
            yield from _http(http)

    def _traffic(self, families: Mapping[str, FamilySource]) -> Iterator[Metric]:
        requests = CounterMetricFamily("clover_requests", "Requests by outcome", labels=("model", "code"))
        rows = CounterMetricFamily("clover_rows", "Rows answered by variant", labels=("model", "variant"))
        waiting = GaugeMetricFamily("clover_queue_rows", "Rows waiting for a worker", labels=("model",))
        flying = GaugeMetricFamily("clover_in_flight_rows", "Rows with a worker", labels=("model",))
        arrival = GaugeMetricFamily("clover_arrival_rows_per_second", "Rows offered, trailing 10 s", labels=("model",))
        sizes = HistogramMetricFamily("clover_batch_size", "Rows per batch", labels=("model",))
        latency = HistogramMetricFamily(
            "clover_request_seconds", "From opening a request to its answer, answered requests", labels=("model",)
        )
        queue = HistogramMetricFamily(
            "clover_queue_seconds", "Waiting for a worker, answered requests", labels=("model",)
        )
        accuracy = GaugeMetricFamily(
            "clover_accuracy_served", "Expected accuracy of the rows answered so far, percent", labels=("model",)
        )
        share = GaugeMetricFamily("clover_route_share", "Routing quota", labels=("model", "variant"))
        workers = GaugeMetricFamily("clover_workers", "Workers ready", labels=("model",))
        ready = GaugeMetricFamily("clover_ready", "Whether the model takes requests", labels=("model",))
        target = GaugeMetricFamily("clover_target", "Targets of the objective", labels=("model", "target"))
        counters = {
            "swaps": CounterMetricFamily("clover_swaps", "Placements whose variant changed", labels=("model",)),
            "repartitions": CounterMetricFamily("clover_repartitions", "Changes of the layout", labels=("model",)),
            "restarts": CounterMetricFamily("clover_worker_restarts", "Workers started anew", labels=("model",)),
            "log_dropped_lines": CounterMetricFamily(
                "clover_worker_log_dropped_lines", "Lines printed by workers and left out of the log", labels=("model",)
            ),
            "log_dropped_bytes": CounterMetricFamily(
                "clover_worker_log_dropped_bytes",
                "Bytes printed by workers and left out of the log, those cut off long lines included",
                labels=("model",),
            ),
        }
        poison = CounterMetricFamily("clover_poison", "Requests in flight in two deaths", labels=("model",))
        lost = CounterMetricFamily("clover_worker_deaths", "Workers that died unexpectedly", labels=("model",))
        retried = CounterMetricFamily("clover_retried_rows", "Rows queued again after a death", labels=("model",))
        relieved = CounterMetricFamily(
            "clover_relieved_rows", "Rows answered by workers that stand by, by a cheaper variant", labels=("model",)
        )
        reliefs = CounterMetricFamily("clover_reliefs", "Times that these took over", labels=("model",))
        escalated = CounterMetricFamily(
            "clover_escalated_rows", "Rows that went on from a variant to a dearer one", labels=("model", "variant")
        )
        cut = CounterMetricFamily(
            "clover_cut_short_rows", "Rows that should have gone on to a dearer variant", labels=("model", "why")
        )
        for name, family in families.items():
            traffic, live = family.traffic, family.observe()
            for code, count in sorted(traffic.codes.items()):
                requests.add_metric((name, str(code)), count)
            for variant, count in zip(traffic.variants, traffic.rows, strict=True):
                rows.add_metric((name, variant), count)
            waiting.add_metric((name,), live.get("queue_rows", 0.0))
            flying.add_metric((name,), live.get("in_flight_rows", 0.0))
            arrival.add_metric((name,), live.get("arrival_rate", 0.0))
            workers.add_metric((name,), live.get("workers", 0.0))
            if "accuracy_served" in live:
                accuracy.add_metric((name,), live["accuracy_served"])
            ready.add_metric((name,), float(family.ready))
            for variant, value in family.shares.items():
                share.add_metric((name, variant), value)
            for what, value in family.targets.items():
                target.add_metric((name, what), value)
            sizes.add_metric((name,), *_sizes(traffic.batch_sizes))
            latency.add_metric((name,), *_seconds(traffic.latency))
            queue.add_metric((name,), *_seconds(traffic.queue))
            for what, metric in counters.items():
                metric.add_metric((name,), getattr(family, what))
            poison.add_metric((name,), traffic.poisoned)
            lost.add_metric((name,), traffic.lost_workers)
            retried.add_metric((name,), traffic.retried_rows)
            relieved.add_metric((name,), traffic.relieved_rows)
            reliefs.add_metric((name,), traffic.reliefs)
            for variant, count in zip(traffic.variants, traffic.escalated, strict=True):
                escalated.add_metric((name, variant), count)
            for why, count in sorted(traffic.cut_short.items()):
                cut.add_metric((name, why), count)
        yield from (requests, rows, waiting, flying, arrival, sizes, latency, queue, accuracy, share, workers, ready)
        yield from (target, *counters.values(), poison, lost, retried, relieved, reliefs, escalated, cut)

    def _energy(self) -> Iterator[Metric]:
        labels = ("model", "variant", "part", "method")
        joules = CounterMetricFamily("clover_energy_joules", "Energy attributed", labels=labels)
        grams = CounterMetricFamily("clover_carbon_grams", "gCO2e of that energy, PUE included", labels=labels)
        for (family, variant, method), share in sorted(self._account.shares.items()):
            joules.add_metric((family, variant, "active", method), share.active_j)
            joules.add_metric((family, variant, "idle", method), share.idle_j)
            grams.add_metric((family, variant, "active", method), share.active_g)
            grams.add_metric((family, variant, "idle", method), share.idle_g)
        yield joules
        yield grams
        yield CounterMetricFamily(
            "clover_worker_cpu_seconds",
            "CPU time workers used on batches, by their own clocks, dead ones included",
            value=self._account.cpu_seconds(),
        )
        yield from self._device_energy()

    def _device_energy(self) -> Iterator[Metric]:
        """Lines of a device sum up: joules = its placements' active and idle + unattributed + carried."""
        names = ("device", "method")
        joules = CounterMetricFamily("clover_device_joules", "Energy of a device", labels=names)
        parts = CounterMetricFamily(
            "clover_placement_joules",
            "Energy attributed to the workers of a placement (of a MIG slice: worked out, no slice has a meter)",
            labels=("device", "placement", "part", "method"),
        )
        nobody = CounterMetricFamily(
            "clover_unattributed_joules", "Energy that no worker caused or holds", labels=("device", "part", "method")
        )
        carried = GaugeMetricFamily(
            "clover_carried_joules", "Idle energy beyond what was measured, to be made up for", labels=names
        )
        ratio = GaugeMetricFamily("clover_energy_ratio", "Measured over modelled active energy, trailing", labels=names)
        watts = GaugeMetricFamily(
            "clover_device_watts", "Power of a device over the last window; none while it is not metered", labels=names
        )
        idle = GaugeMetricFamily("clover_device_idle_watts", "Idle power that is accounted with", labels=names)
        metered = GaugeMetricFamily("clover_device_metered", "Whether the last look brought a reading", labels=names)
        restarts = CounterMetricFamily(
            "clover_meter_restarts", "Times a meter began anew, what was used in between being unknown", labels=names
        )
        for (device, placement, method), share in sorted(self._account.placements.items()):
            parts.add_metric((device, placement, "active", method), share.active_j)
            parts.add_metric((device, placement, "idle", method), share.idle_j)
        for device, line in self._account.devices().items():
            key = (device, str(line["method"]))
            joules.add_metric(key, float(line["measured_j"]))
            nobody.add_metric((device, "active", key[1]), float(line["unattributed_j"]))
            nobody.add_metric((device, "idle", key[1]), float(line["unowned_j"]))
            carried.add_metric(key, float(line["carried_j"]))
            ratio.add_metric(key, float(line["ratio"]))
            if not line["frozen"]:
                watts.add_metric(key, float(line["watts"]))
            idle.add_metric(key, float(line["idle_w"]))
            metered.add_metric(key, 1.0 - float(line["frozen"]))
            restarts.add_metric(key, float(line["restarts"]))
        yield from (joules, parts, nobody, carried, ratio, watts, idle, metered, restarts)

    def _counterfactuals(self) -> Iterator[Metric]:
        """What was emitted and what a shadow would have emitted over the same rows.  The mix at the accuracy served is
        chosen anew with every row, so that it has no counter."""
        sides = ("model", "against", "side", "method")
        about = "of what served and of its shadow (BASE, or the best fixed mix), same rows, load and hardware"
        joules = CounterMetricFamily("clover_counterfactual_energy_joules", f"Energy {about}", labels=sides)
        grams = CounterMetricFamily("clover_counterfactual_carbon_grams", f"gCO2e {about}", labels=sides)
        names = ("model", "against", "method")
        saved = GaugeMetricFamily(
            "clover_saved_carbon_grams", "gCO2e of the shadow less those of what served; may be negative", labels=names
        )
        given = GaugeMetricFamily(
            "clover_accuracy_given_up_points", "Accuracy of the shadow less that served, percent points", labels=names
        )
        for item in self._compared():
            if item.against != "matched":
                for side, used_j, emitted_g in (
                    ("served", item.served_j, item.served_g),
                    ("shadow", item.shadow_j, item.shadow_g),
                ):
                    joules.add_metric((item.model, item.against, side, item.method), used_j)
                    grams.add_metric((item.model, item.against, side, item.method), emitted_g)
            saved.add_metric((item.model, item.against, item.method), item.shadow_g - item.served_g)
            given.add_metric((item.model, item.against, item.method), item.points)
        yield from (joules, grams, saved, given)

    def _carbon(self) -> Iterator[Metric]:
        labels = ("provider", "zone", "signal", "method", "state")
        intensity = GaugeMetricFamily("clover_carbon_intensity", "gCO2e per kWh of the grid", labels=labels)
        age = GaugeMetricFamily("clover_carbon_age_seconds", "Age of that value in grid time", labels=("provider",))
        reading = self._chain.last
        if reading is not None:
            values = (reading.provider, reading.zone, reading.signal, reading.method, reading.state)
            intensity.add_metric(values, reading.g_per_kwh)
            age.add_metric((reading.provider,), reading.age_s)
        yield intensity
        yield age
        yield _counter(
            "clover_carbon_readings",
            "Readings given out by state",
            ("state",),
            (((state,), count) for state, count in self._chain.counts.items()),
        )
        yield _counter(
            "clover_carbon_failures",
            "Failed calls by source",
            ("source",),
            (((source,), count) for source, count in self._chain.failures.items()),
        )


def _counter(
    name: str, text: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]
) -> CounterMetricFamily:
    metric = CounterMetricFamily(name, text, labels=labels)
    for key, value in values:
        metric.add_metric(tuple(key), value)
    return metric


def _seconds(histogram: Buckets) -> tuple[list[tuple[str, float]], float]:
    """Cumulative buckets in seconds, and the sum."""
    counts = histogram.buckets([bound * 1e9 for bound in SECONDS])
    buckets = [(repr(bound), float(count)) for bound, count in zip(SECONDS, counts, strict=True)]
    return [*buckets, ("+Inf", float(histogram.count))], histogram.sum / 1e9


def _sizes(batches: Mapping[int, tuple[int, int]]) -> tuple[list[tuple[str, float]], float]:
    """Cumulative buckets at the powers of two that were needed, and the sum of rows."""
    largest = max(batches, default=1)
    bounds = [1 << power for power in range((largest - 1).bit_length() + 1)]
    buckets = [(str(b), float(sum(n for size, (n, _) in batches.items() if size <= b))) for b in bounds]
    total = float(sum(count for count, _ in batches.values()))
    return [*buckets, ("+Inf", total)], float(sum(size * count for size, (count, _) in batches.items()))


def _http(stats: HttpLike) -> Iterator[Metric]:
    yield GaugeMetricFamily("clover_http_connections", "Connections open", value=stats.open_connections)
    for name, text, value in (
        ("accepted_connections", "Connections accepted", stats.accepted_connections),
        ("refused_connections", "Connections refused for their number", stats.refused_connections),
        ("malformed", "Requests that are not HTTP as it should be", stats.malformed),
        ("deadlines_missed", "Connections ended for being too slow", stats.deadlines_missed),
        ("received_bytes", "Bytes received", stats.received_bytes),
        ("sent_bytes", "Bytes sent", stats.sent_bytes),
    ):
        yield CounterMetricFamily(f"clover_http_{name}", text, value=value)
    yield _counter(
        "clover_http_answers", "Answers by status", ("code",), (((str(c),), n) for c, n in stats.requests.items())
    )
