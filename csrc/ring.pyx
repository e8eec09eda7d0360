"""Two single-producer single-consumer rings between the server and one worker, in one piece of shared memory.

The server writes submissions (which slots form a batch, and for which lane: a worker that holds several variants has a
lane for each), the worker writes completions.  Each ring has a head that
only its producer writes and a tail that only its consumer writes, both counting frames for ever and each alone on its
cache line; frame i lies at i modulo 16.  A producer fills its frame and then releases the head; a consumer acquires
the head, reads, and then releases the tail.  Nothing else is shared, so neither side can block the other.

The worker says that it is about to sleep by setting a flag and looking once more; the server looks at the flag after
it has released the head.  With a full fence between store and load on both sides, at least one of them sees the other:
either the worker does not sleep or the server rings the bell.

The peer is not trusted.  A side keeps its own index privately, reads each peer-written field once, and checks it:
what does not fit raises ValueError and leaves the ring as it is, because such a peer is to be ended, not resumed.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport NAN
from libc.stdint cimport INT32_MAX, INT32_MIN, INT64_MAX, int32_t, int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset

cdef extern from "atomics.h" nogil:
    uint64_t clover_load_acquire(const uint64_t *cell)
    void clover_store_release(uint64_t *cell, uint64_t value)
    uint32_t clover_load_once32(const uint32_t *cell)
    uint64_t clover_load_once64(const uint64_t *cell)
    void clover_store32(uint32_t *cell, uint32_t value)
    uint32_t clover_exchange32(uint32_t *cell, uint32_t value)
    void clover_fence()


cdef enum:
    FRAMES = 16
    LINE = 64
    VERSION = 2
    MAX_LANES = 65536
    MAX_BATCH = 65536
    SUBMIT_HEAD = 1 * LINE
    SUBMIT_TAIL = 2 * LINE
    SLEEPING = 3 * LINE
    COMPLETE_HEAD = 4 * LINE
    COMPLETE_TAIL = 5 * LINE
    BODY = 6 * LINE

cdef uint64_t MAGIC = 0x31474E4952564C43  # "CLVRING1" in memory order


cdef struct Header:
    uint64_t magic
    uint32_t version
    uint32_t max_batch
    uint32_t frames
    uint32_t header_bytes


cdef struct Submission:
    uint64_t batch_id
    uint32_t n
    uint32_t lane
    # uint32_t slots[max_batch] follows


cdef struct Completion:
    uint64_t batch_id
    int32_t status
    uint32_t n
    uint64_t start_ns
    uint64_t end_ns
    uint64_t cpu_ns
    # float confidence[max_batch] follows


cdef inline Py_ssize_t lines(Py_ssize_t size) noexcept nogil:
    return (size + LINE - 1) // LINE * LINE


cdef inline Py_ssize_t submission_bytes(Py_ssize_t max_batch) noexcept nogil:
    return lines(<Py_ssize_t>sizeof(Submission) + 4 * max_batch)


cdef inline Py_ssize_t completion_bytes(Py_ssize_t max_batch) noexcept nogil:
    return lines(<Py_ssize_t>sizeof(Completion) + 4 * max_batch)


cdef Py_ssize_t checked_batch(object max_batch) except -1:
    if not 1 <= max_batch <= MAX_BATCH:
        raise ValueError(f"max_batch must be in 1..{MAX_BATCH}, not {max_batch}")
    return max_batch


def RING_BYTES(max_batch):
    """Return the bytes of shared memory that a ring for batches of up to `max_batch` rows needs."""
    cdef Py_ssize_t rows = checked_batch(max_batch)
    return BODY + FRAMES * (submission_bytes(rows) + completion_bytes(rows))


cdef class Ring:
    """Both rings over `buffer`: writable, at least RING_BYTES(max_batch) long, 8-byte aligned, and kept alive.

    The server passes `create=True` once, which lays the header out; the worker attaches and refuses with ValueError
    what was laid out otherwise.  Batches name one of `lanes`: neither side takes another.  One object serves one side,
    from one thread.
    """

    cdef Py_buffer _buffer
    cdef char *_base
    cdef char *_submissions
    cdef char *_completions
    cdef Py_ssize_t _submission_bytes
    cdef Py_ssize_t _completion_bytes
    cdef uint32_t _max_batch
    cdef uint32_t _lanes
    cdef uint64_t _submit_head
    cdef uint64_t _submit_tail
    cdef uint64_t _complete_head
    cdef uint64_t _complete_tail
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
        cdef Py_ssize_t rows = checked_batch(max_batch)
        cdef Py_ssize_t needed = BODY + FRAMES * (submission_bytes(rows) + completion_bytes(rows))
        cdef Header *header
        PyObject_GetBuffer(buffer, &self._buffer, PyBUF_SIMPLE | PyBUF_WRITABLE)
        if self._buffer.len < needed:
            raise ValueError(f"a ring of max_batch {rows} needs {needed} bytes, not {self._buffer.len}")
        if <uintptr_t>self._buffer.buf % 8:
            raise ValueError("the memory of a ring must be aligned to 8 bytes")
        if not 1 <= lanes <= MAX_LANES:
            raise ValueError(f"a ring has 1..{MAX_LANES} lanes, not {lanes}")
        self._lanes = <uint32_t>lanes
        self._max_batch = <uint32_t>rows
        self._base = <char *>self._buffer.buf
        self._submission_bytes = submission_bytes(rows)
        self._completion_bytes = completion_bytes(rows)
        self._submissions = self._base + BODY
        self._completions = self._submissions + FRAMES * self._submission_bytes
        header = <Header *>self._base
        if create:
            memset(self._base, 0, needed)
            header.version = VERSION
            header.max_batch = self._max_batch
            header.frames = FRAMES
            header.header_bytes = BODY
            clover_store_release(&header.magic, MAGIC)
        if clover_load_acquire(&header.magic) != MAGIC:
            raise ValueError("this memory holds no ring")
        if header.version != VERSION or header.frames != FRAMES or header.header_bytes != BODY:
            raise ValueError(f"the ring is of version {header.version}, this side speaks {VERSION}")
        if header.max_batch != self._max_batch:
            raise ValueError(f"the ring was made for max_batch {header.max_batch}, not {rows}")
        self._submit_head = clover_load_acquire(self._cell(SUBMIT_HEAD))
        self._submit_tail = clover_load_acquire(self._cell(SUBMIT_TAIL))
        self._complete_head = clover_load_acquire(self._cell(COMPLETE_HEAD))
        self._complete_tail = clover_load_acquire(self._cell(COMPLETE_TAIL))

    def __dealloc__(self):
        PyBuffer_Release(&self._buffer)

    cdef inline uint64_t *_cell(self, Py_ssize_t offset) noexcept nogil:
        return <uint64_t *>(self._base + offset)

    cdef inline uint32_t *_sleeping(self) noexcept nogil:
        return <uint32_t *>(self._base + SLEEPING)

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
        cdef uint64_t used
        cdef Submission *frame
        cdef uint32_t *into
        cdef Py_ssize_t i
        if slots is not self._slots_in_owner:
            self._slots_in = slots
            self._slots_in_owner = slots
        if not 1 <= n <= self._max_batch or n > self._slots_in.shape[0]:
            raise ValueError(f"a batch of {n} rows does not fit max_batch {self._max_batch} or the slots given")
        if not 0 <= lane < self._lanes:
            raise ValueError(f"there is no lane {lane}, only {self._lanes} of them")
        used = self._submit_head - clover_load_acquire(self._cell(SUBMIT_TAIL))
        if used > FRAMES:
            raise ValueError("the worker's submission tail is out of range")
        if used == FRAMES:
            return 0
        frame = <Submission *>(self._submissions + <Py_ssize_t>(self._submit_head % FRAMES) * self._submission_bytes)
        frame.batch_id = batch_id
        frame.n = <uint32_t>n
        frame.lane = <uint32_t>lane
        into = <uint32_t *>(frame + 1)
        for i in range(n):
            into[i] = self._slots_in[i]
        self._submit_head += 1
        clover_store_release(self._cell(SUBMIT_HEAD), self._submit_head)
        clover_fence()
        if clover_load_once32(self._sleeping()) and clover_exchange32(self._sleeping(), 0):
            return 2
        return 1

    def untaken(self):
        """Return how many of the batches sent, the last ones, the worker has not taken yet.

        After its death, these are those it never began.  ValueError if its tail is out of range.
        """
        cdef uint64_t used = self._submit_head - clover_load_acquire(self._cell(SUBMIT_TAIL))
        if used > FRAMES:
            raise ValueError("the worker's submission tail is out of range")
        return used

    def reap(self, confidence_out=None):
        """Return the next completion as (batch_id, status, n, start_ns, end_ns, cpu_ns), or None.

        `confidence_out` (float32, at least n long) receives one confidence a row; NaN where the worker gave none.
        """
        cdef uint64_t ready = clover_load_acquire(self._cell(COMPLETE_HEAD)) - self._complete_tail
        cdef Completion *frame
        cdef uint64_t batch_id, start_ns, end_ns, cpu_ns
        cdef int32_t status
        cdef uint32_t n
        cdef float *values
        cdef Py_ssize_t i
        if ready == 0:
            return None
        if ready > FRAMES:
            raise ValueError("the worker's completion head is out of range")
        frame = <Completion *>(self._completions + <Py_ssize_t>(self._complete_tail % FRAMES) * self._completion_bytes)
        batch_id = clover_load_once64(&frame.batch_id)
        status = <int32_t>clover_load_once32(<uint32_t *>&frame.status)
        n = clover_load_once32(&frame.n)
        start_ns = clover_load_once64(&frame.start_ns)
        end_ns = clover_load_once64(&frame.end_ns)
        cpu_ns = clover_load_once64(&frame.cpu_ns)
        if n > self._max_batch:
            raise ValueError(f"a completion of {n} rows exceeds max_batch {self._max_batch}")
        if start_ns > end_ns or end_ns > <uint64_t>INT64_MAX or cpu_ns > <uint64_t>INT64_MAX:
            raise ValueError("a completion carries impossible times")
        if confidence_out is not None:
            if confidence_out is not self._confidence_out_owner:
                self._confidence_out = confidence_out
                self._confidence_out_owner = confidence_out
            if self._confidence_out.shape[0] < n:
                raise ValueError(f"confidence_out holds {self._confidence_out.shape[0]} rows, the completion {n}")
            values = <float *>(frame + 1)
            for i in range(n):
                self._confidence_out[i] = values[i]
        self._complete_tail += 1
        clover_store_release(self._cell(COMPLETE_TAIL), self._complete_tail)
        return batch_id, status, n, start_ns, end_ns, cpu_ns

    # --- the worker's side --------------------------------------------------------------------------------------------

    def take(self, slots_out):
        """Return the next submission as (batch_id, n, lane), its slots in `slots_out[:n]` (uint32), or None."""
        cdef uint64_t ready = clover_load_acquire(self._cell(SUBMIT_HEAD)) - self._submit_tail
        cdef Submission *frame
        cdef uint64_t batch_id
        cdef uint32_t *values
        cdef uint32_t n, lane
        cdef Py_ssize_t i
        if ready == 0:
            return None
        if ready > FRAMES:
            raise ValueError("the server's submission head is out of range")
        frame = <Submission *>(self._submissions + <Py_ssize_t>(self._submit_tail % FRAMES) * self._submission_bytes)
        batch_id = clover_load_once64(&frame.batch_id)
        n = clover_load_once32(&frame.n)
        lane = clover_load_once32(&frame.lane)
        if not 1 <= n <= self._max_batch:
            raise ValueError(f"a submission of {n} rows is outside 1..{self._max_batch}")
        if lane >= self._lanes:
            raise ValueError(f"a submission names lane {lane}, there are {self._lanes}")
        if slots_out is not self._slots_out_owner:
            self._slots_out = slots_out
            self._slots_out_owner = slots_out
        if self._slots_out.shape[0] < n:
            raise ValueError(f"slots_out holds {self._slots_out.shape[0]} rows, the submission {n}")
        values = <uint32_t *>(frame + 1)
        for i in range(n):
            self._slots_out[i] = values[i]
        self._submit_tail += 1
        clover_store_release(self._cell(SUBMIT_TAIL), self._submit_tail)
        return batch_id, n, lane

    def complete(self, uint64_t batch_id, status, Py_ssize_t n, start_ns, end_ns, cpu_ns, confidence=None):
        """Report a batch.  False: the ring is full.  `confidence`: float32, one a row; without it rows carry NaN."""
        cdef uint64_t used
        cdef Completion *frame
        cdef float *into
        cdef Py_ssize_t i
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
        used = self._complete_head - clover_load_acquire(self._cell(COMPLETE_TAIL))
        if used > FRAMES:
            raise ValueError("the server's completion tail is out of range")
        if used == FRAMES:
            return False
        frame = <Completion *>(self._completions + <Py_ssize_t>(self._complete_head % FRAMES) * self._completion_bytes)
        frame.batch_id = batch_id
        frame.status = status
        frame.n = <uint32_t>n
        frame.start_ns = start_ns
        frame.end_ns = end_ns
        frame.cpu_ns = cpu_ns
        into = <float *>(frame + 1)
        if confidence is None:
            for i in range(n):
                into[i] = NAN
        else:
            for i in range(n):
                into[i] = self._confidence_in[i]
        self._complete_head += 1
        clover_store_release(self._cell(COMPLETE_HEAD), self._complete_head)
        return True

    def sleep(self):
        """Announce sleep.  True: wait for the bell, then `wake()`.  False: something arrived meanwhile; take it."""
        clover_exchange32(self._sleeping(), 1)
        clover_fence()
        if clover_load_acquire(self._cell(SUBMIT_HEAD)) != self._submit_tail:
            clover_exchange32(self._sleeping(), 0)
            return False
        return True

    def wake(self):
        """Take the announcement back, whatever ended the sleep."""
        clover_exchange32(self._sleeping(), 0)
