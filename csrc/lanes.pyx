"""Simulated annealing over what a fleet may run: families that share devices, rows dealt by quota, devices asleep.

**The graph.**  A group is a variant on a kind of slice.  A configuration is the number of workers in each group, and
the number of devices cut in each way.  Devices come in kinds, each with its own ways to be cut (`partitions`), one of
which may have no slice at all: a device asleep, with its own idle watts.  `anneal` searches the same graph for the
paper's router, where requests take any idle worker; this is the search for the router that Clover has.

**Lanes.**  All workers of a variant form a lane, and the plan says which share of its family's rows each lane gets.  So
shares are chosen, not suffered, and a configuration is worth what its best shares are worth.  Two tables say what a
group does in a lane of so many workers (powers of two, linear between) at each load (from 0 to the utilisation limit,
evenly spaced): `energy_j`, the joules of a row, which fall as batches grow, and `late`, the part of its rows that miss
the latency target.  A lane of unlike groups is their mean, weighted by capacity.

**Shares.**  With the energy of a row given, the best shares solve a linear program: they sum to 1, keep between what
each lane must and may get, and their accuracy reaches the floor.  Fill the lanes in the order of their gain; while the
floor is missed, move rows from one lane to a more accurate one, always where a point of accuracy costs least.  These
are the steps of the parametric simplex method on that program, so that the result is its optimum.  Energy depends on
the load, that is on the shares: it is read again at the shares found, `PASSES` times.  Where too many of a family's
rows are late then, the shares are found once more with every lane held to the load at which it is not late by itself
(but given what it must get); between both, as near to the first as `HALVINGS` tell, lie shares that keep the target as
a whole.

**Constraints** that are not of one lane: the floor of each family, its late rows, and the peak.  A family whose workers
serve less than its peak needs devices to wake: (peak - capacity) / wake of them, and the devices asleep in a partition
with `spare` must be as many.  What is missed costs in proportion, and ever more as the search cools, so that it may
cross what it may not end in.

**Moves and cooling** are those of `anneal`: another variant on some slices, or some devices of a kind cut otherwise,
one to three of these at once; the steps shrink as the search cools.  The best `keep` configurations of all that were
looked at are kept, all different: whoever asked may find that one of them does not hold.  A seed decides everything;
there is no clock.
"""

from typing import NamedTuple

import cython
import numpy as np

from clover._native.random cimport clover_random, clover_random_below, clover_random_seed, clover_random_uniform
from libc.math cimport exp, fabs, log
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef enum:
    MAX_LANES = 64
    MOST_DEVICES = 1_000_000  # of a kind
    MOST_SLICES = 4096  # of a device
    LOOK = 64  # moves between two looks at the budget
    PATIENCE = 64  # moves for each evaluation paid for
    PASSES = 3  # readings of the energy at the shares found
    HALVINGS = 4

cdef double HOT = 0.01  # temperatures, in units of the spread of gains
cdef double HOT_ALONE = 0.6  # of one device; of N it is an Nth, as one slice weighs less, but HOT at least
cdef double COLD = 1e-6
cdef double PENALTY = 3.0  # for all of what is asked for missing, in the same units, at first
cdef double FIRM = 33.0  # and at last
cdef double EPSILON = 1e-9


class Found(NamedTuple):
    """A configuration: workers a group, devices a partition, and what it is worth."""

    counts: object
    used: object
    value: float


class Solution(NamedTuple):
    """What a search gives: the best configurations, best first; none of them where nothing was `feasible`, but then
    `nearest` is what misses least of what is asked for."""

    found: list
    feasible: bool
    nearest: object
    evaluations: int
    proposals: int


class Judged(NamedTuple):
    """One configuration: whether it keeps everything, its value, the share of each lane of its family's rows, and the
    accuracy and joules a row of each family."""

    feasible: bool
    value: float
    shares: object
    accuracy: object
    energy_j: object


