/* Processes on slices.
 *
 * An attachment is a record in the GPU and an exclusive open-file-description lock on one byte far behind the end of
 * the state file.  The record is only a claim: it counts while its byte is locked, as the kernel says.  The descriptor
 * is closed by exec and, in children, right after fork, so the lock lives exactly as long as the process that attached.
 *
 * What a process drew between its death and the next look at its GPU is charged to its slice: its death is not noticed
 * sooner.
 */
#include "emulator.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OWN_MAX = 256 };

struct own { /* an attachment of this process */
    int fd;  /* 0: unused, as descriptor 0 is never ours */
    struct mapping *mapping;
    unsigned index, slot;
    uint32_t serial;
};

static struct own own[OWN_MAX];
static pthread_mutex_t own_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static struct flock lock_of(unsigned index, unsigned slot) {
    return (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1,
                          .l_start = ((off_t)1 << 32) + (off_t)index * ATTACH_MAX + (off_t)slot};
}

void attachments_reap(const struct mapping *mapping, unsigned index, struct gpu *gpu) {
    for (unsigned slot = 0; slot < ATTACH_MAX; slot++) {
        if (!gpu->attachments[slot].used)
            continue;
        struct flock lock = lock_of(index, slot);
        if (fcntl(mapping->fd, F_OFD_GETLK, &lock) == 0 && lock.l_type == F_UNLCK)
            memset(&gpu->attachments[slot], 0, sizeof gpu->attachments[slot]);
    }
}

