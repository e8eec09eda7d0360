"""GPUs that are not there: a kind of device, and a wrapper of the `run` of a worker's lanes.

emulated    the state file that the emulated NVML serves; made, used, disturbed and restored from Python
boxes       such GPUs as devices (`workers.device` "emulated:...")
pacing      time, power and memory of a slice, kept by the worker that plays it
cli         `clover mig emulate`
"""
