cimport cython
from libc.stdint cimport int64_t

cdef class Place:
    cdef int64_t key
    cdef int64_t flow
    cdef int64_t rows
    cdef int64_t due_ns
    cdef int64_t refused
    cdef bint came

cdef class RetryBook:
    cdef readonly dict places
    cdef public int64_t together
    cdef object _served
    cdef object _capacity
    cdef dict _of_flow
    cdef int64_t _kept
    cdef dict _seconds
    cdef dict _rows
    cdef list _next
    cdef list _full
    cdef double _room
    cdef int64_t _last_ns
    cdef int64_t _second_ns
    cdef int64_t _second
    cdef bint _expecting
    cdef int64_t _begun_ns
    cdef int64_t _rows_before
    cdef int64_t _refused_in
    cdef double _share
    cdef double _rate

    @cython.locals(place=Place, held=int64_t, at=int64_t, due_ns=int64_t)
    cpdef int64_t book(
        self, int64_t request, int64_t flow, int64_t rows, int64_t now_ns, int64_t before=*
    ) except -1
    @cython.locals(
        position=Py_ssize_t, room=double, at=int64_t, last=int64_t, bin_=int64_t, left=double, here=double
    )
    cdef int64_t _find(self, int64_t now_bin, int64_t rows) except -2
    cpdef bint due(self, int64_t key, int64_t now_ns) except -1
    cpdef bint expecting(self, int64_t now_ns) except -1
    @cython.locals(place=Place)
    cpdef int64_t use(self, int64_t key, int64_t now_ns) except -1
    @cython.locals(place=Place, places=list)
    cdef Place _due(self, int64_t key, int64_t now_ns)
    @cython.locals(left=list, held=int64_t)
    cdef _remove(self, Place place)
    @cython.locals(second=int64_t, rows=int64_t, passed_ns=int64_t, rate=double)
    cdef _advance(self, int64_t now_ns)
    @cython.locals(place=Place, rows=int64_t, came=int64_t)
    cdef _close(self, list places)
