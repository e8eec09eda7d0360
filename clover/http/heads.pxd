cimport cython

from clover._native.wire cimport varying

cdef class Head:
    cdef public str method
    cdef public str path
    cdef public str query
    cdef public int minor
    cdef public str host
    cdef public bytes authority
    cdef public bint absolute
    cdef public object length
    cdef public object most_bytes
    cdef public tuple bound
    cdef public bint chunked
    cdef public bint keep_alive
    cdef public bint expect
    cdef public str coding
    cdef public str accept
    cdef public object json_length
    cdef public bytes request_id
    cdef public bytes traceparent
    cdef public bytes tracestate
    cdef public int uncached
    cdef public bytes origin
    cdef public bint cross_site
    cdef public bint authorised
    cdef public object tenant
    cdef public bytes bearer
    cdef public object receive
    cdef public tuple refusal
    cdef public object route
    cdef public object endpoint

    cpdef str too_large(self)

cdef tuple _NO_VALUES

@cython.locals(head=Head)
cdef Head fill_head(Head known, tuple values)
cdef bint _has_no_other(Head head, tuple values) except -1

cdef class Heads:
    cdef object _judge
    cdef object _limits
    cdef public dict memo

    @cython.locals(values=tuple, known=Head, head=Head)
    cpdef Head parse(self, bytes raw)
    cdef _keep(self, object key, Head head)
    cdef Head _lookup(self, bytes raw)
