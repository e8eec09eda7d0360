cimport cython
from libc.stdint cimport int64_t

from clover._native.batcher cimport Batcher
from clover._native.slots cimport SlotAllocator
from clover.runtime.router.tickets cimport RouterTicket

cdef class SlotTable:
    cdef public SlotAllocator free
    cdef public bytearray state
    cdef public list owner
    cdef Batcher _batcher

    @cython.locals(slots=list, slot=Py_ssize_t, ticket=RouterTicket)
    cpdef RouterTicket reserve(self, Py_ssize_t rows, int64_t now_ns)
    @cython.locals(ticket=RouterTicket)
    cpdef RouterTicket landed(self, Py_ssize_t slot)
    @cython.locals(slot=Py_ssize_t)
    cpdef cancel(self, RouterTicket ticket)
    @cython.locals(slot=Py_ssize_t)
    cpdef close(self, RouterTicket ticket)
    cpdef hand_over(self, Py_ssize_t slot, RouterTicket ticket)
    @cython.locals(owner=RouterTicket)
    cpdef list tenants(self, list slots)
    cpdef release(self, Py_ssize_t slot)
