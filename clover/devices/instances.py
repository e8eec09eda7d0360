"""Changes what exists on one GPU together with our record of it.

Every function here is one uninterrupted piece of work in the thread of the NVML session.  So the record and the GPU
disagree only if the process dies between two lines.  Whichever lines these are, the next start finds one of these:

    recorded, does not exist          the intent was written, or the removal not yet struck out    -> struck out
    recorded, exists                  ours, with or without its compute instance                   -> adopted or removed
    recorded, another one exists      ours was removed by hand, and the other one made             -> foreign
    not recorded, exists              never ours, since nothing is made before it is recorded      -> foreign
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clover.devices import nvml
from clover.devices.gpu import GpuInstance, MigGpu
from clover.devices.ownership import Ownership, OwnPlace
from clover.errors import DeviceError
from clover.types import Record


class InstanceInventory(Record, frozen=True, kw_only=True):
    """The GPU instances of a GPU, by start."""

    ours: tuple[GpuInstance, ...]
    foreign: tuple[GpuInstance, ...]


class OwnedInstances:
    """The instances of `gpu`, of which `owned` records ours.  `root`: where this machine's /proc and /dev lie; None: it
    needs no device nodes, being emulated.  Raises what the bindings raise, and DeviceError if the
    record cannot be written."""

    def __init__(self, library: Any, gpu: MigGpu, owned: Ownership, root: Path | None = None) -> None:
        self._library = library
        self._root = root
        self._gpu = gpu
        self._owned = owned

    def close(self) -> None:
        """Release the GPU for another server."""
        self._owned.close()

    def inspect(self) -> InstanceInventory:
        """Return the instances that exist; recorded ones that do not exist are struck out."""
        standing = self._gpu.walk()
        ours = tuple(found for found in standing if is_ours(found, self._owned))
        if self._owned.exclusive:
            present = {found.place for found in ours}
            for own in self._owned.places:
                if own.place not in present:
                    self._owned.remove(own)
        return InstanceInventory(ours=ours, foreign=tuple(found for found in standing if found not in ours))

    def make(self, profile: str, start: int) -> GpuInstance:
        """Make the GPU instance at this place, without a compute instance unless ours was there already."""
        own = OwnPlace(profile=profile, start=start, size=self._gpu.profiles[profile].size)
        known = self._owned.find(own.place) is not None
        if not known and self._gpu.find(profile, start) is not None:
            # Foreign.  Recorded even for a moment, it would be ours to the next reader of the record.
            raise self._library.NVMLError(nvml.INSUFFICIENT_RESOURCES)
        self._owned.add(own)
        try:
            return self._gpu.make(profile, start)
        except self._library.NVMLError as error:
            if error.value in nvml.LOST_CODES:
                raise  # unknown whether it exists: it stays recorded, and the next poll finds out
            instance = self._gpu.find(profile, start)
            # "No room" is also the answer if this very instance exists.  Unless it was recorded before, somebody made
            # it just now; after any other refusal, what stands here is what was refused only half.
            if instance is None or (error.value == nvml.INSUFFICIENT_RESOURCES and not known):
                self._owned.remove(own)
                raise
            return instance

    def complete(self, found: GpuInstance) -> GpuInstance:
        """Make the compute instance of a GPU instance of ours, and record what the driver calls it."""
        whole = self._gpu.complete(found)
        self._owned.add(_own(whole))
        return whole

    def provide(self, found: GpuInstance) -> None:
        """Make the device nodes that a process needs to open the instance; raises DeviceError if it cannot."""
        if self._root is not None:
            provide(self._gpu.minor, found.gi, root=self._root)

    def unmake(self, found: GpuInstance) -> None:
        """Remove an instance of ours, also one that is gone already, and strike it out."""
        self._gpu.unmake(found)
        self._owned.remove(_own(found))

    def claim(self, found: GpuInstance) -> None:
        """Record a foreign instance as ours."""
        self._owned.add(_own(found))


def is_ours(found: GpuInstance, owned: Ownership) -> bool:
    """Return whether an instance is the one recorded at its place."""
    own = owned.find(found.place)
    return own is not None and own.means(found.gi, found.uuid)


def _own(found: GpuInstance) -> OwnPlace:
    """Return the record of an instance; without its names if it is not complete."""
    gi = found.gi if found.uuid else -1
    return OwnPlace(profile=found.profile, start=found.start, size=found.size, gi=gi, uuid=found.uuid)


_MINOR = re.compile(r"^DeviceFileMinor:\s*(\d+)", re.MULTILINE)
_MODE = re.compile(r"^DeviceFileMode:\s*(\d+)", re.MULTILINE)
_MAJOR = re.compile(r"^\s*(\d+)\s+nvidia-caps$", re.MULTILINE)
_TOOL = "nvidia-modprobe"
_TOOL_S = 10.0


def modprobe(capability: Path) -> None:
    """Let NVIDIA's tool make the node of a capability, if it is installed; it runs as root for any user."""
    if path := shutil.which(_TOOL):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run([path, "-f", str(capability)], capture_output=True, timeout=_TOOL_S, check=False)


