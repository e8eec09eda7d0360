/* Start and end of a session, and what NVML knows of the system rather than of a board. */
#include "emulator.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pthread_mutex_t session_lock = PTHREAD_MUTEX_INITIALIZER;
static struct mapping *session; /* never unmapped: other threads may be inside a call */
static unsigned users;

/* Opens the file that the environment names, unless that is the one in use.  session_lock is held. */
static nvmlReturn_t session_open(void) {
    const char *path = getenv("CLOVER_NVML_STATE");
    if (session != NULL && (path == NULL || strcmp(session->path, path) == 0))
        return NVML_SUCCESS;
    struct mapping *opened = malloc(sizeof *opened);
    if (opened == NULL)
        return NVML_ERROR_MEMORY;
    nvmlReturn_t result = mapping_open(opened, path);
    if (result == NVML_SUCCESS)
        session = opened;
    else
        free(opened);
    return result;
}

nvmlReturn_t session_mapping(struct mapping **mapping) {
    pthread_mutex_lock(&session_lock);
    nvmlReturn_t result = session == NULL ? session_open() : NVML_SUCCESS;
    *mapping = session;
    pthread_mutex_unlock(&session_lock);
    return result;
}

bool session_initialised(void) {
    pthread_mutex_lock(&session_lock);
    bool initialised = users > 0;
    pthread_mutex_unlock(&session_lock);
    return initialised;
}

/* Faults on a call that concerns no GPU. */
static nvmlReturn_t pass_faults(struct box *box, const char *symbol) {
    uint64_t delay_ns = 0;
    nvmlReturn_t result = box_lock(box);
    if (result != NVML_SUCCESS)
        return result;
    result = faults_act(box, symbol, -1, &delay_ns);
    box_unlock(box);
    sleep_ns(delay_ns);
    return result;
}

nvmlReturn_t session_begin(const char *symbol) {
    struct mapping *mapping;
    if (!session_initialised())
        return NVML_ERROR_UNINITIALIZED;
    nvmlReturn_t result = session_mapping(&mapping);
    return result == NVML_SUCCESS ? pass_faults(mapping->box, symbol) : result;
}

static nvmlReturn_t initialise(const char *symbol) {
    pthread_mutex_lock(&session_lock);
    nvmlReturn_t result = users == 0 ? session_open() : NVML_SUCCESS;
    struct mapping *mapping = session;
    pthread_mutex_unlock(&session_lock);
    if (result == NVML_SUCCESS)
        result = pass_faults(mapping->box, symbol);
    if (result != NVML_SUCCESS)
        return result;
    pthread_mutex_lock(&session_lock);
    users++;
    pthread_mutex_unlock(&session_lock);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    return initialise(__func__);
}

EXPORT nvmlReturn_t nvmlInit_v2(void) {
    return initialise(__func__);
}

EXPORT nvmlReturn_t nvmlInit(void) {
    return initialise(__func__);
}

EXPORT nvmlReturn_t nvmlShutdown(void) {
    nvmlReturn_t result = session_begin(__func__);
    if (result != NVML_SUCCESS)
        return result;
    pthread_mutex_lock(&session_lock);
    users -= users > 0;
    pthread_mutex_unlock(&session_lock);
    return NVML_SUCCESS;
}

EXPORT const char *nvmlErrorString(nvmlReturn_t result) {
    switch (result) {
    case NVML_SUCCESS: return "Success";
    case NVML_ERROR_UNINITIALIZED: return "Uninitialized";
    case NVML_ERROR_INVALID_ARGUMENT: return "Invalid Argument";
    case NVML_ERROR_NOT_SUPPORTED: return "Not Supported";
    case NVML_ERROR_NO_PERMISSION: return "Insufficient Permissions";
    case NVML_ERROR_NOT_FOUND: return "Not Found";
    case NVML_ERROR_INSUFFICIENT_SIZE: return "Insufficient Size";
    case NVML_ERROR_DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case NVML_ERROR_TIMEOUT: return "Timeout";
    case NVML_ERROR_GPU_IS_LOST: return "GPU is lost";
    case NVML_ERROR_RESET_REQUIRED: return "GPU requires reset";
    case NVML_ERROR_OPERATING_SYSTEM: return "The operating system has blocked the request.";
    case NVML_ERROR_LIB_RM_VERSION_MISMATCH: return "RM has detected an NVML/RM version mismatch.";
    case NVML_ERROR_IN_USE: return "In use by another client";
    case NVML_ERROR_MEMORY: return "Insufficient Memory";
    case NVML_ERROR_INSUFFICIENT_RESOURCES: return "Insufficient Resources";
    case NVML_ERROR_ARGUMENT_VERSION_MISMATCH: return "Provided Argument version is not supported";
    case NVML_ERROR_GPU_NOT_FOUND: return "GPU not found";
    default: return "Unknown Error";
    }
}

/* --- the system --------------------------------------------------------------------------------------------------- */

/* The version strings say what this is, in the width that monitors leave for a real one. */
static nvmlReturn_t system_text(const char *symbol, char *out, unsigned length, const char *text) {
    nvmlReturn_t result = session_begin(symbol);
    return result == NVML_SUCCESS ? copy_text(out, length, text) : result;
}

EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned length) {
    struct mapping *mapping;
    char text[sizeof mapping->box->live.driver] = "580.emul";
    if (session_mapping(&mapping) == NVML_SUCCESS && box_lock(mapping->box) == NVML_SUCCESS) {
        if (mapping->box->live.driver[0] != 0)
            memcpy(text, mapping->box->live.driver, sizeof text);
        box_unlock(mapping->box);
    }
    return system_text(__func__, version, length, text);
}

EXPORT nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned length) {
    return system_text(__func__, version, length, "13.580.emul");
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    nvmlReturn_t result = session_begin(__func__);
    if (result != NVML_SUCCESS || version == NULL)
        return result != NVML_SUCCESS ? result : NVML_ERROR_INVALID_ARGUMENT;
    struct mapping *mapping;
    result = session_mapping(&mapping);
    if (result != NVML_SUCCESS || (result = box_lock(mapping->box)) != NVML_SUCCESS)
        return result;
    *version = mapping->box->live.cuda > 0 ? mapping->box->live.cuda : 13000;
    box_unlock(mapping->box);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) {
    return nvmlSystemGetCudaDriverVersion_v2(version);
}

EXPORT nvmlReturn_t nvmlSystemGetProcessName(unsigned pid, char *name, unsigned length) {
    nvmlReturn_t result = session_begin(__func__);
    if (result != NVML_SUCCESS || name == NULL || length < 1)
        return result != NVML_SUCCESS ? result : NVML_ERROR_INVALID_ARGUMENT;
    char file[32];
    snprintf(file, sizeof file, "/proc/%u/cmdline", pid);
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return NVML_ERROR_NOT_FOUND;
    ssize_t size = read(fd, name, length - 1); /* the first string of the list is the program */
    close(fd);
    if (size < 1)
        return NVML_ERROR_NOT_FOUND;
    name[size] = 0;
    return NVML_SUCCESS;
}
