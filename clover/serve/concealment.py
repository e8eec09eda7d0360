"""Hiding the secrets of a server from other processes of its user, above all from its workers.

Such a process can read `/proc/PID/environ`, `/proc/PID/cmdline` and, if it may trace the server, its memory.  The
kernel allows the first and the last only for processes that are dumpable, and shows the second to everybody.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

_PR_SET_DUMPABLE = 4

_ARG_START = 45
"""Index in /proc/self/stat, behind the name, of the begin of the arguments; their end, and begin and end of the
environment follow."""


def conceal(secrets: Iterable[str]) -> None:
    """Let no process but root's trace this one or dump its memory, and blank `secrets` in what the kernel shows of its
    arguments and environment.  `sys.argv` and `os.environ` are copies and stay as they are.  Raises OSError."""
    with open("/proc/self/stat") as file:  # before the kernel takes this process for somebody else's
        fields = file.read().rpartition(")")[2].split()
    begin_args, end_args, begin_environ, end_environ = map(int, fields[_ARG_START : _ARG_START + 4])
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")
    hidden = [os.fsencode(secret) for secret in secrets if secret]
    for begin, end in ((begin_args, end_args), (begin_environ, end_environ)):
        shown = ctypes.string_at(begin, end - begin) if begin < end else b""
        for secret in hidden:
            at = shown.find(secret)
            while at >= 0:
                ctypes.memset(begin + at, ord("*"), len(secret))
                at = shown.find(secret, at + len(secret))
