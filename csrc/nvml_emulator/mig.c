/* MIG mode and GPU instances.
 *
 * A mode that was set is pending until it is activated.  Hopper and later activate it at once if the board is idle;
 * GA100 needs a reset.  nvmlDeviceSetMigMode itself succeeds either way: what came of it stands in the second result.
 */
#include "emulator.h"

#include <stdio.h>
#include <string.h>

/* On an A100 a whole layout was made in 52 (1 x 7g) to 132 ms (7 x 1g) and removed in 120 to 164 ms, medians, at most
 * 250 ms (measured by others: spcl/gpuless-thesis, n300.out).  Through an operator it takes minutes. */
enum { CREATE_MS = 15, CREATE_MORE_MS = 10, DESTROY_MS = 23 };

EXPORT nvmlReturn_t nvmlDeviceGetMigMode(nvml_handle device, unsigned *current, unsigned *pending) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, ON_GPU | ON_MIG);
    if (result != NVML_SUCCESS)
        return result;
    if (current == NULL || pending == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    if (call.box->config.profile_count == 0)
        return call_end(&call, NVML_ERROR_NOT_SUPPORTED);
    *current = call.gpu->mig;
    *pending = call.gpu->mig_pending;
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceSetMigMode(nvml_handle device, unsigned mode, nvmlReturn_t *activation) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, ON_GPU);
    if (result != NVML_SUCCESS)
        return result;
    if (mode > 1 || activation == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    if (call.box->config.profile_count == 0)
        return call_end(&call, NVML_ERROR_NOT_SUPPORTED);
    if (!call.box->live.privileged)
        return call_end(&call, NVML_ERROR_NO_PERMISSION);
    *activation = NVML_SUCCESS;
    call.gpu->mig_pending = mode;
    if (call.gpu->mig == mode)
        return call_end(&call, NVML_SUCCESS);
    attachments_reap(call.mapping, call.index, call.gpu);
    if (attachments_count(call.gpu, NVML_NO_INSTANCE, NVML_NO_INSTANCE) > 0 ||
        monitor_holds(call.mapping, call.index))
        *activation = NVML_ERROR_IN_USE;
    else if (call.box->config.toggle_needs_reset)
        *activation = NVML_ERROR_RESET_REQUIRED;
    else
        gpu_reset(call.gpu);
    return call_end(&call, NVML_SUCCESS);
}

/* --- profiles ----------------------------------------------------------------------------------------------------- */

/* Begins a call that makes sense only on a board with MIG on. */
static nvmlReturn_t begin_mig(struct call *call, const char *symbol, nvml_handle device, bool privileged) {
    nvmlReturn_t result = call_begin(call, symbol, device, ON_GPU);
    if (result != NVML_SUCCESS)
        return result;
    if (!call->gpu->mig)
        return call_end(call, NVML_ERROR_NOT_SUPPORTED);
    if (privileged && !call->box->live.privileged)
        return call_end(call, NVML_ERROR_NO_PERMISSION);
    return NVML_SUCCESS;
}

static const struct profile *profile_by_index(const struct config *config, unsigned index) {
    for (unsigned i = 0; i < config->profile_count; i++)
        if (config->profiles[i].index == index)
            return &config->profiles[i];
    return NULL;
}

