/* An NVML without a GPU: one state file stands for the driver and its boards.
 *
 * Every process that maps the file sees one machine.  The file has two parts.  `config` is written once by
 * clover/emulation/emulated.py: which board, how many, and the profile table as data.  `live` belongs to this library:
 * MIG modes, instances, attached processes, power, energy and injected faults, behind one mutex.
 *
 * Three rules keep it truthful.
 *   1. A holder of the mutex may be killed at any instruction.  The next holder restores the GPU that was being
 *      changed from the copy made before the change (state.c), so every operation happens wholly or not at all.
 *   2. A holder of the mutex neither sleeps nor waits for another process.
 *   3. A process that uses a slice holds a lock of the kernel on one byte of the file (attach.c).  The kernel drops it
 *      when the process dies, whatever killed it; nothing else decides whether a slice is in use.
 *
 * Files: state.c the file and its mutex; call.c what every NVML call does first, and handles; text.c texts and UUIDs;
 * geometry.c which instances fit; energy.c power and joules; attach.c processes on slices; faults.c injected faults;
 * control.c what tests and tools may do to the box; session.c, device.c, sensors.c, processes.c, mig.c, compute.c,
 * events.c the NVML functions; unsupported.c the names that exist and answer NOT_SUPPORTED.
 */
#ifndef CLOVER_NVML_EMULATOR_H
#define CLOVER_NVML_EMULATOR_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* open file description locks */
#endif

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "abi.h"

enum {
    STATE_VERSION = 3,
    CONFIG_BYTES = 8192,
    GPUS_MAX = 32,
    PROFILES_MAX = 24,
    STARTS_MAX = 16,
    INSTANCES_MAX = 16, /* GPU instance ids are below this */
    COMPUTE_MAX = 8,    /* compute instance ids are below this */
    ATTACH_MAX = 64,    /* processes on one GPU */
    FAULTS_MAX = 32,
    EVENTS_MAX = 32,    /* Xid events that are kept for those who wait for them */
    MARKS = 32, /* remembered energies for the one-second average */
};

enum { BOX_PRIVILEGED = 1, BOX_MIG = 2, BOX_NO_ENERGY = 4, BOX_NO_POWER = 8, BOX_NO_LIMIT = 16 };
enum { KIND_MEDIA = 1, KIND_ALL_MEDIA = 2, KIND_NO_MEDIA = 4, KIND_GRAPHICS = 8 };

/* --- config: written by Python (clover/emulation/emulated.py declares the same two structures) ---------------------- */

struct profile {
    char name[32];
    uint32_t index; /* NVML's constant of the profile */
    uint32_t id;
    uint32_t slices; /* compute */
    uint32_t size;   /* memory slices */
    uint32_t most;
    uint32_t memory_mib;
    uint32_t sm;
    uint32_t copy_engines, decoders, encoders, jpegs, ofas;
    uint32_t kind;
    uint32_t start_count;
    uint32_t starts[STARTS_MAX];
};

struct config {
    char magic[8];
    uint32_t version, gpu_count, flags, profile_count;
    uint64_t seed;
    char product[NVML_NAME_SIZE];
    uint32_t architecture, compute_major, compute_minor, pci_device;
    uint32_t compute_slices, memory_slices, memory_mib, sm;
    uint32_t toggle_needs_reset, average_power, idle_mw, max_mw;
    uint32_t context_mw; /* drawn beyond idle while any process is attached */
    uint32_t grain_ms;   /* of the energy counter; 0: it moves all the time */
    /* A board of a hybrid laptop is switched off (D3cold), and draws `asleep_mw`, once no process was attached and no
     * call came for `sleep_after_ms` (0: never); the next call or process waits `wake_ms` for it. */
    uint32_t sleep_after_ms, wake_ms, asleep_mw;
    struct profile profiles[PROFILES_MAX];
};

/* --- live: ours alone --------------------------------------------------------------------------------------------- */

struct meter {
    uint64_t uj;
    uint64_t rest_pj; /* below one microjoule */
};

struct compute {
    uint32_t alive;
    uint32_t generation;
    uint32_t slices, start, size;
    struct meter energy; /* of this UUID since the box was made */
};

struct instance {
    uint32_t alive;
    uint32_t generation;
    uint32_t profile; /* index into config.profiles */
    uint32_t start;
    struct compute compute[COMPUTE_MAX];
};

