"""Simulated annealing over what a fleet runs: families that share devices, rows dealt by quota, devices asleep.

**The graph.**  A group is a variant on a kind of slice.  A configuration is the number of workers in each group, and
the number of devices with each partition.  Devices come in kinds, each with its own partitions, one of which may have
no slice at all: a device asleep, with its own idle watts.  `anneal` searches the same graph for the paper's router,
which sends a request to any idle worker; this kernel searches for the router that Clover has.

**Lanes.**  All workers of a variant form a lane, and the plan says which share of its family's rows each lane gets.  So
shares are chosen, and a configuration is worth what its best shares are worth.  Two tables describe a group in a lane
of so many workers (powers of two, linear between) at each load (from 0 to the utilisation limit, evenly spaced):
`energy_j`, the joules of a row, which fall as batches grow, and `late`, the share of its rows that miss the latency
target.  A lane of unlike groups is their mean, weighted by capacity.

**Shares.**  With the energy of a row given, the best shares solve a linear program: they sum to 1, keep between what
each lane must and may get, and their accuracy reaches the floor.  Fill the lanes in the order of their gain; while the
floor is missed, move rows from one lane to a more accurate one, always where a point of accuracy costs least.  These
are the steps of the parametric simplex method on that program, so the result is its optimum.  Energy depends on the
load, that is on the shares: it is read again at the shares found, `PASSES` times.  If too many of a family's rows are
late then, the shares are found once more with every lane held to the load at which it is not late by itself (but given
what it must get); between both, as near to the first as `HALVINGS` bisections tell, lie shares that keep the target as
a whole.

**Constraints** that are not of one lane: the floor of each family, its late rows, and the peak.  A family whose workers
serve less than its peak needs devices to wake: (peak - capacity) / wake of them, and there must be as many devices
asleep in a partition with `spare`.  What is missed costs in proportion, and more and more as the search cools, so that
the search may pass through configurations that miss something.

**Moves and cooling** are those of `annealing.pxd`.  The best `keep` configurations of all that were evaluated are kept,
all different, as the caller may find that one of them does not hold.  The seed decides everything; there is no clock.
"""

from typing import NamedTuple

import cython
import numpy as np

from clover._native.arguments import LanesArguments

from csrc.annealing cimport (
    LOOK, Cooling, Graph, Walk, accepts, begin_cooling, change_slices, change_variant, cool, copy_trial, doubles, draw,
    draw_partition, end_cooling, first_levels, first_temperature, ints, list_tried, longs, make_graph, make_walk,
    progress, stand_at, step_size, swap_trial,
)
from libc.math cimport fabs, log
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcmp, memcpy

cdef enum:
    MAX_LANES = 64
    PASSES = 3  # readings of the energy at the shares found
    HALVINGS = 4

cdef double COLD = 1e-6  # the temperature to end at, in units of the spread of gains
cdef double PENALTY = 3.0  # for all of what is asked for missing, in the same units, at first
cdef double FIRM = 33.0  # and at last
cdef double EPSILON = 1e-9


class Found(NamedTuple):
    """A configuration and its value."""

    counts: object  # workers in each group
    used: object  # devices with each partition
    value: float


class Solution(NamedTuple):
    """The configurations that a search found."""

    found: list  # the best feasible ones, best first
    feasible: bool  # whether there are any
    nearest: object  # the one that misses least of what is asked for
    evaluations: int
    proposals: int


class Judged(NamedTuple):
    """What one configuration is worth with its best shares."""

    feasible: bool  # whether it keeps all constraints
    value: float
    shares: object  # of its family's rows, by lane
    accuracy: object  # by family
    energy_j: object  # of a row, by family


