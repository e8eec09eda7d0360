"""Metrics of joules and grams: by model and variant, by device and place, and against BASE and the best fixed mix.

Of the Software Carbon Intensity (ISO/IEC 21031) too: embodied carbon, and the grams a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import Metric

from clover.accounting.account import Account
from clover.accounting.devices import Line, Share
from clover.accounting.labels import DeviceLines, grams_method
from clover.accounting.sci import SciReport, SciScore
from clover.control.baselines.saved import Compared
from clover.telemetry.metrics.table import COUNTER, GAUGE, MetricSpec, Sample, collect, single
from clover.types import Method


@dataclass(frozen=True)
class EnergyReading:
    """What the account holds at the time of a scrape."""

    shares: list[tuple[tuple[str, str, str], Share]]
    """By (model, variant, method)."""
    placements: list[tuple[tuple[str, str, str], Share]]
    """By (device, placement, method)."""
    overheads: list[tuple[tuple[str, str, str], Share]]
    """By (model, line, method)."""
    lines: list[tuple[str, str, str, Line]]
    """Device, line, method, and what was booked."""
    per_row: Mapping[tuple[str, str, Method], tuple[float, float]]
    """Predicted and metered active joules a row by (model, variant, method)."""
    devices: Mapping[str, DeviceLines]
    cpu_s: float


def _of_devices(read: Callable[[DeviceLines], float | str]) -> Callable[[EnergyReading], Iterator[Sample]]:
    """Return how to read one figure of every device."""
    return lambda energy: (
        ((device, str(line["method"])), float(read(line))) for device, line in energy.devices.items()
    )


def _joules(shares: Iterable[tuple[tuple[str, str, str], Share]]) -> Iterator[Sample]:
    """Yield joules with the labels (first, second, part, method)."""
    for (first, second, method), share in shares:
        yield (first, second, "active", method), share.active_j
        yield (first, second, "idle", method), share.idle_j


def _of_models(energy: EnergyReading) -> Iterator[Sample]:
    yield from _joules(energy.shares)
    for (model, line, method), share in energy.overheads:
        yield (model, "", line, method), share.total_j


def _summed(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Yield one sample for each set of labels."""
    found: dict[tuple[str, ...], float] = {}
    for labels, value in samples:
        found[labels] = found.get(labels, 0.0) + value
    yield from found.items()


def _grams(energy: EnergyReading) -> Iterator[Sample]:
    for (model, variant, method), share in energy.shares:
        for (part, grid), grams in share.grids.items():
            yield (model, variant, part, grams_method(method, grid), grid), grams
    for (model, line, method), share in energy.overheads:
        for (_, grid), grams in share.grids.items():
            yield (model, "", line, grams_method(method, grid), grid), grams


def _lines(energy: EnergyReading) -> Iterator[Sample]:
    for device, line, method, booked in energy.lines:
        if line != "carried":  # a debt, which rises and falls
            yield (device, line, method), booked.joules


def _line_grams(energy: EnergyReading) -> Iterator[Sample]:
    for device, line, method, booked in energy.lines:
        if line != "carried":
            for grid, grams in booked.grids.items():
                yield (device, line, grams_method(method, grid), grid), grams


def _per_row(energy: EnergyReading) -> Iterator[Sample]:
    for (model, variant, method), (predicted_j, metered_j) in energy.per_row.items():
        yield (model, variant, "predicted", method), predicted_j
        yield (model, variant, "metered", method), metered_j


def _unattributed(energy: EnergyReading) -> Iterator[Sample]:
    for device, line in energy.devices.items():
        yield (device, "active", str(line["method"])), float(line["unattributed_j"])
        yield (device, "idle", str(line["method"])), float(line["unowned_j"]) + float(line["foreign_j"])


def _watts(energy: EnergyReading) -> Iterator[Sample]:
    for device, line in energy.devices.items():
        if not line["frozen"]:
            yield (device, str(line["method"])), float(line["watts"])


def _uncertainty(energy: EnergyReading) -> Iterator[Sample]:
    for device, line in energy.devices.items():
        for bound in ("low", "high"):
            if (ratio := line.get(f"uncertainty_{bound}")) is not None:
                yield (device, str(line["method"]), bound), float(ratio)


_DEVICE = ("device", "method")

