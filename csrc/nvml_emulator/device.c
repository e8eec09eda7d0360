/* Which devices there are and what they are: handles, names, addresses, memory, engine counts. */
#include "emulator.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

static const unsigned FIRST_BUS = 7;

static nvmlReturn_t count_gpus(unsigned *count) {
    struct mapping *mapping;
    nvmlReturn_t result = session_initialised() ? session_mapping(&mapping) : NVML_ERROR_UNINITIALIZED;
    if (result == NVML_SUCCESS)
        *count = mapping->box->config.gpu_count;
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
    nvmlReturn_t result = session_begin(__func__);
    if (result != NVML_SUCCESS || count == NULL)
        return result != NVML_SUCCESS ? result : NVML_ERROR_INVALID_ARGUMENT;
    return count_gpus(count);
}

EXPORT nvmlReturn_t nvmlDeviceGetCount(unsigned *count) {
    return nvmlDeviceGetCount_v2(count);
}

/* --- handles ------------------------------------------------------------------------------------------------------ */

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvml_handle *device) {
    unsigned count;
    struct call call;
    nvmlReturn_t result = count_gpus(&count);
    if (result != NVML_SUCCESS)
        return result;
    if (device == NULL || index >= count)
        return NVML_ERROR_INVALID_ARGUMENT;
    result = call_begin(&call, __func__, handle_gpu(index), ON_GPU); /* a lost board has no handle */
    if (result != NVML_SUCCESS)
        return result;
    *device = handle_gpu(index);
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned index, nvml_handle *device) {
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvml_handle *device) {
    struct mapping *mapping;
    unsigned index, gi, ci;
    struct call call;
    if (!session_initialised())
        return NVML_ERROR_UNINITIALIZED;
    if (uuid == NULL || device == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = session_mapping(&mapping);
    if (result != NVML_SUCCESS || (result = box_lock(mapping->box)) != NVML_SUCCESS)
        return result;
    result = uuid_find(mapping->box, uuid, false, &index, &gi, &ci);
    box_unlock(mapping->box);
    if (result != NVML_SUCCESS)
        return result;
    result = call_begin(&call, __func__, handle_gpu(index), ON_GPU);
    if (result != NVML_SUCCESS)
        return result;
    if (gi == NVML_NO_INSTANCE)
        *device = handle_gpu(index);
    else if (call.gpu->instances[gi].alive && call.gpu->instances[gi].compute[ci].alive)
        *device = handle_mig(&call, gi, ci);
    else
        result = NVML_ERROR_NOT_FOUND; /* gone since it was looked up */
    return call_end(&call, result);
}

static void bus_id(unsigned index, char out[32]) {
    snprintf(out, 32, "%08X:%02X:00.0", 0u, FIRST_BUS + index);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *address, nvml_handle *device) {
    unsigned count;
    nvmlReturn_t result = count_gpus(&count);
    if (result != NVML_SUCCESS)
        return result;
    if (address == NULL || device == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned i = 0; i < count; i++) {
        char text[32];
        bus_id(i, text);
        if (strcasecmp(address, text) == 0 || strcasecmp(address, text + 4) == 0) /* domain of 8 or of 4 digits */
            return nvmlDeviceGetHandleByIndex_v2(i, device);
    }
    return NVML_ERROR_NOT_FOUND;
}

/* --- identity ----------------------------------------------------------------------------------------------------- */

/* "1g.5gb", or "1c.3g.20gb" where the compute instance is a part of its GPU instance. */
static void shape_name(const struct call *call, char out[48]) {
    unsigned slices = call->gpu->instances[call->gi].compute[call->ci].slices;
    if (slices == call->profile->slices)
        snprintf(out, 48, "%s", call->profile->name);
    else
        snprintf(out, 48, "%uc.%s", slices, call->profile->name);
}

EXPORT nvmlReturn_t nvmlDeviceGetName(nvml_handle device, char *name, unsigned length) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, ON_GPU | ON_MIG);
    if (result != NVML_SUCCESS)
        return result;
    char text[NVML_NAME_SIZE + 64], shape[48];
    snprintf(text, sizeof text, "%s", call.box->config.product);
    if (call.kind == ON_MIG) {
        shape_name(&call, shape);
        snprintf(text, sizeof text, "%s MIG %s", call.box->config.product, shape);
    }
    return call_end(&call, copy_text(name, length, text));
}

EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvml_handle device, char *uuid, unsigned length) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, ON_GPU | ON_MIG);
    if (result != NVML_SUCCESS)
        return result;
    char text[NVML_NAME_SIZE];
    if (call.kind == ON_MIG)
        mig_uuid(&call.box->config, call.index, call.gi, call.ci, text);
    else
        gpu_uuid(&call.box->config, call.index, text);
    return call_end(&call, copy_text(uuid, length, text));
}

/* One number that does not depend on the MIG handle. */
static nvmlReturn_t give(const char *symbol, nvml_handle device, unsigned accept, unsigned *out, unsigned value) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, symbol, device, accept);
    if (result != NVML_SUCCESS)
        return result;
    if (out == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    *out = value;
    return call_end(&call, NVML_SUCCESS);
}

static unsigned index_of(nvml_handle device) {
    return device >> 4 & 0xFF;
}

EXPORT nvmlReturn_t nvmlDeviceGetIndex(nvml_handle device, unsigned *index) {
    return give(__func__, device, ON_GPU, index, index_of(device));
}

EXPORT nvmlReturn_t nvmlDeviceGetMinorNumber(nvml_handle device, unsigned *minor) {
    return give(__func__, device, ON_GPU, minor, index_of(device));
}

/* A setting of one board, as the driver keeps it until it is loaded anew. */
static nvmlReturn_t setting(const char *symbol, nvml_handle device, unsigned accept, unsigned *out, bool persistence) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, symbol, device, accept);
    if (result != NVML_SUCCESS)
        return result;
    if (out == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    /* A board in MIG mode is in the default compute mode, whatever was set before. */
    *out = persistence ? call.gpu->persistence : call.gpu->mig ? NVML_COMPUTE_DEFAULT : call.gpu->compute_mode;
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetPersistenceMode(nvml_handle device, unsigned *mode) {
    return setting(__func__, device, ON_GPU, mode, true);
}

EXPORT nvmlReturn_t nvmlDeviceSetPersistenceMode(nvml_handle device, unsigned mode) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, ON_GPU);
    if (result != NVML_SUCCESS)
        return result;
    if (mode > NVML_FEATURE_ENABLED)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    if (!call.box->live.privileged)
        return call_end(&call, NVML_ERROR_NO_PERMISSION);
    call.gpu->persistence = mode;
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetDisplayMode(nvml_handle device, unsigned *mode) {
    return give(__func__, device, ON_GPU, mode, NVML_FEATURE_DISABLED);
}

EXPORT nvmlReturn_t nvmlDeviceGetDisplayActive(nvml_handle device, unsigned *mode) {
    return give(__func__, device, ON_GPU, mode, NVML_FEATURE_DISABLED);
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeMode(nvml_handle device, unsigned *mode) {
    return setting(__func__, device, ON_GPU | ON_MIG, mode, false);
}

EXPORT nvmlReturn_t nvmlDeviceSetComputeMode(nvml_handle device, unsigned mode) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, ON_GPU);
    if (result != NVML_SUCCESS)
        return result;
    if (mode != NVML_COMPUTE_DEFAULT && mode != NVML_COMPUTE_PROHIBITED && mode != NVML_COMPUTE_EXCLUSIVE_PROCESS)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    if (call.gpu->mig)
        return call_end(&call, NVML_ERROR_NOT_SUPPORTED);
    if (!call.box->live.privileged)
        return call_end(&call, NVML_ERROR_NO_PERMISSION);
    call.gpu->compute_mode = mode;
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetBrand(nvml_handle device, unsigned *brand) {
    return give(__func__, device, ON_GPU, brand, 14); /* NVIDIA, as data centre boards say */
}

EXPORT nvmlReturn_t nvmlDeviceGetPerformanceState(nvml_handle device, unsigned *state) {
    return give(__func__, device, ON_GPU, state, 0); /* the highest: nothing here throttles */
}

