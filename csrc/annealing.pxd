"""Simulated annealing over configuration graphs: the walk and its moves, shared by the kernels `anneal` and `lanes`.

**The graph.**  A group is a variant on a kind of slice; a configuration is the number of workers in each group.  A
partition is one way to cut a device into slices.

**The walk.**  A search stands at one configuration (`count`, and `used`: how many devices have each partition) and
looks at another (`trial`, `trial_used`), which one to three moves make of a copy.  If the trial is accepted, the two
are swapped.

**Moves.**  Another variant on some slices of one kind (`change_variant`); or some devices from one partition to
another, where the slices that vanish are taken from random groups and those that appear go to one group a kind
(`change_slices`).  How many slices or devices a move takes is uniform up to a random power of two (`step_size`), the
largest of which shrinks from a share of all devices to its fourth root as the search cools: large problems take large
steps first.

**Cooling.**  The temperature falls geometrically with progress, from what one slice of N devices may be worth.
Progress is the share of the budget spent: evaluations, or moves where most of them lead nowhere.

All random numbers come from `Walk.random`, in the order of the moves: tests/reference/annealing.py draws the same.
"""

from clover._native.random cimport clover_random, clover_random_below, clover_random_seed, clover_random_uniform
from libc.math cimport exp, log
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy


cdef enum:
    LOOK = 64  # moves between two looks at the budget
    PATIENCE = 64  # moves for each evaluation paid for, where most do not lead to one


cdef struct Graph:
    int groups
    int slices
    int parts
    const int *slice_of  # by group
    const int *member  # the groups that may be used, by slice: member[first[s]] up to member[first[s + 1] - 1]
    const int *first
    const int *place  # of a group among those of its slice
    const int64_t *part  # [partition, slice]


cdef struct Walk:
    const Graph *graph
    clover_random random
    int counted  # partitions in `used`: all of the graph, or 0 where the search does without
    bint stale  # the trial is that of an earlier proposal
    int levels  # powers of two that step sizes are drawn from
    int n_active
    int n_tried
    double *count  # the configuration the search stands at
    double *trial  # the one it looks at
    int64_t *used
    int64_t *trial_used
    int *active  # the groups in use, in order
    int *tried
    int64_t evaluations
    int64_t proposals
    int64_t accepted


cdef struct Cooling:
    double hot  # the temperature at first, in units of the objective
    double fall  # the logarithm of the last temperature over the first
    int levels  # of the walk at first
    int64_t first  # the evaluations of the walk between which it cools; `last` is 0 if they are not limited
    int64_t last
    int64_t moves


# --- arrays -----------------------------------------------------------------------------------------------------------

cdef inline double *doubles(list owned, array) except NULL:
    """Return where the numbers of a contiguous float64 array lie.  `owned` keeps it alive."""
    flat = array.reshape(-1)
    owned.append(flat)
    cdef double[::1] numbers = flat
    return &numbers[0]


cdef inline int *ints(list owned, array) except NULL:
    """Return where the numbers of a contiguous intc array lie.  `owned` keeps it alive."""
    flat = array.reshape(-1)
    owned.append(flat)
    cdef int[::1] numbers = flat
    return &numbers[0]


cdef inline int64_t *longs(list owned, array) except NULL:
    """Return where the numbers of a contiguous int64 array lie.  `owned` keeps it alive."""
    flat = array.reshape(-1)
    owned.append(flat)
    cdef int64_t[::1] numbers = flat
    return &numbers[0]


cdef inline Graph make_graph(list owned, slice_of, list members, part) except *:
    """Return the graph of these groups: `members` lists those of each slice, `part` is [partition, slice]."""
    import numpy as np
    place = np.zeros(len(slice_of), np.intc)
    for row in members:
        place[row] = range(len(row))
    return Graph(
        groups=len(slice_of),
        slices=len(members),
        parts=len(part),
        slice_of=ints(owned, slice_of),
        member=ints(owned, np.array(sum(members, []), np.intc)),
        first=ints(owned, np.cumsum([0] + [len(row) for row in members]).astype(np.intc)),
        place=ints(owned, place),
        part=longs(owned, part),
    )


