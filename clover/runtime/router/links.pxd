from libc.stdint cimport int64_t

cdef class Batch:
    cdef public int64_t id
    cdef public list slots
    cdef public int64_t sent_ns
    cdef public list tenants
    cdef public bint waiting

cdef class WorkerLinks:
    cdef public object worker
    cdef public int group
    cdef public list links
    cdef public int held
    cdef public bint shared
    cdef public bint broken
    cdef int64_t _progress_ns
    cdef public int64_t ended_ns

cdef class Link:
    cdef public WorkerLinks process
    cdef public object worker
    cdef public int index
    cdef public int lane
    cdef public int place
    cdef public int max_batch
    cdef public object meter
    cdef public bint attached
    cdef public bint standby
    cdef public bint background
    cdef public bint leaving
    cdef public int64_t remaining
    cdef public dict batches
    cdef public list on_idle

    cpdef record_sent(self, Batch batch, int64_t now_ns)
    cpdef record_done(self, Batch batch, int64_t now_ns)
