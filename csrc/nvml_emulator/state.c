/* The state file: opened, checked, made ready on first use, locked, and repaired after a holder died.
 *
 * A change works on the GPU in place.  Before it, the GPU is copied to `shadow` and `changing` names it; after it,
 * `changing` is cleared.  A holder killed in between leaves `changing` set, and the next one (the robust mutex reports
 * the death) puts the copy back.  A holder killed while copying leaves it clear, and there is nothing to repair.
 */
#include "emulator.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char MAGIC[8] = {'C', 'L', 'V', 'R', 'N', 'V', 'M', 'L'};
enum { READY = 0x52454459 };

static nvmlReturn_t config_check(const struct config *config) {
    if (memcmp(config->magic, MAGIC, sizeof MAGIC) != 0)
        return NVML_ERROR_DRIVER_NOT_LOADED;
    if (config->version != STATE_VERSION)
        return NVML_ERROR_LIB_RM_VERSION_MISMATCH;
    if (config->gpu_count < 1 || config->gpu_count > GPUS_MAX || config->profile_count > PROFILES_MAX ||
        config->memory_slices < 1 || config->compute_slices < 1 || config->compute_slices > COMPUTE_MAX ||
        config->max_mw < config->idle_mw || config->product[sizeof config->product - 1] != 0)
        return NVML_ERROR_DRIVER_NOT_LOADED;
    for (unsigned i = 0; i < config->profile_count; i++) {
        const struct profile *profile = &config->profiles[i];
        if (profile->name[sizeof profile->name - 1] != 0 || profile->index >= NVML_GI_PROFILE_COUNT ||
            profile->start_count < 1 || profile->start_count > STARTS_MAX || profile->size < 1 ||
            profile->slices < 1 || profile->slices > config->compute_slices)
            return NVML_ERROR_DRIVER_NOT_LOADED;
        for (unsigned k = 0; k < profile->start_count; k++)
            if (profile->starts[k] + profile->size > config->memory_slices ||
                instance_id(config, profile, profile->starts[k]) >= INSTANCES_MAX)
                return NVML_ERROR_DRIVER_NOT_LOADED;
    }
    return NVML_SUCCESS;
}

/* Which boot of the machine this is; empty if the kernel does not say, which then counts as one boot. */
static void read_boot_id(char out[40]) {
    memset(out, 0, 40);
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (read(fd, out, 36) != 36)
        memset(out, 0, 40);
    close(fd);
}

static nvmlReturn_t mutex_make(pthread_mutex_t *mutex) {
    pthread_mutexattr_t how;
    if (pthread_mutexattr_init(&how) != 0)
        return NVML_ERROR_OPERATING_SYSTEM;
    int failed = pthread_mutexattr_setpshared(&how, PTHREAD_PROCESS_SHARED) ||
                 pthread_mutexattr_setrobust(&how, PTHREAD_MUTEX_ROBUST) || pthread_mutex_init(mutex, &how);
    pthread_mutexattr_destroy(&how);
    return failed ? NVML_ERROR_OPERATING_SYSTEM : NVML_SUCCESS;
}

/* Alone in the file (flock held): fill `live` the first time, and reboot the box if the machine was rebooted. */
static nvmlReturn_t make_ready(struct box *box) {
    struct live *live = &box->live;
    char boot_id[40];
    read_boot_id(boot_id);
    bool fresh = live->ready != READY;
    if (!fresh && memcmp(live->boot_id, boot_id, sizeof boot_id) == 0)
        return NVML_SUCCESS;
    live->ready = 0;
    if (fresh) {
        memset(live, 0, sizeof *live);
        live->privileged = (box->config.flags & BOX_PRIVILEGED) != 0;
    }
    /* The word of a mutex may name a thread of the earlier boot as its owner: it must be made anew. */
    nvmlReturn_t result = mutex_make(&live->lock);
    if (result != NVML_SUCCESS)
        return result;
    atomic_store(&live->changing, 0);
    int64_t now_ns = box_now_ns(box);
    for (unsigned i = 0; i < box->config.gpu_count; i++) {
        struct gpu *gpu = &live->gpus[i];
        if (fresh) {
            gpu->mig_pending = (box->config.flags & BOX_MIG) != 0;
            gpu_reset(gpu);
        } else
            gpu_boot(&box->config, gpu);
        gpu->compute_mode = gpu->persistence = 0;
        gpu->born_ns = gpu->last_ns = gpu->used_ns = now_ns;
        gpu->asleep = 0;
        gpu->born_uj = gpu->energy.uj;
    }
    memcpy(live->boot_id, boot_id, sizeof boot_id);
    live->ready = READY;
    return NVML_SUCCESS;
}

