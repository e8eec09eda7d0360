"""Simulated annealing over configuration graphs: how many workers of which variant on which slices, on N equal GPUs.

**The graph.**  A group is a variant on a kind of slice; a configuration is the number of workers in each group.  Which
GPU holds which slice does not matter to the queue, so it is not part of the state.  A configuration is allowed if its
numbers of slices *tile*: if they are the sum of N of the `partitions` that one GPU may have.

**Tiling.**  If the partitions are the fourteen of an A100 (slices 1g, 2g, 3g, 4g, 7g), a few comparisons decide it.
Take away the m7 GPUs with a 7g; N' are left.  The right of each is a 3g or three places for small slices; the left of
m4 of them is a 4g, and of the other L a 3g or four places.  Only the number t of 3g on the left is open, and it follows
from the count of places, all of which are taken: t = 4 L + 3 N' - 3 m3 - (m1 + 2 m2).  It remains to check that t is
possible and that the 2g slices find room: two on a left without 3g, one on a right.  For any other set of partitions
the search also keeps how many GPUs have which partition, and only moves between partitions, so that all its
configurations tile; `decompose` finds such numbers for a given configuration.

**Moves and cooling** are those of `annealing.pxd`.  What a move and its evaluation cost depends on the number of groups
in use, not on N, except for the sum of `erlang_c`, which has some sqrt(N) terms that count.  The search ends well below
the temperature that one slice of N GPUs is worth, but not further: if N is 10, all time spent below a thousandth of the
spread of f is time that another cooling lacks.

**Objective.**  f = lambda (1 - E ci / (E_base ci_base)) - (1 - lambda) (A_base - A) / A_base, less `switching` for each
worker that `running` does not have.  E and A are means over requests, so f is a weighted sum of the traffic shares, by
the queueing model of `queueing`.  A configuration that misses the latency target loses in proportion to the logarithm
of the tail, one below the accuracy floor in proportion to what it lacks, so that the search may pass through such
configurations.  The answer is the best configuration that misses neither.

**Clock.**  With `time_limit_s`, this kernel reads a clock every 64 moves: the wall's, or with `cpu_time` this thread's,
for measurements on a busy machine.  With a number of evaluations only, no clock is read: the seed decides everything.
"""

from typing import NamedTuple

import cython
import numpy as np

from clover._native.arguments import AnnealArguments, partition_table

from clover._native.queueing cimport Line, Moment, erlang_c, late, mean_field, moment, product_form
from csrc.annealing cimport (
    LOOK, Cooling, Graph, Walk, accepts, begin_cooling, change_slices, change_variant, cool, copy_trial, doubles, draw,
    draw_partition, end_cooling, first_levels, first_temperature, list_tried, longs, make_graph, make_walk, progress,
    stand_at, step_size, swap_trial,
)
from libc.math cimport isfinite, log, sqrt
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID, clock_gettime, clockid_t, timespec

cdef enum:
    MAX_SLICES = 16
    MANY = 64  # GPUs; a move may take nearly all of so many, a quarter of fewer
    NODES = 20_000_000  # steps of a search for a decomposition

cdef double TOLERANCE = 1e-9  # of the tail, as problems state it
# The temperature to end at, in units of the spread of f, with one GPU.  It falls faster than an Nth: among many slices
# some differ little.
cdef double COLD_ALONE = 0.03
cdef double PENALTY = 0.3  # for a tail e times too heavy, in the same units
cdef double OVERLOAD = -1e6

A100 = frozenset({
    (0, 0, 0, 0, 1), (0, 0, 1, 1, 0), (0, 0, 2, 0, 0), (0, 2, 1, 0, 0), (1, 1, 0, 1, 0), (1, 1, 1, 0, 0),
    (1, 3, 0, 0, 0), (2, 1, 1, 0, 0), (3, 0, 0, 1, 0), (3, 0, 1, 0, 0), (3, 2, 0, 0, 0), (4, 0, 1, 0, 0),
    (5, 1, 0, 0, 0), (7, 0, 0, 0, 0),
})  # fmt: skip


class Solution(NamedTuple):
    """The best configuration found, or the nearest to feasible if none is."""

    counts: object  # workers in each group
    f: float  # NaN if not feasible
    feasible: bool
    evaluations: int  # of the queueing model
    proposals: int
    accepted: int
    trace: object  # [improvement, 2]: evaluations so far, and f of the best


# --- tiling -----------------------------------------------------------------------------------------------------------

