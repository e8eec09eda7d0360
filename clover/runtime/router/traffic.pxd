cimport cython
from libc.stdint cimport int64_t, uint64_t

from clover._native.histogram cimport Histogram

cdef class Rate:
    cdef public int window_s
    cdef list _bins
    cdef list _stamps
    cdef int64_t _start
    cdef int64_t _second
    cdef int64_t _count

    @cython.locals(second=int64_t)
    cpdef add(self, int64_t now_ns, int64_t count=*)
    @cython.locals(index=Py_ssize_t)
    cdef _enter(self, int64_t second, int64_t now_ns)
    cdef _leave(self)

cdef class TrailingHistogram:
    cdef list _parts
    cdef list _stamps
    cdef int64_t _part_ns
    cdef int64_t _stamp
    cdef Histogram _part

    @cython.locals(stamp=int64_t, index=Py_ssize_t)
    cpdef record(self, int64_t now_ns, int64_t value)

cdef class Total:
    cdef public int64_t count
    cdef public uint64_t ns

    cpdef add(self, int64_t ns, int64_t count=*)

cdef class Traffic:
    cdef public tuple variants
    cdef int64_t _fine
    cdef dict _refused
    cdef public dict overload
    cdef public dict retries
    cdef public list rows
    cdef public Histogram latency
    cdef public Histogram queue
    cdef public dict batch_sizes
    cdef public int64_t poisoned
    cdef public int64_t lost_workers
    cdef public int64_t retried_rows
    cdef public int64_t relieved_rows
    cdef public int64_t diverted_rows
    cdef public list escalated
    cdef public dict cut_short
    cdef public double accuracy_rows
    cdef public int64_t left_out_rows
    cdef public double left_out_accuracy_rows
    cdef public int64_t repeated_rows
    cdef public double repeated_surplus
    cdef public int64_t reliefs
    cdef public Rate arrivals
    cdef public Rate served
    cdef TrailingHistogram _trailing
    cdef Total _success
    cdef Total _fail
    cdef Total _waited
    cdef Total _input
    cdef Total _infer
    cdef Total _output
    cdef int64_t _last_ns
    cdef dict _by_tenant

    cpdef record_refusal(self, int status)
    cpdef batch(self, int lane, int rows, int escalated, int64_t busy_ns, int64_t now_ns, int audits=*)
    @cython.locals(latency_ns=int64_t)
    cpdef record_outcome(
        self, int status, int64_t arrival_ns, int64_t submit_ns, int64_t done_ns, int64_t queue_ns, int64_t compute_ns,
        bint trailing=*,
    )
    cpdef record_answer(self, int64_t output_ns)