cdef struct Model:  # a Problem for the search; the arrays are the Problem's
    Graph graph
    int lanes
    int families
    int sizes
    int loads
    int64_t largest  # devices of the kind that has most
    double watt  # what an idle watt costs
    double least  # the part of an even share that every worker has to get
    double spread  # what gains and idle devices may differ by
    const double *capacity  # by group
    const double *energy_j  # [group, size, load]
    const double *late
    const double *running
    const double *switching
    const int *lane_of
    const double *accuracy  # by lane
    const double *quality
    const int *lanes_at  # the lanes of family f: lanes_at[f] up to lanes_at[f + 1] - 1
    const double *rate  # by family
    const double *peak
    const double *wake
    const double *floor
    const double *miss
    const double *limit
    const double *price
    const double *reach  # between the accuracies of its lanes
    const int *kind_of  # by partition
    const double *idle_w
    const double *spare


cdef class Problem:
    """What is to be optimised: the fields of `LanesArguments`.  They are copied."""

    cdef Model model
    cdef list owned
    cdef object given

    def __init__(self, **columns):
        given = LanesArguments(**columns)
        groups, lanes, families = len(given.capacity), len(given.accuracy), len(given.rate)
        if lanes > MAX_LANES:
            raise ValueError(f"there may be 1 to {MAX_LANES} lanes, not {lanes}")
        members = [np.flatnonzero(given.slice_of == s).tolist() for s in range(given.partitions.shape[1])]
        own = [given.accuracy[given.family_of == f] for f in range(families)]
        self.given = given
        self.owned = []
        self.model = Model(
            graph=make_graph(self.owned, given.slice_of, members, given.partitions),
            lanes=lanes,
            families=families,
            sizes=given.energy_j.shape[1],
            loads=given.energy_j.shape[2] - 1,
            largest=given.devices.max(),
            watt=given.watt,
            least=given.least,
            spread=max(_spread(given), 1e-9),
            capacity=doubles(self.owned, given.capacity),
            energy_j=doubles(self.owned, given.energy_j),
            late=doubles(self.owned, given.late),
            running=doubles(self.owned, given.running),
            switching=doubles(self.owned, given.switching),
            lane_of=ints(self.owned, given.lane_of),
            accuracy=doubles(self.owned, given.accuracy),
            quality=doubles(self.owned, given.quality),
            lanes_at=ints(self.owned, np.searchsorted(given.family_of, np.arange(families + 1)).astype(np.intc)),
            rate=doubles(self.owned, given.rate),
            peak=doubles(self.owned, given.peak),
            wake=doubles(self.owned, given.wake),
            floor=doubles(self.owned, given.floor),
            miss=doubles(self.owned, given.miss),
            limit=doubles(self.owned, given.limit),
            price=doubles(self.owned, given.price),
            reach=doubles(self.owned, np.array([max(float(np.ptp(accuracy)), 1e-6) for accuracy in own])),
            kind_of=ints(self.owned, given.kind_of),
            idle_w=doubles(self.owned, given.idle_w),
            spare=doubles(self.owned, given.spare),
        )

    cdef object _checked(self, counts, used):
        """Return both as arrays, of one configuration or of one a row.  ValueError if they do not fit the devices."""
        given, cut = np.ascontiguousarray(counts), np.ascontiguousarray(used)
        for name, row, size in (("counts", given, self.model.graph.groups), ("used", cut, self.model.graph.parts)):
            if row.ndim not in (1, 2) or row.shape[row.ndim - 1] != size or row.dtype.kind not in "iu":
                raise ValueError(f"{name} must be {size} whole numbers")
            if (row < 0).any() or (row > 1e10).any():
                raise ValueError(f"{name} must not be negative, nor more than there can be")
        given, cut = given.astype(np.int64), cut.astype(np.int64)
        of_slice = self.given.slice_of[:, None] == np.arange(self.model.graph.slices)
        of_kind = self.given.kind_of[:, None] == np.arange(len(self.given.devices))
        if given.ndim != cut.ndim or (cut @ of_kind != self.given.devices).any():
            raise ValueError("used must have all devices of each kind")
        if (given @ of_slice != cut @ self.given.partitions).any():
            raise ValueError("the slices of counts are not those of the devices cut as used says")
        return given, cut

    def judge(self, counts, used):
        """Return what a configuration is worth, and with which shares."""
        cdef _Search search = _Search(self, 0, 1)
        cdef int f, v
        checked, cut = self._checked(counts, used)
        if checked.ndim != 1:
            raise ValueError("counts and used must be those of one configuration")
        stand_at(&search.walk, checked, cut)
        search.score()
        accuracy, energy_j = np.zeros(self.model.families), np.zeros(self.model.families)
        for f in range(self.model.families):
            for v in range(self.model.lanes_at[f], self.model.lanes_at[f + 1]):
                accuracy[f] += search.share[v] * self.model.accuracy[v]
                energy_j[f] += search.share[v] * search.joules[v]
        shares = np.array([search.share[v] for v in range(self.model.lanes)])
        return Judged(bool(search.good), search.value, shares, accuracy, energy_j)

    def judge_many(self, counts, used):
        """Return, for configurations that are one a row each, whether they keep all constraints, and their values."""
        cdef _Search search = _Search(self, 0, 1)
        given, cuts = np.array(counts), np.array(used)
        if given.ndim != 2 or cuts.ndim != 2 or given.shape[0] != cuts.shape[0]:
            raise ValueError("counts and used must be tables of one row a configuration")
        checked, cut = self._checked(given, cuts)
        cdef int64_t[:, ::1] rows = checked
        cdef int64_t[:, ::1] parts = cut
        cdef Py_ssize_t i, many = rows.shape[0]
        feasible, values = np.zeros(many, np.uint8), np.zeros(many)
        cdef uint8_t[::1] good = feasible
        cdef double[::1] value = values
        for i in range(many):
            stand_at(&search.walk, rows[i], parts[i])
            search.score()
            good[i] = search.good
            value[i] = search.value
        return feasible.astype(np.bool_), values


