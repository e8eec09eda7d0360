"""Findings about the machine: kernel, cores, memory, descriptors, clock, energy, embodied carbon.

`root` is a file system in tests.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

from clover import energy
from clover.cli.doctor.findings import Finding
from clover.config import ServerConfig, WorkersConfig
from clover.devices.cpu import CpuDevice, available_cores, cgroup_cpus, ranges
from clover.energy.rapl import RaplError, find_domains
from clover.errors import CloverError
from clover.hints import program
from clover.runtime.memory.free import meminfo, memory_limit
from clover.runtime.workers import sandboxes
from clover.server.footprint import hardware_of
from clover.settings import parse_cores
from clover.settings.check import on_gpus
from clover.worker import landlock

_ROOT = Path("/")
_GB = 1e9
WORKER_BYTES = 0.5e9
"""What a worker with torch takes, about, without its model."""
_STATUS_OFFSET = 40
"""Of `status` in the kernel's struct timex, where longs have eight bytes."""
_UNSYNCHRONISED = 0x40
_TIMEX_BYTES = 512


def examine(config: ServerConfig, root: Path = _ROOT) -> Iterator[Finding]:
    """Yield what there is to say of the machine."""
    yield kernel()
    yield confinement(config.workers)
    yield from cores(config, root)
    yield memory(root)
    yield descriptors(config.limits.connections)
    yield clock(clock_status())


def kernel() -> Finding:
    """Return whether the kernel has what workers need: memory without a name, and handles of processes."""
    release = f"Linux {os.uname().release}, {os.uname().machine}"
    missing = []
    for name, call in (("pidfd_open (5.3)", _pidfd), ("memfd_create (3.17)", _memfd)):
        try:
            os.close(call())
        except OSError as error:
            missing.append(f"{name}: {error.strerror}")
    if missing:
        return Finding(
            topic="kernel",
            state="fault",
            text=f"{release} does not give {'; '.join(missing)}",
            remedy="use Linux 5.3 or newer; in a container, a seccomp profile that allows these calls",
        )
    return Finding(topic="kernel", state="works", text=release)


def confinement(workers: WorkersConfig) -> Finding:
    """Return whether models will be kept from files, sockets and other processes."""
    report = sandboxes.report(workers, gpu=on_gpus(workers.device))
    if not report["reason"]:
        text = f"models are kept from files, sockets and processes (Landlock ABI {landlock.abi()}, seccomp)"
        return Finding(topic="sandbox", state="works", text=text)
    return Finding(
        topic="sandbox",
        state="fault" if workers.sandbox == "on" else "note",
        text=f"models are not kept from all that this user may reach: {report['reason']}",
        remedy="serve models that you trust, or see SECURITY.md for what the sandbox needs",
    )


def _pidfd() -> int:
    return os.pidfd_open(os.getpid())


