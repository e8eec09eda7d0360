"""Two versions of a model behind one name: each request goes to one of them, and some are answered by both.

A sequence that fills the interval evenly (additive, by the golden ratio) says which version a request goes to.  After
any number of requests the new version has had its share of them, give or take a few, and a client that takes turns with
others does not always meet the same version.  A second sequence chooses requests of the stable version that the new one
answers too (`paired`), in the background and once the client has its answer.  Both answers are compared, and their
labels if these come.

Clients do not pay for the new version's faults.  If the new version refuses a request or fails to answer it, the stable
one is asked, and the request counts as a failure of the new one, unless the stable one refuses it too.  A request is
not retried if two workers died while computing it, since it may have killed them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from clover.errors import BadRequest, RequestError
from clover.interfaces import SplitModel, Ticket
from clover.runtime.guard.answer_reader import AnswerReader, RowAnswer, answer_bytes, same_answer
from clover.runtime.guard.release import ReleaseTests
from clover.runtime.memory.rows import Memory
from clover.runtime.router.cached_answers import NO_STORE
from clover.runtime.router.router import Router
from clover.runtime.router.tickets import RouterTicket
from clover.tenants import Tenant
from clover.types import FamilySpec, Receipt

_WHOLE = 1 << 64
_GOLDEN = 0x9E3779B97F4A7C15
_SILVER = 0x6A09E667F3BCC909
"""Fractions of the golden ratio and of the root of 2, times 2^64."""
PAIRED_ROWS = 64
"""A request with more rows is answered by one version only."""
WAITING_PAIRS = 64
"""Requests that the new version answers in the background at a time."""
REMEMBERED = 10_000
"""Requests whose answers by both are kept for labels."""
LONGEST_ANSWER = 256
"""Bytes: labels are not taken for longer answers (`clover.runtime.guard.feedback`), so those are not kept either."""
_FAILED = (500, 503, 504)
_ASKED_AGAIN = (400, 500, 503)
_DEADLY = 2


class ServedVersion:
    """One of the two versions: its router, and the memory that its rows lie in."""

    def __init__(self, router: Router, memory: Memory) -> None:
        self.router = router
        self.memory = memory
        self.reader = AnswerReader(memory, router.spec)
        self.requests = 0
        """Requests of clients that it was to answer."""
        self.failed = 0
        """Requests of clients that it refused or failed."""


class _Asked:
    """A request of a client.  `ticket` is what the client's side holds; `answering` is another one once the stable
    version answers in place of the new one."""

    __slots__ = ("answering", "failed", "how", "number", "on_done", "paired", "status", "tenant", "ticket", "version")

    def __init__(self, ticket: RouterTicket, version: ServedVersion, tenant: Tenant | None) -> None:
        self.ticket = ticket
        self.answering = ticket
        self.version = version
        self.tenant = tenant
        self.failed = False
        self.paired = False
        self.number = 0
        self.status = 0
        """What the new version said before the stable one was asked."""
        self.on_done: Callable[[Any], None] | None = None
        self.how: tuple[int, float, bool] = (0, 0.0, True)


class VersionSplit(SplitModel):
    """The `Model` of a name that two versions are served under.  `share`: the part of the requests that the new version
    answers; `paired`: the part of the others that it answers too.  `alone`: the stable one is not asked any more."""

    def __init__(
        self,
        stable: ServedVersion,
        new: ServedVersion,
        tests: ReleaseTests,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stable = stable
        self.new = new
        self.tests = tests
        self.share = 0.0
        self.paired = 0.0
        self.alone = False
        self.pairs = 0
        """Requests that both versions answered."""
        self.spec = stable.router.spec
        self.closed_reason = ""
        self.most_rows = min(stable.router.most_rows, new.router.most_rows)
        self.timeout_ns = stable.router.timeout_ns
        self._clock = clock
        self._point = self._pair_point = 0
        self._asked: dict[Ticket, _Asked] = {}
        self._pairing = 0
        self._early: dict[int, Sequence[Any]] = {}
        """Labels that came before the new version's answer, by the number of the request."""
        self._answers: dict[int, list[tuple[RowAnswer | None, RowAnswer | None]]] = {}

    # --- which version ------------------------------------------------------------------------------------------------

    def _takes(self) -> bool:
        """Return whether the next request is the new version's."""
        self._point = (self._point + _GOLDEN) % _WHOLE
        return self._point < self.share * _WHOLE

    def _pairs_next(self) -> bool:
        """Return whether the next request of the stable version is answered by both."""
        self._pair_point = (self._pair_point + _SILVER) % _WHOLE
        return self._pair_point < self.paired * _WHOLE

    def versions(self) -> tuple[FamilySpec, ...]:
        """See `SplitModel.versions`."""
        return self.stable.router.spec, self.new.router.spec

    def version_of(self, ticket: Ticket) -> FamilySpec:
        """See `SplitModel.version_of`."""
        asked = self._asked.get(ticket)
        return (asked.version if asked is not None else self.stable).router.spec

    @property
    def ready(self) -> bool:
        """Whether some worker takes rows now."""
        return self.new.router.ready if self.alone else self.stable.router.ready

    @property
    def waiting(self) -> int:
        """Requests that are not closed yet, those in the background included."""
        return len(self._asked) + self._pairing

    # --- the front end's side: see `clover.interfaces.Model` ----------------------------------------------------------

    def open(self, rows: int, flow: int = 0, request: int = 0, tenant: Tenant | None = None) -> RouterTicket:
        """See `Model.open`."""
        refused = False
        if self._takes():
            try:
                return self._record(self.new.router.open(rows, flow, request, tenant), self.new, tenant).ticket
            except RequestError:
                if self.alone:
                    raise
                refused = True
        asked = self._record(self.stable.router.open(rows, flow, request, tenant), self.stable, tenant)
        if refused:
            self._refused(rows)
        else:
            asked.paired = rows <= PAIRED_ROWS and self._pairs_next()
        return asked.ticket

    def _record(self, ticket: RouterTicket, version: ServedVersion, tenant: Tenant | None) -> _Asked:
        asked = self._asked[ticket] = _Asked(ticket, version, tenant)
        version.requests += 1
        return asked

    def _refused(self, rows: int) -> None:
        """Count a request that the new version refused and the stable one took."""
        self.new.requests += 1
        self.new.failed += 1
        self.tests.record_request(True, True, 0.0, rows, self._clock())

    def retry_in_s(self, flow: int = 0, request: int = 0, tenant: Tenant | None = None) -> float:
        """See `Model.retry_in_s`."""
        return (self.new if self.alone else self.stable).router.retry_in_s(flow, request, tenant)

    def room(self, flow: int = 0, request: int = 0, tenant: Tenant | None = None) -> int:
        """See `Model.room`."""
        return (self.new if self.alone else self.stable).router.room(flow, request, tenant)

    def take_late(self, on: bool) -> None:
        """See `Model.take_late`."""
        for version in (self.stable, self.new):
            version.router.take_late(on)

    def count_expired(self, tenant: Tenant | None = None) -> None:
        """See `Model.count_expired`."""
        (self.new if self.alone else self.stable).router.count_expired(tenant)

    def lend(
        self, rows: int, index: int, flow: int = 0, request: int = 0, tenant: Tenant | None = None
    ) -> tuple[RouterTicket, memoryview] | None:
        """See `Model.lend`."""
        version = self.new if self._takes() else self.stable
        found = version.router.lend(rows, index, flow, request, tenant)
        if found is not None:
            asked = self._record(found[0], version, tenant)
            asked.paired = version is self.stable and rows <= PAIRED_ROWS and self._pairs_next()
        return found

    def admit_lent(self, given: Any) -> None:
        """See `Model.admit_lent`."""
        asked = self._asked[given]
        try:
            asked.version.router.admit_lent(given)
        except RequestError as error:
            self._move(asked, error)

    def write(self, given: Any, index: int, rows: NDArray[Any] | Sequence[bytes]) -> None:
        """See `Model.write`."""
        self._asked[given].version.router.write(given, index, rows)

    def write_elements(self, given: Any, index: int, rows: Sequence[bytes], dims: tuple[int, ...]) -> None:
        """See `Model.write_elements`."""
        self._asked[given].version.router.write_elements(given, index, rows, dims)

    def submit(
        self,
        given: Any,
        on_done: Callable[[Any], None],
        timeout_ns: int = 0,
        min_accuracy: float = 0.0,
        cascade: bool = True,
        context: Any = None,
    ) -> None:
        """See `Model.submit`."""
        asked = self._asked[given]
        asked.on_done = on_done
        asked.how = timeout_ns, min_accuracy, cascade
        given.context = context
        if asked.version is self.new:
            try:
                self.new.router.submit(given, self._on_new_done, timeout_ns, min_accuracy, cascade, context)
                return
            except RequestError as error:
                self._move(asked, error)
                try:
                    self._submit(asked)
                except BadRequest:
                    raise error from None  # wrong, by both
                return
        self._submit(asked)

    def _submit(self, asked: _Asked) -> None:
        """Submit a request to the stable version."""
        ticket = asked.answering
        if ticket is asked.ticket:
            assert asked.on_done is not None
            self.stable.router.submit(ticket, asked.on_done, *asked.how, ticket.context)
        else:
            ticket.client, ticket.uncached = asked.ticket.client, asked.ticket.uncached
            ticket.waited_ns = asked.ticket.waited_ns
            ticket.arrival_ns -= ticket.waited_ns
            self.stable.router.submit(ticket, partial(self._on_stable_done, asked), *asked.how)

    def read(self, given: Any, index: int) -> NDArray[Any] | list[bytes]:
        """See `Model.read`."""
        asked = self._asked[given]
        return asked.version.router.read(asked.answering, index)

    def text(self, given: Any, index: int) -> bytes | None:
        """See `Model.text`."""
        asked = self._asked[given]
        return asked.version.router.text(asked.answering, index)

    def receipt(self, given: Any) -> Receipt:
        """See `Model.receipt`; with the version that answered."""
        asked = self._asked[given]
        router = asked.version.router
        return msgspec.structs.replace(router.receipt(asked.answering), version=router.spec.version)

    def remember(self, number: int, given: Any) -> None:
        """See `Model.remember`."""
        asked = self._asked[given]
        asked.number = number
        asked.version.router.remember(number, asked.answering)

    def count_labels(self, number: int, labels: Sequence[Any], client: str) -> dict[str, Any]:
        """See `Model.count_labels`.  Labels of what both versions answered are held against both."""
        version = self.new if self.new.router.feedback.knows(number) else self.stable
        found = version.router.count_labels(number, labels, client)
        if number in self._early:
            self._early[number] = labels
        else:
            self._judge(self._answers.pop(number, []), labels)
        return found

    def _judge(self, both: list[tuple[RowAnswer | None, RowAnswer | None]], labels: Sequence[Any]) -> None:
        """Hold labels against the answers of both versions."""
        right = self.stable.router.feedback.is_right
        for (stable, new), label in zip(both, labels, strict=False):
            if label is not None and stable is not None and new is not None:
                self.tests.count_label(right(new, label), right(stable, label))

    def close(self, given: Any) -> None:
        """See `Model.close`."""
        asked = self._asked.pop(given, None)
        if asked is None:
            return
        ticket, answering = asked.ticket, asked.answering
        if ticket.status:  # else its client is gone
            new = asked.version is self.new or asked.failed
            failed = asked.failed or ticket.status in _FAILED
            recalled = getattr(answering, "recalled", None) is not None  # from a cache, which is the new one's to fill
            keep = ticket.status == 200 and not failed and not recalled
            latency_ms = (ticket.done_ns - ticket.arrival_ns) / 1e6 if keep else 0.0
            (self.new if new else self.stable).failed += failed
            self.tests.record_request(new, failed, latency_ms, len(ticket.slots), self._clock())
        if asked.paired and answering.status == 200 and not self.alone and not self.closed_reason:
            self._pair(asked)
        if answering is not ticket:
            self.stable.router.close(answering)
            ticket.status = asked.status
            self.new.router.close(ticket)
        else:
            asked.version.router.close(ticket)

    def stats(self) -> dict[str, Any]:
        """See `Model.stats`: of the stable version."""
        return self.stable.router.stats()

    # --- the stable version in place of the new one -------------------------------------------------------------------

    def _move(self, asked: _Asked, error: RequestError) -> None:
        """Have the stable version answer a request that the new one refused with `error`; raises that if it cannot."""
        if asked.version is not self.new or self.alone:
            raise error
        ticket = asked.ticket
        moved = self.stable.router.open(len(ticket.slots), max(ticket.connection, 0), ticket.request, asked.tenant)
        try:
            _copy_rows(self.new.memory, ticket.slots, self.stable.router, moved)
        except BaseException:
            self.stable.router.close(moved)
            raise
        asked.failed = True
        asked.status = ticket.status
        asked.answering, asked.version = moved, self.stable

    def _on_new_done(self, given: Any) -> None:
        """Hand on the answer of the new version, or ask the stable one if it has none."""
        asked = self._asked[given]
        assert asked.on_done is not None
        if given.status in _ASKED_AGAIN and given.deaths < _DEADLY and not self.alone:
            if asked.tenant is not None and asked.tenant.limit is not None:
                asked.tenant.limit.give_back(len(given.slots))  # these rows are counted once
            try:
                self._move(asked, RequestError(given.error))
                self._submit(asked)
                return
            except RequestError:
                asked.failed = given.status != 400
        asked.on_done(given)

    def _on_stable_done(self, asked: _Asked, answering: RouterTicket) -> None:
        """Hand on the answer that the stable version has in place of the new one."""
        ticket = asked.ticket
        if ticket not in self._asked or asked.on_done is None:
            return
        if asked.status == 400 and answering.status != 200:
            asked.failed = False  # it may be wrong: none has answered it
        ticket.status, ticket.error, ticket.retry_after_s = answering.status, answering.error, answering.retry_after_s
        ticket.variants, ticket.done_ns = answering.variants, answering.done_ns
        ticket.queue_ns, ticket.compute_ns = answering.queue_ns, answering.compute_ns
        asked.on_done(ticket)

    # --- both versions ------------------------------------------------------------------------------------------------

    def _pair(self, asked: _Asked) -> None:
        """Ask the new version what the stable one has answered, whose slots are not freed yet."""
        if self._pairing >= WAITING_PAIRS:
            return
        slots, new = asked.answering.slots, self.new.router
        said = [self.stable.reader.read(slot) for slot in slots]
        try:
            ticket = new.open(len(slots))
        except RequestError:
            return  # it has enough to do with its clients
        self._pairing += 1
        if asked.number:
            self._early[asked.number] = ()
        ticket.uncached = NO_STORE  # computed, as nothing else is compared; and no other client is answered from it
        try:
            _copy_rows(self.stable.memory, slots, new, ticket)
            new.submit(ticket, partial(self._both_answered, said, asked.number))
        except RequestError:
            self._pairing -= 1
            self._early.pop(asked.number, None)
            new.close(ticket)

    def _both_answered(self, said: list[RowAnswer | None], number: int, ticket: RouterTicket) -> None:
        """Compare what both versions say, and keep it for labels."""
        self._pairing -= 1
        early = self._early.pop(number, ())
        try:
            if ticket.status == 400:  # some row that the stable version has answered
                self.pairs += 1
                self.tests.record_comparison(False)
            if ticket.status != 200:
                return
            self.pairs += 1
            both = [(answer, self.new.reader.read(slot)) for answer, slot in zip(said, ticket.slots, strict=True)]
            for stable, new in both:
                if stable is not None:
                    self.tests.record_comparison(new is not None and same_answer(stable, new))
            if early:
                self._judge(both, early)
            elif number and all(map(_fits, both)):
                self._answers[number] = both
                if len(self._answers) > REMEMBERED:
                    del self._answers[next(iter(self._answers))]
        finally:
            self.new.router.close(ticket)


def _fits(both: tuple[RowAnswer | None, RowAnswer | None]) -> bool:
    """Return whether the answers of both versions to a row are short enough to be kept for its label."""
    return all(one is None or isinstance(one, int) or answer_bytes(one) <= LONGEST_ANSWER for one in both)


def _copy_rows(memory: Memory, slots: list[int], router: Router, ticket: RouterTicket) -> None:
    """Copy the inputs in `slots` of `memory` to those of a ticket of `router`."""
    for index, tensor in enumerate(router.spec.inputs):
        dims = memory.dims("input", index, slots[0])
        if tensor.datatype == "BYTES":
            rows = [memory.get_bytes("input", index, slot) for slot in slots]
            if tensor.variable:
                router.write_elements(ticket, index, rows, dims)
            else:
                router.write(ticket, index, rows)
        else:
            region = memory.array("input", index)
            corner = tuple(slice(axis) for axis in dims) if tensor.variable else ()
            router.write(ticket, index, np.stack([region[slot][corner] for slot in slots]))
