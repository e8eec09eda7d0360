"""The two rings between the server and one worker, as Python objects: `csrc/ring.h` says how they work, and does it.

What does not fit raises ValueError and leaves the ring as it is, because a peer that wrote it is to be ended, not
resumed.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport INT32_MAX, INT32_MIN, INT64_MAX, int32_t, uint32_t, uint64_t, uintptr_t

cdef extern from "ring.h" nogil:
    enum:
        FRAMES "CLOVER_RING_FRAMES"
        VERSION "CLOVER_RING_VERSION"
        NOTHING "CLOVER_RING_NOTHING"
        INDEX "CLOVER_RING_INDEX"
        ROWS "CLOVER_RING_ROWS"
        LANE "CLOVER_RING_LANE"
        TIMES "CLOVER_RING_TIMES"
        ROOM "CLOVER_RING_ROOM"
        OTHER "CLOVER_RING_OTHER"
        LAYOUT "CLOVER_RING_LAYOUT"
        BATCH "CLOVER_RING_BATCH"

    ctypedef struct clover_ring:
        pass

    ctypedef struct clover_ring_submission:
        uint64_t batch_id
        uint32_t n
        uint32_t lane

    ctypedef struct clover_ring_completion:
        uint64_t batch_id
        int32_t status
        uint32_t n
        uint64_t start_ns
        uint64_t end_ns
        uint64_t cpu_ns

    size_t clover_ring_bytes(uint32_t max_batch)
    int clover_ring_attach(
        clover_ring *ring, void *base, uint32_t max_batch, uint32_t lanes, int create, uint32_t *found
    )
    int clover_ring_submit(clover_ring *ring, uint64_t batch_id, const uint32_t *slots, uint32_t n, uint32_t lane)
    int clover_ring_untaken(const clover_ring *ring)
    int clover_ring_reap(clover_ring *ring, clover_ring_completion *out, float *confidence, size_t room)
    int clover_ring_take(clover_ring *ring, clover_ring_submission *out, uint32_t *slots, size_t room)
    int clover_ring_complete(clover_ring *ring, const clover_ring_completion *said, const float *confidence)
    int clover_ring_sleep(clover_ring *ring)
    void clover_ring_wake(clover_ring *ring)


cdef enum:
    MAX_LANES = 65536
    MAX_BATCH = 65536


cdef uint32_t checked_batch(object max_batch) except 0:
    if not 1 <= max_batch <= MAX_BATCH:
        raise ValueError(f"max_batch must be in 1..{MAX_BATCH}, not {max_batch}")
    return max_batch


def RING_BYTES(max_batch):
    """Return the bytes of shared memory that a ring for batches of up to `max_batch` rows needs."""
    return clover_ring_bytes(checked_batch(max_batch))


cdef class Ring:
    """Both rings over `buffer`: writable, at least RING_BYTES(max_batch) long, 8-byte aligned, and kept alive.

    The server passes `create=True` once, which lays the header out; the worker attaches and refuses with ValueError
    what was laid out otherwise.  Batches name one of `lanes`: neither side takes another.  One object serves one side,
    from one thread.
    """

    cdef Py_buffer _buffer
    cdef clover_ring _ring
    cdef uint32_t _max_batch
    cdef uint32_t _lanes
    # The array a caller passes again and again is looked at once: taking a view costs more than the frame.
    cdef object _slots_in_owner
    cdef const uint32_t[::1] _slots_in
    cdef object _slots_out_owner
    cdef uint32_t[::1] _slots_out
    cdef object _confidence_in_owner
    cdef const float[::1] _confidence_in
    cdef object _confidence_out_owner
    cdef float[::1] _confidence_out

    def __cinit__(self, buffer, max_batch, *, bint create=False, lanes=1):
        cdef uint32_t rows = checked_batch(max_batch)
        cdef Py_ssize_t needed = <Py_ssize_t>clover_ring_bytes(rows)
        cdef uint32_t found = 0
        cdef int done
        PyObject_GetBuffer(buffer, &self._buffer, PyBUF_SIMPLE | PyBUF_WRITABLE)
        if self._buffer.len < needed:
            raise ValueError(f"a ring of max_batch {rows} needs {needed} bytes, not {self._buffer.len}")
        if <uintptr_t>self._buffer.buf % 8:
            raise ValueError("the memory of a ring must be aligned to 8 bytes")
        if not 1 <= lanes <= MAX_LANES:
            raise ValueError(f"a ring has 1..{MAX_LANES} lanes, not {lanes}")
        self._lanes = <uint32_t>lanes
        self._max_batch = rows
        done = clover_ring_attach(&self._ring, self._buffer.buf, rows, self._lanes, create, &found)
        if done == OTHER:
            raise ValueError("this memory holds no ring")
        if done == LAYOUT:
            raise ValueError(f"the ring is of version {found}, this side speaks {VERSION}")
        if done == BATCH:
            raise ValueError(f"the ring was made for max_batch {found}, not {rows}")

    def __dealloc__(self):
        PyBuffer_Release(&self._buffer)

    @property
    def max_batch(self):
        """Most rows of one frame."""
        return self._max_batch

    @property
    def lanes(self):
        """How many lanes a batch may name."""
        return self._lanes

    # --- the server's side --------------------------------------------------------------------------------------------

    def submit(self, uint64_t batch_id, slots, Py_ssize_t n, Py_ssize_t lane=0):
        """Send `slots[:n]` (uint32) as a batch for `lane`.  0: the ring is full; 1: sent; 2: sent, and the worker
        sleeps: ring."""
        cdef int done
        if slots is not self._slots_in_owner:
            self._slots_in = slots
            self._slots_in_owner = slots
        if not 1 <= n <= self._max_batch or n > self._slots_in.shape[0]:
            raise ValueError(f"a batch of {n} rows does not fit max_batch {self._max_batch} or the slots given")
        if not 0 <= lane < self._lanes:
            raise ValueError(f"there is no lane {lane}, only {self._lanes} of them")
        done = clover_ring_submit(&self._ring, batch_id, &self._slots_in[0], <uint32_t>n, <uint32_t>lane)
        if done == INDEX:
            raise ValueError("the worker's submission tail is out of range")
        return done

    def untaken(self):
        """Return how many of the batches sent, the last ones, the worker has not taken yet.

        After its death, these are those it never began.  ValueError if its tail is out of range.
        """
        cdef int used = clover_ring_untaken(&self._ring)
        if used == INDEX:
            raise ValueError("the worker's submission tail is out of range")
        return used

    def reap(self, confidence_out=None):
        """Return the next completion as (batch_id, status, n, start_ns, end_ns, cpu_ns), or None.

        `confidence_out` (float32, at least n long) receives one confidence a row; NaN where the worker gave none.
        """
        cdef clover_ring_completion found
        cdef float *into = NULL
        cdef float nowhere = 0.0
        cdef size_t room = 0
        cdef int done
        if confidence_out is not None:
            if confidence_out is not self._confidence_out_owner:
                self._confidence_out = confidence_out
                self._confidence_out_owner = confidence_out
            room = self._confidence_out.shape[0]
            into = &self._confidence_out[0] if room else &nowhere
        done = clover_ring_reap(&self._ring, &found, into, room)
        if done == NOTHING:
            return None
        if done < 0:
            if done == ROWS:
                raise ValueError(f"a completion of {found.n} rows exceeds max_batch {self._max_batch}")
            if done == TIMES:
                raise ValueError("a completion carries impossible times")
            if done == ROOM:
                raise ValueError(f"confidence_out holds {room} rows, the completion {found.n}")
            raise ValueError("the worker's completion head is out of range")
        return found.batch_id, found.status, found.n, found.start_ns, found.end_ns, found.cpu_ns

    # --- the worker's side --------------------------------------------------------------------------------------------

    def take(self, slots_out):
        """Return the next submission as (batch_id, n, lane), its slots in `slots_out[:n]` (uint32), or None."""
        cdef clover_ring_submission found
        cdef uint32_t *into
        cdef uint32_t nowhere = 0
        cdef size_t room
        cdef int done
        if slots_out is not self._slots_out_owner:
            self._slots_out = slots_out
            self._slots_out_owner = slots_out
        room = self._slots_out.shape[0]
        into = &self._slots_out[0] if room else &nowhere
        done = clover_ring_take(&self._ring, &found, into, room)
        if done == NOTHING:
            return None
        if done < 0:
            if done == ROWS:
                raise ValueError(f"a submission of {found.n} rows is outside 1..{self._max_batch}")
            if done == LANE:
                raise ValueError(f"a submission names lane {found.lane}, there are {self._lanes}")
            if done == ROOM:
                raise ValueError(f"slots_out holds {room} rows, the submission {found.n}")
            raise ValueError("the server's submission head is out of range")
        return found.batch_id, found.n, found.lane

    def complete(self, uint64_t batch_id, status, Py_ssize_t n, start_ns, end_ns, cpu_ns, confidence=None):
        """Report a batch.  False: the ring is full.  `confidence`: float32, one a row; without it rows carry NaN."""
        cdef clover_ring_completion said
        cdef const float *values = NULL
        cdef int done
        if not 0 <= n <= self._max_batch:
            raise ValueError(f"a completion of {n} rows is outside 0..{self._max_batch}")
        if not 0 <= start_ns <= end_ns <= INT64_MAX or not 0 <= cpu_ns <= INT64_MAX:
            raise ValueError("times must be 0 <= start_ns <= end_ns and 0 <= cpu_ns, in signed 64 bits")
        if not INT32_MIN <= status <= INT32_MAX:
            raise ValueError("status does not fit 32 bits")
        if confidence is not None:
            if confidence is not self._confidence_in_owner:
                self._confidence_in = confidence
                self._confidence_in_owner = confidence
            if self._confidence_in.shape[0] < n:
                raise ValueError(f"confidence holds {self._confidence_in.shape[0]} rows, the completion {n}")
            if n:
                values = &self._confidence_in[0]
        said.batch_id = batch_id
        said.status = status
        said.n = <uint32_t>n
        said.start_ns = start_ns
        said.end_ns = end_ns
        said.cpu_ns = cpu_ns
        done = clover_ring_complete(&self._ring, &said, values)
        if done == INDEX:
            raise ValueError("the server's completion tail is out of range")
        return done != NOTHING

    def sleep(self):
        """Announce sleep.  True: wait for the bell, then `wake()`.  False: something arrived meanwhile; take it."""
        return clover_ring_sleep(&self._ring) != 0

    def wake(self):
        """Take the announcement back, whatever ended the sleep."""
        clover_ring_wake(&self._ring)
