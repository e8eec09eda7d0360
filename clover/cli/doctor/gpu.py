"""Findings about NVIDIA GPUs: the driver and its match with torch, MIG mode, and the rights to cut instances."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clover import devices
from clover.cache import cache_folder
from clover.cli.doctor.findings import Finding, State
from clover.cli.doctor.software import torch_cuda
from clover.cli.mig.box import GpuBox
from clover.cli.mig.state import HIDDEN, GpuState
from clover.config import ServerConfig
from clover.devices.driver import older_torch
from clover.devices.nvml import DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, Nvml, NvmlError
from clover.errors import CloverError
from clover.settings.check import on_gpus

_ROOT = Path("/")
_RIGHTS = (
    "none is needed to serve on instances that somebody else made; to cut them, run as root, or give this user the "
    "device of the capability mig/config (in a container NVIDIA_MIG_CONFIG_DEVICES=all)"
)
_UVM = "dev/nvidia-uvm"
_CONFIG = "proc/driver/nvidia/capabilities/mig/config"


def examine(config: ServerConfig, folder: Path, root: Path = _ROOT, session: Nvml | None = None) -> Iterator[Finding]:
    """Yield what there is to say of the GPUs; `folder` has the records of which instances are Clover's."""
    wanted = on_gpus(config.workers.device)
    if config.workers.device.startswith("emulated:"):
        yield from _emulated(config, folder)
        return
    opened = session or Nvml()
    try:
        yield _driver(opened, wanted)
        gpus = GpuBox(opened, folder, emulated=False).look()
    except CloverError as error:
        absent = isinstance(error, NvmlError) and error.code in (LIBRARY_NOT_FOUND, DRIVER_NOT_LOADED) and not wanted
        what, _, remedy = str(error).partition(": ")
        if absent:
            yield Finding(topic="gpu", state="absent", text=what)
        else:
            yield Finding(topic="gpu", state="fault" if wanted else "note", text=what, remedy=remedy)
        return
    finally:
        if session is None:
            opened.close()
    if not gpus:
        state: State = "fault" if wanted else "absent"
        yield Finding(topic="gpu", state=state, text="the driver sees no GPU", remedy="pass one into this container")
    if (root / "proc/driver/nvidia").exists() and not (root / _UVM).exists():
        text = f"/{_UVM} is missing: a process without root that may gain no privileges finds no GPU"
        yield Finding(topic="gpu nodes", state="note", text=text, remedy="nvidia-modprobe -c0 -u, as root after a boot")
    for gpu in gpus:
        yield _gpu(gpu)
    if any(gpu.fixed for gpu in gpus):
        text = "the driver lets this process change no instances"
        yield Finding(topic="mig rights", state="note", text=text, remedy=_RIGHTS)
    elif any(gpu.supported for gpu in gpus):
        yield rights(root)


def _emulated(config: ServerConfig, folder: Path) -> Iterator[Finding]:
    """Yield what there is to say of emulated GPUs; none is made."""
    session = Nvml()
    try:
        choice = devices.parse(config.workers.device)
        path = devices.box_path(choice, cache_folder(config.cache_dir))
        if not path.exists():
            yield Finding(topic="gpu", state="works", text=f"{config.workers.device}: made when a server starts on it")
            return
        devices.emulation("emulated").use_box(path)
        devices.emulation("boxes").check(session, choice, path)
        for gpu in GpuBox(session, folder, emulated=True).look():
            yield _gpu(gpu)
    except CloverError as error:
        yield Finding(topic="gpu", state="fault", text=str(error))  # which says what to do
    finally:
        session.close()


