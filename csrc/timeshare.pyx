"""Play processes that hold several variants each and share their time between them, batch by batch.

Theory.  A *lane* is the queue of one variant, first in, first out.  A process serves some of the lanes, each with
service times of its own; processes that serve the same lanes alike are of one *kind*.  A process holds at most two
batches, one running and one staged behind it, each of one lane's rows.  Whenever a process has room and a row waits
that it may serve, the lane whose first row has waited longest gives as many rows as wait, at most the largest batch of
its process: so a process is one FIFO of batches with mixed service times.  Of the processes that may take a batch one
that holds the fewest does, the next in turn of these.

Rows arrive at given times.  They are dealt to the lanes by quota (`route`), or all come to the first lane and are
passed on from each lane to the next until the one where they end, as rows of a cascade are: they enter its queue when
their batch ends, and rows of one batch may share a batch again.

At one instant batches end first, the lowest process first, then rows arrive, then waits run out.  There are tens of
processes and a few lanes, so that what comes next is looked for among all of them.  `des` plays lanes that have
servers of their own, and any number of these.
"""

import numpy as np

from clover._native.random cimport clover_random, clover_random_normal, clover_random_seed
from clover._native.route cimport Quota
from libc.math cimport INFINITY
from libc.stdint cimport INT32_MAX, int8_t, int32_t, int64_t, uint64_t

cdef enum:
    CREDITS = 2
    MAX_LANES = 64
    MAX_PROCESSES = 4096

cdef double LEAST = 0.2  # of the mean: no service time is shorter


cdef class Outcome:
    """What became of the measured rows, which are those after the warm-up.

    `latency_s`: by row in order of arrival, from its arrival until it ended.  By service (a kind of process and a lane)
    `rows`, `batches` and `energy_j`; of a batch with rows of the warm-up, only the other rows' part.
    """

    cdef readonly object latency_s
    cdef readonly object rows
    cdef readonly object batches
    cdef readonly object energy_j

    def __init__(self):
        raise TypeError("outcomes are made by play()")