cdef struct Model:  # a Problem for the search; the arrays are the Problem's
    int groups
    int slices
    int parts
    int lanes
    int families
    int sizes
    int loads
    int64_t largest  # devices of the kind that has most
    double watt  # what an idle watt costs
    double part_least
    double spread  # what gains and idle devices may differ by
    const double *capacity  # by group
    const double *energy_j  # [group, size, load]
    const double *late
    const double *running
    const double *switching
    const int *lane_of
    const int *slice_of
    const int *member  # groups by slice: member[first[s]] up to member[first[s + 1] - 1]
    const int *first
    const int *place  # of a group among those of its slice
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
    const double *reach
    const int64_t *part  # [partition, slice]
    const int *kind
    const double *idle_w  # by partition
    const double *spare


cdef class Problem:
    """What is to be optimised.

    By partition: `partitions` [p, slices], `kind_of` the kind of device, `idle_w` watts of a device cut so, `spare`
    what it counts for as one that can be woken.  `devices` has the number of each kind.  By group: `slice_of`,
    `lane_of`, `capacity` (rows/s of one worker), `energy_j` and `late` [group, sizes, loads + 1] (for lanes of 1, 2, 4,
    ... workers at loads from 0 to `limit`).  By lane: `family_of` (ascending), `accuracy` (percent), `quality` (what a
    whole share is worth but for its energy).  By family: `rate` and `peak` (rows/s), `wake` (rows/s that a woken device
    brings), `floor` (percent), `miss` (the part of its rows that may be late), `limit` (the highest utilisation),
    `price` (what a joule of each row costs).  `watt`: what an idle watt costs.  `least`: the part of an even share that
    every worker has to get.  `running` and `switching` (by group, together): a configuration, and what each worker
    beyond it costs.  Nothing that is given is written to, or read again later.
    """

    cdef Model model
    cdef double[::1] capacity, running, switching, accuracy, quality, rate, peak, wake, floor, miss, limit, price
    cdef double[::1] reach, idle_w, spare
    cdef double[:, :, ::1] energy_j, late
    cdef int[::1] lane_of, slice_of, member, first, place, lanes_at, kind
    cdef int64_t[:, ::1] part
    cdef object devices

    def __init__(
        self, *, devices, kind_of, partitions, idle_w, spare, slice_of, lane_of, capacity, energy_j, late, family_of,
        accuracy, quality, rate, peak, wake, floor, miss, limit, price, watt, least=0.0, running=None, switching=None,
    ):
        table = np.array(partitions, order="C")
        if table.ndim != 2 or not table.size or table.dtype.kind not in "iu":
            raise ValueError("partitions must be a table of whole numbers, one row a partition")
        if (table < 0).any() or (table > MOST_SLICES).any():
            raise ValueError(f"partitions must have 0 to {MOST_SLICES} of each slice")
        table = table.astype(np.int64)
        parts, slices = table.shape
        self.part = table
        numbers = np.array(devices)
        if numbers.ndim != 1 or not numbers.size or numbers.dtype.kind not in "iu":
            raise ValueError("devices must be a whole number for each kind")
        if numbers.min() < 1 or numbers.max() > MOST_DEVICES:
            raise ValueError(f"devices must be 1 to {MOST_DEVICES} of each kind")
        self.devices = numbers.tolist()
        self.kind = _places("kind_of", kind_of, parts, len(self.devices))
        if set(self.kind) != set(range(len(self.devices))):
            raise ValueError("each kind of device must have a partition")
        self.idle_w = _column("idle_w", idle_w, parts)
        self.spare = _column("spare", spare, parts)
        self.capacity = _column("capacity", capacity, None)
        groups = self.capacity.shape[0]
        self.slice_of = _places("slice_of", slice_of, groups, slices)
        self.accuracy = _column("accuracy", accuracy, None)
        lanes = self.accuracy.shape[0]
        self.lane_of = _places("lane_of", lane_of, groups, lanes)
        self.quality = _column("quality", quality, lanes)
        self.rate = _column("rate", rate, None)
        families = self.rate.shape[0]
        family_of = _places("family_of", family_of, lanes, families)
        if not 1 <= lanes <= MAX_LANES:
            raise ValueError(f"there may be 1 to {MAX_LANES} lanes, not {lanes}")
        if sorted(set(family_of)) != list(range(families)) or (np.diff(family_of) < 0).any():
            raise ValueError("family_of must be ascending, and each family must have a lane")
        self.lanes_at = np.searchsorted(np.asarray(family_of), np.arange(families + 1)).astype(np.intc)
        joules = np.array(energy_j, dtype=np.float64, order="C")
        tardy = np.array(late, dtype=np.float64, order="C")
        if joules.shape != tardy.shape or joules.ndim != 3 or joules.shape[0] != groups:
            raise ValueError("energy_j and late must be [groups, sizes, loads]")
        if joules.shape[1] < 1 or joules.shape[2] < 2:
            raise ValueError("energy_j and late must be of one size or more, and two loads or more")
        if not (np.isfinite(joules).all() and (tardy >= 0.0).all() and (tardy <= 1.0).all()):
            raise ValueError("energy_j must be finite, and late in 0..1")
        self.energy_j, self.late = joules, tardy
        self.peak = _column("peak", peak, families)
        self.wake = _column("wake", wake, families)
        self.floor = _column("floor", floor, families)
        self.miss = _column("miss", miss, families)
        self.limit = _column("limit", limit, families)
        self.price = _column("price", price, families)
        if min(self.capacity) <= 0.0 or min(self.rate) <= 0.0 or min(self.wake) <= 0.0:
            raise ValueError("capacity, rate and wake must be positive")
        if not (0.0 < min(self.miss) and max(self.miss) < 1.0 and 0.0 < min(self.limit) and max(self.limit) <= 1.0):
            raise ValueError("miss and limit must be between 0 and 1")
        if not 0.0 <= least < 1.0 or not 0.0 <= watt < float("inf"):
            raise ValueError("least must be in 0..1, and watt finite and not negative")
        if (running is None) != (switching is None):
            raise ValueError("running and switching are given together")
        self.running = _column("running", np.zeros(groups) if running is None else running, groups)
        self.switching = _column("switching", np.zeros(groups) if switching is None else switching, groups)
        for name, column in (
            ("price", self.price), ("idle_w", self.idle_w), ("spare", self.spare), ("running", self.running),
            ("switching", self.switching),
        ):
            if min(column) < 0.0:
                raise ValueError(f"{name} must not be negative")

        members = [[i for i in range(groups) if self.slice_of[i] == s] for s in range(slices)]
        if any(table[p, s] and not members[s] for p in range(parts) for s in range(slices)):
            raise ValueError("every slice of a partition needs a group")
        self.member = np.array([i for row in members for i in row], np.intc)
        self.first = np.cumsum([0, *(len(row) for row in members)]).astype(np.intc)
        self.place = np.zeros(groups, np.intc)
        for row in members:
            for i, j in enumerate(row):
                self.place[j] = i
        spread = 0.0
        for f in range(families):
            gains = [
                self.quality[self.lane_of[i]] - self.price[f] * e
                for i in range(groups) if family_of[self.lane_of[i]] == f for e in (joules[i].min(), joules[i].max())
            ]
            spread += max(gains) - min(gains) if gains else 0.0
        for k in range(len(self.devices)):
            watts = np.asarray(self.idle_w)[np.asarray(self.kind) == k]
            spread += watt * self.devices[k] * (watts.max() - watts.min())
        self.reach = np.array([max(float(np.ptp(np.asarray(self.accuracy)[np.asarray(family_of) == f])), 1e-6)
                               for f in range(families)])
        self.model = Model(
            groups=groups,
            slices=slices,
            parts=parts,
            lanes=lanes,
            families=families,
            sizes=joules.shape[1],
            loads=joules.shape[2] - 1,
            largest=max(self.devices),
            watt=watt,
            part_least=least,
            spread=max(spread, 1e-9),
            capacity=&self.capacity[0],
            energy_j=&self.energy_j[0, 0, 0],
            late=&self.late[0, 0, 0],
            running=&self.running[0],
            switching=&self.switching[0],
            lane_of=&self.lane_of[0],
            slice_of=&self.slice_of[0],
            member=&self.member[0],
            first=&self.first[0],
            place=&self.place[0],
            accuracy=&self.accuracy[0],
            quality=&self.quality[0],
            lanes_at=&self.lanes_at[0],
            rate=&self.rate[0],
            peak=&self.peak[0],
            wake=&self.wake[0],
            floor=&self.floor[0],
            miss=&self.miss[0],
            limit=&self.limit[0],
            price=&self.price[0],
            reach=&self.reach[0],
            part=&self.part[0, 0],
            kind=&self.kind[0],
            idle_w=&self.idle_w[0],
            spare=&self.spare[0],
        )

    cdef object _checked(self, counts, used):
        """Both as arrays, of one configuration or of one a row; ValueError where they are none of these devices."""
        given, cut = np.ascontiguousarray(counts), np.ascontiguousarray(used)
        for name, row, size in (("counts", given, self.model.groups), ("used", cut, self.model.parts)):
            if row.ndim not in (1, 2) or row.shape[row.ndim - 1] != size or row.dtype.kind not in "iu":
                raise ValueError(f"{name} must be {size} whole numbers")
            if (row < 0).any() or (row > 1e10).any():
                raise ValueError(f"{name} must not be negative, nor more than there can be")
        given, cut = given.astype(np.int64), cut.astype(np.int64)
        of_slice = np.asarray(self.slice_of)[:, None] == np.arange(self.model.slices)
        of_kind = np.asarray(self.kind)[:, None] == np.arange(len(self.devices))
        if given.ndim != cut.ndim or (cut @ of_kind != self.devices).any():
            raise ValueError("used must have all devices of each kind")
        if (given @ of_slice != cut @ np.asarray(self.part)).any():
            raise ValueError("the slices of counts are not those of the devices cut as used says")
        return given, cut

    def judge(self, counts, used):
        """What a configuration is worth, and with which shares."""
        cdef _Search search = _Search(self, 0, 1)
        cdef int f, v
        checked = self._checked(counts, used)
        if checked[0].ndim != 1:
            raise ValueError("counts and used must be those of one configuration")
        search.load(checked[0], checked[1])
        search.score()
        accuracy, energy_j = np.zeros(self.model.families), np.zeros(self.model.families)
        for f in range(self.model.families):
            for v in range(self.lanes_at[f], self.lanes_at[f + 1]):
                accuracy[f] += search.share[v] * self.accuracy[v]
                energy_j[f] += search.share[v] * search.joules[v]
        shares = np.array([search.share[v] for v in range(self.model.lanes)])
        return Judged(bool(search.good), search.value, shares, accuracy, energy_j)

    def judge_many(self, counts, used):
        """For each of many configurations, one a row, whether it keeps everything, and its value."""
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
            search.load(rows[i], parts[i])
            search.score()
            good[i] = search.good
            value[i] = search.value
        return feasible.astype(np.bool_), values