/* A monitor holds a lock that others may share on one byte a GPU, farther behind than those of attachments. */
bool monitor_holds(const struct mapping *mapping, unsigned index) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1,
                         .l_start = ((off_t)1 << 33) + (off_t)index};
    return fcntl(mapping->fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

/* Whether the compute mode keeps this process off the whole board. */
static bool mode_refuses(const struct gpu *gpu) {
    if (gpu->compute_mode == NVML_COMPUTE_PROHIBITED)
        return true;
    for (unsigned slot = 0; slot < ATTACH_MAX && gpu->compute_mode == NVML_COMPUTE_EXCLUSIVE_PROCESS; slot++)
        if (gpu->attachments[slot].used && gpu->attachments[slot].pid != getpid())
            return true;
    return false;
}

unsigned attachments_count(const struct gpu *gpu, unsigned gi, unsigned ci) {
    unsigned count = 0;
    for (unsigned slot = 0; slot < ATTACH_MAX; slot++) {
        const struct attachment *attachment = &gpu->attachments[slot];
        count += attachment->used && (gi == NVML_NO_INSTANCE || (attachment->gi == gi && attachment->ci == ci));
    }
    return count;
}

/* --- fork: a child must not keep its parent's slices -------------------------------------------------------------- */

static void fork_prepare(void) {
    pthread_mutex_lock(&own_lock);
}

static void fork_parent(void) {
    pthread_mutex_unlock(&own_lock);
}

static void fork_child(void) {
    for (unsigned i = 0; i < OWN_MAX; i++)
        if (own[i].fd > 0)
            close(own[i].fd);
    memset(own, 0, sizeof own);
    pthread_mutex_unlock(&own_lock);
}

static void fork_register(void) {
    pthread_atfork(fork_prepare, fork_parent, fork_child);
}

/* --- what Python calls -------------------------------------------------------------------------------------------- */

/* A descriptor of the mapped file of its own, never 0, 1 or 2. */
static int open_again(const struct mapping *mapping) {
    struct stat mapped, opened;
    int first = open(mapping->path, O_RDWR | O_CLOEXEC);
    if (first < 0)
        return -1;
    int fd = first > 2 ? first : fcntl(first, F_DUPFD_CLOEXEC, 3);
    if (fd != first)
        close(first);
    if (fd >= 0 && fstat(mapping->fd, &mapped) == 0 && fstat(fd, &opened) == 0 && mapped.st_dev == opened.st_dev &&
        mapped.st_ino == opened.st_ino)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1; /* the file was replaced: its locks would say nothing */
}

static nvmlReturn_t attach(struct mapping *mapping, const char *uuid, struct own *mine) {
    struct box *box = mapping->box;
    unsigned index, gi, ci;
    uint64_t delay_ns = 0;
    nvmlReturn_t result = box_lock(box);
    if (result != NVML_SUCCESS)
        return result;
    result = uuid_find(box, uuid, false, &index, &gi, &ci);
    if (result == NVML_SUCCESS)
        result = faults_act(box, "clover_nvml_attach", (int)index, &delay_ns);
    if (result == NVML_SUCCESS) {
        delay_ns += gpu_use(&box->config, gpu_begin(box, index));
        gpu_commit(box);
    }
    box_unlock(box);
    sleep_ns(delay_ns);
    if (result != NVML_SUCCESS || (result = box_lock(box)) != NVML_SUCCESS)
        return result;
    result = uuid_find(box, uuid, false, &index, &gi, &ci); /* it may have gone while the mutex was free */
    if (result != NVML_SUCCESS) {
        box_unlock(box);
        return result;
    }
    struct gpu *gpu = gpu_begin(box, index);
    gpu_use(&box->config, gpu);
    attachments_reap(mapping, index, gpu);
    if (gpu->lost)
        result = NVML_ERROR_GPU_IS_LOST;
    else if (gi == NVML_NO_INSTANCE && gpu->mig)
        result = NVML_ERROR_NOT_SUPPORTED; /* a partitioned board is used through its instances only */
    else if (gi == NVML_NO_INSTANCE && mode_refuses(gpu))
        result = CUDA_UNAVAILABLE;
    else {
        result = NVML_ERROR_INSUFFICIENT_RESOURCES;
        for (unsigned slot = 0; slot < ATTACH_MAX && result != NVML_SUCCESS; slot++) {
            struct flock lock = lock_of(index, slot);
            if (gpu->attachments[slot].used || fcntl(mine->fd, F_OFD_SETLK, &lock) != 0)
                continue; /* the byte may be held without a record: by one whose instance a reset took */
            gpu->attachments[slot] = (struct attachment){
                .used = 1, .serial = ++box->live.serial, .pid = getpid(), .gi = gi, .ci = ci};
            *mine = (struct own){mine->fd, mapping, index, slot, gpu->attachments[slot].serial};
            result = NVML_SUCCESS;
        }
    }
    gpu_commit(box);
    box_unlock(box);
    return result;
}

/* Holds the slice (or the whole GPU) that `uuid` names until clover_nvml_detach or the end of this process.
 * A number >= 0 to name it by, or minus an NVML error. */
EXPORT int clover_nvml_attach(const char *uuid) {
    struct mapping *mapping;
    pthread_once(&fork_once, fork_register);
    nvmlReturn_t result = uuid == NULL ? NVML_ERROR_INVALID_ARGUMENT : session_mapping(&mapping);
    if (result != NVML_SUCCESS)
        return -result;
    struct own mine = {.fd = open_again(mapping)};
    if (mine.fd < 0)
        return -NVML_ERROR_OPERATING_SYSTEM;
    result = attach(mapping, uuid, &mine);
    int handle = -1;
    pthread_mutex_lock(&own_lock);
    for (unsigned i = 0; i < OWN_MAX && handle < 0 && result == NVML_SUCCESS; i++)
        if (own[i].fd == 0) {
            own[i] = mine;
            handle = (int)i;
        }
    pthread_mutex_unlock(&own_lock);
    if (handle >= 0)
        return handle;
    close(mine.fd); /* also frees the slice */
    return result == NVML_SUCCESS ? -NVML_ERROR_INSUFFICIENT_RESOURCES : -result;
}

static nvmlReturn_t own_of(int handle, struct own *found) {
    if (handle < 0 || handle >= OWN_MAX)
        return NVML_ERROR_INVALID_ARGUMENT;
    pthread_mutex_lock(&own_lock);
    *found = own[handle];
    pthread_mutex_unlock(&own_lock);
    return found->fd > 0 ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

/* The record of `mine` within a change of its GPU, which the caller ends with done(); null if the slice is gone. */
static struct attachment *record_of(const struct own *mine, struct gpu **gpu) {
    *gpu = gpu_begin(mine->mapping->box, mine->index);
    struct attachment *attachment = &(*gpu)->attachments[mine->slot];
    return attachment->used && attachment->serial == mine->serial ? attachment : NULL;
}

static nvmlReturn_t done(const struct own *mine, nvmlReturn_t result) {
    gpu_commit(mine->mapping->box);
    box_unlock(mine->mapping->box);
    return result;
}

EXPORT int clover_nvml_detach(int handle) {
    struct own mine;
    struct gpu *gpu;
    nvmlReturn_t result = own_of(handle, &mine);
    if (result == NVML_SUCCESS)
        result = box_lock(mine.mapping->box);
    if (result != NVML_SUCCESS)
        return result;
    struct attachment *attachment = record_of(&mine, &gpu);
    if (attachment != NULL)
        memset(attachment, 0, sizeof *attachment);
    done(&mine, NVML_SUCCESS);
    pthread_mutex_lock(&own_lock);
    if (own[handle].fd == mine.fd) {
        memset(&own[handle], 0, sizeof own[handle]);
        close(mine.fd);
    }
    pthread_mutex_unlock(&own_lock);
    return NVML_SUCCESS;
}

/* From now on this process draws so much above idle.  GPU_IS_LOST if the board or the slice is gone. */
EXPORT int clover_nvml_draw(int handle, unsigned milliwatts) {
    struct own mine;
    struct gpu *gpu;
    uint64_t delay_ns = 0;
    nvmlReturn_t result = own_of(handle, &mine);
    if (result == NVML_SUCCESS)
        result = box_lock(mine.mapping->box);
    if (result != NVML_SUCCESS)
        return result;
    result = faults_act(mine.mapping->box, "clover_nvml_draw", (int)mine.index, &delay_ns);
    struct attachment *attachment = record_of(&mine, &gpu);
    if (attachment == NULL || gpu->lost)
        result = NVML_ERROR_GPU_IS_LOST;
    else if (result == NVML_SUCCESS)
        attachment->draw_mw = milliwatts;
    done(&mine, result);
    sleep_ns(delay_ns);
    return result;
}

/* This process now holds so much memory of its slice; MEMORY if the slice has not that much left. */
EXPORT int clover_nvml_use_memory(int handle, unsigned long long bytes) {
    struct own mine;
    struct gpu *gpu;
    nvmlReturn_t result = own_of(handle, &mine);
    if (result == NVML_SUCCESS)
        result = box_lock(mine.mapping->box);
    if (result != NVML_SUCCESS)
        return result;
    struct attachment *attachment = record_of(&mine, &gpu);
    if (attachment == NULL || gpu->lost)
        return done(&mine, NVML_ERROR_GPU_IS_LOST);
    attachments_reap(mine.mapping, mine.index, gpu);
    const struct config *config = &mine.mapping->box->config;
    uint64_t used = bytes, mib = config->memory_mib;
    if (attachment->gi != NVML_NO_INSTANCE)
        mib = config->profiles[gpu->instances[attachment->gi].profile].memory_mib;
    for (unsigned slot = 0; slot < ATTACH_MAX; slot++) {
        const struct attachment *other = &gpu->attachments[slot];
        if (other->used && other != attachment && other->gi == attachment->gi)
            used += other->memory_bytes;
    }
    if (bytes > mib << 20 || used > mib << 20)
        return done(&mine, NVML_ERROR_MEMORY);
    attachment->memory_bytes = bytes;
    return done(&mine, NVML_SUCCESS);
}

/* What processes on the slice (or on the whole GPU) drew above idle since the box was made, whether or not it still
 * exists: the truth that an attribution of the board's counter can be held against. */
EXPORT int clover_nvml_slice_energy(const char *uuid, unsigned long long *microjoules) {
    struct mapping *mapping;
    unsigned index, gi, ci;
    if (uuid == NULL || microjoules == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = session_mapping(&mapping);
    if (result != NVML_SUCCESS || (result = box_lock(mapping->box)) != NVML_SUCCESS)
        return result;
    result = uuid_find(mapping->box, uuid, true, &index, &gi, &ci);
    if (result == NVML_SUCCESS) {
        struct gpu *gpu = gpu_begin(mapping->box, index);
        attachments_reap(mapping, index, gpu);
        *microjoules = gi == NVML_NO_INSTANCE ? gpu->whole.uj : gpu->instances[gi].compute[ci].energy.uj;
        gpu_commit(mapping->box);
    }
    box_unlock(mapping->box);
    return result;
}
