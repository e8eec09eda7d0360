"""Metrics of tenants, if there are any.  The tenant with the empty name is whoever is none: sums are the model's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import Metric

from clover.accounting.account import Account
from clover.accounting.labels import grams_method
from clover.runtime.router.traffic import TenantTotals
from clover.runtime.served import Served
from clover.telemetry.metrics.table import COUNTER, MetricSpec, Sample, collect


@dataclass(frozen=True)
class TenantReading:
    """What tenants sent to one model, and what that used, at the time of a scrape."""

    model: str
    totals: Mapping[str, TenantTotals]
    account: Account


def _of_each(
    read: Callable[[TenantTotals], Mapping[str, int]],
) -> Callable[[TenantReading], Iterator[Sample]]:
    """Return how to read one figure of every tenant, by a further label."""
    return lambda reading: (
        ((tenant, label), value) for tenant, totals in reading.totals.items() for label, value in read(totals).items()
    )


def _energy(reading: TenantReading) -> Iterator[tuple[tuple[str, str, str], Mapping[str, float], float]]:
    """Yield (tenant, variant, method), the grams by how the intensity was known, and the joules."""
    for key, usage in reading.account.usage.items():
        if key.family == reading.model:
            for method, line in usage.energy.items():
                yield (key.tenant, key.variant, method), line.grids, line.joules


def _joules(reading: TenantReading) -> Iterator[Sample]:
    found: dict[tuple[str, ...], float] = {}
    for labels, _, joules in _energy(reading):
        found[labels] = found.get(labels, 0.0) + joules
    return iter(found.items())


def _grams(reading: TenantReading) -> Iterator[Sample]:
    found: dict[tuple[str, ...], float] = {}
    for (tenant, variant, method), grids, _ in _energy(reading):
        for grid, grams in grids.items():
            labels = tenant, variant, grams_method(method, grid), grid
            found[labels] = found.get(labels, 0.0) + grams
    return iter(found.items())


TENANTS: tuple[MetricSpec[TenantReading], ...] = (
    MetricSpec(
        "clover_tenant_requests",
        "Requests by model, tenant and HTTP status code",
        COUNTER,
        ("model", "tenant", "code"),
        _of_each(lambda totals: {str(code): count for code, count in sorted(totals.requests.items())}),
    ),
    MetricSpec(
        "clover_tenant_limited_requests",
        "Requests refused (429) because a tenant sent more rows a second than it may",
        COUNTER,
        ("model", "tenant"),
        lambda reading: (((tenant,), totals.limited) for tenant, totals in reading.totals.items() if tenant),
    ),
    MetricSpec(
        "clover_tenant_rows",
        "Rows answered, by tenant and the variant that answered",
        COUNTER,
        ("model", "tenant", "variant"),
        _of_each(lambda totals: totals.rows),
    ),
    MetricSpec(
        "clover_tenant_energy_joules",
        "Active energy in joules by tenant: the part active of clover_energy_joules_total, split by the energy that "
        "the profile expects of each row",
        COUNTER,
        ("model", "tenant", "variant", "method"),
        _joules,
    ),
    MetricSpec(
        "clover_tenant_carbon_grams",
        "Grams of CO2e of that energy, with the overhead of the data centre (PUE); intensity: how that of the grid was "
        "known",
        COUNTER,
        ("model", "tenant", "variant", "method", "intensity"),
        _grams,
    ),
)


def tenants(families: Mapping[str, Served], account: Account) -> Iterator[Metric]:
    """Yield the metrics of every tenant."""
    readings = (TenantReading(name, served.tenants, account) for name, served in families.items())
    return collect(TENANTS, (((reading.model,), reading) for reading in readings if len(reading.totals) > 1))
