"""The device nodes without which a process cannot use a MIG instance, as files of the kernel.

The driver guards each GPU instance and each compute instance by a *capability*: a file under
`/proc/driver/nvidia/capabilities/gpuN/mig/` that gives the minor number of a device node in `/dev/nvidia-caps/`.  A
worker needs to open both nodes.  On a plain machine the driver's own tools make them.  A container has a `/dev` of its
own, with the nodes of the instances that existed when it was started, and a list of devices that it may open at all.
So an instance that is made from within is complete to the driver, and to CUDA it does not exist.

What is missing is made here, by `nvidia-modprobe` (which may where this process may not) or else by this process.  If
neither can, the error says what the container must be given.
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

from clover.errors import DeviceError

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
    """Make the nodes of a GPU instance, and of the compute instances in it, that are missing; `gpu` is the GPU's minor
    number.  Nothing happens if the driver says nothing of nodes.  Raises DeviceError if one cannot be made or opened.
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
    found = _MAJOR.search((root / "proc/devices").read_text())
    if found is None:
        raise OSError("/proc/devices names no nvidia-caps")
    return int(found[1])
