/* Compute instances, and the MIG devices that they are to CUDA.
 *
 * A compute instance takes some of its GPU instance's compute slices and shares its memory and engines.  Its shapes are
 * 1, 2, 3, 4 and 7 slices, up to the whole; a shape starts at multiples of the power of two that holds it.
 */
#include "emulator.h"

#include <stdio.h>

struct shape {
    unsigned id, slices, step;
};

static const struct shape SHAPES[] = {{0, 1, 1}, {1, 2, 2}, {2, 3, 4}, {3, 4, 4}, {4, 7, 8}};

/* The shape that has this id (NVML's constant and the profile id are the same here), if the GPU instance offers it: a
 * 4g has no 3c. */
static const struct shape *shape_by_id(const struct profile *profile, unsigned id) {
    if (id >= sizeof SHAPES / sizeof SHAPES[0])
        return NULL;
    const struct shape *shape = &SHAPES[id];
    bool odd_part = shape->slices == 3 && profile->slices != 3 && profile->slices != 7;
    return shape->slices > profile->slices || odd_part ? NULL : shape;
}

static unsigned starts_of(const struct profile *profile, const struct shape *shape) {
    return (profile->slices - shape->slices) / shape->step + 1;
}

static bool fits(const struct instance *instance, const struct profile *profile, const struct shape *shape,
                 unsigned start) {
    for (unsigned ci = 0; ci < COMPUTE_MAX; ci++) {
        const struct compute *other = &instance->compute[ci];
        if (other->alive && start < other->start + other->size && other->start < start + shape->slices)
            return false;
    }
    return start + shape->slices <= profile->slices;
}

static nvmlReturn_t begin_privileged(struct call *call, const char *symbol, nvml_handle handle, unsigned accept) {
    nvmlReturn_t result = call_begin(call, symbol, handle, accept);
    if (result == NVML_SUCCESS && !call->box->live.privileged)
        return call_end(call, NVML_ERROR_NO_PERMISSION);
    return result;
}

/* --- profiles ----------------------------------------------------------------------------------------------------- */

