from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover import devices
from clover.config import WorkersConfig
from clover.devices import DEVICES, parse
from clover.devices.cpu import CpuDevice, available_cores, cgroup_cpus, layouts_of, ranges
from clover.errors import DeviceError
from clover.settings.check import DEVICE_FORMS
from clover.types import Placement


def cores_of(layout: Iterable[Placement]) -> list[int]:
    return sorted(core for p in layout for core in range(p.start, p.start + p.size))


@pytest.mark.parametrize(
    ("cores", "workers", "shared", "count"),
    [(1, 1, True, 1), (2, 2, True, 2), (3, 2, False, 2), (8, 7, False, 11), (9, 8, False, 26), (65, 64, False, 66)],
)
def test_layouts_cover_the_worker_cores_once(cores: int, workers: int, shared: int, count: int) -> None:
    device = CpuDevice.from_cores(tuple(range(10, 10 + cores)))
    shape = device.shape()
    assert shape.slices == workers == len(device.worker_cores)
    assert shape.shared_front is shared is device.shared_front
    assert shape.overlap
    assert shape.kind == "cpu"
    assert len(shape.layouts) == count == len(set(shape.layouts))
    for layout in shape.layouts:
        assert cores_of(layout) == list(range(workers))
        for placement in layout:
            assert placement.start % placement.size == 0
            assert placement.profile == f"{placement.size}c"
            assert device.cores(placement) == tuple(
                device.worker_cores[placement.start : placement.start + placement.size]
            )
    if shared:
        assert device.front_cores == device.worker_cores
    else:
        assert device.front_cores == (10,)
        assert 10 not in device.worker_cores


@given(st.integers(1, 300))
def test_the_number_of_layouts_is_bounded(total: int) -> None:
    layouts = layouts_of(total)
    sizes = total.bit_length()
    assert len(layouts) <= max(27, 8 * sizes * sizes)
    assert len(layouts) == len(set(layouts))
    assert ((0, total),) in layouts
    assert tuple((i, 1) for i in range(total)) in layouts
    for blocks in layouts:
        ends = 0
        for start, size in blocks:
            assert start == ends
            assert start % size == 0
            ends += size
        assert ends == total


def test_explicit_cores_all_belong_to_workers() -> None:
    mine = tuple(sorted(os.sched_getaffinity(0)))
    device = CpuDevice(mine)
    assert device.worker_cores == mine
    assert device.shared_front
    with pytest.raises(DeviceError, match="4095"):
        CpuDevice((4095,))
    with pytest.raises(DeviceError, match="different"):
        CpuDevice.from_cores((1, 1))
    with pytest.raises(DeviceError, match="at least one"):
        CpuDevice(())


def test_this_machine() -> None:
    device = CpuDevice()
    assert set(device.worker_cores) <= os.sched_getaffinity(0)
    assert set(device.front_cores) <= os.sched_getaffinity(0)


def test_threads_are_one_unless_set() -> None:
    device = CpuDevice.from_cores((0, 1, 2, 3, 4), threads={"2c": 2})
    assert device.threads(device.placement(0, 4)) == 1
    assert device.threads(device.placement(0, 2)) == 2
    device.set_threads("4c", 99)
    assert device.threads(device.placement(0, 4)) == 4
    with pytest.raises(DeviceError, match="at least one thread"):
        device.set_threads("1c", 0)


def test_create_and_destroy_check_the_placement() -> None:
    device = CpuDevice.from_cores((0, 1))
    asyncio.run(device.create(device.placement(0, 2)))
    asyncio.run(device.destroy(device.placement(1, 1)))
    for wrong in (
        Placement(device="cpu1", profile="1c", start=0, size=1),
        Placement(device="cpu0", profile="2c", start=1, size=2),
        Placement(device="cpu0", profile="2c", start=0, size=1),
        Placement(device="cpu0", profile="0c", start=0, size=0),
        Placement(device="cpu0", profile="1c", start=-1, size=1),
    ):
        with pytest.raises(DeviceError, match="does not exist"):
            asyncio.run(device.create(wrong))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_cgroup_v2_quota_of_any_ancestor(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/a/b\n")
    write(tmp_path / "sys/fs/cgroup/a/cpu.max", "250000 100000\n")
    write(tmp_path / "sys/fs/cgroup/a/b/cpu.max", "max 100000\n")
    assert cgroup_cpus(tmp_path) == 2.5
    assert available_cores(tmp_path, (3, 4, 5, 6)) == (3, 4)
    write(tmp_path / "sys/fs/cgroup/a/b/cpu.max", "50000 100000\n")
    assert available_cores(tmp_path, (3, 4, 5, 6)) == (3,)


def test_cgroup_v1_quota(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "4:cpu,cpuacct:/docker/x\n3:memory:/docker/x\n0::/\n")
    base = tmp_path / "sys/fs/cgroup/cpu,cpuacct"
    write(base / "cpu.cfs_quota_us", "300000\n")
    write(base / "cpu.cfs_period_us", "100000\n")
    assert cgroup_cpus(tmp_path) == 3.0
    write(base / "cpu.cfs_quota_us", "-1\n")
    assert cgroup_cpus(tmp_path) is None


def test_no_cgroup_means_no_quota(tmp_path: Path) -> None:
    assert cgroup_cpus(tmp_path) is None
    assert available_cores(tmp_path, (0, 7)) == (0, 7)


@pytest.mark.parametrize(
    ("cores", "text"), [((), ""), ((5,), "5"), ((0, 1, 2, 3, 6), "0-3,6"), ((1, 3, 5, 6), "1,3,5-6")]
)
def test_cores_in_words(cores: tuple[int, ...], text: str) -> None:
    assert ranges(cores) == text


def test_every_kind_of_device_is_known_to_the_settings_and_reads_its_own_examples() -> None:
    assert DEVICES.keys() == DEVICE_FORMS.keys()
    for kind, form in DEVICE_FORMS.items():
        assert {parse(example).kind for example in form.examples.split(", ")} == {kind}


@pytest.mark.parametrize(
    ("cores", "sleep", "watts"), [("auto", "park", 0.1), ("auto", "off", None), ("", "park", None)]
)
def test_cores_sleep_only_under_auto_and_if_sleep_is_not_off(
    tmp_path: Path, cores: str, sleep: Literal["park", "off"], watts: float | None
) -> None:
    (device,) = devices.build(WorkersConfig(cores=cores, sleep=sleep), tmp_path).values()
    assert device.shape().core_sleep_w == watts