cdef class _Play:
    # By service.
    cdef const double[:, ::1] _service_s
    cdef const double[:, ::1] _batch_j
    cdef const double[::1] _spread
    cdef const int32_t[::1] _largest
    cdef int64_t[::1] _rows
    cdef int64_t[::1] _batches
    cdef double[::1] _energy_j
    # By kind and lane: the service, -1 if there is none.
    cdef const int32_t[:, ::1] _service_of
    # By process.
    cdef const int32_t[::1] _kind_of
    cdef int32_t[::1] _held
    cdef double[::1] _end_s
    cdef int32_t[:, ::1] _batch_lane  # its batches: the running one, the staged one
    cdef int32_t[:, ::1] _batch_row
    cdef int32_t[:, ::1] _batch_rows
    # By lane.
    cdef const double[::1] _wait_s
    cdef int32_t[::1] _head
    cdef int32_t[::1] _tail
    cdef int32_t[::1] _depth
    cdef int32_t[::1] _cursor
    # By row.
    cdef const double[::1] _came_s
    cdef const int8_t[::1] _last  # the lane where it ends
    cdef double[::1] _since_s  # when it entered its queue
    cdef int32_t[::1] _next
    cdef double[::1] _latency_s
    cdef Quota _quota
    cdef bint _chained
    cdef int32_t _lanes
    cdef int32_t _processes
    cdef int32_t _count
    cdef int32_t _warm_up
    cdef clover_random _serving

    cdef void _enter(self, int32_t lane, int32_t row, double now_s) noexcept nogil:
        self._since_s[row] = now_s
        self._next[row] = 0
        if self._depth[lane]:
            self._next[self._tail[lane]] = row
        else:
            self._head[lane] = row
        self._tail[lane] = row
        self._depth[lane] += 1

    cdef void _begin(self, int32_t process, double now_s) noexcept nogil:
        """Start the first batch of a process."""
        cdef int32_t lane = self._batch_lane[process, 0], rows = self._batch_rows[process, 0]
        cdef int32_t service = self._service_of[self._kind_of[process], lane]
        cdef int32_t row = self._batch_row[process, 0], measured = 0, i
        cdef double factor = 1.0
        if self._spread[service] > 0.0:
            factor += self._spread[service] * clover_random_normal(&self._serving)
            factor = factor if factor > LEAST else LEAST
        self._end_s[process] = now_s + self._service_s[service, rows - 1] * factor
        for i in range(rows):
            measured += row >= self._warm_up
            row = self._next[row]
        if measured:
            self._rows[service] += measured
            self._batches[service] += 1
            self._energy_j[service] += self._batch_j[service, rows - 1] * measured / rows

    cdef void _finish(self, int32_t process, double now_s) noexcept nogil:
        cdef int32_t lane = self._batch_lane[process, 0], row = self._batch_row[process, 0], following, i
        for i in range(self._batch_rows[process, 0]):
            following = self._next[row]
            if self._chained and lane < self._last[row]:
                self._enter(lane + 1, row, now_s)
            else:
                self._latency_s[row] = now_s - self._came_s[row]
            row = following
        self._held[process] -= 1
        if self._held[process]:
            self._batch_lane[process, 0] = self._batch_lane[process, 1]
            self._batch_row[process, 0] = self._batch_row[process, 1]
            self._batch_rows[process, 0] = self._batch_rows[process, 1]
            self._begin(process, now_s)
        else:
            self._end_s[process] = INFINITY

    cdef int32_t _taker(self, int32_t lane) noexcept nogil:
        """Return the process that takes the next batch of the lane; -1 if none has room."""
        cdef int32_t found = -1, process, step
        for step in range(self._processes):
            process = self._cursor[lane] + step
            if process >= self._processes:
                process -= self._processes
            if self._held[process] >= CREDITS or self._service_of[self._kind_of[process], lane] < 0:
                continue
            if found < 0 or self._held[process] < self._held[found]:
                found = process
        return found

    cdef bint _ripe(self, int32_t lane, double now_s) noexcept nogil:
        """Return whether the waiting rows of the lane may leave: for long enough here, or a full batch."""
        cdef int32_t full = INT32_MAX, process, service
        if self._wait_s[lane] == 0.0 or self._since_s[self._head[lane]] + self._wait_s[lane] <= now_s:
            return True
        for process in range(self._processes):
            service = self._service_of[self._kind_of[process], lane]
            if service >= 0 and self._held[process] < CREDITS and self._largest[service] < full:
                full = self._largest[service]
        return self._depth[lane] >= full

    cdef void _hand_out(self, double now_s) noexcept nogil:
        """Hand out waiting rows, those first that have waited longest, while a process may take them."""
        cdef int32_t lane, process, taker, first, rows, last, i
        while True:
            taker = first = -1
            for lane in range(self._lanes):
                if self._depth[lane] == 0:
                    continue
                if first >= 0 and self._since_s[self._head[lane]] >= self._since_s[self._head[first]]:
                    continue
                process = self._taker(lane)
                if process >= 0 and self._ripe(lane, now_s):
                    first, taker = lane, process
            if taker < 0:
                return
            rows = self._largest[self._service_of[self._kind_of[taker], first]]
            rows = rows if rows < self._depth[first] else self._depth[first]
            i = self._held[taker]
            self._batch_lane[taker, i] = first
            self._batch_row[taker, i] = last = self._head[first]
            self._batch_rows[taker, i] = rows
            for i in range(rows - 1):
                last = self._next[last]
            self._depth[first] -= rows
            if self._depth[first]:
                self._head[first] = self._next[last]
            self._cursor[first] = taker + 1 if taker + 1 < self._processes else 0
            self._held[taker] += 1
            if self._held[taker] == 1:
                self._begin(taker, now_s)

    cdef void _play(self) noexcept nogil:
        cdef double end_s, ripe_s, at_s, arrival_s
        cdef int32_t arrived = 0, process, ending, lane
        cdef uint64_t mask = (<uint64_t>0xFFFFFFFFFFFFFFFF) >> (MAX_LANES - self._lanes)
        while True:
            end_s = ripe_s = INFINITY
            ending = 0
            for process in range(self._processes):
                if self._end_s[process] < end_s:
                    end_s = self._end_s[process]
                    ending = process
            for lane in range(self._lanes):
                if self._wait_s[lane] > 0.0 and self._depth[lane] and self._taker(lane) >= 0:
                    at_s = self._since_s[self._head[lane]] + self._wait_s[lane]
                    ripe_s = at_s if at_s < ripe_s else ripe_s
            arrival_s = self._came_s[arrived] if arrived < self._count else INFINITY
            if ripe_s < end_s and ripe_s < arrival_s:
                self._hand_out(ripe_s)
            elif arrival_s < end_s:
                lane = 0 if self._chained or self._lanes == 1 else self._quota._choose(mask)
                self._enter(lane, arrived, arrival_s)
                arrived += 1
                self._hand_out(arrival_s)
            elif end_s < INFINITY:
                self._finish(ending, end_s)
                self._hand_out(end_s)
            else:
                return


def play(
    service_s, lanes, kinds, counts, times_s, *, cv, energy_j, largest, shares=None, last=None, wait_s=None, warm_up=0,
    seed=0
):
    """Play rows that arrive at `times_s` (f64[rows], ascending) and return the outcome of those after the first
    `warm_up`.

    A service is a kind of process in a lane: `kinds` and `lanes` i64[services] say which, each pair once; `service_s`
    f64[services, batch] are the mean seconds of a batch of 1, 2, ... rows, `energy_j` its joules, `cv` f64[services]
    the coefficient of variation (times are normal, held above a fifth of the mean), `largest` i64[services] the most
    rows of a batch.  `counts` i64[kinds]: processes of each kind.  Rows are dealt to lanes by the quotas `shares`
    f64[lanes], or, with `last` i8[rows], come to lane 0 and end in that lane.  They wait up to `wait_s` f64[lanes] for
    a full batch.  ValueError for what makes no sense.
    """
    cdef _Play run = _Play.__new__(_Play)
    cdef Outcome made
    table, joules = np.ascontiguousarray(service_s, np.float64), np.ascontiguousarray(energy_j, np.float64)
    lane_of, kind_of, number = np.asarray(lanes, np.int64), np.asarray(kinds, np.int64), np.asarray(counts, np.int64)
    spread, most = np.ascontiguousarray(cv, np.float64), np.ascontiguousarray(largest, np.int32)
    came_s = np.ascontiguousarray(times_s, np.float64)
    if table.ndim != 2 or not table.size or joules.shape != table.shape:
        raise ValueError("service_s and energy_j need a row for each service and a column for each batch size")
    services = len(table)
    if any(len(own) != services for own in (lane_of, kind_of, spread, most)):
        raise ValueError("lanes, kinds, cv and largest need one number for each service")
    if not (np.isfinite(table).all() and (table > 0.0).all() and np.isfinite(joules).all()):
        raise ValueError("service_s must be positive and finite, energy_j finite")
    if not (np.isfinite(spread).all() and (spread >= 0.0).all()):
        raise ValueError("cv must be finite and not negative")
    if not ((most >= 1) & (most <= table.shape[1])).all():
        raise ValueError("largest must lie in 1..the columns of service_s")
    if number.ndim != 1 or not len(number) or (number < 1).any() or number.sum() > MAX_PROCESSES:
        raise ValueError(f"counts must be positive, and sum to 1..{MAX_PROCESSES}")
    width = int(lane_of.max()) + 1
    if lane_of.min() < 0 or width > MAX_LANES or kind_of.min() < 0 or kind_of.max() >= len(number):
        raise ValueError(f"lanes must lie in 0..{MAX_LANES - 1}, kinds in 0..the kinds of `counts`")
    service_of = np.full((len(number), width), -1, np.int32)
    service_of[kind_of, lane_of] = np.arange(services, dtype=np.int32)
    if (service_of >= 0).sum() != services or not (service_of >= 0).any(axis=0).all():
        raise ValueError("a kind has one service in a lane at most, and every lane has one")
    if came_s.ndim != 1 or not len(came_s) or len(came_s) > INT32_MAX or not np.isfinite(came_s).all():
        raise ValueError("times_s needs a finite time at least")
    if came_s[0] < 0.0 or (np.diff(came_s) < 0.0).any() or not 0 <= warm_up < len(came_s):
        raise ValueError("times_s must not be negative, and ascend; warm_up must leave a row")
    if (shares is None) == (last is None):
        raise ValueError("either shares or last")
    ends = np.zeros(len(came_s), np.int8) if last is None else np.ascontiguousarray(last, np.int8)
    if ends.shape != came_s.shape or ends.min() < 0 or ends.max() >= width:
        raise ValueError("last needs a lane for each row")
    waits_s = np.zeros(width) if wait_s is None else np.ascontiguousarray(wait_s, np.float64)
    if waits_s.shape != (width,) or not np.isfinite(waits_s).all() or (waits_s < 0.0).any():
        raise ValueError("wait_s needs a finite number for each lane, none negative")
    run._quota = Quota(width)
    if shares is not None:
        run._quota.set_shares(shares)
    processes = int(number.sum())
    run._service_s, run._batch_j, run._spread, run._largest = table, joules, spread, most
    rows_of, batches, spent_j = np.zeros(services, np.int64), np.zeros(services, np.int64), np.zeros(services)
    run._rows, run._batches, run._energy_j = rows_of, batches, spent_j
    run._service_of = service_of
    run._kind_of = np.repeat(np.arange(len(number), dtype=np.int32), number)
    run._held, run._end_s = np.zeros(processes, np.int32), np.full(processes, np.inf)
    run._batch_lane = np.zeros((processes, CREDITS), np.int32)
    run._batch_row = np.zeros((processes, CREDITS), np.int32)
    run._batch_rows = np.zeros((processes, CREDITS), np.int32)
    run._wait_s = waits_s
    run._head, run._tail = np.zeros(width, np.int32), np.zeros(width, np.int32)
    run._depth, run._cursor = np.zeros(width, np.int32), np.zeros(width, np.int32)
    latency_s = np.empty(len(came_s))
    run._came_s, run._last, run._latency_s = came_s, ends, latency_s
    run._since_s, run._next = np.zeros(len(came_s)), np.zeros(len(came_s), np.int32)
    run._chained = last is not None
    run._lanes, run._processes, run._count, run._warm_up = width, processes, len(came_s), warm_up
    clover_random_seed(&run._serving, seed, 1)
    with nogil:
        run._play()
    made = Outcome.__new__(Outcome)
    made.latency_s, made.rows, made.batches, made.energy_j = latency_s[warm_up:], rows_of, batches, spent_j
    return made
