cimport cython
from libc.stdint cimport int64_t

cdef class Sender:
    cdef readonly str name
    cdef public Py_ssize_t group
    cdef public int64_t rows
    cdef public int64_t inputs
    cdef public int64_t recent_rows
    cdef public int64_t repeats
    cdef public int64_t escalations
    cdef public double tokens
    cdef public bint over
    cdef public Sender payer
    cdef public int64_t era

    cdef double _most
    cdef double _back

    cdef pay(self, double tokens)
    cdef record_input(self, bint new)

cdef class ClientGroups:
    cdef readonly list recent
    cdef readonly list escalations
    cdef readonly Sender latest
    cdef readonly Sender newcomers
    cdef int64_t _rows
    cdef int64_t _era
    cdef readonly object _groups
    cdef object _connections
    cdef str _last_client
    cdef Sender _last_sender
    cdef int64_t _last_flow
    cdef Sender _last_connection

    @cython.locals(address=Sender, sender=Sender, group=Py_ssize_t)
    cpdef Py_ssize_t record_row(self, str client, int64_t flow=*) except -1
    @cython.locals(address=Sender)
    cpdef Sender sender(self, str client, int64_t flow=*)
    cpdef Py_ssize_t group_of(self, str client, int64_t flow=*) except -1
    cdef bint is_nearly_all(self, Sender sender) except -1
    cdef bint _is_most(self, Sender address) except -1
    @cython.locals(eras=int)
    cdef _age(self, Sender sender)
    cdef Sender _of(self, str client)
    cdef Sender _connection(self, str client, int64_t flow)
    @cython.locals(newcomers=Sender)
    cdef _count_new(self, Sender connection)
