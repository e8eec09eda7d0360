"""What every answer and every request takes: send at once, copy what was read, join an answer, read the clock.

An event loop's transport keeps what it is given and writes it at the end of its turn, from a list of its own.  A socket
takes nearly every answer whole at once, so it is asked first; what it does not take is the transport's.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, strlen
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    const unsigned char *PyUnicode_1BYTE_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)

cdef extern from "<strings.h>" nogil:
    int strncasecmp(const char *one, const char *other, size_t size)

cdef extern from "<sys/socket.h>" nogil:
    ssize_t c_send "send"(int fd, const void *data, size_t size, int flags)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL

cdef const char *HEX = b"0123456789abcdef"
cdef enum:
    TAG = 17  # characters: a hyphen and 64 bits
    NUMBER = 24  # characters: 64 bits and a point are 21 at most
    AMOUNTS = 2 * NUMBER + 26  # characters: the names of two amounts, equals signs, quotes and a comma are 26
    VARYING = 6  # fields of a request whose values vary
    MOST_DIGITS = 18
    MOST_ID = 128
cdef const char **VARYING_NAMES = [b"content-length:", b"inference-header-content-length:", b"x-request-id:",
                                   b"traceparent:", b"tracestate:", b"baggage:"]


cpdef Py_ssize_t send(int fd, bytes data) except -1:
    """Send `data` and return how many bytes the socket `fd` took now.

    0 if it takes none, whatever the reason: the transport that is asked next finds it.
    """
    cdef ssize_t sent = c_send(fd, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), MSG_DONTWAIT | MSG_NOSIGNAL)
    return sent if sent > 0 else 0


cpdef bytes part(bytes data, Py_ssize_t start, Py_ssize_t stop):
    """Return `data[start:stop]`.  IndexError if that is not all there."""
    if not 0 <= start <= stop <= PyBytes_GET_SIZE(data):
        raise IndexError(f"{start} to {stop} of {PyBytes_GET_SIZE(data)} bytes")
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(data) + start, stop - start)


cpdef Py_ssize_t head_end(bytes data, Py_ssize_t start) except -2:
    """Return where the first CRLF CRLF from `start` on ends in `data`; -1 if there is none."""
    cdef const char *first = PyBytes_AS_STRING(data)
    cdef const char *end = first + PyBytes_GET_SIZE(data)
    cdef const char *at
    if not 0 <= start <= PyBytes_GET_SIZE(data):
        raise IndexError(f"{start} of {PyBytes_GET_SIZE(data)} bytes")
    at = first + start
    while end - at >= 4:
        at = <const char *>memchr(at, 13, end - at - 3)
        if at == NULL:
            return -1
        if at[1] == 10 and at[2] == 13 and at[3] == 10:
            return at + 4 - first
        at += 1
    return -1


cpdef tuple varying(bytes raw):
    """Return the head `raw` without the values that vary from request to request, and these values.

    That is (rest, Content-Length, Inference-Header-Content-Length, X-Request-Id, traceparent, tracestate, baggage): the
    first value of each name, 0, -1 or empty without one.  Heads with the same rest differ in these values only.  None if
    a value is empty, or no number of 1 to 18 digits, no id of 1 to 128 visible characters, or no printable ASCII, or if
    Content-Length is 0: what a head expects depends on whether it has a body.
    """
    cdef const char *first = PyBytes_AS_STRING(_some(raw))
    cdef const char *stop = first + PyBytes_GET_SIZE(raw)
    cdef const char *line = <const char *>memchr(first, 10, stop - first)
    cdef const char *after
    cdef const char *copied = first
    cdef const char *start
    cdef const char *end
    cdef Py_ssize_t[VARYING] at, size, order
    cdef Py_ssize_t field, count = 0, left = stop - first
    cdef int64_t[2] numbers = [0, -1]
    cdef list texts = [b"", b"", b"", b""]
    cdef bytes rest
    cdef char *to
    for field in range(VARYING):
        at[field] = 0
    while line != NULL:
        line += 1
        after = <const char *>memchr(line, 10, stop - line)
        if after == NULL:
            break
        field = _varying_field(line)
        if field >= 0 and not at[field]:
            start, end = line + strlen(VARYING_NAMES[field]), after
            if end > start and (end - 1)[0] == 13:
                end -= 1
            while start < end and (start[0] == 32 or start[0] == 9):
                start += 1
            while start < end and ((end - 1)[0] == 32 or (end - 1)[0] == 9):
                end -= 1
            if not _is_value(field, start, end):
                return None
            if field < 2:
                numbers[field] = _number(start, end)
                if not field and not numbers[0]:
                    return None
            else:
                texts[field - 2] = PyBytes_FromStringAndSize(start, end - start)
            at[field], size[field] = start - first, end - start
            left -= end - start
            order[count] = field
            count += 1
        line = after
    rest = raw
    if count:
        rest = PyBytes_FromStringAndSize(NULL, left)
        to = PyBytes_AS_STRING(rest)
        for field in order[:count]:
            start = first + at[field]
            memcpy(to, copied, start - copied)
            to += start - copied
            copied = start + size[field]
        memcpy(to, copied, stop - copied)
    return rest, numbers[0], numbers[1], texts[0], texts[1], texts[2], texts[3]


cdef inline Py_ssize_t _varying_field(const char *line) noexcept nogil:
    """Return which of the varying fields a line begins with, or -1.  The line ends within its string."""
    cdef Py_ssize_t field
    for field in range(VARYING):
        if (line[0] | 32) == VARYING_NAMES[field][0] and strncasecmp(
            line, VARYING_NAMES[field], strlen(VARYING_NAMES[field])
        ) == 0:
            return field
    return -1


cdef inline bint _is_value(Py_ssize_t field, const char *start, const char *end) noexcept nogil:
    """Return whether the text is a value that `varying` takes out."""
    cdef char least = 48 if field < 2 else 33 if field == 2 else 32
    cdef char most = 57 if field < 2 else 126
    if start == end or (field < 2 and end - start > MOST_DIGITS) or (field == 2 and end - start > MOST_ID):
        return False
    while start < end:
        if not least <= start[0] <= most:
            return False
        start += 1
    return True


cdef inline int64_t _number(const char *start, const char *end) noexcept nogil:
    cdef int64_t number = 0
    while start < end:
        number = 10 * number + start[0] - 48
        start += 1
    return number


cpdef bytes cut(bytearray page, Py_ssize_t size):
    """Return the first `size` bytes of `page`.  IndexError if it has fewer."""
    if not 0 <= size <= PyByteArray_GET_SIZE(page):
        raise IndexError(f"{size} bytes of {PyByteArray_GET_SIZE(page)}")
    return PyBytes_FromStringAndSize(PyByteArray_AS_STRING(page), size)


cpdef bytes joined(list head, list parts):
    """Return all bytes of `head`, then all of `parts`.  TypeError if something else is among them."""
    cdef Py_ssize_t size = 0
    cdef bytes part, made
    cdef char *to
    for part in head:
        size += PyBytes_GET_SIZE(_some(part))
    for part in parts:
        size += PyBytes_GET_SIZE(_some(part))
    made = PyBytes_FromStringAndSize(NULL, size)
    to = PyBytes_AS_STRING(made)
    for part in head:
        memcpy(to, PyBytes_AS_STRING(part), PyBytes_GET_SIZE(part))
        to += PyBytes_GET_SIZE(part)
    for part in parts:
        memcpy(to, PyBytes_AS_STRING(part), PyBytes_GET_SIZE(part))
        to += PyBytes_GET_SIZE(part)
    return made


cdef inline bytes _some(bytes part):
    if part is None:
        raise TypeError("None is no bytes")
    return part


cpdef bytes quoted(str text):
    """Return `text` as a string of JSON if it needs no escapes; None if it does.

    That is ASCII without control characters, quotes and backslashes.
    """
    cdef Py_ssize_t size, at
    cdef const unsigned char *start
    cdef bytes made
    cdef char *to
    if text is None or not PyUnicode_IS_COMPACT_ASCII(text):
        return None
    size = PyUnicode_GET_LENGTH(text)
    start = PyUnicode_1BYTE_DATA(text)
    made = PyBytes_FromStringAndSize(NULL, size + 2)
    to = PyBytes_AS_STRING(made)
    to[0] = to[size + 1] = c'"'
    for at in range(size):
        if start[at] < 32 or start[at] == 34 or start[at] == 92 or start[at] > 126:
            return None
        to[at + 1] = <char>start[at]
    return made


cpdef bytes receipt_line(bytes start, bytes end, double energy_j, double carbon_mg):
    """Return `start`, the amounts of a receipt with nine places, and `end`.

    The amounts are rounded as Python's `round` rounds nanojoules and picograms.
    """
    cdef uint64_t nanojoules, picograms
    cdef char[AMOUNTS] text
    cdef char *stop = text
    cdef char *to
    cdef bytes made
    cdef Py_ssize_t size, before, after
    before, after = PyBytes_GET_SIZE(_some(start)), PyBytes_GET_SIZE(_some(end))
    if not _rounded(energy_j * 1e9, &nanojoules) or not _rounded(carbon_mg * 1e9, &picograms):
        return b'%benergy-j="%b", carbon-mg="%b"%b' % (start, _billionths(energy_j), _billionths(carbon_mg), end)
    stop = _decimal(_copied(stop, b'energy-j="'), nanojoules, 9)
    stop = _copied(_decimal(_copied(stop, b'", carbon-mg="'), picograms, 9), b'"')
    size = stop - text
    made = PyBytes_FromStringAndSize(NULL, before + size + after)
    to = PyBytes_AS_STRING(made)
    memcpy(to, PyBytes_AS_STRING(start), before)
    memcpy(to + before, text, size)
    memcpy(to + before + size, PyBytes_AS_STRING(end), after)
    return made


cdef inline char *_copied(char *to, const char *text) noexcept nogil:
    """Copy `text` without its zero byte; return where the copy ends."""
    cdef size_t size = strlen(text)
    memcpy(to, text, size)
    return to + size


cdef bytes _billionths(double value):
    """Return `value` with nine places, by Python's own numbers, which have no largest."""
    parts = round(value * 1e9)
    return b"%b%d.%09d" % (b"-" if parts < 0 else b"", *divmod(abs(parts), 10**9))


