cimport cython
from libc.stdint cimport int64_t

from clover._native.wire cimport receipt_line
from clover.http.exchange cimport Exchange
from clover.http.heads cimport Head
from clover.http.held cimport HeldRequests
from clover.http.oip.request cimport decode, decode_ahead
from clover.http.oip.response cimport brief, encode
from clover.http.oip.signature cimport InferRequest, Signature
from clover.http.server_state cimport ConnectionBase
from clover.interfaces cimport Model, Ticket

cdef bytes JSON, BINARY

cdef class ReceiptLine:
    cdef tuple said
    cdef bytes start
    cdef bytes end

cdef class ReceiptCache:
    cdef public object receipt
    cdef public bytes field
    cdef dict lines

cdef ReceiptCache _LAST_RECEIPT
cdef int _KEPT_LINES

cdef class InferEndpoint:
    cdef public Model model
    cdef public bint proxied
    cdef public Signature signature
    cdef public HeldRequests held

    cpdef bint holds(self, ConnectionBase connection, Head head) except -1
    @cython.locals(connection=ConnectionBase)
    cdef _refused(self, Exchange exchange, Py_ssize_t body_bytes)
    @cython.locals(wait_s=double)
    cpdef take(self, Exchange exchange, object body)
    @cython.locals(model=Model, request=InferRequest, ticket=Ticket)
    cpdef start(self, Exchange exchange, object body)
    @cython.locals(request=InferRequest, found=tuple)
    cpdef DirectReceive receive_direct(self, Exchange exchange, bytes text, Py_ssize_t size)
    cpdef InferEndpoint answering(self, Ticket ticket)
    cdef _submit(self, Exchange exchange, InferRequest request, Ticket ticket)

cdef class SplitEndpoint(InferEndpoint):
    cdef dict _by_version

    cpdef InferEndpoint answering(self, Ticket ticket)

cdef class DirectReceive:
    cdef InferEndpoint _endpoint
    cdef Exchange _exchange
    cdef InferRequest _request
    cdef readonly bytes text
    cdef public object view

    @cython.locals(endpoint=InferEndpoint, exchange=Exchange, ticket=Ticket)
    cpdef complete(self)
    cpdef cancel(self)

@cython.locals(connection=ConnectionBase)
cdef int64_t _named(Exchange exchange) except? -1
cdef int64_t _number(Head head, str client) except? -1
@cython.locals(context=tuple)
cpdef _done(Ticket ticket)

@cython.locals(model=Model)
cdef _end(Exchange exchange, InferEndpoint endpoint, InferRequest request, Ticket ticket)

@cython.locals(model=Model, named=bint, own_id=bytes, fields=bytes, kind=bytes, parts=list, signature=Signature, text=bytes, json_length=Py_ssize_t)
cdef _answer(Exchange exchange, InferEndpoint endpoint, InferRequest request, Ticket ticket)

@cython.locals(last=ReceiptCache, line=ReceiptLine, full=ReceiptLine, values=tuple, said=tuple, field=bytes)
cpdef bytes receipt_field(object receipt, bint everything=*)
