cimport cython

cdef class RoutedChain:
    cdef readonly tuple lanes
    cdef readonly tuple thresholds
    cdef readonly tuple ends
    cdef readonly tuple cut
    cdef readonly tuple alike
    cdef readonly tuple alike_rows
    cdef readonly double overruled
    cdef readonly int overruled_rows
    cdef readonly tuple planned
    cdef readonly double escalations
    cdef readonly double accuracy

    @cython.locals(stage=int, own=int)
    cpdef int stage(self, int lane) except -2
