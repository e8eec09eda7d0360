cimport cython
from libc.stdint cimport int64_t

from clover._native.batcher cimport Batcher
from clover._native.slots cimport SlotAllocator
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

cdef class SlotTable:
    cdef public SlotAllocator free
    cdef public bytearray state
    cdef public list owner
    cdef Batcher _batcher

    @cython.locals(slots=list, slot=Py_ssize_t, ticket=RouterTicket)
    cpdef RouterTicket reserve(self, Py_ssize_t rows, int64_t now_ns)
    @cython.locals(ticket=RouterTicket)
    cpdef RouterTicket take_back(self, Py_ssize_t slot)
    @cython.locals(slot=Py_ssize_t)
    cpdef cancel(self, RouterTicket ticket)
    @cython.locals(slot=Py_ssize_t)
    cpdef close(self, RouterTicket ticket)
    cpdef hand_over(self, Py_ssize_t slot, RouterTicket ticket)
    @cython.locals(owner=RouterTicket)
    cpdef list tenants(self, list slots)
    cpdef release(self, Py_ssize_t slot)

cdef class Bucket:
    cdef public int64_t number
    cdef public RouterTicket first

cdef class Deadlines:
    cdef readonly dict _buckets
    cdef list _heap
    cdef Bucket _last

    @cython.locals(bucket=int64_t, distance=int64_t, coarse=int64_t, found=Bucket, first=RouterTicket)
    cpdef add(self, RouterTicket ticket, int64_t now_ns)
    @cython.locals(bucket=Bucket, later=RouterTicket, earlier=RouterTicket)
    cpdef discard(self, RouterTicket ticket)
    @cython.locals(bucket=Bucket, ticket=RouterTicket)
    cpdef list due(self, int64_t now_ns)
    cdef Bucket _pop(self)
    cpdef int64_t next_ns(self)
