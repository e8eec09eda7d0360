cimport cython
from libc.stdint cimport int64_t

cdef int64_t _SECOND_NS
cdef double _JOULES_PER_KWH, _RATE_WINDOW_S

cdef class AnsweredRate:
    cdef int64_t _asked_ns
    cdef double _answer
    cdef public int64_t since_ns
    cdef public object bins
    cdef public int64_t rows
    cdef public int64_t answered
    cdef list _newest
    cdef int64_t _newest_s
    cdef int64_t _trimmed_s

    @cython.locals(second=int64_t)
    cpdef add(self, int64_t now_ns, int64_t rows)
    @cython.locals(first=int64_t, covered_s=double)
    cpdef double per_s(self, int64_t now_ns) except? -1.0

cdef class OverheadBill:
    cdef public double accrued_j
    cdef public double billed_j
    cdef public double open_j
    cdef public double open_g
    cdef public double per_row_j

    @cython.locals(part_j=double)
    cdef double take(self, double joules) except? -1.0

cdef class Account:
    cdef public double pue
    cdef public double core_w
    cdef public object reading
    cdef public object host
    cdef public str host_device
    cdef public dict shares
    cdef public dict placements
    cdef public dict overheads
    cdef public dict usage
    cdef public dict receipts_j
    cdef dict _devices
    cdef list _meters
    cdef list _gone
    cdef dict _places
    cdef dict _rates
    cdef dict _idle
    cdef dict _front_end
    cdef dict _answered
    cdef dict _work
    cdef object _prices
    cdef double _overhead_g
    cdef object _spans
    cdef object _feedback
    cdef int64_t _retired_cpu_ns
    cdef dict _idle_w
    cdef dict _receipt_method
    cdef double _last_j
    cdef double _last_overhead_g
    cdef double _last_accuracy
    cdef str _last_variant
    cdef str _last_method
    cdef tuple _last_path
    cdef object _last_reading
    cdef object _last_receipt

    @cython.locals(rate=AnsweredRate)
    cpdef rows_done(self, str family, int64_t rows, int64_t now_ns)
    @cython.locals(energy_j=double, intensity=double, method=str)
    cpdef receipt(
        self, str family, str variant, double accuracy, int64_t rows, double active_j, int64_t now_ns, tuple path=*
    )
    @cython.locals(bill=OverheadBill)
    cpdef bill_lookup(self, str family, double joules)
    cpdef str method_of(self, str family)
    @cython.locals(rate=double, known=AnsweredRate, bill=OverheadBill, part_j=double, before_g=double)
    cdef double _bill_overhead(self, str family, int64_t rows, int64_t now_ns) except? -1.0
    cdef double _family_idle_w(self, str family) except? -1.0