def _driver(session: Nvml, wanted: bool) -> Finding:
    """Return the driver's version, and whether torch can use it."""

    def ask(library: Any) -> tuple[str, int]:
        return str(library.nvmlSystemGetDriverVersion()), int(library.nvmlSystemGetCudaDriverVersion())

    version, number = session.call_sync(lambda: ask(session.library))
    return match(version, (number // 1000, number % 1000 // 10), torch_cuda(), wanted=wanted)


def match(driver: str, knows: tuple[int, int], built_for: str | None, *, wanted: bool) -> Finding:
    """Return whether torch `built_for` a CUDA runs with a driver that `knows` CUDA up to that version; `wanted`: GPUs
    are what is to be served on."""
    text = f"{driver}, CUDA {knows[0]}.{knows[1]}"
    if built_for is None:
        return Finding(
            topic="driver",
            state="fault" if wanted else "note",
            text=f"{text}; torch is built without CUDA: workers cannot use the GPUs",
            remedy="pip install torch (PyPI has builds for CUDA 13)" if knows[0] >= 13 else older_torch(knows[0]),
        )
    major, minor = [*map(int, built_for.split(".")), 0][:2]
    if major > knows[0]:
        return Finding(
            topic="driver",
            state="fault" if wanted else "note",
            text=f"{text}, but torch is built for CUDA {built_for}: it does not run with this driver",
            remedy=f"install a driver for CUDA {major} (nvidia.com/drivers), or {older_torch(knows[0])}",
        )
    if (major, minor) > knows:
        return Finding(
            topic="driver",
            state="note",
            text=f"{text}; torch is built for CUDA {built_for}, a later minor version: kernels that are compiled at "
            "run time may fail",
            remedy=f"a driver for CUDA {built_for}",
        )
    return Finding(topic="driver", state="works", text=f"{text}; torch is built for CUDA {built_for}")


def _gpu(gpu: GpuState) -> Finding:
    text = f"{gpu.device}: {gpu.product}" + (f", {gpu.memory_mib} MiB" if gpu.memory_mib else "")
    if gpu.lost:
        return Finding(
            topic="gpu", state="fault", text=f"{gpu.device} is lost", remedy="reset it or reboot; see dmesg (Xid)"
        )
    if gpu.error:
        return Finding(topic="gpu", state="fault", text=f"{gpu.device} cannot be read", remedy=gpu.error)
    if not gpu.supported:
        return Finding(topic="gpu", state="works", text=f"{text}, without MIG: served as a whole")
    text += f", MIG {gpu.mode}"
    if gpu.held:
        text += f"; {gpu.held}"
    if gpu.pending != gpu.enabled:
        remedy = f"stop what runs on it, then nvidia-smi --gpu-reset -i {gpu.index}"
        return Finding(topic="gpu", state="note", text=text, remedy=remedy)
    if gpu.fixed and gpu.instances:
        count = Counter(item.placement.profile for item in gpu.instances)
        names = ", ".join(f"{n} x {name}" for name, n in count.items())
        return Finding(topic="gpu", state="works", text=f"{text}, {names}, {gpu.fixed}: served on as they are")
    if gpu.hidden:
        return Finding(topic="gpu", state="note", text=f"{text}; instances are hidden", remedy=HIDDEN)
    if not gpu.enabled:
        reset = f" && nvidia-smi --gpu-reset -i {gpu.index}" if gpu.needs_reset else ""
        remedy = f"nvidia-smi -i {gpu.index} -mig 1{reset} (as root), to serve on several instances of it at once"
        lost = "" if gpu.needs_reset else " (after a reboot it is off, whatever it was before)"
        return Finding(topic="gpu", state="note", text=f"{text}{lost}: it is served whole", remedy=remedy)
    return Finding(topic="gpu", state="works", text=f"{text}, {len(gpu.instances)} instances")


def rights(root: Path = _ROOT, uid: int | None = None) -> Finding:
    """Return whether this user may cut instances: root, or whoever can open the device of the capability mig/config."""
    if (os.geteuid() if uid is None else uid) == 0:
        return Finding(topic="mig rights", state="works", text="root may cut instances")
    try:
        found = re.search(r"DeviceFileMinor:\s*(\d+)", (root / _CONFIG).read_text())
    except OSError as error:
        text = f"/{_CONFIG} cannot be read ({error.strerror}): instances cannot be cut"
        return Finding(topic="mig rights", state="note", text=text, remedy=_RIGHTS)
    device = root / f"dev/nvidia-caps/nvidia-cap{found[1]}" if found is not None else None
    if device is None or not os.access(device, os.R_OK):
        shown = f"/{device.relative_to(root)}" if device is not None else f"the device of /{_CONFIG}"
        text = f"{shown} cannot be opened: instances cannot be cut"
        return Finding(topic="mig rights", state="note", text=text, remedy=_RIGHTS)
    return Finding(topic="mig rights", state="works", text=f"this user may cut instances (/{device.relative_to(root)})")
