cimport cython
from libc.stdint cimport int64_t

from clover.runtime.router.lanes cimport Lanes
from clover.runtime.router.standby_routing cimport Reliefs
from clover.runtime.router.slots cimport SlotTable
from clover.runtime.router.tickets cimport Ticket
from clover.runtime.router.traffic cimport Traffic

cdef class Escalation:
    cdef public list busy_ns
    cdef public object audits
    cdef SlotTable _table
    cdef bytearray _state
    cdef object _batcher
    cdef Lanes _lanes
    cdef Traffic _traffic
    cdef Reliefs _reliefs
    cdef object _max_batch

    cpdef bint goes_on(
        self, Ticket ticket, object chain, Py_ssize_t slot, object lane, double score, int64_t now_ns
    ) except -1
