cimport cython
from libc.stdint cimport int64_t

from clover.runtime.guard.clients cimport ClientGroups, Sender

cdef class EscalationLimit:
    cdef readonly double multiple
    cdef readonly double planned
    cdef readonly double usual
    cdef readonly int64_t refused
    cdef readonly bint acts
    cdef ClientGroups _clients
    cdef double _family
    cdef double _slack
    cdef double _most
    cdef int64_t _rows
    cdef int64_t _recent
    cdef int64_t _over

    @cython.locals(share=double, tokens=double)
    cpdef record_row(self, Sender sender, double planned)
    @cython.locals(payer=Sender)
    cpdef bint is_over(self, Sender sender) except -1
    cpdef bint leaves_out(self, Sender sender) except -1
    @cython.locals(payer=Sender, lacking=bint)
    cpdef bint allows(self, Sender sender, Py_ssize_t group) except -1
    cdef bint _lacks(self, Sender sender) except -1
