"""The routing table of a family: which workers take rows, for which variant, which variant a row goes to, and how each
forms its batches.

A lane is a variant.  A lane is live while a worker is attached to it; a row may go to the live lanes whose expected
accuracy meets its request, and the quotas of the plan decide among them.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

from clover._native.batcher import Batcher
from clover._native.route import Quota
from clover.accounting import WorkerMeter
from clover.runtime.cascade import RoutedChain, chain_of
from clover.runtime.router.lane_pace import LanePace
from clover.runtime.router.links import Link, WorkerHandle, WorkerLinks
from clover.types import CascadeProfile, ChainPoint, FamilyProfile, FamilySpec, Routing

MAX_WORKERS = 256
"""Workers of one family at a time, draining ones and standby workers included."""
MAX_LINKS = 1024
"""Variants that all of them serve, together."""
_CREDITS = 2
"""Batches that a worker has at a time: the one that it runs, and the one behind it."""

_REMEMBERED_MASKS = 1024

Entry = tuple[WorkerHandle, int, int, WorkerMeter]
"""A worker that is to receive rows: itself, its lane, the largest batch it takes, and the meter of its work."""


def expected_accuracy(spec: FamilySpec, profile: FamilyProfile | None) -> list[float]:
    """Return the expected accuracy (percent) of each variant: measured if it was, else published, else 0."""
    out = []
    for variant in spec.variants:
        value = variant.accuracy.value if variant.accuracy is not None else 0.0
        if profile is not None:
            backend = profile.backend.get(variant.name, "")
            measured = [m for m in profile.accuracy if m.variant == variant.name]
            picked = [m for m in measured if m.backend == backend] or measured
            if picked:
                value = picked[0].value
        out.append(value)
    return out


class Lanes:
    """Links between workers and lanes, which are the `variants`.  `live` has bit i set while lane i has a worker that
    takes new rows, `asked` while it has one that answers audits, and `staffed` while it has any attached one; `routing`
    is what was set last, `delayed` whether rows of any lane may wait for a batch to fill, `chain` the cascade that rows
    follow, `points` the profiled ones, cheapest first, `paces` how fast each lane serves, `processes` the workers, each
    with its `links`."""

    def __init__(
        self, batcher: Batcher, variants: Sequence[str], accuracy: Sequence[float], max_batch: int, delay_ms: float
    ) -> None:
        self.accuracy = accuracy
        self.paces = [LanePace() for _ in variants]
        self.live = self.asked = self.staffed = 0
        self.links: list[Link] = []
        self.processes: list[WorkerLinks] = []
        self.routing = Routing(shares=dict.fromkeys(variants, 1.0))
        self.chain: RoutedChain | None = None
        self.points: Sequence[ChainPoint] = ()
        self.profiled_rows = 0
        """Held-out rows that `points` were counted on."""
        self.relieved = False
        """Whether standby workers serve."""
        self.leaving = False
        """Whether some worker stays only for rows that wait already (`Link.leaving`)."""
        self.audits_waiting: Callable[[int], int] = lambda lane: 0
        """Returns how many of the rows waiting for a lane (-1: any) are audits, which are behind all clients' rows."""
        self.delayed = delay_ms > 0.0
        self._forming = [(0, int(delay_ms * 1e6))] * len(self.paces)
        """The most rows of a batch (0: as its worker takes), and nanoseconds that rows wait for it to fill, by lane."""
        self._variants = tuple(variants)
        self._delay_ms = delay_ms
        self._batcher = batcher
        self._max_batch = max_batch
        self._quota = Quota(len(self.accuracy))
        self.choose_many = self._quota.choose_many
        self._table: list[Link | None] = [None] * MAX_LINKS
        self._masks: dict[float, int] = {}
        self._chains: dict[float, RoutedChain | None] = {}
        self._groups: list[list[int]] | None = None
        self._answering: dict[tuple[int, int], Entry] = {}
        self._open = 0
        self._cascade_off = False
        self._change: Callable[[RoutedChain], RoutedChain] | None = None

    def waiting(self, lane: int = -1) -> int:
        """Return how many clients' rows wait for `lane` (-1: for any)."""
        depth = self._batcher.depth(lane)
        return depth - self.audits_waiting(lane) if depth else 0

    def is_live(self, lane: int) -> bool:
        """Return whether a worker of `lane` takes new rows."""
        return bool(self.live >> lane & 1)

    def is_asked(self, lane: int) -> bool:
        """Return whether a worker of `lane` answers audits."""
        return bool(self.asked >> lane & 1)

    def is_staffed(self, lane: int) -> bool:
        """Return whether any worker of `lane` is attached, if only for rows that wait already."""
        return bool(self.staffed >> lane & 1)

    def choose(self, mask: int) -> int:
        """Return the lane of the next row, by the quotas, among those of `mask`; raises ValueError if it has none."""
        return self._quota.choose(mask)

    def mask(self, min_accuracy: float) -> int:
        """Return the live lanes that take rows and meet `min_accuracy` (percent), as bits."""
        if min_accuracy <= 0.0:
            return self._open
        mask = self._masks.get(min_accuracy)
        if mask is None:
            mask = 0
            for lane, accuracy in enumerate(self.accuracy):
                if accuracy >= min_accuracy and self._open >> lane & 1:
                    mask |= 1 << lane
            if len(self._masks) < _REMEMBERED_MASKS:
                self._masks[min_accuracy] = mask
        return mask

    def chain_for(self, min_accuracy: float) -> RoutedChain | None:
        """Return the cascade of a row: the plan's, or for a `min_accuracy` (percent) the cheapest profiled one that
        can be followed now and whose accuracy is that high at the lower end of its interval.  None if the plan has
        none, or none fits."""
        if self._cascade_off:
            return None
        if min_accuracy <= 0.0 or self.chain is None:
            return self.chain
        if min_accuracy not in self._chains:
            point = self._point_for(min_accuracy)
            if len(self._chains) >= _REMEMBERED_MASKS:
                self._chains.clear()
            self._chains[min_accuracy] = self._chain(point.chain, point.thresholds) if point is not None else None
        return self._chains[min_accuracy]

    def _point_for(self, min_accuracy: float) -> ChainPoint | None:
        found = (point for point in self.points if point.low >= min_accuracy and self._can_follow(point.chain))
        return next(found, None)

    def _can_follow(self, chain: Sequence[str]) -> bool:
        return all(self.is_live(self._variants.index(variant)) for variant in chain)

    def able(self, min_accuracy: float) -> int:
        """Return the lanes, live or not, that meet `min_accuracy`, as bits."""
        return sum(1 << lane for lane, accuracy in enumerate(self.accuracy) if accuracy >= min_accuracy)

    def lane_for(self, lane: int, min_accuracy: float) -> int:
        """Return `lane` if it is live, else a live one that is accurate enough, else `lane`, which a respawned worker
        may serve."""
        if self.is_live(lane):
            return lane
        mask = self.mask(min_accuracy)
        return self.choose(mask) if mask else lane

    def expected(self) -> list[float]:
        """Return the accuracy (percent) that is expected now of the answers of each lane: of a stage of the chain in
        force, to the rows that end there."""
        found = list(self.accuracy)
        if self.chain is not None:
            for lane, ends in zip(self.chain.lanes, self.chain.ends, strict=True):
                found[lane] = ends
        return found

    def accuracy_changed(self) -> None:
        """Forget what was derived from the accuracies, which have changed in place."""
        self._masks.clear()
        self._chains.clear()
        if self.chain is not None:
            self.chain = self._chain(self.routing.chain, self.routing.thresholds)

    def expect(self, cascade: CascadeProfile | None) -> None:
        """Use the accuracies, which have changed in place, and the chains of a profile."""
        self.points = sorted(cascade.points, key=lambda point: point.cost) if cascade is not None else ()
        self.profiled_rows = cascade.held_out_rows if cascade is not None else 0
        self.accuracy_changed()

    def tighten(self, change: Callable[[RoutedChain], RoutedChain] | None, *, cascade_off: bool) -> None:
        """Ask more expensive variants more often than planned: rows follow the chain that `change` returns for the
        plan's (None: the plan's).  With `cascade_off` no chain is followed, and the most accurate live lane takes all
        rows."""
        self._change, self._cascade_off = change, cascade_off
        self.accuracy_changed()
        self._changed()

    def groups(self) -> list[list[int]]:
        """Return all lanes, grouped by the workers that serve them, one batch at a time."""
        if self._groups is None:
            found = [{lane} for lane in range(len(self._variants))]
            for process in self.processes:
                links = [link for link in process.links if link.attached and not (link.standby or link.background)]
                served = {link.lane for link in links}
                joined = set().union(*(lanes for lanes in found if lanes & served))
                found = [joined, *(lanes for lanes in found if not lanes & served)] if joined else found
            self._groups = [sorted(lanes) for lanes in found]
        return self._groups

    def by_index(self, index: int) -> Link:
        """Return the link at `index` of the batcher."""
        link = self._table[index]
        if link is None:
            raise RuntimeError(f"the batcher chose worker {index}, which is not attached")
        return link

    def find(self, worker: WorkerHandle, lane: int = -1) -> Link | None:
        """Return the link of `worker` for `lane` (-1: its first one), while it is attached or still holds a batch."""
        for link in self.links:
            if link.worker is worker and lane in (-1, link.lane):
                return link
        return None

    def process_of(self, worker: WorkerHandle) -> WorkerLinks | None:
        """Return all links of `worker`, while it has any."""
        for process in self.processes:
            if process.worker is worker:
                return process
        return None

    def entries(self) -> list[Entry]:
        """Return the workers that `set` attached and that are attached still."""
        return [
            (link.worker, link.lane, link.max_batch, link.meter)
            for link in self.links
            if link.attached and not (link.standby or link.background or link.leaving)
        ]

    def set(self, entries: Iterable[Entry], routing: Routing) -> None:
        """Attach exactly `entries`: new ones first, so that no lane is empty in between; then the quotas, the largest
        batches, the waits and the chain.  Raises ValueError if these make no sense; nothing has changed then."""
        wanted = {(id(entry[0]), entry[1]): entry for entry in entries}
        knobs = [self._knobs(variant, routing) for variant in self._variants]
        chain = self._chain(routing.chain, routing.thresholds) if len(routing.chain) > 1 else None
        for worker, lane, max_batch, meter in wanted.values():
            link = self._link(worker, lane, max_batch, meter)
            self._attach(link, standby=False, background=False)
        for link in list(self.links):
            if (id(link.worker), link.lane) not in wanted and not link.background and not self._answers(link):
                self.retire(link)
        self._quota.set_shares([routing.shares.get(variant, 0.0) for variant in self._variants])
        self._forming = knobs
        self.routing = routing
        self.chain = chain
        self._changed()

    def begin_relief(self, entries: Iterable[Entry], lane: int) -> None:
        """Attach the standby workers `entries` beside the plan's, and send every row to `lane` that may go there."""
        for worker, own, max_batch, meter in entries:
            link = self._link(worker, own, max_batch, meter)
            self._attach(link, standby=True, background=False)
        self._quota.set_shares([float(index == lane) for index in range(len(self._variants))])
        self.relieved = True
        self._changed()

    def set_background(self, entries: Iterable[Entry]) -> None:
        """Have exactly `entries` answer audits beside the workers that receive rows.  One of these stays as it is; a
        standby worker answers audits again after relief.

        They get one row at a time: in the same process, the next row of a client waits until the batch is done."""
        wanted = {(id(entry[0]), entry[1]): entry for entry in entries}
        for link in list(self.links):
            if link.background and (id(link.worker), link.lane) not in wanted:
                self.detach(link)
        self._answering = wanted
        for worker, lane, max_batch, meter in wanted.values():
            link = self._link(worker, lane, max_batch, meter)
            if not link.attached or link.leaving:
                self._attach(link, standby=False, background=True)
        self._changed()

    def end_relief(self) -> None:
        """Detach the standby workers and restore the plan's shares."""
        self.relieved = False
        for link in list(self.links):
            if link.standby and not self._answers(link):
                self.detach(link)
        self._quota.set_shares([self.routing.shares.get(variant, 0.0) for variant in self._variants])
        self._changed()

    def _answers(self, link: Link) -> bool:
        """Return whether a standby worker answers audits besides; it does nothing else from now on."""
        if not (link.standby and link.attached and (id(link.worker), link.lane) in self._answering):
            return False
        self._attach(link, standby=False, background=True)
        return True

    def retire(self, link: Link) -> None:
        """Route no new row to a worker.  If it is the last one of its lane it stays, until `detach_done`, for the rows
        that wait for that lane now."""
        if link.leaving:
            return
        waiting = self._batcher.depth(link.lane)
        alone = not any(other.lane == link.lane and other is not link for other in self.links if other.attached)
        if link.attached and alone and waiting and not link.standby:
            link.leaving, link.remaining = True, waiting
            self._changed()
        else:
            self.detach(link)

    def detach_done(self) -> bool:
        """Detach the workers that stayed for rows which waited, if these are with a worker or gone; return whether any
        was.

        A worker takes about as many rows as waited when it was retired, so that rows which came later do not keep
        it."""
        done = [
            link
            for link in self.links
            if link.leaving and (link.remaining <= 0 or self.is_live(link.lane) or not self._batcher.depth(link.lane))
        ]
        for link in done:
            self.detach(link)
        return bool(done)

    def detach(self, link: Link) -> None:
        """Give a worker no new batch; it finishes those that it holds."""
        link.leaving = False
        if link.attached:
            self._batcher.detach(link.index)
            self._forget_paces(link.process)
            link.attached = link.background = False
            link.process.shared = sum([other.attached for other in link.process.links]) > 1
            self._changed()
        self.forget_idle(link)

    def forget_idle(self, link: Link) -> None:
        """Drop a link that is neither attached nor holds a batch; its index may serve another worker."""
        if link.attached or link.batches or link not in self.links:
            return
        process = link.process
        self.links.remove(link)
        process.links.remove(link)
        if not process.links:
            self.processes.remove(process)
        self._table[link.index] = None
        self._call_back(link)

    def _call_back(self, link: Link) -> None:
        """Tell those that wait until `link` is idle."""
        callbacks, link.on_idle = link.on_idle, []
        for callback in callbacks:
            callback()

    def _forget_paces(self, process: WorkerLinks) -> None:
        """Forget how fast the lanes of a worker served, as it changes what it serves."""
        for link in process.links:
            if link.attached:
                self.paces[link.lane].forget()
                self._batcher.expect(link.lane, 0)

    def _attach(self, link: Link, *, standby: bool, background: bool) -> None:
        if link.attached and link.background != background:
            self._batcher.detach(link.index)  # to come back with batches of another size
            link.attached = False
        link.leaving, link.standby, link.background = False, standby, background
        if not link.attached:
            most = 1 if background else link.max_batch
            self._batcher.attach(link.index, link.lane, most, _CREDITS, link.process.group)
            link.attached = True
            link.process.shared = sum([other.attached for other in link.process.links]) > 1
            self._forget_paces(link.process)
        if link.on_idle:
            self._call_back(link)  # whoever let it go before has nothing more to wait for

    def _chain(self, chain: Sequence[str], thresholds: Sequence[float]) -> RoutedChain:
        lanes = {variant: lane for lane, variant in enumerate(self._variants)}
        points = {(point.chain, point.thresholds): point for point in self.points}
        known = {key: (point.ends, point.cut) for key, point in points.items()}
        found = chain_of(chain, thresholds, lanes, self.accuracy, known)
        point = points.get((tuple(chain), tuple(thresholds)))
        if point is not None:
            found = dataclasses.replace(found, escalations=sum(point.reach[1:]), accuracy=point.accuracy)
        if point is not None and point.alike:
            rows = [part * self.profiled_rows for part in (*point.reach, 0.0)]
            ended = tuple(round(here - on) for here, on in itertools.pairwise(rows))
            found = dataclasses.replace(found, alike=point.alike, alike_rows=ended)
            if point.overruled >= 0.0:
                found = dataclasses.replace(found, overruled=point.overruled, overruled_rows=self.profiled_rows)
        return self._change(found) if self._change is not None else found

    def _knobs(self, variant: str, routing: Routing) -> tuple[int, int]:
        """Return the most rows of a batch (0: as many as the worker takes) and the nanoseconds that a row may wait for
        one to fill; raises ValueError if these make no sense."""
        largest = routing.largest.get(variant)
        wait_ms = routing.wait_ms.get(variant, self._delay_ms)
        if (largest is not None and largest < 1) or not 0.0 <= wait_ms < math.inf:
            raise ValueError(f"{variant} cannot form batches of {largest} rows that wait for {wait_ms} ms")
        # A limit above the family's largest batch limits nothing.
        return min(largest or 0, self._max_batch), int(wait_ms * 1e6)

    def _link(self, worker: WorkerHandle, lane: int, max_batch: int, meter: WorkerMeter) -> Link:
        """Return the link of `worker` for `lane`, a new one if there is none."""
        link = self.find(worker, lane)
        if link is not None:
            link.meter = meter
            return link
        index = next((i for i, link in enumerate(self._table) if link is None), -1)
        process = self.process_of(worker)
        if index < 0 or (process is None and len(self.processes) == MAX_WORKERS):
            raise RuntimeError(f"more than {MAX_WORKERS} workers of one family at a time, or {MAX_LINKS} variants")
        if process is None:
            taken = {other.group for other in self.processes}
            process = WorkerLinks(worker, next(group for group in range(MAX_WORKERS) if group not in taken))
            self.processes.append(process)
        place = worker.resident.get(self._variants[lane], 0)
        link = Link(process, index, lane, place, min(max_batch, self._max_batch), meter)
        process.links.append(link)
        self._table[index] = link
        self.links.append(link)
        return link

    def _changed(self) -> None:
        live = asked = staffed = 0
        self._groups = None
        for link in self.links:
            if link.attached:
                staffed |= 1 << link.lane
                if not link.leaving:
                    asked |= 1 << link.lane
                    if not link.background:
                        live |= 1 << link.lane
        self.live, self.asked, self.staffed = live, asked, staffed
        self.leaving = any(link.leaving for link in self.links)
        self.delayed = False
        for lane, (largest, delay_ns) in enumerate(self._forming):
            if not self.is_live(lane):
                delay_ns = 0  # no further row comes to fill its batches
            self._batcher.set_lane(lane, largest, delay_ns)
            self.delayed = self.delayed or delay_ns > 0
        self._open = live
        if self._cascade_off and live and not self.relieved:  # in a burst, any answer is better than none
            able = [lane for lane in range(len(self.accuracy)) if self.is_live(lane)]
            self._open = 1 << max(able, key=lambda lane: self.accuracy[lane])
        self._masks.clear()
        self._chains.clear()
