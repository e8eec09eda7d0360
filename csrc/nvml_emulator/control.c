/* What tests and tools may do to a box, named by its path: no NVML session is needed, and none is disturbed. */
#include "emulator.h"

#include <string.h>
#include <unistd.h>

/* Opens and locks; on NVML_SUCCESS the caller owes leave(). */
static nvmlReturn_t enter(struct mapping *mapping, const char *path) {
    nvmlReturn_t result = mapping_open(mapping, path);
    if (result != NVML_SUCCESS)
        return result;
    result = box_lock(mapping->box);
    if (result != NVML_SUCCESS)
        mapping_close(mapping);
    return result;
}

static int leave(struct mapping *mapping, nvmlReturn_t result) {
    box_unlock(mapping->box);
    mapping_close(mapping);
    return result;
}

static bool has_gpu(const struct mapping *mapping, int gpu) {
    return gpu >= 0 && (unsigned)gpu < mapping->box->config.gpu_count;
}

/* Gives the bytes of the two structures that Python writes, so that a mismatch is found before a file is made. */
EXPORT unsigned clover_nvml_layout(unsigned *profile) {
    *profile = sizeof(struct profile);
    return sizeof(struct config);
}

/* Adds a fault; see faults.c.  `error` 0 only delays, 1000 freezes power and energy readings; `duration_ns` 0 has no
 * end, `count` 0 no limit, `gpu` -1 means any. */
EXPORT int clover_nvml_inject(const char *path, const char *symbol, int gpu, unsigned error, unsigned nth,
                              unsigned count, double probability, unsigned long long duration_ns,
                              unsigned long long delay_ns) {
    struct mapping mapping;
    nvmlReturn_t result = enter(&mapping, path);
    if (result != NVML_SUCCESS)
        return result;
    struct live *live = &mapping.box->live;
    if (symbol == NULL || strlen(symbol) >= sizeof live->faults[0].symbol || (gpu != -1 && !has_gpu(&mapping, gpu)))
        return leave(&mapping, NVML_ERROR_INVALID_ARGUMENT);
    for (unsigned i = 0; i < FAULTS_MAX; i++) {
        struct fault *fault = &live->faults[i];
        if (fault->used)
            continue;
        int64_t until_ns = duration_ns == 0 ? 0 : box_now_ns(mapping.box) + (int64_t)duration_ns;
        *fault = (struct fault){.gpu = gpu, .error = error, .nth = nth, .count = count, .probability = probability,
                                .until_ns = until_ns, .delay_ns = delay_ns, .random = mapping.box->config.seed + i};
        strcpy(fault->symbol, symbol);
        fault->used = 1; /* last: a half-written fault must not act */
        return leave(&mapping, NVML_SUCCESS);
    }
    return leave(&mapping, NVML_ERROR_INSUFFICIENT_RESOURCES);
}

EXPORT int clover_nvml_clear_faults(const char *path) {
    struct mapping mapping;
    nvmlReturn_t result = enter(&mapping, path);
    if (result != NVML_SUCCESS)
        return result;
    memset(mapping.box->live.faults, 0, sizeof mapping.box->live.faults);
    return leave(&mapping, NVML_SUCCESS);
}

/* Counts how often all faults together have acted. */
EXPORT int clover_nvml_faults_fired(const char *path, unsigned *fired) {
    struct mapping mapping;
    nvmlReturn_t result = enter(&mapping, path);
    if (result != NVML_SUCCESS)
        return result;
    *fired = 0;
    for (unsigned i = 0; i < FAULTS_MAX; i++)
        *fired += mapping.box->live.faults[i].used ? mapping.box->live.faults[i].fired : 0;
    return leave(&mapping, NVML_SUCCESS);
}

/* Takes the board off the bus, its processes with it: every call on it answers the error `lost` from then on.  0 brings
 * it back as after a reset, without instances. */
EXPORT int clover_nvml_set_lost(const char *path, int index, unsigned lost) {
    struct mapping mapping;
    nvmlReturn_t result = enter(&mapping, path);
    if (result != NVML_SUCCESS)
        return result;
    bool known = lost == 0 || lost == NVML_ERROR_GPU_IS_LOST || lost == NVML_ERROR_RESET_REQUIRED ||
                 lost == NVML_ERROR_GPU_NOT_FOUND || lost == NVML_ERROR_UNKNOWN;
    if (!has_gpu(&mapping, index) || !known)
        return leave(&mapping, NVML_ERROR_INVALID_ARGUMENT);
    struct gpu *gpu = gpu_begin(mapping.box, (unsigned)index);
    if (lost)
        for (unsigned slot = 0; slot < ATTACH_MAX; slot++)
            gpu->attachments[slot].draw_mw = 0;
    else if (gpu->lost)
        gpu_reset(gpu);
    gpu->lost = lost;
    gpu_commit(mapping.box);
    return leave(&mapping, NVML_SUCCESS);
}

/* Resets one board, which must be idle: pending MIG mode in force, instances gone. */
EXPORT int clover_nvml_reset(const char *path, int index) {
    struct mapping mapping;
    nvmlReturn_t result = enter(&mapping, path);
    if (result != NVML_SUCCESS)
        return result;
    if (!has_gpu(&mapping, index))
        return leave(&mapping, NVML_ERROR_INVALID_ARGUMENT);
    struct gpu *gpu = gpu_begin(mapping.box, (unsigned)index);
    attachments_reap(&mapping, (unsigned)index, gpu);
    if (attachments_count(gpu, NVML_NO_INSTANCE, NVML_NO_INSTANCE) > 0)
        result = NVML_ERROR_IN_USE;
    else
        gpu_reset(gpu);
    gpu_commit(mapping.box);
    return leave(&mapping, result);
}