struct attachment {
    uint32_t used;
    uint32_t serial;
    int32_t pid;
    uint32_t gi, ci; /* NVML_NO_INSTANCE: the whole GPU */
    uint32_t draw_mw;
    uint64_t memory_bytes;
};

struct gpu {
    uint32_t mig, mig_pending;
    uint32_t lost; /* the error that every call answers; 0: it is there */
    uint32_t compute_mode, persistence;
    uint32_t stuck; /* bits of STUCK_* while a reading is frozen */
    uint32_t stuck_mw;
    uint32_t stuck_average_mw;
    uint64_t stuck_mj;
    uint32_t asleep;
    int64_t used_ns; /* when it was last used */
    int64_t born_ns, last_ns; /* the energies reach from birth (or the last boot) to `last_ns` */
    uint64_t born_uj;
    struct meter energy;  /* of the board, idle included */
    uint64_t ticked_uj;   /* energy.uj at the counter's last tick */
    struct meter whole;   /* drawn by processes on the whole GPU */
    uint64_t marks[MARKS]; /* energy.uj at multiples of MARK_NS */
    struct instance instances[INSTANCES_MAX];
    struct attachment attachments[ATTACH_MAX];
};

struct fault {
    char symbol[64];
    uint32_t used;
    int32_t gpu;
    uint32_t error;
    uint32_t nth, count;
    uint32_t calls, fired;
    double probability;
    int64_t until_ns;
    uint64_t delay_ns;
    uint64_t random;
};

struct event {
    uint64_t number; /* from 1 */
    uint32_t gpu, xid, gi, ci;
};

struct live {
    uint32_t ready;
    uint32_t generation; /* grows with every instance made, so that a handle of an earlier one never fits */
    uint32_t serial;     /* grows with every attachment */
    uint32_t privileged;
    char driver[32];     /* version; empty: that of the emulated driver */
    int32_t cuda;        /* most that the driver supports, 12040 for 12.4; 0: that of the emulated driver */
    char boot_id[40]; /* of the kernel that last used the file: a real reboot is a reboot of the box */
    pthread_mutex_t lock;
    int64_t clock_offset_ns;
    _Atomic uint32_t changing; /* 1 + the GPU whose old state is in `shadow`; 0: none */
    struct gpu shadow;
    struct fault faults[FAULTS_MAX];
    uint64_t events_made;
    struct event events[EVENTS_MAX];
    struct gpu gpus[GPUS_MAX];
};

struct box {
    union {
        struct config config;
        char reserved[CONFIG_BYTES];
    };
    struct live live;
};

_Static_assert(sizeof(struct profile) == 152, "Python writes this");
_Static_assert(sizeof(struct config) <= CONFIG_BYTES, "Python writes this");

/* A mapping of a state file.  `fd` serves only to ask the kernel about other descriptions' locks. */
struct mapping {
    struct box *box;
    int fd;
    char path[4096];
};

/* --- state.c ------------------------------------------------------------------------------------------------------ */

nvmlReturn_t mapping_open(struct mapping *mapping, const char *path);
void mapping_close(struct mapping *mapping);
nvmlReturn_t box_lock(struct box *box);
void box_unlock(struct box *box);
/* Between begin and commit the GPU may be changed; the mutex must be held.  Brings its energy up to now. */
struct gpu *gpu_begin(struct box *box, unsigned index);
void gpu_commit(struct box *box);
int64_t box_now_ns(const struct box *box);
/* Resets the board: no instances, no attached processes, the pending mode in force. */
void gpu_reset(struct gpu *gpu);
/* Starts the board anew after a reboot of the machine: as a reset, but MIG mode survives on Ampere only. */
void gpu_boot(const struct config *config, struct gpu *gpu);

/* --- session.c ---------------------------------------------------------------------------------------------------- */

/* The mapping this process works on (from CLOVER_NVML_STATE), opened on first use. */
nvmlReturn_t session_mapping(struct mapping **mapping);
bool session_initialised(void);
/* What a function without a device does first: is there a session, and do faults let it pass? */
nvmlReturn_t session_begin(const char *symbol);

/* --- call.c ------------------------------------------------------------------------------------------------------- */

enum { ON_GPU = 1, ON_GI = 2, ON_CI = 4, ON_MIG = 8 };

struct call {
    struct mapping *mapping;
    struct box *box;
    unsigned index; /* of the GPU */
    struct gpu *gpu;
    unsigned kind; /* ON_* of the handle */
    unsigned gi, ci;
    const struct profile *profile; /* of the GPU instance; null on a GPU */
};

