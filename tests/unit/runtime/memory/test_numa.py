"""Memory on the node of its workers: of a kernel that is played (`sysfs`), and of this one."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.interfaces import Device
from clover.runtime.memory import numa
from clover.runtime.memory.slab import map_shared, shared_memory
from clover.types import DeviceShape, Placement
from tests.support.examples import examples
from tests.support.profiles_fixture import cpu

_GET_MEMPOLICY = {"x86_64": 239, "aarch64": 236}
_OF_ADDRESS = 2  # MPOL_F_ADDR


def nodes(folder: Path, **cpulists: str) -> Path:
    for node, text in cpulists.items():
        (folder / node).mkdir(parents=True)
        (folder / node / "cpulist").write_text(text + "\n")
    (folder / "online").write_text("0-1\n")
    return folder


class Pinned:
    """A device whose workers have `cores`."""

    def __init__(self, *cores: int) -> None:
        self._cores = cores

    def shape(self) -> DeviceShape:
        return cpu(len(self._cores))

    def cores(self, placement: Placement) -> tuple[int, ...]:
        return self._cores[placement.start : placement.start + placement.size]


def kept(memory: mmap.mmap, sysfs: Path, *devices: Pinned) -> int | None:
    return numa.keep_near(memory, cast("tuple[Device, ...]", devices), "f", sysfs)


@pytest.fixture
def shared() -> Iterable[mmap.mmap]:
    fd = shared_memory("numa", 4 * mmap.PAGESIZE)
    with map_shared(fd, 4 * mmap.PAGESIZE) as mapped:
        os.close(fd)
        yield mapped


@pytest.mark.parametrize(
    ("cores", "node"),
    [({0, 3, 9}, 0), ({4}, 1), ({4, 5, 12}, 1), ({3, 4}, None), ({0, 99}, None), ((), None)],
    ids=["first", "one", "second", "both", "unknown", "none"],
)
def test_the_node_is_the_one_that_all_cores_are_of(tmp_path: Path, cores: set[int], node: int | None) -> None:
    sysfs = nodes(tmp_path, node0="0-3,8-11", node1="4-7,12-15", node2="")  # memory without cores
    assert numa.node_of(cores, sysfs) == node


def test_a_machine_of_one_node_has_none_to_prefer(tmp_path: Path) -> None:
    assert numa.node_of({0, 1}, nodes(tmp_path / "one", node0="0-3")) is None
    assert numa.node_of({0, 1}, tmp_path / "no such folder") is None


def test_what_the_kernel_says_otherwise_than_expected_counts_as_unknown(tmp_path: Path) -> None:
    assert numa.node_of({0}, nodes(tmp_path, node0="0-3", node1="four")) is None


@given(st.sets(st.integers(0, 300), min_size=1, max_size=40), st.sets(st.integers(301, 600), max_size=20))
@settings(max_examples=examples(30))
def test_ranges_are_read_as_the_kernel_writes_them(first: set[int], second: set[int]) -> None:
    def written(cores: set[int]) -> str:
        starts = sorted(core for core in cores if core - 1 not in cores)
        ends = sorted(core for core in cores if core + 1 not in cores)
        return ",".join(f"{a}-{b}" if a < b else f"{a}" for a, b in zip(starts, ends, strict=True))

    assert numa._cores(written(first) + "\n") == first
    assert numa._cores(written(first | second)) == first | second


def test_workers_of_one_socket_have_their_rows_there(
    tmp_path: Path, shared: mmap.mmap, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, int, int]] = []

    def mbind(number: Any, address: Any, length: Any, mode: Any, mask: Any, bits: Any, flags: Any) -> int:
        words = ctypes.cast(mask, ctypes.POINTER(ctypes.c_uint64))
        asked.append((length.value, mode.value, words[0], flags.value))
        assert address.value % mmap.PAGESIZE == 0
        return 0

    monkeypatch.setattr(numa, "_syscall", mbind)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    sysfs = nodes(tmp_path, node0="0-3", node1="4-7")
    assert kept(shared, sysfs, Pinned(5, 6)) == 1
    assert asked == [(4 * mmap.PAGESIZE, 1, 1 << 1, 0)]
    assert kept(shared, sysfs, Pinned(2, 3), Pinned(4, 5)) is None
    assert kept(shared, sysfs, Pinned(2, 3, 4, 5)) is None
    assert len(asked) == 1


def test_a_kernel_that_refuses_leaves_all_as_it_is(
    tmp_path: Path, shared: mmap.mmap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numa, "_syscall", lambda *_: -1)
    assert kept(shared, nodes(tmp_path, node0="0-3", node1="4-7"), Pinned(5, 6)) is None
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    monkeypatch.setattr(numa, "_syscall", None)  # is not asked
    assert not numa.prefer(shared, 0)


def test_the_policy_is_the_memory_s_for_every_process_that_maps_it() -> None:
    """By the kernel of this machine: what one mapping was told holds for another one of the same memory."""
    number = _GET_MEMPOLICY.get(platform.machine())
    fd = shared_memory("numa", 4 * mmap.PAGESIZE)
    with map_shared(fd, 4 * mmap.PAGESIZE) as told, map_shared(fd, 4 * mmap.PAGESIZE) as other:
        os.close(fd)
        if number is None or not numa.prefer(told, 0):
            pytest.skip("this kernel, or this container, has no policies of memory")
        mode, mask = ctypes.c_int(-1), (ctypes.c_uint64 * 16)()
        first = ctypes.c_char.from_buffer(other)
        refused = numa._syscall(
            ctypes.c_long(number),
            ctypes.byref(mode),
            ctypes.byref(mask),
            ctypes.c_ulong(1024),
            ctypes.c_void_p(ctypes.addressof(first)),
            ctypes.c_ulong(_OF_ADDRESS),
        )
        del first
    assert (refused, mode.value, mask[0]) == (0, 1, 1)