# The lines of a device sum up: its joules = active + front_end + control + idle + idle_no_request + awake + unowned
# + foreign + unattributed + carried.
ENERGY: tuple[MetricSpec[EnergyReading], ...] = (
    MetricSpec(
        "clover_energy_joules",
        "Energy in joules attributed to a model and variant (active: computing; idle: its share of idle power, and of "
        "what contexts draw on a GPU), and to a model without a variant (front_end: taking and answering requests; "
        "control: planning, starts, profiling)",
        COUNTER,
        ("model", "variant", "part", "method"),
        _of_models,
    ),
    MetricSpec(
        "clover_carbon_grams",
        "Grams of CO2e of that energy, with the overhead of the data centre (PUE); intensity: how that of the grid was "
        "known",
        COUNTER,
        ("model", "variant", "part", "method", "intensity"),
        lambda energy: _summed(_grams(energy)),
    ),
    MetricSpec(
        "clover_joules_per_row",
        "Active energy of a row in joules over all rows so far: as the profile predicts it, and as the meter of its "
        "device gave it (source metered), which is a model where method says so",
        GAUGE,
        ("model", "variant", "source", "method"),
        _per_row,
    ),
    MetricSpec(
        "clover_line_joules",
        "Energy of a device in joules, by line of its account; with clover_carried_joules they sum to "
        "clover_device_joules_total",
        COUNTER,
        ("device", "line", "method"),
        _lines,
    ),
    MetricSpec(
        "clover_line_carbon_grams",
        "Grams of CO2e of that energy; intensity: how that of the grid was known",
        COUNTER,
        ("device", "line", "method", "intensity"),
        lambda energy: _summed(_line_grams(energy)),
    ),
    MetricSpec(
        "clover_worker_cpu_seconds",
        "CPU time workers used on batches, by their own clocks, dead ones included",
        COUNTER,
        (),
        lambda energy: single(energy.cpu_s),
    ),
    MetricSpec(
        "clover_device_joules",
        "Energy that a device used, in joules; method: by a counter (measured), or a model of its power (modelled)",
        COUNTER,
        _DEVICE,
        _of_devices(lambda line: line["measured_j"]),
    ),
    MetricSpec(
        "clover_placement_joules",
        "Energy in joules attributed to the workers in one place (calculated for MIG slices, which have no meter)",
        COUNTER,
        ("device", "placement", "part", "method"),
        lambda energy: _joules(energy.placements),
    ),
    MetricSpec(
        "clover_unattributed_joules",
        "Energy in joules that belongs to no worker: active, that none caused; idle, of what none holds",
        COUNTER,
        ("device", "part", "method"),
        _unattributed,
    ),
    MetricSpec(
        "clover_carried_joules",
        "Idle joules charged so far beyond what was measured; later charges are reduced by as much",
        GAUGE,
        _DEVICE,
        _of_devices(lambda line: line["carried_j"]),
    ),
    MetricSpec(
        "clover_energy_ratio",
        "Measured active energy divided by modelled, over a trailing window",
        GAUGE,
        _DEVICE,
        _of_devices(lambda line: line["ratio"]),
    ),
    MetricSpec(
        "clover_device_watts",
        "Power of a device in watts over the last interval; absent while its meter gives no reading",
        GAUGE,
        _DEVICE,
        _watts,
    ),
    MetricSpec(
        "clover_device_idle_watts",
        "Idle power of a device in watts, as used in the accounts",
        GAUGE,
        _DEVICE,
        _of_devices(lambda line: line["idle_w"]),
    ),
    MetricSpec(
        "clover_device_awake_watts",
        "Power in watts that a GPU draws beyond its idle power because workers have a context on it; 0 without one",
        GAUGE,
        _DEVICE,
        _of_devices(lambda line: line["awake_w"]),
    ),
    MetricSpec(
        "clover_device_shared_seconds",
        "Time in which processes that are not this server's computed on the device, or may have: a part of its active "
        "energy is theirs",
        COUNTER,
        _DEVICE,
        _of_devices(lambda line: line["shared_s"]),
    ),
    MetricSpec(
        "clover_device_metered",
        "1 if the meter of the device gave a reading last time, else 0",
        GAUGE,
        _DEVICE,
        _of_devices(lambda line: 1.0 - float(line["frozen"])),
    ),
    MetricSpec(
        "clover_meter_restarts",
        "Times that a meter started again; the energy used in between is not known",
        COUNTER,
        _DEVICE,
        _of_devices(lambda line: line["restarts"]),
    ),
    MetricSpec(
        "clover_device_unmetered_seconds",
        "Time in which the meter of a device gave no reading; its energy is counted later unless the meter restarted",
        COUNTER,
        _DEVICE,
        _of_devices(lambda line: line["unmetered_s"]),
    ),
    MetricSpec(
        "clover_device_unknown_seconds",
        "Time whose energy is in no account and never will be, since the meter of the device started again",
        COUNTER,
        _DEVICE,
        _of_devices(lambda line: line["unknown_s"]),
    ),
    MetricSpec(
        "clover_device_uncertainty_ratio",
        "How far off the modelled joules of a device may be, by the range of published constants (low: -0.2 is -20 %)",
        GAUGE,
        (*_DEVICE, "bound"),
        _uncertainty,
    ),
)


def _sides(
    served: Callable[[Compared], float], shadow: Callable[[Compared], float]
) -> Callable[[Compared], list[Sample]]:
    """Return how to read both sides of a comparison.

    The best fixed mix at the accuracy served (`matched`) is chosen anew with every row, so that it has no counter:
    a counter must not fall.
    """

    def read(item: Compared) -> list[Sample]:
        if item.against == "matched":
            return []
        sides = (("served", served(item)), ("shadow", shadow(item)))
        return [((item.model, item.against, side, item.method), value) for side, value in sides]

    return read


