"""`clover mig emulate`: any NVML program on emulated GPUs."""
