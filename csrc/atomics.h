/* The few atomic operations a single-producer single-consumer ring needs, on plain memory shared by two processes.

   GCC's and Clang's builtins, because C11 atomics cannot be applied to memory that was not declared _Atomic. */

#ifndef CLOVER_ATOMICS_H
#define CLOVER_ATOMICS_H

#include <stdint.h>

static inline uint64_t clover_load_acquire(const uint64_t *cell) { return __atomic_load_n(cell, __ATOMIC_ACQUIRE); }

static inline void clover_store_release(uint64_t *cell, uint64_t value) {
    __atomic_store_n(cell, value, __ATOMIC_RELEASE);
}

/* One read, whatever the peer does meanwhile: what was checked is what is used. */
static inline uint32_t clover_load_once32(const uint32_t *cell) { return __atomic_load_n(cell, __ATOMIC_RELAXED); }
static inline uint64_t clover_load_once64(const uint64_t *cell) { return __atomic_load_n(cell, __ATOMIC_RELAXED); }

static inline void clover_store32(uint32_t *cell, uint32_t value) { __atomic_store_n(cell, value, __ATOMIC_RELAXED); }

static inline uint32_t clover_exchange32(uint32_t *cell, uint32_t value) {
    return __atomic_exchange_n(cell, value, __ATOMIC_SEQ_CST);
}

/* Orders an earlier store before a later load, which neither acquire nor release does. */
static inline void clover_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

#endif