def _column(name, values, size):
    column = np.array(values, dtype=np.float64)
    if column.ndim != 1 or not column.size or (size is not None and column.shape[0] != size):
        raise ValueError(f"{name} must be one number each of {size or 'one or more'}")
    if not np.isfinite(column).all():
        raise ValueError(f"{name} must be finite")
    return column


def _places(name, values, size, below):
    column = np.array(values)
    if (
        column.shape != (size,) or not size or column.dtype.kind not in "iu" or column.min() < 0
        or column.max() >= below
    ):
        raise ValueError(f"{name} must be {size} whole numbers in 0..{below - 1}")
    return column.astype(np.intc)


@cython.final
cdef class _Search:
    """The state of one call of `solve`."""

    cdef Problem problem
    cdef const Model *p
    cdef object owned
    cdef double *count  # the configuration the search stands at
    cdef double *trial  # the one it looks at
    cdef int64_t *used
    cdef int64_t *trial_used
    cdef int *active  # the groups in use, in order
    cdef int *tried
    cdef int n_active, n_tried
    cdef clover_random random
    cdef bint good
    cdef double value
    cdef double lost  # what the trial misses
    cdef double penalty  # what that costs now
    cdef int levels
    cdef int64_t evaluations, proposals
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
        cdef Py_ssize_t groups = problem.model.groups, parts = problem.model.parts
        self.problem = problem
        self.p = &problem.model
        clover_random_seed(&self.random, seed, 0)
        self.owned = [
            np.zeros((3, groups)), np.zeros((3, parts), np.int64), np.zeros((2, groups), np.intc),
            np.zeros((keep, groups)), np.zeros((keep, parts), np.int64), np.zeros(keep),
        ]
        cdef double[:, ::1] numbers = self.owned[0]
        cdef int64_t[:, ::1] cuts = self.owned[1]
        cdef int[:, ::1] lists = self.owned[2]
        cdef double[:, ::1] best = self.owned[3]
        cdef int64_t[:, ::1] best_cuts = self.owned[4]
        cdef double[::1] values = self.owned[5]
        self.count, self.trial, self.nearest = &numbers[0, 0], &numbers[1, 0], &numbers[2, 0]
        self.used, self.trial_used, self.nearest_used = &cuts[0, 0], &cuts[1, 0], &cuts[2, 0]
        self.active, self.tried = &lists[0, 0], &lists[1, 0]
        self.kept, self.kept_used, self.kept_value = &best[0, 0], &best_cuts[0, 0], &values[0]
        self.keep = keep
        self.n_kept = self.worst = 0
        self.n_active = self.n_tried = 0
        self.levels = 1
        self.penalty = PENALTY * problem.model.spread
        self.evaluations = self.proposals = 0
        self.nearest_lost = 1e300
        self.nearest_value = -1e300

    cdef int load(self, counts, used) except -1:
        """Stand at a configuration, and look at it."""
        cdef int64_t[::1] given = counts
        cdef int64_t[::1] cut = used
        cdef Py_ssize_t i
        for i in range(self.p.groups):
            self.count[i] = <double>given[i]
        for i in range(self.p.parts):
            self.used[i] = cut[i]
        self._copy()
        return 0

    cdef inline void _copy(self) noexcept nogil:
        memcpy(self.trial, self.count, self.p.groups * sizeof(double))
        memcpy(self.trial_used, self.used, self.p.parts * sizeof(int64_t))

    cdef inline int64_t _below(self, int64_t n) noexcept nogil:
        """A whole number in 0..n-1."""
        return <int64_t>clover_random_below(&self.random, <uint64_t>n)

    cdef inline int64_t _size(self, int more) noexcept nogil:
        """How many slices or devices to move: uniform up to a random power of two."""
        return 1 + self._below(<int64_t>1 << self._below(self.levels + more))

    # --- what a configuration is worth --------------------------------------------------------------------------------

    cdef double score(self) noexcept nogil:
        """The trial's value, less what it misses; sets `good`, `value`, `lost` and the shares."""
        cdef const Model *p = self.p
        cdef double total, short, accuracy, need = 0.0, have = 0.0, lost = 0.0, more, value = 0.0, capacity
        cdef int f, v, i, j, n = 0, step
        cdef bint again = False
        for j in range(p.groups):
            self.tried[n] = j
            n += self.trial[j] != 0.0
        self.n_tried = n
        self.evaluations += 1
        for v in range(p.lanes):
            self.rows[v] = self.workers[v] = self.most[v] = self.least[v] = self.share[v] = self.gain[v] = 0.0
        for i in range(n):
            j = self.tried[i]
            v = p.lane_of[j]
            self.rows[v] += self.trial[j] * p.capacity[j]
            self.workers[v] += self.trial[j]
        for v in range(p.lanes):
            self._look_up(v)
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
                    self.least[v] = min(self.most[v], p.part_least * self.workers[v] / total)
            if capacity < p.peak[f]:
                need += (p.peak[f] - capacity) / p.wake[f]
        self._gains(self.most)
        for step in range(PASSES):
            for f in range(p.families):
                short = self._mix(f)
                if step == PASSES - 1 and short > EPSILON:
                    self.good = False
                    lost += short
            self._gains(self.share)
        self._mean(p.late, self.share, self.tardy)
        for f in range(p.families):
            total = self._late(f)
            if total > p.miss[f]:
                more = self._hurry(f, total)
                if more > p.miss[f] + EPSILON:
                    self.good = False
                    lost += log(more / p.miss[f])
                again = True
        if again:
            self._gains(self.share)
        for f in range(p.families):
            accuracy = 0.0
            for v in range(p.lanes_at[f], p.lanes_at[f + 1]):
                accuracy += self.share[v] * p.accuracy[v]
                value += self.share[v] * self.gain[v]
            if accuracy < p.floor[f] - EPSILON:
                self.good = False
                lost += (p.floor[f] - accuracy) / p.reach[f]
        for i in range(p.parts):
            if self.trial_used[i]:
                have += <double>self.trial_used[i] * p.spare[i]
                value -= p.watt * (<double>self.trial_used[i] * p.idle_w[i])
        if need > have + EPSILON:
            self.good = False
            lost += (need - have) / <double>p.largest
        for i in range(n):
            j = self.tried[i]
            more = self.trial[j] - p.running[j]
            if more > 0.0:
                value -= more * p.switching[j]
        self.value = value
        self.lost = lost
        return value - self.penalty * lost

    cdef inline void _look_up(self, int v) noexcept nogil:
        """Between which sizes lane v lies: powers of two, linear between."""
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
        """What `table` says of each lane at these shares."""
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
        for i in range(self.n_tried):
            j = self.tried[i]
            v = p.lane_of[j]
            row = table + (j * p.sizes + self.size[v]) * (p.loads + 1) + at[v]
            low = row[0] + part[v] * (row[1] - row[0])
            if self.between[v] != 0.0:
                row += p.loads + 1
                high = row[0] + part[v] * (row[1] - row[0])
                low += self.between[v] * (high - low)
            mean[v] += self.trial[j] * p.capacity[j] / self.rows[v] * low

    cdef void _gains(self, const double *shares) noexcept nogil:
        """The joules of a row of each lane at these shares, and what a whole share then gains."""
        cdef const Model *p = self.p
        cdef int f, v
        self._mean(p.energy_j, shares, self.joules)
        for f in range(p.families):
            for v in range(p.lanes_at[f], p.lanes_at[f + 1]):
                self.gain[v] = p.quality[v] - p.price[f] * self.joules[v]

    cdef inline double _late(self, int f) noexcept nogil:
        """The part of the family's rows that are late, as `tardy` says."""
        cdef double total = 0.0
        cdef int v
        for v in range(self.p.lanes_at[f], self.p.lanes_at[f + 1]):
            total += self.share[v] * self.tardy[v]
        return total

    cdef double _hurry(self, int f, double before) noexcept nogil:
        """Move the shares of family f until few enough rows are late, if they can be moved so; the part that is late.
        `before`: the part that is late at the present shares.  What a lane must get it gets, however late."""
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
        if self._mix(f) > EPSILON:
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

    cdef double _mix(self, int f) noexcept nogil:
        """The best shares of family f at the present gains; the part of its rows that finds no room is returned."""
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

    cdef bint _change_variant(self) noexcept nogil:
        cdef const Model *p = self.p
        cdef int j, first, among, other
        cdef double moved
        if self.n_active == 0:
            return False
        j = self.active[self._below(self.n_active)]
        first = p.first[p.slice_of[j]]
        among = p.first[p.slice_of[j] + 1] - first
        if among < 2:
            return False
        other = p.member[first + (p.place[j] + 1 + <int>self._below(among - 1)) % among]
        moved = min(<double>self._size(2), self.trial[j])
        if moved == 0.0:
            return False
        self.trial[j] -= moved
        self.trial[other] += moved
        return True

    cdef bint _change_partition(self) noexcept nogil:
        cdef const Model *p = self.p
        cdef int a, b, i, s, first, among
        cdef int64_t gpus, change, taken
        a = <int>self._below(p.parts)
        for i in range(p.parts):
            if self.trial_used[a]:
                break
            a = (a + 1) % p.parts
        b = <int>self._below(p.parts)
        if a == b or p.kind[a] != p.kind[b]:
            return False
        gpus = min(self._size(0), self.trial_used[a])
        self.trial_used[a] -= gpus
        self.trial_used[b] += gpus
        for s in range(p.slices):
            change = gpus * (p.part[b * p.slices + s] - p.part[a * p.slices + s])
            first = p.first[s]
            among = p.first[s + 1] - first
            while change < 0:
                i = self._in_use(first, among)
                taken = min(-change, <int64_t>self.trial[i])
                self.trial[i] -= <double>taken
                change += taken
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
        return self._change_variant() if self._below(2) == 0 else self._change_partition()

    cdef bint _propose(self) noexcept nogil:
        self._copy()
        if not self._move():
            return False
        if self._below(2):
            self._move()
            if self._below(2):
                self._move()
        return True

    cdef void accept(self) noexcept nogil:
        cdef double *trial = self.trial
        cdef int64_t *used = self.trial_used
        cdef int *tried = self.tried
        self.trial, self.count = self.count, trial
        self.trial_used, self.used = self.used, used
        self.tried, self.active = self.active, tried
        self.n_active = self.n_tried

    cdef void remember(self) noexcept nogil:
        """Keep the trial if it is among the best, and not there yet (perhaps on devices cut otherwise)."""
        cdef int i, at
        cdef bint same
        cdef double near = EPSILON * self.p.spread
        cdef size_t row = self.p.groups * sizeof(double)
        if self.lost < self.nearest_lost or (self.lost == self.nearest_lost and self.value > self.nearest_value):
            self.nearest_lost = self.lost
            self.nearest_value = self.value
            memcpy(self.nearest, self.trial, row)
            memcpy(self.nearest_used, self.trial_used, self.p.parts * sizeof(int64_t))
        if not self.good or (self.n_kept == self.keep and self.value <= self.kept_value[self.worst]):
            return
        for i in range(self.n_kept):
            same = memcmp(self.kept + i * self.p.groups, self.trial, row) == 0
            if same and fabs(self.kept_value[i] - self.value) <= near:
                return
        at = self.worst
        if self.n_kept < self.keep:
            at = self.n_kept
            self.n_kept += 1
        memcpy(self.kept + at * self.p.groups, self.trial, row)
        memcpy(self.kept_used + at * self.p.parts, self.trial_used, self.p.parts * sizeof(int64_t))
        self.kept_value[at] = self.value
        self.worst = 0
        for i in range(self.n_kept):
            if self.kept_value[i] < self.kept_value[self.worst]:
                self.worst = i

    cdef void run(self, int64_t first, int64_t last) noexcept nogil:
        """Cool once from where the search stands, between two numbers of evaluations."""
        cdef double hot = max(HOT, HOT_ALONE / <double>self.p.largest)
        cdef double progress, heat = hot * self.p.spread, falling = log(COLD / hot), now, gain
        cdef double value = self.value, lost = self.lost, score = value
        cdef int64_t moves = 0
        cdef int most = self.levels
        while True:
            if moves % LOOK == 0:
                progress = <double>(self.evaluations - first) / <double>(last - first)
                progress = max(progress, <double>moves / (<double>PATIENCE * <double>(last - first)))
                if progress >= 1.0:
                    break
                heat = hot * self.p.spread * exp(falling * progress)
                self.penalty = (PENALTY + (FIRM - PENALTY) * progress) * self.p.spread
                score = value - self.penalty * lost
                self.levels = 1 + <int>(<double>(most - 1) * (1.0 - 0.75 * progress) + 0.5)
            moves += 1
            if not self._propose():
                continue
            now = self.score()
            self.remember()
            gain = now - score
            if gain >= 0.0 or (gain > -40.0 * heat and exp(gain / heat) > clover_random_uniform(&self.random)):
                self.accept()
                score = now
                value = self.value
                lost = self.lost
        self.proposals += moves
        self.levels = most
        self.penalty = PENALTY * self.p.spread


def solve(Problem problem, seed, evaluations, starts, restarts=1, keep=16):
    """The best configurations within so many `evaluations`, shared among `restarts` coolings from the best of `starts`,
    each (counts, used)."""
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
        search.load(checked[0], checked[1])
        score = search.score()
        search.remember()
        if score > top:
            top = score
            origin = checked
    while (<int64_t>4 << search.levels) <= problem.model.largest:
        search.levels += 1
    scanned = search.evaluations
    budget = max(budget - scanned, turns)
    for turn in range(turns):
        search.load(origin[0], origin[1])
        search.score()
        search.accept()
        with nogil:
            search.run(scanned + budget * turn // turns, scanned + budget * (turn + 1) // turns)
    groups, parts = problem.model.groups, problem.model.parts
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
    return Solution(found, bool(found), nearest, search.evaluations, search.proposals)