cdef bint _rounded(double value, uint64_t *found) noexcept nogil:
    """Find `value`, rounded half to even.

    False if `value` is negative (-0.0 too), 2**52 or more, or no number.
    """
    cdef uint64_t bits, whole, half
    cdef int shift
    memcpy(&bits, &value, sizeof(bits))
    shift = 1075 - <int>(bits >> 52)  # the sign is the highest bit: a negative value looks large
    if shift <= 0:
        return False
    if shift >= 64:  # or subnormal: the value, of 53 bits, is less than half of 2**shift
        found[0] = 0
        return True
    whole = (bits & 0xFFFFFFFFFFFFFULL) | 0x10000000000000ULL
    half = <uint64_t>1 << (shift - 1)
    found[0] = (whole + half - 1 + (whole >> shift & 1)) >> shift  # a half goes up to an even number alone
    return True


cdef char *_decimal(char *to, uint64_t number, int places) noexcept nogil:
    """Write `number`, of which the last `places` digits stand behind a point; return where it ends."""
    cdef char[NUMBER] text
    cdef int at = NUMBER, count = 0
    while number or count <= places:
        if count == places and places:
            at -= 1
            text[at] = c'.'
        at -= 1
        text[at] = <char>(c'0' + number % 10)
        number //= 10
        count += 1
    memcpy(to, text + at, NUMBER - at)
    return to + NUMBER - at