def _spread(given):
    """Return what the gains of all families and the idle devices may differ by."""
    total = 0.0
    family_of, quality = given.family_of[given.lane_of], given.quality[given.lane_of]
    for f in range(len(given.rate)):
        own = np.flatnonzero(family_of == f)
        if len(own):
            joules = given.energy_j[own]
            ends = np.array([joules.min(axis=(1, 2)), joules.max(axis=(1, 2))])
            total += float(np.ptp(quality[own] - given.price[f] * ends))
    for kind, number in enumerate(given.devices.tolist()):
        total += given.watt * number * float(np.ptp(given.idle_w[given.kind_of == kind]))
    return total


@cython.final
cdef class _Search:
    """The state of one call of `solve`."""

    cdef Problem problem
    cdef const Model *p
    cdef list owned
    cdef Walk walk
    cdef bint good  # whether the trial keeps all constraints
    cdef double value
    cdef double lost  # what the trial misses
    cdef double penalty  # what that costs now
    # of each lane: rows/s it can serve, its workers, where its tables are read, what it may, must and does get
    cdef double[MAX_LANES] rows
    cdef double[MAX_LANES] workers
    cdef int[MAX_LANES] size
    cdef double[MAX_LANES] between
    cdef double[MAX_LANES] full  # the share that loads it to the limit
    cdef double[MAX_LANES] most
    cdef double[MAX_LANES] least
    cdef double[MAX_LANES] share
    cdef double[MAX_LANES] joules
    cdef double[MAX_LANES] tardy
    cdef double[MAX_LANES] gain
    # the best so far
    cdef double *kept
    cdef int64_t *kept_used
    cdef double *kept_value
    cdef int keep, n_kept, worst
    cdef double *nearest
    cdef int64_t *nearest_used
    cdef double nearest_lost, nearest_value

    def __init__(self, Problem problem, seed, int keep):
        cdef Py_ssize_t groups = problem.model.graph.groups, parts = problem.model.graph.parts
        self.problem = problem
        self.p = &problem.model
        self.owned = []
        self.walk = make_walk(self.owned, &problem.model.graph, seed, True)
        self.kept = doubles(self.owned, np.zeros((keep, groups)))
        self.kept_used = longs(self.owned, np.zeros((keep, parts), np.int64))
        self.kept_value = doubles(self.owned, np.zeros(keep))
        self.nearest = doubles(self.owned, np.zeros(groups))
        self.nearest_used = longs(self.owned, np.zeros(parts, np.int64))
        self.keep = keep
        self.n_kept = self.worst = 0
        self.penalty = PENALTY * self.p.spread
        self.nearest_lost = 1e300
        self.nearest_value = -1e300

    # --- what a configuration is worth --------------------------------------------------------------------------------

    cdef double score(self) noexcept nogil:
        """Return the trial's value less the penalty of what it misses; set `good`, `value`, `lost` and the shares."""
        cdef const Model *p = self.p
        cdef double total, short, accuracy, need = 0.0, have = 0.0, lost = 0.0, more, value = 0.0, capacity
        cdef const double *trial = self.walk.trial
        cdef const int64_t *used = self.walk.trial_used
        cdef int f, v, i, j, n = list_tried(&self.walk), step
        cdef bint again = False
        self.walk.evaluations += 1
        for v in range(p.lanes):
            self.rows[v] = self.workers[v] = self.most[v] = self.least[v] = self.share[v] = self.gain[v] = 0.0
        for i in range(n):
            j = self.walk.tried[i]
            v = p.lane_of[j]
            self.rows[v] += trial[j] * p.capacity[j]
            self.workers[v] += trial[j]
        for v in range(p.lanes):
            self._find_size(v)
        self.good = True
        for f in range(p.families):
            total = capacity = 0.0
            for v in range(p.lanes_at[f], p.lanes_at[f + 1]):
                total += self.workers[v]
                capacity += self.rows[v]
            for v in range(p.lanes_at[f], p.lanes_at[f + 1]):
                self.full[v] = p.limit[f] * self.rows[v] / p.rate[f]
                self.most[v] = min(1.0, self.full[v])
                if self.workers[v] > 0.0 and self.workers[v] < total:
                    self.least[v] = min(self.most[v], p.least * self.workers[v] / total)
            if capacity < p.peak[f]:
                need += (p.peak[f] - capacity) / p.wake[f]
        self._read_gains(self.most)
        for step in range(PASSES):
            for f in range(p.families):
                short = self._fill_shares(f)
                if step == PASSES - 1 and short > EPSILON:
                    self.good = False
                    lost += short
            self._read_gains(self.share)
        self._mean(p.late, self.share, self.tardy)
        for f in range(p.families):
            total = self._late(f)
            if total > p.miss[f]:
                more = self._limit_late(f, total)
                if more > p.miss[f] + EPSILON:
                    self.good = False
                    lost += log(more / p.miss[f])
                again = True
        if again:
            self._read_gains(self.share)
        for f in range(p.families):
            accuracy = 0.0
            for v in range(p.lanes_at[f], p.lanes_at[f + 1]):
                accuracy += self.share[v] * p.accuracy[v]
                value += self.share[v] * self.gain[v]
            if accuracy < p.floor[f] - EPSILON:
                self.good = False
                lost += (p.floor[f] - accuracy) / p.reach[f]
        for i in range(p.graph.parts):
            if used[i]:
                have += <double>used[i] * p.spare[i]
                value -= p.watt * (<double>used[i] * p.idle_w[i])
        if need > have + EPSILON:
            self.good = False
            lost += (need - have) / <double>p.largest
        for i in range(n):
            j = self.walk.tried[i]
            more = trial[j] - p.running[j]
            if more > 0.0:
                value -= more * p.switching[j]
        self.value = value
        self.lost = lost
        return value - self.penalty * lost

    cdef inline void _find_size(self, int v) noexcept nogil:
        """Find between which sizes of the tables, powers of two, lane v lies."""
        cdef int at = 0
        cdef double low = 1.0
        while at < self.p.sizes - 2 and self.workers[v] >= 2.0 * low:
            at += 1
            low *= 2.0
        self.size[v] = at
        self.between[v] = 0.0
        if self.p.sizes > 1:
            self.between[v] = min(1.0, max(0.0, (self.workers[v] - low) / low))

    cdef void _mean(self, const double *table, const double *shares, double *mean) noexcept nogil:
        """Read `table` for each lane at these shares into `mean`."""
        cdef const Model *p = self.p
        cdef const double *row
        cdef double[MAX_LANES] part
        cdef int[MAX_LANES] at
        cdef double load, low, high
        cdef int v, i, j
        for v in range(p.lanes):
            mean[v] = 0.0
            if self.rows[v] > 0.0:
                load = min(1.0, shares[v] / self.full[v]) * p.loads
                at[v] = min(<int>load, p.loads - 1)
                part[v] = load - at[v]
        for i in range(self.walk.n_tried):
            j = self.walk.tried[i]
            v = p.lane_of[j]
            row = table + (j * p.sizes + self.size[v]) * (p.loads + 1) + at[v]
            low = row[0] + part[v] * (row[1] - row[0])
            if self.between[v] != 0.0:
                row += p.loads + 1
                high = row[0] + part[v] * (row[1] - row[0])
                low += self.between[v] * (high - low)
            mean[v] += self.walk.trial[j] * p.capacity[j] / self.rows[v] * low

    cdef void _read_gains(self, const double *shares) noexcept nogil:
        """Find the joules of a row of each lane at these shares, and what a whole share gains then."""
        cdef const Model *p = self.p
        cdef int f, v
        self._mean(p.energy_j, shares, self.joules)
        for f in range(p.families):
            for v in range(p.lanes_at[f], p.lanes_at[f + 1]):
                self.gain[v] = p.quality[v] - p.price[f] * self.joules[v]

    cdef inline double _late(self, int f) noexcept nogil:
        """Return the share of the family's rows that are late, by `tardy`."""
        cdef double total = 0.0
        cdef int v
        for v in range(self.p.lanes_at[f], self.p.lanes_at[f + 1]):
            total += self.share[v] * self.tardy[v]
        return total

    cdef double _limit_late(self, int f, double before) noexcept nogil:
        """Move the shares of family f until few enough rows are late, and return the share of its rows that are late.

        Without such shares they stay as they are, with `before` of the rows late.  A lane gets what it must get even if
        that is late.
        """
        cdef const Model *p = self.p
        cdef double[MAX_LANES] start
        cdef double[MAX_LANES] safe
        cdef double[MAX_LANES] held
        cdef double low = 0.0, high = 1.0, middle
        cdef int v, first = p.lanes_at[f], last = p.lanes_at[f + 1], step
        memcpy(start, self.share, p.lanes * sizeof(double))
        memcpy(held, self.share, p.lanes * sizeof(double))
        for v in range(first, last):
            safe[v] = -1.0
        for step in range(p.loads, -1, -1):
            for v in range(first, last):
                held[v] = self.full[v] * step / p.loads
            self._mean(p.late, held, self.tardy)
            for v in range(first, last):
                if safe[v] < 0.0 and self.tardy[v] <= p.miss[f]:
                    safe[v] = held[v]
        for v in range(first, last):
            self.most[v] = max(self.least[v], min(self.most[v], safe[v]))
        if self._fill_shares(f) > EPSILON:
            memcpy(self.share, start, p.lanes * sizeof(double))
            return before
        memcpy(safe, self.share, p.lanes * sizeof(double))
        for step in range(HALVINGS):
            middle = 0.5 * (low + high)
            for v in range(first, last):
                self.share[v] = start[v] + middle * (safe[v] - start[v])
            self._mean(p.late, self.share, self.tardy)
            if self._late(f) > p.miss[f]:
                low = middle
            else:
                high = middle
        for v in range(first, last):
            self.share[v] = start[v] + high * (safe[v] - start[v])
        self._mean(p.late, self.share, self.tardy)
        return self._late(f)

    cdef double _fill_shares(self, int f) noexcept nogil:
        """Find the best shares of family f at the present gains; return the share of its rows that finds no room."""
        cdef const Model *p = self.p
        cdef int low = p.lanes_at[f], high = p.lanes_at[f + 1], v, w, best, other
        cdef double room = 0.0, left = 1.0, accuracy = 0.0, cost, least_cost, moved
        for v in range(low, high):
            room += self.most[v]
        if room < 1.0 - EPSILON:
            for v in range(low, high):
                self.share[v] = self.most[v] / room if room > 0.0 else 0.0
            return 1.0 - room
        for v in range(low, high):
            self.share[v] = self.least[v]
            left -= self.least[v]
        while left > 0.0:
            best = -1
            for v in range(low, high):
                if self.share[v] < self.most[v] and (best < 0 or self.gain[v] > self.gain[best]):
                    best = v
            if best < 0:
                break
            moved = self.most[best] - self.share[best]
            if moved <= left:
                self.share[best] = self.most[best]  # to the last bit, or it would be looked at again
                left -= moved
            else:
                self.share[best] += left
                left = 0.0
        for v in range(low, high):
            accuracy += self.share[v] * p.accuracy[v]
        while accuracy < p.floor[f] - EPSILON:
            best = other = -1
            least_cost = 0.0
            for v in range(low, high):
                if self.share[v] <= self.least[v] + 1e-15:
                    continue
                for w in range(low, high):
                    if self.share[w] >= self.most[w] - 1e-15 or p.accuracy[w] <= p.accuracy[v]:
                        continue
                    cost = (self.gain[v] - self.gain[w]) / (p.accuracy[w] - p.accuracy[v])
                    if best < 0 or cost < least_cost:
                        best, other, least_cost = v, w, cost
            if best < 0:
                break
            moved = min(self.share[best] - self.least[best], self.most[other] - self.share[other])
            moved = min(moved, (p.floor[f] - accuracy) / (p.accuracy[other] - p.accuracy[best]))
            self.share[best] -= moved
            self.share[other] += moved
            accuracy += moved * (p.accuracy[other] - p.accuracy[best])
        return 0.0

    # --- moves --------------------------------------------------------------------------------------------------------

    cdef bint _change_partition(self) noexcept nogil:
        """Change some devices from one partition to another.  False if these are the same or of two kinds."""
        cdef const Graph *graph = &self.p.graph
        cdef int64_t gpus
        cdef int a, b, s
        if self.walk.stale:
            copy_trial(&self.walk)
        a = draw_partition(&self.walk)
        b = <int>draw(&self.walk, graph.parts)
        if a == b or self.p.kind_of[a] != self.p.kind_of[b]:
            return False
        gpus = min(step_size(&self.walk, 0), self.walk.trial_used[a])
        self.walk.trial_used[a] -= gpus
        self.walk.trial_used[b] += gpus
        for s in range(graph.slices):
            change_slices(&self.walk, s, gpus * (graph.part[b * graph.slices + s] - graph.part[a * graph.slices + s]))
        return True

    cdef inline bint _move(self) noexcept nogil:
        return change_variant(&self.walk) if draw(&self.walk, 2) == 0 else self._change_partition()

    cdef bint _propose(self) noexcept nogil:
        """Make a trial by one to three moves.  False if the first of them is not possible."""
        cdef int more
        self.walk.stale = True
        if not self._move():
            return False
        for more in range(2):
            if draw(&self.walk, 2) == 0:
                break
            self._move()
        return True

    cdef void remember(self) noexcept nogil:
        """Keep the trial if it is among the best and not kept yet (perhaps with other partitions for its slices)."""
        cdef int i, at
        cdef bint same
        cdef double near = EPSILON * self.p.spread
        cdef size_t row = self.p.graph.groups * sizeof(double)
        if self.lost < self.nearest_lost or (self.lost == self.nearest_lost and self.value > self.nearest_value):
            self.nearest_lost = self.lost
            self.nearest_value = self.value
            memcpy(self.nearest, self.walk.trial, row)
            memcpy(self.nearest_used, self.walk.trial_used, self.p.graph.parts * sizeof(int64_t))
        if not self.good or (self.n_kept == self.keep and self.value <= self.kept_value[self.worst]):
            return
        for i in range(self.n_kept):
            same = memcmp(self.kept + i * self.p.graph.groups, self.walk.trial, row) == 0
            if same and fabs(self.kept_value[i] - self.value) <= near:
                return
        at = self.worst
        if self.n_kept < self.keep:
            at = self.n_kept
            self.n_kept += 1
        memcpy(self.kept + at * self.p.graph.groups, self.walk.trial, row)
        memcpy(self.kept_used + at * self.p.graph.parts, self.walk.trial_used, self.p.graph.parts * sizeof(int64_t))
        self.kept_value[at] = self.value
        self.worst = 0
        for i in range(self.n_kept):
            if self.kept_value[i] < self.kept_value[self.worst]:
                self.worst = i

    cdef void run(self, int64_t first, int64_t last) noexcept nogil:
        """Cool once from where the search stands, between two numbers of evaluations."""
        cdef double spread = self.p.spread, heat = 0.0, spent, now, gain
        cdef double value = self.value, lost = self.lost, score = value
        cdef Cooling cooling = begin_cooling(
            &self.walk, first_temperature(self.p.largest), COLD, spread, first, last
        )
        while True:
            if cooling.moves % LOOK == 0:
                spent = progress(&self.walk, &cooling)
                if spent >= 1.0:
                    break
                heat = cool(&self.walk, &cooling, spent)
                self.penalty = (PENALTY + (FIRM - PENALTY) * spent) * spread
                score = value - self.penalty * lost
            cooling.moves += 1
            if not self._propose():
                continue
            now = self.score()
            self.remember()
            gain = now - score
            if accepts(&self.walk, gain, heat):
                swap_trial(&self.walk)
                score = now
                value = self.value
                lost = self.lost
        end_cooling(&self.walk, &cooling)
        self.penalty = PENALTY * spread


