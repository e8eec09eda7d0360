"""Landlock, by which a process gives up the file system but for what it names: plain calls of the kernel.

The kernel says by one number which of its rights it knows (its ABI; 0 without Landlock).  A ruleset names the rights
that it handles: those it knows, and each is then denied but beneath the paths of its rules, for this process and what
it forks, for ever.  From ABI 6 on a domain also cannot signal what is outside of it, nor reach abstract sockets there.

What Landlock does not handle: `stat`, `chmod`, `chown`, attributes, times, and connecting to sockets that have a path
(`clover.worker.seccomp` denies those that change something).  Source: the kernel's
Documentation/userspace-api/landlock.rst and include/uapi/linux/landlock.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable
from typing import NamedTuple

# The same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1

EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
REFER = 1 << 13
TRUNCATE = 1 << 14
IOCTL_DEV = 1 << 15
_MAKE_AND_REMOVE = 0b1_1111_1111 << 4
"""Removing folders and files; making devices, folders, files, sockets, pipes and links."""

READ = READ_FILE | READ_DIR
CHANGE = READ | WRITE_FILE | TRUNCATE | _MAKE_AND_REMOVE | REFER
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""The rights that a rule for one file may have."""

_HANDLED = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""Rights to files that a ruleset may handle, by the ABI that brought them."""
_NETWORK_ABI, _SCOPE_ABI = 4, 6
SIGNALS_ABI = _SCOPE_ABI
"""From this ABI on a domain cannot signal processes outside of it."""
_TCP = 0b11  # bind and connect
_SCOPES = 0b11  # abstract unix sockets and signals


class Rule(NamedTuple):
    """The rights that a process keeps beneath a path."""

    path: str
    rights: int


def abi() -> int:
    """Return the ABI of this kernel's Landlock; 0 if it has none, or it is switched off."""
    return max(_syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG)), 0)


def attributes(version: int) -> bytes:
    """Return the attributes of a ruleset that handles all that an ABI knows: every right to files, TCP, and what
    reaches processes outside."""
    files = _HANDLED[max(known for known in _HANDLED if known <= version)]
    network = _TCP if version >= _NETWORK_ABI else 0
    scopes = _SCOPES if version >= _SCOPE_ABI else 0
    size = 3 if version >= _SCOPE_ABI else 2 if version >= _NETWORK_ABI else 1
    return struct.pack("<3Q", files, network, scopes)[: 8 * size]


def restrict(version: int, rules: Iterable[Rule]) -> None:
    """Keep this thread, and what it starts, to `rules` for ever.  What a rule names and does not exist is left out.

    The process must have given up new privileges.  Raises OSError.
    """
    given = attributes(version)
    (handled,) = struct.unpack_from("<Q", given)
    ruleset = _check("landlock_create_ruleset", _CREATE_RULESET, given, ctypes.c_size_t(len(given)), ctypes.c_uint32(0))
    try:
        for rule in rules:
            _add(ruleset, rule, handled)
        _check("landlock_restrict_self", _RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _add(ruleset: int, rule: Rule, handled: int) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):  # no right can be given there
        at = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
        try:
            rights = rule.rights & handled
            if not stat.S_ISDIR(os.fstat(at).st_mode):
                rights &= _OF_FILES
            if rights:
                beneath = struct.pack("<Qi", rights, at)  # packed, as in the kernel's header
                _check(
                    "landlock_add_rule",
                    _ADD_RULE,
                    ctypes.c_int(ruleset),
                    ctypes.c_int(_PATH_BENEATH),
                    beneath,
                    ctypes.c_uint32(0),
                )
        finally:
            os.close(at)


def _check(name: str, number: int, *arguments: object) -> int:
    result = _syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def _syscall(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    ctypes.set_errno(errno.ENOSYS)
    return int(libc.syscall(ctypes.c_long(number), *arguments))
