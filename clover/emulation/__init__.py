"""Emulated GPUs: a kind of device, and a wrapper of the `run` of a worker's lanes.

emulated    the state file that the emulated NVML serves; made, used, disturbed and restored from Python
boxes       such GPUs as devices (`workers.device` "emulated:...")
pacing      time, power and memory of a slice, kept by the worker that plays it
profiles    what a family does on such GPUs: calculated from its profile on CPU cores, or taken from a pace file
cli         `clover mig emulate`
"""