cdef bint _tiles_a100(const int64_t *m, int64_t gpus) noexcept nogil:
    """Return whether `gpus` fully partitioned A100s may have m[0..4] slices of 1g, 2g, 3g, 4g, 7g."""
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
        table = partition_table(partitions)
        if table.shape[1] > MAX_SLICES:
            raise ValueError(f"partitions must have 1 to {MAX_SLICES} columns")
        self.rows, self.slices = table.shape
        self.order = np.array(sorted(range(len(table)), key=lambda i: tuple(-int(n) for n in table[i][::-1])))
        self.row = np.ascontiguousarray(table[self.order])
        self.a100 = table.shape[1] == 5 and {tuple(int(n) for n in line) for line in table} == A100
        self.least = np.array(self.row)
        self.most = np.array(self.row)
        for i in range(self.rows - 2, -1, -1):
            for s in range(self.slices):
                self.least[i, s] = min(self.row[i, s], self.least[i + 1, s])
                self.most[i, s] = max(self.row[i, s], self.most[i + 1, s])

    def needed(self, slices):
        """Return the numbers of slices as an array [slices]."""
        wanted = np.ascontiguousarray(slices)
        if wanted.shape != (self.slices,) or wanted.dtype.kind not in "iu":
            raise ValueError(f"slices must be {self.slices} whole numbers")
        return np.array(wanted, dtype=np.int64)

    def split(self, slices, n_gpus):
        """Return how many GPUs have each partition, in the caller's order; None if the slices do not tile."""
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
        """Take the slices of `gpus` GPUs of partition i from what is left.  Return True."""
        cdef Py_ssize_t s
        for s in range(self.slices):
            left[s] -= gpus * self.row[i, s]
        return True

    cdef bint _fill(self, Py_ssize_t i, int64_t gpus, int64_t *left, int64_t *used) noexcept nogil:
        """Return whether `gpus` GPUs of partition i and those after it make up what is left, and how many of each.

        Searches depth first, large numbers first.
        """
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
    """Return whether `n_gpus` GPUs, each cut into one of `partitions` [partition, slice], may have these slices."""
    cdef _Table table = _Table(partitions)
    cdef int64_t[::1] wanted
    if table.a100:
        wanted = table.needed(slices)
        return _tiles_a100(&wanted[0], n_gpus)
    return table.split(slices, n_gpus) is not None


def decompose(partitions, slices, n_gpus):
    """Return how many of `n_gpus` GPUs need each of `partitions` to have just these slices; None if they cannot."""
    cdef _Table table = _Table(partitions)
    return table.split(slices, n_gpus)


# --- the problem ------------------------------------------------------------------------------------------------------

cdef struct Model:  # a Problem for the search; the arrays are the Problem's
    Graph graph  # its partitions have a group that fits for each of their slices
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
    const int64_t *delta  # differences between two partitions, each once


