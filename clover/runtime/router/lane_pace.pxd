cimport cython
from libc.stdint cimport int64_t

cdef class LanePace:
    cdef readonly int64_t expected_ns
    cdef readonly int64_t least_ns
    cdef readonly int64_t since_ns
    cdef readonly int64_t useful_rows
    cdef double _mean_ns
    cdef double _deviation_ns
    cdef int64_t _shortest_ns
    cdef int64_t _before_ns
    cdef int64_t _done
    cdef double _span_ns
    cdef double _batches
    cdef double _rows
    cdef double _fit
    cdef double _most
    cdef double _profiled_ns
    cdef int64_t _updated_ns

    cpdef use_profile(self, object expected)
    cpdef forget(self)
    cpdef record_saturation(self, int64_t now_ns, bint yes)
    cpdef record_departure(self, int64_t now_ns, int64_t rows, int64_t waiting, int64_t most)
    @cython.locals(error=double)
    cpdef record_batch(self, int64_t took_ns, int64_t least_ns=*)
    cpdef double wait_ns(self, int64_t now_ns, int64_t rows) except? -1.0
