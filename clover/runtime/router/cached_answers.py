"""Requests that are answered from a cache, if the family has one (`cache_answers`).

If the cache has all rows of a request, it answers the request.  Otherwise the rows are computed, and kept once they are
answered.  An answer is used again for an equal row only

- for the same tenant: response times tell no tenant what another one asked;
- with the same demands (`clover_min_accuracy`, `clover_cascade`): no answer is cheaper than was asked for;
- under a plan of the same variants, chain and thresholds: no answer is of a variant that the plan has left.

Answers that the plan did not intend are not kept: those of a standby worker or a variant that rows were diverted to
(unless the request asked for an accuracy, which they have), and those of a cascade that was cut short.  While the
guard's alarm is raised, nothing is kept and nothing is answered from the cache.  A request may forbid either by
`Cache-Control`.

The account has these rows on a line of their own, `CACHED`: they are no inference of a variant.  Their receipt has the
energy of the look-up: its CPU time (measured) times what a busy core draws (modelled).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, cast

from clover.accounting.account import Account
from clover.accounting.usage import count_cached
from clover.config import FamilyConfig
from clover.runtime.guard.guard import OK
from clover.runtime.memory.answer_cache import AnswerCache, KeptAnswer
from clover.runtime.router.escalation import Escalation
from clover.runtime.router.monitor import Monitor
from clover.runtime.router.relief import StandbyRouting
from clover.runtime.router.state import RouterState
from clover.runtime.router.tickets import DONE, RouterTicket
from clover.types import Receipt, Routing

_JOULES_PER_KWH = 3.6e6

ALLOWED, NO_CACHE, NO_STORE = range(3)
"""What a request allows (`Ticket.uncached`): all; a fresh answer, that is kept; a fresh one, that is not."""


class Unanswered(NamedTuple):
    """The digests of the rows of a request that is computed, and the plan at that time."""

    plan: bytes
    digests: list[bytes]


class Recalled(NamedTuple):
    """The answers that a request got, and the CPU time that it took to find them."""

    answers: list[KeptAnswer]
    cpu_ns: int


class CachedAnswers:
    """Answers requests of one router from `cache`, and keeps answers in it."""

    def __init__(
        self,
        state: RouterState,
        cache: AnswerCache,
        monitor: Monitor,
        standby: StandbyRouting,
        escalation: Escalation,
        account: Account,
        *,
        cpu_ns: Callable[[], int] = time.thread_time_ns,
    ) -> None:
        self.cache = cache
        self.lookup_ns = 0
        """CPU time of all look-ups."""
        self._state = state
        self._monitor = monitor
        self._standby = standby
        self._escalation = escalation
        self._account = account
        self._cpu_ns = cpu_ns
        self._routing: Routing | None = None
        self._plan = b""
        self._lanes: set[int] = set()

    def answer(self, ticket: RouterTicket, min_accuracy: float, cascade: bool, now_ns: int) -> bool:
        """Answer an open ticket if all of its rows are there, and return whether they are: it is done then, and its
        client still to be called back.  Otherwise it is kept once it is answered."""
        if ticket.uncached == NO_STORE or self._monitor.guard.alarm_level != OK:
            return False
        start_ns = self._cpu_ns()
        plan = self._current_plan()
        tenant = ticket.tenant.name if ticket.tenant is not None else ""
        try:
            digests = self.cache.digests(ticket.slots, repr((tenant, min_accuracy, bool(cascade), plan)).encode())
        except ValueError:
            return False
        found = self.cache.find(digests, now_ns, tenant) if ticket.uncached == ALLOWED else None
        if found is None:
            ticket.unanswered = Unanswered(plan, digests)
            self.lookup_ns += self._cpu_ns() - start_ns
            return False
        self.cache.fill(ticket.slots, found)
        self._finish(ticket, found, now_ns)
        spent_ns = self._cpu_ns() - start_ns
        self.lookup_ns += spent_ns
        ticket.recalled = Recalled(found, spent_ns)
        return True

    def _finish(self, ticket: RouterTicket, found: list[KeptAnswer], now_ns: int) -> None:
        ticket.phase = DONE
        ticket.status = 200
        ticket.variants = [kept.lane for kept in found]
        ticket.submit_ns = ticket.done_ns = now_ns
        traffic, rows = self._state.traffic, len(found)
        traffic.arrivals.add(now_ns, -rows)  # plans are made for rows that are computed
        traffic.record_outcome(200, ticket.arrival_ns, now_ns, now_ns, 0, 0, False)
        tenant = ""
        if ticket.tenant is not None:
            tenant = ticket.tenant.name
            traffic.for_tenant(tenant).count(200)
        count_cached(self._account.usage, self._state.name, tenant, rows)

    def keep(self, ticket: RouterTicket, now_ns: int) -> None:
        """Keep the answers of a ticket that was just answered, if they are what the plan means."""
        pending = cast("Unanswered", ticket.unanswered)
        ticket.unanswered = None
        if pending.plan != self._current_plan() or self._monitor.guard.alarm_level != OK:
            return
        if ticket.cut_short or ticket.limited or ticket.torn:
            return
        if ticket.min_accuracy <= 0.0 and (self._standby.on or not self._lanes.issuperset(ticket.variants)):
            return
        chain = ticket.chain
        accuracy = self._escalation.accuracy(ticket, chain) if chain is not None else 0.0
        paths = self._escalation.paths(ticket) if chain is not None else ()
        tenant = ticket.tenant.name if ticket.tenant is not None else ""
        for at, (slot, digest) in enumerate(zip(ticket.slots, pending.digests, strict=True)):
            lane = ticket.variants[at]
            try:
                outputs = self.cache.outputs(slot)
            except ValueError:
                return  # its client learns that the model wrote what it may not
            expected = accuracy if chain is not None else self._state.accuracy[lane]
            kept = KeptAnswer(outputs, lane, expected, paths[at] if paths else "", now_ns)
            self.cache.keep(digest, kept, tenant)

    def receipt(self, ticket: RouterTicket) -> Receipt:
        """Count what a ticket that was answered from the cache cost in the account, and return the receipt."""
        recalled = cast("Recalled", ticket.recalled)
        answers = recalled.answers
        names = [self._state.traffic.variants[lane] for lane in sorted({kept.lane for kept in answers})]
        accuracy = sum(kept.accuracy for kept in answers) / len(answers)
        paths = tuple(kept.path for kept in answers) if any(kept.path for kept in answers) else ()
        account = self._account
        energy_j = recalled.cpu_ns / 1e9 * account.core_w
        account.bill_lookup(self._state.name, energy_j, ticket.tenant.name if ticket.tenant is not None else "")
        reading = account.reading
        intensity = reading.g_per_kwh if reading is not None else 0.0
        return Receipt(
            variant="+".join(names),
            accuracy=accuracy,
            energy_j=energy_j,
            carbon_mg=energy_j / _JOULES_PER_KWH * intensity * account.pue * 1e3,
            intensity_g_per_kwh=intensity,
            method="modelled",
            intensity_state=reading.state if reading is not None else "unknown",
            intensity=reading,
            pue=account.pue,
            path=paths,
            cached=True,
        )

    def _current_plan(self) -> bytes:
        """Return which variants may answer by the plan in force, and how."""
        routing = self._state.lanes.routing
        if routing is not self._routing:
            self._routing = routing
            given = sorted(name for name, share in routing.shares.items() if share > 0.0)
            self._plan = repr((given, routing.chain, routing.thresholds)).encode()
            names = self._state.traffic.variants
            self._lanes = {names.index(name) for name in (*given, *routing.chain) if name in names}
        return self._plan


LONGEST_NS = 300 * 1_000_000_000
"""An answer is kept for five minutes: longer than a client repeats itself, and not beyond what an operator changes."""


def build(
    state: RouterState,
    config: FamilyConfig,
    monitor: Monitor,
    standby: StandbyRouting,
    escalation: Escalation,
    account: Account,
) -> CachedAnswers | None:
    """Return the cached answers of a family; None if it has no cache."""
    if not config.cache_answers:
        return None
    cache = AnswerCache(state.memory, state.spec, int(config.cache_answers * 1e6), LONGEST_NS)
    return CachedAnswers(state, cache, monitor, standby, escalation, account)