def solve(Problem problem, seed, evaluations, starts, restarts=1, keep=16):
    """Return the best configurations found within so many `evaluations`.

    They are shared among `restarts` coolings from the best of `starts`, each (counts, used).
    """
    cdef int64_t budget = evaluations, scanned
    cdef int turns = restarts, turn
    cdef double score, top = -1e300
    if not 1 <= budget <= 10**12 or not 1 <= turns <= 10**6 or not 1 <= keep <= 4096:
        raise ValueError("evaluations must be 1 to 10^12, restarts 1 to 10^6, keep 1 to 4096")
    if not len(starts):
        raise ValueError("a start is needed")
    cdef _Search search = _Search(problem, seed, keep)
    origin = None
    for given in starts:
        counts, used = given
        checked = problem._checked(counts, used)
        if checked[0].ndim != 1:
            raise ValueError("each start must be one configuration")
        stand_at(&search.walk, checked[0], checked[1])
        score = search.score()
        search.remember()
        if score > top:
            top = score
            origin = checked
    search.walk.levels = first_levels(problem.model.largest)
    scanned = search.walk.evaluations
    budget = max(budget - scanned, turns)
    for turn in range(turns):
        stand_at(&search.walk, origin[0], origin[1])
        search.score()
        swap_trial(&search.walk)
        with nogil:
            search.run(scanned + budget * turn // turns, scanned + budget * (turn + 1) // turns)
    groups, parts = problem.model.graph.groups, problem.model.graph.parts
    found = []
    for i in range(search.n_kept):
        counts = np.array([search.kept[i * groups + j] for j in range(groups)]).astype(np.int64)
        used = np.array([search.kept_used[i * parts + j] for j in range(parts)], dtype=np.int64)
        found.append(Found(counts, used, search.kept_value[i]))
    found.sort(key=lambda item: -item.value)
    nearest = Found(
        np.array([search.nearest[j] for j in range(groups)]).astype(np.int64),
        np.array([search.nearest_used[j] for j in range(parts)], dtype=np.int64),
        search.nearest_value,
    )
    return Solution(found, bool(found), nearest, search.walk.evaluations, search.walk.proposals)
