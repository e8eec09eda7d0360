"""The plain form of an infer request in JSON: one FP32 tensor, its numbers parsed straight into an array.

    {"id": "...", "inputs": [{"name": N, "shape": [rows, ...], "datatype": "FP32", "data": [...]}]}

in any order of members, with or without an id, its data flat or nested.  That is what nearly all requests in JSON
look like, and no object is made for any number of it.  Everything else - parameters, other outputs, a second tensor,
escapes in strings, members given twice, numbers that would need more than one rounding, and whatever is wrong - is not
for here: `parse` says None, and the general way decides.  So this needs to know no error, only what it is sure of.

**Numbers.**  A decimal of up to 2^53 without its point, times or over a power of ten up to 22, is two doubles that are
exact and one operation that rounds once: the double nearest to the text, as any correct reader gives it, then rounded
to a float as any conversion of that double is (W. D. Clinger, How to read floating point numbers accurately, 1990).

**The burden of any other text.**  The general way makes an object of every value, so what a text would come to is
found first: `burden` reads it once, makes nothing, and stops where it nests too deep or weighs too much.  A comma
weighs 1, which stands for a value; a string 2 more; a colon 4, for a key; an opening bracket or brace 4, for an empty
list or dict.

**A text that came before.**  Clients send the same JSON again and again but for its id: `between` compares the rest.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memchr, memcmp, memset

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeASCII

cdef enum:
    EXPONENT = 22

cdef double MOST = 3.4028234663852886e38  # the largest float
cdef uint64_t EXACT = <uint64_t>1 << 53

cdef double[EXPONENT + 1] POWERS
POWERS[:] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
]


cdef unsigned char[256] WEIGHTS
memset(WEIGHTS, 0, 256)
WEIGHTS[44] = 1
WEIGHTS[58] = WEIGHTS[91] = WEIGHTS[123] = 4
WEIGHTS[34] = WEIGHTS[93] = WEIGHTS[125] = 255  # no weight, but to be looked at


cpdef int burden(bytes text, Py_ssize_t depth, Py_ssize_t weight) except -1:
    """Return 0 if `text`, where it is JSON, nests at most `depth` deep and weighs at most `weight`; 1 if it nests
    deeper, 2 if it weighs more, whichever comes first."""
    cdef const char *at
    cdef const char *end
    cdef const char *first
    cdef const char *back
    cdef unsigned char weighs
    cdef Py_ssize_t level = 0, total = 0
    if text is None:
        raise TypeError("None is no text")
    at = PyBytes_AS_STRING(text)
    end = at + PyBytes_GET_SIZE(text)
    while at < end:
        weighs = WEIGHTS[<unsigned char>at[0]]
        at += 1
        if not weighs:
            continue
        if weighs == 255:
            if at[-1] != 34:
                level -= 1
                continue
            total += 2
            if total > weight:
                return 2
            first = at
            while True:  # to the quote that closes the string: an even number of backslashes stands before it
                at = <const char *>memchr(at, 34, end - at)
                if at == NULL:
                    return 0  # it is no JSON
                back = at
                while back > first and back[-1] == 92:
                    back -= 1
                at += 1
                if (at - back) & 1:
                    break
            continue
        total += weighs
        if total > weight:
            return 2
        if at[-1] == 91 or at[-1] == 123:
            level += 1
            if level > depth:
                return 1
    return 0


cpdef str between(bytes body, Py_ssize_t size, bytes head, bytes tail):
    """Return what stands in `body[:size]` between `head` and `tail`, if within quotes it is a JSON string as it stands.

    That is printable ASCII without quotes and backslashes, or nothing.  None if it has another head or tail, or
    something else between them.  IndexError if `body` is shorter.
    """
    cdef const char *at
    cdef const char *end
    cdef const char *first
    if body is None or head is None or tail is None:
        raise TypeError("None is no text")
    if not 0 <= size <= PyBytes_GET_SIZE(body):
        raise IndexError(f"{size} of {PyBytes_GET_SIZE(body)} bytes")
    at = PyBytes_AS_STRING(body)
    end = at + size
    if size < PyBytes_GET_SIZE(head) + PyBytes_GET_SIZE(tail):
        return None
    if memcmp(at, PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head)) != 0:
        return None
    end -= PyBytes_GET_SIZE(tail)
    if memcmp(end, PyBytes_AS_STRING(tail), PyBytes_GET_SIZE(tail)) != 0:
        return None
    at += PyBytes_GET_SIZE(head)
    first = at
    while at < end:
        if not 32 <= at[0] <= 126 or at[0] == 34 or at[0] == 92:
            return None
        at += 1
    return PyUnicode_DecodeASCII(first, end - first, NULL)


cdef inline void space(Plain self) noexcept nogil:
    if self._at < self._end and <unsigned char>self._at[0] > 32:  # nearly always
        return
    while self._at < self._end and (
        self._at[0] == 32 or self._at[0] == 10 or self._at[0] == 13 or self._at[0] == 9
    ):
        self._at += 1


cdef inline bint sign(Plain self, char wanted) noexcept nogil:
    """Return whether `wanted` comes next, and take it if it does."""
    space(self)
    if self._at < self._end and self._at[0] == wanted:
        self._at += 1
        return True
    return False


cdef class Plain:
    """A parser of bodies for the tensor `name` with rows of `shape` (axes of at least 1).

    It writes to `out`, a float array [n], and takes as many rows as fit.
    """

    def __cinit__(self, str name, shape, float[::1] out):
        if not 1 <= len(shape) < AXES or any(axis < 1 for axis in shape):
            raise ValueError(f"rows of shape {list(shape)} cannot be parsed here")
        self._name = name.encode()
        self._named, self._named_size = PyBytes_AS_STRING(self._name), len(self._name)
        self._axes = len(shape) + 1
        self._each = 1
        for at, axis in enumerate(shape):
            self._shape[at + 1] = axis
            self._each *= axis
        self._out = out
        self._rows = out.shape[0] // self._each

    cpdef tuple parse(self, bytes body):
        """Return the id ("" without one) and the number of rows, which then stand in `out` from its start.

        None if the body is not plain.
        """
        cdef const char* at
        if body is None:
            raise TypeError("None is no body")
        at = PyBytes_AS_STRING(body)
        self._at, self._end = at, at + PyBytes_GET_SIZE(body)
        self._id, self._id_size = at, 0
        self._shape[0] = 0
        self._count = 0
        if not self._document():
            return None
        return PyUnicode_DecodeASCII(self._id, self._id_size, NULL), self._shape[0]

    # Every function below says whether it took what it was to take; where it did not, all is over.

    cdef bint _document(self) noexcept nogil:
        cdef const char* key
        cdef Py_ssize_t size
        cdef bint has_id = False, has_inputs = False
        if not sign(self, b"{"):
            return False
        while True:
            if not self._string(&key, &size) or not sign(self, b":"):
                return False
            if size == 2 and memcmp(key, b"id", 2) == 0 and not has_id:
                has_id = True
                if not self._string(&self._id, &self._id_size):
                    return False
            elif size == 6 and memcmp(key, b"inputs", 6) == 0 and not has_inputs:
                has_inputs = True
                if not (sign(self, b"[") and self._tensor() and sign(self, b"]")):
                    return False
            else:
                return False
            if sign(self, b","):
                continue
            if not sign(self, b"}"):
                return False
            space(self)
            return has_inputs and self._at == self._end

    cdef bint _tensor(self) noexcept nogil:
        cdef const char* key
        cdef const char* text
        cdef Py_ssize_t size, length
        cdef bint name = False, shape = False, datatype = False, data = False
        if not sign(self, b"{"):
            return False
        while True:
            if not self._string(&key, &size) or not sign(self, b":"):
                return False
            if size == 4 and memcmp(key, b"name", 4) == 0 and not name:
                name = True
                if not self._string(&text, &length):
                    return False
                if length != self._named_size or memcmp(text, self._named, length) != 0:
                    return False
            elif size == 5 and memcmp(key, b"shape", 5) == 0 and not shape:
                shape = True
                if not self._read_shape():
                    return False
            elif size == 8 and memcmp(key, b"datatype", 8) == 0 and not datatype:
                datatype = True
                if not self._string(&text, &length) or length != 4 or memcmp(text, b"FP32", 4) != 0:
                    return False
            elif size == 4 and memcmp(key, b"data", 4) == 0 and not data:
                data = True
                if not self._read_data():
                    return False
            else:
                return False
            if sign(self, b","):
                continue
            if not sign(self, b"}"):
                return False
            # Flat data may come before the shape that it has to fill; nested data checks itself as it is read.
            return (
                name and shape and datatype and data and self._count == self._shape[0] * self._each
                and (not self._nested or self._outer == self._shape[0])
            )

    cdef bint _read_shape(self) noexcept nogil:
        cdef int axis
        cdef Py_ssize_t size
        if not sign(self, b"["):
            return False
        for axis in range(self._axes):
            if axis and not sign(self, b","):
                return False
            if not self._whole(&size) or size < 1 or (axis and size != self._shape[axis]):
                return False
            if not axis:
                if size > self._rows:
                    return False
                self._shape[0] = size
        return sign(self, b"]")

    cdef bint _whole(self, Py_ssize_t* value) noexcept nogil:
        """Read a number of up to nine digits without a sign, a point or a zero in front."""
        cdef int digits = 0
        space(self)
        value[0] = 0
        while self._at < self._end and 48 <= self._at[0] <= 57 and digits < 10:
            value[0] = value[0] * 10 + (self._at[0] - 48)
            digits += 1
            self._at += 1
            if digits == 1 and value[0] == 0:
                break
        if not 0 < digits < 10:
            return False
        return self._at < self._end and self._at[0] not in (46, 69, 101) and not 48 <= self._at[0] <= 57

    cdef bint _read_data(self) noexcept nogil:
        if not sign(self, b"["):
            return False
        space(self)
        self._nested = self._at < self._end and self._at[0] == 91
        if not self._nested:
            return self._numbers(-1)
        self._outer = 0
        while True:  # rows, however many; which the shape has to agree with
            if self._outer >= self._rows or not self._row(1):
                return False
            self._outer += 1
            if sign(self, b"]"):
                return True
            if not sign(self, b","):
                return False

    cdef bint _row(self, int axis) noexcept nogil:
        """Read what an axis holds, in brackets."""
        cdef Py_ssize_t at
        if not sign(self, b"["):
            return False
        if axis == self._axes - 1:
            return self._numbers(self._shape[axis])
        for at in range(self._shape[axis]):
            if at and not sign(self, b","):
                return False
            if not self._row(axis + 1):
                return False
        return sign(self, b"]")

    cdef bint _numbers(self, Py_ssize_t wanted) noexcept nogil:
        """Read numbers up to the closing bracket: `wanted` of them, or with -1 as many as there are and fit."""
        cdef Py_ssize_t before = self._count
        while True:
            if self._count >= self._out.shape[0] or not self._number(&self._out[self._count]):
                return False
            self._count += 1
            space(self)
            if self._at >= self._end:
                return False
            if self._at[0] == 44:
                self._at += 1
                continue
            if self._at[0] != 93:
                return False
            self._at += 1
            return wanted < 0 or self._count - before == wanted

    cdef bint _number(self, float* value) noexcept nogil:
        cdef const char* at
        cdef const char* end = self._end
        cdef uint64_t mantissa = 0
        cdef int digits = 0, after = 0, exponent = 0, given = 0
        cdef bint negative = False, minus = False, whole = True
        cdef double found
        space(self)
        at = self._at
        if at < end and at[0] == 45:
            negative = True
            at += 1
        if at >= end or not 48 <= at[0] <= 57:
            return False
        if at[0] == 48:
            at += 1
            if at < end and 48 <= at[0] <= 57:
                return False
        else:
            while at < end and 48 <= at[0] <= 57:
                mantissa = mantissa * 10 + <uint64_t>(at[0] - 48)
                digits += 1
                at += 1
                if digits > 18:
                    return False
        if at < end and at[0] == 46:
            whole = False
            at += 1
            if at >= end or not 48 <= at[0] <= 57:
                return False
            while at < end and 48 <= at[0] <= 57:
                mantissa = mantissa * 10 + <uint64_t>(at[0] - 48)
                digits += mantissa != 0
                after += 1
                at += 1
                if digits > 18 or after > 40:
                    return False
        if at < end and (at[0] == 101 or at[0] == 69):
            whole = False
            at += 1
            if at < end and (at[0] == 43 or at[0] == 45):
                minus = at[0] == 45
                at += 1
            if at >= end or not 48 <= at[0] <= 57:
                return False
            while at < end and 48 <= at[0] <= 57:
                exponent = exponent * 10 + (at[0] - 48)
                given += 1
                at += 1
                if given > 3:
                    return False
            if minus:
                exponent = -exponent
        self._at = at
        exponent -= after
        if mantissa > EXACT or (mantissa and not -EXPONENT <= exponent <= EXPONENT):
            return False
        found = <double>mantissa
        if mantissa:
            if exponent < 0:
                found = found / POWERS[-exponent]
            else:
                found = found * POWERS[exponent]
        if found > MOST:
            return False
        # -0 is the whole number 0 to a JSON reader that knows whole numbers; -0.0 is not.
        value[0] = <float>(-found if negative and not (whole and mantissa == 0) else found)
        return True

    cdef bint _string(self, const char** text, Py_ssize_t* size) noexcept nogil:
        """Read a string of plain ASCII: no escapes, no control characters."""
        cdef const char* start
        cdef unsigned char c
        if not sign(self, b"\""):
            return False
        start = self._at
        while self._at < self._end:
            c = <unsigned char>self._at[0]
            if c == 34:
                text[0] = start
                size[0] = self._at - start
                self._at += 1
                return True
            if c < 32 or c == 92 or c > 126:
                return False
            self._at += 1
        return False
