"""What a tenant's requests pass before admission: the tenant's rate, and the count of what becomes of them.

In the queue, the rows of a tenant are one flow, whatever connections they come by (`Tenant.flow`).  A request that
comes back is known by its id, or else by its connection, whose number is negated: ids are positive.  If rows were taken
off the rate and are then refused for another reason, they are given back to it.
"""

from __future__ import annotations

from clover.errors import Overloaded, RequestError, TooLarge
from clover.interfaces import ROOM
from clover.runtime.memory.rows import FixedRows
from clover.runtime.router.admission import Admission
from clover.runtime.router.state import RouterState
from clover.runtime.router.tickets import RouterTicket
from clover.tenants import RateLimit, Tenant


class TenantGate:
    """Takes the requests of tenants in, as `Admission` does; what `clover.interfaces.Model` says holds."""

    def __init__(self, state: RouterState, admission: Admission) -> None:
        self._state = state
        self._admission = admission

    def open(self, rows: int, flow: int, request: int, tenant: Tenant, closed: str) -> RouterTicket:
        """Reserve slots for `rows` rows of a tenant, which came by the connection `flow`; raises as `Admission.open`
        does, and Overloaded or TooLarge if the tenant is over its rate."""
        self._state.tenanted = True
        key = request or -flow
        limited = self._limited(tenant, rows, key)
        if limited is not None:
            raise limited
        try:
            ticket = self._admission.open(rows, tenant.flow, key, closed)
        except RequestError as error:
            self.record_refusal(tenant, rows, error)
            raise
        ticket.tenant, ticket.connection = tenant, flow
        return ticket

    def retry_in_s(self, flow: int, request: int, tenant: Tenant) -> float:
        """Return what `Admission.retry_in_s` returns; raises Overloaded if the request comes back too early."""
        key = request or -flow
        limit = tenant.limit
        if limit is not None and (early_s := limit.early_s(key, self._state.now_ns())):
            raise self._over(tenant, limit, early_s)
        wait_s = self._admission.retry_in_s(tenant.flow, key)
        if wait_s > 0.0:
            self._state.traffic.for_tenant(tenant.name).count(429)
        return wait_s

    def room(self, flow: int, request: int, tenant: Tenant) -> int:
        """Return what `Admission.room` returns; ROOM for a request that comes back too early: its rate refuses it."""
        key = request or -flow
        if tenant.limit is not None and tenant.limit.early_s(key, self._state.now_ns()):
            return ROOM
        return self._admission.room(tenant.flow, key)

    def lend(
        self, rows: int, came_by: tuple[int, int], tenant: Tenant, fixed: FixedRows | None, closed: str
    ) -> tuple[RouterTicket, memoryview] | None:
        """Return what `Admission.lend` returns; None also if the tenant's rate has no room for the rows now.  `came_by`
        has connection and request."""
        flow, request = came_by
        limit = tenant.limit
        if limit is not None and not limit.has(rows, self._state.now_ns()):
            return None  # it is received as a whole, and refused then
        found = self._admission.lend(rows, tenant.flow, request or -flow, fixed, closed)
        if found is not None:
            self._state.tenanted = True
            found[0].tenant, found[0].connection = tenant, flow
        return found

    def admit_lent(self, ticket: RouterTicket, tenant: Tenant, closed: str) -> None:
        """Admit a lent ticket, as `Admission.admit_lent` does; raises Overloaded if the tenant is over its rate."""
        rows = len(ticket.slots)
        limited = self._limited(tenant, rows, ticket.request)
        if limited is not None:
            raise limited
        try:
            self._admission.admit_lent(ticket, closed)
        except RequestError as error:
            self.record_refusal(tenant, rows, error)
            raise

    def record_refusal(self, tenant: Tenant, rows: int, error: RequestError) -> None:
        """Count a tenant's request of `rows` rows that was refused after its rate let it through."""
        self._state.traffic.for_tenant(tenant.name).count(error.status)
        if tenant.limit is not None:
            tenant.limit.give_back(rows)

    def _limited(self, tenant: Tenant, rows: int, key: int) -> RequestError | None:
        """Take rows off a tenant's rate; return the error of a request that is over it."""
        limit = tenant.limit
        if limit is None:
            return None
        if rows > limit.burst:
            self._state.traffic.for_tenant(tenant.name).count(TooLarge.status)
            why = f"a request of tenant {tenant.name} has at most {limit.burst} rows (burst), and this one has {rows}"
            return self._state.record_refusal(TooLarge(why))
        wait_s = limit.take(key, rows, self._state.now_ns())
        return self._over(tenant, limit, wait_s) if wait_s else None

    def _over(self, tenant: Tenant, limit: RateLimit, wait_s: int) -> RequestError:
        """Count a request of a tenant that is over its rate; return the error."""
        counts = self._state.traffic.for_tenant(tenant.name)
        counts.count(Overloaded.status)
        counts.limited += 1
        why = f"tenant {tenant.name} is over its limit of {limit.rate:g} rows a second; try again after Retry-After"
        return self._state.record_refusal(Overloaded(why, retry_after_s=float(wait_s)))
