cimport cython
from libc.stdint cimport int64_t

from clover._native.slots cimport SlotAllocator
from clover.runtime.cascade cimport RoutedChain
from clover.runtime.memory.rows cimport FixedRows, RowWeights, ShapeKeys
from clover.runtime.router.completion cimport Completion
from clover.runtime.router.dispatch cimport Dispatch
from clover.runtime.router.lane_pace cimport LanePace
from clover.runtime.router.monitor cimport Monitor
from clover.runtime.router.relief cimport StandbyRouting
from clover.runtime.router.state cimport RouterState
from clover.runtime.router.tickets cimport RouterTicket

cdef int OPEN, PENDING, QUEUED
cdef int64_t FOREVER_NS
cdef double _NEWEST, _MARGIN, _QUEUED

cdef class Admission:
    cdef readonly int64_t lent
    cdef public bint takes_late
    cdef RouterState _state
    cdef object _cached
    cdef Dispatch _dispatch
    cdef Completion _completion
    cdef Monitor _monitor
    cdef StandbyRouting _standby
    cdef ShapeKeys _keys
    cdef RowWeights _weights
    cdef bint _varies
    cdef object _picked
    cdef object _book
    cdef double _max_wait_slo
    cdef double _slo_ms
    cdef double _floor
    cdef public bint unmeasured
    cdef double _longest_ns
    cdef double _most_rows_per_s
    cdef double _usual_rows
    cdef Py_ssize_t _max_batch
    cdef int64_t _sent_at_once
    cdef int64_t _kept_rows
    cdef int64_t _kept_slots

    cpdef aim(self, double slo_ms, double floor)
    cpdef limit(self, double rows_per_s)
    @cython.locals(ticket=RouterTicket, now_ns=int64_t, kept=bint)
    cdef RouterTicket open(self, Py_ssize_t rows, int64_t flow, int64_t request, str closed)
    @cython.locals(now_ns=int64_t, part=double, why=int)
    cdef double retry_in_s(self, int64_t flow, int64_t request) except? -1.0
    @cython.locals(now_ns=int64_t, part=double, why=int, taken=bint)
    cdef int room(self, int64_t flow, int64_t request) except -1
    @cython.locals(found=int, lane=int)
    cdef int _crowd(self, int64_t flow, double part, int64_t now_ns) except -1
    cdef double _refuse_unread(self, str why, int64_t flow, int64_t request, int64_t now_ns) except? -1.0
    cdef object _refuse(
        self, str why, str message, Py_ssize_t rows, int64_t flow, int64_t request, int64_t now_ns, bint too_short=*
    )
    cdef int64_t _refused_before(self, int64_t flow, int64_t request, int64_t now_ns) except -1
    cdef double _part(self, int64_t flow, int64_t request, int64_t now_ns) except? -1.0
    @cython.locals(ticket=RouterTicket, free=SlotAllocator)
    cdef tuple lend(self, Py_ssize_t rows, int64_t flow, int64_t request, FixedRows fixed, str closed)
    cdef admit_lent(self, RouterTicket ticket, str closed)
    cdef end_loan(self, RouterTicket ticket)
    @cython.locals(now_ns=int64_t, slots=list, chain=RoutedChain, variant=int, lane=int)
    cdef submit(
        self, RouterTicket ticket, object on_done, int64_t timeout_ns, double min_accuracy, bint cascade, object context
    )
    @cython.locals(part=double)
    cdef _admit(self, Py_ssize_t rows, int64_t flow, int64_t request, int64_t now_ns, str closed)
    @cython.locals(wanted=int64_t)
    cdef bint _full(self, Py_ssize_t rows, int64_t flow, double part) except -1
    cdef bint _has_much(self, int64_t flow, int64_t rows, int64_t kept) except -1
    @cython.locals(pace=LanePace, ahead=int64_t, alone=bint, wait_ns=double, longest_ns=double)
    cdef int _too_long(
        self, int lane, int64_t flow, int64_t rows, int64_t timeout_ns, double part, int64_t now_ns
    ) except -1
    cdef bint _behind(self, int lane, bint chained) except -1
    @cython.locals(flow=int64_t, request=int64_t, part=double, found=int, later=int, other=int)
    cdef int _in_time(
        self, RouterTicket ticket, int lane, int64_t rows, int64_t timeout_ns, int64_t now_ns
    ) except -1
    @cython.locals(pace=LanePace, wait_ns=double)
    cdef object _never(self, int lane, int64_t rows, int64_t timeout_ns, int64_t now_ns)
    @cython.locals(lane=int, best=int)
    cdef int _with_room(self, RouterTicket ticket, int64_t timeout_ns, double part, int64_t now_ns) except -2
    cdef _await(self, RouterTicket ticket, double min_accuracy, int variant)
    @cython.locals(slots=list, stops=list, start=Py_ssize_t, stop=Py_ssize_t, lane=int, found=int)
    cdef _push_rows(self, RouterTicket ticket, object mask, int64_t timeout_ns, int64_t now_ns)
    cdef int64_t _shape_key(self, RouterTicket ticket) except? -1
