/* Two single-producer single-consumer rings between the server and one worker, in one piece of shared memory.

   The server writes submissions (which slots form a batch, and for which lane: a worker that holds several variants has
   a lane for each), the worker writes completions.  Each ring has a head that only its producer writes and a tail that
   only its consumer writes, both counting frames for ever and each alone on its cache line; frame i lies at i modulo 16.
   A producer fills its frame and then releases the head; a consumer acquires the head, reads, and then releases the
   tail.  Nothing else is shared, so neither side can block the other.  What a worker reads and writes in the slots of a
   batch is ordered by the same two heads: the server's rows before a submission, the worker's before a completion.

   The worker says that it is about to sleep by setting a flag and looking once more; the server looks at the flag after
   it has released the head.  With a full fence between store and load on both sides, at least one of them sees the
   other: either the worker does not sleep or the server rings the bell.

   The peer is not trusted.  A side keeps its own index privately, reads each peer-written field once, and checks it:
   what does not fit is an error that leaves the ring as it is, because such a peer is to be ended, not resumed.

   Plain C without Python, so that `tests/tsan` runs this very code under ThreadSanitizer; csrc/ring.pyx wraps it.  The
   orders of memory are modelled, and every interleaving looked at, in tests/reference/ring_memory.py. */

#ifndef CLOVER_RING_H
#define CLOVER_RING_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "atomics.h"

enum {
    CLOVER_RING_FRAMES = 16,
    CLOVER_RING_LINE = 64,
    CLOVER_RING_VERSION = 2,
    CLOVER_RING_SUBMIT_HEAD = 1 * CLOVER_RING_LINE,
    CLOVER_RING_SUBMIT_TAIL = 2 * CLOVER_RING_LINE,
    CLOVER_RING_SLEEPING = 3 * CLOVER_RING_LINE,
    CLOVER_RING_COMPLETE_HEAD = 4 * CLOVER_RING_LINE,
    CLOVER_RING_COMPLETE_TAIL = 5 * CLOVER_RING_LINE,
    CLOVER_RING_BODY = 6 * CLOVER_RING_LINE
};

/* "CLVRING1" in memory order */
#define CLOVER_RING_MAGIC UINT64_C(0x31474E4952564C43)

/* What calls return beside their results. */
enum {
    CLOVER_RING_NOTHING = 0,  /* the ring is empty, or full */
    CLOVER_RING_DONE = 1,
    CLOVER_RING_BELL = 2,     /* sent, and the worker sleeps: ring */
    CLOVER_RING_INDEX = -1,   /* an index of the peer is out of range */
    CLOVER_RING_ROWS = -2,    /* a frame of the peer has too many rows, or none */
    CLOVER_RING_LANE = -3,    /* a frame of the peer names a lane that is not there */
    CLOVER_RING_TIMES = -4,   /* a frame of the peer carries impossible times */
    CLOVER_RING_ROOM = -5,    /* the caller's array is too short for the frame */
    CLOVER_RING_OTHER = -6,   /* this memory holds no ring */
    CLOVER_RING_LAYOUT = -7,  /* it holds a ring of another version */
    CLOVER_RING_BATCH = -8    /* it holds a ring for batches of another size */
};

typedef struct {
    uint64_t magic;
    uint32_t version, max_batch, frames, header_bytes;
} clover_ring_header;

typedef struct {
    uint64_t batch_id;
    uint32_t n, lane;
    /* uint32_t slots[max_batch] follows */
} clover_ring_submission;

typedef struct {
    uint64_t batch_id;
    int32_t status;
    uint32_t n;
    uint64_t start_ns, end_ns, cpu_ns;
    /* float confidence[max_batch] follows */
} clover_ring_completion;

/* One side's view of the memory at `base`; used by one thread. */
typedef struct {
    char *base, *submissions, *completions;
    size_t submission_bytes, completion_bytes;
    uint32_t max_batch, lanes;
    uint64_t submit_head, submit_tail, complete_head, complete_tail;
} clover_ring;

static inline size_t clover_ring_lines(size_t size) {
    return (size + CLOVER_RING_LINE - 1) / CLOVER_RING_LINE * CLOVER_RING_LINE;
}

static inline size_t clover_ring_submission_bytes(uint32_t max_batch) {
    return clover_ring_lines(sizeof(clover_ring_submission) + 4 * (size_t)max_batch);
}

static inline size_t clover_ring_completion_bytes(uint32_t max_batch) {
    return clover_ring_lines(sizeof(clover_ring_completion) + 4 * (size_t)max_batch);
}

/* Bytes of shared memory that a ring for batches of up to `max_batch` rows needs. */
static inline size_t clover_ring_bytes(uint32_t max_batch) {
    return CLOVER_RING_BODY +
           CLOVER_RING_FRAMES * (clover_ring_submission_bytes(max_batch) + clover_ring_completion_bytes(max_batch));
}

