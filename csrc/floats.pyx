"""Rows of floats in a slab: copied in, written as JSON, and searched for the largest, with no object for a number.

Text has a point or an exponent always, so that no reader takes a float for a whole number.  JSON has no word for what
is not finite: there is no text then.

**The digits of a float.**  Nine significant decimal digits tell any float from its neighbours; mostly fewer do.  So a
float `v` of usual size is scaled by a power of ten such that six, then seven, ... digits stand before the point, and
rounded to a whole number `s`.  The first `s` that, divided by that power, rounds to `v` again is written.

A reader of decimals as doubles finds `v` then: `s` and the power are doubles without error, and their quotient has the
error of one rounding.  So does a reader of decimals as floats, because a quotient within a few roundings of the middle
between two floats is not taken.  With nine digits none lies there: they are off by 5e-9 of `v` at most, and the middle
is at least 3e-8 of `v` away.

Other floats, rare in answers, are written with nine digits and an exponent.
"""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free
from libc.math cimport fabs, isfinite, signbit
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, strlen

cdef extern from "Python.h":
    char *PyOS_double_to_string(double value, char format, int precision, int flags, int *kind)
    int Py_DTSF_ADD_DOT_0

cdef enum:
    TEXT = 20  # most bytes of a float and a comma: -0.0000123456789, or -1.17549435e-38,
    DIGITS = 9
    LEAST_DIGITS = 6
    PLACES = 14  # after the point: nine digits of 1e-5
    KEPT = 4096  # floats of an array that is held on to
    PAGE = 1 << 20  # bytes of text for which room is kept

cdef double SMALL = 1e-5
cdef double LARGE = 1e9
cdef double CLOSE = 1e-15  # of a double: a few roundings

cdef double[PLACES + 1] POWERS
cdef uint64_t[PLACES + 1] WHOLE
for _at in range(PLACES + 1):
    POWERS[_at] = 10.0**_at
    WHOLE[_at] = 10**_at


cdef inline char *digits(char *to, uint64_t number, int count) noexcept nogil:
    """Write `number` in `count` digits with leading zeros."""
    cdef int at
    for at in range(count - 1, -1, -1):
        to[at] = <char>(48 + number % 10)
        number //= 10
    return to + count


cdef char *usual(char *to, double size) noexcept nogil:
    """Write a float's absolute value, 0 or from `SMALL` to `LARGE`, in fixed notation."""
    cdef int places = DIGITS - 1, most, count
    cdef uint64_t scaled = 0, whole
    cdef double found
    while places and size >= POWERS[DIGITS - places]:  # of 10 and more, fewer places make nine digits
        places -= 1
    while 0.0 < size < 1.0 and places < PLACES and size * POWERS[places] < 1e8:
        places += 1
    most = places
    places = max(places - (DIGITS - LEAST_DIGITS), 0)
    while True:
        scaled = <uint64_t>(size * POWERS[places] + 0.5)
        found = <double>scaled / POWERS[places]
        if places >= most or (
            <float>(found * (1.0 - CLOSE)) == <float>size and <float>(found * (1.0 + CLOSE)) == <float>size
        ):
            break
        places += 1
    whole = scaled // WHOLE[places]
    scaled -= whole * WHOLE[places]
    count = 1
    while count < DIGITS + 1 and whole >= WHOLE[count]:
        count += 1
    to = digits(to, whole, count)
    to[0] = c"."
    if scaled == 0:
        to[1] = c"0"
        return to + 2
    while scaled % 10 == 0:
        scaled //= 10
        places -= 1
    return digits(to + 1, scaled, places)


cdef char *unusual(char *to, double value) except NULL:
    """Write a finite float of any size with nine digits and an exponent."""
    cdef char *made = PyOS_double_to_string(value, c"g", DIGITS, Py_DTSF_ADD_DOT_0, NULL)
    cdef size_t size
    if made == NULL:
        raise MemoryError
    size = strlen(made)
    memcpy(to, made, size)
    PyMem_Free(made)
    return to + size


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
        """Take hold of the buffer of `rows`.  False if its rows are not as declared."""
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
        """Copy `rows` [len(slots), *shape] into these slots.

        False, and nothing is copied, if they are no float32 of that shape in C order.
        """
        cdef Py_ssize_t at, slot
        cdef const float *source
        if (not self._held or rows is not self._owner) and not self._look(rows):
            return False
        if self._given.shape[0] != len(slots):
            return False
        for at in range(len(slots)):
            self._slot(slots[at])
        source = <const float *>self._given.buf
        for at in range(len(slots)):
            slot = slots[at]
            memcpy(self._region + slot * self._each, source + at * self._each, self._each * sizeof(float))
        if len(slots) * self._each > KEPT:  # a large list is passed once: let it be freed
            self._owner = None
            self._held = False
            PyBuffer_Release(&self._given)
        return True

    cpdef bytes text(self, list slots):
        """Return the rows of these slots as one flat JSON array; None if a number is not finite."""
        cdef Py_ssize_t rows = len(slots), at, i
        cdef Py_ssize_t room = rows * self._each * TEXT + 2
        cdef char *start = self._page
        cdef char *to
        cdef const float *row
        cdef double value
        if room > self._page_bytes:
            start = <char *>realloc(self._page, room)
            if start == NULL:
                raise MemoryError
            self._page, self._page_bytes = start, room
        to = start
        to[0] = c"["
        to += 1
        for at in range(rows):
            row = self._region + self._slot(slots[at]) * self._each
            for i in range(self._each):
                value = row[i]
                if not isfinite(value):
                    return None
                if SMALL <= fabs(value) < LARGE or value == 0.0:
                    if signbit(value):
                        to[0] = c"-"
                        to += 1
                    to = usual(to, fabs(value))
                else:
                    to = unusual(to, value)
                to[0] = c","
                to += 1
        if to > start + 1:
            to -= 1
        to[0] = c"]"
        made = PyBytes_FromStringAndSize(start, to + 1 - start)
        if self._page_bytes > PAGE:
            free(self._page)
            self._page, self._page_bytes = NULL, 0
        return made

    cpdef Py_ssize_t argmax(self, Py_ssize_t slot) except -1:
        """Return the index of the largest number of a row, the first of equals; the first NaN counts as the largest."""
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