_WITHIN = "within the boundary server (workers, front end, control and idle power of its cores)"
_ABOUT_SIDES = f"for the rows served, {_WITHIN}: as used (side served), and by BASE (side shadow)"
_GRID = "clover_saved_carbon_estimate_grams says how the carbon intensity was known (grid), which may be invented"

COMPARED: tuple[MetricSpec[Compared], ...] = (
    MetricSpec(
        "clover_counterfactual_energy_joules",
        f"Joules {_ABOUT_SIDES}",
        COUNTER,
        ("model", "against", "side", "method"),
        _sides(lambda item: item.served_j, lambda item: item.shadow_j),
    ),
    MetricSpec(
        "clover_counterfactual_carbon_grams",
        f"Grams of CO2e {_ABOUT_SIDES}; {_GRID}",
        COUNTER,
        ("model", "against", "side", "method"),
        _sides(lambda item: item.served_g, lambda item: item.shadow_g),
    ),
    MetricSpec(
        "clover_saved_carbon_grams",
        f"Grams of CO2e that the server saved against BASE, or the best fixed mix, {_WITHIN}; negative if more was "
        f"emitted; {_GRID}",
        GAUGE,
        ("model", "against", "method"),
        lambda item: [((item.model, item.against, item.method), item.shadow_g - item.served_g)],
    ),
    MetricSpec(
        "clover_saved_carbon_estimate_grams",
        "The same, and both ends of its 95 % interval, with how the carbon intensity was known (grid)",
        GAUGE,
        ("model", "against", "estimate", "method", "grid"),
        lambda item: [
            ((item.model, item.against, end, item.method, item.grid), grams) for end, grams in item.estimates
        ],
    ),
    MetricSpec(
        "clover_accuracy_given_up_points",
        "Percentage points by which the accuracy served is below that of BASE, or of the best fixed mix",
        GAUGE,
        ("model", "against", "method"),
        lambda item: [((item.model, item.against, item.method), item.points)],
    ),
)


def _sorted(shares: Mapping[tuple[str, str, Method], Share]) -> list[tuple[tuple[str, str, str], Share]]:
    return sorted(shares.items(), key=lambda item: item[0])


def energy(account: Account) -> Iterator[Metric]:
    """Yield the metrics of `account`."""
    reading = EnergyReading(
        shares=_sorted(account.shares),
        placements=_sorted(account.placements),
        overheads=_sorted(account.overheads),
        lines=list(account.lines()),
        per_row=account.per_row(),
        devices=account.devices(),
        cpu_s=account.cpu_seconds(),
    )
    return collect(ENERGY, [((), reading)])


def savings(compared: Iterable[Compared]) -> Iterator[Metric]:
    """Yield the metrics of what was emitted, and of what BASE and fixed mixes would have emitted for the same rows."""
    return collect(COMPARED, (((), item) for item in compared))


def _score_per_row(score: SciScore, *labels: str) -> Iterator[Sample]:
    if score.per_row_g is not None:
        yield labels, score.per_row_g


_SCI_METHODS = ("energy", "intensity", "grams_method", "embodied")


def _methods_of(report: SciReport) -> tuple[str, ...]:
    methods = report.methods
    return methods.energy, methods.intensity, methods.grams, methods.embodied


def _embodied_of_devices(report: SciReport) -> Iterator[Sample]:
    for item in report.hardware:
        grams = report.embodied.get(item.device)
        if grams is not None:
            yield (item.device, item.known), grams.grams


def _embodied_of_models(report: SciReport) -> Iterator[Sample]:
    for model, score in report.models.items():
        if score.embodied is not None:
            yield (model, report.methods.embodied), score.embodied.grams


SCI: tuple[MetricSpec[SciReport], ...] = (
    MetricSpec(
        "clover_embodied_carbon_grams",
        "Grams of CO2e of making the hardware, for the time it is reserved; in no gram of operation; absent if unknown",
        COUNTER,
        ("device", "method"),
        _embodied_of_devices,
    ),
    MetricSpec(
        "clover_model_embodied_carbon_grams",
        "Grams of CO2e of making the hardware that the workers of a model hold; absent if unknown",
        COUNTER,
        ("model", "method"),
        _embodied_of_models,
    ),
    MetricSpec(
        "clover_sci_grams_per_row",
        "Software Carbon Intensity since the start: grams of CO2e a row answered, operation and embodied; absent if a "
        "part is unknown",
        GAUGE,
        ("boundary", *_SCI_METHODS),
        lambda report: (
            sample
            for name, score in report.boundaries.items()
            for sample in _score_per_row(score, name, *_methods_of(report))
        ),
    ),
    MetricSpec(
        "clover_sci_model_grams_per_row",
        "Software Carbon Intensity of a model since the start: grams of CO2e a row answered, operation and embodied, "
        "without cores and slices that no worker holds",
        GAUGE,
        ("model", "boundary", *_SCI_METHODS),
        lambda report: (
            sample
            for model, score in report.models.items()
            for sample in _score_per_row(score, model, report.model_boundary, *_methods_of(report))
        ),
    ),
)


def sci(report: SciReport) -> Iterator[Metric]:
    """Yield the metrics of `report`."""
    return collect(SCI, [((), report)])
