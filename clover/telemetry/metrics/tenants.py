"""Metrics of tenants, if there are any.  Rows that no tenant sent count under the empty name: sums are the model's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import Metric

from clover.accounting.account import Account
from clover.accounting.devices import Line
from clover.accounting.labels import grams_method
from clover.runtime.router.traffic import TenantTotals
from clover.runtime.served import Served
from clover.telemetry.metrics.table import COUNTER, MetricSpec, Sample, collect, summed


@dataclass(frozen=True)
class TenantReading:
    """What tenants sent to one model, and what that used, at the time of a scrape."""

    model: str
    totals: Mapping[str, TenantTotals]
    account: Account


def _usage(reading: TenantReading) -> Iterator[tuple[tuple[str, str, str], Line]]:
    """Yield (tenant, variant, method) and the active energy."""
    for key, usage in reading.account.usage.items():
        if key.family == reading.model:
            for method, line in usage.energy.items():
                yield (key.tenant, key.variant, method), line


def _joules(reading: TenantReading) -> Iterator[Sample]:
    return summed((labels, line.joules) for labels, line in _usage(reading))


def _grams(reading: TenantReading) -> Iterator[Sample]:
    return summed(
        ((tenant, variant, grams_method(method, grid), grid), grams)
        for (tenant, variant, method), line in _usage(reading)
        for grid, grams in line.grids.items()
    )


TENANTS: tuple[MetricSpec[TenantReading], ...] = (
    MetricSpec(
        "clover_tenant_limited_requests",
        "Requests refused (429) because a tenant sent more rows a second than it may, by model and tenant.",
        COUNTER,
        ("model", "tenant"),
        lambda reading: (((tenant,), totals.limited) for tenant, totals in reading.totals.items() if tenant),
    ),
    MetricSpec(
        "clover_tenant_energy_joules",
        "The line active of clover_energy_joules_total, in joules, by model, tenant (empty for rows of none), "
        "variant and method.",
        COUNTER,
        ("model", "tenant", "variant", "method"),
        _joules,
    ),
    MetricSpec(
        "clover_tenant_carbon_grams",
        "CO2e of clover_tenant_energy_joules_total, in grams, with the overhead of the data centre (PUE), by the "
        "same labels and by how the carbon intensity was known (intensity).",
        COUNTER,
        ("model", "tenant", "variant", "method", "intensity"),
        _grams,
    ),
)


def tenants(families: Mapping[str, Served], account: Account) -> Iterator[Metric]:
    """Yield the metrics of every tenant."""
    readings = (TenantReading(name, served.traffic.by_tenant(), account) for name, served in families.items())
    return collect(TENANTS, (((reading.model,), reading) for reading in readings if len(reading.totals) > 1))
