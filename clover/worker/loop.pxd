cimport cython
from libc.stdint cimport int64_t

cdef class WorkerLoop:
    cdef object _control
    cdef object _batches
    cdef object _ring
    cdef tuple _lanes
    cdef Py_ssize_t _lane
    cdef object _run
    cdef object _steps
    cdef object _doorbell
    cdef object _completions
    cdef object _scores
    cdef readonly object _slots
    cdef int64_t _logged_ns
    cdef int64_t _unlogged

    @cython.locals(cpu_ns=int64_t, start_ns=int64_t, end_ns=int64_t, used_ns=int64_t)
    cpdef _serve(self, object batch, Py_ssize_t count, Py_ssize_t lane=*)
    cdef _turn_to(self, Py_ssize_t lane)
    cdef _finish(self)
