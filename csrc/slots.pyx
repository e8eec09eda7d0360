"""The free list of a slab: which slots are taken, and which to take next.

Workers read a batch as one view of the slab where its slots are consecutive, and gather otherwise, so the allocator
prefers runs.  Free slots are bits of words, eight words a chunk, with one summary bit a word.

Rows that come one after the other are to lie one after the other, also where a batch is given back while the next one
gathers: with the lowest free slot each, the next one would lie partly behind that batch and partly in its place.  So
one row takes the next free slot within the first `window` slots, and begins again with the lowest at their end, or as
soon as none is taken; if all of them are taken it takes the lowest free slot.  All of the window is touched then,
however few rows there are at a time, and no more: who chooses it bounds its bytes, which matters for caches and for the
memory that is used.  The high end stays whole for requests of many rows; those take the lowest run that fits in a
chunk, and where no chunk looked at has one, the lowest single slots.
"""

from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.ref cimport Py_INCREF
from cython.view cimport array as cvarray
from libc.stdint cimport uint64_t

cdef extern from *:
    """
    static inline int clover_lowest(uint64_t word) { return __builtin_ctzll(word); }
    """
    int clover_lowest(uint64_t word) nogil


cdef enum:
    BITS = 64
    WORDS = 8  # of a chunk
    CHUNK = BITS * WORDS
    SEARCHED_CHUNKS = 16
    MAX_SLOTS = 1 << 24


cdef class SlotAllocator:
    """The slot numbers 0 .. `slots` - 1, free or taken; `window`: how many of the first are taken in turn."""

    def __cinit__(self, Py_ssize_t slots, Py_ssize_t window=0):
        cdef Py_ssize_t word, words, summaries, left
        if slots < 1:
            raise ValueError("a slab needs at least one slot")
        if slots > MAX_SLOTS:
            raise ValueError(f"a slab has at most {MAX_SLOTS} slots")
        if window < 0:
            raise ValueError("a window must not be negative")
        self.slots = self.free = slots
        self._window = min(window, slots)
        self._chunks = (slots + CHUNK - 1) // CHUNK
        words = self._chunks * WORDS
        self._words = cvarray((words,), sizeof(uint64_t), "Q" if sizeof(unsigned long) != 8 else "L")
        summaries = (words + BITS - 1) // BITS
        self._some = cvarray((summaries,), sizeof(uint64_t), "Q" if sizeof(unsigned long) != 8 else "L")
        self._some[:] = 0
        for word in range(words):
            left = slots - word * BITS
            self._words[word] = (
                0 if left <= 0 else ~<uint64_t>0 if left >= BITS else (<uint64_t>1 << left) - 1
            )
            if left > 0:
                self._some[word // BITS] |= <uint64_t>1 << (word % BITS)

    cdef void _took(self, Py_ssize_t word) noexcept nogil:
        if self._words[word] == 0:
            self._some[word // BITS] &= ~(<uint64_t>1 << (word % BITS))

    cdef Py_ssize_t _one(self) noexcept nogil:
        """Take the lowest free slot; -1 if none is free."""
        cdef Py_ssize_t summary, word, slot
        for summary in range(self._some.shape[0]):
            if self._some[summary]:
                word = summary * BITS + clover_lowest(self._some[summary])
                slot = word * BITS + clover_lowest(self._words[word])
                self._words[word] &= self._words[word] - 1
                self._took(word)
                self.free -= 1
                return slot
        return -1

    cdef Py_ssize_t _next(self) noexcept nogil:
        """Take the slot for one row; -1 if none is free."""
        cdef Py_ssize_t slot = -1, word
        cdef uint64_t bits
        if self.free == self.slots:
            self._cursor = 0
        if self._cursor < self._window:
            word = self._cursor // BITS
            bits = self._words[word] & (~<uint64_t>0 << (self._cursor % BITS))
            while bits == 0 and (word + 1) * BITS < self._window:
                word += 1
                bits = self._words[word]
            if bits:
                slot = word * BITS + clover_lowest(bits)
        if 0 <= slot < self._window:
            self._words[word] &= ~(<uint64_t>1 << (slot % BITS))
            self._took(word)
            self.free -= 1
        else:
            slot = self._one()
        self._cursor = slot + 1
        return slot

    cdef Py_ssize_t _run(self, Py_ssize_t count) noexcept nogil:
        """Return the lowest run of `count` slots in one of the first chunks with free slots; -1 if there is none."""
        cdef Py_ssize_t chunk, searched = 0, word, first, run, at, ones
        cdef uint64_t bits
        for chunk in range(self._chunks):
            run = 0
            ones = 0
            for word in range(chunk * WORDS, (chunk + 1) * WORDS):
                bits = self._words[word]
                ones |= bits != 0
                at = 0
                while at < BITS:
                    if bits == 0:
                        run = 0
                        break
                    if not bits & 1:
                        run = 0
                        first = clover_lowest(bits)
                        at += first
                        bits >>= first
                    # `bits` begins with a run of ones: where the complement has none, all 64 are.
                    first = BITS - at if ~bits == 0 else clover_lowest(~bits)
                    if first > BITS - at:
                        first = BITS - at
                    if run + first >= count:
                        return word * BITS + at - run
                    run += first
                    at += first
                    bits = bits >> first if first < BITS else 0
                    if at < BITS:
                        run = 0
            if ones:
                searched += 1
                if searched == SEARCHED_CHUNKS:
                    break
        return -1

    def take_one(self):
        """Take the next slot for one row; -1 if none is free."""
        return self._next()

    cpdef list take(self, Py_ssize_t count):
        """Take `count` slots in rising order, consecutive if possible; None (nothing taken) if too few are free."""
        cdef Py_ssize_t first = -1, at, slot
        cdef list found
        if count < 1:
            raise ValueError("at least one slot is taken")
        if count > self.free:
            return None
        if count == 1:
            return [self._next()]
        if count <= CHUNK:
            first = self._run(count)
        found = PyList_New(count)
        for at in range(count):
            if first < 0:
                slot = self._one()
            else:
                slot = first + at
                self._words[slot // BITS] &= ~(<uint64_t>1 << (slot % BITS))
                self._took(slot // BITS)
            number = <object>slot
            Py_INCREF(number)
            PyList_SET_ITEM(found, at, number)
        if first >= 0:
            self.free -= count
        return found

    cpdef give(self, Py_ssize_t slot):
        """Give one slot back.  ValueError if it is not taken."""
        cdef uint64_t bit
        if not 0 <= slot < self.slots:
            raise ValueError(f"slot {slot} is not taken")
        bit = <uint64_t>1 << (slot % BITS)
        if self._words[slot // BITS] & bit:
            raise ValueError(f"slot {slot} is not taken")
        self._words[slot // BITS] |= bit
        self._some[slot // (BITS * BITS)] |= <uint64_t>1 << ((slot // BITS) % BITS)
        self.free += 1
