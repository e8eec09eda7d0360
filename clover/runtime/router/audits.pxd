cimport cython
from libc.stdint cimport int64_t

from clover.runtime.cascade cimport RoutedChain
from clover.runtime.guard.answer_reader cimport AnswerReader
from clover.runtime.guard.guard cimport Guard
from clover.runtime.guard.sampling cimport Sampler
from clover.runtime.memory.rows cimport InputDigests
from clover.runtime.router.state cimport RouterState
from clover.runtime.router.tickets cimport RouterTicket

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
    cpdef passed(self, RouterTicket ticket, Py_ssize_t row, int lane, int target, bint planned)
    @cython.locals(overruled=int64_t, rows=int64_t, row=Py_ssize_t, answers=tuple)
    cpdef followed(self, RouterTicket ticket, RoutedChain chain)
