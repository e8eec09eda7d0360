"""Who holds GPU instances, read off a made-up /proc."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clover.devices import clients
from clover.devices.clients import GpuClient
from clover.errors import DeviceError
from tests.support import disturb


def process(proc: Path, pid: int, name: str, *files: str, parent: int = 1, service: str = "") -> None:
    folder = proc / str(pid)
    (folder / "fd").mkdir(parents=True)
    (folder / "comm").write_text(f"{name}\n")
    (folder / "stat").write_text(f"{pid} ({name}) S {parent} 0 0\n")
    (folder / "cgroup").write_text(f"0::/system.slice/{service}\n" if service else "0::/\n")
    for number, file in enumerate(files):
        os.symlink(file, folder / "fd" / str(number))


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "self").mkdir()
    process(tmp_path, 1, "systemd")
    return tmp_path


def test_what_holds_nodes_is_found_and_what_ends_it(proc: Path) -> None:
    cap = f"{clients.CAPABILITIES}nvidia-cap12"
    process(proc, 20, "dcgmi odd) name", "/dev/null", cap, service="cron.service")  # what cron runs, not cron
    process(proc, 21, "nv-hostengine", "/dev/nvidiactl", service="dcgm-site.service")
    process(proc, 22, "python", "/dev/nvidiactl", "/dev/nvidia0")  # uses a GPU, which holds no instance
    process(proc, 23, "trainer", cap)
    process(proc, 24, "another", cap)
    found = clients.find(proc=proc, without=[24])
    assert found == (
        GpuClient(pid=20, name="dcgmi odd) name"),
        GpuClient(pid=21, name="nv-hostengine", unit="dcgm-site"),
        GpuClient(pid=23, name="trainer"),
    )
    assert [client.known for client in found] == [False, True, False]
    assert clients.remedy(found) == "systemctl stop dcgm-site && kill 20 23"
    assert clients.holders([7, 9], found[1:2]) == (
        "held by process 7, 9; nv-hostengine (process 21) may hold it: systemctl stop dcgm-site"
    )
    assert clients.holders([], []) == "no process is to be seen on it"


def test_programs_that_are_known_need_hold_no_node(proc: Path) -> None:
    process(proc, 20, "nv-hostengine", "/dev/nvidiactl")
    process(proc, 21, "nvidia-cuda-mps", "/dev/nvidiactl")  # nvidia-cuda-mps-control and -server
    found = clients.find(proc=proc)
    assert found == (
        GpuClient(pid=20, name="nv-hostengine", unit="nvidia-dcgm"),
        GpuClient(pid=21, name="nvidia-cuda-mps"),
    )
    assert clients.remedy(found) == "systemctl stop nvidia-dcgm && kill 21"


def test_this_process_and_what_it_started_do_not_count(proc: Path) -> None:
    cap = f"{clients.CAPABILITIES}nvidia-cap12"
    process(proc, os.getpid(), "clover", cap)
    process(proc, 900_001, "zygote", parent=os.getpid())
    process(proc, 900_002, "clover:tiny", cap, parent=900_001)
    process(proc, 900_003, "circle", cap, parent=900_003)
    assert [client.pid for client in clients.find(proc=proc)] == [900_003]


def test_a_process_that_may_not_be_looked_at_is_left_out(proc: Path) -> None:
    process(proc, 20, "dcgm-exporter")
    (proc / "20" / "fd").rmdir()
    (proc / "30").mkdir()  # gone meanwhile
    assert clients.find(proc=proc) == ()


def test_a_monitor_needs_a_box(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="No such file"):
        disturb.EmulatedMonitor(tmp_path / "none.nvml")
