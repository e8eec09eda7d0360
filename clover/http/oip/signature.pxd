cimport cython
from libc.stdint cimport int64_t

from clover._native.infer cimport Plain, between
from clover.http.oip.inputs cimport DeclaredInput

cdef class RequestedOutput:
    cdef public Py_ssize_t index
    cdef public bint binary
    cdef public object classes

cdef class InferRequest:
    cdef public str id
    cdef public Py_ssize_t rows
    cdef public list inputs
    cdef public dict shapes
    cdef public list outputs
    cdef public object timeout_ns
    cdef public double min_accuracy
    cdef public bint cascade
    cdef public bint wants_receipt

    @cython.locals(other=InferRequest)
    cpdef InferRequest without_inputs(self)

cdef class PlainDecoder:
    cdef object _array
    cdef list _one
    cdef Plain _plain

    @cython.locals(request=InferRequest, found=tuple)
    cpdef InferRequest decode(self, bytes body, list outputs)

cdef class KnownJson:
    cdef bytes _head
    cdef bytes _tail
    cdef bint _named
    cdef Py_ssize_t _size
    cdef InferRequest _request
    cdef list _placed

    @cython.locals(
        request=InferRequest, entry=DeclaredInput, shape=list, at=Py_ssize_t, size=Py_ssize_t, inputs=list, identity=str
    )
    cpdef InferRequest decode(self, bytes body, Py_ssize_t json_length)

cdef class Signature:
    cdef public str name
    cdef public object json_depth
    cdef public Py_ssize_t json_bytes
    cdef public Py_ssize_t most_rows
    cdef public dict inputs
    cdef public tuple outputs
    cdef public dict out_index
    cdef public dict defaults
    cdef public bytes prefix
    cdef public list out_prefix
    cdef dict _described
    cdef int64_t _unknown
    cdef public PlainDecoder plain
    cdef public KnownJson known
    cdef public bint is_brief
    cdef public bint is_direct
    cdef public bytes lead_of_one

    cpdef know(self, bytes text, Py_ssize_t size, dict document, InferRequest request, list placed)
    @cython.locals(text=bytes)
    cpdef bytes describe(self, Py_ssize_t index, str datatype, tuple shape)

cpdef rows_from_binary(DeclaredInput entry, object raw, list shape)
