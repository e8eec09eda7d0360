cimport cython

from clover._native.infer cimport Plain, burden
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

cdef class PlainDecoder:
    cdef object _array
    cdef list _one
    cdef Plain _plain

    @cython.locals(request=InferRequest, found=tuple)
    cpdef InferRequest decode(self, bytes body, list outputs)

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
    cdef public PlainDecoder plain
    cdef public bint is_brief
    cdef public bint is_direct
    cdef public bytes lead_of_one

    @cython.locals(text=bytes)
    cpdef bytes describe(self, Py_ssize_t index, str datatype, tuple shape)

cdef _check_json(Signature signature, Py_ssize_t size)

@cython.locals(text=bytes, plain=InferRequest)
cpdef InferRequest decode(Signature signature, object body, Py_ssize_t json_length=*)

@cython.locals(request=InferRequest)
cpdef InferRequest decode_ahead(Signature signature, bytes text, Py_ssize_t size)

@cython.locals(request=InferRequest)
cdef InferRequest _decode(Signature signature, bytes text, object binary)

@cython.locals(entry=DeclaredInput, seen=object, shape=list, at=Py_ssize_t, end=Py_ssize_t, body_bytes=Py_ssize_t)
cdef _read_inputs(Signature signature, InferRequest request, object listed, bytes text, object binary)
cdef _rows(DeclaredInput entry, dict item, list shape, object size, object binary, Py_ssize_t at, bint booleans)