# --- the walk ---------------------------------------------------------------------------------------------------------

cdef inline Walk make_walk(list owned, const Graph *graph, seed, bint counted) except *:
    """Return a walk that stands nowhere yet.  `counted`: whether it knows how many devices have each partition."""
    import numpy as np
    cdef Walk walk
    clover_random_seed(&walk.random, seed, 0)
    walk.graph = graph
    walk.counted = graph.parts if counted else 0
    walk.stale = False
    walk.levels = 1
    walk.n_active = walk.n_tried = 0
    walk.count = doubles(owned, np.zeros(graph.groups))
    walk.trial = doubles(owned, np.zeros(graph.groups))
    walk.used = longs(owned, np.zeros(graph.parts, np.int64))
    walk.trial_used = longs(owned, np.zeros(graph.parts, np.int64))
    walk.active = ints(owned, np.zeros(graph.groups, np.intc))
    walk.tried = ints(owned, np.zeros(graph.groups, np.intc))
    walk.evaluations = walk.proposals = walk.accepted = 0
    return walk


cdef inline void copy_trial(Walk *walk) noexcept nogil:
    """Make the trial the configuration that the walk stands at."""
    memcpy(walk.trial, walk.count, walk.graph.groups * sizeof(double))
    memcpy(walk.trial_used, walk.used, walk.counted * sizeof(int64_t))
    walk.stale = False


cdef inline int stand_at(Walk *walk, const int64_t[::1] counts, const int64_t[::1] used) except -1:
    """Go to a configuration, and look at it."""
    cdef int i
    for i in range(walk.graph.groups):
        walk.count[i] = <double>counts[i]
    for i in range(walk.graph.parts):
        walk.used[i] = used[i]
    copy_trial(walk)
    return 0


cdef inline int list_tried(Walk *walk) noexcept nogil:
    """List the groups that the trial uses, in order, and return how many they are."""
    cdef double *trial = walk.trial
    cdef int *tried = walk.tried
    cdef int j, n = 0
    for j in range(walk.graph.groups):
        tried[n] = j
        n += trial[j] != 0.0
    walk.n_tried = n
    return n


cdef inline void swap_trial(Walk *walk) noexcept nogil:
    """Go to the trial."""
    walk.trial, walk.count = walk.count, walk.trial
    walk.trial_used, walk.used = walk.used, walk.trial_used
    walk.tried, walk.active = walk.active, walk.tried
    walk.n_active = walk.n_tried


# --- moves ------------------------------------------------------------------------------------------------------------

cdef inline int64_t draw(Walk *walk, int64_t bound) noexcept nogil:
    """Return a random whole number in 0..bound-1."""
    return <int64_t>clover_random_below(&walk.random, <uint64_t>bound)


cdef inline int64_t step_size(Walk *walk, int more) noexcept nogil:
    """Return how many slices or devices to move: uniform up to a random power of two, `more` powers than `levels`."""
    return 1 + draw(walk, <int64_t>1 << draw(walk, walk.levels + more))


cdef inline bint change_variant(Walk *walk) noexcept nogil:
    """Move some workers of a random group of the configuration to another variant.  False if that is not possible."""
    cdef const Graph *graph = walk.graph
    cdef int j, first, among, other
    cdef double moved
    if walk.n_active == 0:
        return False
    j = walk.active[draw(walk, walk.n_active)]
    first = graph.first[graph.slice_of[j]]
    among = graph.first[graph.slice_of[j] + 1] - first
    if among < 2:
        return False
    if walk.stale:
        copy_trial(walk)
    other = graph.member[first + (graph.place[j] + 1 + <int>draw(walk, among - 1)) % among]
    moved = min(<double>step_size(walk, 2), walk.trial[j])
    if moved == 0.0:  # an earlier move of the same proposal emptied the group
        return False
    walk.trial[j] -= moved
    walk.trial[other] += moved
    return True


