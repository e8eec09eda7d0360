cimport cython
from libc.stdint cimport int64_t

cdef class WorkerMeter:
    cdef public str family
    cdef public str variant
    cdef public str device
    cdef public str placement
    cdef public object slices
    cdef public double core_w
    cdef public int cores
    cdef public int pid
    cdef public double ratio
    cdef public double factor
    cdef public double idle_w
    cdef public bint holds
    cdef tuple _joules
    cdef int64_t[::1] _batches
    cdef double[::1] _batch_ns
    cdef double _rested_j
    cdef double _wake_j
    cdef int _top
    cdef int64_t _spare_ns
    cdef public int64_t rows
    cdef int64_t _closed_rows
    cdef public int64_t busy_ns
    cdef public int64_t cpu_ns
    cdef public double modelled_j
    cdef public int64_t window_gone_on
    cdef public int64_t window_audits
    cdef public double window_right
    cdef public int64_t window_wasted
    cdef public int64_t window_busy_ns
    cdef public double window_idle_j
    cdef public double window_modelled_j
    cdef public int64_t answered
    cdef dict _answered_by
    cdef double _latest_j
    cdef public dict window_tenants
    cdef public tuple tenant_parts
    cdef public dict window_waiting

    @cython.locals(most_ns=int64_t, size=int, warm_j=double, per_row=double, part=double, joules=double, idle_j=double)
    cpdef double add(self, int rows, int64_t busy_ns, int64_t cpu_ns, int64_t pause_ns=*, int failed=*)
    cpdef record_passed_on(self, int64_t gone_on, int64_t audits, double right)
    cpdef record_wasted(self, int64_t rows)
    @cython.locals(tenant=str, work=list)
    cpdef charge(self, list tenants)
    @cython.locals(tenant=str)
    cpdef record_answered(self, list tenants)
