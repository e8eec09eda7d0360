cimport cython
from libc.stdint cimport int64_t

from clover.accounting.account cimport Account
from clover.accounting.meters cimport WorkerMeter
from clover.runtime.router.escalation cimport Escalation
from clover.runtime.router.lane_pace cimport LanePace
from clover.runtime.router.links cimport Batch, Link, WorkerLinks
from clover.runtime.router.monitor cimport Monitor
from clover.runtime.router.state cimport RouterState
from clover.runtime.router.tickets cimport RouterTicket

cdef int PENDING, DONE, CLOSED, HELD, QUEUED, ROWS_REFUSED, NO_MEMORY
cdef double _ROUNDING

cdef class Completion:
    cdef RouterState _state
    cdef object _retry
    cdef object _cached
    cdef Escalation _escalation
    cdef Monitor _monitor
    cdef Account _account
    cdef public object waiting
    cdef list _finished
    cdef object _memory_refusals
    cdef list _withdrawn
    cdef int64_t _kept
    cdef double _right

    @cython.locals(process=WorkerLinks)
    cdef bint collect(self, int64_t now_ns) except -1
    cdef take(self, WorkerLinks process, int64_t now_ns)
    @cython.locals(
        link=Link, batch=Batch, status=int, count=int, start_ns=int64_t, end_ns=int64_t, cpu_ns=int64_t, busy_ns=int64_t, least_ns=int64_t,
        energy_j=double, surplus=double, escalated=int, audits=int, late=int, turned_away=int, answered=int,
        passed_on=int, audited=int,
        wasted=int,
        paid=int, pace=LanePace, refused=dict, meter=WorkerMeter,
    )
    cdef _complete(self, WorkerLinks process, tuple frame, int64_t now_ns)
    @cython.locals(
        ticket=RouterTicket, lane=int, escalated=int, audits=int, late=int, turned_away=int, watched=bint, watching=bint, scores=list,
        at=Py_ssize_t, slot=Py_ssize_t, waited_ns=int64_t,
    )
    cdef tuple _settle(
        self, Link link, Batch batch, int status, int64_t start_ns, int64_t busy_ns, double energy_j, int64_t now_ns,
        dict refused
    )
    cdef _no_memory(self, RouterTicket ticket, int64_t now_ns)
    cdef finish(self, RouterTicket ticket, int status, str error, int64_t now_ns, object retry_after_s=*)
    cdef recall(self, RouterTicket ticket)
    cdef withdraw(self, RouterTicket ticket)
    @cython.locals(ticket=RouterTicket)
    cdef expire(self, int64_t now_ns)
    @cython.locals(ticket=RouterTicket)
    cdef too_late(self, list slots, int64_t now_ns)
    cdef end_unserved(self, RouterTicket ticket, int64_t now_ns)
    cdef stop_waiting(self, RouterTicket ticket)
    cdef bint give_up(self, list audits, str why) except -1
    @cython.locals(finished=list, ticket=RouterTicket)
    cdef deliver(self)
