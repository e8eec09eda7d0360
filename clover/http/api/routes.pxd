cimport cython

from clover.http.exchange cimport Exchange
from clover.http.heads cimport Head
from clover.http.inference cimport InferEndpoint

cdef class Routes:
    cdef object _view
    cdef object _limits
    cdef object _loop
    cdef object _access
    cdef readonly object calls
    cdef object _inflating
    cdef set _documents
    cdef dict _endpoints
    cdef dict _described
    cdef bytes _server
    cdef bytes _index
    cdef dict _embedding_model
    cdef dict _paths
    cdef dict _model_paths
    cdef dict _repository_paths

    @cython.locals(head=Head)
    cpdef dispatch(self, Exchange exchange, object body)
    @cython.locals(endpoint=InferEndpoint)
    cpdef _infer(self, Exchange exchange, object body, str name)
