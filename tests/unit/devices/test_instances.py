"""The device nodes of MIG instances, under a /proc and a /dev made for the test."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from clover.devices import instances
from clover.devices.mig import MigDevice
from clover.devices.nvml import Nvml
from clover.errors import DeviceError
from clover.types import Placement
from tests.support.fake_nvml import Board, FakeNvml

Made = list[tuple[str, int, int]]


def machine(root: Path, gpu: int = 0, gi: int = 1, *, minors: tuple[int, ...] = (12, 13)) -> Path:
    """The driver's capabilities of an instance with a compute instance, and a /dev without their nodes."""
    folder = root / f"proc/driver/nvidia/capabilities/gpu{gpu}/mig/gi{gi}"
    for place, minor in zip(("access", "ci0/access"), minors, strict=True):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(f"DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n")
    (root / "proc/devices").write_text(
        "Character devices:\n195 nvidia\n235 nvidia-caps\n236 nvidia-caps-imex-channels\n"
    )
    (root / "dev").mkdir(exist_ok=True)
    return root / "dev/nvidia-caps"


def tool(_: Path) -> None:
    """NVIDIA's tool where it is not installed."""


def maker(made: Made) -> Callable[[Path, int, int], None]:
    def mknod(path: Path, mode: int, device: int) -> None:
        made.append((path.name, mode, device))
        path.write_bytes(b"")

    return mknod


def refusing(code: int) -> Callable[[Path, int, int], None]:
    def mknod(path: Path, mode: int, device: int) -> None:
        raise OSError(code, os.strerror(code))

    return mknod


def test_missing_nodes_are_made(tmp_path: Path) -> None:
    folder = machine(tmp_path)
    made: Made = []
    instances.provide(0, 1, root=tmp_path, tool=tool, mknod=maker(made))
    mode = stat.S_IFCHR | 0o444
    assert made == [("nvidia-cap12", mode, os.makedev(235, 12)), ("nvidia-cap13", mode, os.makedev(235, 13))]
    instances.provide(0, 1, root=tmp_path, tool=tool, mknod=maker(made))
    assert len(made) == 2, "those that are there are left alone"
    assert sorted(path.name for path in folder.iterdir()) == ["nvidia-cap12", "nvidia-cap13"]


def test_nvidias_own_tool_comes_first(tmp_path: Path) -> None:
    folder = machine(tmp_path)
    asked = []

    def made(capability: Path) -> None:
        asked.append(str(capability.relative_to(tmp_path)))
        folder.mkdir(exist_ok=True)
        (folder / f"nvidia-cap{11 + len(asked)}").touch()

    instances.provide(0, 1, root=tmp_path, tool=made, mknod=refusing(errno.EPERM))
    start = "proc/driver/nvidia/capabilities/gpu0/mig/gi1"
    assert asked == [f"{start}/access", f"{start}/ci0/access"]


def test_a_node_that_appears_at_the_same_moment_will_do(tmp_path: Path) -> None:
    machine(tmp_path)

    def mknod(path: Path, mode: int, device: int) -> None:
        path.touch()
        raise FileExistsError

    instances.provide(0, 1, root=tmp_path, tool=tool, mknod=mknod)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EACCES, errno.EROFS])
def test_what_cannot_be_made_says_what_the_container_needs(tmp_path: Path, code: int) -> None:
    machine(tmp_path)
    with pytest.raises(DeviceError, match=r"/dev/nvidia-caps/nvidia-cap12 cannot be made.*-v /dev:/dev.*hostPath"):
        instances.provide(0, 1, root=tmp_path, tool=tool, mknod=refusing(code))


def test_what_may_not_be_opened_says_so(tmp_path: Path) -> None:
    folder = machine(tmp_path)
    folder.mkdir()
    os.symlink("nvidia-cap12", folder / "nvidia-cap12")  # a node that answers an error to whoever opens it
    with pytest.raises(DeviceError, match=r"nvidia-cap12 cannot be"):
        instances.provide(0, 1, root=tmp_path, tool=tool, mknod=maker([]))


def test_a_driver_without_capabilities_needs_none(tmp_path: Path) -> None:
    instances.provide(0, 1, root=tmp_path, tool=tool, mknod=refusing(errno.EPERM))
    folder = machine(tmp_path)
    (tmp_path / "proc/devices").write_text("Character devices:\n195 nvidia\n")
    with pytest.raises(DeviceError, match="/proc/devices names no nvidia-caps"):
        instances.provide(0, 1, root=tmp_path, tool=tool, mknod=maker([]))
    assert not list(folder.iterdir())


def test_an_instance_without_its_nodes_is_not_left_standing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(gpu: int, instance: int, *, root: Path) -> None:
        raise DeviceError(f"no node of gpu{gpu} gi{instance} in {root}")

    monkeypatch.setattr(instances, "provide", refuse)
    board, session = Board(), None
    session = Nvml(FakeNvml(board))
    device = MigDevice.open(session, 0, tmp_path, cores=())
    place = Placement(device="gpu0", profile="1g.5gb", start=3, size=1)
    with pytest.raises(DeviceError, match=r"gpu0:1g\.5gb@3 cannot be used: no node of gpu0 gi1 in /"):
        asyncio.run(device.create(place))
    assert board.names == []
    assert device.instances() == ()
    emulated = MigDevice.open(session, 0, tmp_path / "other", cores=(), emulated=True)
    asyncio.run(emulated.create(place))
    assert emulated.instances() == (place,), "emulated instances have no nodes"
    emulated.close()
    device.close()
    session.close()