def _memfd() -> int:
    return os.memfd_create("clover-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def cores(config: ServerConfig, root: Path = _ROOT) -> Iterator[Finding]:
    """Yield which cores Clover gets, by affinity and the quota of its cgroup, and how they are shared out."""
    affinity = tuple(sorted(os.sched_getaffinity(0)))
    quota = cgroup_cpus(root)
    usable = available_cores(root, affinity)
    limits = f", by a quota of {quota:g} CPUs" if quota is not None else ""
    text = f"{len(usable)} for Clover ({ranges(usable)}), of {os.cpu_count()} of the machine{limits}"
    if quota is not None and quota != int(quota):
        yield Finding(
            topic="cores",
            state="note",
            text=f"{text}: the fraction is of no use to workers, and the kernel throttles them",
            remedy="give a limit of whole CPUs (CPUQuota= of systemd, limits.cpu of a pod)",
        )
    else:
        yield Finding(topic="cores", state="works", text=text)
    if config.workers.device.partition(":")[0] != "cpu":
        return
    try:
        device = CpuDevice(parse_cores(config.workers.cores))
    except CloverError as error:
        yield Finding(topic="cores", state="fault", text=str(error), remedy="correct --cores, or leave it out")
        return
    if device.shape().shared_front:
        yield Finding(
            topic="cores",
            state="note",
            text="the front end shares the cores of the workers, so that batches delay it",
            remedy="three cores or more: the first one is the front end's then",
        )


def memory(root: Path = _ROOT) -> Finding:
    """Return how much memory is free for workers, within the limit of the cgroup."""
    free = meminfo(root).get("MemAvailable", 0)
    limit = memory_limit(root)
    text = f"{free / _GB:.1f} GB free"
    if limit is not None:
        text += f", a limit of {limit / _GB:.1f} GB for this cgroup"
        free = min(free, limit)
    if free < 2 * WORKER_BYTES:
        return Finding(
            topic="memory",
            state="note",
            text=f"{text}; a worker takes about {WORKER_BYTES / _GB:.1f} GB and its model",
            remedy="more memory, or fewer workers (--cores)",
        )
    return Finding(topic="memory", state="works", text=text)


def descriptors(connections: int, limits: Callable[[int], tuple[int, int]] = resource.getrlimit) -> Finding:
    """Return whether as many files may be open as there may be connections."""
    _, hard = limits(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < connections + 512:
        return Finding(
            topic="open files",
            state="note",
            text=f"at most {hard}, but limits.connections is {connections}: connections are refused before",
            remedy=f"ulimit -Hn {max(65536, 2 * connections)} (LimitNOFILE= of systemd)",
        )
    most = "any number" if hard == resource.RLIM_INFINITY else str(hard)
    return Finding(topic="open files", state="works", text=f"{most} may be open, for {connections} connections")


def clock_status() -> int | None:
    """Return the kernel's status bits of the clock; None if they cannot be read."""
    try:
        buffer = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes 0: read only
        if ctypes.CDLL(None, use_errno=True).adjtimex(buffer) < 0:
            return None
    except (OSError, AttributeError):
        return None
    return int.from_bytes(buffer.raw[_STATUS_OFFSET : _STATUS_OFFSET + 4], "little")


def clock(status: int | None) -> Finding:
    """Return whether the clock is synchronised, as the kernel says."""
    if status is None:
        return Finding(topic="clock", state="note", text="the kernel does not say whether it is synchronised")
    if status & _UNSYNCHRONISED:
        return Finding(
            topic="clock",
            state="note",
            text="not synchronised: hours of the grid and times of spans may be off",
            remedy="timedatectl set-ntp true (or run chrony); in a container, on the host",
        )
    return Finding(topic="clock", state="works", text="synchronised, as the kernel says")


def power(config: ServerConfig, powercap: Path) -> Iterator[Finding]:
    """Yield how joules and embodied carbon of the CPU are known."""
    yield _meter(config, powercap)
    for item in hardware_of(config.embodied, {"cpu0": CpuDevice()}):
        bounds = f", {item.low_kg:.3g} to {item.high_kg:.3g}" if item.low_kg and item.high_kg else ""
        reserved = f"{item.reserved:g} of {item.total:g} reserved"
        text = f"{item.kg:.3g} kgCO2e of {item.product} ({item.known}{bounds}), {reserved}"
        yield Finding(topic="embodied", state="works", text=text)


def _meter(config: ServerConfig, powercap: Path) -> Finding:
    try:
        meter = energy.build(config.energy, cores=len(available_cores()), cpu_seconds=lambda: 0.0, powercap=powercap)
    except CloverError as error:
        return Finding(topic="energy", state="fault", text=str(error), remedy="--energy-meter auto")
    text = f"{meter.method}: {meter.why}"
    if meter.method == "measured" or config.energy.meter == "modelled":
        return Finding(topic="energy", state="works", text=text)
    try:
        find_domains(powercap)
        advice = ""
    except RaplError as error:
        advice = f"{error.advice}; or take idle_w and core_w from `{program()} doctor --calibrate` on a like machine"
    return Finding(topic="energy", state="note", text=text, remedy=advice)
