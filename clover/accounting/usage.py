"""Rows answered and active energy by variant, slice and tenant: the finest parts of the account.

Active joules of a worker in a window are split over tenants by the joules that its profile expects of their rows (by
rows, without a profile).  If no batch ended in a window, it is split as the window before.  The empty tenant gets what
is left: rows that no tenant sent, and the rounding.  So sums over tenants are those of `Account.by_variant`, of its
lines `active` and `waiting`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from clover.accounting.devices import Line, Parts
from clover.accounting.meters import WorkerMeter
from clover.accounting.prices import Price
from clover.types import EnergySample, Method

NO_TENANT = ""
CACHED = "(cached)"
"""Stands for the variant of answers that were kept from earlier requests; no variant can have that name."""
WAITING = "(waiting)"
"""Stands for the variant of rows of batch jobs."""


class UsageKey(NamedTuple):
    """Whose usage it is.  `device` is the metered one, `placement` the worker's.  Both are empty for rows that keep the
    answer of an earlier variant of a cascade: it is not known any more which slice gave it."""

    family: str
    variant: str
    device: str
    placement: str
    tenant: str


@dataclass
class Usage:
    """Rows that were answered, and active joules and grams by how the joules are known."""

    rows: int = 0
    energy: dict[Method, Line] = field(default_factory=dict)

    @property
    def active_j(self) -> float:
        return sum(line.joules for line in self.energy.values())

    @property
    def active_g(self) -> float:
        return sum(line.grams for line in self.energy.values())


UsageBook = dict[UsageKey, Usage]


def count_waiting(book: UsageBook, meter: WorkerMeter, tenant: str, rows: int) -> None:
    """Count `rows` rows of batch jobs that a worker answered, on a line of their own."""
    book.setdefault(_waiting_key(meter, meter.device, tenant), Usage()).rows += rows


def add_waiting(
    book: UsageBook, sample: EnergySample, meter: WorkerMeter, tenant: str, joules: float, prices: Sequence[Price]
) -> None:
    """Add the active energy that rows of a tenant's batch jobs took of a worker."""
    _line(book.setdefault(_waiting_key(meter, sample.device, tenant), Usage()), sample.method).add(joules, prices)


def _waiting_key(meter: WorkerMeter, device: str, tenant: str) -> UsageKey:
    return UsageKey(meter.family, WAITING, device, meter.placement, tenant)


def count_cached(book: UsageBook, family: str, tenant: str, rows: int) -> None:
    """Count `rows` answers that were kept from earlier requests: rows of no variant, on a line of their own."""
    key = UsageKey(family, CACHED, "", "", tenant)
    usage = book.get(key)
    if usage is None:
        usage = book[key] = Usage()
    usage.rows += rows


def count_rows(book: UsageBook, meters: Iterable[WorkerMeter]) -> None:
    """Add the rows that workers answered since the last call."""
    for meter in meters:
        if meter.answered:
            whole, by_tenant = meter.collect_answered()
            for tenant, rows in (*by_tenant.items(), (NO_TENANT, whole - sum(by_tenant.values()))):
                _entry(book, meter, meter.device, tenant).rows += rows


def count_kept(book: UsageBook, family: str, variant: str, tenant: str) -> None:
    """Count a row that keeps the answer of `variant`, an earlier one of its cascade."""
    book.setdefault(UsageKey(family, variant, "", "", tenant), Usage()).rows += 1


def attribute_active(book: UsageBook, sample: EnergySample, active: Parts, prices: Sequence[Price]) -> None:
    """Add the active energy of a window of the device of `sample`, which cost `prices`."""
    for meter, whole_j in active:
        rest_j = whole_j
        for tenant, part in meter.tenant_parts:
            part_j = whole_j * part
            rest_j -= part_j
            _line(_entry(book, meter, sample.device, tenant), sample.method).add(part_j, prices)
        _line(_entry(book, meter, sample.device, NO_TENANT), sample.method).add(rest_j, prices)


def _entry(book: UsageBook, meter: WorkerMeter, device: str, tenant: str) -> Usage:
    return book.setdefault(UsageKey(meter.family, meter.variant, device, meter.placement, tenant), Usage())


def _line(usage: Usage, method: Method) -> Line:
    return usage.energy.setdefault(method, Line())
