cimport cython
from libc.stdint cimport int64_t

from clover.worker.loop cimport WorkerLoop

cdef class BegunBatch:
    cdef object batch
    cdef object count
    cdef object overlap
    cdef object batches
    cdef object slots
    cdef object flight
    cdef int failed
    cdef bint watched
    cdef int64_t start_ns
    cdef int64_t cpu_ns

cdef class PipelinedLoop(WorkerLoop):
    cdef list _sides
    cdef Py_ssize_t _side
    cdef BegunBatch _older
    cdef BegunBatch _newer
    cdef int64_t _last_ns
    cdef int64_t _last_cpu_ns

    @cython.locals(older=BegunBatch)
    cpdef _serve_all(self, object waiter)
    @cython.locals(older=BegunBatch)
    cpdef bint _step(self) except -1
    @cython.locals(lane=Py_ssize_t)
    cpdef bint _take(self) except -1
    @cython.locals(begun=BegunBatch)
    cdef _begin(self, object batch, Py_ssize_t count, object overlap)
    @cython.locals(done=BegunBatch, start_ns=int64_t, cpu_ns=int64_t, used_ns=int64_t)
    cdef _complete(self)
    cdef _complete_all(self)
    cdef _finish_all(self)
