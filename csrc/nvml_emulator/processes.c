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
