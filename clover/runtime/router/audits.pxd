cimport cython
from libc.stdint cimport int64_t, uint64_t

from clover.runtime.cascade cimport RoutedChain
from clover.runtime.guard.answer_reader cimport AnswerReader
from clover.runtime.guard.guard cimport Guard
from clover.runtime.memory.rows cimport InputDigests
from clover.runtime.router.state cimport RouterState
from clover.runtime.router.tickets cimport RouterTicket

cdef uint64_t _GOLDEN, _MASK

cdef class Sampler:
    cdef public int64_t rows
    cdef public int64_t taken
    cdef public object lowest
    cdef public object last
    cdef public int64_t hours
    cdef int64_t _tried
    cdef int64_t _hour
    cdef double _owed
    cdef uint64_t _phase
    cdef public double share
    cdef uint64_t _last_picked
    cdef int64_t _hour_ns
    cdef double _least
    cdef double _most

    @cython.locals(hour=int64_t)
    cpdef bint pick(self, int64_t now_ns) except -1

cdef class Audits:
    cdef public Guard guard
    cdef public Sampler sampler
    cdef public int64_t answered
    cdef public int64_t free
    cdef public dict dropped
    cdef public double energy_j
    cdef public dict waiting
    cdef public object wake
    cdef RouterState _state
    cdef AnswerReader _reader
    cdef InputDigests _digests
    cdef double _share
    cdef int64_t _hours
    cdef int64_t _most

    @cython.locals(row=Py_ssize_t)
    cpdef mark(self, RouterTicket ticket, int64_t now_ns)
    cpdef record_escalation(self, RouterTicket ticket, Py_ssize_t row, int lane, int target, bint planned)
    @cython.locals(overruled=int64_t, rows=int64_t, row=Py_ssize_t, answers=tuple)
    cpdef record_overrules(self, RouterTicket ticket, RoutedChain chain)
