"""Which workers serve a lane, and which share their credits: two circles of workers, by lane and by group.

The attached workers of a lane are in a circle by index, which `Lane.cursor` walks, so that ties rotate.

The attached workers of a group, each of another lane, are in a circle too.  The group counts the batches that they have
out together, and each of its lanes has the credits that are left among its `free` ones: what leaves for one lane is
missing in all.  A worker that is alone is a group of one.

A group is one queue: of its lanes with ripe rows the one whose next row has waited longest goes first, those with rows
of the background alone last.  (Ranks of different lanes cannot be compared.)  The next row of a lane may have come
late, as its client has had little; so that no lane waits for long behind the many rows of another, one that `PATIENCE`
batches of its group have passed goes before those that were not.
"""

from libc.stdint cimport int32_t

from clover._native.batcher cimport Group, Lane, Worker


cdef enum:
    NONE = -1


cdef inline bint has_credit(Group *groups, Worker *worker) noexcept nogil:
    return groups[worker.group].outstanding < groups[worker.group].credits


cdef inline bint has_idle(Group *groups, Worker *workers, Lane *lane) noexcept nogil:
    """Return whether a worker of `lane` has nothing out, in its group neither."""
    cdef int32_t worker = lane.cursor, i
    for i in range(lane.workers):
        if groups[workers[worker].group].outstanding == 0:
            return True
        worker = workers[worker].next
    return False


cdef inline void count_out(Group *group, Worker *workers, Lane *lanes, int32_t batches) noexcept nogil:
    """Count so many more batches out of a group; its lanes have as many credits less."""
    cdef int32_t worker = group.first, i
    group.outstanding += batches
    for i in range(group.members):
        lanes[workers[worker].lane].free -= batches
        worker = workers[worker].peer


cdef inline int join_group(
    Group *groups, Worker *workers, Lane *lanes, int32_t worker, int32_t lane, int32_t into, int32_t credits, bint alone
) except -1:
    """Make a detached worker, which is to serve `lane`, a member of the group `into`; raises ValueError if that cannot
    be.  `alone`: without the batches that were out."""
    cdef Group *group = &groups[into]
    cdef int32_t other = group.first, held = workers[worker].outstanding, i
    cdef bint here = workers[worker].group == into
    if group.members and (alone or group.credits != credits):
        raise ValueError(f"group {into} has {group.members} workers with {group.credits} credits already")
    for i in range(group.members):
        if workers[other].lane == lane:
            raise ValueError(f"a worker of group {into} serves lane {lane} already")
        other = workers[other].peer
    if (held and not here and not alone) or group.outstanding - (held if here and alone else 0) > credits:
        raise ValueError(f"too many batches are out for worker {worker} to join group {into}")
    if held and alone:
        count_out(&groups[workers[worker].group], workers, lanes, -held)
        workers[worker].outstanding = 0
    group.credits = credits
    workers[worker].group = into
    if group.members:
        workers[worker].peer = workers[group.first].peer
        workers[group.first].peer = worker
    else:
        workers[worker].peer = worker
        group.first = worker
    group.members += 1
    return 0


cdef inline void leave_group(Group *group, Worker *workers, int32_t worker) noexcept nogil:
    cdef int32_t before = worker
    while workers[before].peer != worker:
        before = workers[before].peer
    workers[before].peer = workers[worker].peer
    group.first = before if before != worker else NONE
    group.members -= 1


cdef inline void join_lane(Lane *lane, Worker *workers, int32_t worker, int32_t number, int32_t span) noexcept nogil:
    """Put a worker into the circle of `lane`, whose number is `number`; `span` is how many workers there could be."""
    cdef int32_t before
    workers[worker].lane = number
    workers[worker].next = worker
    if lane.cursor == NONE:
        lane.cursor = worker
    else:
        before = lane.cursor  # walk on to the last one below `worker`, round the circle
        while (worker - workers[before].next + span) % span < (worker - before + span) % span:
            before = workers[before].next
            if before == lane.cursor:
                break
        workers[worker].next = workers[before].next
        workers[before].next = worker
        if (worker - lane.turn + span) % span < (lane.cursor - lane.turn + span) % span:
            lane.cursor = worker
    lane.workers += 1


cdef inline void leave_lane(Lane *lane, Worker *workers, int32_t worker) noexcept nogil:
    cdef int32_t before = worker
    while workers[before].next != worker:
        before = workers[before].next
    workers[before].next = workers[worker].next
    if lane.cursor == worker:
        lane.cursor = workers[worker].next if before != worker else NONE
    lane.workers -= 1
    lane.passed = 0
    workers[worker].lane = NONE
