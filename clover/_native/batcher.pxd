from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t


cdef struct Node:  # one slot's row
    int64_t rank  # its place in the order of its lane, kept while the row is with a worker
    uint64_t order  # arrival number: FIFO among equal ranks
    int64_t since_ns  # when it began to wait; INT64_MIN for a row that has waited before
    int64_t deadline_ns
    int32_t bucket  # NONE: not queued; PENDING: named by the push in progress; DROPPED: until `take_dropped`
    int32_t child  # heap: first child, next sibling, previous sibling (or parent, for a first child)
    int32_t next
    int32_t previous
    int32_t later  # arrival list
    int32_t earlier
    int32_t lane  # where it was queued last; NONE: never was
    int32_t flow  # NONE: of the background


cdef struct Flow:  # the waiting rows of one client in one lane
    int64_t client
    int64_t rank  # of its next row, unless the clock is later
    int32_t lane
    int32_t rows
    int32_t next  # of the same head, or in the free list
    int32_t weight


cdef struct Bucket:  # the waiting rows of one (lane, key)
    int64_t key
    int32_t lane
    int32_t depth
    int32_t root
    int32_t oldest
    int32_t newest
    int32_t next  # in its lane's list, or in the free list
    int32_t previous


cdef struct Lane:  # what a dispatch without delays looks at, and no more
    int64_t clock  # of the fair queue, in ranks
    int64_t expected_ns  # from the dispatch of a batch until it is done, at least
    int32_t buckets  # first bucket
    int32_t depth
    int32_t workers
    int32_t free  # credits its workers have left, in total
    int32_t turn  # the index whose turn it is
    int32_t cursor  # the attached worker at that index or next after it
    int64_t weight  # of all flows: each has up to 2^23
    int32_t passed  # batches of its group that left, one after the other, while it had ripe rows


cdef struct Worker:
    int32_t lane  # NONE: detached
    int32_t most  # rows of a batch that it takes and its lane allows
    int32_t group
    int32_t outstanding
    int32_t next  # the lane's workers in a circle by index
    int32_t peer  # the attached workers of its group in a circle


cdef struct Group:  # workers that share their credits
    int64_t since_ns  # when its first batch began, if one is out; 0: not known
    int32_t credits
    int32_t outstanding  # of all of its workers, detached ones included
    int32_t members  # attached workers
    int32_t first  # any of these
    int32_t lane  # of the batch that was sent last


cdef class Batcher:
    cdef Node[::1] _nodes
    cdef Bucket[::1] _buckets
    cdef Flow[::1] _flows
    cdef int32_t[::1] _heads  # first flow by hash; a power of two of them
    cdef Lane[::1] _lanes
    cdef Worker[::1] _workers
    cdef Group[::1] _groups
    cdef int64_t[::1] _delay_ns  # by lane: how long a row may wait for its batch to fill
    cdef int32_t[::1] _largest  # by lane: rows of a batch, whatever its worker takes
    cdef int32_t[::1] _max_batch  # by worker: rows of a batch, whatever its lane allows
    cdef int32_t[::1] _weights  # by slot: as how many rows one counts
    cdef bint _delays  # whether any lane has a delay
    cdef public bint patient  # whether rows wait for as long as their lane's delay
    cdef int32_t[::1] _named  # the slots of the push in progress
    cdef int32_t _spare  # first bucket of the free list
    cdef int32_t _spare_flow
    cdef int32_t _dropped  # the last row that was dropped, linked by `next`
    cdef readonly int32_t dropped
    cdef int32_t _depth
    cdef uint64_t _order
    cdef readonly Py_ssize_t capacity
    cdef readonly int64_t max_queue_delay_ns
    # The array a caller passes again and again is looked at once: taking a view costs more than forming a batch.
    cdef object _out_owner
    cdef uint32_t[::1] _out

    cpdef weigh(self, int64_t slot, int64_t weight)
    cpdef bint push(
        self, Py_ssize_t lane, int64_t slot, int64_t deadline_ns, int64_t now_ns, int64_t key=*, int64_t client=*
    ) except -1
    cpdef list take_dropped(self)
    cpdef expect(self, Py_ssize_t lane, int64_t expected_ns)
    cpdef tuple dispatch(self, int64_t now_ns, out)
    cpdef bint claim(self, worker, int64_t now_ns) except -1
    cpdef credit(self, worker, int64_t now_ns=*)
    cpdef int32_t depth(self, Py_ssize_t lane=*) except? -1
    cpdef bint saturated(self, Py_ssize_t lane) except -1
    cpdef int32_t most(self, Py_ssize_t worker) except -1
    cpdef int64_t rows_ahead(self, Py_ssize_t lane, int64_t client, int64_t rows) except -1
    cpdef int64_t waiting_of(self, int64_t client) except -1

    cdef int32_t _bucket_of(self, int32_t lane, int64_t key) noexcept nogil
    cdef int32_t _head_of(self, int32_t lane, int64_t client) noexcept nogil
    cdef int32_t _find_flow(self, int32_t lane, int64_t client) noexcept nogil
    cdef int32_t _flow_of(self, int32_t lane, int64_t client) noexcept nogil
    cdef void _leave_flow(self, int32_t flow, int32_t slot, bint served) noexcept nogil
    cdef int64_t _step(self, int32_t slot, int64_t weight) noexcept nogil
    cdef int64_t _rank_of(self, int32_t lane, int32_t slot, int32_t flow, bint again) noexcept nogil
    cdef void _insert(
        self, int32_t bucket, int32_t slot, int32_t flow, int64_t deadline_ns, int64_t since_ns
    ) noexcept nogil
    cdef void _remove(self, int32_t slot, bint served) noexcept nogil
    cdef void _drop(self, int32_t slot) noexcept nogil
    cdef void _give_back(self, int32_t bucket) noexcept nogil
    cdef int32_t _name(self, object slots) except -1
    cdef int32_t _name_one(self, int64_t slot, int32_t done) except -1
    cdef int _lane(self, Py_ssize_t lane) except -1
    cdef int _worker(self, Py_ssize_t worker) except -1
    cdef int _take_out(self, object out) except -1
    cdef void _insert_named(
        self, int32_t lane, int32_t count, int64_t client, int64_t deadline_ns, int64_t since_ns, int64_t key
    ) noexcept
    cdef int32_t _next_bucket(self, int64_t now_ns, int32_t *worker) noexcept nogil
    cdef int32_t _ripe_bucket(self, int32_t lane, int64_t now_ns) noexcept nogil
    cdef int32_t _first_of_group(self, int32_t worker, int32_t best, int64_t now_ns) noexcept nogil
    cdef bint _goes_before(self, int32_t a, int32_t b) noexcept nogil
    cdef void _pass_over(self, int32_t worker, int64_t now_ns) noexcept nogil
    cdef int64_t _done_ns(self, int32_t worker, int32_t lane, int64_t now_ns) noexcept nogil
    cdef int64_t _ripe_ns(self, int32_t bucket, int32_t lane) noexcept nogil
    cdef int32_t _full(self, int32_t lane) noexcept nogil
    cdef int32_t _next_worker(self, int32_t lane) noexcept nogil
    cdef int32_t _form(self, int64_t now_ns, int32_t *chosen) noexcept nogil
