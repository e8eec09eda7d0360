/* Critical errors (Xid) as events: sets, to which boards are added, and waiting for the next event of a set.
 *
 * Events lie in a ring of the state file, which control.c fills.  A set is this process's own: it remembers which boards
 * it is for and the last event that it gave.  A waiter looks again every few milliseconds, so that it holds no mutex
 * while it waits and needs no other process to wake it.
 */
#include "emulator.h"

#include <string.h>

enum { SETS_MAX = 16, LOOK_MS = 50 };

struct event_set {
    bool used;
    uint32_t gpus; /* a bit each */
    uint64_t given;
};

static struct event_set sets[SETS_MAX];
static pthread_mutex_t sets_lock = PTHREAD_MUTEX_INITIALIZER;

_Static_assert(GPUS_MAX <= 32, "a bit each");

EXPORT nvmlReturn_t nvmlEventSetCreate(nvml_handle *made) {
    nvmlReturn_t result = session_begin(__func__);
    if (result != NVML_SUCCESS || made == NULL)
        return result != NVML_SUCCESS ? result : NVML_ERROR_INVALID_ARGUMENT;
    result = NVML_ERROR_MEMORY;
    pthread_mutex_lock(&sets_lock);
    for (unsigned i = 0; i < SETS_MAX && result != NVML_SUCCESS; i++)
        if (!sets[i].used) {
            sets[i] = (struct event_set){.used = true};
            *made = i + 1;
            result = NVML_SUCCESS;
        }
    pthread_mutex_unlock(&sets_lock);
    return result;
}

EXPORT nvmlReturn_t nvmlEventSetFree(nvml_handle set) {
    nvmlReturn_t result = session_begin(__func__);
    if (result != NVML_SUCCESS || set < 1 || set > SETS_MAX)
        return result != NVML_SUCCESS ? result : NVML_ERROR_INVALID_ARGUMENT;
    pthread_mutex_lock(&sets_lock);
    sets[set - 1].used = false;
    pthread_mutex_unlock(&sets_lock);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvml_handle device, unsigned long long *types) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, ON_GPU);
    if (result != NVML_SUCCESS)
        return result;
    if (types == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    *types = NVML_EVENT_XID;
    return call_end(&call, NVML_SUCCESS);
}

/* Adds a board to a set, which gives its events from now on. */
EXPORT nvmlReturn_t nvmlDeviceRegisterEvents(nvml_handle device, unsigned long long types, nvml_handle set) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, ON_GPU);
    if (result != NVML_SUCCESS)
        return result;
    if (set < 1 || set > SETS_MAX || types == 0)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    if (types & ~(unsigned long long)NVML_EVENT_XID)
        return call_end(&call, NVML_ERROR_NOT_SUPPORTED);
    pthread_mutex_lock(&sets_lock);
    struct event_set *into = &sets[set - 1];
    if (into->used && into->gpus == 0)
        into->given = call.box->live.events_made;
    into->gpus |= 1u << call.index;
    result = into->used ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
    pthread_mutex_unlock(&sets_lock);
    return call_end(&call, result);
}

/* Gives the oldest event of the set that was not given yet; GPU_IS_LOST if there is none and a board of it is lost,
 * TIMEOUT if there is none otherwise.  Both mutexes are held. */
static nvmlReturn_t next_event(const struct box *box, struct event_set *set, nvmlEventData_t *data) {
    const struct live *live = &box->live;
    uint64_t first = live->events_made >= EVENTS_MAX ? live->events_made - EVENTS_MAX + 1 : 1;
    for (uint64_t number = set->given >= first ? set->given + 1 : first; number <= live->events_made; number++) {
        const struct event *event = &live->events[number % EVENTS_MAX];
        set->given = number;
        if (event->number != number || !(set->gpus >> event->gpu & 1))
            continue;
        *data = (nvmlEventData_t){.device = handle_gpu(event->gpu), .eventType = NVML_EVENT_XID,
                                  .eventData = event->xid, .gpuInstanceId = event->gi, .computeInstanceId = event->ci};
        return NVML_SUCCESS;
    }
    for (unsigned i = 0; i < box->config.gpu_count; i++)
        if (set->gpus >> i & 1 && live->gpus[i].lost)
            return NVML_ERROR_GPU_IS_LOST;
    return NVML_ERROR_TIMEOUT;
}

static nvmlReturn_t wait(const char *symbol, nvml_handle set, nvmlEventData_t *data, unsigned timeout_ms) {
    struct mapping *mapping;
    nvmlReturn_t result = session_begin(symbol);
    if (result == NVML_SUCCESS)
        result = session_mapping(&mapping);
    if (result != NVML_SUCCESS || set < 1 || set > SETS_MAX || data == NULL)
        return result != NVML_SUCCESS ? result : NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned waited_ms = 0;; waited_ms += LOOK_MS) {
        result = box_lock(mapping->box);
        if (result != NVML_SUCCESS)
            return result;
        pthread_mutex_lock(&sets_lock);
        result = sets[set - 1].used ? next_event(mapping->box, &sets[set - 1], data) : NVML_ERROR_INVALID_ARGUMENT;
        pthread_mutex_unlock(&sets_lock);
        box_unlock(mapping->box);
        if (result != NVML_ERROR_TIMEOUT || waited_ms >= timeout_ms)
            return result;
        sleep_ns(LOOK_MS * 1000000ull);
    }
}

EXPORT nvmlReturn_t nvmlEventSetWait_v2(nvml_handle set, nvmlEventData_t *data, unsigned timeout_ms) {
    return wait(__func__, set, data, timeout_ms);
}

EXPORT nvmlReturn_t nvmlEventSetWait(nvml_handle set, nvmlEventData_t *data, unsigned timeout_ms) {
    return wait(__func__, set, data, timeout_ms);
}