def provide(
    gpu: int,
    instance: int,
    *,
    root: Path = Path("/"),
    tool: Callable[[Path], None] = modprobe,
    mknod: Callable[[Path, int, int], None] = os.mknod,
) -> None:
    """Make the missing device nodes of a GPU instance, and of the compute instances in it; `gpu` is the GPU's minor
    number.  Nothing happens if the driver says nothing of nodes.  Raises DeviceError if a node cannot be made or
    opened.

    The driver guards each GPU instance and each compute instance by a *capability*: a file under
    `/proc/driver/nvidia/capabilities/gpuN/mig/` that gives the minor number of a device node in `/dev/nvidia-caps/`.  A
    worker needs to open both nodes.  On a plain machine the driver's own tools make them.  A container has a `/dev` of
    its own, with the nodes of the instances that existed when it was started, and a list of devices that it may open at
    all.  So an instance that is made from within is complete to the driver, but does not exist to CUDA.
    `nvidia-modprobe` makes the missing nodes (it may where this process may not), or else this process does.  If
    neither can, the error says what the container must be given.
    """
    folder = root / f"proc/driver/nvidia/capabilities/gpu{gpu}/mig/gi{instance}"
    for capability in (folder / "access", *sorted(folder.glob("ci*/access"))):
        try:
            text = capability.read_text()
        except OSError:
            continue
        minor, mode = _MINOR.search(text), _MODE.search(text)
        if minor is None:
            continue
        node = root / f"dev/nvidia-caps/nvidia-cap{minor[1]}"
        try:
            if not node.exists():
                tool(capability)
            if not node.exists():
                node.parent.mkdir(exist_ok=True)
                with contextlib.suppress(FileExistsError):  # made by another process at the same time
                    kind = stat.S_IFCHR | (int(mode[1]) if mode else 0o444)
                    mknod(node, kind, os.makedev(_major(root), int(minor[1])))
            os.close(os.open(node, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            what = "opened" if node.exists() else "made"
            raise DeviceError(
                f"its device node /{node.relative_to(root)} cannot be {what} here ({error.strerror or error}), and "
                "without it no process can use the instance: give the container the machine's /dev and the right to "
                "open what is in it (docker run --privileged -v /dev:/dev, or --device-cgroup-rule for nvidia-caps "
                "instead of --privileged; in Kubernetes a privileged container with /dev as a hostPath volume)"
            ) from error


def _major(root: Path) -> int:
    """Return the major number of the nodes.  Raises OSError if the kernel lists none."""
    match = _MAJOR.search((root / "proc/devices").read_text())
    if match is None:
        raise OSError("/proc/devices names no nvidia-caps")
    return int(match[1])
