from clover._native.batcher cimport Batcher
from clover._native.route cimport Quota
from clover.runtime.cascade cimport RoutedChain
from clover.runtime.router.links cimport Link

cdef class Lanes:
    cdef public object accuracy
    cdef public object live
    cdef public object asked
    cdef public object staffed
    cdef public list links
    cdef readonly list processes
    cdef readonly list paces
    cdef public object routing
    cdef public RoutedChain chain
    cdef public object points
    cdef public object profiled_rows
    cdef public bint relieved
    cdef public bint leaving
    cdef public object audits_waiting
    cdef public bint delayed
    cdef public object choose_many
    cdef list _forming
    cdef tuple _variants
    cdef object _delay_ms
    cdef Batcher _batcher
    cdef object _max_batch
    cdef Quota _quota
    cdef list _table
    cdef dict _masks
    cdef dict _chains
    cdef object _groups
    cdef dict _answering
    cdef object _open
    cdef bint _cascade_off
    cdef object _change

    cpdef object waiting(self, int lane=*)
    cpdef bint is_live(self, int lane) except -1
    cpdef bint is_asked(self, int lane) except -1
    cpdef bint is_staffed(self, int lane) except -1
    cpdef int choose(self, object mask) except -1
    cpdef object mask(self, double min_accuracy)
    cpdef RoutedChain chain_for(self, double min_accuracy)
    cpdef Link by_index(self, Py_ssize_t index)
    cpdef forget_idle(self, Link link)
