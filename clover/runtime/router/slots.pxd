cimport cython
from libc.stdint cimport int64_t

from clover._native.batcher cimport Batcher
from clover._native.slots cimport SlotAllocator
from clover.runtime.router.tickets cimport Ticket

cdef class SlotTable:
    cdef public SlotAllocator free
    cdef public bytearray state
    cdef public list owner
    cdef Batcher _batcher

    @cython.locals(slots=list, slot=Py_ssize_t, ticket=Ticket)
    cpdef Ticket reserve(self, Py_ssize_t rows, int64_t now_ns)
    @cython.locals(ticket=Ticket)
    cpdef Ticket landed(self, Py_ssize_t slot)
    @cython.locals(slot=Py_ssize_t)
    cpdef cancel(self, Ticket ticket)
    @cython.locals(slot=Py_ssize_t)
    cpdef close(self, Ticket ticket)
    cpdef hand_over(self, Py_ssize_t slot, Ticket ticket)
    cpdef release(self, Py_ssize_t slot)
