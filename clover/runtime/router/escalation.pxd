cimport cython
from libc.stdint cimport int64_t

from clover._native.batcher cimport Batcher
from clover.runtime.guard.clients cimport Sender
from clover.runtime.guard.escalation_limit cimport EscalationLimit
from clover.runtime.router.lanes cimport Lanes
from clover.runtime.router.slots cimport SlotTable
from clover.runtime.router.standby_routing cimport StandbyRouting
from clover.runtime.router.tickets cimport RouterTicket
from clover.runtime.router.traffic cimport Traffic

cdef class Escalation:
    cdef public list busy_ns
    cdef public object audits
    cdef public EscalationLimit limit
    cdef public int64_t kept
    cdef SlotTable _table
    cdef bytearray _slot_states
    cdef Batcher _batcher
    cdef Lanes _lanes
    cdef Traffic _traffic
    cdef StandbyRouting _standby
    cdef object _max_batch
    cdef str _name
    cdef object _account

    cpdef bint escalate(
        self, RouterTicket ticket, object chain, Py_ssize_t slot, object lane, double score, int64_t now_ns
    ) except -1
    @cython.locals(sender=Sender, limit=EscalationLimit)
    cdef _ends(self, RouterTicket ticket, Py_ssize_t slot, double accuracy, double usual)
    @cython.locals(sender=Sender, limit=EscalationLimit)
    cdef bint _allows(self, RouterTicket ticket) except -1
