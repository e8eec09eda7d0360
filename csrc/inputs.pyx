"""Which inputs came before: a digest of a row of the slab, and a bounded memory of digests.

**The digest** has 64 bits, by products of 64 x 64 bits folded onto themselves, four at a time.  Rows of up to `WHOLE`
bytes are read whole.  Of larger ones a 32nd is read, 64 stretches at least, whose places the key decides: that costs a
fraction of what it took to receive them.  Two rows that differ nowhere else have one digest.  The key is drawn by
whoever makes one and told to nobody, so that no client can aim at that, or at a collision.

**The memory** is two tables.  What is new goes into the younger; once that holds `capacity` digests the older is emptied
and takes its place.  So of any `capacity` digests that were new, one after the other, no two are equal: however long a
client goes round in a circle, evidence is never made of fewer inputs than that.
"""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_ND, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>

    #define CLOVER_LINE 64
    #define CLOVER_WHOLE 4096
    #define CLOVER_LEAST 64

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

    static uint64_t clover_digest(const uint8_t *row, size_t size, uint64_t key, uint64_t before) {
        uint64_t keys[4], state[4];
        uint8_t rest[CLOVER_LINE] = {0};
        for (int lane = 0; lane < 4; lane++) {
            keys[lane] = clover_fold(key ^ clover_odd[lane], clover_odd[(lane + 1) & 3]);
            state[lane] = keys[lane] ^ before;
        }
        if (size <= CLOVER_WHOLE) {
            size_t at = 0;
            for (; at + CLOVER_LINE <= size; at += CLOVER_LINE) clover_line(row + at, keys, state);
            if (at < size) {
                memcpy(rest, row + at, size - at);
                clover_line(rest, keys, state);
            }
        } else {
            size_t lines = size / (32 * CLOVER_LINE);
            if (lines < CLOVER_LEAST) lines = CLOVER_LEAST;
            size_t stretch = size / lines;
            for (size_t line = 0; line < lines; line++) {
                uint64_t place = clover_fold(keys[0] ^ line, clover_odd[1]) % (stretch - CLOVER_LINE + 1);
                clover_line(row + line * stretch + place, keys, state);
            }
        }
        return clover_fold(clover_fold(state[0] ^ size, state[1] ^ keys[0]),
                           clover_fold(state[2] ^ keys[1], state[3] ^ keys[2]) ^ keys[3]);
    }
    """
    uint64_t clover_digest(const unsigned char *row, size_t size, uint64_t key, uint64_t before) nogil

cdef enum:
    MOST = 1 << 24


cdef class Digests:
    """Digests of rows that lie in `regions`, arrays [slots, ...] in C order, which are kept alive; the secret `key` has 64
    bits."""

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
        """The digest of what lies in `slot` of all regions."""
        cdef uint64_t found = 0
        cdef Py_ssize_t at, size
        if not 0 <= slot < self._slots:
            raise IndexError(f"slot {slot} is outside 0..{self._slots - 1}")
        for at in range(self._count):
            size = self._buffers[at].len // self._slots
            found = clover_digest(<const unsigned char *>self._buffers[at].buf + slot * size, size, self._key, found)
        return found

    cpdef uint64_t more(self, uint64_t before, const unsigned char[::1] data) except? 0:
        """The digest of `data` after that of something `before` it."""
        cdef Py_ssize_t size = data.shape[0]
        return clover_digest(&data[0] if size else NULL, size, self._key, before)


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
        """Where `digest` lies in a table, or would; a table is never more than half full."""
        cdef Py_ssize_t at = digest & self._mask
        while table[at] and table[at] != digest:
            at = (at + 1) & self._mask
        return at

    cpdef bint holds(self, uint64_t digest):
        """Whether `digest` came before."""
        digest = digest if digest else 1  # 0 is an empty place
        return self._young[self._place(self._young, digest)] != 0 or self._old[self._place(self._old, digest)] != 0

    cpdef bint add(self, uint64_t digest):
        """Remember `digest`; whether it is new."""
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
        """Forget all."""
        memset(self._young, 0, (self._mask + 1) * sizeof(uint64_t))
        memset(self._old, 0, (self._mask + 1) * sizeof(uint64_t))
        self._count = 0
