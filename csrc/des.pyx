"""A discrete-event simulation of queues, batches and quotas: what a configuration does to latency, without traffic.

Theory.  Rows arrive (as a Poisson stream, in bursts, or at given times), the production routing (`route`) deals them to
lanes by quota, and each lane is one FIFO queue in front of its servers.  A server holds at most `credits` batches, one
running and the others staged behind it.  Whenever a row waits and a server of its lane has a credit left, the server
with the fewest batches takes as many rows as wait, at most its largest batch.  Among equals it is the next one in turn,
as in `batcher`, or any, by chance.  With one lane, one credit and batches of one row this is FIFO-to-any-idle-server:
M/M/c, M/D/c, and with servers of several speeds the system that the product form of `queueing` describes.  With a
delay, rows wait until they fill a batch of a server that may take it, or the oldest has waited so long.

Three streams of random numbers come from one seed: arrivals, service times, choices.  So two configurations are played
on the same arrivals, and differ by less noise than two independent runs would.

A batch's end is known when it begins, so its rows' latencies are written then and nothing of a running batch need be
kept but its end, in a heap.  A row costs O(log servers).  Until a batch begins, its rows are chained through the places
where their results will stand, and their arrival lies where their latency will: the run allocates nothing.

At one instant batches end first (the lowest server first), then rows arrive, then delays run out.  Rows of one instant
come one after another, each to a server of its own while some are idle; or, where they are asked to, `together`, before
any of them leaves: rows of one request, or of one batch whose rows go on to another lane, may share a batch.
"""

import math

import numpy as np

from clover._native.random cimport (
    clover_random,
    clover_random_below,
    clover_random_exponential,
    clover_random_normal,
    clover_random_seed,
    clover_random_uniform,
)
from clover._native.route cimport Quota
from libc.math cimport INFINITY, exp, isfinite
from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint64_t

cdef extern from *:
    """
    static inline int clover_lowest_bit(uint64_t word) { return __builtin_ctzll(word); }
    """
    int clover_lowest_bit(uint64_t word) nogil

cdef enum:
    MAX_CREDITS = 8
    MAX_SERVERS = 1 << 20
    MAX_LANES = 64

cdef enum Kind:
    POISSON
    BURSTY
    TRACE

cdef enum Law:
    DETERMINISTIC
    NORMAL
    LOGNORMAL
    EXPONENTIAL

cdef double LEAST = 0.2  # of the mean: no normal service time is shorter

_LAWS = {"deterministic": DETERMINISTIC, "normal": NORMAL, "lognormal": LOGNORMAL, "exponential": EXPONENTIAL}


cdef class Arrivals:
    """A process of arrivals; made by `poisson`, `bursty` and `trace`."""

    cdef Kind _kind
    cdef bint _exact
    cdef const double[::1] _rates
    cdef const double[::1] _stay_s
    cdef const double[::1] _times_s
    cdef readonly double rate

    def __init__(self):
        raise TypeError("arrivals are made by poisson(), bursty() or trace()")


def poisson(double rate):
    """Return a Poisson stream of `rate` rows/s."""
    cdef Arrivals made = Arrivals.__new__(Arrivals)
    if not (isfinite(rate) and rate > 0.0):
        raise ValueError("the rate must be positive and finite")
    made._kind = POISSON
    made.rate = rate
    return made


def bursty(rates, stay_s, bint exact=False):
    """Return a Poisson stream whose rate moves through `rates` (rows/s, 0 for silence) in a circle.

    It stays `stay_s` seconds at each: exponentially distributed with that mean (a Markov-modulated Poisson process), or
    exactly so long.  The run begins at a random moment of the circle.
    """
    cdef Arrivals made = Arrivals.__new__(Arrivals)
    own, stay = np.array(rates, np.float64), np.array(stay_s, np.float64)
    if own.ndim != 1 or own.shape != stay.shape or not len(own):
        raise ValueError("bursts need as many rates as stays, at least one")
    if not (np.isfinite(own).all() and (own >= 0.0).all() and own.any()):
        raise ValueError("rates must be finite, none negative, and one positive")
    if not (np.isfinite(stay).all() and (stay > 0.0).all()):
        raise ValueError("stays must be positive and finite")
    made._kind = BURSTY
    made._exact = exact
    made._rates = own
    made._stay_s = stay
    made.rate = math.fsum(own * stay) / math.fsum(stay)
    return made


