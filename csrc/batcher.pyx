"""The central queue of a family: rows wait here, and batches form at the moment a worker can take them.

Theory.  A lane is a queue that a set of workers serves (a variant); within it, rows of equal key (equal shape) may
share a batch, so each (lane, key) in use has a bucket.  A bucket orders its rows twice:
  - by (deadline, arrival) in a pairing heap, which says who goes next.  The heap lives in the nodes themselves, one
    node a slot, so it needs no memory of its own, pushes in O(1), and removes any row, the first or a cancelled one,
    in amortised O(log n).  With equal time-outs rows arrive in order, and a push is then one comparison.
  - by arrival in a doubly linked list, which says who has waited longest.
Distinct keys in use at a time are few, so a lane's buckets are a list that is walked.

A worker holds credits: one for the batch it runs, one for the batch staged behind it.  `dispatch` takes the bucket
with the earliest row among the lanes that have a credit left (and, where the lane has a delay, that are ripe), and
gives its earliest rows to the lane's worker with the fewest batches out.  A batch holds at most what its worker takes
and its lane allows.  A bucket is ripe when it has the rows of a full batch, when its oldest row has waited for the
delay, and when a deadline falls before that, so that waiting on would only miss it.  Nothing here reads a clock: every
time is the caller's, in nanoseconds.

All state is C arrays made at construction; the hot path allocates nothing and touches no Python object but its
arguments and its answer.
"""

from cython.view cimport array as cvarray
from libc.stdint cimport INT64_MAX, INT64_MIN, int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc


