from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t


cdef struct Node:  # one slot's row
    int64_t deadline_ns
    uint64_t order  # arrival number: FIFO among equal deadlines
    int64_t since_ns  # when it began to wait; INT64_MIN for a row that has waited before
    int32_t bucket  # NONE: not queued; PENDING: named by the push in progress
    int32_t child  # heap: first child, next sibling, previous sibling (or parent, for a first child)
    int32_t next
    int32_t previous
    int32_t later  # arrival list
    int32_t earlier


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
    int32_t buckets  # first bucket
    int32_t depth
    int32_t workers
    int32_t free  # credits its workers have left, in total
    int32_t turn  # the index whose turn it is
    int32_t cursor  # the attached worker at that index or next after it


cdef struct Worker:
    int32_t lane  # NONE: detached
    int32_t most  # rows of a batch that it takes and its lane allows
    int32_t credits
    int32_t outstanding
    int32_t next  # the lane's workers in a circle by index


cdef class Batcher:
    cdef Node[::1] _nodes
    cdef Bucket[::1] _buckets
    cdef Lane[::1] _lanes
    cdef Worker[::1] _workers
    cdef int64_t[::1] _delay_ns  # by lane: how long a row may wait for its batch to fill
    cdef int32_t[::1] _largest  # by lane: rows of a batch, whatever its worker takes
    cdef int32_t[::1] _max_batch  # by worker: rows of a batch, whatever its lane allows
    cdef bint _delays  # whether any lane has a delay
    cdef int32_t[::1] _named  # the slots of the push in progress
    cdef int32_t _spare  # first bucket of the free list
    cdef int32_t _depth
    cdef uint64_t _order
    cdef readonly Py_ssize_t capacity
    cdef readonly int64_t max_queue_delay_ns
    # The array a caller passes again and again is looked at once: taking a view costs more than forming a batch.
    cdef object _out_owner
    cdef uint32_t[::1] _out

    cpdef bint push(self, Py_ssize_t lane, int64_t slot, int64_t deadline_ns, int64_t now_ns, int64_t key=*) except -1
    cpdef tuple dispatch(self, int64_t now_ns, out)
    cpdef credit(self, worker)
    cpdef int32_t depth(self, lane=*) except? -1

    cdef bint _before(self, int32_t a, int32_t b) noexcept nogil
    cdef int32_t _meld(self, int32_t a, int32_t b) noexcept nogil
    cdef int32_t _meld_siblings(self, int32_t first) noexcept nogil
    cdef int32_t _bucket_of(self, int32_t lane, int64_t key) noexcept nogil
    cdef void _insert(self, int32_t bucket, int32_t slot, int64_t deadline_ns, int64_t since_ns) noexcept nogil
    cdef void _remove(self, int32_t slot) noexcept nogil
    cdef void _give_back(self, int32_t bucket) noexcept nogil
    cdef int32_t _name(self, object slots) except -1
    cdef int32_t _name_one(self, int64_t slot, int32_t done) except -1
    cdef int _lane(self, lane) except -1
    cdef int _worker(self, worker) except -1
    cdef int _take_out(self, object out) except -1
    cdef void _insert_named(self, int32_t lane, int32_t count, int64_t deadline_ns, int64_t since_ns, int64_t key) noexcept
    cdef int32_t _next_bucket(self, int64_t now_ns) noexcept nogil
    cdef int64_t _ripe_ns(self, int32_t bucket, int32_t lane) noexcept nogil
    cdef int32_t _full(self, int32_t lane) noexcept nogil
    cdef int32_t _next_worker(self, int32_t lane) noexcept nogil
    cdef int32_t _form(self, int64_t now_ns, int32_t *chosen) noexcept nogil