def trace(times_s):
    """Return arrivals at these times (seconds, ascending, not negative)."""
    cdef Arrivals made = Arrivals.__new__(Arrivals)
    times = np.array(times_s, np.float64)
    if times.ndim != 1 or not len(times):
        raise ValueError("a trace needs a time at least")
    if not (np.isfinite(times).all() and times[0] >= 0.0 and (np.diff(times) >= 0.0).all()):
        raise ValueError("the times of a trace must be finite, not negative, and ascend")
    made._kind = TRACE
    made._times_s = times
    last_s = float(times.max())
    made.rate = len(times) / last_s if last_s > 0.0 else math.inf
    return made


cdef class Outcome:
    """What became of the measured rows, which are those after the warm-up.

    By row in order of arrival: `latency_s` (wait + service), `wait_s` (until its batch began), `group` (which served).
    By group: `rows`, `batches`, `busy_s`, `energy_j`; of a batch with rows of the warm-up, only the other rows' part.
    `span_s` is the time from the first measured arrival to the last.
    """

    cdef readonly object latency_s
    cdef readonly object wait_s
    cdef readonly object group
    cdef readonly object rows
    cdef readonly object batches
    cdef readonly object busy_s
    cdef readonly object energy_j
    cdef readonly double span_s

    def __init__(self):
        raise TypeError("outcomes are made by simulate()")

    @property
    def shares(self):
        """The share of the rows that each group served."""
        return self.rows / len(self.latency_s)

    @property
    def energy_j_per_row(self):
        """Joules a row."""
        return float(self.energy_j.sum()) / len(self.latency_s)

    @property
    def mean_latency_s(self):
        """Mean of wait + service."""
        return float(self.latency_s.mean())

    @property
    def mean_wait_s(self):
        """Mean wait, rows that did not wait included."""
        return float(self.wait_s.mean())

    @property
    def waited(self):
        """The share of the rows that waited at all."""
        return np.count_nonzero(self.wait_s > 0.0) / len(self.wait_s)

    def quantile(self, double q):
        """Return the least latency that a share `q` of the rows does not exceed.  ValueError if not 0 < q <= 1."""
        if not 0.0 < q <= 1.0:
            raise ValueError("a quantile needs 0 < q <= 1")
        index = max(0, math.ceil(q * len(self.latency_s)) - 1)
        return float(np.partition(self.latency_s, index)[index])

    def histogram(self, bounds_s):
        """Count the rows by latency: up to the first of the ascending bounds, ... and above the last."""
        bounds = np.asarray(bounds_s, np.float64)
        return np.bincount(np.searchsorted(bounds, self.latency_s), minlength=len(bounds) + 1)