cdef enum:
    NONE = -1
    PENDING = -2
    MAX_SLOTS = 1 << 24
    MAX_TABLE = 1 << 16


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
    is how long a row may wait for its batch to fill, in every lane until `set_lane` says otherwise; 0 never waits.
    Indexes out of range raise IndexError, a slot queued twice ValueError.
    """

    def __cinit__(self, lanes, workers, capacity, max_queue_delay_ns=0, slots=0):
        cdef int32_t i, rows
        if not (1 <= lanes <= MAX_TABLE and 1 <= workers <= MAX_TABLE and 1 <= capacity <= MAX_SLOTS):
            raise ValueError("a batcher needs at least one lane, one worker and room for one row")
        if not (0 <= slots <= MAX_SLOTS and 0 <= max_queue_delay_ns <= MAX_DELAY_NS):
            raise ValueError("slots and max_queue_delay_ns must not be negative, nor absurdly large")
        self.capacity = capacity
        self.max_queue_delay_ns = max_queue_delay_ns
        rows = slots or capacity
        self._nodes = owning(<Node[:rows]>(<Node *>memory(rows, sizeof(Node))))
        self._buckets = owning(<Bucket[:rows]>(<Bucket *>memory(rows, sizeof(Bucket))))
        self._named = owning(<int32_t[:rows]>(<int32_t *>memory(rows, sizeof(int32_t))))
        self._lanes = owning(<Lane[:lanes]>(<Lane *>memory(lanes, sizeof(Lane))))
        self._workers = owning(<Worker[:workers]>(<Worker *>memory(workers, sizeof(Worker))))
        self._delay_ns = owning(<int64_t[:lanes]>(<int64_t *>memory(lanes, sizeof(int64_t))))
        self._largest = owning(<int32_t[:lanes]>(<int32_t *>memory(lanes, sizeof(int32_t))))
        self._max_batch = owning(<int32_t[:workers]>(<int32_t *>memory(workers, sizeof(int32_t))))
        self._delays = max_queue_delay_ns > 0
        for i in range(rows):
            self._nodes[i].bucket = NONE
            self._buckets[i].next = i + 1 if i + 1 < rows else NONE
        for i in range(<int32_t>lanes):
            self._lanes[i] = Lane(buckets=NONE, depth=0, workers=0, free=0, turn=0, cursor=NONE)
            self._delay_ns[i] = max_queue_delay_ns
            self._largest[i] = MAX_SLOTS
        for i in range(<int32_t>workers):
            self._workers[i] = Worker(lane=NONE, most=0, credits=0, outstanding=0, next=NONE)
            self._max_batch[i] = 0
        self._spare = 0
        self._depth = 0
        self._order = 0

    # --- the pairing heap of a bucket ---------------------------------------------------------------------------------

    cdef bint _before(self, int32_t a, int32_t b) noexcept nogil:
        if self._nodes[a].deadline_ns != self._nodes[b].deadline_ns:
            return self._nodes[a].deadline_ns < self._nodes[b].deadline_ns
        return self._nodes[a].order < self._nodes[b].order

    cdef int32_t _meld(self, int32_t a, int32_t b) noexcept nogil:
        """Join two heaps: the later root becomes the first child of the earlier one."""
        cdef int32_t first
        if self._before(b, a):
            a, b = b, a
        first = self._nodes[a].child
        self._nodes[b].next = first
        self._nodes[b].previous = a
        if first != NONE:
            self._nodes[first].previous = b
        self._nodes[a].child = b
        return a

    cdef int32_t _meld_siblings(self, int32_t first) noexcept nogil:
        """Join a list of siblings, in the two passes that give the pairing heap its amortised bound."""
        cdef int32_t done = NONE  # melded pairs, last first, linked by `next`
        cdef int32_t a = first, b, rest, root
        while a != NONE:
            b = self._nodes[a].next
            if b == NONE:
                self._nodes[a].next = done
                done = a
                break
            rest = self._nodes[b].next
            root = self._meld(a, b)
            self._nodes[root].next = done
            done = root
            a = rest
        root = done
        if root != NONE:
            done = self._nodes[root].next
            while done != NONE:
                rest = self._nodes[done].next
                root = self._meld(root, done)
                done = rest
        return root

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

    cdef void _insert(self, int32_t bucket, int32_t slot, int64_t deadline_ns, int64_t since_ns) noexcept nogil:
        cdef int32_t other
        self._nodes[slot] = Node(
            deadline_ns=deadline_ns,
            order=self._order,
            since_ns=since_ns,
            bucket=bucket,
            child=NONE,
            next=NONE,
            previous=NONE,
            later=NONE,
            earlier=NONE,
        )
        self._order += 1
        other = self._buckets[bucket].root
        self._buckets[bucket].root = slot if other == NONE else self._meld(other, slot)
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
        self._lanes[self._buckets[bucket].lane].depth += 1
        self._depth += 1

    cdef void _remove(self, int32_t slot) noexcept nogil:
        cdef Node node = self._nodes[slot]
        cdef int32_t bucket = node.bucket
        cdef int32_t rest = self._meld_siblings(node.child) if node.child != NONE else NONE
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
                self._meld(self._buckets[bucket].root, rest)  # the root stays: nothing below it is earlier
        if node.earlier == NONE:
            self._buckets[bucket].oldest = node.later
        else:
            self._nodes[node.earlier].later = node.later
        if node.later == NONE:
            self._buckets[bucket].newest = node.earlier
        else:
            self._nodes[node.later].earlier = node.earlier
        self._nodes[slot].bucket = NONE
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

    cdef int _lane(self, lane) except -1:
        if not 0 <= lane < self._lanes.shape[0]:
            raise IndexError(f"lane {lane} is outside 0..{self._lanes.shape[0] - 1}")
        return lane

    cdef int _worker(self, worker) except -1:
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

    cpdef bint push(self, Py_ssize_t lane, int64_t slot, int64_t deadline_ns, int64_t now_ns, int64_t key=0) except -1:
        """Queue one row.  False, and nothing is queued, if `capacity` rows wait already."""
        if not 0 <= slot < self._nodes.shape[0]:
            raise IndexError(f"slot {slot} is outside 0..{self._nodes.shape[0] - 1}")
        if not 0 <= lane < self._lanes.shape[0]:
            raise IndexError(f"lane {lane} is outside 0..{self._lanes.shape[0] - 1}")
        if self._nodes[slot].bucket != NONE:
            raise ValueError(f"slot {slot} is queued already")
        if self._depth >= self.capacity:
            return False
        self._insert(self._bucket_of(<int32_t>lane, key), <int32_t>slot, deadline_ns, now_ns)
        return True

    def push_many(self, lane, slots, int64_t deadline_ns, int64_t now_ns, int64_t key=0):
        """Queue the rows of one request (a list of ints or a uint32 array), all or none.  False if they do not fit."""
        cdef int32_t into = self._lane(lane), count = self._name(slots), i
        if self._depth + count > self.capacity:
            for i in range(count):
                self._nodes[self._named[i]].bucket = NONE
            return False
        self._insert_named(into, count, deadline_ns, now_ns, key)
        return True

    def requeue(self, lane, slots, int64_t deadline_ns, int64_t now_ns, int64_t key=0):
        """Queue rows again that were dispatched before, beyond the capacity and without waiting for a full batch."""
        cdef int32_t into = self._lane(lane), count = self._name(slots)
        self._insert_named(into, count, deadline_ns, INT64_MIN, key)

    cdef void _insert_named(
        self, int32_t lane, int32_t count, int64_t deadline_ns, int64_t since_ns, int64_t key
    ) noexcept:
        cdef int32_t bucket, i
        if count == 0:
            return
        bucket = self._bucket_of(lane, key)
        for i in range(count):
            self._insert(bucket, self._named[i], deadline_ns, since_ns)

    def cancel(self, slot):
        """Take the row out of the queue.  False if it does not wait."""
        if not 0 <= slot < self._nodes.shape[0]:
            raise IndexError(f"slot {slot} is outside 0..{self._nodes.shape[0] - 1}")
        if self._nodes[<int32_t>slot].bucket == NONE:
            return False
        self._remove(slot)
        return True

    def expire(self, int64_t now_ns, out):
        """Take out rows whose deadline is not after `now_ns`: write their slots to `out[:n]` (uint32) and return n.

        Where n equals the length of `out` there may be more.  Within a lane and key the earliest come first.
        """
        cdef int32_t lane, bucket, following, slot
        cdef Py_ssize_t n = 0
        self._take_out(out)
        for lane in range(<int32_t>self._lanes.shape[0]):
            bucket = self._lanes[lane].buckets
            while bucket != NONE:
                following = self._buckets[bucket].next
                while self._buckets[bucket].depth:
                    slot = self._buckets[bucket].root
                    if self._nodes[slot].deadline_ns > now_ns:
                        break
                    if n == self._out.shape[0]:
                        return n
                    self._out[n] = <uint32_t>slot
                    n += 1
                    self._remove(slot)
                bucket = following
        return n

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

    def attach(self, worker, lane, max_batch, credits=2):
        """Let a detached worker serve `lane` in batches of up to `max_batch` rows, with no batch out."""
        cdef int32_t index = self._worker(worker), into = self._lane(lane), before
        cdef Lane *entry = &self._lanes[into]
        cdef int32_t span = <int32_t>self._workers.shape[0]
        if self._workers[index].lane != NONE:
            raise ValueError(f"worker {worker} is attached already")
        if not 1 <= max_batch <= MAX_SLOTS or not 1 <= credits <= MAX_TABLE:
            raise ValueError("max_batch and credits must be positive")
        self._max_batch[index] = max_batch
        self._workers[index] = Worker(
            lane=into, most=min(self._max_batch[index], self._largest[into]), credits=credits, outstanding=0, next=index
        )
        if entry.cursor == NONE:
            entry.cursor = index
        else:
            before = entry.cursor  # walk on to the last one below `index`, round the circle
            while (index - self._workers[before].next + span) % span < (index - before + span) % span:
                before = self._workers[before].next
                if before == entry.cursor:
                    break
            self._workers[index].next = self._workers[before].next
            self._workers[before].next = index
            if (index - entry.turn + span) % span < (entry.cursor - entry.turn + span) % span:
                entry.cursor = index
        entry.workers += 1
        entry.free += self._workers[index].credits

    def detach(self, worker):
        """Give the worker no more batches.  Those it has out stay counted until `credit` or the next `attach`."""
        cdef int32_t index = self._worker(worker), before
        cdef int32_t lane = self._workers[index].lane
        if lane == NONE:
            raise ValueError(f"worker {worker} is not attached")
        before = index
        while self._workers[before].next != index:
            before = self._workers[before].next
        self._workers[before].next = self._workers[index].next
        if self._lanes[lane].cursor == index:
            self._lanes[lane].cursor = self._workers[index].next if before != index else NONE
        self._lanes[lane].workers -= 1
        self._lanes[lane].free -= self._workers[index].credits - self._workers[index].outstanding
        self._workers[index].lane = NONE

    cdef int32_t _next_bucket(self, int64_t now_ns) noexcept nogil:
        """Return the bucket whose first row is the earliest among those that a worker may serve now."""
        cdef int32_t best = NONE, lane, bucket, full
        for lane in range(<int32_t>self._lanes.shape[0]):
            if self._lanes[lane].depth == 0 or self._lanes[lane].free == 0:
                continue
            full = self._full(lane) if self._delays and self._delay_ns[lane] else 0
            bucket = self._lanes[lane].buckets
            while bucket != NONE:
                if (self._buckets[bucket].depth >= full or self._ripe_ns(bucket, lane) <= now_ns) and (
                    best == NONE or self._before(self._buckets[bucket].root, self._buckets[best].root)
                ):
                    best = bucket
                bucket = self._buckets[bucket].next
        return best

    cdef int64_t _ripe_ns(self, int32_t bucket, int32_t lane) noexcept nogil:
        """Return when the rows of `bucket` have waited enough, full batch or not; INT64_MIN if they need not wait."""
        cdef int64_t since_ns = self._nodes[self._buckets[bucket].oldest].since_ns, delay_ns = self._delay_ns[lane]
        if since_ns == INT64_MIN or self._nodes[self._buckets[bucket].root].deadline_ns <= since_ns + delay_ns:
            return INT64_MIN
        return since_ns + delay_ns

    cdef int32_t _full(self, int32_t lane) noexcept nogil:
        """Return how many rows fill a batch of some worker of `lane` that has a credit left."""
        cdef int32_t worker = self._lanes[lane].cursor, least = MAX_SLOTS, i
        for i in range(self._lanes[lane].workers):
            if self._workers[worker].outstanding < self._workers[worker].credits:
                least = min(least, self._workers[worker].most)
            worker = self._workers[worker].next
        return least

    cdef int32_t _next_worker(self, int32_t lane) noexcept nogil:
        """Return the worker with a credit left and the fewest batches out, the first such from the cursor on."""
        cdef int32_t worker = self._lanes[lane].cursor, best = NONE, i
        for i in range(self._lanes[lane].workers):
            if self._workers[worker].outstanding < self._workers[worker].credits and (
                best == NONE or self._workers[worker].outstanding < self._workers[best].outstanding
            ):
                best = worker
                if self._workers[worker].outstanding == 0:
                    break
            worker = self._workers[worker].next
        return best

    cdef int32_t _form(self, int64_t now_ns, int32_t *chosen) noexcept nogil:
        """Fill `_out` with the next batch, take its worker's credit and return its rows, 0 if there is none."""
        cdef int32_t bucket = self._next_bucket(now_ns), lane, worker, n, i, slot
        if bucket == NONE:
            return 0
        lane = self._buckets[bucket].lane
        worker = self._next_worker(lane)
        n = min(self._buckets[bucket].depth, self._workers[worker].most)
        if n > self._out.shape[0]:
            n = <int32_t>self._out.shape[0]
        for i in range(n):
            slot = self._buckets[bucket].root
            self._out[i] = <uint32_t>slot
            self._remove(slot)
        self._workers[worker].outstanding += 1
        self._lanes[lane].free -= 1
        self._lanes[lane].turn = (worker + 1) % <int32_t>self._workers.shape[0]
        self._lanes[lane].cursor = self._workers[worker].next
        chosen[0] = worker
        return n

    cpdef tuple dispatch(self, int64_t now_ns, out):
        """Return the next batch as (worker, n), its slots in `out[:n]` (uint32); None if there is none.

        At most len(out) rows are taken.
        """
        cdef int32_t worker = NONE, n
        self._take_out(out)
        n = self._form(now_ns, &worker)
        if n == 0:
            return None
        return worker, n

    cpdef credit(self, worker):
        """Count a batch of the worker as finished.  ValueError if it has none out."""
        cdef int32_t index = self._worker(worker)
        if self._workers[index].outstanding == 0:
            raise ValueError(f"worker {worker} has no batch out")
        self._workers[index].outstanding -= 1
        if self._workers[index].lane != NONE:
            self._lanes[self._workers[index].lane].free += 1

    def outstanding(self, worker):
        """Return how many batches the worker has out."""
        return self._workers[self._worker(worker)].outstanding

    # --- what may be asked --------------------------------------------------------------------------------------------

    def next_event_ns(self, int64_t now_ns):
        """Return when to look again if nothing happens before; 0 if there is nothing to wait for.

        That is the earliest deadline or the end of a delay that a free worker waits for, and never before `now_ns`.
        """
        cdef int64_t event = INT64_MAX
        cdef int32_t lane, bucket
        if self._depth == 0:
            return 0
        for lane in range(<int32_t>self._lanes.shape[0]):
            bucket = self._lanes[lane].buckets
            while bucket != NONE:
                event = min(event, self._nodes[self._buckets[bucket].root].deadline_ns)
                if self._delay_ns[lane] and self._lanes[lane].free:
                    event = min(event, self._ripe_ns(bucket, lane))
                bucket = self._buckets[bucket].next
        return max(event, now_ns)

    cpdef int32_t depth(self, lane=-1) except? -1:
        """Return how many rows wait in `lane`; in all lanes for -1."""
        if lane == -1:
            return self._depth
        return self._lanes[self._lane(lane)].depth

    def lane_has_worker(self, lane):
        """Return whether any worker is attached to `lane`."""
        return self._lanes[self._lane(lane)].workers > 0
