"""Keeps a family's rows on the NUMA node of its workers.

On a machine with several sockets each has memory of its own, and what one copies from the memory of another takes
longer; so do copies to a GPU of the other socket.  Workers of a GPU are pinned to cores of its node, as the driver says
(`clover.devices.gpu`), and the kernel says which node a core belongs to.  If all workers of a family have cores of one
node, its slab is placed there.  The policy is set on the memory (`mbind`) and not on a process, because the slab is
shared and any process may touch a page first.  The node is preferred, not demanded: if it is full, others serve.

If workers are on several nodes, or the machine has one node, or the kernel refuses (as in containers without
CAP_SYS_NICE), nothing is done.  Only speed depends on it.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import platform
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from clover.interfaces import Device

log = logging.getLogger("clover.runtime")

SYSFS = Path("/sys/devices/system/node")
_MBIND = {"x86_64": 237, "aarch64": 235}
_PREFERRED = 1  # MPOL_PREFERRED
_MOST_NODES = 1024
_WORD_BITS = 64

Syscall = Callable[..., int]


def cores_of(devices: Iterable[Device]) -> set[int]:
    """Return the cores that workers on `devices` may be pinned to."""
    cores: set[int] = set()
    for device in devices:
        places = {place.id: place for layout in device.shape().layouts for place in layout}
        for place in places.values():
            cores.update(device.cores(place))
    return cores


def node_of(cores: Collection[int], sysfs: Path = SYSFS) -> int | None:
    """Return the node that all of `cores` are of; None if they are of several, if the machine has only one, or if the
    kernel does not say."""
    nodes = {}
    for folder in sysfs.glob("node[0-9]*"):
        try:
            nodes[int(folder.name[4:])] = _cores((folder / "cpulist").read_text(encoding="ascii"))
        except (OSError, ValueError) as error:
            log.debug("%s does not say which cores it has: %s", folder, error)
            return None
    if len(nodes) < 2 or not cores:
        return None
    return next((node for node, own in nodes.items() if own.issuperset(cores)), None)


def prefer(memory: mmap.mmap, node: int, syscall: Syscall | None = None) -> bool:
    """Have pages of `memory`, which is shared, that were not touched yet be made on `node` if it has room; return
    whether the kernel does."""
    number = _MBIND.get(platform.machine())
    if number is None or not 0 <= node < _MOST_NODES:
        return False
    mask = (ctypes.c_uint64 * (_MOST_NODES // _WORD_BITS))()
    mask[node // _WORD_BITS] = 1 << node % _WORD_BITS
    first = ctypes.c_char.from_buffer(memory)
    refused = (syscall or _syscall)(
        ctypes.c_long(number),
        ctypes.c_void_p(ctypes.addressof(first)),
        ctypes.c_ulong(len(memory)),
        ctypes.c_int(_PREFERRED),
        ctypes.byref(mask),
        ctypes.c_ulong(_MOST_NODES + 1),  # the kernel takes one bit less than it is told
        ctypes.c_uint(0),
    )
    if refused:
        why = ctypes.get_errno()
        log.debug(
            "memory stays where the kernel puts it: mbind: %s", os.strerror(why) if why in errno.errorcode else why
        )
    return not refused


def keep_near(memory: mmap.mmap, devices: Iterable[Device], name: str, sysfs: Path = SYSFS) -> int | None:
    """Keep `memory` of family `name` on the node of its workers; return the node, None if there is none or the kernel
    refuses."""
    node = node_of(cores_of(devices), sysfs)
    if node is None or not prefer(memory, node):
        return None
    log.info("%s: rows are kept on NUMA node %d, where all of its workers are", name, node)
    return node


def _cores(text: str) -> set[int]:
    """Return the cores of a list as the kernel writes it ("0-3,8-11", empty for a node without cores); ValueError."""
    cores: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            raise ValueError(f"{part!r} is no range of cores")
        first = int(match[1])
        cores.update(range(first, int(match[2] or first) + 1))
    return cores


def _syscall(*arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return int(libc.syscall(*arguments))
