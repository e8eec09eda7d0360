"""Turns: at the end of each turn of the event loop in which something came in, batches form and go to workers.

All requests that were read in one turn therefore share batches, and an idle server adds no delay: the turn ends at
once.  If rows may wait for their batch to fill, they do so while further requests are expected (`Company`).  A turn
also gives up rows that cannot be answered in time any more (`csrc/batcher.pyx`).  A timer starts a turn for the nearest
deadline, and for rows that waited long enough for their batch to fill.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import numpy as np

from clover.runtime.router.completion import Completion
from clover.runtime.router.links import Batch, Link, WorkerHandle
from clover.runtime.router.monitor import Monitor
from clover.runtime.router.relief import StandbyRouting
from clover.runtime.router.state import RouterState
from clover.runtime.router.tickets import FLYING

_TICK_NS = 1_000_000
"""Event loops wait in whole milliseconds of their clock: uvloop's counts those that have begun, and rounds delays."""
_HALF_TICK_NS = 499_000
_ROOM_NS = 100_000
"""While requests are refused, `make_room` does its work at most this often."""


class Dispatch:
    """Forms batches and hands them to workers, once a turn.  `busy`: after the last batches were formed, rows waited in
    some lane whose workers had no credit left."""

    def __init__(
        self,
        state: RouterState,
        completion: Completion,
        standby: StandbyRouting,
        monitor: Monitor,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._state = state
        self._completion = completion
        self._standby = standby
        self._audits = monitor.audits
        self._loop = loop
        self._out = np.zeros(max(state.spec.max_batch, 1), np.uint32)
        self._batch_id = 0
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._room_ns = 0
        self._yield_ns = 0  # no sooner than then if hurried
        self.busy = False
        self.spare: Callable[[int], None] | None = None
        """Called at the end of each turn, when clients' rows have the workers that they need; None if nothing waits."""
        self._audits.wake = self.wake

    def run_turn(self) -> None:
        """Expire deadlines, form batches, call back, and set the timer for what comes next."""
        self._scheduled = False
        now_ns = self._state.now_ns()
        self._completion.expire(now_ns)
        self._form_batches(now_ns)
        if self._standby.update(now_ns):
            self._completion.give_up(self._audits.list_queued(), "relief")
            self._form_batches(now_ns)
        if self._state.lanes.leaving and self._state.lanes.detach_done():
            self._completion.move_stranded(now_ns)  # rows that came later than those that a worker stayed for
        if self._state.stranded:
            self._completion.settle_stranded(now_ns)
        self._completion.deliver()
        self._set_timer(now_ns)
        if self.spare is not None:
            self.spare(now_ns)

    def wake(self) -> None:
        """Schedule a turn at the end of the event loop's own, unless one is scheduled."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.run_turn)

    def make_room(self, now_ns: int, hurried: bool) -> bool:
        """Let workers run, take what they completed, and form batches, in the middle of a turn, before a request is
        refused; return False, having done nothing, if that was a moment ago.

        Refused requests come again, and a loop that is busy refusing has long turns: with thousands of connections, of
        tens of milliseconds.  A worker gets two batches at the end of one, and then has nothing to do until the end of
        the next; on the same core it does not get the CPU either.  It looks slow then, so that more are refused.
        Callbacks wait for the end of the turn, so that none runs inside another request (except after a worker broke
        its ring).

        A worker that computes for milliseconds, or another process, may take the core for as long.  If `hurried`, which
        is for requests that are refused because answers would come too late, the core is yielded at most half of the
        time: the others that wait to be read have to be refused as well."""
        if now_ns - self._room_ns <= _ROOM_NS:
            return False
        if not hurried or now_ns >= self._yield_ns:
            began_ns = self._state.now_ns()
            os.sched_yield()
            now_ns = self._state.now_ns()
            self._yield_ns = now_ns + (now_ns - began_ns)
        self._room_ns = now_ns
        self._completion.collect(now_ns)
        self._completion.expire(now_ns)
        self._form_batches(now_ns)
        self.wake()
        return True

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _form_batches(self, now_ns: int) -> None:
        """Send every batch that is due to its worker."""
        state = self._state
        batcher, out = state.batcher, self._out
        broken: list[tuple[WorkerHandle, str]] = []
        if state.lanes.delayed:
            batcher.patient = state.company.expects_more(now_ns)
        formed = batcher.dispatch(now_ns, out)
        while formed is not None:
            index, count = formed
            link = state.lanes.by_index(index)
            pace = state.lanes.paces[link.lane]
            if pace.since_ns:
                pace.record_departure(now_ns, count, batcher.depth(link.lane), batcher.most(index))
            self._batch_id += 1
            slots: list[int] = out[:count].tolist()
            ordered = sorted(slots)
            if ordered != slots:  # rows that lie together are read in place, whichever body was complete first
                out[:count] = ordered
                slots = ordered
            batch = Batch(self._batch_id, slots, now_ns)
            if state.tenanted:
                batch.tenants = state.table.tenants(slots)
            why = self._send(link, batch, now_ns)
            if why:
                broken.append((link.worker, why))
            formed = batcher.dispatch(now_ns, out)
        if batcher.dropped:
            self._completion.too_late(batcher.take_dropped(), now_ns)
        if self.busy or batcher.depth():
            self.busy = False
            for lane, pace in enumerate(state.lanes.paces):
                saturated = batcher.saturated(lane)
                pace.record_saturation(now_ns, saturated)
                self.busy = self.busy or saturated
        for worker, reason in broken:
            state.lost(worker, reason)

    def _send(self, link: Link, batch: Batch, now_ns: int) -> str:
        """Send a batch, whose slots are in `_out`, to its worker; return why that cannot be, empty if it was sent."""
        for slot in batch.slots:
            self._state.table.state[slot] = FLYING
        link.record_sent(batch, now_ns)
        try:
            # Credits are fewer than the ring's frames, so only a worker that corrupted its ring makes it look full.
            sent = link.worker.ring.submit(batch.id, self._out, len(batch.slots), link.place)
            if sent == 2:
                link.worker.bell()
        except (ValueError, OSError) as error:
            return f"its ring cannot be written: {error}"
        return "" if sent else "its ring is full"

    def send_waiting(self, link: Link, slots: list[int], now_ns: int) -> bool:
        """Give a worker a batch of rows that wait outside the queue (`runtime.router.waiting`); return False, having
        done nothing, if the worker has a batch already."""
        if not self._state.batcher.claim(link.index, now_ns):
            return False
        self._batch_id += 1
        slots = sorted(slots)
        self._out[: len(slots)] = slots
        batch = Batch(self._batch_id, slots, now_ns)
        batch.waiting = True
        why = self._send(link, batch, now_ns)
        if why:
            self._state.lost(link.worker, why)
        return True

    def _set_timer(self, now_ns: int) -> None:
        """Keep one timer, for the nearest deadline or, if batches wait to fill, the end of the nearest wait."""
        next_ns, rounding_ns = self._state.deadlines.next_ns(), 0
        if self._state.lanes.delayed:
            delay_ns = self._state.batcher.next_event_ns(now_ns)
            if delay_ns and (not next_ns or delay_ns < next_ns):
                # To the end of the tick in which it is due: woken before, the loop would only wait for the rest.
                # Nearly half a tick more, because the loop rounds to the nearest one.  (Deadlines are late already.)
                next_ns, rounding_ns = (delay_ns + _TICK_NS - 1) // _TICK_NS * _TICK_NS, _HALF_TICK_NS
        timer = self._timer
        if timer is not None:
            # A timer that fires early costs one idle turn, so it is moved only if something nearer came.
            if not next_ns or (now_ns < self._timer_ns <= next_ns):
                return
            timer.cancel()
            self._timer = None
        if next_ns:
            self._timer_ns = next_ns
            self._timer = self._loop.call_later((max(next_ns - now_ns, _TICK_NS) + rounding_ns) / 1e9, self._timed)

    def _timed(self) -> None:
        """Run the turn that the timer asked for."""
        self._timer = None
        self.run_turn()
