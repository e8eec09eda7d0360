cimport cython
from libc.stdint cimport int64_t, uint64_t

from clover._native.batcher cimport Batcher
from clover._native.wire cimport monotonic_ns
from clover.runtime.router.lanes cimport Lanes
from clover.runtime.router.tickets cimport Deadlines, SlotTable
from clover.runtime.router.traffic cimport Traffic

cdef int64_t _HALF_LIFE, _PAUSE_NS, _MOST

cdef class Company:
    cdef readonly int64_t here
    cdef int64_t _since_ns
    cdef int64_t _unfaded
    cdef double _came
    cdef double _spent_ns
    cdef double[::1] _came_with
    cdef double[::1] _spent_ns_with

    @cython.locals(here=int64_t)
    cpdef record_arrival(self, int64_t now_ns)
    cpdef record_departure(self, int64_t now_ns)
    @cython.locals(here=int64_t)
    cpdef bint expects_more(self, int64_t now_ns) except -1
    @cython.locals(here=int64_t, spent_ns=double)
    cdef int64_t _spend(self, int64_t now_ns) except? -1
    @cython.locals(here=Py_ssize_t)
    cdef _halve(self)

cdef class RouterState:
    cdef readonly str name
    cdef readonly object spec
    cdef readonly object memory
    cdef readonly list accuracy
    cdef readonly Traffic traffic
    cdef readonly int64_t queue_rows
    cdef readonly int64_t timeout_ns
    cdef readonly object demand
    cdef readonly Batcher batcher
    cdef readonly Lanes lanes
    cdef readonly SlotTable table
    cdef readonly Deadlines deadlines
    cdef readonly Company company
    cdef readonly object clock
    cdef public uint64_t coming
    cdef public object asleep
    cdef public int64_t awake_ns
    cdef public bint stranded
    cdef public bint tenanted
    cdef public object lost
    cdef bint _real

    cdef int64_t now_ns(self) except? -1
