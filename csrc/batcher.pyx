"""The central queue of a family: rows wait here, and batches form at the moment a worker can take them.

Theory.  A lane is a queue that a set of workers serves (a variant); within it, rows of equal key (equal shape) may
share a batch, so each (lane, key) in use has a bucket.  A bucket orders its rows twice:
  - by (rank, arrival) in a pairing heap (`pairing_heap.pxd`), which says who goes next.
  - by arrival in a doubly linked list, which says who has waited longest.
Distinct keys in use at a time are few, so a lane's buckets are a list that is walked.

Ranks are those of weighted fair queueing.  The rows of one client in one lane are a flow, and each lane has a clock.  A
client is a number of the caller's: to the router, a connection, or a tenant; bits 40 and up are its weight, 0 of them a
weight of 1.  A row's rank is the clock, or the rank of its flow's last row plus one over its weight if that is later.
The clock is never behind the rank of the row that leaves, and advances by one over the weight of all flows for each row
that leaves.  So a flow alone is served first come, first served; of several that always have rows waiting, each is
served as many rows a round as its weight; a row of a flow that has none waiting is served within the round; and as the
clock advances, no stream of new flows holds up old ones for ever.  A flow is forgotten once none of its rows waits.
Rows that are cancelled give their ranks back to the flow's next rows.  A row that returns to the lane it left keeps its
rank; one from another lane gets a new one.  Rows of the background (a client below 0) are behind all others, and no
flow.  Alone they leave only for a worker with nothing out: what is staged is ahead of later rows.
(Start-time fair queueing, Goyal, Vin and Cheng 1996, with a clock as in WF2Q+, Bennett and Zhang 1996.)

A worker holds credits: one for the batch it runs, one for the batch staged behind it.  `dispatch` takes a lane that has
rows and a credit left (and, where the lane has a delay, rows that are ripe), of it the bucket with the earliest row,
and gives its earliest rows to the lane's worker with the fewest batches out.  A batch holds at most what its worker
takes and its lane allows.  A bucket is ripe when it has the rows of a full batch, when its oldest row has waited for
the delay, when a deadline falls before that or less than a batch later, and when the queue is not `patient`.

Workers of several lanes may form a group: a process that serves several variants, in turn (`worker_groups.pxd`).

Rows weigh.  A row may take as long as many others (a large picture), which `weigh` says.  It then counts as so many in
its flow's rank and in the clock, so that clients share the time of workers and not only their batches, and a batch ends
before the row with which its rows would weigh more than `HEAVY` beyond their number, unless that is its first one.

A row that cannot be answered in time any more is not dispatched but dropped: its deadline has passed, or will before
the lane's workers, which `expect` says how long they take at least, could be done with it.  A worker that has no batch
out is given every row whose deadline has not passed, so that a time that is too long is tried and corrected.  In a group
of several lanes that time is a batch's own, and what the batch before it still takes at least is added.

Nothing here reads a clock of the machine: every time is the caller's, in nanoseconds.  All state is C arrays made at
construction; the hot path allocates nothing and touches no Python object but its arguments and its answer.
"""

from cython.view cimport array as cvarray
from libc.stdint cimport INT64_MAX, INT64_MIN, int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from csrc.pairing_heap cimport before, meld, meld_siblings
from csrc.worker_groups cimport count_out, has_credit, has_idle, join_group, join_lane, leave_group, leave_lane


cdef enum:
    NONE = -1
    PENDING = -2
    DROPPED = -3
    MAX_SLOTS = 1 << 24
    MAX_TABLE = 1 << 16
    PATIENCE = 8  # batches of a group that pass a lane before it goes first
    UNIT = 1 << 16  # one row, in ranks: at a million rows/s a clock runs for four years
    HEAVY = 36  # what rows of a batch may weigh together, beyond one each
    MOST_WEIGHT = 1024
    WEIGHT_BITS = 40  # of a client's number, below its weight


cdef int64_t BACKGROUND = INT64_MAX  # the rank of rows that are behind all others
cdef uint64_t GOLDEN = 0x9E3779B97F4A7C15
cdef int64_t MAX_DELAY_NS = INT64_MAX // 4


cdef void *memory(Py_ssize_t count, Py_ssize_t size) except NULL:
    cdef void *block = malloc(count * size)
    if block == NULL:
        raise MemoryError
    return block


cdef cvarray owning(cvarray table):
    """Return `table` over a block from `memory`, which it frees from now on."""
    table.callback_free_data = free
    return table