cdef inline uint64_t _rotated(uint64_t word, int bits) noexcept nogil:
    return (word << bits) | (word >> (64 - bits))


cdef inline void _round(uint64_t *v) noexcept nogil:
    v[0] += v[1]
    v[2] += v[3]
    v[1] = _rotated(v[1], 13) ^ v[0]
    v[3] = _rotated(v[3], 16) ^ v[2]
    v[0] = _rotated(v[0], 32)
    v[2] += v[1]
    v[0] += v[3]
    v[1] = _rotated(v[1], 17) ^ v[2]
    v[3] = _rotated(v[3], 21) ^ v[0]
    v[2] = _rotated(v[2], 32)


cpdef uint64_t siphash(uint64_t low, uint64_t high, uint64_t number) noexcept:
    """Return SipHash-2-4 (Aumasson and Bernstein, 2012) of the 8 bytes of `number`.

    The halves of its key of 128 bits are `low` and `high`, all little-endian.
    """
    cdef uint64_t[4] v
    cdef uint64_t length = <uint64_t>8 << 56
    v[0] = low ^ 0x736F6D6570736575ULL
    v[1] = high ^ 0x646F72616E646F6DULL
    v[2] = low ^ 0x6C7967656E657261ULL
    v[3] = high ^ 0x7465646279746573ULL
    v[3] ^= number
    _round(v)
    _round(v)
    v[0] ^= number
    v[3] ^= length
    _round(v)
    _round(v)
    v[0] ^= length
    v[2] ^= 0xFF
    _round(v)
    _round(v)
    _round(v)
    _round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


