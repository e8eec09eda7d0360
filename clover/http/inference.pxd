cimport cython

from clover.http.exchange cimport Exchange
from clover.http.oip cimport InferRequest, Signature, brief, decode, encode

cdef class Told:
    cdef public object receipt
    cdef public bytes field

cdef class InferEndpoint:
    cdef public object model
    cdef public Signature signature

    @cython.locals(request=InferRequest)
    cpdef start(self, Exchange exchange, object body)

cdef _end(Exchange exchange, InferEndpoint endpoint, InferRequest request, object ticket)

@cython.locals(fields=bytes, kind=bytes, parts=list, signature=Signature, text=bytes, json_length=Py_ssize_t)
cdef _answer(Exchange exchange, InferEndpoint endpoint, InferRequest request, object ticket)

@cython.locals(told=Told)
cpdef bytes receipt_field(object receipt)
