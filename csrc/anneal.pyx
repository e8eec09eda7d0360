"""Simulated annealing over configuration graphs: how many workers of which variant on which slices, on N equal GPUs.

**The graph.**  A group is a variant on a kind of slice; a configuration is the number of workers in each group.  Which
GPU holds which slice does not matter to the queue, so it is not part of the state: all that is asked is that the
numbers of slices *tile*, that is, are the sum of N of the `partitions` one GPU may have.

**Tiling.**  Where the partitions are the fourteen of an A100 (slices 1g, 2g, 3g, 4g, 7g), a handful of comparisons
tells.  Take away the m7 GPUs with a 7g; N' are left.  The right of each is a 3g or three places for small slices; the
left of m4 of them is a 4g, and of the other L a 3g or four places.  Only the number t of 3g on the left is open, and it
follows from the count of places, all of which are taken: t = 4 L + 3 N' - 3 m3 - (m1 + 2 m2).  What remains to be asked
is that t is possible and that the 2g slices find room: two on a left without 3g, one on a right.  For any other set of
partitions the search carries along how many GPUs have which partition, and only moves between partitions, so that it
never leaves what tiles; `decompose` finds such numbers for a given configuration.

**Moves.**  Another variant on some slices of one kind; or some GPUs from one partition to another, where the slices
that vanish are taken from random variants and those that appear go to one variant a kind.  Half of the moves are two or
three of these at once.  How many slices or GPUs a move takes is uniform up to a random power of two, the largest of
which shrinks from a share of N to its fourth root as the search cools: large problems take large steps first.  What a
move and its evaluation cost depends on the number of groups in use, not on N, but for the sum of `erlang_c`, which has
some sqrt(N) terms that count.

**Objective.**  f = lambda (1 - E ci / (E_base ci_base)) - (1 - lambda) (A_base - A) / A_base, less `switching` for each
worker that `running` does not have.  E and A are means over requests, so f is a weighted sum of the traffic shares, by
the queueing model of `queueing`.  What misses the latency target or the accuracy floor loses in proportion to the
logarithm of the tail, so that the search may cross what it may not end in; the best configuration that misses neither
is the answer.

**Cooling.**  The temperature falls geometrically, from what one slice of N GPUs may be worth to well below it.  How far
below matters: where N is 10, all that comes after a thousandth of the spread of f is time that another cooling lacks.

**Clock.**  Other kernels are told the time.  This one is to end within a time, so it reads the clock, every 64 moves,
where `time_limit_s` is given.  With a number of evaluations instead it does not, and a seed decides everything.
Whoever waits for the answer means time on the wall; whoever measures the kernel on a busy machine means CPU time.
"""

from typing import NamedTuple

import cython
import numpy as np

from clover._native.queueing cimport Moment, erlang_c, late, mean_field, moment, product_form
from clover._native.random cimport clover_random, clover_random_below, clover_random_seed, clover_random_uniform
from libc.math cimport exp, isfinite, log, sqrt
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID, clock_gettime, clockid_t, timespec

cdef enum:
    MAX_SLICES = 16
    LOOK = 64  # moves between two looks at the budget
    MANY = 64  # GPUs; a move may take nearly all of so many, a quarter of fewer
    PATIENCE = 64  # moves for each evaluation paid for, where most do not tile
    NODES = 20_000_000  # steps of a search for a decomposition

cdef double TOLERANCE = 1e-9  # of the tail, as problems state it
cdef double HOT = 0.01  # the least temperature to begin at, in units of the spread of f
cdef double HOT_ALONE = 0.6  # of one GPU; of N it is an Nth, as one slice weighs less, but HOT at least
cdef double COLD_ALONE = 0.03  # to end at, of one GPU; falls faster than an Nth: among many slices some differ little
cdef double PENALTY = 0.3  # for a tail e times too heavy, in the same units
cdef double OVERLOAD = -1e6

A100 = frozenset({
    (0, 0, 0, 0, 1), (0, 0, 1, 1, 0), (0, 0, 2, 0, 0), (0, 2, 1, 0, 0), (1, 1, 0, 1, 0), (1, 1, 1, 0, 0),
    (1, 3, 0, 0, 0), (2, 1, 1, 0, 0), (3, 0, 0, 1, 0), (3, 0, 1, 0, 0), (3, 2, 0, 0, 0), (4, 0, 1, 0, 0),
    (5, 1, 0, 0, 0), (7, 0, 0, 0, 0),
})  # fmt: skip


