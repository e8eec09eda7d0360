"""Metrics of embodied carbon, and of the grams a row of the Software Carbon Intensity (ISO/IEC 21031)."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric

from clover.accounting.sci import SciReport, SciScore
from clover.telemetry.metrics.table import COUNTER, GAUGE, MetricSpec, Sample, collect


def _per_row(score: SciScore, *labels: str) -> Iterator[Sample]:
    if score.per_row_g is not None:
        yield labels, score.per_row_g


_KNOWN = ("energy", "intensity", "grams_method", "embodied")


def _known(report: SciReport) -> tuple[str, ...]:
    methods = report.methods
    return methods.energy, methods.intensity, methods.grams, methods.embodied


def _devices(report: SciReport) -> Iterator[Sample]:
    for item in report.hardware:
        grams = report.embodied.get(item.device)
        if grams is not None:
            yield (item.device, item.known), grams.grams


def _models(report: SciReport) -> Iterator[Sample]:
    for model, score in report.models.items():
        if score.embodied is not None:
            yield (model, report.methods.embodied), score.embodied.grams


SCI: tuple[MetricSpec[SciReport], ...] = (
    MetricSpec(
        "clover_embodied_carbon_grams",
        "Grams of CO2e of making the hardware, for the time it is reserved; in no gram of operation; absent if unknown",
        COUNTER,
        ("device", "method"),
        _devices,
    ),
    MetricSpec(
        "clover_model_embodied_carbon_grams",
        "Grams of CO2e of making the hardware that the workers of a model hold; absent if unknown",
        COUNTER,
        ("model", "method"),
        _models,
    ),
    MetricSpec(
        "clover_sci_grams_per_row",
        "Software Carbon Intensity since the start: grams of CO2e a row answered, operation and embodied; absent if a "
        "part is unknown",
        GAUGE,
        ("boundary", *_KNOWN),
        lambda report: (
            sample for name, score in report.boundaries.items() for sample in _per_row(score, name, *_known(report))
        ),
    ),
    MetricSpec(
        "clover_sci_model_grams_per_row",
        "Software Carbon Intensity of a model since the start: grams of CO2e a row answered, operation and embodied, "
        "without cores and slices that no worker holds",
        GAUGE,
        ("model", "boundary", *_KNOWN),
        lambda report: (
            sample
            for model, score in report.models.items()
            for sample in _per_row(score, model, report.model_boundary, *_known(report))
        ),
    ),
)


def sci(report: SciReport) -> Iterator[Metric]:
    """Yield the metrics of `report`."""
    return collect(SCI, [((), report)])