/* Checks the handle, lets faults act, takes the mutex and begins a change of the handle's GPU.  On NVML_SUCCESS the
 * caller owes call_end; otherwise nothing is held. */
nvmlReturn_t call_begin(struct call *call, const char *symbol, nvml_handle handle, unsigned accept);
nvmlReturn_t call_end(struct call *call, nvmlReturn_t result);
/* The same; if it succeeded, the caller waits so many milliseconds, as for a real driver.  The environment variable
 * CLOVER_NVML_LATENCY multiplies them (0: none). */
nvmlReturn_t call_end_slowly(struct call *call, nvmlReturn_t result, unsigned milliseconds);
/* The same, for what nvml.h grants of a partitioned board to privileged users only: memory and processes in all. */
nvmlReturn_t call_begin_aggregate(struct call *call, const char *symbol, nvml_handle handle);
nvml_handle handle_gpu(unsigned index);
nvml_handle handle_gi(const struct call *call, unsigned gi);
nvml_handle handle_ci(const struct call *call, unsigned gi, unsigned ci);
nvml_handle handle_mig(const struct call *call, unsigned gi, unsigned ci);
const struct profile *profile_by_id(const struct config *config, unsigned id);

/* --- text.c ------------------------------------------------------------------------------------------------------- */

/* Copies a text into a caller's buffer of so many bytes, unless it is null or too small. */
nvmlReturn_t copy_text(char *out, unsigned length, const char *text);
void gpu_uuid(const struct config *config, unsigned index, char out[NVML_NAME_SIZE]);
void mig_uuid(const struct config *config, unsigned index, unsigned gi, unsigned ci, char out[NVML_NAME_SIZE]);
/* Finds what a UUID names, with `gone` also among what was removed; gi and ci are NVML_NO_INSTANCE for a GPU.  The
 * mutex must be held. */
nvmlReturn_t uuid_find(const struct box *box, const char *uuid, bool gone, unsigned *index, unsigned *gi,
                       unsigned *ci);

/* --- geometry.c --------------------------------------------------------------------------------------------------- */

unsigned instance_id(const struct config *config, const struct profile *profile, unsigned start);
nvmlReturn_t placement_check(const struct box *box, const struct gpu *gpu, const struct profile *profile,
                             unsigned start);
nvmlReturn_t placement_choose(const struct box *box, const struct gpu *gpu, const struct profile *profile,
                              unsigned *start);
unsigned remaining_capacity(const struct box *box, const struct gpu *gpu, const struct profile *profile);

/* --- energy.c ----------------------------------------------------------------------------------------------------- */

enum { STUCK_POWER = 1, STUCK_ENERGY = 2 };

void gpu_integrate(const struct config *config, struct gpu *gpu, int64_t now_ns);
/* Notes that the board is used now; returns how long that waits for it to wake up. */
uint64_t gpu_use(const struct config *config, struct gpu *gpu);
unsigned gpu_power_mw(const struct config *config, const struct gpu *gpu);
/* Over the last second, as the sensors of Hopper and later report it. */
unsigned gpu_average_mw(const struct config *config, const struct gpu *gpu);

/* --- attach.c ----------------------------------------------------------------------------------------------------- */

/* Removes attachments whose process is gone; within gpu_begin. */
void attachments_reap(const struct mapping *mapping, unsigned index, struct gpu *gpu);
unsigned attachments_count(const struct gpu *gpu, unsigned gi, unsigned ci);
/* Whether a monitor (`clover.devices.clients.EmulatedMonitor`) holds the instances of the GPU. */
bool monitor_holds(const struct mapping *mapping, unsigned index);
/* What attaching answers where CUDA would say error 46, devices unavailable. */
#define CUDA_UNAVAILABLE 2046

/* --- faults.c ----------------------------------------------------------------------------------------------------- */

#define FAULT_STUCK 1000u

/* What injected faults do to this call: the error, and how long to sleep first.  The mutex must be held. */
nvmlReturn_t faults_act(struct box *box, const char *symbol, int gpu, uint64_t *delay_ns);
/* Whether the reading that `symbol` gives is frozen.  The mutex must be held. */
bool faults_stuck(const struct box *box, const char *symbol, unsigned gpu);
void sleep_ns(uint64_t nanoseconds);
/* One of a sequence of random numbers (splitmix64), which `state` continues. */
uint64_t draw_bits(uint64_t *state);

#endif