static inline uint64_t *clover_ring_cell(const clover_ring *ring, int offset) {
    return (uint64_t *)(void *)(ring->base + offset);
}

static inline uint32_t *clover_ring_sleeping(const clover_ring *ring) {
    return (uint32_t *)(void *)(ring->base + CLOVER_RING_SLEEPING);
}

static inline clover_ring_submission *clover_ring_submission_at(const clover_ring *ring, uint64_t index) {
    size_t frame = (size_t)(index % CLOVER_RING_FRAMES);
    return (clover_ring_submission *)(void *)(ring->submissions + frame * ring->submission_bytes);
}

static inline clover_ring_completion *clover_ring_completion_at(const clover_ring *ring, uint64_t index) {
    size_t frame = (size_t)(index % CLOVER_RING_FRAMES);
    return (clover_ring_completion *)(void *)(ring->completions + frame * ring->completion_bytes);
}

/* Attach to the memory at `base`, and lay the ring out in it first if `create`.  What is laid out otherwise is refused;
   `found` is then the version or the size that it has. */
static inline int clover_ring_attach(clover_ring *ring, void *base, uint32_t max_batch, uint32_t lanes, int create,
                                     uint32_t *found) {
    clover_ring_header *header = (clover_ring_header *)base;
    ring->base = (char *)base;
    ring->max_batch = max_batch;
    ring->lanes = lanes;
    ring->submission_bytes = clover_ring_submission_bytes(max_batch);
    ring->completion_bytes = clover_ring_completion_bytes(max_batch);
    ring->submissions = ring->base + CLOVER_RING_BODY;
    ring->completions = ring->submissions + CLOVER_RING_FRAMES * ring->submission_bytes;
    if (create) {
        memset(base, 0, clover_ring_bytes(max_batch));
        header->version = CLOVER_RING_VERSION;
        header->max_batch = max_batch;
        header->frames = CLOVER_RING_FRAMES;
        header->header_bytes = CLOVER_RING_BODY;
        clover_store_release(&header->magic, CLOVER_RING_MAGIC);
    }
    if (clover_load_acquire(&header->magic) != CLOVER_RING_MAGIC) return CLOVER_RING_OTHER;
    *found = header->version;
    if (header->version != CLOVER_RING_VERSION || header->frames != CLOVER_RING_FRAMES ||
        header->header_bytes != CLOVER_RING_BODY)
        return CLOVER_RING_LAYOUT;
    *found = header->max_batch;
    if (header->max_batch != max_batch) return CLOVER_RING_BATCH;
    ring->submit_head = clover_load_acquire(clover_ring_cell(ring, CLOVER_RING_SUBMIT_HEAD));
    ring->submit_tail = clover_load_acquire(clover_ring_cell(ring, CLOVER_RING_SUBMIT_TAIL));
    ring->complete_head = clover_load_acquire(clover_ring_cell(ring, CLOVER_RING_COMPLETE_HEAD));
    ring->complete_tail = clover_load_acquire(clover_ring_cell(ring, CLOVER_RING_COMPLETE_TAIL));
    return CLOVER_RING_DONE;
}

/* --- the server's side; 1 <= n <= max_batch and lane < lanes are the caller's to check ----------------------------- */

static inline int clover_ring_submit(clover_ring *ring, uint64_t batch_id, const uint32_t *slots, uint32_t n,
                                     uint32_t lane) {
    clover_ring_submission *frame;
    uint64_t used = ring->submit_head - clover_load_acquire(clover_ring_cell(ring, CLOVER_RING_SUBMIT_TAIL));
    if (used > CLOVER_RING_FRAMES) return CLOVER_RING_INDEX;
    if (used == CLOVER_RING_FRAMES) return CLOVER_RING_NOTHING;
    frame = clover_ring_submission_at(ring, ring->submit_head);
    frame->batch_id = batch_id;
    frame->n = n;
    frame->lane = lane;
    memcpy(frame + 1, slots, 4 * (size_t)n);
    clover_store_release(clover_ring_cell(ring, CLOVER_RING_SUBMIT_HEAD), ++ring->submit_head);
    clover_fence();
    if (clover_load_once32(clover_ring_sleeping(ring)) && clover_exchange32(clover_ring_sleeping(ring), 0))
        return CLOVER_RING_BELL;
    return CLOVER_RING_DONE;
}

/* How many of the batches sent, the last ones, the worker has not taken yet. */
static inline int clover_ring_untaken(const clover_ring *ring) {
    uint64_t used = ring->submit_head - clover_load_acquire(clover_ring_cell(ring, CLOVER_RING_SUBMIT_TAIL));
    return used > CLOVER_RING_FRAMES ? CLOVER_RING_INDEX : (int)used;
}

