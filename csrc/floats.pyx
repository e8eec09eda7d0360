# distutils: language = c++
"""Rows of floats in a slab: copied in, told as JSON, and which of them is the largest, with no object for any number.

Text is the shortest that reads back as the same float (std::to_chars), with a point or an exponent always, so that no
reader takes a float for a whole number.  JSON has no word for what is not finite: there is no text then.
"""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.math cimport isfinite
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

cdef extern from *:
    """
    #include <charconv>

    static inline char *clover_float(char *at, char *end, float value) { return std::to_chars(at, end, value).ptr; }
    """
    char *clover_float(char *at, char *end, float value) nogil

cdef enum:
    TEXT = 18  # bytes of a float: a sign, nine digits, a point, a comma, e+38; or so many digits and ".0"


cdef class Floats:
    """Rows of the array `region`: float32 [slots, *shape], in C order and writable.  It is kept alive."""

    def __cinit__(self, region):
        cdef int axis
        PyObject_GetBuffer(region, &self._buffer, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE)
        if self._buffer.format == NULL or self._buffer.format[0] != c"f" or self._buffer.format[1] != 0:
            raise ValueError("the rows are not float32")
        if self._buffer.ndim < 1:
            raise ValueError("the rows have no axis of slots")
        self._slots = self._buffer.shape[0]
        self._each = 1
        for axis in range(1, self._buffer.ndim):
            self._each *= self._buffer.shape[axis]
        self._region = <float *>self._buffer.buf

    def __dealloc__(self):
        free(self._page)
        if self._held:
            PyBuffer_Release(&self._given)
        PyBuffer_Release(&self._buffer)

    cdef Py_ssize_t _slot(self, Py_ssize_t slot) except -1:
        if not 0 <= slot < self._slots:
            raise IndexError(f"slot {slot} is outside 0..{self._slots - 1}")
        return slot

    cdef bint _look(self, object rows) except -1:
        """Take hold of the buffer of `rows`; False where its rows are not as declared."""
        cdef Py_buffer found
        cdef int axis
        cdef bint fits
        try:
            PyObject_GetBuffer(rows, &found, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
        except (BufferError, ValueError):
            return False
        fits = found.ndim == self._buffer.ndim and found.format != NULL
        fits = fits and found.format[0] == c"f" and found.format[1] == 0
        if fits:
            for axis in range(1, found.ndim):
                fits = fits and found.shape[axis] == self._buffer.shape[axis]
        if not fits:
            PyBuffer_Release(&found)
            return False
        if self._held:
            PyBuffer_Release(&self._given)
        self._given = found
        self._held = True
        self._owner = rows
        return True

    cpdef bint put(self, list slots, object rows) except -1:
        """Copy `rows` [len(slots), *shape] into these slots; False, and nothing is copied, where they are no float32 of
        that shape in C order."""
        cdef Py_ssize_t at, slot
        cdef const float *source
        if rows is not self._owner and not self._look(rows):
            return False
        if self._given.shape[0] != len(slots):
            return False
        for at in range(len(slots)):
            self._slot(slots[at])
        source = <const float *>self._given.buf
        for at in range(len(slots)):
            slot = slots[at]
            memcpy(self._region + slot * self._each, source + at * self._each, self._each * sizeof(float))
        if self._each > 4096:  # whoever passes much passes it once: do not keep it from being freed
            self._owner = None
            self._held = False
            PyBuffer_Release(&self._given)
        return True

    cpdef bytes text(self, list slots):
        """The rows of these slots as one flat JSON array; None where a number is not finite."""
        cdef Py_ssize_t rows = len(slots), at, i
        cdef Py_ssize_t room = rows * self._each * TEXT + 2
        cdef char *start = self._page
        cdef char *to
        cdef char *end
        cdef char *look
        cdef const float *row
        if room > self._page_bytes:
            start = <char *>realloc(self._page, room)
            if start == NULL:
                raise MemoryError
            self._page, self._page_bytes = start, room
        to, end = start, start + room
        to[0] = c"["
        to += 1
        for at in range(rows):
            row = self._region + self._slot(slots[at]) * self._each
            for i in range(self._each):
                if not isfinite(row[i]):
                    return None
                look = to
                to = clover_float(to, end, row[i])
                while look < to and look[0] != c"." and look[0] != c"e":
                    look += 1
                if look == to:
                    to[0] = c"."
                    to[1] = c"0"
                    to += 2
                to[0] = c","
                to += 1
        if to > start + 1:
            to -= 1
        to[0] = c"]"
        return PyBytes_FromStringAndSize(start, to + 1 - start)

    cpdef Py_ssize_t argmax(self, Py_ssize_t slot) except -1:
        """The index of the largest number of a row, the first of equals; the first NaN counts as the largest."""
        cdef const float *row = self._region + self._slot(slot) * self._each
        cdef Py_ssize_t best = 0, i
        if self._each == 0:
            raise ValueError("a row without numbers has no largest")
        for i in range(self._each):
            if row[i] != row[i]:
                return i
            if row[i] > row[best]:
                best = i
        return best