class Solution(NamedTuple):
    """The best configuration found.

    `counts` has a number of workers for each group, `f` its objective; where nothing `feasible` was found, it is what
    came closest, and f says nothing.  `evaluations` counts those with a tail, `proposals` every move that was drawn,
    `accepted` those that were made; `trace` has a row (evaluations, f) for each time the best one got better.
    """

    counts: object
    f: float
    feasible: bool
    evaluations: int
    proposals: int
    accepted: int
    trace: object


# --- tiling -----------------------------------------------------------------------------------------------------------

cdef bint _tiles_a100(const int64_t *m, int64_t gpus) noexcept nogil:
    """Whether m[0..4] slices of 1g, 2g, 3g, 4g, 7g are what `gpus` fully partitioned A100s may have."""
    cdef int64_t halved = gpus - m[4]
    cdef int64_t open = halved - m[3]
    cdef int64_t wide
    if m[0] < 0 or m[1] < 0 or m[2] < 0 or m[3] < 0 or m[4] < 0 or open < 0:
        return False
    wide = 4 * open + 3 * halved - 3 * m[2] - m[0] - 2 * m[1]
    if wide < 0 or wide < m[2] - halved or wide > open or wide > m[2]:
        return False
    return m[1] <= 2 * (open - wide) + halved - (m[2] - wide)


@cython.final
cdef class _Table:
    """The partitions one GPU may have, rows from large slices to small."""

    cdef Py_ssize_t rows, slices
    cdef int64_t[:, ::1] row
    cdef int64_t[:, ::1] least  # of each slice among this row and those after it
    cdef int64_t[:, ::1] most
    cdef object order  # the caller's index of each row
    cdef bint a100
    cdef int64_t nodes

    def __init__(self, partitions):
        cdef Py_ssize_t i, s
        table = np.ascontiguousarray(partitions)
        if table.dtype.kind not in "iu" or table.ndim != 2 or not table.size or (table < 0).any():
            raise ValueError("partitions must be a table of whole numbers >= 0, one row a partition")
        if not 1 <= table.shape[1] <= MAX_SLICES:
            raise ValueError(f"partitions must have 1 to {MAX_SLICES} columns")
        self.rows, self.slices = table.shape
        self.order = np.array(sorted(range(len(table)), key=lambda i: tuple(-int(n) for n in table[i][::-1])))
        self.row = np.ascontiguousarray(table[self.order], dtype=np.int64)
        self.a100 = table.shape[1] == 5 and {tuple(int(n) for n in line) for line in table} == A100
        self.least = np.array(self.row)
        self.most = np.array(self.row)
        for i in range(self.rows - 2, -1, -1):
            for s in range(self.slices):
                self.least[i, s] = min(self.row[i, s], self.least[i + 1, s])
                self.most[i, s] = max(self.row[i, s], self.most[i + 1, s])

    def needed(self, slices):
        """The wanted numbers of slices as an array."""
        wanted = np.ascontiguousarray(slices)
        if wanted.shape != (self.slices,) or wanted.dtype.kind not in "iu":
            raise ValueError(f"slices must be {self.slices} whole numbers")
        return np.array(wanted, dtype=np.int64)

    def split(self, slices, n_gpus):
        """How many GPUs have each partition, in the caller's order, or None."""
        cdef int64_t[::1] left = self.needed(slices)
        cdef int64_t[::1] used = np.zeros(self.rows, np.int64)
        cdef int64_t gpus = n_gpus
        cdef Py_ssize_t i
        if gpus < 0 or min(left) < 0:
            return None
        if self.a100:
            if not _tiles_a100(&left[0], gpus):
                return None
            for i in range(self.rows):  # whatever is taken, the rest still tiles
                while gpus and self._take(i, &left[0], 1) and _tiles_a100(&left[0], gpus - 1):
                    used[i] += 1
                    gpus -= 1
                if gpus:
                    self._take(i, &left[0], -1)
        else:
            self.nodes = 0
            if not self._fill(0, gpus, &left[0], &used[0]):
                if self.nodes > NODES:
                    raise ValueError("these partitions are too many to say whether the slices tile")
                return None
        given = np.zeros(self.rows, np.int64)
        given[self.order] = used
        return given

    cdef bint _take(self, Py_ssize_t i, int64_t *left, int64_t gpus) noexcept nogil:
        cdef Py_ssize_t s
        for s in range(self.slices):
            left[s] -= gpus * self.row[i, s]
        return True

    cdef bint _fill(self, Py_ssize_t i, int64_t gpus, int64_t *left, int64_t *used) noexcept nogil:
        """Whether `gpus` of partition i and those after it make up what is left; depth first, largest numbers first."""
        cdef int64_t top = gpus
        cdef Py_ssize_t s
        self.nodes += 1
        if self.nodes > NODES:
            return False
        for s in range(self.slices):
            if not gpus * self.least[i, s] <= left[s] <= gpus * self.most[i, s]:
                return False
            if self.row[i, s] and left[s] // self.row[i, s] < top:
                top = left[s] // self.row[i, s]
        if i == self.rows - 1:  # least and most are this row
            used[i] = gpus
            return True
        self._take(i, left, top)
        while top >= 0:
            used[i] = top
            if self._fill(i + 1, gpus - top, left, used):
                return True
            self._take(i, left, -1)
            top -= 1
        self._take(i, left, 1)
        used[i] = 0
        return False