static nvmlReturn_t shape_info(const char *symbol, nvml_handle gpu_instance, unsigned index, unsigned engine,
                               nvmlComputeInstanceProfileInfo_v2_t *info) {
    struct call call;
    if (index >= NVML_CI_PROFILE_COUNT || engine != 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = call_begin(&call, symbol, gpu_instance, ON_GI);
    if (result != NVML_SUCCESS)
        return result;
    const struct profile *profile = call.profile;
    const struct shape *shape = shape_by_id(profile, index);
    if (shape == NULL)
        return call_end(&call, NVML_ERROR_NOT_SUPPORTED);
    *info = (nvmlComputeInstanceProfileInfo_v2_t){
        .version = info->version,
        .id = shape->id,
        .sliceCount = shape->slices,
        .instanceCount = starts_of(profile, shape),
        .multiprocessorCount = profile->sm * shape->slices / profile->slices,
        .sharedCopyEngineCount = profile->copy_engines,
        .sharedDecoderCount = profile->decoders,
        .sharedEncoderCount = profile->encoders,
        .sharedJpegCount = profile->jpegs,
        .sharedOfaCount = profile->ofas,
    };
    if (shape->slices == profile->slices)
        snprintf(info->name, sizeof info->name, "MIG %s", profile->name);
    else
        snprintf(info->name, sizeof info->name, "MIG %uc.%s", shape->slices, profile->name);
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfoV(nvml_handle gpu_instance, unsigned index,
                                                                  unsigned engine,
                                                                  nvmlComputeInstanceProfileInfo_v2_t *info) {
    if (info == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (info->version != NVML_VERSION(nvmlComputeInstanceProfileInfo_v2_t, 2))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    return shape_info(__func__, gpu_instance, index, engine, info);
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfo(nvml_handle gpu_instance, unsigned index,
                                                                 unsigned engine,
                                                                 nvmlComputeInstanceProfileInfo_t *info) {
    nvmlComputeInstanceProfileInfo_v2_t full = {0};
    if (info == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = shape_info(__func__, gpu_instance, index, engine, &full);
    if (result == NVML_SUCCESS)
        *info = (nvmlComputeInstanceProfileInfo_t){
            full.id,
            full.sliceCount,
            full.instanceCount,
            full.multiprocessorCount,
            full.sharedCopyEngineCount,
            full.sharedDecoderCount,
            full.sharedEncoderCount,
            full.sharedJpegCount,
            full.sharedOfaCount,
        };
    return result;
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstancePossiblePlacements(nvml_handle gpu_instance, unsigned id,
                                                                        nvmlPlacement_t *placements, unsigned *count) {
    struct call call;
    nvmlReturn_t result = begin_privileged(&call, __func__, gpu_instance, ON_GI);
    if (result != NVML_SUCCESS)
        return result;
    const struct shape *shape = shape_by_id(call.profile, id);
    if (shape == NULL || count == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    *count = starts_of(call.profile, shape);
    for (unsigned i = 0; placements != NULL && i < *count; i++)
        placements[i] = (nvmlPlacement_t){i * shape->step, shape->slices};
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceRemainingCapacity(nvml_handle gpu_instance, unsigned id,
                                                                       unsigned *count) {
    struct call call;
    nvmlReturn_t result = begin_privileged(&call, __func__, gpu_instance, ON_GI);
    if (result != NVML_SUCCESS)
        return result;
    const struct shape *shape = shape_by_id(call.profile, id);
    if (shape == NULL || count == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    *count = 0;
    for (unsigned i = 0; i < starts_of(call.profile, shape); i++)
        *count += fits(&call.gpu->instances[call.gi], call.profile, shape, i * shape->step);
    return call_end(&call, NVML_SUCCESS);
}

/* --- instances ---------------------------------------------------------------------------------------------------- */

/* Within [from, to] of the shape's starts, the lowest that fits.  Ends the call. */
static nvmlReturn_t create(struct call *call, const struct shape *shape, unsigned from, unsigned to,
                           nvml_handle *made) {
    struct instance *instance = &call->gpu->instances[call->gi];
    unsigned start = from, ci = 0;
    while (start <= to && !fits(instance, call->profile, shape, start))
        start += shape->step;
    while (ci < COMPUTE_MAX && instance->compute[ci].alive)
        ci++;
    if (start > to || ci == COMPUTE_MAX)
        return call_end(call, NVML_ERROR_INSUFFICIENT_RESOURCES);
    struct compute *compute = &instance->compute[ci];
    compute->slices = compute->size = shape->slices;
    compute->start = start;
    compute->generation = ++call->box->live.generation;
    compute->alive = 1;
    *made = handle_ci(call, call->gi, ci);
    return call_end(call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlGpuInstanceCreateComputeInstance(nvml_handle gpu_instance, unsigned id, nvml_handle *made) {
    struct call call;
    nvmlReturn_t result = begin_privileged(&call, __func__, gpu_instance, ON_GI);
    if (result != NVML_SUCCESS)
        return result;
    const struct shape *shape = shape_by_id(call.profile, id);
    if (shape == NULL || made == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    return create(&call, shape, 0, call.profile->slices - shape->slices, made);
}

EXPORT nvmlReturn_t nvmlGpuInstanceCreateComputeInstanceWithPlacement(nvml_handle gpu_instance, unsigned id,
                                                                      const nvmlPlacement_t *placement,
                                                                      nvml_handle *made) {
    struct call call;
    nvmlReturn_t result = begin_privileged(&call, __func__, gpu_instance, ON_GI);
    if (result != NVML_SUCCESS)
        return result;
    const struct shape *shape = shape_by_id(call.profile, id);
    if (shape == NULL || made == NULL || placement == NULL || placement->size != shape->slices ||
        placement->start % shape->step != 0 || placement->start > call.profile->slices - shape->slices)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    return create(&call, shape, placement->start, placement->start, made);
}

EXPORT nvmlReturn_t nvmlComputeInstanceDestroy(nvml_handle compute_instance) {
    struct call call;
    nvmlReturn_t result = begin_privileged(&call, __func__, compute_instance, ON_CI);
    if (result != NVML_SUCCESS)
        return result;
    attachments_reap(call.mapping, call.index, call.gpu);
    if (attachments_count(call.gpu, call.gi, call.ci) > 0 || monitor_holds(call.mapping, call.index))
        return call_end(&call, NVML_ERROR_IN_USE);
    call.gpu->instances[call.gi].compute[call.ci].alive = 0;
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstances(nvml_handle gpu_instance, unsigned id, nvml_handle *instances,
                                                       unsigned *count) {
    struct call call;
    nvmlReturn_t result = begin_privileged(&call, __func__, gpu_instance, ON_GI);
    if (result != NVML_SUCCESS)
        return result;
    const struct shape *shape = shape_by_id(call.profile, id);
    if (shape == NULL || instances == NULL || count == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    *count = 0;
    for (unsigned ci = 0; ci < COMPUTE_MAX; ci++) {
        const struct compute *compute = &call.gpu->instances[call.gi].compute[ci];
        if (compute->alive && compute->slices == shape->slices)
            instances[(*count)++] = handle_ci(&call, call.gi, ci);
    }
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceById(nvml_handle gpu_instance, unsigned ci,
                                                          nvml_handle *instance) {
    struct call call;
    nvmlReturn_t result = begin_privileged(&call, __func__, gpu_instance, ON_GI);
    if (result != NVML_SUCCESS)
        return result;
    if (instance == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    if (ci >= COMPUTE_MAX || !call.gpu->instances[call.gi].compute[ci].alive)
        return call_end(&call, NVML_ERROR_NOT_FOUND);
    *instance = handle_ci(&call, call.gi, ci);
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlComputeInstanceGetInfo_v2(nvml_handle compute_instance, nvmlComputeInstanceInfo_t *info) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, compute_instance, ON_CI);
    if (result != NVML_SUCCESS)
        return result;
    if (info == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    const struct compute *compute = &call.gpu->instances[call.gi].compute[call.ci];
    unsigned id = 0;
    while (SHAPES[id].slices != compute->slices)
        id++;
    *info = (nvmlComputeInstanceInfo_t){
        .device = handle_mig(&call, call.gi, call.ci), /* the MIG device, not its board */
        .gpuInstance = handle_gi(&call, call.gi),
        .id = call.ci,
        .profileId = id,
        .placement = {compute->start, compute->size},
    };
    return call_end(&call, NVML_SUCCESS);
}

/* --- MIG devices -------------------------------------------------------------------------------------------------- */

EXPORT nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvml_handle device, unsigned *answer) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, ON_GPU | ON_MIG);
    if (result != NVML_SUCCESS)
        return result;
    if (answer == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    *answer = call.kind == ON_MIG;
    return call_end(&call, NVML_SUCCESS);
}

static nvmlReturn_t mig_id(const char *symbol, nvml_handle device, unsigned *out, bool compute) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, symbol, device, ON_MIG);
    if (result != NVML_SUCCESS)
        return result;
    if (out == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    *out = compute ? call.ci : call.gi;
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvml_handle device, unsigned *id) {
    return mig_id(__func__, device, id, false);
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvml_handle device, unsigned *id) {
    return mig_id(__func__, device, id, true);
}

EXPORT nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvml_handle device, unsigned *count) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, ON_GPU);
    if (result != NVML_SUCCESS)
        return result;
    if (count == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    *count = call.box->config.profile_count > 0 ? call.box->config.compute_slices : 0;
    return call_end(&call, NVML_SUCCESS);
}

/* MIG devices by GPU instance and compute instance id.  A GPU instance without a compute instance is not among them. */
EXPORT nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvml_handle device, unsigned index, nvml_handle *mig) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, ON_GPU);
    if (result != NVML_SUCCESS)
        return result;
    if (mig == NULL || index >= call.box->config.compute_slices)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    if (!call.gpu->mig)
        return call_end(&call, NVML_ERROR_NOT_SUPPORTED);
    for (unsigned gi = 0; gi < INSTANCES_MAX; gi++)
        for (unsigned ci = 0; ci < COMPUTE_MAX; ci++)
            if (call.gpu->instances[gi].alive && call.gpu->instances[gi].compute[ci].alive && index-- == 0) {
                *mig = handle_mig(&call, gi, ci);
                return call_end(&call, NVML_SUCCESS);
            }
    return call_end(&call, NVML_ERROR_NOT_FOUND);
}

EXPORT nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvml_handle mig, nvml_handle *device) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, mig, ON_MIG);
    if (result != NVML_SUCCESS)
        return result;
    if (device == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    *device = handle_gpu(call.index);
    return call_end(&call, NVML_SUCCESS);
}
