cimport cython

from clover.http.heads cimport Head
from clover.http.hub cimport Hub

cdef class Exchange:
    cdef public object connection
    cdef public Head head
    cdef public list reply
    cdef public bint close
    cdef public bint interim
    cdef public bytes request_id
    cdef public object model
    cdef public object ticket

    @cython.locals(hub=Hub, size=Py_ssize_t, part=bytes, start=bytes, ending=bytes, length=bytes, head=list, requests=dict)
    cpdef finish(self, int status, list parts, bytes fields=*, bytes kind=*)
    cpdef fail(self, int status, str text, bytes fields=*, object retry_after_s=*)
    cpdef abandon(self)