cdef class Batcher:
    """A queue of rows of `lanes` lanes for `workers` workers; `capacity` bounds the rows waiting.

    Rows are known by their slot, 0 <= slot < `slots` (`capacity` if 0), at most one entry a slot.  `max_queue_delay_ns`
    is how long a row may wait for its batch to fill, in every lane until `set_lane` says otherwise, and while `patient`;
    0 never waits.  Indexes out of range raise IndexError, a slot queued twice ValueError.
    """

    def __cinit__(self, lanes, workers, capacity, max_queue_delay_ns=0, slots=0):
        cdef int32_t i, rows, heads = 1
        if not (1 <= lanes <= MAX_TABLE and 1 <= workers <= MAX_TABLE and 1 <= capacity <= MAX_SLOTS):
            raise ValueError("a batcher needs at least one lane, one worker and room for one row")
        if not (0 <= slots <= MAX_SLOTS and 0 <= max_queue_delay_ns <= MAX_DELAY_NS):
            raise ValueError("slots and max_queue_delay_ns must not be negative, nor absurdly large")
        self.capacity = capacity
        self.max_queue_delay_ns = max_queue_delay_ns
        rows = slots or capacity
        self._nodes = owning(<Node[:rows]>(<Node *>memory(rows, sizeof(Node))))
        self._buckets = owning(<Bucket[:rows]>(<Bucket *>memory(rows, sizeof(Bucket))))
        self._flows = owning(<Flow[:rows]>(<Flow *>memory(rows, sizeof(Flow))))
        while heads < rows:
            heads *= 2
        self._heads = owning(<int32_t[:heads]>(<int32_t *>memory(heads, sizeof(int32_t))))
        self._named = owning(<int32_t[:rows]>(<int32_t *>memory(rows, sizeof(int32_t))))
        self._lanes = owning(<Lane[:lanes]>(<Lane *>memory(lanes, sizeof(Lane))))
        self._workers = owning(<Worker[:workers]>(<Worker *>memory(workers, sizeof(Worker))))
        self._groups = owning(<Group[:workers]>(<Group *>memory(workers, sizeof(Group))))
        self._delay_ns = owning(<int64_t[:lanes]>(<int64_t *>memory(lanes, sizeof(int64_t))))
        self._largest = owning(<int32_t[:lanes]>(<int32_t *>memory(lanes, sizeof(int32_t))))
        self._max_batch = owning(<int32_t[:workers]>(<int32_t *>memory(workers, sizeof(int32_t))))
        self._weights = owning(<int32_t[:rows]>(<int32_t *>memory(rows, sizeof(int32_t))))
        self._delays = max_queue_delay_ns > 0
        self.patient = True
        for i in range(rows):
            self._nodes[i].bucket = NONE
            self._nodes[i].lane = NONE
            self._buckets[i].next = i + 1 if i + 1 < rows else NONE
            self._flows[i].next = i + 1 if i + 1 < rows else NONE
            self._weights[i] = 1
        for i in range(heads):
            self._heads[i] = NONE
        for i in range(<int32_t>lanes):
            self._lanes[i] = Lane(0, 0, NONE, 0, 0, 0, 0, NONE, 0, 0)  # buckets and cursor: none
            self._delay_ns[i] = max_queue_delay_ns
            self._largest[i] = MAX_SLOTS
        for i in range(<int32_t>workers):
            self._workers[i] = Worker(lane=NONE, most=0, group=i, outstanding=0, next=NONE, peer=NONE)
            self._groups[i] = Group(since_ns=0, credits=0, outstanding=0, members=0, first=NONE, lane=NONE)
            self._max_batch[i] = 0
        self._spare = self._spare_flow = 0
        self._dropped = NONE
        self.dropped = 0
        self._depth = 0
        self._order = 0

    # --- flows --------------------------------------------------------------------------------------------------------

    cdef int32_t _head_of(self, int32_t lane, int64_t client) noexcept nogil:
        """Return where in `_heads` the flows of (lane, client) begin."""
        cdef uint64_t mixed = (<uint64_t>client * MAX_TABLE + <uint64_t>lane) * GOLDEN
        return <int32_t>((mixed >> 32) & <uint64_t>(self._heads.shape[0] - 1))

    cdef int32_t _find_flow(self, int32_t lane, int64_t client) noexcept nogil:
        cdef int32_t flow = self._heads[self._head_of(lane, client)]
        while flow != NONE and (self._flows[flow].client != client or self._flows[flow].lane != lane):
            flow = self._flows[flow].next
        return flow

    cdef int32_t _flow_of(self, int32_t lane, int64_t client) noexcept nogil:
        """Return the flow of (lane, client), taken from the free list if there is none yet; NONE for the background."""
        cdef int32_t flow, head
        if client < 0:
            return NONE
        flow = self._find_flow(lane, client)
        if flow == NONE:
            head = self._head_of(lane, client)
            flow = self._spare_flow
            self._spare_flow = self._flows[flow].next
            self._flows[flow] = Flow(
                client=client, rank=self._lanes[lane].clock, lane=lane, rows=0, next=self._heads[head],
                weight=<int32_t>max(client >> WEIGHT_BITS, 1),
            )
            self._heads[head] = flow
            self._lanes[lane].weight += self._flows[flow].weight
        return flow

    cdef void _leave_flow(self, int32_t flow, int32_t slot, bint served) noexcept nogil:
        """Take the row in `slot` out of a flow.  The rank of one that was not served is given back."""
        cdef int32_t before, lane = self._flows[flow].lane
        cdef int32_t *link
        self._flows[flow].rows -= 1
        if self._flows[flow].rows:
            if not served:
                self._flows[flow].rank -= self._step(slot, self._flows[flow].weight)
            return
        link = &self._heads[self._head_of(lane, self._flows[flow].client)]
        while link[0] != flow:
            before = link[0]
            link = &self._flows[before].next
        link[0] = self._flows[flow].next
        self._flows[flow].next = self._spare_flow
        self._spare_flow = flow
        self._lanes[lane].weight -= self._flows[flow].weight

    cdef int64_t _step(self, int32_t slot, int64_t weight) noexcept nogil:
        """Return by how much the row in `slot` moves a rank or a clock that has this weight."""
        return <int64_t>UNIT * self._weights[slot] // weight

    # --- rows in and out ----------------------------------------------------------------------------------------------

    cdef int32_t _bucket_of(self, int32_t lane, int64_t key) noexcept nogil:
        """Return the bucket of (lane, key), taken from the free list if there is none yet."""
        cdef int32_t bucket = self._lanes[lane].buckets
        cdef int32_t first = bucket
        while bucket != NONE:
            if self._buckets[bucket].key == key:
                return bucket
            bucket = self._buckets[bucket].next
        bucket = self._spare
        self._spare = self._buckets[bucket].next
        self._buckets[bucket] = Bucket(
            key=key, lane=lane, depth=0, root=NONE, oldest=NONE, newest=NONE, next=first, previous=NONE
        )
        if first != NONE:
            self._buckets[first].previous = bucket
        self._lanes[lane].buckets = bucket
        return bucket

    cdef int64_t _rank_of(self, int32_t lane, int32_t slot, int32_t flow, bint again) noexcept nogil:
        """Return the rank of a row that is queued, `again` if it was dispatched before."""
        cdef int64_t rank
        if flow == NONE:
            return BACKGROUND
        if again and self._nodes[slot].lane == lane and self._nodes[slot].rank != BACKGROUND:
            return self._nodes[slot].rank
        rank = max(self._lanes[lane].clock, self._flows[flow].rank)
        self._flows[flow].rank = rank + self._step(slot, self._flows[flow].weight)
        return rank

    cdef void _insert(
        self, int32_t bucket, int32_t slot, int32_t flow, int64_t deadline_ns, int64_t since_ns
    ) noexcept nogil:
        cdef int32_t other, lane = self._buckets[bucket].lane
        self._nodes[slot] = Node(
            rank=self._rank_of(lane, slot, flow, since_ns == INT64_MIN),
            order=self._order,
            since_ns=since_ns,
            deadline_ns=deadline_ns,
            bucket=bucket,
            child=NONE,
            next=NONE,
            previous=NONE,
            later=NONE,
            earlier=NONE,
            lane=lane,
            flow=flow,
        )
        if flow != NONE:
            self._flows[flow].rows += 1
        self._order += 1
        other = self._buckets[bucket].root
        self._buckets[bucket].root = slot if other == NONE else meld(&self._nodes[0], other, slot)
        if since_ns == INT64_MIN:  # has waited before: in front of all others
            other = self._buckets[bucket].oldest
            self._nodes[slot].later = other
            if other == NONE:
                self._buckets[bucket].newest = slot
            else:
                self._nodes[other].earlier = slot
            self._buckets[bucket].oldest = slot
        else:
            other = self._buckets[bucket].newest
            self._nodes[slot].earlier = other
            if other == NONE:
                self._buckets[bucket].oldest = slot
            else:
                self._nodes[other].later = slot
            self._buckets[bucket].newest = slot
        self._buckets[bucket].depth += 1
        self._lanes[lane].depth += 1
        self._depth += 1

    cdef void _remove(self, int32_t slot, bint served) noexcept nogil:
        cdef Node node = self._nodes[slot]
        cdef int32_t bucket = node.bucket
        cdef int32_t rest = meld_siblings(&self._nodes[0], node.child) if node.child != NONE else NONE
        if self._buckets[bucket].root == slot:
            self._buckets[bucket].root = rest
        else:
            if self._nodes[node.previous].child == slot:
                self._nodes[node.previous].child = node.next
            else:
                self._nodes[node.previous].next = node.next
            if node.next != NONE:
                self._nodes[node.next].previous = node.previous
            if rest != NONE:
                meld(&self._nodes[0], self._buckets[bucket].root, rest)  # the root stays: nothing below it is earlier
        if node.earlier == NONE:
            self._buckets[bucket].oldest = node.later
        else:
            self._nodes[node.earlier].later = node.later
        if node.later == NONE:
            self._buckets[bucket].newest = node.earlier
        else:
            self._nodes[node.later].earlier = node.earlier
        self._nodes[slot].bucket = NONE
        if node.flow != NONE:
            self._leave_flow(node.flow, slot, served)
        self._depth -= 1
        self._lanes[self._buckets[bucket].lane].depth -= 1
        self._buckets[bucket].depth -= 1
        if self._buckets[bucket].depth == 0:
            self._give_back(bucket)

    cdef void _give_back(self, int32_t bucket) noexcept nogil:
        cdef int32_t next = self._buckets[bucket].next
        cdef int32_t previous = self._buckets[bucket].previous
        if previous == NONE:
            self._lanes[self._buckets[bucket].lane].buckets = next
        else:
            self._buckets[previous].next = next
        if next != NONE:
            self._buckets[next].previous = previous
        self._buckets[bucket].next = self._spare
        self._spare = bucket

    cdef int32_t _name(self, object slots) except -1:
        """Copy the slots of a push into `_named` and mark them.  On any error, unmark them and raise."""
        cdef const uint32_t[::1] view
        cdef int32_t done = 0
        cdef Py_ssize_t i
        try:
            if isinstance(slots, list):
                for slot in <list>slots:
                    done = self._name_one(slot, done)
            else:
                view = slots
                for i in range(view.shape[0]):
                    done = self._name_one(view[i], done)
        except BaseException:
            for i in range(done):
                self._nodes[self._named[i]].bucket = NONE
            raise
        return done

    cdef int32_t _name_one(self, int64_t slot, int32_t done) except -1:
        if not 0 <= slot < self._nodes.shape[0]:
            raise IndexError(f"slot {slot} is outside 0..{self._nodes.shape[0] - 1}")
        if self._nodes[slot].bucket != NONE:
            raise ValueError(f"slot {slot} is queued already")
        self._nodes[slot].bucket = PENDING
        self._named[done] = <int32_t>slot
        return done + 1

    cdef int _lane(self, Py_ssize_t lane) except -1:
        if not 0 <= lane < self._lanes.shape[0]:
            raise IndexError(f"lane {lane} is outside 0..{self._lanes.shape[0] - 1}")
        return lane

    cdef int _worker(self, Py_ssize_t worker) except -1:
        if not 0 <= worker < self._workers.shape[0]:
            raise IndexError(f"worker {worker} is outside 0..{self._workers.shape[0] - 1}")
        return worker

    cdef int _take_out(self, object out) except -1:
        if out is not self._out_owner:
            self._out = out
            self._out_owner = out
        if self._out.shape[0] == 0:
            raise ValueError("out has no room for a row")
        return 0

    cpdef weigh(self, int64_t slot, int64_t weight):
        """Let the rows that are queued in `slot` from now on weigh as much as `weight` rows (1 to 1024)."""
        if not 0 <= slot < self._nodes.shape[0]:
            raise IndexError(f"slot {slot} is outside 0..{self._nodes.shape[0] - 1}")
        if self._nodes[slot].bucket != NONE:
            raise ValueError(f"slot {slot} is queued already")
        self._weights[slot] = <int32_t>min(max(weight, 1), MOST_WEIGHT)

    cpdef bint push(
        self, Py_ssize_t lane, int64_t slot, int64_t deadline_ns, int64_t now_ns, int64_t key=0, int64_t client=0
    ) except -1:
        """Queue one row of `client` (below 0: the background).  False, and nothing is queued, if `capacity` rows wait
        already."""
        if not 0 <= slot < self._nodes.shape[0]:
            raise IndexError(f"slot {slot} is outside 0..{self._nodes.shape[0] - 1}")
        if not 0 <= lane < self._lanes.shape[0]:
            raise IndexError(f"lane {lane} is outside 0..{self._lanes.shape[0] - 1}")
        if self._nodes[slot].bucket != NONE:
            raise ValueError(f"slot {slot} is queued already")
        if self._depth >= self.capacity:
            return False
        self._insert(
            self._bucket_of(<int32_t>lane, key), <int32_t>slot, self._flow_of(<int32_t>lane, client), deadline_ns, now_ns
        )
        return True

    def push_many(self, lane, slots, int64_t deadline_ns, int64_t now_ns, int64_t key=0, int64_t client=0):
        """Queue the rows of one request (a list of ints or a uint32 array), all or none.  False if they do not fit."""
        cdef int32_t into = self._lane(lane), count = self._name(slots), i
        if self._depth + count > self.capacity:
            for i in range(count):
                self._nodes[self._named[i]].bucket = NONE
            return False
        self._insert_named(into, count, client, deadline_ns, now_ns, key)
        return True

    def requeue(self, lane, slots, int64_t deadline_ns, int64_t now_ns, int64_t key=0, int64_t client=0):
        """Queue rows again that were dispatched before, beyond the capacity and without waiting for a full batch."""
        cdef int32_t into = self._lane(lane), count = self._name(slots)
        self._insert_named(into, count, client, deadline_ns, INT64_MIN, key)

    cdef void _insert_named(
        self, int32_t lane, int32_t count, int64_t client, int64_t deadline_ns, int64_t since_ns, int64_t key
    ) noexcept:
        cdef int32_t bucket, flow, i
        if count == 0:
            return
        bucket = self._bucket_of(lane, key)
        flow = self._flow_of(lane, client)
        for i in range(count):
            self._insert(bucket, self._named[i], flow, deadline_ns, since_ns)

    def cancel(self, slot):
        """Take the row out of the queue.  False if it does not wait."""
        if not 0 <= slot < self._nodes.shape[0]:
            raise IndexError(f"slot {slot} is outside 0..{self._nodes.shape[0] - 1}")
        if self._nodes[<int32_t>slot].bucket < 0:
            return False
        self._remove(slot, False)
        return True

    cpdef list take_dropped(self):
        """Return the slots of the rows that were dropped since the last call; until then they cannot be queued
        again."""
        cdef list slots = []
        cdef int32_t slot = self._dropped
        while slot != NONE:
            slots.append(slot)
            self._nodes[slot].bucket = NONE
            slot = self._nodes[slot].next
        self._dropped = NONE
        self.dropped = 0
        return slots

    # --- workers and batches ------------------------------------------------------------------------------------------

    def set_lane(self, lane, max_batch, delay_ns):
        """Limit the lane's batches to `max_batch` rows (0: what their worker takes) from the next dispatch on.

        Its rows, also those that wait already, wait up to `delay_ns` for a batch to fill.
        """
        cdef int32_t index = self._lane(lane), worker = self._lanes[index].cursor, i
        if not (0 <= max_batch <= MAX_SLOTS and 0 <= delay_ns <= MAX_DELAY_NS):
            raise ValueError("max_batch and delay_ns must not be negative, nor absurdly large")
        self._largest[index] = max_batch or MAX_SLOTS
        self._delay_ns[index] = delay_ns
        self._delays = False
        for i in range(<int32_t>self._lanes.shape[0]):
            self._delays = self._delays or self._delay_ns[i] > 0
        for i in range(self._lanes[index].workers):
            self._workers[worker].most = min(self._max_batch[worker], self._largest[index])
            worker = self._workers[worker].next

    def attach(self, worker, lane, max_batch, credits=2, group=-1):
        """Let a detached worker serve `lane` in batches of up to `max_batch` rows, alone and with no batch out; in a
        `group` (a number below that of workers) it shares their credits, and batches that it had out stay counted."""
        cdef int32_t index = self._worker(worker), into = self._lane(lane)
        cdef int32_t among = self._worker(group) if group != -1 else index
        if self._workers[index].lane != NONE:
            raise ValueError(f"worker {worker} is attached already")
        if not 1 <= max_batch <= MAX_SLOTS or not 1 <= credits < MAX_TABLE // 2:  # all of a lane fit 32 bits
            raise ValueError("max_batch and credits must be positive, and not absurdly large")
        join_group(&self._groups[0], &self._workers[0], &self._lanes[0], index, into, among, credits, group == -1)
        self._max_batch[index] = max_batch
        self._workers[index].most = min(self._max_batch[index], self._largest[into])
        join_lane(&self._lanes[into], &self._workers[0], index, into, <int32_t>self._workers.shape[0])
        self._lanes[into].free += self._groups[among].credits - self._groups[among].outstanding

    def detach(self, worker):
        """Give the worker no more batches.  Those it has out stay counted until `credit` or the next `attach`."""
        cdef int32_t index = self._worker(worker), lane = self._workers[index].lane
        cdef Group *group = &self._groups[self._workers[index].group]
        if lane == NONE:
            raise ValueError(f"worker {worker} is not attached")
        leave_lane(&self._lanes[lane], &self._workers[0], index)
        leave_group(group, &self._workers[0], index)
        self._lanes[lane].free -= group.credits - group.outstanding

    cpdef expect(self, Py_ssize_t lane, int64_t expected_ns):
        """Expect that no batch of `lane` is done sooner than `expected_ns` after it was dispatched; from a group of
        several lanes, after the batch before it was done."""
        self._lanes[self._lane(lane)].expected_ns = min(max(expected_ns, 0), MAX_DELAY_NS)

    cdef int32_t _next_bucket(self, int64_t now_ns, int32_t *worker) noexcept nogil:
        """Return a bucket that a worker may serve now, and set that: of the first lane that has any, or the lane that
        goes before it in its group, the one with the earliest row."""
        cdef int32_t best = NONE, lane, other = NONE
        for lane in range(<int32_t>self._lanes.shape[0]):
            best = self._ripe_bucket(lane, now_ns)
            if best != NONE:
                break
        while best != NONE and other != best:
            worker[0] = self._next_worker(self._buckets[best].lane)
            other = best
            if self._groups[self._workers[worker[0]].group].members > 1:
                best = self._first_of_group(worker[0], best, now_ns)
        return best

    cdef int32_t _ripe_bucket(self, int32_t lane, int64_t now_ns) noexcept nogil:
        """Return the bucket of `lane` with the earliest row of those that may leave now; NONE if there is none."""
        cdef int32_t best = NONE, bucket, full
        if self._lanes[lane].depth == 0 or self._lanes[lane].free == 0:
            return NONE
        full = self._full(lane) if self._delays and self.patient and self._delay_ns[lane] else 0
        bucket = self._lanes[lane].buckets
        while bucket != NONE:
            if (self._buckets[bucket].depth >= full or self._ripe_ns(bucket, lane) <= now_ns) and (
                best == NONE or before(&self._nodes[0], self._buckets[bucket].root, self._buckets[best].root)
            ):
                best = bucket
            bucket = self._buckets[bucket].next
        if best != NONE and self._nodes[self._buckets[best].root].rank == BACKGROUND:
            if not has_idle(&self._groups[0], &self._workers[0], &self._lanes[lane]):
                return NONE
        return best

    cdef int32_t _first_of_group(self, int32_t worker, int32_t best, int64_t now_ns) noexcept nogil:
        """Return which bucket goes first in the group of `worker`: `best`, or a ripe one of another of its lanes."""
        cdef int32_t other = self._workers[worker].peer, bucket
        while other != worker:
            bucket = self._ripe_bucket(self._workers[other].lane, now_ns)
            if bucket != NONE and self._goes_before(bucket, best):
                best = bucket
            other = self._workers[other].peer
        return best

    cdef bint _goes_before(self, int32_t a, int32_t b) noexcept nogil:
        """Return whether bucket `a` goes before `b`, that of another lane of its group."""
        cdef Node *first = &self._nodes[self._buckets[a].root]
        cdef Node *second = &self._nodes[self._buckets[b].root]
        cdef bint overdue = self._lanes[first.lane].passed >= PATIENCE
        if (first.rank == BACKGROUND) != (second.rank == BACKGROUND):
            return second.rank == BACKGROUND
        if overdue != (self._lanes[second.lane].passed >= PATIENCE):
            return overdue
        if first.since_ns != second.since_ns:
            return first.since_ns < second.since_ns
        return first.order < second.order

    cdef void _pass_over(self, int32_t worker, int64_t now_ns) noexcept nogil:
        """Count a batch of `worker` at the lanes of its group that have ripe rows of clients too."""
        cdef int32_t other = self._workers[worker].peer, lane, bucket
        cdef bint ripe
        while other != worker:
            bucket = self._ripe_bucket(self._workers[other].lane, now_ns)
            ripe = bucket != NONE and self._nodes[self._buckets[bucket].root].rank != BACKGROUND
            lane = self._workers[other].lane
            self._lanes[lane].passed = self._lanes[lane].passed + 1 if ripe else 0
            other = self._workers[other].peer

    cdef int64_t _ripe_ns(self, int32_t bucket, int32_t lane) noexcept nogil:
        """Return when the rows of `bucket` have waited enough, full batch or not; INT64_MIN if they need not wait."""
        cdef int32_t slot = self._buckets[bucket].oldest
        cdef int64_t since_ns = self._nodes[slot].since_ns, ends_ns = since_ns + self._delay_ns[lane]
        if since_ns == INT64_MIN:
            return INT64_MIN
        while slot != NONE:  # they do not fill a batch, so they are few
            if self._nodes[slot].deadline_ns <= ends_ns + self._lanes[lane].expected_ns:
                return INT64_MIN
            slot = self._nodes[slot].later
        return ends_ns

    cdef int32_t _full(self, int32_t lane) noexcept nogil:
        """Return how many rows fill a batch of some worker of `lane` that has a credit left."""
        cdef int32_t worker = self._lanes[lane].cursor, least = MAX_SLOTS, i
        for i in range(self._lanes[lane].workers):
            if has_credit(&self._groups[0], &self._workers[worker]):
                least = min(least, self._workers[worker].most)
            worker = self._workers[worker].next
        return least

    cdef int32_t _next_worker(self, int32_t lane) noexcept nogil:
        """Return the worker with a credit left and the fewest batches out, the first such from the cursor on."""
        cdef int32_t worker = self._lanes[lane].cursor, best = NONE, least = 0, out, i
        for i in range(self._lanes[lane].workers):
            out = self._groups[self._workers[worker].group].outstanding
            if has_credit(&self._groups[0], &self._workers[worker]) and (best == NONE or out < least):
                best, least = worker, out
                if out == 0:
                    break
            worker = self._workers[worker].next
        return best

    cdef int64_t _done_ns(self, int32_t worker, int32_t lane, int64_t now_ns) noexcept nogil:
        """Return when a batch of `lane` that `worker` is given now is done at the earliest; `now_ns` if it has none
        out: it may be faster than expected."""
        cdef Group *group = &self._groups[self._workers[worker].group]
        cdef int64_t begins_ns = now_ns
        if group.outstanding == 0:
            return now_ns
        if group.members > 1 and group.outstanding == 1 and group.since_ns:
            begins_ns = max(now_ns, group.since_ns + self._lanes[group.lane].expected_ns)
        return begins_ns + self._lanes[lane].expected_ns

    cdef void _drop(self, int32_t slot) noexcept nogil:
        """Take a row that is too late out of the queue, for `take_dropped`."""
        self._remove(slot, False)
        self._nodes[slot].bucket = DROPPED
        self._nodes[slot].next = self._dropped
        self._dropped = slot
        self.dropped += 1

    cdef int32_t _form(self, int64_t now_ns, int32_t *chosen) noexcept nogil:
        """Fill `_out` with the next batch, take its worker's credit and return its rows, 0 if there is none."""
        cdef int32_t bucket, lane, worker = NONE, left, most, slot, n = 0, beyond = 0
        cdef int64_t too_early_ns
        cdef Group *group
        while n == 0:  # until some row of a bucket is not too late
            bucket = self._next_bucket(now_ns, &worker)
            if bucket == NONE:
                return 0
            lane = self._buckets[bucket].lane
            most = <int32_t>min(self._workers[worker].most, self._out.shape[0])
            too_early_ns = self._done_ns(worker, lane, now_ns)
            left = self._buckets[bucket].depth
            while left and n < most:
                slot = self._buckets[bucket].root
                left -= 1
                if self._nodes[slot].deadline_ns <= too_early_ns:
                    self._drop(slot)
                    continue
                beyond += self._weights[slot] - 1
                if n and beyond > HEAVY:
                    break
                self._out[n] = <uint32_t>slot
                n += 1
                if self._nodes[slot].flow != NONE:
                    self._lanes[lane].clock = max(
                        self._lanes[lane].clock + self._step(slot, min(self._lanes[lane].weight, UNIT)),
                        self._nodes[slot].rank,
                    )
                self._remove(slot, True)
        self._workers[worker].outstanding += 1
        group = &self._groups[self._workers[worker].group]
        group.lane = lane
        if group.outstanding == 0:
            group.since_ns = now_ns
        if group.members > 1:
            self._pass_over(worker, now_ns)
        self._lanes[lane].passed = 0
        count_out(group, &self._workers[0], &self._lanes[0], 1)
        self._lanes[lane].turn = (worker + 1) % <int32_t>self._workers.shape[0]
        self._lanes[lane].cursor = self._workers[worker].next
        chosen[0] = worker
        return n

    cpdef tuple dispatch(self, int64_t now_ns, out):
        """Return the next batch as (worker, n), its slots in `out[:n]` (uint32); None if there is none.

        At most len(out) rows are taken.  Rows that are too late are dropped: `dropped` counts them.
        """
        cdef int32_t worker = NONE, n
        self._take_out(out)
        n = self._form(now_ns, &worker)
        return (worker, n) if n else None

    cpdef bint claim(self, worker, int64_t now_ns) except -1:
        """Count a batch of rows that were not queued here as out, if the worker is attached and it and its group have
        nothing out; return whether it was counted."""
        cdef int32_t index = self._worker(worker), lane = self._workers[index].lane
        cdef Group *group = &self._groups[self._workers[index].group]
        if lane == NONE or group.outstanding:
            return False
        self._workers[index].outstanding += 1
        group.lane = lane
        group.since_ns = now_ns
        count_out(group, &self._workers[0], &self._lanes[0], 1)
        return True

    cpdef credit(self, worker, int64_t now_ns=0):
        """Count a batch of the worker as finished, at `now_ns` (0: not known).  ValueError if it has none out."""
        cdef int32_t index = self._worker(worker)
        cdef Group *group = &self._groups[self._workers[index].group]
        if self._workers[index].outstanding == 0:
            raise ValueError(f"worker {worker} has no batch out")
        self._workers[index].outstanding -= 1
        group.since_ns = now_ns  # the next batch, if there is one, begins
        count_out(group, &self._workers[0], &self._lanes[0], -1)

    def outstanding(self, worker):
        """Return how many batches the worker has out."""
        return self._workers[self._worker(worker)].outstanding

    # --- what may be asked --------------------------------------------------------------------------------------------

    def next_event_ns(self, int64_t now_ns):
        """Return when the nearest delay ends that a free worker waits for, never before `now_ns`; 0 if none does."""
        cdef int64_t event = INT64_MAX
        cdef int32_t lane, bucket
        cdef bint full, idle
        for lane in range(<int32_t>self._lanes.shape[0]):
            if not self._delay_ns[lane] or not self._lanes[lane].free:
                continue
            bucket = self._lanes[lane].buckets
            idle = has_idle(&self._groups[0], &self._workers[0], &self._lanes[lane])
            while bucket != NONE:
                if idle or self._nodes[self._buckets[bucket].root].rank != BACKGROUND:
                    full = not self.patient or self._buckets[bucket].depth >= self._full(lane)
                    event = min(event, now_ns if full else self._ripe_ns(bucket, lane))
                bucket = self._buckets[bucket].next
        return 0 if event == INT64_MAX else max(event, now_ns)

    cpdef bint saturated(self, Py_ssize_t lane) except -1:
        """Return whether rows of `lane` wait although its workers have no credit left."""
        cdef int32_t index = self._lane(lane)
        return self._lanes[index].depth > 0 and self._lanes[index].workers > 0 and self._lanes[index].free == 0

    cpdef int32_t most(self, Py_ssize_t worker) except -1:
        """Return how many rows a batch of `worker` holds: what it takes and its lane allows."""
        return self._workers[self._worker(worker)].most

    cpdef int64_t rows_ahead(self, Py_ssize_t lane, int64_t client, int64_t rows) except -1:
        """Return how many rows leave `lane` until the last of `rows` further ones of `client` has left, that one
        included: its own, and of each other flow no more than that, times how many times as heavy it is.

        A single row of a client that has none waiting is passed by none that come later.  Others may be, so the other
        flows are given as many rows again as they have, and as the client has.
        """
        cdef int32_t index = self._lane(lane), flow = self._find_flow(index, client)
        cdef int64_t own = rows, others, weight = max(client >> WEIGHT_BITS, 1), rest = self._lanes[index].weight
        if flow != NONE:
            own += self._flows[flow].rows
            rest -= weight
        others = self._lanes[index].depth + rows - own
        if own > 1:
            others = 2 * others + own
        return own + min(others, (own * rest + weight - 1) // weight)

    cpdef int64_t waiting_of(self, int64_t client) except -1:
        """Return how many rows of `client` wait, in all lanes."""
        cdef int64_t rows = 0
        cdef int32_t lane, flow
        for lane in range(<int32_t>self._lanes.shape[0]):
            flow = self._find_flow(lane, client)
            if flow != NONE:
                rows += self._flows[flow].rows
        return rows

    cpdef int32_t depth(self, Py_ssize_t lane=-1) except? -1:
        """Return how many rows wait in `lane`; in all lanes for -1."""
        return self._depth if lane == -1 else self._lanes[self._lane(lane)].depth

    def lane_has_worker(self, lane):
        """Return whether any worker is attached to `lane`."""
        return self._lanes[self._lane(lane)].workers > 0
