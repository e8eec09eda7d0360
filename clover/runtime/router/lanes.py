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
from clover.runtime.cascade import Chain, chain_of
from clover.runtime.router.links import Link, WorkerHandle
from clover.types import ChainPoint, FamilyProfile, FamilySpec, Routing

MAX_WORKERS = 256
"""Workers of one family at a time, old ones that still drain and those that stand by included."""

_REMEMBERED_MASKS = 1024

Entry = tuple[WorkerHandle, int, int, WorkerMeter]
"""A worker that shall receive rows: itself, its lane, the largest batch it takes, and what counts its work."""


def expected_accuracy(spec: FamilySpec, profile: FamilyProfile | None) -> list[float]:
    """Return accuracy in percent to expect of each variant: measured where it is, else published, else 0."""
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
    """Links between workers and lanes, which are the `variants`.  `live` has bit i set while lane i has an attached
    worker; `routing` is what was set last, `delayed` whether rows of any lane may wait for a batch to fill, `chain` the
    cascade that rows follow, `points` the profiled ones, cheapest first."""

    def __init__(
        self, batcher: Batcher, variants: Sequence[str], accuracy: Sequence[float], max_batch: int, delay_ms: float
    ) -> None:
        self.accuracy = accuracy
        self.live = 0
        self.links: list[Link] = []
        self.routing = Routing(shares=dict.fromkeys(variants, 1.0))
        self.chain: Chain | None = None
        self.points: Sequence[ChainPoint] = ()
        self.profiled_rows = 0
        """Held-out rows that `points` were counted on."""
        self.relieved = False
        """Whether those that stand by serve."""
        self.behind: Callable[[int], int] = lambda lane: 0
        """How many of the rows that wait for a lane (-1: any) wait behind all clients."""
        self.delayed = delay_ms > 0.0
        self._variants = tuple(variants)
        self._delay_ms = delay_ms
        self._batcher = batcher
        self._max_batch = max_batch
        self._quota = Quota(len(self.accuracy))
        self.choose_many = self._quota.choose_many
        self._table: list[Link | None] = [None] * MAX_WORKERS
        self._masks: dict[float, int] = {}
        self._chains: dict[float, Chain | None] = {}
        self._open = 0
        self._aside = False
        self._change: Callable[[Chain], Chain] | None = None

    def waiting(self, lane: int = -1) -> int:
        """Return clients' rows that wait for `lane`; -1: for any."""
        depth = self._batcher.depth(lane)
        return depth - self.behind(lane) if depth else 0

    def choose(self, mask: int) -> int:
        """Return the lane of the next row, by the quotas, among those of `mask`; ValueError where that has none."""
        return self._quota.choose(mask)

    def mask(self, min_accuracy: float) -> int:
        """Return live lanes that meet `min_accuracy` (percent) and take rows, as bits."""
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

    def chain_for(self, min_accuracy: float) -> Chain | None:
        """Return the cascade of a row: the plan's, or for a `min_accuracy` (percent) the cheapest that can be followed
        now and whose accuracy is as high at the lower end of its interval.  None where the plan has none, or there is
        none."""
        if self._aside:
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
        found = (point for point in self.points if point.low >= min_accuracy and self._followed(point.chain))
        return next(found, None)

    def _followed(self, chain: Sequence[str]) -> bool:
        return all(self.live >> self._variants.index(variant) & 1 for variant in chain)

    def able(self, min_accuracy: float) -> int:
        """Return lanes that would meet `min_accuracy` if they were live, as bits."""
        return sum(1 << lane for lane, accuracy in enumerate(self.accuracy) if accuracy >= min_accuracy)

    def lane_for(self, lane: int, min_accuracy: float) -> int:
        """`lane` where it is live, else another that is good enough; else `lane` still, which a respawn may serve."""
        if self.live >> lane & 1:
            return lane
        mask = self.mask(min_accuracy)
        return self.choose(mask) if mask else lane

    def accuracy_changed(self) -> None:
        """The accuracies handed in at the start are others now."""
        self._masks.clear()
        self._chains.clear()
        if self.chain is not None:
            self.chain = self._chain(self.routing.chain, self.routing.thresholds)

    def guard(self, change: Callable[[Chain], Chain] | None, *, aside: bool) -> None:
        """Ask dearer variants more often than the plan has it: rows follow what `change` makes of a chain; `aside`:
        none is followed, and the most accurate lane that is live takes all rows."""
        self._change, self._aside = change, aside
        self.accuracy_changed()
        self._changed()

    def by_index(self, index: int) -> Link:
        """Return the link at `index` of the batcher."""
        link = self._table[index]
        if link is None:
            raise RuntimeError(f"the batcher chose worker {index}, which nobody attached")
        return link

    def find(self, worker: WorkerHandle) -> Link | None:
        """Return the link of `worker`, while it is attached or still holds a batch."""
        for link in self.links:
            if link.worker is worker:
                return link
        return None

    def entries(self) -> list[Entry]:
        """Return the workers that were set and are attached now."""
        return [
            (link.worker, link.lane, link.max_batch, link.meter)
            for link in self.links
            if link.attached and not link.relief
        ]

    def set(self, entries: Iterable[Entry], routing: Routing) -> None:
        """Attach exactly `entries`: new ones first, so that no lane is empty in between; then the quotas, the largest
        batches, the waits and the chain.  ValueError where these make no sense; nothing has changed then."""
        wanted = {id(entry[0]): entry for entry in entries}
        knobs = [self._knobs(variant, routing) for variant in self._variants]
        chain = self._chain(routing.chain, routing.thresholds) if len(routing.chain) > 1 else None
        for worker, lane, max_batch, meter in wanted.values():
            link = self.find(worker)
            if link is None:
                link = self._add(worker, lane, max_batch, meter)
            link.relief = False
            self._attach(link)
        for link in list(self.links):
            if id(link.worker) not in wanted:
                self.detach(link)
        self._quota.set_shares([routing.shares.get(variant, 0.0) for variant in self._variants])
        for lane, (largest, delay_ns) in enumerate(knobs):
            self._batcher.set_lane(lane, largest, delay_ns)
        self.delayed = any(delay_ns for _, delay_ns in knobs)
        self.routing = routing
        self.chain = chain
        self._changed()

    def relieve(self, entries: Iterable[Entry], lane: int) -> None:
        """Let `entries` serve beside those that were set, and send every row to `lane` that may go there."""
        for worker, own, max_batch, meter in entries:
            link = self.find(worker) or self._add(worker, own, max_batch, meter)
            link.relief = True
            self._attach(link)
        self._quota.set_shares([float(index == lane) for index in range(len(self._variants))])
        self.relieved = True
        self._changed()

    def relent(self) -> None:
        """As it was before `relieve`."""
        self.relieved = False
        for link in list(self.links):
            if link.relief:
                self.detach(link)
        self._quota.set_shares([self.routing.shares.get(variant, 0.0) for variant in self._variants])
        self._changed()

    def detach(self, link: Link) -> None:
        """No new batch for it; what it holds, it finishes."""
        if link.attached:
            self._batcher.detach(link.index)
            link.attached = False
            self._changed()
        self.forget_idle(link)

    def forget_idle(self, link: Link) -> None:
        """Let go of a link that is neither attached nor holds a batch; its index may serve another worker."""
        if link.attached or link.batches or link not in self.links:
            return
        self.links.remove(link)
        self._table[link.index] = None
        callbacks, link.on_idle = link.on_idle, []
        for callback in callbacks:
            callback()

    def when_idle(self, worker: WorkerHandle, callback: Callable[[], None]) -> None:
        """Call `callback` once `worker`, which was detached, holds no batch; at once where it holds none."""
        link = self.find(worker)
        if link is None:
            callback()
        else:
            link.on_idle.append(callback)

    def _attach(self, link: Link) -> None:
        if not link.attached:
            self._batcher.attach(link.index, link.lane, link.max_batch)
            link.attached = True
            link.epoch += 1

    def _chain(self, chain: Sequence[str], thresholds: Sequence[float]) -> Chain:
        lanes = {variant: lane for lane, variant in enumerate(self._variants)}
        points = {(point.chain, point.thresholds): point for point in self.points}
        known = {key: (point.ends, point.cut) for key, point in points.items()}
        found = chain_of(chain, thresholds, lanes, self.accuracy, known)
        point = points.get((tuple(chain), tuple(thresholds)))
        if point is not None and point.alike:
            rows = [part * self.profiled_rows for part in (*point.reach, 0.0)]
            ended = tuple(round(here - on) for here, on in itertools.pairwise(rows))
            found = dataclasses.replace(found, alike=point.alike, alike_rows=ended)
            if point.overruled >= 0.0:
                found = dataclasses.replace(found, overruled=point.overruled, overruled_rows=self.profiled_rows)
        return self._change(found) if self._change is not None else found

    def _knobs(self, variant: str, routing: Routing) -> tuple[int, int]:
        """Return rows of a batch (0: what the worker takes) and nanoseconds that a row may wait for one to fill."""
        largest = routing.largest.get(variant)
        wait_ms = routing.wait_ms.get(variant, self._delay_ms)
        if (largest is not None and largest < 1) or not 0.0 <= wait_ms < math.inf:
            raise ValueError(f"{variant} cannot form batches of {largest} rows that wait for {wait_ms} ms")
        # More than the family's largest batch is no limit, however much more it is.
        return min(largest or 0, self._max_batch), int(wait_ms * 1e6)

    def _add(self, worker: WorkerHandle, lane: int, max_batch: int, meter: WorkerMeter) -> Link:
        index = next((i for i, link in enumerate(self._table) if link is None), -1)
        if index < 0:
            raise RuntimeError(f"more than {MAX_WORKERS} workers of one family at a time")
        link = Link(worker, index, lane, min(max_batch, self._max_batch), meter)
        self._table[index] = link
        self.links.append(link)
        return link

    def _changed(self) -> None:
        live = 0
        for link in self.links:
            if link.attached:
                live |= 1 << link.lane
        self.live = live
        self._open = live
        if self._aside and live and not self.relieved:  # while a burst lasts, any answer is better than none
            able = [lane for lane in range(len(self.accuracy)) if live >> lane & 1]
            self._open = 1 << max(able, key=lambda lane: self.accuracy[lane])
        self._masks.clear()
        self._chains.clear()