cdef class Problem:
    """What is to be optimised: the fields of `AnnealArguments`, in their order or by name."""

    cdef readonly Py_ssize_t n_gpus
    cdef Model model
    cdef _Table table
    cdef Moment[::1] moments
    cdef list owned, members
    cdef object given, part

    def __init__(self, *columns, **more):
        given = AnnealArguments(*columns, **more)
        self.given = given
        self.n_gpus = given.n_gpus
        self.table = _Table(given.partitions)
        cdef Py_ssize_t i, groups = len(given.service_s), slices = self.table.slices
        self.members = [np.flatnonzero((given.slice_of == s) & given.fits).tolist() for s in range(slices)]
        rows = np.asarray(self.table.row).tolist()
        usable = [row for row in rows if all(self.members[s] for s, n in enumerate(row) if n)]
        if not usable or not given.fits.any():
            raise ValueError("no partition has a variant that fits for each of its slices")
        self.part = np.array(usable, np.int64)
        deltas = sorted({tuple([y - x for x, y in zip(a, b)]) for a in usable for b in usable if a != b})
        self.moments = np.empty(groups, MOMENT)
        for i in range(groups):
            self.moments[i] = moment(given.sla_s, given.service_s[i], given.cv[i])
        carbon = given.lam * given.intensity / (given.base_energy_j * given.reference_intensity)
        worth = (1.0 - given.lam) / given.base_accuracy * given.accuracy - carbon * given.energy_j
        self.owned = []
        self.model = Model(
            graph=make_graph(self.owned, given.slice_of, self.members, self.part),
            deltas=len(deltas),
            gpus=given.n_gpus,
            a100=self.table.a100,
            product=given.model == "pf",
            switches=given.switches,
            rate=given.rate,
            miss=1.0 - given.quantile,
            fixed=given.lam - carbon * given.idle_w * given.n_gpus / given.rate - (1.0 - given.lam),
            spread=max(float(np.ptp(worth[given.fits])), 1e-6),
            accuracy_floor=given.accuracy_floor,
            utilisation_limit=given.utilisation_limit,
            service_s=doubles(self.owned, given.service_s),
            rate_of=doubles(self.owned, 1.0 / given.service_s),
            cv2=doubles(self.owned, given.cv * given.cv),
            worth=doubles(self.owned, worth),
            accuracy=doubles(self.owned, given.accuracy),
            running=doubles(self.owned, given.running),
            switching=doubles(self.owned, given.switching),
            moments=&self.moments[0],
            delta=longs(self.owned, np.array(deltas or [[0] * slices], np.int64)),
        )

    @property
    def closed_form(self):
        """Whether the tiling test of the A100 is used."""
        return self.table.a100

    cdef object _checked(self, counts):
        """Return `counts` as an array.  ValueError if they are no configuration of these groups."""
        given = np.ascontiguousarray(counts)
        if given.shape != (self.model.graph.groups,) or given.dtype.kind not in "iu" or (given < 0).any():
            raise ValueError("counts must be one whole number >= 0 a group")
        if given[~self.given.fits].any():
            raise ValueError("counts have a variant where it does not fit")
        return given.astype(np.int64)

    cdef object _slices(self, counts):
        """Return the slices of a configuration [slices]."""
        slices = np.zeros(self.table.slices, np.int64)
        np.add.at(slices, self.given.slice_of, counts)
        return slices

    def tiles(self, counts):
        """Return whether `n_gpus` fully partitioned GPUs may have the slices of `counts`."""
        cdef int64_t[::1] slices = self._slices(self._checked(counts))
        if self.table.a100:
            return _tiles_a100(&slices[0], self.n_gpus)
        return self.table.split(np.asarray(slices), self.n_gpus) is not None

    def score(self, counts):
        """Return (feasible, f) of a configuration; f is NaN if its workers cannot keep up."""
        cdef _Search search = _Search(self, 0)
        given = self._checked(counts)
        if not given.any():
            return False, float("nan")
        stand_at(&search.walk, given, np.zeros(self.model.graph.parts, np.int64))
        cdef double value = search._score()
        if value <= OVERLOAD / 2.0:
            return False, float("nan")
        return search.good and self.tiles(given), search.value


cdef object MOMENT = np.dtype([(name, np.float64) for name in ("ahead_s", "spread_s", "z", "longer", "gauss")])


# --- the search -------------------------------------------------------------------------------------------------------

