"""A filter of system calls: the kernel refuses the calls that a model's code does not need once it runs.

The filter is a program of classic BPF that the kernel runs at each call: it sees the architecture, the number and the
six arguments of the call, not what these point to.  A call that is not named is allowed, because libraries of models
use more calls than anybody lists; a named one returns EPERM (or ENOSYS, if there is an older call to fall back to), and
nothing is killed.  Calls that are allowed whatever their arguments cost next to nothing: the kernel keeps a bit for
each (Linux 5.11).

What is denied, and why:

- sockets, but pairs that are connected already: neither the network, nor the control socket, nor a daemon of the
  machine.  io_uring with them, because it makes calls that no filter sees;
- other processes: reading their memory, their descriptors, tracing, signals, priorities, limits, cores; memory, queues
  and semaphores that are shared by number or name (System V, POSIX queues); leases of files, which hold up others that
  open these, and notice of what happens in folders;
- more than its share: cores beside its own, scheduling policies, and files and pipes in memory, which no limit counts;
- new processes and programs, unless the configuration allows them; a namespace of users in any case;
- what changes files without opening them (owner, mode, attributes, times), which Landlock does not handle, and opening
  files by handle, which goes around it;
- the machine: mounts, modules, clocks, the kernel's log, performance counters, keys, and the terminal's input.

Sources: man 2 seccomp, man 2 bpf; the numbers of calls are those of the kernel's tables for each architecture.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_PR_GET_SECCOMP = 21
_SET_MODE_FILTER, _GET_ACTION = 1, 2
_ALL_THREADS, _NO_SPECULATION_BRAKE = 1 << 0, 1 << 2

ALLOW = 0x7FFF0000
ERRNO = 0x00050000

# Instructions of classic BPF: load a word of the call's record, jump on equal / at least / any bit, return.
LOAD, EQUAL, AT_LEAST, ANY_BIT, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_X32 = 0x40000000
"""Calls of the x32 ABI, which the kernel would take under other numbers, have this bit."""

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_THREAD = 0x00010000
_DATAGRAMS = 2
_TYPE_MASK = 0xF
_UNIX = 1
_COMMANDS = (8, 10, 15, 1024, 1026, 1031)
"""Commands of fcntl that are refused, the same on every architecture: F_SETOWN, F_SETSIG and F_SETOWN_EX, by which a
descriptor sends signals; F_SETLEASE; F_NOTIFY; F_SETPIPE_SZ."""
_TERMINAL_INPUT = (0x5412, 0x541C, 0x8901, 0x8902)
"""Requests of ioctl that type for the user (TIOCSTI, TIOCLINUX) or choose who gets signals (FIOSETOWN, SIOCSPGRP)."""

# Names and numbers on (x86_64, aarch64); None: that architecture has no such call.
_ALWAYS: dict[str, tuple[int | None, int | None]] = {
    "connect": (42, 203),
    "accept": (43, 202),
    "accept4": (288, 242),
    "bind": (49, 200),
    "listen": (50, 201),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "kcmp": (312, 272),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "tkill": (200, 130),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "truncate": (76, 45),
    "file_setattr": (469, 469),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "fanotify_init": (300, 262),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "memfd_secret": (447, 447),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # Those of System V are reached by a number that can be guessed, also without the call that looks it up.
    "msgget": (68, 186),
    "msgctl": (71, 187),
    "msgrcv": (70, 188),
    "msgsnd": (69, 189),
    "semget": (64, 190),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "semop": (65, 193),
    "shmget": (29, 194),
    "shmctl": (31, 195),
    "shmat": (30, 196),
    "vhangup": (153, 58),
}
_STARTING: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
}
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_SOCKET = (41, 198)
_SOCKETPAIR = (53, 199)
_KILL = (62, 129)
_TGKILL = (234, 131)
_FCNTL = (72, 25)
_IOCTL = (16, 29)
_PRLIMIT = (302, 261)
_SETPRIORITY = (141, 140)
_IOPRIO_SET = (251, 30)
_MEMFD_CREATE = (319, 279)


class Instruction(NamedTuple):
    """One instruction: what to do, how many to skip if the comparison holds and if not, and its operand."""

    code: int
    if_true: int
    if_false: int
    operand: int


_REFUSE = Instruction(RETURN, 0, 0, ERRNO | errno.EPERM)
_PASS = Instruction(RETURN, 0, 0, ALLOW)


def available() -> bool:
    """Return whether this kernel takes filters, and this architecture is one whose calls are known here."""
    if platform.machine() not in _AUDIT_ARCH:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) < 0:
        return False
    action = ctypes.c_uint32(ERRNO)
    number = ctypes.c_long(_seccomp_number())
    return bool(libc.syscall(number, ctypes.c_uint(_GET_ACTION), ctypes.c_uint(0), ctypes.byref(action)) == 0)


def program(
    own: int, *, machine: str = "", processes: bool = False, signals: bool = False, memory_files: bool = False
) -> list[Instruction]:
    """Return the filter for the process `own` on `machine` (by default this one's).

    `processes`: it may start processes and programs.  `signals`: it may signal other processes as far as Landlock
    allows, which a process with children must.  `memory_files`: it may make files in memory.
    """
    machine = machine or platform.machine()
    column = list(_AUDIT_ARCH).index(machine)

    def number(pair: tuple[int | None, int | None]) -> int | None:
        return pair[column]

    filter_program = [
        Instruction(LOAD, 0, 0, _ARCH_AT),
        Instruction(EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        _REFUSE,  # a call of another architecture, whose numbers mean something else
        Instruction(LOAD, 0, 0, _NUMBER_AT),
    ]
    if machine == "x86_64":
        filter_program += [Instruction(AT_LEAST, 0, 1, _X32), _REFUSE]
    denied = dict(_ALWAYS)
    if not processes:
        denied |= _STARTING
    if not memory_files:
        denied["memfd_create"] = _MEMFD_CREATE
    for pair in denied.values():
        filter_program += _case(number(pair), [_REFUSE])
    filter_program += _case(
        number(_CLONE3), [Instruction(RETURN, 0, 0, ERRNO | errno.ENOSYS)]
    )  # its flags lie in memory
    filter_program += _case(number(_CLONE), _clone(processes))
    filter_program += _case(number(_SOCKET), [_REFUSE])
    filter_program += _case(number(_SOCKETPAIR), _pairs())
    if not signals:
        filter_program += _case(number(_KILL), _among(0, (own,)))
        filter_program += _case(number(_TGKILL), _among(0, (own,)))
    filter_program += _case(number(_FCNTL), _not_among(1, _COMMANDS))
    filter_program += _case(number(_IOCTL), _not_among(1, _TERMINAL_INPUT))
    filter_program += _case(number(_PRLIMIT), _among(0, (0, own)))
    for pair, of_one_process in ((_SETPRIORITY, 0), (_IOPRIO_SET, 1)):
        filter_program += _case(number(pair), [*_only(0, of_one_process), *_among(1, (0, own))])
    return [*filter_program, _PASS]


def install(instructions: Sequence[Instruction]) -> None:
    """Have the kernel filter the calls of this process, its threads, and what it starts by `instructions`, for ever.

    The process must have given up new privileges.  Raises OSError.
    """
    code = b"".join(struct.pack("<HBBI", *instruction) for instruction in instructions)
    memory = ctypes.create_string_buffer(code, len(code))
    filters = struct.pack("@HP", len(instructions), ctypes.addressof(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    flags = ctypes.c_uint(_ALL_THREADS | _NO_SPECULATION_BRAKE)
    result = libc.syscall(ctypes.c_long(_seccomp_number()), ctypes.c_uint(_SET_MODE_FILTER), flags, filters)
    if result:  # also the number of a thread that could not follow
        failure = ctypes.get_errno() if result < 0 else errno.ESRCH
        raise OSError(failure, f"seccomp: {os.strerror(failure)}")


def numbers(machine: str) -> Mapping[str, int]:
    """Return the numbers on `machine` of the calls that are denied whatever their arguments."""
    column = list(_AUDIT_ARCH).index(machine)
    return {name: found for name, pair in (_ALWAYS | _STARTING).items() if (found := pair[column]) is not None}


def _seccomp_number() -> int:
    return 317 if platform.machine() == "x86_64" else 277


def _case(number: int | None, block: list[Instruction]) -> list[Instruction]:
    """Return what runs `block`, which returns on every way through it, for the call `number`; nothing for None."""
    return [] if number is None else [Instruction(EQUAL, 0, len(block), number), *block]


def _argument(index: int) -> Instruction:
    """Load the lower half of an argument: the flags, numbers and pids that are looked at are 32 bits wide."""
    return Instruction(LOAD, 0, 0, _ARGUMENTS_AT + 8 * index)


def _among(index: int, values: Sequence[int]) -> list[Instruction]:
    """Allow the call if an argument is one of `values`, else refuse it."""
    checks = [Instruction(EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)]
    return [_argument(index), *checks, _REFUSE, _PASS]


def _not_among(index: int, values: Sequence[int]) -> list[Instruction]:
    """Refuse the call if an argument is one of `values`, else allow it."""
    checks = [Instruction(EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)]
    return [_argument(index), *checks, _PASS, _REFUSE]


def _only(index: int, value: int) -> list[Instruction]:
    """Refuse the call if an argument is not `value`, else go on."""
    return [_argument(index), Instruction(EQUAL, 1, 0, value), _REFUSE]


def _clone(processes: bool) -> list[Instruction]:
    """Allow threads; new processes if `processes`; and neither in a namespace of its own."""
    refuse_spaces = [_argument(0), Instruction(ANY_BIT, 0, 1, _NAMESPACES), _REFUSE]
    return (
        [*refuse_spaces, _PASS] if processes else [*refuse_spaces, Instruction(ANY_BIT, 1, 0, _THREAD), _REFUSE, _PASS]
    )


def _pairs() -> list[Instruction]:
    """Allow pairs of connected sockets, but none of datagrams: these could be sent to any address."""
    return [
        *_only(0, _UNIX),
        _argument(1),
        Instruction(AND, 0, 0, _TYPE_MASK),
        Instruction(EQUAL, 0, 1, _DATAGRAMS),
        _REFUSE,
        _PASS,
    ]