def feasible(partitions, slices, n_gpus):
    """Whether `n_gpus` GPUs, each cut into one of `partitions` (rows: numbers of slices), have just these slices."""
    cdef _Table table = _Table(partitions)
    cdef int64_t[::1] wanted
    if table.a100:
        wanted = table.needed(slices)
        return _tiles_a100(&wanted[0], n_gpus)
    return table.split(slices, n_gpus) is not None


def decompose(partitions, slices, n_gpus):
    """How many of `n_gpus` GPUs have each of `partitions` where they have just these slices together; None: never."""
    cdef _Table table = _Table(partitions)
    return table.split(slices, n_gpus)


# --- the problem ------------------------------------------------------------------------------------------------------

cdef struct Model:  # a Problem for the search; the arrays are the Problem's
    int groups
    int slices
    int parts
    int deltas
    int64_t gpus
    bint a100
    bint product
    bint switches
    double rate
    double miss  # the share of requests that may be late
    double fixed  # f = fixed + sum of share x worth
    double spread  # between the groups' worths
    double accuracy_floor
    double utilisation_limit
    const double *service_s
    const double *rate_of
    const double *cv2
    const double *worth
    const double *accuracy
    const double *running
    const double *switching
    const Moment *moments
    const int *slice_of
    const int *member  # the groups that fit, by slice: member[first[s]] up to member[first[s + 1] - 1]
    const int *first
    const int *place  # of a group among those of its slice
    const int64_t *part  # the partitions that have a group that fits for each of their slices
    const int64_t *delta  # differences between two of them, each once


