/* Power, energy, limits, temperature, utilisation.
 *
 * Power and energy are the emulated board's (energy.c), energy as of the counter's last tick.  GA100 reports the power of
 * this moment, Hopper and later the average of the last second.  Temperature is a stand-in for monitors: linear in power, from 30 C idle to 80 C at the
 * limit.  Boards of laptops may have no counter, no power or no limit: the flags of `config` say which.  Utilisation of the board is the share of its dynamic power, and as on real boards unknown while MIG is on.
 * Clocks and fans have no counterpart here and answer NOT_SUPPORTED (unsupported.c).
 */
#include "emulator.h"

#include <time.h>

/* The readings, frozen while a fault says so: the value of the first reading after it began. */
static unsigned power_now_mw(struct call *call) {
    const struct config *config = &call->box->config;
    if (!faults_stuck(call->box, "nvmlDeviceGetPowerUsage", call->index)) {
        call->gpu->stuck &= ~(uint32_t)STUCK_POWER;
        return gpu_power_mw(config, call->gpu);
    }
    if (!(call->gpu->stuck & STUCK_POWER)) {
        call->gpu->stuck |= STUCK_POWER;
        call->gpu->stuck_mw = gpu_power_mw(config, call->gpu);
        call->gpu->stuck_average_mw = gpu_average_mw(config, call->gpu);
    }
    return call->gpu->stuck_mw;
}

static unsigned power_average_mw(struct call *call) {
    power_now_mw(call);
    return call->gpu->stuck & STUCK_POWER ? call->gpu->stuck_average_mw : gpu_average_mw(&call->box->config, call->gpu);
}

static unsigned long long energy_mj(struct call *call) {
    unsigned long long now_mj = call->gpu->ticked_uj / 1000;
    if (!faults_stuck(call->box, "nvmlDeviceGetTotalEnergyConsumption", call->index)) {
        call->gpu->stuck &= ~(uint32_t)STUCK_ENERGY;
        return now_mj;
    }
    if (!(call->gpu->stuck & STUCK_ENERGY)) {
        call->gpu->stuck |= STUCK_ENERGY;
        call->gpu->stuck_mj = now_mj;
    }
    return call->gpu->stuck_mj;
}

static bool lacks(const struct call *call, unsigned flag) {
    return (call->box->config.flags & flag) != 0;
}

/* Begins a call that looks at what processes draw, so the dead must go first.  `flag`: NOT_SUPPORTED with it. */
static nvmlReturn_t begin_reading(struct call *call, const char *symbol, nvml_handle device, const void *out,
                                  unsigned flag) {
    nvmlReturn_t result = call_begin(call, symbol, device, ON_GPU);
    if (result != NVML_SUCCESS)
        return result;
    if (lacks(call, flag))
        return call_end(call, NVML_ERROR_NOT_SUPPORTED);
    if (out == NULL)
        return call_end(call, NVML_ERROR_INVALID_ARGUMENT);
    attachments_reap(call->mapping, call->index, call->gpu);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetPowerUsage(nvml_handle device, unsigned *milliwatts) {
    struct call call;
    nvmlReturn_t result = begin_reading(&call, __func__, device, milliwatts, BOX_NO_POWER);
    if (result != NVML_SUCCESS)
        return result;
    *milliwatts = call.box->config.average_power ? power_average_mw(&call) : power_now_mw(&call);
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvml_handle device, unsigned long long *millijoules) {
    struct call call;
    nvmlReturn_t result = begin_reading(&call, __func__, device, millijoules, BOX_NO_ENERGY);
    if (result != NVML_SUCCESS)
        return result;
    *millijoules = energy_mj(&call);
    return call_end(&call, NVML_SUCCESS);
}

static nvmlReturn_t limit(const char *symbol, nvml_handle device, unsigned *milliwatts) {
    struct call call;
    nvmlReturn_t result = begin_reading(&call, symbol, device, milliwatts, BOX_NO_LIMIT);
    if (result != NVML_SUCCESS)
        return result;
    *milliwatts = call.box->config.max_mw;
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvml_handle device, unsigned *milliwatts) {
    return limit(__func__, device, milliwatts);
}

EXPORT nvmlReturn_t nvmlDeviceGetPowerManagementDefaultLimit(nvml_handle device, unsigned *milliwatts) {
    return limit(__func__, device, milliwatts);
}

EXPORT nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvml_handle device, unsigned *milliwatts) {
    return limit(__func__, device, milliwatts);
}