cdef class _Run:
    """The state of one simulation, filled in by `simulate`."""

    # What is simulated.
    cdef Arrivals _arrivals
    cdef Quota _quota
    cdef uint64_t _mask
    cdef int32_t _lanes
    cdef int32_t _credits
    cdef Law _law
    cdef bint _any
    cdef bint _together
    cdef double _delay_s
    cdef int32_t _count
    cdef int32_t _warm_up
    cdef clover_random _arriving
    cdef clover_random _serving
    cdef clover_random _choosing
    # By group.
    cdef const double[:, ::1] _service_s
    cdef const double[:, ::1] _batch_j
    cdef const double[::1] _spread
    cdef const int32_t[::1] _largest
    cdef const int32_t[::1] _lane_of_group
    cdef int32_t[::1] _able  # servers with a credit left
    cdef int64_t[::1] _rows
    cdef int64_t[::1] _batches
    cdef double[::1] _busy_s
    cdef double[::1] _energy_j
    # By server; the servers of a lane are numbered in a row.
    cdef const int32_t[::1] _group_of
    cdef int32_t[::1] _out  # batches it holds
    cdef int32_t[::1] _position  # in its pool
    cdef int32_t[:, ::1] _staged_row  # a circle of `credits` batches: first row and number of rows
    cdef int32_t[:, ::1] _staged_rows
    cdef int32_t[::1] _staged_first
    # By lane: where its servers, and its words in the sets below, begin (one more for the end).
    cdef const int32_t[::1] _first_server
    cdef const int32_t[::1] _first_word
    cdef int32_t[::1] _head
    cdef int32_t[::1] _tail
    cdef int32_t[::1] _depth
    cdef int32_t[::1] _free  # servers with a credit left
    cdef int32_t[::1] _cursor  # whose turn it is, counted within the lane
    # By number of batches held: servers that hold so many, as pools to draw from by chance or as sets to walk in turn.
    cdef int32_t[:, ::1] _holding  # how many, by lane
    cdef int32_t[:, ::1] _pool
    cdef uint64_t[:, ::1] _set
    # Ends of the running batches, the next one first.
    cdef double[::1] _ends_s
    cdef int32_t[::1] _ending
    cdef int32_t _running
    # By row.  While it waits: arrival, and the row behind it in its queue or batch; then latency and group.
    cdef double[::1] _latency_s
    cdef double[::1] _wait_s
    cdef int32_t[::1] _next
    # Where arrivals stand.
    cdef int32_t _arrived
    cdef Py_ssize_t _state
    cdef double _left_s
    cdef double _arrival_s
    cdef double _first_s
    cdef double _last_s

    # --- arrivals -----------------------------------------------------------------------------------------------------

    cdef void _open(self) noexcept nogil:
        """Set the first arrival."""
        cdef double at = 0.0
        cdef Py_ssize_t i
        self._arrived = 0
        self._arrival_s = 0.0
        if self._arrivals._kind == BURSTY:
            for i in range(self._arrivals._stay_s.shape[0]):
                at += self._arrivals._stay_s[i]
            at *= clover_random_uniform(&self._arriving)
            self._state = 0
            while at > self._arrivals._stay_s[self._state] and self._state + 1 < self._arrivals._stay_s.shape[0]:
                at -= self._arrivals._stay_s[self._state]
                self._state += 1
            self._left_s = self._arrivals._stay_s[self._state]
            if self._arrivals._exact:
                self._left_s = max(self._left_s - at, 0.0)
            else:
                self._left_s *= clover_random_exponential(&self._arriving)
        self._advance()

    cdef void _advance(self) noexcept nogil:
        """Set the next arrival, infinity after the last one."""
        if self._arrived == self._count:
            self._arrival_s = INFINITY
        elif self._arrivals._kind == POISSON:
            self._arrival_s += clover_random_exponential(&self._arriving) / self._arrivals.rate
        elif self._arrivals._kind == TRACE:
            self._arrival_s = self._arrivals._times_s[self._arrived]
        else:
            self._burst()

    cdef void _burst(self) noexcept nogil:
        """Set the next arrival: when the rate, summed over time, has grown by an exponential number."""
        cdef double due = clover_random_exponential(&self._arriving), rate
        while True:
            rate = self._arrivals._rates[self._state]
            if rate > 0.0 and due <= rate * self._left_s:
                self._arrival_s += due / rate
                self._left_s -= due / rate
                return
            due -= rate * self._left_s
            self._arrival_s += self._left_s
            self._state += 1
            if self._state == self._arrivals._rates.shape[0]:
                self._state = 0
            self._left_s = self._arrivals._stay_s[self._state]
            if not self._arrivals._exact:
                self._left_s *= clover_random_exponential(&self._arriving)

    # --- the ends of running batches, a binary heap by (end, server) --------------------------------------------------

    cdef inline bint _sooner(self, int32_t a, int32_t b) noexcept nogil:
        if self._ends_s[a] != self._ends_s[b]:
            return self._ends_s[a] < self._ends_s[b]
        return self._ending[a] < self._ending[b]

    cdef inline void _swap(self, int32_t a, int32_t b) noexcept nogil:
        self._ends_s[a], self._ends_s[b] = self._ends_s[b], self._ends_s[a]
        self._ending[a], self._ending[b] = self._ending[b], self._ending[a]

    cdef void _insert(self, double end_s, int32_t server) noexcept nogil:
        cdef int32_t at = self._running, above
        self._running += 1
        self._ends_s[at] = end_s
        self._ending[at] = server
        while at:
            above = (at - 1) >> 1
            if not self._sooner(at, above):
                break
            self._swap(at, above)
            at = above

    cdef void _remove_first(self) noexcept nogil:
        cdef int32_t at = 0, below
        self._running -= 1
        self._ends_s[0] = self._ends_s[self._running]
        self._ending[0] = self._ending[self._running]
        while True:
            below = 2 * at + 1
            if below >= self._running:
                break
            if below + 1 < self._running and self._sooner(below + 1, below):
                below += 1
            if not self._sooner(below, at):
                break
            self._swap(below, at)
            at = below

    # --- servers by the batches they hold -----------------------------------------------------------------------------

    cdef void _enter(self, int32_t lane, int32_t server) noexcept nogil:
        """List a server that has a credit left."""
        cdef int32_t out = self._out[server], first = self._first_server[lane], own = server - first
        cdef int32_t held = self._holding[out, lane]
        if self._any:
            self._pool[out, first + held] = server
            self._position[server] = held
        else:
            self._set[out, self._first_word[lane] + (own >> 6)] |= <uint64_t>1 << (own & 63)
        self._holding[out, lane] = held + 1
        self._free[lane] += 1
        self._able[self._group_of[server]] += 1

    cdef void _leave(self, int32_t lane, int32_t server) noexcept nogil:
        cdef int32_t out = self._out[server], first = self._first_server[lane], own = server - first, last
        cdef int32_t held = self._holding[out, lane] - 1
        if self._any:
            last = self._pool[out, first + held]
            self._pool[out, first + self._position[server]] = last
            self._position[last] = self._position[server]
        else:
            self._set[out, self._first_word[lane] + (own >> 6)] &= ~(<uint64_t>1 << (own & 63))
        self._holding[out, lane] = held
        self._free[lane] -= 1
        self._able[self._group_of[server]] -= 1

    cdef int32_t _choose(self, int32_t lane) noexcept nogil:
        """Return the server for the lane's next batch: one of those that hold the fewest.  One has a credit left."""
        cdef int32_t out = 0, held, servers, word, words, own
        cdef uint64_t bits
        while self._holding[out, lane] == 0:
            out += 1
        if self._any:
            held = self._holding[out, lane]
            own = <int32_t>clover_random_below(&self._choosing, held) if held > 1 else 0
            return self._pool[out, self._first_server[lane] + own]
        servers = self._first_server[lane + 1] - self._first_server[lane]
        words = self._first_word[lane + 1] - self._first_word[lane]
        word = self._cursor[lane] >> 6
        bits = self._set[out, self._first_word[lane] + word] & (~<uint64_t>0 << (self._cursor[lane] & 63))
        while bits == 0:
            word = word + 1 if word + 1 < words else 0
            bits = self._set[out, self._first_word[lane] + word]
        own = 64 * word + clover_lowest_bit(bits)
        self._cursor[lane] = own + 1 if own + 1 < servers else 0
        return self._first_server[lane] + own

    # --- batches ------------------------------------------------------------------------------------------------------

    cdef inline double _factor(self, int32_t group) noexcept nogil:
        """Draw a service time in units of its mean."""
        cdef double spread = self._spread[group], factor
        if self._law == EXPONENTIAL:
            return clover_random_exponential(&self._serving)
        if spread == 0.0:
            return 1.0
        factor = spread * clover_random_normal(&self._serving)
        if self._law == LOGNORMAL:
            return exp(factor - 0.5 * spread * spread)
        factor += 1.0
        return factor if factor > LEAST else LEAST

    cdef void _begin(self, int32_t server, int32_t row, int32_t rows, double now_s) noexcept nogil:
        cdef int32_t group = self._group_of[server], measured = 0, following, i
        cdef double seconds = self._service_s[group, rows - 1] * self._factor(group)
        cdef double end_s = now_s + seconds, came_s
        for i in range(rows):
            following = self._next[row]
            came_s = self._latency_s[row]
            self._latency_s[row] = end_s - came_s
            self._wait_s[row] = now_s - came_s
            self._next[row] = group
            measured += row >= self._warm_up
            row = following
        if measured:
            self._rows[group] += measured
            self._batches[group] += 1
            self._busy_s[group] += seconds * measured / rows
            self._energy_j[group] += self._batch_j[group, rows - 1] * measured / rows
        self._insert(end_s, server)

    cdef inline bint _ripe(self, int32_t lane, double now_s) noexcept nogil:
        """Return whether the waiting rows of the lane may leave."""
        cdef int32_t full = INT32_MAX
        cdef Py_ssize_t group
        if self._delay_s == 0.0 or self._latency_s[self._head[lane]] + self._delay_s <= now_s:
            return True
        for group in range(self._lane_of_group.shape[0]):
            if self._lane_of_group[group] == lane and self._able[group] and self._largest[group] < full:
                full = self._largest[group]
        return self._depth[lane] >= full

    cdef void _dispatch(self, int32_t lane, double now_s) noexcept nogil:
        """Hand out the lane's waiting rows while a server may take them."""
        cdef int32_t server, rows, first, last, place, i
        while self._depth[lane] and self._free[lane] and self._ripe(lane, now_s):
            server = self._choose(lane)
            rows = min(self._depth[lane], self._largest[self._group_of[server]])
            first = last = self._head[lane]
            for i in range(rows - 1):
                last = self._next[last]
            self._depth[lane] -= rows
            if self._depth[lane]:
                self._head[lane] = self._next[last]
            self._leave(lane, server)
            if self._out[server] == 0:
                self._begin(server, first, rows, now_s)
            else:
                place = (self._staged_first[server] + self._out[server] - 1) % self._credits
                self._staged_row[server, place] = first
                self._staged_rows[server, place] = rows
            self._out[server] += 1
            if self._out[server] < self._credits:
                self._enter(lane, server)

    cdef void _arrive(self) noexcept nogil:
        cdef int32_t row = self._arrived, lane = 0
        if self._lanes > 1:
            lane = self._quota._choose(self._mask)
        self._latency_s[row] = self._arrival_s
        self._next[row] = 0
        if self._depth[lane]:
            self._next[self._tail[lane]] = row
        else:
            self._head[lane] = row
        self._tail[lane] = row
        self._depth[lane] += 1
        if row <= self._warm_up:
            self._first_s = self._arrival_s
        self._last_s = self._arrival_s
        self._arrived += 1
        self._advance()
        if not self._together:
            self._dispatch(lane, self._last_s)
        elif self._arrival_s > self._last_s:
            for lane in range(self._lanes):
                self._dispatch(lane, self._last_s)

    cdef void _finish(self) noexcept nogil:
        cdef double now_s = self._ends_s[0]
        cdef int32_t server = self._ending[0], place
        cdef int32_t lane = self._lane_of_group[self._group_of[server]]
        self._remove_first()
        if self._out[server] < self._credits:
            self._leave(lane, server)
        self._out[server] -= 1
        self._enter(lane, server)
        if self._out[server]:
            place = self._staged_first[server]
            self._staged_first[server] = (place + 1) % self._credits
            self._begin(server, self._staged_row[server, place], self._staged_rows[server, place], now_s)
        self._dispatch(lane, now_s)

    cdef void _play(self) noexcept nogil:
        cdef double end_s, ripe_s, at_s
        cdef int32_t lane, ripe = 0, server
        for lane in range(self._lanes):
            for server in range(self._first_server[lane], self._first_server[lane + 1]):
                self._enter(lane, server)
        self._open()
        while True:
            end_s = self._ends_s[0] if self._running else INFINITY
            ripe_s = INFINITY
            if self._delay_s > 0.0:
                for lane in range(self._lanes):
                    if self._depth[lane] and self._free[lane]:
                        at_s = self._latency_s[self._head[lane]] + self._delay_s
                        if at_s < ripe_s:
                            ripe_s = at_s
                            ripe = lane
            if ripe_s < end_s and ripe_s < self._arrival_s:
                self._dispatch(ripe, ripe_s)
            elif self._arrival_s < end_s:
                self._arrive()
            elif self._running:
                self._finish()
            else:
                return


