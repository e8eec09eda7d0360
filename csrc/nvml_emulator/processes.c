/* Processes on a GPU or on a MIG device, as the attachments say. */
#include "emulator.h"

static nvmlReturn_t list(const char *symbol, nvml_handle device, unsigned *count, nvmlProcessInfo_t *processes) {
    struct call call;
    if (count == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = call_begin_aggregate(&call, symbol, device);
    if (result != NVML_SUCCESS)
        return result;
    attachments_reap(call.mapping, call.index, call.gpu);
    unsigned room = processes == NULL ? 0 : *count, found = 0;
    for (unsigned slot = 0; slot < ATTACH_MAX; slot++) {
        const struct attachment *attachment = &call.gpu->attachments[slot];
        if (!attachment->used || (call.kind == ON_MIG && (attachment->gi != call.gi || attachment->ci != call.ci)))
            continue;
        if (found < room)
            processes[found] = (nvmlProcessInfo_t){.pid = (unsigned)attachment->pid,
                                                   .usedGpuMemory = attachment->memory_bytes,
                                                   .gpuInstanceId = attachment->gi,
                                                   .computeInstanceId = attachment->ci};
        found++;
    }
    *count = found;
    return call_end(&call, found > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvml_handle device, unsigned *count,
                                                            nvmlProcessInfo_t *processes) {
    return list(__func__, device, count, processes);
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvml_handle device, unsigned *count,
                                                            nvmlProcessInfo_t *processes) {
    return list(__func__, device, count, processes);
}

/* How busy each process keeps the board: its draw as a part of the dynamic range.  As on real boards, unknown while MIG is
 * on, and NOT_FOUND if there is nothing newer than `since_us`. */
EXPORT nvmlReturn_t nvmlDeviceGetProcessUtilization(nvml_handle device, nvmlProcessUtilizationSample_t *samples,
                                                    unsigned *count, unsigned long long since_us) {
    struct call call;
    if (count == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = call_begin(&call, __func__, device, ON_GPU);
    if (result != NVML_SUCCESS)
        return result;
    if (call.gpu->mig)
        return call_end(&call, NVML_ERROR_NOT_SUPPORTED);
    attachments_reap(call.mapping, call.index, call.gpu);
    const struct config *config = &call.box->config;
    uint64_t now_us = (uint64_t)box_now_ns(call.box) / 1000, range = config->max_mw - config->idle_mw;
    unsigned found = 0, room = samples == NULL ? 0 : *count;
    for (unsigned slot = 0; slot < ATTACH_MAX && since_us < now_us; slot++) {
        const struct attachment *attachment = &call.gpu->attachments[slot];
        if (!attachment->used)
            continue;
        uint64_t part = range > 0 ? (uint64_t)attachment->draw_mw * 100 / range : 0;
        if (found < room)
            samples[found] = (nvmlProcessUtilizationSample_t){
                .pid = (unsigned)attachment->pid, .timeStamp = now_us, .smUtil = (unsigned)(part < 100 ? part : 100)};
        found++;
    }
    *count = found;
    if (found == 0)
        return call_end(&call, NVML_ERROR_NOT_FOUND);
    return call_end(&call, found > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS);
}

/* Nothing here draws pictures or goes through MPS: these lists are always empty. */
static nvmlReturn_t none(const char *symbol, nvml_handle device, unsigned *count) {
    struct call call;
    if (count == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = call_begin_aggregate(&call, symbol, device);
    if (result != NVML_SUCCESS)
        return result;
    *count = 0;
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvml_handle device, unsigned *count,
                                                             nvmlProcessInfo_t *processes) {
    (void)processes;
    return none(__func__, device, count);
}

EXPORT nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v2(nvml_handle device, unsigned *count,
                                                             nvmlProcessInfo_t *processes) {
    (void)processes;
    return none(__func__, device, count);
}

EXPORT nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v3(nvml_handle device, unsigned *count,
                                                               nvmlProcessInfo_t *processes) {
    (void)processes;
    return none(__func__, device, count);
}