@cython.final
cdef class _Search:
    """The state of one call of `solve`."""

    cdef Problem problem
    cdef const Model *p
    cdef list owned
    cdef Walk walk
    cdef int64_t[MAX_SLICES] slices  # of the configuration that the walk stands at
    cdef int64_t[MAX_SLICES] trial_slices
    cdef double gap_s, trial_gap_s
    cdef double *share
    cdef bint good  # whether the trial keeps all constraints
    cdef double value  # f of the trial
    cdef clockid_t clock
    # the best so far
    cdef double *best
    cdef double best_score, best_value
    cdef bint best_good
    cdef double *trace
    cdef Py_ssize_t traced, room

    def __cinit__(self):
        self.trace = NULL

    def __init__(self, Problem problem, seed):
        self.problem = problem
        self.p = &problem.model
        self.owned = []
        # The tiling test of the A100 asks for slices alone, not for how many GPUs have which partition.
        self.walk = make_walk(self.owned, &problem.model.graph, seed, not problem.model.a100)
        self.share = doubles(self.owned, np.zeros(self.p.graph.groups))
        self.best = doubles(self.owned, np.zeros(self.p.graph.groups))
        self.gap_s = self.trial_gap_s = 0.0
        self.clock = CLOCK_MONOTONIC
        self.best_score = self.best_value = -1e300
        self.best_good = False
        self.traced = 0
        self.room = 256
        self.trace = <double *>malloc(2 * self.room * sizeof(double))
        if self.trace == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.trace)

    cdef int load(self, counts, used) except -1:
        """Go to a configuration, and look at it."""
        cdef int64_t[::1] slices = self.problem._slices(counts)
        memcpy(self.slices, &slices[0], self.p.graph.slices * sizeof(int64_t))
        self.trial_slices = self.slices
        stand_at(&self.walk, counts, used)
        return 0

    cdef double _score(self) noexcept nogil:
        """Return the trial's objective less penalties for what it misses; set `good` and `value`."""
        cdef const Model *p = self.p
        cdef double *trial = self.walk.trial
        cdef double *share = self.share
        cdef int *tried = self.walk.tried
        cdef double servers = 0.0, capacity = 0.0, variation = 0.0, part, drain, p_wait = 0.0, tail, value, right = 0.0
        cdef double more, lost = 0.0
        cdef Py_ssize_t i
        cdef int j, n = list_tried(&self.walk)
        self.good = False
        for i in range(n):
            j = tried[i]
            part = trial[j] * p.rate_of[j]
            servers += trial[j]
            capacity += part
            variation += part * p.cv2[j]
        if not p.rate < capacity * p.utilisation_limit:
            return OVERLOAD * (p.rate / capacity)
        self.walk.evaluations += 1
        drain = 2.0 * (capacity - p.rate) / (1.0 + variation / capacity)
        if p.product:
            self.trial_gap_s = product_form(n, tried, trial, p.service_s, p.rate, self.gap_s, share, &p_wait)
        else:
            self.trial_gap_s = mean_field(n, tried, trial, p.service_s, p.rate, self.gap_s, share)
            p_wait = erlang_c(servers, servers * (p.rate / capacity))
        tail = late(n, tried, trial, p.rate_of, share, p.moments, Line(capacity, p_wait, drain))
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

    cdef bint _change_partition(self) noexcept nogil:
        """Change some GPUs from one partition to another.  False if their slices would not tile."""
        cdef const Graph *graph = &self.p.graph
        cdef int64_t[MAX_SLICES] wanted
        cdef int64_t gpus, change
        cdef int a, b, s
        if graph.parts < 2:
            return False
        if self.p.a100:
            a = <int>draw(&self.walk, self.p.deltas)
            gpus = step_size(&self.walk, 0)
            for s in range(5):
                wanted[s] = self.trial_slices[s] + gpus * self.p.delta[a * graph.slices + s]
            if not _tiles_a100(wanted, self.p.gpus):
                return False
            if self.walk.stale:
                copy_trial(&self.walk)
        else:
            if self.walk.stale:
                copy_trial(&self.walk)
            a = draw_partition(&self.walk)
            b = (a + 1 + <int>draw(&self.walk, graph.parts - 1)) % graph.parts
            gpus = min(step_size(&self.walk, 0), self.walk.trial_used[a])
            self.walk.trial_used[a] -= gpus
            self.walk.trial_used[b] += gpus
            for s in range(graph.slices):
                change = graph.part[b * graph.slices + s] - graph.part[a * graph.slices + s]
                wanted[s] = self.trial_slices[s] + gpus * change
        for s in range(graph.slices):
            change_slices(&self.walk, s, wanted[s] - self.trial_slices[s])
            self.trial_slices[s] = wanted[s]
        return True

    cdef inline bint _move(self) noexcept nogil:
        return change_variant(&self.walk) if draw(&self.walk, 4) == 0 else self._change_partition()

    cdef bint _propose(self) noexcept nogil:
        """Make a trial by one to three moves.  False if the first of them is not possible."""
        cdef int more
        self.trial_slices = self.slices
        self.walk.stale = True  # many moves do not tile: the counts are copied once one does
        if not self._move():
            return False
        for more in range(2):
            if draw(&self.walk, 2) == 0:
                break
            self._move()
        return True

    cdef void _accept(self) noexcept nogil:
        swap_trial(&self.walk)
        self.gap_s = self.trial_gap_s
        self.slices = self.trial_slices

    cdef bint _remember(self, double score) noexcept nogil:
        """Keep the trial if it is the best so far.  False if there is no memory for the trace."""
        cdef double *more
        if self.best_good and not (self.good and self.value > self.best_value):
            return True
        if not self.good and score <= self.best_score:
            return True
        memcpy(self.best, self.walk.trial, self.p.graph.groups * sizeof(double))
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
            self.trace[2 * self.traced] = <double>self.walk.evaluations
            self.trace[2 * self.traced + 1] = self.value
            self.traced += 1
        return True

    cdef bint _run(self, double score, double begin_s, double end_s, int64_t first, int64_t last) noexcept nogil:
        """Cool once, between two times (if end_s > 0), two numbers of evaluations (if last > 0), or both.

        `score` is that of the configuration that the walk stands at.  False if there is no memory for the trace.
        """
        cdef double gpus = <double>self.p.gpus, heat = 0.0, spent, now, gain
        cdef double hot = first_temperature(self.p.gpus), cold = COLD_ALONE / (gpus * sqrt(gpus))
        cdef Cooling cooling = begin_cooling(&self.walk, hot, cold, self.p.spread, first, last)
        while True:
            if cooling.moves % LOOK == 0:
                spent = progress(&self.walk, &cooling)
                if end_s > 0.0:
                    spent = max(spent, (_now_s(self.clock) - begin_s) / (end_s - begin_s))
                if spent >= 1.0:
                    break
                heat = cool(&self.walk, &cooling, spent)
            cooling.moves += 1
            if not self._propose():
                continue
            now = self._score()
            gain = now - score
            # The best of all may be worse than where the search stands, as that need not be feasible.
            if (gain >= 0.0 or self.good and self.value > self.best_value) and not self._remember(now):
                return False
            if accepts(&self.walk, gain, heat):
                self._accept()
                self.walk.accepted += 1
                score = now
        end_cooling(&self.walk, &cooling)
        return True


