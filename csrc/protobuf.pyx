"""What a `ModelInferRequest` holds, found before protobuf makes objects of it.

`cut` reads the encoded message once and makes nothing but views of its raw contents.  It counts what protobuf would
make an object of, and what the server would: a field weighs 3, as a string of JSON does (`infer.burden`), and a number
in a packed field 1.  Fields are counted where a client may repeat them at will: in the request, its inputs, their
contents, and its outputs.  What is inside of a parameter is not: protobuf keeps the last of each field of it.

The numbers of the fields are those of `clover/grpc/open_inference.proto`.
"""

from libc.stdint cimport uint64_t

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

cdef enum:
    FIELDS = 4096  # of a request, not counting those inside of fields: each may become a Python object
    PARAMETERS = 64  # of a request, an input or an output
    RAW = 7

cdef enum Kind:
    REQUEST
    INPUT
    OUTPUT
    CONTENTS


cdef struct Field:
    uint64_t number
    int wire
    const unsigned char *begin
    const unsigned char *end


cdef uint64_t _varint(const unsigned char **at, const unsigned char *end) except? 0:
    """Return the number that begins at `at`, which then is behind it."""
    cdef uint64_t value = 0
    cdef int shift = 0
    cdef unsigned char byte
    while at[0] < end and shift < 70:
        byte = at[0][0]
        at[0] += 1
        if shift < 64:
            value |= <uint64_t>(byte & 0x7F) << shift
        if byte < 0x80:
            return value
        shift += 7
    raise ValueError("it ends inside a number")


cdef int _next(const unsigned char **at, const unsigned char *end, Field *field) except -1:
    """Read the field that begins at `at`, which then is behind it."""
    cdef uint64_t key = _varint(at, end)
    cdef uint64_t size = 0
    field.number = key >> 3
    field.wire = key & 7
    field.begin = at[0]
    if field.wire == 2:
        size = _varint(at, end)
        field.begin = at[0]
    elif field.wire == 0:
        _varint(at, end)
    elif field.wire == 5:
        size = 4
    elif field.wire == 1:
        size = 8
    else:
        raise ValueError("it has a field of no known kind")
    if size > <uint64_t>(end - at[0]):
        raise ValueError("it ends inside a field")
    at[0] += size
    field.end = at[0]
    return 0


cdef Py_ssize_t _numbers(const Field *field, Kind kind) noexcept:
    """Return how many numbers a packed field has; 0 for any other."""
    cdef const unsigned char *at = field.begin
    cdef Py_ssize_t count = 0
    if kind == INPUT:
        if field.number != 3:
            return 0
    elif kind != CONTENTS or field.number > 7:
        return 0
    elif field.number > 5:
        return (field.end - field.begin) >> (2 if field.number == 6 else 3)
    while at < field.end:
        count += at[0] < 0x80
        at += 1
    return count


cdef Py_ssize_t _weigh(const unsigned char *at, const unsigned char *end, Kind kind, Py_ssize_t left) except -1:
    """Return what is left of the weight `left` after the fields of a message within a request."""
    cdef Field field
    cdef int parameters = 0
    while at < end:
        _next(&at, end, &field)
        left -= 3
        if field.wire == 2:
            left -= _numbers(&field, kind)
            parameters += _is_parameter(&field, kind)
        _check(left, parameters)
        if field.wire == 2 and field.number == 5 and kind == INPUT:
            left = _weigh(field.begin, field.end, CONTENTS, left)
    return left


cdef bint _is_parameter(const Field *field, Kind kind) noexcept:
    return field.number == (2 if kind == OUTPUT else 4) and kind != CONTENTS


cdef int _check(Py_ssize_t left, int parameters) except -1:
    if parameters > PARAMETERS:
        raise OverflowError(f"it has more than {PARAMETERS} parameters")
    if left < 0:
        raise OverflowError("it holds too many elements or fields: send tensors as raw_input_contents, or fewer rows")
    return 0


cpdef tuple cut(bytes message, Py_ssize_t weight):
    """Return an encoded `ModelInferRequest` without its raw contents, and the list of these, as views of it.

    ValueError if it is malformed, OverflowError if it weighs more than `weight`, or has more fields or parameters than
    are read; both say why.
    """
    cdef const unsigned char *first
    cdef const unsigned char *at
    cdef const unsigned char *end
    cdef const unsigned char *start
    cdef const unsigned char *begin
    cdef Field field
    cdef Py_ssize_t left = weight
    cdef int parameters = 0, fields = 0
    if message is None:
        raise TypeError("None is no message")
    first = at = start = <const unsigned char *>PyBytes_AS_STRING(message)
    end = first + PyBytes_GET_SIZE(message)
    view = memoryview(message)
    rest = []
    raws = []
    while at < end:
        begin = at
        _next(&at, end, &field)
        fields += 1
        if fields > FIELDS:
            raise OverflowError(f"it has more than {FIELDS} fields")
        left -= 3
        parameters += field.wire == 2 and _is_parameter(&field, REQUEST)
        _check(left, parameters)
        if field.wire != 2:
            continue
        if field.number == RAW:
            rest.append(message[start - first : begin - first])
            raws.append(view[field.begin - first : field.end - first])
            start = field.end
        elif field.number == 5 or field.number == 6:
            left = _weigh(field.begin, field.end, INPUT if field.number == 5 else OUTPUT, left)
    if not raws:
        return message, raws
    rest.append(message[start - first :])
    return b"".join(rest), raws
