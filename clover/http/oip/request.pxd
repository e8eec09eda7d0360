cimport cython

from clover._native.infer cimport burden
from clover.http.oip.inputs cimport DeclaredInput
from clover.http.oip.signature cimport InferRequest, KnownJson, RequestedOutput, Signature, rows_from_binary

cdef _check_json(Signature signature, Py_ssize_t size)

@cython.locals(text=bytes, plain=InferRequest, known=InferRequest)
cpdef InferRequest decode(Signature signature, object body, Py_ssize_t json_length=*)

@cython.locals(request=InferRequest)
cpdef InferRequest decode_ahead(Signature signature, bytes text, Py_ssize_t size)

@cython.locals(request=InferRequest, placed=list)
cdef InferRequest _decode(Signature signature, bytes text, object binary)

@cython.locals(
    entry=DeclaredInput, seen=object, shape=list, at=Py_ssize_t, end=Py_ssize_t, body_bytes=Py_ssize_t, placed=list
)
cdef list _read_inputs(Signature signature, InferRequest request, object listed, bytes text, object binary)
cdef _rows_from_json(DeclaredInput entry, object item, list shape, bytes text)
