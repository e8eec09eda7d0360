cimport cython
from libc.stdint cimport int64_t

from clover.runtime.cascade cimport RoutedChain
from clover.runtime.guard.clients cimport Sender
from clover.runtime.guard.escalation_limit cimport EscalationLimit
from clover.runtime.router.audits cimport Audits
from clover.runtime.router.links cimport Link
from clover.runtime.router.relief cimport StandbyRouting
from clover.runtime.router.state cimport RouterState
from clover.runtime.router.tickets cimport RouterTicket

cdef int FLYING, QUEUED

cdef class Escalation:
    cdef public list busy_ns
    cdef public Audits audits
    cdef public EscalationLimit limit
    cdef public int64_t kept
    cdef RouterState _state
    cdef StandbyRouting _standby
    cdef object _account
    cdef list _unescalated

    @cython.locals(stage=int, last=bint, threshold=double, row=Py_ssize_t, target=int)
    cpdef bint escalate(
        self, RouterTicket ticket, RoutedChain chain, Py_ssize_t slot, int lane, double score, int64_t now_ns
    ) except -1
    cpdef tuple paths(self, RouterTicket ticket)
    @cython.locals(row=Py_ssize_t, lane=int, stage=int, total=double)
    cpdef double accuracy(self, RouterTicket ticket, RoutedChain chain) except? -1.0
    @cython.locals(link=Link, other=Link, workers=int64_t, batches=int64_t, spent_ns=int64_t, busy_ns=double, ahead=double)
    cpdef double _service_ns(self, int lane) except -1.0
    @cython.locals(sender=Sender, limit=EscalationLimit)
    cdef _ends(self, RouterTicket ticket, Py_ssize_t slot, double accuracy, double usual)
    @cython.locals(sender=Sender, limit=EscalationLimit)
    cdef bint _allows(self, RouterTicket ticket) except -1
