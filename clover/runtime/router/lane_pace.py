"""How fast a lane serves and how long its batches take, from its latest batches: which rows would be answered too late.

Pace.  A batch counts only if it leaves while the lane is *saturated*: rows wait and its workers have no credit left.
The time from one batch to the next is then what the workers need, whatever the load is.  A lane that is saturated only
now and then sends small batches that take little time each.  The time of a long queue is therefore that of full batches
at this pace, which is too short at first and right once the queue is long.  If a batch is not full although enough rows
wait (they differ in shape), that part is taken off.

Time.  A batch takes the time from its dispatch until it is done, including the batch that its worker is running.  The
*expected* time serves to refuse rows that would be late: its mean and mean deviation follow each new batch as those of
TCP's round trips do (RFC 6298), and twice the deviation is added.  The *least* time serves to give up rows that are
late: it is the shortest of the last `_BATCHES` to twice as many.  For a worker of several lanes it leaves out the batch
before.  One slow batch (the first of a worker, or one beside a start) does not change the least time, and computing a
row in vain costs less than giving up a queue that can be served.

If the lane's workers change, the pace and the least time are forgotten, and the pace is also after `_OLD_NS`; the
expected time follows the new batches.  Until a pace is measured, that of the profile stands in (`use_profile`).  No row
is refused by an unknown pace, or given up by an unknown time.
"""

from __future__ import annotations

from dataclasses import dataclass

from clover.planning.model.queueing import Service

_LEAST_BATCHES = 4
"""A pace is known from so many batches on."""
_BATCHES = 32
_WINDOW_NS = 1_000_000_000
"""Beyond so many batches and so long, what was counted weighs half."""
_OLD_NS = 10_000_000_000
_NEARLY = 0.9
"""A batch is useful if it serves so much of the rows a second that the best one serves."""


@dataclass(frozen=True, slots=True)
class ProfiledPace:
    """What the profile says of the workers of a lane: the rows a second that they serve together, the seconds of a full
    batch, and the rows of the shortest batch with which they serve nearly as many; 0 if that is not known."""

    rows_per_s: float = 0.0
    batch_s: float = 0.0
    useful_rows: int = 0

    def combine(self, other: ProfiledPace) -> ProfiledPace:
        """Return the pace of the workers of both."""
        return ProfiledPace(
            self.rows_per_s + other.rows_per_s,
            max(self.batch_s, other.batch_s),
            max(self.useful_rows, other.useful_rows),
        )


def pace_by(service: Service | None) -> ProfiledPace:
    """Return the pace of a worker that serves like `service`, by its profile; None: nothing is known."""
    if service is None:
        return ProfiledPace()
    enough = _NEARLY * service.capacity()
    sizes = range(1, service.max_batch + 1)
    useful = next((rows for rows in sizes if rows / service.seconds(rows) >= enough), service.max_batch)
    return ProfiledPace(service.capacity(), service.seconds(service.max_batch), useful)


class LanePace:
    """The pace of one lane.

    `expected_ns`, `least_ns`: from the dispatch of a batch until it is done, as expected and at least; 0 if not known.
    `since_ns`: when rows were last seen waiting without a batch leaving; 0 while the lane is not saturated.
    `useful_rows`: see `ProfiledPace`.
    """

    __slots__ = (
        "_batches",
        "_before_ns",
        "_deviation_ns",
        "_done",
        "_fit",
        "_mean_ns",
        "_most",
        "_profiled_ns",
        "_rows",
        "_shortest_ns",
        "_span_ns",
        "_updated_ns",
        "expected_ns",
        "least_ns",
        "since_ns",
        "useful_rows",
    )

    def __init__(self) -> None:
        self.expected_ns = 0
        self.least_ns = 0
        self.since_ns = 0
        self.useful_rows = 0
        self._mean_ns = 0.0
        self._deviation_ns = 0.0
        self._shortest_ns = 0
        self._before_ns = 0
        self._done = 0
        self._span_ns = 0.0
        self._batches = 0.0
        self._rows = 0.0
        self._fit = 0.0
        self._most = 0.0
        self._profiled_ns = 0.0
        self._updated_ns = 0

    def use_profile(self, expected: ProfiledPace) -> None:
        """Use what the profile says of the lane's workers until more is known."""
        self.useful_rows = expected.useful_rows
        self._profiled_ns = 1e9 / expected.rows_per_s if expected.rows_per_s > 0.0 else 0.0
        if self._mean_ns == 0.0:
            self.expected_ns = int(2e9 * expected.batch_s)  # its own, and the one that runs when it is dispatched

    def forget(self) -> None:
        """Forget the pace, and what batches take at least: the workers have changed."""
        self.since_ns = self.least_ns = 0
        self._shortest_ns = self._before_ns = self._done = 0
        self._span_ns = self._batches = self._rows = self._fit = self._most = 0.0

    def record_saturation(self, now_ns: int, yes: bool) -> None:
        """Note whether the lane is saturated after all batches were formed."""
        if not yes:
            self.since_ns = 0
        elif not self.since_ns:
            self.since_ns = now_ns

    def record_departure(self, now_ns: int, rows: int, waiting: int, most: int) -> None:
        """Count a batch of `rows` rows that leaves a saturated lane, in which `waiting` rows are left; it could have
        held `most`."""
        self._span_ns += now_ns - self.since_ns
        self.since_ns = self._updated_ns = now_ns
        self._batches += 1.0
        self._rows += rows
        self._fit += min(rows + waiting, most)
        self._most += most
        if self._batches >= _BATCHES and self._span_ns > _WINDOW_NS:
            self._span_ns *= 0.5
            self._batches *= 0.5
            self._rows *= 0.5
            self._fit *= 0.5
            self._most *= 0.5

    def record_batch(self, took_ns: int, least_ns: int = 0) -> None:
        """Take note of a batch that was done `took_ns` after it was dispatched, and would have been after `least_ns`
        (0: no sooner) if no batch of another lane had been before it."""
        least_ns = least_ns or took_ns
        if self._mean_ns == 0.0:
            self._mean_ns, self._deviation_ns = float(took_ns), took_ns / 2
        else:
            error = took_ns - self._mean_ns
            self._mean_ns += error / 8
            self._deviation_ns += (abs(error) - self._deviation_ns) / 4
        self.expected_ns = int(self._mean_ns + 2.0 * self._deviation_ns)
        self._done += 1
        if self._shortest_ns == 0 or least_ns < self._shortest_ns:
            self._shortest_ns = least_ns
        if self._before_ns:
            self.least_ns = min(self._shortest_ns, self._before_ns)
        elif self._done >= _LEAST_BATCHES:
            self.least_ns = self._shortest_ns
        if self._done >= _BATCHES:
            self._before_ns, self._shortest_ns, self._done = self._shortest_ns, 0, 0

    def wait_ns(self, now_ns: int, rows: int) -> float:
        """Return how long it takes until `rows` rows have left in full batches; 0 if the pace is not known."""
        if self._batches < _LEAST_BATCHES or now_ns - self._updated_ns > _OLD_NS or self._rows <= 0.0:
            return rows * self._profiled_ns
        return rows * self._span_ns * self._fit / (self._most * self._rows)