static void profile_info(const struct profile *profile, nvmlGpuInstanceProfileInfo_v2_t *info) {
    *info = (nvmlGpuInstanceProfileInfo_v2_t){
        .version = info->version,
        .id = profile->id,
        .sliceCount = profile->slices,
        .instanceCount = profile->most,
        .multiprocessorCount = profile->sm,
        .copyEngineCount = profile->copy_engines,
        .decoderCount = profile->decoders,
        .encoderCount = profile->encoders,
        .jpegCount = profile->jpegs,
        .ofaCount = profile->ofas,
        .memorySizeMB = profile->memory_mib,
    };
    snprintf(info->name, sizeof info->name, "MIG %s", profile->name);
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoV(nvml_handle device, unsigned index,
                                                         nvmlGpuInstanceProfileInfo_v2_t *info) {
    struct call call;
    if (info == NULL || index >= NVML_GI_PROFILE_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (info->version != NVML_VERSION(nvmlGpuInstanceProfileInfo_v2_t, 2))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    nvmlReturn_t result = begin_mig(&call, __func__, device, false);
    if (result != NVML_SUCCESS)
        return result;
    const struct profile *profile = profile_by_index(&call.box->config, index);
    if (profile == NULL)
        return call_end(&call, NVML_ERROR_NOT_SUPPORTED);
    profile_info(profile, info);
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoByIdV(nvml_handle device, unsigned id,
                                                             nvmlGpuInstanceProfileInfo_v2_t *info) {
    struct call call;
    if (info == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (info->version != NVML_VERSION(nvmlGpuInstanceProfileInfo_v2_t, 2))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    nvmlReturn_t result = begin_mig(&call, __func__, device, false);
    if (result != NVML_SUCCESS)
        return result;
    const struct profile *profile = profile_by_id(&call.box->config, id);
    if (profile == NULL)
        return call_end(&call, NVML_ERROR_NOT_SUPPORTED);
    profile_info(profile, info);
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfo(nvml_handle device, unsigned index,
                                                        nvmlGpuInstanceProfileInfo_t *info) {
    struct call call;
    if (info == NULL || index >= NVML_GI_PROFILE_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = begin_mig(&call, __func__, device, false);
    if (result != NVML_SUCCESS)
        return result;
    const struct profile *profile = profile_by_index(&call.box->config, index);
    if (profile == NULL)
        return call_end(&call, NVML_ERROR_NOT_SUPPORTED);
    nvmlGpuInstanceProfileInfo_v2_t full = {0};
    profile_info(profile, &full);
    *info = (nvmlGpuInstanceProfileInfo_t){
        full.id,           full.isP2pSupported, full.sliceCount, full.instanceCount, full.multiprocessorCount,
        full.copyEngineCount, full.decoderCount, full.encoderCount, full.jpegCount,  full.ofaCount,
        full.memorySizeMB,
    };
    return call_end(&call, NVML_SUCCESS);
}

/* All placements of the profile, whatever exists and whether or not MIG is on; the caller's array holds as many as a
 * first call without one said. */
EXPORT nvmlReturn_t nvmlDeviceGetGpuInstancePossiblePlacements_v2(nvml_handle device, unsigned id,
                                                                  nvmlPlacement_t *placements, unsigned *count) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, ON_GPU);
    if (result == NVML_SUCCESS && !call.box->live.privileged)
        return call_end(&call, NVML_ERROR_NO_PERMISSION);
    if (result != NVML_SUCCESS)
        return result;
    const struct profile *profile = profile_by_id(&call.box->config, id);
    if (profile == NULL || count == NULL)
        return call_end(&call, count == NULL ? NVML_ERROR_INVALID_ARGUMENT : NVML_ERROR_NOT_SUPPORTED);
    *count = profile->start_count;
    for (unsigned i = 0; placements != NULL && i < profile->start_count; i++)
        placements[i] = (nvmlPlacement_t){profile->starts[i], profile->size};
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceRemainingCapacity(nvml_handle device, unsigned id, unsigned *count) {
    struct call call;
    nvmlReturn_t result = begin_mig(&call, __func__, device, true);
    if (result != NVML_SUCCESS)
        return result;
    const struct profile *profile = profile_by_id(&call.box->config, id);
    if (profile == NULL || count == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    *count = remaining_capacity(call.box, call.gpu, profile);
    return call_end(&call, NVML_SUCCESS);
}

/* --- instances ---------------------------------------------------------------------------------------------------- */

/* At `start`, or where the driver likes if that is NVML_NO_INSTANCE.  Ends the call. */
static nvmlReturn_t create(struct call *call, const struct profile *profile, unsigned start, nvml_handle *made) {
    nvmlReturn_t result = start == NVML_NO_INSTANCE ? placement_choose(call->box, call->gpu, profile, &start)
                                                    : placement_check(call->box, call->gpu, profile, start);
    if (result != NVML_SUCCESS)
        return call_end(call, result);
    unsigned gi = instance_id(&call->box->config, profile, start);
    struct instance *instance = &call->gpu->instances[gi];
    instance->profile = (uint32_t)(profile - call->box->config.profiles);
    instance->start = start;
    instance->generation = ++call->box->live.generation;
    instance->alive = 1;
    *made = handle_gi(call, gi);
    uint64_t luck = call->box->config.seed + instance->generation;
    return call_end_slowly(call, NVML_SUCCESS, CREATE_MS + (unsigned)(draw_bits(&luck) % CREATE_MORE_MS));
}

EXPORT nvmlReturn_t nvmlDeviceCreateGpuInstance(nvml_handle device, unsigned id, nvml_handle *made) {
    struct call call;
    nvmlReturn_t result = begin_mig(&call, __func__, device, true);
    if (result != NVML_SUCCESS)
        return result;
    const struct profile *profile = profile_by_id(&call.box->config, id);
    if (profile == NULL || made == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    return create(&call, profile, NVML_NO_INSTANCE, made);
}

EXPORT nvmlReturn_t nvmlDeviceCreateGpuInstanceWithPlacement(nvml_handle device, unsigned id,
                                                             const nvmlPlacement_t *placement, nvml_handle *made) {
    struct call call;
    nvmlReturn_t result = begin_mig(&call, __func__, device, true);
    if (result != NVML_SUCCESS)
        return result;
    const struct profile *profile = profile_by_id(&call.box->config, id);
    if (profile == NULL || made == NULL || placement == NULL || placement->size != profile->size ||
        placement->start == NVML_NO_INSTANCE)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    return create(&call, profile, placement->start, made);
}

EXPORT nvmlReturn_t nvmlGpuInstanceDestroy(nvml_handle gpu_instance) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, gpu_instance, ON_GI);
    if (result != NVML_SUCCESS)
        return result;
    if (!call.box->live.privileged)
        return call_end(&call, NVML_ERROR_NO_PERMISSION);
    struct instance *instance = &call.gpu->instances[call.gi];
    for (unsigned ci = 0; ci < COMPUTE_MAX; ci++)
        if (instance->compute[ci].alive)
            return call_end(&call, NVML_ERROR_IN_USE);
    if (monitor_holds(call.mapping, call.index))
        return call_end(&call, NVML_ERROR_IN_USE);
    instance->alive = 0;
    return call_end_slowly(&call, NVML_SUCCESS, DESTROY_MS);
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstances(nvml_handle device, unsigned id, nvml_handle *instances,
                                              unsigned *count) {
    struct call call;
    nvmlReturn_t result = begin_mig(&call, __func__, device, true);
    if (result != NVML_SUCCESS)
        return result;
    const struct profile *profile = profile_by_id(&call.box->config, id);
    if (profile == NULL || instances == NULL || count == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    *count = 0;
    for (unsigned gi = 0; gi < INSTANCES_MAX; gi++)
        if (call.gpu->instances[gi].alive && &call.box->config.profiles[call.gpu->instances[gi].profile] == profile)
            instances[(*count)++] = handle_gi(&call, gi);
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceById(nvml_handle device, unsigned gi, nvml_handle *instance) {
    struct call call;
    nvmlReturn_t result = begin_mig(&call, __func__, device, true);
    if (result != NVML_SUCCESS)
        return result;
    if (instance == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    if (gi >= INSTANCES_MAX || !call.gpu->instances[gi].alive)
        return call_end(&call, NVML_ERROR_NOT_FOUND);
    *instance = handle_gi(&call, gi);
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetInfo(nvml_handle gpu_instance, nvmlGpuInstanceInfo_t *info) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, gpu_instance, ON_GI);
    if (result != NVML_SUCCESS)
        return result;
    if (info == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    *info = (nvmlGpuInstanceInfo_t){
        .device = handle_gpu(call.index),
        .id = call.gi,
        .profileId = call.profile->id,
        .placement = {call.gpu->instances[call.gi].start, call.profile->size},
    };
    return call_end(&call, NVML_SUCCESS);
}