EXPORT nvmlReturn_t nvmlDeviceGetArchitecture(nvml_handle device, unsigned *architecture) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, ON_GPU | ON_MIG);
    if (result != NVML_SUCCESS)
        return result;
    if (architecture == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    *architecture = call.box->config.architecture;
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvml_handle device, int *major, int *minor) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, ON_GPU | ON_MIG);
    if (result != NVML_SUCCESS)
        return result;
    if (major == NULL || minor == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    *major = (int)call.box->config.compute_major;
    *minor = (int)call.box->config.compute_minor;
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvml_handle device, nvmlPciInfo_t *pci) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, ON_GPU | ON_MIG);
    if (result != NVML_SUCCESS)
        return result;
    if (pci == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    memset(pci, 0, sizeof *pci);
    bus_id(call.index, pci->busId);
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%s", pci->busId + 4);
    pci->bus = FIRST_BUS + call.index;
    pci->pciDeviceId = call.box->config.pci_device;
    return call_end(&call, NVML_SUCCESS);
}

/* --- memory and engines ------------------------------------------------------------------------------------------- */

static nvmlReturn_t memory_of(const char *symbol, nvml_handle device, nvmlMemory_t *memory) {
    struct call call;
    nvmlReturn_t result = call_begin_aggregate(&call, symbol, device);
    if (result != NVML_SUCCESS)
        return result;
    attachments_reap(call.mapping, call.index, call.gpu);
    memory->total = (unsigned long long)(call.profile ? call.profile->memory_mib : call.box->config.memory_mib) << 20;
    memory->used = 0;
    for (unsigned slot = 0; slot < ATTACH_MAX; slot++) {
        const struct attachment *attachment = &call.gpu->attachments[slot];
        if (attachment->used && (call.kind == ON_GPU || attachment->gi == call.gi))
            memory->used += attachment->memory_bytes;
    }
    memory->free = memory->total - memory->used;
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvml_handle device, nvmlMemory_t *memory) {
    return memory == NULL ? NVML_ERROR_INVALID_ARGUMENT : memory_of(__func__, device, memory);
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvml_handle device, nvmlMemory_v2_t *memory) {
    if (memory == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (memory->version != NVML_VERSION(nvmlMemory_v2_t, 2))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    nvmlMemory_t plain;
    nvmlReturn_t result = memory_of(__func__, device, &plain);
    if (result != NVML_SUCCESS)
        return result;
    memory->total = plain.total;
    memory->reserved = 0;
    memory->free = plain.free;
    memory->used = plain.used;
    return NVML_SUCCESS;
}

/* The window through which the host sees the memory: as large as that, rounded up to a power of two, shared out by
 * memory slices.  Monitors divide by it; nothing here uses it. */
EXPORT nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvml_handle device, nvmlBar1Memory_t *window) {
    struct call call;
    nvmlReturn_t result = call_begin_aggregate(&call, __func__, device);
    if (result != NVML_SUCCESS)
        return result;
    if (window == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    unsigned long long total = 1ull << 20;
    while (total < (unsigned long long)call.box->config.memory_mib << 20)
        total *= 2;
    if (call.profile)
        total = total / call.box->config.memory_slices * call.profile->size;
    *window = (nvmlBar1Memory_t){.total = total, .free = total};
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetAttributes_v2(nvml_handle device, nvmlDeviceAttributes_t *attributes) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, ON_GPU | ON_MIG);
    if (result != NVML_SUCCESS)
        return result;
    if (attributes == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    if (call.kind == ON_GPU)
        return call_end(&call, NVML_ERROR_NOT_SUPPORTED); /* known of MIG devices only */
    const struct profile *profile = call.profile;
    unsigned slices = call.gpu->instances[call.gi].compute[call.ci].slices;
    *attributes = (nvmlDeviceAttributes_t){
        .multiprocessorCount = profile->sm * slices / profile->slices,
        .sharedCopyEngineCount = profile->copy_engines,
        .sharedDecoderCount = profile->decoders,
        .sharedEncoderCount = profile->encoders,
        .sharedJpegCount = profile->jpegs,
        .sharedOfaCount = profile->ofas,
        .gpuInstanceSliceCount = profile->slices,
        .computeInstanceSliceCount = slices,
        .memorySizeMB = profile->memory_mib,
    };
    return call_end(&call, NVML_SUCCESS);
}
