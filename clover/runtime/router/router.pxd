cimport cython
from libc.stdint cimport int64_t

from clover._native.batcher cimport Batcher
from clover._native.slots cimport SlotAllocator
from clover._native.wire cimport monotonic_ns
from clover.accounting.account cimport Account
from clover.interfaces cimport Model, Ticket as Base
from clover.runtime.router.audits cimport Audits
from clover.runtime.router.deadlines cimport Deadlines
from clover.runtime.router.escalation cimport Escalation
from clover.runtime.guard.feedback cimport Feedback
from clover.runtime.guard.guard cimport Guard
from clover.runtime.memory.input_digest cimport Inputs
from clover.runtime.router.lanes cimport Lanes
from clover.runtime.router.links cimport Batch, Link
from clover.runtime.router.standby_routing cimport Reliefs
from clover.runtime.memory.rows cimport FixedRows, ShapeKeys
from clover.runtime.guard.answer_reader cimport Sayings
from clover.runtime.router.slots cimport SlotTable
from clover.runtime.router.tickets cimport Ticket
from clover.runtime.router.traffic cimport Traffic

cdef class Router(Model):
    cdef public str name
    cdef public list accuracy
    cdef public Traffic traffic
    cdef public object lost
    cdef public bint hold
    cdef readonly object demand
    cdef public Guard guard
    cdef public Audits audits
    cdef public Feedback feedback
    cdef object _memory
    cdef Account _account
    cdef object _loop
    cdef object _clock
    cdef bint _real
    cdef int64_t _timeout_ns
    cdef int64_t _queue_rows
    cdef readonly Batcher _batcher
    cdef readonly Lanes _lanes
    cdef readonly SlotTable _table
    cdef bytearray _state
    cdef object _retry
    cdef Reliefs _reliefs
    cdef readonly Escalation _cascade
    cdef Deadlines _deadlines
    cdef Sayings _said
    cdef str _guarded_by
    cdef bint _auditing
    cdef bint _watching
    cdef Inputs _inputs
    cdef list _finished
    cdef bint _scheduled
    cdef object _timer
    cdef int64_t _timer_ns
    cdef int64_t _crowded_ns
    cdef double _crowded_s
    cdef int64_t _room_ns
    cdef readonly int64_t _lent
    cdef int64_t _batch_id
    cdef object _out
    cdef object _picked
    cdef ShapeKeys _keys
    cdef bint _varies
    cdef list _fixed_in
    cdef list _fixed_out

    @cython.locals(ticket=Ticket, now_ns=int64_t)
    cpdef Ticket open(self, Py_ssize_t rows)
    @cython.locals(now_ns=int64_t)
    cpdef double crowded(self) except? -1.0
    @cython.locals(ticket=Ticket, fixed=FixedRows, free=SlotAllocator)
    cpdef tuple ahead(self, Py_ssize_t rows, Py_ssize_t index)
    @cython.locals(ticket=Ticket)
    cpdef arrived(self, Base given)
    cdef _returned(self, Ticket ticket)
    cdef bint _full(self, Py_ssize_t rows) except -1
    cdef _make_room(self, int64_t now_ns)
    cdef _admit(self, Py_ssize_t rows, int64_t now_ns)
    @cython.locals(fixed=FixedRows)
    cpdef write(self, Base ticket, Py_ssize_t index, object rows)
    @cython.locals(ticket=Ticket, now_ns=int64_t, slots=list, rung=int)
    cpdef submit(
        self, Base given, object on_done, int64_t timeout_ns=*, double min_accuracy=*, bint cascade=*,
        object context=*,
    )
    cdef _await(self, Ticket ticket, double min_accuracy, int rung)
    cdef _unserved(self, Ticket ticket, int64_t now_ns)
    cdef _answered(self, Ticket ticket)
    @cython.locals(ticket=Ticket, fixed=FixedRows)
    cpdef read(self, Base given, Py_ssize_t index)
    @cython.locals(ticket=Ticket, fixed=FixedRows, text=bytes)
    cpdef bytes text(self, Base given, Py_ssize_t index)
    @cython.locals(ticket=Ticket, lanes=list)
    cpdef receipt(self, Base given)
    @cython.locals(ticket=Ticket, now_ns=int64_t)
    cpdef close(self, Base given)
    @cython.locals(ticket=Ticket, slots=list)
    cpdef remember(self, int64_t number, Base given)

    cpdef reap(self)
    @cython.locals(link=Link)
    cdef bint _collect(self, int64_t now_ns) except -1
    @cython.locals(now_ns=int64_t)
    cpdef _turn(self)
    @cython.locals(link=Link, slots=list, broken=list, count=Py_ssize_t, batcher=Batcher, formed=tuple)
    cdef _pump(self, int64_t now_ns)
    cpdef _wake(self)
    cdef bint _give_up(self, list audits, str why) except -1
    @cython.locals(finished=list, ticket=Ticket)
    cdef _flush(self)
    @cython.locals(ticket=Ticket)
    cdef _expire(self, int64_t now_ns)
    @cython.locals(next_ns=int64_t, delay_ns=int64_t)
    cdef _arm(self, int64_t now_ns)
    cpdef _timed(self)
    @cython.locals(slots=list)
    cdef _push_rows(self, Ticket ticket, object mask, int64_t now_ns)
    cdef _take_completions(self, Link link, int64_t now_ns)
    @cython.locals(
        batch=Batch, count=int, start_ns=int64_t, end_ns=int64_t, cpu_ns=int64_t, busy_ns=int64_t, energy_j=double,
        right=double, gone_on=int, audits=int,
    )
    cdef _complete(self, Link link, tuple frame, int64_t now_ns)
    @cython.locals(
        ticket=Ticket, lane=int, gone_on=int, audits=int, watched=bint, watching=bint, scores=list, slots=list, at=Py_ssize_t,
        slot=Py_ssize_t, waited_ns=int64_t, right=double,
    )
    cdef tuple _settle(
        self, Link link, Batch batch, int status, int64_t start_ns, int64_t busy_ns, double energy_j, int64_t now_ns
    )
    cdef list _scores(self, list slots)
    cdef _finish(self, Ticket ticket, int status, str error, int64_t now_ns, object retry_after_s=*)
    cdef int64_t _now(self) except? -1
    cdef int64_t _shape_key(self, Ticket ticket) except? -1
