cimport cython
from libc.stdint cimport int64_t

cdef double _JOULES_PER_KWH

cdef class Account:
    cdef public double pue
    cdef public double core_w
    cdef public object reading
    cdef public object host
    cdef public str host_device
    cdef public dict booked
    cdef public dict usage
    cdef public dict receipts_j
    cdef dict _devices
    cdef list _meters
    cdef list _gone
    cdef dict _places
    cdef dict _kept_j
    cdef dict _front_end
    cdef dict _front_end_rows
    cdef object _front_end_w
    cdef dict _looked_up
    cdef dict _answered
    cdef dict _waiting
    cdef dict _work
    cdef object _prices
    cdef object _spans
    cdef object _feedback
    cdef int64_t _retired_cpu_ns
    cdef dict _receipt_method
    cdef double _last_j
    cdef double _last_accuracy
    cdef str _last_variant
    cdef str _last_method
    cdef tuple _last_path
    cdef object _last_reading
    cdef object _last_receipt

    cpdef count_answered(self, str family, int64_t rows)
    @cython.locals(energy_j=double, intensity=double, method=str, key=tuple)
    cpdef receipt(
        self, str family, str variant, double accuracy, int64_t rows, double computed_j, str tenant=*, tuple path=*
    )
    @cython.locals(key=tuple)
    cpdef bill_lookup(self, str family, double joules, str tenant=*)
    cpdef str method_of(self, str family)
