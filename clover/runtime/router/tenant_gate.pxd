from libc.stdint cimport int64_t

from clover.runtime.router.admission cimport Admission
from clover.runtime.router.state cimport RouterState
from clover.runtime.router.tickets cimport RouterTicket

cdef class TenantGate:
    cdef RouterState _state
    cdef Admission _admission

    cdef RouterTicket open(self, Py_ssize_t rows, int64_t flow, int64_t request, object tenant, str closed)
    cdef double retry_in_s(self, int64_t flow, int64_t request, object tenant) except? -1.0
    cdef int room(self, int64_t flow, int64_t request, object tenant) except -1
    cdef tuple lend(self, Py_ssize_t rows, tuple came_by, object tenant, object fixed, str closed)
    cdef admit_lent(self, RouterTicket ticket, object tenant, str closed)
    cdef record_refusal(self, object tenant, Py_ssize_t rows, object error)
