"""The filter of system calls, run instruction by instruction as the kernel does, on both architectures."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.worker import seccomp

OWN = 4321
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
PROGRAMS = {
    (machine, processes, signals): seccomp.program(OWN, machine=machine, processes=processes, signals=signals)
    for machine in MACHINES
    for processes in (False, True)
    for signals in (False, True)
}
HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


def decide(program: list[seccomp.Instruction], arch: int, number: int, *arguments: int) -> int:
    """Return the errno that a call gets from `program`, 0 if it is allowed: classic BPF, as in man 2 seccomp."""
    call = struct.pack("<IIQ6Q", number, arch, 0, *(*arguments, *(0,) * (6 - len(arguments))))
    word, at = 0, 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == seccomp.RETURN:
            if operand == seccomp.ALLOW:
                return 0
            assert operand & ~0xFFFF == seccomp.ERRNO
            return operand & 0xFFFF
        if code == seccomp.LOAD:
            (word,) = struct.unpack_from("<I", call, operand)
        elif code == seccomp.AND:
            word &= operand
        else:
            holds = {
                seccomp.EQUAL: word == operand,
                seccomp.AT_LEAST: word >= operand,
                seccomp.ANY_BIT: bool(word & operand),
            }[code]
            at += if_true if holds else if_false


def asked(machine: str, pair: tuple[int | None, int | None], *arguments: int, **may: bool) -> int:
    number = pair[list(MACHINES).index(machine)]
    assert number is not None
    program = PROGRAMS[machine, may.get("processes", False), may.get("signals", False)]
    return decide(program, MACHINES[machine], number, *arguments)


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_named_is_refused_and_the_rest_is_allowed(machine: str) -> None:
    program = PROGRAMS[machine, False, False]
    named = seccomp.numbers(machine)
    assert len(set(named.values())) == len(named)
    looked_at = {
        pair[list(MACHINES).index(machine)]
        for name, pair in vars(seccomp).items()
        if name.isupper() and isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(item, int) for item in pair)
    }
    for number in range(600):
        if number in named.values():
            assert decide(program, MACHINES[machine], number, 1, 1, 1) == errno.EPERM, number
        elif number not in looked_at:
            assert decide(program, MACHINES[machine], number, 1, 1, 1) == 0, number


@given(number=st.integers(0, (1 << 32) - 1), arch=st.integers(0, (1 << 32) - 1))
def test_calls_of_another_architecture_are_refused(number: int, arch: int) -> None:
    for machine, own in MACHINES.items():
        if arch != own:
            assert decide(PROGRAMS[machine, True, True], arch, number) == errno.EPERM
    assert decide(PROGRAMS["x86_64", True, True], MACHINES["x86_64"], number | 0x40000000) == errno.EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_threads_may_start_and_processes_if_they_are_allowed(machine: str) -> None:
    thread, process, new_user = 0x00010000 | 0x100, 17, 0x10000000 | 17
    assert asked(machine, seccomp._CLONE, thread) == 0
    assert asked(machine, seccomp._CLONE, process) == errno.EPERM
    assert asked(machine, seccomp._CLONE, process, processes=True) == 0
    assert asked(machine, seccomp._CLONE, new_user, processes=True) == errno.EPERM
    assert asked(machine, seccomp._CLONE, thread | 0x20000000) == errno.EPERM
    assert asked(machine, seccomp._CLONE3, 0) == errno.ENOSYS  # so that the C library takes clone
    assert asked(machine, seccomp._STARTING["execve"], 0) == errno.EPERM
    assert asked(machine, seccomp._STARTING["execve"], 0, processes=True) == 0


@pytest.mark.parametrize("machine", MACHINES)
@given(pid=st.integers(-(1 << 31), (1 << 31) - 1))
def test_it_reaches_no_process_but_itself(machine: str, pid: int) -> None:
    seen = pid & ((1 << 64) - 1)
    refused = 0 if pid == OWN else errno.EPERM
    assert asked(machine, seccomp._KILL, seen, 9) == refused
    assert asked(machine, seccomp._TGKILL, seen, seen, 9) == refused
    assert asked(machine, seccomp._KILL, seen, 9, processes=True, signals=True) == 0  # Landlock decides
    assert asked(machine, seccomp._PRLIMIT, seen) == (0 if pid in (0, OWN) else errno.EPERM)
    for pair, own_kind in ((seccomp._SETPRIORITY, 0), (seccomp._IOPRIO_SET, 1)):
        for kind in range(4):
            allowed = kind == own_kind and pid in (0, OWN)
            assert asked(machine, pair, kind, seen) == (0 if allowed else errno.EPERM)


@pytest.mark.parametrize("machine", MACHINES)
def test_sockets_are_connected_pairs(machine: str) -> None:
    close_on_exec = 0o2000000
    for family in range(50):
        assert asked(machine, seccomp._SOCKET, family, 1) == errno.EPERM
        assert asked(machine, seccomp._SOCKETPAIR, family, 1) == (0 if family == 1 else errno.EPERM)
    for kind, expected in ((1, 0), (2, errno.EPERM), (5, 0)):
        assert asked(machine, seccomp._SOCKETPAIR, 1, kind | close_on_exec) == expected


@pytest.mark.parametrize("machine", MACHINES)
def test_nobody_is_signalled_held_up_or_typed_for_by_a_descriptor(machine: str) -> None:
    refused = {8, 10, 15, 1024, 1026, 1031}  # F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ
    for command in (*range(40), *range(1024, 1044)):
        assert asked(machine, seccomp._FCNTL, 3, command) == (errno.EPERM if command in refused else 0), command
    assert [asked(machine, seccomp._IOCTL, 0, request) for request in (0x5412, 0x541C, 0x8901, 0x8902)] == [1] * 4
    assert asked(machine, seccomp._IOCTL, 0, 0x5401) == 0


@pytest.mark.parametrize("machine", MACHINES)
def test_it_takes_no_more_than_its_share(machine: str) -> None:
    """Neither other cores, nor a policy, nor memory that no limit counts."""
    own = {"x86_64": (203, 144, 142, 314, 319, 447), "aarch64": (122, 119, 118, 274, 279, 447)}[machine]
    program = PROGRAMS[machine, True, True]
    assert [decide(program, MACHINES[machine], number) for number in own] == [errno.EPERM] * 6
    open_to_gpus = seccomp.program(OWN, machine=machine, memory_files=True)
    assert [decide(open_to_gpus, MACHINES[machine], number) for number in own] == [1, 1, 1, 1, 0, 1]


@pytest.mark.skipif(not HEADER.is_file(), reason="the kernel's headers are not here")
def test_the_numbers_are_those_of_the_kernel() -> None:
    found = re.finditer(r"#define __NR_(\w+) (\d+)", HEADER.read_text())
    known = {match[1]: int(match[2]) for match in found}
    for name, number in seccomp.numbers("x86_64").items():
        assert known.get(name, number) == number, name  # newer calls may be missing from the header
    for name in ("clone", "clone3", "socket", "socketpair", "kill", "tgkill", "fcntl", "ioctl", "memfd_create"):
        assert getattr(seccomp, f"_{name.upper()}")[0] == known[name]
    assert (seccomp._PRLIMIT[0], seccomp._SETPRIORITY[0], seccomp._IOPRIO_SET[0]) == (
        known["prlimit64"],
        known["setpriority"],
        known["ioprio_set"],
    )
