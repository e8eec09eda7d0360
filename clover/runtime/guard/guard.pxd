cimport cython
from libc.stdint cimport int64_t, uint64_t

from clover._native.inputs cimport Recent
from clover.runtime.cascade cimport RoutedChain
from clover.runtime.guard.clients cimport ClientGroups
from clover.runtime.guard.drift cimport ScoreWatch
from clover.runtime.guard.escalation_limit cimport EscalationLimit

cdef int64_t BLOCK

cdef class Guard:
    cdef public str name
    cdef public bint acts
    cdef public object detected_level
    cdef public str why
    cdef public object alarms
    cdef public int urgent
    cdef public object resets
    cdef public object returns
    cdef public object relapses
    cdef public int64_t inputs
    cdef public int64_t repeats
    cdef public object stay_ns
    cdef public int accused
    cdef public dict floors
    cdef public str missing
    cdef public object best
    cdef public list edges
    cdef tuple _variants
    cdef object _changed
    cdef object _clock
    cdef Recent _seen
    cdef Recent _audited
    cdef readonly object _health
    cdef object _since_ns
    cdef object _down_ns
    cdef object _cascade
    cdef readonly list _scores
    cdef dict _agreement
    cdef RoutedChain _chain
    cdef list _block
    cdef int64_t _in_block
    cdef dict _alone
    cdef readonly ClientGroups clients
    cdef readonly EscalationLimit limit
    cdef readonly object pattern

    @cython.locals(evidence=int)
    cpdef int fresh(self, uint64_t digest) except -1
    cpdef bint was_audited(self, uint64_t digest) except -1
    cpdef int fresh_audit(self, uint64_t digest) except -1
    @cython.locals(watch=ScoreWatch, edges=list, edge=double, at=Py_ssize_t)
    cpdef score(self, Py_ssize_t lane, double score, int evidence=*, Py_ssize_t group=*)
    @cython.locals(own=list)
    cpdef record_overrules(self, RoutedChain chain, int64_t overruled, int64_t rows, Py_ssize_t group=*)