/* Restarts the machine: every board starts anew, also if processes were attached. */
EXPORT int clover_nvml_reboot(const char *path) {
    struct mapping mapping;
    nvmlReturn_t result = enter(&mapping, path);
    if (result != NVML_SUCCESS)
        return result;
    for (unsigned i = 0; i < mapping.box->config.gpu_count; i++) {
        struct gpu *gpu = gpu_begin(mapping.box, i);
        gpu_boot(&mapping.box->config, gpu);
        gpu->compute_mode = gpu->persistence = 0;
        gpu_commit(mapping.box);
    }
    return leave(&mapping, NVML_SUCCESS);
}

/* Sets whether callers count as root, or have the capability to change instances. */
EXPORT int clover_nvml_set_privileged(const char *path, int privileged) {
    struct mapping mapping;
    nvmlReturn_t result = enter(&mapping, path);
    if (result != NVML_SUCCESS)
        return result;
    mapping.box->live.privileged = privileged != 0;
    return leave(&mapping, NVML_SUCCESS);
}

/* Sets the compute mode of a board, as nvidia-smi -c does: 0, 2 or 3. */
EXPORT int clover_nvml_set_compute_mode(const char *path, int index, unsigned mode) {
    struct mapping mapping;
    nvmlReturn_t result = enter(&mapping, path);
    if (result != NVML_SUCCESS)
        return result;
    if (!has_gpu(&mapping, index) || mode > NVML_COMPUTE_EXCLUSIVE_PROCESS || mode == 1)
        return leave(&mapping, NVML_ERROR_INVALID_ARGUMENT);
    gpu_begin(mapping.box, (unsigned)index)->compute_mode = mode;
    gpu_commit(mapping.box);
    return leave(&mapping, NVML_SUCCESS);
}

/* Sets the versions that the driver gives: its own, and of CUDA (12040 for 12.4).  "" and 0 are the emulator's own. */
EXPORT int clover_nvml_set_driver(const char *path, const char *driver, int cuda) {
    struct mapping mapping;
    nvmlReturn_t result = enter(&mapping, path);
    if (result != NVML_SUCCESS)
        return result;
    struct live *live = &mapping.box->live;
    if (driver == NULL || strlen(driver) >= sizeof live->driver || cuda < 0)
        return leave(&mapping, NVML_ERROR_INVALID_ARGUMENT);
    memset(live->driver, 0, sizeof live->driver);
    strcpy(live->driver, driver);
    live->cuda = cuda;
    return leave(&mapping, NVML_SUCCESS);
}

/* Reports a critical error (Xid) of a board to those who wait for events, of a slice if `gi` and `ci` name one.  What
 * else such an error does (a lost board, a process that ends) is not done here. */
EXPORT int clover_nvml_xid(const char *path, int index, unsigned xid, unsigned gi, unsigned ci) {
    struct mapping mapping;
    nvmlReturn_t result = enter(&mapping, path);
    if (result != NVML_SUCCESS)
        return result;
    if (!has_gpu(&mapping, index))
        return leave(&mapping, NVML_ERROR_INVALID_ARGUMENT);
    struct live *live = &mapping.box->live;
    uint64_t number = live->events_made + 1;
    live->events[number % EVENTS_MAX] =
        (struct event){.number = number, .gpu = (uint32_t)index, .xid = xid, .gi = gi, .ci = ci};
    live->events_made = number; /* last: a half-written event must not be read */
    return leave(&mapping, NVML_SUCCESS);
}

/* Moves the box's clock ahead, for tests of power and energy that cannot wait. */
EXPORT int clover_nvml_advance(const char *path, unsigned long long nanoseconds) {
    struct mapping mapping;
    nvmlReturn_t result = enter(&mapping, path);
    if (result != NVML_SUCCESS)
        return result;
    mapping.box->live.clock_offset_ns += (int64_t)nanoseconds;
    return leave(&mapping, NVML_SUCCESS);
}

/* Stops in the middle of a change with the mutex held, having spoilt the GPU: a test kills the process here, to see
 * that the next one repairs what it finds.  Writes one byte to `ready` first; never returns. */
EXPORT int clover_nvml_hold(const char *path, int index, int ready) {
    struct mapping mapping;
    nvmlReturn_t result = enter(&mapping, path);
    if (result != NVML_SUCCESS)
        return result;
    if (!has_gpu(&mapping, index))
        return leave(&mapping, NVML_ERROR_INVALID_ARGUMENT);
    struct gpu *gpu = gpu_begin(mapping.box, (unsigned)index);
    memset(gpu->instances, 0x5A, sizeof gpu->instances);
    gpu->energy.uj = gpu->ticked_uj = 0;
    if (write(ready, "!", 1) != 1) {
        *gpu = mapping.box->live.shadow;
        gpu_commit(mapping.box);
        return leave(&mapping, NVML_ERROR_OPERATING_SYSTEM);
    }
    for (;;)
        pause();
}
