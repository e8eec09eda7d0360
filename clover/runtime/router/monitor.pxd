cimport cython
from libc.stdint cimport int64_t

from clover.runtime.guard.answer_reader cimport AnswerReader
from clover.runtime.guard.clients cimport ClientGroups, Sender
from clover.runtime.guard.escalation_limit cimport EscalationLimit
from clover.runtime.guard.feedback cimport Feedback
from clover.runtime.guard.guard cimport Guard
from clover.runtime.memory.rows cimport InputDigests
from clover.runtime.router.audits cimport Audits
from clover.runtime.router.state cimport RouterState
from clover.runtime.router.tickets cimport RouterTicket

cdef class Monitor:
    cdef readonly Guard guard
    cdef readonly Audits audits
    cdef readonly Feedback feedback
    cdef readonly bint watching
    cdef readonly bint auditing
    cdef bint _configured
    cdef AnswerReader _reader
    cdef InputDigests _digests
    cdef float[:] _scores
    cdef RouterState _state

    cdef bint watches(self, int lane) except -1
    cdef list scores(self, list slots)
    @cython.locals(clients=ClientGroups, limit=EscalationLimit, sender=Sender, group=Py_ssize_t, evidence=int)
    cdef observe(self, RouterTicket ticket, Py_ssize_t slot, int lane, double score, bint watched)
    cdef record_answered(self, RouterTicket ticket, int64_t now_ns)
    cdef give_up_audits(self, RouterTicket ticket)
    cdef remember(self, int64_t number, RouterTicket ticket)
