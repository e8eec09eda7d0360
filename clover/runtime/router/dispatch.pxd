cimport cython
from libc.stdint cimport int64_t

from clover._native.batcher cimport Batcher
from clover.runtime.router.audits cimport Audits
from clover.runtime.router.completion cimport Completion
from clover.runtime.router.lane_pace cimport LanePace
from clover.runtime.router.links cimport Batch, Link
from clover.runtime.router.relief cimport StandbyRouting
from clover.runtime.router.state cimport RouterState

cdef class Dispatch:
    cdef RouterState _state
    cdef Completion _completion
    cdef StandbyRouting _standby
    cdef Audits _audits
    cdef object _loop
    cdef readonly bint busy
    cdef public object spare
    cdef object _out
    cdef int64_t _batch_id
    cdef bint _scheduled
    cdef object _timer
    cdef int64_t _timer_ns
    cdef int64_t _room_ns
    cdef int64_t _yield_ns

    cpdef run_turn(self)
    cpdef wake(self)
    @cython.locals(began_ns=int64_t)
    cdef bint make_room(self, int64_t now_ns, bint hurried) except -1
    @cython.locals(
        link=Link, slots=list, broken=list, count=Py_ssize_t, batcher=Batcher, formed=tuple, pace=LanePace,
        saturated=bint, batch=Batch, ordered=list, why=str,
    )
    cdef _form_batches(self, int64_t now_ns)
    @cython.locals(slot=Py_ssize_t, sent=int)
    cdef str _send(self, Link link, Batch batch, int64_t now_ns)
    @cython.locals(batch=Batch)
    cpdef bint send_waiting(self, Link link, list slots, int64_t now_ns) except -1
    @cython.locals(next_ns=int64_t, delay_ns=int64_t, rounding_ns=int64_t)
    cdef _set_timer(self, int64_t now_ns)
    cpdef _timed(self)
