/* Power and joules.  Power is piecewise constant: it changes only where a process says so (clover_nvml_draw), leaves,
 * or is found dead.  Every change of a GPU first integrates the power since the last one, so the counter is exact,
 * however seldom it is read.
 *
 * A board that may sleep draws less once it was not used for a while, and sleeps until it is used (gpu_use).
 *
 * power = idle + context + what the processes draw, at most the board's limit.  `context` is drawn as long as any process
 * is attached, whatever it does and however many they are: a CUDA context keeps a board from its deepest sleep.  Above
 * the limit every process gets the same share of what it asks for, and the slices' counters grow by what they got: they
 * always add up to the board's energy beyond idle and context.
 *
 * The counter that NVML shows moves in grains of time: it is what was drawn up to the last multiple of `grain_ms` of the
 * box's clock.
 */
#include "emulator.h"

#define SECOND_NS 1000000000
#define MARK_NS (SECOND_NS / 16)

/* mW x ns = pJ; whole seconds apart so that nothing overflows within centuries. */
static void meter_add(struct meter *meter, uint64_t power_mw, uint64_t ns) {
    uint64_t rest_pj = meter->rest_pj + ns % SECOND_NS * power_mw;
    meter->uj += ns / SECOND_NS * power_mw * 1000 + rest_pj / 1000000;
    meter->rest_pj = rest_pj % 1000000;
}

static uint64_t asked_mw(const struct gpu *gpu) {
    uint64_t sum = 0;
    for (unsigned i = 0; i < ATTACH_MAX; i++)
        if (gpu->attachments[i].used)
            sum += gpu->attachments[i].draw_mw;
    return sum;
}

/* What the board draws whatever its processes do. */
static unsigned rest_mw(const struct config *config, const struct gpu *gpu) {
    if (gpu->asleep)
        return config->asleep_mw;
    if (gpu->lost || attachments_count(gpu, NVML_NO_INSTANCE, NVML_NO_INSTANCE) == 0)
        return config->idle_mw;
    unsigned room = config->max_mw - config->idle_mw;
    return config->idle_mw + (config->context_mw < room ? config->context_mw : room);
}

unsigned gpu_power_mw(const struct config *config, const struct gpu *gpu) {
    unsigned rest = rest_mw(config, gpu);
    uint64_t room = config->max_mw - rest, asked = asked_mw(gpu);
    return rest + (unsigned)(asked < room ? asked : room);
}

static struct meter *meter_of(struct gpu *gpu, const struct attachment *attachment) {
    if (attachment->gi == NVML_NO_INSTANCE)
        return &gpu->whole;
    return &gpu->instances[attachment->gi].compute[attachment->ci].energy;
}

static void advance(const struct config *config, struct gpu *gpu, int64_t to_ns) {
    uint64_t ns = (uint64_t)(to_ns - gpu->last_ns);
    uint64_t asked = asked_mw(gpu), given = gpu_power_mw(config, gpu) - rest_mw(config, gpu);
    for (unsigned i = 0; i < ATTACH_MAX && asked > 0; i++) {
        const struct attachment *attachment = &gpu->attachments[i];
        if (!attachment->used || attachment->draw_mw == 0)
            continue;
        /* Shares of what is left: the last one takes the rest, so that they sum to `given` exactly. */
        uint64_t share = attachment->draw_mw * given / asked;
        asked -= attachment->draw_mw;
        given -= share;
        meter_add(meter_of(gpu, attachment), share, ns);
    }
    meter_add(&gpu->energy, gpu_power_mw(config, gpu), ns);
    gpu->last_ns = to_ns;
}

/* Notes what the counter shows from its last tick on.  Power has been the same since `last_ns`. */
static void tick(const struct config *config, struct gpu *gpu, int64_t now_ns) {
    int64_t grain_ns = (int64_t)config->grain_ms * 1000000;
    int64_t at_ns = grain_ns > 0 ? now_ns / grain_ns * grain_ns : now_ns;
    if (at_ns < gpu->last_ns)
        return;
    struct meter shown = gpu->energy;
    meter_add(&shown, gpu_power_mw(config, gpu), (uint64_t)(at_ns - gpu->last_ns));
    gpu->ticked_uj = shown.uj;
}

static void integrate(const struct config *config, struct gpu *gpu, int64_t now_ns) {
    if (now_ns <= gpu->last_ns)
        return;
    tick(config, gpu, now_ns);
    if (now_ns - gpu->last_ns > 2 * (int64_t)SECOND_NS) /* the marks look back one second: no need for all between */
        advance(config, gpu, now_ns - 2 * (int64_t)SECOND_NS);
    for (int64_t mark = gpu->last_ns / MARK_NS + 1; mark * MARK_NS <= now_ns; mark++) {
        advance(config, gpu, mark * MARK_NS);
        gpu->marks[mark % MARKS] = gpu->energy.uj;
    }
    advance(config, gpu, now_ns);
}

void gpu_integrate(const struct config *config, struct gpu *gpu, int64_t now_ns) {
    if (config->sleep_after_ms > 0 && !gpu->asleep) {
        if (attachments_count(gpu, NVML_NO_INSTANCE, NVML_NO_INSTANCE) > 0)
            gpu->used_ns = now_ns;
        int64_t sleeps_ns = gpu->used_ns + (int64_t)config->sleep_after_ms * 1000000;
        if (sleeps_ns <= now_ns) {
            integrate(config, gpu, sleeps_ns);
            gpu->asleep = 1;
        }
    }
    integrate(config, gpu, now_ns);
}

uint64_t gpu_use(const struct config *config, struct gpu *gpu) {
    bool slept = gpu->asleep;
    gpu->asleep = 0;
    gpu->used_ns = gpu->last_ns;
    return slept ? (uint64_t)config->wake_ms * 1000000 : 0;
}

unsigned gpu_average_mw(const struct config *config, const struct gpu *gpu) {
    int64_t mark = gpu->last_ns / MARK_NS - 16;
    int64_t from_ns = gpu->born_ns;
    uint64_t from_uj = gpu->born_uj;
    if (mark * MARK_NS > gpu->born_ns) {
        from_ns = mark * MARK_NS;
        from_uj = gpu->marks[mark % MARKS];
    }
    int64_t ns = gpu->last_ns - from_ns;
    if (ns <= 0)
        return gpu_power_mw(config, gpu);
    return (unsigned)((gpu->energy.uj - from_uj) * 1000000 / (uint64_t)ns);
}