cdef class Problem:
    """What is to be optimised; times in seconds, energies in joules, intensities in any one unit.

    Arrays are by group: `fits` says whether the variant may run on that slice, `slice_of` which column of `partitions`
    its slice is.  `running` (a configuration) and `switching` (what f loses for each worker of the group beyond those
    that run) come together.  `accuracy_floor` and `utilisation_limit` (the load over what the workers serve at most)
    are constraints like the latency target.
    """

    cdef readonly Py_ssize_t n_gpus
    cdef Model model
    cdef _Table table
    cdef Py_ssize_t groups, slices
    cdef double[::1] service_s, rate_of, cv2, worth, accuracy, running, switching
    cdef Moment[::1] moments
    cdef int[::1] slice_of, place, member, first
    cdef int64_t[:, ::1] part, delta
    cdef object fits, ordinal

    def __init__(
        self, n_gpus, rate, service_s, cv, energy_j, accuracy, fits, slice_of, partitions, model, sla_s, quantile, lam,
        intensity, reference_intensity, idle_w, base_energy_j, base_accuracy, *, running=None, switching=None,
        accuracy_floor=0.0, utilisation_limit=1.0,
    ):
        cdef Py_ssize_t i, s
        self.table = _Table(partitions)
        self.slices = self.table.slices
        self.service_s = _column("service_s", service_s, None)
        self.groups = self.service_s.shape[0]
        variation = _column("cv", cv, self.groups)
        joules = _column("energy_j", energy_j, self.groups)
        self.accuracy = _column("accuracy", accuracy, self.groups)
        self.fits = np.array(_column("fits", fits, self.groups) != 0.0)
        where = np.ascontiguousarray(slice_of)
        if where.shape != (self.groups,) or where.dtype.kind not in "iu":
            raise ValueError("slice_of must be one column of partitions a group")
        if self.groups == 0 or where.min() < 0 or where.max() >= self.slices:
            raise ValueError(f"slice_of must be in 0..{self.slices - 1}, for one group at least")
        if not np.asarray(self.service_s).min() > 0.0 or variation.min() < 0.0:
            raise ValueError("service_s must be positive, and cv not negative")
        if model not in ("pf", "mf"):
            raise ValueError(f"model must be 'pf' or 'mf', not {model!r}")
        if not 1 <= n_gpus <= 1_000_000:
            raise ValueError(f"n_gpus must be in 1..1000000, not {n_gpus}")
        for name, value in (
            ("rate", rate), ("sla_s", sla_s), ("base_energy_j", base_energy_j), ("base_accuracy", base_accuracy),
            ("reference_intensity", reference_intensity),
        ):
            if not (value > 0.0 and isfinite(value)):
                raise ValueError(f"{name} must be positive and finite, not {value}")
        if not 0.0 < quantile < 1.0 or not 0.0 <= lam <= 1.0 or not 0.0 < utilisation_limit <= 1.0:
            raise ValueError("quantile, lam and utilisation_limit must be between 0 and 1")
        if not (intensity >= 0.0 and isfinite(intensity) and idle_w >= 0.0 and isfinite(idle_w)):
            raise ValueError("intensity and idle_w must be finite and not negative")
        self.n_gpus = n_gpus
        self.slice_of = where.astype(np.intc)
        self.rate_of = 1.0 / np.asarray(self.service_s)
        self.cv2 = variation * variation
        self.moments = np.empty(self.groups, MOMENT)
        for i in range(self.groups):
            self.moments[i] = moment(sla_s, self.service_s[i], variation[i])
        carbon = lam * intensity / (base_energy_j * reference_intensity)
        self.worth = (1.0 - lam) / base_accuracy * np.asarray(self.accuracy) - carbon * joules
        if (running is None) != (switching is None):
            raise ValueError("running and switching are given together")
        self.running = _column("running", np.zeros(self.groups) if running is None else running, self.groups)
        self.switching = _column("switching", np.zeros(self.groups) if running is None else switching, self.groups)

        members = [[i for i in range(self.groups) if where[i] == s and self.fits[i]] for s in range(self.slices)]
        self.member = np.array([i for row in members for i in row] or [0], np.intc)
        self.first = np.cumsum([0, *(len(row) for row in members)]).astype(np.intc)
        self.place = np.zeros(self.groups, np.intc)
        for row in members:
            for i, j in enumerate(row):
                self.place[j] = i
        self.ordinal = [int((where[:i] == where[i]).sum()) for i in range(self.groups)]
        rows = np.asarray(self.table.row)
        usable = [line for line in rows if all(members[s] for s in range(self.slices) if line[s])]
        if not usable:
            raise ValueError("no partition has a variant that fits for each of its slices")
        self.part = np.array(usable)
        deltas = sorted({tuple(int(n) for n in b - a) for a in usable for b in usable if (a != b).any()})
        self.delta = np.array(deltas or [[0] * self.slices], np.int64)
        self.model = Model(
            groups=self.groups,
            slices=self.slices,
            parts=len(usable),
            deltas=len(deltas),
            gpus=n_gpus,
            a100=self.table.a100,
            product=model == "pf",
            switches=running is not None,
            rate=rate,
            miss=1.0 - quantile,
            fixed=lam - carbon * idle_w * n_gpus / rate - (1.0 - lam),
            spread=max(float(np.ptp(np.asarray(self.worth)[self.fits])), 1e-6),
            accuracy_floor=accuracy_floor,
            utilisation_limit=utilisation_limit,
            service_s=&self.service_s[0],
            rate_of=&self.rate_of[0],
            cv2=&self.cv2[0],
            worth=&self.worth[0],
            accuracy=&self.accuracy[0],
            running=&self.running[0],
            switching=&self.switching[0],
            moments=&self.moments[0],
            slice_of=&self.slice_of[0],
            member=&self.member[0],
            first=&self.first[0],
            place=&self.place[0],
            part=&self.part[0, 0],
            delta=&self.delta[0, 0],
        )

    @property
    def closed_form(self):
        """Whether the tiling test of the A100 serves."""
        return self.table.a100

    cdef object _counts(self, counts):
        given = np.ascontiguousarray(counts)
        if given.shape != (self.groups,) or given.dtype.kind not in "iu" or (given < 0).any():
            raise ValueError("counts must be one whole number >= 0 a group")
        if given[~self.fits].any():
            raise ValueError("counts have a variant where it does not fit")
        return given.astype(np.int64)

    cdef object _slices(self, counts):
        slices = np.zeros(self.slices, np.int64)
        np.add.at(slices, np.asarray(self.slice_of), counts)
        return slices

    def tiles(self, counts):
        """Whether the slices of `counts` are those of `n_gpus` fully partitioned GPUs."""
        cdef int64_t[::1] slices = self._slices(self._counts(counts))
        if self.table.a100:
            return _tiles_a100(&slices[0], self.n_gpus)
        return self.table.split(np.asarray(slices), self.n_gpus) is not None

    def score(self, counts):
        """(feasible, f) of a configuration; f is NaN where its workers cannot keep up."""
        cdef _Search search = _Search(self, 0)
        given = self._counts(counts)
        if not given.any():
            return False, float("nan")
        search.load(given)
        search.copy()
        cdef double value = search._score()
        if value <= OVERLOAD / 2.0:
            return False, float("nan")
        return search.good and self.tiles(given), search.value


