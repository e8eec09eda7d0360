from libc.stdint cimport int64_t

cdef class Ticket:
    cdef public list slots
    cdef public int status
    cdef public str error
    cdef public object retry_after_s
    cdef public object context
    cdef public str client
    cdef public int64_t arrival_ns
    cdef public int64_t done_ns
    cdef public int64_t queue_ns
    cdef public int64_t compute_ns
    cdef public int uncached
    cdef public int64_t waited_ns
    cdef public list variants

cdef class Model:
    cdef public object spec
    cdef public str closed_reason
    cdef public Py_ssize_t most_rows
    cdef public int64_t timeout_ns

    cpdef Ticket open(self, Py_ssize_t rows, int64_t flow=*, int64_t request=*, object tenant=*)
    cpdef double retry_in_s(self, int64_t flow=*, int64_t request=*, object tenant=*) except? -1.0
    cpdef int room(self, int64_t flow=*, int64_t request=*, object tenant=*) except -1
    cpdef take_late(self, bint on)
    cpdef count_expired(self, object tenant=*)
    cpdef tuple lend(self, Py_ssize_t rows, Py_ssize_t index, int64_t flow=*, int64_t request=*, object tenant=*)
    cpdef admit_lent(self, Ticket ticket)
    cpdef write(self, Ticket ticket, Py_ssize_t index, object rows)
    cpdef submit(
        self, Ticket ticket, object on_done, int64_t timeout_ns=*, double min_accuracy=*, bint cascade=*,
        object context=*,
    )
    cpdef read(self, Ticket ticket, Py_ssize_t index)
    cpdef bytes text(self, Ticket ticket, Py_ssize_t index)
    cpdef receipt(self, Ticket ticket)
    cpdef remember(self, int64_t number, Ticket ticket)
    cpdef close(self, Ticket ticket)
