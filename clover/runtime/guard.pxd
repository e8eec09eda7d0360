cimport cython

from clover.planning.drift cimport ScoreWatch

cdef class Guard:
    cdef public str name
    cdef public bint acts
    cdef public object found
    cdef public str why
    cdef public object alarms
    cdef public int urgent
    cdef public object resets
    cdef public str missing
    cdef public object best
    cdef public list edges
    cdef tuple _variants
    cdef object _changed
    cdef object _cascade
    cdef readonly list _scores
    cdef dict _agreement
    cdef object _chain
    cdef list _block

    @cython.locals(watch=ScoreWatch, edges=list)
    cpdef score(self, Py_ssize_t lane, double score)
    cpdef followed(self, object chain, object overruled, object rows)
