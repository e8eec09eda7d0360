"""Rows that ask for an accuracy of their own (`clover_min_accuracy`), counted by the variant that they need.

A row needs the least accurate variant that reaches its accuracy.  If no worker is accurate enough, the row waits in the
queue, within its deadline, for one that may come.  The controller says for which variants none will come
(`set_declined`), and is called when the first row waits for another variant.  Until the controller has said anything, a
row waits only for a worker that is already starting (`coming`).  Once the family is closed, no worker comes.

Rows that wait like this count in the queue and hold slots like all others, but never more than a quarter of either, so
that clients who ask for a variant without workers leave room for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from clover.runtime.router.traffic import Rate
from clover.types import Asked, Declined

UNPLANNED = Declined(why="no worker that is accurate enough is ready", retry_after_s=1.0)
PART = 4
"""One part in so many of the queue may wait for workers that are not there."""


@dataclass(slots=True)
class _VariantDemand:
    """The rows that need one variant."""

    rate: Rate
    rows: int = 0
    waiting: int = 0
    refused: int = 0


class AccuracyDemand:
    """The rows of one family that ask for an accuracy.  `accuracy` (percent, by variant) may be changed in place;
    `most` is the size of the queue."""

    def __init__(self, variants: Sequence[str], accuracy: Sequence[float], most: int) -> None:
        self.waiting = 0
        self._variants = tuple(variants)
        self._accuracy = accuracy
        self._most = max(1, most // PART)
        self._demands: dict[int, _VariantDemand] = {}
        self._declined: dict[int, Declined] | None = None
        self._wanted: Callable[[], None] | None = None
        self._called: set[int] = set()
        self._closed: Declined | None = None

    def variant_needed(self, min_accuracy: float) -> int:
        """Return the lane of the least accurate variant that reaches `min_accuracy`; -1 if all do, or none does."""
        able = [lane for lane, own in enumerate(self._accuracy) if own >= min_accuracy]
        if not able or len(able) == len(self._accuracy):
            return -1
        return min(able, key=lambda lane: (self._accuracy[lane], lane))

    def ask(self, min_accuracy: float, rows: int, now_ns: int) -> int:
        """Count `rows` that ask for `min_accuracy`; return their lane as `variant_needed` does."""
        lane = self.variant_needed(min_accuracy)
        if lane >= 0:
            own = self._of(lane)
            own.rows += rows
            own.rate.add(now_ns, rows)
        return lane

    def declined_to_wait(self, lane: int, rows: int, *, coming: bool) -> Declined | None:
        """Return why `rows` that need `lane` cannot wait for a worker; None if they can.  `coming`: one that is
        accurate enough is on its way."""
        declined = None if coming and self._declined is None else self.declined(lane)
        if declined is not None and not declined.waits:
            return declined
        if self.waiting + rows > self._most:
            return Declined(why="too many rows wait for a worker that is accurate enough already", retry_after_s=1.0)
        return None

    def declined(self, lane: int) -> Declined | None:
        """Return why no worker of `lane` comes; None if one may.  Lane -1, which needs no particular variant, is
        declined only by `close`."""
        if self._closed is not None or lane < 0:
            return self._closed
        return UNPLANNED if self._declined is None else self._declined.get(lane)

    def wait(self, lane: int, rows: int) -> None:
        """Count `rows` that wait for a worker of `lane`; call `wanted` the first time that one waits for this lane."""
        self.waiting += rows
        self._of(lane).waiting += rows
        if lane not in self._called and self._wanted is not None:
            self._called.add(lane)
            self._wanted()

    def leave(self, lane: int, rows: int) -> None:
        """Count `rows` that waited for a worker of `lane` as answered, refused or given up."""
        self.waiting -= rows
        self._demands[lane].waiting -= rows

    def count_declined(self, lane: int, rows: int) -> None:
        """Count `rows` that needed `lane` and got no answer because it has no worker."""
        own = self._demands.get(lane)
        if own is not None:
            own.refused += rows

    def close(self, why: str) -> None:
        """Refuse all rows without a worker from now on because of `why`; return to what the controller said if it is
        empty."""
        self._closed = Declined(why=why, retry_after_s=1.0) if why else None

    def set_declined(self, declined: Mapping[str, Declined], wanted: Callable[[], None]) -> None:
        """See `clover.interfaces.Fleet.decline`."""
        self._declined = {self._variants.index(name): why for name, why in declined.items() if name in self._variants}
        self._wanted = wanted
        self._called.clear()

    def _of(self, lane: int) -> _VariantDemand:
        own = self._demands.get(lane)
        if own is None:
            own = self._demands[lane] = _VariantDemand(Rate())
        return own

    def report(self, now_ns: int) -> dict[str, Asked]:
        """Return the rows that were asked for so far, by variant."""
        return {
            self._variants[lane]: Asked(
                accuracy=self._accuracy[lane],
                rows_per_s=min(
                    own.rate.per_s(now_ns), own.rows / own.rate.window_s
                ),  # a single row is not one row a second
                rows=own.rows,
                waiting=own.waiting,
                refused=own.refused,
            )
            for lane, own in sorted(self._demands.items())
        }
