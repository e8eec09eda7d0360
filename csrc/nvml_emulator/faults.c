/* Injected faults.  A fault names a function and perhaps a GPU; from its nth matching call on, for `count` calls or
 * until its time is over, with a probability, it delays the call, fails it, or both.  A name stands for its later versions
 * too (`nvmlDeviceGetCount` for `nvmlDeviceGetCount_v2`), as the bindings have it; `*` at its end stands for anything.
 *
 * The counters are not covered by the copy that protects GPUs: a holder killed here costs at most one count.
 */
#include "emulator.h"

#include <errno.h>
#include <string.h>
#include <time.h>

static bool is_version(const char *suffix) {
    return strcmp(suffix, "V") == 0 || (suffix[0] == '_' && suffix[1] == 'v' && suffix[2] != 0 && suffix[3] == 0);
}

static bool matches(const struct fault *fault, const char *symbol, int gpu, int64_t now_ns) {
    if (!fault->used || (fault->gpu >= 0 && fault->gpu != gpu) || (fault->until_ns != 0 && now_ns >= fault->until_ns))
        return false;
    size_t length = strnlen(fault->symbol, sizeof fault->symbol);
    if (length > 0 && fault->symbol[length - 1] == '*')
        return strncmp(fault->symbol, symbol, length - 1) == 0;
    if (strncmp(fault->symbol, symbol, length) != 0)
        return false;
    return symbol[length] == 0 || is_version(symbol + length);
}

uint64_t draw_bits(uint64_t *state) {
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* A number in [0, 1) from the fault's own sequence, so that a box with a seed repeats. */
static double draw_number(struct fault *fault) {
    return (double)(draw_bits(&fault->random) >> 11) / 9007199254740992.0;
}

nvmlReturn_t faults_act(struct box *box, const char *symbol, int gpu, uint64_t *delay_ns) {
    nvmlReturn_t result = NVML_SUCCESS;
    int64_t now_ns = box_now_ns(box);
    for (unsigned i = 0; i < FAULTS_MAX; i++) {
        struct fault *fault = &box->live.faults[i];
        if (fault->error == FAULT_STUCK || !matches(fault, symbol, gpu, now_ns))
            continue;
        fault->calls += fault->calls < UINT32_MAX;
        if (fault->calls < fault->nth || (fault->count != 0 && fault->fired >= fault->count))
            continue;
        if (fault->probability < 1.0 && draw_number(fault) >= fault->probability)
            continue;
        fault->fired += fault->fired < UINT32_MAX;
        *delay_ns += fault->delay_ns;
        if (result == NVML_SUCCESS)
            result = (nvmlReturn_t)fault->error;
    }
    return result;
}

bool faults_stuck(const struct box *box, const char *symbol, unsigned gpu) {
    int64_t now_ns = box_now_ns(box);
    for (unsigned i = 0; i < FAULTS_MAX; i++)
        if (box->live.faults[i].error == FAULT_STUCK && matches(&box->live.faults[i], symbol, (int)gpu, now_ns))
            return true;
    return false;
}

void sleep_ns(uint64_t nanoseconds) {
    struct timespec left = {.tv_sec = (time_t)(nanoseconds / 1000000000), .tv_nsec = (long)(nanoseconds % 1000000000)};
    while (nanoseconds > 0 && nanosleep(&left, &left) != 0 && errno == EINTR)
        continue;
}