cdef object MOMENT = np.dtype([(name, np.float64) for name in ("ahead_s", "spread_s", "z", "longer", "gauss")])


def _column(name, values, size):
    column = np.array(values, dtype=np.float64)
    if column.ndim != 1 or (size is not None and column.shape[0] != size) or not np.isfinite(column).all():
        raise ValueError(f"{name} must be one finite number a group")
    return column


# --- the search -------------------------------------------------------------------------------------------------------

@cython.final
cdef class _Search:
    """The state of one call of `solve`."""

    cdef Problem problem
    cdef const Model *p
    cdef object owned
    cdef double *count  # the configuration the search stands at
    cdef double *trial  # the one it looks at
    cdef double *share
    cdef int *active  # the groups in use, in order
    cdef int *tried
    cdef int64_t *used  # how many GPUs have each partition (where the tiling test has no closed form)
    cdef int64_t *trial_used
    cdef int64_t[MAX_SLICES] slices
    cdef int64_t[MAX_SLICES] trial_slices
    cdef int n_active, n_tried
    cdef double gap_s, trial_gap_s
    cdef clover_random random
    cdef bint stale  # the trial's counts are those of an earlier move
    cdef bint good
    cdef double value  # f of the trial
    cdef int levels
    cdef clockid_t clock
    cdef int64_t evaluations, proposals, accepted
    # the best so far
    cdef double *best
    cdef double best_score, best_value
    cdef bint best_good
    cdef double *trace
    cdef Py_ssize_t traced, room

    def __cinit__(self):
        self.trace = NULL

    def __init__(self, Problem problem, seed):
        cdef Py_ssize_t size = problem.groups
        self.problem = problem
        self.p = &problem.model
        clover_random_seed(&self.random, seed, 0)
        self.owned = [
            np.zeros((4, size)), np.zeros((2, size), np.intc), np.zeros((2, problem.model.parts), np.int64),
        ]
        cdef double[:, ::1] numbers = self.owned[0]
        cdef int[:, ::1] lists = self.owned[1]
        cdef int64_t[:, ::1] parts = self.owned[2]
        self.count, self.trial, self.share, self.best = &numbers[0, 0], &numbers[1, 0], &numbers[2, 0], &numbers[3, 0]
        self.active, self.tried = &lists[0, 0], &lists[1, 0]
        self.used, self.trial_used = &parts[0, 0], &parts[1, 0]
        self.n_active = self.n_tried = 0
        self.gap_s = self.trial_gap_s = 0.0
        self.levels = 1
        self.clock = CLOCK_MONOTONIC
        self.evaluations = self.proposals = self.accepted = 0
        self.best_score = self.best_value = -1e300
        self.best_good = False
        self.traced = 0
        self.room = 256
        self.trace = <double *>malloc(2 * self.room * sizeof(double))
        if self.trace == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.trace)

    cdef int load(self, counts) except -1:
        """Stand at `counts`; without numbers of partitions."""
        cdef Py_ssize_t i
        cdef int64_t[::1] given = counts
        for i in range(self.problem.slices):
            self.slices[i] = 0
        for i in range(self.problem.groups):
            self.count[i] = <double>given[i]
            self.slices[self.p.slice_of[i]] += given[i]
        return 0

    cdef void copy(self) noexcept nogil:
        """Make the trial what the search stands at."""
        self.trial_slices = self.slices
        self._copy_counts()

    cdef inline void _copy_counts(self) noexcept nogil:
        cdef int i
        for i in range(self.p.groups):
            self.trial[i] = self.count[i]
        if not self.p.a100:
            for i in range(self.p.parts):
                self.trial_used[i] = self.used[i]
        self.stale = False

    cdef inline int64_t _below(self, int64_t n) noexcept nogil:
        """A whole number in 0..n-1."""
        return <int64_t>clover_random_below(&self.random, <uint64_t>n)

    cdef inline int64_t _size(self, int more) noexcept nogil:
        """How many slices or GPUs to move: uniform up to a random power of two."""
        return 1 + self._below(<int64_t>1 << self._below(self.levels + more))

    cdef double _score(self) noexcept nogil:
        """The trial's objective, less what it misses; sets `good` and `value`."""
        cdef const Model *p = self.p
        cdef double *trial = self.trial
        cdef double *share = self.share
        cdef int *tried = self.tried
        cdef double servers = 0.0, capacity = 0.0, variation = 0.0, part, drain, p_wait = 0.0, tail, value, right = 0.0
        cdef double more, lost = 0.0
        cdef Py_ssize_t i
        cdef int j, n = 0
        for j in range(p.groups):
            tried[n] = j
            n += trial[j] != 0.0
        self.n_tried = n
        self.good = False
        for i in range(n):
            j = tried[i]
            part = trial[j] * p.rate_of[j]
            servers += trial[j]
            capacity += part
            variation += part * p.cv2[j]
        if not p.rate < capacity * p.utilisation_limit:
            return OVERLOAD * (p.rate / capacity)
        self.evaluations += 1
        drain = 2.0 * (capacity - p.rate) / (1.0 + variation / capacity)
        if p.product:
            self.trial_gap_s = product_form(n, tried, trial, p.service_s, p.rate, self.gap_s, share, &p_wait)
        else:
            self.trial_gap_s = mean_field(n, tried, trial, p.service_s, p.rate, self.gap_s, share)
            p_wait = erlang_c(servers, servers * (p.rate / capacity))
        tail = late(n, tried, trial, p.rate_of, share, p.moments, capacity, p_wait, drain)
        value = p.fixed
        for i in range(n):
            j = tried[i]
            part = share[j]
            if p.product:
                part = (1.0 - p_wait) * part + p_wait * (trial[j] * p.rate_of[j] / capacity)
            value += part * p.worth[j]
            right += part * p.accuracy[j]
        if p.switches:
            for i in range(n):
                j = tried[i]
                more = trial[j] - p.running[j]
                if more > 0.0:
                    value -= more * p.switching[j]
        self.value = value
        self.good = True
        if tail > p.miss + TOLERANCE:
            self.good = False
            lost = log(tail / p.miss)
        if right < p.accuracy_floor:
            self.good = False
            lost += 100.0 * (p.accuracy_floor - right) / p.accuracy_floor
        return value - PENALTY * p.spread * lost

    # --- moves --------------------------------------------------------------------------------------------------------

    cdef bint _change_variant(self) noexcept nogil:
        cdef const Model *p = self.p
        cdef int j = self.active[self._below(self.n_active)]
        cdef int first = p.first[p.slice_of[j]], among = p.first[p.slice_of[j] + 1] - first, other
        cdef double moved
        if among < 2:
            return False
        if self.stale:
            self._copy_counts()
        other = p.member[first + (p.place[j] + 1 + <int>self._below(among - 1)) % among]
        moved = <double>self._size(2)
        if moved > self.trial[j]:
            moved = self.trial[j]
        if moved == 0.0:
            return False
        self.trial[j] -= moved
        self.trial[other] += moved
        return True

    cdef bint _change_partition(self) noexcept nogil:
        cdef const Model *p = self.p
        cdef int64_t[MAX_SLICES] wanted
        cdef int64_t gpus, change
        cdef int a, b, i, s, first, among
        if p.parts < 2:
            return False
        if p.a100:
            a = <int>self._below(p.deltas)
            gpus = self._size(0)
            for s in range(5):
                wanted[s] = self.trial_slices[s] + gpus * p.delta[a * p.slices + s]
            if not _tiles_a100(wanted, p.gpus):
                return False
            if self.stale:
                self._copy_counts()
        else:
            if self.stale:
                self._copy_counts()
            a = <int>self._below(p.parts)
            for i in range(p.parts):
                if self.trial_used[a]:
                    break
                a = (a + 1) % p.parts
            b = (a + 1 + <int>self._below(p.parts - 1)) % p.parts
            gpus = self._size(0)
            if gpus > self.trial_used[a]:
                gpus = self.trial_used[a]
            self.trial_used[a] -= gpus
            self.trial_used[b] += gpus
            for s in range(p.slices):
                wanted[s] = self.trial_slices[s] + gpus * (p.part[b * p.slices + s] - p.part[a * p.slices + s])
        for s in range(p.slices):
            change = wanted[s] - self.trial_slices[s]
            self.trial_slices[s] = wanted[s]
            first = p.first[s]
            among = p.first[s + 1] - first
            while change < 0:
                i = self._in_use(first, among)
                if self.trial[i] < <double>-change:
                    change += <int64_t>self.trial[i]
                    self.trial[i] = 0.0
                else:
                    self.trial[i] += <double>change
                    change = 0
            if change > 0:
                if self._below(2):
                    i = self._in_use(first, among)
                else:
                    i = p.member[first + <int>self._below(among)]
                self.trial[i] += <double>change
        return True

    cdef int _in_use(self, int first, int among) noexcept nogil:
        """A random group of a slice, in use if any is."""
        cdef int at = <int>self._below(among), i
        for i in range(among):
            if self.trial[self.p.member[first + at]] > 0.0:
                break
            at = (at + 1) % among
        return self.p.member[first + at]

    cdef inline bint _move(self) noexcept nogil:
        return self._change_variant() if self._below(4) == 0 else self._change_partition()

    cdef bint _propose(self) noexcept nogil:
        self.trial_slices = self.slices
        self.stale = True  # many moves do not tile: the counts are copied once one does
        if not self._move():
            return False
        if self._below(2):
            self._move()
            if self._below(2):
                self._move()
        return True

    cdef void _accept(self) noexcept nogil:
        cdef double *trial = self.trial
        cdef int *tried = self.tried
        cdef int64_t *trial_used = self.trial_used
        self.trial, self.count = self.count, trial
        self.tried, self.active = self.active, tried
        self.trial_used, self.used = self.used, trial_used
        self.n_active = self.n_tried
        self.gap_s = self.trial_gap_s
        self.slices = self.trial_slices

    cdef bint _remember(self, double score) noexcept nogil:
        """Keep the trial if it is the best so far.  False: no memory for the trace."""
        cdef double *more
        if self.best_good and not (self.good and self.value > self.best_value):
            return True
        if not self.good and score <= self.best_score:
            return True
        memcpy(self.best, self.trial, self.p.groups * sizeof(double))
        self.best_score = score
        self.best_value = self.value
        if self.good:
            self.best_good = True
            if self.traced == self.room:
                more = <double *>realloc(self.trace, 4 * self.room * sizeof(double))
                if more == NULL:
                    return False
                self.trace = more
                self.room *= 2
            self.trace[2 * self.traced] = <double>self.evaluations
            self.trace[2 * self.traced + 1] = self.value
            self.traced += 1
        return True

    cdef bint _run(self, double score, double begin_s, double end_s, int64_t first, int64_t last) noexcept nogil:
        """Cool once from where the search stands: between two times (if end_s) or numbers of evaluations (if last)."""
        cdef double hot = max(HOT, HOT_ALONE / <double>self.p.gpus)
        cdef double cold = COLD_ALONE / (<double>self.p.gpus * sqrt(<double>self.p.gpus))
        cdef double progress = 0.0, other, heat = hot * self.p.spread, falling = log(cold / hot), now, gain
        cdef int64_t moves = 0
        cdef int look = 0, most = self.levels
        while True:
            if look == 0:
                look = LOOK
                progress = 0.0
                if end_s > 0.0:
                    progress = (_now_s(self.clock) - begin_s) / (end_s - begin_s)
                if last > 0:
                    other = <double>(self.evaluations - first) / <double>(last - first)
                    now = <double>moves / (<double>PATIENCE * <double>(last - first))
                    progress = max(progress, max(other, now))
                if progress >= 1.0:
                    break
                heat = hot * self.p.spread * exp(falling * progress)
                self.levels = 1 + <int>(<double>(most - 1) * (1.0 - 0.75 * progress) + 0.5)
            look -= 1
            moves += 1
            if not self._propose():
                continue
            now = self._score()
            gain = now - score
            # The best of all may be worse than where the search stands, as that need not be feasible.
            if (gain >= 0.0 or self.good and self.value > self.best_value) and not self._remember(now):
                return False
            if gain >= 0.0 or (gain > -40.0 * heat and exp(gain / heat) > clover_random_uniform(&self.random)):
                self._accept()
                self.accepted += 1
                score = now
        self.proposals += moves
        self.levels = most
        return True