/* The next completion, copied to `out`; its confidences to `confidence`, if that is given, which has room for `room`. */
static inline int clover_ring_reap(clover_ring *ring, clover_ring_completion *out, float *confidence, size_t room) {
    const clover_ring_completion *frame;
    uint64_t ready = clover_load_acquire(clover_ring_cell(ring, CLOVER_RING_COMPLETE_HEAD)) - ring->complete_tail;
    if (ready == 0) return CLOVER_RING_NOTHING;
    if (ready > CLOVER_RING_FRAMES) return CLOVER_RING_INDEX;
    frame = clover_ring_completion_at(ring, ring->complete_tail);
    out->batch_id = clover_load_once64(&frame->batch_id);
    out->status = (int32_t)clover_load_once32((const uint32_t *)&frame->status);
    out->n = clover_load_once32(&frame->n);
    out->start_ns = clover_load_once64(&frame->start_ns);
    out->end_ns = clover_load_once64(&frame->end_ns);
    out->cpu_ns = clover_load_once64(&frame->cpu_ns);
    if (out->n > ring->max_batch) return CLOVER_RING_ROWS;
    if (out->start_ns > out->end_ns || out->end_ns > INT64_MAX || out->cpu_ns > INT64_MAX) return CLOVER_RING_TIMES;
    if (confidence != NULL) {
        if (room < out->n) return CLOVER_RING_ROOM;
        memcpy(confidence, frame + 1, 4 * (size_t)out->n);
    }
    clover_store_release(clover_ring_cell(ring, CLOVER_RING_COMPLETE_TAIL), ++ring->complete_tail);
    return CLOVER_RING_DONE;
}

/* --- the worker's side ---------------------------------------------------------------------------------------------- */

/* The next submission, copied to `out`, and its slots to `slots`, which has room for `room`. */
static inline int clover_ring_take(clover_ring *ring, clover_ring_submission *out, uint32_t *slots, size_t room) {
    const clover_ring_submission *frame;
    uint64_t ready = clover_load_acquire(clover_ring_cell(ring, CLOVER_RING_SUBMIT_HEAD)) - ring->submit_tail;
    if (ready == 0) return CLOVER_RING_NOTHING;
    if (ready > CLOVER_RING_FRAMES) return CLOVER_RING_INDEX;
    frame = clover_ring_submission_at(ring, ring->submit_tail);
    out->batch_id = clover_load_once64(&frame->batch_id);
    out->n = clover_load_once32(&frame->n);
    out->lane = clover_load_once32(&frame->lane);
    if (out->n < 1 || out->n > ring->max_batch) return CLOVER_RING_ROWS;
    if (out->lane >= ring->lanes) return CLOVER_RING_LANE;
    if (room < out->n) return CLOVER_RING_ROOM;
    memcpy(slots, frame + 1, 4 * (size_t)out->n);
    clover_store_release(clover_ring_cell(ring, CLOVER_RING_SUBMIT_TAIL), ++ring->submit_tail);
    return CLOVER_RING_DONE;
}

/* Report a batch; without `confidence` its rows carry NaN.  What `said` says is the caller's to check. */
static inline int clover_ring_complete(clover_ring *ring, const clover_ring_completion *said, const float *confidence) {
    clover_ring_completion *frame;
    uint32_t i;
    uint64_t used = ring->complete_head - clover_load_acquire(clover_ring_cell(ring, CLOVER_RING_COMPLETE_TAIL));
    if (used > CLOVER_RING_FRAMES) return CLOVER_RING_INDEX;
    if (used == CLOVER_RING_FRAMES) return CLOVER_RING_NOTHING;
    frame = clover_ring_completion_at(ring, ring->complete_head);
    *frame = *said;
    if (confidence != NULL) {
        memcpy(frame + 1, confidence, 4 * (size_t)said->n);
    } else {
        float *into = (float *)(void *)(frame + 1);
        for (i = 0; i < said->n; i++) into[i] = NAN;
    }
    clover_store_release(clover_ring_cell(ring, CLOVER_RING_COMPLETE_HEAD), ++ring->complete_head);
    return CLOVER_RING_DONE;
}

/* Take an announcement of sleep back, whatever ended the sleep. */
static inline void clover_ring_wake(clover_ring *ring) { clover_exchange32(clover_ring_sleeping(ring), 0); }

/* Announce sleep.  1: wait for the bell, then wake.  0: something arrived meanwhile; take it. */
static inline int clover_ring_sleep(clover_ring *ring) {
    clover_exchange32(clover_ring_sleeping(ring), 1);
    clover_fence();
    if (clover_load_acquire(clover_ring_cell(ring, CLOVER_RING_SUBMIT_HEAD)) == ring->submit_tail) return 1;
    clover_ring_wake(ring);
    return 0;
}

#endif
