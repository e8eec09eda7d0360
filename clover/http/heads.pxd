cimport cython

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
    cdef public tuple refusal
    cdef public object route
    cdef public object endpoint

    cpdef str too_large(self)

cdef class Skeleton:
    cdef readonly bytes raw
    cdef readonly object length
    cdef readonly object json_length
    cdef readonly bytes request_id
    cdef readonly bytes traceparent
    cdef readonly bytes tracestate
    cdef readonly bytes baggage

    cpdef bint is_of(self, Head head) except -1
    @cython.locals(digits=bytes)
    cdef object _number(self, tuple names, object missing)
    @cython.locals(raw=bytes, name=bytes, value=bytes, at=Py_ssize_t, start=Py_ssize_t, end=Py_ssize_t)
    cdef bytes _cut(self, tuple names)

@cython.locals(head=Head)
cdef Head filled(Head known, Skeleton skeleton)

cdef class Heads:
    cdef object _judge
    cdef object _limits
    cdef public dict memo