cdef inline double _now_s(clockid_t clock) noexcept nogil:
    cdef timespec at
    clock_gettime(clock, &at)
    return <double>at.tv_sec + 1e-9 * <double>at.tv_nsec


def _homogeneous(Problem problem):
    """Configurations with all GPUs alike and one variant, or on each slice the fastest: (counts, partition)."""
    found = []
    speed = np.asarray(problem.rate_of).tolist()
    member, first = np.asarray(problem.member).tolist(), np.asarray(problem.first).tolist()
    members = [member[first[s]:first[s + 1]] for s in range(problem.slices)]
    fastest = [max(row, key=speed.__getitem__, default=None) for row in members]
    ranked = [{problem.ordinal[j]: j for j in row} for row in members]
    for i, line in enumerate(np.asarray(problem.part)):
        kinds = [s for s in range(problem.slices) if line[s]]
        choices = [[fastest[s] for s in kinds]]
        for rank in range(max(problem.ordinal) + 1):
            chosen = [ranked[s][rank] for s in kinds if rank in ranked[s]]
            if len(chosen) == len(kinds) and chosen not in choices:
                choices.append(chosen)
        for chosen in choices:
            counts = np.zeros(problem.groups, np.int64)
            counts[chosen] = line[kinds] * problem.n_gpus
            found.append((counts, i))
    return found


