/* Names that the bindings know and this box has nothing behind: clocks, fans, links, accounting, settings.
 *
 * They answer NOT_SUPPORTED, as a board without the feature does, so that monitors print "N/A".  A name that is not
 * even here is one that an older driver would lack too; the bindings then raise their FunctionNotFound.  The arguments
 * do not matter: the caller owns the stack, and nothing is read or written.
 */
#include "emulator.h"

#define UNSUPPORTED(X)                                                                                                \
    X(nvmlDeviceClearAccountingPids) X(nvmlDeviceClearCpuAffinity) X(nvmlDeviceClearEccErrorCounts)                   \
    X(nvmlDeviceClearFieldValues) X(nvmlDeviceFreezeNvLinkUtilizationCounter) X(nvmlDeviceGetAPIRestriction)          \
    X(nvmlDeviceGetAccountingBufferSize) X(nvmlDeviceGetAccountingMode) X(nvmlDeviceGetAccountingPids)                \
    X(nvmlDeviceGetAccountingStats) X(nvmlDeviceGetAccountingStats_v2) X(nvmlDeviceGetAdaptiveClockInfoStatus)        \
    X(nvmlDeviceGetAddressingMode) X(nvmlDeviceGetApplicationsClock) X(nvmlDeviceGetAutoBoostedClocksEnabled)         \
    X(nvmlDeviceGetBoardId) X(nvmlDeviceGetBoardPartNumber) X(nvmlDeviceGetBridgeChipInfo) X(nvmlDeviceGetBusType)    \
    X(nvmlDeviceGetC2cModeInfoV) X(nvmlDeviceGetCapabilities) X(nvmlDeviceGetClkMonStatus) X(nvmlDeviceGetClock)      \
    X(nvmlDeviceGetClockInfo) X(nvmlDeviceGetClockOffsets) X(nvmlDeviceGetCoolerInfo) X(nvmlDeviceGetCpuAffinity)     \
    X(nvmlDeviceGetCpuAffinityWithinScope) X(nvmlDeviceGetCurrPcieLinkGeneration) X(nvmlDeviceGetCurrPcieLinkWidth)   \
    X(nvmlDeviceGetCurrentClockFreqs) X(nvmlDeviceGetCurrentClocksEventReasons)                                       \
    X(nvmlDeviceGetCurrentClocksThrottleReasons) X(nvmlDeviceGetDecoderUtilization)                                   \
    X(nvmlDeviceGetDefaultApplicationsClock) X(nvmlDeviceGetDefaultEccMode) X(nvmlDeviceGetDetailedEccErrors)         \
    X(nvmlDeviceGetDriverModel) X(nvmlDeviceGetDriverModel_v2) X(nvmlDeviceGetDynamicPstatesInfo)                     \
    X(nvmlDeviceGetEncoderCapacity) X(nvmlDeviceGetEncoderSessions) X(nvmlDeviceGetEncoderStats)                      \
    X(nvmlDeviceGetEncoderUtilization) X(nvmlDeviceGetFanControlPolicy_v2) X(nvmlDeviceGetFanSpeed)                   \
    X(nvmlDeviceGetFanSpeedRPM) X(nvmlDeviceGetFanSpeed_v2) X(nvmlDeviceGetGpcClkMinMaxVfOffset)                      \
    X(nvmlDeviceGetGpcClkVfOffset) X(nvmlDeviceGetGpuFabricInfo) X(nvmlDeviceGetGpuFabricInfoV)                       \
    X(nvmlDeviceGetGpuFabricInfo_v4) X(nvmlDeviceGetGpuMaxPcieLinkGeneration) X(nvmlDeviceGetGpuOperationMode)        \
    X(nvmlDeviceGetGspFirmwareMode) X(nvmlDeviceGetGspFirmwareVersion) X(nvmlDeviceGetHandleBySerial)                 \
    X(nvmlDeviceGetHandleByUUIDV) X(nvmlDeviceGetInforomConfigurationChecksum) X(nvmlDeviceGetInforomImageVersion)    \
    X(nvmlDeviceGetInforomVersion) X(nvmlDeviceGetIrqNum) X(nvmlDeviceGetJpgUtilization)                              \
    X(nvmlDeviceGetLastBBXFlushTime) X(nvmlDeviceGetMPSComputeRunningProcesses_v2) X(nvmlDeviceGetMarginTemperature)  \
    X(nvmlDeviceGetMaxClockInfo) X(nvmlDeviceGetMaxCustomerBoostClock) X(nvmlDeviceGetMaxPcieLinkGeneration)          \
    X(nvmlDeviceGetMaxPcieLinkWidth) X(nvmlDeviceGetMemClkMinMaxVfOffset) X(nvmlDeviceGetMemClkVfOffset)              \
    X(nvmlDeviceGetMemoryAffinity) X(nvmlDeviceGetMemoryBusWidth) X(nvmlDeviceGetMemoryErrorCounter)                  \
    X(nvmlDeviceGetMinMaxClockOfPState) X(nvmlDeviceGetMinMaxFanSpeed) X(nvmlDeviceGetModuleId)                       \
    X(nvmlDeviceGetMultiGpuBoard) X(nvmlDeviceGetNumFans) X(nvmlDeviceGetNumGpuCores) X(nvmlDeviceGetNumaNodeId)      \
    X(nvmlDeviceGetNvLinkCapability) X(nvmlDeviceGetNvLinkErrorCounter) X(nvmlDeviceGetNvLinkInfo)                    \
    X(nvmlDeviceGetNvLinkRemoteDeviceType) X(nvmlDeviceGetNvLinkRemotePciInfo_v2) X(nvmlDeviceGetNvLinkState)         \
    X(nvmlDeviceGetNvLinkUtilizationControl) X(nvmlDeviceGetNvLinkUtilizationCounter) X(nvmlDeviceGetNvLinkVersion)   \
    X(nvmlDeviceGetNvlinkBwMode) X(nvmlDeviceGetNvlinkSupportedBwModes) X(nvmlDeviceGetOfaUtilization)                \
    X(nvmlDeviceGetP2PStatus) X(nvmlDeviceGetPciInfoExt) X(nvmlDeviceGetPcieLinkMaxSpeed)                             \
    X(nvmlDeviceGetPcieReplayCounter) X(nvmlDeviceGetPcieSpeed) X(nvmlDeviceGetPcieThroughput) X(nvmlDeviceGetPdi)    \
    X(nvmlDeviceGetPerformanceModes) X(nvmlDeviceGetPlatformInfo) X(nvmlDeviceGetPowerManagementMode)                 \
    X(nvmlDeviceGetPowerSource) X(nvmlDeviceGetPowerState)                                                            \
    X(nvmlDeviceGetProcessesUtilizationInfo) X(nvmlDeviceGetRemappedRows) X(nvmlDeviceGetRemappedRows_v2)             \
    X(nvmlDeviceGetRepairStatus) X(nvmlDeviceGetRetiredPages) X(nvmlDeviceGetRetiredPagesPendingStatus)               \
    X(nvmlDeviceGetRetiredPages_v2) X(nvmlDeviceGetRowRemapperHistogram) X(nvmlDeviceGetRunningProcessDetailList)     \
    X(nvmlDeviceGetSamples) X(nvmlDeviceGetSerial) X(nvmlDeviceGetSramEccErrorStatus)                                 \
    X(nvmlDeviceGetSramUniqueUncorrectedEccErrorCounts) X(nvmlDeviceGetSupportedClocksEventReasons)                   \
    X(nvmlDeviceGetSupportedClocksThrottleReasons)                                                                    \
    X(nvmlDeviceGetSupportedGraphicsClocks) X(nvmlDeviceGetSupportedMemoryClocks)                                     \
    X(nvmlDeviceGetSupportedPerformanceStates) X(nvmlDeviceGetTargetFanSpeed) X(nvmlDeviceGetTemperatureThreshold)    \
    X(nvmlDeviceGetThermalSettings) X(nvmlDeviceGetTopologyCommonAncestor) X(nvmlDeviceGetTopologyNearestGpus)        \
    X(nvmlDeviceGetTotalEccErrors) X(nvmlDeviceGetVbiosVersion) X(nvmlDeviceGetViolationStatus)                       \
    X(nvmlDeviceGetVirtualizationMode) X(nvmlDeviceOnSameBoard)                                                       \
    X(nvmlDeviceResetApplicationsClocks) X(nvmlDeviceResetGpuLockedClocks) X(nvmlDeviceResetMemoryLockedClocks)       \
    X(nvmlDeviceResetNvLinkErrorCounters) X(nvmlDeviceResetNvLinkUtilizationCounter) X(nvmlDeviceSetAPIRestriction)   \
    X(nvmlDeviceSetAccountingMode) X(nvmlDeviceSetApplicationsClocks) X(nvmlDeviceSetAutoBoostedClocksEnabled)        \
    X(nvmlDeviceSetClockOffsets) X(nvmlDeviceSetCpuAffinity)                                                          \
    X(nvmlDeviceSetDefaultAutoBoostedClocksEnabled) X(nvmlDeviceSetDefaultFanSpeed_v2) X(nvmlDeviceSetDriverModel)    \
    X(nvmlDeviceSetEccMode) X(nvmlDeviceSetFanControlPolicy) X(nvmlDeviceSetFanSpeed_v2)                              \
    X(nvmlDeviceSetGpcClkVfOffset) X(nvmlDeviceSetGpuLockedClocks) X(nvmlDeviceSetGpuOperationMode)                   \
    X(nvmlDeviceSetMemClkVfOffset) X(nvmlDeviceSetMemoryLockedClocks) X(nvmlDeviceSetNvLinkDeviceLowPowerThreshold)   \
    X(nvmlDeviceSetNvLinkUtilizationControl) X(nvmlDeviceSetNvlinkBwMode)                                             \
    X(nvmlDeviceSetPowerManagementLimit) X(nvmlDeviceSetPowerManagementLimit_v2)                                      \
    X(nvmlDeviceSetTemperatureThreshold) X(nvmlDeviceSetVirtualizationMode) X(nvmlDeviceValidateInforom)              \
    X(nvmlGpmMetricsGet) X(nvmlGpmMigSampleGet) X(nvmlGpmQueryDeviceSupport) X(nvmlGpmQueryIfStreamingEnabled)        \
    X(nvmlGpmSampleAlloc) X(nvmlGpmSampleFree) X(nvmlGpmSampleGet) X(nvmlGpmSetStreamingEnabled)                      \
    X(nvmlSystemGetDriverBranch) X(nvmlSystemGetNvlinkBwMode) X(nvmlSystemGetTopologyGpuSet)                          \
    X(nvmlSystemRegisterEvents) X(nvmlSystemSetNvlinkBwMode)

#define X(name)                                                                                                        \
    EXPORT nvmlReturn_t name(void) {                                                                                   \
        nvmlReturn_t result = session_begin(#name);                                                                    \
        return result == NVML_SUCCESS ? NVML_ERROR_NOT_SUPPORTED : result;                                             \
    }
UNSUPPORTED(X)