cdef inline double _now_s(clockid_t clock) noexcept nogil:
    cdef timespec at
    clock_gettime(clock, &at)
    return <double>at.tv_sec + 1e-9 * <double>at.tv_nsec


def _homogeneous(Problem problem):
    """Return (counts, used) with all GPUs alike: one variant on all slices, or the fastest of each kind of slice."""
    cdef Py_ssize_t groups = problem.model.graph.groups, parts = problem.model.graph.parts, s
    found = []
    service_s, slice_of = problem.given.service_s.tolist(), problem.given.slice_of
    rank = [int((slice_of[:j] == slice_of[j]).sum()) for j in range(groups)]  # of a group among those of its slice
    fastest = [min(row, key=service_s.__getitem__, default=None) for row in problem.members]
    ranked = [{rank[j]: j for j in row} for row in problem.members]
    for at, row in enumerate(problem.part):
        kinds = np.flatnonzero(row).tolist()
        choices = [[fastest[s] for s in kinds]]
        for variant in range(max(rank) + 1):
            chosen = [ranked[s][variant] for s in kinds if variant in ranked[s]]
            if len(chosen) == len(kinds) and chosen not in choices:
                choices.append(chosen)
        used = np.zeros(parts, np.int64)
        used[at] = problem.n_gpus
        for chosen in choices:
            counts = np.zeros(groups, np.int64)
            counts[chosen] = row[kinds] * problem.n_gpus
            found.append((counts, used))
    return found


def solve(Problem problem, seed, time_limit_s, evaluations=0, start=None, restarts=1, *, cpu_time=False):
    """Return the best configuration found within `time_limit_s` seconds and `evaluations` (0: no such limit).

    One limit is needed at least.  The search starts at the best configuration with all GPUs alike, or at `start` (which
    must tile) if that is better, and shares the budget among `restarts` coolings.  Without a time limit the answer
    depends on the seed alone.  `cpu_time` makes the limit one of this thread's CPU time.
    """
    cdef clockid_t clock = CLOCK_THREAD_CPUTIME_ID if cpu_time else CLOCK_MONOTONIC
    cdef double begin_s = _now_s(clock), limit_s = time_limit_s, score, top
    cdef int64_t limit = evaluations, scanned
    cdef int turns = restarts, turn
    cdef bint kept = True
    cdef Py_ssize_t i
    if not (limit_s >= 0.0 and isfinite(limit_s)) or limit < 0 or turns < 1:
        raise ValueError("time_limit_s and evaluations must not be negative, and restarts must be 1 or more")
    if limit_s == 0.0 and limit == 0:
        raise ValueError("a limit is needed: time_limit_s, evaluations or both")
    cdef _Search search = _Search(problem, seed)
    search.clock = clock
    candidates = _homogeneous(problem)
    if start is not None:
        given = problem._checked(start)
        if not problem.tiles(given):
            raise ValueError("the slices of start do not tile")
        candidates.append((given, _used(problem, given)))
    top = -1e300
    origin = candidates[0]
    for counts, used in candidates:
        search.load(counts, used)
        score = search._score()
        if not search._remember(score):
            raise MemoryError
        if score > top:
            top = score
            origin = counts, used
    search.walk.levels = first_levels(problem.n_gpus)
    if problem.n_gpus >= MANY:
        search.walk.levels += 2
    scanned = search.walk.evaluations
    for turn in range(turns):
        search.load(origin[0], origin[1])
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
    best = np.array([search.best[i] for i in range(problem.model.graph.groups)]).astype(np.int64)
    trace = np.array([search.trace[i] for i in range(2 * search.traced)]).reshape(-1, 2)
    return Solution(
        best,
        search.best_value if search.best_good else float("nan"),
        bool(search.best_good),
        search.walk.evaluations,
        search.walk.proposals,
        search.walk.accepted,
        trace,
    )


def _used(Problem problem, counts):
    """Return how many GPUs have each usable partition, if the search has to know."""
    if problem.table.a100:
        return np.zeros(problem.model.graph.parts, np.int64)
    return _Table(problem.part).split(problem._slices(counts), problem.n_gpus)
