cimport cython
from libc.stdint cimport int64_t

from clover.interfaces cimport Model

cdef double _LONGEST

cdef class RefusalBudget:
    cdef public object clock
    cdef object _core_wait
    cdef double _share
    cdef double _spent_ns
    cdef int64_t _read_ns
    cdef int64_t _free_ns

    @cython.locals(now_ns=int64_t, free_ns=int64_t)
    cpdef bint spend(self, Py_ssize_t body_bytes) except -1

cdef class HeldRequests:
    cdef Model _model
    cdef object _state
    cdef object _clock
    cdef dict _waiting
    cdef Py_ssize_t _most_coming
    cdef Py_ssize_t _coming
    cdef bint _scheduled

    cpdef bint is_settled(self) except -1
    cpdef bint hold(self, object connection, int64_t flow, int64_t request, object tenant) except -1
    cpdef record_body(self)
    cpdef wake(self)
    @cython.locals(now_ns=int64_t)
    cpdef _let_go(self)
    @cython.locals(
        model=Model, since_ns=int64_t, waited_ns=int64_t, flow=int64_t, request=int64_t, late=bint, no_room=bint, room=int,
    )
    cdef bint _let_one_go(self, object tenant, int64_t now_ns) except -1