cpdef bytes sealed(bytes prefix, uint64_t number, uint64_t low, uint64_t high):
    """Return `prefix`, `number` in hexadecimal, a hyphen, and the 16 digits of the number's SipHash.

    Only a holder of the key can make such a text.
    """
    cdef Py_ssize_t size, count = 1, at
    cdef uint64_t rest = number, tag = siphash(low, high, number)
    cdef bytes made
    cdef char *to
    size = PyBytes_GET_SIZE(_some(prefix))
    while rest > 15:
        rest >>= 4
        count += 1
    made = PyBytes_FromStringAndSize(NULL, size + count + TAG)
    to = PyBytes_AS_STRING(made)
    memcpy(to, PyBytes_AS_STRING(prefix), size)
    to += size
    for at in range(count - 1, -1, -1):
        to[at] = HEX[number & 15]
        number >>= 4
    to += count
    to[0] = c'-'
    for at in range(TAG - 1, 0, -1):
        to[at] = HEX[tag & 15]
        tag >>= 4
    return made


cpdef object unsealed(bytes prefix, bytes text, uint64_t low, uint64_t high):
    """Return the number that `sealed` made `text` of, with the same prefix and key; None for any other text.

    How long it takes does not depend on how many digits of the tag are right.
    """
    cdef const char *start = PyBytes_AS_STRING(_some(text))
    cdef Py_ssize_t skip = PyBytes_GET_SIZE(_some(prefix))
    cdef Py_ssize_t count = PyBytes_GET_SIZE(text) - skip - TAG
    cdef uint64_t number, tag
    if not 1 <= count <= 16 or memcmp(start, PyBytes_AS_STRING(prefix), skip) != 0:
        return None
    start += skip
    # One spelling a number: no zeros in front.
    if (start[0] == c'0' and count > 1) or start[count] != c'-':
        return None
    if not _digits(start, count, &number) or not _digits(start + count + 1, TAG - 1, &tag):
        return None
    return number if siphash(low, high, number) ^ tag == 0 else None


cdef bint _digits(const char *text, Py_ssize_t count, uint64_t *found) noexcept nogil:
    """Read `count` hexadecimal digits (16 at most, no capitals) into `found`.  False if `text` does not start so."""
    cdef uint64_t number = 0
    cdef Py_ssize_t at
    for at in range(count):
        if c'0' <= text[at] <= c'9':
            number = (number << 4) | <uint64_t>(text[at] - c'0')
        elif c'a' <= text[at] <= c'f':
            number = (number << 4) | <uint64_t>(text[at] - c'a' + 10)
        else:
            return False
    found[0] = number
    return True


cpdef int64_t monotonic_ns() except? -1:
    """Return `time.monotonic_ns()`, without an object."""
    cdef timespec now
    if clock_gettime(CLOCK_MONOTONIC, &now) != 0:
        raise OSError("the monotonic clock cannot be read")
    return <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec
