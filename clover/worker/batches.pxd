cimport cython

cdef class Batches:
    cdef object _slab
    cdef Py_ssize_t _slots
    cdef list _inputs
    cdef list _outputs
    cdef dict _staged
    cdef bint _always
    cdef tuple _spanned

    cpdef span(self, object slots)
    @cython.locals(numbers=list, first=Py_ssize_t, expected=Py_ssize_t, consecutive=bint, slot=Py_ssize_t)
    cdef _span(self, object slots)
    cpdef list gather(self, object slots)
    cdef _gather(
        self, Py_ssize_t index, object tensor, object region, bint variable, object span, object slots
    )
    cpdef list check(self, Py_ssize_t count, object answers)
    cpdef scatter(self, object slots, object answers, object first=*)

cdef _check(object tensor, object answer, Py_ssize_t count)
cdef _check_shape(object tensor, tuple shape, Py_ssize_t count)
