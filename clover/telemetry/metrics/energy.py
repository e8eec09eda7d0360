"""Metrics of joules and grams: by device and line of its account, by model and variant, and against BASE and the best
fixed mix.

Of the Software Carbon Intensity (ISO/IEC 21031) too: embodied carbon, and the grams a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import Metric

from clover.accounting.account import Account
from clover.accounting.labels import DeviceLines, grams_method
from clover.accounting.sci import SciReport, SciScore
from clover.control.baselines.saved import Compared
from clover.telemetry.metrics.table import COUNTER, GAUGE, MetricSpec, Sample, collect, single, summed

Devices = Mapping[str, DeviceLines]


def _joules(account: Account) -> Iterator[Sample]:
    return summed(
        ((key.device, key.line, key.family, key.variant, key.method), booked.joules)
        for key, booked in account.booked.items()
    )


def _grams(account: Account) -> Iterator[Sample]:
    return summed(
        ((key.device, key.line, key.family, key.variant, grams_method(key.method, grid), grid), grams)
        for key, booked in account.booked.items()
        for grid, grams in booked.grids.items()
    )


# The joules of a device = the sum over its lines + `carried_j` of the state: a debt of idle energy, which rises and
# falls, so that no counter can have it.
ENERGY: tuple[MetricSpec[Account], ...] = (
    MetricSpec(
        "clover_energy_joules",
        "Energy used, in joules, each joule once: by device, line of its account, model and variant (empty where none "
        "used it), and method (measured, modelled or emulated).",
        COUNTER,
        ("device", "line", "model", "variant", "method"),
        _joules,
    ),
    MetricSpec(
        "clover_carbon_grams",
        "CO2e of clover_energy_joules_total, in grams, with the overhead of the data centre (PUE), by the same labels "
        "and by how the carbon intensity was known (intensity).",
        COUNTER,
        ("device", "line", "model", "variant", "method", "intensity"),
        _grams,
    ),
    MetricSpec(
        "clover_worker_cpu_seconds",
        "CPU time that workers used to compute batches, in seconds, those that have ended included.",
        COUNTER,
        (),
        lambda account: single(account.cpu_seconds()),
    ),
)


def _of_devices(read: Callable[[DeviceLines], float | str]) -> Callable[[Devices], Iterator[Sample]]:
    """Return how to read one figure of every device."""
    return lambda devices: (((device, str(line["method"])), float(read(line))) for device, line in devices.items())


def _watts(devices: Devices) -> Iterator[Sample]:
    for device, line in devices.items():
        if not line["frozen"]:
            yield (device, str(line["method"])), float(line["watts"])


def _idle_watts(devices: Devices) -> Iterator[Sample]:
    for device, line in devices.items():
        yield (device, "bare", str(line["method"])), float(line["idle_w"])
        yield (device, "awake", str(line["method"])), float(line["awake_w"])


_DEVICE = ("device", "method")

DEVICES: tuple[MetricSpec[Devices], ...] = (
    MetricSpec(
        "clover_device_watts",
        "Power of a device over the last interval, in watts; absent while its meter gives no reading.",
        GAUGE,
        _DEVICE,
        _watts,
    ),
    MetricSpec(
        "clover_device_idle_watts",
        "Power that a device draws without work, in watts, by part: bare (without processes on it) and awake (what the "
        "CUDA contexts of workers add on a GPU).",
        GAUGE,
        ("device", "part", "method"),
        _idle_watts,
    ),
    MetricSpec(
        "clover_device_shared_seconds",
        "Time in which processes of others computed on a GPU, or may have, in seconds: some of the line active is "
        "theirs.",
        COUNTER,
        _DEVICE,
        _of_devices(lambda line: line["shared_s"]),
    ),
    MetricSpec(
        "clover_device_metered",
        "1 if the meter of a device gave its last reading in time, else 0.",
        GAUGE,
        _DEVICE,
        _of_devices(lambda line: 1.0 - float(line["frozen"])),
    ),
    MetricSpec(
        "clover_device_unknown_seconds",
        "Time whose energy is in no account and never will be, in seconds, because the meter of a device started "
        "again.",
        COUNTER,
        _DEVICE,
        _of_devices(lambda line: line["unknown_s"]),
    ),
)


def _sides(item: Compared) -> Iterator[Sample]:
    """Yield the grams of both sides of a comparison with BASE.

    The best fixed mix is chosen anew with every row, so that what it would have emitted may fall, and a counter must
    not.
    """
    if item.against == "base":
        for side, grams in (("served", item.served_g), ("shadow", item.shadow_g)):
            yield (item.model, item.against, side, item.method), grams


_WITHIN = "within the boundary server (workers, front end, control and idle power of its cores)"
_GRID = "(grid), which may be invented"

COMPARED: tuple[MetricSpec[Compared], ...] = (
    MetricSpec(
        "clover_counterfactual_carbon_grams",
        f"CO2e for the rows served, {_WITHIN}, in grams, by model and side: served (as emitted) or shadow (as BASE "
        f"would have emitted, modelled); clover_saved_carbon_grams says how the carbon intensity was known {_GRID}.",
        COUNTER,
        ("model", "against", "side", "method"),
        _sides,
    ),
    MetricSpec(
        "clover_saved_carbon_grams",
        f"CO2e saved since the start, {_WITHIN}, in grams, negative if more was emitted, by model, against (base: "
        "BASE, matched: the best fixed mix), estimate (likely, low and high: a 95 % interval) and how the carbon "
        f"intensity was known {_GRID}.",
        GAUGE,
        ("model", "against", "estimate", "method", "grid"),
        lambda item: [
            ((item.model, item.against, end, item.method, item.grid), grams) for end, grams in item.estimates
        ],
    ),
    MetricSpec(
        "clover_accuracy_given_up_points",
        "Accuracy served below that of BASE (against base) or of the best fixed mix (against matched), in percentage "
        "points, by model.",
        GAUGE,
        ("model", "against", "method"),
        lambda item: [((item.model, item.against, item.method), item.points)],
    ),
)


def energy(account: Account) -> Iterator[Metric]:
    """Yield the metrics of `account`."""
    yield from collect(ENERGY, [((), account)])
    yield from collect(DEVICES, [((), account.devices())])


def savings(compared: Iterable[Compared]) -> Iterator[Metric]:
    """Yield the metrics of what was emitted, and of what BASE and fixed mixes would have emitted for the same rows."""
    return collect(COMPARED, (((), item) for item in compared))


def _methods_of(report: SciReport) -> tuple[str, ...]:
    methods = report.methods
    return methods.energy, methods.intensity, methods.grams, methods.embodied


def _embodied(report: SciReport) -> Iterator[Sample]:
    known = {item.device: item.known for item in report.hardware}
    return (((device, model, known[device]), grams) for (device, model), grams in report.embodied_parts.items())


def _per_row(report: SciReport) -> Iterator[Sample]:
    scores: list[tuple[str, str, SciScore]] = [("", name, score) for name, score in report.boundaries.items()]
    scores += [(model, report.model_boundary, score) for model, score in report.models.items()]
    for model, boundary, score in scores:
        if score.per_row_g is not None:
            yield (model, boundary, *_methods_of(report)), score.per_row_g


SCI: tuple[MetricSpec[SciReport], ...] = (
    MetricSpec(
        "clover_embodied_carbon_grams",
        "CO2e of making the hardware, in grams, for the time that the server reserves it, by device and model (empty "
        "for what no worker holds); absent if unknown, and in no other gram.",
        COUNTER,
        ("device", "model", "method"),
        _embodied,
    ),
    MetricSpec(
        "clover_sci_grams_per_row",
        "Software Carbon Intensity since the start, in grams of CO2e for each row answered, operation and embodied, by "
        "model (empty for the whole server) and boundary; absent if a term is unknown.",
        GAUGE,
        ("model", "boundary", "energy", "intensity", "grams_method", "embodied"),
        _per_row,
    ),
)


def sci(report: SciReport) -> Iterator[Metric]:
    """Yield the metrics of `report`."""
    return collect(SCI, [((), report)])