cdef inline int draw_partition(Walk *walk) noexcept nogil:
    """Return a random partition that some device of the trial has."""
    cdef int a = <int>draw(walk, walk.graph.parts), i
    for i in range(walk.graph.parts):
        if walk.trial_used[a]:
            break
        a = (a + 1) % walk.graph.parts
    return a


cdef inline int draw_group(Walk *walk, int first, int among) noexcept nogil:
    """Return a random group of a slice, one that the trial uses if there is any."""
    cdef const Graph *graph = walk.graph
    cdef int at = <int>draw(walk, among), i
    for i in range(among):
        if walk.trial[graph.member[first + at]] > 0.0:
            break
        at = (at + 1) % among
    return graph.member[first + at]


cdef inline void change_slices(Walk *walk, int s, int64_t change) noexcept nogil:
    """Take slices of one kind from random groups (`change` < 0), or give them to one (`change` > 0)."""
    cdef int first = walk.graph.first[s], among = walk.graph.first[s + 1] - first, j
    cdef int64_t taken
    while change < 0:
        j = draw_group(walk, first, among)
        taken = min(-change, <int64_t>walk.trial[j])
        walk.trial[j] -= <double>taken
        change += taken
    if change > 0:
        if draw(walk, 2):
            j = draw_group(walk, first, among)
        else:
            j = walk.graph.member[first + <int>draw(walk, among)]
        walk.trial[j] += <double>change


# --- cooling ----------------------------------------------------------------------------------------------------------

cdef inline double first_temperature(int64_t devices) noexcept nogil:
    """Return the temperature to begin at, in units of what the objective may vary by.

    With one device it is 0.6; with N an Nth of that, as one slice weighs less, but 0.01 at least.
    """
    return max(0.01, 0.6 / <double>devices)


cdef inline int first_levels(int64_t devices) noexcept nogil:
    """Return how many powers of two step sizes are drawn from at first: a move takes up to a quarter of the devices."""
    cdef int levels = 1
    while (<int64_t>4 << levels) <= devices:
        levels += 1
    return levels


cdef inline Cooling begin_cooling(
    Walk *walk, double hot, double cold, double spread, int64_t first, int64_t last
) noexcept nogil:
    """Return a cooling from `hot` to `cold`, in units of `spread`, between two numbers of evaluations."""
    return Cooling(hot=hot * spread, fall=log(cold / hot), levels=walk.levels, first=first, last=last, moves=0)


cdef inline double progress(const Walk *walk, const Cooling *cooling) noexcept nogil:
    """Return the share of the evaluations, or of the moves that they allow, that is spent; 0 if they have no limit."""
    cdef double all = <double>(cooling.last - cooling.first)
    if cooling.last == 0:
        return 0.0
    return max(<double>(walk.evaluations - cooling.first) / all, <double>cooling.moves / (<double>PATIENCE * all))


cdef inline double cool(Walk *walk, const Cooling *cooling, double spent) noexcept nogil:
    """Shrink the steps as far as the share of the budget `spent` asks, and return the temperature."""
    walk.levels = 1 + <int>(<double>(cooling.levels - 1) * (1.0 - 0.75 * spent) + 0.5)
    return cooling.hot * exp(cooling.fall * spent)


cdef inline bint accepts(Walk *walk, double gain, double heat) noexcept nogil:
    """Return whether a trial that is better by `gain` is accepted (Metropolis)."""
    return gain >= 0.0 or (gain > -40.0 * heat and exp(gain / heat) > clover_random_uniform(&walk.random))


cdef inline void end_cooling(Walk *walk, const Cooling *cooling) noexcept nogil:
    walk.proposals += cooling.moves
    walk.levels = cooling.levels
