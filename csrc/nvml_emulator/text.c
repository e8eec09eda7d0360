/* Texts that NVML gives to its callers: copied into their buffers, and UUIDs. */
#include "emulator.h"

#include <stdio.h>
#include <string.h>

nvmlReturn_t copy_text(char *out, unsigned length, const char *text) {
    if (out == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (strlen(text) >= length)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(out, text);
    return NVML_SUCCESS;
}

/* --- UUIDs: a hash of the box's seed, the board and what lies on it, so that they are the same in every process --- */

static uint64_t mix(uint64_t state, uint64_t value) {
    uint64_t z = (state ^ value) + 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static void uuid_text(const struct config *config, const char *prefix, uint64_t index, uint64_t gi, uint64_t ci,
                      char out[NVML_NAME_SIZE]) {
    uint64_t state = mix(config->seed, index << 32 | gi << 16 | ci);
    for (const char *letter = config->product; *letter != 0; letter++)
        state = mix(state, (unsigned char)*letter);
    uint64_t high = mix(state, 1), low = mix(state, 2);
    snprintf(out, NVML_NAME_SIZE, "%s-%08x-%04x-5%03x-%04x-%012llx", prefix, (unsigned)(high >> 32),
             (unsigned)(high >> 16 & 0xFFFF), (unsigned)(high & 0xFFF), (unsigned)(0x8000 | (low >> 48 & 0x3FFF)),
             (unsigned long long)(low & 0xFFFFFFFFFFFFu));
}

void gpu_uuid(const struct config *config, unsigned index, char out[NVML_NAME_SIZE]) {
    uuid_text(config, "GPU", index, 0xFFFF, 0xFFFF, out);
}

void mig_uuid(const struct config *config, unsigned index, unsigned gi, unsigned ci, char out[NVML_NAME_SIZE]) {
    uuid_text(config, "MIG", index, gi, ci, out);
}

nvmlReturn_t uuid_find(const struct box *box, const char *uuid, bool gone, unsigned *index, unsigned *gi,
                       unsigned *ci) {
    char text[NVML_NAME_SIZE];
    bool mig = strncmp(uuid, "MIG-", 4) == 0;
    for (unsigned gpu = 0; gpu < box->config.gpu_count; gpu++) {
        gpu_uuid(&box->config, gpu, text);
        *index = gpu;
        *gi = *ci = NVML_NO_INSTANCE;
        if (!mig && strcmp(text, uuid) == 0)
            return NVML_SUCCESS;
        for (*gi = 0; mig && *gi < INSTANCES_MAX; ++*gi)
            for (*ci = 0; *ci < COMPUTE_MAX; ++*ci) {
                const struct instance *instance = &box->live.gpus[gpu].instances[*gi];
                mig_uuid(&box->config, gpu, *gi, *ci, text);
                if ((gone || (instance->alive && instance->compute[*ci].alive)) && strcmp(text, uuid) == 0)
                    return NVML_SUCCESS;
            }
    }
    return NVML_ERROR_NOT_FOUND;
}
