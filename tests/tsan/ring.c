/* The ring and the slots behind it under ThreadSanitizer: a server and a worker as two threads over csrc/ring.h.

   The server puts rows into slots of a slab, submits them, and takes the worker's rows and confidences out of the same
   slots once they are reported; the worker reads the rows of a batch, writes others in their place, and reports it.
   Nothing orders these accesses but the ring.  Each row carries a number by which both sides check what they read.  The
   worker sleeps by the ring's flag and a semaphore for its bell; a bell that got lost would leave it asleep for good,
   which a watchdog ends with an error.

   Usage: ring BATCHES.  Built with -DCLOVER_BROKEN, heads and tails order nothing, which must be found out: see
   tests/tsan/test_ring.py.

   Fences are invisible to ThreadSanitizer, which is no loss: the fences of the ring order the sleeping flag, an atomic,
   and what they promise (no bell is lost) is counted here and modelled in tests/reference/ring_memory.py. */

#ifdef CLOVER_BROKEN
/* What a forgotten order looks like: heads and tails that order nothing. */
#undef __ATOMIC_RELEASE
#undef __ATOMIC_ACQUIRE
#define __ATOMIC_RELEASE __ATOMIC_RELAXED
#define __ATOMIC_ACQUIRE __ATOMIC_RELAXED
#endif

#include "../../csrc/ring.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { MAX_BATCH = 8, LANES = 3, SLOTS = 160, ROW = 4, LIMIT_S = 100 };

static char *memory;
static uint64_t slab[SLOTS][ROW];
static sem_t bell;
static uint64_t batches, bells, sleeps;

static void require(int good, const char *what) {
    if (good) return;
    fprintf(stderr, "FAILED: %s\n", what);
    _exit(3);
}

static uint64_t mix(uint64_t value) {
    value ^= value >> 30;
    value *= UINT64_C(0xbf58476d1ce4e5b9);
    value ^= value >> 27;
    return value * UINT64_C(0x94d049bb133111eb);
}

static void *work(void *nothing) {
    clover_ring ring = {0};
    uint32_t slots[MAX_BATCH], found = 0, i;
    float confidence[MAX_BATCH];
    uint64_t done = 0, column;
    (void)nothing;
    require(clover_ring_attach(&ring, memory, MAX_BATCH, LANES, 0, &found) == CLOVER_RING_DONE, "the worker attaches");
    while (done < batches) {
        clover_ring_submission batch = {0};
        clover_ring_completion said;
        int got = clover_ring_take(&ring, &batch, slots, MAX_BATCH);
        if (got == CLOVER_RING_NOTHING) {
            if (clover_ring_sleep(&ring)) {
                sleeps++;
                while (sem_wait(&bell) != 0) {
                }
                clover_ring_wake(&ring);
            }
            continue;
        }
        require(got == CLOVER_RING_DONE, "a submission is whole");
        require(batch.batch_id == done && batch.lane == done % LANES, "batches come once and in order");
        for (i = 0; i < batch.n; i++) {
            uint64_t *row = slab[slots[i]];
            for (column = 0; column < ROW; column++) {
                require(row[column] == mix(done * MAX_BATCH + i + column), "the rows are those that were sent");
                row[column] = mix(row[column]);
            }
            confidence[i] = (float)(i + 1);
        }
        said = (clover_ring_completion){batch.batch_id, (int32_t)(done % 5), batch.n, done, done + 1, 1};
        while ((got = clover_ring_complete(&ring, &said, done % 2 ? confidence : NULL)) == CLOVER_RING_NOTHING) {
            sched_yield();
        }
        require(got == CLOVER_RING_DONE, "a completion is sent");
        done++;
    }
    return NULL;
}

int main(int count, char **arguments) {
    clover_ring ring = {0};
    pthread_t worker;
    uint32_t found = 0, in_flight[CLOVER_RING_FRAMES * 4][MAX_BATCH], free_slots[SLOTS], free_count = SLOTS, i;
    uint32_t rows[CLOVER_RING_FRAMES * 4];
    float confidence[MAX_BATCH];
    uint64_t sent = 0, reaped = 0, column, full = 0;
    batches = count > 1 ? strtoull(arguments[1], NULL, 10) : 20000;
    alarm(LIMIT_S);
    memory = aligned_alloc(CLOVER_RING_LINE, clover_ring_bytes(MAX_BATCH));
    require(memory != NULL && sem_init(&bell, 0, 0) == 0, "memory");
    for (i = 0; i < SLOTS; i++) free_slots[i] = i;
    require(clover_ring_attach(&ring, memory, MAX_BATCH, LANES, 1, &found) == CLOVER_RING_DONE, "the server attaches");
    require(pthread_create(&worker, NULL, work, NULL) == 0, "a thread");
    while (reaped < batches) {
        clover_ring_completion answer = {0};
        int got = 0;
        uint32_t n = (uint32_t)(mix(sent) % MAX_BATCH) + 1;
        if (sent < batches && free_count >= n) {
            uint32_t *chosen = in_flight[sent % (CLOVER_RING_FRAMES * 4)];
            for (i = 0; i < n; i++) {
                chosen[i] = free_slots[free_count - 1 - i];
                for (column = 0; column < ROW; column++)
                    slab[chosen[i]][column] = mix(sent * MAX_BATCH + i + column);
            }
            got = clover_ring_submit(&ring, sent, chosen, n, (uint32_t)(sent % LANES));
            require(got >= 0, "a submission is sent");
            if (got != CLOVER_RING_NOTHING) {
                rows[sent % (CLOVER_RING_FRAMES * 4)] = n;
                free_count -= n;
                sent++;
                if (got == CLOVER_RING_BELL) {
                    bells++;
                    sem_post(&bell);
                }
            } else {
                full++;
            }
        }
        if (got > 0 && sent / 256 % 2 && mix(sent) % 32 != 0) continue; /* let some gather, now and then */
        got = clover_ring_reap(&ring, &answer, confidence, MAX_BATCH);
        if (got == CLOVER_RING_NOTHING) {
            sched_yield();
            continue;
        }
        require(got == CLOVER_RING_DONE, "a completion is whole");
        require(answer.batch_id == reaped && answer.start_ns == reaped, "completions come once and in order");
        require(answer.n == rows[reaped % (CLOVER_RING_FRAMES * 4)], "a completion has the rows of its batch");
        for (i = 0; i < answer.n; i++) {
            uint32_t slot = in_flight[reaped % (CLOVER_RING_FRAMES * 4)][i];
            for (column = 0; column < ROW; column++)
                require(slab[slot][column] == mix(mix(reaped * MAX_BATCH + i + column)), "the answers are the worker's");
            require(reaped % 2 ? confidence[i] == (float)(i + 1) : isnan(confidence[i]), "confidences are the worker's");
            free_slots[free_count++] = slot;
        }
        reaped++;
    }
    pthread_join(worker, NULL);
    require(free_count == SLOTS, "all slots come back");
    printf("%llu batches, %llu sleeps, %llu bells, %llu times full\n", (unsigned long long)reaped,
           (unsigned long long)sleeps, (unsigned long long)bells, (unsigned long long)full);
    free(memory);
    return 0;
}
