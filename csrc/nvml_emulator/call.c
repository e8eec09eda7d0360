/* What every NVML call does before its own work, and handles.
 *
 * A handle is a number: kind, GPU, GPU instance, compute instance and the generation of the instance it was given for.
 * It is compared with what lives now, so one that outlived its instance fails even if a new instance has taken the
 * same place.  A GPU's handle stays good for as long as the box does, as NVML's own do.
 */
#include "emulator.h"

#include <stdlib.h>
#include <string.h>

/* bits: kind 0..3, GPU 4..11, GI 12..19, CI 20..27, generation 28..59 */
static nvml_handle encode(unsigned kind, unsigned gpu, unsigned gi, unsigned ci, uint32_t generation) {
    return (nvml_handle)kind | (nvml_handle)gpu << 4 | (nvml_handle)gi << 12 | (nvml_handle)ci << 20 |
           (nvml_handle)generation << 28;
}

nvml_handle handle_gpu(unsigned index) {
    return encode(ON_GPU, index, 0, 0, 0);
}

nvml_handle handle_gi(const struct call *call, unsigned gi) {
    return encode(ON_GI, call->index, gi, 0, call->gpu->instances[gi].generation);
}

nvml_handle handle_ci(const struct call *call, unsigned gi, unsigned ci) {
    return encode(ON_CI, call->index, gi, ci, call->gpu->instances[gi].compute[ci].generation);
}

nvml_handle handle_mig(const struct call *call, unsigned gi, unsigned ci) {
    return encode(ON_MIG, call->index, gi, ci, call->gpu->instances[gi].compute[ci].generation);
}

/* Whether what the handle was given for still exists. */
static bool alive(const struct call *call, uint32_t generation) {
    if (call->kind == ON_GPU)
        return generation == 0;
    const struct instance *instance = &call->gpu->instances[call->gi];
    if (!instance->alive)
        return false;
    if (call->kind == ON_GI)
        return instance->generation == generation;
    return instance->compute[call->ci].alive && instance->compute[call->ci].generation == generation;
}

/* Takes the mutex and lets faults act.  A delay is slept without the mutex, which is held again on NVML_SUCCESS. */
static nvmlReturn_t lock_with_faults(struct box *box, const char *symbol, unsigned index) {
    uint64_t delay_ns = 0;
    nvmlReturn_t result = box_lock(box);
    if (result != NVML_SUCCESS)
        return result;
    result = faults_act(box, symbol, (int)index, &delay_ns);
    if (delay_ns == 0 && result == NVML_SUCCESS)
        return NVML_SUCCESS;
    box_unlock(box);
    sleep_ns(delay_ns);
    return result == NVML_SUCCESS ? box_lock(box) : result;
}

nvmlReturn_t call_begin(struct call *call, const char *symbol, nvml_handle handle, unsigned accept) {
    memset(call, 0, sizeof *call);
    if (!session_initialised())
        return NVML_ERROR_UNINITIALIZED;
    nvmlReturn_t result = session_mapping(&call->mapping);
    if (result != NVML_SUCCESS)
        return result;
    call->box = call->mapping->box;
    call->kind = handle & 0xF;
    call->index = handle >> 4 & 0xFF;
    call->gi = handle >> 12 & 0xFF;
    call->ci = handle >> 20 & 0xFF;
    uint32_t generation = (uint32_t)(handle >> 28);
    if ((call->kind != ON_GPU && call->kind != ON_GI && call->kind != ON_CI && call->kind != ON_MIG) ||
        call->index >= call->box->config.gpu_count || call->gi >= INSTANCES_MAX || call->ci >= COMPUTE_MAX ||
        handle >> 60 != 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (!(call->kind & accept)) /* MIG devices are devices, to which much does not apply */
        return call->kind == ON_MIG && (accept & ON_GPU) ? NVML_ERROR_NOT_SUPPORTED : NVML_ERROR_INVALID_ARGUMENT;
    result = lock_with_faults(call->box, symbol, call->index);
    if (result != NVML_SUCCESS)
        return result;
    call->gpu = gpu_begin(call->box, call->index);
    uint64_t wakes_ns = gpu_use(&call->box->config, call->gpu);
    if (wakes_ns > 0) {
        gpu_commit(call->box);
        box_unlock(call->box);
        sleep_ns(wakes_ns);
        result = box_lock(call->box);
        if (result != NVML_SUCCESS)
            return result;
        call->gpu = gpu_begin(call->box, call->index);
        gpu_use(&call->box->config, call->gpu);
    }
    if (call->gpu->lost)
        return call_end(call, (nvmlReturn_t)call->gpu->lost);
    if (!alive(call, generation))
        return call_end(call, NVML_ERROR_INVALID_ARGUMENT);
    if (call->kind == ON_GPU)
        call->gi = call->ci = NVML_NO_INSTANCE;
    else
        call->profile = &call->box->config.profiles[call->gpu->instances[call->gi].profile];
    return NVML_SUCCESS;
}

nvmlReturn_t call_begin_aggregate(struct call *call, const char *symbol, nvml_handle handle) {
    nvmlReturn_t result = call_begin(call, symbol, handle, ON_GPU | ON_MIG);
    if (result == NVML_SUCCESS && call->kind == ON_GPU && call->gpu->mig && !call->box->live.privileged)
        return call_end(call, NVML_ERROR_NO_PERMISSION);
    return result;
}

nvmlReturn_t call_end(struct call *call, nvmlReturn_t result) {
    gpu_commit(call->box);
    box_unlock(call->box);
    return result;
}

nvmlReturn_t call_end_slowly(struct call *call, nvmlReturn_t result, unsigned milliseconds) {
    const char *factor = getenv("CLOVER_NVML_LATENCY");
    double scale = factor == NULL || factor[0] == 0 ? 1.0 : atof(factor);
    call_end(call, result);
    if (result == NVML_SUCCESS && scale > 0.0 && scale <= 100.0)
        sleep_ns((uint64_t)(scale * 1e6 * milliseconds));
    return result;
}

const struct profile *profile_by_id(const struct config *config, unsigned id) {
    for (unsigned i = 0; i < config->profile_count; i++)
        if (config->profiles[i].id == id)
            return &config->profiles[i];
    return NULL;
}