/* The limit cannot be moved here, so its range is one value. */
EXPORT nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvml_handle device, unsigned *least, unsigned *most) {
    if (least == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = limit(__func__, device, most);
    if (result == NVML_SUCCESS)
        *least = *most;
    return result;
}

static void field_fill(struct call *call, nvmlFieldValue_t *field) {
    field->nvmlReturn = NVML_SUCCESS;
    field->valueType = NVML_VALUE_UNSIGNED_INT;
    field->value.ullVal = 0;
    switch (field->fieldId) {
    case NVML_FIELD_TOTAL_ENERGY:
        if (lacks(call, BOX_NO_ENERGY)) {
            field->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
            break;
        }
        field->valueType = NVML_VALUE_UNSIGNED_LONG_LONG;
        field->value.ullVal = energy_mj(call);
        break;
    case NVML_FIELD_POWER_AVERAGE:
        if (call->box->config.average_power && !lacks(call, BOX_NO_POWER))
            field->value.uiVal = power_average_mw(call);
        else
            field->nvmlReturn = NVML_ERROR_NOT_SUPPORTED; /* GA100 has no such sensor */
        break;
    case NVML_FIELD_POWER_INSTANT:
        if (lacks(call, BOX_NO_POWER))
            field->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
        else
            field->value.uiVal = power_now_mw(call);
        break;
    case NVML_FIELD_POWER_MIN_LIMIT:
    case NVML_FIELD_POWER_MAX_LIMIT:
    case NVML_FIELD_POWER_DEFAULT_LIMIT:
    case NVML_FIELD_POWER_CURRENT_LIMIT:
    case NVML_FIELD_POWER_REQUESTED_LIMIT:
        if (lacks(call, BOX_NO_LIMIT))
            field->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
        else
            field->value.uiVal = call->box->config.max_mw;
        break;
    default:
        field->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
    }
}

EXPORT nvmlReturn_t nvmlDeviceGetFieldValues(nvml_handle device, int count, nvmlFieldValue_t *fields) {
    struct call call;
    struct timespec now;
    nvmlReturn_t result = begin_reading(&call, __func__, device, fields, 0);
    if (result != NVML_SUCCESS)
        return result;
    if (count < 1)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    clock_gettime(CLOCK_REALTIME, &now);
    for (int i = 0; i < count; i++) {
        fields[i].timestamp = (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
        fields[i].latencyUsec = 0;
        field_fill(&call, &fields[i]);
    }
    return call_end(&call, NVML_SUCCESS);
}

/* --- for monitors ------------------------------------------------------------------------------------------------- */

/* The part of the dynamic range in use, in `whole`ths. */
static unsigned load_of(const struct call *call, unsigned whole) {
    const struct config *config = &call->box->config;
    uint64_t range = config->max_mw - config->idle_mw;
    return range > 0 ? (unsigned)((gpu_power_mw(config, call->gpu) - config->idle_mw) * (uint64_t)whole / range) : 0;
}

static nvmlReturn_t temperature(const char *symbol, nvml_handle device, unsigned sensor, unsigned *celsius) {
    struct call call;
    nvmlReturn_t result = begin_reading(&call, symbol, device, celsius, 0);
    if (result != NVML_SUCCESS)
        return result;
    if (sensor != 0)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    *celsius = 30 + load_of(&call, 50);
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvml_handle device, unsigned sensor, unsigned *celsius) {
    return temperature(__func__, device, sensor, celsius);
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperatureV(nvml_handle device, nvmlTemperature_v1_t *reading) {
    if (reading == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (reading->version != NVML_VERSION(nvmlTemperature_v1_t, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    unsigned celsius = 0;
    nvmlReturn_t result = temperature(__func__, device, reading->sensorType, &celsius);
    reading->temperature = (int)celsius;
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvml_handle device, nvmlUtilization_t *utilisation) {
    struct call call;
    nvmlReturn_t result = begin_reading(&call, __func__, device, utilisation, 0);
    if (result != NVML_SUCCESS)
        return result;
    if (call.gpu->mig)
        return call_end(&call, NVML_ERROR_NOT_SUPPORTED);
    utilisation->gpu = load_of(&call, 100);
    utilisation->memory = 0;
    return call_end(&call, NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetEccMode(nvml_handle device, unsigned *current, unsigned *pending) {
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, ON_GPU);
    if (result != NVML_SUCCESS)
        return result;
    if (current == NULL || pending == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    *current = *pending = NVML_FEATURE_ENABLED;
    return call_end(&call, NVML_SUCCESS);
}
