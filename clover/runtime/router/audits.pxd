from libc.stdint cimport int64_t

from clover.runtime.guard.sampling cimport Sampler
from clover.runtime.router.deadlines cimport Deadlines
from clover.runtime.memory.input_digest cimport Inputs
from clover.runtime.router.lanes cimport Lanes
from clover.runtime.guard.answer_reader cimport Sayings
from clover.runtime.router.slots cimport SlotTable
from clover.runtime.router.tickets cimport Ticket

cdef class Audits:
    cdef public object guard
    cdef public Sampler sampler
    cdef public int64_t answered
    cdef public int64_t free
    cdef public dict dropped
    cdef public double energy_j
    cdef public dict waiting
    cdef Sayings _said
    cdef double _share
    cdef int64_t _hours
    cdef SlotTable _table
    cdef object _batcher
    cdef Lanes _lanes
    cdef Deadlines _deadlines
    cdef Inputs _inputs
    cdef int64_t _most_rows
    cdef int64_t _most
    cdef object _wake

    cpdef mark(self, Ticket ticket, int64_t now_ns)