static nvmlReturn_t map(struct mapping *mapping, int fd) {
    struct stat file;
    struct config config;
    if (fstat(fd, &file) != 0 || !S_ISREG(file.st_mode) || file.st_size < CONFIG_BYTES ||
        pread(fd, &config, sizeof config, 0) != (ssize_t)sizeof config)
        return NVML_ERROR_DRIVER_NOT_LOADED;
    nvmlReturn_t result = config_check(&config);
    if (result != NVML_SUCCESS)
        return result;
    /* With blocks behind it: a full disk must be an error here, not a SIGBUS later. */
    if (file.st_size < (off_t)sizeof(struct box) && posix_fallocate(fd, 0, sizeof(struct box)) != 0)
        return NVML_ERROR_OPERATING_SYSTEM;
    void *memory = mmap(NULL, sizeof(struct box), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return NVML_ERROR_OPERATING_SYSTEM;
    result = make_ready(memory);
    if (result != NVML_SUCCESS) {
        munmap(memory, sizeof(struct box));
        return result;
    }
    mapping->box = memory;
    mapping->fd = fd;
    return NVML_SUCCESS;
}

nvmlReturn_t mapping_open(struct mapping *mapping, const char *path) {
    if (path == NULL || path[0] == 0 || strlen(path) >= sizeof mapping->path)
        return NVML_ERROR_DRIVER_NOT_LOADED;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return errno == EACCES || errno == EPERM || errno == EROFS ? NVML_ERROR_NO_PERMISSION
                                                                  : NVML_ERROR_DRIVER_NOT_LOADED;
    nvmlReturn_t result = NVML_ERROR_OPERATING_SYSTEM;
    if (flock(fd, LOCK_EX) == 0) {
        result = map(mapping, fd);
        flock(fd, LOCK_UN);
    }
    if (result != NVML_SUCCESS) {
        close(fd);
        return result;
    }
    strcpy(mapping->path, path);
    return NVML_SUCCESS;
}

void mapping_close(struct mapping *mapping) {
    munmap(mapping->box, sizeof(struct box));
    close(mapping->fd);
    mapping->box = NULL;
}

/* --- the mutex and changes ---------------------------------------------------------------------------------------- */

nvmlReturn_t box_lock(struct box *box) {
    struct live *live = &box->live;
    int failed = pthread_mutex_lock(&live->lock);
    if (failed == EOWNERDEAD) {
        uint32_t changing = atomic_load(&live->changing);
        if (changing != 0 && changing <= GPUS_MAX)
            live->gpus[changing - 1] = live->shadow;
        atomic_store(&live->changing, 0);
        failed = pthread_mutex_consistent(&live->lock);
    }
    return failed ? NVML_ERROR_UNKNOWN : NVML_SUCCESS;
}

void box_unlock(struct box *box) {
    pthread_mutex_unlock(&box->live.lock);
}

struct gpu *gpu_begin(struct box *box, unsigned index) {
    struct live *live = &box->live;
    struct gpu *gpu = &live->gpus[index];
    live->shadow = *gpu;
    atomic_store(&live->changing, index + 1); /* orders the copy before and the change after, for a repair */
    gpu_integrate(&box->config, gpu, box_now_ns(box));
    return gpu;
}

void gpu_commit(struct box *box) {
    atomic_store(&box->live.changing, 0);
}

int64_t box_now_ns(const struct box *box) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec + box->live.clock_offset_ns;
}

void gpu_reset(struct gpu *gpu) {
    gpu->mig = gpu->mig_pending;
    gpu->lost = 0;
    for (unsigned gi = 0; gi < INSTANCES_MAX; gi++) {
        gpu->instances[gi].alive = 0;
        for (unsigned ci = 0; ci < COMPUTE_MAX; ci++)
            gpu->instances[gi].compute[ci].alive = 0;
    }
    memset(gpu->attachments, 0, sizeof gpu->attachments);
}

/* GA100 keeps its mode in the board's own memory, Hopper and later in the driver's. */
void gpu_boot(const struct config *config, struct gpu *gpu) {
    if (config->architecture > NVML_ARCH_AMPERE)
        gpu->mig_pending = 0;
    gpu_reset(gpu);
}
