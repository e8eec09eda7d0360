"""The router of one family: every request passes it, from its rows in shared memory to its receipt.

Parts, each in a module beside this one:

`tenant_gate`    before that, for rows of tenants: rates, and counts of requests by tenant
`cached_answers` the same rows again, if the family keeps answers: no row joins a queue then
`admission`      rows in: is a request taken, which slots does it get, and which variant's queue do its rows join
`dispatch`       turns: batches form and go to workers, once at the end of each turn of the event loop
`completion`     answers back: completed batches settle with their tickets, and clients are called back
`monitor`        the guard, audits and late labels: are the answers still what the profile says
`escalation`     cascades: a row whose score is below its stage's threshold is asked of the next variant
`relief`         bursts: standby workers take what the plan's workers cannot serve in time
`retry`          rows of workers that died, and of batches that failed, are queued again
`demand`         rows that need a variant without a worker wait for one that may come
`waiting`        rows of batch jobs: computed by workers that have nothing else to do

Routing.  The plan's quotas are kept row by row over the variants that have a worker now and meet the request's minimum
accuracy; if the plan gives none of those a share, the cheapest of them serves.  If it gives a variant a wait, rows of
that variant are held until they fill a batch, the first has waited so long, or a deadline leaves no time to wait.

Cascades.  If the plan has a chain (`runtime.cascade`), a row whose score is below the threshold joins the next
variant's queue with what is left of its deadline; if that variant cannot answer, it keeps the answer before.

Death.  Rows that a worker was computing when it died are queued again, once, on the same variant or, if it has no
worker left, on another that is accurate enough.  A ticket that was being computed in two deaths is taken for their
cause: 503 without Retry-After.  Deaths that no row can have caused (the GPU was lost) do not count.

Everything runs on the event loop's thread; nothing here awaits, and a request costs neither a Task nor a Future.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from clover.accounting.account import Account
from clover.config import FamilyConfig
from clover.errors import RequestError
from clover.interfaces import Model
from clover.runtime.memory.rows import FixedRows, Memory, read_rows, write_array, write_bytes
from clover.runtime.router import cached_answers
from clover.runtime.router.admission import Admission
from clover.runtime.router.completion import Completion, WaitingBatches
from clover.runtime.router.dispatch import Dispatch
from clover.runtime.router.escalation import Escalation
from clover.runtime.router.lane_pace import ProfiledPace
from clover.runtime.router.lanes import MAX_WORKERS, Entry, expected_accuracy
from clover.runtime.router.links import WorkerHandle
from clover.runtime.router.monitor import Monitor
from clover.runtime.router.relief import StandbyRouting, StandbyWorkers
from clover.runtime.router.retry import Retry
from clover.runtime.router.state import Asleep, RouterState
from clover.runtime.router.tenant_gate import TenantGate
from clover.runtime.router.tickets import CLOSED, DONE, PENDING, RouterTicket
from clover.tenants import Tenant
from clover.types import Declined, FamilyProfile, FamilySpec, Receipt, Routing

_ARRAY = np.ndarray  # read on every request: a module's global is found faster than numpy's attribute


class SpareWorkers(WaitingBatches, Protocol):
    """Gives rows that wait to workers without a batch (`runtime.router.waiting.SpareTime`)."""

    def lanes_wanted(self) -> set[int]:
        """Return the lanes that are to have a worker for such rows, if any worker holds their variant."""

    def give_up(self, why: str) -> None:
        """Give the rows that are with no worker back."""


class Router(Model):
    """The `Model` of one family; the fleet attaches and detaches its workers.

    At most `slots` rows are held at once.  `lost` is called with a worker that broke the protocol (unknown batch,
    corrupt ring); the callback must kill the worker and call `died` once it is dead.  `hold`: rows wait (within
    queue and deadline) while no worker is there, because one is on its way; otherwise they are refused with 503.  Once
    there is a `closed_reason`, nothing new is taken; what was taken is answered.
    """

    def __init__(
        self,
        spec: FamilySpec,
        memory: Memory,
        slots: int,
        config: FamilyConfig,
        profile: FamilyProfile | None,
        account: Account,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.spec = spec
        self.closed_reason = ""
        self.accuracy = expected_accuracy(spec, profile)
        self.state = state = RouterState(spec, memory, slots, config, self.accuracy, clock)
        self.name = state.name
        self.most_rows = state.queue_rows
        self.timeout_ns = state.timeout_ns
        self.traffic = state.traffic
        self.demand = state.demand
        self.monitor = Monitor(state, config)
        self.guard = self.monitor.guard
        self.audits = self.monitor.audits
        self.feedback = self.monitor.feedback
        retry = Retry(state)
        self._standby = StandbyRouting(state, retry)
        self.escalation = Escalation(state, self._standby, account)
        cached = cached_answers.build(state, config, self.monitor, self._standby, self.escalation, account)
        self.cached = cached
        self._completion = Completion(state, retry, self.escalation, self.monitor, account, cached)
        self.dispatch = Dispatch(state, self._completion, self._standby, self.monitor, loop)
        self.admission = Admission(state, self.dispatch, self._completion, self.monitor, self._standby, config, cached)
        state.lost = self.died
        self.gate = TenantGate(state, self.admission)
        self.account = account
        self.front_ms = 0.0  # what HTTP adds to a p95
        self.spare: SpareWorkers | None = None
        self._fixed_in = FixedRows.from_tensors(memory, "input", spec.inputs)
        self._fixed_out = FixedRows.from_tensors(memory, "output", spec.outputs)
        self.expect(profile)

    # --- the front end's side: see `clover.interfaces.Model` ----------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether some worker takes rows, or one is started for the next row."""
        return self.state.lanes.live != 0 or self.state.asleep is not None

    @property
    def idle(self) -> bool:
        """Whether no row waits and none is being computed."""
        return not self.state.lanes.waiting() and not any(link.batches for link in self.state.lanes.links)

    def open(self, rows: int, flow: int = 0, request: int = 0, tenant: Tenant | None = None) -> RouterTicket:
        """See `Model.open`; also raises BadRequest for no rows and TooLarge for more rows than could ever wait."""
        if tenant is not None:
            return self.gate.open(rows, flow, request, tenant, self.closed_reason)
        return self.admission.open(rows, flow, request, self.closed_reason)

    def retry_in_s(self, flow: int = 0, request: int = 0, tenant: Tenant | None = None) -> float:
        """See `Model.retry_in_s`.  Under overload, most of the work would be reading requests that are refused then."""
        if tenant is not None:
            return self.gate.retry_in_s(flow, request, tenant)
        return self.admission.retry_in_s(flow, request)

    def room(self, flow: int = 0, request: int = 0, tenant: Tenant | None = None) -> int:
        """See `Model.room`."""
        if tenant is not None:
            return self.gate.room(flow, request, tenant)
        return self.admission.room(flow, request)

    def take_late(self, on: bool) -> None:
        """See `Model.take_late`."""
        self.admission.takes_late = on

    def count_expired(self, tenant: Tenant | None = None) -> None:
        """See `Model.count_expired`."""
        self.traffic.record_refusal(504)
        if tenant is not None:
            self.traffic.for_tenant(tenant.name).count(504)

    def lend(
        self, rows: int, index: int, flow: int = 0, request: int = 0, tenant: Tenant | None = None
    ) -> tuple[RouterTicket, memoryview] | None:
        """See `Model.lend`."""
        fixed = self._fixed_in[index]
        if tenant is not None:
            return self.gate.lend(rows, (flow, request), tenant, fixed, self.closed_reason)
        return self.admission.lend(rows, flow, request, fixed, self.closed_reason)

    def admit_lent(self, given: Any) -> None:
        """See `Model.admit_lent`."""
        ticket: RouterTicket = given
        if ticket.tenant is not None:
            self.gate.admit_lent(ticket, ticket.tenant, self.closed_reason)
        else:
            self.admission.admit_lent(ticket, self.closed_reason)

    def write(self, ticket: Any, index: int, rows: NDArray[Any] | Sequence[bytes]) -> None:
        """See `Model.write`.  The rows of a BYTES tensor with one variable axis tell its length themselves."""
        fixed = self._fixed_in[index]
        if fixed is not None and isinstance(rows, _ARRAY) and fixed.put(ticket.slots, rows):
            return
        tensor = self.spec.inputs[index]
        if isinstance(rows, np.ndarray):
            write_array(self.state.memory, tensor, index, ticket.slots, rows)  # or says what is wrong with them
        else:
            write_bytes(self.state.memory, tensor, index, ticket.slots, rows, None)

    def write_elements(self, ticket: Any, index: int, rows: Sequence[bytes], dims: tuple[int, ...]) -> None:
        """See `Model.write_elements`."""
        write_bytes(self.state.memory, self.spec.inputs[index], index, ticket.slots, rows, dims)

    def submit(
        self,
        given: Any,
        on_done: Callable[[Any], None],
        timeout_ns: int = 0,
        min_accuracy: float = 0.0,
        cascade: bool = True,
        context: Any = None,
    ) -> None:
        """See `Model.submit`; also raises Unavailable if no worker that is accurate enough is there now."""
        ticket: RouterTicket = given
        if ticket.tenant is None:
            self.admission.submit(ticket, on_done, timeout_ns, min_accuracy, cascade, context)
            return
        try:
            self.admission.submit(ticket, on_done, timeout_ns, min_accuracy, cascade, context)
        except RequestError as error:
            self.gate.record_refusal(ticket.tenant, len(ticket.slots), error)
            raise

    def read(self, given: Any, index: int) -> NDArray[Any] | list[bytes]:
        """See `Model.read`; raises ModelFailed if the rows differ in shape."""
        ticket: RouterTicket = given
        if ticket.phase != DONE or ticket.status != 200:
            raise ValueError("only an answered ticket can be read")
        fixed = self._fixed_out[index]
        if fixed is not None:
            return fixed.get(ticket.slots)
        return read_rows(self.state.memory, self.spec, index, ticket.slots)

    def text(self, given: Any, index: int) -> bytes | None:
        """See `Model.text`."""
        ticket: RouterTicket = given
        if ticket.phase != DONE or ticket.status != 200:
            raise ValueError("only an answered ticket can be read")
        fixed = self._fixed_out[index]
        if fixed is None or fixed.floats is None:
            return None
        text: bytes | None = fixed.floats.text(ticket.slots)
        return text

    def receipt(self, given: Any) -> Receipt:
        """See `Model.receipt`.  Variants of a request that was split are joined by "+", cheapest first."""
        ticket: RouterTicket = given
        if ticket.billed is None:
            ticket.billed = self._bill(ticket)
        receipt: Receipt = ticket.billed
        return receipt

    def _bill(self, ticket: RouterTicket) -> Receipt:
        """Count what a ticket cost in the account, and return the receipt."""
        if ticket.recalled is not None and self.cached is not None:
            return self.cached.receipt(ticket)
        lanes = ticket.variants
        rows = len(lanes)
        name = self.traffic.variants[lanes[0]] if rows == 1 else self._join_names(lanes)
        path: tuple[str, ...] = ()
        if ticket.chain is not None:
            path, accuracy = self.escalation.paths(ticket), self.escalation.accuracy(ticket, ticket.chain)
        elif rows == 1:
            accuracy = self.accuracy[lanes[0]]
        else:
            accuracy = sum([self.accuracy[lane] for lane in lanes]) / rows
        tenant = ticket.tenant.name if ticket.tenant is not None else ""
        receipt = self.account.receipt(self.name, name, accuracy, rows, ticket.energy_j, tenant, path)
        return msgspec.structs.replace(receipt, limited=ticket.limited) if ticket.limited else receipt

    def _join_names(self, lanes: list[int]) -> str:
        """Return the names of the variants of `lanes`, each once, joined by "+"."""
        return "+".join([self.traffic.variants[lane] for lane in sorted(set(lanes))])

    def remember(self, number: int, given: Any) -> None:
        """See `Model.remember`."""
        self.monitor.remember(number, given)

    def count_labels(self, number: int, labels: Sequence[Any], client: str) -> dict[str, Any]:
        """See `Model.count_labels`."""
        return self.monitor.count_labels(number, labels, client)

    def close(self, given: Any) -> None:
        """See `Model.close`; closing twice does nothing."""
        ticket: RouterTicket = given
        phase = ticket.phase
        if phase == CLOSED:
            return
        ticket.phase = CLOSED
        if phase == PENDING:
            self.state.company.record_departure(self.state.now_ns())
            self.state.deadlines.discard(ticket)
            self._completion.stop_waiting(ticket)
            self._completion.withdraw(ticket)
            self.state.table.cancel(ticket)
            if self.state.lanes.leaving or self.state.lanes.delayed:
                self.dispatch.wake()  # a worker may have stayed for these rows, or others wait in vain for company
            self.traffic.record_refusal(499)
            if ticket.tenant is not None:
                self.traffic.for_tenant(ticket.tenant.name).count(499)
            self.monitor.give_up_audits(ticket)
        elif ticket.status == 200:
            now_ns = self.state.now_ns()
            self.traffic.record_answer(now_ns - ticket.done_ns)
            self.monitor.record_answered(ticket, now_ns)
        else:
            self.admission.end_loan(ticket)
            self.monitor.give_up_audits(ticket)
        ticket.on_done = None
        self.state.table.close(ticket)

    def stats(self) -> dict[str, Any]:
        """See `Model.stats`."""
        report = self.traffic.report(self.name, self.spec.version, self.state.now_ns())
        if self.cached is not None:
            cache, spent_ns = self.cached.cache, self.cached.lookup_ns
            rows = cache.hits + cache.misses
            for name, count in (("cache_hit", cache.hits), ("cache_miss", cache.misses)):
                report["inference_stats"][name] = {"count": count, "ns": spent_ns * count // rows if rows else 0}
        return report

    # --- the server's side --------------------------------------------------------------------------------------------

    def reap(self) -> None:
        """Take every completion there is and run a turn.

        All families are called when any worker of any of them rings; families without a batch in flight, and workers
        that hold none, cost next to nothing."""
        if self._completion.collect(self.state.now_ns()):
            self.dispatch.run_turn()

    def aim(self, slo_ms: float, floor: float) -> None:
        """Refuse rows that would be answered later than `max_wait_slo` times this SLO (milliseconds; 0: there is none)
        from now on, if no variant that keeps the accuracy `floor` (percent) has room for them."""
        self.admission.aim(slo_ms, floor)

    def limit(self, rows_per_s: float) -> None:
        """See `Admission.limit`."""
        self.admission.limit(rows_per_s)

    def expect_pace(self, paces: Mapping[int, ProfiledPace]) -> None:
        """Use what the profile says of how fast the workers of each lane serve, until that is measured.  Of lanes that
        are not in `paces` nothing is known."""
        for lane, pace in enumerate(self.state.lanes.paces):
            pace.use_profile(paces.get(lane, ProfiledPace()))

    def expect(self, profile: FamilyProfile | None, *, unmeasured: bool = False) -> None:
        """Use the accuracy of each variant, and of each chain, and what the front end adds to a p95, from `profile`;
        `unmeasured`: it is None for now (`Admission`)."""
        self.accuracy[:] = expected_accuracy(self.spec, profile)
        self.admission.unmeasured = unmeasured and not max(self.accuracy)
        self.front_ms = profile.front_ms if profile is not None else 0.0
        self.state.lanes.expect(profile.cascade if profile is not None else None)
        self.monitor.expect(profile)
        self.escalation.audits = self.audits if self.monitor.watching else None
        self.escalation.limit = self.guard.limit if self.monitor.watching else None

    def recount(self) -> None:
        """Count what was answered without a profile by the accuracies that are known now, and keep none of it."""
        self._completion.recount()
        if self.cached is not None:
            self.cached.cache.clear()

    def use_spare(self, spare: SpareWorkers) -> None:
        """Have workers without a batch compute rows that wait (`runtime.router.waiting`)."""
        self.spare = spare
        self._completion.waiting = spare

    def expect_front(self, front_ms: float) -> None:
        """Take HTTP and the front end to add so many milliseconds to a p95, in place of what the profile says."""
        self.front_ms = front_ms

    def guard_report(self) -> dict[str, Any]:
        """Return what the guard saw and did, the audits (their joules with the method), and late labels."""
        return self.monitor.report(self.account.method_of(self.name))

    def observe(self) -> dict[str, float]:
        """Return live figures; `p95_ms` as clients see it, and what it is at least for sure, are there only if
        something was answered lately."""
        now_ns = self.state.now_ns()
        traffic, lanes = self.traffic, self.state.lanes
        rows = sum(traffic.rows)
        out = {
            "arrival_rate": traffic.arrivals.per_s(now_ns),
            "served_rate": traffic.served.per_s(now_ns),
            "queue_rows": float(lanes.waiting()),
            "in_flight_rows": float(
                sum(len(batch.slots) for link in lanes.links for batch in link.batches.values() if not batch.waiting)
            ),
            "free_slots": float(self.state.table.free.free),
            "rows": float(rows),
            "awaiting_rows": float(self.demand.waiting),
        }
        if rows:
            out["accuracy_served"] = traffic.accuracy_rows / rows
        if traffic.left_out_rows:
            out["left_out_rows"] = float(traffic.left_out_rows)
            out["left_out_accuracy_rows"] = traffic.left_out_accuracy_rows
        if traffic.repeated_rows:
            out["repeated_rows"] = float(traffic.repeated_rows)
            out["repeated_surplus"] = traffic.repeated_surplus
        if self.monitor.watching:
            out["guard"] = float(self.guard.alarm_level)
        if self.monitor.auditing:
            out["audit_share"] = self.audits.sampler.share
        if self.standby is not None:
            out["relief"] = float(self._standby.on)
            out["relieved_rows"] = float(traffic.relieved_rows)
        p95_ms = traffic.p95_ms(now_ns)
        if p95_ms is not None:
            out["p95_ms"] = p95_ms + self.front_ms
            out["p95_least_ms"] = traffic.p95_least_ms(now_ns) + self.front_ms
        return out

    def fail_waiting(self, message: str) -> None:
        """Answer everything that waits with 503 (at unload, and after a drain that took too long)."""
        self._completion.fail_pending(message, self.state.now_ns())
        if self.spare is not None:
            self.spare.give_up(message)

    def stop(self) -> None:
        """Cancel the timer; nothing may be submitted afterwards."""
        self.dispatch.stop()

    # --- the fleet's side ---------------------------------------------------------------------------------------------

    @property
    def lost(self) -> Callable[[WorkerHandle, str], None]:
        """Called with a worker that broke the protocol of its ring, and why."""
        return self.state.lost

    @lost.setter
    def lost(self, callback: Callable[[WorkerHandle, str], None]) -> None:
        self.state.lost = callback

    @property
    def hold(self) -> bool:
        """Whether rows may wait while no worker is there, because one is on its way."""
        return self.state.coming != 0

    def expect_workers(self, lanes: Iterable[int]) -> None:
        """Note of which lanes workers are being restarted.  Rows that waited for one which is not any more are settled
        in the next turn: the worker may be there by then."""
        coming = 0
        for lane in lanes:
            coming |= 1 << lane
        if self.state.coming & ~coming:
            self.state.stranded = True
            self.dispatch.wake()
        self.state.coming = coming

    def decline_stranded(self, why: str) -> None:
        """Refuse rows without a worker from now on because of `why`, unless one is being restarted; empty: no more."""
        self.demand.close(why)
        self._settle_stranded()

    @property
    def standby(self) -> StandbyWorkers | None:
        """The standby workers; None if there are none."""
        return self._standby.standby

    def route(self, workers: Iterable[Entry], routing: Routing, standby: StandbyWorkers | None = None) -> None:
        """Make exactly `workers` those that receive rows, by the shares and batches of `routing`, and `standby` their
        standby workers.

        Atomic between two requests: new workers are attached before old ones are detached, rows that wait for a variant
        which no longer has a worker move to one that has, and rows that need not wait any more leave at once."""
        self.state.lanes.set(workers, routing)
        if self.state.lanes.live:
            self.end_sleep()
        self.set_standby(standby)

    def set_standby(self, standby: StandbyWorkers | None) -> None:
        """Make `standby` the standby workers beside those that receive rows now."""
        self._standby.set(standby)
        self._reroute()

    def set_background(self, workers: Iterable[Entry]) -> None:
        """Make `workers` those that answer audits beside those that receive rows."""
        self.state.lanes.set_background(workers)
        self._reroute()

    def join(self, *entries: Entry) -> None:
        """Let further workers (respawned ones) receive rows, under the present routing."""
        self.route([*self.state.lanes.entries(), *entries], self.state.lanes.routing, self.standby)

    def fall_asleep(self, wanted: Callable[[], None]) -> None:
        """Let rows wait from now on until a worker is there, which there will be after `wanted` was called: with each
        request that waits."""
        self.state.asleep = Asleep(wanted)

    def end_sleep(self) -> None:
        """Count rows that come from now on as those of a family that is awake; does nothing for one that is."""
        if self.state.asleep is not None:
            self.state.awake_ns = self.state.now_ns()
            self.state.asleep.awake.set()
            self.state.asleep = None

    def leave(self, worker: WorkerHandle, on_idle: Callable[[], None], *, served: bool = False, lane: int = -1) -> None:
        """Give `worker` no new batch (of `lane`; -1: of any); call `on_idle` once it holds none of these, or has to
        serve them again (at once if it holds none now).  With `served` it first takes the rows that wait and that no
        other worker may serve."""
        self._standby.forget(worker, lane)
        process = self.state.lanes.process_of(worker)
        links = [link for link in process.links if lane in (-1, link.lane)] if process is not None else []
        if not links:
            on_idle()
            return
        left = len(links)

        def idle() -> None:
            nonlocal left
            left -= 1
            if not left:
                on_idle()

        for link in links:
            link.on_idle.append(idle)
            if served:
                self.state.lanes.retire(link)
            else:
                self.state.lanes.detach(link)
        self._reroute()

    def died(self, worker: WorkerHandle, reason: str, *, blame: bool = True) -> None:
        """Take what a dead worker still completed, and queue the rows that it held again, once.  With `blame` False no
        row can have caused the death (its GPU was lost, say), and none counts it."""
        self._standby.forget(worker)
        process = self.state.lanes.process_of(worker)
        if process is not None:
            self._completion.recover(process, reason, self.state.now_ns(), blame=blame)
            self._reroute()

    def _reroute(self) -> None:
        """Move rows that wait for a variant without a worker, and run a turn."""
        self._completion.move_stranded(self.state.now_ns())
        self.dispatch.run_turn()

    def silent(self, limit_ns: int, paused_ns: int = 0) -> list[WorkerHandle]:
        """Return workers that hold a batch and have completed nothing for longer than `limit_ns`, without the latest
        `paused_ns`, in which nobody took completions.  What they completed until now is taken before."""
        self.reap()
        now_ns = self.state.now_ns()
        for process in self.state.lanes.processes:
            process.excuse(paused_ns, now_ns)
        return [process.worker for process in self.state.lanes.processes if process.silent_ns(now_ns) > limit_ns]

    def decline(self, declined: Mapping[str, Declined], wanted: Callable[[], None]) -> None:
        """See `Fleet.decline`."""
        self.demand.set_declined(declined, wanted)
        self._settle_stranded()

    def _settle_stranded(self) -> None:
        self._completion.settle_stranded(self.state.now_ns())
        self._completion.deliver()
        self.dispatch.wake()


__all__ = ["MAX_WORKERS", "Router", "expected_accuracy"]
