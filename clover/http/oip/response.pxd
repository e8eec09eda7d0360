cimport cython

from clover._native.wire cimport quoted
from clover.http.oip.signature cimport InferRequest, RequestedOutput, Signature

@cython.locals(rows=Py_ssize_t, lead=bytes, name=bytes)
cpdef list brief(Signature signature, InferRequest request, bytes text)

cpdef tuple output_rows(Signature signature, RequestedOutput wanted, object read)

@cython.locals(pieces=list, tail=list, first=bint, wanted=RequestedOutput, raw=bytes, text=bytes, header=bytes)
cpdef tuple encode(Signature signature, InferRequest request, object read, dict receipt=*)
