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
from clover.telemetry.http import HttpLike, served
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
    def guard_report(self) -> Mapping[str, Any]: ...
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
        """Return the Prometheus text format, version 0.0.4."""
        return generate_latest(self.registry)

    def describe(self) -> list[Metric]:
        """Nothing: names are known on collection, and the registry holds this collector alone."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, read now."""
        yield InfoMetricFamily(
            "clover_build",
            "Version of the server and of Python",
            value={"version": __version__, "python": platform.python_version()},
        )
        yield from self._traffic(self._families())
        yield from guarded(self._families())
        yield from demanded(self._families())
        yield from self._energy()
        yield from self._counterfactuals()
        yield from self._carbon()
        decisions = (((action,), count) for action, count in self._decisions().items())
        yield _counter("clover_decisions", "Decisions of the controller, by what was done", ("action",), decisions)
        turned = self._turned()
        about = "Changes of the deployment (which variants run where), the first one included"
        yield _counter("clover_reconfigurations", about, ("model",), (((n,), both[0]) for n, both in turned.items()))
        about = "Times that the thresholds of a cascade were changed while the workers stayed"
        yield _counter("clover_thresholds_moved", about, ("model",), (((n,), both[1]) for n, both in turned.items()))
        http = self._http()
        if http is not None:
            yield from served(http)

    def _traffic(self, families: Mapping[str, FamilySource]) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "clover_requests", "Requests by model and HTTP status code", labels=("model", "code")
        )
        rows = CounterMetricFamily(
            "clover_rows", "Rows answered, by the variant that answered", labels=("model", "variant")
        )
        waiting = GaugeMetricFamily("clover_queue_rows", "Rows waiting for a worker", labels=("model",))
        flying = GaugeMetricFamily("clover_in_flight_rows", "Rows that a worker is computing now", labels=("model",))
        arrival = GaugeMetricFamily(
            "clover_arrival_rows_per_second", "Rows that arrive per second, over the last 10 s", labels=("model",)
        )
        sizes = HistogramMetricFamily(
            "clover_batch_size", "Rows in each batch that workers computed", labels=("model",)
        )
        latency = HistogramMetricFamily(
            "clover_request_seconds",
            "Seconds from the arrival of a request to its answer, of answered requests",
            labels=("model",),
        )
        queue = HistogramMetricFamily(
            "clover_queue_seconds",
            "Seconds that a request waited for a worker, of answered requests",
            labels=("model",),
        )
        accuracy = GaugeMetricFamily(
            "clover_accuracy_served",
            "Accuracy of the rows answered so far, percent, expected from the profile of the variants",
            labels=("model",),
        )
        share = GaugeMetricFamily(
            "clover_route_share", "Fraction of rows that is routed to a variant", labels=("model", "variant")
        )
        workers = GaugeMetricFamily("clover_workers", "Workers that are ready", labels=("model",))
        ready = GaugeMetricFamily("clover_ready", "1 if the model takes requests, else 0", labels=("model",))
        target = GaugeMetricFamily(
            "clover_target",
            "Targets that plans are held to: slo_ms, accuracy_floor and others",
            labels=("model", "target"),
        )
        counters = {
            "swaps": CounterMetricFamily(
                "clover_swaps",
                "Times that a worker was replaced by one of another variant in the same place",
                labels=("model",),
            ),
            "repartitions": CounterMetricFamily(
                "clover_repartitions",
                "Times that cores or GPU slices were divided anew among workers",
                labels=("model",),
            ),
            "restarts": CounterMetricFamily(
                "clover_worker_restarts",
                "Workers that were started again after they had ended unexpectedly or hung",
                labels=("model",),
            ),
            "log_dropped_lines": CounterMetricFamily(
                "clover_worker_log_dropped_lines",
                "Lines that workers printed and that were left out of the log, because there were too many",
                labels=("model",),
            ),
            "log_dropped_bytes": CounterMetricFamily(
                "clover_worker_log_dropped_bytes",
                "Bytes that workers printed and that were left out of the log, with those cut off long lines",
                labels=("model",),
            ),
        }
        poison = CounterMetricFamily(
            "clover_poison", "Requests given up because two workers died while computing them", labels=("model",)
        )
        lost = CounterMetricFamily("clover_worker_deaths", "Workers that died unexpectedly", labels=("model",))
        retried = CounterMetricFamily(
            "clover_retried_rows", "Rows queued again because the worker that had them died", labels=("model",)
        )
        relieved = CounterMetricFamily(
            "clover_relieved_rows", "Rows answered by standby workers, which run a cheaper variant", labels=("model",)
        )
        reliefs = CounterMetricFamily(
            "clover_reliefs", "Times that standby workers took over from the planned ones", labels=("model",)
        )
        escalated = CounterMetricFamily(
            "clover_escalated_rows",
            "Rows that a cascade passed on from this variant to a more accurate one",
            labels=("model", "variant"),
        )
        cut = CounterMetricFamily(
            "clover_cut_short_rows",
            "Rows that a cascade would have passed on, but that kept their answer, by reason",
            labels=("model", "why"),
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
        joules = CounterMetricFamily(
            "clover_energy_joules",
            "Energy in joules attributed to a model and variant (active: computing; idle: its share of idle power)",
            labels=labels,
        )
        grams = CounterMetricFamily(
            "clover_carbon_grams",
            "Grams of CO2e of that energy, with the overhead of the data centre (PUE)",
            labels=labels,
        )
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
        """Yield lines of a device sum up: joules = its placements' active and idle + unattributed + carried."""
        names = ("device", "method")
        joules = CounterMetricFamily("clover_device_joules", "Energy that a device used, in joules", labels=names)
        parts = CounterMetricFamily(
            "clover_placement_joules",
            "Energy in joules attributed to the workers in one place (calculated for MIG slices, which have no meter)",
            labels=("device", "placement", "part", "method"),
        )
        nobody = CounterMetricFamily(
            "clover_unattributed_joules",
            "Energy in joules that belongs to no worker: active, that none caused; idle, of what none holds",
            labels=("device", "part", "method"),
        )
        carried = GaugeMetricFamily(
            "clover_carried_joules",
            "Idle joules charged so far beyond what was measured; later charges are reduced by as much",
            labels=names,
        )
        ratio = GaugeMetricFamily(
            "clover_energy_ratio", "Measured active energy divided by modelled, over a trailing window", labels=names
        )
        watts = GaugeMetricFamily(
            "clover_device_watts",
            "Power of a device in watts over the last interval; absent while its meter gives no reading",
            labels=names,
        )
        idle = GaugeMetricFamily(
            "clover_device_idle_watts", "Idle power of a device in watts, as used in the accounts", labels=names
        )
        metered = GaugeMetricFamily(
            "clover_device_metered", "1 if the meter of the device gave a reading last time, else 0", labels=names
        )
        restarts = CounterMetricFamily(
            "clover_meter_restarts",
            "Times that a meter started again; the energy used in between is not known",
            labels=names,
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
        """Yield what was emitted and what a shadow would have emitted over the same rows.  The mix at the accuracy
        served is chosen anew with every row, so that it has no counter."""
        sides = ("model", "against", "side", "method")
        about = "for the rows served: as emitted (side served), and by BASE or the best fixed mix (side shadow)"
        joules = CounterMetricFamily("clover_counterfactual_energy_joules", f"Joules {about}", labels=sides)
        grams = CounterMetricFamily("clover_counterfactual_carbon_grams", f"Grams of CO2e {about}", labels=sides)
        names = ("model", "against", "method")
        saved = GaugeMetricFamily(
            "clover_saved_carbon_grams",
            "Grams of CO2e saved against BASE, or against the best fixed mix; negative if more was emitted",
            labels=names,
        )
        given = GaugeMetricFamily(
            "clover_accuracy_given_up_points",
            "Percentage points by which the accuracy served is below that of BASE, or of the best fixed mix",
            labels=names,
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
        intensity = GaugeMetricFamily(
            "clover_carbon_intensity", "Carbon intensity of the grid in use, gCO2e per kWh", labels=labels
        )
        age = GaugeMetricFamily(
            "clover_carbon_age_seconds",
            "Age of that carbon intensity in seconds, in the time of the carbon data",
            labels=("provider",),
        )
        reading = self._chain.last
        if reading is not None:
            values = (reading.provider, reading.zone, reading.signal, reading.method, reading.state)
            intensity.add_metric(values, reading.g_per_kwh)
            age.add_metric((reading.provider,), reading.age_s)
        yield intensity
        yield age
        yield _counter(
            "clover_carbon_readings",
            "Readings of the carbon intensity that were used, by state (fresh, stale, fallback, configured)",
            ("state",),
            (((state,), count) for state, count in self._chain.counts.items()),
        )
        yield _counter(
            "clover_carbon_failures",
            "Failed requests for the carbon intensity, by source",
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
    """Return cumulative buckets in seconds, and the sum."""
    counts = histogram.buckets([bound * 1e9 for bound in SECONDS])
    buckets = [(repr(bound), float(count)) for bound, count in zip(SECONDS, counts, strict=True)]
    return [*buckets, ("+Inf", float(histogram.count))], histogram.sum / 1e9


def _sizes(batches: Mapping[int, tuple[int, int]]) -> tuple[list[tuple[str, float]], float]:
    """Return cumulative buckets at the powers of two that were needed, and the sum of rows."""
    largest = max(batches, default=1)
    bounds = [1 << power for power in range((largest - 1).bit_length() + 1)]
    buckets = [(str(b), float(sum(n for size, (n, _) in batches.items() if size <= b))) for b in bounds]
    total = float(sum(count for count, _ in batches.values()))
    return [*buckets, ("+Inf", total)], float(sum(size * count for size, (count, _) in batches.items()))
