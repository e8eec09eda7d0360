"""Which inputs came before: a digest of a row of the slab, and a bounded memory of digests.

**The digest** has 64 bits, by products of 64 x 64 bits folded onto themselves, four at a time.  Rows of up to 64 KiB
(`CLOVER_WHOLE`) are read whole.  Of larger ones the first and the last 4 KiB (`CLOVER_EDGE`) are read, because rows
that are padded differ near their beginning or their end; of the rest about a 32nd is read: it is divided into at least
64 stretches, and of each one line of 64 bytes, at a place that the key decides.  So a digest costs a fraction of what
it took to receive the row.  Two large rows that differ in none of these places have the same digest as long as the key
is the same; the key is drawn at random and shown to no client, so that none can aim at that, or at a collision.

The bytes of an array that is not contiguous, such as the corner of a larger one, are read where they lie: a copy of
them would cost more than the digest.

**The memory** is two tables.  What is new goes into the younger; once that holds `capacity` digests the older is
emptied and takes its place.  So of any `capacity` digests that were new, one after the other, no two are equal: however
long a client repeats the same inputs, evidence is never made of fewer inputs than that.
"""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_ND, PyBUF_STRIDED_RO, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>

    #define CLOVER_LINE 64
    #define CLOVER_WHOLE 65536
    #define CLOVER_EDGE 4096
    #define CLOVER_LEAST 64
    #define CLOVER_AXES 64

    static const uint64_t clover_odd[4] = {
        0xA0761D6478BD642FULL, 0xE7037ED1A0B428DBULL, 0x8EBC6AF09C88C6E3ULL, 0x589965CC75374CC3ULL};

    static inline uint64_t clover_fold(uint64_t a, uint64_t b) {
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }

    static inline uint64_t clover_word(const uint8_t *at) {
        uint64_t word;
        memcpy(&word, at, 8);
        return word;
    }

    static inline void clover_line(const uint8_t *at, const uint64_t keys[4], uint64_t state[4]) {
        for (int lane = 0; lane < 4; lane++)
            state[lane] = clover_fold(clover_word(at + 16 * lane) ^ keys[lane],
                                      clover_word(at + 16 * lane + 8) ^ state[lane]);
    }

    /* A row: runs of bytes that lie side by side, as many as its outer axes have places. */
    typedef struct {
        const uint8_t *base;
        size_t size, run;
        int axes;
        size_t shape[CLOVER_AXES];
        ptrdiff_t strides[CLOVER_AXES];
    } clover_row;

    static inline const uint8_t *clover_run(const clover_row *row, size_t index) {
        const uint8_t *at = row->base;
        for (int axis = row->axes - 1; axis >= 0; axis--) {
            at += (ptrdiff_t)(index % row->shape[axis]) * row->strides[axis];
            index /= row->shape[axis];
        }
        return at;
    }

    /* Take `count` lines from byte `from` on; what lies beyond the row is zeros. */
    static inline void clover_lines(const clover_row *row, size_t from, size_t count, const uint64_t keys[4],
                                    uint64_t state[4]) {
        for (; count; count--, from += CLOVER_LINE) {
            uint8_t line[CLOVER_LINE];
            if (!row->axes && from + CLOVER_LINE <= row->size) {
                clover_line(row->base + from, keys, state);
                continue;
            }
            size_t filled = 0, index = from / row->run, within = from % row->run;
            memset(line, 0, CLOVER_LINE);
            while (filled < CLOVER_LINE && from + filled < row->size) {
                size_t part = row->run - within;
                if (part > CLOVER_LINE - filled) part = CLOVER_LINE - filled;
                memcpy(line + filled, clover_run(row, index) + within, part);
                filled += part;
                index++;
                within = 0;
            }
            clover_line(line, keys, state);
        }
    }

    static uint64_t clover_digest(const clover_row *row, uint64_t key, uint64_t before) {
        uint64_t keys[4], state[4];
        size_t size = row->size;
        for (int lane = 0; lane < 4; lane++) {
            keys[lane] = clover_fold(key ^ clover_odd[lane], clover_odd[(lane + 1) & 3]);
            state[lane] = keys[lane] ^ before;
        }
        if (size <= CLOVER_WHOLE) {
            clover_lines(row, 0, (size + CLOVER_LINE - 1) / CLOVER_LINE, keys, state);
        } else {
            size_t rest = size - 2 * CLOVER_EDGE, lines = rest / (32 * CLOVER_LINE), from = CLOVER_EDGE;
            if (lines < CLOVER_LEAST) lines = CLOVER_LEAST;
            clover_lines(row, 0, CLOVER_EDGE / CLOVER_LINE, keys, state);
            for (size_t line = 1; line <= lines; line++) {
                size_t to = CLOVER_EDGE + line * rest / lines;
                uint64_t place = clover_fold(keys[0] ^ line, clover_odd[1]) % (to - from - CLOVER_LINE + 1);
                clover_lines(row, from + place, 1, keys, state);
                from = to;
            }
            clover_lines(row, size - CLOVER_EDGE, CLOVER_EDGE / CLOVER_LINE, keys, state);
        }
        return clover_fold(clover_fold(state[0] ^ size, state[1] ^ keys[0]),
                           clover_fold(state[2] ^ keys[1], state[3] ^ keys[2]) ^ keys[3]);
    }
    """
    const int AXES "CLOVER_AXES"

    ctypedef struct Row "clover_row":
        const unsigned char *base
        size_t size
        size_t run
        int axes
        size_t *shape
        Py_ssize_t *strides

    uint64_t clover_digest(const Row *row, uint64_t key, uint64_t before) nogil

cdef enum:
    MOST = 1 << 24


cdef class Digests:
    """Digests of rows that lie in `regions`, arrays [slots, ...] in C order that are kept alive.

    The secret `key` has 64 bits.
    """

    def __cinit__(self, list regions, uint64_t key):
        cdef Py_buffer *buffer
        self._key = key
        self._buffers = <Py_buffer *>calloc(max(len(regions), 1), sizeof(Py_buffer))
        if self._buffers == NULL:
            raise MemoryError
        self._slots = -1
        for region in regions:
            buffer = self._buffers + self._count
            PyObject_GetBuffer(region, buffer, PyBUF_C_CONTIGUOUS | PyBUF_ND)
            self._count += 1  # it is to be released
            if buffer.ndim < 1 or buffer.shape[0] < 1:
                raise ValueError("the rows have no axis of slots")
            if self._slots not in (-1, buffer.shape[0]):
                raise ValueError("the regions differ in slots")
            self._slots = buffer.shape[0]

    def __dealloc__(self):
        cdef Py_ssize_t at
        for at in range(self._count):
            PyBuffer_Release(&self._buffers[at])
        free(self._buffers)

    cpdef uint64_t row(self, Py_ssize_t slot) except? 0:
        """Return the digest of what lies in `slot` of all regions."""
        cdef uint64_t found = 0
        cdef Py_ssize_t at
        cdef Row row
        if not 0 <= slot < self._slots:
            raise IndexError(f"slot {slot} is outside 0..{self._slots - 1}")
        row.axes = 0
        for at in range(self._count):
            row.size = row.run = self._buffers[at].len // self._slots
            row.base = <const unsigned char *>self._buffers[at].buf + slot * row.size
            found = clover_digest(&row, self._key, found)
        return found

    cpdef uint64_t more(self, uint64_t before, object data) except? 0:
        """Return the digest of `data`, bytes or an array of any strides, after that of something `before` it."""
        cdef Py_buffer buffer
        cdef uint64_t found
        PyObject_GetBuffer(data, &buffer, PyBUF_STRIDED_RO)
        try:
            found = self._strided(before, &buffer)
        finally:
            PyBuffer_Release(&buffer)
        return found

    cdef uint64_t _strided(self, uint64_t before, const Py_buffer *buffer) except? 0:
        cdef int axis = buffer.ndim - 1, outer
        cdef Row row
        if buffer.ndim > AXES:
            raise ValueError(f"an array has {AXES} axes at most, not {buffer.ndim}")
        row.base = <const unsigned char *>buffer.buf
        row.size = buffer.len
        row.run = buffer.itemsize
        while axis >= 0 and (buffer.shape[axis] == 1 or buffer.strides[axis] == <Py_ssize_t>row.run):
            row.run *= buffer.shape[axis]
            axis -= 1
        row.axes = axis + 1 if row.size else 0
        for outer in range(row.axes):
            row.shape[outer] = buffer.shape[outer]
            row.strides[outer] = buffer.strides[outer]
        return clover_digest(&row, self._key, before)


cdef class Recent:
    """The last digests that were new: `capacity` of them at least, twice as many at most."""

    def __cinit__(self, Py_ssize_t capacity):
        cdef Py_ssize_t room = 2
        if not 1 <= capacity <= MOST:
            raise ValueError(f"a memory holds 1 to {MOST} digests, not {capacity}")
        while room < 2 * capacity:
            room *= 2
        self.capacity = capacity
        self._mask = room - 1
        self._young = <uint64_t *>calloc(room, sizeof(uint64_t))
        self._old = <uint64_t *>calloc(room, sizeof(uint64_t))
        if self._young == NULL or self._old == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self._young)
        free(self._old)

    cdef Py_ssize_t _place(self, const uint64_t *table, uint64_t digest) noexcept nogil:
        """Return where `digest` lies in a table, or would; a table is never more than half full."""
        cdef Py_ssize_t at = digest & self._mask
        while table[at] and table[at] != digest:
            at = (at + 1) & self._mask
        return at

    cpdef bint holds(self, uint64_t digest):
        """Return whether `digest` came before."""
        digest = digest if digest else 1  # 0 is an empty place
        return self._young[self._place(self._young, digest)] != 0 or self._old[self._place(self._old, digest)] != 0

    cpdef bint add(self, uint64_t digest):
        """Remember `digest`; return whether it is new."""
        cdef Py_ssize_t at
        digest = digest if digest else 1
        at = self._place(self._young, digest)
        if self._young[at] or self._old[self._place(self._old, digest)]:
            return False
        self._young[at] = digest
        self._count += 1
        if self._count == self.capacity:
            self._young, self._old = self._old, self._young
            memset(self._young, 0, (self._mask + 1) * sizeof(uint64_t))
            self._count = 0
        return True

    cpdef clear(self):
        """Remove all digests."""
        memset(self._young, 0, (self._mask + 1) * sizeof(uint64_t))
        memset(self._old, 0, (self._mask + 1) * sizeof(uint64_t))
        self._count = 0