def _table(name, values, groups, columns=0):
    """Return `values` as a table of one row a group, with one column if there is one number a group."""
    table = np.ascontiguousarray(values, np.float64)
    if table.ndim == 1:
        table = table.reshape(len(table), 1)
    if table.ndim != 2 or not table.size or table.shape != (groups or len(table), columns or table.shape[1]):
        raise ValueError(f"{name} needs a row for each group and a column for each batch size")
    return table


def _column(name, values, groups, dtype):
    given = np.asarray(values)
    column = np.array(given, dtype)
    if column.shape != (groups,) or (column != given).any():
        raise ValueError(f"{name} needs one {'number' if dtype is np.float64 else 'whole number'} for each group")
    return column


def simulate(
    service_s,
    counts,
    Arrivals arrivals not None,
    *,
    rows=0,
    seed=0,
    law="deterministic",
    cv=None,
    energy_j=None,
    largest=None,
    lanes=None,
    shares=None,
    credits=1,
    in_turn=False,
    delay_s=0.0,
    warm_up=0,
    together=False,
):
    """Play `rows` rows (0: all of a trace) and return the outcome of those after the first `warm_up`.

    `service_s` f64[groups, batch] are the mean seconds of a batch of 1, 2, ... rows, `energy_j` its joules (0 where
    left out), `counts` i64[groups] the servers of each group; f64[groups] serves where batches have one row.  `law` is
    how service times are distributed: "deterministic", "normal" (held above a fifth of the mean), "lognormal" (both
    with the coefficients of variation `cv` f64[groups]) or "exponential".  `largest` i64[groups] bounds the rows of a
    batch.  `lanes` i64[groups] says which lane (0..63) a group serves, and `shares` f64[lanes] which quota each lane
    gets.  A server holds at most `credits` batches (1..8).  Of servers that hold equally few, any takes the next batch
    or, with `in_turn`, the next in turn.  Rows may wait `delay_s` for their batch to fill.  With `together`, rows that
    arrive at the same instant have all arrived before a batch is made of any.  ValueError for what makes no sense.
    """
    cdef _Run run = _Run.__new__(_Run)
    cdef Outcome made
    table = _table("service_s", service_s, 0)
    groups, columns = table.shape
    joules = np.zeros_like(table) if energy_j is None else _table("energy_j", energy_j, groups, columns)
    number = _column("counts", counts, groups, np.int64)
    most = np.full(groups, columns, np.int32) if largest is None else _column("largest", largest, groups, np.int32)
    lane_of = np.zeros(groups, np.int32) if lanes is None else _column("lanes", lanes, groups, np.int32)
    if not (np.isfinite(table).all() and (table > 0.0).all() and np.isfinite(joules).all()):
        raise ValueError("service_s must be positive and finite, energy_j finite")
    if (number < 0).any() or not 1 <= number.sum() <= MAX_SERVERS:
        raise ValueError(f"counts must not be negative, and sum to 1..{MAX_SERVERS}")
    if not ((most >= 1) & (most <= columns)).all():
        raise ValueError("largest must lie in 1..the columns of service_s")
    if not ((lane_of >= 0) & (lane_of < MAX_LANES)).all():
        raise ValueError(f"lanes must lie in 0..{MAX_LANES - 1}")
    if law not in _LAWS:
        raise ValueError(f"law must be one of {', '.join(_LAWS)}, not {law!r}")
    if (cv is None) == (law in ("normal", "lognormal")):
        raise ValueError("cv goes with the laws normal and lognormal, and with no other")
    spread = np.zeros(groups) if cv is None else _column("cv", cv, groups, np.float64)
    if not (np.isfinite(spread).all() and (spread >= 0.0).all()):
        raise ValueError("cv must be finite and not negative")
    if law == "lognormal":
        spread = np.array([math.sqrt(math.log1p(own * own)) for own in spread.tolist()])
    if not 1 <= credits <= MAX_CREDITS:
        raise ValueError(f"credits must lie in 1..{MAX_CREDITS}")
    if not 0.0 <= delay_s < math.inf:
        raise ValueError("delay_s must be finite and not negative")
    if arrivals._kind == TRACE:
        rows = rows or arrivals._times_s.shape[0]
        if rows > arrivals._times_s.shape[0]:
            raise ValueError(f"the trace has only {arrivals._times_s.shape[0]} rows")
    if not 0 <= warm_up < rows <= INT32_MAX:
        raise ValueError(f"rows must exceed warm_up, and be at most {INT32_MAX}")
    width = int(lane_of.max()) + 1
    quotas = [1.0] * width if shares is None else [float(share) for share in shares]
    if len(quotas) != width:
        raise ValueError(f"shares needs one number for each of {width} lanes")
    run._quota = Quota(width)
    run._quota.set_shares(quotas)
    served = np.bincount(lane_of, weights=number, minlength=width)
    if not any(quotas):  # then the first lane gets all
        quotas[0] = 1.0
    if any(share > 0.0 and not there for share, there in zip(quotas, served.tolist())):
        raise ValueError("a lane that gets rows needs a server")

    order = np.argsort(lane_of, kind="stable")
    owners = np.repeat(order, number[order]).astype(np.int32)
    ends = np.concatenate([[0], np.cumsum(served)]).astype(np.int32)
    words = np.concatenate([[0], np.cumsum((served.astype(np.int64) + 63) // 64)]).astype(np.int32)
    latency_s, wait_s, group = np.empty(rows), np.empty(rows), np.empty(rows, np.int32)
    run._arrivals = arrivals
    run._mask = (<uint64_t>0xFFFFFFFFFFFFFFFF) >> (MAX_LANES - <int>width)
    run._lanes = width
    run._credits = credits
    run._law = _LAWS[law]
    run._any = not in_turn
    run._together = together
    run._delay_s = delay_s
    run._count = rows
    run._warm_up = warm_up
    clover_random_seed(&run._arriving, seed, 0)
    clover_random_seed(&run._serving, seed, 1)
    clover_random_seed(&run._choosing, seed, 2)
    run._service_s, run._batch_j, run._spread = table, joules, spread
    run._largest, run._lane_of_group, run._able = most, lane_of, np.zeros(groups, np.int32)
    rows_of, batches = np.zeros(groups, np.int64), np.zeros(groups, np.int64)
    busy_s, spent_j = np.zeros(groups), np.zeros(groups)
    run._rows, run._batches, run._busy_s, run._energy_j = rows_of, batches, busy_s, spent_j
    run._group_of = owners
    run._out, run._position = np.zeros(len(owners), np.int32), np.zeros(len(owners), np.int32)
    run._staged_row = np.zeros((len(owners), credits), np.int32)
    run._staged_rows = np.zeros((len(owners), credits), np.int32)
    run._staged_first = np.zeros(len(owners), np.int32)
    run._first_server, run._first_word = ends, words
    run._head, run._tail = np.zeros(width, np.int32), np.zeros(width, np.int32)
    run._depth, run._free, run._cursor = np.zeros(width, np.int32), np.zeros(width, np.int32), np.zeros(width, np.int32)
    run._holding = np.zeros((credits, width), np.int32)
    run._pool = np.zeros((credits, len(owners)), np.int32)
    run._set = np.zeros((credits, words.max()), np.uint64)
    run._ends_s, run._ending = np.zeros(len(owners)), np.zeros(len(owners), np.int32)
    run._latency_s, run._wait_s, run._next = latency_s, wait_s, group
    with nogil:
        run._play()
    made = Outcome.__new__(Outcome)
    made.latency_s, made.wait_s, made.group = latency_s[warm_up:], wait_s[warm_up:], group[warm_up:]
    made.rows, made.batches, made.busy_s, made.energy_j = rows_of, batches, busy_s, spent_j
    made.span_s = run._last_s - run._first_s
    return made
