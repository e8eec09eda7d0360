cimport cython

@cython.locals(at=Py_ssize_t, start=Py_ssize_t, size=Py_ssize_t)
cpdef list split_row(bytes row)
@cython.locals(at=Py_ssize_t, count=Py_ssize_t, size=Py_ssize_t)
cpdef Py_ssize_t count_elements(bytes row) except -1
@cython.locals(at=Py_ssize_t, start=Py_ssize_t, size=Py_ssize_t)
cpdef list cut_rows(object data, Py_ssize_t rows, Py_ssize_t elements)
