cimport cython
from libc.stdint cimport int64_t

from clover.accounting.account cimport Account
from clover.interfaces cimport Model, Ticket as Base
from clover.runtime.guard.feedback cimport Feedback
from clover.runtime.guard.guard cimport Guard
from clover.runtime.memory.rows cimport FixedRows
from clover.runtime.router.admission cimport Admission
from clover.runtime.router.audits cimport Audits
from clover.runtime.router.completion cimport Completion
from clover.runtime.router.dispatch cimport Dispatch
from clover.runtime.router.escalation cimport Escalation
from clover.runtime.router.monitor cimport Monitor
from clover.runtime.router.relief cimport StandbyRouting
from clover.runtime.router.state cimport RouterState
from clover.runtime.router.tenant_gate cimport TenantGate
from clover.runtime.router.tickets cimport RouterTicket
from clover.runtime.router.traffic cimport Traffic

cdef int CLOSED, DONE, PENDING

cdef class Router(Model):
    cdef readonly str name
    cdef readonly list accuracy
    cdef readonly RouterState state
    cdef readonly Traffic traffic
    cdef readonly object demand
    cdef readonly Monitor monitor
    cdef readonly Guard guard
    cdef readonly Audits audits
    cdef readonly Feedback feedback
    cdef readonly Admission admission
    cdef readonly TenantGate gate
    cdef readonly Dispatch dispatch
    cdef readonly Escalation escalation
    cdef readonly object cached
    cdef StandbyRouting _standby
    cdef Completion _completion
    cdef readonly Account account
    cdef readonly double front_ms
    cdef readonly object spare
    cdef list _fixed_in
    cdef list _fixed_out

    cpdef RouterTicket open(self, Py_ssize_t rows, int64_t flow=*, int64_t request=*, object tenant=*)
    cpdef double retry_in_s(self, int64_t flow=*, int64_t request=*, object tenant=*) except? -1.0
    cpdef int room(self, int64_t flow=*, int64_t request=*, object tenant=*) except -1
    cpdef take_late(self, bint on)
    cpdef count_expired(self, object tenant=*)
    cpdef tuple lend(self, Py_ssize_t rows, Py_ssize_t index, int64_t flow=*, int64_t request=*, object tenant=*)
    @cython.locals(ticket=RouterTicket)
    cpdef admit_lent(self, Base given)
    @cython.locals(fixed=FixedRows)
    cpdef write(self, Base ticket, Py_ssize_t index, object rows)
    @cython.locals(ticket=RouterTicket)
    cpdef submit(
        self, Base given, object on_done, int64_t timeout_ns=*, double min_accuracy=*, bint cascade=*,
        object context=*,
    )
    @cython.locals(ticket=RouterTicket, fixed=FixedRows)
    cpdef read(self, Base given, Py_ssize_t index)
    @cython.locals(ticket=RouterTicket, fixed=FixedRows, text=bytes)
    cpdef bytes text(self, Base given, Py_ssize_t index)
    @cython.locals(ticket=RouterTicket)
    cpdef receipt(self, Base given)
    @cython.locals(lanes=list, rows=Py_ssize_t, path=tuple, name=str, accuracy=double)
    cdef _bill(self, RouterTicket ticket)
    cdef str _join_names(self, list lanes)
    cpdef remember(self, int64_t number, Base given)
    @cython.locals(ticket=RouterTicket, now_ns=int64_t)
    cpdef close(self, Base given)
    cpdef reap(self)
