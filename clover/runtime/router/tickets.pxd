cimport cython
from libc.stdint cimport int64_t

from clover.interfaces cimport Ticket as Base
from clover.runtime.cascade cimport RoutedChain
from clover.runtime.guard.clients cimport Sender

cdef class RouterTicket(Base):
    cdef public int64_t flow
    cdef public int64_t connection
    cdef public object tenant
    cdef public int64_t request
    cdef public int64_t submit_ns
    cdef public int64_t deadline_ns
    cdef public object bucket
    cdef public RouterTicket later
    cdef public RouterTicket earlier
    cdef public int64_t key
    cdef public RoutedChain chain
    cdef public dict paths
    cdef public set cut_short
    cdef public tuple marked
    cdef public dict stage_answers
    cdef public dict planned
    cdef public set repeats
    cdef public object audit
    cdef public tuple torn
    cdef public object unanswered
    cdef public object recalled
    cdef public object billed
    cdef public int phase
    cdef public int awaits
    cdef public bint lent
    cdef public Sender sender
    cdef public Py_ssize_t group
    cdef public int limited
    cdef public int batch_rows
    cdef public int outstanding
    cdef public int deaths
    cdef public double min_accuracy
    cdef public double energy_j
    cdef public object on_done

    @cython.locals(first=Py_ssize_t)
    cpdef Py_ssize_t row_of(self, Py_ssize_t slot) except -1