def solve(Problem problem, seed, time_limit_s, evaluations=0, start=None, restarts=1, *, cpu_time=False):
    """The best configuration within `time_limit_s` seconds and `evaluations` (0: no such limit, but not both).

    Starts at the best configuration with all GPUs alike, or at `start` (which must tile) if that is better, and shares
    the budget among `restarts` coolings.  Without a time limit the answer depends on the seed alone.  `cpu_time` makes
    the limit one of this thread's CPU time.
    """
    cdef clockid_t clock = CLOCK_THREAD_CPUTIME_ID if cpu_time else CLOCK_MONOTONIC
    cdef double begin_s = _now_s(clock), limit_s = time_limit_s, score, top
    cdef int64_t limit = evaluations
    cdef int turns = restarts, turn
    cdef bint kept = True
    if not (limit_s >= 0.0 and isfinite(limit_s)) or limit < 0 or turns < 1:
        raise ValueError("time_limit_s and evaluations must not be negative, and restarts must be 1 or more")
    if limit_s == 0.0 and limit == 0:
        raise ValueError("a limit is needed: time_limit_s, evaluations or both")
    cdef _Search search = _Search(problem, seed)
    cdef Py_ssize_t i
    search.clock = clock
    candidates = _homogeneous(problem)
    if start is not None:
        given = problem._counts(start)
        if not problem.tiles(given):
            raise ValueError("the slices of start do not tile")
        candidates.append((given, -1))
    top = -1e300
    origin = candidates[0]
    for counts, index in candidates:
        search.load(counts)
        search.copy()
        score = search._score()
        if not search._remember(score):
            raise MemoryError
        if score > top:
            top = score
            origin = counts, index
    cdef int64_t[::1] used = _used(problem, *origin)
    while (<int64_t>4 << search.levels) <= problem.n_gpus:
        search.levels += 1
    if problem.n_gpus >= MANY:
        search.levels += 2
    cdef int64_t scanned = search.evaluations
    for turn in range(turns):
        search.load(origin[0])
        for i in range(problem.model.parts):
            search.used[i] = used[i]
        search.copy()
        score = search._score()
        search._accept()
        with nogil:
            kept = search._run(
                score,
                begin_s + limit_s * turn / turns if turn else begin_s,
                begin_s + limit_s * (turn + 1) / turns if limit_s > 0.0 else 0.0,
                scanned + (limit - scanned) * turn // turns if limit > scanned else 0,
                scanned + (limit - scanned) * (turn + 1) // turns if limit > scanned else (1 if limit else 0),
            )
        if not kept:
            raise MemoryError
    best = np.array([search.best[i] for i in range(problem.groups)]).astype(np.int64)
    trace = np.array([search.trace[i] for i in range(2 * search.traced)]).reshape(-1, 2)
    return Solution(
        best,
        search.best_value if search.best_good else float("nan"),
        bool(search.best_good),
        search.evaluations,
        search.proposals,
        search.accepted,
        trace,
    )


def _used(Problem problem, counts, index):
    """How many GPUs have each usable partition."""
    used = np.zeros(problem.model.parts, np.int64)
    if index >= 0:
        used[index] = problem.n_gpus
    elif not problem.table.a100:
        used[:] = _Table(np.asarray(problem.part)).split(problem._slices(counts), problem.n_gpus)
    return used
