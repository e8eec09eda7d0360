/* Which GPU instances fit beside those that exist, where the driver would put one, and what its id is.
 *
 * A set of instances is legal exactly if their intervals on the memory axis are disjoint, their compute slices sum to
 * no more than the board has, every profile's cap holds, and at most one has the media extension.  An instance with all
 * media engines (`+me.all`) leaves room only for those without any (`-me`).
 *
 * The driver, asked for no placement, takes the highest start that fits.  That is what makes order matter: 1g, 1g, 2g,
 * 3g end up at 6, 5, 2, and then nowhere, though all four fit side by side.
 */
#include "emulator.h"

/* Heap numbering over the halved axis: the whole board is 0, its halves 1 and 2, quarters from 3, eighths from 7. */
unsigned instance_id(const struct config *config, const struct profile *profile, unsigned start) {
    return config->memory_slices / profile->size - 1 + start / profile->size;
}

static bool media_conflict(const struct profile *one, const struct profile *other) {
    unsigned exclusive = KIND_MEDIA | KIND_ALL_MEDIA;
    if ((one->kind & exclusive) && (other->kind & exclusive))
        return true;
    return ((one->kind & KIND_ALL_MEDIA) && !(other->kind & KIND_NO_MEDIA)) ||
           ((other->kind & KIND_ALL_MEDIA) && !(one->kind & KIND_NO_MEDIA));
}

static bool known_start(const struct profile *profile, unsigned start) {
    for (unsigned i = 0; i < profile->start_count; i++)
        if (profile->starts[i] == start)
            return true;
    return false;
}

nvmlReturn_t placement_check(const struct box *box, const struct gpu *gpu, const struct profile *profile,
                             unsigned start) {
    if (!known_start(profile, start))
        return NVML_ERROR_INVALID_ARGUMENT;
    unsigned compute = profile->slices, alike = 1;
    for (unsigned gi = 0; gi < INSTANCES_MAX; gi++) {
        const struct instance *instance = &gpu->instances[gi];
        if (!instance->alive)
            continue;
        const struct profile *other = &box->config.profiles[instance->profile];
        if (start < instance->start + other->size && instance->start < start + profile->size)
            return NVML_ERROR_INSUFFICIENT_RESOURCES;
        if (media_conflict(profile, other))
            return NVML_ERROR_INSUFFICIENT_RESOURCES;
        compute += other->slices;
        alike += other == profile;
    }
    if (compute > box->config.compute_slices || alike > profile->most)
        return NVML_ERROR_INSUFFICIENT_RESOURCES;
    return NVML_SUCCESS;
}

nvmlReturn_t placement_choose(const struct box *box, const struct gpu *gpu, const struct profile *profile,
                              unsigned *start) {
    bool found = false;
    for (unsigned i = 0; i < profile->start_count; i++)
        if ((!found || profile->starts[i] > *start) &&
            placement_check(box, gpu, profile, profile->starts[i]) == NVML_SUCCESS) {
            *start = profile->starts[i];
            found = true;
        }
    return found ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_RESOURCES;
}

/* Placements of one profile never overlap, so every free one counts, up to the compute slices and the cap. */
unsigned remaining_capacity(const struct box *box, const struct gpu *gpu, const struct profile *profile) {
    unsigned compute = 0, alike = 0, fits = 0;
    for (unsigned gi = 0; gi < INSTANCES_MAX; gi++)
        if (gpu->instances[gi].alive) {
            const struct profile *other = &box->config.profiles[gpu->instances[gi].profile];
            compute += other->slices;
            alike += other == profile;
        }
    for (unsigned i = 0; i < profile->start_count; i++)
        fits += placement_check(box, gpu, profile, profile->starts[i]) == NVML_SUCCESS;
    unsigned by_compute = (box->config.compute_slices - compute) / profile->slices;
    unsigned by_cap = profile->most > alike ? profile->most - alike : 0;
    unsigned least = fits < by_compute ? fits : by_compute;
    return least < by_cap ? least : by_cap;
}
